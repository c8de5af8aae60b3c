"""The parts of KServe's SDK that are used; no other module imports it."""

from __future__ import annotations

import sys

from mad.errors import MadError

words, sys.argv = sys.argv, sys.argv[:1]  # KServe reads the command line when it is imported
try:
    from kserve import InferOutput, InferResponse, Model, ModelRepository
    from kserve.errors import ModelNotFound, ModelNotReady, ServerNotReady
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs
    from kserve.protocol.grpc.servicer import InferenceServicer
    from kserve.protocol.infer_type import RequestedOutput, to_http_parameters
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest import v2_datamodels as bodies
    from kserve.protocol.rest.v2_endpoints import V2Endpoints
except ImportError as problem:
    raise MadError(f"serving needs KServe's SDK ({problem}): pip install 'mad[serve]'") from problem
finally:
    sys.argv = words

__all__ = [
    "DataPlane",
    "InferOutput",
    "InferResponse",
    "InferenceServicer",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelRepository",
    "ModelRepositoryExtension",
    "RequestedOutput",
    "ServerNotReady",
    "V2Endpoints",
    "bodies",
    "messages",
    "stubs",
    "to_http_parameters",
]
