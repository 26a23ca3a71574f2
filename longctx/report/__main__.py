"""`python -m longctx.report logs/ -o report.html`: all runs in folders and files, in one file.

The suffix of the output decides: `.html` is a page that needs nothing else and no network, `.csv`
has a row a run and context with every figure, `.md` the main ones as a Markdown table.
"""

import os
from pathlib import Path

from longctx import cli, load_results, results, tables
from longctx.errors import SettingError
from longctx.report import flat, page

_SUFFIXES = (".html", ".csv", ".md")


def write(paths: list[Path], output: Path, samples: int) -> None:
    """Write what is found in `paths` to `output`. Raises CannotRunError.

    samples: predictions that the page has of each run and context length.
    """
    if output.suffix not in _SUFFIXES:
        raise SettingError("-o", output, f"should end in one of {', '.join(_SUFFIXES)}")
    for path in paths:
        # Of a link that leads to itself, too.
        if not os.path.lexists(path):
            raise SettingError("path", path, "there is no such file or folder")
    if output.exists() and not output.is_file():
        raise SettingError("-o", output, "is there, and no file")
    runs = list(load_results.find(paths))
    if not runs:
        names = " ".join(map(str, paths))
        raise SettingError("path", names, "has no results; a run writes *_full.json into LOGDIR")
    if output.suffix == ".html":
        text = page.document(runs, samples)
    else:
        text = (flat.csv_text if output.suffix == ".csv" else flat.markdown)(runs)
    try:
        results.write_whole(output, text)
    except OSError as error:
        raise SettingError("-o", output, f"cannot be written: {error.strerror}") from None
    tables.print_paths([output])


def main() -> None:
    """Write the report that the command line asks for. Exit code 2 when there is none."""
    parser = cli.parser(__doc__, prog="python -m longctx.report")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER_OR_FILE")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="report.html")
    parser.add_argument(
        "--samples",
        type=int,
        default=20,
        help="predictions that the page has of each run and context length (default 20)",
    )
    arguments = parser.parse_args()
    with cli.exit_codes():
        write(arguments.paths, arguments.output, arguments.samples)


if __name__ == "__main__":
    main()
