"""Fixtures of the whole suite. Nothing here needs the network, weights or a GPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["DELINEATE_PRECISION"] = "float32"  # the same rounding on every processor

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from delineate.data.dataset import open_dataset
from delineate.data.phantom import write_phantom_dataset
from delineate.data.slices import SliceBank, build_slices
from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import caption_corpus, pretrain
from delineate.jobs.pretrain import PretrainRequest, pretrain_foundation
from delineate.model_folder import is_model, save_model
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training.loop import Budget, Run

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums are added up in one order on one machine, and tests that run side by side do not fight for cores.

    Another machine adds up in another: what may be asked to be equal to the bit is told in `rounding.py`.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantom_dataset(tmp_path_factory) -> Path:
    """The folder of a small CT phantom dataset (nnU-Net layout, 4 train, 1 val, 1 test case); do not write there."""
    folder = tmp_path_factory.mktemp("phantom") / "abdomen"
    return write_phantom_dataset(folder, cases=6, shape=(10, 64, 64), missing=())


@pytest.fixture(scope="session")
def phantom_bank(phantom_dataset) -> SliceBank:
    """The training slices of `phantom_dataset` at 64 pixels."""
    return build_slices([open_dataset(phantom_dataset)], "train", 64)


def beside(name: str) -> Path:
    """A folder of material that lies beside a working copy; where it is not, the test is skipped."""
    folder = PROJECT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"it needs {folder}, which does not exist")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Where real scans lie beside a working copy; tests that need them are skipped elsewhere."""
    return beside("data")


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Where small inputs lie that once were read wrongly, a folder each; tests that need them are skipped elsewhere."""
    return beside("cases")


@pytest.fixture(scope="session")
def rated(tmp_path_factory) -> Path:
    """The folder of four flat images: two raters drew a small and a large disc, a third nothing, in the first two alone."""
    root = tmp_path_factory.mktemp("rated")
    for part in ("images", "masks", "raters"):
        (root / part).mkdir()
    y, x = np.mgrid[:64, :64]
    small, large = (((y - 32) ** 2 + (x - 32) ** 2 < radius**2).astype(np.uint8) * 255 for radius in (8, 16))
    for number in range(4):
        Image.fromarray(np.full((64, 64), 50 * number, np.uint8)).save(root / "images" / f"p{number}.png")
        Image.fromarray(large).save(root / "masks" / f"p{number}.png")
        readings = [small, large] + ([0 * small] if number < 2 else [])
        for rater, drawn in enumerate(readings, start=1):
            Image.fromarray(drawn).save(root / "raters" / f"p{number}_r{rater}.png")
    write_json(root / "dataset.json", {"channel_names": {"0": "CT"}, "labels": {"background": 0, "nodule": 1}})
    write_json(root / "splits.json", {"train": ["p0", "p1", "p2"], "val": [], "test": ["p3"]})
    return root


@pytest.fixture(scope="session")
def two_organ_bank(phantom_dataset) -> SliceBank:
    """The training slices of `phantom_dataset` at 32 pixels, liver and spleen alone: what can be learnt in seconds."""
    return build_slices([open_dataset(phantom_dataset, targets=["liver", "spleen"])], "train", 32)


@pytest.fixture(scope="session")
def larger_bank(phantom_dataset) -> SliceBank:
    """`two_organ_bank` at 64 pixels."""
    return build_slices([open_dataset(phantom_dataset, targets=["liver", "spleen"])], "train", 64)


@pytest.fixture(scope="session")
def foundation_folder(two_organ_bank, tmp_path_factory) -> Path:
    """A tiny foundation, pre-trained for seconds, as `delineate pretrain` writes one; do not write there."""
    corpus = caption_corpus(two_organ_bank.vocabulary, two_organ_bank.modalities)
    foundation = Foundation.make("tiny", "unshuffle", corpus, seed=0)
    folder = tmp_path_factory.mktemp("foundation")
    pretrain(foundation, two_organ_bank, Run(Budget(images=200), folder / "checkpoints"))
    foundation.save(folder / "foundation")
    return folder / "foundation"


@pytest.fixture(scope="session")
def edges_base(phantom_dataset, tmp_path_factory) -> Path:
    """A foundation with an edge control, as `delineate pretrain --edges` writes one; do not write there."""
    folder = tmp_path_factory.mktemp("edges") / "base"
    pretrain_foundation(PretrainRequest([phantom_dataset], edges=True, images=120), folder)
    return folder


IMAGES = 900  # enough for most families to find a liver in the phantom
MORE = {
    "ensemble": 3,
    "mcdropout": 2.4,
    "sdseg": 3.1,
    "unisegdiff": 0.8,
}  # members share them; a latent far from pixels takes longer


class Trained(dict):
    """Every named system by its name, trained for seconds on `two_organ_bank` when first asked for; do not change.

    Of several processes that run tests the first trains one, and the others load it.
    """

    def __init__(self, bank: SliceBank, larger: SliceBank, foundation: Callable[[], Path], folder: Path):
        super().__init__()
        self.bank, self.foundation, self.folder = bank, foundation, folder
        self.banks = {"sdseg": larger}  # of 32 pixels its latents keep four a side

    def __missing__(self, name: str) -> Segmenter:
        with FileLock(self.folder / f"{name}.lock"):
            if is_model(self.folder / name):
                system = Segmenter.load(self.folder / name).system
            else:
                system = self._train(name)
                save_model(self.folder / name, Segmenter(system, self.bank.modalities), name, training={}, card="card")
        self[name] = Segmenter(system, self.bank.modalities)
        return self[name]

    def _train(self, name: str) -> Any:
        work = self.folder / f"{name}-{os.getpid()}"
        return SYSTEMS[name].train(
            self.banks.get(name, self.bank),
            "tiny",
            Run(Budget(images=int(IMAGES * MORE.get(name, 1))), work, seed=0),
            foundation=self.foundation() if name == "progidiff" else None,
            device="cpu",
        )


@pytest.fixture(scope="session")
def trained(two_organ_bank, larger_bank, request, tmp_path_factory) -> Trained:
    """See `Trained`."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "trained-systems"
    folder.mkdir(exist_ok=True)
    return Trained(two_organ_bank, larger_bank, lambda: request.getfixturevalue("foundation_folder"), folder)
