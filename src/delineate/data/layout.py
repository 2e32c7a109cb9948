"""What lies in a dataset folder, and what its JSON files say: labels, modality, subjects, splits.

Layout 1, nnU-Net v2 and Medical Segmentation Decathlon (MSD): `dataset.json`, `imagesTr/NAME_0000.nii.gz` (or
`imagesTr/NAME.nii.gz`), `labelsTr/NAME.nii.gz`. Layout 2: `images/NAME.*` and `masks/NAME.*` (also
`NAME_mask.*`, `NAME_segmentation.*`, `NAME.seg.nrrd`). An image may be a folder NAME with a DICOM series in it, its
label file a DICOM SEG or RT Structure Set, NAME.dcm. Beside either there may be `raters/NAME_r1.*`, `NAME_r2.*`, …:
what each of several raters drew. Files are found by listing the folders; no path comes from a JSON file.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delineate.errors import DatasetError, DelineateError
from delineate.prompts.anatomy import MODALITIES
from delineate.prompts.modality import modality_code
from delineate.prompts.vocabulary import canonical_name
from delineate.scans.dicom.source import DICOM_SUFFIXES, is_dicom
from delineate.scans.scan import VOLUME_SUFFIXES, is_scan_file, stem_of, suffix_of
from delineate.storage import schema
from delineate.storage.schema import MOST_CHANNELS, Line, Name

FIX = "correct the file"
MOST_BYTES = 16 << 20  # of a file: an MSD dataset.json lists its scans, tens of thousands at most
SPLITS = ("train", "val", "test")
_LAYOUTS = (("imagesTr", "labelsTr"), ("images", "masks"))
_MASK_SUFFIXES = ("_mask", "_segmentation")
RATERS = "raters"
IGNORE = "ignore"  # nnU-Net's name of the id of voxels that nobody labelled
NNUNET_SPLITS = "splits_final.json"
_SECOND_CHANNEL = "dataset.json has no such channel in 'channel_names'; add it there, or take the file out"
_NO_MODALITY = {"", "r", "g", "b", "rgb", "zscore", "nonorm", "rescale_to_0_1", "rgb_to_0_1"}


@dataclass(frozen=True)
class Files:
    """What lies in the folders of a dataset: name to path, sorted; (file, fault) where ambiguous.

    Of a case with several channels `images` has the first, `more` the others in their order; neither of them where one
    file holds all.
    """

    image_folder: str
    label_folder: str
    images: dict[str, Path]
    labels: dict[str, Path]
    faults: tuple[tuple[Path, str], ...]
    raters: dict[str, tuple[Path, ...]]  # in the order of their numbers; under "" the files of another name
    more: dict[str, tuple[Path, ...]]


def find_files(root: Path) -> Files:
    """List the images and labels of a dataset folder; raise DatasetError where it has neither layout."""
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder.")
    layout = next((layout for layout in _LAYOUTS if all((root / part).is_dir() for part in layout)), None)
    if layout is None:
        raise DatasetError(
            f"{root} must hold imagesTr/ and labelsTr/ (nnU-Net, MSD) or images/ and masks/; it has neither."
        )
    faults: list[tuple[Path, str]] = []
    images, labels = (_by_stem(root / part, faults) for part in layout)
    more: dict[str, tuple[Path, ...]] = {}
    if layout == _LAYOUTS[0] and _is_numbered(root, images, labels):
        images, more = _by_channel(images, _channels_if_read(root, images.values()), faults)
    if layout == _LAYOUTS[1]:
        for stem in [stem for stem in labels if stem not in images]:
            name = next((stem.removesuffix(end) for end in _MASK_SUFFIXES if stem.endswith(end)), stem)
            if name not in images:
                continue
            if name in labels:
                faults.append((labels[stem], f"a second mask of '{name}', beside {labels[name].name}; keep one"))
            labels.setdefault(name, labels.pop(stem))
    raters = _raters(root / RATERS, faults)
    return Files(*layout, dict(sorted(images.items())), dict(sorted(labels.items())), tuple(faults), raters, more)


def _by_channel(
    files: Mapping[str, Path], channels: Sequence[str], faults: list[tuple[Path, str]]
) -> tuple[dict[str, Path], dict[str, tuple[Path, ...]]]:
    """`NAME_0000`, `NAME_0001`, … by NAME: the first file of each, and the others where there are several channels."""
    count = max(1, len(channels))
    cases: dict[str, dict[int, Path]] = {}
    images: dict[str, Path] = {}
    for stem, path in files.items():
        numbered = re.fullmatch(r"(.+)_(\d{4})", stem)
        if numbered is None:
            faults.append((path, "an nnU-Net image must be named NAME_0000; rename it"))
            images[stem] = path
        elif int(numbered[2]) >= count:
            faults.append((path, _SECOND_CHANNEL))
        else:
            cases.setdefault(numbered[1], {})[int(numbered[2])] = path
    more = {}
    for name, own in cases.items():
        if lacking := [k for k in range(count) if k not in own]:
            what = f"channel {lacking[0]}{f' ({channels[lacking[0]]})' if channels else ''} of '{name}' is not there"
            faults.append((next(iter(own.values())), f"{what}; add {name}_{lacking[0]:04d}.*, or remove the case"))
        images[name] = own[min(own)]
        more[name] = tuple(own[k] for k in sorted(own) if k != min(own))
    return images, {name: paths for name, paths in more.items() if paths}


def _channels_if_read(root: Path, images: Iterable[Path]) -> tuple[str, ...]:
    """`declared_channels`; () where they cannot be read: whoever needs them complains."""
    try:
        return declared_channels(read_json(root / "dataset.json"), root, images)
    except DatasetError:
        return ()


def _raters(folder: Path, faults: list[tuple[Path, str]]) -> dict[str, tuple[Path, ...]]:
    """The masks of several raters, `NAME_r<number>.*`, by name; {} where there is no such folder."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for stem, path in (_by_stem(folder, faults) if folder.is_dir() else {}).items():
        named = re.fullmatch(r"(.+)_r(\d{1,4})", stem)
        name, number = (named[1], int(named[2])) if named else ("", 0)
        found.setdefault(name, []).append((number, path))
    return {name: tuple(path for _, path in sorted(masks)) for name, masks in sorted(found.items())}


