"""Whole runs of the other two scripts on a tiny model: groups, evidence, chance, both modes."""

import json
import math
import sys

import pytest
import torch

import hotpotqa_eval
import longbench_kv_eval
from longctx import cli, config, runner
from longctx.errors import SettingError
from longctx.prompts import PromptBuilder
from longctx.task import samples_by_context
from tests import runs
from tests.reference import tolerance
from tests.runs import environ, without_timings

pytestmark = pytest.mark.model
LETTERS = ["A", "B", "C", "D"]


def run(script, tiny_folder, logdir, **changes):
    return runs.run(tiny_folder, logdir, script, **changes)


def test_hotpotqa_by_type_and_evidence(tiny_folder, tmp_path, capsys):
    full = run(
        hotpotqa_eval, tiny_folder, tmp_path, CONTEXTS="250", BATCH_SIZE="2", CHAT_TEMPLATE="auto"
    )
    (summary,) = full["ctx_summaries"]
    assert full["run_meta"]["prompt_format"] == "chat template"
    assert summary["evidence_kept_pct"] == 100
    assert summary["total_count"] == 5
    assert {key: group["n"] for key, group in summary["em_by_type"].items()} == {
        "bridge": 3, "comparison": 2,
    }  # fmt: skip
    assert summary["f1_by_evidence_kept"]["true"]["f1"] == summary["f1"]
    assert summary["em_ci95"][0] <= summary["em"] <= summary["em_ci95"][1]
    assert summary["em_ci95"][0] < summary["em_ci95"][1]
    assert "chance" not in summary
    assert "type: bridge" in capsys.readouterr().out


def test_hotpotqa_whose_evidence_is_cut(tiny_folder, tmp_path):
    sentences = ["A sentence that says nothing at all. "] * 60
    record = {
        "id": "é", "question": "Q?", "answer": "", "type": None,
        "supporting_facts": {"title": ["T"], "sent_id": [30]},
        "context": {"title": ["T"], "sentences": [[*sentences[:30], "Key!", *sentences[30:]]]},
    }  # fmt: skip
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record) + "\n")
    full = run(hotpotqa_eval, tiny_folder, tmp_path, DATASET_ID=str(path), CONTEXTS="128,2000")
    cut, whole = full["ctx_summaries"]
    assert (cut["evidence_kept_pct"], whole["evidence_kept_pct"]) == (0, 100)
    # No reference, so no score; no type, so no group.
    assert cut["em"] is cut["em_ci95"] is None
    assert cut["em_by_type"] == {}
    assert cut["em_by_evidence_kept"] == {"false": {"n": 1, "em": None, "em_ci95": None}}


def test_longbench_in_both_modes(tiny_folder, tmp_path, capsys):
    settings = {"N_SAMPLES": "6", "CONTEXTS": "300", "BATCH_SIZE": "4"}
    text = run(longbench_kv_eval, tiny_folder, tmp_path, **settings)["ctx_summaries"][0]
    assert (text["em"], text["answered_pct"]) == (0, 0)
    assert text["chance"] == 0.25
    assert text["em_told_from_chance"] is False
    assert text["em_by_difficulty"]["hard"]["n"] == 3
    assert set(text["em_by_length"]) == {"short"}
    assert "cannot be told from guessing, 0.25" in capsys.readouterr().out

    full = run(
        longbench_kv_eval,
        tiny_folder,
        tmp_path,
        ANSWER_MODE="loglikelihood",
        MAX_NEW_TOKENS="9",
        KV_MODE="l2",
        **settings,
    )
    notes = capsys.readouterr().err
    assert "MAX_NEW_TOKENS has no effect with ANSWER_MODE=loglikelihood" in notes
    assert notes.count("pruning cannot show") == 1
    assert full["ctx_summaries"][0]["answered_pct"] == 100
    assert full["run_meta"]["variables"]["MAX_NEW_TOKENS"] == 1
    for row in full["rows"]:
        assert row["avg_gen_tokens"] == 1
        for sample in row["samples"]:
            log_probs = sample["choice_log_probs"]
            assert list(log_probs) == LETTERS
            assert sum(map(math.exp, log_probs.values())) < 1
            assert sample["prediction"] == max(LETTERS, key=log_probs.get)
            assert sample["em"] == (sample["prediction"] == sample["references"][0])
    alone = run(
        longbench_kv_eval,
        tiny_folder,
        tmp_path,
        ANSWER_MODE="loglikelihood",
        KV_MODE="l2",
        **(settings | {"BATCH_SIZE": "1"}),
    )
    for one, many in zip(
        [s for row in alone["rows"] for s in row["samples"]],
        [s for row in full["rows"] for s in row["samples"]],
        strict=True,
    ):
        wanted = many["choice_log_probs"]
        allowed = tolerance(torch.tensor(list(wanted.values())), 3 * 128)
        assert one["choice_log_probs"] == pytest.approx(wanted, abs=allowed)


