# What fstrim discards on the source arrives as zeros and gives its room back to a replica in a file.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_lv vg/src 96M
mount_fs ext4 "$(disk b)" /tmp/replicas
mount_fs ext4 /dev/vg/src /tmp/m
noise 40000000 > /tmp/m/large
clone /dev/vg/src /tmp/replicas/src.img
full=$(du -m /tmp/replicas/src.img | cut -f1)
rm /tmp/m/large
sync # blocks are free when the journal is committed
fstrim -v /tmp/m
clone /dev/vg/src /tmp/replicas/src.img
empty=$(du -m /tmp/replicas/src.img | cut -f1)
[ $((full - empty)) -ge 35 ] || fail "the replica had $full MiB and still has $empty"
umount /tmp/m
clone /dev/vg/src /tmp/replicas/src.img
cmp /dev/vg/src /tmp/replicas/src.img
