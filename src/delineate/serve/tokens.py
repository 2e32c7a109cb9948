"""Who may ask: tokens out of a file or the environment, each with a name; never out of a command line, seen by all."""

import re
from pathlib import Path

from delineate.errors import DelineateError
from delineate.storage.hidden import hidden_in

VARIABLE = "DELINEATE_TOKENS"
LARGEST = 1 << 20
SHORTEST = 16


class TokenError(DelineateError):
    """Tokens that cannot be used."""


def read_tokens(file: Path) -> dict[str, str]:
    """The tokens in a file: token -> name. Raises `TokenError`, or `OSError` where it cannot be read."""
    with file.open("rb") as opened:
        data = opened.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise TokenError(f"{file}: a file of tokens has a line a token, this one is larger than {LARGEST >> 20} MiB")
    try:
        return parse_tokens(data.decode(), str(file))
    except UnicodeDecodeError:
        raise TokenError(f"{file}: a file of tokens is text, a line a token; this one is not UTF-8") from None


def parse_tokens(text: str, where: str) -> dict[str, str]:
    r"""The tokens in a text, a line each, `name token` or the token alone; what follows a # is left out.

    >>> parse_tokens("slicer 0123456789abcdef\n# others\nfedcba9876543210", "here")
    {'0123456789abcdef': 'slicer', 'fedcba9876543210': 'token-3'}

    Raises:
        TokenError: names the line and never the token.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, token = (f"token-{number}", words[0]) if len(words) == 1 else (words[0], words[-1])
        if len(words) > 2 or hidden_in(name) is not None or len(name) > 80:
            raise TokenError(f"{where}, line {number}: a line is a name and a token, with a blank between them")
        if len(token) < SHORTEST or not re.fullmatch(r"[A-Za-z0-9_.~-]+", token):
            raise TokenError(
                f"{where}, line {number}: a token has {SHORTEST} or more letters, digits, '-', '_', '.' or '~'; make "
                "one with: openssl rand -hex 32"
            )
        if token in found or name in found.values():
            raise TokenError(f"{where}, line {number}: every line has a name and a token of its own; this one is taken")
        found[token] = name
    if not found:
        raise TokenError(f"{where}: holds no token; write a line with a name and a token")
    return found
