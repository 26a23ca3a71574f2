"""One evaluation run: settings checked first, then model, contexts, requests, results."""

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from kv_compression import attention
from kv_compression.cache import Pruning
from kv_compression.generation import Generation, generate, stop_token_ids
from longctx import config, data, environment, metrics, models, report, results
from longctx.config import Environment, SettingError, Settings
from longctx.console import notice, stderr, stdout
from longctx.prompts import ContextTooShortError, Parts, Prompt, PromptBuilder
from longctx.tracking import Tracker

_SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Sample:
    """One question of a data set. `extra` goes into the results as it is."""

    sample_id: str
    parts: Parts
    references: list[str]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a script says about its data set; the rest is the harness's.

    settings: the script's Settings class.
    sample: a record of the data set, its number and the settings -> a Sample. KeyError, TypeError,
        IndexError and AttributeError mean that the record is not of the data set's schema.
    synthesize: (seed, count, document_tokens, count_tokens) -> records of DATASET_ID=synthetic.
    answer: the model's text and whether the prompt was raw -> the prediction.
    score: predictions and their references -> scores by name, one dict a sample.
    score_names: the names, in the order of the tables.
    check_scores: raises when a score could not be computed later.
    """

    name: str
    settings: type[Settings]
    sample: Callable[[dict[str, Any], int, Any], Sample]
    synthesize: Callable[[int, int, int, Callable[[str], int]], list[dict[str, Any]]]
    answer: Callable[[str, bool], str]
    score: Callable[[Sequence[str], Sequence[Sequence[str]]], list[dict[str, float | None]]]
    score_names: tuple[str, ...]
    check_scores: Callable[[], None]


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
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class Run:
    """A run from its settings to its files."""

    def __init__(self, task: Task, settings: Settings, environ: Environment):
        self.task = task
        self.environ = environ
        self.settings = settings = _choose_backend(settings, environ)
        if {"KEEP_TOKENS", "KEEP_RATIO"} <= environ.is_set:
            problem = "excludes KEEP_RATIO: set one of the two"
            raise SettingError("KEEP_TOKENS", settings.keep_tokens, problem)
        try:
            method = environ.method()
        except ValueError as error:
            raise SettingError("KV_MODE", settings.kv_mode, str(error)) from None
        self.quantization = environ.quantization()
        _check_machine(settings, self.quantization)
        self.logdir = _writable_folder(settings.logdir)
        self.source = models.find(settings)
        models.check(settings, self.source)
        use_template = settings.chat_template == "on" or (
            settings.chat_template == "auto"
            and self.source.tokenizer.chat_template is not None
            and not self.source.prefers_raw_prompts
        )
        if use_template and self.source.tokenizer.chat_template is None:
            raise SettingError("CHAT_TEMPLATE", "on", f"{settings.model_id} has no chat template")
        self.builder = PromptBuilder(self.source.tokenizer, use_template)
        self.samples = self._samples()
        if not self.source.is_random:
            _check_scores(task)
        self.pruning = (
            Pruning(
                method,
                settings.keep_ratio,
                settings.prune_after,
                settings.skip_layers,
                settings.keep_tokens,
            )
            if method is not None
            else None
        )

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
                results.context_summary(identity, rows, self.task.score_names, self.settings.seed)
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
        stdout.print(report.table_of([full]))
        report.print_predictions(full)
        report.print_paths([files.summaries_path, files.full_path])
        return full

    def _samples(self) -> dict[int, list[Sample]]:
        """Samples for each context length; only synthetic documents differ between lengths."""
        settings, task = self.settings, self.task
        if settings.dataset_id != _SYNTHETIC:
            samples = self._parse(data.read(settings))
            self._check_contexts(samples)
            return dict.fromkeys(settings.contexts, samples)

        def synthesize(document_tokens: int) -> list[Sample]:
            return self._parse(
                task.synthesize(
                    settings.seed, settings.n_samples, document_tokens, self.builder.count_tokens
                )
            )

        longest_question = self._check_contexts(synthesize(0))
        return {length: synthesize(length - longest_question) for length in settings.contexts}

    def _parse(self, records: list[data.Record]) -> list[Sample]:
        samples = []
        for number, record in enumerate(records):
            try:
                samples.append(self.task.sample(record, number, self.settings))
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                problem = f"record {number} is not of {self.task.name}'s schema: no {error}"
                raise SettingError("DATASET_ID", self.settings.dataset_id, problem) from error
        return samples

    def _check_contexts(self, samples: Sequence[Sample]) -> int:
        """Tokens of the longest prompt without its document; raises when a context is shorter."""
        longest = max(self.builder.fixed_tokens(sample.parts) for sample in samples)
        shortest_context = min(self.settings.contexts)
        if longest > shortest_context:
            error = ContextTooShortError(shortest_context, longest)
            raise SettingError("CONTEXTS", shortest_context, str(error))
        return longest

    def _files(self) -> results.RunFiles:
        settings = self.settings
        variables = {**self.environ.values} | {"ATTN_IMPL": settings.attn_impl}
        counting = self.environ.fingerprint_values(type(settings))
        counting["ATTN_IMPL"] = settings.attn_impl
        # Lists that contexts share are read once.
        lists = {id(samples): samples for samples in self.samples.values()}.values()
        data_fingerprint = data.fingerprint(
            text
            for samples in lists
            for s in samples
            for text in (
                s.sample_id,
                s.parts.before,
                s.parts.document,
                s.parts.after,
                *s.references,
            )
        )
        fingerprint = results.fingerprint({"task": self.task.name, **counting}, data_fingerprint)
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
            "variables": variables,
            "score_names": list(self.task.score_names),
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
        return " ".join([*changed, "python", f"{self.task.name}_eval.py"])

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
                samples = self._scored(batch, result)
                row = results.request_row(row_identity, result, samples)
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
            backend=self.settings.attn_impl,
            max_new_tokens=self.settings.max_new_tokens,
            pruning=self.pruning,
            stop_tokens=self.stop_tokens,
            question_tokens=[prompt.question_tokens for prompt in prompts]
            if self.settings.kv_scope == "context"
            else None,
        )

    def _scored(
        self, batch: Sequence[tuple[Sample, Prompt]], result: Generation
    ) -> list[dict[str, Any]]:
        texts = self.source.tokenizer.batch_decode(
            result.new_tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        answers = [self.task.answer(text, not self.builder.chat_template) for text in texts]
        references = [sample.references for sample, _ in batch]
        if self.source.is_random:
            scores: list[dict[str, float | None]] = [
                dict.fromkeys(self.task.score_names) for _ in batch
            ]
        else:
            scores = self.task.score(answers, references)
        return [
            {
                "sample_id": sample.sample_id,
                "prompt_tokens": len(prompt.input_ids),
                "document_tokens": prompt.document_tokens,
                "dropped_tokens": prompt.dropped_tokens,
                "new_tokens": len(new_tokens),
                "prediction": answer,
                "output": text,
                "references": sample.references,
                "answered": None if self.source.is_random else metrics.is_answer(answer),
                **score,
                **sample.extra,
            }
            for (sample, prompt), new_tokens, answer, text, score in zip(
                batch, result.new_tokens, answers, texts, scores, strict=True
            )
        ]

    def _summary(
        self, files: results.RunFiles, summaries: Sequence[results.Summary]
    ) -> results.Summary:
        quality = {
            name: {str(s["context_tokens"]): s[name] for s in summaries}
            for name in (*self.task.score_names, "answered_pct")
        }
        return {
            "run_id": files.meta["run_id"],
            "n_requests": len(files.rows),
            "n_failed": sum(not row["success"] for row in files.rows),
            "n_oom": sum(bool(row.get("oom")) for row in files.rows),
            "weights_gb": self.weights_gb,
            **quality,
        }


def _choose_backend(settings: Settings, environ: Environment) -> Settings:
    """Without a GPU and without a wish, `sdpa`; a wish that cannot be met raises SettingError."""
    on_gpu = torch.cuda.is_available() and settings.device_map != "cpu"
    dtype = getattr(torch, settings.dtype)
    try:
        attention.backend(settings.attn_impl).check("cuda" if on_gpu else "cpu", dtype)
    except ValueError as error:
        if "ATTN_IMPL" in environ.is_set:
            raise SettingError(
                "ATTN_IMPL", settings.attn_impl, f"{error}; sdpa runs anywhere"
            ) from None
        notice(f"ATTN_IMPL=sdpa, since {error}")
        return replace(settings, attn_impl="sdpa")
    return settings


def _check_machine(settings: Settings, quantization: Any) -> None:
    """Raises SettingError for what this machine or its packages cannot do."""
    if settings.device_map.startswith("cuda") and not torch.cuda.is_available():
        raise SettingError("DEVICE_MAP", settings.device_map, "there is no CUDA GPU here")
    try:
        quantization.check()
    except ValueError as error:
        raise SettingError("QUANT_MODE", settings.quant_mode, str(error)) from None


def _writable_folder(logdir: str) -> Path:
    folder = Path(logdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results.write_whole(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise SettingError("LOGDIR", logdir, f"cannot be written: {error.strerror}") from None
    return folder


def _check_scores(task: Task) -> None:
    """Before the model is loaded: what would be missing after the first answer."""
    try:
        task.check_scores()
    except (RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _progress() -> Progress:
    return Progress(
        TextColumn("context {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=stderr,
    )
