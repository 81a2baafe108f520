"""What the agent holds: memory and the processor while idle, deadlines under a flood, its budget under a step of
load, and every answer while variants are swapped."""

import json
import os
import statistics
import subprocess
import threading
import time

import asked
from agent import Agent
from models import SWAPS
from processes import Hogs, memory, seconds

def both(bench):
    return {bench.cores["server"], bench.cores["client"]}


def idle(bench):
    """No model, nobody asks."""

    def run():
        with Agent(bench.folder("idle"), bench.blochd, bench.library, both(bench)) as agent:
            time.sleep(2)
            begun, used, wait = time.monotonic(), seconds(agent.pid), 6 if bench.quick else 60
            time.sleep(wait)
            share = (seconds(agent.pid) - used) / (time.monotonic() - begun)
            return {"memory": memory(agent.pid), "share": share, "seconds": wait}

    bench.measure("idle", run)


# Runs before the memory of a model is looked at.
RUNS = 30


def memory_of_models(bench):
    """What a served model adds, beside what it adds to a process that runs it by itself."""
    for model in asked.CALLS:

        def run(source=bench.models[model], name=model):
            bare = bench.native.run("memory", source, "--runs", RUNS)
            with Agent(bench.folder("memory"), bench.blochd, bench.library, both(bench)) as agent:
                time.sleep(1)
                before = memory(agent.pid)
                agent.serve(name, source)
                path = {"grpc": f"grpc@{agent.socket}/{name}"}
                bench.native.turns("latency", source, path, "--calls", RUNS, "--rounds", 1)
                return {"bare": bare, "before": before, "after": memory(agent.pid)}

        bench.measure(f"memory/{model}", run)


class Resident(threading.Thread):
    """The most memory that a process is seen to hold, and where it ended."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.seen, self.done = pid, [], threading.Event()

    def run(self):
        while not self.done.wait(0.2):
            self.seen.append(memory(self.pid)[0])

    def end(self):
        self.done.set()
        self.join()
        return {"first": self.seen[0], "last": self.seen[-1], "most": max(self.seen)}


FLOOD_TIMES = 10
DEADLINE_MS = 50


def flood(bench):
    """Ten times what the model can answer, for a minute, each request with a deadline of 50 ms."""

    def run():
        source, wait = bench.models["medium"], 6 if bench.quick else 60
        cores = {bench.cores["server"]}
        with Agent(bench.folder("flood"), bench.blochd, bench.library, cores) as agent:
            agent.serve("medium", source)
            path = f"grpc@{agent.socket}/medium"
            alone = bench.native.turns(
                "throughput", source, {"all": path}, "--seconds", 2, "--rounds", 2
            )
            capacity = statistics.mean(alone["rates"]["all"])
            watch = Resident(agent.pid)
            watch.start()
            more = ["--path", f"all={path}", "--rate", FLOOD_TIMES * capacity]
            more += ["--deadline-ms", DEADLINE_MS, "--seconds", wait]
            told = bench.native.run("flood", source, *more)
            resident, status = watch.end(), agent.status("medium")
            counts = {name: status[name] for name in ("answered", "failed", "refused")}
            return told | {"capacity": capacity, "resident": resident, "agent": counts}

    bench.measure("flood", run)


# A ladder is made of a network that has learned something: what quality it loses is looked at.
LADDER = """\
  budget: {budget}
  quality_floor: 0
  governor: {{window: 2s, dwell: {dwell}, sustain: {sustain}}}
  ladder: {{ratios: [0.75, 0.5]}}
  calibration: {{samples: 128}}
