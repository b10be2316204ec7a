# The same cuts on a replica disk with a volatile cache: a flush that is missing loses bytes.
# needs: dm-delay dm-flakey binary
# backend: qemu
# cuts: first-copy journal apply committed
# disks: a:160M r:160M:volatile

. /payload/cases/power-cut-replica.sh
