import re
import subprocess
import sys
from pathlib import Path

import pytest

from longctx import compare, figures, paired, run_differences
from longctx.errors import SettingError
from tests.saved_runs import full_results, write

ROOT = Path(__file__).parents[1]
GOOD = [0.9, 0.8, 0.7, 0.9, 0.6, 0.8, 0.75, 0.85]


def sentence_of(first, second, names=("meteor",)):
    runs = [full_results(scores, score_names=list(names)) for scores in (first, second)]
    (difference,) = paired.score_differences(*runs, 512, seed=0)
    return difference.sentence()


def test_a_loss_and_a_gain_are_said_plainly():
    worse = [score - 0.3 for score in GOOD]
    worse[3] -= 0.05
    text = sentence_of(GOOD, worse)
    assert text == ("a loss of 0.306 [0.291, 0.321] (0.787 -> 0.481, n = 8, permutation p = 0.008)")
    assert sentence_of(worse, GOOD).startswith("a gain of 0.306 [0.291, 0.321] (0.481 -> 0.787")
    assert "p < 0.001" in sentence_of(GOOD * 3, worse * 3)


def test_no_difference_says_which_loss_is_excluded():
    other = [score + change for score, change in zip(GOOD, [0.02, -0.02] * 4, strict=True)]
    text = sentence_of(GOOD, other)
    assert text.startswith("no difference can be seen, a loss of more than 0.0")
    low = paired.score_differences(full_results(GOOD), full_results(other), 512, 0)[0].interval[0]
    bound = float(text.split("more than ")[1].split()[0])
    assert -low <= bound < -low + 0.001
    # Few samples of low scores: even a score of 0 would be within the interval.
    assert "not even the loss of all of it" in sentence_of([0, 0, 0.3, 0], [0, 0.2, 0, 0])


def test_interval_and_test_that_disagree_settle_nothing():
    # Five signs that agree: the smallest p there is, 2/32, is no proof.
    text = sentence_of([0.5] * 5, [0.6, 0.61, 0.7, 0.65, 0.62])
    assert text.startswith("not settled, interval and test disagree: +0.136 [+0.0")
    assert "p = 0.062" in text


def test_zero_one_scores_take_mcnemar_and_others_permutation():
    text = sentence_of([1] * 12 + [0] * 8, [0] * 12 + [0] * 8, names=("em",))
    assert text.startswith("a loss of 0.600 [0.3")
    assert "McNemar p < 0.001" in text
    assert "McNemar" in sentence_of([1, 0, 1], [1, 0, 1])
    assert "permutation" in sentence_of([1, 0.5, 1], [1, 0, 1])
    assert sentence_of([1], [0]) == (
        "1.000 -> 0.000, n = 1: one sample says nothing about a difference"
    )


def of_documents(scores, documents):
    """A run, and the document of each of its samples."""
    run = full_results(scores, score_names=["em"])
    for row, document in zip(run["rows"], documents, strict=True):
        row["samples"][0]["document_id"] = document
    return run


def test_samples_about_one_document_are_taken_together():
    before, after = [1] * 12, [0] * 12
    six = [*"aabbccddeeff"]
    (found,) = paired.score_differences(
        of_documents(before, six), of_documents(after, six), 512, seed=0
    )
    assert (found.n, found.n_documents, found.test) == (12, 6, "permutation")
    assert found.p == pytest.approx(2 / 64)
    missed = 1 - 0.025 ** (1 / 6)
    assert found.interval == pytest.approx([-1, 2 * missed - 1])
    assert "n = 12 about 6 documents, permutation p = 0.031" in found.sentence()
    # An old run does not name them; the other one does.
    (same,) = paired.score_differences(
        full_results(before, score_names=["em"]), of_documents(after, six), 512, seed=0
    )
    assert same == found
    # Each about its own, some not known: independent.
    alone = [None, *"bcdefghijkl"]
    (found,) = paired.score_differences(
        of_documents(before, alone), of_documents(after, alone), 512, seed=0
    )
    assert (found.n_documents, found.test) == (None, "McNemar")
    one = ["a"] * 12
    (found,) = paired.score_differences(
        of_documents(before, one), of_documents(after, one), 512, seed=0
    )
    assert found.sentence() == (
        "1.000 -> 0.000, n = 12 about 1 document: one document says nothing about a difference"
    )


def test_pairs_go_by_sample_not_by_place():
    first, second = full_results(GOOD), full_results(GOOD)
    second["rows"].reverse()
    (difference,) = paired.score_differences(first, second, 512, seed=0)
    assert difference.reference == difference.other
    assert difference.p == 1
    # And over those that both answered.
    fewer = full_results([0.9, None, *GOOD[2:]])
    (difference,) = paired.score_differences(first, fewer, 512, seed=0)
    assert difference.n == 7
    assert difference.reference == difference.other


