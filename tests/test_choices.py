"""Which setting to use: hand-made runs against the full cache of the same settings."""

import pytest

from longctx import choice_groups, choice_tables
from tests.saved_runs import full_results

GOOD = [0.9, 0.8, 0.7, 0.9, 0.6, 0.8, 0.75, 0.85] * 2
WORSE = [score - 0.3 - place / 1000 for place, score in enumerate(GOOD)]
AS_GOOD = [score + 0.01 * (-1) ** place for place, score in enumerate(GOOD)]


def run(scores, mode="none", ratio=0.5, **changes):
    """A run whose KV cache holds `ratio` of the full one's 1 GB."""
    variables = {"KV_MODE": mode, "KEEP_RATIO": ratio} | changes.pop("variables", {})
    size = 1.0 if mode == "none" else ratio
    figures = {"kv_cache_gb": size, "ms_per_token_decode_p50": 4 + size}
    changes["summary"] = figures | changes.get("summary", {})
    return full_results(scores, variables=variables, **changes)


def answered(*runs):
    """The group over all lengths, and its answer."""
    (group,) = (group for group in choice_groups.find(runs) if group.is_of_all_lengths)
    return group, choice_tables.answer(group)


def test_the_smallest_cache_without_a_seen_loss_and_what_is_excluded():
    group, text = answered(
        run(GOOD), run(AS_GOOD, "l2", 0.75), run(AS_GOOD, "l2", 0.5), run(WORSE, "l2", 0.25),
        run(WORSE, "tova", 0.5), run(AS_GOOD, "keydiff", 0.5),
    )  # fmt: skip
    assert [choice.name for choice in group.best()] == ["l2 0.5", "keydiff 0.5"]
    assert text == (
        "l2 0.5, 50% of the KV cache (so also keydiff 0.5); a loss of more than 0.006 can be "
        "excluded (meteor 0.787 -> 0.787, n = 16)"
    )
    assert (group.methods, group.kept) == (["keydiff", "l2", "tova"], ["0.75", "0.5", "0.25"])
    best = group.best()[0]
    assert (best.saved_gb, best.saved_ms) == (0.5, 0.5)
    assert choice_tables.saving(best) == "-500.0 MB, -0.50 ms"


def test_where_every_setting_loses_the_least_loss_is_named():
    group, text = answered(run(GOOD), run(WORSE, "l2"), run([0.0] * 16, "tova"))
    assert group.best() == []
    assert text.startswith("none; the least is that of l2 0.5: a loss of 0.307 [0.305, 0.310]")


def test_a_control_is_no_answer_but_is_named_beside_it():
    group, text = answered(
        run(GOOD), run(AS_GOOD, "l2"), run(AS_GOOD, "random", 0.25), run(AS_GOOD, "window", 0.75),
        run(AS_GOOD, "l2", 0.25, variables={"L2_KEEP": "high"}),
    )  # fmt: skip
    assert text.startswith("l2, L2_KEEP=low 0.5, 50% of the KV cache; ")
    assert text.endswith("; controls without one too: random 0.25, l2, L2_KEEP=high 0.25")
    assert group.methods[-2:] == ["random", "window"]


@pytest.mark.parametrize("right", [0, 1, 5])
def test_a_group_at_the_floor_has_no_answer_and_comes_last(right):
    """Of so few right answers the loss of all could not be seen."""
    floor = [1.0] * right + [0.0] * (20 - right)
    low = {"score_names": ["em"], "data_fingerprint": "low"}
    runs = [run(floor, **low), run([0.0] * 20, "l2", **low), run(GOOD), run(WORSE, "l2")]
    last = choice_groups.find(runs)[-1]
    assert (last.score, last.is_told, last.best()) == ("em", False, [])
    assert "is not told from that of answers that know nothing" in choice_tables.answer(last)


