# Two clones of one volume at the same time: neither takes the other's snapshot for a leftover.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_vg rvg b
make_lv vg/src 32M
make_lv rvg/one 32M
make_lv rvg/two 32M
noise_at /dev/vg/src 0 16
pause_at_snapshot vg clone /dev/vg/src /dev/rvg/one --state-dir "$STATE" --snapshot always
first=$(snapshots_of_ours)
clone /dev/vg/src /dev/rvg/two --snapshot always
assert_equal "$(snapshots_of_ours)" "$first" "the living run's snapshot"

# A second run of the same pair is told to wait.
ferry_exits 5 clone /dev/vg/src /dev/rvg/one --state-dir "$STATE" --snapshot always
resume_ferry
background_exits 0
assert_no_snapshot_of_ours
assert_same_bytes /dev/vg/src /dev/rvg/one
assert_same_bytes /dev/vg/src /dev/rvg/two
