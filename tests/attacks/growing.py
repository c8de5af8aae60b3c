"""What attacks that grow a transfer set from seeds are tried on."""

from dataclasses import replace

import torch
from torch import nn
from toys import CPU, cell, victim

from mad.api import BlackBox
from mad.defenses import Undefended
from mad.seeds import generator

SEEDS = 10
SHORT = {"seeds": SEEDS, "epochs": 2}
POOL = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def brought(attack, budget, seed=0, classes=6, pool=POOL):
    whole = cell(victim=victim(classes), attack=replace(attack, budget=budget), seed=seed)
    model = whole.victim.untrained(seed=0, purpose="victim")
    with torch.no_grad():
        model.head.bias -= model(POOL / 255).mean(dim=0)  # every class is some image's top one
    api = BlackBox(model, Undefended(), (1, 8, 8), budget, CPU)
    return whole.attack.spend(api, pool, whole.adversary(CPU)), api, model


def steal(*what, **how):
    found, api, model = brought(*what, **how)
    assert found.network is None
    return found.transfer, api, model


def seeds(count=SEEDS, seed=0):
    return POOL[torch.randperm(len(POOL), generator=generator(seed, "pool order"))[:count]] / 255


def bent(classes=6):
    """Return a small network that is not linear."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, classes)).eval()


def some_images():
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images[0], images[1] = 0.0, 1.0  # where clipping bites
    return images, torch.arange(9) % 6
