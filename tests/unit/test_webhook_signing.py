"""What a request says and how a receiver knows whose it is."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import SecretStr

from dash_pipeline.alerts.deliver import (
    SIGNATURE,
    TIMESTAMP,
    Answer,
    _retry_after,
    idempotency_key,
    message,
    post,
    sign,
    verify,
)
from dash_pipeline.storage.alerts import Due
from tests.webhooks import Receiver

SECRET = SecretStr("s3cret")
BODY = b'{"type":"dash.alerts"}'
NOW = 1_700_000_000


def headers(secret: SecretStr = SECRET, timestamp: str = str(NOW), body: bytes = BODY) -> dict[str, str]:
    return {TIMESTAMP: timestamp, SIGNATURE: sign(secret, timestamp, body)}


def test_the_signature_is_what_the_documentation_says() -> None:
    mac = hmac.new(b"s3cret", b'1700000000.{"type":"dash.alerts"}', hashlib.sha256).hexdigest()
    assert sign(SECRET, "1700000000", BODY) == f"sha256={mac}"


def test_what_was_signed_is_believed_and_nothing_else() -> None:
    assert verify(SECRET, headers(), BODY, NOW)
    assert verify(SECRET, {name.upper(): value for name, value in headers().items()}, BODY, NOW + 300)
    assert not verify(SECRET, headers(), BODY + b" ", NOW)
    assert not verify(SECRET, headers(SecretStr("other")), BODY, NOW)
    assert not verify(SECRET, headers() | {TIMESTAMP: str(NOW + 1)}, BODY, NOW)


def test_an_old_request_is_not_believed() -> None:
    assert not verify(SECRET, headers(), BODY, NOW + 301)
    assert not verify(SECRET, headers(), BODY, NOW - 301)
    assert verify(SECRET, headers(), BODY, NOW + 301, tolerance_s=400)


@pytest.mark.parametrize("timestamp", ["", "x", "-1", "1e9", "١", "²", "9" * 5000, "nan"])
def test_nonsense_is_not_believed(timestamp: str) -> None:
    assert not verify(SECRET, headers() | {TIMESTAMP: timestamp}, BODY, NOW)
    assert not verify(SECRET, headers() | {SIGNATURE: "sha256=é"}, BODY, NOW)
    assert not verify(SECRET, {}, BODY, NOW)


def due(n: int, event: str = "raised", generation: str = "0", attempts: int = 1, route: str = "r") -> Due:
    return Due(bytes([n]) * 16, route, event, attempts, generation, False)


def test_the_key_follows_from_what_is_told() -> None:
    key = idempotency_key([due(1), due(2)])
    assert key == idempotency_key([due(2, attempts=9), due(1)])
    others = [[due(1)], [due(1), due(3)], [due(1), due(2, "retracted")], [due(1), due(2, generation="17.5")]]
    assert len({key, *map(idempotency_key, others)}) == 5


def alert(n: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{n:032x}", "chain": "anvil", "pool": "0xp", "token": "0xt", "kind": "liquidity_withdrawal",
        "severity": "high", "ts": "2024-03-09T12:00:00.000Z", "block_number": 7, "tx_hash": "0xh",
        "wallets": ["0xa", "0xb", "0xc"], "evidence": {"share": 0.97, "amount": 2**256 - 1}, "predictions": [
            {"model": "pool_risk", "subject_kind": "pool", "score": 0.973},
            {"model": "wallet_risk", "subject_kind": "wallet", "score": 0.5},
            {"model": "liquidity_outlook", "subject_kind": "pool", "score": None},
        ], "raised_at": "2024-03-09T12:00:01.000Z", "retracted": False, "retracted_at": None, "revision": 1,
        "run_id": "abc",
    } | more  # fmt: skip


def test_a_message_says_all_and_its_text_in_a_line() -> None:
    sent = json.loads(message([("raised", alert(1))], "http://ui:3000/", datetime(2024, 3, 9, 12, 1, tzinfo=UTC)))
    (told,) = sent["alerts"]
    assert (sent["type"], sent["sent_at"]) == ("dash.alerts", "2024-03-09T12:01:00.000Z")
    assert (
        told["text"]
        == sent["text"]
        == (
            "HIGH: liquidity withdrawal on anvil, pool 0xp, token 0xt, block 7 at 2024-03-09T12:00:00Z; pool_risk 97%;"
            " wallets 0xa, 0xb, ..."
        )
    )
    assert told["evidence"] == {"share": 0.97, "amount": 2**256 - 1}, "exact"
    assert told["url"] == "http://ui:3000/runs/abc"
    assert {"id", "event", "chain", "pool", "token", "kind", "severity", "ts", "block_number", "tx_hash", "wallets",
            "evidence", "predictions", "text", "url"} <= set(told)  # fmt: skip


def test_a_retraction_says_so_and_many_alerts_are_a_few_lines() -> None:
    sent = json.loads(message([("retracted", alert(n)) for n in range(50)], "", datetime.now(UTC)))
    lines = sent["text"].splitlines()
    assert (len(lines), lines[-1]) == (11, "and 40 more")
    assert lines[0].startswith("TAKEN BACK: ")
    assert {one["event"] for one in sent["alerts"]} == {"retracted"}


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    assert _retry_after("17", now) == 17
    assert _retry_after(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert _retry_after(format_datetime(now - timedelta(seconds=90), usegmt=True), now) == 0
    assert _retry_after("999999", now) == 3600
    assert [_retry_after(value, now) for value in (None, "", "soon", "-1", "1.5", "Wed, 99 Foo")] == [0] * 6


def test_which_answers_are_about_the_alerts() -> None:
    assert [status for status in range(300, 600) if Answer(status).refused] == [
        status for status in range(400, 500) if status not in (401, 403, 404, 408, 410, 429)
    ]


# --- requests


def signed(body: bytes = b'{"alerts": []}') -> dict[str, str]:
    return headers(Receiver.secret, str(int(datetime.now(UTC).timestamp())), body) | {"Idempotency-Key": "k"}


def test_a_request_arrives_as_it_is() -> None:
    with Receiver() as receiver:
        url = receiver.url.replace("127.0.0.1", "user:p%40ss@127.0.0.1")
        assert post(url, b'{"alerts": []}', signed()) == Answer(200)
    (request,) = receiver.requests
    assert request.path == "/hook?token=t"
    assert request.signed
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == "Basic dXNlcjpwQHNz"


def test_redirects_are_not_followed() -> None:
    with Receiver() as receiver:
        receiver.fail(1, 302, Location=receiver.url)
        answer = post(receiver.url, b'{"alerts": []}', signed())
        assert (answer.status, answer.refused, bool(answer.error)) == (302, False, True)
        assert len(receiver.requests) == 1


def test_nobody_there_is_no_connection_and_silence_is_no_answer() -> None:
    with Receiver(hang_s=30) as receiver:
        answer = post(receiver.url, b'{"alerts": []}', signed())
        assert answer == Answer(error="no answer: timed out", arrived=True)
    answer = post(receiver.url, b'{"alerts": []}', signed())
    assert answer.error.startswith("no connection: ")
    assert not answer.arrived
    assert post("http://no.such.host.invalid/", b"", {}).error.startswith("no connection: ")


def test_a_receiver_that_answers_a_byte_at_a_time_is_cut_off() -> None:
    with Receiver(drip=True) as receiver:
        started = datetime.now(UTC)
        answer = post(receiver.url, b'{"alerts": []}', signed())
        assert answer.error.startswith("no answer")
        assert timedelta(seconds=9) < datetime.now(UTC) - started < timedelta(seconds=14)
