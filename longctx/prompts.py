"""Prompts that fill their context exactly: the document is cut, the question never."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longctx.chat import ChatTemplate

if TYPE_CHECKING:
    # Scripts declare the parts of a prompt; whoever asks them for help need not wait for these.
    import torch
    from transformers import PreTrainedTokenizerBase

Spans = NDArray[np.int32]  # (tokens, 2): where each begins and ends in its text

_MAX_FITTING_STEPS = 12
_MARK = "#"


@dataclass(frozen=True)
class PromptParts:
    """A prompt as text: the document, and what stands before and after it.

    answer_start: the first words of the answer, which the model goes on from: behind the chat
        template's assistant header, or in a paragraph of its own at the end of a raw prompt.
    answer_tokens: how long the data set lets the answer be; None: as MAX_NEW_TOKENS says.
    """

    before: str
    document: str
    after: str
    answer_start: str = ""
    answer_tokens: int | None = None

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """All that is text."""
        return self.before, self.document, self.after, self.answer_start


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens.

    context: the text up to the question: what is left of the document, and what is before it.
    document_tokens: tokens of the whole document; dropped_tokens: how many of them were cut.
    question_tokens: how many of the last tokens stand after the document.
    answer_tokens: of the parts.
    """

    text: str
    context: str
    input_ids: list[int]
    document_tokens: int
    dropped_tokens: int
    question_tokens: int
    answer_tokens: int | None = None

    @property
    def context_ids(self) -> list[int]:
        """The tokens before the question."""
        return self.input_ids[: -self.question_tokens]


class ContextTooShortError(ValueError):
    """Instructions and question alone are longer than the context."""

    def __init__(self, context_tokens: int, needed_tokens: int):
        super().__init__(f"instructions and question alone take {needed_tokens} tokens")
        self.context_tokens = context_tokens
        self.needed_tokens = needed_tokens


@dataclass(frozen=True)
class _Attempt:
    """A prompt that may be too long; question_at: where in `text` the question begins."""

    text: str
    input_ids: list[int]
    question_at: int


