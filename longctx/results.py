"""The result schema and the files it is kept in. No other place knows either."""

import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict, cast

from longctx import figures, outcomes, redaction, statistics

if TYPE_CHECKING:
    from kv_compression.generation import Generation


class Identity(TypedDict, total=False):
    """What rows and summaries begin with."""

    run_id: str
    model: str
    attn: str
    kv_mode: str
    context_tokens: int


class Row(Identity, total=False):
    """A request; its figures are those of `longctx.figures`, read by `Figure.values`."""

    batch_size: int
    request: int
    first_sample: int
    success: bool
    error: str
    oom: bool
    sample_ids: list[str]
    samples: list[dict[str, Any]]
    stored_tokens_per_layer: list[int]
    kernel_prefill: str
    kernel_decode: str
    decode_mode: str
    prefill_mode: str


class Summary(Identity, total=False):
    """A context length; its figures are those of `longctx.figures`, read by `Figure.of_summary`."""

    quant_mode: str
    kv_scope: str
    first_token_before_pruning: bool
    n_requests: int
    n_timed_requests: int
    n_failed: int
    n_oom: int
    n_truncated: int
    n_documents: int | None
    total_count: int
    answered_count: int | None
    chance: float
    em_told_from_chance: bool | None
    kernel_prefill: str
    kernel_decode: str
    decode_mode: str
    prefill_mode: str
    skipped_after_oom_at: int | None


_UNFINISHED = ".unfinished"
_NEW_S = 60.0  # an empty file may be about to be locked


def request_row(
    identity: Mapping[str, Any],
    result: "Generation",
    samples: list[dict[str, Any]],
    *,
    wall_ms: float,
) -> Row:
    """Row of a request that succeeded. `identity` holds run_id, model and so on.

    Where the attention says how many blocks it skips, `block_sparsity_pct` is among them.
    wall_ms: from the prompts as lists of tokens to the result, all that `latency_ms` leaves out
        included.
    """
    request = figures.Request(result, wall_ms)
    row = {
        **identity,
        **figures.measured(request),
        "stored_tokens_per_layer": result.stored_tokens,
        "kernel_prefill": "+".join(result.kernels["prefill"]),
        "kernel_decode": "+".join(result.kernels["decode"]),
        "decode_mode": result.decode_mode,
        "prefill_mode": result.prefill_mode,
        "success": True,
        "samples": samples,
    }
    return cast(Row, row)


def failed_row(identity: Mapping[str, Any], error: BaseException, *, oom: bool) -> Row:
    """Row of a request that failed."""
    row = {
        **identity,
        **dict.fromkeys(figure.key for figure in figures.of_rows()),
        "success": False,
        "error": f"{type(error).__name__}: {redaction.reason(error)}",
        "oom": oom,
        "samples": [],
    }
    return cast(Row, row)


def context_summary(
    identity: Mapping[str, Any],
    rows: Sequence[Row],
    score_names: Sequence[str],
    *,
    groups: Sequence[str] = (),
    chance: float | None = None,
    seed: int,
    n_asked: int,
    n_left_out: int = 0,
    has_quality: bool = True,
) -> Summary:
    """Summary of one context length over its rows; figures of failed requests do not exist.

    n_asked, n_left_out: samples that the run was asked for, and those that TRUNCATE=skip left out.
    has_quality: False where weights are random.
    groups: fields of samples; `{score}_by_{field}` then has the score for each of its values.
    chance: the `em` of guessing, told from the measured one when the interval leaves it out.
    """
    good = [row for row in rows if row["success"]]
    samples = [sample for row in good for sample in row["samples"]]
    timed = outcomes.timed(rows)
    summary: dict[str, Any] = {**identity, **outcomes.counts(rows, n_asked, n_left_out)}
    summary |= {"n_requests": len(rows), "n_timed_requests": len(timed)}
    summary |= figures.summary_of_requests(timed, good)
    for choice in ("kernel_prefill", "kernel_decode", "decode_mode", "prefill_mode"):
        summary[choice] = "+".join(sorted({str(row.get(choice, "")) for row in good} - {""}))
    summary |= quality_summary(
        rows,
        score_names,
        groups=groups,
        chance=chance,
        seed=seed,
        failures=outcomes.n_failures(summary) if has_quality else 0,
    )
    summary["n_failed"] = len(rows) - len(good)
    summary["n_oom"] = sum(bool(row.get("oom")) for row in rows)
    summary |= figures.summary_of_samples(samples, group="")
    summary["n_truncated"] = sum(s["dropped_tokens"] > 0 for s in samples)
    return cast(Summary, summary)


