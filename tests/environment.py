"""Settings as a process finds them: in its environment.

Belongs here: putting a test's settings there. Does not belong here: what they are (`conftest.py`).
"""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr

from dash_pipeline import settings as settings_module
from dash_pipeline.settings import Settings


def put_in_environment(values: Settings, environment: pytest.MonkeyPatch) -> None:
    """These settings are the ones that everything finds which reads settings by itself, processes it starts too."""
    for name, value in values.model_dump(exclude_defaults=True).items():
        plain = value.get_secret_value() if isinstance(value, SecretStr) else value
        environment.setenv(f"DASH_{name.upper()}", json.dumps(plain) if isinstance(plain, dict | list) else str(plain))
    settings_module.settings.cache_clear()
