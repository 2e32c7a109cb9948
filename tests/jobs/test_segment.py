import io
import json
import os
import shutil
import time
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from delineate.calibration.guarantees import THRESHOLDS, Calibration
from delineate.calibration.presence import Presence
from delineate.errors import BusyError, DelineateError, ScanError
from delineate.evaluation.report import print_run
from delineate.jobs.parts import Part
from delineate.jobs.segment import SegmentRequest, run_cohort
from delineate.prompts.vocabulary import Vocabulary
from delineate.review.cases import find_cases
from delineate.review.desk import Place
from delineate.scans.finding import Found, Kind, case_name, find_scans
from delineate.scans.reading import read_labels
from delineate.segmenter import Segmenter
from delineate.storage.files import sha256_of
from delineate.storage.memory import at_once
from delineate.systems.system import Drawn

OTHERS = ("labels.png", "labels.json", "statistics.json", "case.json")
REQUEST = SegmentRequest(("liver", "spleen", "livr3x"), n=2, pictures=False)


class Bright:
    """Draws what is brighter than the middle: a truth that needs no training. Counts what it is asked."""

    accepts, open_words, about = frozenset(), False, ""
    vocabulary = Vocabulary.from_names(["liver", "spleen"], "CT")
    size = 32

    def __init__(self):
        self.asked = 0

    def to(self, device):
        return self

    def see(self, view):
        stack = view.stack
        return stack

    def propose(self, seen, target, n, seed, on_step=lambda share: None):
        self.asked += 1
        sign = 1 if target.concept.name == "liver" else -1
        bright = (sign * seen[:, 1] > 0).float()
        return Drawn(torch.stack([bright * (1 - 0.01 * k) for k in range(n)]))


@pytest.fixture
def system():
    return Bright()


def run(system, scans, folder, request=REQUEST, **more):
    found = scans if isinstance(scans, list) else find_scans(scans)
    return run_cohort(Segmenter(system), found, request, folder, model_hash="abc", **more)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def statuses(report):
    return [case["status"] for case in report["cases"]]


def test_one_broken_scan_fails_alone_and_says_why(system, scans, tmp_path):
    report = run(system, scans, tmp_path / "out")
    assert statuses(report) == ["done", "failed", "done"]
    failed = report["cases"][1]
    assert failed["case"] == "case1"
    assert "case1.png" in failed["reason"]
    assert "\n" not in failed["reason"]
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == report
    assert not (tmp_path / "out" / "case1").exists()


def test_the_run_says_what_made_it(system, scans, tmp_path):
    report = run(system, scans, tmp_path / "out", device="cpu")
    assert report["torch"] == torch.__version__
    assert report["threads"] == torch.get_num_threads()
    assert report["delineate"]
    assert report["python"]
    assert report["model_sha256"] == "abc"
    assert report["request"] == {
        "prompts": ["liver", "spleen", "livr3x"],
        "n": 2,
        "seed": 0,
        "how": "mean",
        "maps": False,
        "modality": None,
        "volume": None,
        "pictures": False,
        "missed_at_most": None,
        "false_at_most": None,
        "series": None,
        "fill_gaps": False,
        "seg": "binary",
        "compress_seg": True,
        "dicom": ["seg"],
        "anyway": False,
        "turn": False,
    }
    assert report["seconds"] >= 0
    time.strptime(report["started"][:19], "%Y-%m-%dT%H:%M:%S")
    case = report["cases"][0]
    assert case["sha256"] == sha256_of(scans / "case0.png")
    assert case["shape"] == [1, 40, 48]
    assert case["seconds"] >= 0


def test_each_target_s_numbers_are_those_of_its_files(system, scans, tmp_path):
    case = run(system, scans, tmp_path / "out")["cases"][0]
    liver, spleen, unknown = case["targets"]
    folder = tmp_path / "out" / "case0"
    for target in (liver, spleen):
        ends = ("", "_proposal_00", "_proposal_01")
        files = [read_labels(folder / f"{target['target']}{end}.png") for end in ends]
        pixels = [int((file.voxels > 0).sum()) for file in files]
        assert [target["consensus_pixels"], *target["proposals_pixels"]] == pixels
        assert min(pixels) > 0
        assert target["outcome"] == "found"
    assert unknown["outcome"] == "unknown prompt"
    assert unknown["nearest"][0] == "liver"
    assert "'livr3x' is not in this model's vocabulary" in unknown["message"]
    assert sorted(case["written"]) == sorted(p.name for p in folder.iterdir() if p.name != "case.json")


