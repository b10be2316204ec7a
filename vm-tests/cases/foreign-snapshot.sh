# Snapshots that are not ours are left alone, whatever their names; so are volumes that carry our tag.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 32M
make_lv rvg/replica 32M
noise_at /dev/vg/src 0 8
lvcreate -qq -y -s -n blockferry -L 8M vg/src
lvcreate -qq -y -s -n src.ferry.0123456789ab -L 8M --addtag nightly vg/src
lvchange -qq --addtag blockferry rvg/replica
before=$(lvs --noheadings -o lv_name,lv_uuid,lv_tags)
clone /dev/vg/src /dev/rvg/replica --snapshot always
noise_at /dev/vg/src 1 1
clone /dev/vg/src /dev/rvg/replica --snapshot always
assert_equal "$(lvs --noheadings -o lv_name,lv_uuid,lv_tags)" "$before" "volumes changed"
assert_same_bytes /dev/vg/src /dev/rvg/replica
