# SIGTERM ends a run at a resumable point, and its snapshot goes with it.
# needs: dm-snapshot dm-delay binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
noise_at /dev/vg/src 0 40
interpose replica /dev/rvg/replica
slow_writes replica 2000
ferry_in_background clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE" --snapshot always
wait_until has_written /dev/mapper/replica 4
kill -TERM "$ferry_pid"
code=0
wait "$ferry_pid" || code=$?
cat /tmp/ferry.log
case $code in 130 | 143) ;; *) fail "SIGTERM ended it with $code" ;; esac
assert_no_snapshot_of_ours
heal replica
clone /dev/vg/src /dev/mapper/replica
assert_same_bytes /dev/vg/src /dev/mapper/replica
