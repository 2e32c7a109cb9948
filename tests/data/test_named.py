import pytest
from tests.data.test_dataset import organ_volumes, pictures

from delineate.data import open_dataset
from delineate.data.named import NamedFolder, open_named, parse_named
from delineate.errors import DatasetError, DelineateError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kvasir").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "targets", "modality"),
    [
        ("kvasir", (), None),
        ("kvasir/", (), None),
        ("kvasir=polyp", ("polyp",), None),
        ("./kvasir=skin lesion", ("skin lesion",), None),
        ("kvasir= liver, left kidney ", ("liver", "left kidney"), None),
        ("kvasir=polyp@endoscopy", ("polyp",), "endoscopy"),
        ("kvasir=polyp@colonoscopy", ("polyp",), "endoscopy"),
        ("kvasir=polyp@mri", ("polyp",), "MR"),
        ("kvasir=polyp@Thermography", ("polyp",), "Thermography"),
        ("kvasir=a@b@ct", ("a@b",), "CT"),
    ],
)
def test_what_is_written_is_taken_apart(here, text, targets, modality):
    assert parse_named(text) == NamedFolder(here / "kvasir", targets, modality)


def test_options_fill_what_is_not_written(here):
    assert parse_named("kvasir", ["polyp"], "US") == NamedFolder(here / "kvasir", ("polyp",), "US")
    assert parse_named("kvasir=polyp", None, "US").modality == "US"
    assert parse_named(here / "kvasir", ()) == NamedFolder(here / "kvasir")


def test_a_folder_with_an_equals_sign_in_its_name_wins(here):
    (here / "lr=3@ct").mkdir()
    assert parse_named("lr=3@ct") == NamedFolder(here / "lr=3@ct")
    assert parse_named("lr=3@ct=polyp@MR") == NamedFolder(here / "lr=3@ct", ("polyp",), "MR")
    (here / "lr=3@ct" / "set").mkdir()
    assert parse_named("lr=3@ct/set=polyp") == NamedFolder(here / "lr=3@ct" / "set", ("polyp",))
    (here / "lr").mkdir()
    assert parse_named("lr=3@ct") == NamedFolder(here / "lr=3@ct")  # the longest


def test_where_no_folder_exists_the_first_equals_sign_ends_its_name(here):
    assert parse_named("nowhere=polyp=tool").folder == here / "nowhere"
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        open_named("nowhere=polyp")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("kvasir=polyp", {"targets": ["polyp"]}, "its target is named twice, after = and by --target; give one"),
        ("kvasir=polyp@CT", {"modality": "CT"}, "its modality is named twice, after @ and by --modality; give one"),
        ("kvasir=", {}, 'name what the masks show after =, as in kvasir="breast lesion"'),
        ("kvasir=@CT", {}, "name what the masks show after ="),
        ("kvasir=a,,b", {}, "name what the masks show after ="),
        ("kvasir=polyp@", {}, "name the kind of picture after @, as in kvasir=polyp@endoscopy"),
        ("=polyp", {}, "name the folder before ="),
    ],
)
def test_what_cannot_be_meant_is_refused(here, text, options, message):
    with pytest.raises(DelineateError) as refused:
        parse_named(text, **options)
    assert message in str(refused.value)
    assert str(refused.value).startswith((text, f"'{text}'"))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("text", ["kvasir", "kvasir=polyp", "kvasir=skin lesion,tool@dermoscopy"])
def test_the_text_of_a_named_folder_means_the_same(here, text):
    assert parse_named(str(parse_named(text))) == parse_named(text)


def test_several_folders_are_opened_under_their_own_names(tmp_path):
    flat, volumes = pictures(tmp_path / "flat"), organ_volumes(tmp_path / "volumes")
    assert open_named(f"{flat}=polyp@endoscopy") == open_dataset(flat, targets=["polyp"], modality="endoscopy")
    assert open_named(f"{volumes}=left kidney").labels == {"left kidney": 2}
    assert open_named(volumes) == open_dataset(volumes)
    with pytest.raises(DatasetError, match='flat="breast lesion" or --target "breast lesion"'):
        open_named(flat)
