#!/bin/sh
# Makes .env for compose.yaml: .env.example with new passwords. One that is there stays, because servers know it.
set -eu
cd "$(dirname "$0")"
[ ! -e .env ] || { echo "env: .env is there and stays" >&2; exit 0; }
umask 077
random() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
while read -r line; do
  case "$line" in
    ENCRYPTION_KEY=) line="$line$(head -c 32 /dev/urandom | base64)" ;;
    OPENSEARCH_PASSWORD=) line="${line}Dash-$(random)" ;;
    *=) line="$line$(random)" ;;
  esac
  printf '%s\n' "$line"
done < .env.example > .env.new
mv .env.new .env
