"""A model's state -> whether it is trained now; a pure function.

Belongs here: the decision and the words for it. Does not belong here: reading (`training.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

# A model that was trained, whatever came of it, is left alone that long, unless its labels are new.
AGAIN_AFTER_S = 6 * 3600.0


@dataclass(frozen=True)
class Seen:
    """What a tick has read of a model. `problem`: why it cannot be trained, if so; `labels`: hash of its labelled data
    now; `trained_on`: hash of what the last training took, None without one; `trained_ago_s`: seconds since that
    began."""

    champion: str | None
    problem: str | None = None
    labels: str | None = None
    drifted: bool = False
    trained_on: str | None = None
    trained_ago_s: float | None = None
    live: bool = False


def rested(trained_ago_s: float | None) -> bool:
    """Whether the last training is long enough ago."""
    return trained_ago_s is None or trained_ago_s >= AGAIN_AFTER_S


def why_train(seen: Seen) -> tuple[bool, str]:
    """Whether to train now, and why or why not."""
    if seen.live:
        return False, "being trained"
    if seen.problem:
        return False, seen.problem
    new_labels = seen.labels is not None and seen.labels != seen.trained_on
    if seen.champion is None and (rested(seen.trained_ago_s) or new_labels):
        return True, "no champion yet"
    if seen.drifted and rested(seen.trained_ago_s):
        return True, f"what {seen.champion} scores has drifted from what it was trained on"
    if seen.champion is None:
        return False, "no champion: the last training made none"
    return False, f"champion {seen.champion}"
