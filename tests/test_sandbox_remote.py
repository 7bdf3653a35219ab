"""Boxes over HTTP: the same promises, nothing runs twice, and no lease outlives its client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from boxes import need_bubblewrap, processes_with, wait_until

from turnwise.sandboxes import (
    Limits,
    NetPolicy,
    NoSafeSandbox,
    ProtocolError,
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
    open_sandbox,
)
from turnwise.sandboxes import remote as remote_module
from turnwise.sandboxes.remote import Server, connect
from turnwise.sandboxes.remote_server import Lender, is_loopback, server
from turnwise.sandboxes.remote_wire import pack, pack_error, unpack, unpack_error, unpack_spec

if not os.environ.get("CI"):  # there, its absence is an error
    pytest.importorskip("httpx", reason="needs turnwise[remote]")
    pytest.importorskip("uvicorn", reason="needs turnwise[remote]")

TOKEN = "a token that only this test knows"
SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, file_bytes=1 << 20, wall_s=10.0)
SPEC = SandboxSpec(limits=SMALL)


@contextlib.contextmanager
def served(lender: Lender, port: int = 0):
    """The URL of a server in this process, on loopback; it ends with the block."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        running = server(lender, listener)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            lender.close()
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def lender():
    need_bubblewrap()
    return Lender("bubblewrap", token=TOKEN, max_live=6)


@pytest.fixture(scope="module")
def url(lender):
    with served(lender) as url:
        yield url


@pytest.fixture
def there(url) -> Server:
    return connect(url, TOKEN)


@pytest.fixture
def box(there):
    with there.open_box(SPEC) as box:
        yield box


# ---------------------------------------------------------------- the promises of a sandbox


def test_a_remote_box_keeps_the_protocol(box):
    assert isinstance(box, Sandbox) and box.backend == "remote" and box.alive
    result = box.exec(["sh", "-c", "cat; pwd; echo $A; echo err >&2; exit 3"], stdin=b"in\n",
                      cwd="/tmp", env={"A": "b"})  # fmt: skip
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"in\n/tmp\nb\n", b"err\n")
    assert box.cell("kept = 41").exit_code == 0
    assert box.cell("print(kept + 1)").stdout == b"42\n"
    assert b"ZeroDivisionError" in box.cell("1 / 0").stderr
    late = box.cell("import time; time.sleep(9)", timeout_s=0.2)
    assert late.timed_out and late.wall_s < 5


def test_files_travel_as_they_are(box):
    data = os.urandom(300_000)
    box.put("a/b", data, mode=0o600)
    assert box.get("a/b") == data
    with pytest.raises(FileNotFoundError, match="none"):
        box.get("none")
    with pytest.raises(OSError, match="longer"):
        box.get("a/b", max_bytes=10)
    with pytest.raises(OSError, match="limit"):
        box.put("large", b"x" * (SMALL.file_bytes + 1))
    assert box.alive


def test_shells_snapshots_and_forks_work_from_afar(box, there):
    assert box.shell("cd /tmp; x=1").exit_code == 0
    assert box.shell("echo $x $PWD").stdout == b"1 /tmp\n"
    box.put("file", b"before")
    kept = box.snapshot()
    box.put("file", b"after")
    one, two = box.fork(2, kept)
    with one, two:
        assert one.get("file") == two.get("file") == b"before"
        one.put("file", b"one's own")
        assert two.get("file") == b"before"
        assert {lease["id"] for lease in there.leases()} >= {box.id, one.id, two.id}
    with box.fork()[0] as three:
        assert three.get("file") == b"after"


def test_bad_arguments_are_the_callers_mistakes_on_both_sides(box):
    for argv in ([], "ls", ["a\0b"]):
        with pytest.raises(ValueError, match="list of words"):
            box.exec(argv)
    with pytest.raises(ValueError, match="timeout_s"):
        box.cell("1", timeout_s=-1)
    assert box.alive


def test_close_is_idempotent_ends_the_lease_and_later_calls_say_so(there):
    box = there.open_box(SPEC)
    box.close()
    box.close()
    assert box.id not in [lease["id"] for lease in there.leases()]
    with pytest.raises(SandboxDied, match="it was closed") as caught:
        box.cell("1")
    assert caught.value.retryable


def test_a_box_that_dies_over_there_is_an_infrastructure_failure_here(box, lender):
    lender.lease_of(box.id).box.result().close()
    with pytest.raises(SandboxDied, match="it was closed"):
        box.cell("1")
    assert not box.alive


def test_many_threads_may_call_one_box(box):
    box.cell("n = 0")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: box.cell("n += 1"), range(40)))
    assert box.cell("print(n)").stdout == b"40\n"


