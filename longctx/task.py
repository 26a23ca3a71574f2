"""What a script says about its data set, and its samples for each context length."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from kv_compression.attention import Backend
from longctx import data
from longctx.console import notice
from longctx.errors import SettingError
from longctx.prompts import ContextTooShortError, PromptBuilder, PromptParts
from longctx.records import RecordError
from longctx.settings import Settings

# (seed, count, document_tokens, count_tokens) -> records in a data set's schema
Synthesize = Callable[[int, int, int, Callable[[str], int]], list[dict[str, Any]]]
# (settings, context_tokens, prompt_tokens) -> the same, of prompts filled to their last token;
# prompt_tokens: a record -> tokens of its whole prompt
Compose = Callable[[Any, int, Callable[[dict[str, Any]], int]], list[dict[str, Any]]]
# predictions and their references -> scores by name, one dict a sample
Score = Callable[[Sequence[str], Sequence[Sequence[str]]], list[dict[str, float | None]]]


@dataclass(frozen=True)
class Sample:
    """One question of a data set.

    evidence: texts of the document that the answer rests on; empty where the data set names none.
    choices: the answers to choose from, by letter; empty where the answer is free.
    extra: goes into the results as it is.
    question: what is asked, in the results; empty stands for all that is behind the document.
    """

    sample_id: str
    parts: PromptParts
    references: list[str]
    evidence: list[str] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    question: str = ""

    @property
    def asked(self) -> str:
        """The question as the results have it."""
        return self.question or self.parts.after.strip()

    @property
    def document_id(self) -> str | None:
        """16 hex digits that samples about the same whole document share; None of an empty one."""
        text = self.parts.document.encode(errors="surrogatepass")
        return hashlib.sha256(text).hexdigest()[:16] if text else None


class ReportingBackend(Backend, Protocol):
    """An attention backend that has something to say about each request."""

    def figures(self) -> dict[str, float]:
        """Figures of the last request, for its row in the results."""


@dataclass(frozen=True)
class Task:
    """What a script says about its data set; the rest is the harness's.

    settings: the script's Settings class.
    sample: a record of the data set, its number and the settings -> a Sample. RecordError,
        KeyError, TypeError, ValueError, IndexError and AttributeError mean that the record is not
        of the data set's schema.
    synthesize: what writes the records of each DATASET_ID that the project writes itself.
    compose: the same for records that differ in what they take beside their document. Raises
        ValueError for a context that is too short.
    ordered: settings and all records of a data set -> those that N_SAMPLES takes the first of;
        None for all as they are.
    answer: the model's text, its sample and whether the prompt was raw -> the prediction, empty
        for none.
    score: predictions and their references -> scores by name, one dict a sample.
    score_of: a sample in the results -> the `score` of such samples; None where all have the same.
    score_names: the names, in the order of the tables. The others that `score` gives are left out.
    data_scores: settings and samples -> names of scores that stand before `score_names` for such
        data; none for most.
    score_texts: whole texts, as the official script scores them, and their references -> scores
        by other names, which are among `score_names` too.
    check_scores: raises when a score could not be computed later.
    needs_chat_turn: the prompt is an instruction, which a model may not answer at all unless it
        stands in a chat turn: CHAT_TEMPLATE=auto then goes by the tokenizer alone.
    groups: fields of the results' samples by whose values scores are reported too.
    attention: settings -> the backend in place of the one that ATTN_IMPL names. Raises SettingError
        for settings that it cannot meet.
    script: where the script is, from the project's root; None stands for `{name}_eval.py`.
    chance: the score `em` that guessing would give; None where it cannot be known.
    compared_answers: settings -> answers of which the most probable one after the prompt is the
        prediction, so that nothing is generated; none to generate.
    example: a record as JSON, shown where one is not of the schema.
    """

    name: str
    settings: type[Settings]
    sample: Callable[[dict[str, Any], int, Any], Sample]
    synthesize: Mapping[str, Synthesize]
    answer: Callable[[str, Sample, bool], str]
    score: Score
    score_names: tuple[str, ...]
    compose: Mapping[str, Compose] = field(default_factory=dict)
    ordered: Callable[[Any, Iterator[data.Record]], Iterable[data.Record]] | None = None
    score_of: Callable[[Mapping[str, Any]], Score] | None = None
    data_scores: Callable[[Any, Sequence[Sample]], tuple[str, ...]] = lambda *_: ()
    score_texts: Score | None = None
    check_scores: Callable[[], None] = lambda: None
    needs_chat_turn: bool = False
    groups: tuple[str, ...] = ()
    attention: Callable[[Any], ReportingBackend] | None = None
    script: str | None = None
    chance: float | None = None
    compared_answers: Callable[[Any], tuple[str, ...]] = lambda _settings: ()
    example: str = ""

    def for_data(self, settings: Settings, samples: Sequence[Sample]) -> "Task":
        """The task with the scores that these samples are reported by."""
        return replace(self, score_names=(*self.data_scores(settings, samples), *self.score_names))

    def scores(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        samples: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, float | None]]:
        """`score` of each, or what `score_of` says of its sample in the results."""
        if self.score_of is None:
            return self.score(predictions, references)
        rows = zip(predictions, references, samples, strict=True)
        return [self.score_of(sample)([mine], [known])[0] for mine, known, sample in rows]


def samples_by_context(
    task: Task, settings: Settings, builder: PromptBuilder
) -> dict[int, list[Sample]]:
    """Samples for each context length; only synthetic documents differ between lengths."""
    if compose := task.compose.get(settings.dataset_id):
        return {
            length: _parse(task, settings, _composed(task, settings, builder, compose, length))
            for length in settings.contexts
        }
    records_of = task.synthesize.get(settings.dataset_id)
    if records_of is None:
        return _read(task, settings, builder)

    def synthesize(document_tokens: int) -> list[Sample]:
        records = records_of(
            settings.seed, settings.n_samples, document_tokens, builder.count_tokens
        )
        return _parse(task, settings, records)

    longest_question = _check_contexts(settings, builder, synthesize(0))
    return {length: synthesize(length - longest_question) for length in settings.contexts}


def _composed(
    task: Task, settings: Settings, builder: PromptBuilder, compose: Compose, context_tokens: int
) -> list[data.Record]:
    def prompt_tokens(record: data.Record) -> int:
        return builder.whole_tokens(task.sample(record, 0, settings).parts)

    try:
        return compose(settings, context_tokens, prompt_tokens)
    except ValueError as error:
        raise SettingError("CONTEXTS", context_tokens, str(error)) from None


def _read(task: Task, settings: Settings, builder: PromptBuilder) -> dict[int, list[Sample]]:
    """Samples of a hub data set or a file, the same for all lengths unless `{context}` is there."""
    config = settings.dataset_config
    by_config: dict[str | None, list[Sample]] = {}
    found = {}
    for length in settings.contexts:
        mine = config and config.replace("{context}", str(length))
        if mine not in by_config:
            of_length = replace(settings, dataset_config=mine)
            by_config[mine] = _parse(task, settings, data.read(of_length, task.ordered))
            _check_contexts(settings, builder, by_config[mine])
        found[length] = by_config[mine]
    return found


def _parse(task: Task, settings: Settings, records: list[data.Record]) -> list[Sample]:
    samples: dict[str, Sample] = {}
    n_renamed = 0
    for number, record in enumerate(records):
        try:
            sample = task.sample(record, number, settings)
            _check(sample)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            problem = f"record {number} is not of {task.name}'s schema: {what}"
            example = task.example if isinstance(error, RecordError) else ""
            if example:
                problem += "; docs/datasets.md tells the columns, such as"
            raise SettingError("DATASET_ID", settings.dataset_id, problem, example) from error
        n_renamed += sample.sample_id in samples
        while sample.sample_id in samples:
            sample = replace(sample, sample_id=f"{sample.sample_id} (record {number})")
        samples[sample.sample_id] = sample
    if n_renamed:
        # Runs are compared by the ids of their samples.
        notice(f"{n_renamed} ids of {settings.dataset_id} are not unique: their record is added")
    n_unanswered = sum(not sample.references for sample in samples.values())
    if n_unanswered:
        notice(f"{n_unanswered} of {len(samples)} records have no answer, so they have no scores")
    return list(samples.values())


def _check(sample: Sample) -> None:
    """Raises TypeError for what is no text, or cannot stand in results."""
    for name, value in (
        ("sample_id", [sample.sample_id]),
        ("question", [sample.question]),
        ("prompt", sample.parts.texts),
        ("references", sample.references),
        ("evidence", sample.evidence),
        ("choices", [*sample.choices.values()]),
    ):
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise TypeError(f"its {name} is no text")
    json.dumps(sample.extra)


def _check_contexts(settings: Settings, builder: PromptBuilder, samples: Sequence[Sample]) -> int:
    """Tokens of the longest prompt without its document; raises when a context is shorter."""
    longest = max(builder.fixed_tokens(sample.parts) for sample in samples)
    shortest_context = min(settings.contexts)
    if longest > shortest_context:
        error = ContextTooShortError(shortest_context, longest)
        raise SettingError("CONTEXTS", shortest_context, str(error))
    return longest
