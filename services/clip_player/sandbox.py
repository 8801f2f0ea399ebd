"""Confines the current process: from then on it can compute, read its open files and write a limited amount.

It cannot open a file or a socket, or start a process or thread: the kernel refuses every system call that is not on a
short list (seccomp). Memory, time and output are limited. A hostile clip that takes over the decoder gets no further.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import resource
import struct
from contextlib import suppress

NOBODY = 65534
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl(2)
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the kernel's packet filter
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
NUMBER_AT, MACHINE_AT = 0, 4  # offsets in the data that the filter sees of a call
OTHER_NUMBERS = 0x40000000  # x32: the same calls under other numbers
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
ALLOWED = {  # call: its number on x86_64, on aarch64
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "getrandom": (318, 278),
}


def confine_process(*, memory_bytes: int, cpu_s: float, written_bytes: int) -> None:
    """Confine this process for the rest of its life. OSError when this machine cannot.

    Args:
        memory_bytes: maximum address space, including what is in use already.
        cpu_s: processor time from now on, after which the kernel ends the process.
        written_bytes: maximum size of a file, such as the one behind standard output.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + cpu_s)
    for limit, soft, hard in (
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # SIGXCPU first: its status tells the reason
        (resource.RLIMIT_FSIZE, written_bytes, written_bytes),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(limit, (soft, hard))
    if os.geteuid() == 0:
        with suppress(OSError):  # a namespace without other users
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
    filter_system_calls()


def filter_system_calls() -> None:
    """Make the kernel refuse, with EPERM, every system call that is not in ALLOWED."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise OSError(f"got a machine of type {machine}, wanted one of {', '.join(MACHINES)}")
    mark, column = MACHINES[machine]
    numbers = sorted(call[column] for call in ALLOWED.values())
    steps = [(LOAD, 0, 0, MACHINE_AT), (EQUAL, 1, 0, mark), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT)]
    steps += [(AT_LEAST, 0, 1, OTHER_NUMBERS), (RETURN, 0, 0, KILL)]
    steps += [(EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    for request in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SET_SECCOMP, FILTER, ctypes.addressof(filter_), 0, 0)):
        if prctl(*request) != 0:
            raise OSError(ctypes.get_errno(), "this machine cannot confine a process (seccomp)")
