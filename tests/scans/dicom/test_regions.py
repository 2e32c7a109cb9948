"""Contours and segments out and in again: the same voxels; and what strangers send, in one line."""

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.sequence import Sequence
from pydicom.uid import UID
from tests.dicom_series import AXIAL, SAGITTAL, answer_here, oblique, write_enhanced, write_series

from delineate.errors import ScanError
from delineate.scans.dicom import objects, regions, series, unpacking
from delineate.scans.dicom.regions import holds_regions, read_regions
from delineate.scans.dicom.rtstruct import write_rtstruct
from delineate.scans.dicom.seg import write_seg
from delineate.scans.dicom.series import read_series
from delineate.scans.scan import Scan
from delineate.scans.writing import write_labels


@pytest.fixture(autouse=True)
def here(monkeypatch, request):
    """Jobs run in this process, which is quicker."""
    if "child" not in request.node.name:
        for module in (series, objects, regions):
            monkeypatch.setattr(module, "ask_child", answer_here)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An oblique series, its scan, and masks: one with holes and specks, one on two slices; both as contours and SEG."""
    folder = tmp_path_factory.mktemp("regions")
    voxels = np.random.default_rng(0).integers(0, 2000, (5, 14, 16)).astype(np.int16)
    write_series(folder / "s", voxels, directions=oblique())
    with pytest.MonkeyPatch.context() as patched:
        for module in (series, objects):
            patched.setattr(module, "ask_child", answer_here)
        scan = read_series(folder / "s")
        ring = np.zeros(scan.shape, bool)
        ring[1:4, 2:12, 3:14], ring[2, 5:8, 6:9] = True, False
        ring[3] = np.random.default_rng(1).random(ring[3].shape) < 0.4
        small = np.zeros(scan.shape, bool)
        small[1:3, 0, 0] = True
        masks = {"left kidney": ring, "肝臓 2": small}
        options = {"algorithm": "delineate abc", "concepts": {"肝臓 2": "liver"}}
        write_rtstruct(folder / "rt.dcm", masks, scan, **options)
        write_seg(folder / "seg.dcm", masks, scan, **options)
    return folder, scan, masks


def same(path, scan, masks):
    read = read_regions(path, scan)
    assert [one.name for one in read.regions] == list(masks)
    for one, mask in zip(read.regions, masks.values(), strict=True):
        assert np.array_equal(one.mask(), mask), one.name
    return read


@pytest.mark.parametrize("name", ["rt", "seg"])
def test_what_was_written_is_read_again_voxel_by_voxel(world, name):
    folder, scan, masks = world
    assert holds_regions(folder / f"{name}.dcm")
    read = same(folder / f"{name}.dcm", scan, masks)
    assert read.notes == ()
    assert [one.code[2] for one in read.regions] == ["Kidney", "Liver"]


def test_the_child_reads_it_too(world):
    same(world[0] / "rt.dcm", *world[1:])


@pytest.mark.parametrize("kind", ["labelmap", "fractional"])
@pytest.mark.parametrize("compress", [True, False])
def test_a_seg_in_runs_holds_the_same(tmp_path, world, kind, compress):
    _, scan, masks = world
    apart = {"left kidney": masks["left kidney"], "liver": masks["肝臓 2"] & ~masks["left kidney"]}
    path = write_seg(tmp_path / "s.dcm", apart, scan, kind=kind, compress=compress, algorithm="t")
    same(path, scan, apart)
    told = pydicom.dcmread(path)
    assert told.SegmentationType == kind.upper()
    assert ("RLE" in told.file_meta.TransferSyntaxUID.name) == compress


def test_a_label_map_has_one_number_a_pixel(tmp_path, world):
    _, scan, masks = world
    with pytest.raises(ScanError, match=r"may not overlap, liver and spleen do; write kind='binary'"):
        write_seg(
            tmp_path / "s.dcm",
            dict.fromkeys(("liver", "spleen"), masks["left kidney"]),
            scan,
            kind="labelmap",
            algorithm="t",
        )


def test_simpleitk_reads_the_same_frames(tmp_path, world):
    """Bits and probabilities; label maps are newer than what it knows, and spacing it leaves at 1."""
    _, scan, masks = world
    path = write_seg(tmp_path / "s.dcm", {"liver": ~masks["left kidney"]}, scan, kind="fractional", algorithm="t")
    heights = [
        f.PlanePositionSequence[0].ImagePositionPatient[2]
        for f in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    ]
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[np.argsort(heights)]
    assert np.array_equal(frames > 0, ~masks["left kidney"])


@pytest.mark.parametrize("turned", [False, True], ids=["as it was", "turned"])
def test_on_a_nifti_of_the_same_series_it_lies_in_the_same_place(tmp_path, world, turned):
    folder, scan, masks = world
    voxels, affine = scan.voxels, scan.affine
    if turned:  # as converters do
        voxels, affine = voxels.transpose(2, 1, 0)[:, ::-1], affine[:, [2, 1, 0, 3]].copy()
        affine[:, 3] += affine[:, 1] * (voxels.shape[1] - 1)
        affine[:, 1] *= -1
    other = Scan(voxels, affine)
    for name in ("rt", "seg"):
        read = read_regions(folder / f"{name}.dcm", other)
        assert "the frame of reference is not known on both sides" in read.notes[0]
        for one, mask in zip(read.regions, masks.values(), strict=True):
            assert np.array_equal(one.mask(), mask.transpose(2, 1, 0)[:, ::-1] if turned else mask)


def test_contours_of_a_tilted_series_lie_on_its_own_images_and_come_back_whole(tmp_path):
    stored = np.random.default_rng(0).integers(0, 99, (6, 20, 24)).astype(np.int16)
    paths = write_series(tmp_path / "s", stored, shear=(0.17, -0.53))
    scan = read_series(tmp_path / "s")
    mask = np.zeros(scan.shape, bool)
    mask[1:5, 6:16, 6:15] = True
    same(write_rtstruct(tmp_path / "rt.dcm", {"liver": mask}, scan, algorithm="t"), scan, {"liver": mask})
    told = pydicom.dcmread(tmp_path / "rt.dcm")
    for contour in told.ROIContourSequence[0].ContourSequence:
        used = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        image = next(one for one in map(pydicom.dcmread, paths) if one.SOPInstanceUID == used)
        heights = np.array(contour.ContourData, float).reshape(-1, 3)[:, 2]
        np.testing.assert_allclose(heights, image.ImagePositionPatient[2], atol=1e-4)
    (back,) = read_regions(write_seg(tmp_path / "seg.dcm", {"liver": mask}, scan, algorithm="t"), scan).regions
    assert 2 * (back.mask() & mask).sum() / (back.mask().sum() + mask.sum()) > 0.93  # a border of half a voxel


def test_contours_name_the_frame_of_an_enhanced_object(tmp_path):
    voxels, order = np.zeros((4, 9, 9), np.int16), [2, 0, 3, 1]
    scan = read_series(write_enhanced(tmp_path / "e.dcm", voxels, order=order))
    mask = np.zeros(scan.shape, bool)
    mask[2, 3:6, 3:6] = True
    same(write_rtstruct(tmp_path / "rt.dcm", {"liver": mask}, scan, algorithm="t"), scan, {"liver": mask})
    (contour,) = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == order.index(2) + 1


def test_what_a_structure_set_says_of_itself(world):
    folder, scan, _ = world
    told, source = pydicom.dcmread(folder / "rt.dcm"), pydicom.dcmread(scan.dicom.files[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert told[keyword].value == source[keyword].value
    assert (told.Modality, told.ApprovalStatus) == ("RTSTRUCT", "UNAPPROVED")
    assert "not for diagnosis" in told.StructureSetDescription
    assert [list(one.ROIDisplayColor) for one in told.ROIContourSequence] == [[0, 158, 115], [0, 114, 178]]
    first = told.RTROIObservationsSequence[0]
    assert (first.RTROIInterpretedType, first.RTROIIdentificationCodeSequence[0].CodeMeaning) == ("ORGAN", "Kidney")
    referenced = told.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(referenced.ContourImageSequence) == len(scan.dicom.files)
    assert {c.ContourGeometricType for r in told.ROIContourSequence for c in r.ContourSequence} == {"CLOSED_PLANAR"}


def test_colours_of_segments_are_those_of_labels(world):
    import highdicom

    from delineate.prompts.colours import rgb_of

    told = pydicom.dcmread(world[0] / "seg.dcm")
    wanted = [list(highdicom.color.CIELabColor.from_rgb(*rgb_of(name)).value) for name in ("left kidney", "liver")]
    assert [list(one.RecommendedDisplayCIELabValue) for one in told.SegmentSequence] == wanted


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({}, "at least one segment"),
        ({"liver": np.ones((5, 14, 16), np.uint8)}, "must be bool, got uint8"),
        ({"liver": np.zeros((5, 14, 16), bool)}, "liver has none"),
        ({"liver": np.ones((5, 14), bool)}, "the scan's shape"),
    ],
)
def test_contours_that_cannot_be_written_are_refused(tmp_path, world, masks, words):
    with pytest.raises(ScanError, match=words):
        write_rtstruct(tmp_path / "o.dcm", masks, world[1], algorithm="t")
    assert not (tmp_path / "o.dcm").exists()


def test_contours_need_a_place_in_the_patient(tmp_path, world):
    from dataclasses import replace

    flat = replace(world[1], dicom=replace(world[1].dicom, placed=False))
    with pytest.raises(ScanError, match="contours lie in the patient"):
        write_rtstruct(tmp_path / "o.dcm", {"liver": np.ones(flat.shape, bool)}, flat, algorithm="t")
    with pytest.raises(ScanError, match="RT Structure Set refers to DICOM images"):
        write_rtstruct(tmp_path / "o.dcm", {}, replace(flat, dicom=None), algorithm="t")


def test_contours_that_do_not_read_back_are_not_kept(tmp_path, world, monkeypatch):
    from delineate.scans.dicom import structures

    monkeypatch.setattr(structures, "filled", lambda polygons, size: np.zeros(size, bool))
    with pytest.raises(ScanError, match="do not read back the same"):
        write_rtstruct(tmp_path / "o.dcm", world[2], world[1], algorithm="t")
    assert list(tmp_path.iterdir()) == []


# ---- strangers


def changed(world, tmp_path, change, name="rt"):
    """A copy of a file of the world with something changed."""
    data = pydicom.dcmread(world[0] / f"{name}.dcm")
    change(data)
    data.save_as(tmp_path / "odd.dcm")
    return tmp_path / "odd.dcm"


def redraw(contour, scan, voxels):
    """Give a contour other points, which are counted in voxels."""
    points = in_lps(scan, np.asarray(voxels, float))
    contour.ContourData, contour.NumberOfContourPoints = [f"{v:.4f}" for v in points.ravel()], len(points)


def first(data):
    return data.ROIContourSequence[0].ContourSequence[0]


def refusal(path, scan, *words):
    with pytest.raises(ScanError) as caught:
        read_regions(path, scan)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    for word in words:
        assert word in text, text


def test_separate_contours_in_one_another_are_holes_too(tmp_path, world):
    def change(data):
        square = np.array([[-1.5, -1.5], [-1.5, 8.5], [8.5, 8.5], [8.5, -1.5]])
        for n, (contour, side) in enumerate(zip(data.ROIContourSequence[1].ContourSequence, (1.0, 0.3), strict=True)):
            points = np.c_[np.full(4, 2), square * side + 4]
            redraw(contour, scan, points)
            contour.ContourGeometricType = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")[n]

    _, scan, _ = world
    mask = read_regions(changed(world, tmp_path, change), scan).regions[1].mask()
    assert mask[2].sum() == mask.sum() == 10 * 10 - 3 * 3  # from 3 to 12; without 4 to 6


def in_lps(scan, voxels):
    return (np.c_[voxels, np.ones(len(voxels))] @ scan.affine.T)[:, :3] * [-1, -1, 1]


@pytest.mark.parametrize("value", ["nan", "inf", "1e9", "-1e300"])
def test_a_coordinate_that_is_none_is_refused(tmp_path, world, value):
    def change(data):
        with pydicom.config.disable_value_validation():
            first(data).ContourData = [value, *list(first(data).ContourData)[1:]]

    refusal(changed(world, tmp_path, change), world[1], "a contour must be points of three numbers", "left kidney")


def test_numbers_that_are_no_points_are_refused(tmp_path, world):
    refusal(
        changed(world, tmp_path, lambda d: setattr(first(d), "ContourData", [1, 2, 3, 4])), world[1], "three numbers"
    )


def test_names_are_one_line_each_and_no_two_alike(tmp_path, world):
    def change(data):
        for one in data.StructureSetROISequence:
            one.ROIName = "<script>x</script>\u202e\x1b[31m"

    names = [one.name for one in read_regions(changed(world, tmp_path, change), world[1]).regions]
    assert names[1] == f"{names[0]} 2"
    assert all(name.isprintable() and "<script>x</script>" in name for name in names)


def test_a_region_without_a_name_gets_one(tmp_path, world):
    path = changed(world, tmp_path, lambda data: data.pop("StructureSetROISequence"))
    assert [one.name for one in read_regions(path, world[1]).regions] == ["region 1", "region 2"]


def test_points_and_open_contours_are_left_out_and_told(tmp_path, world):
    def change(data):
        first(data).ContourGeometricType = "POINT"
        data.ROIContourSequence[1].ContourSequence = Sequence()

    read = read_regions(changed(world, tmp_path, change), world[1])
    assert "left out: 1 x contours POINT" in read.notes
    assert "left out, for nothing of them lies on the scan: 肝臓 2" in read.notes


def test_contours_across_the_slices_are_refused(tmp_path, world):
    def change(data):
        redraw(first(data), world[1], np.array([[0, 1, 1], [4, 5, 9], [2, 9, 3]]))

    refusal(changed(world, tmp_path, change), world[1], "must lie in the slices", "read it on the series")


def test_contours_beside_the_scan_and_between_its_slices_are_told(tmp_path, world):
    def change(data):
        (one, other) = data.ROIContourSequence[1].ContourSequence
        triangle = np.array([[0, 1, 1], [0, 5, 9], [0, 9, 3]])
        redraw(one, world[1], triangle + np.array([50, 0, 0]))
        redraw(other, world[1], triangle + np.array([2.3, 0, 0]))

    notes = read_regions(changed(world, tmp_path, change), world[1]).notes
    assert "1 contours lie outside of the scan" in notes
    assert "contours lie up to 0.30 slices beside the scan's: the nearest are taken" in notes


@pytest.mark.parametrize("start", [0, 0.4])
def test_contours_on_thinner_slices_than_the_scan_s_are_those_of_the_nearest(tmp_path, start):
    """Two planes of one region in a slice are no hole in one another."""
    write_series(tmp_path / "s", np.zeros((6, 8, 8), np.int16))
    scan = read_series(tmp_path / "s")
    mask = np.zeros(scan.shape, bool)
    mask[:, 2:6, 2:6] = True
    mask[:, 3, 3] = False
    file = write_rtstruct(tmp_path / "rt.dcm", {"liver": mask}, scan, algorithm="t")
    affine = scan.affine @ np.diag([2.0, 1, 1, 1])
    affine[:3, 3] += start * scan.affine[:3, 0]
    read = read_regions(file, Scan(scan.voxels[::2], affine))
    assert np.array_equal(read.regions[0].mask(), mask[::2])
    assert any("drawn on thinner slices than the scan's" in note for note in read.notes)


def test_contours_on_every_second_slice_leave_gaps_that_are_told(tmp_path):
    write_series(tmp_path / "s", np.zeros((6, 8, 8), np.int16))
    scan = read_series(tmp_path / "s")
    mask = np.zeros(scan.shape, bool)
    mask[0:6:2, 2:5, 2:5] = True
    read = same(write_rtstruct(tmp_path / "rt.dcm", {"liver": mask}, scan, algorithm="t"), scan, {"liver": mask})
    assert read.notes == ("contours on some slices only, those between them stay empty: liver",)


@pytest.mark.parametrize("name", ["rt", "seg"])
def test_another_frame_of_reference_is_refused(tmp_path, world, name):
    def change(data):
        data.FrameOfReferenceUID = "1.2.3"
        if name == "rt":
            data.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3"

    refusal(changed(world, tmp_path, change, name), world[1], "another frame of reference")


def test_other_pixels_than_the_scan_has_are_refused(tmp_path, world):
    write_series(tmp_path / "other", np.zeros((5, 14, 16), np.int16), directions=oblique(), pixel_mm=(0.8, 0.9))
    refusal(world[0] / "seg.dcm", read_series(tmp_path / "other"), "0.8 x 0.7 mm or lie otherwise")
    write_series(tmp_path / "turned", np.zeros((5, 14, 16), np.int16), directions=SAGITTAL)
    refusal(world[0] / "rt.dcm", read_series(tmp_path / "turned"), "must lie in the slices")


def test_what_lies_elsewhere_altogether_is_refused(tmp_path, world):
    write_series(tmp_path / "far", np.zeros((5, 14, 16), np.int16), directions=oblique(), origin=(900, 900, 900))
    far = read_series(tmp_path / "far")
    for name in ("rt", "seg"):
        refusal(world[0] / f"{name}.dcm", far, "nothing is drawn on this scan")


def test_other_objects_and_other_files_are_refused(tmp_path, world):
    _, scan, masks = world
    refusal(scan.dicom.files[0], scan, "found CT")
    refusal(write_labels(tmp_path / "a.nii.gz", masks["left kidney"], scan), scan, "found no modality")
    refusal(tmp_path / "none.dcm", scan, "no such file")
    assert not holds_regions(scan.dicom.files[0])


def test_more_regions_or_contours_than_are_read(world, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_CONTOURS", 3)
    refusal(world[0] / "rt.dcm", world[1], "at most 3 contours are read")
    monkeypatch.setattr(unpacking, "MOST_REGIONS", 1)
    refusal(world[0] / "rt.dcm", world[1], "at most 1 regions are read")
    refusal(world[0] / "seg.dcm", world[1], "at most 1 segments are read")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: setattr(d, "Rows", 60_000), "cannot hold them"),
        (
            lambda d: (setattr(d, "Rows", 65_535), setattr(d, "Columns", 65_535), setattr(d, "NumberOfFrames", 10**6)),
            "more than is read",
        ),
        (lambda d: setattr(d, "BitsAllocated", 32), "frames of 1, 8 or 16 bits"),
        (lambda d: setattr(d, "PixelData", b"\0\0"), "cannot hold them"),
        (lambda d: d.PerFrameFunctionalGroupsSequence.pop(), "every frame must be described"),
        (lambda d: [f.pop("PlanePositionSequence") for f in d.PerFrameFunctionalGroupsSequence], "must have a place"),
    ],
)
def test_a_seg_that_is_a_trap_or_damaged(tmp_path, world, change, words):
    def harder(data):
        change(data)
        if words == "cannot hold them" and data.Rows < 100:
            data.Rows = data.Columns = 4000

    refusal(changed(world, tmp_path, harder, "seg"), world[1], words)


def refused_or_read(path, scan):
    """What is said of a file that cannot be read, "" of one that can; any other error is none of these."""
    try:
        read_regions(path, scan)
    except ScanError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("name", ["rt", "seg"])
def test_a_file_that_was_cut_short_is_never_taken_for_less(tmp_path, world, name, share):
    whole = (world[0] / f"{name}.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: int(len(whole) * share)])
    refusal(tmp_path / "cut.dcm", world[1])


def test_fewer_points_than_a_contour_says_are_refused(tmp_path, world):
    refusal(changed(world, tmp_path, lambda d: setattr(first(d), "NumberOfContourPoints", 99)), world[1], "has fewer")


@pytest.mark.parametrize("seed", range(4))
def test_bytes_that_changed_are_refused_or_read_as_something(tmp_path, world, seed):
    random = np.random.default_rng(seed)
    noise = np.frombuffer((world[0] / "rt.dcm").read_bytes(), np.uint8).copy()
    noise[random.integers(400, len(noise), 40)] = random.integers(0, 256, 40)
    (tmp_path / "noise.dcm").write_bytes(noise.tobytes())
    assert "\n" not in refused_or_read(tmp_path / "noise.dcm", world[1])


def test_sequences_in_one_another_without_end_are_refused(tmp_path, world):
    begin = b"\x08\x30\x10\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    (tmp_path / "deep.dcm").write_bytes((world[0] / "rt.dcm").read_bytes() + begin * 20_000)
    refusal(tmp_path / "deep.dcm", world[1], "damaged")


def test_deflated_files_are_refused(tmp_path, world):
    def change(data):
        data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")

    refusal(changed(world, tmp_path, change), world[1], "deflated DICOM is not read")


def test_axial_is_the_plain_case(tmp_path):
    write_series(tmp_path / "s", np.zeros((3, 6, 7), np.int16), directions=AXIAL)
    scan = read_series(tmp_path / "s")
    mask = np.zeros(scan.shape, bool)
    mask[1, 2:4, 3:6] = True
    told = pydicom.dcmread(write_rtstruct(tmp_path / "rt.dcm", {"liver": mask}, scan, algorithm="t"))
    (contour,) = told.ROIContourSequence[0].ContourSequence
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    np.testing.assert_allclose(points.min(axis=0), [-30 + 2.5 * 0.7, -20 + 1.5 * 0.8, 102.5], atol=1e-4)
    np.testing.assert_allclose(points.max(axis=0), [-30 + 5.5 * 0.7, -20 + 3.5 * 0.8, 102.5], atol=1e-4)
