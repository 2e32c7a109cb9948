import gzip
import hashlib
import io
import json
import shutil
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tests.review_world import SHAPE, Bright, Client, desk_for, write_picture, write_volume

from delineate.jobs.segment import SegmentRequest, run_cohort
from delineate.review.answers import info_of
from delineate.review.runs import to_pairs, toggles_of
from delineate.review.schema import Distinct
from delineate.scans.finding import Found
from delineate.scans.reading import read_labels, read_scan
from delineate.segmenter import Segmenter

SIZE = int(np.prod(SHAPE))


@pytest.fixture
def system():
    return Bright()


@pytest.fixture
def desk(tmp_path, system):
    desk = desk_for(write_volume(tmp_path / "v.nii.gz"), tmp_path / "work", system)
    yield desk
    system.gate.set()
    desk.close()


@pytest.fixture
def ann(desk):
    return Client(desk)


def painted(client, mask, layer="l1"):
    return client.act("paint", layer=layer, flips=to_pairs(toggles_of(mask)).tolist(), tool="brush")


def some_mask(seed=0):
    return np.random.default_rng(seed).random(SHAPE) < 0.3


# --- looking


def test_a_session_tells_who_is_here_and_what_can_be_asked(ann):
    session = ann.get("/api/session").json()
    assert session["user"] == "ann"
    assert session["model"] == {"name": "bright", "fingerprint": "f" * 64}
    assert session["cases"] == [{"id": "c0", "name": "v"}]  # nobody has opened it yet
    assert [term["name"] for term in session["vocabulary"]] == ["liver", "spleen"]
    work = ann.work()
    assert ann.get("/api/session").json()["cases"] == [work["case"]]
    assert work["case"]["shape"] == list(SHAPE)
    assert work["case"]["spacing_mm"] == [2, 3, 5]
    assert work["case"]["axis_codes"] == "LAS"
    assert (work["layers"], work["answers"], work["running"], work["revision"]) == ([], [], None, 0)


def test_the_scan_comes_as_nifti(ann, tmp_path):
    data = ann.get(f"{ann.path}/scan.nii.gz").content
    shown = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    np.testing.assert_array_equal(shown.get_fdata(), read_scan(tmp_path / "v.nii.gz").voxels)


def test_the_page_is_served_with_types_that_browsers_obey(ann):
    types = {"/": "text/html", "/static/style.css": "text/css", "/static/api.js": "text/javascript"}
    for path, kind in types.items():
        answer = ann.get(path)
        if answer.status_code == 200:  # the page is not part of this test
            assert answer.headers["content-type"].startswith(kind)
    assert ann.get("/static/../app.py").status_code == 404
    assert ann.get("/static/%2e%2e/app.py").status_code == 404
    assert ann.get("/docs").status_code == 404


# --- acting


def test_painting_undoing_and_redoing_are_seen_in_the_layer(ann):
    work = ann.act("add_layer", name=" my liver ").json()
    assert work["changed"] == ["l1"]
    (layer,) = work["layers"]
    assert layer == {
        "id": "l1",
        "name": "my liver",
        "colour": 0,
        "voxels": 0,
        "volume": 0,
        "unit": "ml",
        "saved": False,
    }
    mask = some_mask()
    work = painted(ann, mask).json()
    assert work["layers"][0]["voxels"] == mask.sum()
    assert work["layers"][0]["volume"] == pytest.approx(mask.sum() * 0.03, abs=1e-3)
    assert work["undo"] == f"my liver: brush (+{mask.sum()} -0)"
    np.testing.assert_array_equal(ann.mask("layers/l1"), mask)
    work = ann.act("undo").json()
    assert not ann.mask("layers/l1").any()
    assert (work["changed"], work["redo"]) == (["l1"], f"my liver: brush (+{mask.sum()} -0)")
    ann.act("redo")
    np.testing.assert_array_equal(ann.mask("layers/l1"), mask)
    texts = [event["text"] for event in ann.work()["history"]]
    assert [text.split(":")[0] for text in texts] == ["new layer my liver", "my liver", "undo", "redo"]


