"""Champions in memory: a new one is taken up by itself; what is wrong with the next one never costs the last."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest

from dash_pipeline.models import champions as module
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.champions import Champions
from dash_pipeline.models.registry import Registry
from dash_pipeline.models.spec import Floats, Raw
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from tests.small_model import artifact, derive, rows, spec

REFRESH_S = 0.2
AT_ONCE_S = 0.05


@pytest.fixture
def model(unique: Callable[[str], str]) -> str:
    return unique("small")


@pytest.fixture(scope="module")
def trained() -> list[Artifact]:
    return [artifact(seed=seed) for seed in range(2)]


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture
def versions(registry: Registry, trained: list[Artifact], model: str) -> list[str]:
    """Two versions that score otherwise."""
    return [registry.save(msgspec.structs.replace(one, model=model), {}) for one in trained]


@pytest.fixture
def start(settings: Settings, model: str) -> Iterator[Callable[..., Champions]]:
    """Starts to look for the test's champion."""
    started: list[Champions] = []

    def make(settings: Settings = settings, refresh_s: float = REFRESH_S) -> Champions:
        started.append(Champions(settings, {model: spec(model)}, refresh_s))
        started[-1].start()
        return started[-1]

    yield make
    for one in started:
        one.close()


def wait_for(true: Callable[[], bool], seconds: float = 10) -> float:
    """How long it took to be true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)
    return time.monotonic() - began


def version_of(champions: Champions, model: str) -> str | None:
    scorer = champions.get(model)
    return scorer.version if scorer else None


def test_no_champion_yet(start: Callable[..., Champions], model: str) -> None:
    champions = start()
    assert champions.get(model) is None
    assert champions.problem(model) == f"{model}: no champion yet; `dash-pipeline models train {model}` makes one"


def test_the_first_get_has_the_champion_and_it_scores_as_trained(
    start: Callable[..., Champions], registry: Registry, versions: list[str], trained: list[Artifact], model: str
) -> None:
    registry.promote(model, versions[0])
    champions = start()
    scorer = champions.get(model)
    assert scorer is not None
    assert champions.problem(model) is None
    raw = rows(5)
    assert scorer.score(raw).tolist() == module.Scorer(spec(model), trained[0], "x").score(raw).tolist()


def test_a_new_champion_is_taken_up_and_a_roll_back_too(
    start: Callable[..., Champions], registry: Registry, versions: list[str], model: str
) -> None:
    champions = start()
    assert champions.get(model) is None
    for promoted in (versions[0], versions[1]):
        registry.promote(model, promoted)
        wait_for(lambda promoted=promoted: version_of(champions, model) == promoted)
        assert champions.problem(model) is None
    held = champions.get(model)
    registry.rollback(model)
    wait_for(lambda: version_of(champions, model) == versions[0])
    assert held is not None
    assert held.version == versions[1], "who has it may go on with it"


def test_within_half_a_minute_as_it_comes(settings: Settings, model: str) -> None:
    assert Champions(settings, {model: spec(model)})._refresh_s == settings.champion_refresh_s
    assert Settings.model_fields["champion_refresh_s"].default <= 25


def test_scorers_stay_the_same_object_while_nothing_changes(
    start: Callable[..., Champions], registry: Registry, versions: list[str], model: str
) -> None:
    registry.promote(model, versions[0])
    champions = start()
    scorer = champions.get(model)
    time.sleep(4 * REFRESH_S)
    assert champions.get(model) is scorer


def test_a_damaged_champion_is_refused_once_and_taken_when_it_is_whole(
    start: Callable[..., Champions],
    settings: Settings,
    registry: Registry,
    versions: list[str],
    model: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket, key = s3.bucket(settings), f"models/{model}/versions/{versions[1]}/model.bin"
    registry.promote(model, versions[1])
    whole = bucket.get(key) or b""
    bucket.put(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    champions = start()
    assert champions.get(model) is None
    assert f"{model} {versions[1]}: the object's sha256 is" in (champions.problem(model) or "")
    time.sleep(5 * REFRESH_S)
    assert sum("sha256" in record.message for record in caplog.records) == 1
    bucket.put(key, whole)
    wait_for(lambda: version_of(champions, model) == versions[1])
    assert champions.problem(model) is None


def damage_pointer(bucket: s3.Bucket, model: str, versions: list[str]) -> str:
    bucket.put(f"models/{model}/champion.json", b"nonsense")
    return "damaged"


def delete_pointer(bucket: s3.Bucket, model: str, versions: list[str]) -> str:
    bucket.client.delete_object(Bucket=bucket.name, Key=f"models/{model}/champion.json")
    return "no champion yet"


def name_another_hash(bucket: s3.Bucket, model: str, versions: list[str]) -> str:
    pointer = msgspec.json.decode(bucket.get(f"models/{model}/champion.json") or b"")
    pointer |= {"version": versions[1], "sha256": "0" * 64}
    bucket.put(f"models/{model}/champion.json", msgspec.json.encode(pointer))
    return "was altered"


def name_no_version(bucket: s3.Bucket, model: str, versions: list[str]) -> str:
    pointer = msgspec.json.decode(bucket.get(f"models/{model}/champion.json") or b"")
    bucket.put(f"models/{model}/champion.json", msgspec.json.encode(pointer | {"version": "20200101T000000Z-0"}))
    return "is gone"


@pytest.mark.parametrize("harm", [damage_pointer, delete_pointer, name_another_hash, name_no_version])
def test_the_last_good_one_stays(
    start: Callable[..., Champions],
    settings: Settings,
    registry: Registry,
    versions: list[str],
    model: str,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[s3.Bucket, str, list[str]], str],
) -> None:
    registry.promote(model, versions[0])
    champions = start()
    scorer = champions.get(model)
    assert scorer is not None
    said = harm(s3.bucket(settings), model, versions)
    wait_for(lambda: said in (champions.problem(model) or ""))
    time.sleep(4 * REFRESH_S)
    assert champions.get(model) is scorer
    told = [record.message for record in caplog.records if said in record.message]
    assert len(told) == 1, "once, not at every look"
    assert f"{versions[0]} stays in use" in told[0]


def test_a_champion_of_other_features_is_not_used(
    start: Callable[..., Champions], registry: Registry, versions: list[str], trained: list[Artifact], model: str
) -> None:
    def more(raw: Raw) -> dict[str, Floats]:
        return {**derive(raw), "reserve_twice": 2 * raw["reserve"]}

    registry.promote(model, versions[0])
    champions = start()
    scorer = champions.get(model)
    later = registry.save(artifact(spec(model, more)), {})
    registry.promote(model, later)
    wait_for(lambda: champions.problem(model) is not None)
    assert "reserve_twice" in (champions.problem(model) or "")
    assert champions.get(model) is scorer


# --- a store that goes away


class Door:
    """A way to the store: shut, it refuses connections; `silent`, it takes them and never answers."""

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self._to = (url.hostname or "", url.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self.silent = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(one)
            if self.silent:
                continue
            other = socket.create_connection(self._to)
            self._open.append(other)
            for source, target in ((one, other), (other, one)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        target.close()

    def hang_up(self) -> None:
        """End the connections there are."""
        for one in self._open:
            one.close()
        self._open.clear()

    def shut(self) -> None:
        """Refuse new connections, end the old ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()


