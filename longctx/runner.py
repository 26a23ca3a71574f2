"""One evaluation run: settings checked first, then model, contexts, requests, results."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kv_compression import rope_length
from longctx import (
    figures,
    models,
    outcomes,
    plan,
    preflight,
    run_metadata,
    shared_requests,
    tables,
    tiny_model,
)
from longctx.config import Environment
from longctx.console import notice, stdout
from longctx.distributed import Processes
from longctx.errors import CannotRunError
from longctx.interrupt import Terminated
from longctx.protocol import with_protocol
from longctx.requests import ContextRun, Requests
from longctx.results import Row
from longctx.run_files import RunFiles
from longctx.settings import Settings
from longctx.shared_resources import SharedResources
from longctx.summaries import Summaries
from longctx.task import Task
from longctx.tracking import Tracker


@dataclass(frozen=True)
class Started:
    """What a run works with once its model is loaded.

    known: rows of earlier processes. load_s: the model's loading. began: the clock at the start.
    """

    requests: Requests
    files: RunFiles
    known: list[Row]
    summaries: Summaries
    tracker: Tracker
    load_s: float
    began: float


class Run:
    """A run from its settings to its files; `shared` may be shared with other runs.

    shares_prefill: its prompts are read together with other runs' (see `longctx.together`).
    failure: why nothing came of it although it is finished, the same in all processes; else None.
    results_path: its full results, once they are there; None in processes other than the first.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        environ: Environment,
        shared: SharedResources | None = None,
        *,
        shares_prefill: bool = False,
    ):
        self.shares_prefill = shares_prefill
        self.failure: str | None = None
        self.results_path: Path | None = None
        self.shared = shared or SharedResources()
        settings = preflight.choose_backend(with_protocol(settings, environ), environ)
        if task.compared_answers(settings):
            # The answer is read from the first new token's probabilities.
            settings = replace(settings, max_new_tokens=1)
        self.attention = task.attention(settings) if task.attention else None
        self.pruning = preflight.pruning(settings, environ)
        self.quantization = environ.quantization(settings.quant_mode)
        preflight.check_machine(settings, self.quantization)
        self.logdir = preflight.writable_folder(settings.logdir)
        self.source = self.shared.source(settings)
        models.check(settings, self.source)
        tiny_model.check(settings, self.source, self.pruning)
        models.note_positions(settings, self.source)
        preflight.check_prefill(settings)
        self.builder = self.shared.builder(task, settings, self.source)
        self.samples = self.shared.samples(task, settings, self.builder)
        self.task = task = task.for_data(settings, self.samples[settings.contexts[0]])
        sample = self.samples[min(settings.contexts)][0]
        preflight.check_tokens(settings, self.source, self.builder, sample)
        self.choice_tokens = preflight.choice_tokens(task, settings, self.builder, sample)
        if not self.source.is_random:
            preflight.check_scores(task)
        self.workers = Processes.join(environ.launch, shards=settings.tp_plan == "none")
        self.settings = preflight.placed(settings, self.workers)
        self.shares_documents = self._shares_documents()
        self.meta = run_metadata.run_meta(
            task,
            settings,
            environ,
            self.source,
            self.samples,
            self.builder,
            shares_prefill=shares_prefill,
            shares_documents=self.shares_documents,
        )

    def _shares_documents(self) -> bool:
        """Whether questions about one document share its prefill."""
        settings = self.settings
        if settings.share_prefill == "off" or settings.kv_scope != "context":
            return False
        if self.attention is not None or rope_length.kind(self.source.config):
            return False
        documents = [sample.document_id for sample in self.samples[settings.contexts[0]]]
        known = [document for document in documents if document is not None]
        return len(set(known)) < len(known)

    def execute(self) -> dict[str, Any] | None:
        """Load the model, run every context, write everything.

        Returns the full results; None where they were there before, and in processes other than
        the first.
        """
        if self.is_done():
            return None
        started = self.start()
        with self.told_if_stopped(started):
            for context_tokens in self.settings.contexts:
                context = self.context(started, context_tokens)
                if not started.summaries.is_too_long(context_tokens):
                    shared_requests.make([context])
                    context.run()
                self.summarize(started, context)
        return self.end(started)

    def start(self) -> Started:
        """Load the model and open the run's files."""
        began = time.perf_counter()
        # Before any file: a model that cannot be loaded leaves nothing behind.
        model, loading = self.shared.model(self.settings, self.source, self.quantization)
        self.meta["loading"] = loading.meta()
        requests = self._requests(model)
        files = self._files()
        known = self._known_rows(files)
        summaries = self._summaries(model, files.meta)
        tracker = Tracker(
            self.settings, files.meta, self.task.score_names, writes=self.workers.is_first
        )
        return Started(requests, files, known, summaries, tracker, loading.seconds, began)

    def context(self, started: Started, context_tokens: int) -> ContextRun:
        """The requests of a context length."""
        self.shared.has_run = True
        samples = self.samples[context_tokens]
        pairs = started.requests.pairs(context_tokens, samples)
        started.summaries.n_left_out[context_tokens] = len(samples) - len(pairs)
        return ContextRun(
            started.requests,
            pairs,
            started.summaries.identity(context_tokens),
            started.known,
            started.files,
            shares_prefill=self.shares_prefill,
        )

    def summarize(self, started: Started, context: ContextRun) -> None:
        """Keep and write the summary of a context length, and log it."""
        summaries = started.summaries
        summary = summaries.add(context.context_tokens, *context.gathered())
        if self.workers.is_first:
            summaries.note_untimed(summary)
            started.files.write_summaries(summaries.made)
            started.tracker.context(summary)

    def end(self, started: Started) -> dict[str, Any] | None:
        """Write, log and show the full results; None in processes other than the first."""
        times = {"load_s": started.load_s, "wall_s": time.perf_counter() - started.began}
        full = self._finished(started.files, started.tracker, started.summaries, times)
        self.workers.leave()
        started.files.journal.unlink(missing_ok=True)
        return full

    def _requests(self, model: PreTrainedModel) -> Requests:
        """What all requests need; raises SettingError for what the loaded model cannot do."""
        return Requests(
            self.task,
            self.settings,
            self.source,
            self.builder,
            self.attention,
            plan.make(
                self.settings,
                self.source,
                model,
                backend=self.attention or self.settings.attn_impl,
                pruning=self.pruning,
                choice_tokens=self.choice_tokens,
                is_first=self.workers.is_first,
            ),
            self.workers,
            self.shares_documents,
        )

    def _summaries(self, model: PreTrainedModel, meta: dict[str, Any]) -> Summaries:
        return Summaries(
            self.task,
            self.settings,
            meta,
            self.samples,
            has_quality=not self.source.is_random,
            is_pruned=self.pruning is not None,
            weights_gb=figures.gigabytes(models.weight_bytes(model)),
        )

    @contextmanager
    def told_if_stopped(self, started: Started) -> Iterator[None]:
        """Leave files of use when the run cannot go on, is interrupted or cannot write."""
        files, known, tracker = started.files, started.known, started.tracker
        try:
            yield
        except CannotRunError:
            files.release()
            if not known and not files.rows:
                files.journal.unlink(missing_ok=True)
            raise
        except (KeyboardInterrupt, Terminated):
            self._keep_what_is_there(files, known, started.summaries)
            tracker.interrupted()
            raise
        except OSError as error:
            tracker.interrupted()
            raise files.write_error(error) from error

    def is_done(self) -> bool:
        """Whether SKIP_DONE finds its results."""
        path = None
        if self.settings.skip_done and self.workers.is_first:
            path = RunFiles.finished(self.logdir, self.meta["fingerprint"])
        if path is not None:
            notice(f"SKIP_DONE: these settings have their results in {path}")
            self.results_path = path
        is_done = self.workers.of_first(path is not None)
        if is_done:
            self.workers.leave()
        return is_done

    def _files(self) -> RunFiles:
        """This process's files, of a new run or of one that is gone on with."""
        files = None
        if self.workers.is_first:
            files = self._first_files()
        meta = self.workers.of_first(files.meta if files else self.meta)
        if files is None:
            files = RunFiles(self.logdir, meta, rank=self.workers.rank)
            if self.settings.resume:
                files.rows = files.rows_left()
        return files

    def _first_files(self) -> RunFiles:
        if self.settings.resume:
            found = RunFiles.unfinished(self.logdir, self.meta["fingerprint"])
            if found is not None:
                notice(f"going on with {found.meta['run_id']}: {len(found.rows)} requests are done")
                return found
            notice(f"no unfinished run of these settings in {self.logdir}; starting one")
        return RunFiles.start(self.logdir, self.meta)

    def _known_rows(self, files: RunFiles) -> list[Row]:
        """Rows of earlier processes, wherever they lie; a folder that is shared has them once."""
        known = {
            (row["context_tokens"], row["first_sample"], row["batch_size"], row["success"]): row
            for rows in self.workers.gathered(files.rows)
            for row in rows
        }
        files.rows = []
        return list(known.values())

    def _finished(
        self, files: RunFiles, tracker: Tracker, summaries: Summaries, times: dict[str, float]
    ) -> dict[str, Any] | None:
        """The full results, written, logged and shown; None in processes other than the first."""
        summary = summaries.of_run() | times
        self.failure = outcomes.failure(summary, summaries.rows)
        if not self.workers.is_first:
            return None
        kernels = {
            phase: {str(s.get(f"kernel_{phase}", "")) for s in summaries.made} - {""}
            for phase in ("prefill", "decode")
        }
        files.meta["kernel"] = {phase: "+".join(sorted(names)) for phase, names in kernels.items()}
        full = files.finish(summaries.rows, summaries.made, summary)
        self.results_path = files.full_path
        tracker.finish(summaries.rows, summary)
        if self.shares_prefill:
            return full  # told beside the others
        stdout.print(tables.table_of([full]))
        tables.print_predictions(full)
        tables.print_paths([files.summaries_path, files.full_path])
        return full

    def _keep_what_is_there(
        self, files: RunFiles, known: Sequence[Row], summaries: Summaries
    ) -> None:
        """Write summaries of an interrupted run, and say how to go on with it."""
        for context_tokens in self.settings.contexts[len(summaries.made) :]:
            rows = [r for r in [*known, *files.rows] if r["context_tokens"] == context_tokens]
            if rows:
                summaries.made.append(summaries.of_context(context_tokens, rows, {}))
        if self.workers.is_first:
            files.write_summaries(summaries.made)
            notice(
                f"interrupted: {len(files.rows)} new requests are kept in {files.journal}; the "
                f"same command with RESUME=1 goes on"
            )
        files.release()
