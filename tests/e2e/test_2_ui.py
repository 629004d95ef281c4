"""The UI in a browser, after the demo: the asset graph with the topics at its left, and an asset with its plots."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from dash_pipeline.demo import CHAIN
from tests.ui import WAIT_S, WINDOW, node, see, see_plots


def test_the_graph_starts_at_the_topics(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    # The graph has only those nodes that are in view, and which are depends on how it was laid out.
    browser.set_window_size(1680, 2600)
    open_graph(browser, f"{ui}/asset-groups")
    topics, tables = node(browser, "topics"), node(browser, CHAIN)
    indexes, views, models = node(browser, "search"), node(browser, "staging"), node(browser, "models")
    intelligence = node(browser, "intelligence")
    assert topics < tables < min(views, node(browser, "marts"), intelligence)
    assert max(models, tables) < intelligence < indexes, "anomalies and champions -> predictions and alerts -> index"
    browser.set_window_size(*WINDOW)
    browser.get(f"{ui}/asset-groups")
    see(browser, "topics")
    keep("lineage")


def open_graph(browser: webdriver.Chrome, url: str, tries: int = 3) -> None:
    """As a person would: a page that shows no graph after a while is loaded again."""
    for _ in range(tries):
        browser.get(url)
        with suppress(TimeoutException):
            node(browser, "topics")
            return


def test_tables_of_the_chain_were_materialised(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    browser.get(f"{ui}/locations/ingestion/asset-groups/{CHAIN}/list")
    for table in ("blocks", "logs", "pool_events", "token_transfers"):
        see(browser, table)
    see(browser, "Materialized")
    keep("tables")


def test_an_ingested_table_has_plots(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    browser.get(f"{ui}/assets/{CHAIN}/logs")
    see_plots(browser)
    see(browser, "lane events per s")
    latency = see(browser, "latency end_to_end p50, ms")
    browser.execute_script("arguments[0].scrollIntoView({block: 'start'})", latency)
    keep("plots")


def test_alerts_come_from_anomalies(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    browser.get(f"{ui}/locations/intelligence/asset-groups/intelligence/lineage")
    for name in ("anomalies", "predictions", "alerts"):
        see(browser, name)
    see(browser, "Materialized")
    keep("intelligence")


def test_a_model_shows_what_it_is_worth(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    browser.get(f"{ui}/assets/models/pool_risk_evaluation")
    see(browser, "verdict")
    see(browser, "Show Markdown").click()
    pictures = "//img[starts-with(@src, 'data:image/png')]"
    WebDriverWait(browser, WAIT_S).until(lambda driver: len(driver.find_elements(By.XPATH, pictures)) >= 4)
    see(browser, "out of fold")
    time.sleep(1)  # it fades in
    keep("model")


def test_the_runs_are_there(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    browser.get(f"{ui}/runs")
    see(browser, f"ingest_{CHAIN}")
    keep("runs")
