"""Convolutional networks with random weights that take about 0.1, 5 and 50 ms on one thread.

python models.py FOLDER        # small.onnx, medium.onnx, large.onnx, and swap-0.onnx … of other weights

What a server adds does not depend on what a network has learned. The weights are drawn from a fixed seed: every
machine makes the same files. Inputs have 3 KB, 48 KB and 588 KB, outputs 40 bytes.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Side of the input, stride of the stem, channels, 3×3 convolutions behind the stem.
SIZES = {
    "small": (16, 1, 32, 2),
    "medium": (64, 2, 64, 10),
    "large": (224, 4, 64, 27),
    "swap": (32, 1, 32, 7),
}
CLASSES = 10
# Networks of the last kind, of about 1 ms, that differ in their weights alone.
SWAPS = 2


def network(size, seed):
    """`input` f32 [1,3,side,side] → `output` f32 [1,10]."""
    side, stride, channels, depth = SIZES[size]
    rng = np.random.default_rng(seed)
    nodes, weights = [], []

    def weight(name, shape, fan_in):
        values = rng.standard_normal(shape).astype(np.float32) * np.float32((2 / fan_in) ** 0.5)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(at, source, into, step):
        kernel = weight(f"w{at}", (channels, into, 3, 3), 9 * into)
        names = [source, kernel]
        pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [step, step]}
        nodes.append(helper.make_node("Conv", names, [f"c{at}"], f"conv{at}", **pads))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"], f"relu{at}"))
        return f"r{at}"

    last = convolution(0, "input", 3, stride)
    for at in range(1, depth + 1):
        last = convolution(at, last, channels, 1)
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    head = weight("head", (channels, CLASSES), channels)
    nodes.append(helper.make_node("MatMul", ["flat", head], ["output"], "head"))
    graph = helper.make_graph(
        nodes,
        f"{size}-{seed}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def write(folder):
    """Writes those that are missing; their paths by name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {size: (size, 1) for size in SIZES if size != "swap"}
    wanted |= {f"swap-{seed}": ("swap", 100 + seed) for seed in range(SWAPS)}
    paths = {}
    for name, (size, seed) in wanted.items():
        paths[name] = folder / f"{name}.onnx"
        if not paths[name].exists():
            beside = paths[name].with_suffix(".part")
            onnx.save(network(size, seed), beside)
            beside.rename(paths[name])
    return paths


if __name__ == "__main__":
    for name, path in write(sys.argv[1]).items():
        print(f"{name}: {path.stat().st_size} bytes")
