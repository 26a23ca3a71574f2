"""What a layer must remember so that it can be pruned again while it decodes (`prune_every`)."""

from collections.abc import Callable, Sequence

import torch


class PruneAgain:
    """When each row was last pruned, and which of its tokens are left from then.

    most_tokens: given the length of a row's prompt and of all that it has seen, what may stay.
    prompt_lengths: tokens of each row's prompt, whose pruning counts as the first one.
    """

    def __init__(
        self, every: int, most_tokens: Callable[[int, int], int], prompt_lengths: Sequence[int]
    ):
        self._every, self._most_tokens = every, most_tokens
        self._prompt_lengths = list(prompt_lengths)
        self._pruned_at = list(prompt_lengths)
        self._kept: tuple[torch.Tensor, list[int]] | None = None

    def counts(self, stored: Sequence[int], seen: Sequence[int]) -> list[int]:
        """How many of each row's `stored` tokens stay, once it has seen `seen`."""
        counts = list(stored)
        for row, prompt_length in enumerate(self._prompt_lengths):
            if seen[row] - self._pruned_at[row] >= self._every:
                counts[row] = min(stored[row], self._most_tokens(prompt_length, seen[row]))
            if counts[row] < stored[row]:
                self._pruned_at[row] = seen[row]
        return counts

    def note(self, positions: torch.Tensor, index: torch.Tensor, seen: list[int]) -> None:
        """Note which tokens stay: `index` (B, H, S_kept) of those at `positions` (B, H or 1, S)."""
        self._kept = positions.expand(-1, index.shape[1], -1).gather(2, index), seen

    def corrected(
        self, positions: torch.Tensor, left_padding: Sequence[int], seen: Sequence[int]
    ) -> torch.Tensor:
        """True positions, (B, H or 1, S), of stored tokens, given them as if none had been removed.

        Tokens that came after the last pruning stand at the end, in every head alike.
        """
        if self._kept is None:
            return positions
        kept, seen_then = self._kept
        positions = positions.repeat(1, kept.shape[1], 1)
        for row, first in enumerate(left_padding):
            end = positions.shape[2] - (seen[row] - seen_then[row])
            positions[row, :, first:end] = kept[row, :, kept.shape[2] - (end - first) :]
        return positions

    def select_rows(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`, int64 (B_new,)."""
        rows = indices.tolist()
        self._prompt_lengths = [self._prompt_lengths[row] for row in rows]
        self._pruned_at = [self._pruned_at[row] for row in rows]
        if self._kept is not None:
            kept, seen = self._kept
            self._kept = kept[indices], [seen[row] for row in rows]
