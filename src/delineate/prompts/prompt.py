"""What a person asks for."""

from dataclasses import dataclass

from delineate.errors import PromptError
from delineate.prompts.clues import Box, Example, Region
from delineate.prompts.marks import Marks

LONGEST_PROMPT = 200  # characters


@dataclass(frozen=True)
class Prompt:
    """A target in words, and clues of it in the scan that is asked about. A frozen value: a correction is a new prompt.

    Attributes:
        text: at most 200 characters.
        marks: voxels that a person says are inside, or outside: clicks and scribbles.
        box: where alone it may be.
        mask: what is believed so far.
        examples: labelled scans (references, a support set).
        style: whose way of drawing is asked for.

    Raises:
        PromptError: the words are missing or too long.
    """

    text: str
    marks: Marks | None = None
    box: Box | None = None
    mask: Region | None = None
    examples: tuple[Example, ...] = ()
    style: str | None = None

    def __post_init__(self):
        if not isinstance(self.text, str) or not self.text.strip():
            raise PromptError("a prompt must name a target; this one is empty. Try: liver")
        if len(self.text) > LONGEST_PROMPT:
            raise PromptError(
                f"a prompt may have {LONGEST_PROMPT} characters; this one has {len(self.text)}. Name one target."
            )

    def check(self, shape: tuple[int, int, int]) -> None:
        """Make sure that its clues lie in a scan of this shape. Raises `PromptError`."""
        for clue in (self.marks, self.box, self.mask):
            if clue is not None:
                clue.check(shape)
