"""GGUF files: where a text ends, and what cannot be read is one line."""

import gguf as writer
import pytest

from longctx import gguf, models
from longctx.errors import SettingError
from longctx.settings import Settings

CONTROL, NORMAL = 3, 1


@pytest.fixture(autouse=True)
def converted(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "HF_HOME", str(tmp_path / "home"))


def error_of(**settings):
    with pytest.raises(SettingError) as caught:
        models.find(Settings(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_text_ends_where_the_file_says_and_where_turns_end():
    fields = {
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.eot_token_id": 1,
        "tokenizer.ggml.tokens": ["a", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>"],
        "tokenizer.ggml.token_type": [NORMAL, CONTROL, CONTROL, NORMAL, CONTROL],
    }
    # The one that the file calls so first; a text's own "<end_of_turn>" ends nothing.
    assert gguf.stop_tokens(fields) == [4, 1, 2]
    assert gguf.stop_tokens({}) == []


def test_a_file_of_another_kind_is_one_line(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 and so on")
    assert error_of(model_id=str(file)) == f"MODEL_ID={file}: is no GGUF file"
    assert error_of(model_id=str(tmp_path), gguf_file="model.gguf") == (
        "GGUF_FILE=model.gguf: is no GGUF file"
    )


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    file = tmp_path / "none.gguf"
    assert error_of(model_id=str(file)).startswith(f"MODEL_ID={file}: cannot be read or converted")


def test_an_architecture_that_cannot_be_converted_is_one_line_and_leaves_nothing(tmp_path):
    file = tmp_path / "model.gguf"
    made = writer.GGUFWriter(file, "nonesuch")
    made.add_block_count(1)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
        getattr(made, step)()
    made.close()
    assert "nonesuch" in error_of(model_id=str(file))
    assert list((tmp_path / "home" / "longctx").iterdir()) == []


def test_a_cut_file_is_one_line(tmp_path, builtin_folder):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    assert error_of(model_id=str(file)).startswith(f"MODEL_ID={file}: ")
