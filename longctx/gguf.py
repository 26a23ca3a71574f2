"""GGUF files, dequantized once to folders of bfloat16 safetensors that transformers loads as usual.

A folder is found again by its file's hash. It lies in the user's Hugging Face cache.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

# Tokens that end a text or a turn, as llama.cpp knows them; files name at most one or two.
_ENDS = frozenset(
    {
        *("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"),
        *("<|return|>", "<|call|>", "<|endofturn|>", "<end_of_turn>", "<turn|>", "<EOT>"),
        "<end_of_utterance>",
    }
)
_CONTROL = 3  # the type of a token that is no text
_NAMED_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def home() -> Path:
    """Where converted models lie."""
    return Path(HF_HOME) / "longctx"


def is_converted(path: Path) -> bool:
    """Whether `path` is a folder that was made here; its name then tells model and version."""
    return path.parent == home()


def folder(file: Path) -> Path:
    """The model of a GGUF file as a folder, converted when it is not there yet.

    That takes half a minute for each billion parameters, once. Raises ValueError for a file that
    is no GGUF or whose architecture transformers does not know, OSError where it cannot be read.
    """
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError("is no GGUF file")
        opened.seek(0)
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    target = home() / f"{file.stem}-{digest[:16]}"
    if not target.exists():
        convert(file, target)
    return target


def convert(file: Path, target: Path) -> None:
    """Dequantize a GGUF file; the folder `target` appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fields = _fields(file)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        # The file's tokens are read, which of them end a text is not.
        ends = stop_tokens(fields)
        if ends:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.chat_template = fields.get("tokenizer.chat_template", tokenizer.chat_template)
        tokenizer.save_pretrained(unfinished)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        if ends:
            model.generation_config.eos_token_id = ends
        model.save_pretrained(unfinished)
        try:
            os.rename(unfinished, target)
        except OSError:
            if not target.exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fields(file: Path) -> dict[str, Any]:
    """What the file says of its tokenizer."""
    fields = GGUFReader(file).fields
    return {name: fields[name].contents() for name in fields if name.startswith("tokenizer.")}


def stop_tokens(fields: dict[str, Any]) -> list[int]:
    """Ids of the tokens that end a text or a turn, the one that the file calls so first.

    fields: of the file's metadata, those that begin with `tokenizer.`.
    """
    named = [fields.get(f"tokenizer.ggml.{name}") for name in _NAMED_ENDS]
    tokens = fields.get("tokenizer.ggml.tokens", ())
    types = fields.get("tokenizer.ggml.token_type", (_CONTROL,) * len(tokens))
    known = [
        place
        for place, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if token in _ENDS and kind == _CONTROL
    ]
    return list(dict.fromkeys([*(end for end in named if end is not None), *known]))
