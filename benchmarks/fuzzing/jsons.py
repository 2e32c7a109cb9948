"""JSON that is nearly right: a value changed for a hostile one, a key lost or added, the text itself cut."""

import json
from pathlib import Path
from random import Random
from typing import Any

DEEP = '{"a":' * 3000 + "1" + "}" * 3000

DULL = {"training", "figures", "about", "datasets", "rivals"}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**18, 10**30, -(10**9), 0.5, -0.5, 1e300, 1e-300),
    *(float("nan"), float("inf"), "", "x", "[/red]liver", "\u001b[31mred", "../../etc", "a\nb", "é" * 40, "x" * 5000),
    *([], {}, [None], [[]], {"a": 1}, [0] * 2000, ["liver", "liver"], "NaN", "0", "1e9", "CT"),
)


def places_in(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a document, its own, (), left out."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        return []
    return [p for key, inner in pairs for p in [(*path, key), *places_in(inner, (*path, key))]]


def changed(document: Any, rng: Random) -> tuple[Any, str]:
    """A document with one thing changed, and what, in words."""
    document = json.loads(json.dumps(document))
    places = places_in(document)
    if not places or rng.random() < 0.06:
        value = rng.choice(VALUES)
        return value, f"the whole is {short(value)}"
    if rng.random() < 0.85:  # what merely records how something came about is seldom read
        places = [place for place in places if not DULL & set(place)] or places
    by_depth = sorted({len(place) for place in places})
    depth = rng.choice(by_depth)  # else the many values of long lists would hide the few that matter
    place = rng.choice([p for p in places if len(p) == depth])
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    name = ".".join(map(str, place))[:80]
    how = rng.random()
    if how < 0.2:
        del inner[place[-1]]
        return document, f"{name} is gone"
    if how < 0.27 and isinstance(inner, dict):
        inner["surprise"] = rng.choice(VALUES)
        return document, f"a key more beside {name}"
    value = inner[place[-1]]
    if how < 0.45 and isinstance(value, int | float) and not isinstance(value, bool):
        new: Any = rng.choice([-value, value * 1000, value * 10**9, value + 1, value - 1, str(value), [value]])
    else:
        new = rng.choice(VALUES)
    inner[place[-1]] = new
    return document, f"{name} is {short(new)}"


def change_file(path: Path, rng: Random) -> str:
    """Change a JSON file on the disk; what was done, in words."""
    text = path.read_text()
    how = rng.random()
    if how < 0.16:
        names = {
            "cut": text[: rng.randrange(len(text))],
            "empty": "",
            "deep": DEEP,
            "a BOM before": "\ufeff" + text,
            "not UTF-8": text[:40] + "\udcff\udcfe" + text[40:],
            "twice": text + text,
            "NUL inside": text[:20] + "\0" + text[20:],
            "a key twice": text.replace("{", '{"format": 7, "name": 5, ', 1),
        }
        name = rng.choice(sorted(names))
        path.write_bytes(names[name].encode("utf-8", "surrogateescape"))
        return f"{path.name}: {name}"
    document, what = changed(json.loads(text), rng)
    path.write_text(json.dumps(document, indent=2))
    return f"{path.name}: {what}"


def short(value: Any) -> str:
    """A value in a few characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"
