"""A deployment on Ray Serve: the same REST application, in replicas that Ray starts. See docs/deploy.md.

Ray has a proxy of its own in front, which takes ``host`` and ``port``; there is no gRPC here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mad.errors import MadError


def build(words: dict[str, Any]) -> Any:
    """Return Ray Serve's application; what ``import_path: mad.serve.on_ray:build`` calls with the YAML's ``args``.

    Args:
        words: ``deployment``, the folder of an exported deployment; ``replicas`` (default 1), of which each computes in
            a process of its own; and ``Settings`` of the server.

    Raises:
        MadError: if Ray Serve is not installed, or if a ``stateful`` defense is to have several replicas.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MadError("this needs Ray Serve: pip install 'ray[serve]'") from error
    words = dict(words)
    folder, replicas = words.pop("deployment"), words.pop("replicas", 1)

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
    from mad.serve.rest import application
    from mad.serve.server import quiet
    from mad.serve.service import Service
    from mad.serve.settings import Settings

    quiet()
    use_threads(1)
    deployment = open_deployment(folder)
    if deployment.defense.stateful and replicas > 1:
        raise MadError(
            f"defense {deployment.defense.name} remembers queries in its own process: it can have one replica, "
            f"got {replicas}"
        )
    return application(Service(deployment, Settings(**words)))
