# A job of two mounted LVs of one VG: both snapshots lie between the hooks, what the hook holds still is whole in both replicas.
# needs: dm-snapshot binary
# backend: any
# reference: yes

make_vg vg a
make_vg rvg b
for name in data log; do
  make_lv vg/$name 48M
  make_lv rvg/$name 48M
  mount_fs ext4 /dev/vg/$name /tmp/$name
done

# Writes the same number first to the log and then to the data, over and over, unless it is held still.
cat > /tmp/writer << 'END'
number=0
while :; do
  while [ -e /tmp/hold ]; do touch /tmp/held; sleep 0.01; done
  rm -f /tmp/held
  number=$((number + 1))
  echo $number > /tmp/log/number
  echo $number > /tmp/data/number
done
END
cat > /tmp/hook << 'END'
#!/bin/sh
echo "$1 $BLOCKFERRY_JOB $(lvs --noheadings -S lv_tags=blockferry -o lv_name | wc -l) $(echo $BLOCKFERRY_SNAPSHOTS | wc -w)" >> /tmp/calls
if [ "$1" = pre ]; then
  rm -f /tmp/held # of a hold before
  touch /tmp/hold
  while [ ! -e /tmp/held ] && [ ! -e /tmp/gone ]; do sleep 0.01; done
else
  rm -f /tmp/hold
fi
END
chmod +x /tmp/hook
bash /tmp/writer &
writer=$!
wait_until test -e /tmp/data/number

cat > /tmp/agent.toml << END
state_dir = "$STATE"
[[receiver]]
name = "here"
local = true
[[job]]
name = "db"
receivers = ["here"]
volumes = [{ source = "vg/data", replica = "/dev/rvg/data" }, { source = "/dev/vg/log", replica = "/dev/rvg/log" }]
[[job.hook]]
run = ["/tmp/hook"]
timeout = "300s"
END
blockferry plan db --brief --config /tmp/agent.toml
assert_no_snapshot_of_ours
for generation in 1 2; do
  blockferry run db --config /tmp/agent.toml
  assert_no_snapshot_of_ours
  # No snapshot before, two and no more when the last of them is there.
  assert_equal "$(tail -n 2 /tmp/calls | tr '\n' ,)" "pre db 0 0,post db 2 2," "what the hook saw in run $generation"
  for name in data log; do
    lvcreate -qq -y -s -n look-$name -L 16M rvg/$name
    mkdir -p /tmp/look-$name
    mount /dev/rvg/look-$name /tmp/look-$name
  done
  assert_equal "$(cat /tmp/look-data/number)" "$(cat /tmp/look-log/number)" "the two replicas are of two moments"
  for name in data log; do
    umount /tmp/look-$name
    lvremove -qqfy rvg/look-$name
  done
done
touch /tmp/gone
kill -9 $writer
wait $writer 2> /dev/null || true
for name in data log; do umount /tmp/$name; done
blockferry run db --config /tmp/agent.toml
for name in data log; do assert_same_bytes /dev/vg/$name /dev/rvg/$name; done

# Nothing was written since: no snapshot, no hook, no read. The first run after the unmount may have had to read once more.
blockferry run db --config /tmp/agent.toml
calls=$(wc -l < /tmp/calls)
assert_writes /dev/rvg/data 0 0 blockferry run db --config /tmp/agent.toml
assert_equal "$(wc -l < /tmp/calls)" "$calls" "a hook was called for idle volumes"

# A snapshot that is merged back changes the volume without a write to it: that is not idle.
lvcreate -qq -y -s -n old -L 16M vg/data
noise_at /dev/vg/data 8 1
blockferry run db --config /tmp/agent.toml
assert_same_bytes /dev/vg/data /dev/rvg/data
lvconvert -qq -y --merge vg/old
wait_until bash -c '! lvs vg/old 2> /dev/null'
blockferry run db --config /tmp/agent.toml
assert_same_bytes /dev/vg/data /dev/rvg/data
assert_no_snapshot_of_ours
