"""Laws of snapshots, forks and forked kernels: what is copied, what is apart, what is refused."""

import io
import os
import random
import tarfile
import time

import pytest
from boxes import need_bubblewrap
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.sandboxes import Limits, SandboxDied, open_sandbox, snapshot
from turnwise.sandboxes.guest_pack import Packer, unpack
from turnwise.sandboxes.guest_tar import members, stays_inside
from turnwise.sandboxes.snapshot import Snapshot, check_archive, open_copies

SMALL = Limits(memory_mb=128, pids=24, disk_mb=4, file_bytes=3 << 20, inodes=300, wall_s=10.0)


def opened():
    need_bubblewrap()
    return open_sandbox("bubblewrap", limits=SMALL)


@pytest.fixture(scope="module")
def box():
    with opened() as box:
        yield box


@pytest.fixture
def own_box():
    with opened() as box:
        yield box


def says(box, code, kernel="main"):
    result = box.cell(code, kernel=kernel)
    assert result.exit_code == 0, result.text
    return result.stdout.decode().strip()


# ---------------------------------------------------------------- forked kernels


def test_a_forked_kernel_has_the_state_and_from_then_on_its_own(box):
    says(box, "import math\nkept = [1]\ndef f(): return len(kept)")
    box.fork_kernel("main", into="branch")
    says(box, "kept += [2, 3]", "branch")
    assert says(box, "print(kept, f(), math.pi > 3)") == "[1] 1 True"
    assert says(box, "print(kept, f(), math.pi > 3)", "branch") == "[1, 2, 3] 3 True"


def test_forks_of_forks_are_kernels_like_any_other(box):
    says(box, "depth = 0")
    for i in range(4):
        box.fork_kernel("main" if i == 0 else f"deep-{i - 1}", into=f"deep-{i}")
        says(box, "depth += 1", f"deep-{i}")
    assert [says(box, "print(depth)", f"deep-{i}") for i in range(4)] == ["1", "2", "3", "4"]
    pids = {says(box, "import os; print(os.getpid())", f"deep-{i}") for i in range(4)}
    assert len(pids) == 4
    result = box.cell("print('begun', flush=True); 1 / 0", kernel="deep-3")
    assert (result.exit_code, result.stdout) == (1, b"begun\n") and b"ZeroDiv" in result.stderr
    for i in range(4):
        assert box.cell("import os; os._exit(4)", kernel=f"deep-{i}").exit_code == 4


def test_forking_back_undoes_and_ends_what_ran_under_the_name(box):
    says(box, "kept = 'before'", "undo")
    box.fork_kernel("undo", into="saved")
    says(box, "kept = 'after'; import subprocess; p = subprocess.Popen(['sleep', '77'])", "undo")
    box.fork_kernel("saved", into="undo")
    assert says(box, "print(kept)", "undo") == "before"
    assert says(box, "print(kept)", "saved") == "before"
    assert b"sleep" not in box.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout


def test_both_kernels_keep_their_random_numbers_where_they_were(box):
    says(box, "import random; random.seed(5); random.random()", "dice")
    box.fork_kernel("dice", into="dice-2")
    expected = random.Random(5)
    expected.random()
    number = str(expected.random())
    assert says(box, "print(random.random())", "dice") == number
    assert says(box, "print(random.random())", "dice-2") == number


def test_a_late_cell_in_a_fork_is_interrupted_and_spares_its_siblings(box):
    says(box, "kept = 5", "calm")
    box.fork_kernel("calm", into="late")
    result = box.cell("import time; time.sleep(77)", kernel="late", timeout_s=0.2)
    assert (result.exit_code, result.timed_out, result.state_lost) == (130, True, False)
    assert says(box, "print(kept)", "late") == says(box, "print(kept)", "calm") == "5"
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(77)"
    assert box.cell(deaf, kernel="late", timeout_s=0.2).state_lost
    assert says(box, "print(kept)", "calm") == "5"


def test_sweeps_after_exec_spare_forks_and_what_they_started(box):
    says(box, "import subprocess", "parent")
    box.fork_kernel("parent", into="child")
    says(box, "p = subprocess.Popen(['sleep', '76'])", "child")
    box.exec(["sh", "-c", "setsid sleep 78 &"])
    assert says(box, "print(p.poll()); p.kill(); p.wait()", "child") == "None"


def test_a_kernel_with_threads_forks_and_only_its_main_thread_is_copied(box):
    code = "import threading, time\nt = threading.Thread(target=time.sleep, args=(5,), daemon=True)"
    says(box, code + "\nt.start()", "threads")
    box.fork_kernel("threads", into="alone")
    assert says(box, "print(threading.active_count())", "threads") == "2"
    assert says(box, "print(threading.active_count())", "alone") == "1"


