"""The kernels of a decode step against the memory bandwidth: which tile is best?

    python benchmarks/decode_kernels.py

Times each projection of a Mistral-7B layer with every tile of a list, and attention over stored
caches with every way to share out their tokens, as 32 launches of a CUDA graph over weights and
caches that together are many times the L2 cache. `kv_compression/decode_graph/` takes its
choices from here.
"""

import argparse
import itertools
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from benchmarks import _measure, _report
from benchmarks._report import Lines, Report, Row
from kv_compression.decode_graph.table import LayerTable
from kv_compression.decode_graph.weights import Weight
from kv_compression.layer import PrunedLayer
from kv_compression.storage import Storage
from longctx.errors import CannotRunError

if TYPE_CHECKING:
    # Triton comes with torch for CUDA alone.
    from kv_compression.decode_graph.linear import Tile

Measured = TypeVar("Measured")

_LAUNCHES = 32
_SHARED_BYTES = 220_000  # of a multiprocessor, for the tiles in flight
_HIDDEN, _WIDE, _HEADS, _KV_HEADS, _HEAD_DIM = 4096, 14336, 32, 8, 128
_KV_DIM = _KV_HEADS * _HEAD_DIM
# A product's weights by their output features, its input features, and what else its kernel does.
_PRODUCTS = {
    "qkv": ((_HIDDEN, _KV_DIM, _KV_DIM), _HIDDEN, ("norm",)),
    "out": ((_HIDDEN,), _HIDDEN, ("residual",)),
    "gate_up": ((_WIDE, _WIDE), _HIDDEN, ("norm", "gated")),
    "down": ((_HIDDEN,), _WIDE, ("residual",)),
    "head": ((32768,), _HIDDEN, ()),
}


