"""Drives a running server with the unmodified tritonclient[grpc]: metadata, inference, streams, repository
calls, errors, deadlines, shared memory.

    tritonclient_grpc_calls.py TARGET [--types MODEL] [--reload MODEL] [--broken MODEL] [--gate MODEL]
                               [--http HOST:PORT | --no-memory] [--admin TARGET]

TARGET is HOST:PORT or unix:/path. Every ready model of the index is asked once with zeros. --types names a
model that gives each input in_<DATATYPE> (shape [-1,2]) back as out_<DATATYPE>, --reload one that may be
unloaded and loaded again (at --admin, where that is given; the first target then refuses to), --gate one that answers when the model "open" is asked, while "begun" answers when
it has begun. --http is where the same server speaks REST: shared memory is then tried over both. With
--no-memory it must be switched off.
"""

import argparse
import asyncio
import os
import queue

import ml_dtypes
import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as aio
import tritonclient.http as http
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import service_pb2
from tritonclient.utils import (
    InferenceServerException,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

PATIENCE = 60


def fails(call, status, *words):
    try:
        call()
    except InferenceServerException as error:
        told(error, status, *words)
    else:
        raise AssertionError(f"expected status {status}")


def told(error, status, *words):
    assert error is not None, f"expected {status} {words}"
    if status:
        assert error.status() == f"StatusCode.{status}", f"{error.status()} is not {status}: {error}"
    for word in words:
        assert word in error.message(), f"{word!r} is not in {error.message()!r}"


def tensor(name, datatype, values):
    return grpc.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def server(client):
    assert client.is_server_live() and client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "blochd", metadata
    assert "model_repository" in metadata.extensions, metadata


def zeros_for(spec):
    shape = [max(dim, 1) for dim in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, dtype=triton_to_np_dtype(spec.datatype))


def each_model(client):
    index = client.get_model_repository_index().models
    ready = [m for m in index if m.state == "READY" and m.name not in ("gate", "begun", "open")]
    assert ready, "no model is ready"
    for line in ready:
        name, version = line.name, line.version
        assert client.is_model_ready(name) and client.is_model_ready(name, version)
        metadata = client.get_model_metadata(name, version)
        assert metadata.name == name and list(metadata.versions) == [version], metadata
        assert version in client.get_model_metadata(name).versions
        config = client.get_model_config(name, as_json=True)["config"]
        assert [i["name"] for i in config["input"]] == [i.name for i in metadata.inputs]
        assert config["backend"] == "onnxruntime" and config["input"][0]["data_type"] != "TYPE_INVALID"
        statistics = lambda: client.get_inference_statistics(name, version).model_stats[0]
        before = statistics().inference_count
        inputs = [tensor(i.name, i.datatype, zeros_for(i)) for i in metadata.inputs]
        outputs = [grpc.InferRequestedOutput(o.name) for o in metadata.outputs]
        answer = client.infer(name, inputs, request_id="7", outputs=outputs)
        response = answer.get_response()
        assert response.id == "7" and response.model_name == name, response
        # Without named outputs all are given.
        again = client.infer(name, inputs)
        for output in metadata.outputs:
            values = answer.as_numpy(output.name)
            assert values is not None and len(values.shape) == len(output.shape)
            if values.dtype != np.object_:
                np.testing.assert_array_equal(values, again.as_numpy(output.name), output.name)
        assert statistics().inference_count >= before + 2
        assert statistics().inference_stats.compute_infer.ns > 0


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

# The fields of typed contents.
FIELDS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}


def check(answer, types):
    for word, values in types.items():
        back = answer.as_numpy(f"out_{word}")
        if word == "BYTES":
            assert list(back.flatten()) == list(values.flatten()), back
        else:
            assert same(back, values), (word, back)


def every_type(client, model):
    rows = {word: np.repeat(values, 5, axis=0) for word, values in TYPES.items()}
    for types in (TYPES, rows):
        inputs = [tensor(f"in_{word}", word, values) for word, values in types.items()]
        check(client.infer(model, inputs, timeout=60_000_000, priority=1), types)
    inputs = [tensor(f"in_{word}", word, values) for word, values in TYPES.items()]
    # Parameters of sequences mean nothing to a model without state.
    check(client.infer(model, inputs, sequence_id=3, sequence_start=True), TYPES)
    # Two outputs of fourteen, in the order that is asked for.
    wanted = [grpc.InferRequestedOutput("out_INT8"), grpc.InferRequestedOutput("out_FP32")]
    response = client.infer(model, inputs, outputs=wanted).get_response()
    assert [output.name for output in response.outputs] == ["out_INT8", "out_FP32"]
    asynchronous(client, model, inputs)
    streamed(client, model, inputs)
    wrong_requests(client, model, inputs)


