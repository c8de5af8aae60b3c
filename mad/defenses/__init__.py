"""What a victim does to its answers. One file and one YAML a defense."""

from mad.defenses.base import Context, Defense, Undefended

__all__ = ["Context", "Defense", "Undefended"]
