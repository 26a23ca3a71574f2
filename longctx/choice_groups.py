"""The groups of a sweep: which runs can be laid side by side, and against which full cache."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longctx import figures, paired, run_differences, tables
from longctx.choices import Choice, Group
from longctx.load_results import FullResults

_CONTROLS = ("random", "window")
_SEED = 0

# Where a run stands in a group: row and column of the table.
Place = tuple[str, str]


def main_score(meta: Mapping[str, Any]) -> str:
    """The score of a run that stands in tables and figures: its first, but HotpotQA's F1.

    Exact match tells few of a small model's answers apart.
    """
    return "f1" if meta["task"] == "hotpotqa" else str(meta["score_names"][0])


def find(runs: Sequence[FullResults]) -> list[Group]:
    """The groups of runs, those over all lengths too, the most telling first.

    A run counts where there is a full cache of the same settings, device and samples. Of runs of
    the same settings the last one counts.
    """
    metas = [run["run_meta"] for run in runs]
    names = paired.data_names(runs)
    together: dict[tuple[Any, ...], dict[int, list[int]]] = {}
    for number, (run, meta) in enumerate(zip(runs, metas, strict=True)):
        settings = run_differences.apart_from_cache(meta)
        about = meta["task"], meta["model"], str(meta["device"].get("name")), settings
        for summary in run["ctx_summaries"]:
            length = summary["context_tokens"]
            key = (names[number, length], *about)
            together.setdefault(key, {}).setdefault(length, []).append(number)
    found = []
    for by_length in together.values():
        lengths = {
            length: (max(fulls, key=lambda n: _time(metas[n])), _placed(metas, numbers))
            for length, numbers in sorted(by_length.items())
            if (fulls := [number for number in numbers if _is_full(metas[number])])
        }
        lengths = {length: both for length, both in lengths.items() if both[1]}
        parts = [_group(runs, {length: both}) for length, both in lengths.items()]
        if parts:
            found.append(_group(runs, lengths, parts))
        found += parts
    return sorted(found, key=Group.telling, reverse=True)


def _placed(metas: Sequence[dict[str, Any]], numbers: Iterable[int]) -> dict[Place, int]:
    """Row and column of each run that is no full cache; settings that vary stand in the row."""
    ordered = sorted(numbers, key=lambda number: _time(metas[number]))
    first: dict[str, dict[str, Any]] = {}
    varied: dict[str, dict[str, None]] = {}
    pruned = [number for number in ordered if not _is_full(metas[number])]
    for number in pruned:
        base = _method(metas[number])
        reference = first.setdefault(base, metas[number])
        differing = run_differences.differing_settings(reference, metas[number])
        mine = (name for name in differing if not name.startswith("KEEP_"))
        varied.setdefault(base, {}).update(dict.fromkeys(mine))
    places = {}
    for number in pruned:
        values = metas[number]["variables"]
        base = _method(metas[number])
        more = [f"{name}={run_differences.setting(metas[number], name)}" for name in varied[base]]
        places[", ".join([base, *more]), _kept(values)] = number
    return places


def _group(
    runs: Sequence[FullResults],
    lengths: Mapping[int, tuple[int, Mapping[Place, int]]],
    parts: Sequence[Group] = (),
) -> Group:
    """The group over these lengths: of each the full cache's run and those of each place.

    parts: the groups of the single lengths, of a group over all.
    """
    longest = max(lengths)
    full = runs[lengths[longest][0]]
    meta = full["run_meta"]
    score = main_score(meta)
    choices = []
    for place in dict.fromkeys(place for _, placed in lengths.values() for place in placed):
        mine = {
            length: (runs[number], placed[place])
            for length, (number, placed) in lengths.items()
            if place in placed
        }
        lost_at = tuple(
            part.lengths[0]
            for part in parts
            if (alone := part.at(*place)) and alone.difference and alone.difference.seen < 0
        )
        choices.append(_choice(runs, mine, place, score, lost_at))
    floor = paired.pooled_difference(
        (_above_floor(runs[number], length, score) for length, (number, _) in lengths.items()),
        score,
        _SEED,
    )
    return Group(
        task=meta["task"],
        data=str(meta["variables"].get("DATASET_ID") or ""),
        model=meta["model"],
        device=str(meta["device"].get("name")),
        settings=run_differences.apart_from_cache(meta),
        lengths=tuple(lengths),
        score=score,
        full=lengths[longest][0],
        quality=floor.other if floor else None,
        n=floor.n if floor else 0,
        is_told=floor is not None and floor.seen > 0,
        is_of_all_lengths=bool(parts),
        choices=tuple(choices),
    )


def _choice(
    runs: Sequence[FullResults],
    lengths: Mapping[int, tuple[FullResults, int]],
    place: Place,
    score: str,
    lost_at: tuple[int, ...],
) -> Choice:
    sides = (
        (paired.samples_at(full, length), paired.samples_at(runs[number], length))
        for length, (full, number) in lengths.items()
    )
    longest = max(lengths)
    full, number = lengths[longest]
    mine = runs[number]["run_meta"]["variables"]
    cache, decode = (figures.named(key) for key in ("kv_cache_gb", "ms_per_token_decode"))
    one, other = (_summary_at(run, longest) for run in (runs[number], full))
    return Choice(
        run=number,
        method=place[0],
        kept=place[1],
        is_control=mine["KV_MODE"] in _CONTROLS or mine.get("L2_KEEP") == "high",
        is_out_of_memory=tables.is_out_of_memory(one),
        difference=paired.pooled_difference(sides, score, _SEED),
        lost_at=lost_at,
        cache_gb=cache.of_summary(one),
        full_gb=cache.of_summary(other),
        decode_ms=decode.of_summary(one),
        full_decode_ms=decode.of_summary(other),
    )


def _above_floor(
    run: FullResults, length: int, score: str
) -> tuple[paired.Samples, paired.Samples]:
    """Samples with the score of an answer that knows nothing, and the samples themselves.

    That is guessing's where it is known, else the mean of answers to other questions, else 0.
    """
    summary = _summary_at(run, length)
    chance = summary.get("chance") if score.startswith("em") else None
    floor = next(
        (value for value in (chance, summary.get(f"{score}_floor")) if value is not None), 0
    )
    samples = paired.samples_at(run, length)
    return {key: {score: floor} for key in samples}, samples


def _summary_at(run: FullResults, length: int) -> dict[str, Any]:
    at = (s for s in run["ctx_summaries"] if s["context_tokens"] == length)
    found: dict[str, Any] = next(at)
    return found


def _is_full(meta: Mapping[str, Any]) -> bool:
    return all(meta["variables"].get(name, "none") == "none" for name in run_differences.CACHE)


def _method(meta: Mapping[str, Any]) -> str:
    values = meta["variables"]
    if values["KV_MODE"] == "none":
        parts = ["full"]
    else:
        budget = values.get("KV_BUDGET", "uniform")
        parts = [values["KV_MODE"], *([budget] if budget != "uniform" else [])]
    form = values.get("KV_QUANT", "none")
    return " ".join([*parts, *([form] if form != "none" else [])])


def _kept(values: Mapping[str, Any]) -> str:
    if values["KV_MODE"] == "none":
        return "1"
    tokens = values.get("KEEP_TOKENS")
    return f"{tokens:,} tokens" if tokens else f"{values['KEEP_RATIO']:g}"


def _time(meta: Mapping[str, Any]) -> str:
    """When a run began, as its name ends with it."""
    return str(meta["run_id"]).rpartition("_")[2]
