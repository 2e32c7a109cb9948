"""What may know what: read from the sources, not from what happens to be imported."""

import ast
import importlib.util
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

MAY_IMPORT = {  # the leaves: which of our modules each may know
    "adapters.salt": set(),
    "anatomy": set(),
    "bias": {"errors", "scan"},
    "calibration": {"errors"},
    "codec": set(),
    "conformal": set(),
    "contact_sheet": {"pictures"},
    "data.augmentation": set(),
    "dicom.codes": set(),
    "dicom.order": {"errors"},
    "distance_chart": {"distance", "files"},
    "edges": set(),
    "errors": set(),
    "files": set(),
    "fusion": set(),
    "gate": {"edges"},
    "geometry": {"errors"},
    "histogram": set(),
    "intensity": set(),
    "merging": {"errors"},
    "metrics": set(),
    "networks.hed": {"errors", "weights"},
    "objectives": set(),
    "radiomics": set(),
    "rater_metrics": {"calibration", "metrics"},
    "review.editing": set(),
    "review.runs": {"errors"},
    "review.safety": set(),
    "sampling": {"schedule"},
    "schedule": set(),
    "sealed": {"errors", "files"},
    "weights": {"errors"},
}
MOST_LINES = 450


def ours_imported_by(name: str, nodes=None) -> set[str]:
    """Modules of delineate that a module (or some of its syntax nodes) imports, "delineate." left out."""
    found = set()
    for node in ast.walk(TREES[name]) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            nested = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (nested & FILES.keys()) or {node.module}
    return {module.removeprefix("delineate.") for module in found if module.split(".")[0] == "delineate"}


def test_the_import_graph_is_really_read():
    assert len(FILES) > 25
    assert {"schedule"} <= ours_imported_by("delineate.diffusion.sampling")
    assert "anatomy" in ours_imported_by("delineate.prompts.matching")  # from delineate import anatomy
    assert "segmenter" in ours_imported_by("delineate.cli.segment")  # inside a function


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_leaf_knows_no_more_than_it_may(name):
    assert ours_imported_by(f"delineate.{name}") <= MAY_IMPORT[name]


def test_nobody_but_python_dash_m_imports_the_command_line():
    assert {name for name in FILES if "cli" in ours_imported_by(name)} <= {"delineate.__main__"}


@pytest.mark.parametrize(
    ("package", "forbidden"), [("networks", ("systems", "cli")), ("data", ("systems", "networks", "cli"))]
)
def test_inner_packages_do_not_know_outer_ones(package, forbidden):
    members = [name for name in FILES if name.startswith(f"delineate.{package}")]
    assert members
    for name in members:
        outer = {module for module in ours_imported_by(name) if module.split(".")[0] in forbidden}
        assert not outer, f"{name} imports {outer}"


def test_modules_import_one_another_in_one_direction():
    """No cycles among imports at the top of files; those inside functions are for laziness."""

    def at_the_top(name):
        lazy = {
            inner
            for node in ast.walk(TREES[name])
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)  # an If is TYPE_CHECKING
            for inner in ast.walk(node)
        }
        eager = ours_imported_by(name, [node for node in ast.walk(TREES[name]) if node not in lazy])
        return {f"delineate.{module}".removesuffix(".delineate") for module in eager} - {name, "delineate"}

    left = {name: at_the_top(name) for name in FILES}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_torchvision_is_not_needed():
    assert importlib.util.find_spec("torchvision") is None
    imports = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not imports & {"torchvision", "pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_no_call_can_load_a_pickle_or_evaluate_text():
    forbidden = {"torch.load", "torch.save", "eval", "exec", "torch.jit.load", "np.loadtxt"}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in forbidden, f"{name}:{node.lineno} calls {called}"
                pickles = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
                assert not pickles, f"{name}:{node.lineno} allows pickles"


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name):
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES


SNIPPET = """
import sys
sys.argv = ["delineate", *sys.argv[1:]]
from delineate.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in ("torch", "diffusers", "transformers", "matplotlib", "scipy") if name in sys.modules])
"""


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("systems",), ("segment", "--help")], ids=" ".join)
def test_light_commands_import_nothing_heavy_and_are_quick(arguments):
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", SNIPPET, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) > 1  # it said something of its own
        assert done.stdout.splitlines()[-1] == "[]"
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if min(seconds) < 1:
            break
    assert min(seconds) < 1
