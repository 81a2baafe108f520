#!/usr/bin/env python3
"""Write the small ONNX files that the Rust tests read: `fixtures/` (sound, `inputs/` among them) and
`fixtures/bad/` (hostile).

    python make_fixtures.py [--out fixtures]

Weights are random (seeded by the file's name): these files prove structure, never accuracy. Each sound one
is checked by onnx.checker and run in ONNX Runtime, except `custom_op.onnx`, which no runtime can run.
Two runs write the same bytes.
"""

import argparse
import pathlib
import zlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16
MAX_BYTES = 200_000


class Build:
    """A graph in the making: `build.op("Relu", x)` appends a node and gives its output's name."""

    def __init__(self, name, dtype=np.float32, constants=False):
        self.name, self.dtype, self.constants = name, dtype, constants
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.nodes, self.tensors, self.count = [], [], {}

    def op(self, kind, *inputs, name=None, outputs=1, domain=None, **keys):
        self.count[kind] = self.count.get(kind, -1) + 1
        name = name or f"{kind.lower()}{self.count[kind]}"
        outs = [f"{name}.out"] if outputs == 1 else [f"{name}.out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name=name, domain=domain, **keys))
        return outs[0] if outputs == 1 else outs

    def tensor(self, name, value, dtype=None):
        """A weight: an initializer, or the output of a Constant node (`constants`)."""
        value = np.asarray(value, dtype or self.dtype)
        proto = numpy_helper.from_array(value, name)
        if not self.constants:
            self.tensors.append(proto)
            return name
        self.nodes.append(helper.make_node("Constant", [], [name], name=f"{name}.node", value=proto))
        return name

    def index(self, name, values):
        return self.tensor(name, values, np.int64)

    def weight(self, name, *shape):
        fan = max(1, int(np.prod(shape[1:])))
        return self.tensor(name, self.rng.normal(0, np.sqrt(2 / fan), shape))

    def vector(self, name, n, low=-0.2, high=0.2):
        return self.tensor(name, self.rng.uniform(low, high, n))

    def conv(self, x, name, cin, cout, kernel=3, stride=1, groups=1, bias=True):
        inputs = [x, self.weight(f"{name}.weight", cout, cin // groups, kernel, kernel)]
        if bias:
            inputs.append(self.vector(f"{name}.bias", cout))
        return self.op(
            "Conv", *inputs, name=name, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4, group=groups,
        )

    def batch_norm(self, x, name, n):
        return self.op(
            "BatchNormalization", x, self.vector(f"{name}.scale", n, 0.5, 1.5),
            self.vector(f"{name}.bias", n), self.vector(f"{name}.mean", n),
            self.vector(f"{name}.var", n, 0.5, 1.5), name=name, epsilon=1e-5,
        )

    def fc(self, x, name, cin, cout):
        return self.op(
            "Gemm", x, self.weight(f"{name}.weight", cout, cin), self.vector(f"{name}.bias", cout),
            name=name, transB=1,
        )

    def head(self, x, channels):
        """GlobalAveragePool, Flatten, Gemm to ten logits."""
        x = self.op("Flatten", self.op("GlobalAveragePool", x, name="pool"), name="flatten", axis=1)
        return self.fc(x, "fc", channels, 10)

    def model(self, out, in_shape=("N", 1, 28, 28), out_shape=("N", 10), elem=F32, opset=17, domains=()):
        self.nodes.append(helper.make_node("Identity", [out], ["logits"], name="logits"))
        if self.nodes[-2].output[0] == out and self.nodes[-2].op_type != "If":
            self.nodes.pop()  # the last node can be called `logits` itself
            self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes, self.name,
            [helper.make_tensor_value_info("input", elem, list(in_shape))],
            [helper.make_tensor_value_info("logits", elem, list(out_shape))],
            self.tensors,
        )
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, opset_imports=imports)
        model.ir_version, model.producer_name = 8, "blochd tests/models/make_fixtures.py"
        return model


# --------------------------------------------------------------------------------- sound files


def mlp_gemm():
    b = Build("mlp_gemm")
    x = b.op("Flatten", "input", name="flatten", axis=1)
    x = b.op("Relu", b.fc(x, "fc1", 784, 48))
    x = b.op("Relu", b.fc(x, "fc2", 48, 32))
    return b.model(b.fc(x, "fc3", 32, 10))


def mlp_matmul():
    """MatMul + Add; weights (in, out); the middle Add has its bias first."""
    b = Build("mlp_matmul")
    x = b.op("Reshape", "input", b.index("shape", [-1, 784]), name="reshape")
    for i, (cin, cout) in enumerate([(784, 48), (48, 32), (32, 10)], 1):
        weight = b.tensor(f"fc{i}.weight", b.rng.normal(0, np.sqrt(2 / cin), (cin, cout)))
        x = b.op("MatMul", x, weight, name=f"fc{i}.matmul")
        pair = [x, b.vector(f"fc{i}.bias", cout)]
        x = b.op("Add", *(reversed(pair) if i == 2 else pair), name=f"fc{i}.add")
        x = b.op("Relu", x) if i < 3 else x
    return b.model(x)


def vgg_chain():
    """Flatten without global pooling: each channel is 49 columns of the Gemm."""
    b, x, cin = Build("vgg_chain"), "input", 1
    for i, cout in enumerate([16, 24], 1):
        x = b.batch_norm(b.conv(x, f"conv{i}", cin, cout, bias=i == 1), f"bn{i}", cout)
        x = b.op("MaxPool", b.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
        cin = cout
    x = b.op("Flatten", x, name="flatten", axis=1)
    x = b.op("Relu", b.fc(x, "fc1", 24 * 49, 24))
    return b.model(b.fc(x, "fc2", 24, 10))


def concat_dense():
    """DenseNet-like: every layer reads the concatenation of all before it."""
    b = Build("concat_dense")
    features, width = [b.op("Relu", b.conv("input", "stem", 1, 16, stride=2))], 16
    for i in range(3):
        x = b.op("Concat", *features, axis=1, name=f"cat{i}") if i else features[0]
        x = b.op("Relu", b.batch_norm(x, f"dense{i}.bn", width))
        features.append(b.conv(x, f"dense{i}.conv", width, 12, bias=False))
        width += 12
    x = b.op("Concat", *features, axis=1, name="cat_last")
    x = b.op("Relu", b.conv(x, "transition", width, 32, kernel=1))
    return b.model(b.head(x, 32))


def hardswish(b, x, i):
    """x * clip(x + 3, 0, 6) / 6, as exporters without HardSwish write it."""
    y = b.op("Add", x, b.tensor(f"act{i}.three", 3.0), name=f"act{i}.add")
    y = b.op("Clip", y, b.tensor(f"act{i}.zero", 0.0), b.tensor(f"act{i}.six", 6.0), name=f"act{i}.clip")
    y = b.op("Mul", x, y, name=f"act{i}.mul")
    return b.op("Div", y, b.tensor(f"act{i}.divisor", 6.0), name=f"act{i}.div")


def constants_hardswish():
    """Weights in Constant nodes, no initializer at all."""
    b = Build("constants_hardswish", constants=True)
    x = hardswish(b, b.conv("input", "conv1", 1, 16, stride=2), 1)
    x = hardswish(b, b.conv(x, "depthwise", 16, 16, groups=16), 2)
    x = hardswish(b, b.conv(x, "conv2", 16, 32, kernel=1), 3)
    return b.model(b.head(x, 32))


def grouped_conv():
    """ResNeXt-like: 1x1, 3x3 in 4 groups, 1x1, around a residual addition."""
    b = Build("grouped_conv")
    x = b.op("Relu", b.conv("input", "stem", 1, 32, stride=2))
    y = b.op("Relu", b.conv(x, "reduce", 32, 32, kernel=1))
    y = b.op("Relu", b.conv(y, "grouped", 32, 32, groups=4))
    x = b.op("Relu", b.op("Add", x, b.conv(y, "expand", 32, 32, kernel=1)))
    return b.model(b.head(x, 32))


def conv_transpose():
    """Down and up again; ConvTranspose weights are (in, out/groups, kh, kw)."""
    b = Build("conv_transpose")
    x = b.op("Relu", b.conv("input", "down1", 1, 16, stride=2))
    x = b.op("Relu", b.conv(x, "down2", 16, 24, stride=2))
    for i, (cin, cout, groups) in enumerate([(24, 16, 1), (16, 8, 2)], 1):
        weight = b.tensor(f"up{i}.weight", b.rng.normal(0, 0.15, (cin, cout // groups, 2, 2)))
        x = b.op(
            "ConvTranspose", x, weight, b.vector(f"up{i}.bias", cout), name=f"up{i}",
            kernel_shape=[2, 2], strides=[2, 2], group=groups,
        )
        x = b.op("Relu", x)
    x = b.conv(x, "image", 8, 1)
    return b.model(x, out_shape=("N", 1, 28, 28))


def f16_throughout():
    b = Build("f16_throughout", dtype=np.float16)
    x = b.op("Relu", b.batch_norm(b.conv("input", "conv1", 1, 16, stride=2), "bn1", 16))
    x = b.op("Relu", b.conv(x, "conv2", 16, 32, stride=2))
    return b.model(b.head(x, 32), elem=F16)


def f16_weights_cast():
    """Weights stored in f16, each widened by a Cast node before use."""
    b = Build("f16_weights_cast", dtype=np.float16)
    plain = b.tensor
    b.tensor = lambda name, value, dtype=None: (
        plain(name, value, dtype) if dtype
        else b.op("Cast", plain(f"{name}.f16", value), name=f"{name}.cast", to=F32)
    )
    x = b.op("Relu", b.conv("input", "conv1", 1, 16, stride=2))
    x = b.op("Relu", b.conv(x, "conv2", 16, 32, stride=2))
    return b.model(b.head(x, 32))


def option_a():
    """A residual block whose shortcut is a strided Slice and a zero Pad of channels (He et al., option A)."""
    b = Build("option_a")
    x = b.op("Relu", b.conv("input", "stem", 1, 16))
    for i in range(2):
        y = b.op("Relu", b.conv(x, f"same{i}.conv1", 16, 16))
        x = b.op("Relu", b.op("Add", b.conv(y, f"same{i}.conv2", 16, 16), x))
    y = b.op("Relu", b.conv(x, "wider.conv1", 16, 32, stride=2))
    y = b.conv(y, "wider.conv2", 32, 32)
    far = np.iinfo(np.int64).max
    cut = [b.index("slice.starts", [0, 0]), b.index("slice.ends", [far, far])]
    cut += [b.index("slice.axes", [2, 3]), b.index("slice.steps", [2, 2])]
    x = b.op("Slice", x, *cut, name="wider.slice")
    x = b.op("Pad", x, b.index("pads", [0, 8, 0, 0, 0, 8, 0, 0]), b.tensor("pad.zero", 0.0), name="wider.pad")
    x = b.op("Relu", b.op("Add", y, x))
    return b.model(b.head(x, 32))


def squeeze_excite():
    b = Build("squeeze_excite")
    x = b.op("Relu", b.conv("input", "conv1", 1, 24, stride=2))
    s = b.op("GlobalAveragePool", x, name="se.pool")
    s = b.op("Relu", b.conv(s, "se.reduce", 24, 8, kernel=1))
    s = b.op("HardSigmoid", b.conv(s, "se.expand", 8, 24, kernel=1), alpha=1 / 6, beta=0.5)
    x = b.op("Mul", x, s, name="se.scale")
    x = b.op("Relu", b.conv(x, "conv2", 24, 32, kernel=1))
    return b.model(b.head(x, 32))


def channel_shuffle():
    """ShuffleNetV2-like unit: Split, a branch, Concat, and a shuffle by Reshape-Transpose-Reshape."""
    b = Build("channel_shuffle")
    x = b.op("Relu", b.conv("input", "stem", 1, 32, stride=2))
    left, right = b.op("Split", x, b.index("halves", [16, 16]), name="split", outputs=2, axis=1)
    right = b.op("Relu", b.conv(right, "branch.conv1", 16, 16, kernel=1))
    right = b.conv(right, "branch.depthwise", 16, 16, groups=16)
    right = b.op("Relu", b.conv(right, "branch.conv2", 16, 16, kernel=1))
    x = b.op("Concat", left, right, axis=1)
    x = b.op("Reshape", x, b.index("to_groups", [-1, 2, 16, 14, 14]), name="shuffle.split")
    x = b.op("Transpose", x, perm=[0, 2, 1, 3, 4], name="shuffle.transpose")
    x = b.op("Reshape", x, b.index("from_groups", [-1, 32, 14, 14]), name="shuffle.join")
    x = b.op("Relu", b.conv(x, "last", 32, 32, kernel=1))
    return b.model(b.head(x, 32))


def dynamic_hw():
    b = Build("dynamic_hw")
    x = b.op("Relu", b.batch_norm(b.conv("input", "conv1", 1, 16, stride=2), "bn1", 16))
    x = b.op("Relu", b.conv(x, "conv2", 16, 32, stride=2))
    return b.model(b.head(x, 32), in_shape=("N", 1, "H", "W"))


def if_node():
    """Two branches, each with weights of its own, reading an outer tensor; the condition is data."""
    b = Build("if_node")
    x = b.op("Relu", b.conv("input", "conv1", 1, 16, stride=2))
    mean = b.op("ReduceMean", x, name="mean", keepdims=0)
    positive = b.op("Greater", mean, b.tensor("threshold", 0.5), name="bright")
    branches = {}
    for side in ("then", "else"):
        inner = Build(f"if_node.{side}")
        y = inner.op("Relu", inner.conv(x, f"{side}.conv", 16, 16), name=f"{side}.relu")
        info = helper.make_tensor_value_info(y, F32, ["N", 16, 14, 14])
        branches[f"{side}_branch"] = helper.make_graph(inner.nodes, f"{side}_branch", [], [info], inner.tensors)
    x = b.op("If", positive, name="if", **branches)
    x = b.op("Relu", b.conv(x, "conv2", 16, 24, kernel=1))
    return b.model(b.head(x, 24))


def custom_op():
    """An operator of a domain that no runtime knows, in the middle; must only parse."""
    b = Build("custom_op")
    x = b.op("Relu", b.conv("input", "conv1", 1, 16, stride=2))
    x = b.op("SpinNetwork", x, domain="com.example.unknown", name="spin", strength=0.5, mode="left")
    x = b.op("Relu", b.conv(x, "conv2", 16, 16))
    x = b.op("Relu", b.conv(x, "conv3", 16, 32, kernel=1))
    return b.model(b.head(x, 32), domains=["com.example.unknown"])


def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out) + bytes([n])


def field(number, payload):
    """Protobuf field: bytes as length-delimited, int as varint."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def unknown_fields():
    """Fields that ONNX does not define on model, graph, node and tensor; metadata as well."""
    b = Build("unknown_fields")
    x = b.op("Relu", b.conv("input", "conv1", 1, 16, stride=2))
    model = b.model(b.head(x, 16))
    owners = {
        "model": model, "graph": model.graph, "node": model.graph.node[0],
        "tensor": model.graph.initializer[0],
    }
    for i, (owner, message) in enumerate(owners.items()):
        message.MergeFromString(field(9001 + i, f"unknown to {owner}".encode()) + field(9101 + i, 1 << 40))
    helper.set_model_props(model, {"author": "make_fixtures.py", "unicode": "谱几何 · é", "empty": ""})
    model.doc_string = "Carries fields that no ONNX release defines."
    return model


def residual():
    """Small BN-kept ResNet with an identity and a 1x1 shortcut: quick subject for surgery tests."""
    b = Build("residual")
    x = b.op("Relu", b.batch_norm(b.conv("input", "stem", 1, 16, stride=2, bias=False), "stem.bn", 16))
    for name, cin, cout, stride in (("same", 16, 16, 1), ("wider", 16, 32, 2)):
        y = b.conv(x, f"{name}.conv1", cin, cout, stride=stride, bias=False)
        y = b.op("Relu", b.batch_norm(y, f"{name}.bn1", cout))
        y = b.batch_norm(b.conv(y, f"{name}.conv2", cout, cout, bias=False), f"{name}.bn2", cout)
        if cin != cout:
            x = b.conv(x, f"{name}.shortcut", cin, cout, kernel=1, stride=stride, bias=False)
            x = b.batch_norm(x, f"{name}.shortcut.bn", cout)
        x = b.op("Relu", b.op("Add", y, x, name=f"{name}.add"))
    return b.model(b.head(x, 32))


SOUND = [
    mlp_gemm, mlp_matmul, vgg_chain, concat_dense, constants_hardswish, grouped_conv, conv_transpose,
    f16_throughout, f16_weights_cast, option_a, squeeze_excite, channel_shuffle, dynamic_hw, if_node,
    custom_op, unknown_fields, residual,
]

# ------------------------------------------------------------- inputs other than one float image


def ports(b, inputs, outputs, domains=()):
    """The model of `b` with inputs and outputs given as `name: (type, shape)`; nodes write the outputs' names."""
    info = lambda ports: [helper.make_tensor_value_info(name, *port) for name, port in ports.items()]
    graph = helper.make_graph(b.nodes, b.name, info(inputs), info(outputs), b.tensors)
    imports = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 2) for d in domains)]
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version, model.producer_name = 8, "blochd tests/models/make_fixtures.py"
    return model


def named(b, x, name):
    b.nodes.append(helper.make_node("Identity", [x], [name], name=f"{name}.node"))


U8, I32, I64 = TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64


def u8_image():
    """Bytes as a camera gives them, channels last."""
    b = Build("u8_image")
    x = b.op("Transpose", b.op("Cast", "pixels", to=F32), perm=[0, 3, 1, 2])
    x = b.op("Relu", b.conv(x, "conv1", 3, 8, stride=2))
    named(b, b.head(x, 8), "logits")
    return ports(b, {"pixels": (U8, ["N", 28, 28, 3])}, {"logits": (F32, ["N", 10])})


def i32_tokens():
    """Token ids of 32 bits into a table of 50 rows."""
    b = Build("i32_tokens")
    x = b.op("Gather", b.weight("table", 50, 16), "ids")
    named(b, b.fc(b.op("ReduceMean", x, axes=[1], keepdims=0), "fc", 16, 4), "scores")
    return ports(b, {"ids": (I32, ["N", "L"])}, {"scores": (F32, ["N", 4])})


def token_types():
    """A text encoder's three inputs: tables of 100 tokens, 2 types and 64 positions."""
    b = Build("token_types")
    tokens = b.op("Gather", b.weight("tokens", 100, 16), "input_ids")
    types = b.op("Gather", b.weight("types", 2, 16), "token_type_ids")
    length = b.op("Slice", b.op("Shape", "input_ids"), b.index("one", [1]), b.index("two", [2]))
    places = b.op("Slice", b.weight("places", 64, 16), b.index("zero", [0]), length)
    x = b.op("Add", b.op("Add", tokens, types), places)
    mask = b.op("Unsqueeze", b.op("Cast", "attention_mask", to=F32), b.index("last", [-1]))
    x = b.op("ReduceSum", b.op("Mul", x, mask), b.index("length", [1]), keepdims=0)
    named(b, b.fc(x, "fc", 16, 4), "scores")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    return ports(b, {name: (I64, ["N", "L"]) for name in names}, {"scores": (F32, ["N", 4])})


def voice():
    """A voice detector's: samples, a state whose first axis is its own, and a rate without axes."""
    b = Build("voice")
    rate = b.op("Mul", b.op("Cast", "sr", to=F32), b.tensor("per_hertz", 1 / 16000))
    loud = b.op("Mul", b.op("ReduceMean", b.op("Abs", "input"), axes=[1], keepdims=1), rate)
    state = b.op("Tanh", b.op("Add", "state", b.op("Unsqueeze", loud, b.index("first", [0]))))
    named(b, state, "stateN")
    x = b.op("ReduceMean", state, axes=[0], keepdims=0)
    named(b, b.op("Sigmoid", b.fc(x, "fc", 64, 1)), "output")
    given = {"input": (F32, ["batch", "samples"]), "state": (F32, [2, "batch", 64]), "sr": (I64, [])}
    found = {"output": (F32, ["batch", 1]), "stateN": (F32, [2, "batch", 64])}
    return ports(b, given, found)


def words():
    """Texts to numbers; a word that is not known is -1."""
    b = Build("words")
    b.nodes.append(helper.make_node(
        "LabelEncoder", ["words"], ["numbers"], name="encode", domain="ai.onnx.ml",
        keys_strings=["left", "right"], values_floats=[0.0, 1.0], default_float=-1.0,
    ))
    given, found = {"words": (TensorProto.STRING, ["N"])}, {"numbers": (F32, ["N"])}
    return ports(b, given, found, domains=["ai.onnx.ml"])


def masked():
    """Booleans that choose, and halves to choose from."""
    b = Build("masked", np.float16)
    named(b, b.op("Where", "keep", "x", b.tensor("zero", 0.0)), "y")
    return ports(b, {"keep": (TensorProto.BOOL, ["N", 8]), "x": (F16, ["N", 8])}, {"y": (F16, ["N", 8])})


def skipped():
    """Halved twice, enlarged and joined with what it was: sizes are multiples of four."""
    b = Build("skipped")
    x = b.op("Relu", b.conv("image", "down1", 1, 8, stride=2))
    y = b.op("Relu", b.conv(x, "down2", 8, 8, stride=2))
    y = b.op("Resize", y, "", b.tensor("twice", [1, 1, 2, 2], np.float32), mode="nearest")
    named(b, b.head(b.op("Concat", x, y, axis=1), 16), "logits")
    return ports(b, {"image": (F32, ["N", 1, "H", "W"])}, {"logits": (F32, ["N", 10])})


def frames_of_48():
    """Takes whole frames of 48 numbers only, and does not say so."""
    b = Build("frames_of_48")
    x = b.op("Reshape", "samples", b.index("frames", [-1, 48]))
    named(b, b.fc(x, "fc", 48, 4), "scores")
    return ports(b, {"samples": (F32, ["N", "L"])}, {"scores": (F32, ["M", 4])})


def absurd():
    """One input of 4 TiB."""
    b = Build("absurd")
    named(b, b.op("ReduceMax", "input", axes=[1], keepdims=1), "most")
    return ports(b, {"input": (F32, [1, 1 << 40])}, {"most": (F32, [1, 1])})


def feeds():
    """Real inputs of each, except of the last, which nobody has."""
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 50, (3, 7))
    return {
        u8_image: {"pixels": rng.integers(0, 256, (2, 28, 28, 3)).astype(np.uint8)},
        i32_tokens: {"ids": ids.astype(np.int32)},
        token_types: {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids % 2},
        voice: {
            "input": rng.normal(size=(1, 512)).astype(np.float32),
            "state": np.zeros((2, 1, 64), np.float32), "sr": np.asarray(16000),
        },
        words: {"words": np.asarray(["right", "left", "up"], object)},
        masked: {"keep": rng.random((2, 8)) < 0.5, "x": rng.random((2, 8)).astype(np.float16)},
        skipped: {"image": rng.random((1, 1, 36, 52)).astype(np.float32)},
        frames_of_48: {"samples": rng.random((4, 48)).astype(np.float32)},
        absurd: None,
    }


