"""The gate: what it touches, whom it flags, and what it promises honest users."""

import json
from dataclasses import replace

import pytest
import torch
from gate_victims import FLAT, TOY
from torch import nn
from toys import CPU, SmallNet, Tiny, cell, victim

from mad import measure
from mad.attacks.knockoff_nets import KnockoffNets
from mad.context import Context
from mad.defenses import Chain, Mad, Rounding
from mad.defenses.edm import Edm
from mad.defenses.gate import Gate
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.deployment import deploy
from mad.errors import MadError
from mad.gate.shifts import shifts
from mad.storage.fingerprint import describe
from mad.storage.store import Store
from mad.testing import Blobs, check_defense


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("outputs"))


def deployed(store, defense, toy=TOY):
    return deploy(toy, defense, store=store)


def honest(toy=TOY):
    return toy.dataset.test().images / 255


def junk(count=300):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(9))


def touched(deployment, images):
    clean, answers = deployment.session().answer(images)
    return (clean != answers).any(dim=1)


def test_it_calibrates_on_held_out_images_and_refuses_a_victim_without():
    with pytest.raises(MadError, match=r"set victim\.validation=0\.1$"):
        cell(defense=Gate())


@pytest.mark.parametrize("rule", ["learned", "fisher"])
@pytest.mark.parametrize("by_class", [True, False])
def test_honest_queries_are_hardly_touched_and_others_are(store, rule, by_class):
    deployment = deployed(store, Gate(alpha=0.1, rule=rule, by_class=by_class))
    assert touched(deployment, honest()).double().mean() < 0.16
    assert touched(deployment, junk()).double().mean() > 0.95
    assert deployment.columns == {"gate_images": 187, "gate_own_thresholds": 2 if by_class else 0}


def test_alpha_0_touches_nothing_and_alpha_1_everything(store):
    for alpha, share in ((0.0, 0), (1.0, 1)):
        deployment = deployed(store, Gate(alpha=alpha))
        assert touched(deployment, torch.cat([honest()[:200], junk(50)])).double().mean() == share


def test_alpha_and_rule_share_what_was_learned(store, monkeypatch):
    deployed(store, Gate())
    monkeypatch.setattr("mad.defenses.gate.learn", None)
    deployed(store, Gate(alpha=0.3, rule="harmonic", by_class=False, client=0.01))


def test_decoys_do_not_depend_on_the_answer_and_keep_the_budget(store):
    images = junk()
    for epsilon in (2.0, 0.5):
        defense = deployed(store, Gate(epsilon=epsilon)).defense
        one = torch.softmax(torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), dim=1)
        decoys, other = defense(images, one), defense(images, one.flip(1))
        if epsilon == 2:
            changed = (decoys != one).any(dim=1) & (other != one.flip(1)).any(dim=1)
            assert changed.double().mean() > 0.95
            assert torch.equal(decoys[changed], other[changed])
        assert ((decoys - one).abs().sum(dim=1) <= epsilon + 1e-5).all()


def test_in_a_chain_what_passes_are_the_answers_of_the_parts_before(store):
    both = deployed(store, Chain(epsilon=None, parts=[Rounding(None, decimals=1), Gate(alpha=0.1)]))
    images = torch.cat([honest()[:100], junk(50)])
    answers = both.session().answer(images)[1]
    passed = ~touched(deployed(store, Gate(alpha=0.1)), images)
    rounded = deployed(store, Rounding(None, decimals=1)).session().answer(images)[1]
    assert 50 < passed.sum() < 110
    assert torch.allclose(answers[passed], rounded[passed])


def test_a_thief_is_flagged_and_gets_decoys_only_while_honest_clients_are_not(store):
    deployment = deployed(store, Gate(alpha=0.1, client=0.01))
    api = deployment.session()
    api(junk(100))
    assert api.defense.session_columns()["gate_flagged"] == 1
    assert api.defense.session_columns()["gate_flagged_after"] < 40
    clean, answers = api.answer(honest()[:200])
    assert (clean != answers).any(dim=1).all()
    other = deployment.session()  # each client has a test of its own
    other(honest())
    assert other.defense.session_columns() == {
        "gate_touched": pytest.approx(0.1, abs=0.06),
        "gate_flagged": 0,
        "gate_flagged_after": None,
    }


