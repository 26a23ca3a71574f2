import pytest
import torch

from kv_compression.prefill.mlp import mlp_in_row_chunks
from tests.models import CONFIGS, batch, tiny
from tests.reference import tolerance


def highest_rows(model, run):
    """Most rows that any down projection got at once."""
    seen = []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].shape[0] * inputs[0].shape[1])
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        logits = run().logits
    for hook in hooks:
        hook.remove()
    return max(seen), logits


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("lengths", [[1], [7], [8], [53], [31, 5, 53]])
def test_chunks_give_the_same_logits_from_fewer_rows(architecture, lengths):
    model, (input_ids, mask) = tiny(architecture), batch(lengths)
    whole_rows, whole = highest_rows(model, lambda: model(input_ids, attention_mask=mask))
    with mlp_in_row_chunks(model, rows=8):
        rows, logits = highest_rows(model, lambda: model(input_ids, attention_mask=mask))
    assert whole_rows == input_ids.numel()
    assert rows == min(input_ids.numel(), 8 // len(lengths) * len(lengths))
    # The longest sum is over the 128 columns of the MLP, in three layers.
    assert (logits - whole).abs().max() < tolerance(whole, 3 * 128)


def test_the_mlps_are_put_back_after_an_error():
    model = tiny()
    with pytest.raises(RuntimeError), mlp_in_row_chunks(model, rows=8):
        raise RuntimeError
    assert "forward" not in model.model.layers[0].mlp.__dict__
    replaced = model.model.layers[1].mlp.forward = model.model.layers[0].mlp.forward
    with mlp_in_row_chunks(model, rows=8):
        assert model.model.layers[1].mlp.forward != replaced
    assert model.model.layers[1].mlp.forward == replaced
