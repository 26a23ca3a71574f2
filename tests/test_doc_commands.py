"""What README and docs/ say of commands, settings and each other holds."""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys

import pytest
from torch.distributed.run import get_args_parser

from context_histograms import count_tokens, plot_longbench_tokens, plot_narrativeqa_tokens
from flex_pipeline import benchmark_cmd, hotpot_qa_flex
from longctx import cells, config, settings_help
from tests import docs, warm
from tests.runs import environ
from tests.scripts import SCRIPTS
from tests.test_distributed import free_port

EVALUATIONS = {f"{name}.py": script.TASK.settings for name, script in SCRIPTS.items()}
COUNTS = {
    "context_histograms/count_tokens.py": count_tokens.CountSettings,
    "context_histograms/plot_narrativeqa_tokens.py": plot_narrativeqa_tokens.NarrativeQASettings,
    "context_histograms/plot_longbench_tokens.py": plot_longbench_tokens.LongBenchSettings,
}
FLEX = {"flex_pipeline/hotpot_qa_flex.py": hotpot_qa_flex.TASK.settings}
SETTINGS = EVALUATIONS | COUNTS | FLEX
# Settings of the process, not of a script.
PROCESS = {"OMP_NUM_THREADS", "PYTHONWARNINGS"}
SLURM = docs.ROOT / "docs" / "slurm.sh"


class Parsed(Exception):
    """Raised when a script has read its arguments."""


def names(tables):
    return {re.sub(r".*/|\.py", "", path): settings for path, settings in tables.items()}


def test_the_settings_page_holds_the_generated_tables():
    page = (docs.ROOT / "docs" / "settings.md").read_text()
    for scripts in (EVALUATIONS, COUNTS):
        assert settings_help.markdown_tables(names(scripts)) in page
    rows = [
        line
        for line in settings_help.markdown_tables(names(FLEX)).splitlines()
        if line.startswith("| `MASK_")
    ]
    assert len(rows) == 5
    assert "\n".join(rows) in page


def run_as_main(argv):
    if argv[0] == "-m":
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(os.path.abspath(argv[0]), run_name="__main__")


def arguments_of(argv, where, monkeypatch):
    """A Python program's arguments as it reads them; one that it refuses ends the test."""

    def stopping(parse):
        def parse_args(self, *_):
            raise Parsed(parse(self))

        return parse_args

    with monkeypatch.context() as patch:
        patch.chdir(where)
        for name in ("parse_args", "parse_intermixed_args"):
            parse = getattr(argparse.ArgumentParser, name)
            patch.setattr(argparse.ArgumentParser, name, stopping(parse))
        patch.setattr(sys, "path", [str(docs.ROOT), *sys.path])
        patch.setattr(sys, "argv", argv[1:] if argv[0] == "-m" else argv)
        with pytest.raises(Parsed) as parsed:
            run_as_main(argv)
    return parsed.value.args[0]


def check_settings(script, variables):
    read = [
        config.read(SETTINGS[script], each)
        for each in cells.environments(SETTINGS[script], variables)
    ]
    environment = read[-1][1]
    assert environment.is_set == set(variables)


def check_python(argv, variables, where, monkeypatch):
    parsed = arguments_of(argv, where, monkeypatch)
    if argv[0] == "-m":
        if argv[1] == "longctx.sweep":
            check_settings(parsed.script or "narrativeqa_eval.py", variables)
            if parsed.script:
                assert cells.grid(parsed.script, parsed.assignments)
        else:
            assert not variables
        return
    script = str((where / argv[0]).relative_to(docs.ROOT))
    if script in SETTINGS:
        check_settings(script, variables)
    if script == "flex_pipeline/benchmark_cmd.py":
        for cell in benchmark_cmd.cells_of(parsed):
            mine = {name: value for name, value in cell.changes.items() if name not in PROCESS}
            _, environment = config.read(SETTINGS[cell.script], mine)
            assert environment.is_set == set(mine)


