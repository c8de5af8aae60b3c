"""Images and labels: the data sets of victims and the pools of adversaries."""

from mad.datasets.base import (
    Dataset,
    Images,
    Labelled,
    Pool,
    Split,
    allocate,
    batch_limit,
    batches,
    to_device,
    to_unit_range,
)
from mad.plugin_exports import exports

__all__ = [
    "Dataset",
    "Images",
    "Labelled",
    "Pool",
    "Split",
    "allocate",
    "batch_limit",
    "batches",
    "to_device",
    "to_unit_range",
]
__getattr__, __dir__ = exports(__name__, __path__)
