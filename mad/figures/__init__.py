"""Figures and tables, drawn from the data frame of records; nothing is trained here."""
