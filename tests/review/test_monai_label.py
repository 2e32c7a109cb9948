"""The endpoints in the shape of MONAI Label, asked by what its client really sends, over a real socket.

`recorded/monai_label_client.json` holds the requests of MONAI Label's own Python client, byte for byte, with words in
the place of ids and files. Answers are taken apart as that client does.
"""

import gzip
import io
import json
import re
import socket
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from tests.review.test_safety import serving
from tests.review_world import AFFINE, SHAPE, Bright, desk_for, write_picture, write_volume

from delineate.interaction.marker import Marker, MarkerConfig
from delineate.interaction.network import MarksNetwork
from delineate.proposals.target import Outcome
from delineate.review.app import create_app
from delineate.review.monai_desk import CLICKS, WORDS, MonaiDesk, Params
from delineate.review.monai_label import FOLDER, LARGER
from delineate.review.safety import allowed_hosts, guard
from delineate.review.uploads import Sessions, UploadError, read_sent, scan_sent
from delineate.review.work import NotHere
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "monai_label_client.json").read_text(encoding="utf-8"))[
    "requests"
]
TOKEN, OTHER = "slicer-0123456789abcdef", "another-0123456789abcdef"


class Reply:
    """A response, taken apart as MONAI Label's client does."""

    def __init__(self, data: bytes):
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, _, rest = head.partition(b"\r\n")
        self.status = int(first.split()[1])
        self.headers = BytesParser(policy=HTTP).parsebytes(rest + b"\r\n\r\n", headersonly=True)

    def json(self):
        return json.loads(self.body)

    def parts(self) -> tuple[dict, dict]:
        """The form and the files of a multipart response, by field and by file name."""
        kind = self.headers["content-type"]
        assert kind.startswith("multipart/form-data; boundary=")
        message = BytesParser(policy=HTTP).parsebytes(b"content-type: " + kind.encode() + b"\r\n\r\n" + self.body)
        form, files = {}, {}
        for part in message.iter_parts():
            data = part.get_payload(decode=True)
            if part.get_filename():
                assert part.get_content_type() == "application/octet-stream"
                files[part.get_filename()] = data
            else:
                form[part.get_param("name", header="content-disposition")] = data.decode()
        return form, files

    def inferred(self) -> tuple[dict, np.ndarray]:
        """What was told and the label map."""
        assert self.status == 200, self.body
        form, files = self.parts()
        ((name, data),) = files.items()
        return json.loads(form["params"]), labels_in(data, name)


def labels_in(data: bytes, name: str = "label.nii.gz") -> np.ndarray:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data) if name.endswith(".gz") else data)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    return np.asarray(image.dataobj)


class Slicer:
    """Sends recorded requests to a server."""

    def __init__(self, port: int, token: str = TOKEN):
        self.port, self.token = port, token

    def __call__(self, name: str, file: bytes = b"", **words: str) -> Reply:
        """The answer to a recorded request, with these words in the place of others and a file in its place."""
        text = RECORDED[name].replace(TOKEN, self.token).replace("127.0.0.1:8765", f"127.0.0.1:{self.port}")
        for old, new in words.items():
            text = text.replace(old, new)
        return self.send(text.encode("latin-1").replace(b"@FILE@", file))

    def send(self, data: bytes) -> Reply:
        head, blank, body = data.partition(b"\r\n\r\n")
        if body:  # the words have other lengths than those recorded
            head = re.sub(rb"(?i)(content-length: )\d+", rb"\g<1>%d" % len(body), head)
        head += b"\r\nConnection: close" if b"Connection" not in head else b""
        head = head.replace(b"keep-alive", b"close")
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
            client.sendall(head + blank + body)
            return Reply(b"".join(iter(lambda: client.recv(65536), b"")))

    def infer(self, params: dict, model: str = WORDS, query: str = "image=c0", files: dict | None = None) -> Reply:
        """`infer` with parameters of one's own, in the client's form."""
        limit = "--x"
        lines = [f'--{limit}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(params)}\r\n'.encode()]
        for key, (filename, data) in (files or {}).items():
            about = f'--{limit}\r\nContent-Disposition: form-data; name="{key}"; filename="{filename}"\r\n\r\n'
            lines += [about.encode(), data, b"\r\n"]
        body = b"".join(lines) + f"--{limit}--\r\n".encode()
        head = f"POST {FOLDER}/{self.token}/infer/{model}?{query} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        kind = f"content-type: multipart/form-data; boundary={limit}\r\ncontent-length: {len(body)}\r\n\r\n"
        return self.send((head + kind).encode() + body)


