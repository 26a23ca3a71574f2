"""Fields of a record as text, whatever they are stored as; what is missing is told all at once."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

# The plain columns that every script takes beside its data set's own schema.
EXAMPLE = """\
{"context": "The whole document.",
 "question": "Who ran?",
 "answers": ["Zoë", "Zoë Smith"]}"""

_KINDS = {dict: "an object", list: "a list", type(None): "null"}


class RecordError(ValueError):
    """A record that is not of the schema; the message is one line that names all its faults."""


class Fields:
    """The fields of one record, by dotted paths such as `question.text`.

    `with Fields(record) as fields:` raises RecordError at its end where anything was missing or was
    no text; until then an empty text stands for it.
    """

    def __init__(self, record: Mapping[str, Any]):
        self._record = record
        self._problems: dict[str, None] = {}

    def __enter__(self) -> "Fields":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._problems:
            raise RecordError(", ".join(self._problems))

    def fault(self, problem: str) -> None:
        """Note a fault of the record, as `no question` or `its answer is 5`."""
        self._problems[problem] = None

    def value(self, path: str) -> Any:
        """What stands there; None where there is nothing."""
        value: Any = self._record
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def text(self, *paths: str, may_be_blank: bool = False) -> str:
        """The text at the first of these paths that has one; the first is the one that is named."""
        for path in paths:
            value = self.value(path)
            # An object may be what an earlier path leads through.
            if value is None or (isinstance(value, Mapping) and path != paths[0]):
                continue
            text = self._text(path, value)
            if isinstance(value, str) and not text.strip() and not may_be_blank:
                self.fault(f"{path} is blank")
            return text
        self.fault(f"no {paths[0]}")
        return ""

    def label(self, *paths: str) -> str | None:
        """As `text`, of a field that a record need not have."""
        value = next((known for path in paths if (known := self.value(path)) is not None), None)
        return None if value is None else self._text(paths[0], value)

    def number(self, path: str) -> float | None:
        """A number that a record need not have; None for what is none."""
        value = self.value(path)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and math.isfinite(value) else None

    def texts(self, *paths: str) -> list[str]:
        """The texts at the first of these paths that has any.

        A text, a list of them, or objects with a `text`; a null among them is left out. Empty where
        there is nothing.
        """
        for path in paths:
            if (value := self.value(path)) is not None:
                return self._texts(path, value)
        return []

    def references(self, *paths: str) -> list[str]:
        """The right answers, without blank ones; a record must have the field, be it null."""
        if not any(path in self._record for path in paths):
            self.fault(f"no {paths[0]}")
        return [text for text in self.texts(*paths) if text.strip()]

    def paragraphs(self, path: str) -> list[list[str]]:
        """The sentences of each paragraph; a paragraph may be one text."""
        value = self.value(path)
        if not isinstance(value, list):
            self.fault(f"no {path}" if value is None else f"{path} is no list")
            return []
        return [self._texts(f"an item of {path}", item) for item in value]

    def indices(self, path: str) -> list[int]:
        """Positions in a list, from 0."""
        value = self.value(path)
        if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
            self.fault(f"no {path}" if value is None else f"{path} is no list of positions from 0")
            return []
        return value

    def match(self, path: str, *lists: Sequence[Any]) -> None:
        """Note a fault unless the lists below a path are equally long."""
        if len(set(map(len, lists))) > 1:
            self.fault(f"the lists of {path} are not equally long")

    def choices(self, letters: Sequence[str]) -> dict[str, str]:
        """The choice of each letter: `choice_A` and so on, or `choices`, a list or by letter."""
        listed = self.value("choices")
        if isinstance(listed, list):
            if len(listed) != len(letters):
                self.fault(f"{len(listed)} choices in place of {len(letters)}")
            found = dict(zip(letters, self._texts("choices", listed), strict=False))
            return {letter: found.get(letter, "").strip() for letter in letters}
        return {
            letter: self.text(f"choice_{letter}", f"choices.{letter}").strip() for letter in letters
        }

    def letter(self, path: str, choices: Mapping[str, str]) -> str:
        """The letter of the right choice, given as letter, position from 0 or text of a choice."""
        value = self.value(path)
        if value is None:
            self.fault(f"no {path}")
            return ""
        text = self._text(path, value).strip()
        readings = {letter for letter, choice in choices.items() if text in (letter, choice)}
        if isinstance(value, int) and not isinstance(value, bool):
            readings |= set(list(choices)[value : value + 1] if value >= 0 else ())
        if len(readings) != 1:
            which = (
                f"which could mean {' or '.join(sorted(readings))}"
                if readings
                else f"none of {', '.join(choices)} and no choice's text"
            )
            self.fault(f"its {path} is {text!r}, {which}")
            return ""
        return readings.pop()

    def _texts(self, path: str, value: Any) -> list[str]:
        if isinstance(value, Mapping) and "text" in value:
            return self._texts(f"{path}.text", value["text"])
        if not isinstance(value, list):
            return [self._text(path, value)]
        items = ((item.get("text", item) if isinstance(item, Mapping) else item) for item in value)
        return [self._text(f"an item of {path}", item) for item in items if item is not None]

    def _text(self, path: str, value: Any) -> str:
        try:
            return text_of(value)
        except TypeError as error:
            self.fault(f"{path} is {error}, no text")
            return ""


def text_of(value: Any) -> str:
    """A value as text: numbers, true and false as in JSON, dates as in ISO 8601.

    1812.0 is "1812": readers of tables make such numbers of whole ones. A time at midnight is a
    date: they make times of dates. Raises TypeError, which says what the value is, for what is no
    text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value:f}"
    if isinstance(value, datetime):
        is_date = value.tzinfo is None and value.time() == time()
        return value.date().isoformat() if is_date else value.isoformat(" ")
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (float, Decimal)):
        raise TypeError(str(value))
    raise TypeError(_KINDS.get(type(value), type(value).__name__))
