import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tests.review_world import AFFINE, SHAPE, Bright, write_picture, write_volume

from delineate.errors import ScanError
from delineate.jobs.segment import SegmentRequest, run_cohort
from delineate.review import schema
from delineate.review.answers import read_answer, save_answer
from delineate.review.cases import doubt_as_nifti, find_cases, scan_as_nifti, windows_of
from delineate.review.desk import Place
from delineate.review.schema import Mark
from delineate.scans.finding import Found
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter

PROMPTS = ("liver", "the liver", "spleen", "livr3 of mars")


@pytest.fixture
def segmented(tmp_path):
    """What `delineate segment` leaves of two volumes and a picture; the answers as they were."""
    scans = [write_volume(tmp_path / f"v{n}.nii.gz", n) for n in range(2)] + [write_picture(tmp_path / "p.png")]
    segmenter = Segmenter(Bright())
    run_cohort(
        segmenter,
        list(map(Found.at, scans)),
        SegmentRequest(PROMPTS, n=3, pictures=False),
        tmp_path / "out",
        model_hash="m",
    )
    return tmp_path / "out", {p.name.split(".")[0]: segmenter(read_scan(p), PROMPTS, n=3) for p in scans}


def test_a_segmented_folder_gives_its_cases_with_the_answers_as_they_were(segmented):
    out, truth = segmented
    cases = find_cases(out)
    assert [(c.id, c.name, c.folder) for c in cases] == [
        (f"c{n}", name, out / name) for n, name in enumerate(("p", "v0", "v1"))
    ]
    for case in cases:
        shape = case.info.shape
        assert [a.info.id for a in case.earlier] == ["s0", "s1", "s2", "s3"]
        for answer, target in zip(case.earlier, truth[case.name].targets, strict=True):
            assert (answer.info.prompt, answer.info.target) == (target.prompt.text, target.name)
            assert answer.info.outcome == target.outcome
            assert answer.info.proposals == len(target)
            assert answer.asked["model_sha256"] == "m"
            if len(target) == 0:
                assert answer.info.message.startswith("'livr3 of mars' is not in this model's vocabulary")
                assert answer.info.nearest == list(target.nearest)
                continue
            np.testing.assert_array_equal(answer.consensus(shape), target.consensus())
            for k in range(3):
                np.testing.assert_array_equal(answer.proposal(k, shape), target.choose(k))
            assert answer.info.unit == ("pixels" if case.name == "p" else "ml")
            voxel = 1 if case.name == "p" else 2 * 3 * 5 / 1000
            assert answer.info.volume == pytest.approx(target.consensus().sum() * voxel, abs=1e-3)
            drawn = np.stack([target.choose(k) for k in range(3)]).astype(np.float16)
            np.testing.assert_allclose(answer.doubt(shape), replace(target, drawn=drawn).disagreement(), atol=2e-3)


def test_one_case_folder_can_be_named_too(segmented):
    out, _ = segmented
    (case,) = find_cases(out / "v1")
    assert (case.name, case.folder, len(case.earlier)) == ("v1", out / "v1", 4)


def test_saved_maps_are_taken_for_doubt(tmp_path):
    scans = [write_volume(tmp_path / "v.nii.gz"), write_picture(tmp_path / "p.png")]
    request = SegmentRequest(("liver",), n=4, maps=True, pictures=False)
    segmenter = Segmenter(Bright())
    run_cohort(segmenter, list(map(Found.at, scans)), request, tmp_path / "out", model_hash="m")
    for case, path in zip(find_cases(tmp_path / "out"), reversed(scans), strict=True):
        truth = segmenter(read_scan(path), ["liver"], n=4).targets[0].disagreement()
        np.testing.assert_allclose(case.earlier[0].doubt(case.info.shape), truth, atol=1 / 255)
        for kind in ("doubt", "proposal_00"):  # the probability, then the share of proposals, must do
            next(case.folder.glob(f"liver_{kind}.*")).unlink()
        np.testing.assert_allclose(case.earlier[0].doubt(case.info.shape), truth, atol=0.05)


