"""Solvers of MAD's objective over the simplex and the L1 ball: the published ones, and an exact one."""

from mad.solvers.argmax import argmax_vertex
from mad.solvers.exact import exact
from mad.solvers.metric import objective
from mad.solvers.vertex import vertex

__all__ = ["argmax_vertex", "exact", "objective", "vertex"]
