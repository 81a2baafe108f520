"""Every one-shot peer against blochd at the same measured latency; see README.md.

python peers.py --models DIR                        # plans, then all peers (resumes where it stopped)
python peers.py --models DIR --only blochd --blochd target/release/blochd
python peers.py --tables                            # markdown from the stored results
"""

import argparse
import copy
import hashlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import latency
import tables
from groups import apply, trace
from methods import GLOBAL, METHODS, Context
from plans import Plans
from repair import repair, statistics
from subjects import subjects
from walker import Walker

HERE = Path(__file__).resolve().parent
# Where a method's best family of plans is chosen, by its accuracy on the test images: kind to the peers.
CHOOSE_SAMPLES, CHOOSE_SEED = 128, 0


class Results:
    """One JSON line a measurement; a later line replaces an earlier one of the same key. Peers, blochd and
    peers on blochd's plans have files of their own, so that several processes may measure."""

    def __init__(self, folder, subject, part):
        self.path = Path(folder) / f"{subject}.{part}.jsonl"
        self.lines = {}
        if self.path.exists():
            for text in self.path.read_text().splitlines():
                line = json.loads(text)
                self.lines[self.key(line)] = line

    @staticmethod
    def key(line):
        return tuple(line[k] for k in ("method", "family", "target", "samples", "seed"))

    def add(self, line):
        self.lines[self.key(line)] = line
        self.write()

    def drop(self, method, samples, seed):
        gone = lambda l: (l["method"], l["samples"], l["seed"]) == (method, samples, seed)
        self.lines = {k: l for k, l in self.lines.items() if not gone(l)}

    def write(self):
        self.path.parent.mkdir(exist_ok=True)
        fresh = self.path.with_suffix(".part")
        fresh.write_text("".join(json.dumps(l) + "\n" for l in self.lines.values()))
        fresh.replace(self.path)


