"""The search indexes as assets see them."""

from __future__ import annotations

from typing import Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings


class OpenSearchResource(ConfigurableResource[Any]):
    """The cluster of `DASH_OPENSEARCH_URL`."""

    def rebuild(self, index: str, **options: Any) -> Any:
        """Build `index` again behind its alias; see `dash_pipeline.storage.search.rebuild`."""
        from dash_pipeline.storage import search

        return search.rebuild(settings(), index, **options)
