"""The thread that computes answers: it merges requests to batches whose answers are the benchmark's, to the bit.

What a network answers to an image depends, in the last bits, on how many images it is given: for a few, CPU and GPU
libraries take other kernels, which sum in another order. The benchmark answers in batches of ``BlackBox.most`` images.
So when it starts, the engine finds out which smaller batches give the same bits, and it uses no other: a batch is
filled up to one of these sizes with copies of its last image.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mad.api import BlackBox
from mad.deployment import Deployment
from mad.errors import MadError
from mad.foreign import said
from mad.seeds import generator

Both = tuple[Tensor, Tensor]  # clean and defended posteriors (B, K)
ROUNDS_UP = 0.75  # a batch is filled up that is fuller than this; else it is cut


@dataclass
class Asked:
    """A request: its images, its client's session, what to do once its answer is known, and where it goes."""

    images: Tensor
    session: BlackBox
    after: Callable[[], None] | None = None
    answer: Future[Both] = field(default_factory=Future)


class Engine:
    """Answers requests, one batch at a time, in a thread of its own.

    Requests of several clients are answered together, unless the defense is ``stateful``: then each request is given
    to its client's session as it came, as the benchmark does, and no batch is filled up.

    Args:
        deployment: what answers.
        linger: the most seconds that a request waits for others.
        shadow: whether clean answers must be those of the undefended victim.

    Attributes:
        sizes: the sizes of batches, in ascending order; empty for a stateful defense.
    """

    def __init__(self, deployment: Deployment, linger: float = 0.0, shadow: bool = False) -> None:
        self._deployment, self._linger = deployment, linger
        self._other = shadow and deployment.model is not deployment.served
        if shadow and not self._other and deployment.defense.serves_another():
            raise MadError(
                f"shadow=true needs the undefended victim, which an exported deployment of defense "
                f"{deployment.defense.name} does not hold: serve it by victim= and defense="
            )
        self._shared = deployment.session()
        self._queue: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._kept: Asked | None = None
        self.sizes: list[int] = []
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(ready,), name="engine", daemon=True)
        self._thread.start()
        ready.result()

    def ask(self, images: Tensor, session: BlackBox, after: Callable[[], None] | None = None) -> Future[Both]:
        """Return a future of the clean and defended posteriors of valid images (B, C, H, W), B > 0, on the CPU.

        ``after`` is called in the engine's thread once a ``stateful`` defense has answered, before the next request.
        """
        asked = Asked(images, session, after)
        self._queue.put(asked)
        return asked.answer

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer what was asked, and stop."""
        self._queue.put(None)
        self._thread.join()

    def _work(self, ready: Future[None]) -> None:
        try:
            if not self._deployment.defense.stateful:
                tried = images_like(self._deployment, self._shared.most)
                self.sizes = same_sizes(lambda some: self._both(self._shared, some), tried)
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        while some := self._next():
            some = [each for each in some if each.answer.set_running_or_notify_cancel()]
            try:
                found = self._answered(some)
            except BaseException as error:
                # A SystemExit of a plug-in would end the event loop that waits for the answer.
                told = MadError(str(said(error))) if isinstance(error, SystemExit) else error
                for each in some:
                    each.answer.set_exception(told)
                continue
            for each, both in zip(some, found, strict=True):
                each.answer.set_result(both)

    def _next(self) -> list[Asked]:
        """Return the requests to answer together; an empty list at the end."""
        first = self._kept or self._queue.get()
        self._kept = None
        if first is None:
            return []
        some, count, until = [first], len(first.images), time.monotonic() + self._linger
        while self.sizes and count < self._shared.most:
            try:
                left = until - time.monotonic()
                more = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._queue.put(None)
                break
            if count + len(more.images) > self._shared.most:
                self._kept = more
                break
            some.append(more)
            count += len(more.images)
        return some

    def _answered(self, some: Sequence[Asked]) -> list[Both]:
        if not self.sizes or not some:
            return [self._alone(each) for each in some]
        images = torch.cat([each.images for each in some])
        both = [self._filled(part) for part in cut(images, self.sizes)]
        clean, defended = (torch.cat(part) for part in zip(*both, strict=True))
        lengths = [len(each.images) for each in some]
        return list(zip(clean.split(lengths), defended.split(lengths), strict=True))

    def _alone(self, asked: Asked) -> Both:
        """Answer a request by itself."""
        both = self._both(asked.session, asked.images)
        if asked.after is not None:
            asked.after()
        return both

    def _filled(self, images: Tensor) -> Both:
        """Answer a batch, filled up to one of the sizes."""
        size = next(size for size in self.sizes if size >= len(images))
        clean, defended = self._both(self._shared, filled(images, size))
        return clean[: len(images)], defended[: len(images)]

    def _both(self, session: BlackBox, images: Tensor) -> Both:
        clean, defended = session.answer(images)
        return (self._deployment.clean(images) if self._other else clean), defended


def filled(images: Tensor, size: int) -> Tensor:
    """Return images filled up to a number with copies of the last."""
    lacking = size - len(images)
    return torch.cat([images, images[-1:].expand(lacking, *images.shape[1:])]) if lacking else images


def cut(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Cut images into batches that fill one of the sizes, or nearly."""
    parts = []
    while len(images):
        above = next((size for size in sizes if size >= len(images)), sizes[-1])
        below = max((size for size in sizes if size <= len(images)), default=above)
        take = above if len(images) > ROUNDS_UP * above else below
        parts.append(images[:take])
        images = images[take:]
    return parts


def same_sizes(answer: Callable[[Tensor], Both], images: Tensor) -> list[int]:
    """Return the sizes of batches that give the same bits as all images in one batch, in ascending order.

    Halves of halves are tried, down to the first that gives others. The order in which a kernel sums depends on the
    size of a batch and not on its numbers, so some hundred images tell two orders apart.
    """
    whole, most = answer(images), len(images)
    sizes, size = [most], 1 << ((most - 1).bit_length() - 1) if most > 1 else 0
    while size:
        parts = [answer(filled(part, size)) for part in images.split(size)]
        found = [torch.cat(part)[:most] for part in zip(*parts, strict=True)]
        if not all(torch.equal(one, other) for one, other in zip(whole, found, strict=True)):
            break
        sizes.append(size)
        size //= 2
    return sizes[::-1]


def images_like(deployment: Deployment, count: int) -> Tensor:
    """Return random images in [0, 1], from dark to bright and from flat to noisy."""
    draw = generator(0, "images of a server's check")
    shape = tuple(deployment.victim.dataset.shape)
    low, width, noise = (torch.rand(count, *size, generator=draw) for size in ((1, 1, 1), (1, 1, 1), shape))
    return low + (1 - low) * width * noise
