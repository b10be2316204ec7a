#!/usr/bin/env python3
"""scatter.py DEVICE COUNT STRIDE: COUNT random blocks of 4096 bytes, STRIDE blocks apart, made durable."""
import os
import sys

device, count, stride = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
disk = os.open(device, os.O_WRONLY)
for number in range(1, count + 1):
    os.pwrite(disk, os.urandom(4096), number * stride * 4096)
os.fsync(disk)
