"""The command: exit codes, one clear line per mistake, JSON for programs, help that shows how."""

from __future__ import annotations

import contextlib
import json
import math
import re
import resource
import shlex
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from fakes import Guess

from turnwise.cli.main import VERBS, main
from turnwise.cli.options import parse
from turnwise.envs.tools import reward, tool
from turnwise.sandboxes.base import NoSafeSandbox

ROOT = Path(__file__).parent.parent

OK, USAGE, FAILED, DIVERGED, INFRASTRUCTURE = range(5)


class Generous(Guess):
    """Pays for nothing."""

    @reward(weight=1.0)
    def solved(self, episode) -> float:
        return 1.0


class Fickle(Guess):
    """Says what `voice` says."""

    voice = "higher"

    def _shown(self, result):
        return self.voice if result == "higher" else super()._shown(result)


class Homeless(Guess):
    """Needs a sandbox where there is none."""

    def reset(self, *, seed=None, options=None):
        raise NoSafeSandbox("bwrap is missing; run `apt-get install bubblewrap`")


class Buggy(Guess):
    """Has a bug."""

    def tasks(self, split):
        return {}["nothing"]


class Mute(Guess):
    """Says nothing at the start."""

    def setup(self, task, rng):
        super().setup(task, rng)
        return ""


class Endless(Guess):
    """Says too much at the start."""

    def setup(self, task, rng):
        return super().setup(task, rng) + " blah" * 2000


class Barren(Guess):
    """Has nothing to solve."""

    def tasks(self, split):
        return []


class Boundless(Guess):
    """Pays what no number holds."""

    def solved(self, episode):
        return math.inf

    solved = reward(weight=1.0)(solved)


class Trap(Guess):
    """Breaks when it is used."""

    @tool
    def look(self, number: int) -> str:
        """Compare."""
        raise ZeroDivisionError("the trap")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TURNWISE_DEBUG", raising=False)


