"""Drives a running server with the unmodified tritonclient[http]: metadata, inference in JSON and
binary, repository calls, errors.

    tritonclient_calls.py HOST:PORT [--types MODEL] [--reload MODEL] [--admin HOST:PORT]

Every ready model of the index is asked once with zeros, in all four combinations of JSON and binary.
--types names a model that gives each input in_<DATATYPE> (shape [-1,2]) back as out_<DATATYPE>.
--reload names a model that may be unloaded and loaded again. --admin is where that is done, and refused at the first
address.
"""

import argparse
import itertools

import ml_dtypes
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def fails(call, status, *words):
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == status, f"{error.status()} is not {status}: {error}"
        for word in words:
            assert word in error.message(), f"{word!r} is not in {error.message()!r}"
    else:
        raise AssertionError(f"expected status {status}")


def tensor(name, datatype, values, binary):
    wanted = http.InferInput(name, list(values.shape), datatype)
    return wanted.set_data_from_numpy(values, binary_data=binary)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def server(client):
    assert client.is_server_live() and client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "blochd", metadata
    assert {"binary_tensor_data", "model_repository"} <= set(metadata["extensions"]), metadata


def zeros_for(spec):
    shape = [max(dim, 1) for dim in spec["shape"]]
    if spec["datatype"] == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, dtype=triton_to_np_dtype(spec["datatype"]))


def each_model(client):
    ready = [line for line in client.get_model_repository_index() if line["state"] == "READY"]
    assert ready, "no model is ready"
    for line in ready:
        name, version = line["name"], line["version"]
        assert client.is_model_ready(name) and client.is_model_ready(name, version)
        metadata = client.get_model_metadata(name, version)
        assert metadata["name"] == name and metadata["versions"] == [version], metadata
        assert version in client.get_model_metadata(name)["versions"]
        config = client.get_model_config(name)
        assert [i["name"] for i in config["input"]] == [i["name"] for i in metadata["inputs"]]
        before = client.get_inference_statistics(name)["model_stats"][0]["inference_count"]
        answers = []
        for binary_in, binary_out in itertools.product((False, True), repeat=2):
            inputs = [
                tensor(i["name"], i["datatype"], zeros_for(i), binary_in or i["datatype"] == "BF16")
                for i in metadata["inputs"]
            ]
            outputs = [
                http.InferRequestedOutput(
                    o["name"], binary_data=binary_out or o["datatype"] == "BF16"
                )
                for o in metadata["outputs"]
            ]
            answer = client.infer(name, inputs, request_id="7", outputs=outputs)
            response = answer.get_response()
            assert response["id"] == "7" and response["model_name"] == name, response
            answers.append({o["name"]: answer.as_numpy(o["name"]) for o in metadata["outputs"]})
        for other in answers[1:]:
            for output, values in answers[0].items():
                assert values.shape == other[output].shape, output
                if values.dtype != np.object_:
                    np.testing.assert_array_equal(values, other[output], err_msg=output)
        after = client.get_inference_statistics(name, version)["model_stats"][0]["inference_count"]
        assert after >= before + 4, (before, after)


TYPES = {
    "FP32": np.array([[np.pi, -3e38]], np.float32),
    "FP64": np.array([[np.pi, 5e-324]], np.float64),
    "FP16": np.array([[65504, -1.5]], np.float16),
    "BF16": np.array([[1.5, -3e38]], ml_dtypes.bfloat16),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "BOOL": np.array([[True, False]], np.bool_),
    "BYTES": np.array([["größe".encode(), b""]], np.object_),
}


def every_type(client, model):
    for binary_in, binary_out in itertools.product((False, True), repeat=2):
        inputs = [
            tensor(f"in_{word}", word, values, binary_in or word == "BF16")
            for word, values in TYPES.items()
        ]
        outputs = [
            http.InferRequestedOutput(f"out_{word}", binary_data=binary_out or word == "BF16")
            for word in TYPES
        ]
        answer = client.infer(model, inputs, outputs=outputs, timeout=60_000_000, priority=1)
        for word, values in TYPES.items():
            back = answer.as_numpy(f"out_{word}")
            if word == "BYTES":
                texts = [t if isinstance(t, bytes) else t.encode() for t in back.flatten()]
                assert texts == list(values.flatten()), texts
            else:
                assert same(back, values), (word, binary_in, binary_out, back)
    # Without named outputs everything comes in binary.
    inputs = [tensor(f"in_{word}", word, values, True) for word, values in TYPES.items()]
    answer = client.infer(model, inputs)
    assert list(answer.as_numpy("out_BYTES").flatten()) == list(TYPES["BYTES"].flatten())
    # Requests in flight together, over several connections.
    pending = [client.async_infer(model, inputs) for _ in range(2)]
    assert all(same(p.get_result().as_numpy("out_FP32"), TYPES["FP32"]) for p in pending)
    wrong_requests(client, model, inputs)