"""


def with_ladder(bench, cores, dwell, sustain):
    """An agent that serves the digits and has their ladder; made once, it is taken up again."""
    folder = bench.work / "ladder"
    folder.mkdir(exist_ok=True)
    digits = bench.given_models
    more = lambda budget: LADDER.format(budget=budget, dwell=dwell, sustain=sustain)
    agent = Agent(folder, bench.blochd, bench.library, cores, more("none"))
    agent.budget = lambda budget: agent.configure(more(budget))
    if not (folder / "models/digits/calibration.npz").exists():
        agent.drop(digits / "digits_calibration.npz", "digits/calibration.npz")
    if not (folder / "models/digits/1/model.onnx").exists():
        agent.drop(digits / "digits_resnet.onnx", "digits/1/model.onnx")

    def standing():
        rungs = agent.status("digits").get("ladder", [])
        settled = all(rung["state"] in ("ready", "in service") for rung in rungs)
        return len(rungs) > 1 and settled

    agent.wait("the ladder is made", standing, 600)
    return agent


def rung_files(agent):
    """The files of the rungs that stand by, in the ladder's order."""
    manifest = max(agent.folder.glob("state/ladders/*/manifest.json"), key=os.path.getmtime)
    names = [rung["name"] for rung in agent.status("digits")["ladder"]][1:]
    files = {path.stem: path for path in manifest.parent.glob("*.onnx")}
    return names, [files[name] for name in names]


class Load:
    """The native client's `load`: clients that go on while something happens."""

    def __init__(self, bench, model, path, *more):
        command = bench.native.command("load", model, "--path", f"all={path}", *more)
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def phase(self, name):
        self.child.stdin.write(f"phase {name}\n")
        self.child.stdin.flush()

    def next(self, limit=60):
        """The variant that answers now, once it is another one."""
        timer = threading.Timer(limit, self.child.kill)
        timer.start()
        line = self.child.stdout.readline()
        timer.cancel()
        if not line:
            raise SystemExit("no swap was seen in time, or the client failed")
        return json.loads(line)

    def end(self):
        self.child.stdin.close()
        last = self.child.stdout.read().splitlines()
        if self.child.wait() or not last:
            raise SystemExit("the client failed")
        return json.loads(last[-1])["phases"]


CLIENTS = 8


