"""Names and shapes of topics, and the options the two Kafka libraries get."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from dash_pipeline import topics
from dash_pipeline.kafka import confluent_options, kafka_python_options
from dash_pipeline.settings import Settings


def settings(**overrides: object) -> Settings:
    values: dict[str, object] = {
        "kafka_bootstrap": "k1:9092,k2:9092",
        "timescale_dsn": "postgresql://localhost/x",
        "opensearch_url": "http://localhost:9200",
    }
    return Settings(**{**values, **overrides})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        ("block", "bsc.blocks"),
        ("transaction", "bsc.transactions"),
        ("log", "bsc.logs"),
        ("token_transfer", "bsc.token_transfers"),
        ("trace", "bsc.traces"),
        ("contract", "bsc.contracts"),
        ("token", "bsc.tokens"),
    ],
)
def test_a_topic_for_each_type(type_: str, name: str) -> None:
    assert topics.topic_name("bsc", type_) == name


def test_an_unknown_type_has_no_topic() -> None:
    with pytest.raises(KeyError):
        topics.topic_name("bsc", "receipt")


def test_what_should_exist() -> None:
    wanted = topics.wanted(["ethereum", "anvil"], partitions=6)
    assert len(wanted) == 2 * len(topics.TYPES) + 2
    assert wanted["anvil.logs"]["num_partitions"] == 6
    assert wanted["anvil.blocks"]["num_partitions"] == 1
    assert wanted["anvil.logs"]["configs"] == {
        "max.message.bytes": str(20 << 20),
        "retention.ms": "604800000",
    }
    assert wanted[topics.DEAD_LETTERS]["num_partitions"] == 1
    assert wanted[topics.ANOMALIES]["num_partitions"] == 6
    assert wanted[topics.DEAD_LETTERS]["configs"]["max.message.bytes"] == str(24 << 20)


def test_a_plain_broker_gets_no_password() -> None:
    options = kafka_python_options(settings(kafka_username="dash", kafka_password=SecretStr("secret")))
    assert options["bootstrap_servers"] == ["k1:9092", "k2:9092"]
    assert not any(name.startswith("sasl") for name in options)
    assert "sasl.password" not in confluent_options(settings())


def test_both_libraries_log_in_alike() -> None:
    secured = settings(
        kafka_security_protocol="SASL_SSL",
        kafka_username="dash",
        kafka_password=SecretStr("secret"),
        kafka_ca_file="/etc/ca.pem",
    )
    ours, theirs = kafka_python_options(secured), confluent_options(secured)
    assert ours["sasl_mechanism"] == theirs["sasl.mechanism"] == "SCRAM-SHA-512"
    assert ours["sasl_plain_username"] == theirs["sasl.username"] == "dash"
    assert ours["sasl_plain_password"] == theirs["sasl.password"] == "secret"
    assert ours["ssl_cafile"] == theirs["ssl.ca.location"] == "/etc/ca.pem"
