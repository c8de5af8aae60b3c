"""The ledger of the black-box API."""

import math
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from toys import CPU, victim

from mad import simplex
from mad.api import BATCH, BlackBox
from mad.defenses import Context, Defense, Undefended
from mad.defenses.mad import Mad
from mad.defenses.random_noise import RandomNoise
from mad.deployment import deploy
from mad.errors import BudgetExceededError, MadError

TOY = victim()


def model_of():
    return TOY.untrained(seed=0, purpose="victim")


def api_of(budget, defense=None, **given):
    model = model_of()
    ready = (defense or Undefended()).prepared(Context(TOY, model, 0, CPU))
    return BlackBox(model, ready, (1, 8, 8), budget, CPU, **given)


POSTERIORS = torch.softmax(torch.arange(24.0).view(6, 4).sin(), dim=1)


def images(count):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def test_counts_every_image():
    api = api_of(20)
    for count, total in ((3, 3), (1, 4), (16, 20)):
        assert api(images(count)).shape == (count, 4)
        assert api.queries == total


def test_a_request_past_the_budget_is_refused_whole():
    api = api_of(10)
    api(images(7))
    with pytest.raises(BudgetExceededError, match="3 of 10 left"):
        api(images(4))
    assert api.queries == 7
    api(images(3))
    with pytest.raises(BudgetExceededError):
        api(images(1))
    assert api.queries == 10


@pytest.mark.parametrize("shape", [(5, 1, 8, 9), (5, 3, 8, 8), (5, 64), (1, 8, 8)])
def test_a_wrong_shape_charges_nothing(shape):
    api = api_of(10)
    with pytest.raises(MadError, match=r"\(1, 8, 8\)"):
        api(torch.rand(shape))
    assert api.queries == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_precision_are_answered_as_float32(dtype):
    some, api = images(6).to(dtype), api_of(None, Mad(0.5))
    assert torch.equal(api(some), api_of(None, Mad(0.5))(some.float()))
    assert torch.equal(api.replayed(some, POSTERIORS), api_of(None, Mad(0.5)).replayed(some.float(), POSTERIORS))
    deployment = deploy(TOY)
    assert torch.equal(deployment.clean(some), deployment.clean(some.float()))


@pytest.mark.parametrize("call", [lambda api, some: api(some), lambda api, some: api.replayed(some, POSTERIORS)])
@pytest.mark.parametrize("change", [torch.Tensor.numpy, torch.Tensor.tolist, list, lambda some: None])
def test_what_is_no_tensor_is_refused_in_a_line_and_charges_nothing(call, change):
    api = api_of(10)
    with pytest.raises(MadError, match=r"the API takes a float tensor \(B, C, H, W\), got .*: give torch"):
        call(api, change(images(6)))
    assert api.queries == 0


@pytest.mark.parametrize(
    "clean", [POSTERIORS.numpy(), None, POSTERIORS[:5], POSTERIORS[0], POSTERIORS * 2, torch.full((6, 5), 0.2)]
)
def test_replayed_answers_that_are_not_the_victims_charge_nothing(clean):
    api = api_of(10, Mad(0.5), classes=4)
    with pytest.raises(MadError, match=r"6 images need as many posteriors \(B, 4\), got"):
        api.replayed(images(6), clean)
    assert api.queries == 0
    assert api.replayed(images(6), POSTERIORS).shape == (6, 4)
    with pytest.raises(MadError, match=r"\(B, 4\), got a tensor of \(6, 5\), float32 on cpu$"):
        deploy(TOY).session().replayed(images(6), torch.full((6, 5), 0.2))


@dataclass
class Failing(Mad):
    """Fails on a request of three images."""

    def perturb(self, images, clean):
        if len(clean) == 3:
            raise MadError("not now")
        return super().perturb(images, clean)


def test_failed_requests_stay_charged_and_leave_the_mean_l1_alone():
    api, other = api_of(20, Failing(0.5)), api_of(20, Mad(0.5))
    other(images(6))
    for count in (3, 6, 3):
        with nullcontext() if count == 6 else pytest.raises(MadError, match="not now"):
            api(images(count))
    assert (api.queries, other.queries) == (12, 6)
    assert api.l1_mean == other.l1_mean > 0
    again = api_of(20, Mad(0.5))
    again.restore(api.state())
    assert (again.queries, again.l1_mean) == (12, api.l1_mean)
    older = other.state()
    del older["answered"]  # it was not noted once
    again.restore(older)
    assert (again.queries, again.l1_mean) == (6, other.l1_mean)


def test_the_defenders_own_view_is_free():
    api = api_of(10, Mad(0.5))
    clean, defended = api.answer(images(50))
    assert api.queries == 0
    assert api.l1_mean == 0
    assert torch.allclose(clean, torch.softmax(model_of()(images(50)), dim=1).detach(), atol=1e-6)
    assert not torch.allclose(clean, defended, atol=1e-2)


def test_no_budget_is_no_limit():
    api = api_of(None)
    api(images(BATCH + 1))
    assert api.queries == BATCH + 1


def test_answers_do_not_depend_on_the_request():
    many = images(BATCH + 9)
    whole, api = api_of(None, Mad(0.5))(many), api_of(None, Mad(0.5))
    assert torch.allclose(torch.cat([api(part) for part in many.split(100)]), whole, atol=1e-5)


