# No lvm2, no root, no device-mapper, no such volume: one clear sentence each, and files need none of these.
# needs: dm-snapshot binary
# backend: any

make_vg vg a
make_lv vg/src 16M
noise 100000 > /tmp/file
exits 2 without_file /usr/sbin/lvm blockferry clone vg/src /tmp/copy --state-dir "$STATE"
assert_said 'install the package lvm2'
exits 0 without_file /usr/sbin/lvm blockferry clone /tmp/file /tmp/copy --state-dir "$STATE"
cmp /tmp/file /tmp/copy

chmod 777 /tmp
exits 2 busybox su nobody -s /bin/bash -c '/payload/bin/blockferry clone vg/src /tmp/other --state-dir /tmp/nobody'
assert_said 'root'

exits 9 without_device_mapper blockferry clone vg/src /tmp/third --state-dir "$STATE" --snapshot always
assert_said 'device-mapper'

code=0
blockferry clone vg/none /tmp/fourth --state-dir "$STATE" > /tmp/said 2>&1 || code=$?
cat /tmp/said
[ $code != 0 ] || fail "a volume that does not exist was cloned"
grep -q vg/none /tmp/said || fail "the message does not name vg/none"