def test_a_target_has_its_number_in_every_case_whatever_else_is_asked(system, scans, tmp_path):
    for number, prompts in enumerate((("spleen",), ("spleen", "liver"), ("hepatic region", "spleen", "liver"))):
        run(system, scans, tmp_path / f"{number}", replace(REQUEST, prompts=prompts))
        for case in ("case0", "case2"):
            folder = tmp_path / f"{number}" / case
            labels = read_labels(folder / "labels.png").voxels
            told = json.loads((folder / "labels.json").read_text())
            assert told["labels"] == {"background": 0, "liver": 1, "spleen": 2}
            for name in {one["name"] for one in told["targets"]}:
                assert np.array_equal(labels == told["labels"][name], read_labels(folder / f"{name}.png").voxels > 0)


def test_volumes_are_counted_in_millilitres(system, phantom_dataset, tmp_path):
    scan = next((phantom_dataset / "imagesTr").glob("*.nii.gz"))
    case = run(system, scan, tmp_path / "out", replace(REQUEST, modality="CT"))["cases"][0]
    assert case["case"] == scan.name.removesuffix("_0000.nii.gz")
    labels = read_labels(tmp_path / "out" / case["case"] / "liver.nii.gz")
    ml = labels.voxels.sum() * np.prod(case["spacing_mm"]) / 1000
    assert case["targets"][0]["consensus_ml"] == pytest.approx(ml, rel=1e-3)


def test_what_to_look_at_first_is_told_in_numbers_of_the_files(system, phantom_dataset, tmp_path):
    scan = next((phantom_dataset / "imagesTr").glob("*.nii.gz"))
    case = run(system, scan, tmp_path / "out", replace(REQUEST, n=3, modality="CT", maps=True))["cases"][0]
    liver, _, unknown = case["targets"]
    assert "distinct" not in unknown
    (first,) = liver["distinct"]  # three that are all alike
    assert first == {"proposal": 0, "weight": 1, "agreement": 1, "spread": 0, "ml": liver["proposals_ml"][0]}
    assert liver["agreement"] == 1
    axis, slices, shares = (liver["doubtful_slices"][key] for key in ("axis", "slices", "shares"))
    assert (axis, len(slices)) == (2, 5)
    doubt = nibabel.load(tmp_path / "out" / case["case"] / "liver_doubt.nii.gz").get_fdata().sum(axis=(0, 1))
    assert doubt[slices].tolist() == sorted(doubt.tolist(), reverse=True)[:5]
    assert shares == pytest.approx(doubt[slices] / doubt.sum(), abs=1e-4)


def test_flat_images_have_pixels_and_no_slices(system, scans, tmp_path):
    liver, *_ = run(system, scans / "case0.png", tmp_path / "out")["cases"][0]["targets"]
    assert "doubtful_slices" not in liver
    assert liver["distinct"][0]["pixels"] == liver["proposals_pixels"][0]


