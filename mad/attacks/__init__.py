"""How an adversary chooses its queries. One file and one YAML an attack."""

from mad.attacks.base import Attack, Stolen, TransferSet, ask, drawn, queried

__all__ = ["Attack", "Stolen", "TransferSet", "ask", "drawn", "queried"]
