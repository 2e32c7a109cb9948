import csv
import json
import re
import shutil
from functools import partial

import nibabel
import numpy as np
import pytest
from tests.jobs.test_segment import REQUEST, Bright, replace, run
from typer.testing import CliRunner

from delineate.cli.app import app
from delineate.data.phantom import make_phantom
from delineate.errors import OutputError
from delineate.jobs import bids
from delineate.jobs.bids import Named, label_of
from delineate.review.cases import find_cases
from delineate.scans.finding import Found
from delineate.scans.scan import Scan
from delineate.scans.writing import write_scan
from delineate.storage.files import sha256_of, write_json

TOP = {"dataset_description.json", "README", ".bidsignore"}
SEGMENTATION = re.compile(  # of the specification's schema: anat, derivatives, dseg and probseg; in its order
    r"sub-[0-9A-Za-z]+(_ses-[0-9A-Za-z]+)?(_task-[0-9A-Za-z]+)?(_acq-[0-9A-Za-z]+)?(_ce-[0-9A-Za-z]+)?"
    r"(_rec-[0-9A-Za-z]+)?(_run-[0-9]+)?(_echo-[0-9]+)?(_part-(mag|phase|real|imag))?(_space-[0-9A-Za-z]+)?"
    r"(_seg-[0-9A-Za-z]+)?(_res-[0-9A-Za-z]+)?(_label-[0-9A-Za-z]+)?(_desc-[0-9A-Za-z]+)?"
    r"_(dseg\.(nii\.gz|json|tsv)|probseg\.(nii\.gz|json))"
)


@pytest.fixture
def volumes(tmp_path):
    """A T1w and a T2w of one session, and a scan that nobody named in BIDS."""
    folder = tmp_path / "volumes"
    folder.mkdir()
    for number, name in enumerate(("sub-01_ses-a_run-1_T1w", "sub-01_ses-a_run-1_T2w", "Patient 7 (T2)")):
        phantom = make_phantom(number, shape=(6, 32, 32))
        write_scan(folder / f"{name}.nii.gz", Scan(phantom.voxels, phantom.affine))
    return folder


def laid_out(scans, root, request=REQUEST, **more):
    bids.begin(root)
    return run(Bright(), scans, root / "cases", request, lay_out=partial(bids.lay_out, root), **more)


def files(root):
    return {
        path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and "cases" not in path.parts
    }


def test_a_cohort_is_a_derivative_with_names_of_the_specification(volumes, tmp_path):
    root = tmp_path / "out"
    report = laid_out(volumes, root, replace(REQUEST, maps=True))
    assert {case["status"] for case in report["cases"]} == {"done"}
    stems = {
        "sub-01/ses-a/anat/sub-01_ses-a_run-1_space-orig{}_desc-T1w",
        "sub-01/ses-a/anat/sub-01_ses-a_run-1_space-orig{}_desc-T2w",
        "sub-Patient7T2/anat/sub-Patient7T2_space-orig{}",
    }
    ends = ("", *("_label-liver", "_label-spleen"))
    assert files(root) == {
        *TOP,
        *(f"{stem.format('')}_dseg.{end}" for stem in stems for end in ("nii.gz", "json", "tsv")),
        *(f"{stem.format(end)}_probseg.{e}" for stem in stems for end in ends[1:] for e in ("nii.gz", "json")),
    }
    for name in files(root) - TOP:
        assert SEGMENTATION.fullmatch(name.rpartition("/")[2]), name
        for folder, key in zip(name.split("/")[:-2], ("sub", "ses"), strict=False):
            assert f"{folder}_" in name.rpartition("/")[2]
            assert folder.startswith(key)
    told = json.loads((root / "dataset_description.json").read_text())
    assert told["DatasetType"] == "derivative"
    assert told["GeneratedBy"][0]["Name"] == "delineate"
    assert told["GeneratedBy"][0]["Version"]
    assert (root / ".bidsignore").read_text() == "cases\n"