# -------------------------------------------------------------------------------- external data


def externalise(tensor, location, offset=None, length=None):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def small():
    b = Build("small")
    x = b.op("Relu", b.conv("input", "conv1", 1, 8, stride=2))
    return b.model(b.head(x, 8))


def external():
    """(model, weights.bin): page-aligned offsets, two tensors, the smallest ones left inline."""
    model = vgg_chain()
    model.graph.name, blob = "external", bytearray()
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        if len(raw) < 1024:
            continue
        blob += bytes(-len(blob) % 4096)
        externalise(tensor, "weights.bin", len(blob), len(raw))
        blob += raw
    return model, bytes(blob)


# --------------------------------------------------------------------------------- hostile files


def bad_external(location, offset=None, length=None):
    model = small()
    weight = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    externalise(weight, location, offset, length)
    return serialise(model)


def with_weight(change):
    model = small()
    change(next(t for t in model.graph.initializer if t.name == "conv1.weight"))
    return serialise(model)


def cycle():
    b = Build("cycle")
    b.nodes.append(helper.make_node("Add", ["input", "b.out"], ["a.out"], name="a"))
    b.nodes.append(helper.make_node("Relu", ["a.out"], ["b.out"], name="b"))
    return serialise(b.model(b.head("b.out", 1)))


