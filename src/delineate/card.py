"""What every model says of itself, for people."""

from typing import Any

from delineate.segmenter import Segmenter
from delineate.systems import SYSTEMS
from delineate.training.merging import Merging


def plain_card(system: str, training: dict[str, Any], segmenter: Segmenter) -> str:
    """What every model says of itself."""
    stages = "\n".join(f"- {s}: {v['images']} images, {v['seconds']:.0f} s" for s, v in training["stages"].items())
    fold = f" (fold {training['fold']} of a cross-validation)" if training.get("fold") else ""
    lines = [
        f"# {system}",
        SYSTEMS[system].summary + f" ({SYSTEMS[system].source}).",
        f"Trained on the train split of {', '.join(training['datasets'])}{fold}: {training['slices']} slices.",
        *_beginning(training),
        *_variety(training),
        stages,
        *([segmenter.system.about] if segmenter.system.about else []),
        f"Targets: {', '.join(segmenter.vocabulary.names)}.",
        "Not a medical device. How far its answers can be believed: calibration.json, where it was calibrated.",
    ]
    return "\n\n".join(lines) + "\n"


def _beginning(training: dict[str, Any]) -> list[str]:
    """What a card says of weights that were learnt elsewhere; nothing where training began with chance."""
    if not (weights := training.get("init_weights")):
        return []
    told = f"{weights['package']}, {weights['licence']}, SHA-256 {weights['sha256']}"
    return [f"Its encoder began with weights that were learnt from {training['init']} ({told})."]


def _variety(training: dict[str, Any]) -> list[str]:
    """What a card says of augmentation and synthetic cases; nothing where both are as usual."""
    lines = []
    if (augmentation := training.get("augmentation", "default")) != "default":
        lines.append(f"Augmentation: {augmentation}.")
    if rating := training.get("raters"):
        whose = {"random": "a random one's", "all": "everyone's", "consensus": "no single one's, but the consensus"}
        lines.append(f"Where several raters drew, {whose[rating]} was learnt.")
    if training.get("synthetic") == "pair":
        lines.append(f"Merged with {training.get('variants', 0)} synthetic slices: {Merging(**training['merging'])}.")
    elif training.get("synthetic"):
        use = {"extra": "are among the slices", "none": "were left out"}[training["synthetic"]]
        lines.append(f"The synthetic cases {use}.")
    return lines
