"""Every number in the results of README and docs/results.md is found in a committed log."""

import re
from functools import cache

import pytest

from studies import tables
from tests import docs, numbers

README = docs.ROOT / "README.md"
RESULTS = docs.ROOT / "docs" / "results.md"
_TABLE = re.compile(r"^\|.*\|\n\|[-| :]+\|\n((?:\|.*\|\n)+)", re.M)
_STUDY = re.compile(r"<!-- study: (.+?) -->\n(.*?)\n<!-- end of study -->", re.S)
STUDIES, AGAIN = (docs.ROOT / "logs" / name for name in ("studies", "studies-again"))


@cache
def made():
    """The study's tables, by name."""
    return tables.blocks(STUDIES, AGAIN)


def results_of(document):
    text = document.read_text()
    return docs.sections(text, 2)["Results"] if document == README else text


def tables_of(text):
    """The body of each table, with the text since the table or the heading before it."""
    text = _STUDY.sub("", text)  # held to the logs as a whole
    place = 0
    for found in _TABLE.finditer(text):
        yield found[1], re.split(r"^#+ .*$", text[place : found.start()], flags=re.M)[-1]
        place = found.end()


@pytest.mark.parametrize("document", [README, RESULTS], ids=lambda path: path.name)
def test_the_numbers_of_tables_are_in_the_logs_named_before_them(document):
    found = list(tables_of(results_of(document)))
    assert found or _STUDY.search(document.read_text())
    for body, before in found:
        logs = numbers.logs_named(before)
        assert logs, f"no log is named before the table\n{body}"
        pool = set().union(*map(numbers.held, logs))
        printed = numbers.printed(body)
        assert printed
        assert [number for number in printed if not numbers.is_held(number, pool)] == []


def test_the_numbers_of_the_readmes_sentences_are_in_some_log_that_it_names():
    section = results_of(README)
    tables_there = map("\n".join, _STUDY.findall(section + RESULTS.read_text()))
    # Of the study's folders one will do, for the versions it ran with.
    logs = [*numbers.logs_named(section + RESULTS.read_text()), STUDIES / "combined"]
    pool = set().union(*map(numbers.held, logs))
    pool |= {float(n.replace(",", "")) for text in tables_there for n in numbers.printed(text)}
    prose = re.sub(r"```.*?```", "", _STUDY.sub("", _TABLE.sub("", section)), flags=re.S)
    printed = numbers.printed(prose)
    assert printed
    assert [number for number in printed if not numbers.is_held(number, pool)] == []


@pytest.mark.model
@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_the_studys_tables_are_those_of_its_logs(document):
    for name, text in _STUDY.findall(document.read_text()):
        assert text == made()[name]


def test_a_number_that_is_not_there_is_found_out(tmp_path):
    log = tmp_path / "log.json"
    log.write_text("[1346.6, 22.742, 37.0, 32768, 2.11]")
    pool = numbers.held(log)
    text = "| `sdpa` | 1,347 / 22.74 | 32,768 tokens, 2.11 |"
    assert numbers.printed(text) == ["1,347", "22.74", "32,768", "2.11"]
    for number in ("1,347", "22.74", "37.0", "32,768", "2.11"):
        assert numbers.is_held(number, pool)
    for number in ("1,346", "22.75", "37.1", "0.347"):
        assert not numbers.is_held(number, pool)
    assert numbers.printed("a7 H200 p50 7B `12` 3x [a](a/6.md) 0.095 [0.045, -0.152] 90% 1.") == [
        "0.095", "0.045", "-0.152", "90", "1",
    ]  # fmt: skip
