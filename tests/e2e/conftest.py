"""The whole platform on the test stack: stores, code servers, webserver, daemon."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from selenium import webdriver

from dash_pipeline.demo import Outcome, demo
from dash_pipeline.feed.replay import silent
from dash_pipeline.stack import Stack
from dash_pipeline.stack.progress import Lines
from dash_pipeline.stack.secrets import write_env
from dash_pipeline.stack.stack import GROUPS
from tests.ui import WINDOW
from tests.webhooks import Receiver


@pytest.fixture(scope="package")
def operators(stack: Stack) -> Iterator[Receiver]:
    """The webhook at which operators are told."""
    with Receiver(stack.settings().alert_secret) as receiver:
        yield receiver


@pytest.fixture(scope="package")
def platform(stack: Stack, operators: Receiver) -> Iterator[Stack]:
    """The test stack with everything up: schema, topics, indexes and Dagster, whose sensors are running."""
    channels = {"ops": {"kind": "webhook", "url": operators.url}}
    routes = {"*": ["ops"]}
    write_env(stack.layout, {"DASH_NOTIFY_CHANNELS": json.dumps(channels), "DASH_OWNER_ROUTES": json.dumps(routes)})
    stack.up(progress=Lines(Console(stderr=True)))
    yield stack
    for name in reversed(GROUPS["dagster"]):
        stack.stop(name)


@pytest.fixture(scope="package")
def outcome(platform: Stack) -> Outcome:
    """What the demo has come to on the platform."""
    return demo(platform, silent, lambda text: None)


@pytest.fixture(scope="module")  # an open page asks the webserver again and again
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


@pytest.fixture(scope="package")
def ui(platform: Stack, outcome: Outcome) -> str:
    """Where the UI of the platform is that has gone through the demo."""
    assert outcome.agrees
    return platform.settings().dagster_url


@pytest.fixture
def keep(browser: webdriver.Chrome, tmp_path: Path) -> Callable[[str], None]:
    """Keep a picture of the page as it is now."""
    folder = Path(os.environ.get("DASH_SCREENSHOTS") or tmp_path)

    def picture(name: str) -> None:
        assert browser.save_screenshot(str(folder / f"ui-{name}.png"))

    return picture