@pytest.fixture
def turnwise(capsys):
    """Run a command line; return (exit code, stdout, stderr)."""

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def record(turnwise, env: str = "fakes:Guess", more: str = "") -> Path:
    path = Path("record.jsonl")
    code, _, err = turnwise(f"eval {env} --tasks 6 --skip-floors --record {path} {more}")
    assert code == OK, err
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_an_example_that_parses(verb, turnwise):
    code, out, _ = turnwise(f"{verb} --help")
    assert code == OK
    example = re.search(r"example:\n +turnwise (.+)", out)
    assert example, out
    name, *arguments = shlex.split(example[1])
    assert name == verb
    parse(import_module(f"turnwise.cli.{verb.replace('-', '_')}").Options, verb, arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_fits_a_terminal_and_is_free_of_what_says_nothing(
    verb, turnwise, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = turnwise(f"{verb} --help")
    page = out.split("subcommands")[0]
    assert max(map(len, page.splitlines())) <= 100
    for noise in ("None", "False", "(default: )", "(default: '", "{None}"):
        assert noise not in page


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_explains_its_exit_code(verb):
    module = import_module(f"turnwise.cli.{verb.replace('-', '_')}")
    assert "json" in {field.name for field in fields(module.Options)}
    assert "exit code" in module.run.__doc__


def test_the_help_of_the_command_names_every_verb(turnwise):
    code, out, _ = turnwise("--help")
    assert code == OK
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert turnwise("")[0] == USAGE


MISTAKES = {
    "lsit": "did you mean 'list'?",
    "list --tag babyia": "did you mean 'babyai'?",
    "list --tagg babyai": "--tag",
    "info turnwise/FileHint-v1": "did you mean 'turnwise/FileHunt-v1'?",
    "info nowhere:Env": "no module 'nowhere'",
    "info fakes:Gues": "did you mean 'Guess'?",
    "info fakes:Guess --env-kwargs '{'": "must be a JSON object",
    "info fakes:Guess --env-kwargs '[]'": "must be a JSON object",
    """info fakes:Guess --env-kwargs '{"max_turn": 1}'""": "did you mean 'max_turns'?",
    "check": "ENV",
    "check fakes:Guess --concurrency many": "'many'",
    "check fakes:Guess --concurrency 1": "concurrency >= 2",
    "eval fakes:Guess --split tset": "did you mean 'test'?",
    "eval fakes:Guess --first-task 50": "has 50 tasks",
    "eval fakes:Guess --tasks 0": "has 50 tasks",
    "eval fakes:Guess --policy ./nowhere": "no model in folder './nowhere'",
    "eval fakes:Guess --by depth": "no field 'depth'",
    "eval fakes:Guess --record /proc/no/record.jsonl": "folder that you may write",
    "eval test_cli:Barren": "has 0 tasks",
    "eval fakes:Guess --record a_file/record.jsonl": "its folder is a file",
    "replay nowhere.jsonl": "No such file",
    "replay .": "no episodes.jsonl",
    "view nowhere.jsonl": "No such file",
    "recipes turn_rlo": "did you mean 'turn_rloo'?",
    "train --recipe turn_rlo": "did you mean 'turn_rloo'?",
    "train --model ./nowhere": "no model in folder './nowhere'",
    "train --env nowhere:Env": "no module 'nowhere'",
    "train --group-size 1": "group_size must be at least 2",
    "train --env-kwargs '[]'": "must be a JSON object",
    "train --learning-rate -1": "learning_rate must be above 0 to learn, got -1",
    "train --learning-rate nan": "learning_rate must be a finite number, got nan",
    "train --max-grad-norm 0": "max_grad_norm must be above 0 to learn, got 0",
    "train --weight-decay -1": "weight_decay must be 0 or more, got -1",
    "train --warmup-steps -5": "warmup_steps must be 0 or more, got -5",
    "train --temperature nan": "temperature must be a finite number, got nan",
    """train --recipe sod --recipe-options '{"delta": "x"}'""": "takes a number, got 'x'",
    """train --recipe opd_then_rl --recipe-options '{"switch": 1.5}'""": "number or null, got 1.5",
    "train --recipe grpo --teacher x": "recipe 'grpo' learns from no teacher, and teacher 'x'",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_with_one_line_that_says_what_to_do(line, turnwise):
    Path("a_file").touch()
    code, out, err = turnwise(line)
    assert (code, out) == (USAGE, "")
    assert err.startswith("turnwise")
    assert err.count("\n") == 1
    assert MISTAKES[line] in err


def test_an_environment_in_a_file_of_the_present_folder_is_found(turnwise, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_world.py").write_text("from fakes import Guess as World")
    assert turnwise("info my_world:World")[0] == OK


def test_a_bug_is_one_line_too_until_debug_shows_where(turnwise, monkeypatch):
    code, _, err = turnwise("info test_cli:Buggy")
    assert code == USAGE
    assert err == "turnwise info: unexpected KeyError: 'nothing'; add --debug to see where\n"
    with pytest.raises(KeyError):
        main(["info", "test_cli:Buggy", "--debug"])
    monkeypatch.setenv("TURNWISE_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["info", "test_cli:Buggy"])


def test_debug_shows_where_an_episode_was_lost_and_nothing_stays_switched_on(turnwise):
    line = "eval test_cli:Trap --tasks 1 --skip-floors"
    code, out, err = turnwise(line)
    assert (code, "Traceback" in err) == (INFRASTRUCTURE, False)
    assert "masked 1x: ZeroDivisionError: the trap (test_cli.py:" in out
    code, out, err = turnwise(f"{line} --debug --record again.jsonl")
    assert (code, err.count("Traceback"), "in look" in err) == (INFRASTRUCTURE, 2, True)
    assert "Traceback" not in turnwise(f"{line} --record third.jsonl")[2]


def test_the_page_of_methods_is_what_the_recipes_say(turnwise):
    code, page, _ = turnwise("recipes --markdown")
    assert code == 0 and page == (ROOT / "docs" / "papers.md").read_text(), (
        "run `turnwise recipes --markdown > docs/papers.md`"
    )


def test_list_info_and_recipes_print_json(turnwise):
    listed = json.loads(turnwise("list --json")[1])["envs"]
    assert "turnwise/FileHunt-v1" in [env["id"] for env in listed]
    assert all(env["splits"] for env in listed)
    facts = json.loads(turnwise("info fakes:Guess --json --turns 2")[1])
    assert facts["summary"].startswith("Guess a number")
    assert facts["example"]["tools"][0]["signature"] == "look(number: int)"
    assert len(facts["example"]["turns"]) == 2
    recipes = json.loads(turnwise("recipes --json")[1])["recipes"]
    assert recipes[0]["name"] == "turn_rloo"
    assert "ppo(low=0.2, high=0.28)" in recipes[0]["pieces"].values()


def test_a_recipe_shows_its_formula_source_status_and_pieces(turnwise, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    for entry in json.loads(turnwise("recipes --json")[1])["recipes"]:
        shown = turnwise(f"recipes {entry['name']}")[1]
        told = [entry["source"], entry["status"], *entry["pieces"].values()]
        assert all(part in shown for part in (*told, entry["formula"])), entry["name"]


def test_the_list_of_recipes_names_pieces_source_and_status(turnwise, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    shown = turnwise("recipes")[1].splitlines()
    rows = {line.split()[0]: line for line in shown if line.strip()}
    assert "reverse_kl, sod, added" in rows["sod"]
    assert "by_levels, ppo, sequence_ratio" in rows["gspo"]
    assert "reverse_kl, f2b" in rows["tcod_f2b"] and "by_chance" in rows["dagger"]
    for entry in json.loads(turnwise("recipes --json")[1])["recipes"]:
        assert entry["short"] and entry["short"] in rows[entry["name"]]
        assert entry["source"] in rows[entry["name"]] and entry["status"] in rows[entry["name"]]


def test_tables_show_what_the_json_says(turnwise):
    assert "turnwise/FileHunt-v1" in turnwise("list")[1]
    shown = turnwise("info fakes:Guess")[1]
    assert "look(number: int)" in shown
    assert "Café: guess my number" in shown
    assert "turn-RLOO" in turnwise("recipes turn_rloo")[1]


def test_check_exits_2_and_says_how_to_mend_when_a_law_is_broken(turnwise):
    code, out, _ = turnwise("check fakes:Guess --seeds 4 --concurrency 2 --json")
    assert (code, json.loads(out)["ok"]) == (OK, True)
    code, out, _ = turnwise("check test_cli:Generous --seeds 4 --concurrency 2")
    assert code == FAILED
    assert "mend" in out
    code, out, _ = turnwise("check test_cli:Generous --seeds 4 --concurrency 2 --json")
    assert (code, json.loads(out)["ok"]) == (FAILED, False)


def test_eval_shows_the_score_beside_its_floors_and_exits_2_below_the_one_asked_for(turnwise):
    code, out, _ = turnwise("eval fakes:Guess --tasks 20 --floor 0.9 --json")
    report = json.loads(out)
    assert (code, report["passed"], report["success"]["value"]) == (OK, True, 1.0)
    assert set(report["floors"]) == {"noop", "random"}
    code, out, _ = turnwise("eval fakes:Guess --tasks 20 --policy noop --floor 0.1")
    assert code == FAILED
    assert "floor 0.1 missed" in out


def test_the_same_eval_again_plays_nothing(turnwise):
    path = record(turnwise)
    before = path.read_bytes()
    assert record(turnwise) == path
    assert path.read_bytes() == before
    code, _, err = turnwise(f"eval fakes:Guess --tasks 6 --skip-floors --record {path} --seed 1")
    assert code == USAGE
    assert "another evaluation's" in err


def test_replay_exits_3_where_the_environment_no_longer_does_what_was_recorded(
    turnwise, monkeypatch
):
    path = record(turnwise, "test_cli:Fickle")
    code, out, _ = turnwise(f"replay {path} --json")
    assert (code, json.loads(out)["diverged"]) == (OK, 0)
    monkeypatch.setattr(Fickle, "voice", "more")
    code, out, _ = turnwise(f"replay {path}")
    assert code == DIVERGED
    assert "was 'higher', is now 'more'" in out
    assert turnwise(f"replay {path} --mode rescore")[0] == OK  # the rewards are the same
    monkeypatch.setattr(Fickle, "solved", Generous.solved)
    code, out, _ = turnwise(f"replay {path} --mode view --episode 0.0")
    assert (code, "higher" in out or "lower" in out) == (OK, True)


def test_replay_names_the_nearest_episode_and_passes_over_solved_ones(turnwise):
    path = record(turnwise)
    assert "did you mean" in turnwise(f"replay {path} --episode 0.7")[2]
    assert json.loads(turnwise(f"replay {path} --failed --json")[1])["episodes"] == 0


def test_a_changed_and_a_newer_record_are_refused_with_the_line_at_fault(turnwise):
    path = record(turnwise)
    text = path.read_text()
    path.write_text(text.replace("lower", "LOWER"))
    code, _, err = turnwise(f"replay {path}")
    assert code == USAGE
    assert re.search(r"line \d+: changed after it was written", err)
    path.write_text(text.replace("turnwise.episode/1", "turnwise.episode/99", 1))
    assert "pip install -U turnwise" in turnwise(f"replay {path}")[2]


def test_view_writes_a_page(turnwise):
    path = record(turnwise)
    code, out, _ = turnwise(f"view {path} -o page.html --replay --most 4 --json")
    facts = json.loads(out)
    assert (code, facts["shown"], facts["success"]["value"]) == (OK, 4, 1.0)
    assert Path("page.html").read_text().count('"replay":"exact"') == 4


def test_what_the_machine_cannot_do_exits_4(turnwise, monkeypatch):
    code, _, err = turnwise("check test_cli:Homeless")
    assert (code, "apt-get install bubblewrap" in err) == (INFRASTRUCTURE, True)
    code, out, _ = turnwise("eval test_cli:Homeless --tasks 2 --skip-floors")
    assert (code, "apt-get install bubblewrap" in out) == (INFRASTRUCTURE, True)
    code, out, _ = turnwise("info test_cli:Homeless")  # the rest is still worth knowing
    assert (code, "apt-get install bubblewrap" in out) == (OK, True)
    monkeypatch.setattr("turnwise.sandboxes.open.BACKENDS", {})
    code, out, _ = turnwise("doctor --json")
    assert (code, json.loads(out)["safe_sandbox"]) == (INFRASTRUCTURE, False)


def test_a_long_line_of_a_table_is_broken_and_never_cut(turnwise, monkeypatch):
    class Mute:
        isolates = True

        @staticmethod
        def open(spec):
            raise NoSafeSandbox(" ".join(f"word{k}" for k in range(60)))

    monkeypatch.setattr("turnwise.sandboxes.open.BACKENDS", {"a-backend-with-a-name": Mute})
    _, out, _ = turnwise("doctor")
    assert "sandbox a-backend-with-a-name" in out
    assert all(f"word{k}" in out for k in range(60))


def test_doctor_gives_a_command_for_every_extra_that_is_missing(turnwise, monkeypatch):
    monkeypatch.setattr("turnwise.sandboxes.open.BACKENDS", {})
    monkeypatch.setattr("turnwise.cli.doctor.missing", lambda extra: ["one", "two"])
    signs = json.loads(turnwise("doctor --json")[1])["signs"]
    mended = {sign["name"]: sign["mend"] for sign in signs if sign["mend"]}
    assert mended["extra babyai"] == "pip install 'turnwise[babyai]'"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with a small random model that can read `Guess`."""
    from turnwise.trainers.model import save_model, tiny_from_env

    model, tokenizer = tiny_from_env(Guess, tasks=8, hidden=32, layers=1, head_dim=16, ffn=32)
    return save_model(model, tokenizer, tmp_path_factory.mktemp("model"))


def test_a_model_is_trained_measured_replayed_and_viewed_from_the_command_line(
    tiny, turnwise, monkeypatch
):
    size = "--tasks-per-step 2 --group-size 2 --max-new-tokens 4"
    code, out, _ = turnwise(
        f"train --env fakes:Guess --model {tiny} --steps 2 {size} --out run --json"
    )
    assert code == OK
    assert [json.loads(line)["step"] for line in out.splitlines()] == [1, 2]
    again = f"train --env fakes:Guess --model {tiny} --steps 2 {size} --out run"
    assert "--resume" in turnwise(again)[2]
    code, out, _ = turnwise(f"{again} --resume")
    assert (code, "turnwise eval fakes:Guess --policy run/model" in out) == (OK, True)
    monkeypatch.setenv("PATH", "/nowhere")  # as in a shell that has not activated the environment
    assert f"  {Path(sys.executable).parent}/turnwise eval" in turnwise(f"{again} --resume")[1]

    path = record(turnwise, more="--policy run/model --max-new-tokens 4")
    assert turnwise(f"replay {path} --mode tokens --model run/model")[0] == OK
    assert turnwise("replay run")[0] == OK
    assert turnwise("view run -o page.html --model run/model")[0] == OK


SMALL = "--steps 1 --tasks-per-step 2 --group-size 2 --max-new-tokens 4 --out run"
UNTRAINABLE = {
    "test_cli:Mute": "4x ValueError: the opening is empty; reset must return what the agent reads",
    "test_cli:Boundless": "4x solved must return a finite number, got inf",
    "test_cli:Endless": "is max_tokens 1024 shorter than an opening?",
}


@pytest.mark.parametrize("env", UNTRAINABLE)
def test_an_environment_that_cannot_be_trained_on_is_answered_with_one_line(env, tiny, turnwise):
    code, _, err = turnwise(f"train --env {env} --model {tiny} {SMALL}")
    assert (code, err.count("\n")) == (INFRASTRUCTURE, 1)
    assert UNTRAINABLE[env] in err
    assert "turnwise.cli.failures" not in err


def test_a_tokenizer_of_another_model_is_answered_with_one_line(tiny, turnwise, tmp_path):
    from turnwise.trainers.model import load_model, save_model, tiny_from_env

    model, _ = load_model(str(tiny))
    _, larger = tiny_from_env(Guess, tasks=40, hidden=32, layers=1, head_dim=16, ffn=32)
    larger.add_tokens([f"<{k}>" for k in range(4000)])
    save_model(model, larger, tmp_path / "mixed")
    for line in (
        f"train --env fakes:Guess --model mixed {SMALL}",
        "eval fakes:Guess --policy mixed",
    ):
        code, _, err = turnwise(line)
        assert (code, err.count("\n")) == (USAGE, 1)
        assert "they do not belong together; load both from the same folder" in err


def test_limits_that_decide_what_is_played_are_named_with_the_option_that_lifts_them(
    tiny, turnwise
):
    model = f"--policy {tiny} --skip-floors --tasks 3"
    _, out, _ = turnwise(f"eval fakes:Guess {model} --max-new-tokens 2 --record a.jsonl")
    assert re.search(r"(?m)^(\d+) of \1 actions were cut at --max-new-tokens 2; raise it", out)
    _, out, _ = turnwise(f"eval test_cli:Endless {model} --record b.jsonl")
    assert "3 episodes ended before their first turn" in out
    assert "longer than --max-tokens 1024; raise it" in out
    code, out, _ = turnwise(f"train --env fakes:Guess --model {tiny} {SMALL} --json")
    alarms = json.loads(out)["alarms"]
    assert code == OK and "100% of the actions are cut at max_new_tokens; raise it" in alarms


@contextlib.contextmanager
def small_files(most: int = 20_000):
    """Let no file grow beyond so many bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_the_fault_of_the_machine_and_the_same_command_goes_on_later(tiny, turnwise):
    measure = "eval fakes:Guess --tasks 40 --skip-floors --record record.jsonl --json"
    look = f"view {record(turnwise)} -o page.html"
    train = f"train --env fakes:Guess --model {tiny} {SMALL}"
    Path("record.jsonl").rename("six.jsonl")
    lines = {
        measure: "free space or choose a folder that you may write, then resume",
        look.replace("record", "six"): "page.html: File too large; free some space",
        train: "free some space and run again with --resume",
    }
    for line, cure in lines.items():
        with small_files():
            code, _, err = turnwise(line)
        assert (code, err.count("\n")) == (INFRASTRUCTURE, 1)
        assert cure in err
    kept = Path("record.jsonl").read_bytes()
    assert 1 < kept.count(b"\n") < 41
    assert turnwise(measure)[0] == OK
    assert Path("record.jsonl").read_bytes().startswith(kept)
    assert turnwise(f"{train} --resume")[0] == OK
