"""The table of a sweep on the terminal, and which setting to use in a line a task."""

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import PurePosixPath

from rich.markup import escape
from rich.table import Table

from longctx import choice_groups, tables
from longctx.choices import Choice, Group
from longctx.console import printable, stdout
from longctx.load_results import FullResults

BEST, LOSS, GAIN = (
    "\N{BLACK STAR}",
    "\N{BLACK DOWN-POINTING TRIANGLE}",
    "\N{BLACK UP-POINTING TRIANGLE}",
)

LEGEND = (
    f"Score, what it has more than the full cache's, [95% interval]; what the KV cache and a "
    f"decode step have more. {BEST} smallest cache without a seen loss, {LOSS} loss seen, {GAIN} "
    f"gain seen. Times are of one run each and claim nothing."
)


def print_runs(runs: Sequence[FullResults], labels: Sequence[str]) -> None:
    """What is pruned against the full cache; where some run has none, all runs side by side too."""
    groups = choice_groups.find(runs)
    if len({number for group in groups for number in group.runs}) < len(runs):
        stdout.print(tables.table_of(runs, labels))
    if groups:
        print_groups(groups)


def print_groups(groups: Sequence[Group]) -> None:
    """A table for each context length, then for each task a line: which setting to use."""
    names = titles(groups)
    for name, group in sorted(zip(names, groups, strict=True), key=itemgetter(0)):
        if not group.is_of_all_lengths:
            stdout.print(title_of(group, name), markup=False, highlight=False, soft_wrap=True)
            stdout.print(table_of(group))
    stdout.print(LEGEND, markup=False, highlight=False)
    answers = [
        f"  {name}: {answer(group)}"
        for name, group in zip(names, groups, strict=True)
        if group.is_of_all_lengths and group.quality is not None
    ]
    if answers:
        stdout.print("Smallest cache without a seen loss, the most telling task first:")
        stdout.print("\n".join(answers), markup=False, highlight=False, soft_wrap=True)


def titles(groups: Sequence[Group]) -> list[str]:
    """A name for each group: task, data and lengths, and what else sets groups apart."""
    several_models = len({group.model for group in groups}) > 1
    names = []
    for group in groups:
        parts = [task_name(group.task, group.data), *([group.model] if several_models else [])]
        names.append(", ".join([*parts, f"KV_SCOPE={group.scope}", _lengths(group.lengths)]))
    for name in [name for name, count in Counter(names).items() if count > 1]:
        places = [place for place, other in enumerate(names) if other == name]
        about = [{"device": groups[n].device} | dict(groups[n].settings) for n in places]
        for place, mine in zip(places, about, strict=True):
            differing = [key for key in mine if any(o.get(key) != mine[key] for o in about)]
            names[place] = ", ".join([name, *(f"{key}={mine[key]}" for key in differing)])
    return list(map(printable, names))


def task_name(task: str, data: str) -> str:
    """A task with its data, where that has another name."""
    name = PurePosixPath(data).stem
    return f"{task} ({name})" if name and name != task else task


def _lengths(lengths: Sequence[int]) -> str:
    if len(lengths) == 1:
        return f"{lengths[0]:,} tokens"
    return f"{lengths[0]:,} to {lengths[-1]:,} tokens"


def title_of(group: Group, name: str) -> str:
    """A group's name, its score and what the full cache has of it."""
    if group.quality is None:
        return f"{name}: no quality"
    return f"{name}: {group.score}, full cache {group.quality:.3f}, n = {group.n}"


def table_of(group: Group) -> Table:
    """Methods by what is kept: score, its difference and interval, and what is saved."""
    table = Table(show_lines=True)
    table.add_column("method")
    for kept in group.kept:
        table.add_column(kept, justify="right")
    best = group.best()
    for method in group.methods:
        cells = []
        for kept in group.kept:
            choice = group.at(method, kept)
            cells.append(_cell(choice, choice in best, group.n) if choice else "")
        table.add_row(*map(escape, [printable(method), *cells]))
    return table


def _cell(choice: Choice, is_best: bool, n: int) -> str:
    """n: samples of the full cache; a cell that has fewer says so."""
    if choice.is_out_of_memory:
        return "out of memory"
    lines = []
    if (difference := choice.difference) is not None:
        marks = (BEST if is_best else "") + {-1: LOSS, 1: GAIN, 0: ""}[difference.seen]
        change = difference.other - difference.reference
        lines.append(f"{marks} {difference.other:.3f} {change:+.3f}".strip())
        if difference.interval is not None:
            low, high = difference.interval
            lines.append(f"[{low:+.3f}, {high:+.3f}]")
        if difference.n < n:
            lines.append(f"n = {difference.n}")
    return "\n".join([*lines, saving(choice)]).strip() or "-"


def saving(choice: Choice) -> str:
    """What a run has less than the full cache's, in bytes and milliseconds a token."""
    parts = []
    if choice.saved_gb is not None:
        parts.append(bytes_text(-choice.saved_gb))
    if choice.saved_ms is not None:
        parts.append(f"{-choice.saved_ms:+.2f} ms")
    return ", ".join(parts)


def bytes_text(gigabytes: float) -> str:
    """A difference in GB, as MB where it is less than one."""
    if abs(gigabytes) < 1:
        return f"{gigabytes * 1e3:+,.1f} MB"
    return f"{gigabytes:+,.2f} GB"


def answer(group: Group) -> str:
    """Which setting to use, in plain words."""
    quality = tables.number_text(group.quality, 3)
    if not group.is_told:
        return (
            f"no loss could be seen: {group.score} {quality} of the full cache (n = {group.n}) "
            f"is not told from that of answers that know nothing"
        )
    best = group.best()
    if not best:
        return f"none; {_least_loss(group)}"
    first, *others = best
    difference = first.difference
    assert difference is not None
    words = [f"{first.name}, {first.share or 0:.0%} of the KV cache"]
    if others:
        words[0] += f" (so also {', '.join(choice.name for choice in others)})"
    change = f"{difference.reference:.3f} -> {difference.other:.3f}"
    words.append(f"{difference.exclusion()} ({group.score} {change}, n = {difference.n})")
    if controls := group.controls_without_loss():
        words.append(f"controls without one too: {', '.join(c.name for c in controls)}")
    return "; ".join(words)


def _least_loss(group: Group) -> str:
    changes = {
        choice.name: choice.difference
        for choice in group.choices
        if choice.difference is not None and not choice.is_control
    }
    if not changes:
        return "no method was tried"
    name = max(changes, key=lambda name: changes[name].other - changes[name].reference)
    lost_at = next(choice.lost_at for choice in group.choices if choice.name == name)
    if changes[name].seen >= 0 and lost_at:
        return f"{name} shows a loss at {' and '.join(f'{n:,}' for n in lost_at)} tokens"
    return f"the least is that of {name}: {changes[name].sentence()}"
