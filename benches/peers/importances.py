"""Importances by the peers' rules for the groups that `blochd prune --groups` lists, as `--scores` reads them.
Every constant of a coupled group takes part: what makes its channels, what reads them, and what lies between."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster import hierarchy

from torch_graph import TorchGraph

BATCH = 16
TEMPERATURE = 0.2  # of the similarities among which a sentence is to find itself: lower, and all do


def channels(array, place):
    """A constant as one row a channel."""
    moved = np.moveaxis(array, place["axis"], 0).astype(np.float64)
    return np.stack([moved[index].ravel() for index in place["index"]])


class Rules:
    def __init__(self, model, groups):
        self.graph, self.groups = TorchGraph(model), groups
        self.weights = self.graph.weights()

    def places(self, group):
        """The places of weights that operators multiply by."""
        return [place for place in group["places"] if place["constant"] in self.weights]

    def constant(self, place):
        return self.graph.constants[place["constant"]].detach().numpy()

    def group_norm(self):
        """L2 norm over all weights of the coupled group."""
        made = {}
        for group in self.groups:
            rows = [channels(self.constant(place), place) for place in self.places(group)]
            squares = sum((row**2).sum(1) for row in rows)
            made[group["name"]] = {"importance": np.sqrt(squares).tolist()}
        return made

    def taylor(self, kind, data):
        """|Σ weight · gradient| of each weight's channel, summed over the group."""
        found = {name: self.graph.constants[name] for name in self.weights}
        for value in found.values():
            value.requires_grad_(True).grad = None
        feeds = {name: torch.from_numpy(rows) for name, rows in data.items()}
        count = len(next(iter(feeds.values())))
        parts = [{n: rows[at : at + BATCH] for n, rows in feeds.items()} for at in range(0, count, BATCH)]
        with torch.no_grad():
            dense = [self.graph(part) for part in parts]
        for number, part in enumerate(parts):
            (LOSSES[kind](self.graph(part), dense, number, parts) / count).backward()
        made = {}
        for group in self.groups:
            total = np.zeros(group["width"])
            for place in self.places(group):
                constant = found[place["constant"]]
                product = (constant.detach() * constant.grad).numpy()
                total += np.abs(channels(product, place).sum(1))
            made[group["name"]] = {"importance": total.tolist()}
        for value in found.values():
            value.requires_grad_(False).grad = None
        return made

    def folding(self):
        """Model folding: Ward's tree over the weights that make the channels. What is merged first goes first,
        into the one of the two that is nearer to their mean. Attention heads are not merged: the mean of two
        heads' queries and keys attends to what neither does. They go by their norm."""
        made = self.group_norm()
        for group in self.groups:
            if any(len(index) > 1 for place in group["places"] for index in place["index"]):
                continue
            writes = [place for place in self.places(group) if not place["read"]]
            writes = writes or [place for place in group["places"] if not place["read"]]
            points = np.concatenate([channels(self.constant(place), place) for place in writes], 1)
            made[group["name"]] = tree(points)
        return made


def tree(points):
    count = len(points)
    importance, into = [0.0] * count, list(range(count))
    clusters = [(channel, [channel]) for channel in range(count)]
    for step, (a, b, *_) in enumerate(hierarchy.linkage(points, "ward")):
        (left, own), (right, others) = clusters[int(a)], clusters[int(b)]
        together = own + others
        middle = points[together].mean(0)
        far = lambda channel: ((points[channel] - middle) ** 2).sum()
        keeps, goes = (left, right) if far(left) <= far(right) else (right, left)
        importance[goes], into[goes] = float(step), keeps
        clusters.append((keeps, together))
    importance[clusters[-1][0]] = float(count)
    return {"importance": importance, "into": into}


def sentences(states, part):
    mask = part["attention_mask"][:, :, None]
    mean = (states * mask).sum(1) / mask.sum(1)
    return F.normalize(mean, dim=1)


def find_itself(states, dense, number, parts):
    """Cross-entropy of finding the sentence's own dense vector among all. (The distance to it is at its minimum
    on dense: its gradient is zero.)"""
    wanted = torch.cat([sentences(one, part) for one, part in zip(dense, parts)])
    scores = sentences(states, parts[number]) @ wanted.T / TEMPERATURE
    first = sum(len(one) for one in dense[:number])
    return F.cross_entropy(scores, torch.arange(first, first + len(states)), reduction="sum")


def read_the_same(steps, dense, number, parts):
    """Cross-entropy against the class that dense reads at each step; mean over the steps."""
    likeliest = dense[number].argmax(2, keepdim=True)
    return -steps.gather(2, likeliest).clamp_min(1e-12).log().mean((1, 2)).sum()


def find_the_same(areas, dense, number, parts):
    """Cross-entropy against dense's text areas; mean over the page."""
    wanted = (dense[number] > 0.3).float()
    return F.binary_cross_entropy(areas.clamp(1e-6, 1 - 1e-6), wanted, reduction="sum") / areas[0].numel()


LOSSES = {"minilm": find_itself, "rec": read_the_same, "det": find_the_same}
