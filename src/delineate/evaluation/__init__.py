"""Held-out subjects: figures, tables, protocols."""
