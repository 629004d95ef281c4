"""The parts of search that need no server: requests of a bounded size, what an answer means, mappings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opensearchpy import ConnectionError as NoConnection
from opensearchpy import TransportError

from dash_pipeline.chains import QuoteToken
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.storage.search import bulk, documents, fields, indexes, queries
from dash_pipeline.storage.tables import LOGS, POOL_EVENTS, TABLES, TOKEN_TRANSFERS, TRANSACTIONS


def test_requests_are_bounded_and_keep_the_order() -> None:
    lines = [bytes([i]) * size for i, size in enumerate([3, 3, 3, 20, 1, 9])]
    batches = list(bulk.batches(lines, max_bytes=10))
    assert [[len(line) for line in batch] for batch in batches] == [[3, 3, 3], [20], [1, 9]]
    assert [line for batch in batches for line in batch] == lines
    assert list(bulk.batches([], max_bytes=10)) == []


class Server:
    """Stands for a client: gives these answers, one per request."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []

    def bulk(self, body: bytes, index: str, params: dict[str, str]) -> dict[str, Any]:
        self.bodies.append(body)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def failed(kind: str) -> dict[str, Any]:
    return {"errors": True, "items": [{"index": {"error": {"type": kind, "reason": "because"}}}]}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_PAUSE_S", 0.001)


def write(server: Server, retry_for_s: float = 5) -> bulk.Written:
    return bulk.write(server, "t", [b"a\n", b"b\n"], retry_for_s)  # type: ignore[arg-type]


def test_losing_to_a_newer_version_is_no_failure() -> None:
    written = write(Server(failed("version_conflict_engine_exception")))
    assert (written.documents, written.conflicts, written.rejected, written.bytes) == (2, 1, 0, 4)


def test_a_document_that_does_not_fit_does_not_stop_the_others() -> None:
    written = write(Server(failed("mapper_parsing_exception")))
    assert (written.documents, written.conflicts, written.rejected) == (2, 0, 1)
    assert list(written.reasons) == ["mapper_parsing_exception: because"]


@pytest.mark.parametrize(
    "passing",
    [
        NoConnection("N/A", "refused", OSError("refused")),
        TransportError(429, "too_many_requests", {}),
        TransportError(503, "unavailable", {}),
        failed("rejected_execution_exception"),
        failed("cluster_block_exception"),
    ],
)
def test_what_may_pass_is_sent_again_whole(passing: dict[str, Any] | Exception) -> None:
    server = Server(passing, {"errors": False})
    assert write(server).documents == 2
    assert server.bodies == [b"a\nb\n"] * 2


def test_giving_up_says_one_line() -> None:
    with pytest.raises(Unavailable, match=r"^search: t: 503 unavailable$"):
        write(Server(*[TransportError(503, "unavailable", {"much": "more"})] * 50), retry_for_s=0.01)


def test_what_does_not_pass_is_not_sent_again() -> None:
    server = Server(TransportError(401, "unauthorized", {}))
    with pytest.raises(DashError):
        write(server)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [400, 413])
def test_one_line_that_cannot_be_taken_does_not_stop_the_others(status: int) -> None:
    class Refusing(Server):
        def bulk(self, body: bytes, index: str, params: dict[str, str]) -> dict[str, Any]:
            self.bodies.append(body)
            if b"x" in body:
                raise TransportError(status, "refused", {})
            return {"errors": False}

    server = Refusing()
    written = bulk.write(server, "t", [b"a\n", b"b\n", b"x\n", b"c\n"], 5)  # type: ignore[arg-type]
    assert (written.documents, written.rejected, written.bytes) == (4, 1, 8)
    assert {b"a\nb\n", b"c\n"} <= set(server.bodies)


def test_a_failure_ends_the_statement_that_the_lines_come_from() -> None:
    ended = []

    def lines() -> Iterator[bytes]:
        try:
            yield b"a" * bulk.REQUEST_BYTES
            yield b"b"
            yield b"c"
        finally:
            ended.append(True)

    unfinished = lines()
    with pytest.raises(Unavailable):
        bulk.write(Server(TransportError(401, "unauthorized", {})), "t", unfinished, 5)  # type: ignore[arg-type]
    assert ended == [True]


def test_a_missing_alias_is_told_apart() -> None:
    with pytest.raises(bulk.IndexMissing):
        write(Server(failed("index_not_found_exception")))


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_column_is_written_and_mapped(table: Any) -> None:
    names = [part.rpartition(" AS ")[2] for part in fields.select_list(table, "r").split(", ") if " AS " in part]
    assert names == list(table.columns) == list(fields.properties(table, ()))


def test_only_what_is_searched_costs_the_index() -> None:
    mapping = fields.properties(TRANSACTIONS, ("value", "value_f"), ("value_f",))
    assert mapping["value"] == {"type": "keyword", "doc_values": False}
    assert mapping["value_f"] == {"type": "double"}
    assert mapping["input"] == {"type": "keyword", "index": False, "doc_values": False}
    assert mapping["extra"] == {"type": "object", "enabled": False}


def test_a_transaction_holds_its_rows_whole() -> None:
    mapping = indexes.PROPERTIES[indexes.TRANSACTIONS_INDEX]
    assert set(TRANSACTIONS.columns) <= set(mapping)
    repeated = {"chain", "ts", "block_number", "block_hash", "tx_hash", "tx_index"}
    for table in (TOKEN_TRANSFERS, POOL_EVENTS):
        assert set(mapping[table.name]["properties"]) == set(table.columns) - repeated
    topics = {"topic0", "topic1", "topic2", "topic3"}
    assert set(mapping["logs"]["properties"]) == set(LOGS.columns) - repeated - topics | {"topics"}


def test_stable_quotes_come_first_then_the_registrys_order() -> None:
    def quote(symbol: str, stable: bool) -> QuoteToken:
        return QuoteToken(address="0x" + "00" * 20, symbol=symbol, decimals=18, stable=stable)

    quotes = [quote("WETH", False), quote("USDC", True), quote("WBTC", False), quote("DAI", True)]
    assert [one.symbol for one in documents.preferred_quotes(quotes)] == ["USDC", "DAI", "WETH", "WBTC"]


@pytest.mark.parametrize(("window", "by"), [("2d", "change"), ("7d", "price"), ("7d", "change_7d")])
def test_an_unknown_rank_is_refused(window: str, by: str) -> None:
    with pytest.raises(DashError, match="tokens rank by change"):
        queries.top_tokens(None, "anvil", window, by)  # type: ignore[arg-type]


def test_leading_tokens_are_put_in_order_unless_the_page_ends_among_equals() -> None:
    leading = [(3.0, "c"), (2.0, "b"), (2.0, "a"), (1.0, "d")]
    assert queries.in_order(leading, 3) == [0, 2, 1]
    assert queries.in_order(leading, 4) == [0, 2, 1, 3]
    assert queries.in_order(leading, 2) is None
    assert queries.in_order([], 2) == []
    quick, exact = queries.ask_leading_tokens("anvil", size=3), queries.ask_top_tokens("anvil", size=3)
    assert quick.body["sort"] == exact.body["sort"][:1]
    assert (quick.body["size"], quick.body["query"]) == (4, exact.body["query"])


def test_every_rank_is_a_field() -> None:
    for window in indexes.WINDOWS:
        for rank in queries.RANKS:
            assert f"{rank}_{window}" in indexes.PROPERTIES[indexes.TOKENS_INDEX]
