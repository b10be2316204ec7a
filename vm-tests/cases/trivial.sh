# The guest is up, has its disks, and its tools run.
# backend: any
# reference: yes

for name in a b c; do [ -b "$(disk $name)" ] || fail "no disk $name"; done
lvm version
ok "$(uname -r) on $BACKEND"
