"""A defense that breaks its contract, for the tests of the checks."""

from dataclasses import dataclass

import torch

from mad.defenses import Defense


@dataclass
class Wrong(Defense):
    """Break the contract in one way."""

    name = "wrong"
    epsilon: float | None = None
    how: str = "none"

    def begin(self):
        self._asked = 0

    def columns(self, context):
        return {"more": 1} if self.how == "undeclared" else {}

    def perturb(self, images, clean):
        mixed = {
            "beside": lambda: clean.mean(dim=0).expand_as(clean).clone(),
            "global": lambda: torch.softmax(torch.randn(clean.shape), dim=1),
            "place": lambda: clean.clone().flip(0),
            "in place": lambda: clean.mul_(1),
            "attribute": lambda: setattr(self, "epsilon", 1.0) or clean,
        }
        return mixed.get(self.how, lambda: clean)()
