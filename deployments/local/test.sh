#!/usr/bin/env bash
# All tests. The integration tests are two halves with servers of their own, side by side: they wait more than they
# compute. Those that need no server run beside them, with what is left of the processors.
set -uo pipefail
cd "$(dirname "$0")/../.."
test=(.venv/bin/python -m pytest)
chart=tests/kubernetes/test_chart.py
mkdir -p .stack
setsid deployments/local/beside.sh "${test[@]}" tests/unit "$chart" >.stack/tests-without-servers.log 2>&1 &
without=$!
DASH_TEST_STACK_DIR=.stack/test-2 DASH_TEST_PORT_OFFSET=4000 \
  setsid "${test[@]}" tests/integration/test_[!a-k]*.py >.stack/tests-second-half.log 2>&1 &
second=$!
trap 'kill -- "-$without" "-$second" 2>/dev/null' EXIT
"${test[@]}" tests/integration/test_[a-k]*.py tests/e2e tests/kubernetes --ignore="$chart"
failed=$?
for pid in "$second" "$without"; do
  wait "$pid" || failed=1
done
cat .stack/tests-without-servers.log .stack/tests-second-half.log
exit "$failed"
