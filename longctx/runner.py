"""One evaluation run: settings checked first, then model, contexts, requests, results."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longctx import figures, models, outcomes, plan, preflight, run_metadata, tables, tiny_model
from longctx.config import Environment
from longctx.console import notice, stdout
from longctx.distributed import Processes
from longctx.errors import CannotRunError
from longctx.interrupt import Terminated
from longctx.requests import ContextRun, Requests
from longctx.results import Row, Summary
from longctx.run_files import RunFiles
from longctx.settings import Settings
from longctx.shared_resources import SharedResources
from longctx.summaries import Summaries
from longctx.task import Task
from longctx.tracking import Tracker


class Run:
    """A run from its settings to its files; `shared` may be shared with other runs.

    failure: why nothing came of it although it is finished, the same in all processes; else None.
    results_path: its full results, once they are there; None in processes other than the first.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        environ: Environment,
        shared: SharedResources | None = None,
    ):
        self.failure: str | None = None
        self.results_path: Path | None = None
        self.shared = shared or SharedResources()
        settings = preflight.choose_backend(settings, environ)
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
        preflight.check_prefill(settings, self.source)
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
        self.meta = run_metadata.run_meta(
            task, settings, environ, self.source, self.samples, self.builder
        )

    def execute(self) -> dict[str, Any] | None:
        """Load the model, run every context, write everything.

        Returns the full results; None where they were there before, and in processes other than
        the first.
        """
        if self._is_done():
            return None
        settings, workers, began = self.settings, self.workers, time.perf_counter()
        # Before any file: a model that cannot be loaded leaves nothing behind.
        model, loading = self.shared.model(settings, self.source, self.quantization)
        self.meta["loading"] = loading.meta()
        requests = Requests(
            self.task,
            settings,
            self.source,
            self.builder,
            self.attention,
            plan.make(
                settings,
                self.source,
                model,
                backend=self.attention or settings.attn_impl,
                pruning=self.pruning,
                choice_tokens=self.choice_tokens,
                is_first=workers.is_first,
            ),
            workers,
        )
        files = self._files()
        known = self._known_rows(files)
        made = Summaries(
            self.task,
            settings,
            files.meta,
            self.samples,
            has_quality=not self.source.is_random,
            is_pruned=self.pruning is not None,
            weights_gb=figures.gigabytes(models.weight_bytes(model)),
        )
        tracker = Tracker(settings, files.meta, self.task.score_names, writes=workers.is_first)
        rows: list[Row] = []
        summaries: list[Summary] = []
        too_long: int | None = None
        try:
            for context_tokens in settings.contexts:
                samples = self.samples[context_tokens]
                pairs = requests.pairs(context_tokens, samples)
                made.n_left_out[context_tokens] = len(samples) - len(pairs)
                mine = [row for row in known if row["context_tokens"] == context_tokens]
                context = ContextRun(requests, pairs, made.identity(context_tokens), mine, files)
                is_skipped = too_long is not None and context_tokens >= too_long
                if not is_skipped:
                    context.run()
                found, timing = context.gathered()
                if settings.oom == "stop" and any(row.get("oom") for row in found):
                    too_long = min(context_tokens, too_long or context_tokens)
                rows += found
                timing["skipped_after_oom_at"] = too_long if is_skipped else None
                summaries.append(made.of_context(context_tokens, found, timing))
                if workers.is_first:
                    made.note_untimed(summaries[-1])
                    files.write_summaries(summaries)
                    tracker.context(summaries[-1])
        except CannotRunError:
            files.release()
            if not known and not files.rows:
                files.journal.unlink(missing_ok=True)
            raise
        except (KeyboardInterrupt, Terminated):
            self._keep_what_is_there(files, known, made, summaries)
            tracker.interrupted()
            raise
        except OSError as error:
            tracker.interrupted()
            raise SystemExit(
                f"error: LOGDIR={settings.logdir}: {error.strerror}; finished requests are "
                f"kept in {files.journal}, for RESUME=1"
            ) from error
        summary = made.of_run(rows, summaries) | {
            "load_s": loading.seconds,
            "wall_s": time.perf_counter() - began,
        }
        self.failure = outcomes.failure(summary, rows)
        full = self._finished(files, tracker, rows, summaries, summary)
        workers.leave()
        files.journal.unlink(missing_ok=True)
        return full

    def _is_done(self) -> bool:
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
        self,
        files: RunFiles,
        tracker: Tracker,
        rows: Sequence[Row],
        summaries: Sequence[Summary],
        summary: dict[str, Any],
    ) -> dict[str, Any] | None:
        """The full results, written, logged and shown; None in processes other than the first."""
        if not self.workers.is_first:
            return None
        files.meta["kernel"] = {
            phase: "+".join(sorted({str(s.get(f"kernel_{phase}", "")) for s in summaries} - {""}))
            for phase in ("prefill", "decode")
        }
        full = files.finish(rows, summaries, summary)
        self.results_path = files.full_path
        tracker.finish(rows, summary)
        stdout.print(tables.table_of([full]))
        tables.print_predictions(full)
        tables.print_paths([files.summaries_path, files.full_path])
        return full

    def _keep_what_is_there(
        self,
        files: RunFiles,
        known: Sequence[Row],
        made: Summaries,
        summaries: Sequence[Summary],
    ) -> None:
        """Write summaries of an interrupted run, and say how to go on with it."""
        there = [*known, *files.rows]
        rest = [
            made.of_context(context_tokens, rows, {})
            for context_tokens in self.settings.contexts[len(summaries) :]
            if (rows := [row for row in there if row["context_tokens"] == context_tokens])
        ]
        if self.workers.is_first:
            files.write_summaries([*summaries, *rest])
            notice(
                f"interrupted: {len(files.rows)} new requests are kept in {files.journal}; the "
                f"same command with RESUME=1 goes on"
            )
        files.release()
