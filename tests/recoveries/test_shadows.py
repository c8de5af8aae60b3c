"""Shadow victims show an adversary what the defense does, and two recoveries learn from it."""

from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file
from toys import CPU, Blobs, Streamed, Tiny, Warm, cell, trainer, victim

from mad.architectures.lenet import LeNet
from mad.datasets import to_unit_range
from mad.defenses import Chain, Defense
from mad.defenses.dcp import Dcp
from mad.defenses.gate import Gate
from mad.defenses.mad import Mad
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.deployment import deploy
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.recoveries.bayes import Bayes
from mad.recoveries.restorer import Restorer, Seen, grid
from mad.recoveries.restorer_plus import RestorerPlus, near
from mad.recoveries.shadows import SECRETS, Pairs, Shadow, halves, pairs, shadows
from mad.simplex import are_posteriors, l1
from mad.storage.fingerprint import describe
from mad.storage.store import Store
from mad.testing import posteriors
from mad.transfer import TransferSet
from mad.victim import StandIn, Victim

POOL = Blobs().images((1, 8, 8))
LONG = Knockoff(trainer(min_steps=300))  # a shadow gets a third of it


@dataclass
class Squared(Defense):
    """Answer with the root of each posterior, rescaled: what a map of posteriors can undo."""

    name = "squared"
    epsilon: float | None = None

    def perturb(self, images, clean):
        return clean.sqrt() / clean.sqrt().sum(dim=1, keepdim=True)


def asked(defense, count=80, knockoff=LONG, **changes):
    whole = cell(defense=defense, recovery=Restorer(), knockoff=knockoff, **changes)
    answers = torch.eye(4)[torch.arange(200) % 4] * 0.7 + 0.075
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:count]
    return whole.adversary(CPU), TransferSet(POOL, rows, answers[rows])


def test_shadows_learn_one_half_and_answer_the_other():
    adversary, transfer = asked(Squared())
    learned, other = halves(adversary, transfer)
    assert torch.equal(torch.cat([learned, other]).sort().values, torch.arange(80))
    found, apis = pairs(adversary, transfer, 2), shadows(adversary, transfer, 2)
    assert found.clean.shape == found.defended.shape == (80, 4)
    assert len(apis) == 2 * SECRETS
    expected, labels = [], []
    for shadow in range(2):
        for secret in range(SECRETS):
            rows = other[secret::SECRETS]
            expected.append(apis[shadow * SECRETS + secret].api.answer(to_unit_range(POOL[transfer.rows[rows]]))[0])
            labels.append(transfer.answers[rows].argmax(dim=1))
    before = torch.cat(expected)
    assert torch.allclose(found.clean, before)
    assert torch.allclose(found.defended, before.sqrt() / before.sqrt().sum(dim=1, keepdim=True), atol=1e-6)
    assert (found.clean.argmax(dim=1) == torch.cat(labels)).double().mean() > 0.9  # they have learned something
    assert not torch.allclose(before[:40], before[40:])  # and are not one


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_answers_have_halves_too(count):
    adversary, transfer = asked(Squared(), count)
    learned, other = halves(adversary, transfer)
    assert len(learned) > 0
    assert len(other) > 0
    assert {*learned.tolist(), *other.tolist()} == {*range(count)}


def test_shadows_are_defended_with_other_secrets():
    adversary, transfer = asked(Mad(0.5))
    assert adversary.defense == Mad(0.5)
    images = to_unit_range(POOL)
    drawn = [shadow.deployment.defense._surrogate(images) for shadow in shadows(adversary, transfer, 2)]
    assert len({each.sum().item() for each in drawn}) == len(drawn) == 2 * SECRETS


def test_shadows_are_trained_once_for_all(tmp_path, fits):
    for recovery in (Restorer(2, steps=5), Bayes(shadows=2), RestorerPlus(2, steps=5), Restorer(1, steps=5)):
        record = run(cell(recovery=recovery), Store(tmp_path), CPU)[0]
        assert "shadow/" in record["uses"]
    assert fits.count("victim shadow") == 2
    assert fits.count("restorer") == 3


STILL = {"optimizer": "sgd", "learning_rate": 1e-9, "epochs": 1}


def test_shadows_start_untrained_whatever_the_factory_loads():
    adversary, transfer = asked(Squared(), 20, Knockoff(trainer(**STILL)), victim=victim(architecture=Warm))
    (shadow, *_) = shadows(adversary, transfer, 1)
    assert not torch.allclose(shadow.api._model.head.weight, Warm((1, 8, 8), 4).head.weight, atol=1e-2)


