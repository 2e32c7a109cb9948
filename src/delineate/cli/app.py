"""The command line. Everything heavy is imported inside the command that needs it."""

import io
import os
import sys
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from delineate import __version__
from delineate.cli import adapt as cli_adapt
from delineate.cli import calibrate as cli_calibrate
from delineate.cli import distance as cli_distance
from delineate.cli import evaluate as cli_evaluate
from delineate.cli import export as cli_export
from delineate.cli import merge as cli_merge
from delineate.cli import pretrain as cli_pretrain
from delineate.cli import review as cli_review
from delineate.cli import segment as cli_segment
from delineate.cli import serve as cli_serve
from delineate.cli import split as cli_split
from delineate.cli import study as cli_study
from delineate.cli import synthesize as cli_synthesize
from delineate.cli import train as cli_train
from delineate.cli.config import Configured, read_config
from delineate.cli.options import (
    MOST_IMAGES,
    DatasetArgument,
    DeviceOption,
    JsonOption,
    ModalityOption,
    ModelOption,
    TargetOption,
    ThreadsOption,
    compute,
    number,
    print_json,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import ERROR, err, listening, out, say, tells
from delineate.errors import DelineateError, ModelError, OutputError, PromptError
from delineate.storage.memory import OutOfMemory, is_out_of_memory
from delineate.systems import SYSTEMS

if TYPE_CHECKING:
    from delineate.prompts.vocabulary import Vocabulary

EXIT_CODES = """Exit codes: 0 done; 1 some cases failed, or `check` found errors; 2 wrong usage; 3 unreadable scan;
4 unknown prompt; 5 dataset not as it should be; 6 model missing or damaged; 7 training cannot go on;
8 a guarantee that was asked for cannot be given; 9 another command is at work in the same place; 10 a file cannot be
read or written; 11 a target was not learnt in such a scan; 70 a fault of delineate; 75 stopped on request, the same
command goes on; 130 stopped."""

app = typer.Typer(
    help="Name a target in a medical image; get several plausible masks, their consensus, and where they disagree. "
    "A research tool, not a medical device.\n\n" + EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


command = partial(app.command, cls=Configured)


def main() -> None:
    """Run the command line; problems of the user's end in one line and an exit code.

    Threads that wait for one another give up their core soon (`GOMP_SPINCOUNT`, unless it is set). By default they spin
    for milliseconds, and where another program wants a core too, each of thousands of small steps waits for it: a click
    on the review page took 10 s instead of 0.4 (docs/lab/2026-11-22-review.md). On an idle machine it costs nothing.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch is loaded
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a character that the terminal cannot show
    with listening():
        _run()


def _run() -> None:
    try:
        app()
    except KeyboardInterrupt:
        say("delineate: stopped", ERROR)
        sys.exit(130)
    except BrokenPipeError:  # whoever read what was printed is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("DELINEATE_DEBUG"):
            raise
        line, code = way_out(error)
        say(f"delineate: {' '.join(line.split())}", ERROR)
        sys.exit(code)


def way_out(error: Exception) -> tuple[str, int]:
    """The line that ends a command, and its exit code."""
    if isinstance(error, DelineateError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        return "out of memory; use fewer voxels, smaller batches or a machine with more", OutOfMemory.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; see that it can be read, or written to", OutputError.exit_code
    if "I/O error" in str(error):  # as safetensors says it
        return f"{error}; free space, or choose another folder", OutputError.exit_code
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    told = f"internal error ({type(error).__name__} at {where}: {error})"
    return f"{told}; DELINEATE_DEBUG=1 shows more, and a report of it helps", 70


def _version(asked: bool) -> None:
    if asked:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _top(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="DELINEATE_CONFIG",
            help="TOML file with defaults of options, as [segment] proposals = 16; else delineate.toml in this folder.",
        ),
    ] = None,
) -> None:
    if not {"-h", "--help"} & set(sys.argv[1:]):
        commands = {
            str(one.name or one.callback.__name__): one.callback for one in app.registered_commands if one.callback
        }
        ctx.obj, ctx.default_map = read_config(config, commands)


command()(tells(cli_segment.segment))


@command()
def prompts(
    words: Annotated[
        list[str] | None, typer.Argument(help="Say what these mean to the model; nothing is outlined.")
    ] = None,
    model: ModelOption = None,
    modality: ModalityOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what a model can be asked for, names, synonyms and modalities; or say what your words would ask for."""
    from delineate.model_folder import read_vocabulary

    vocabulary = read_vocabulary(model)
    if words:
        _meanings(words, vocabulary, modality, as_json)
        return
    held_out = held_out_dice(model)
    if as_json:
        print_json({**vocabulary.to_json(), "held_out_dice": held_out})
        return
    table = Table("name", "modality", "Dice held out", "also", box=None, pad_edge=False)
    for concept in vocabulary.concepts:
        known = held_out.get(concept.name)
        told = "" if known is None else f"{known['mean']:.2f} ± {known['sd']:.2f} ({known['subjects']})"
        also = ", ".join(concept.synonyms)
        also += f"{'; ' * bool(also)}made of {', '.join(concept.parts)}" if concept.parts else ""
        table.add_row(concept.name, ", ".join(concept.modalities), told, also)
    out.print(table)
    if held_out:
        say("Dice held out: mean ± standard deviation over subjects (how many) by which the model was calibrated")


def held_out_dice(model: Path | None) -> dict[str, dict[str, Any]]:
    """For each target that a calibrated model was tried on: mean, `sd` and how many `subjects`.

    Names can be listed without: what another release calibrated is told in a line.
    """
    from delineate.calibration.guarantees import Calibration
    from delineate.model_folder import check_model, is_model

    if model is not None and not is_model(model):
        return {}
    try:
        calibration = Calibration.load(check_model(model)[0])
    except ModelError as error:
        say(f"delineate: {error}")
        return {}
    return {} if calibration is None else calibration.held_out_dice()


def _meanings(words: list[str], vocabulary: "Vocabulary", modality: str | None, as_json: bool) -> None:
    """Each of several prompts: its names, how sure the reader is, or the nearest."""
    from delineate.prompts.prompt import Prompt
    from delineate.prompts.understanding import in_words, understood

    meant = {text: understood(Prompt(text).text, vocabulary, modality) for text in words}
    if as_json:
        print_json({text: asdict(one) for text, one in meant.items()})
    else:
        table = Table("words", "what they ask for", "sure", box=None, pad_edge=False)
        for text, one in meant.items():
            if one.by_scan:
                told = f"by the kind of picture, one of: {in_words(one.by_scan)}; tell it with --modality"
            else:
                told = one.said or ", ".join(one.targets)
            if not told:
                told = f"unknown; nearest: {', '.join(one.nearest)}" if one.nearest else "unknown"
            table.add_row(text, told, f"{one.share:.2f}" if one.targets else "")
        out.print(table)
    if not any(one.targets or one.by_scan for one in meant.values()):
        raise typer.Exit(PromptError.exit_code)


@command()
def samples(as_json: JsonOption = False) -> None:
    """List the real scans that ship, to try things on: what they show, their terms, where they lie."""
    from delineate.samples import folder, names, sample

    told = [sample(name) for name in names()]
    if as_json:
        print_json(
            [{**one.__dict__, "folder": str(one.folder), "images": [str(p) for p in one.images]} for one in told]
        )
        return
    table = Table("sample", "what it is", "terms", box=None, pad_edge=False)
    for one in told:
        table.add_row(one.name, one.title, one.terms)
    out.print(table)
    out.print(f"a folder each in {folder()}", soft_wrap=True)


@command()
def systems(as_json: JsonOption = False) -> None:
    """List the named systems that can be trained."""
    if as_json:
        print_json({n: {"summary": e.summary, "source": e.source, "presets": e.presets} for n, e in SYSTEMS.items()})
        return
    table = Table("system", "what it is", "after", "presets", box=None, pad_edge=False)
    for name, entry in SYSTEMS.items():
        table.add_row(name, entry.summary, entry.source, ", ".join(entry.presets))
    out.print(table)


@command()
@tells
def check(
    dataset: DatasetArgument, target: TargetOption = None, modality: ModalityOption = None, as_json: JsonOption = False
) -> None:
    """Look at every file of a dataset and say what is wrong, why, and what to do."""
    from delineate.data.check import check_dataset
    from delineate.data.named import parse_named
    from delineate.evaluation.report import print_check

    named = parse_named(dataset, target, modality)
    with progress_bar(err, quiet=as_json) as bar:
        bar.start("checking")
        report = check_dataset(
            named.folder,
            targets=named.targets or None,
            modality=named.modality,
            progress=lambda done, total: bar.update(done / total),
        )
    if as_json:
        print_json(report.to_json())
    else:
        print_check(report, out, partial(say, level=ERROR))
    if not report.ok:
        raise typer.Exit(1)


command()(tells(cli_split.split))
command()(tells(cli_pretrain.pretrain))
command()(tells(cli_train.train))
command()(tells(cli_evaluate.evaluate))
command()(tells(cli_study.study))


@command()
@tells
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("demo"),
    images: Annotated[
        int | None,
        number(1, MOST_IMAGES, "Adapt by this many images instead; most of the time goes there."),
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """See it work: the house model on real scans that ship, then taught another kind of scan by five images."""
    with progress_bar(err) as bar:
        bar.start("starting")  # torch alone takes seconds on a busy machine
        from delineate.jobs.demo import DemoRequest, run_demo

        request = DemoRequest() if images is None else DemoRequest(images=images)
        lines = run_demo(request, output, device=compute(threads, device), watch=bar, console=out)
    for line in lines:
        out.print(line, soft_wrap=True)


@command()
def doctor(as_json: JsonOption = False) -> None:
    """Say whether this installation is sound: versions, threads, the house model, a trial write."""
    from delineate.jobs.doctor import examine

    findings = examine()
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else "BAD "
            out.print(f"{mark} {finding.what}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


command()(tells(cli_adapt.adapt))
command()(cli_merge.merge)
command()(cli_export.export)
command("import")(cli_export.import_)
command()(tells(cli_calibrate.calibrate))
command()(cli_review.review)
command()(tells(cli_serve.serve))
command()(tells(cli_synthesize.synthesize))
command()(tells(cli_distance.distance))
