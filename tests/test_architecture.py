"""What may know what: read from the sources, not from what happens to be imported."""

import ast
import importlib.util
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import delineate

SOURCE = Path(__file__).resolve().parents[1] / "src"
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

FLOORS = [  # the rooms from the ground up: a module imports from rooms below its own, and from its own
    {"", "diffusion", "errors", "networks"},
    {"storage"},
    {"prompts", "samples"},
    {"calibration", "scans"},
    {"data", "metrics", "proposals"},
    {"pictures", "training"},
    {"foundation"},
    {"systems"},
    {"adapters", "interaction", "schemes", "synthesis"},
    {"model_folder"},
    {"hub"},
    {"segmenter"},
    {"bundle", "card", "evaluation", "notebook", "review"},
    {"evaluation.protocols", "evaluation.studies", "few_shot"},
    {"jobs"},
    {"serve"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
KNOW_NOTHING = [  # of our modules: mathematics and tables that could stand alone
    *(
        "calibration.conformal",
        "data.augmentation",
        "diffusion.codec",
        "diffusion.schedule",
        "diffusion.seeds",
        "errors",
    ),
    *("metrics.overlap", "networks", "networks.multi_kernel", "prompts.anatomy", "proposals.fusion", "review.editing"),
    *("review.safety", "scans.dicom.codes", "scans.histogram", "scans.intensity", "storage.files", "synthesis.edges"),
    *("synthesis.radiomics", "training.losses"),
]
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


def room_of(name: str) -> str:
    """The longest room that a module, its name without "delineate.", lies in."""
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts), -1, -1)]
    return next(room for room in names if room in FLOOR_OF)


def short(name: str) -> str:
    return name.removeprefix("delineate").removeprefix(".")


def test_the_import_graph_is_really_read():
    assert len(FILES) > 25
    assert {"diffusion.schedule"} <= ours_imported_by("delineate.diffusion.sampling")
    assert "prompts.anatomy" in ours_imported_by("delineate.prompts.matching")  # from delineate.prompts import anatomy
    assert "segmenter" in ours_imported_by("delineate.cli.segment")  # inside a function
    assert "data.check" in ours_imported_by("delineate.evaluation.report")  # for the type checker


def test_every_room_has_a_floor():
    found = {short(name).split(".")[0] for name in FILES}
    assert found == {room.split(".")[0] for room in FLOOR_OF}


@pytest.mark.parametrize("name", FILES)
def test_imports_lead_down(name):
    """Those inside functions and for the type checker count as all others."""
    own = room_of(short(name))
    for other in ours_imported_by(name) - {"delineate"}:
        room = room_of(other)
        assert room == own or FLOOR_OF[room] < FLOOR_OF[own], f"{name} of {own} imports {other} of {room}"


@pytest.mark.parametrize("name", KNOW_NOTHING)
def test_what_could_stand_alone_does(name):
    assert ours_imported_by(f"delineate.{name}") <= set(KNOW_NOTHING)


def test_modules_import_one_another_in_one_direction():
    """No cycle among modules, those of one room and imports inside functions included."""
    left = {short(name): {short(m) for m in ours_imported_by(name)} - {short(name), ""} for name in FILES}
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
                if (name, called) == ("delineate.storage.pretrained", "torch.load"):  # others' weights, hashed before
                    kept = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert kept["weights_only"] == "True"
                    continue
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
from delineate.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in ("torch", "diffusers", "transformers", "matplotlib", "scipy") if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("samples",), ("systems",), ("segment", "--help")], ids=" ".join
)
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


def test_the_public_names_are_the_same_for_python_and_for_type_checkers():
    """`from delineate import Segmenter` is imported when it is used; a type checker reads where from."""
    stub = ast.parse(Path(delineate.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    told = {a.asname: node.module for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for a in node.names}
    assert told == delineate._HOME
    assert all(hasattr(delineate, name) for name in delineate.__all__)
    assert Path(delineate.__file__).with_name("py.typed").is_file()
