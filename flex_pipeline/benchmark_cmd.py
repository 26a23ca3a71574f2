"""Run a list or a grid of settings, each as a command of its own, and compare the results.

    python flex_pipeline/benchmark_cmd.py --script narrativeqa_eval.py \\
        --grid ATTN_IMPL=sdpa,flex --grid KV_MODE=none,l2 --set N_SAMPLES=4 --timeout-s 600

Each cell runs in a fresh process and writes into a folder of its own; its figures are read from the
JSON that is there. A cell that fails or runs past the time limit is part of the table, with the
reason, and the others go on. What is done is not done again: run the same line once more after a
failure, and delete a cell's folder to have it again. Exit code 0: all cells are done; 1: some are
not; 2: a wrong argument; 130: interrupted.
"""

import argparse
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flex_pipeline.cells import Cell, Record, finished, run
from longctx import config, outcomes, preflight, redaction, tables
from longctx.console import notice, printable, stdout
from longctx.results import write_whole
from longctx.settings import Settings

ROOT = Path(__file__).parents[1]

Pair = tuple[str, list[str]]  # a variable and its values

_WIDTH_IN_A_FILE = 1000  # a line of the table stays one line
_REASON_WIDTH = 60
_REASON_CHARACTERS = 200


def assignment(text: str) -> Pair:
    """`NAME=value` as argparse reads it."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        problem = f"{redaction.masked(text)!r} is not of the form NAME=value"
        raise argparse.ArgumentTypeError(problem)
    if redaction.is_secret_name(name) or redaction.masked(value) != value:
        problem = "is a password or token, which grids would record; set it in the environment"
        raise argparse.ArgumentTypeError(f"{name} {problem}")
    if name == "LOGDIR":
        raise argparse.ArgumentTypeError("LOGDIR is each cell's own folder; use --logdir")
    return name, [value]


def axis(text: str) -> Pair:
    """`NAME=a,b,c`; `NAME=a,b;c,d` where values are lists themselves."""
    name, (values,) = assignment(text)
    found = values.split(";" if ";" in values else ",")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a value twice")
    return name, found


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def script_path(text: str) -> Path:
    """A script, from here or from the project's root."""
    for path in (Path(text), ROOT / text):
        if path.is_file():
            return path.resolve()
    raise argparse.ArgumentTypeError(f"there is no {text}")


