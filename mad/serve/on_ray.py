"""A deployment on Ray Serve: the same REST application, in replicas that Ray starts. See docs/deploy.md.

Ray has a proxy of its own in front, which takes ``host`` and ``port``; there is no gRPC here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from mad.errors import MadError, check_number, near
from mad.serve.settings import Settings


def build(words: dict[str, Any]) -> Any:
    """Return Ray Serve's application; what ``import_path: mad.serve.on_ray:build`` calls with the YAML's ``args``.

    Args:
        words: ``deployment``, the folder of an exported deployment; ``replicas`` (default 1), of which each computes in
            a process of its own; and ``Settings`` of the server.

    Raises:
        MadError: if a word is wrong, if there is neither ``clients`` nor ``open``, if Ray Serve is not installed, or
            if a ``stateful`` defense is to have several replicas.
    """
    words = dict(words)
    folder, replicas = words.pop("deployment", None), words.pop("replicas", 1)
    if not isinstance(folder, str) or not folder:
        raise MadError(f"deployment must be the folder of an exported deployment, got {folder!r}")
    check_number("replicas", replicas, 1, whole=True)
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in words:
        if name not in known:
            raise MadError(
                f"unknown key {name!r}: choose from deployment, replicas, {', '.join(known)}{near(name, known)}"
            )
    settings = Settings(**words)  # Ray would start replicas again and again that find a wrong one
    if settings.clients is None and not settings.open:
        raise MadError(
            "other machines may reach Ray's proxy, whatever host is: set clients to a file, which mad-serve add-client "
            "makes, or open to true to let anybody ask"
        )
    try:
        from ray import serve
    except ImportError as error:
        raise MadError("this needs Ray Serve: pip install 'ray[serve]'") from error

    def asgi() -> Callable[..., Awaitable[None]]:
        return replica(folder, words, replicas)

    class Replica:
        """Ray's name for one process."""

    deployment: Any = serve.deployment(name="mad", num_replicas=replicas)(serve.ingress(asgi)(Replica))
    return deployment.bind()


def replica(folder: str, words: dict[str, Any], replicas: int) -> Callable[..., Awaitable[None]]:
    """Return the ASGI application of one replica."""
    from mad.deployment import open_deployment
    from mad.device import use_threads
    from mad.serve.check import checked
    from mad.serve.rest import application
    from mad.serve.server import quiet
    from mad.serve.service import Service
    from mad.serve.wire import say

    quiet()
    use_threads(1)
    deployment = open_deployment(folder)
    if deployment.defense.stateful and replicas > 1:
        raise MadError(
            f"defense {deployment.defense.name} remembers queries in its own process: it can have one replica, "
            f"got {replicas}"
        )
    service = Service(deployment, Settings(**words))
    if service.settings.check:
        say(checked(service))
    return application(service)
