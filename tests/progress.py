"""Standard error of a command without its lines of progress, which tell the time."""

import re

LINE = re.compile(r"\d\d:\d\d:\d\d  .*\n", re.MULTILINE)


def without_progress(text: str) -> str:
    """What else was said."""
    return LINE.sub("", text)
