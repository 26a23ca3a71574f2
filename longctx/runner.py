"""One evaluation run: settings checked first, then model, contexts, requests, results."""

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from kv_compression import quantized
from kv_compression.generation import Generation, generate, stop_token_ids
from longctx import config, data, environment, models, preflight, results, tables
from longctx.config import CannotRunError, Environment
from longctx.console import notice, stderr, stdout
from longctx.prompts import Prompt
from longctx.scoring import scored_samples
from longctx.settings import Settings
from longctx.task import Sample, Task, samples_by_context
from longctx.tracking import Tracker


def main(task: Task, description: str, environ: Mapping[str, str] | None = None) -> None:
    """Run `task` as the environment says. Exit code 2 for a setting that cannot be used."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=config.help_text(task.settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        Run(task, *config.read(task.settings, environ)).execute()
    except CannotRunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class Run:
    """A run from its settings to its files."""

    def __init__(self, task: Task, settings: Settings, environ: Environment):
        self.task = task
        self.settings = settings = preflight.choose_backend(settings, environ)
        if task.compared_answers(settings):
            # The answer is read from the first new token's probabilities.
            self.settings = settings = replace(settings, max_new_tokens=1)
        chosen = {
            **environ.values,
            "ATTN_IMPL": settings.attn_impl,
            "MAX_NEW_TOKENS": settings.max_new_tokens,
        }
        self.environ = environ = replace(environ, values=chosen)
        self.attention = task.attention(settings) if task.attention else None
        self.pruning = preflight.pruning(settings, environ)
        self.quantization = environ.quantization()
        preflight.check_machine(settings, self.quantization)
        self.logdir = preflight.writable_folder(settings.logdir)
        self.source = models.find(settings)
        models.check(settings, self.source)
        self.builder = preflight.prompt_builder(task, settings, self.source)
        self.samples = samples_by_context(task, settings, self.builder)
        self.choice_tokens = preflight.choice_tokens(
            task, settings, self.builder, self.samples[settings.contexts[0]][0]
        )
        if not self.source.is_random:
            preflight.check_scores(task)

    def execute(self) -> dict[str, Any]:
        """Load the model, run every context, write everything; returns the full results."""
        began = time.perf_counter()
        # Before any file: a model that cannot be loaded leaves nothing behind.
        model, load_s = models.load(self.settings, self.source, self.quantization)
        files = self._files()
        done = {(row["context_tokens"], row["request"]) for row in files.rows}
        tracker = Tracker(self.settings, files.meta, self.task.score_names)
        self.weights_gb = results.gigabytes(models.weight_bytes(model))
        self.stop_tokens = stop_token_ids(model, self.source.tokenizer)
        if self.source.is_random:
            self.stop_tokens = frozenset()
        summaries = []
        for context_tokens in self.settings.contexts:
            warmup_ms = self._run_context(model, context_tokens, files, done)
            identity = self._identity(files.meta["run_id"], context_tokens) | {
                "quant_mode": self.settings.quant_mode,
                "warmup_ms": warmup_ms,
                "weights_gb": self.weights_gb,
                "kv_scope": self.settings.kv_scope,
                "first_token_before_pruning": self.pruning is not None
                and self.settings.kv_scope == "prompt",
            }
            rows = [row for row in files.rows if row["context_tokens"] == context_tokens]
            summaries.append(
                results.context_summary(
                    identity,
                    rows,
                    self.task.score_names,
                    groups=self.task.groups,
                    chance=self.task.chance,
                    seed=self.settings.seed,
                )
            )
            files.write_summaries(summaries)
            tracker.context(summaries[-1])
        summary = self._summary(files, summaries) | {
            "load_s": load_s,
            "wall_s": time.perf_counter() - began,
        }
        files.meta["kernel"] = {
            phase: "+".join(sorted({s[f"kernel_{phase}"] for s in summaries} - {""}))
            for phase in ("prefill", "decode")
        }
        full = files.finish(summaries, summary)
        tracker.finish(files.rows, summary)
        stdout.print(tables.table_of([full]))
        tables.print_predictions(full)
        tables.print_paths([files.summaries_path, files.full_path])
        return full

    def _files(self) -> results.RunFiles:
        settings = self.settings
        # Lists that contexts share are read once.
        lists = {id(samples): samples for samples in self.samples.values()}.values()
        data_fingerprint = data.fingerprint(
            text
            for samples in lists
            for s in samples
            for text in (s.sample_id, *astuple(s.parts), *s.references, *s.evidence)
        )
        counting = {"task": self.task.name, **self.environ.fingerprint_values()}
        fingerprint = results.fingerprint(counting, data_fingerprint)
        if settings.resume:
            found = results.RunFiles.unfinished(self.logdir, fingerprint)
            if found is not None:
                notice(f"going on with {found.meta['run_id']}: {len(found.rows)} requests are done")
                return found
            notice(f"no unfinished run of these settings in {settings.logdir}; starting one")
        model = results.model_name(settings.model_id)
        count = len(self.samples[settings.contexts[0]])
        meta = {
            "run_id": results.run_id(
                model,
                settings.attn_impl,
                count,
                settings.batch_size,
                settings.kv_mode,
                settings.quant_mode,
            ),
            "task": self.task.name,
            "model": model,
            "tags": [model[:64], settings.attn_impl, f"kv-{settings.kv_mode}", settings.quant_mode],
            "command": self._command(),
            "variables": dict(self.environ.values),
            "score_names": list(self.task.score_names),
            "groups": list(self.task.groups),
            "prompt_format": "chat template" if self.builder.chat_template else "raw",
            "n_samples": count,
            "data_fingerprint": data_fingerprint,
            "fingerprint": fingerprint,
            "versions": environment.versions(),
            "device": environment.device(),
            "git_commit": environment.git_commit(),
        }
        return results.RunFiles.start(self.logdir, meta)

    def _command(self) -> str:
        """The shell line that repeats this run."""
        changed = [
            f"{known.name}={shlex.quote(config.text_of(self.environ.values[known.name]))}"
            for known in self.environ.declared
            if known.name in self.environ.is_set
        ]
        return " ".join([*changed, "python", self.task.script or f"{self.task.name}_eval.py"])

    def _identity(self, run_id: str, context_tokens: int) -> dict[str, Any]:
        return {
            "run_id": run_id,
            "model": results.model_name(self.settings.model_id),
            "attn": self.settings.attn_impl,
            "kv_mode": self.settings.kv_mode,
            "context_tokens": context_tokens,
        }

    def _run_context(
        self,
        model: PreTrainedModel,
        context_tokens: int,
        files: results.RunFiles,
        done: set[tuple[int, int]],
    ) -> float | None:
        """Run what is not done of one context length; returns the time of its warm-up."""
        batches = list(self._batches(context_tokens))
        open_requests = [n for n in range(len(batches)) if (context_tokens, n) not in done]
        known_oom = any(r.get("oom") for r in files.rows if r["context_tokens"] == context_tokens)
        if not open_requests or known_oom:
            return None
        warmup_ms = None
        identity = self._identity(files.meta["run_id"], context_tokens)
        with _progress() as progress:
            bar = progress.add_task(f"{context_tokens:,}", total=len(batches), speed="")
            progress.advance(bar, len(batches) - len(open_requests))
            for request in open_requests:
                batch = batches[request]
                row_identity = identity | {"batch_size": len(batch), "request": request}
                try:
                    if warmup_ms is None:
                        warmup_ms = self._warm_up(model, batch)
                    result = self._request(model, [prompt for _, prompt in batch])
                except torch.OutOfMemoryError as error:
                    files.add(results.failed_row(row_identity, error, oom=True))
                    notice(
                        f"out of GPU memory at {context_tokens} tokens; the rest of it is skipped"
                    )
                    break
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
                row = results.request_row(row_identity | figures, result, samples)
                files.add(row)
                progress.update(bar, advance=1, speed=f"{row['tok_per_s']:.1f} tokens/s")
        if files.rows[-1].get("oom"):
            # Outside the handler, where the error no longer holds the tensors.
            gc.collect()
            torch.cuda.empty_cache()
        return warmup_ms

    def _batches(self, context_tokens: int) -> Iterator[list[tuple[Sample, Prompt]]]:
        truncate, size = self.settings.truncate, self.settings.batch_size
        pairs = [
            (sample, prompt)
            for sample in self.samples[context_tokens]
            if (prompt := self.builder.build(sample.parts, context_tokens, truncate)) is not None
        ]
        if len(pairs) < len(self.samples[context_tokens]):
            left_out = len(self.samples[context_tokens]) - len(pairs)
            notice(f"{left_out} samples do not fit {context_tokens} tokens and are left out")
        for first in range(0, len(pairs), size):
            yield pairs[first : first + size]

    def _warm_up(self, model: PreTrainedModel, batch: Sequence[tuple[Sample, Prompt]]) -> float:
        began = time.perf_counter()
        for _ in range(self.settings.warmup):
            self._request(model, [prompt for _, prompt in batch])
        return (time.perf_counter() - began) * 1e3

    def _request(self, model: PreTrainedModel, prompts: Sequence[Prompt]) -> Generation:
        batch = self.source.tokenizer.pad(
            {"input_ids": [prompt.input_ids for prompt in prompts]}, return_tensors="pt"
        )
        input_ids = batch["input_ids"]
        if self.source.is_random:
            # The borrowed tokenizer may know more tokens than the shape has.
            input_ids = input_ids % self.source.config.vocab_size
        return generate(
            model,
            input_ids,
            batch["attention_mask"],
            backend=self.attention or self.settings.attn_impl,
            max_new_tokens=self.settings.max_new_tokens,
            pruning=self.pruning,
            stop_tokens=self.stop_tokens,
            question_tokens=[prompt.question_tokens for prompt in prompts]
            if self.settings.kv_scope == "context"
            else None,
            kv_bits=quantized.BITS.get(self.settings.kv_quant),
            choice_tokens=list(self.choice_tokens.values()),
        )

    def _summary(
        self, files: results.RunFiles, summaries: Sequence[results.Summary]
    ) -> results.Summary:
        quality = {
            name: {str(s["context_tokens"]): s[name] for s in summaries}
            for name in (*self.task.score_names, "answered_pct", "evidence_kept_pct")
        }
        return {
            "run_id": files.meta["run_id"],
            "n_requests": len(files.rows),
            "n_failed": sum(not row["success"] for row in files.rows),
            "n_oom": sum(bool(row.get("oom")) for row in files.rows),
            "weights_gb": self.weights_gb,
            **quality,
        }


def _progress() -> Progress:
    return Progress(
        TextColumn("context {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=stderr,
    )
