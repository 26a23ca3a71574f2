import gc
import os
import signal
from pathlib import Path

# Two workers on two cores: more threads would only wait for each other. Set before torch is
# imported, and for the processes that tests start: sums in another order could mean other tokens.
os.environ["OMP_NUM_THREADS"] = "1"
# The scripts that tests start import this checkout, whichever one the environment was made for.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
)

import pytest

# A shell without job control starts what is in its background with Ctrl-C ignored, and the
# processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collectstart():
    # Not at the top: a process that hands its tests to workers collects none; they would wait.
    from tests import prepared  # noqa: F401


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
    from longctx import builtin

    return builtin.folder()


@pytest.fixture(scope="session")
def builtin_tokenizer(builtin_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin_folder)
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.fixture(scope="session")
def builtin_model(builtin_folder):
    """In float32: many CPUs take ten times as long in bfloat16."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(builtin_folder, dtype="float32").eval()


@pytest.fixture(scope="session")
def tiny_folder(builtin_tokenizer, tmp_path_factory):
    """A tiny random model that reads the built-in tokenizer's tokens, as a local folder."""
    from tests.models import tiny

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model = tiny(vocab_size=49152, max_position_embeddings=4096)
    model.generation_config.eos_token_id = builtin_tokenizer.eos_token_id
    model.save_pretrained(folder)
    builtin_tokenizer.save_pretrained(folder)
    os.environ["WARM_MODEL"] = str(folder)  # of tests/preload.py
    return folder


@pytest.fixture
def exact_products():
    import torch

    # Not by monkeypatch: at the end it would delete the flag, which is no attribute of its own.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser, which the tests of one file share."""
    from tests import browser

    one = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Write the page of a folder and open it; nothing may go wrong until the test's end."""
    from longctx.report import __main__ as report

    chromium.problems.clear()
    chromium.requests.clear()

    def open_report(paths, width=1280, **settings):
        output = tmp_path / "report.html"
        report.write(paths, output, **{"samples": 20} | settings)
        chromium.view(width, 900)
        chromium.open(output)
        return chromium

    yield open_report
    assert chromium.problems == []
    assert [url for url in chromium.requests if not url.startswith("file:")] == []
    assert len(chromium.requests) == 1
