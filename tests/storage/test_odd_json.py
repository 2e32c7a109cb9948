"""Every field of every JSON file in the folders that are read, replaced by odd values under a manifest that fits.

What is read then is right, or an error of ours of one line; nothing else comes out, soon, and in little memory.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from delineate.adapters import AdapterConfig
from delineate.adapters.adapter import attach
from delineate.adapters.folder import AdapterFolder, in_half, load_adapter, save_adapter
from delineate.calibration.calibrators import Temperature
from delineate.calibration.guarantees import THRESHOLDS, Calibration
from delineate.calibration.presence import Presence
from delineate.cli.app import app
from delineate.data.check import check_dataset
from delineate.data.dataset import open_dataset
from delineate.errors import DelineateError
from delineate.foundation.foundation import Foundation
from delineate.interaction.marker import MarkerConfig, build, load_marker, save_marker
from delineate.model_folder import fingerprint, save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.preparation import Habits, Preparation
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.storage.sealed import MANIFEST, hashes
from delineate.synthesis.synthesizer import Synthesizer
from delineate.systems import SYSTEMS, plain
from delineate.systems.plain import PlainConfig

NEST: Any = 0
for _ in range(500):
    NEST = [NEST]
ODD = [None, [], {}, "", "x" * 10_000, -1, 0, 10**9, 1e308, True, NEST, "\ud800", "[/red]x"]
NAMES = Vocabulary.from_names(["liver", "spleen"], "CT")


def calibrate(folder: Path) -> None:
    curves = {"liver": np.linspace(0, 1, len(THRESHOLDS))[None].repeat(3, 0)}
    presence = Presence(0.5, 0.2, 0.1, 9, 9, 0.9, Temperature(1.5))
    errors = {"liver": np.array([0.1, np.inf])}
    given = {"estimate": {"": Temperature(2.0)}, "consensus": {"": 0.5}, "one_piece": {"liver": True}}
    Calibration(4, Temperature(1.2), presence={"liver": presence}, missed=curves, volume_errors=errors, **given).save(
        folder
    )


def make_model(folder: Path) -> Callable[[Path], Any]:
    base = Segmenter(plain.build(PlainConfig(16, (8, 8)), NAMES), ("CT", None), habits=Habits(apart_mm=5.0))
    held = [{"name": "a", "fold": "1/4", "subjects": "0", "train": "1", "test": "2"}]
    training = {"datasets": ["a"], "seed": 0, "held_out": held, "fold": None}
    save_model(folder, base, "unet", training=training, card="#\n")
    calibrate(folder)
    seal(folder)
    return lambda read: Segmenter.load(read).calibration.summary()  # type: ignore[union-attr]


def make_system(name: str) -> Callable[[Path], Callable[[Path], Any]]:
    """A model whose configuration has other fields."""

    def make(folder: Path) -> Callable[[Path], Any]:
        system = SYSTEMS[name].make("tiny", 64, NAMES, seed=0, modalities=("CT",))
        save_model(folder, Segmenter(system, ("CT",)), name, training={}, card="#\n")
        return Segmenter.load

    return make


def make_adapter(folder: Path) -> Callable[[Path], Any]:
    base = plain.build(PlainConfig(16, (8, 8)), NAMES)
    save_model(folder.with_name("base"), Segmenter(base, ("CT",)), "unet", training={}, card="#\n")
    known = fingerprint(folder.with_name("base"))
    adapted = attach(base, AdapterConfig(rank=2), Vocabulary.from_names(["liver", "spleen", "kidney"], "CT"))
    in_half(adapted)
    habits = Habits(Preparation(True, tuple(np.linspace(0, 1, 11))), "MR", {"liver": 0.2})
    about = AdapterFolder(adapted.config, {"sha256": known, "name": "base", "system": "unet"}, habits)
    save_adapter(folder, adapted, about, "#\n")
    return lambda read: load_adapter(read, base, known)


def make_marks(folder: Path) -> Callable[[Path], Any]:
    config = MarkerConfig(16, (8, 8), 2, "coarse")
    save_marker(folder, config, build(config), training={"seed": 0}, card="#\n")
    return load_marker


def make_foundation(folder: Path) -> Callable[[Path], Any]:
    Synthesizer.make(Foundation.make("words", "vae", ["a liver"], seed=0), "tiny").save(folder)
    return Synthesizer.load


def make_dataset(folder: Path) -> Callable[[Path], Any]:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for name in ("a", "b", "b_syn0"):
        Image.fromarray(np.full((16, 16), 9, np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / "masks" / f"{name}.png")
    write_json(folder / "dataset.json", {"name": "d", "channel_names": {"0": "CT"}, "labels": {"liver": 1, "2": "x"}})
    write_json(folder / "subjects.json", {"a": "A", "b": "B", "b_syn0": "B"})
    write_json(folder / "splits.json", {"train": ["B"], "val": [], "test": ["A"]})
    write_json(folder / "splits_final.json", [{"train": ["B"], "val": ["A"]}])
    synthetic = {"b_syn0": {"source": "b", "variant": 0, "slices": [0, 1]}}
    write_json(folder / "provenance.json", {"synthetic": synthetic, "held_out": [{"name": "d", "fold": None}]})
    return lambda read: (check_dataset(read), open_dataset(read))


MAKERS = {
    "model": make_model,
    "adapter": make_adapter,
    "marks": make_marks,
    "dataset": make_dataset,
    "foundation": make_foundation,
    **{name: make_system(name) for name in ("ensemble", "flowssn", "probunet", "spread", "unisegdiff", "sdseg")},
}
TRIED = {"model": 2, "adapter": 2, "marks": 2, "dataset": 2}  # odd values of each field by turns; of others one
ELSEWHERE = "foundation"  # a part of some models: of its many fields every sixth, where it lies alone
WHOLE = "tokenizer.json"  # hundreds of words, which are replaced together


def seal(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps(hashes(folder)))


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The way to every value within."""
    yield at
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inside in steps:
        yield from places(inside, (*at, step))


