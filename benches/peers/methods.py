"""The peers: how each chooses or merges the channels of a group. Selection by Torch-Pruning is its own code,
imported; folding and ridge are written from their papers' descriptions.

A method is called once a calibration set and seed (`prepare`), then once a width plan (`cuts`).
"""

import warnings

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch_pruning as tp
from scipy.cluster import hierarchy

from groups import Cut, one_hot

# Share of the Gram's mean diagonal that ridge adds; 1e-4 to 1e-1 differ by less than the seeds do.
RIDGE = 1e-3


class Context:
    """What methods may look at: the dense network, its groups, calibration images, and a seed."""

    def __init__(self, walker, groups, images, seed):
        self.walker, self.groups, self.images, self.seed = walker, groups, images, seed


class Selection:
    """Scores of Torch-Pruning, highest kept; `tool` is what its pruner ranks globally with."""

    needs_images = False

    def __init__(self, importance=None):
        self.importance = importance

    def prepare(self, context):
        self.context = context
        if self.importance is None:
            draw = np.random.default_rng(context.seed)
            self.scores = [torch.from_numpy(draw.random(g.width)) for g in context.groups]
        else:
            self.scores = [self.importance(g.traced) for g in context.groups]
        return self

    def keeps(self, widths):
        return [torch.sort(torch.topk(s, k).indices).values for s, k in zip(self.scores, widths)]

    def cuts(self, widths):
        found = []
        for group, keep in zip(self.context.groups, self.keeps(widths)):
            if len(keep) == group.width:
                found.append(None)
                continue
            P = one_hot(keep, group.width)
            found.append(Cut(P, P.T, keep))
        return found

    def global_widths(self, share, scope, step):
        """Widths that Torch-Pruning's pruner leaves when it ranks all groups together and removes `share`."""
        walker = self.context.walker
        allowed = [g for g in self.context.groups if scope == "all" or g.interior]
        # Torch-Pruning may take a depthwise convolution for the root of a group.
        roots = {id(walker.layers[k]): g for g in allowed for k in [*g.producers, *g.depthwise]}
        ignored = [
            m
            for m in walker.layers.values()
            if isinstance(m, (nn.Conv2d, nn.Linear)) and id(m) not in roots
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                walker,
                torch.randn(*walker.input_shape),
                importance=self.importance,
                global_pruning=True,
                pruning_ratio=share,
                max_pruning_ratio=0.9,
                round_to=step,
                ignored_layers=ignored,
            )
            widths = [g.width for g in self.context.groups]
            for found in pruner.step(interactive=True):
                group = roots[id(found[0].dep.target.module)]
                widths[group.index] -= len(found[0].idxs)
        return tuple(
            max(step, w) if g.width >= step else w for w, g in zip(widths, self.context.groups)
        )


class Taylor(Selection):
    """Torch-Pruning's Taylor importance: gradients of the cross-entropy against dense's own answers, so that
    no labels are needed (on training images these are the labels)."""

    needs_images = True

    def __init__(self):
        super().__init__(tp.importance.GroupTaylorImportance())

    def prepare(self, context):
        walker = context.walker
        walker.zero_grad()
        for part in context.images.split(64):
            logits = walker(part)
            loss = F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum") / len(
                context.images
            )
            loss.backward()
        super().prepare(context)
        return self


def rows(walker, group):
    """The weights that make a channel, one row a channel. BatchNormalization is left out: with it, clusters
    follow its scales and measured worse."""
    layers = [walker.layers[key] for key in [*group.producers, *group.depthwise]]
    return (
        torch.cat([layer.weight.data.flatten(1) for layer in layers], 1).numpy().astype(np.float64)
    )


def clusters(points, count):
    """Labels of `count` clusters by Ward's linkage: the goal of k-means (squared distance to the mean), which
    the paper minimises, without its chance; measured at least as good as k-means with four starts.
    """
    return hierarchy.fcluster(hierarchy.linkage(points, "ward"), count, "maxclust") - 1


