"""Passwords and tokens stay out of results, logs and the terminal.

A setting that holds one is refused, since settings are recorded; in all other text that leaves the
process it is masked: by value, where a variable of the environment holds it, and by its shape.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

_MASK = "***"
_MIN_CHARACTERS = 6
_MIN_INSIDE_WORDS = 8  # a shorter value stands inside other words by chance
_READ_OF_AN_ERROR, _KEPT_OF_AN_ERROR = 10_000, 2_000  # characters
_MIN_OF_A_LINE = 16  # of a value with several, such as a private key
_NO_SECRETS = {"default", "disabled", "enabled", "optional", "password", "required", "secret"}

# A part of a variable's name, between underscores, that tells of a secret ...
_SECRET_PART = re.compile(
    r"\w*(?:PASSWORDS?|PASSWD|PASSPHRASE|PASSCODE|SECRETS?|TOKEN|CREDENTIALS?|COOKIES?|APIKEYS?)"
    r"|(?:ADMIN|DB|FTP|MYSQL|PG|REDIS|ROOT|SMTP|SSH|USER)?PASS|PWD|CREDS|AUTH|BEARER|SAS|PAT|JWT|DSN"
    r"|(?:ACCESS|AUTH|PRIVATE|SECRET|SIGNING)?KEYS?|CONNSTR|CONNECTIONSTRING"
)
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:CONN(?:ECTION)?_STR(?:ING)?(?:_|$)|(?:API|ACCESS|AUTH)_TOKENS(?:_|$)|SESSION$)"
)
# ... unless the name ends in what only belongs to one, or is known to hold something else.
_NO_SECRET_NAME = re.compile(
    r"(?:.*_)?(?:AGENT|ALGORITHM|ARN|BINDINGS|CMD|COMMAND|COUNT|DELAY|DIR|ENABLED|ENDPOINT|EXPIRES"
    r"|EXPIRY|FILE|FOLDER|FORMAT|HEADER|HELPER|HOME|HOST|INDEX|ISSUER|LEN|LENGTH|LIMIT|METHOD|MODE"
    r"|NAME|PARALLELISM|PATH|PORT|PREFIX|PROMPT|PROVIDER|REGION|REPEAT|REQUIRED|SCOPES?|SIZE|SOCK"
    r"|SOCKET|STORE|TIME|TIMEOUT|TTL|TTY|TYPE|URI|URL|USER|USERNAME|VERSION)"
    r"|(?:^|.*_)(?:PUBLIC|PUBLISHABLE)_.*|(?:OLD)?PWD|DESKTOP_SESSION|XDG_.*"
    r"|GOOGLE_APPLICATION_CREDENTIALS"
    r"|(?:.*_)?(?:BOS|CLS|EOS|IMAGE|MASK|MAX|MIN|NEW|NUM|PAD|PER|SEP|STOP|UNK)_TOKEN"
)

_USER_OF_URL = re.compile(r"://([^/\s:@]*)(?::([^/\s]*))?@")
_ASSIGNED = r"(?i)(?:passw(?:or)?d|pwd|secret|(?:api|access|account|shared_?access)_?key)\s*=\s*"
_ASSIGNED_VALUE = re.compile(_ASSIGNED + r"([^;&,\s]+)")
_SHAPES = (
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)", re.DOTALL
    ),
    re.compile(r"(?<=://)[^/\s]+(?=@)"),
    re.compile(r"(?i)(?<=[?&])(?:[\w-]*(?:token|signature|secret|password|key)|sig)=[^&#\s]+"),
    re.compile(_ASSIGNED + r"[^;&,\s]{6,}"),
    re.compile(r"(?i)\b(?:bearer|basic)\s+\S+"),
    # Hugging Face, Weights & Biases
    re.compile(r"hf_[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z0-9]{20,}|wandb_v\d_\w{30,}"),
    # GitHub, GitLab
    re.compile(r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|\bglpat-[\w-]{16,}"),
    # OpenAI, Anthropic and those who write keys as they do
    re.compile(
        r"\bsk-(?:(?:proj|ant|svcacct|admin|or)-[\w-]{16,}"
        r"|(?=[\w-]{0,99}\d)(?:[a-z0-9]{1,20}-){0,4}[A-Za-z0-9_]{16,}[\w-]*)"
    ),
    # Stripe, SendGrid, Groq, Replicate, NVIDIA; a web hook of Slack
    re.compile(r"\b[rs]k_(?:live|test)_\w{10,}|\bSG\.[\w-]{16,99}\.[\w-]{16,}"),
    re.compile(r"\b(?:gsk_|r8_|nvapi-)[\w-]{20,}|(?<=hooks\.slack\.com/services/)\S+"),
    # AWS, Google, Slack
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\bAIza[\w-]{30,}|\bxox[a-z]-[\w-]{10,}"),
    # JSON web tokens, npm, PyPI
    re.compile(
        r"\beyJ[\w-]{8,499}\.[\w-]{8,}(?:\.[\w-]*)?|\bnpm_[A-Za-z0-9]{20,}|\bpypi-[\w-]{30,}"
    ),
)
_NOTHING = re.compile(r"(?!)")
_known: re.Pattern[str] = _NOTHING


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a password or token."""
    name = name.upper().replace("-", "_")
    if _NO_SECRET_NAME.fullmatch(name):
        return False
    parts = map(_SECRET_PART.fullmatch, name.split("_"))
    return any(parts) or _SECRET_NAME.search(name) is not None


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """The passwords and tokens in variables: by the variables' names, and in addresses.

    Values under 6 characters are none, nor the names of files and folders that there are.
    """
    return list(dict.fromkeys(filter(_is_secret, map(str.strip, _candidates(environ)))))


