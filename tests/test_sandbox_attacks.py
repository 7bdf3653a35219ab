"""The matrix: every attack of `attacks.py` against every wall that this machine has."""

import os

import pytest
from attack_columns import AsUser, Here, NoPython
from attacks import ATTACKS, KINDS
from boxes import need_bubblewrap

from turnwise.sandboxes import NoSafeSandbox

ROOT = os.geteuid() == 0
COLUMNS = ["docker", "bubblewrap as root", "bubblewrap as a user", "unsafe"]
NEVER_OUTSIDE = {
    *("fork_bomb", "fork_bomb_that_flees", "memory_bomb", "memory_bomb_of_eight"),
    *("memory_outside_processes", "page_tables_in_every_call", "bombs_by_the_shell"),
    *("kill_everything", "signal_host_processes", "signals_by_the_shell"),
    *("trace_host_processes", "a_crowd_does_not_starve_the_guest", "modules_reboot_and_swap"),
}
REAL = {attack.name for attack in ATTACKS if attack.real}


def missing(reason):
    """No wall to attack: a skip for a user, a failure for CI, which must not skip its walls."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(str(reason))


def build(name):
    if name == "docker":
        return Here("docker")
    if name == "bubblewrap as root" and not ROOT:
        pytest.skip("this user is not root")
    if name.startswith("bubblewrap"):
        need_bubblewrap()
    if name == "bubblewrap as root":
        return Here("bubblewrap")
    return AsUser(name.split()[0])


@pytest.fixture(scope="module")
def columns():
    """Built when first asked for, so that one that cannot be had costs only its own cells."""
    built = {}

    def column(name):
        if name not in built:
            try:
                built[name] = build(name)
            except (NoSafeSandbox, NoPython) as error:
                built[name] = error
        if isinstance(built[name], Exception):
            missing(built[name])
        return built[name]

    yield column
    for made in built.values():
        if not isinstance(made, Exception):
            made.close()


@pytest.mark.parametrize("name", COLUMNS[:3])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.kind}:{attack.name}")
def test_the_wall_holds(columns, attack, name):
    words = columns(name).play(attack)
    if words and words[0].startswith("SKIPPED"):
        pytest.skip(words[0])
    assert words and all(word.split()[0] == "HELD" for word in words), words


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if a.harmless], ids=lambda a: f"{a.kind}:{a.name}"
)
def test_where_nothing_isolates_the_attack_is_real(columns, attack):
    words = columns("unsafe").play(attack)
    assert words and all(word.split()[0] in ("HELD", "THROUGH") for word in words), words
    if attack.name in REAL:
        assert any(word.startswith("THROUGH") for word in words), "it is no attack"


def test_each_class_of_attack_is_there_and_those_that_must_be_real_are():
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names) >= 40
    assert {attack.kind for attack in ATTACKS} == set(KINDS)
    assert all(attack.harmless for attack in ATTACKS if attack.real) and len(REAL) >= 10
    harmful = {attack.name for attack in ATTACKS if not attack.harmless}
    assert harmful >= NEVER_OUTSIDE
