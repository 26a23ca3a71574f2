"""Do we answer RULER as NVIDIA's kvpress does, with the full cache and with half of it?

    python -m venv kvpress-env
    kvpress-env/bin/pip install torch kvpress==0.5.5 "transformers<5.3"
    python benchmarks/ruler_agreement.py --python kvpress-env/bin/python --model smollm2-135m

Both answer one file of our synthetic RULER, method by method: we with `PROTOCOL=kvpress python
ruler_eval.py`, kvpress with its own text-generation pipeline, in an environment of its own. Prints
and writes for each method how many answers are equal, both mean scores and their difference in
pairs; and for each answer that differs where it does, and how near kvpress's two best tokens are
there, in units of the dtype's rounding. An answer is `near` where that gap is rounding's and its
second token is ours; kvpress `went on` where its first token was one that ends an answer, at which
it does not look.

random and leverage draw other numbers there, and chunkkv keeps whole chunks there and begins one
here: of these three only scores can be compared. What is done already in --folder is not done
again.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Row = dict[str, Any]

KEEP_RATIO = 0.5
PRESSES = {
    "l2": "KnormPress",
    "keydiff": "KeyDiffPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
    "window": "StreamingLLMPress",
    "expected_attention": "ExpectedAttentionPress",
    "lagkv": "LagKVPress",
    "leverage": "LeverageScorePress",
    "chunkkv": "ChunkKVPress",
    "random": "RandomPress",
}
# A method, or method/budget. kvpress has pyramid too, but fails where layers differ in length.
CASES = ("none", *PRESSES, "snapkv/adakv", "expected_attention/adakv")
_NEAR = 4.0  # units of rounding: a gap that sums in another order can turn


def press_of(case: str) -> Any:
    """kvpress's press; None for the full cache."""
    import kvpress

    method, _, budget = case.partition("/")
    if method == "none":
        return None
    if method == "chunkkv":
        return kvpress.ChunkKVPress(kvpress.SnapKVPress(1 - KEEP_RATIO))
    press = getattr(kvpress, PRESSES[method])(1 - KEEP_RATIO)
    return kvpress.AdaKVPress(press) if budget else press


def oracle(job: Row) -> None:
    """kvpress's answers to the (id, case) in `todo`; runs in its environment.

    Each has its steps: the token made, the second best, and the gap between the two.
    """
    from transformers import pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, job["dtype"])
    options = {"dtype": dtype, "attn_implementation": "sdpa", "device_map": device}
    model = AutoModelForCausalLM.from_pretrained(job["model"], **options)
    press_of("l2")  # kvpress adds its pipeline when it is imported
    make: Any = pipeline
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    pipe = make("kv-press-text-generation", model=model, tokenizer=tokenizer)
    steps: list[tuple[int, int, float]] = []

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        gap, best, second = _two_best(output.logits[0, -1].float(), torch.finfo(dtype).eps)
        steps.append((best, second, gap))

    model.register_forward_hook(note)
    if job["ties"] == "earlier":
        torch.Tensor.topk = torch.topk = _topk  # type: ignore[assignment, method-assign]
    records = {record["id"]: record for record in _lines(job["data"])}
    with open(job["result"], "a", encoding="utf-8") as result:
        for sample_id, case in job["todo"]:
            steps.clear()
            record = records[sample_id]
            answer = pipe(
                record["context"],
                question=record["question"],
                answer_prefix=record["answer_prefix"],
                press=press_of(case),
                max_new_tokens=min(record["max_new_tokens"], job["max_new_tokens"]),
            )["answer"]
            row = {"id": sample_id, "case": case, "answer": answer, "steps": steps}
            print(json.dumps(row), file=result, flush=True)


def _two_best(logits: torch.Tensor, epsilon: float) -> tuple[float, int, int]:
    values, tokens = (part.tolist() for part in logits.topk(2))
    best = int(logits.argmax())  # of equal ones the one that kvpress takes
    second = tokens[0] if tokens[1] == best else tokens[1]
    return (values[0] - values[1]) / (epsilon * max(abs(values[0]), 1)), best, second