def test_open_sandbox_finds_the_server_by_the_environment_and_probes_it(url, monkeypatch):
    monkeypatch.setenv("TURNWISE_SANDBOX_URL", url)
    monkeypatch.setenv("TURNWISE_SANDBOX_TOKEN", TOKEN)
    with open_sandbox("remote", limits=SMALL, env={"A": "b"}) as box:
        assert box.exec(["sh", "-c", "echo $A"]).stdout == b"b\n"
    monkeypatch.setenv("TURNWISE_SANDBOX_URL", "ftp://nowhere")
    with pytest.raises(Unsupported, match="turnwise sandbox serve"):
        open_sandbox("remote")


# ---------------------------------------------------------------- nothing runs twice


def ask(there: Server, method: str, path: str, head=None, body=b""):
    message = b"" if head is None else pack(head, body)
    return there.ask(method, f"/v1/sandboxes{path}", message, timeout_s=20)


def test_a_repeated_call_gets_the_first_answer_and_does_not_run_again(box, there):
    head = {"kernel": "main", "number": 1, "timeout_s": None}
    first = ask(there, "POST", f"/{box.id}/calls/cell", head, b"open('log', 'a').write('x')")
    assert ask(there, "POST", f"/{box.id}/calls/cell", head, b"print('another')") == first
    box._number = 1
    assert box.get("log") == b"x"


def test_a_call_repeated_while_it_runs_waits_for_the_one_answer(box, there):
    head = {"kernel": "main", "number": 1, "timeout_s": None}
    code = b"import time; time.sleep(0.4); open('log', 'a').write('x'); print(7)"
    with ThreadPoolExecutor(4) as threads:
        path = f"/{box.id}/calls/cell"
        answers = list(threads.map(lambda _: ask(there, "POST", path, head, code), range(4)))
    assert all(answer == answers[0] for answer in answers) and answers[0][1] == b"7\n"
    box._number = 1
    assert box.get("log") == b"x"


@pytest.mark.parametrize("number", [0, 2, -1, None, "1", 1.5])
def test_a_call_out_of_turn_is_refused(box, there, number):
    with pytest.raises(ProtocolError, match="after call 0"):
        ask(there, "POST", f"/{box.id}/calls/cell", {"number": number, "kernel": "main"})
    assert box.cell("print(1)").stdout == b"1\n"


def test_a_repeated_create_adopts_the_box(there):
    head = {"create": "c" * 32, "spec": {"limits": {"memory_mb": 96}}}
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: ask(there, "POST", "", head)[0], range(3)))
    assert len({answer["id"] for answer in answers}) == 1
    ask(there, "DELETE", f"/{answers[0]['id']}")


