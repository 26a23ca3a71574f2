"""What the clock and the memory counter of `generate` measure, by a clock made for it."""

from contextlib import nullcontext

import pytest
import torch

from kv_compression import forward, generation, measure
from kv_compression.generation import generate
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning
from tests.models import batch, tiny


class Ticks:
    """A clock that goes on by 1, 2, 4, 8, ... seconds: no two spans of it are equal."""

    def __init__(self):
        self.reads = 0

    def perf_counter(self):
        self.reads += 1
        return 2.0**self.reads


class ScriptedMemory:
    """Peaks of two phases, in tensors; the allocator holds most in the first."""

    phase = 0
    devices = ()

    def __init__(self, devices):
        pass

    def restart(self):
        self.phase += 1

    def allocated(self):
        return {1: 300, 2: 200}[self.phase]

    def reserved(self):
        return 500


@pytest.mark.parametrize("new_tokens", [1, 4])
@pytest.mark.parametrize("question", [None, 5])
def test_each_time_and_peak_is_of_its_own_span(monkeypatch, new_tokens, question):
    class ScriptedStopwatch:
        made = 0

        def __init__(self):
            ScriptedStopwatch.made += 1
            self.ms = {1: 300.0, 2: 700.0}[ScriptedStopwatch.made]  # of compressing, of documents

        def running(self, device):
            return nullcontext()

        def total_ms(self):
            return self.ms

    ticks = Ticks()
    for module in (forward, generation):
        monkeypatch.setattr(module, "time", ticks)
    monkeypatch.setattr(generation, "PeakMemory", ScriptedMemory)
    for module in (forward, generation):
        monkeypatch.setattr(module, "Stopwatch", ScriptedStopwatch)
    input_ids, _ = batch([30])
    result = generate(
        tiny(), input_ids, backend="sdpa", max_new_tokens=new_tokens,
        question_tokens=None if question is None else [question],
    )  # fmt: skip
    # Read at the call (2 s), at the first token (4 s), when decoding begins (8 s), and ends (16 s).
    assert result.ttft_ms == 2000
    assert result.compress_ms == 300
    assert result.prefill_ms == 1700
    assert result.document_ms == (None if question is None else 700)
    assert result.decode_ms == (8000 if new_tokens > 1 else 0)
    assert result.latency_ms == result.ttft_ms + result.decode_ms
    assert (result.peak_prefill_bytes, result.peak_decode_bytes) == (300, 200)
    assert result.peak_reserved_bytes == 500


def test_the_documents_part_is_its_prefill_and_the_questions_what_is_left():
    input_ids, mask = batch([400, 300])
    result = generate(
        tiny(), input_ids, mask, backend="sdpa", max_new_tokens=1, question_tokens=[3, 5],
        pruning=Pruning(L2(), keep_ratio=0.5, prune_after=0),
    )  # fmt: skip
    assert result.compress_ms < result.document_ms < result.ttft_ms


def test_the_reserved_peak_covers_both_phases(monkeypatch):
    peaks = iter([[500, 400], [300, 350]])
    device = torch.device("cuda", 0)
    memory = measure.PeakMemory([device, torch.device("cuda", 1), torch.device("cpu")])
    now = {}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda d: now["peaks"][d.index])
    now["peaks"] = [9000, 9000]  # of an earlier request
    memory.restart()
    now["peaks"] = next(peaks)
    memory.restart()
    now["peaks"] = next(peaks)
    assert memory.reserved() == 900
    assert measure.PeakMemory([torch.device("cpu")]).reserved() is None
