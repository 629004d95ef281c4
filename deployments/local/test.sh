#!/usr/bin/env bash
# All tests. Those that need no server run beside the others, with what is left of the processors.
set -uo pipefail
cd "$(dirname "$0")/../.."
log=.stack/tests-without-servers.log
chart=tests/kubernetes/test_chart.py
mkdir -p .stack
setsid deployments/local/beside.sh .venv/bin/python -m pytest tests/unit "$chart" >"$log" 2>&1 &
without=$!
trap 'kill -- "-$without" 2>/dev/null' EXIT
.venv/bin/python -m pytest tests/integration tests/e2e tests/kubernetes --ignore="$chart"
with=$?
wait "$without"
first=$?
cat "$log"
exit $((with || first))
