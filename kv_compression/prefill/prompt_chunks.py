"""What of a padded batch is processed at once: whole prompts, or contexts, then questions."""

from collections.abc import Sequence

import torch


def padding_before(attention_mask: torch.Tensor) -> list[int]:
    """Number of padding tokens before each row's tokens; attention_mask (B, S), 0 for padding.

    Raises ValueError for a row without tokens and for padding that does not stand first.
    """
    mask = attention_mask.cpu().bool()
    left_padding: list[int] = (~mask).sum(dim=1).tolist()
    if any(start == mask.shape[1] for start in left_padding):
        raise ValueError("a prompt has no tokens")
    if any(not mask[row, start:].all() for row, start in enumerate(left_padding)):
        raise ValueError("pad prompts on the left: tokenizer.padding_side = 'left'")
    return left_padding


def split_questions(
    input_ids: torch.Tensor, left_padding: Sequence[int], question_tokens: Sequence[int]
) -> list[tuple[torch.Tensor, list[int]]]:
    """Contexts and questions of a padded batch, each a batch padded on the left of its own.

    input_ids (B, S), row b's tokens from left_padding[b] on, the last question_tokens[b] of them
    its question. Returns (tokens, padding of each row) of the contexts and of the questions. Raises
    ValueError unless every row has at least one token of each.
    """
    batch, padded_len = input_ids.shape
    if len(question_tokens) != batch:
        raise ValueError(f"question_tokens must name {batch} rows, not {len(question_tokens)}")
    contexts = [
        padded_len - start - question
        for start, question in zip(left_padding, question_tokens, strict=True)
    ]
    if min(question_tokens) < 1 or min(contexts) < 1:
        raise ValueError("every prompt needs at least one token of context and one of question")
    result = []
    for lengths, last in ((contexts, question_tokens), (question_tokens, [0] * batch)):
        longest = max(lengths)
        tokens = input_ids.new_zeros(batch, longest)
        for row, length in enumerate(lengths):
            end = padded_len - last[row]
            tokens[row, longest - length :] = input_ids[row, end - length : end]
        result.append((tokens, [longest - length for length in lengths]))
    return result


def prompt_chunks(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    question_tokens: Sequence[int] | None,
) -> list[tuple[torch.Tensor, list[int]]]:
    """Tokens and each row's padding, (B, S) each, of what is processed at once, in its order."""
    no_padding = [0] * input_ids.shape[0]
    left_padding = no_padding if attention_mask is None else padding_before(attention_mask)
    if question_tokens is None:
        return [(input_ids, left_padding)]
    return split_questions(input_ids, left_padding, question_tokens)


def prompt_lengths(chunks: Sequence[tuple[torch.Tensor, Sequence[int]]]) -> list[int]:
    """Tokens of each row's prompt, of what `prompt_chunks` returns."""
    per_chunk = [[tokens.shape[1] - before for before in padding] for tokens, padding in chunks]
    return [sum(lengths) for lengths in zip(*per_chunk, strict=True)]
