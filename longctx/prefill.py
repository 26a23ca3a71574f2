"""PREFILL: whole prefills, or one layer at a time over chunks of rows."""

from transformers import PreTrainedModel

from kv_compression.prefill import layered
from longctx.config import SettingError
from longctx.models import ModelSource
from longctx.settings import Settings

# With fewer rows a whole prefill needs little more memory, and chunks only cost time.
_LEAST_CHUNKS = 2
# Larger chunks are faster; of very long prompts they would be a larger part of the peak than that
# is worth (`benchmarks/prefill.py`).
_CHUNK, _CHUNK_OF_LONG, _LONG = 6144, 3072, 65536


def check(settings: Settings, source: ModelSource) -> None:
    """Raises SettingError for PREFILL=layered where it is known already that it cannot be."""
    if settings.prefill != "layered":
        return
    if settings.tp_plan != "none":
        _refuse("needs a model that is not divided among processes; leave TP_PLAN at none")
    if source.config.model_type not in layered.MODEL_TYPES:
        known = ", ".join(layered.MODEL_TYPES)
        _refuse(f"a {source.config.model_type} model is none of the model types {known}")


def check_model(settings: Settings, model: PreTrainedModel) -> None:
    """Raises SettingError for PREFILL=layered and a model as loaded that cannot be prefilled so."""
    if settings.prefill == "layered" and (obstacle := layered.reason_unsupported(model)):
        _refuse(obstacle)


def chunk_rows(settings: Settings, model: PreTrainedModel, rows: int) -> int | None:
    """Rows of a chunk for a request of `rows` prompt tokens, padding included; None for whole.

    `auto` goes by layers on a GPU, where prompts are long and the model allows it.
    """
    chunk = settings.prefill_chunk or (_CHUNK if rows <= _LONG else _CHUNK_OF_LONG)
    if settings.prefill == "auto":
        is_long = rows > _LEAST_CHUNKS * chunk
        if not is_long or model.device.type != "cuda" or layered.reason_unsupported(model):
            return None
    return None if settings.prefill == "whole" else chunk


def _refuse(problem: str) -> None:
    raise SettingError("PREFILL", "layered", problem)
