"""Prompts that fill their context exactly: the document is cut, the question never."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

Spans = NDArray[np.int32]  # (tokens, 2): where each begins and ends in its text

_MAX_FITTING_STEPS = 12


@dataclass(frozen=True)
class Parts:
    """A prompt as text: what stands before the document, the document, what stands after it.

    cue: text with which the answer begins: it stands behind the chat template's assistant header,
        or, in a paragraph of its own, at the end of a raw prompt.
    """

    before: str
    document: str
    after: str
    cue: str = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens.

    context: the text up to the question: what is left of the document, and what is before it.
    document_tokens: tokens of the whole document; dropped_tokens: how many of them were cut.
    question_tokens: how many of the last tokens stand after the document.
    """

    text: str
    context: str
    input_ids: list[int]
    document_tokens: int
    dropped_tokens: int
    question_tokens: int


class ContextTooShortError(ValueError):
    """Instructions and question alone are longer than the context."""

    def __init__(self, context_tokens: int, needed_tokens: int):
        super().__init__(f"instructions and question alone take {needed_tokens} tokens")
        self.context_tokens = context_tokens
        self.needed_tokens = needed_tokens


class PromptBuilder:
    """Turns parts into prompts of at most a given number of tokens.

    chat_template: wrap the prompt as one user turn in the tokenizer's template. Without it the
    tokenizer adds its own special tokens.
    keeps_prompts: keep each prompt, for whoever asks for it again.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: bool, keeps_prompts: bool = False
    ):
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._document_spans = lru_cache(maxsize=64)(self._find_document_spans)
        self._prompts: dict[tuple[Parts, int, str], Prompt | None] | None = (
            {} if keeps_prompts else None
        )

    def fixed_tokens(self, parts: Parts) -> int:
        """Tokens of the prompt without its document."""
        return len(self._encode(self._text(parts, "")))

    def count_tokens(self, text: str) -> int:
        """Tokens of a piece of a document."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def answer_token(self, parts: Parts, answer: str) -> int | None:
        """The token that `answer` is right behind the prompt; None where it is not a single one."""
        text = self._text(parts, "")
        *before, token = self._encode(text + answer)
        return token if before == self._encode(text) else None

    def build(self, parts: Parts, context_tokens: int, truncate: str) -> Prompt | None:
        """The longest prompt of at most `context_tokens` tokens.

        truncate: what a document too long for the context keeps: "middle" (both ends, LongBench's
        protocol), "head", "tail", or "skip", which gives None. Raises ContextTooShortError.
        """
        if self._prompts is None:
            return self._build(parts, context_tokens, truncate)
        key = parts, context_tokens, truncate
        if key not in self._prompts:
            self._prompts[key] = self._build(*key)
        return self._prompts[key]

    def _build(self, parts: Parts, context_tokens: int, truncate: str) -> Prompt | None:
        empty = self._attempt(parts, "")
        fixed = len(empty[1])
        if fixed > context_tokens:
            raise ContextTooShortError(context_tokens, fixed)
        spans = self._document_spans(parts.document)
        whole = (
            self._attempt(parts, parts.document)
            if fixed + len(spans) < 2 * context_tokens
            else None
        )
        if whole is not None and len(whole[1]) <= context_tokens:
            return self._prompt(parts, whole, len(spans), dropped_tokens=0)
        if truncate == "skip":
            return None
        kept, best = self._fit(parts, spans, context_tokens, empty, _CUTS[truncate])
        return self._prompt(parts, best, len(spans), len(spans) - kept)

    def _prompt(
        self,
        parts: Parts,
        encoded: tuple[str, list[int]],
        document_tokens: int,
        dropped_tokens: int,
    ) -> Prompt:
        text, input_ids = encoded
        # A chat template may strip what it wraps.
        question_at = text.rindex(parts.after.strip())
        offsets = self.tokenizer(
            text,
            add_special_tokens=not self.chat_template,
            return_offsets_mapping=True,
            verbose=False,
        )["offset_mapping"]
        question_tokens = sum(start >= question_at for start, end in offsets if end > start)
        context = text[:question_at]
        return Prompt(text, context, input_ids, document_tokens, dropped_tokens, question_tokens)

    def _fit(
        self,
        parts: Parts,
        spans: Spans,
        context_tokens: int,
        empty: tuple[str, list[int]],
        cut: Callable[[str, Spans, int], str],
    ) -> tuple[int, tuple[str, list[int]]]:
        """Number of document tokens kept, and the prompt.

        Text cut out of a document does not always have as many tokens as were counted in the
        whole, so the number is corrected until the prompt fits exactly, or the best one is known.
        """
        best_kept, best = 0, empty
        too_many = len(spans)
        kept = min(context_tokens - len(empty[1]), too_many - 1)
        for _ in range(_MAX_FITTING_STEPS):
            attempt = self._attempt(parts, cut(parts.document, spans, kept))
            surplus = len(attempt[1]) - context_tokens
            if surplus <= 0 and kept >= best_kept:
                best_kept, best = kept, attempt
            if surplus > 0:
                too_many = min(too_many, kept)
            kept = min(kept - surplus, too_many - 1)
            if surplus == 0 or kept <= best_kept:
                break
        return best_kept, best

    def _attempt(self, parts: Parts, document: str) -> tuple[str, list[int]]:
        text = self._text(parts, document)
        return text, self._encode(text)

    def _text(self, parts: Parts, document: str) -> str:
        content = parts.before + document + parts.after
        if not self.chat_template:
            return f"{content}\n\n{parts.cue}" if parts.cue else content
        turn = [{"role": "user", "content": content}]
        header = self.tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
        return f"{header}{parts.cue}"

    def _encode(self, text: str) -> list[int]:
        # A chat template writes its special tokens itself. Silent: documents are longer than the
        # model's window on purpose.
        special = not self.chat_template
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _find_document_spans(self, document: str) -> Spans:
        encoding = self.tokenizer(
            document, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        # An array: of a long document it takes a tenth of the memory that pairs take.
        return np.array(encoding["offset_mapping"], dtype=np.int32).reshape(-1, 2)


def _middle(document: str, spans: Spans, kept: int) -> str:
    head, tail = (kept + 1) // 2, kept // 2
    return _head(document, spans, head) + _tail(document, spans, tail)


def _head(document: str, spans: Spans, kept: int) -> str:
    return document[: spans[kept - 1][1]] if kept else ""


def _tail(document: str, spans: Spans, kept: int) -> str:
    return document[spans[-kept][0] :] if kept else ""


_CUTS: dict[str, Callable[[str, Spans, int], str]] = {
    "middle": _middle,
    "head": _head,
    "tail": _tail,
}
