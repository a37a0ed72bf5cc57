#!/bin/sh
# Leases a port for a script that is already running: the lease lasts as long as this
# shell, however it ends, unless `portlock release` ends the lease earlier.
set -eu

port=$(portlock pick --label "web server of $0")
dir=$(mktemp -d)
echo 'hello' >"$dir/greeting"

python3 -m http.server --bind 127.0.0.1 --directory "$dir" "$port" >"$dir/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || :; wait; rm -r "$dir"' EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

portlock wait "$port"
python3 -c '
import sys, urllib.request
print("it says", urllib.request.urlopen(sys.argv[1], timeout=10).read().decode().strip())
' "http://127.0.0.1:$port/greeting"

# Other users see who has the port, and its label.
status=0
portlock check "$port" >/dev/null || status=$?
[ "$status" -eq 1 ] || { echo "portlock check reports that it is not leased: $status" >&2; exit 1; }