def swaps(bench):
    """A model's file is replaced, again and again, while eight clients ask without a pause: trial in a child, load,
    warm-up, publication, drain. Stretches of swaps and stretches without are in turn."""

    def run():
        total, stretches = (40, 2) if bench.quick else (1000, 5)
        sources = [bench.models[f"swap-{number}"] for number in range(SWAPS)]
        with Agent(bench.folder("swaps"), bench.blochd, bench.library, both(bench)) as agent:
            agent.serve("swap", sources[0])
            more = ["--variant", sources[1], "--clients", CLIENTS]
            load = Load(bench, sources[0], f"grpc@{agent.socket}/swap", *more)
            assert load.next()["now"] == 0
            now, took = 0, []
            watch = Resident(agent.pid)
            watch.start()
            for _ in range(stretches):
                load.phase("calm")
                time.sleep(2 if bench.quick else 8)
                load.phase("swaps")
                for _ in range(total // stretches):
                    begun, now = time.monotonic(), 1 - now
                    agent.drop(sources[now], "swap/1/model.onnx")
                    assert load.next()["now"] == now
                    took.append(time.monotonic() - begun)
                load.phase("between")
                time.sleep(0.5)
            phases, resident = load.end(), watch.end()
            failed = agent.status("swap")["failed"]
        return {
            "swaps": len(took), "seconds": sum(took), "each_s": statistics.median(took),
            "phases": phases, "resident": resident, "failed": failed,
        }

    bench.measure("swaps", run)


def rungs(bench):
    """The governor swaps dense and a rung, by budgets that it is given in turn."""

    def run():
        total = 6 if bench.quick else 1000
        with with_ladder(bench, both(bench), "100ms", "100ms") as agent:
            digits = bench.given_models / "digits_resnet.onnx"
            names, files = rung_files(agent)
            more = [word for file in files for word in ("--variant", file)]
            load = Load(bench, digits, f"grpc@{agent.socket}/digits", *more, "--clients", CLIENTS)
            assert load.next()["now"] == 0
            load.phase("calm")
            time.sleep(2 if bench.quick else 10)
            load.phase("swaps")
            begun, seen = time.monotonic(), 0
            while seen < total:
                for budget in ("{p99: 1us}", "none"):
                    agent.budget(budget)
                    agent.hang_up()
                    load.next()
                    seen += 1
                    # The one that left is loaded again, and may be asked for next.
                    ready = lambda: all(
                        rung["state"] in ("ready", "in service")
                        for rung in agent.status("digits")["ladder"]
                    )
                    agent.wait("all variants stand by", ready)
            took = time.monotonic() - begun
            phases = load.end()
            status = agent.status("digits")
        told = {"swaps": status["swaps"], "failed": status["failed"], "rungs": names}
        return told | {"seconds": took, "phases": phases}

    bench.measure("rungs", run)


# Requests a second of the step's client: half of what dense can answer. How many processes take the core is found
# out: as many as make dense miss the budget by so much. They give way a little, as background jobs do.
RATE, HOGS, NICE = 150, (3, 4, 6, 8, 12), 5
BUDGET_FACTOR, MISSED = 1.8, 1.2
# What must last for these seconds counts as reached.
LASTING = 2.0


def step(bench):
    """Processes take the agent's core from one moment to the next, until dense misses its budget."""

    def run():
        times = 1 if bench.quick else 5
        core = {bench.cores["server"]}
        with with_ladder(bench, core, "500ms", "2s") as agent:
            digits = bench.given_models / "digits_resnet.onnx"
            names, files = rung_files(agent)
            more = [word for file in files for word in ("--variant", file)]
            timeline = bench.work / "step.txt"
            more += ["--clients", 1, "--rate", RATE, "--timeline", timeline]
            load = Load(bench, digits, f"grpc@{agent.socket}/digits", *more)
            assert load.next()["now"] == 0
            begun = time.monotonic()
            time.sleep(5)
            calm = agent.status("digits")["observed"]["p99_ms"]
            budget = BUDGET_FACTOR * calm
            count = enough(agent, core, MISSED * budget)
            agent.budget(f"{{p99: {budget * 1e3:.0f}us}}")
            agent.hang_up()
            back = lambda: agent.status("digits").get("variant") == "dense"
            steps = []
            for _ in range(times):
                if not within(45, back):
                    break
                time.sleep(3)
                hogs = Hogs(count, core, NICE)
                at = time.monotonic() - begun
                time.sleep(6)
                hogs.end()
                over = time.monotonic() - begun
                steps.append((at, over))
            load.end()
            requests = read_timeline(timeline)
        reactions = [reaction(requests, budget, *one) for one in steps]
        told = {"budget_ms": budget, "calm_p99_ms": calm, "hogs": count, "rungs": names}
        return told | {"steps": reactions}

    bench.measure("step", run)


def within(limit, holds):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


def enough(agent, core, limit):
    """How many processes have dense's p99 exceed the limit, in milliseconds."""
    for count in HOGS:
        hogs = Hogs(count, core, NICE)
        time.sleep(3)
        p99 = agent.status("digits")["observed"]["p99_ms"]
        hogs.end()
        if p99 > limit:
            return count
    raise SystemExit(f"{count} processes on its core do not slow the model down enough")


def read_timeline(path):
    lines = (line.split() for line in path.read_text().splitlines())
    return [(float(at), float(took), who) for at, took, who in lines]


def reaction(requests, budget, begun, over):
    """When the client saw the budget broken, by two requests within a second, and from when on it saw it held: at most
    one request in a hundred over it in the next seconds."""
    late = lambda since, until: [
        took > budget for at, took, _ in requests if since <= at + took / 1e3 < until
    ]
    ends = [at + took / 1e3 for at, took, _ in requests if begun <= at + took / 1e3 < over]
    missed = [end for end, (at, took, _) in zip(ends, inside(requests, begun, over)) if took > budget]
    # One alone is no broken percentile.
    pairs = zip(missed, missed[1:])
    broken = next((one for one, other in pairs if other - one < 1.0), None)
    if broken is None:
        return {"broken": None, "missed": len(missed)}
    held = None
    for end in (end for end in ends if end >= broken):
        if end + LASTING > over:
            break
        window = late(end + 1e-9, end + LASTING)
        if sum(window) <= len(window) // 100:
            held = end
            break
    swapped = [at for at, _, who in inside(requests, begun, over) if who != "0"]
    return {
        "broken": broken - begun,
        "held_after": held and held - broken,
        "other_variant_after": swapped[0] - broken if swapped else None,
        "missed": len(missed),
    }


def inside(requests, begun, over):
    return [one for one in requests if begun <= one[0] + one[1] / 1e3 < over]
