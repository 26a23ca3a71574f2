"""The report of a benchmark: options, rows written as they are made, and the table."""

import argparse
import gc
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import _measure
from kv_compression import out_of_memory
from longctx import cli, environment, redaction
from longctx.console import printable
from longctx.errors import CannotRunError
from longctx.results import plain, write_whole
from longctx.run_metadata import model_name
from longctx.tables import markdown, number_text

Row = dict[str, Any]
Lines = list[Sequence[str]]  # a table: its headings, then its rows

_ERROR_CHARACTERS = 70


class Report:
    """What a benchmark ran on, and a row for each case; written whenever a row is made.

    limits: what the machine can do, measured in this run.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.path: Path = arguments.output
        script = f"benchmarks/{Path(sys.argv[0]).name}"
        self.limits: Row = _measure.limits(arguments.dtype)
        self.content: Row = {
            "command": shlex.join(["python", script, *sys.argv[1:]]),
            "model": model_name(arguments.model),
            "dtype": arguments.dtype,
            "device": environment.device(),
            "versions": environment.versions(),
            "git_commit": environment.git_commit(),
            "limits": self.limits,
            "rows": [],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, case: Row, measure: Callable[[], Row]) -> None:
        """The row of a case: `measure()`, or why there is none."""
        try:
            row = case | measure()
        except Exception as error:  # a case that fails is a row, whatever it is that fails
            is_oom = out_of_memory.cause(error) is not None
            problem = f"{type(error).__name__}: {redaction.reason(error)}"
            row = case | {"error": "out of memory" if is_oom else problem}
        # What a failed case holds is free only now that its exception is gone.
        gc.collect()
        torch.cuda.empty_cache()
        self.content["rows"].append(row)
        write_whole(self.path, json.dumps(plain(self.content), indent=1) + "\n")
        shown = (f"{key} {value}" for key, value in plain(row).items() if _is_short(value))
        print(printable(", ".join(shown)), file=sys.stderr, flush=True)


def _is_short(value: object) -> bool:
    return value is not None and not isinstance(value, (list, dict))


def share(value: float) -> str:
    """How much is kept, as tables show it."""
    return f"{value:g}"


def cells(row: Row, *columns: tuple[str, int]) -> list[str]:
    """Figures of a row by (name, decimals); a dash for one that it does not have."""
    return [number_text(row.get(name), decimals) for name, decimals in columns]


def note(row: Row) -> str:
    """A row's last cell: the attention kernel, or why there are no figures."""
    text: str = row.get("error") or row.get("kernel") or "-"
    return text[:_ERROR_CHARACTERS]


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = cli.parser(doc)
    made.add_argument("--model", default="random/mistral-7b", help="a MODEL_ID")
    made.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    made.add_argument("--output", type=Path, default=Path(f"logs/benchmarks/{name}.json"))
    made.add_argument(
        "--table",
        nargs="?",
        const="terminal",
        choices=("terminal", "markdown"),
        help="print the table of what is in --output and run nothing",
    )
    return made


def numbers(text: str) -> list[int]:
    """The whole numbers of a comma-separated list, which may be empty."""
    return [int(part) for part in text.split(",") if part]


def ratios(text: str) -> list[float]:
    """The numbers of a comma-separated list."""
    return [float(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return text.split(",")


def main(
    made: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace, Report], None],
    lines: Callable[[Row], Lines],
) -> None:
    """Measure, unless `--table` is there, and print the table of the file."""
    arguments = made.parse_args()
    if arguments.table is None:
        try:
            measure(arguments, Report(arguments))
        except CannotRunError as error:
            made.error(str(error))
    if not arguments.output.is_file():
        made.error(f"no results in {arguments.output}")
    written = json.loads(arguments.output.read_text(encoding="utf-8"))
    print(as_markdown(written, lines) if arguments.table == "markdown" else as_text(written, lines))


def head(written: Row) -> str:
    """What the rows belong to, in a line."""
    found = written["limits"]
    read, copy = (f"{found[f'{name}_gb_per_s']:,.0f} GB/s" for name in ("read", "copy"))
    return (
        f"{written['model']}, {written['dtype']}, {written['device']['name']}; measured in this "
        f"run: read {read}, copy {copy}, matmul {found['matmul_tflop_per_s']:,.3g} TFLOP/s"
    )


def as_text(written: Row, lines: Callable[[Row], Lines]) -> str:
    """The table with aligned columns."""
    table = [[printable(cell) for cell in line] for line in lines(written)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return "\n".join([printable(head(written)), *aligned])


def as_markdown(written: Row, lines: Callable[[Row], Lines]) -> str:
    """The table as docs/benchmarks.md has it."""
    heading, *rows = lines(written)
    return f"{head(written)}\n\n{markdown(heading, rows)}"
