#!/usr/bin/env bash
# Makes the recorded market anew.   usage: make.sh [option of main.mjs ...]      e.g. make.sh --seed 7 --blocks 900
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
exec "${PYTHON:-.venv/bin/python}" -m dash_pipeline.market record "$@"
