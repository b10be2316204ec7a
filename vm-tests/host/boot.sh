# Boots one guest and follows its output until it ends, takes too long or has its power cut.
# Sourced by ../run.

# Real KVM only: a nested, software-only one does not boot a stock kernel.
accelerator() {
  if [ -w /dev/kvm ] && { [ -d /sys/module/kvm_intel ] || [ -d /sys/module/kvm_amd ]; }; then echo kvm; else echo tcg; fi
}

# boot BACKEND FOLDER DISK…   with DISK as NAME=FILE or NAME=nbd:SOCKET (qemu only)
#
# FOLDER/payload is the guest's /payload; its /results comes to FOLDER/results. Each finished line of
# output is given to `on_line`, which may set `end_guest=cut`, and says with `allow` how long the guest may
# take from there: how long it runs in all depends on the machine and on how many cases there are, and has
# no limit. Sets `ended`: done, died, limit, cut or noboot.
boot() {
  local backend=$1 folder=$2
  shift 2
  local attempt command
  rm -rf "$folder/results"
  mkdir -p "$folder/results"
  "${backend}_command" "$folder" "$@"
  for attempt in 1 2 3; do # of a guest that did not come up nothing has run yet
    : > "$folder/out.log"
    : > "$folder/kernel.log"
    rm -f "$folder/result" "$folder/files.tar"
    follow "$backend" "$folder"
    [ "$ended" = noboot ] || break
    say "$backend: boot $attempt failed: $(tail -n 1 "$folder/vmm.log" "$folder/kernel.log" 2> /dev/null | tr '\n' ' ')"
  done
  if [ -s "$folder/files.tar" ]; then tar -C "$folder/results" -xf "$folder/files.tar"; fi
  if [ "$ended" = done ] && ! cat "$folder/result" "$folder/results/.rc" 2> /dev/null | grep -q '^rc='; then ended=died; fi
}

qemu_command() { # FOLDER DISK…
  local folder=$1 disk file number=0
  shift
  tar -C "$folder/payload" -cf "$folder/payload.tar" .
  truncate -s %1M "$folder/payload.tar"
  # qemu64 is faster under TCG than processors with more instructions, which it has to emulate; with
  # two processors one boot in sixty hangs. Where no second one can ever come, QEMU before 8.1 leaves
  # memory barriers out (its commit c914d46d puts them back), and a disk's doorbell or interrupt can be
  # lost. That is the best explanation for disks that now and then stopped answering for good. Hence
  # maxcpus; and without event_idx the next request makes up for a lost one.
  if [ "$(accelerator)" = kvm ]; then command=(-accel kvm -cpu host -smp 2); else command=(-accel tcg -cpu qemu64 -smp 1,maxcpus=2); fi
  command=("$CACHE/qemu" -M q35 "${command[@]}" -m 1024 -nodefaults -no-user-config -display none -no-reboot
    -kernel "$CACHE/vmlinuz" -initrd "$CACHE/initrd.cpio"
    -append "console=ttyS0 panic=-1 oops=panic quiet loglevel=5 random.trust_cpu=on mitigations=off"
    -chardev "file,id=ser,path=$folder/kernel.log" -serial chardev:ser
    -drive "if=none,id=root,file=$CACHE/root.img,format=raw,readonly=on,cache=unsafe,file.locking=off" -device virtio-blk-pci,drive=root,serial=vmroot,event_idx=off
    -drive "if=none,id=payload,file=$folder/payload.tar,format=raw,readonly=on,cache=unsafe" -device virtio-blk-pci,drive=payload,serial=payload
    -device virtio-rng-pci -device virtio-serial-pci
    -chardev "file,id=out,path=$folder/out.log" -device virtserialport,chardev=out,name=out
    -chardev "file,id=result,path=$folder/result" -device virtserialport,chardev=result,name=result
    -chardev "file,id=files,path=$folder/files.tar" -device virtserialport,chardev=files,name=files)
  for disk; do
    file=${disk#*=}
    case $file in
      nbd:*) file=file.driver=nbd,file.server.type=unix,file.server.path=${file#nbd:} ;;
      *) file=file=$file ;;
    esac
    command+=(-drive "if=none,id=d$number,$file,format=raw,cache=writeback,discard=unmap"
      -device "virtio-blk-pci,drive=d$number,serial=${disk%%=*},write-cache=on,event_idx=off")
    number=$((number + 1))
  done
}

uml_command() { # FOLDER DISK…
  local folder=$1 disk names=vmroot number=1
  shift
  command=(env TMPDIR=/dev/shm HOME="$folder")
  if [ -e "$CACHE/xstate.so" ]; then command+=(LD_PRELOAD="$CACHE/xstate.so"); fi
  # r: read-only, s: shared; without s UML locks the image, and QEMU would find it locked.
  command+=("$CACHE/linux.uml" mem=1024M ubd0rs="$CACHE/root.img" root=/dev/ubda rootfstype=ext4 ro init=/sbin/vminit-uml
    con=null con0=null,fd:2 console=tty0 ssl=null ssl0=null,fd:1 vmout=ttyS0 quiet loglevel=5 panic=-1 umid="ferry$$")
  for disk; do
    command+=("ubd$number=${disk#*=}")
    names+=,${disk%%=*}
    number=$((number + 1))
  done
  command+=(vmdisks="$names" vmpayload="$folder/payload" vmresults="$folder/results")
}

allow() { deadline=$((SECONDS + $1)); } # SECONDS

follow() { # BACKEND FOLDER
  local backend=$1 folder=$2 up= line piece= lines deadline
  end_guest= ended=
  allow "$BOOT_LIMIT"
  # A session of its own: UML has helpers, and all of them have to go (guest_pid is the group).
  if [ "$backend" = qemu ]; then
    nice -n 5 setsid "${command[@]}" < /dev/null > "$folder/vmm.log" 2>&1 &
  else
    nice -n 5 setsid "${command[@]}" < /dev/null > "$folder/out.log" 2> "$folder/kernel.log" &
  fi
  guest_pid=$!
  exec {lines}< "$folder/out.log"
  while :; do
    local alive=1
    kill -0 $guest_pid 2> /dev/null || alive=
    while IFS= read -r line <&$lines || { piece+=$line; false; }; do
      on_line "$piece${line%$'\r'}"
      piece=
    done
    if [ -z "$alive" ]; then break; fi
    if [ -z "$up" ] && grep -aqs 'VMINIT: up' "$folder/kernel.log"; then up=1; fi
    if [ -n "$end_guest" ]; then ended=$end_guest; break; fi
    if [ "$SECONDS" -ge "$deadline" ]; then
      if [ -n "$up" ]; then ended=limit; else ended=noboot; fi
      break
    fi
    sleep 0.05
  done
  exec {lines}<&-
  stop_guest
  if [ -z "$ended" ]; then
    if grep -aqs 'VMINIT: up' "$folder/kernel.log"; then ended=done; else ended=noboot; fi
  fi
}

stop_guest() {
  if [ -z "${guest_pid:-}" ]; then return 0; fi
  kill -9 -- -"$guest_pid" 2> /dev/null || true
  wait "$guest_pid" 2> /dev/null || true
  guest_pid=
}
