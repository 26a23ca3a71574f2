"""The kernels of a decode step against float64, and whole steps against the eager loop.

Without a GPU Triton's interpreter runs them (tests/prepared.py), one program after the other.
"""

import gc
import itertools
import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from kv_compression import decode_graph
from kv_compression.budgets.adakv import Budget as AdaKV
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.decode_graph import attention as decode_attention
from kv_compression.decode_graph import table as decode_table
from kv_compression.decode_graph.attention import HeadTransform, WorkSplit, attend
from kv_compression.decode_graph.fused_layer import FusedLayer
from kv_compression.decode_graph.linear import Tile, linear
from kv_compression.decode_graph.step import DecodeStep
from kv_compression.decode_graph.table import LayerTable
from kv_compression.decode_graph.weights import Weight
from kv_compression.generation import generate
from kv_compression.layer import PrunedLayer
from kv_compression.layer_kinds import LayerKind
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning
from kv_compression.ragged import RaggedStorage
from kv_compression.selection import PooledSelection
from kv_compression.storage import Storage
from tests.models import batch, tiny


@pytest.fixture(autouse=True)
def patched_once(monkeypatch):
    """Triton's interpreter prepares its language at each call of a kernel's function, for most of
    the time that a kernel takes; here it does so once a launch."""
    from triton.runtime import interpreter

    if DEVICE == "cuda":
        return
    launch, prepared = interpreter.GridExecutor.__call__, set()

    def launched(self, *arguments, **options):
        prepared.clear()
        return launch(self, *arguments, **options)

    def called(self, *arguments, **options):
        if id(self.fn.__globals__) not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(id(self.fn.__globals__))
        return self.rewrite()(*arguments, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", called)


# Of a result's norm: sums of some 200 products in float32, and two roundings to the type itself.
TOLERANCE = {
    dtype: math.sqrt(200) * torch.finfo(torch.float32).eps + 2 * torch.finfo(dtype).eps
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
}


def error(output, expected):
    difference = output.double() - expected
    return (difference.norm() / expected.norm()).item()


class OnHost(DecodeGraphs):
    """Runs the step as it is, where no graph can be captured."""

    def capture(self, layers, token, seen_tokens):
        return 0.0

    def steps(self, layers, token, seen_tokens, count):
        step = DecodeStep(self.model, layers)
        step.begin(layers, token, seen_tokens)
        for _ in range(count):
            with step._in_place():
                step._advance()
            yield step._known.tolist()


def rotated(states, heads, transform, gain):
    """What the model makes of its heads: RMSNorm, then rotation of the first channels."""
    states = states.double().unflatten(1, (heads, -1))
    if transform is None:
        return states
    if gain is not None:
        root = (states.square().mean(-1, keepdim=True) + transform.eps).rsqrt()
        states = states * root * gain.double()
    turned = transform.cos.shape[1]
    first, second = states[..., :turned].chunk(2, dim=-1)
    half = torch.cat([-second, first], dim=-1)
    cos, sin = transform.cos.double()[:, None], transform.sin.double()[:, None]
    return torch.cat([states[..., :turned] * cos + half * sin, states[..., turned:]], dim=-1)


def stored_layer(shape, starts, counts, window, options):
    """A layer with room for four more, and a view of the storage: each pair's tokens, then those.

    counts: for each row and head how many tokens it stores; None for all but its padding.
    """
    rows, heads, stored, _ = shape
    keys, values = torch.randn(2, *shape, **options)
    layer = PrunedLayer(kind=LayerKind(window=window))
    layer.keys, layer.values = keys[:, :, :0], values[:, :, :0]
    if counts is None:
        layer.storage, layer.left_padding = Storage.of(keys, values, None, 4), starts
        buffers = layer.storage._keys, layer.storage._values
        first = starts or (0,) * rows
        return layer, [
            [tuple(buffer[row, head, first[row] :] for buffer in buffers) for head in range(heads)]
            for row in range(rows)
        ]
    lines = []
    for of_row in counts:
        tokens = [
            stored * head + torch.randperm(stored)[:n].sort()[0] for head, n in enumerate(of_row)
        ]
        lines.append(torch.cat(tokens))
    wide = max(map(len, lines))
    index = torch.stack([torch.cat([line.new_zeros(wide - len(line)), line]) for line in lines])
    kept = PooledSelection(index.to(DEVICE), tuple(map(len, lines)))
    layer.ragged = RaggedStorage(keys, values, kept, room=4)
    buffers = layer.ragged._keys, layer.ragged._values
    begins = layer.ragged._begins
    return layer, [
        [
            tuple(buffer[begins[row][head] :][: n + 4] for buffer in buffers)
            for head, n in enumerate(of_row)
        ]
        for row, of_row in enumerate(counts)
    ]


@pytest.mark.parametrize(
    (
        *("rows", "heads", "kv_heads", "head_dim", "starts", "stored", "dtype", "turned"),
        *("has_norm", "window", "softcap", "has_sinks", "counts"),
    ),
    [
        (1, 4, 2, 16, None, 1, torch.float32, 0, False, None, None, False, None),
        (2, 4, 2, 16, (0, 5), 37, torch.float32, 16, False, None, 2.0, True, None),
        (3, 6, 1, 48, (0, 70, 130), 131, torch.float32, 24, True, 20, None, False, None),
        (2, 4, 4, 64, (1, 0), 90, torch.float16, 64, False, 1, 0.5, True, None),
        (1, 6, 3, 16, None, 90, torch.float32, 16, False, None, None, False, [[90, 1, 31]]),
        (2, 4, 2, 48, None, 70, torch.float16, 48, True, None, 0.5, True, [[70, 0], [3, 33]]),
    ],
)
def test_attention_of_a_new_token_is_that_of_float64(
    rows, heads, kv_heads, head_dim, starts, stored, dtype, turned, has_norm, window, softcap,
    has_sinks, counts, monkeypatch,
):  # fmt: skip
    # More of them than pairs, and not a multiple.
    for module in (decode_table, decode_attention):
        monkeypatch.setattr(module, "processors", lambda _: 5)
    torch.manual_seed(stored)
    options, group = {"dtype": dtype, "device": DEVICE}, heads // kv_heads
    shapes = [(rows, kv_heads, stored + 3 * layer, head_dim) for layer in range(2)]
    made = [stored_layer(shape, starts, counts, window, options) for shape in shapes]
    table = LayerTable.of([layer for layer, _ in made])
    transform = None
    if turned:
        gains = torch.rand(2, head_dim, device=DEVICE) + 0.5 if has_norm else (None, None)
        angles = torch.randn(2, rows, turned, device=DEVICE)
        transform = HeadTransform(*angles, *gains, 1e-5)
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    sinks = torch.randn(heads, device=DEVICE) if has_sinks else None
    for added in range(2):
        for layer, (_, pairs) in enumerate(made):
            q, k, v = torch.randn(rows, sum(widths), **options).split(widths, dim=1)
            output = attend(
                q,
                k,
                v,
                table,
                layer,
                head_dim=head_dim,
                scaling=0.3,
                transform=transform,
                softcap=softcap,
                sinks=sinks,
                split=WorkSplit(tokens=16),
            )
            key = rotated(k, kv_heads, transform, transform and transform.k_gain)
            query = rotated(q, heads, transform, transform and transform.q_gain)
            expected = torch.empty(rows, heads, head_dim, dtype=torch.float64, device=DEVICE)
            for row, head in itertools.product(range(rows), range(kv_heads)):
                keys, values = pairs[row][head]
                newest = len(keys) - 4 + added
                assert error(keys[newest], key[row, head]) < TOLERANCE[dtype]
                assert torch.equal(values[newest], v.unflatten(1, (kv_heads, -1))[row, head])
                seen = slice(0 if window is None else max(0, newest + 1 - window), newest + 1)
                mine = slice(head * group, (head + 1) * group)
                scores = query[row, mine] @ keys[seen].double().T * 0.3
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[mine, None].double()], dim=1)
                weights = scores.softmax(dim=1)[:, : newest + 1 - seen.start]
                expected[row, mine] = weights @ values[seen].double()
            assert error(output, expected.flatten(1)) < TOLERANCE[dtype]
        table.added.add_(1)


