"""What works with the families of models that people run; docs/models.md is what is found here.

`python -m tests.test_families` writes that table.
"""

import copy
import itertools
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from transformers import BitsAndBytesConfig, logging

from kv_compression import attention, decode_graph, methods
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.generation import generate
from kv_compression.layer_kinds import layer_kinds
from kv_compression.methods import method_class
from kv_compression.pruning import Pruning
from tests import oracle
from tests.families import FAMILIES, config_of, tiny
from tests.models import batch

pytestmark = pytest.mark.model

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
COLUMNS = (
    *("full cache", "pruned", "question apart", "layered", "int8 cache", "4-bit weights"),
    *("captured step", "backends", "methods"),
)
YES = "yes"
LENGTHS, QUESTIONS = (23, 9, 16, 2), (4, 2, 3, 1)
NEW_TOKENS = 6


def l2(keep_ratio):
    return Pruning(method_class("l2")(), keep_ratio, prune_after=0)


def l2_where_it_can(name, keep_ratio):
    """None for models all of whose layers have windows."""
    is_full = any(kind.is_full for kind in layer_kinds(config_of(name)))
    return l2(keep_ratio) if is_full else None


@cache
def loaded(name):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return tiny(name)


@cache
def expected(name, rows):
    """Of the request of so many rows."""
    input_ids, mask, _ = next(mine for mine in requests() if len(mine[0]) == rows)
    model = loaded(name)
    model.set_attn_implementation("eager")
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    output = model.generate(input_ids, attention_mask=mask, **options)
    return output[:, input_ids.shape[1] :].tolist()


def found(name, input_ids, mask, **options):
    options = {"backend": "eager", "max_new_tokens": NEW_TOKENS} | options
    return generate(loaded(name), input_ids, mask, **options).new_tokens


def requests():
    """One prompt and four unequal ones, and the questions at their ends."""
    for rows in (1, 4):
        yield *batch(LENGTHS[:rows], vocab_size=256), QUESTIONS[:rows]


def full_cache(name):
    for (input_ids, mask, _), pruning in itertools.product(
        requests(), (None, l2_where_it_can(name, 1.0))
    ):
        assert found(name, input_ids, mask, pruning=pruning) == expected(name, len(mask))


def pruned(name, question=0):
    """Half the cache against a model without one, whose masks hide what was pruned."""
    for seed in range(5):
        input_ids, _ = batch([21], seed=seed, vocab_size=256)
        (answer,) = found(
            name, input_ids, None, pruning=l2(0.5), question_tokens=[question] if question else None
        )
        try:
            model = tiny(name)
            assert answer == oracle.family_tokens(model, input_ids, answer, 21 - question, 0.5)
        except oracle.Undecided:
            continue
        return
    raise AssertionError("rounding decided five times")


def question_apart(name):
    for input_ids, mask, questions in requests():
        pruning = l2_where_it_can(name, 1.0)
        answers = found(name, input_ids, mask, pruning=pruning, question_tokens=questions)
        assert answers == expected(name, len(mask))
    if l2_where_it_can(name, 0.5):
        pruned(name, question=4)


def layered(name):
    for input_ids, mask, questions in requests():
        for question_tokens in (None, questions):
            pruning = l2_where_it_can(name, 0.5)
            options = {"question_tokens": question_tokens, "pruning": pruning}
            whole = found(name, input_ids, mask, **options)
            assert found(name, input_ids, mask, prefill_chunk=5 * len(mask), **options) == whole


def int8_cache(name):
    for input_ids, mask, _ in requests():
        stored = generate(
            loaded(name), input_ids, mask, backend="eager", max_new_tokens=2, kv_bits=8
        )
        plain = generate(loaded(name), input_ids, mask, backend="eager", max_new_tokens=2)
        assert [row[0] for row in stored.new_tokens] == [row[0] for row in plain.new_tokens]
        assert stored.cache_bytes.full < plain.cache_bytes.full
        assert stored.cache_bytes.window == plain.cache_bytes.window


