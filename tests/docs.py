"""What the documents hold: code blocks, files, and commands as bash would run them."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Stands for every program; one line of JSON tells that it was called.
_STAND_IN = """#!{python}
import json, os, sys
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]], dict(os.environ), os.getcwd()
with open({record!r}, "a") as file:
    file.write(json.dumps(call) + "\\n")
"""
_PROGRAMS = ("bash", "make", "python", "sbatch", "torchrun")
_BASH_SETS = {"PWD", "OLDPWD", "SHLVL", "_", "PATH", "LC_CTYPE", "BASH_ENV"}


@dataclass(frozen=True)
class Command:
    """A program that a document calls, with its arguments and the variables set for it."""

    arguments: list[str]
    variables: dict[str, str]
    folder: Path


def blocks(text, language):
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def files(text):
    """Code blocks that follow a line with nothing but a file's name, by that name."""
    found = re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", text, re.M | re.S)
    assert len(dict(found)) == len(found)
    return dict(found)


def sections(text, level):
    """Sections under headings of a level, by heading."""
    parts = re.split(rf"^{'#' * level} (.+)\n", text, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def commands(block, folder):
    """What bash calls when it runs `block` in the project's root; nothing is really run.

    folder: an empty one for the stand-ins. A program that documents should not call is an error.
    """
    record = folder / "calls"
    for name in _PROGRAMS:
        program = folder / name
        program.write_text(_STAND_IN.format(python=sys.executable, record=str(record)))
        program.chmod(0o755)
    # No virtual environment has to be there.
    prelude = folder / "prelude"
    prelude.write_text("source() { :; }\n")
    subprocess.run(
        ["/bin/bash", "-e", "-u", "-c", block],
        cwd=ROOT,
        env={"PATH": str(folder), "BASH_ENV": str(prelude)},
        check=True,
    )
    calls = [json.loads(line) for line in record.read_text().splitlines()]
    record.unlink()
    return [
        Command(arguments, {k: v for k, v in env.items() if k not in _BASH_SETS}, Path(where))
        for arguments, env, where in calls
    ]
