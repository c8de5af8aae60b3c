"""Attacks: how an adversary chooses its queries. Each attack has one file here and one YAML in ``conf/attack``."""

from mad.attacks.base import Attack, Stolen, TransferSet, ask, drawn, queried
from mad.plugin_exports import exports

__all__ = ["Attack", "Stolen", "TransferSet", "ask", "drawn", "queried"]
__getattr__, __dir__ = exports(__name__, __path__)
