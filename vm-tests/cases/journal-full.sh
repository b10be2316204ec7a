# The journal's disk is too small for an increment: exit 10 before the replica is touched; with room it completes.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 96M
make_lv rvg/replica 96M
make_lv rvg/state 64M
mount_fs ext4 /dev/rvg/state "$STATE"
noise_at /dev/vg/src 0 90
clone /dev/vg/src /dev/rvg/replica
generation=$(bytes_of /dev/rvg/replica)

noise_at /dev/vg/src 0 80
ferry_exits 10 clone /dev/vg/src /dev/rvg/replica --state-dir "$STATE"
assert_said journal
assert_equal "$(bytes_of /dev/rvg/replica)" "$generation" "the replica changed"

lvextend -qq -L 192M rvg/state
resize2fs /dev/rvg/state
clone /dev/vg/src /dev/rvg/replica
assert_same_bytes /dev/vg/src /dev/rvg/replica
