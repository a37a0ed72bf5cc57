#!/bin/sh
# A test of one server. It runs itself again under `portlock run`. TEST_PORT is then
# leased as long as this script, or any process that it has started, runs.
set -eu
[ -n "${TEST_PORT:-}" ] || exec portlock run --env TEST_PORT -- "$0" "$@"

redis-server --port "$TEST_PORT" --bind 127.0.0.1 --save '' >/dev/null &
server=$!
trap 'kill "$server" 2>/dev/null || :; wait' EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

portlock wait "$TEST_PORT"
redis-cli -p "$TEST_PORT" SET greeting hello >/dev/null
echo "it says $(redis-cli -p "$TEST_PORT" GET greeting)"
