"""Who asks: the native client of main.rs, and clients that others wrote."""

import csv
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from processes import asked

HERE = Path(__file__).resolve().parent


class Native:
    """The program that `cargo bench --bench serving --no-run` makes."""

    def __init__(self, program, library, cores):
        self.program, self.library, self.cores = Path(program), library, cores

    def command(self, what, model, *more, core=None):
        """On a core of its own, or on the given one."""
        words = [self.program, what, "--library", self.library, "--model", model]
        words += ["--client-core", self.cores["client"] if core is None else core]
        return [str(word) for word in [*words, *more]]

    def run(self, what, model, *more, core=None):
        command = self.command(what, model, *more, core=core)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{what}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def turns(self, what, model, paths, *more, core=None):
        """Servers in turn with bare ONNX Runtime, which gets their core."""
        asked = [word for name, path in paths.items() for word in ("--path", f"{name}={path}")]
        own = ["--server-core", self.cores["server"]]
        return self.run(what, model, *own, *asked, *more, core=core)


class PerfAnalyzer:
    """perf-analyzer of PyPI: Triton's own client in C++."""

    def __init__(self, venvs, cores):
        self.program = Path(venvs) / "perf_analyzer.sh"
        self.cores = cores

    def run(self, model, protocol, url, clients, shared=None):
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.csv"
            command = [self.program, "-m", model, "-i", protocol, "-u", url]
            command += ["--concurrency-range", clients, "--measurement-interval", 1000]
            # Three windows of a second, the least that it takes, whatever they say of one another.
            command += ["--stability-percentage", 999, "--max-trials", 3, "-f", report]
            if shared:
                command += ["--shared-memory", "system", "--output-shared-memory-size", shared]
            asked("perf_analyzer", command, self.cores["client"])
            [row] = csv.DictReader(report.open())
        us = {name: float(row[f"{name} latency"]) for name in ("p50", "p90", "p99")}
        return us | {"rate": float(row["Inferences/Second"])}


class TritonClient:
    """tritonclient of PyPI, in a process of its own."""

    def __init__(self, venvs, cores):
        self.python = Path(venvs) / "client/bin/python"
        self.cores = cores

    def run(self, model, protocol, url, clients, seconds):
        command = [self.python, HERE / "python_client.py", protocol, url, model, clients, seconds]
        return json.loads(asked("tritonclient", command, self.cores["client"]))


def about(native, venvs):
    """What was measured on and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "libraries": {"blochd and bare": digest(native.library)} | libraries(venvs),
    }


def digest(path):
    return subprocess.check_output(["sha256sum", path], text=True)[:16]


def libraries(venvs):
    """ONNX Runtime's library in each peer's environment: the same bytes, or their ratios mean little."""
    found = {}
    for path in sorted(Path(venvs).glob("*/lib/python*/site-packages/onnxruntime/capi")):
        for library in path.glob("libonnxruntime.so.*"):
            found[path.relative_to(venvs).parts[0]] = digest(library)
    return found
