"""The letter that a model's text chooses among four choices, A to D.

First LongBench-v2's own pattern, "The correct answer is (X)" (`extract_answer` in its pred.py);
then, for models that answer in other forms, what cannot be misread. A word that begins with one of
the letters is no choice, and a text from which two choices can be read chooses none.
"""

import re
import unicodedata
from collections.abc import Mapping

from longctx import thinking
from longctx.answers import first_line

# Stars go, as in the official script; quotation marks and dashes lose their shape.
_PLAIN_SIGNS = str.maketrans(
    {"*": None}
    | dict.fromkeys("\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}", "'")
    | dict.fromkeys("\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}", '"')
    | dict.fromkeys("\N{EN DASH}\N{EM DASH}", "-")
)
_OFFICIAL = re.compile(r"The correct answer is \(([A-D])\)")
_OFFICIAL_BARE = re.compile(r"The correct answer is ([A-D])")

# A label is a letter in brackets, or a bare one that punctuation or the end follows, so that
# neither "Because" nor "A dog" nor "A.I." has one; a few words may follow a capital.
_END = r"""(?=\s*(?:$|\n|\.(?!\w)|[,:;!?)\]}"`$<(|]|'(?!\w)|\s-))"""
_WORDS = r"(?=\s+(?:because|since|as|is|based|due)\b)"
_BRACKETED = r"[(\[{]\s*([A-Da-d])\s*[)\]}]"
_BARE = rf"(?<!\w)(?:([A-D])(?:{_END}|{_WORDS})|([a-d]){_END})"
_LABEL = rf"(?:{_BRACKETED}|{_BARE})"

_WHOLE = re.compile(r"\W*([A-Da-d])\W*")
_FIRST = re.compile(
    rf"""[\s"'`$<]*(?:{_BRACKETED}|([a-d])[.):](?=\s)|([A-D])(?:{_END}|{_WORDS}))"""
)
_STATEMENTS = (
    # answer: X, correct option is (X), {"answer": "X"}, <answer>X
    re.compile(
        r"(?i:\b(?:answer|ans|(?:correct|right|best) (?:option|choice|statement))\b"
        r"(?: to (?:this|the) question)?[\s:=>.\-\"']*"
        r"(?:(?:is|was|would be|should be|must be|will be|seems to be)\b)?"
        r"(?:[\s:=\"'`$]|option\b|choice\b|letter\b|likely\b|probably\b|clearly\b)*)" + _LABEL
    ),
    re.compile(
        r"(?i:\b(?:choose|select|pick|go with|opt for)\s+(?:(?:option|choice|answer)\s+)?)" + _LABEL
    ),
    re.compile(rf"(?i:\b(?:it is|it's|it must be|say)\s+)(?:{_BRACKETED}|([A-D]){_END})"),
    re.compile(
        rf"(?:{_BRACKETED}|(?:^|\n|[,;.]\s|(?i:\b(?:option|choice|answer|think|believe|that)\s))"
        r"\s*([A-D]))(?i:\s+is\s+(?:(?:the|most|likely|probably)\s+)*"
        r"(?:correct|right|best|true|accurate|answer)\b)"
    ),
    re.compile(r"\\boxed\{\s*(?:\\text\w*\{)?\s*\(?([A-D])\)?\s*\}"),
    re.compile(r"答案(?:应该|应)?[是为选:\s]*\(?([A-D])(?!\w)"),
)
_MENTION = re.compile(
    rf"[(\[{{]\s*([A-D])\s*[)\]}}]|(?i:\b(?:option|choice)[\s:]+)(?:{_BRACKETED}|([A-D]){_END})"
)
_DENIED_BEFORE = re.compile(r"(?i)(?:\bnot|n't|\bnever|\bneither|\bnor)\s+(?:\w+\s+)?$")
_DENIED_AFTER = re.compile(
    r"(?i)[)\]]?:?\s*(?:(?:is|was|seems|appears|would be|can be)\s+(?:clearly |also )?"
    r"(?:not\b|wrong|incorrect|false|ruled out)|isn't|wasn't|cannot|can't|wrong|incorrect|false)"
)
_SECOND_LABEL = re.compile(
    r"[)\]}]?\s*(?:,|/|&|\+|\band\b|\bor\b)\s*(?:and |or )?[(\[]?([A-D])(?:[)\]]|(?!\w))"
)
_LISTED = re.compile(r"^\s*(?:[-*]\s*)?[(\[]?([A-D])[)\].:](?:\s.*)?$", re.M)
_LEAD_IN = re.compile(r"(?i)^.*?\b(?:answer|choice|option)\b(?:\s+is\b|\s*:)\s*:?|^it(?: is|'s) ")
_PROMPT_AGAIN = re.compile(
    r"(?m)^\W*(?:What is the correct answer to|Choices:|Please read the following|Format your resp)"
)
_FEWEST_CONTAINED_WORDS = 3


