"""Writes a network of the shape of ResNet-18 (224×224, 11.7 M parameters) with random weights and 128 samples of
noise: for time and memory of a ladder and of an analysis, which depend on sizes alone. Never for accuracy.

    python r18.py OUT_DIR
    /usr/bin/time -v taskset -c 0 ../../target/release/blochd prune OUT_DIR/r18.onnx --out OUT_DIR/ladder \
        --calibration OUT_DIR/r18.npz --floor 0
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(18)
nodes, weights = [], []


def weight(name, *shape):
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    weights.append(numpy_helper.from_array(rng.normal(0, scale, shape).astype(np.float32), name))
    return name


def conv(x, name, cin, cout, kernel, stride, relu=True, then=None):
    """A convolution with its BatchNormalization folded in; `then` is added before the Relu."""
    inputs = [x, weight(f"{name}.weight", cout, cin, kernel, kernel), weight(f"{name}.bias", cout)]
    pads = [kernel // 2] * 4
    nodes.append(helper.make_node(
        "Conv", inputs, [f"{name}.out"], name=name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads,
    ))
    y = f"{name}.out"
    if then is not None:
        nodes.append(helper.make_node("Add", [y, then], [f"{name}.sum"], name=f"{name}.add"))
        y = f"{name}.sum"
    if relu:
        nodes.append(helper.make_node("Relu", [y], [f"{name}.relu"], name=f"{name}.act"))
        y = f"{name}.relu"
    return y


def main():
    out = Path(sys.argv[1])
    x = conv("input", "stem", 3, 64, 7, 2)
    nodes.append(helper.make_node(
        "MaxPool", [x], ["pool"], name="stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4,
    ))
    x, width = "pool", 64
    for stage, cout in enumerate([64, 128, 256, 512]):
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = conv(x, f"{name}.short", width, cout, 1, 2, relu=False)
            y = conv(x, f"{name}.conv1", width, cout, 3, stride)
            x = conv(y, f"{name}.conv2", cout, cout, 3, 1, then=shortcut)
            width = cout
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], name="mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], name="flat"))
    inputs = ["flat", weight("fc.weight", 1000, 512), weight("fc.bias", 1000)]
    nodes.append(helper.make_node("Gemm", inputs, ["logits"], name="fc", transB=1))
    graph = helper.make_graph(
        nodes, "r18",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, out / "r18.onnx")
    # Noise with the spectrum of images: neighbours say nearly the same.
    coarse = rng.normal(size=(128, 3, 28, 28)).astype(np.float32)
    np.savez(out / "r18.npz", input=np.repeat(np.repeat(coarse, 8, axis=2), 8, axis=3))


main()
