"""Every line that docs/troubleshooting.md explains is printed by the trouble it stands for."""

import json
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import BloomConfig, MistralConfig

import narrativeqa_eval
from longctx import (
    builtin,
    cli,
    config,
    hub,
    models,
    preflight,
    requests,
    tracking,
    wordnet,
)
from longctx.run_files import RunFiles
from longctx.settings import Settings
from tests import docs
from tests.runs import environ

pytestmark = pytest.mark.model

TEXT = (docs.ROOT / "docs" / "troubleshooting.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| (`.+?`) \| .+ \|$", TEXT, re.M)
LINES = {
    trouble: [line.strip("`").strip() for line in printed.split("<br>")]
    for trouble, printed in ROWS
}


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch):
    """A script's whole run in an empty folder; its last word is on stderr, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINY_FOLDER", str(tiny_folder))
    monkeypatch.setattr(sys, "argv", ["narrativeqa_eval.py"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    logdir = "logs/narrativeqa"

    def run(**changes):
        settings = {"CONTEXTS": "200", "N_SAMPLES": "2"} | changes
        try:
            cli.main(narrativeqa_eval.TASK, "", environ(tiny_folder, logdir, **settings))
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)

    return run


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def hub_says(kind):
    return raising(kind("no", response=SimpleNamespace(headers={}, request=None, status_code=403)))


def no_effect(run, monkeypatch):
    config.read(Settings, {"KEEP_RATO": "0.5", "KEEP_RATIO": "0.5"})


def no_gpu(run, monkeypatch):
    run(ATTN_IMPL="flash2")
    run(ATTN_IMPL=None)


def no_graph(run, monkeypatch):
    run(DECODE="graph")


def gated(run, monkeypatch):
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", hub_says(GatedRepoError))
    run(MODEL_ID=None)


def unknown_model(run, monkeypatch):
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", hub_says(RepositoryNotFoundError))
    run(MODEL_ID="mistralai/Mistral-7B-Instuct-v0.3")


def no_network(run, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", raising(OSError("no route")))
    hub.go_offline_if_unreachable.cache_clear()
    run(MODEL_ID="mistralai/Mistral-7B-Instruct-v0.1")
    run(DATASET_ID=None)
    hub.go_offline_if_unreachable.cache_clear()


def no_package_of_the_builtin_model(run, monkeypatch):
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda _: None)
    run(MODEL_ID="smollm2-135m")


def out_of_memory(run, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB.")
    monkeypatch.setattr(requests, "generate", raising(error))
    run(CONTEXTS="2048", N_SAMPLES="8", BATCH_SIZE="8")


def short_context(run, monkeypatch):
    run(CONTEXTS="64")


def another_schema(run, monkeypatch):
    with open("my.jsonl", "w") as file:
        file.write(json.dumps({"context": "A text.", "question": "What?"}) + "\n")
    run(DATASET_ID="my.jsonl", N_SAMPLES="1")


def no_bitsandbytes(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    run(QUANT_MODE="bnb4")


def no_wandb_credentials(run, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", os.getcwd())
    meta = {"run_id": "a-run", "tags": [], "variables": {}}
    tracking.Tracker(Settings(), meta, ["meteor"])


def sliding_window(run, monkeypatch):
    model_config = MistralConfig(sliding_window=4096, max_position_embeddings=32768)
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", lambda *_, **__: model_config)
    tokenizer = SimpleNamespace(is_fast=True, pad_token_id=0)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    run(
        MODEL_ID="mistralai/Mistral-7B-Instruct-v0.1",
        CONTEXTS=None,
        MAX_NEW_TOKENS=None,
        KV_MODE="l2",
    )


def another_attention(run, monkeypatch):
    bloom = BloomConfig(n_layer=2, n_head=4, hidden_size=64, vocab_size=512)
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", lambda *_, **__: bloom)
    tokenizer = SimpleNamespace(is_fast=True, pad_token_id=0)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    run(MODEL_ID="my-model")


def missing_weights(run, monkeypatch):
    real = models.AutoModelForCausalLM.from_pretrained

    def without_head(*arguments, **options):
        model, info = real(*arguments, **options)
        return model, info | {"missing_keys": {"lm_head.weight"}}

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", without_head)
    os.symlink(os.environ["TINY_FOLDER"], "my-model")
    run(MODEL_ID="my-model")


def unusable_template(run, monkeypatch):
    real = models.AutoTokenizer.from_pretrained

    def escaping(*arguments, **options):
        tokenizer = real(*arguments, **options)
        tokenizer.chat_template = "{{ messages[0]['content'] | e }}"
        return tokenizer

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", escaping)
    os.symlink(os.environ["TINY_FOLDER"], "my-model")
    run(MODEL_ID="my-model", CHAT_TEMPLATE="on")


def no_wordnet(run, monkeypatch):
    monkeypatch.setattr(wordnet, "check", raising(wordnet.WordNetMissingError()))
    run()


def full_disk(run, monkeypatch):
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(preflight.os, "fsync", raising(full))
        run()
    monkeypatch.setattr(RunFiles, "add", raising(full))
    run()


TROUBLES = {
    "A variable does nothing": no_effect,
    "flash2 without a GPU": no_gpu,
    "A graph without a GPU": no_graph,
    "A gated model": gated,
    "No such model": unknown_model,
    "No network": no_network,
    "The built-in model is not installed": no_package_of_the_builtin_model,
    "Out of memory": out_of_memory,
    "A context shorter than the question": short_context,
    "Records of another schema": another_schema,
    "bitsandbytes is missing": no_bitsandbytes,
    "W&B without credentials": no_wandb_credentials,
    "A model of sliding windows alone": sliding_window,
    "Attention that is not supported": another_attention,
    "Weights that are not there": missing_weights,
    "A chat template that cannot be used": unusable_template,
    "WordNet is missing": no_wordnet,
    "A full disk": full_disk,
}


def test_every_trouble_has_its_trigger():
    assert list(LINES) == list(TROUBLES)
    assert all(LINES.values())


@pytest.mark.parametrize("heading", TROUBLES)
def test_the_line_is_the_one_that_is_printed(heading, run, monkeypatch, capsys):
    TROUBLES[heading](run, monkeypatch)
    printed = capsys.readouterr().err
    # A run's name ends in the time of day.
    printed = re.sub(r"tiny-llama_\S+?_Qnone_[0-9]+-[0-9]+", "{run_id}", printed)
    lines = [line for line in printed.splitlines() if line.startswith(("note: ", "error: "))]
    assert lines == LINES[heading]
