"""Full results read back from disk. The files may be old, torn or foreign: all is checked here.

Text in them was written by models. It loses, once for all its readers, the characters that would
steer a terminal, hide text or turn its direction.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, TypeAdapter, ValidationError

from longctx import outcomes
from longctx.console import notice, printable

FullResults = dict[str, Any]

FULL_SUFFIXES = ("_full.json", "_full.json.gz")


class UnusableFileError(ValueError):
    """A file that is not the full results of a run; the message is one line."""


class _Variables(BaseModel):
    MODEL_ID: str
    ATTN_IMPL: str
    KV_MODE: str
    KEEP_RATIO: float
    KV_SCOPE: str
    QUANT_MODE: str


class _Meta(BaseModel):
    run_id: str
    task: str
    model: str
    variables: _Variables
    score_names: list[str]
    prompt_format: str
    data_fingerprint: str
    versions: dict[str, str]
    device: dict[str, Any]
    git_commit: str | None


class _Summary(BaseModel):
    context_tokens: int
    n_oom: int
    total_count: int
    n_asked: int = 0
    n_failed_samples: int = 0
    n_oom_samples: int = 0
    n_not_run: int = 0
    n_left_out: int = 0


class _Sample(BaseModel):
    sample_id: str
    prediction: str
    references: list[str]


class _Row(BaseModel):
    context_tokens: int
    request: int
    success: bool
    samples: list[_Sample]


class _Full(BaseModel):
    """What readers rely on; all else may be missing, and is there in newer files."""

    run_meta: _Meta
    ctx_summaries: list[_Summary]
    rows: list[_Row]


_NAMED = 5
_NUMBER = TypeAdapter(float | None)
_INTERVAL = TypeAdapter(Annotated[list[float], Len(2, 2)] | None)


def text_of(path: Path) -> str:
    """A file's text, unpacked if it ends in `.gz`. Raises OSError, EOFError, ValueError."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def read(path: Path) -> FullResults:
    """The full results in a file, which may be packed by gzip. Raises UnusableFileError."""
    try:
        full = json.loads(text_of(path), parse_constant=lambda _: None, parse_float=_finite)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnusableFileError(f"is not whole gzip: {_line(str(error))}") from None
    except OSError as error:
        raise UnusableFileError(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UnusableFileError(f"is not whole JSON: {_line(str(error))}") from None
    try:
        _Full.model_validate(full, strict=True)
        _check_figures(full)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        problem = f"is not full results of a run: {place}: {first['msg']}"
        raise UnusableFileError(_line(problem)) from None
    cleaned: FullResults = _clean(full)
    outcomes.complete(cleaned)
    return cleaned


def find(paths: Sequence[Path]) -> Iterator[tuple[Path, FullResults]]:
    """The runs in files and folders, by path; what is left out is noted once.

    With its reason a file that was named, or whose name is that of full results; other JSON files
    in one line.
    """
    files = {
        file.resolve(): file
        for path in paths
        for file in (_json_files(path) if path.is_dir() else [path])
        if file == path or file.is_file()
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
    yield from folder.rglob("*.json")
    yield from folder.rglob("*.json.gz")


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _check_figures(full: FullResults) -> None:
    """Raises ValidationError for a figure that is no number."""
    names = full["run_meta"]["score_names"]
    for summary in full["ctx_summaries"]:
        for key, value in summary.items():
            if key.endswith("_ci95"):
                _INTERVAL.validate_python(value, strict=True)
            elif key in names or key.endswith(
                ("_p50", "_p95", "_gb", "_pct", "_floor", outcomes.AS_0)
            ):
                _NUMBER.validate_python(value, strict=True)
    for row in full["rows"]:
        for key, value in row.items():
            if key.endswith(("_ms", "_gb")) or key in ("latency_ms_total", "ms_per_token_decode"):
                _NUMBER.validate_python(value, strict=True)
        for sample in row["samples"]:
            for name in names:
                _NUMBER.validate_python(sample.get(name), strict=True)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
