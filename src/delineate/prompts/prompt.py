"""What a person asks for."""

from dataclasses import dataclass

from delineate.errors import PromptError
from delineate.prompts.marks import Marks

LONGEST_PROMPT = 200  # characters


@dataclass(frozen=True)
class Prompt:
    """A target in words, at most 200 characters, and what a person marked of it in the scan that is asked about.

    Raises `PromptError` if the words are missing or longer.
    """

    text: str
    marks: Marks | None = None

    def __post_init__(self):
        if not isinstance(self.text, str) or not self.text.strip():
            raise PromptError("a prompt must name a target; this one is empty. Try: liver")
        if len(self.text) > LONGEST_PROMPT:
            raise PromptError(
                f"a prompt may have {LONGEST_PROMPT} characters; this one has {len(self.text)}. Name one target."
            )
