"""Weights: the files they may come from, and whether the model then has all of its own."""

import gc
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from longctx.console import notice
from longctx.errors import SettingError
from longctx.settings import Settings

_NAMED = 3  # names of tensors or files in one message
_LAYER = re.compile(r"(\D*\.)?(\d+)\.")


@dataclass(frozen=True)
class Loading:
    """How a model was loaded.

    unused: names of the tensors in its files that the model has no place for.
    """

    seconds: float
    unused: tuple[str, ...] = ()

    def meta(self) -> dict[str, Any]:
        """What results say of it. A model that misses weights is not loaded at all."""
        return {
            "n_missing": 0,
            "n_unexpected": len(self.unused),
            "unexpected": list(self.unused[:_NAMED]),
        }


def free_memory() -> None:
    """Let go what an earlier run in this process has left to the collector.

    It would be counted in this run's memory.
    """
    gc.collect()
    torch.cuda.empty_cache()


def check_index(settings: Settings, path: str, config: PreTrainedConfig) -> None:
    """Raises SettingError for an index of weights that leads elsewhere, to pickles or to nothing.

    path: the model's folder or hub id. Transformers would read whatever file an index names.
    """
    named = getattr(config, "transformers_weights", None)
    kinds = [(SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)]
    if not settings.use_safetensors:
        kinds.append((WEIGHTS_NAME, WEIGHTS_INDEX_NAME))
    if named is not None:
        kinds = [("", named)] if str(named).endswith(".index.json") else []
    for whole, index in kinds:
        if whole and (Path(path) / whole).is_file():
            return  # is read first
        file = _index_file(path, index, config)
        if file is not None:
            _check_names(settings, file, Path(path))
            return


def _index_file(path: str, index: str, config: PreTrainedConfig) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / index
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(path, index, revision=getattr(config, "_commit_hash", None)))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None


def _check_names(settings: Settings, file: Path, folder: Path) -> None:
    def refuse(problem: str) -> None:
        raise SettingError("MODEL_ID", settings.model_id, f"{file.name} {problem}")

    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        names = {str(name) for name in index["weight_map"].values()}
        index["metadata"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingError(
            "MODEL_ID", settings.model_id, f"{file.name} is no index of weights"
        ) from None
    outside = [n for n in names if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
    if outside:
        refuse(f"names files outside of the model's folder: {few(outside)}")
    pickles = [name for name in names if not name.endswith(".safetensors")]
    if pickles and settings.use_safetensors:
        refuse(f"names files that are no safetensors: {few(pickles)}; USE_SAFETENSORS=false")
    absent = [name for name in names if folder.is_dir() and not (folder / name).is_file()]
    if absent:
        refuse(f"names files that are not there: {few(absent)}")


@contextmanager
def quiet_report() -> Iterator[None]:
    """Without transformers' table of missing and unexpected weights: `check_loaded` speaks."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def check_loaded(
    model_id: str, model: PreTrainedModel, info: Mapping[str, Collection[Any]]
) -> tuple[str, ...]:
    """The names of tensors that were not used, with a notice where there are any.

    info: what `from_pretrained` gives for `output_loading_info`; what the model's class declares
        tied or ignorable is left out there. Raises SettingError for weights that would be random,
        and for those of parts that the model has and would run without.
    """
    missing, unused = sorted(info["missing_keys"]), tuple(sorted(info["unexpected_keys"]))
    problem = ""
    if missing:
        problem = f"its files lack {few(missing)}"
    elif info["mismatched_keys"]:
        shapes = [
            f"{name} {'x'.join(map(str, theirs))} for {'x'.join(map(str, ours))}"
            for name, theirs, ours in sorted(info["mismatched_keys"])
        ]
        problem = f"its files have other shapes than its config.json: {few(shapes)}"
    elif needed := [name for name in unused if _is_needed(name, model)]:
        problem = f"its config.json has no place for {few(needed)}"
    if problem:
        rest = f", and hold {few(unused)} in no place" if missing and unused else ""
        raise SettingError(
            "MODEL_ID", model_id, f"{problem}{rest}; files and config.json do not belong together"
        )
    if unused:
        notice(f"{model_id} does without {few(unused)} of its files")
    return unused


def _is_needed(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor without a place belongs to what the model runs.

    That is, to a layer after its last one, or to a module that has other weights, such as a bias or
    the scale of 8-bit weights. Not so the vision tower or the prediction head that a class leaves
    out. Of a quantized model, transformers has renamed the tensors.
    """
    prefix = f"{model.base_model_prefix}."
    if (layer := _LAYER.match(name)) is not None:
        layers = [
            int(own[2])
            for weight, _ in model.named_parameters()
            if (own := _LAYER.match(weight)) and own[1] in (layer[1], f"{prefix}{layer[1] or ''}")
        ]
        predicting = getattr(model.config, "num_nextn_predict_layers", None) or 0
        if layers and int(layer[2]) > max(layers) + predicting:
            return True
    if getattr(model, "hf_quantizer", None) is not None:
        return False
    parent = name.rpartition(".")[0]
    modules = (
        module for place, module in model.named_modules() if place in (parent, prefix + parent)
    )
    return any(next(module.parameters(recurse=False), None) is not None for module in modules)


def few(names: Collection[str]) -> str:
    """The first of `names`, and how many there are."""
    first = ", ".join(sorted(names)[:_NAMED])
    return first if len(names) <= _NAMED else f"{first}, ... ({len(names)} in all)"
