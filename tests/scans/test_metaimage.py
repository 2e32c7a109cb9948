"""MetaImage headers of all kinds, written by hand: read as ITK reads them, or refused in one line."""

import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from tests.scans.test_scan import SHAPE, refusal
from tests.scans.test_unfolding import frugal

from delineate.scans.reading import read_labels, read_scan

VOXELS = np.arange(120, dtype=np.int16).reshape(SHAPE)
FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 1 0 0 0 0 -1",
    "Offset": "5 6 7",
    "ElementSpacing": "1 2 3",
    "DimSize": "4 5 6",
    "ElementType": "MET_SHORT",
}


def meta(path, voxels=VOXELS, data="LOCAL", end="\n", **changed):
    """A MetaImage; None leaves a field out."""
    fields = {**FIELDS, **changed, "ElementDataFile": data}
    lines = end.join(f"{name} = {value}" for name, value in fields.items() if value is not None) + end
    path.write_bytes(lines.encode() + (voxels if isinstance(voxels, bytes) else voxels.tobytes(order="F")))
    return path


def as_itk(path):
    """Voxels and the world position of the last one, RAS, as ITK has them."""
    image = sitk.ReadImage(str(path))
    end = [n - 1 for n in image.GetSize()]
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1]) @ image.TransformIndexToPhysicalPoint(end)


def test_what_the_format_allows(tmp_path):
    path = meta(tmp_path / "a.mha")
    plain = read_scan(path)
    assert np.array_equal(plain.voxels, VOXELS)
    assert np.array_equal(plain.affine, [[0, -2, 0, -5], [-1, 0, 0, -6], [0, 0, -3, 7], [0, 0, 0, 1]])
    packed = zlib.compress(VOXELS.tobytes("F"))
    for n, same in enumerate(
        (
            {"end": "\r\n"},
            {"voxels": VOXELS.astype(">i2"), "BinaryDataByteOrderMSB": "True"},
            {"voxels": VOXELS.astype(">i2"), "BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"},
            {"voxels": packed, "CompressedData": "True", "CompressedDataSize": len(packed)},
            {"voxels": packed, "CompressedData": "True"},
            {"TransformMatrix": None, "Orientation": FIELDS["TransformMatrix"], "Offset": None, "Position": "5 6 7"},
            {"ITK_FileNotes": "", "dim[0]": "3", "Modality": "MET_MOD_CT", "modality": "CT", "a b (c)": "1"},
            {"Comment": "a = b", "AnatomicalOrientation": "RAI", "ElementNumberOfChannels": "1"},
        )
    ):
        path = meta(tmp_path / f"{n}.mha", **same)
        read = read_scan(path)
        assert np.array_equal(read.voxels, VOXELS), same
        assert np.array_equal(read.affine, plain.affine)
        assert read.notes == ()
        if same.get("CompressedData") and "CompressedDataSize" not in same:
            continue  # MetaIO fails to unfold it, and hands out memory as it was
        voxels, end = as_itk(path)
        assert np.array_equal(voxels, VOXELS)
        assert np.allclose(plain.affine[:3] @ [3, 4, 5, 1], end)


def test_what_is_not_said_is_as_the_format_has_it(tmp_path):
    path = meta(tmp_path / "a.mha", TransformMatrix=None, Offset=None)
    read = read_scan(path)
    assert read.axis_codes == "LPS"
    assert read.notes == ("no TransformMatrix in the header: axes taken as L, P, S, as MetaImage has it",)
    assert np.allclose(read.affine[:3] @ [3, 4, 5, 1], as_itk(path)[1])
    bare = meta(tmp_path / "b.mha", ElementSpacing=None)
    refusal(bare, "must say where the voxels lie", "no ElementSpacing", read=read_labels)
    assert read_scan(bare, assume_spacing_mm=(1, 2, 5)).spacing_mm == (1, 2, 5)
    assert "not used" in read_scan(path, assume_spacing_mm=(1, 2, 5)).notes[-1]
    um = read_scan(meta(tmp_path / "c.mha", ElementSpacing="1000 2000 3000", Offset="0 0 0", DistanceUnits="um"))
    assert um.spacing_mm == pytest.approx((1, 2, 3))
    assert um.notes == ("the header counts in um: brought to mm, times 0.001",)


def test_several_volumes_and_fewer_axes(tmp_path):
    four = np.stack([VOXELS, VOXELS + 1000, VOXELS + 2000], -1)
    fields = {
        "NDims": "4",
        "DimSize": "4 5 6 3",
        "ElementSpacing": "1 2 3 1",
        "Offset": "5 6 7 0",
        "TransformMatrix": "0 1 0 0 1 0 0 0 0 0 -1 0 0 0 0 1",
    }
    for voxels, packed in ((four, "False"), (zlib.compress(four.tobytes("F")), "True")):
        path = meta(tmp_path / "a.mha", voxels, **fields, CompressedData=packed)
        refusal(path, "found 3 volumes")
        for index in range(3):
            read = read_scan(path, volume=index)
            assert np.array_equal(read.voxels, VOXELS + 1000 * index)
            assert np.array_equal(read.affine, read_scan(meta(tmp_path / "b.mha")).affine)
    one = read_scan(meta(tmp_path / "c.mha", **fields | {"DimSize": "4 5 6 1"}))
    assert one.notes == ("4-D with one volume: read as 3-D",)
    two = {"NDims": "2", "DimSize": "4 5", "ElementSpacing": "1 2", "Offset": "5 6", "TransformMatrix": "1 0 0 1"}
    flat = read_scan(meta(tmp_path / "d.mha", VOXELS[..., 0], **two))
    assert (flat.shape, flat.spacing_mm, flat.is_flat) == ((4, 5, 1), (1, 2, 1), False)
    assert flat.notes == ("a 2-D MetaImage read as one slice",)


