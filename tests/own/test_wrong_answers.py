"""What a function of one's own may not answer: one line that names it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from own_models import MODEL, Conv, own, predict, safetensors
from toys import CPU, cell

from mad.deployment import deploy
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.store import Store


def fails(images):
    raise ValueError("no\nsuch thing")


@pytest.mark.parametrize(
    ("function", "answers", "said"),
    [
        (
            fails,
            None,
            r"^victim.function=test_wrong_answers.fails failed on images \(2, .*\), ValueError: no such thing$",
        ),
        (lambda images: torch.zeros(2, 3), None, r"posteriors \(2, 4\), got a tensor of \(2, 3\)"),
        (lambda images: torch.zeros(2, 4), None, "sum to 0 to 0, no posteriors.*victim.answers=logits"),
        (lambda images: torch.full((2, 4), float("nan")), None, "NaN or infinities: check the model"),
        (lambda images: torch.tensor([1, 2]), None, "if they are labels, set victim.answers=labels"),
        (lambda images: None, None, "must return a tensor or an array, got None"),
        (lambda images: {"logits": 1}, None, "must return a tensor or an array, got a builtins.dict"),
        (lambda images: torch.full((1, 4), 0.25), None, "give one row an image"),
        (lambda images: torch.full((2, 4), float("nan")), "logits", "NaN or infinite logits"),
        (predict, "labels", "labels .*whole numbers from 0 to 3"),
        (lambda images: torch.tensor([1, 4]), "labels", "whole numbers from 0 to 3; got .*, from 1 to 4"),
    ],
)
def test_what_a_function_may_not_answer_is_one_line(function, answers, said):
    with pytest.raises(MadError, match=said):
        deploy(own(function=function, answers=answers)).session()(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("function", [predict, lambda images: torch.full((len(images), 4), 0.2499)])
def test_posteriors_that_are_called_logits_are_refused(function):
    api = deploy(own(function=function, answers="logits")).session()
    with pytest.raises(MadError, match=r"rows that sum to one: set victim\.answers=posteriors"):
        api(torch.zeros(8, 1, 8, 8))


SOFT = torch.softmax(3 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), 1)


@pytest.mark.parametrize("answers", [None, "logits", "posteriors"])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (SOFT * 100, r"that all sum to 100, percent: divide them by 100, and set victim\.answers=posteriors$"),
        ((SOFT * 100).round(), r"percent: divide them by 100"),
        (SOFT * 7, r"that all sum to 7, neither posteriors nor logits: divide them by 7, and"),
    ],
)
def test_multiples_of_posteriors_are_neither_posteriors_nor_logits(rows, said, answers):
    api = deploy(own(function=lambda images: rows, answers=answers)).session()
    with pytest.raises(MadError, match=rf"answers with rows from \S+ {said}|{said}"):
        api(torch.zeros(12, 1, 8, 8))


def test_a_network_of_constant_logits_is_none_that_answers_with_percent():
    api = deploy(own(function=lambda images: torch.full((12, 4), 25.0), answers="logits")).session()
    assert torch.allclose(api(torch.zeros(12, 1, 8, 8)), torch.full((12, 4), 0.25))


def test_posteriors_of_two_decimals_are_posteriors_and_no_logits():
    rows = torch.tensor([[0.26, 0.26, 0.26, 0.24], [0.33, 0.33, 0.32, 0.0]]).repeat(4, 1)
    assert sorted(set(rows.sum(1).mul(100).round().tolist())) == [98, 102]
    answers = deploy(own(function=lambda images: rows)).session()(torch.zeros(8, 1, 8, 8))
    assert torch.allclose(answers, rows / rows.sum(1, keepdim=True))
    api = deploy(own(function=lambda images: rows, answers="logits")).session()
    with pytest.raises(MadError, match=r"rows that sum to one: set victim\.answers=posteriors"):
        api(torch.zeros(8, 1, 8, 8))


def test_what_else_lies_between_zero_and_one_is_told_how_to_round():
    rows = torch.tensor([[0.4, 0.4, 0.4, 0.0], [0.3, 0.3, 0.3, 0.0]])
    with pytest.raises(MadError, match=r"sum to 0\.9 to 1\.2, no posteriors: if they were rounded, round .* two dec"):
        deploy(own(function=lambda images: rows)).session()(torch.zeros(2, 1, 8, 8))


def test_logits_of_one_image_may_sum_to_one_by_chance():
    api = deploy(own(function=lambda images: torch.tensor([[0.4, 0.3, 0.2, 0.1]]), answers="logits")).session()
    wanted = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).softmax(1)
    assert torch.allclose(api(torch.zeros(1, 1, 8, 8)), wanted)


def test_logits_that_are_posteriors_are_refused_before_anything_is_stolen(tmp_path):
    class Soft(Conv):
        def forward(self, images):
            return super().forward(images).softmax(1)

    safetensors(tmp_path / "w.safetensors")
    given = replace(own(weights=str(tmp_path / "w.safetensors")), architecture=Soft)
    with pytest.raises(MadError, match=r"set victim\.answers=posteriors"):
        run(cell(victim=given), Store(tmp_path), CPU)
    answers = deploy(replace(given, answers="posteriors")).session()(torch.zeros(2, 1, 8, 8))
    assert torch.allclose(answers, torch.softmax(MODEL(torch.zeros(2, 1, 8, 8)), 1), atol=1e-6)


class Wrapper:
    """An object of a library, whose state nothing can name."""

    def __call__(self, images):
        return self.predict(images)

    def predict(self, images):
        return predict(images)


WRAPPED = Wrapper()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            WRAPPED.predict,
            "^victim.function is a method of Wrapper, whose state cannot be named: wrap it in a function",
        ),
        (WRAPPED, "^victim.function is Wrapper, whose state cannot be named: wrap it in a function at the top of a "),
        (partial(Wrapper.predict, WRAPPED), "^victim.function: cannot fingerprint <test_wrong_answers.Wrapper object"),
        (
            (lambda it: lambda images: it(images))(WRAPPED),
            "^victim.function: cannot fingerprint <test_wrong_answers.Wrapper",
        ),
    ],
    ids=["method", "object", "partial", "closure"],
)
def test_a_function_whose_state_cannot_be_named_is_one_line(function, said):
    with pytest.raises(MadError, match=said):
        own(function=function)
    assert own(function=lambda images: WRAPPED.predict(images)).given
