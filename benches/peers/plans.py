"""Width plans and their measured latency. Same widths, same graph: same latency, whoever chose the channels; so
each plan is measured once a machine and kept in `results/SUBJECT.plans.json`."""

import copy
import itertools
import json
import tempfile
from pathlib import Path

import torch

import latency
from groups import Cut, apply, one_hot, widths_by_fraction

# A plan counts for a target up to this much above it: the noise of one measurement.
TOLERANCE = 0.02
TOGETHER = 6
CLASSES_MOST = 128


class Plans:
    def __init__(self, subject, groups, folder, seconds, repeats):
        self.subject, self.groups = subject, groups
        self.seconds, self.repeats = seconds, repeats
        self.path = Path(folder) / f"{subject.name}.plans.json"
        self.known = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.work = self._macs()

    def _macs(self):
        """Multiply-accumulates of each conv and Gemm of dense, with its place between groups."""
        sizes, hooks = {}, []
        walker = self.subject.walker
        for key, layer in walker.layers.items():
            if hasattr(layer, "weight") and layer.weight.dim() > 1:

                def hook(layer, _, out, key=key):
                    places = out[0].numel() // out.shape[1]
                    sizes[key] = places * layer.weight.numel()

                hooks.append(layer.register_forward_hook(hook))
        with torch.no_grad():
            walker(torch.from_numpy(self.subject.images[:1]))
        for hook in hooks:
            hook.remove()
        return sizes

    def macs(self, widths):
        """Share of dense's multiply-accumulates that is left."""
        share = dict.fromkeys(self.work, 1.0)
        for group, kept in zip(self.groups, widths):
            for key in [*group.producers, *group.depthwise, *(k for k, _ in group.consumers)]:
                share[key] *= kept / group.width
        return sum(self.work[k] * s for k, s in share.items()) / sum(self.work.values())

    @staticmethod
    def key(widths):
        return ",".join(map(str, widths))

    def variant(self, base, widths, path):
        """Writes `base` with these widths; which channels they are is all one to a clock."""
        cuts = []
        for group, kept in zip(self.groups, widths):
            P = one_hot(range(kept), group.width)
            cuts.append(None if kept == group.width else Cut(P, P.T, list(range(kept))))
        apply(copy.deepcopy(base), self.groups, cuts).save(str(path))

    def timed(self, paths):
        quiet = min((p["dense_ms"] for p in self.known.values()), default=None)
        return latency.ratios(paths, self.subject.feed, self.seconds, self.repeats, quiet)

    def once(self, base, widths):
        """Ratio of a network with blocks left out, not kept."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "variant.onnx"
            self.variant(base, widths, path)
            return round(self.timed([self.subject.model, path])[0][0], 4)

    def measure(self, plans):
        """Measures those that are not known yet."""
        dense = tuple(g.width for g in self.groups)
        wanted = [w for w in dict.fromkeys(plans) if self.key(w) not in self.known and w != dense]
        for start in range(0, len(wanted), TOGETHER):
            part = wanted[start : start + TOGETHER]
            with tempfile.TemporaryDirectory() as folder:
                paths = [self.subject.model]
                for i, widths in enumerate(part):
                    paths.append(Path(folder) / f"{i}.onnx")
                    self.variant(self.subject.walker, widths, paths[-1])
                found, dense_ms = self.timed(paths)
            for widths, ratio in zip(part, found):
                self.known[self.key(widths)] = {
                    "ratio": round(ratio, 4),
                    "macs": round(self.macs(widths), 4),
                    "dense_ms": round(dense_ms, 4),
                }
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(json.dumps(self.known, indent=0, sort_keys=True) + "\n")
            print(
                f"{self.subject.name}: {start + len(part)}/{len(wanted)} plans measured", flush=True
            )

    def ratio(self, widths):
        if widths == tuple(g.width for g in self.groups):
            return 1.0
        self.measure([widths])
        return self.known[self.key(widths)]["ratio"]

    def families(self):
        """Name: plans. `uniform` is what the tools do by themselves; `classes` gives them more: a width for
        each dense width, chosen on our measured latencies (for Torch-Pruning, a `pruning_ratio_dict`).
        """
        found = {}
        scopes = ["interior"] + (["all"] if any(not g.interior for g in self.groups) else [])
        for scope, step in itertools.product(scopes, (8, 16)):
            plans = [
                widths_by_fraction(self.groups, f / 100, step, scope) for f in range(98, 5, -3)
            ]
            found[f"uniform/{scope}/{step}"] = list(dict.fromkeys(plans))
        classes = sorted({g.width for g in self.groups if g.interior})
        choices = [range(8, width + 1, 8) for width in classes]
        count = 1
        for choice in choices:
            count *= len(choice)
        if count <= CLASSES_MOST:
            plans = []
            for chosen in itertools.product(*choices):
                of = dict(zip(classes, chosen))
                plans.append(tuple(of[g.width] if g.interior else g.width for g in self.groups))
            found["classes/interior/8"] = plans
            if min(classes) <= 16:
                # Where multiples of 8 are half of a layer, finer widths are all that is left for low ratios.
                plans = []
                for chosen in itertools.product((2, 4, 8), repeat=len(classes)):
                    of = dict(zip(classes, chosen))
                    plans.append(tuple(of[g.width] if g.interior else g.width for g in self.groups))
                found["narrow/interior/2"] = plans
        return found

    def candidates(self, target):
        """The heaviest plans that measure at the target or below, without repeats: one of each uniform family,
        three where widths are chosen by class, and narrow ones only where there are no others."""
        found = {}
        dense = tuple(g.width for g in self.groups)
        families = self.families()
        self.measure([plan for plans in families.values() for plan in plans])
        for family, plans in families.items():
            if family.startswith("narrow") and found:
                continue
            fitting = [p for p in plans if p != dense and self.ratio(p) <= target + TOLERANCE]
            fitting.sort(key=self.macs, reverse=True)
            for rank, plan in enumerate(fitting[: 1 if family.startswith("uniform") else 3]):
                if plan not in found.values():
                    found[f"{family}#{rank + 1}" if rank else family] = plan
        return found

    def global_plan(self, method, target, scope, step):
        """Torch-Pruning's global ranking: the smallest share of channels removed that measures at the target or
        below, found by bisection."""
        low, high, best = 0.0, 0.9, None
        for _ in range(6):
            share = (low + high) / 2
            widths = method.global_widths(share, scope, step)
            if self.ratio(widths) <= target + TOLERANCE:
                high, best = share, widths
            else:
                low = share
        return best
