"""The chart as Helm renders it: what Kubernetes and Dagster would take, and what they would not. No cluster."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import kubernetes_validate.utils
import pytest
import yaml
from kubernetes_validate import ValidationError, validate
from pydantic import SecretStr

from dash_pipeline.settings import Settings
from dash_pipeline.stack.servers.dagster import CODE_LOCATIONS
from tests.kubernetes.conftest import CHART, GIVEN, KUBERNETES, Helm, Object, named, pods

Render = Callable[..., list[Object]]

ACCOUNTS = ("daemon", "webserver", "code", "runs")
SERVING = {"webserver", "api", "daemon", *(f"code-{name}" for name in CODE_LOCATIONS)}
CRDS = {"ScaledObject"}
# Settings that are secret, so they have no place in `settings`; and the one that `runs.sizes` makes.
SECRET = {
    *(name for name, field in Settings.model_fields.items() if SecretStr in getattr(field.annotation, "__args__", ())),
    "timescale_dsn",
    "s3_access_key",
    "encryption_keys",
    "notify_channels",
}
MADE = {"lane_pods"}

# Its files are large, and it reads them for each object.
kubernetes_validate.utils.schema_contents = lru_cache(kubernetes_validate.utils.schema_contents)


def component(pod: Object) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def ours(objects: list[Object]) -> dict[str, Object]:
    """Pods of the platform's image; HAProxy's is another."""
    return {name: pod for name, pod in pods(objects).items() if component(pod) != "haproxy"}


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """What a label selector is by definition."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        if rule["operator"] == "In" and labels.get(rule["key"]) not in rule["values"]:
            return False
        if rule["operator"] == "Exists" and rule["key"] not in labels:
            return False
        assert rule["operator"] in ("In", "Exists")
    return True


def values_of(node: Any) -> Iterator[Any]:
    """Every scalar in it."""
    if isinstance(node, dict | list):
        for one in node.values() if isinstance(node, dict) else node:
            yield from values_of(one)
    else:
        yield node


# What Kubernetes takes


def test_kubernetes_takes_every_object(rendered: list[Object]) -> None:
    for one in rendered:
        validate(one, KUBERNETES, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered]
    assert len(names) == len(set(names))


