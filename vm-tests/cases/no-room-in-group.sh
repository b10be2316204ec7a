# A volume group without room for a snapshot: exit 9 before anything is made, saying what is missing.
# needs: dm-snapshot dm-thin-pool binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 64M
make_lv rvg/replica 64M
leave_free vg 8
noise_at /dev/vg/src 0 4
ferry_exits 9 clone /dev/vg/src /dev/rvg/replica --state-dir "$STATE" --snapshot always
assert_said 'volume group vg' 'free' 'vgextend'
assert_no_snapshot_of_ours

# A thin pool that is nearly full gets no snapshot either: it would stop the origin.
lvremove -qqfy vg/hog
make_thin_pool vg/pool 64M
make_thin_lv vg/thin pool 64M
noise_at /dev/vg/thin 0 62
ferry_exits 9 clone /dev/vg/thin /dev/rvg/replica --state-dir "$STATE" --snapshot always
assert_said 'thin pool vg/pool' 'lvextend'

# Reading without a snapshot stays possible.
clone /dev/vg/src /dev/rvg/replica --snapshot never
assert_same_bytes /dev/vg/src /dev/rvg/replica
