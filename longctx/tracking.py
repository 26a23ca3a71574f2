"""Weights & Biases, where it is installed and there are credentials; a run never depends on it.

Every call of wandb runs on a thread of its own, with a time limit: whatever it raises, and where it
does not return, the run goes on without it.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from threading import Thread
from typing import Any

from longctx import figures, redaction
from longctx.console import notice
from longctx.results import Row
from longctx.settings import Settings

_INIT_TIMEOUT_S = 20  # wandb's own, which says why
_START_LIMIT_S = 30
_LOG_LIMIT_S = 10
_FINISH_LIMIT_S = 60
_SLOW_S = 5  # a failure that took as long is not waited for again by a further run of this process
_slow: list[Any] = []  # the module, where it is


class _GaveUpError(Exception):
    """W&B raised something or did not return; the message says what."""


def _call(function: Callable[[], Any], limit_s: float) -> Any:
    """What `function` returns, called on a thread that no process waits for at its end.

    Raises _GaveUpError when it raises or takes longer.
    """
    outcome: futures.Future = futures.Future()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # whatever wandb raises, sys.exit() included
            outcome.set_exception(error)

    began = time.monotonic()
    Thread(target=work, name="wandb call", daemon=True).start()
    futures.wait([outcome], timeout=limit_s)
    error = outcome.exception() if outcome.done() else TimeoutError()
    if error is None:
        return outcome.result()
    if time.monotonic() - began >= _SLOW_S:
        _slow.append(sys.modules.get("wandb"))
    if not outcome.done():
        raise _GaveUpError(f"no answer within {limit_s:g} s")
    raise _GaveUpError(redaction.reason(error)) from error


class _HookOfWandb:
    """Equal to each function of wandb, for `atexit.unregister`."""

    def __eq__(self, function: object) -> bool:
        return str(getattr(function, "__module__", "")).partition(".")[0] == "wandb"

    __hash__ = None  # type: ignore[assignment]


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
        self._groups = figures.groups(score_names)
        self._run: Any = None
        if not writes or settings.wandb_mode == "disabled":
            return
        if _slow and sys.modules.get("wandb") is _slow[-1]:
            notice("W&B did not answer before; this run is logged to files only")
            return
        try:
            wandb = _call(_wandb, _START_LIMIT_S)
            if wandb is None:
                notice("wandb is not installed; the run is logged to files only")
                return
            with _no_questions():
                self._run = _call(lambda: _start(wandb, settings, _masked(meta)), _START_LIMIT_S)
        except _GaveUpError as error:
            notice(
                f"no W&B ({error}); this run is logged to files only. WANDB_MODE=offline "
                f"keeps it for a later `wandb sync`, WANDB_MODE=disabled asks no more"
            )
        # A finished run is stored; at its end a process would wait for what did not finish.
        atexit.unregister(_HookOfWandb())  # type: ignore[arg-type]

    def context(self, summary: Mapping[str, Any]) -> None:
        """Log the figures of one context length."""
        logged: dict[str, Any] = {"context_tokens": summary["context_tokens"]}
        for name, value in summary.items():
            group = self._groups.get(name)
            if group and isinstance(value, (int, float)):
                logged[f"{group}/{name}"] = value
            score, _, field = name.partition("_by_")
            if field:
                for member, scores in value.items():
                    logged[f"{figures.QUALITY}/{name}/{member}"] = scores[score]
        self._try(lambda run: run.log(logged), _LOG_LIMIT_S)

    def finish(self, rows: Sequence[Row], summary: dict[str, Any]) -> None:
        """Log the table of requests and the summary, and close the run."""

        def finish(run: Any) -> None:
            run.log({"per_request_metrics": _table(rows)})
            run.summary.update(_masked(summary))
            run.finish()

        self._try(finish, _FINISH_LIMIT_S)

    def interrupted(self) -> None:
        """Close the run as one that did not end."""
        self._try(lambda run: run.finish(exit_code=1), _LOG_LIMIT_S)

    def _try(self, call: Callable[[Any], None], limit_s: float) -> None:
        """`call(run)`; the first failure is noted and ends the logging."""
        if (run := self._run) is None:
            return
        try:
            _call(lambda: call(run), limit_s)
        except _GaveUpError as error:
            self._run = None
            notice(f"W&B failed ({error}); from here on this run is logged to files only")


def _masked(value: Any) -> Any:
    return redaction.in_texts(value, redaction.masked)


def _wandb() -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        if error.name == "wandb":
            return None
        raise
    return wandb


def _start(wandb: Any, settings: Settings, meta: dict[str, Any]) -> Any:
    run = wandb.init(
        project=settings.wandb_project,
        entity=settings.wandb_entity,
        mode=settings.wandb_mode,
        name=meta["run_id"],
        config={**meta, **meta["variables"]},
        tags=meta["tags"],
        reinit="create_new",  # runs that share a prefill are open side by side
        # The terminal's text stays here, and a run is stopped here.
        settings=wandb.Settings(
            silent=True, init_timeout=_INIT_TIMEOUT_S, console="off", stop_fn=lambda: None
        ),
    )
    run.define_metric("context_tokens")
    for group in figures.GROUPS:
        run.define_metric(f"{group}/*", step_metric="context_tokens")
    return run


def _table(rows: Sequence[Row]) -> Any:
    """A line for each sample, with what is said of its request; one for a request that failed."""
    lines = [_plain(row) | _plain(sample) for row in rows for sample in row["samples"] or [{}]]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    table = _wandb().Table(columns=columns)
    for line in lines:
        table.add_data(*_masked([line.get(name) for name in columns]))
    return table


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What has room in a cell."""
    return {
        name: value
        for name, value in entry.items()
        if not isinstance(value, (list, dict)) and name != "prompt"
    }