def letter_of(text: str, choices: Mapping[str, str], prompt_is_raw: bool) -> str:
    """The letter chosen; empty when there is none, or more than one, or only a thought.

    choices: the choices' texts by letter.
    prompt_is_raw: after a raw prompt a model writes on, so only its first line counts, and nothing
        from where it begins to repeat the prompt.
    """
    text = unicodedata.normalize("NFKC", thinking.answer(text)).translate(_PLAIN_SIGNS).strip()
    if prompt_is_raw:
        text = first_line(_without_list(_PROMPT_AGAIN.split(text)[0]))
    official = _OFFICIAL.search(text)
    if official:
        return _only(_joined(text, official))
    if len(same := _same_words(text, choices)) == 1:
        return same.pop()
    text = _without_list(text).strip()
    stated = _stated(text) | _same_words(_LEAD_IN.sub("", _without_label(text)), choices)
    return _only(stated or _mentioned(text) or _contained(text, choices))


def official_letter_of(text: str) -> str:
    """The letter as LongBench-v2's `extract_answer` reads it; empty where it reads none.

    Any capital A to D counts that follows "The correct answer is", a word's first letter too.
    """
    text = text.strip().replace("*", "")
    found = _OFFICIAL.search(text) or _OFFICIAL_BARE.search(text)
    return found[1] if found else ""


def _only(letters: set[str]) -> str:
    """The one letter; empty for none and for several."""
    return next(iter(letters)) if len(letters) == 1 else ""


def _joined(text: str, match: re.Match[str]) -> set[str]:
    """The label that `match` found, and another that is joined to it."""
    letters = {group.upper() for group in match.groups() if group}
    second = _SECOND_LABEL.match(text, match.end())
    return letters | {second[1]} if second else letters


def _named(text: str, match: re.Match[str]) -> set[str]:
    """The same, unless the text denies it."""
    if _DENIED_BEFORE.search(text, 0, match.start()) or _DENIED_AFTER.match(text, match.end()):
        return set()
    return _joined(text, match)


def _stated(text: str) -> set[str]:
    """Letters that the text begins with or calls the answer."""
    whole = _WHOLE.fullmatch(text)
    if whole:
        return {whole[1].upper()}
    found = [match for pattern in _STATEMENTS for match in pattern.finditer(text)]
    if first := _FIRST.match(text):
        found.append(first)
    return {letter for match in found for letter in _named(text, match)}


def _mentioned(text: str) -> set[str]:
    """Letters named anywhere as one names a choice."""
    return {letter for match in _MENTION.finditer(text) for letter in _named(text, match)}


def _without_list(text: str) -> str:
    """`text` without lines that list the choices once more."""
    listed = set(_LISTED.findall(text))
    return _LISTED.sub("", text) if len(listed) > 1 else text


def _without_label(text: str) -> str:
    first = _FIRST.match(text)
    return text[first.end() :].lstrip(" .):]-") if first else text


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _words(choices: Mapping[str, str]) -> dict[str, str]:
    return {letter: _plain(choice) for letter, choice in choices.items()}


def _same_words(text: str, choices: Mapping[str, str]) -> set[str]:
    """Letters of the choices whose words are the text, its first line or its first sentence."""
    candidates = {
        _plain(text),
        _plain(text.partition("\n")[0]),
        _plain(re.split(r"[.;\n]\s", text)[0]),
    }
    return {letter for letter, words in _words(choices).items() if words in candidates - {""}}


def _contained(text: str, choices: Mapping[str, str]) -> set[str]:
    """Letters of the choices whose words stand somewhere in the text, but in no longer choice."""
    found = {
        letter: words
        for letter, words in _words(choices).items()
        if len(words.split()) >= _FEWEST_CONTAINED_WORDS and f" {words} " in f" {_plain(text)} "
    }
    return {
        letter
        for letter, words in found.items()
        if not any(words in other and words != other for other in found.values())
    }
