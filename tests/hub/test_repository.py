"""Models to and from the Hugging Face Hub: its own library, and a server that answers as the Hub does."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, constants

from delineate.errors import ModelError
from delineate.hub import repository
from delineate.hub.repository import fetch, publish, write_repository
from delineate.model_folder import fingerprint, save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.segmenter import Segmenter
from delineate.storage.shipped import house_folder
from delineate.systems.plain import PlainConfig, build

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The folder of a model that knows nothing; do not write there."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    system = build(PlainConfig(32, (8, 16)), Vocabulary.from_names(["liver", "spleen"], "CT"), seed=0)
    training = {"datasets": ["ours: [x, # license: mit", "btcv_ct"]}
    save_model(folder, Segmenter(system, ("CT",)), "unet", training=training, card="# ours\n\nNot a medical device.\n")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with the repository me/liver, whose files lie in `served`; what is asked of it, in `asked`."""
    served = tmp_path / "served"
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            asked.append(self.path)
            path = self.path.split("?")[0]
            if path.startswith("/api/models/me/liver"):
                names = [p.relative_to(served).as_posix() for p in sorted(served.rglob("*")) if p.is_file()]
                if "/tree/" in path:
                    entries = [{"type": "file", "path": n, "size": 1, "oid": "0"} for n in names]
                    return self.answer(200, json.dumps(entries).encode(), body)
                told = {"id": "me/liver", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return self.answer(200, json.dumps(told).encode(), body)
            if not path.startswith("/me/liver/resolve/"):
                return self.answer(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
            name = path.split("/", 5)[5]
            if not (served / name).is_file():
                return self.answer(404, b"{}", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            held = (served / name).read_bytes()
            etag = hashlib.sha256(held).hexdigest()
            return self.answer(200, held, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def answer(self, code, held, body, headers=()):
            self.send_response(code)
            for key, value in {"Content-Length": str(len(held)), **dict(headers)}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(held)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    huggingface_hub.close_session()
    yield served, asked
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def test_a_repository_is_the_model_folder_and_a_card_that_machines_read(model, tmp_path):
    written = Segmenter.load(model).save_pretrained(tmp_path / "mine", licence="cc-by-4.0")
    own = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    assert {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()} == own | {"README.md"}
    assert all((written / name).read_bytes() == (model / name).read_bytes() for name in own)
    card = ModelCard.load(written / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert (card.data.library_name, card.data.pipeline_tag) == ("delineate", "image-segmentation")
    assert {"medical", "unet", "CT", "liver", "spleen"} <= set(card.data.tags)
    assert card.data.datasets == ["ours: [x, # license: mit", "btcv_ct"]  # a name is a name
    assert "Not a medical device" in card.text
    again = Segmenter.from_pretrained(written)
    assert again.fingerprint == fingerprint(model)
    assert Segmenter.load(written).vocabulary == again.vocabulary


def test_the_model_that_ships_tells_what_held_out_subjects_taught(tmp_path):
    card = ModelCard.load(write_repository(None, tmp_path / "house") / "README.md")
    assert card.data.license == "apache-2.0"
    results = {one.metric_args["target"]: one for one in card.data.eval_results}
    liver = results["liver"]
    assert (liver.metric_type, liver.dataset_split) == ("dice", "val")
    assert 0.9 < liver.metric_value < 1
    assert "btcv_ct" in liver.dataset_name


def test_a_readme_beside_is_not_read_and_nothing_else_may_lie_there(model, tmp_path):
    written = write_repository(model, tmp_path / "mine")
    (written / "README.md").write_text("changed on the page")
    assert Segmenter.from_pretrained(written).fingerprint == fingerprint(model)
    (written / "more.py").write_text("print(1)")
    with pytest.raises(ModelError, match=r"'more.py' is not part of the model"):
        Segmenter.from_pretrained(written)


def test_a_model_comes_from_the_hub_and_of_the_repository_nothing_else(model, tmp_path, hub):
    served, asked = hub
    write_repository(model, served)
    (served / "evil.py").write_text("raise SystemExit")
    segmenter = Segmenter.from_pretrained("hf://me/liver")
    assert segmenter.fingerprint == fingerprint(model)
    assert any("/resolve/main/manifest.json" in path for path in asked)
    assert not [path for path in asked if "evil" in path or "README" in path]
    assert not list((tmp_path / "cache").rglob("evil.py"))
    assert segmenter.save_pretrained(tmp_path / "copy").is_dir()


def test_what_was_changed_on_the_way_is_refused(model, hub):
    served, _ = hub
    write_repository(model, served)
    (served / "vocabulary.json").write_text("{}")
    with pytest.raises(ModelError, match=r"'vocabulary.json' was changed or damaged"):
        Segmenter.from_pretrained("hf://me/liver")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://me/other", "hf://me/other: no such repository, or a private one"),
        ("hf://me/liver", r"hf://me/liver: holds no model of delineate \(no manifest.json\)"),
        ("hf://liver", "is written hf://ORGANISATION/NAME"),
        ("hf://me/liver/../../x", "is written hf://ORGANISATION/NAME"),
    ],
)
def test_what_the_hub_has_not_is_told_in_a_line(hub, address, message):
    served, _ = hub
    served.mkdir()
    with pytest.raises(ModelError, match=message) as caught:
        Segmenter.from_pretrained(address)
    assert "\n" not in str(caught.value)


def test_nothing_is_fetched_for_a_folder_that_is_not_there(hub):
    _, asked = hub
    with pytest.raises(ModelError, match=r"me/liver: no such model folder; .* is named hf://me/liver"):
        Segmenter.from_pretrained("me/liver")
    assert asked == []


def test_without_a_connection_it_is_told_in_a_line():
    with pytest.raises(ModelError, match="hf://me/liver@v1: the Hugging Face Hub cannot be reached") as caught:
        fetch("hf://me/liver@v1")
    assert "\n" not in str(caught.value)


def test_what_is_pushed_is_what_is_written(model, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repository, *, private, exist_ok):
            sent["private"] = private
            return f"https://huggingface.co/{repository}"

        def upload_folder(self, *, repo_id, folder_path, **_):
            sent["files"] = {p.name for p in Path(folder_path).rglob("*") if p.is_file()}

    monkeypatch.setattr(repository, "HfApi", Api)
    page = Segmenter.load(model).push_to_hub("me/liver", token="secret")
    assert page == "https://huggingface.co/me/liver"
    assert sent["private"] is True
    assert sent["token"] == "secret"
    assert {"README.md", "manifest.json", "config.json"} <= sent["files"]
    with pytest.raises(ModelError, match="'liver': a repository to write to is named ORGANISATION/NAME"):
        publish(model, "liver")


def test_what_is_in_no_folder_cannot_be_written(model, tmp_path):
    segmenter = Segmenter.load(model)
    with pytest.raises(ModelError, match="came from no model folder"):
        segmenter.calibrated(None).save_pretrained(tmp_path / "x")
    with pytest.raises(ModelError, match="is the model itself"):
        segmenter.save_pretrained(model)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists and is not a model folder"):
        segmenter.save_pretrained(tmp_path / "other")
    assert house_folder().is_dir()
