# The faults of the library do what they say: failing, lying and slow writes, one flipped bit.
# needs: dm-flakey dm-delay
# backend: any

make_vg vg a
make_lv vg/lv 32M
interpose below /dev/vg/lv
top=/dev/mapper/below
noise_at $top 0 32
assert_same_bytes /dev/vg/lv $top

fail_writes_after below 8
noise 4096 | write_blocks $top 2047
if noise 4096 | write_blocks $top 2048; then fail "a write beyond the good part succeeded"; fi
dd if=$top of=/dev/null bs=1M iflag=direct status=none

heal below
before=$(bytes_of $top)
drop_writes below
noise_at $top 0 4 # acknowledged, flush included
heal below
blockdev --flushbufs $top
assert_equal "$(bytes_of $top)" "$before" "a dropped write arrived"

slow_writes below 100
noise_at $top 0 1
heal below
assert_writes $top $((2 * MIB)) $((2 * MIB)) noise_at $top 0 2
