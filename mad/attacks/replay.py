"""Replaying a log: what is stolen already by whoever has these answers, and what a defense would have left of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.base import REQUEST, Attack, Stolen, TransferSet
from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.datasets.cached import KEPT
from mad.datasets.checked import say
from mad.datasets.log import Log, opened
from mad.datasets.tables import KINDS
from mad.defenses import Defense
from mad.errors import MadError, UnfitError
from mad.progress import bar
from mad.victim import Victim


@dataclass(frozen=True)
class Replay(Attack):
    """Train on a log of answers that were given before, as the owner of the API has it. The victim is asked nothing.

    The logged answers stand for the victim's clean ones, and the defense is applied to them: ``defense=none`` says what
    a thief with this log has now, another defense what it would have had under that one. The budget is the rows of the
    log, or the first ``budget`` of them, and each counts as a query.

    Args:
        log: a table with one row an answer; see ``mad.datasets.log.Log``.
        image: the name of its column of images; None to find it.
        answer: the name of its column of answers, or what stands before the numbers of K columns; None for the one that
            it has.
        content: computed, and not to be given: the checksum of its images and answers.
    """

    name = "replay"
    needs_pool = False
    verbatim = False  # they are those of the log
    log: str | None = field(default=None, compare=False)
    image: str | None = None
    answer: str | None = None
    content: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("log", "image", "answer"):
            given = getattr(self, key)
            if given is not None and (not isinstance(given, (str, int)) or isinstance(given, bool) or given == ""):
                raise MadError(f"attack.{key} must be a text, got {given!r}")
        if self.log is None:
            raise MadError(f"attack=replay needs a log of images and answers, {KINDS}: set attack.log=FILE")
        # The fingerprint holds the log's content, not its path.
        object.__setattr__(self, "content", self.opened.content)

    @property
    def opened(self) -> Log:
        """The log; it is read once a process."""
        image, answer = (None if given is None else str(given) for given in (self.image, self.answer))
        return opened(str(self.log), image, answer)

    def check(self, victim: Victim) -> None:
        """Raise MadError if the answers do not fit the victim's classes, or its images do not have 1 or 3 channels."""
        channels, *_ = victim.dataset.shape
        if channels not in (1, 3):
            raise MadError(f"attack=replay reads images of 1 or 3 channels, victim {victim.name} takes {channels}")
        self.opened.posteriors(victim.dataset.classes, f"victim {victim.name}")

    def check_defense(self, defense: Defense) -> None:
        """Raise UnfitError for a defense that serves another model than the victim, whose answers the log holds."""
        if defense.serves_another():
            raise UnfitError(
                f"attack=replay has the answers of the victim as it is, defense={defense.name} serves another model, "
                "whose answers no log holds: take another attack, or a defense that changes answers"
            )

    def affordable(self, pool: Images | None, name: str) -> int:
        """Return the number of rows that are replayed.

        Raises:
            MadError: if the budget is above the rows of the log.
        """
        rows = len(self.opened)
        if self.budget is not None and self.budget > rows:
            raise MadError(f"attack.budget={self.budget} is above the {rows} rows of attack.log={self.log}: lower it")
        return self.shared(self.budget or rows)

    def load(self, victim: Victim) -> None:
        """Decode the images, and say on stderr what the log holds."""
        log, budget = self.opened, self.affordable(None, "")
        if log.content != self.content:  # the fingerprint is that of the former log
            raise MadError(f"attack.log={self.log} or one of its images changed after the start: start again")
        self.pictures(tuple(victim.dataset.shape))
        answers = log.posteriors(victim.dataset.classes, f"victim {victim.name}")[:budget]
        counts = torch.bincount(answers.argmax(dim=1), minlength=answers.shape[1])
        most, least = int(counts.argmax()), int(counts.argmin())
        say(
            f"attack.log={self.log}: {budget} of {len(log)} rows, {log.distinct(budget)} distinct images; "
            f"{int((counts > 0).sum())} of {len(counts)} classes are a top class, from {counts[least] / budget:.1%} of "
            f"the rows (class {least}) to {counts[most] / budget:.1%} (class {most})"
        )

    def pictures(self, shape: tuple[int, ...]) -> Images:
        """Return the images of the log in the victim's shape (C, H, W)."""
        size = (int(shape[0]), int(shape[1]), int(shape[2]))
        return KEPT.get(("log", self.content, self.image, size), lambda: self.opened.images(size))

    def run(self, api: BlackBox, pool: Images | None, adversary: Adversary) -> Stolen:
        """Have the defense answer the first ``api.budget`` rows."""
        images, rows = self.pictures(api.shape), torch.arange(api.budget or 0)
        logged = self.opened.posteriors(adversary.classes, "the victim")[: len(rows)]
        size, found = batch_limit(REQUEST, api.shape), []
        with bar("replay", len(rows)) as progress:
            parts = zip(batches(images, rows, size, torch.device("cpu")), logged.split(size), strict=True)
            for some, clean in parts:
                found.append(api.replayed(to_unit_range(some), clean))
                progress(len(some), "", None)
        return Stolen(transfer=TransferSet(images, rows, torch.cat(found)))
