"""Where the attacks that grow a transfer set from seeds follow the code that was published with them."""

import pytest
import torch
from growing import SEEDS, SHORT, bent, seeds, some_images, steal

from mad.attacks.jbda import Jbda, Jbself
from mad.attacks.jbtopk import JbTopK


@pytest.mark.parametrize("kind", [Jbda, Jbself])
def test_as_published_clips_normalised_inputs(kind):
    attack = kind(**SHORT, as_published=True, mean=0.2, std=0.4)
    made = steal(attack, 40)[0].images[SEEDS:]
    assert made.min() >= 0.2
    assert made.max() <= 0.6 + 1e-6
    (images, labels), net = some_images(), bent()
    normalised = (images - 0.2) / 0.4
    step = attack.moved(net, images, labels, 0)[1] - images
    up = (Jbda(step=1e-3).moved(net, images.clamp(0.1, 0.9), labels, 0)[0] - images.clamp(0.1, 0.9)).sign()
    inside = (images > 0.1) & (images < 0.9)
    twin = ((normalised + 0.1 / 0.4 * up).clamp(0, 1) - normalised) * 0.4
    assert torch.allclose(step[inside.all(dim=(1, 2, 3))], twin[inside.all(dim=(1, 2, 3))], atol=1e-5)


def test_as_published_overwrites_the_seeds_where_no_reservoir_is_in_force():
    def kept(**how):
        images = steal(Jbda(**SHORT, **how), 40)[0].images.flatten(1)
        return sum((images == seed).all(dim=1).any().item() for seed in seeds().flatten(1)), len(images.unique(dim=0))

    assert kept() == (10, 40)
    assert kept(as_published=True) == (0, 10)
    assert kept(as_published=True, reservoir=10, reservoir_after=0)[0] == 10
    assert steal(Jbda(**SHORT, as_published=True), 33)[1].queries == 33


def test_as_published_jbself_stores_another_image_than_was_asked_about():
    (images, labels), net = some_images(), bent()
    asked, stored = Jbself(as_published=True).moved(net, images, labels, 0)
    assert torch.allclose(asked - images, images - stored)
    assert (asked - images).abs().max() > 0
    transfer, api, model = steal(Jbself(**SHORT, as_published=True), 40)
    wrong = (transfer.answers - torch.softmax(model(transfer.images), dim=1)).abs().sum(dim=1)
    assert wrong.min() > 1e-3
    assert api.queries == 40
    right = steal(Jbda(**SHORT, as_published=True), 40)
    assert torch.allclose(right[0].answers, torch.softmax(right[2](right[0].images), dim=1), atol=1e-6)


def test_as_published_targets_are_clipped_to_the_ball_alone():
    net, (images, labels) = bent(), some_images()
    right, wrong = (JbTopK(as_published=flag).moved(net, images, labels, 0)[0].view(9, 3, -1) for flag in (False, True))
    assert right.min() >= 0
    assert right.max() <= 1
    assert (wrong[0].min(), wrong[1].max()) == pytest.approx((-0.08, 1.08))
    assert (wrong - images.view(9, 1, -1)).abs().max() <= 0.1 + 1e-6
    inner = images.clamp(0.2, 0.8)
    assert torch.equal(*(JbTopK(as_published=flag).moved(net, inner, labels, 0)[0] for flag in (False, True)))


@pytest.mark.parametrize(("k", "parts"), [(3, 1), (3, 3), (5, 2)])
def test_as_published_no_child_of_several_overwrites_its_parent(k, parts):
    """One round; the budget ends with the first ``parts`` children of the eighth of ten seeds."""
    attack, budget = JbTopK(**SHORT, k=k, as_published=True), SEEDS + 7 * k + parts
    transfer, api, model = steal(attack, budget)
    assert api.queries == budget
    assert torch.allclose(transfer.answers, torch.softmax(model(transfer.images), dim=1), atol=1e-6)
    assert torch.equal(transfer.images[:SEEDS], seeds())
    assert len(transfer.images.unique(dim=0)) == budget


def test_as_published_divides_what_is_left_by_three(fits):
    def rounds(k, left, published):
        fits.clear()
        assert steal(JbTopK(**SHORT, k=k, as_published=published), SEEDS + left)[1].queries == SEEDS + left
        return len(fits)

    assert (rounds(1, 10, False), rounds(1, 10, True)) == (1, 5)  # of 4, 2, 2, 1 and 1 images
    for k in (3, 5):
        assert rounds(k, 8 * k - 1, True) == rounds(k, 8 * k - 1, False) == 1
