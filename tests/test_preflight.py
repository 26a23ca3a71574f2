"""What is decided before a model is loaded, one function at a time."""

from types import SimpleNamespace

import pytest
import torch

from longctx import preflight
from longctx.distributed import Processes
from longctx.errors import SettingError
from longctx.settings import Settings


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        *((place, None) for place in ("auto", "balanced", "balanced_low_0", "sequential", "cpu")),
        *((place, None) for place in ("cuda", "cuda:0", "cuda:1")),
        ("cuda:2", "the GPUs here are cuda:0 to 1"),
        *(
            (place, "choose one of auto, ")
            for place in ("meta", "disk", "cuda:", "cuda:-1", "cpu:0")
        ),
    ],
)
def test_places_on_a_machine_with_two_gpus(monkeypatch, place, problem):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if problem is None:
        preflight._check_device(place)
    else:
        with pytest.raises(SettingError, match=f"DEVICE_MAP={place}: {problem}"):
            preflight._check_device(place)


@pytest.mark.parametrize(
    ("wish", "template", "prefers_raw", "needs_turn", "used"),
    [
        ("auto", "x", False, False, True),
        ("auto", "x", True, False, False),
        ("auto", "x", True, True, True),
        ("auto", None, False, True, False),
        ("auto", "", False, True, False),
        ("off", "x", False, True, False),
        ("on", "x", True, False, True),
    ],
)
def test_when_a_chat_template_is_used(wish, template, prefers_raw, needs_turn, used):
    tokenizer = SimpleNamespace(chat_template=template)
    source = SimpleNamespace(tokenizer=tokenizer, prefers_raw_prompts=prefers_raw)
    task = SimpleNamespace(needs_chat_turn=needs_turn)
    settings = Settings(chat_template=wish)
    assert preflight.uses_chat_template(task, settings, source) is used
    tokenizer.chat_template = None
    if wish == "on":
        with pytest.raises(SettingError, match=r"CHAT_TEMPLATE=on: .* has no chat template"):
            preflight.uses_chat_template(task, settings, source)


@pytest.mark.parametrize(
    ("count", "device_map", "gpu", "expected"),
    [
        (2, "auto", True, "cuda:1"),
        (1, "auto", True, "auto"),
        (2, "cpu", True, "cpu"),
        (2, "auto", False, "auto"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, count, device_map, gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    workers = Processes(rank=3, count=count, local_rank=1)
    assert preflight.placed(Settings(device_map=device_map), workers).device_map == expected