def test_costs_are_ratios_of_what_both_measured():
    first = full_results(GOOD)
    second = full_results(GOOD, rows={"ttft_ms": 207.0, "kv_cache_gb": 0.2, "peak_gpu_mem_gb": 1.0})
    second["rows"][2]["ms_per_token_decode"] = None
    ratios = {ratio.figure.name: ratio for ratio in paired.cost_ratios(first, second, 512, seed=0)}
    assert list(ratios) == ["TTFT", "decode", "latency", "KV cache"]  # the GPU only once
    # Times of one run each claim nothing of the settings.
    assert ratios["TTFT"].sentence() == (
        "2.00 times [1.95, 2.05] (103.5 -> 207.0 ms, interval within one run each)"
    )
    assert ratios["decode"].requests == 7
    assert ratios["KV cache"].sentence() == "60% less: 0.40 times (0.5000 -> 0.2000 GB)"
    assert ratios["decode"].sentence().startswith("no difference can be seen: 1.00 times [1.00")
    # Other batches: no request in common, so no interval.
    for row in second["rows"]:
        row["samples"] = row["samples"] * 2
    ratio = paired.cost_ratios(first, second, 512, seed=0)[0]
    assert ratio.interval is None
    assert ratio.reference == 103.5
    assert ratio.sentence() == (
        "2.00 times (103.5 -> 207.0 ms, no request in common, so no interval)"
    )


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 request"), (2, "2 requests"), (5, "5 requests")]
)
def test_few_requests_claim_nothing(count, said):
    runs = full_results(GOOD[:count]), full_results(GOOD[:count], rows={"kv_cache_gb": 0.2})
    for row in runs[1]["rows"]:
        row["ttft_ms"] *= 1.03
    ratios = {ratio.figure.name: ratio for ratio in paired.cost_ratios(*runs, 512, seed=0)}
    assert ratios["TTFT"].sentence().startswith("1.03 times (")
    assert ratios["TTFT"].sentence().endswith(f" ms, {said}: too few for an interval)")
    assert ratios["KV cache"].sentence() == (
        f"0.40 times (0.5000 -> 0.2000 GB, {said}: too few for an interval)"
    )


@pytest.mark.parametrize(
    ("name", "other", "interval", "sentence"),
    [
        ("GPU peak", 1.05, [1.04, 1.06], "5.0% more: 1.05 times [1.04, 1.06] (1.00 -> 1.05 GB)"),
        ("GPU peak", 0.5, [0.4, 0.6], "50% less: 0.50 times [0.40, 0.60] (1.00 -> 0.50 GB)"),
        ("GPU peak", 3, [3, 3], "more: 3.00 times (1.00 -> 3.00 GB)"),
        ("GPU peak", 0.9, [0.8, 1], "no difference can be seen: 0.90 times [0.80, 1.00] (1.00"),
        ("GPU peak", 1.1, [1, 1.2], "no difference can be seen: 1.10 times [1.00, 1.20] (1.00"),
        ("latency", 0.5, [0.4, 0.6], "0.50 times [0.40, 0.60] (1.00 -> 0.50 ms, interval within"),
        ("latency", 1.1, [0.9, 1.2], "no difference can be seen: 1.10 times [0.90, 1.20] (1.00"),
    ],
)
def test_a_ratio_in_words(name, other, interval, sentence):
    figure = next(figure for figure in figures.FIGURES if figure.name == name)
    ratio = paired.CostRatio(figure, 2, 1, other, interval, 8)
    assert ratio.sentence().startswith(sentence)


def run_compare(tmp_path, capsys, details=True, **runs):
    compare.compare(write(tmp_path, **runs), details=details)
    return capsys.readouterr()


def test_compare_prints_a_block_for_each_context(tmp_path, capsys):
    worse = [score - 0.3 - 0.001 * place for place, score in enumerate(GOOD)]
    other = full_results(worse, contexts=(512, 1024), variables={"KV_MODE": "l2"})
    printed = run_compare(tmp_path, capsys, a=full_results(GOOD, contexts=(512, 1024)), b=other)
    assert "sdpa, l2 0.5, against sdpa, none\n  compared: KV_MODE none -> l2\n" in printed.out
    assert printed.out.count("a loss of 0.303 [0.301, 0.306]") == 2
    assert "  1,024 tokens, 8 samples\n" in printed.out
    assert "Of 2 tests, 0.1 are expected" in printed.out
    assert "as if samples were independent" in printed.out
    assert printed.err == ""