def with_odd(value: Any, at: tuple, odd: Any) -> Any:
    if not at:
        return odd
    copy = value.copy()
    copy[at[0]] = with_odd(value[at[0]], at[1:], odd)
    return copy


def mutants(folder: Path, tried: int | None) -> Iterator[tuple[Path, tuple, Any]]:
    """A file, a place in it and an odd value: the file holds it until the next one is asked for.

    With `tried` so many values of every field, by turns; else all of them.
    """
    count = 0
    for path in sorted(folder.rglob("*.json")):
        within = path.relative_to(folder).as_posix()
        if within == MANIFEST or (tried and within.startswith(f"{ELSEWHERE}/")):
            continue
        whole = path.read_text()
        told = json.loads(whole)
        for at in places(told) if path.name != WHOLE else [(), *((key,) for key in told)]:
            count += 1
            if tried and folder.name == ELSEWHERE and count % 6:
                continue
            chosen = [ODD[(count + i * 3) % len(ODD)] for i in range(tried)] if tried else ODD
            for odd in chosen:
                path.write_text(json.dumps(with_odd(told, at, odd)))
                yield path, at, odd
        path.write_text(whole)


def sweep(name: str, folder: Path, tried: int | None) -> int:
    """How many odd values were refused; all of them in a line."""
    load, refused = MAKERS[name](folder), 0
    sealed = (folder / MANIFEST).exists()
    load(folder)
    for path, at, odd in mutants(folder, tried):
        if sealed:
            seal(folder)
        started, told = time.process_time(), ""
        try:
            load(folder)
        except DelineateError as error:
            refused, told = refused + 1, str(error)
        except BaseException as error:
            raise AssertionError(f"{path}: {at} = {str(odd)[:40]}: {error!r}") from error
        assert told.isprintable(), (path, at, odd)
        assert len(told) < 1000, (path, at, odd)
        assert time.process_time() - started < 5, (path, at, odd)
    return refused


@pytest.mark.filterwarnings("ignore")  # of libraries, at configurations that they take after all
@pytest.mark.parametrize("name", MAKERS)
def test_an_odd_field_is_one_line(name, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sweep(name, tmp_path / name, TRIED.get(name, 1)) > 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MAKERS)
def test_an_odd_field_is_one_line_whatever_it_holds(name, tmp_path):
    assert sweep(name, tmp_path / name, None) > 50


@pytest.mark.parametrize("name", ["[/red]liver", "[bold]liver", ":liver:"])
def test_names_that_look_like_markup_are_printed_as_they_are(name, tmp_path):
    make_model(tmp_path / "model")
    write_json(tmp_path / "model" / "vocabulary.json", {"concepts": [{"name": name, "synonyms": [f"{name} lobe"]}]})
    seal(tmp_path / "model")
    done = CliRunner().invoke(app, ["prompts", "--model", str(tmp_path / "model")])
    assert done.exit_code == 0
    assert name in done.stdout
    assert f"{name} lobe" in done.stdout


def test_the_names_of_a_manifest_lie_in_its_folder(tmp_path):
    make_model(tmp_path / "model")
    manifest = hashes(tmp_path / "model")
    for odd in ("../base/config.json", "/etc/passwd", "a/../../b", "..\\b", "a\nb", ""):
        write_json(tmp_path / "model" / MANIFEST, {**manifest, odd: "0" * 64})
        with pytest.raises(DelineateError, match=r"manifest\.json: ") as caught:
            Segmenter.load(tmp_path / "model")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["nowhere", "elsewhere", "."])
def test_a_link_stands_for_what_it_leads_to(target, tmp_path):
    make_model(tmp_path / "model")
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / target)
    with pytest.raises(DelineateError, match=r"'config\.json' (is missing|was changed)"):
        Segmenter.load(tmp_path / "model")
