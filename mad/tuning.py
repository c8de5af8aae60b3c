"""The best defense within limits: strengths by what they cost honest users, then a small panel, by successive halving.

All is measured on the validation split, which no victim learns from. The test split is for the winner's record.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mad.cell import SHARED, Cell
from mad.datasets import batches, to_unit_range
from mad.deployment import Deployment, deploy
from mad.device import use_threads
from mad.errors import MadError, check_number
from mad.evaluation import accuracy, top
from mad.operating_point import Costs, OperatingPoint
from mad.pipeline import pool_images
from mad.progress import Pace
from mad.storage.files import UnwritableError
from mad.storage.store import Store
from mad.study import finish, leave_out, trial_of

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

KEPT = 2  # one of so many candidates is kept from rung to rung
RUNGS = 3
TIMED = 200  # requests of one image that are timed


@dataclass(frozen=True)
class Limits:
    """What a defense may cost honest users, on the validation split.

    Args:
        loss: the most accuracy that the API may lose, a share in [0, 1].
        l1: the largest mean L1 distance between answers and clean answers, in [0, 2].
        latency: the longest that 99 of 100 requests of one image may take, in milliseconds; None for no limit.
    """

    loss: float = 0.01
    l1: float = 2.0
    latency: float | None = None

    def __post_init__(self) -> None:
        check_number("loss", self.loss, 0, 1)
        check_number("l1", self.l1, 0, 2)
        if self.latency is not None:
            check_number("latency", self.latency, 1e-3)


@dataclass(frozen=True)
class Candidate:
    """A defense to choose from.

    Args:
        name: what it is called in tables: its overrides.
        weakest: the weakest strength to consider; None for a defense without one.
        strongest: the strongest.
    """

    name: str
    weakest: float | None = None
    strongest: float | None = None


@dataclass(frozen=True)
class Ranked:
    """What is known of a candidate.

    Args:
        name: the candidate's.
        told: its ``strength``, if it has one, the ``loss`` of accuracy, the mean ``l1``, and the ``latency`` in
            milliseconds if it was asked for. None if no strength is within the limits.
        stolen: the highest mean stolen accuracy of any member, by rung, as shares; of the rungs that it reached.
        why: why it was left out, if it was.
    """

    name: str
    told: dict[str, float | None] | None
    stolen: list[float]
    why: str | None = None


Make = Callable[[Sequence[str], int], Cell]  # a cell of a candidate, with further overrides, for a seed


def tune(
    candidates: Sequence[Candidate],
    members: Sequence[Sequence[str]],
    make: Make,
    limits: Limits,
    budget: int,
    seeds: Sequence[int],
    store: Store,
    device: torch.device,
    study: Study,
    say: Callable[[str], object] = str,
    jobs: int = 1,
) -> Iterator[Ranked]:
    """Yield what becomes of each candidate, the best last; what the study holds is not measured again.

    Each rung steals with four times the queries of the one before, the last with ``budget``; the better half goes on.

    Args:
        candidates: the defenses to choose from.
        members: the overrides of each adversary of the small panel.
        make: returns a cell for overrides, the candidate's first, and a seed.
        limits: what a defense may cost.
        budget: queries of the last rung.
        seeds: of the last rung; those before use the first one.
        store: keeps networks.
        device: where to compute.
        study: an Optuna study, which minimizes, with a storage that lasts.
        say: given a line for each step.
        jobs: how many thefts to compute at once, in as many processes.

    Raises:
        MadError: if no candidate is within the limits, or the first one's error if none could be measured.
    """
    trials = {each.name: trial_of(study, each.name) for each in candidates}
    alive = []
    for number, each in enumerate(candidates, 1):
        trial = trials[each.name]
        if "why" not in trial.user_attrs:
            measure(trial, each, make, limits, store, device)
            say(f"strengths, {number} of {len(candidates)}: {each.name}{at(trial.user_attrs['told'])}")
        if trial.user_attrs["why"]:
            finish(study, trial, None)
            yield Ranked(each.name, trial.user_attrs.get("told"), [], trial.user_attrs["why"])
        else:
            alive.append(each.name)
    if not alive:
        failed = [each.user_attrs["why"] for each in trials.values() if each.user_attrs.get("failed")]
        if failed and len(failed) == len(trials):
            raise MadError(f"no defense could be measured: {failed[0]}")
        limit = f"no defense is left that costs at most {limits.loss:.1%} of accuracy and a mean L1 of {limits.l1:g}"
        raise MadError(f"{limit}: see the lines above; raise a limit, or name other defenses")
    sizes = [-(-len(alive) // KEPT**rung) for rung in range(RUNGS)]
    pace = Pace(sum(sizes[:-1]) + sizes[-1] * len(seeds))
    for rung in range(RUNGS):
        queries = max(1, budget // 4 ** (RUNGS - 1 - rung))
        scored = {}
        of = seeds if rung == RUNGS - 1 else seeds[:1]
        for number, name in enumerate(alive, 1):
            told = trials[name].user_attrs
            if told.get("failed_at") == rung:
                pace.done(len(of))
                yield ranked(trials[name], name)
                continue
            if str(rung) not in told["stolen"]:
                words, begun = [name, *strength_words(make, name, told["told"])], time.perf_counter()
                try:
                    share = worst(words, members, make, queries, of, store, device, jobs)
                except UnwritableError:
                    raise  # the machine's error and not the candidate's: none is judged by it
                except MadError as error:  # such as a stolen network that diverges: no reason to lose the others
                    leave_out(study, trials[name], rung, str(error))
                    pace.done(len(of))
                    yield ranked(trials[name], name)
                    continue
                pace.done(len(of), time.perf_counter() - begun)
                trials[name].report(share, rung)
                trials[name].set_user_attr("stolen", {**told["stolen"], str(rung): share})
                step = f"round {rung + 1} of {RUNGS}, {queries:,} queries, {number} of {len(alive)}"
                say(f"{step}: {name}{at(told['told'])}: stolen {share:.1%}; {pace.left}")
            else:
                pace.done(len(of))
            scored[name] = trials[name].user_attrs["stolen"][str(rung)]
        if not scored:
            raise MadError(f"no defense could be stolen from: {trials[alive[0]].user_attrs['failure']}")
        order = sorted(scored, key=lambda name: scored[name])
        keep = 1 if rung == RUNGS - 1 else max(1, -(-len(order) // KEPT))
        for name in reversed(order[keep:]):
            finish(study, trials[name], None)
            yield ranked(trials[name], name)
        alive = order[:keep]
    finish(study, trials[alive[0]], scored[alive[0]])
    yield ranked(trials[alive[0]], alive[0])


def at(told: dict[str, Any] | None) -> str:
    """Return a text of a candidate's strength."""
    if told is None:
        return ": left out"
    return "" if told["strength"] is None else f" at {told['strength']:g}"


