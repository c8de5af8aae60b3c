"""The commands ``mad-run``, ``mad-status``, ``mad-figures``, ``mad-data`` and ``mad-select``."""
