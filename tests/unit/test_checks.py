"""Which blocks a check may judge. The SQL is tested on a real database, in tests/integration."""

from __future__ import annotations

from dash_pipeline.storage.checks import (
    COUNTED,
    MATCHED,
    NAMED,
    SLICE,
    Settling,
    Verdict,
    clip,
    slices,
    topics_of,
)

BLOCKS, TRANSACTIONS, LOGS = ("anvil.blocks", 0), ("anvil.transactions", 0), ("anvil.logs", 0)
TOPICS = topics_of(COUNTED, "anvil")


def test_a_check_waits_for_its_own_topics_only() -> None:
    assert topics_of(COUNTED, "anvil") == {"anvil.blocks", "anvil.transactions"}
    assert topics_of(MATCHED, "bsc") == {"bsc.blocks", "bsc.logs", "bsc.token_transfers"}


def test_nothing_is_settled_before_the_first_mark() -> None:
    assert Settling(0).settled({BLOCKS: 100}, TOPICS) is None


def test_blocks_settle_when_what_kafka_held_is_committed() -> None:
    settling = Settling(settle_blocks=12)
    settling.mark({BLOCKS: 100, TRANSACTIONS: 1000, LOGS: 5000}, tip=100)
    assert settling.settled({BLOCKS: 100, TRANSACTIONS: 999}, TOPICS) is None
    assert settling.settled({BLOCKS: 100, TRANSACTIONS: 1000}, TOPICS) == 88


def test_the_newest_mark_that_is_ingested_counts() -> None:
    settling = Settling(settle_blocks=10)
    settling.mark({BLOCKS: 100, TRANSACTIONS: 1000}, tip=100)
    settling.mark({BLOCKS: 200, TRANSACTIONS: 2000}, tip=200)
    assert settling.settled({BLOCKS: 200, TRANSACTIONS: 1500}, TOPICS) == 90
    assert settling.settled({BLOCKS: 250, TRANSACTIONS: 2500}, TOPICS) == 190


def test_a_quiet_feed_settles_up_to_the_tip_of_the_newest_mark_only() -> None:
    settling = Settling(settle_blocks=12)
    settling.mark({BLOCKS: 50}, tip=50)
    settling.mark({BLOCKS: 100}, tip=100)
    assert settling.settled({BLOCKS: 99}, TOPICS, quiet=True) == 38
    assert settling.settled({BLOCKS: 100}, TOPICS, quiet=True) == 100


def test_ranges_are_cut_at_the_settled_height() -> None:
    assert clip([(1, 5), (8, 20), (30, 40)], upto=10) == [(1, 5), (8, 10)]


def test_slices_cover_each_height_once() -> None:
    ranges = [(5, 5 + SLICE), (1, 10), (5 + SLICE, 6 + SLICE)]
    heights = [height for low, high in slices(ranges) for height in range(low, high + 1)]
    assert heights == list(range(1, 7 + SLICE))
    assert all(high - low < SLICE for low, high in slices(ranges))


def test_verdicts_add_up_and_name_only_the_first_blocks() -> None:
    many = Verdict(judged=30, wrong=30, examples=tuple({"block_number": n} for n in range(NAMED)))
    both = many + Verdict(judged=1, wrong=1, examples=({"block_number": 99},))
    assert (both.judged, both.wrong, len(both.examples)) == (31, 31, NAMED)
