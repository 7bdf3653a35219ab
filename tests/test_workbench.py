"""Laws of Workbench: the errand and nothing but the errand, however it is done."""

import itertools
import random

import pytest

from turnwise.envs import fuzz
from turnwise.envs.builtin.state_diff import Records
from turnwise.envs.builtin.workbench import MAX_DISTRACTORS, MAX_INBOX, Workbench
from turnwise.envs.builtin.workbench_grade import Goal, repairs, wrongs
from turnwise.envs.builtin.workbench_maker import WEEK
from turnwise.envs.builtin.workbench_tasks import BY_NAME, TEMPLATES, Chore, make_desk
from turnwise.envs.builtin.workbench_world import HOURS, all_of, facts, slot_order
from turnwise.envs.playing import play

HARDEST = {"distractors": MAX_DISTRACTORS, "inbox": MAX_INBOX}
EASIEST = {"depth": 1, "distractors": 0, "inbox": 0}
WRITES = {"create_event", "move_event", "delete_event", "write_file", "send_mail"}


def begin(task, **kwargs):
    env = Workbench(**{"max_turns": 500, **kwargs})
    env.reset(seed=0, options={"task": task})
    return env


def act(env, name, /, **args):
    return env.step(env.call_text(name, **args))


def solve(env, *, until=None):
    """Let the expert play on, up to its first call of `until`; return (reward, last info)."""
    total, done, info = 0.0, False, {}
    while not done:
        call = env.expert()
        if until is not None and env.format.parse(call).calls[0].name in until:
            break
        _, reward, terminated, truncated, info = env.step(call)
        total, done = total + reward, terminated or truncated
    return total, info


def task_of(template, index=0, **fields):
    return Chore(split="dev", index=index, template=template, **fields)


def candidate_calls(env):
    """Return many calls of everything that changes something, right and wrong ones."""
    people = [contact["address"] for contact in all_of(env.db, "c").values()]
    paths = [id for id in env.db if id[0] == "/"]
    for event in [*all_of(env.db, "e"), "e1"]:
        yield "delete_event", {"event": event}
        yield "move_event", {"event": event, "slot": "fri-17"}
        if event in env.db:
            yield "move_event", {"event": event, "slot": env.db[event]["slot"]}
    for path in [*paths, "/plans/moss"]:
        yield "write_file", {"path": path, "text": "x"}
    yield "write_file", {"path": paths[0], "text": env.db[paths[0]]["text"]}
    for address in people:
        yield "send_mail", {"to": address, "text": "tue-9 budget 12"}
        yield "create_event", {"slot": "mon-8", "title": "budget", "people": address}


# ---------------------------------------------------------------- the expert


@pytest.mark.parametrize("split", Workbench.splits)
@pytest.mark.parametrize(
    "knobs", [{}, HARDEST, EASIEST, {"depth": 4, **HARDEST, "actions": "hermes"}]
)
def test_the_expert_does_every_errand_within_the_turns(split, knobs):
    env = Workbench(**knobs, slack=0)
    for task in env.tasks(split)[:200]:
        env.reset(seed=0, options={"task": task})
        total, info = solve(env)
        assert total == 1.0 and info["success"] and info["differences"] == [], task


def stray(env, seed):
    """Let an agent wander for some turns, never to the end; return whether it still goes on."""
    rng = random.Random(seed)
    observation, info = env.reset(seed=seed)
    agent = fuzz.mixed_agent(info["tools"], expert=True)
    for _ in range(rng.randrange(1, 12)):
        action = agent(env, observation, rng)
        if rng.random() < 0.1:  # random words of what was read seldom make a call that works
            name, args = rng.choice(list(candidate_calls(env)))
            action = env.call_text(name, **args)
        if not action.startswith("done"):
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return False
    return True


