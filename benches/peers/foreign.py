"""Networks that nobody made for blochd, judged by what they are for: each is pruned by every method, and what is
left is measured at the measured latency; see README.md.

    v/bin/python benches/peers/foreign.py --minilm DATA --ocr DATA --blochd target/release/blochd
    v/bin/python benches/peers/foreign.py --tables                  # markdown from the stored results

The folders are those that `minilm_data.py`, `ocr_data.py` and `ocr_real.py` wrote. All methods use blochd's own
planning, removed blocks and low rank included; they differ in the choice of channels and in the repair. Nobody
sees more than the calibration samples. Results are stored one by one: a run that was stopped goes on.
"""

import argparse
import difflib
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
import onnxruntime
import torch
from scipy.stats import spearmanr

from importances import Rules

HERE = pathlib.Path(__file__).resolve().parent
SEEDS = 3  # parts of a calibration file
MOST = 128  # samples of a part, or all that it has

# Name: (label, how blochd is to choose, how it is to repair). Where it chooses by scores, they are those of
# `importances.py` under the method's name before the first `+`.
METHODS = {
    "blochd": ("**blochd**: block OBS + refit", "obs", "refit"),
    "random": ("random + statistics", "random", "statistics"),
    "magnitude": ("magnitude (L2) + statistics", "magnitude", "statistics"),
    "group-norm": ("group norm (L2 over the group) + statistics", "scores", "statistics"),
    "taylor": ("Taylor (first order) + statistics", "scores", "statistics"),
    "folding": ("model folding + statistics", "scores", "statistics"),
    "magnitude+ridge": ("magnitude + channel ridge (GRAIL-like) + statistics", "magnitude", "ridge"),
    "folding+ridge": ("folding + channel ridge (GRAIL-like) + statistics", "scores", "ridge"),
    "magnitude+refit": ("magnitude + *blochd's refit*", "magnitude", "refit"),
}
# Without samples there is no gradient. (All others use those that blochd makes up, from its seed.)
NEEDS_SAMPLES = ("taylor",)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def run(path, data, size=16):
    made, count = session(path), len(next(iter(data.values())))
    parts = [
        made.run(None, {name: rows[at : at + size] for name, rows in data.items()})[0]
        for at in range(0, count, size)
    ]
    return np.concatenate(parts)


def load(path):
    return dict(np.load(path))


