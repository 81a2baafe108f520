"""FastAPI as somebody writes it who wants it fast: bytes in, bytes out, one session on one thread.

uvicorn servers.fastapi_app:app, with the model's file in SERVING_MODEL.
"""

import os

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request, Response

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(
    os.environ["SERVING_MODEL"], options, providers=["CPUExecutionProvider"]
)
[input_] = session.get_inputs()
shape = [size if isinstance(size, int) else 1 for size in input_.shape]
app = FastAPI()


@app.get("/ready")
async def ready():
    return {}


# In the event loop: a hop to another thread and back costs more than it gives where there is one session.
@app.post("/infer")
async def infer(request: Request):
    values = np.frombuffer(await request.body(), dtype=np.float32).reshape(shape)
    [output] = session.run(None, {input_.name: values})
    return Response(output.tobytes(), media_type="application/octet-stream")