def test_from_wherever_an_agent_has_strayed_the_expert_mends_what_can_be_mended():
    env, ends = Workbench(max_turns=500), []
    for seed in range(150):
        if stray(env, seed):
            lost = repairs(env.db, env.desk.goal) is None
            assert not lost or env.expert() == "done"
            total, info = solve(env)
            assert total == float(not lost), (seed, info["differences"])
            ends.append(lost)
    assert len(ends) > 100 and 10 < sum(ends) < len(ends) - 30


def test_what_can_be_mended_is_mended():
    env = begin(task_of("move_by_mail"))
    solve(env, until=WRITES)
    event = env.desk.errand.writes[0][1]["event"]
    other = next(id for id in all_of(env.db, "e") if id != event)
    path = next(id for id in env.db if id[0] == "/")
    act(env, "move_event", event=event, slot="mon-8")
    act(env, "move_event", event=other, slot="mon-8")
    act(env, "write_file", path=path, text="")
    address = next(iter(all_of(env.db, "c").values()))["address"]
    act(env, "create_event", slot="fri-8", title="x", people=address)
    assert len(wrongs(env.db, env.desk.goal)) == 4
    assert solve(env)[0] == 1.0


@pytest.mark.parametrize("call", ["delete_event", "send_mail", "write_file"])
def test_what_cannot_be_mended_ends_the_errand(call):
    env = begin(task_of("add_mails"))
    solve(env, until=WRITES)
    address = next(iter(all_of(env.db, "c").values()))["address"]
    args = {
        "delete_event": {"event": next(iter(all_of(env.db, "e")))},
        "send_mail": {"to": address, "text": "hello"},
        "write_file": {"path": "/notes/zinc", "text": "1"},
    }[call]
    act(env, call, **args)
    assert env.expert() == "done"
    total, info = solve(env)
    assert total == 0.0 and len(info["differences"]) == 2, "the sum is missing, too"
    assert any("hello" in line for line in info["differences"]) == (call == "send_mail")


def test_a_mail_that_some_have_is_sent_to_the_others():
    env = begin(task_of("move_and_tell"))
    solve(env, until={"send_mail"})
    ((_, mail),) = env.desk.goal.mails
    first, second = mail["to"].split(",")
    act(env, "send_mail", **{**mail, "to": second})
    assert env.expert() == env.call_text("send_mail", **{**mail, "to": first})
    assert solve(env)[0] == 1.0


# ---------------------------------------------------------------- the grade


@pytest.mark.parametrize("template", BY_NAME)
def test_any_further_change_after_the_experts_work_fails_the_grade(template):
    env = begin(task_of(template))
    solve(env, until={"done"})
    right, saved, seen = dict(env.db.changes), env.snapshot(), 0
    for name, args in candidate_calls(env):
        env.restore(saved)
        act(env, name, **args)
        changed = env.db.changes != right
        seen += changed
        _, reward, *_, info = act(env, "done")
        assert reward == float(not changed), (name, args)
        assert bool(info["differences"]) == changed
    assert seen > 10


@pytest.mark.parametrize("template", BY_NAME)
def test_the_changes_of_an_errand_may_come_in_any_order_and_none_may_be_missing(template):
    env = begin(task_of(template))
    saved, writes = env.snapshot(), env.desk.errand.writes
    for order in itertools.permutations(writes):
        env.restore(saved)
        for name, args in order:
            act(env, name, **args)
        assert act(env, "done")[1] == 1.0
    for left_out in range(len(writes)):
        env.restore(saved)
        for name, args in writes[:left_out] + writes[left_out + 1 :]:
            act(env, name, **args)
        assert act(env, "done")[1] == 0.0


def mailing():
    return [name for name in BY_NAME if make_desk(task_of(name)).goal.mails]


