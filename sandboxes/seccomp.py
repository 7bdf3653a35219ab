"""A seccomp filter against the kernel surface that agent code never needs, in pure Python.

A denylist: mounting, namespaces, tracing, kernel modules, io_uring, bpf, keys, and the calls that
carry a history of escapes. Everything else is allowed, so that compilers, databases and test
runners work. It is the third line, behind namespaces and an unprivileged user.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from turnwise.sandboxes.base import Unsupported

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, FAIL_WITH = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCH, ARGUMENT = 0, 4, (16, 24, 32)

ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
NEW_NAMESPACES = 0x7E020000
TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
FAMILIES = (0, 1, 2, 10)  # UNSPEC, UNIX, INET, INET6

# name -> (x86_64, aarch64); None where the architecture has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "memfd_secret": (447, 447),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    # They fill memory that outlives whoever asked for it, so that nobody is left to end for it.
    "semget": (64, 190),
    "msgget": (68, 186),
}
# Denied only where nothing else enforces the limit that they would slip past.
UNLIMITED_MEMORY: dict[str, tuple[int | None, int | None]] = {
    "memfd_create": (319, 279),
    "shmget": (29, 194),
}
UNLIMITED_CPU: dict[str, tuple[int | None, int | None]] = {"sched_setaffinity": (203, 122)}

CLONE, CLONE3, IOCTL = (56, 220), (435, 435), (16, 29)
SOCKET, SOCKETPAIR = (41, 198), (53, 199)
SETSOCKOPT, BUFFER_SIZES = (54, 208), (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF and their FORCE
PRLIMIT64, PERSONALITY = (302, 261), (135, 92)
# Calls that could slow the guest, which runs as the same user, until it misses every deadline:
# name -> (numbers, argument that must be 0 for "me", most that the arguments before it may be).
ONLY_ON_ITSELF: dict[str, tuple[tuple[int, int], int, int]] = {
    "setpriority": ((141, 140), 1, 0),
    "ioprio_set": ((251, 30), 1, 1),
    "sched_setparam": ((142, 118), 0, 0),
    "sched_setscheduler": ((144, 119), 0, 0),
    "sched_setattr": ((314, 274), 0, 0),
}


def compile_filter(
    machine: str | None = None,
    also_denied: Iterable[dict[str, tuple[int | None, int | None]]] = (),
) -> bytes:
    """The filter as the array of `struct sock_filter` that `bwrap --seccomp` reads.

    Args:
        machine: `x86_64` or `aarch64`; this machine's by default.
        also_denied: further tables, such as `UNLIMITED_MEMORY`.

    Raises:
        Unsupported: for any other machine.
    """
    machine = machine or platform.machine()
    if machine not in ARCHES:
        raise Unsupported(f"no seccomp filter for {machine!r}; known: {', '.join(ARCHES)}")
    column = list(ARCHES).index(machine)
    tables = [DENIED, *also_denied]
    numbers = [row[column] for table in tables for row in table.values()]
    code = [_op(LOAD, ARCH), _op(EQUAL, ARCHES[machine], 1, 0), _op(RETURN, KILL_PROCESS)]
    code.append(_op(LOAD, NUMBER))
    if machine == "x86_64":
        code += [_op(AT_LEAST, X32_BIT, 0, 1), _fail(errno.ENOSYS)]
    for number in numbers:
        if number is not None:
            code += [_op(EQUAL, number, 0, 1), _fail(errno.EPERM)]
    # glibc falls back from clone3 to clone, whose flags a filter can see.
    code += [_op(EQUAL, CLONE3[column], 0, 1), _fail(errno.ENOSYS)]
    for block in _by_argument(column):
        code += block
    if UNLIMITED_MEMORY in tables:
        code += _leave_buffers_alone(column)
    code.append(_op(RETURN, ALLOW))
    return b"".join(code)


def _leave_buffers_alone(column: int) -> list[bytes]:
    """Let `setsockopt` of a buffer size succeed without effect, so that sockets can be counted."""
    sizes = [op for name in BUFFER_SIZES for op in (_op(EQUAL, name, 0, 1), _fail(0))]
    ours = [_op(EQUAL, 1, 1, 0), _allow(), _op(LOAD, ARGUMENT[2]), *sizes, _allow()]
    return _when(SETSOCKOPT[column], ARGUMENT[1], ours)


def _by_argument(column: int) -> list[list[bytes]]:
    """One block per call that is judged by an argument; each falls through for other calls."""
    clone = [_op(ANY_BIT, NEW_NAMESPACES, 0, 1), _fail(errno.EPERM)]
    ioctl = [op for value in TERMINAL_INJECTION for op in (_op(EQUAL, value, 0, 1), _eperm())]
    family = [op for value in FAMILIES for op in (_op(EQUAL, value, 0, 1), _allow())]
    own_limits = [_op(EQUAL, 0, 1, 0), _eperm()]
    persona = [_op(EQUAL, 0, 2, 0), _op(EQUAL, 0xFFFFFFFF, 1, 0), _eperm()]
    return [
        _when(CLONE[column], ARGUMENT[0], [*clone, _allow()]),
        _when(IOCTL[column], ARGUMENT[1], [*ioctl, _allow()]),
        _when(SOCKET[column], ARGUMENT[0], [*family, _fail(errno.EAFNOSUPPORT)]),
        _when(SOCKETPAIR[column], ARGUMENT[0], [*family, _fail(errno.EAFNOSUPPORT)]),
        # The guest runs as the same user: others' limits could otherwise be set to starve it.
        _when(PRLIMIT64[column], ARGUMENT[0], [*own_limits, _allow()]),
        _when(PERSONALITY[column], ARGUMENT[0], [*persona, _allow()]),
        *(_on_itself(rule[0][column], *rule[1:]) for rule in ONLY_ON_ITSELF.values()),
    ]


def _on_itself(number: int, whom: int, most: int) -> list[bytes]:
    kind = [_op(AT_LEAST, most + 1, 0, 1), _eperm(), _op(LOAD, ARGUMENT[1])] if whom else []
    return _when(number, ARGUMENT[0], [*kind, _op(EQUAL, 0, 1, 0), _eperm(), _allow()])


def _when(number: int, argument: int, body: list[bytes]) -> list[bytes]:
    """`body` with the argument's low word loaded, for call `number`; it must return by itself."""
    return [_op(EQUAL, number, 0, len(body) + 1), _op(LOAD, argument), *body]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _fail(number: int) -> bytes:
    return _op(RETURN, FAIL_WITH | number)


