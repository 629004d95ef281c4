"""The registry on the real S3: versions never change, one of two promotions wins, damage is refused."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import msgspec
import pytest
from pydantic import SecretStr

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.registry import Champion, Registry
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from tests.small_model import artifact, spec

PLOTS = {"roc": b"\x89PNG roc", "calibration": b"\x89PNG calibration"}
ABSENT = "20200101T000000Z-000000000000"


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture
def bucket(settings: Settings) -> s3.Bucket:
    return s3.bucket(settings)


@pytest.fixture
def model(unique: Callable[[str], str]) -> str:
    return unique("small")


@pytest.fixture(scope="module")
def trained() -> Artifact:
    return artifact()


def variant(trained: Artifact, model: str, number: int) -> Artifact:
    """The same trees under this model's name, with another card: another content."""
    return msgspec.structs.replace(trained, model=model, card={"number": number})


@pytest.fixture
def saved(registry: Registry, trained: Artifact, model: str) -> list[str]:
    """Four versions."""
    return [registry.save(variant(trained, model, i), {}) for i in range(4)]


# --- versions


def test_what_is_saved_is_loaded(registry: Registry, trained: Artifact, model: str) -> None:
    one = variant(trained, model, 1)
    version = registry.save(one, PLOTS)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{12}", version)
    assert registry.load(model, version) == one
    assert registry.plots(model, version) == PLOTS
    (listed,) = registry.versions(model)
    assert listed == registry.version(model, version)
    assert (listed.version, listed.card, listed.plots) == (version, {"number": 1}, ("calibration", "roc"))
    assert listed.sha256.startswith(version[-12:])
    assert listed.bytes == len(one.to_bytes())


def test_the_same_artifact_keeps_its_version(registry: Registry, trained: Artifact, model: str) -> None:
    version = registry.save(variant(trained, model, 1), PLOTS)
    time.sleep(1.1)  # another second would be another version
    assert registry.save(variant(trained, model, 1), {"roc": b"another"}) == version
    assert registry.plots(model, version) == PLOTS
    assert len(registry.versions(model)) == 1


def test_saved_by_many_at_once_it_is_one_version(settings: Settings, trained: Artifact, model: str) -> None:
    one, found = variant(trained, model, 1), []
    together([lambda: found.append(Registry(settings).save(one, PLOTS))] * 6)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert Registry(settings).load(model, found[0]) == one


def test_newest_first(registry: Registry, trained: Artifact, model: str) -> None:
    versions = []
    for number in range(3):
        versions.append(registry.save(variant(trained, model, number), {}))
        time.sleep(1.1)
    assert [one.version for one in registry.versions(model)] == versions[::-1]
    assert [one.card["number"] for one in registry.versions(model)] == [2, 1, 0]
    assert registry.versions(f"{model}x") == []


def test_models_do_not_mix(registry: Registry, trained: Artifact, model: str) -> None:
    """Also where one's name begins with another's."""
    registry.save(variant(trained, f"{model}b", 1), {})
    assert registry.versions(model) == []


def test_no_object_of_a_version_is_ever_replaced(registry: Registry, bucket: s3.Bucket, saved: list[str],
                                                 model: str) -> None:  # fmt: skip
    for key in bucket.keys(f"models/{model}/versions/{saved[0]}/"):
        with pytest.raises(s3.Conflict):
            bucket.put(key, b"other", new=True)
    assert registry.load(model, saved[0]).card == {"number": 0}


def test_a_version_without_its_card_is_none_until_it_is_saved_again(
    registry: Registry, bucket: s3.Bucket, trained: Artifact, model: str
) -> None:
    """As after a kill in the midst of saving."""
    version = registry.save(variant(trained, model, 1), PLOTS)
    bucket.client.delete_object(Bucket=bucket.name, Key=f"models/{model}/versions/{version}/card.json")
    assert registry.versions(model) == []
    for use in (registry.load, registry.promote, registry.plots):
        with pytest.raises(DashError, match=version):
            use(model, version)
    assert registry.champion(model) is None
    assert registry.save(variant(trained, model, 1), PLOTS) == version
    assert [one.version for one in registry.versions(model)] == [version]


@pytest.mark.parametrize("version", [ABSENT, "", "../../champion", "latest", "a/b"])
def test_a_version_that_is_not_there(registry: Registry, saved: list[str], model: str, version: str) -> None:
    for use in (registry.load, registry.promote, registry.version):
        with pytest.raises(DashError, match=r"`dash-pipeline models list`") as error:
            use(model, version)
        assert f"{model}: there is no version {version};" in str(error.value)


