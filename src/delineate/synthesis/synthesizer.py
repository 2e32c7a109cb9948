"""Synthetic scans from edges and captions: DiffBoost, the foundation with the control turned round.

After Zhang et al. (IEEE TMI 2025, arXiv 2310.12868): a text-to-image diffusion model whose control looks at an edge map
instead of a scan, so that a new scan keeps the old outlines, and with them the old mask. Learnt in two stages, which
are one function here: (a) on many datasets, the foundation's U-Net and text encoder learning too (`unlocked`), for a
foundation that saw few scans is no guide; (b) on the training scans of one task, the U-Net frozen or not.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from delineate.data.slices import Batch, SliceBank
from delineate.diffusion.codec import PixelUnshuffleCodec
from delineate.diffusion.sampling import Noise, guided, sample_ddim
from delineate.diffusion.schedule import trailing_times
from delineate.errors import ModelError
from delineate.foundation.foundation import FIX, Foundation
from delineate.foundation.scan_control import Hint, ScanControl
from delineate.foundation.text import Encoded
from delineate.networks.encoder import ENCODER_WIDTHS
from delineate.prompts.captions import modality_words
from delineate.storage.files import write_json
from delineate.storage.schema import Name, read_json
from delineate.storage.weights import building, load_weights, save_weights
from delineate.synthesis.edges import Extractor, gradient, hint, scharr
from delineate.training.loop import Hyperparameters, Loss, Phase, Run, Step, train_phase

DETAIL = {"tiny": 48, "base": 96}  # width of the convolutions that add what is finer than the foundation's grid
# Looks that a caption may name, each the lowest or highest third of its dataset; what a picture is measured by.
LOOKS = (("dark", "bright"), ("low contrast", "high contrast"), ("smooth", "sharp"))
EDGES_FOLDER = "edges"  # in a foundation's folder
ESTIMATE_SHARE = 0.35  # of the budget; the rest is for denoising
UNCONDITIONAL = 0.1  # how often training sees no caption, as classifier-free guidance needs
HEAVIEST = 5.0  # the weight 1 / σ² of an error in x0 (that of v-prediction) is cut here, or late times drown the rest


@dataclass(frozen=True)
class EdgesConfig:
    """What edges/config.json must hold."""

    preset: Name


@dataclass(frozen=True, eq=False)
class EdgeCondition:
    """What edge maps and captions tell the denoiser: the hint, and the encoder's fine features (B, width, S/2, S/2)."""

    hint: Hint
    fine: Tensor


