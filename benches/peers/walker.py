"""An ONNX graph as a torch module that walks the same nodes, and back.

Torch-Pruning traces torch modules, blochd prunes ONNX files. To compare both on the same network, the file is
read into modules (one a Conv, BatchNormalization or Gemm node; everything else is a function call), pruned,
and written back into the same graph: only weights differ, so no exporter changes what is measured.
"""

import numpy as np
import onnx
import torch
import torch.nn as nn
import torch.nn.functional as F
from onnx import numpy_helper

WEIGHTED = ("Conv", "BatchNormalization", "Gemm")


class Unsupported(Exception):
    """The file holds something that this module cannot walk."""


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def bypass(graph, adds):
    """Makes each of the Adds hand on its shortcut alone, in place; the indices of nodes that nobody needs
    then."""
    maker = {name: node for node in graph.node for name in node.output}

    def above(name, seen):
        if name in maker and name not in seen:
            seen.add(name)
            for before in maker[name].input:
                above(before, seen)
        return seen

    for name in adds:
        node = maker[name]
        shortcut = [
            s for s, other in (node.input, reversed(node.input)) if s in above(other, set())
        ]
        if node.op_type != "Add" or len(shortcut) != 1:
            raise Unsupported(f"{name}: not the end of a block with an identity shortcut")
        node.op_type = "Identity"
        del node.input[:]
        node.input.append(shortcut[0])
    needed = set().union(*(above(output.name, set()) for output in graph.output))
    return {i for i, node in enumerate(graph.node) if not needed.intersection(node.output)}


