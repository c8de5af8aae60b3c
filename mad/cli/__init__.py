"""The commands: ``mad-run``, ``mad-status``, ``mad-figures`` and ``mad-data``."""