class Cutting:
    """Passes bytes on to a server and cuts the first `cuts` answers short."""

    def __init__(self, port: int, cuts: int) -> None:
        self.port, self.cuts = port, cuts
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.relay, args=(client,), daemon=True).start()

    def relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.port)) as upstream:
            back = threading.Thread(target=self.answers, args=(upstream, client), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    upstream.sendall(data)
            back.join(5)

    def answers(self, upstream: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(65536):
                if self.cuts:
                    self.cuts -= 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


def test_lost_answers_are_asked_for_again_and_nothing_runs_twice(url, monkeypatch):
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.01)
    cutting = Cutting(int(url.rsplit(":", 1)[1]), cuts=2)
    try:
        there = Server(f"http://127.0.0.1:{cutting.listener.getsockname()[1]}", TOKEN)
        before = len(there.leases())
        cutting.cuts = 2
        with there.open_box(SPEC) as box:
            assert len(there.leases()) == before + 1, "the repeated create adopted the first box"
            cutting.cuts = 2
            assert box.cell("open('log', 'a').write('x'); print(7)").stdout == b"7\n"
            assert not cutting.cuts
            assert box.get("log") == b"x"
            cutting.cuts = remote_module.TRIES
            with pytest.raises(SandboxDied, match="does not answer") as caught:
                box.cell("1")
            assert caught.value.retryable and not box.alive
    finally:
        cutting.close()


# ---------------------------------------------------------------- leases


class StubBox:
    """Stands for a box where none is needed."""

    backend, capabilities = "stub", frozenset({"files"})
    count = 0

    def __init__(self, spec):
        StubBox.count += 1
        self.spec, self.id, self.closed = spec, f"stub-{StubBox.count}", False

    def cell(self, code, **_):
        time.sleep(float(code or 0))
        raise OSError(28, "No space left on device")

    def close(self):
        self.closed = True


@contextlib.contextmanager
def stubs(**bounds):
    """(lender, server as a client sees it, the boxes that were made)."""
    made = []

    def open_stub(spec):
        made.append(StubBox(spec))
        return made[-1]

    lender = Lender(token=TOKEN, open_box=bounds.pop("open_box", open_stub), **bounds)
    with served(lender) as url:
        yield lender, connect(url, TOKEN), made


def test_a_lease_ends_when_its_client_falls_silent_and_not_while_it_calls():
    with stubs(ttl_s=0.3) as (_, there, made):
        head = {"create": "d" * 32, "spec": {}}
        id = ask(there, "POST", "", head)[0]["id"]  # nobody beats for it
        with pytest.raises(OSError, match="No space"):
            ask(there, "POST", f"/{id}/calls/cell", {"number": 1, "kernel": "main"}, b"0.8")
        assert not made[0].closed, "a call in progress is a sign of life"
        assert wait_until(lambda: made[0].closed)
        with pytest.raises(SandboxDied, match="silent"):
            ask(there, "GET", f"/{id}")


def test_a_client_that_lives_keeps_its_boxes_without_calling():
    with stubs(ttl_s=0.4) as (lender, there, made), there.open_box(SPEC) as box:
        time.sleep(1.0)
        assert not made[0].closed and box.alive
        lender._end(lender.lease_of(box.id))
        assert wait_until(lambda: not box.alive), "it learns that the server has ended it"


KILLED = """
import sys, time
from turnwise.sandboxes import SandboxSpec
from turnwise.sandboxes.remote import connect
box = connect(sys.argv[1], sys.argv[2]).open_box(SandboxSpec())
print(box.id, flush=True)
time.sleep(100)
"""


def test_what_a_killed_client_had_open_is_destroyed():
    with stubs(ttl_s=0.5) as (_, there, made):
        argv = [sys.executable, "-c", KILLED, there.url, TOKEN]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as client:
            assert client.stdout.readline()
            time.sleep(0.8)
            assert not made[0].closed
            client.kill()
        assert wait_until(lambda: made[0].closed)


def test_a_full_server_says_so_and_may_be_asked_again():
    with stubs(max_live=1) as (_, there, _), there.open_box(SPEC):
        with pytest.raises(StartFailed, match="1 boxes at once") as caught:
            there.open_box(SPEC)
        assert caught.value.retryable


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (StartFailed("busy"), StartFailed),
        (NoSafeSandbox("run: apt-get install -y bubblewrap"), NoSafeSandbox),
        (Unsupported("no image"), Unsupported),
        (ZeroDivisionError("a bug"), SandboxError),
        (OSError(28, "No space left"), OSError),
        (ValueError("workdir"), ValueError),
    ],
)
def test_what_a_start_raises_there_is_raised_here(raised, expected):
    def fail(spec):
        raise raised

    with stubs(open_box=fail) as (lender, there, _):
        with pytest.raises(expected) as caught:
            there.open_box(SPEC)
        assert type(caught.value) is expected and str(raised.args[-1]) in str(caught.value)
        if isinstance(raised, SandboxError):
            assert caught.value.retryable == raised.retryable
        assert lender._leases == {}


def test_a_server_that_goes_away_is_a_retryable_failure(monkeypatch):
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.001)
    with stubs() as (_, there, made):
        box = there.open_box(SPEC)
    assert made[0].closed, "its boxes end with it"
    with pytest.raises(SandboxDied, match="does not answer") as died:
        box.cell("1")
    with pytest.raises(StartFailed, match="does not answer") as refused:
        there.open_box(SPEC)
    assert died.value.retryable and refused.value.retryable
    box.close()


def test_what_is_no_server_of_ours_is_not_taken_for_one(monkeypatch):
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(65536)
                        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

        threading.Thread(target=answer, daemon=True).start()
        there = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN)
        with pytest.raises(StartFailed, match="no sandbox server"):
            there.open_box(SPEC)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_is_gone_does_not_hold_the_ends_of_many_boxes():
    with stubs() as (_, there, _):
        boxes = [there.open_box(SPEC) for _ in range(20)]
    began = time.monotonic()
    for box in boxes:
        box.close()
    assert time.monotonic() - began < 1.0


# ---------------------------------------------------------------- who may ask for what


@pytest.mark.parametrize("token", ["", "short", TOKEN + "x", TOKEN[:-1], "ключ" * 9])
def test_nothing_is_answered_without_the_token(url, token):
    with pytest.raises(Unsupported, match="TURNWISE_SANDBOX_TOKEN") as caught:
        connect(url, token).leases()
    assert not caught.value.retryable
    import httpx

    for headers in ({}, {"authorization": TOKEN}, {"authorization": f"bearer {TOKEN}"}):
        answer = httpx.get(f"{url}/v1/sandboxes", headers=headers, trust_env=False)
        assert answer.status_code == 401 and b"leases" not in answer.content


