"""A morning in the UI: the operator, who wants to know in a minute whether all is well; the analyst, who looks for a
table, and for where it comes from.

DASH_SCREENSHOTS names a folder to keep the pictures in (those of the documentation are docs/ui-*.png).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from dash_pipeline.demo import CHAIN
from dash_pipeline.stack import Stack
from dash_pipeline.storage import timescale
from tests.ui import WAIT_S, graphql, node, see, see_plots
from tests.wait import until
from tests.webhooks import Receiver

Keep = Callable[[str], None]
#: From the mart to the topic: each is an upstream asset of the one before.
PATH = (
    "analytics/int_token_hours", "analytics/int_pool_hours", "analytics/pool_bars", f"{CHAIN}/pool_events",
    f"{CHAIN}/logs", f"kafka/{CHAIN}/logs",
)  # fmt: skip
CHECK = f"check/{CHAIN}/transactions/transactions_counted"

_LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
_NEWEST = """query($filter: RunsFilter) { runsOrError(filter: $filter, limit: 1) { ... on Runs {
  results { runId } } } }"""


def start(ui: str, location: str, job: str, status: str = "SUCCESS") -> None:
    """Start a job as the button does, and wait until it has ended with this status."""
    selector = {"pipelineName": job, "repositoryLocationName": location, "repositoryName": "__repository__"}
    params = {"selector": selector, "runConfigData": {}, "mode": "default"}
    answer = graphql(ui, _LAUNCH, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    run: str = answer["run"]["runId"]

    def ended() -> bool:
        now = graphql(ui, _RUN, id=run)["runOrError"]["status"]
        assert now == status or now not in ("SUCCESS", "FAILURE"), f"{ui}/runs/{run}: {now}"
        return bool(now == status)

    until(ended, f"the end of {job}", WAIT_S)


def told(operators: Receiver, event: str) -> list[dict[str, Any]]:
    return [
        one.message for one in operators.requests if one.message.get("key") == CHECK and one.message["event"] == event
    ]


@pytest.fixture
def a_lost_row(platform: Stack) -> Iterator[Callable[[], None]]:
    """A transaction of the market that somebody has deleted; calling it brings it back."""
    with timescale.connect(platform.settings()) as conn:
        row = conn.execute(
            "DELETE FROM chain.transactions t WHERE chain = %(chain)s AND tx_hash = (SELECT tx_hash FROM"
            " chain.transactions WHERE chain = %(chain)s AND block_number = 500 LIMIT 1) RETURNING t::text",
            {"chain": CHAIN},
        ).fetchone()
        assert row
        lost = list(row)

        def back() -> None:
            while lost:
                conn.execute("INSERT INTO chain.transactions SELECT (%s::chain.transactions).*", (lost.pop(),))

        yield back
        back()


def test_the_operators_morning(browser: webdriver.Chrome, ui: str, keep: Keep) -> None:
    """What ran, how a run went, how each chain does."""
    browser.get(f"{ui}/overview/activity/timeline")
    for job in (f"ingest_{CHAIN}", "predict", "update_marts"):
        see(browser, job)
    keep("timeline")

    (newest,) = graphql(ui, _NEWEST, filter={"pipelineName": f"ingest_{CHAIN}", "statuses": ["SUCCESS"]})[
        "runsOrError"
    ]["results"]
    browser.get(f"{ui}/runs/{newest['runId']}")
    see(browser, "Success")
    see(browser, CHAIN)
    keep("run")

    start(ui, "lifecycle", "platform_health")
    browser.get(f"{ui}/assets/platform_health/{CHAIN}")
    see_plots(browser)
    for stage in ("ingestion", "processing", "output"):
        latency = see(browser, f"latency {stage} p50, ms")
    browser.execute_script("arguments[0].scrollIntoView({block: 'start'})", latency)
    keep("health")


def test_a_failed_check_and_the_notice_that_comes_of_it(
    browser: webdriver.Chrome, ui: str, keep: Keep, operators: Receiver, a_lost_row: Callable[[], None]
) -> None:
    start(ui, "ingestion", "check_blocks", "FAILURE")  # the check blocks
    browser.get(f"{ui}/assets/{CHAIN}/transactions?view=checks&checkDetail=transactions_counted")
    see(browser, "Failed")
    see(browser, "1 of")  # blocks are wrong
    keep("check")
    see(browser, "Show JSON").click()
    see(browser, "500")
    (notice,) = until(lambda: told(operators, "raised"), "the notice of the check", WAIT_S)
    assert notice["title"] == f"{CHAIN}/transactions: the check transactions_counted fails"
    assert notice["links"]["checks"].startswith(f"{ui}/assets/{CHAIN}/transactions?view=checks")

    a_lost_row()
    start(ui, "ingestion", "check_blocks")
    until(lambda: told(operators, "resolved"), "the notice that it is over", WAIT_S)
    assert len(told(operators, "raised")) == 1


def test_the_analysts_table(browser: webdriver.Chrome, ui: str, keep: Keep) -> None:
    """By its group to the table, its columns, and step by step to the topic that it comes from."""
    browser.get(f"{ui}/locations/marts/asset-groups/marts/list")
    for mart in ("dex_trades", "pool_liquidity", "chain_health"):
        see(browser, mart)
    see(browser, "Materialized")
    keep("catalogue")

    browser.get(f"{ui}/assets/analytics/token_performance")
    see(browser, "vwap")
    keep("mart")
    for key in PATH:
        link = f"//a[contains(@href, '/assets/{key}')]"
        found = WebDriverWait(browser, WAIT_S).until(
            lambda driver, link=link: next((a for a in driver.find_elements(By.XPATH, link) if a.is_displayed()), None)
        )
        browser.get(found.get_attribute("href"))
        see(browser, "Upstream assets")
    assert browser.current_url.startswith(f"{ui}/assets/kafka/{CHAIN}/logs")

    selection = f'+key:"*/token_performance" and (group:marts or group:{CHAIN} or group:topics)'
    browser.get(f"{ui}/asset-groups~{quote(selection, safe='')}")
    assert node(browser, "topics") < node(browser, CHAIN) < node(browser, "marts")
    keep("origin")
