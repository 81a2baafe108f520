"""blochd as a process of its own, with its folders, and what its operator does to it."""

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

from processes import Process, Served, free_port, put

CONFIG = """\
model_dir: models
state_dir: state
http_address: 127.0.0.1:{http}
grpc_address: 127.0.0.1:{grpc}
admin_address: none
metrics_address: 127.0.0.1:{metrics}
unix_socket: b.sock
shared_memory: true
runtime_library: {library}
arrivals: {{settle: 1ms, rescan: 60s}}
defaults:
  intra_op_threads: 1
"""


class Agent(Served):
    """A running agent; `more` are further lines of its configuration, below `defaults`."""

    def __init__(self, folder, program, library, cores, more="  ladder: {enabled: false}\n"):
        self.folder = Path(folder)
        (self.folder / "models").mkdir(parents=True, exist_ok=True)
        self.ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        self.library = library
        self.configure(more)
        # Settings of whoever measures would win over these.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BLOCHD_")}
        self.process = Process(
            [program, "run", "--config", self.folder / "agent.yaml"],
            self.folder / "agent.log",
            cores,
            environment,
        )
        self.wait("it is ready", lambda: self.get("/v2/health/ready") is not None)

    def configure(self, more):
        text = CONFIG.format(library=self.library, **self.ports) + more
        put(self.folder / "agent.yaml", text.encode())

    def drop(self, source, place):
        """Puts a model into the directory as a careful writer does."""
        put(self.folder / "models" / place, Path(source).read_bytes())

    def serve(self, name, source):
        self.drop(source, f"{name}/1/model.onnx")
        self.wait(f"{name} is served", lambda: self.get(f"/v2/models/{name}/ready") is not None)

    def get(self, path):
        url = f"http://127.0.0.1:{self.ports['http']}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read()
        except OSError:
            return None

    def status(self, model):
        text = self.get("/v2/blochd/status")
        models = json.loads(text)["models"] if text else []
        return next((one for one in models if one["model"] == model), {})

    def wait(self, what, holds, seconds=60):
        end = time.monotonic() + seconds
        while not holds():
            log = self.folder / "agent.log"
            self.process.check(log)
            if time.monotonic() > end:
                raise SystemExit(f"blochd: never: {what}\n{log.read_text()[-2000:]}")
            time.sleep(0.02)

    def hang_up(self):
        os.kill(self.pid, signal.SIGHUP)

    @property
    def socket(self):
        return f"unix:{self.folder / 'b.sock'}"

    def tcp(self, which):
        return f"127.0.0.1:{self.ports[which]}"

    def paths(self, model):
        """The ways to ask it, for the native client."""
        return {
            "grpc, Unix socket": f"grpc@{self.socket}/{model}",
            "shared memory, Unix socket": f"shared@{self.socket}/{model}",
            "REST, Unix socket": f"rest@{self.socket}/{model}",
            "grpc, TCP": f"grpc@{self.tcp('grpc')}/{model}",
            "REST, TCP": f"rest@{self.tcp('http')}/{model}",
        }
