"""Isolation and Induction (Guo et al., ACM MM 2023): a victim that is trained to teach an adversary little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mad.architectures import imagenet
from mad.augmentation import augmented
from mad.datasets import Images, Pool, Split, batches, to_device, to_unit_range
from mad.datasets.base import IN_MEMORY
from mad.defenses.base import Context, Defense
from mad.errors import MadError, check_flag, check_number
from mad.seeds import generator, seeded
from mad.storage.fingerprint import name_of
from mad.training import Trainer, place
from mad.victim import Victim


@dataclass(frozen=True)
class IsolatingTrainer(Trainer):
    """A recipe that minimizes a victim's cross-entropy together with the losses of Isolation and Induction.

    A proxy stands in for the adversary's network; what it would learn from the victim's answers is the gradient of its
    weights. The gradients of the losses are merged by PCGrad, see ``merged``.

    Args:
        isolation: weight of the cosine between what the proxy would learn from the answers and from the labels.
        induction: weight of the L1 distance between the victim's and the proxy's logits on outliers.
        silence: weight of the L2 norm of what the proxy would learn from the answers to outliers.
        as_published: see ``pull``.
        proxy: the proxy, in eval mode, images in [0, 1] to logits (B, K); its weights do not change.
        outliers: images that are none of the victim's, uint8 or float in [0, 1], (N, C, H, W), on the device.
    """

    isolation: float = 1.0
    induction: float = 0.3
    silence: float = 0.3
    as_published: bool = False
    proxy: nn.Module | None = field(default=None, compare=False, repr=False)
    outliers: Tensor | None = field(default=None, compare=False, repr=False)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of a batch's losses, as a tensor whose gradient is their merged gradient."""
        weights = [each for each in model.parameters() if each.requires_grad]
        losses = self.losses(model, images, targets)
        step = merged([gradient(each, weights) for each in losses])
        parts = step.split([each.numel() for each in weights])
        linear = torch.stack([each.flatten() @ part for each, part in zip(weights, parts, strict=True)]).sum()
        return torch.stack(losses).sum().detach() + linear - linear.detach()

    def losses(self, model: nn.Module, images: Tensor, targets: Tensor) -> list[Tensor]:
        """Return a batch's weighted losses: cross-entropy, isolation, induction, silence; without those of weight 0.

        The outliers, as many as the images, are drawn from the global generator, which the training seeds.
        """
        assert self.proxy is not None
        weights = list(self.proxy.parameters())
        answers = self.logits(model, images)
        found = [F.cross_entropy(answers, targets)]
        if self.isolation:
            guess = self.proxy(to_unit_range(images))
            labels = (targets if targets.dim() == 2 else F.one_hot(targets, guess.shape[1])).to(guess.dtype)
            learned = gradient(guess, weights, pull(guess, answers, self.as_published), again=True)
            right = gradient(guess, weights, (torch.softmax(guess, dim=1) - labels).detach() / len(guess))
            found.append(self.isolation * F.cosine_similarity(learned, right, dim=0, eps=1e-12))
        if self.induction or self.silence:
            assert self.outliers is not None
            rows = torch.randint(len(self.outliers), (len(images),)).to(images.device)
            queries = augmented(self.outliers[rows], self.augment, torch.default_generator)
            answers, guess = self.logits(model, queries), self.proxy(to_unit_range(queries))
            if self.induction:
                found.append(self.induction * (centered(answers) - centered(guess).detach()).abs().mean())
            if self.silence:
                learned = gradient(guess, weights, pull(guess, answers, self.as_published), again=True)
                found.append(self.silence * learned.norm())
        return found


def centered(logits: Tensor) -> Tensor:
    """Return logits (B, K) less their mean over the classes, which the posteriors do not show."""
    return logits - logits.mean(dim=1, keepdim=True)


def pull(guess: Tensor, answers: Tensor, as_published: bool = False) -> Tensor:
    """Return the gradient, in the proxy's logits, of the mean loss that it would learn from the victim's answers.

    Args:
        guess: the proxy's logits (B, K), which are taken as constant.
        answers: the victim's logits (B, K).
        as_published: the loss is KL(proxy || victim), as in the published code. Otherwise it is the adversary's own,
            the cross-entropy under the victim's posteriors, whose gradient is that of KL(victim || proxy).
    """
    own, theirs = (F.log_softmax(logits, dim=1) for logits in (guess.detach(), answers))
    if as_published:
        gap = own - theirs
        found = own.exp() * (gap - (own.exp() * gap).sum(dim=1, keepdim=True))
    else:
        found = own.exp() - theirs.exp()
    return found / len(guess)


def gradient(
    output: Tensor, weights: list[nn.Parameter], towards: Tensor | None = None, *, again: bool = False
) -> Tensor:
    """Return the gradient of an output in some weights, as one vector (D,); the graph of the output stays.

    Args:
        output: a loss, or logits (B, K).
        weights: the weights; the gradient in one that the output does not depend on is 0.
        towards: for logits, the gradient of a loss in them, (B, K).
        again: whether the result can be differentiated again, which takes a second pass through the network.
    """
    found = torch.autograd.grad(
        output, weights, towards, retain_graph=True, create_graph=again, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in found])


def merged(gradients: list[Tensor]) -> Tensor:
    """Return the sum of gradients (D,) after PCGrad (Yu et al., NeurIPS 2020, algorithm 1).

    From each gradient, what points against another one is removed: its projection onto that one, if their inner product
    is negative. It meets the others in random order, which the global generator draws.
    """
    total = torch.zeros_like(gradients[0])
    for place_, own in enumerate(gradients):
        left = own
        for other in torch.randperm(len(gradients)).tolist():
            against, square = left @ gradients[other], gradients[other].square().sum()
            if other != place_ and against < 0 and square > 0:  # that of sure answers is too small to be squared
                left = left - against / square * gradients[other]
        total += left
    return total


