"""The stored results as markdown: accuracy at each target, median of the seeds and spread, with the measured
ratio it belongs to."""

import json
import statistics
from pathlib import Path

NAMES = {
    "random": "random", "magnitude": "magnitude (L2)", "group-norm": "group norm (Torch-Pruning)",
    "taylor": "Taylor (Torch-Pruning)", "folding": "model folding",
    "ridge": "magnitude + channel-Gram ridge (GRAIL-like)",
    "ridge-folding": "folding + channel-Gram ridge (GRAIL-like)", "blochd": "**blochd**",
}


def load(folder, subject):
    """(lines, what plan each method got), or None where nothing is stored."""
    path = Path(folder) / f"{subject}.jsonl"
    if not path.exists():
        return None
    chosen = Path(folder) / f"{subject}.chosen.json"
    chosen = json.loads(chosen.read_text()) if chosen.exists() else {}
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return lines, chosen


def cell(stored, method, target, samples):
    """All seeds' lines of a method at a target: for peers those of the plan that was chosen for them."""
    lines, chosen = stored
    family = "own"
    if method != "blochd":
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
    return f"{middle:.1f}{spread} @ {ratio:.2f}"


def margin(stored, targets, samples, methods):
    """blochd's median minus that of the best peer, percentage points."""
    parts = []
    for target in targets:
        own = summary(cell(stored, "blochd", target, samples))
        peers = [(summary(cell(stored, m, target, samples)), m) for m in methods if m != "blochd"]
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
        out.append(f"### {dense.get('label', subject)}: dense {dense.get('accuracy', float('nan')):.1f} %\n")
        for samples in sorted({l["samples"] for l in lines}, key=lambda n: (n != 128, n)):
            methods = [m for m in NAMES if any(cell(stored, m, t, samples) for t in targets)]
            out.append(f"{samples} calibration samples\n")
            out.append("| method | " + " | ".join(f"≤ {t}" for t in targets) + " |")
            out.append("|---" * (len(targets) + 1) + "|")
            for method in methods:
                row = [text(cell(stored, method, t, samples)) for t in targets]
                out.append(f"| {NAMES[method]} | " + " | ".join(row) + " |")
            if "blochd" in methods and len(methods) > 1:
                row = margin(stored, targets, samples, methods)
                out.append("| *blochd minus the best peer, points* | " + " | ".join(row) + " |")
            out.append("")
    return "\n".join(out)
