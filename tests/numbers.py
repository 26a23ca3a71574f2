"""Numbers that a document prints, and whether committed logs hold them."""

import json
import re
from collections import Counter

from longctx import load_results
from tests import docs

# A number that is no part of a word, a path or a version.
_NUMBER = re.compile(r"(?<![\w.\-/])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w/]|\.\d|-\w)")


def printed(text):
    """The numbers in a piece of Markdown as they are printed, code left out."""
    return _NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text))


def is_held(number, pool):
    """Whether a number of the pool, rounded to the digits that are printed, is this one."""
    plain = number.replace(",", "").lstrip("+")
    _, _, decimals = plain.partition(".")
    return any(abs(value - float(plain)) <= 0.5000001 * 10 ** -len(decimals) for value in pool)


def logs_named(text):
    """Files and folders under logs/ that a text names, all there."""
    names = re.findall(r"`((?:flex_pipeline/)?logs/[\w./-]+)`", text)
    assert all((docs.ROOT / name).exists() for name in names), names
    return [docs.ROOT / name for name in names]


def held(path):
    """The numbers of a log, or of the full results in a folder: figures, settings, counts."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pool = set()
    for file in files:
        if file.name.endswith(load_results.FULL_SUFFIXES):
            full = json.loads(load_results.content_of(file))
            answers = Counter(s["prediction"] for row in full["rows"] for s in row["samples"])
            pool |= set(answers.values())
            variables = full["run_meta"]["variables"]
            pool |= _numbers([full["ctx_summaries"], full["summary"], variables])
            pool |= set(_versions(full["run_meta"]["versions"]))
        elif file.suffix == ".json":
            pool |= _numbers(json.loads(file.read_text()))
    return pool


def _numbers(value):
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return set()
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        return set().union(*map(_numbers, value))
    return {value, 100 * value} if isinstance(value, float) and abs(value) <= 1 else {value}


def _versions(versions):
    """2.11 of 2.11.0+cu130."""
    for version in versions.values():
        if found := re.match(r"\d+\.\d+", version):
            yield float(found[0])
