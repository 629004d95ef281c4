"""When a model is trained, without servers."""

from __future__ import annotations

import pytest

from sensors.training_decision import AGAIN_AFTER_S, Seen, why_train

LONG_AGO, JUST_NOW = AGAIN_AFTER_S + 1, 60.0


@pytest.mark.parametrize(
    ("seen", "now"),
    [
        (Seen(None), True),
        (Seen(None, labels="a"), True),
        (Seen(None, labels="a", trained_on="a", trained_ago_s=JUST_NOW), False),
        (Seen(None, labels="b", trained_on="a", trained_ago_s=JUST_NOW), True),
        (Seen(None, labels="a", trained_on="a", trained_ago_s=LONG_AGO), True),
        (Seen(None, problem="no chain has 3 hours of pool events yet"), False),
        (Seen(None, live=True), False),
        (Seen("v1"), False),
        (Seen("v1", labels="b", trained_on="a", trained_ago_s=LONG_AGO), False),
        (Seen("v1", drifted=True), True),
        (Seen("v1", drifted=True, trained_ago_s=JUST_NOW), False),
        (Seen("v1", drifted=True, trained_ago_s=LONG_AGO), True),
        (Seen("v1", drifted=True, live=True), False),
    ],
)
def test_when_a_model_is_trained(seen: Seen, now: bool) -> None:
    assert why_train(seen)[0] is now


def test_the_reason_says_what_is_wrong() -> None:
    assert why_train(Seen(None, problem="no rows"))[1] == "no rows"
    assert why_train(Seen(None))[1] == "no champion yet"
    assert why_train(Seen("v1", drifted=True))[1].startswith("what v1 scores has drifted")
    assert why_train(Seen("v1"))[1] == "champion v1"
