"""REST: the Open Inference Protocol v2 over HTTP, its description in OpenAPI, and Prometheus's page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from mad import __version__
from mad.serve.model import Plane
from mad.serve.sdk import ModelNotReady, ServerNotReady, V2Endpoints, bodies
from mad.serve.service import Service
from mad.serve.wire import DATATYPES, INPUT, LABELS, POSTERIORS, Refused, Shape, of_rest, say

CLOSES = {"Connection": "close"}
JSON_LENGTH = "Inference-Header-Content-Length"
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, what in {
        400: "The request is not valid.",
        401: "There is no such key.",
        403: "The budget is spent, or the key may not do this.",
        404: "There is no such model.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body is compressed.",
        429: "The key asks too often.",
        503: "This cannot be answered now.",
    }.items()
}


def application(service: Service) -> Callable[..., Awaitable[None]]:
    """Return the ASGI application of a service."""
    app = FastAPI(title="mad-serve", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    plane = Plane(service)
    kserve = V2Endpoints(plane)
    model = "/v2/models/{model_name}"

    def get(path: str, endpoint: Callable[..., Any], **about: Any) -> None:
        app.add_api_route(path, endpoint, methods=["GET"], **about)

    async def ready(model_name: str, model_version: str | None = None) -> Any:
        """Tell whether the model answers."""
        plane.known(model_name, model_version)
        return await kserve.model_ready(model_name)

    async def metadata(request: Request, model_name: str, model_version: str | None = None) -> Any:
        """Describe the model: names, datatypes and shapes of its tensors, and the names of its classes."""
        service.admit(request.headers.get("authorization"))
        plane.known(model_name, model_version)
        return JSONResponse(await plane.model_metadata(model_name))

    async def infer(request: Request, model_name: str, model_version: str | None = None) -> Response:
        """Answer images with posteriors, or with labels."""
        client = service.admit(request.headers.get("authorization"))
        plane.known(model_name, model_version)
        service.pace(client)
        body = await body_of(request, service)
        question = of_rest(body, request.headers.get(JSON_LENGTH), service.shape)
        answers = await service.answer(client, question)
        content, length = question.response(service.name, answers).to_rest()
        if length is None:
            return Response(orjson.dumps(content), media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={JSON_LENGTH: str(length)})

    async def metrics(request: Request) -> Response:
        """Tell Prometheus the counters."""
        if not service.admit(request.headers.get("authorization")).operator:
            raise Refused(403, "this key reads no metrics: mad-serve add-client NAME operator=true makes one that does")
        return Response(service.told(), media_type=CONTENT_TYPE_LATEST)

    get("/v2", kserve.metadata, response_model=bodies.ServerMetadataResponse)
    get("/v2/health/live", kserve.live, response_model=bodies.ServerLiveResponse)
    get("/v2/health/ready", kserve.ready, response_model=bodies.ServerReadyResponse)
    get("/v2/models", kserve.models, response_model=bodies.ListModelsResponse)
    for path, listed in ((model, True), (f"{model}/versions/{{model_version}}", False)):
        get(path, metadata, include_in_schema=listed, response_model=None, responses=only(401, 404))
        about = {"response_model": bodies.ModelReadyResponse, "responses": only(404, 503)}
        get(f"{path}/ready", ready, include_in_schema=listed, **about)
        app.add_api_route(
            f"{path}/infer",
            infer,
            methods=["POST"],
            include_in_schema=listed,
            response_model=None,
            responses={200: {"model": bodies.InferenceResponse}, **REFUSALS},
            openapi_extra={"requestBody": {"required": True, "content": described(service.shape)}},
        )
    get("/metrics", metrics, response_class=Response, responses=only(401, 403))
    app.add_exception_handler(Refused, lambda _, error: said(error))
    app.add_exception_handler(
        HTTPException, lambda _, error: said(Refused(error.status_code, str(error.detail).lower()))
    )
    for kind in (ServerNotReady, ModelNotReady):
        app.add_exception_handler(kind, lambda _, error: said(Refused(503, "no request is answered now", wait=5)))
    app.add_exception_handler(Exception, lambda _, error: said(Refused(500, "internal error")))
    describe(app.openapi(), service)
    return counting(app, service)


def describe(told: dict[str, Any], service: Service) -> None:
    """Complete the OpenAPI description of a service, which the application keeps."""
    told["components"]["schemas"]["Error"] = {"type": "object", "properties": {"error": {"type": "string"}}}
    told["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    told["security"] = [] if service.settings.clients is None else [{"key": []}]
    for operation in (each for path in told["paths"].values() for each in path.values()):
        operation["responses"].pop("422", None)  # FastAPI's own, which nothing here is refused with
        for parameter in operation.get("parameters", []):
            parameter["schema"] = {"enum": [service.name]}


def counting(app: FastAPI, service: Service) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that counts the requests to another, and says in one line what it raises."""

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        began, status = time.perf_counter(), "500"

        async def sending(message: Any) -> None:
            nonlocal status
            status = str(message["status"]) if message["type"] == "http.response.start" else status
            await send(message)

        try:
            await app(scope, receive, sending)
        except Exception as error:  # it is answered already
            say(f"internal error, {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if scope["path"].endswith("/infer"):
            service.counted("rest", status, began)

    return counted


async def body_of(request: Request, service: Service) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: with 413 or 415 if it is too large or compressed, with 408 if it does not arrive in time.
    """
    most, length = service.shape.bytes, request.headers.get("content-length", "0")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "the body must not be compressed")
    if not length.isdigit() or int(length[:18]) > most:
        raise Refused(413, f"the body must have up to {most} bytes", headers=CLOSES)

    async def whole() -> bytes:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > most:
                raise Refused(413, f"the body must have up to {most} bytes", headers=CLOSES)
        return bytes(content)

    try:
        return await asyncio.wait_for(whole(), service.settings.timeout)
    except (asyncio.TimeoutError, TimeoutError) as error:
        text = f"the body must arrive within {service.settings.timeout:g} s"
        raise Refused(408, text, headers=CLOSES) from error


def refusal(error: Any) -> Refused:
    """Return what starlette refuses, such as an address that is not there."""
    return Refused(error.status_code, str(error.detail).lower())


def said(refused: Refused) -> JSONResponse:
    """Return the response of a refusal."""
    return JSONResponse({"error": refused.text}, refused.status, refused.headers)


def only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of some refusals."""
    return {status: REFUSALS[status] for status in statuses}


def described(shape: Shape) -> dict[str, Any]:
    """Return the OpenAPI description of a request's body."""
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"const": INPUT},
            "shape": {
                "type": "array",
                "prefixItems": [
                    {"type": "integer", "minimum": 1, "maximum": shape.most},
                    *({"const": side} for side in shape.image),
                ],
                "minItems": 4,
                "maxItems": 4,
            },
            "datatype": {"enum": [name for name in DATATYPES if name != "FP16"]},
            "data": {"type": "array", "description": "The numbers, images in [0, 1], or 0 to 255 for UINT8."},
            "parameters": {"type": "object"},
        },
    }
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"enum": [POSTERIORS, LABELS]},
            "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
        },
    }
    asked = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": 128},
            "parameters": {
                "type": "object",
                "properties": {LABELS: {"type": "boolean"}, "binary_data_output": {"type": "boolean"}},
            },
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output, "maxItems": 2},
        },
    }
    binary = {"type": "string", "format": "binary", "description": f"JSON of {JSON_LENGTH} bytes, then the tensor's."}
    return {"application/json": {"schema": asked}, "application/octet-stream": {"schema": binary}}
