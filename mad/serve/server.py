"""Both servers in one process, from the first check to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from mad.deployment import Deployment
from mad.errors import MadError
from mad.serve import rpc
from mad.serve.check import checked
from mad.serve.rest import CLOSES, application, said
from mad.serve.service import Service
from mad.serve.settings import Settings
from mad.serve.wire import Refused, say

Application = Callable[..., Awaitable[None]]  # of ASGI
IDLE = 65  # seconds that a connection may be without a request
BACKLOG = 1024  # connections that wait to be accepted
GRACE = 10  # seconds for answers under way when the server is stopped


class Server(uvicorn.Server):
    """uvicorn's server, which ends when its service is ``closing``; signals are handled by ``serving``."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; asked ten times a second."""
        return await super().on_tick(counter) or self.service.closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def serve(
    deployment: Deployment, settings: Settings, started: Callable[[int, int | None], None] = lambda port, grpc: None
) -> None:
    """Serve a deployment until SIGINT or SIGTERM.

    Args:
        deployment: what answers.
        settings: see ``Settings``.
        started: called with the ports of REST and gRPC, once both can be asked.

    Raises:
        MadError: if a file or port cannot be used, or if ``settings.check`` finds another answer.
    """
    quiet()
    service = Service(deployment, settings)
    try:
        if settings.check:
            say(checked(service))
        asyncio.run(serving(service, started))
    finally:
        service.close()


def quiet() -> None:
    """Silence the libraries' own logs: what is to be told is told in one line."""
    for each in ("uvicorn", "grpc", "asyncio"):
        logging.getLogger(each).setLevel(logging.CRITICAL + 1)


async def serving(service: Service, started: Callable[[int, int | None], None]) -> None:
    """Serve until a signal comes, or the service is ``closing``."""
    settings = service.settings
    listening = listener(settings.host, settings.port)
    port, grpc_port, remote = listening.getsockname()[1], None, None
    if settings.grpc_port is not None:
        remote, grpc_port = rpc.server(service, settings.host, settings.grpc_port)
        await remote.start()
    config = uvicorn.Config(
        limited(application(service), lambda: len(server.server_state.connections) > settings.connections),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=GRACE,
        ws="none",
    )
    server = Server(config, service)

    def stop() -> None:
        service.closing = True

    for each in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
            asyncio.get_running_loop().add_signal_handler(each, stop)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if server.started:
        started(port, grpc_port)
    await task
    if remote is not None:
        await remote.stop(GRACE)


def limited(app: Application, crowded: Callable[[], bool]) -> Application:
    """Return an ASGI application that refuses in place of another while there are too many connections."""

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        refusing = scope["type"] == "http" and crowded()
        answer = said(Refused(503, "too many connections at a time", wait=1, headers=CLOSES)) if refusing else app
        await answer(scope, receive, send)

    return asked


def listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        MadError: if it cannot.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        # Its protocol has to be TCP by number: for any other asyncio leaves Nagle's algorithm on, some 40 ms an answer.
        found = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(where)
            found.listen(BACKLOG)
        except OSError:
            found.close()
            raise
        return found
    except (OSError, UnicodeError) as error:  # what no name of a host can be, such as a..b
        why = getattr(error, "strerror", None) or "no address"
        raise MadError(f"port={port} of {host} cannot be listened on ({why}): take another, or 0 for any") from error
