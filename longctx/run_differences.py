"""What sets runs apart: the settings that were varied, and what else is not the same."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from longctx import config, tables
from longctx.settings import Settings

Meta = dict[str, Any]

# The fingerprint of the data says whether two runs had the same samples.
_CHOOSE_SAMPLES = ("DATASET_ID", "SPLIT", "CONTEXTS", "N_SAMPLES")


def differing_settings(reference: Meta, other: Meta) -> dict[str, tuple[str, str]]:
    """Name -> both values, as in the shell, of each setting that may explain a difference.

    Not of settings that cannot change a figure, that choose samples, or that have an effect in only
    one of the runs, such as KEEP_RATIO beside KV_MODE=none. A setting that an old run did not know
    had its default.
    """
    known = {variable.name: variable for variable in config.variables(Settings)}
    names = dict.fromkeys([*reference["variables"], *other["variables"]])
    found = {}
    for name in names:
        variable = known.get(name)
        default = variable.default if variable else None
        texts = [
            config.text_of(_tuple(meta["variables"].get(name, default)))
            for meta in (reference, other)
        ]
        if (
            texts[0] != texts[1]
            and name not in _CHOOSE_SAMPLES
            and (variable is None or _counts(variable, reference, other))
        ):
            found[name] = (texts[0], texts[1])
    return found


def _counts(variable: config.Variable, *metas: Meta) -> bool:
    if not variable.changes_results:
        return False
    values = [meta["variables"] for meta in metas]
    if variable.owner is not None:
        chooser, choice = variable.owner
        return all(mine.get(chooser) == choice for mine in values)
    if variable.unused_when is not None:
        chooser, choice = variable.unused_when
        return all(mine.get(chooser) != choice for mine in values)
    return True


def _tuple(value: Any) -> Any:
    """JSON has no tuples; `config.text_of` knows no lists."""
    return tuple(value) if isinstance(value, list) else value


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
