"""A MONAI bundle of ours is run by MONAI's own tools, gives what we give, and comes back as it was."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data.meta_tensor import MetaTensor

from delineate.bundle.folder import write_bundle
from delineate.bundle.network import BundledModel
from delineate.errors import ModelError, ScanError
from delineate.jobs.export import ExportRequest, export, import_model
from delineate.model_folder import fingerprint, save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.samples import sample
from delineate.scans.reading import read_scan
from delineate.segmenter import Segmenter
from delineate.systems.plain import PlainConfig, build

REQUIRED = (  # by MONAI's specification of bundles, docs/source/mb_specification.rst
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task"),
    *("description", "authors", "copyright", "network_data_format"),
)
OF_A_TENSOR = {
    "type",
    "format",
    "num_channels",
    "spatial_shape",
    "dtype",
    "value_range",
    "is_patch_data",
    "channel_def",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model that knows nothing; do not write there."""
    folder = tmp_path_factory.mktemp("bundled") / "model"
    system = build(PlainConfig(32, (8, 16)), Vocabulary.from_names(["liver", "spleen"], "CT"), seed=0)
    save_model(folder, Segmenter(system, ("CT",)), "unet", training={}, card="# blank\n")
    return folder


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory) -> Path:
    return write_bundle(model, tmp_path_factory.mktemp("bundles") / "blank")


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI's, of a decoder that nobody asked for
def test_monai_runs_it_and_writes_the_labels_that_we_write(tmp_path):
    """The model that ships, on four slices of the CT that ships."""
    bundle, asked = write_bundle(None, tmp_path / "house", modality="CT", n=2), ["liver", "left kidney"]
    (tmp_path / "data").mkdir()
    scan = tmp_path / "data" / "case.nii.gz"
    nibabel.save(nibabel.load(sample("ct").images[0]).slicer[..., 9:13], scan)
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        workflow_type="inference",
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "out"),
        targets=asked,
    )
    workflow.initialize()
    assert workflow.check_properties() == []  # what MONAI's own programs want of an inference bundle
    workflow.run()
    (written,) = (tmp_path / "out").rglob("*.nii.gz")
    got, segmenter = nibabel.load(written), workflow.network_def.segmenter
    assert segmenter.fingerprint == fingerprint(None)
    ours, numbers = segmenter(read_scan(scan, modality="CT"), asked, n=2).label_map()
    assert all((ours == number).sum() > 1000 for number in numbers.values())
    np.testing.assert_array_equal(np.asarray(got.dataobj), ours)
    np.testing.assert_allclose(got.affine, nibabel.load(scan).affine, atol=1e-5)


def test_its_metadata_says_what_the_specification_asks(bundle):
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    told = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert [key for key in REQUIRED if not told.get(key)] == []
    (image,), (pred,) = (told["network_data_format"][side].values() for side in ("inputs", "outputs"))
    assert image.keys() >= OF_A_TENSOR | {"modality"}
    assert pred.keys() >= OF_A_TENSOR
    assert (image["format"], image["modality"], image["num_channels"]) == ("hounsfield", "CT", 1)
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert parser.get_parsed_content("modality") == "CT"


def test_there_is_no_pickle_in_it(bundle):
    assert {path.suffix for path in bundle.rglob("*") if path.is_file()} == {".json", ".md", ".safetensors"}


@pytest.mark.parametrize("name", ["$__import__('os').abort()", "@bundle_root", "%configs/metadata.json"])
def test_a_name_that_monai_would_evaluate_gets_into_no_bundle(tmp_path, name):
    system = build(PlainConfig(32, (8, 16)), Vocabulary.from_names(["liver"], "CT"), seed=0)
    save_model(tmp_path / "evil", Segmenter(system, (name,)), "unet", training={}, card="card")
    with pytest.raises(ModelError, match=r"MONAI would take the name .* for code") as caught:
        write_bundle(tmp_path / "evil", tmp_path / "b")
    assert name in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_a_target_that_the_model_does_not_know_gets_into_no_bundle(model, tmp_path):
    with pytest.raises(ModelError, match=r"'\$evil' is none of the model's names"):
        write_bundle(model, tmp_path / "b", targets=("$evil",))
    assert not (tmp_path / "b").exists()


def test_it_comes_back_as_it_was(model, bundle, tmp_path):
    told = import_model(str(bundle), tmp_path / "back")
    back = Path(told["model"])
    own = {p.relative_to(model): p.read_bytes() for p in model.rglob("*") if p.is_file()}
    assert {p.relative_to(back): p.read_bytes() for p in back.rglob("*") if p.is_file()} == own
    assert Segmenter.from_pretrained(bundle).fingerprint == fingerprint(model)


def test_of_a_bundle_nothing_is_believed_but_what_has_its_hash(bundle, tmp_path):
    stranger = Path(shutil.copytree(bundle, tmp_path / "stranger"))
    (stranger / "configs" / "inference.json").write_text('{"imports": ["$(_ for _ in ()).throw(SystemExit)"]}')
    assert import_model(str(stranger), tmp_path / "fine")["model"] == str(tmp_path / "fine")
    (stranger / "models" / "delineate" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"'config.json' was changed or damaged"):
        import_model(str(stranger), tmp_path / "not")
    with pytest.raises(ModelError, match="no such model folder"):
        import_model(str(tmp_path / "nowhere"), tmp_path / "not")
    (tmp_path / "theirs" / "configs").mkdir(parents=True)
    (tmp_path / "theirs" / "configs" / "metadata.json").write_text("{}")
    with pytest.raises(ModelError, match=r"not a model folder \(no manifest.json\)"):
        import_model(str(tmp_path / "theirs"), tmp_path / "not")
    assert not (tmp_path / "not").exists()


def test_layouts_are_chosen_by_name_and_nothing_else_is_overwritten(model, bundle, tmp_path):
    told = export(ExportRequest(model, "monai"), tmp_path / "b")
    assert told["bytes"] > 1000
    export(ExportRequest(model, "monai"), tmp_path / "b")  # an older one is replaced
    with pytest.raises(ModelError, match="'onnx': a layout is one of hub, monai"):
        export(ExportRequest(model, "onnx"), tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists and is no bundle"):
        export(ExportRequest(model, "monai"), tmp_path / "d")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 4, 4, 4), r"must be MetaTensors .* got Tensor of shape \(1, 1, 4, 4, 4\)"),
        (MetaTensor(torch.zeros(1, 2, 4, 4, 4), affine=torch.eye(4)), "must have one channel here, this one has 2"),
        (MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4)), "must be MetaTensors"),
    ],
)
def test_tensors_that_are_no_scans_are_refused(model, image, message):
    with pytest.raises(ScanError, match=message):
        BundledModel(model)(image)
