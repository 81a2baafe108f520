"""An ONNX graph run in torch, node by node, with gradients for its constants by their ONNX names. It knows the
operators of the networks in `foreign.py`; another one is an entry more."""

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}


class TorchGraph:
    def __init__(self, path):
        graph = onnx.load(str(path)).graph
        self.outputs = [value.name for value in graph.output]
        made = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = []
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                made[node.output[0]] = attributes["value"]
            else:
                self.nodes.append((node.op_type, list(node.input), list(node.output), attributes))
        arrays = {name: np.array(numpy_helper.to_array(tensor)) for name, tensor in made.items()}
        self.constants = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.reads = {}  # the operators that read a constant, as (kind, number of the input)
        for kind, inputs, _, _ in self.nodes:
            for number, name in enumerate(inputs):
                if name in self.constants:
                    self.reads.setdefault(name, []).append((kind, number))

    def weights(self):
        """Names of the constants that operators multiply by."""
        kinds = ("Conv", "ConvTranspose", "MatMul", "Gemm")
        return {n for n, reads in self.reads.items() if any(k in kinds and at == 1 for k, at in reads)}

    def __call__(self, feed):
        values = {**self.constants, **feed, "": None}
        for kind, inputs, outputs, attributes in self.nodes:
            values[outputs[0]] = getattr(self, kind)(attributes, *(values[name] for name in inputs))
        return values[self.outputs[0]]

    Add = lambda self, a, x, y: x + y
    Sub = lambda self, a, x, y: x - y
    Mul = lambda self, a, x, y: x * y
    Div = lambda self, a, x, y: x / y
    Pow = lambda self, a, x, y: x**y
    MatMul = lambda self, a, x, y: x @ y
    Sqrt = lambda self, a, x: x.sqrt()
    Erf = lambda self, a, x: x.erf()
    Relu = lambda self, a, x: x.relu()
    Sigmoid = lambda self, a, x: x.sigmoid()
    Identity = lambda self, a, x: x
    Shape = lambda self, a, x: torch.tensor(x.shape)
    Cast = lambda self, a, x: x.to(TYPES[a["to"]])
    Transpose = lambda self, a, x: x.permute(a["perm"])
    Concat = lambda self, a, *parts: torch.cat(parts, a["axis"])
    Clip = lambda self, a, x, low, high: x.clamp(low, high)
    HardSigmoid = lambda self, a, x: (a["alpha"] * x + a["beta"]).clamp(0, 1)
    GlobalAveragePool = lambda self, a, x: x.mean(tuple(range(2, x.dim())), keepdim=True)
    Reshape = lambda self, a, x, to: x.reshape(
        [x.shape[i] if size == 0 else size for i, size in enumerate(to.tolist())]
    )

    def Softmax(self, a, x):
        assert a["axis"] in (-1, x.dim() - 1)  # before operator set 13 another axis means something else
        return x.softmax(-1)

    def Gather(self, a, x, at):
        picked = x.index_select(a.get("axis", 0), at.reshape(-1))
        axis = a.get("axis", 0)
        return picked.reshape([*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]])

    def Unsqueeze(self, a, x, axes=None):
        for axis in sorted(a["axes"] if axes is None else axes.tolist()):
            x = x.unsqueeze(axis)
        return x

    def Squeeze(self, a, x, axes=None):
        return x.squeeze(tuple(a["axes"] if axes is None else axes.tolist()))

    def Slice(self, a, x, starts, ends, axes, steps=None):
        assert steps is None or steps.tolist() == [1] * len(steps)
        for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist()):
            size = x.shape[axis]
            start, end = (min(size, at + size if at < 0 else at) for at in (start, end))
            x = x.narrow(axis, start, end - start)
        return x

    def ReduceMean(self, a, x):
        return x.mean(a["axes"], keepdim=bool(a.get("keepdims", 1)))

    def LayerNormalization(self, a, x, scale, bias):
        return F.layer_norm(x, x.shape[-1:], scale, bias, a["epsilon"])

    def BatchNormalization(self, a, x, scale, bias, mean, variance):
        return F.batch_norm(x, mean, variance, scale, bias, eps=a["epsilon"])

    def Conv(self, a, x, weight, bias=None):
        x = F.pad(x, pads(a))
        return F.conv2d(x, weight, bias, a.get("strides", 1), 0, a.get("dilations", 1), a.get("group", 1))

    def ConvTranspose(self, a, x, weight, bias=None):
        assert not any(pads(a)) and a.get("group", 1) == 1 and set(a["dilations"]) == {1}
        return F.conv_transpose2d(x, weight, bias, a["strides"])

    def AveragePool(self, a, x):
        assert not any(pads(a)) and not a.get("ceil_mode", 0)
        return F.avg_pool2d(x, a["kernel_shape"], a["strides"])

    def Resize(self, a, x, _, scales):
        assert (a["mode"], a["nearest_mode"]) == (b"nearest", b"floor")
        times = [int(scale) for scale in scales[2:]]
        return x.repeat_interleave(times[0], 2).repeat_interleave(times[1], 3)


def pads(attributes):
    """ONNX's (top, left, bottom, right) as torch.nn.functional.pad takes them."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return left, right, top, bottom
