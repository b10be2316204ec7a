# A mounted, busy btrfs is cloned; btrfs check finds nothing to complain about on the replica.
# needs: dm-snapshot btrfs binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 160M
make_lv rvg/replica 160M
mount_fs btrfs /dev/vg/src /tmp/m
noise 20000000 > /tmp/m/file
keep_busy /tmp/m
clone /dev/vg/src /dev/rvg/replica
stop_busy
assert_fs_clean btrfs /dev/rvg/replica
umount /tmp/m
clone /dev/vg/src /dev/rvg/replica
assert_same_bytes /dev/vg/src /dev/rvg/replica
