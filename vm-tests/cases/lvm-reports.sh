# What lvs, vgs and pvs print as JSON here, kept in the results: the unit tests of src/lvm read copies.
# needs: dm-snapshot dm-thin-pool
# backend: any

save() { # FILE COMMAND…
  mkdir -p /results/lvm-reports
  "${@:2}" > "/results/lvm-reports/$1" 2> "/results/lvm-reports/$1.stderr"
}
columns=lv_name,vg_name,lv_path,lv_uuid,vg_uuid,lv_size,lv_attr,origin,lv_tags,pool_lv,data_percent,metadata_percent,snap_percent,segtype,lv_active,lv_device_open,lv_suspended,lv_snapshot_invalid,lv_kernel_major,lv_kernel_minor
lvs_json() { lvm lvs -qq --reportformat json --units b --nosuffix -o $columns "$@"; }

make_vg vg a b
make_lv vg/src 64M
lvcreate -qq -y -s -n snap -L 16M -c 4k --addtag blockferry --addtag blockferry.run=r1 vg/src
make_thin_pool vg/pool 96M
make_thin_lv vg/thin pool 64M
lvcreate -qq -y -s -n thinsnap --addtag blockferry vg/thin
make_lv vg/asleep 8M
lvchange -an vg/asleep
make_lv vg/mounted 16M
mount_fs ext4 /dev/vg/mounted /tmp/mounted
noise_at /dev/vg/src 0 2
noise_at /dev/vg/thin 0 4

save lvs.json lvs_json
save lvs-one.json lvs_json vg/src
save lvs-none.json lvs_json -S 'vg_name=vg && lv_name=nothing'
save lvs-tag.json lvs_json -S 'lv_tags=blockferry'
save vgs.json lvm vgs -qq --reportformat json --units b --nosuffix -o vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_tags
noise_at /dev/vg/src 0 32
save lvs-overflowed.json lvs_json vg/snap
grep -q 'snapshot invalid' /results/lvm-reports/lvs-overflowed.json || fail "lvs does not call the overflowed snapshot invalid"