def _by_stem(folder: Path, faults: list[tuple[Path, str]]) -> dict[str, Path]:
    """Files of a known ending and folders of a DICOM series by name; hidden ones (`._NAME` of macOS) do not count."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        series = path.is_dir() and not path.name.startswith(".") and is_dicom(path)
        if not series and not (path.is_file() and (is_scan_file(path) or _is_dicom_file(path))):
            continue
        stem = path.name if series else stem_of(path)
        if stem in found:
            faults.append((path, f"the same name as {found[stem].name}; keep one of the two"))
        found.setdefault(stem, path)
    return found


def _is_dicom_file(path: Path) -> bool:
    return suffix_of(path) in DICOM_SUFFIXES and not path.name.startswith(".")


def _is_numbered(root: Path, images: Mapping[str, Path], labels: Mapping[str, Path]) -> bool:
    """Whether image names end with a channel's number: nnU-Net v2 (`channel_names`), or v1, by the names.

    Labels have no such number, so where they are called as the images are, a number is part of the name.
    """
    if labels and labels.keys() <= images.keys():
        return False
    try:
        if "channel_names" in read_json(root / "dataset.json"):
            return True
    except DatasetError:  # damaged: whoever needs its content complains
        pass
    return bool(images) and all(re.search(r"_000\d$", stem) for stem in images)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} where there is no file."""
    return _parsed(path, dict[str, Any]) if path.exists() else {}


def _parsed(path: Path, shape: Any) -> Any:
    return schema.read_json(path, shape, error=DatasetError, fix=FIX, most_bytes=MOST_BYTES)


