import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import StaticCache

from kv_compression.cache import PrunedCache, l2_compress
from kv_compression.layer import PrunedLayer
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning
from tests import families
from tests.models import batch, tiny


def pairs(layers=3, stored=20, rows=2, heads=2, head_dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, heads, stored, head_dim)
    return [
        (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for _ in range(layers)
    ]


def lowest_norms(key, value, count):
    """The pruned pair, by definition."""
    new_key = key.new_empty(*key.shape[:2], count, key.shape[3])
    new_value = torch.empty_like(new_key)
    for row in range(key.shape[0]):
        for head in range(key.shape[1]):
            norms = key[row, head].float().norm(dim=-1).tolist()
            ranked = sorted(range(len(norms)), key=lambda place: (norms[place], place))
            kept = sorted(ranked[:count])
            new_key[row, head] = key[row, head, kept]
            new_value[row, head] = value[row, head, kept]
    return new_key, new_value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("keep_ratio", "count"), [(0.7, 14), (0.01, 1), (0.51, 11), (1.0, 20)])
def test_l2_compress_keeps_the_lowest_norms_in_order(keep_ratio, count, dtype):
    given = [(key.to(dtype), value.to(dtype)) for key, value in pairs()]
    untouched = [(key.clone(), value.clone()) for key, value in given]
    result = l2_compress(given, keep_ratio=keep_ratio, prune_after=0, skip_layers=[1])
    assert isinstance(result, list)
    for layer_idx, (key, value) in enumerate(result):
        expected = given[1] if layer_idx == 1 else lowest_norms(*given[layer_idx], count)
        assert torch.equal(key, expected[0])
        assert torch.equal(value, expected[1])
    for before, after in zip(untouched, given, strict=True):
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])


def test_l2_compress_of_equal_norms_keeps_the_earlier():
    key = torch.ones(1, 1, 9, 4)
    value = torch.arange(9.0).view(1, 1, 9, 1).expand(1, 1, 9, 4)
    ((_, kept),) = l2_compress([(key, value)], keep_ratio=0.5, prune_after=0)
    assert kept[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4]


def test_l2_compress_high_keeps_the_others():
    key = torch.tensor([3.0, 1.0, 2.0, 4.0]).view(1, 1, 4, 1)
    ((low, _),) = l2_compress([(key, key)], keep_ratio=0.5, prune_after=0)
    ((high, _),) = l2_compress([(key, key)], keep_ratio=0.5, prune_after=0, keep="high")
    assert low.flatten().tolist() == [1, 2]
    assert high.flatten().tolist() == [3, 4]


@pytest.mark.parametrize(("prune_after", "kept"), [(20, 10), (21, 20)])
def test_l2_compress_prunes_from_prune_after_on(prune_after, kept):
    result = l2_compress(tuple(pairs()), keep_ratio=0.5, prune_after=prune_after)
    assert isinstance(result, tuple)
    assert all(key.shape[2] == value.shape[2] == kept for key, value in result)


def test_l2_compress_gives_back_a_cache_that_remembers_its_length():
    model = tiny()
    input_ids, _ = batch([30])
    with torch.no_grad():
        cache = model(input_ids, use_cache=True).past_key_values
    compressed = l2_compress(cache, keep_ratio=0.5, prune_after=0)
    assert type(compressed) is type(cache) is DynamicCache
    assert compressed.get_seq_length() == 30
    assert [layer.keys.shape[2] for layer in compressed.layers] == [15] * 3
    assert [layer.keys.shape[2] for layer in cache.layers] == [30] * 3
    with torch.no_grad():
        model(input_ids[:, :1], past_key_values=compressed, position_ids=torch.tensor([[30]]))
    assert compressed.get_seq_length() == 31
    assert [layer.keys.shape[2] for layer in compressed.layers] == [16] * 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"keep_ratio": 0},
        {"keep_ratio": 1.1},
        {"keep_ratio": float("nan")},
        {"prune_after": -1},
        {"skip_layers": [3]},
        {"skip_layers": [-1]},
        {"keep": "some"},
    ],
)
def test_l2_compress_checks_its_arguments(arguments):
    with pytest.raises(ValueError, match=r"keep|prune_after|skip_layers|no layer 3"):
        l2_compress(pairs(), **arguments)


