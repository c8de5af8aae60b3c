"""DeepFool in batches is DeepFool of one image at a time."""

import pytest
import torch
from torch import nn
from toys import CPU

from mad.attacks.deepfool import deepfool, distances


def bent(classes):
    """Return a small network that is not linear."""
    torch.manual_seed(classes)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, classes)).double().eval()


def plain(network, image, steps=50, classes=10, overshoot=0.02):
    """The algorithm of the paper, for one image (1, C, H, W)."""
    ranked = network(image)[0].argsort(descending=True)[:classes].tolist()
    own, total, at = ranked[0], torch.zeros_like(image), image.clone()
    for _ in range(steps):
        at = at.detach().requires_grad_()
        logits = network(at)[0]
        if logits.argmax() != own:
            break
        slopes = {c: torch.autograd.grad(logits[c], at, retain_graph=True)[0] for c in ranked}
        moves = []
        for c in ranked[1:]:
            w, f = slopes[c] - slopes[own], (logits[c] - logits[own]).item()
            moves.append((abs(f) / w.norm().item(), abs(f) / w.norm().item() ** 2 * w))
        total = total + min(moves, key=lambda move: move[0])[1]
        at = image + (1 + overshoot) * total
    return total


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_each_perturbation_is_that_of_one_image_at_a_time(classes):
    network = bent(classes)
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = deepfool(network, images)
    for image, move in zip(images.split(1), found, strict=True):
        assert torch.allclose(move, plain(network, image)[0], rtol=1e-8, atol=1e-10)
    fooled = network(images + 1.02 * found).argmax(dim=1)
    assert torch.all(fooled != network(images).argmax(dim=1))
    assert not found.requires_grad
    assert all(value.grad is None for value in network.parameters())


def test_the_distance_to_a_linear_border_is_exact():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double().eval()
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        logits, weights = network(images), network[1].weight
    for row, move in zip(logits, deepfool(network, images), strict=True):
        k = row.argmax()
        borders = [(row[k] - row[c]) / (weights[k] - weights[c]).norm() for c in range(5) if c != k]
        assert move.norm().item() == pytest.approx(min(borders).item())


def test_distances_follow_the_rows_of_a_pool():
    network = bent(4).float()
    pool = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    rows = torch.randperm(300)[:270]
    found = distances(network, pool, rows, CPU)
    expected = deepfool(network, pool[rows[250:]] / 255).flatten(1).norm(dim=1)
    assert found.shape == (270,)
    assert torch.allclose(found[250:], expected, rtol=1e-4, atol=1e-6)


def test_images_on_a_border_and_networks_that_never_change_end_at_once():
    calls = []

    class Flat(nn.Module):
        def forward(self, images):
            calls.append(len(images))
            return images.flatten(1)[:, :1] * torch.tensor([self.slope, 0.0, 0.0]) + self.base

    flat = Flat().eval()
    for slope, base in ((0.0, torch.tensor([1.0, 0.5, 0.0])), (1.0, torch.tensor([-0.5, 0.0, -1.0]))):
        flat.slope, flat.base = slope, base
        calls.clear()
        found = deepfool(flat, torch.full((4, 1, 2, 2), 0.5))  # at 0.5, the first two classes are as likely
        assert torch.equal(found, torch.zeros(4, 1, 2, 2))
        assert len(calls) < 6


def test_the_last_step_is_kept_where_steps_run_out():
    network = bent(10)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for steps in (1, 2):
        for image, move in zip(images.split(1), deepfool(network, images, steps=steps, classes=3), strict=True):
            assert torch.allclose(move, plain(network, image, steps=steps, classes=3)[0], rtol=1e-8, atol=1e-10)


def test_what_no_pixel_moves_is_far_from_every_border_unless_it_lies_on_one():
    class Dead(nn.Module):
        """Images whose first pixel is dark have logits that do not change."""

        def forward(self, images):
            bright = (images[:, 0, 0, 0] - 0.5).clamp(min=0)
            return torch.stack([self.lead - bright, bright], dim=1)

    network = Dead().eval()
    pool = torch.tensor([0.0, 0.7, 0.4, 0.9]).view(4, 1, 1, 1)
    network.lead = 0.3
    found = distances(network, pool, torch.arange(4), CPU)
    assert found[[0, 2]].isinf().all()
    assert found[[1, 3]].isfinite().all()
    network.lead = 0.0
    assert distances(network, pool, torch.arange(4), CPU)[0] == 0  # both classes are as likely
