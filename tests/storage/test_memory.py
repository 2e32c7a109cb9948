import gzip
import resource
import subprocess
import sys
import textwrap

import nibabel
import numpy as np
import pytest
import torch

from delineate.errors import DelineateError
from delineate.storage import memory
from delineate.storage.memory import OutOfMemory, at_once, free_bytes, in_smaller_batches, is_out_of_memory, need

GIB = 1 << 30


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A control group with limits, as files: `group(limit, used, cache)`."""

    def make(limit, used, cache):
        for name, value in (("max", limit), ("current", used), ("stat", f"anon 1\ninactive_file {cache}\n")):
            (tmp_path / name).write_text(str(value))
        files = tmp_path / "max", tmp_path / "current", tmp_path / "stat"
        monkeypatch.setattr(memory, "_groups", lambda: [files])
        return memory._free_in_group()

    return make


def test_a_container_s_limit_counts_and_what_it_would_give_back(group):
    assert group(4 * GIB, 3 * GIB, GIB) == 2 * GIB
    assert group("max", GIB, 0) is None
    assert group(1 << 62, GIB, 0) is None  # version 1 has no word for none


def test_the_least_of_all_limits_is_what_is_free(group):
    group(GIB, GIB // 2, 0)
    assert free_bytes() <= GIB // 2
    with pytest.raises(
        OutOfMemory, match=r"ct\.nii: reading it takes about 2\.1 GB of memory and 0\.5 GB are free here"
    ):
        need(2 * GIB, "ct.nii: reading it")
    need(100, "ct.nii: reading it")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemory("x"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_all_that_say_that_memory_ran_out_are_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of range"), OSError("No space")])
def test_and_nothing_else_is(error):
    assert not is_out_of_memory(error)


def test_batches_shrink_until_they_fit_and_are_as_usual_afterwards():
    tried = []

    def work():
        tried.append(at_once(64))
        if at_once(64) > 1:
            raise MemoryError
        return "done"

    assert in_smaller_batches(work) == "done"
    assert tried == [64, 16, 1]
    assert at_once(64) == 64


def test_other_errors_are_not_tried_again():
    tried = []

    def work():
        tried.append(1)
        raise ValueError("shapes")

    with pytest.raises(ValueError, match="shapes"):
        in_smaller_batches(work)
    assert tried == [1]


def test_what_never_fits_is_told_in_a_line():
    def work():
        raise MemoryError

    with pytest.raises(DelineateError, match="memory ran out, with one slice at a time too"):
        in_smaller_batches(work)


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA], ids=["ulimit -v", "ulimit -d"])
def test_a_scan_that_a_limit_does_not_hold_is_refused_before_it_is_read(tmp_path, limit):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((700, 700, 700))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    header["scl_slope"] = 2  # else the voxels would stay as they are stored
    with gzip.open(tmp_path / "large.nii.gz", "wb", 1) as file:
        file.write(header.binaryblock + b"\0" * 4)
        for _ in range(70):
            file.write(bytes(2 * 700 * 700 * 10))
    code = f"""
        import resource
        from delineate.errors import DelineateError
        from delineate.scans.reading import read_scan
        resource.setrlimit({limit}, (3 * 2**29, 3 * 2**29))
        try:
            read_scan({str(tmp_path / "large.nii.gz")!r})
        except DelineateError as error:
            print(type(error).__name__, error)
        told = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(int(told["VmHWM"].split()[0]) >> 10)  # ru_maxrss begins with that of the parent
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    line, peak = done.stdout.splitlines()
    assert line.startswith("OutOfMemory")
    assert "large.nii.gz: reading it takes about 2.1 GB of memory and" in line
    assert int(peak) < 600