def test_l2_compress_refuses_layers_that_do_not_hold_every_token():
    with pytest.raises(ValueError, match="StaticLayer"):
        l2_compress(StaticCache(config=tiny().config, max_cache_len=8))


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_5_text"])
def test_l2_compress_leaves_windows_and_states_as_they_are(name):
    model, (input_ids, _) = families.tiny(name), batch([30], vocab_size=256)
    expected = model.generate(input_ids, max_new_tokens=5, do_sample=False)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids[:, :-1], past_key_values=cache)
    whole, few = (l2_compress(cache, ratio, prune_after=0) for ratio in (1.0, 0.1))
    found = model.generate(input_ids, past_key_values=whole, max_new_tokens=5, do_sample=False)
    assert torch.equal(found, expected)
    assert [type(layer) for layer in few.layers[::2]] == [
        type(layer) for layer in cache.layers[::2]
    ]
    assert [layer.keys.shape[2] for layer in few.layers[1::2]] == [3, 3]
    pruned = model.generate(input_ids, past_key_values=few, max_new_tokens=5, do_sample=False)
    assert not torch.equal(pruned, expected)


def test_pruned_layer_keeps_each_rows_share_and_never_padding():
    (key, value), *_ = pairs(layers=1, stored=12, rows=3)
    key[1, :, :5] = 0  # padding of the lowest norm
    layer = PrunedLayer(Pruning(L2(), 0.5, prune_after=0), left_padding=(0, 5, 11))
    layer.update(key, value)
    layer.prune_if_due()
    assert layer.left_padding == (0, 2, 5)
    assert layer.keys.shape[2] == 6
    for row, (start, count) in enumerate([(0, 6), (5, 4), (11, 1)]):
        expected, _ = lowest_norms(key[row, None, :, start:], value[row, None, :, start:], count)
        assert torch.equal(layer.keys[row, :, 6 - count :], expected[0])


def test_pruned_layer_lets_go_of_a_larger_tensor():
    whole = torch.randn(1, 6, 10, 4)
    layer = PrunedLayer()
    layer.update(whole[:, :2], whole[:, 2:4])
    layer.prune_if_due()
    assert layer.keys.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()


def test_rows_can_be_selected_and_repeated():
    (key, value), *_ = pairs(layers=1, stored=10, rows=3)
    layer = PrunedLayer(Pruning(L2(), 0.5, prune_after=0), left_padding=(0, 4, 2))
    layer.update(key, value)
    layer.prune_if_due()
    before = layer.keys.clone()
    layer.batch_select_indices(torch.tensor([2, 0]))
    assert layer.left_padding == (1, 0)
    assert torch.equal(layer.keys, before[[2, 0]])
    layer.batch_repeat_interleave(2)
    assert layer.left_padding == (1, 1, 0, 0)
    layer.reorder_cache(torch.tensor([2, 3]))
    assert layer.left_padding is None


def test_what_a_pruned_cache_cannot_do_it_refuses():
    layer = PrunedLayer()
    for refused in (lambda: layer.crop(-1), layer.reset):
        with pytest.raises(NotImplementedError):
            refused()
    with pytest.raises(ValueError, match="no layer 7"):
        PrunedCache(4, Pruning(L2(), skip_layers=(7,)))


def test_l2_compress_of_a_padded_pruned_cache_keeps_no_padding():
    (key, value), *_ = pairs(layers=1, stored=12, rows=2)
    key[1, :, :7] = 0  # padding of the lowest norm
    cache = PrunedCache(1, left_padding=(0, 7))
    cache.update(key, value, 0)
    cache.layers[0].prune_if_due()
    compressed = l2_compress(cache, keep_ratio=0.5, prune_after=0)
    assert compressed.layers[0].left_padding == (0, 3)
    expected, _ = lowest_norms(key[1:, :, 7:], value[1:, :, 7:], 3)
    assert torch.equal(compressed.layers[0].keys[1, :, 3:], expected[0])


def test_l2_compress_refuses_what_is_quantized():
    (key, value), *_ = pairs(layers=1)
    cache = PrunedCache(1, kv_bits=8)
    cache.update(key, value, 0)
    cache.layers[0].prune_if_due()
    with pytest.raises(ValueError, match="quantized"):
        l2_compress(cache)
