import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

import ruler_eval
from longctx import config, synthetic, task
from longctx.errors import SettingError
from longctx.metrics.exact import string_match_all, string_match_part
from longctx.prompts import PromptBuilder
from longctx.records import RecordError
from tests.runs import run

NEEDLES = [name for name in synthetic.RULER_TASKS if name.startswith("niah")]
RECORD = {
    "context": "Zoë's number is 4711.\n", "question": "What is Zoë's number?",
    "answer_prefix": "Zoë's number is", "answer": ["4711"], "task": "niah_single_2",
    "max_new_tokens": 128,
}  # fmt: skip


def words(record):
    """Stands for tokens: quick, and free of a tokenizer."""
    return len(f"{record['context']}{record['question']}{record['answer_prefix']}".split())


def made(count=13, context_tokens=900, seed=0, **options):
    return synthetic.ruler(seed, count, context_tokens, words, **options)


def read(values):
    return config.read(ruler_eval.TASK.settings, values)[0]


def solved(record, context):
    """The answer of somebody who reads the text."""
    question = record["question"]
    match record["task"].partition("_")[0]:
        case "niah":
            said = re.findall(r"A registry \w+ of (\S+) is (\S+)\.", context)
            asked = re.findall(r"[\w-]+", question)
            return " ".join(value for key, value in said if key in asked)
        case "vt":
            known = set(re.findall(r"\d+", question))
            for name, source in re.findall(r"LET (\w+) = (\w+)", context):
                known |= {name} if source in known else set()
            return ", ".join(known)
        case "cwe":
            counts = Counter(re.findall(r"\d+\. (\w+)", context))
            return " ".join(word for word, _ in counts.most_common(10))
        case "fwe":
            counts = Counter(re.findall(r"\b[a-z]{6}\b", context.partition("\n\n")[2]))
            return " ".join(word for word, _ in counts.most_common(3))
    return answered(question, context)


def answered(question, context):
    if both := re.search(r"born earlier, (.+) or (.+)\?", question):
        years = {
            name: re.search(rf"{name} was born in \w+ in (\d+)", context)[1]
            for name in both.groups()
        }
        return min(years, key=years.get)
    if work := re.search(r'"(.+)"', question):
        name = re.search(rf'"{work[1]}" is a \w+\. It was \w+ by (\w+ \w\. \w+)\.', context)[1]
    else:
        name = re.search(r"(?:was|does) (\w+ \w\. \w+)", question)[1]
    town, year = re.search(rf"{name} was born in (\w+) in (\d+)", context).groups()
    instrument = re.search(rf"{name} plays the (\w+)", context)[1]
    return town if "town" in question else year if "year" in question else instrument


def score(record, prediction):
    (found,) = ruler_eval.score_of(record)([prediction], [record["answer"]])
    return found["string_match"]


@pytest.mark.parametrize("name", synthetic.RULER_TASKS)
def test_who_reads_the_text_answers_right_and_without_its_needles_nothing(name):
    for record in made(4, tasks=(name,)):
        assert score(record, solved(record, record["context"])) == 1
        assert all(record["context"].count(text) == 1 for text in record["evidence"])
        if name in NEEDLES:
            context = record["context"]
            for needle in record["evidence"]:
                context = context.replace(needle, "")
            assert score(record, solved(record, context)) == 0
            assert not any(answer in context for answer in record["answer"])


