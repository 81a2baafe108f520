#!/usr/bin/env python3
"""Print the README's table: size, accuracy on the test set, latency of one image on one thread.

    taskset -c 1 python measure.py

The models take turns, round by round, so that a disturbance hits all of them.
"""

import pathlib
import time

import numpy as np
import onnx
import onnxruntime

HERE = pathlib.Path(__file__).parent
NAMES = ["digits_resnet", "digits_resnet_bn", "digits_mobile", "digits_mobile_bn"]
ROUNDS, RUNS = 40, 25


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main():
    data = np.load(HERE / "digits_test.npz")
    images, labels = data["input"], data["labels"]
    sessions = {name: session(HERE / f"{name}.onnx") for name in NAMES}
    times = {name: [] for name in NAMES}
    for turn in range(ROUNDS):
        for name, run in sessions.items():
            image = images[turn : turn + 1]
            for i in range(RUNS + 5):
                began = time.perf_counter()
                run.run(None, {"input": image})
                if i >= 5:  # the first few warm the caches again
                    times[name].append((time.perf_counter() - began) * 1e3)
    print("| file | bytes | parameters | test accuracy | latency ms: median (p10 to p90) |")
    print("|---|---|---|---|---|")
    for name, run in sessions.items():
        path = HERE / f"{name}.onnx"
        tensors = onnx.load(path).graph.initializer
        count = sum(int(np.prod(t.dims)) for t in tensors)
        out = np.concatenate([run.run(None, {"input": c})[0] for c in np.split(images, 20)])
        right = int((out.argmax(1) == labels).sum())
        low, mid, high = np.percentile(times[name], [10, 50, 90])
        print(
            f"| `{path.name}` | {path.stat().st_size:,} | {count:,} | {100 * right / len(labels):.2f} % "
            f"({right}/{len(labels)}) | {mid:.2f} ({low:.2f} to {high:.2f}) |"
        )


if __name__ == "__main__":
    main()