def test_a_kernel_that_ended_or_is_stuck_cannot_be_forked_and_says_so(own_box):
    own_box.cell("import os, threading; threading.Timer(0.05, os._exit, [5]).start()")
    time.sleep(0.3)
    with pytest.raises(ProcessLookupError, match="had ended"):
        own_box.fork_kernel()
    assert says(own_box, "print('fresh')") == "fresh"
    says(own_box, "import os\nos.fork = lambda: 1 / 0")
    with pytest.raises(OSError):
        own_box.fork_kernel()
    assert own_box.exec(["true"]).exit_code == 0, "the box is as good as before"


LIE = """
import gc, os, socket
cells = next(found for found in gc.get_objects() if type(found).__name__ == "Cells")
def branch(ends):
    {body}
    return 0
cells.branch = branch
"""


@pytest.mark.parametrize(
    "body",
    [
        "socket.socket(fileno=ends[0]).sendall(b'\\1')",  # it is no child of the guest's
        "os.fork() or (socket.socket(fileno=ends[0]).sendall(b'\\1'), os._exit(0))",
        "socket.socket(fileno=ends[0]).sendall(b'garbage' * 9)",
        "[os.close(fd) for fd in ends]",
        "os._exit(0)",
    ],
)
def test_a_kernel_that_lies_about_its_copy_gets_none_and_harms_nobody(own_box, body):
    says(own_box, "kept = 7", "honest")
    says(own_box, LIE.format(body=body))
    with pytest.raises(OSError):
        own_box.fork_kernel(into="copy")
    assert says(own_box, "print(kept)", "honest") == "7"
    assert "fresh" in says(own_box, "print('fresh')", "copy")
    own_box.fork_kernel("honest", into="copy")
    assert says(own_box, "print(kept)", "copy") == "7"


def test_a_full_box_refuses_a_fork_and_keeps_its_kernels(own_box):
    says(own_box, "kept = 6")
    made = 0
    with pytest.raises(OSError, match="could not fork: the box is at a limit"):
        for made in range(2 * SMALL.pids):
            own_box.fork_kernel(into=f"k{made}")
    assert 10 < made < SMALL.pids
    assert says(own_box, "print(kept)") == says(own_box, "print(kept)", "k0") == "6"


def test_a_kernel_is_not_forked_into_itself(box):
    with pytest.raises(ValueError, match="itself"):
        box.fork_kernel("main", into="main")


def test_many_forks_leave_no_process_and_no_descriptor_behind(box):
    for _ in range(40):
        box.fork_kernel("main", into="again")
    kernels = says(box, "import os; print(sum(n.isdigit() for n in os.listdir('/proc')))")
    before = int(kernels)
    for _ in range(10):
        box.fork_kernel("main", into="again")
    assert int(says(box, "print(sum(n.isdigit() for n in os.listdir('/proc')))")) == before
    open_files = says(box, "print(len(os.listdir('/proc/self/fd')))", "again")
    assert int(open_files) < 10


# ---------------------------------------------------------------- snapshots and forked boxes

TREE = """
mkdir -p a/b empty closed; printf 'x\\000\\377' > a/b/data; echo '#!/bin/sh' > run; chmod 755 run
ln -s b/data a/near; ln -s ../run a/up; touch -d @1000000 a/b/data
touch closed/in; chmod 500 closed; echo odd > "$(printf 'o\\377')"
long=$(printf 'n%.0s' $(seq 120)); mkdir $long; printf deep > $long/$long
"""
LEFT_OUT = "ln -s /etc/passwd out; ln -s a/../../x sly; mkfifo pipe; touch shut; chmod 0 shut"


@pytest.fixture(scope="module")
def tree():
    """(box with files of every kind, its snapshot, a fork of it)."""
    with opened() as box:
        assert box.shell(TREE + LEFT_OUT).text == ""
        taken = box.snapshot()
        (copy,) = box.fork()
        with copy:
            yield box, taken, copy


def test_a_fork_has_the_same_files_modes_times_and_links(tree):
    box, _, copy = tree
    listing = "find . -path ./out -o -path ./sly -o -path ./pipe -o -path ./shut -o -type f"
    listing += " -printf '%p %m %s %T@\\n' -o -type d -printf '%p %m\\n' -o -printf '%p %l\\n'"
    assert copy.shell(f"{{ {listing}; }} | sed 's/[.][0-9]*$//' | sort").stdout == (
        box.shell(f"{{ {listing}; }} | sed 's/[.][0-9]*$//' | sort").stdout
    )
    assert copy.get("a/b/data") == b"x\0\xff" and copy.shell("cat a/near").stdout == b"x\0\xff"


