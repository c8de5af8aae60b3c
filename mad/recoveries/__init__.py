"""Recoveries: how an adversary turns answers into training targets. Each has one file here and one YAML in conf."""

from mad.plugin_exports import exports
from mad.recoveries.base import AsAnswered, Extra, Recovery

__all__ = ["AsAnswered", "Extra", "Recovery"]
__getattr__, __dir__ = exports(__name__, __path__)
