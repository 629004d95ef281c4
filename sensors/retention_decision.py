"""Which chains' days are archived now: a pure decision.

Belongs here: the rule. Does not belong here: reading and answering (`retention.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class Archive:
    """Archive the chain's days from `first` to `last`."""

    chain: str
    first: date
    last: date


def decide(
    due: Mapping[str, Sequence[date]], live: Collection[str], resting: Mapping[str, float]
) -> tuple[list[Archive], str]:
    """The runs to start, and why there are no more. A chain whose run is live, or that rests after a failure (seconds
    left), waits; runs of several chains may meet at a table, where one leaves it to the other: one run at a time."""
    notes = [f"{chain}: a run is at it" for chain in due if chain in live]
    notes += [f"{chain}: rests for {resting[chain]:.0f} s" for chain in due if chain in resting and chain not in live]
    if live:
        return [], "; ".join(notes or [f"a run for {', '.join(sorted(live))} is at it"])
    for chain, days in due.items():
        if days and chain not in resting:
            return [Archive(chain, min(days), max(days))], "; ".join(notes)
    return [], "; ".join(notes) or "no day is older than the retention"
