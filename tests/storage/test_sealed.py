import pytest

from delineate.errors import ModelError
from delineate.storage.files import write_json
from delineate.storage.sealed import MANIFEST, check_free, hashes, sealing, verify

FILES = {"about.json": "{}", "deep/weights.bin": "0123"}


def is_box(folder):
    return (folder / "about.json").is_file()


def fill(folder, files=FILES):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def seal(folder, files=FILES, what="box"):
    with sealing(folder, is_box, what) as building:
        fill(building, files)
    return folder


def check(folder, what="box"):
    verify(folder, {"about.json"}, what)


@pytest.fixture
def box(tmp_path):
    return seal(tmp_path / "box")


# writing


def test_what_is_sealed_is_what_was_put_in_and_a_manifest(box):
    assert content(box).keys() == {*FILES, MANIFEST}
    assert hashes(box).keys() == FILES.keys()
    check(box)
    assert [p.name for p in box.parent.iterdir()] == ["box"]


def test_folders_that_are_not_there_yet_are_made(tmp_path):
    check(seal(tmp_path / "deep" / "down" / "box"))


def test_the_place_may_be_given_as_text_and_be_an_empty_folder(tmp_path):
    (tmp_path / "box").mkdir()
    check(seal(str(tmp_path / "box")) and tmp_path / "box")


def test_an_older_one_is_replaced_with_all_that_lay_in_it(box):
    (box / "leftover").write_text("of the older one")
    seal(box, {"about.json": "[]"})
    assert content(box).keys() == {"about.json", MANIFEST}
    check(box)
    assert [p.name for p in box.parent.iterdir()] == ["box"]


def test_a_link_to_an_older_one_is_replaced_and_the_older_one_stays(box):
    link, before = box.with_name("link"), content(box)
    link.symlink_to(box)
    seal(link, {"about.json": "[]"})
    assert not link.is_symlink()
    assert content(link).keys() == {"about.json", MANIFEST}
    assert content(box) == before
    assert {p.name for p in box.parent.iterdir()} == {"box", "link"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("moment", ["filling", "manifest", "putting"])
@pytest.mark.parametrize("there", [True, False])
def test_what_is_interrupted_leaves_all_as_it_was(tmp_path, monkeypatch, there, moment, error):
    folder = tmp_path / "box"
    before = content(seal(folder)) if there else None

    def fail(*arguments):
        raise error

    if moment == "manifest":
        monkeypatch.setattr("delineate.storage.sealed.hashes", fail)
    elif moment == "putting":
        monkeypatch.setattr("delineate.storage.swapping._put", fail)

    def seal_another():
        with sealing(folder, is_box, "box") as building:
            fill(building, {"about.json": "[]"})
            if moment == "filling":
                fail()

    with pytest.raises(error):
        seal_another()
    monkeypatch.undo()
    assert folder.exists() == there
    if there:
        assert content(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["box"] * there


def test_something_else_is_refused_before_any_work_and_left_alone(tmp_path):
    folder = tmp_path / "thesis"
    fill(folder, {"notes.txt": "mine", MANIFEST: "{}"})
    before = content(folder)
    with (
        pytest.raises(ModelError, match="thesis: exists and is not a box folder; choose another name"),
        sealing(folder, is_box, "box"),
    ):
        raise AssertionError("the block must not begin")
    assert content(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


@pytest.mark.parametrize(("what", "words"), [("model", "a model"), ("adapter", "an adapter"), ("image", "an image")])
def test_messages_have_the_right_article(tmp_path, what, words):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match=f"exists and is not {words} folder"):
        check_free(tmp_path / "file", is_box, what)
    box = seal(tmp_path / "box")
    write_json(box / MANIFEST, {})
    with pytest.raises(ModelError, match=f"not the manifest of {words}; check the path"):
        check(box, what)


def test_nothing_an_empty_folder_and_an_older_one_are_free(tmp_path, box):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty", box):
        check_free(folder, is_box, "box")


# checking


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        check(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(box, name):
    (box / name).unlink()
    refused(box, f"'{name}' is missing; copy the box again")


@pytest.mark.parametrize("name", ["extra.txt", "deep/extra.txt", f"deep/{MANIFEST}"])
def test_an_added_file_is_named(box, name):
    fill(box, {name: "{}"})
    refused(box, f"'{name}' is not part of the box; remove it or copy the box again")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(box, name):
    (box / name).write_text("01x3")
    refused(box, f"'{name}' was changed or damaged since it was saved; copy the box again")


def test_a_manifest_further_down_is_a_file_like_any_other(tmp_path):
    box = seal(tmp_path / "box", {**FILES, f"deep/{MANIFEST}": "{}"})
    check(box)
    (box / "deep" / MANIFEST).write_text("[]")
    refused(box, f"'deep/{MANIFEST}' was changed")


@pytest.mark.parametrize("name", [".DS_Store", "deep/.DS_Store", ".ipynb_checkpoints/about.json"])
def test_what_is_hidden_does_no_harm(box, name):
    fill(box, {name: "left by a file browser"})
    check(box)


@pytest.mark.parametrize("bytes_", [b"", b"{", b"\xff\xfe{}"])
def test_a_broken_manifest_is_refused(box, bytes_):
    (box / MANIFEST).write_bytes(bytes_)
    refused(box, r"manifest\.json: not JSON .*; copy the box again")


@pytest.mark.parametrize("value", [[], None, 1, {}, {"deep/weights.bin": "0"}, ["about.json"]])
def test_a_manifest_of_something_else_is_refused(box, value):
    write_json(box / MANIFEST, value)
    refused(box, r"manifest\.json: not the manifest of a box; check the path")
