from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import SimpleITK

from delineate.prompts.colours import colour_of
from delineate.scans.label_table import LabelTable
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import Scan
from delineate.scans.writing import write_labels

LIKE = Scan(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 2, 3, 1]))
LABELS = np.arange(120).reshape(4, 5, 6) % 3
NAMES = ("spleen", "left kidney", "a < b & ]]> \x1b[31m", "Müller's <node>")


def totalsegmentator_s(path):
    """Which number is called what, as TotalSegmentator's `load_multilabel_nifti` asks for it."""
    content = nibabel.load(path).header.extensions[0].get_content()
    labels = ElementTree.fromstring(content).findall("VolumeInformation/LabelTable/Label")
    return {int(label.get("Key")): label.text for label in labels}


def workbench_s(path):
    """The same as Connectome Workbench reads it: of the extension with Caret's code, as text that ends at a 0."""
    (extension,) = [one for one in nibabel.load(path).header.extensions if one.get_code() == 30]
    root = ElementTree.fromstring(extension.content)
    assert root.findtext("VolumeInformation/VolumeType") == "Label"
    return {int(label.get("Key")): label for label in root.iter("Label")}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_header_names_every_number_for_those_who_read_such_tables(tmp_path, suffix):
    path = write_labels(tmp_path / f"labels{suffix}", LABELS, LIKE, LabelTable(NAMES))
    expected = {1: "spleen", 2: "left kidney", 3: "a < b & ]]>  [31m", 4: "Müller's <node>"}
    assert totalsegmentator_s(path) == expected
    rows = workbench_s(path)
    assert {number: row.text for number, row in rows.items()} == expected
    for number, row in rows.items():
        shares = [round(255 * float(row.get(part))) for part in ("Red", "Green", "Blue")]
        assert "#{:02X}{:02X}{:02X}".format(*shares) == colour_of(NAMES[number - 1])


@pytest.mark.parametrize("names", [1, 2, 255, 2000])
def test_voxels_and_geometry_are_as_without_a_table_for_everybody(tmp_path, names):
    table = LabelTable(tuple(f"organ {n}" for n in range(names)))
    path = write_labels(tmp_path / "labels.nii.gz", LABELS, LIKE, table)
    plain = write_labels(tmp_path / "plain.nii.gz", LABELS, LIKE)
    for read in (read_labels, read_scan):
        assert np.array_equal(read(path).voxels, LABELS)
        assert np.array_equal(read(path).affine, read(plain).affine)
    assert np.array_equal(np.asanyarray(nibabel.load(path).dataobj), LABELS)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)), LABELS.T)
    assert nibabel.load(path).get_data_dtype() == (np.uint8 if names < 256 else np.uint16)
    one, other = nibabel.load(path).header, nibabel.load(plain).header
    told = [key for key in one if key not in ("datatype", "bitpix", "vox_offset")]
    assert [one[key].tobytes() for key in told] == [other[key].tobytes() for key in told]


def test_no_end_of_text_is_written_before_its_end(tmp_path):
    for length in range(1, 20):
        content = LabelTable(("x" * length,)).caret()
        assert (len(content) + 8) % 16 == 0
        assert b"\0" not in content


def test_names_that_were_asked_come_behind_those_that_are_known():
    assert LabelTable.of(("spleen", "liver"), ("thumb", "liver", "thumb")).ids == {"spleen": 1, "liver": 2, "thumb": 3}
    assert LabelTable.of((), ()).caret().startswith(b"<?xml")
