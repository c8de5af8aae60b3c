"""What every defense promises, whatever it computes inside."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn
from toys import CPU, build, compose, composed_choices, victim

from mad import simplex, solvers
from mad.defenses import Context, Defense, Undefended
from mad.defenses.mad import Mad
from mad.defenses.mad_argmax import MadArgmax
from mad.defenses.random_noise import RandomNoise
from mad.errors import MadError
from mad.storage.fingerprint import describe, digest
from mad.testing import check_defense

EPSILONS = (0, 0.1, 0.5, 0.95, 1, 1.5, 2)
NODES = composed_choices("defense")
NODES |= {
    f"{name} {key}={value}": OmegaConf.merge(NODES[name], OmegaConf.from_dotlist([f"{key}={value}"]))
    for name in ("mad", "mad_argmax")
    for key, value in (("solver", "exact"), ("gradient", "all"), ("as_published", "true"))
}
NODES["reverse_sigmoid as_published=true"] = compose(
    "defense=reverse_sigmoid", "defense.as_published=true", "defense.beta=1"
).defense
RANDOM = ("defense/surrogate=random", "defense/surrogate/architecture=mlp")  # quick, and of more than one layer
NODES |= {
    f"gradient_redirection{f' direction={way}' if way != 'all_ones' else ''}": compose(
        "defense=gradient_redirection", f"defense.direction={way}", *RANDOM[: 1 if way == "min_inner_product" else 2]
    ).defense
    for way in ("all_ones", "min_inner_product", "watermark", "random")
}
PERTURBING = [name for name in NODES if name != "none"]
BUDGETED = [name for name in PERTURBING if NODES[name].epsilon is not None]
FREE = [name for name in PERTURBING if name not in BUDGETED]
CASES = [("none", 0), ("random_noise", None), *((name, None) for name in FREE)]
CASES += [(name, epsilon) for name in PERTURBING for epsilon in (EPSILONS if "=" not in name else (0.1, 0.95, 2))]
TRAINED = ("dp_sgd", "edm", "ini", "nasty_teacher")  # they move no answer, and take no budget
CASES = [case for case in CASES if case[0] not in TRAINED or not case[1]]
CASES = [case for case in CASES if case[0] != "gate" or case[1] in (0, 0.5, 2)]  # each is calibrated anew
QUICK = {  # training settings that do for a promise
    "dp_sgd": {"min_steps": 1, "epochs": 1},
    "edm": {"networks": 2, "outliers": {"size": 50}},
    "ini": {"outliers": {"size": 50}, "epochs": 1},
    "queen": {"shadows": 1, "map_steps": 5},
}
ROWS = 12


def toy_of(name, classes=4):
    return victim(classes, validation=0.3 if name == "gate" else 0.0)


def ready(name, epsilon, classes, seed=0):
    toy = toy_of(name, classes)
    model = toy.untrained(seed=0, purpose="victim")
    return build(NODES[name], epsilon=epsilon, **QUICK.get(name, {})).prepared(Context(toy, model, seed, CPU))


def images_of(classes):
    return torch.rand(ROWS, 1, 8, 8, generator=torch.Generator().manual_seed(classes))


def posteriors(kind, classes):
    torch.manual_seed(7)
    if kind == "dirichlet":
        return torch.distributions.Dirichlet(torch.full((classes,), 0.3)).sample((ROWS,))
    if kind == "one_hot":
        return torch.eye(classes)[torch.randint(classes, (ROWS,))]
    if kind == "uniform":
        return torch.full((ROWS, classes), 1 / classes)
    if kind == "tied":
        return torch.eye(classes)[torch.arange(ROWS) % classes] / 2 + torch.eye(classes)[0] / 2
    # The surrogate's own posterior: the direction to turn away from is zero.
    twin = victim(classes).untrained(seed=0, purpose="surrogate")
    return torch.softmax(twin(images_of(classes)), dim=1).detach()


def check(answers, clean, epsilon):
    assert answers.shape == clean.shape
    assert answers.isfinite().all()
    assert (answers >= 0).all()
    assert torch.allclose(answers.sum(dim=1), torch.ones(len(clean)), atol=1e-5)
    assert simplex.l1(answers, clean).max() <= (2 if epsilon is None else epsilon) + 1e-5


@pytest.fixture(autouse=True)
def rng():
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize(("name", "epsilon"), CASES)
def test_conformance(name, epsilon, classes):
    check_defense(build(NODES[name], epsilon=epsilon, **QUICK.get(name, {})), (classes,))


@pytest.mark.parametrize("name", PERTURBING)
def test_no_budget_is_no_change(name):
    if name in TRAINED:
        return
    images, clean = images_of(10), posteriors("dirichlet", 10)
    assert torch.equal(ready(name, 0, 10).session()(images, clean), clean)


@pytest.mark.parametrize("name", BUDGETED)
def test_a_budget_is_used(name):
    if name in ("modelguard_s", "gate"):
        return  # its first answers, or those to images like the owner's, are the posteriors themselves
    clean = posteriors("dirichlet", 10)
    answers = ready(name, 0.5, 10)(images_of(10), clean)
    assert simplex.l1(answers, clean).mean() > 0.25


@pytest.mark.parametrize("name", PERTURBING)
def test_preparing_leaves_the_recipe_alone(name):
    defense = build(NODES[name], **QUICK.get(name, {}))
    before = dict(vars(defense))
    toy = toy_of(name)
    model = toy.untrained(seed=0, purpose="victim")
    assert defense.prepared(Context(toy, model, 0, CPU)) is not defense
    assert vars(defense) == before


@pytest.mark.parametrize("kind", ["dirichlet", "one_hot", "uniform", "tied", "surrogate"])
@pytest.mark.parametrize("name", [name for name in NODES if name.startswith("mad_argmax")])
def test_mad_argmax_keeps_every_top_class(name, kind):
    for classes, epsilon in itertools.product((2, 10, 100), (0.1, 0.95, 2)):
        clean = posteriors(kind, classes)
        answers = ready(name, epsilon, classes)(images_of(classes), clean)
        assert torch.equal(answers.argmax(dim=1), clean.argmax(dim=1)), (classes, epsilon)


def test_exact_deviates_more_than_published_and_theta_matters():
    images, clean = images_of(10), posteriors("dirichlet", 10)
    toy = victim(10)
    found = {}
    for name in ("mad", "mad solver=exact", "mad gradient=all", "mad_argmax", "mad_argmax solver=exact"):
        defense = ready(name, 0.5, 10)
        found[name] = defense(images, clean)
        p = torch.softmax(toy.untrained(seed=0, purpose="surrogate")(images), dim=1).detach()
    value = {name: solvers.objective(answers, clean, p).mean() for name, answers in found.items()}
    assert value["mad solver=exact"] > value["mad"] + 0.01
    assert value["mad solver=exact"] > value["mad_argmax solver=exact"] > value["mad_argmax"]


@pytest.mark.parametrize("name", ["mad", "mad_argmax"])
@pytest.mark.parametrize(("key", "value"), [("solver", "best"), ("gradient", "first_layer")])
def test_an_unknown_solver_or_gradient_is_refused(name, key, value):
    with pytest.raises(MadError, match=f"defense.{key} must be one of .*{value}"):
        (MadArgmax if name == "mad_argmax" else Mad)(0.5, **{key: value})


@pytest.mark.parametrize("name", ["mad", "mad_argmax"])
@pytest.mark.parametrize("other", [{"solver": "exact"}, {"gradient": "all"}])
def test_as_published_takes_nothing_else(name, other):
    kind = MadArgmax if name == "mad_argmax" else Mad
    with pytest.raises(MadError, match=rf"as_published=true takes .*, got .*{next(iter(other.values()))}"):
        kind(0.5, **other, as_published=True)
    with pytest.raises(MadError, match=r"defense\.as_published must be true or false"):
        kind(0.5, as_published="no")
    assert "as_published" not in describe(kind(0.5))
    assert digest(describe(kind(0.5, as_published=True))) != digest(describe(kind(0.5)))


def test_as_published_reaches_the_search_above_ten_classes():
    images, clean = images_of(99), torch.softmax(0.5 * torch.randn(ROWS, 99), dim=1)
    answers = [ready(f"mad_argmax{how}", 0.5, 99)(images, clean) for how in ("", " as_published=true")]
    p = torch.softmax(victim(99).untrained(seed=0, purpose="surrogate")(images), dim=1).detach()
    assert torch.equal(answers[1], solvers.argmax_vertex(clean, p, 0.5, as_published=True))
    assert not torch.allclose(*answers, atol=1e-3)


@pytest.mark.parametrize("name", ["random_noise", "mad", "mad_random"])
def test_another_seed_changes_the_answers(name):
    images, clean = images_of(10), posteriors("dirichlet", 10)
    answers = [ready(name, 0.5, 10, seed)(images, clean) for seed in (0, 1)]
    assert not torch.allclose(*answers, atol=1e-3)


@pytest.mark.parametrize(("name", "epsilon"), [("random_noise", 0.5), ("random_noise", None), ("mad_random", 0.5)])
def test_noise_depends_on_the_image_and_repeats(name, epsilon):
    defense, clean = ready(name, epsilon, 10), posteriors("uniform", 10)
    images = images_of(10)
    images[1] = images[0]
    images[2] = images[0]
    images[2, 0, 0, 0] += 1e-3
    answers = defense(images, clean)
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2], atol=1e-3)


def test_noise_is_uniform():
    defense = RandomNoise(2.0, scale=1.0)
    defense.prepare(Context(victim(), nn.Identity(), 0, CPU))
    half = torch.full((400, 100), 0.5)
    noise = torch.logit(defense.noisy(torch.rand(400, 1, 8, 8), half)).double()
    assert noise.abs().max() <= 1 + 1e-5
    assert abs(noise.mean()) < 0.02
    assert abs(noise.var() - 1 / 3) < 0.02


def test_mad_changes_the_top_class_from_one_on():
    images, clean = images_of(10), posteriors("dirichlet", 10)
    tops = {epsilon: ready("mad", epsilon, 10)(images, clean).argmax(dim=1) for epsilon in (0.1, 1.5, 2)}
    changed = {epsilon: (top != clean.argmax(dim=1)).float().mean() for epsilon, top in tops.items()}
    assert changed[0.1] <= changed[1.5] <= changed[2]
    assert changed[2] > 0.9


@dataclass
class Hostile(Defense):
    """Answers with anything."""

    name = "hostile"
    epsilon: float | None
    answer: Tensor | None = None

    def perturb(self, images, clean):
        return self.answer


NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)
TABLES = st.lists(st.lists(NUMBERS, min_size=4, max_size=4), min_size=1, max_size=3)
MASSES = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4).filter(lambda row: sum(row) > 1e-3)


@given(TABLES, MASSES, st.none() | st.floats(0, 2))
def test_no_perturbation_escapes(table, masses, epsilon):
    answer = torch.tensor(table)
    clean = torch.tensor(masses).div(sum(masses)).expand(len(answer), 4)
    check(Hostile(epsilon, answer)(torch.zeros(len(answer), 1, 8, 8), clean), clean, epsilon)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 3e38, 1e-45])
@pytest.mark.parametrize("epsilon", [None, 0, 0.3, 2])
def test_no_constant_escapes(value, epsilon):
    clean = posteriors("dirichlet", 4)
    for answer in (torch.full_like(clean, value), clean.clone().index_fill_(1, torch.tensor([2]), value)):
        check(Hostile(epsilon, answer)(torch.zeros(ROWS, 1, 8, 8), clean), clean, epsilon)


def test_a_good_perturbation_passes_unchanged():
    clean = torch.tensor([[0.5, 0.3, 0.2]])
    near, far = torch.tensor([[0.4, 0.4, 0.2]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert torch.allclose(Hostile(0.5, near)(near, clean), near)
    assert torch.allclose(Hostile(0.4, far)(far, clean), torch.tensor([[0.375, 0.225, 0.4]]))


@pytest.mark.parametrize(
    "row", [[float("nan"), 1.0], [float("inf"), 0.0], [1.5, -0.5], [0.5, 0.4], [0.0, 0.0], [0.6, 0.5]]
)
@pytest.mark.parametrize("epsilon", [0, 0.5])
def test_a_clean_row_that_is_no_posterior_is_refused(row, epsilon):
    clean = torch.tensor([[0.5, 0.5], row])
    with pytest.raises(MadError, match="victim"):
        Hostile(epsilon, clean)(clean, clean)


@pytest.mark.parametrize("epsilon", [-1, -1e-9, 2.0001, 3, True, "0.5", "abc", float("nan"), float("inf")])
@pytest.mark.parametrize("defense", [Mad, RandomNoise, Undefended])
def test_epsilon_out_of_range_is_refused(defense, epsilon):
    with pytest.raises(MadError, match="epsilon"):
        defense(epsilon)


@pytest.mark.parametrize("epsilon", [0.5, None, 2])
def test_none_takes_no_epsilon(epsilon):
    with pytest.raises(MadError, match="none"):
        Undefended(epsilon)