def test_guessing_and_shuffled_answers_are_floors():
    right = [1.0] * 6 + [0.0] * 14
    for summary in ({"chance": 0.25}, {"em_floor": 0.25}):
        runs = [run(right, mode, score_names=["em"], summary=summary) for mode in ("none", "l2")]
        assert not answered(*runs)[0].is_told
        runs[0]["ctx_summaries"][0].update(dict.fromkeys(summary, 0.0))
        assert answered(*runs)[0].is_told


def test_runs_without_quality_have_a_table_and_no_answer(capsys):
    runs = [run(GOOD), run(GOOD, "l2", 0.25)]
    for one in runs:
        one["ctx_summaries"][0]["meteor"] = None
        for row in one["rows"]:
            row["samples"][0]["meteor"] = None
    (group, _) = answered(*runs)
    assert (group.quality, group.best()) == (None, [])
    choice_tables.print_groups(choice_groups.find(runs))
    printed = capsys.readouterr().out
    assert "no quality" in printed
    assert "-750.0 MB, -0.75 ms" in printed
    assert "Smallest cache without a seen loss, the most" not in printed


def test_a_loss_at_one_length_counts_though_the_mean_hides_it():
    both = {"contexts": (512, 1024)}
    mixed = run(GOOD, "l2", **both)
    for row in mixed["rows"]:
        change = 0.1 + row["request"] / 1000
        row["samples"][0]["meteor"] += change if row["context_tokens"] == 512 else -change
    runs = run(GOOD, **both), mixed
    group, text = answered(*runs)
    assert text == "none; l2 0.5 shows a loss at 1,024 tokens"
    assert group.choices[0].lost_at == (1024,)
    lengths = sorted(found.lengths for found in choice_groups.find(runs))
    assert lengths == [(512,), (512, 1024), (1024,)]


def test_runs_are_compared_with_the_full_cache_of_the_same_settings_alone():
    others = [
        run(GOOD, "l2", variables={"ATTN_IMPL": "flex"}),
        run(GOOD, "l2", variables={"KV_SCOPE": "context"}),
        run(GOOD, "l2", device={"name": "another"}),
        run(GOOD, "l2", data_fingerprint="g", rows={"samples": []}),
    ]
    assert choice_groups.find([run(GOOD), *others]) == []
    quantized = run(GOOD, variables={"KV_QUANT": "int4"}, summary={"kv_cache_gb": 0.25})
    group, text = answered(run(GOOD), quantized)
    assert text.startswith("full int4 1, 25% of the KV cache; ")
    # Of two runs of the same settings the later one counts.
    again = run(WORSE, "l2", run_id="m_20260102-000000")
    group, _ = answered(run(GOOD), again, run(AS_GOOD, "l2"))
    assert [choice.run for choice in group.choices] == [1]


def test_memory_and_missing_samples_are_told_in_the_cell(capsys):
    runs = [
        run(GOOD), run([None] * 16, "l2", 0.75, summary={"kv_cache_gb": None}),
        run([None, *AS_GOOD[1:]], "l2", 0.25, variables={"KEEP_TOKENS": 1024}),
    ]  # fmt: skip
    choice_tables.print_groups(choice_groups.find(runs))
    printed = capsys.readouterr().out
    assert "out of memory" in printed
    assert "n = 15" in printed
    assert "1,024 tokens" in printed
    assert f"{choice_tables.BEST} 0.7" in printed


def test_titles_say_what_differs():
    def title(*runs):
        return choice_tables.titles(choice_groups.find(runs))

    flex = {"ATTN_IMPL": "flex"}
    pairs = [run(GOOD), run(GOOD, "l2"), run(GOOD, variables=flex), run(GOOD, "l2", variables=flex)]
    assert {name.rpartition(", ")[2] for name in title(*pairs)} == {
        "ATTN_IMPL=sdpa", "ATTN_IMPL=flex",
    }  # fmt: skip
    for one in pairs[2:]:
        one["run_meta"]["model"] = "other"
    assert title(*pairs)[0].startswith("narrativeqa, m, KV_SCOPE=prompt, 512 tokens")