def test_the_decoys_begin_with_the_query_after_the_one_that_flagged(store):
    deployment = deployed(store, Gate(alpha=0.1, client=0.01))
    images = torch.cat([honest()[200:230], junk(30), honest()[:100]])
    whole, single = deployment.session(), deployment.session()
    answers = whole(images)
    parts = torch.cat([single(each) for each in images.split(1)])
    assert torch.allclose(parts, answers, atol=1e-5)
    assert single.defense.session_columns() == whole.defense.session_columns()


@pytest.mark.parametrize("inside", [lambda gate: gate, lambda gate: Chain(parts=[Rounding(), gate])])
@pytest.mark.parametrize("asked", [3, 60])
def test_a_session_goes_on_from_the_memory_of_another(store, inside, asked):
    deployment = deployed(store, inside(Gate(alpha=0.1, client=1e-6)))
    one, other = deployment.session(), deployment.session()
    one(junk(asked))
    other.defense.recall(json.loads(json.dumps(one.defense.remembered())))
    assert one.defense.suspect == other.defense.suspect == (asked == 60)
    more = torch.cat([junk(200)[-20:], honest()[:50]])
    assert torch.equal(one(more), other(more))
    assert one.defense.suspect
    assert one.defense.remembered() == other.defense.remembered()
    assert one.defense.session_columns() == other.defense.session_columns()


@pytest.mark.parametrize("memory", [[], [1, 2, 3], "text", None, [1] * 4])
def test_no_memory_of_a_client(store, memory):
    for defense in (Gate(alpha=0.1, client=0.01), Chain(parts=[Gate(alpha=0.1, client=0.01)])):
        with pytest.raises(MadError, match=r"cannot go on from .* it is no memory of"):
            deployed(store, defense).session().defense.recall(memory if defense.name == "gate" else [memory, memory])


def test_several_accounts_are_tested_one_by_one(store):
    deployment = deployed(store, Gate(alpha=0.1, client=0.01))
    images = torch.cat([junk(100), honest()[:100]])
    api = deployment.session(200, accounts=2)
    answers = api(images)
    one, other = deployment.session(), deployment.session()
    assert torch.allclose(answers, torch.cat([one(images[:100]), other(images[100:])]), atol=1e-5)
    found = api.defense.session_columns()
    assert found["gate_flagged"] == 0.5
    assert found["gate_flagged_after"] == one.defense.session_columns()["gate_flagged_after"]
    assert deployed(store, Gate()).session(200, accounts=2).defense.name == "gate"  # without state they are one


def test_what_was_there_before_keeps_its_fingerprint():
    assert cell(attack=KnockoffNets(50)).fingerprint == cell(attack=KnockoffNets(50, accounts=1)).fingerprint
    assert cell(attack=KnockoffNets(50, accounts=2)).fingerprint != cell().fingerprint
    even, uneven = (describe(KnockoffNets(budget, accounts=2)) for budget in (50, 51))
    assert "amended" not in even
    assert uneven["amended"]  # the rest was in the last account


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"alpha": 2}, {"rule": "median"}, {"client": 0}, {"by_class": 1}])
def test_wrong_settings_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(MadError, match=f"defense.{name}"):
        Gate(**wrong)


def test_the_conformance_checks_hold_with_clients():
    check_defense(Gate(client=0.01, alpha=0.3), (3,))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 16)])
def test_shifts_are_images_of_the_same_shape_and_change_them(shape):
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0))
    found = shifts(images, torch.Generator().manual_seed(1))
    assert len(found) == 16
    for name, each in found.items():
        assert each.shape == images.shape, name
        assert each.min() >= 0, name
        assert each.max() <= 1, name
        assert (each - images).abs().mean() > 0.01, name


def test_a_victim_with_one_calibration_image_touches_nothing():
    small = replace(FLAT, dataset=Blobs(size=40), validation=0.08)
    defense = Gate(alpha=0.3).prepared(Context(small, small.untrained(seed=0, purpose="victim"), 0, CPU))
    clean = torch.full((5, 4), 0.25)
    assert torch.equal(defense(junk(5), clean), clean)


