"""The data dictionary is what the code says."""

from __future__ import annotations

from dash_pipeline.storage.dictionary import PAGE, markdown


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == markdown(), "run `python -m dash_pipeline.storage.dictionary`"