@dataclass(eq=False)
class Synthesizer:
    """A foundation and the control that steers it from edges to scans."""

    foundation: Foundation
    control: ScanControl
    preset: str

    @classmethod
    def make(cls, foundation: Foundation, preset: str, *, seed: int = 0) -> "Synthesizer":
        """An untrained control on `foundation`: its residuals are 0, so edges do nothing yet."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = int(foundation.text_encoder.config.hidden_size)
            codec = foundation.codec
            detail = DETAIL[preset] if isinstance(codec, PixelUnshuffleCodec) else 0
            sizes = (codec.channels, width, codec.colours, detail)
            control = ScanControl(foundation.unet, ENCODER_WIDTHS[preset], *sizes)
        return cls(foundation, control.requires_grad_(False).eval(), preset)

    def to(self, device: torch.device | str) -> "Synthesizer":
        """Itself, moved."""
        self.foundation.to(device)
        self.control.to(device)
        return self

    @classmethod
    def load(cls, folder: Path, preset: str = "tiny", *, seed: int = 0) -> "Synthesizer":
        """The foundation in `folder` with its edge control, or with an untrained one of `preset` where it has none.

        Raises:
            ModelError: a part is missing, damaged, or does not fit the others.
        """
        foundation, own = Foundation.load(folder), Path(folder) / EDGES_FOLDER
        if not own.is_dir():
            return cls.make(foundation, preset, seed=seed)
        preset = read_json(own / "config.json", EdgesConfig, fix=FIX).preset
        if preset not in DETAIL:
            raise ModelError(f"{own}: preset '{preset}' is not known here; known: {', '.join(DETAIL)}")
        with building(Path(folder), FIX):
            synthesizer = cls.make(foundation, preset)
        load_weights(synthesizer.control, own / "control.safetensors")
        return synthesizer

    def save(self, folder: Path) -> None:
        """Write the foundation as a Stable Diffusion folder, and the control into `edges/` in it."""
        self.foundation.save(folder)
        own = Path(folder) / EDGES_FOLDER
        own.mkdir(exist_ok=True)
        save_weights(self.control, own / "control.safetensors")
        write_json(own / "config.json", {"preset": self.preset})

    def fingerprint(self) -> str:
        """SHA-256 over every weight that draws: names the model in what it made."""
        digest = hashlib.sha256(self.foundation.fingerprint().encode())
        for name, tensor in sorted(self.control.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def colours(self) -> int:
        """Channels of what it draws."""
        return self.foundation.codec.colours

    def mixed(self, weights: Mapping[str, float]) -> Encoded:
        """The caption that lies between several, (1, length, width): their embeddings' weighted mean.

        DiffBoost mixes a task's caption, a style and a random appearance this way.

        Raises:
            ValueError: the weights do not sum to 1.
        """
        if abs(sum(weights.values()) - 1) > 1e-6:
            raise ValueError(f"the weights of captions must sum to 1, not {sum(weights.values()):.4g}: {dict(weights)}")
        each = self.foundation.encode_text(list(weights))
        share = torch.tensor(list(weights.values()), device=each.tokens.device)
        return Encoded(
            torch.einsum("n,nlw->lw", share, each.tokens)[None], torch.einsum("n,nw->w", share, each.pooled)[None]
        )

    @torch.no_grad()
    def draw(
        self,
        edges: Float[Tensor, "batch 1 size size"],
        text: Encoded,
        noise: Noise,
        *,
        steps: int = 20,
        guidance: float = 1.0,
    ) -> Float[Tensor, "batch colours size size"]:
        """Scans in [-1, 1] that have these edges.

        Args:
            edges: hints in [0, 1].
            text: B captions, encoded.
            noise: step to the latent noise of each of the B; step 0 alone is asked for.
            steps: of DDIM, η = 0, trailing times.
            guidance: of the caption (Ho and Salimans, 2022): 1 follows it as learnt, more exaggerates it.
        """
        x0 = sample_ddim(self._denoiser(edges, text, guidance), noise, trailing_times(steps), self.foundation.schedule)
        return self.foundation.codec.decode_picture(x0).clamp(-1, 1)

    def _denoiser(self, edges: Tensor, text: Encoded, guidance: float) -> Callable[[Tensor, int], Tensor]:
        def told(caption: Encoded) -> Callable[[Tensor, int], Tensor]:
            condition = self.look(edges, caption)
            return lambda x, t: self.clean(x, torch.full((len(x),), t, device=x.device), caption, condition)

        if guidance == 1.0:
            return told(text)
        nothing = self.foundation.encode_text([""])
        empty = Encoded(nothing.tokens.expand_as(text.tokens), nothing.pooled.expand_as(text.pooled))
        return guided(told(text), told(empty), guidance)

    def look(self, edges: Tensor, text: Encoded) -> EdgeCondition:
        """What B edge maps (B, 1, size, size) and their captions tell the denoiser; made once for all steps."""
        features = self.control.encoder(2 * edges.expand(-1, 3, -1, -1) - 1)
        expected = self.control.expect(features, text.pooled)
        hint = self.control.hint(features, (expected + 1) / 2, text.pooled, self.foundation.codec)
        return EdgeCondition(hint, features.fine)

    def clean(self, x_t: Tensor, t: Tensor, text: Encoded, condition: EdgeCondition) -> Tensor:
        """The clean latent at (x_t, t)."""
        x0 = self.control.steer(self.foundation, x_t, t, text, condition.hint)
        return self.control.refine(x0, x_t, t, condition.hint, condition.fine, self.foundation)


def pictures_of(bank: SliceBank, batch: Batch) -> Float[Tensor, "batch 3 size size"]:
    """What a synthesizer learns to draw: the colours of a flat image; of a volume the slice without its neighbours."""
    flat = torch.stack([(bank.mirrored[bank.dataset == d] > 0).any() for d in range(len(bank.modalities))])
    own = batch.image[:, 1:2].expand(-1, 3, -1, -1)
    return torch.where(flat.to(own.device)[batch.dataset][:, None, None, None], batch.image, own)


def caption(names: Sequence[str], modality: str | None, looks: Sequence[str] = ()) -> str:
    """Targets, modality and words for the look, separated by commas as in DiffBoost.

    >>> caption(["spleen"], "CT", ["dark"])
    'spleen, CT, dark'
    """
    return ", ".join([*names, *modality_words(modality)[:1], *looks])


@dataclass(frozen=True, eq=False)
class Looks:
    """Where the lower and upper third of brightness, contrast and sharpness lie in each dataset.

    `thirds` is (datasets, 3, 2).
    """

    thirds: Tensor

    @classmethod
    def of(cls, bank: SliceBank, at_most: int = 200) -> "Looks":
        """Measured on up to `at_most` slices of each dataset, spread evenly; of volumes without their neighbours."""
        found = []
        for d in range(len(bank.modalities)):
            index = (bank.dataset == d).nonzero()[:, 0]
            index = index[torch.linspace(0, len(index) - 1, min(at_most, len(index))).round().long()]
            images = bank.images[index].float() / 127.5 - 1
            measured = measure(torch.where(bank.mirrored[index][:, None, None, None] > 0, images, images[:, 1:2]))
            found.append(torch.quantile(measured, torch.tensor([1 / 3, 2 / 3]), dim=0).T)
        return cls(torch.stack(found))

    def words(self, pictures: Tensor, dataset: Tensor) -> list[list[str]]:
        """The looks of each picture (B, C, S, S) that differ from the middle of its dataset's."""
        values, thirds = measure(pictures), self.thirds[dataset.cpu()]
        return [
            [
                pair[int(v > high)]
                for pair, v, (low, high) in zip(LOOKS, row, limits, strict=True)
                if not low <= v <= high
            ]
            for row, limits in zip(values, thirds, strict=True)
        ]