def test_the_kinds_of_needles_are_rulers():
    by_task = {record["task"]: record for record in made()}
    values = {name: by_task[name]["answer"] for name in NEEDLES}
    assert {name: len(mine) for name, mine in values.items() if len(mine) > 1} == {
        "niah_multivalue": 4, "niah_multiquery": 4,
    }  # fmt: skip
    codes = {name for name, mine in values.items() if re.fullmatch(r"[0-9a-f-]{36}", mine[0])}
    assert codes == {"niah_single_3", "niah_multikey_3"}
    said = {name: by_task[name]["context"].count("A registry") for name in NEEDLES}
    assert said.pop("niah_multikey_2") > 50
    assert said.pop("niah_multikey_3") > 50
    assert said == {
        "niah_single_1": 1, "niah_single_2": 1, "niah_single_3": 1, "niah_multikey_1": 4,
        "niah_multivalue": 4, "niah_multiquery": 4,
    }  # fmt: skip
    limits = {name: by_task[name]["max_new_tokens"] for name in by_task if name not in NEEDLES}
    assert limits == {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
    assert {by_task[name]["max_new_tokens"] for name in NEEDLES} == {128}


def test_frequent_words_are_far_more_frequent():
    (common,) = made(1, 5000, tasks=("cwe",))
    counts = Counter(re.findall(r"\d+\. (\w+)", common["context"])).most_common()
    assert [count for _, count in counts[:10]] == [30] * 10
    assert {count for _, count in counts[10:]} <= {1, 3}
    (coded,) = made(1, 5000, tasks=("fwe",))
    counts = Counter(coded["context"].partition("\n\n")[2].split()).most_common(4)
    assert [word for word, _ in counts] == ["...", *coded["answer"]]
    # Zipf's law: of the first, a quarter, a ninth, a sixteenth.
    assert [counts[0][1] // count for _, count in counts] == [1, 4, 9, 16]


@pytest.mark.parametrize("length", [400, 900, 6000])
def test_lengths_are_met_whatever_counts_them(length):
    for record in made(13, length):
        assert length * 0.99 - 6 <= words(record) <= length


@pytest.mark.model
@pytest.mark.parametrize(
    ("length", "tasks"),
    [(1024, ()), (4096, ()), (32768, ("niah_single_1", "niah_multikey_3", "cwe"))],
)
def test_prompts_have_the_length_asked_for(builtin_tokenizer, length, tasks):
    builder = PromptBuilder(builtin_tokenizer, chat_template=length == 1024)
    values = {"DATASET_ID": "synthetic", "CONTEXTS": str(length), "TASKS": ",".join(tasks)}
    settings = read(values | {"N_SAMPLES": str(len(tasks) or 13)})
    samples = task.samples_by_context(ruler_eval.TASK, settings, builder)[length]
    assert len(samples) == len({sample.extra["task"] for sample in samples})
    for sample in samples:
        prompt = builder.build(sample.parts, length, settings.truncate)
        assert 0.99 * length < len(prompt.input_ids) <= length, sample.sample_id
        assert prompt.dropped_tokens == 0


def test_a_context_that_is_too_short_is_an_error(builtin_tokenizer):
    settings = read({"DATASET_ID": "synthetic", "CONTEXTS": "200", "TASKS": "cwe"})
    builder = PromptBuilder(builtin_tokenizer, chat_template=False)
    with pytest.raises(
        SettingError, match=r"^CONTEXTS=200: a prompt of cwe takes at least \d+ tok"
    ):
        task.samples_by_context(ruler_eval.TASK, settings, builder)


def test_samples_depend_on_seed_and_length_alone():
    records = made(26)
    assert records[:15] == made(15)
    assert [r for r in records if r["task"] == "vt"] == made(2, tasks=("vt",))
    assert records[5] in made(4, tasks=("qa_1", records[5]["task"]))
    assert all(one != other for one, other in zip(records, made(26, seed=1), strict=True))
    assert len({record["id"] for record in records}) == 26
    # Answers do not depend on the length either.
    assert [r["answer"] for r in records] == [r["answer"] for r in made(26, 500)]


def test_samples_do_not_depend_on_the_process():
    program = (
        "import json; from longctx import synthetic\n"
        "count = lambda record: len(record['context'].split())\n"
        "print(json.dumps(synthetic.ruler(3, 13, 500, count)))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1


def test_needles_are_spread_over_all_depths():
    depths = [record["answer_depth"] for record in made(40, tasks=("niah_single_2",))]
    assert all(9 <= sum(q / 4 <= d < (q + 1) / 4 for d in depths) <= 11 for q in range(4))
    assert not any("answer_depth" in r for r in made(13) if r["task"] not in NEEDLES)


def test_scores_by_hand():
    references = [["Ann", "BO"], ["Ann", "BO"], ["12"], []]
    predictions = ["bo and ann", "Anna", "no. 312!", "x"]

    def scores(rule):
        return [score["string_match"] for score in rule(predictions, references)]

    assert scores(string_match_all) == [1, 0.5, 1, None]
    assert scores(string_match_part) == [1, 1, 1, None]
    assert ruler_eval.score_of({"task": "qa_1"}) is string_match_part
    assert ruler_eval.score_of({"task": "vt"}) is string_match_all


def test_a_record_of_the_hubs_schema():
    sample = ruler_eval.sample(RECORD, 7, ruler_eval.RulerSettings())
    assert sample.sample_id == "record-7"
    assert sample.parts.texts == (
        "", RECORD["context"], RECORD["question"], RECORD["answer_prefix"],
    )  # fmt: skip
    assert sample.parts.answer_tokens == 128
    assert (sample.references, sample.extra) == (["4711"], {"task": "niah_single_2"})
    assert ruler_eval.answer(" <think>1</think>two\nlines ", sample, True) == "two\nlines"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"context": None}, "no context"),
        ({"question": 5.5, "answer_prefix": {}}, "answer_prefix is an object, no text"),
        ({"max_new_tokens": 0}, "its max_new_tokens is 0"),
        ({"max_new_tokens": "many", "task": None}, "no task, its max_new_tokens is many"),
    ],
)
def test_faults_of_a_record_are_named(changes, problem):
    with pytest.raises(RecordError, match=f"^{problem}$"):
        ruler_eval.sample(RECORD | changes, 0, ruler_eval.RulerSettings())


