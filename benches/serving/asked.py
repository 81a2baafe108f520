"""What a request costs: latency and throughput of blochd and of other servers, in turn with bare ONNX Runtime."""

from agent import Agent
from peers import PEERS

# Calls of a turn, and turns: about as long for each model.
CALLS = {"small": (500, 12), "medium": (50, 10), "large": (8, 6)}
# Seconds of a turn of eight clients, and turns.
LOADED = {"small": (1.0, 4), "medium": (2.0, 4), "large": (3.0, 2)}
OUTPUT_BYTES = 40


def turns(bench, model):
    calls, rounds = CALLS[model]
    return ["--calls", calls, "--rounds", max(2, rounds // 5) if bench.quick else rounds]


def agent(bench, cores):
    running = Agent(bench.folder("agent"), bench.blochd, bench.library, cores)
    for model in CALLS:
        running.serve(model, bench.models[model])
    return running


def latency(bench):
    """One client on the other core."""
    if bench.missing(*(f"latency/{model}" for model in CALLS)):
        with agent(bench, {bench.cores["server"]}) as running:
            for model in CALLS:
                path, more = running.paths(model), turns(bench, model)
                run = lambda: bench.native.turns("latency", bench.models[model], path, *more)
                bench.measure(f"latency/{model}", run)


def together(bench):
    """One client on the server's core: no wake-up of a sleeping core in between."""
    core, some = bench.cores["server"], ("small", "medium")
    if bench.missing(*(f"together/{model}" for model in some)):
        with agent(bench, {core}) as running:
            for model in some:
                path, more = running.paths(model), turns(bench, model)
                run = lambda: bench.native.turns(
                    "latency", bench.models[model], path, *more, core=core
                )
                bench.measure(f"together/{model}", run)


def loaded(bench, model):
    seconds, rounds = LOADED[model]
    rounds = 1 if bench.quick else rounds
    return ["--clients", 8, "--seconds", seconds, "--rounds", rounds]


def throughput(bench):
    """Eight clients on the other core; the agent on the one that bare ONNX Runtime has, and on both."""
    wanted = ("grpc, Unix socket", "shared memory, Unix socket", "grpc, TCP", "REST, TCP")
    both = {bench.cores["server"], bench.cores["client"]}
    for name, cores in (("one", {bench.cores["server"]}), ("both", both)):
        some, ways = (list(CALLS), wanted) if name == "one" else (["small", "medium"], wanted[:2])
        if not bench.missing(*(f"throughput/{name}/{model}" for model in some)):
            continue
        with agent(bench, cores) as running:
            for model in some:
                paths = {way: running.paths(model)[way] for way in ways}
                more = loaded(bench, model)
                run = lambda: bench.native.turns("throughput", bench.models[model], paths, *more)
                bench.measure(f"throughput/{name}/{model}", run)


def peers(bench):
    """Each peer in turn with bare ONNX Runtime and with blochd, all on one core."""
    core = {bench.cores["server"]}
    for name, start in PEERS.items():
        for model in CALLS:
            # What a server adds to 50 ms is within the noise of some seconds.
            kinds = ("latency", "throughput") if model != "large" else ("latency",)
            keys = [f"peers/{kind}/{name}/{model}" for kind in kinds]
            if not bench.missing(*keys, *foreign_keys(name, model)):
                continue
            source = bench.models[model]
            with (
                start(bench.work, bench.venvs, model, source, core) as peer,
                Agent(bench.folder("agent"), bench.blochd, bench.library, core) as ours,
            ):
                ours.serve(model, source)
                way = "grpc, TCP" if "grpc, TCP" in peer.paths() else "REST, TCP"
                paths = peer.paths() | {f"blochd {way}": ours.paths(model)[way]}
                run = lambda: bench.native.turns("latency", source, paths, *turns(bench, model))
                bench.measure(keys[0], run)
                if model != "large":
                    more = loaded(bench, model)
                    run = lambda: bench.native.turns("throughput", source, paths, *more)
                    bench.measure(keys[1], run)
                foreign_peer(bench, peer, name, model)


# Who is asked by clients of others: FastAPI speaks no protocol.
FOREIGN = {"fastapi": (), "mlserver": ("grpc",), "pytriton": ("grpc", "http")}
# perf-analyzer asks for the model's configuration, a call that MLServer has not.
NO_CONFIGURATION = ("mlserver",)


def foreign_ways(name, model):
    """The protocols by which a peer is asked by clients of others, within the time that there is."""
    if model == "large":
        return []
    return [protocol for protocol in FOREIGN[name] if (protocol, model) != ("http", "medium")]


def foreign_keys(name, model):
    clients = ["tritonclient"] + ["perf_analyzer"] * (name not in NO_CONFIGURATION)
    return [
        f"{client}/{model}/{count}/{name}/{protocol}, TCP"
        for client in clients
        for count in (1, 8)
        for protocol in foreign_ways(name, model)
    ]


def foreign_peer(bench, peer, name, model):
    for protocol in foreign_ways(name, model):
        both(bench, f"{name}/{protocol}, TCP", model, protocol, peer.tcp(protocol))


def both(bench, who, model, protocol, url):
    """perf-analyzer and tritonclient, one and eight clients."""
    for clients in (1, 8):
        shared = OUTPUT_BYTES if protocol == "shared" else None
        name = "grpc" if shared else protocol
        if who.split("/")[0] not in NO_CONFIGURATION:
            run = lambda: bench.analyzer.run(model, name, url, clients, shared)
            bench.measure(f"perf_analyzer/{model}/{clients}/{who}", run)
        run = lambda: bench.python.run(model, protocol, url, clients, 1 if bench.quick else 2)
        bench.measure(f"tritonclient/{model}/{clients}/{who}", run)


def foreign(bench):
    """Clients that others wrote, on the other core."""
    ways = {
        "grpc, Unix socket": ("grpc", lambda running: running.socket),
        "shared memory, Unix socket": ("shared", lambda running: running.socket),
        "grpc, TCP": ("grpc", lambda running: running.tcp("grpc")),
        "http, TCP": ("http", lambda running: running.tcp("http")),
    }
    asked = [("small", way) for way in ways] + [("medium", way) for way in ways if "Unix" in way]
    keys = [
        f"{client}/{model}/{clients}/blochd/{way}"
        for client in ("perf_analyzer", "tritonclient")
        for clients in (1, 8)
        for model, way in asked
    ]
    if bench.missing(*keys):
        with agent(bench, {bench.cores["server"]}) as running:
            for model, way in asked:
                protocol, url = ways[way]
                both(bench, f"blochd/{way}", model, protocol, url(running))
