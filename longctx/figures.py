"""The figures of a request and of a context length, each declared once.

An entry of FIGURES says how a figure is measured, what it is called in rows and in summaries, how
requests become a summary, which way is better, and where it is shown. Results, tables,
comparisons, W&B, the report and the studies read it here: a new figure is one entry.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from longctx import outcomes, statistics

if TYPE_CHECKING:
    from kv_compression.cache import CacheBytes
    from kv_compression.generation import Generation

# Views that show figures, each in the order of FIGURES.
TABLE = "table"  # of the terminal and the report
COMPARE = "compare"  # ratios of two runs
STUDY = "study"  # costs in the study's tables and charts
CHOOSING = "choosing"  # what choosing the kept tokens costs, in the study

# Groups: the part of a W&B name before the slash. Figures of no group are not logged.
GROUPS = ("quality", "latency", "throughput", "memory", "samples")
QUALITY, LATENCY, THROUGHPUT, MEMORY, SAMPLES = GROUPS

# What quality is drawn against, by keys of rows.
QUALITY_AGAINST = ("kv_cache_gb", "ms_per_token_decode")
# What is drawn against the context length.
AGAINST_LENGTH = ("ttft_ms", "ms_per_token_decode", "peak_gpu_mem_gb")

FEWEST_FOR_P99 = 100


@dataclass(frozen=True)
class Request:
    """A request that succeeded; wall_ms: from its prompts as lists of tokens to its result."""

    result: "Generation"
    wall_ms: float

    @property
    def cache(self) -> "CacheBytes":
        """What the cache holds once the prompt was read."""
        return self.result.cache_bytes

    @property
    def new_tokens(self) -> int:
        """Of all prompts of the batch."""
        return sum(map(len, self.result.new_tokens))

    @property
    def batch_size(self) -> int:
        """Prompts in the request."""
        return len(self.result.new_tokens)

    @property
    def decode_steps(self) -> int:
        """The first new token is prefill's."""
        return max(map(len, self.result.new_tokens)) - 1

    @property
    def peak_bytes(self) -> int | None:
        """Of prefill and decode the higher peak; None without a GPU."""
        phases = (self.result.peak_prefill_bytes, self.result.peak_decode_bytes)
        return max((count for count in phases if count is not None), default=None)


def _p99(values: Sequence[float]) -> float | None:
    return statistics.percentile(values, 99) if len(values) >= FEWEST_FOR_P99 else None


def _percentage(values: Sequence[float]) -> float | None:
    return 100 * sum(values) / len(values) if values else None


# What stands behind a figure's name in summaries, and how values become it.
STATISTICS: dict[str, Callable[[Sequence[float]], float | None]] = {
    "_p50": lambda values: statistics.percentile(values, 50),
    "_p95": lambda values: statistics.percentile(values, 95),
    "_p99": _p99,
    "_mean": statistics.mean,
    "_pct": _percentage,
    "": statistics.mean,
}
_PERCENTILES = ("_p50", "_p95", "_p99")
_MOST = ("_p95", "_p99")