def test_mean_l1_is_that_of_the_answers():
    api = api_of(None, Mad(0.5))
    seen = torch.cat([api(images(count)) for count in (5, 20)])
    clean = api_of(None)(torch.cat([images(5), images(20)]))
    assert api.l1_mean == pytest.approx(simplex.l1(seen, clean).mean().item(), abs=1e-6)
    assert 0 < api.l1_mean <= 0.5 + 1e-6


def entropy_of(api_answers, clean_answers):
    """The slow twin: count the class that each changed answer gained most in, in float64."""
    counts = Counter()
    for answer, clean in zip(api_answers.double().tolist(), clean_answers.double().tolist(), strict=True):
        gains = [after - before for after, before in zip(answer, clean, strict=True)]
        if sum(map(abs, gains)) > 1e-6:
            counts[gains.index(max(gains))] += 1
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values()) if total else None


@dataclass
class Scripted(Defense):
    """Move mass to the class that the first pixel names; leave every third class alone."""

    name = "scripted"
    epsilon: float | None = 0.4

    def perturb(self, images, clean):
        target = (images[:, 0, 0, 0] * 40).long() % 4
        moved = 0.5 * clean + 0.5 * torch.nn.functional.one_hot(target, 4)
        return torch.where((target == 2).unsqueeze(1), clean, moved)


@pytest.mark.parametrize("defense", [Scripted(), Scripted(2.0), Mad(0.5), Mad(2), RandomNoise(0.3)])
def test_target_entropy_is_the_slow_twins(defense):
    api, parts = api_of(None, defense), [images(count) for count in (1, 40, BATCH + 3)]
    seen = torch.cat([api(part) for part in parts])
    clean = torch.cat([api.answer(part)[0] for part in parts])
    assert api.target_entropy == pytest.approx(entropy_of(seen, clean), abs=1e-9)
    if isinstance(defense, Scripted):
        assert 1.4 < api.target_entropy <= math.log2(3)


def test_one_class_for_all_has_no_entropy():
    class Constant(Scripted):
        def perturb(self, images, clean):
            return clean.roll(1, 1) * 0 + torch.eye(4)[1]

    api = api_of(None, Constant())
    api(images(30))
    assert api.target_entropy == 0
    assert math.copysign(1, api.target_entropy) == 1


def test_what_is_not_changed_has_no_target():
    class Rescaled(Scripted):
        def perturb(self, images, clean):
            return clean * 3.7

    for defense in (Undefended(), Mad(0), Rescaled()):
        api = api_of(None, defense)
        assert api.target_entropy is None
        api(images(30))
        assert api.target_entropy is None
    api = api_of(None, Mad(0.5))
    api.answer(images(30))
    assert api.target_entropy is None


class Watched(BlackBox):
    """Lets nobody write into the ledger who does not hold its lock."""

    def __setattr__(self, name, value):
        assert self._lock.locked(), name
        super().__setattr__(name, value)


def test_many_threads_share_one_ledger():
    parts = [images(count) for count in range(1, 40)]
    alone, shared = api_of(None, Scripted()), api_of(None, Scripted())
    shared.__class__ = Watched
    for part in parts:
        alone(part)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(shared, parts))
    assert torch.equal(shared.state()["targets"], alone.state()["targets"])
    assert shared.target_entropy == alone.target_entropy
    assert shared.l1_mean == pytest.approx(alone.l1_mean)


def test_many_threads_share_one_budget():
    class Slippery(torch.Tensor):
        """Lets the other threads run whenever its length is asked for."""

        def __len__(self):
            for _ in range(200):
                pass
            return self.shape[0]

    budget, api = 150, api_of(150)
    request = images(1).as_subclass(Slippery)

    def ask(_):
        answered = 0
        for _ in range(20):
            try:
                api(request)
                answered += 1
            except BudgetExceededError:
                assert api.queries == budget
        return answered

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as threads:
            answered = sum(threads.map(ask, range(16)))
    finally:
        sys.setswitchinterval(interval)
    assert answered == api.queries == budget


def test_a_model_in_train_mode_is_refused():
    with pytest.raises(MadError, match="train mode"):
        BlackBox(model_of().train(), Undefended(), (1, 8, 8), 5, CPU)
    half = model_of()
    next(half.children()).train()
    with pytest.raises(MadError, match="or a part of it, is in train mode"):
        BlackBox(half, Undefended(), (1, 8, 8), 5, CPU)


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, "7"])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(MadError, match=r"attack\.budget"):
        api_of(budget)


def test_a_session_counts_on_from_anothers_state():
    parts = [images(count) for count in (30, 5, 40)]
    whole, first, second = (api_of(80, Mad(0.5)) for _ in range(3))
    for part in parts:
        whole(part)
    first(parts[0])
    state = first.state()
    first(parts[1])
    assert state["queries"] == 30  # it is a copy
    second.restore(state)
    assert (second.queries, second.l1_mean) == (30, state["l1_total"] / 30)
    for part in parts[1:]:
        second(part)
    assert (second.queries, second.l1_mean, second.target_entropy) == (75, whole.l1_mean, whole.target_entropy)
    with pytest.raises(BudgetExceededError, match="5 of 80 left"):
        second(images(6))
    assert second.state()["targets"].sum() == whole.state()["targets"].sum() == 75
