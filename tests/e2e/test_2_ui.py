"""The UI in a browser, after the demo: the asset graph with the topics at its left, and an asset with its plots.

DASH_SCREENSHOTS names a folder to keep the pictures in (the README's are docs/ui-*.png).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from dash_pipeline.demo import CHAIN, demo
from dash_pipeline.feed.replay import silent
from dash_pipeline.stack import Stack

WAIT_S = 90
WINDOW = 1680, 1050


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def ui(platform: Stack) -> str:
    demo(platform, silent, lambda text: None)
    return platform.settings().dagster_url


@pytest.fixture
def keep(browser: webdriver.Chrome, tmp_path: Path) -> Callable[[str], None]:
    """Keep a picture of the page as it is now."""
    folder = Path(os.environ.get("DASH_SCREENSHOTS") or tmp_path)

    def picture(name: str) -> None:
        assert browser.save_screenshot(str(folder / f"ui-{name}.png"))

    return picture


def see(browser: webdriver.Chrome, text: str) -> WebElement:
    """Wait until an element with this text is shown."""

    def shown(driver: webdriver.Chrome) -> WebElement | None:
        found = driver.find_elements(By.XPATH, f"//*[contains(normalize-space(text()), '{text}')]")
        return next((element for element in found if element.is_displayed()), None)

    return WebDriverWait(browser, WAIT_S).until(shown)


def test_the_graph_starts_at_the_topics(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    # The graph has only those nodes that are in view, and which are depends on how it was laid out.
    browser.set_window_size(1680, 2600)
    open_graph(browser, f"{ui}/asset-groups")
    topics, tables = node(browser, f"{CHAIN}_topics"), node(browser, CHAIN)
    indexes, views, models = node(browser, "search"), node(browser, "analytics"), node(browser, "models")
    intelligence = node(browser, "intelligence")
    assert topics < tables < min(views, intelligence)
    assert max(models, tables) < intelligence < indexes, "anomalies and champions -> predictions and alerts -> index"
    browser.set_window_size(*WINDOW)
    browser.get(f"{ui}/asset-groups")
    see(browser, f"{CHAIN}_topics")
    keep("lineage")


def open_graph(browser: webdriver.Chrome, url: str, tries: int = 3) -> None:
    """As a person would: a page that shows no graph after a while is loaded again."""
    for _ in range(tries):
        browser.get(url)
        with suppress(TimeoutException):
            node(browser, f"{CHAIN}_topics")
            return


def node(browser: webdriver.Chrome, group: str) -> int:
    """The left edge of a group in the graph; the list beside the graph names it too, further left."""

    def edges(driver: webdriver.Chrome) -> list[int]:
        found = driver.find_elements(By.XPATH, f"//*[normalize-space(text())='{group}']")
        return sorted(element.rect["x"] for element in found if element.is_displayed())

    return int(
        WebDriverWait(browser, WAIT_S).until(lambda driver: found if len(found := edges(driver)) > 1 else None)[-1]
    )


def test_a_table_of_the_chain_was_materialised(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    browser.set_window_size(3000, 2600)  # room for every node of the group
    browser.get(f"{ui}/locations/ingestion/asset-groups/{CHAIN}/lineage")
    see(browser, "blocks")
    browser.set_window_size(*WINDOW)
    browser.get(f"{ui}/locations/ingestion/asset-groups/{CHAIN}/lineage")
    see(browser, "Materialized")
    keep("tables")


def test_an_ingested_table_has_plots(browser: webdriver.Chrome, ui: str, keep: Callable[[str], None]) -> None:
    browser.get(f"{ui}/assets/{CHAIN}/logs")
    see(browser, "Plots").click()
    see(browser, "lane events per s")
    WebDriverWait(browser, WAIT_S).until(lambda driver: driver.find_elements(By.TAG_NAME, "canvas"))
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
