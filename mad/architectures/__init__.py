"""Architectures: networks from images in [0, 1] to logits, with the normalization inside. One file per family."""

from mad.plugin_exports import exports

__getattr__, __dir__ = exports(__name__, __path__)