def measure(pictures: Tensor) -> Tensor:
    """Brightness, contrast and sharpness of pictures (B, C, S, S), (B, 3): mean, spread, mean gradient over spread."""
    grey = pictures.mean(dim=1).flatten(1).cpu()
    spread = grey.std(dim=1)
    steep = torch.hypot(*gradient(pictures.cpu(), sigma=0.5)).flatten(1).mean(dim=1)
    return torch.stack([grey.mean(dim=1), spread, steep / spread.clamp(min=1e-3)], dim=1)


def train_synthesizer(
    synthesizer: Synthesizer,
    bank: SliceBank,
    run: Run,
    *,
    edges: Sequence[Extractor | None] = (scharr,),
    label_boundary: bool = True,
    unlocked: bool = True,
    learning_rate: float = 1e-3,
) -> Synthesizer:
    """Teach a synthesizer to draw the bank's slices from their edges and captions; return it frozen.

    First the control's encoder learns what scan to expect, with the text encoder where that is unlocked; then, both
    frozen, the rest learns to denoise.

    Args:
        synthesizer: changed in place.
        bank: training slices; drawn with the geometry of `data.augmentation`'s "diffboost" stack alone.
        run: how long, where to and the like.
        edges: extractors, one drawn for each batch; None draws from label boundaries alone.
        label_boundary: whether these are merged into the hint.
        unlocked: whether the foundation's U-Net and text encoder learn too.
        learning_rate: at its highest; DiffBoost lowers it tenfold for the second stage.
    """
    foundation, control = synthesizer.foundation, synthesizer.control
    bank = replace(bank, augmentation="diffboost")
    looks = Looks.of(bank)
    looks_at = {"encoder": control.encoder, "head": control.head}
    steers = {name: module for name, module in control.named_children() if name not in looks_at}
    words = {"text_encoder": foundation.text_encoder} if unlocked else {}

    def draw(size: int, generator: Generator) -> Sketched:
        batch = bank.draw(size, 1, generator)
        pictures = pictures_of(bank, batch)
        extractor = edges[int(torch.randint(len(edges), (), generator=generator))]
        asked = hint(pictures, batch.labels.clamp(min=0), extractor, label_boundary=label_boundary)
        texts = _captions(bank, batch, looks.words(pictures, batch.dataset), generator)
        return Sketched(pictures.to(foundation.device), asked.to(foundation.device), texts)

    estimate = nn.ModuleDict({**looks_at, **words})
    rest = nn.ModuleDict({**steers, **({"unet": foundation.unet} if unlocked else {})})
    hyper = Hyperparameters(learning_rate=learning_rate)
    for number, phase in enumerate(
        (
            Phase("estimate", estimate, draw, estimate_loss, synthesizer, ESTIMATE_SHARE, hyper),
            Phase("edges", rest, draw, edges_loss, synthesizer, 1 - ESTIMATE_SHARE, hyper),
        )
    ):
        control.requires_grad_(False)
        foundation.frozen()
        train_phase(phase, replace(run.part(phase.share), seed=run.seed + number))
    foundation.frozen()
    control.requires_grad_(False).eval()
    return synthesizer


