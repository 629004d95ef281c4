#!/bin/sh
# PostgreSQL, in the foreground. BIN, CONF (folder), DATA (folder) and AS (what runs it as another user, or nothing)
# come from supervisord.

# A lock file names a process. After a reboot its number may belong to another program, and PostgreSQL would refuse to start.
pid="$(head -n 1 "$DATA/postmaster.pid" 2>/dev/null || true)"
if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != postgres ]; then rm -f "$DATA/postmaster.pid"; fi

# Word splitting is wanted: AS is a command with its arguments.
exec $AS "$BIN/postgres" -c config_file="$CONF/postgresql.conf"
