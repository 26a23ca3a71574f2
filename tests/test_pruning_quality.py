"""The study's shared prefill gives the tokens that a request of its own gives."""

import json
import re

import pytest

from benchmarks import pruning_quality
from kv_compression.generation import generate
from kv_compression.methods import method_class
from kv_compression.pruning import Pruning
from longctx.prompts import Prompt, PromptBuilder
from tests.models import batch, tiny
from tests.runs import ROOT


@pytest.mark.parametrize("scope", pruning_quality.SCOPES)
def test_every_cell_is_what_generate_gives(scope):
    model, (input_ids, _) = tiny(layers=4), batch([61])
    prompt = Prompt("", "", input_ids[0].tolist(), 54, 0, question_tokens=7)
    found = pruning_quality.answers_of_every_cell(model, prompt, scope, count=6)
    assert len(found) == 1 + 8 * len(pruning_quality.RATIOS)
    for (name, ratio), tokens in found.items():
        method = pruning_quality.all_methods().get(name, method_class("l2")())
        result = generate(
            model,
            input_ids,
            backend="sdpa",
            max_new_tokens=6,
            pruning=Pruning(method, ratio, 0, pruning_quality.SKIP_LAYERS),
            question_tokens=[7] if scope == "context" else None,
        )
        assert tokens == result.new_tokens[0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" 12345.", True),
        ("\n\n12345 is", True),
        ("1234", False),
        ("123456", False),
        ("no\n12345", False),
        ("", False),
    ],
)
def test_an_answer_is_right_when_its_first_line_says_so(text, right):
    assert pruning_quality.is_right(text, ["12345"]) is right


def test_pass_keys_stand_once_in_prompts_of_the_wanted_length(builtin_tokenizer):
    builder = PromptBuilder(builtin_tokenizer, chat_template=False)
    trials = pruning_quality.trials("pass key", 600, 5, builder)
    assert len({trial.references[0] for trial in trials}) == 5
    for trial in trials:
        assert trial.prompt.text.count(trial.references[0]) == 1
        assert 580 <= len(trial.prompt.input_ids) <= 600


def test_the_table_in_the_docs_is_the_logs():
    report = json.loads((ROOT / "logs/pruning_quality.json").read_text())
    cells = {
        (c["scope"], c["method"], c["keep_ratio"]): round(100 * c["right"] / c["n"])
        for c in report["cells"]
        if (c["task"], c["context_tokens"]) == ("pass key", 2048)
    }
    text = (ROOT / "docs/results.md").read_text()
    table = text[text.index("| method | context: 0.9") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 8
    for line in table:
        name, *shown = [cell.strip() for cell in line.strip("|").split("|")]
        method = "l2 (high)" if "high" in name else re.match(r"`(\w+)`", name)[1]
        wanted = [
            cells[scope, method, ratio]
            for scope in pruning_quality.SCOPES
            for ratio in pruning_quality.RATIOS
        ]
        assert [int(cell) for cell in shown] == wanted