@pytest.mark.parametrize("rule", ["learned", "fisher"])
@pytest.mark.parametrize("size", [12, 25])
def test_a_victim_without_a_calibration_image_touches_nothing(size, rule):
    """The few images that are held out are all for the tails."""
    small = replace(FLAT, dataset=Blobs(size=size), validation=0.08)
    context = Context(small, small.untrained(seed=0, purpose="victim"), 0, CPU)
    clean = torch.full((5, 4), 0.25)
    for client in (None, 1e-3):
        defense = Gate(alpha=0.3, rule=rule, client=client).prepared(context)
        assert defense.columns(context)["gate_images"] == 0
        assert torch.equal(defense.session()(junk(5), clean), clean)


@pytest.mark.parametrize("architecture", [SmallNet, Tiny])
@pytest.mark.parametrize("client", [None, 1e-3])
def test_a_plan_measures_a_gate_that_has_not_learned(client, architecture):
    asked = cell(victim=replace(TOY, architecture=architecture), defense=Gate(client=client))
    assert measure.asking(asked, CPU) > 0


class Bare(nn.Module):
    """A network of raw parameters, which has no layer to hook."""

    def __init__(self, shape, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, shape[0] * shape[1] * shape[2]))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


@pytest.mark.parametrize("rule", ["learned", "fisher"])
def test_rounding_of_posteriors_does_not_decide_about_a_network_without_layers(store, rule):
    toy = replace(FLAT, architecture=Bare)
    deployment = deployed(store, Gate(alpha=0.1, rule=rule), toy)
    images = torch.cat([honest(toy), junk()])
    clean, _ = deployment.session().answer(images)
    score, _ = deployment.defense.score(images, clean)
    for factor in (1 - 6e-8, 1 + 1.2e-7):  # as far as a softmax in float32 may be off
        assert torch.allclose(deployment.defense.score(images, clean * factor)[0], score, atol=1e-4)


class Normalized(SmallNet):
    """Answers with log-posteriors, as logits that are normalized already."""

    def forward(self, images):
        return super().forward(images).log_softmax(dim=1)


def test_rounding_does_not_decide_about_a_network_that_ends_in_a_log_softmax(store):
    toy = replace(TOY, architecture=Normalized)
    gate, images = deployed(store, Gate(alpha=0.1), toy).defense, torch.cat([honest(toy), junk()])
    features, logits = gate._taps(images)
    score = gate._combined(gate._detector(images, features, logits))
    assert torch.allclose(gate._combined(gate._detector(images, features, logits + 2e-7)), score, atol=1e-4)


@pytest.mark.parametrize("architecture", [SmallNet, Tiny])
def test_an_ensemble_of_which_one_network_answers_is_judged_alike_in_every_batch(store, architecture):
    toy = replace(TOY, architecture=architecture)
    parts = [Edm(networks=2, outliers=Blobs(7, size=50, name="others")), Gate(alpha=0.1)]
    deployment = deployed(store, Chain(parts=parts), toy)
    images = torch.cat([honest(toy)[:60], junk(60)])
    assert len(deployment.served.route(images).unique()) == 2
    together = deployment.session().answer(images)[1]
    alone = torch.cat([deployment.session().answer(each)[1] for each in images.split(1)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert touched(deployment, honest(toy)).double().mean() < 0.16


@pytest.mark.parametrize("before", [Rounding(1), ReverseSigmoid(beta=1.0), Mad(0.9)], ids=lambda each: each.name)
def test_behind_other_defenses_a_network_without_layers_is_judged_by_its_own_answers(store, before):
    bare = victim(dataset=Blobs(size=700), validation=0.4, architecture=Bare)
    alone = deployed(store, Gate(alpha=0.1), bare)
    chained = deployed(store, Chain(parts=[before, Gate(alpha=0.1)]), bare)
    images = honest()[:256]
    clean = alone.session().answer(images)[0]
    gated, behind = (each.defense.held()[-1] if each is chained else each.defense for each in (alone, chained))
    seen = []
    for gate in (gated, behind):
        perturb = gate.perturb
        gate.perturb = lambda some, given, perturb=perturb: (seen.append(perturb(some, given)), seen[-1])[1]
    alone.session()(images)
    between = chained.defense.held()[0](images, clean)
    chained.session()(images)
    first, second = (seen[0] != clean).any(dim=1), (seen[1] != between).any(dim=1)
    assert torch.equal(first, second)
    assert 0 < first.double().mean() < 0.3