class PromptBuilder:
    """Turns parts into prompts of at most a given number of tokens.

    chat_template: wrap the prompt as one user turn in the tokenizer's template. Without it the
        prompt begins with the special tokens that the tokenizer puts before a text.
    keeps_prompts: keep each prompt, for whoever asks for it again.
    enable_thinking: what the template is told; None for nothing.
    reads_apart: as kvpress builds prompts: the question's tokens are made apart from those before
        it and it stands untouched, the template around the context; a raw prompt begins with the
        tokenizer's first token, if it has one, and a line ends its question.
    frame: what stands before and after the text of every prompt.
    Raises TemplateError.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: bool,
        keeps_prompts: bool = False,
        enable_thinking: bool | None = None,
        reads_apart: bool = False,
    ):
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._chat = ChatTemplate(tokenizer, enable_thinking) if chat_template else None
        self._reads_apart = reads_apart
        # A chat template writes its special tokens itself.
        self._first_tokens: list[int] = []
        if reads_apart and not chat_template:
            self._first_tokens = self._tokens(tokenizer.bos_token or "")
        elif not chat_template:
            self._first_tokens = _tokens_before(tokenizer)
        if self._chat is not None:
            self.frame = self._chat.prefix, self._chat.suffix
        else:
            # As it is: cleaning up spaces would change it, and transformers warns of it.
            first = tokenizer.decode(self._first_tokens, clean_up_tokenization_spaces=False)
            self.frame = str(first), ""
        self._document_spans = lru_cache(maxsize=64)(self._find_document_spans)
        self._prompts: (
            dict[tuple[PromptParts, int, str, PromptParts | None], Prompt | None] | None
        ) = {} if keeps_prompts else None

    @property
    def reads_thinking(self) -> bool:
        """Whether there is a chat template that goes by `enable_thinking`."""
        return self._chat is not None and self._chat.reads_thinking

    def fixed_tokens(self, parts: PromptParts) -> int:
        """Tokens of the prompt without its document."""
        return len(self._attempt(parts, "").input_ids)

    def whole_tokens(self, parts: PromptParts) -> int:
        """Tokens of the prompt with its whole document."""
        return len(self._attempt(parts, parts.document).input_ids)

    def count_tokens(self, text: str) -> int:
        """Tokens of a piece of a document."""
        return len(self._tokens(text))

    def answer_token(self, parts: PromptParts, answer: str) -> int | None:
        """The token that `answer` is right behind the prompt; None where it is not a single one."""
        prompt = self._attempt(parts, "")
        *before, token = self._encode(prompt.text + answer, prompt.question_at)
        return token if before == prompt.input_ids else None

    def with_longest_questions(
        self, parts: Sequence[PromptParts]
    ) -> dict[tuple[str, str], PromptParts]:
        """Text before a document, and the document -> the parts with most tokens besides."""
        documents: dict[tuple[str, str], list[PromptParts]] = {}
        for each in parts:
            documents.setdefault((each.before, each.document), []).append(each)
        return {key: max(mine, key=self.fixed_tokens) for key, mine in documents.items()}

    def build(
        self,
        parts: PromptParts,
        context_tokens: int,
        truncate: str,
        alike: PromptParts | None = None,
    ) -> Prompt | None:
        """The longest prompt of at most `context_tokens` tokens.

        alike: parts with the same document and a longer question, for which the document is cut.

        truncate: what a document too long for the context keeps: "middle" (both ends, LongBench's
        protocol), "head", "tail", or "skip", which gives None; "never" leaves it whole, so that the
        prompt may be longer. Raises ContextTooShortError.
        """
        alike = None if alike == parts or truncate in ("skip", "never") else alike
        if self._prompts is None:
            return self._build(parts, context_tokens, truncate, alike)
        key = parts, context_tokens, truncate, alike
        if key not in self._prompts:
            self._prompts[key] = self._build(*key)
        return self._prompts[key]

    def _build(
        self, parts: PromptParts, context_tokens: int, truncate: str, alike: PromptParts | None
    ) -> Prompt | None:
        if alike is not None and (cut := self.build(alike, context_tokens, truncate)) is not None:
            mine = self._cut_alike(parts, cut, truncate)
            if len(mine.input_ids) <= context_tokens:
                return self._prompt(parts, mine, cut.document_tokens, cut.dropped_tokens)
        empty = self._attempt(parts, "")
        fixed = len(empty.input_ids)
        if fixed > context_tokens:
            raise ContextTooShortError(context_tokens, fixed)
        spans = self._document_spans(parts.document)
        whole = (
            self._attempt(parts, parts.document)
            if fixed + len(spans) < 2 * context_tokens or truncate == "never"
            else None
        )
        if whole is not None and (len(whole.input_ids) <= context_tokens or truncate == "never"):
            return self._prompt(parts, whole, len(spans), dropped_tokens=0)
        if truncate == "skip":
            return None
        kept, best = self._fit(parts, spans, context_tokens, empty, _CUTS[truncate])
        return self._prompt(parts, best, len(spans), len(spans) - kept)

    def _cut_alike(self, parts: PromptParts, cut: Prompt, truncate: str) -> _Attempt:
        if not cut.dropped_tokens:
            return self._attempt(parts, parts.document)
        kept = cut.document_tokens - cut.dropped_tokens
        spans = self._document_spans(parts.document)
        return self._attempt(parts, _CUTS[truncate](parts.document, spans, kept))

    def _prompt(
        self, parts: PromptParts, whole: _Attempt, document_tokens: int, dropped_tokens: int
    ) -> Prompt:
        text, question_at = whole.text, whole.question_at
        # A token that the document and the question share is the question's, which stays whole.
        question_tokens = (
            len(self._tokens(text[question_at:]))
            if self._reads_apart
            else sum(end > question_at for _, end in self._offsets(text))
        )
        return Prompt(
            text,
            text[:question_at],
            whole.input_ids,
            document_tokens,
            dropped_tokens,
            question_tokens,
            parts.answer_tokens,
        )

    def _fit(
        self,
        parts: PromptParts,
        spans: Spans,
        context_tokens: int,
        empty: _Attempt,
        cut: Callable[[str, Spans, int], str],
    ) -> tuple[int, _Attempt]:
        """Number of document tokens kept, and the prompt.

        Text cut out of a document does not always have as many tokens as were counted in the
        whole, so the number is corrected until the prompt fits exactly, or the best one is known.
        """
        best_kept, best = 0, empty
        too_many = len(spans)
        kept = min(context_tokens - len(empty.input_ids), too_many - 1)
        for _ in range(_MAX_FITTING_STEPS):
            attempt = self._attempt(parts, cut(parts.document, spans, kept))
            surplus = len(attempt.input_ids) - context_tokens
            if surplus <= 0 and kept >= best_kept:
                best_kept, best = kept, attempt
            if surplus > 0:
                too_many = min(too_many, kept)
            kept = min(kept - surplus, too_many - 1)
            if surplus == 0 or kept <= best_kept:
                break
        return best_kept, best

    def _attempt(self, parts: PromptParts, document: str) -> _Attempt:
        if self._reads_apart:
            return self._attempt_apart(parts, parts.before + document)
        content = parts.before + document + parts.after
        text, content_at = content, 0
        if self._chat is not None:
            text, content_at = self._chat.wrap(content)
            text += parts.answer_start
        elif parts.answer_start:
            text = f"{content}\n\n{parts.answer_start}"
        # Counted, not searched for: a document, or a template, may hold the same words.
        question_at = content_at + len(content) - len(parts.after.lstrip())
        return _Attempt(text, self._encode(text, question_at), question_at)

    def _attempt_apart(self, parts: PromptParts, context: str) -> _Attempt:
        suffix = "\n"
        if self._chat is not None:
            suffix = self._chat.suffix
            # The mark keeps a template from trimming the end of the context.
            context = self._chat.wrap(context + _MARK)[0].removesuffix(_MARK + suffix)
        text = context + parts.after + suffix + parts.answer_start
        return _Attempt(text, self._encode(text, len(context)), len(context))

    def _encode(self, text: str, question_at: int) -> list[int]:
        if self._reads_apart:
            apart = self._tokens(text[:question_at]) + self._tokens(text[question_at:])
            return self._first_tokens + apart
        return self._first_tokens + self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        # Silent: documents are longer than the model's window on purpose.
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _find_document_spans(self, document: str) -> Spans:
        # An array: of a long document it takes a tenth of the memory that pairs take.
        return np.array(self._offsets(document), dtype=np.int32).reshape(-1, 2)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token begins and ends in the text."""
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return list(encoding["offset_mapping"])


