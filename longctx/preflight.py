"""What can be known to fail is found out before a model is loaded."""

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from kv_compression import attention
from kv_compression.pruning import Pruning
from longctx import protocol
from longctx.config import Environment
from longctx.console import notice
from longctx.distributed import Processes
from longctx.errors import CannotRunError, SettingError
from longctx.models import ModelSource
from longctx.prompts import PromptBuilder
from longctx.quantization import Quantization
from longctx.settings import Settings
from longctx.shapes import PLACEMENTS
from longctx.task import Sample, Task

_TRIAL_BYTES = 1_000_000


def choose_backend(settings: Settings, environ: Environment) -> Settings:
    """Without a GPU and without a wish, `sdpa`; a wish that cannot be met raises SettingError."""
    on_gpu = torch.cuda.is_available() and settings.device_map != "cpu"
    dtype = getattr(torch, settings.dtype)
    try:
        attention.backend(settings.attn_impl).check("cuda" if on_gpu else "cpu", dtype)
    except ValueError as error:
        if "ATTN_IMPL" in environ.is_set:
            raise SettingError(
                "ATTN_IMPL", settings.attn_impl, f"{error}; sdpa runs anywhere"
            ) from None
        notice(f"ATTN_IMPL=sdpa, since {error}")
        return replace(settings, attn_impl="sdpa")
    return settings


def check_machine(settings: Settings, quantization: Quantization) -> None:
    """Raises SettingError for what this machine or its packages cannot do."""
    _check_device(settings.device_map)
    if settings.decode == "graph" and (
        settings.device_map == "cpu" or not torch.cuda.is_available()
    ):
        raise SettingError("DECODE", "graph", "needs a CUDA GPU; auto and eager run anywhere")
    try:
        quantization.check()
    except ValueError as error:
        raise SettingError("QUANT_MODE", settings.quant_mode, str(error)) from None


def _check_device(device_map: str) -> None:
    """Raises SettingError for a place that is not here, or where nothing can run."""
    if device_map in (*PLACEMENTS, "cpu"):
        return
    if gpu := re.fullmatch(r"cuda(?::(\d+))?", device_map, re.ASCII):
        if not torch.cuda.is_available():
            raise SettingError("DEVICE_MAP", device_map, "there is no CUDA GPU here")
        count = torch.cuda.device_count()
        if int(gpu[1] or 0) >= count:
            raise SettingError("DEVICE_MAP", device_map, f"the GPUs here are cuda:0 to {count - 1}")
        return
    choices = ", ".join((*PLACEMENTS, "cpu", "cuda", "cuda:1"))
    raise SettingError("DEVICE_MAP", device_map, f"choose one of {choices}, ...")


def writable_folder(logdir: str) -> Path:
    """The folder for results, made and tried. Raises SettingError."""
    folder = Path(logdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A full disk takes an empty file, and says so at the latest when it must keep its word.
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"0" * _TRIAL_BYTES)
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        raise SettingError("LOGDIR", logdir, f"cannot be written: {error.strerror}") from None
    return folder


def pruning(settings: Settings, environ: Environment) -> Pruning | None:
    """What KV_MODE and its companions ask for. Raises SettingError."""
    if {"KEEP_TOKENS", "KEEP_RATIO"} <= environ.is_set:
        problem = "excludes KEEP_RATIO: set one of the two"
        raise SettingError("KEEP_TOKENS", settings.keep_tokens, problem)
    try:
        method = environ.method(settings.kv_mode)
    except ValueError as error:
        raise SettingError("KV_MODE", settings.kv_mode, str(error)) from None
    if method is None:
        return None
    try:
        budget = environ.budget(settings.kv_budget)
    except ValueError as error:
        raise SettingError("KV_BUDGET", settings.kv_budget, str(error)) from None
    if settings.prune_every is not None and budget.pool == "model":
        problem = f"excludes KV_BUDGET={settings.kv_budget}: layers compete for tokens once"
        raise SettingError("PRUNE_EVERY", settings.prune_every, problem)
    if settings.prune_every is not None and settings.kv_quant != "none":
        problem = f"excludes KV_QUANT={settings.kv_quant}: a quantized cache is not pruned again"
        raise SettingError("PRUNE_EVERY", settings.prune_every, problem)
    return Pruning(
        method,
        settings.keep_ratio,
        settings.prune_after,
        settings.skip_layers,
        settings.keep_tokens,
        settings.prune_every,
        "down" if protocol.is_kvpress(settings) else "up",
        budget,
    )


