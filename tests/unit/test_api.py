"""The read API without a server: cursors, buckets, keys that are remembered, examples, the page."""

from __future__ import annotations

import asyncio
import re

import msgspec
import pytest
from pydantic import SecretStr

from dash_pipeline.api import answers, cursors, examples
from dash_pipeline.api.app import build
from dash_pipeline.api.limits import Buckets, Keys
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import ApiTier, Settings, load_settings
from dash_pipeline.storage.search.queries import ask_anything

TIERS = {"anonymous": ApiTier(rate=1, burst=2), "paying": ApiTier(rate=10, burst=20)}


class Clock:
    """A time that moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_cursor_comes_back_as_it_was() -> None:
    place = [1.5, "0xab", 2**40, None]
    assert cursors.read(b"k", "q", cursors.write(b"k", "q", place)) == place


@pytest.mark.parametrize("spoil", [0, 5, -1])
def test_a_cursor_that_was_changed_is_refused(spoil: int) -> None:
    text = list(cursors.write(b"k", "q", ["0xab", 7, "more"]))
    # The first bits of a character: the last ones of the last character may be padding.
    text[spoil] = "A" if text[spoil] > "a" else "z"
    with pytest.raises(cursors.WrongCursor):
        cursors.read(b"k", "q", "".join(text))


@pytest.mark.parametrize("given", ["", "A", "AAAA", "%%%%", "ü" * 20])
def test_what_is_no_cursor_is_refused(given: str) -> None:
    with pytest.raises(cursors.WrongCursor):
        cursors.read(b"k", "q", given)


def test_a_cursor_is_of_its_question_and_installation() -> None:
    cursor = cursors.write(b"k", "q", [1])
    for key, question in ((b"k", "other"), (b"other", "q")):
        with pytest.raises(cursors.WrongCursor):
            cursors.read(key, question, cursor)


def test_a_bucket_empties_and_fills() -> None:
    clock = Clock()
    buckets = Buckets(TIERS, clock)
    assert [buckets.take("a", "anonymous").remaining for _ in range(2)] == [1, 0]
    refused = buckets.take("a", "anonymous")
    assert refused.wait_s == 1
    assert (b"retry-after", b"1") in refused.headers()
    assert buckets.take("b", "anonymous").wait_s == 0, "another's bucket"
    clock.now += 0.5
    assert buckets.take("a", "anonymous").wait_s == pytest.approx(0.5)
    clock.now += 0.5
    assert buckets.take("a", "anonymous").wait_s == 0
    clock.now += 1000
    assert buckets.take("a", "anonymous").remaining == 1, "no more than the burst"


def test_a_tier_that_is_gone_counts_as_anonymous() -> None:
    assert Buckets(TIERS, Clock()).take("a", "gone").tier == "anonymous"


def test_a_key_is_asked_for_once_in_a_while() -> None:
    clock, asked, tier = Clock(), [], "paying"

    async def find(hash_: bytes) -> str | None:
        asked.append(hash_)
        return tier

    keys = Keys(find, 5, clock)

    async def tiers(times: int) -> list[str | None]:
        return [(await keys.tier("k"))[1] for _ in range(times)]

    assert asyncio.run(tiers(3)) == ["paying"] * 3
    assert len(asked) == 1
    tier = None  # revoked
    clock.now = 4.9
    assert asyncio.run(tiers(1)) == ["paying"]
    clock.now = 5
    assert asyncio.run(tiers(2)) == [None, None]
    assert len(asked) == 2


def test_a_known_key_is_taken_while_the_database_is_away() -> None:
    clock, up = Clock(), True

    async def find(hash_: bytes) -> str | None:
        if not up:
            raise Unavailable("database: away")
        return "paying"

    keys = Keys(find, 5, clock)
    assert asyncio.run(keys.tier("k"))[1] == "paying"
    up = False
    clock.now = 100
    assert asyncio.run(keys.tier("k"))[1] == "paying"
    with pytest.raises(Unavailable):
        asyncio.run(keys.tier("never seen"))


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        ("0x" + "Ab" * 32, ["transactions-c"]),
        ("0x" + "Ab" * 20, ["token-performance-c", "wallet-activity-c"]),
        ("0xAb12", ["token-performance-c", "transactions-c"]),
        ("0xAb1", ["token-performance-c"]),  # a name, as short as it is
        ("pepe", ["token-performance-c"]),
    ],
)
def test_what_a_text_may_stand_for(text: str, indexes: list[str]) -> None:
    assert [one.index for one in ask_anything(text, "c")] == indexes


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        (answers.Token, examples.TOKEN),
        (answers.Period, examples.PERIOD),
        (answers.Activity, examples.ACTIVITY),
        (answers.Found, examples.FOUND),
        (answers.Alert, examples.ALERT),
        (answers.Predictions, examples.PREDICTIONS),
        (answers.Health, examples.HEALTH),
    ],
)
def test_examples_are_answers(kind: type, example: object) -> None:
    """Every field is in it, none is unknown, and it comes out as it went in."""
    assert msgspec.json.decode(msgspec.json.encode(msgspec.convert(example, kind, strict=False))) == example


@pytest.mark.usefixtures("environment")
def test_every_endpoint_is_documented_with_an_example_and_the_page_fetches_nothing() -> None:
    from litestar.testing import TestClient

    # No store is asked for: they may be away.
    with TestClient(build(load_settings())) as client:  # type: ignore[arg-type]
        document = client.get("/docs/openapi.json").json()
        page = client.get("/docs").text
    assert document["openapi"].startswith("3.1")
    for path, entry in document["paths"].items():
        answer = entry["get"]["responses"]
        assert answer["200"]["content"]["application/json"]["examples"], path
        assert {"304", "400", "401", "429", "503"} <= set(answer), path
        assert entry["get"]["summary"] in page.replace("&#x27;", "'")
        for parameter in entry["get"].get("parameters", []):
            assert parameter["description"], (path, parameter["name"])
    assert not re.search(r"<(script|link|img|iframe)|https?://|@import", page)


def test_tiers_are_a_setting_that_is_checked(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DASH_API_TIERS", '{"paying": {"rate": 5, "burst": 9}}')
    with pytest.raises(DashError, match="DASH_API_TIERS: there is no tier `anonymous`"):
        load_settings()
    environment.setenv("DASH_API_TIERS", '{"anonymous": {"rate": 0, "burst": 9}}')
    with pytest.raises(DashError, match="DASH_API_TIERS: anonymous: rate: input should be greater than 0"):
        load_settings()


def test_the_key_of_cursors_is_the_installation_s() -> None:
    one, other = (
        Settings(kafka_bootstrap="k:1", opensearch_url="http://o", timescale_dsn=SecretStr(dsn))  # type: ignore[call-arg]
        for dsn in ("postgresql://a:b@c/d", "postgresql://a:x@c/d")
    )
    assert cursors.key(one) != cursors.key(other)
