"""The report page: what is in the file, and what Chromium makes of it."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from longctx import paired
from longctx.load_results import FULL_SUFFIXES, content_of
from longctx.report import flat, page
from longctx.report.__main__ import write as write_report
from tests.browser import click, needs_browser
from tests.saved_runs import full_results, write

ROOT = Path(__file__).parents[1]
# Each of them would, as markup or as code, call `alert`, make an element or end the script.
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<!--<script>",
    "]]>\u2028alert(3)\u2029//",
    "'\"><svg onload=alert(4)>",
    "\x1b[31m\u202e${alert(5)}`$script",
    "javascript:alert(6)",
    "__proto__",
    "=HYPERLINK(1)|**[x](http://x)",
    "\ud800",
)


def hostile_run(text):
    run = full_results(
        [0.5, 0.25], model=text, task=text, score_names=[text], command=text, prompt_format=text,
        run_id=text, device={"name": text, text: text}, variables={text: text, "KV_MODE": text},
        kernel={"prefill": text},
    )  # fmt: skip
    for row in run["rows"]:
        row["samples"][0] |= {"sample_id": text + row["samples"][0]["sample_id"]}
        row["samples"][0] |= {"prediction": text, "references": [text, text]}
    return run


def test_nothing_in_the_data_can_end_its_script_element():
    text = page.embedded(HOSTILE)
    assert json.loads(text) == list(HOSTILE)
    assert text.isascii()
    assert not set(text) & set("<>&\n")


def test_the_page_has_no_markup_but_its_own(tmp_path):
    class Tags(HTMLParser):
        def __init__(self, text):
            super().__init__()
            self.found = []
            self.feed(text)

        def handle_starttag(self, tag, attrs):
            self.found.append((tag, [name for name, _ in attrs]))

    pages = []
    for texts in (["plain"], HOSTILE):
        folder = tmp_path / str(len(texts))
        folder.mkdir()
        paths = write(folder, **{f"r{n}": hostile_run(text) for n, text in enumerate(texts)})
        write_report(paths, folder / "o.html", samples=5)
        pages.append((folder / "o.html").read_text())
    plain, hostile = map(Tags, pages)
    assert plain.found == hostile.found
    for part in (r'src="(?!data:)', r"\bhref=", r"innerHTML", r"@import", r"url\("):
        assert not re.search(part, pages[0])


def test_policy_lets_only_the_pages_own_script_run():
    (policy,) = re.findall(r'Policy" content="([^"]*)"', page.document([], 0))
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2


@needs_browser
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(opened, tmp_path, text):
    chromium = opened(write(tmp_path, a=hostile_run(text), b=hostile_run(text)))
    shown = chromium.run('document.querySelector(".answer:not(.asked) .text").textContent')
    assert (
        shown.strip("\ufffd")[-6:]
        == re.sub("[\x1b\u2028\u2029\u202e\ud800]", "\ufffd", text).strip("\ufffd")[-6:]
    )
    assert chromium.run('document.querySelectorAll("img, a, iframe, main script").length') == 0
    assert chromium.run('document.querySelectorAll("script").length') == 2
    assert chromium.run("({}).sample") is None
    assert chromium.run('document.querySelectorAll("#table tbody tr").length') == 2


@pytest.mark.model
@needs_browser
def test_all_committed_logs_open_without_an_error(opened, tmp_path):
    logs = ROOT / "logs"
    chromium = opened([logs])
    # Packed runs, whose lines are kept in the full file alone, are shown as all others.
    files = [path for path in logs.rglob("*_full.json*") if path.name.endswith(FULL_SUFFIXES)]
    rows = sum(len(json.loads(content_of(path))["ctx_summaries"]) for path in files)
    assert any(path.suffix == ".gz" for path in files)
    assert chromium.run('document.querySelectorAll("#table tbody tr").length') == rows
    assert chromium.run('document.querySelectorAll(".point").length') > 10
    assert chromium.run('document.querySelectorAll(".answer").length') > 4
    assert chromium.run("document.documentElement.scrollWidth") == 1280
    chromium.view(390, 900)
    chromium.requests.clear()
    chromium.open(tmp_path / "report.html")
    assert chromium.run("document.documentElement.scrollWidth") == 390


def cells(chromium, column):
    return chromium.run(
        "[...document.querySelectorAll('#table tbody tr')].filter((row) => !row.hidden)"
        f".map((row) => row.children[{column}].textContent.trim())"
    )


@needs_browser
def test_table_sorts_filters_and_chooses(opened, tmp_path):
    figures = [("none", 9.5), ("l2", None), ("tova", 100), ("l2", 20)]
    runs = {
        f"r{number}": full_results(
            [0.1 * number, 0.2], run_id=f"m_{number}", variables={"KV_MODE": mode},
            summary={"ttft_ms_p50": ttft},
        )
        for number, (mode, ttft) in enumerate(figures)
    }  # fmt: skip
    chromium = opened(write(tmp_path, **runs))
    headings = chromium.run(
        "[...document.querySelectorAll('thead button')].map((b) => b.textContent)"
    )
    column = headings.index("TTFT, ms")
    head = f"#table thead th:nth-child({column + 1})"
    click(chromium, f"{head} button")
    assert cells(chromium, column) == ["9.5", "20.0", "100.0", "\u2013"]
    assert chromium.run(f"document.querySelector('{head}').ariaSort") == "ascending"
    click(chromium, f"{head} button")
    assert cells(chromium, column) == ["100.0", "20.0", "9.5", "\u2013"]
    chromium.run(
        "(() => { const box = [...document.querySelectorAll('#filters select')]"
        ".find((box) => [...box.options].some((option) => option.value === 'tova'));"
        "box.value = 'l2'; box.dispatchEvent(new Event('change')); })()"
    )
    assert cells(chromium, column) == ["20.0", "\u2013"]
    assert (
        chromium.run("document.querySelectorAll('figure')[0].querySelectorAll('.point').length")
        == 2
    )
    # The first two runs to compare were chosen at the start; a click takes one more.
    assert chromium.run("document.querySelectorAll('.chip').length") == 2
    before = chromium.run("document.querySelector('.sample').querySelectorAll('.answer').length")
    click(chromium, "#table tbody tr:not([hidden]):not(.chosen) input")
    assert chromium.run("document.querySelectorAll('.chip').length") == 3
    assert (
        chromium.run("document.querySelector('.sample').querySelectorAll('.answer').length")
        > before
    )
    assert chromium.run("document.querySelector('.differs th').textContent") == "KV_MODE"


@needs_browser
def test_a_point_tells_its_run_and_chooses_it(opened, tmp_path):
    runs = {f"r{n}": full_results([0.5, n / 9], run_id=f"m_{n}") for n in range(3)}
    chromium = opened(write(tmp_path, **runs))
    assert chromium.run("document.getElementById('tooltip').hidden")
    box = "document.querySelectorAll('.point .shape')[2].getBoundingClientRect()"
    x, y = (
        chromium.run(f"{box}.{side} + {box}.{size} / 2")
        for side, size in (("x", "width"), ("y", "height"))
    )
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    shown = chromium.run("document.getElementById('tooltip').innerText")
    assert "sdpa, none, 2" in shown
    assert "meteor: 0.361 [0.100, 0.900]" in shown
    assert "KV cache, GB: 0.5000" in shown
    for kind in ("mousePressed", "mouseReleased"):
        chromium.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    chips = chromium.run("[...document.querySelectorAll('.chip strong')].map((n) => n.textContent)")
    assert chips == ["sdpa, none, 0", "sdpa, none, 2"]
    # The keyboard's place is kept.
    assert chromium.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    chromium.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter")
    assert chromium.run("document.activeElement.getAttribute('aria-pressed')") == "false"
    assert chromium.run("document.querySelectorAll('.chip').length") == 1


@needs_browser
def test_out_of_memory_random_weights_and_one_run(opened, tmp_path):
    run = full_results([None, None], summary={"ttft_ms_p50": None})
    chromium = opened(write(tmp_path, a=run))
    assert "out of memory" in " ".join(cells(chromium, 3) + cells(chromium, 4))
    assert chromium.run("document.querySelector('#charts').textContent").startswith("No run")


@needs_browser
def test_scores_without_any_cost(opened, tmp_path):
    nothing = dict.fromkeys(("ttft_ms_p50", "ms_per_token_decode_p50", "kv_cache_gb"))
    chromium = opened(write(tmp_path, a=full_results([0.5, 0.2], summary=nothing)))
    assert "No cost was measured" in chromium.run("document.querySelector('#charts').textContent")


@needs_browser
def test_a_score_that_may_be_guessed_is_marked(opened, tmp_path):
    def run(told):
        guessing = {"chance": 0.25, "em_told_from_chance": told}
        return full_results([1, 0, 0], score_names=["em"], summary=guessing)

    chromium = opened(write(tmp_path, a=run(False), b=run(True)))
    texts = chromium.run("[...document.querySelectorAll('.guessing')].map((n) => n.textContent)")
    assert texts == ["not told from guessing, 0.25"]
    text = flat.markdown([(tmp_path, run(told)) for told in (False, True)])
    assert text.count("(cannot be told from guessing, 0.25)") == 1


@needs_browser
def test_pareto_front_is_of_runs_that_can_be_told_apart(opened, tmp_path):
    chromium = opened(write(tmp_path, a=full_results([0.5, 0.6])))

    def front(*points, more=False):
        given = [
            {"cost": cost, "score": score, "interval": [score - 0.1, score + 0.1]}
            for cost, score in points
        ]
        found = chromium.run(f"paretoFront({json.dumps(given)}, {json.dumps(more)})")
        return [(point["cost"], point["score"]) for point in found]

    assert front((1, 0.1), (2, 0.5), (3, 0.4), (4, 0.8)) == [(1, 0.1), (2, 0.5), (4, 0.8)]
    assert front((1, 0.8), (2, 0.5), (4, 0.1), more=True) == [(4, 0.1), (2, 0.5), (1, 0.8)]
    # The second of the same cost is worse, the third of the last three overlaps with both.
    assert front((1, 0.4), (1, 0.1), (2, 0.55), (3, 0.7)) == [(1, 0.4), (3, 0.7)]
    # One alone, or several whose intervals overlap, are no front.
    assert front((1, 0.5)) == front((1, 0.5), (2, 0.6), (3, 0.65)) == front() == []


@needs_browser
def test_ticks_are_round_and_within_the_axis(opened, tmp_path):
    chromium = opened(write(tmp_path, a=full_results([0.5, 0.6])))
    for low, high, log in ((0, 1, False), (-0.2, 0.1, False), (1e-4, 3, True), (17, 17.5, False)):
        found = chromium.run(f"ticks({low}, {high}, {json.dumps(log)})")
        assert 2 < len(found) < 20
        assert all(low <= tick <= high for tick in found)


@pytest.mark.model
@needs_browser
def test_two_thousand_rows_stay_usable(opened, tmp_path):
    contexts = (1024, 2048, 4096, 8192, 16384)
    rng = random.Random(0)
    for number in range(400):
        run = full_results(
            [0.5, 0.2], contexts=contexts, run_id=f"m_{number}",
            variables={"KV_MODE": rng.choice(["none", "l2", "tova"])},
            summary={"ttft_ms_p50": rng.random(), "meteor": rng.random()},
        )  # fmt: skip
        write(tmp_path, **{f"r{number}": run})
    chromium = opened([tmp_path])
    assert "2,000 of 2,000" in chromium.run("document.getElementById('count').textContent")
    took_ms = chromium.run(
        "(async () => { const began = performance.now();"
        "document.querySelectorAll('thead button')[4].click(); document.body.offsetHeight;"
        "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
        "return performance.now() - began; })()"
    )
    assert took_ms < 2000  # 0.1 s when nothing else runs
    values = [float(text.replace(",", "")) for text in cells(chromium, 4)]
    assert len(values) == 200
    assert values == sorted(values)
    click(chromium, "#table > div > button")
    assert len(cells(chromium, 4)) == 400


def test_predictions_are_as_many_as_asked_for(tmp_path):
    run = full_results([0.1] * 9)
    data = json.loads(
        re.search(r'id="data">(.*?)</script>', page.document([(tmp_path, run)], 4)).group(1)
    )
    assert len(data["runs"][0]["predictions"]["512"]) == 4


def test_runs_over_the_same_samples_share_a_chart_whatever_their_fingerprints():
    def names(*runs):
        return list(paired.data_names(runs).values())

    one, two = full_results([0.1] * 3), full_results([0.3] * 3, data_fingerprint="g")
    other = full_results([0.3] * 3, data_fingerprint="g")
    other["rows"][1]["samples"][0]["references"] = ["else"]
    assert names(one, two) == ["f", "f"]
    assert names(one, other) == ["f", "g"]
