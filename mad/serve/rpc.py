"""gRPC: the Open Inference Protocol v2 with KServe's messages."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import grpc

from mad.errors import MadError
from mad.serve.model import MODEL_VERSION, Plane
from mad.serve.sdk import InferenceServicer, ModelRepositoryExtension, messages, stubs
from mad.serve.service import Service
from mad.serve.wire import Refused, of_grpc, say

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.RESOURCE_EXHAUSTED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Servicer(InferenceServicer):
    """KServe's servicer with keys and budgets; models are neither loaded nor unloaded."""

    def __init__(self, service: Service) -> None:
        plane = Plane(service)
        super().__init__(plane, ModelRepositoryExtension(plane.model_registry))
        self.service, self.plane = service, plane

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Answer images with posteriors, or with labels."""
        began, status = time.perf_counter(), "INTERNAL"
        try:
            client = self.service.admit(key_of(context))
            self.plane.known(request.model_name, request.model_version)
            self.service.pace(client)
            question = of_grpc(request, self.service.shape)
            answers = await self.service.answer(client, question)
            status = "OK"
            return question.response(self.service.name, answers, grpc=True).to_grpc()
        except Refused as refused:
            status = CODES[refused.status].name
            await aborted(context, refused)
        except Exception as error:
            say(f"internal error, {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        finally:
            self.service.counted("grpc", status, began)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Describe the model."""
        try:
            self.service.admit(key_of(context))
            self.plane.known(request.name, request.version)
            found = await self.plane.model_metadata(request.name)
        except Refused as refused:
            await aborted(context, refused)
        kept = {name: found[name] for name in ("name", "platform", "inputs", "outputs")}
        return messages.ModelMetadataResponse(versions=[MODEL_VERSION], **kept)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Tell whether the model answers."""
        try:
            self.plane.known(request.name, request.version)
        except Refused as refused:
            await aborted(context, refused)
        return await super().ModelReady(request, context)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> None:
        """Refuse."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "models are not loaded here")

    async def RepositoryModelUnload(self, request: Any, context: Any) -> None:
        """Refuse."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "models are not unloaded here")


def server(service: Service, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Return a gRPC server that is not started, and its port.

    Raises:
        MadError: if the port cannot be used.
    """
    most = service.shape.bytes
    options = [("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)]
    found = grpc.aio.server(options=options, maximum_concurrent_rpcs=service.settings.connections)
    stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(service), found)
    where = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
    try:
        return found, found.add_insecure_port(where)
    except RuntimeError as error:
        raise MadError(
            f"grpc_port={port} of {host} cannot be listened on: choose another, or grpc_port=null"
        ) from error


def key_of(context: Any) -> str | None:
    """Return what a call's metadata say under ``authorization``."""
    return next((value for name, value in context.invocation_metadata() or () if name == "authorization"), None)


async def aborted(context: Any, refused: Refused) -> NoReturn:
    """End a call with the status and the line of a refusal."""
    headers = tuple((name.lower(), value) for name, value in refused.headers.items())
    await context.abort(CODES[refused.status], refused.text, headers)
    raise AssertionError  # abort raises