def typed_contents(target, model):
    """What the client's own classes never send: numbers in fields of their type."""
    import grpc as grpcio
    from tritonclient.grpc import service_pb2_grpc

    channel = grpcio.insecure_channel(target)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.ModelInferRequest(model_name=model, id="typed")
    for word, values in TYPES.items():
        tensor = request.inputs.add(name=f"in_{word}", datatype=word, shape=values.shape)
        if word in FIELDS:
            getattr(tensor.contents, FIELDS[word]).extend(values.flatten().tolist())
    try:
        stub.ModelInfer(request)
    except grpcio.RpcError as error:
        # FP16 and BF16 have no field.
        assert error.code() == grpcio.StatusCode.INVALID_ARGUMENT, error
        assert "in_FP16" in error.details(), error
    else:
        raise AssertionError("FP16 without data was taken")
    for word, field in FIELDS.items():
        request = service_pb2.ModelInferRequest(model_name=f"echo_{word}")
        values = TYPES[word]
        tensor = request.inputs.add(name="in", datatype=word, shape=values.shape)
        getattr(tensor.contents, field).extend(values.flatten().tolist())
        back = grpc.InferResult(stub.ModelInfer(request)).as_numpy("out")
        assert list(back.flatten()) == list(values.flatten()), (word, back)
    channel.close()


def asynchronous(client, model, inputs):
    answers = queue.Queue()
    take = lambda result, error: answers.put((result, error))
    calls = [client.async_infer(model, inputs, take) for _ in range(2)]
    for _ in calls:
        result, error = answers.get(timeout=PATIENCE)
        assert error is None, error
        check(result, TYPES)
    client.async_infer("nowhere", inputs, take)
    told(answers.get(timeout=PATIENCE)[1], "NOT_FOUND", "'nowhere'")


async def with_asyncio(target, model):
    async with aio.InferenceServerClient(target) as client:
        inputs = [tensor(f"in_{word}", word, values) for word, values in TYPES.items()]
        for answer in await asyncio.gather(*(client.infer(model, inputs) for _ in range(2))):
            check(answer, TYPES)

        async def requests():
            for number in range(20):
                name = "nowhere" if number == 7 else model
                yield {"model_name": name, "inputs": inputs, "request_id": str(number)}

        number = 0
        async for result, error in client.stream_infer(requests()):
            if number == 7:
                told(error, None, "'nowhere'")
            else:
                assert error is None, error
                assert result.get_response().id == str(number), (number, result.get_response().id)
                check(result, TYPES)
            number += 1
        assert number == 20, number


def streamed(client, model, inputs):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(50):
        name = "nowhere" if number == 20 else model
        client.async_stream_infer(name, inputs, request_id=str(number))
    for number in range(50):
        result, error = answers.get(timeout=PATIENCE)
        if number == 20:
            told(error, None, "'nowhere'")
            continue
        assert error is None, error
        assert result.get_response().id == str(number)
        check(result, TYPES)
    client.stop_stream()
    assert answers.empty()


def wrong_requests(client, model, inputs):
    infer = lambda inputs, **more: lambda: client.infer(model, inputs, **more)
    wrong = "INVALID_ARGUMENT"
    fails(infer(inputs[1:]), wrong, "in_FP32", "FP32 [-1,2]")
    extra = tensor("other", "FP32", TYPES["FP32"])
    fails(infer(inputs + [extra]), wrong, "'other'")
    flat = [tensor("in_FP32", "FP32", np.zeros(2, np.float32))] + inputs[1:]
    fails(infer(flat), wrong, "in_FP32", "expected [-1,2], got [2]")
    typed = [tensor("in_FP32", "FP64", np.zeros((1, 2)))] + inputs[1:]
    fails(infer(typed), wrong, "in_FP32", "FP64", "FP32")
    no_text = tensor("in_BYTES", "BYTES", np.array([[b"\xff", b""]], np.object_))
    fails(infer(inputs[:-1] + [no_text]), wrong, "in_BYTES", "UTF-8")
    nowhere = [grpc.InferRequestedOutput("nowhere")]
    fails(infer(inputs, outputs=nowhere), wrong, "'nowhere'")
    classes = [grpc.InferRequestedOutput("out_FP32", class_count=2)]
    fails(infer(inputs, outputs=classes), wrong, "classification")
    fails(infer(inputs, compression_algorithm="gzip"), "UNIMPLEMENTED", "compressed")
    large = [tensor("in_FP32", "FP32", np.zeros((200_000, 2), np.float32))] + inputs[1:]
    fails(infer(large), "RESOURCE_EXHAUSTED", "more than the limit of 1048576")


