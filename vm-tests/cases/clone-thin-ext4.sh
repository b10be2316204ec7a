# The same on thin volumes, source and replica: a thin snapshot is taken, activated, and removed.
# needs: dm-snapshot dm-thin-pool binary
# backend: any
# reference: yes

make_vg vg a
make_vg rvg b
make_thin_pool vg/pool 160M
make_thin_pool rvg/pool 160M
make_thin_lv vg/src pool 64M
make_thin_lv rvg/replica pool 64M
mount_fs ext4 /dev/vg/src /tmp/m
for number in 1 2 3; do noise 3000000 > /tmp/m/file$number; done
sync
keep_busy /tmp/m
clone /dev/vg/src /dev/rvg/replica
stop_busy
assert_no_snapshot_of_ours
assert_fs_clean ext4 /dev/rvg/replica

# Zeros need no room on a thin replica: it holds little more than the source does.
umount /tmp/m
clone /dev/vg/src /dev/rvg/replica
assert_same_bytes /dev/vg/src /dev/rvg/replica
source=$(lv_field vg/src data_percent) replica=$(lv_field rvg/replica data_percent)
[ "${replica%.*}" -le $((${source%.*} + 25)) ] || fail "the replica uses $replica %, the source $source %"
