"""Files -> Kafka, and what a person is told about it.

Belongs here: the order of things: check everything, make sure of the topics, publish, wait.
Does not belong here: how each is done (`files.py`, `publish.py`, `wait.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from dash_pipeline import topics
from dash_pipeline.feed import files
from dash_pipeline.feed.publish import (
    LINGER_MS,
    LINGER_MS_AT_A_RATE,
    KafkaSink,
    Key,
    Sink,
    Stopped,
    paced,
    publish,
    told,
)
from dash_pipeline.feed.wait import end_offsets, wait_until_committed
from dash_pipeline.settings import Settings


class Progress(Protocol):
    """Who is told how far a stage is; `total` is None where nobody knows it."""

    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


def silent(stage: str, done: int, total: int | None) -> None:
    """A Progress that tells nobody."""


class Report(msgspec.Struct, frozen=True):
    """What was published."""

    chain: str
    types: dict[str, int]
    topics: dict[str, int]
    messages: int
    seconds: float
    per_second: int
    skipped: list[str] = []
    committed_after_s: float | None = None


def replay(
    settings: Settings,
    paths: Sequence[Path],
    chain: str,
    *,
    key: Key = Key.NONE,
    rate: float | None = None,
    wait_s: float | None = None,
    progress: Progress = silent,
) -> Report:
    """Publish files and folders of events to the topics of `chain`, and wait up to `wait_s` for their commit.

    `rate` is messages a second, None is full speed. Every file is read to its end before the first message is
    published. Raises Stopped, which says how much is published, or Unavailable.
    """
    try:
        sources = files.find(paths)
        total = _checked(sources.groups, progress).total()
    except files.WrongFile as error:
        raise Stopped(str(error), Counter(), error.exit_code) from None
    topics.ensure(settings, [chain])
    with KafkaSink(settings, linger_ms=LINGER_MS_AT_A_RATE if rate else LINGER_MS) as sink:
        report = replay_into(sink, sources, chain, key=key, rate=rate, total=total, progress=progress)
    if wait_s is None:
        return report
    targets = end_offsets(settings, report.topics)
    waited = wait_until_committed(
        settings, targets, wait_s, lambda left, all_: progress("waiting for commits", all_ - left, all_)
    )
    return msgspec.structs.replace(report, committed_after_s=round(waited, 3))


def replay_into(
    sink: Sink,
    sources: files.Sources,
    chain: str,
    *,
    key: Key = Key.NONE,
    rate: float | None = None,
    total: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Publish what `files.find` found: the groups one after the other, each merged by block.

    `rate`: at most so many messages per second, None: as fast as they go; `total`: how many there are, for `progress`.
    """
    start = time.monotonic()
    events = told(paced(_all(sources.groups), rate), lambda done: progress("publishing", done, total))
    sent = publish(events, chain, sink, key)
    return report_of(chain, sent, time.monotonic() - start, sources.skipped)


def report_of(chain: str, sent: Counter[str], seconds: float, skipped: Iterable[str] = ()) -> Report:
    """The report on messages sent, counted by type, in so many seconds."""
    types = {type_: sent[type_] for type_ in topics.TYPES if sent[type_]}
    return Report(
        chain=chain,
        types=types,
        topics={topics.topic_name(chain, type_): count for type_, count in types.items()},
        messages=sent.total(),
        seconds=round(seconds, 3),
        per_second=round(sent.total() / max(seconds, 1e-3)),
        skipped=list(skipped),
    )


def _checked(groups: list[list[Path]], progress: Progress) -> Counter[str]:
    named = [file for group in groups for file in group]
    counts: Counter[str] = Counter()
    for done, file in enumerate(named):
        progress("checking", done, len(named))
        counts += files.check([file])
    progress("checking", len(named), len(named))
    return counts


def _all(groups: list[list[Path]]) -> Iterator[files.Event]:
    for group in groups:
        yield from files.merged(group)
