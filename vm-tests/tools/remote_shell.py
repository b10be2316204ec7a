#!/usr/bin/env python3
"""A remote shell over TCP, for two hosts in one guest.

    remote_shell.py serve PORT           runs each command that comes, on the socket
    remote_shell.py PORT HOST COMMAND    what `--rsh` calls: the command's input and output are ours

Like ssh with ServerAliveInterval, both ends notice a dead link after some seconds: silence must not
keep a test waiting. The command has the socket itself as its input and output.
"""
import os
import socket
import subprocess
import sys
import threading

ADDRESSES = {"replica": "10.9.0.2", "source": "10.9.0.1"}


def keep_alive(link):
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, 15000)):
        link.setsockopt(socket.IPPROTO_TCP, option, value)


def serve(port):
    server = socket.create_server(("0.0.0.0", port))
    while True:
        link, _ = server.accept()
        keep_alive(link)
        command = b""
        while not command.endswith(b"\n"):  # byte by byte: what follows is the command's
            command += link.recv(1)
        print("runs", command.decode(), end="", flush=True)
        subprocess.Popen(["sh", "-c", command.decode()], stdin=link, stdout=link)
        link.close()


def pump(take, give):
    while data := take():
        while data:
            data = data[give(data):]


def call(port, host, command):
    link = socket.create_connection((ADDRESSES[host], port), timeout=10)
    link.settimeout(None)
    keep_alive(link)
    link.sendall(command.encode() + b"\n")

    def send():
        try:
            pump(lambda: os.read(0, 1 << 18), link.send)
            link.shutdown(socket.SHUT_WR)
        except OSError as error:
            print(f"remote_shell: {error}", file=sys.stderr)
            os._exit(255)

    threading.Thread(target=send, daemon=True).start()
    pump(lambda: link.recv(1 << 18), lambda data: os.write(1, data))


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
try:
    call(int(sys.argv[1]), sys.argv[2], sys.argv[3])
except OSError as error:
    print(f"remote_shell: {error}", file=sys.stderr)
    os._exit(255)
os._exit(0)
