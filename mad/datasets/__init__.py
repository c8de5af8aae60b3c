"""Images and labels: what victims learn from, and what adversaries query with."""

from mad.datasets.base import Dataset, Pool, Split, unit

__all__ = ["Dataset", "Pool", "Split", "unit"]
