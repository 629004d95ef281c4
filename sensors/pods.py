"""How large a lane's pod is on Kubernetes: run tags.

Belongs here: choosing from the settings, and refusing what Kubernetes would not take. Does not belong here: pods of
other jobs (the run launcher's configuration).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from dash_pipeline.errors import DashError, first_line
from dash_pipeline.settings import LanePod

CONFIG_TAG = "dagster-k8s/config"
SIZE_TAG = "dash/size"


def pod_tags(pods: Sequence[LanePod], lag: int) -> dict[str, str]:
    """The tags of a run that has `lag` messages to do: the pod with the largest `lag` that is not above it.

    Raises DashError with one line when Kubernetes knows no such pod.
    """
    fitting = [pod for pod in pods if pod.lag <= lag]
    if not fitting:
        return {}
    pod = max(fitting, key=lambda pod: pod.lag)
    config = json.dumps(pod.config, separators=(",", ":"))
    _check(pod.name, config)
    return {CONFIG_TAG: config, SIZE_TAG: pod.name}


@lru_cache
def _check(name: str, config: str) -> None:
    # Importing it takes a second, which nobody pays who has no such setting.
    from dagster_k8s.job import get_user_defined_k8s_config

    try:
        get_user_defined_k8s_config({CONFIG_TAG: config})
    except Exception as error:  # of any kind: what Dagster makes of the tag, and the models of Kubernetes' client
        raise DashError(f"DASH_LANE_PODS: the config of {name!r} is no pod: {first_line(error)}") from None
