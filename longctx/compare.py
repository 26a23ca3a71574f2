"""`python -m longctx.compare A_full.json B_full.json ...`: runs side by side."""

import argparse
import json
from pathlib import Path

from longctx import tables
from longctx.console import stdout


def main() -> None:
    """Print the table of the files named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m longctx.compare", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="RUN_full.json")
    files = parser.parse_args().files
    try:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    except (OSError, json.JSONDecodeError) as error:
        parser.error(str(error))
    stdout.print(tables.table_of(runs))
    tables.print_paths(files)


if __name__ == "__main__":
    main()
