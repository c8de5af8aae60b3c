"""What is no valid gRPC request gets a status and one line, and costs no query."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("kserve")
pytestmark = pytest.mark.serve

from serving_toys import SHAPE, pictures  # noqa: E402


def test_grpc_requests_that_are_not_valid(server, answered):
    import grpc

    from mad.serve.sdk import messages, stubs

    tensor = messages.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=[1, *SHAPE])
    numbers, typed = pictures(1).numpy(), messages.InferTensorContents(fp32_contents=[0.5] * 64)

    right = [numbers.tobytes()]

    def asked(raw=right, contents=None, model="toy", **what):
        given = messages.ModelInferRequest.InferInputTensor()
        given.CopyFrom(tensor)
        for name, value in what.items():
            if name == "shape":
                del given.shape[:]
                given.shape.extend(value)
            else:
                setattr(given, name, value)
        if contents is not None:
            given.contents.CopyFrom(contents)
        return messages.ModelInferRequest(model_name=model, inputs=[given], raw_input_contents=raw)

    wrong = [
        asked(raw=[]),
        asked(raw=[b"123"]),
        asked(raw=[numbers.tobytes()] * 2),
        asked(contents=typed),
        asked(raw=[], contents=typed, datatype="FP16"),
        asked(raw=[], contents=typed, datatype="FP64"),
        asked(name="pixels"),
        asked(datatype="BYTES"),
        asked(shape=[2, *SHAPE]),
        asked(shape=[-1, *SHAPE]),
        asked(shape=[2**62, *SHAPE]),
        asked(raw=[np.full(64, np.nan, "<f4").tobytes()]),
        messages.ModelInferRequest(model_name="toy"),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        for request in wrong:
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request, timeout=20)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert len(caught.value.details().splitlines()) == 1
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(asked(model="other"), timeout=20)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        for call in (stub.RepositoryModelUnload, stub.RepositoryModelLoad):
            with pytest.raises(grpc.RpcError) as caught:
                call(messages.RepositoryModelUnloadRequest(model_name="toy"), timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        noise = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for sent in (os.urandom(100), b"\xff" * 10):
            with pytest.raises(grpc.RpcError):
                noise(sent, timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            noise(bytes(server.service.shape.bytes + 100), timeout=20)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        found = stub.ModelInfer(asked(raw=[], contents=typed), timeout=20)
        answered.append(1)
    assert len(found.raw_output_contents) == 1
    assert torch.frombuffer(bytearray(found.raw_output_contents[0]), dtype=torch.float32).sum() == pytest.approx(1)
