"""DP-SGD (Abadi et al., 2016), a baseline of the paper: a victim that is trained with differential privacy."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mad.architectures import imagenet
from mad.augmentation import augmented
from mad.datasets import Images, batches, to_device, to_unit_range
from mad.defenses.base import Context, Defense
from mad.errors import MadError, check_number
from mad.progress import bar
from mad.schema import Column
from mad.seeds import derive, generator, seeded
from mad.storage.fingerprint import name_of
from mad.training import Trainer, place
from mad.victim import Architecture, Victim

LARGE_ORDERS = (80, 100, 150, 250, 500, 1000)  # of the Renyi divergence, for much noise


@dataclass(frozen=True)
class PrivateTrainer(Trainer):
    """A recipe that clips the gradient of each image and adds Gaussian noise to their sum, in float32.

    Each step samples every image with the same probability (Poisson sampling, which the privacy accountant assumes), on
    average ``batch_size`` images. Opacus clips the gradients by ghost clipping, which is exact. It stores no per-image
    gradients for linear layers, and for other layers those of one layer at a time; with a large ``batch_size``, those
    of a convolution can fill the memory. The noise is drawn from the seed, so that the same victim can be trained
    again. There is no privacy against someone who knows the seed.

    Args:
        noise_multiplier: standard deviation of the noise, in units of ``max_grad_norm``.
        max_grad_norm: L2 norm to which the gradient of one image is clipped.
    """

    noise_multiplier: float = 1.0
    max_grad_norm: float = 1.0

    def chance(self, size: int) -> float:
        """Return the probability with which a step samples each of ``size`` images."""
        return min(1.0, self.batch_size / size)

    def steps(self, size: int) -> tuple[int, int]:
        """Return the number of epochs, and of steps in each, on ``size`` images."""
        steps = -(-size // self.batch_size)
        return max(self.epochs, -(-self.min_steps // steps)), steps

    def spent(self, size: int, delta: float) -> float:
        """Return the epsilon of (epsilon, delta)-differential privacy on ``size`` images, an upper bound (Renyi)."""
        from opacus.accountants import RDPAccountant

        accountant, (epochs, steps) = RDPAccountant(), self.steps(size)
        accountant.history = [(self.noise_multiplier, self.chance(size), epochs * steps)]
        orders = [*accountant.DEFAULT_ALPHAS, *LARGE_ORDERS]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it says that another order might give a smaller bound
            return max(0.0, float(accountant.get_epsilon(delta=delta, alphas=orders)))  # a bound below 0 says 0

    def epochs_of(
        self,
        model: nn.Module,
        images: Images,
        targets: Tensor,
        *,
        seed: int,
        device: torch.device,
        task: str,
        rows: Tensor | None = None,
    ) -> Iterator[int]:
        """Train ``model`` in place as ``Trainer.epochs_of`` does; an epoch samples each image once on average."""
        from opacus.optimizers import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        images = to_device(images, device) if isinstance(images, Tensor) else images
        rows = torch.arange(len(images)) if rows is None else rows
        size, targets = len(rows), targets.to(device)
        epochs, steps = self.steps(size)
        network = watched(model.to(device), self.max_grad_norm)
        private = network._module
        plain = self._optimizer(private, device)
        scheduler = self._scheduler(plain, steps, epochs)
        optimizer = DPOptimizerFastGradientClipping(
            plain,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            expected_batch_size=min(self.batch_size, size),
            generator=torch.Generator(device).manual_seed(derive(seed, f"noise of {task}")),
        )
        criterion = DPLossFastGradientClipping(network, optimizer, nn.CrossEntropyLoss())
        order, draw = generator(seed, f"order of {task}"), generator(seed, f"augmentation of {task}")
        with bar(task, epochs * size) as progress:
            for epoch in range(1, epochs + 1):
                for _ in range(steps):
                    some = (torch.rand(size, generator=order) < self.chance(size)).nonzero().squeeze(1)
                    batch = next(batches(images, rows[some], max(1, len(some)), device))
                    logits = network(to_unit_range(augmented(batch, self.augment, draw)))
                    loss = criterion(logits, targets[some.to(device)])
                    optimizer.zero_grad()
                    with warnings.catch_warnings():  # of the images, which need no gradient
                        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
                        loss.backward()
                    optimizer.step()
                    scheduler.step()
                    progress(len(some), f"epoch {epoch}/{epochs}", loss.detach())
                model.load_state_dict(private.state_dict())
                place(model, device).train()
                yield epoch


def watched(model: nn.Module, max_grad_norm: float = 1.0) -> Any:
    """Return a copy of the model, in train mode, in Opacus's wrapper, which computes each image's gradient norm.

    The copy is ``_module`` of the wrapper. It is a copy because Opacus adds hooks and attributes to a model, and needs
    activations that are not in place.
    """
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    private = copy.deepcopy(model).train()
    for part in private.modules():
        if getattr(part, "inplace", False):
            vars(part)["inplace"] = False
    return GradSampleModuleFastGradientClipping(private, max_grad_norm=max_grad_norm)


def group_normed(architecture: Architecture, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return an architecture's network with newly initialized group norms in place of batch norms, as Opacus does it.

    A norm of C channels gets gcd(32, C) groups. All other weights stay the architecture's, such as ImageNet's.
    """
    from opacus.validators import ModuleValidator

    network: nn.Module = ModuleValidator.fix(architecture(shape=shape, classes=classes))
    return network


