# The snapshot overflows in the middle of a run: exit 9, the replica keeps its generation, nothing is left behind.
# needs: dm-snapshot binary
# backend: any
# reference: yes

make_vg vg a
make_vg rvg b
make_lv vg/src 64M
make_lv rvg/replica 64M
leave_free vg 56 # room for one small snapshot; 5 % of the group stay free
mount_fs ext4 /dev/vg/src /tmp/m
noise 5000000 > /tmp/m/old
clone /dev/vg/src /dev/rvg/replica
generation=$(bytes_of /dev/rvg/replica)

noise 3000000 > /tmp/m/new
sync
pause_at_snapshot vg clone /dev/vg/src /dev/rvg/replica --state-dir "$STATE"
noise 42000000 > /tmp/m/flood
sync
assert_equal "$(lv_field "$(snapshots_of_ours)" lv_snapshot_invalid)" snapshotinvalid "the bed could not overflow it"
resume_ferry
background_exits 9
assert_said overflow
assert_no_snapshot_of_ours
assert_equal "$(bytes_of /dev/rvg/replica)" "$generation" "the replica changed"

# The origin is unharmed, and with more room the next run succeeds.
umount /tmp/m
e2fsck -fn /dev/vg/src
lvremove -qqfy vg/hog
clone /dev/vg/src /dev/rvg/replica
assert_same_bytes /dev/vg/src /dev/rvg/replica
