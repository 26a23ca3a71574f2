"""A figure is one entry of the registry, and what is dropped in as one file is shown everywhere."""

import json
import re

import pytest

from longctx import compare, figures, load_results, results, tables
from longctx.figures import CHOOSING, COMPARE, MEMORY, STUDY, TABLE, Figure
from longctx.report import flat, page
from studies import figures as charts
from studies import lines, measurements
from studies import tables as study_tables
from tests.saved_runs import full_results, write
from tests.test_rows import requests
from tests.test_studies import rows_of
from tests.test_studies import write as write_study
from tests.test_tables import printed
from tests.test_tracking import logged


@pytest.fixture
def watts(monkeypatch):
    """A figure that is nowhere but in the registry."""
    entry = Figure(
        "watt_hours", "energy", "Wh", MEMORY, ("_p50", "_p95"), also="energy_wh",
        shown={TABLE: 1, COMPARE: 2, STUDY: 0, CHOOSING: 0}, measure=lambda r: r.wall_ms / 64,
    )  # fmt: skip
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, entry))
    return entry


def page_data(*runs):
    text = page.document([(f"{number}.json", run) for number, run in enumerate(runs)], 1)
    return json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))


def test_a_figure_dropped_in_is_shown_everywhere(watts, tmp_path, monkeypatch, capsys):
    summary = results.context_summary({}, requests([1, 1]), ["em"], seed=0, n_asked=2)
    assert summary["watt_hours_p50"] == summary["energy_wh_p95"] == 2.5
    failed = results.failed_row({}, RuntimeError("x"), oom=False)
    assert failed["watt_hours"] is None

    runs = [
        full_results(
            [0.5] * 7,
            variables={"KV_MODE": mode, "BATCH_SIZE": 1, "KV_QUANT": "none", "PREFILL": "whole"},
            rows={"watt_hours": value},
            summary={"watt_hours_p50": value, "n_requests": 7},
        )
        for mode, value in (("none", 4.0), ("l2", 3.0))
    ]
    text = printed(tables.table_of(runs, ["a", "b"]))
    assert re.search(r"energy, Wh +│ a +│ +4\.0 │", text)
    paths = write(tmp_path, a=runs[0], b=runs[1])
    compare.compare(paths, details=True)
    shown = capsys.readouterr().out
    assert re.search(r"energy +25% less: 0\.75 times \(4\.00 -> 3\.00 Wh\)", shown)
    data = page_data(*runs)
    (column,) = (column for column in data["columns"] if column["key"] == "watt_hours_p50")
    assert (column["label"], column["cost"]) == ("energy, Wh", True)
    assert data["rows"][1]["figures"]["watt_hours_p50"] == 3.0
    assert "| watt_hours_p50 |" in flat.markdown([(paths[0], runs[0])])
    assert logged(monkeypatch, runs[0]["ctx_summaries"][0])["memory/watt_hours_p50"] == 4.0
    (tmp_path / "combined").mkdir()
    paths[0].rename(tmp_path / "combined" / paths[0].name)
    paths[1].unlink()
    ((title, table),) = study_tables.blocks(tmp_path).items()
    assert title.endswith("GPU peak GB / energy Wh, p50 and most of the requests")
    assert rows_of(table)[0][-1] == "105 / 5.00 / - / 4"


def test_the_fields_names_stand_beside_the_projects():
    summary = results.context_summary({}, requests([1, 1]), ["em"], seed=0, n_asked=2)
    for statistic in ("p50", "p95", "p99"):
        assert summary[f"tpot_ms_{statistic}"] == summary[f"ms_per_token_decode_{statistic}"]
        assert summary[f"e2el_ms_{statistic}"] == summary[f"latency_ms_{statistic}"]
    assert summary["e2el_ms_p50"] == 140


@pytest.mark.parametrize("count", [99, 100])
def test_a_p99_is_of_100_requests_or_more(count):
    rows = [row | {"ttft_ms": float(n)} for n, row in enumerate(requests([1] * count))]
    summary = results.context_summary({}, rows, ["em"], seed=0, n_asked=count)
    assert summary["ttft_ms_p99"] == (None if count < 100 else pytest.approx(98.01))
    assert (summary["peak_gpu_mem_gb_p99"] is None) == (count < 100)


