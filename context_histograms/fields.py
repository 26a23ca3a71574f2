"""Texts and labels of records, found by dotted paths such as `document.summary.text`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from longctx.data import Record
from longctx.errors import SettingError
from longctx.records import text_of


def value_at(value: Any, path: Sequence[str]) -> Any:
    """What stands at `path`, in every item of a list; None below a null. Raises KeyError."""
    if not path or value is None:
        return value
    if isinstance(value, list):
        return [value_at(item, path) for item in value]
    if not isinstance(value, Mapping):
        raise KeyError(path[0])
    return value_at(value[path[0]], path[1:])


def joined(value: Any, separator: str = "\n") -> str:
    """A text, or a list's texts: lines of a list, and of a list of lists each inner one a line.

    HotpotQA's `context.sentences` are paragraphs of sentences that bring their own spaces. Raises
    TypeError for what is no text.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise TypeError(type(value).__name__)
    return separator.join(joined(item, separator="") for item in value if item is not None)


def names(value: Any, prefix: str = "") -> list[str]:
    """Dotted paths of all fields of a record."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, Mapping):
        return [prefix]
    return [
        path
        for name, item in value.items()
        for path in names(item, f"{prefix}.{name}" if prefix else name)
    ]


def texts(
    records: Iterable[Record], field: str, group_by: str | None
) -> Iterator[tuple[str | None, str | None]]:
    """Each record's text, None where it is null or missing, and its label. Raises SettingError.

    A label that is null or missing is "none"; without `group_by` labels are None.
    """
    for number, record in enumerate(records):
        value = _look_up(record, number, "FIELD", field)
        label = None if group_by is None else _look_up(record, number, "GROUP_BY", group_by)
        try:
            text = None if value is None else joined(value)
        except TypeError as error:
            problem = f"record {number} holds no text there but {error}; the fields are "
            raise SettingError("FIELD", field, problem + ", ".join(names(record))) from None
        try:
            yield text, None if group_by is None else "none" if label is None else text_of(label)
        except TypeError:
            problem = f"record {number} holds no label there"
            raise SettingError("GROUP_BY", group_by, problem) from None


def _look_up(record: Record, number: int, variable: str, path: str) -> Any:
    try:
        return value_at(record, path.split("."))
    except KeyError:
        # A data set's schema is one for all records, so the first shows every field.
        if number == 0:
            problem = f"no such field; the fields are {', '.join(names(record))}"
            raise SettingError(variable, path, problem) from None
        return None
