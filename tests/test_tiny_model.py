"""What a model cannot do here is known before it is loaded, from a tiny one of its kind."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from kv_compression.methods import method_class
from kv_compression.pruning import Pruning
from longctx import models, requests, tiny_model
from longctx.errors import SettingError
from longctx.settings import Settings
from tests.runs import run

pytestmark = pytest.mark.model


SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128}


@pytest.fixture(autouse=True)
def nothing_tried_yet(monkeypatch):
    monkeypatch.setattr(tiny_model, "_passed", set())


def check(config, pruning=None, **settings):
    settings = {"model_id": "a/model", "contexts": (200,), "attn_impl": "sdpa"} | settings
    settings = Settings(**settings)
    source = SimpleNamespace(config=config, is_random=False)
    models.check(settings, source)
    tiny_model.check(settings, source, pruning)


def config_of(kind, options):
    return AutoConfig.for_model(kind, **options)


# Where the library comes to support one of these, it goes to RUN.
REFUSED = {
    "soft caps": ("gemma2", GROUPED, "cannot run: .*softcap, which sdpa .*; eager and flex can"),
    "sinks": ("gpt_oss", GROUPED | {"num_local_experts": 4}, "cannot run: .*sinks, which sdpa"),
    "shared keys": (
        "gemma3n_text",
        GROUPED | {"num_kv_shared_layers": 2},
        "MODEL_ID=a/model: its last 2 layers read keys that other layers store",
    ),
    "ALiBi": ("bloom", SIZES, "BloomForCausalLM does not let its attention be chosen"),
    "ALiBi that is an option": (
        "falcon",
        SIZES | {"alibi": True},
        "FalconForCausalLM does not let its attention be chosen",
    ),
    "attention of its own": ("gptj", SIZES | {"rotary_dim": 8}, "GPTJForCausalLM does not let"),
    "both ways": ("bert", SIZES, "cannot run: the model attends both ways"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_attention_cannot_do_is_one_line(name):
    kind, options, message = REFUSED[name]
    with pytest.raises(SettingError, match=message) as caught:
        check(config_of(kind, options))
    assert "\n" not in str(caught.value)


RUN = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3"), GROUPED),
    "gpt2": SIZES,
    "opt": SIZES,
    "gpt_neox": SIZES,
    "mixtral": GROUPED | {"num_local_experts": 4},
    "gemma3_text": GROUPED | {"sliding_window": 64},
    "qwen3_next": GROUPED,
    "granitemoehybrid": GROUPED | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": GROUPED,
}


@pytest.mark.parametrize("kind", RUN)
def test_what_runs_passes(kind):
    config = config_of(kind, RUN[kind])
    assert tiny_model._tiny_model(config, False, 200) is not None
    state = torch.random.get_rng_state()
    check(config)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_a_setting_rules_out_is_told_with_the_way_out():
    jamba = config_of("jamba", GROUPED | {"use_mamba_kernels": False})
    with pytest.raises(SettingError, match=r"PREFILL=layered: its states do not go on .*=whole"):
        check(jamba, prefill="layered")
    with pytest.raises(SettingError, match=r"attends in a way .*; use KV_SCOPE=prompt"):
        check(jamba, kv_scope="context")
    windows = config_of("mistral", GROUPED | {"sliding_window": 64})
    check(windows)
    with pytest.raises(SettingError, match=r"KV_MODE=l2: has nothing to work on: no layer of"):
        check(windows, pruning("l2"), kv_mode="l2")
    check(windows, pruning("l2"), kv_mode="l2", contexts=(30,), max_new_tokens=8)


def test_a_tiny_model_keeps_what_decides():
    config = config_of("qwen3", GROUPED | {"num_hidden_layers": 30, "num_attention_heads": 32})
    tiny = tiny_model.tiny_config(config, 200)
    assert (tiny.num_attention_heads, tiny.num_key_value_heads) == (4, 2)
    assert (tiny.head_dim, tiny.hidden_size, tiny.num_hidden_layers) == (16, 64, 8)
    assert len(tiny.layer_types) == 8
    assert tiny.max_position_embeddings == 512
    assert config.num_hidden_layers == len(config.layer_types) == 30
    for groups, kept in ((1, 1), (32, 4)):
        config.num_key_value_heads = groups
        assert tiny_model.tiny_config(config, 200).num_key_value_heads == kept


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_table_of_positions_has_an_end(kind):
    config = config_of(kind, SIZES)
    check(config, contexts=(200, 448), max_new_tokens=64)
    with pytest.raises(SettingError, match=r"CONTEXTS=200,449: .* 512 learned .* fewer than 513"):
        check(config, contexts=(200, 449), max_new_tokens=64)
    check(config_of("llama", GROUPED), contexts=(449,), max_new_tokens=64)


def pruning(method):
    return Pruning(method_class(method)(), keep_tokens=9, prune_after=5, skip_layers=(40,))


def test_answers_that_would_lose_their_text_on_the_way_are_refused():
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    changes = {"original_max_position_embeddings": 64, "rope_parameters": rope | factors}
    config = config_of("phi3", GROUPED | changes | {"sliding_window": None, "pad_token_id": 0})
    for contexts in ((56,), (65, 200)):
        check(config, contexts=contexts, max_new_tokens=8)
    for contexts in ((64,), (40, 58)):
        with pytest.raises(SettingError, match=f"CONTEXTS={contexts[-1]}: .*change at 65 tokens"):
            check(config, contexts=contexts, max_new_tokens=8)


def test_a_method_that_a_model_cannot_have_is_named():
    check(config_of("gpt2", SIZES), pruning("l2"), kv_mode="l2")
    message = "KV_MODE=expected_attention: does not go with a/model: .*rotary positions"
    with pytest.raises(SettingError, match=message):
        check(config_of("gpt2", SIZES), pruning("expected_attention"), kv_mode="expected_attention")
    llama = config_of("llama", GROUPED)
    check(llama, pruning("expected_attention"), kv_mode="expected_attention", kv_scope="context")


@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"kv_scope": "context"}, {}])
def test_each_setting_of_a_request_is_tried(monkeypatch, settings):
    asked = []

    def generate(model, tokens, mask, **options):
        asked.append((mask.sum(dim=1).tolist(), options["question_tokens"], options["kv_bits"]))
        raise ValueError("no\nsuch thing")

    monkeypatch.setattr(tiny_model, "generate", generate)
    with pytest.raises(SettingError, match=r"KV_QUANT=int4: does not go with a/model: no$"):
        check(config_of("llama", GROUPED), kv_quant="int4", **settings)
    rows = [24, 23] if "batch_size" in settings else [24]
    question = [5] * len(rows) if "kv_scope" in settings else None
    assert asked == [(rows, question, 4)]


def test_what_passed_is_not_tried_again(monkeypatch):
    config = config_of("llama", GROUPED)
    check(config)
    monkeypatch.setattr(tiny_model, "_tiny_model", lambda *_: pytest.fail("tried again"))
    check(config)


def test_a_kind_without_a_tiny_model_is_left_to_its_first_request(monkeypatch):
    monkeypatch.setattr(tiny_model, "tiny_config", lambda *_: 1 / 0)
    check(config_of("bloom", SIZES))


WITHOUT_SENSE = [
    ("llama", {"num_hidden_layers": -1}, "num_hidden_layers=-1, and 1 to 2000 is possible"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ("llama", {"hidden_size": 0}, "hidden_size=0"),
    ("llama", {"vocab_size": 10**12}, "vocab_size=1000000000000"),
    ("llama", {"intermediate_size": 10**12}, "intermediate_size=1000000000000"),
    ("mamba", {}, "is a mamba model, without the attention heads"),
    ("t5", {}, "is a t5 model, and none that goes on with a text"),
    ("bart", {}, "is a bart model, and none that goes on with a text"),
    ("vit", {}, "is a vit model, and none that goes on with a text"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), WITHOUT_SENSE)
def test_models_that_cannot_be_are_refused(kind, changes, message):
    config = config_of(kind, {})
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(SettingError, match=message):
        check(config)


def test_what_only_the_first_request_shows_ends_the_run(tiny_folder, tmp_path, monkeypatch):
    def unsupported(*_, **__):
        raise NotImplementedError("no such attention")

    monkeypatch.setattr(requests, "generate", unsupported)
    message = f"MODEL_ID={tiny_folder}: no such attention"
    with pytest.raises(SettingError, match=message):
        run(tiny_folder, tmp_path, CONTEXTS="200", N_SAMPLES="4", BATCH_SIZE="2")
    assert not list(tmp_path.glob("*.json*"))


def test_later_it_is_a_row_that_failed(tiny_folder, tmp_path, monkeypatch):
    real, calls = requests.generate, []

    def sometimes(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise NotImplementedError("no such attention")
        return real(*arguments, **options)

    monkeypatch.setattr(requests, "generate", sometimes)
    full = run(tiny_folder, tmp_path, CONTEXTS="200", N_SAMPLES="2", WARMUP="0")
    assert [row["success"] for row in full["rows"]] == [True, False]
