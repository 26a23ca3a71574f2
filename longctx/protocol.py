"""PROTOCOL=kvpress: runs whose scores can stand beside kvpress's published ones.

It reads and prunes the context before the question, in every layer and at any length, keeps
int(n * keep_ratio) of n tokens, and tokenizes context and question apart, in the chat template
where there is one and without thinking: kvpress/pipeline.py and presses/scorer_press.py,
https://github.com/NVIDIA/kvpress, version 0.5.5.
"""

from dataclasses import replace
from typing import Any

from longctx.config import Environment, text_of
from longctx.errors import SettingError, raise_any
from longctx.settings import Settings

_FIXED: dict[str, Any] = {"kv_scope": "context", "skip_layers": (), "prune_after": 0}
# kvpress has no such thing: only what these stand at by default is its protocol.
_UNSET = {"keep_tokens": None, "prune_every": None, "kv_quant": "none"}
_REFUSED = {"chat_template": "off", "enable_thinking": "on"}


def is_kvpress(settings: Settings) -> bool:
    """Whether a run follows kvpress."""
    return settings.protocol == "kvpress"


def with_protocol(settings: Settings, environ: Environment) -> Settings:
    """Settings with what PROTOCOL stands for. Raises SettingError for each that contradicts it."""
    if not is_kvpress(settings):
        return settings
    problems = []
    for name, wanted in (_FIXED | _UNSET).items():
        value = getattr(settings, name)
        if name.upper() in environ.is_set and value != wanted:
            has = f"{name.upper()}={text_of(wanted)}" if name in _FIXED else "none"
            problems.append((name, value, f"PROTOCOL=kvpress has {has}"))
    for name, refused in _REFUSED.items():
        if getattr(settings, name) == refused:
            problems.append((name, refused, "contradicts PROTOCOL=kvpress"))
    raise_any(
        [
            SettingError(name.upper(), text_of(value), f"{problem}; leave it unset")
            for name, value, problem in problems
        ]
    )
    return replace(settings, **_FIXED)
