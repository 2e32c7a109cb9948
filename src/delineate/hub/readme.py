"""README.md of a model on the Hub: what machines read of it, as YAML; its card; how it is used."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from delineate.calibration.guarantees import Calibration
from delineate.model_folder import read_vocabulary
from delineate.storage.hidden import without_hidden
from delineate.storage.shipped import house_folder
from delineate.systems import SYSTEMS

TASK = "image-segmentation"
SHIPPED_UNDER = "apache-2.0"  # the model that ships, as the package does
UNKNOWN = "unknown"  # the Hub's own word
USE = """
## Use

```python
from delineate import Segmenter, read_scan

segmenter = Segmenter.from_pretrained("hf://ORGANISATION/NAME")   # or a folder
segmenter(read_scan("scan.nii.gz"), ["{target}"])
```
"""


def readme(folder: Path, config: dict[str, Any], licence: str | None) -> str:
    """The text of README.md.

    Args:
        folder: a checked model folder.
        config: its configuration.
        licence: as the Hub names it; None where nobody says: the model that ships is Apache-2.0, another unknown.
    """
    names = read_vocabulary(folder).names
    shipped = folder.resolve() == house_folder().resolve()
    data = ModelCardData(
        license=licence or (SHIPPED_UNDER if shipped else UNKNOWN),
        library_name="delineate",
        pipeline_tag=TASK,
        tags=tags(config, names),
        datasets=[without_hidden(one) for one in config["training"].get("datasets", ())] or None,
        metrics=["dice"],
        model_name=f"delineate {config['system']}",
        eval_results=results(folder) or None,
    )
    card = (folder / "card.md").read_text(encoding="utf-8") if (folder / "card.md").is_file() else ""
    target = (names or ("liver",))[0].replace('"', "'")
    return f"---\n{data}\n---\n\n{card.strip()}\n{USE.format(target=without_hidden(target))}"


def tags(config: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """By what it can be found: field, system, kinds of scan, targets."""
    system, kinds = config["system"], [kind for kind in config["modalities"] if kind]
    known = [system] if system in SYSTEMS else []
    return list(dict.fromkeys(map(without_hidden, ("medical", "uncertainty", *known, *kinds, *names))))


def results(folder: Path) -> list[EvalResult]:
    """The Dice of each target on held-out subjects, as its calibration tells; none where it was not calibrated."""
    calibration = Calibration.load(folder)
    if calibration is None:
        return []
    about = calibration.about
    sets = ", ".join(map(str, about.get("datasets", ()))) or "held-out subjects"
    split = str(about.get("split", "val"))
    found = []
    for target, told in calibration.held_out_dice().items():
        found.append(
            EvalResult(
                task_type=TASK,
                dataset_type="held-out",
                dataset_name=without_hidden(sets),
                dataset_split=without_hidden(split),
                metric_type="dice",
                metric_name=f"Dice of the consensus, {without_hidden(target)} ({told['subjects']} subjects)",
                metric_value=told["mean"],
                metric_args={"target": without_hidden(target)},
            )
        )
    return found
