# A mounted, busy XFS is cloned; xfs_repair finds nothing to complain about on the replica.
# needs: dm-snapshot xfs binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 320M
make_lv rvg/replica 320M
mount_fs xfs /dev/vg/src /tmp/m
noise 20000000 > /tmp/m/file
keep_busy /tmp/m
clone /dev/vg/src /dev/rvg/replica
stop_busy
assert_fs_clean xfs /dev/rvg/replica
umount /tmp/m
clone /dev/vg/src /dev/rvg/replica
assert_same_bytes /dev/vg/src /dev/rvg/replica
