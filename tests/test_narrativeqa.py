import json
from pathlib import Path

import pytest

import narrativeqa_eval
from longctx.prompts import PromptBuilder

SHARED = Path(__file__).parents[2] / "shared" / "data" / "narrativeqa.jsonl"


@pytest.mark.parametrize(
    ("text", "raw", "prediction"),
    [
        (" Krag\nQuestion: Who else?", True, "Krag"),
        ("\n\n Krag.", True, "Krag."),
        ("The answer is:\n\nKrag", True, "Krag"),
        ("The answer is:", True, ""),
        ("", True, ""),
        ("The answer is: Krag", True, "The answer is: Krag"),
        (" First line.\nSecond line. ", False, "First line.\nSecond line."),
        ("\u65e5\u672c\u2028x\n", True, "\u65e5\u672c\u2028x"),
    ],
)
def test_prediction(text, raw, prediction):
    assert narrativeqa_eval.TASK.answer(text, None, raw) == prediction


@pytest.mark.model
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")
def test_prompts_of_real_books(builtin_tokenizer):
    builder = PromptBuilder(builtin_tokenizer, chat_template=False)
    settings = narrativeqa_eval.NarrativeQASettings()
    for number, line in enumerate(SHARED.read_text(encoding="utf-8").splitlines()[:10]):
        record = json.loads(line)
        sample = narrativeqa_eval.sample(record, number, settings)
        prompt = builder.build(sample.parts, 1024, "middle")
        assert 1016 <= len(prompt.input_ids) <= 1024
        assert prompt.dropped_tokens > 0
        assert prompt.text.startswith(narrativeqa_eval.INSTRUCTIONS)
        assert prompt.text.endswith(f"{record['question']['text'].strip()}\n\nAnswer:")
        assert len(sample.references) == 2
