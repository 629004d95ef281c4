"""Spike: from the last message of a withdrawal to its anomaly on Kafka, and to the alert at a webhook, lane warm.

1,000 events/s of swaps on 400 pools, one of which is drained twice a second; champions trained on the project's samples
score the drained pool before the alert goes out. The clock starts when the withdrawal's
last message is handed to the producer, and stops when a consumer of dash.anomalies, and a webhook, have it.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from confluent_kafka import Consumer, TopicPartition

from benchmarks.load import fresh_database, make_topics, send_blocks
from dash_pipeline import topics
from dash_pipeline.kafka import confluent_options
from dash_pipeline.microbatch.drain import Limits, drain
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.models import lifecycle
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.topics import ANOMALIES

TYPES = ("blocks", "transactions", "logs", "token_transfers")
PARTITIONS = 4
# The servers have just been started: until their code is compiled they take most of two processors.
WARM_UP_S = 90
SECONDS = WARM_UP_S + 45
SCORED_BY = ("pool_risk", "wallet_risk")
RATE = 1_000


def run(stack: Stack) -> dict[str, object]:
    """Percentiles in ms over the withdrawals after the warm-up."""
    topics.ensure(stack.settings(), [])
    for model in SCORED_BY:
        lifecycle.store_labels(stack.settings(), model)
        lifecycle.train(stack.settings(), model)
    with fresh_database(stack) as settings, _webhook() as (url, told):
        settings = settings.model_copy(update={"alert_routes": {"bench": url}})
        chain = f"spike{time.time_ns()}"
        make_topics(settings, [f"{chain}.{type_}" for type_ in TYPES], PARTITIONS)
        listener = _Listener(settings, chain)
        mine = lane(chain, ((f"{chain}.{type_}", p) for type_ in TYPES for p in range(PARTITIONS)))
        answer, ours = mp.get_context("spawn").Pipe(duplex=False)
        sender = mp.get_context("spawn").Process(
            target=send_blocks, args=(settings, chain, RATE, SECONDS, 0, RATE, ours, WARM_UP_S)
        )
        sender.start()
        done = drain(settings, mine, Limits(idle_timeout_s=10, max_run_s=SECONDS + 60), "bench")
        sent: dict[str, float] = answer.recv()
        sender.join()
        published = listener.close()
    return {
        "events_per_s": RATE,
        "events": done.messages,
        "withdrawals": len(sent),
        "found": sum(tx in published for tx in sent),
        "alerted": sum(tx in told for tx in sent),
        "to_anomaly_ms": _percentiles([published[tx] - at for tx, at in sent.items() if tx in published]),
        "to_webhook_ms": _percentiles([told[tx] - at for tx, at in sent.items() if tx in told]),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{q}": round(1e3 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)], 1) for q in (50, 95, 99)}


class _Listener:
    """Hears of anomalies of one chain: transaction -> when the first message that names it came."""

    def __init__(self, settings: Settings, chain: str) -> None:
        self._chain, self._heard, self._stop = chain, dict[str, float](), threading.Event()
        options = {"group.id": chain, "enable.auto.commit": False, "fetch.wait.max.ms": 5, "fetch.queue.backoff.ms": 2}
        self._consumer = Consumer(confluent_options(settings) | options)
        partitions = self._consumer.list_topics(ANOMALIES).topics[ANOMALIES].partitions
        ends = [self._consumer.get_watermark_offsets(TopicPartition(ANOMALIES, p))[1] for p in partitions]
        self._consumer.assign([TopicPartition(ANOMALIES, p, end) for p, end in zip(partitions, ends, strict=True)])
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                now, anomaly = time.time(), json.loads(message.value() or b"{}")
                if anomaly["chain"] == self._chain:
                    self._heard.setdefault(anomaly["tx_hash"], now)

    def close(self) -> dict[str, float]:
        self._stop.set()
        self._thread.join()
        self._consumer.close()
        return self._heard


class _webhook:  # noqa: N801
    """A receiver on a free port: its URL, and transaction -> when its alert came."""

    def __enter__(self) -> tuple[str, dict[str, float]]:
        told: dict[str, float] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for alert in body["alerts"]:
                    told.setdefault(alert["tx_hash"], time.time())
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/", told

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
