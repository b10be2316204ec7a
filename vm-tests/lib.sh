# The verbs of the cases. Sourced in the guest before each case; see docs/TESTING.md.
#
# A case is a short story: it makes volumes, runs blockferry, breaks something, and asserts what the
# replica holds. Faults start on an event (a byte count, a snapshot that appeared), never on a clock:
# speeds differ by 50 between the back-ends. Nothing has to be cleaned up: `clean_up` runs after
# each case and removes whatever it finds.

export LVM_SUPPRESS_FD_WARNINGS=1
STATE=/tmp/state # where the cases' blockferry keeps what it remembers
MIB=1048576
exec {pause}<> <(:) # reading from here with a time limit is a pause that forks nothing

# ---------------------------------------------------------------- what a case says

ok() { echo "ok: $*"; }

fail() {
  local frame
  for frame in "${!BASH_SOURCE[@]}"; do # where in the story that was
    case ${BASH_SOURCE[frame]} in /payload/cases/*) break ;; esac
  done
  echo "FAILED: $* (${BASH_SOURCE[frame]##*/}:${BASH_LINENO[frame - 1]})" >&2
  exit 1
}

skip() {
  echo "SKIP: $*"
  exit 77
}

# Kernel modules, `tool:NAME` or `binary`. What is not there makes the case a skip.
need() {
  local what
  for what; do
    case $what in
      binary) [ -x /payload/bin/blockferry ] || skip "no blockferry binary was given (BLOCKFERRY=… or cargo build --release)" ;;
      tool:*) command -v "${what#tool:}" > /dev/null || skip "the guest has no ${what#tool:}" ;;
      *) modprobe -q "$what" || skip "the guest's kernel has no $what" ;;
    esac
  done
}

# What everything that runs waits for: said of a case whose time is nearly up, of which a bare "not
# finished" tells nothing. Threads of the kernel, which have no command line, count when they wait
# for a disk. Few forks, since each takes long where this is needed.
tell_what_waits() {
  local process task words key state
  for process in /proc/[0-9]*; do
    { [ "$process" != /proc/1 ] && [ "$process" != /proc/$BASHPID ]; } || continue
    words=() state=
    mapfile -d '' -t words < "$process/cmdline"
    while read -r key state; do [ "$key" != State: ] || break; done < "$process/status"
    { [ ${#words[@]} -gt 0 ] || [ "${state:0:1}" = D ]; } || continue
    echo "${process#/proc/} $state: ${words[*]}"
    for task in "$process"/task/*; do
      echo "  ${task##*/} $(< "$task/comm") in $(< "$task/wchan"), system call $(< "$task/syscall")"
      echo "$(< "$task/stack")"
    done
  done
  # Where requests are that a disk has not answered: read and write, then its queues' own words.
  mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
  grep -v ' 0 *0$' /sys/block/*/inflight
  grep . /sys/kernel/debug/block/vd[c-z]/hctx*/{state,dispatch,busy,tags,sched_tags}
  grep . /tmp/said /tmp/ferry.log
  return 0
} 2> /dev/null

# ---------------------------------------------------------------- disks and volumes

[ -e /etc/lvm/lvmlocal.stock ] || cp /etc/lvm/lvmlocal.conf /etc/lvm/lvmlocal.stock

disk() { readlink -f "/dev/vm/$1"; }

# A node that is missing must not become a regular file: hence nocreat, everywhere.
write_blocks() { dd of="$1" bs=4096 seek="$2" conv=nocreat,notrunc oflag=direct status=none; } # DEVICE BLOCK < data

noise() { head -c "$1" /dev/urandom; } # BYTES

scatter_noise() { python3 /payload/tools/scatter.py "$@"; } # DEVICE COUNT STRIDE: so many random blocks of 4096, so many blocks apart

noise_at() { # DEVICE MIB-OFFSET MIB-COUNT: random bytes straight onto the device
  noise $(($3 * MIB)) | dd of="$1" bs=1M seek="$2" conv=nocreat,notrunc,fdatasync oflag=direct iflag=fullblock status=none
}

make_vg() { # VG DISK-OR-DEVICE…
  local vg=$1 devices=() name
  shift
  for name; do
    case $name in /*) devices+=("$name") ;; *) devices+=("$(disk "$name")") ;; esac
  done
  pvcreate -qqf "${devices[@]}"
  vgcreate -qq "$vg" "${devices[@]}"
}

make_lv() { lvcreate -qq -y -Wy -Zy -n "${1#*/}" -L "$2" "${1%%/*}"; } # VG/LV SIZE

make_thin_pool() { # VG/POOL SIZE
  modprobe -q dm-thin-pool
  lvcreate -qq -y -Zn --type thin-pool --poolmetadatasize 4M --chunksize 64k -L "$2" -n "${1#*/}" "${1%%/*}"
}

make_thin_lv() { lvcreate -qq -y -V "$3" -T "${1%%/*}/${2}" -n "${1#*/}" 2> /dev/null; } # VG/LV POOL SIZE

# Takes all of the group but so much.
leave_free() { # VG MIB
  local free
  free=$(vgs --noheadings --units m --nosuffix -o vg_free "$1")
  free=${free%.*}
  lvcreate -qq -y -Wn -Zn -n hog -L $((free - $2))M "$1"
}

lv_field() { lvs --noheadings --units b --nosuffix -o "$2" "$1" | tr -d ' '; } # VG/LV FIELD

# Snapshots that carry our tag, one vg/lv a line.
snapshots_of_ours() { lvs --noheadings -a -S 'lv_tags=blockferry' -o lv_full_name | tr -d ' '; }

assert_no_snapshot_of_ours() {
  local left
  left=$(snapshots_of_ours)
  [ -z "$left" ] || fail "left behind: $left"
}

# ---------------------------------------------------------------- file systems

mount_fs() { # TYPE DEVICE FOLDER: a new file system, mounted
  case $1 in
    ext4) mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$2" ;;
    xfs) mkfs.xfs -q -f "$2" ;;
    btrfs) mkfs.btrfs -q -f "$2" ;;
  esac
  mkdir -p "$3"
  mount "$2" "$3"
}

