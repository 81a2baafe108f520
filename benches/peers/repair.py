"""The statistics repair that every peer gets: each convolution's output (after BatchNormalization where there
is one) is given the mean and variance that dense has there on the calibration images, channel by channel, in
the order of the graph, so that later layers see repaired inputs. With BatchNormalization this is its re-estimation
with dense's statistics on the same images as the goal, which is less noisy than the stored ones."""

import torch
import torch.nn as nn

EPSILON = 1e-5


def statistics(walker, images):
    """Mean and standard deviation of every conv's output over images and positions, by the conv's key."""
    found = {}

    def look(key, out):
        found[key] = (out.mean((0, 2, 3)), out.std((0, 2, 3), unbiased=False))

    with torch.no_grad():
        walker(images, look)
    return found


def repair(walker, dense, groups, cuts, images):
    """Repairs `walker` in place; merged channels aim at the mean of their members' statistics."""
    onto = {
        key: cut.P
        for group, cut in zip(groups, cuts)
        if cut is not None
        for key in [*group.producers, *group.depthwise]
    }

    def mend(key, out):
        mean, deviation = dense[key]
        if key in onto:
            mean, deviation = onto[key] @ mean, onto[key] @ deviation
        now_mean, now = out.mean((0, 2, 3)), out.std((0, 2, 3), unbiased=False)
        scale = torch.sqrt((deviation**2 + EPSILON) / (now**2 + EPSILON))
        shift = mean - scale * now_mean
        if key in walker.norm_of:
            norm = walker.layers[walker.norm_of[key]]
            norm.weight.data = norm.weight.data * scale
            norm.bias.data = norm.bias.data * scale + shift
        else:
            conv = walker.layers[key]
            old = conv.bias.data if conv.bias is not None else torch.zeros_like(shift)
            conv.weight.data = conv.weight.data * scale[:, None, None, None]
            conv.bias = nn.Parameter(old * scale + shift)
        return out * scale[:, None, None] + shift[:, None, None]

    with torch.no_grad():
        walker(images, mend)
    return walker
