"""What a victim does to its answers. One file and one YAML a defense."""

from mad.context import Context
from mad.defenses.base import Defense, Undefended

__all__ = ["Context", "Defense", "Undefended"]
