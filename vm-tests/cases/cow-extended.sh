# A snapshot that fills up while it is read is given more room in time: the run ends well and leaves nothing behind.
# needs: dm-snapshot dm-delay binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 64M
make_lv rvg/replica 64M
mount_fs ext4 /dev/vg/src /tmp/m
noise 30000000 > /tmp/m/file
sync
interpose replica /dev/rvg/replica
slow_writes replica 2000
cow_has() { [ "$(lv_field "$(snapshots_of_ours)" lv_size)" -gt $((16 * MIB)) ]; }

ferry_in_background clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE" --snapshot-size fixed:16MiB
wait_until has_written /dev/mapper/replica 2
slow_writes replica 60000 # until it is healed: the run does not end before the store was looked at
noise 11000000 > /tmp/m/more # 65 % of the store
sync
wait_until cow_has
noise 15000000 > /tmp/m/still-more # too much for what it had
sync
heal replica
background_exits 0
assert_no_snapshot_of_ours
assert_fs_clean ext4 /dev/mapper/replica
umount /tmp/m
clone /dev/vg/src /dev/mapper/replica
assert_same_bytes /dev/vg/src /dev/mapper/replica
