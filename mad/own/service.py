"""A victim that is only reachable over HTTP, by the Open Inference Protocol v2 (KServe, Triton, MLServer).

Only for services that you own, or that you are allowed to test: a study of model stealing sends tens of thousands of
queries, and its result is a copy of the model. Ask the owner before you start.

    service = Service("http://localhost:8080/v2/models/digits", token="DIGITS_TOKEN", rate=20)
    with service.connect((1, 28, 28), 10, cache=Path("outputs/answers")) as connection:
        posteriors = connection(images)

What is sent is JSON; nothing is asked but the address, its ``/ready`` and its ``/infer``.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from mad.datasets.content import place
from mad.errors import MadError, check_choice, check_flag, check_number
from mad.own.address import address
from mad.own.answer_cache import Answers, Rows
from mad.own.transport import QUIET, Malformed, Transport
from mad.own.wire import ANSWERS, DATATYPES, LAYOUTS, agreed, answered
from mad.progress import err
from mad.storage.files import file_name

VARIABLE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"


@dataclass(frozen=True)
class Service:
    """A classifier behind an address. Fields that change no answer are not part of its fingerprint.

    What runs behind the address is not known: a model that is replaced there keeps the fingerprint and the cached
    answers of the old one. Use an address with a version, ``.../versions/1``, where the server has versions.

    Args:
        url: the model's address, ``http://host:port/v2/models/NAME`` or ``.../versions/1``; without password or query.
        answers: what it answers with: ``posteriors`` or ``logits``, (B, K), or ``labels``, integers 0 to K - 1.
        input, output: names of the model's input and output; None for the only one in its metadata.
        layout: ``nchw`` or ``nhwc``; None for what the metadata's shape says.
        datatype: FP32 or FP64 (floats as given), FP16 (rounded; Triton refuses it in JSON), or UINT8 (round(255 * x));
            None for what the metadata says.
        token: NAME of the environment variable that holds a bearer token, in capitals. The token itself is read when
            the connection is made, and is never shown, recorded or sent to another address.
        timeout: seconds until a connection, or the next bytes of an answer, must be there.
        retries: how often a request is sent again after a broken connection, no answer in time, HTTP 408, 429, 500,
            502, 503 or 504, or an answer that is none: broken JSON, NaN. Waits double from half a second to a minute,
            or are what Retry-After asks for.
        rate: requests a second from all processes of this machine that share the cache; None for no limit.
        concurrency: requests at a time, also from all these processes.
        batch: images a request.
        verify: whether to check certificates, or the path of a file with those to trust.

    Raises:
        MadError: if a field is not of this kind.
    """

    url: str
    answers: str = "posteriors"
    input: str | None = None
    output: str | None = None
    layout: str | None = None
    datatype: str | None = None
    token: str | None = field(default=None, compare=False)
    timeout: float = field(default=30.0, compare=False)
    retries: int = field(default=5, compare=False)
    rate: float | None = field(default=None, compare=False)
    concurrency: int = field(default=4, compare=False)
    batch: int = field(default=32, compare=False)
    verify: bool | str = field(default=True, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", address(self.url))
        check_choice("victim.answers", self.answers, ANSWERS)
        for name in ("input", "output"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise MadError(f"victim.service.{name} must be the name of the model's {name}, got {value!r}")
        if self.layout is not None:
            check_choice("victim.service.layout", self.layout, LAYOUTS)
        if self.datatype is not None:
            check_choice("victim.service.datatype", self.datatype, tuple(DATATYPES))
        token = self.token
        if token is not None and (not isinstance(token, str) or not 0 < len(token) <= 64 or {*token} - {*VARIABLE}):
            # Not shown: it may be the token.
            raise MadError(
                "victim.service.token must be the NAME of an environment variable in capitals, like MAD_TOKEN"
            )
        check_number("victim.service.timeout", self.timeout, 0.001, 3600)
        check_number("victim.service.retries", self.retries, 0, 1000, whole=True)
        if self.rate is not None:
            check_number("victim.service.rate", self.rate, 0.001, 1e6)
        check_number("victim.service.concurrency", self.concurrency, 1, 256, whole=True)
        check_number("victim.service.batch", self.batch, 1, 65536, whole=True)
        if not isinstance(self.verify, str):
            check_flag("victim.service.verify", self.verify)

    def connect(
        self,
        shape: Sequence[int],
        classes: int,
        cache: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] | None = None,
    ) -> Connection:
        """Return a connection to the service, once it is ready and its metadata fits.

        Args:
            shape: (C, H, W) of the images.
            classes: K.
            cache: the folder of the files with answers, one a service; None keeps answers in memory only.
            clock, sleep: replace the time, for tests.

        Raises:
            MadError: if it does not answer, is not ready, or takes other images or has other classes.
        """
        verify = str(place(self.verify)) if isinstance(self.verify, str) else self.verify
        if isinstance(verify, str) and not Path(verify).exists():
            raise MadError(f"victim.service.verify: there is no file {verify} with certificates")
        transport = Transport(self.url, self.token, self.timeout, self.retries, self.rate, verify, clock, sleep)
        try:
            transport.ask("/ready")
            return Connection(self, transport, transport.ask(read=transport.read), shape, classes, cache)
        except BaseException:
            transport.close()
            raise

    def cache_file(self, cache: Path) -> Path:
        """Return the file of this service's answers in a folder; its name says the address."""
        parts = urlsplit(self.url)
        said = "".join(each if each.isalnum() else "-" for each in f"{parts.netloc}{parts.path}")
        return cache / f"{file_name(said[:120], hashlib.sha256(self.url.encode()).hexdigest()[:16])}.sqlite"