def test_shadows_start_from_the_knockoffs_initial_weights(tmp_path):
    given = Tiny((1, 8, 8), 4).state_dict()
    save_file(given, tmp_path / "given.safetensors")
    warm = Knockoff(trainer(**STILL), initial_weights=str(tmp_path / "given.safetensors"))
    adversary, transfer = asked(Squared(), 20, warm)
    assert torch.allclose(shadows(adversary, transfer, 1)[0].api._model.head.weight, given["head.weight"], atol=1e-4)
    cold = shadows(*asked(Squared(), 20, Knockoff(trainer(**STILL))), 1)[0]
    assert not torch.allclose(cold.api._model.head.weight, given["head.weight"], atol=1e-2)


def test_shadows_are_named_as_before(tmp_path):
    parts, knockoff = ("shadow", Blobs(), LeNet, trainer()), Knockoff(trainer(), LeNet)
    assert describe(StandIn(*parts)) == describe(Shadow(*parts, knockoff=knockoff)) == describe(Victim(*parts))
    save_file(LeNet((1, 28, 28), 4).state_dict(), tmp_path / "given.safetensors")
    warm = replace(knockoff, initial_weights=str(tmp_path / "given.safetensors"))
    assert describe(Shadow(*parts, knockoff=warm)) != describe(Victim(*parts))


class Dull(Tiny):
    """A network that is half as sure."""

    def forward(self, images):
        return super().forward(images) / 2


@dataclass
class Served(Squared):
    """Serve a network that is half as sure as the victim, and perturb nothing: a defense at training time."""

    name = "served"

    def serve(self, context):
        model = Dull(context.victim.dataset.shape, context.victim.dataset.classes).eval()
        model.load_state_dict(context.model.state_dict())
        return model

    def perturb(self, images, clean):
        return clean


def test_a_defense_that_is_the_served_model_is_told_from_the_undefended_shadows_answers():
    adversary, transfer = asked(Served())
    defended, clean = pairs(adversary, transfer, 1)
    halved = clean.sqrt() / clean.sqrt().sum(dim=1, keepdim=True)
    assert torch.allclose(defended, halved, atol=1e-6)
    assert l1(clean, defended).mean() > 0.1
    adversary = replace(adversary, clean=deploy(victim(), Served()).clean)
    given = RestorerPlus(1).pairs(adversary, transfer)
    halved = given.clean.sqrt() / given.clean.sqrt().sum(dim=1, keepdim=True)
    assert len(given.clean) == len(transfer)
    assert torch.allclose(given.defended, halved, atol=1e-6)
    defended, clean = pairs(*asked(Chain(parts=[Served(), Squared()])), 1)  # changed answers: beside the model's own
    assert torch.allclose(defended, clean.sqrt() / clean.sqrt().sum(dim=1, keepdim=True), atol=1e-6)