def check(command, monkeypatch):
    program, *arguments = command.arguments
    match program:
        case "make":
            targets = re.findall(r"^([\w-]+):", (docs.ROOT / "Makefile").read_text(), re.M)
            assert set(arguments) <= set(targets)
        case "bash":
            (sweep,) = arguments
            text = (docs.ROOT / sweep).read_text() + (docs.ROOT / "studies/_run.sh").read_text()
            assert sweep.startswith("studies/")
            # A list of the sweep's own, or a setting, which reaches every run of it.
            of_runs = {
                name: value
                for name, value in command.variables.items()
                if f"${{{name}:-" not in text and f"${{{name}-" not in text
            }
            check_settings("narrativeqa_eval.py", of_runs)
            assert not [name for name in of_runs if re.search(rf"\b{name}=", text)]
        case "sbatch":
            file, *script = arguments
            assert docs.ROOT / file == SLURM
            check_settings(*(script or ["narrativeqa_eval.py"]), command.variables)
        case "torchrun":
            parsed = get_args_parser().parse_args(arguments)
            check_python([parsed.training_script], command.variables, command.folder, monkeypatch)
        case "python":
            check_python(arguments, command.variables, command.folder, monkeypatch)


@pytest.mark.parametrize(
    "document",
    # The commands of that one are run by tests/test_docs.py.
    [path for path in docs.DOCUMENTS if path.name != "extending.md"],
    ids=lambda path: path.name,
)
def test_every_command_can_be_run(document, tmp_path, monkeypatch, capsys):
    blocks = docs.blocks(document.read_text(), "bash")
    calls = [call for block in blocks for call in docs.commands(block, tmp_path)]
    for call in calls:
        check(call, monkeypatch)
    notes = capsys.readouterr().err
    assert "is not a setting" not in notes
    if document.name == "README.md":
        scripts = {argument for call in calls for argument in call.arguments}
        assert set(EVALUATIONS) <= scripts
        assert len(calls) >= 11


def slug(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_no_paragraph_is_long(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*- )", text)
    most = 60 if document.name == "README.md" else 70
    assert [p for p in paragraphs if p[0] not in "|<" and len(p.split()) > most] == []


def test_every_document_can_be_found_from_the_readme():
    readme = docs.DOCUMENTS[0].read_text()
    for document in docs.DOCUMENTS[1:]:
        assert f"(docs/{document.name}" in readme


@pytest.mark.model
@pytest.mark.timeout(400)
def test_the_slurm_example_runs_on_two_agents_of_one_machine(tiny_folder, tmp_path):
    """scontrol and srun are stand-ins: each machine's task is run here, as srun is told to."""
    programs = {
        "scontrol": 'test "$*" = "show hostnames node[1-2]"\necho 127.0.0.1\necho 127.0.0.1',
        "srun": f'exec {sys.executable} -c "import json, os, sys; '
        'print(json.dumps([sys.argv[1:], dict(os.environ)]))" "$@"',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash -e\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    slurm = {
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_ID": free_port(),
    }
    logdir = tmp_path / "logs"
    settings = environ(tiny_folder, logdir, N_SAMPLES="3", CONTEXTS="200", PATH=path)

    for nodes in (2, 1):
        done = subprocess.run(
            ["bash", str(SLURM)],
            cwd=docs.ROOT,
            env=os.environ | settings | slurm | {"SLURM_JOB_NUM_NODES": str(nodes)},
            capture_output=True,
            text=True,
            check=True,
        )
        (program, *arguments), variables = json.loads(done.stdout)
        assert program == "torchrun"
        line = ["tests/torchrun.py", *arguments]
        agents = [
            warm.Process(tmp_path / f"{node} of {nodes}", line, variables, cwd=docs.ROOT)
            for node in range(nodes)
        ]
        for agent in agents:
            _, notes = agent.communicate()
            assert agent.returncode == 0, notes
    # The second time it is done already, whatever the number of machines.
    assert "SKIP_DONE: these settings have their results" in notes
    (path,) = logdir.glob("*_full.json")
    assert '"n_processes": 2' in path.read_text()


def test_the_slurm_example_asks_for_what_it_describes():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SLURM.read_text(), re.M))
    assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"]) == ("2", "4", "1")
    assert asked["signal"] == "TERM@120"
