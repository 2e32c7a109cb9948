"""DiffBoost: does an ordinary segmenter profit from synthetic scans? Beside no and classical augmentation.

    python benchmarks/diffboost.py --data ../shared/data --base runs/diffboost/base --work runs/diffboost

BUSI (breast lesions, 10, 20, all training images), BTCV (spleen, 2, 4, all patients), CHAOS (both kidneys, 2, 4
patients). Each: a synthesizer fine-tuned on these training subjects alone, K variants of each case; then a U-Net with
no augmentation, with nnU-Net's stack, with synthetic scans (patches merged), and with both: the same number of
steps, several seeds, scored on the test split. The smaller sets are parts of the larger ones, drawn once.

Phases (all by default, each goes on where it was): synthesize, train (and score), grid (α × K × cell, second network),
distance (FRD-style), speed, report. Writes benchmarks/results/diffboost.json.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from delineate import open_dataset
from delineate.data.dataset import Dataset
from delineate.data.slices import SliceBank, Variants, build_slices
from delineate.evaluation.evaluation import evaluate
from delineate.jobs.synthesize import SynthesizeRequest, synthesize
from delineate.metrics.overlap import paired_interval
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.synthesis.artist import Drawing
from delineate.synthesis.contact_sheet import contact_sheet
from delineate.synthesis.edges import hint
from delineate.systems import plain
from delineate.training.loop import Budget, Run
from delineate.training.merging import Merging

SIZE = 64  # of the segmenters' grid, so that 96 trainings fit into an hour; the scans are drawn at 128
RESULT = Path(__file__).parent / "results" / "diffboost.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "synthetic.png"
SHOWN = ("busi-20", "btcv_ct-4", "chaos_mr_t2-4")
SETS: dict[str, tuple[tuple[str, ...], str, tuple[int | None, ...]]] = {  # targets, modality, training subjects
    "busi": (("breast lesion",), "US", (10, 20, None)),
    "btcv_ct": (("spleen",), "CT", (2, 4, None)),
    "chaos_mr_t2": (("right kidney", "left kidney"), "MR", (2, 4)),
}
ARMS = {  # augmentation, whether synthetic scans are merged in
    "none": ("none", False),
    "classical": ("nnunet", False),
    "diffboost": ("none", True),
    "both": ("nnunet", True),
}
NETWORKS = {"unet": ((16, 32, 64, 128), 1), "mednext": ((8, 16, 32, 64), 1)}
GRID = {"keep": (0.0, 0.3, 0.6, 0.8), "variants": (1, 4), "cell": (3, 11, SIZE)}
GRID_ON = "busi-20"
LAYOUT = ("images", "masks", "imagesTr", "labelsTr", "dataset.json")


def main() -> None:
    """Every phase asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--base", type=Path, help="a foundation with an edge control; else the package's own")
    parser.add_argument("--work", type=Path, default=Path("runs/diffboost"))
    parser.add_argument("--tune", type=int, default=2500, help="images of fine-tuning and of the gate's segmenter")
    parser.add_argument("--variants", type=int, default=4, help="K")
    parser.add_argument("--steps", type=int, default=8, help="of DDIM; 5, 20 and 50 look alike")
    parser.add_argument("--images", type=int, default=2000, help="of every segmenter's training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="jobs at once, a thread each")
    parser.add_argument("--phase", nargs="*", default=["synthesize", "train", "grid", "distance", "speed", "report"])
    parser.add_argument("--only", nargs="*", help="these settings alone, such as chaos_mr_t2-2")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the report goes")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # one job, in a process of its own
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.job:
        return run_job(args, args.job)
    settings = [f"{name}-{count or 'all'}" for name, (_, _, counts) in SETS.items() for count in counts]
    settings = [setting for setting in settings if not args.only or setting in args.only]
    seeds = range(args.seeds)
    jobs = {
        "synthesize": [f"synthesize/{setting}" for setting in settings],
        "train": [f"train/{setting}/{seed}" for seed in seeds for setting in settings],
        "grid": grid_jobs(),
        "distance": [f"distance/{setting}" for setting in settings],
        "speed": ["speed/all"],
    }
    for phase in args.phase:
        if phase == "report":
            report(args, settings)
        else:
            queue(args, jobs[phase])


def queue(args: argparse.Namespace, jobs: Sequence[str]) -> None:
    """Run the jobs that are not done, so many at once."""
    waiting = [job for job in jobs if not result_path(args, job).exists()]

    def run(job: str) -> None:
        words = [sys.executable, __file__, "--job", job, "--data", args.data, "--work", args.work]
        words += ["--tune", args.tune, "--steps", args.steps, "--variants", args.variants, "--images", args.images]
        words += ["--base", args.base] if args.base else []
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        print(job, "done" if done.returncode == 0 else f"FAILED\n{done.stderr[-2000:]}", flush=True)

    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(run, waiting))


