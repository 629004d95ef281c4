#!/bin/sh
# Makes .venv from requirements.lock, and installs this project into it. Does nothing when both are as they were.
# PYTHON chooses the interpreter (3.11 to 3.13). Uses uv if the machine has it, else one from PyPI.
set -eu
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
stamp=.venv/.installed
inputs="$(cat requirements.lock pyproject.toml deployments/local/venv.sh | sha256sum)"

say() { echo "venv: $*" >&2; }

if [ -x .venv/bin/dash-pipeline ] && [ "$(cat "$stamp" 2>/dev/null)" = "$inputs" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || {
  say "$python is not a Python 3.11, 3.12 or 3.13; set PYTHON to one"
  exit 4
}

# Debian ships Python without ensurepip; the package that has it is one apt-get away.
need_venv_package() {
  "$python" -c 'import ensurepip' 2>/dev/null && return
  package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else
    say "missing: $package; as root: apt-get install -y $package"
    exit 4
  fi
  say "installing $package"
  $sudo apt-get update -q >&2
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$package" >&2
}

if command -v uv >/dev/null; then
  uv=uv
  [ -x .venv/bin/python ] || uv venv --quiet --python "$python" .venv
else
  need_venv_package
  [ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
  .venv/bin/pip install --quiet "uv>=0.5,<1"
  uv=.venv/bin/uv
fi

say "installing the locked requirements"
# Compiled once, here: Dagster starts processes all the time, and where Python may not write bytecode each would compile it.
"$uv" pip install --compile-bytecode --python .venv/bin/python --require-hashes -r requirements.lock
"$uv" pip install --quiet --python .venv/bin/python --no-deps --editable .
echo "$inputs" > "$stamp"