@pytest.mark.parametrize("template", mailing())
def test_one_mail_to_all_is_as_good_as_one_to_each_and_twice_is_too_often(template):
    env = begin(task_of(template))
    solve(env, until={"send_mail"})
    ((_, mail),) = env.desk.goal.mails
    twice = env.fork()
    for address in mail["to"].split(","):
        act(env, "send_mail", **{**mail, "to": address.upper()})
    for _ in range(2):
        act(twice, "send_mail", **{**mail, "to": mail["to"].replace(",", " , ")})
    assert act(env, "done")[1] == 1.0 and act(twice, "done")[1] == 0.0


@pytest.mark.parametrize("template", mailing())
def test_a_mail_may_be_worded_freely_and_may_not_hedge(template):
    env = begin(task_of(template))
    solve(env, until={"send_mail"})
    ((_, mail),) = env.desk.goal.mails
    hedge = {
        "slots": " ".join(WEEK),
        "numbers": " ".join(map(str, range(400))),
        "titles": "budget launch review audit hiring travel garden kitchen roadmap survey logo",
    }[env.desk.goal.kinds[0]]
    for text, right in [
        (f"Dear all,\nit is {mail['text'].upper()}.\nRegards", True),
        (f"{mail['text']} {hedge}", False),
        (hedge, False),
        ("", False),
        ("it is done", False),
    ]:
        fork = env.fork()
        act(fork, "send_mail", **{**mail, "text": text})
        assert act(fork, "done")[1] == float(right), text


def test_a_file_that_was_not_to_be_sent_is_too_much_and_one_that_was_must_be():
    env = begin(task_of("forward_file"))
    solve(env, until={"send_mail"})
    ((_, mail),) = env.desk.goal.mails
    other = next(id for id in env.db if id[0] == "/" and id != mail["file"])
    for file in ("", other):
        fork = env.fork()
        act(fork, "send_mail", **{**mail, "file": file})
        assert act(fork, "done")[1] == 0.0
    env = begin(task_of("mail_number"))
    solve(env, until={"send_mail"})
    ((_, mail),) = env.desk.goal.mails
    act(env, "send_mail", **{**mail, "file": next(id for id in env.db if id[0] == "/")})
    assert act(env, "done")[1] == 0.0


def test_a_new_event_counts_by_what_it_is_and_not_by_its_id():
    env = begin(task_of("meet"))
    solve(env, until={"create_event"})
    args = env.desk.errand.writes[0][1]
    me = env.db["me"]["address"]
    assert act(env, "create_event", slot="mon-8", title="x", people=args["people"])[0][0] == "e"
    first = next(id for id in env.db.changes)
    second = act(env, "create_event", **{**args, "people": f"{me}, {args['people']}"})[0]
    act(env, "delete_event", event=first)
    assert second != first and act(env, "done")[1] == 1.0


@pytest.mark.parametrize("wrong", ["slot", "people", "title"])
def test_an_event_of_another_time_title_or_company_is_not_it(wrong):
    env = begin(task_of("meet"))
    solve(env, until={"create_event"})
    args = env.desk.errand.writes[0][1]
    address = next(iter(all_of(env.db, "c").values()))["address"]
    stray = next(c["address"] for c in all_of(env.db, "c").values()
                 if c["address"] not in (*args["people"].split(","), address))  # fmt: skip
    changed = {"slot": "fri-17" if args["slot"] != "fri-17" else "fri-16", "title": "x"}
    changed["people"] = f"{args['people']},{stray}"
    act(env, "create_event", **{**args, wrong: changed[wrong]})
    *_, info = act(env, "done")
    assert not info["success"] and info["differences"][0].startswith("new events[0]")


def test_nothing_is_paid_before_the_agent_has_finished():
    env = begin(task_of("drop_event"))
    solve(env, until={"done"})
    cut = begin(task_of("drop_event"), max_turns=env.turn)
    total, info = solve(cut)
    assert total == 0.0 and not info["success"] and info["outcome"] == "truncated"


