# The replica's disk lies and drops writes: no run can know, but verify finds it and says so with exit 7.
# needs: dm-snapshot dm-flakey binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 32M
make_lv rvg/replica 32M
noise_at /dev/vg/src 0 32
interpose replica /dev/rvg/replica
clone /dev/vg/src /dev/mapper/replica
exits 0 blockferry verify /dev/vg/src /dev/mapper/replica --state-dir "$STATE"

noise_at /dev/vg/src 8 4
drop_writes replica
clone /dev/vg/src /dev/mapper/replica # the disk confirms it all
heal replica
blockdev --flushbufs /dev/mapper/replica
if cmp -s /dev/vg/src /dev/mapper/replica; then fail "the bed dropped nothing"; fi
exits 7 blockferry verify /dev/vg/src /dev/mapper/replica --state-dir "$STATE"