def four_bit_weights(name):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    plain = loaded(name)
    model = type(plain).from_pretrained(
        None, config=copy.deepcopy(plain.config), state_dict=plain.state_dict(), dtype="float32",
        quantization_config=config, device_map="cpu",
    )  # fmt: skip
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    for layer in layers:
        # Where a processor has AVX512-BF16 its products take none but whole blocks of 64 channels.
        layer.support_avx512bf16_for_cpu = False
    input_ids, mask, _ = list(requests())[1]
    answers = generate(model, input_ids, mask, backend="eager", max_new_tokens=3).new_tokens
    assert layers
    output = model.generate(
        input_ids, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    assert answers == output[:, input_ids.shape[1] :].tolist()


def captured_step(name):
    """Proved on a GPU, below."""
    if problem := decode_graph.reason_model_unsupported(loaded(name), batch=1):
        raise ValueError(problem)
    found(name, batch([5], vocab_size=256)[0], None, max_new_tokens=1)


PROOFS = {
    "full cache": full_cache,
    "pruned": pruned,
    "question apart": question_apart,
    "layered": layered,
    "int8 cache": int8_cache,
    "4-bit weights": four_bit_weights,
    "captured step": captured_step,
}


def backends(name):
    """The backends that give the same tokens; the one that needs a GPU goes by its features."""
    input_ids, mask, _ = next(iter(requests()))
    works = ["eager"]
    for backend in ("sdpa", "flex"):
        try:
            answers = found(name, input_ids, mask, backend=backend)
        except NotImplementedError:
            continue
        assert answers == expected(name, len(mask))
        works.append(backend)
    # What the package flash-attn does besides is not counted on.
    asked = Counter(kind.window is not None for kind in layer_kinds(config_of(name)))
    needs = {"window"} if asked[True] else set()
    needs |= {"softcap"} if getattr(loaded(name).config, "attn_logit_softcapping", None) else set()
    if needs <= attention.features(attention.backend("flash2")):
        works.append("flash2")
    return ", ".join(sorted(works))


def usable_methods(name):
    refused = {
        method
        for method in methods.names()
        if methods.reason_unsupported(method_class(method)(), loaded(name))
    }
    input_ids, mask, _ = list(requests())[1]
    if l2_where_it_can(name, 0.5) is None:
        return "none"
    for method in set(methods.names()) - refused:
        found(name, input_ids, mask, pruning=Pruning(method_class(method)(), 0.5, prune_after=0))
    return f"all but {', '.join(sorted(refused))}" if refused else "all"


def row_of(name):
    """What is found for a family: a cell for each column, the reason where it is refused."""
    row = {}
    for column, proof in PROOFS.items():
        try:
            proof(name)
            row[column] = YES
        except (ValueError, NotImplementedError) as error:
            row[column] = str(error)
    works = row["full cache"] == YES
    row["backends"] = backends(name) if works else ""
    row["methods"] = usable_methods(name) if works else ""
    return row


def documented():
    """The rows of docs/models.md."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    notes = dict(line[2:].split(": ", 1) for line in lines if line.startswith("- "))
    rows = {}
    for line in lines:
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for name in names.replace("`", "").split(", "):
            if name in FAMILIES:
                told = zip(COLUMNS, cells, strict=True)
                rows[name] = {column: notes.get(cell, cell) for column, cell in told}
    return rows


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_does_what_the_page_says(name):
    assert row_of(name) == documented()[name]


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_captured_steps_give_the_tokens_of_the_eager_loop(name, exact_products):
    if (problem := documented()[name]["captured step"]) != YES:
        pytest.skip(problem)
    model = tiny(name).cuda()
    graphs = DecodeGraphs(model)
    for input_ids, mask, _ in requests():
        for pruning in (None, l2_where_it_can(name, 0.5)):
            options = {"backend": "eager", "max_new_tokens": 12, "pruning": pruning}
            eager = generate(model, input_ids, mask, **options)
            step = generate(model, input_ids, mask, graphs=graphs, **options)
            assert step.new_tokens == eager.new_tokens
            assert step.decode_mode == "graph"


def page(rows):
    """The table, a line for all families with the same cells, with a note for each reason."""
    reasons = {
        cell: None
        for row in rows.values()
        for column, cell in row.items()
        if column in PROOFS and cell != YES
    }
    numbers = {reason: f"{number}" for number, reason in enumerate(reasons, 1)}
    alike = {}
    for name, row in rows.items():
        cells = tuple(numbers.get(row[column], row[column]) for column in COLUMNS)
        alike.setdefault(cells, []).append(f"`{name}`")
    yield "| families | " + " | ".join(COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for cells, names in alike.items():
        yield "| " + " | ".join([", ".join(names), *cells]) + " |"
    yield ""
    yield from (f"- {number}: {reason}" for reason, number in numbers.items())


if __name__ == "__main__":
    head = PAGE.read_text(encoding="utf-8").partition("| families")[0]
    PAGE.write_text(
        head + "\n".join(page({name: row_of(name) for name in FAMILIES})) + "\n", encoding="utf-8"
    )