def test_what_was_wrong_is_said_by_path_and_only_to_people():
    env = begin(task_of("shift_event"))
    args = env.desk.errand.writes[0][1]
    was = env.db[args["event"]]["slot"]
    *_, info = act(env, "done")
    assert info["differences"] == [f"{args['event']}.slot: found {was!r}, wanted {args['slot']!r}"]
    assert info["metrics"]["differences"] == 1
    assert args["event"] not in info["messages"][0]["content"]


# ---------------------------------------------------------------- errands


@pytest.mark.parametrize("template", BY_NAME)
@pytest.mark.parametrize("knobs", [{"distractors": 0, "inbox": 0}, HARDEST])
def test_an_errand_changes_something_and_only_when_it_is_done(template, knobs):
    for index in range(30):
        desk = make_desk(task_of(template, index, **knobs))
        assert wrongs(desk.records, desk.goal) and not wrongs(desk.goal.records, desk.goal)
        assert repairs(desk.goal.records, desk.goal) == []
        calls = repairs(desk.records, desk.goal)
        assert sorted(map(str, calls)) == sorted(map(str, desk.errand.writes))


@pytest.mark.parametrize("template", ["meet", "meet_by_mail"])
def test_the_slot_of_a_meeting_is_the_first_in_which_all_are_free(template):
    for index in range(40):
        desk = make_desk(task_of(template, index, **HARDEST))
        args = next(args for name, args in desk.errand.writes if name == "create_event")
        day = args["slot"].partition("-")[0]
        people = [c for c in all_of(desk.records, "c").values()
                  if c["address"] in args["people"].split(",")]  # fmt: skip
        taken = {e["slot"] for e in all_of(desk.records, "e").values()}
        taken |= {slot for person in people for slot in person["busy"]}
        free = [f"{day}-{hour}" for hour in HOURS if f"{day}-{hour}" not in taken]
        assert len(people) == 2 and free[0] == args["slot"]
        assert slot_order(free[0]) > slot_order(desk.records["me"]["now"])


@pytest.mark.parametrize("template", ["move_by_mail", "save_number", "move_and_tell"])
def test_the_mail_that_counts_is_the_newest_of_its_sender_on_its_title(template):
    seen_later = 0
    for index in range(30):
        desk = make_desk(task_of(template, index))
        mails = all_of(desk.records, "m")
        id = next(args["mail"] for name, args in desk.errand.reads if name == "read_mail")
        right = mails[id]
        same = [i for i, m in mails.items() if m["title"] == right["title"]]
        by_sender = [i for i in same if mails[i]["sender"] == right["sender"]]
        assert by_sender[-1] == id and len(by_sender) > 1
        seen_later += same[-1] != id
    assert seen_later > 5, "the newest on the title is often somebody else's"


def test_the_sum_is_over_all_mails_of_a_title():
    for index in range(30):
        desk = make_desk(task_of("add_mails", index))
        title = next(args["word"] for name, args in desk.errand.reads if name == "search_mail")
        texts = [m["text"] for m in all_of(desk.records, "m").values() if m["title"] == title]
        numbers = [int(word) for text in texts for word in text.split() if word.isdigit()]
        assert str(sum(numbers)) == desk.errand.writes[0][1]["text"] and len(numbers) >= 2


def test_events_go_that_somebody_who_left_hosts_and_not_those_where_they_are_guests():
    for index in range(30):
        desk = make_desk(task_of("somebody_left", index))
        gone = next(args["word"] for name, args in desk.errand.reads if name == "search_events")
        events = all_of(desk.records, "e")
        hosted = {id for id, event in events.items() if event["host"] == gone}
        deleted = {args["event"] for name, args in desk.errand.writes if name == "delete_event"}
        assert deleted == hosted
        assert any(gone in event["people"] for event in events.values())