@dataclass(frozen=True, eq=False)
class Sketched:
    """Pictures (B, 3, S, S) in [-1, 1], the hints (B, 1, S, S) they are drawn from, and a caption each."""

    pictures: Tensor
    asked: Tensor
    captions: list[str]


def estimate_loss(synthesizer: Synthesizer, drawn: Sketched, step: Step) -> Loss:
    """Squared error of the scan that the edges let one expect."""
    foundation, control = synthesizer.foundation, synthesizer.control
    text = foundation.encode_text(drawn.captions)
    features = control.encoder(2 * drawn.asked.expand(-1, 3, -1, -1) - 1)
    error = (control.expect(features, text.pooled) - drawn.pictures[:, : foundation.codec.colours]).square()
    return error.mean(), {}


def edges_loss(synthesizer: Synthesizer, drawn: Sketched, step: Step) -> Loss:
    """Squared error of x0, weighed as that of v would be (Salimans and Ho, 2022), cut at `HEAVIEST`."""
    foundation, pictures = synthesizer.foundation, drawn.pictures
    with torch.no_grad():
        text = foundation.encode_text(drawn.captions)
    x0 = foundation.codec.encode_picture(pictures[:, : foundation.codec.colours])
    t = torch.randint(1000, (len(pictures),), generator=step.generator).to(foundation.device)
    noise = foundation.codec.noise(x0.shape, step.generator).to(foundation.device)
    x_t = foundation.schedule.add_noise(x0, noise, t)
    x0_hat = synthesizer.clean(x_t, t, text, synthesizer.look(drawn.asked, text))
    sigma = foundation.schedule.signal_and_noise(t, x0)[1]
    error = (x0_hat - x0).square()
    return (error / sigma.square().clamp(min=1 / HEAVIEST)).mean(), {"error": error.mean().item()}


def _captions(bank: SliceBank, batch: Batch, looks: list[list[str]], generator: Generator) -> list[str]:
    """A caption for each slice: what is drawn in it, the modality, and one in two looks; sometimes nothing."""
    texts = []
    for labels, d, words in zip(batch.labels, batch.dataset.tolist(), looks, strict=True):
        names = [bank.vocabulary.names[int(v) - 1] for v in labels.unique() if v > 0]
        said = [word for word in words if torch.rand((), generator=generator) < 0.5]
        silent = torch.rand((), generator=generator) < UNCONDITIONAL
        texts.append("" if silent else caption(names, bank.modalities[d], said))
    return texts
