"""What sets runs apart: the settings that were varied, and what else is not the same."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from longctx import config, tables
from longctx.settings import Settings

Meta = dict[str, Any]

CACHE = ("KV_MODE", "KV_QUANT")

# The fingerprint of the data says whether two runs had the same samples.
_CHOOSE_SAMPLES = ("DATASET_ID", "SPLIT", "CONTEXTS", "N_SAMPLES")


def differing_settings(reference: Meta, other: Meta) -> dict[str, tuple[str, str]]:
    """Name -> both values, as in the shell, of each setting that may explain a difference.

    Not of settings that cannot change a figure, that choose samples, or that have an effect in only
    one of the runs, such as KEEP_RATIO beside KV_MODE=none. A setting that an old run did not know
    had its default.
    """
    known = _known()
    names = dict.fromkeys([*reference["variables"], *other["variables"]])
    defaults = {name: variable.default for name, variable in known.items()}
    found = {}
    for name in names:
        variable = known.get(name)
        default = defaults.get(name)
        texts = [config.text_of(m["variables"].get(name, default)) for m in (reference, other)]
        if (
            texts[0] != texts[1]
            and name not in _CHOOSE_SAMPLES
            and (variable is None or _counts(variable, defaults, reference, other))
        ):
            found[name] = (texts[0], texts[1])
    return found


def _counts(variable: config.Variable, defaults: dict[str, Any], *metas: Meta) -> bool:
    values = [defaults | meta["variables"] for meta in metas]
    return variable.changes_results and not any(map(variable.unused_beside, values))


def apart_from_cache(meta: Meta) -> tuple[tuple[str, str], ...]:
    """The settings that a run shares with the full cache that it is compared with.

    Name and value of what has an effect where nothing is pruned, without what chooses samples or
    the format of the cache. A setting that an old run did not know had its default.
    """
    known = _known()
    values = {name: variable.default for name, variable in known.items()} | meta["variables"]
    values |= dict.fromkeys(CACHE, "none")
    return tuple(
        (name, config.text_of(values[name]))
        for name in sorted(values)
        if name not in (*_CHOOSE_SAMPLES, *CACHE)
        and (name not in known or known[name].changes_results)
        and (name not in known or known[name].unused_beside(values) is None)
    )


def setting(meta: Meta, name: str) -> str:
    """A setting of a run, as in the shell; one that it did not know had its default."""
    default = _known()[name].default if name in _known() else None
    return config.text_of(meta["variables"].get(name, default))


@cache
def _known() -> dict[str, config.Variable]:
    return {variable.name: variable for variable in config.variables(Settings)}


def differing_conditions(reference: Meta, other: Meta) -> dict[str, tuple[str, str]]:
    """Name -> both values of what no setting says: machine, versions, code, form of the prompts."""
    pairs = {
        f"device {key}": (reference["device"].get(key), other["device"].get(key))
        for key in dict.fromkeys([*reference["device"], *other["device"]])
    }
    for name in dict.fromkeys([*reference["versions"], *other["versions"]]):
        pairs[name] = (reference["versions"].get(name), other["versions"].get(name))
    for key in ("prompt_format", "git_commit"):
        pairs[key.replace("_", " ")] = (reference[key], other[key])
    if reference["variables"]["MODEL_ID"] == other["variables"]["MODEL_ID"]:
        pairs["model"] = (reference["model"], other["model"])
    return {
        name: (config.text_of(first) or "unknown", config.text_of(second) or "unknown")
        for name, (first, second) in pairs.items()
        if first != second
    }


def labels(metas: Sequence[Meta]) -> list[str]:
    """A short label for each run, each another one.

    To what `tables.label` says come, where it does not suffice, the settings that differ from those
    of the first run of that label, and then the time in the run's name.
    """
    shorts = [tables.label(meta) for meta in metas]
    first = dict(reversed(list(zip(shorts, metas, strict=True))))
    longer = []
    for short, meta in zip(shorts, metas, strict=True):
        differing = differing_settings(first[short], meta) if meta is not first[short] else {}
        more = [f"{name}={mine}" for name, (_, mine) in differing.items()]
        longer.append(", ".join([short, *more]))
    count = Counter(longer)
    named = [
        f"{text}, {meta['run_id'].rpartition('_')[2]}" if count[text] > 1 else text
        for text, meta in zip(longer, metas, strict=True)
    ]
    # Two copies of one run.
    return [
        f"{text} ({named[:place].count(text) + 1})" if text in named[:place] else text
        for place, text in enumerate(named)
    ]


def short(labels: Sequence[str]) -> list[str]:
    """The labels without the parts that all of them have; as they are where nothing would stay."""
    parts = [text.split(", ") for text in labels]
    common = set(parts[0]).intersection(*parts[1:]) if parts else set()
    shortened = [", ".join(part for part in mine if part not in common) for mine in parts]
    return shortened if all(shortened) and len({*shortened}) == len({*labels}) else list(labels)
