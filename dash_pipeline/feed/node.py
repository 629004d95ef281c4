"""The few questions that we ask a node ourselves, by JSON-RPC.

Belongs here: heights, hashes, and whether it is the right chain.
Does not belong here: what is published, which is the exporter's.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError, Unavailable

RPC_TIMEOUT_S = 10


def ask(node: str, method: str, *params: object) -> Any:
    """One JSON-RPC call. Raises Unavailable when the node does not answer, DashError when it refuses."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(node, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=RPC_TIMEOUT_S) as reply:
            answer = json.load(reply)
    except (OSError, ValueError) as error:
        raise Unavailable(f"the node does not answer {method}: {error}") from None
    if not isinstance(answer, dict) or "error" in answer:
        raise DashError(f"the node refuses {method}: {answer}")
    return answer.get("result")


def head_of(node: str) -> int:
    """The number of the node's newest block."""
    return int(ask(node, "eth_blockNumber"), 16)


def hash_at(node: str, number: int) -> str | None:
    """The hash of the node's block at a height; None above its head."""
    block = ask(node, "eth_getBlockByNumber", hex(number), False)
    return block["hash"] if block else None


def check_chain(node: str, chain: Chain) -> None:
    """Raises DashError when the node is one of another chain."""
    if (found := int(ask(node, "eth_chainId"), 16)) != chain.chain_id:
        raise DashError(f"the node has chain id {found}, but {chain.name} is {chain.chain_id}")
    if chain.genesis_hash and (genesis := hash_at(node, 0)) != chain.genesis_hash:
        raise DashError(f"the node's block 0 is {genesis}, but {chain.name}'s is {chain.genesis_hash}")
