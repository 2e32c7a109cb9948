"""The door: a scan and prompts in, proposals out. It has no memory; what is worth keeping is a value (`Seen`)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from delineate.adapters.adapter import Adapted
from delineate.adapters.folder import load_adapter
from delineate.calibration.guarantees import Calibration
from delineate.calibration.presence import FOUND_FROM
from delineate.calibration.recogniser import LIE, Recognised
from delineate.errors import ModelError, PromptError, ScanError
from delineate.interaction.answer import answer_with_marks
from delineate.interaction.clues import clues_of, refuse_what_it_does_not_take, voxels_of
from delineate.interaction.marker import Marker, house_marker
from delineate.model_folder import read_model
from delineate.prompts.captions import captions
from delineate.prompts.concept import Concept
from delineate.prompts.prompt import Prompt
from delineate.prompts.understanding import Understood, understood
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.fusion import mean_of
from delineate.proposals.proposals import Proposals
from delineate.proposals.target import Outcome, TargetProposals, presence
from delineate.scans.grid import to_scan_voxels, turned, turned_back, view_of
from delineate.scans.preparation import Habits
from delineate.scans.scan import Scan
from delineate.storage.shipped import house_folder
from delineate.systems.system import Adaptable, Asked, Drawn, Seen

UNCALIBRATED = "no held-out subject was asked; run: delineate calibrate MODEL DATASET"
WITH_ADAPTER = (
    "no held-out subject was asked with this adapter on; run: delineate calibrate MODEL DATASET --adapter ADAPTER"
)
BY_CLUES = "held-out subjects were asked in words, without a box, a mask, examples or a style"
BY_MISFIT = "held-out subjects were of the kinds that the model learnt from"


class Segmenter:
    """A trained system behind one door, whatever the system.

    Example::

        segmenter = Segmenter.load()
        proposals = segmenter(read_scan("ct.nii.gz"), ["liver"], n=8)
        proposals["liver"].consensus()
    """

    def __init__(
        self,
        system: Adaptable,
        modalities: tuple[str | None, ...] = (None,),
        *,
        fingerprint: str | None = None,
        habits: Habits = Habits(),
        calibration: Calibration | None = None,
        marker: Marker | None = None,
        uncalibrated: str = UNCALIBRATED,
        folder: Path | None = None,
    ):
        """A segmenter.

        Args:
            system: trained. Any `System` answers; to be saved or adapted it must be `Adaptable`, as all named ones are.
            modalities: of the scans it was trained on.
            fingerprint: of the model folder it came from (`model_folder.fingerprint`).
            habits: how it treats scans.
            calibration: what held-out subjects taught about its answers.
            marker: reads clicks and scribbles; None for the one that ships with the package.
            uncalibrated: why there is no calibration, where there is none, and what can be done.
            folder: the model folder that all of it came from, and no more than that; None where it is in no folder.
        """
        self.system = system
        self.modalities = modalities
        self.fingerprint = fingerprint
        self.habits = habits
        self.calibration = calibration
        self.marker = marker
        self.folder = folder
        self.uncalibrated = "" if calibration is not None else uncalibrated

    @classmethod
    def load(
        cls,
        folder: Path | str | None = None,
        device: str = "cpu",
        adapter: Path | str | None = None,
        *,
        calibrated: bool = True,
    ) -> "Segmenter":
        """The segmenter in a model folder, verified by its hashes; the house model where no folder is given.

        With or without what held-out subjects taught: that of another release cannot be read, and is to be made anew.

        Raises:
            ModelError: the folder is missing, damaged, or of a system that is not known here; or the `adapter`'s
                folder is, or belongs to another model.
        """
        model = read_model(folder, device, calibrated=calibrated)
        how = {"fingerprint": model.fingerprint, "calibration": model.calibration}
        where = house_folder() if folder is None else Path(folder)
        base = cls(model.system, model.modalities, habits=model.habits, folder=where, **how)
        return base if adapter is None else base.with_adapter(adapter, calibrated=calibrated)

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        device: str = "cpu",
        adapter: Path | str | None = None,
        *,
        calibrated: bool = True,
        token: str | bool | None = None,
    ) -> "Segmenter":
        """As `load`, from a model folder, a MONAI bundle of ours, or `hf://ORGANISATION/NAME[@REVISION]`.

        That address alone is fetched, from the Hugging Face Hub; `token` is of an account there, None for the one that
        `hf auth login` stored.

        Raises:
            ModelError: as `load`; or the Hub cannot be reached, or has no such model.
        """
        from delineate.hub.repository import place_of

        return cls.load(place_of(name, token=token), device, adapter, calibrated=calibrated)

    def save_pretrained(self, folder: Path | str, *, licence: str | None = None) -> Path:
        """Write the model folder that this came from in the Hub's layout, with a README.md (`hub.repository`).

        Args:
            folder: where to; an older model there is replaced.
            licence: of the model, as the Hub names it, such as "cc-by-4.0"; "unknown" where nobody says.

        Raises:
            ModelError: it came from none, or has an adapter on; or the folder holds something else.
        """
        from delineate.hub.repository import write_repository

        if self.folder is None:
            raise ModelError(
                "a segmenter that came from no model folder cannot be written; save it with "
                "delineate.model_folder.save_model, or merge its adapter first with: delineate merge"
            )
        return write_repository(self.folder, Path(folder), licence=licence)

    def push_to_hub(
        self, repository: str, *, licence: str | None = None, private: bool = True, token: str | bool | None = None
    ) -> str:
        """Send what `save_pretrained` writes to ORGANISATION/NAME on the Hub; returns the address of its page.

        Raises:
            ModelError: as `save_pretrained`; or the Hub cannot be reached, or does not let this account write there.
        """
        from delineate.hub.repository import publish

        with TemporaryDirectory() as held:
            written = self.save_pretrained(Path(held) / "model", licence=licence)
            return publish(written, repository, private=private, token=token)

    def with_adapter(self, folder: Path | str, *, calibrated: bool = True) -> "Segmenter":
        """Another segmenter, with the adapter in `folder` on; this one stays as it is and both share its weights.

        The model's calibration is off. The adapter's own takes its place, if `calibrated` and there is one.

        Several can be used side by side; each costs the memory of its adapter.

        Raises:
            ModelError: no adapter, a damaged one, or one of another model.
        """
        adapted, about = load_adapter(folder, self.system, self.fingerprint)
        told = Calibration.load(Path(folder)) if calibrated else None
        return self.adapted(adapted, about.habits, merge=adapted.can_merge, calibration=told)

    def adapted(
        self, adapted: Adapted, habits: Habits, *, merge: bool = False, calibration: Calibration | None = None
    ) -> "Segmenter":
        """The segmenter of this one's system, adapted; it has no model folder of its own.

        Args:
            adapted: this one's system with an adapter in it.
            habits: how it treats scans; which channels and which neighbours of a slice are seen, and which regions can
                be asked, stays as the model learnt it.
            merge: whether the adapter is merged into layers of its own: then it is as fast as the base.
            calibration: what held-out subjects taught about its answers.
        """
        own = self.habits
        habits = replace(habits, apart_mm=own.apart_mm, channels=own.channels, regions=own.regions)
        modalities = dict.fromkeys((*self.modalities, habits.modality))
        system = adapted.merged(share=True) if merge else adapted.system
        how = {"habits": habits, "calibration": calibration, "marker": self.marker, "uncalibrated": WITH_ADAPTER}
        return Segmenter(system, tuple(modalities), **how)

    def calibrated(self, calibration: Calibration | None) -> "Segmenter":
        """The same with another calibration, or with none."""
        kept: dict[str, Any] = {"fingerprint": self.fingerprint, "habits": self.habits, "marker": self.marker}
        kept["uncalibrated"] = self.uncalibrated or UNCALIBRATED
        return Segmenter(self.system, self.modalities, calibration=calibration, **kept)

    def found_from(self, target: str) -> float:
        """The score from which a target counts as found: calibrated, or `FOUND_FROM`."""
        calibrated = self.calibration and self.calibration.presence_of(target)
        return calibrated.threshold if calibrated else FOUND_FROM

    @property
    def vocabulary(self) -> Vocabulary:
        """What can be asked."""
        own, regions = self.system.vocabulary, self.habits.regions
        return own.with_regions(regions) if regions else own

    def look(self, scan: Scan, *, turn: int = 0) -> Seen:
        """Encode a scan once; one whose slices lie turned (`recognised`) is turned back for it, and masks return.

        Raises:
            ScanError: it has no voxels, or other channels than the model learnt from.
        """
        if min(scan.shape) < 1:
            raise ScanError(f"{scan.source}: a scan must hold voxels, this one has the shape {scan.shape}")
        if scan.channels != self.habits.channels:
            raise ScanError(f"{scan.source}: {unlike_channels(scan.channels, self.habits.channels)}")
        prepared = self.habits.preparation(scan)
        view = view_of(prepared, self.system.size, self.habits.apart_mm)
        return Seen(scan, self.system.see(replace(view, stack=turned_back(view.stack, turn))), prepared, turn)

    def __call__(
        self,
        scan: Scan | Seen,
        prompts: Sequence[Prompt | str],
        *,
        n: int = 8,
        seed: int = 0,
        earlier: Proposals | None = None,
        anyway: bool = False,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> Proposals:
        """Proposals for every prompt, in the order asked.

        A prompt with marks is answered in words first; then the slices that have marks are drawn anew
        (`delineate.interaction.answer`). One with a positive mark is answered even if nobody knows the words.

        Args:
            scan: a scan, or one that was looked at.
            prompts: targets in words (`understood`): "kidneys" and "liver and spleen" are two each. An unknown one is
                answered with the outcome *unknown prompt*.
            n: proposals a target. Fewer come from a system that has no more: one from a plain U-Net.
            seed: proposal k depends on (model, scan, prompt, seed, k) and on nothing else: not on `n`, nor on what else
                is asked, but for rounding (`System.propose`).
            earlier: this segmenter's answers on this scan to the same words, with the same `n` and `seed`, where there
                are any: without marks, and with some. What would be drawn again is then taken from them. It saves
                time and changes nothing but rounding. One on another `Scan` is not looked at.
            anyway: draws what does not fit the scan, too (`misfit`); `TargetProposals.misfit` still says so. A positive
                mark does the same for its prompt.
            on_step: told the share of the work that is done.

        Raises:
            PromptError: a clue lies outside of the scan, or is one that the system does not take.
        """
        if n < 1:
            raise ValueError(f"n, the proposals a target, must be 1 or more; got {n}")
        seen = scan if isinstance(scan, Seen) else self.look(scan)
        taken = [one for p in prompts for one in self.taken(p if isinstance(p, Prompt) else Prompt(p), seen.scan)]
        asked = [prompt for prompt, _ in taken]
        for prompt in asked:
            prompt.check(seen.scan.shape)
            if seen.turn and replace(prompt, box=None) != Prompt(prompt.text):
                raise PromptError(
                    f"'{prompt.text}': a scan that is turned takes words and a box; leave other clues out"
                )
            refuse_what_it_does_not_take(prompt, self.system)
            self._refuse_clues_of_region(prompt, seen.scan)
        answers = []
        for done, (prompt, said) in enumerate(taken):

            def report(share: float, done: int = done) -> None:
                on_step((done + share) / len(asked))

            words = replace(prompt, marks=None)
            reusable = earlier if earlier is not None and prompt.marks and earlier.scan is seen.scan else ()
            known = [t for t in reusable if replace(t.prompt, marks=None) == words and len(t) in (0, n)]
            plain = next((t for t in known if t.prompt == words), None)
            before = next((t for t in known if t.prompt.marks), None)
            insists = anyway or (prompt.marks is not None and bool(prompt.marks.positive))
            if plain is not None and plain.drawn is None and insists:
                plain = None
            answer = self._answer(seen, words, n, seed, insists, report) if plain is None else plain
            answer = replace(answer, said=said)
            answers.append(self._marked(seen, prompt, answer, before, n, seed) if prompt.marks else answer)
            report(1.0)
        return Proposals(seen.scan, tuple(answers), self.vocabulary.names)

    def _refuse_clues_of_region(self, prompt: Prompt, scan: Scan) -> None:
        """A system that knows a region's parts alone cannot heed marks or a mask of the whole."""
        if getattr(self.system, "unites", False) or replace(prompt, box=None) == Prompt(prompt.text):
            return
        concept = self._concept(prompt, scan)
        if concept is not None and concept.parts:
            raise PromptError(
                f"'{prompt.text}' is made of {', '.join(concept.parts)} here, and takes words and a box; "
                "give other clues to one of those"
            )

    def understood(self, text: str, scan: Scan | None = None) -> Understood:
        """What words ask of this model (`prompts.understanding`), in a scan of this kind where one is given."""
        modality = scan.modality if scan is not None else None
        return understood(text, self.vocabulary, modality or self.habits.modality)

    def taken(self, prompt: Prompt, scan: Scan) -> list[tuple[Prompt, str]]:
        """The prompts that one stands for, "kidneys" for two, each with how its words were taken ("" if plainly)."""
        if self.system.open_words:
            return [(prompt, "")]
        meant = self.understood(prompt.text, scan)
        said = f"'{prompt.text}' was taken for {meant.said}" if meant.said else ""
        if len(meant.targets) < 2:
            return [(prompt, said)]
        return [(replace(prompt, text=name), said) for name in meant.targets]

    def recognised(self, seen: Seen) -> Recognised | None:
        """What kind of scan this is taken for; None for a model that nobody taught to tell (`delineate calibrate`)."""
        recogniser = self.calibration.recogniser if self.calibration is not None else None
        gist = getattr(seen.features, "gist", None)
        if recogniser is None or gist is None:
            return None
        return recogniser(gist.numpy(), seen.scan.modality)

    def learnt_for(self, seen: Seen) -> tuple[tuple[str, ...], str]:
        """All names that were learnt for such a scan, and in words what it was taken for.

        By the kind that it is recognised as; where none is, by its modality; and where that is not told, all names.
        Those that held-out subjects show to be unknown are left out.
        """
        known = [c for c in self.vocabulary.concepts if self.calibration is None or self.calibration.is_learnt(c.name)]
        found, modality = self.recognised(seen), seen.scan.modality or self.habits.modality
        kinds = [] if found is None else [kind for kind in (found.kind, *found.local) if kind is not None]
        if found is not None and kinds:
            names = tuple(concept.name for concept in known if found.fits(concept.name))
            return names, " or ".join(dict.fromkeys(map(str, kinds)))
        shown = tuple(c.name for c in known if modality in c.modalities or not c.modalities) if modality else ()
        return (shown, str(modality)) if shown else (tuple(c.name for c in known), "any kind of scan")

    def lies(self, seen: Seen) -> str:
        """How its slices lie, if otherwise than those that were learnt from, in words; "" where nobody sees that."""
        found = None if seen.turn else self.recognised(seen)
        if found is None or not found.turn:
            return ""
        if found.kind is None:  # it may be a stranger, which lies as it will
            there = self.recognised(self.look(seen.scan, turn=found.turn))
            if there is None or there.kind is None or there.turn:
                return ""
        return f"its slices lie {LIE[found.turn]}, by what they show"

    def misfit(self, seen: Seen, target: str) -> tuple[Outcome, str] | None:
        """Why a target of the vocabulary is not to be asked of this scan, and in a sentence; None where it may be."""
        if self.calibration is not None and not self.calibration.is_learnt(target):
            held_out = self.calibration.dice[target]
            return Outcome.NOT_LEARNT, f"not learnt: Dice {held_out.mean():.2f} on {len(held_out)} held-out subjects"
        recogniser, found = self.calibration and self.calibration.recogniser, self.recognised(seen)
        if recogniser is None or found is None or found.fits(target):
            return None
        learnt = " or ".join(str(kind) for kind in recogniser.kinds if target in kind.targets)
        modality = seen.scan.modality
        if found.kind is not None:
            return Outcome.NOT_LEARNT, f"learnt in {learnt} alone, and this scan is taken for {found.kind}"
        if modality is not None and all(kind.modality not in (None, modality) for kind in recogniser.kinds):
            return Outcome.NOT_LEARNT, f"learnt in {learnt} alone, and this scan is {modality}"
        told = "" if modality is None else f" {modality}"
        return (
            Outcome.UNLIKE,
            f"this scan is unlike any{told} that the model learnt from; '{target}' was learnt in {learnt}",
        )

    def _answer(
        self, seen: Seen, prompt: Prompt, n: int, seed: int, anyway: bool, on_step: Callable[[float], None]
    ) -> TargetProposals:
        asked = self._asked(seen, prompt)
        if asked is None:
            nearest = self.understood(prompt.text, seen.scan).nearest
            return TargetProposals(prompt, None, Outcome.UNKNOWN_PROMPT, nearest=nearest)
        unfit = None if asked.concept is None else self.misfit(seen, asked.concept.name)
        if unfit is not None and not anyway:
            return TargetProposals(prompt, asked.name, unfit[0], misfit=unfit[1])
        drawn = self._drawn(seen, asked, n, seed, on_step)
        maps = to_scan_voxels(turned(drawn.probabilities, seen.turn), seen.scan)
        if prompt.box is not None:
            maps = maps.only(voxels_of(prompt.box, seen.scan))
        some = islice(maps.rows(), self.calibration.proposals if self.calibration else n)
        score = presence(mean_of(some, len(maps.where)))
        name = asked.concept.name if asked.concept else " ".join(prompt.text.split())
        found_from = self.found_from(name)
        outcome = Outcome.FOUND if score >= found_from else Outcome.LIKELY_ABSENT
        scores = None if drawn.scores is None else drawn.scores.numpy()
        why = self.uncalibrated or BY_CLUES * (not words_alone(prompt)) or BY_MISFIT * (unfit is not None)
        more = {"scores": scores, "misfit": "" if unfit is None else unfit[1]}
        more |= {"found_from": found_from, "uncalibrated": why, "parts": asked.concept.parts if asked.concept else ()}
        calibration = None if why else self.calibration
        return TargetProposals(prompt, name, outcome, score, maps, calibration=calibration, **more)

    def _drawn(self, seen: Seen, asked: Asked, n: int, seed: int, on_step: Callable[[float], None]) -> Drawn:
        """What the system draws; of a region, for one that knows its parts alone, these together."""
        if asked.concept is None or not asked.concept.parts or getattr(self.system, "unites", False):
            return self.system.propose(seen.features, asked, n, seed, on_step)
        parts = [self.vocabulary.concepts[self.vocabulary.index(part)] for part in asked.concept.parts]
        total: Any = 0
        for done, part in enumerate(parts):

            def report(share: float, done: int = done) -> None:
                on_step((done + share) / len(parts))

            own = replace(asked, concept=part, caption=captions(part)[0], words=part.name, calibrator=None)
            total = total + self.system.propose(seen.features, own, n, seed, report).probabilities
        return Drawn(total.clamp(max=1))

    def _marked(
        self, seen: Seen, prompt: Prompt, answer: TargetProposals, before: TargetProposals | None, n: int, seed: int
    ) -> TargetProposals:
        """`answer`, the one to the words of `prompt`, with its marks; `before` had others."""
        marker = self.marker or house_marker()
        how = {"n": n, "seed": seed, "found_from": self.found_from(answer.name or ""), "before": before}
        return answer_with_marks(prompt, answer, seen, self.system, marker, self._asked(seen, prompt), **how)

    def _asked(self, seen: Seen, prompt: Prompt) -> Asked | None:
        """What the system is asked; None where nobody knows the words."""
        concept = self._concept(prompt, seen.scan)
        if concept is None and not self.system.open_words:
            return None
        caption = prompt.text if concept is None else captions(concept)[0]
        speaks = concept is not None and self.calibration is not None and words_alone(prompt)
        calibrator = self.calibration.of_estimate(concept.name) if speaks else None  # type: ignore[union-attr]
        return Asked(concept, caption, prompt.text, clues_of(prompt, seen.scan, self.system), calibrator)

    def _concept(self, prompt: Prompt, scan: Scan) -> Concept | None:
        """The one that the words name."""
        targets = self.understood(prompt.text, scan).targets
        return self.vocabulary.concepts[self.vocabulary.index(targets[0])] if len(targets) == 1 else None


def unlike_channels(given: Sequence[str], learnt: Sequence[str]) -> str:
    """What to say of a scan with other channels than a model learnt from, as `Scan.channels`."""
    if not learnt:
        return f"the model reads one image, this scan has {len(given)} ({', '.join(given)}); give it one of them"
    asks = f"the model reads {len(learnt)} channels on one grid: {', '.join(learnt)}"
    if not given:
        return f"{asks}; this is one image: name the files NAME_0000, NAME_0001, … in that order, in one folder"
    return f"{asks}; this scan has {', '.join(given)}"


def words_alone(prompt: Prompt) -> bool:
    """Whether there are no clues but marks: of answers to others held-out subjects taught nothing."""
    return replace(prompt, box=None, mask=None, examples=(), style=None) == prompt