@pytest.fixture
def desk(tmp_path):
    desk = desk_for(write_volume(tmp_path / "scan.nii.gz"), tmp_path / "out", modality="MR")
    yield desk
    desk.close()


@pytest.fixture
def slicer(desk):
    def app(port):
        options = {"tokens": {TOKEN: "ann", OTHER: "ben"}, "larger": LARGER}
        return guard(create_app(desk), hosts=allowed_hosts(port), token_folders=(FOLDER,), **options)

    with serving(app) as port:
        yield Slicer(port)


@pytest.fixture
def expected(desk):
    """The label map that both names give, and the scan."""
    scan = desk.cases["c0"].scan()
    proposals = desk.answering.segmenter()(scan, ["liver", "spleen"], n=2)
    labels, ids = proposals.label_map()
    assert ids == {"liver": 1, "spleen": 2}
    assert set(np.unique(labels)) == {0, 1, 2}
    return labels, scan


def test_a_client_finds_models_labels_and_cases(slicer):
    assert slicer("auth_enabled").json() == {"enabled": False}
    info = slicer("info").json()
    assert info["labels"] == ["liver", "spleen"]
    assert info["datastore"] == {"total": 1, "completed": 0, "label_tags": {"final": 0}}
    assert {name: model["type"] for name, model in info["models"].items()} == {
        WORDS: "segmentation",
        CLICKS: "deepgrow",
    }
    for model in info["models"].values():
        assert model["labels"] == {"liver": 1, "spleen": 2}
        assert set(model) == {"type", "labels", "dimension", "description", "config"}
    assert not info.get("config")  # 3D Slicer takes one for an old server
    assert slicer("train_running").status == 404  # which the client reads as: not running
    assert slicer("next_sample", first="next").json() == {"id": "c0", "name": "scan.nii.gz"}
    assert slicer("next_sample").status == 404
    assert set(slicer("datastore").json()["objects"]) == {"c0"}


def test_nobody_gets_in_without_the_token(slicer, desk):
    strangers = Slicer(slicer.port, "wrong-0123456789abcdef")
    for name in RECORDED:
        assert strangers(name, file=b"x", CASE="c0").status == 401, name
    assert desk.answering._loaded is None


def test_the_scan_of_a_case_comes_as_it_is(slicer, desk):
    # as 3D Slicer fetches it: by the address alone
    request = f"GET {FOLDER}/{TOKEN}/datastore/image?image=c0 HTTP/1.1\r\nHost: 127.0.0.1:{slicer.port}\r\n\r\n"
    reply = slicer.send(request.encode())
    np.testing.assert_array_equal(labels_in(reply.body), desk.cases["c0"].scan().voxels)


def test_all_names_in_one_label_map(slicer, expected):
    told, labels = slicer("infer_case", CASE="c0").inferred()
    np.testing.assert_array_equal(labels, expected[0])
    assert told["label_names"] == {"liver": 1, "spleen": 2}
    assert [(one["prompt"], one["outcome"]) for one in told["answers"]] == [("liver", "found"), ("spleen", "found")]


def test_names_that_do_not_fit_the_scan_stay_empty_and_say_why(slicer, desk, expected, monkeypatch):
    unfit = {"spleen": (Outcome.NOT_LEARNT, "learnt in CT alone")}
    monkeypatch.setattr(Segmenter, "misfit", lambda self, seen, target: unfit.get(target))
    told, labels = slicer("infer_case", CASE="c0").inferred()
    np.testing.assert_array_equal(labels, expected[0] == 1)
    assert [(one["outcome"], one["misfit"]) for one in told["answers"]] == [
        ("found", None),
        ("not learnt here", "learnt in CT alone"),
    ]
    reply = slicer.infer({"prompt": "spleen", "proposals": 2})
    assert reply.status == 422
    assert b"'spleen': learnt in CT alone" in reply.body


def test_names_that_are_asked_have_values_from_one_without_gaps(slicer, expected):
    told, labels = slicer("infer_prompt", CASE="c0").inferred()
    assert told["label_names"] == {"liver": 1}
    assert set(np.unique(labels)) == {0, 1}
    told, labels = slicer.infer({"prompt": "Spleen, liver", "proposals": 2}).inferred()
    assert told["label_names"] == {"Spleen": 1, "liver": 2}
    np.testing.assert_array_equal(labels, np.array([0, 2, 1])[expected[0]])


def test_where_two_names_are_equally_probable_the_first_has_the_voxel(slicer, expected):
    told, labels = slicer.infer({"prompt": "liver, Liver", "proposals": 2}).inferred()
    assert told["label_names"] == {"liver": 1, "Liver": 2}
    np.testing.assert_array_equal(labels, expected[0] == 1)


