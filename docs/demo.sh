#!/bin/bash
# One image, cloned, changed and brought in step again; every step with its figures. Needs no root and
# leaves everything it made under target/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"

demo=target/demo
source_image=$demo/source.img
replica_image=$demo/replica.img
state=$demo/state
bytes=$((256 << 20))

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
disk_bytes() { du -B1 --apparent-size "$1" | cut -f1; }
used_bytes() { du -B1 "$1" | cut -f1; }

if [ -z "${BLOCKFERRY:-}" ]; then
  step "build"
  show cargo build --release
  BLOCKFERRY=${CARGO_TARGET_DIR:-target}/release/blockferry
fi
ferry() { printf '$ blockferry %s\n' "$*"; "$BLOCKFERRY" "$@"; }

rm -rf "$demo"
mkdir -p "$demo/files"

step "a volume with real files: $source_image, 256 MiB"
# This repository's own sources and a binary of some megabytes.
cp -r src docs tests Cargo.toml Cargo.lock "$demo/files/"
cp "$BLOCKFERRY" "$demo/files/program"
truncate -s "$bytes" "$source_image"
if command -v mkfs.ext4 >/dev/null; then
  filesystem=ext4
  mkfs.ext4 -q -F -L demo -d "$demo/files" "$source_image"
else
  filesystem=tar
  tar -C "$demo" -cf - files | dd of="$source_image" conv=notrunc status=none
fi
echo "$filesystem: $(disk_bytes "$source_image") bytes, $(used_bytes "$source_image") of them in use"

step "the first clone: everything that is no hole, once"
ferry clone "$source_image" "$replica_image" --state-dir "$state"
cmp "$source_image" "$replica_image" && echo "cmp: identical; the replica uses $(used_bytes "$replica_image") bytes of disk"

step "nothing changed: the second clone sends nothing"
ferry clone "$source_image" "$replica_image" --state-dir "$state"

step "a change: one new file, and three blocks of 4 KiB rewritten"
if [ "$filesystem" = ext4 ] && command -v debugfs >/dev/null; then
  echo "written after the first clone" > "$demo/note"
  debugfs -w -R "write $demo/note note" "$source_image" 2>/dev/null
fi
for block in 20000 40000 60000; do
  dd if=/dev/urandom of="$source_image" bs=4096 count=1 seek="$block" conv=notrunc status=none
done
cmp -s "$source_image" "$replica_image" || echo "cmp: the replica is one generation behind, as it should be"

step "what would travel?"
ferry clone "$source_image" "$replica_image" --state-dir "$state" --dry-run

step "the next generation: only the blocks that changed"
ferry clone "$source_image" "$replica_image" --state-dir "$state"
cmp "$source_image" "$replica_image" && echo "cmp: identical again"

step "verify: both read in full and compared"
ferry verify "$source_image" "$replica_image" --state-dir "$state"

step "what the receiver remembers of it"
for manifest in "$state"/replicas/*/manifest; do
  ferry manifest show "$manifest"
done

step "done: look around in $demo"
