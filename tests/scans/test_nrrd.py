"""NRRD headers of all kinds, written by hand: read as the format has it, or refused in one line."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk
from tests.scans.test_scan import SHAPE, refusal
from tests.scans.test_unfolding import frugal

from delineate.scans.reading import read_labels, read_scan

VOXELS = np.arange(120, dtype=np.int16).reshape(SHAPE)
FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 5 6",
    "space directions": "(1,0,0) (0,2,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(5,6,7)",
}


def nrrd(path, voxels=VOXELS, added="", end="\n", magic="NRRD0004", **changed):
    """An NRRD file; fields are given with _ for blanks, and None leaves one out."""
    fields = FIELDS | {name.replace("_", " "): value for name, value in changed.items()}
    lines = [magic, "# a comment", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    data = voxels if isinstance(voxels, bytes) else voxels.tobytes(order="F")
    path.write_bytes((end.join(lines) + end + added + end).encode() + data)
    return path


def test_what_the_format_allows(tmp_path):
    plain = read_scan(nrrd(tmp_path / "a.nrrd"))
    assert np.array_equal(plain.voxels, VOXELS)
    assert np.array_equal(plain.affine, [[-1, 0, 0, -5], [0, -2, 0, -6], [0, 0, 3, 7], [0, 0, 0, 1]])
    for n, same in enumerate(
        (
            {"end": "\r\n"},
            {"magic": "NRRD0001", "added": "Who:=a person: and more\n"},
            {"voxels": VOXELS.astype(">i2"), "endian": "BIG"},
            {"voxels": gzip.compress(VOXELS.tobytes("F")), "encoding": "gz"},
            {
                "voxels": gzip.compress(VOXELS.tobytes("F")[:9]) + gzip.compress(VOXELS.tobytes("F")[9:]),
                "encoding": "gzip",
            },
            {"voxels": bytes(8) + VOXELS.tobytes("F"), "byte_skip": "8"},
            {"voxels": bytes(8) + VOXELS.tobytes("F"), "byteskip": "-1"},
            {"voxels": gzip.compress(bytes(8) + VOXELS.tobytes("F")), "encoding": "gzip", "byte_skip": "8"},
            {"space": "LPS", "type": "signed short int", "kinds": None},
            {"space": '"left-posterior-superior"', "space_units": '"mm" "mm" "mm"'},
        )
    ):
        read = read_scan(nrrd(tmp_path / f"{n}.nrrd", **same))
        assert np.array_equal(read.voxels, VOXELS), same
        assert np.array_equal(read.affine, plain.affine)
        assert read.notes == ()


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1)),
        ("RAS", (1, 1)),
        ("left-anterior-superior", (-1, 1)),
        ("LAS", (-1, 1)),
        ("Left-Posterior-Superior", (-1, -1)),
    ],
)
def test_spaces_are_turned_as_itk_turns_them(tmp_path, space, signs):
    path = nrrd(tmp_path / "a.nrrd", space=space, space_directions="(0,1,0) (2,0,0) (0,0,-3)")
    read = read_scan(path)
    x, y = signs
    assert np.array_equal(read.affine, [[0, 2 * x, 0, 5 * x], [y, 0, 0, 6 * y], [0, 0, -3, 7], [0, 0, 0, 1]])
    itk = sitk.ReadImage(str(path))
    there = np.diag([-1, -1, 1]) @ itk.TransformIndexToPhysicalPoint([3, 4, 5])
    assert np.allclose(read.affine[:3] @ [3, 4, 5, 1], there)


@pytest.mark.parametrize("space", [None, "scanner-xyz", "3D-right-handed", "right-posterior-superior"])
def test_a_space_that_does_not_tell_left_from_right_is_refused(tmp_path, space):
    path = nrrd(tmp_path / "a.nrrd", space=space)
    refusal(path, "must say where the voxels lie", f"space: {space.lower()}" if space else "no 'space'")
    read = read_scan(path, assume_spacing_mm=(1, 2, 5))
    assert read.spacing_mm == (1, 2, 5)
    assert "axes taken as R, A, S" in read.notes[0]
    spaced = nrrd(tmp_path / "s.nrrd", space=space, space_directions=None, space_origin=None, spacings="1 1 2")
    refusal(spaced, "no 'space directions'", read=read_labels)
    known = read_scan(nrrd(tmp_path / "b.nrrd"), assume_spacing_mm=(9, 9, 9))
    assert known.spacing_mm == (1, 2, 3)
    assert "not used" in known.notes[0]


def test_units_and_origins(tmp_path):
    read = read_scan(
        nrrd(tmp_path / "a.nrrd", space_units='"um" "um" "um"', space_directions="(1000,0,0) (0,2000,0) (0,0,3000)")
    )
    assert read.spacing_mm == pytest.approx((1, 2, 3))
    assert read.notes == ("the header counts in um: brought to mm, times 0.001",)
    assert np.allclose(read.affine[:3, 3], [-0.005, -0.006, 0.007])
    refusal(nrrd(tmp_path / "b.nrrd", space_units='"s" "s" "s"'), "lengths must be in mm")
    refusal(nrrd(tmp_path / "c.nrrd", space_units='"mm" "um" "mm"'), "one unit")
    assert "no 'space origin'" in read_scan(nrrd(tmp_path / "d.nrrd", space_origin=None)).notes[0]


# --- several volumes


@pytest.mark.parametrize("first", [False, True])
def test_volumes_along_the_first_axis_or_the_last(tmp_path, first):
    four = np.stack([VOXELS, VOXELS + 1000, VOXELS + 2000], 0 if first else -1)
    vectors = FIELDS["space directions"]
    fields = {
        "dimension": "4",
        "sizes": " ".join(map(str, four.shape)),
        "space_directions": f"none {vectors}" if first else f"{vectors} none",
        "kinds": "list domain domain domain" if first else "domain domain domain time",
    }
    path = nrrd(tmp_path / "a.nrrd", four, **fields)
    refusal(path, "found 3 volumes", "volume=0 to 2")
    refusal(path, "volume must be from 0 to 2", volume=3)
    for packed in (False, True):
        if packed:
            nrrd(path, gzip.compress(four.tobytes("F")), **fields, encoding="gzip")
        for index in range(3):
            read = read_scan(path, volume=index)
            assert np.array_equal(read.voxels, VOXELS + 1000 * index)
            assert read.notes == (f"volume {index} of 3",)
            assert read.spacing_mm == (1, 2, 3)


def test_one_volume_of_four_axes(tmp_path):
    fields = {"dimension": "4", "sizes": "1 4 5 6", "space_directions": f"none {FIELDS['space directions']}"}
    read = read_scan(nrrd(tmp_path / "a.nrrd", **fields, kinds="list domain domain domain"))
    assert np.array_equal(read.voxels, VOXELS)
    assert read.notes == ("4-D with one volume: read as 3-D",)
    times = {"space": "left-posterior-superior-time", "space_origin": "(5,6,7,0)", "kinds": None}
    directions = "(1,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,1)"
    read = read_scan(
        nrrd(
            tmp_path / "b.nrrd",
            np.stack([VOXELS, VOXELS], -1),
            dimension="4",
            sizes="4 5 6 2",
            space_directions=directions,
            **times,
        ),
        volume=1,
    )
    assert read.affine[:3, 3].tolist() == [-5, -6, 7]
    one = read_scan(
        nrrd(
            tmp_path / "c.nrrd",
            VOXELS[..., 0],
            dimension="2",
            sizes="4 5",
            space_directions="(1,0,0) (0,2,0)",
            kinds="domain domain",
        )
    )
    assert (one.shape, one.spacing_mm) == ((4, 5, 1), (1, 2, 1))
    assert one.notes == ("a 2-D NRRD read as one slice",)
    refusal(
        nrrd(
            tmp_path / "d.nrrd",
            dimension="5",
            sizes="2 2 1 5 6",
            space_directions=f"none none {FIELDS['space directions']}",
            kinds=None,
        ),
        "3-D or 4-D",
    )


# --- 3D Slicer's segmentations

SEGMENTS = "Segment0_ID:=Segment_1\nSegment0_LabelValue:=1\nSegment0_Layer:=0\nSegment1_ID:=Segment_2\nSegment1_LabelValue:=2\n"


def test_a_segmentation_of_one_layer_is_a_label_map_and_no_scan(tmp_path):
    labels = (VOXELS % 3).astype(np.uint8)
    path = nrrd(tmp_path / "a.seg.nrrd", labels, SEGMENTS + "Segment1_Layer:=0\n", type="unsigned char", endian=None)
    read = read_labels(path)
    assert np.array_equal(read.voxels, labels)
    assert read.spacing_mm == (1, 2, 3)
    refusal(path, "this holds segments", "name the scan")


def test_a_segmentation_of_several_layers_is_refused(tmp_path):
    path = nrrd(
        tmp_path / "a.seg.nrrd",
        np.zeros((2, *SHAPE), np.uint8),
        SEGMENTS + "Segment1_Layer:=1\n",
        type="uchar",
        dimension="4",
        sizes="2 4 5 6",
        space_directions=f"none {FIELDS['space directions']}",
        kinds="list domain domain domain",
    )
    refusal(path, "2 layers of segments that overlap", "labelmap", read=read_labels)


# --- what is refused


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"sizes": "4 -5 6"}, "at least 1"),
        ({"sizes": "4 0 6"}, "at least 1"),
        ({"sizes": "4 5"}, "'sizes' must be 3 whole numbers"),
        ({"sizes": "4 5 x"}, "'sizes' must be 3 whole numbers"),
        ({"sizes": "4 5 6e3"}, "'sizes' must be 3 whole numbers"),
        ({"sizes": None}, "must say 'sizes'"),
        ({"dimension": "0"}, "from 1 to 16"),
        ({"dimension": "99999999"}, "from 1 to 16"),
        ({"dimension": None}, "must say 'dimension'"),
        ({"type": "block"}, "plain integers or floats"),
        ({"type": None}, "must say 'type'"),
        ({"encoding": "bzip2"}, "raw or gzip"),
        ({"encoding": "ascii"}, "raw or gzip"),
        ({"encoding": None}, "must say 'encoding'"),
        ({"endian": None}, "'endian' must be little or big"),
        ({"endian": "middle"}, "'endian' must be little or big"),
        ({"space_directions": "(1,0,0) (0,nan,0) (0,0,3)"}, "finite numbers"),
        ({"space_directions": "(1,0,0) (0,inf,0) (0,0,3)"}, "finite numbers"),
        ({"space_directions": "(1,0,0) (0,1e300,0) (0,0,3)"}, "finite numbers"),
        ({"space_directions": "(1,0,0) (0,0,0) (0,0,3)"}, "no zero column"),
        ({"space_directions": "(1,0,0) (1,0,0) (0,0,3)"}, "degrees of shear"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,1,3)"}, "degrees of shear"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,0,1e6)"}, "cannot be"),
        ({"space_directions": "(1,0,0) (0,2,0)"}, "must be 3 vectors"),
        ({"space_directions": "(1,0) (0,2) (0,3)"}, "3 finite numbers"),
        ({"space_directions": "none none none"}, "three axes in space"),
        ({"space_origin": "(5,6)"}, "3 finite numbers"),
        ({"space_origin": "(5,6,nan)"}, "finite numbers"),
        ({"kinds": "domain domain"}, "'kinds' must name 3 axes"),
        ({"line_skip": "3"}, "'line skip' must be 0"),
        ({"byte_skip": "-7"}, "'byte skip' must be 0 or more"),
        ({"byte_skip": "100000000000"}, "cut short or its header is wrong"),
        ({"byte_skip": "9" * 30}, "whole numbers"),
        ({"data_file": "/etc/passwd"}, "one file beside it"),
        ({"data_file": "../a.raw"}, "one file beside it"),
        ({"data_file": "..\\a.raw"}, "one file beside it"),
        ({"data_file": "c:a.raw"}, "one file beside it"),
        ({"data_file": "LIST"}, "list of files"),
        ({"data_file": "a%03d.raw 1 9 1"}, "list of files"),
        ({"data_file": "missing.raw"}, "is not beside it"),
    ],
    ids=str,
)
def test_headers_that_cannot_be(tmp_path, changed, wanted):
    refusal(nrrd(tmp_path / "a.nrrd", **changed), wanted)


@pytest.mark.parametrize("kind", ["vector", "RGB-color", "3-vector", "complex", "covariant-vector", "3D-matrix"])
def test_several_numbers_a_voxel(tmp_path, kind):
    fields = {"dimension": "4", "sizes": "3 4 5 6", "space_directions": f"none {FIELDS['space directions']}"}
    path = nrrd(tmp_path / "a.nrrd", np.zeros((3, *SHAPE), np.int16), **fields, kinds=f"{kind} domain domain domain")
    refusal(path, "a voxel must be one number, found 3", kind.lower(), "save one channel")


@pytest.mark.parametrize(
    "content",
    [
        b"NRRD0009\n",
        b"NRRD",
        b"nope" * 100,
        b"NRRD0004\nno field here\n\n",
        b"NRRD0004\ntype: short\ntype: float\n\n",
        b"NRRD0004\n",
    ],
    ids=str,
)
def test_no_header(tmp_path, content):
    path = tmp_path / "a.nrrd"
    path.write_bytes(content)
    refusal(path)


def test_a_header_without_end_is_not_read_to_it(tmp_path):
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"NRRD0004\n" + b"#" * (64 << 20))
    with frugal():
        refusal(path, "must end within 1048576 bytes")


def test_a_few_hundred_bytes_that_claim_270_billion_voxels(tmp_path):
    for encoding in ("raw", "gzip"):
        path = nrrd(tmp_path / f"{encoding}.nrrd", b"", sizes="30000 30000 300", encoding=encoding)
        with frugal():
            refusal(path, "at most 1000000000 voxels")
            refusal(path, "cut short or its header is wrong", max_voxels=10**15)
    four = {"dimension": "4", "kinds": None, "space_directions": f"{FIELDS['space directions']} none"}
    with frugal():
        refusal(nrrd(tmp_path / "t.nrrd", b"", sizes="4 5 6 999999999", **four), "cut short", volume=0)
    skip = nrrd(tmp_path / "s.nrrd", gzip.compress(bytes(1 << 20)), encoding="gzip", byte_skip="900000")
    with frugal():
        assert not read_scan(skip).voxels.any()


def test_a_detached_header_names_a_file_beside_it(tmp_path):
    path = nrrd(tmp_path / "a.nhdr", b"", data_file="a b.raw")
    refusal(path, "is not beside it")
    (tmp_path / "a b.raw").write_bytes(VOXELS.tobytes("F"))
    assert np.array_equal(read_scan(path).voxels, VOXELS)
    refusal(nrrd(tmp_path / "b.nhdr"), "must name its 'data file'")