def test_every_figure_has_one_key_and_none_is_taken_twice():
    keys = [figure.key for figure in figures.FIGURES]
    assert len(set(keys)) == len(keys)
    in_summaries = [key for figure in figures.FIGURES for key in figure.summary_keys]
    assert len(set(in_summaries)) == len(in_summaries)


# Kind -> sweep, variable, the name that is dropped in, heading of its study table, its chart.
DROPPED_IN = {
    "a backend": ("attention/whole", "ATTN_IMPL", "sdpa_math", "attention: TTFT", charts.attention),
    "a quantization": ("quantization", "QUANT_MODE", "fp8", "quantization: TTFT",
                       charts.quantization),
    "a cache format": ("quantization", "KV_QUANT", "fp4", "quantization: TTFT",
                       charts.quantization),
    "a method": ("kv/methods", "KV_MODE", "vatp", "kv methods, 2,048", charts.kv),
    "a method, scored": ("quality/narrativeqa/context", "KV_MODE", "vatp",
                         "quality/narrativeqa/context, all lengths", charts.quality),
    "a keep ratio": ("kv/pays", "KEEP_RATIO", 0.125, "kv: TTFT", charts.kv),
}  # fmt: skip


@pytest.mark.parametrize("kind", DROPPED_IN)
def test_what_is_dropped_in_is_in_report_table_and_chart(kind, tmp_path):
    sweep, variable, name, title, draw = DROPPED_IN[kind]
    more = {"KV_MODE": "l2"} if variable == "KEEP_RATIO" else {}
    write_study(tmp_path / sweep, 1)
    write_study(tmp_path / sweep, 2, **more)
    write_study(tmp_path / sweep, 3, **more | {variable: name})
    word = "12.5%" if name == 0.125 else name

    runs = list(load_results.find([tmp_path]))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.document(runs, 1)).group(1))
    assert [run["settings"][variable] for run in data["runs"]].count(str(name)) == 1
    assert str(name) in data["runs"][2]["label"]
    table = study_tables.blocks(tmp_path)
    (text,) = (text for found, text in table.items() if found.startswith(title))
    assert word in text
    drawn = draw(measurements.read(tmp_path))
    drawn.savefig(tmp_path / "chart.png")
    legends = [text.get_text() for part in drawn.subfigs for legend in part.legends
               for text in legend.get_texts()]  # fmt: skip
    assert any(word in label for label in legends)


def test_a_data_set_dropped_in_as_one_script_is_in_report_table_and_chart(tmp_path, monkeypatch):
    score = "lambda answers, references: [{'meteor': 0.0} for _ in answers]"
    script = f"from types import SimpleNamespace\nTASK = SimpleNamespace(score={score})\n"
    (tmp_path / "dropped_eval.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    logs = tmp_path / "logs"
    folder = logs / "quality/dropped/context"
    for number, score, mode in ((1, 0.5, "none"), (2, 0.1, "l2")):
        full = write_study(folder, number, scores=[score] * 20, KV_MODE=mode)
        full["run_meta"]["task"] = "dropped"
        (folder / f"{number}_full.json").write_text(json.dumps(full))
    found = study_tables.blocks(logs)
    (text,) = (text for name, text in found.items() if name.startswith("quality: losses"))
    assert rows_of(text)[0] == ["dropped/context", "1 / 0 of 1"]
    assert any(name.startswith("quality/dropped/context, all lengths: meteor") for name in found)
    points = measurements.read(logs)
    assert "dropped, 20 samples" in charts.quality(points).subfigs[0].get_suptitle()
    assert "| dropped | m | sdpa, l2 0.5 |" in flat.markdown(list(load_results.find([logs])))


def test_a_style_is_always_the_same_and_of_no_known_name():
    known = {**lines.METHODS, **lines.BACKENDS, **lines.FORMATS, **lines.KEPT}
    for name in ("vatp", "sdpa_math", "12.5%"):
        assert lines.style_of(name, known) == lines.style_of(name, {}) not in known.values()
    assert lines.style_of("l2", lines.METHODS) == lines.METHODS["l2"]
    assert lines.style_of("vatp", {}) != lines.style_of("chunkkv", {})
