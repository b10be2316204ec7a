"""A disk with a volatile write cache, as an NBD server: volatile_nbd.py FILE SOCKET SEED

Writes are acknowledged and kept in memory until the client flushes. A power cut loses them:
SIGKILL loses all that was not flushed, SIGUSR1 keeps a random half (drawn with SEED), in pieces of
512 bytes, so that the last write may be torn. Killing a guest cannot do this: what it wrote is then
in the host's page cache, and survives, whether flushed or not.
"""

import os
import random
import signal
import socket
import struct
import sys

SECTOR = 512
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FORCE_UNIT_ACCESS = 1
HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_ZEROES = 1, 4, 8, 32, 64
FLAGS = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_ZEROES


class Disk:
    def __init__(self, path):
        self.file = os.open(path, os.O_RDWR)
        self.bytes = os.fstat(self.file).st_size
        self.unflushed = {}  # sector -> its 512 bytes, in the order of writing

    def read(self, offset, length):
        data = bytearray(os.pread(self.file, length, offset))
        for sector in range(offset // SECTOR, (offset + length) // SECTOR):
            newer = self.unflushed.get(sector)
            if newer is not None:
                at = sector * SECTOR - offset
                data[at : at + SECTOR] = newer
        return bytes(data)

    def write(self, offset, data, durable):
        first = offset // SECTOR
        for n in range(len(data) // SECTOR):
            self.unflushed.pop(first + n, None)
            if not durable:
                self.unflushed[first + n] = data[n * SECTOR : (n + 1) * SECTOR]
        if durable:
            os.pwrite(self.file, data, offset)

    def flush(self):
        for sector, data in sorted(self.unflushed.items()):
            os.pwrite(self.file, data, sector * SECTOR)
        self.unflushed.clear()

    def cut_power(self, seed):
        draw = random.Random(seed)
        kept = [item for item in self.unflushed.items() if draw.random() < 0.5]
        for sector, data in kept:
            os.pwrite(self.file, data, sector * SECTOR)
        print(f"power cut: {len(kept)} of {len(self.unflushed)} unflushed sectors kept (seed {seed})", flush=True)
        os._exit(0)


def receive(client, length):
    data = bytearray()
    while len(data) < length:
        piece = client.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def negotiate(client, disk):
    """The newstyle handshake, as far as QEMU goes through it."""
    client.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
    receive(client, 4)
    while True:
        _, option, length = struct.unpack(">8sII", receive(client, 16))
        receive(client, length)
        reply = lambda kind, data=b"": client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)
        if option == 1:  # export name
            client.sendall(struct.pack(">QH", disk.bytes, FLAGS))
            return
        if option in (6, 7):  # info, go
            reply(3, struct.pack(">HQH", 0, disk.bytes, FLAGS))
            reply(1)
            if option == 7:
                return
        elif option == 2:  # abort
            raise EOFError
        else:
            reply(0x80000001)


def serve(client, disk):
    negotiate(client, disk)
    while True:
        _, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", receive(client, 28))
        answer = b""
        if kind == READ:
            answer = disk.read(offset, length)
        elif kind == WRITE:
            disk.write(offset, receive(client, length), flags & FORCE_UNIT_ACCESS)
        elif kind == WRITE_ZEROES:
            disk.write(offset, bytes(length), flags & FORCE_UNIT_ACCESS)
        elif kind == FLUSH:
            disk.flush()
        elif kind == DISCONNECT:
            disk.flush()
            return
        client.sendall(struct.pack(">IIQ", 0x67446698, 0, handle) + answer)


def main():
    path, name, seed = sys.argv[1:4]
    disk = Disk(path)
    signal.signal(signal.SIGUSR1, lambda *_: disk.cut_power(int(seed)))
    if os.path.exists(name):
        os.unlink(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(1)
    print("ready", flush=True)
    client, _ = listener.accept()
    try:
        serve(client, disk)
    except (EOFError, ConnectionResetError):
        disk.cut_power(int(seed))


main()
