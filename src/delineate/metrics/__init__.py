"""Figures of masks and of sets of masks."""
