import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import typer
from PIL import Image
from scipy.ndimage import binary_dilation

from delineate.cli import app as cli
from delineate.cli.telling import listening, say
from delineate.data.check import check_dataset
from delineate.data.phantom import PHANTOM_LABELS, make_phantom_image
from delineate.errors import BusyError
from delineate.scans.reading import read_labels
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training.loop import TrainingError

COMMAND = typer.main.get_command(cli.app)
TRAINING = ["--preset", "tiny", "--device", "cpu", "--threads", "1"]


def one_line(text):
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].startswith("delineate: ")
    return lines[0]


# Help


@pytest.mark.parametrize("name", COMMAND.commands)
def test_every_command_and_every_option_is_explained(delineate, name):
    command = COMMAND.commands[name]
    code, out, err = delineate(name, "--help")
    assert code == 0
    assert err == ""
    assert command.help.split("\n")[0].rstrip(".").split()[0] in out
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{name} {parameter.name} has no help"
    shown = " ".join(out.split())
    for parameter in command.params:
        assert all(option in shown for option in parameter.opts if option.startswith("--")), parameter.name


def test_the_exit_codes_are_told(delineate):
    code, out, _ = delineate("--help")
    assert code == 0
    shown = " ".join(out.split())
    for words in (
        "0 done",
        "1 some cases failed",
        "2 wrong usage",
        "3 unreadable",
        "4 unknown",
        "5 dataset",
        "6 model",
    ):
        assert words in shown
    assert "7 training cannot go on" in shown
    assert "75 stopped on request" in shown
    assert "not a medical device" in shown


