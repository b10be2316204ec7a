# kill -9 in mid-run leaves a snapshot; the next run, or doctor, finds it by its tag and removes it; the replica is completed.
# needs: dm-snapshot dm-delay binary
# backend: any
# reference: yes

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
mount_fs ext4 /dev/vg/src /tmp/m
noise 30000000 > /tmp/m/file
sync
interpose replica /dev/rvg/replica

# Killed before the first byte.
pause_at_snapshot vg clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE"
kill_ferry
left=$(snapshots_of_ours)
[ -n "$left" ] || fail "the bed saw no snapshot"

# Killed in the middle of the data.
slow_writes replica 2000
ferry_in_background clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE"
wait_until has_written /dev/mapper/replica 4
kill_ferry
heal replica
[ "$(snapshots_of_ours | wc -l)" = 1 ] || fail "there should be one snapshot: $(snapshots_of_ours)"
[ "$(snapshots_of_ours)" != "$left" ] || fail "the second run did not remove what the first one left"

umount /tmp/m
clone /dev/vg/src /dev/mapper/replica
assert_no_snapshot_of_ours
assert_same_bytes /dev/vg/src /dev/mapper/replica

# doctor finds it too, and spares one whose run lives.
pause_at_snapshot vg clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE" --snapshot always
exits 0 blockferry doctor --fix --state-dir "$STATE"
[ -n "$(snapshots_of_ours)" ] || fail "doctor removed the snapshot of a run that lives"
kill_ferry
exits 1 blockferry doctor --state-dir "$STATE"
assert_said "$(snapshots_of_ours)"
blockferry doctor --fix --state-dir "$STATE"
assert_no_snapshot_of_ours