def test_edits_go_through_to_the_layer(ann):
    ann.act("add_layer", name="x")
    mask = np.zeros(SHAPE, bool)
    mask[4:9, 4:9, [1, 4]] = True
    mask[15, 15, 0] = True
    painted(ann, mask)
    assert ann.act("keep_largest", layer="l1").json()["layers"][0]["voxels"] == 25
    ann.act("undo")
    ann.act("paint", layer="l1", flips=to_pairs(toggles_of(mask & (np.arange(6) == 0))).tolist(), tool="eraser")
    assert ann.act("fill_between", layer="l1", axis=2).json()["layers"][0]["voxels"] == 100
    assert ann.act("smooth", layer="l1", radius_mm=12.0).json()["changed"] == ["l1"]
    revision = ann.work()["revision"]
    nothing = ann.act("fill_holes", layer="l1").json()
    assert (nothing["changed"], nothing["revision"]) == ([], revision)
    assert ann.act("rename_layer", layer="l1", name="y").json()["layers"][0]["name"] == "y"
    assert ann.act("clear", layer="l1").json()["layers"][0]["voxels"] == 0
    assert ann.act("remove_layer", layer="l1").json()["layers"] == []


def test_an_action_for_another_revision_is_refused_with_the_present_work(ann):
    revision = ann.act("add_layer", name="x").json()["revision"]
    assert painted(ann, some_mask()).status_code == 200
    late = ann.act("clear", revision=revision, layer="l1")
    assert late.status_code == 409
    assert late.json()["detail"] == "the case is at revision 2, the action was for 1"
    assert late.json()["work"] == ann.work()
    np.testing.assert_array_equal(ann.mask("layers/l1"), some_mask())


def test_of_two_tabs_that_act_at_once_one_wins(ann):
    revision = ann.act("add_layer", name="x").json()["revision"]
    replies, together = [], threading.Barrier(4, timeout=20)

    def tab(number):
        together.wait()
        action = {"kind": "paint", "layer": "l1", "flips": [[number, 1]], "tool": "brush"}
        replies.append(ann.post(f"{ann.path}/actions", json={"revision": revision, "action": action}).status_code)

    with ann:  # one event loop for all, as a server has; what they ask for runs side by side in its threads
        tabs = [threading.Thread(target=tab, args=(number,)) for number in range(4)]
        for one in tabs:
            one.start()
        for one in tabs:
            one.join()
    assert sorted(replies) == [200, 409, 409, 409]
    assert ann.mask("layers/l1").sum() == 1


