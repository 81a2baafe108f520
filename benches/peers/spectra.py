"""The singular values of the matrices in a folder, by numpy on one thread: the peer of benches/analysis.rs.

The folder holds matrix_N.npy (float32), blochd_N.npy (blochd's values of the same matrix), and channels_N.npy
(float32, channels x rows x columns: the kernels of one layer's channels) with blochd_channels_N.npy. One line of
JSON on standard output tells how far every route is from a float64 SVD; after that every line on standard
input is answered by one line with the seconds of each route.
"""

import glob
import json
import os
import sys
import time

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np


def load(folder, stem):
    count = len(glob.glob(os.path.join(folder, stem + "_[0-9]*.npy")))
    return [np.load(os.path.join(folder, f"{stem}_{i}.npy")) for i in range(count)]


def roots(eigenvalues):
    return np.sqrt(np.maximum(eigenvalues[..., ::-1], 0))


def svd64(w):
    return np.linalg.svd(w.astype(np.float64), compute_uv=False)


def svd32(w):
    return np.linalg.svd(w, compute_uv=False)


def gram(w):
    w = w.astype(np.float64)
    t = np.swapaxes(w, -1, -2)
    return roots(np.linalg.eigvalsh(w @ t if w.shape[-2] <= w.shape[-1] else t @ w))


def gram_batched(matrices):
    by_shape = {}
    for i, w in enumerate(matrices):
        by_shape.setdefault(w.shape, []).append(i)
    found = [None] * len(matrices)
    for places in by_shape.values():
        for i, values in zip(places, gram(np.stack([matrices[i] for i in places]))):
            found[i] = values
    return found


def errors(found, wanted):
    """Largest error against the largest value, and against the value itself where that is not tiny."""
    absolute = relative = 0.0
    for values, exact in zip(found, wanted):
        top = np.maximum(exact[..., :1], 1e-300)
        off = np.abs(values - exact)
        absolute = max(absolute, float((off / top).max(initial=0.0)))
        large = exact >= 1e-4 * top
        relative = max(relative, float((off[large] / exact[large]).max(initial=0.0)))
    return [absolute, relative]


def main():
    folder = sys.argv[1]
    matrices, channels = load(folder, "matrix"), load(folder, "channels")
    routes = {
        "svd64": lambda: [svd64(w) for w in matrices],
        "svd32": lambda: [svd32(w) for w in matrices],
        "gram": lambda: [gram(w) for w in matrices],
        "gram_batched": lambda: gram_batched(matrices),
        "channels_svd64": lambda: [svd64(w) for w in channels],
        "channels_gram": lambda: [gram(w) for w in channels],
    }
    exact = {"": [svd64(w) for w in matrices], "channels": [svd64(w) for w in channels]}
    wanted = lambda name: exact["channels" if name.startswith("channels") else ""]
    told = {name: errors(route(), wanted(name)) for name, route in routes.items()}
    told["blochd"] = errors(load(folder, "blochd"), exact[""])
    told["channels_blochd"] = errors(load(folder, "blochd_channels"), exact["channels"])
    told["numpy"] = np.__version__
    print(json.dumps(told), flush=True)
    for _ in sys.stdin:
        seconds = {}
        for name, route in routes.items():
            start = time.perf_counter()
            route()
            seconds[name] = time.perf_counter() - start
        print(json.dumps(seconds), flush=True)


main()
