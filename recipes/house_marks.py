"""The marks network that ships: what clicks and scribbles mean, whatever the target.

    python recipes/house_marks.py --data ../shared/data --minutes 72

Learns from the train splits of BTCV CT, MSD hippocampus (MR), ISIC 2018, BUSI, DSB 2018 H&E and LIDC, whose terms allow
shipping weights, with people who are simulated (`delineate.interaction.simulated_user`): a target that is a label, a
part of one or something nobody labelled; a first mark, or many strokes at once; then one to two more where its own
answer was wrong, at times where words would have been. Nothing of the sets that it is measured on
(`benchmarks/marks.py`) is read. Chooses how fine to look on the val splits, and writes src/delineate/house_marks/ in
half precision with its card. Run again, it goes on. What ships saw nobody draw many strokes at once in its first 50
minutes (docs/lab, "Clicks and scribbles").
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from delineate import open_dataset
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.data.slices import SliceBank, build_slices
from delineate.interaction.marker import MarkerConfig, build, house_marks_folder, save_marker
from delineate.interaction.network import MarksNetwork
from delineate.interaction.simulated_user import believed, draw_target, marks_at_once, marks_of_a_round, next_click
from delineate.storage.files import write_json
from delineate.training.checkpoint import TrainState, new_state
from delineate.training.loop import Budget, train, use_average

SETS = {  # how often each is drawn, and its terms
    "btcv_ct": (0.35, "BTCV (Synapse syn3193805), usually quoted CC BY 4.0"),
    "hippocampus": (0.08, "Medical Segmentation Decathlon, task 4, CC BY-SA 4.0"),
    "isic2018": (0.15, "ISIC 2018 task 1, CC0"),
    "busi": (0.15, "Breast Ultrasound Images, quoted CC0 / CC BY"),
    "dsb2018_he": (0.17, "Data Science Bowl 2018, H&E images, corrected, CC0"),
    "lidc": (0.1, "LIDC-IDRI, CC BY 3.0"),
}
PATIENTS_LIDC = {"train": 250, "val": 30, "test": 30}
BANK, VIEW = 256, 128  # pixels of the slices that are kept, and of most views of them
MOST_ROUNDS = 3
WHOLE = 0.15  # of the batches have views of `BANK` pixels, a quarter as many
FORGETFUL = 0.5  # of the batches see all marks of a person at once, as at the door, which has no memory
AT_ONCE = 0.35  # of those who were not asked in words first draw much before they look at an answer
CLICKS = 5  # of the simulated person on val


def main() -> None:
    """Prepare, train, choose, ship."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=72.0)
    parser.add_argument("--work", type=Path, default=Path("runs/house_marks"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=24, help="slices a set on val")
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets = gather(args.data, args.work)
    config = MarkerConfig()
    state = new_state(build(config, seed=args.seed), seed=args.seed)
    loss_of = loss_on(datasets, state.module)
    trained = train(
        state,
        lambda size, generator: size,  # whom a person corrects is known to the network alone: all is drawn in the loss
        lambda size, step: loss_of(size, step.generator),
        budget=Budget(minutes=args.minutes),
        folder=args.work,
        on_step=Lines(),
    )
    use_average(trained)
    figures = {}
    val = slices(datasets, "val")
    for look in ("coarse", "fine", "both"):
        figures[look] = dice_of_clicks(replace(config, look=look), trained.module, val, args.cases)
        print(look, json.dumps(figures[look]), flush=True)
    best = max(figures, key=lambda look: float(np.mean(figures[look]["all"])))
    training = {"images": trained.images_seen, "seconds": round(trained.seconds), "seed": args.seed}
    training |= {"sets": {name: share for name, (share, _) in SETS.items()}, "val": figures}
    chosen = replace(config, look=best)
    save_marker(house_marks_folder(), chosen, trained.module.half(), training=training, card=card(training, chosen))
    size = sum(p.stat().st_size for p in house_marks_folder().rglob("*") if p.is_file()) / 2**20
    write_json(args.work / "figures.json", {"config": asdict(chosen), "training": training})
    print(f"{house_marks_folder()}: {size:.1f} MiB, looks {best}")


def gather(data: Path, work: Path) -> list[Dataset]:
    """All datasets in the order of `SETS`, LIDC rewritten under `work`."""
    lidc = work / "lidc"
    if not (lidc / "splits.json").exists():
        write_lidc(data / "lidc4" / "lidc4.npz", data / "splits.json", lidc, per_split=PATIENTS_LIDC)
    return [
        open_dataset(data / "btcv_ct"),
        open_dataset(data / "hippocampus"),
        open_dataset(data / "isic2018", targets=["skin lesion"], modality="dermoscopy"),
        open_dataset(data / "busi", targets=["breast lesion"], modality="US"),
        open_dataset(data / "dsb2018_he", targets=["nuclei"], modality="histopathology"),
        open_dataset(lidc, targets=["lung nodule"], modality="CT"),
    ]


def slices(datasets: list[Dataset], split: str) -> SliceBank:
    """A split of all of them on `BANK` pixels."""
    bank = build_slices(datasets, split, BANK, shares=[share for share, _ in SETS.values()])
    print(f"{split}: {len(bank)} slices", flush=True)
    return bank


def loss_on(datasets: list[Dataset], network: torch.nn.Module) -> Callable[[int, Generator], tuple[Tensor, dict]]:
    """The loss of a batch of simulated people, as `train` wants it."""
    bank = slices(datasets, "train")

    def loss_of(size: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        whole = bool(torch.rand((), generator=generator) < WHOLE)
        image, truth, marks, first = people(bank, size // 4 if whole else size, BANK if whole else VIEW, generator)
        previous = first
        rounds = int(torch.randint(1, MOST_ROUNDS + 1, (), generator=generator))
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        for _ in range(rounds - 1):
            with torch.no_grad():
                previous = network(image, marks, previous).sigmoid()
            marks = marks | more_marks(truth, previous, rng)
        if torch.rand((), generator=generator) < FORGETFUL:
            previous = first
        logits = network(image, marks, previous)
        entropy = F.binary_cross_entropy_with_logits(logits, truth.float())
        dice = soft_dice(logits.sigmoid(), truth.float())
        return entropy + 1 - dice, {"entropy": entropy.item(), "dice": dice.item()}

    return loss_of


def people(bank: SliceBank, count: int, size: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slices (B, 3, S, S), what is meant (B, S, S), first marks (B, 2, S, S), and what was believed before (B, S, S).

    Three in ten are asked in words first, and mark where the answer was wrong.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    made = []
    for _ in range(count):
        image, labels = view(bank, size, rng)
        image, truth = draw_target(image, labels, rng)
        told = rng.random() < 0.3
        previous = believed(truth, rng) if told else np.full(truth.shape, 0.5, np.float32)
        if not told and rng.random() < AT_ONCE:
            marks = marks_at_once(truth, rng)
        else:
            marks = marks_of_a_round(truth, previous >= 0.5 if told else None, rng)
        made.append((shaded(image, rng), truth, np.stack(marks), previous.astype(np.float32)))
    images, truths, marks, previous = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    return images, truths, marks, previous


def more_marks(truth: Tensor, previous: Tensor, rng: np.random.Generator) -> Tensor:
    """What people mark (B, 2, S, S) who see the answers `previous` (B, S, S)."""
    pairs = zip(truth.numpy(), (previous >= 0.5).numpy(), strict=True)
    return torch.from_numpy(np.stack([np.stack(marks_of_a_round(one, answer, rng)) for one, answer in pairs]))


def view(bank: SliceBank, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A part of a slice, turned, flipped and scaled: (3, S, S) in [-1, 1], in colour or grey, and its labels (S, S).

    Four in five show a label; two in three of those are about one of its pixels.
    """
    of = int(rng.choice(len(bank.shares), p=bank.shares.double().numpy()))
    here = bank.dataset == of
    labelled = here & bank.present.any(1)
    wanted = labelled if labelled.any() and rng.random() < 0.8 else here
    index = int(rng.choice(wanted.nonzero()[:, 0].numpy()))
    part, angle = rng.uniform(0.4, 1.05), rng.uniform(0, 2 * np.pi)
    labels = bank.labels[index]
    inside = labels.nonzero()
    centre = rng.uniform(-1, 1, size=2) * max(0.0, 1 - part)
    if len(inside) and rng.random() < 0.67:
        row, column = inside[int(rng.integers(len(inside)))].tolist()
        centre = np.array([column, row]) * 2 / BANK - 1
        centre = centre * max(0.0, 1 - part) + rng.uniform(-0.2, 0.2, size=2) * part
    turn = part * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn * [rng.choice([-1, 1]), 1]
    theta = torch.from_numpy(np.concatenate([turn, centre[:, None]], axis=1)).float()[None]
    grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
    image = bank.images[index].float()[None] / 127.5 - 1
    if part * BANK / size > 1.5:
        image = F.avg_pool2d(image, 2)
    if rng.random() < 0.5:
        shares = torch.from_numpy(rng.dirichlet([1, 1, 1])) if bank.mirrored[index] else torch.tensor([0.0, 1.0, 0.0])
        image = (image * shares.float().view(1, 3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    seen = F.grid_sample(image + 1, grid, mode="bilinear", align_corners=False) - 1
    shown = F.grid_sample(labels[None, None].float(), grid, mode="nearest", align_corners=False)
    return seen[0].numpy(), shown[0, 0].numpy().astype(np.uint8)


def shaded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other greys: inverted, gamma, contrast, brightness, blur and noise."""
    grey = (image + 1) / 2
    grey = 1 - grey if rng.random() < 0.3 else grey
    grey = grey.clip(0, 1) ** np.exp(rng.uniform(-0.7, 0.7))
    mean = grey.mean()
    grey = mean + (grey - mean) * rng.uniform(0.6, 1.5) + rng.uniform(-0.15, 0.15)
    if rng.random() < 0.2:
        kernel = int(rng.choice([3, 5]))
        grey = F.avg_pool2d(torch.from_numpy(grey), kernel, 1, kernel // 2, count_include_pad=False).numpy()
    grey = grey + rng.standard_normal(grey.shape) * rng.uniform(0, 0.06)
    return (2 * grey - 1).clip(-1, 1).astype(np.float32)


def soft_dice(p: Tensor, truth: Tensor) -> Tensor:
    """The mean over samples of the Dice of probabilities."""
    return ((2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)).mean()


def dice_of_clicks(config: MarkerConfig, network: MarksNetwork, bank: SliceBank, cases: int) -> dict[str, list[float]]:
    """The mean Dice after 1, 2, … clicks of the standard protocol, a set at a time, on one label of some slices."""
    from delineate.interaction.marker import Marker

    marker, figures = Marker(config, network.eval()), {}
    for of, name in enumerate(SETS):
        shows = ((bank.dataset == of) & bank.present.any(1)).nonzero()[:, 0]
        rows = []
        for index in shows[:: max(1, len(shows) // cases)][:cases]:
            image, labels = bank.images[index].float() / 127.5 - 1, bank.labels[index].numpy()
            names = np.unique(labels[labels > 0])
            truth = labels == names[int(index) % len(names)]
            answer, marks = np.zeros_like(truth), torch.zeros(1, 2, BANK, BANK, dtype=torch.bool)
            nothing, dice = torch.full((1, BANK, BANK), 0.5), []
            for _ in range(CLICKS):
                if (where := next_click(truth, answer)) is not None:
                    row, column, positive = where
                    marks[0, 1 - int(positive), row, column] = True
                    answer = marker.probability(image[None], marks, nothing)[0].numpy() >= 0.5
                dice.append(float(2 * (answer & truth).sum() / (answer.sum() + truth.sum())))
            rows.append(dice)
        figures[name] = [round(v, 4) for v in np.mean(rows, axis=0).tolist()]
    figures["all"] = [round(v, 4) for v in np.mean(list(figures.values()), axis=0).tolist()]
    return figures


class Lines:
    """Progress as plain lines, for a log file."""

    last = -1.0

    def __call__(self, state: TrainState, done: float) -> None:
        """A line every 2 %."""
        if done - self.last >= 0.02:
            self.last = done
            recent = [entry["dice"] for entry in state.log[-200:]]
            print(f"  {done:4.0%} {state.images_seen} images, Dice of late {np.mean(recent):.3f}", flush=True)


def card(training: dict, config: MarkerConfig) -> str:
    """What it is, what it was trained on under which terms, how good it is."""
    rows = [f"| {name} | {terms} |" for name, (_, terms) in SETS.items()]
    val = [
        f"| {name} | " + " | ".join(f"{v:.3f}" for v in line) + " |"
        for name, line in training["val"][config.look].items()
    ]
    minutes = training["seconds"] / 60
    return "\n".join(
        [
            "# The house marks network",
            "",
            "Turns a slice, clicks and scribbles into a probability of what is meant; knows no names. Trained by",
            f"`recipes/house_marks.py` on {training['images']} simulated people, {minutes:.0f} min of a CPU thread.",
            "Weights are stored in half precision.",
            "",
            "**Not a medical device.** It is small and briefly trained: look at every outline it draws.",
            "",
            "| trained on (train split only) | terms |",
            "|---|---|",
            *rows,
            "",
            "Dice on slices of val subjects after so many simulated clicks, each in the middle of the largest error",
            "(used to choose how fine it looks). How it does on people's scribbles and other tasks is in",
            "`docs/lab/2026-11-22-marks.md`.",
            "",
            "| set | " + " | ".join(str(1 + i) for i in range(CLICKS)) + " |",
            "|---" * (CLICKS + 1) + "|",
            *val,
            "",
        ]
    )


if __name__ == "__main__":
    main()
