"""A run's summaries: of each context length, and of the whole run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, cast

from longctx import outcomes, results, scoring
from longctx.console import notice
from longctx.results import Row, Summary
from longctx.settings import Settings
from longctx.task import Sample, Task


@dataclass
class Summaries:
    """The summaries of one run, and the rows that they are of.

    has_quality: False where weights are random.
    is_pruned: whether a KV method is at work.
    n_left_out: samples that TRUNCATE=skip left out, by context length.
    """

    task: Task
    settings: Settings
    meta: dict[str, Any]
    samples: Mapping[int, Sequence[Sample]]
    has_quality: bool
    is_pruned: bool
    weights_gb: float | None
    n_left_out: dict[int, int] = field(default_factory=dict)
    made: list[Summary] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    _out_of_memory_at: int | None = None
    _is_noted: bool = False

    def identity(self, context_tokens: int) -> Row:
        """What every row and summary of a context length begins with."""
        return {
            "run_id": self.meta["run_id"],
            "model": self.meta["model"],
            "attn": self.settings.attn_impl,
            "kv_mode": self.settings.kv_mode,
            "context_tokens": context_tokens,
        }

    def is_too_long(self, context_tokens: int) -> bool:
        """Whether OOM=stop leaves out this length: memory ran out at it or at a shorter one."""
        return self._out_of_memory_at is not None and context_tokens >= self._out_of_memory_at

    def add(self, context_tokens: int, rows: Sequence[Row], timing: dict[str, Any]) -> Summary:
        """Keep the rows of a context length, and return its summary."""
        is_skipped = self.is_too_long(context_tokens)
        if self.settings.oom == "stop" and any(row.get("oom") for row in rows):
            known = self._out_of_memory_at or context_tokens
            self._out_of_memory_at = min(context_tokens, known)
        timing["skipped_after_oom_at"] = self._out_of_memory_at if is_skipped else None
        self.rows += rows
        self.made.append(self.of_context(context_tokens, rows, timing))
        return self.made[-1]

    def of_context(
        self, context_tokens: int, rows: Sequence[Row], timing: dict[str, Any]
    ) -> Summary:
        """The summary of a context length; `timing` goes in as it is."""
        about = self.identity(context_tokens) | {
            "quant_mode": self.settings.quant_mode,
            "weights_gb": self.weights_gb,
            "kv_scope": self.settings.kv_scope,
            "first_token_before_pruning": self.is_pruned and self.settings.kv_scope == "prompt",
            **timing,
        }
        summary = results.context_summary(
            about,
            rows,
            self.task.score_names,
            groups=self.task.groups,
            chance=self.task.chance,
            seed=self.settings.seed,
            n_asked=len(self.samples[context_tokens]),
            n_left_out=self.n_left_out.get(context_tokens, 0),
            has_quality=self.has_quality,
        )
        floors = scoring.floors(self.task, rows, self.settings.seed)
        return cast(Summary, {**summary, **floors})

    def of_run(self) -> dict[str, Any]:
        """The summary of all rows: counts, and quality by context length."""
        return {
            "run_id": self.meta["run_id"],
            "n_requests": len(self.rows),
            "n_failed": sum(not row["success"] for row in self.rows),
            "n_oom": sum(bool(row.get("oom")) for row in self.rows),
            **{name: sum(map(itemgetter(name), self.made)) for name in outcomes.COUNTS},
            "weights_gb": self.weights_gb,
            **results.quality_by_length(self.made, self.task.score_names),
        }

    def note_untimed(self, summary: Summary) -> None:
        """Say, once a run, that smaller batches are in no figure of time."""
        timed, good = summary["n_timed_requests"], summary["n_requests"] - summary["n_failed"]
        if timed < good and not self._is_noted:
            self._is_noted = True
            notice(
                f"times, throughput and memory are of the {timed} requests of the largest batch; "
                f"{good - timed} of a smaller one stay out of them"
            )
