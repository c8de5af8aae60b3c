"""Seeds of purposes, and the global generator that they leave as it was."""

import pytest
import torch

from mad.seeds import derive, generator, seeded


def drawn(seed, purpose):
    with seeded(seed, purpose):
        return torch.rand(5)


@pytest.mark.parametrize("accelerator", [False, True])
def test_a_block_draws_from_its_seed_and_leaves_the_generator_as_it_was(accelerator, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: accelerator)
    before = torch.get_rng_state()
    assert torch.equal(drawn(3, "weights"), torch.rand(5, generator=generator(3, "weights")))
    assert not torch.equal(drawn(3, "weights"), drawn(3, "order"))
    assert not torch.equal(drawn(3, "weights"), drawn(4, "weights"))
    with pytest.raises(ZeroDivisionError), seeded(3, "weights"):
        torch.rand(1 // 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generators_of_accelerators_are_seeded_too(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    asked = []
    monkeypatch.setattr(torch, "manual_seed", asked.append)
    drawn(3, "weights")
    assert asked == [derive(3, "weights")]
