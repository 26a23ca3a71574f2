"""The report as CSV and Markdown, what it refuses, and its command."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longctx.errors import SettingError
from longctx.report import flat
from longctx.report.__main__ import write as write_report
from tests.saved_runs import full_results, write

ROOT = Path(__file__).parents[1]


def test_csv_has_every_figure_under_its_name(tmp_path):
    run = full_results([0.1, 0.2], contexts=(512, 1024), model="=cmd()", summary={
        "em_by_level": {"easy": {"n": 2, "em_ci95": [0.1, 0.3]}}, "chance": None,
    })  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(flat.csv_text([(tmp_path / "a.json", run)]))))
    assert [row["context_tokens"] for row in rows] == ["512", "1024"]
    assert rows[0]["meteor_ci95_low"] == "0.1"
    assert rows[0]["em_by_level.easy.em_ci95_high"] == "0.3"
    assert rows[0]["SKIP_LAYERS"] == "0,1"
    assert rows[0]["chance"] == ""
    assert rows[0]["task"] == "narrativeqa"


def test_csv_cells_are_no_formulas(tmp_path):
    runs = [
        (tmp_path, full_results([0.1], kernel=None, task=text)) for text in ("=1+1", "@x", "-1")
    ]
    rows = list(csv.DictReader(io.StringIO(flat.csv_text(runs))))
    assert [row["task"] for row in rows] == ["'=1+1", "'@x", "'-1"]


def test_csv_headings_are_no_formulas(tmp_path):
    run = full_results([0.1], variables={"=cmd()": "\uff1dx", "@x": 1}, summary={"+1": 2})
    (row,) = csv.DictReader(io.StringIO(flat.csv_text([(tmp_path, run)])))
    assert (row["'=cmd()"], row["'@x"], row["'+1"]) == ("'\uff1dx", "1", "2")


def test_markdown_is_one_table(tmp_path):
    runs = [full_results([0.1, 0.2]), full_results([None], model="a|b\n<b>`[x](y)")]
    text = flat.markdown([(tmp_path, run) for run in runs])
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "0.150 \\[0.100, 0.900\\]" in lines[2]
    assert r"a\|b \<b\>\`\[x\](y)" in lines[3]
    assert "out of memory" in lines[3]


@pytest.mark.parametrize(
    ("paths", "output", "problem"),
    [
        (["."], "o.pdf", r"-o=.*o\.pdf: should end in one of \.html, \.csv, \.md"),
        (["nowhere"], "o.html", "there is no such file or folder"),
        (["."], "o.html", "has no results"),
        (["."], "missing/o.html", "cannot be written: No such file"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, paths, output, problem):
    if "missing" in output:
        write(tmp_path, a=full_results([0.5]))
    with pytest.raises(SettingError, match=problem):
        write_report([tmp_path / path for path in paths], tmp_path / output, samples=1)


@pytest.mark.model
def test_report_is_a_command(tmp_path):
    def command(*arguments):
        line = [sys.executable, "-m", "longctx.report", *map(str, arguments)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)

    done = command("logs", "-o", tmp_path / "all.csv")
    assert done.returncode == 0
    assert done.stdout.strip() == str(tmp_path / "all.csv")
    assert "left out, no full results: logs/benchmarks/decode-batch8.json" in done.stderr
    missing = command(tmp_path / "nothing", "-o", tmp_path / "x.md")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: path=")
