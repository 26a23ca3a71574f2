"""The requests of one context length, and what becomes of those that fail."""

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from kv_compression import out_of_memory, quantized, rope_length
from kv_compression.decode_graph import CannotBeCapturedError, DecodeGraphs
from kv_compression.generation import Generation, generate
from kv_compression.pruning import Pruning
from longctx import prefill, results
from longctx.config import SettingError
from longctx.console import notice, stderr
from longctx.distributed import Processes
from longctx.models import ModelSource
from longctx.prompts import Prompt, PromptBuilder, left_padded
from longctx.redaction import reason
from longctx.results import Row
from longctx.scoring import scored_samples
from longctx.settings import Settings
from longctx.task import ReportingBackend, Sample, Task

Batch = Sequence[tuple[Sample, Prompt]]


@dataclass
class Requests:
    """All that a request needs besides its prompts.

    graphs: None decodes eagerly, as DECODE=auto does once a step could not be captured.
    """

    task: Task
    settings: Settings
    source: ModelSource
    builder: PromptBuilder
    pruning: Pruning | None
    attention: ReportingBackend | None
    choice_tokens: dict[str, int]
    stop_tokens: frozenset[int]
    model: PreTrainedModel
    graphs: DecodeGraphs | None
    workers: Processes
    has_answered: bool = False

    def pairs(self, context_tokens: int, samples: Sequence[Sample]) -> Batch:
        """Samples with their prompts; TRUNCATE=skip leaves those out that do not fit."""
        pairs = [
            (sample, prompt)
            for sample in samples
            if (prompt := self.builder.build(sample.parts, context_tokens, self.settings.truncate))
        ]
        if len(pairs) < len(samples) and self.workers.is_first:
            left_out = len(samples) - len(pairs)
            notice(f"{left_out} samples do not fit {context_tokens} tokens and are left out")
        return pairs

    def answer(self, batch: Batch) -> Generation:
        """One request, again without a graph where DECODE=auto finds that there can be none."""
        try:
            result = self._answer(batch)
        except CannotBeCapturedError as error:
            if self.settings.decode == "graph":
                raise
            notice(f"DECODE=eager, since {reason(error)}")
            self.graphs = None
            result = self._answer(batch)
        except NotImplementedError as error:
            if self.has_answered:
                raise
            # The model's doing, so the first of all requests that would fail.
            raise SettingError("MODEL_ID", self.settings.model_id, reason(error)) from error
        self.has_answered = True
        return result

    def _answer(self, batch: Batch) -> Generation:
        prompts = [prompt for _, prompt in batch]
        input_ids, attention_mask = left_padded(prompts)
        for length in attention_mask.sum(dim=1).tolist():
            new_tokens = self.settings.max_new_tokens
            if problem := rope_length.reason_lengths_unsupported(self.model, length, new_tokens):
                raise ValueError(problem)
        if self.source.is_random:
            # The borrowed tokenizer may know more tokens than the shape has.
            input_ids = input_ids % self.source.config.vocab_size
        return generate(
            self.model,
            input_ids,
            attention_mask,
            backend=self.attention or self.settings.attn_impl,
            max_new_tokens=self.settings.max_new_tokens,
            pruning=self.pruning,
            stop_tokens=self.stop_tokens,
            question_tokens=[prompt.question_tokens for prompt in prompts]
            if self.settings.kv_scope == "context"
            else None,
            kv_bits=quantized.BITS.get(self.settings.kv_quant),
            choice_tokens=list(self.choice_tokens.values()),
            graphs=self.graphs,
            # A mask over positions is made for a whole prefill.
            prefill_chunk=None
            if self.attention
            else prefill.chunk_rows(self.settings, self.model, input_ids.numel()),
        )

    def row(self, identity: Row, batch: Batch) -> Row:
        """One request and its row."""
        began = time.perf_counter()
        result = self.answer(batch)
        wall_ms = (time.perf_counter() - began) * 1e3
        samples = scored_samples(
            self.task,
            batch,
            result,
            self.source.tokenizer,
            prompt_is_raw=not self.builder.chat_template,
            compared=list(self.choice_tokens),
            has_quality=not self.source.is_random,
        )
        figures = self.attention.figures() if self.attention else {}
        return results.request_row(identity | figures, result, samples, wall_ms=wall_ms)