def test_tasks_take_turns_and_are_chosen():
    records = [{"task": name, "n": n} for name in ("qa_1", "vt", "own") for n in range(3)]

    def ordered(**values):
        found = ruler_eval.in_turn(read(values), iter(records))
        return [record["id"] for record in found]

    assert ordered()[:4] == ["qa_1-0000", "vt-0000", "own-0000", "qa_1-0001"]
    assert len(ordered()) == 9
    assert ordered(TASKS="vt,qa_1", N_SAMPLES="2") == [
        "vt-0000", "qa_1-0000", "vt-0001", "qa_1-0001",
    ]  # fmt: skip
    with pytest.raises(SettingError, match=r"^TASKS=fwe: is not in .*, which has own, qa_1, vt$"):
        ordered(TASKS="fwe,vt")


def test_wrong_tasks_are_told():
    with pytest.raises(
        SettingError, match=r"^TASKS=qa_3: choose one of .*\(did you mean qa_[12]\?\)$"
    ):
        read({"TASKS": "vt,qa_3"})
    with pytest.raises(SettingError, match=r"^TASKS=vt,vt: names a value twice$"):
        read({"TASKS": "vt,vt"})


def test_each_length_has_its_configuration(monkeypatch, builtin_tokenizer):
    asked = []

    def reading(settings, ordered):
        asked.append(settings.dataset_config)
        return list(ordered(settings, iter([RECORD])))

    monkeypatch.setattr(task.data, "read", reading)
    builder = PromptBuilder(builtin_tokenizer, chat_template=False)
    task.samples_by_context(ruler_eval.TASK, read({"CONTEXTS": "4096,8192"}), builder)
    task.samples_by_context(ruler_eval.TASK, read({"DATASET_CONFIG": "4096"}), builder)
    assert asked == ["4096", "8192", "4096"]


@pytest.mark.model
def test_a_run_of_all_tasks(tiny_folder, tmp_path):
    full = run(
        tiny_folder, tmp_path, ruler_eval, N_SAMPLES="14", CONTEXTS="600", BATCH_SIZE="7",
        MAX_NEW_TOKENS="40", KV_MODE="l2", KEEP_RATIO="0.5", PROTOCOL="kvpress", CHAT_TEMPLATE=None,
    )  # fmt: skip
    (summary,) = full["ctx_summaries"]
    assert summary["string_match_by_task"].keys() == set(synthetic.RULER_TASKS)
    assert summary["string_match_by_task"]["niah_single_1"]["n"] == 2
    assert summary["kv_scope"] == "context"
    samples = {s["task"]: s for row in full["rows"] for s in row["samples"]}
    # Each answer has its task's length, in a batch of several.
    assert {samples[name]["new_tokens"] for name in ("vt", "qa_1", "cwe")} == {30, 32, 40}
    for row in full["rows"]:
        questions = [s["prompt_tokens"] for s in row["samples"]]
        assert all(590 < tokens <= 600 for tokens in questions)


@pytest.mark.model
def test_a_file_is_read_whole(tiny_folder, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    long = RECORD | {"context": "Nothing happened. " * 200 + RECORD["context"]}
    path.write_text("".join(json.dumps(record) + "\n" for record in (RECORD, long)))
    full = run(
        tiny_folder,
        tmp_path / "logs",
        ruler_eval,
        DATASET_ID=str(path),
        CONTEXTS="300",
        N_SAMPLES="2",
    )
    short, whole = (sample for row in full["rows"] for sample in row["samples"])
    assert whole["prompt_tokens"] > 600
    assert (short["dropped_tokens"], whole["dropped_tokens"]) == (0, 0)
    assert f"1 prompts are longer than 300 tokens, up to {whole['prompt_tokens']}" in (
        " ".join(capsys.readouterr().err.split())
    )