def projection(kind, out_features, in_features, has_bias, dtype):
    """A random projection of a kind, and its weights in float64."""
    plain = torch.nn.Linear(in_features, out_features, bias=has_bias, dtype=dtype)
    if kind == "float":
        return plain.to(DEVICE), plain.weight.detach().double()
    bnb = pytest.importorskip("bitsandbytes")
    if kind == "int8":
        module = bnb.nn.Linear8bitLt(in_features, out_features, has_bias, has_fp16_weights=False)
    else:
        module = bnb.nn.Linear4bit(
            in_features,
            out_features,
            has_bias,
            compute_dtype=dtype,
            quant_type="fp4" if kind == "fp4" else "nf4",
            compress_statistics=kind != "nf4 flat",
        )
    module.load_state_dict(plain.state_dict())
    module = module.to(DEVICE)
    if kind == "int8":
        module(torch.randn(2, in_features, dtype=torch.float16, device=DEVICE))
        return module, module.weight.double() * Weight.of(module).scale[:, None] / 127
    state = module.weight.quant_state
    return module, bnb.functional.dequantize_4bit(module.weight.data, state).double()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("kind", "dtype", "has_bias"),
    [
        ("float", torch.float32, True),
        ("float", torch.float16, False),
        ("int8", torch.float16, True),
        ("nf4", torch.float32, False),
        ("nf4", torch.float16, True),
        ("nf4 flat", torch.float32, True),
        ("fp4", torch.float32, False),
    ],
)
def test_products_are_those_of_float64(kind, dtype, has_bias, rows):
    check_products(kind, dtype, has_bias, rows)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("kind", ["float", "int8", "nf4", "nf4 flat", "fp4"])