class Peers:
    def __init__(self, subject, options):
        self.subject, self.options = subject.load(), options
        self.groups = trace(subject.walker)
        self.plans = Plans(subject, self.groups, options.results, options.seconds, options.repeats)
        part = "blochd" if options.only == ["blochd"] else "given" if options.given else "peers"
        self.results = Results(options.results, subject.name, part)
        self.chosen_path = Path(options.results) / f"{subject.name}.chosen.json"
        self.chosen = json.loads(self.chosen_path.read_text()) if self.chosen_path.exists() else {}
        self.prepared = {}

    def images(self, samples, seed):
        return torch.from_numpy(self.subject.samples[self.subject.chosen(samples, seed)])

    def prepare(self, name, samples, seed):
        if (name, samples, seed) not in self.prepared:
            images = self.images(samples, seed)
            context = Context(self.subject.walker, self.groups, images, seed)
            dense = statistics(self.subject.walker, images) if samples else None
            self.prepared = {
                (name, samples, seed): (METHODS[name][1]().prepare(context), dense, images)
            }
        return self.prepared[name, samples, seed]

    def measure(self, name, family, widths, target, samples, seed, base=None, ratio=None):
        """Prunes, repairs, writes the ONNX file, scores it in ONNX Runtime; one result line."""
        known = self.results.lines.get((name, family, target, samples, seed))
        plan = hashlib.sha256(self.plans.key(widths).encode()).hexdigest()[:12]
        if known and known["plan"] == plan and not self.options.again:
            return known
        start = time.perf_counter()
        method, dense, images = self.prepare(name, samples, seed)
        cuts = method.cuts(widths)
        pruned = apply(copy.deepcopy(base or self.subject.walker), self.groups, cuts)
        if samples:
            repair(pruned, dense, self.groups, cuts, images)
        built = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pruned.onnx"
            pruned.save(str(path))
            accuracy = self.subject.score(latency.session(str(path)))
        line = {
            "method": name,
            "family": family,
            "plan": plan,
            "target": target,
            "samples": samples,
            "seed": seed,
            "ratio": ratio or self.plans.ratio(widths),
            "accuracy": round(accuracy, 3),
            "macs": None if base else round(self.plans.macs(widths), 4),
            "seconds": round(built, 2),
        }
        self.results.add(line)
        print(f"{self.subject.name}: {json.dumps(line)}", flush=True)
        return line

    def choose(self, name, target):
        """The plan that a method gets for a target: the best of its candidates on the test images."""
        known = self.chosen.setdefault(name, {})
        if str(target) not in known:
            candidates = dict(self.plans.candidates(target))
            if name in GLOBAL:
                method, _, _ = self.prepare(name, CHOOSE_SAMPLES, CHOOSE_SEED)
                scopes = ["interior"] + (
                    ["all"] if any(not g.interior for g in self.groups) else []
                )
                for scope in scopes:
                    widths = self.plans.global_plan(method, target, scope, 8)
                    if widths is not None and widths not in candidates.values():
                        candidates[f"global/{scope}/8"] = widths
            lines = {
                family: self.measure(name, family, widths, target, CHOOSE_SAMPLES, CHOOSE_SEED)
                for family, widths in candidates.items()
            }
            best = max(lines, key=lambda f: lines[f]["accuracy"], default=None)
            known[str(target)] = best and {"family": best, "widths": candidates[best]}
            self.chosen["dense"] = {
                "accuracy": self.subject.dense_score,
                "label": self.subject.label,
            }
            self.chosen_path.write_text(json.dumps(self.chosen, sort_keys=True) + "\n")
        return known[str(target)]

    def run(self, names):
        for name in names:
            _, make, chance = METHODS[name]
            plans = {t: self.choose(name, t) for t in self.options.ratios}
            for samples in self.options.samples:
                if make().needs_images and samples == 0:
                    continue
                # Without chance, all seeds see the same where all samples or none are used.
                same = not chance and samples in (0, len(self.subject.samples))
                for seed in self.options.seeds[:1] if same else self.options.seeds:
                    for target, plan in plans.items():
                        if plan:
                            self.measure(
                                name, plan["family"], tuple(plan["widths"]), target, samples, seed
                            )

    def given(self, names):
        """Peers on blochd's own plans: the same widths, the same blocks left out, their channels and repair."""
        path = Path(self.options.results) / f"{self.subject.name}.plans_given.json"
        if not path.exists():
            raise SystemExit(
                f"{path} is missing: run --only blochd with {CHOOSE_SAMPLES} samples first"
            )
        for target, plan in json.loads(path.read_text()).items():
            if float(target) not in self.options.ratios:
                continue
            base = Walker(str(self.subject.model), plan["bypassed"])
            weights = {key: node.input[1] for key, node in base.steps if key in base.layers}
            widths = tuple(
                next(
                    (
                        plan["kept"][weights[k]]
                        for k in g.producers
                        if weights.get(k) in plan["kept"]
                    ),
                    g.width,
                )
                for g in self.groups
            )
            if "ratio" not in plan:
                plan["ratio"] = self.plans.once(base, widths)
                everything = {**json.loads(path.read_text()), target: plan}
                path.write_text(json.dumps(everything, sort_keys=True) + "\n")
            for name in names:
                for seed in self.options.seeds:
                    self.measure(
                        name,
                        "given",
                        widths,
                        float(target),
                        CHOOSE_SAMPLES,
                        seed,
                        base,
                        plan["ratio"],
                    )

    def keep_plans(self, manifest):
        places = {group["name"]: group["places"] for group in manifest["groups"]}
        end = "[axis 0]"
        plans = {
            str(rung["asked"]): {
                "bypassed": rung["bypassed"],
                "kept": {
                    place.removesuffix(end): cut["kept"]
                    for cut in rung["cuts"]
                    for place in places[cut["group"]]
                    if place.endswith(end)
                },
            }
            for rung in manifest["rungs"]
        }
        path = Path(self.options.results) / f"{self.subject.name}.plans_given.json"
        path.write_text(json.dumps(plans, sort_keys=True) + "\n")

    def blochd(self, program):
        for samples in self.options.samples:
            for seed in self.options.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    self.blochd_once(program, samples, seed, Path(folder))

    def blochd_once(self, program, samples, seed, folder):
        subject = self.subject
        command = [
            program,
            "prune",
            str(subject.model),
            "--out",
            str(folder / "out"),
            "--seed",
            str(seed),
            "--ratios",
            ",".join(map(str, self.options.ratios)),
            "--json",
            "--progress",
            "none",
            "--floor",
            "0",
            *self.options.blochd_flags.split(),
        ]
        if samples:
            some = folder / "calibration.npz"
            np.savez(some, **{subject.input: subject.samples[subject.chosen(samples, seed)]})
            command += ["--calibration", str(some)]
        start = time.perf_counter()
        with latency.undisturbed():
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        built = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
        manifest = json.loads(done.stdout)
        rungs = manifest["rungs"]
        paths = [subject.model, *(folder / "out" / rung["file"] for rung in rungs)]
        ratios = []
        if rungs:
            ratios, _ = self.plans.timed(paths)
        self.results.drop("blochd", samples, seed)
        if (samples, seed) == (CHOOSE_SAMPLES, CHOOSE_SEED):
            self.keep_plans(manifest)
        for rung, path, ratio in zip(rungs, paths[1:], ratios):
            self.results.add(
                {
                    "method": "blochd",
                    "family": "own",
                    "target": rung["asked"],
                    "samples": samples,
                    "seed": seed,
                    "ratio": round(ratio, 4),
                    "own_ratio": round(rung["figures"]["ratio"], 4),
                    "accuracy": round(subject.score(latency.session(str(path))), 3),
                    "macs": round(rung["figures"]["macs"] / manifest["dense"]["macs"], 4),
                    "seconds": round(built, 2),
                }
            )
        for missed in manifest["not_built"]:
            self.results.add(
                {
                    "method": "blochd",
                    "family": "own",
                    "target": missed["asked"],
                    "samples": samples,
                    "seed": seed,
                    "ratio": None,
                    "accuracy": None,
                    "because": missed["because"],
                }
            )
        print(f"{subject.name}: blochd, {samples} samples, seed {seed}: {built:.1f} s", flush=True)


