# A kernel that forbids io_uring: the program says so once and does the same with plain reads and writes.
# needs: dm-snapshot tool:python3 binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
mount_fs ext4 /dev/vg/src /tmp/m
noise 9000000 > /tmp/m/file
without_io_uring python3 -c 'import ctypes; import sys; sys.exit(ctypes.CDLL(None).syscall(425, 1, None) != -1)'
exits 0 without_io_uring blockferry clone /dev/vg/src /dev/rvg/replica --state-dir "$STATE"
assert_said io_uring
assert_equal "$(grep -c 'io_uring' <<< "$said")" 1 "said more than once"
noise 500000 > /tmp/m/second
umount /tmp/m
exits 0 without_io_uring blockferry clone /dev/vg/src /dev/rvg/replica --state-dir "$STATE"
assert_same_bytes /dev/vg/src /dev/rvg/replica