def unknown_names(client, admin):
    value = tensor("x", "FP32", np.zeros(1, np.float32))
    fails(lambda: client.infer("nowhere", [value]), "NOT_FOUND", "'nowhere'")
    fails(lambda: client.get_model_metadata("nowhere"), "NOT_FOUND", "'nowhere'")
    fails(lambda: admin.load_model("nowhere"), "NOT_FOUND", "nowhere")
    fails(lambda: client.get_inference_statistics("nowhere"), "NOT_FOUND", "nowhere")
    assert not client.is_model_ready("nowhere")
    fails(lambda: client.get_trace_settings(), "UNIMPLEMENTED")
    fails(lambda: client.get_cuda_shared_memory_status(), "UNIMPLEMENTED", "CUDA")


def reload(client, admin, model):
    index = lambda: client.get_model_repository_index().models
    state = lambda: [line.state for line in index() if line.name == model]
    if admin is not client:
        refused = "PERMISSION_DENIED", "loaded and unloaded"
        fails(lambda: client.unload_model(model), *refused)
        fails(lambda: client.load_model(model), *refused)
    admin.unload_model(model)
    assert "READY" not in state() and not client.is_model_ready(model)
    value = tensor("x", "FP32", np.zeros(1, np.float32))
    fails(lambda: client.infer(model, [value]), "UNAVAILABLE", model, "try again after")
    admin.load_model(model)
    assert "READY" in state() and client.is_model_ready(model)
    fails(lambda: admin.load_model(model, config="{}"), "INVALID_ARGUMENT", "config")


def broken(client, admin, model):
    """A model whose file is not sound: in the index with its reason, and not loaded by asking."""
    index = client.get_model_repository_index().models
    lines = [line for line in index if line.name == model]
    assert [line.state for line in lines] == ["UNAVAILABLE"] and "offset" in lines[0].reason, lines
    assert not client.is_model_ready(model)
    fails(lambda: admin.load_model(model), "INVALID_ARGUMENT", "model.onnx", "offset")


def gate(client, model):
    """Deadlines and cancelled calls, while the only session is taken."""
    value = [tensor("x", "FP32", np.ones(1, np.float32))]
    answers, cancelled = queue.Queue(), queue.Queue()
    client.async_infer(model, value, lambda result, error: answers.put((result, error)))
    client.infer("begun", value)
    late = "DEADLINE_EXCEEDED"
    fails(lambda: client.infer(model, value, timeout=5_000), late)
    fails(lambda: client.infer(model, value, client_timeout=0.05), late)
    take = lambda result, error: cancelled.put(error)
    client.async_infer(model, value, take).cancel()
    told(cancelled.get(timeout=PATIENCE), "CANCELLED")
    client.start_stream(take)
    client.async_stream_infer(model, value)
    client.stop_stream(cancel_requests=True)
    told(cancelled.get(timeout=PATIENCE), "CANCELLED")
    client.infer("open", value)
    result, error = answers.get(timeout=PATIENCE)
    assert error is None and result.as_numpy("x")[0] == 1, error


def placed(types):
    """Each tensor's bytes, one behind the other with a hole between them."""
    place, offset = {}, 0
    for word, values in types.items():
        data = serialize_byte_tensor(values).item() if word == "BYTES" else values.tobytes()
        place[word] = (offset, data)
        offset += len(data) + 24
    return place, offset


