"""Token counts of any data set and field with any tokenizer, and the share that fits each context.

A text that several records have, as NarrativeQA's questions share their book, is recognised by its
SHA-256 and counted once; how many records have it is kept. Percentiles are over texts, each taken
once; shares are given over texts and over records. Counted is the field's text alone, without
special tokens: a prompt adds instructions and a question to it.

Records are streamed and texts tokenized in batches by the tokenizer's own threads, so memory holds
one batch, and of former batches a digest and a number each. Counts are cached in HF_HOME: the same
data, field and tokenizer are not counted again.
"""

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import MinLen
from huggingface_hub.constants import HF_HOME
from pydantic import create_model
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from context_histograms import fields
from longctx import (
    cli,
    config,
    data,
    gutenberg,
    results,
    settings_help,
    statistics,
    synthetic,
    tables,
)
from longctx.config import Environment, variable
from longctx.console import notice, printable, stderr, stdout
from longctx.errors import SettingError
from longctx.settings import PositiveInt, redefault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIT_TOKENS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
_PERCENTS = (5, 25, 50, 75, 95)
# A core's share of a batch; a token takes the tokenizer about 100 bytes until it is counted.
_BATCH_CHARACTERS = 1_000_000 * (os.cpu_count() or 1)
# Part of the cache's key: goes up when texts are joined or counted in another way.
_VERSION = 2
# The field of NarrativeQA's schema that holds books.
_BOOKS = "document.text"

DATASET_HELP = "hub id, or a local `.json`, `.jsonl` or `.parquet` file"

Result = dict[str, Any]
_COUNT = create_model("_COUNT", tokens=int, samples=int, groups=dict[str, int])
_COUNTED = create_model("_COUNTED", n_missing=int, counts=list[_COUNT])  # type: ignore[valid-type]
AnySettings = TypeVar("AnySettings", bound="DataSettings")


@dataclass(frozen=True)
class DataSettings:
    """What is counted with which tokenizer; the settings of all scripts in this folder."""

    model_id: Annotated[str, MinLen(1)] = variable(
        "mistralai/Mistral-7B-Instruct-v0.3",
        "the tokenizer: Hugging Face id, local folder or the built-in `smollm2-135m`",
    )
    gguf_file: str = redefault("gguf_file", "")
    trust_remote_code: bool = redefault("trust_remote_code", False)
    dataset_id: Annotated[str, MinLen(1)] = variable("deepmind/narrativeqa", DATASET_HELP)
    dataset_config: Annotated[str, MinLen(1)] | None = variable(
        None, "configuration of a hub data set, such as HotpotQA's `distractor`"
    )
    split: Annotated[str, MinLen(1)] = redefault("split", "test")
    n_samples: PositiveInt | None = variable(None, "records, the first of the split; unset: all")
    logdir: Annotated[str, MinLen(1)] = redefault("logdir", "./logs/tokens")


@dataclass(frozen=True)
class CountSettings(DataSettings):
    """The settings of this script."""

    field: Annotated[str, MinLen(1)] = variable(
        "document.text",
        "dotted path of the text; a list's texts are joined, each a line",
    )
    group_by: Annotated[str, MinLen(1)] | None = variable(
        None, "field with a label, such as LongBench-v2's `length`, to count by as well"
    )


def token_counts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[int]:
    """Tokens of each text without special tokens; a fast tokenizer uses all cores."""
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return list(map(len, encoded["input_ids"]))


def count(
    texts: Iterable[tuple[str | None, str | None]], tokenizer: "PreTrainedTokenizerBase"
) -> Result:
    """Counts of (text, label) pairs: a text once, with how many records have it, by label too."""
    tokens: dict[bytes, int] = {}
    records: Counter[tuple[bytes, str | None]] = Counter()
    batch: dict[bytes, str] = {}
    n_missing = characters = 0

    def finish_batch() -> None:
        tokens.update(zip(batch, token_counts(tokenizer, [*batch.values()]), strict=True))
        batch.clear()

    for text, label in texts:
        if text is None:
            n_missing += 1
            continue
        digest = hashlib.sha256(text.encode()).digest()
        records[digest, label] += 1
        if digest in tokens or digest in batch:
            continue
        batch[digest] = text
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            finish_batch()
            characters = 0
    if batch:
        finish_batch()
    entries: dict[bytes, Result] = {
        digest: {"tokens": number, "samples": 0, "groups": {}} for digest, number in tokens.items()
    }
    for (digest, label), n_records in records.items():
        entries[digest]["samples"] += n_records
        if label is not None:
            entries[digest]["groups"][label] = n_records
    return {"n_missing": n_missing, "counts": list(entries.values())}


def summarize(counts: Sequence[Result], label: str | None = None) -> Result:
    """Percentiles over texts, each once; shares that fit over texts and over records (samples).

    label: only of the records that have it.
    """
    pairs = samples_by_tokens(counts, label)
    tokens, n_samples = [number for number, _ in pairs], sum(samples for _, samples in pairs)
    return {
        "n_texts": len(pairs),
        "n_samples": n_samples,
        "min": min(tokens),
        **{f"p{percent}": statistics.percentile(tokens, percent) for percent in _PERCENTS},
        "max": max(tokens),
        "mean": statistics.mean(tokens),
        "texts_that_fit": {
            str(limit): sum(number <= limit for number in tokens) / len(pairs)
            for limit in FIT_TOKENS
        },
        "samples_that_fit": {
            str(limit): sum(samples for number, samples in pairs if number <= limit) / n_samples
            for limit in FIT_TOKENS
        },
    }


def samples_by_tokens(counts: Sequence[Result], label: str | None) -> list[tuple[int, int]]:
    """(tokens, records) of each text; with a label, of the records that have it."""
    if label is None:
        return [(entry["tokens"], entry["samples"]) for entry in counts]
    return [(e["tokens"], e["groups"][label]) for e in counts if label in e["groups"]]


