# An lvm2 command that does not end is named while it is waited for; when its disk answers again the run completes.
# needs: dm-snapshot binary
# backend: any

interpose pv "$(disk a)"
hide_from_lvm "$(disk a)"
make_vg vg /dev/mapper/pv
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
noise_at /dev/vg/src 0 4
dmsetup suspend --noflush pv
ferry_in_background clone /dev/vg/src /dev/rvg/replica --state-dir "$STATE" --snapshot always
said_so() { grep -q 'has not ended for 15 s' /tmp/ferry.log; }
wait_until said_so
dmsetup resume pv
background_exits 0
assert_said '`[a-z/]*lvm [a-z]+ .*` has not ended for 15 s: `dmsetup info -c` shows suspended devices'
assert_no_snapshot_of_ours
assert_same_bytes /dev/vg/src /dev/rvg/replica
