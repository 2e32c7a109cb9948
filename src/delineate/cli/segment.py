"""`delineate segment`."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from delineate.cli import completing
from delineate.cli.options import (
    AdapterOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    ModelOption,
    SeedOption,
    ThreadsOption,
    VolumeOption,
    compute,
    fraction,
    modality_code,
    number,
    print_json,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import ERROR, NOTE, err, out, say
from delineate.cli.workers import answering, stoppable
from delineate.errors import DelineateError, MisfitError, PromptError

ISLANDS = {"islands_ml": "ml", "islands_pixels": "pixels"}
LAYOUTS = ("cases", "bids")
TURNING = ("none", "auto")
EVERYTHING = "all that was learnt for the kind of each scan"
MISFITS = 3  # of one scan that are told one by one
SEGS = {"binary": "binary", "fractional": "fractional", "labelmap": "labelmap", "none": None}
RECEIVED = "dicomweb"  # the folder for what comes from a PACS


def segment(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to; a subfolder for each case.")],
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A scan (NIfTI, NRRD, MetaImage, DICOM, PNG, JPEG, TIFF), a folder of such, or a study or series in a "
            "PACS: https://host/dicom-web/studies/UID/series/UID."
        ),
    ] = None,
    given: Annotated[Path | None, typer.Option("--input", "-i", help="The same as PATH; one of the two.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            autocompletion=completing.targets,
            help='A target in words; several by repeating it, or with commas: "liver, spleen". Without it, and for '
            '"all", every target that was learnt for the kind of scan.',
        ),
    ] = None,
    proposals: Annotated[int, typer.Option("--proposals", "-n", min=1, max=64, help="Masks for each target.")] = 8,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    seed: SeedOption = 0,
    consensus: Annotated[str, typer.Option(help="How proposals are fused: mean, majority or staple.")] = "mean",
    maps: Annotated[bool, typer.Option("--maps", help="Also write probability and doubt maps.")] = False,
    missed_at_most: Annotated[
        str | None,
        typer.Option(
            callback=fraction,
            metavar="SHARE",
            help="Also write a mask that misses at most this share of the target, on average over patients: 5%. "
            "For calibrated models (delineate calibrate).",
        ),
    ] = None,
    false_at_most: Annotated[
        str | None,
        typer.Option(
            callback=fraction,
            metavar="SHARE",
            help="Also write a mask of which at most this share is not the target, on average over patients.",
        ),
    ] = None,
    modality: Annotated[
        str | None, typer.Option(callback=modality_code, help="CT, MR, US, …; CT in HU is windowed if you say so.")
    ] = None,
    volume: VolumeOption = None,
    series: Annotated[
        str | None, typer.Option(metavar="NUMBER|UID", help="Which series of a DICOM folder that holds several.")
    ] = None,
    fill_gaps: Annotated[
        bool,
        typer.Option("--fill-gaps", help="Make up missing DICOM slices, resample uneven ones."),
    ] = False,
    seg: Annotated[
        str,
        typer.Option(
            help="What segmentation.dcm holds: binary (consensus), fractional (probabilities), labelmap (consensus, a "
            "number a pixel), or none."
        ),
    ] = "binary",
    compress_seg: Annotated[
        bool, typer.Option(help="Store a fractional or labelmap SEG in runs (RLE lossless); single bits have none.")
    ] = True,
    dicom: Annotated[
        str,
        typer.Option(
            metavar="OBJECTS",
            help="What is written of a DICOM series, with commas: seg, rtstruct (contours), report (volumes); or none.",
        ),
    ] = "seg",
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send those objects to this PACS (DICOMweb). Without it nothing is sent."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also draw what was not learnt in such scans, by calibrated models.")
    ] = False,
    turn: Annotated[
        str, typer.Option(help="auto turns scans for the model that lie otherwise than those it learnt from; or none.")
    ] = "none",
    layout: Annotated[
        str, typer.Option(help="cases: a folder a case; bids: also a BIDS derivative, the cases in its folder cases/.")
    ] = "cases",
    pictures: Annotated[bool, typer.Option(help="Write montage.png for each case.")] = True,
    part: Annotated[
        str | None,
        typer.Option(metavar="NUMBER/OF", help="This part of the scans alone, as 3/16, for as many commands at once."),
    ] = None,
    workers: Annotated[
        int | None,
        number(1, 100_000, "Processes on this machine (with --ray: of the cluster), each with the model in memory."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Work on a Ray cluster: auto for the one of this machine, HOST:PORT, or local for one that ends with "
            "the command.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip cases that are finished with the same request.")
    ] = False,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Outline what you name in a scan, or in every scan of a folder."""
    from delineate.evaluation.report import print_run
    from delineate.model_folder import calibration_hash, check_model, fingerprint, read_vocabulary
    from delineate.prompts.listing import ALL, listed
    from delineate.prompts.prompt import Prompt
    from delineate.prompts.understanding import in_words, understood
    from delineate.prompts.vocabulary import unknown_prompt_message
    from delineate.proposals.fusion import FUSIONS
    from delineate.scans.finding import Found, Kind, by_channel, look_for_scans

    if consensus not in FUSIONS:
        raise typer.BadParameter(f"--consensus is one of {', '.join(FUSIONS)}")
    if seg not in SEGS:
        raise typer.BadParameter(f"--seg is one of {', '.join(SEGS)}; got '{seg}'")
    if turn not in TURNING:
        raise typer.BadParameter(f"--turn is one of {', '.join(TURNING)}; got '{turn}'")
    if layout not in LAYOUTS:
        raise typer.BadParameter(f"--layout is one of {', '.join(LAYOUTS)}; got '{layout}'")
    objects = objects_asked(dicom, SEGS[seg])
    if store is not None:
        from delineate.scans.dicom.web import checked

        store = checked(store)
        if not objects:
            raise typer.BadParameter("--store sends DICOM objects, and none is to be written; leave --dicom none out")
    looked = look_for_scans(here(one_of(path, given), output, resume=resume, dry_run=dry_run))
    scans = looked.scans
    for line in looked.left_out:
        say(f"delineate: {line}")
    if layout == "bids" and any(scan.kind is Kind.PICTURE for scan in scans):
        raise typer.BadParameter("--layout bids is for volumes, and there are pictures; leave it out, or them")
    if (series is not None or fill_gaps) and not any(scan.kind is Kind.DICOM for scan in scans):
        raise typer.BadParameter("--series and --fill-gaps are for DICOM, and there is none")
    folder, config = check_model(model)
    if channels := config.get("channels"):
        if modality is not None or volume is not None:
            named = ", ".join(channels)
            raise typer.BadParameter(f"--modality and --volume are for scans of one image; the model reads {named}")
        scans = by_channel(scans, channels)
    vocabulary, adapter_hash, where = read_vocabulary(folder), None, f"--model {model}" if model else ""
    if adapter is not None:
        from delineate.adapters.folder import fingerprint as adapter_fingerprint
        from delineate.adapters.folder import read_adapter

        read_adapter(adapter)
        vocabulary, adapter_hash, where = read_vocabulary(adapter), adapter_fingerprint(adapter), f"--model {adapter}"
    asked = listed(prompt or [ALL], vocabulary, modality)
    meant = {p: understood(Prompt(p).text, vocabulary, modality) for p in asked if p != ALL}
    lost = {p: one for p, one in meant.items() if not one.targets and not one.by_scan}
    unknown = [unknown_prompt_message(p, one.nearest, where) for p, one in lost.items()]
    if len(unknown) == len(asked):
        raise PromptError(" ".join(unknown))
    for words, one in meant.items():
        if one.said:
            say(f"delineate: '{words}' was taken for {one.said}")

    from delineate.calibration.guarantees import GuaranteeError, refused_guarantees
    from delineate.jobs.parts import Part, report_name
    from delineate.jobs.segment import SegmentRequest, run_cohort
    from delineate.segmenter import WITH_ADAPTER
    from delineate.storage.swapping import make_folder

    own_part = None if part is None else Part.parse(part)
    chosen = compute(threads, device)
    shares: dict[str, Any] = {"missed_at_most": missed_at_most, "false_at_most": false_at_most}  # floats by `fraction`
    names = vocabulary.names if ALL in asked else [name for one in meant.values() for name in one.targets]
    refused = refused_guarantees(folder, names, proposals, adapter, **shares)
    shares |= {
        "series": series,
        "fill_gaps": fill_gaps,
        "seg": SEGS[seg],
        "compress_seg": compress_seg,
        "dicom": objects,
        "anyway": anyway,
        "turn": turn == "auto",
    }
    request = SegmentRequest(asked, proposals, seed, consensus, maps, modality, volume, pictures, **shares)
    if dry_run:
        from delineate.jobs.preview import of_segmenting

        targets = {p: meant[p].targets or meant[p].by_scan if p in meant else EVERYTHING for p in asked}
        told = of_segmenting(request, scans, targets, folder, adapter, own_part)
        print_json(told | {"output": str(output), "device": chosen, "resume": resume, "workers": workers, "ray": ray})
        return
    calibrated = calibration_hash(folder if adapter is None else adapter)
    make_folder(output)
    more: dict[str, Any] = {}
    bids_root: Path | None = None
    if layout == "bids":
        from delineate.jobs import bids

        bids.begin(output)
        bids_root, output = output, output / bids.CASES
        more = {"lay_out": partial(bids.lay_out, bids_root)}
    with progress_bar(err, quiet=as_json) as bar:
        bar.start("loading the model")
        segmenter = answering(folder, adapter, chosen if ray is None else device, threads, workers, ray, bids_root)
        together = workers is not None or ray is not None
        number = 0

        def on_case(index: int, scan: Found) -> None:
            nonlocal number
            number = number + 1 if together else index
            done = number / len(scans)
            name = scan.name if scan.kind is Kind.DICOM else scan.path.name
            bar.start(f"{name} ({number + (not together)} of {len(scans)})", done=done)

        with stoppable():
            report = run_cohort(
                segmenter,
                scans,
                request,
                output,
                model_hash=fingerprint(folder),
                adapter_hash=adapter_hash,
                calibration_hash=calibrated,
                device=chosen,
                resume=resume,
                part=own_part,
                on_case=on_case,
                on_step=lambda share: bar.update((number + share) / len(scans)),
                **more,
            )
    if as_json:
        print_json(report)
    else:
        print_run(report, output, out, report_name(own_part))
    answers = [target for case in report["cases"] for target in case.get("targets", ())]
    open_words = {t["prompt"] for t in answers if t["outcome"] == "unknown prompt" and t["prompt"] not in lost}
    for words in sorted(open_words):
        may_be = in_words(meant[words].by_scan or meant[words].nearest or ("nothing known",))
        unknown.append(f"'{words}' may mean {may_be}; name one, or tell the kind of picture with --modality")
    for line in unknown:
        say(f"delineate: {line}", ERROR)
    for case in report["cases"]:
        for told in (target for target in case.get("targets", ()) if target.get("unusual")):
            say(
                f"delineate: {case['case']}: the doubt about '{told['target']}', {told['doubt']:.2f}, is above what "
                f"was usual when the adapter was checked ({told['usual_doubt']:.2f}); look at this one"
            )
    for case in report["cases"]:
        for line in of_consensus(case.get("targets", ()), consensus):
            say(f"delineate: {case['case']}: {line}")
    if adapter is not None and calibrated is None:
        say(f"delineate: {adapter}: *found* and doubt are not calibrated: {WITH_ADAPTER}")
    unfit = of_misfits(report["cases"], anyway)
    for line in unfit:
        say(f"delineate: {line}", NOTE if anyway else ERROR)
    sent = None if store is None else send(store, report["cases"], output)
    failed = [c for c in report["cases"] if c["status"] == "failed"]
    for case in failed:
        say(f"delineate: {case['reason']}", ERROR)
    for line in of_reading(report["cases"]):
        say(f"delineate: {line}")
    told = {str(target["target"]) for target in answers}
    refused = [line for line in refused if ALL not in asked or line.partition(", --")[0] in told]
    for line in refused:
        say(f"delineate: {line}", ERROR)
    if failed or sent is False:
        raise typer.Exit(3 if len(scans) == 1 or not failed else 1)
    if unknown:
        raise typer.Exit(PromptError.exit_code)
    if unfit and not anyway:
        raise typer.Exit(MisfitError.exit_code)
    if refused:
        raise typer.Exit(GuaranteeError.exit_code)


