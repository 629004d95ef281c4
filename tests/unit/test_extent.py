"""What a topic's offsets say about messages that are lost."""

from __future__ import annotations

from dash_pipeline.lag import Extent


def test_messages_that_went_before_they_were_ingested_are_a_gap() -> None:
    extent = Extent(begin={("t", 0): 50, ("t", 1): 50}, end={("t", 0): 90, ("t", 1): 90})
    assert extent.gaps("t", {("t", 0): 50, ("t", 1): 40, ("u", 0): 1}) == (
        "t/1: messages 40 to 49 are gone before they were ingested",
    )


def test_a_topic_that_begins_again_or_is_gone_is_a_gap_if_some_of_it_is_ingested() -> None:
    extent = Extent(begin={("t", 0): 0}, end={("t", 0): 7}, missing=("u", "v"))
    assert "was made anew: it ends at 7, and 8 are ingested" in extent.gaps("t", {("t", 0): 8})[0]
    assert "is gone; 3 messages" in extent.gaps("u", {("u", 0): 3})[0]
    assert extent.gaps("v", {}) == ()
    assert extent.gaps("t", {("t", 0): 7}) == ()
