"""Frames that went wrong, from the guest and to it: typed errors, no hang, no memory taken."""

import contextlib
import json
import random
import select
import socket
import struct
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from boxes import need_bubblewrap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnwise.sandboxes import Limits, ProtocolError, SandboxDied, SandboxSpec, open_sandbox
from turnwise.sandboxes.channel import Channel, GuestBox
from turnwise.sandboxes.guest_frames import BadFrame, header, max_body_bytes, sizes

SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=5.0)
MAX_BODY = 1 << 16
DEEP = b'{"id":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = ("id", "errno", "message", "exit", "out", "err", "truncated", "wall_s", "timed_out")
replies = st.dictionaries(st.sampled_from(FIELDS), json_values)
GOOD = {
    **{"id": 1, "exit": 0, "out": 0, "err": 0, "truncated": 0, "wall_s": 0.1},
    **{"timed_out": False, "state_lost": False},
}


def frame(head, body=b""):
    return struct.pack(">II", len(head), len(body)) + head + body


def fake_box(answer, spec=None):
    """A box whose guest says `answer` to the first request and hangs up."""
    here, there = socket.socketpair()

    def guest():
        with there, contextlib.suppress(OSError):  # the box may be closed before it asks
            there.recv(1 << 16)
            there.sendall(answer)

    thread = threading.Thread(target=guest)
    thread.start()
    box = GuestBox(
        "fake", "fake", spec or SandboxSpec(limits=SMALL), Channel(here, MAX_BODY), lambda: ""
    )
    return box, thread


def ask(answer, call=lambda box: box.cell("1")):
    """(what a call makes of `answer`: its result or error, whether the box lives after it)."""
    box, thread = fake_box(answer)
    try:
        result = call(box)
    except (SandboxDied, ProtocolError, OSError) as error:
        result = error
    lives = box.alive
    thread.join()
    box.close()
    box._channel.hang_up()
    return result, lives


CALLS = [
    lambda box: box.cell("1"),
    lambda box: box.shell("1"),
    lambda box: box.get("x", max_bytes=10),
    lambda box: box.put("x", b""),
    lambda box: box.snapshot(),
    lambda box: box.fork_kernel(),
]

# ---------------------------------------------------------------- the host reads what a guest sent


@QUICK
@given(st.binary(max_size=300), st.sampled_from(CALLS))
def test_any_bytes_are_a_typed_error(answer, call):
    result, _ = ask(answer, call)
    assert isinstance(result, SandboxDied | ProtocolError)


@QUICK
@given(replies, st.binary(max_size=30), st.sampled_from(CALLS))
def test_any_object_is_a_result_or_a_typed_error(reply, body, call):
    result, lives = ask(frame(json.dumps({"id": 1, **reply}).encode(), body), call)
    if isinstance(result, SandboxDied | ProtocolError):
        assert not lives, "who sends nonsense once is not asked again"


@QUICK
@given(st.integers(0, 200))
def test_a_frame_that_is_cut_anywhere_is_a_dead_box(cut):
    whole = frame(json.dumps({**GOOD, "out": 50}).encode(), b"x" * 50)
    result, _ = ask(whole[: min(cut, len(whole) - 1)])
    assert isinstance(result, SandboxDied)
    assert ask(whole)[0].stdout == b"x" * 50


@pytest.mark.parametrize(
    "answer",
    [
        frame(DEEP),
        frame(b'{"id":' + b"9" * 60_000 + b"}"),
        frame(b'{"id":1,"errno":1e999}'),
        frame(b'{"id":1,"errno":true}'),
        frame(b'{"id":1,"errno":[]}'),
        frame(b'{"id":true}'),
        frame(b'{"id":2}'),
        frame(json.dumps(GOOD).encode()) + b"more",
        frame(b"[1]"),
        frame(b"\xff\xfe"),
        struct.pack(">II", 1 << 17, 0),
        struct.pack(">II", 2, 1 << 31) + b"{}",
        struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF),
        *(
            frame(json.dumps({**GOOD, name: value}).encode())
            for name in ("exit", "out", "err", "truncated", "wall_s")
            for value in (-1, "1", None, [0], 1e400, float("nan"), 1 << 70)
        ),
        frame(json.dumps({**GOOD, "exit": 256}).encode()),
        frame(json.dumps({**GOOD, "out": 1, "err": 1}).encode(), b"x"),
    ],
)
def test_what_no_guest_of_ours_sends_gives_the_box_up(answer):
    result, lives = ask(answer)
    assert isinstance(result, ProtocolError) and not lives


