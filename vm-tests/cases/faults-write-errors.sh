# The replica fails writes from some offset on: exit 10 naming it; when it is well again the next run completes.
# needs: dm-snapshot dm-flakey binary
# backend: any
# reference: yes

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
noise_at /dev/vg/src 0 48
interpose replica /dev/rvg/replica

fail_writes_after replica 16
ferry_exits 10 clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE" --snapshot always
assert_said '/dev/mapper/replica' 'input/output error'
assert_no_snapshot_of_ours
heal replica
clone /dev/vg/src /dev/mapper/replica
assert_same_bytes /dev/vg/src /dev/mapper/replica

# The same with an increment: it is sealed in the journal when the device fails, and finished later.
noise_at /dev/vg/src 4 24
fail_writes_after replica 16
ferry_exits 10 clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE"
heal replica
clone /dev/vg/src /dev/mapper/replica
assert_same_bytes /dev/vg/src /dev/mapper/replica
