import highdicom
import numpy as np
import pydicom
import pytest
from tests.dicom_series import (
    AXIAL,
    CORONAL,
    FEET_UP,
    SAGITTAL,
    answer_here,
    bundled,
    dataset,
    in_world,
    oblique,
    set_pixels,
    write_enhanced,
    write_series,
)

from delineate import __version__
from delineate.errors import ScanError
from delineate.scans.dicom import objects as dicom_objects
from delineate.scans.dicom import series as dicom
from delineate.scans.dicom.seg import read_seg, write_seg
from delineate.scans.dicom.series import read_series
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.scans.writing import write_labels

PLANES = {"axial": AXIAL, "coronal": CORONAL, "sagittal": SAGITTAL, "feet up": FEET_UP, "oblique": oblique()}
LPS = np.diag([-1.0, -1, 1])


@pytest.fixture(autouse=True)
def here(monkeypatch, request):
    """Jobs run in this process, which is quicker."""
    if request.node.name != "test_the_child_writes_it_too":
        monkeypatch.setattr(dicom, "ask_child", answer_here)
        monkeypatch.setattr(dicom_objects, "ask_child", answer_here)


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(0, 2000, (6, 12, 14)).astype(np.int16)


@pytest.fixture
def scan(tmp_path, voxels):
    write_series(tmp_path / "series", voxels, directions=oblique())
    return read_series(tmp_path / "series")


def some_mask(shape, seed=1):
    return np.random.default_rng(seed).random(shape) < 0.3


def sorted_rows(points):
    rounded = np.round(points, 5) + 0.0
    return rounded[np.lexsort(rounded.T)]


def place(item):
    return tuple(round(float(v), 9) for v in item.ImagePositionPatient)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("plane", PLANES)
def test_every_voxel_lies_where_it_lay(tmp_path, voxels, plane, modality):
    """By highdicom's own geometry, in a shuffled folder: to 1e-4 mm, which is the rounding of DICOM's decimals."""
    names = [f"{n}" for n in np.random.default_rng(3).permutation(6)]
    write_series(tmp_path / "s", voxels, directions=PLANES[plane], modality=modality, names=names)
    scan = read_series(tmp_path / "s")
    masks = {"liver": some_mask(scan.shape), "spleen": some_mask(scan.shape, 2)}
    path = write_seg(tmp_path / "out.dcm", masks, scan, algorithm="test")
    volume = highdicom.seg.segread(path).get_volume(combine_segments=False)
    for number, (name, mask) in enumerate(masks.items()):
        expected = sorted_rows(in_world(scan.affine, mask))
        by_highdicom = in_world(volume.affine, volume.array[..., number] > 0) @ LPS
        np.testing.assert_allclose(sorted_rows(by_highdicom), expected, atol=1e-4)
        (own,) = (segment for segment in read_seg(path) if segment.name == name)
        np.testing.assert_allclose(sorted_rows(own.points_mm()), expected, atol=1e-4)


def test_a_tilted_series_gets_its_mask_on_its_own_frames(tmp_path):
    """A ball in the patient: drawn on the straight grid, written, read back on the tilted frames; still that ball."""
    stored = np.random.default_rng(0).integers(0, 99, (16, 40, 44)).astype(np.int16)
    paths = write_series(tmp_path / "s", stored, step_mm=1.5, shear=(0.17, -0.53), origin=(0, 0, 0))
    scan = read_series(tmp_path / "s")
    assert scan.dicom is not None
    assert scan.dicom.shifts is not None
    grid = in_world(scan.affine, np.ones(scan.shape, bool))
    centre, radius = np.array([-16.0, -13.0, 11.0]), 8.0
    ball = (np.linalg.norm(grid - centre, axis=1) < radius).reshape(scan.shape)
    path = write_seg(tmp_path / "out.dcm", {"liver": ball}, scan, algorithm="test")
    (segment,) = read_seg(path)
    points = segment.points_mm()
    voxel = 0.8 * 0.7 * 1.5
    assert abs(len(points) * voxel / (4 / 3 * np.pi * radius**3) - 1) < 0.03
    np.testing.assert_allclose(points.mean(axis=0), centre, atol=0.15)  # a fifth of a pixel
    assert np.linalg.norm(points - centre, axis=1).max() < radius + 0.6
    seg = pydicom.dcmread(path)
    theirs = {place(pydicom.dcmread(p)) for p in paths}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        assert place(frame.PlanePositionSequence[0]) in theirs
    np.testing.assert_allclose(scan.affine[:2, 0], 0, atol=1e-9)  # the grid is straight, the frames are not
    assert np.linalg.norm(segment.affines[-1][:2, 3] - segment.affines[0][:2, 3]) > 3


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("shear", [(0.0, 0.0), (0.2, -0.4)], ids=["straight", "tilted"])
def test_frames_of_an_enhanced_object_keep_their_order(tmp_path, voxels, modality, shear):
    order = [3, 0, 5, 1, 4, 2]
    write_enhanced(tmp_path / "e.dcm", voxels, order=order, modality=modality, directions=oblique(), shear=shear)
    scan = read_series(tmp_path / "e.dcm")
    mask = np.zeros(scan.shape, bool)
    mask[1, 3:7, 4:8] = mask[4] = True
    path = write_seg(tmp_path / "out.dcm", {"liver": mask}, scan, algorithm="test")
    (segment,) = read_seg(path)
    assert len(segment.values) == 2  # empty frames are left out
    expected = in_world(scan.affine, mask)
    inside = segment.points_mm()
    assert abs(inside[:, 2].mean() - expected[:, 2].mean()) < 0.5
    if shear == (0.0, 0.0):
        np.testing.assert_allclose(sorted_rows(inside), sorted_rows(expected), atol=1e-4)
    used = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for frame in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    ]
    assert sorted(used) == sorted([order.index(1) + 1, order.index(4) + 1])


