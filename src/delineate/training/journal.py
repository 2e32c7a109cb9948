"""What a training tells while it goes on: `log.jsonl`, and TensorBoard's file where that is installed."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """Entries as lines of `<folder>/log.jsonl`; as scalars in `<folder>/tensorboard` too where that can be written.

    Entries that a resumed training had written before are written anew, so that none stands twice. Without a folder
    nothing is written.
    """

    def __init__(self, folder: Path | None, before: list[dict[str, float]]):
        self.file: Any = None
        self.board: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "log.jsonl").open("w", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined]
        except ImportError:  # an optional package
            pass
        else:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=before[-1]["images"] if before else None)
        self._write(before)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()

    def add(self, entries: list[dict[str, float]]) -> None:
        """Write entries, each with `images`."""
        self._write(entries)
        if self.board is not None:
            for entry in entries:
                for name, value in entry.items():
                    if name != "images":
                        self.board.add_scalar(name, value, entry["images"])

    def _write(self, entries: list[dict[str, float]]) -> None:
        if self.file is None:
            return
        self.file.writelines(json.dumps(entry) + "\n" for entry in entries)
        self.file.flush()
