"""A benchmark of model stealing: how well does a defended API resist it, and what does the defense cost honest users?

cell = mad.load("victim=digits", "defense=mad", "defense.epsilon=0.8")
record = mad.run(cell)
figure = mad.plot(mad.records())
table = mad.panel(cell)
answers = mad.deploy(cell).session(budget=1000)(images)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mad.attacks import Attack
    from mad.cell import Cell
    from mad.config import load
    from mad.defenses import Defense
    from mad.deployment import Deployment, open_deployment
    from mad.errors import MadError
    from mad.export import open_model
    from mad.knockoff import Knockoff
    from mad.notebook import deploy, plot, records, run
    from mad.panels import panel
    from mad.recoveries import Recovery
    from mad.training import Trainer
    from mad.victim import Victim

__version__ = "0.1.0"
__all__ = [
    "Attack",
    "Cell",
    "Defense",
    "Deployment",
    "Knockoff",
    "MadError",
    "Recovery",
    "Trainer",
    "Victim",
    "deploy",
    "load",
    "open_deployment",
    "open_model",
    "panel",
    "plot",
    "records",
    "run",
]
PLACES = {
    "mad.attacks": ("Attack",),
    "mad.config": ("load",),
    "mad.defenses": ("Defense",),
    "mad.deployment": ("Deployment", "open_deployment"),
    "mad.errors": ("MadError",),
    "mad.export": ("open_model",),
    "mad.knockoff": ("Knockoff",),
    "mad.notebook": ("deploy", "plot", "records", "run"),
    "mad.cell": ("Cell",),
    "mad.panels": ("panel",),
    "mad.recoveries": ("Recovery",),
    "mad.training": ("Trainer",),
    "mad.victim": ("Victim",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch and Hydra take seconds."""
    for module, names in PLACES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'mad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