@pytest.mark.parametrize("template", BY_NAME)
def test_everything_that_an_errand_speaks_of_can_be_told_apart(template):
    for index in range(30):
        records = make_desk(task_of(template, index, **HARDEST)).records
        slots = [event["slot"] for event in all_of(records, "e").values()]
        who = [(c["name"], c["team"]) for c in all_of(records, "c").values()]
        addresses = [c["address"] for c in all_of(records, "c").values()]
        assert all(len(set(x)) == len(x) for x in (slots, who, addresses))


def test_depth_means_more_to_do_and_the_inbox_fills_up():
    def turns(depth):
        env, total = Workbench(depth=depth), 0
        for task in env.tasks("dev")[:36]:
            env.reset(seed=0, options={"task": task})
            solve(env)
            total += env.turn
        return total

    counts = [turns(depth) for depth in (1, 2, 3, 4)]
    assert counts == sorted(set(counts))
    assert len(all_of(make_desk(task_of("meet", inbox=MAX_INBOX)).records, "m")) >= MAX_INBOX
    few, many = (len(make_desk(task_of("drop_event", distractors=n)).records.base) for n in (0, 4))
    assert few < many


def test_kinds_of_errand_take_turns():
    for depth, templates in TEMPLATES.items():
        kinds = [task.template for task in Workbench(depth=depth).tasks("test")[:12]]
        assert set(kinds) == {template.__name__ for template in templates}
    assert {task.template for task in Workbench().tasks("train")[: len(BY_NAME)]} == set(BY_NAME)


# ---------------------------------------------------------------- who does not try


@pytest.mark.parametrize("knobs", [{}, EASIEST])
def test_who_finishes_at_once_or_calls_tools_at_random_earns_nothing(knobs):
    env = Workbench(**knobs)
    for task in env.tasks("test")[:100]:
        env.reset(seed=0, options={"task": task})
        assert env.step("done")[1] == 0.0
    _, info = env.reset(seed=0)
    agent = fuzz.random_agent(info["tools"])
    assert sum(play(env, seed, agent).reward for seed in range(100)) == 0.0


# ---------------------------------------------------------------- tools and state


def test_every_tool_changes_only_what_it_says():
    env = begin(task_of("meet"))
    saved = env.snapshot()
    for name, args in candidate_calls(env):
        env.restore(saved)
        act(env, name, **args)
        changed = set(env.db.changes)
        if name in ("move_event", "delete_event"):
            assert changed <= {args["event"]}
        elif name == "write_file":
            assert changed <= {args["path"]}
        elif name == "send_mail":
            assert changed == {f"to/{args['to']}"}
        else:
            ((id, event),) = env.db.changes.items()
            assert id not in env.db.base and event["title"] == args["title"]


def test_looking_changes_no_record_and_a_refused_call_changes_nothing():
    env = begin(task_of("meet"))
    event, mail = next(iter(all_of(env.db, "e"))), next(iter(all_of(env.db, "m")))
    address = next(iter(all_of(env.db, "c").values()))["address"]
    for name, args in [
        *[("list_events", {"day": day}) for day in ("mon", "fri")],
        ("search_events", {"word": "budget"}),
        ("read_event", {"event": event}),
        ("search_mail", {"word": address}),
        ("read_mail", {"mail": mail}),
        ("list_files", {"folder": "notes"}),
        ("read_file", {"path": next(id for id in env.db if id[0] == "/")}),
        ("find_contact", {"name": "ada"}),
        ("list_busy", {"address": address, "day": "tue"}),
    ]:
        observation, *_, info = act(env, name, **args)
        assert "error" not in info and observation and env.db.changes == {}
    before = env.state_hash()
    for name, args in [
        ("read_event", {"event": "m1"}),
        ("read_event", {"event": "c1"}),
        ("read_mail", {"mail": "e1"}),
        ("delete_event", {"event": "/plans/moss"}),
        ("move_event", {"event": event, "slot": "sun-9"}),
        ("move_event", {"event": event, "slot": "mon-18"}),
        ("create_event", {"slot": "mon-9", "title": "x", "people": "nobody.here"}),
        ("create_event", {"slot": "mon-9", "title": "x", "people": ""}),
        ("send_mail", {"to": f"{address},nobody.here", "text": "x"}),
        ("send_mail", {"to": address, "text": "x", "file": "/plans/nothing"}),
        ("write_file", {"path": "/etc/passwd", "text": "x"}),
        ("write_file", {"path": "/plans/../notes/moss", "text": "x"}),
        ("read_file", {"path": "me"}),
        ("list_busy", {"address": "nobody.here", "day": "mon"}),
    ]:
        observation, *_, info = act(env, name, **args)
        assert info["error"] == "tool_raised" and env.state_hash() == before, (name, args)
        assert len(observation) < 400


