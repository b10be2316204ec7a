# Power cuts at the replica, in the first copy, while the journal fills, while it is applied, and after the commit.
# needs: dm-delay dm-flakey binary
# backend: any
# cuts: first-copy journal apply committed
# disks: a:160M r:160M

# vg (source and the first generation's copy), rvg (replica and state)
make_pair() {
  make_vg vg a
  make_lv vg/src 48M
  make_lv vg/first 48M
  make_vg rvg r
  make_lv rvg/replica 48M
  make_lv rvg/state 64M
  interpose state /dev/rvg/state
  mount_fs ext4 /dev/mapper/state "$STATE"
  noise_at /dev/vg/src 0 32
  dd if=/dev/vg/src of=/dev/vg/first bs=1M oflag=direct conv=nocreat,notrunc,fsync status=none
  interpose replica /dev/rvg/replica
  if [ "$1" != first-copy ]; then
    clone /dev/vg/src /dev/mapper/replica
    noise_at /dev/vg/src 4 16
  fi
  sync
  # So that no moment is missed: the end of the commit, and with the journal the seal. After the commit a write that nobody waited
  # for is still on its way.
  if [ "$1" = committed ]; then slow_writes replica 100; else slow_writes replica 1000; fi
  if [ "$1" = journal ]; then slow_writes state 1500; fi
}

before_cut() {
  make_pair "$1"
  local before
  before=$(written_bytes /dev/mapper/replica)
  ferry_in_background clone /dev/vg/src /dev/mapper/replica --state-dir "$STATE"
  case $1 in
    first-copy) wait_until has_written /dev/mapper/replica 12 ;;
    journal) wait_until journal_holds 4 ;;
    apply) wait_until has_written /dev/mapper/replica $((before / MIB + 4)) ;;
    committed) background_exits 0 ;;
  esac
  if [ "$1" != committed ]; then pause_ferry; fi
  cut_power
}

after_cut() {
  modprobe -qa dm-flakey dm-delay
  vgchange -qq -ay
  mkdir -p "$STATE"
  mount /dev/rvg/state "$STATE"
  interpose replica /dev/rvg/replica
  if [ "$1" = committed ]; then assert_same_bytes /dev/vg/src /dev/mapper/replica; fi
  if [ "$1" = journal ]; then assert_same_bytes /dev/vg/first /dev/mapper/replica; fi # not sealed: still the first
  clone /dev/vg/src /dev/mapper/replica
  assert_same_bytes /dev/vg/src /dev/mapper/replica
}
