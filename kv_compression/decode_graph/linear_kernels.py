"""The Triton kernels of `linear`: M is rows of x padded to a tile, n are rows of the weight."""

import triton
import triton.language as tl

from kv_compression.decode_graph.dependent_launch import after_previous, start_next
from kv_compression.decode_graph.weights import BLOCK, KINDS, NESTED_BLOCK

_INT8 = tl.constexpr(KINDS.index("int8"))
_BLOCK = tl.constexpr(BLOCK)
_NESTED_BLOCK = tl.constexpr(NESTED_BLOCK)


@triton.jit
def normalize(x, gain, out, eps, K: tl.constexpr, KP: tl.constexpr, PDL: tl.constexpr):
    """RMSNorm of one row of x, rounded as the model rounds it."""
    after_previous(PDL)
    row, k = tl.program_id(0), tl.arange(0, KP)
    xs = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    xs *= tl.rsqrt(tl.sum(xs * xs, axis=0) / K + eps)
    xs = xs.to(out.dtype.element_ty).to(tl.float32)
    xs *= tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
    start_next(PDL)
    tl.store(out + row * K + k, xs.to(out.dtype.element_ty), mask=k < K)


@triton.jit
def _tile(lines, first, is_row, K: tl.constexpr, BK: tl.constexpr):
    """Columns `first` and on of a weight's rows, (BN, BK); zeros beyond the last."""
    ks = first + tl.arange(0, BK)
    return tl.load(
        lines + ks[None, :],
        mask=is_row[:, None] & (ks < K)[None, :],
        other=0.0,
        eviction_policy="evict_first",
    )


@triton.jit
def _product_of_row(
    x, norm, weight, n, is_row,
    K: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows `n` of a float or int8 weight times one row of x, (BN, 1), and its square, (1,).

    The weight is read one tile ahead, so at first before x is there.
    """
    lines = weight + n[:, None].to(tl.int64) * K
    acc = tl.zeros([BN, BK], tl.float32)
    squares = tl.zeros([BK], tl.float32)
    tile = _tile(lines, 0, is_row, K, BK)
    after_previous(PDL)
    for first in range(0, K, BK):
        ks = first + tl.arange(0, BK)
        xs = tl.load(x + ks, mask=ks < K, other=0.0).to(tl.float32)
        if NORM:
            squares += xs * xs
            xs *= tl.load(norm + ks, mask=ks < K, other=0.0).to(tl.float32)
        acc += tile.to(tl.float32) * xs[None, :]
        tile = _tile(lines, first + BK, is_row, K, BK)
    return tl.sum(acc, axis=1)[:, None], tl.sum(squares[None, :], axis=1)


@triton.jit
def _product_of_rows(
    x, weight, n, is_row, rows,
    K: tl.constexpr, PDL: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same for M rows of x, (BN, M), by the tensor cores."""
    m = tl.arange(0, M)
    lines = weight + n[:, None].to(tl.int64) * K
    dot = tl.zeros([BN, M], tl.float32)
    after_previous(PDL)
    for first in range(0, K, BK):
        ks = first + tl.arange(0, BK)
        inside = ks < K
        xs = tl.load(
            x + m[None, :] * K + ks[:, None], mask=(m < rows)[None, :] & inside[:, None], other=0.0
        )
        tile = _tile(lines, first, is_row, K, BK)
        dot = tl.dot(tile.to(xs.dtype), xs, dot, input_precision="ieee")
    return dot


@triton.jit
def _numbers_of_codes(word, table, code, QUICK: tl.constexpr):
    """The eight numbers, float32, that a word of 4-bit codes stands for.

    A byte's high half comes first. QUICK looks bfloat16 numbers up in registers: `table` holds
    their high and low bytes, of which `prmt` picks four at a time.
    """
    if QUICK:
        high_0, high_1, high_2, high_3, low_0, low_1, low_2, low_3 = table
        pair_0, pair_1, pair_2, pair_3 = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 s, k, m, a, b, h, l;
            and.b32 s, $4, 0x77777777;
            shr.b32 k, $4, 3;
            and.b32 k, k, 0x11111111;
            prmt.b32 m, 0x0000FF00, 0, k;
            prmt.b32 a, $5, $6, s;
            prmt.b32 b, $7, $8, s;
            lop3.b32 h, m, b, a, 0xCA;
            prmt.b32 a, $9, $10, s;
            prmt.b32 b, $11, $12, s;
            lop3.b32 l, m, b, a, 0xCA;
            prmt.b32 $0, l, h, 0x4051;
            prmt.b32 $1, l, h, 0x6273;
            shr.b32 s, s, 16;
            shr.b32 k, k, 16;
            prmt.b32 m, 0x0000FF00, 0, k;
            prmt.b32 a, $5, $6, s;
            prmt.b32 b, $7, $8, s;
            lop3.b32 h, m, b, a, 0xCA;
            prmt.b32 a, $9, $10, s;
            prmt.b32 b, $11, $12, s;
            lop3.b32 l, m, b, a, 0xCA;
            prmt.b32 $2, l, h, 0x4051;
            prmt.b32 $3, l, h, 0x6273;
            }
            """,
            "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r",
            [word, high_0, high_1, high_2, high_3, low_0, low_1, low_2, low_3],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
        n_0, n_1 = _two(pair_0)
        n_2, n_3 = _two(pair_1)
        n_4, n_5 = _two(pair_2)
        n_6, n_7 = _two(pair_3)
    else:
        n_0, n_1 = tl.load(code + ((word >> 4) & 15)), tl.load(code + (word & 15))
        n_2, n_3 = tl.load(code + ((word >> 12) & 15)), tl.load(code + ((word >> 8) & 15))
        n_4, n_5 = tl.load(code + ((word >> 20) & 15)), tl.load(code + ((word >> 16) & 15))
        n_6, n_7 = tl.load(code + ((word >> 28) & 15)), tl.load(code + ((word >> 24) & 15))
    return n_0, n_1, n_2, n_3, n_4, n_5, n_6, n_7


@triton.jit
def _two(pair):
    """Two bfloat16 numbers of a word as float32, the low one first."""
    return (pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _columns(x, place, inside, QUICK: tl.constexpr):
    """Eight neighbours of a vector, from `place` on, each of place's shape and float32."""
    if QUICK:
        words = x.to(tl.pointer_type(tl.int32)) + place // 2
        x_0, x_1 = _two(tl.load(words, mask=inside, other=0))
        x_2, x_3 = _two(tl.load(words + 1, mask=inside, other=0))
        x_4, x_5 = _two(tl.load(words + 2, mask=inside, other=0))
        x_6, x_7 = _two(tl.load(words + 3, mask=inside, other=0))
    else:
        x_0 = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        x_1 = tl.load(x + place + 1, mask=inside, other=0.0).to(tl.float32)
        x_2 = tl.load(x + place + 2, mask=inside, other=0.0).to(tl.float32)
        x_3 = tl.load(x + place + 3, mask=inside, other=0.0).to(tl.float32)
        x_4 = tl.load(x + place + 4, mask=inside, other=0.0).to(tl.float32)
        x_5 = tl.load(x + place + 5, mask=inside, other=0.0).to(tl.float32)
        x_6 = tl.load(x + place + 6, mask=inside, other=0.0).to(tl.float32)
        x_7 = tl.load(x + place + 7, mask=inside, other=0.0).to(tl.float32)
    return x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7