def test_an_id_is_not_given_to_two_events():
    env = begin(task_of("meet"))
    address = next(iter(all_of(env.db, "c").values()))["address"]
    last = max(all_of(env.db, "e"), key=lambda id: int(id[1:]))
    act(env, "delete_event", event=last)
    made = [act(env, "create_event", slot="mon-8", title="x", people=address)[0] for _ in range(2)]
    assert int(last[1:]) < int(made[0][1:]) < int(made[1][1:])


def test_facts_are_read_however_they_are_worded():
    mail = {
        "text": "From MON-9 to tue-09, 1,200 or 7. The budget; not budgets, v2.5, a-3",
        "file": "",
    }
    assert facts(mail, ("slots", "numbers", "titles")) == {
        "slots": ("mon-9", "tue-9"),
        "numbers": ("1200", "7"),
        "titles": ("budget",),
        "file": "",
    }


def test_the_state_is_the_same_by_every_way_that_leads_to_it():
    task = task_of("meet")
    one, other = begin(task), begin(task)
    reads = one.desk.errand.reads
    for env, order in ((one, reads), (other, (*reversed(reads), reads[0]))):
        for name, args in order:
            act(env, name, **args)
    assert one.state_hash() == other.state_hash()
    event = next(iter(all_of(one.db, "e")))
    was = one.db[event]["slot"]
    act(one, "move_event", event=event, slot="mon-8")
    assert one.state_hash() != other.state_hash()
    act(one, "move_event", event=event, slot=was)
    assert one.state_hash() == other.state_hash()


def test_a_fork_goes_on_alike_and_alone():
    env = begin(task_of("meet_by_mail"))
    for _ in range(4):
        env.step(env.expert())
    fork, before = env.fork(), env.state_hash()
    assert solve(fork)[0] == 1.0 and env.state_hash() == before and solve(env)[0] == 1.0


def test_repairs_of_equal_events_count_them():
    event = {"title": "x", "slot": "mon-8", "host": "me.owl", "people": ("a.fox",), "file": ""}
    twice = Records({}, {"e1": event, "e2": event})
    once, none = Records({}, {"e1": event}), Records({})
    assert repairs(twice, Goal(records=once)) == [("delete_event", {"event": "e2"})]
    assert len(repairs(none, Goal(records=twice))) == 2
    assert [call[0] for call in repairs(once, Goal(records=twice))] == ["create_event"]


def test_names_are_words_that_a_tokenizer_can_hold():
    assert all(word.isalnum() for word in Workbench.words)
    assert len(set(Workbench.words)) == len(Workbench.words)


@pytest.mark.parametrize(
    "knobs",
    [
        {"depth": 0},
        {"depth": 5},
        {"depth": (3, 2)},
        {"distractors": 5},
        {"distractors": -1},
        {"inbox": 65},
    ],
)
def test_a_knob_out_of_range_is_refused_with_its_value_and_rule(knobs):
    ((name, value),) = knobs.items()
    with pytest.raises(
        ValueError, match=rf"{name} must lie in .*got .*{str(value)[:2].strip('(')}"
    ):
        Workbench(**knobs)
