"""Records of a data set, from the hub or from a local file, and their fingerprint."""

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from longctx import hub
from longctx.config import SettingError
from longctx.console import notice
from longctx.settings import Settings

_BUILDER_OF_SUFFIX = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}

Record = dict[str, Any]


def read(settings: Settings) -> list[Record]:
    """The first N_SAMPLES records of DATASET_ID. Raises SettingError when they cannot be had."""
    dataset_id = settings.dataset_id
    path = Path(dataset_id)
    is_file = path.suffix in _BUILDER_OF_SUFFIX
    if is_file and not path.is_file():
        raise SettingError("DATASET_ID", dataset_id, "no such file")
    if path.is_file() and not is_file:
        kinds = ", ".join(_BUILDER_OF_SUFFIX)
        raise SettingError("DATASET_ID", dataset_id, f"is none of the kinds {kinds}")
    try:
        import datasets
    except ImportError:
        raise SettingError(
            "DATASET_ID", dataset_id, "needs the package datasets: pip install datasets"
        ) from None
    datasets.disable_progress_bars()
    try:
        if is_file:
            rows = datasets.load_dataset(
                _BUILDER_OF_SUFFIX[path.suffix], data_files=str(path), split="train"
            )
        else:
            hub.go_offline_if_unreachable()
            # Streamed: of NarrativeQA's gigabytes only the first rows are fetched.
            rows = datasets.load_dataset(
                dataset_id, settings.dataset_config, split=settings.split, streaming=True
            )
        records = list(itertools.islice(iter(rows), settings.n_samples))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SettingError("DATASET_ID", dataset_id, _problem(error, is_file)) from error
    if not records:
        raise SettingError("DATASET_ID", dataset_id, "holds no records")
    if len(records) < settings.n_samples:
        notice(f"{dataset_id} has {len(records)} samples; N_SAMPLES={settings.n_samples} takes all")
    return records


def _problem(error: Exception, is_file: bool) -> str:
    detail = (str(error).strip() or type(error).__name__).splitlines()[0]
    if is_file:
        return f"cannot be read: {detail}"
    return (
        f"cannot be had from the hub: {detail} (gated: `hf auth login`; without a network: a local "
        f"file, or DATASET_ID=synthetic)"
    )


def fingerprint(texts: Iterable[str]) -> str:
    """Sixteen hex digits that change when any of the texts does."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    return digest.hexdigest()[:16]
