"""The one way out of a box leads to listed hosts and to nothing else."""

import array
import contextlib
import http.server
import ipaddress
import os
import socket
import threading

import pytest
from boxes import need_bubblewrap, need_docker, wait_until

from turnwise.sandboxes import Limits, NetPolicy, SandboxDied, open_sandbox, proxy
from turnwise.sandboxes.allow import Policy, Refused, is_public, parse_allow, split_authority
from turnwise.sandboxes.proxy import Proxy

SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=20.0)
FETCH = """
import os, urllib.error, urllib.request
os.environ.pop("no_proxy"), os.environ.pop("NO_PROXY")
def fetch(url, **more):
    direct = urllib.request.ProxyHandler({"http": "http://127.0.0.1:3128"})
    try:
        with urllib.request.build_opener(direct).open(
            urllib.request.Request(url, **more), timeout=9
        ) as answer:
            print(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode())
    except OSError as error:
        print("unreachable", error)
"""


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    def do_GET(self):
        length = int(self.headers["Content-Length"] or 0)
        size = len(self.rfile.read(length))
        body = f"{self.command} {self.path} {self.headers['Host']} {size}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def port():
    """Of a web server on this host's loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(10)


BACKENDS = [
    pytest.param("bubblewrap", id="bubblewrap"),
    pytest.param("docker", id="docker", marks=pytest.mark.docker),
]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    """Each that has a proxy."""
    {"bubblewrap": need_bubblewrap, "docker": need_docker}[request.param]()
    return request.param


@pytest.fixture(scope="module")
def box(backend, port):
    """A box that may reach that server and a public name."""
    net = NetPolicy("proxy", (f"127.0.0.1:{port}", "allowed.example"))
    with open_sandbox(backend, limits=SMALL, net=net) as box:
        box.cell(FETCH)
        yield box


def fetched(box, url: str, more: str = "") -> str:
    return box.cell(f"fetch({url!r}, {more})").text.strip()


# ---------------------------------------------------------------- through a real box


def test_a_listed_host_is_reached_with_the_usual_variables(box, port):
    assert fetched(box, f"http://127.0.0.1:{port}/a?b=c#d") == f"200 GET /a?b=c 127.0.0.1:{port} 0"
    sent = fetched(box, f"http://127.0.0.1:{port}", "data=bytes(300000)")
    assert sent == f"200 POST / 127.0.0.1:{port} 300000"
    names = box.exec(["sh", "-c", "echo $HTTP_PROXY $https_proxy $NO_PROXY"]).text.split()
    assert names == ["http://127.0.0.1:3128"] * 2 + ["localhost,::1"]


TUNNEL = """
import socket
def tunnel(target, *parts):
    with socket.create_connection(("127.0.0.1", 3128), 9) as end:
        end.sendall(f"CONNECT {target} HTTP/1.1\\r\\n\\r\\n".encode())
        said = end.recv(4096)
        for part in parts:
            end.sendall(part)
        end.shutdown(socket.SHUT_WR)
        while more := end.recv(4096):
            said += more
        print(said.decode())
"""


def test_a_tunnel_carries_what_the_proxy_need_not_understand(box, port):
    box.cell(TUNNEL)
    ask = b"GET /inner HTTP/1.0\r\n\r\n"
    said = box.cell(f"tunnel('127.0.0.1:{port}', {ask!r})").text
    assert said.startswith("HTTP/1.1 200 Connection established") and "GET /inner" in said
    assert "403" in box.cell(f"tunnel('127.0.0.1:{port + 1}')").text.splitlines()[0]
    assert "400" in box.cell("tunnel('not a host')").text.splitlines()[0]


def test_what_is_not_listed_is_refused_and_the_answer_says_what_is(box, port):
    for url in (f"http://127.0.0.1:{port + 1}/", f"http://127.0.0.2:{port}/", "http://10.0.0.1/",
                f"http://localhost:{port}/", "http://169.254.169.254/latest/meta-data",
                "http://allowed.example.evil.org/", "http://allowed.example:22/",
                f"http://[::ffff:127.0.0.1]:{port}/", f"http://2130706433:{port}/"):  # fmt: skip
        said = fetched(box, url)
        assert said.startswith("403 the proxy of this sandbox:") and "allowed.example" in said, url


def test_the_host_header_cannot_name_another_host(box, port):
    said = fetched(box, f"http://127.0.0.1:{port}/", "headers={'Host': 'internal'}")
    assert said == f"200 GET / 127.0.0.1:{port} 0"


def test_there_is_no_way_around_the_proxy(box, port):
    code = f"socket.create_connection(('127.0.0.1', {port}), 2)"
    assert box.cell(f"import socket; {code}").exit_code == 1
    assert box.cell("socket.create_connection(('1.1.1.1', 53), 2)").exit_code == 1
    assert box.cell("socket.getaddrinfo('allowed.example', 80)").exit_code == 1
    cards = box.exec(["cat", "/proc/net/dev"]).text
    assert "eth" not in cards and "lo:" in cards


def test_the_relay_survives_programs_that_end_and_calls_that_are_late(box, port):
    box.exec(["true"])
    box.exec(["sleep", "9"], timeout_s=0.1)
    box.cell("import time; time.sleep(9)", timeout_s=0.1)
    assert fetched(box, f"http://127.0.0.1:{port}/").startswith("200")


CLOSED = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    with open(f"/proc/{pid}/cmdline") as file:
        ours = "sandboxes.guest" in file.read() and pid not in ("1", str(os.getpid()))
    if ours:
        try:
            print(os.listdir(f"/proc/{pid}/fd"))
        except PermissionError:
            print("closed")
"""


