# The disk with a volatile cache: after a cut flushed blocks are there, of the others only some.
# backend: qemu
# cuts: now
# disks: a:64M:volatile

before_cut() {
  noise_at "$(disk a)" 0 8
  for block in $(seq 4096 4159); do echo here | dd of="$(disk a)" bs=4096 count=1 seek="$block" conv=nocreat,notrunc,sync oflag=direct status=none; done
  cut_power
}

after_cut() {
  local there
  [ "$(dd if="$(disk a)" bs=1M count=8 iflag=direct status=none | tr -d '\0' | wc -c)" -gt $((8 * MIB - 100000)) ] || fail "flushed blocks are lost"
  there=$(dd if="$(disk a)" bs=4096 skip=4096 count=64 iflag=direct status=none | grep -ac here)
  if [ "$there" = 0 ] || [ "$there" = 64 ]; then fail "$there of 64 unflushed blocks survived"; fi
  ok "$there of 64 unflushed blocks survived"
}