def test_more_of_a_file_than_was_asked_for_is_refused():
    result, _ = ask(frame(b'{"id":1}', b"x" * 11), lambda box: box.get("x", max_bytes=10))
    assert isinstance(result, ProtocolError)
    assert (
        ask(frame(b'{"id":1}', b"x" * 10), lambda box: box.get("x", max_bytes=10))[0] == b"x" * 10
    )


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ({}, bytes(1024)),
        ({"left_out": [], "left_out_count": 0}, b"garbage" * 200),
        ({"left_out": [1], "left_out_count": 1}, bytes(1024)),
        ({"left_out": [], "left_out_count": -1}, bytes(1024)),
        ({"left_out": ["a"], "left_out_count": 0}, bytes(1024)),
        ({"left_out": {}, "left_out_count": 0}, bytes(1024)),
    ],
)
def test_a_snapshot_that_is_none_is_never_a_success(head, body):
    result, lives = ask(frame(json.dumps({"id": 1, **head}).encode(), body), lambda b: b.snapshot())
    assert isinstance(result, ProtocolError) and not lives


def test_an_error_of_the_guest_is_an_os_error_and_the_box_lives():
    result, lives = ask(frame(b'{"id":1,"errno":2,"message":"' + b"m" * 9000 + b'"}'))
    assert lives and isinstance(result, FileNotFoundError) and len(str(result)) < 500


def test_announced_sizes_take_no_memory_before_they_arrive():
    tracemalloc.start()
    try:
        for _ in range(50):
            ask(struct.pack(">II", 2, 0xFFFFFFFF) + b"{}")
            ask(struct.pack(">II", 0xFFFFFFF, 7))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_guest_that_trickles_is_given_up_at_the_deadline():
    here, there = socket.socketpair()
    stop = threading.Event()

    def trickle():
        there.sendall(struct.pack(">II", 60_000, 0))
        while not stop.wait(0.02):
            there.sendall(b" ")

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(SandboxDied, match="did not answer"):
            Channel(here, MAX_BODY).call("ping", {}, timeout_s=0.3)
    finally:
        stop.set()
        thread.join()
    assert time.monotonic() - began < 1.5
    here.close()
    there.close()


def test_requests_that_no_guest_would_take_are_refused_before_they_are_sent():
    box, thread = fake_box(b"")
    with pytest.raises(OSError, match="over"):
        box.exec(["cat"], stdin=bytes(SMALL.file_bytes + 1))
    with pytest.raises(OSError, match="too long"):
        box.exec(["echo", "x" * (1 << 24)])
    assert box.alive
    box._channel.hang_up()
    thread.join()


# ---------------------------------------------------------------- the guest reads what a host sent


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=8, max_size=8))
def test_the_guest_takes_no_size_over_its_limit(first):
    head, body = struct.unpack(">II", first)
    try:
        assert sizes(first, 1000) == (head, body)
    except BadFrame:
        assert head > 1 << 24 or body > 1000
    else:
        assert head <= 1 << 24 and body <= 1000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100) | json_values.map(lambda v: json.dumps(v).encode()))
def test_the_guest_takes_a_header_that_is_one_and_refuses_the_rest(data):
    try:
        found = header(data)
    except BadFrame:
        return
    assert isinstance(found["op"], str) and type(found["id"]) is int


@pytest.mark.parametrize("data", [DEEP, b"", b"null", b'{"op":1,"id":1}', b'{"op":"x","id":true}'])
def test_headers_that_nobody_sends_are_refused_by_the_guest(data):
    with pytest.raises(BadFrame):
        header(data)


def test_every_body_that_the_host_sends_is_one_that_the_guest_takes():
    for file_bytes in (1, 1 << 20, 100 << 20):
        longest = max(file_bytes, 1 << 20)
        assert sizes(struct.pack(">II", 2, longest), max_body_bytes({"file_bytes": file_bytes}))