def duplicate_output():
    model = small()
    twin = model.graph.node.add()
    twin.CopyFrom(model.graph.node[1])
    twin.name = "relu0_twin"
    return serialise(model)


def dangling_input():
    model = small()
    model.graph.node[1].input[0] = "nobody.out"
    return serialise(model)


def deep_nesting(levels=5000):
    """If inside If inside If …: a recursive decoder without a limit overflows its stack."""
    inner = b""
    for _ in range(levels):
        attribute = field(1, b"then_branch") + field(20, 5) + field(6, inner)  # name, type GRAPH, g
        inner = field(1, field(4, b"If") + field(5, attribute))  # GraphProto.node
    return field(1, 8) + field(8, field(2, 17)) + field(7, inner)  # ir_version, opset_import, graph


def set_opset(model, version):
    model.opset_import[0].version = version
    return model


def hostile():
    whole = serialise(small())
    weight_bytes = 8 * 1 * 3 * 3 * 4
    return {
        "truncated.onnx": whole[: len(whole) * 6 // 10],
        "empty.onnx": b"",
        "not_onnx.onnx": b"This is not a model.\nSomebody renamed a text file.\n" * 8,
        "length_lie.onnx": field(1, 8) + varint(7 << 3 | 2) + varint(1 << 60) + b"short",
        "external_traversal.onnx": bad_external("../../etc/passwd", 0, weight_bytes),
        "external_absolute.onnx": bad_external("/etc/passwd", 0, weight_bytes),
        "external_missing.onnx": bad_external("nowhere.bin", 0, weight_bytes),
        "external_short.onnx": bad_external("short.bin", 4096, weight_bytes),
        "external_overflow.onnx": bad_external("short.bin", (1 << 63) - 1, (1 << 63) - 1),
        "external_not_a_number.onnx": bad_external("short.bin", "-1", "many"),
        "external_no_location.onnx": bad_external(None, 0, weight_bytes),
        "short.bin": bytes(weight_bytes),
        "size_lie.onnx": with_weight(lambda t: setattr(t, "raw_data", t.raw_data[: weight_bytes // 2])),
        "huge_dims.onnx": with_weight(lambda t: t.dims.__setitem__(slice(None), [1 << 40, 1 << 40, 3, 3])),
        "negative_dims.onnx": with_weight(lambda t: t.dims.__setitem__(slice(None), [-8, -1, 3, 3])),
        "cycle.onnx": cycle(),
        "duplicate_output.onnx": duplicate_output(),
        "dangling_input.onnx": dangling_input(),
        "deep_nesting.onnx": deep_nesting(),
        "opset_999.onnx": serialise(set_opset(small(), 999)),
    }


def hangs():
    """A sound graph that never ends: a Loop without a trip count whose condition stays true."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["again"], ["again.out"], name="keep_on"),
            helper.make_node("Identity", ["carried"], ["carried.out"], name="carry"),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", F32, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("again.out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried.out", F32, [1, 4]),
        ],
    )
    true = numpy_helper.from_array(np.asarray(True), "true")
    loop = helper.make_node("Loop", ["", "true", "input"], ["output"], name="loop", body=body)
    return serialise(whole("hangs", [loop], [true], [1, 4]))


def eats_memory():
    """A sound graph of a few bytes that asks for 64 GiB."""
    shape = numpy_helper.from_array(np.asarray([1 << 34], np.int64), "shape")
    nodes = [
        helper.make_node("Expand", ["input", "shape"], ["wide"], name="expand"),
        helper.make_node("ReduceMax", ["wide"], ["output"], name="reduce", keepdims=1),
    ]
    return serialise(whole("eats_memory", nodes, [shape], [1]))


def whole(name, nodes, tensors, shape):
    given = [helper.make_tensor_value_info("input", F32, shape)]
    found = [helper.make_tensor_value_info("output", F32, shape)]
    graph = helper.make_graph(nodes, name, given, found, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


# ---------------------------------------------------------------------------------------- output


def serialise(model):
    return model.SerializeToString(deterministic=True)


def write(path, data):
    assert len(data) < MAX_BYTES, f"{path}: {len(data)} bytes"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def run(path):
    """The file in ONNX Runtime, with a batch of two; fails on anything but finite numbers."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    shape = [2 if d == "N" else d if isinstance(d, int) else 28 for d in wanted.shape]
    dtype = np.float16 if "float16" in wanted.type else np.float32
    x = np.random.default_rng(1).normal(size=shape).astype(dtype)
    (out,) = session.run(None, {"input": x})
    assert np.isfinite(out).all() and out.std() > 0, path
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "fixtures")
    out = parser.parse_args().out
    for build in SOUND:
        model = build()
        path = out / f"{build.__name__}.onnx"
        write(path, serialise(model))
        onnx.checker.check_model(model, full_check=build is not custom_op)
        shape = "not run" if build is custom_op else run(path).shape
        print(f"{path.name}: {path.stat().st_size} bytes, {shape}")
    for build, given in feeds().items():
        path = out / "inputs" / f"{build.__name__}.onnx"
        write(path, serialise(build()))
        onnx.checker.check_model(onnx.load(path), full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        shapes = [found.shape for found in session.run(None, given)] if given else "not run"
        print(f"inputs/{path.name}: {path.stat().st_size} bytes, {shapes}")
        if build is frames_of_48:
            np.savez(path.with_suffix(".npz"), **given)
    assert (out / "unknown_fields.onnx").read_bytes().count(b"unknown to ") == 4
    model, blob = external()
    write(out / "external" / "weights.bin", blob)
    write(out / "external" / "model.onnx", serialise(model))
    onnx.checker.check_model(str(out / "external" / "model.onnx"))
    print(f"external: {len(blob)} bytes beside it, {run(out / 'external' / 'model.onnx').shape}")
    for name, data in hostile().items():
        write(out / "bad" / name, data)
        try:
            run(out / "bad" / name) if name.endswith(".onnx") else None
            verdict = "accepted"
        except Exception as error:  # whatever ONNX Runtime says; shown, not judged
            verdict = " ".join(str(error).split())[:110]
        print(f"bad/{name}: {len(data)} bytes; ONNX Runtime: {verdict}")
    for build in [hangs, eats_memory]:  # not run here: that is their point
        write(out / "runaway" / f"{build.__name__}.onnx", build())


if __name__ == "__main__":
    main()