@triton.jit
def _product_of_4bit(
    x, norm, weight, scale, nested, offset, table, code, nested_code, n, is_row,
    rows: tl.constexpr, K: tl.constexpr, NESTED: tl.constexpr, NORM: tl.constexpr,
    QUICK: tl.constexpr, PDL: tl.constexpr,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same for a 4-bit weight, (BN, M), and the square of one row of x, (1,)."""
    blocks: tl.constexpr = BK // _BLOCK
    m, eight = tl.arange(0, M), tl.arange(0, _BLOCK // 8)
    lines = weight.to(tl.pointer_type(tl.int32)) + n[:, None, None].to(tl.int64) * (K // 8)
    lines = lines + eight[None, None, :]
    if NESTED:
        least = tl.load(offset)
    acc = tl.zeros([BN, blocks, M], tl.float32)
    squares = tl.zeros([blocks, _BLOCK // 8], tl.float32)
    after_previous(PDL)
    for first in range(0, K // _BLOCK, blocks):
        block = first + tl.arange(0, blocks)
        inside = block < K // _BLOCK
        word = tl.load(
            lines + block[None, :, None] * (_BLOCK // 8),
            mask=is_row[:, None, None] & inside[None, :, None],
            other=0,
            eviction_policy="evict_first",
        )
        n_0, n_1, n_2, n_3, n_4, n_5, n_6, n_7 = _numbers_of_codes(word, table, code, QUICK)
        index = n[:, None].to(tl.int64) * (K // _BLOCK) + block[None, :]
        known = is_row[:, None] & inside[None, :]
        if NESTED:
            place = tl.load(scale + index, mask=known, other=0).to(tl.int32)
            step = tl.load(nested + index // _NESTED_BLOCK, mask=known, other=0.0)
            scales = tl.load(nested_code + place) * step + least
        else:
            scales = tl.load(scale + index, mask=known, other=0.0)
        column = block[:, None] * _BLOCK + eight[None, :] * 8
        for row in tl.static_range(rows):
            x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7 = _columns(
                x + row * K, column, inside[:, None], QUICK
            )
            if NORM:
                squares += x_0 * x_0 + x_1 * x_1 + x_2 * x_2 + x_3 * x_3
                squares += x_4 * x_4 + x_5 * x_5 + x_6 * x_6 + x_7 * x_7
                g_0, g_1, g_2, g_3, g_4, g_5, g_6, g_7 = _columns(
                    norm, column, inside[:, None], QUICK
                )
                x_0, x_1, x_2, x_3 = x_0 * g_0, x_1 * g_1, x_2 * g_2, x_3 * g_3
                x_4, x_5, x_6, x_7 = x_4 * g_4, x_5 * g_5, x_6 * g_6, x_7 * g_7
            each = n_0 * x_0[None] + n_1 * x_1[None] + n_2 * x_2[None] + n_3 * x_3[None]
            each += n_4 * x_4[None] + n_5 * x_5[None] + n_6 * x_6[None] + n_7 * x_7[None]
            part = tl.sum(each, axis=2) * scales
            acc += tl.where((m == row)[None, None, :], part[:, :, None], 0.0)
    square = tl.sum(tl.sum(squares, axis=1)[None, :], axis=1)
    return tl.sum(acc, axis=1), square


@triton.jit
def _product(
    x, norm, eps, weight, scale, nested, offset, bias, table, code, nested_code, n, out_features,
    rows: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, NESTED: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, QUICK: tl.constexpr, PDL: tl.constexpr,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(BN, M) float32: the normalized rows of x times the rows `n` of a weight, and the bias."""
    is_row = n < out_features
    if KIND > _INT8:
        dot, square = _product_of_4bit(
            x, norm, weight, scale, nested, offset, table, code, nested_code, n, is_row, rows,
            K, NESTED, NORM, QUICK, PDL, M, BN, BK,
        )  # fmt: skip
    elif M == 1:
        dot, square = _product_of_row(x, norm, weight, n, is_row, K, NORM, PDL, BN, BK)
    else:
        dot = _product_of_rows(x, weight, n, is_row, rows, K, PDL, M, BN, BK)
    if NORM:
        dot *= tl.rsqrt(square / K + eps)[None, :]
    if KIND == _INT8:
        dot *= (tl.load(scale + n, mask=is_row, other=0.0) / 127.0)[:, None]
    if BIAS:
        dot += tl.load(bias + n, mask=is_row, other=0.0).to(tl.float32)[:, None]
    return dot


@triton.jit
def project(
    x, norm, eps, out, residual, table, code, nested_code,
    weight_0, scale_0, nested_0, offset_0, bias_0,
    weight_1, scale_1, nested_1, offset_1, bias_1,
    weight_2, scale_2, nested_2, offset_2, bias_2,
    rows: tl.constexpr,
    N_0: tl.constexpr, N_1: tl.constexpr, N_2: tl.constexpr, K: tl.constexpr,
    KIND: tl.constexpr, NESTED: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
    GATED: tl.constexpr, RESIDUAL: tl.constexpr, QUICK: tl.constexpr, PDL: tl.constexpr,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out (rows, N_0 + N_1 + N_2): x times the weights, one after the other, in tiles of BN.

    GATED: out (rows, N_0) is SiLU(x weight_0) * (x weight_1).
    """
    tile = tl.program_id(0)
    weight, scale, nested, offset, bias = weight_0, scale_0, nested_0, offset_0, bias_0
    out_features, column = N_0, 0
    if not GATED:
        if tile >= tl.cdiv(N_0, BN) + tl.cdiv(N_1, BN):
            tile -= tl.cdiv(N_0, BN) + tl.cdiv(N_1, BN)
            weight, scale, nested, offset, bias = weight_2, scale_2, nested_2, offset_2, bias_2
            out_features, column = N_2, N_0 + N_1
        elif tile >= tl.cdiv(N_0, BN):
            tile -= tl.cdiv(N_0, BN)
            weight, scale, nested, offset, bias = weight_1, scale_1, nested_1, offset_1, bias_1
            out_features, column = N_1, N_0
    n = tile * BN + tl.arange(0, BN)
    dot = _product(
        x, norm, eps, weight, scale, nested, offset, bias, table, code, nested_code, n,
        out_features, rows, K, KIND, NESTED, NORM, BIAS, QUICK, PDL, M, BN, BK,
    )  # fmt: skip
    if GATED:
        up = _product(
            x, norm, eps, weight_1, scale_1, nested_1, offset_1, bias_1, table, code, nested_code,
            n, N_1, rows, K, KIND, NESTED, NORM, BIAS, QUICK, PDL, M, BN, BK,
        )  # fmt: skip
        dot = dot * tl.sigmoid(dot) * up
    start_next(PDL)
    m = tl.arange(0, M)
    width = N_0 if GATED else N_0 + N_1 + N_2
    place = m[None, :] * width + column + n[:, None]
    inside = (m < rows)[None, :] & (n < out_features)[:, None]
    if RESIDUAL:
        dot += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, dot.to(out.dtype.element_ty), mask=inside)
