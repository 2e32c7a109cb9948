import fcntl
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from delineate.errors import BusyError
from delineate.storage import swapping as module
from delineate.storage.swapping import locked, swapping, sweep


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def put(folder, files, keep=module.keep_nothing):
    with swapping(folder, keep) as building:
        for name, text in files.items():
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            (building / name).write_text(text)
    return folder


def notes_of(folder):
    return {name: name for name in ("notes.txt", "review") if (folder / name).exists()}


@pytest.fixture(params=["exchange", "renames"])
def system(request, monkeypatch):
    """File systems on which folders can change places, and others."""
    if request.param == "renames":
        monkeypatch.setattr(module, "exchange", lambda one, other: False)


@pytest.mark.usefixtures("system")
def test_a_folder_is_replaced_whole_and_what_is_kept_comes_along(tmp_path):
    folder = put(tmp_path / "case", {"a": "1", "b": "1"})
    (folder / "notes.txt").write_text("mine")
    (folder / "review").mkdir()
    (folder / "review" / "log").write_text("mine too")
    put(folder, {"a": "2"}, notes_of)
    assert content(folder) == {"a": "2", "notes.txt": "mine", "review/log": "mine too"}
    assert [p.name for p in tmp_path.iterdir()] == ["case"]


@pytest.mark.usefixtures("system")
def test_what_is_kept_never_takes_the_place_of_what_is_new(tmp_path):
    folder = put(tmp_path / "case", {"notes.txt": "mine", "notes-kept.txt": "also mine"})
    put(folder, {"notes.txt": "new", "notes-kept.txt": "new"}, notes_of)
    assert content(folder) == {"notes.txt": "new", "notes-kept.txt": "new", "notes-kept-2.txt": "mine"}


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("there", [True, False])
def test_a_block_that_raises_changes_nothing(tmp_path, there):
    folder = tmp_path / "case"
    if there:
        put(folder, {"a": "1"})

    def broken():
        with swapping(folder, notes_of) as building:
            (building / "a").write_text("2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert [p.name for p in tmp_path.iterdir()] == ["case"] * there
    assert not there or content(folder) == {"a": "1"}


@pytest.mark.parametrize("there", [True, False])
def test_a_disk_that_fails_at_the_last_step_changes_nothing(tmp_path, monkeypatch, there):
    folder = tmp_path / "case"
    if there:
        put(folder, {"a": "1", "notes.txt": "mine"})

    def fail(*arguments):
        raise OSError("the disk is gone")

    monkeypatch.setattr(module, "_put", fail)
    with pytest.raises(OSError, match="gone"):
        put(folder, {"a": "2"}, notes_of)
    assert [p.name for p in tmp_path.iterdir()] == ["case"] * there
    assert not there or content(folder) == {"a": "1", "notes.txt": "mine"}


KILLED = """
import os, sys
from pathlib import Path
from delineate.storage import swapping as module
count = int(sys.argv[2])
def killing(function):
    def call(*arguments, **more):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), 9)
        return function(*arguments, **more)
    return call
for owner, name in ((os, "open"), (os, "fsync"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (Path, "touch"),
                    (Path, "write_text"), (module.shutil, "rmtree"), (module, "_bring"), (module, "_put")):
    setattr(owner, name, killing(getattr(owner, name)))
if sys.argv[3] == "renames":
    module.exchange = lambda one, other: False
with module.swapping(Path(sys.argv[1]), lambda folder: {"notes.txt": "notes.txt"}) as building:
    (building / "a").write_text("2")
    (building / "b").write_text("2")
"""


@pytest.mark.parametrize("system", ["exchange", "renames"])
def test_after_a_kill_at_any_moment_the_folder_is_the_old_or_the_new_one_and_no_note_is_lost(tmp_path, system):
    old, new = {"a": "1", "notes.txt": "mine"}, {"a": "2", "b": "2", "notes.txt": "mine"}
    for count in range(100):
        folder = put(tmp_path / str(count) / "case", old)
        run = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(count), system]
        code = subprocess.run(run, check=False).returncode
        assert code in (0, -signal.SIGKILL)
        if system == "exchange":  # at no moment is there none
            assert {k: v for k, v in content(folder).items() if k in ("a", "b")} in ({"a": "1"}, {"a": "2", "b": "2"})
        sweep(folder.parent, notes_of)
        assert content(folder) in (old, new)
        assert [p.name for p in folder.parent.iterdir()] == ["case"]
        if code == 0:
            assert content(folder) == new
            return
    raise AssertionError("it never ended")


def test_two_do_not_write_one_folder(tmp_path):
    with swapping(tmp_path / "case") as building:
        (building / "a").write_text("1")
        with pytest.raises(BusyError, match="case: another command is writing it; wait for it"):
            put(tmp_path / "case", {"a": "2"})
        assert sweep(tmp_path) == []
    assert content(tmp_path / "case") == {"a": "1"}


def test_a_folder_is_locked_for_one_or_shared(tmp_path):
    shared = locked(tmp_path, "is at work here", shared=True)
    with shared, locked(tmp_path, "is at work here", shared=True), pytest.raises(BusyError, match="is at work here"):
        locked(tmp_path, "is at work here").__enter__()
    with locked(tmp_path, "is at work here"):
        pass


def test_sweeping_finishes_what_is_whole_and_removes_the_rest(tmp_path):
    put(tmp_path / "one", {"a": "1"})
    for name in ("one", "two", "half"):
        (tmp_path / f".writing-{name}").mkdir()
        (tmp_path / f".writing-{name}" / "a").write_text("2")
    for name in ("one", "two"):
        (tmp_path / f".writing-{name}" / ".whole").touch()
    (tmp_path / ".writing-abc.json").write_text("{")
    live = (tmp_path / ".writing-live.json").open("w")
    fcntl.flock(live, fcntl.LOCK_EX)
    (tmp_path / ".writing-young.json").write_text("{")
    os.utime(tmp_path / ".writing-abc.json", (0, 0))
    os.utime(tmp_path / ".writing-live.json", (0, 0))
    assert sweep(tmp_path) == ["one", "two"]
    assert content(tmp_path / "one") == content(tmp_path / "two") == {"a": "2"}
    assert sorted(os.listdir(tmp_path)) == [".writing-live.json", ".writing-young.json", "one", "two"]
    live.close()


def test_the_current_folder_can_be_the_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "." / "x" / "..", {"a": "1"})
    assert content(tmp_path) == {"a": "1"}


def test_a_folder_is_held_until_the_process_ends(tmp_path):
    code = f"""
        from pathlib import Path
        from delineate.storage.swapping import hold
        hold(Path({str(tmp_path)!r}), "is at work")
        hold(Path({str(tmp_path)!r}), "is at work")
        print("held", flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(BusyError, match="another command is at work"):
        module.hold(tmp_path, "is at work")
    other.communicate(b"\n")
    with locked(tmp_path, "is at work"):
        pass


def test_what_is_kept_goes_back_where_not_all_of_it_can_be_moved(tmp_path, monkeypatch):
    folder = put(tmp_path / "case", {"a": "1", "notes.txt": "mine", "review/log": "mine too"})
    rename = module.Path.rename

    def fail_at_the_second(path, to):
        if path == folder / "review":
            raise OSError("the disk is gone")
        return rename(path, to)

    monkeypatch.setattr(module.Path, "rename", fail_at_the_second)
    with pytest.raises(OSError, match="gone"):
        put(folder, {"a": "2"}, notes_of)
    assert content(folder) == {"a": "1", "notes.txt": "mine", "review/log": "mine too"}
    assert [p.name for p in tmp_path.iterdir()] == ["case"]
