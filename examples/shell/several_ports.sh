#!/bin/sh
# A test of two servers: a Redis primary and its replica, each on a port of its own.
# `portlock run` leases both, or waits until it can have both.
set -eu
[ -n "${PRIMARY:-}" ] || exec portlock run --env PRIMARY --env REPLICA -- "$0" "$@"

servers=''
dir=$(mktemp -d) # what is replicated goes through files
trap 'kill $servers 2>/dev/null || :; wait; rm -r "$dir"' EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

redis-server --port "$PRIMARY" --bind 127.0.0.1 --save '' --dir "$dir" \
    --repl-diskless-sync-delay 0 >/dev/null & # not 5 s, for more replicas to come
servers="$servers $!"
redis-server --port "$REPLICA" --bind 127.0.0.1 --save '' --dir "$dir" \
    --dbfilename replica.rdb --replicaof 127.0.0.1 "$PRIMARY" >/dev/null &
servers="$servers $!"
portlock wait "$PRIMARY"
portlock wait "$REPLICA"

# In one connection, and until one replica has it: 10 s at most.
redis-cli -p "$PRIMARY" <<'END' >/dev/null
SET greeting hello
WAIT 1 10000
END
echo "the replica says $(redis-cli -p "$REPLICA" GET greeting)"
