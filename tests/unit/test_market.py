"""The recorded market in the repository is whole, small, and what its labels say."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from dash_pipeline.chains import load_chains
from dash_pipeline.feed.files import read_lines
from dash_pipeline.market import RECORDED

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def labels() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / "labels.json").read_text())
    return found


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    types = ("block", "transaction", "log", "token_transfer")
    return {type_: [json.loads(line) for _, line in read_lines(RECORDED / f"{type_}.jsonl.zst")] for type_ in types}


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in RECORDED.iterdir()) < 4 * MEGABYTE


def test_its_blocks_are_one_chain(rows: dict[str, list[dict[str, Any]]], labels: dict[str, Any]) -> None:
    blocks = sorted(rows["block"], key=lambda block: block["number"])
    assert [block["number"] for block in blocks] == list(range(labels["blocks"] + 1))
    assert all(after["parent_hash"] == before["hash"] for before, after in pairwise(blocks))
    assert {after["timestamp"] - before["timestamp"] for before, after in pairwise(blocks)} == {12}


def test_nothing_is_missing(rows: dict[str, list[dict[str, Any]]], labels: dict[str, Any]) -> None:
    per_block = Counter(row["block_hash"] for row in rows["transaction"])
    assert {
        block["hash"]: block["transaction_count"] for block in rows["block"] if block["transaction_count"]
    } == per_block
    assert per_block.total() == labels["txs"]
    indexes = Counter(row["block_hash"] for row in rows["log"])
    highest = {row["block_hash"]: row["log_index"] for row in rows["log"]}
    assert all(highest[block] == count - 1 for block, count in indexes.items())


def test_its_labels_are_its_transactions(rows: dict[str, list[dict[str, Any]]], labels: dict[str, Any]) -> None:
    transactions = {row["hash"]: row for row in rows["transaction"]}
    for label in labels["labels"]:
        transaction = transactions[label["tx"]]
        assert transaction["block_number"] == label["block"]
        assert transaction["block_timestamp"] == label["timestamp"]
        assert transaction["receipt_status"] == label["status"] == 1


def test_every_scenario_is_there(labels: dict[str, Any]) -> None:
    kinds = Counter(label["kind"] for label in labels["labels"])
    assert set(kinds) == {"partial_exit", "many_lps", "slow_drain", "rug_burn", "rug_steps", "rug_swap"}
    assert {pool["kind"] for pool in labels["pools"]} == {*kinds, "honest"}
    final = [label for label in labels["labels"] if label["is_rug"] and label.get("step") != 1]
    assert all(label["weth_drop"] > 0.85 for label in final)
    assert all(label["weth_drop"] < 0.45 for label in labels["labels"] if not label["is_rug"])


def test_the_registry_knows_its_weth(labels: dict[str, Any]) -> None:
    anvil = load_chains()["anvil"]
    assert labels["chainId"] == anvil.chain_id
    assert labels["weth"] in {token.address for token in anvil.quote_tokens}
    assert labels["factory"] in anvil.factories.uniswap_v2
