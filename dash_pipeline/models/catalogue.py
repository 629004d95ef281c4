"""The models there are, by name."""

from __future__ import annotations

from collections.abc import Mapping

from dash_pipeline.errors import DashError
from dash_pipeline.models import liquidity_outlook, pool_risk, wallet_risk
from dash_pipeline.models.spec import Spec

MODELS: Mapping[str, Spec] = {module.SPEC.name: module.SPEC for module in (pool_risk, wallet_risk, liquidity_outlook)}


def spec_of(model: str) -> Spec:
    """The model's description. Raises DashError naming the models there are."""
    if model not in MODELS:
        raise DashError(f"there is no model {model}; there are: {', '.join(MODELS)}")
    return MODELS[model]
