"""Project Gutenberg's header and licence, in the forms of its years."""

import json
from pathlib import Path

import pytest

import narrativeqa_eval
from context_histograms import count_tokens
from longctx.gutenberg import story

SHARED = Path(__file__).parents[2] / "shared" / "data" / "narrativeqa.jsonl"
STORY = (
    "Produced by Somebody\n\n\nTHE TALE\n\n*** Chapter ***\n\nOnce.  The end of it.\n\n\nTHE END"
)
LICENCE = "\n\n*** START: FULL LICENSE ***\n\nTHE FULL PROJECT GUTENBERG LICENSE\n" + "Law. " * 900
SMALL_PRINT = (
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nLaw.\n"
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n"
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "The Project Gutenberg EBook of X\n\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n",
            "\n\nEnd of the Project Gutenberg EBook of X, by Y\n\n"
            "*** END OF THIS PROJECT GUTENBERG EBOOK X ***\n" + LICENCE,
        ),
        (
            "\ufeffThe Project\r\n*** START OF THE PROJECT GUTENBERG EBOOK A\r\nLONG TITLE ***\r\n",
            "\r\n*** END OF THE PROJECT GUTENBERG EBOOK A\r\nLONG TITLE ***\r\n",
        ),
        (
            "***START OF THE PROJECT GUTENBERG EBOOK, X***\n",
            "\nEnd of Project Gutenberg's X, by Y\n\n***END OF THE PROJECT GUTENBERG EBOOK X***",
        ),
        (f"Etext of X\n\n{SMALL_PRINT}", "\n\n\nEnd of the Project Gutenberg Etext of X\n\n"),
        (f"{SMALL_PRINT}\n*END THE SMALL PRINT! FOR ETEXTS*Ver.1*END*\n", "\nEnd of this Project "
         "Gutenberg Etext X"),
        ("*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK X ***",
         "\nTHE END OF PROJECT GUTENBERG X"),
        ("", "\n*** END OF THIS PROJECT GUTENBERG EBOOK X ***" + LICENCE),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK X ***", ""),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK X ***", LICENCE),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\n", "\n" + SMALL_PRINT),
        ("", "\n***** This file should be named 1.txt or 1.zip *****\n" + LICENCE),
    ],
)  # fmt: skip
def test_only_the_story_is_left(before, after):
    assert story(before + STORY + after) == STORY
    # Twice is the same.
    assert story(story(before + STORY + after)) == STORY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  A story.\n\n*** \n It was the end of Project X. \n",
        "<html><pre>INT. HOUSE - DAY</pre></html>\n",
        "She read: 'End of the Project Gutenberg EBook', and slept.\n",
        "*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n",
    ],
)
def test_a_text_without_marks_or_story_stays_as_it_is(text):
    assert story(text) == text


def test_a_mark_far_inside_of_a_story_is_the_storys():
    long = "word " * 8_000
    text = f"{long}*** START OF THIS PROJECT GUTENBERG EBOOK X ***{long}"
    assert story(text) == text


def test_prompts_are_made_of_the_story():
    question = {"text": "Who?"}
    record = {
        "document": {
            "id": "x",
            "text": f"*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n{STORY}{LICENCE}",
            "summary": {"text": "short"},
        },
        "question": question,
        "answers": [{"text": "Tom"}],
    }
    sample = narrativeqa_eval.sample(record, 0, narrativeqa_eval.NarrativeQASettings())
    assert sample.parts.document == STORY


@pytest.mark.model
def test_counts_are_of_the_story(builtin_folder, builtin_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(count_tokens, "HF_HOME", str(tmp_path / "home"))
    book = f"*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n{STORY}{LICENCE}"
    path = tmp_path / "books.jsonl"
    record = {"document": {"text": book}, "context": book}
    path.write_text(f"{json.dumps(record)}\n{json.dumps({'document': {'text': None}})}\n")
    settings = count_tokens.DataSettings(model_id=str(builtin_folder), dataset_id=str(path))
    result = count_tokens.measure(settings, "document.text")
    assert result["counts"][0]["tokens"] == len(builtin_tokenizer(STORY)["input_ids"])
    assert result["n_missing"] == 1
    # Any other field is counted as it stands.
    (whole,) = count_tokens.measure(settings, "context")["counts"]
    assert whole["tokens"] == len(builtin_tokenizer(book)["input_ids"])


@pytest.mark.skipif(not SHARED.exists(), reason="the sample of real books is not here")
def test_no_real_book_keeps_its_licence():
    texts = {json.loads(line)["document"]["text"] for line in SHARED.open(encoding="utf-8")}
    for text in texts:
        assert 18_000 < len(text) - len(story(text)) < 21_000
        assert "gutenberg" not in story(text).lower()
