"""How an adversary chooses its queries. One file and one YAML an attack."""

from mad.attacks.base import Attack, TransferSet

__all__ = ["Attack", "TransferSet"]
