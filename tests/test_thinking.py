"""What a model thinks is no answer, whatever marks its thought."""

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken

from longctx import thinking
from longctx.answers import free_text, is_answer
from longctx.multiple_choice import letter_of
from tests.scripts import SCRIPTS

# A thought, the answer after it; an empty answer is a thought that was cut off.
OUTPUTS = [
    ("<think>\nRome? No.\n</think>\n\nParis", "Paris"),
    ("<think>\n\n</think>\n\nParis", "Paris"),
    ("Rome? No.\n</think>\nParis", "Paris"),
    ("<think>\nOkay, Rome", ""),
    ("<think>a</think> Rome <think>b</think> Paris", "Paris"),
    ("<think>a</think> Rome <think>b", ""),
    ("<Think>a</Think>Paris", "Paris"),
    ("<thinking>Rome</thinking><answer>Paris</answer>", "Paris"),
    ("<thought>Rome</thought>\nParis", "Paris"),
    ("<thought>Rome", ""),
    ("<reasoning>Rome</reasoning>Paris", "Paris"),
    ("<seed:think>Rome</seed:think>Paris", "Paris"),
    ("<seed:think>Rome", ""),
    ("[THINK]Rome[/THINK]Paris", "Paris"),
    ("[THINK]Rome", ""),
    ("\u25c1think\u25b7Rome\u25c1/think\u25b7Paris", "Paris"),
    ("\u25c1think\u25b7Rome", ""),
    ("<|START_THINKING|>R<|END_THINKING|><|START_RESPONSE|>Paris<|END_RESPONSE|>", "Paris"),
    ("<|channel>thought\nRome\n<channel|>Paris", "Paris"),
    ("<|channel>thought\nRome", ""),
    ("<unused94>thought\nRome<unused95>Paris", "Paris"),
    ("<|channel|>analysis<|message|>Rome<|end|><|start|>assistant"
     "<|channel|>final<|message|>Paris<|return|>", "Paris"),
    ("<|channel|>analysis<|message|>Rome", ""),
    ("<|channel|>commentary to=x<|message|>Rome<|end|>", ""),
    ("<|channel|>final<|message|>Paris", "Paris"),
    ("analysisThe user asks. Rome?assistantfinalParis", "Paris"),
    ("analysiswe need Rome", ""),
    ("finalParis", "Paris"),
    ("Here is my thought process:\nRome\nHere is my response:\nParis", "Paris"),
    ("Here are my reasoning steps:\nRome[BEGIN FINAL RESPONSE]Paris[END FINAL RESPONSE]", "Paris"),
    # No thoughts.
    ("analysis of the treaty", "analysis of the treaty"),
    ("final", "final"),
    ("Finally Paris", "Finally Paris"),
    ("I think Paris", "I think Paris"),
    ("a < b > c", "a < b > c"),
    ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), OUTPUTS)
def test_thought_and_answer(text, said):
    thought, answer = thinking.split(text)
    assert answer.strip() == said
    assert text.startswith(thought)
    assert free_text(text, None, False) == said
    assert free_text(text, None, True) == said
    assert is_answer(said) is bool(said)


def test_letters_are_not_read_from_thoughts():
    choices = {"A": "Rome is old", "B": "Paris is new", "C": "Oslo is far", "D": "Bern is near"}
    thought = "<think>The correct answer is (A).\nIt is not (D)."
    assert letter_of(f"{thought}</think>The correct answer is (C).", choices, False) == "C"
    assert letter_of(f"{thought}</think>The correct answer is (C).", choices, True) == "C"
    assert letter_of(thought, choices, False) == ""
    assert letter_of(f"{thought}</think>Paris is new", choices, False) == "B"


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_every_script_drops_thoughts(script):
    sample = SimpleNamespace(choices={"A": "Rome", "B": "Oslo", "C": "Bern", "D": "Lima"})
    assert script.TASK.answer("<think>Rome</think>C", sample, False) == "C"
    assert script.TASK.answer("<think>Rome", sample, False) == ""


def test_thoughts_opened_by_the_prompt():
    assert thinking.opened_by("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert thinking.opened_by("assistant\n<think>\n\n</think>\n\n") == ""
    assert thinking.opened_by("What is <think>? Answer:") == ""
    assert thinking.answer(thinking.opened_by("x\n[THINK]") + "Rome, I think") == ""


@pytest.mark.model
def test_marks_that_are_special_tokens_are_seen(builtin_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin_folder)
    plain = tokenizer("Rome, no.<|im_end|>")["input_ids"]
    assert thinking.texts_of(tokenizer, [plain, []]) == ["Rome, no.", ""]
    tokenizer.add_tokens(
        [AddedToken(mark, special=True) for mark in ("[THINK]", "[/THINK]", "<|channel|>")]
    )
    tokens = tokenizer("[THINK]Rome?[/THINK] Paris<|im_end|>")["input_ids"]
    assert thinking.texts_of(tokenizer, [tokens]) == ["[THINK]Rome?[/THINK] Paris"]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "Rome? Paris"
