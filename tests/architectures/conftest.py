"""Published weights that are not fetched."""

import pytest
import torch


@pytest.fixture
def fetched(monkeypatch):
    """Published weights are constants, tensor by tensor, and what was fetched is listed."""
    from torchvision import models
    from torchvision.models import _api

    names = {choice.url: name for name in models.list_models(models) for choice in models.get_model_weights(name)}
    found = []

    def load(url, **how):
        assert how["check_hash"]
        found.append(names[url])
        with torch.device("meta"):
            state = models.get_model(names[url]).state_dict()
        return {
            name: torch.full((), 1e-3 * (place + 1)).to(value.dtype).expand(value.shape)
            for place, (name, value) in enumerate(state.items())
        }

    monkeypatch.setattr(_api, "load_state_dict_from_url", load)
    return found