@dataclass(frozen=True)
class Figure:
    """A figure of requests, or of samples, and of their summary.

    key: in rows, or in samples.
    name, unit: words for people.
    group: LATENCY, THROUGHPUT, MEMORY, QUALITY or SAMPLES; empty for what W&B does not get.
    statistics: of STATISTICS, those that a summary has; the first is shown. None for a figure that
        summaries do not have, or that the run gives them under its key.
    summary_name: the name in summaries, where that is not the key.
    also: one more name in summaries, the field's own.
    shown: the views that show it, with how many decimals.
    measure: the value for a row; None where a row has none, or the attention backend gives it.
    of_samples: whether it is a figure of samples, not of requests.
    of_prefill: whether it counts prefill, so that requests that share one have none of their own.
    of_document: whether it is of a context's reading, which of several questions about one the
        first has.
    any_batch: whether it is over all requests that succeeded, not only those of the largest batch.
    """

    key: str
    name: str = ""
    unit: str = ""
    group: str = ""
    statistics: tuple[str, ...] = ()
    summary_name: str = ""
    also: str = ""
    shown: Mapping[str, int] = field(default_factory=dict)
    measure: Callable[[Request], float | None] | None = None
    higher_is_better: bool = False
    of_samples: bool = False
    any_batch: bool = False
    of_prefill: bool = False
    of_document: bool = False

    @property
    def heading(self) -> str:
        """Name and unit, as a table's line or an axis has them."""
        return f"{self.name}, {self.unit}" if self.name else self.key

    @property
    def summary_keys(self) -> tuple[str, ...]:
        """Its keys in a summary, the one that is shown first."""
        names = (self.summary_name or self.key, *filter(None, [self.also]))
        suffixes = self.statistics or ("",)
        return tuple(name + suffix for name in names for suffix in suffixes)

    def of_summary(self, summary: Mapping[str, Any]) -> float | None:
        """The value that is shown."""
        value: float | None = summary.get(self.summary_keys[0])
        return value

    def values(self, entries: Iterable[Mapping[str, Any]]) -> list[float]:
        """Of rows, or of samples, as far as they have it."""
        return [value for entry in entries if (value := entry.get(self.key)) is not None]

    def summarized(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
        """Its part of a summary over rows, or over samples."""
        values = self.values(entries)
        found = [STATISTICS[name](values) for name in self.statistics]
        return dict(zip(self.summary_keys, found * (1 + bool(self.also)), strict=True))


def gigabytes(count: int | None) -> float | None:
    """Bytes in GB of 10^9 bytes."""
    return None if count is None else count / 1e9


_times = partial(Figure, unit="ms", group=LATENCY, statistics=_PERCENTILES)
_memory = partial(Figure, unit="GB", group=MEMORY, statistics=_MOST)
_held = partial(Figure, unit="GB", group=MEMORY, statistics=("",))
_shares = partial(
    Figure, unit="%", group=QUALITY, statistics=("_pct",), shown={TABLE: 1},
    higher_is_better=True, of_samples=True,
)  # fmt: skip

FIGURES: tuple[Figure, ...] = (
    _times("setup_ms", "setup", of_prefill=True,
           measure=lambda r: r.wall_ms - r.result.latency_ms - r.result.capture_ms),
    _times("prefill_ms", "prefill", of_prefill=True, measure=lambda r: r.result.prefill_ms),
    _times("compress_ms", "compress", shown={CHOOSING: 1}, of_document=True,
           measure=lambda r: r.result.compress_ms),
    _times("ttft_ms", "TTFT", shown={TABLE: 1, COMPARE: 1, STUDY: 0, CHOOSING: 0}, of_prefill=True,
           measure=lambda r: r.result.ttft_ms),
    _times("shared_ttft_ms", "TTFT with a shared prefill", shown={TABLE: 1},
           measure=lambda r: r.result.ttft_ms if r.result.prefill_is_shared else None),
    _times("document_ms", "document's part of TTFT", shown={TABLE: 1}, of_document=True,
           measure=lambda r: r.result.document_ms),
    _times("question_ttft_ms", "question's part of TTFT", shown={TABLE: 1},
           measure=lambda r: None if r.result.document_ms is None
           else r.result.ttft_ms - r.result.document_ms),
    _times("ms_per_token_decode", "decode", unit="ms/token", also="tpot_ms",
           shown={TABLE: 2, COMPARE: 2, STUDY: 2, CHOOSING: 2},
           measure=lambda r: r.result.decode_ms / r.decode_steps if r.decode_steps else None),
    _times("tok_per_s_decode", "decode", unit="tokens/s", group=THROUGHPUT, shown={TABLE: 1},
           higher_is_better=True,
           measure=lambda r: (r.new_tokens - r.batch_size) / r.result.decode_ms * 1e3
           if r.decode_steps else None),
    _times("decode_ms", "decode", measure=lambda r: r.result.decode_ms),
    _times("latency_ms_total", "latency", summary_name="latency_ms", also="e2el_ms",
           shown={TABLE: 1, COMPARE: 1}, of_prefill=True, measure=lambda r: r.result.latency_ms),
    _times("ms_per_token", "latency", unit="ms/token", of_prefill=True,
           measure=lambda r: r.result.latency_ms / r.new_tokens * r.batch_size),
    _times("tok_per_s", "throughput", unit="tokens/s", group=THROUGHPUT, higher_is_better=True,
           of_prefill=True, measure=lambda r: r.new_tokens / r.result.latency_ms * 1e3),
    Figure("avg_gen_tokens", measure=lambda r: r.new_tokens / r.batch_size),
    _memory("kv_cache_gb", "KV cache", statistics=("",), shown={TABLE: 4, COMPARE: 4},
            measure=lambda r: gigabytes(r.result.kv_bytes)),
    _held("kv_full_gb", "KV of full layers", measure=lambda r: gigabytes(r.cache.full)),
    _held("kv_window_gb", "KV of window layers", shown={TABLE: 4},
          measure=lambda r: gigabytes(r.cache.window or None)),
    _held("state_gb", "states of linear layers", shown={TABLE: 4},
          measure=lambda r: gigabytes(r.cache.state or None)),
    _held("cache_kept_pct", "cache kept", unit="%", shown={TABLE: 1},
          measure=lambda r: 100 * r.cache.kept_share),
    _held("pruned_layers", "layers pruned", unit="", measure=lambda r: r.result.pruned_layers),
    _memory("peak_gpu_mem_gb", "GPU peak", shown={TABLE: 2, COMPARE: 2, STUDY: 2}, of_prefill=True,
            measure=lambda r: gigabytes(r.peak_bytes)),
    _memory("peak_prefill_gb", "GPU peak in prefill", of_prefill=True,
            measure=lambda r: gigabytes(r.result.peak_prefill_bytes)),
    _memory("peak_decode_gb", "GPU peak in decode", of_prefill=True,
            measure=lambda r: gigabytes(r.result.peak_decode_bytes)),
    _memory("peak_reserved_gb", "GPU memory reserved", of_prefill=True,
            measure=lambda r: gigabytes(r.result.peak_reserved_bytes)),
    # The attention backend's own.
    Figure("block_sparsity_pct", "blocks skipped", "%", LATENCY, ("",), shown={TABLE: 1},
           higher_is_better=True, any_batch=True),
    # In summaries the run's own.
    Figure("capture_ms", group=LATENCY, measure=lambda r: r.result.capture_ms),
    Figure("samples_per_s", group=THROUGHPUT),
    Figure("warmup_ms"),
    Figure("weights_gb"),
    *(Figure(name, group=SAMPLES) for name in outcomes.COUNTS),
    *(Figure(name, statistics=("_mean",), of_samples=True)
      for name in ("prompt_tokens", "dropped_tokens", "thought_tokens")),
    _shares("answered", "answered"),
    _shares("evidence_kept", "evidence kept"),
)  # fmt: skip


def named(key: str) -> Figure:
    """The figure with this key in rows."""
    return next(figure for figure in FIGURES if figure.key == key)


def shown(view: str) -> list[Figure]:
    """The figures that a view shows."""
    return [figure for figure in FIGURES if view in figure.shown]


def of_rows() -> list[Figure]:
    """The figures that every row of a request has."""
    return [figure for figure in FIGURES if figure.measure is not None]


def measured(request: Request) -> dict[str, float | None]:
    """The figures of a request's row."""
    result = request.result
    return {
        f.key: None
        if (f.of_prefill and result.prefill_is_shared)
        or (f.of_document and not result.document_is_own)
        else f.measure(request)
        for f in FIGURES
        if f.measure is not None
    }


def summary_of_requests(
    timed: Sequence[Mapping[str, Any]], answered: Sequence[Mapping[str, Any]]
) -> dict[str, float | None]:
    """The figures of rows. timed: rows of the largest batch; answered: all that succeeded."""
    mine = [figure for figure in FIGURES if figure.statistics and not figure.of_samples]
    return _merged(f.summarized(answered if f.any_batch else timed) for f in mine)


def summary_of_samples(samples: Sequence[Mapping[str, Any]], group: str) -> dict[str, float | None]:
    """The figures of samples that are of a group."""
    mine = [figure for figure in FIGURES if figure.of_samples and figure.group == group]
    return _merged(figure.summarized(samples) for figure in mine)


def _merged(parts: Iterable[dict[str, float | None]]) -> dict[str, float | None]:
    return dict(item for part in parts for item in part.items())


def quality_keys(score_names: Iterable[str]) -> list[str]:
    """Keys of quality in summaries: scores, these with failures as 0, and shares of samples."""
    names = list(score_names)
    shares = [key for figure in FIGURES if figure.group == QUALITY for key in figure.summary_keys]
    return [*names, *(name + outcomes.AS_0 for name in names), *shares]


def groups(score_names: Iterable[str]) -> dict[str, str]:
    """Key of a summary -> group, of all that is logged."""
    found = {key: figure.group for figure in FIGURES if figure.group for key in figure.summary_keys}
    return found | dict.fromkeys(quality_keys(score_names), QUALITY)


def statistics_shown() -> str:
    """What the figures in tables are over requests: p50, and which are not."""
    others = [f"{figure.name}: p95" for figure in shown(TABLE) if figure.statistics == _MOST]
    return f"p50 over requests ({', '.join(others)})"