def declared_labels(description: Mapping[str, Any], root: Path) -> dict[str, int | tuple[int, ...]]:
    """Name to id from `dataset.json`, in nnU-Net form {"liver": 6} or MSD form {"6": "liver"}; else {}.

    Of one of nnU-Net's regions, {"whole tumour": [1, 2, 3]}, the ids, in their order.
    """
    declared = description.get("labels", {})
    source = root / "dataset.json"
    if not isinstance(declared, dict):
        raise DatasetError(f'{source}: \'labels\' must be an object such as {{"background": 0, "liver": 1}}.')
    names = {**declared, **{value: key for key, value in declared.items() if isinstance(value, str)}}
    schema.checked(names, dict[Name, Any], source, below="labels", error=DatasetError, fix=FIX)
    found: dict[str, int | tuple[int, ...]] = {}
    for key, value in declared.items():
        name, number = (value, key) if isinstance(value, str) and not value.isdigit() else (key, value)
        if isinstance(number, list):
            ids = {int(one) for one in number if not isinstance(one, bool) and re.fullmatch(r"[1-9]\d{0,8}", str(one))}
            if not ids or len(ids) != len(number):
                raise DatasetError(f"{source}: ids of '{name}' must be different whole numbers ≥ 1, not {number!r}.")
            if (name := canonical_name(name)) in {"", "background", IGNORE} or name in found:
                raise DatasetError(f"{source}: '{name}' = {number} must be a name used once, and of a target.")
            if tuple(sorted(ids)) in found.values() or (len(ids) == 1 and ids & set(found.values())):
                raise DatasetError(f"{source}: '{name}' = {number} is what another name stands for; take one of them.")
            found[name] = tuple(sorted(ids)) if len(ids) > 1 else ids.pop()
            continue
        if isinstance(number, bool) or not re.fullmatch(r"\d{1,9}", str(number)):
            raise DatasetError(f"{source}: the id of '{name}' must be a whole number ≥ 0, not {number!r}.")
        if (name := canonical_name(name)) == IGNORE and not int(number):
            raise DatasetError(
                f"{source}: '{IGNORE}' marks voxels that nobody labelled, so its id is not background's, 0."
            )
        if int(number) and (name in {"", "background"} or name in found or int(number) in found.values()):
            raise DatasetError(f"{source}: '{name}' = {number} must be a name and an id used once; background is 0.")
        if int(number):
            found[name] = int(number)
    return found


@dataclass(frozen=True)
class Declared:
    """What `dataset.json` says of label files.

    Attributes:
        labels: name to id; no two names share a voxel. Where regions overlap these are their parts, some of them named
            here: "tumour core outside enhancing tumour".
        regions: what is made of several of `labels`, by their names.
        same: ids that mean the same as one of `labels`, by that one.
        ignore: the id of voxels that nobody labelled; None without one.
    """

    labels: dict[str, int]
    regions: dict[str, tuple[str, ...]]
    same: dict[int, int]
    ignore: int | None


def read_declared(description: Mapping[str, Any], root: Path) -> Declared:
    """The declared names as parts that exclude each other. Raises `DatasetError` as `declared_labels`."""
    stated = dict(declared_labels(description, root))
    ignore = stated.pop(IGNORE, None)
    of_name = {name: {ids} if isinstance(ids, int) else set(ids) for name, ids in stated.items()}
    if isinstance(ignore, int) and (odd := [name for name, ids in of_name.items() if ignore in ids]):
        raise DatasetError(f"{root / 'dataset.json'}: id {ignore} is both 'ignore' and of '{odd[0]}'; choose one.")
    alike: dict[frozenset[str], list[int]] = {}
    for number in sorted(set().union(*of_name.values())):
        alike.setdefault(frozenset(name for name, ids in of_name.items() if number in ids), []).append(number)
    labels = {_part_name(names, ids, of_name): ids[0] for names, ids in alike.items()}
    in_order = {name: labels[name] for name in (*(n for n in stated if n in labels), *labels)}
    regions = {
        name: tuple(part for part, first in in_order.items() if first in ids)
        for name, ids in of_name.items()
        if name not in labels
    }
    same = {other: ids[0] for ids in alike.values() for other in ids[1:]}
    return Declared(in_order, regions, same, ignore if isinstance(ignore, int) else None)