def left_padded(prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (B, S) int64 each, padded on the left.

    Padding is token 0, whatever that is: nothing attends to it, and so a tokenizer needs no padding
    token of its own.
    """
    import torch

    longest = max(len(prompt.input_ids) for prompt in prompts)
    padding = [longest - len(prompt.input_ids) for prompt in prompts]
    rows = zip(padding, prompts, strict=True)
    ids = [[0] * before + prompt.input_ids for before, prompt in rows]
    mask = [[0] * before + [1] * (longest - before) for before in padding]
    return torch.tensor(ids), torch.tensor(mask)


def _tokens_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that `tokenizer` puts before a text.

    What it may put after one, such as the end token, would end the prompt before its answer.
    """
    text = "a"
    whole, plain = (
        list(tokenizer(text, add_special_tokens=special)["input_ids"]) for special in (True, False)
    )
    first = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)
    return whole[:first]


def _middle(document: str, spans: Spans, kept: int) -> str:
    return _head(document, spans, (kept + 1) // 2) + _tail(document, spans, kept // 2)


def _head(document: str, spans: Spans, kept: int) -> str:
    return document[: spans[kept - 1][1]] if kept else ""


def _tail(document: str, spans: Spans, kept: int) -> str:
    return document[spans[-kept][0] :] if kept else ""


_CUTS: dict[str, Callable[[str, Spans, int], str]] = {
    "middle": _middle,
    "head": _head,
    "tail": _tail,
}
