# Builds what a guest boots from: two kernels, one userland image, one QEMU. Sourced by ../run.
#
# Everything is downloaded with apt-get and unpacked below $CACHE; no maintainer script runs and
# nothing is installed on the host. The packages come from the host's own Debian release, so the
# guest's C library fits a binary that was built here.

ROOT_PACKAGES="base-files bash coreutils util-linux util-linux-extra bsdextrautils mount kmod lvm2 dmsetup
  thin-provisioning-tools e2fsprogs xfsprogs btrfs-progs iproute2 iputils-ping nftables nbd-client
  busybox-static strace procps psmisc findutils grep sed gawk tar gzip xxd diffutils netcat-openbsd
  openssh-client python3-minimal libpython3-stdlib"

# Dragged in by dependencies, of no use in a guest that has no package manager.
ROOT_PACKAGES_DROPPED='adduser|debconf|debianutils|dpkg|gcc-[0-9]+-base|init-system-helpers|libfile-find-rule-perl|libnumber-compare-perl|libtext-glob-perl|perl.*|libperl.*|usrmerge|passwd|lsb-base|sysvinit-utils|media-types|logsave|libpam.*|libsemanage.*'

MODULES='dm-.*|null_blk|nbd|loop|brd|scsi_debug|scsi_mod|scsi_common|sd_mod|sg|virtio.*|failover|net_failover|veth|dummy|sch_.*|cls_.*|act_.*|ifb|nf_.*|nft_.*|nfnetlink|overlay|xfs|btrfs|crc.*|libcrc32c|xor|raid.*|async_.*|md-mod|dax|mbcache|jbd2|ext4|blake2b.*|xxhash.*|sha.*|zstd_compress|lzo.*|zsmalloc|configfs|t10-pi'

# The image is built again when its recipe or one of its parts changed.
image_stamp() {
  cat "$here"/host/{image.sh,xstate.c} "$here"/guest/{vminit,vminit-uml,init.initramfs,lvmlocal.conf} | sha256sum | cut -c1-16
}

build_image() {
  mkdir -p "$CACHE"
  exec 9> "$CACHE/lock"
  flock 9
  if [ "$(cat "$CACHE/stamp" 2> /dev/null)" != "$(image_stamp)" ]; then
    say "building the guest image in $CACHE (once, about a minute)"
    download strict || { refresh_lists && download strict; } || download lenient || return 1
    unpack_qemu
    unpack_userland
    unpack_kernels
    pack_images
    build_shim
    image_stamp > "$CACHE/stamp"
  fi
  exec 9>&-
}

# Lists may be empty or name packages the mirror no longer has.
refresh_lists() {
  if [ -e "$CACHE/lists-refreshed" ] && [ -z "$(find "$CACHE/lists-refreshed" -mmin +60)" ]; then return 1; fi
  say "apt-get update"
  apt-get -q update >> "$CACHE/apt.log" 2>&1
  touch "$CACHE/lists-refreshed"
}

# apt with nothing installed as its view of the world, so that every dependency is fetched.
apt_into() { # FOLDER PACKAGE…
  local folder=$1
  shift
  mkdir -p "$folder/partial"
  : > "$CACHE/empty-status"
  apt-get -q -y --no-install-recommends --download-only \
    -o Dir::State::status="$CACHE/empty-status" -o Dir::Cache="$CACHE/apt" -o Dir::Cache::archives="$folder" \
    -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 install "$@" >> "$CACHE/apt.log" 2>&1
}

download() { # strict|lenient: lenient goes on without User-Mode Linux
  local kernel
  mkdir -p "$CACHE/apt"
  kernel=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [ -n "$kernel" ] || { trouble="linux-image-cloud-amd64 is not in the apt lists"; return 1; }
  rm -rf "$CACHE/kernel" && mkdir -p "$CACHE/kernel"
  # shellcheck disable=SC2086
  apt_into "$CACHE/userland" $ROOT_PACKAGES && apt_into "$CACHE/qemu-packages" qemu-system-x86 &&
    fetch_one "$kernel" "$CACHE/kernel" || { trouble="apt-get could not download the guest's packages, see $CACHE/apt.log"; return 1; }
  if fetch_one user-mode-linux "$CACHE/kernel"; then return 0; fi
  trouble="apt-get could not download user-mode-linux, see $CACHE/apt.log"
  [ "$1" = lenient ] && say "no package user-mode-linux: the uml back-end will be missing"
}

fetch_one() { # PACKAGE FOLDER: the package alone, without dependencies
  (cd "$2" && apt-get -q -o APT::Sandbox::User="$(id -un)" download "$1" >> "$CACHE/apt.log" 2>&1)
}

unpack() { # PACKAGE-FILE FOLDER
  dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink --no-same-owner \
    --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./usr/share/info' \
    --exclude='./usr/share/zoneinfo' --exclude='./usr/share/bash-completion' --exclude='./lib/udev' --exclude='./usr/lib/udev' -f -
}

