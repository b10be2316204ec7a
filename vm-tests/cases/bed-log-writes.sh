# The log of writes: a replay to the end gives the same bytes, one to the middle only what was flushed.
# needs: dm-log-writes
# backend: any

log_writes logged "$(disk a)" "$(disk b)"
noise_at /dev/mapper/logged 0 4 # ends with a flush
mark_log logged half
noise 4096 | write_blocks /dev/mapper/logged 2000
dd if=/dev/mapper/logged of=/tmp/whole bs=1M count=8 iflag=direct status=none
dmsetup remove logged
half=$(python3 /payload/tools/replay_log.py "$(disk b)" cuts half half 1)
end=$(python3 /payload/tools/replay_log.py "$(disk b)" cuts dm-log-writes-end dm-log-writes-end 1)
survived=0
for seed in 1 2 3 4 5 6 7 8; do
  replay_log "$(disk b)" "$(disk a)" "$end" $seed
  cmp -n $((4 * MIB)) /tmp/whole "$(disk a)" || fail "what was flushed is gone (seed $seed)"
  if cmp -n $((8 * MIB)) /tmp/whole "$(disk a)"; then survived=$((survived + 1)); fi
done
if [ $survived = 0 ] || [ $survived = 8 ]; then fail "an unflushed write survived in $survived of 8 cuts"; fi
replay_log "$(disk b)" "$(disk a)" "$half" 1
