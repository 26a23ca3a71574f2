"""Passwords and tokens stay out of results, logs and the terminal.

A setting that holds one is refused, since settings are recorded; in what libraries say about an
error it is masked.
"""

import re
from collections.abc import Collection, Mapping

_MASK = "***"
_MIN_CHARACTERS = 8  # a shorter value stands in too many texts by chance
_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|KEY|CREDENTIALS?)$")
_SHAPES = (
    re.compile(r"(?<=://)[^/\s]+(?=@)"),
    re.compile(r"(?i)(?<=[?&])(?:[\w-]*(?:token|signature|secret|password|key)|sig)=[^&#\s]+"),
    re.compile(r"(?i)\b(?:bearer|basic)\s+\S+"),
    # Hugging Face, Weights & Biases, GitHub
    re.compile(r"hf_[A-Za-z0-9]{30,}|wandb_v\d_\w{30,}|gh[pousr]_\w{36,}|github_pat_\w{36,}"),
)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a password or token."""
    return _SECRET_NAME.search(name.upper()) is not None


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """The values of variables that hold passwords and tokens, by their names."""
    values = (value.strip() for name, value in environ.items() if is_secret_name(name))
    return [value for value in values if len(value) >= _MIN_CHARACTERS]


def masked(text: str, secrets: Collection[str] = ()) -> str:
    """`text` without `secrets`, and without what has the shape of one.

    Shapes: the user in `https://user:password@host`, a signature or token in a query, an
    `Authorization` header, tokens by their prefix.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    for shape in _SHAPES:
        text = shape.sub(_MASK, text)
    return text


def reason(error: BaseException) -> str:
    """First line of what an error says, or else its type, masked."""
    return masked((str(error).strip() or type(error).__name__).splitlines()[0])
