"""Whether a backend really isolates on this machine: a program and some attacks in a fresh box.

Hosts refuse or weaken namespaces in ways that no version number tells (a distribution's AppArmor
rules, a container's own filter), so it is tried rather than looked up. A good verdict is kept
until the next boot; a bad one is not kept, so that a fix shows at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from turnwise.sandboxes.base import Limits, NoSafeSandbox, Sandbox, SandboxError, SandboxSpec

# The deadlines are long: a machine that is merely busy must not be found unsafe, nor safe.
LIMITS = Limits(memory_mb=64, pids=32, disk_mb=4, wall_s=30.0, lifetime_s=180.0)
OpenBox = Callable[[SandboxSpec], Sandbox]


@dataclass(frozen=True)
class Verdict:
    """What the probe of `backend` found; no failures means that it isolates."""

    backend: str
    failures: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether agent code may run there."""
        return not self.failures

    def require(self) -> None:
        """Raise `NoSafeSandbox` with every failure unless the backend isolates."""
        if self.failures:
            raise NoSafeSandbox("; ".join(self.failures))


_good: set[tuple[str, str]] = set()


def probe_isolation(backend: str, open_box: OpenBox, identity: str = "") -> Verdict:
    """The verdict for `backend`: from this process, from this boot's cache, or by trying (~0.5 s).

    It does not raise: a backend that cannot start has a failure that says so.

    Args:
        identity: what the verdict depends on besides this machine, such as an engine.
    """
    if (backend, identity) in _good:
        return Verdict(backend)
    file = _cache_file(backend, identity)
    if file is not None and _is_good(file):
        _good.add((backend, identity))
        return Verdict(backend)
    verdict = try_backend(backend, open_box)
    if verdict.ok:
        _good.add((backend, identity))
    if file is not None and verdict.ok:
        with contextlib.suppress(OSError):
            file.write_text(json.dumps({"backend": backend, "ok": True}))
    return verdict


def try_backend(backend: str, open_box: OpenBox) -> Verdict:
    """Open a box, run a program, attack from inside, and look at what came of it."""
    try:
        with open_box(SandboxSpec(limits=LIMITS)) as box:
            return Verdict(backend, tuple(_failures(box)))
    except (SandboxError, OSError) as error:
        return Verdict(backend, (str(error),))


def _failures(box: Sandbox) -> Iterator[str]:
    if box.exec(["sh", "-c", "echo $((6 * 7))"]).stdout != b"42\n":
        yield "a program does not run in it"
        return
    if box.cell("answer = 6 * 7").exit_code or box.cell("print(answer)").stdout != b"42\n":
        yield "a stateful Python cell does not run in it"
        return
    for attack in ATTACKS:
        failure = attack(box)
        if failure:
            yield failure


def _host_file(box: Sandbox) -> str:
    secret = secrets.token_hex(8)
    with tempfile.NamedTemporaryFile("w", prefix="turnwise-probe-") as file:
        os.chmod(file.name, 0o644)
        file.write(secret)
        file.flush()
        seen = box.exec(["cat", file.name, "/proc/1/root" + file.name]).text
    return "a file of the host can be read from it" if secret in seen else ""


def _host_network(box: Sandbox) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket\nsocket.create_connection({server.getsockname()!r}, 2)"
        reached = box.cell(code).exit_code == 0
    lines = box.exec(["cat", "/proc/net/dev"]).text.splitlines()[2:]
    cards = {line.split(":")[0].strip() for line in lines} - {"lo"}
    if reached or any(not card.startswith(_INERT) for card in cards):
        return "the network of the host can be reached from it"
    return ""


# The kernel puts these, down, into every new network namespace.
_INERT = ("tunl", "gre", "erspan", "ip_vti", "ip6", "sit")


def _host_processes(box: Sandbox) -> str:
    code = "import os\nprint(sum(name.isdigit() for name in os.listdir('/proc')))"
    seen = box.cell(code).text.strip()
    return "" if seen in ("1", "2", "3") else "processes of the host can be seen from it"


def _write(box: Sandbox) -> str:
    places = ("/x", "/usr/x", "/etc/x", "/dev/x", "/opt/x")
    tries = [box.exec(["sh", "-c", f": > {place}"]).exit_code for place in places]
    return "" if all(tries) else "its system folders can be written to"


def _many_processes(box: Sandbox) -> str:
    code = """
import os, signal, time
made = []
try:
    while len(made) < 200:
        pid = os.fork()
        if not pid:
            time.sleep(30)
            os._exit(0)
        made.append(pid)
except OSError:
    pass
print(len(made))
for pid in made:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
    seen = box.cell(code).text.strip()
    return "" if seen.isdigit() and int(seen) < LIMITS.pids else "it may start endless processes"


def _much_memory(box: Sandbox) -> str:
    code = """
import time
held = []
for _ in range(20):
    held.append(bytearray(8 << 20))
    time.sleep(0.005)
time.sleep(0.5)
"""
    result = box.cell(code, kernel="memory")
    if result.timed_out:
        return f"its memory limit could not be tried within {LIMITS.wall_s:.0f} s; try again"
    return "it may use endless memory" if result.exit_code == 0 else ""


ATTACKS = (_host_file, _host_network, _host_processes, _write, _many_processes, _much_memory)


def _cache_file(backend: str, identity: str = "") -> Path | None:
    """Where a good verdict for this boot, user, namespace and code is kept; None if nowhere."""
    folder = _private_folder()
    if folder is None:
        return None
    try:
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text(), str(os.geteuid()), identity]
        parts += [str(os.stat(f"/proc/self/ns/{name}").st_ino) for name in ("user", "mnt", "pid")]
    except OSError:
        return None
    program = shutil.which("bwrap") or ""
    if program:
        parts.append(f"{program} {os.stat(program).st_mtime_ns}")
    for file in sorted(Path(__file__).parent.glob("*.py")):
        parts.append(hashlib.sha256(file.read_bytes()).hexdigest())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return folder / f"probe-{backend}-{key}.json"


def _is_good(file: Path) -> bool:
    try:
        return json.loads(file.read_text()).get("ok") is True
    except (OSError, ValueError, AttributeError):
        return False


def _private_folder() -> Path | None:
    """A folder that only this user can write to: another's verdict must not be believed."""
    home = os.environ.get("XDG_CACHE_HOME")
    places = [Path(home) / "turnwise"] if home else []
    places.append(Path(tempfile.gettempdir()) / f"turnwise-{os.geteuid()}")
    for folder in places:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = os.lstat(folder)
            private = found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if private and stat.S_ISDIR(found.st_mode):
                return folder
    return None
