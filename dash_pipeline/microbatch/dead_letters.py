"""Dead letters -> their topic, so that a producer's owner can see what was refused without a database.

Belongs here: publishing. Does not belong here: who decides that a message is one (`decode.py`, `commit.py`).
"""

from __future__ import annotations

from confluent_kafka import Producer

from dash_pipeline.errors import Unavailable
from dash_pipeline.kafka import confluent_options
from dash_pipeline.settings import Settings
from dash_pipeline.storage.timescale import DeadLetter
from dash_pipeline.topics import DEAD_LETTERS

_FLUSH_S = 30.0


class Publisher:
    """Publishes dead letters; connects at the first one, because most runs have none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None

    def publish(self, letters: list[DeadLetter]) -> None:
        """Publish whole messages, where they came from and why in the headers. Raises Unavailable unless all are in."""
        if self._producer is None:
            self._producer = Producer(
                confluent_options(self._settings)
                | {"message.max.bytes": 24 << 20, "enable.idempotence": True, "linger.ms": 0}
            )
        failed: list[str] = []
        for letter in letters:
            self._producer.produce(
                DEAD_LETTERS,
                letter.payload,
                headers={
                    "topic": letter.topic,
                    "partition": str(letter.partition),
                    "offset": str(letter.offset),
                    "reason": letter.reason,
                },
                on_delivery=lambda error, _: failed.append(error.str()) if error else None,
            )
        if self._producer.flush(_FLUSH_S) or failed:
            raise Unavailable(f"{DEAD_LETTERS}: {failed[0] if failed else 'the broker does not answer'}")

    def close(self) -> None:
        """Nothing is left to send: `publish` waits for it."""
        self._producer = None
