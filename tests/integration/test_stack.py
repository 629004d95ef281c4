"""The stack on real servers: passwords are asked for, kills are survived, nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pydantic import SecretStr

from dash_pipeline.errors import DashError
from dash_pipeline.kafka import confluent_options
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack, processes
from dash_pipeline.stack.servers.base import http_json

DOCUMENT = {"said": "before the kill"}


def test_kafka_refuses_a_wrong_password(settings: Settings) -> None:
    options = client(settings) | {"sasl.password": "wrong", "log_level": "0"}

    with pytest.raises(KafkaException):
        AdminClient(options).list_topics(timeout=3)


def test_timescale_refuses_a_wrong_password(settings: Settings) -> None:
    dsn = settings.timescale_dsn.get_secret_value().replace("dash:", "dash:wrong", 1)

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(dsn)


def test_the_superuser_cannot_come_by_the_network(stack: Stack) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects"):
        psycopg.connect(
            host="127.0.0.1",
            port=stack.ports["timescale"],
            user="postgres",
            password=stack.place.secrets.timescale_superuser,
        )


@pytest.mark.parametrize("authorization", [None, "Basic ZGFzaDp3cm9uZw==", "Bearer x"])
def test_opensearch_refuses_who_has_no_password(settings: Settings, authorization: str | None) -> None:
    request = urllib.request.Request(f"{settings.opensearch_url}/_cat/indices")
    if authorization:
        request.add_header("Authorization", authorization)

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)

    assert refused.value.code == 401
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic ")


def test_s3_refuses_a_wrong_key(settings: Settings) -> None:
    client = s3(settings, secret="wrong")

    with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|Forbidden"):
        client.list_objects_v2(Bucket=settings.s3_bucket)


def test_opensearch_keeps_a_snapshot_in_s3(settings: Settings) -> None:
    repository = {"type": "s3", "settings": {"bucket": settings.s3_bucket, "base_path": "snapshots/test"}}

    assert opensearch(settings, "_snapshot/test", "PUT", repository) == {"acknowledged": True}
    assert opensearch(settings, "_snapshot/test/_verify", "POST")["nodes"]


def test_kafka_keeps_its_messages_when_killed(stack: Stack, settings: Settings) -> None:
    admin = AdminClient(client(settings))
    admin.create_topics([NewTopic("killed", 1)])["killed"].result()
    producer = Producer(client(settings))
    producer.produce("killed", b"before the kill")
    assert producer.flush(10) == 0

    kill_and_wait(stack, "kafka")

    assert first_message(settings, "killed") == b"before the kill"


def test_timescale_keeps_what_was_committed_when_killed(stack: Stack, fresh_database: Settings) -> None:
    dsn = fresh_database.timescale_dsn.get_secret_value()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE killed AS SELECT 'before the kill' AS said")

    kill_and_wait(stack, "timescale")

    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT said FROM killed").fetchall() == [("before the kill",)]


def test_opensearch_keeps_its_documents_when_killed(stack: Stack, settings: Settings) -> None:
    opensearch(settings, "killed/_doc/1", "PUT", DOCUMENT)

    kill_and_wait(stack, "opensearch")

    assert opensearch(settings, "killed/_doc/1", "GET")["_source"] == DOCUMENT


def test_s3_keeps_its_objects_when_killed(stack: Stack, settings: Settings) -> None:
    client = s3(settings)
    client.put_object(Bucket=settings.s3_bucket, Key="killed", Body=b"before the kill")

    kill_and_wait(stack, "s3")

    assert client.get_object(Bucket=settings.s3_bucket, Key="killed")["Body"].read() == b"before the kill"


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    names = Stack.resolve(["stores"])
    before = {name: stack.pid(name) for name in names}

    stack.up(only=names, content=False)

    assert {name: stack.pid(name) for name in names} == before


def test_a_taken_port_is_named_before_anything_starts(stack: Stack, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = Stack.at(tmp_path / "stack", port_offset=port - 18333, opt=stack.layout.opt)

        with pytest.raises(DashError, match=rf"port {port} \(for s3\) is taken .*DASH_PORT_OFFSET"):
            other.up(only=["s3"])

        assert not processes.of_stack(other.layout)


def test_an_offset_is_not_changed_under_running_servers(stack: Stack) -> None:
    moved = Stack.at(stack.layout.home, stack.ports.offset + 1000, stack.layout.opt)

    with pytest.raises(DashError, match="down` first"):
        moved.up(only=["s3"], content=False)


def test_reset_deletes_data_and_keeps_passwords_unless_told(stack: Stack, tmp_path: Path) -> None:
    other = Stack.at(tmp_path / "stack", 2000, opt=stack.layout.opt)
    other.up(only=["s3"], content=False)
    secrets = other.layout.secrets.read_text()

    other.reset()

    assert not processes.of_stack(other.layout)
    assert not other.layout.data.exists()
    assert other.layout.secrets.read_text() == secrets
    other.reset(everything=True)
    assert not other.layout.secrets.exists()
    assert not other.layout.env.exists()


def test_down_ends_what_a_killed_supervisor_left_behind(stack: Stack, tmp_path: Path) -> None:
    other = Stack.at(tmp_path / "stack", 2000, opt=stack.layout.opt)
    other.up(only=["timescale", "s3"], content=False)
    for pid in processes.of_stack(other.layout):
        if b"supervisord" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert processes.of_stack(other.layout)

    other.down()

    assert not processes.of_stack(other.layout)


def test_down_leaves_no_process_of_its_own_and_touches_no_other(stack: Stack, tmp_path: Path) -> None:
    other = Stack.at(tmp_path / "a folder with spaces and a long name" / ("x" * 80), 2000, opt=stack.layout.opt)
    before = processes.of_stack(stack.layout)
    other.up(only=["timescale", "s3"], content=False)
    assert processes.of_stack(other.layout)

    other.down()

    assert not processes.of_stack(other.layout)
    assert before <= processes.of_stack(stack.layout)


def kill_and_wait(stack: Stack, name: str) -> None:
    killed = stack.kill(name)
    stack.wait_ready(name)
    assert stack.pid(name) != killed


def client(settings: Settings) -> dict[str, str | int | float | bool]:
    return {**confluent_options(settings)}


def first_message(settings: Settings, topic: str) -> bytes:
    consumer = Consumer(client(settings) | {"group.id": "test"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None
    assert message.error() is None
    return message.value() or b""


def opensearch(settings: Settings, path: str, method: str, body: object = None) -> dict[str, object]:
    password = settings.opensearch_password or SecretStr("")
    url = f"{settings.opensearch_url}/{path}"
    return dict(http_json(url, user="dash", password=password.get_secret_value(), body=body, method=method))


def s3(settings: Settings, secret: str | None = None) -> Any:
    right = (settings.s3_secret_key or SecretStr("")).get_secret_value()
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=secret or right,
    )
