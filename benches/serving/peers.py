"""The other servers: how each is started, and where it is asked."""

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

import onnx

from processes import Process, Served, free_port

HERE = Path(__file__).resolve().parent


class Peer(Served):
    """A running server of one model."""

    def __init__(self, work, venvs, model, source, cores):
        self.folder = Path(work) / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.python = Path(venvs) / self.name / "bin/python"
        self.model = model
        self.ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        self.log = self.folder / "log"
        self.process = self.start(Path(source), cores)
        end = time.monotonic() + 90
        while not self.is_ready():
            self.process.check(self.log)
            if time.monotonic() > end:
                raise SystemExit(f"{self.name} never serves: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def tcp(self, which):
        return f"127.0.0.1:{self.ports[which]}"

    ready = "/v2/models/{}/ready"

    def is_ready(self):
        try:
            url = f"http://{self.tcp('http')}{self.ready.format(self.model)}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


class FastApi(Peer):
    name = "fastapi"
    title = "FastAPI + onnxruntime"
    ready = "/ready"

    def start(self, source, cores):
        environment = dict(os.environ, SERVING_MODEL=str(source.resolve()))
        command = [self.python, "-m", "uvicorn", "servers.fastapi_app:app", "--no-access-log", "--timeout-keep-alive", "600"]
        command += ["--host", "127.0.0.1", "--port", self.ports["http"]]
        command += ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning"]
        return Process(command, self.log, cores, environment, HERE)

    def paths(self):
        return {"HTTP, octets": f"octets@{self.tcp('http')}/infer"}


def described(value):
    """An input or output, as MLServer's metadata have it."""
    shape = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
    return {"name": value.name, "datatype": "FP32", "shape": shape}


class MlServer(Peer):
    name = "mlserver"
    title = "MLServer 1.7.1"

    def start(self, source, cores):
        settings = {
            "host": "127.0.0.1",
            "http_port": self.ports["http"],
            "grpc_port": self.ports["grpc"],
            "metrics_port": self.ports["metrics"],
            # In the server's own process: workers are for several models or cores.
            "parallel_workers": 0,
            "debug": False,
            "logging_settings": None,
        }
        graph = onnx.load(source).graph
        model = {
            "name": self.model,
            "implementation": "mlserver_onnx.OnnxModel",
            "parameters": {"uri": str(source.resolve())},
            "inputs": [described(one) for one in graph.input],
            "outputs": [described(one) for one in graph.output],
        }
        (self.folder / "settings.json").write_text(json.dumps(settings))
        (self.folder / "model-settings.json").write_text(json.dumps(model))
        environment = dict(os.environ, PYTHONPATH=str(HERE / "servers"))
        command = [self.python.parent / "mlserver", "start", self.folder]
        return Process(command, self.log, cores, environment, self.folder)

    def paths(self):
        return {"grpc, TCP": f"grpc@{self.tcp('grpc')}/{self.model}"}


class Triton(Peer):
    name = "pytriton"
    title = "pytriton 0.7.0 (Triton)"

    def start(self, source, cores):
        ports = [self.ports[name] for name in ("http", "grpc", "metrics")]
        command = [self.python, HERE / "servers/triton.py", self.model, source.resolve(), *ports]
        # Triton's Python stub takes the first libpython that the loader finds, which must be this Python's. Its
        # workspace is a temporary folder.
        tell = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
        libraries = subprocess.check_output([self.python, "-c", tell], text=True).strip()
        environment = dict(os.environ, LD_LIBRARY_PATH=libraries, TMPDIR=str(self.folder))
        return Process(command, self.log, cores, environment, self.folder)

    def paths(self):
        return {
            "grpc, TCP": f"grpc@{self.tcp('grpc')}/{self.model}",
            "REST, TCP": f"rest@{self.tcp('http')}/{self.model}",
        }


PEERS = {peer.name: peer for peer in (FastApi, MlServer, Triton)}
