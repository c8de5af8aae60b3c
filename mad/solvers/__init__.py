"""Solvers over the simplex and the L1 ball: of the objectives of MAD and ModelGuard-W, and of a linear one."""

from mad.solvers.argmax import argmax_vertex
from mad.solvers.exact import exact
from mad.solvers.linear import linear
from mad.solvers.metric import objective
from mad.solvers.modelguard import modelguard
from mad.solvers.vertex import vertex

__all__ = ["argmax_vertex", "exact", "linear", "modelguard", "objective", "vertex"]
