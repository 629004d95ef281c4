#!/usr/bin/env bash
# All tests. Those that need no server run beside the first of the others, which wait for theirs a lot.
set -uo pipefail
cd "$(dirname "$0")/../.."
log=.stack/tests-without-servers.log
chart=tests/kubernetes/test_chart.py
mkdir -p .stack
.venv/bin/python -m pytest tests/unit "$chart" >"$log" 2>&1 &
without=$!
trap 'kill "$without" 2>/dev/null' EXIT
.venv/bin/python -m pytest tests/integration tests/e2e tests/kubernetes --ignore="$chart"
with=$?
wait "$without"
first=$?
cat "$log"
exit $((with || first))
