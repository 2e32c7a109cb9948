"""Names and words as people read them: without characters that are not seen, or that turn their neighbours round.

Control characters and line separators (U+0085, U+2028) break the one line that a message is; format characters make
one name look like another (U+200B) or read backwards (U+202E).
"""

import unicodedata

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format, surrogate; line and paragraph separators


def hidden_in(text: str) -> str | None:
    """The first character of `text` that is not seen, as "U+202E (right-to-left override)"; None where there is none.

    >>> hidden_in("Leber, links"), hidden_in("a" + chr(0x202E))
    (None, 'U+202E (right-to-left override)')
    """
    found = next((character for character in text if unicodedata.category(character) in HIDDEN), None)
    if found is None:
        return None
    name = unicodedata.name(found, "").lower()
    return f"U+{ord(found):04X}" + (f" ({name})" if name else "")


def without_hidden(text: str) -> str:
    """`text` with a blank in the place of every run of characters that are not seen."""
    return " ".join("".join(" " if unicodedata.category(c) in HIDDEN else c for c in text).split())
