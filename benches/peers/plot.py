"""docs/quality.svg: accuracy against measured latency ratio, a line a method, from the stored results.

    python plot.py [--subject resnet56] [--samples 128] [--out ../../docs/quality.svg]

Plain SVG, no library; colours follow the reader's light or dark scheme.
"""

import argparse
import json
from html import escape
from pathlib import Path

import tables

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 960, 520
LEFT, RIGHT, TOP, BOTTOM = 58, 700, 64, 460
SHORT = {
    "random": "random",
    "magnitude": "magnitude (L2)",
    "group-norm": "group norm (Torch-Pruning)",
    "taylor": "Taylor (Torch-Pruning)",
    "folding": "model folding",
    "ridge": "magnitude + Gram ridge",
    "ridge-folding": "folding + Gram ridge",
    "blochd": "blochd",
}
GIVEN = "best peer on blochd's plans"
STYLE = """
svg { --ink: #1d2126; --dim: #5b656e; --grid: #e4e7e9; --paper: #ffffff;
  --own: #c62828; --p0: #8a949e; --p1: #1f6feb; --p2: #8250df; --p3: #1a7f4b; --p4: #9a6700; --p5: #bf3989;
  --p6: #0e7c86; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; --dim: #9aa5b1; --grid: #2b323a; --paper: #0d1117;
  --own: #ff7b72; --p0: #8b949e; --p1: #6cb0ff; --p2: #c297ff; --p3: #56d364; --p4: #e3b341; --p5: #ff9bce;
  --p6: #56d4dd; } }
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  fill: var(--ink); }
.title { font-size: 16px; font-weight: 600; } .soft { fill: var(--dim); font-size: 12px; }
.own { font-weight: 600; } .ground { fill: var(--paper); } .grid { stroke: var(--grid); }
.line { fill: none; stroke-width: 1.8; } .line.main { stroke-width: 3.2; } .line.given { stroke-dasharray: 7 4; }
.spread { stroke-width: 1.2; }
.dense { stroke: var(--dim); stroke-dasharray: 4 4; }
""".strip()


def points(stored, method, samples):
    """(ratio, median, lowest, highest) of each target that was reached, by ratio."""
    targets = {line["target"] for line in stored[0]}
    found = [tables.summary(tables.cell(stored, method, t, samples)) for t in targets]
    return sorted((s[3], s[0], s[1], s[2]) for s in found if s)


def best_given(stored, samples):
    """The best peer on each of blochd's plans: its widths, its blocks left out."""
    found = []
    for target in {line["target"] for line in stored[0]}:
        peers = [m for m in SHORT if m != "blochd"]
        scores = [
            tables.summary(tables.cell(stored, m, target, samples, given=True)) for m in peers
        ]
        best = max((s for s in scores if s), default=None)
        if best:
            found.append((best[3], best[0], best[1], best[2]))
    return sorted(found)


