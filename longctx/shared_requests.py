"""Requests that share a prefill: of several runs, or of several questions about one context.

What cannot be had so, such as a request that runs out of memory, is left open: each run makes it by
itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch
from rich.progress import track

from kv_compression import shared_prefill
from kv_compression.decode_graph import CannotBeCapturedError
from kv_compression.generation import Generation
from kv_compression.shared_prefill import Prompts
from longctx.console import notice, stderr
from longctx.redaction import reason
from longctx.requests import ContextRun


def make(contexts: Sequence[ContextRun]) -> None:
    """Make the open requests of runs over the same prompts, with a prefill for each that differs.

    Those of a single run with questions that share theirs; the others it makes by itself.
    """
    first = contexts[0].requests
    for context in contexts:  # a step is captured once
        context.requests.plan = replace(context.requests.plan, graphs=first.plan.graphs)
    groups = [
        group for group in contexts[0].with_one_context() if len(contexts) > 1 or len(group) > 1
    ]
    title = f"context {contexts[0].context_tokens:,}"
    hidden = not (groups and first.workers.is_first)
    for group in track(groups, title, console=stderr, disable=hidden):
        mine = [context for context in contexts if any(map(context.is_open, group))]
        open_requests = [request for request in group if any(c.is_open(request) for c in mine)]
        if len(mine) * len(open_requests) <= 1:
            continue
        try:
            for context, request, result in _results(mine, open_requests):
                if isinstance(result, CannotBeCapturedError) and first.settings.decode == "auto":
                    for each in contexts:
                        each.requests.plan = replace(each.requests.plan, graphs=None)
                elif isinstance(result, Generation) and context.is_open(request):
                    context.keep(request, result)
        except torch.AcceleratorError:
            raise  # the device does nothing more in this process
        except Exception as error:  # whatever it is, each run meets and tells it by itself
            notice(
                f"{reason(error)}; these {len(mine) * len(open_requests)} requests share nothing"
            )


def _results(
    contexts: Sequence[ContextRun], requests: Sequence[range]
) -> Iterator[tuple[ContextRun, range, Generation | Exception]]:
    """What became of each request of each run."""
    plan, prompts = contexts[0].requests.plan, []
    for request in requests:
        arguments = plan.arguments(contexts[0].prompts(request))
        arguments["prunings"] = [context.requests.plan.pruning for context in contexts]
        del arguments["pruning"]
        own = {field.name: arguments.pop(field.name) for field in fields(Prompts)}
        prompts.append(Prompts(**own))
    n_warmups = contexts[0].requests.settings.warmup if contexts[0].warmup_ms is None else 0
    for context in contexts:
        context.warmup_ms = context.warmup_ms or 0.0
    for _ in range(n_warmups):
        list(shared_prefill.generate_each(plan.model, prompts[:1], **arguments))
    for number, place, result in shared_prefill.generate_each(plan.model, prompts, **arguments):
        yield contexts[number], requests[place], result
