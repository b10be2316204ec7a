# A disk that stops answering is named together with what holds it up; the run waits, and completes when it answers again.
# needs: dm-snapshot dm-delay binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
noise_at /dev/vg/src 0 48
interpose replica /dev/rvg/replica
slow_writes replica 2000
ferry_in_background clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE" --snapshot always
wait_until has_written /dev/mapper/replica 4
dmsetup suspend --noflush replica
said_so() { grep -q 'has not answered' /tmp/ferry.log; }
wait_until said_so
heal replica
background_exits 0
assert_said '/dev/mapper/replica has not answered for 15 s [(]requests on their way: [1-9][0-9]*[)]: replica is suspended, and `dmsetup resume replica`' \
  '/dev/mapper/replica answers again'
assert_no_snapshot_of_ours
assert_same_bytes /dev/vg/src /dev/mapper/replica
