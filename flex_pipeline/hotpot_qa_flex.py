"""HotpotQA on FlexAttention, under a mask that other attention backends cannot compute.

`MASK_TYPE` chooses the mask, `MASK_WINDOW`, `MASK_SINKS`, `MASK_PREFIX` and `MASK_DILATION` its
sizes. The rest is `hotpotqa_eval.py`: prompts, scores, the loop and its clock. Beside time and
quality stands `block_sparsity_pct`: the share of dense causal attention's blocks that the mask
skips in prefill.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hotpotqa_eval
from flex_pipeline import masks
from longctx.cli import main
from longctx.config import variable
from longctx.errors import SettingError
from longctx.settings import NaturalInt, PositiveInt, redefault

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from flex_pipeline.masked_attention import MaskedFlex
    from flex_pipeline.patching import FlexPatch


def enable_flex_attention_dense_causal(model: "PreTrainedModel") -> "FlexPatch":
    """FlexAttention in a loaded model, as `flex_pipeline.patching` describes it."""
    from flex_pipeline import patching

    return patching.enable_flex_attention_dense_causal(model)


def _size(default: int, parameter: str, help: str) -> Any:
    """The variable of a mask's parameter; it has no effect with masks that do not take it."""
    users = [name for name in masks.FACTORIES if parameter in masks.parameters(name)]
    others = [name for name in masks.FACTORIES if name not in users]
    help = f"{help} (with MASK_TYPE={', '.join(users)})"
    return variable(
        default, help, group="attention", unused_when=("MASK_TYPE", *others), of="request"
    )


@dataclass(frozen=True)
class HotpotQAFlexSettings(hotpotqa_eval.HotpotQASettings):
    """HotpotQA's settings, and the mask's."""

    attn_impl: str = variable(
        "flex", "attention backend", group="attention", choices=("flex",), of="request"
    )
    logdir: str = redefault("logdir", os.path.relpath(Path(__file__).parent / "logs"))
    mask_type: str = variable(
        "causal",
        "which tokens a token sees besides itself",
        group="attention",
        choices=tuple(masks.FACTORIES),
        of="request",
    )
    mask_window: PositiveInt = _size(1024, "window", "tokens in the window, itself included")
    mask_sinks: NaturalInt = _size(4, "sinks", "first tokens that every token sees")
    mask_prefix: NaturalInt = _size(512, "prefix", "first tokens that see each other both ways")
    mask_dilation: PositiveInt = _size(2, "dilation", "distance between the window's tokens")


def attention(settings: HotpotQAFlexSettings) -> "MaskedFlex":
    """FlexAttention under the mask that the settings choose; SettingError for what excludes it."""
    from flex_pipeline.masked_attention import MaskedFlex

    if settings.kv_mode != "none":
        problem = "a mask counts positions, which a pruned cache has lost; leave it at none"
        raise SettingError("KV_MODE", settings.kv_mode, problem)
    if settings.kv_scope != "prompt":
        problem = "matters for pruning only, which masks exclude; leave it at prompt"
        raise SettingError("KV_SCOPE", settings.kv_scope, problem)
    if settings.prefill == "layered":
        problem = "masks are made for whole prefills; leave it at auto"
        raise SettingError("PREFILL", settings.prefill, problem)
    sizes = {
        name: getattr(settings, f"mask_{name}") for name in masks.parameters(settings.mask_type)
    }
    return MaskedFlex(masks.FACTORIES[settings.mask_type](**sizes))


TASK = replace(
    hotpotqa_eval.TASK,
    name="hotpot_qa_flex",
    settings=HotpotQAFlexSettings,
    attention=attention,
    script="flex_pipeline/hotpot_qa_flex.py",
)

if __name__ == "__main__":
    main(TASK, __doc__)