def test_a_server_has_a_real_token_and_a_backend_that_isolates():
    with pytest.raises(ValueError, match="at least 16"):
        Lender("bubblewrap", token="short")
    for backend in ("unsafe", "remote", "bubblewarp"):
        with pytest.raises(ValueError, match="isolate"):
            Lender(backend, token=TOKEN)


def test_access_to_the_network_must_be_granted_by_the_server():
    with stubs(allow=("pypi.org",)) as (_, there, made):
        there.open_box(SandboxSpec(net=NetPolicy("proxy", ("pypi.org",)))).close()
        with pytest.raises(Unsupported, match=r"127\.0\.0\.1"):
            there.open_box(SandboxSpec(net=NetPolicy("proxy", ("127.0.0.1:22",))))
        assert len(made) == 1


def test_a_request_over_the_limit_is_refused_however_it_announces_itself(box, there):
    import httpx

    path = f"{there.url}/v1/sandboxes/{box.id}/calls/put"
    headers = {"authorization": f"Bearer {TOKEN}"}
    whole = b"x" * (SMALL.file_bytes + (1 << 20) + 1)
    pieces = (whole[start : start + 65536] for start in range(0, len(whole), 65536))
    for content in (whole, pieces):
        with contextlib.suppress(httpx.TransportError):  # it may hang up before all is sent
            answer = httpx.post(path, headers=headers, content=content, trust_env=False)
            assert answer.status_code == 413
    assert box.cell("print(1)").stdout == b"1\n"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/v1"), ("PUT", "/v1/sandboxes"), ("POST", "/v1/sandboxes/ID/calls/no"),
     ("POST", "/v1/sandboxes/ID"), ("GET", "/v1/sandboxes/ID/calls/cell")],
)  # fmt: skip
def test_what_does_not_exist_is_said_not_to(box, there, method, path):
    with pytest.raises(ProtocolError, match="there is no"):
        there.ask(method, path.replace("ID", box.id), timeout_s=5)


@pytest.mark.parametrize("message", [b"", b"\0\0\0\x05{}", b"\0\0\0\x02[]", b"\xff" * 9])
def test_what_is_not_a_message_is_never_taken_for_one(message):
    with pytest.raises(ProtocolError):
        unpack(message)
    assert unpack(pack({"a": 1}, b"body")) == ({"a": 1}, b"body")


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"volumes": ["/"]},
        {"limits": {"memory_mb": "1"}},
        {"limits": {"memory_mb": True}},
        {"limits": {"memory_mb": 0}},
        {"limits": {"wall_s": float("inf")}},
        {"limits": {"swap": 1}},
        {"net": {"mode": "bridge"}},
        {"net": {"mode": "proxy", "allow": "x"}},
        {"env": {"A": 1}},
        {"env": {"A": "x\0y"}},
        {"image": 3},
        {"workdir": ["x"]},
    ],
)
def test_a_spec_is_checked_field_by_field(spec):
    with pytest.raises(ValueError):
        unpack_spec(spec)


def test_a_spec_survives_the_journey():
    spec = SandboxSpec("image", SMALL, NetPolicy("proxy", ("a.b",)), {"A": "b"}, "/work")
    assert unpack_spec(json.loads(json.dumps(remote_module.pack_spec(spec)))) == spec


def test_an_error_that_this_side_does_not_know_is_still_an_infrastructure_failure():
    error = unpack_error({"error": "Novel", "message": "m", "retryable": False}, 500)
    assert type(error) is SandboxError and not error.retryable
    status, message = pack_error(OSError(2, "No such file", "x"))
    assert unpack_error(unpack(message)[0], status).errno == 2


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_only_this_machine_is_loopback(host, loopback):
    assert is_loopback(host) is loopback


# ---------------------------------------------------------------- the command


def test_serve_lends_until_it_is_told_to_end_and_leaves_nothing():
    need_bubblewrap()
    argv = [sys.executable, "-m", "turnwise.cli.main", "sandbox", "serve", "--json",
            "--backend", "bubblewrap", "--port", "0"]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if "TURNWISE" not in name}
    word = f"77.{os.getpid()}{time.time_ns() % 10**9}"
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            said = ""
            while not said.endswith("}\n"):
                said += process.stdout.readline()
            where = json.loads(said)
            box = connect(where["url"], where["token"]).open_box(SPEC)
            box.cell(f"import subprocess; subprocess.Popen(['sleep', {word!r}])")
            assert wait_until(lambda: processes_with(word))
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == -signal.SIGTERM
            assert not processes_with(word)
            box.close()
        finally:
            process.kill()
