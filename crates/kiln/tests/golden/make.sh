#!/bin/sh
# Makes a golden data root with the kiln binary that is named: `make.sh KILN OUTPUT.tar.zst`. Needs root.
#
# Everything is ended as a crash of the machine ends it, so nothing is taken down in order: the journal, the store,
# the proxy's table and the folders of the instances are as they are at such a moment.
set -eu
kiln=$(realpath "$1")
output=$(realpath -m "$2")
here=$(dirname "$(realpath "$0")")
folder=$(mktemp -d)
mkdir "$folder/root"
cp -r "$here/server" "$folder/server"
cd "$folder/server"
export KILN_ROOT="$folder/root"

# A service that is removed again.
"$kiln" up --detach gone.hcl
"$kiln" up --detach .
"$kiln" apply --var release=2 --json
# A rollout that fails: the service goes on with release 2.
if "$kiln" apply --var release=3 --var broken=true --json; then
    echo "the broken release was not turned back" >&2
    exit 1
fi
# `warm` was asked for release 3 beside it, and got it.
"$kiln" rollback warm --to 2 --json
# A policy alone, there and back.
"$kiln" apply --var release=2 --var replicas=2 --json
"$kiln" apply --var release=2 --json
"$kiln" rollback warm --to 1 --json
"$kiln" rollback warm --to 2 --json
# An instance that dies is replaced.
victim=$("$kiln" status --json | tr '{' '\n' | sed -n 's/.*"id":"\(web[^"]*\)".*"state":"ready".*"pid":\([0-9]*\).*/\2/p' | head -1)
kill -9 "$victim"
tries=0
until "$kiln" history web --json | grep -q "ended by signal 9"; do
    tries=$((tries + 1))
    test "$tries" -lt 100
    sleep 0.1
done
until "$kiln" status --json | tr '{' '\n' | grep '"id":"web' | grep -v "\"pid\":$victim," | grep -q '"state":"ready"'; do
    tries=$((tries + 1))
    test "$tries" -lt 200
    sleep 0.1
done
"$kiln" status
"$kiln" history
"$kiln" --version > "$KILN_ROOT/made-by"

# The machine stops: supervisor first, so that it starts nobody anew.
for name in $(grep -l "^" /proc/[0-9]*/cmdline 2>/dev/null); do
    pid=${name#/proc/}
    pid=${pid%/cmdline}
    if tr '\0' '\n' < "$name" 2>/dev/null | grep -q "^$KILN_ROOT\(/\|$\)"; then
        kill -STOP "$pid" 2>/dev/null && stopped="${stopped:-} $pid"
    fi
done
for pid in ${stopped:-}; do
    kill -9 "$pid" 2>/dev/null || true
done
tries=0
while grep -q " $KILN_ROOT/" /proc/self/mounts; do
    sed -n "s|^[^ ]* \($KILN_ROOT/[^ ]*\) .*|\1|p" /proc/self/mounts | sort -r | xargs -r -n1 umount -l || true
    tries=$((tries + 1))
    test "$tries" -lt 50
done
find "$KILN_ROOT" -type s -delete
tar --sort=name --numeric-owner -C "$folder" -cf - root | zstd -19 -q -f -o "$output"
# The bridge and the firewall table of this root are left to a kiln that ends in order.
"$kiln" up --detach --var release=2 . && "$kiln" down
rm -rf "$folder"
ls -l "$output"
