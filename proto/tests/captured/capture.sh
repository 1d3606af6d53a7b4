#!/usr/bin/env bash
# Captures what pgoutput says to statements.sql: capture.sh BIN_DIR > MAJOR.hex
# One message a line. PSQL names a psql if BIN_DIR has none. The server is thrown away; as root it runs as the user postgres.
set -euo pipefail
bin=$1
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d /tmp/lastgood-capture.XXXXXX)
as=(env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 HOME="$dir" TZ=UTC)
if [ "$(id -u)" = 0 ]; then
  chown postgres: "$dir"
  as=(setpriv --reuid=postgres --regid=postgres --clear-groups "${as[@]}")
fi
trap '"${as[@]}" "$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$dir"' EXIT
cd "$dir"
"${as[@]}" "$bin/initdb" -D "$dir/data" -U postgres -A trust --no-sync -E UTF8 --locale=C.UTF-8 >/dev/null
"${as[@]}" "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w start >/dev/null \
  -o "-c wal_level=logical -c fsync=off -c autovacuum=off -c listen_addresses='' -c unix_socket_directories=$dir"
# 13 knows no option messages and sends none.
major=$("${as[@]}" "$bin/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
messages=", 'messages', 'true'"
if [ "$major" = 13 ]; then messages=; fi
psql=("${as[@]}" "${PSQL:-$bin/psql}" -X -q -A -t -v ON_ERROR_STOP=1 -h "$dir" -U postgres)
"${psql[@]}" >/dev/null 2>"$dir/notices" <"$here/statements.sql" || { cat "$dir/notices" >&2; exit 1; }
"${psql[@]}" <<SQL
SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
SET extra_float_digits = 3; SET bytea_output = 'hex'; SET search_path = pg_catalog;
SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('captured', NULL, NULL,
  'proto_version', '1', 'publication_names', 'captured,captured_inserts'$messages);
SQL
