#!/bin/sh
# Run by the image when it makes the cluster: roles `dash` and `dagster`, each with a database of its own name.
set -eu
for role in dash dagster; do
  [ "$role" = dash ] && password="$DASH_PASSWORD" || password="$DAGSTER_PASSWORD"
  psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d postgres -v role="$role" -v password="$password" <<'SQL'
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role";
SQL
done
psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d dash -c "CREATE EXTENSION IF NOT EXISTS timescaledb"