def test_voxels_beside_the_header(tmp_path):
    path = meta(tmp_path / "a.mhd", b"", "a b.raw")
    refusal(path, "is not beside it", "copy both files")
    (tmp_path / "a b.raw").write_bytes(VOXELS.tobytes("F"))
    assert np.array_equal(read_scan(path).voxels, VOXELS)
    (tmp_path / "a b.raw").write_bytes(b"12345" + VOXELS.tobytes("F"))
    for size in ("5", "-1"):
        assert np.array_equal(read_scan(meta(path, b"", "a b.raw", HeaderSize=size)).voxels, VOXELS)
    refusal(meta(path, b"", "a b.raw", HeaderSize="-2"), "must be 0 or more")
    refusal(meta(path, b"", "a b.raw", HeaderSize="99999999999"), "cut short")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("/etc/passwd", "one file beside it"),
        ("../a.raw", "one file beside it"),
        ("sub/a.raw", "one file beside it"),
        ("..\\a.raw", "one file beside it"),
        ("c:a.raw", "one file beside it"),
        ("..", "one file beside it"),
        ("a\u202ewar", "one file beside it"),
        ("x" * 300, "one file beside it"),
        ("LIST", "list of files"),
        ("a%03d.raw 1 9 1", "list of files"),
        ("", "one file beside it"),
    ],
)
def test_names_that_lead_elsewhere(tmp_path, name, wanted):
    (tmp_path.parent / "a.raw").write_bytes(VOXELS.tobytes("F"))
    (tmp_path / "scan").mkdir()
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes("F"))
    message = refusal(meta(tmp_path / "scan" / "a.mhd", b"", name), wanted)
    assert "\u202e" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"NDims": "0"}, "3-D or 4-D"),
        ({"NDims": "5"}, "3-D or 4-D"),
        ({"NDims": None}, "must say 'ndims'"),
        ({"DimSize": "4 -5 6"}, "at least 1"),
        ({"DimSize": "4 0 6"}, "at least 1"),
        ({"DimSize": "4 5"}, "'DimSize' must be 3 whole numbers"),
        ({"DimSize": "4 5 6.5"}, "'DimSize' must be 3 whole numbers"),
        ({"ElementSpacing": "1 -2 3"}, "must be positive"),
        ({"ElementSpacing": "1 0 3"}, "must be positive"),
        ({"ElementSpacing": "1 nan 3"}, "finite numbers"),
        ({"ElementSpacing": "1 2 1e6"}, "cannot be"),
        ({"ElementSpacing": "1 2"}, "3 finite numbers"),
        ({"DistanceUnits": "parsecs"}, "lengths must be in mm"),
        ({"TransformMatrix": "0 0 0 1 0 0 0 0 1"}, "directions of length 1"),
        ({"TransformMatrix": "2 0 0 0 2 0 0 0 2"}, "directions of length 1"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "degrees of shear"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 inf"}, "finite numbers"),
        ({"TransformMatrix": "1 0 0 1"}, "9 finite numbers"),
        ({"Rotation": "1 0 0 0 1 0 0 0 1"}, "says all"),
        ({"Offset": "1e300 0 0"}, "finite numbers"),
        ({"ElementType": "MET_OTHER"}, "plain integers or floats"),
        ({"ElementType": "MET_UCHAR_ARRAY"}, "one number"),
        ({"ElementNumberOfChannels": "3"}, "one number, found 3"),
        ({"ElementNumberOfChannels": "0"}, "one number, found 0"),
        ({"ElementType": None}, "must say 'elementtype'"),
        ({"BinaryData": "False"}, "binary data, found text"),
        ({"ndims": "3"}, "'ndims' is there twice"),
        ({"CompressedData": "True"}, "damaged"),
    ],
    ids=str,
)
def test_headers_that_cannot_be(tmp_path, changed, wanted):
    refusal(meta(tmp_path / "a.mha", **changed), wanted)


@pytest.mark.parametrize(
    "content", [b"hello\n" * 50, b"\0" * 500, b"NDims = 3\n", b"<html>404 = not found</html>\n"], ids=str
)
def test_no_header(tmp_path, content):
    path = tmp_path / "a.mha"
    path.write_bytes(content)
    refusal(path, "must begin with lines such as")


def test_a_few_hundred_bytes_that_claim_270_billion_voxels(tmp_path):
    for packed in ("False", "True"):
        path = meta(tmp_path / f"{packed}.mha", b"", DimSize="30000 30000 300", CompressedData=packed)
        with frugal():
            refusal(path, "at most 1000000000 voxels")
            refusal(path, "cut short or its header is wrong", max_voxels=10**15)
    long = tmp_path / "long.mha"
    long.write_bytes(b"NDims = " + b"3" * (64 << 20))
    with frugal():
        refusal(long, "must end within 1048576 bytes")
