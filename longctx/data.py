"""Records of a data set, from the hub or from a local file, and their fingerprint."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx import hub
from longctx.config import SettingError
from longctx.console import notice
from longctx.redaction import reason
from longctx.settings import Settings

NO_RECORDS = "holds no records"
# How each kind of file is read; few rows at a time of Parquet, whose row groups can be huge.
_READER_OF_SUFFIX: dict[str, dict[str, Any]] = {
    ".json": {"path": "json"},
    ".jsonl": {"path": "json"},
    ".parquet": {"path": "parquet", "batch_size": 16},
}

Record = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One split of a data set, found but not read yet. `rows` gives a record at a time."""

    dataset_id: str
    is_file: bool
    rows: Iterable[Record]
    commit: str

    def records(self) -> Iterator[Record]:
        """All records, streamed: of a `.json` file that is one array alone, everything is read at
        once. Raises SettingError.
        """
        with _clear_errors(self.dataset_id, self.is_file):
            yield from self.rows

    def fingerprint(self) -> str:
        """Changes when the data set does: a file's content, a hub data set's commit."""
        if not self.is_file:
            return self.commit
        with open(self.dataset_id, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def find(dataset_id: str, split: str, dataset_config: str | None = None) -> Source:
    """The split of a hub data set, or a file, which is one split. Raises SettingError."""
    path = Path(dataset_id)
    is_file = path.suffix in _READER_OF_SUFFIX
    if is_file and not path.is_file():
        raise SettingError("DATASET_ID", dataset_id, "no such file")
    if path.is_file() and not is_file:
        kinds = ", ".join(_READER_OF_SUFFIX)
        raise SettingError("DATASET_ID", dataset_id, f"is none of the kinds {kinds}")
    if is_file and not path.stat().st_size:
        raise SettingError("DATASET_ID", dataset_id, NO_RECORDS)
    try:
        import datasets
    except ImportError:
        raise SettingError(
            "DATASET_ID", dataset_id, "needs the package datasets: pip install datasets"
        ) from None
    datasets.disable_progress_bars()
    # What goes wrong is said in one line, by SettingError.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    with _clear_errors(dataset_id, is_file):
        if is_file:
            reader = _READER_OF_SUFFIX[path.suffix]
            builder = datasets.load_dataset_builder(**reader, data_files=str(path))
        else:
            hub.go_offline_if_unreachable()
            builder = datasets.load_dataset_builder(dataset_id, dataset_config)
        # Streamed: of NarrativeQA's gigabytes only the rows that are used are fetched.
        rows = builder.as_streaming_dataset(split="train" if is_file else split)
    return Source(dataset_id, is_file, rows, commit=builder.hash)


def read(settings: Settings) -> list[Record]:
    """The first N_SAMPLES records of DATASET_ID. Raises SettingError when they cannot be had."""
    dataset_id = settings.dataset_id
    source = find(dataset_id, settings.split, settings.dataset_config)
    records = list(itertools.islice(source.records(), settings.n_samples))
    if not records:
        raise SettingError("DATASET_ID", dataset_id, NO_RECORDS)
    if len(records) < settings.n_samples:
        notice(f"{dataset_id} has {len(records)} samples; N_SAMPLES={settings.n_samples} takes all")
    return records


@contextmanager
def _clear_errors(dataset_id: str, is_file: bool) -> Iterator[None]:
    import datasets

    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SettingError("DATASET_ID", dataset_id, _problem(error, is_file)) from error


def _problem(error: Exception, is_file: bool) -> str:
    if is_file:
        return f"cannot be read: {reason(error)}"
    return (
        f"cannot be had from the hub: {reason(error)} (gated: `hf auth login`; without a network: "
        f"a local file, or DATASET_ID=synthetic)"
    )


def fingerprint(texts: Iterable[str]) -> str:
    """Sixteen hex digits that change when any of the texts does."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    return digest.hexdigest()[:16]
