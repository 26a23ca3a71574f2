"""Chat templates and special tokens: the model reads the prompt, or one line says why not."""

import copy
import datetime
from types import SimpleNamespace

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

import hotpotqa_eval
from longctx import chat, config, models
from longctx.chat import ChatTemplate, TemplateError
from longctx.errors import SettingError
from longctx.prompts import Prompt, PromptBuilder, PromptParts, left_padded
from longctx.runner import Run
from tests.runs import environ, run

pytestmark = pytest.mark.model

HEADER = "<|im_start|>assistant\n"
TURN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + CONTENT + '<|im_end|>\n' }}"
    "{% endfor %}" + HEADER
)
PARTS = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'text' %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def turn(content="m['content']"):
    return TURN.replace("CONTENT", content)


def words(text):
    return text.replace("<", " <").split()


@pytest.fixture
def tokenizer(builtin_tokenizer):
    return copy.deepcopy(builtin_tokenizer)


UNUSABLE = {
    "raises": ("{{ raise_exception('Roles must alternate') }}", "fails: Roles must alternate"),
    "wants a system turn": ("{{ messages[1]['content'] }}", "fails: list object has no element 1"),
    "syntax": ("{% for m in messages %}{{ m['content'] }}", "fails: Unexpected end of template"),
    "divides by zero": ("{{ 1 / 0 }}", "fails: division by zero"),
    "drops": (HEADER, "drops, changes or repeats"),
    "escapes": (turn("m['content'] | e"), "drops, changes or repeats"),
    "upper case": (turn("m['content'] | upper"), "drops, changes or repeats"),
    "collapses": (turn("m['content'].split() | join(' ')"), "drops, changes or repeats"),
    "first line": (turn("m['content'].splitlines()[0]"), "drops, changes or repeats"),
    "twice": (turn("m['content'] + m['content']"), "drops, changes or repeats"),
    "named": ({"tool_use": turn(), "rag": turn()}, "has the names tool_use, rag and none is"),
    "closes": (turn().removesuffix(HEADER), r"ends the prompt with the end token <\|im_end\|>"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_template_that_cannot_be_used_is_one_line_with_the_way_out(tokenizer, name):
    tokenizer.chat_template, problem = UNUSABLE[name]
    with pytest.raises(TemplateError, match=problem) as caught:
        PromptBuilder(tokenizer, chat_template=True)
    assert str(caught.value).startswith(f"MODEL_ID={tokenizer.name_or_path}: its chat template ")
    assert str(caught.value).endswith("CHAT_TEMPLATE=off makes raw prompts")
    assert "\n" not in str(caught.value)


USABLE = {
    "as it is": turn(),
    "stripped": turn("m['content'] | trim"),
    "in parts": PARTS,
    "named, with a default": {"tool_use": "{{ 1 / 0 }}", "default": turn()},
    "no header": "{{ '[INST] ' + messages[0]['content'] + ' [/INST]' }}",
    "repeats the question's words": turn() + "What is it? A fox.\nWhat is it?\nAnswer:",
}


@pytest.mark.parametrize("after", ["\n\nWhat is it?\nAnswer: ", " What is it?\nAnswer:"])
@pytest.mark.parametrize("name", USABLE)
def test_the_question_is_found_where_it_stands(tokenizer, name, after):
    """Not where the document, or the template, holds the same words."""
    tokenizer.chat_template = USABLE[name]
    builder = PromptBuilder(tokenizer, chat_template=True)
    parts = PromptParts("  Read.\n", "A fox. What is it?\nAnswer: A dog. ", after)
    prompt = builder.build(parts, 200, "middle")
    prefix, suffix = builder.frame
    assert words(prompt.context) == words(prefix + parts.before + parts.document)
    assert words(prompt.text.removeprefix(prompt.context)) == words(after + suffix)
    asked = tokenizer.decode(prompt.input_ids[-prompt.question_tokens :])
    assert words(asked) == words(after + suffix)
    assert tokenizer.decode(prompt.input_ids) == prompt.text


def test_a_raw_question_is_found_behind_a_document_that_asks_it_too(tokenizer):
    builder = PromptBuilder(tokenizer, chat_template=False)
    parts = PromptParts("Read. ", "Who? Nobody.", "\nWho?", answer_start="Who?")
    prompt = builder.build(parts, 200, "middle")
    assert prompt.context == "Read. Who? Nobody.\n"
    assert tokenizer.decode(prompt.input_ids[-prompt.question_tokens :]) == "Who?\n\nWho?"


def test_a_template_that_changes_one_prompt_alone_is_refused_then(tokenizer):
    tokenizer.chat_template = turn("m['content'].replace('secret', '')")
    builder = PromptBuilder(tokenizer, chat_template=True)
    builder.build(PromptParts("", "plain", " Why?"), 200, "middle")
    with pytest.raises(TemplateError, match="changes the text of a prompt"):
        builder.build(PromptParts("", "a secret", " Why?"), 200, "middle")


def calendar(day):
    """What `date` is on that day of September 2026."""
    return SimpleNamespace(today=lambda: datetime.date(2026, 9, day))


def test_a_date_in_the_template_is_the_runs_and_tells_runs_apart(tokenizer, monkeypatch):
    tokenizer.chat_template = "{{ strftime_now('%-d %b %Y %H:%M:%S') }}" + turn()
    frames = []
    for day in (9, 10):
        monkeypatch.setattr(chat, "date", calendar(day))
        template = ChatTemplate(tokenizer)
        frames.append(template.prefix)
        # The other day's calendar does not matter to a run that has begun.
        monkeypatch.setattr(chat, "date", None)
        text, _ = template.wrap("x")
        assert text.startswith(frames[-1])
    assert frames == [
        "9 Sep 2026 00:00:00<|im_start|>user\n",
        "10 Sep 2026 00:00:00<|im_start|>user\n",
    ]


def prepared(folder, logdir, **changes):
    """A run that is ready to load its model."""
    settings = {"CONTEXTS": "300", "N_SAMPLES": "1", "CHAT_TEMPLATE": "on"} | changes
    values = environ(folder, logdir, **settings)
    return Run(hotpotqa_eval.TASK, *config.read(hotpotqa_eval.TASK.settings, values))


def test_another_day_is_another_fingerprint(tiny_folder, tmp_path, monkeypatch):
    real = ChatTemplate.__init__

    def dated(self, tokenizer, *arguments):
        tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + turn()
        real(self, tokenizer, *arguments)

    monkeypatch.setattr(ChatTemplate, "__init__", dated)
    metas = []
    for day in (9, 9, 10):
        monkeypatch.setattr(chat, "date", calendar(day))
        metas.append(prepared(tiny_folder, tmp_path).meta)
    first, again, next_day = (meta["fingerprint"] for meta in metas)
    assert first == again != next_day
    assert metas[0]["data_fingerprint"] == metas[2]["data_fingerprint"]
    assert metas[2]["prompt_frame"][0] == "10 Sep 2026<|im_start|>user\n"


THINKS = turn() + "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"


@pytest.mark.parametrize(("thinking", "said"), [(None, ""), (True, "True"), (False, "False")])
def test_the_wish_to_think_reaches_the_template(tokenizer, thinking, said):
    tokenizer.chat_template = THINKS
    template = ChatTemplate(tokenizer, thinking)
    assert template.suffix == "<|im_end|>\n" + HEADER + said
    assert template.reads_thinking
    tokenizer.chat_template = turn()
    assert not ChatTemplate(tokenizer, thinking).reads_thinking


@pytest.mark.parametrize(
    ("template", "note"), [("auto", "its prompts are raw"), ("on", "its chat template does not")]
)
def test_a_wish_to_think_that_nobody_reads_is_noted(
    tiny_folder, tmp_path, monkeypatch, capsys, template, note
):
    if template == "auto":
        monkeypatch.setattr("longctx.preflight.uses_chat_template", lambda *_: False)
    prepared(tiny_folder, tmp_path, ENABLE_THINKING="off", CHAT_TEMPLATE=template)
    said = f"ENABLE_THINKING=off has no effect on {tiny_folder}: {note}"
    assert capsys.readouterr().err.count(said) == 1


def special(tokenizer, single):
    """`tokenizer` with special tokens around a text, as Llama's and those with add_eos_token."""
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_end|>", "<bos>")]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)


@pytest.mark.parametrize("single", ["<bos> $A <|im_end|>", "<bos> $A", "$A <|im_end|>", "$A"])
@pytest.mark.parametrize("chat_template", [False, True])
def test_a_prompt_begins_with_one_start_token_and_never_ends_with_the_end(
    tokenizer, single, chat_template
):
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    special(tokenizer, single)
    # Llama 3's template writes the start token that its tokenizer adds, too.
    tokenizer.chat_template = "{{ bos_token }}" + turn()
    builder = PromptBuilder(tokenizer, chat_template)
    parts = PromptParts("Read. ", "A fox. " * 90, "\n\nWhat?", answer_start="It is")
    prompt = builder.build(parts, 100, "middle")
    assert len(prompt.input_ids) <= 100
    tokens = tokenizer.convert_ids_to_tokens(prompt.input_ids)
    assert tokens.count("<bos>") == (chat_template or "<bos>" in single)
    assert "<bos>" not in tokens[1:]
    assert "".join(tokens[-2:]) == "ItĠis"
    assert builder.fixed_tokens(parts) == len(builder.build(parts, 50, "head").input_ids) - (
        50 - builder.fixed_tokens(parts)
    )
    assert builder.answer_token(parts, " red") == tokenizer.convert_tokens_to_ids("Ġred")


@pytest.mark.parametrize("kind", ["lower-cases", "adds a space", "strips"])
def test_tokenizers_that_change_the_text_keep_the_question_in_its_place(tokenizer, kind):
    backend = tokenizer._tokenizer
    if kind == "lower-cases":
        backend.normalizer = normalizers.Lowercase()
    elif kind == "strips":
        backend.normalizer = normalizers.Strip()
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    builder = PromptBuilder(tokenizer, chat_template=False)
    parts = PromptParts("READ. ", "THE FOX. WHO? " * 60, "\nWHO? ", answer_start=" IT IS")
    prompt = builder.build(parts, 90, "middle")
    assert 80 < len(prompt.input_ids) <= 90
    asked = tokenizer.decode(prompt.input_ids[-prompt.question_tokens :])
    assert "".join(asked.split()).upper() == "WHO?ITIS"


def test_padding_needs_no_token_of_the_tokenizers():
    prompts = [Prompt("", "", ids, 0, 0, 0) for ids in ([5], [6, 7, 8])]
    input_ids, mask = left_padded(prompts)
    assert torch.equal(input_ids, torch.tensor([[0, 0, 5], [6, 7, 8]]))
    assert torch.equal(mask, torch.tensor([[0, 0, 1], [1, 1, 1]]))


def test_a_batch_without_padding_or_end_token_runs_as_one_by_one(
    tiny_folder, tmp_path, monkeypatch
):
    def bare(path, *_):
        found = real(path, *_)
        found.pad_token = found.eos_token = None
        return found

    real = models._tokenizer
    monkeypatch.setattr(models, "_tokenizer", bare)
    outputs = []
    for batch_size in ("1", "3"):
        settings = {"CONTEXTS": "200", "N_SAMPLES": "3", "BATCH_SIZE": batch_size, "WARMUP": "0"}
        full = run(tiny_folder, tmp_path, hotpotqa_eval, **settings)
        outputs.append([s["output"] for row in full["rows"] for s in row["samples"]])
    assert outputs[0] == outputs[1]


def test_a_tokenizer_of_another_model_is_refused(tiny_folder, tmp_path, monkeypatch):
    real = models.AutoConfig.from_pretrained

    def smaller(*arguments, **options):
        found = real(*arguments, **options)
        found.vocab_size = 1000
        return found

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", smaller)
    with pytest.raises(SettingError, match=r"makes token \d+, its config.json knows 1000:"):
        prepared(tiny_folder, tmp_path)