def _topk(self: torch.Tensor, k: int, dim: int = -1) -> Any:
    """torch's, but of equal values the first."""
    values, indices = self.sort(dim=dim, descending=True, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


def _lines(path: str | Path) -> list[Row]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_data(arguments: argparse.Namespace, environ: dict[str, str]) -> str:
    """Our synthetic RULER in --folder, unless it is there; where the model's files are."""
    import ruler_eval
    from longctx import config
    from longctx.shared_resources import SharedResources

    settings = config.read(ruler_eval.RulerSettings, environ | {"DATASET_ID": "synthetic"})[0]
    resources = SharedResources()
    source = resources.source(settings)
    if not arguments.data.exists():
        builder = resources.builder(ruler_eval.TASK, settings, source)

        def prompt_tokens(record: Row) -> int:
            return builder.whole_tokens(ruler_eval.sample(record, 0, settings).parts)

        records = ruler_eval.compose(settings, arguments.context, prompt_tokens)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        arguments.data.write_text(lines, encoding="utf-8")
    return str(source.path)


def our_samples(arguments: argparse.Namespace, environ: dict[str, str]) -> dict[str, list[Row]]:
    """Our samples of each case, from one run for each way to share out a budget."""
    found: dict[str, list[Row]] = {}
    by_budget: dict[str, list[str]] = {}
    for case in arguments.cases:
        method, _, budget = case.partition("/")
        by_budget.setdefault(budget or "uniform", []).append(method)
    for budget, methods in by_budget.items():
        logdir = arguments.folder / f"ours-{budget}"
        lists = {"KV_MODE": ",".join(methods), "KEEP_RATIO": str(KEEP_RATIO), "KV_BUDGET": budget}
        where = {"DATASET_ID": str(arguments.data), "LOGDIR": str(logdir), "SKIP_DONE": "1"}
        command = [sys.executable, str(Path(__file__).parents[1] / "ruler_eval.py")]
        subprocess.run(command, env=environ | lists | where, check=True)
        # Not by the readers of results: they change text that could harm a terminal.
        for path in sorted(logdir.glob("*_full.json")):
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            case = rows[0]["kv_mode"] if budget == "uniform" else f"{rows[0]['kv_mode']}/{budget}"
            found[case] = [sample for row in rows for sample in row["samples"]]
    return {case: found[case] for case in arguments.cases}


def their_rows(arguments: argparse.Namespace, model: str) -> dict[tuple[str, str], Row]:
    """kvpress's row of each (id, case), from several processes at once where any is missing."""

    def done() -> dict[tuple[str, str], Row]:
        rows = (row for path in arguments.folder.glob("theirs-*.jsonl") for row in _lines(path))
        return {(row["id"], row["case"]): row for row in rows}

    wanted = [(each["id"], case) for each in _lines(arguments.data) for case in arguments.cases]
    before = done()
    todo = [pair for pair in wanted if pair not in before]
    running = []
    for number in range(arguments.processes):
        job = {
            "model": model,
            "dtype": arguments.dtype,
            "ties": arguments.ties,
            "data": str(arguments.data),
            "max_new_tokens": arguments.max_new_tokens,
            "todo": todo[number :: arguments.processes],
            "result": str(arguments.folder / f"theirs-{number}.jsonl"),
        }
        if job["todo"]:
            path = arguments.folder / f"job-{number}.json"
            path.write_text(json.dumps(job), encoding="utf-8")
            running.append(subprocess.Popen([arguments.python, __file__, "--job", path]))
    failures = [process.wait() for process in running]
    if any(failures):
        sys.exit("error: kvpress failed, see above")
    return done()


def parting(tokenizer: Any, ours: str, row: Row, stop_tokens: frozenset[int]) -> Row:
    """Where an answer of ours leaves kvpress's `row`, and why that may be."""
    made = [step[0] for step in row["steps"]]

    def text(*tokens: int) -> str:
        # A character may be there in part.
        return text_of(tokenizer, tokens).rstrip("\N{REPLACEMENT CHARACTER}")

    unlike = (n for n in range(len(made)) if not ours.startswith(text(*made[: n + 1])))
    at = next(unlike, len(made) - 1)
    before = text(*made[:at])
    _, second, gap = row["steps"][at]
    is_second = second in stop_tokens if ours == before else ours.startswith(before + text(second))
    return {
        "id": row["id"],
        "token": at,
        "gap": round(gap, 2),
        "why": "went on"
        if made[0] in stop_tokens and not ours
        else "near"
        if gap <= _NEAR and is_second
        else "other",
        "ours": ours[len(before) :][:60],
        "theirs": text(*made[at : at + 20])[:60],
    }


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Decoded as ours is: other versions of transformers clean up what they decode."""
    return str(
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def compare(case: str, samples: list[Row], theirs: dict[tuple[str, str], Row], model: str) -> Row:
    """Equal answers, scores and differences of a case."""
    from transformers import GenerationConfig

    import ruler_eval
    from longctx import statistics as intervals

    tokenizer = AutoTokenizer.from_pretrained(model)
    declared = GenerationConfig.from_pretrained(model).eos_token_id
    stop_tokens = frozenset([declared] if isinstance(declared, int) else declared)
    scores, partings = [], []
    for sample in samples:
        row = theirs[sample["sample_id"], case]
        answers = [sample["output"], text_of(tokenizer, [made for made, _, _ in row["steps"]])]
        found = ruler_eval.score_of(sample)(answers, [sample["references"]] * 2)
        scores.append([each["string_match"] or 0.0 for each in found])
        if answers[0] != answers[1]:
            partings.append(parting(tokenizer, sample["output"], row, stop_tokens))
    mine, other = map(statistics.fmean, zip(*scores, strict=True))
    return {
        "case": case,
        "n": len(samples),
        "equal": len(samples) - len(partings),
        **{why: sum(p["why"] == why for p in partings) for why in ("near", "went on", "other")},
        "ours": mine,
        "theirs": other,
        "difference": mine - other,
        "interval": intervals.paired_interval([one - two for one, two in scores]),
        "partings": partings,
    }


def table(rows: list[Row]) -> str:
    """A line for each case."""
    names = ("n", "equal", "near", "went on", "other")
    head = "".join(f"{name:>8}" for name in (*names, "ours", "theirs", "diff"))
    lines = [f"{'case':25}{head}  95% interval"]
    for row in rows:
        counts = "".join(f"{row[name]:8}" for name in names)
        low, high = row["interval"] or (-1, 1)
        lines.append(
            f"{row['case']:25}{counts}{row['ours']:8.3f}{row['theirs']:8.3f}"
            f"{row['difference']:+8.3f}  [{low:+.3f}, {high:+.3f}]"
        )
    return "\n".join(lines)


def main() -> None:
    """Run both halves and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="Python of an environment with kvpress")
    parser.add_argument("--model", default="smollm2-135m", help="a MODEL_ID")
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--context", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--samples", type=int, default=26, help="of 13 tasks in turn")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--cases", type=lambda text: text.split(","), default=CASES)
    parser.add_argument(
        "--ties",
        default="any",
        choices=("any", "earlier"),
        help="of equally good tokens kvpress keeps what its topk takes, or as we do the earlier",
    )
    parser.add_argument("--processes", type=int, default=1, help="of kvpress at once")
    parser.add_argument("--folder", type=Path, default=Path("logs/ruler_agreement"))
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        oracle(json.loads(arguments.job.read_text(encoding="utf-8")))
        return

    arguments.folder.mkdir(parents=True, exist_ok=True)
    arguments.data = arguments.folder / "data.jsonl"
    environ = os.environ | {
        "MODEL_ID": arguments.model,
        "PROTOCOL": "kvpress",
        "CONTEXTS": str(arguments.context),
        "N_SAMPLES": str(arguments.samples),
        "MAX_NEW_TOKENS": str(arguments.max_new_tokens),
        "DTYPE": arguments.dtype,
    }
    model = write_data(arguments, environ)
    theirs = their_rows(arguments, model)
    ours = our_samples(arguments, environ)
    rows = [compare(case, samples, theirs, model) for case, samples in ours.items()]
    report = {"command": shlex.join(["python", *sys.argv]), "rows": rows}
    (arguments.folder / "agreement.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