def test_the_door_of_the_relay_is_closed_to_user_code(box):
    assert box.cell(CLOSED).text == "closed\n"


def test_many_connections_at_once_end_no_worse_than_refused(box, port):
    code = f"""
import socket
ends = []
for _ in range(80):
    end = socket.create_connection(("127.0.0.1", 3128), 5)
    ends.append(end)
for end in ends:
    end.close()
fetch("http://127.0.0.1:{port}/")"""
    assert wait_until(lambda: box.cell(code).text.startswith("200"), 15)


def test_without_a_policy_nothing_is_reached(backend, port):
    with open_sandbox(backend, limits=SMALL) as box:
        box.cell("import os; os.environ.update(no_proxy='', NO_PROXY='')")
        box.cell(FETCH)
        assert fetched(box, f"http://127.0.0.1:{port}/").startswith("unreachable")
        assert box.exec(["sh", "-c", "echo $HTTP_PROXY"]).stdout == b"\n"


def test_closing_the_box_ends_its_connections_and_threads(backend, port):
    before = threading.active_count()
    net = NetPolicy("proxy", (f"127.0.0.1:{port}",))
    with open_sandbox(backend, limits=SMALL, net=net) as box:
        box.cell(
            "import socket; end = socket.create_connection(('127.0.0.1', 3128))\n"
            f"end.sendall(b'CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\n\\r\\n'); print(end.recv(99))"
        )
        assert wait_until(lambda: any(t.name == "turnwise-proxied" for t in threading.enumerate()))
    assert wait_until(lambda: threading.active_count() <= before)
    with pytest.raises(SandboxDied):
        box.cell("1")


def test_a_policy_that_reaches_nothing_is_a_mistake(backend):
    with pytest.raises(ValueError, match="reaches nothing"):
        open_sandbox(backend, net=NetPolicy("proxy"))


# ---------------------------------------------------------------- the policy


class Names(dict):
    """{name: address}, in place of DNS."""

    def __init__(self, **known: str) -> None:
        super().__init__({name.replace("_", "."): where for name, where in known.items()})
        self.asked: list[str] = []

    def __call__(self, host, port, **_):
        self.asked.append(host)
        if host not in self:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self[host], port))]


def test_a_name_that_is_not_listed_is_not_even_looked_up():
    names = Names()
    with pytest.raises(Refused, match="not on this box's list"):
        Policy(["a.example"], names).dial("secret-in-a-name.evil.org", 443)
    assert names.asked == []


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0"])
def test_a_listed_name_that_leads_inside_is_refused(address):
    with pytest.raises(Refused, match="private") as caught:
        Policy(["a.example"], Names(a_example=address)).dial("a.example", 80)
    assert caught.value.status.startswith("403")


def test_an_inside_address_is_reached_by_a_name_only_where_both_are_listed(port):
    names = Names(a_example="127.0.0.1")
    allow = [f"a.example:{port}", f"127.0.0.1:{port}"]
    with Policy(allow, names).dial("a.example", port) as made:
        assert made.getpeername() == ("127.0.0.1", port)
    with pytest.raises(Refused, match="private"):
        allow = [f"a.example:{port}", f"127.0.0.1:{port + 1}"]
        Policy(allow, names).dial("a.example", port)


def test_what_cannot_be_looked_up_or_reached_is_a_bad_gateway():
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    for host in ("gone.example", "a.example"):
        allow = [f"{host}:{closed}", f"127.0.0.1:{closed}"]
        with pytest.raises(Refused) as caught:
            Policy(allow, Names(a_example="127.0.0.1")).dial(host, closed)
        assert caught.value.status.startswith("502")


