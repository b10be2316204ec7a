# debug
# needs: dm-snapshot binary
# backend: any
make_vg vg a
make_lv vg/src 48M
mount_fs ext4 /dev/vg/src /tmp/m
uname -r
d=$(stat -Lc %Hr:%Lr /dev/vg/src); n=
ls /sys/dev/block/$d /sys/dev/block/$d/queue
cat /sys/dev/block/$d/diskseq /sys/dev/block/$d/inflight /sys/dev/block/$d/queue/iostats /sys/dev/block/$d/stat
dmsetup info -c --noheadings -o events -j ${d%:*} -m ${d#*:} || true
command -v dmsetup
cat /proc/sys/kernel/random/boot_id
fail done
