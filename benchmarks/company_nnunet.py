"""nnU-Net's own 2-D configuration, trained for so many seconds of CPU time: called by `company.py`, or by hand.

    python benchmarks/company_nnunet.py --data FOLDER --splits FILE --work FOLDER --out FOLDER --seconds 1200

Its own fingerprint, planning, preprocessing, network, loss, augmentation, optimiser and sliding window, from the
package `nnunetv2` (Isensee et al. 2021), which is no dependency of delineate: see `company_nnunet.txt`. Two things are
this file's: the learning rate falls over the seconds given instead of over 1000 epochs of 250 steps (its own shape,
Eq. of poly decay 0.9), and `--memory` may plan for a smaller card than its 8 GB, which makes the batch smaller. Runs in
one thread, without delineate. Writes a label image of every val and test case under --out.
"""

import argparse
import json
import os
import random
import shutil
import time
from pathlib import Path


def main() -> None:
    """Plan and preprocess once; train; draw val and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset in nnU-Net's layout")
    parser.add_argument("--splits", type=Path, required=True, help="JSON: cases by train, val and test")
    parser.add_argument("--work", type=Path, required=True, help="for what it preprocesses")
    parser.add_argument("--out", type=Path, required=True, help="for the masks")
    parser.add_argument("--seconds", type=float, default=1200.0, help="of CPU time of training")
    parser.add_argument("--memory", type=float, help="GB of GPU memory to plan for; its own default without")
    parser.add_argument("--mirrored", action="store_true", help="also draw mirrored images, as it does by default")
    parser.add_argument("--bfloat16", action="store_true", help="activations in half precision, as the others have")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str((args.work / name).resolve())
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "0"}
    plans = "planned" if args.memory is None else f"planned{args.memory:g}"
    prepare(args, plans)
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (its name); it augments in the process that learns: CPU time is of one process
    train_and_draw(args, plans)


def prepare(args: argparse.Namespace, plans: str) -> None:
    """Its layout without held-out cases, its fingerprint, its plans, its preprocessed slices."""
    raw = args.work / "raw" / "Dataset001_company"
    splits = json.loads(args.splits.read_text())
    if not (raw / "dataset.json").exists():
        about = json.loads((args.data / "dataset.json").read_text())
        for folder in ("imagesTr", "labelsTr"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            for file in (args.data / folder).iterdir():
                if file.name.split(".")[0].removesuffix("_0000") in splits["train"]:
                    shutil.copy(file, raw / folder / file.name)
        about["numTraining"] = len(splits["train"])
        (raw / "dataset.json").write_text(json.dumps(about))
    if (args.work / "preprocessed" / "Dataset001_company" / f"{plans}.done").exists():
        return
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    extract_fingerprints([1], num_processes=1)
    plan_experiments([1], gpu_memory_target_in_gb=args.memory, overwrite_plans_name=plans)
    preprocess([1], plans, configurations=("2d",), num_processes=[1])
    (args.work / "preprocessed" / "Dataset001_company" / f"{plans}.done").touch()


def train_and_draw(args: argparse.Namespace, plans: str) -> None:
    """Train for the seconds given, then draw."""
    import numpy as np
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 (its augmentation draws from here)
    random.seed(args.seed)
    about = json.loads((args.work / "raw" / "Dataset001_company" / "dataset.json").read_text())
    planned = json.loads((args.work / "preprocessed" / "Dataset001_company" / f"{plans}.json").read_text())
    device = torch.device("cpu")
    planned["continue_training"] = False
    trainer = nnUNetTrainer(planned, "2d", "all", about, device)  # type: ignore[arg-type]
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    trainer.network.train()
    began, steps, losses = time.process_time(), 0, []
    while (share := (time.process_time() - began) / args.seconds) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** 0.9
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        steps += 1
        if steps % 5 == 1:
            print(f"{share:4.0%} step {steps} loss {np.mean(losses[-20:]):.3f}", flush=True)
    seconds = time.process_time() - began
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(
        use_mirroring=args.mirrored, perform_everything_on_device=False, device=device, allow_tqdm=False
    )
    trainer.network.eval()
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        about,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    reader, splits = SimpleITKIO(), json.loads(args.splits.read_text())
    for case in splits["val"] + splits["test"]:
        image, properties = reader.read_images([str(args.data / "imagesTr" / f"{case}_0000.nii.gz")])
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            drawn = predictor.predict_single_npy_array(image, properties)
        reader.write_seg(drawn, str(args.out / f"{case}.nii.gz"), properties)
    plan = {k: planned["configurations"]["2d"][k] for k in ("batch_size", "patch_size", "spacing")}
    told = {"steps": steps, "images": steps * trainer.batch_size, "cpu_seconds": round(seconds, 1), "plan": plan}
    (args.out / "told.json").write_text(json.dumps(told))
    print(told, flush=True)


if __name__ == "__main__":
    main()
