#!/bin/sh
# Waits instead of sleeping: for a server that is slow to start, and, once it is
# stopped, for its port. Each wait is bounded, and exits with 124 if it times out.
set -eu

port=$(portlock pick)
log=$(mktemp)
# Simulates a server that first loads its data.
sh -c 'sleep 0.3; exec python3 -m http.server --bind 127.0.0.1 "$0"' "$port" >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || :; wait; rm "$log"' EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

echo 'waiting for the server'
portlock wait --timeout 20 "$port" || { status=$?; cat "$log" >&2; exit "$status"; }
echo 'the server listens'

kill "$server"
portlock release "$port"
portlock wait --free --timeout 20 "$port"
echo 'its port is free'
