"""MAD without its parts: no gradient, a random target."""

import pytest
import torch
from simplices import IMAGES, posteriors, ready

from mad import solvers
from mad.defenses.gradient_redirection import GradientRedirection
from mad.defenses.mad import Mad
from mad.defenses.mad_argmax import MadArgmax
from mad.defenses.mad_identity import MadIdentity
from mad.defenses.mad_random import MadRandom
from mad.errors import SettingError


@pytest.mark.parametrize("epsilon", [0.1, 0.95, 2])
def test_the_identity_maximises_the_angle_between_posteriors(epsilon):
    """No corner is further from y in angle, and the step is the published one."""
    clean = posteriors()
    answers = ready(MadIdentity(epsilon))(IMAGES, clean)
    for answer, y in zip(answers, clean, strict=True):
        corner = max(torch.eye(10), key=lambda corner: 2 - 2 * torch.cosine_similarity(corner, y, dim=0).item())
        step = min(1, epsilon / (corner - y).abs().sum().item())
        assert torch.allclose(answer, (1 - step) * y + step * corner, atol=1e-5)


def test_the_identity_is_mad_with_a_surrogate_that_has_no_opinion():
    """At a uniform p every corner is as far from it, and the published score ranks the classes by y alone."""
    clean = posteriors().double()
    expected = solvers.vertex(clean, torch.full_like(clean, 0.1), 0.5)
    assert torch.allclose(ready(MadIdentity(0.5))(IMAGES, clean), expected, atol=1e-5)


def test_the_random_corner_is_uniform_and_reaches_the_budget():
    images = torch.rand(2000, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    clean = posteriors(10, 1).expand(2000, 10)
    answers = ready(MadRandom(0.4))(images, clean)
    moved = answers - clean
    share = torch.bincount(moved.argmax(dim=1), minlength=10) / 2000
    assert (share - 0.1).abs().max() < 0.03
    assert torch.allclose(moved.abs().sum(dim=1), torch.full((2000,), 0.4), atol=1e-5)
    step = 0.4 / (2 * (1 - clean.gather(1, moved.argmax(dim=1, keepdim=True))))
    assert torch.allclose(
        moved.clamp(max=0), (-step * clean).scatter(1, moved.argmax(dim=1, keepdim=True), 0), atol=1e-5
    )


@pytest.mark.parametrize("kind", [Mad, MadArgmax, MadIdentity, MadRandom, GradientRedirection])
def test_without_a_budget_what_perturbs_as_far_as_it_allows_is_refused(kind):
    with pytest.raises(SettingError, match=f"epsilon needs a number from 0 to 2: {kind.name} perturbs.*got null"):
        kind(None)
    assert kind(2.0).strength == 2