def test_a_changed_or_missing_scan_is_one_line_that_names_it_and_stops_nobody_else(segmented, tmp_path):
    out, _ = segmented
    write_volume(tmp_path / "v0.nii.gz", seed=9)
    (tmp_path / "p.png").unlink()
    picture, first, second = find_cases(out)
    with pytest.raises(ScanError, match=r"v0.nii.gz: the scan must be the one that was segmented, but its content"):
        _ = first.info
    with pytest.raises(ScanError, match=r"p.png: the scan of 'p' is not there"):
        _ = picture.info
    assert second.info.shape == SHAPE


def test_a_scan_named_from_elsewhere_is_found_beside_the_folder(segmented, tmp_path):
    out, _ = segmented
    done = out / "v0" / "case.json"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"file": "v0.nii.gz"}))
    assert find_cases(out)[1].info.name == "v0"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"file": 3}', '{"file": "x", "sha256": "y", "case": "z", "request": 3}']
)
def test_a_case_that_is_none_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "case.json").write_text(content)
    with pytest.raises(ScanError, match=r"not a case\.json of this release"):
        find_cases(tmp_path)


def test_scans_keep_their_work_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_volume(tmp_path / "Ä b_0000.nii.gz")
    write_picture(tmp_path / "p.png")
    assert [c.folder for c in find_cases(tmp_path / "p.png", tmp_path / "here")] == [tmp_path / "here"]
    assert [str(c.folder) for c in find_cases(tmp_path / "p.png")] == ["p-review"]
    named = find_cases(tmp_path, tmp_path / "here")
    assert [(c.name, c.folder) for c in named] == [("p", tmp_path / "here" / "p"), ("Ä b", tmp_path / "here" / "Ä b")]


def test_output_is_refused_for_a_segmented_folder(segmented):
    with pytest.raises(ScanError, match="leave --output out"):
        find_cases(segmented[0], segmented[0] / "x")


def test_what_cannot_be_read_so_is_said(tmp_path):
    with pytest.raises(ScanError, match="no such file or folder"):
        find_cases(tmp_path / "nothing")
    (case,) = find_cases(write_volume(tmp_path / "v.nii.gz"), tmp_path / "o", modality="us", volume=0, fill_gaps=True)
    assert case.reading == {"modality": "us", "volume": 0, "fill_gaps": True}
    assert case.info.modality == "US"


def test_the_scan_is_shown_as_it_is(tmp_path):
    for path in (write_volume(tmp_path / "v.nii.gz"), write_picture(tmp_path / "p.png")):
        scan = read_scan(path)
        shown = nibabel.Nifti1Image.from_bytes(gzip.decompress(scan_as_nifti(scan)))
        np.testing.assert_array_equal(shown.get_fdata(), scan.voxels)
        np.testing.assert_allclose(shown.affine, scan.affine)
        assert shown.get_data_dtype() == np.int16
    odd = Scan(np.full((2, 2, 2), 0.5, np.float32), AFFINE)
    assert nibabel.Nifti1Image.from_bytes(gzip.decompress(scan_as_nifti(odd))).get_data_dtype() == np.float32


def test_colours_are_shown_as_colours(tmp_path):
    scan = read_scan(write_picture(tmp_path / "p.png", colour=True))
    shown = nibabel.Nifti1Image.from_bytes(gzip.decompress(scan_as_nifti(scan)))
    values = np.asarray(shown.dataobj)
    assert int(shown.header["datatype"]) == 128  # RGB24
    np.testing.assert_array_equal(np.stack([values[c] for c in "RGB"], -1), scan.voxels)
    assert [w.name for w in windows_of(scan)] == ["whole range"]


def test_doubt_is_shown_in_256_steps():
    doubt = np.linspace(0, 1, 24).reshape(2, 3, 4).astype(np.float32)
    shown = nibabel.Nifti1Image.from_bytes(gzip.decompress(doubt_as_nifti(doubt, Scan(doubt, AFFINE))))
    np.testing.assert_allclose(shown.get_fdata() / 255, doubt, atol=0.5 / 255 + 1e-6)


def test_windows_of_ct_are_those_of_radiologists_and_others_go_by_their_own_values():
    voxels = np.random.default_rng(0).normal(0, 300, (9, 9, 9)).astype(np.float32)
    voxels[0, 0, 0] = -2000
    named = {w.name: (w.low, w.high) for w in windows_of(Scan(voxels, AFFINE, "CT"))}
    assert named["lung"] == (-1350, 150)
    assert next(iter(named)) == "abdomen"
    assert named["whole range"] == (-2000, voxels.max())
    others = windows_of(Scan(voxels, AFFINE, "MR"))
    assert [w.name for w in others] == ["auto", "whole range"]
    np.testing.assert_allclose((others[0].low, others[0].high), np.percentile(voxels, (0.5, 99.5)), rtol=1e-5)


