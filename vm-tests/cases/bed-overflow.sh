# What the kernel does when a classic snapshot overflows: the origin is unharmed, reads of the snapshot fail.
# needs: dm-snapshot
# backend: any

make_vg vg a
make_lv vg/src 64M
lvcreate -qq -y -s -n snap -c 4k -L 4M vg/src
noise_at /dev/vg/src 0 8
assert_equal "$(lv_field vg/snap lv_snapshot_invalid)" snapshotinvalid
if dd if=/dev/vg/snap of=/dev/null bs=4k count=1 iflag=direct; then fail "an overflowed snapshot could be read"; fi
noise_at /dev/vg/src 8 8
