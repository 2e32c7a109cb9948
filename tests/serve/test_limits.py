"""Full queues, rates, deadlines, clients that go, and the end: who is refused, with which words, and who is finished."""

import io
import socket
import threading
import time
import zipfile

import pytest
from tests.review_world import Bright, write_volume
from tests.serve_world import ANN, BEN, refused, served, taken_apart

from delineate.serve.places import Ending, Errand, Full, Gone, Places, TooLong, TooOften
from delineate.serve.results import Results
from delineate.serve.service import Limits
from delineate.serve.worker import Turnstile, Worker


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_volume(tmp_path_factory.mktemp("scans") / "scan.nii.gz").read_bytes()


def until(check, seconds=60.0):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()

    def result():
        thread.join(120)
        return found[0]

    return result


def test_more_than_may_wait_are_told_when_to_come_back_and_who_waits_is_answered(tmp_path, data):
    with served(tmp_path, Limits(places=3)) as server:
        server.system.gate.clear()
        waiting = [in_thread(lambda: server.segment(data, prompt="liver", n=1)) for _ in range(3)]
        until(lambda: server.service.places.taken == 3)
        reply = server.segment(data, prompt="liver", n=1)
        assert "are waiting" in refused(reply, 503)
        assert int(reply.headers["retry-after"]) >= 1
        with server.client() as client:  # what needs no model is answered all the same
            assert client.get("/ready").status_code == 200
            assert "delineate_places_taken 3.0" in client.get("/metrics").text
            assert client.get(f"/monai/{ANN}/info/").status_code == 200
        server.system.gate.set()
        for reply in waiting:
            taken_apart(reply())
        taken_apart(server.segment(data, prompt="liver", n=1))


def test_a_client_that_goes_ends_its_work_and_the_next_has_its_turn(tmp_path, data):
    with served(tmp_path, Limits(places=1)) as server:
        server.system.gate.clear()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            body = multipart(data)
            client.sendall(post(server.port, len(body)) + body)
            until(lambda: server.system.asked == 1)
        until(lambda: server.service.places.taken == 0)  # although the gate is closed
        server.system.gate.set()
        taken_apart(server.segment(data, prompt="liver", n=1))
        until(lambda: not list(server.service.results.work.iterdir()))


def post(port, length, kind="multipart/form-data; boundary=x", path="/api/segment") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {ANN}\r\n"
    return f"{head}content-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()


def multipart(data: bytes, name="scan.nii.gz") -> bytes:
    about = f'--x\r\ncontent-disposition: form-data; name="scan"; filename="{name}"\r\n\r\n'.encode()
    prompt = b'\r\n--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nliver\r\n--x--\r\n'
    return about + data + prompt


def test_what_takes_too_long_is_ended(tmp_path, data):
    with served(tmp_path, Limits(seconds=0.5)) as server:
        server.system.gate.clear()
        first = in_thread(lambda: server.segment(data, prompt="liver", n=1))
        time.sleep(0.1)
        second = in_thread(lambda: server.segment(data, prompt="liver", n=1))  # which waits for its turn in vain
        for reply in (first(), second()):
            assert "took longer" in refused(reply, 504)
        server.system.gate.set()
        until(lambda: server.service.places.taken == 0)


def test_the_end_finishes_what_is_begun_and_refuses_the_rest(tmp_path, data):
    with served(tmp_path, Limits()) as server:
        server.system.gate.clear()
        begun = in_thread(lambda: server.segment(data, prompt="liver", n=1))
        until(lambda: server.system.asked == 1)
        server.service.places.ending = True
        with server.client() as client:
            assert client.get("/health").status_code == 200
            assert "being stopped" in refused(client.get("/ready"), 503)
        reply = server.segment(data, prompt="liver", n=1)
        assert "being stopped" in refused(reply, 503)
        assert reply.headers["retry-after"] == "10"
        assert not server.service.places.empty(0.05)
        server.system.gate.set()
        taken_apart(begun())
        assert server.service.places.empty(5)


def test_what_does_not_end_in_time_is_told_so(tmp_path, data):
    with served(tmp_path, Limits()) as server:
        server.system.gate.clear()
        begun = in_thread(lambda: server.segment(data, prompt="liver", n=1))
        until(lambda: server.system.asked == 1)
        server.service.places.stop_all(Ending("the server is being stopped", 10))
        assert "being stopped" in refused(begun(), 503)
        server.system.gate.set()


