"""A model whose weights are not all there is refused, with their names."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from longctx import models, weights
from longctx.errors import SettingError
from longctx.quantization import quantization_class
from longctx.settings import Settings
from tests.models import tiny

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def whole(builtin_tokenizer, tmp_path_factory):
    """A model's folder: few words, since no test here reads any."""
    folder = tmp_path_factory.mktemp("weights") / "whole"
    tiny(vocab_size=64, layers=2).save_pretrained(folder)
    builtin_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def load(folder, mode="none", **settings):
    settings = Settings(model_id=str(folder), dtype="float32", device_map="cpu", **settings)
    config = AutoConfig.from_pretrained(folder)
    source = SimpleNamespace(is_random=False, path=str(folder), config=config)
    return models.load(settings, source, quantization_class(mode)())


def edit(folder, change):
    """Write the weights as `change` makes them of what they are."""
    path = folder / "model.safetensors"
    held = load_file(path)
    save_file({key: value.contiguous() for key, value in change(held).items()}, path)


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(*words):
    return lambda held: {k: v for k, v in held.items() if not any(word in k for word in words)}


def with_also(*names):
    """And tensors of these names."""
    return lambda held: held | {name: torch.ones(64) for name in names}


def gptq(held):
    """The layout of a quantized model whose config does not say that it is one."""
    return {
        key.replace("proj.weight", f"proj.{part}"): value.clone()
        for key, value in held.items()
        for part in ("qweight", "qzeros", "scales")
    }


def float8(held):
    scales = {f"{k}_scale_inv": torch.ones(1) for k in held if "proj" in k}
    return {k: v.to(torch.float8_e4m3fn) if "proj" in k else v for k, v in held.items()} | scales


REFUSED = {
    "a layer missing": (without("layers.1."), {}, r"lack model.layers.1.input.*\(9 in all\)"),
    "a tensor missing": (without("1.mlp.up"), {}, "lack model.layers.1.mlp.up_proj.weight; files"),
    "no head": (without("lm_head"), {}, "lack lm_head.weight"),
    "renamed": (
        lambda held: {f"net.{key}": value for key, value in held.items()},
        {},
        r"lack .*\(21 in all\), and hold net.*\(21 in all\) in no place",
    ),
    "GPTQ": (gptq, {}, r"lack .*\(14 in all\), and hold .*qweight"),
    "FP8 that the config hides": (float8, {}, r"has no place for .*weight_scale_inv"),
    "biases": (with_also("model.layers.0.self_attn.q_proj.bias"), {}, "no place for .*q_proj.bias"),
    "a layer left out": (dict, {"num_hidden_layers": 1}, "no place for model.layers.1.input"),
    "another width": (
        dict,
        {"intermediate_size": 96},
        "other shapes .*down_proj.weight 64x128 for",
    ),
    "another vocabulary": (dict, {"vocab_size": 70}, "lm_head.weight 64x64 for 70x64"),
    "another architecture": (dict, {"model_type": "gpt2"}, "lack transformer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_are_not_there_are_named(folder, capfd, name):
    change, settings, message = REFUSED[name]
    edit(folder, change)
    configure(folder, **settings)
    with pytest.raises(SettingError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert "REPORT" not in "".join(capfd.readouterr())


def test_tied_weights_are_not_missing(folder):
    configure(folder, tie_word_embeddings=True)
    edit(folder, without("lm_head"))
    assert load(folder)[1].unused == ()


UNUSED = ["model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.0.proj.weight", "vision.9.weight"]


def test_tensors_that_a_class_leaves_out_are_noted(folder, capsys):
    edit(folder, with_also(*UNUSED))
    _, loading = load(folder)
    note = f"{folder} does without mtp.0.proj.weight, vision.9.weight of its files"
    assert note in capsys.readouterr().err
    unused = ["mtp.0.proj.weight", "vision.9.weight"]
    assert loading.meta() == {"n_missing": 0, "n_unexpected": 2, "unexpected": unused}


def test_a_head_that_predicts_more_tokens_is_no_layer_left_out(folder, capsys):
    edit(folder, with_also("model.layers.2.eh_proj.weight"))
    with pytest.raises(SettingError, match=r"no place for model.layers.2"):
        load(folder)
    configure(folder, num_nextn_predict_layers=1)
    assert load(folder)[1].unused == ("model.layers.2.eh_proj.weight",)


def test_bitsandbytes_checks_the_same_and_finds_nothing_odd(folder, capsys):
    pytest.importorskip("bitsandbytes")
    assert load(folder, "bnb4")[1].unused == ()
    assert "does without" not in capsys.readouterr().err
    edit(folder, without("1.mlp.up"))
    with pytest.raises(SettingError, match=r"lack model.layers.1.mlp.up_proj.weight"):
        load(folder, "bnb8")


def shard(folder, *names, **index):
    """The weights as two files, named so in an index."""
    path = folder / "model.safetensors"
    held = sorted(load_file(path).items())
    path.unlink()
    for name, part in zip(names, (held[:9], held[9:]), strict=True):
        save = save_file if name.endswith(".safetensors") else torch.save
        save(dict(part), folder / name)
    places = {key: names[number >= 9] for number, (key, _) in enumerate(held)}
    index = {"metadata": {}, "weight_map": places} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_loaded_where_the_index_keeps_to_the_folder(folder):
    shard(folder, "a.safetensors", "b.safetensors")
    assert load(folder)[1].unused == ()
    (folder / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes()[:500])
    with pytest.raises(SettingError, match="cannot be loaded from this folder"):
        load(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(SettingError, match=r"names files that are not there: b.safetensors"):
        load(folder)


@pytest.mark.parametrize("outside", ["../b.safetensors", "{}/b.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder, tmp_path, outside):
    shard(folder, "a.safetensors", outside.format(tmp_path))
    for use_safetensors in (True, False):
        with pytest.raises(SettingError, match="names files outside of the model's folder"):
            load(folder, use_safetensors=use_safetensors)


def test_an_index_that_names_pickles_needs_the_same_trust_as_pickles(folder):
    shard(folder, "a.bin", "b.bin")
    with pytest.raises(SettingError, match=r"no safetensors: a.bin, b.bin; USE_SAFETENSORS=false"):
        load(folder)
    assert load(folder, use_safetensors=False)[1].unused == ()


@pytest.mark.parametrize("index", [{"weight_map": []}, {"metadata": None}, {"weight_map": None}])
def test_an_index_that_is_none_is_refused(folder, index):
    shard(folder, "a.safetensors", "b.safetensors", **index)
    with pytest.raises(SettingError, match=r"index.json is no index of weights"):
        load(folder)


def test_the_index_of_a_hub_model_is_read_before_what_it_names(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "pytorch_model.bin"}}))
    asked = []
    monkeypatch.setattr(weights, "hf_hub_download", lambda *a, **k: asked.append((a, k)) or path)
    config = SimpleNamespace(_commit_hash="abc")
    with pytest.raises(SettingError, match=r"no safetensors: pytorch_model.bin"):
        weights.check_index(Settings(model_id="some/model"), "some/model", config)
    assert asked == [(("some/model", path.name), {"revision": "abc"})]
