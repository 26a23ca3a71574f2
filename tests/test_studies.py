"""The study's figures and tables show what its logs hold."""

import gzip
import json
import re

import pytest

from longctx import load_results
from longctx.paired import ScoreDifference
from longctx.run_files import RunFiles
from studies import comparisons, figures, lines, measurements, tables
from tests.saved_runs import full_results

LENGTHS = (2048, 8192)
METHODS = ("l2", "window")
COSTS = ("ttft_ms", "ms_per_token_decode", "peak_gpu_mem_gb")


def write(folder, number, scores=(0.5, 0.25), rows=None, summary=None, packed=False, **variables):
    """Results of two requests a length, with figures that are told apart by `number`."""
    defaults = {"BATCH_SIZE": 1, "KV_QUANT": "none", "KEEP_RATIO": 0.5, "PREFILL": "whole"}
    values = defaults | variables
    measured = {
        "decode_mode": "graph",
        "compress_ms_p50": 1.5,
        "peak_gpu_mem_gb_p95": 20.5 + number,
    }
    full = full_results(
        scores,
        contexts=LENGTHS,
        variables=values,
        rows=rows,
        summary={"n_requests": len(scores)} | measured | (summary or {}),
        run_id=f"m_20260101-{number:06d}",
        fingerprint=str(sorted(values.items())),
        device={"type": "cuda", "name": "GPU"},
    )
    for place, entry in enumerate(full["ctx_summaries"]):
        entry["ttft_ms_p50"] = 100.0 * number + 10 * place
    for row in full["rows"]:
        is_longer, is_first = row["context_tokens"] > LENGTHS[0], row["request"] == 0
        row["ttft_ms"] = 100.0 * number + 10 * is_longer + (-1 if is_first else 1)
        row["latency_ms_total"] = row["ttft_ms"] + 50
        row["compress_ms"] = 1.5
        for sample in row["samples"]:
            sample["output"] = sample["prediction"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}_full.json"
    text = json.dumps(full)
    if packed:
        path.with_suffix(".json.gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return full


@pytest.fixture
def logs(tmp_path):
    """A sweep of each kind; eager attention runs out of memory at the longer length."""
    for number, attn in enumerate(lines.BACKENDS, start=1):
        full = write(tmp_path / "attention/whole", number, ATTN_IMPL=attn, packed=number == 2)
        if attn == "eager":
            full["ctx_summaries"][1] |= {"n_oom": 1, "total_count": 0}
            for row in full["rows"][2:]:
                row |= {"success": False, "oom": True}
            (tmp_path / "attention/whole" / f"{number}_full.json").write_text(json.dumps(full))
    for batch in (1, 8):
        at = {"BATCH_SIZE": batch}
        write(tmp_path / "kv/pays", 20 + batch, **at)
        write(
            tmp_path / "kv/pays", 10 + batch, rows={"ms_per_token_decode": 2.0}, KV_MODE="l2", **at
        )
    for folder in ("kv/methods", "quality/narrativeqa-synthetic/context"):
        write(tmp_path / folder, 5)
        for number, method in enumerate(METHODS, start=6):
            write(tmp_path / folder, number, scores=(0.5, 0.0), KV_MODE=method)
    write(tmp_path / "quantization", 2)
    write(tmp_path / "quantization", 3, QUANT_MODE="bnb4")
    write(tmp_path / "combined", 4, QUANT_MODE="bnb4", KV_MODE="l2")
    return tmp_path


def test_a_line_is_what_the_logs_hold(logs):
    points = measurements.of_sweep(measurements.read(logs), "attention/whole")
    found = {line.label: line for line in lines.attention_lines(points, "ttft_ms")}
    assert list(found) == list(lines.BACKENDS)
    for file in load_results.find([logs / "attention/whole"]):
        run = file[1]
        line = found[run["run_meta"]["variables"]["ATTN_IMPL"]]
        expected = []
        for summary in run["ctx_summaries"]:
            length = summary["context_tokens"]
            times = [r["ttft_ms"] for r in run["rows"] if r["context_tokens"] == length]
            expected.append((length, summary["ttft_ms_p50"], min(times), max(times)))
        if line.label == "eager":
            assert line.out_of_memory == [expected.pop()[0]]
        assert line.points == expected


def test_the_later_of_two_runs_of_the_same_settings_counts(logs):
    write(logs / "attention/whole", 9, ATTN_IMPL="sdpa")
    points = measurements.of_sweep(measurements.read(logs), "attention/whole")
    assert [p.shown("ttft_ms") for p in points if p.setting("ATTN_IMPL") == "sdpa"] == [900, 910]


def panels_of(axis):
    """What an axis shows: of each line with a label, its y by its x as near as they are drawn."""
    handles, labels = axis.get_legend_handles_labels()
    return {
        label: [tuple(point) for point in handle.lines[0].get_xydata()]
        for handle, label in zip(handles, labels, strict=True)
    }


@pytest.mark.parametrize(
    ("draw", "sweeps", "made", "names"),
    [
        (figures.attention, ["attention/whole"], lines.attention_lines, COSTS),
        (figures.quantization, ["quantization"], lines.quantization_lines, COSTS),
        (figures.kv, ["kv/pays"], lines.kv_lines, ["ms_per_token_decode"]),
        (
            figures.quality,
            ["quality/narrativeqa-synthetic/context"],
            lines.quality_lines,
            ["kv_cache_gb", "ms_per_token_decode"],
        ),
    ],
)
def test_a_figure_draws_its_lines(logs, tmp_path, draw, sweeps, made, names):
    points = measurements.read(logs)
    drawn = draw(points)
    drawn.savefig(tmp_path / "figure.png")
    mine = measurements.of_sweep(points, sweeps[0])
    if draw is figures.quality:
        mine = [point for point in mine if point.context_tokens == LENGTHS[0]]
    else:
        mine = [point for point in mine if point.batch == 1]
    for axis, name in zip(drawn.get_axes(), names, strict=False):
        shown = panels_of(axis)
        wanted = made(mine, name)
        assert [line.label for line in wanted] == list(shown)
        assert any(line.points for line in wanted)
        for line in wanted:
            assert [y for _, y in shown[line.label]] == [y for _, y, *_ in line.points]
            xs = [x for x, *_ in line.points]
            assert [x for x, _ in shown[line.label]] == pytest.approx(xs, rel=0.06)
    caption = drawn.get_suptitle()
    assert "m, bfloat16, GPU" in caption
    assert ("out of memory" in caption) == (draw is figures.attention)


def test_plain_decode_loops_have_a_panel_of_their_own(logs):
    write(logs / "kv/pays", 30, summary={"decode_mode": "eager"}, DECODE="eager", KV_MODE="l2")
    drawn = figures.kv(measurements.read(logs))
    captured, plain, memory = (panels_of(axis) for axis in drawn.get_axes()[:3])
    assert set(captured) == set(memory) == {"100% kept", "50% kept"}
    assert list(plain) == ["50% kept"]
    mine = [p for p in measurements.of_sweep(measurements.read(logs), "kv/pays") if p.batch == 1]
    for panel, name, loop in (
        (captured, "ms_per_token_decode", "graph"),
        (plain, "ms_per_token_decode", "eager"),
        (memory, "peak_gpu_mem_gb", "graph"),
    ):
        for line in lines.kv_lines([p for p in mine if p.decode == loop], name):
            assert line.points
            assert [y for _, y in panel[line.label]] == [y for _, y, *_ in line.points]
    assert "bars: fastest and slowest of 2 requests" in drawn.get_suptitle()


def test_every_figure_is_written(logs, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["figures.py", str(logs), "-o", str(tmp_path / "assets")])
    figures.main()
    assert sorted(path.name for path in (tmp_path / "assets").iterdir()) == [
        "attention_results.png", "kv_results.png", "quality_tradeoff.png", "quant_results.png",
    ]  # fmt: skip


def rows_of(text):
    return [[c.strip() for c in row.strip("|").split("|")] for row in text.splitlines()[2:]]


def test_tables_hold_the_figures_and_their_ratios(logs):
    found = tables.blocks(logs)
    costs = rows_of(found[f"attention: {tables._costs()}"])
    assert costs[0] == ["whole", "1", "`sdpa`", "100 / 5.00 / 21.50", "110 / 5.00 / 21.50"]
    assert costs[3] == ["whole", "1", "`eager`", "400 / 5.00 / 24.50", "out of memory"]
    # The ratio of medians over requests, which need not be that of the summaries.
    ratios = rows_of(found["attention: times sdpa's TTFT / decode / GPU peak"])
    assert ratios[0] == ["whole", "1", "`flash2`", "2.00 / 1.00 / -", "1.91 / 1.00 / -"]
    (title,) = (name for name in found if name.startswith("kv: times as fast"))
    assert [row[3].split(" / ")[0] for row in rows_of(found[title])] == ["2.50"] * 2
    (title,) = (name for name in found if name.startswith("kv: new tokens"))
    # 1.5 ms are spent once, 3.0 ms saved with each token.
    assert rows_of(found[title])[0] == ["1", "graph", "50%", "1", "1"]
    text = tables.commented("a table", found[title])
    assert re.fullmatch(r"<!-- study: a table -->\n\|.*\|\n<!-- end of study -->", text, re.S)


def test_a_method_that_ran_out_of_memory_says_so(logs):
    full = write(logs / "kv/methods", 8, KV_MODE="snapkv")
    full["ctx_summaries"][0] |= {"n_oom": 1, "total_count": 0}
    (logs / "kv/methods/8_full.json").write_text(json.dumps(full))
    found = tables.blocks(logs)
    (title,) = (name for name in found if name.startswith("kv methods, 2,048 tokens"))
    # 5 ms a token is what every request of these runs takes.
    assert rows_of(found[title])[1:3] == [
        ["prompt", "`l2`", "", "1.5 / 600 / 5.00"], ["prompt", "`snapkv`", "", "out of memory"],
    ]  # fmt: skip


def test_the_quality_figure_is_of_the_data_asked_for(logs, tmp_path, monkeypatch, capsys):
    write(logs / "quality/hotpotqa-synthetic/context", 1)
    points = measurements.read(logs)
    assert len(figures.quality(points).get_axes()) == 4
    assert len(figures.quality(points, data=["hotpotqa-synthetic"]).get_axes()) == 2
    monkeypatch.setattr("sys.argv", ["figures.py", str(logs), "--quality-data", "hotpot"])
    with pytest.raises(SystemExit, match="2"):
        figures.main()
    message = capsys.readouterr().err
    assert "--quality-data=hotpot: there are hotpotqa-synthetic, narrativeqa-synthetic" in message


def test_repeats_agree_where_their_requests_ranges_touch(logs, tmp_path):
    again = tmp_path / "again"
    write(again / "attention/whole", 1, ATTN_IMPL="sdpa")
    write(again / "attention/whole", 5, ATTN_IMPL="flash2")
    points = [measurements.read(folder) for folder in (logs, again)]
    # The folder is read as part of the first, under a name of its own.
    pairs = list(comparisons.repeats(*points))
    assert [comparisons.agree(pair, "ttft_ms") for pair in pairs] == [True, False] * 2
    ((_, text),) = tables.repeats(*points)
    about = ["1", "graph"]
    assert rows_of(text) == [
        ["attention/whole", "`sdpa`", *about, *["1.00 / 1.00"] * 2, "2 of 2 / 2 of 2", "4 of 4"],
        ["attention/whole", "`flash2`", *about, "2.50 / 1.00", "2.43 / 1.00", "0 of 2 / 2 of 2",
         "4 of 4"],
    ]  # fmt: skip


def test_a_sample_counts_once_over_all_lengths(tmp_path):
    folder, count = tmp_path / "quality/narrativeqa-synthetic/context", 20
    full, half = (
        [0.2 + place / 40 for place in range(count)],
        [place / 40 - 0.001 * (place % 2) for place in range(count)],
    )
    write(folder, 1, scores=full)
    write(folder, 2, scores=half, KV_MODE="l2")
    path = folder / "3_full.json"
    run = write(folder, 3, scores=full, KV_MODE="window")
    # At the longer length one sample loses all, and the others were not answered.
    for row in run["rows"][count:]:
        row["samples"][0]["meteor"] = 0.0
    run["rows"][count + 1 :] = []
    path.write_text(json.dumps(run))
    found = tables.blocks(tmp_path)
    (title,) = (name for name in found if "all lengths: meteor 0.438, n = 20" in name)
    assert rows_of(found[title]) == [
        ["`l2`", "**-0.201 [-0.201, -0.200]**"], ["`window`", "-0.005 [-0.015, +0.005]"],
    ]  # fmt: skip
    (title,) = (name for name in found if name.startswith("quality: losses"))
    assert rows_of(found[title]) == [
        ["narrativeqa-synthetic/context", "1 / 0 of 1"], ["all", "1 / 0 of 1"],
    ]  # fmt: skip


def test_a_point_that_lacks_samples_is_marked_and_explained(logs):
    path = logs / "quality/narrativeqa-synthetic/context" / "6_full.json"
    full = json.loads(path.read_text())
    parts = {"n_asked": 4, "n_scored": 2, "n_failed_samples": 2}
    for entry in full["ctx_summaries"]:
        entry |= parts | {"meteor_failures_as_0": 0.125}
    path.write_text(json.dumps(full))
    costs = logs / "combined" / "4_full.json"
    full = json.loads(costs.read_text())
    full["ctx_summaries"][0] |= parts
    costs.write_text(json.dumps(full))
    found = tables.blocks(logs)
    marked = {name: text for name, text in found.items() if "‡" in text}
    assert {name.split(":")[0] for name in marked} == {
        "combined",
        *(f"quality/narrativeqa-synthetic/context, {at}" for at in
          ("all lengths", "2,048 tokens", "8,192 tokens")),
    }  # fmt: skip
    why = "2,048 tokens: 2 of 4 samples scored; 2 failed"
    for name, text in marked.items():
        assert why in text
        assert ("with failures as 0 0.125" in text) is name.startswith("quality")
    rows = rows_of(next(text for name, text in marked.items() if "all lengths" in name))
    assert [(row[0], "‡" in row[1]) for row in rows if len(row) > 1] == [
        ("`l2`", True),
        ("`window`", False),
    ]


def test_data_on_which_nothing_can_be_lost_are_not_counted(tmp_path):
    folder = tmp_path / "quality/narrativeqa-synthetic/prompt"
    write(folder, 1, scores=[0.5] * 20)
    write(folder, 2, scores=[0.1] * 20, KV_MODE="l2")
    write(folder, 3, scores=[0.0] * 20, KV_MODE="l2", L2_KEEP="high")

    def last_line():
        found = tables.blocks(tmp_path)
        (name,) = (name for name in found if name.startswith("quality: losses"))
        return rows_of(found[name])[-1]

    assert last_line() == ["all", "1 / 0 of 1"]
    # The same words answer every question: shuffled, they score as much.
    path = folder / "1_full.json"
    full = json.loads(path.read_text())
    for row in full["rows"]:
        row["samples"][0] |= {"prediction": "a red house", "references": ["a red house"]}
    path.write_text(json.dumps(full))
    assert last_line() == ["all", "-"]


def test_a_difference_is_seen_where_interval_and_test_agree():
    def seen(interval, p, corrected=None):
        difference = ScoreDifference("em", 9, None, 0.5, 0.4, interval, lambda: p, "permutation")
        return comparisons.is_seen(difference, corrected)

    assert seen([-0.2, -0.1], 0.04) == -1
    assert seen([0.1, 0.2], 0.04) == 1
    assert seen([-0.1, 0.2], 0.04) == seen([-0.2, -0.1], 0.06) == seen(None, 0.04) == 0
    # Of many tests, by the p that is corrected for them.
    assert seen([-0.2, -0.1], 0.04, 0.06) == 0
    assert seen([-0.2, -0.1], 0.06, 0.04) == -1


def test_packed_results_are_read_and_torn_ones_named(tmp_path):
    write(tmp_path, 1, packed=True)
    (path,) = tmp_path.iterdir()
    meta = load_results.read(path)["run_meta"]
    assert meta["model"] == "m"
    assert RunFiles.finished(tmp_path, meta["fingerprint"]) == path
    assert RunFiles.finished(tmp_path, "another") is None
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(load_results.UnusableFileError, match="is not whole gzip"):
        load_results.read(path)
