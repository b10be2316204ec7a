# The judge itself: one flipped bit must make assert_same_bytes fail. This case has to fail.
# backend: any
# reference: yes
# expect: bytes differ

make_vg vg a
make_lv vg/one 16M
make_lv vg/two 16M
noise_at /dev/vg/one 0 16
dd if=/dev/vg/one of=/dev/vg/two bs=1M oflag=direct conv=nocreat,notrunc status=none
assert_same_bytes /dev/vg/one /dev/vg/two
flip_bit /dev/vg/two 9876543
assert_same_bytes /dev/vg/one /dev/vg/two
