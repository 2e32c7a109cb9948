import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from torch import distributed
from delineate.training.loop import Budget, train
from delineate.training.ranks import here, joined
from tests.training.test_loop import HYPER, denoising, size_alone, small_state

torch.set_num_threads(1)
with joined("cpu") as (ranks, device):
    state = small_state(seed=3)
    if not ranks.first:  # a start of its own, which must not count
        for p in state.module.parameters():
            p.data.add_(1.0)
    told = []
    seen = []
    plain = denoising(state)
    def loss_of(size, step):
        seen.append(step.generator.initial_seed())
        return plain(size, step)
    judge = (lambda state: told.append(1) or {"liver": 0.5})
    train(state, size_alone, loss_of, budget=Budget(images=320), folder=Path(sys.argv[2]), hyper=HYPER, judge=judge)
    weights = torch.cat([p.detach().flatten() for p in state.module.parameters()])
    both = [torch.zeros_like(weights) for _ in range(ranks.count)]
    distributed.all_gather(both, weights)
    assert ranks.count == 2
    assert torch.equal(*both), "the processes went apart"
    assert state.images_seen == 320
    assert len(seen) == 10  # steps of 2 x 16 images
    seeds = [None, None]
    distributed.all_gather_object(seeds, seen)
    assert not set(seeds[0]) & set(seeds[1]), "both drew the same batches"
    assert bool(told) == ranks.first
print("fine")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a free port")
def test_two_processes_train_one_model(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*command, "--master-addr=127.0.0.1", str(worker), str(Path(__file__).parents[2]), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("fine") == 2
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
