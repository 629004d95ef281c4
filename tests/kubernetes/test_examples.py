"""The operators' examples. Their schemas are not at hand: what is looked at is what a person would look for first."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import yaml
from kubernetes_validate import validate

from tests.kubernetes.conftest import CHART, KUBERNETES, Object, named

EXAMPLES = CHART.parent / "examples"
ZONE = "topology.kubernetes.io/zone"


def objects(file: str) -> dict[tuple[str, str], Object]:
    """(kind, name) -> object of an example."""
    found = [one for one in yaml.safe_load_all((EXAMPLES / file).read_text()) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def test_kafka_has_three_nodes_in_three_zones() -> None:
    found = objects("kafka.yaml")
    pool, kafka = found["KafkaNodePool", "broker"], found["Kafka", "dash-kafka"]["spec"]["kafka"]
    assert pool["spec"]["replicas"] == 3
    assert pool["metadata"]["labels"]["strimzi.io/cluster"] == "dash-kafka"
    (spread,) = pool["spec"]["template"]["pod"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == (ZONE, "DoNotSchedule")
    assert kafka["rack"] == {"topologyKey": ZONE}
    assert kafka["config"]["default.replication.factor"] == 3
    assert kafka["config"]["min.insync.replicas"] == 2
    assert re.fullmatch(r"\d+\.\d+\.\d+", kafka["version"])
    assert [one["authentication"] for one in kafka["listeners"]] == [{"type": "scram-sha-512"}]


def test_kafka_takes_the_platforms_largest_message() -> None:
    from dash_pipeline.topics import MAX_DEAD_LETTER_BYTES

    config = objects("kafka.yaml")["Kafka", "dash-kafka"]["spec"]["kafka"]["config"]
    assert config["message.max.bytes"] >= MAX_DEAD_LETTER_BYTES
    assert config["replica.fetch.max.bytes"] >= MAX_DEAD_LETTER_BYTES


def test_postgresql_has_three_instances_in_three_zones() -> None:
    found = objects("postgresql.yaml")
    cluster = found["Cluster", "dash-db"]["spec"]
    assert cluster["instances"] == 3
    assert cluster["affinity"]["topologyKey"] == ZONE
    assert cluster["affinity"]["podAntiAffinityType"] == "required"
    assert re.search(r":17\.\d+-\d+\.\d+\.\d+$", cluster["imageName"])
    assert cluster["postgresql"]["shared_preload_libraries"] == ["timescaledb"]
    assert cluster["bootstrap"]["initdb"]["postInitApplicationSQL"] == ["CREATE EXTENSION IF NOT EXISTS timescaledb"]
    database = found["Database", "dash-db-dagster"]["spec"]
    assert database["cluster"] == {"name": "dash-db"}
    assert database["owner"] in [role["name"] for role in cluster["managed"]["roles"]]


def test_opensearch_has_three_nodes_in_three_zones() -> None:
    cluster = objects("opensearch.yaml")["OpenSearchCluster", "dash-search"]["spec"]
    (pool,) = cluster["nodePools"]
    assert pool["replicas"] == 3
    (spread,) = pool["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == (ZONE, "DoNotSchedule")
    assert re.fullmatch(r"\d+\.\d+\.\d+", cluster["general"]["version"])
    assert pool["resources"]["limits"]["memory"]


def test_secrets_come_from_what_the_operators_make() -> None:
    found = objects("external-secrets.yaml")
    for one in found.values():
        if "external-secrets" not in one["apiVersion"]:
            validate(one, KUBERNETES, strict=True)
    readable = set(found["Role", "secret-reader"]["rules"][0]["resourceNames"])
    secrets, certificates = (found["ExternalSecret", f"dash-{name}"]["spec"] for name in ("secrets", "certificates"))
    used = {one["remoteRef"]["key"] for spec in (secrets, certificates) for one in spec["data"]}
    assert used == readable
    given = {one["secretKey"] for one in secrets["data"]}
    template = secrets["target"]["template"]["data"]
    assert {name for text in template.values() for name in re.findall(r"\{\{ \.(\w+) }}", text)} == given


def test_the_platform_is_told_of_them(render: Callable[..., list[Object]]) -> None:
    """The chart's objects with the examples' values: addresses, Secrets and files are those of the examples."""
    production = CHART / "values-production.yaml"
    rendered = render(f"--values={production}", f"--values={EXAMPLES / 'values.yaml'}")
    for one in rendered:
        validate(one, KUBERNETES, strict=True)
    settings = named(rendered, "ConfigMap", "-settings")["data"]
    external = objects("external-secrets.yaml")
    variables = set(external["ExternalSecret", "dash-secrets"]["spec"]["target"]["template"]["data"])
    assert not variables & set(settings)
    assert {"DASH_TIMESCALE_DSN", "DAGSTER_PG_PASSWORD"} <= variables
    kafka = objects("kafka.yaml")["Kafka", "dash-kafka"]
    port = kafka["spec"]["kafka"]["listeners"][0]["port"]
    assert settings["DASH_KAFKA_BOOTSTRAP"] == f"dash-kafka-kafka-bootstrap.dash-data:{port}"
    search = urlsplit(settings["DASH_OPENSEARCH_URL"])
    general = objects("opensearch.yaml")["OpenSearchCluster", "dash-search"]["spec"]["general"]
    assert search.hostname == f"{general['serviceName']}.dash-data"
    assert search.port == general["httpPort"]
    files = {
        f"/certificates/{one['secretKey']}" for one in external["ExternalSecret", "dash-certificates"]["spec"]["data"]
    }
    assert files == {settings["DASH_KAFKA_CA_FILE"], settings["DASH_OPENSEARCH_CA_FILE"]}
    policy = named(rendered, "NetworkPolicy", "-data")["spec"]["egress"]
    data = next(rule for rule in policy if "namespaceSelector" in rule["to"][0])
    assert data["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "dash-data"}
    assert {one["port"] for one in data["ports"]} == {5432, port, general["httpPort"]}