class Folding:
    """Model folding (arXiv 2502.10216): channels with like weights are clustered, their producers averaged,
    their consumers' columns added. Without data, the variance that averaging loses is put back from the
    cosines inside each cluster (the paper's approximate repair)."""

    needs_images = False

    def prepare(self, context):
        self.context = context
        self.rows = [rows(context.walker, g) for g in context.groups]
        self.seen = {}
        return self

    def cuts(self, widths):
        found = []
        for group, points, kept in zip(self.context.groups, self.rows, widths):
            if kept == group.width:
                found.append(None)
                continue
            if (group.index, kept) not in self.seen:
                self.seen[group.index, kept] = self.fold(group, points, kept)
            found.append(self.seen[group.index, kept])
        return found

    def fold(self, group, points, kept):
        labels = clusters(points, kept)
        member = np.zeros((group.width, kept), np.float32)
        member[np.arange(group.width), labels] = 1.0
        gain = None
        if len(self.context.images) == 0:
            unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
            cosine = [(unit[labels == c] @ unit[labels == c].T).mean() for c in range(kept)]
            gain = torch.tensor(1.0 / np.sqrt(np.maximum(cosine, 0.1)), dtype=torch.float32)
        member = torch.from_numpy(member)
        return Cut((member / member.sum(0)).T.contiguous(), member, gain=gain)


class Ridge:
    """Channel-Gram ridge (GRAIL, arXiv 2602.23795): after any method, hidden activations are reconstructed from
    the reduced ones by ridge regression on the Gram matrix of dense's activations, and the map is folded into
    the consumers. Channels only (no spatial taps), no intercept, errors of earlier cuts unseen."""

    needs_images = True

    def __init__(self, inner):
        self.inner = inner

    def prepare(self, context):
        self.context = context
        self.inner.prepare(context)
        self.grams, hooks = {}, []
        for group in context.groups:
            for key, each in group.consumers:
                hooks.append(
                    context.walker.layers[key].register_forward_pre_hook(
                        self.gather(key, group, each)
                    )
                )
        with torch.no_grad():
            for part in context.images.split(128):
                context.walker(part)
        for hook in hooks:
            hook.remove()
        return self

    def global_widths(self, *asked):
        return self.inner.global_widths(*asked)

    def gather(self, key, group, each):
        def hook(_, inputs):
            x = inputs[0]
            x = x.reshape(len(x), group.width, -1).transpose(0, 1).reshape(group.width, -1)
            self.grams[key] = self.grams.get(key, 0.0) + (x @ x.T).double()

        return hook

    def cuts(self, widths):
        found = []
        for group, cut in zip(self.context.groups, self.inner.cuts(widths)):
            if cut is not None:
                P, B = cut.P.double(), {}
                for key, _ in group.consumers:
                    G = self.grams[key]
                    reduced = P @ G @ P.T
                    reduced += (
                        RIDGE * reduced.diagonal().mean() * torch.eye(len(P), dtype=torch.float64)
                    )
                    B[key] = torch.linalg.solve(reduced, P @ G).T.float().contiguous()
                cut = Cut(cut.P, B, cut.keep, cut.gain)
            found.append(cut)
        return found


def magnitude():
    return tp.importance.GroupMagnitudeImportance(p=2, group_reduction="first", normalizer="mean")


def group_norm():
    return tp.importance.GroupMagnitudeImportance(p=2)


# Name: (label, how to make it, whether chance plays beyond the choice of samples).
METHODS = {
    "random": ("random", lambda: Selection(), True),
    "magnitude": ("magnitude (L2)", lambda: Selection(magnitude()), False),
    "group-norm": ("group norm (Torch-Pruning)", lambda: Selection(group_norm()), False),
    "taylor": ("Taylor (Torch-Pruning)", Taylor, False),
    "folding": ("model folding", Folding, False),
    "ridge": (
        "magnitude + channel-Gram ridge (GRAIL-like)",
        lambda: Ridge(Selection(magnitude())),
        False,
    ),
    "ridge-folding": ("folding + channel-Gram ridge (GRAIL-like)", lambda: Ridge(Folding()), False),
}
# Those that Torch-Pruning can rank globally.
GLOBAL = ("magnitude", "group-norm", "taylor", "ridge")