def test_an_altered_artifact_is_refused(registry: Registry, bucket: s3.Bucket, saved: list[str], model: str) -> None:
    registry.promote(model, saved[0])
    key = f"models/{model}/versions/{saved[1]}/model.bin"
    data = bytearray(bucket.get(key) or b"")
    data[len(data) // 2] ^= 1
    bucket.put(key, bytes(data))
    for use in (registry.load, registry.promote):
        with pytest.raises(DashError, match=f"{model} {saved[1]}: .*sha256.*altered"):
            use(model, saved[1])
    bucket.client.delete_object(Bucket=bucket.name, Key=key)
    with pytest.raises(DashError, match="is gone"):
        registry.load(model, saved[1])
    champion = registry.champion(model)
    assert champion is not None
    assert champion.version == saved[0]


def test_a_damaged_card_hides_no_other_version(
    registry: Registry, bucket: s3.Bucket, saved: list[str], model: str, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put(f"models/{model}/versions/{saved[1]}/card.json", b"{")
    assert {one.version for one in registry.versions(model)} == set(saved) - {saved[1]}
    assert f"{saved[1]}/card.json is damaged" in caplog.text


def test_another_models_artifact_is_refused(
    registry: Registry, bucket: s3.Bucket, trained: Artifact, saved: list[str], model: str, unique: Callable[[str], str]
) -> None:
    other = unique("other")
    version = registry.save(variant(trained, other, 1), {})
    for name in ("model.bin", "card.json"):
        found = bucket.get(f"models/{other}/versions/{version}/{name}")
        bucket.put(f"models/{model}/versions/{version}/{name}", found or b"")
    with pytest.raises(DashError, match=f"a model of {other}"):
        registry.load(model, version)


# --- the champion


def names(champion: Champion | None) -> list[str]:
    """The champion's version and those before it."""
    assert champion is not None
    return [term.version for term in champion.terms()]


def test_promoted_and_rolled_back(registry: Registry, saved: list[str], model: str) -> None:
    a, b, c, d = saved
    assert registry.champion(model) is None
    with pytest.raises(DashError, match="no champion yet"):
        registry.rollback(model)
    for version in (a, b, c):
        registry.promote(model, version, by="training")
    assert names(registry.champion(model)) == [c, b, a]
    assert registry.rollback(model).version == b
    assert registry.rollback(model, by="anna").version == a
    with pytest.raises(DashError, match=f"{a} is the first champion"):
        registry.rollback(model)
    registry.promote(model, d)
    assert registry.rollback(model).version == a
    found = registry.champion(model)
    assert names(found) == [a, d, a, b, c, b, a], "nothing is forgotten"
    assert found is not None
    assert [term.by for term in found.terms()] == ["hand", "hand", "anna", "hand", *["training"] * 3]
    assert [term.restored for term in found.terms()] == [True, False, True, True, False, False, False]
    assert found.sha256 == registry.version(model, a).sha256


def test_a_rolled_back_champion_that_is_promoted_again(registry: Registry, saved: list[str], model: str) -> None:
    a, b, c, _ = saved
    for version in (a, b, c):
        registry.promote(model, version)
    registry.rollback(model)  # to b
    registry.promote(model, c)
    assert registry.rollback(model).version == b
    assert registry.rollback(model).version == a


def test_promoting_the_champion_changes_nothing(registry: Registry, saved: list[str], model: str) -> None:
    first = registry.promote(model, saved[0])
    assert registry.promote(model, saved[0]) == first
    assert registry.champion(model) == first


def test_a_promotion_may_expect_a_champion(registry: Registry, saved: list[str], model: str) -> None:
    with pytest.raises(DashError, match=f"the champion is none, not {saved[0]}; {saved[1]} was not promoted"):
        registry.promote(model, saved[1], expect=saved[0])
    registry.promote(model, saved[0], expect=None, by="anna")
    with pytest.raises(DashError, match=f"the champion is {saved[0]}, promoted by anna at .*, not none"):
        registry.promote(model, saved[1], expect=None)
    assert names(registry.promote(model, saved[1], expect=saved[0])) == saved[1::-1]


def together(work: list[Callable[[], object]]) -> list[BaseException]:
    """Do all at the same moment; the errors."""
    go, errors = threading.Barrier(len(work)), []

    def one(task: Callable[[], object]) -> None:
        try:
            go.wait(10)
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(task,)) for task in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


@pytest.mark.parametrize("first", [True, False], ids=["no champion yet", "a champion"])
def test_of_promotions_at_once_one_wins(settings: Settings, saved: list[str], model: str, first: bool) -> None:
    """All found the same champion; the others are told who won."""
    registries = [Registry(settings) for _ in range(4)]
    before = None if first else registries[0].promote(model, saved[0])
    won: list[str] = []
    work = [
        lambda version=version, one=one: won.append(
            one.promote(model, version, expect=before and before.version, by=f"by-{version}").version
        )
        for version, one in zip(saved[1:], registries[1:], strict=True)
    ]
    errors = together(work)
    assert len(won) == 1
    assert names(registries[0].champion(model)) == ([*won] if first else [*won, saved[0]])
    assert len(errors) == 2
    for error in errors:
        assert isinstance(error, DashError)
        assert won[0] in str(error)
        assert f"by by-{won[0]}" in str(error)


def test_no_promotion_that_was_told_to_have_worked_is_lost(settings: Settings, saved: list[str], model: str) -> None:
    registries, told = [Registry(settings) for _ in range(4)], []
    work = [
        lambda version=version, one=one: told.append(one.promote(model, version))
        for version, one in zip(saved, registries, strict=True)
    ]
    for _ in range(8):
        for error in together(work):
            assert isinstance(error, DashError)
            assert "at the same moment" in str(error)
    champion = registries[0].champion(model)
    assert champion is not None
    terms = {(term.version, term.promoted_at) for term in champion.terms()}
    assert len(terms) == len(champion.terms())
    assert terms == {(one.version, one.promoted_at) for one in told}


def test_a_write_whose_answer_was_lost_is_still_the_winner(settings: Settings, saved: list[str], model: str) -> None:
    """The client sends it again then, and meets its own object."""

    class Twice(s3.Bucket):
        def put(self, key: str, data: bytes, *, new: bool = False, replaces: str | None = None) -> None:
            super().put(key, data, new=new, replaces=replaces)
            super().put(key, data, new=new, replaces=replaces)

    one = s3.bucket(settings)
    registry = Registry(settings)
    registry._bucket = Twice(one.client, one.name, one.where)
    for version in saved[:2]:
        assert registry.promote(model, version).version == version
    assert names(Registry(settings).champion(model)) == saved[1::-1]


def test_a_damaged_pointer_is_told_and_can_be_replaced(
    registry: Registry, bucket: s3.Bucket, saved: list[str], model: str
) -> None:
    registry.promote(model, saved[0])
    bucket.put(f"models/{model}/champion.json", b'{"version": 1}')
    with pytest.raises(DashError, match=r"champion\.json is damaged"):
        registry.champion(model)
    assert names(registry.promote(model, saved[1])) == [saved[1]]
    assert names(registry.champion(model)) == [saved[1]]


# --- the store


def test_an_object_that_has_not_changed_is_not_sent_again(bucket: s3.Bucket, unique: Callable[[str], str]) -> None:
    key = f"scratch/{unique('object')}"
    assert bucket.read(key) is None
    assert bucket.get(key) is None
    bucket.put(key, b"one")
    found = bucket.read(key)
    assert found is not None
    assert found.data == b"one"
    assert bucket.read(key, found) is found
    bucket.put(key, b"two", replaces=found.etag)
    with pytest.raises(s3.Conflict):
        bucket.put(key, b"three", replaces=found.etag)
    changed = bucket.read(key, found)
    assert changed is not None
    assert changed.data == b"two"
    bucket.client.delete_object(Bucket=bucket.name, Key=key)
    assert bucket.read(key, changed) is None
    with pytest.raises(s3.Conflict):
        bucket.put(key, b"four", replaces=changed.etag)
    assert bucket.get(key) is None


def test_a_store_that_is_away(settings: Settings, unused_port: int) -> None:
    away = Registry(settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{unused_port}"}))
    started = time.monotonic()
    for use in (away.champion, away.versions, away.rollback):
        with pytest.raises(Unavailable, match=f"no connection to http://127.0.0.1:{unused_port}"):
            use("small")
    with pytest.raises(Unavailable):
        away.save(artifact(spec("small")), {})
    assert time.monotonic() - started < 30


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"s3_secret_key": SecretStr("wrong")}, "check DASH_S3_ACCESS_KEY and DASH_S3_SECRET_KEY"),
        ({"s3_bucket": "no-such-bucket"}, "has no bucket no-such-bucket; make it, or set DASH_S3_BUCKET"),
    ],
)
def test_a_wrong_setting_is_told(settings: Settings, change: dict[str, object], said: str) -> None:
    registry = Registry(settings.model_copy(update=change))
    for use in (registry.champion, registry.versions):
        with pytest.raises(DashError, match=said) as error:
            use("small")
        assert not isinstance(error.value, Unavailable)


def test_keys_may_come_from_aws_own_places(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    without = settings.model_copy(update={"s3_access_key": None, "s3_secret_key": None})
    assert settings.s3_access_key
    assert settings.s3_secret_key
    nowhere = str(tmp_path_factory.mktemp("aws") / "none")
    for name, value in {"AWS_SHARED_CREDENTIALS_FILE": nowhere, "AWS_CONFIG_FILE": nowhere,
                        "AWS_EC2_METADATA_DISABLED": "true"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DashError, match="no key; set DASH_S3_ACCESS_KEY"):
        Registry(without).champion("small")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", settings.s3_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", settings.s3_secret_key.get_secret_value())
    assert Registry(without).champion("no-such-model") is None
