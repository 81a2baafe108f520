"""The stored results as markdown: accuracy at each target, median of the seeds and spread, with the measured
ratio it belongs to."""

import json
import statistics
from pathlib import Path

NAMES = {
    "random": "random",
    "magnitude": "magnitude (L2)",
    "group-norm": "group norm (Torch-Pruning)",
    "taylor": "Taylor (Torch-Pruning)",
    "folding": "model folding",
    "ridge": "magnitude + channel-Gram ridge (GRAIL-like)",
    "ridge-folding": "folding + channel-Gram ridge (GRAIL-like)",
    "blochd": "**blochd**",
}


def load(folder, subject):
    """(lines, what plan each method got), or None where nothing is stored."""
    paths = [Path(folder) / f"{subject}.{part}.jsonl" for part in ("peers", "given", "blochd")]
    texts = [text for path in paths if path.exists() for text in path.read_text().splitlines()]
    if not texts:
        return None
    chosen = Path(folder) / f"{subject}.chosen.json"
    chosen = json.loads(chosen.read_text()) if chosen.exists() else {}
    lines = [json.loads(text) for text in texts]
    return lines, chosen


def cell(stored, method, target, samples, given=False):
    """All seeds' lines of a method at a target: for peers those of the plan that was chosen for them, or of
    blochd's plan."""
    lines, chosen = stored
    family = "own" if method == "blochd" else "given"
    if method != "blochd" and not given:
        plan = chosen.get(method, {}).get(str(target))
        if not plan:
            return []
        family = plan["family"]
    asked = (method, family, target, samples)
    return [l for l in lines if (l["method"], l["family"], l["target"], l["samples"]) == asked]


def summary(lines):
    """(median accuracy, lowest, highest, median ratio, seeds) of the lines that have an accuracy."""
    good = [l for l in lines if l["accuracy"] is not None]
    if not good:
        return None
    accuracy = [l["accuracy"] for l in good]
    ratio = statistics.median(l["ratio"] for l in good)
    return statistics.median(accuracy), min(accuracy), max(accuracy), ratio, len(good)


def text(lines):
    found = summary(lines)
    if found is None:
        return "not built" if lines else "–"
    middle, low, high, ratio, seeds = found
    spread = f" ({low:.1f}…{high:.1f})" if seeds > 1 and high - low >= 0.05 else ""
    missing = f", {seeds} of {len(lines)} seeds" if seeds < len(lines) else ""
    return f"{middle:.1f}{spread} @ {ratio:.2f}{missing}"


def margin(stored, targets, samples, methods, given=False):
    """blochd's median minus that of the best peer, percentage points."""
    parts = []
    for target in targets:
        own = summary(cell(stored, "blochd", target, samples))
        peers = [
            (summary(cell(stored, m, target, samples, given)), m) for m in methods if m != "blochd"
        ]
        peers = [(s[0], m) for s, m in peers if s]
        if own and peers:
            best, name = max(peers)
            parts.append(f"{own[0] - best:+.1f} ({name})")
        else:
            parts.append("–")
    return parts


def markdown(folder, subjects):
    out = []
    for subject in subjects:
        stored = load(folder, subject)
        if stored is None:
            continue
        lines, chosen = stored
        targets = sorted({l["target"] for l in lines}, reverse=True)
        dense = chosen.get("dense", {})
        out.append(
            f"### {dense.get('label', subject)}: dense {dense.get('accuracy', float('nan')):.1f} %\n"
        )
        for samples in sorted({l["samples"] for l in lines}, key=lambda n: (n != 128, n)):
            out.append(f"{samples} calibration samples\n")
            out += table(stored, targets, samples)
            if samples == 128 and any(l["family"] == "given" for l in lines):
                out.append(
                    "128 calibration samples, peers on blochd's own plans (its widths, its blocks left out)\n"
                )
                out += table(stored, targets, samples, given=True)
    return "\n".join(out)


def table(stored, targets, samples, given=False):
    found = lambda m, t: cell(stored, m, t, samples, given)
    methods = [m for m in NAMES if any(found(m, t) for t in targets)]
    out = [
        "| method | " + " | ".join(f"≤ {t}" for t in targets) + " |",
        "|---" * (len(targets) + 1) + "|",
    ]
    for method in methods:
        out.append(
            f"| {NAMES[method]} | " + " | ".join(text(found(method, t)) for t in targets) + " |"
        )
    if "blochd" in methods and len(methods) > 1:
        row = margin(stored, targets, samples, methods, given)
        out.append("| *blochd minus the best peer, points* | " + " | ".join(row) + " |")
    return [*out, ""]
