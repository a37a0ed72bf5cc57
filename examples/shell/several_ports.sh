#!/bin/sh
# A test of two servers: a Redis primary and its replica, each on its own port.
# `portlock run` leases both, or waits until it can lease both.
set -eu
[ -n "${PRIMARY:-}" ] || exec portlock run --env PRIMARY --env REPLICA -- "$0" "$@"

servers=''
dir=$(mktemp -d) # replication uses files
trap 'kill $servers 2>/dev/null || :; wait; rm -r "$dir"' EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

redis-server --port "$PRIMARY" --bind 127.0.0.1 --save '' --dir "$dir" \
    --repl-diskless-sync-delay 0 >/dev/null & # instead of waiting 5 s for more replicas
servers="$servers $!"
redis-server --port "$REPLICA" --bind 127.0.0.1 --save '' --dir "$dir" \
    --dbfilename replica.rdb --replicaof 127.0.0.1 "$PRIMARY" >/dev/null &
servers="$servers $!"
portlock wait "$PRIMARY"
portlock wait "$REPLICA"

# In one connection; WAIT blocks until one replica has the value, at most 10 s.
redis-cli -p "$PRIMARY" <<'END' >/dev/null
SET greeting hello
WAIT 1 10000
END
echo "the replica says $(redis-cli -p "$REPLICA" GET greeting)"
