"""A run, ahead of the forks of tests/warm.py: what it imports and reads late is there for them."""

import contextlib
import gc
import io
import os
import tempfile

# Neither may be touched before a fork.
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

from longctx import wordnet
from tests import prepared, runs  # noqa: F401, the first for the tokenizer it keeps

with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    values = {"N_SAMPLES": "1", "CONTEXTS": "150", "DEVICE_MAP": "cpu", "WARMUP": "0"}
    runs.run(os.environ["WARM_MODEL"], folder, **values)
# Forks that read at once would move each other's place in an open file.
wordnet.reader()._data_file_map.clear()
gc.collect()
gc.freeze()
