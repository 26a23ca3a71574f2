"""What a reasoning model thinks before it answers, told apart from the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAME = r"(?i:seed:)?(?i:think(?:ing)?|thoughts?|reason(?:ing)?|scratchpad)"
_OPEN = re.compile(
    rf"<{_NAME}>|\[THINK\]|\u25c1think\u25b7|<\|START_THINKING\|>|<\|begin_of_thought\|>"
    # Gemma 4, MedGemma, gpt-oss, Granite and Apriel.
    r"|<\|channel>thought|<unused94>|<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>"
    r"|\A\s*(?:Here(?: is|'s) my thought process:|Here are my reasoning steps:)"
)
_CLOSE = re.compile(
    rf"</{_NAME}>|\[/THINK\]|\u25c1/think\u25b7|<\|END_THINKING\|>|<\|end_of_thought\|>"
    r"|<channel\|>|<unused95>|Here(?: is|'s) my response:|\[BEGIN FINAL RESPONSE\]"
)
# gpt-oss: channels; without their special tokens "analysis...assistantfinal...".
_FINAL = re.compile(r"<\|channel\|>final[^<]*<\|message\|>|assistantfinal|\A\s*final(?=[^\W_a-z])")
_CHANNEL = re.compile(r"<\|channel\|>|\A\s*(?:analysis|commentary)(?=[^\W_]|[\"'(\[*<])")
_AFTER_FINAL = re.compile(r"<\|(?:end|return|start|channel)\|>.*", re.S)
# What some models wrap the answer in that follows a thought.
_WRAPPER = re.compile(
    r"</?(?:answer|response|solution|output)>|<\|(?:START|END)_(?:RESPONSE|TEXT)\|>"
    r"|<\|(?:begin|end)_of_(?:solution|box)\|>|\[END FINAL RESPONSE\]"
)
_PARTS_OF_MARKS = {"<|channel|>", "<|message|>", "<|channel>"}


def split(text: str) -> tuple[str, str]:
    """A model's text as its thought, marks included, and its answer.

    Without a thought the first is empty; with one that was cut off, the second. A thought whose
    beginning stands in the prompt has only its end in the text.
    """
    if finals := list(_FINAL.finditer(text)):
        end = finals[-1].end()
        return text[:end], _AFTER_FINAL.sub("", text[end:])
    if _CHANNEL.search(text):
        return text, ""
    closed = [match.end() for match in _CLOSE.finditer(text)]
    end = closed[-1] if closed else 0
    if _OPEN.search(text, end):
        return text, ""
    return text[:end], _WRAPPER.sub("", text[end:]) if closed else text


def answer(text: str) -> str:
    """What a model says once it has thought; empty where its thought was cut off."""
    return split(text)[1]


def opened_by(prompt: str) -> str:
    """The mark of a thought's beginning that a prompt ends with, as chat templates do; or empty."""
    opened = re.search(rf"(?:{_OPEN.pattern})\s*\Z", prompt)
    return opened[0] if opened else ""


def texts_of(tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[Sequence[int]]) -> list[str]:
    """Decoded without special tokens, but for those that mark a thought."""
    marks = {
        token_id: token.content
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and _is_mark(token.content)
    }

    def text_of(mark: str | None, tokens: list[int]) -> str:
        if mark is not None:
            return mark * len(tokens)
        return str(
            tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    return [
        "".join(text_of(mark, list(run)) for mark, run in groupby(tokens, key=marks.get))
        for tokens in new_tokens
    ]


def _is_mark(token: str) -> bool:
    return bool(_OPEN.fullmatch(token) or _CLOSE.fullmatch(token) or token in _PARTS_OF_MARKS)
