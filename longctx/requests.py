"""The requests of one context length, and what becomes of those that fail."""

import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kv_compression import out_of_memory
from kv_compression.decode_graph import CannotBeCapturedError
from kv_compression.generation import Generation, generate
from longctx import results
from longctx.console import notice, stderr
from longctx.distributed import Processes
from longctx.errors import SettingError
from longctx.models import ModelSource
from longctx.plan import Plan
from longctx.prompts import Prompt, PromptBuilder, PromptParts
from longctx.redaction import reason
from longctx.results import Row
from longctx.run_files import RunFiles
from longctx.scoring import scored_samples
from longctx.settings import Settings
from longctx.task import ReportingBackend, Sample, Task

Batch = Sequence[tuple[Sample, Prompt]]


@dataclass
class Requests:
    """All that a request needs besides its prompts.

    plan: gives up its graphs where DECODE=auto finds that a step cannot be captured.
    shares_documents: whether questions about one document share its prefill.
    has_answered: whether a request has succeeded in this run.
    """

    task: Task
    settings: Settings
    source: ModelSource
    builder: PromptBuilder
    attention: ReportingBackend | None
    plan: Plan
    workers: Processes
    shares_documents: bool = False
    has_answered: bool = False

    def pairs(self, context_tokens: int, samples: Sequence[Sample]) -> Batch:
        """Samples with their prompts; TRUNCATE=skip leaves those out that do not fit.

        Where the context is pruned before its question is read, a document with several questions
        is cut alike for all of them.
        """
        parts = [sample.parts for sample in samples]
        longest = dict[tuple[str, str], PromptParts]()
        if self.settings.kv_scope == "context":
            longest = self.builder.with_longest_questions(parts)
        pairs = []
        for sample in samples:
            alike = longest.get((sample.parts.before, sample.parts.document))
            prompt = self.builder.build(sample.parts, context_tokens, self.settings.truncate, alike)
            if prompt:
                pairs.append((sample, prompt))
        longer = [n for _, prompt in pairs if (n := len(prompt.input_ids)) > context_tokens]
        if longer and self.workers.is_first:
            notice(
                f"{len(longer)} prompts are longer than {context_tokens} tokens, up to "
                f"{max(longer)}: TRUNCATE=never keeps them whole"
            )
        if len(pairs) < len(samples) and self.workers.is_first:
            left_out = len(samples) - len(pairs)
            notice(f"{left_out} samples do not fit {context_tokens} tokens and are left out")
        return pairs