def _eperm() -> bytes:
    return _fail(errno.EPERM)


def _allow() -> bytes:
    return _op(RETURN, ALLOW)


def docker_profile(
    machine: str | None = None,
    also_denied: Iterable[dict[str, tuple[int | None, int | None]]] = (),
) -> dict[str, Any]:
    """The same filter as the JSON that `docker run --security-opt seccomp=` takes.

    Two answers differ from those of `compile_filter`: a call of the x32 ABI or of another
    architecture ends the process, since the engine's own library answers it so.

    Raises:
        Unsupported: for a machine that has no filter.
    """
    machine = machine or platform.machine()
    if machine not in ARCHES:
        raise Unsupported(f"no seccomp filter for {machine!r}; known: {', '.join(ARCHES)}")
    column = list(ARCHES).index(machine)
    tables = [DENIED, *also_denied]
    names = [name for table in tables for name, row in table.items() if row[column] is not None]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [f"SCMP_ARCH_{machine.upper()}"],
        "syscalls": [
            _refusal(names, errno.EPERM),
            _refusal(["clone3"], errno.ENOSYS),
            *_refusals_by_argument(),
        ],
    }


def _refusals_by_argument() -> Iterator[dict[str, Any]]:
    # Rules can only be added up, and one rule can look at an argument only once. It sees all 64
    # bits of it, where the kernel looks at the low 32: hence the masks.
    for bit in (1 << n for n in range(32) if NEW_NAMESPACES >> n & 1):
        yield _refusal(["clone"], errno.EPERM, _masked(0, bit, bit))
    for value in TERMINAL_INJECTION:
        yield _refusal(["ioctl"], errno.EPERM, _masked(1, 0xFFFFFFFF, value))
    last = max(FAMILIES)
    both = ["socket", "socketpair"]
    for family in set(range(last)) - set(FAMILIES):
        yield _refusal(both, errno.EAFNOSUPPORT, _masked(0, 0xFFFFFFFF, family))
    yield _refusal(both, errno.EAFNOSUPPORT, _compared(0, "GT", last))
    yield _refusal(["prlimit64"], errno.EPERM, _compared(0, "NE", 0))
    for name, (_, whom, most) in ONLY_ON_ITSELF.items():
        yield _refusal([name], errno.EPERM, _compared(whom, "NE", 0))
        if whom:
            yield _refusal([name], errno.EPERM, _compared(0, "GT", most))
    # All but 0 and 0xFFFFFFFF: those that differ from the top bit somewhere, and the top bit alone.
    top = 1 << 31
    for bit in (1 << n for n in range(31)):
        yield _refusal(["personality"], errno.EPERM, _masked(0, top | bit, bit))
        yield _refusal(["personality"], errno.EPERM, _masked(0, top | bit, top))


def _refusal(names: list[str], number: int, *arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "names": names,
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": number,
        "args": list(arguments),
    }


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _compared(index: int, how: str, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": 0, "op": f"SCMP_CMP_{how}"}
