"""The warm pool: boxes are ready, are used once, and never more of them than allowed."""

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from boxes import need_bubblewrap, wait_until

from turnwise.sandboxes import Limits, Sandbox, SandboxDied, SandboxSpec, StartFailed, Unsupported
from turnwise.sandboxes import pool as pools
from turnwise.sandboxes.pool import WarmPool, warm_pool

SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=10.0)


class FakeBox:
    """A box without walls, which keeps count of those that live."""

    backend, spec, capabilities = "fake", SandboxSpec(), frozenset({"files"})

    def __init__(self, fleet: "Fleet") -> None:
        self.fleet, self.alive, self.closed = fleet, True, False
        self.id = f"fake-{len(fleet.boxes)}"

    def _check(self) -> None:
        if not self.alive:
            raise SandboxDied(self.id)

    def cell(self, code, **_):
        self._check()

    def get(self, path, **_):
        self._check()
        raise IsADirectoryError(path)

    def exec(self, argv, **_):
        self._check()

    put = shell = snapshot = fork = fork_kernel = exec

    def close(self):
        self.alive, self.closed = False, True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Fleet:
    """Opens fake boxes; `errors` are raised by the next starts, one each."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.boxes: list[FakeBox] = []
        self.errors: list[Exception] = []
        self.delay_s = delay_s
        self.starting = self.most_starting = self.most_live = 0
        self.lock = threading.Lock()

    def open(self) -> FakeBox:
        with self.lock:
            self.starting += 1
            self.most_starting = max(self.most_starting, self.starting)
        time.sleep(self.delay_s)
        with self.lock:
            self.starting -= 1
            if self.errors:
                raise self.errors.pop(0)
            self.boxes.append(FakeBox(self))
            self.most_live = max(self.most_live, len(self.live))
            return self.boxes[-1]

    @property
    def live(self) -> list[FakeBox]:
        return [box for box in self.boxes if not box.closed]


@pytest.fixture
def fleet():
    return Fleet()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(pools, "FIRST_PAUSE_S", 0.01)


def ready(pool: WarmPool, count: int) -> bool:
    return wait_until(lambda: pool.stats().idle == count)


def test_a_pool_is_ready_before_the_first_lease_and_again_after_it(fleet):
    with WarmPool(fleet.open, target=2) as pool:
        assert ready(pool, 2)
        with pool.lease():
            assert ready(pool, 2)
            assert pool.stats().leased == 1 and pool.stats().live == 3


def test_no_box_is_ever_leased_twice(fleet):
    with WarmPool(fleet.open, target=2, max_live=4) as pool:
        seen = []
        for _ in range(10):
            with pool.lease() as box:
                seen.append(box.id)
                assert not fleet.boxes[int(box.id.split("-")[1])].closed
            assert fleet.boxes[int(seen[-1].split("-")[1])].closed
    assert len(set(seen)) == 10


def test_a_lease_is_a_sandbox_and_hands_every_call_on(fleet):
    with WarmPool(fleet.open, target=1) as pool, pool.lease() as box:
        assert isinstance(box, Sandbox)
        assert box.backend == "fake" and box.alive
        box.exec(["true"])
        box.close()
        box.close()
        assert not box.alive
        with pytest.raises(SandboxDied):
            box.exec(["true"])


def test_close_destroys_what_is_idle_leased_and_starting():
    fleet = Fleet(delay_s=0.1)
    with WarmPool(fleet.open, target=3, max_starting=2) as pool:
        assert ready(pool, 1)
        leased = pool.lease()
        assert wait_until(lambda: pool.stats().starting > 0)
    assert not fleet.live and not fleet.starting and not leased.alive
    with pytest.raises(Unsupported, match="closed"):
        pool.lease()
    pool.close()


def test_the_bounds_hold_whatever_the_threads_do():
    fleet = Fleet(delay_s=0.005)
    with WarmPool(fleet.open, target=3, max_live=5, max_starting=2) as pool:

        def use(_):
            with pool.lease(timeout_s=20):
                time.sleep(0.003)

        with ThreadPoolExecutor(12) as threads:
            list(threads.map(use, range(120)))
        assert pool.stats().leased == 0
    assert fleet.most_starting <= 2 and fleet.most_live <= 5 and not fleet.live


def test_a_full_pool_waits_for_room_and_says_when_there_is_none(fleet):
    with WarmPool(fleet.open, target=0, max_live=1) as pool:
        first = pool.lease()
        with pytest.raises(StartFailed, match="full") as caught:
            pool.lease(timeout_s=0.05)
        assert caught.value.retryable
        threading.Timer(0.05, first.close).start()
        pool.lease(timeout_s=5).close()


def test_a_warm_box_that_died_is_noticed_and_replaced(fleet):
    with WarmPool(fleet.open, target=2) as pool:
        assert ready(pool, 2)
        for box in fleet.boxes:
            box.alive = False
        with pool.lease() as box:
            box.cell("pass")
        assert pool.stats().died == 2


def test_a_failure_that_may_pass_is_tried_again_and_another_is_not(fleet):
    with WarmPool(fleet.open, target=0) as pool:
        fleet.errors = [StartFailed("busy"), StartFailed("busy")]
        pool.lease().close()
        fleet.errors = [StartFailed("busy")] * pools.TRIES
        with pytest.raises(StartFailed, match="busy"):
            pool.lease()
        assert not fleet.errors
        fleet.errors = [Unsupported("no such image"), StartFailed("unused")]
        with pytest.raises(Unsupported, match="no such image"):
            pool.lease()
        assert len(fleet.errors) == 1
        assert pool.stats().failed == 2 + pools.TRIES + 1


def test_the_refiller_survives_what_may_pass_and_reports_what_does_not(fleet):
    fleet.errors = [StartFailed("busy")] * 3
    with WarmPool(fleet.open, target=1) as pool:
        assert ready(pool, 1)
    fleet.errors = [Unsupported("no such image")] * 9
    with WarmPool(fleet.open, target=1) as pool:
        assert wait_until(lambda: pool.stats().failed == 1)
        with pytest.raises(Unsupported, match="no such image"):
            pool.lease()
    assert len(fleet.errors) == 8, "a start that cannot succeed is not tried for ever"


def test_a_bug_in_a_start_reaches_whoever_leases(fleet):
    fleet.errors = [ZeroDivisionError("a bug")]
    with WarmPool(fleet.open, target=1) as pool:
        assert wait_until(lambda: pool.stats().failed == 1)
        with pytest.raises(Unsupported, match="a bug"):
            pool.lease()


def test_a_box_that_fails_to_be_prepared_is_destroyed(fleet):
    def prepare(box):
        if len(fleet.boxes) == 1:
            raise SandboxDied("out of memory")

    with WarmPool(fleet.open, target=0, prepare=prepare) as pool:
        pool.lease().close()
    assert len(fleet.boxes) == 2 and fleet.boxes[0].closed


def test_what_nobody_takes_is_destroyed_and_not_replaced_until_the_next_lease(fleet):
    with WarmPool(fleet.open, target=2, max_idle_s=0.1) as pool:
        assert wait_until(lambda: pool.stats().expired == 2)
        time.sleep(0.15)
        assert len(fleet.boxes) == 2 and not fleet.live
        pool.lease().close()
        assert ready(pool, 2)


def test_a_lease_that_is_forgotten_is_destroyed(fleet):
    with WarmPool(fleet.open, target=0) as pool:
        pool.lease()
        gc.collect()
        assert not fleet.live and pool.stats().leased == 0


def test_a_forked_child_can_neither_lease_nor_close(fleet):
    with WarmPool(fleet.open, target=1) as pool:
        assert ready(pool, 1)
        pid = os.fork()
        if pid == 0:
            try:
                pool.close()
                pool.lease()
            except Unsupported:
                os._exit(7 if fleet.live else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize(
    "bounds",
    [{"target": -1}, {"target": 9, "max_live": 8}, {"max_starting": 0}, {"max_idle_s": 0.0}],
)
def test_bounds_that_allow_nothing_are_refused(fleet, bounds):
    with pytest.raises(ValueError, match=f"{next(iter(bounds))}"):
        WarmPool(fleet.open, **bounds)


def test_the_metrics_hold_the_percentiles_of_the_starts():
    fleet = Fleet(delay_s=0.02)
    with WarmPool(fleet.open, target=0) as pool:
        assert pool.stats().start_p50_s is None
        for _ in range(3):
            pool.lease().close()
        stats = pool.stats()
    assert 0.02 <= stats.start_p50_s <= stats.start_p99_s < 5
    assert stats.started == 3


def test_a_warm_box_of_this_machine_is_leased_in_no_time_and_outlives_its_thread():
    need_bubblewrap()
    with warm_pool(limits=SMALL, target=2, max_live=3) as pool:
        assert wait_until(lambda: pool.stats().idle == 2, 30)
        leased = []
        began = time.monotonic()
        thread = threading.Thread(target=lambda: leased.append(pool.lease()))
        thread.start()
        thread.join()
        took_s = time.monotonic() - began
        assert took_s < 0.05, "generous: the benchmark measures it"
        with leased[0] as box:
            time.sleep(0.05)
            assert box.cell("print(6 * 7)").stdout == b"42\n"