# Writes files until stopped, so that the snapshot is taken in the middle of something.
keep_busy() { # FOLDER
  mkdir -p "$1/busy"
  (
    number=0
    while :; do
      noise 200000 > "$1/busy/f$((number % 20))"
      rm -f "$1/busy/f$(((number + 7) % 20))"
      number=$((number + 1))
    done
  ) > /dev/null 2>&1 &
  busy_pid=$!
  wait_until test -e "$1/busy/f3"
}

stop_busy() {
  kill -9 "$busy_pid"
  wait "$busy_pid" 2> /dev/null || true
}

sums_of() { (cd "$1" && find . -path ./busy -prune -o -path ./lost+found -prune -o -type f -print0 | sort -z | xargs -0 sha256sum); } # FOLDER

# Checks a copy of the device, so that the check itself changes nothing. A snapshot of a mounted
# file system may need its journal replayed; after that not one complaint is allowed.
assert_fs_clean() { # TYPE DEVICE
  local copy=/tmp/fsck.img
  blockdev --flushbufs "$2"
  dd if="$2" of=$copy bs=1M conv=sparse status=none
  case $1 in
    ext4)
      e2fsck -fp $copy || [ $? -le 1 ] || fail "e2fsck -fp on a copy of $2"
      e2fsck -fn $copy || fail "e2fsck still complains about $2"
      ;;
    xfs)
      local loop
      loop=$(losetup -f --show $copy)
      mkdir -p /tmp/xfs-log
      mount -o nouuid "$loop" /tmp/xfs-log # replays the log, as a real recovery would
      umount /tmp/xfs-log
      losetup -d "$loop"
      xfs_repair -n $copy || fail "xfs_repair complains about $2"
      ;;
    btrfs) btrfs check -q $copy || fail "btrfs check complains about $2" ;;
  esac
  rm -f $copy
}

# ---------------------------------------------------------------- blockferry

# Runs a command and asserts its exit code; its words are then in $said.
exits() { # CODE COMMAND…
  local wanted=$1 code=0
  shift
  echo "\$ $*"
  "$@" > /tmp/said 2>&1 || code=$? # in a file, so that a case that is not finished can show it
  said=$(< /tmp/said)
  echo "$said"
  [ "$code" = "$wanted" ] || fail "ended with $code, not $wanted: $*"
}

ferry_exits() { exits "$1" blockferry "${@:2}"; } # CODE ARGUMENT…