def _part_name(names: frozenset[str], ids: Sequence[int], of_name: Mapping[str, set[int]]) -> str:
    """What the voxels are called that are in all of `names` and in no other: a name of their own, or a made one."""
    own = min(names, key=lambda name: (len(of_name[name]), name))
    if of_name[own] == set(ids):
        return own
    if any(not of_name[own] <= of_name[name] for name in names):  # regions that cross
        return " and ".join(sorted(names))
    inside = [name for name, others in of_name.items() if others < of_name[own]]
    return f"{own} outside {max(inside, key=lambda name: len(of_name[name]))}" if inside else f"{own} alone"


def choose_targets(
    declared: dict[str, int], targets: Mapping[str, int] | Sequence[str] | None, root: Path
) -> tuple[dict[str, int], frozenset[int]]:
    """The wanted name-to-id table and the declared ids that are left out of it."""
    if isinstance(targets, str):
        targets = [targets]
    if not targets:
        if declared:
            return declared, frozenset()
        raise DatasetError(
            f'{root} does not say what its masks show: give the target\'s name ({root.name}="breast lesion" or '
            f'--target "breast lesion", targets=["breast lesion"]) or write a dataset.json with "labels".'
        )
    if isinstance(targets, Mapping):
        chosen = {canonical_name(name): int(number) for name, number in targets.items()}
        allowed = f"ids {summary(sorted(declared.values()))}"
        wrong = [str(number) for number in chosen.values() if declared and number not in declared.values()]
    else:
        names = [canonical_name(name) for name in targets]
        chosen = {name: declared.get(name, 0) if declared else place for place, name in enumerate(names, start=1)}
        allowed = ", ".join(declared)
        wrong = [f"'{name}'" for name, number in chosen.items() if not number]
    if wrong:
        raise DatasetError(f"{root / 'dataset.json'} declares no {', '.join(wrong)}; it declares {allowed}.")
    if len(chosen) != len(targets) or len(set(chosen.values())) != len(chosen) or min(chosen.values()) < 1:
        raise DatasetError(f"Targets must be different names with different ids above 0, not {targets}.")
    return chosen, frozenset(declared.values()) - set(chosen.values())


def declared_modality(description: Mapping[str, Any], root: Path) -> str | None:
    """The modality that `dataset.json` states: "CT", "MR" (for MRI, T2, FLAIR, …), another word, or None.

    Of several channels it is the one that they share, if they do.
    """
    channels, source = _channel_names(description, root), root / "dataset.json"
    try:
        codes = [None if text.strip().lower() in _NO_MODALITY else modality_code(text) for text in channels]
    except DelineateError as error:
        raise DatasetError(f"{source}: {error}.") from error
    if len(channels) == 1:
        return codes[0]
    known = {code for code in codes if code in MODALITIES}
    return known.pop() if len(known) == 1 else None


def declared_channels(description: Mapping[str, Any], root: Path, images: Iterable[Path]) -> tuple[str, ...]:
    """What each of several channels shows, in their order; () of scans of one, and of pictures in colour.

    Three or four channels of `images` that are pictures are the colours of one file, whatever they are called.
    """
    names = _channel_names(description, root)
    pictures = not any(suffix_of(path) in VOLUME_SUFFIXES for path in images)
    if len(names) == 1 or set(names) <= set("RGBrgb") or (pictures and len(names) in (3, 4)):
        return ()
    if len(names) > MOST_CHANNELS or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DatasetError(
            f"{root / 'dataset.json'}: channels are {MOST_CHANNELS} at most, each with a name of its own; found "
            f"{summary(names)}."
        )
    return tuple(names)


def _channel_names(description: Mapping[str, Any], root: Path) -> list[str]:
    """The names in the order of their numbers; [""] where nothing is stated."""
    stated, source = description.get("channel_names", description.get("modality")), root / "dataset.json"
    if isinstance(stated, dict):
        stated = [name for _, name in sorted(stated.items(), key=lambda item: _number(item[0]))]
    names = list(stated if isinstance(stated, list) else [stated or ""]) or [""]
    if not all(isinstance(text, str) for text in names):
        raise DatasetError(f'{source}: a channel has a name, as in "channel_names": {{"0": "CT"}}; found {stated!r}.')
    return schema.checked(names, list[Line], source, error=DatasetError, fix=FIX)


