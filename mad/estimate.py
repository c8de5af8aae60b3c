"""What is left to do of some cells, and about how long it takes: from kept records, else from a short measurement."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mad import measure
from mad.cell import SHARED, Cell, surrogates
from mad.datasets import checked
from mad.datasets.owned import OwnImages
from mad.schema import Record
from mad.storage.files import DamagedError, below
from mad.storage.fingerprint import describe, digest, identity, name_of, settings
from mad.storage.record_file import read_record
from mad.training import Trainer
from mad.victim import Victim

SIZES = {  # training and test images of the published data sets, which are not read for an estimate
    **dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), (60_000, 10_000)),
    **dict.fromkeys(("cifar10", "cifar100"), (50_000, 10_000)),
    **{"emnist": (112_800, 18_800), "emnist_letters": (124_800, 20_800), "cifar100_test": (10_000, 0)},
    **{"cub200": (5_994, 5_794), "tiny_imagenet": (100_000, 10_000), "imagenet": (1_281_167, 50_000)},
}
RECORD = 8_000  # bytes of a record with its series, about
BOTH = 3  # forward passes over the test split, beside the defended answers: victim, stolen model, their agreement
PROBED = 10  # times as long as a query takes with the gradient probe
ROUNDS = 2  # an attack that trains between its queries goes through its transfer set about this often, times its epochs


@dataclass
class Estimate:
    """One cell: what is left of it.

    Args:
        label: what it is called.
        kept: whether its record is there.
        seconds: how long the rest takes; 0 if it is kept.
        bytes: what it will keep on the disk.
        error: why it cannot be run, if it cannot.
        left_out: whether it is for that reason left out of a grid.
        budget: how many queries it makes.
    """

    label: str
    kept: bool = False
    seconds: float = 0.0
    bytes: int = 0
    error: str | None = None
    left_out: bool = False
    budget: int = 0


@dataclass
class Estimator:
    """Estimates cells one after another; what an earlier cell will have made costs later ones nothing.

    Args:
        outputs: the outputs folder; nothing is written there.
        device: where the cells compute.
        threads: with how many CPU threads; records of other numbers are not looked at.
        records: the records of ``outputs``.
        from_records: how many rates came from records.
        measured: how many were measured.
        unknown: services whose queries are not estimated: a plan asks none.
    """

    outputs: Path
    device: torch.device
    threads: int
    records: list[Record]
    from_records: int = 0
    measured: int = 0
    unknown: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    rates: dict[str, float] = field(default_factory=dict)

    def there(self, *files: Path) -> bool:
        """Return whether all files exist below the outputs folder."""
        return all(below(self.outputs, file).is_file() for file in files)

    def kept(self, cell: Cell) -> bool:
        """Return whether a cell's record is there and whole."""
        try:
            return read_record(below(self.outputs, cell.path)) is not None
        except DamagedError:
            return False

    def of(self, label: str, cell: Cell, *, again: bool = False, everything: bool = False) -> Estimate:
        """Return the estimate of a cell.

        Args:
            label: what it is called.
            cell: the cell.
            again: whether it is to be made although it is kept, as with ``force=true``.
            everything: whether its networks are, too, as with ``force=all``.

        Raises:
            MadError: if it cannot be run.
        """
        pool = None if cell.pool is None else pool_size(cell)
        budget = cell.attack.affordable(None if pool is None else torch.empty(pool, 0), cell.pool_name)
        if self.kept(cell) and not again and not everything:
            return Estimate(label, kept=True, budget=budget)
        found = Estimate(label, bytes=RECORD, budget=budget)
        for recipe in networks(cell):
            self._network(recipe, found, everything)
        self._prepared(cell, found, everything)
        asked = self._asking(cell)
        images = cell.attack.trained_on(budget)
        stored = not cell.attack.depends_on_answers and pool is not None
        name = Path("transfers", cell.victim.name, digest(describe(cell.asked_by))) if stored else Path("none")
        if not stored or again or everything or not self._made(name, "transfer.safetensors", "transfer.json"):
            found.seconds += budget * asked * (PROBED if cell.probe else 1) + self._between(cell, budget)
            found.bytes += images * (8 + 4 * cell.victim.dataset.classes) if stored else 0
        if images:
            times = 1 + cell.recovery.trainings
            found.seconds += times * images * epochs(cell.knockoff.trainer, images) * self._learning(cell)
        found.seconds += sizes(cell.victim.dataset)[1] * (asked + BOTH * self._passing(cell))
        if cell.victim.form == "service":
            self.unknown.add(cell.victim.who)
        return found

    def _made(self, folder: Path, *files: str) -> bool:
        """Return whether something is kept, or will be by an earlier cell; from now on it will be."""
        made = folder.as_posix() in self.done or self.there(*(folder / file for file in files))
        self.done.add(folder.as_posix())
        return made

    def _network(self, recipe: Victim, found: Estimate, everything: bool) -> None:
        """Add the training of a network, unless it is kept or given."""
        if recipe.given is not None:
            return
        folder = Path("victims", recipe.name, digest(describe(recipe)))
        first = folder.as_posix() not in self.done
        if self._made(folder, "weights.safetensors", "victim.json") and not (everything and first):
            return
        count = round(sizes(recipe.dataset)[0] * (1 - recipe.validation))
        found.seconds += count * epochs(recipe.trainer, count) * self._training(recipe, None, recipe.trainer)
        found.bytes += self._rate(
            f"bytes {size_key(recipe, None)}", None, lambda: measure.size_of(recipe), counts=False
        )

    def _prepared(self, cell: Cell, found: Estimate, everything: bool) -> None:
        """Add what the defense trains beside those networks; it is not looked up, so some of it may be kept."""
        times = sum(part.trainings(cell.victim) for part in cell.defense.components())
        key = Path("prepared", digest(describe([cell.victim, cell.defense, cell.seed])))
        if times and (everything or not self._made(key, "none")):
            recipe, count = cell.victim.trainer, round(sizes(cell.victim.dataset)[0] * (1 - cell.victim.validation))
            found.seconds += times * count * epochs(recipe, count) * self._training(cell.victim, None, recipe)

    def _rate(
        self, key: str, known: Callable[[], list[float]] | None, make: Callable[[], float], counts: bool = True
    ) -> Any:
        """Return a number by its key: the median of what records tell, or else what is measured now; found once."""
        if key not in self.rates:
            told = [] if known is None else known()
            self.rates[key] = statistics.median(told) if told else make()
            self.from_records += counts and bool(told)
            self.measured += counts and not told
        return self.rates[key]

    def _passing(self, cell: Cell) -> float:
        """Return the seconds that a forward pass takes an image."""
        if cell.victim.form is None:
            return self._training(cell.victim, None, cell.victim.trainer) / 3
        key = f"passing {digest(describe(cell.victim))}"
        return float(self._rate(key, None, lambda: measure.answering(cell.victim, self.device)))

    def _training(self, victim: Victim, make: Any, trainer: Trainer) -> float:
        """Return the seconds an image and epoch of a victim's training."""
        key = f"training {size_key(victim, make)} {digest(describe(trainer.but(epochs=1, min_steps=0)))}"

        def known() -> list[float]:
            count = round(sizes(victim.dataset)[0] * (1 - victim.validation))
            work = count * epochs(trainer, count)
            like = {
                "victim": victim.name,
                "architecture": name_of(victim.architecture),
                "victim_epochs": trainer.epochs,
            }
            return [each["seconds_victim"] / work for each in self._like(like) if each["seconds_victim"] > 0]

        return float(self._rate(key, known, lambda: measure.training(victim, make, trainer, self.device)))

    def _learning(self, cell: Cell) -> float:
        """Return the seconds an image and epoch of the stolen model's training."""
        make, trainer = cell.knockoff.architecture, cell.knockoff.trainer
        key = f"learning {size_key(cell.victim, make)} {digest(describe(trainer.but(epochs=1, min_steps=0)))}"
        wanted = {"dataset": cell.victim.dataset.name, "attack": cell.attack.name}
        wanted |= {"knockoff_architecture": name_of(make), "knockoff_optimizer": trainer.optimizer}

        def known() -> list[float]:
            found = []
            for each in self._like(wanted):
                recipe = trainer.but(epochs=each["knockoff_epochs"], min_steps=each["knockoff_min_steps"])
                images = cell.attack.trained_on(each["budget"])
                if each["seconds_knockoff"] > 0:
                    found.append(each["seconds_knockoff"] / (images * epochs(recipe, images)))
            return found

        return float(self._rate(key, known, lambda: measure.training(cell.victim, make, trainer, self.device)))

    def _asking(self, cell: Cell) -> float:
        """Return the seconds that a defended query takes, without what an attack does in between."""
        told = describe(cell.defense)
        told.pop(cell.defense.strength_parameter, None)
        key = f"asking {size_key(cell.victim, None)} {digest([told, describe(cell.victim.given)])}"
        wanted = {"dataset": cell.victim.dataset.name, "architecture": name_of(cell.victim.architecture)}
        wanted |= {"defense": cell.defense.name, "defense_settings": settings(cell.defense), "attack": "knockoff"}

        def known() -> list[float]:
            return [each["seconds_queries"] / each["queries"] for each in self._like(wanted) if each.get("queries")]

        of_records = known if cell.victim.form is None else None  # no record says which function or service it was
        return float(self._rate(key, of_records, lambda: measure.asking(cell, self.device)))

    def _between(self, cell: Cell, budget: int) -> float:
        """Return the seconds that an attack computes while it asks: from records, else by a rule of thumb."""
        if not cell.attack.depends_on_answers or cell.attack.name == "replay":
            return 0.0
        wanted = {"dataset": cell.victim.dataset.name, "attack": cell.attack.name}
        wanted |= {"knockoff_architecture": name_of(cell.knockoff.architecture)}
        told = [each["seconds_queries"] / each["budget"] for each in self._like(wanted)]
        if told:
            self.from_records += 1
            return statistics.median(told) * budget
        times = 1 if cell.attack.online else ROUNDS * getattr(cell.attack, "epochs", 1)
        size = getattr(cell.attack, "batch_size", None)
        trainer = cell.knockoff.trainer.but(batch_size=size) if isinstance(size, int) else cell.knockoff.trainer
        return budget * times * self._training(cell.victim, cell.knockoff.architecture, trainer)

    def _like(self, wanted: Record) -> list[Record]:
        """Return the records that have these columns, of the same device and threads."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        wanted = wanted | {"device": device, "threads": self.threads}
        return [each for each in self.records if all(each.get(name) == value for name, value in wanted.items())]


def networks(cell: Cell) -> list[Victim]:
    """Return the recipes of the networks that a cell needs: the victim, and what its defense trains as one.

    A surrogate's ``recipe(victim, seed)``, and a defense's ``recipe(victim)``, return such recipes. What is trained in
    other ways, as by ``edm`` or ``ini``, is not among them; ``Defense.trainings`` says how long that takes.
    """
    found = [cell.victim]
    found += [each.recipe(cell.victim, cell.seed) for each in surrogates(cell.defense) if hasattr(each, "recipe")]
    parts: tuple[Any, ...] = cell.defense.components()
    return found + [part.recipe(cell.victim) for part in parts if hasattr(part, "recipe")]


def epochs(trainer: Trainer, images: int) -> int:
    """Return how many passes a training makes over some images: its epochs, or as many as ``min_steps`` asks for."""
    steps = max(1, -(-images // trainer.batch_size))
    return max(trainer.epochs, -(-trainer.min_steps // steps))


def sizes(dataset: Any) -> tuple[int, int]:
    """Return the number of training and of test images; published data sets are not read for it."""
    if isinstance(dataset, OwnImages):
        return dataset.count(testing=False), dataset.count(testing=True)
    if type(dataset).__module__.startswith("mad.datasets.") and dataset.name in SIZES:
        return SIZES[dataset.name]
    return split_size(dataset, "train"), split_size(dataset, "test")


def split_size(dataset: Any, part: str) -> int:
    """Return the number of images of a split, which is loaded."""
    return len(SHARED.get((part, identity(dataset)), lambda: checked.split(dataset, part)).labels)


def pool_size(cell: Cell) -> int:
    """Return the number of images of a cell's pool; it is read only where nothing else tells."""
    pool: Any = cell.pool
    if isinstance(pool, OwnImages):
        return pool.count(testing=False)
    if isinstance(getattr(pool, "size", None), int):
        return int(pool.size)
    if type(pool).__module__.startswith("mad.datasets.") and pool.name in SIZES:
        return SIZES[pool.name][0]
    if isinstance(getattr(pool, "files", None), list):
        return len(pool.files)
    return len(checked.pool(pool, cell.victim.dataset.shape, cell.victim.name))


def size_key(victim: Victim, make: Any) -> str:
    """Return what decides how much a network computes an image: its architecture, shape and classes."""
    told = [describe(make or victim.architecture), list(victim.dataset.shape), victim.dataset.classes]
    return json.dumps(told, sort_keys=True)
