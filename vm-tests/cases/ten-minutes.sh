# The section "From two bare hosts …" of docs/OPERATING.md, typed as it stands on two hosts, ends in a monitored replication.
# needs: dm-snapshot veth sch_netem sch_tbf tool:python3 binary
# backend: any
# reference: yes

make_two_hosts
make_vg vg0 a
make_vg vgdr b
make_lv vg0/db 48M
mount --make-shared /tmp # what is unmounted here is unmounted on both hosts, and not in use there for ever
mount_fs ext4 /dev/vg0/db /tmp/m
noise 8000000 > /tmp/m/first
sync

# Each host has an /etc and a /var of its own, and a systemctl that starts what the unit says.
for host in source replica; do
  mkdir -p /tmp/hosts/$host/etc /tmp/hosts/$host/var
done
mkdir -p /etc/blockferry /var/lib/blockferry /tmp/shims
cat > /tmp/shims/systemctl << 'END'
#!/bin/bash
unit=${!#}
command=$(sed -n 's/^ExecStart=//p' "/payload/packaging/systemd/$unit")
setsid ${command//\/usr\/local\/bin\/} > "/tmp/$unit.log" 2>&1 < /dev/null &
END
cat > /tmp/shims/curl << 'END'
#!/bin/bash
exec busybox wget -qO- "${!#}"
END
chmod +x /tmp/shims/*
grep -q dr1.example /etc/hosts 2> /dev/null || echo '10.9.0.2 dr1.example' >> /etc/hosts

on_host() { # HOST: runs the commands from standard input there, as a person would
  unshare -m --propagation slave bash -c "
    mount --bind /tmp/hosts/$1/etc /etc/blockferry && mount --bind /tmp/hosts/$1/var /var/lib/blockferry &&
    PATH=/tmp/shims:\$PATH exec ip netns exec $1 bash -euxo pipefail"
}
block() { # NUMBER: that block of commands of the section
  sed -n '/^## From two bare hosts/,/^## A first copy/p' /payload/docs/OPERATING.md |
    awk -v wanted="$1" '/^```sh$/ { number++; on = 1; next } /^```$/ { on = 0 } on && number == wanted'
}

for number in 1 2 3 4; do [ -n "$(block $number)" ] || fail "the section has no block $number"; done
wait_for_port='until ss -ltn | grep -q :7420; do sleep 0.2; done'
block 1 | sed "/^systemctl/a $wait_for_port" | on_host replica > /tmp/said.dr1 2> /tmp/log.dr1 || { cat /tmp/*.dr1 /tmp/*.log; fail "on dr1"; }
token=$(grep -o 'blockferry-pair-1-[^ ]*' /tmp/said.dr1 | head -n 1)
[ -n "$token" ] || { cat /tmp/*.dr1; fail "no token was printed"; }
block 2 | sed "s/TOKEN /$token /" | on_host source > /tmp/said.prod1 2>&1 || { cat /tmp/said.prod1 /tmp/*.log; fail "on prod1"; }
cat /tmp/said.prod1
grep -q 'generation 1' /tmp/said.prod1 || fail "the run said nothing of generation 1"

# The agent finds a change by itself once its time has come; what is asked now is whether it watches.
metrics_are_there() { echo 'curl -s http://127.0.0.1:9742/metrics' | on_host source 2> /dev/null | grep -q '^blockferry_'; }
wait_until metrics_are_there
block 3 | on_host source > /tmp/said.watch 2>&1 || { cat /tmp/said.watch /tmp/*.log; fail "watching"; }
cat /tmp/said.watch
grep -Eq '^(BLOCKFERRY )?OK' /tmp/said.watch || fail "monitor does not say OK"
umount /tmp/m # quiet, so that the replica can be compared with it
assert_equal "$(lv_field vg0/db lv_device_open)" '' "somebody still has the volume open"
echo 'blockferry run db' | on_host source
block 4 | on_host source
assert_same_bytes /dev/vg0/db /dev/vgdr/db
assert_no_snapshot_of_ours
assert_fs_clean ext4 /dev/vgdr/db
