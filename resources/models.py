"""Labels, training and the registry as assets and sensors see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.models.lifecycle import Drifted, State, Stored, Training


class ModelsResource(ConfigurableResource[Any]):
    """The registry in the bucket of `DASH_S3_BUCKET`; see `dash_pipeline.models.lifecycle`."""

    def store_labels(self, model: str) -> Stored:
        """Read, check and keep the model's labelled data; raises DashError naming row and column."""
        from dash_pipeline.models import lifecycle

        return lifecycle.store_labels(settings(), model)

    def train(self, model: str, trials: int, say: Callable[[str], None]) -> Training:
        """Train on the kept labels, compare with the champion, promote if it is beaten."""
        from dash_pipeline.models import lifecycle

        return lifecycle.train(settings(), model, trials=trials, say=say)

    def promote(self, model: str, version: str) -> str:
        """Make a version the champion; says what it replaced."""
        from dash_pipeline.models import lifecycle

        return lifecycle.promote(settings(), model, version)

    def rollback(self, model: str) -> str:
        """Make the champion before this one the champion again; says which."""
        from dash_pipeline.models import lifecycle

        return lifecycle.rollback(settings(), model)

    def drift(self, model: str) -> Drifted:
        """How far what the champion scores is from what it was trained on."""
        from dash_pipeline.models import lifecycle

        return lifecycle.drift(settings(), model)

    def sound(self, model: str, stage: str) -> tuple[bool, str]:
        """Whether the kept labels, the newest version or its evaluation are sound, and what was found."""
        from dash_pipeline.models import lifecycle

        return lifecycle.sound(settings(), model, stage)

    def state(self, model: str) -> State:
        """The champion, and whether the model could be trained."""
        from dash_pipeline.models import lifecycle

        return lifecycle.state(settings(), model)