@pytest.mark.parametrize(
    ("action", "status", "detail"),
    [
        ({"kind": "undo"}, 422, "there is nothing to undo"),
        ({"kind": "clear", "layer": "l7"}, 404, "no layer 'l7' here"),
        ({"kind": "pick", "answer": "a1"}, 404, "no answer 'a1' here"),
        ({"kind": "paint", "layer": "l1", "flips": [[SIZE - 1, 2]], "tool": "brush"}, 422, "runs must have a length"),
        ({"kind": "paint", "layer": "l1", "flips": [[0, 5], [4, 1]], "tool": "brush"}, 422, "runs must not overlap"),
        ({"kind": "paint", "layer": "l1", "flips": [[-1, 2]], "tool": "brush"}, 422, "greater than or equal to 0"),
        ({"kind": "paint", "layer": "l1", "flips": [[0, 0]], "tool": "brush"}, 422, "greater than or equal to 1"),
        ({"kind": "paint", "layer": "l1", "flips": [], "tool": "brush"}, 422, "at least 1 item"),
        ({"kind": "paint", "layer": "l1", "flips": [[0, 1]] * 500_001, "tool": "brush"}, 422, "at most 500000 items"),
        ({"kind": "paint", "layer": "l1", "flips": [[0, 1]], "tool": "axe"}, 422, "'brush', 'eraser' or 'fill'"),
        ({"kind": "smooth", "layer": "l1", "radius_mm": 1e9}, 422, "less than or equal to 100"),
        ({"kind": "fill_between", "layer": "l1", "axis": 3}, 422, "0, 1 or 2"),
        ({"kind": "add_layer", "name": "  "}, 422, "at least 1 character"),
        ({"kind": "add_layer", "name": "x" * 81}, 422, "at most 80 characters"),
        (
            {"kind": "add_layer", "name": "a\nb"},
            422,
            "action.add_layer.name: every character must be one that is seen, found U+000A",
        ),
        ({"kind": "add_layer", "name": "a\u202eb"}, 422, "found U+202E (right-to-left override); leave it out"),
        ({"kind": "rename_layer", "layer": "l1", "name": "a\u2028b"}, 422, "found U+2028 (line separator)"),
        ({"kind": "add_layer", "name": "x", "path": "/etc"}, 422, "Extra inputs are not permitted"),
        ({"kind": "dance"}, 422, "does not match any of the expected tags"),
        ({"kind": "clear", "layer": "../../x"}, 422, "pattern"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_done_is_told_in_one_line_and_changes_nothing(ann, action, status, detail):
    if action["kind"] != "undo":
        ann.act("add_layer", name="x")
    before = ann.work()
    reply = ann.act(**action)
    assert reply.status_code == status
    assert detail in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]
    assert ann.work() == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"revision": true}', b"\xff\xfe", b'{"revision": NaN}'])
def test_a_body_that_is_no_request_is_refused(ann, body):
    reply = ann.post(f"{ann.path}/actions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert isinstance(reply.json()["detail"], str)


@pytest.mark.parametrize(
    "path",
    ["answers/a1/consensus", "answers/x/consensus", "answers/a1/doubt.nii.gz", "answers/a1/proposals/0", "layers/l1",
     "layers/l1/file?format=nifti", "asks/q1", "asks/q1/progress", "nonsense"],
)  # fmt: skip
def test_ids_that_name_nothing_are_not_found(ann, path):
    reply = ann.get(f"{ann.path}/{path}")
    assert reply.status_code == 404
    assert isinstance(reply.json()["detail"], str)
    assert ann.get("/api/cases/c9").status_code == 404


def test_users_are_kept_apart(desk, ann, tmp_path):
    bob = Client(desk, "Bob")
    ann.act("add_layer", name="anns")
    ann.answered("liver", proposals=2)
    assert (bob.work()["layers"], bob.work()["answers"]) == ([], [])
    bob.act("add_layer", name="bobs")
    assert [layer["name"] for layer in ann.work()["layers"]] == ["anns"]
    assert sorted(p.parent.name for p in (tmp_path / "work" / "review").glob("*/events.jsonl")) == ["ann", "bob"]


def test_the_work_is_there_after_a_restart(ann, desk, tmp_path, system):
    ann.act("add_layer", name="x")
    painted(ann, some_mask())
    ann.answered("liver", proposals=3, seed=5)
    ann.act("pick", answer="a1", proposal=1, layer="l1", how="add")
    ann.act("undo")
    before, mask = ann.work(), ann.mask("layers/l1")
    desk.close()
    again = Client(desk_for(tmp_path / "v.nii.gz", tmp_path / "work", system))
    assert again.work() == before
    np.testing.assert_array_equal(again.mask("layers/l1"), mask)
    again.act("redo")
    np.testing.assert_array_equal(again.mask("layers/l1"), mask | again.mask("answers/a1/proposals/1"))
    assert again.answered("spleen")["id"] == "a2"


def test_a_damaged_log_and_a_changed_scan_close_only_their_case(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for n in range(2):
        write_volume(folder / f"v{n}.nii.gz", n)
    desk = desk_for(folder, tmp_path / "work")
    ann = Client(desk)
    ann.act("add_layer", name="x")
    ann.act("add_layer", name="y")
    desk.close()
    log = next((tmp_path / "work").rglob("events.jsonl"))
    log.write_bytes(b"x" + log.read_bytes()[1:])
    desk = desk_for(folder, tmp_path / "work")
    reply = Client(desk).get("/api/cases/c0")
    assert reply.status_code == 409
    assert "line 1 is damaged" in reply.json()["detail"]
    assert Client(desk, case="c1").work()["layers"] == []
    desk.close()


def test_a_disk_that_is_full_changes_nothing_and_is_told(ann, desk, monkeypatch):
    ann.act("add_layer", name="x")
    place = desk.place("ann", "c0")

    def full(data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place.log, "_write", full)
        reply = painted(ann, some_mask())
    assert reply.status_code == 507
    assert reply.json()["detail"] == "it could not be written, and nothing has changed: No space left on device"
    assert not ann.mask("layers/l1").any()
    assert painted(ann, some_mask()).status_code == 200


# --- asking


def test_an_answer_is_that_of_the_segmenter(ann, tmp_path):
    answer = ann.answered("liver", proposals=3, seed=4)
    truth = Segmenter(Bright())(read_scan(tmp_path / "v.nii.gz"), ["liver"], n=3, seed=4).targets[0]
    np.testing.assert_array_equal(ann.mask("answers/a1/consensus"), truth.consensus())
    for k in range(3):
        np.testing.assert_array_equal(ann.mask(f"answers/a1/proposals/{k}"), truth.choose(k))
    assert ann.get(f"{ann.path}/answers/a1/proposals/3").status_code == 404
    assert ann.get(f"{ann.path}/answers/a1/proposals/x").status_code == 422
    assert (answer["target"], answer["outcome"], answer["seed"]) == ("liver", truth.outcome, 4)
    assert answer["agreement"] == pytest.approx(truth.agreement_of(), abs=1e-4)
    assert [one["proposal"] for one in answer["distinct"]] == [one.k for one in truth.distinct()]
    doubt = ann.get(f"{ann.path}/answers/a1/doubt.nii.gz").content
    shown = nibabel.Nifti1Image.from_bytes(gzip.decompress(doubt)).get_fdata() / 255
    np.testing.assert_allclose(shown, truth.disagreement(), atol=1 / 255)
    ann.act("pick", answer="a1", proposal=2)
    np.testing.assert_array_equal(ann.mask("layers/l1"), truth.choose(2))
    ann.act("combine", answer="a1", proposals=[0, 2], how="union", layer="l1")
    np.testing.assert_array_equal(ann.mask("layers/l1"), truth.choose(0) | truth.choose(2))


def test_the_scan_is_looked_at_once_for_all_questions(ann, system):
    for prompt in ("liver", "spleen", "liver"):
        ann.answered(prompt)
    assert (system.looked, system.asked) == (1, 3)


def test_an_unknown_prompt_is_an_answer_with_the_nearest_names(ann):
    answer = ann.answered("mandible")
    assert (answer["outcome"], answer["proposals"], answer["target"]) == ("unknown prompt", 0, None)
    assert set(answer["nearest"]) <= {"liver", "spleen"}
    assert ann.get(f"{ann.path}/answers/{answer['id']}/consensus").status_code == 404
    assert ann.act("pick", answer=answer["id"]).status_code == 404


def test_several_names_are_told_before_they_are_asked_one_by_one(ann):
    told = ann.get(f"{ann.path}/meant", params={"prompt": "liver and spleen"}).json()
    assert told == {"targets": ["liver", "spleen"], "said": "liver and spleen", "nearest": []}
    assert ann.get(f"{ann.path}/meant", params={"prompt": "liver"}).json()["said"] == ""
    assert ann.get(f"{ann.path}/meant", params={"prompt": "mandible"}).json()["targets"] == []
    assert ann.get(f"{ann.path}/meant", params={"prompt": " "}).status_code == 422
    refused = ann.ask("liver and spleen")
    assert refused.status_code == 422
    assert refused.json()["detail"] == "'liver and spleen' is liver and spleen; ask for one after another"


def test_how_words_were_taken_is_kept_with_the_answer(ann):
    assert ann.answered("all of the hepatic organ")["target"] == "liver"
    answer = ann.answered("left lobe of the liver")
    assert (answer["target"], answer["outcome"]) == ("liver", "found")
    assert answer["understood"].endswith("was taken for all of the liver: a part of it is not known apart")


def test_progress_is_told_until_the_end(ann, system):
    system.gate.clear()
    ask = ann.ask("liver").json()
    assert ask == {"id": "q1", "prompt": "liver", "state": "running", "share": 0.0, "answer": None, "message": None}
    assert ann.work()["running"]["id"] == "q1"
    busy = ann.ask("spleen")
    assert (busy.status_code, busy.json()["detail"]) == (409, "'liver' is being answered; wait for it, or cancel it")
    threading.Timer(1.3, system.gate.set).start()
    told = ann.get(f"{ann.path}/asks/q1/progress")
    assert told.headers["content-type"].startswith("text/event-stream")
    states = [json.loads(line.removeprefix("data: ")) for line in told.text.split("\n\n") if line]
    shares = [state["share"] for state in states]
    assert len(states) > 2  # the beat is heard while nothing happens
    assert shares == sorted(shares)
    assert states[-1] == {**ask, "state": "done", "share": 1.0, "answer": "a1"}
    assert ann.get(f"{ann.path}/asks/q1").json() == states[-1]
    assert ann.work()["running"] is None


def test_a_question_can_be_cancelled_and_leaves_nothing(ann, system, tmp_path):
    system.gate.clear()
    ask = ann.ask("liver").json()["id"]
    assert ann.delete(f"{ann.path}/asks/{ask}").status_code == 200
    assert ann.ended(ask)["state"] == "cancelled"
    assert ann.work()["answers"] == []
    assert not list((tmp_path / "work").rglob("answers/*"))
    system.gate.set()
    assert ann.answered("liver")["outcome"] == "found"
    assert ann.delete(f"{ann.path}/asks/q2").json()["state"] == "done"  # too late


def test_one_question_waits_for_another_persons_and_can_be_cancelled_meanwhile(ann, desk, system):
    bob = Client(desk, "bob")
    system.gate.clear()
    first, second = ann.ask("liver").json()["id"], bob.ask("spleen").json()["id"]
    bob.delete(f"{bob.path}/asks/{second}")
    assert bob.ended(second)["state"] == "cancelled"
    third = bob.ask("spleen").json()["id"]
    system.gate.set()
    assert ann.ended(first)["state"] == bob.ended(third)["state"] == "done"


def test_what_goes_wrong_while_asking_is_told_in_one_line(ann, system, monkeypatch):
    def broken(*args, **more):
        raise RuntimeError("a bug\nof ours")

    with monkeypatch.context() as patch:
        patch.setattr(system, "propose", broken)
        ended = ann.ended(ann.ask("liver").json()["id"])
    assert (ended["state"], ended["message"]) == ("failed", "RuntimeError: a bug of ours")
    assert ann.answered("liver")["outcome"] == "found"


@pytest.mark.parametrize(
    ("more", "detail"),
    [
        ({"prompt": " "}, "at least 1 character"),
        ({"prompt": "x" * 201}, "at most 200 characters"),
        ({"proposals": 65}, "less than or equal to 64"),
        ({"proposals": "8"}, "valid integer"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"marks": [{"voxel": [0, 0, SHAPE[2]], "positive": True}]}, "must lie inside the scan"),
        ({"marks": [{"voxel": [0, 0, 0], "positive": True}, {"voxel": [0, 0, 0], "positive": False}]}, "not both"),
        ({"marks": [{"voxel": [0, 0, 0], "positive": True}] * 10_001}, "at most 10000 items"),
        ({"extra": 1}, "Extra inputs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_questions_are_bounded(ann, more, detail):
    reply = ann.ask(**{"prompt": "liver", **more})
    assert reply.status_code == 422
    assert detail in reply.json()["detail"]


def test_marks_move_the_answer_without_looking_again(ann, system):
    ann.answered("liver", proposals=2)
    inside, outside = (0, 3, 2), (19, 8, 2)
    marks = [{"voxel": inside, "positive": True}, {"voxel": outside, "positive": False}]
    before = ann.mask("answers/a1/consensus")
    assert not before[inside]
    assert before[outside]
    answer = ann.answered("liver", proposals=2, marks=marks, refines="a1")
    after = ann.mask("answers/a2/consensus")
    assert after[inside]
    assert not after[outside]
    assert answer["refines"] == "a1"
    assert answer["marks"] == [{**mark, "voxel": list(mark["voxel"])} for mark in marks]
    assert (system.looked, system.asked) == (1, 1)
    assert ann.ask("liver", refines="a9").status_code == 404


# --- saving


def test_saving_writes_the_mask_and_where_it_comes_from(ann, tmp_path):
    ann.answered("liver", proposals=2, seed=3)
    ann.act("pick", answer="a1", proposal=1)
    painted(ann, some_mask())
    ann.act("clear", layer="l1")
    ann.act("undo")
    saved = ann.post(f"{ann.path}/save", json={}).json()
    folder = tmp_path / "work" / "review" / "ann" / "saved"
    assert saved["folder"] == "work/review/ann/saved"  # no path of the server is told
    (file,) = saved["files"]
    path = folder / file["name"]
    assert (file["name"], file["layer"], file["bytes"]) == ("liver.nii.gz", "l1", path.stat().st_size)
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(read_labels(path).voxels != 0, ann.mask("layers/l1"))
    told = json.loads((folder / "liver.json").read_text())
    assert told["reviewer"] == "ann"
    assert told["scan"] == {
        "name": "v.nii.gz",
        "sha256": hashlib.sha256((tmp_path / "v.nii.gz").read_bytes()).hexdigest(),
    }
    assert told["layer"] == {"id": "l1", "name": "liver", "voxels": int(ann.mask("layers/l1").sum())}
    assert told["files"] == [{key: file[key] for key in ("name", "sha256", "bytes")}]
    (answer,) = told["answers"]
    assert answer["prompt"] == "liver"
    assert (answer["seed"], answer["model_sha256"], answer["marks"], answer["proposals"]) == (3, "f" * 64, [], 2)
    assert [(e["n"], e["kind"]) for e in told["edits"]] == [(1, "pick"), (2, "paint")]  # what was undone is left out
    assert told["edits"][0]["detail"]["proposal"] == 1
    gained, lost = (
        (some_mask() & ~ann.mask("answers/a1/proposals/1")).sum(),
        (some_mask() & ann.mask("answers/a1/proposals/1")).sum(),
    )
    assert (told["edits"][1]["voxels_added"], told["edits"][1]["voxels_removed"]) == (gained, lost)
    work = ann.work()
    assert work["layers"][0]["saved"]
    assert work["history"][-1]["text"] == "saved liver"
    assert not ann.act("clear", layer="l1").json()["layers"][0]["saved"]  # and a save makes no action late


def test_layers_of_one_name_never_share_a_file(ann, tmp_path):
    for name in ("Left kidney", "left_kidney", "left kidney"):
        ann.act("add_layer", name=name)
    painted(ann, some_mask(1), "l1")
    painted(ann, some_mask(2), "l2")
    painted(ann, some_mask(3), "l3")
    first = ann.post(f"{ann.path}/save", json={"layers": ["l2"]}).json()["files"]
    assert [f["name"] for f in first] == ["left_kidney.nii.gz"]
    every = ann.post(f"{ann.path}/save", json={}).json()["files"]
    names = {f["layer"]: f["name"] for f in every}
    assert names["l2"] == "left_kidney.nii.gz"  # a layer keeps its file
    assert len(set(names.values())) == 3
    for number in (1, 2, 3):
        mask = read_labels(tmp_path / "work" / "review" / "ann" / "saved" / names[f"l{number}"]).voxels != 0
        np.testing.assert_array_equal(mask, some_mask(number))
    ann.act("remove_layer", layer="l2")
    again = ann.post(f"{ann.path}/save", json={}).json()["files"]
    assert {f["layer"]: f["name"] for f in again} == {k: v for k, v in names.items() if k != "l2"}


def test_what_a_scan_cannot_be_saved_as_is_refused(ann):
    ann.act("add_layer", name="x")
    for format_, detail in (("png", "is a volume"), ("seg", "is no DICOM series")):
        for reply in (
            ann.post(f"{ann.path}/save", json={"format": format_}),
            ann.get(f"{ann.path}/layers/l1/file?format={format_}"),
        ):
            assert reply.status_code == 422
            assert detail in reply.json()["detail"]
    assert ann.get(f"{ann.path}/layers/l1/file?format=exe").status_code == 422
    assert ann.post(f"{ann.path}/save", json={"layers": ["l9"]}).status_code == 404
    assert not ann.work()["layers"][0]["saved"]


def test_a_layer_can_be_downloaded_as_it_is_now(ann, tmp_path):
    ann.act("add_layer", name='../../Evil "name"')
    painted(ann, some_mask())
    reply = ann.get(f"{ann.path}/layers/l1/file?format=nifti")
    assert reply.headers["content-disposition"] == 'attachment; filename="evil_name.nii.gz"'
    shown = nibabel.Nifti1Image.from_bytes(gzip.decompress(reply.content))
    np.testing.assert_array_equal(shown.get_fdata() != 0, some_mask())
    assert not list((tmp_path / "work").rglob("*.nii.gz"))


def test_a_flat_image_is_saved_as_png(tmp_path):
    from PIL import Image

    desk = desk_for(write_picture(tmp_path / "p.png", colour=True), tmp_path / "work")
    ann = Client(desk)
    assert (ann.work()["case"]["flat"], ann.work()["case"]["colour"]) == (True, True)
    answer = ann.answered("liver", proposals=2)
    assert answer["unit"] == "pixels"
    ann.act("pick", answer="a1")
    (file,) = ann.post(f"{ann.path}/save", json={}).json()["files"]
    assert file["name"] == "liver.png"
    mask = ann.mask("layers/l1", (1, 24, 30))[0]
    saved = Image.open(io.BytesIO((tmp_path / "work" / "review" / "ann" / "saved" / "liver.png").read_bytes()))
    np.testing.assert_array_equal(np.asarray(saved), mask * np.uint8(255))
    desk.close()


def test_earlier_answers_are_there_for_everybody_and_can_be_picked(tmp_path):
    scan = write_volume(tmp_path / "v.nii.gz")
    segmenter = Segmenter(Bright())
    run_cohort(
        segmenter,
        [Found.at(scan)],
        SegmentRequest(("liver",), n=2, pictures=False),
        tmp_path / "out",
        model_hash="m" * 64,
    )
    desk = desk_for(tmp_path / "out")
    truth = segmenter(read_scan(scan), ["liver"], n=2).targets[0]
    for user in ("ann", "bob"):
        client = Client(desk, user)
        assert [a["id"] for a in client.work()["answers"]] == ["s0"]
        client.act("pick", answer="s0", proposal=1)
        np.testing.assert_array_equal(client.mask("layers/l1"), truth.choose(1))
        (file,) = client.post(f"{client.path}/save", json={}).json()["files"]
        told = json.loads((tmp_path / "out" / "v" / "review" / user / "saved" / "liver.json").read_text())
        assert told["answers"][0]["model_sha256"] == "m" * 64
        assert file["name"] == "liver.nii.gz"
    desk.close()


def test_a_dicom_series_is_saved_as_nifti_and_as_seg_on_its_own_frames(tmp_path):
    import pydicom.data as pydicom_data

    from delineate.scans.dicom.seg import read_seg

    series = tmp_path / "series"
    bundled = Path(pydicom_data.__file__).parent / "test_files" / "dicomdirtests" / "98892001" / "CT5N"
    shutil.copytree(bundled, series)
    desk = desk_for(series, tmp_path / "work")
    ann = Client(desk)
    shape = tuple(ann.work()["case"]["shape"])
    mask = np.zeros(shape, bool)
    mask[1:3, 4:9, 2:12] = True
    ann.act("add_layer", name="liver")
    ann.act("add_layer", name="nothing in it")
    painted(ann, mask)
    files = ann.post(f"{ann.path}/save", json={}).raise_for_status().json()["files"]
    assert [file["name"] for file in files] == ["liver.nii.gz", "liver.dcm", "nothing_in_it.nii.gz"]
    folder = tmp_path / "work" / "review" / "ann" / "saved"
    np.testing.assert_array_equal(read_labels(folder / "liver.nii.gz").voxels != 0, mask)
    (segment,) = read_seg(folder / "liver.dcm")
    assert len(segment.points_mm()) == mask.sum()
    told = json.loads((folder / "liver.json").read_text())
    assert [file["name"] for file in told["files"]] == ["liver.nii.gz", "liver.dcm"]
    assert ann.get(f"{ann.path}/layers/l1/file?format=seg").content[128:132] == b"DICM"
    empty = ann.post(f"{ann.path}/save", json={"layers": ["l2"], "format": "seg"})
    assert (empty.status_code, "is empty" in empty.json()["detail"]) == (422, True)
    desk.close()


def test_answers_of_before_are_read_whatever_they_call_their_agreement():
    told = {"proposal": 0, "weight": 1.0, "spread": 0.0, "volume": 3.0}
    assert Distinct.model_validate(told | {"quality": 0.5}) == Distinct.model_validate(told | {"agreement": 0.5})
    assert "agreement" in Distinct.model_validate(told | {"quality": 0.5}).model_dump()
    entry = {"prompt": "liver", "target": "liver", "outcome": "found", "quality": 0.7, "consensus_ml": 1.0}
    info = info_of(entry, "s0", seed=0, marks=[], refines=None, seconds=0.0)
    assert (info.agreement, info.expected_dice, info.why) == (0.7, None, None)
