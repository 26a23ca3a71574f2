"""`python -m longctx.compare A_full.json B_full.json ...`: runs in pairs, a line each.

The first file is the reference. Each other run is compared with it over the samples that both
answered: what the scores differ by, with a 95% interval and a test, and how many times the costs
are. --details has every score, cost and context length.

Of a folder it prints the table of the sweep in it: method by share kept, against the full cache of
the same settings, and which setting to use.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from longctx import (
    choice_groups,
    choice_tables,
    cli,
    load_results,
    paired,
    run_differences,
    tables,
)
from longctx.console import notice, stdout
from longctx.errors import SettingError
from longctx.load_results import FullResults

Names = tuple[str, str]

_MAIN_COSTS = ("kv_cache_gb", "ms_per_token_decode", "ttft_ms")
_SEED = 0


def check_same_samples(reference: FullResults, other: FullResults, names: Names) -> None:
    """Raises SettingError when two runs cannot be compared in pairs; `names` of their files.

    Runs of another number of samples, or logs of an older version, have other fingerprints for
    samples that are the same: that is noted, as long as all that is known of the shared samples is.
    """
    first, second = reference["run_meta"], other["run_meta"]
    if first["task"] != second["task"]:
        problem = f"{names[0]} is of {first['task']}; compare runs of one script"
        raise SettingError(f"{names[1]}: task", second["task"], problem)
    shared = paired.shared_samples(reference, other)
    if not shared:
        problem = f"answered no sample that {names[0]} answered; compare runs of the same data"
        raise SettingError("file", names[1], problem)
    if first["data_fingerprint"] == second["data_fingerprint"]:
        return
    varied = [
        name
        for name in ("DATASET_ID", "SPLIT", "N_SAMPLES", "CONTEXTS", "SEED", "USE_SUMMARY")
        if first["variables"].get(name) != second["variables"].get(name)
    ]
    why = f"{' and '.join(varied) or 'data, prompts or code'} differ"
    prompts = "agree"
    for context_tokens, ids in shared.items():
        one, two = (paired.samples_at(run, context_tokens) for run in (reference, other))
        if any(paired.identity(one[key]) != paired.identity(two[key]) for key in ids):
            problem = (
                f"other samples than those of {names[0]} ({why}); compare runs of the same data"
            )
            raise SettingError(f"{names[1]}: data_fingerprint", second["data_fingerprint"], problem)
        lengths = ("prompt_tokens", "dropped_tokens")
        if any(one[key].get(name) != two[key].get(name) for key in ids for name in lengths):
            prompts = "differ"
    notice(
        f"{names[1]}: another data_fingerprint than {names[0]} ({why}); ids, references and "
        f"documents' lengths of the shared samples agree, their prompts' lengths {prompts}"
    )


def print_comparison(reference: FullResults, other: FullResults, names: Names) -> int:
    """Print what `other` differs in, and a block for each context; returns how many tests it did.

    names: labels of the two runs.
    """
    print_line(f"{names[1]}, against {names[0]}", style="bold")
    settings = run_differences.differing_settings(reference["run_meta"], other["run_meta"])
    print_line(f"  compared: {_changes(settings) or 'two runs of the same settings'}")
    n_tests = 0
    for context_tokens, ids in paired.shared_samples(reference, other).items():
        print_line(f"  {context_tokens:,} tokens, {len(ids)} samples")
        scores = paired.score_differences(reference, other, context_tokens, _SEED)
        costs = paired.cost_ratios(reference, other, context_tokens, _SEED)
        n_tests += len(scores)
        block = Table.grid(padding=(0, 2), expand=False)
        sentences = [(score.name, score.sentence()) for score in scores]
        sentences += [(cost.figure.name, cost.sentence()) for cost in costs]
        if paid_back := _paid_back(reference, other, context_tokens):
            sentences.append(("a document's cache", paid_back))
        for name, sentence in sentences:
            block.add_row("   ", escape(name), escape(sentence))
        stdout.print(block)
    return n_tests


def _paid_back(reference: FullResults, other: FullResults, context_tokens: int) -> str | None:
    """After how many questions about a document its pruning has paid back; None if not measured."""
    costs = []
    for run in (reference, other):
        of_length = next(s for s in run["ctx_summaries"] if s["context_tokens"] == context_tokens)
        names = ("compress_ms_p50", "question_ttft_ms_p50", "ms_per_token_decode_p50")
        values = [of_length.get(name) for name in names]
        if any(value is None for value in values):
            return None
        costs.append((*values, of_length["avg_gen_tokens"]))
    (compressed, asked, step, n_tokens), (more_compressed, asked_then, step_then, _) = costs
    extra = more_compressed - compressed
    # Both of the reference's answer: runs may answer at different length.
    saved = asked - asked_then + (step - step_then) * (n_tokens - 1)
    taken = f"choosing took {extra:.1f} ms a document, a question then {abs(saved):.2f} ms"
    if saved <= 0:
        return f"{taken} more, so it does not pay back in these runs"
    n_questions = max(1, math.ceil(extra / saved))
    plural = "s" * (n_questions != 1)
    return f"{taken} less: paid back after {n_questions:,} question{plural} (within one run each)"


def note_differences(reference: FullResults, other: FullResults, names: Names) -> None:
    """Note all that keeps a difference from having one cause."""
    metas = reference["run_meta"], other["run_meta"]
    settings = run_differences.differing_settings(*metas)
    if len(settings) > 1:
        notice(f"{names[1]}: {len(settings)} settings differ, so no difference has one cause")
    conditions = run_differences.differing_conditions(*metas)
    if conditions:
        notice(f"{names[1]}: not under the same conditions: {_changes(conditions)}")
    for context_tokens, ids in paired.shared_samples(reference, other).items():
        answered = (paired.samples_at(run, context_tokens) for run in (reference, other))
        left_out = sum(len(samples) - len(ids) for samples in answered)
        if left_out:
            notice(
                f"{names[1]}: {left_out} samples at {context_tokens:,} tokens were answered by one "
                f"of the two runs only and are left out"
            )


def overview(runs: Sequence[FullResults], labels: Sequence[str]) -> list[list[str]]:
    """Cells of a line a run: its score, the difference from the first run's, costs as times of it.

    Over several context lengths a score counts once for each sample, by its mean; costs are at the
    longest that all share. The line of the first run has the costs themselves.
    """
    reference = runs[0]
    name = choice_groups.main_score(reference["run_meta"])
    shared = [[*paired.shared_samples(reference, run)] for run in runs]
    common = max(set(shared[0]).intersection(*shared), default=shared[0][-1])
    own = _costs(reference, reference, common)
    has_score = _pooled(reference, reference, shared[0], name) is not None
    lengths = f"{shared[0][0]:,}" + (f" to {shared[0][-1]:,}" if len(shared[0]) > 1 else "")
    heads = [f"at {lengths} tokens", *([name, "difference [95%]"] if has_score else [])]
    costs_at = f" at {common:,}" if len(shared[0]) > 1 else ""
    lines = [heads + [cost.figure.name + costs_at for cost in own.values()]]
    for run, label, mine in zip(runs, labels, shared, strict=True):
        cells = [label]
        if has_score:
            found = _pooled(reference, run, mine, name)
            singles = ((length, _pooled(reference, run, [length], name)) for length in mine)
            lost_at = [length for length, one in singles if one and one.seen < 0]
            cells.append(tables.number_text(found and found.other, 3))
            cells.append(_difference(found, lost_at) if found and run is not reference else "")
        costs = _costs(reference, run, common)
        cells += [
            "-" if key not in costs else _cost(cost) if run is reference else _times(costs[key])
            for key, cost in own.items()
        ]
        lines.append(cells)
    return lines


def _costs(reference: FullResults, run: FullResults, length: int) -> dict[str, paired.CostRatio]:
    found = {cost.figure.key: cost for cost in paired.cost_ratios(reference, run, length, _SEED)}
    return {key: found[key] for key in _MAIN_COSTS if key in found}


def _pooled(
    reference: FullResults, run: FullResults, lengths: Sequence[int], name: str
) -> paired.ScoreDifference | None:
    sides = (
        (paired.samples_at(reference, length), paired.samples_at(run, length)) for length in lengths
    )
    return paired.pooled_difference(sides, name, _SEED)


def _difference(found: paired.ScoreDifference, lost_at: Sequence[int]) -> str:
    text = f"{found.other - found.reference:+.3f}"
    if found.interval is not None:
        text += f" [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]"
    if found.seen:
        return f"{text} {'loss' if found.seen < 0 else 'gain'}"
    return f"{text} loss at {', '.join(f'{n:,}' for n in lost_at)}" if lost_at else text


def _times(cost: paired.CostRatio) -> str:
    return f"{cost.other / cost.reference:.2f} times"


def _cost(cost: paired.CostRatio) -> str:
    return f"{tables.number_text(cost.reference, cost.decimals)} {cost.figure.unit}"


def print_line(text: str, style: str = "") -> None:
    """A line of text that came from files; it is no markup."""
    stdout.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _changes(changes: dict[str, tuple[str, str]]) -> str:
    return "; ".join(
        f"{name} {first or '(unset)'} -> {second or '(unset)'}"
        for name, (first, second) in changes.items()
    )


def compare(files: list[Path], *, details: bool = False) -> None:
    """Print a line a run, with `details` all figures and each comparison with the first.

    Raises CannotRunError.
    """
    runs = []
    for file in files:
        try:
            runs.append(load_results.read(file))
        except load_results.UnusableFileError as error:
            raise SettingError("file", file, str(error)) from None
    for run, file in zip(runs[1:], files[1:], strict=True):
        check_same_samples(runs[0], run, (files[0].name, file.name))
    labels = run_differences.labels([run["run_meta"] for run in runs])
    for run, label in zip(runs[1:], labels[1:], strict=True):
        note_differences(runs[0], run, (labels[0], label))
    if any(row["success"] for row in runs[0]["rows"]):
        lines = overview(runs, run_differences.short(labels))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print_line("  ".join(map(str.ljust, line, widths)).rstrip())
    if details:
        stdout.print(tables.table_of(runs, labels))
        n_tests = sum(
            print_comparison(runs[0], run, (labels[0], label))
            for run, label in zip(runs[1:], labels[1:], strict=True)
        )
        if n_tests:
            print_line(_closing(runs, n_tests))
    tables.print_paths(files)
    if not details:
        print_line(
            "Costs below the first line are as times of it; of time one run each claims nothing. "
            "Every score,\ncost and context length: --details"
        )


def compare_folders(paths: list[Path]) -> None:
    """Print the table of the sweep in folders and files. Raises CannotRunError."""
    groups = choice_groups.find([run for _, run in load_results.find(paths)])
    if not groups:
        problem = (
            "has no run with a full cache of the same settings, device and samples to compare it "
            "with; KV_MODE=none makes one"
        )
        raise SettingError("path", " ".join(map(str, paths)), problem)
    choice_tables.print_groups(groups)


def _closing(runs: list[FullResults], n_tests: int) -> str:
    """What the intervals are over, and how many tests show something by chance."""
    names_documents = all(
        paired.document_of(sample)
        for run in runs
        for row in run["rows"]
        for sample in row["samples"]
    )
    over = (
        "over documents where several samples are about one"
        if names_documents
        else "as if samples were independent: not all of these results say\n"
        "which samples are about one document, and such samples vary together"
    )
    return (
        f"Intervals are 95%: of scores {over};\nof costs over the requests of one run each: "
        f"another run has other times.\nOf {n_tests} tests, {n_tests * 0.05:.1f} are expected to "
        f"show a difference (p < 0.05) without there being one."
    )


def main() -> None:
    """Compare the files named on the command line. Exit code 2 for runs that cannot be."""
    parser = cli.parser(__doc__, prog="python -m longctx.compare")
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN_full.json")
    parser.add_argument(
        "--details", action="store_true", help="every score, cost and context length"
    )
    arguments = parser.parse_args()
    with cli.exit_codes():
        if any(path.is_dir() for path in arguments.paths):
            compare_folders(arguments.paths)
        else:
            compare(arguments.paths, details=arguments.details)


if __name__ == "__main__":
    main()