def test_products_in_bfloat16_are_those_of_float64(kind, rows):
    """4-bit codes have a way of their own there."""
    check_products(kind, torch.bfloat16, rows == 3, rows)


def check_products(kind, dtype, has_bias, rows):
    torch.manual_seed(rows)
    in_features, tile = 192, Tile(16, 128, num_warps=4, num_stages=2)
    made = [projection(kind, n, in_features, has_bias, dtype) for n in (40, 24, 24)]
    weights = tuple(Weight.of(module) for module, _ in made)
    x = torch.randn(rows, in_features, dtype=dtype, device=DEVICE)
    gain = torch.rand(in_features, device=DEVICE).to(dtype) + 0.5
    residual = torch.randn(rows, 40, dtype=dtype, device=DEVICE)
    wide = x.double()
    normed = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain.double()

    def product(place, inputs):
        module, matrix = made[place]
        return inputs @ matrix.to(DEVICE).T + (module.bias.double() if has_bias else 0)

    side_by_side = linear(x, weights, norm=gain, eps=1e-5, tile=tile)
    expected = torch.cat([product(place, normed) for place in range(3)], dim=1)
    assert error(side_by_side, expected) < TOLERANCE[dtype]
    added = linear(x, weights[:1], residual=residual, tile=tile)
    assert error(added, product(0, wide) + residual.double()) < TOLERANCE[dtype]
    gated = linear(x, weights[1:], norm=gain, eps=1e-5, gated=True, tile=tile)
    assert error(gated, silu(product(1, normed)) * product(2, normed)) < TOLERANCE[dtype]


@pytest.mark.model
@pytest.mark.parametrize(
    ("architecture", "lengths", "heads", "is_fused"),
    [
        ("llama", [9], (4, 2), True),
        ("mistral", [12, 3, 30, 1], (6, 2), True),
        ("qwen2", [9, 30], (4, 1), True),
        ("qwen3", [12, 7], (4, 4), True),
        ("phi3", [5, 9], (4, 2), False),
    ],
)
def test_a_step_gives_the_tokens_of_the_eager_loop(
    architecture, lengths, heads, is_fused, monkeypatch
):
    monkeypatch.setattr(decode_graph, "reason_unsupported", lambda *_, **__: None)
    model = tiny(architecture, *heads, layers=2, vocab_size=64).to(DEVICE)
    layers = model.model.layers
    assert all(FusedLayer.fits(layer, len(lengths)) == is_fused for layer in layers)
    input_ids, mask = batch(lengths, vocab_size=64)
    half = Pruning(L2(), keep_ratio=0.4, prune_after=6, skip_layers=(0,))
    for pruning in (None, half, replace(half, budget=AdaKV())):
        options = {"backend": "sdpa", "max_new_tokens": 3, "pruning": pruning}
        eager = generate(model, input_ids, mask, **options)
        step = generate(model, input_ids, mask, graphs=OnHost(model), **options)
        assert step.new_tokens == eager.new_tokens
        assert (eager.decode_mode, step.decode_mode) == ("eager", "graph")
        assert step.kernels["decode"] == ["triton split-kv"]
        assert step.stored_tokens == eager.stored_tokens
    # The model is as it was.
    assert all("forward" not in layer.__dict__ for layer in layers)
    assert generate(model, input_ids, mask, **options).new_tokens == eager.new_tokens


def test_layers_of_another_kind_or_with_other_weights_are_not_fused():
    model = tiny()
    layer = model.model.layers[0]
    assert FusedLayer.fits(layer, 16)
    assert not FusedLayer.fits(layer, 17)
    layer.mlp.act_fn = torch.nn.GELU()
    assert not FusedLayer.fits(layer, 1)
    layer = model.model.layers[1]
    layer.self_attn.k_proj.bias = torch.nn.Parameter(torch.zeros(32))
    assert not FusedLayer.fits(layer, 1)


def test_modules_that_do_more_than_their_class_are_not_fused():
    """Adapters and offloading hang on hooks and replaced forwards, or on classes of their own."""
    layers = tiny(layers=6).model.layers
    layers[0].register_forward_hook(lambda *_: None)
    layers[1].self_attn.q_proj.register_forward_pre_hook(lambda *_: None)
    layers[2].mlp.down_proj.forward = layers[2].mlp.down_proj.forward
    layers[3].input_layernorm.to(torch.bfloat16)
    layers[4].mlp.up_proj = torch.nn.Sequential(layers[4].mlp.up_proj)
    assert [FusedLayer.fits(layer, 1) for layer in layers] == [False] * 5 + [True]


def test_nothing_of_a_model_stays_in_the_registry_of_attentions(monkeypatch):
    monkeypatch.setattr(decode_graph, "reason_unsupported", lambda *_, **__: None)
    model = tiny("phi3", layers=1, vocab_size=64).to(DEVICE)
    alive = weakref.ref(model)
    graphs = OnHost(model)
    generate(model, batch([5], vocab_size=64)[0], backend="sdpa", max_new_tokens=2, graphs=graphs)
    del model, graphs
    gc.collect()
    assert alive() is None
