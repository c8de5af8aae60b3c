"""A gate: honest answers where honest users ask, and decoys elsewhere, with a conformal guarantee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mad.defenses.base import Context, Defense, given
from mad.errors import MadError, check_choice, check_flag, check_number
from mad.gate import client
from mad.gate.calibration import learn
from mad.gate.conformal import RULES, groups_of, thresholds
from mad.gate.decoy import Decoys
from mad.gate.detector import Detector
from mad.gate.taps import taps_of
from mad.schema import Column
from mad.seeds import derive
from mad.victim import Victim


@dataclass
class Gate(Defense):
    """Answer queries that look like the owner's own data exactly, and all others with decoys that carry no information.

    Features that the victim's forward pass computes anyway are scored by how far they lie from those of the predicted
    class; the scores become p-values on held-out images, and are combined into one. An answer is touched if the
    combined score is above a threshold that is calibrated on other held-out images (split conformal), so that **at most
    a share alpha of honest queries is ever touched**: accuracy falls by at most alpha, and the mean L1 rises by at most
    2 alpha. Honest are queries that are exchangeable with the calibration images. With ``by_class`` the share holds
    among the queries of each predicted class.

    A touched query gets a posterior drawn by a secret key from honest ones, of any class. A slightly changed copy gets
    the same one.

    With ``client`` each client is tested, too: a bet against the honesty of its queries, which an honest client ever
    wins with a probability of at most ``client``. Once flagged, it gets decoys only.

    The calibration images are those of ``victim.validation``. In a chain, this defense comes last; what passes are the
    answers of the parts before it.

    Args:
        epsilon: L1 budget in [0, 2], which limits decoys, too; below 2 they carry information.
        alpha: the largest share of honest queries that is touched, in [0, 1]; higher is stronger. With n calibration
            images nothing is touched below 1 / (n + 1).
        rule: how the p-values are combined: ``learned``, a sum of logarithms whose weights tell held-out images from
            synthetic shifts of the training images; ``fisher``, ``harmonic``, ``cauchy``, ``bonferroni``, ``square``.
        by_class: whether each predicted class has a threshold of its own; classes with few calibration images share
            one.
        client: the largest probability, in (0, 1), that an honest client is ever flagged; None for no test of clients.
    """

    name = "gate"
    strength_parameter = "alpha"
    needs_validation = True
    honest_queries = 1000
    schema = (
        Column("gate_images", "whole number", "images", "that the gate was calibrated on"),
        Column("gate_own_thresholds", "whole number", "classes", "that have a threshold of their own"),
        Column(
            "gate_touched",
            "number",
            "share",
            "of the thief's queries that got a decoy; empty without client",
        ),
        Column("gate_flagged", "number", "share", "of the thief's accounts that were flagged; empty without client"),
        Column(
            "gate_flagged_after",
            "number",
            "queries",
            "of such an account, in the mean; empty if none was, and without client",
        ),
        Column("gate_honest_touched", "number", "share", "of honest queries that got a decoy; empty without client"),
        Column("gate_honest_flagged", "number", "share", "of honest clients that were flagged; empty without client"),
    )
    epsilon: float | None = 2.0
    alpha: float = 0.02
    rule: str = "learned"
    by_class: bool = True
    client: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("defense.alpha", self.alpha, 0, 1)
        check_choice("defense.rule", self.rule, tuple(RULES))
        check_flag("defense.by_class", self.by_class)
        if self.client is not None:
            check_number("defense.client", self.client, 1e-12, 0.5)

    @property
    def version(self) -> int:  # type: ignore[override]
        """3 with ``client``, whose former versions left near copies out of the test; 1 without it."""
        return 1 if self.client is None else 3

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether clients are tested."""
        return self.client is not None

    def most_costs(self) -> tuple[float, float]:
        """Return alpha plus the probability that a client is flagged, and how far that moves answers at most."""
        touched = min(1.0, self.alpha + (self.client or 0.0))
        return touched, touched * (2.0 if self.epsilon is None else self.epsilon)

    def check(self, victim: Victim) -> None:
        """Raise MadError if the victim holds no images out to calibrate on."""
        if not victim.validation:
            raise MadError(
                "defense=gate calibrates on images that the victim has not learned from: set victim.validation=0.1"
            )

    def prepare(self, context: Context) -> None:
        """Hook the served network, fit or load the detector, and set the thresholds."""
        shape, classes = tuple(context.victim.dataset.shape), context.victim.dataset.classes
        seed = derive(context.seed, "gate") >> 1
        taps = self._taps = taps_of(context.model, shape, context.device)
        detector = context.kept(
            f"{context.victim.name}-gate",
            ["gate", 4 if taps.widths else 3, context.model, context.victim, seed],
            lambda: Detector(taps.names, taps.widths, shape, classes),
            lambda network: learn(network, taps, context, seed),  # type: ignore[arg-type]
        )
        assert isinstance(detector, Detector)
        self._detector, self._secret = detector, seed
        self._channels = shape[0]
        self._made: tuple[Tensor, Decoys] | None = None
        self._calibrate(detector)
        if len(detector.bank):
            self.decoys()  # once for all clients

    def _calibrate(self, detector: Detector) -> None:
        """Set the thresholds, tensors that an export takes along."""
        shares, count = detector.shares, len(detector.surprises)
        found = self._combined(detector.surprises) if count else shares[:0]
        groups = groups_of(shares if self.by_class else torch.zeros_like(shares), count, self.alpha)
        self._groups = groups
        size = int(groups.max()) + 1 if len(groups) else 1
        self._threshold = thresholds(found, groups[detector.predicted.long()], size, self.alpha)[0]
        if self.client is None:
            return
        own = groups_of(shares if self.by_class else torch.zeros_like(shares), count, 1.0, 100.0)
        self._own = own
        size = int(own.max()) + 1 if len(own) else 1
        each = [thresholds(found, own[detector.predicted.long()], size, level) for level in client.LEVELS]
        self._levels = torch.stack([limits for limits, _ in each], dim=1)
        bounds = client.upper_bounds(torch.stack([sizes for _, sizes in each], dim=1), self.client / 2)
        self._payoffs = client.payoffs(bounds)

    def _combined(self, surprising: Tensor) -> Tensor:
        return RULES[self.rule](surprising, self._detector.weights)

    def score(self, images: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the combined score (B,) and the predicted class, int64 (B,), of images (B, C, H, W).

        Args:
            images: in [0, 1].
            clean: posteriors (B, K), used for a network that cannot be hooked only; in a chain, the victim's own are.
        """
        features, logits = self._taps(images, given(images, clean))
        return self._combined(self._detector(images, features, logits)), logits.argmax(dim=1)

    def decoys(self) -> Decoys:
        """Return what makes the decoys."""
        bank = self._detector.bank
        made = self._made
        if made is None or made[0] is not bank:  # the bank of an export is loaded after prepare
            made = self._made = (bank, Decoys(bank, self._secret, self._channels))
        return made[1]

    def begin(self) -> None:
        """Set up a client's wealth."""
        assert self.client is not None
        self._client = client.Client(self._payoffs.tolist(), self.client / 2)
        self._asked = self._changed = 0

    @property
    def suspect(self) -> bool:
        """Whether the client is flagged."""
        return self.client is not None and self._client.flagged_at is not None

    def remembered(self) -> Any:
        """Return the client's wealth, and how many of its queries were answered by decoys: some thirty numbers."""
        return None if self.client is None else [self._asked, self._changed, *self._client.state()]

    def recall(self, remembered: Any) -> None:
        """Go on from another session's ``remembered``."""
        try:
            asked, changed, *wealth = remembered
            self._client.restore(wealth)
            self._asked, self._changed = int(asked), int(changed)
        except (TypeError, ValueError) as error:
            raise MadError(f"defense=gate cannot go on from {remembered!r}: it is no memory of a client") from error

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return decoys for images that do not look honest, and for all of a flagged client; else the clean rows."""
        score, predicted = self.score(images, clean)
        touched = ~(score <= self._threshold[self._groups[predicted]])
        if self.client is not None:
            self._look(images, score, predicted)
            flagged = self._client.flagged_at
            if flagged is not None:
                touched[max(0, flagged - self._asked) :] = True
            self._asked += len(images)
            self._changed += int(touched.sum())
        rows = touched.nonzero()[:, 0]
        if not len(rows):
            return clean
        return clean.index_copy(0, rows, self.decoys()(images[rows]).to(clean.dtype))

    def _look(self, images: Tensor, score: Tensor, predicted: Tensor) -> None:
        """Bet on the queries of a client that is not flagged."""
        groups = self._own[predicted]
        levels = (score.unsqueeze(1) <= self._levels[groups]).sum(dim=1)
        self._client.look(groups.tolist(), levels.tolist(), self.decoys().names(images))

    def columns(self, context: Context) -> dict[str, Any]:
        """Return what the gate was calibrated on."""
        return {"gate_images": len(self._detector.surprises), "gate_own_thresholds": int((self._groups > 0).sum())}

    def session_columns(self) -> dict[str, Any]:
        """Return how many of the thief's queries got decoys, and when it was flagged."""
        return self.accounts_columns([self])

    def accounts_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return the same about a thief's accounts."""
        if self.client is None:
            return {}
        changed, asked = (sum(getattr(each, name) for each in sessions) for name in ("_changed", "_asked"))
        flagged = [each._client.flagged_at for each in sessions if each._client.flagged_at is not None]
        return {
            "gate_touched": changed / max(1, asked),
            "gate_flagged": len(flagged) / len(sessions),
            "gate_flagged_after": sum(flagged) / len(flagged) if flagged else None,
        }

    def honest_columns(self, sessions: Sequence[Any]) -> dict[str, Any]:
        """Return the shares of honest queries that got decoys, and of honest clients that were flagged."""
        if self.client is None:
            return {}
        changed, asked = (sum(getattr(each, name) for each in sessions) for name in ("_changed", "_asked"))
        flagged = sum(each._client.flagged_at is not None for each in sessions)
        return {"gate_honest_touched": changed / max(1, asked), "gate_honest_flagged": flagged / len(sessions)}
