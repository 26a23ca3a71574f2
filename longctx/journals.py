"""Journals as they are found, left by killed processes and full disks: all is checked here."""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from longctx import load_results
from longctx.result_schema import UnusableFileError
from longctx.results import write_whole

SUFFIX = "_rows.jsonl"

_OF_FURTHER_PROCESS = re.compile(r"_rank\d+$")


def newest_first(logdir: Path) -> list[Path]:
    """The journals of first processes; no links, pipes and folders of such a name."""
    found = []
    for path in logdir.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):  # its run has just ended
            status = path.lstat()
            is_first = not _OF_FURTHER_PROCESS.search(path.name.removesuffix(SUFFIX))
            if is_first and stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def lines(path: Path) -> list[bytes]:
    """A journal's lines. Raises UnusableFileError."""
    return load_results.content_of(path).splitlines(keepends=True)


def entry(line: bytes) -> dict[str, Any] | None:
    """The line's object; None of a line that was cut off or overwritten."""
    try:
        value = load_results.parsed(line)
    except UnusableFileError:
        return None
    return value if isinstance(value, dict) and line.endswith(b"\n") else None


def meta(path: Path) -> dict[str, Any] | None:
    """The meta data that a journal begins with; None where that is damaged.

    Raises UnusableFileError.
    """
    first = next(iter(lines(path)), b"")
    found = (entry(first) or {}).get("run_meta")
    is_known = isinstance(found, dict) and all(
        isinstance(found.get(name), str) for name in ("run_id", "fingerprint")
    )
    return found if is_known else None


def set_aside(path: Path, damaged: list[bytes]) -> Path:
    """Keep lines that are no part of a journal in a file beside it; returns its path."""
    aside, number = path.with_suffix(".corrupt"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_suffix(f".corrupt-{number}")
    write_whole(aside, b"".join(damaged))
    return aside
