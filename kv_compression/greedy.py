"""Greedy tokens out of logits: which one is next, and where an answer ends."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch


def most_probable(logits: torch.Tensor) -> tuple[torch.Tensor, list[list[int]]]:
    """Most probable token of each row of (B, V), and on the host with whether logits are NaN."""
    highest, next_token = logits.max(dim=-1)  # a NaN is above everything
    # One transfer for both: each waits for the device.
    return next_token, torch.stack([next_token, highest.isnan()], dim=1).tolist()


def eager_steps(
    step: Callable[[torch.Tensor], torch.Tensor], next_token: torch.Tensor
) -> Iterator[list[list[int]]]:
    """For each step and row its token and whether its logits are NaN; `step` is a forward."""
    while True:
        next_token, known = most_probable(step(next_token[:, None]))
        yield known


def answers_of(
    steps: Iterator[list[list[int]]],
    first_tokens: Sequence[int],
    max_new_tokens: int,
    stop_tokens: Collection[int],
    on_tokens: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:
    """Each row's tokens, from its first one to a stop token or the last one allowed."""
    answers = [[token] for token in first_tokens]
    if on_tokens:
        on_tokens(list(first_tokens))
    for place in range(2, max_new_tokens + 1):
        if all(answer[-1] in stop_tokens for answer in answers):
            break
        tokens = checked(next(steps), place)
        if on_tokens:
            on_tokens(tokens)
        for answer, token in zip(answers, tokens, strict=True):
            if answer[-1] not in stop_tokens:
                answer.append(token)
    return answers


def checked(known: list[list[int]], place: int) -> list[int]:
    """Each row's token. Raises FloatingPointError for NaN, which has no most probable token."""
    if any(is_nan for _, is_nan in known):
        raise FloatingPointError(f"the model's logits are NaN at new token {place}")
    return [token for token, _ in known]


def log_probs(logits: torch.Tensor, tokens: Sequence[int]) -> list[list[float]]:
    """Log-probabilities of `tokens` in each row of (B, V), in float32; nothing is done for none."""
    if not tokens:
        return [[] for _ in logits]
    return logits.float().log_softmax(dim=-1)[:, list(tokens)].tolist()