def test_the_files_are_those_of_the_cases_and_the_table_names_their_numbers(volumes, tmp_path):
    root = tmp_path / "out"
    laid_out(volumes, root, replace(REQUEST, maps=True))
    case, at = root / "cases" / "Patient 7 (T2)", root / "sub-Patient7T2" / "anat"
    stem = "sub-Patient7T2_space-orig"
    assert (at / f"{stem}_dseg.nii.gz").read_bytes() == (case / "labels.nii.gz").read_bytes()
    probability = (at / f"{stem}_label-liver_probseg.nii.gz").read_bytes()
    assert probability == (case / "liver_probability.nii.gz").read_bytes()
    with (at / f"{stem}_dseg.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["index", "name", "color"]
    assert [(row["index"], row["name"]) for row in rows] == [("1", "liver"), ("2", "spleen")]
    assert all(re.fullmatch("#[0-9A-F]{6}", row["color"]) for row in rows)
    present = set(np.unique(np.asanyarray(nibabel.load(at / f"{stem}_dseg.nii.gz").dataobj)).tolist())
    assert present == {1, 2}  # what is not bright is dark
    sidecar = json.loads((at / f"{stem}_dseg.json").read_text())
    assert (sidecar["SpatialReference"], sidecar["Manual"]) == ("orig", False)
    assert len(find_cases(root)) == 3


def test_going_on_mends_what_is_missing_and_asks_nothing_again(volumes, tmp_path):
    root = tmp_path / "out"
    laid_out(volumes, root)
    before = {name: (root / name).read_bytes() for name in files(root)}
    shutil.rmtree(root / "sub-01")
    damaged = root / "sub-Patient7T2" / "anat" / "sub-Patient7T2_space-orig_dseg.nii.gz"
    damaged.write_bytes(b"torn")
    report = laid_out(volumes, root, resume=True)
    assert {case["status"] for case in report["cases"]} == {"skipped"}
    assert {name: (root / name).read_bytes() for name in files(root)} == before


def test_probabilities_of_an_earlier_answer_do_not_stay(volumes, tmp_path):
    root = tmp_path / "out"
    laid_out(volumes, root, replace(REQUEST, maps=True))
    laid_out(volumes, root, replace(REQUEST, maps=True, prompts=("liver",)))
    left = {name for name in files(root) if "probseg" in name}
    assert len(left) == 6
    assert all("_label-liver" in name for name in left)
    laid_out(volumes, root, REQUEST)
    assert not {name for name in files(root) if "probseg" in name}


def test_scans_whose_names_become_one_never_share_files(volumes, tmp_path):
    root = tmp_path / "out"
    shutil.copyfile(volumes / "sub-01_ses-a_run-1_T1w.nii.gz", volumes / "Patient-7 T2.nii.gz")
    for _ in range(2):
        laid_out(volumes, root, replace(REQUEST, maps=True))
        made = sorted((root / "sub-Patient7T2" / "anat").glob("*_dseg.nii.gz"))
        assert len(made) == 2
        cases = {json.loads(one.with_name(one.name.replace(".nii.gz", ".json")).read_text())["Case"] for one in made}
        assert cases == {"Patient 7 (T2)", "Patient-7 T2"}
        assert all(SEGMENTATION.fullmatch(one.name) for one in made)
    before = files(root)
    for case in cases:
        bids.lay_out(root, root / "cases" / case, case)
    assert files(root) == before
    laid_out(volumes / "Patient 7 (T2).nii.gz", root)
    assert {name for name in before if name not in files(root)} == {
        f"sub-Patient7T2/anat/sub-Patient7T2_space-orig_label-{target}_{kind}"
        for target in ("liver", "spleen")
        for kind in ("probseg.nii.gz", "probseg.json")
    }


def test_a_changed_case_is_not_copied(volumes, tmp_path):
    root = tmp_path / "out"
    laid_out(volumes, root)
    case = root / "cases" / "Patient 7 (T2)"
    shutil.rmtree(root / "sub-Patient7T2")
    (case / "labels.nii.gz").write_bytes(b"another")
    with pytest.raises(Exception, match="is not what was written"):
        bids.lay_out(root, case, "Patient 7 (T2)")
    assert not list(root.glob("sub-Patient7T2/anat/*.nii.gz"))


@pytest.mark.parametrize("told", [{"Name": "ds", "BIDSVersion": "1.8.0"}, {"GeneratedBy": [{"Name": "fMRIPrep"}]}])
def test_the_folder_of_another_dataset_is_refused_and_left_alone(told, tmp_path):
    write_json(tmp_path / "dataset_description.json", told)
    digest = sha256_of(tmp_path / "dataset_description.json")
    with pytest.raises(OutputError, match="choose a folder of its own"):
        bids.begin(tmp_path)
    assert sha256_of(tmp_path / "dataset_description.json") == digest


@pytest.mark.parametrize(
    ("case", "stem"),
    [
        ("sub-01_T1w", "sub-01_space-orig_desc-T1w"),
        ("sub-01_acq-hi_ce-gd_run-02_FLAIR", "sub-01_acq-hi_ce-gd_run-02_space-orig_desc-FLAIR"),
        ("sub-01_inv-1_MP2RAGE", "sub-01_space-orig_desc-inv1MP2RAGE"),
        ("sub-01_space-MNI152_desc-preproc_T1w", "sub-01_space-MNI152_desc-preprocT1w"),
        ("sub-01_run-1_ses-a_T1w", "sub-sub01Run1SesAT1w_space-orig"),  # not in the order of the specification
        ("sub-01_sub-02_T1w", "sub-sub01Sub02T1w_space-orig"),
        ("ses-01_T1w", "sub-ses01T1w_space-orig"),
        ("sub-01", "sub-sub01_space-orig"),
        ("sub-../x_T1w", "sub-subXT1w_space-orig"),
        ("..", "sub-scan_space-orig"),
        ("日本", "sub-scan_space-orig"),
        ("a" * 90, f"sub-{'a' * 40}_space-orig"),
    ],
)
def test_entities_are_kept_where_a_name_has_them(case, stem):
    named = Named.of(case)
    assert named.stem("dseg") == f"{stem}_dseg"
    assert SEGMENTATION.fullmatch(f"{named.apart('0a1b').stem('probseg', 'x')}.nii.gz")
    assert ".." not in named.folder.parts


def test_labels_of_targets_are_letters_and_digits():
    assert [label_of(name) for name in ("portal/splenic vein", "日本", "L1")] == ["portalSplenicVein", "", "L1"]


def test_pictures_are_refused_before_anything_is_written(scans, tmp_path):
    asked = ["segment", str(scans), "-p", "liver", "-o", str(tmp_path / "out"), "--layout"]
    done = CliRunner().invoke(app, [*asked, "bids"])
    assert done.exit_code == 2
    assert "for volumes" in done.output
    assert CliRunner().invoke(app, [*asked, "BIDS"]).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_flat_scan_fails_alone(volumes, scans, tmp_path):
    found = [Found.at(scans / "case0.png"), Found.at(volumes / "Patient 7 (T2).nii.gz")]
    root = tmp_path / "out"
    report = laid_out(found, root)
    assert [case["status"] for case in report["cases"]] == ["failed", "done"]
    assert "only volumes have a place in BIDS" in report["cases"][0]["reason"]