def weight(kind: str, out_features: int, in_features: int, device: str) -> Weight:
    """Random weights of one kind; their values do not matter here, but they are no zeros."""
    shape, count = (out_features, in_features), out_features * in_features
    if kind == "4bit":
        data = torch.randint(0, 256, (count // 2, 1), dtype=torch.uint8, device=device)
        scale = torch.randint(0, 256, (count // 64,), dtype=torch.uint8, device=device)
        nested = torch.rand(count // 64 // 256, device=device)
        offset = torch.rand((), device=device)
        code, nested_code = torch.randn(16, device=device), torch.randn(256, device=device)
        return Weight(kind, *shape, data, None, scale, nested, offset, code, nested_code)
    if kind == "int8":
        data = torch.randint(-127, 128, shape, device=device).to(torch.int8)
        scale = torch.rand(out_features, device=device)
    else:
        data = scale = torch.randn(shape, dtype=torch.bfloat16, device=device)
    return Weight(kind, *shape, data, None, scale, None, scale, scale, scale)


def product(
    name: str, kind: str, rows: int, device: str
) -> tuple[Callable[..., torch.Tensor], int]:
    """A function (launch, tile) that computes the product `name`, and the bytes that it reads."""
    from kv_compression.decode_graph.linear import linear

    outs, in_features, parts = _PRODUCTS[name]
    copies = max(2, -(-600_000_000 // (sum(outs) * in_features)))
    sets = [tuple(weight(kind, n, in_features, device) for n in outs) for _ in range(copies)]
    x = torch.randn(rows, in_features, dtype=torch.bfloat16, device=device)
    norm = torch.rand(in_features, device=device).to(torch.bfloat16)
    residual = torch.randn(rows, outs[0], dtype=torch.bfloat16, device=device)
    known: dict[str, Any] = {"norm": norm, "residual": residual, "gated": True}
    options = {part: known[part] for part in parts}

    def run(launch: int, tile: "Tile") -> torch.Tensor:
        return linear(x, sets[launch % copies], eps=1e-5, tile=tile, **options)

    read = {tensor.data_ptr(): tensor.nbytes for one in sets[0] for tensor in one.tensors()}
    return run, sum(read.values())


def tiles(kind: str, rows: int) -> "Iterator[Tile]":
    """The tiles that are tried."""
    from kv_compression.decode_graph.linear import Tile

    if rows == 1:
        sizes = [(4, 1024), (4, 2048), (4, 4096), (2, 4096), (8, 512), (8, 1024)]
        if kind == "4bit":
            sizes = [(8, 512), (8, 1024), (16, 512), (16, 1024), (32, 512), (16, 2048), (4, 2048)]
        for (n, k), warps in itertools.product(sizes, (4, 8)):
            yield Tile(n, k, warps, 2)
    elif kind == "4bit":
        for (n, k), warps in itertools.product([(8, 512), (16, 512), (16, 256), (8, 1024)], (4, 8)):
            yield Tile(n, k, warps, 2)
    else:
        sizes = [(16, 256), (16, 512), (32, 128), (32, 256), (64, 128)]
        for (n, k), warps, stages in itertools.product(sizes, (4,), (3, 4, 5)):
            if n * k * stages * (1 if kind == "int8" else 2) < 180_000:
                yield Tile(n, k, warps, stages)


def milliseconds(run: Callable[[int], Any], repeats: int = 5) -> float:
    """Median time of one of `_LAUNCHES` launches in a graph."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in range(_LAUNCHES):
            run(launch)
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / _LAUNCHES)
    return statistics.median(times)


def of_tiles(
    name: str, kind: str, rows: int, measure: Callable[[Callable[[int], Any]], Measured]
) -> tuple[dict[str, Measured], int]:
    """What `measure` finds of a product with each tile that fits, and the bytes that it reads."""
    run, read = product(name, kind, rows, "cuda")
    found = {}
    for tile in tiles(kind, rows):
        try:
            found[str(tile)] = measure(partial(run, tile=tile))
        except Exception as error:  # a tile that does not fit is no candidate
            print(name, kind, rows, tile, type(error).__name__, file=sys.stderr, flush=True)
    return found, read


def compile_tiles(case: tuple[str, str, int]) -> None:
    """Fill Triton's cache for a product, in a process of its own."""
    of_tiles(*case, lambda run: run(0))
    torch.cuda.synchronize()


def fastest(read_bytes: int, timed: dict[str, float], limits: Row) -> Row:
    """A case's row: the fastest choice, and the times of all."""
    best = min(timed, key=timed.__getitem__)
    limit_ms = _measure.bandwidth_ms(read_bytes, limits)
    return {
        "choice": best,
        "us": timed[best] * 1e3,
        "over_limit": timed[best] / limit_ms,
        "us_of_choices": {choice: ms * 1e3 for choice, ms in timed.items()},
    }


def measure_product(name: str, kind: str, rows: int, limits: Row) -> Row:
    """The time of a product with each tile."""
    timed, read = of_tiles(name, kind, rows, milliseconds)
    return fastest(read, timed, limits)


def measure_attention(rows: int, stored: int, limits: Row) -> Row:
    """The time of attention with each way to share out the stored tokens."""
    from kv_compression.decode_graph.attention import HeadTransform, WorkSplit, attend

    copies = 2 if rows == 8 else 8
    shape = (rows, _KV_HEADS, stored + 8, _HEAD_DIM)
    caches = [torch.randn(2, *shape, dtype=torch.bfloat16, device="cuda") for _ in range(copies)]
    layers: Any = []
    for cache in caches:
        layer = PrunedLayer()
        layer.keys, layer.values = cache.unbind()
        layer.storage = Storage(layer.keys, layer.values, stored + 8)
        layer.storage.append(layer.keys[:, :, :stored], layer.values[:, :, :stored], None)
        layers.append(layer)
    table = LayerTable.of(layers)
    qkv = torch.randn(rows, _HIDDEN + 2 * _KV_DIM, dtype=torch.bfloat16, device="cuda")
    q, k, v = qkv.split([_HIDDEN, _KV_DIM, _KV_DIM], dim=1)
    transform = HeadTransform(*torch.randn(2, rows, _HEAD_DIM, dtype=torch.bfloat16, device="cuda"))
    options: dict[str, Any] = {"head_dim": _HEAD_DIM, "scaling": 0.088, "transform": transform}

    def attended(launch: int, split: WorkSplit) -> torch.Tensor:
        return attend(q, k, v, table, launch % copies, split=split, **options)

    timed = {}
    for tokens, programs, stages in itertools.product((32, 64, 128), (1, 2, 3, 4), (2, 3, 4)):
        if tokens * _HEAD_DIM * 4 * stages * programs <= _SHARED_BYTES:
            split = WorkSplit(tokens, programs, num_stages=stages)
            timed[str(split)] = milliseconds(partial(attended, split=split))
    return fastest(4 * rows * _KV_DIM * stored, timed, limits)


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Compile in parallel, then measure every case. Raises CannotRunError without a GPU."""
    if not torch.cuda.is_available():
        raise CannotRunError("the kernels need a CUDA GPU")
    cases = [
        (name, kind, rows)
        for kind in arguments.kinds
        for rows in arguments.rows
        for name in _PRODUCTS
        if kind == "float" or name != "head"
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        pool.map(compile_tiles, cases, chunksize=1)
    for rows, stored in itertools.product(arguments.rows, (8192, 32768)):
        case = {"what": f"attention, {stored:,} tokens", "kind": "bfloat16", "rows": rows}
        report.add(case, partial(measure_attention, rows, stored, report.limits))
    for name, kind, rows in cases:
        case = {"what": name, "kind": kind, "rows": rows}
        report.add(case, partial(measure_product, name, kind, rows, report.limits))


def lines(written: Row) -> Lines:
    """A line for each case."""
    return [
        ("kernel", "weights", "rows", "us", "over limit", "choice"),
        *(
            [
                row["what"],
                row["kind"],
                f"{row['rows']}",
                *_report.cells(row, ("us", 1), ("over_limit", 2)),
                row.get("choice") or _report.note(row),
            ]
            for row in written["rows"]
        ),
    ]


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = _report.parser(__doc__, "decode_kernels")
    parser.add_argument("--kinds", type=_report.names, default=["float", "int8", "4bit"])
    parser.add_argument("--rows", type=_report.numbers, default=[1, 8])
    parser.add_argument("--processes", type=int, default=8, help="that compile")
    _report.main(parser, run, lines)


if __name__ == "__main__":
    main()