def test_a_context_that_is_pruned_before_the_question_shows_in_one_token(tiny_folder, tmp_path):
    def log_probs(**changes):
        full = run(
            longbench_kv_eval,
            tiny_folder,
            tmp_path,
            ANSWER_MODE="loglikelihood",
            N_SAMPLES="2",
            CONTEXTS="300",
            PRUNE_AFTER="0",
            SKIP_LAYERS="",
            KEEP_RATIO="0.3",
            **changes,
        )
        return [s["choice_log_probs"] for row in full["rows"] for s in row["samples"]]

    plain = log_probs()
    assert log_probs(KV_MODE="l2") == plain
    assert log_probs(KV_MODE="l2", KV_SCOPE="context") != plain


@pytest.mark.parametrize("script", [hotpotqa_eval, longbench_kv_eval], ids=["hotpot", "longbench"])
def test_resume_and_unequal_batches(tiny_folder, tmp_path, script):
    settings = {"CONTEXTS": "250,300", "BATCH_SIZE": "2", "ANSWER_MODE": "loglikelihood"}
    unbroken = run(script, tiny_folder, tmp_path / "unbroken", **settings)
    broken = tmp_path / "broken"
    values = environ(tiny_folder, broken, **settings)
    files = runner.Run(script.TASK, *config.read(script.TASK.settings, values))._files()
    for row in unbroken["rows"][:2]:
        files.add(row | {"run_id": files.meta["run_id"]})
    files.release()
    resumed = run(script, tiny_folder, broken, RESUME="1", **settings)
    assert len(resumed["rows"]) == 6
    assert without_timings(resumed["ctx_summaries"]) == without_timings(unbroken["ctx_summaries"])


@pytest.mark.parametrize("script", [hotpotqa_eval, longbench_kv_eval], ids=["hotpot", "longbench"])
def test_a_record_of_another_schema_is_exit_code_2(
    tiny_folder, tmp_path, monkeypatch, capsys, script
):
    path = tmp_path / "data.jsonl"
    path.write_text('{"context": "A text."}\n')
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stop:
        cli.main(script.TASK, "", environ(tiny_folder, tmp_path, DATASET_ID=str(path)))
    assert stop.value.code == 2
    _note, error, *example = capsys.readouterr().err.splitlines()
    assert error.startswith(
        f"error: DATASET_ID={path}: record 0 is not of {script.TASK.name}'s schema: no "
    )
    assert "no question" in error
    assert "no answer" in error
    assert "\n".join(example) == script.TASK.example


def test_letters_that_are_no_tokens_of_their_own(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "longctx.preflight.PromptBuilder.answer_token", lambda *_: None, raising=True
    )
    with pytest.raises(SettingError, match=r"'A' is not a token of its own after 'The correct"):
        run(longbench_kv_eval, tiny_folder, tmp_path, ANSWER_MODE="loglikelihood")


@pytest.mark.parametrize("script", [hotpotqa_eval, longbench_kv_eval], ids=["hotpot", "longbench"])
def test_synthetic_documents_fill_their_context_and_are_not_cut(builtin_tokenizer, script):
    builder = PromptBuilder(builtin_tokenizer, chat_template=True)
    settings = script.TASK.settings(dataset_id="synthetic", n_samples=6, contexts=(512, 3000))
    for context_tokens, samples in samples_by_context(script.TASK, settings, builder).items():
        for sample in samples:
            prompt = builder.build(sample.parts, context_tokens, "middle")
            assert prompt.dropped_tokens == 0
            # The longest of the questions leaves the others room.
            assert len(prompt.input_ids) > context_tokens - 75
            assert all(text in prompt.context for text in sample.evidence)