clone() { ferry_exits 0 clone "$@" --state-dir "$STATE"; }

ferry_in_background() { # ARGUMENT…
  echo "\$ blockferry $* &"
  blockferry "$@" > /tmp/ferry.log 2>&1 &
  ferry_pid=$!
}

background_exits() { # CODE
  local code=0
  wait "$ferry_pid" || code=$?
  said=$(< /tmp/ferry.log)
  echo "$said"
  [ "$code" = "$1" ] || fail "blockferry in the background ended with $code, not $1"
}

# Holds blockferry in mid-air, so that a fault can be prepared at leisure.
pause_ferry() { kill -STOP "$ferry_pid"; }
resume_ferry() { kill -CONT "$ferry_pid"; }
kill_ferry() {
  kill -9 "$ferry_pid"
  wait "$ferry_pid" 2> /dev/null || true
}

# Starts blockferry and stops it in the moment in which its snapshot is there.
pause_at_snapshot() { # VG ARGUMENT…
  local vg=$1
  shift
  ferry_in_background "$@"
  wait_until snapshot_node "$vg"
  pause_ferry
  wait_until snapshot_appeared # lvcreate is a process of its own and goes on
}

# Runs a command that the kernel does not let use io_uring, as sysctl or a container's seccomp would.
without_io_uring() {
  local sysctl=/proc/sys/kernel/io_uring_disabled
  if [ -e $sysctl ]; then
    echo 2 > $sysctl
    "$@"
    echo 0 > $sysctl
  else
    python3 /payload/tools/forbid_io_uring.py "$@" # kernels before 6.6 have no such sysctl
  fi
}

# Runs a command on a kernel without device-mapper, as far as it can see.
without_device_mapper() { # COMMAND…
  grep -v device-mapper /proc/misc > /tmp/misc
  unshare -m bash -c 'mount --bind /tmp/misc /proc/misc && mount --bind /dev/null /dev/mapper/control && exec "$0" "$@"' "$@"
}

# Runs a command where a file cannot be found or used. The rest of the guest keeps it.
without_file() { # FILE COMMAND…
  unshare -m bash -c 'mount --bind /dev/null "$0" && exec "$@"' "$@"
}

assert_said() { # PATTERN…: extended, without regard to case
  local pattern
  for pattern; do
    grep -Eqi -- "$pattern" <<< "$said" || fail "nothing was said about '$pattern'"
  done
}

# ---------------------------------------------------------------- events

PATIENCE=480 # seconds for what takes a few: only what never comes is to be noticed
wait_until() { # COMMAND…: fails when the command does not succeed in any time that makes sense
  local now end
  read -r now _ < /proc/uptime
  end=$((${now%.*} + PATIENCE))
  until "$@"; do
    read -r now _ < /proc/uptime
    if [ "${now%.*}" -ge $end ]; then fail "waited $PATIENCE s for: $*"; fi
    read -rt 0.02 -u "$pause" || true
  done
}

# Bytes written to a device since it was made: the judge of amounts. Exact for a disk; device-mapper also counts
# what io_uring submits a second time because it would have had to wait, so there it serves for events.
written_bytes() { # DEVICE
  local fields
  read -ra fields < "/sys/dev/block/$(stat -Lc %Hr:%Lr "$1")/stat"
  echo $((fields[6] * 512))
}

snapshot_node() { compgen -G "/dev/$1/*.ferry.*" > /dev/null; } # VG: without a fork, so that not much happens in between
has_written() { [ "$(written_bytes "$1")" -ge $(($2 * MIB)) ]; } # DEVICE MIB
journal_holds() { [ -n "$(find "${2:-$STATE}/replicas" -name journal -size +"$1"M)" ]; } # MIB [STATE-DIR]
snapshot_appeared() { [ -n "$(snapshots_of_ours)" ]; }

# Asserts how much a command wrote to a device.
assert_writes() { # DEVICE MIN-BYTES MAX-BYTES COMMAND…
  local device=$1 low=$2 high=$3 before wrote
  shift 3
  before=$(written_bytes "$device")
  "$@"
  wrote=$(($(written_bytes "$device") - before))
  echo "wrote $wrote bytes to $device, expected $low to $high"
  if [ $wrote -lt "$low" ] || [ $wrote -gt "$high" ]; then fail "the wrong amount was written to $device"; fi
}

