"""Runs that differ only in what they keep of the cache: each prompt is read once for all of them.

Every run has its own files, of the same rows that it would write by itself, but for figures of the
prefill that all share. What cannot be had together, such as a request that runs out of memory, each
run makes by itself.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from longctx import choice_tables, load_results, shared_requests, tables
from longctx.config import Environment
from longctx.console import notice
from longctx.runner import Run, Started
from longctx.shared_resources import SharedResources
from longctx.task import Task


def run_all(task: Task, read: Sequence[tuple[Any, Environment]]) -> list[Run]:
    """Make the runs of these settings, with one prefill where they may have it; all have ended."""
    resources = SharedResources(keeps_prompts=True)
    shares = read[0][0].share_prefill == "on"
    if shares and read[0][1].launch.count > 1:
        notice("each run reads its prompts by itself: processes do not share prefills")
        shares = False
    runs = [Run(task, *each, resources, shares_prefill=shares) for each in read]
    if shares:
        _execute_together(runs)
    else:
        for run in runs:
            run.execute()
    return runs


def _execute_together(runs: Sequence[Run]) -> None:
    """Run all that SKIP_DONE does not find, context by context, and write everything."""
    with ExitStack() as stack:
        started: list[tuple[Run, Started]] = []
        for run in runs:
            if not run.is_done():
                started.append((run, run.start()))
                stack.enter_context(run.told_if_stopped(started[-1][1]))
        for context_tokens in runs[0].settings.contexts:
            contexts = [run.context(mine, context_tokens) for run, mine in started]
            open_runs = [
                context
                for context, (_, mine) in zip(contexts, started, strict=True)
                if not mine.summaries.is_too_long(context_tokens)
            ]
            if open_runs:
                shared_requests.make(open_runs)
            for context in open_runs:
                context.run()  # what could not be had together
            for (run, mine), context in zip(started, contexts, strict=True):
                run.summarize(mine, context)
    for run, mine in started:
        run.end(mine)
    paths = {_label(run): run.results_path for run in runs if run.results_path is not None}
    choice_tables.print_runs([load_results.read(path) for path in paths.values()], list(paths))
    tables.print_paths(list(paths.values()))


def _label(run: Run) -> str:
    settings = run.settings
    if settings.kv_mode == "none":
        return "none"
    budget = "" if settings.kv_budget == "uniform" else f" {settings.kv_budget}"
    return f"{settings.kv_mode} {settings.keep_tokens or settings.keep_ratio}{budget}"