def test_the_validator_refuses_a_misspelt_field(default: list[Object]) -> None:
    """So the test above can fail."""
    webserver = json.loads(json.dumps(named(default, "Deployment", "-webserver")))
    webserver["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(ValidationError):
        validate(webserver, KUBERNETES, strict=True)


def test_lint(helm: Helm) -> None:
    for values in ("values.yaml", "values-small.yaml", "values-production.yaml"):
        done = helm("lint", "--strict", CHART, f"--values={CHART / values}", f"--values={GIVEN}")
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_pod_without_limits_or_with_rights_it_does_not_need(rendered: list[Object]) -> None:
    for name, pod in pods(rendered).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all("hostPath" not in volume for volume in spec.get("volumes", [])), name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"]["drop"] == ["ALL"], name
            for amount in ("limits", "requests"):
                assert {"cpu", "memory"} <= set(container["resources"][amount]), name


def test_a_token_only_for_who_asks_the_api(rendered: list[Object]) -> None:
    asking = {component(pod) for pod in ours(rendered).values() if pod["spec"]["automountServiceAccountToken"]}
    assert asking == {"webserver", "daemon", "sweep"}
    for account in ACCOUNTS:
        assert named(rendered, "ServiceAccount", f"-{account}")["automountServiceAccountToken"] is False


def test_what_serves_is_probed_and_keeps_a_replica(rendered: list[Object]) -> None:
    deployments = {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in rendered if one["kind"] == "Deployment"
    }
    assert set(deployments) - {"haproxy"} == SERVING
    budgets = [one["spec"] for one in rendered if one["kind"] == "PodDisruptionBudget"]
    for name in SERVING:
        template = deployments[name]["spec"]["template"]
        (container,) = template["spec"]["containers"]
        assert {"startupProbe", "livenessProbe"} <= set(container)
        if name == "daemon":
            assert deployments[name]["spec"]["strategy"] == {"type": "Recreate"}
            assert deployments[name]["spec"]["replicas"] == 1
            continue
        assert "readinessProbe" in container
        assert deployments[name]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        # One that may go: with one replica a node can still be drained.
        (budget,) = [one for one in budgets if matches(one["selector"], template["metadata"]["labels"])]
        assert budget["maxUnavailable"] == 1
        keys = {one["topologyKey"] for one in template["spec"]["topologySpreadConstraints"]}
        assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        assert "podAntiAffinity" in template["spec"]["affinity"]


def test_production_has_replicas_in_every_zone(render: Render) -> None:
    objects = render(f"--values={CHART / 'values-production.yaml'}")
    for name in CODE_LOCATIONS:
        deployment = named(objects, "Deployment", f"-code-{name}")["spec"]
        assert deployment["replicas"] == 2
        when = {
            one["topologyKey"]: one["whenUnsatisfiable"]
            for one in deployment["template"]["spec"]["topologySpreadConstraints"]
        }
        assert when["topology.kubernetes.io/zone"] == "DoNotSchedule"
        assert deployment["template"]["spec"]["priorityClassName"] == "dash-dash-pipeline-serving"
    assert "replicas" not in named(objects, "Deployment", "-webserver")["spec"]
    assert named(objects, "HorizontalPodAutoscaler", "-webserver")["spec"]["minReplicas"] == 3
    serving, runs = (named(objects, "PriorityClass", f"-{name}") for name in ("serving", "runs"))
    assert serving["value"] > runs["value"]
    assert runs["preemptionPolicy"] == "Never"


def test_images_are_the_values(render: Render) -> None:
    digest = "sha256:" + "a" * 64
    for words, image in (
        (["--set=image.repository=r.example/dash", "--set=image.tag=1.2.3"], "r.example/dash:1.2.3"),
        (["--set=image.digest=" + digest, "--set-string=image.tag=1"], f"dash-pipeline@{digest}"),
    ):
        objects = render(*words)
        assert {one["image"] for pod in ours(objects).values() for one in containers(pod)} == {image}
        assert dagster_yaml(objects)["run_launcher"]["config"]["job_image"] == image
    objects = render("--set=image.digest=" + digest, "--set-string=code.locations.marts.image.tag=2")
    (marts,) = named(objects, "Deployment", "-code-marts")["spec"]["template"]["spec"]["containers"]
    assert marts["image"] == "dash-pipeline:2"
    assert {"name": "DAGSTER_CONTAINER_IMAGE", "value": "dash-pipeline:2"} in marts["env"]


def test_selectors_find_their_pods_and_never_change(default: list[Object], render: Render) -> None:
    """Kubernetes refuses an upgrade that changes a Deployment's selector."""
    for one in default:
        if one["kind"] == "Deployment":
            assert matches(one["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"])
        if one["kind"] == "Service":
            found = [
                pod
                for pod in pods(default).values()
                if matches({"matchLabels": one["spec"]["selector"]}, pod["metadata"]["labels"])
            ]
            assert len(found) == 1, one["metadata"]["name"]
            ports = {port["name"] for port in found[0]["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports
    other = render(
        f"--values={CHART / 'values-production.yaml'}", "--set-string=image.tag=2", "--set=networkPolicy.enabled=false"
    )
    for one in default:
        if one["kind"] == "Deployment":
            again = next(
                o for o in other if (o["kind"], o["metadata"]["name"]) == ("Deployment", one["metadata"]["name"])
            )
            assert again["spec"]["selector"] == one["spec"]["selector"]
            assert set(one["spec"]["selector"]["matchLabels"]) == {
                "app.kubernetes.io/name",
                "app.kubernetes.io/instance",
                "app.kubernetes.io/component",
            }


# Secrets, rights, networks


def test_secrets_are_by_reference(rendered: list[Object]) -> None:
    assert not [one for one in rendered if one["kind"] == "Secret"]
    config = [one for one in rendered if one["kind"] == "ConfigMap"]
    assert not {f"DASH_{name.upper()}" for name in SECRET} & {key for one in config for key in one["data"]}
    for pod in pods(rendered).values():
        for container in containers(pod):
            for variable in container.get("env", []):
                if re.search("PASSWORD|SECRET|ACCESS_KEY|DSN", variable["name"]):
                    assert set(variable) == {"name", "valueFrom"}


def test_who_gets_the_secrets(default: list[Object]) -> None:
    """Webserver and daemon run none of the platform's code: they get their storage's password and the logs' key."""
    for pod in ours(default).values():
        (container,) = pod["spec"]["containers"]
        whole = {"secretRef": {"name": "dash-secrets"}} in container.get("envFrom", [])
        assert whole == (component(pod).startswith("code-") or component(pod) == "prepare")


def test_the_api_gets_no_more_secrets_than_it_reads_with(default: list[Object], render: Render) -> None:
    (container,) = named(default, "Deployment", "-api")["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "dash-dash-pipeline-settings"}}]
    secret = {one["name"] for one in container["env"] if "valueFrom" in one}
    assert secret == {"DASH_TIMESCALE_DSN", "DASH_OPENSEARCH_PASSWORD", "DASH_KAFKA_PASSWORD"}
    assert {"name": "DASH_API_PROXIES", "value": "*"} in container["env"]
    (own,) = named(render("--set=settings.api_proxies=10.0.0.0/8"), "Deployment", "-api")["spec"]["template"]["spec"][
        "containers"
    ]
    assert "DASH_API_PROXIES" not in [one["name"] for one in own["env"]]
    without = render("--set=api.enabled=false", "--set=haproxy.enabled=true", "--set=haproxy.tls.secretName=x")
    assert not [one for one in without if one["metadata"]["name"].endswith("-api")]
    assert "backend api" not in str(without)


def test_secrets_of_a_trial_are_in_secrets_only(render: Render) -> None:
    objects = render(
        "--set=existingSecret=",
        "--set=secrets.DASH_KAFKA_PASSWORD=hunter2",
        "--set=secrets.DAGSTER_PG_PASSWORD=hunter3",
    )
    holders = {one["metadata"]["name"] for one in objects if {"hunter2", "hunter3"} & set(map(str, values_of(one)))}
    assert holders == {"dash-dash-pipeline", "dash-dash-pipeline-prepare"}
    assert {one["kind"] for one in objects if one["metadata"]["name"] in holders} >= {"Secret"}
    job = named(objects, "Job", "-prepare")
    assert "dash-dash-pipeline" not in [one.get("name") for one in references(job)], "a Secret that is made after it"


def test_single_secrets_of_others(render: Render) -> None:
    """As operators make them."""
    objects = render(
        "--set=existingSecret=",
        "--set=secretEnv.DASH_TIMESCALE_DSN.name=pg-app",
        "--set=secretEnv.DASH_TIMESCALE_DSN.key=uri",
        "--set=secretEnv.DAGSTER_PG_PASSWORD.name=pg-dagster",
        "--set=secretEnv.DAGSTER_PG_PASSWORD.key=password",
    )
    expected = {
        "DASH_TIMESCALE_DSN": {"name": "pg-app", "key": "uri"},
        "DAGSTER_PG_PASSWORD": {"name": "pg-dagster", "key": "password"},
    }
    run = dagster_yaml(objects)["run_launcher"]["config"]
    assert "env_secrets" not in run
    code = named(objects, "Deployment", "-code-marts")["spec"]["template"]["spec"]["containers"][0]
    for env in (run["run_k8s_config"]["container_config"]["env"], code["env"]):
        assert {one["name"]: one["valueFrom"]["secretKeyRef"] for one in env if "valueFrom" in one} == expected


def rights() -> list[dict[str, str]]:
    with (Path(__file__).parent / "rights.csv").open() as file:
        return list(csv.DictReader(file))


def test_rights_are_those_of_the_table(rendered: list[Object]) -> None:
    """The table that the cluster's own answers are held against, held against the rendered roles."""
    granted: dict[str, set[tuple[str, str]]] = {account: set() for account in ACCOUNTS}
    for binding in (one for one in rendered if one["kind"] == "RoleBinding"):
        role = next(
            one for one in rendered if one["kind"] == "Role" and one["metadata"]["name"] == binding["roleRef"]["name"]
        )
        for subject in binding["subjects"]:
            account = subject["name"].removeprefix("dash-dash-pipeline-")
            for rule in role["rules"]:
                for group, resource, verb in (
                    (g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
                ):
                    name, _, sub = resource.partition("/")
                    full = f"{name}.{group}" if group else name
                    granted.setdefault(account, set()).add((verb, f"{full}/{sub}" if sub else full))
    assert not [one for one in rendered if one["kind"].startswith("Cluster")]
    assert granted.pop("sweep") == {("deletecollection", "jobs.batch")}
    assert granted == {
        account: {
            (one["verb"], one["resource"]) for one in rights() if (one["account"], one["allowed"]) == (account, "yes")
        }
        for account in ACCOUNTS
    }
    assert all("*" not in right for rights_ in granted.values() for right in rights_)


def test_the_network_is_closed_but_for_what_is_named(rendered: list[Object]) -> None:
    policies = [one["spec"] for one in rendered if one["kind"] == "NetworkPolicy"]
    stranger = [one for one in policies if matches(one["podSelector"], {"app": "stranger"})]
    assert stranger == [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]

    def reached(labels: dict[str, str], port: int) -> list[Object]:
        rules = [
            rule
            for one in policies
            if matches(one["podSelector"], labels)
            for rule in one.get("ingress", [])
            if port in [p["port"] for p in rule["ports"]]
        ]
        return [peer for rule in rules for peer in rule["from"]]

    def egress(labels: dict[str, str]) -> set[int]:
        rules = [r for one in policies if matches(one["podSelector"], labels) for r in one.get("egress", [])]
        return {port["port"] for rule in rules for port in rule["ports"]}

    labels = {component(pod): pod["metadata"]["labels"] for pod in ours(rendered).values()}
    labels["run"] = dagster_yaml(rendered)["run_launcher"]["config"]["labels"]
    for name in CODE_LOCATIONS:
        (peer,) = reached(labels[f"code-{name}"], 4000)
        asking = {who for who, theirs in labels.items() if matches(peer["podSelector"], theirs)}
        assert asking == {"webserver", "daemon"}
    (peer,) = reached(labels["webserver"], 3000)
    assert {who for who, theirs in labels.items() if matches(peer["podSelector"], theirs)} == {"test"}
    assert matches(peer["podSelector"], labels["test"] | {"app.kubernetes.io/component": "haproxy"})
    (peer,) = reached(labels["api"], 8080)
    assert not [who for who, theirs in labels.items() if matches(peer["podSelector"], theirs)]
    assert matches(peer["podSelector"], labels["api"] | {"app.kubernetes.io/component": "haproxy"})
    for who in ("webserver", "api", "daemon", "run", "prepare", *(f"code-{name}" for name in CODE_LOCATIONS)):
        assert {53, 5432, 9093, 9200, 443} <= egress(labels[who]), who
        assert (4000 in egress(labels[who])) == (who in ("webserver", "daemon")), who
        assert (6443 in egress(labels[who])) == (who in ("webserver", "daemon")), who


def test_the_network_can_be_left_to_others(render: Render) -> None:
    assert not [one for one in render("--set=networkPolicy.enabled=false") if one["kind"] == "NetworkPolicy"]


# What is made before and after


def references(node: Any) -> Iterator[Object]:
    """ConfigMaps and Secrets that a pod refers to."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("configMapRef", "secretRef", "configMap", "secretKeyRef", "configMapKeyRef"):
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for one in node:
            yield from references(one)


@pytest.mark.parametrize("words", [[], ["--set=existingSecret=", "--set=secrets.DAGSTER_PG_PASSWORD=x"]])
def test_what_comes_first_needs_nothing_that_comes_later(render: Render, words: list[str]) -> None:
    objects = render(*words)
    for hook in ("pre-install", "post-delete"):
        first = [one for one in objects if hook in one["metadata"].get("annotations", {}).get("helm.sh/hook", "")]
        weight = {
            one["metadata"]["name"] + one["kind"]: int(one["metadata"]["annotations"]["helm.sh/hook-weight"])
            for one in first
        }
        (job,) = [one for one in first if one["kind"] == "Job"]
        assert all(
            number < weight[job["metadata"]["name"] + "Job"]
            for name, number in weight.items()
            if not name.endswith("Job")
        )
        there = {one["metadata"]["name"] for one in first} | {"dash-secrets"}
        assert {one["name"] for one in references(job)} <= there
        spec = job["spec"]["template"]["spec"]
        assert spec.get("serviceAccountName", "default") in there | {"default"}
        # Nothing of it stays behind.
        assert all("hook-succeeded" in one["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for one in first)


def test_pods_refer_to_what_is_there(rendered: list[Object]) -> None:
    # Beside the release's own: what values.yaml of the tests and the production values say that somebody else makes.
    there = {one["metadata"]["name"] for one in rendered} | {"dash-secrets", "dash-search-check"}
    for name, pod in pods(rendered).items():
        assert {one["name"] for one in references(pod)} <= there, name
        assert pod["spec"].get("serviceAccountName", "default") in there | {"default"}, name
        volumes = {one["name"] for one in pod["spec"].get("volumes", [])}
        assert {mount["name"] for one in containers(pod) for mount in one.get("volumeMounts", [])} <= volumes


def test_a_changed_configuration_is_a_new_pod(default: list[Object], render: Render) -> None:
    changed = render("--set=settings.max_lanes=9", "--set=runs.maxConcurrent=9")

    def annotations(objects: list[Object], name: str) -> Object:
        found: Object = named(objects, "Deployment", name)["spec"]["template"]["metadata"]["annotations"]
        return found

    for name, keys in {
        "-daemon": {"checksum/instance"},
        "-code-marts": {"checksum/instance", "checksum/settings"},
    }.items():
        before, after = annotations(default, name), annotations(changed, name)
        assert {key for key in before if before[key] != after[key]} == keys


# What Dagster takes


def dagster_yaml(objects: list[Object]) -> Object:
    found: Object = yaml.safe_load(named(objects, "ConfigMap", "-instance")["data"]["dagster.yaml"])
    return found


def test_dagster_takes_its_configuration(
    rendered: list[Object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own schemas: the instance's, and that of each class it names."""
    from dagster._config import process_config, resolve_to_config_type
    from dagster._core.instance.config import dagster_instance_config
    from dagster._core.instance.ref import InstanceRef
    from dagster._serdes import class_from_code_pointer

    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "x")
    (tmp_path / "dagster.yaml").write_text(named(rendered, "ConfigMap", "-instance")["data"]["dagster.yaml"])
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["storage"]["postgres"]["should_autocreate_tables"] is False
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"]
    reference = InstanceRef.from_dir(str(tmp_path))
    for data in (reference.compute_logs_data, reference.run_coordinator_data, reference.run_launcher_data):
        assert data is not None
        of = class_from_code_pointer(data.module_name, data.class_name)
        done = process_config(resolve_to_config_type(of.config_type()), yaml.safe_load(data.config_yaml))
        assert done.success, (data.class_name, done.errors)
    limits = {one["key"]: one for one in config["concurrency"]["runs"]["tag_concurrency_limits"]}
    assert set(limits) == {"dash/chain", "dash/lane"}
    assert all(one["value"] == {"applyLimitPerUniqueValue": True} for one in limits.values())
    assert (
        config["concurrency"]["runs"]["max_concurrent_runs"]
        >= limits["dash/chain"]["limit"]
        > limits["dash/lane"]["limit"]
        > 1
    )


def test_only_the_job_that_prepares_makes_tables(default: list[Object], tmp_path: Path) -> None:
    from dagster._core.instance.config import dagster_instance_config

    (tmp_path / "dagster.yaml").write_text(named(default, "ConfigMap", "-prepare")["data"]["dagster.yaml"])
    config, _ = dagster_instance_config(str(tmp_path))
    own = config["storage"]["postgres"]
    assert own.pop("should_autocreate_tables") is True
    theirs = dagster_yaml(default)["storage"]["postgres"]
    assert own["postgres_db"].items() >= theirs["postgres_db"].items()


def test_the_webserver_finds_every_code_location(rendered: list[Object]) -> None:
    workspace = yaml.safe_load(named(rendered, "ConfigMap", "-workspace")["data"]["workspace.yaml"])
    servers = [one["grpc_server"] for one in workspace["load_from"]]
    assert {one["location_name"] for one in servers} == set(CODE_LOCATIONS)
    for server in servers:
        service = named(rendered, "Service", server["host"].removeprefix("dash-dash-pipeline"))
        assert [port["port"] for port in service["spec"]["ports"]] == [server["port"]]
        command = named(rendered, "Deployment", f"-code-{server['location_name']}")["spec"]["template"]["spec"][
            "containers"
        ][0]["command"]
        assert f"--module-name=dash_pipeline.locations.{server['location_name']}" in command


def run_job(objects: list[Object], tmp_path: Path, tags: dict[str, str]) -> Object:
    """The Job that Dagster's own launcher makes of a run with these tags; it asks no API for that."""
    import kubernetes.client
    from dagster import DagsterRun
    from dagster._config import process_config, resolve_to_config_type
    from dagster_k8s.job import construct_dagster_k8s_job
    from dagster_k8s.launcher import K8sRunLauncher

    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    users = [{"name": "c", "user": {"token": "x"}}]
    kubeconfig.write_text(
        yaml.safe_dump({"clusters": [cluster], "contexts": [context], "users": users, "current-context": "c"})
    )
    config = dagster_yaml(objects)["run_launcher"]["config"]
    config |= {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    done = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), config)
    assert done.success, done.errors
    launcher = K8sRunLauncher.from_config_value(None, done.value)
    run = DagsterRun("ingest_ethereum", run_id="00000000-0000-0000-0000-000000000001", tags=tags)
    context_ = launcher.get_container_context_for_run(run)
    job = construct_dagster_k8s_job(
        context_.get_k8s_job_config(job_image=None, run_launcher=launcher),
        ["dagster", "api", "execute_run"],
        f"dagster-run-{run.run_id}",
        user_defined_k8s_config=context_.run_k8s_config,
        component="run_worker",
    )
    made: Object = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    return made


def sizes(objects: list[Object]) -> list[Object]:
    found: list[Object] = json.loads(named(objects, "ConfigMap", "-settings")["data"]["DASH_LANE_PODS"])
    return found


def test_runs_of_every_size(rendered: list[Object], tmp_path: Path) -> None:
    """Their pods are held to what every pod is held to."""
    named_sizes: list[Object | None] = [None, *sizes(rendered)]
    assert next(one["lag"] for one in named_sizes if one) == 0
    for size in named_sizes:
        job = run_job(rendered, tmp_path, {"dagster-k8s/config": json.dumps(size["config"])} if size else {})
        validate(job, KUBERNETES, strict=True)
        assert {"activeDeadlineSeconds", "ttlSecondsAfterFinished"} <= set(job["spec"])
        assert job["spec"]["backoffLimit"] == 0
        pod = job["spec"]["template"]
        test_no_pod_without_limits_or_with_rights_it_does_not_need([job])
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["serviceAccountName"] == "dash-dash-pipeline-runs"
        assert pod["spec"]["terminationGracePeriodSeconds"] >= 30
        assert component(pod) == "run"
        assert {one["topologyKey"] for one in pod["spec"]["topologySpreadConstraints"]} == {
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        }
        (container,) = pod["spec"]["containers"]
        assert {"name": "DAGSTER_HOME", "value": "/opt/dagster/home"} in container["env"]
        there = {one["metadata"]["name"] for one in rendered} | {"dash-secrets"}
        assert {one["name"] for one in references(pod)} <= there
        if size:
            assert container["resources"] == size["config"]["container_config"]["resources"]
            assert job["spec"]["activeDeadlineSeconds"] == size["config"]["job_spec_config"]["activeDeadlineSeconds"]
        # `helm uninstall` finds it by these.
        sweep = named(rendered, "Job", "-sweep")["spec"]["template"]["spec"]["containers"][0]["command"][-1]
        assert dict(one.split("=") for one in sweep.split(",")).items() <= job["metadata"]["labels"].items()


@pytest.mark.parametrize(
    "config",
    [
        {"pod_spec_config": {"serviceAccountName": "dash-dash-pipeline-daemon"}},
        {"pod_spec_config": {"automountServiceAccountToken": True}},
        {"pod_spec_config": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}},
        {"container_config": {"securityContext": {"privileged": True}}},
        {"container_config": {"image": "other"}},
    ],
)
def test_a_runs_tags_cannot_give_it_rights(default: list[Object], tmp_path: Path, config: Object) -> None:
    with pytest.raises(Exception, match="violated the allowed list"):
        run_job(default, tmp_path, {"dagster-k8s/config": json.dumps(config)})


# Settings


def test_every_setting_that_is_no_secret_can_be_given() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["settings"]["properties"]) == set(Settings.model_fields) - SECRET - MADE


def test_settings_arrive_as_they_are_given(render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of any size, JSON, text with quotes."""
    given = {
        "batch_bytes": 33554432,
        "retention_days": 0.5,
        "direct_alerts": False,
        "alert_routes": {"ops": 'https://a/?b="c"'},
        "labels": {"pool_risk": "s3://b/k"},
        "kafka_username": "012",
        "idle_timeout_s": 20,
    }
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"settings": given}))
    data = named(render(f"--values={values}"), "ConfigMap", "-settings")["data"]
    for name in Settings.model_fields:
        monkeypatch.delenv(f"DASH_{name.upper()}", raising=False)
    for name, value in (data | {"DASH_TIMESCALE_DSN": "postgresql://a@b/c"}).items():
        monkeypatch.setenv(name, value)
    found = Settings()  # type: ignore[call-arg]
    assert {name: getattr(found, name) for name in given} == given
    assert found.kafka_bootstrap == "kafka-1:9093,kafka-2:9093"
    assert found.dagster_url == "http://dash-dash-pipeline-webserver.chain"


# What is refused


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--set=webserver.replica=3"], "at '/webserver': additional properties 'replica' not allowed"),
        (["--set=settings.kafka_bootstrp=x"], "at '/settings': additional properties 'kafka_bootstrp' not allowed"),
        (["--set=settings.kafka_password=x"], "at '/settings': additional properties 'kafka_password' not allowed"),
        (["--set=secrets.KAFKA_PASSWORD=x"], "at '/secrets': additional properties 'KAFKA_PASSWORD' not allowed"),
        (["--set=code.locations.mart.replicas=1"], "at '/code/locations': additional properties 'mart' not allowed"),
        (["--set=daemon.resources.limits.memory=1GB"], "at '/daemon/resources/limits/memory'"),
        (
            [
                "--set=runs.sizes[0].name=a",
                "--set=runs.sizes[0].lag=0",
                "--set=runs.sizes[0].config.container_config.image=x",
            ],
            "/runs/sizes/0/config/container_config",
        ),
        (["--set=runs.sizes[0].name=a", "--set=runs.sizes[0].lag=-1"], "at '/runs/sizes/0/lag'"),
        (["--set=webserver.keda.enabled=true"], "at '/webserver/keda/triggers'"),
        (["--set=existingSecret="], "existingSecret: name a Secret"),
        (["--set=dagster.postgres.host="], "dagster.postgres.host: the address"),
        (
            [
                "--set=webserver.autoscaling.enabled=true",
                "--set=webserver.keda.enabled=true",
                "--set=webserver.keda.triggers[0].type=cpu",
            ],
            "webserver: autoscaling and keda cannot both be enabled",
        ),
    ],
)
def test_wrong_values_are_one_line(helm: Helm, words: list[str], where: str) -> None:
    done = helm("template", "dash", CHART, f"--kube-version={KUBERNETES}", f"--values={GIVEN}", *words)
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if where in line]) == 1, done.stderr


def test_every_value_has_a_line_and_a_schema() -> None:
    """values.yaml and the schema name the same things, and each value is told of above it."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    text = (CHART / "values.yaml").read_text()

    def compare(values: Object, of: Object, path: str) -> None:
        of = schema["definitions"][of["$ref"].rpartition("/")[2]] if "$ref" in of else of
        if not of.get("properties") or not values:
            return
        assert set(values) == set(of["properties"]) - {"global"}, path
        for name, value in values.items():
            if isinstance(value, dict):
                compare(value, of["properties"][name], f"{path}.{name}")

    compare(yaml.safe_load(text) | ({} if "haproxy" in yaml.safe_load(text) else {"haproxy": {}}), schema, "values")
    plain = "requests|limits|config|lag|ports|matchLabels|job_spec_config|" + "|".join(CODE_LOCATIONS)
    silent = [
        line
        for before, line in itertools.pairwise(text.splitlines())
        if re.match(r" *[a-zA-Z]+: \S", line) and not re.match(" *#", before) and not re.match(f" *({plain}): ", line)
    ]
    assert silent == []


# Options


def test_keda_ingress_and_ports(render: Render) -> None:
    objects = render(
        "--set=webserver.keda.enabled=true",
        "--set=webserver.keda.triggers[0].type=cron",
        "--set=ingress.enabled=true",
        "--set=ingress.host=dash.example.org",
        "--set=ingress.tlsSecret=tls",
    )
    scaled = named(objects, "ScaledObject", "-webserver")["spec"]
    assert scaled["scaleTargetRef"] == {"name": named(objects, "Deployment", "-webserver")["metadata"]["name"]}
    assert "replicas" not in named(objects, "Deployment", "-webserver")["spec"]
    ingress = named(objects, "Ingress", "")
    validate(ingress, KUBERNETES, strict=True)
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "dash-dash-pipeline-webserver", "port": {"name": "http"}}
    assert named(objects, "ConfigMap", "-settings")["data"]["DASH_DAGSTER_URL"] == "https://dash.example.org"
    headless = named(objects, "Service", "-webserver-pods")["spec"]
    assert (headless["clusterIP"], headless["ports"][0]["port"]) == ("None", 3000)
    assert {one["kind"] for one in objects} & CRDS == CRDS


def test_metrics_are_a_pod_of_their_own_that_nobody_reads_but_who_is_named(render: Render) -> None:
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    objects = render(
        "--set=metrics.enabled=true",
        "--set=metrics.podMonitor=true",
        f"--set-json=metrics.allow={json.dumps([peer])}",
    )
    for one in objects:
        if one["kind"] not in CRDS | {"PodMonitor"}:
            validate(one, KUBERNETES, strict=True)
    (pod,) = [pod for pod in pods(objects).values() if component(pod) == "metrics"]
    (container,) = containers(pod)
    assert container["command"][:2] == ["dash-pipeline", "metrics"]
    assert "--dagster=http://dash-dash-pipeline-webserver.chain" in container["command"]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    monitor = named(objects, "PodMonitor", "-metrics")["spec"]
    labels = pod["metadata"]["labels"]
    assert matches(monitor["selector"], labels)
    assert monitor["podMetricsEndpoints"][0]["port"] in [port["name"] for port in container["ports"]]
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    mine = [one for one in policies if matches(one["podSelector"], labels)]
    assert [rule for one in mine for rule in one.get("ingress", [])] == [
        {"from": [peer], "ports": [{"protocol": "TCP", "port": 9465}]}
    ]
    reached = {port["port"] for one in mine for rule in one.get("egress", []) for port in rule["ports"]}
    assert {53, 3000, 5432, 9093} <= reached
    webserver = named(objects, "NetworkPolicy", "-webserver")["spec"]["ingress"][0]["from"][0]["podSelector"]
    assert matches(webserver, labels)
