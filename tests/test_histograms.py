import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from context_histograms import (
    count_tokens,
    histogram,
    plot_longbench_tokens,
    plot_narrativeqa_tokens,
)
from longctx import data
from longctx.settings import Settings

ROOT = Path(__file__).parents[1]
PLOTS = ROOT / "context_histograms" / "plots"
REAL_DATA = ROOT.parent / "shared" / "data"
SCRIPTS = {
    "narrativeqa": (plot_narrativeqa_tokens.NarrativeQASettings, plot_narrativeqa_tokens.plot),
    "longbench": (plot_longbench_tokens.LongBenchSettings, plot_longbench_tokens.plot),
}
SAME = ("data_fingerprint", "tokenizer_fingerprint", "summary", "groups", "n_missing", "counts")


def bar_heights(axis):
    """Heights of each bin, stacked bars summed."""
    return np.sum([[bar.get_height() for bar in bars] for bars in axis.containers], axis=0)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_committed_figure_is_drawn_from_the_committed_counts(name):
    text = (PLOTS / f"{name}_tokens.json").read_text()
    image = PLOTS / f"{name}_tokens.png"
    assert Image.open(image).text["Description"] == data.fingerprint([text])
    assert image.stat().st_size < 300_000
    panels = json.loads(text)
    axes = histogram.figure(panels).axes
    assert len(axes) == len(panels)
    for axis, result in zip(axes, panels.values(), strict=True):
        tokens = [entry["tokens"] for entry in result["counts"]]
        edges = [bar.get_x() for bar in axis.containers[0]]
        last = axis.containers[0][-1]
        expected, _ = np.histogram(tokens, [*edges, last.get_x() + last.get_width()])
        assert bar_heights(axis).tolist() == expected.tolist()
        assert expected.sum() == result["summary"]["n_texts"] == len(tokens)
        marked = {line.get_xdata()[0] for line in axis.lines if len(line.get_xdata())}
        assert marked == {np.median(tokens), *Settings.contexts}
        assert result["summary"] == count_tokens.summarize(result["counts"])


@pytest.mark.model
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("name", "file"), [("narrativeqa", "narrativeqa"), ("longbench", "longbench_v2")]
)
def test_counting_again_gives_the_committed_numbers(name, file, tmp_path, monkeypatch):
    monkeypatch.setattr(count_tokens, "HF_HOME", str(tmp_path))
    settings_class, _ = SCRIPTS[name]
    settings = settings_class(model_id="smollm2-135m", dataset_id=str(REAL_DATA / f"{file}.jsonl"))
    for committed in json.loads((PLOTS / f"{name}_tokens.json").read_text()).values():
        again = count_tokens.measure(settings, committed["field"], committed["group_by"])
        assert {key: again[key] for key in SAME} == {key: committed[key] for key in SAME}


@pytest.mark.model
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_draws_awkward_data(name, builtin_folder, tmp_path, monkeypatch):
    """A text of no tokens, one beyond all contexts, null texts, more labels than colours."""
    monkeypatch.setattr(count_tokens, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", [name])
    records = [
        {
            "document": {"text": text, "summary": {"text": "s"}},
            "context": text,
            "length": f"${number}$^",
        }
        for number, text in enumerate(
            ["", "a " * 40_000, "漢字" * 9, None, "a", "b", "c", "d", "d"]
        )
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    environ = {
        "MODEL_ID": str(builtin_folder),
        "DATASET_ID": str(path),
        "LOGDIR": str(tmp_path / "plots"),
    }
    count_tokens.main(SCRIPTS[name][0], "", SCRIPTS[name][1], environ)
    panels = json.loads((tmp_path / "plots" / f"{name}_tokens.json").read_text())
    first = next(iter(panels.values()))
    assert first["summary"]["n_texts"] == 7
    assert first["summary"]["n_samples"] == 8
    assert Image.open(tmp_path / "plots" / f"{name}_tokens.png").size[0] > 800
    drawn = bar_heights(histogram.figure(panels).axes[0]).sum()
    # The text that two labels have stands in both of their bars.
    assert drawn == (8 if name == "longbench" else 7)


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_matplotlib_nothing_is_counted(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(histogram.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="2"):
        count_tokens.main(*SCRIPTS[name][:1], "", SCRIPTS[name][1], {"LOGDIR": str(tmp_path)})
    assert capsys.readouterr().err == (
        "error: figures need the package matplotlib: pip install matplotlib\n"
    )
