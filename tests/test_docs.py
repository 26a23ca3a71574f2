"""The examples of docs/extending.md, taken from the page, put where it says, and run."""

import importlib
import itertools
import json
import shutil
import sys

import pytest
import torch

from kv_compression import attention, budgets, methods, plugins
from kv_compression.generation import generate
from kv_compression.pruning import Pruning
from longctx import quantization
from tests import docs, models, runs, warm
from tests.test_attention import HEADS, worst_error

TEXT = (docs.ROOT / "docs" / "extending.md").read_text()
SECTIONS = docs.sections(TEXT, 2)
FILES = docs.files(TEXT)
PLUGINS = {
    "kv_compression/attention/sdpa_math.py": attention,
    "kv_compression/methods/vatp.py": methods,
    "kv_compression/budgets/halves.py": budgets,
    "longctx/quantization/bnb8_mlp.py": quantization,
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The page's plug-ins, in a folder that their packages look into as well."""
    for path, package in PLUGINS.items():
        file = tmp_path / "installed" / path
        file.parent.mkdir(parents=True)
        file.write_text(FILES[path])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
    importlib.invalidate_caches()
    plugins.names.cache_clear()
    yield
    plugins.names.cache_clear()
    for path, package in PLUGINS.items():
        sys.modules.pop(f"{package.__name__}.{path.split('/')[-1].removesuffix('.py')}", None)


def variables(heading, folder):
    """What a section's commands set, and the scripts that they start."""
    folder.mkdir(exist_ok=True)
    (block,) = docs.blocks(SECTIONS[heading], "bash")
    calls = docs.commands(block, folder)
    assert all(call.arguments[0] == "python" for call in calls)
    return [(call.arguments[1], call.variables) for call in calls]


def script(path, folder, tiny_folder, settings):
    """A script's run in a process of its own, in `folder`: its full results."""
    number = str(len(list(folder.glob("logs/*"))))
    logdir = folder / "logs" / number
    tiny = runs.environ(tiny_folder, logdir, CONTEXTS=None, DATASET_ID=None, N_SAMPLES=None)
    process = warm.Process(
        folder / "streams" / number,
        [path],
        {"PYTHONWARNINGS": "ignore", "PYTHONPATH": str(folder)} | tiny | settings,
        cwd=folder,
    )
    _, notes = process.communicate()
    assert process.returncode == 0, notes
    (full,) = logdir.glob("*_full.json")
    return json.loads(full.read_text())


def test_every_example_is_tested():
    assert list(SECTIONS) == [
        "A data set",
        "An attention backend",
        "A KV method",
        "A KV budget",
        "A quantization",
        "A FlexAttention mask",
    ]
    assert set(FILES) == {
        *PLUGINS,
        "triviaqa_eval.py",
        "articles.jsonl",
        "flex_pipeline/masks.py",
    }


@pytest.mark.model
def test_a_data_set(tiny_folder, tmp_path):
    for name in ("triviaqa_eval.py", "articles.jsonl"):
        (tmp_path / name).write_text(FILES[name])
    ((path, settings),) = variables("A data set", tmp_path / "bin")
    full = script(path, tmp_path, tiny_folder, settings)
    samples = [sample for row in full["rows"] for sample in row["samples"]]
    assert [sample["sample_id"] for sample in samples] == ["q1", "q2"]
    assert samples[0]["references"] == ["Danube", "The Danube", "Donau"]
    (summary,) = full["ctx_summaries"]
    assert (summary["total_count"], summary["n_truncated"], summary["n_failed"]) == (2, 0, 0)
    assert summary["prompt_tokens_mean"] > 50
    assert 0 <= summary["em"] <= summary["f1"] <= 1


def test_an_attention_backend_computes_what_eager_does(installed):
    for heads, starts in itertools.product(HEADS, (None, (0, 5), (18, 3))):
        for query_len in (1, 7, 19):
            shape = (heads, 16, query_len, 19, starts, 2)
            error, allowed, kernel = worst_error(
                "sdpa_math", shape, torch.float32, "cpu", seed=query_len
            )
            assert kernel == "math"
            assert error < allowed
    model, (input_ids, mask) = models.tiny(), models.batch([60, 41])
    pruning = Pruning(methods.method_class("l2")(), 0.5, prune_after=10, skip_layers=(0,))
    tokens = [
        generate(
            model, input_ids, mask, backend=name, max_new_tokens=12, pruning=pruning
        ).new_tokens
        for name in ("eager", "sdpa_math")
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.model
@pytest.mark.parametrize(
    "heading", ["An attention backend", "A KV method", "A KV budget", "A quantization"]
)
def test_a_plug_in_is_chosen_by_its_files_name(heading, installed, tiny_folder, tmp_path):
    ((path, settings),) = variables(heading, tmp_path / "bin")
    assert path == "narrativeqa_eval.py"
    full = runs.run(tiny_folder, tmp_path / "logs", **settings | {"N_SAMPLES": "2"})
    used = full["run_meta"]["variables"]
    assert {name: str(used[name]) for name in settings} == settings
    assert full["summary"]["n_failed"] == 0
    if heading == "An attention backend":
        assert full["ctx_summaries"][0]["kernel_prefill"] == "math"
    if heading == "A quantization":
        plain = runs.run(tiny_folder, tmp_path / "plain", N_SAMPLES="2")
        assert full["summary"]["weights_gb"] < plain["summary"]["weights_gb"]
    if heading == "A KV method":
        for row in full["rows"]:
            prompt = row["samples"][0]["prompt_tokens"]
            assert row["stored_tokens_per_layer"] == [prompt, prompt, -(-prompt // 2)]


def test_the_kv_budget_adds_up(installed):
    halves = budgets.budget_class("halves")()
    assert [halves.of_layer(9, 40, place, 5) for place in range(5)] == [13, 13, 9, 5, 5]
    assert [halves.of_layer(21, 40, place, 2) for place in range(2)] == [21, 21]


def test_the_kv_methods_parameter_and_score(installed):
    method = methods.method_class("vatp")
    with pytest.raises(ValueError, match="VATP_WINDOW must be 1 or more"):
        method(window=0)
    torch.manual_seed(0)
    keys, values = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 4)
    queries = torch.randn(1, 4, 9, 4)
    places = torch.arange(9)[None]
    layer = methods.StoredLayer(keys, values, places[:, None], queries, places, scaling=0.5)
    expected = torch.zeros(2, 9)
    for head, token in itertools.product(range(4), (7, 8)):
        scores = keys[0, head // 2, : token + 1] @ queries[0, head, token] * 0.5
        expected[head // 2, : token + 1] += scores.softmax(dim=0) / 4
    expected *= values[0].abs().sum(dim=-1)
    torch.testing.assert_close(method(window=2).score(layer)[0], expected)


@pytest.fixture
def flex_pipeline(tmp_path):
    """A copy of the package with the page's mask in it."""
    folder = tmp_path / "flex_pipeline"
    shutil.copytree(docs.ROOT / "flex_pipeline", folder, ignore=shutil.ignore_patterns("logs"))
    file = folder / "masks.py"
    before, names = file.read_text().split("FACTORIES: dict", 1)
    names = names.replace(", dilated)", ", dilated, chunked)", 1)
    file.write_text(f"{before}{FILES['flex_pipeline/masks.py']}\n\nFACTORIES: dict{names}")
    return folder


def test_a_masks_spans_agree_with_its_pairs(flex_pipeline):
    spec = importlib.util.spec_from_file_location("masks_with_chunked", flex_pipeline / "masks.py")
    masks = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = masks
    try:
        spec.loader.exec_module(masks)
    finally:
        del sys.modules[spec.name]
    mask = masks.FACTORIES["chunked"](4)
    places = torch.arange(14)
    sees = mask.sees(places[:, None], places)
    assert sees.tolist() == [[k <= q and k // 4 == q // 4 for k in range(14)] for q in range(14)]
    spans = [(first, last) for first in range(14) for last in range(first, min(first + 6, 14))]
    for (q0, q1), (k0, k1) in itertools.product(spans, spans):
        block = sees[q0 : q1 + 1, k0 : k1 + 1]
        queries, keys = masks.Span(*torch.tensor([q0, q1])), masks.Span(*torch.tensor([k0, k1]))
        assert bool(mask.touches(queries, keys)) == bool(block.any())
        assert bool(mask.covers(queries, keys)) == bool(block.all())


@pytest.mark.model
def test_a_flexattention_mask(flex_pipeline, tiny_folder, tmp_path):
    ((path, settings),) = variables("A FlexAttention mask", tmp_path / "bin")
    settings |= {"ATTN_IMPL": "flex", "DATASET_ID": "synthetic", "N_SAMPLES": "2"}
    full = script(path, tmp_path, tiny_folder, settings)
    assert full["run_meta"]["variables"]["MASK_TYPE"] == "chunked"
    (summary,) = full["ctx_summaries"]
    assert summary["n_failed"] == 0
    assert summary["block_sparsity_pct"] > 50