def draw(subject, samples, folder):
    stored = tables.load(folder, subject)
    curves = {m: points(stored, m, samples) for m in SHORT}
    curves[GIVEN] = best_given(stored, samples)
    curves = {m: c for m, c in curves.items() if c}
    dense = stored[1]["dense"]
    small = Path(folder) / "trained_small.json"
    small = json.loads(small.read_text()) if subject == "resnet56" and small.exists() else None
    lowest = min([p[0] for c in curves.values() for p in c] + ([small["ratio"]] if small else []))
    left = int(lowest * 20) / 20 - 0.02
    bottom = max(0, int(min(p[1] for c in curves.values() for p in c) / 10) * 10)
    x = lambda ratio: LEFT + (ratio - left) / (1.02 - left) * (RIGHT - LEFT)
    y = lambda accuracy: BOTTOM - (accuracy - bottom) / (100 - bottom) * (BOTTOM - TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Accuracy against measured latency ratio, by pruning method"><style>{STYLE}</style>',
        '<rect class="ground" width="100%" height="100%" rx="10"/>',
        f'<text class="title" x="{LEFT}" y="28">Accuracy at measured latency: {escape(dense["label"])}</text>',
        f'<text class="soft" x="{LEFT}" y="47">one-shot, no training, {samples} calibration images; every peer '
        "with the same statistics repair; median of 3 seeds, bars: all seeds</text>",
    ]
    for tick in range(bottom, 101, 10):
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="soft" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick} %</text>'
        )
    for tick in range(3, 11):
        if tick / 10 >= left:
            out.append(
                f'<line class="grid" x1="{x(tick / 10):.1f}" x2="{x(tick / 10):.1f}" y1="{TOP}" y2="{BOTTOM}"/>'
                f'<text class="soft" x="{x(tick / 10):.1f}" y="{BOTTOM + 20}" text-anchor="middle">'
                f"{tick / 10:.1f}</text>"
            )
    out.append(
        f'<text class="soft" x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 42}" text-anchor="middle">'
        "latency, measured, as a share of dense (ONNX Runtime, CPU, one thread, batch 1)</text>"
    )
    out.append(
        f'<line class="dense" x1="{LEFT}" x2="{RIGHT}" y1="{y(dense["accuracy"]):.1f}" '
        f'y2="{y(dense["accuracy"]):.1f}"/><text class="soft" x="{x(1.0):.1f}" '
        f'y="{y(dense["accuracy"]) - 7:.1f}" text-anchor="end">dense {dense["accuracy"]:.1f} %</text>'
    )
    colours = {m: "var(--own)" if m == "blochd" else f"var(--p{i})" for i, m in enumerate(SHORT)}
    colours[GIVEN] = "var(--ink)"
    # The legend stands at the right, in the order of the curves' means.
    names = sorted(curves, key=lambda m: -sum(p[1] for p in curves[m]) / len(curves[m]))
    for place, method in reversed(list(enumerate(names))):  # the best on top of the others
        height = TOP + 14 + 24 * place
        own = method == "blochd"
        weight = " main" if own else " given" if method == GIVEN else ""
        path = " ".join(f"{x(r):.1f},{y(a):.1f}" for r, a, _, _ in curves[method])
        colour = f'style="stroke:{colours[method]}"'
        out.append(f'<polyline class="line{weight}" {colour} points="{path}"/>')
        for r, a, low, high in curves[method]:
            if high > low:
                out.append(
                    f'<line class="spread" {colour} x1="{x(r):.1f}" x2="{x(r):.1f}" y1="{y(low):.1f}" '
                    f'y2="{y(high):.1f}"/>'
                )
            out.append(
                f'<circle cx="{x(r):.1f}" cy="{y(a):.1f}" r="{4.5 if own else 3.2}" '
                f'style="fill:{colours[method]}"/>'
            )
        out.append(
            f'<line class="line{weight}" {colour} x1="{RIGHT + 16}" x2="{RIGHT + 42}" '
            f'y1="{height}" y2="{height}"/><text{" class=" + chr(34) + "own" + chr(34) if own else ""} '
            f'x="{RIGHT + 50}" y="{height + 4}">{escape(SHORT.get(method, method))}</text>'
        )
    if small:
        cx, cy = x(small["ratio"]), y(small["accuracy"])
        out.append(
            f'<path d="M{cx:.1f} {cy - 7:.1f}l7 7l-7 7l-7 -7z" style="fill:var(--ink)"/>'
            f'<text class="soft" x="{cx - 8:.1f}" y="{cy + 24:.1f}">ResNet-20, trained to be'
            f'</text><text class="soft" x="{cx - 8:.1f}" y="{cy + 39:.1f}">small: '
            f'{small["accuracy"]:.1f} % at {small["ratio"]:.2f}</text>'
        )
    return "\n".join([*out, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", default="resnet56")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--results", default=str(HERE / "results"))
    parser.add_argument("--out", default=str(HERE.parents[1] / "docs" / "quality.svg"))
    options = parser.parse_args()
    Path(options.out).write_text(draw(options.subject, options.samples, options.results))


if __name__ == "__main__":
    main()
