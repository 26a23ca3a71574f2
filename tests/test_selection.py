import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kv_compression.pruning import kept_count
from kv_compression.selection import select


def kept_by_definition(scores, start, count):
    """Indices of the `count` highest scores from `start` on; of equal ones the earlier."""
    ranked = sorted(range(start, len(scores)), key=lambda place: (-scores[place], place))
    return sorted(ranked[:count])


@given(st.data())
def test_select_keeps_the_best_in_order(data):
    batch, heads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    stored = data.draw(st.integers(1, 40))
    starts = [data.draw(st.integers(0, stored - 1)) for _ in range(batch)]
    counts = [data.draw(st.integers(1, stored - start)) for start in starts]
    # Few different values: many ties.
    values = st.lists(st.integers(-2, 2), min_size=stored, max_size=stored)
    scores = [[data.draw(values) for _ in range(heads)] for _ in range(batch)]

    kept = select(
        torch.tensor(scores, dtype=torch.float32), tuple(starts) if any(starts) else None, counts
    )

    new_starts = kept.left_padding or (0,) * batch
    for row in range(batch):
        assert new_starts[row] == max(counts) - counts[row]
        for head in range(heads):
            expected = kept_by_definition(scores[row][head], starts[row], counts[row])
            assert kept.index[row, head, new_starts[row] :].tolist() == expected


def sorted_selection(scores, starts, counts):
    """The same by a stable sort of everything, starts and counts a row."""
    most, rows = max(counts), []
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        order = scores[row, :, start:].sort(dim=-1, descending=True, stable=True).indices
        index = order[:, :count].sort(dim=-1).values + start
        rows.append(torch.nn.functional.pad(index, (most - count, 0)))
    return torch.stack(rows)


@given(st.data())
def test_select_is_what_a_stable_sort_selects(data):
    batch, heads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    stored = data.draw(st.integers(1, 300))
    starts = [data.draw(st.integers(0, stored - 1)) for _ in range(batch)]
    counts = [data.draw(st.integers(1, stored - start)) for start in starts]
    if data.draw(st.booleans()):
        starts, counts = [0] * batch, [data.draw(st.integers(1, stored))] * batch
    scores = data.draw(
        st.sampled_from(
            [
                torch.zeros,  # all equal
                lambda *shape: torch.zeros(shape).copysign(torch.randn(shape)),  # -0.0 and 0.0
                lambda *shape: torch.randint(-1, 2, shape).float(),
                lambda *shape: torch.randint(0, 2, shape) * torch.finfo(torch.float32).max,
                lambda *shape: torch.randn(shape).bfloat16().float(),
                torch.randn,
            ]
        )
    )(batch, heads, stored)
    kept = select(scores, tuple(starts) if any(starts) else None, counts)
    assert torch.equal(kept.index, sorted_selection(scores, starts, counts))
    assert (kept.left_padding or (0,) * batch) == tuple(max(counts) - count for count in counts)


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_min=True))
def test_kept_count_is_the_ceiling_and_never_zero(length, keep_ratio):
    count = kept_count(length, keep_ratio)
    assert 1 <= count <= length
    assert count == math.ceil(Fraction(str(keep_ratio)) * length)


@pytest.mark.parametrize(("keep_ratio", "length", "count"), [(0.07, 100, 7), (0.68, 75, 51)])
def test_kept_count_is_of_the_decimal_number(keep_ratio, length, count):
    assert kept_count(length, keep_ratio) == count


@pytest.mark.gpu
def test_the_same_tokens_are_kept_on_cpu_and_gpu():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 50, (3, 4, 5000), generator=generator).float()
    here = select(scores, (0, 17, 4000), [2500, 100, 1000])
    there = select(scores.cuda(), (0, 17, 4000), [2500, 100, 1000])
    assert torch.equal(here.index, there.index.cpu())
