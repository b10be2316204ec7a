# Replica and state on a disk that logs its writes: after a cut at any of many points, the next run ends in the same bytes.
# needs: dm-snapshot dm-log-writes tool:python3 binary
# backend: any

make_vg vg c
make_lv vg/src 32M
noise_at /dev/vg/src 0 24
log_writes logged "$(disk a)" "$(disk b)"
make_vg rvg /dev/mapper/logged
make_lv rvg/replica 32M
make_lv rvg/state 48M
mount_fs ext4 /dev/rvg/state "$STATE"
sync -f "$STATE"
mark_log logged begin
clone /dev/vg/src /dev/rvg/replica
noise_at /dev/vg/src 3 6
blkdiscard -z -o $((12 * MIB)) -l $((2 * MIB)) /dev/vg/src
clone /dev/vg/src /dev/rvg/replica
sync -f "$STATE"
mark_log logged end
umount "$STATE"
vgchange -qq -an rvg
dmsetup remove logged
show_to_lvm

seed=0
for entry in $(python3 /payload/tools/replay_log.py "$(disk b)" cuts begin end 10); do
  seed=$((seed + 1))
  replay_log "$(disk b)" "$(disk a)" "$entry" $seed
  vgchange -qq -ay rvg
  mount /dev/rvg/state "$STATE"
  clone /dev/vg/src /dev/rvg/replica
  assert_same_bytes /dev/vg/src /dev/rvg/replica
  umount "$STATE"
  vgchange -qq -an rvg
done
