"""The address of a service, as it may be given and shown."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from mad.errors import MadError


def address(url: Any) -> str:
    """Return an address without a slash at its end.

    Raises:
        MadError: if it is not http(s), or holds what requests would have to leave out or must not show.
    """
    try:
        parts = urlsplit(url.strip() if isinstance(url, str) else "")
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        known = False
    if known and (parts.username is not None or parts.query or parts.fragment):
        # Not shown: it may hold a password.
        raise MadError("victim.url must hold no password and no query: set victim.service.token to a token's variable")
    if not known or not url.strip().isprintable() or " " in url.strip():
        raise MadError(f"victim.url must be an address such as http://localhost:8080/v2/models/NAME, got {url!r}")
    whole = url.strip().rstrip("/")
    if whole.endswith(("/infer", "/ready")):
        raise MadError(f"victim.url must end before /infer and /ready, got {url!r}")
    return whole
