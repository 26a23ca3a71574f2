"""A list or a grid of settings, each run as a command of its own: another face of longctx.sweep.

  python flex_pipeline/benchmark_cmd.py --script narrativeqa_eval.py \\
      --grid ATTN_IMPL=sdpa,flex --grid KV_MODE=none,l2 --set N_SAMPLES=4

Values, the environment's settings, the table at the end and exit codes are those of
`python -m longctx.sweep --help`. A run that fails or takes longer than the time limit stands below
the table with the reason, and the others go on. What is done is not done again: run the same line
once more after a failure.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

from longctx import cells, cli, config, sweep
from longctx.cells import ROOT, Cell
from longctx.errors import CannotRunError


def listed(path: str) -> list[dict[str, str]]:
    """Variables of each run in a JSON list or a JSONL file of objects. Raises CannotRunError."""
    try:
        content = Path(path).read_text(encoding="utf-8")
        is_jsonl = path.endswith(".jsonl")
        entries = list(map(json.loads, content.splitlines())) if is_jsonl else json.loads(content)
    except (OSError, json.JSONDecodeError) as error:
        raise CannotRunError(f"{path}: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CannotRunError(f"{path} holds no list of objects")
    return [
        dict(cells.assignment(f"{name}={config.text_of(value)}") for name, value in entry.items())
        for entry in entries
    ]


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Every entry of the list with every point of the grid, over --set. Raises CannotRunError."""
    path = next((p for p in (Path(arguments.script), ROOT / arguments.script) if p.is_file()), None)
    if path is None:
        raise CannotRunError(f"there is no {arguments.script}")
    script = os.path.relpath(path)
    logdir = arguments.logdir or ROOT / "flex_pipeline" / "logs" / path.stem
    base = {"SKIP_DONE": "1", "LOGDIR": os.path.relpath(logdir)}
    base |= dict(map(cells.assignment, arguments.set))
    entries = listed(arguments.list) if arguments.list else [{}]
    grids = [cells.grid(script, arguments.grid, base | entry) for entry in entries]
    return list(dict.fromkeys(itertools.chain.from_iterable(grids)))


def main() -> int:
    """Run what is not done and print the table; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("--script", required=True, help="the script of all runs")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="NAME=a,b",
        help="values of a setting; several make a grid; semicolons between values with commas",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=value", help="a variable of all runs"
    )
    parser.add_argument(
        "--list", metavar="FILE", help=".json or .jsonl: an object of variables a run"
    )
    parser.add_argument(
        "--timeout-s", type=sweep.positive, default=3600.0, help="time limit of a run (3600)"
    )
    parser.add_argument(
        "--gpus", type=lambda text: text.split(","), default=[None], metavar="0,1",
        help="one run on each of these GPUs at a time; unset: one after the other",
    )  # fmt: skip
    parser.add_argument("--logdir", type=Path, help="flex_pipeline/logs/SCRIPT if unset")
    chosen = parser.parse_args()
    with cli.exit_codes():
        return sweep.run_all(
            cells_of(chosen), isolate=True, timeout_s=chosen.timeout_s, gpus=chosen.gpus
        )


if __name__ == "__main__":
    sys.exit(main())