def test_a_snapshot_names_what_it_left_out(tree):
    _, taken, copy = tree
    assert set(taken.left_out) == {"out", "sly", "pipe", "shut"} and taken.left_out_count == 4
    assert copy.shell("ls out sly pipe shut").exit_code != 0
    assert taken.kinds == {"files"}


def test_the_snapshot_of_a_fork_is_the_snapshot_it_was_made_from(tree):
    _, taken, copy = tree
    assert copy.snapshot().id == taken.id
    copy.put("a/b/data", b"changed")
    assert copy.snapshot().id != taken.id


def test_forks_share_nothing_afterwards(tree):
    box, taken, _ = tree
    with box.fork(1, taken)[0] as one, box.fork(1, taken)[0] as two:
        one.put("a/b/data", b"one")
        assert two.get("a/b/data") == box.get("a/b/data") == b"x\0\xff"
        assert one.spec == box.spec and one.backend == box.backend and one.id != two.id


def test_the_host_and_any_tar_program_read_the_same_files(tree):
    _, taken, _ = tree
    found = taken.files()
    with tarfile.open(fileobj=io.BytesIO(taken.data)) as archive:
        other = {m.name: archive.extractfile(m).read() for m in archive if m.isreg()}
    assert found == other and found["n" * 120 + "/" + "n" * 120] == b"deep"


def test_what_is_over_a_limit_is_refused_and_no_snapshot_comes_back(own_box):
    own_box.shell("head -c 2000000 /dev/zero > one; cp one two")
    with pytest.raises(OSError, match=f"more than {SMALL.file_bytes} bytes"):
        own_box.snapshot()
    own_box.shell("rm one two; truncate -s 3M sparse; truncate -s 3M sparse2")
    with pytest.raises(OSError, match="more than"):
        own_box.snapshot()
    own_box.shell("rm sparse*; for i in $(seq 200); do mkdir -p $(printf 'd/%.0s' $(seq $i)); done")
    with pytest.raises(OSError, match="nested deeper"):
        own_box.snapshot()
    assert own_box.exec(["rm", "-r", "d"]).exit_code == 0
    assert own_box.snapshot().files() == {}


def test_more_entries_than_the_box_may_hold_are_refused(tmp_path):
    for i in range(5):
        (tmp_path / str(i)).touch()
    assert len(b"".join(Packer(1 << 20, 5).pack(str(tmp_path)))) == 7 * 512
    with pytest.raises(OSError, match="more than 2048 bytes"):
        Packer(2048, 5).pack(str(tmp_path))
    (tmp_path / "4").unlink()
    (tmp_path / "4").mkdir()
    with pytest.raises(OSError, match="more than 2559 bytes"):
        Packer(2559, 5).pack(str(tmp_path))
    with pytest.raises(OSError, match="more than 4 files"):
        Packer(1 << 20, 4).pack(str(tmp_path))


def test_a_snapshot_that_fails_in_the_middle_raises(own_box):
    own_box.put("file", b"1")
    own_box.close()
    for call in (own_box.snapshot, own_box.fork):
        with pytest.raises(SandboxDied):
            call()


def test_forks_come_all_or_none():
    class Fake:
        closed = False

        def close(self):
            self.closed = True

    made = []

    def open_box():
        if len(made) == 3:
            raise SandboxDied("no more")
        made.append(Fake())
        return made[-1]

    with pytest.raises(SandboxDied):
        open_copies(open_box, lambda box: None, 6)
    assert made and all(box.closed for box in made)

    def full(box):
        raise OSError("disk full")

    made.clear()
    with pytest.raises(OSError, match="disk full"):
        open_copies(open_box, full, 1)
    assert made[0].closed
    with pytest.raises(ValueError, match="1 to 256"):
        open_copies(open_box, full, 0)


def test_equal_data_has_equal_ids_and_other_data_others():
    assert Snapshot(b"a").id == Snapshot(b"a").id != Snapshot(b"b").id
    with pytest.raises(AttributeError):
        Snapshot(b"a").id = Snapshot(b"b").id


# ---------------------------------------------------------------- archives that nobody should open