class Encoder:
    """Sentences as the mean of their tokens' states, compared by cosine."""

    title = "MiniLM (sentence encoder)"
    model, prefix = "minilm", ""
    heads = (
        "cosine to dense, mean",
        "rank correlation of similarities with dense's",
        "same nearest sentence as dense, %",
        "cosine to dense, least",
    )
    digits = (3, 3, 0, 3)

    def __init__(self, folder):
        self.data = load(folder / "evaluation.npz")
        self.dense = self.answers(folder / "minilm.onnx")

    def answers(self, path):
        states, mask = run(path, self.data), self.data["attention_mask"][:, :, None]
        mean = (states * mask).sum(1) / mask.sum(1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def judge(self, path):
        dense, pruned = self.dense, self.answers(path)
        cosine = (dense * pruned).sum(1)
        pairs = np.triu_indices(len(dense), 1)
        likeness = [made @ made.T for made in (dense, pruned)]
        ranks = spearmanr(*(made[pairs] for made in likeness)).statistic
        nearest = [np.argmax(made - 2 * np.eye(len(made)), 1) for made in likeness]
        same = 100 * (nearest[0] == nearest[1]).mean()
        return cosine.mean(), ranks, same, cosine.min()


class Recogniser:
    """Lines of text, read by the likeliest class of every step (CTC)."""

    title = "PP-OCRv4 recognition"
    model, prefix = "rec", "rec_"
    heads = (
        "real lines: characters as dense, %",
        "rendered lines: characters as dense, %",
        "rendered lines: characters as printed, %",
    )
    digits = (1, 1, 1)

    def __init__(self, folder):
        meta = session(folder / "rec.onnx").get_modelmeta().custom_metadata_map
        self.letters = ["", *meta["character"].splitlines(), " "]
        self.printed = (folder / "rec_evaluation.txt").read_text().splitlines()
        self.parts = [load(folder / f"rec_{part}.npz") for part in ("real", "evaluation")]
        self.dense = [self.texts(folder / "rec.onnx", part) for part in self.parts]

    def texts(self, path, data):
        def text(steps):
            kept = [c for at, c in enumerate(steps) if c and (at == 0 or c != steps[at - 1])]
            return "".join(self.letters[c] for c in kept)

        return [text(steps) for steps in run(path, data).argmax(2)]

    def judge(self, path):
        real, rendered = (self.texts(path, part) for part in self.parts)
        return alike(self.dense[0], real), alike(self.dense[1], rendered), alike(self.printed, rendered)


def alike(wanted, read):
    """Share of characters in common, in order, of both texts together, %."""
    match = lambda a, b: sum(m.size for m in difflib.SequenceMatcher(None, a, b, False).get_matching_blocks())
    both = sum(len(a) + len(b) for a, b in zip(wanted, read))
    return 100 * 2 * sum(match(a, b) for a, b in zip(wanted, read)) / max(1, both)


class Detector:
    """Where text is: the map of probabilities above 0.3, as PP-OCR takes it."""

    title = "PP-OCRv4 detection"
    model, prefix = "det", "det_"
    heads = (
        "real pages: overlap of the text areas with dense's (IoU), %",
        "rendered pages: overlap of the text areas with dense's (IoU), %",
    )
    digits = (1, 1)

    def __init__(self, folder):
        self.parts = [load(folder / f"det_{part}.npz") for part in ("real", "evaluation")]
        self.dense = self.areas(folder / "det.onnx")

    def areas(self, path):
        return [run(path, part, 4) > 0.3 for part in self.parts]

    def judge(self, path):
        pairs = zip(self.dense, self.areas(path))
        return tuple(100 * (a & b).sum() / max(1, (a | b).sum()) for a, b in pairs)


SUBJECTS = {kind.model: kind for kind in (Encoder, Recogniser, Detector)}
KEY = ("method", "samples", "seed", "asked")


class Results:
    """One JSON line a rung; a later line replaces an earlier one of the same key."""

    def __init__(self, folder, subject):
        self.path = folder / f"foreign.{subject}.jsonl"
        texts = self.path.read_text().splitlines() if self.path.exists() else []
        self.lines = {self.key(line): line for line in map(json.loads, texts)}

    @staticmethod
    def key(line):
        return tuple(line[name] for name in KEY)

    def add(self, line):
        self.lines[self.key(line)] = line
        self.path.parent.mkdir(exist_ok=True)
        fresh = self.path.with_suffix(".part")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in self.lines.values()))
        fresh.replace(self.path)
        print(f"{self.path.stem}: {json.dumps(line)}", flush=True)


class Measure:
    def __init__(self, name, options):
        kind = SUBJECTS[name]
        self.name, self.options = name, options
        self.folder = options.minilm if name == "minilm" else options.ocr
        if self.folder is None:
            raise SystemExit(f"{name} needs --{'minilm' if name == 'minilm' else 'ocr'} FOLDER")
        self.subject = kind(self.folder)
        self.model = self.folder / f"{kind.model}.onnx"
        self.pool = load(self.folder / f"{kind.prefix}calibration.npz")
        self.results = Results(options.results, name)
        listed = self.blochd("--groups", "-", *self.sizes())
        self.rules = Rules(self.model, json.loads(listed))

    def blochd(self, *arguments):
        command = [self.options.blochd, "prune", self.model, *arguments]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}")
        return done.stdout

    def samples(self, count, seed):
        """The first `count` samples of the seed's part."""
        part = len(next(iter(self.pool.values()))) // SEEDS
        first = seed % SEEDS * part
        return {name: rows[first : first + min(count, part)] for name, rows in self.pool.items()}

    def sizes(self):
        """What made-up samples are to be like: as large as the real ones."""
        found = []
        for value in session(self.model).get_inputs():
            sizes = self.pool[value.name].shape
            for axis, (asked, size) in enumerate(zip(value.shape, sizes)):
                if axis and not isinstance(asked, int):
                    named = isinstance(asked, str) and asked != "?"
                    found += ["--shape", f"{asked if named else f'{value.name}[{axis}]'}={size}"]
        return found

    def scores(self, method, samples):
        rule = method.split("+")[0]
        if rule == "taylor":
            return self.rules.taylor(self.name, samples)
        return self.rules.group_norm() if rule == "group-norm" else self.rules.folding()

    def ladder(self, method, count, seed):
        have = [key for key in self.results.lines if key[:3] == (method, count, seed)]
        ratios = [r for r in self.options.ratios if (method, count, seed, r) not in have]
        if not ratios or (method in NEEDS_SAMPLES and not count):
            return
        _, choose, repair = METHODS[method]
        samples = self.samples(count, seed)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            command = ["--out", folder / "out", "--json", "--progress", "none", "--floor", "0"]
            command += ["--ratios", ",".join(map(str, ratios)), "--method", choose, "--repair", repair]
            command += ["--seed", seed, *self.options.blochd_flags.split()]
            if count:
                np.savez(folder / "calibration.npz", **samples)
                command += ["--calibration", folder / "calibration.npz"]
            else:
                command += self.sizes()
            if choose == "scores":
                (folder / "scores.json").write_text(json.dumps(self.scores(method, samples)))
                command += ["--scores", folder / "scores.json"]
            start = time.perf_counter()
            manifest = json.loads(self.blochd(*command))
            seconds = round(time.perf_counter() - start, 1)
            told = dict(zip(KEY, (method, count, seed)), seconds=seconds)
            for rung in manifest["rungs"]:
                found = self.subject.judge(folder / "out" / rung["file"])
                found = [round(float(value), 4) for value in found]
                ratio = round(rung["figures"]["ratio"], 4)
                self.results.add({**told, "asked": rung["asked"], "ratio": ratio, "found": found})
            for missed in manifest["not_built"]:
                because = missed["because"]
                self.results.add({**told, "asked": missed["asked"], "ratio": None, "because": because})