def small(found, options):
    """What training a smaller network gives: ResNet-20's latency over ResNet-56's."""
    large, little = found["resnet56"].load(), found["resnet20"].load()
    ratios, dense_ms = latency.ratios([large.model, little.model], large.feed, options.seconds, 5)
    point = {
        "ratio": round(ratios[0], 4),
        "accuracy": little.dense_score,
        "dense_ms": round(dense_ms, 4),
        "dense_accuracy": large.dense_score,
    }
    (Path(options.results) / "trained_small.json").write_text(json.dumps(point) + "\n")
    print(point)


def arguments():
    numbers = lambda kind: lambda text: [kind(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        default=os.environ.get("BLOCHD_BENCH_MODELS"),
        help="folder of the CIFAR-10 ResNets and their data (or BLOCHD_BENCH_MODELS)",
    )
    parser.add_argument("--results", default=str(HERE / "results"))
    parser.add_argument("--subjects", type=numbers(str), help="default: all that are there")
    parser.add_argument(
        "--only",
        type=numbers(str),
        default=list(METHODS),
        metavar="METHODS",
        help=f"of {', '.join(METHODS)}; or blochd alone",
    )
    parser.add_argument(
        "--blochd", default=os.environ.get("BLOCHD"), help="the release binary (or BLOCHD)"
    )
    parser.add_argument("--blochd-flags", default="", help="further flags of `blochd prune`")
    parser.add_argument("--samples", type=numbers(int), default=[128, 0, 32, 512])
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1, 2])
    parser.add_argument("--ratios", type=numbers(float), default=[0.9, 0.75, 0.6, 0.5])
    parser.add_argument(
        "--seconds", type=float, default=0.6, help="of timing for each candidate and take"
    )
    parser.add_argument("--repeats", type=int, default=3, help="takes, of which the median counts")
    parser.add_argument("--again", action="store_true", help="measure what is stored once more")
    parser.add_argument(
        "--plans-only", action="store_true", help="measure latencies of width plans and stop"
    )
    parser.add_argument(
        "--small", action="store_true", help="measure ResNet-20 as a small ResNet-56 and stop"
    )
    parser.add_argument(
        "--given",
        action="store_true",
        help="peers on the plans of blochd's stored run, blocks left out as there, and stop",
    )
    parser.add_argument(
        "--tables", action="store_true", help="print markdown of the stored results and stop"
    )
    return parser.parse_args()


def main():
    options = arguments()
    torch.set_num_threads(1)
    found = subjects(options.models)
    if options.tables:
        print(tables.markdown(options.results, options.subjects or list(found)))
        return
    Path(options.results).mkdir(exist_ok=True)
    if options.small:
        small(found, options)
        return
    for name in options.subjects or found:
        peers = Peers(found[name], options)
        if options.plans_only:
            for plans in peers.plans.families().values():
                peers.plans.measure(plans)
            continue
        if options.given:
            peers.given([m for m in METHODS if m in options.only])
            continue
        peers.run([m for m in METHODS if m in options.only])
        if options.only == ["blochd"]:
            if not options.blochd:
                raise SystemExit("--blochd names the program: target/release/blochd")
            peers.blochd(options.blochd)


if __name__ == "__main__":
    main()
