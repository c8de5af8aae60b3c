"""Requests to one HTTP service: retries, a shared rate, and errors of one line. Nothing here knows what is asked."""

from __future__ import annotations

import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from mad.errors import MadError
from mad.progress import err

AGAIN = (408, 429, 500, 502, 503, 504)  # what may pass; any other answer than 200 will not
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between tries, which double
LONGEST_ASKED = 600.0  # seconds that a service may make us wait by Retry-After
SHOWN = 200  # characters of a server's message
QUIET = 10.0  # seconds between two lines about retries and progress


class Malformed(MadError):
    """An answer of HTTP 200 that is none; another try may bring one. Its text goes on a sentence after the address."""


def library() -> ModuleType:
    """Return the module ``requests``, which is imported only here.

    Raises:
        MadError: if it is not installed.
    """
    try:
        import requests
    except ImportError as error:
        raise MadError("a service needs requests: pip install 'mad[http]'") from error
    return requests


def secret(variable: str | None) -> str | None:
    """Return the token that an environment variable holds; None for no variable.

    Raises:
        MadError: if it is not set, or holds what no header can; the token itself is never shown.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise MadError(
            f"the environment variable {variable} is not set: victim.service.token names the one that holds the token"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise MadError(f"the environment variable {variable} holds no token: it has spaces or characters beyond ASCII")
    return token


class Pace:
    """At most ``rate`` turns a second, shared by threads; None for no limit. Turns are given out in advance."""

    def __init__(self, rate: float | None, clock: Callable[[], float]) -> None:
        self._gap, self._clock, self._lock = 1 / rate if rate else 0.0, clock, threading.Lock()
        self.next = 0.0

    def wait(self) -> float:
        """Take a turn, and return the seconds until it comes."""
        with self._lock:
            now = self._clock()
            at = max(now, self.next)
            self.next = at + self._gap
        return at - now

    def follow(self, other: float) -> None:
        """Take no turn before ``other``, which another process left; at most one gap away, as its clock may differ."""
        with self._lock:
            self.next = max(self.next, min(other, self._clock() + self._gap))


class Transport:
    """Requests to one address. Thread-safe; each thread has its own session.

    Args:
        url: the address, which all requests begin with.
        variable: the environment variable that holds a bearer token, or None.
        timeout: seconds until a connection, or the next bytes, must be there.
        retries: how often a request is sent again.
        rate: requests a second, retries included; None for no limit.
        verify: whether to check certificates, or a file of those to trust.
        clock, sleep: replace the time, for tests.

    Raises:
        MadError: if ``requests`` is not installed, or the token is not there.
    """

    def __init__(
        self,
        url: str,
        variable: str | None,
        timeout: float,
        retries: int,
        rate: float | None,
        verify: bool | str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        self._requests = library()
        from urllib3 import disable_warnings, exceptions

        if verify is False:  # once, in place of a warning of two lines a request
            disable_warnings(exceptions.InsecureRequestWarning)
            err.print(f"{url}: its certificate is not checked", soft_wrap=True, markup=False)
        self._others = (self._requests.exceptions.RequestException, exceptions.HTTPError, OSError, ValueError)
        self._token, self._variable = secret(variable), variable
        self._timeout, self._retries, self._verify = timeout, retries, verify
        self.clock, self._own, self._lock = clock, threading.local(), threading.Lock()
        self._sessions: list[Any] = []
        self._said = -QUIET + clock()
        self.url, self.pace = url, Pace(rate, clock)
        self.stop = threading.Event()  # set: nothing is sent again
        self.sleep = sleep or self.stop.wait
        self.again = 0  # how often ``images`` were sent again

    def ask(
        self, path: str = "", body: Callable[[], tuple[bytes, int]] | None = None, read: Callable[[bytes], Any] = bytes
    ) -> Any:
        """GET a path below the address, or POST JSON to it; return what is read of the answer.

        Args:
            path: begins with a slash, or is empty.
            body: makes the JSON to be posted, and counts the images in it, before each try; None for GET.
            read: makes something of the answer; if it raises ``Malformed``, the request is sent again.

        Raises:
            MadError: if it is refused, still fails after the retries, or if ``stop`` is set before it succeeds.
        """
        why = "was not asked"
        for tried in range(self._retries + 1):
            if (turn := self.pace.wait()) > 0:
                self.sleep(turn)
            if self.stop.is_set():
                break
            sent, images = (None, 0) if body is None else body()
            with self._lock:
                self.again += images if tried else 0
            content, why, wait = self._try(path, sent)
            if content is not None:
                try:
                    return read(content)
                except Malformed as error:
                    why = str(error)
            if tried < self._retries:
                self.say(f"{self.url} {why}: tries again")
                self.sleep(max(wait, min(LONGEST_WAIT, FIRST_WAIT * 2**tried) * random.uniform(0.5, 1)))
        raise self.error(f"{why} (tries: {tried + 1})")

    def _try(self, path: str, body: bytes | None) -> tuple[bytes | None, str, float]:
        """Send a request once. Return its answer, or None, why it may be sent again, and after how many seconds.

        Raises:
            MadError: if another try would not help.
        """
        errors = self._requests.exceptions
        try:
            response = self._session().request(
                "GET" if body is None else "POST",
                self.url + path,
                data=body,
                headers={"Content-Type": "application/json"} if body is not None else {},
                timeout=self._timeout,
                verify=self._verify,
                allow_redirects=False,  # the token and the images go to this address and to no other
            )
        except errors.SSLError as error:
            cause, why = first(error), self._clean(root(error))
            if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
                return None, f"cannot be reached, or broke off ({why})", 0.0
            untrusted = isinstance(cause, ssl.SSLCertVerificationError) or not isinstance(cause, ssl.SSLError)
            what = "has no certificate to trust" if untrusted else "cannot be asked over TLS"
            raise self.error(f"{what} ({why})") from error
        except errors.Timeout:
            return None, f"did not answer within {self._timeout:g} s", 0.0
        except (errors.ConnectionError, errors.ChunkedEncodingError) as error:
            return None, f"cannot be reached, or broke off ({self._clean(root(error))})", 0.0
        except self._others as error:
            raise self.error(f"cannot be asked ({self._clean(root(error))})") from error
        status = response.status_code
        if status in (200, 204):
            return response.content, "", 0.0
        said = self._message(response)
        if status in AGAIN:
            return None, f"answers {status}{said}", self._asked(response.headers.get("Retry-After"))
        if status in (401, 403):
            held = f"the token in {self._variable}" if self._variable else "no token: set victim.service.token"
            raise self.error(f"answers {status} to {held}{said}")
        if status == 404:
            raise self.error(f"has no {path or 'model'} (404){said}; the address ends in /v2/models/NAME")
        if 300 <= status < 400:
            raise self.error(f"sends us elsewhere ({status}): set victim.url to the address itself")
        raise self.error(f"answers {status}{said}")

    def error(self, why: str) -> MadError:
        """Return an error that begins with the address."""
        return MadError(f"{self.url} {why}")

    def read(self, content: bytes) -> Any:
        """Return the JSON that an answer holds.

        Raises:
            Malformed: if it holds none.
        """
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            start = self._clean(content[:10_000].decode(errors="replace"))[:40]
            raise Malformed(f"answers what is no JSON: {start!r}") from error

    def _asked(self, header: str | None) -> float:
        """Return the seconds that a Retry-After header asks to wait; 0 for none, or what cannot be read.

        Raises:
            MadError: if they are too many to wait for.
        """
        from urllib3 import Retry
        from urllib3.exceptions import InvalidHeader

        try:
            seconds = Retry().parse_retry_after(header) if header else 0.0
        except (InvalidHeader, OverflowError):
            return 0.0
        if seconds > LONGEST_ASKED:
            raise self.error(f"asks to wait {seconds:.0f} s: start again after that")
        return seconds

    def _message(self, response: Any) -> str:
        """Return what a server says of an error, as ``: text``."""
        try:
            said = json.loads(response.content)
            said = said.get("error") or said.get("detail") or said if isinstance(said, dict) else said
        except (ValueError, RecursionError):
            said = re.sub(r"<[^>]*>", " ", response.text)
        text = self._clean(str(said))
        return f": {text}" if text else ""

    def _clean(self, text: str) -> str:
        """Return a foreign text as a part of a line: short, printable, and without the token, should it be echoed."""
        text = text.replace(self._token, "***") if self._token else text
        return "".join(each if each.isprintable() else " " for each in " ".join(text.split()))[:SHOWN]

    def _session(self) -> Any:
        """Return the session of this thread."""
        if not hasattr(self._own, "session"):
            session = self._requests.Session()
            session.auth = self._authorize  # also without a token: requests would else send what ~/.netrc has
            with self._lock:
                self._sessions.append(session)
            self._own.session = session
        return self._own.session

    def _authorize(self, request: Any) -> Any:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def say(self, line: str) -> None:
        """Print a line on stderr, at most one every few seconds."""
        with self._lock:
            now = self.clock()
            if now - self._said < QUIET:
                return
            self._said = now
        err.print(line, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Close all connections."""
        self.stop.set()
        for session in self._sessions:
            session.close()


def first(error: BaseException) -> BaseException:
    """Return the first cause of an error."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def root(error: BaseException) -> str:
    """Return the first cause of an error in words: what urllib3 and requests wrap around it says no more."""
    cause = first(error)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
