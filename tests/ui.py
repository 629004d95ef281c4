"""The UI in a browser, for tests: what they look for, and what they ask Dagster itself.

Belongs here: waiting for what is shown. Does not belong here: what must be shown (`tests/e2e/`).
"""

from __future__ import annotations

import time
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from dash_pipeline.stack.servers.base import http_json

WAIT_S = 90
WINDOW = 1680, 1050


def see(browser: webdriver.Chrome, text: str) -> WebElement:
    """Wait until an element with this text is shown."""

    def shown(driver: webdriver.Chrome) -> WebElement | None:
        found = driver.find_elements(By.XPATH, f"//*[contains(normalize-space(text()), '{text}')]")
        return next((element for element in found if element.is_displayed()), None)

    return WebDriverWait(browser, WAIT_S).until(shown)


def see_plots(browser: webdriver.Chrome) -> None:
    """As a person would: what was clicked at while the page was still being made is clicked at again. It is the button:
    descriptions speak of plots, too."""
    button = (By.XPATH, "//*[normalize-space(text())='Plots']")

    def shown(driver: webdriver.Chrome) -> bool:
        for found in driver.find_elements(*button)[:1]:
            found.click()
        time.sleep(1)
        return bool(driver.find_elements(By.TAG_NAME, "canvas"))

    WebDriverWait(browser, WAIT_S).until(shown)


def node(browser: webdriver.Chrome, group: str) -> int:
    """The left edge of a group in the graph; the list beside the graph names it too, further left, and the selection
    above it may."""
    path = f"//*[normalize-space(text())='{group}'][not(ancestor::*[contains(@class, 'CodeMirror')])]"

    def edges(driver: webdriver.Chrome) -> list[int]:
        found = driver.find_elements(By.XPATH, path)
        return sorted(element.rect["x"] for element in found if element.is_displayed())

    return int(
        WebDriverWait(browser, WAIT_S).until(lambda driver: found if len(found := edges(driver)) > 1 else None)[-1]
    )


def graphql(url: str, query: str, **variables: object) -> Any:
    """The `data` of Dagster's answer."""
    answer = http_json(f"{url}/graphql", body={"query": query, "variables": variables})
    assert not answer.get("errors"), answer["errors"]
    return answer["data"]
