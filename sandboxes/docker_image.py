"""Images for docker boxes: our base from this host's Debian packages, or a user's own.

The base needs no registry and no root: apt works out what the packages below need on an empty
machine and fetches them, their files are laid into a folder, and the engine imports that. No
package's script is run; what they would have set up and a box needs is written here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from turnwise.sandboxes.base import NoSafeSandbox, StartFailed
from turnwise.sandboxes.docker_engine import Engine, failures, quietly

BASE_IMAGE = "turnwise/base"
BUILD = "turnwise sandbox image build"
STEP_TIMEOUT_S = 600.0
PACKAGES = (
    *("python3", "bash", "dash", "coreutils", "util-linux", "procps", "findutils", "grep", "sed"),
    *("mawk", "diffutils", "patch", "tar", "gzip", "xz-utils", "less", "make", "git"),
)
# What only their own install scripts, or parts of git that no agent calls, would use: 80 MB.
_LEFT_OUT = re.compile(
    r"perl|perl-modules.*|libperl5.*|lib.*-perl|libgdbm.*|libdb5.*|usrmerge|dpkg|git-man"
    r"|init-system-helpers|gcc-.*-base|readline-common|media-types"
)
_LEFT_OUT_FILES = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info")
_FOLDERS = ("proc", "sys", "dev", "tmp", "run", "workspace", "opt/turnwise/sandboxes")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    ".turnwise-box": "",
}
_ALTERNATIVES = {
    "usr/bin/awk": "mawk",
    "usr/bin/pager": "less",
    "usr/bin/which": "which.debianutils",
}
# Python's own library, once compiled, saves each box a tenth of a second.
_COMPILE = """
import compileall, py_compile, sys, sysconfig
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
compileall.compile_dir(sysconfig.get_path("stdlib"), quiet=2, invalidation_mode=mode)
"""

Say = Callable[[str], object]


def build_base(
    engine: Engine, tag: str = BASE_IMAGE, packages: Sequence[str] = PACKAGES, say: Say = print
) -> str:
    """The id of a fresh base image, named `tag`; takes ten seconds and fetches 40 MB.

    Args:
        packages: of this host's distribution; what they need comes along.

    Raises:
        NoSafeSandbox: this host has no apt, or one that cannot fetch them.
        StartFailed: the engine refused the image.
    """
    for program in ("apt-get", "dpkg-deb", "tar"):
        if shutil.which(program) is None:
            raise NoSafeSandbox(
                f"the base image is made from Debian packages, and there is no {program} here;"
                f" elsewhere: {BUILD} --dockerfile PATH, or name an image that holds a python3"
            )
    with tempfile.TemporaryDirectory(prefix="turnwise-image-") as name:
        root = Path(name, "root")
        say(f"fetching {len(packages)} packages and what they need")
        fetched = fetch(packages, Path(name))
        say(f"unpacking {len(fetched)} packages")
        unpack(fetched, root)
        say(f"importing {tag}")
        with _replacing(engine, tag):
            return _compile_python(engine, _import(engine, root, tag), tag)


@contextlib.contextmanager
def _replacing(engine: Engine, tag: str) -> Iterator[None]:
    """Afterwards remove the image that had this name before, unless a box still runs it."""
    found = engine.api.images(name=tag, quiet=True)
    yield
    for old in found:
        quietly(partial(engine.api.remove_image, old))


def build_dockerfile(engine: Engine, path: Path, tag: str, say: Say = print) -> str:
    """The id of the image that `path`, a Dockerfile or a folder with one, describes.

    Raises:
        FileNotFoundError: there is no such file.
        StartFailed: a step failed; the message holds its last words.
    """
    file = path / "Dockerfile" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no Dockerfile", str(file))
    folder = str(file.parent.resolve())
    with engine.client(STEP_TIMEOUT_S) as api, failures(engine.url):
        options = {"dockerfile": file.name, "rm": True, "forcerm": True, "decode": True}
        options["timeout"] = STEP_TIMEOUT_S  # between two lines
        _follow(api.build(path=folder, tag=tag, **options), f"{file} could not be built", say)
    return image_id(engine, tag)


def pull(engine: Engine, image: str, say: Say = print) -> str:
    """The id of `image`, fetched from its registry.

    Raises:
        StartFailed: the engine could not fetch it.
    """
    tag = None if ":" in image.rpartition("/")[2] or "@" in image else "latest"
    with engine.client(STEP_TIMEOUT_S) as api, failures(engine.url):
        lines = api.pull(image, tag=tag, stream=True, decode=True)
        _follow(lines, f"{image} could not be fetched", say)
    return image_id(engine, image)


def _follow(lines: Iterable[dict[str, Any]], failed: str, say: Say) -> None:
    """Pass on what the engine says of a long job; it reports a failure in the same stream."""
    last = ""
    for line in lines:
        if "error" in line:
            raise StartFailed(f"{failed}: {line['error'].strip()} ({last})")
        # Lines with an id are the progress of one layer, many times a second.
        text = str(line.get("stream") or ("" if "id" in line else line.get("status", ""))).strip()
        if text:
            say(text)
            last = text


def image_id(engine: Engine, name: str) -> str:
    """The id of the image that is named so now."""
    with failures(engine.url):
        return str(engine.api.inspect_image(name)["Id"])


def fetch(packages: Sequence[str], folder: Path) -> list[Path]:
    """The files of `packages` and of all that they need on an empty machine, fetched by apt."""
    (folder / "status").touch()
    options = ["-o", f"Dir::State::status={folder / 'status'}", "-o", "Debug::NoLocking=1"]
    plan = _run(["apt-get", *options, "-s", "--no-install-recommends", "install", *packages])
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    names = [name for name in names if not _LEFT_OUT.fullmatch(name)]
    if not names:
        raise NoSafeSandbox("apt knows none of the packages; run: apt-get update")
    debs = folder / "debs"
    debs.mkdir()
    _run(["apt-get", "-q", "download", *names], cwd=debs)
    return sorted(debs.glob("*.deb"))


def _run(argv: Sequence[str], cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=STEP_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise NoSafeSandbox(f"{argv[0]} took more than {STEP_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        words = " ".join(done.stderr.split())[-400:]
        raise NoSafeSandbox(f"{argv[0]} failed ({words}); run `apt-get update` and try again")
    return done.stdout


def unpack(debs: Iterable[Path], root: Path) -> None:
    """Lay the files of `debs` and what a box needs besides into `root`."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    leave = [f"--exclude={path}" for path in _LEFT_OUT_FILES]
    options = ["--keep-directory-symlink", "--no-same-owner", *leave, "-C", str(root)]
    for deb in debs:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as files:
            tar = subprocess.run(["tar", "-x", *options], stdin=files.stdout, capture_output=True)
        if tar.returncode or files.returncode:
            raise NoSafeSandbox(f"{deb.name} could not be unpacked: {tar.stderr.decode()[-300:]}")
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path, text in _FILES.items():
        (root / path).write_text(text)
    for path, target in _ALTERNATIVES.items():
        with contextlib.suppress(FileExistsError):
            (root / path).symlink_to(target)
    os.chmod(root / "tmp", 0o1777)


