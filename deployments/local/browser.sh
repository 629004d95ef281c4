#!/bin/sh
# Makes sure that the browser of the end-to-end tests is there: Debian's chromium and chromedriver.
set -eu
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0
if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else
  echo "browser: missing chromium and chromium-driver; as root: apt-get install -y chromium chromium-driver" >&2
  exit 4
fi
echo "browser: installing chromium and chromium-driver" >&2
$sudo apt-get update -q >&2
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium chromium-driver >&2
