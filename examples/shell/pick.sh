#!/bin/sh
# Leases a port for a script that is running already: the lease lasts as long as this
# shell, whatever ends it, and `portlock release` ends it earlier.
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

# Others see who has it, and what for.
status=0
portlock check "$port" >/dev/null || status=$?
[ "$status" -eq 1 ] || { echo "not leased, says portlock check: $status" >&2; exit 1; }
