# A job's snapshot overflows in mid-run: it is made once more, at once, with twice the room, and the run succeeds.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 64M
make_lv rvg/replica 64M
mount_fs ext4 /dev/vg/src /tmp/m
noise 5000000 > /tmp/m/old
configure() { # ON-OVERFLOW
  cat > /tmp/agent.toml << END
state_dir = "$STATE"
[[receiver]]
name = "here"
local = true
[[job]]
name = "db"
receivers = ["here"]
volumes = [{ source = "vg/src", replica = "/dev/rvg/replica" }]
[job.snapshot]
size = "fixed:16MiB"
on_overflow = "$1"
END
}
overflow() {
  sync
  pause_at_snapshot vg run db --config /tmp/agent.toml
  noise 42000000 > /tmp/m/flood
  sync
  assert_equal "$(lv_field "$(snapshots_of_ours)" lv_snapshot_invalid)" snapshotinvalid "the bed could not overflow it"
  resume_ferry
}
configure fail
blockferry run db --config /tmp/agent.toml
noise 3000000 > /tmp/m/new
overflow
background_exits 9
assert_said overflowed
assert_no_snapshot_of_ours

configure retry-larger
overflow
background_exits 0
assert_said 'generation 2'
assert_no_snapshot_of_ours
umount /tmp/m
blockferry run db --config /tmp/agent.toml
assert_same_bytes /dev/vg/src /dev/rvg/replica