# ---------------------------------------------------------------- faults below the replica

# A device /dev/mapper/NAME that passes everything through, until told otherwise.
interpose() { # NAME DEVICE
  modprobe -qa dm-flakey dm-delay
  dmsetup create "$1" --table "0 $(blockdev --getsz "$2") linear $2 0"
  echo "$2" > "/tmp/below-$1"
}

switch_table() { # NAME < table
  dmsetup suspend --noflush "$1"
  dmsetup load "$1"
  dmsetup resume "$1"
}

below() { cat "/tmp/below-$1"; }

heal() { echo "0 $(blockdev --getsz "$(below "$1")") linear $(below "$1") 0" | switch_table "$1"; } # NAME

# Writes at or beyond this offset fail with EIO, and so does every flush; reads go on.
fail_writes_after() { # NAME MIB
  local device size from
  device=$(below "$1") size=$(blockdev --getsz "$(below "$1")") from=$(($2 * 2048))
  { 
    if [ $from -gt 0 ]; then echo "0 $from linear $device 0"; fi
    echo "$from $((size - from)) flakey $device $from 0 60 1 error_writes"
  } | switch_table "$1"
}

# The disk lies: every write is acknowledged and thrown away.
drop_writes() { # NAME
  echo "0 $(blockdev --getsz "$(below "$1")") flakey $(below "$1") 0 0 60 1 drop_writes" | switch_table "$1"
}

# Each write takes this long, so that there is time for something to happen in the middle.
slow_writes() { # NAME MILLISECONDS
  local device
  device=$(below "$1")
  echo "0 $(blockdev --getsz "$device") delay $device 0 0 $device 0 $2" | switch_table "$1"
}

# Every write to NAME from here on is also written to the log. The kernel logs writes when the flush
# after them comes, or when NAME is removed: then the log ends with the mark dm-log-writes-end.
log_writes() { # NAME DEVICE LOG-DEVICE
  modprobe -q dm-log-writes
  dmsetup create "$1" --table "0 $(blockdev --getsz "$2") log-writes $2 $3"
  hide_from_lvm "$2"
}

mark_log() { dmsetup message "$1" 0 mark "$2"; } # NAME MARK

# What is on the disk after a power cut at this entry of the log: all that was flushed before it, and
# of the rest a part drawn with the seed.
replay_log() { # LOG-DEVICE DEVICE ENTRY SEED
  blkdiscard -f "$2"
  python3 /payload/tools/replay_log.py "$1" replay "$2" --entries "$3" --seed "$4"
}

