"""What happens to a request, whatever protocol it came by: who asks, may they, what is answered, what is noted."""

from __future__ import annotations

import asyncio
import hashlib
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mad.api import UNCHANGED, BlackBox
from mad.deployment import Deployment
from mad.errors import BudgetExceededError, MadError
from mad.serve.audit import Audit
from mad.serve.clients import Bucket, Client, Clients
from mad.serve.engine import Engine
from mad.serve.ledger import Ledger, LedgerError
from mad.serve.metrics import Metrics
from mad.serve.settings import Settings
from mad.serve.wire import Question, Refused, Shape, say

DIGITS = 8  # decimals of an L1 distance in the log


class Service:
    """A deployment with its clients, their budgets, the log and the metrics. Its methods belong to one event loop.

    Args:
        deployment: what answers.
        settings: see ``Settings``.

    Raises:
        MadError: if a file of it cannot be used.
    """

    def __init__(self, deployment: Deployment, settings: Settings) -> None:
        self.deployment, self.settings = deployment, settings
        self.name = settings.name or deployment.victim.name
        dataset = deployment.victim.dataset
        channels, height, width = (int(side) for side in dataset.shape)
        self.shape = Shape((channels, height, width), int(dataset.classes), settings.max_images, settings.max_bytes)
        self.clients = Clients(settings.beside(settings.clients, ""), say)
        place = settings.ledger_place()
        self.ledger = Ledger(place)
        if deployment.defense.stateful:
            self.ledger.alone()
        if place is not None and settings.clients is not None and self.ledger.new:
            where = place if isinstance(place, Path) else "in PostgreSQL"
            say(f"a new ledger, {where}: every budget is whole")
        self.audit = Audit(settings.beside(settings.audit, ".audit.jsonl"), settings.audit_bytes, settings.audit_files)
        self.metrics = Metrics(settings.shadow)
        self.engine = Engine(deployment, settings.linger, settings.shadow)
        self.closing = False
        self._sessions: dict[str, BlackBox] = {}
        self._flagged: set[str] = set()
        self._kept: dict[str, Future[int]] = {}  # the last memory of each client that was written
        parts = deployment.defense.components() if deployment.defense.stateful and place is not None else ()
        self._remembered = ", ".join(f"{part.name} {part.version}" for part in parts)
        self._rates: dict[str, Bucket] = {}
        self._waiting = 0
        self._limited: dict[str, Client] = {}  # the clients whose budgets the metrics tell
        self._tell_left()

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.engine.alive and not self.closing

    def admit(self, header: str | None) -> Client:
        """Return the client of an ``Authorization`` header.

        Raises:
            Refused: with 401 if there is none, with 429 if they ask too often.
        """
        try:
            client = self.clients.of(header)
        except MadError as error:
            raise Refused(429, str(error), wait=1) from error
        if client is None:
            raise Refused(
                401, "no such key: send the header Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )
        return client

    def pace(self, client: Client) -> None:
        """Count a request of a client.

        Raises:
            Refused: with 429 if it comes too early.
        """
        if client.rate is None:
            return
        bucket = self._rates.get(client.id)
        if bucket is None or bucket.rate != client.rate:
            bucket = self._rates[client.id] = Bucket(client.rate)
        wait = bucket.take()
        if wait:
            raise Refused(429, f"this key has {client.rate:g} requests a second: wait {wait:.2g} s", wait=wait)

    async def answer(self, client: Client, question: Question) -> Tensor:
        """Charge a client, and return the answers (B, K) to a question; those are noted before they are returned.

        Raises:
            Refused: with 400 for images that are not valid, 403 for a budget that is spent, 429 for a client that is
                held for a thief, 503 for what cannot be done now. What was charged stays charged.
        """
        images, count = question.images, len(question.images)
        session = self._session(client)
        suspect = session.defense.suspect
        if suspect and self.settings.refuse_flagged and not self.settings.shadow:
            self._log(client, status=429, images=count)
            raise Refused(429, "this key is closed: its queries look like a theft of the model; ask the owner")
        try:
            session.check(images)
        except MadError as error:
            raise Refused(400, str(error)) from error
        if self.closing or self._waiting + count > self.settings.waiting:
            raise Refused(503, "too many images wait for an answer", wait=1)
        self._waiting += count
        try:
            await self._charged(client, count)
            after = (lambda: self._remember(client, session)) if self._remembered else None
            asked = asyncio.wrap_future(self.engine.ask(images, session, after))
            try:
                clean, defended = await asyncio.wait_for(asked, self.settings.timeout)
            except (asyncio.TimeoutError, TimeoutError) as error:
                raise Refused(503, f"no answer within {self.settings.timeout:g} s", wait=1) from error
            except Exception as error:
                say(f"a request could not be answered: {' '.join(str(error).split())[:300]}")
                raise Refused(503, "this cannot be answered now; the server's own log says why", wait=5) from error
            await self._on_disk(client)
        finally:
            self._waiting -= count
        self._note(client, question, clean, defended, suspect)
        self._count_flagged(client, session)
        return clean if self.settings.shadow else defended

    async def _charged(self, client: Client, count: int) -> None:
        try:
            used = await asyncio.wrap_future(self.ledger.charge(client.id, count, client.budget))
        except BudgetExceededError as error:
            self._log(client, status=403, images=count)
            raise Refused(403, f"the budget is spent: {error}") from error
        except LedgerError as error:
            raise uncounted(error) from error
        self.metrics.queries.labels(client.label).inc(count)
        if client.budget is not None:
            self.metrics.left.labels(client.label).set(max(0, client.budget - used))

    def told(self) -> bytes:
        """Return the metrics, by the clients' file as it is now.

        Raises:
            Refused: with 503 if the ledger cannot be read.
        """
        try:
            self._tell_left()
        except LedgerError as error:
            raise uncounted(error) from error
        return self.metrics.text()

    def _tell_left(self) -> None:
        """Tell what is left of the budgets that are others than before; a client's queries tell it, too."""
        now = {client.id: client for client in self.clients.all() if client.budget is not None}
        for name in self._limited.keys() - now.keys():
            self.metrics.left.remove(self._limited.pop(name).label)
        for name, client in now.items():
            if client.budget is not None and getattr(self._limited.get(name), "budget", None) != client.budget:
                self.metrics.left.labels(client.label).set(max(0, client.budget - self.ledger.used(name)))
                self._limited[name] = client

    def _remember(self, client: Client, session: BlackBox) -> None:
        """Write down what the defense remembers of a client; called in the engine's thread, in order."""
        memory = session.defense.remembered()
        if memory is not None:
            self._kept[client.id] = self.ledger.remember(client.id, self._remembered, memory)

    async def _on_disk(self, client: Client) -> None:
        """Wait until what the defense remembers of a client is on the disk."""
        if client.id in self._kept:
            try:
                await asyncio.shield(asyncio.wrap_future(self._kept[client.id]))  # a later request waits for it, too
            except LedgerError as error:
                raise uncounted(error) from error

    def _note(self, client: Client, question: Question, clean: Tensor, defended: Tensor, suspect: bool) -> None:
        """Write the line of an answer to the audit log, and count it."""
        distances = (defended - clean).abs().sum(dim=1)
        touched = distances > UNCHANGED
        moved = distances.tolist()
        self.metrics.count(moved, int(touched.sum()), suspect)
        self._log(
            client,
            status=200,
            request=question.id,
            shadow=self.settings.shadow,
            images=[digest(image) for image in question.images],
            touched=touched.tolist(),
            l1=[round(each, DIGITS) for each in moved],
        )

    def _log(self, client: Client, **what: Any) -> None:
        try:
            self.audit.write(client=client.name, **what)
        except OSError as error:
            say(f"the audit log cannot be written ({error.strerror})")
            raise Refused(503, "answers cannot be noted now, so none is given", wait=5) from error

    def _session(self, client: Client) -> BlackBox:
        """Return a client's session of the deployment, with what the defense remembers from before a restart."""
        if client.id not in self._sessions:
            session = self.deployment.session()
            try:
                memory = self.ledger.memory(client.id, self._remembered) if self._remembered else None
                if memory is not None:
                    session.defense.recall(memory)
            except MadError as error:
                raise uncounted(error) from error
            self._sessions[client.id] = session
            self._count_flagged(client, session)
        return self._sessions[client.id]

    def _count_flagged(self, client: Client, session: BlackBox) -> None:
        """Count a client once, however many of its requests are under way when it is flagged."""
        if session.defense.suspect:
            self._flagged.add(client.id)
            self.metrics.flagged.set(len(self._flagged))

    def counted(self, protocol: str, status: str, began: float) -> None:
        """Count a request that is over, which began at a time of ``time.perf_counter``."""
        self.metrics.requests.labels(protocol, status).inc()
        if status in ("200", "OK"):
            self.metrics.latency.labels(protocol).observe(time.perf_counter() - began)

    def close(self) -> None:
        """Answer what waits, and close the files."""
        self.closing = True
        self.engine.close()
        self.ledger.close()
        self.audit.close()


def uncounted(error: MadError) -> Refused:
    """Return the refusal of a request that cannot be counted, and say why in the server's log."""
    say(str(error))
    return Refused(503, "queries cannot be counted now, so none is answered", wait=5)


def digest(image: Tensor) -> str:
    """Return the SHA-256 of an image, of its float32 numbers (C, H, W) as the defense saw it."""
    return hashlib.sha256(image.to(torch.float32).contiguous().numpy().tobytes()).hexdigest()
