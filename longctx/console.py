"""What the person at the terminal reads: notices on stderr, tables on stdout.

Text of others (models, data, libraries, names of files) gets there without characters that would
steer a terminal, and without secrets.
"""

import argparse
import logging
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from longctx.redaction import masked

# Control characters, Unicode's line separators, what turns the direction of text (Trojan Source,
# CVE-2021-42574), invisible tags, and halves of surrogate pairs, which no file can hold.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    r"\U000e0000-\U000e007f\ud800-\udfff]"
)
# What libraries put in for colours and progress bars.
_STYLE = re.compile(r"\x1b\[[0-9;]*[AKm]")


def printable(text: str) -> str:
    """`text` without characters that would steer a terminal, hide text or turn its direction."""
    # What Python calls printable has none of them, which is quicker to find out.
    return text if text.isprintable() else _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """`text` as one printable line without secrets."""
    return printable(re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", masked(text).strip()))


def notice(text: str) -> None:
    """One line on stderr about something that is not an error."""
    print(f"note: {one_line(text)}", file=sys.stderr, flush=True)


def error(problem: object) -> None:
    """On stderr what keeps a command from going on, a line each, with examples of what can be."""
    for one in getattr(problem, "problems", [problem]):
        print(f"error: {one_line(str(one))}", file=sys.stderr)
        if example := getattr(one, "example", ""):
            print(example, file=sys.stderr)
    sys.stderr.flush()


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs in lines of the terminal's width; what begins with a space stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            paragraph if paragraph.startswith(" ") else textwrap.fill(paragraph, width)
            for paragraph in text.strip("\n").split("\n\n")
        )


def print_traceback() -> None:
    """On stderr, the traceback of the exception that is being handled."""
    print(_plain(traceback.format_exc()), file=sys.stderr, flush=True)


def guard() -> None:
    """From here on whatever this process prints, loggers, warnings and tracebacks too, is plain."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))
    # Handlers made at an import hold the stream of that time.
    logging.setLogRecordFactory(_Record)


def _plain(text: str) -> str:
    return printable(masked(_STYLE.sub("", text)))


class _Guarded:
    """A stream of text that others write to; a carriage return of a progress bar stays."""

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""
        self.stream.write(start + _plain(text.removeprefix(start).replace("\r\n", "\n")))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Record(logging.LogRecord):
    """A record whose message and traceback are plain."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0]:
            self.exc_text = _plain("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        return _plain(super().getMessage())


def _without_secrets(shown: Any) -> Any:
    if isinstance(shown, Text) and (text := masked(shown.plain)) != shown.plain:
        return Text(text)
    return shown


class _Console(Console):
    """Writes past the guard, since the escape sequences are its own; what it shows is plain."""

    @property
    def file(self) -> IO[str]:
        file = super().file
        return file.stream if isinstance(file, _Guarded) else file

    @file.setter
    def file(self, file: IO[str]) -> None:
        self._file = file

    def print(self, *objects: Any, **options: Any) -> None:
        # What others write to stderr beside a progress bar comes as Text.
        super().print(*map(_without_secrets, objects), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                style = segment.style and segment.style.update_link(None)
                yield Segment(printable(segment.text), style)


stdout = _Console()
stderr = _Console(stderr=True)
