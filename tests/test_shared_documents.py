"""Questions about one document share its prefill, and the document is cut alike for all of them."""

import json

import pytest

from kv_compression import shared_prefill
from longctx.prompts import PromptBuilder, PromptParts
from tests.runs import run

pytestmark = pytest.mark.model

# Interleaved, of unequal lengths, and one that is about a document of its own.
QUESTIONS = ["Who ran?", "What did Maren's older brother carry over the hills that night?", "Why?"]
SETTINGS = {
    "KV_SCOPE": "context", "KV_MODE": "snapkv", "KEEP_RATIO": "0.5", "PRUNE_AFTER": "0",
    "SKIP_LAYERS": "0", "WARMUP": "0", "CONTEXTS": "150",
}  # fmt: skip


def story(word):
    return " ".join(f"The {word} number {n} crossed hill {n * 7 % 31}." for n in range(60))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "own.jsonl"
    asked = [("fox", 0), ("hare", 0), ("fox", 1), ("hare", 2), ("fox", 2), ("owl", 0)]
    records = [
        {"context": story(word), "question": QUESTIONS[number], "answers": [word]}
        for word, number in asked
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return {"DATASET_ID": str(path), "N_SAMPLES": "6"}


def plain(full):
    left_out = ("_ms", "ms_per", "tok_per_s", "_gb", "run_id")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in left_out)}
        for row in full["rows"]
    ]


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_answers_and_their_order_are_those_of_a_prefill_each(
    tiny_folder, tmp_path, monkeypatch, data, batch_size
):
    settings = SETTINGS | data | {"BATCH_SIZE": batch_size}
    apart = run(tiny_folder, tmp_path / "apart", SHARE_PREFILL="off", **settings)
    read = []
    real = shared_prefill.generate_each
    monkeypatch.setattr(
        shared_prefill, "generate_each", lambda m, p, **o: read.append(len(p)) or real(m, p, **o)
    )
    together = run(tiny_folder, tmp_path / "together", **settings)
    assert plain(together) == plain(apart)
    assert read == ([3, 2] if batch_size == "1" else [2])
    if batch_size == "2":  # of three requests two are about fox and hare
        return
    rows = together["rows"]
    assert [row["document_ms"] is not None for row in rows] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert all(row["question_ttft_ms"] > 0 for row in rows)
    assert [row["ttft_ms"] is None for row in rows] == [True] * 5 + [False]
    assert [row["shared_ttft_ms"] is None for row in rows] == [False] * 5 + [True]
    fingerprints = [full["run_meta"]["fingerprint"] for full in (apart, together)]
    assert fingerprints[0] != fingerprints[1]
    assert together["run_meta"]["shares_documents"]


def test_a_question_that_fails_is_asked_by_itself(tiny_folder, tmp_path, monkeypatch, data):
    real, calls = shared_prefill.answered, []

    def answered(*given, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("once")
        return real(*given, **options)

    monkeypatch.setattr(shared_prefill, "answered", answered)
    full = run(tiny_folder, tmp_path, **SETTINGS | data)
    assert [row["success"] for row in full["rows"]] == [True] * 6
    assert [row["ttft_ms"] is not None for row in full["rows"]] == [
        False, False, True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("chat_template", [False, True])
@pytest.mark.parametrize("truncate", ["middle", "head", "tail"])
def test_a_document_is_cut_alike_for_all_its_questions(builtin_tokenizer, truncate, chat_template):
    builder = PromptBuilder(builtin_tokenizer, chat_template)
    parts = [
        PromptParts("Read the story.\n\n", story("fox"), f"\n\nQuestion: {question}\nAnswer:")
        for question in QUESTIONS
    ]
    longest = builder.with_longest_questions(parts)
    assert longest == {(parts[0].before, parts[0].document): parts[1]}
    prompts = [builder.build(each, 200, truncate, parts[1]) for each in parts]
    assert prompts[0].context_ids == prompts[1].context_ids == prompts[2].context_ids
    assert 199 <= len(prompts[1].input_ids) <= 200
    assert prompts[1] == builder.build(parts[1], 200, truncate)
    assert len({prompt.dropped_tokens for prompt in prompts}) == 1
    assert prompts[0] != builder.build(parts[0], 200, truncate)
