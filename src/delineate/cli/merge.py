"""`delineate merge`."""

from pathlib import Path
from typing import Annotated

import typer

from delineate.cli.options import (
    BaseArgument,
    JsonOption,
    base_of,
    print_json,
)
from delineate.cli.telling import out
from delineate.errors import ModelError


def merge(
    model: BaseArgument,
    adapter: Annotated[Path, typer.Argument(help="Adapter folder that was made for it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write a model and its adapter as one model folder, for programs that know no adapters."""
    from delineate.adapters.folder import fingerprint, load_adapter
    from delineate.model_folder import check_free, check_model, save_model
    from delineate.scans.preparation import Preparation
    from delineate.segmenter import Segmenter

    check_free(output)
    folder, about = check_model(base_of(model))
    base = Segmenter.load(folder)
    adapted, told = load_adapter(adapter, base.system, base.fingerprint)
    if told.habits.preparation != Preparation():
        raise ModelError(
            f"{adapter}: prepares scans (--n4, --unlabelled), which no model folder can say; use it as it is"
        )
    training = {**about["training"], "adapter": {"sha256": fingerprint(adapter), **told.training}}
    card = (adapter / "card.md").read_text() + "\nMerged into one model.\n"
    modalities, habits = base.adapted(adapted, told.habits).modalities, base.habits
    merged = Segmenter(adapted.merged(), modalities, habits=habits)
    save_model(output, merged, about["system"], training=training, card=card)
    if as_json:
        print_json({"model": str(output)})
    else:
        out.print(f"model: {output}", soft_wrap=True)
