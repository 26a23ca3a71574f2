"""What readers rely on in a run's files: the type of every field that any of them uses."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from annotated_types import Ge, MinLen
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from longctx import figures

_Scalar = str | int | float | bool | None
_Count = Annotated[int, Ge(0)]


class _Variables(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Scalar | list[_Scalar]]

    MODEL_ID: str
    ATTN_IMPL: str
    KV_MODE: str
    KEEP_RATIO: float
    KV_SCOPE: str
    QUANT_MODE: str
    BATCH_SIZE: int = 1
    KEEP_TOKENS: int | None = None
    PRUNE_EVERY: int | None = None
    KV_BUDGET: str = "uniform"
    KV_QUANT: str = "none"
    DTYPE: str = ""


class _Device(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Scalar]

    name: str | None


class _Meta(BaseModel):
    run_id: str
    task: str
    model: str
    variables: _Variables
    score_names: list[str]
    groups: list[str] = []
    prompt_format: str
    data_fingerprint: str
    fingerprint: str | None = None
    versions: dict[str, str]
    device: _Device
    git_commit: str | None
    command: str | None = None
    kernel: dict[str, str | None] | None = None


class _Summary(BaseModel):
    context_tokens: Annotated[int, Ge(1)]
    n_oom: _Count
    total_count: _Count
    n_asked: _Count = 0
    n_failed_samples: _Count = 0
    n_oom_samples: _Count = 0
    n_not_run: _Count = 0
    n_left_out: _Count = 0


class _Sample(BaseModel):
    sample_id: str
    prediction: str
    references: list[str]
    document_tokens: int | None = None
    prompt_tokens: int | None = None
    dropped_tokens: int | None = None
    evidence_kept: bool | None = None
    answered: bool | None = None
    thought_tokens: int = 0
    document_id: str | None = None


class _Row(BaseModel):
    context_tokens: int
    request: int
    success: bool
    samples: list[_Sample]
    batch_size: Annotated[int, Ge(1)] = 1
    first_sample: _Count = 0
    oom: bool | None = None
    error: str | None = None


class _RunSummary(BaseModel):
    n_requests: _Count = 0
    n_failed: _Count = 0
    n_oom: _Count = 0


class _Full(BaseModel):
    """What readers rely on; all else may be missing, and is there in newer files."""

    run_meta: _Meta
    ctx_summaries: list[_Summary]
    rows: list[_Row]
    summary: _RunSummary = _RunSummary()


class _JournalSample(_Sample):
    prompt_tokens: _Count
    dropped_tokens: _Count
    evidence_kept: bool | None
    answered: bool | None


class _JournalRow(_Row):
    """A row that is summarized again when its run is gone on with."""

    batch_size: Annotated[int, Ge(1)]
    first_sample: _Count


class _AnsweredRow(_JournalRow):
    """The row of a request that succeeded."""

    samples: Annotated[list[_JournalSample], MinLen(1)]  # type: ignore[assignment]
    kernel_prefill: str
    kernel_decode: str
    decode_mode: str
    prefill_mode: str


_GROUPS = TypeAdapter(dict[str, dict[str, Any]])
_OTHER_NUMBERS = ("n", "chance", "answered_count", "skipped_after_oom_at")


class UnusableFileError(ValueError):
    """A file that is not the full results of a run; the message is one line."""


def check(full: Any) -> None:
    """Raises UnusableFileError unless it is the full results of a run."""
    with _named("it"):
        _Full.model_validate(full, strict=True)
    names = full["run_meta"]["score_names"]
    groups = full["run_meta"].get("groups", ())
    numbers = {*figures.groups(names), *_OTHER_NUMBERS}
    numbers |= {key for figure in figures.FIGURES for key in figure.summary_keys}
    for place, summary in enumerate(full["ctx_summaries"]):
        _check_summary(summary, f"ctx_summaries.{place}", numbers)
        for key in (f"{name}_by_{group}" for name in names for group in groups):
            with _named(f"ctx_summaries.{place}.{key}"):
                _GROUPS.validate_python(summary.get(key), strict=True)
    for place, row in enumerate(full["rows"]):
        _check_row(row, f"rows.{place}", names)


def check_meta(meta: Any) -> None:
    """Raises UnusableFileError unless it is a run's meta data."""
    with _named("run_meta"):
        _Meta.model_validate(meta, strict=True)


def check_row(row: Any, meta: dict[str, Any]) -> None:
    """Raises UnusableFileError unless a run with this meta data can go on with the row."""
    with _named("row"):
        known = _JournalRow.model_validate(row, strict=True)
        if known.success:
            _AnsweredRow.model_validate(row, strict=True)
    _check_row(row, "row", meta["score_names"])
    for figure in figures.of_rows() if known.success else []:
        if figure.statistics and figure.key not in row:
            raise _wrong("row", figure.key, "there")
    keys = {*meta["score_names"], *meta.get("groups", ())}
    if known.first_sample + known.batch_size > meta["n_samples"]:
        raise _wrong("row", "first_sample", "one of the run's")
    if known.success and len(known.samples) != known.batch_size:
        raise UnusableFileError("is not of a run: row.samples: are not batch_size many")
    if any(not keys <= sample.keys() for sample in row["samples"]):
        raise UnusableFileError("is not of a run: row.samples: a score or group is missing")


@contextmanager
def _named(place: str) -> Iterator[None]:
    """ValidationError as UnusableFileError, which names what is wrong, and where."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or place
        problem = f"is not full results of a run: {where}: {first['msg']}"
        raise UnusableFileError(" ".join(problem.split())) from None


def _check_summary(summary: dict[str, Any], place: str, numbers: Collection[str]) -> None:
    """numbers: keys of what is a number."""
    for key, value in summary.items():
        if key.endswith("_ci95"):
            is_pair = isinstance(value, list) and [type(bound) in (int, float) for bound in value]
            if value is not None and is_pair != [True, True]:
                raise _wrong(place, key, "a pair of numbers")
        elif key == "em_told_from_chance" and not isinstance(value, bool | None):
            raise _wrong(place, key, "true or false")
        elif key in numbers or key.endswith("_floor") or key.startswith("n_"):
            _check_number(value, place, key)
        elif isinstance(value, dict):
            _check_summary(value, f"{place}.{key}", numbers)


def _check_row(row: dict[str, Any], place: str, names: Sequence[str]) -> None:
    for figure in figures.FIGURES:
        value = row.get(figure.key)
        _check_number(value, place, figure.key)
        # Runs are compared by ratios of their medians, which a number below 0 could make 0.
        if figures.COMPARE in figure.shown and value is not None and value < 0:
            raise _wrong(place, figure.key, "no less than 0")
    for sample in row["samples"]:
        for name in names:
            _check_number(sample.get(name), place, name)


def _check_number(value: Any, place: str, key: str) -> None:
    if value is not None and type(value) not in (int, float):
        raise _wrong(place, key, "a number")


def _wrong(place: str, key: str, wanted: str) -> UnusableFileError:
    return UnusableFileError(f"is not full results of a run: {place}.{key}: should be {wanted}")
