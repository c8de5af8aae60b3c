"""Images and labels: what victims learn from, and what adversaries query with."""

from mad.datasets.base import Dataset, Images, Labelled, Pool, Split, batches, fitting, space, unit, whole

__all__ = ["Dataset", "Images", "Labelled", "Pool", "Split", "batches", "fitting", "space", "unit", "whole"]
