"""Runs of which nothing comes: every request failed, or the model does not fit."""

import sys

import pytest

import narrativeqa_eval
from longctx import cli, config, models, runner
from longctx.errors import SettingError
from tests.runs import environ, run
from tests.test_faults import NO_HANDLE, fail

pytestmark = pytest.mark.model


def test_a_run_of_failures_alone_ends_as_one_and_is_not_done(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    values = environ(tiny_folder, tmp_path, CONTEXTS="200", N_SAMPLES="2", SKIP_DONE="1")
    monkeypatch.setattr(sys, "argv", ["narrativeqa_eval.py"])
    fail(monkeypatch, lambda ids: True, ZeroDivisionError("nothing"))
    with pytest.raises(SystemExit) as ended:
        cli.main(narrativeqa_eval.TASK, "", values)
    assert ended.value.code == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "error: 2 of 2 requests failed; the first: ZeroDivisionError: nothing"
    assert len(list(tmp_path.glob("*_full.json"))) == 1
    task = narrativeqa_eval.TASK
    assert not runner.Run(task, *config.read(task.settings, values)).is_done()
    assert "2 of 2 requests failed; run again" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_one_line(tiny_folder, tmp_path, monkeypatch):
    def load(*_):
        raise ValueError("Some modules are dispatched on the CPU") from NO_HANDLE

    monkeypatch.setattr(models, "load", load)
    with pytest.raises(
        SettingError, match=r"MODEL_ID=.*does not fit into memory \(CUDA error: CUB"
    ):
        run(tiny_folder, tmp_path, CONTEXTS="200", N_SAMPLES="1")
    assert list(tmp_path.iterdir()) == []
