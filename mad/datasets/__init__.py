"""Images and labels: what victims learn from, and what adversaries query with."""

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