def wrong_requests(client, model, inputs):
    fails(lambda: client.infer(model, inputs[1:]), "400", "in_FP32", "FP32 [-1,2]")
    extra = tensor("other", "FP32", TYPES["FP32"], True)
    fails(lambda: client.infer(model, inputs + [extra]), "400", "'other'")
    flat = [tensor("in_FP32", "FP32", np.zeros(2, np.float32), True)] + inputs[1:]
    fails(lambda: client.infer(model, flat), "400", "in_FP32", "expected [-1,2], got [2]")
    typed = [tensor("in_FP32", "FP64", np.zeros((1, 2)), False)] + inputs[1:]
    fails(lambda: client.infer(model, typed), "400", "in_FP32", "FP64", "FP32")
    no_text = tensor("in_BYTES", "BYTES", np.array([[b"\xff", b""]], np.object_), True)
    fails(lambda: client.infer(model, inputs[:-1] + [no_text]), "400", "in_BYTES", "UTF-8")
    nowhere = [http.InferRequestedOutput("nowhere")]
    fails(lambda: client.infer(model, inputs, outputs=nowhere), "400", "'nowhere'")
    classes = [http.InferRequestedOutput("out_FP32", class_count=2)]
    fails(lambda: client.infer(model, inputs, outputs=classes), "400", "classification")
    packed = lambda: client.infer(model, inputs, request_compression_algorithm="gzip")
    fails(packed, "415", "compressed")


def unknown_names(client, admin):
    value = tensor("x", "FP32", np.zeros(1, np.float32), True)
    fails(lambda: client.infer("nowhere", [value]), "404", "'nowhere'")
    fails(lambda: client.get_model_metadata("nowhere"), "404", "'nowhere'")
    fails(lambda: admin.load_model("nowhere"), "404", "nowhere")
    assert not client.is_model_ready("nowhere")


def reload(client, admin, model):
    state = lambda: [
        line["state"] for line in client.get_model_repository_index() if line["name"] == model
    ]
    if admin is not client:
        fails(lambda: client.unload_model(model), "403", "loaded and unloaded")
        fails(lambda: client.load_model(model), "403", "loaded and unloaded")
    admin.unload_model(model)
    assert "READY" not in state() and not client.is_model_ready(model)
    value = tensor("x", "FP32", np.zeros(1, np.float32), True)
    fails(lambda: client.infer(model, [value]), "503", model)
    admin.load_model(model)
    assert "READY" in state() and client.is_model_ready(model)
    fails(lambda: admin.load_model(model, config="{}"), "400", "config")


def broken(client, admin, model):
    """A model whose file is not sound: in the index with its reason, and not loaded by asking."""
    lines = [line for line in client.get_model_repository_index() if line["name"] == model]
    assert [line["state"] for line in lines] == ["UNAVAILABLE"], lines
    assert "offset" in lines[0]["reason"], lines
    assert not client.is_model_ready(model)
    fails(lambda: admin.load_model(model), "400", "model.onnx", "offset")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--types")
    parser.add_argument("--reload")
    parser.add_argument("--broken")
    parser.add_argument("--admin")
    args = parser.parse_args()
    client = http.InferenceServerClient(args.address, concurrency=2)
    admin = http.InferenceServerClient(args.admin) if args.admin else client
    server(client)
    each_model(client)
    unknown_names(client, admin)
    if args.types:
        every_type(client, args.types)
    if args.reload:
        reload(client, admin, args.reload)
    if args.broken:
        broken(client, admin, args.broken)
    if args.types:
        every_type(client, args.types)
    client.close()
    print("tritonclient: all calls answered as expected")


main()