class ContextRun:
    """The open requests of one context length.

    pairs: all samples of the context length with their prompts; a request is a range of them.
    identity: what each row begins with.
    known: rows of earlier processes of the run.
    files: where each row goes as soon as it is made.
    shares_prefill: prompts are read once for several runs (`longctx.together`), so that no row has
        figures of a prefill of its own.
    """

    def __init__(
        self,
        requests: Requests,
        pairs: Batch,
        identity: Row,
        known: Iterable[Row],
        files: RunFiles,
        *,
        shares_prefill: bool = False,
    ):
        self.requests = requests
        self._shares_prefill = shares_prefill
        self._pairs = pairs
        self._identity = identity
        self.context_tokens = context_tokens = identity["context_tokens"]
        self._known = [row for row in known if row["context_tokens"] == context_tokens]
        self._files = files
        self._too_large: set[range] = set()
        self._done: set[int] = set()
        for row in self._known:
            self._note(row)
        self.warmup_ms: float | None = None
        self._wall_s = 0.0
        self._captured_warming_up_ms = self._captured_ms = 0.0

    def _note(self, row: Row) -> None:
        request = range(row["first_sample"], row["first_sample"] + row["batch_size"])
        if row.get("oom"):
            self._too_large.add(request)
        else:
            self._done.update(request)

    def run(self) -> None:
        """Run this process's share of what is open; a row for each request, failed or not.

        A request that runs out of memory is the last one, unless halves of it can be tried.
        """
        settings, workers = self.requests.settings, self.requests.workers
        can_retry = settings.oom == "retry_smaller_batch"
        mine = self.batches()
        to_do = [batch for batch in reversed(mine) if not self._done.issuperset(batch)]
        if not to_do or (self._too_large and not can_retry):
            return
        columns = TextColumn("context {task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(
            *columns, TimeRemainingColumn(), console=stderr, disable=not workers.is_first
        ) as progress:
            bar = progress.add_task(f"{self._identity['context_tokens']:,}", total=len(mine))
            began = time.perf_counter()
            while to_do:
                n_done = sum(self._done.issuperset(batch) for batch in mine)
                progress.update(bar, completed=n_done)
                request = self._open_part(to_do.pop())
                if request and request not in self._too_large:
                    row = self._row(request)
                    if isinstance(row, list):
                        to_do += reversed(row)
                        continue
                    self._files.add(row)
                    self._note(row)
                if request in self._too_large:
                    if len(request) == 1 or not can_retry:
                        break
                    middle = request.start + len(request) // 2
                    to_do += [range(middle, request.stop), range(request.start, middle)]
            uncounted_ms = (self.warmup_ms or 0) + self._captured_ms
            self._wall_s = time.perf_counter() - began - uncounted_ms / 1e3

    def batches(self) -> list[range]:
        """This process's share of the requests, done or not."""
        last, size = len(self._pairs), self.requests.settings.batch_size
        batches = [range(first, min(first + size, last)) for first in range(0, last, size)]
        return list(self.requests.workers.mine(batches))

    def with_one_context(self) -> list[list[range]]:
        """This process's share of the requests, those together that share a prefill."""
        groups: dict[object, list[range]] = {}
        for request in self.batches():
            prompts = self.prompts(request)
            key: object = request
            if self.requests.shares_documents:
                key = tuple(tuple(prompt.context_ids) for prompt in prompts)
            groups.setdefault(key, []).append(request)
        return list(groups.values())

    def is_open(self, request: range) -> bool:
        """Whether nothing of it is done or known to be too large."""
        return self._done.isdisjoint(request) and request not in self._too_large

    def prompts(self, request: range) -> list[Prompt]:
        """Of its samples."""
        return [prompt for _, prompt in self._pairs[request.start : request.stop]]

    def keep(self, request: range, result: Generation) -> None:
        """The row of a request whose result came from a prefill that it shares with others."""
        self.requests.has_answered = True
        self._captured_ms += result.capture_ms
        batch = self._pairs[request.start : request.stop]
        row = self._scored(self._of_request(request), batch, result, result.latency_ms)
        self._files.add(row)
        self._note(row)

    def _of_request(self, request: range) -> Row:
        return self._identity | {
            "batch_size": len(request),
            "request": request.start // self.requests.settings.batch_size,
            "first_sample": request.start,
        }

    def _open_part(self, request: range) -> range:
        """From the first sample that is not done to the end."""
        return range(next((n for n in request if n not in self._done), request.stop), request.stop)

    def _row(self, request: range) -> Row | list[range]:
        """The row of one request, or the requests to make in its place.

        Those are each sample alone where one of several fails, nobody knows which; and the same
        request where DECODE=auto finds that its step cannot be captured.
        """
        requests, settings = self.requests, self.requests.settings
        batch, prompts = self._pairs[request.start : request.stop], self.prompts(request)
        identity = self._of_request(request)
        plan = requests.plan
        try:
            began = time.perf_counter()
            if self.warmup_ms is None:
                for _ in range(settings.warmup):
                    result = generate(plan.model, **plan.arguments(prompts))
                    self._captured_warming_up_ms += result.capture_ms
                    requests.has_answered = True
                self.warmup_ms = (time.perf_counter() - began) * 1e3
                began = time.perf_counter()
            result = generate(plan.model, **plan.arguments(prompts))
            wall_ms = (time.perf_counter() - began) * 1e3
            self._captured_ms += result.capture_ms
            requests.has_answered = True
            return self._scored(identity, batch, result, wall_ms)
        except SettingError:
            raise
        except Exception as error:  # a sample that fails is a row, whatever it is that fails
            if isinstance(error, CannotBeCapturedError) and settings.decode == "auto":
                notice(f"DECODE=eager, since {reason(error)}")
                requests.plan = replace(plan, graphs=None)
                return [request]
            if isinstance(error, NotImplementedError) and not requests.has_answered:
                # The model's doing, so the first of all requests that would fail.
                raise SettingError("MODEL_ID", settings.model_id, reason(error)) from error
            is_oom = out_of_memory.cause(error) is not None
            if not is_oom and len(batch) > 1:
                notice(f"{reason(error)}; the {len(batch)} samples of this batch run one by one")
                return [range(number, number + 1) for number in request]
            sample_ids = [sample.sample_id for sample, _ in batch]
            row = results.failed_row(identity | {"sample_ids": sample_ids}, error, oom=is_oom)
            if isinstance(error, torch.AcceleratorError) and not is_oom:
                # The device does nothing more in this process.
                self._files.add(row)
                raise
        # Outside the handler, where the error no longer holds the tensors.
        gc.collect()
        torch.cuda.empty_cache()
        notice(f"at {identity['context_tokens']:,} tokens, batch {len(batch)}: {row['error']}")
        return row

    def _scored(self, identity: Row, batch: Batch, result: Generation, wall_ms: float) -> Row:
        requests = self.requests
        samples = scored_samples(
            requests.task,
            batch,
            result,
            requests.source.tokenizer,
            prompt_is_raw=not requests.builder.chat_template,
            compared=list(requests.plan.choice_tokens),
            has_quality=not requests.source.is_random,
            save_prompts=requests.settings.save_prompts,
        )
        if self._shares_prefill:
            result = replace(result, prefill_is_shared=True, document_is_own=False)
        figures = requests.attention.figures() if requests.attention else {}
        return results.request_row({**identity, **figures}, result, samples, wall_ms=wall_ms)

    def gathered(self) -> tuple[list[Row], dict[str, Any]]:
        """All processes' rows in the order of the data set, and what these took."""
        workers, context_tokens = self.requests.workers, self._identity["context_tokens"]
        mine = [row for row in self._files.rows if row["context_tokens"] == context_tokens]
        captured_ms = self._captured_warming_up_ms + self._captured_ms
        parts = workers.gathered((mine, self.warmup_ms, self._wall_s, captured_ms))
        rows = [*self._known, *(row for part, *_ in parts for row in part)]
        rows.sort(key=lambda row: (row["first_sample"], -row["batch_size"]))
        wall_s = max(seconds for _, _, seconds, _ in parts)
        shares = any(row.get("shared_ttft_ms") for part, *_ in parts for row in part)
        new_samples = sum(len(row["samples"]) for part, *_ in parts for row in part)
        return rows, {
            "warmup_ms": max((ms for _, ms, _, _ in parts if ms is not None), default=None),
            "capture_ms": max(ms for *_, ms in parts),
            "n_processes": workers.count,
            "samples_per_s": new_samples / wall_s if new_samples and not shares else None,
        }
