"""What a victim does to its answers. One file and one YAML a defense."""

from mad.context import Context
from mad.defenses.base import Defense, Undefended
from mad.plugin_exports import exports

__all__ = ["Context", "Defense", "Undefended"]
__getattr__, __dir__ = exports(__name__, __path__)