def mixing(network: nn.Module) -> bool:
    """Return whether a network has a batch norm, which makes answers in train mode depend on the whole batch."""
    return any(isinstance(part, _BatchNorm) for part in network.modules())


@dataclass
class DpSgd(Defense):
    """Serve a model of the victim's architecture that was trained with DP-SGD; its answers are left as they are.

    Batch norm mixes the images of a batch, which DP-SGD does not allow; group norms, newly initialized, replace it.
    All other layers keep their initial weights, such as ImageNet's.

    The model is trained once for each setting and stored like a victim. The privacy that was spent is in the record:
    ``dp_epsilon``, at ``dp_delta``.

    Args:
        epsilon: None: there is no L1 budget, and the privacy's epsilon follows from the other settings.
        noise_multiplier: standard deviation of the noise in units of ``max_grad_norm``; larger is more private.
        max_grad_norm: L2 norm to which the gradient of one image is clipped.
        batch_size: images per step, on average.
        epochs: passes over the training images.
        min_steps: the least number of steps; small data sets get more epochs to reach it.
        learning_rate: the highest rate of the one-cycle schedule.
        delta: the delta, above 0 and at most 0.99, at which the privacy's epsilon is computed.
    """

    name = "dp_sgd"
    strength_parameter = "noise_multiplier"
    schema = (
        Column("dp_epsilon", "number", "", "the privacy budget that the victim's training spent, computed"),
        Column("dp_delta", "number", "probability", "the delta that this budget is for"),
    )
    epsilon: float | None = None
    noise_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    batch_size: int = 256
    epochs: int = 5
    min_steps: int = 800
    learning_rate: float = 0.1
    delta: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon:
            raise MadError(
                f"defense=dp_sgd has no L1 budget, got defense.epsilon={self.epsilon:g}: turn defense.noise_multiplier"
            )
        check_number("defense.noise_multiplier", self.noise_multiplier, 0.01)
        check_number("defense.max_grad_norm", self.max_grad_norm, 1e-9)
        check_number("defense.delta", self.delta, 1e-300, 0.99)
        self.trainer()  # checks the other settings

    def trainer(self) -> PrivateTrainer:
        """Return how the served model is trained."""
        return PrivateTrainer(
            self.epochs,
            self.batch_size,
            optimizer="momentum",
            learning_rate=self.learning_rate,
            momentum=0.9,
            weight_decay=0.0,
            schedule="one_cycle",
            min_steps=self.min_steps,
            precision="float32",
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
        )

    def check(self, victim: Victim) -> None:
        """Raise MadError if Opacus is not installed, or cannot train the network (it is tried on two images)."""
        victim.check_trainable("defense=dp_sgd")
        if importlib.util.find_spec("opacus") is None:
            raise MadError("defense=dp_sgd needs Opacus: pip install 'mad[dp]'")
        try:
            with imagenet.left_out():
                network = self.recipe(victim).untrained(seed=0, purpose="check")
            if mixing(network):
                raise NotImplementedError("Opacus knows no group norm in place of its kind of batch norm")
            with seeded(0, "check"), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                tried = watched(network)
                tried(torch.zeros(2, *victim.dataset.shape)).sum().backward()
                tried.get_norm_sample()
        except MadError:
            raise
        except Exception as error:  # whatever Opacus raises
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            raise MadError(
                f"defense=dp_sgd cannot train {name_of(victim.architecture)} ({reason}): "
                "choose another, such as architecture=resnet18"
            ) from error

    def served_architecture(self, victim: Victim) -> Architecture:
        """Return the architecture with group norms in place of batch norms, if it has any."""
        recipe = self.recipe(victim)
        return recipe.rebuilt_by(recipe.architecture)

    def recipe(self, victim: Victim) -> Victim:
        """Return the recipe of the model that is served in place of the victim."""
        with imagenet.left_out():
            mixes = mixing(victim.untrained(seed=0, purpose="check"))
        own = victim.architecture
        architecture = partial(group_normed, own) if mixes else own
        return replace(victim, name=f"{victim.name}-{self.name}", architecture=architecture, trainer=self.trainer())

    def serve(self, context: Context) -> nn.Module:
        """Return the private model, trained or loaded."""
        return context.trained(self.recipe(context.victim))

    def columns(self, context: Context) -> dict[str, Any]:
        """Return the columns of the privacy that was spent, as the accountant computes it."""
        size = len(context.victim.training_split().labels)
        return {"dp_epsilon": self.trainer().spent(size, self.delta), "dp_delta": self.delta}

    def perturb(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the posteriors of the private model unchanged."""
        return clean
