"""Datasets on disk, the checks that find their faults, and phantoms that need no data at all."""

from delineate.data.dataset import Case, Dataset, open_dataset, write_splits

__all__ = ["Case", "Dataset", "open_dataset", "write_splits"]
