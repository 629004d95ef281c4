"""How to reach Kafka: Settings -> the options of the two client libraries.

Belongs here: addresses, security and what a missing broker is called.
Does not belong here: topics (`topics.py`); the tuning of a producer or consumer, which stays beside its loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings

# The library's 30 s is long to look at a command that hangs.
BOOTSTRAP_TIMEOUT_MS = 15_000
_UNREACHABLE = (KafkaConnectionError, KafkaTimeoutError)


def kafka_python_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for kafka-python's producer, consumer and admin client."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap.split(","),
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "security_protocol": settings.kafka_security_protocol,
    }
    if _logs_in(settings):
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": _secret(settings),
        }
    if settings.kafka_ca_file:
        options["ssl_cafile"] = str(settings.kafka_ca_file)
    return options


def confluent_options(settings: Settings) -> dict[str, str]:
    """The configuration with which a confluent-kafka client connects."""
    options = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "security.protocol": settings.kafka_security_protocol,
        # When all brokers are gone, a client that begins anew with the bootstrap servers does so without a pause: forty
        # attempts a second, and as many lines. Brokers that come back elsewhere are found by the next run's client.
        "metadata.recovery.strategy": "none",
    }
    if _logs_in(settings):
        options |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_username or "",
            "sasl.password": _secret(settings) or "",
        }
    if settings.kafka_ca_file:
        options["ssl.ca.location"] = str(settings.kafka_ca_file)
    return options


@contextmanager
def kafka_errors(settings: Settings) -> Iterator[None]:
    """What kafka-python raises inside becomes what `as_dash_error` makes of it."""
    try:
        yield
    except KafkaError as error:
        raise as_dash_error(settings, error) from error


def as_dash_error(settings: Settings, error: KafkaError) -> DashError:
    """One line for a person: Unavailable when nothing answers, DashError when the broker refuses.

    The library keeps trying when it is not let in, and says no more than that it could not connect.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, _UNREACHABLE):
        login = f", or does not know user {settings.kafka_username} with this password" if _logs_in(settings) else ""
        return Unavailable(f"Kafka at {settings.kafka_bootstrap} does not answer{login}: {said}")
    return DashError(f"Kafka at {settings.kafka_bootstrap}: {said}")


def _logs_in(settings: Settings) -> bool:
    return settings.kafka_security_protocol.startswith("SASL")


def _secret(settings: Settings) -> str | None:
    return settings.kafka_password.get_secret_value() if settings.kafka_password else None
