"""Pod sizes by lag: settings in, run tags out, and that Dagster's launcher reads them."""

from __future__ import annotations

import json

import pytest
from dagster_k8s.job import UserDefinedDagsterK8sConfig, get_user_defined_k8s_config

from dash_pipeline.errors import DashError
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.settings import load_settings
from sensors.lag import run_request
from sensors.pods import CONFIG_TAG, SIZE_TAG, pod_tags

SMALL = {"container_config": {"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}}
LARGE = {
    "container_config": {"resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}},
    "pod_spec_config": {"nodeSelector": {"pool": "large"}, "terminationGracePeriodSeconds": 30},
    "job_spec_config": {"activeDeadlineSeconds": 900},
}
PODS = [{"name": "large", "lag": 100_000, "config": LARGE}, {"name": "small", "lag": 100, "config": SMALL}]


def given(environment: pytest.MonkeyPatch, value: object) -> None:
    environment.setenv("DASH_LANE_PODS", value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize(
    ("lag", "name", "config"),
    [(99, None, None), (100, "small", SMALL), (99_999, "small", SMALL), (100_000, "large", LARGE)],
)
def test_the_largest_that_is_not_above_the_lag(
    environment: pytest.MonkeyPatch, lag: int, name: str | None, config: dict[str, object] | None
) -> None:
    given(environment, PODS)
    tags = run_request(lane("anvil", [("anvil.logs", 0)]), load_settings(), lag).tags
    assert tags.get(SIZE_TAG) == name
    assert (json.loads(tags[CONFIG_TAG]) if CONFIG_TAG in tags else None) == config


def test_without_the_setting_there_is_no_tag(environment: pytest.MonkeyPatch) -> None:
    assert pod_tags(load_settings().lane_pods, 10**9) == {}


def test_dagster_reads_the_tag(environment: pytest.MonkeyPatch) -> None:
    given(environment, PODS)
    tags = pod_tags(load_settings().lane_pods, 10**6)
    parsed = UserDefinedDagsterK8sConfig.from_dict(json.loads(tags[CONFIG_TAG]))
    assert parsed == get_user_defined_k8s_config(tags)
    assert parsed.pod_spec_config == {"node_selector": {"pool": "large"}, "termination_grace_period_seconds": 30}
    assert parsed.job_spec_config == {"active_deadline_seconds": 900}


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("small", "DASH_LANE_PODS: not JSON, such as "),
        ({"name": "small"}, "DASH_LANE_PODS: input should be a valid list"),
        ([{"name": "small", "lag": -1, "config": {}}], "DASH_LANE_PODS: 0: lag: input should be greater than or equal"),
        ([{"name": "small", "config": {}}], "DASH_LANE_PODS: 0: lag: field required"),
        ([PODS[0], {"name": "a b", "lag": 1, "config": {}}], "DASH_LANE_PODS: 1: name: string should match pattern"),
        ([{"name": "s", "lag": 1, "config": {"container": {}}}], "DASH_LANE_PODS: 0: config: container: "),
        ([{"name": "s", "lag": 1, "config": {}, "cpu": 1}], "DASH_LANE_PODS: 0: cpu: extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_one_line(environment: pytest.MonkeyPatch, value: object, line: str) -> None:
    given(environment, value)
    with pytest.raises(DashError) as caught:
        load_settings()
    assert str(caught.value).startswith(line)
    assert str(caught.value).endswith("; set in the environment")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"container_config": {"resourcez": {}}},
        {"container_config": 5},
        {"pod_spec_config": {"nodeSelectors": {}}},
        {"merge_behavior": "NEVER"},
    ],
)
def test_what_kubernetes_would_not_take_is_one_line(environment: pytest.MonkeyPatch, config: dict[str, object]) -> None:
    given(environment, [{"name": "small", "lag": 0, "config": config}])
    with pytest.raises(DashError) as caught:
        pod_tags(load_settings().lane_pods, 1)
    assert str(caught.value).startswith("DASH_LANE_PODS: the config of 'small' is no pod: ")
    assert "\n" not in str(caught.value)


def test_more_lanes_at_least_than_at_most_is_one_line(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DASH_MIN_LANES", "3")
    with pytest.raises(DashError, match=r"^DASH_MIN_LANES: 3 is more than DASH_MAX_LANES, which is 2; set in the env"):
        load_settings()
    environment.setenv("DASH_MAX_LANES", "3")
    assert load_settings().min_lanes == 3