def test_slices_that_fill_a_gap_have_no_frame(tmp_path, voxels):
    write_series(tmp_path / "s", voxels, leave_out=(2,))
    scan = read_series(tmp_path / "s", fill_gaps=True)
    (segment,) = read_seg(write_seg(tmp_path / "o.dcm", {"liver": np.ones(scan.shape, bool)}, scan, algorithm="test"))
    assert len(segment.values) == 5
    np.testing.assert_allclose(segment.affines[:, 2, 3], 100 + 2.5 * np.array([0, 1, 3, 4, 5]))


def test_probabilities_are_stored_in_steps_of_a_255th(tmp_path, scan):
    values = np.random.default_rng(0).random(scan.shape).astype(np.float32)
    path = write_seg(
        tmp_path / "o.dcm", {"liver": values, "spleen": values**2}, scan, kind="fractional", algorithm="test"
    )
    seg = pydicom.dcmread(path)
    assert (seg.SegmentationType, seg.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    for segment, expected in zip(read_seg(path), (values, values**2), strict=True):
        assert np.abs(segment.values - expected).max() <= 1 / 510 + 1e-6
    ones = write_seg(tmp_path / "m.dcm", {"liver": values > 0.5}, scan, kind="fractional", algorithm="test")
    np.testing.assert_array_equal(read_seg(ones)[0].values, (values > 0.5).astype(np.float32))


def test_overlapping_segments_both_stay(tmp_path, scan):
    whole, part = np.ones(scan.shape, bool), some_mask(scan.shape)
    masks = {
        segment.name: segment.values
        for segment in read_seg(
            write_seg(tmp_path / "o.dcm", {"liver": whole, "liver tumour": part}, scan, algorithm="t")
        )
    }
    assert masks["liver"].all()
    np.testing.assert_array_equal(masks["liver tumour"], part)


def test_what_the_object_says_of_itself(tmp_path, scan):
    masks = {
        "left kidney": some_mask(scan.shape),
        "left kidney 2": some_mask(scan.shape, 5),
        "odd thing": some_mask(scan.shape, 3),
    }
    path = write_seg(
        tmp_path / "o.dcm",
        masks,
        scan,
        algorithm="house model",
        by="semiautomatic",
        concepts={"left kidney 2": "left kidney"},
    )
    raw = path.read_bytes()
    assert raw[:128] == b"\0" * 128
    assert raw[128:132] == b"DICM"
    seg, source = pydicom.dcmread(path), pydicom.dcmread(scan.dicom.files[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[keyword].value == source[keyword].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert (seg.Modality, seg.SegmentationType, seg.SoftwareVersions) == ("SEG", "BINARY", __version__)
    assert seg.SeriesDescription == "Segmentation: left kidney, left kidney 2, odd thing"
    first, second, third = seg.SegmentSequence
    for coded in (first, second):
        kind = coded.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
        assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert second.SegmentLabel == "left kidney 2"
    private = third.SegmentedPropertyTypeCodeSequence[0]
    assert (private.CodingSchemeDesignator, private.CodeMeaning) == ("99DELINEATE", "odd thing")
    assert first.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert first.SegmentAlgorithmName == "house model"
    assert first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == __version__
    instances = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {i.ReferencedSOPInstanceUID for i in instances} == {
        pydicom.dcmread(f).SOPInstanceUID for f in scan.dicom.files
    }


def test_empty_masks_are_refused_unless_they_are_wanted(tmp_path, scan):
    masks = {"liver": some_mask(scan.shape), "spleen": np.zeros(scan.shape, bool)}
    with pytest.raises(ScanError, match="spleen has none"):
        write_seg(tmp_path / "o.dcm", masks, scan, algorithm="t")
    assert not (tmp_path / "o.dcm").exists()
    back = read_seg(write_seg(tmp_path / "o.dcm", masks, scan, algorithm="t", keep_empty=True))
    assert [segment.values.any() for segment in back] == [True, False]
    nothing = {"spleen": np.zeros(scan.shape, bool)}
    (alone,) = read_seg(write_seg(tmp_path / "n.dcm", nothing, scan, algorithm="t", keep_empty=True))
    assert not alone.values.any()


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({}, "at least one segment"),
        ({"liver": np.ones((6, 12, 13), bool)}, "the scan's shape"),
        ({"liver": np.ones((6, 12, 14), np.int64)}, "must be bool, got int64"),
        ({"liver": np.ones((6, 12, 14), np.float32)}, "must be bool, got float32"),
        ({" ": np.ones((6, 12, 14), bool)}, "a name in plain characters"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, scan, masks, words):
    with pytest.raises(ScanError, match=words) as caught:
        write_seg(tmp_path / "o.dcm", masks, scan, algorithm="t")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o.dcm").exists()


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.2])
def test_probabilities_outside_their_range_are_refused(tmp_path, scan, value):
    with pytest.raises(ScanError, match=r"\[0, 1\]"):
        write_seg(tmp_path / "o.dcm", {"liver": np.full(scan.shape, value)}, scan, kind="fractional", algorithm="t")


def test_sources_without_what_a_seg_needs(tmp_path, voxels):
    write_series(tmp_path / "s", voxels, FrameOfReferenceUID=None)
    with pytest.raises(ScanError, match="needs FrameOfReferenceUID of its source"):
        write_seg(
            tmp_path / "o.dcm", {"liver": np.ones(voxels.shape, bool)}, read_series(tmp_path / "s"), algorithm="t"
        )
    with pytest.raises(ScanError, match="write NIfTI instead"):
        write_seg(
            tmp_path / "o.dcm", {"liver": np.ones((2, 2, 2), bool)}, Scan(np.ones((2, 2, 2)), np.eye(4)), algorithm="t"
        )


def test_a_source_without_patient_data_is_enough(tmp_path, voxels):
    gone = dict.fromkeys(("PatientID", "PatientName", "PatientBirthDate", "StudyDate", "StudyID", "AccessionNumber"))
    write_series(tmp_path / "s", voxels, **gone)
    assert (
        len(
            read_seg(write_seg(tmp_path / "o.dcm", {"liver": voxels > 900}, read_series(tmp_path / "s"), algorithm="t"))
        )
        == 1
    )


def test_names_in_any_script(tmp_path, voxels):
    write_series(tmp_path / "s", voxels, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    scan = read_series(tmp_path / "s")
    path = write_seg(tmp_path / "o.dcm", {"肝臓": voxels > 900, "ein Flügel": voxels > 9}, scan, algorithm="t")
    assert [segment.name for segment in read_seg(path)] == ["肝臓", "ein Flügel"]
    assert pydicom.dcmread(path).PatientName == "Müller^Jörg"


def test_a_radiograph_with_a_frame_of_reference(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (10, 12)).astype(np.uint8)
    set_pixels(dataset("CR", PixelSpacing=[0.2, 0.1]), grey).save_as(tmp_path / "cr.dcm")
    scan = read_scan(tmp_path / "cr.dcm")
    path = write_seg(tmp_path / "o.dcm", {"lungs": scan.voxels > 128}, scan, algorithm="t")
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, (grey > 128).astype(np.uint8))


@pytest.mark.parametrize("name", ["dicomdirtests/98892001/CT5N", "CT_small.dcm", "MR_small.dcm"])
def test_real_files(tmp_path, name):
    scan = read_scan(bundled(name))
    mask = scan.voxels > np.median(scan.voxels)
    (segment,) = read_seg(write_seg(tmp_path / "o.dcm", {"liver": mask}, scan, algorithm="t"))
    np.testing.assert_allclose(sorted_rows(segment.points_mm()), sorted_rows(in_world(scan.affine, mask)), atol=1e-3)
    nifti = write_labels(tmp_path / "o.nii.gz", mask, scan)  # and where NIfTI says it is
    np.testing.assert_allclose(read_scan(nifti).affine, scan.affine, atol=1e-3)


def test_a_file_that_does_not_read_back_leaves_the_old_one(tmp_path, scan, monkeypatch):
    from delineate.scans.dicom import segments as dicom_segments

    path = write_seg(tmp_path / "o.dcm", {"liver": some_mask(scan.shape)}, scan, algorithm="t")
    before = path.read_bytes()

    class Lying:
        SOPInstanceUID = "1.2"

        def get_pixels_by_source_instance(self, *args, **kwargs):
            return np.zeros((6, 12, 14, 1), np.uint8)

    monkeypatch.setattr(dicom_segments.highdicom.seg, "segread", lambda path: Lying())
    with pytest.raises(ScanError, match="does not read back the same"):
        write_seg(path, {"liver": some_mask(scan.shape, 9)}, scan, algorithm="t")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.dcm", "series"]


def test_images_that_went_away_are_named(tmp_path, scan):
    scan.dicom.files[2].unlink()
    with pytest.raises(ScanError, match=r"002\.dcm.*put the images back"):
        write_seg(tmp_path / "o.dcm", {"liver": some_mask(scan.shape)}, scan, algorithm="t")


def test_the_child_writes_it_too(tmp_path, voxels):
    write_series(tmp_path / "s", voxels)
    scan = read_series(tmp_path / "s")
    (segment,) = read_seg(write_seg(tmp_path / "o.dcm", {"liver": scan.voxels > 0}, scan, algorithm="t"))
    np.testing.assert_allclose(
        sorted_rows(segment.points_mm()), sorted_rows(in_world(scan.affine, scan.voxels > 0)), atol=1e-4
    )