def test_clicks_are_heeded_in_names_known_and_unknown(slicer, desk):
    config = MarkerConfig(size=32, widths=(8, 8))  # untrained: what is marked holds all the same
    marker = Marker(config, MarksNetwork(config.widths, config.fold))
    desk.answering._load = lambda: Segmenter(Bright(), marker=marker)
    told, labels = slicer("infer_click", CASE="c0").inferred()
    assert (told["label_names"], labels[1, 2, 3]) == ({"liver": 1}, 1)
    assert slicer("infer_prompt", CASE="c0").inferred()[1][1, 2, 3] == 0  # the words alone see none there
    told, labels = slicer("infer_click", CASE="c0", liver="grape").inferred()
    assert (told["label_names"], labels[1, 2, 3]) == ({"grape": 1}, 1)


def test_one_request_looks_once_and_the_next_not_again(slicer, desk):
    slicer("infer_case", CASE="c0")
    system = desk.answering.segmenter().system
    assert (system.looked, system.asked) == (1, 2)
    slicer("infer_case", CASE="c0")
    assert (system.looked, system.asked) == (1, 4)


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd"])
def test_a_label_map_comes_in_the_format_asked_for(slicer, expected, extension, tmp_path):
    _, files = slicer.infer({"prompt": "liver,spleen", "proposals": 2, "result_extension": extension}).parts()
    ((name, data),) = files.items()
    assert name == f"label{extension}"
    (tmp_path / name).write_bytes(data)
    import SimpleITK

    image = SimpleITK.ReadImage(str(tmp_path / name))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), expected[0])
    assert image.GetSpacing() == pytest.approx((2, 3, 5))


def test_outputs(slicer, expected):
    params = {"prompt": "liver,spleen", "proposals": 2}
    assert slicer.infer(params, query="image=c0&output=json").json()["label_names"] == {"liver": 1, "spleen": 2}
    np.testing.assert_array_equal(labels_in(slicer.infer(params, query="image=c0&output=image").body), expected[0])
    refused = slicer.infer(params, query="image=c0&output=dicom_seg")
    assert (refused.status, "DICOM series" in refused.json()["detail"]) == (422, True)


def test_a_session_is_a_scan_for_a_while_and_for_one_person(slicer, expected, desk, tmp_path):
    scan = (tmp_path / "scan.nii.gz").read_bytes()
    opened = slicer("create_session", file=scan).json()
    session = opened["session_id"]
    assert not {"path", "image"} & set(opened["session_info"])
    _, labels = slicer("infer_session", SESSION=session).inferred()
    np.testing.assert_array_equal(
        labels != 0, desk.answering.segmenter()(expected[1], ["liver"], n=2)["liver"].consensus()
    )
    assert slicer("get_session", SESSION=session).status == 200
    assert Slicer(slicer.port, OTHER)("get_session", SESSION=session).status == 404
    assert Slicer(slicer.port, OTHER)("infer_session", SESSION=session).status == 404
    assert slicer("remove_session", SESSION=session).json()["name"] == session
    assert slicer("get_session", SESSION=session).status == 404


def test_a_scan_may_be_sent_along(slicer, tmp_path):
    _, sent = slicer("infer_file", file=(tmp_path / "scan.nii.gz").read_bytes()).inferred()
    _, kept = slicer("infer_prompt", CASE="c0").inferred()
    np.testing.assert_array_equal(sent, kept)


def test_a_client_with_a_bearer_token_repeats_old_headers_and_is_answered(slicer):
    assert slicer("bearer_infer", CASE="c0").status == 200
    assert slicer("bearer_info_after").status == 200
    # this one names a boundary that its body does not have: the client's own mistake, told and survived
    assert slicer("bearer_session_after", file=b"x").status in (400, 422)


