"""The Triton kernels of `attention`: D channels padded to DP, G heads of a group to GP."""

import triton
import triton.language as tl

from kv_compression.decode_graph.dependent_launch import after_previous, start_next
from kv_compression.decode_graph.table import COLUMNS, PLACE_COLUMNS

_COLUMNS, _PLACE_COLUMNS = tl.constexpr(COLUMNS), tl.constexpr(PLACE_COLUMNS)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _heads(
    states, head, is_head, cos, sin, gain, eps,
    D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """(heads, DP) float32: the vectors of the heads `head`, normalized and rotated."""
    place = tl.arange(0, DP)
    inside = is_head[:, None] & (place < D)[None, :]
    lines = states + head[:, None] * D
    x = tl.load(lines + place[None, :], mask=inside, other=0.0).to(tl.float32)
    if R > 0:
        partner = tl.where(place < R // 2, place + R // 2, place - R // 2)
        partner = tl.where(place < R, partner, place)
        other = tl.load(lines + partner[None, :], mask=inside, other=0.0).to(tl.float32)
        if NORM:
            root = tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)[:, None]
            x *= root * tl.load(gain + place, mask=place < D, other=0.0).to(tl.float32)[None, :]
            other *= root * tl.load(gain + partner, mask=place < D, other=0.0).to(tl.float32)[None]
        c = tl.load(cos + place, mask=place < R, other=1.0).to(tl.float32)[None, :]
        s = tl.load(sin + place, mask=place < R, other=0.0).to(tl.float32)[None, :]
        x = x * c + tl.where((place < R // 2)[None, :], -other, other) * s
    return x


@triton.jit
def _capped(scores, softcap, CAPPED: tl.constexpr):
    """softcap * tanh(scores / softcap), by the sigmoid, which every Triton has."""
    if CAPPED:
        scores = (2 * tl.sigmoid(2 * scores / softcap) - 1) * softcap
    return scores


@triton.jit
def _parts(splits, layer, pairs, pair):
    """The first program that works for a pair, and the one after its last."""
    known = splits + layer * (pairs + 1) + pair
    return tl.load(known), tl.load(known + 1)


@triton.jit
def _place_of_equal_heads(
    addresses, starts, layer, batch, row, head, stored, TYPE: tl.constexpr
):  # fmt: skip
    """A pair's keys, values, first token that is seen and newest one, `stored` tokens later."""
    known = addresses + layer * _COLUMNS
    keys = tl.load(known).to(tl.pointer_type(TYPE))
    values = tl.load(known + 1).to(tl.pointer_type(TYPE))
    row_stride, head_stride = tl.load(known + 2), tl.load(known + 3)
    newest = (tl.load(known + 4) + stored).to(tl.int32)
    window = tl.load(known + 5)
    first = tl.maximum(tl.load(starts + layer * batch + row), newest + 1 - window).to(tl.int32)
    # Storage is allocated in whole vectors and strides are multiples of D.
    keys = tl.multiple_of(keys, 16) + row * tl.multiple_of(row_stride, 16)
    values = tl.multiple_of(values, 16) + row * tl.multiple_of(row_stride, 16)
    keys += head * tl.multiple_of(head_stride, 16)
    values += head * tl.multiple_of(head_stride, 16)
    return keys, values, first, newest


@triton.jit
def _place(places, layer, pairs, pair, stored, TYPE: tl.constexpr):
    """The same of a pair that has a place of its own."""
    known = places + (layer * pairs + pair) * _PLACE_COLUMNS
    keys = tl.multiple_of(tl.load(known).to(tl.pointer_type(TYPE)), 16)
    values = tl.multiple_of(tl.load(known + 1).to(tl.pointer_type(TYPE)), 16)
    newest = (tl.load(known + 3) + stored).to(tl.int32)
    first = tl.maximum(tl.load(known + 2), newest + 1 - tl.load(known + 4)).to(tl.int32)
    return keys, values, first, newest


@triton.jit(do_not_specialize=["layer", "parts"])
def attend_part(  # noqa: PLR0915
    q, k, v, q_stride, k_stride, v_stride, cos, sin, q_gain, k_gain, eps, scaling,
    softcap, addresses, starts, places, splits, owners, added, layer, part_out, part_max, part_sum,
    batch, parts, pairs, most_heads,
    RAGGED: tl.constexpr, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    NORM: tl.constexpr, CAPPED: tl.constexpr, DP: tl.constexpr, GP: tl.constexpr, BN: tl.constexpr,
    TYPE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One part of one key/value head: its output, not yet divided, its maximum and its sum.

    parts: of a pair; where heads differ, of all pairs that `owners` has room for.
    """
    # The table does not change within a step, nor do the tokens stored before it.
    stored, program = tl.load(added), tl.program_id(0)
    if RAGGED:
        pair = tl.load(owners + layer * parts + program)
        row, head = pair // most_heads, pair % most_heads
        keys, values, first, newest = _place(places, layer, pairs, pair, stored, TYPE)
        part, end_of_pair = _parts(splits, layer, pairs, pair)
        part, parts = program - part, end_of_pair - part
    else:
        row, head, part = program // H, program % H, tl.program_id(1)
        keys, values, first, newest = _place_of_equal_heads(
            addresses, starts, layer, batch, row, head, stored, TYPE
        )

    g, d = tl.arange(0, GP), tl.arange(0, DP)
    cos += row * R
    sin += row * R
    after_previous(PDL)
    q_heads = head * G + g
    query = _heads(q + row * q_stride, q_heads, g < G, cos, sin, q_gain, eps, D, DP, R, NORM)
    query = query.to(TYPE)
    best = tl.full([GP], -float("inf"), tl.float32)
    total = tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DP], tl.float32)
    blocks = tl.cdiv(newest + 1 - first, BN)
    begin = first + part * blocks // parts * BN
    end = tl.minimum(first + (part + 1) * blocks // parts * BN, newest)
    for at in range(begin, end, BN):
        index = at + tl.arange(0, BN)
        inside = (index < end)[:, None] & (d < D)[None, :]
        place = index[:, None] * D + d[None, :]
        key = tl.load(keys + place, mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
        scores = _capped(scores, softcap, CAPPED) * _LOG2_E
        scores = tl.where((index < end)[None, :], scores, -float("inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        value = tl.load(values + place, mask=inside, other=0.0)
        acc = tl.dot(weights.to(TYPE), value, acc * shrink[:, None], input_precision="ieee")
        best = higher
    if part == parts - 1:
        one = tl.zeros([1], tl.int32)
        new_key = _heads(
            k + row * k_stride, one + head, one == 0, cos, sin, k_gain, eps, D, DP, R, NORM
        ).to(TYPE)
        new_value = tl.load(v + row * v_stride + head * D + d, mask=d < D, other=0.0)
        place = newest.to(tl.int64) * D + d
        tl.store(keys + place[None, :], new_key, mask=(d < D)[None, :])
        tl.store(values + place, new_value, mask=d < D)
        score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32), axis=1)
        score = _capped(score * scaling, softcap, CAPPED) * _LOG2_E
        higher = tl.maximum(best, score)
        weight, shrink = tl.exp2(score - higher), tl.exp2(best - higher)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + weight[:, None] * new_value.to(tl.float32)[None, :]
        best = higher
    start_next(PDL)
    line = program * G + g if RAGGED else (row * H * G + q_heads) * parts + part
    tl.store(part_max + line, best, mask=g < G)
    tl.store(part_sum + line, total, mask=g < G)
    inside = (g < G)[:, None] & (d < D)[None, :]
    tl.store(part_out + line[:, None] * D + d[None, :], acc, mask=inside)


@triton.jit
def merge_parts(
    part_out, part_max, part_sum, sinks, out, heads,
    D: tl.constexpr, DP: tl.constexpr, PARTS: tl.constexpr, PARTS_P: tl.constexpr,
    SINKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One query head: its parts, and its sink, weighted by their log-sum-exp."""
    after_previous(PDL)
    head = tl.program_id(0)
    part, d = tl.arange(0, PARTS_P), tl.arange(0, DP)
    line = head * PARTS + part
    best = tl.load(part_max + line, mask=part < PARTS, other=-float("inf"))
    total = tl.load(part_sum + line, mask=part < PARTS, other=0.0)
    highest, of_sink = tl.max(best, axis=0), 0.0
    if SINKS:
        sink = tl.load(sinks + head % heads).to(tl.float32) * _LOG2_E
        highest = tl.maximum(highest, sink)
        of_sink = tl.exp2(sink - highest)
    weight = tl.exp2(best - highest)
    inside = (part < PARTS)[:, None] & (d < D)[None, :]
    parts = tl.load(part_out + line[:, None] * D + d[None, :], mask=inside, other=0.0)
    start_next(PDL)
    merged = tl.sum(parts * weight[:, None], axis=0) / (tl.sum(total * weight, axis=0) + of_sink)
    tl.store(out + head * D + d, merged.to(out.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=["layer"])
def merge_ragged_parts(
    part_out, part_max, part_sum, sinks, out, splits, layer, pairs, heads, query_heads,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PARTS: tl.constexpr,
    SINKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same where pairs have different numbers of parts, PARTS at a time."""
    row, head = tl.program_id(0) // query_heads, tl.program_id(0) % query_heads
    begin, end = _parts(splits, layer, pairs, row * heads + head // G)
    d = tl.arange(0, DP)
    highest, divisor = -float("inf"), 0.0
    if SINKS:
        highest, divisor = tl.load(sinks + head).to(tl.float32) * _LOG2_E, 1.0
    merged = tl.zeros([DP], tl.float32)
    after_previous(PDL)
    for at in range(begin, end, PARTS):
        part = at + tl.arange(0, PARTS)
        line = part * G + head % G
        best = tl.load(part_max + line, mask=part < end, other=-float("inf"))
        total = tl.load(part_sum + line, mask=part < end, other=0.0)
        inside = (part < end)[:, None] & (d < D)[None, :]
        outputs = tl.load(part_out + line[:, None] * D + d[None, :], mask=inside, other=0.0)
        higher = tl.maximum(highest, tl.max(best, axis=0))
        # The last part of a pair is never empty, others may be.
        shrink = tl.where(highest == -float("inf"), 0.0, tl.exp2(highest - higher))
        weight = tl.where(best == -float("inf"), 0.0, tl.exp2(best - higher))
        divisor = divisor * shrink + tl.sum(total * weight, axis=0)
        merged = merged * shrink + tl.sum(outputs * weight[:, None], axis=0)
        highest = higher
    start_next(PDL)
    place = tl.program_id(0) * D + d
    tl.store(out + place, (merged / divisor).to(out.dtype.element_ty), mask=d < D)
