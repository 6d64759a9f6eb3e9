"""A slow and lossy cable between two network namespaces: a TAP device ``eth1`` in each, with frames passed on by hand.

python -m tests.distributed.relay NAMESPACE0 NAMESPACE1 DELAY LOSS

Kernels without ``sch_netem`` have no other way. The addresses are 10.78.0.1 and 10.78.0.2. DELAY is in seconds, one
way.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # <linux/if_tun.h>
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _tap(namespace: str, address: str) -> int:
    """A file descriptor of a new device in the namespace; each read is a frame that it sends."""
    here, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    _enter(there)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"eth1", _IFF_TAP | _IFF_NO_PI))
    for words in (("addr", "add", address, "dev", "eth1"), ("link", "set", "eth1", "up")):
        subprocess.run(["ip", *words], check=True)
    _enter(here)
    return device


def main() -> None:
    ends = [_tap(sys.argv[1], "10.78.0.1/24"), _tap(sys.argv[2], "10.78.0.2/24")]
    delay, loss = float(sys.argv[3]), float(sys.argv[4])
    print("ready", flush=True)
    rng = random.Random(0)
    frames: list[tuple[float, int, int, bytes]] = []  # when it is due, its number, where to, its bytes
    number = 0
    while True:
        patience = max(0.0, frames[0][0] - time.monotonic()) if frames else None
        for end in select.select(ends, [], [], patience)[0]:
            frame = os.read(end, 65_536)
            if rng.random() >= loss:
                number += 1
                heapq.heappush(frames, (time.monotonic() + delay, number, ends[end == ends[0]], frame))
        while frames and frames[0][0] <= time.monotonic():
            *_, end, frame = heapq.heappop(frames)
            os.write(end, frame)


if __name__ == "__main__":
    main()
