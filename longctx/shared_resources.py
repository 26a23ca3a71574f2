"""What a run works with: tokenizer, samples, prompts and model, which runs of a process can share.

Making them takes longer than many a run: seconds for the model, and more for a hundred prompts out
of whole books.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from transformers import PreTrainedModel

from kv_compression import out_of_memory
from longctx import models, preflight, protocol
from longctx.errors import SettingError
from longctx.models import ModelSource
from longctx.prompts import PromptBuilder
from longctx.quantization import Quantization
from longctx.redaction import reason
from longctx.settings import Settings
from longctx.task import Sample, Task, samples_by_context
from longctx.weights import Loading, free_memory

Made = TypeVar("Made")


class SharedResources:
    """Makes what a run asks for, once for all runs that ask for the same.

    keeps_prompts: keep every prompt made, for the next run over the same samples. Of models only
    the last one is kept, so that two never share the memory.

    has_run: requests were made since a model was handed out; what they left is let go before the
        next run.
    """

    def __init__(self, *, keeps_prompts: bool = False):
        self._keeps_prompts = keeps_prompts
        self._made: dict[Any, Any] = {}
        self._models: dict[Any, tuple[PreTrainedModel, Loading]] = {}
        self.has_run = False

    def source(self, settings: Settings) -> ModelSource:
        """Tokenizer and config. Raises SettingError."""
        return self._once(("source", *_model(settings)), lambda: models.find(settings))

    def builder(self, task: Task, settings: Settings, source: ModelSource) -> PromptBuilder:
        """The builder of the task's prompts. Raises SettingError."""
        use_template = preflight.uses_chat_template(task, settings, source)
        is_kvpress = protocol.is_kvpress(settings)
        thinking = "off" if is_kvpress else settings.enable_thinking

        def make() -> PromptBuilder:
            builder = PromptBuilder(
                source.tokenizer,
                use_template,
                keeps_prompts=self._keeps_prompts,
                enable_thinking=None if thinking == "auto" else thinking == "on",
                reads_apart=is_kvpress,
            )
            preflight.note_thinking(settings, builder)
            return builder

        about = *_model(settings), use_template, thinking, is_kvpress
        return self._once(("builder", *about), make)

    def samples(
        self, task: Task, settings: Settings, builder: PromptBuilder
    ) -> dict[int, list[Sample]]:
        """Samples for each context length. Raises SettingError."""
        key = "samples", task.name, task.script, _values(settings, "samples")
        return self._once(key, lambda: samples_by_context(task, settings, builder))

    def _once(self, key: Any, make: Callable[[], Made]) -> Made:
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def model(
        self, settings: Settings, source: ModelSource, quantization: Quantization
    ) -> tuple[PreTrainedModel, Loading]:
        """The model, and how it was loaded. Raises SettingError."""
        seed = settings.seed if source.is_random else None
        key = _values(settings, "model"), quantization, seed
        if key in self._models:
            if self.has_run:
                free_memory()
                self.has_run = False
            return self._models[key]
        self._models.clear()
        try:
            self._models[key] = models.load(settings, source, quantization)
        except Exception as error:  # libraries have many names for a lack of memory
            cause = out_of_memory.cause(error)
            if cause is None:
                raise
            problem = (
                f"does not fit into memory ({reason(cause)}); QUANT_MODE, a smaller DTYPE or more "
                f"GPUs take less of each"
            )
        else:
            return self._models[key]
        # Outside the handler, where the error no longer holds the tensors.
        raise SettingError("MODEL_ID", settings.model_id, problem)


def _model(settings: Settings) -> tuple[str, str, bool]:
    return settings.model_id, settings.gguf_file, settings.trust_remote_code


def _values(settings: Settings, of: str) -> tuple[tuple[str, Any], ...]:
    """Names and values of the settings that `of` may depend on; see `config.variable`."""
    return tuple(
        (field.name, getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if field.metadata["changes_results"] and field.metadata["of"] in (of, None)
    )
