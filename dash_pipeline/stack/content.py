"""What the platform keeps in its servers before the first event: schema, topics, index templates.

Belongs here: which of them belongs to which server. Does not belong here: what they are; each is in its own module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from dash_pipeline import topics
from dash_pipeline.chains import load_chains
from dash_pipeline.settings import Settings
from dash_pipeline.stack.progress import Progress
from dash_pipeline.storage import migrate, search

#: The servers that have content.
STORES = ("timescale", "kafka", "opensearch")


def make_content(settings: Settings, stores: Collection[str], progress: Progress) -> None:
    """Make what is missing in these servers; what is there stays. Raises DashError when a server refuses."""
    makers: tuple[tuple[str, str, Callable[[Settings], object]], ...] = (
        ("timescale", "schema", migrate.upgrade),
        ("kafka", "topics", _make_topics),
        ("opensearch", "index templates", search.ensure),
    )
    for store, what, make in makers:
        if store in stores:
            progress.say(what, "making what is missing")
            make(settings)
            progress.done(what, "ready")


def _make_topics(settings: Settings) -> None:
    topics.ensure(settings, load_chains(settings.chains_file))