def _import(engine: Engine, root: Path, tag: str) -> str:
    """The id of an image of one layer with the files of `root`, all of them root's."""
    pack = ["tar", "-C", str(root), "--owner=0", "--group=0", "--numeric-owner", "-c", "."]
    with (
        subprocess.Popen(pack, stdout=subprocess.PIPE) as tar,
        engine.client(STEP_TIMEOUT_S) as api,
        failures(engine.url),
    ):
        assert tar.stdout is not None
        api.import_image_from_stream(tar.stdout, repository=tag, changes=_config())
    if tar.returncode:
        raise StartFailed(f"tar could not pack {root}: it ended with {tar.returncode}")
    return image_id(engine, tag)


def _config() -> list[str]:
    return ["WORKDIR /workspace", "ENV PATH=/usr/local/bin:/usr/bin:/bin", "USER 65534:65534"]


def _compile_python(engine: Engine, image: str, tag: str) -> str:
    """The id of `image` with its Python library compiled, so that boxes need not do it."""
    name = f"turnwise-build-{secrets.token_hex(6)}"
    config = {
        "Image": image,
        "Entrypoint": ["python3", "-I", "-c", _COMPILE],
        "User": "0:0",
        "NetworkDisabled": True,
        "HostConfig": {"NetworkMode": "none", "CapDrop": ["ALL"], "LogConfig": {"Type": "none"}},
    }
    with engine.client(STEP_TIMEOUT_S) as api, failures(engine.url):
        try:
            api.create_container_from_config(config, name=name)
            api.start(name)
            if code := api.wait(name, timeout=STEP_TIMEOUT_S)["StatusCode"]:
                raise StartFailed(f"compileall ended with {code}")
            made = api.commit(name, repository=tag, changes=_config())
            return str(made["Id"])
        finally:
            quietly(lambda: api.remove_container(name, force=True))
