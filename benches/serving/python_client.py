"""The unmodified tritonclient: asks for some seconds, with one connection and thread for each client.

python python_client.py http|grpc|shared URL MODEL CLIENTS SECONDS
"""

import json
import sys
import threading
import time

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
import tritonclient.utils.shared_memory as shm

protocol, url, model = sys.argv[1:4]
clients, seconds = int(sys.argv[4]), float(sys.argv[5])
api = http if protocol == "http" else grpc


def metadata(client):
    told = client.get_model_metadata(model)
    if protocol == "http":
        one, other = told["inputs"][0], told["outputs"][0]
        return one["name"], [int(n) for n in one["shape"]], other["name"]
    return told.inputs[0].name, list(told.inputs[0].shape), told.outputs[0].name


def ask(number, times):
    client = api.InferenceServerClient(url)
    name, shape, output = metadata(client)
    shape = [max(1, size) for size in shape]
    data = np.random.default_rng(1).random(shape, dtype=np.float32)
    given, wanted = api.InferInput(name, shape, "FP32"), api.InferRequestedOutput(output)
    region = None
    if protocol == "shared":
        key, size = f"serving-python-{number}", data.nbytes + 4096
        region = shm.create_shared_memory_region(key, f"/{key}", size)
        client.register_system_shared_memory(key, f"/{key}", size)
        given.set_shared_memory(key, data.nbytes)
        wanted.set_shared_memory(key, 4096, data.nbytes)

    def once():
        if region is None:
            given.set_data_from_numpy(data)
            client.infer(model, [given], outputs=[wanted]).as_numpy(output)
        else:
            shm.set_shared_memory_region(region, [data])
            client.infer(model, [given], outputs=[wanted])
            shm.get_contents_as_numpy(region, np.float32, [1], data.nbytes)

    for _ in range(5):
        once()
    ready.wait()
    end = time.perf_counter() + seconds
    while (sent := time.perf_counter()) < end:
        once()
        times.append((time.perf_counter() - sent) * 1e6)
    if region is not None:
        client.unregister_system_shared_memory(key)
        shm.destroy_shared_memory_region(region)


ready = threading.Barrier(clients)
lists = [[] for _ in range(clients)]
threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(lists)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if not all(lists):
    raise SystemExit("a client failed")
times = np.concatenate(lists)
p50, p90, p99 = np.percentile(times, [50, 90, 99])
print(json.dumps({"p50": p50, "p90": p90, "p99": p99, "rate": len(times) / seconds}))
