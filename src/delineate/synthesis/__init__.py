"""Synthetic scans: drawn, judged, compared with real ones."""
