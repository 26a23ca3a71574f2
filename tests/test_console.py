"""Whatever a process prints, by whatever way, steers no terminal and shows no secret."""

import io
import logging
import sys

import pytest
from rich.progress import Progress
from rich.table import Table
from tqdm import tqdm

from longctx import console, redaction

HOSTILE = "a\x1b]0;pwned\x07b\x9b2Jc\u202ed\U000e0041e\x00f\x1b[2Jg\rh hunter2-secret"


@pytest.fixture
def guarded(monkeypatch):
    """Makes the streams of a process after `guard`, and a logger that was there before it."""

    def make():
        streams = [io.StringIO(), io.StringIO()]
        logger = logging.Logger("library")
        logger.addHandler(logging.StreamHandler(streams[1]))
        monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        redaction.remember({"MY_PASS": "hunter2-secret"})
        console.guard()
        console.guard()
        return *streams, logger

    yield make
    redaction.remember({})


def assert_plain(text):
    assert text
    assert "hunter2" not in text
    assert not console._CONTROL.search(text.replace("\r", "", 1) if text[0] == "\r" else text)


def test_prints_loggers_and_tracebacks_are_plain(guarded):
    out, err, logger = guarded()
    print(HOSTILE)
    sys.stdout.writelines([HOSTILE, "\n"])
    assert_plain(out.getvalue())
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        logger.exception("at %s", HOSTILE)
        sys.__excepthook__(type(error), error, error.__traceback__)
        console.print_traceback()
    lines = err.getvalue()
    assert lines.count("Traceback (most recent call last)") == 3
    assert lines.count("pwned") == 4
    assert_plain(lines)


def test_notices_and_errors_are_one_line(guarded):
    _, err, _ = guarded()
    console.notice(f"{HOSTILE}\n\nnote: forged\r\n")
    console.error(ValueError(f"{HOSTILE}\nnote: forged"))
    note, error = err.getvalue().splitlines()
    assert note.startswith("note: a")
    assert error.startswith("error: a")
    assert_plain(note + error)


def test_bars_and_colours_of_libraries_leave_readable_text(guarded):
    _, err, logger = guarded()
    for _ in tqdm(range(1), desc=HOSTILE, bar_format="{desc}{n}", file=sys.stderr):
        pass
    logger.warning("\x1b[1;31mred\x1b[0m \x1b[Aup")
    assert err.getvalue().startswith("\ra")
    assert err.getvalue().endswith("red up\n")
    assert "\x1b" not in err.getvalue()


def test_tables_and_bars_keep_their_colours_and_nobody_elses(guarded):
    out, err, _ = guarded()
    stdout = console._Console(force_terminal=True, color_system="standard")
    stderr = console._Console(force_terminal=True, color_system="standard", stderr=True)
    table = Table(title="[red]title[/red]")
    table.add_row("\x1b]0;pwned\x07", "[link=http://evil]x[/link]")
    stdout.print(table)
    assert "\x1b[" in out.getvalue()
    with Progress(console=stderr) as progress:
        progress.add_task("\x1b]0;pwned\x07", total=1)
        print(
            "\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\ \x1b]0;pwned\x07 hunter2-secret",
            file=sys.stderr,
        )
    for text in (out.getvalue(), err.getvalue()):
        assert "\x1b[" in text
        assert "pwn" in text
        assert "\x1b]" not in text
        assert "hunter2" not in text