class Connection:
    """Posteriors of a service, from its cache or by asking it. Thread-safe.

    Each answer is committed to the cache as its response arrives, before it is returned, and also while other requests
    fail. So what was answered is never asked again, by this process or another. Only requests that are under way when a
    process dies, at most ``batch * concurrency`` images, may be asked twice: the protocol has no way to fetch the
    answer to a request from before. The same goes for a request that is sent again after its answer got lost.

    Attributes:
        asked: images that were sent, each counted once.
        cached: images that were not: their answer was known, or they were the same as another of the same call.
        wire: what was agreed on: ``input``, ``output``, ``layout``, ``datatype``, ``shape``, ``classes``.
    """

    def __init__(
        self,
        service: Service,
        transport: Transport,
        metadata: Any,
        shape: Sequence[int],
        classes: int,
        cache: Path | None,
    ) -> None:
        names = {name: getattr(service, name) for name in ("answers", "input", "output", "layout", "datatype")}
        size = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.wire = agreed(metadata, service.url, size, classes, **names)
        self.asked = self.cached = 0
        self._most = min(service.batch, self.wire.most or service.batch)
        self._transport, self._counting = transport, threading.Lock()
        self._answers = Answers(None if cache is None else service.cache_file(cache))
        self._threads = ThreadPoolExecutor(service.concurrency, "service")
        # Also without close(): a connection lies inside a model, which nobody closes.
        self._closed = weakref.finalize(self, closed, transport, self._threads, self._answers)
        # What answers are, `answers`, is not part of it: whoever names it wrongly at first need not ask again.
        about = [service.url, self.wire.input, self.wire.output, self.wire.datatype]
        self._about = json.dumps(about).encode()
        err.print(
            f"{service.url} takes {self.wire.datatype} images {size} as {self.wire.layout}, answers with {classes} "
            f"{service.answers}; {len(self._answers):,} answers are here. Ask only services that you own or may test",
            soft_wrap=True,
            markup=False,
        )

    @property
    def retried(self) -> int:
        """Images in requests that were sent again; the service may have counted these twice."""
        return self._transport.again

    def __call__(self, images: Tensor) -> Tensor:
        """Return the posteriors, float32 (B, K) on the images' device, of images (B, C, H, W), in their order.

        Raises:
            MadError: if the service fails, or answers with what is no posterior; what it answered before is kept.
        """
        sent = self.wire.encoded(images)
        keys = [hashlib.sha256(self._about + repr(each.shape).encode() + each.tobytes()).digest() for each in sent]
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        found = self._answers.known([*first])
        asked = 0
        if len(found) < len(first):
            with self._answers.turn():
                missing = [key for key in first if key not in found]
                found |= self._answers.known(missing)  # another may have asked while this one waited
                missing = [key for key in missing if key not in found]
                asked = len(missing)
                found |= self._ask(missing, sent, first)
        with self._counting:
            self.cached += len(keys) - asked
        return self.wire.posteriors([found[key] for key in keys]).to(images.device)

    def _ask(self, keys: list[bytes], sent: np.ndarray, first: dict[bytes, int]) -> Rows:
        """Return the answers to images, which are asked about in requests of ``batch``, several at a time."""
        parts = [keys[start : start + self._most] for start in range(0, len(keys), self._most)]
        found: Rows = {}
        began = self._transport.clock()
        self._transport.stop.clear()
        self._transport.pace.follow(self._answers.next_turn)

        def one(part: list[bytes]) -> None:
            if self._transport.stop.is_set():
                return
            with self._counting:
                self.asked += len(part)
            left = list(part)

            def request() -> tuple[bytes, int]:
                return self.wire.request(sent[[first[key] for key in left]]), len(left)

            def taken(content: bytes) -> None:
                """Keep the answers; what has none is left, and asked about again."""
                rows = self.wire.rows(self._transport.read(content), len(left))
                good = {key: row for key, row in zip(left, rows, strict=True) if answered(row)}
                self._answers.keep(good, self._transport.pace.next)
                with self._counting:
                    found.update(good)
                left[:] = [key for key in left if key not in good]
                if left:
                    which = f"{len(left)} of {len(rows)} images, such as row {first[left[0]]} of {len(sent)} (from 0)"
                    raise Malformed(f"answers with NaN or infinity to {which}: mend it, or take such images out")

            self._transport.ask("/infer", request, taken)
            if self._transport.clock() - began > QUIET:
                self._transport.say(f"{self._transport.url} has answered {len(found):,} of {len(keys):,} images")

        under_way: list[Future[None]] = []
        try:
            under_way += [self._threads.submit(one, part) for part in parts]
            done, _ = wait(under_way, return_when=FIRST_EXCEPTION)
        finally:  # also after Ctrl-C: what is under way is paid for, so it is waited for and kept
            self._transport.stop.set()
            for each in under_way:
                each.cancel()
            wait(under_way)
        for each in done:  # the others failed because of the first that did
            if (error := each.exception()) is not None:
                kept = f"; {len(self._answers):,} answers are kept, and not asked for again"
                raise MadError(f"{error}{kept}") if isinstance(error, MadError) and len(self._answers) else error
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Connection:
        """Return the connection itself, so that models which hold one can be copied."""
        return self

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and the cache."""
        self._closed()


def closed(transport: Transport, threads: ThreadPoolExecutor, answers: Answers) -> None:
    """Close the parts of a connection."""
    transport.close()
    threads.shutdown(wait=False)  # it may be one of them that collects garbage
    answers.close()
