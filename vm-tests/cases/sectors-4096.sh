# Source and replica on disks with sectors of 4096 bytes, and from one with 512.
# needs: dm-snapshot loop binary
# backend: any

four() { losetup -f --show --sector-size 4096 "$(disk "$1")"; }
hide_from_lvm "$(disk a)" "$(disk b)"
make_vg vg "$(four a)"
make_vg rvg "$(four b)"
make_vg vg5 c
make_lv vg/src 48M
make_lv rvg/replica 48M
make_lv rvg/other 48M
make_lv vg5/small 48M
assert_equal "$(blockdev --getss /dev/vg/src) $(blockdev --getss /dev/vg5/small)" "4096 512"
mount_fs ext4 /dev/vg/src /tmp/m
noise 9000000 > /tmp/m/file
clone /dev/vg/src /dev/rvg/replica
noise 500000 > /tmp/m/second
umount /tmp/m
clone /dev/vg/src /dev/rvg/replica
assert_same_bytes /dev/vg/src /dev/rvg/replica

noise_at /dev/vg5/small 0 16
clone /dev/vg5/small /dev/rvg/other --snapshot always
assert_same_bytes /dev/vg5/small /dev/rvg/other
