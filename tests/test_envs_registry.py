"""Laws of the registry: ids are found, or answered with the nearest one."""

import importlib
import importlib.util
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint

import pytest
from fakes import Guess

import turnwise.envs as envs
from turnwise.envs import registry


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Let each test register what it wants."""
    import gymnasium

    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    monkeypatch.setattr(registry, "_BROKEN", [])
    monkeypatch.setattr(registry, "_discovered", True)
    kept = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(kept)


def run(code: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("turnwise/FileHnt-v1", "no environment 'turnwise/FileHnt-v1'; did you mean 'turnwise/Fi"),
        ("filehunt", "did you mean 'turnwise/FileHunt-v1'"),
        ("turnwise/FileHunt-v9", "did you mean 'turnwise/FileHunt-v1'"),
        ("no.such.module:Env", "there is no module 'no'"),
        ("fakes:Gess", "did you mean 'Guess'"),
        ("fakes:Secret", "no environment 'Secret' in fakes"),
    ],
)
def test_an_unknown_id_is_answered_with_the_nearest(id, message):
    with pytest.raises(envs.UnknownEnv, match=message):
        envs.make(id)


def test_a_class_is_registered_by_decorator_and_made_by_id():
    decorated = envs.register("mine/Guess-v1", kwargs={"max_turns": 5}, tags=("toy",))(Guess)
    assert decorated is Guess
    env = envs.make("mine/Guess-v1", actions="command")
    assert (env.max_turns, env.format.name) == (5, "command")
    assert (env.env_id, env.env_kwargs) == ("mine/Guess-v1", {"actions": "command"})
    assert [spec.id for spec in envs.list_envs("toy")] == ["mine/Guess-v1"]


def test_an_entry_point_is_imported_only_when_it_is_made():
    envs.register("mine/Later-v1", "no_such_package.envs:Later")
    assert envs.spec("mine/Later-v1").where == "no_such_package.envs:Later"
    with pytest.raises(envs.UnknownEnv, match="no module 'no_such_package'"):
        envs.make("mine/Later-v1")


def test_a_taken_id_is_refused_and_a_repeated_registration_is_not():
    envs.register("mine/Guess-v1", "fakes:Guess")
    envs.register("mine/Guess-v1", Guess)
    with pytest.raises(envs.DuplicateEnv, match="already fakes:Guess"):
        envs.register("mine/Guess-v1", "fakes:Parrot")


@pytest.mark.parametrize("id", ["Guess", "mine/Guess", "mine/Guess-1", "a/b/Guess-v1", ""])
def test_an_id_of_another_form_is_refused(id):
    with pytest.raises(ValueError, match="namespace/Name-vN"):
        envs.register(id, Guess)


def test_an_argument_that_the_constructor_lacks_is_answered_with_the_nearest():
    with pytest.raises(TypeError, match="takes no argument 'max_turn'; did you mean 'max_turns'"):
        envs.make("fakes:Guess", max_turn=3)


@pytest.mark.parametrize(
    ("id", "given", "says"),
    [
        (
            "turnwise/Shop-v1",
            {"product": 3},
            "takes no argument 'product'; did you mean 'products'",
        ),
        ("turnwise/Shop-v1", {"view_line": 9}, "did you mean 'view_lines'"),
        ("turnwise/Sql-v1", {"max_turn": 9}, "did you mean 'max_turns'"),
        ("turnwise/Repair-v1", {"n_bug": 9}, "did you mean 'n_bugs'"),
        ("turnwise/Sql-v1", {"wrapers": []}, "did you mean 'wrappers'"),
    ],
)
def test_so_is_one_that_no_class_on_the_way_of_options_takes(id, given, says):
    with pytest.raises(TypeError, match=says):
        envs.make(id, **given)
    with pytest.raises(TypeError, match=says if "wrapers" not in given else "wrappers"):
        envs.make(id, wrappers=[], **given)


class Picky(Guess):
    """Its constructor passes on what it is given, and has a bug of its own."""

    def __init__(self, **options):
        super().__init__()
        dict(options).update(1, 2, 3) if "bug" in options else (lambda size: size)(**options)


def test_an_error_within_a_constructor_is_not_taken_for_an_argument():
    envs.register("mine/Picky-v1", Picky)
    assert isinstance(envs.make("mine/Picky-v1", size=1), Picky)
    with pytest.raises(TypeError, match="update expected at most 1 argument"):
        envs.make("mine/Picky-v1", bug=1)


def test_a_module_and_class_stand_for_an_id():
    assert isinstance(envs.make("fakes:Guess"), Guess)


def test_installed_packages_are_found_and_a_broken_one_only_warns(monkeypatch):
    points = [
        EntryPoint("good", "fakes_plugin:register", registry.GROUP),
        EntryPoint("bad", "no_such_plugin", registry.GROUP),
    ]
    plugin = type(sys)("fakes_plugin")
    plugin.register = lambda: envs.register("plugged/Guess-v1", "fakes:Guess")
    monkeypatch.setitem(sys.modules, "fakes_plugin", plugin)
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_discovered", False)
    with pytest.warns(UserWarning, match="no_such_plugin"):
        assert isinstance(envs.make("plugged/Guess-v1"), Guess)
    with pytest.raises(envs.UnknownEnv, match="not loaded: no_such_plugin"):
        envs.make("plugged/Nothing-v1")


def test_gymnasium_makes_an_environment_after_importing_gymnasium_alone():
    code = """
        import gymnasium
        env = gymnasium.make("turnwise.envs:turnwise/BabyAI-GoToLocal-v1", disable_env_checker=None)
        observation, info = env.reset(seed=0)
        print(info["messages"][-1]["role"], env.spec.id)
    """
    if importlib.util.find_spec("minigrid") is None:  # importing it here would lose its ids
        pytest.skip("needs minigrid")
    assert run(code).split() == ["user", "turnwise/BabyAI-GoToLocal-v1"]


@pytest.mark.parametrize(
    "imports", ["gymnasium, turnwise.envs", "turnwise.envs, gymnasium", "turnwise.envs.base"]
)
def test_every_id_is_known_to_gymnasium_whatever_is_imported_first(imports):
    code = f"""
        import {imports}
        import gymnasium
        print("turnwise/FileHunt-v1" in gymnasium.registry)
    """
    assert run(code).split() == ["True"]


def test_importing_the_package_imports_nothing_heavy():
    code = """
        import sys, turnwise.envs
        heavy = {"torch", "transformers", "minigrid", "turnwise.envs.tool_env"}
        print(sorted(heavy & set(sys.modules)), "FileHunt" in dir(turnwise.envs))
    """
    assert run(code).split() == ["[]", "False"]


def test_every_exported_name_exists_and_a_wrong_one_does_not():
    for name in envs.__all__:
        assert getattr(envs, name) is not None
    assert set(envs._HOME_OF) - set(envs.__all__) == set()
    with pytest.raises(AttributeError, match="no attribute 'Evn'"):
        envs.Evn  # noqa: B018


def plug(monkeypatch, **modules) -> None:
    """Let modules stand for installed packages, each named by an entry point."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    points = [EntryPoint(name, f"{name}:register", registry.GROUP) for name in modules]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_discovered", False)