# lvm2 must not find the same volume group twice, below the log and above it. A device is hidden when
# each of its names is.
hide_from_lvm() { # DEVICE…
  local device name rejects=
  for device; do
    for name in "$device" /dev/vm/*; do
      if [ "$(readlink -f "$name")" = "$device" ]; then rejects+="\"r|^$name\$|\","; fi
    done
  done
  { cat /etc/lvm/lvmlocal.stock && echo "devices { filter=[$rejects \"a|.*|\"] }"; } > /etc/lvm/lvmlocal.conf
}
show_to_lvm() { cp /etc/lvm/lvmlocal.stock /etc/lvm/lvmlocal.conf; }

flip_bit() { # DEVICE OFFSET
  local block=$(($2 / 4096)) at=$(($2 % 4096)) byte
  dd if="$1" of=/tmp/flip bs=4096 count=1 skip=$block iflag=direct status=none
  byte=$(xxd -p -s $at -l 1 /tmp/flip)
  printf "\\x$(printf %02x $((0x$byte ^ 1)))" | dd of=/tmp/flip bs=1 seek=$at conv=notrunc status=none
  write_blocks "$1" $block < /tmp/flip
}

# Ends the guest in this instant, as a mains failure would. The story goes on in after_cut.
cut_power() {
  sed 's/^/  | /' "$case_log" >&3 # the log itself is lost with the guest
  echo "@@ cut $case_title" >&3
  while :; do read -rt 5 -u "$pause" || true; done
}

# ---------------------------------------------------------------- what must hold

# Byte for byte, read from the media and not from a cache.
assert_same_bytes() { # DEVICE DEVICE [BYTES]
  local bytes=${3:-$(blockdev --getsize64 "$1")}
  sync "$1" "$2"
  blockdev --flushbufs "$1"
  blockdev --flushbufs "$2"
  [ "$bytes" -le "$(blockdev --getsize64 "$2")" ] || fail "bytes differ: $2 is shorter than $1"
  cmp -n "$bytes" "$1" "$2" || fail "bytes differ between $1 and $2"
  ok "$bytes bytes of $1 and $2 are the same"
}

bytes_of() { sha256sum "$1" | cut -d' ' -f1; } # DEVICE, as one word to compare later

assert_equal() { # VALUE VALUE [WHAT]
  [ "$1" = "$2" ] || fail "${3:-values differ}: '$1' is not '$2'"
}

# ---------------------------------------------------------------- two hosts in one guest

# Namespaces `source` (10.9.0.1) and `replica` (10.9.0.2) with a cable between them.
make_two_hosts() {
  local host
  modprobe -qa veth sch_netem sch_tbf
  for host in source replica; do
    ip netns add $host
    ip -n $host link set lo up
  done
  ip link add cable netns source type veth peer name cable netns replica
  ip -n source addr add 10.9.0.1/24 dev cable
  ip -n replica addr add 10.9.0.2/24 dev cable
  ip -n source link set cable up
  ip -n replica link set cable up
}

# blockferry on the host `source`, with `replica:PATH` reached over the cable. What the replica's host
# remembers is in $FAR_STATE.
FAR_STATE=/tmp/far-state
serve_remote_shell() {
  on_replica python3 /payload/tools/remote_shell.py serve 9000 > /tmp/remote-shell.log 2>&1 &
  wait_until on_replica sh -c 'ss -ltn | grep -q 9000'
}
ferry_from_source() { # ARGUMENT…
  on_source blockferry "$@" --state-dir "$STATE" --rsh 'python3 /payload/tools/remote_shell.py 9000' \
    --remote-program "blockferry --state-dir $FAR_STATE"
}
receiver_is_gone() { ! pgrep -f 'receiver --stdio' > /dev/null; }
arrived_bytes() { on_replica cat /sys/class/net/cable/statistics/rx_bytes; } # over the cable, since it was plugged in

on_source() { ip netns exec source "$@"; }
on_replica() { ip netns exec replica "$@"; }
cut_link() { on_source tc qdisc replace dev cable root netem loss 100%; } # silent: nobody is told
heal_link() { on_source tc qdisc del dev cable root; }
unplug_link() { ip -n source link set cable down; }
slow_link() { on_source tc qdisc replace dev cable root tbf rate "$1" burst 64kb latency 50ms; } # 80mbit

# ---------------------------------------------------------------- between the cases

# Removes everything a case may have left, so that many cases share one boot.
clean_up() {
  local name point device vg pass
  busybox killall5 -9
  for name in $(ip netns list | cut -d' ' -f1); do ip netns del "$name"; done
  # A device that hangs keeps its mount busy: wake everything first.
  for name in $(dmsetup info -c --noheadings -o name,suspended | sed -n 's/:Suspended$//p'); do dmsetup resume "$name"; done
  while point=$(awk '$1 ~ "^/dev/(mapper/|vg|dm-|loop|nbd|vm/|vd[c-z]|ubd[b-z])" || $2 ~ "^/tmp/" { print $2 }' /proc/mounts | tail -n 1); [ -n "$point" ]; do
    umount -l "$point" || break
  done
  for pass in 1 2 3; do
    for name in $(dmsetup info -c --noheadings -o name,uuid | grep -v ':LVM-' | cut -d: -f1); do dmsetup remove -f "$name"; done
  done
  mount --make-private /tmp
  losetup -D
  for vg in $(vgs --noheadings -o name); do
    vgremove -qqfy "$vg"
    rm -rf "/dev/$vg"
  done
  if [ -n "$(dmsetup ls | grep -v '^No devices')" ]; then dmsetup remove_all --force; fi
  losetup -D
  for device in /dev/vm/*; do
    case ${device##*/} in vmroot | payload) ;; *) blkdiscard -f "$(readlink -f "$device")" || wipefs -qaf "$(readlink -f "$device")" ;; esac
  done
  rm -rf /tmp/* /dev/vg* /dev/rvg
  show_to_lvm
  return 0
} 2> /dev/null
