"""What the person at the terminal reads: notices on stderr, tables on stdout."""

import re
import sys

from rich.console import Console

stdout = Console()
stderr = Console(stderr=True)

# Control characters, Unicode's line separators, what turns the direction of text (Trojan Source,
# CVE-2021-42574), invisible tags, and halves of surrogate pairs, which no file can hold.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    r"\U000e0000-\U000e007f\ud800-\udfff]"
)


def notice(text: str) -> None:
    """One line on stderr about something that is not an error."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` without characters that would steer a terminal, hide text or turn its direction."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