def cell(lines, head, digits):
    """Median over the seeds (least … most) @ median of the measured ratios."""
    good = [line for line in lines if line["ratio"] is not None]
    if not good:
        return "not reached" if lines else "–"
    values = [line["found"][head] for line in good]
    text = f"{statistics.median(values):.{digits}f}"
    if len(set(values)) > 1:
        text += f" ({min(values):.{digits}f}…{max(values):.{digits}f})"
    text += f" @ {statistics.median(line['ratio'] for line in good):.2f}"
    return text + (f", {len(good)} of {len(lines)} seeds" if len(good) < len(lines) else "")


def table(kind, lines, count, head):
    asked = sorted({line["asked"] for line in lines}, reverse=True)
    out = [f"| {kind.heads[head]} | " + " | ".join(f"≤ {a}" for a in asked) + " |"]
    out.append("|---" * (len(asked) + 1) + "|")
    for method, (label, _, _) in METHODS.items():
        own = [line for line in lines if (line["method"], line["samples"]) == (method, count)]
        cells = [cell([l for l in own if l["asked"] == a], head, kind.digits[head]) for a in asked]
        if own:
            out.append(f"| {label} | " + " | ".join(cells) + " |")
    return [*out, ""]


def markdown(folder, names):
    out = []
    for name in names:
        lines = list(Results(folder, name).lines.values())
        kind = SUBJECTS[name]
        if lines:
            out.append(f"### {kind.title}\n")
        for count in sorted({line["samples"] for line in lines}, key=lambda n: (n != MOST, n)):
            out.append(f"{count} calibration samples\n")
            for head in range(len(kind.heads)):
                out += table(kind, lines, count, head)
    return "\n".join(out)


def arguments():
    listed = lambda kind: lambda text: [kind(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minilm", type=pathlib.Path, help="folder of minilm_data.py")
    parser.add_argument("--ocr", type=pathlib.Path, help="folder of ocr_data.py and ocr_real.py")
    parser.add_argument("--blochd", default="target/release/blochd")
    parser.add_argument("--blochd-flags", default="", help="further flags of `blochd prune`")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--subjects", type=listed(str), default=list(SUBJECTS))
    parser.add_argument("--methods", type=listed(str), default=list(METHODS))
    parser.add_argument("--ratios", type=listed(float), default=[0.9, 0.75, 0.6, 0.5])
    parser.add_argument("--samples", type=listed(int), default=[MOST, 32, 0])
    parser.add_argument("--seeds", type=listed(int), default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true", help="print the stored results and stop")
    return parser.parse_args()


def main():
    options = arguments()
    torch.set_num_threads(1)
    if options.tables:
        print(markdown(options.results, options.subjects))
        return
    measures = [Measure(name, options) for name in options.subjects]
    # What matters most comes first: a run that is stopped early is of use.
    for seed in options.seeds:
        for count in options.samples:
            for measure in measures:
                for method in options.methods:
                    measure.ladder(method, count, seed)


if __name__ == "__main__":
    main()
