"""How a budget of tokens is shared out, one file each; the file's name is a value of KV_BUDGET.

A budget file defines `Budget`, a frozen dataclass whose fields are its parameters, as those of a
pruning method are. Scores are the method's; here it is said who competes for the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from kv_compression import plugins

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Budget(Protocol):
    """What a budget file's `Budget` provides."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass: its fields are its parameters

    @property
    def pool(self) -> str:
        """Whose tokens compete by their scores: those of a "head", a "layer" or the "model".

        Beyond "head", heads keep different numbers of tokens.
        """

    def of_layer(self, count: int, length: int, place: int, layers: int) -> int:
        """Tokens that each head of a layer keeps of `length`, on average.

        count: the same on average over layers; what layers keep adds up to `layers` times that.
        place: which of the `layers` that are pruned this is, from 0.
        """
        ...

    def guaranteed(self, count: int) -> int:
        """Tokens that every head keeps for certain of `count` on average, where heads compete."""
        ...


def reason_unsupported(budget: Budget, model: PreTrainedModel) -> str | None:
    """Why `budget` cannot share out a cache of `model`, in a few words; None where it can."""
    is_latent = getattr(model.config.get_text_config(), "kv_lora_rank", None) is not None
    if budget.pool == "head" or not is_latent:
        return None
    name = type(budget).__module__.rpartition(".")[2]
    return f"{name} tells heads apart, and {type(model).__name__} stores one latent for all of them"


def names() -> tuple[str, ...]:
    """Every budget's name."""
    return plugins.names(__name__)


def budget_class(name: str) -> type[Budget]:
    """The `Budget` class of the file `name`. Raises ValueError for an unknown name."""
    return plugins.load(__name__, name).Budget
