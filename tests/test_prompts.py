import random

import pytest

from longctx.prompts import ContextTooShortError, PromptBuilder, PromptParts

ALPHABET = "aé日🎉 \n\t<|im_end|>.,'the and 12345"


def random_document(rng):
    kind = rng.randrange(3)
    if kind == 0:
        return "".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, 6000)))
    if kind == 1:
        return " ".join(rng.choice(["river", "Ω-house", "ran", "naïve"]) for _ in range(2500))
    return "The old woman went to the market. " * rng.randint(0, 400)


@pytest.mark.model
@pytest.mark.parametrize("chat_template", [False, True])
def test_prompts_fill_their_context_and_never_exceed_it(builtin_tokenizer, chat_template):
    rng = random.Random(0)
    builder = PromptBuilder(builtin_tokenizer, chat_template)
    cut = 0
    for _ in range(100):
        question = f"Question: what happened to the {rng.choice(['日本', 'dog', 'naïve man'])}?"
        parts = PromptParts("Read this.\n\n", random_document(rng), f"\n\n{question}\nAnswer:")
        context_tokens = rng.randint(80, 1500)
        prompt = builder.build(parts, context_tokens, rng.choice(["middle", "head", "tail"]))
        assert len(prompt.input_ids) <= context_tokens
        assert question in prompt.text
        assert prompt.text.count("Answer:") == 1
        assert (
            builtin_tokenizer.decode(prompt.input_ids, clean_up_tokenization_spaces=False)
            == prompt.text
        )
        tail = builtin_tokenizer.decode(prompt.input_ids[-prompt.question_tokens :])
        assert question in tail
        assert len(tail) <= len(prompt.text) - prompt.text.index(question) + 2
        if prompt.dropped_tokens:
            cut += 1
            assert len(prompt.input_ids) >= context_tokens - 8
        else:
            assert parts.document in prompt.text
    assert cut > 40


@pytest.mark.model
def test_truncation_keeps_the_ends_that_it_names(builtin_tokenizer):
    builder = PromptBuilder(builtin_tokenizer, chat_template=False)
    document = " ".join(f"word{number}" for number in range(500))
    parts = PromptParts("B ", document, " A")

    def kept(truncate):
        return builder.build(parts, 200, truncate).text[2:-2]

    assert document.startswith(kept("head"))
    assert document.endswith(kept("tail"))
    middle = kept("middle")
    assert middle.startswith("word0 word1 ")
    assert middle.endswith(" word498 word499")
    assert builder.build(parts, 200, "skip") is None
    assert builder.build(PromptParts("B ", "short", " A"), 200, "skip").dropped_tokens == 0


@pytest.mark.model
def test_a_context_shorter_than_the_question_is_an_error(builtin_tokenizer):
    builder = PromptBuilder(builtin_tokenizer, chat_template=False)
    with pytest.raises(ContextTooShortError, match="take 9 tokens"):
        builder.build(
            PromptParts("one two three", "document", " four five six seven eight nine"), 8, "middle"
        )


@pytest.mark.model
@pytest.mark.parametrize("chat_template", [False, True])
def test_a_cue_begins_the_answer_and_is_never_cut(builtin_tokenizer, chat_template):
    builder = PromptBuilder(builtin_tokenizer, chat_template)
    parts = PromptParts("B ", "word " * 500, "\nWhich?", answer_start="The answer is (")
    prompt = builder.build(parts, 120, "middle")
    assert len(prompt.input_ids) <= 120
    assert prompt.text.endswith("The answer is (")
    between = prompt.text.rpartition("Which?")[2].removesuffix(parts.answer_start)
    assert between == ("<|im_end|>\n<|im_start|>assistant\n" if chat_template else "\n\n")
    assert "Which?" not in prompt.context
    assert "word word" in prompt.context
    asked = builtin_tokenizer.decode(prompt.input_ids[-prompt.question_tokens :])
    assert asked.endswith(f"Which?{between}{parts.answer_start}")
    letters = [builder.answer_token(parts, letter) for letter in "ABCD"]
    assert builtin_tokenizer.batch_decode([[token] for token in letters]) == list("ABCD")
    assert builder.answer_token(parts, "Antarctica") is None
    assert builder.answer_token(parts, "(") is None  # becomes one token with the answer_start's end
