"""EDM, an Ensemble of Diverse Models (Kariyappa, Prakash and Qureshi, ICLR 2021), of which one answers each query."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.architectures import imagenet
from mad.datasets import Images, Pool, batch_limit, batches, to_unit_range
from mad.defenses.base import Context, Defense
from mad.defenses.outliers import OutlierTrainer, joined
from mad.errors import MadError, check_number
from mad.schema import Column
from mad.seeds import derive, generator, seeded
from mad.training import EVALUATION_BATCH, logits_of
from mad.victim import Architecture, Victim

PATCHES = 8  # a side of the grid whose cells a hash adds up
MEASURED = 2000  # outliers whose coherence is recorded


class Ensemble(nn.Module):
    """Networks of which one answers each image: images (B, C, H, W) in [0, 1] to logits (B, K).

    Which one is a keyed, locality-sensitive hash of the image: ``bits`` signs of random +-1 projections of its pixels,
    less those of a mean image, choose a cell of a secret table. Each projection has one sign for each of 8 x 8 patches,
    so that small changes of an image rarely change its network. It is computed on whole pixel values (0 to 255), whose
    sums are exact in float32: no answer depends on its batch.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes K.
        architecture: makes one of the networks.
        networks: how many there are, n.
        bits: log2 of the number of cells.
    """

    signs: Tensor
    middle: Tensor
    table: Tensor

    def __init__(
        self, shape: tuple[int, int, int], classes: int, architecture: Architecture, networks: int, bits: int
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(architecture(shape=shape, classes=classes) for _ in range(networks))
        self.register_buffer("signs", torch.ones(torch.Size(shape).numel(), bits))
        self.register_buffer("middle", torch.zeros(bits))
        self.register_buffer("table", torch.arange(2**bits) % networks)

    def hash_by(self, seed: int, shape: tuple[int, int, int], mean: Tensor) -> None:
        """Draw the hash's projections and table from a seed.

        Args:
            seed: the key.
            shape: (C, H, W) of the images.
            mean: the image (C, H, W), of values from 0 to 255, whose projections divide others' into two halves.
        """
        draw = generator(seed, "hash of an ensemble")
        (channels, height, width), bits = shape, len(self.middle)
        grid = (min(PATCHES, height), min(PATCHES, width))
        signs = torch.randint(2, (bits, channels, *grid), generator=draw).float() * 2 - 1
        fine = F.interpolate(signs, size=(height, width), mode="nearest").flatten(1).T
        self.signs.copy_(fine)
        self.middle.copy_((fine.T.double() @ mean.flatten().double()).floor() + 0.5)  # whole sums never equal it
        self.table.copy_(self.table[torch.randperm(len(self.table), generator=draw)])

    def route(self, images: Tensor) -> Tensor:
        """Return the number of the network that answers each image, int64 (B,)."""
        values = (images.flatten(1) * 255).round().clamp(0, 255)
        bits = (values @ self.signs > self.middle).long()
        return self.table[(bits << torch.arange(bits.shape[1], device=bits.device)).sum(dim=1)]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of each image's network; a network runs once, on all of its images."""
        route = self.route(images)
        order = route.argsort(stable=True)
        counts = torch.bincount(route, minlength=len(self.networks)).tolist()
        parts = images[order].split(counts)
        told = [network(part) for network, part in zip(self.networks, parts, strict=True) if len(part)]
        return torch.cat(told or [self.networks[0](images)]).index_select(0, order.argsort())


