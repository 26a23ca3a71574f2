"""Words of texts in any script, for the scores that compare words.

ROUGE and METEOR were made for English: rouge_score knows the letters a to z alone, and NLTK splits
at spaces. Here Latin letters and digits are split as these do. Of other scripts a word is a run of
letters with their vowel signs and accents; where a script puts no spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese, Tibetan), each character is one.
"""

import string
import unicodedata
from collections.abc import Callable
from functools import cache

_UNSPACED = (
    *("CJK UNIFIED", "CJK COMPATIBILITY", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO"),
    *("HALFWIDTH KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "YI SYLLABLE"),
)
_LATIN = ("LATIN", "FULLWIDTH LATIN", "FULLWIDTH DIGIT")
_AFTER_LATIN = "\u0370"  # below are Latin letters, signs of phonetics, and accents for both
_JOINERS = "\u200c\u200d\u0640"  # stand inside of words in Indic and Arabic scripts
_APOSTROPHES = "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"


def rouge_words(text: str) -> list[str]:
    """rouge_score's words of a text, and those of other scripts than Latin.

    As there a Latin letter beyond a to z is no part of a word, unless a text has no others.
    """
    runs = _runs(text.lower(), _kind)
    return [word for kind, word in runs if kind != "latin"] or [word for _, word in runs]


def meteor_words(text: str) -> list[str]:
    """Penn Treebank words, lower-cased, without those that are punctuation alone.

    METEOR 1.5 keeps punctuation, with the low weight of function words. NLTK's METEOR has no such
    weights: a full stop would count as much as the answer.
    """
    from nltk.tokenize import NLTKWordTokenizer

    # NLTK splits off only the last full stop; the others it leaves to a sentence splitter, which
    # would be one more download.
    tokens = (token.rstrip(".") for token in NLTKWordTokenizer().tokenize(_spaced(text.lower())))
    return [token for token in tokens if not all(map(is_punctuation, token))]


def whole_words(text: str) -> list[str]:
    """Words of letters and digits, accents included; a number's own comma or point is left out."""
    text = unicodedata.normalize("NFKC", text)
    kept = (
        letter
        for place, letter in enumerate(text)
        if not (letter in ".," and text[place - 1 : place].isdigit() and _digit_at(text, place + 1))
    )
    return [word for _, word in _runs("".join(kept), _whole_kind)]


@cache
def is_punctuation(character: str) -> bool:
    """Whether it is punctuation in any script, or one of ASCII's signs."""
    return character in string.punctuation or unicodedata.category(character)[0] == "P"


def _digit_at(text: str, place: int) -> bool:
    return text[place : place + 1].isdigit()


@cache
def _kind(character: str) -> str:
    """What a character does in a word: "ascii", "latin", "unspaced", "other", "mark", "joiner".

    Empty where it belongs to none.
    """
    if character.isascii():
        return "ascii" if character.isalnum() else ""
    if character in _JOINERS:
        return "joiner"
    category, name = unicodedata.category(character), unicodedata.name(character, "")
    if category[0] == "M":
        return "mark"
    if category[0] != "L" and category != "Nd":
        return ""
    if character < _AFTER_LATIN or name.startswith(_LATIN):
        return "latin"
    return "unspaced" if category[0] == "L" and name.startswith(_UNSPACED) else "other"


def _whole_kind(character: str) -> str:
    kind = _kind(character)
    return "other" if kind in ("ascii", "latin") else kind


def _runs(text: str, kind_of: Callable[[str], str]) -> list[tuple[str, str]]:
    """Runs of characters of one kind, each with its kind; of "unspaced" ones each is a run."""
    runs: list[tuple[str, list[str]]] = []
    open_kind = ""
    for character in text:
        kind = kind_of(character)
        belongs = kind == open_kind and kind != "unspaced"
        if kind == "joiner" and open_kind == "other":
            continue
        if kind == "mark" and open_kind not in ("", "ascii"):
            belongs, kind = True, open_kind
        if kind in ("mark", "joiner", ""):
            open_kind = ""
        elif belongs:
            runs[-1][1].append(character)
        else:
            runs.append((kind, [character]))
            open_kind = kind
    # One form of accents and of Greek's final sigma.
    return [(kind, unicodedata.normalize("NFC", "".join(word).casefold())) for kind, word in runs]


def _spaced(text: str) -> str:
    """With spaces around what NLTK leaves joined: unspaced scripts and others' punctuation."""
    pieces: list[str] = []
    stands_alone = False
    for character in text:
        if _kind(character) != "mark":
            was_alone = stands_alone
            stands_alone = _kind(character) == "unspaced" or _is_foreign_punctuation(character)
            if was_alone or stands_alone:
                pieces.append(" ")
        pieces.append(character)
    return "".join(pieces)


@cache
def _is_foreign_punctuation(character: str) -> bool:
    return (
        not character.isascii()
        and unicodedata.category(character) in ("Po", "Ps", "Pe", "Pi", "Pf")
        and character not in _APOSTROPHES
    )
