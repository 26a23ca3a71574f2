"""What is said of the next forwards before them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Incoming:
    """What the next forwards bring: `PrunedCache.expect` says it before them.

    left_padding: for each row the padding tokens before its new tokens, in a batch that follows the
        prompt; None for none. (The prompt's own padding is the layer's from the start.)
    prompt_tokens: length of a padded prompt that is written in several chunks; None: in one.
    last_query_only: of the last layer's attention only the last query's output is read.
    """

    left_padding: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    last_query_only: bool = False


NOTHING_SPECIAL = Incoming()