def test_whether_a_defense_is_its_model_does_not_depend_on_batches(monkeypatch):
    class Some(Served):
        def perturb(self, images, clean):
            return torch.where(images.mean(dim=(1, 2, 3)).gt(0.5).unsqueeze(1), Squared().perturb(images, clean), clean)

    adversary, transfer = asked(Some())
    whole = pairs(adversary, transfer, 1)
    assert 0 < (whole.clean == whole.defended).all(dim=1).sum() < len(whole.clean)
    monkeypatch.setattr("mad.recoveries.shadows.PART", 1)
    for one, other in zip(pairs(adversary, transfer, 1), whole, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", [ReverseSigmoid, Dcp])
def test_shadows_have_what_the_defense_looks_up_for_the_victim(kind):
    guarded = victim(dataset=Blobs(name="fashion_mnist"))
    for defense in (kind(beta=0.7), Chain(parts=[kind(beta=0.7)])):
        adversary, transfer = asked(defense, victim=guarded)
        ready = shadows(adversary, transfer, 1)[0].deployment.defense
        (ready,) = ready.held() or (ready,)
        assert ready._gamma == deploy(guarded, kind(beta=0.7)).defense._gamma == 0.4


def test_shadows_of_a_stream():
    adversary, transfer = asked(Squared(), 20, Knockoff(trainer(epochs=1)))
    found = pairs(adversary, TransferSet(Streamed(POOL), transfer.rows, transfer.answers), 1)
    assert torch.allclose(found.clean, pairs(adversary, transfer, 1).clean, atol=1e-6)


def test_a_defense_that_cannot_guard_a_shadow_is_said():
    @dataclass
    class Picky(Squared):
        def check(self, victim):
            if victim.name == "shadow":
                raise MadError("not this one")

    adversary, transfer = asked(Picky())
    with pytest.raises(MadError, match="shadow victim cannot be defended as the victim is: not this one"):
        shadows(adversary, transfer, 1)


@pytest.mark.parametrize(
    "recovery",
    [Restorer(2, steps=300), Bayes(shadows=2), RestorerPlus(2, steps=300)],
    ids=lambda each: each.name,
)
def test_it_undoes_a_map_of_posteriors(recovery):
    whole = cell(defense=Squared(), recovery=recovery, knockoff=LONG)
    api = deploy(whole.victim, Squared())
    before, answers = api.session().answer(to_unit_range(POOL))
    adversary = whole.adversary(CPU, clean=api.clean)
    found = adversary.learned_from(TransferSet(POOL, torch.arange(200), answers)).recovered(answers)
    assert l1(found, before).mean() < 0.5 * l1(answers, before).mean()


def bayes_by_definition(table, answer, radius, nearest):
    """Return the mean of the clean posteriors of an answer's neighbors, one by one."""
    same = [
        (sum(abs(a - b) for a, b in zip(row, answer, strict=True)), place)
        for place, row in enumerate(table.defended.double().tolist())
        if row.index(max(row)) == answer.index(max(answer))
    ]
    if not same:
        return answer
    chosen = [place for apart, place in same if apart <= radius] or [place for _, place in sorted(same)[:nearest]]
    return table.clean[chosen].double().mean(dim=0).tolist()


@pytest.mark.parametrize(("radius", "nearest"), [(0.01, 5), (0.3, 2), (2.0, 1)])
def test_bayes_by_definition(monkeypatch, radius, nearest):
    draw = torch.Generator().manual_seed(0)
    clean = torch.softmax(2 * torch.randn(60, 4, generator=draw), dim=1)
    table = Pairs(clean.roll(1, dims=1)[:50], clean[:50])
    monkeypatch.setattr("mad.recoveries.bayes.pairs", lambda adversary, transfer, count: table)
    recovery = Bayes(radius, nearest).prepared(None, None)
    answers = torch.cat([clean.roll(1, dims=1), torch.softmax(torch.randn(40, 4, generator=draw), dim=1), torch.eye(4)])
    for answer, found in zip(answers.double().tolist(), recovery(answers).tolist(), strict=True):
        assert found == pytest.approx(bayes_by_definition(table, answer, radius, nearest), abs=1e-6)


def test_where_no_shadow_has_the_top_class_the_answer_stays(monkeypatch):
    table = Pairs(torch.eye(4)[:2], torch.eye(4)[:2])
    monkeypatch.setattr("mad.recoveries.bayes.pairs", lambda adversary, transfer, count: table)
    answers = torch.eye(4) * 0.6 + 0.1
    found = Bayes().prepared(None, None)(answers)
    assert torch.allclose(found[2:], answers[2:], atol=1e-6)
    assert torch.allclose(found[:2], torch.eye(4)[:2], atol=1e-6)


@pytest.mark.parametrize("kind", ["dirichlet", "one_hot", "uniform", "tied"])
def test_posteriors_that_are_drawn_near_a_clean_one(kind):
    clean = posteriors(kind, 10).repeat(100, 1)
    found = near(clean, 0, "test")
    assert are_posteriors(found)
    assert torch.equal(near(clean, 0, "test"), found)
    assert not torch.equal(near(clean, 1, "test"), found)
    mean = found.view(100, -1, 10).mean(dim=0)
    assert torch.allclose(mean, clean[: len(mean)], atol=0.05)
    variance = found.view(100, -1, 10).double().var(dim=0).sum()
    y = clean[: len(mean)].double()
    assert variance.item() == pytest.approx((y * (1 - y) / 81).sum().item(), rel=0.3, abs=0.01)  # of a Dirichlet


def test_what_the_restorer_sees():
    answers = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    seen = Seen(3)
    seen.standardize(answers)
    expected = [[1, 0, -1, 1, 0, 0], [-1, 0, 1, 0, 0, 1]]
    assert torch.allclose(seen(grid(answers)), torch.tensor(expected).float(), atol=1e-5)


def test_posteriors_as_images():
    found = grid(torch.tensor([[1.0000001, 0.0]]))
    assert found.shape == (1, 2, 1, 1)
    assert found.max() <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Restorer(0),
        lambda: Restorer(steps=0),
        lambda: Bayes(0),
        lambda: Bayes(nearest=0),
        lambda: Bayes(shadows=0),
    ],
)
def test_settings_that_are_none(make):
    with pytest.raises(MadError, match=r"recovery\."):
        make()


@pytest.mark.parametrize("defense", [Gate(alpha=1.0), Chain(parts=[Gate(alpha=1.0)])])
def test_shadows_hold_images_out_for_a_defense_that_is_calibrated_on_them(defense):
    adversary, transfer = asked(defense, victim=victim(validation=0.2))
    found = pairs(adversary, transfer, 1)
    assert found.clean.shape == (40, 4)
    assert (found.defended != found.clean).any()