def run_job(args: argparse.Namespace, job: str) -> None:
    """One job: its figures into its own JSON file."""
    kind, setting, *rest = job.split("/")
    start = time.process_time()
    if kind == "synthesize":
        figures: Any = synthesize_one(args, setting)
    elif kind == "train":
        figures = {}
        for merged in (False, True):
            bank = bank_of(args, setting, merged)
            for arm, (augmentation, merges) in ARMS.items():
                if merges == merged:
                    merging = Merging() if merged else Merging("none")
                    figures[arm] = train_one(args, setting, bank, augmentation, merging, int(rest[0]))
    elif kind == "grid":
        network, keep, variants, cell = rest
        merging = Merging("patch", float(keep), int(cell) / SIZE)
        bank = fewer(bank_of(args, setting, merging.keep < 1), int(variants))
        figures = {"rows": train_one(args, setting, bank, "none", merging, 0, network=network)}
    elif kind == "distance":
        figures = distance_one(args, setting)
    else:
        figures = speed(args)
    write_json(result_path(args, job), {"job": job, "seconds": round(time.process_time() - start, 1), **figures})


def result_path(args: argparse.Namespace, job: str) -> Path:
    """Where a job's figures go."""
    path = args.work / "figures" / f"{job}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def grid_jobs() -> list[str]:
    """α × K × cell for the U-Net; α alone, at the paper's cell, for MedNeXt; and both without synthetic scans."""
    cells = [(k, v, c) for v in GRID["variants"] for c in GRID["cell"] for k in GRID["keep"]]
    jobs = [f"grid/{GRID_ON}/unet/{k}/{v}/{c}" for k, v, c in cells]
    jobs += [f"grid/{GRID_ON}/mednext/{k}/{GRID['variants'][-1]}/11" for k in GRID["keep"]]
    return [*jobs, *(f"grid/{GRID_ON}/{network}/1.0/1/11" for network in NETWORKS)]


def folder_of(args: argparse.Namespace, setting: str) -> Path:
    """The dataset with so many training subjects: links into the data, and splits of its own."""
    name, _, count = setting.rpartition("-")
    folder = args.work / "data" / setting
    if not (folder / "splits.json").exists():
        splits = json.loads((args.data / "splits.json").read_text())[name]
        train = sorted(splits["train"])
        random.Random(0).shuffle(train)
        folder.mkdir(parents=True, exist_ok=True)
        for part in LAYOUT:
            if (args.data / name / part).exists() and not (folder / part).exists():
                (folder / part).symlink_to((args.data / name / part).resolve())
        write_json(folder / "splits.json", {**splits, "train": sorted(train[: None if count == "all" else int(count)])})
    return folder


def dataset_of(args: argparse.Namespace, setting: str, *, synthetic: bool = False) -> Dataset:
    """The real dataset of a setting, or the one with synthetic scans."""
    targets, modality, _ = SETS[setting.rpartition("-")[0]]
    folder = args.work / "synthetic" / setting if synthetic else folder_of(args, setting)
    return open_dataset(folder, targets=targets, modality=modality)


def synthesize_one(args: argparse.Namespace, setting: str) -> dict[str, Any]:
    """Fine-tune, draw, judge; every variant is kept on disk by the job itself."""
    targets, modality, _ = SETS[setting.rpartition("-")[0]]
    named = f"{folder_of(args, setting)}={','.join(targets)}@{modality}"
    drawing = Drawing(variants=args.variants, steps=args.steps)
    request = SynthesizeRequest(named, drawing, foundation=args.base, images=args.tune)
    return synthesize(request, args.work / "synthetic" / setting)


def bank_of(args: argparse.Namespace, setting: str, merged: bool) -> SliceBank:
    """Training slices, paired with their variants or alone."""
    dataset = dataset_of(args, setting, synthetic=merged)
    return build_slices([dataset], "train", SIZE, synthetic="pair" if merged else "none")


def train_one(
    args: argparse.Namespace,
    setting: str,
    bank: SliceBank,
    augmentation: str,
    merging: Merging,
    seed: int,
    *,
    network: str = "unet",
) -> list[dict[str, Any]]:
    """Train a plain network, score it on the test split."""
    widths, blocks = NETWORKS[network]
    system = plain.build(plain.PlainConfig(SIZE, widths, network, blocks), bank.vocabulary, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Budget(images=args.images), Path(folder), seed)
        plain.train(system, replace(bank, augmentation=augmentation), run, merging=merging)
    rows = evaluate(Segmenter(system, bank.modalities), dataset_of(args, setting), n=1, fusions=("mean",))
    return [{"case": r.case, "target": r.target, "present": r.present, **r.consensus["mean"]} for r in rows]