def test_without_details_a_run_is_one_line(tmp_path, capsys):
    both = (512, 1024)
    half = full_results([0.5 * score for score in GOOD], contexts=both,
                        variables={"KV_MODE": "l2"}, rows={"kv_cache_gb": 0.2})  # fmt: skip
    # A loss at one length that a gain at the other hides.
    mixed = full_results(GOOD, contexts=both, variables={"KV_MODE": "tova"})
    for row in mixed["rows"]:
        (sample,) = row["samples"]
        change = 0.1 + row["request"] / 1000
        sample["meteor"] += change if row["context_tokens"] == 512 else -change
    text = run_compare(
        tmp_path, capsys, details=False, a=full_results(GOOD, contexts=both), b=half, c=mixed
    ).out
    lines = [re.sub(r" {2,}", "|", line) for line in text.splitlines()]
    assert lines[:4] == [
        "at 512 to 1,024 tokens|meteor|difference [95%]|KV cache at 1,024|decode at 1,024"
        "|TTFT at 1,024",
        "none|0.787|0.5000 GB|5.00 ms/token|103.5 ms",
        "l2 0.5|0.394|-0.394 [-0.437, -0.351] loss|0.40 times|1.00 times|1.00 times",
        "tova 0.5|0.788|+0.000 [-0.369, +0.369] loss at 1,024|1.00 times|1.00 times|1.00 times",
    ]
    assert len(lines) == 4 + 3 + 2


def test_a_folder_is_a_sweep(tmp_path, capsys, monkeypatch):
    write(tmp_path, a=full_results(GOOD * 3))
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        compare.main()
    assert stop.value.code == 2
    assert "has no run with a full cache of the same settings" in capsys.readouterr().err
    worse = [score - 0.3 - place / 1000 for place, score in enumerate(GOOD * 3)]
    write(tmp_path, b=full_results(worse, variables={"KV_MODE": "l2"}))
    compare.main()
    printed = capsys.readouterr()
    assert "KV_SCOPE=prompt, 512 tokens: meteor, full cache 0.788, n = 24" in printed.out
    assert "512 tokens: none; the least is that of l2 0.5: a loss of 0.31" in printed.out


def test_random_weights_compare_costs_alone(tmp_path, capsys):
    runs = [full_results(GOOD) for _ in range(2)]
    for run in runs:
        for row in run["rows"]:
            row["samples"][0]["meteor"] = None
    printed = run_compare(tmp_path, capsys, a=runs[0], b=runs[1])
    assert "TTFT" in printed.out
    assert "tests" not in printed.out
    assert "compared: two runs of the same settings" in printed.out


def test_what_is_not_the_same_is_noted(tmp_path, capsys):
    other = full_results(
        [*GOOD[:-1], None],
        variables={"KV_MODE": "l2", "DTYPE": "float32", "LOGDIR": "b", "NEW": 1},
        versions={"torch": "3"},
        device={"type": "cuda", "name": "H200"},
        git_commit="abc",
        prompt_format="chat template",
    )
    notes = run_compare(tmp_path, capsys, a=full_results(GOOD), b=other).err
    assert "3 settings differ, so no difference has one cause" in notes
    for part in ("device name c -> H200", "torch 2 -> 3", "git commit unknown -> abc"):
        assert part in notes
    assert "prompt format raw -> chat template" in notes
    assert "1 samples at 512 tokens were answered by one of the two runs only" in notes
    assert "LOGDIR" not in notes


def test_only_settings_that_have_an_effect_count():
    def meta(**variables):
        return full_results(GOOD, variables=variables)["run_meta"]

    assert run_differences.differing_settings(meta(), meta(KEEP_RATIO=0.7, L2_KEEP="high")) == {}
    pruned = meta(KV_MODE="l2", L2_KEEP="low", SNAPKV_WINDOW=64)
    changed = meta(KV_MODE="l2", L2_KEEP="high", SNAPKV_WINDOW=32, KEEP_RATIO=0.7, CONTEXTS=[1])
    assert run_differences.differing_settings(pruned, changed) == {
        "L2_KEEP": ("low", "high"),
        "KEEP_RATIO": ("0.5", "0.7"),
    }
    # A setting that an old run did not know had its default.
    assert run_differences.differing_settings(meta(), meta(KV_QUANT="none")) == {}
    assert run_differences.differing_settings(meta(), meta(KV_QUANT="int4")) == {
        "KV_QUANT": ("none", "int4")
    }
    assert run_differences.differing_settings(meta(), meta(SKIP_LAYERS=[0])) == {}


