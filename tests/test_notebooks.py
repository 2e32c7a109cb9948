"""The notebooks run: their code cell by cell, with less to learn than a reader has time for."""

import ast
import json
import re
from pathlib import Path

import pytest

BOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
QUICK = {  # instead of what stands in the cell of parameters
    "first-masks": "from delineate import Scan\n"
    "PROPOSALS, scan = 2, Scan(scan.voxels[..., 9:13], scan.affine, scan.modality)",  # four slices of it
    "own-data": "CASES, IMAGES = 3, 32",
    "ct-to-mr": "IMAGES, SHOTS, ADAPT_IMAGES = 32, 2, 16",
}
MOST_BYTES = 1_000_000  # of a stored notebook, pictures included


def run(book: Path, parameters: str | None) -> list:
    """Run a notebook's cells as a kernel would; the value that each cell ends with, where it ends with one."""
    names: dict = {"__name__": "__main__"}
    values = []
    for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"])
        if parameters is not None and "parameters" in cell["metadata"].get("tags", ()):
            code = parameters
        tree = ast.parse(code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, book.name, "exec"), names)
        if isinstance(last, ast.Expr):
            values.append(eval(compile(ast.Expression(last.value), book.name, "eval"), names))
    return values


def shown(values: list) -> list[str]:
    return [value._repr_html_() for value in values if hasattr(value, "_repr_html_")]


def test_the_first_notebook_shows_masks():
    (book,) = (one for one in BOOKS if one.stem == "first-masks")
    pages = shown(run(book, QUICK["first-masks"]))
    assert len(pages) == 2
    assert "<b>liver</b>: found" in pages[0]
    assert "<b>flux capacitor</b>: unknown prompt" in pages[0]


@pytest.mark.parametrize("name", ["own-data", pytest.param("ct-to-mr", marks=pytest.mark.slow)])
def test_the_notebooks_that_train_run_with_little_to_learn(name, capsys):
    (book,) = (one for one in BOOKS if one.stem == name)
    pages = shown(run(book, QUICK[name]))
    assert pages
    assert "liver" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_jupyter_runs_them_as_they_stand(book, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(book, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": tmp_path}}).execute()
    assert "data:image/png" in json.dumps(notebook)


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_what_is_stored_is_small_and_names_no_place_on_somebody_s_machine(book):
    text = book.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert book.stem in QUICK
    assert not re.findall(r"/(?:home|tmp|work|Users)/", text)
    told = json.loads(text)
    assert not [out for cell in told["cells"] for out in cell.get("outputs", ()) if out["output_type"] == "error"]
