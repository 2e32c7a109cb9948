"""Many systems compared on many datasets: the whole job behind `delineate study`."""

import json
from pathlib import Path
from typing import Any

from delineate.errors import DelineateError
from delineate.evaluation.studies import STUDIES, StudyRequest
from delineate.jobs.watch import Nobody, Watch
from delineate.storage.files import write_json
from delineate.storage.schema import read_json


def make_study(request: StudyRequest, output: Path, *, device: str = "cpu", watch: Watch = Nobody()) -> dict[str, Any]:
    """Write report.json and a picture into `output`, with every model in `output/models`, and return the report.

    After a stop the same request goes on with what is missing; another one is refused.

    Raises:
        DelineateError: `output` holds another study, or as in training.
    """
    output, settings = Path(output), json.loads(json.dumps(request.to_json()))
    written = output / "settings.json"
    begun = any((output / "models").rglob("*"))  # else the earlier call failed at the door, and nothing can be lost
    if (
        begun
        and written.is_file()
        and read_json(written, error=DelineateError, fix="choose another folder") != settings
    ):
        raise DelineateError(
            f"{output}: holds a study that was asked for otherwise; repeat it, or choose another folder"
        )
    if output.is_dir() and any(output.iterdir()) and not written.is_file():
        raise DelineateError(f"{output}: exists and is no study; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_json(written, settings)
    study = STUDIES[request.study]
    report = study.run(request, output / "models", device=device, watch=watch)
    study.draw(report, output / study.picture)
    write_json(output / "report.json", report)
    return report
