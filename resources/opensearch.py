"""The search indexes as assets see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.storage.search import Written


class OpenSearchResource(ConfigurableResource[Any]):
    """The cluster of `DASH_OPENSEARCH_URL`."""

    def rebuild(self, index: str, chain: str | None, progress: Callable[[int, int], None]) -> dict[str, Written]:
        """Build `index` again behind its alias, for one chain or all; returns what was written, by chain."""
        from dash_pipeline.storage import search

        return search.rebuild(settings(), index, chain, progress)
