# A mounted file system that nobody writes to becomes idle: after one pass without a snapshot, runs read nothing at all.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
mount_fs ext4 /dev/vg/src /tmp/m
noise 5000000 > /tmp/m/file
sync
cat > /tmp/agent.toml << END
state_dir = "$STATE"
[[receiver]]
name = "here"
local = true
[[job]]
name = "db"
receivers = ["here"]
volumes = [{ source = "vg/src", replica = "/dev/rvg/replica" }]
END
run_job() { blockferry run db --config /tmp/agent.toml | tee /tmp/said; }
is_idle() { run_job && grep -q 'nothing was written since' /tmp/said; }
run_job
# ext4 writes for a while after it was made; each snapshot makes it write, too.
for _ in $(seq 20); do
  # Twice, with more in between than the kernel takes to write back what is dirty.
  if is_idle && sleep 6 && is_idle; then break; fi
  sleep 3
done
grep -q 'nothing was written since' /tmp/said || fail "it never became idle"
blockdev --flushbufs /dev/vg/src
assert_same_bytes /dev/vg/src /dev/rvg/replica
# Now with a look at what is asked of the disk.
before=$(cut -d' ' -f1-3 < /sys/block/dm-0/stat)
is_idle
assert_equal "$(cut -d' ' -f1-3 < /sys/block/dm-0/stat)" "$before" "an idle volume was read"
# What only the page cache knows is a write, and the next run has it.
echo new > /tmp/m/new
if is_idle; then fail "a write that was still in the page cache was taken for nothing"; fi
assert_no_snapshot_of_ours
lvcreate -qq -y -s -n look -L 16M rvg/replica
mkdir -p /tmp/look
mount /dev/rvg/look /tmp/look
assert_equal "$(cat /tmp/look/new)" new "what was in the page cache did not arrive"
