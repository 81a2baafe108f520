"""Processes on given cores, what they take, and files that appear whole."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path


def put(path, data):
    """Writes a file beside its place and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    beside.rename(path)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def pinned(cores):
    """For `preexec_fn`: the cores of a child and all of its threads."""
    return lambda: os.sched_setaffinity(0, cores)


class Process:
    """A server, and all that it starts."""

    running = set()

    def __init__(self, command, log, cores, environment=None, folder=None):
        with open(log, "wb") as out:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                preexec_fn=pinned(cores),
            )
        self.pid = self.child.pid
        self.running.add(self)

    def check(self, log):
        if self.child.poll() is not None:
            raise SystemExit(f"it ended: {Path(log).read_text(errors='replace')[-2000:]}")

    def end(self, patience=10):
        """Asks it to end; what it started and left behind is killed."""
        self.running.discard(self)
        started = tree(self.pid)
        self.child.terminate()
        try:
            self.child.wait(patience)
        except subprocess.TimeoutExpired:
            pass
        for one in started:
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.child.wait()


def end_all():
    """Those that a part left behind that went wrong."""
    for process in list(Process.running):
        process.end()


class Served:
    """What is at an end with the block it serves in; `process` is to be set."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.end()

    @property
    def pid(self):
        return self.process.pid


def asked(who, command, core):
    """Runs a client on a core; what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=pinned({core}))
    if done.returncode:
        raise SystemExit(f"{who}: {done.stdout[-800:]}{done.stderr[-2000:]}")
    return done.stdout


def tree(pid):
    """A process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                found += tree(int(child))
        except OSError:
            continue
    return found


def memory(pid):
    """Resident bytes of a process and its children: all, and those that are of no file."""
    total = [0, 0]
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
        except OSError:
            continue
        sizes = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "RssAnon")))
        for at, name in enumerate(("VmRSS", "RssAnon")):
            total[at] += int(sizes.get(name, "0 kB").split()[0]) << 10
    return total


def seconds(pid):
    """Processor time so far of the threads that a process and its children have now."""
    spent = 0
    for one in tree(pid):
        for schedule in Path(f"/proc/{one}/task").glob("*/schedstat"):
            try:
                spent += int(schedule.read_text().split()[0])
            except OSError:
                continue
    return spent / 1e9


class Hogs:
    """Processes that take a core, from one moment to another."""

    BURN = "import os\np = os.getppid()\nwhile os.getppid() == p:\n    for _ in range(10**6): pass\n"

    def __init__(self, count, cores, nice):
        def before():
            os.sched_setaffinity(0, cores)
            os.nice(nice)

        command = ["python3", "-S", "-c", self.BURN]
        self.children = [subprocess.Popen(command, preexec_fn=before) for _ in range(count)]

    def end(self):
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait()


def until(holds, what, check, limit=60):
    end = time.monotonic() + limit
    while not holds():
        check()
        if time.monotonic() > end:
            raise SystemExit(f"never: {what}")
        time.sleep(0.05)
