"""Networks: images in [0, 1] to logits; normalisation is inside the model. One file a family."""

from mad.plugin_exports import exports

__getattr__, __dir__ = exports(__name__, __path__)
