"""What a victim does to its answers. One file and one YAML a defense."""

from mad.defenses.base import Defense, Setting, Undefended

__all__ = ["Defense", "Setting", "Undefended"]
