"""The stored results as markdown."""

import statistics

from peers import PEERS

MODELS = ("small", "medium", "large")
WAYS = (
    "grpc, Unix socket",
    "shared memory, Unix socket",
    "REST, Unix socket",
    "grpc, TCP",
    "REST, TCP",
)


def table(head, rows):
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def added(told, name):
    """Microseconds over bare ONNX Runtime: all calls' medians, and the median, least and most of the turns'."""
    turns = [one - bare for one, bare in zip(told[name]["medians"], told["bare"]["medians"])]
    return statistics.median(turns), min(turns), max(turns)


def ratio(told, name):
    turns = [one / bare for one, bare in zip(told[name]["medians"], told["bare"]["medians"])]
    return statistics.median(turns)


def us(value):
    return f"{value:,.0f}"


def ms(value):
    return f"{value:.2f}"


def latencies(store, prefix):
    rows = []
    for model in MODELS:
        told = store.get(f"{prefix}/{model}")
        if not told:
            continue
        bare = told["bare"]["all"]
        rows.append([model, "bare ONNX Runtime", us(bare["p50"]), us(bare["p99"]), "", ""])
        for way in (way for way in WAYS if way in told):
            all_, (middle, least, most) = told[way]["all"], added(told, way)
            more = f"{middle:+.0f} ({least:+.0f} to {most:+.0f})"
            rows.append(["", way, us(all_["p50"]), us(all_["p99"]), more, f"{ratio(told, way):.3f}"])
    head = ["model", "way", "p50, µs", "p99, µs", "over bare at p50, µs", "p50 / bare"]
    return table(head, rows)


def rates(store, prefix):
    rows = []
    for model in MODELS:
        told = store.get(f"{prefix}/{model}")
        if not told:
            continue
        bare = told["rates"]["bare"]
        rows.append([model, "bare ONNX Runtime", us(statistics.median(bare)), "", "", ""])
        for way, taken in told["latencies"].items():
            rate = told["rates"][way]
            share = statistics.median(one / of for one, of in zip(rate, bare))
            p50, p99 = ms(taken["p50"] / 1e3), ms(taken["p99"] / 1e3)
            rows.append(["", way, us(statistics.median(rate)), f"{share:.3f}", p50, p99])
    return table(["model", "way", "answers/s", "/ bare", "p50, ms", "p99, ms"], rows)


def peers(store):
    rows = []
    for model in MODELS:
        for name, peer in PEERS.items():
            told = store.get(f"peers/latency/{name}/{model}")
            loaded = store.get(f"peers/throughput/{name}/{model}")
            if not told:
                continue
            ours = next(way for way in told if way.startswith("blochd"))
            ways = [way for way in told if way not in ("bare", ours)]
            best = min(ways, key=lambda way: added(told, way)[0])
            theirs, own = added(told, best)[0], added(told, ours)[0]
            share = lambda way: loaded and "{:.3f}".format(
                statistics.median(
                    one / of for one, of in zip(loaded["rates"][way], loaded["rates"]["bare"])
                )
            )
            rows.append(
                [
                    model, f"{peer.title}, {best}", f"{theirs:+,.0f}", f"{ratio(told, best):.3f}",
                    share(best) or "", f"{own:+,.0f}", f"{ratio(told, ours):.3f}",
                    share(ours) or "", f"{theirs / own:.1f}",
                ]
            )
    head = [
        "model", "peer, way", "over bare at p50, µs", "p50 / bare", "8 clients: answers/s / bare",
        "blochd, same way or REST: over bare, µs", "p50 / bare", "8 clients / bare", "peer / blochd over bare",
    ]
    return table(head, rows)


def foreign(store, client):
    rows = []
    for model in MODELS:
        one, eight = (store.below(f"{client}/{model}/{clients}/") for clients in (1, 8))
        for who in one:
            cells = [us(one[who]["p50"]), us(one[who]["p99"])]
            if who in eight:
                cells += [us(eight[who]["p50"]), us(eight[who]["p99"]), us(eight[who]["rate"])]
            server, way = who.split("/", 1)
            rows.append([model, server, way, *cells])
    head = ["model", "server", "way", "1 client: p50, µs", "p99", "8 clients: p50, µs", "p99", "answers/s"]
    return table(head, rows)


def mib(size):
    return f"{size / 2**20:.1f}"