def test_prompts_and_help_import_no_torch(model):
    code = (
        "import sys; sys.argv = ['delineate', *sys.argv[1:]]\n"
        "from delineate.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'monai', 'matplotlib') if m in sys.modules])"
    )
    for arguments in (["--help"], ["prompts", "--model", str(model)], ["segment", "--help"], ["systems", "--json"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", arguments
        assert len(done.stdout.splitlines()) > 1


# Segmenting, and what a script reads


def segment(pictures, model, output, *more):
    return ["segment", pictures, "-o", output, "-m", model, "-n", 2, "--no-pictures", "--device", "cpu", *more]


def test_a_folder_is_segmented_and_told_in_a_table(delineate, pictures, model, tmp_path):
    code, out, err = delineate(*segment(pictures, model, tmp_path / "out", "-p", "liver", "-p", "spleen"))
    assert (code, err.strip()) == (0, "")
    for words in ("case0", "case1", "liver", "spleen", "run.json"):
        assert words in out
    for case in ("case0", "case1"):
        assert read_labels(tmp_path / "out" / case / "liver.png").shape == (1, 40, 48)


def test_the_json_of_segment_is_run_json(delineate, pictures, model, tmp_path):
    code, out, err = delineate(*segment(pictures, model, tmp_path / "out", "-p", "liver", "--json"))
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out" / "run.json").read_text())
    assert [case["status"] for case in report["cases"]] == ["done", "done"]
    code, out, _ = delineate(*segment(pictures, model, tmp_path / "out", "-p", "liver", "--json", "--resume"))
    assert [case["status"] for case in json.loads(out)["cases"]] == ["skipped", "skipped"]


def test_what_was_decided_in_reading_is_on_the_terminal_and_in_run_json(delineate, phantom_dataset, model, tmp_path):
    source = nibabel.load(sorted((phantom_dataset / "imagesTr").iterdir())[0])
    stored = (np.asanyarray(source.dataobj) + 1024).clip(0).astype(np.uint16)
    nibabel.save(nibabel.Nifti1Image(stored, source.affine), tmp_path / "ct.nii.gz")
    for modality, words in (("CTA", "taken off again"), ("PET", ""), ("PET/CT", "names CT and PET")):
        arguments = segment(tmp_path / "ct.nii.gz", model, tmp_path / "out", "-p", "liver", "--modality", modality)
        code, _, err = delineate(*arguments)
        assert (code == 0) == (modality != "PET/CT")
        assert words in " ".join(err.split())
        if modality == "CTA":
            notes = json.loads((tmp_path / "out" / "run.json").read_text())["cases"][0]["notes"]
            assert "delineate: ct: CT stored with" in one_line(err)
            assert notes[0] in " ".join(err.split())


def test_a_modality_may_be_written_small(delineate, phantom_dataset, model, tmp_path):
    """Else CT in HU would silently be taken for an image of unknown kind, and not be windowed."""
    scan = sorted((phantom_dataset / "imagesTr").iterdir())[0]
    masks = []
    for modality in ("CT", "ct"):
        arguments = segment(scan, model, tmp_path / modality, "-p", "liver", "--modality", modality)
        assert delineate(*arguments)[0] == 0
        masks.append(nibabel.load(tmp_path / modality / "phantom000" / "liver.nii.gz").get_fdata())
    assert masks[0].any()
    assert np.array_equal(*masks)


def test_prompts_and_systems_as_json(delineate, model):
    code, out, err = delineate("prompts", "--model", model, "--json")
    assert (code, err) == (0, "")
    assert [c["name"] for c in json.loads(out)["concepts"]] == ["liver", "spleen"]
    code, out, _ = delineate("systems", "--json")
    assert code == 0
    assert set(json.loads(out)) == set(SYSTEMS) >= {"unet", "progidiff"}
    code, out, _ = delineate("prompts", "--model", model)
    assert "liver" in out
    assert "CT" in out


def test_check_as_json_and_its_exit_code(delineate, phantom_dataset, tmp_path):
    code, out, err = delineate("check", phantom_dataset, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(check_dataset(phantom_dataset).to_json()))
    broken = shutil.copytree(phantom_dataset, tmp_path / "broken")
    next((broken / "imagesTr").iterdir()).write_bytes(b"")
    code, out, err = delineate("check", broken)
    assert code == 1
    assert "phantom" in err
    assert "Traceback" not in err
    code, out, _ = delineate("check", broken, "--json")
    assert code == 1
    json.loads(out)


def test_evaluate_writes_its_report_and_prints_the_same(delineate, phantom_dataset, model, tmp_path):
    arguments = ["evaluate", phantom_dataset, "-o", tmp_path / "eval", "-m", model, "-n", 2, "--device", "cpu"]
    code, out, err = delineate(*arguments, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["split"] == "test"
    assert report["cases"] == 1
    assert set(report["targets"]) == {"liver", "spleen"}
    assert {p.name for p in (tmp_path / "eval").iterdir()} == {"report.json", "rows.csv", "dice.png"}
    code, out, _ = delineate(*arguments)
    assert code == 0
    assert "liver" in out


@pytest.fixture(scope="module")
def read_twice(tmp_path_factory):
    """Four flat phantoms of two patients whose livers two people drew, one of them wider; all are for testing."""
    folder = tmp_path_factory.mktemp("raters") / "livers"
    for part in ("images", "masks", "raters"):
        (folder / part).mkdir(parents=True)
    for number in range(4):
        phantom = make_phantom_image(number, shape=(64, 64))
        liver = phantom.labels[0] == PHANTOM_LABELS["liver"]
        grey = np.interp(phantom.voxels[0], (-150, 250), (0, 255)).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"case{number}.png")
        wider = binary_dilation(liver, iterations=2)
        for where, drawn in (("masks/case{}", liver), ("raters/case{}_r1", liver), ("raters/case{}_r2", wider)):
            Image.fromarray(drawn.astype(np.uint8) * 255).save(folder / f"{where.format(number)}.png")
    write_json(folder / "subjects.json", {f"case{number}": f"patient{number // 2}" for number in range(4)})
    write_json(folder / "splits.json", {"train": [], "val": [], "test": ["patient0", "patient1"]})
    return f"{folder}=liver@CT"


@pytest.mark.parametrize(
    ("protocol", "picture", "figure"),
    [
        ("raters", "raters.png", "ged"),
        ("curvas", "curvas.png", "consensus_dice"),
        ("calibration", "reliability.png", "ece_box"),
    ],
)
def test_evaluate_measures_by_protocol(delineate, read_twice, model, tmp_path, protocol, picture, figure):
    arguments = ["evaluate", read_twice, "-o", tmp_path / "e", "-m", model, "-n", 3, "--protocol", protocol]
    code, out, err = delineate(*arguments, "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "e" / "report.json").read_text())
    assert {p.name for p in (tmp_path / "e").iterdir()} == {"report.json", "rows.csv", picture}
    assert (report["protocol"], report["cases"], report["subjects"]) == (protocol, 4, 2)
    assert (report["proposals"], report["drawn"], report["raters"]) == (3, 1, 2)  # a U-Net always gives one
    told = report["targets"]["liver"]["figures"][figure]
    assert told["low"] <= told["mean"] <= told["high"]
    code, out, _ = delineate(*arguments, "--device", "cpu")
    assert code == 0
    assert "4 cases of 2 subjects, 1 proposal against 2 raters" in " ".join(out.split())
    assert picture in out


def test_an_unknown_protocol_is_refused_before_any_work(delineate, read_twice, model, tmp_path):
    code, _, err = delineate("evaluate", read_twice, "-o", tmp_path / "e", "-m", model, "--protocol", "dice")
    assert code == 2
    assert one_line(err).endswith("--protocol is one of overlap, raters, curvas, calibration; got 'dice'")
    assert not (tmp_path / "e").exists()


def two_sets(folder):
    """Bright discs and dark discs on grey, 6 images of 40 × 48 each, as images/ + masks/ with splits; no names."""
    rows, columns = np.mgrid[:40, :48]
    for name, level in (("light", 250), ("dark", 10)):
        for part in ("images", "masks"):
            (folder / name / part).mkdir(parents=True)
        rng = np.random.default_rng(level)
        for number in range(6):
            row, column, radius = rng.integers(12, 28), rng.integers(12, 36), rng.integers(5, 10)
            disc = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
            grey = np.where(disc, level, 128) + rng.integers(-4, 5, disc.shape)
            Image.fromarray(grey.astype(np.uint8)).save(folder / name / "images" / f"{name}{number}.png")
            Image.fromarray(disc.astype(np.uint8) * 255).save(folder / name / "masks" / f"{name}{number}.png")
        names = [f"{name}{number}" for number in range(6)]
        write_json(folder / name / "splits.json", {"train": names[:4], "val": names[4:5], "test": names[5:]})
    return folder / "light", folder / "dark"


def test_several_folders_are_named_on_one_line(delineate, tmp_path):
    light, dark = two_sets(tmp_path)
    named = [f"{light}=polyp@endoscopy", f"{dark}=skin lesion"]
    code, out, _ = delineate("check", f"{dark}=skin lesion,hair")  # 255 is no id among two
    assert code == 1
    code, out, _ = delineate("check", named[1])
    assert code == 0
    assert "skin lesion" in out
    code, _, err = delineate("train", "unet", *named, "-o", tmp_path / "m", "--images", 8, *TRAINING)
    assert code == 0, err
    assert [c["name"] for c in json.loads(delineate("prompts", "-m", tmp_path / "m", "--json")[1])["concepts"]] == [
        "polyp",
        "skin lesion",
    ]
    code, out, err = delineate("evaluate", named[1], "-o", tmp_path / "e", "-m", tmp_path / "m", "-n", 1, "--json")
    assert code == 0, err
    assert (json.loads(out)["dataset"], list(json.loads(out)["targets"])) == ("dark", ["skin lesion"])


def test_a_model_of_one_fold_is_scored_on_that_fold_alone(delineate, tmp_path):
    light, dark = two_sets(tmp_path)
    model = tmp_path / "m"
    training = ["train", "unet", f"{light}=polyp", "-o", model, "--images", 8, "--fold", "1/3", *TRAINING]
    code, _, err = delineate(*training)
    assert code == 0, err
    told = json.loads((model / "config.json").read_text())["training"]
    assert (told["fold"], told["slices"]) == ("1/3", 3)  # of six: two held out, one of the others for validation
    assert "fold 1/3" in (model / "card.md").read_text()

    def scored(dataset, *more):
        code, out, err = delineate("evaluate", dataset, "-o", tmp_path / "e", "-m", model, "-n", 1, *more, "--json")
        return code, json.loads(out) if code == 0 else one_line(err)

    code, report = scored(f"{light}=polyp", "--fold", "1/3")
    assert (code, report["cases"], report["fold"], report["split"]) == (0, 2, "1/3", "test")
    code, report = scored(f"{light}=polyp", "--fold", "1/3", "--split", "val")
    assert (code, report["cases"]) == (0, 1)
    shutil.copytree(light, tmp_path / "copy")
    for same in (light, tmp_path / "copy"):
        for more, message in (
            (["--fold", "2/3"], "on subjects that fold 2/3 holds out; use --fold 1/3"),
            ([], "on subjects that splits.json may hold out; add --fold 1/3"),
        ):
            code, line = scored(f"{same}=polyp", *more)
            assert code == 2
            assert message in line
    code, report = scored(f"{dark}=polyp", "--fold", "2/3")  # not trained on: any fold will do
    assert (code, report["dataset"], report["fold"]) == (0, "dark", "2/3")
    assert scored(f"{dark}=polyp")[1]["fold"] is None
    code, line = scored(f"{dark}=polyp", "--fold", "3")
    assert code == 2
    assert "a fold is NUMBER/OF" in line


def test_a_model_without_a_fold_is_not_scored_on_one(delineate, tmp_path):
    light, _ = two_sets(tmp_path)
    code, _, err = delineate("train", "unet", f"{light}=polyp", "-o", tmp_path / "m", "--images", 8, *TRAINING)
    assert code == 0, err
    scoring = ["evaluate", f"{light}=polyp", "-o", tmp_path / "e", "-m", tmp_path / "m", "-n", 1]
    code, _, err = delineate(*scoring, "--fold", "1/3")
    assert code == 2
    assert "without --fold, on subjects that fold 1/3 holds out; train one with --fold 1/3" in one_line(err)
    assert delineate(*scoring)[0] == 0


def test_a_fold_needs_no_splits_json_and_is_part_of_the_settings(delineate, tmp_path):
    light, _ = two_sets(tmp_path)
    (light / "splits.json").unlink()
    training = ["train", "unet", f"{light}=polyp", "-o", tmp_path / "m", "--images", 8, *TRAINING]
    (tmp_path / "m-training" / "network" / "checkpoint-0000000008").mkdir(parents=True)
    write_json(tmp_path / "m-training" / "settings.json", {"fold": "2/3"})
    code, _, err = delineate(*training, "--fold", "1/3")
    assert code == 2
    assert "other settings" in one_line(err)
    code, _, err = delineate(*training, "--fold", "7/3")
    assert code == 2
    assert "got '7/3'" in one_line(err)


@pytest.mark.slow  # a foundation that is really pre-trained
def test_a_foundation_made_here_must_not_have_seen_what_a_fold_holds_out(delineate, foundation_folder, tmp_path):
    light, dark = two_sets(tmp_path)
    foundation, refused = tmp_path / "f", tmp_path / "m"
    pretraining = ["pretrain", f"{light}=polyp", "-o", foundation, "--images", 8, "--fold", "1/3", *TRAINING]
    code, _, err = delineate(*pretraining)
    assert code == 0, err

    def training(dataset, folder, foundation, *more):
        more = ["--images", 8, "--foundation", foundation, *more, *TRAINING]
        return delineate("train", "progidiff", f"{dataset}=polyp", "-o", folder, *more)

    for more, message in (
        (["--fold", "2/3"], "was trained on fold 1/3 of light, on subjects that fold 2/3 holds out"),
        ([], "was trained on fold 1/3 of light, on subjects that splits.json may hold out"),
    ):
        code, _, err = training(light, refused, foundation, *more)
        assert code == 2
        assert message in one_line(err)
    code, _, err = training(dark, refused, foundation_folder, "--fold", "1/3")
    assert code == 2
    assert "does not say on which subjects it was pre-trained" in one_line(err)
    code, _, err = training(dark, tmp_path / "dark-model", foundation, "--fold", "2/3")
    assert code == 0, err
    scoring = ["evaluate", "-o", tmp_path / "e", "-m", tmp_path / "dark-model", "-n", 1]
    code, _, err = delineate(*scoring, f"{light}=polyp")  # its foundation saw fold 1/3 of that
    assert code == 2
    assert "add --fold 1/3" in one_line(err)
    code, _, err = delineate(*scoring, f"{light}=polyp", "--fold", "1/3")
    assert code == 0, err


def test_2_a_target_that_is_named_twice(delineate, tmp_path):
    light, dark = two_sets(tmp_path)
    for command in (["check"], ["train", "unet"], ["pretrain"], ["evaluate"]):
        more = [] if command == ["check"] else ["-o", tmp_path / "m"]
        code, _, err = delineate(*command, f"{light}=polyp", *more, "--target", "polyp")
        assert code == 2, command
        assert "named twice, after = and by --target" in one_line(err)
    code, _, err = delineate("train", "unet", f"{light}=polyp", dark, "-o", tmp_path / "m", *TRAINING)
    assert code == 5
    assert 'dark="breast lesion"' in one_line(err)


def test_doctor_as_json_ends_with_one_where_something_is_bad(delineate, model, monkeypatch):
    monkeypatch.setattr("delineate.model_folder.house_folder", lambda: model)
    code, out, err = delineate("doctor", "--json")
    findings = json.loads(out)
    assert all(set(f) == {"what", "ok"} for f in findings)
    assert err == ""
    assert code == (0 if all(f["ok"] for f in findings) else 1)
    monkeypatch.setattr("delineate.model_folder.house_folder", lambda: model / "nowhere")
    code, out, _ = delineate("doctor")
    assert code == 1
    assert "BAD  house model" in out


# Exit codes, each for a real cause


def test_0_version(delineate):
    assert delineate("--version")[:2] == (0, f"{cli.__version__}\n")


def test_1_a_cohort_with_a_broken_scan_goes_on_and_says_so(delineate, pictures, model, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "scans")
    (folder / "case0.png").write_bytes(b"\x89PNG nonsense")
    code, out, err = delineate(*segment(folder, model, tmp_path / "out", "-p", "liver"))
    assert code == 1
    assert "case0.png" in one_line(err)
    assert "failed" in out
    assert (tmp_path / "out" / "case1" / "liver.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment"],
        ["nonsense"],
        ["train", "oracle", "data", "-o", "model"],
        ["train", "unet", "data", "-o", "model", "--preset", "huge"],
        ["train", "unet", "data", "-o", "model", "--foundation", "folder"],
        ["train", "unet", "data", "-o", "model", "--minutes", "1", "--images", "8"],
        ["pretrain", "data", "-o", "model", "--codec", "jpeg"],
        ["segment", "scan.png", "-p", "liver", "-o", "out", "--consensus", "median"],
        ["segment", "scan.png", "-p", "liver", "-o", "out", "-n", "0"],
        ["evaluate", "data", "-o", "out", "--device", "abacus"],
    ],
    ids=" ".join,
)
def test_2_wrong_usage(delineate, arguments):
    code, _, err = delineate(*arguments)
    assert code == 2
    assert "Traceback" not in err
    assert err.strip()


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG nonsense"], ids=["missing", "empty", "damaged"])
def test_3_an_unreadable_scan(delineate, model, tmp_path, content):
    if content is not None:
        (tmp_path / "scan.png").write_bytes(content)
    code, _, err = delineate(*segment(tmp_path / "scan.png", model, tmp_path / "out", "-p", "liver"))
    assert code == 3
    assert "scan.png" in one_line(err)


def test_4_an_unknown_prompt_before_any_work(delineate, pictures, model, tmp_path):
    code, _, err = delineate(*segment(pictures, model, tmp_path / "out", "-p", "livr3x"))
    assert code == 4
    line = one_line(err)
    assert "nearest: liver" in line
    assert f"delineate prompts --model {model}" in line
    assert not (tmp_path / "out").exists()
    assert delineate(*segment(pictures, model, tmp_path / "out", "-p", " "))[0] == 4


def test_4_an_unknown_prompt_beside_a_known_one_hinders_it_not(delineate, pictures, model, tmp_path):
    code, _, err = delineate(*segment(pictures, model, tmp_path / "out", "-p", "liver", "-p", "pancreas"))
    assert code == 4
    assert "'pancreas' is not in this model's vocabulary" in one_line(err)
    assert (tmp_path / "out" / "case0" / "liver.png").exists()


def test_what_words_ask_for_is_said_without_a_scan_and_before_the_masks_of_one(delineate, pictures, model, tmp_path):
    words = "everything but the liver"
    code, out, err = delineate("prompts", "left lobe of the liver", "flux capacitor", "--model", model)
    assert (code, err) == (0, "")
    assert "all of the liver: a part of it is not known apart" in " ".join(out.split())
    assert "unknown" in out
    told = json.loads(delineate("prompts", words, "--model", model, "--json")[1])[words]
    assert "liver" not in told["targets"]
    assert told["share"] == 1
    assert delineate("prompts", "flux capacitor", "--model", model)[0] == 4
    code, _, err = delineate(*segment(pictures, model, tmp_path / "out", "-p", words))
    assert code == 0
    assert f"'{words}' was taken for {told['said']}" in err
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    answered = [target["target"] for target in run["cases"][0]["targets"]]
    assert answered == told["targets"]


def test_5_a_dataset_that_is_none(delineate, model, tmp_path):
    for arguments in (
        ["check", tmp_path],
        ["train", "unet", tmp_path, "-o", tmp_path / "m"],
        ["evaluate", tmp_path, "-o", tmp_path / "e", "-m", model],
    ):
        code, _, err = delineate(*arguments)
        assert code == 5, arguments
        assert str(tmp_path) in one_line(err)


def test_5_a_dataset_without_splits_or_targets_in_common(delineate, model, phantom_dataset, tmp_path):
    copy = shutil.copytree(phantom_dataset, tmp_path / "copy")
    evaluating = ["evaluate", copy, "-o", tmp_path / "e", "-m", model]
    code, _, err = delineate(*evaluating, "--target", "pancreas")
    assert code == 5
    assert "knows none of its targets (pancreas)" in one_line(err)
    (copy / "splits.json").unlink()
    code, _, err = delineate("pretrain", copy, "-o", tmp_path / "m")
    assert code == 5
    assert f"draw one with: delineate split {copy}, or use --fold" in one_line(err)
    code, _, err = delineate(*evaluating)
    assert code == 5
    assert f"run delineate split {copy}" in one_line(err)


@pytest.mark.parametrize("damage", ["nowhere", "changed"])
def test_6_a_model_that_is_missing_or_damaged(delineate, pictures, model, tmp_path, damage):
    copy = tmp_path / "copy"
    if damage == "changed":
        shutil.copytree(model, copy)
        (copy / "weights.safetensors").write_bytes(b"0")
    code, _, err = delineate(*segment(pictures, copy, tmp_path / "out", "-p", "liver"))
    assert code == 6
    assert str(copy) in one_line(err)
    if damage == "nowhere":
        assert delineate("prompts", "--model", copy)[0] == 6


def test_6_a_foundation_that_is_none(delineate, phantom_dataset, tmp_path):
    arguments = ["train", "progidiff", phantom_dataset, "-o", tmp_path / "m", "--images", 8, "--foundation", tmp_path]
    code, _, err = delineate(*arguments, *TRAINING)
    assert code == 6
    assert "not a Stable Diffusion folder" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_raters_are_learnt_as_asked_and_refused_where_there_are_none(delineate, phantom_dataset, rated, tmp_path):
    for raters, told in ((None, "random"), ("all", "all"), ("consensus", "consensus")):
        model = tmp_path / told
        option = () if raters is None else ("--raters", raters)
        assert delineate("train", "unet", rated, "-o", model, "--images", 16, *TRAINING, *option)[0] == 0
        assert json.loads((model / "config.json").read_text())["training"]["raters"] == told
    assert "Where several raters drew, everyone's was learnt." in (tmp_path / "all" / "card.md").read_text()
    for folder, value, why in ((phantom_dataset, "all", "has none"), (rated, "most", "one of consensus, random, all")):
        arguments = ("train", "unet", folder, "-o", tmp_path / "x", "--images", 16, "--raters", value, *TRAINING)
        code, _, err = delineate(*arguments)
        assert code != 0
        assert why in one_line(err)


def test_6_a_name_that_is_taken_is_refused_before_training(delineate, phantom_dataset, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    began = time.monotonic()
    code, _, err = delineate("train", "unet", phantom_dataset, "-o", tmp_path / "thesis", "--minutes", 5, *TRAINING)
    assert code == 6
    assert time.monotonic() - began < 30
    assert "choose another name" in one_line(err)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"


def test_7_training_that_cannot_go_on(delineate, phantom_dataset, tmp_path, monkeypatch):
    def diverge(*arguments, **more):
        raise TrainingError("the loss became nan after 8 images")

    monkeypatch.setattr("delineate.training.loop.train", diverge)
    code, _, err = delineate("train", "unet", phantom_dataset, "-o", tmp_path / "m", "--images", 8, *TRAINING)
    assert code == 7
    assert "the loss became nan" in err.splitlines()[-1]


# Training from end to end


@pytest.mark.parametrize("system", ["unet", "progidiff"])
def test_what_is_trained_can_be_asked_at_once(
    delineate, phantom_dataset, pictures, tmp_path, system, foundation_folder
):
    folder = tmp_path / "mine"
    more = ["--foundation", foundation_folder] if system == "progidiff" else []
    arguments = ["train", system, phantom_dataset, "-o", folder, "--images", 24, "--target", "liver", *more]
    code, out, err = delineate(*arguments, *TRAINING)
    assert code == 0, err
    assert str(folder) in out
    config = json.loads((folder / "config.json").read_text())
    assert config["training"]["images"] == 24
    assert config["training"]["slices"] == 40
    assert sum(stage["images"] for stage in config["training"]["stages"].values()) in (24, 32)
    card = (folder / "card.md").read_text()
    assert "Not a medical device" in card
    assert "Targets: liver" in card
    left = sorted(
        p.relative_to(tmp_path / "mine-training").as_posix() for p in (tmp_path / "mine-training").rglob("*.*")
    )
    assert {name.split("/")[-1] for name in left} == {
        "curves.png",
        "log.jsonl",
    }  # no checkpoint, no settings
    code, out, err = delineate(*segment(pictures, folder, tmp_path / "out", "-p", "liver", "--json"))
    assert code == 0, err
    proposals = json.loads(out)["cases"][0]["targets"][0]["proposals_pixels"]
    assert len(proposals) == (1 if system == "unet" else 2)


def test_a_foundation_is_pretrained_and_loads(delineate, phantom_dataset, tmp_path):
    from delineate.foundation.foundation import Foundation

    folder = tmp_path / "foundation"
    arguments = ["pretrain", phantom_dataset, "-o", folder, "--images", 32, *TRAINING]
    code, out, err = delineate(*arguments)
    assert code == 0, err
    assert str(folder) in out
    assert "pre-trained here on 40 slices" in Foundation.load(folder).pretraining
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    code, _, err = delineate("pretrain", phantom_dataset, "-o", tmp_path / "mine")
    assert code == 2
    assert "not a foundation made here" in one_line(err)


def test_a_call_that_failed_at_the_door_does_not_bar_the_right_one(delineate, phantom_dataset, tmp_path):
    folder = tmp_path / "m"
    assert delineate("train", "unet", tmp_path / "typo", "-o", folder, "--images", 8, *TRAINING)[0] == 5
    code, _, err = delineate("train", "unet", phantom_dataset, "-o", folder, "--images", 8, *TRAINING)
    assert code == 0, err


def started(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "delineate", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow  # the whole command stopped and gone on with; the loop itself: tests/training/test_loop.py
def test_75_a_stopped_training_is_gone_on_with_by_the_same_command_and_no_other(delineate, phantom_dataset, tmp_path):
    def training(folder, images=240):
        return ["train", "progidiff", phantom_dataset, "-o", tmp_path / folder, "--images", images, *TRAINING]

    process = started(training("stopped"))
    finished, until = tmp_path / "stopped-training" / "encoder", time.monotonic() + 90
    while not any(finished.glob("checkpoint-*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # in the second stage, or the third
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert not (tmp_path / "stopped").exists()

    code, _, err = delineate(*training("stopped", images=248))
    assert code == 2
    assert "holds an unfinished training with other settings" in one_line(err)

    for folder in ("stopped", "whole"):
        code, _, err = delineate(*training(folder))
        assert code == 0, err
        assert not list((tmp_path / f"{folder}-training").rglob("checkpoint-*"))
    stopped, whole = (json.loads((tmp_path / f / "manifest.json").read_text()) for f in ("stopped", "whole"))
    same = {name for name in whole if stopped[name] == whole[name]}
    assert {name for name in whole if name.endswith(".safetensors")} <= same  # to the bit
    assert stopped.keys() == whole.keys()


@pytest.mark.slow  # two real phases across a stop
def test_stages_that_were_finished_before_a_stop_are_in_the_model_s_record(delineate, phantom_dataset, tmp_path):
    """All stages done, but the model could not be saved: the same command only saves it, and knows them all."""
    folder = tmp_path / "m"
    arguments = ["train", "progidiff", phantom_dataset, "-o", folder, "--images", 40, *TRAINING]
    with pytest.MonkeyPatch.context() as patch:

        def fail(*given, **more):
            raise OSError("No space left on device")

        patch.setattr("delineate.jobs.train.save_model", fail)
        patch.setattr(sys, "argv", ["delineate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 10
    code, _, err = delineate(*arguments)
    assert code == 0, err
    stages = json.loads((folder / "config.json").read_text())["training"]["stages"]
    assert list(stages) == ["words", "encoder", "generator"]
    assert all(stage["images"] > 0 for stage in stages.values())
    assert {path.parent.name for path in (tmp_path / "m-training").rglob("log.jsonl")} == set(stages)


def test_other_settings_are_refused_while_a_training_is_unfinished(delineate, phantom_dataset, tmp_path):
    work = tmp_path / "m-training"
    (work / "network" / "checkpoint-0000000008").mkdir(parents=True)
    write_json(work / "settings.json", {"system": "unet"})
    code, _, err = delineate("train", "unet", phantom_dataset, "-o", tmp_path / "m", "--images", 8, *TRAINING)
    assert code == 2
    assert "other settings; repeat those to go on, or remove the folder" in one_line(err)
    assert (work / "network" / "checkpoint-0000000008").exists()


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """Forty flat images of a bright disc: half to learn from, 19 to calibrate on, one to ask of."""
    root = tmp_path_factory.mktemp("discs")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for part in ("images", "masks"):
        (root / part).mkdir()
    for number in range(40):
        row, column, radius = generator.integers(24, 40), generator.integers(24, 40), generator.integers(8, 16)
        disc = (y - row) ** 2 + (x - column) ** 2 < radius**2
        grey = np.where(disc, 180, 40) + generator.normal(0, 20, disc.shape)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / "images" / f"d{number:02d}.png")
        Image.fromarray(disc.astype(np.uint8) * 255).save(root / "masks" / f"d{number:02d}.png")
    names = [f"d{number:02d}" for number in range(40)]
    write_json(root / "splits.json", {"train": names[:20], "val": names[20:39], "test": names[39:]})
    return root


@pytest.mark.slow  # training, calibrating and segmenting in a row
def test_a_model_is_calibrated_and_then_gives_guarantees(delineate, discs, tmp_path):
    model, scan = tmp_path / "model", discs / "images" / "d39.png"
    named = f"{discs}=polyp@endoscopy"
    code, _, err = delineate("train", "unet", named, "-o", model, "--images", 400, "--no-calibrate", *TRAINING)
    assert code == 0, err
    ask = ("segment", scan, "-p", "polyp", "--model", model, "--no-pictures", "--threads", "1")
    code, _, err = delineate(*ask, "-o", tmp_path / "a", "--missed-at-most", "5%")
    assert code == 8
    assert "is not calibrated; run: delineate calibrate" in one_line(err)
    assert not (tmp_path / "a").exists()
    code, out, _ = delineate("calibrate", model, named, "--threads", "1", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["targets"]["polyp"]["subjects"] == 19
    assert told["targets"]["polyp"]["missed"][0] is None  # 1 % needs 99
    assert told["proposals"] == 1  # all that a U-Net has
    assert delineate(*ask, "-o", tmp_path / "b", "--missed-at-most", "10%", "--false-at-most", "0.1")[0] == 0
    (target,) = json.loads((tmp_path / "b" / "run.json").read_text())["cases"][0]["targets"]
    outer, inner = target["guarantees"]
    assert (outer["kind"], outer["alpha"], inner["kind"]) == ("missed", 0.1, "false")
    held = [None if one["threshold"] is None else one["pixels"] for one in (outer, inner)]
    assert None not in held, (outer["why_not"], inner["why_not"])
    assert held[0] >= held[1] > 0
    assert (tmp_path / "b" / "d39" / "polyp_missed_at_most_10pct.png").is_file()
    code, _, err = delineate(*ask, "-o", tmp_path / "c", "--missed-at-most", "1%")
    assert code == 8
    assert "needs at least 99" in one_line(err)
    code, _, err = delineate(*ask, "-o", tmp_path / "d", "--missed-at-most", "105%")
    assert code == 2
    assert "5% or 0.05" in err
    code, out, err = delineate("calibrate", model, named, "--split", "train", "--threads", "1")
    assert code == 5
    assert "trained on its train split" in one_line(err)
    shutil.rmtree(tmp_path / "model")
    code, _, err = delineate("calibrate", model, named, "--threads", "1")
    assert code == 6
    one_line(err)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "out/x"), 10, "out/x: No space left on device"),
        (IsADirectoryError(21, "Is a directory", "a\nb"), 10, "a b: Is a directory"),
        (MemoryError(), 3, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 3, "out of memory"),
        (BusyError("out: another command"), 9, "out: another command"),
        (KeyError("x"), 70, "internal error (KeyError at"),
        (RecursionError("deep"), 70, "DELINEATE_DEBUG=1 shows more"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, BaseException) else "",
)
def test_every_way_out_is_a_line_and_a_code(monkeypatch, capsys, error, code, words):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words in told
    monkeypatch.setenv("DELINEATE_DEBUG", "1")
    if code == 70:
        with pytest.raises(type(error)):
            cli.main()


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\u202eb", "\ud800", "[/red]liver", "[bold]x", ":smile:", "\u2028"])
def test_nothing_that_a_terminal_obeys_is_printed(capsys, text):
    with listening():
        say(f"delineate: {text}")
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert not any(one in told for one in "\x1b\u202e\ud800\u2028")
    if "[" in text and "\x1b" not in text:
        assert text in told


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--minutes", ["nan", "inf", "-inf", "1e308", "-1", "0"]),
        ("--images", ["0", "-1", "99999999999999999999"]),
        ("--seed", ["-1", "99999999999999999999"]),
        ("--threads", ["0", "100000000"]),
    ],
)
def test_numbers_without_end_are_wrong_usage(delineate, phantom_dataset, tmp_path, option, values):
    for value in values:
        code, _, err = delineate("train", "unet", phantom_dataset, "-o", tmp_path / "m", option, value)
        assert code == 2, value
        assert "Traceback" not in err
    assert not (tmp_path / "m-training").exists()


def test_an_output_that_cannot_be_written_is_told_before_any_work(delineate, pictures, model, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null"), Path("/proc/nope")):
        code, _, err = delineate("segment", pictures, "-p", "liver", "--model", model, "-o", output)
        assert code == 10
        assert f"{output}: nothing can be written there" in one_line(err)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_pipe_is_no_scan(delineate, model, tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    code, _, err = delineate("segment", tmp_path / "pipe.nii", "-p", "liver", "--model", model, "-o", tmp_path / "o")
    assert code == 3
    assert "must be a file or a folder" in one_line(err)
