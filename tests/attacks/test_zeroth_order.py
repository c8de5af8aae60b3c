"""The parts of the data-free attacks: the generator, the estimated gradients, the gaps, and what is replayed."""

import math

import pytest
import torch
import torch.nn.functional as F
from toys import CPU

from mad.attacks.data_free import sizes
from mad.attacks.dfme import Dfme, recovered_logits
from mad.attacks.image_generator import Doubling, ImageGenerator, to_images
from mad.attacks.maze import Maze
from mad.attacks.memory import Memory
from mad.attacks.zeroth_order import forward_differences, unit_directions

BOTH = {"dfme": Dfme(), "maze": Maze()}


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 64, 64), (2, 19, 33), (1, 1, 5)])
def test_the_generator_makes_images_of_any_shape(shape):
    made = ImageGenerator(shape, 5, 2)
    images = to_images(made(torch.randn(6, 5, generator=draw())))
    assert images.shape == (6, *shape)
    assert 0 <= images.min() < 0.3
    assert 0.7 < images.max() <= 1
    assert made.start[1] <= 8
    assert made.start[2] <= 16


def test_the_generator_for_images_of_32_pixels_is_the_published_one():
    made = ImageGenerator((3, 32, 32), 256, 64)
    assert made.start == (128, 8, 8)
    kernels = [tuple(value.shape) for value in made.parameters() if value.dim() == 4]
    assert kernels == [(128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]


def test_doubling_is_a_convolution_of_the_doubled_image():
    layer, images = Doubling(3, 5).double(), torch.randn(2, 3, 4, 6, generator=draw(), dtype=torch.float64)
    slow = F.conv2d(images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(images), slow, atol=1e-12)
    weights = [torch.autograd.grad(found.square().sum(), layer.weight)[0] for found in (layer(images), slow)]
    assert torch.allclose(*weights, atol=1e-9)


def test_directions_are_unit_vectors_uniform_on_the_sphere():
    along = unit_directions(500, torch.zeros(2, 1, 3, 2), draw()).flatten(2)
    assert torch.allclose(along.norm(dim=2), torch.ones(500, 2), atol=1e-6)
    covariance = along.flatten(0, 1).T @ along.flatten(0, 1) / 1000
    assert torch.allclose(6 * covariance, torch.eye(6), atol=0.3)


def test_differences_by_the_definition():
    draws = draw()
    along, values = unit_directions(3, torch.zeros(2, 1, 2, 2), draws), torch.randn(4, 2, generator=draws)
    found = forward_differences(values, along, 0.1)
    for image in range(2):
        slow = sum(4 * (values[i + 1, image] - values[0, image]) / 0.1 * along[i, image] for i in range(3)) / 3
        assert torch.allclose(found[image], slow, atol=1e-5)


def test_many_directions_estimate_the_true_gradient():
    weight, at = (torch.randn(4, 1, 3, 3, generator=draw(seed)) for seed in (0, 1))

    def value(images):
        return (images * weight).sum(dim=(-3, -2, -1)).sin()

    along = unit_directions(20_000, at, draw(2))
    estimate = forward_differences(torch.cat([value(at)[None], value(at + 1e-3 * along)]), along, 1e-3)
    true = (at * weight).sum(dim=(1, 2, 3)).cos().view(-1, 1, 1, 1) * weight
    assert torch.allclose(estimate, true, atol=0.05 * true.abs().max().item())


@pytest.mark.parametrize(("count", "most"), [(1, 8), (8, 8), (9, 8), (100, 8), (15, 16), (0, 4)])
def test_the_rest_is_divided_evenly(count, most):
    found = sizes(count, most)
    assert sum(found) == count
    assert len(found) == math.ceil(count / most)
    assert not found or (max(found) <= most and max(found) - min(found) <= 1)


def test_logits_are_recovered_up_to_a_constant():
    logits = torch.randn(20, 7, generator=draw())
    found = recovered_logits(logits.softmax(dim=1), 1e-7)
    assert torch.allclose(found, logits - logits.mean(dim=1, keepdim=True), atol=1e-5)
    hard = recovered_logits(torch.eye(3), 1e-7)
    assert hard.isfinite().all()
    assert torch.allclose(hard[0], -math.log(1e-7) * torch.tensor([2 / 3, -1 / 3, -1 / 3]))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("targets", [torch.eye(4), torch.full((4, 4), 0.25), torch.tensor([[0.5, 0.5, 0, 0]])])
def test_the_gap_is_finite_and_zero_for_equals(name, targets):
    which = BOTH[name]
    logits = torch.randn(len(targets), 4, generator=draw()).requires_grad_()
    gap = which.gap(logits, targets)
    gap.sum().backward()
    assert gap.shape == (len(targets),)
    assert (gap > 0).all()
    assert logits.grad.isfinite().all()
    same = targets.clamp(min=1e-7).log()
    assert which.gap(same - same.mean(dim=1, keepdim=True), targets).max() < 1e-5


def test_the_gaps_by_their_definitions():
    logits, targets = (torch.randn(3, 4, generator=draw(seed)) for seed in (0, 1))
    own, targets = logits.tolist(), targets.softmax(dim=1).tolist()
    for row, (mine, theirs) in enumerate(zip(own, targets, strict=True)):
        logs = [math.log(p) for p in theirs]
        far = sum(abs(mine[k] - logs[k] + sum(logs) / 4) for k in range(4)) / 4
        total = sum(math.exp(value) for value in mine)
        kl = sum(theirs[k] * (logs[k] - mine[k] + math.log(total)) for k in range(4))
        for name, expected in (("dfme", far), ("maze", kl)):
            found = BOTH[name].gap(logits, torch.tensor(targets))[row].item()
            assert found == pytest.approx(expected, abs=1e-5)


def test_the_rates_fall_as_published():
    shares = [0, 0.099, 0.1, 0.3, 0.49, 0.5, 0.99]
    assert [BOTH["dfme"].factor(share) for share in shares] == pytest.approx([1, 1, 0.3, 0.09, 0.09, 0.027, 0.027])
    assert [BOTH["maze"].factor(share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_the_memory_keeps_the_latest():
    memory = Memory(5, (1, 1, 1), 2)
    for first in (0, 3, 6):
        values = torch.arange(first, first + 3).float()
        memory.add(values.view(-1, 1, 1, 1), values.view(-1, 1).expand(-1, 2))
    images, targets = memory.drawn(200, draw(), CPU)
    assert images.dtype == torch.float32
    assert set(images.flatten().tolist()) == {4, 5, 6, 7, 8}
    assert torch.equal(targets[:, 0], images.flatten())
    other = Memory(5, (1, 1, 1), 2)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.images, memory.images)
    assert other.added == 9
    values = torch.arange(9, 20).float()  # more than there is room for: no row is written twice
    memory.add(values.view(-1, 1, 1, 1), values.view(-1, 1).expand(-1, 2))
    assert set(memory.targets[:, 0].tolist()) == {15, 16, 17, 18, 19}
    assert torch.equal(memory.images.flatten().float(), memory.targets[:, 0])
    assert memory.added == 20