def test_a_thread_that_asks_while_packages_are_being_loaded_waits_until_all_are(monkeypatch):
    loading, plugin = threading.Event(), type(sys)("slow_plugin")

    def register():
        loading.set()
        time.sleep(0.2)
        envs.register("slow/Guess-v1", "fakes:Guess")

    plugin.register = register
    plug(monkeypatch, slow_plugin=plugin)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(envs.spec, "slow/Guess-v1")
        assert loading.wait(5)
        second = pool.submit(envs.spec, "slow/Guess-v1")
        assert first.result(5) == second.result(5)


def test_a_package_may_itself_ask_for_environments_while_it_is_loaded(monkeypatch):
    plugin, seen = type(sys)("curious_plugin"), []
    plugin.register = lambda: seen.append(len(envs.list_envs()))
    plug(monkeypatch, curious_plugin=plugin)
    assert len(envs.list_envs()) == seen[0]


def test_a_module_that_registers_by_decorator_can_be_loaded_again(tmp_path, monkeypatch):
    source = """
        from fakes import Guess
        from turnwise.envs import register

        @register("again/Mine-v1", tags=("toy",))
        class Mine(Guess):
            pass
    """
    (tmp_path / "again_env.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("again_env")
    first = envs.make("again/Mine-v1")
    importlib.reload(module)
    second = envs.make("again/Mine-v1")
    assert type(first) is not type(second) and type(second) is module.Mine
    assert type(envs.make("again_env:Mine")) is module.Mine
    del sys.modules["again_env"]


def test_an_environment_of_ones_own_is_known_to_gymnasium_by_every_way_in():
    import gymnasium

    envs.register("mine/ByName-v1", "fakes:Guess", kwargs={"max_turns": 4})
    envs.register("mine/ByClass-v1")(Guess)
    for id, turns in (("mine/ByName-v1", 4), ("mine/ByClass-v1", 10)):
        assert gymnasium.make(id, disable_env_checker=True).unwrapped.max_turns == turns


def test_an_id_of_gymnasium_is_made_into_text_and_an_unknown_one_is_answered():
    assert envs.spec("gymnasium/Taxi-v4").kwargs == {"env": "Taxi-v4"}
    assert envs.make("gymnasium/Taxi-v4").env_id == "gymnasium/Taxi-v4"
    with pytest.raises(envs.UnknownEnv, match="no gymnasium environment 'Taxy-v4'"):
        envs.make("gymnasium/Taxy-v4")
    with pytest.raises(envs.UnknownEnv, match="no gymnasium environment 'nowhere:Taxi-v4'"):
        envs.make("gymnasium/nowhere:Taxi-v4")


def test_an_id_of_ones_own_goes_before_gymnasiums():
    envs.register("gymnasium/Taxi-v4", "fakes:Guess")
    assert isinstance(envs.make("gymnasium/Taxi-v4"), Guess)