class Torn(Bright):
    """Draws the left half of the picture, and every fourth time the right half."""

    def propose(self, seen, asked, n, seed, on_step=lambda share: None):
        halves = torch.zeros(n, *seen[:, 1].shape)
        for k, half in enumerate(halves):
            half[..., : self.size // 2] = float(k % 4 != 3)
            half[..., self.size // 2 :] = float(k % 4 == 3)
        return Drawn(halves)


def test_the_table_says_how_many_proposals_are_distinct_and_the_share_of_the_first(scans, tmp_path):
    torn = run(Torn(), scans, tmp_path / "out", replace(REQUEST, n=8))
    first, second = torn["cases"][0]["targets"][0]["distinct"]
    assert (first["proposal"], first["weight"], first["spread"]) == (0, 0.75, 0)
    assert (second["proposal"], second["weight"], second["agreement"]) == (3, 0.25, pytest.approx(1 / 7, abs=1e-4))
    console = Console(file=io.StringIO(), width=100)
    print_run(torn, tmp_path / "out", console)
    lines = console.file.getvalue().splitlines()
    assert "spread" in lines[0]
    assert lines[0].split()[-1] == "distinct"
    assert lines[1].endswith("2, first 75%")
    assert max(len(line) for line in lines[:6]) <= 100
    for case in torn["cases"]:  # one that is all alike, and one of an older version
        for told in case.get("targets", ()):
            told["distinct"] = told.get("distinct", [])[:1]
    torn["cases"][2]["targets"][0].pop("distinct")
    console = Console(file=io.StringIO(), width=100)
    print_run(torn, tmp_path / "out", console)
    assert console.file.getvalue().splitlines()[1].rstrip().endswith(" 1")


def test_of_a_large_cohort_the_first_cases_are_shown(tmp_path):
    cases = [{"case": f"c{number}", "status": "failed", "written": ["montage.png"]} for number in range(203)]
    console = Console(file=io.StringIO(), width=100)
    print_run({"cases": cases}, tmp_path / "out", console)
    told = console.file.getvalue()
    assert "and 3 more cases" in told
    assert "c199 " in told
    assert "c200" not in told


def test_resuming_skips_what_is_finished_and_retries_what_failed(system, scans, tmp_path):
    first = run(system, scans, tmp_path / "out")
    asked = system.asked
    again = run(system, scans, tmp_path / "out", resume=True)
    assert statuses(again) == ["skipped", "failed", "skipped"]
    assert system.asked == asked
    assert again["cases"][0] == first["cases"][0] | {"status": "skipped"}
    shutil.copy(scans / "case0.png", scans / "case1.png")  # mended
    assert statuses(run(system, scans, tmp_path / "out", resume=True)) == ["skipped", "done", "skipped"]


def test_without_resume_everything_is_done_again(system, scans, tmp_path):
    run(system, scans, tmp_path / "out")
    assert statuses(run(system, scans, tmp_path / "out")) == ["done", "failed", "done"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ("liver",)},
        {"n": 3},
        {"seed": 1},
        {"how": "majority"},
        {"maps": True},
        {"modality": "MR"},
        {"volume": 0},
        {"pictures": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_request_is_not_skipped(system, scans, tmp_path, change):
    run(system, scans, tmp_path / "out")
    report = run(system, scans, tmp_path / "out", replace(REQUEST, **change), resume=True)
    assert statuses(report) == ["done", "failed", "done"]


def test_another_scan_model_or_a_lost_file_is_not_skipped(system, scans, tmp_path):
    (scans / "case1.png").unlink()
    run(system, scans, tmp_path / "out")
    shutil.copy(scans / "case2.png", scans / "case0.png")
    (tmp_path / "out" / "case2" / "liver.png").unlink()
    assert statuses(run(system, scans, tmp_path / "out", resume=True)) == ["done", "done"]
    assert statuses(run(system, scans, tmp_path / "out", resume=True)) == ["skipped", "skipped"]
    segmenter = Segmenter(system)
    other = run_cohort(segmenter, find_scans(scans), REQUEST, tmp_path / "out", model_hash="xyz", resume=True)
    assert statuses(other) == ["done", "done"]


def test_answers_of_two_requests_never_lie_side_by_side(system, scans, tmp_path):
    run(system, scans, tmp_path / "out")
    report = run(system, scans, tmp_path / "out", replace(REQUEST, n=1, prompts=("spleen",)))
    left = {p.name for p in (tmp_path / "out" / "case0").iterdir()}
    assert left == {*report["cases"][0]["written"], "case.json"}
    assert left == {"spleen.png", "spleen_proposal_00.png", *OTHERS}


def test_a_case_that_breaks_off_leaves_what_was_finished_before(system, scans, tmp_path):
    run(system, scans, tmp_path / "out")
    before = content(tmp_path / "out" / "case0")

    class Full(Bright):
        def propose(self, *arguments, **more):
            raise OSError("No space left on device")

    report = run(Full(), scans, tmp_path / "out", replace(REQUEST, seed=1))
    assert statuses(report) == ["failed"] * 3
    assert report["cases"][0]["reason"] == f"{scans / 'case0.png'}: No space left on device"
    assert content(tmp_path / "out" / "case0") == before
    assert not list((tmp_path / "out").glob(".writing-*"))
    assert statuses(run(system, scans, tmp_path / "out", resume=True)) == ["skipped", "failed", "skipped"]


def test_a_scan_that_is_damaged_now_does_not_cost_its_older_answers(system, scans, tmp_path):
    run(system, scans, tmp_path / "out")
    before = content(tmp_path / "out" / "case0")
    (scans / "case0.png").write_bytes((scans / "case0.png").read_bytes()[:100])
    assert statuses(run(system, scans, tmp_path / "out"))[0] == "failed"
    assert content(tmp_path / "out" / "case0") == before


@pytest.mark.parametrize("how", ["emptied", "cut", "one byte", "gone"])
def test_resuming_believes_no_file_that_is_not_as_it_was_written(system, scans, tmp_path, how):
    run(system, scans, tmp_path / "out")
    mask = tmp_path / "out" / "case0" / "liver_proposal_00.png"
    was = mask.read_bytes()
    mask.unlink() if how == "gone" else mask.write_bytes(
        {"emptied": b"", "cut": was[:-1], "one byte": was[:-1] + b"x"}[how]
    )
    assert statuses(run(system, scans, tmp_path / "out", resume=True)) == ["done", "failed", "skipped"]
    assert mask.read_bytes() == was


@pytest.mark.parametrize("damage", [b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"written": {"../x": "y"}}', b"\xff"])
def test_a_damaged_record_ends_nothing(system, scans, tmp_path, damage):
    run(system, scans, tmp_path / "out")
    (tmp_path / "out" / "case0" / "case.json").write_bytes(damage)
    assert statuses(run(system, scans, tmp_path / "out", resume=True)) == ["done", "failed", "skipped"]
    assert statuses(run(system, scans, tmp_path / "out", resume=True)) == ["skipped", "failed", "skipped"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("boom"),
        RecursionError(),
        MemoryError(),
        AssertionError("no"),
        torch.OutOfMemoryError("CUDA"),
        KeyError(),
    ],
)
def test_no_error_of_one_case_ends_the_others(system, scans, tmp_path, error):
    running = []

    class Failing(Bright):
        def propose(self, *arguments, **more):
            if running[-1] == 0:
                raise error
            return super().propose(*arguments, **more)

    report = run(Failing(), scans, tmp_path / "out", on_case=lambda number, found: running.append(number))
    assert statuses(report) == ["failed", "failed", "done"]
    assert report["cases"][0]["reason"]
    assert "\n" not in report["cases"][0]["reason"]
    assert ("traceback" in report["cases"][0]) == (not isinstance(error, (MemoryError, torch.OutOfMemoryError)))


def test_where_memory_runs_out_smaller_batches_are_tried(system, scans, tmp_path):
    sizes = []

    class Greedy(Bright):
        def propose(self, *arguments, **more):
            sizes.append(at_once(16))
            if at_once(16) > 4:
                raise RuntimeError(
                    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                )
            return super().propose(*arguments, **more)

    assert statuses(run(Greedy(), scans / "case0.png", tmp_path / "out")) == ["done"]
    assert sizes == [16, 4, 4]  # two targets

    class Greedier(Bright):
        def propose(self, *arguments, **more):
            raise MemoryError

    (case,) = run(Greedier(), scans / "case0.png", tmp_path / "b")["cases"]
    assert case["reason"].startswith(f"{scans / 'case0.png'}: memory ran out, with one slice at a time too")


def test_another_scan_of_the_same_name_gets_a_place_of_its_own(system, scans, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(scans / "case2.png", other / "case0.png")
    run(system, scans / "case0.png", tmp_path / "out")
    before = content(tmp_path / "out" / "case0")
    (case,) = run(system, other / "case0.png", tmp_path / "out")["cases"]
    apart = f"case0-{sha256_of(other / 'case0.png')[:8]}"
    assert case["case"] == apart
    assert "'case0' holds the answers for another scan of that name" in case["notes"][-1]
    assert content(tmp_path / "out" / "case0") == before
    for scan, place in ((scans / "case0.png", "case0"), (other / "case0.png", apart)):
        (case,) = run(system, scan, tmp_path / "out", resume=True)["cases"]
        assert (case["case"], case["status"]) == (place, "skipped")


def test_a_mask_that_a_person_changed_is_kept_beside_the_new_one(system, scans, tmp_path):
    run(system, scans / "case0.png", tmp_path / "out")
    folder = tmp_path / "out" / "case0"
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(folder / "liver.png")
    changed = (folder / "liver.png").read_bytes()
    (case,) = run(system, scans / "case0.png", tmp_path / "out")["cases"]
    assert (folder / "liver-changed.png").read_bytes() == changed
    assert "liver.png was changed since it was written; the changed one is kept as liver-changed.png" in case["notes"]
    (case,) = run(system, scans / "case0.png", tmp_path / "out")["cases"]
    assert (folder / "liver-changed.png").read_bytes() == changed  # it is theirs now
    assert not case["notes"] or "changed" not in case["notes"][-1]


def test_two_runs_in_one_folder_are_kept_apart_and_parts_are_not(system, scans, tmp_path):
    tried = []

    def on_case(number, found):
        for part in (None, Part(2, 2)):
            try:
                run(system, scans, tmp_path / "out", part=part)
            except BusyError as error:
                tried.append((part, str(error)))

    run(system, scans, tmp_path / "out", part=Part(1, 2), on_case=on_case)
    assert {part for part, _ in tried} == {None}
    assert "another command is at work in this folder; wait for it" in tried[0][1]
    assert statuses(json.loads((tmp_path / "out" / "run-1-of-2.json").read_text())) == ["done", "done"]
    assert statuses(json.loads((tmp_path / "out" / "run-2-of-2.json").read_text())) == ["failed"]
    assert statuses(run(system, scans, tmp_path / "out", resume=True)) == ["skipped", "failed", "skipped"]


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/2", "1/999999999", "²/3"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(DelineateError, match=r"a part is written NUMBER/OF|the number of a part is from 1"):
        Part.parse(text)


def test_a_case_that_is_open_in_a_review_is_not_written_over(system, scans, tmp_path):
    run(system, scans / "case0.png", tmp_path / "out")
    (case,) = find_cases(tmp_path / "out")
    place = Place(case, "anna", None)
    (failed,) = run(system, scans / "case0.png", tmp_path / "out")["cases"]
    assert "is open in a review by 'anna'" in failed["reason"]
    place.log.close()
    assert statuses(run(system, scans / "case0.png", tmp_path / "out")) == ["done"]
    assert (tmp_path / "out" / "case0" / "review" / "anna" / "events.jsonl").is_file()


def test_files_that_are_not_ours_stay(system, scans, tmp_path):
    run(system, scans, tmp_path / "out")
    case = tmp_path / "out" / "case0"
    (case / "corrected.png").write_text("by hand")
    evil = json.loads((case / "case.json").read_text())
    (tmp_path / "out" / "victim.txt").write_text("not in this folder")
    evil["written"]["../victim.txt"] = "0"
    (case / "case.json").write_text(json.dumps(evil))
    run(system, scans, tmp_path / "out")
    assert (case / "corrected.png").exists()
    assert (tmp_path / "out" / "victim.txt").exists()


def lines_of(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def test_a_killed_run_has_said_so_far_what_was_done(system, scans, tmp_path):
    seen = []

    def on_case(number, path):
        if number == 2:
            seen.extend(lines_of(tmp_path / "out"))

    run(system, scans, tmp_path / "out", on_case=on_case)
    assert [line["status"] for line in seen if "status" in line] == ["done", "failed"]


def test_all_runs_of_a_folder_stay_told_a_line_a_case(system, scans, tmp_path):
    run(system, scans, tmp_path / "out")
    first = (tmp_path / "out" / "run.jsonl").read_bytes()
    (tmp_path / "out" / "run.jsonl").write_bytes(first + b'{"run": "killed')
    run(system, scans, tmp_path / "out", resume=True)
    lines = (tmp_path / "out" / "run.jsonl").read_bytes()
    assert lines.startswith(first)
    told = [json.loads(line) for line in lines.removeprefix(first).splitlines()[1:]]
    assert [line.get("status") for line in told] == [None, "skipped", "failed", "skipped", None]
    assert len({line["run"] for line in told}) == 1
    assert told[-1]["ended"] == {"skipped": 2, "failed": 1}


def test_pictures_are_drawn_when_asked(system, scans, tmp_path):
    report = run(system, scans / "case0.png", tmp_path / "out", replace(REQUEST, pictures=True))
    assert "montage.png" in report["cases"][0]["written"]
    assert (tmp_path / "out" / "case0" / "montage.png").stat().st_size > 1000


def test_scans_of_a_folder_are_found_sorted_without_hidden_files(scans):
    (scans / "._case0.png").write_text("")
    (scans / "deeper").mkdir()
    shutil.copy(scans / "case0.png", scans / "deeper" / "case9.png")
    assert [found.path.name for found in find_scans(scans)] == ["case0.png", "case1.png", "case2.png"]
    assert find_scans(scans / "case0.png") == [Found(scans / "case0.png", "case0", Kind.PICTURE)]


@pytest.mark.parametrize("other", ["case0.tif", "case0_0000.png", "case0.nii.gz"])
def test_two_scans_of_one_name_are_refused_before_any_work(scans, other):
    (scans / other).write_bytes(b"x")
    with pytest.raises(ScanError, match="another scan of this folder is also called 'case0'; rename"):
        find_scans(scans)


def test_nothing_to_do_is_an_error(tmp_path):
    with pytest.raises(ScanError, match="no such file or folder"):
        find_scans(tmp_path / "nowhere")
    with pytest.raises(ScanError, match="no scan in this folder"):
        find_scans(tmp_path)


@pytest.mark.parametrize(
    ("file", "name"), [("a_0000.nii.gz", "a"), ("b.v2.png", "b.v2"), ("c_0001.nii", "c_0001"), ("_0000.png", "scan")]
)
def test_a_case_is_named_for_its_file(file, name):
    assert case_name(os.path.join("folder", file)) == name


def test_a_calibrated_answer_says_how_far_it_can_be_believed(system, scans, tmp_path):
    generator = np.random.default_rng(0)
    losses = np.sort(generator.random((40, len(THRESHOLDS))) ** 4, axis=1)
    calibration = Calibration(
        2,
        presence={"": Presence(0.3, 0.05, 0.05, 40, 40, 0.9)},
        missed={"liver": losses},
        volume_errors={"liver": np.full(20, np.log(1.5))},
    )
    segmenter = Segmenter(system, calibration=calibration)
    request = SegmentRequest(("liver",), n=2, pictures=False, missed_at_most=0.1)
    report = run_cohort(
        segmenter, find_scans(scans)[:1], request, tmp_path / "out", model_hash="abc", calibration_hash="def"
    )
    assert report["calibration_sha256"] == "def"
    (told,) = report["cases"][0]["targets"]
    assert told["presence"]["false_alarms_at_most"] == 0.05
    assert told["presence"]["found_from"] == 0.3
    (one,) = told["guarantees"]
    assert one["subjects"] == 40
    assert one["threshold"] is not None
    assert "liver_missed_at_most_10pct.png" in report["cases"][0]["written"]
    interval = told["interval_pixels"]
    assert interval["calibrated"]
    assert interval["low"] == pytest.approx(told["consensus_pixels"] / 1.5, rel=0.01)
    assert interval["high"] == pytest.approx(told["consensus_pixels"] * 1.5, rel=0.01)
    bare = run_cohort(
        Segmenter(system),
        find_scans(scans)[:1],
        SegmentRequest(("liver",), n=2, pictures=False),
        tmp_path / "out",
        model_hash="abc",
    )
    (told,) = bare["cases"][0]["targets"]
    assert told["presence"] is None
    assert not told["interval_pixels"]["calibrated"]
    assert "guarantees" not in told
    assert not list((tmp_path / "out").rglob("*at_most*"))  # what the first run wrote is gone
