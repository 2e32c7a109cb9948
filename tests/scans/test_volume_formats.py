"""One scan in every format of volumes: the same voxels, affine and spacing, as SimpleITK writes them; and wherever scans go."""

import shutil
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.scans.test_geometry import ALL_48, affine_with
from tests.scans.test_scan import LABELS, RNG, SHAPE, nifti, refusal
from tests.scans.test_unfolding import frugal

from delineate.data import open_dataset
from delineate.data.check import check_dataset
from delineate.errors import DelineateError
from delineate.review.uploads import scan_sent
from delineate.scans.finding import Found, Kind, digest_of, files_of, find_scans
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import VOLUME_SUFFIXES, Scan, is_scan_file, stem_of
from delineate.scans.writing import write_labels

SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr"]
TURN = np.diag([-1.0, -1.0, 1.0, 1.0])


def image_of(array, affine):
    """A SimpleITK image of (I, J, K) voxels on a RAS+ grid."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = TURN @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def written(path, array=None, affine=None, deflated=False):
    array = np.arange(120, dtype=np.int16).reshape(SHAPE) if array is None else array
    sitk.WriteImage(image_of(array, affine_with("LPS") if affine is None else affine), str(path), deflated)
    return path


# --- the same scan


@pytest.mark.parametrize("degrees", [0, 17])
@pytest.mark.parametrize("codes", ALL_48, ids="".join)
def test_every_format_gives_the_same_scan(tmp_path, codes, degrees):
    affine = affine_with(codes, oblique_degrees=degrees)
    for n, suffix in enumerate(SUFFIXES):
        read = read_scan(written(tmp_path / f"{n}{suffix}", LABELS.astype(np.int16), affine))
        assert np.array_equal(read.voxels, LABELS)
        assert read.voxels.dtype == np.int16
        np.testing.assert_allclose(read.affine, affine, rtol=1e-5, atol=1e-4)  # NIfTI holds float32
        assert np.allclose(read.spacing_mm, (0.7, 1.5, 4.0))
        assert (read.notes, read.is_flat, read.has_spacing) == ((), False, True)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_number_type_is_what_simpleitk_says(tmp_path, suffix, dtype, deflated):
    array = RNG.integers(0, 100, SHAPE).astype(dtype)
    path = written(tmp_path / f"a{suffix}", array, deflated=deflated)
    read = read_scan(path)
    assert np.array_equal(read.voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T)
    narrow = {"u1": np.uint8, "i1": np.int8, "i2": np.int16, "u2": np.uint16}
    assert read.voxels.dtype == narrow.get(dtype, np.float32)
    assert np.array_equal(read_labels(path).voxels, array.astype(np.uint8))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_simpleitk_converts_is_the_same_scan(tmp_path, suffix):
    """It keeps what it knows of the source in the header, each format in its own way."""
    source = nifti(tmp_path / "source.nii.gz", affine=affine_with("PIR", oblique_degrees=9))
    sitk.WriteImage(sitk.ReadImage(str(source)), str(tmp_path / f"a{suffix}"))
    read, wanted = read_scan(tmp_path / f"a{suffix}"), read_scan(source)
    assert np.array_equal(read.voxels, wanted.voxels)
    np.testing.assert_allclose(read.affine, wanted.affine, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_mask_of_it_is_nifti_on_its_grid(tmp_path, suffix):
    scan = read_scan(written(tmp_path / f"scan{suffix}", affine=affine_with("PIR", oblique_degrees=12)))
    back = read_labels(write_labels(tmp_path / "mask.nii.gz", LABELS, scan))
    assert np.array_equal(back.voxels, LABELS)
    np.testing.assert_allclose(back.affine, scan.affine, rtol=1e-5, atol=1e-4)
    there, here = sitk.ReadImage(str(tmp_path / f"scan{suffix}")), sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    end = [n - 1 for n in SHAPE]
    assert np.allclose(there.TransformIndexToPhysicalPoint(end), here.TransformIndexToPhysicalPoint(end), atol=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_slice_is_never_flat(tmp_path, suffix):
    flat = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    scan = read_scan(written(tmp_path / f"a{suffix}", np.zeros((1, 5, 6), np.uint8), flat))
    assert (scan.shape, scan.is_flat) == ((1, 5, 6), False)
    assert Scan(scan.voxels, scan.affine).is_flat  # without its source nothing tells it from a picture


# --- its files


def test_a_scan_of_two_files_is_one_scan(tmp_path):
    for name in ("a.hdr", "b.mhd", "c.nhdr", "d.mha", "e.nrrd"):
        written(tmp_path / name)
    written(tmp_path / "z.mhd", deflated=True)
    found = find_scans(tmp_path)
    assert [(one.path.name, one.name) for one in found] == [
        ("a.hdr", "a"), ("b.mhd", "b"), ("c.nhdr", "c"), ("d.mha", "d"), ("e.nrrd", "e"), ("z.mhd", "z")
    ]  # fmt: skip
    kinds = [Kind.NIFTI, Kind.METAIMAGE, Kind.NRRD, Kind.METAIMAGE, Kind.NRRD, Kind.METAIMAGE]
    assert [one.kind for one in found] == kinds
    assert find_scans(tmp_path / "a.img") == [Found(tmp_path / "a.hdr", "a", Kind.NIFTI)]
    assert [path.name for path in files_of(tmp_path / "z.mhd")] == ["z.mhd", "z.zraw"]
    assert [path.name for path in files_of(tmp_path / "d.mha")] == ["d.mha"]
    assert np.array_equal(read_labels(tmp_path / "a.img").voxels, read_labels(tmp_path / "e.nrrd").voxels)
    assert [suffix for suffix in VOLUME_SUFFIXES if not is_scan_file(f"x{suffix}")] == []
    assert not any(is_scan_file(name) for name in ("a.img", "a.raw", "a.zraw", ".hdr"))
    assert (stem_of("X.SEG.NRRD"), stem_of("a.b.mha")) == ("X", "a.b")


@pytest.mark.parametrize("suffix", [".hdr", ".mhd", ".nhdr"])
def test_scans_that_differ_in_their_voxels_alone_are_two(tmp_path, suffix):
    paths = []
    for n in range(2):
        (tmp_path / f"s{n}").mkdir()
        paths.append(written(tmp_path / f"s{n}" / f"ct{suffix}", np.full(SHAPE, n, np.int16)))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert digest_of(paths[0]) != digest_of(paths[1])
    shutil.copytree(tmp_path / "s1", tmp_path / "s2")
    assert digest_of(paths[1]) == digest_of(tmp_path / "s2" / f"ct{suffix}")


@pytest.mark.parametrize("suffix", [".hdr", ".mhd", ".nhdr"])
def test_without_its_voxels_a_header_is_refused(tmp_path, suffix):
    path = written(tmp_path / f"a{suffix}")
    data = files_of(path)[1]
    data.unlink()
    refusal(path, "beside", "copy both files")
    assert files_of(path) == [path]
    assert digest_of(path)
    data.mkdir()
    refusal(path, "beside")


@pytest.mark.parametrize("suffix", [".hdr", ".mhd", ".nhdr", ".nrrd", ".mha"])
@pytest.mark.parametrize("deflated", [False, True])
def test_cut_short(tmp_path, suffix, deflated):
    path = written(tmp_path / f"a{suffix}", RNG.integers(0, 2**15, (16, 16, 16), dtype=np.int16), deflated=deflated)
    data = files_of(path)[-1]
    whole = data.read_bytes()
    for kept in (len(whole) - 1, len(whole) - 5, len(whole) // 2, 1, 0):
        data.write_bytes(whole[:kept])
        refusal(path)
    if deflated and suffix != ".hdr":
        data.write_bytes(whole[:-3] + b"\0\1\2")  # its checksum, or its length
        refusal(path, "damaged")
    data.write_bytes(whole + b"rubbish")
    assert read_scan(path).shape == (16, 16, 16)


# --- in datasets and on the page


@pytest.mark.parametrize(
    ("image", "label"), [(".nrrd", ".seg.nrrd"), (".mha", ".mha"), (".mhd", ".nii.gz"), (".hdr", ".hdr")]
)
def test_a_dataset_of_it(tmp_path, image, label):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for n in range(2):
        written(tmp_path / "images" / f"c{n}{image}", RNG.normal(0, 10, SHAPE).astype(np.float32) + n)
        written(tmp_path / "masks" / f"c{n}{label}", (LABELS > 6).astype(np.uint8))
    dataset = open_dataset(tmp_path, targets=["liver"])
    assert [case.name for case in dataset.cases] == ["c0", "c1"]
    scan, ids = dataset.read(dataset.cases[1])
    assert np.array_equal(ids, LABELS > 6)
    assert scan.spacing_mm == pytest.approx((0.7, 1.5, 4.0))
    report = check_dataset(tmp_path, targets=["liver"], modality="MR")
    assert [problem for problem in report.problems if problem.severity == "error"] == []
    assert not any("same bytes" in problem.what for problem in report.problems)


def test_a_scan_that_is_sent_to_the_page(tmp_path):
    for suffix in (".nrrd", ".mha"):
        with written(tmp_path / f"a{suffix}").open("rb") as file:
            assert scan_sent(file, f"any{suffix}").shape == SHAPE


# --- what would take far more than it is


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_zeros_that_were_deflated_are_unfolded_no_further_than_asked_for(tmp_path, suffix):
    path = written(tmp_path / f"a{suffix}", np.zeros((4, 4, 4), np.uint8), deflated=True)
    stream = (b"\x78", b"\x1f\x8b")[suffix == ".nrrd"]
    whole = path.read_bytes()
    header = whole[: whole.rindex(stream if suffix == ".nrrd" else b"LOCAL\n") + (0 if suffix == ".nrrd" else 6)]
    bomb = zlib.compressobj(9, wbits=31 if suffix == ".nrrd" else 15)
    header = b"\n".join(line for line in header.split(b"\n") if b"CompressedDataSize" not in line)
    path.write_bytes(header + bomb.compress(bytes(1 << 28)) + bomb.flush())
    with frugal():
        assert read_scan(path).shape == (4, 4, 4)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_a_header_says_is_read_or_refused_in_one_line(tmp_path, suffix, data):
    """Some bytes of a good file are others: a scan of it, or one line; never another error."""
    content = bytearray(written(tmp_path / f"good{suffix}", deflated=data.draw(st.booleans())).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"-", b"9" * 9, b"nan", b"\n", b" ", b"1e308"]))
        )
        content[at : at + data.draw(st.integers(0, 3))] = new
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(content)
    said, scan = "", None
    try:
        scan = read_scan(path, max_voxels=10**6)
    except DelineateError as error:
        said = str(error)
    assert "\n" not in said
    if scan is None:
        assert path.name in said
    else:
        assert np.isfinite(scan.affine).all()
        assert abs(np.linalg.det(scan.affine)) > 0


def test_nifti_is_as_it_was(tmp_path):
    refusal(nifti(tmp_path / "a.nii", vox_offset=0), "at least 352")
