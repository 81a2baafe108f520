"""Decoding and encoding one ONNX file by the onnx package: the peer of benches/graph_io.rs.

Prints one line of JSON: seconds to decode, seconds to encode, and the most memory held, in bytes.
"""

import json
import os
import sys
import time

import onnx


def peak():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


path = sys.argv[1]
start = time.perf_counter()
model = onnx.load(path)
decoded = time.perf_counter()
if os.path.exists(os.path.splitext(path)[0] + ".data"):
    # Weights outside can only be written out, not encoded: more than 2 GiB may not stand in one message.
    data = [tensor.raw_data for tensor in model.graph.initializer]
else:
    data = model.SerializeToString()
encoded = time.perf_counter()
print(json.dumps({"decode": decoded - start, "encode": encoded - decoded, "peak": peak()}))
