"""The house model's encoder in several runtimes: milliseconds a slice, and what they change, CPU.

    pip install onnx onnxscript onnxruntime openvino
    python benchmarks/runtimes.py --threads 2

Slices of 256×256, eight at once, to probabilities of the 13 abdominal organs; all ways are timed in turn, round after
round, in one process; CPU time and clock, medians. `changed` is the share of pixels whose label differs from
float32's. What is not installed is left out. Writes benchmarks/results/runtimes.json.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from delineate import Segmenter, open_dataset
from delineate.data.slices import build_slices
from delineate.prompts.captions import captions
from delineate.storage.files import write_json

RESULT = Path(__file__).parent / "results" / "runtimes.json"
AT_ONCE = 8


class Fixed(nn.Module):
    """The encoder and its head with the texts of a dataset's names read beforehand: slices to probabilities."""

    def __init__(self, system: Any, names: list[str]):
        super().__init__()
        concepts = [system.vocabulary.concepts[system.vocabulary.index(name)] for name in names]
        self.encoder, self.head = system.control.encoder.float(), system.control.head.float()
        with torch.no_grad():
            self.register_buffer("pooled", system.foundation.encode_text([captions(c)[0] for c in concepts]).pooled)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, 1 + C, S, S), background first."""
        logits = self.head(self.encoder.levels(image)[0], self.pooled)
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).softmax(dim=1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/btcv_ct"))
    parser.add_argument("--model", type=Path, help="model folder; without it the house model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    segmenter, dataset = Segmenter.load(args.model), open_dataset(args.data)
    network = Fixed(segmenter.system, list(dataset.labels)).eval()
    bank = build_slices([dataset], "val", segmenter.system.size, apart_mm=segmenter.habits.apart_mm)
    image = bank.images[:: len(bank) // AT_ONCE][:AT_ONCE].float() / 127.5 - 1
    ways = ways_of(network, image, args.threads)
    exact = ways["torch float32"]()
    told: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        out = way()
        told[name] = {
            "largest_difference": float(f"{float((out - exact).abs().max()):.2g}"),
            "changed": float(f"{float((out.argmax(1) != exact.argmax(1)).float().mean()):.2g}"),
        }
    clock: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            way()
            clock[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    for name, taken in clock.items():
        told[name]["ms_a_slice"] = round(1000 * median(t for t, _ in taken) / AT_ONCE, 1)
        told[name]["cpu_ms_a_slice"] = round(1000 * median(t for _, t in taken) / AT_ONCE, 1)
        told[name]["cpu_ratio"] = round(median(t for _, t in taken) / median(t for _, t in clock["torch float32"]), 3)
    result = {
        "size": segmenter.system.size,
        "threads": args.threads,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "rows": told,
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


def ways_of(network: Fixed, image: Tensor, threads: int) -> dict[str, Callable[[], Tensor]]:
    """Each runtime that is installed, as something to call."""

    def plain() -> Tensor:
        with torch.inference_mode():
            return network(image)

    def half() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return network(image).float()

    compiled = torch.compile(network)

    def fused() -> Tensor:
        with torch.inference_mode():
            return compiled(image)

    ways: dict[str, Callable[[], Tensor]] = {"torch float32": plain, "torch bfloat16": half, "torch.compile": fused}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        try:
            torch.onnx.export(network, (image,), path, dynamo=True, verbose=False)
        except ImportError as error:
            print(f"no ONNX: {error}")
            return ways
        ways |= onnx_ways(path, image, threads)
    return ways


def onnx_ways(path: Path, image: Tensor, threads: int) -> dict[str, Callable[[], Tensor]]:
    """ONNX Runtime and OpenVINO, where they are installed."""
    ways: dict[str, Callable[[], Tensor]] = {}
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        ways["ONNX Runtime"] = lambda: torch.from_numpy(session.run(None, {name: image.numpy()})[0])
    except ImportError as error:
        print(f"no ONNX Runtime: {error}")
    try:
        import openvino

        for label, precision in (("OpenVINO float32", "f32"), ("OpenVINO bfloat16", "bf16")):
            how = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
            model = openvino.Core().compile_model(str(path), "CPU", how)
            ways[label] = lambda model=model: torch.from_numpy(model(image.numpy())[0].copy())
    except ImportError as error:
        print(f"no OpenVINO: {error}")
    return ways


if __name__ == "__main__":
    main()
