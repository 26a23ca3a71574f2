"""PROTOCOL=kvpress against what kvpress 0.5.5 does, by its own source."""

import pytest

import ruler_eval
from kv_compression.methods import method_class
from kv_compression.pruning import Pruning, kept_count
from longctx import config, preflight
from longctx.errors import SettingErrors
from longctx.prompts import PromptBuilder, PromptParts
from longctx.protocol import with_protocol
from tests.scripts import SCRIPTS


def read(script=ruler_eval, **values):
    return config.read(script.TASK.settings, {"PROTOCOL": "kvpress"} | values)


def scorer_press(length, compression_ratio):
    """`n_kept` of kvpress/presses/scorer_press.py."""
    return int(length * (1 - compression_ratio))


@pytest.mark.parametrize("percent", range(1, 100))
def test_counts_are_those_of_kvpress(percent):
    keep_ratio, compression_ratio = percent / 100, (100 - percent) / 100
    for length in [*range(1, 300), 1000, 4007, 4096, 131072]:
        expected = max(1, scorer_press(length, compression_ratio))
        assert kept_count(length, keep_ratio, "down") == expected


def test_the_whole_stays_whole():
    assert [kept_count(n, 1.0, "down") for n in (1, 7, 4096)] == [1, 7, 4096]


def test_pruning_rounds_as_it_is_told():
    method = method_class("l2")()
    for rounding, kept in (("up", 4), ("down", 3)):
        assert Pruning(method, 0.5, 0, rounding=rounding).most_tokens(7, 7) == kept
    with pytest.raises(ValueError, match="rounding must be up or down, not even"):
        Pruning(method, rounding="even")


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_one_setting_stands_for_all(script):
    settings, environ = read(script, KV_MODE="tova", KEEP_RATIO="0.5")
    settings = with_protocol(settings, environ)
    assert settings.kv_scope == "context"
    pruning = preflight.pruning(settings, environ)
    assert (pruning.skip_layers, pruning.prune_after, pruning.rounding) == ((), 0, "down")
    other, environ = read(script, KV_MODE="tova", PROTOCOL="official")
    assert with_protocol(other, environ) is other
    assert preflight.pruning(other, environ).rounding == "up"


def test_what_contradicts_it_is_told_in_a_line_each():
    wrong = {
        "KV_SCOPE": "prompt", "SKIP_LAYERS": "0,1", "PRUNE_AFTER": "512", "KEEP_TOKENS": "64",
        "PRUNE_EVERY": "8", "KV_QUANT": "int8", "CHAT_TEMPLATE": "off", "ENABLE_THINKING": "on",
    }  # fmt: skip
    with pytest.raises(SettingErrors) as error:
        with_protocol(*read(KV_MODE="l2", **wrong))
    assert [str(problem) for problem in error.value.problems] == [
        "KV_SCOPE=prompt: PROTOCOL=kvpress has KV_SCOPE=context; leave it unset",
        "SKIP_LAYERS=0,1: PROTOCOL=kvpress has SKIP_LAYERS=; leave it unset",
        "PRUNE_AFTER=512: PROTOCOL=kvpress has PRUNE_AFTER=0; leave it unset",
        "KEEP_TOKENS=64: PROTOCOL=kvpress has none; leave it unset",
        "PRUNE_EVERY=8: PROTOCOL=kvpress has none; leave it unset",
        "KV_QUANT=int8: PROTOCOL=kvpress has none; leave it unset",
        "CHAT_TEMPLATE=off: contradicts PROTOCOL=kvpress; leave it unset",
        "ENABLE_THINKING=on: contradicts PROTOCOL=kvpress; leave it unset",
    ]
    with_protocol(*read(KV_MODE="l2", KV_SCOPE="context", SKIP_LAYERS="", PRUNE_AFTER="0"))


def kvpress_ids(tokenizer, context, question, answer_prefix):
    """Tokens of context and question by `preprocess` of kvpress/pipeline.py."""
    suffix = "\n"
    if tokenizer.chat_template is None:
        context = tokenizer.bos_token + context
    else:
        separator = "#" * (len(context) + 10)
        turn = [{"role": "user", "content": context + separator}]
        rendered = tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        context, suffix = rendered.split(separator)
    question += suffix + answer_prefix
    return [tokenizer.encode(text, add_special_tokens=False) for text in (context, question)]


TRIMMING = (
    "{% for message in messages %}<|im_start|>user\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.mark.model
@pytest.mark.parametrize("template", ["own", "trimming", None])
@pytest.mark.parametrize(
    ("context", "question"),
    [("One. Two.\n", "What is it? "), ("  a bet", "ween x? "), ("a \n\n", "\n Who?\n")],
)
def test_prompts_are_those_of_kvpress(builtin_folder, template, context, question):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin_folder)
    if template != "own":
        tokenizer.chat_template = TRIMMING if template else None
    builder = PromptBuilder(
        tokenizer, template is not None, enable_thinking=False, reads_apart=True
    )
    parts = PromptParts("", context, question, "The answer is")
    prompt = builder.build(parts, 500, "never")
    before, asked = kvpress_ids(tokenizer, context, question, "The answer is")
    assert prompt.input_ids == before + asked
    assert prompt.question_tokens == len(asked)
    assert len(prompt.input_ids) == builder.whole_tokens(parts)
