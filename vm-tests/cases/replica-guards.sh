# A target that is mounted, held, the source itself, too small or in use by others is refused with exit 8 and unchanged.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
make_lv rvg/small 32M
noise_at /dev/vg/src 0 8
refused() { # TARGET PATTERN
  local before
  before=$(bytes_of "$1")
  ferry_exits 8 clone /dev/vg/src "$1" --state-dir "$STATE"
  assert_said "$2"
  assert_equal "$(bytes_of "$1")" "$before" "a refused target changed"
}

mount_fs ext4 /dev/rvg/replica /tmp/r
mount -o remount,ro /tmp/r # the file system itself changes nothing now
refused /dev/rvg/replica mounted
umount /tmp/r
refused /dev/rvg/replica 'ext4.*--overwrite|--overwrite.*ext4' # a file system that nobody said may go
interpose above /dev/rvg/replica
refused /dev/rvg/replica 'part of /dev/mapper/above'
dmsetup remove above
refused /dev/rvg/small '32|33554432|small'
refused /dev/vg/src 'same|itself'
pvcreate -qqf --config 'devices { scan_lvs=1 }' /dev/rvg/replica # as a guest on this host would
refused /dev/rvg/replica 'LVM|--overwrite'
wipefs -qaf /dev/rvg/replica

clone /dev/vg/src /dev/rvg/replica --overwrite
assert_same_bytes /dev/vg/src /dev/rvg/replica
