# A power cut keeps what was synced and loses what was only in the page cache.
# backend: any
# cuts: now
# disks: a:64M

before_cut() {
  mount_fs ext4 "$(disk a)" /tmp/m
  echo kept > /tmp/m/synced
  sync
  echo lost > /tmp/m/unsynced
  cut_power
}

after_cut() {
  mkdir -p /tmp/m
  mount "$(disk a)" /tmp/m
  assert_equal "$(cat /tmp/m/synced)" kept
  [ ! -s /tmp/m/unsynced ] || fail "the power was not really cut"
}
