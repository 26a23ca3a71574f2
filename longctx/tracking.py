"""Weights & Biases, where it is installed and there are credentials; a run never depends on it."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from longctx import outcomes
from longctx.console import notice
from longctx.redaction import reason
from longctx.results import Row, Summary
from longctx.settings import Settings

_GROUP_OF_PREFIX = {
    "latency_ms": "latency",
    "ttft_ms": "latency",
    "document_ms": "latency",
    "question_ttft_ms": "latency",
    "prefill_ms": "latency",
    "compress_ms": "latency",
    "decode_ms": "latency",
    "setup_ms": "latency",
    "capture_ms": "latency",
    "ms_per_token": "latency",
    "tok_per_s": "throughput",
    "samples_per_s": "throughput",
    "peak_": "memory",
    "kv_cache_gb": "memory",
    "block_sparsity_pct": "latency",
    **dict.fromkeys(outcomes.COUNTS, "samples"),
}

_INIT_TIMEOUT_S = 20


@contextmanager
def _no_questions() -> Iterator[None]:
    """Without credentials wandb asks for them at a terminal; a sweep must not stop there."""
    stdin = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin


class Tracker:
    """One W&B run, or nothing at all."""

    def __init__(
        self,
        settings: Settings,
        meta: dict[str, Any],
        score_names: Sequence[str],
        *,
        writes: bool = True,
    ):
        as_0 = (name + outcomes.AS_0 for name in score_names)
        self._score_names = (*score_names, *as_0, "answered_pct", "evidence_kept_pct")
        self._run = self._start(settings, meta) if writes else None

    def _start(self, settings: Settings, meta: dict[str, Any]) -> Any:
        if settings.wandb_mode == "disabled":
            return None
        try:
            import wandb
        except ImportError:
            notice("wandb is not installed; the run is logged to files only")
            return None
        try:
            with _no_questions():
                run = wandb.init(
                    project=settings.wandb_project,
                    entity=settings.wandb_entity,
                    mode=settings.wandb_mode,  # type: ignore[arg-type]
                    name=meta["run_id"],
                    config={**meta, **meta["variables"]},
                    tags=meta["tags"],
                    settings=wandb.Settings(silent=True, init_timeout=_INIT_TIMEOUT_S),
                )
        except wandb.errors.Error as error:
            notice(
                f"no W&B ({reason(error)}); this run is logged to files only. WANDB_MODE=offline "
                f"keeps it for a later `wandb sync`, WANDB_MODE=disabled asks no more"
            )
            return None
        run.define_metric("context_tokens")
        for group in ("quality", "latency", "throughput", "memory", "samples"):
            run.define_metric(f"{group}/*", step_metric="context_tokens")
        return run

    def context(self, summary: Summary) -> None:
        """Log the figures of one context length."""
        if self._run is None:
            return
        figures: dict[str, Any] = {"context_tokens": summary["context_tokens"]}
        for name, value in summary.items():
            group = self._group(name)
            if group and isinstance(value, (int, float)):
                figures[f"{group}/{name}"] = value
            score, _, field = name.partition("_by_")
            if field:
                for member, scores in value.items():
                    figures[f"quality/{name}/{member}"] = scores[score]
        with self._may_fail():
            self._run.log(figures)

    def _group(self, name: str) -> str | None:
        if name in self._score_names:
            return "quality"
        prefixes = (prefix for prefix in _GROUP_OF_PREFIX if name.startswith(prefix))
        return next((_GROUP_OF_PREFIX[prefix] for prefix in prefixes), None)

    def finish(self, rows: Sequence[Row], summary: Summary) -> None:
        """Log the table of requests and the summary, and close the run."""
        if self._run is None:
            return
        import wandb

        # A request that failed has not all of them.
        columns = list(
            dict.fromkeys(n for row in rows for n, value in row.items() if type(value) is not list)
        )
        table = wandb.Table(columns=list[str | int](columns))
        for row in rows:
            table.add_data(*(row.get(name) for name in columns))
        with self._may_fail():
            self._run.log({"per_request_metrics": table})
            self._run.summary.update(summary)
            self._run.finish()

    def interrupted(self) -> None:
        """Close the run as one that did not end."""
        if self._run is not None:
            with self._may_fail():
                self._run.finish(exit_code=1)

    @contextmanager
    def _may_fail(self) -> Iterator[None]:
        """W&B can die in the middle of a run, in ways of its own; the run goes on without it."""
        try:
            yield
        except Exception as error:
            notice(f"W&B failed ({reason(error)}); from here on this run is logged to files only")
            self._run = None
