"""Full results read back from disk. The files may be old, torn or foreign: all is checked here.

Text in them was written by models. It loses, once for all its readers, the characters that would
steer a terminal, hide text or turn its direction.
"""

import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from longctx import outcomes, result_schema
from longctx.console import notice, printable
from longctx.redaction import in_texts
from longctx.result_schema import UnusableFileError

__all__ = ["UnusableFileError", "find", "read"]

FullResults = dict[str, Any]

FULL_SUFFIXES = ("_full.json", "_full.json.gz")
MAX_BYTES = 256 * 2**20

# Python and JSON tell larger whole numbers apart, a page's script does not.
_MAX_NUMBER = 2**53
_MAX_DEPTH = 50
_NAMED = 5


def content_of(path: Path) -> bytes:
    """A file's content, unpacked if it ends in `.gz`. Raises UnusableFileError.

    Of at most MAX_BYTES, and of no pipe: that may have no end.
    """
    try:
        with ExitStack() as opened:
            file: Any = opened.enter_context(open(path, "rb", opener=_open_at_once))
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnusableFileError("is no file but a pipe or the like")
            if path.suffix == ".gz":
                file = opened.enter_context(gzip.open(file))
            content: bytes = file.read(MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnusableFileError(f"is not whole gzip: {_line(str(error))}") from None
    except OSError as error:
        raise UnusableFileError(f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise UnusableFileError(f"is larger than {MAX_BYTES // 2**20} MiB")
    return content


def _open_at_once(path: str, flags: int) -> int:
    # Else opening a pipe waits until somebody writes into it.
    return os.open(path, flags | os.O_NONBLOCK)


def parsed(text: bytes) -> Any:
    """JSON, in which what is no number, or too large for one, is null. Raises UnusableFileError."""
    try:
        value = json.loads(
            text,
            parse_constant=lambda _: None,
            parse_float=_float,
            parse_int=_int,
        )
        _check_depth([value], _MAX_DEPTH + 1)
    except (ValueError, RecursionError) as error:
        raise UnusableFileError(f"is not whole JSON: {_line(str(error))}") from None
    return value


def read(path: Path) -> FullResults:
    """The full results in a file, which may be packed by gzip. Raises UnusableFileError."""
    full: FullResults = in_texts(parsed(content_of(path)), printable)
    result_schema.check(full)
    outcomes.complete(full)
    return full


def check_row(row: Any, meta: dict[str, Any]) -> None:
    """Raises UnusableFileError unless a run with this meta data can go on with the row."""
    result_schema.check_row(in_texts(row, printable), meta)


def find(paths: Sequence[Path]) -> Iterator[tuple[Path, FullResults]]:
    """The runs in files and folders, by path; what is left out is noted once.

    With its reason a file that was named, or whose name is that of full results; other JSON files
    in one line.
    """
    files = {
        # Of a link that leads to itself this is the link.
        os.path.realpath(file): file
        for path in paths
        for file in (_json_files(path) if path.is_dir() else [path])
    }
    others = []
    for file in sorted(files.values()):
        try:
            yield file, read(file)
        except UnusableFileError as error:
            if file in paths or file.name.endswith(FULL_SUFFIXES):
                notice(f"left out: {_line(str(file))} {error}")
            else:
                others.append(_line(str(file)))
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        notice(f"left out, no full results: {', '.join(others[:_NAMED])}{more}")


def _json_files(folder: Path) -> Iterator[Path]:
    def note(error: OSError) -> None:
        notice(f"left out: {_line(str(error.filename))} cannot be read: {error.strerror}")

    for path, _, names in os.walk(folder, onerror=note):
        for file in (Path(path, name) for name in names if name.endswith((".json", ".json.gz"))):
            if file.is_file() or file.name.endswith(FULL_SUFFIXES):
                yield file


def _float(digits: str) -> float | None:
    value = float(digits)
    return value if -_MAX_NUMBER < value < _MAX_NUMBER else None


def _int(digits: str) -> int | None:
    value = int(digits)
    return value if -_MAX_NUMBER < value < _MAX_NUMBER else None


def _check_depth(value: Any, depth: int) -> None:
    if not depth:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list)):
            _check_depth(item, depth - 1)


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
