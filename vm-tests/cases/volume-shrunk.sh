# A volume that shrank is refused, and the replica stays as it was.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
noise_at /dev/vg/src 0 40
clone /dev/vg/src /dev/rvg/replica
generation=$(bytes_of /dev/rvg/replica)
lvreduce -qqfy -L 32M vg/src
ferry_exits 8 clone /dev/vg/src /dev/rvg/replica --state-dir "$STATE"
assert_equal "$(bytes_of /dev/rvg/replica)" "$generation" "the replica changed"
