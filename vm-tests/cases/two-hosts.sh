# Two hosts: a link that is cut in mid-run ends it with exit 4, the replica keeps its generation, the rerun sends the rest.
# needs: dm-snapshot veth sch_netem sch_tbf tool:python3 binary
# backend: any

make_two_hosts
serve_remote_shell
make_vg vg a
make_vg rvg b
make_lv vg/src 48M
make_lv rvg/replica 48M
mount_fs ext4 /dev/vg/src /tmp/m
noise 8000000 > /tmp/m/old
exits 0 ferry_from_source clone /dev/vg/src replica:/dev/rvg/replica
[ "$(arrived_bytes)" -gt 8000000 ] || fail "the stream did not go over the cable"
assert_no_snapshot_of_ours
assert_fs_clean ext4 /dev/rvg/replica
generation=$(bytes_of /dev/rvg/replica)

noise 24000000 > /tmp/m/new
sync
slow_link 8mbit
ferry_from_source clone /dev/vg/src replica:/dev/rvg/replica > /tmp/ferry.log 2>&1 &
ferry_pid=$!
wait_until journal_holds 10 "$FAR_STATE"
cut_link
background_exits 4
assert_said replica
assert_no_snapshot_of_ours
wait_until receiver_is_gone
assert_equal "$(bytes_of /dev/rvg/replica)" "$generation" "the replica changed"

heal_link
umount /tmp/m
before=$(arrived_bytes)
exits 0 ferry_from_source clone /dev/vg/src replica:/dev/rvg/replica
again=$(($(arrived_bytes) - before))
echo "the rerun sent $again bytes"
if [ $again -gt 15000000 ] || [ $again -lt 100000 ]; then fail "not the rest"; fi # of 24 MB, 10 MiB had arrived
assert_same_bytes /dev/vg/src /dev/rvg/replica
exits 0 ferry_from_source verify /dev/vg/src replica:/dev/rvg/replica