class ContextRun:
    """The open requests of one context length.

    pairs: all samples of the context length with their prompts; rows name them by their place.
    identity: what each row begins with.
    known: rows of the same context length that are there already.
    add: called with each row as soon as it is made.
    """

    def __init__(
        self,
        requests: Requests,
        pairs: Batch,
        identity: Row,
        known: Iterable[Row],
        add: Callable[[Row], None],
    ):
        self._requests = requests
        self._pairs = pairs
        self._identity = identity
        self._add = add
        self._too_large: set[tuple[int, int]] = set()
        self._done: set[int] = set()
        for row in known:
            self._note(row)
        self.warmup_ms: float | None = None
        self.wall_s = 0.0
        # These, also where the requests give them up for eager decoding on the way.
        self._graphs = requests.graphs
        self._captured_before_ms = self._captured_so_far_ms()
        self._captured_warming_up_ms = 0.0

    def _note(self, row: Row) -> None:
        place = row["first_sample"], row["batch_size"]
        if row.get("oom"):
            self._too_large.add(place)
        else:
            self._done |= set(range(place[0], sum(place)))

    def _captured_so_far_ms(self) -> float:
        return self._graphs.capture_ms if self._graphs else 0.0

    @property
    def capture_ms(self) -> float:
        """Spent on capturing decode steps in this context length, its warm-up included."""
        return self._captured_so_far_ms() - self._captured_before_ms

    def run(self) -> None:
        """Run this process's share of what is open; a row for each request, failed or not."""
        settings, workers = self._requests.settings, self._requests.workers
        size = settings.batch_size
        firsts = range(0, len(self._pairs), size)
        batches = [range(first, min(first + size, len(self._pairs))) for first in firsts]
        whole = list(workers.mine(batches))
        open_batches = [batch for batch in whole if not self._done.issuperset(batch)]
        if not open_batches or (self._too_large and not self._retries):
            return
        with _progress(disable=not workers.is_first) as progress:
            context = f"{self._identity['context_tokens']:,}"
            bar = progress.add_task(context, total=len(whole), speed="")
            progress.advance(bar, len(whole) - len(open_batches))
            began = time.perf_counter()
            for batch in open_batches:
                if not self._run(batch):
                    break
                progress.update(bar, advance=1)
            uncounted_ms = (self.warmup_ms or 0) + self.capture_ms - self._captured_warming_up_ms
            self.wall_s = time.perf_counter() - began - uncounted_ms / 1e3

    @property
    def _retries(self) -> bool:
        return self._requests.settings.oom == "retry_smaller_batch"

    def _run(self, places: range) -> bool:
        """Run the samples at `places` that are not done; False when none more of them can be."""
        places = range(next(n for n in places if n not in self._done), places.stop)
        place = (places.start, len(places))
        if place not in self._too_large:
            row = self._attempt(places)
            if row is not None:
                self._add(row)
                self._note(row)
        if place in self._too_large:
            if not self._retries or len(places) == 1:
                return False
            middle = places.start + len(places) // 2
            halves = (range(places.start, middle), range(middle, places.stop))
            return all(self._run(half) for half in halves if not self._done.issuperset(half))
        return all(self._run(range(n, n + 1)) for n in places if n not in self._done)

    def _attempt(self, places: range) -> Row | None:
        """The row of one request; None where one of several samples fails, nobody knows which."""
        requests = self._requests
        batch = self._pairs[places.start : places.stop]
        identity = self._identity | {
            "batch_size": len(batch),
            "request": places.start // requests.settings.batch_size,
            "first_sample": places.start,
        }
        sample_ids = [sample.sample_id for sample, _ in batch]
        try:
            if self.warmup_ms is None:
                self.warmup_ms = self._warm_up(batch)
            return requests.row(identity, batch)
        except SettingError:
            raise
        except Exception as error:  # a sample that fails is a row, whatever it is that fails
            is_oom = out_of_memory.cause(error) is not None
            if not is_oom and len(batch) > 1:
                notice(f"{reason(error)}; the {len(batch)} samples of this batch run one by one")
                return None
            row = results.failed_row(identity | {"sample_ids": sample_ids}, error, oom=is_oom)
            if isinstance(error, torch.AcceleratorError) and not is_oom:
                # The device does nothing more in this process.
                self._add(row)
                raise
        # Outside the handler, where the error no longer holds the tensors.
        gc.collect()
        torch.cuda.empty_cache()
        notice(f"at {identity['context_tokens']:,} tokens, batch {len(batch)}: {row['error']}")
        return row

    def _warm_up(self, batch: Batch) -> float:
        began = time.perf_counter()
        for _ in range(self._requests.settings.warmup):
            self._requests.answer(batch)
        self._captured_warming_up_ms = self.capture_ms
        return (time.perf_counter() - began) * 1e3


def _progress(disable: bool) -> Progress:
    columns: list[Any] = [
        TextColumn("context {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=stderr, disable=disable)
