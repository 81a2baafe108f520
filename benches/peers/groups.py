"""Coupled channel groups by Torch-Pruning's DependencyGraph, width plans over them, and the surgery that all
methods share: a group's producers are mapped by P [kept, width], its consumers by B [width, kept].
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn as nn
import torch_pruning as tp


@dataclass
class Group:
    """One set of channels that must be cut together; `index` is its place in the order of the graph."""

    index: int
    width: int
    producers: list = field(default_factory=list)  # keys of convs whose outputs are these channels
    depthwise: list = field(default_factory=list)
    consumers: list = field(default_factory=list)  # (key, inputs a channel)
    traced: object = None  # Torch-Pruning's own group, for its importances

    @property
    def interior(self):
        """Inside of a block: no residual stream."""
        return len(self.producers) == 1


def frozen_convs(walker):
    """Convs whose output channels meet a Pad of the channel axis (the parameterless shortcuts of CIFAR's
    ResNets): Torch-Pruning takes Pad for an elementwise operator and would couple wrong channels.
    """
    parent = {}

    def root(name):
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    made, tainted = {}, set()
    for key, node in walker.steps:
        layer = walker.layers[key] if key in walker.layers else None
        mixes = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if mixes:
            made[key] = node.output[0]
            continue
        for name in node.input:
            if name and name not in walker.constants:
                parent[root(name)] = root(node.output[0])
        if node.op_type == "Pad":
            pads = walker.constants[node.input[1]]
            if pads[1] or pads[1 + len(pads) // 2]:
                tainted.add(node.output[0])
    roots = {root(name) for name in tainted}
    return [key for key, name in made.items() if root(name) in roots]


def trace(walker):
    """All groups that may be cut, in the order of the graph."""
    name_of = {id(layer): key for key, layer in walker.layers.items()}
    last = [key for key, node in walker.steps if key in walker.layers][-1]
    ignored = [walker.layers[key] for key in [*frozen_convs(walker), last]]
    example = torch.randn(*walker.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(walker, example_inputs=example)
        traced = list(
            graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear])
        )
    groups = []
    for found in traced:
        group = Group(0, len(found[0].idxs), traced=found)
        seen = set()
        for item in found:
            layer = item.dep.target.module
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            key = name_of[id(layer)]
            outwards = graph.is_out_channel_pruning_fn(item.dep.handler)
            depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
            if depthwise and layer.groups != layer.in_channels:
                raise ValueError(f"grouped convolution {key}: not handled by this comparison")
            if (key, outwards and not depthwise) in seen:
                continue
            seen.add((key, outwards and not depthwise))
            each = len(item.idxs) // group.width
            roots = item.root_idxs
            if list(roots) != [i // each for i in range(len(item.idxs))]:
                raise ValueError(f"{key}: channels are not in order")
            if depthwise:
                group.depthwise.append(key)
            elif outwards:
                group.producers.append(key)
            else:
                group.consumers.append((key, each))
        groups.append(group)
    groups.sort(key=lambda group: min(group.producers))
    for index, group in enumerate(groups):
        group.index = index
    return groups


def widths_by_fraction(groups, fraction, step, scope):
    """What Torch-Pruning's `pruning_ratio` and `round_to` leave of each group: widths rounded up to `step`."""
    kept = []
    for group in groups:
        if scope == "interior" and not group.interior:
            kept.append(group.width)
        else:
            wanted = int(np.ceil(group.width * fraction / step - 1e-9)) * step
            kept.append(int(min(group.width, max(wanted, min(step, group.width)))))
    return tuple(kept)


def one_hot(keep, width):
    P = torch.zeros(len(keep), width)
    P[torch.arange(len(keep)), torch.as_tensor(keep)] = 1.0
    return P


@dataclass
class Cut:
    """What is done to a group. `keep`: selected channels (None: channels are merged). `B`: one matrix for all
    consumers, or one a consumer's key."""

    P: torch.Tensor
    B: object
    keep: object = None
    gain: object = None  # data-free variance correction of merged channels, [kept]


def fuse(walker, key):
    """Moves the BatchNormalization behind a conv into its weights, and leaves one that does nothing but add
    the bias; returns (weight, bias)."""
    conv = walker.layers[key]
    norm = walker.layers[walker.norm_of[key]] if key in walker.norm_of else None
    bias = conv.bias.data if conv.bias is not None else torch.zeros(conv.weight.shape[0])
    if norm is None:
        return conv.weight.data, bias
    scale = norm.weight.data / torch.sqrt(norm.running_var + norm.eps)
    return conv.weight.data * scale[:, None, None, None], norm.bias.data + scale * (
        bias - norm.running_mean
    )


def set_output(walker, key, weight, bias):
    conv = walker.layers[key]
    conv.weight.data = weight.contiguous()
    if key in walker.norm_of:
        norm = walker.layers[walker.norm_of[key]]
        norm.weight.data = torch.ones_like(bias)
        norm.bias.data = bias.clone()
        norm.running_mean = torch.zeros_like(bias)
        norm.running_var = torch.full_like(bias, 1.0 - norm.eps)
        if conv.bias is not None:
            conv.bias.data = torch.zeros_like(bias)
    else:
        conv.bias = nn.Parameter(bias.clone())


def apply(walker, groups, cuts):
    """Cuts `walker` in place; places in blocks that it has no more are passed over."""
    for group, cut in zip(groups, cuts):
        if cut is None:
            continue
        P = cut.P
        for key in [*group.producers, *group.depthwise]:
            if key not in walker.layers:
                continue
            conv = walker.layers[key]
            if cut.keep is not None:
                keep = torch.as_tensor(cut.keep)
                conv.weight.data = conv.weight.data[keep].contiguous()
                if conv.bias is not None:
                    conv.bias.data = conv.bias.data[keep]
                if key in walker.norm_of:
                    norm = walker.layers[walker.norm_of[key]]
                    for name in ("weight", "bias"):
                        getattr(norm, name).data = getattr(norm, name).data[keep]
                    norm.running_mean, norm.running_var = (
                        norm.running_mean[keep],
                        norm.running_var[keep],
                    )
            else:
                weight, bias = fuse(walker, key)
                weight = torch.einsum("kn,n...->k...", P, weight)
                if cut.gain is not None and key in group.producers:
                    weight = weight * cut.gain[:, None, None, None]
                set_output(walker, key, weight, P @ bias)
            if key in group.depthwise:
                conv.groups = conv.in_channels = P.shape[0]
            conv.out_channels = P.shape[0]
            if key in walker.norm_of:
                walker.layers[walker.norm_of[key]].num_features = P.shape[0]
        for key, each in group.consumers:
            if key not in walker.layers:
                continue
            layer = walker.layers[key]
            B = cut.B[key] if isinstance(cut.B, dict) else cut.B
            old = layer.weight.data
            if isinstance(layer, nn.Linear):
                blocks = old.reshape(old.shape[0], group.width, each)
                new = torch.einsum("onm,nk->okm", blocks, B)
                layer.weight.data = new.reshape(old.shape[0], -1).contiguous()
                layer.in_features = layer.weight.shape[1]
            else:
                layer.weight.data = torch.einsum("onhw,nk->okhw", old, B).contiguous()
                layer.in_channels = P.shape[0]
    return walker
