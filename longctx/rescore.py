"""Old results by today's scores: `python -m longctx.rescore RUN_full.json ...`.

Scores, whether a sample is answered, and what the summaries say of both are made again from the
stored predictions and outputs. All else stays: prompts, answers, times, memory. `rescored` in the
run's meta data says by which code.
"""

import gzip
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from longctx import cli, load_results, outcomes, result_schema, results, run_metadata, scoring
from longctx.answers import is_answer
from longctx.errors import SettingError
from longctx.load_results import FullResults
from longctx.results import Row, Summary
from longctx.task import Task


def task_named(name: str) -> Task | None:
    """The task of a script that is here: `{name}_eval.py`, or one in `flex_pipeline/`."""
    modules = (f"{name}_eval", f"flex_pipeline.{name}") if name.isidentifier() else ()
    found = next((module for module in modules if importlib.util.find_spec(module)), None)
    return getattr(importlib.import_module(found), "TASK", None) if found else None


def rescored(full: FullResults) -> FullResults:
    """The results by today's scores; `full` itself is changed. Raises ValueError."""
    meta = full["run_meta"]
    task = task_named(meta["task"])
    if task is None:
        raise ValueError(f"is of {meta['task']}, whose script is not here")
    if meta["variables"]["MODEL_ID"].startswith("random/"):
        raise ValueError("is of random weights, whose answers have no scores")
    task = _for_data(task, full)
    for row in full["rows"]:
        _score(task, row)
    outcomes.complete(full)
    for summary in full["ctx_summaries"]:
        length = summary["context_tokens"]
        rows = [row for row in full["rows"] if row["context_tokens"] == length]
        seed = meta["variables"]["SEED"]
        quality = results.quality_summary(
            rows,
            task.score_names,
            groups=task.groups,
            chance=task.chance,
            seed=seed,
            failures=outcomes.n_failures(summary),
        )
        summary.update(quality | scoring.floors(task, rows, seed))
    meta["score_names"] = list(task.score_names)
    meta["rescored"] = run_metadata.code_fingerprint()
    full["summary"] |= results.quality_by_length(full["ctx_summaries"], task.score_names)
    return full


def _for_data(task: Task, full: FullResults) -> Task:
    samples: list[Any] = [
        SimpleNamespace(references=sample["references"])
        for row in full["rows"]
        for sample in row["samples"]
    ]
    settings = SimpleNamespace(dataset_id=full["run_meta"]["variables"]["DATASET_ID"])
    return task.for_data(settings, samples)  # type: ignore[arg-type]


def _score(task: Task, row: Row) -> None:
    samples = row["samples"]
    references = [sample["references"] for sample in samples]
    answers = [sample["prediction"] for sample in samples]
    texts = [sample["output"] for sample in samples]
    is_compared = any("choice_log_probs" in sample for sample in samples)
    scores = scoring.all_scores(task, answers, None if is_compared else texts, references, samples)
    for sample, mine in zip(samples, scores, strict=True):
        sample |= {name: mine.get(name) for name in task.score_names}
        sample["answered"] = is_answer(sample["prediction"])


def _rewrite(path: Path) -> None:
    """Raises SettingError for a file that cannot be scored again."""
    try:
        full = load_results.parsed(load_results.content_of(path))
        result_schema.check(full)
        full = rescored(full)
    except ValueError as error:
        raise SettingError("file", path, str(error)) from None
    text = json.dumps(results.plain(full), indent=1) + "\n"
    lines: list[Summary] = full["ctx_summaries"]
    is_packed = path.suffix == ".gz"
    results.write_whole(path, gzip.compress(text.encode(), mtime=0) if is_packed else text)
    summaries = path.with_name(f"{full['run_meta']['run_id']}.jsonl")
    if summaries.is_file():
        content = "".join(json.dumps(results.plain(line)) + "\n" for line in lines)
        results.write_whole(summaries, content)


def main() -> None:
    """Rewrite the files named on the command line. Exit code 2 at one that cannot be."""
    parser = cli.parser(__doc__, prog="python -m longctx.rescore")
    parser.add_argument("files", nargs="+", type=Path, metavar="RUN_full.json")
    with cli.exit_codes():
        for path in parser.parse_args().files:
            _rewrite(path)


if __name__ == "__main__":
    main()
