"""Set before the tests: Triton interpreted, tokenizers read once, FlexAttention untraced."""

import copy
import functools
import os
from pathlib import Path

import torch

if not torch.cuda.is_available():
    # Before anything imports Triton, as transformers may: its interpreter runs the decode kernels.
    os.environ["TRITON_INTERPRET"] = "1"

from torch.nn.attention import flex_attention
from transformers import AutoTokenizer

# Uncompiled, FlexAttention would still be traced for each mask and shape, which takes ten times as
# long as to compute it; tests that are about tracing ask for it.
flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True

# A run reads its tokenizer anew, which takes longer than its requests on a tiny model.
_read_tokenizer = AutoTokenizer.from_pretrained


@functools.cache
def _tokenizer(path, _, options):
    return _read_tokenizer(path, **dict(options))


def _tokenizer_once(path, **options):
    """A copy of the one that was read from the same files before; its settings are its own."""
    files = [(file, file.stat()) for file in Path(path).glob("*.j*")]
    key = [(str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in files]
    if not key:
        return _read_tokenizer(path, **options)
    return copy.copy(_tokenizer(str(path), tuple(sorted(key)), tuple(sorted(options.items()))))


AutoTokenizer.from_pretrained = _tokenizer_once