def test_labels_differ():
    metas = [
        full_results(GOOD, variables=variables, run_id=f"m_{number}")["run_meta"]
        for number, variables in enumerate(({}, {"DTYPE": "float32"}, {"KV_MODE": "l2"}, {}, {}))
    ]
    metas.append(metas[-1])
    assert run_differences.labels(metas) == [
        "sdpa, none, 0", "sdpa, none, DTYPE=float32", "sdpa, l2 0.5", "sdpa, none, 3",
        "sdpa, none, 4", "sdpa, none, 4 (2)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": "hotpotqa"}, "task=hotpotqa: a_full.json is of narrativeqa"),
        ({"data_fingerprint": "g", "rows": {"samples": []}}, "answered no sample that a_full.json"),
    ],
)
def test_runs_over_other_samples_are_refused(tmp_path, changes, problem):
    with pytest.raises(SettingError, match=problem):
        compare.compare(write(tmp_path, a=full_results(GOOD), b=full_results(GOOD, **changes)))


def test_another_fingerprint_is_refused_unless_the_shared_samples_are_known_to_agree(
    tmp_path, capsys
):
    few = full_results(GOOD[:5], data_fingerprint="g", variables={"N_SAMPLES": 5})
    notes = run_compare(tmp_path, capsys, a=full_results(GOOD), b=few).err
    assert "another data_fingerprint than a_full.json (N_SAMPLES differ)" in notes
    assert "their prompts' lengths agree" in notes
    few["rows"][4]["samples"][0]["prompt_tokens"] -= 1
    notes = run_compare(tmp_path, capsys, a=full_results(GOOD), b=few).err
    assert "their prompts' lengths differ" in notes
    for key, value in (("references", ["x"]), ("document_tokens", 1)):
        few = full_results(GOOD[:5], data_fingerprint="g", variables={"USE_SUMMARY": True})
        few["rows"][4]["samples"][0][key] = value
        paths = write(tmp_path, a=full_results(GOOD), b=few)
        with pytest.raises(SettingError, match=r"other samples .*\(USE_SUMMARY differ\)"):
            compare.compare(paths)


def test_compare_is_a_command(tmp_path):
    paths = write(tmp_path, a=full_results(GOOD), b=full_results(GOOD, variables={"DTYPE": "x"}))
    line = [sys.executable, "-m", "longctx.compare", *map(str, paths)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(str(path) in done.stdout for path in paths)


def test_a_file_that_is_missing_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "missing.json")])
    with pytest.raises(SystemExit) as stop:
        compare.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: file={tmp_path}/missing.json: cannot be read: No such file or directory\n"
    )


def test_the_readmes_first_result_is_what_compare_prints(capsys):
    logs = ROOT / "logs/first-result"
    (full,), (pruned,) = logs.glob("*KVnone*_full.json"), logs.glob("*KVl2*_full.json")
    compare.compare([full, pruned])
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    (block,) = re.findall(
        r"^```\n(at 1,024.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S
    )
    shown = [" ".join(line.split()) for line in block.splitlines()]
    assert len(shown) == 3
    # The columns of times are left out there.
    assert [whole.startswith(part) for whole, part in zip(printed, shown, strict=False)] == [
        True
    ] * 3


def test_the_logs_of_the_page_on_comparing_can_be_compared(capsys):
    logs = ROOT / "logs/narrativeqa"
    (full,) = logs.glob("smollm2-135m_sdpa_N20_B1_KVnone_*_full.json")
    (pruned,) = logs.glob("smollm2-135m_sdpa_N20_B1_KVl2_*_full.json")
    compare.compare([full, pruned], details=True)
    assert "2,048 tokens, 20 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pruned", "sentence"),
    [
        # 8 ms against 1 + 9 * 0.1 a question
        ((8.0, 4.0, 0.9), "8.0 ms a document, a question then 1.90 ms less: paid back after 5 "),
        ((8.0, 5.0, 1.0), "8.0 ms a document, a question then 0.00 ms more, so it does "),
        ((0.0, 1.0, 1.0), "0.0 ms a document, a question then 4.00 ms less: paid back after 1 "),
        ((None, 1.0, 1.0), None),
    ],
)
def test_when_pruning_a_document_has_paid_back(tmp_path, capsys, pruned, sentence):
    names = ("compress_ms_p50", "question_ttft_ms_p50", "ms_per_token_decode_p50")
    runs = {
        mode: full_results(
            [0.5, 0.75],
            variables={"KV_MODE": mode},
            summary=dict(zip(names, costs, strict=True)) | {"avg_gen_tokens": 10.0},
        )
        for mode, costs in {"none": (0.0, 5.0, 1.0), "l2": pruned}.items()
    }
    compare.compare(write(tmp_path, **runs), details=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert ("a document's cache" in printed) == (sentence is not None)
    assert (sentence or "") in printed