def one_of(path: Path | None, given: Path | None) -> Path:
    """The scan or folder that is asked about, as PATH or by --input. Raises `BadParameter` for none and for both."""
    if path is not None and given is not None:
        raise typer.BadParameter("give the scan as PATH or with --input, not both")
    if path is None and given is None:
        raise typer.BadParameter("give a scan or a folder of scans, as PATH or with --input")
    return path or given  # type: ignore[return-value]


def objects_asked(text: str, seg: str | None) -> tuple[str, ...]:
    """The DICOM objects that are asked for. Raises `BadParameter` for others."""
    from delineate.jobs.dicom import parsed

    try:
        return parsed(text, seg)
    except DelineateError as error:
        raise typer.BadParameter(f"--dicom: {error}") from error


def here(path: Path, output: Path, *, resume: bool, dry_run: bool) -> Path:
    """`path`; or the folder in `output` into which the study or series was fetched that it is the address of.

    With `resume` a series that was fetched before is taken as it is.
    """
    from delineate.scans.dicom.web import Address, fetch

    address = Address.of(path)
    if address is None:
        return path
    if dry_run:
        raise typer.BadParameter("--dry-run writes nothing, so nothing is fetched from a PACS; leave it out")
    folder = output / RECEIVED / address.study
    if resume and address.series is not None and (folder / address.series).is_dir():
        return folder / address.series
    return fetch(address, folder)


