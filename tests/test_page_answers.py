"""What the report page says first: which setting, its table, maps and charts against length."""

from tests.browser import click, needs_browser, texts
from tests.saved_runs import full_results, write

GOOD = [0.9, 0.8, 0.7, 0.9, 0.6, 0.8, 0.75, 0.85] * 2
WORSE = [score - 0.3 - place / 1000 for place, score in enumerate(GOOD)]
AS_GOOD = [score + 0.01 * (-1) ** place for place, score in enumerate(GOOD)]


def sweep_of(scores_by_setting, **changes):
    """Runs by (method, share kept); the cache of a share is that share of 1 GB."""
    runs = {}
    for (mode, ratio), scores in scores_by_setting.items():
        variables = {"KV_MODE": mode, "KEEP_RATIO": ratio} | changes.get("variables", {})
        runs[f"{mode}{ratio}".replace(".", "-")] = full_results(
            scores, **changes | {"variables": variables, "summary": {"kv_cache_gb": ratio}}
        )
    return runs


@needs_browser
def test_the_page_opens_with_the_answer(opened, tmp_path):
    floor = {"score_names": ["em"], "task": "hotpotqa", "data_fingerprint": "low"}
    runs = sweep_of({("none", 1): GOOD, ("l2", 0.5): AS_GOOD, ("l2", 0.25): WORSE,
                     ("random", 0.25): AS_GOOD, ("random", 0.5): AS_GOOD})  # fmt: skip
    paths = write(tmp_path, **runs)
    low = sweep_of({("none", 1): [0] * 16, ("l2", 0.5): [0] * 15 + [1]}, **floor)
    for run in low.values():
        run["run_meta"]["score_names"] = ["f1"]
        for row in run["rows"]:
            row["samples"][0]["f1"] = row["samples"][0].pop("em")
        run["ctx_summaries"][0]["f1"] = 0.0
    chromium = opened(paths + write(tmp_path, **{f"z{name}": run for name, run in low.items()}))
    (row,) = texts(chromium, "#answer tbody tr")
    for part in ("narrativeqa", "l2 0.5", "50%", "0.006", "random 0.25, random 0.5", "-500.0 MB"):
        assert part in row
    assert "hotpotqa" not in row
    assert "1 more, where no loss could be seen" in texts(chromium, "#answer summary")[0]
    # The best cell, and a seen loss; what is chosen first is the full cache and the answer.
    assert ["\u2605" in text for text in texts(chromium, "#sweep td")] == [
        True,
        False,
        False,
        False,
    ]
    assert texts(chromium, "#sweep td.loss")[0].startswith("\u25bc 0.480 \u22120.307")
    assert texts(chromium, ".chip strong") == ["sdpa, none", "sdpa, l2 0.5"]
    click(chromium, "#sweep td.loss button")
    assert texts(chromium, ".chip strong") == ["sdpa, none", "sdpa, l2 0.25"]
    # The chart begins with what tells most, and the floor has no front.
    first, second = texts(chromium, "#chart-controls label:first-child option")
    assert first.startswith("narrativeqa, 512 tokens")
    assert second.startswith("hotpotqa, 512 tokens")
    assert texts(chromium, "#heats .heatmap tbody tr")[0].endswith("100%\t61%")


@needs_browser
def test_a_page_without_a_full_cache_says_so(opened, tmp_path):
    chromium = opened(write(tmp_path, a=full_results(GOOD, variables={"KV_MODE": "l2"})))
    assert "No run here can be compared" in texts(chromium, "#answer")[0]
    assert chromium.run("document.getElementById('sweep-section').hidden")


@needs_browser
def test_costs_are_drawn_against_length_without_any_quality(opened, tmp_path):
    run = full_results([0.5] * 3, contexts=(512, 1024, 2048), summary={"meteor": None})
    chromium = opened(write(tmp_path, a=run))
    assert chromium.run("document.querySelector('#charts').textContent").startswith("No run")
    assert chromium.run("document.querySelectorAll('#lengths polyline').length") == 3
    assert chromium.run("document.querySelectorAll('#lengths .point').length") == 9
    boxes = "[...document.querySelectorAll('#lengths select')]"
    assert chromium.run(f"{boxes}.map((box) => box.selectedOptions[0].text)") == [
        "TTFT, ms", "decode, ms/token", "KV cache, GB",
    ]  # fmt: skip


@needs_browser
def test_answers_are_mapped_by_depth_and_length_and_by_kind_of_task(opened, tmp_path):
    runs = sweep_of({("none", 1): GOOD, ("l2", 0.5): AS_GOOD}, contexts=(512, 1024))
    for run in runs.values():
        for row in run["rows"]:
            place = row["request"] % 5
            row["samples"][0] |= {"answer_depth": place / 4, "task": f"kind {place % 2}"}
            row["samples"][0]["meteor"] = 1.0 if place < 4 else 0.0
    chromium = opened(write(tmp_path, **runs))
    depths = texts(chromium, "#heats > div:nth-child(2) tbody tr")
    assert depths[0] == "0 to 20%\t1.00\t1.00"
    assert depths[4] == "80 to 100%\t0.00\t0.00"
    kinds = texts(chromium, "#heats > div:first-child tbody th")[1:]
    assert list(map(str.strip, kinds)) == ["kind 0", "kind 1"]


@needs_browser
def test_question_references_and_predictions_stand_side_by_side(opened, tmp_path):
    runs = sweep_of({("none", 1): GOOD, ("l2", 0.5): AS_GOOD})
    runs["none1"]["rows"][0]["samples"][0]["question"] = "Who ran?"  # the other file is older
    chromium = opened(write(tmp_path, **runs))
    first, second = texts(chromium, ".sample")[:2]
    assert first.split("\n")[:5] == ["book-0", "question", "Who ran?", "references", "r0"]
    assert second.split("\n")[:3] == ["book-1", "references", "r1"]
    tops = "[...document.querySelector('.answers').children].map((node) => node.offsetTop)"
    assert len(set(chromium.run(tops))) == 1


@needs_browser
def test_names_are_short_and_leave_room_for_figures(opened, tmp_path):
    long = {"variables": {f"SETTING_{n}": "a long value" for n in range(9)}, "run_id": "m_2"}
    chromium = opened(write(tmp_path, a=full_results(GOOD), b=full_results(GOOD, **long)))
    assert chromium.run("document.querySelector('#table thead th').offsetWidth") < 330
    title = chromium.run("[...document.querySelectorAll('#table tbody th')].at(-1).title")
    assert title.startswith("sdpa, none, SETTING_0=a long value, SETTING_1=")
