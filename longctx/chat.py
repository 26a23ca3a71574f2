"""The tokenizer's chat template, which is a program that came with the model.

A prompt stands in it unchanged, or the run ends before it begins.
"""

from __future__ import annotations

from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any

from longctx.errors import CannotRunError
from longctx.redaction import reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Holds what templates are known to change: letter case, runs of white space, what HTML escapes.
_PROBE = 'Zoë\'s <b>"A &amp; B"</b>  twice\n\n\tas Big as {{ that }} \\n END'


class TemplateError(CannotRunError):
    """A chat template that cannot be used."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, problem: str):
        super().__init__(
            f"MODEL_ID={tokenizer.name_or_path}: its chat template {problem}; CHAT_TEMPLATE=off "
            f"makes raw prompts"
        )


class ChatTemplate:
    """One user turn in the tokenizer's template, up to where the answer begins.

    enable_thinking: what the template is told under that name; None for nothing.
    prefix, suffix: what stands before and after the user's text.
    reads_thinking: whether the template goes by `enable_thinking`.
    Raises TemplateError for a template that fails, that does not leave the text as it is, or that
    ends the prompt with the end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, enable_thinking: bool | None = None):
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = {}
        if enable_thinking is not None:
            self._options["enable_thinking"] = enable_thinking
        names = tokenizer.chat_template
        if isinstance(names, dict) and "default" not in names:
            raise self._error(f"has the names {', '.join(names)} and none is the default")
        # A date in the prompt is that of the run's beginning, also after midnight.
        self._today = datetime.combine(date.today(), time())
        self._in_parts = False
        if _PROBE not in self._render(_PROBE, fails=False):
            # Multimodal templates want a message's content in parts.
            self._in_parts = _PROBE in self._render(_PROBE, in_parts=True, fails=False)
        text = self._render(_PROBE)
        if text.count(_PROBE) != 1:
            raise self._error("drops, changes or repeats the text of a prompt")
        self.prefix, _, self.suffix = text.partition(_PROBE)
        end = tokenizer.eos_token
        if end and self.suffix.rstrip().endswith(end):
            raise self._error(f"ends the prompt with the end token {end}")

    @property
    def reads_thinking(self) -> bool:
        """Whether the template goes by `enable_thinking`."""
        return self._render(_PROBE, enable_thinking=True) != self._render(
            _PROBE, enable_thinking=False
        )

    def wrap(self, content: str) -> tuple[str, int]:
        """The prompt, and the place in it at which `content` begins.

        White space at the ends of `content` may be gone: the place is then where it would begin.
        Raises TemplateError.
        """
        text = self._render(content)
        body = text[len(self.prefix) : len(text) - len(self.suffix)]
        if (self.prefix + body + self.suffix, body.strip()) != (text, content.strip()):
            raise self._error("changes the text of a prompt")
        return text, len(self.prefix) + _indent(body) - _indent(content)

    def _render(
        self, content: str, in_parts: bool | None = None, fails: bool = True, **options: Any
    ) -> str:
        """The rendered text. A template that fails raises, or gives "" where `fails` is False."""
        in_parts = self._in_parts if in_parts is None else in_parts
        turn = {"role": "user", "content": content}
        if in_parts:
            turn["content"] = [{"type": "text", "text": content}]  # type: ignore[assignment]
        try:
            text = self._tokenizer.apply_chat_template(
                [turn],
                tokenize=False,
                add_generation_prompt=True,
                strftime_now=self._today.strftime,
                **self._options | options,
            )
        except Exception as error:  # a stranger's program can raise anything
            if not fails:
                return ""
            raise self._error(f"fails: {reason(error)}") from error
        return str(text)

    def _error(self, problem: str) -> TemplateError:
        return TemplateError(self._tokenizer, problem)


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())