def shared_memory(client, module, model):
    """All inputs out of one region and all outputs into another."""
    # As Triton's examples begin; of CUDA's regions there are none, and forgetting them is no error.
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("nowhere")
    place, size = placed(TYPES)
    key = f"blochd_test_{os.getpid()}"
    given = shm.create_shared_memory_region("given", f"{key}_in", size)
    taken = shm.create_shared_memory_region("taken", f"{key}_out", size + 64)
    try:
        for offset, data in place.values():
            shm.set_shared_memory_region(given, [np.frombuffer(data, np.uint8)], offset)
        client.register_system_shared_memory("given", f"{key}_in", size)
        client.register_system_shared_memory("taken", f"/{key}_out", size, offset=64)
        status = client.get_system_shared_memory_status()
        names = status.regions if module is grpc else [region["name"] for region in status]
        assert set(names) == {"given", "taken"}, status
        again = lambda: client.register_system_shared_memory("given", f"{key}_in", size)
        fails(again, "ALREADY_EXISTS" if module is grpc else None, "already")
        inputs, outputs = [], []
        for word, (offset, data) in place.items():
            tensor = module.InferInput(f"in_{word}", TYPES[word].shape, word)
            tensor.set_shared_memory("given", len(data), offset=offset)
            inputs.append(tensor)
            output = module.InferRequestedOutput(f"out_{word}")
            output.set_shared_memory("taken", len(data), offset=offset)
            outputs.append(output)
        answer = client.infer(model, inputs, outputs=outputs)
        for word, (offset, data) in place.items():
            back = bytes(taken._mpsm_handle.buf[64 + offset : 64 + offset + len(data)])
            assert back == data, word
            output = answer.get_output(f"out_{word}")
            shape = output.shape if module is grpc else output["shape"]
            assert list(shape) == list(TYPES[word].shape), output
            # What lies between the tensors is not written to.
            assert not any(taken._mpsm_handle.buf[64 + offset + len(data) :][:24]), word
        values = shm.get_contents_as_numpy(taken, np.float32, [1, 2], 64 + place["FP32"][0])
        assert same(np.array(values), TYPES["FP32"])
        del values
        # Half of the tensors in shared memory, the others in the message.
        mixed = [
            shared if at % 2 else module.InferInput(f"in_{word}", TYPES[word].shape, word)
            for at, (word, shared) in enumerate(zip(TYPES, inputs))
        ]
        for at, (word, tensor) in enumerate(zip(TYPES, mixed)):
            if at % 2 == 0:
                tensor.set_data_from_numpy(TYPES[word])
        check(client.infer(model, mixed), TYPES)
        wrong_regions(client, module, model, inputs, given)
    finally:
        client.unregister_system_shared_memory()
        assert not any(r for r in regions_of(client, module))
        shm.destroy_shared_memory_region(given)
        shm.destroy_shared_memory_region(taken)


def regions_of(client, module):
    status = client.get_system_shared_memory_status()
    return list(status.regions) if module is grpc else status


def wrong_regions(client, module, model, inputs, given):
    code = (lambda word: word) if module is grpc else (lambda word: None)
    first = module.InferInput("in_FP32", [1, 2], "FP32")
    rest = inputs[1:]
    for region, size, offset, status, words in [
        ("nowhere", 8, 0, "NOT_FOUND", "'nowhere'"),
        ("given", 8, 1 << 40, "INVALID_ARGUMENT", "no part of the shared memory region"),
        ("given", 4, 0, "INVALID_ARGUMENT", "expected 8"),
    ]:
        first.set_shared_memory(region, size, offset=offset)
        fails(lambda: client.infer(model, [first] + rest), code(status), words)
    small = module.InferRequestedOutput("out_FP32")
    small.set_shared_memory("taken", 7)
    fails(lambda: client.infer(model, inputs, outputs=[small]), code("INVALID_ARGUMENT"), "takes 8")
    outside = lambda key: lambda: client.register_system_shared_memory("other", key, 8)
    fails(outside("../etc/hostname"), code("INVALID_ARGUMENT"), "not the name")
    fails(outside("/blochd_test_missing"), code("NOT_FOUND"), "cannot be opened")
    beyond = lambda: client.register_system_shared_memory("other", given._shm_key, 1 << 30)
    fails(beyond, code("INVALID_ARGUMENT"), "no part of the shared memory object")
    # A client that cuts its object short is told so; the server lives on.
    os.truncate(f"/dev/shm/{given._shm_key}", 4)
    fails(lambda: client.infer(model, inputs), code("INVALID_ARGUMENT"), "shorter than")
    assert client.is_server_live()


def no_memory(client):
    assert "system_shared_memory" not in client.get_server_metadata().extensions
    off = "UNIMPLEMENTED", "not switched on"
    fails(lambda: client.get_system_shared_memory_status(), *off)
    fails(lambda: client.register_system_shared_memory("r", "/r", 1), *off)
    fails(lambda: client.unregister_cuda_shared_memory(), *off)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--types")
    parser.add_argument("--reload")
    parser.add_argument("--broken")
    parser.add_argument("--gate")
    parser.add_argument("--http")
    parser.add_argument("--admin")
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args()
    client = grpc.InferenceServerClient(args.target)
    admin = grpc.InferenceServerClient(args.admin) if args.admin else client
    server(client)
    each_model(client)
    unknown_names(client, admin)
    if args.types:
        every_type(client, args.types)
        asyncio.run(with_asyncio(args.target, args.types))
        typed_contents(args.target, args.types)
    if args.gate:
        gate(client, args.gate)
    if args.no_memory:
        no_memory(client)
    if args.http:
        shared_memory(client, grpc, args.types)
        rest = http.InferenceServerClient(args.http)
        shared_memory(rest, http, args.types)
        rest.close()
    if args.reload:
        reload(client, admin, args.reload)
    if args.broken:
        broken(client, admin, args.broken)
    client.close()
    print("tritonclient over gRPC: all calls answered as expected")


main()
