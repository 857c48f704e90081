"""Predictions against references: tables, verdicts, one page."""