def quality_summary(
    rows: Sequence[Row],
    score_names: Sequence[str],
    *,
    groups: Sequence[str],
    chance: float | None,
    seed: int,
    failures: int,
) -> dict[str, Any]:
    """What the rows of one context length say of quality.

    failures: samples that have no answer and count as 0 in `{score}_failures_as_0`.
    """
    samples = [sample for row in rows if row["success"] for sample in row["samples"]]
    summary: dict[str, Any] = {}
    for name in score_names:
        summary |= _score(name, samples, seed)
        scores = [sample[name] for sample in samples if sample[name] is not None]
        # Where no answer could be scored, none of those that are missing could have been.
        counted = failures if scores or not samples else 0
        summary[name + outcomes.AS_0] = outcomes.mean_with_failures_as_0(scores, counted)
        for group in groups:
            members: dict[str, list[dict[str, Any]]] = {}
            for sample in samples:
                if sample[group] is not None:
                    members.setdefault(str(sample[group]).lower(), []).append(sample)
            summary[f"{name}_by_{group}"] = {
                value: {"n": len(mine), **_score(name, mine, seed)}
                for value, mine in sorted(members.items())
            }
    if chance is not None:
        interval = summary["em_ci95"]
        summary["chance"] = chance
        summary["em_told_from_chance"] = (
            None if interval is None else not interval[0] <= chance <= interval[1]
        )
    answered = [sample["answered"] for sample in samples if sample["answered"] is not None]
    summary |= figures.summary_of_samples(samples, figures.QUALITY)
    summary["answered_count"] = sum(answered) if answered else None
    summary["total_count"] = len(samples)
    documents = [sample.get("document_id") for sample in samples]
    summary["n_documents"] = len(set(documents)) if documents and all(documents) else None
    return summary


def quality_by_length(summaries: Sequence[Summary], score_names: Sequence[str]) -> dict[str, Any]:
    """Each figure of quality, by context length."""
    names = figures.quality_keys(score_names)
    return {name: {str(s["context_tokens"]): s.get(name) for s in summaries} for name in names}


def _score(name: str, samples: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    scored = [sample for sample in samples if sample[name] is not None]
    scores = [sample[name] for sample in scored]
    documents = [sample.get("document_id") for sample in scored]
    return {
        name: statistics.mean(scores),
        f"{name}_ci95": statistics.mean_interval(scores, seed, documents),
    }


def fingerprint(values: dict[str, Any], data_fingerprint: str) -> str:
    """Sixteen hex digits that two runs share when their settings and data are the same."""
    text = json.dumps([values, data_fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all, readable for whom the umask allows.

    It is on disk under its name when this returns. A link at `path` is replaced, and not followed.
    """
    content = content.encode() if isinstance(content, str) else content
    unfinished = path.with_name(f".{secrets.token_hex(8)}{_UNFINISHED}")
    with open(unfinished, "xb") as file:
        try:
            # Before the first byte, and until it has its name: `remove_litter` leaves it alone.
            _try_to_lock(file)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            # Ctrl-C may come right after it got its name; in a folder that is gone there is none.
            with suppress(OSError):
                unfinished.unlink()
            raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk: what was made or removed there stays so."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)


def remove_litter(folder: Path) -> None:
    """Remove what killed processes left half written; what a process is writing stays."""
    for path in folder.glob(f".{'[0-9a-f]' * 16}{_UNFINISHED}"):
        with suppress(OSError), open(path, "rb", opener=_open_file) as file:
            status = os.fstat(file.fileno())
            is_new = not status.st_size and time.time() - status.st_mtime < _NEW_S
            if not is_new and _try_to_lock(file):
                path.unlink()


def _open_file(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _try_to_lock(file: IO[bytes]) -> bool:
    """Whether nobody else holds the file; False too where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: what is not a number becomes null, floats get 6 digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