def listed(text: str) -> list[dict[str, str]]:
    """Variables of each cell in a JSON list or a JSONL file of objects."""
    try:
        content = Path(text).read_text(encoding="utf-8")
        is_jsonl = text.endswith(".jsonl")
        entries = list(map(json.loads, content.splitlines())) if is_jsonl else json.loads(content)
    except (OSError, json.JSONDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise argparse.ArgumentTypeError(f"{text} holds no list of objects")
    cells = []
    for entry in entries:
        pairs = (assignment(f"{name}={config.text_of(value)}") for name, value in entry.items())
        cells.append({name: value for name, (value,) in pairs})
    return cells


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Every entry of the list with every point of the grid, over what --set says; each once."""
    base = {name: value for name, (value,) in arguments.set}
    points = itertools.product(*([(name, v) for v in values] for name, values in arguments.grid))
    cells = (
        Cell(arguments.script, {**base, **entry, **dict(point)})
        for point, entry in itertools.product(points, arguments.list or [{}])
    )
    return list({cell.key: cell for cell in cells}.values())


def differing(cells: Sequence[Cell]) -> list[str]:
    """The variables that cells differ in, or all where they differ in none."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.variables))
    return [name for name in names if len({c.variables.get(name) for c in cells}) > 1] or names


def results_of(record: Record, folder: Path) -> dict[str, Any] | None:
    """The full results of a cell that is done."""
    if record.result is None:
        return None
    result: dict[str, Any] = json.loads((folder / record.result).read_text(encoding="utf-8"))
    return result


def table_of(
    cells: Sequence[Cell], records: Sequence[Record], shown: Sequence[str], logdir: Path
) -> Table:
    """A line for each cell and context length; one line with the reason where there is no result.

    shown: the variables that have a column.
    """
    runs = [results_of(r, logdir / c.key) for c, r in zip(cells, records, strict=True)]
    everything = tables.figures_of([full for full in runs if full])
    figures = [known for known in everything if len(known[1]) == 1]  # no groups: too wide
    table = Table(title=escape(cells[0].script.name), title_justify="left")
    for name in shown:
        table.add_column(name)
    table.add_column("status", max_width=_REASON_WIDTH)
    for heading in ("context", "samples", *(heading for heading, _, _ in figures)):
        table.add_column(heading, justify="right")
    captions = []
    for cell, record, full in zip(cells, records, runs, strict=True):
        values = [escape(cell.variables.get(name, "")) for name in shown]
        if full is None:
            reason = printable(f"{record.status}: {record.reason}")[:_REASON_CHARACTERS]
            table.add_row(*values, escape(reason))
            continue
        for summary in full["ctx_summaries"]:
            measured = [tables.cell(summary, path, decimals) for _, path, decimals in figures]
            context = f"{summary['context_tokens']:,}", outcomes.samples(summary)
            table.add_row(*values, record.status, *context, *measured)
            values = [""] * len(shown)
        label = " ".join(cell.variables.get(name, "") for name in shown)
        captions += tables.captions([full], [label])
    if captions:
        table.caption, table.caption_justify = escape("\n".join(captions)), "left"
    return table


def main() -> int:
    """Run what is not done, print the table, write `grid.json`; returns the exit code."""
    config.guard()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", type=script_path, required=True, help="the script of all cells")
    parser.add_argument(
        "--grid", type=axis, action="append", default=[], metavar="NAME=a,b",
        help="values of a variable; several make a grid; semicolons between values with commas",
    )  # fmt: skip
    parser.add_argument(
        "--set", type=assignment, action="append", default=[], metavar="NAME=value",
        help="a variable of all cells",
    )  # fmt: skip
    parser.add_argument(
        "--list", type=listed, metavar="FILE", help=".json or .jsonl: an object of variables a cell"
    )
    parser.add_argument("--timeout-s", type=positive, default=3600, help="time limit of a cell")
    parser.add_argument(
        "--gpus", type=lambda text: text.split(","), default=[None], metavar="0,1",
        help="run one cell on each of these GPUs at a time; unset: one after the other",
    )  # fmt: skip
    parser.add_argument(
        "--logdir", type=Path, help="folder of the cells; flex_pipeline/logs/SCRIPT if unset"
    )
    arguments = parser.parse_args()
    logdir = arguments.logdir or ROOT / "flex_pipeline" / "logs" / arguments.script.stem
    try:
        preflight.writable_folder(str(logdir))
    except config.SettingError as error:
        parser.error(str(error))
    axes = [name for name, _ in arguments.grid]
    if len(set(axes)) < len(axes):
        parser.error("--grid names a variable twice; give it all its values at once")
    cells = cells_of(arguments)
    records = {cell.key: record for cell in cells if (record := finished(cell, logdir))}
    shown = differing(cells)

    def name_of(cell: Cell) -> str:
        return " ".join(
            f"{name}={cell.variables[name]}" for name in shown if name in cell.variables
        )

    for cell in cells:
        if cell.key in records:
            notice(f"done before: {name_of(cell)}")

    def keep(cell: Cell, record: Record) -> None:
        records[cell.key] = record
        how = record.status if record.reason is None else f"{record.status}: {record.reason}"
        notice(f"{len(records)} of {len(cells)} in {record.wall_s} s: {name_of(cell)}: {how}")

    # What is running is ended with this process, however politely that is asked to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    was_interrupted = False
    try:
        waiting = [cell for cell in cells if cell.key not in records]
        environ = config.without_settings(Settings)
        run(waiting, logdir, arguments.timeout_s, arguments.gpus, environ, keep)
    except KeyboardInterrupt:
        was_interrupted = True
    known = [cell for cell in cells if cell.key in records]
    whole = [{"folder": cell.key, **asdict(records[cell.key])} for cell in known]
    write_whole(logdir / "grid.json", json.dumps(whole, indent=1) + "\n")
    if known:
        table = table_of(known, [records[cell.key] for cell in known], shown, logdir)
        console = stdout if stdout.is_terminal else Console(width=_WIDTH_IN_A_FILE)
        console.print(table)
    tables.print_paths([os.path.relpath(logdir / "grid.json")])
    if was_interrupted:
        notice(f"interrupted; {len(cells) - len(known)} cells are open")
        return 130
    return 0 if all(record.status == "done" for record in records.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
