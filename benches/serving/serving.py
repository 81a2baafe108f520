"""blochd beside bare ONNX Runtime and other servers; see README.md.

install.sh /tmp/serving-venv
/tmp/serving-venv/client/bin/python serving.py              # all of it; stops and resumes anywhere
python serving.py --only swaps,step --again                 # some of it, anew
python serving.py --tables                                  # markdown from the stored results
"""

import argparse
import glob
import os
import shutil
import sys
import time
from pathlib import Path

import asked
import held
import models
import tables
from clients import Native, PerfAnalyzer, TritonClient, about
from processes import end_all
from store import Store

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PARTS = {
    "latency": asked.latency,
    "together": asked.together,
    "throughput": asked.throughput,
    "peers": asked.peers,
    "swaps": held.swaps,
    "flood": held.flood,
    "step": held.step,
    "rungs": held.rungs,
    "idle": held.idle,
    "memory": held.memory_of_models,
    "foreign": asked.foreign,
}


class Bench:
    """What every part needs."""

    def __init__(self, given):
        self.given, self.store = given, Store(given.results)
        self.quick = given.quick
        self.cores = {"server": given.server_core, "client": given.client_core}
        self.given_models = ROOT / "tests/models"
        self.work = Path(given.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.venvs = Path(given.venvs).resolve()
        self.blochd = Path(given.blochd).resolve()
        self.library = Path(given.library or library()).resolve()
        self.native = Native(given.native or built(), self.library, self.cores)
        self.analyzer = PerfAnalyzer(self.venvs, self.cores)
        self.python = TritonClient(self.venvs, self.cores)
        self.models = models.write(self.work / "models")

    def measure(self, key, how):
        """Unless it has been measured already."""
        if self.store.get(key) is not None and not self.given.again:
            return self.store.get(key)
        begun = time.monotonic()
        value = how()
        self.store.add(key, value)
        print(f"{time.strftime('%H:%M:%S')} {key} ({time.monotonic() - begun:.0f} s)", flush=True)
        return value

    def missing(self, *keys):
        return self.given.again or any(self.store.get(key) is None for key in keys)

    def folder(self, name):
        """An empty folder of that name."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def library():
    """ONNX Runtime's library that `blochd run` would take."""
    state = os.environ.get("BLOCHD_STATE_DIR", "/var/lib/blochd")
    found = sorted(glob.glob(f"{state}/runtime/onnxruntime-1.32.0/libonnxruntime.so.*"))
    if not found:
        raise SystemExit("no ONNX Runtime 1.32.0: `blochd runtime fetch`, or give --library")
    return found[-1]


def built():
    found = glob.glob(str(ROOT / "target/release/deps/serving-*"))
    found = [path for path in found if "." not in Path(path).name]
    if not found:
        raise SystemExit("no native client: `cargo bench --bench serving --no-run`")
    return max(found, key=os.path.getmtime)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blochd", default=ROOT / "target/release/blochd")
    parser.add_argument("--native", help="the native client [default: the newest that was built]")
    parser.add_argument("--library", help="ONNX Runtime [default: the one that blochd takes]")
    parser.add_argument("--venvs", default="/tmp/serving-venv", help="where install.sh put them")
    parser.add_argument("--work", default="/tmp/serving-work", help="folders of servers")
    parser.add_argument("--results", default=HERE / "results/serving.jsonl")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--again", action="store_true", help="also what has been measured")
    parser.add_argument("--quick", action="store_true", help="a tenth: whether all of it works")
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    if given.tables:
        print(tables.markdown(Store(given.results)))
        return
    bench = Bench(given)
    bench.measure("about", lambda: about(bench.native, bench.venvs))
    parts = given.only.split(",") if given.only else list(PARTS)
    failed = []
    for part in parts:
        try:
            PARTS[part](bench)
        except KeyboardInterrupt:
            end_all()
            raise
        except (Exception, SystemExit) as error:
            # The others are measured all the same.
            failed.append(part)
            end_all()
            print(f"{part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    if failed:
        raise SystemExit(f"not measured, or not all of it: {', '.join(failed)}")


if __name__ == "__main__":
    main()
