"""The well-known recipe, reimplemented: a lock file for each port, with fasteners.

It binds a random port to check that it is free. While the port is bound, it locks the
port's file without waiting. Then it closes the socket and keeps the lock. fasteners'
locks belong to the process (fcntl), so a set distinguishes its threads.
"""

import os
import random
import socket
import threading
from typing import ClassVar

import fasteners


class FreePort:
    _used: ClassVar[set[int]] = set()
    _guard = threading.Lock()

    def __init__(self, number, lock):
        self.number = number
        self._lock = lock

    @classmethod
    def find(cls, directory, ports):
        """Returns a port that is free and locked, or None if no random try finds one."""
        for _ in range(10 * len(ports)):
            number = random.choice(ports)
            with cls._guard:
                if number in cls._used:
                    continue
                cls._used.add(number)
            lock = cls._try_lock(directory, number)
            if lock is not None:
                return cls(number, lock)
            cls._used.discard(number)
        return None

    @staticmethod
    def _try_lock(directory, number):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", number))
            except OSError:
                return None
            lock = fasteners.InterProcessLock(os.path.join(directory, str(number)))
            return lock if lock.acquire(blocking=False) else None

    def release(self):
        self._lock.release()
        self._used.discard(self.number)
