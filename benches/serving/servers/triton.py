"""Triton's own server (the binary in nvidia-pytriton) with ONNX Runtime in its callable, one session on one thread.

python triton.py NAME MODEL HTTP_PORT GRPC_PORT METRICS_PORT
"""

import sys

import numpy as np
import onnxruntime
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

name, model = sys.argv[1:3]
http, grpc, metrics = map(int, sys.argv[3:6])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
[input_], [output_] = session.get_inputs(), session.get_outputs()


def infer(requests):
    answers = []
    for request in requests:
        [output] = session.run(None, {input_.name: request.data[input_.name]})
        answers.append({output_.name: output})
    return answers


config = TritonConfig(
    http_address="127.0.0.1",
    http_port=http,
    grpc_address="127.0.0.1",
    grpc_port=grpc,
    metrics_address="127.0.0.1",
    metrics_port=metrics,
    allow_metrics=False,
)
# perf-analyzer asks for the model's configuration and statistics, which pytriton would keep to itself.
open_ = TritonSecurityConfig(restricted_endpoints=[])
with Triton(config=config, security_config=open_) as triton:
    triton.bind(
        model_name=name,
        infer_func=infer,
        inputs=[Tensor(name=input_.name, dtype=np.float32, shape=tuple(input_.shape))],
        outputs=[Tensor(name=output_.name, dtype=np.float32, shape=tuple(output_.shape))],
        config=ModelConfig(batching=False),
        strict=False,
    )
    triton.serve()
