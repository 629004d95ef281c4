"""What schemathesis is told about the API that its document cannot say: a cursor is one that the API has given.

Loaded by schemathesis (SCHEMATHESIS_HOOKS), in its own process.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import Case, HookContext


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """A request that is meant to be right comes without a cursor: only the API can make one."""
    meta = case.meta
    if case.query and "cursor" in case.query and meta is not None and meta.generation.mode.is_positive:
        case.query = {name: value for name, value in case.query.items() if name != "cursor"}
