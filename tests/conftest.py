import copy
import functools
import gc
import os
import signal
from pathlib import Path

# Two workers on two cores: more threads would only wait for each other. Set before torch is
# imported, and for the processes that tests start: sums in another order could mean other tokens.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton, as transformers may: its interpreter runs the decode kernels.
    os.environ["TRITON_INTERPRET"] = "1"

from transformers import AutoTokenizer

from longctx import builtin
from tests.models import tiny

# A shell without job control starts what is in its background with Ctrl-C ignored, and the
# processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A run reads its tokenizer anew, which takes longer than its requests on a tiny model.
_read_tokenizer = AutoTokenizer.from_pretrained


@functools.cache
def _tokenizer(path, _, options):
    return _read_tokenizer(path, **dict(options))


def _tokenizer_once(path, **options):
    """A copy of the one that was read from the same files before; its settings are its own."""
    files = [(file, file.stat()) for file in Path(path).glob("*.j*")]
    key = [(str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in files]
    if not key:
        return _read_tokenizer(path, **options)
    return copy.copy(_tokenizer(str(path), tuple(sorted(key)), tuple(sorted(options.items()))))


AutoTokenizer.from_pretrained = _tokenizer_once


def pytest_collection_finish():
    # Each run collects what earlier ones left; what was imported needs no look at every time.
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


def pytest_addoption(parser):
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="a skipped test fails, unless it needs a GPU or what lies beside the project",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    return _failed_if_skipped(report, item)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _failed_if_skipped(report, collector)


def _failed_if_skipped(report, item):
    if not report.skipped or hasattr(report, "wasxfail") or not item.config.option.no_skips:
        return report
    reason = str(report.longrepr[2])
    if "../shared" not in reason and item.get_closest_marker("gpu") is None:
        report.outcome, report.longrepr = "failed", f"{reason} (and --no-skips is given)"
    return report


@pytest.fixture(scope="session")
def builtin_folder():
    """Folder of the built-in model; `make setup` installs its package."""
    return builtin.folder("smollm2-135m")


@pytest.fixture(scope="session")
def builtin_tokenizer(builtin_folder):
    tokenizer = AutoTokenizer.from_pretrained(builtin_folder)
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.fixture(scope="session")
def tiny_folder(builtin_tokenizer, tmp_path_factory):
    """A tiny random model that reads the built-in tokenizer's tokens, as a local folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model = tiny(vocab_size=49152, max_position_embeddings=4096)
    model.generation_config.eos_token_id = builtin_tokenizer.eos_token_id
    model.save_pretrained(folder)
    builtin_tokenizer.save_pretrained(folder)
    os.environ["WARM_MODEL"] = str(folder)  # of tests/preload.py
    return folder