# QEMU runs from its own folder with its own libraries, whatever the host has or lacks.
unpack_qemu() {
  local root=$CACHE/qemu-root deb lib=usr/lib/x86_64-linux-gnu
  rm -rf "$root" && mkdir -p "$root"
  for deb in "$CACHE"/qemu-packages/*.deb; do unpack "$deb" "$root"; done
  cat > "$CACHE/qemu" << SCRIPT
#!/bin/sh
export QEMU_MODULE_DIR=$root/$lib/qemu
exec $root/lib64/ld-linux-x86-64.so.2 --library-path $root/lib/x86_64-linux-gnu:$root/$lib:$root/$lib/pulseaudio \\
  $root/usr/bin/qemu-system-x86_64 -L $root/usr/share/qemu -L $root/usr/share/seabios -L $root/usr/lib/ipxe/qemu "\$@"
SCRIPT
  chmod +x "$CACHE/qemu"
}

unpack_userland() {
  local root=$CACHE/root folder deb
  rm -rf "$root"
  mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{proc,sys,dev,run,tmp,mnt,etc,root,var/lib,var/log,payload,results}
  for folder in bin sbin lib lib64; do ln -s usr/$folder "$root/$folder"; done
  for deb in "$CACHE"/userland/*.deb; do
    basename "$deb" | sed 's/_.*//' | grep -Eqx "$ROOT_PACKAGES_DROPPED" || unpack "$deb" "$root"
  done
  ln -sf bash "$root/usr/bin/sh"
  ln -sf gawk "$root/usr/bin/awk"
  ln -sf nc.openbsd "$root/usr/bin/nc"
  printf 'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n' > "$root/etc/passwd"
  printf 'root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n' > "$root/etc/group"
  echo '127.0.0.1 localhost' > "$root/etc/hosts"
  : > "$root/etc/fstab"
  ln -sf /proc/self/mounts "$root/etc/mtab"
  /sbin/ldconfig -r "$root"
  cp "$here"/guest/vminit "$here"/guest/vminit-uml "$root/sbin/"
  cp "$here/guest/lvmlocal.conf" "$root/etc/lvm/"
  # The host-side helpers run on the guest's Python, so that the host needs none.
  cat > "$CACHE/python3" << SCRIPT
#!/bin/sh
exec env PYTHONHOME=$root/usr PYTHONDONTWRITEBYTECODE=1 $root/lib64/ld-linux-x86-64.so.2 \\
  --library-path $root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu $root/usr/bin/python3 "\$@"
SCRIPT
  chmod +x "$CACHE/python3"
}

# A program of the guest, run on the host, which may not have it.
of_guest() { # NAME PROGRAM ARGUMENT…
  local root=$CACHE/root name=$1
  shift
  "$root/lib64/ld-linux-x86-64.so.2" --argv0 "$name" --library-path "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" "$@"
}

# The two kernels, and of their modules those that a case may need.
unpack_kernels() {
  local root=$CACHE/root tree=$CACHE/kernel-root deb modules version target
  rm -rf "$tree" && mkdir -p "$tree"
  for deb in "$CACHE"/kernel/*.deb; do dpkg-deb -x "$deb" "$tree"; done
  cp --remove-destination "$tree"/boot/vmlinuz-* "$CACHE/vmlinuz"
  if [ -e "$tree/usr/bin/linux.uml" ]; then cp --remove-destination "$tree/usr/bin/linux.uml" "$CACHE/"; fi
  for modules in "$tree"/lib/modules/* "$tree"/usr/lib/uml/modules/*; do
    [ -d "$modules/kernel" ] || continue
    version=$(basename "$modules")
    target=$root/lib/modules/$version
    mkdir -p "$target"
    cp "$modules"/modules.{builtin,order} "$target/"
    if [ -e "$modules/modules.builtin.modinfo" ]; then cp "$modules/modules.builtin.modinfo" "$target/"; fi
    (cd "$modules" && find kernel -regextype posix-extended -regex ".*/($MODULES)\.ko(\.xz)?" -exec cp --parents {} "$target" \;)
    of_guest depmod "$root/bin/kmod" -b "$root" "$version" # packages bring no modules.dep
  done
}

# One read-only ext4 image for both back-ends, and a small initramfs that finds it under QEMU.
pack_images() {
  local root=$CACHE/root initramfs=$CACHE/initramfs version module
  rm -f "$CACHE/root.img"
  MKE2FS_CONFIG=$root/etc/mke2fs.conf of_guest mke2fs "$root/sbin/mke2fs" -q -F -t ext4 -O ^has_journal -m 0 -b 4096 -L vmroot -E root_owner=0:0 -d "$root" "$CACHE/root.img" 512M
  version=$(basename "$CACHE"/kernel-root/lib/modules/*)
  rm -rf "$initramfs" && mkdir -p "$initramfs"/{bin,proc,sys,dev,newroot,m}
  cp "$root/usr/bin/busybox" "$initramfs/bin/"
  cp "$here/guest/init.initramfs" "$initramfs/init"
  chmod +x "$initramfs/init"
  for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk overlay; do # insmod order
    cp "$(find "$root/lib/modules/$version" -name "$module.ko*" | head -n 1)" "$initramfs/m/"
    echo "$module.ko" >> "$initramfs/m/order"
  done
  (cd "$initramfs" && find . | "$root/usr/bin/busybox" cpio -o -H newc 2> /dev/null) > "$CACHE/initrd.cpio"
}

# User-Mode Linux needs a shim on processors with AMX (see xstate.c).
build_shim() {
  rm -f "$CACHE/xstate.so"
  if [ ! -e "$CACHE/linux.uml" ] || ! grep -qw amx_tile /proc/cpuinfo; then return 0; fi
  cc -O2 -shared -fPIC -o "$CACHE/xstate.so" "$here/host/xstate.c" || { rm -f "$CACHE/linux.uml"; say "no C compiler for the AMX shim: the uml back-end will be missing"; }
}