def test_a_label_map_is_kept_in_layers_with_its_provenance(slicer, expected, desk, tmp_path):
    labels = expected[0]
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), AFFINE), tmp_path / "label.nii.gz")
    reply = slicer("save_label", file=(tmp_path / "label.nii.gz").read_bytes(), CASE="c0")
    assert reply.json() == {"image": "c0", "label": "c0", "layers": ["liver", "spleen"]}
    place = desk.place("ann", "c0")
    assert [(layer.name, layer.voxels, layer.saved) for layer in place.work.layers] == [
        ("liver", (labels == 1).sum(), True),
        ("spleen", (labels == 2).sum(), True),
    ]
    saved = place.folder / "saved"
    np.testing.assert_array_equal(read_labels(saved / "liver.nii.gz").voxels != 0, labels == 1)
    provenance = json.loads((saved / "spleen.json").read_text())
    assert provenance["edits"][-1]["detail"] == {"tool": "MONAI Label client"}
    assert provenance["reviewer"] == "ann"
    assert desk.place("ben", "c0").work.layers == []
    assert slicer("info").json()["datastore"]["completed"] == 1
    assert slicer("next_sample", first="next").json() == {}
    assert place.work.next_text("undo").startswith("spleen: MONAI Label client")  # it can be undone like anything else

    nibabel.save(nibabel.Nifti1Image((labels == 2).astype(np.uint8), AFFINE), tmp_path / "label.nii.gz")
    slicer("save_label", file=(tmp_path / "label.nii.gz").read_bytes(), CASE="c0")
    assert [layer.voxels for layer in place.work.layers] == [(labels == 2).sum(), 0]  # liver redrawn, spleen emptied


def test_a_label_map_of_another_grid_is_refused(slicer, tmp_path, desk):
    moved = AFFINE.copy()
    moved[0, 3] += 1
    for shape, affine in (((3, 3, 3), AFFINE), (SHAPE, moved)):
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.uint8), affine), tmp_path / "label.nii.gz")
        reply = slicer("save_label", file=(tmp_path / "label.nii.gz").read_bytes(), CASE="c0")
        assert reply.status == 422
        assert "the scan's own grid" in reply.json()["detail"]
    assert desk.place("ann", "c0").work.layers == []


def test_nothing_is_added_to_the_cases(slicer):
    assert slicer("upload_image", file=b"x").status == 405
    assert slicer("download_label", CASE="c0").status == 405


@pytest.mark.parametrize(
    ("params", "query", "model", "status", "words"),
    [
        ({"prompt": "nose"}, "image=c0", WORDS, 422, "not in the vocabulary|nose"),
        ({"prompt": "x" * 300}, "image=c0", WORDS, 422, "200 characters"),
        ({"prompt": "liver\u202e"}, "image=c0", WORDS, 422, r"params.prompt: every character .* found U\+202E"),
        ({"proposals": 0}, "image=c0", WORDS, 422, "params.proposals"),
        ({"proposals": 10**9}, "image=c0", WORDS, 422, "params.proposals"),
        ({"result_extension": "/../x"}, "image=c0", WORDS, 422, "params.result_extension"),
        ([1, 2], "image=c0", WORDS, 422, "params"),
        ({}, "image=../../etc/passwd", WORDS, 404, "no such case"),
        ({}, "image=", WORDS, 404, "no such case"),
        ({}, "image=c0&session_id=nope", WORDS, 404, "no such session"),
        ({}, "image=c0", "other", 404, "no such model"),
        ({"label": "liver"}, "image=c0", CLICKS, 422, "clicks are needed"),
        ({"label": "", "foreground": [[1, 1, 1]]}, "image=c0", CLICKS, 422, "empty"),
        ({"label": "liver", "foreground": [[99, 1, 1]]}, "image=c0", CLICKS, 422, "inside the scan"),
        ({"label": "liver", "foreground": [[1, 1, 1]], "background": [[1, 1, 1]]}, "image=c0", CLICKS, 422, "not both"),
        ({"label": "liver", "foreground": [["a", 1, 1]]}, "image=c0", CLICKS, 422, "params.foreground"),
    ],
)
def test_what_cannot_be_answered_is_told_in_one_line(slicer, params, query, model, status, words):
    reply = slicer.infer(params, model, query)
    assert reply.status == status
    assert re.search(words, reply.json()["detail"])
    assert "\n" not in reply.json()["detail"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("scan.exe", b"MZ"),
        ("scan.nii.gz", b"not gzip"),
        ("scan.nii.gz", gzip.compress(b"not nifti", mtime=0)),
        ("scan.nii.gz", b""),
        ("../../../tmp/x.nii", b"\0" * 400),
        ("scan.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_files_that_are_none_are_refused_and_leave_nothing(slicer, name, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(tmp_path.iterdir())
    reply = slicer.infer({"prompt": "liver"}, files={"file": (name, data)})
    assert reply.status == 422
    assert str(tmp_path) not in reply.json()["detail"]
    assert sorted(tmp_path.iterdir()) == before


def sent_volume(shape) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)).to_bytes(), mtime=0)


