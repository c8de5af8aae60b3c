"""The report: one HTML page, or LaTeX and CSV tables, of the records of an outputs folder."""
