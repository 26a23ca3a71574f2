"""Mixtures of experts in a decode step: the chosen experts' products, against float64."""

import copy
import types

import pytest
import torch
from transformers.integrations.moe import batched_mm_experts_forward

from kv_compression.decode_graph import experts
from tests.families import tiny
from tests.test_decode_kernels import DEVICE, TOLERANCE, error

pytestmark = pytest.mark.model


class Ungated(torch.nn.Module):
    """As Nemotron-H stores them."""

    has_gate = has_bias = is_transposed = False
    num_experts = 4
    act_fn = staticmethod(torch.nn.functional.gelu)

    def __init__(self):
        super().__init__()
        self.up_proj = torch.nn.Parameter(torch.randn(4, 37, 64))
        self.down_proj = torch.nn.Parameter(torch.randn(4, 64, 37))


def experts_of(family):
    if family is None:
        return Ungated()
    return next(module for module in tiny(family).modules() if experts.are_experts(module))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# gpt_oss stores its weights the other way round, and has biases.
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", None])
def test_a_few_tokens_experts_are_those_of_float64(family, dtype, tokens):
    torch.manual_seed(tokens)
    module = experts_of(family).to(DEVICE, dtype)
    hidden = torch.randn(tokens, 64, dtype=dtype, device=DEVICE)
    chosen = torch.stack([torch.randperm(module.num_experts)[:2] for _ in range(tokens)])
    weights = torch.rand(tokens, 2, dtype=dtype)
    with torch.no_grad():
        found = experts.forward(module, hidden, chosen.to(DEVICE), weights.to(DEVICE))
        exact = copy.deepcopy(module).double().cpu()
        expected = batched_mm_experts_forward(
            exact, hidden.double().cpu(), chosen, weights.double()
        )
    assert found.dtype == dtype
    # Rounded after each of the two products, in the gate, and where it is weighted.
    assert error(found.double().cpu(), expected) < 3 * TOLERANCE[dtype]


def test_other_modules_are_none():
    assert not experts.are_experts(types.SimpleNamespace(has_gate=True))
