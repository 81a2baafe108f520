"""Networks that nobody made for blochd, judged by what they are for: prunes them with each method and prints what
is left at the measured latency.

    v/bin/pip install scipy==1.17.1
    cargo build --release
    v/bin/python benches/peers/foreign.py minilm DATA --blochd target/release/blochd
    v/bin/python benches/peers/foreign.py rec DATA --blochd target/release/blochd
    v/bin/python benches/peers/foreign.py det DATA --blochd target/release/blochd

DATA is the folder that `minilm_data.py` or `ocr_data.py` wrote. All methods use blochd's own planning, removed
blocks included; they differ in the choice of channels and in the repair. blochd sees the calibration file only.
"""

import argparse
import difflib
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import onnxruntime
from scipy.stats import spearmanr

METHODS = (
    ("block OBS + refit (blochd)", "obs", "refit"),
    ("magnitude + statistics", "magnitude", "statistics"),
    ("random + statistics", "random", "statistics"),
)


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


class Encoder:
    """Sentences as the mean of their tokens' states, compared by cosine."""

    model, prefix = "minilm", ""
    heads = ("cosine to dense, mean (least)", "rank correlation of similarities", "same nearest sentence, %")

    def __init__(self, folder, data):
        self.mask = data["attention_mask"][:, :, None]

    def answers(self, path, data):
        states = run(path, data)
        mean = (states * self.mask).sum(1) / self.mask.sum(1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def compare(self, dense, pruned):
        cosine = (dense * pruned).sum(1)
        pairs = np.triu_indices(len(dense), 1)
        likeness = [made @ made.T for made in (dense, pruned)]
        ranks = spearmanr(*(made[pairs] for made in likeness)).statistic
        nearest = [np.argmax(made - 2 * np.eye(len(made)), 1) for made in likeness]
        same = 100 * (nearest[0] == nearest[1]).mean()
        return f"{cosine.mean():.3f} ({cosine.min():.3f})", f"{ranks:.3f}", f"{same:.0f}"


class Recogniser:
    """Lines of text, read by the likeliest class of every step (CTC)."""

    model, prefix = "rec", "rec_"
    heads = ("characters as dense, %", "characters as printed, %")

    def __init__(self, folder, data):
        meta = session(folder / "rec.onnx").get_modelmeta().custom_metadata_map
        self.letters = ["", *meta["character"].splitlines(), " "]
        self.printed = (folder / "rec_evaluation.txt").read_text().splitlines()

    def answers(self, path, data):
        def text(steps):
            kept = [c for at, c in enumerate(steps) if c and (at == 0 or c != steps[at - 1])]
            return "".join(self.letters[c] for c in kept)

        return [text(steps) for steps in run(path, data).argmax(2)]

    def compare(self, dense, pruned):
        return f"{alike(dense, pruned):.1f}", f"{alike(self.printed, pruned):.1f}"


def alike(wanted, read):
    """Share of characters in common, in order, of both texts together, %."""
    match = lambda a, b: sum(m.size for m in difflib.SequenceMatcher(None, a, b, False).get_matching_blocks())
    both = sum(len(a) + len(b) for a, b in zip(wanted, read))
    return 100 * 2 * sum(match(a, b) for a, b in zip(wanted, read)) / max(1, both)


class Detector:
    """Where text is: the map of probabilities above 0.3, as PP-OCR takes it."""

    model, prefix = "det", "det_"
    heads = ("overlap of the text areas with dense's (IoU), %",)

    def __init__(self, folder, data):
        pass

    def answers(self, path, data):
        return run(path, data, 4) > 0.3

    def compare(self, dense, pruned):
        return (f"{100 * (dense & pruned).sum() / max(1, (dense | pruned).sum()):.1f}",)


SUBJECTS = {kind.model: kind for kind in (Encoder, Recogniser, Detector)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--blochd", default="target/release/blochd")
    parser.add_argument("--ratios", default="0.9,0.75,0.6,0.5")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    kind = SUBJECTS[options.subject]
    model = options.data / f"{kind.model}.onnx"
    data = dict(np.load(options.data / f"{kind.prefix}evaluation.npz"))
    subject = kind(options.data, data)
    dense = subject.answers(model, data)
    print("dense:", " | ".join(subject.compare(dense, dense)))
    print(f"\n| method | asked | measured ratio | {' | '.join(subject.heads)} |")
    print("|---|---|---|" + "---|" * len(subject.heads))
    for label, method, repair in METHODS:
        with tempfile.TemporaryDirectory() as out:
            command = [options.blochd, "prune", model, "--out", out, "--json", "--floor", "0"]
            command += ["--calibration", options.data / f"{kind.prefix}calibration.npz"]
            command += ["--ratios", options.ratios, "--method", method, "--repair", repair]
            command += ["--seed", options.seed]
            made = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            manifest = json.loads(made.stdout)
            for rung in manifest["rungs"]:
                pruned = subject.answers(pathlib.Path(out) / rung["file"], data)
                cells = " | ".join(subject.compare(dense, pruned))
                print(f"| {label} | {rung['asked']} | {rung['figures']['ratio']:.3f} | {cells} |", flush=True)
            for missing in manifest["not_built"]:
                print(f"| {label} | {missing['asked']} | not reached |" + " |" * len(subject.heads))


if __name__ == "__main__":
    main()