class Walker(nn.Module):
    """`forward(x, after)`: `after(name, output)` may look at or replace the output of every conv, after the
    BatchNormalization behind it where there is one; `name` is the conv's."""

    def __init__(self, path, bypassed=()):
        """`bypassed`: outputs of the Adds whose residual branch is left out."""
        super().__init__()
        self.proto = onnx.load(path)
        graph = self.proto.graph
        dead = bypass(graph, bypassed)
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                value = attributes(node).get("value")
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        fed = [i for i in graph.input if i.name not in self.constants]
        if len(fed) != 1 or len(graph.output) != 1:
            raise Unsupported(f"{path}: one input and one output are expected")
        self.input = fed[0].name
        self.input_shape = [d.dim_value or 1 for d in fed[0].type.tensor_type.shape.dim]
        self.output = graph.output[0].name
        self.layers = nn.ModuleDict()
        self.steps = [
            (self._key(i), n)
            for i, n in enumerate(graph.node)
            if n.op_type != "Constant" and i not in dead
        ]
        consumers = {}
        for key, node in self.steps:
            for name in node.input:
                consumers.setdefault(name, []).append((key, node))
        # The BatchNormalization that alone reads a conv, by the conv's key.
        self.norm_of = {}
        for key, node in self.steps:
            if node.op_type in WEIGHTED:
                self.layers[key] = self._layer(node)
            readers = consumers.get(node.output[0], [])
            if node.op_type == "Conv" and len(readers) == 1:
                if readers[0][1].op_type == "BatchNormalization":
                    self.norm_of[key] = readers[0][0]
        self._last_use()
        self.eval()

    @staticmethod
    def _key(index):
        return f"n{index:03}"

    def _tensor(self, name):
        return torch.from_numpy(np.array(self.constants[name]))

    def _layer(self, node):
        a = attributes(node)
        if node.op_type == "Conv":
            weight = self._tensor(node.input[1])
            pads = a.get("pads", [0, 0, 0, 0])
            if (
                weight.dim() != 4
                or list(pads[:2]) != list(pads[2:])
                or a.get("auto_pad", b"NOTSET") != b"NOTSET"
            ):
                raise Unsupported(
                    f"{node.output[0]}: only 2-d convolutions with equal pads on both sides"
                )
            groups = a.get("group", 1)
            layer = nn.Conv2d(
                weight.shape[1] * groups,
                weight.shape[0],
                tuple(weight.shape[2:]),
                tuple(a.get("strides", [1, 1])),
                tuple(pads[:2]),
                tuple(a.get("dilations", [1, 1])),
                groups,
                bias=len(node.input) > 2,
            )
            layer.weight.data = weight
            if len(node.input) > 2:
                layer.bias.data = self._tensor(node.input[2])
        elif node.op_type == "BatchNormalization":
            scale, shift, mean, var = (self._tensor(n) for n in node.input[1:])
            layer = nn.BatchNorm2d(len(scale), eps=a.get("epsilon", 1e-5))
            layer.weight.data, layer.bias.data = scale, shift
            layer.running_mean, layer.running_var = mean, var
        else:
            if (
                not a.get("transB")
                or a.get("transA")
                or a.get("alpha", 1.0) != 1.0
                or a.get("beta", 1.0) != 1.0
            ):
                raise Unsupported(f"{node.output[0]}: only Gemm with transB=1")
            weight = self._tensor(node.input[1])
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=len(node.input) > 2)
            layer.weight.data = weight
            if len(node.input) > 2:
                layer.bias.data = self._tensor(node.input[2])
        return layer

    def _last_use(self):
        last = {}
        for key, node in self.steps:
            for name in node.input:
                last[name] = key
        self.free = {}
        for name, key in last.items():
            if name != self.output:
                self.free.setdefault(key, []).append(name)

    def forward(self, x, after=None):
        held = {self.input: x}
        owner = {norm: conv for conv, norm in self.norm_of.items()}
        for key, node in self.steps:
            if key in self.layers:
                out = self.layers[key](held[node.input[0]])
                if after is not None and key not in self.norm_of:
                    if node.op_type == "Conv" or key in owner:
                        replaced = after(owner.get(key, key), out)
                        out = out if replaced is None else replaced
            else:
                out = self._function(node, held)
            held[node.output[0]] = out
            for name in self.free.get(key, []):
                held.pop(name, None)
        return held[self.output]

    def _function(self, node, held):
        a, op = attributes(node), node.op_type
        constant = lambda i: (
            self.constants[node.input[i]] if len(node.input) > i and node.input[i] else None
        )
        value = lambda i: (
            held[node.input[i]] if node.input[i] in held else self._tensor(node.input[i])
        )
        x = value(0)
        if op == "Relu":
            return F.relu(x)
        if op == "Clip":
            low, high = constant(1), constant(2)
            return torch.clamp(
                x, None if low is None else float(low), None if high is None else float(high)
            )
        if op == "Add":
            return x + value(1)
        if op == "Mul":
            return x * value(1)
        if op == "Identity":
            return x
        if op == "Sigmoid":
            return torch.sigmoid(x)
        if op == "GlobalAveragePool":
            return F.adaptive_avg_pool2d(x, 1)
        if op in ("MaxPool", "AveragePool"):
            pads = a.get("pads", [0, 0, 0, 0])
            if list(pads[:2]) != list(pads[2:]) or a.get("ceil_mode"):
                raise Unsupported(f"{node.output[0]}: only pools with equal pads, rounding down")
            size, step = tuple(a["kernel_shape"]), tuple(a.get("strides", [1, 1]))
            if op == "MaxPool":
                return F.max_pool2d(x, size, step, tuple(pads[:2]))
            return F.avg_pool2d(
                x, size, step, tuple(pads[:2]), count_include_pad=bool(a.get("count_include_pad"))
            )
        if op == "Flatten" and a.get("axis", 1) == 1:
            return torch.flatten(x, 1)
        if op == "Concat":
            return torch.cat([value(i) for i in range(len(node.input))], a["axis"])
        if op == "Pad":
            pads = [int(p) for p in constant(1)]
            half = len(pads) // 2
            pairs = [p for axis in reversed(range(half)) for p in (pads[axis], pads[axis + half])]
            return F.pad(x, pairs)
        if op == "Slice":
            axes, steps = constant(3), constant(4)
            cut = [slice(None)] * x.dim()
            axes = range(len(constant(1))) if axes is None else axes
            steps = [1] * len(constant(1)) if steps is None else steps
            for axis, start, end, step in zip(axes, constant(1), constant(2), steps):
                cut[int(axis)] = slice(int(start), int(end), int(step))
            return x[tuple(cut)]
        raise Unsupported(f"{node.output[0]}: operator {op}")

    def save(self, path):
        """Writes the original graph with the present weights; a conv that got a bias gets one more input."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        graph = proto.graph
        tensors = {t.name: t for t in graph.initializer}

        def put(name, value):
            tensor = numpy_helper.from_array(np.ascontiguousarray(value.detach().numpy()), name)
            if name in tensors:
                tensors[name].CopyFrom(tensor)
            else:
                graph.initializer.append(tensor)

        for index, node in enumerate(graph.node):
            key = self._key(index)
            if key not in self.layers:
                continue
            layer = self.layers[key]
            if node.op_type == "BatchNormalization":
                values = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
                for name, value in zip(node.input[1:], values):
                    put(name, value)
                continue
            put(node.input[1], layer.weight)
            if layer.bias is not None:
                if len(node.input) < 3:
                    node.input.append(f"{node.output[0]}.bias")
                put(node.input[2], layer.bias)
            if node.op_type == "Conv":
                for attribute in node.attribute:
                    if attribute.name == "group":
                        attribute.i = layer.groups
        for index in sorted(bypass(graph, ()), reverse=True):
            del graph.node[index]
        del graph.value_info[:]
        onnx.save(proto, path)


def batched(model, x, after=None, size=128):
    with torch.no_grad():
        return torch.cat([model(part, after) for part in x.split(size)])
