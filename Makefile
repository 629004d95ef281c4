# The commands of this repository; `make` alone lists them.

PY := .venv/bin/python
DASH := .venv/bin/dash-pipeline

.PHONY: help venv demo down docs test test-all test-kubernetes bench market lint lock

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

venv: ## make .venv with the locked requirements and this project
	@deployments/local/venv.sh

demo: venv ## start everything, feed a recorded market through it, and show what came out (LIVE=1: mine it now)
	$(DASH) demo $(if $(filter 1,$(LIVE)),--live)

down: venv ## stop every process that demo started
	$(DASH) down

docs: venv ## build the documentation's site into docs/_build/html; a warning is an error
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet -b html -d docs/_build/doctrees docs docs/_build/html

test: venv ## unit, integration on real servers, end to end, on a cluster; the longest need four processors
	@deployments/local/browser.sh
	@deployments/local/test.sh

test-all: export DASH_ALL_TESTS = 1
test-all: test ## the longest, too, however many processors there are

test-kubernetes: venv ## all of those on a Kubernetes of one node; takes root; its programs are built once
	DASH_ALL_TESTS=1 $(PY) -m pytest tests/kubernetes

bench: venv ## every figure of the README
	$(PY) -m benchmarks

market: venv ## make the recorded market anew
	deployments/local/market/make.sh

lint: venv ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock: venv ## write requirements.lock anew from pyproject.toml
	.venv/bin/uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	  --group pyproject.toml:stack --group pyproject.toml:dev pyproject.toml -o requirements.lock