@dataclass(frozen=True)
class EnsembleTrainer(OutlierTrainer):
    """A recipe for the networks of an ``Ensemble``: they learn the labels, and to disagree about outliers.

    The loss is the sum of the networks' cross-entropies, so that each learns from the labels as the victim does, plus
    ``weight`` times the mean coherence of their posteriors on a batch of outliers.
    """

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch and of as many outliers, which pass each network together."""
        drawn = self.outliers()
        assert isinstance(model, Ensemble)
        assert drawn is not None
        both = joined(images, drawn[0])
        logits = torch.stack([self.logits(network, both) for network in model.networks])
        known, unknown = logits[:, : len(images)], logits[:, len(images) :]
        labels = torch.stack([F.cross_entropy(each, targets) for each in known]).sum()
        return labels + self.weight * smooth_coherence(torch.softmax(unknown, dim=2)).mean()


@dataclass
class Edm(Defense):
    """Serve an ensemble of n networks that agree on the victim's images and disagree on outliers.

    One network answers each query, chosen by a hash of the image, so that an adversary who asks about images of other
    kinds is taught by n teachers that contradict each other. The networks have the victim's architecture and are
    trained together, by the victim's recipe, with the diversity loss on outliers: the largest cosine similarity
    between two of their posteriors, made smooth as the logarithm of the sum of all pairs' exponentials.

    The paper chooses the network by another network's output. Here it is a keyed locality-sensitive hash of the pixels
    (see ``Ensemble``), which costs no second forward pass, gives each network the same number of cells, and cannot be
    computed by an adversary. As with the paper's, small changes of an image rarely change its network; an adversary who
    makes large ones can ask several networks about an image, and average.

    The outliers should look like what adversaries ask about, and must not be it: with the adversary's own pool, the
    defense would be tuned to the very queries that it is scored on.

    Args:
        epsilon: None: there is no L1 budget, answers are not perturbed.
        diversity: weight of the diversity loss beside the sum of the networks' cross-entropies, at least 0; it trades
            accuracy on the victim's images for disagreement on others. Where it is too large, the networks end up as
            constants that disagree on everything: compare the defended accuracy.
        networks: how many networks n, from 2. The paper's is 5. Training takes n times the victim's, and twice that for
            the outliers; a query takes one network's time.
        bits: the hash has 2^bits cells, from 1 to 16.
        outliers: the pool of outliers.
    """

    name = "edm"
    strength_parameter = "diversity"
    schema = (
        Column("edm_coherence", "number", "[0, 1]", "mean largest cosine of two networks' posteriors on outliers"),
    )
    epsilon: float | None = None
    diversity: float = 1.0
    networks: int = 5
    bits: int = 8
    outliers: Pool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon:
            raise MadError(
                f"defense=edm has no L1 budget, got defense.epsilon={self.epsilon:g}: turn defense.diversity"
            )
        check_number("defense.diversity", self.diversity, 0)
        check_number("defense.networks", self.networks, 2, whole=True)
        check_number("defense.bits", self.bits, 1, 16, whole=True)

    def check(self, victim: Victim) -> None:
        """Raise MadError if there are no outliers, or if the victim cannot be trained anew."""
        victim.check_trainable("defense=edm")
        self.pool()

    def pool(self) -> Pool:
        """Return the pool of outliers.

        Raises:
            MadError: if there is none.
        """
        if self.outliers is None:
            raise MadError("defense=edm needs outliers, got none: set defense/outliers=POOL, not the adversary's pool")
        return self.outliers

    def served_architecture(self, victim: Victim) -> Architecture:
        """Return what builds the ensemble, without its weights and its key."""
        one = victim.rebuilt_by(victim.architecture)
        if getattr(one, "func", None) is Ensemble:  # that of an exported deployment
            return one
        return partial(Ensemble, architecture=one, networks=self.networks, bits=self.bits)

    def trainings(self, victim: Victim) -> float:
        """Return two a network: each step takes as many outliers as images."""
        return 2.0 * self.networks

    def serve(self, context: Context) -> nn.Module:
        """Return the ensemble, trained or loaded."""
        victim, pool, name = context.victim, self.pool(), f"{context.victim.name}-edm"
        recipe = EnsembleTrainer.like(victim.trainer, weight=self.diversity)
        make, shape = self.served_architecture(victim), victim.dataset.shape

        def build() -> nn.Module:
            with imagenet.left_out(), seeded(victim.seed, "ensemble"):
                ensemble = make(shape=shape, classes=victim.dataset.classes)
            assert isinstance(ensemble, Ensemble)
            for number in range(self.networks):
                own = derive(victim.seed, f"network {number} of an ensemble")
                ensemble.networks[number] = victim.untrained(seed=own, purpose="victim")
            return ensemble.eval()

        def train(ensemble: nn.Module) -> None:
            assert isinstance(ensemble, Ensemble)
            split = victim.training_split()
            outliers = context.images(pool)
            # Midway between both kinds of images, so that both are divided among all networks.
            ensemble.hash_by(context.seed, shape, (mean_image(split.images) + mean_image(outliers)) / 2)
            how = {"seed": victim.seed, "device": context.device, "task": f"victim {name}"}
            recipe.fit(ensemble, split.images, split.labels, outliers=outliers, **how)

        about = ["edm", recipe, victim, context.seed, self.networks, self.bits, pool, context.contents(pool)]
        return context.kept(name, about, build, train)

    def columns(self, context: Context) -> dict[str, Any]:
        """Return the coherence of the ensemble on some of the outliers."""
        assert isinstance(context.model, Ensemble)
        images = context.images(self.pool())
        rows = torch.randperm(len(images), generator=generator(0, "outliers to measure"))[:MEASURED]
        told = [logits_of(network, images, context.device, rows).softmax(dim=1) for network in context.model.networks]
        return {"edm_coherence": coherence(torch.stack(told)).mean().item()}

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the posteriors of the ensemble unchanged."""
        return clean


def pairs(posteriors: Tensor) -> Tensor:
    """Return the cosine similarity of each pair of networks' posteriors (n, B, K), (n (n - 1) / 2, B)."""
    unit = F.normalize(posteriors, dim=2)
    return torch.stack([(a * b).sum(dim=1) for a, b in combinations(unit, 2)])


def coherence(posteriors: Tensor) -> Tensor:
    """Return the largest cosine similarity of two networks' posteriors (n, B, K) for each image, (B,) in [0, 1]."""
    return pairs(posteriors).amax(dim=0)


def smooth_coherence(posteriors: Tensor) -> Tensor:
    """Return the log-sum-exp of all pairs' cosine similarities for each image, (B,): a smooth ``coherence``."""
    return pairs(posteriors).logsumexp(dim=0)


def mean_image(images: Images) -> Tensor:
    """Return the mean (C, H, W), in float64, of images, as values from 0 to 255."""
    size, total = batch_limit(EVALUATION_BATCH, images.shape[1:]), torch.zeros(images.shape[1:], dtype=torch.float64)
    for batch in batches(images, None, size, torch.device("cpu")):
        total += to_unit_range(batch).double().sum(dim=0)
    return total * (255 / len(images))