@pytest.mark.parametrize(
    ("allow", "host", "port", "covered"),
    [
        ("a.example", "a.example", 443, True),
        ("a.example", "a.example", 80, True),
        ("a.example", "a.example", 22, False),
        ("a.example:22", "a.example", 22, True),
        ("a.example:22", "a.example", 443, False),
        ("a.example", "b.a.example", 443, False),
        ("*.a.example", "b.a.example", 443, True),
        ("*.a.example", "c.b.a.example", 443, True),
        ("*.a.example", "a.example", 443, False),
        ("*.a.example", "ba.example", 443, False),
        ("A.Example.", "a.example", 443, True),
        ("10.0.0.1", "10.0.0.1", 80, True),
        ("[::1]:8000", "::1", 8000, True),
        ("0:0::1", "::1", 80, True),
    ],
)
def test_an_entry_covers_just_what_it_says(allow, host, port, covered):
    (entry,) = parse_allow([allow])
    assert entry.covers(host, port) is covered


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "a*.example", "http://a.example", "a.example/x", "u@a.example", "a b",
              "a.example:0", "a.example:65536", "a.example:x", "-", "*.*.example", "a..example"]
)  # fmt: skip
def test_an_entry_that_is_none_is_refused_with_the_rule(entry):
    with pytest.raises(ValueError, match="host:port"):
        parse_allow([entry])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A.b:1", ("a.b", 1)), ("a.b", ("a.b", 443)), ("a.b.", ("a.b", 443)),
     ("[::1]:8", ("::1", 8)), ("[0::1]", ("::1", 443)), ("::1", ("::1", 443))],
)  # fmt: skip
def test_a_host_has_one_spelling(text, expected):
    assert split_authority(text, 443) == expected


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("127.0.0.1", False), ("10.0.0.1", False), ("100.64.0.1", False),
     ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("fe80::1", False),
     ("fd00::1", False), ("2606:4700::1", True), ("::ffff:127.0.0.1", False),
     ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True),
     ("2002:7f00:1::", False), ("ff02::1", False)],
)  # fmt: skip
def test_an_address_is_public_only_if_all_that_is_wrapped_in_it_is(address, public):
    assert is_public(ipaddress.ip_address(address)) is public


# ---------------------------------------------------------------- what a hostile box hands over


@contextlib.contextmanager
def a_proxy(allow=("a.example",)):
    """(the box's end of the door, the proxy)."""
    ours, theirs = socket.socketpair()
    made = Proxy(allow, ours)
    with theirs:
        try:
            yield theirs, made
        finally:
            made.close()


def hand_over(door: socket.socket, *fds: int) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    door.sendmsg([b"c"], [rights] if fds else [])


@contextlib.contextmanager
def a_connection(door: socket.socket):
    """The client's end of a TCP connection whose other end goes through the door."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        hand_over(door, accepted.fileno())
        accepted.close()
        yield client


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_descriptor_that_is_no_connection_is_closed_unread(tmp_path):
    with a_proxy() as (door, made), open(tmp_path / "file", "w+") as file:
        before = open_files()
        left, right = socket.socketpair()
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with left, right, datagram:
            right.sendall(b"GET http://a.example/ HTTP/1.1\r\n\r\n")
            hand_over(door, file.fileno(), left.fileno(), datagram.fileno())
            hand_over(door)
            hand_over(door, *[file.fileno()] * 40)
            assert wait_until(lambda: open_files() == before + 3)
        assert not made._open


@pytest.mark.parametrize(
    "request_",
    [b"", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET ftp://a.example/ HTTP/1.1\r\n\r\n",
     b"GET https://a.example/ HTTP/1.1\r\n\r\n", b"CONNECT u@a.example:443 HTTP/1.1\r\n\r\n",
     b"GET http://u:p@a.example/ HTTP/1.1\r\n\r\n", b"CONNECT a.example:99999 HTTP/1.1\r\n\r\n",
     b"GET http://a.example/ HTTP/2\r\n\r\n", b"\xff\xfe\r\n\r\n", b"x" * 40_000,
     b"GET http://a.example\t/ HTTP/1.1\r\n\r\n", b"CONNECT [::1 HTTP/1.1\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_request_to_a_proxy_gets_a_400(request_):
    with a_proxy() as (door, _), a_connection(door) as client:
        with contextlib.suppress(OSError):
            client.sendall(request_)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # it did not read all of it
            while part := client.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 400") or request_.startswith(b"xxx")


def test_what_goes_on_has_one_host_and_ends_its_connection():
    lines = [b"GET http://A.example:81/x?y HTTP/1.1", b"host: internal", b"Proxy-Authorization: s",
             b"Connection: keep-alive", b"Accept: */*"]  # fmt: skip
    host, port, first = proxy._understand(lines)
    assert (host, port) == ("a.example", 81)
    head = [b"GET /x?y HTTP/1.1", b"Host: A.example:81", b"Connection: close", b"Accept: */*"]
    assert first == b"\r\n".join([*head, b"", b""])


def test_a_box_holds_so_many_connections_and_no_more(monkeypatch):
    monkeypatch.setattr(proxy, "MAX_CONNECTIONS", 2)
    with a_proxy() as (door, made), a_connection(door), a_connection(door):
        assert wait_until(lambda: len(made._open) == 2)
        with a_connection(door) as third:
            third.settimeout(5)
            assert third.recv(1) == b"", "it is closed at once"
        assert len(made._open) == 2


def test_a_request_that_never_comes_does_not_hold_the_proxy(monkeypatch):
    monkeypatch.setattr(proxy, "REQUEST_TIMEOUT_S", 0.1)
    with a_proxy() as (door, made), a_connection(door) as client:
        client.sendall(b"GET ")
        assert wait_until(lambda: not made._open)