REQUEST = b'{"op": "exec", "id": 9, "argv": ["true"], "cwd": null, "env": {}, "timeout_s": 1}'
GARBAGE = [
    b"garbage that is no frame at all",
    b"\0" * 8,
    struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF),
    struct.pack(">II", 2, 0xFFFFFFFF) + b"{}",
    frame(b"[]"),
    frame(b"\xff\xfe\xfd"),
    frame(DEEP),
    frame(b'{"op": "no such", "id": 1}'),
    frame(b'{"op": "hello", "id": 1}'),
    frame(b'{"op": "exec", "id": 1}'),
    frame(b'{"op": "cell", "id": 1, "kernel": [], "timeout_s": "x"}', b"1"),
    frame(b'{"op": "shell", "id": 1, "name": {}, "timeout_s": null}', b"1"),
    frame(b'{"op": "fork_kernel", "id": 1}'),
    frame(b'{"op": "get", "id": 1, "path": 5}'),
    frame(b'{"op": "put", "id": 1, "path": "x", "mode": "x"}'),
    frame(REQUEST) * 2 + b"trailing",
]


@pytest.mark.parametrize("sent", GARBAGE, ids=range(len(GARBAGE)))
def test_a_guest_that_reads_garbage_ends_and_its_box_with_it(sent):
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=SMALL) as box:
        guest_fd = box._end.peek()[1].__self__.guest
        box._channel.sock.sendall(sent)
        assert select.select([guest_fd], [], [], 5.0)[0], "it hangs"
        with pytest.raises(SandboxDied):
            box.exec(["true"])


def test_a_frame_that_never_ends_does_not_outlast_the_lifetime():
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=Limits(lifetime_s=0.5)) as box:
        guest_fd = box._end.peek()[1].__self__.guest
        box._channel.sock.sendall(struct.pack(">II", 100, 0) + b"{")
        assert select.select([guest_fd], [], [], 5.0)[0], "it hangs"


def test_a_reply_that_nobody_reads_does_not_outlast_the_lifetime():
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=Limits(lifetime_s=1.0)) as box:
        guest_fd = box._end.peek()[1].__self__.guest
        box.put("big", bytes(4 << 20))
        box._channel.sock.sendall(frame(b'{"op":"get","id":9,"path":"big","max_bytes":9999999}'))
        assert select.select([guest_fd], [], [], 6.0)[0], "it hangs"


def test_strange_but_honest_requests_are_answered():
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=SMALL) as box:
        for path in ("a\0b", "\ud800", "x" * 5000, ""):
            with pytest.raises(OSError):
                box.get(path)
        assert box.exec(["echo", "é\udcff"]).stdout == "é".encode() + b"\xff\n"
        assert box.cell("print('é\\ud800'.encode('utf-8', 'replace'))").exit_code == 0
        assert box.cell("'\ud800'").exit_code == 1
        assert box.shell("echo \ud800").exit_code == 0
        assert box.exec(["true"], env={"A\0": "b"}).exit_code == 126
        assert box.cell("print(1)").stdout == b"1\n"


def resident_kb(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def odd_calls(box, rng):
    """Requests of every kind, most of which fail, each with other names and contents."""
    word = "".join(rng.choices("abc/.\0é\udcff", k=rng.randrange(60)))
    data = rng.randbytes(rng.randrange(20_000))
    calls = [
        lambda: box.get(word),
        lambda: box.put(word, data),
        lambda: box.exec([word.replace("\0", "") or "true"], stdin=data, env={word: word}),
        lambda: box.exec(["cat"], stdin=data),
        lambda: box.cell(word),
        lambda: box.cell(f"print({word!r} * 3000)"),
        lambda: box.shell(word.replace("\0", "")),
        lambda: box.snapshot(),
        lambda: box.fork_kernel(into=f"branch-{rng.randrange(3)}"),
    ]
    with contextlib.suppress(OSError, ValueError):
        rng.choice(calls)()


def test_a_guest_that_is_asked_odd_things_all_day_does_not_grow():
    need_bubblewrap()
    rng = random.Random(0)
    with open_sandbox("bubblewrap", limits=SMALL) as box:
        guest = box._end.peek()[1].__self__.pid
        for _ in range(200):
            odd_calls(box, rng)
        before = resident_kb(guest)
        for _ in range(700):
            odd_calls(box, rng)
        assert resident_kb(guest) - before < 2000, "kB"
        assert box.cell("print(1)").stdout == b"1\n"