def archive(*entries):
    """A POSIX tar of (name, kind, target or content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                file.addfile(info)
    return out.getvalue()


SYM, REG, DIR = tarfile.SYMTYPE, tarfile.REGTYPE, tarfile.DIRTYPE
EVIL = [
    archive(("/etc/x", REG, b"1")),
    archive(("../x", REG, b"1")),
    archive(("a/../../x", REG, b"1")),
    archive(("a/" * 60 + "../" * 61 + "x", REG, b"1")),
    archive(("l", SYM, "/etc")),
    archive(("l", SYM, "..")),
    archive(("a/l", SYM, "../../x")),
    archive(("a/l", SYM, "b/../../..")),
    archive(("a/l", SYM, "x" * 120 + "/../../../..")),
    archive(("n" * 20_000, REG, b"1")),
    archive(("l", tarfile.LNKTYPE, "x")),
    archive(("p", tarfile.FIFOTYPE, "")),
    archive(("c", tarfile.CHRTYPE, "")),
    archive(("b", tarfile.BLKTYPE, "")),
    archive(("f", REG, b"1" * 600))[:700],
    archive(("f", REG, b"1"))[:1024],
    b"",
    b"\0" * 100,
    b"garbage" * 1000,
]


@pytest.mark.parametrize("data", EVIL)
def test_archives_that_lead_out_or_are_cut_short_are_refused_on_the_host_and_in_the_box(data, box):
    with pytest.raises(ValueError):
        check_archive(data, SMALL)
    with pytest.raises(ValueError):
        box.fork(1, Snapshot(data))
    with pytest.raises(OSError):
        box.unpack(data)


def test_a_file_that_is_cut_short_or_whose_entry_was_touched_is_never_yielded():
    whole = archive(("f", REG, b"1" * 600))
    with pytest.raises(ValueError, match="cut short"):
        next(members(whole[:700]))
    with pytest.raises(ValueError, match="checksum"):
        next(members(b"g" + whole[1:]))
    assert next(members(whole)).data == b"1" * 600


def test_no_member_is_written_through_a_link_that_was_there_before(own_box):
    own_box.exec(["ln", "-s", "/tmp", "link"])
    data = archive(("link/x", REG, b"1"))
    check_archive(data, SMALL)
    with pytest.raises(OSError):
        own_box.unpack(data)
    with pytest.raises(OSError):
        own_box.unpack(archive(("in", SYM, "link"), ("in/y", REG, b"1")))
    assert own_box.exec(["ls", "-A", "/tmp"]).stdout == b""


def test_an_archive_of_too_many_entries_or_bytes_is_refused():
    many = archive(*((f"f{i}", REG, b"") for i in range(SMALL.inodes + 1)))
    with pytest.raises(ValueError, match=r"Limits\.inodes"):
        check_archive(many, SMALL)
    with pytest.raises(ValueError, match=r"Limits\.file_bytes"):
        check_archive(archive(("f", REG, bytes(SMALL.file_bytes))), SMALL)


def test_archives_of_pythons_own_tarfile_are_taken(box):
    data = archive(("./d", DIR, ""), ("d/é" + "x" * 150, REG, b"1"), ("d/l", SYM, "é"))
    assert Snapshot(data).files() == {"d/é" + "x" * 150: b"1"}
    with box.fork(1, Snapshot(data))[0] as copy:
        assert copy.get("d/é" + "x" * 150) == b"1"


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        (b"l", b"f", True),
        (b"a/l", b"../f", True),
        (b"a/b/l", b"../../f", True),
        (b"a/l", b"../../f", False),
        (b"l", b"a/..", False),
        (b"a/l", b"../b/../c", False),
        (b"l", b"./f", True),
        (b"l", b"", False),
        (b"l", b"/", False),
    ],
)
def test_links_may_step_up_only_at_first_and_only_so_far(path, target, inside):
    assert stays_inside(path, target) is inside


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_archive_with_changed_bytes_is_read_or_refused_and_nothing_else(data):
    whole = bytearray(archive(("a/b", REG, b"12345"), ("a/l", SYM, "b"), ("n" * 130, REG, b"")))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        for member in members(bytes(whole[:cut])):
            assert not member.name.startswith(b"/") and b".." not in member.name.split(b"/")
    except ValueError:
        pass


NAMES = st.binary(min_size=1, max_size=140).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..")
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.tuples(NAMES, NAMES), st.binary(max_size=1500), max_size=6))
def test_what_is_packed_is_unpacked_the_same(tmp_path_factory, tree):
    here, there = (tmp_path_factory.mktemp("tar") for _ in range(2))
    for (folder, name), content in tree.items():
        place = os.path.join(os.fsencode(here), folder)
        os.makedirs(place, exist_ok=True)
        with open(os.path.join(place, name), "wb") as file:
            file.write(content)
    data = b"".join(Packer(1 << 20, 100).pack(str(here)))
    unpack(str(there), data)
    assert b"".join(Packer(1 << 20, 100).pack(str(there))) == data
    found = {os.fsencode(name): content for name, content in Snapshot(data).files().items()}
    assert found == {b"/".join(path): content for path, content in tree.items()}


def test_the_reader_is_one_for_host_and_guest():
    assert snapshot.members is members
