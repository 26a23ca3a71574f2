from rich.console import Console

from longctx import tables


def run_of(kv_mode="none", **changes):
    summary = {
        "context_tokens": 512, "n_oom": 0, "total_count": 2, "ttft_ms_p50": 1234.5,
        "peak_gpu_mem_gb_p95": None, "meteor": 0.25, "meteor_ci95": [0.1, 0.4],
    } | changes  # fmt: skip
    variables = {
        "ATTN_IMPL": "sdpa", "KV_MODE": kv_mode, "KEEP_RATIO": 0.5, "KEEP_TOKENS": None,
        "KV_SCOPE": "context", "QUANT_MODE": "bnb4",
    }  # fmt: skip
    meta = {"model": "[bold]x", "score_names": ["meteor"], "variables": variables}
    return {"run_meta": meta, "ctx_summaries": [summary], "rows": []}


def printed(table):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_table_shows_figures_intervals_and_what_sets_runs_apart():
    runs = [run_of(), run_of("l2")]
    text = printed(tables.table_of(runs, [tables.label(run["run_meta"]) for run in runs]))
    assert "[bold]x" in text
    assert "sdpa, none, bnb4" in text
    assert "sdpa, l2 0.5 (context), bnb4" in text
    assert text.count("1,234.5") == 2
    assert text.count("0.250 [0.100, 0.400]") == 2
    assert "GPU peak" not in text


def test_out_of_memory_is_shown():
    text = printed(tables.table_of([run_of(n_oom=1, total_count=0, ttft_ms_p50=None)]))
    assert "out of memory" in text


def test_predictions_cannot_steer_the_terminal(capsys):
    sample = {
        "sample_id": "s", "prediction": "\x1b]0;evil\x07[red]text[/red]", "references": ["r"],
    }  # fmt: skip
    run = run_of()
    run["rows"] = [{"success": True, "context_tokens": 512, "samples": [sample]}]
    tables.print_predictions(run)
    output = capsys.readouterr().out
    assert "\x1b]" not in output
    assert "[red]text[/red]" in output


def test_groups_evidence_and_chance_are_shown():
    group = {"easy": {"n": 3, "em": 0.5, "em_ci95": None}}
    run = run_of(
        em=0.3, em_ci95=[0.1, 0.6], chance=0.25, em_told_from_chance=False, em_by_difficulty=group,
        evidence_kept_pct=75.0,
    )  # fmt: skip
    run["run_meta"] |= {"score_names": ["em"], "groups": ["difficulty"]}
    text = printed(tables.table_of([run]))
    assert "0.300 [0.100, 0.600] †" in text
    assert "difficulty: easy" in text
    assert "75.0" in text
    assert "† cannot be told from guessing, 0.25" in text
    run["ctx_summaries"][0] |= {"em_told_from_chance": True}
    assert "†" not in printed(tables.table_of([run]))
