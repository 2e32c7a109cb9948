"""A MONAI bundle with a model of ours in it.

    configs/metadata.json      what it is, by MONAI's specification of bundles
    configs/inference.json     NIfTI in, label maps out: `python -m monai.bundle run --config_file …`
    docs/README.md             the model's card
    models/delineate/          the model folder, as it is: safetensors, JSON, the hash of each

MONAI builds `network_def` from this package (`bundle.network`), which compares the hashes first. There is no
`models/model.pt`: that is a pickle, and what such a file holds, a network, is less than a model here.
"""

from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from delineate import __version__
from delineate.errors import ModelError
from delineate.hub.repository import copy_files
from delineate.model_folder import BUNDLED, check_model, read_vocabulary
from delineate.storage.files import write_json, write_text
from delineate.storage.swapping import swapping

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
MEANT = ("$", "@", "%")  # what begins with these MONAI evaluates, resolves or reads from a file
FORMATS = {"CT": ("hounsfield", "CT"), "MR": ("magnitude", "MR")}  # of MONAI's formats; all else is magnitude


def write_bundle(
    model: Path | None, output: Path, *, targets: tuple[str, ...] = (), modality: str | None = None, n: int = 8
) -> Path:
    """Write a checked model folder as a MONAI bundle, whole or not at all; an older bundle of ours is replaced.

    Args:
        model: the folder; None for the model that ships.
        output: where to.
        targets: what is outlined unless `run` is told otherwise; none for all that was learnt for a scan's kind.
        modality: of the scans; None where the voxels are to say (CT by its values), or the model knows one kind.
        n: proposals a target.

    Raises:
        ModelError: as `check_model`, a target that the model does not know, or `output` is something else.
    """
    folder, config = check_model(model)
    vocabulary, output = read_vocabulary(folder), Path(output)
    if unknown := [name for name in targets if name not in vocabulary.names]:
        raise ModelError(f"{folder}: '{unknown[0]}' is none of the model's names; list them with: delineate prompts")
    if output.exists() and not is_bundle(output) and not (output.is_dir() and not any(output.iterdir())):
        raise ModelError(f"{output}: exists and is no bundle of delineate; choose another name")
    kinds = [kind for kind in config["modalities"] if kind]
    modality = modality or (kinds[0] if len(kinds) == 1 else None)
    channels = tuple(config.get("channels", ())) or ("image",)
    if meant := [word for word in (*vocabulary.names, *channels, *kinds, modality or "") if word.startswith(MEANT)]:
        raise ModelError(
            f"{folder}: MONAI would take the name '{meant[0]}' for code; rename it, and save the model again"
        )
    with swapping(output) as building:
        (building / BUNDLED).mkdir(parents=True)
        copy_files(folder, building / BUNDLED)
        (building / "configs").mkdir()
        write_json(building / "configs" / "metadata.json", metadata(vocabulary.names, channels, kinds, modality))
        write_json(building / "configs" / "inference.json", inference(targets, modality, n))
        (building / "docs").mkdir()
        card = folder / "card.md"
        write_text(building / "docs" / "README.md", card.read_text(encoding="utf-8") if card.is_file() else "# model\n")
    return output


def is_bundle(folder: Path) -> bool:
    """Whether it is a bundle with a model of ours in it."""
    return (folder / "configs" / "metadata.json").is_file() and (folder / BUNDLED / "manifest.json").is_file()


def metadata(
    names: tuple[str, ...], channels: tuple[str, ...], kinds: list[str], modality: str | None
) -> dict[str, Any]:
    """What `configs/metadata.json` holds."""
    form, kind = FORMATS.get(modality or "", ("magnitude", modality or "n/a"))
    anywhere = {"spatial_shape": ["*", "*", "*"], "dtype": "float32", "is_patch_data": False}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by delineate"},
        "monai_version": monai.__version__.split("+")[0],
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"delineate": __version__, "nibabel": "5.3", "pytorch-ignite": "0.5"},
        "name": "delineate",
        "task": "Segmentation of what is named, in scans of any size",
        "description": "Outlines the targets that are named: a label map of the consensus of several proposals.",
        "authors": "whoever trained the model: docs/README.md",
        "copyright": "as docs/README.md says",
        "data_source": "docs/README.md",
        "data_type": "nibabel",
        "image_classes": f"one volume, {', '.join(kinds) or 'any modality'}, intensities as stored",
        "label_classes": "single channel data, a number a target",
        "pred_classes": "single channel data, 0 where no target was found",
        "intended_use": "Research. Not a medical device.",
        "references": [],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": form,
                    "modality": kind,
                    "num_channels": len(channels),
                    "value_range": [],
                    "channel_def": {str(k): name for k, name in enumerate(channels)},
                    **anywhere,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": 1,
                    "value_range": [0, len(names)],
                    "channel_def": {"0": "background", **{str(k): name for k, name in enumerate(names, start=1)}},
                    **anywhere,
                }
            },
        },
    }


def inference(targets: tuple[str, ...], modality: str | None, n: int) -> dict[str, Any]:
    """What `configs/inference.json` holds; no word of `targets` and `modality` begins as `MEANT` says."""
    network = {"folder": f"$@bundle_root + '/{BUNDLED.as_posix()}'"}
    network |= {name: f"@{name}" for name in ("targets", "modality", "proposals", "seed")}
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "targets": list(targets),
        "modality": modality,
        "proposals": n,
        "seed": 0,
        "network_def": {"_target_": "delineate.bundle.network.BundledModel", **network},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True}
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': one} for one in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "labels",
                    "output_dtype": "uint16",
                    "resample": False,
                    "separate_folder": False,
                }
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "initialize": ["$os.makedirs(@output_dir, exist_ok=True)"],
        "run": ["$@evaluator.run()"],
    }