def placed(settings: Settings, workers: Processes) -> Settings:
    """With each of several processes on a GPU of its own. Raises SettingError."""
    if settings.tp_plan != "none":
        if workers.count == 1:
            raise SettingError(
                "TP_PLAN", settings.tp_plan, "needs torchrun, a process for each GPU"
            )
        if settings.model_id.startswith("random/"):
            raise SettingError("TP_PLAN", settings.tp_plan, "needs a model with weights to load")
    elif workers.count > 1 and settings.device_map == "auto" and torch.cuda.is_available():
        return replace(settings, device_map=f"cuda:{workers.local_rank}")
    return settings


def check_prefill(settings: Settings) -> None:
    """Raises SettingError for PREFILL=layered where it is known already that it cannot be.

    What the model itself rules out is found out by `tiny_model`.
    """
    if settings.prefill == "layered" and settings.tp_plan != "none":
        problem = "needs a model that is not divided among processes; leave TP_PLAN at none"
        raise SettingError("PREFILL", "layered", problem)


def uses_chat_template(task: Task, settings: Settings, source: ModelSource) -> bool:
    """Whether prompts stand in the tokenizer's chat template. Raises SettingError."""
    has_template = bool(source.tokenizer.chat_template)
    if settings.chat_template == "on" and not has_template:
        raise SettingError("CHAT_TEMPLATE", "on", f"{settings.model_id} has no chat template")
    needs_turn = task.needs_chat_turn or protocol.is_kvpress(settings)
    prefers_raw = source.prefers_raw_prompts and not needs_turn
    return settings.chat_template == "on" or (
        settings.chat_template == "auto" and has_template and not prefers_raw
    )


def note_thinking(settings: Settings, builder: PromptBuilder) -> None:
    """Say where ENABLE_THINKING reaches nobody; without a template by wish it is said already."""
    thinking = settings.enable_thinking
    if thinking == "auto" or settings.chat_template == "off" or builder.reads_thinking:
        return
    why = "its chat template does not read it" if builder.chat_template else "its prompts are raw"
    notice(f"ENABLE_THINKING={thinking} has no effect on {settings.model_id}: {why}")


def choice_tokens(
    task: Task, settings: Settings, builder: PromptBuilder, sample: Sample
) -> dict[str, int]:
    """The tokens of the answers that are compared; empty where answers are generated.

    sample: any one; all have the same start of the answer. Raises SettingError.
    """
    tokens: dict[str, int] = {}
    for answer in task.compared_answers(settings):
        token = builder.answer_token(sample.parts, answer)
        if token is None or token in tokens.values():
            problem = (
                f"is not a token of its own after {sample.parts.answer_start!r} in this tokenizer"
            )
            raise SettingError(
                "MODEL_ID", settings.model_id, f"{answer!r} {problem}; use ANSWER_MODE=generate"
            )
        tokens[answer] = token
    if tokens and settings.kv_mode != "none" and settings.kv_scope == "prompt":
        notice(
            "with KV_SCOPE=prompt the first new token comes from the full cache, and no other is "
            "read: pruning cannot show; KV_SCOPE=context makes it count"
        )
    return tokens


def check_tokens(
    settings: Settings, source: ModelSource, builder: PromptBuilder, sample: Sample
) -> None:
    """Raises SettingError where the model does not know the tokenizer's tokens of a prompt."""
    words = source.config.get_text_config().vocab_size
    prompt = builder.build(sample.parts, min(settings.contexts), "head")
    highest = max(prompt.input_ids) if prompt is not None else 0
    if not source.is_random and highest >= words:
        problem = f"its tokenizer makes token {highest}, its config.json knows {words}"
        raise SettingError("MODEL_ID", settings.model_id, f"{problem}: they do not belong together")


def check_scores(task: Task) -> None:
    """Raises CannotRunError for what would be missing after the first answer."""
    try:
        task.check_scores()
    except (RuntimeError, ImportError) as error:
        raise CannotRunError(str(error)) from None