def test_an_answer_of_ones_own_comes_back_and_is_none_before_it_is_whole(tmp_path):
    scan = read_scan(write_volume(tmp_path / "v.nii.gz"))
    proposals = Segmenter(Bright())(scan, ["liver"], n=3)
    marks = [Mark(voxel=(1, 2, 3), positive=True)]
    more = {"marks": marks, "refines": "s0", "seed": 7, "started": 0.0, "asked": {"model": "bright"}}
    saved = save_answer(tmp_path / "a5", proposals, **more)
    again = read_answer(tmp_path / "a5")
    assert again.info == saved.info
    assert (again.info.id, again.info.seed, again.info.refines, again.info.marks) == ("a5", 7, "s0", marks)
    np.testing.assert_array_equal(again.proposal(2, SHAPE), proposals.targets[0].choose(2))
    np.testing.assert_array_equal(again.consensus(SHAPE), proposals.targets[0].consensus())
    np.testing.assert_allclose(again.doubt(SHAPE), proposals.targets[0].disagreement(), atol=0.5001 / 255)
    with pytest.raises(ScanError, match="must have the scan's shape"):
        again.consensus((1, 2, 3))
    masks = tmp_path / "a5" / "masks.npz"
    for damaged in (masks.read_bytes()[:-30], b"", b"PK"):
        masks.write_bytes(damaged)
        for read in (again.consensus, again.doubt):
            with pytest.raises(ScanError, match="the masks of this answer are damaged; ask again"):
                read(SHAPE)
    masks.unlink()
    for read in (again.consensus, again.doubt):
        with pytest.raises(ScanError, match="the masks of this answer are gone; ask again"):
            read(SHAPE)
    (tmp_path / "a5" / "answer.json").write_text("{}")
    with pytest.raises(ScanError, match=r"answer\.json: .*; move its folder away and ask again"):
        read_answer(tmp_path / "a5")


def test_dicom_is_a_case_like_any_other(tmp_path):
    from pydicom import data

    folder = tmp_path / "series"
    folder.mkdir()
    bundled = Path(data.__file__).parent / "test_files" / "dicomdirtests" / "98892001" / "CT5N"
    for file in bundled.iterdir():
        shutil.copy(file, folder)
    (case,) = find_cases(folder, tmp_path / "o")
    assert case.info.dicom
    assert case.info.modality == "CT"
    assert case.digest == find_cases(folder, tmp_path / "o")[0].digest


def painted(path, flips=((100, 50), (900, 70))):
    """The case at a path, and the layers there once some voxels were painted."""
    (case,) = find_cases(path)
    place = Place(case, "anna", None)
    if flips:
        add = schema.AddLayer(kind="add_layer", name="liver")
        place.act(schema.ActionRequest(revision=place.work.revision, action=add))
        paint = schema.Paint(kind="paint", layer=place.work.layers[0].id, tool="brush", flips=list(flips))
        place.act(schema.ActionRequest(revision=place.work.revision, action=paint))
    place.log.close()
    return case, [(layer.name, layer.voxels) for layer in place.work.layers]


def test_strokes_on_one_scan_never_appear_on_another_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        (tmp_path / f"s{number}").mkdir()
        write_volume(tmp_path / f"s{number}" / "ct.nii.gz", number)
    assert painted(Path("s1/ct.nii.gz"))[1] == [("liver", 120)]
    case, layers = painted(Path("s2/ct.nii.gz"), flips=())
    assert layers == []
    assert case.folder.name == f"ct-review-{case.digest[:8]}"
    assert any("holds the work on another scan of this name" in note for note in case.info.notes)
    assert painted(Path("s1/ct.nii.gz"), flips=())[1] == [("liver", 120)]
    (tmp_path / "s2" / "ct.nii.gz").replace(tmp_path / "s1" / "ct.nii.gz")  # and by another file under its very path
    assert painted(Path("s1/ct.nii.gz"), flips=())[1] == []
