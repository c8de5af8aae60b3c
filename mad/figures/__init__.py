"""Figures: pure functions from the records' data frame to matplotlib; nothing is trained here."""
