"""Which setting to use: the pruned runs of a sweep against the full cache of the same settings.

A group is what can be laid side by side: one model's runs over the same samples under one
KV_SCOPE, at one context length or over all of them. Its answer is the smallest cache without a
seen loss, and the loss that can be excluded there.
"""

from dataclasses import dataclass

from longctx.paired import ScoreDifference

_SAME_SIZE = 1.01  # caches that differ by less are of one size


@dataclass(frozen=True)
class Choice:
    """A pruned run against the full cache.

    run: its place in the list of runs; of several lengths that of the longest.
    is_out_of_memory: whether it has no figures for that reason.
    method, kept: row and column of the table: the method, and the share or number of tokens kept.
    difference: of the group's score; None where it was not measured in both.
    lost_at: lengths of a group over all that show a loss by themselves.
    cache_gb, full_gb, decode_ms, full_decode_ms: the KV cache and a decode step of the run and of
        the full cache, at the group's longest length; None where not measured.
    """

    run: int
    method: str
    kept: str
    is_control: bool
    is_out_of_memory: bool
    difference: ScoreDifference | None
    lost_at: tuple[int, ...]
    cache_gb: float | None
    full_gb: float | None
    decode_ms: float | None
    full_decode_ms: float | None

    @property
    def name(self) -> str:
        """Method and what is kept."""
        return f"{self.method} {self.kept}"

    @property
    def shows_no_loss(self) -> bool:
        """Whether a loss was looked for and not seen, at any length."""
        difference = self.difference
        if difference is None or difference.interval is None or self.lost_at:
            return False
        return difference.seen >= 0

    @property
    def saved_gb(self) -> float | None:
        """What the KV cache holds less than the full one."""
        return _less(self.full_gb, self.cache_gb)

    @property
    def saved_ms(self) -> float | None:
        """How much less time a decode step took, in these two runs."""
        return _less(self.full_decode_ms, self.decode_ms)

    @property
    def share(self) -> float | None:
        """The KV cache's size over that of the full one."""
        return self.cache_gb / self.full_gb if self.cache_gb and self.full_gb else None


@dataclass(frozen=True)
class Group:
    """Runs that can be laid side by side.

    is_of_all_lengths: whether it is over all lengths of its runs, which may be a single one.

    data: DATASET_ID.
    settings: what the runs share, the format of the cache apart.
    lengths: context lengths in tokens; over several each sample counts once, by its mean.
    score: the name of the score that is compared.
    full: the place of the full cache's run in the list of runs.
    quality: mean score of the full cache; None where it has none.
    is_told: whether the full cache scores more than answers that know nothing, so that a loss could
        be seen at all.
    """

    task: str
    data: str
    model: str
    device: str
    settings: tuple[tuple[str, str], ...]
    lengths: tuple[int, ...]
    score: str
    full: int
    quality: float | None
    n: int
    is_told: bool
    is_of_all_lengths: bool
    choices: tuple[Choice, ...]

    @property
    def scope(self) -> str:
        """KV_SCOPE."""
        return dict(self.settings)["KV_SCOPE"]

    @property
    def runs(self) -> list[int]:
        """The places of all runs that it compares, the full cache's first."""
        return [self.full, *(choice.run for choice in self.choices)]

    @property
    def methods(self) -> list[str]:
        """Rows of the table: methods by name, then the controls."""
        rows = {choice.method: choice.is_control for choice in self.choices}
        return sorted(rows, key=lambda name: (rows[name], name))

    @property
    def kept(self) -> list[str]:
        """Columns of the table: shares from large to small, then numbers of tokens."""
        return sorted({choice.kept for choice in self.choices}, key=_largest_first)

    def at(self, method: str, kept: str) -> Choice | None:
        """The run of a row and column."""
        wanted = method, kept
        return next((c for c in self.choices if (c.method, c.kept) == wanted), None)

    def best(self) -> list[Choice]:
        """The smallest caches without a seen loss, of methods that are no controls.

        None where no loss could be seen. Several where caches are of one size: those of which the
        smallest loss is excluded come first.
        """
        good = [
            c
            for c in self.choices
            if self.is_told and c.shows_no_loss and not c.is_control and c.share is not None
        ]
        smallest = min((_size(choice) for choice in good), default=0.0)
        equal = [choice for choice in good if _size(choice) <= smallest * _SAME_SIZE]
        return sorted(equal, key=_excluded)

    def controls_without_loss(self) -> list[Choice]:
        """Controls as small as the best that show no loss either, so that no method is needed."""
        best = self.best()
        size = _size(best[0]) if best else 0.0
        return [
            c
            for c in self.choices
            if c.is_control and c.shows_no_loss and 0 < _size(c) <= size * _SAME_SIZE
        ]

    def telling(self) -> tuple[bool, bool, int, int]:
        """How much the group tells; larger tells more.

        Whether a loss could be seen at all, whether a setting shows none, how many settings can be
        told from the full cache, samples.
        """
        seen = sum(c.difference is not None and c.difference.seen != 0 for c in self.choices)
        return self.is_told, bool(self.best()), seen, self.n


def _largest_first(kept: str) -> tuple[bool, float]:
    return "tokens" in kept, -float(kept.partition(" ")[0].replace(",", ""))


def _size(choice: Choice) -> float:
    return choice.share or 0.0


def _excluded(choice: Choice) -> float:
    bound = choice.difference.excluded_loss if choice.difference else None
    return 1.0 if bound is None else bound


def _less(full: float | None, mine: float | None) -> float | None:
    return None if full is None or mine is None else full - mine