@pytest.fixture
def door(settings: Settings) -> Iterator[Door]:
    one = Door(settings.s3_endpoint or "")
    yield one
    with contextlib.suppress(OSError):
        one.shut()


@pytest.fixture
def through_the_door(settings: Settings, door: Door) -> Settings:
    return settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{door.port}"})


def test_a_store_that_goes_away_costs_nothing(
    start: Callable[..., Champions], registry: Registry, versions: list[str], model: str, door: Door,
    through_the_door: Settings, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    registry.promote(model, versions[0])
    champions = start(through_the_door)
    scorer = champions.get(model)
    assert scorer is not None
    door.shut()
    wait_for(lambda: "no connection" in (champions.problem(model) or ""), 20)
    time.sleep(2)
    assert champions.get(model) is scorer
    assert np.isfinite(scorer.score(rows(3))).all()
    assert sum("no connection" in record.message for record in caplog.records) == 1


def test_a_store_that_never_answers_is_waited_for_once_and_briefly(
    start: Callable[..., Champions], registry: Registry, versions: list[str], model: str, door: Door,
    through_the_door: Settings,
) -> None:  # fmt: skip
    door.silent = True
    registry.promote(model, versions[0])
    champions = start(through_the_door)
    began = time.monotonic()
    assert champions.get(model) is None
    assert time.monotonic() - began < module.FIRST_LOOK_S + 1
    assert champions.problem(model)
    began = time.monotonic()
    assert champions.get(model) is None
    assert time.monotonic() - began < AT_ONCE_S
    door.silent = False
    door.hang_up()
    wait_for(lambda: version_of(champions, model) == versions[0], 40)


def test_nobody_waits_while_a_look_hangs(
    start: Callable[..., Champions], registry: Registry, versions: list[str], model: str, door: Door,
    through_the_door: Settings,
) -> None:  # fmt: skip
    registry.promote(model, versions[0])
    champions = start(through_the_door)
    assert champions.get(model) is not None
    door.silent = True
    door.hang_up()
    slowest = 0.0
    for _ in range(100):
        began = time.monotonic()
        assert version_of(champions, model) == versions[0]
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.02)
    assert slowest < AT_ONCE_S


def test_not_started_it_has_nothing_and_says_so(settings: Settings, model: str) -> None:
    champions = Champions(settings, {model: spec(model)})
    began = time.monotonic()
    assert champions.get(model) is None
    assert champions.problem(model) == "not looked for yet"
    champions.close()
    assert time.monotonic() - began < AT_ONCE_S


def test_it_ends_when_it_is_closed(settings: Settings, registry: Registry, versions: list[str], model: str) -> None:
    registry.promote(model, versions[0])
    with Champions(settings, {model: spec(model)}, REFRESH_S) as champions:
        assert champions.get(model) is not None
    assert not champions._thread.is_alive()
    assert champions.get(model) is not None, "what was found can still be used"
