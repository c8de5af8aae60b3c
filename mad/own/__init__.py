"""A victim of the user's own: its weights, a program, a function, or a service, in place of a training."""

from mad.own.victim import Own

__all__ = ["Own"]