def sent_picture(shape, kind="PNG", **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "sound", "bomb"),
    [
        ("scan.nii.gz", sent_volume((10, 10, 10)), sent_volume((200, 200, 200))),
        ("scan.png", sent_picture((18, 18)), sent_picture((3000, 3000))),
        ("colour.png", sent_picture((18, 18, 3)), sent_picture((19, 19, 3))),  # three numbers a pixel
        (
            "scan.tif",
            sent_picture((18, 18), "TIFF", compression="tiff_adobe_deflate"),
            sent_picture((3000, 3000), "TIFF", compression="tiff_adobe_deflate"),
        ),
    ],
)
def test_files_that_are_larger_than_they_look_are_refused(slicer, name, sound, bomb, monkeypatch):
    monkeypatch.setattr("delineate.review.uploads.MOST_VOXELS", 1000)
    assert slicer.infer({"prompt": "liver"}, files={"file": (name, sound)}).status == 200
    reply = slicer.infer({"prompt": "liver"}, files={"file": (name, bomb)})
    assert reply.status == 422
    assert re.search("the file that was sent: at most (1000|333) voxels are read", reply.json()["detail"])
    if name == "scan.nii.gz":
        assert slicer("create_session", file=bomb).status == 422


def test_only_scans_and_label_maps_may_be_large(slicer):
    """A JSON body is held in memory, a file that is sent is not."""
    head = f"POST {FOLDER}/{TOKEN}/activelearning/next HTTP/1.1\r\nHost: 127.0.0.1:{slicer.port}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {17 * 1024**2}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", slicer.port), timeout=20) as client:
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 413")
    assert sorted(LARGER) == [f"{FOLDER}/datastore/", f"{FOLDER}/infer/", f"{FOLDER}/session/"]


def test_only_the_suffix_of_a_name_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []
    read_sent(io.BytesIO(b"abc"), "/etc/../passwd\0.NII.GZ", lambda path: seen.append((path, path.read_bytes())))
    ((path, data),) = seen
    assert (path.name, path.parent.parent, data, path.exists()) == ("sent.nii.gz", tmp_path, b"abc", False)
    with pytest.raises(UploadError, match="named like"):
        scan_sent(io.BytesIO(b"abc"), None)


def test_sessions_are_few_and_end():
    now = [0.0]
    sessions = Sessions(most=2, seconds=10, clock=lambda: now[0])
    scan = Scan(np.zeros((1, 1, 1), np.float32), np.eye(4))
    first = sessions.add("ann", scan)
    second = sessions.add("ann", scan)
    sessions.add("ben", scan)
    now[0] = 1
    assert sessions.get("ann", first.id) is first  # used later than the second, which goes first
    now[0] = 2
    sessions.add("ann", scan)
    with pytest.raises(NotHere, match="send the scan again"):
        sessions.get("ann", second.id)
    now[0] = 11
    assert sessions.get("ann", first.id) is first
    now[0] = 21.5
    with pytest.raises(NotHere):
        sessions.get("ann", first.id)


def test_a_person_asks_one_thing_at_a_time(tmp_path):
    system = Bright()
    desk = desk_for(write_volume(tmp_path / "scan.nii.gz"), tmp_path / "out", system, modality="MR")
    at = MonaiDesk(desk)
    with at.turn("ann"), pytest.raises(Exception, match="is being answered"), at.turn("ann"):
        pass
    with at.turn("ann"):
        pass


def test_names_of_another_modality_are_not_asked(tmp_path):
    desk = desk_for(write_volume(tmp_path / "scan.nii.gz"), tmp_path / "out", modality="MR")
    scan = read_scan(tmp_path / "scan.nii.gz", modality="CT")
    at = MonaiDesk(desk)
    assert [p.text for p in at.prompts(WORDS, Params(), desk.cases["c0"].scan())] == ["liver", "spleen"]
    with pytest.raises(Exception, match="no names for CT"):
        at.prompts(WORDS, Params(), scan)
    assert [p.text for p in at.prompts(WORDS, Params(prompt="liver, ,liver,"), scan)] == ["liver"]
    assert [p.text for p in at.prompts(WORDS, Params(prompt="liver and spleen, liver"), scan)] == ["liver", "spleen"]
    assert [p.text for p in at.prompts(WORDS, Params(prompt="all organs"), scan)] == ["liver", "spleen"]


def test_cases_are_handed_out_in_turn(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        write_picture(folder / f"p{number}.png")
    at = MonaiDesk(desk_for(folder, tmp_path / "out"))
    assert [at.next_case("ann") for _ in range(4)] == ["c0", "c1", "c2", "c0"]
    assert at.next_case("ben") == "c0"
    done = at.desk.cases["c1"].folder / "review" / "ann" / "saved"
    done.mkdir(parents=True)
    (done / "liver.json").write_text("{}")
    assert at.next_case("ann") == "c2"
    assert at.status("ann")["completed"] == 1
    assert at.status("ben")["completed"] == 0