@dataclass
class Ini(Defense):
    """Serve a network that is trained so that its answers teach an adversary little; its answers are left as they are.

    The network is of the victim's architecture and trained with the victim's recipe. Each step has a batch of the
    training images, and as many outliers in place of an adversary's queries. The loss is the cross-entropy, and

    - *isolation*: on the training images, the cosine between the gradient that a proxy of the adversary's network gets
      from the answers and the one that it gets from the labels;
    - *induction*: on outliers, the L1 distance between the centered logits and those of the proxy, which is untrained,
      so that the answers say little;
    - *silence*: on outliers, the L2 norm of the gradient that the proxy gets from the answers.

    PCGrad merges the gradients of the four. The proxy has new weights of the victim's architecture that are never
    trained, as in the published script.

    Weights of the first two are the published script's, for ResNet-18 on CIFAR-10. It takes 1000 times the mean
    absolute value for silence, which falls with the number of weights D; of ResNet-18's 11 million it is about
    1000 / sqrt(D) = 0.3 times the norm. Also unlike the published code, gradients are summed after PCGrad, as in
    PCGrad's paper, and not averaged; the proxy's logits are centered, too; and a distance on the victim's training
    images is left out, whose weight in the script is 0.

    It is trained once for each setting and stored like a victim.

    Args:
        epsilon: None: there is no L1 budget.
        weight: factor of the three losses, at least 0; larger is stronger.
        isolation: weight of isolation, at least 0.
        induction: weight of induction, at least 0.
        silence: weight of silence, at least 0.
        outliers: a pool of images that are none of the victim's, such as an adversary's queries.
        as_published: the proxy learns by KL(proxy || victim), as in the published code; False takes the adversary's
            loss, KL(victim || proxy).
        epochs: passes over the training images; None for the victim's.
    """

    name = "ini"
    strength_parameter = "weight"
    epsilon: float | None = None
    weight: float = 1.0
    isolation: float = 1.0
    induction: float = 0.3
    silence: float = 0.3
    outliers: Pool | None = None
    as_published: bool = False
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon:
            raise MadError(f"defense=ini has no L1 budget, got defense.epsilon={self.epsilon:g}: turn defense.weight")
        for name in ("weight", "isolation", "induction", "silence"):
            check_number(f"defense.{name}", getattr(self, name), 0)
        check_number("defense.epochs", 1 if self.epochs is None else self.epochs, 1, whole=True)
        check_flag("defense.as_published", self.as_published)
        if self.outliers is None:
            raise MadError("defense=ini needs a pool of outliers, got none: choose one, as defense/outliers=letters")

    def check(self, victim: Victim) -> None:
        """Raise MadError if the victim is given, or if a gradient of the proxy's gradient cannot be computed."""
        victim.check_trainable("defense=ini")
        with imagenet.left_out():
            model, proxy = (victim.untrained(seed=0, purpose=purpose) for purpose in ("victim", "proxy"))
        images = torch.zeros(2, *victim.dataset.shape)
        try:
            with seeded(0, "check"):  # a gradient of some weights only would not meet all functions, and raise nothing
                losses = self.trainer(victim, proxy, images).losses(model, images, torch.zeros(2, dtype=torch.int64))
                torch.stack(losses).sum().backward()
        except RuntimeError as error:
            raise MadError(
                f"defense=ini cannot train {name_of(victim.architecture)} ({' '.join(str(error).split())[:150]}): "
                "choose another, such as architecture=resnet18"
            ) from error

    def trainer(self, victim: Victim, proxy: nn.Module, outliers: Tensor) -> IsolatingTrainer:
        """Return how the served network is trained."""
        return IsolatingTrainer.like(
            victim.trainer.but(epochs=self.epochs),
            isolation=self.weight * self.isolation,
            induction=self.weight * self.induction,
            silence=self.weight * self.silence,
            as_published=self.as_published,
            proxy=proxy,
            outliers=outliers,
        )

    def trainings(self, victim: Victim) -> float:
        """Return the measured factor of its second-order steps, times the epochs that it takes."""
        return 9.2 * (self.epochs or victim.trainer.epochs) / victim.trainer.epochs

    def serve(self, context: Context) -> nn.Module:
        """Return the network, trained or loaded."""
        victim, pool = context.victim, self.outliers
        assert pool is not None  # see check

        def fit(network: nn.Module, split: Split, how: dict[str, Any]) -> None:
            proxy = place(victim.untrained(seed=victim.seed, purpose="proxy"), context.device)
            outliers = in_memory(context.images(pool), victim.seed, context.device)
            self.trainer(victim, proxy, outliers).fit(network, split.images, split.labels, **how)

        return context.retrained(self.name, [self, context.contents(pool)], fit)

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the posteriors of the served network unchanged."""
        return clean


def in_memory(images: Images, seed: int, device: torch.device) -> Tensor:
    """Return a pool's images on a device; of a pool above ``IN_MEMORY`` bytes, some that are drawn at random."""
    if isinstance(images, Tensor) and images.nbytes <= IN_MEMORY:
        return to_device(images, device)
    first = next(batches(images, torch.zeros(1, dtype=torch.int64), 1, torch.device("cpu")))
    rows = torch.randperm(len(images), generator=generator(seed, "outliers"))[: IN_MEMORY // first.nbytes]
    return torch.cat(list(batches(images, rows, 1000, device)))