def _number(key: str) -> int:
    """Of a channel; what is none comes last."""
    return int(key) if re.fullmatch(r"\d{1,4}", key) else 10**4


def read_subjects(root: Path, names: Mapping[str, Path]) -> dict[str, str]:
    """{case: subject} from `subjects.json`; {} without one. Both eyes of a person are one subject."""
    subjects = read_json(root / "subjects.json")
    for name, subject in subjects.items():
        if name not in names or not isinstance(subject, str) or not subject:
            raise DatasetError(
                f"{root / 'subjects.json'} must map case names to subjects; wrong: {name!r}: {subject!r}."
            )
    return schema.checked(subjects, dict[str, Name], root / "subjects.json", error=DatasetError, fix=FIX)


def read_splits(root: Path, given: Path | None = None) -> dict[str, tuple[str, ...]]:
    """The splits given, else the folder's, else its parent's entry under the folder's name; {} without.

    Where there are none, fold 0 of nnU-Net's `splits_final.json`, which has train and val alone.
    """
    splits = _own_splits(root, given)
    if splits or not (path := root / NNUNET_SPLITS).is_file():
        return splits
    folds = _parsed(path, None)
    lists = folds[0].values() if isinstance(folds, list) and folds and isinstance(folds[0], dict) else [None]
    _check_lists(path, lists, '[{"train": [cases], "val": [...]}, …] of strings, a fold each')
    return {name: tuple(names) for name, names in folds[0].items()}


def nnunet_splits_in_words(root: Path) -> str | None:
    """One line where `read_splits` takes them from nnU-Net; else None."""
    if not (root / NNUNET_SPLITS).is_file() or _own_splits(root):
        return None
    return f"{root.name}: no splits.json; fold 0 of {NNUNET_SPLITS} is followed, which holds out no 'test'"


def where_splits_are(root: Path) -> str:
    """Which file `read_splits` follows, and how it is left."""
    if not (root / "splits.json").is_file() and nnunet_splits_in_words(root):
        return f"fold 0 of {NNUNET_SPLITS}; a splits.json of your own comes before it"
    path = root / "splits.json" if (root / "splits.json").exists() else root.parent / "splits.json"
    return f"{path}; remove that to draw new ones"


def _own_splits(root: Path, given: Path | None = None) -> dict[str, tuple[str, ...]]:
    if given is not None and not Path(given).is_file():
        raise DatasetError(f"{given} is not a splits file.")
    for path in [Path(given)] if given is not None else [root / "splits.json", root.parent / "splits.json"]:
        value = read_json(path)
        if isinstance(value.get(root.name), dict):
            value = value[root.name]
        elif path.parent != root and given is None:  # a splits file of other datasets
            continue
        if not value:
            continue
        _check_lists(path, value.values(), '{"train": [subjects], "val": [...], "test": [...]} of strings')
        return {name: tuple(names) for name, names in value.items()}
    return {}


def _check_lists(path: Path, lists: Collection[Any], form: str) -> None:
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise DatasetError(f"{path} must hold {form}.")
    schema.checked(list(lists), list[list[Name]], path, error=DatasetError, fix=FIX)


def split_faults(splits: Mapping[str, Sequence[str]], subjects: set[str]) -> list[str]:
    """Why splits cannot be trusted: a subject named twice, in two splits (a leak), or not in the dataset."""
    faults = []
    home: dict[str, str] = {}
    for split, members in splits.items():
        for subject in members:
            if home.get(subject) == split:
                faults.append(f"subject '{subject}' is named twice in '{split}'")
            elif subject in home:
                faults.append(f"subject '{subject}' is in both '{home[subject]}' and '{split}'")
            elif subject not in subjects:
                faults.append(f"subject '{subject}' of '{split}' has no case")
            home[subject] = split
    return faults


def summary(numbers: Sequence[object], most: int = 12) -> str:
    """Numbers in words, shortened: "1, 2, 3" or "1, 2, 3, … (200 values)"."""
    text = ", ".join(map(str, numbers[:most]))
    return text if len(numbers) <= most else f"{text}, … ({len(numbers)} values)"
