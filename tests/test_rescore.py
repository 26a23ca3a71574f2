"""Old results by today's scores: answers stay, scores and their summaries are made again."""

import gzip
import json
import sys

import pytest

from longctx import load_results, rescore
from tests.saved_runs import full_results


def old_run(**changes):
    full = full_results(
        [0.5, 0.25, 0.25],
        score_names=["meteor"],
        variables={"SEED": 0, "DATASET_ID": "d"},
        **changes,
    )
    answers = (("12345", "12345."), ("no idea", "no idea"), ("54321", "It is 54321"))
    for row, (reference, output) in zip(full["rows"], answers, strict=True):
        (sample,) = row["samples"]
        reference = reference if reference.isdigit() else "99999"
        sample |= {"references": [reference], "prediction": output, "output": output}
    return full


def test_scores_and_summaries_are_those_of_today(tmp_path, monkeypatch):
    path = tmp_path / "m_full.json.gz"
    path.write_bytes(gzip.compress(json.dumps(old_run()).encode()))
    lines = tmp_path / "m_sdpa_20260101-000000.jsonl"
    lines.write_text("{}\n")
    monkeypatch.setattr(sys, "argv", ["rescore", str(path)])
    rescore.main()
    full = load_results.read(path)
    samples = [row["samples"][0] for row in full["rows"]]
    assert [sample["contains"] for sample in samples] == [1, 0, 1]
    assert [sample["em"] for sample in samples] == [1, 0, 0]
    assert [sample["answered"] for sample in samples] == [True, False, True]
    assert full["run_meta"]["score_names"][:3] == ["contains", "em", "f1"]
    assert len(full["run_meta"]["rescored"]) == 16
    (summary,) = full["ctx_summaries"]
    assert summary["contains"] == pytest.approx(2 / 3)
    assert summary["contains_floor"] == 0
    assert full["summary"]["contains"] == {"512": summary["contains"]}
    assert summary["ttft_ms_p50"] == 105
    assert json.loads(lines.read_text())["contains"] == summary["contains"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"task": "other"}, "is of other, whose script is not here"),
        ({"variables": {"MODEL_ID": "random/x"}}, "random weights"),
    ],
)
def test_what_cannot_be_scored_again_is_one_line(tmp_path, monkeypatch, capsys, changes, why):
    path = tmp_path / "m_full.json"
    full = old_run()
    full["run_meta"]["task"] = changes.get("task", "narrativeqa")
    full["run_meta"]["variables"] |= changes.get("variables", {})
    before = json.dumps(full)
    path.write_text(before)
    monkeypatch.setattr(sys, "argv", ["rescore", str(path)])
    with pytest.raises(SystemExit, match="2"):
        rescore.main()
    assert why in capsys.readouterr().err
    assert path.read_text() == before
