# After work in the file system only what changed is written to the replica; after none, nothing.
# needs: dm-snapshot tool:python3 binary
# backend: any
# reference: yes

make_vg vg a
make_vg rvg b
make_lv vg/src 96M
make_lv rvg/replica 96M
mount_fs ext4 /dev/vg/src /tmp/m
noise 30000000 > /tmp/m/large
for number in $(seq 20); do noise 50000 > "/tmp/m/small$number"; done
clone /dev/vg/src /dev/rvg/replica

# 4 MiB in the middle of one file, some files come, some go: 5 MiB and the file system's tables.
noise 4194304 | dd of=/tmp/m/large bs=1M seek=10 conv=notrunc status=none
rm /tmp/m/small1 /tmp/m/small2
for number in $(seq 20 35); do noise 50000 > "/tmp/m/new$number"; done
sync
assert_writes "$(disk b)" $((4 * MIB)) $((10 * MIB)) clone /dev/vg/src /dev/rvg/replica
assert_no_snapshot_of_ours
umount /tmp/m
clone /dev/vg/src /dev/rvg/replica
assert_same_bytes /dev/vg/src /dev/rvg/replica

# Scattered writes of 4 KiB: two hundred of them are 800 KiB to the byte, and not two hundred extents (12.5 MiB).
scatter_noise /dev/vg/src 200 97
assert_writes "$(disk b)" $((200 * 4096)) $((200 * 4096)) clone /dev/vg/src /dev/rvg/replica --snapshot always
assert_same_bytes /dev/vg/src /dev/rvg/replica

assert_writes "$(disk b)" 0 0 clone /dev/vg/src /dev/rvg/replica
