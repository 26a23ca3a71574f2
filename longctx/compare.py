"""`python -m longctx.compare A_full.json B_full.json ...`: runs side by side, and in pairs.

The first file is the reference. Each other run is compared with it over the samples that both
answered: what the scores differ by, with a 95% interval and a test, and how many times the costs
are.
"""

import argparse
import sys
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from longctx import config, console, load_results, paired, run_differences, tables
from longctx.console import notice, stdout
from longctx.errors import CannotRunError, SettingError
from longctx.load_results import FullResults

Names = tuple[str, str]

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
    metas = reference["run_meta"], other["run_meta"]
    settings = run_differences.differing_settings(*metas)
    print_line(f"  compared: {_changes(settings) or 'two runs of the same settings'}")
    if len(settings) > 1:
        notice(f"{names[1]}: {len(settings)} settings differ, so no difference has one cause")
    conditions = run_differences.differing_conditions(*metas)
    if conditions:
        notice(f"{names[1]}: not under the same conditions: {_changes(conditions)}")
    n_tests = 0
    for context_tokens, ids in paired.shared_samples(reference, other).items():
        print_line(f"  {context_tokens:,} tokens, {len(ids)} samples")
        answered = (paired.samples_at(run, context_tokens) for run in (reference, other))
        left_out = sum(len(samples) - len(ids) for samples in answered)
        if left_out:
            notice(
                f"{names[1]}: {left_out} samples at {context_tokens:,} tokens were answered by one "
                f"of the two runs only and are left out"
            )
        scores = paired.score_differences(reference, other, context_tokens, _SEED)
        costs = paired.cost_ratios(reference, other, context_tokens, _SEED)
        n_tests += len(scores)
        block = Table.grid(padding=(0, 2), expand=False)
        sentences = [(score.name, score.sentence()) for score in scores]
        sentences += [(cost.figure.name, cost.sentence()) for cost in costs]
        for name, sentence in sentences:
            block.add_row("   ", escape(name), escape(sentence))
        stdout.print(block)
    return n_tests


def print_line(text: str, style: str = "") -> None:
    """A line of text that came from files; it is no markup."""
    stdout.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _changes(changes: dict[str, tuple[str, str]]) -> str:
    return "; ".join(
        f"{name} {first or '(unset)'} -> {second or '(unset)'}"
        for name, (first, second) in changes.items()
    )


def compare(files: list[Path]) -> None:
    """Print the table of the files and each comparison with the first. Raises CannotRunError."""
    runs = []
    for file in files:
        try:
            runs.append(load_results.read(file))
        except load_results.UnusableFileError as error:
            raise SettingError("file", file, str(error)) from None
    for run, file in zip(runs[1:], files[1:], strict=True):
        check_same_samples(runs[0], run, (files[0].name, file.name))
    labels = run_differences.labels([run["run_meta"] for run in runs])
    stdout.print(tables.table_of(runs, labels))
    n_tests = sum(
        print_comparison(runs[0], run, (labels[0], label))
        for run, label in zip(runs[1:], labels[1:], strict=True)
    )
    if n_tests:
        print_line(_closing(runs, n_tests))
    tables.print_paths(files)


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
    config.guard()
    parser = argparse.ArgumentParser(
        prog="python -m longctx.compare",
        description=__doc__,
        formatter_class=console.HelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="RUN_full.json")
    try:
        compare(parser.parse_args().files)
    except CannotRunError as error:
        console.error(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
