# A mounted, busy ext4 on a classic LV is cloned to another LV; fsck of the replica is clean, its files are whole.
# needs: dm-snapshot binary
# backend: any
# reference: yes

make_vg vg a
make_vg rvg b
make_lv vg/src 64M
make_lv rvg/replica 64M
mount_fs ext4 /dev/vg/src /tmp/m
for number in 1 2 3; do noise 3000000 > /tmp/m/file$number; done
sync
sums=$(sums_of /tmp/m)
keep_busy /tmp/m
clone /dev/vg/src /dev/rvg/replica
stop_busy
assert_no_snapshot_of_ours
assert_fs_clean ext4 /dev/rvg/replica

# The file system on the replica is whole and holds what was synced before.
lvcreate -qq -y -s -n look -L 16M rvg/replica # so that mounting writes nothing to the replica
mkdir -p /tmp/look
mount /dev/rvg/look /tmp/look
assert_equal "$(sums_of /tmp/look)" "$sums" "the replica's files differ"
umount /tmp/look
lvremove -qqfy rvg/look

# Quiet now: byte for byte.
umount /tmp/m
clone vg/src /dev/rvg/replica # by its name
assert_same_bytes /dev/vg/src /dev/rvg/replica
