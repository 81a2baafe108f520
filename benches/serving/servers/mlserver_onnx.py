"""MLServer's runtime for ONNX models, which it has none of: one session on one thread."""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self.output = self.session.get_outputs()[0].name
        return True

    async def predict(self, request: InferenceRequest) -> InferenceResponse:
        inputs = {
            one.name: NumpyCodec.decode_input(one).astype(np.float32, copy=False)
            for one in request.inputs
        }
        [output] = self.session.run(None, inputs)
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(self.output, output)],
        )
