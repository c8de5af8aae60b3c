"""Images and labels: what victims learn from, and what adversaries query with."""

from mad.datasets.base import Dataset, Images, Pool, Split, batches, unit

__all__ = ["Dataset", "Images", "Pool", "Split", "batches", "unit"]
