#!/usr/bin/env python3
"""A long line between two network namespaces: a TAP device in each, and this process between them, which
passes frames on after a delay, with jitter, loss and a rate. For kernels without netem.

  link.py NS_A DEV_A CIDR_A  NS_B DEV_B CIDR_B  DELAY_MS [JITTER_MS] [LOSS_PCT] [RATE_MBIT]

The delay is one way, so that the round trip takes twice as long. SIGUSR1 cuts the line without a word to
anyone (frames vanish), SIGUSR2 mends it, SIGTERM ends it. The devices go with the process.
"""
import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP_WITHOUT_INFO = 0x0002 | 0x1000
# Frames read from one end before the other gets its turn.
BATCH = 64
# A sender that is this far ahead of the rate loses frames, as it would at a router's full queue.
QUEUE_S = 0.5
# Frames under way at most.
FRAMES_MAX = 100_000

libc = ctypes.CDLL(None, use_errno=True)


def tap(namespace, device, cidr):
    """Makes a TAP device in a namespace and returns its file."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(there, 0):
        raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    try:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP_WITHOUT_INFO))
        subprocess.run(["ip", "addr", "add", cidr, "dev", device], check=True)
        subprocess.run(["ip", "link", "set", "dev", device, "up"], check=True)
    finally:
        libc.setns(home, 0)
        os.close(home)
        os.close(there)
    return file


class Line:
    def __init__(self, a, b, delay_s, jitter_s=0.0, loss=0.0, bytes_per_s=0.0):
        self.other = {a: b, b: a}
        self.busy_until = {a: 0.0, b: 0.0}
        self.delay_s, self.jitter_s, self.loss, self.bytes_per_s = delay_s, jitter_s, loss, bytes_per_s
        self.under_way = []
        self.count = 0
        self.cut = False

    def run(self):
        poll = select.epoll()
        for end in self.other:
            poll.register(end, select.EPOLLIN)
        while True:
            self.deliver()
            wait = -1
            if self.under_way:
                wait = max(self.under_way[0][0] - time.monotonic(), 0.0001)
            try:
                ready = poll.poll(wait)
            except InterruptedError:
                continue
            for end, _ in ready:
                self.take(end)

    def deliver(self):
        while self.under_way and self.under_way[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(self.under_way)
            try:
                os.write(end, frame)
            except OSError:
                pass  # The other end is full: lost, as on any line.

    def take(self, end):
        for _ in range(BATCH):
            try:
                frame = os.read(end, 65536)
            except BlockingIOError:
                return
            if self.cut or len(self.under_way) >= FRAMES_MAX or (self.loss and random.random() < self.loss):
                continue
            leaves = time.monotonic()
            if self.bytes_per_s:
                begins = max(leaves, self.busy_until[end])
                if begins - leaves > QUEUE_S:
                    continue
                leaves = self.busy_until[end] = begins + len(frame) / self.bytes_per_s
            if self.jitter_s:
                leaves += random.uniform(0, self.jitter_s)
            self.count += 1
            heapq.heappush(self.under_way, (leaves + self.delay_s, self.count, self.other[end], frame))


def main():
    if not 8 <= len(sys.argv) <= 11:
        sys.exit(__doc__)
    delay, jitter, loss, rate = [float(text) for text in sys.argv[7:]] + [0.0] * (11 - len(sys.argv))
    a, b = tap(*sys.argv[1:4]), tap(*sys.argv[4:7])
    line = Line(a, b, delay / 1e3, jitter / 1e3, loss / 100, rate * 1e6 / 8)

    def set_cut(cut):
        line.cut = cut
        line.under_way.clear()

    signal.signal(signal.SIGUSR1, lambda *_: set_cut(True))
    signal.signal(signal.SIGUSR2, lambda *_: set_cut(False))
    print("up", flush=True)
    line.run()


main()