def held(store):
    lines = []
    idle = store.get("idle")
    if idle:
        whole, own = map(mib, idle["memory"])
        share = 100 * idle["share"]
        lines.append(
            f"- **Idle, no model**, {idle['seconds']} s: {whole} MiB resident, {own} of them of no file; "
            f"{share:.2f} % of a core."
        )
    for model in MODELS:
        told = store.get(f"memory/{model}")
        if told:
            ours = [after - before for after, before in zip(told["after"], told["before"])]
            bare = [after - before for after, before in zip(told["bare"]["after"], told["bare"]["before"])]
            lines.append(
                f"- **A served model** ({model}): {mib(ours[0])} MiB more than the agent without, bare ONNX "
                f"Runtime {mib(bare[0])} MiB more than a process with the library alone (of no file: "
                f"{mib(ours[1])} and {mib(bare[1])})."
            )
    flood = store.get("flood")
    if flood:
        lines.append(flooded(flood))
    step = store.get("step")
    if step:
        lines.append(stepped(step))
    for key, what in (("swaps", "files replaced, each with its trial"), ("rungs", "dense and a rung, by the governor")):
        told = store.get(key)
        if told:
            lines.append(swapped(told, what))
    return "\n".join(lines) + "\n"


def flooded(told):
    admitted, refused, resident = told["admitted_ms"], told["refused_ms"], told["resident"]
    in_time = 100 * told["in_time"] / max(1, admitted["count"])
    at_once = 100 * told["refused_below_5_ms"] / max(1, refused["count"])
    return (
        f"- **Flood**: {told['sent']:,} requests in {told['seconds']:.0f} s, {told['sent'] / told['seconds']:.0f}/s where "
        f"{told['capacity']:.0f}/s can be answered, deadline 50 ms: {admitted['count']:,} answered "
        f"({admitted['count'] / told['seconds'] / told['capacity']:.2f} of the capacity), {in_time:.2f} % of them in time "
        f"(p99 {admitted['p99']:.1f} ms); {refused['count']:,} refused ({told['codes']}), {at_once:.2f} % of them in less than "
        f"5 ms (p50 {refused['p50']:.2f}, p99 {refused['p99']:.2f} ms); {told['wrong']} wrong, {told['unanswered']} "
        f"without an answer; memory {mib(resident['first'])} → {mib(resident['last'])} MiB, at most "
        f"{mib(resident['most'])}. The sender was {told['late_p99_ms']:.1f} ms late at p99."
    )


def stepped(told):
    after = [step.get("held_after") for step in told["steps"]]
    seconds = ", ".join(
        "not broken" if step["broken"] is None else "never" if one is None else f"{one:.2f}"
        for step, one in zip(told["steps"], after)
    )
    missed = ", ".join(str(step.get("missed", 0)) for step in told["steps"])
    if not after:
        return "- **Step of load**: dense did not come back; on a quiet machine it does."
    return (
        f"- **Step of load** ({told['hogs']} processes; budget p99 {told['budget_ms']:.2f} ms, dense "
        f"{told['calm_p99_ms']:.2f} ms when calm): from the first request over the budget until it was held, as the client saw it: {seconds} s; requests over it: {missed}."
    )


def swapped(told, what):
    calm, swaps = told["phases"]["calm"], told["phases"]["swaps"]
    every = {}
    for phase in told["phases"].values():
        for answer, count in phase["answers"].items():
            every[answer] = every.get(answer, 0) + count
    other = {answer: count for answer, count in every.items() if not answer.isdigit()}
    stale = sum(phase["stale"] for phase in told["phases"].values())
    right = sum(count for answer, count in every.items() if answer.isdigit())
    p99 = [phase["took_ms"]["p99"] for phase in (calm, swaps)]
    return (
        f"- **{told['swaps']:,} swaps** ({what}) under eight clients, {told['seconds']:.0f} s: {right:,} answers that are "
        f"bit by bit those of one of the variants, {sum(other.values())} others {other or ''}, {stale} of a variant that "
        f"had gone, {told['failed']} failed; p50 {calm['took_ms']['p50']:.2f} → {swaps['took_ms']['p50']:.2f} ms, p99 "
        f"{p99[0]:.2f} → {p99[1]:.2f} ms ({p99[1] / p99[0]:.2f}×), longest {swaps['took_ms']['max']:.1f} ms."
    )


def markdown(store):
    about = store.get("about") or {}
    parts = [
        f"{about.get('cores')} cores of {about.get('cpu')}, Linux {about.get('kernel')}; libraries {about.get('libraries')}",
        "### One client on the other core",
        latencies(store, "latency"),
        "### One client on the server's core",
        latencies(store, "together"),
        "### Eight clients on the other core, all of blochd on one",
        rates(store, "throughput/one"),
        "### The same, blochd on both",
        rates(store, "throughput/both"),
        "### Peers, all on one core, the client on the other",
        peers(store),
        "### perf-analyzer",
        foreign(store, "perf_analyzer"),
        "### tritonclient (Python)",
        foreign(store, "tritonclient"),
        "### What the agent holds",
        held(store),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip())