def test_answers_of_jobs_outlive_the_server(tmp_path, data):
    with served(tmp_path) as server, server.client() as client:
        job = server.segment(data, path="/api/jobs", prompt="liver", n=1).json()["id"]
        until(lambda: client.get(f"/api/jobs/{job}").json()["state"] == "done")
    (tmp_path / "work" / "left").mkdir()  # by one that was killed
    (tmp_path / "results" / "nobodys.zip").write_bytes(b"x")
    with served(tmp_path) as server, server.client() as client, server.client(BEN) as other:
        taken_apart(client.get(f"/api/jobs/{job}/result"))
        refused(other.get(f"/api/jobs/{job}/result"), 404)
        assert list((tmp_path / "work").iterdir()) == []
        assert sorted(p.name for p in (tmp_path / "results").iterdir()) == [f"{job}.json", f"{job}.zip"]


def test_a_model_that_is_not_loaded_is_not_ready(tmp_path, data):
    with served(tmp_path) as server, server.client() as client:
        server.service.loaded = False
        assert "being loaded" in refused(client.get("/ready"), 503)
        assert client.get("/health").status_code == 200


def test_a_token_has_its_rate_and_no_other_token_pays_for_it(tmp_path, data):
    with served(tmp_path, Limits(a_minute=2)) as server:
        for _ in range(2):
            taken_apart(server.segment(data, prompt="liver", n=1))
        reply = server.segment(data, prompt="liver", n=1)
        assert "2 times a minute" in refused(reply, 429)
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        taken_apart(server.segment(data, prompt="liver", n=1, token=BEN))


def test_places():
    now = [0.0]
    places = Places(most=2, seconds=60, a_minute=60, clock=lambda: now[0])
    one, two = places.take("ann"), places.take("ann")
    with pytest.raises(Full, match="2 requests are waiting") as full:
        places.take("ann")
    assert full.value.retry_after >= 1
    places.leave(one)
    places.leave(one)
    assert places.taken == 1
    places.take("ben")
    places.leave(two)
    for _ in range(57):
        places.leave(places.take("ann"))
    with pytest.raises(TooOften, match="60 times a minute; ask again in 1 s"):
        places.take("ann")
    now[0] += 1
    places.leave(places.take("ann"))
    places.ending = True
    with pytest.raises(Ending):
        places.take("ann")


def test_an_errand_says_why_it_ends():
    errand = Errand("ann", time.monotonic() + 60)
    errand.on_step(0.5)
    errand.stop(Gone("first"))
    errand.stop(TooLong("second"))
    with pytest.raises(Gone, match="first"):
        errand.on_step(0.6)
    assert errand.share == 0.5
    with pytest.raises(TooLong, match="longer than this server allows"):
        Errand("ann", time.monotonic()).check()


def test_those_who_wait_pass_in_their_order_and_who_gives_up_is_not_waited_for():
    gate, order, go_on = Turnstile(1), [], threading.Event()

    def pass_(name, check=lambda: None):
        with gate.passing(check):
            order.append(name)
            go_on.wait(60)

    def give_up():
        raise Gone("x")

    first = threading.Thread(target=pass_, args=("first",))
    first.start()
    until(lambda: order == ["first"])
    with pytest.raises(Gone):
        pass_("never", give_up)
    others = []
    for name in "abc":
        others.append(threading.Thread(target=pass_, args=(name,)))
        others[-1].start()
        until(lambda: gate.waiting == len(others))
    go_on.set()
    for thread in (first, *others):
        thread.join(60)
    assert order == ["first", "a", "b", "c"]
    pass_("again")


def test_one_computes_at_a_time_and_always_the_same_thread():
    worker, seen, busy = Worker(), set(), []

    def work(on_step):
        busy.append(1)
        assert len(busy) == 1
        seen.add(threading.get_ident())
        time.sleep(0.01)
        busy.pop()

    threads = [threading.Thread(target=worker, args=(Errand("ann", time.monotonic() + 60), work)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 1
    with pytest.raises(ZeroDivisionError):
        worker(Errand("ann", time.monotonic() + 60), lambda on_step: 1 // 0)
    worker.close()


def test_answers_are_kept_so_long_and_so_much(tmp_path):
    now = [100.0]
    results = Results(tmp_path, seconds=10, most_bytes=100, clock=lambda: now[0])

    def kept(name, size=40):
        path = results.work / "x"
        path.write_bytes(b"x" * size)
        return results.keep(name, path, "ann")

    first = kept("a")
    kept("b")
    assert results.get("a") == first
    with first.path.open("rb") as reading:
        kept("c")  # 120 bytes: the oldest goes
        assert results.get("a") is None
        assert len(reading.read()) == 40  # for whoever reads it already
    assert results.bytes == 80
    now[0] += 11
    assert results.get("b") is None
    assert list(results.folder.iterdir()) == []


def test_an_empty_zip_is_not_a_scan(tmp_path):
    with served(tmp_path, system=Bright()) as server:
        packed = io.BytesIO()
        zipfile.ZipFile(packed, "w").close()
        assert "must hold DICOM files" in refused(server.segment(packed.getvalue(), "a.zip"), 422)
