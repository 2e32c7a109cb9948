"""All slices that the house model learns from and is judged by, in one file of under 50 MiB.

    python recipes/pack.py --data ../shared/data --out runs/house.pack.npz
    python recipes/house.py --pack runs/house.pack.npz --device cuda --minutes 8

A slice of a volume is kept once, grey, where its neighbours are kept too, else as three greys below one another; flat
pictures as they are. All are WebP of a quality that fits (`--mib`), so a model that learnt from a pack saw slightly
softer pictures; labels are exact. Writes that one file.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch
from house import SHARES, SIZE, Lines, gather
from PIL import Image
from torch import Tensor

from delineate.data.slices import SliceBank
from delineate.jobs.opening import held_out_slices, read_bank
from delineate.prompts.vocabulary import Vocabulary
from delineate.storage.files import replacing
from delineate.training.judging import HeldOut
from delineate.training.planning import APART_MM

QUALITIES = (90, 80, 70, 60, 50)
FARTHEST = 12  # slices, that a neighbour is looked for in
TABLES = ("dataset", "mirrored", "annotated", "foreign", "present", "shares", "case")


def main() -> None:
    """Read the sets, write the pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/house"), help="for rewritten sets")
    parser.add_argument("--out", type=Path, default=Path("runs/house.pack.npz"))
    parser.add_argument("--mib", type=float, default=48.0, help="the largest file that will do")
    args = parser.parse_args()
    datasets = gather(args.data, args.work)
    bank = read_bank(datasets, SIZE, Lines(), shares=[SHARES[d.name] for d in datasets], apart_mm=APART_MM)
    held_out = held_out_slices(datasets, bank, Lines())
    assert held_out is not None
    write_pack(args.out, bank, held_out, args.mib)


def write_pack(path: Path, bank: SliceBank, held_out: HeldOut, mib: float) -> None:
    """Write both at the best quality that fits.

    Raises:
        SystemExit: not even the lowest does.
    """
    for quality in QUALITIES:
        arrays = {f"train_{k}": v for k, v in packed(bank, quality).items()}
        arrays |= {f"val_{k}": v for k, v in packed(held_out.bank, quality).items()}
        about = {"vocabulary": bank.vocabulary.to_json(), "apart_mm": bank.apart_mm, "quality": quality}
        about |= {"train": bank.modalities, "val": held_out.bank.modalities}
        with io.BytesIO() as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)
            size = file.tell() / 2**20
            print(f"quality {quality}: {size:.1f} MiB", flush=True)
            if size <= mib:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as beside:
                    beside.write_bytes(file.getvalue())
                return
    raise SystemExit(f"{path}: even quality {QUALITIES[-1]} takes more than {mib:g} MiB; leave a set out")


def read_pack(path: Path) -> tuple[SliceBank, HeldOut]:
    """The training slices and those to judge by."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    vocabulary = Vocabulary.from_json(about["vocabulary"])

    def part(name: str) -> SliceBank:
        own = {k.removeprefix(f"{name}_"): v for k, v in arrays.items() if k.startswith(f"{name}_")}
        tables = {k: torch.from_numpy(own[k]) for k in TABLES}
        how = {"vocabulary": vocabulary, "modalities": tuple(about[name]), "apart_mm": about["apart_mm"]}
        return SliceBank(unpacked(own), torch.from_numpy(own["labels"]), **tables, **how)

    return part("train"), HeldOut(part("val"))


def packed(bank: SliceBank, quality: int) -> dict[str, np.ndarray]:
    """Arrays without pickles: pictures as bytes one after another, where each ends, and whose neighbours are whose."""
    near = neighbours(bank)
    pictures = []
    for image, row, flat in zip(bank.images.numpy(), near.tolist(), (bank.mirrored > 0).tolist(), strict=True):
        if row[0] >= 0:
            made = Image.fromarray(image[1])
        elif flat:
            made = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        else:  # WebP would blur colours
            made = Image.fromarray(image.reshape(-1, image.shape[-1]))
        with io.BytesIO() as file:
            made.save(file, "WEBP", quality=quality, method=4)
            pictures.append(file.getvalue())
    tables = {k: getattr(bank, k).numpy() for k in TABLES}
    ends = np.cumsum([len(one) for one in pictures])
    bytes_ = np.frombuffer(b"".join(pictures), np.uint8)
    return {"pictures": bytes_, "ends": ends, "near": near.numpy(), "labels": bank.labels.numpy(), **tables}


def unpacked(own: dict[str, np.ndarray]) -> Tensor:
    """The images (N, 3, S, S) uint8 of what `packed` made."""
    starts = [0, *own["ends"][:-1].tolist()]
    pictures = []
    for start, end, row in zip(starts, own["ends"].tolist(), own["near"].tolist(), strict=True):
        with Image.open(io.BytesIO(own["pictures"][start:end].tobytes())) as image:
            colours = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        if row[0] >= 0:
            colours = np.repeat(colours[1:2], 3, axis=0)
        elif colours.shape[1] > colours.shape[2]:
            colours = colours[1].reshape(3, -1, colours.shape[2])
        pictures.append(colours)
    whole = torch.from_numpy(np.stack(pictures))
    near = torch.from_numpy(own["near"])
    grey = near[:, 0] >= 0
    middle = whole[:, 1].clone()
    whole[grey, 0], whole[grey, 2] = middle[near[grey, 0]], middle[near[grey, 1]]
    return whole


def neighbours(bank: SliceBank) -> Tensor:
    """Which slices are the first and last channel of each (N, 2); -1 where they are not among the slices."""
    assert bank.case is not None
    out = torch.full((len(bank), 2), -1)
    middle = bank.images[:, 1]
    for i in range(len(bank)):
        for side, channel, step in ((0, 0, -1), (1, 2, 1)):
            for j in range(i, i + FARTHEST * step, step):
                if not 0 <= j < len(bank) or bank.case[j] != bank.case[i]:
                    break
                if torch.equal(bank.images[i, channel], middle[j]):
                    out[i, side] = j
                    break
    out[(out < 0).any(dim=1)] = -1
    return out


if __name__ == "__main__":
    main()
