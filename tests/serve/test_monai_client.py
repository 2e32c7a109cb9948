"""MONAI Label's clients on a server without cases: recorded requests, OHIF's, and the Python client itself if it is there.

The client itself is run where MONAI_LABEL_PYTHON names an interpreter that has the wheel `monailabel` (installed with
`--no-deps`, since all of it would bring torchvision) and `requests`.
"""

import base64
import json
import os
import subprocess
import threading

import numpy as np
import pytest
from tests.review.test_monai_label import Slicer, labels_in
from tests.review_world import Bright, write_volume
from tests.serve_world import ANN, BEN, PROXY, refused, served

from delineate.review.monai_desk import CLICKS, WORDS
from delineate.scans.reading import read_scan
from delineate.segmenter import Segmenter

INTERPRETER = os.environ.get("MONAI_LABEL_PYTHON", "")
SCRIPT = """
import base64, json, os, sys
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

client = MONAILabelClient(sys.argv[1], tmpdir=sys.argv[3])
told = {"auth": client.auth_enabled(), "models": sorted(client.info()["models"])}
told["next"] = client.next_sample("next", {})
told["cases"] = client.datastore()["objects"]
told["training"] = client.train_status(check_if_running=True)
session = client.create_session(sys.argv[2])["session_id"]
told["kept"] = client.get_session(session)["name"] == session
asked = {"prompt": "liver", "proposals": 2}
file, params = client.infer("delineate", "my volume", dict(asked), session_id=session)
by_session = open(file, "rb").read()  # the next answer has the same name
told["names"] = params["label_names"]
os.remove(file)
file, params = client.infer("delineate", "my volume", dict(asked), file=sys.argv[2])
told["same"] = open(file, "rb").read() == by_session
clicks = {"label": "liver", "foreground": [[1, 2, 3]], "background": [], "proposals": 1}
told["clicked"] = client.infer("delineate-clicks", "my volume", clicks, session_id=session)[1]["label_names"]
client.remove_session(session)
try:
    client.infer("delineate", "my volume", {}, session_id=session)
except MONAILabelClientException as error:
    told["refused"] = error.msg
told["labels"] = base64.b64encode(by_session).decode()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return write_volume(tmp_path_factory.mktemp("scans") / "scan.nii.gz")


@pytest.fixture(scope="module")
def liver(volume):
    return Segmenter(Bright())(read_scan(volume), ["liver"], n=2)["liver"].consensus()


def test_slicer_s_way_with_a_volume_of_its_own(server, volume, liver):
    slicer = Slicer(server.port, ANN)
    assert slicer("auth_enabled").json() == {"enabled": False}
    info = slicer("info").json()
    assert (set(info["models"]), info["datastore"]["total"]) == ({WORDS, CLICKS}, 0)
    assert slicer("next_sample", first="next").json() == {}
    assert slicer("datastore").json()["objects"] == {}
    session = slicer("create_session", file=volume.read_bytes()).json()["session_id"]
    _, labels = slicer("infer_session", SESSION=session).inferred()
    np.testing.assert_array_equal(labels != 0, liver)
    _, sent = slicer("infer_file", file=volume.read_bytes()).inferred()
    np.testing.assert_array_equal(sent, labels)
    assert Slicer(server.port, BEN)("infer_session", SESSION=session).status == 404
    assert slicer("remove_session", SESSION=session).status == 200
    assert slicer("infer_session", SESSION=session).status == 404
    assert slicer("save_label", file=volume.read_bytes(), CASE="c0").status == 404
    assert server.service.places.taken == 0


def test_several_of_one_person_wait_for_their_turn_where_the_page_would_refuse(server, volume, liver):
    slicer, replies = Slicer(server.port, ANN), []
    session = slicer("create_session", file=volume.read_bytes()).json()["session_id"]
    server.system.gate.clear()
    threads = [
        threading.Thread(target=lambda: replies.append(slicer("infer_session", SESSION=session))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    server.system.gate.set()
    for thread in threads:
        thread.join(120)
    for reply in replies:
        np.testing.assert_array_equal(reply.inferred()[1] != 0, liver)


def test_ohif_s_requests_from_a_page_of_the_same_name(server, volume):
    """As its `MonaiLabelClient.js` makes them; a series of an archive is not here, and it is told so."""
    own = {"host": "scans.example.org", "origin": PROXY, "sec_fetch_site": "same-origin"}
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "restore_label_idx": False, "label": "liver"}
    with server.client(**own) as client:
        assert set(client.get(f"/monai/{ANN}/info/").json()["models"]) == {WORDS, CLICKS}
        asked = {"params": (None, json.dumps(params))}
        reply = client.post(f"/monai/{ANN}/infer/{WORDS}?image=1.2.3&output=image", files=asked)
        assert "no such case" in refused(reply, 404)
        assert client.post(f"/monai/{ANN}/activelearning/next", json={}).json() == {}
        sent = asked | {"file": ("scan.nii.gz", volume.read_bytes())}
        reply = client.post(f"/monai/{ANN}/infer/{WORDS}?output=image", files=sent)
        assert (reply.status_code, reply.content[:4]) == (200, b"NRRD")
        refused(client.get(f"/monai/{ANN}/info/", headers={"sec-fetch-site": "cross-site"}), 403)
        elsewhere = {"origin": "https://ohif.example.org"}
        refused(client.post(f"/monai/{ANN}/infer/{WORDS}?image=1.2.3", files=asked, headers=elsewhere), 403)


@pytest.mark.skipif(not INTERPRETER, reason="MONAI_LABEL_PYTHON names no interpreter with MONAI Label's client")
def test_the_client_itself(server, volume, liver, tmp_path):
    command = [INTERPRETER, "-c", SCRIPT, f"{server.url}/monai/{ANN}", str(volume), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    np.testing.assert_array_equal(labels_in(base64.b64decode(told.pop("labels"))) != 0, liver)
    assert "no such session" in told.pop("refused")
    assert told == {
        "auth": False,
        "models": [WORDS, CLICKS],
        "next": {},
        "cases": {},
        "training": False,
        "kept": True,
        "names": {"liver": 1},
        "same": True,
        "clicked": {"liver": 1},
    }