def fewer(bank: SliceBank, variants: int) -> SliceBank:
    """The bank with the first so many variants of each slice."""
    if bank.variants is None:
        return bank
    return replace(bank, variants=Variants(bank.variants.images, bank.variants.of[:, :variants].contiguous()))


def distance_one(args: argparse.Namespace, setting: str) -> dict[str, Any]:
    """FRD-style distances from the real training scans: synthetic, held-out real, noisy real, another modality."""
    from delineate.synthesis.distance import feature_table, frechet_distance, image_set

    name = setting.rpartition("-")[0]
    size, limit = 128, 120
    bank = {
        which: build_slices([dataset_of(args, setting)], which, size, synthetic="none") for which in ("train", "test")
    }
    shown = {which: one.images[one.present.any(1), 1].float().numpy() / 127.5 - 1 for which, one in bank.items()}
    real, held = (thinned(shown[which], limit) for which in ("train", "test"))
    drawn = build_slices([dataset_of(args, setting, synthetic=True)], "train", size, synthetic="pair").variants
    assert drawn is not None
    synthetic = thinned(drawn.images[:, 1].float().numpy() / 127.5 - 1, limit)
    other = {"busi": "chaos_mr_t2", "btcv_ct": "chaos_mr_t2", "chaos_mr_t2": "btcv_ct"}[name]
    sets = {"synthetic": synthetic, "held-out real": held}
    sets["real with noise 0.1"] = np.clip(real + np.random.default_rng(0).normal(0, 0.1, real.shape), -1, 1)
    sets[f"other modality ({other})"] = image_set(args.data / other, size=size, limit=limit).images
    reference = feature_table(list(real))
    results = {key: frechet_distance(reference, feature_table(list(images))) for key, images in sets.items()}
    return {
        "reference": len(reference),
        "floor": results["synthetic"].floor,
        "distances": {key: {"distance": r.distance, "n": r.n_other} for key, r in results.items()},
        "differs_most": [f"{f.name}: {f.in_words()}" for f in results["synthetic"].features[:5]],
    }


def thinned(images: np.ndarray, most: int) -> np.ndarray:
    """At most so many, evenly spaced."""
    return images[np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))]


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Images a second: edges and captions looked at once, against once a step with guidance as SD pipelines do."""
    from delineate.diffusion.codec import noise_fields
    from delineate.storage.shipped import HOUSE_SYNTHESIS, house_folder
    from delineate.synthesis.synthesizer import Synthesizer, pictures_of

    torch.set_num_threads(2)
    synthesizer = Synthesizer.load(args.base or house_folder().with_name(HOUSE_SYNTHESIS))
    bank = build_slices([dataset_of(args, "busi-20")], "train", 128)
    batch = bank.draw(16, 1, torch.Generator().manual_seed(0))
    pictures = pictures_of(bank, batch)
    asked = hint(pictures, batch.labels)
    codec = synthesizer.foundation.codec
    noise = noise_fields(codec, 16, (codec.channels, 16, 16), 0)
    caption = ["breast lesion, ultrasound"] * 16
    with torch.no_grad():
        text = synthesizer.foundation.encode_text(caption)
    original = synthesizer.clean

    def uncached(x, t, _, seen):
        told = synthesizer.foundation.encode_text(caption)
        free = synthesizer.foundation.encode_text([""] * 16)
        outs = [original(x, t, words, synthesizer.look(asked, words)) for words in (told, free)]
        return outs[1] + 9 * (outs[0] - outs[1])

    figures: dict[str, list[float]] = {"cached": [], "cached, guidance 2": [], "uncached, guided": []}
    for _ in range(3):
        for name, guidance in (("cached", 1.0), ("cached, guidance 2", 2.0), ("uncached, guided", 1.0)):
            synthesizer.clean = uncached if name.startswith("un") else original  # type: ignore[method-assign]
            begun = time.perf_counter()
            synthesizer.draw(asked, text, noise, steps=20, guidance=guidance)
            figures[name].append(16 / (time.perf_counter() - begun))
    best = {name: max(values) for name, values in figures.items()}
    step = stable_diffusion_step_seconds()
    return {
        "images_per_second": best,
        "ratio": best["cached"] / best["uncached, guided"],
        "stable_diffusion_1_seconds_a_guided_step_256": step,
        "stable_diffusion_1_images_per_second_20_steps": 1 / (20 * step),
        "threads": 2,
        "steps": 20,
    }


def stable_diffusion_step_seconds() -> float:
    """Seconds of one guided step of Stable Diffusion 1.x with a ControlNet at 256²; weights are random."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel(sample_size=32, cross_attention_dim=768).eval()
    control = ControlNetModel.from_unet(unet, load_weights_from_unet=False).eval()
    x, text, edges = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 768), torch.rand(2, 3, 256, 256)
    times = []
    with torch.no_grad():
        for _ in range(3):
            begun = time.perf_counter()
            down, middle = control(x, 500, encoder_hidden_states=text, controlnet_cond=edges, return_dict=False)
            unet(
                x,
                500,
                encoder_hidden_states=text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            )
            times.append(time.perf_counter() - begun)
    return min(times)


