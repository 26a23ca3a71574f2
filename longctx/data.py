"""Records of a data set, from the hub or from a local file, and their fingerprint."""

import codecs
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from longctx import hub
from longctx.console import notice
from longctx.errors import SettingError
from longctx.redaction import in_texts, reason
from longctx.settings import Settings

NO_RECORDS = "holds no records"
_SUFFIXES = (".json", ".jsonl", ".parquet")
_PARQUET_ROWS = 16  # at a time: row groups can be huge
_SURROGATE = re.compile("[\ud800-\udfff]")

Record = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One split of a data set, found but not read yet. `rows` gives a record at a time."""

    dataset_id: str
    is_file: bool
    rows: Callable[[], Iterable[Record]]
    commit: str
    errors: tuple[type[Exception], ...] = (OSError, ValueError)

    def records(self) -> Iterator[Record]:
        """All records, streamed: of a JSON file that is one array alone, everything is read at
        once. Raises SettingError.
        """
        with _clear_errors(self.dataset_id, self.is_file, self.errors):
            yield from self.rows()

    def fingerprint(self) -> str:
        """Changes when the data set does: a file's content, a hub data set's commit."""
        if not self.is_file:
            return self.commit
        with open(self.dataset_id, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def find(dataset_id: str, split: str, dataset_config: str | None = None) -> Source:
    """The split of a hub data set, or a file, which is one split. Raises SettingError."""
    path = Path(dataset_id)
    is_file = path.suffix in _SUFFIXES
    if is_file and not path.is_file():
        raise SettingError("DATASET_ID", dataset_id, "no such file")
    if path.is_file() and not is_file:
        raise SettingError("DATASET_ID", dataset_id, f"is none of the kinds {', '.join(_SUFFIXES)}")
    if is_file and not path.stat().st_size:
        raise SettingError("DATASET_ID", dataset_id, NO_RECORDS)
    if path.suffix in (".json", ".jsonl"):
        return Source(dataset_id, True, partial(_json_records, path), commit="")
    try:
        import datasets
    except ImportError:
        raise SettingError(
            "DATASET_ID", dataset_id, "needs the package datasets: pip install datasets"
        ) from None
    datasets.disable_progress_bars()
    # What goes wrong is said in one line, by SettingError.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    errors = (OSError, ValueError, datasets.exceptions.DatasetsError)
    with _clear_errors(dataset_id, is_file, errors):
        if is_file:
            builder = datasets.load_dataset_builder(
                "parquet", data_files=str(path), batch_size=_PARQUET_ROWS
            )
        else:
            hub.go_offline_if_unreachable()
            builder = datasets.load_dataset_builder(dataset_id, dataset_config)
        # Streamed: of NarrativeQA's gigabytes only the rows that are used are fetched.
        rows = builder.as_streaming_dataset(split="train" if is_file else split)
    return Source(dataset_id, is_file, lambda: rows, builder.hash, errors)


def _json_records(path: Path) -> Iterator[Record]:
    """Records of a file of JSON lines, of one array or of one object, whatever its suffix.

    Read here, line by line, since readers of tables want one type for a column and make times of
    texts that look like dates. Raises OSError, ValueError.
    """
    is_first = True
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(codecs.BOM_UTF8).strip()
            if not text:
                continue
            try:
                found = _parsed(text, number)
            except ValueError:
                if not is_first:
                    raise
                # One array or object over several lines.
                found = _parsed(text + b"\n" + file.read(), number)
            is_first = False
            for record in found if isinstance(found, list) else [found]:
                if not isinstance(record, dict):
                    raise ValueError(f"line {number} holds a record that is no object")
                yield record


def _parsed(text: bytes, first_line: int) -> Any:
    try:
        value = json.loads(text.decode())
        # Only an escape can bring in half of a surrogate pair, which no other file can hold.
        return in_texts(value, _without_surrogates) if b"\\u" in text else value
    except UnicodeDecodeError as error:
        line = first_line + text.count(b"\n", 0, error.start)
        raise ValueError(f"line {line} is no UTF-8") from None
    except json.JSONDecodeError as error:
        problem = f"line {first_line - 1 + error.lineno} is no JSON: {error.msg}"
        raise ValueError(problem) from None
    except RecursionError:
        raise ValueError(f"line {first_line} is nested too deeply") from None


def _without_surrogates(text: str) -> str:
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def read(
    settings: Settings, ordered: Callable[[Any, Iterator[Record]], Iterable[Record]] | None = None
) -> list[Record]:
    """The first N_SAMPLES records of DATASET_ID. Raises SettingError when they cannot be had.

    ordered: settings and all records -> those to take the first of.
    """
    dataset_id = settings.dataset_id
    source = find(dataset_id, settings.split, settings.dataset_config)
    found: Iterable[Record] = source.records()
    if ordered is not None:
        found = ordered(settings, source.records())
    records = list(itertools.islice(found, settings.n_samples))
    if not records:
        raise SettingError("DATASET_ID", dataset_id, NO_RECORDS)
    if len(records) < settings.n_samples:
        notice(f"{dataset_id} has {len(records)} samples; N_SAMPLES={settings.n_samples} takes all")
    return records


@contextmanager
def _clear_errors(
    dataset_id: str, is_file: bool, errors: tuple[type[Exception], ...]
) -> Iterator[None]:
    try:
        yield
    except errors as error:
        problem = f"cannot be read: {reason(error)}"
        if not is_file:
            problem = (
                f"cannot be had from the hub: {reason(error)} (gated: `hf auth login`; without a "
                f"network: a local file, or DATASET_ID=synthetic)"
            )
        raise SettingError("DATASET_ID", dataset_id, problem) from error


def fingerprint(texts: Iterable[str]) -> str:
    """Sixteen hex digits that change when any of the texts does."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    return digest.hexdigest()[:16]