def send(store: str, cases: Sequence[Mapping[str, Any]], output: Path) -> bool:
    """Send the DICOM objects of all cases to a PACS, and whether it took them; a line for each case."""
    from delineate.scans.dicom.web import store as send_files

    whole = True
    for case in cases:
        files = [output / case["case"] / name for name in case.get("written", ()) if name.endswith(".dcm")]
        try:
            if files:
                say(f"delineate: {case['case']}: {send_files(store, files)} DICOM objects stored at {store}")
        except DelineateError as error:
            whole = False
            say(f"delineate: {case['case']}: {error}", ERROR)
    return whole


def of_reading(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was decided in reading the scans, by the cases in `run.json`: a line a note, with the cases of it."""
    return shared((case["case"], note) for case in cases for note in case.get("notes", ()))


def of_misfits(cases: Sequence[Mapping[str, Any]], anyway: bool) -> list[str]:
    """What does not fit the scans, likewise, and what can be done; of many names of a case the first, and how many."""
    how, said = "asked all the same" if anyway else "--anyway asks all the same", []
    for case in cases:
        unfit = [target for target in case.get("targets", ()) if "misfit" in target]
        shown = unfit if len(unfit) <= MISFITS else unfit[:1]
        more = f" (and {len(unfit) - 1} more names)" if len(shown) < len(unfit) else ""
        said += [(case["case"], f"'{told['prompt']}': {told['misfit']}{more}; {how}") for told in shown]
    return shared(said)


def shared(said: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each thing that is said of cases, with the first of them."""
    cases: dict[str, list[str]] = {}
    for case, line in said:
        cases.setdefault(line, []).append(case)
    return [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}: {line}"
        for line, names in cases.items()
    ]


def of_consensus(targets: Sequence[Mapping[str, Any]], how: str) -> list[str]:
    """What a person should know of the consensus masks of a case, by its targets in `run.json`: at most two lines."""
    lines = []
    left_out = [f"{t['target']} {t[key]:g} {unit}" for t in targets for key, unit in ISLANDS.items() if key in t]
    if left_out:
        lines.append(
            "small pieces apart from the rest are left out of the consensus, as held-out subjects advise, and kept in "
            f"the proposals: {', '.join(left_out)}"
        )
    if how == "staple" and (nested := [str(t["target"]) for t in targets if t.get("nested")]):
        lines.append(
            "proposals lie within one another, so STAPLE leans to their union; held-out subjects were asked about "
            f"--consensus mean: {', '.join(nested)}"
        )
    return lines
