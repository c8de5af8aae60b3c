"""Solvers over the simplex and the L1 ball: of MAD's objective, published and exact, and of ModelGuard-W's."""

from mad.solvers.argmax import argmax_vertex
from mad.solvers.exact import exact
from mad.solvers.metric import objective
from mad.solvers.modelguard import modelguard
from mad.solvers.vertex import vertex

__all__ = ["argmax_vertex", "exact", "modelguard", "objective", "vertex"]