def measure(settings: DataSettings, field: str, group_by: str | None = None) -> Result:
    """Count one field, or take its counts from the cache; with summaries. Raises SettingError."""
    # Here and in `main`, for help and wrong settings need none of what these import for seconds.
    from longctx import environment, models, run_metadata

    if settings.dataset_id in synthetic.DATASET_IDS:
        problem = "is written to fit each context; count a file or a hub data set"
        raise SettingError("DATASET_ID", settings.dataset_id, problem)
    source = data.find(settings.dataset_id, settings.split, settings.dataset_config)
    tokenizer = models.find_tokenizer(
        settings.model_id, settings.trust_remote_code, settings.gguf_file
    )
    identity = {
        "data_fingerprint": source.fingerprint(),
        "tokenizer_fingerprint": data.fingerprint(
            [tokenizer.backend_tokenizer.to_str(), str(tokenizer.split_special_tokens)]
        ),
        "dataset_config": None if source.is_file else settings.dataset_config,
        "split": None if source.is_file else settings.split,
        "field": field,
        "group_by": group_by,
        "n_samples": settings.n_samples,
    }

    def count_all() -> Result:
        records = itertools.islice(source.records(), settings.n_samples)
        shown = track(
            records,
            f"counting {field}",
            total=settings.n_samples,
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        texts = fields.texts(shown, field, group_by)
        if field == _BOOKS:
            texts = ((text and gutenberg.story(text), label) for text, label in texts)
        return count(texts, tokenizer)

    counted = _cached(identity, count_all)
    counts, n_missing = counted["counts"], counted["n_missing"]
    if not counts:
        if not n_missing:
            raise SettingError("DATASET_ID", settings.dataset_id, data.NO_RECORDS)
        raise SettingError("FIELD", field, f"is null in all {n_missing} records")
    n_records = n_missing + sum(entry["samples"] for entry in counts)
    if settings.n_samples is not None and n_records < settings.n_samples:
        notice(f"{settings.dataset_id} has {n_records} samples; that is all")
    labels = {label for entry in counts for label in entry["groups"]}
    groups = {label: summarize(counts, label) for label in labels}
    return {
        "dataset": settings.dataset_id,
        "tokenizer": run_metadata.model_name(settings.model_id),
        **identity,
        "summary": summarize(counts),
        "groups": dict(sorted(groups.items(), key=lambda item: (item[1]["p50"], item[0]))),
        **counted,
        "versions": environment.versions(),
    }


def _cached(identity: Result, compute: Callable[[], Result]) -> Result:
    key = results.fingerprint(identity | {"version": _VERSION}, identity["data_fingerprint"])
    path = Path(HF_HOME) / "longctx" / "token_counts" / f"{key}.json"
    try:
        counted: Result = _COUNTED.model_validate_json(path.read_bytes()).model_dump()
    except (OSError, ValueError):  # none there, or torn, or of something else
        counted = compute()
    else:
        notice(f"counted before: {path}")
        return counted
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        results.write_whole(path, json.dumps(counted))
    except OSError as error:
        notice(f"these counts are not kept for a next time: {error}")
    return counted


def table_of(result: Result) -> Table:
    """A column for all texts, and one for each label."""
    title = f"{Path(result['dataset']).name}: {result['field']}"
    table = Table(title=escape(printable(title)), title_justify="left")
    columns = {"all": result["summary"], **result["groups"]}
    table.add_column(f"tokens of {escape(result['tokenizer'])}")
    for label in columns:
        table.add_column(escape(printable(label)), justify="right")
    names = {"n_samples": "samples", "n_texts": "different texts", "p50": "p50 (median)"}
    for key in ("n_samples", "n_texts", "min", *(f"p{n}" for n in _PERCENTS), "max", "mean"):
        cells = (tables.number_text(summary[key], 0) for summary in columns.values())
        table.add_row(names.get(key, key), *cells)
    table.add_section()
    for limit in FIT_TOKENS:
        shares = (summary["samples_that_fit"][str(limit)] for summary in columns.values())
        table.add_row(f"samples that fit {limit:,}", *(f"{share:.1%}" for share in shares))
    if result["n_missing"]:
        table.caption = f"{result['n_missing']:,} records have no text there"
    return table


def main(
    settings_class: type[AnySettings],
    description: str,
    work: Callable[[AnySettings, Environment, Path], list[Path]],
    environ: Mapping[str, str] | None = None,
) -> None:
    """Run a script of this folder: `work` writes into the folder LOGDIR and names its files.

    Exit code 2 for a setting that cannot be used.
    """
    cli.parser(description, epilog=settings_help.help_text(settings_class)).parse_args()
    with cli.exit_codes():
        settings, known = config.read(settings_class, environ)
        from longctx import preflight

        paths = work(settings, known, preflight.writable_folder(settings.logdir))
    tables.print_paths(paths)


def _work(settings: CountSettings, environ: Environment, folder: Path) -> list[Path]:
    result = measure(settings, settings.field, settings.group_by)
    result["command"] = environ.command(settings, "context_histograms/count_tokens.py")
    name = Path(result["dataset"]).stem if result["split"] is None else result["dataset"]
    size = settings.n_samples and f"N{settings.n_samples}"
    parts = (name, result["split"], result["field"], settings.group_by, result["tokenizer"], size)
    name = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part) for part in parts if part)
    path = folder / f"{name.lstrip('.-')}.json"
    results.write_whole(path, json.dumps(result, indent=1) + "\n")
    stdout.print(table_of(result))
    return [path]


if __name__ == "__main__":
    main(CountSettings, __doc__, _work)
