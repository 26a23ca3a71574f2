"""What the person at the terminal reads: notices on stderr, tables on stdout."""

import re
import sys

from rich.console import Console

stdout = Console()
stderr = Console(stderr=True)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def notice(text: str) -> None:
    """One line on stderr about something that is not an error."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` without the control characters that would steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