def ranked(trial: Trial, name: str) -> Ranked:
    """Return what a study knows of a candidate."""
    known = trial.user_attrs
    return Ranked(name, known["told"], [known["stolen"][key] for key in sorted(known["stolen"])], known.get("failure"))


def measure(trial: Trial, candidate: Candidate, make: Make, limits: Limits, store: Store, device: torch.device) -> None:
    """Find a candidate's strongest point within the limits, and note it in its trial."""
    why, told = "", None
    try:
        cell = make([candidate.name], 0)
        costs = Costs(cell, store, device)
        point: OperatingPoint | None = costs.at(None) if candidate.weakest is None else None
        if candidate.weakest is not None and candidate.strongest is not None:
            point = costs.strongest(limits.loss, candidate.weakest, candidate.strongest, limits.l1)
        if point is None or not point.within(limits.loss, limits.l1):
            why = "no strength is within the limits" if candidate.weakest is not None else "it costs more"
        else:
            took = None if limits.latency is None else latency(costs.defended(point.strength), cell)
            told = {"strength": point.strength, "loss": point.loss, "l1": point.l1_mean, "latency": took}
            if took is not None and limits.latency is not None and took > limits.latency:
                why = f"99 of 100 requests take up to {took:.1f} ms"
    except UnwritableError:
        raise
    except MadError as error:  # such as a victim that it cannot guard: no reason to lose the others
        why = str(error)
        trial.set_user_attr("failed", True)
    trial.set_user_attr("told", told)
    trial.set_user_attr("why", why)


def strength_words(make: Make, name: str, told: dict[str, Any]) -> list[str]:
    """Return the override that sets a candidate's strength; none if it has none."""
    if told["strength"] is None:
        return []
    parameter = make([name], 0).defense.strength_parameter
    return [f"defense.{parameter}={told['strength']:.12g}"]  # as it was measured: rounded up, it may cost more


def worst(
    words: Sequence[str],
    members: Sequence[Sequence[str]],
    make: Make,
    budget: int,
    seeds: Sequence[int],
    store: Store,
    device: torch.device,
    jobs: int = 1,
) -> float:
    """Return the highest mean stolen accuracy, a share, of any member against a defense, on the validation split."""
    from joblib import Parallel, delayed

    asked = [[*words, *member, f"attack.budget={budget}"] for member in members]
    cells, threads = [make(each, seed) for each in asked for seed in seeds], torch.get_num_threads()
    shares = Parallel(n_jobs=jobs)(delayed(stolen_accuracy)(cell, store, device, threads) for cell in cells)
    return max(statistics.mean(shares[first : first + len(seeds)]) for first in range(0, len(shares), len(seeds)))


def stolen_accuracy(cell: Cell, store: Store, device: torch.device, threads: int) -> float:
    """Steal a cell's victim through its defense; return the stolen model's accuracy on the validation split, a share.

    No record is written and no test image is used.
    """
    use_threads(threads)  # in a process of its own
    images = None if cell.pool is None else pool_images(cell, cell.pool)
    budget = cell.attack.affordable(images, cell.pool_name)
    api = deploy(cell.victim, cell.defense, seed=cell.seed, store=store, device=device, cache=SHARED)
    adversary = cell.adversary(device, store)
    stolen = cell.attack.spend(api.session(budget, accounts=cell.attack.accounts), images, adversary)
    network = stolen.network
    if network is None:
        assert stolen.transfer is not None  # Attack.spend checks this
        network = adversary.learned_from(stolen.transfer).train(stolen.transfer)
    split = cell.victim.validation_split()
    return accuracy(top(network, "the stolen network", split.images, device), split.labels)


def latency(made: Deployment, cell: Cell) -> float:
    """Return how long 99 of 100 requests of one image take at most, in milliseconds of wall time."""
    api, took, images = made.session(), [], cell.victim.validation_split().images
    for image in batches(images, torch.arange(TIMED) % len(images), 1, torch.device("cpu")):
        given, start = to_unit_range(image), time.perf_counter()
        with SHARED.paused():  # the candidates before have asked the victim about the same images
            api(given)
        took.append(time.perf_counter() - start)
    return 1000 * statistics.quantiles(took, n=100)[-1]
