"""Project Gutenberg's books without what stands around them: header and licence.

The licence alone has 17,000 characters, more than three times as many as the shortest story.
"""

import re

_KIND = r"(?:THE |THIS |THE COPYRIGHTED |THIS COPYRIGHTED )?PROJECT GUTENBERG"
# The second is from before 2003, when the licence, "THE SMALL PRINT!", stood above the story.
_HEADER_END = re.compile(
    rf"\*{{3}}\s*START OF {_KIND}(?:[^*]{{0,300}}?\*{{3}}|[^\n]*)"
    r"|\*END\*?\s?\*?THE SMALL PRINT![^\n]*",
    re.IGNORECASE,
)
_FARTHEST_HEADER = 30_000  # characters
_STORY_END = re.compile(
    rf"\*{{3}}\s*END OF {_KIND}|^[ \t]*(?:THE )?END OF {_KIND}\b", re.IGNORECASE | re.MULTILINE
)
_LICENCE = re.compile(
    r"\*{3}\s*START: FULL LICENSE|\*{3,5}\s*This file should be named"
    r"|\*{3}\s*START\*\*\s?THE SMALL PRINT!",
    re.IGNORECASE,
)
# "End of Project Gutenberg's ..." stands above "*** END OF THIS PROJECT GUTENBERG EBOOK".
_BETWEEN_ENDS = 1_000  # characters


def story(text: str) -> str:
    """What stands between the marks at the end of the header and at the end of the story.

    A text without such marks is given back as it is. What stands inside of them, such as
    "Produced by ...", stays.
    """
    end = len(text)
    for match in reversed(list(_STORY_END.finditer(text))):
        if end < len(text) and end - match.start() > _BETWEEN_ENDS:
            break
        end = match.start()
    headers = [match.end() for match in _HEADER_END.finditer(text, 0, min(end, _FARTHEST_HEADER))]
    begin = next((place for place in reversed(headers) if text[place:end].strip()), 0)
    if end == len(text) and (licence := _LICENCE.search(text, begin)):
        end = licence.start()
    is_marked = begin > 0 or end < len(text)
    return text[begin:end].strip() if is_marked else text
