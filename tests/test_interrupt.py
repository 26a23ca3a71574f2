"""Ctrl-C at the moments when files are begun and ended."""

import os
import signal
import threading
import time

import pytest

from longctx import run_files
from longctx.interrupt import Terminated, held_back, sigterm_raises
from longctx.run_files import RunFiles
from tests.saved_runs import full_results, journal_meta


@pytest.fixture(autouse=True)
def _another_thread():
    """One that blocks no signal, as libraries have: the kernel may give it the signal."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_waits_for_the_end_of_the_block(number, error):
    done, handlers = [], [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]

    def run():
        with sigterm_raises(), held_back():
            with held_back():
                os.kill(os.getpid(), number)
                time.sleep(0.05)  # until the other thread has had it
                done.append("inner")
            done.append("outer")

    with pytest.raises(error):
        run()
    assert done == ["inner", "outer"]
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers


def test_a_thread_may_write_too():
    def write():
        with held_back():
            done.append(True)

    done = []
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert done


def interrupted(monkeypatch, name):
    """Let a function of run_files be followed by Ctrl-C."""
    real = getattr(run_files, name)

    def function(*arguments):
        result = real(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(run_files, name, function)


def test_a_run_that_is_interrupted_as_it_begins_can_be_gone_on_with(tmp_path, monkeypatch):
    meta = journal_meta()
    with monkeypatch.context() as patch:
        interrupted(patch, "_line")
        with pytest.raises(KeyboardInterrupt):
            RunFiles.start(tmp_path, meta)
    found = RunFiles.unfinished(tmp_path, "f")
    assert found is not None
    assert found.meta == meta


def test_a_run_that_is_interrupted_as_it_ends_leaves_no_journal(tmp_path, monkeypatch):
    files = RunFiles.start(tmp_path, journal_meta())
    interrupted(monkeypatch, "write_whole")
    with pytest.raises(KeyboardInterrupt):
        files.finish([], full_results([0.5])["ctx_summaries"], {})
    assert RunFiles.finished(tmp_path, "f") == files.full_path
    assert not list(tmp_path.glob("*_rows.jsonl"))
