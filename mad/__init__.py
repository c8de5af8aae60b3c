"""How well a defended prediction API resists model stealing, and what the defense costs its honest users."""

__version__ = "0.1.0"
