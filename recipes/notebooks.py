"""Runs notebooks as they stand and stores them with their pictures. Writes the files that are named.

As `python recipes/notebooks.py docs/notebooks/*.ipynb`; `make notebooks` does that.
"""

import argparse
import re
import tempfile
import time
from pathlib import Path

from delineate.storage.files import write_text

HELD = ("display_data", "execute_result", "stream")


def main() -> None:
    """Run all that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args().notebooks:
        import nbclient
        import nbformat

        book, began = nbformat.read(path, as_version=4), time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            nbclient.NotebookClient(book, timeout=3600, resources={"metadata": {"path": work}}).execute()
        for cell in book.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [out for out in cell.outputs if out.output_type in HELD and out.get("name") != "stderr"]
        text = re.sub(re.escape(tempfile.gettempdir()) + r"/tmp\w+", "…", nbformat.writes(book))
        write_text(path, text + "\n")
        print(f"{path}: {time.perf_counter() - began:.0f} s, {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