def _candidates(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if is_secret_name(name):
            yield value
            if "\n" in value:
                yield from (line for line in value.splitlines() if len(line) >= _MIN_OF_A_LINE)
        for user, password in _USER_OF_URL.findall(value):
            found = password or (user if len(user) >= _MIN_OF_A_LINE else "")
            yield from (found, unquote(found))
        yield from _ASSIGNED_VALUE.findall(value)


def _is_secret(value: str) -> bool:
    is_file = os.path.isabs(value) and os.path.exists(value)
    return len(value) >= _MIN_CHARACTERS and value.lower() not in _NO_SECRETS and not is_file


def remember(*environs: Mapping[str, str]) -> None:
    """From here on `masked` knows the secrets of these, in the spellings that errors have."""
    global _known  # noqa: PLW0603
    patterns: dict[str, str] = {}
    for secret in (secret for environ in environs for secret in secrets_of(environ)):
        for text in _spellings(secret):
            inside_words = len(text) >= _MIN_INSIDE_WORDS
            pattern = re.escape(text)
            patterns[text] = pattern if inside_words else rf"(?<!\w){pattern}(?!\w)"
    longest_first = sorted(patterns, key=len, reverse=True)
    _known = (
        re.compile("|".join(map(patterns.__getitem__, longest_first))) if patterns else _NOTHING
    )


def _spellings(secret: str) -> set[str]:
    """As it is, escaped as in JSON and Python, percent-encoded, and in base 64."""
    raw = secret.encode(errors="surrogateescape")
    encoded = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    encoded |= {re.sub("%..", lambda code: code[0].lower(), text) for text in encoded}
    escaped = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    in_base64 = {base64.b64encode(raw), base64.urlsafe_b64encode(raw)}
    return {
        secret, repr(secret)[1:-1], *escaped, *encoded,
        *(text.decode().rstrip("=") for text in in_base64),
    }  # fmt: skip


def masked(text: str) -> str:
    """`text` without the secrets that are remembered, and without what has the shape of one.

    Shapes: the user in `https://user:password@host`, a signature or token in a query, an
    `Authorization` header, `password=...`, tokens by their prefix, private keys.
    """
    text = _known.sub(_MASK, text)
    for shape in _SHAPES:
        text = shape.sub(_MASK, text)
    return text


def in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` made in each text of its lists and dictionaries, keys too."""
    if isinstance(value, str):
        return change(value)
    # Most are numbers, and Mapping takes ten times as long to ask for as dict.
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, (dict, Mapping)):
        return {in_texts(key, change): in_texts(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_texts(item, change) for item in value]
    return value


def reason(error: BaseException) -> str:
    """First line of what an error says, or else its type, masked; not more than it takes."""
    try:
        said = str(error).strip()
    except Exception:  # code of others makes the text
        said = ""
    # Cut again after masking: the first cut may go through a secret.
    return masked(said[:_READ_OF_AN_ERROR] or type(error).__name__).splitlines()[0][
        :_KEPT_OF_AN_ERROR
    ]
