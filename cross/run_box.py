"""Starts the agent in a box that cross/run has laid, and holds what it answers against what is known to be right.

Runs as root of a user, mount and process namespace of its own; prints one line a step, with the time it took."""

import argparse
import json
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile

MODELS = pathlib.Path(__file__).resolve().parent.parent / "tests" / "models"
ANSWERS = pathlib.Path(__file__).resolve().parent / "answers.json"
# Emulated, one run of the network takes seconds, and a trial some dozens of them; nothing takes longer than this
# unless it is broken.
PATIENCE = 3600
# Of logits between -15 and 20, whose float32 sums each architecture adds up in its own order.
TOLERANCE = 2e-4

# ELF, 64 bits, little-endian, executable or shared object, the machine's number; masks as the kernel wants them.
MAGIC = {
    "aarch64": (r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"),
    "x86_64": (r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00"),
}
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"

started = time.monotonic()


def tell(words):
    print(f"{time.monotonic() - started:7.1f} s  {words}", flush=True)


def fail(words):
    sys.exit(f"{time.monotonic() - started:7.1f} s  FAILED: {words}")


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def register(arch, emulator):
    """Has the kernel run programs of `arch` by `emulator`, which it opens now (F): a chroot needs none inside."""
    folder = pathlib.Path("/proc/sys/fs/binfmt_misc")
    try:
        mount("-t", "binfmt_misc", "binfmt_misc", str(folder))
    except subprocess.CalledProcessError:
        fail("this kernel has no binfmt_misc for a user namespace: it takes Linux 6.7 or later")
    (folder / "register").write_text(f":blochd:M::{MAGIC[arch]}:{MASK}:{emulator}:F")


def numbers(name, key, kind):
    """An array of a compressed .npz: its shape and its bytes."""
    with zipfile.ZipFile(MODELS / name) as archive:
        data = archive.read(key + ".npy")
    if data[:6] != b"\x93NUMPY" or data[6] != 1:
        fail(f"{name} has an array of a format that is not read here")
    length = struct.unpack_from("<H", data, 8)[0]
    header = data[10 : 10 + length].decode()
    if f"'descr': '{kind}'" not in header or "'fortran_order': False" not in header:
        fail(f"{name}: {key} is not what was expected: {header}")
    return data[10 + length :]


class Box:
    def __init__(self, root, arch, ports):
        self.root, self.arch = pathlib.Path(root), arch
        self.http = f"http://127.0.0.1:{ports[0]}"
        self.environment = {"PATH": "/usr/bin", "HOME": "/root", "TMPDIR": "/tmp"}
        for name, port in zip(("HTTP", "GRPC", "METRICS"), ports):
            self.environment[f"BLOCHD_{name}_ADDRESS"] = f"127.0.0.1:{port}"
        # Nobody loads and unloads here; the port of other agents on this machine stays free.
        self.environment["BLOCHD_ADMIN_ADDRESS"] = "none"
        # Ladders are timed; of an emulator's times nothing follows.
        self.environment["BLOCHD_DEFAULTS__LADDER__ENABLED"] = "false"
        self.environment["BLOCHD_TRIAL__TIMEOUT"] = f"{PATIENCE}s"
        self.environment["BLOCHD_DEFAULTS__REQUEST_TIMEOUT"] = f"{PATIENCE}s"

    def command(self, *arguments):
        # Found by our own PATH; the box's is another.
        return [shutil.which("chroot") or "/usr/sbin/chroot", str(self.root), "/usr/bin/blochd", *arguments]

    def run(self, *arguments):
        done = subprocess.run(
            self.command(*arguments), env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode != 0:
            fail(f"blochd {' '.join(arguments)}: exit code {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout.strip()

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.http + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer) if answer.length != 0 else None

    def infer(self, image):
        body = {"inputs": [{"name": "input", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": image}]}
        answer = self.ask("/v2/models/digits/infer", body)
        return answer["model_version"], answer["outputs"][0]["data"]

    def drop(self, name, version):
        """As an operator does: under another name first, then renamed."""
        folder = self.root / "var/lib/blochd/models/digits" / str(version)
        folder.mkdir(parents=True)
        shutil.copy(MODELS / name, folder / ".model.onnx")
        (folder / ".model.onnx").rename(folder / "model.onnx")


def until(what, condition, agent):
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        if agent.poll() is not None:
            fail(f"the agent ended with {agent.returncode} while {what} was waited for")
        if condition():
            return
        time.sleep(0.1)
    fail(f"{what} did not come about in {PATIENCE} s")


def check(box, images, labels, expected):
    for number, wanted in expected.items():
        number = int(number)
        version, logits = box.infer(images[number])
        error = max(abs(got - want) for got, want in zip(logits, wanted, strict=True))
        said = max(range(10), key=logits.__getitem__)
        tell(f"image {number}: version {version} says {said} (label {labels[number]}), "
             f"largest difference from x86-64 {error:.1e}; logits " + " ".join(f"{value:.4f}" for value in logits))
        if error > TOLERANCE or said != labels[number]:
            fail(f"expected {wanted}")


def serve(box, images, labels, expected):
    box.drop("digits_mobile.onnx", 1)
    agent = subprocess.Popen(box.command("run"), env=box.environment, stdin=subprocess.DEVNULL)

    def ready():
        try:
            box.ask("/v2/models/digits/ready")
            return True
        except (urllib.error.URLError, OSError):
            return False

    try:
        until("a served model", ready, agent)
        tell("the model is served: a child of the agent has loaded, warmed and timed it")
        check(box, images, labels, expected)
        box.drop("digits_mobile_bn.onnx", 2)
        asked = [0]

        def swapped():
            asked[0] += 1
            return box.infer(images[0])[0] == "2"

        until("the swap", swapped, agent)
        tell(f"version 2 was swapped in under {asked[0]} requests, none of which failed")
        check(box, images, labels, expected)
        status = json.loads(box.run("status", "--json"))
        tell("blochd status --json: " + ", ".join(sorted(status)))
        agent.send_signal(signal.SIGTERM)
        code = agent.wait(PATIENCE)
        if code != 0:
            fail(f"the agent ended with {code} after SIGTERM")
        tell("the agent ended by itself after SIGTERM, with exit code 0")
    finally:
        if agent.poll() is None:
            agent.kill()


def prune(box):
    """A ladder of a small network: the linear algebra of the architecture, and its own timing."""
    shutil.copy(MODELS / "fixtures/residual.onnx", box.root / "tmp/residual.onnx")
    box.run("prune", "/tmp/residual.onnx", "--out", "/tmp/ladder", "--ratios", "0.8")
    manifest = json.loads((box.root / "tmp/ladder/manifest.json").read_text())
    tell(f"blochd prune wrote a manifest with {len(manifest.get('rungs', []))} rungs")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--box", required=True)
    parser.add_argument("--arch", required=True, choices=sorted(MAGIC))
    parser.add_argument("--emulator")
    arguments = parser.parse_args()
    root = arguments.box
    if arguments.emulator:
        register(arguments.arch, arguments.emulator)
    mount("--rbind", "/dev", f"{root}/dev")
    mount("--rbind", "/sys", f"{root}/sys")
    mount("-t", "proc", "proc", f"{root}/proc")
    mount("-t", "tmpfs", "tmpfs", f"{root}/tmp")

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    box = Box(root, arguments.arch, ports)
    tell(f"{box.run('--version')} for {arguments.arch}" + (", emulated" if arguments.emulator else ""))
    wheel = next(pathlib.Path(root, "wheels").iterdir()).name
    box.run("runtime", "import", f"/wheels/{wheel}")
    tell(f"imported {wheel}")
    box.run("config", "check")
    pixels = struct.iter_unpack("<784f", numbers("digits_test.npz", "input", "<f4"))
    expected = json.loads(ANSWERS.read_text())["logits"]
    images = [list(image) for image in pixels]
    labels = [label for (label,) in struct.iter_unpack("<q", numbers("digits_test.npz", "labels", "<i8"))]
    serve(box, images, labels, expected)
    prune(box)


if __name__ == "__main__":
    main()
