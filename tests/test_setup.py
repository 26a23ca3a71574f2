"""`make setup` with a stand-in for Python: when packages are installed, and into what."""

import re
import shutil
import subprocess
import tomllib

import pytest

from tests.runs import ROOT

# Tells of its calls; as `python -m venv` it puts itself into the new environment.
STAND_IN = """#!/bin/bash
echo "$*" >> "$CALLS"
case "$*" in
    -V) echo Python 3.11.7 ;;
    "-m venv"*)
        folder="${!#}"
        [[ $* == *--clear* ]] && rm -rf "$folder"
        mkdir -p "$folder/bin"
        touch "$folder/pyvenv.cfg"
        cp "$0" "$folder/bin/python" ;;
    *"$FAILS"*) exit 1 ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder with spaces; returns Python's calls but version checks."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for path in (ROOT / "Makefile", *ROOT.glob("requirements*")):
        shutil.copy(path, folder)
    python = folder / "my python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    calls = folder / "calls"

    def run(*arguments, fails="nothing fails"):
        calls.write_text("")
        subprocess.run(
            ["make", "setup", "PYTHON=./my python", "VENV=an environment", *arguments],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "CALLS": str(calls), "FAILS": fails},
            capture_output=True,
            check=fails == "nothing fails",
        )
        return [line for line in calls.read_text().splitlines() if not line.startswith("-c ")]

    run.folder = folder
    return run


def installs(calls):
    return [call for call in calls if "pip install" in call]


def test_packages_are_installed_once_and_anew_for_another_reason(make):
    first = make()
    assert "-m venv an environment" in first
    assert any("-r requirements.txt" in call for call in installs(first))
    assert make() == ["-V"]
    locked = installs(make("LOCKED=1"))
    assert all(re.search("--require-hashes|torch==| -e [.]$", call) for call in locked)
    assert "-e ." in locked[-1]
    assert "--no-deps" in locked[-1]
    assert make("LOCKED=1") == ["-V"]
    assert installs(make())
    requirements = make.folder / "requirements.txt"
    requirements.write_text(requirements.read_text() + "another==1\n")
    again = make()
    assert installs(again)
    assert not any("-m venv" in call for call in again)
    assert make() == ["-V"]


def test_what_was_interrupted_is_made_from_nothing(make):
    make(fails="-m longctx.builtin")
    (make.folder / "an environment" / "half a package").touch()
    again = make()
    assert "-m venv --clear an environment" in again
    assert installs(again)
    assert not (make.folder / "an environment" / "half a package").exists()
    assert make() == ["-V"]
    (make.folder / "an environment" / ".unfinished").touch()  # of packages for tests
    assert "-m venv --clear an environment" in make()


def test_an_environment_without_pip_is_made_again(make):
    (make.folder / "an environment").mkdir()
    (make.folder / "an environment" / "pyvenv.cfg").touch()
    assert "-m venv --clear an environment" in make()
    assert make() == ["-V"]


def test_the_package_holds_every_file_that_its_modules_read():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # Else an editable installation would be of the two packages, without the scripts' folders.
    assert project["tool"]["setuptools"]["package-dir"] == {"": "."}
    packed = {
        path
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    there = {p for name in ("kv_compression", "longctx") for p in (ROOT / name).rglob("*.*")}
    assert packed == {path for path in there if path.suffix not in (".py", ".pyc")}
