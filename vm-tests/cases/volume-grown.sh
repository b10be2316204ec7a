# A volume that grew is refused until its replica has grown too; then only the new part and the changes travel.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
noise_at /dev/vg/src 0 40
clone /dev/vg/src /dev/rvg/replica
lvextend -qq -L 64M vg/src
noise_at /dev/vg/src 50 4
ferry_exits 8 clone /dev/vg/src /dev/rvg/replica --state-dir "$STATE"
assert_said '16(\.0)? ?MiB|16777216|67108864'
lvextend -qq -L 64M rvg/replica
assert_writes "$(disk b)" $((4 * MIB)) $((24 * MIB)) clone /dev/vg/src /dev/rvg/replica
assert_same_bytes /dev/vg/src /dev/rvg/replica
