"""Keys and values in 8 and 4 bits: their error, their size, and rows alone as in a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_compression import methods
from kv_compression.generation import generate
from kv_compression.methods import method_class
from kv_compression.pruning import Pruning
from kv_compression.quantized import BITS, Quantized, QuantizedPrefix
from tests.models import batch, tiny

pytestmark = pytest.mark.model


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([8, 4]),
    stored=st.integers(1, 200),
    head_dim=st.sampled_from([16, 48, 64, 80, 128]),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_a_number_is_off_by_half_a_step_of_its_group(bits, stored, head_dim, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, stored, head_dim, generator=generator) * scale
    read_keys, read_values = QuantizedPrefix(keys, values, None, bits).read()
    first = -stored % 64
    for at in range(0, stored + first, 64):
        group = slice(max(0, at - first), at - first + 64)
        ranges = keys[:, :, group].amax(2) - keys[:, :, group].amin(2)
        allowed = ranges / (2**bits - 1) / 2 * 1.001 + scale * 1e-5
        assert ((read_keys - keys)[:, :, group].abs() <= allowed[:, :, None]).all()
    ranges = values.amax(-1) - values.amin(-1)
    allowed = ranges / (2**bits - 1) / 2 * 1.001 + scale * 1e-5
    assert ((read_values - values).abs() <= allowed[..., None]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4])
def test_an_offset_that_half_precision_rounds_costs_no_more_than_its_rounding(bits, dtype):
    """Channels of keys stand far from 0: at 20 bfloat16 has steps of 0.125, coarser than int8."""
    numbers = (20 + torch.rand(1, 1, 64, 16, generator=torch.Generator().manual_seed(1))).to(dtype)
    read = Quantized.of(numbers, dim=2, bits=bits).numbers()
    assert read.dtype == dtype
    spacing = {torch.bfloat16: 0.125, torch.float16: 0.0157}[dtype]
    assert (read.float() - numbers.float()).abs().max() <= 1 / (2**bits - 1) / 2 + spacing


@pytest.mark.parametrize("bits", [8, 4])
def test_equal_numbers_are_kept_exactly(bits):
    numbers = torch.full((1, 1, 64, 4), -3.25)
    assert torch.equal(Quantized.of(numbers, dim=2, bits=bits).numbers(), numbers)


@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_rows_codes_do_not_depend_on_its_batch(bits, data):
    stored = data.draw(st.integers(1, 150))
    start = data.draw(st.integers(0, stored - 1))
    generator = torch.Generator().manual_seed(stored)
    keys, values = torch.randn(2, 2, 2, stored, 16, generator=generator)
    keys[1, :, :start] = 1e4  # padding would spoil every group that it took part in
    together = QuantizedPrefix(keys, values, (0, start), bits).read()
    alone = QuantizedPrefix(keys[1:, :, start:], values[1:, :, start:], None, bits).read()
    assert torch.equal(together[0][1, :, start:], alone[0][0])
    assert torch.equal(together[1][1, :, start:], alone[1][0])


def run(model, ids, mask, bits, rows, questions=None, **pruning):
    return generate(
        model,
        ids,
        mask,
        backend="sdpa",
        max_new_tokens=6,
        pruning=Pruning(prune_after=0, skip_layers=(0,), **pruning) if pruning else None,
        question_tokens=None if questions is None else [questions[row] for row in rows],
        kv_bits=bits,
    )


@pytest.mark.parametrize("questions", [None, [3, 2, 40]])
@pytest.mark.parametrize("bits", BITS.values())
@pytest.mark.parametrize("name", [None, *methods.names()])
def test_a_row_is_the_same_in_a_batch_and_alone(name, bits, questions):
    model, lengths = tiny(), [90, 8, 131]
    input_ids, mask = batch(lengths)
    pruning = {} if name is None else {"method": method_class(name)(), "keep_ratio": 0.4}
    together = run(model, input_ids, mask, bits, range(3), questions, **pruning)
    for row, length in enumerate(lengths):
        ids = input_ids[row : row + 1, -length:]
        alone = run(model, ids, None, bits, [row], questions, **pruning)
        assert alone.new_tokens[0] == together.new_tokens[row]


def test_its_size_is_what_the_format_says():
    model, (input_ids, _) = tiny(head_dim=64), batch([256])
    sizes = {
        bits: run(model, input_ids, None, bits, [0]).kv_bytes for bits in (None, *BITS.values())
    }
    numbers = 2 * 3 * 2 * 256 * 64  # keys and values, layers, heads, tokens, head_dim
    groups = numbers // 64
    assert sizes[None] == numbers * 4
    assert sizes[8] == numbers + groups * 8
    assert sizes[4] == numbers / 2 + groups * 8


def test_eight_bits_change_no_answer_of_the_built_in_model(builtin_model, builtin_tokenizer):
    inputs = builtin_tokenizer(
        ["The grass is green. " * 40 + f"The pass key is {key}. " + "The sky is blue. " * 40
         + "What is the pass key? The pass key is" for key in (71432, 90518)],
        return_tensors="pt",
    )  # fmt: skip
    answers = {
        bits: run(
            builtin_model, inputs["input_ids"], inputs["attention_mask"], bits, range(2)
        ).new_tokens
        for bits in (None, 8)
    }
    assert answers[8] == answers[None]


def test_an_odd_head_dim_has_no_four_bits():
    with pytest.raises(ValueError, match="even head_dim"):
        QuantizedPrefix(torch.ones(1, 1, 3, 5), torch.ones(1, 1, 3, 5), None, 4)