def report(args: argparse.Namespace, settings: Sequence[str]) -> None:
    """All figures in one file, and the tables on the screen."""
    table: dict[str, Any] = {"images": args.images, "variants": args.variants, "tune": args.tune, "settings": {}}
    for setting in settings:
        entry = setting_figures(args, setting)
        table["settings"][setting] = entry
        line = "  ".join(f"{arm} {v['dice']:.3f}±{v['spread']:.3f}" for arm, v in entry["arms"].items())
        print(f"{setting:16} {line}")
        for pair, (mean, low, high) in entry["differences"].items():
            print(f"{'':16} {pair}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    found = sorted((args.work / "figures" / "grid").rglob("*.json"))
    table["grid"] = {json.loads(p.read_text())["job"]: dice_of(json.loads(p.read_text())["rows"])[0] for p in found}
    for job, value in table["grid"].items():
        print(f"{job:44} {value:.3f}")
    for kind in ("synthesize", "distance", "speed"):
        found = sorted((args.work / "figures" / kind).rglob("*.json"))
        table[kind] = {p.stem: json.loads(p.read_text()) for p in found}
    write_json(args.result, table)
    print(args.result)
    if set(SHOWN) <= set(settings):
        picture(args)
        print(PICTURE)


def picture(args: argparse.Namespace) -> None:
    """Two training slices of each modality: real, edges, and what was drawn from them."""
    rows = []
    for setting in SHOWN:
        bank = build_slices([dataset_of(args, setting, synthetic=True)], "train", 128, synthetic="pair")
        assert bank.variants is not None
        area = (bank.labels > 0).flatten(1).sum(1) * (bank.variants.of >= 0).all(1)
        order = area.argsort(descending=True)
        for i in (int(order[0]), int(order[len(area[area > 0]) // 3])):
            grey = torch.cat([bank.images[i : i + 1], bank.variants.images[bank.variants.of[i]]])[:, 1:2].float() / 255
            asked = hint(2 * grey[:1] - 1, bank.labels[i : i + 1])
            shown = torch.cat([grey[:1], asked, grey[1:]]).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
            rows.append((setting, list(shown)))
    contact_sheet(rows, PICTURE)


def setting_figures(args: argparse.Namespace, setting: str) -> dict[str, Any]:
    """Mean Dice of each arm over seeds, and paired differences over test cases (each the mean of its seeds)."""
    arms, cases = {}, {}
    for arm in ARMS:
        runs = [result_path(args, f"train/{setting}/{seed}") for seed in range(args.seeds)]
        scored = [dice_of(json.loads(path.read_text())[arm]) for path in runs if path.exists()]
        if not scored:
            continue
        means = [mean for mean, _ in scored]
        arms[arm] = {"dice": fmean(means), "spread": stdev(means) if len(means) > 1 else 0.0, "seeds": len(means)}
        names = list(scored[0][1])
        cases[arm] = np.array([fmean(by_case[name] for _, by_case in scored) for name in names])
    pairs = [("diffboost", "none"), ("classical", "none"), ("both", "classical"), ("both", "none")]
    known = [(a, b) for a, b in pairs if a in cases and b in cases]
    differences = {f"{a} - {b}": list(paired_interval(cases[a], cases[b])[:3]) for a, b in known}
    return {"arms": arms, "differences": differences, "test_cases": len(next(iter(cases.values()), ()))}


def dice_of(rows: Sequence[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """Mean Dice, and Dice by case, over the rows whose target is there."""
    by_case: dict[str, list[float]] = {}
    for row in rows:
        if row["present"]:
            by_case.setdefault(row["case"], []).append(row["dice"])
    means = {case: fmean(values) for case, values in by_case.items()}
    return fmean(means.values()), means


if __name__ == "__main__":
    main()
