"""Laws of RefundDesk: the policy decides, the records are the grade, and nothing else pays."""

import itertools
import random
import statistics

import pytest

from turnwise.envs import fuzz
from turnwise.envs.builtin.refund_desk import RefundDesk
from turnwise.envs.builtin.refund_desk_expert import is_spoilt
from turnwise.envs.builtin.refund_desk_maker import make_desk
from turnwise.envs.builtin.refund_desk_policy import QUESTIONS, broken_rule
from turnwise.envs.builtin.refund_desk_tasks import MAX_LEVEL
from turnwise.envs.builtin.refund_desk_user import Customer
from turnwise.envs.builtin.refund_desk_world import CARRIERS, PAYMENTS
from turnwise.envs.playing import play

HARDEST = {"requests": 4, "rules": 6, "fickle": 1.0, "cooperative": 0.0, "users": 64}
READS = {"list_orders", "get_order", "get_product"}
LOOKS = [("list_orders", {"user": "u1"}), ("get_product", {"type": "mug"})]


def begin(task, **kwargs):
    env = RefundDesk(**{"max_turns": 500, **kwargs})
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


def tasks(count=60, split="dev", **knobs):
    return RefundDesk(**knobs).tasks(split)[:count]


def tasks_where(accept, count=6, **knobs):
    """Return the first tasks whose desk `accept` takes."""
    found = (t for t in RefundDesk(**knobs).tasks("dev")[:2000] if accept(make_desk(t)))
    return list(itertools.islice(found, count))


def wishes(desk):
    return desk.script.wishes


# ---------------------------------------------------------------- the expert


@pytest.mark.parametrize("split", RefundDesk.splits)
@pytest.mark.parametrize("knobs", [{}, HARDEST, {"terse": True, "actions": "hermes", "users": 2}])
def test_the_expert_resolves_every_task_within_the_turns(split, knobs):
    env = RefundDesk(**knobs, slack=0)
    for task in env.tasks(split)[:200]:
        env.reset(seed=0, options={"task": task})
        total, info = solve(env)
        assert total == 1.0 and info["success"] and info["differences"] == [], task


def stray(env, seed):
    """Let an agent wander for some turns, never to the end; return whether it still goes on."""
    rng = random.Random(seed)
    observation, info = env.reset(seed=seed)
    agent = fuzz.mixed_agent(info["tools"], expert=True)
    for _ in range(rng.randrange(1, 40)):
        action = agent(env, observation, rng)
        if rng.random() < 0.05:  # random words of what was read seldom make a call that works
            name, args = rng.choice(list(candidate_calls(env)))
            action = env.call_text(name, **args)
        if not action.startswith("done"):
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return False
    return True


def test_from_wherever_an_agent_has_strayed_the_expert_resolves_what_can_be_resolved():
    env, ends = RefundDesk(max_turns=500, requests=(1, 4), rules=(1, 6)), []
    for seed in range(120):
        if stray(env, seed):
            spoilt = is_spoilt(env.desk, env.db)
            assert not spoilt or env.expert() == "done"
            total, info = solve(env)
            assert total == float(not spoilt), (seed, info["differences"])
            ends.append(spoilt)
    assert len(ends) > 60 and 5 < sum(ends) < len(ends) - 20


def test_a_wrong_refusal_can_be_mended_and_a_wrong_refund_cannot():
    (task,) = tasks_where(lambda d: d.calls[0][0] == "refund_item", 1, requests=1, fickle=0.0)
    env = begin(task)
    solve(env, until={"refund_item"})
    args = env.desk.calls[0][1]
    act(env, "decline", order=args["order"], reason="status")
    assert not is_spoilt(env.desk, env.db) and env.fork().expert() == env.expert()
    wrong = env.fork()
    act(wrong, "refund_item", **{**args, "cents": args["cents"] + 1})
    assert wrong.expert() == "done" and solve(wrong)[0] == 0.0
    assert solve(env)[0] == 1.0


# ---------------------------------------------------------------- the grade


def candidate_calls(env):
    """Return many calls of everything that changes something, right and wrong ones."""
    orders = [id for id in env.desk.records if id[0] == "o" and "/" not in id]
    mine = [o for o in orders if env.desk.records[o]["user"] == env.desk.user]
    for order in [*mine, *orders[:3]]:
        yield "cancel_order", {"order": order}
        yield "update_address", {"order": order, "address": "elm-1"}
        yield "update_address", {"order": order, "address": env.db[order]["address"]}
        for reason in ("owner", "status", "window", "payment", "type", "stock"):
            yield "decline", {"order": order, "reason": reason}
        yield "transfer", {"order": order, "reason": "damaged"}
        for payment in PAYMENTS:
            given = {"order": order, "item": "i1", "payment": payment}
            yield "refund_item", {**given, "cents": 100}
        yield "exchange_item", {"order": order, "item": "i1", "product": "p1"}


@pytest.mark.parametrize("task", tasks(12, requests=(1, 3), rules=6), ids=lambda t: str(t.index))
def test_any_further_change_after_the_experts_work_fails_the_grade(task):
    env = begin(task)
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


def test_requests_may_be_settled_in_any_order():
    for task in tasks(12, requests=3, rules=6):
        env = begin(task)
        solve(env, until={"get_order", "list_orders"})
        while not env.customer.satisfied:
            act(env, "say", text="anything else")
        act(env, "say", text="please confirm")
        saved = env.snapshot()
        for calls in itertools.permutations(env.desk.calls):
            env.restore(saved)
            for name, args in calls:
                act(env, name, **args)
            assert act(env, "done")[1] == 1.0


def test_nothing_is_paid_before_the_agent_has_finished():
    task = tasks(1)[0]
    env = begin(task)
    solve(env, until={"done"})
    turns = env.turn
    cut = begin(task, max_turns=turns)
    total, info = solve(cut)
    assert total == 0.0 and info["outcome"] == "truncated" and not info["success"]


def test_who_decides_before_verifying_has_broken_the_policy_for_good():
    for task in tasks_where(lambda d: d.calls[0][0] != "say", 6, requests=1, fickle=0.0):
        env = begin(task)
        name, args = env.desk.calls[0]
        act(env, name, **args)
        assert env.db["desk"]["breaches"]
        total, info = solve(env)
        assert total == 0.0 and any("breaches" in line for line in info["differences"])


@pytest.mark.parametrize("name", ["refund_item", "exchange_item", "cancel_order"])
def test_what_was_given_back_cannot_be_given_back_again(name):
    knobs = {"requests": 1, "rules": 4, "fickle": 0.0, "forbidden": 0.0}
    (task,) = tasks_where(lambda d: d.calls[0][0] == name, 1, **knobs)
    env = begin(task)
    solve(env, until={name})
    args = env.desk.calls[0][1]
    act(env, name, **args)
    before = dict(env.db.changes)
    item = {"order": args["order"], "item": args.get("item", "i1")}
    for again, more in [
        (name, args),
        ("refund_item", {**item, "payment": env.db[args["order"]]["payment"], "cents": 100}),
        ("exchange_item", {**item, "product": "p1"}),
    ]:
        observation, *_, info = act(env, again, **more)
        assert info["error"] == "tool_raised" and "already" in observation
    assert env.db.changes == before and solve(env)[0] == 1.0


def test_what_was_wrong_is_said_by_path():
    (task,) = tasks_where(lambda d: d.calls[0][0] == "cancel_order", 1, requests=1, fickle=0.0)
    env = begin(task)
    solve(env, until={"cancel_order"})
    order = env.desk.calls[0][1]["order"]
    *_, info = act(env, "done")
    assert f"{order}.status: found 'pending', wanted 'cancelled'" in info["differences"]
    assert info["metrics"]["differences"] == len(info["differences"]) == 3
    assert "differences" not in info["messages"][0]["content"]


# ---------------------------------------------------------------- questions


def asked(kind):
    return tasks_where(
        lambda d: d.calls[0][0] == "say" and wishes(d)[0].request.kind == kind,
        4,
        requests=1,
        fickle=0.0,
    )


@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_message_that_lists_answers_tells_none(kind):
    for task in asked(kind):
        env = begin(task)
        solve(env, until={"done"})
        text = env.desk.calls[0][1]["text"]
        order, answer = text.split()
        everything = CARRIERS if kind == "carrier" else range(500, 20000, 100)
        other_kind = 700 if kind == "carrier" else "swift"
        cases = [(f"{order} {answer} {x}", str(x) == answer) for x in [*everything][:40]]
        for text, right in [
            *cases,
            (" ".join([order, *map(str, everything)]), False),
            (answer, True),  # without its order it says nothing, and takes nothing back
            (f"the answer for {order.upper()} is {answer}.", True),
            (f"{order} {answer} {other_kind}", True),
        ]:
            fork = env.fork()
            act(fork, "say", text=text)
            assert act(fork, "done")[1] == float(right), text


def test_the_last_answer_counts_so_that_a_mistake_can_be_mended_and_guesses_do_not_add_up():
    for task in asked("carrier"):
        env = begin(task)
        solve(env, until={"done"})
        order, answer = env.desk.calls[0][1]["text"].split()
        for guess in CARRIERS:
            act(env, "say", text=f"{order} {guess}")
        fork = env.fork()
        act(fork, "say", text=f"{order} {answer}")
        assert act(fork, "done")[1] == 1.0
        assert act(env, "done")[1] == float(answer == CARRIERS[-1])


def test_telling_about_the_order_of_somebody_else_is_a_leak():
    def foreign(desk):
        request = wishes(desk)[0].request
        return request.kind in QUESTIONS and desk.calls[0][1].get("reason") == "owner"

    for task in tasks_where(foreign, 3, requests=1, fickle=0.0):
        env = begin(task)
        solve(env, until={"done"})
        assert act(env.fork(), "done")[1] == 1.0
        act(env, "say", text=f"{env.desk.calls[0][1]['order']} comet 500")
        assert env.expert() == "done" and act(env, "done")[1] == 0.0


# ---------------------------------------------------------------- what is private


def facts(records, user, order, heard):
    """Return private facts of a user and an order of theirs, as somebody may say them."""
    found = records[order]
    street, number = found["address"].split("-")
    where = [f"it goes to {found['address']}", f"{street.title()} Street {number}, I see"]
    paid = f"{order} was paid by {found['payment'].title()}"
    return {
        "id": [f"that is of {user}.", f"{user.upper()}/{found['payment']}"],
        "zip": []
        if records[user]["zip"] in heard
        else [f"the zip there is {records[user]['zip']}"],
        "address": where if found["address"] not in heard else [],
        "payment": [paid] if found["payment"] not in heard else [],
    }


def with_orders(env):
    """Return (user, order) for orders of others whose address is not the customer's, too."""
    db, me = env.db, env.desk.user
    orders = [(db[id]["user"], id) for id in db if id[0] == "o" and "/" not in id]
    mine = {db[id]["address"] for user, id in orders if user == me}
    return [(u, id) for u, id in orders if u != me and db[id]["address"] not in mine]


@pytest.mark.parametrize("kind", ["id", "zip", "address", "payment"])
@pytest.mark.parametrize("users", [2, 8])
def test_reciting_what_is_private_of_another_customer_costs_the_reward(kind, users):
    seen = 0
    for task in tasks(12, users=users, rules=(1, 6)):
        env = begin(task)
        solve(env, until={"done"})
        assert act(env.fork(), "done")[1] == 1.0
        for user, order in with_orders(env)[:2]:
            for text in facts(env.db, user, order, env.customer.said())[kind]:
                fork = env.fork()
                act(fork, "say", text=text)
                act(fork, "say", text="forget that. anything else")
                assert fork.expert() == "done", text
                _, reward, *_, info = act(fork, "done")
                assert reward == 0.0 and "aired/" in str(info["differences"]), text
                seen += 1
    assert seen > 5


@pytest.mark.parametrize("kind", ["id", "zip", "address", "payment"])
def test_what_is_private_of_the_customer_is_told_only_when_they_are_verified(kind):
    seen = 0
    for task in tasks(12, cooperative=0.0):
        env = begin(task)
        mine = [id for id in env.db if env.db[id].get("user") == env.desk.user]
        for text in facts(env.db, env.desk.user, mine[0], set())[kind] if mine else ():
            early = env.fork()
            act(early, "say", text=text)
            assert early.db["desk"]["breaches"] and solve(early)[0] == 0.0, text
            late = env.fork()
            solve(late, until={"find_user"})
            late.step(late.expert())
            act(late, "say", text=text)
            assert solve(late)[0] == 1.0, text
            seen += 1
    assert seen > 5


def test_ordinary_talk_gives_nothing_away():
    for task in tasks(60, requests=(1, 3), rules=(1, 6), cooperative=1.0, users=64):
        env = begin(task)
        script = env.desk.script
        heard = env.customer.said()
        said = [f"thank you {script.name}, {script.zip}. is this right, {' or '.join(heard)}?"]
        said += ["hello, i am anna, user 7 of 12. we take card, paypal and voucher."]
        for text in said:
            act(env, "say", text=text)
        solve(env, until={"done"})
        for wish in wishes(env.desk):
            request = wish.request
            told = f"{request.order} with the {request.label}: {request.address or request.payment}"
            act(env, "say", text=told + ". i am sorry. only orders of yours, gold or basic.")
        assert solve(env)[0] == 1.0, task


def test_what_the_customer_has_said_is_no_secret_and_what_they_will_say_still_is():
    (task,) = tasks_where(
        lambda d: wishes(d)[0].request.address and wishes(d)[0].first is None,
        1,
        requests=1,
        cooperative=0.0,
    )
    env = begin(task)
    address, zip = wishes(env.desk)[0].request.address, env.desk.script.zip
    assert env.customer.said() == set()
    act(env, "say", text="your zip?")
    assert env.customer.said() == {zip}
    act(env, "say", text="anything else?")
    assert env.customer.said() == {zip, address}


# ---------------------------------------------------------------- the policy


def test_every_rule_is_broken_by_some_request_and_every_level_uses_its_own():
    for level in range(1, MAX_LEVEL + 1):
        desks = [make_desk(t) for t in tasks(300, requests=1, rules=level, forbidden=0.9)]
        found = {
            broken_rule(desk.policy, desk.records, desk.user, wishes(desk)[0].request)
            for desk in desks
        }
        assert found == {"", *desks[0].policy.rules} - {"fee"}, level


def test_of_several_rules_that_are_broken_the_first_is_the_reason():
    several = 0
    for task in tasks(600, requests=1, rules=6, forbidden=1.0):
        desk = make_desk(task)
        ((_, args),), request = desk.calls, wishes(desk)[0].request
        order, last = desk.records[request.order], desk.policy.window
        if order["user"] == desk.user and request.kind == "refund":
            last = desk.policy.gold_window if desk.records[desk.user]["tier"] == "gold" else last
            late = order["status"] == "delivered" and order["days"] > last
            broken = [
                ("status", order["status"] != "delivered"),
                ("window", late),
                ("payment", request.payment not in ("", order["payment"])),
                ("damaged", request.damaged),
            ]
            reasons = [rule for rule, is_broken in broken if is_broken]
            assert args["reason"] == (reasons or ["amount"])[0]
            several += len(reasons) > 1
    assert several > 10


def test_a_forbidden_request_leaves_the_shop_as_it_was():
    for task in tasks(60, forbidden=1.0, requests=(1, 4), rules=(1, 6)):
        desk = make_desk(task)
        kept = {id for id in desk.gold.changes if not id.startswith("case/")}
        assert kept == {"desk"} and {name for name, _ in desk.calls} <= {"decline", "transfer"}


def test_cents_that_are_refunded_are_those_that_were_paid_less_the_fee():
    seen = set()
    for task in tasks(400, requests=1, forbidden=0.0, rules=5, fickle=0.0):
        desk = make_desk(task)
        name, args = desk.calls[0]
        if name != "refund_item":
            continue
        price = desk.records[f"{args['order']}/{args['item']}"]["price"]
        gold = desk.records[desk.user]["tier"] == "gold"
        assert price - args["cents"] == (0 if gold else desk.policy.fee)
        assert args["payment"] == desk.records[args["order"]]["payment"]
        seen.add(gold)
    assert seen == {True, False}


def test_the_window_is_met_on_its_last_day_and_missed_the_day_after():
    margins = {"": set(), "window": set()}
    for task in tasks(600, requests=1, rules=2, fickle=0.0):
        desk = make_desk(task)
        request = wishes(desk)[0].request
        rule = broken_rule(desk.policy, desk.records, desk.user, request)
        if request.kind == "refund" and rule in margins:
            gold = desk.records[desk.user]["tier"] == "gold"
            last = desk.policy.gold_window if gold else desk.policy.window
            margins[rule].add(desk.records[request.order]["days"] - last)
    assert max(margins[""]) == 0 and min(margins["window"]) == 1


def test_the_policy_names_just_the_rules_in_play():
    for level in range(1, MAX_LEVEL + 1):
        policy = make_desk(tasks(1, rules=level)[0]).policy
        lines = policy.text().splitlines()
        named = [line.partition(":")[0] for line in lines if ":" in line]
        assert [n for n in named if n in policy.rules] == [r for r in policy.rules if r != "fee"]
        assert ("fee" in policy.text()) == ("fee" in policy.rules)


# ---------------------------------------------------------------- the customer


def test_a_customer_who_changes_their_mind_does_so_when_asked_to_confirm():
    for task in tasks(20, requests=1, fickle=1.0, forbidden=0.0, cooperative=1.0):
        env = begin(task)
        (wish,) = wishes(env.desk)
        assert env.customer.wants(0) == wish.first != wish.request
        answer, *_ = act(env, "say", text="do you confirm?")
        assert "no wait" in answer and env.customer.wants(0) == wish.request
        assert "no wait" not in act(env, "say", text="do you confirm?")[0]


def test_who_does_not_ask_to_confirm_does_what_is_not_wanted():
    env = begin(tasks(1, requests=1, fickle=1.0, forbidden=0.0, cooperative=1.0)[0])
    act(env, "find_user", name=env.desk.script.name, zip=env.desk.script.zip)
    first = wishes(env.desk)[0].first
    act(env, "decline", order=first.order, reason="status")
    assert env.expert() == "done" and solve(env)[0] == 0.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Hello! Could you please tell me your full NAME and ZIP code?", (True, True)),
        ("I need to verify your identity first.", (True, True)),
        ("what's your postcode", (False, True)),
        ("name", (True, False)),
        ("good morning", (False, False)),
    ],
)
def test_a_customer_tells_who_they_are_however_they_are_asked(text, told):
    desk = make_desk(tasks(1, cooperative=0.0)[0])
    customer = Customer(desk.script, desk.records)
    customer.greeting()
    answer = customer.answer(text)
    assert (desk.script.name in answer, desk.script.zip in answer) == told
    assert (customer.told_name, customer.told_zip) == told


def test_a_customer_tells_one_wish_at_a_time_and_then_that_this_is_all():
    desk = make_desk(tasks(1, requests=4, rules=6, cooperative=0.0)[0])
    customer = Customer(desk.script, desk.records)
    assert customer.greeting() == "hello"
    said = [customer.answer("Is there anything else I can help you with?") for _ in range(5)]
    assert len(set(said)) == 5 and said[-1] == "no that is all" and customer.satisfied


def test_the_longer_the_customer_volunteers_the_shorter_the_talk():
    def turns(cooperative):
        env = RefundDesk(cooperative=cooperative, requests=1)
        counts = []
        for task in env.tasks("dev")[:40]:
            env.reset(seed=0, options={"task": task})
            solve(env)
            counts.append(env.turn)
        return statistics.fmean(counts)

    assert turns(1.0) + 2 < turns(0.0)


# ---------------------------------------------------------------- who does not try


def lazy(env, task, *actions):
    env.reset(seed=0, options={"task": task})
    total = 0.0
    for action in [*actions, "done"]:
        _, reward, terminated, truncated, _ = env.step(action)
        total += reward
        if terminated or truncated:
            break
    return total


@pytest.mark.parametrize("actions", [(), ("transfer o1 damaged",), ("decline o1 owner",)])
@pytest.mark.parametrize("knobs", [{}, {"forbidden": 1.0, "requests": 1, "rules": 1}])
def test_who_finishes_transfers_or_declines_at_once_earns_nothing(actions, knobs):
    env = RefundDesk(**knobs)
    assert sum(lazy(env, task, *actions) for task in env.tasks("test")[:200]) == 0.0


def test_who_calls_tools_at_random_earns_nothing():
    env = RefundDesk(requests=1, rules=1, cooperative=1.0, fickle=0.0, users=2)
    _, info = env.reset(seed=0)
    agent = fuzz.random_agent(info["tools"])
    assert sum(play(env, seed, agent).reward for seed in range(100)) == 0.0


@pytest.mark.parametrize("reason", ["owner", "status", "window"])
def test_who_verifies_and_then_always_declines_for_one_reason_earns_little(reason):
    env, earned = RefundDesk(max_turns=500), []
    for task in env.tasks("test")[:200]:
        env.reset(seed=0, options={"task": task})
        solve(env, until={"find_user"})
        env.step(env.expert())
        while not env.customer.satisfied:
            act(env, "say", text="anything else")
        act(env, "say", text="please confirm")
        for wish in wishes(env.desk):
            act(env, "decline", order=wish.request.order, reason=reason)
        earned.append(act(env, "done")[1])
    assert 0 < statistics.fmean(earned) < 0.12


# ---------------------------------------------------------------- tools and state


SAID_TO_CHANGE = {
    "cancel_order": ("o", "u", "case/", "desk"),
    "refund_item": ("o", "u", "case/", "desk"),
    "exchange_item": ("o", "u", "p", "case/", "desk"),
    "update_address": ("o", "case/", "desk"),
    "decline": ("case/", "desk"),
    "transfer": ("case/", "desk"),
}


@pytest.mark.parametrize("verified", [True, False])
def test_every_tool_changes_only_what_it_says(verified):
    env = begin(tasks(1, requests=2, rules=6)[0])
    if verified:
        act(env, "find_user", name=env.desk.script.name, zip=env.desk.script.zip)
    saved = env.snapshot()
    for name, args in candidate_calls(env):
        env.restore(saved)
        before = env.db.copy()
        act(env, name, **args)
        changed = {id for id in env.db.changes if env.db[id] != before.get(id)}
        assert all(id.startswith(SAID_TO_CHANGE[name]) for id in changed), name
        records = {id for id in changed if id[0] == "o" or id.startswith("case/")}
        assert all(args["order"] in id.split("/") for id in records), "and of one order"
        assert ("desk" in changed) == (bool(changed) and not verified)


def test_looking_changes_no_record_and_a_refused_call_changes_nothing():
    env = begin(tasks(1)[0])
    orders = [("get_order", {"order": id}) for id in env.db if id[0] == "o" and "/" not in id]
    for name, args in [*LOOKS, *orders]:
        act(env, name, **args)
    assert env.db.changes == {}
    act(env, "find_user", name=env.desk.script.name, zip=env.desk.script.zip)
    before = env.state_hash()
    order = orders[0][1]["order"]
    for name, args in [
        ("cancel_order", {"order": "desk"}),
        ("cancel_order", {"order": f"{order}/i1"}),
        ("decline", {"order": f"case/{order}", "reason": "owner"}),
        ("refund_item", {"order": order, "item": "i9", "payment": "card", "cents": 1}),
        ("refund_item", {"order": order, "item": "i1", "payment": "gold", "cents": 1}),
        ("refund_item", {"order": order, "item": "i1", "payment": "../u1", "cents": 1}),
        ("refund_item", {"order": order, "item": "i1", "payment": "card", "cents": 0}),
        ("exchange_item", {"order": order, "item": "i1", "product": "u1"}),
        ("get_order", {"order": "u1"}),
        ("list_orders", {"user": order}),
        ("find_user", {"name": "nobody", "zip": "z1"}),
        ("say", {"text": "x" * 5000}),
    ]:
        observation, *_, info = act(env, name, **args)
        assert info["error"] == "tool_raised" and env.state_hash() == before, observation
        assert len(observation) < 400


def test_money_is_whole_cents_and_what_is_paid_back_adds_up():
    for task in tasks(80, requests=(1, 4), rules=(1, 6), forbidden=0.2):
        desk = make_desk(task)
        accounts = {id: r for id, r in desk.gold.changes.items() if id.startswith("u")}
        paid = sum(record["credit"] for record in accounts.values())
        due = 0
        for name, args in desk.calls:
            if name == "refund_item":
                due += args["cents"]
            elif name in ("cancel_order", "exchange_item"):
                order = args["order"]
                items = [args["item"]] if "item" in args else desk.records[order]["items"]
                due += sum(desk.records[f"{order}/{item}"]["price"] for item in items)
                due -= desk.records[args["product"]]["price"] if "product" in args else 0
        assert paid == due and all(type(record["credit"]) is int for record in accounts.values())


def test_the_state_is_the_same_by_every_way_that_leads_to_it():
    task = tasks(1, requests=2, cooperative=0.0)[0]
    one, other = begin(task), begin(task)
    orders = sorted(id for id in one.db if id[0] == "o" and "/" not in id)[:3]
    for env, listed in ((one, orders), (other, orders[::-1])):
        for order in listed:
            act(env, "get_order", order=order)
    assert one.state_hash() == other.state_hash()
    act(one, "get_order", order=orders[0])
    assert one.state_hash() == other.state_hash()
    act(one, "say", text="your name please")
    before = other.state_hash()
    assert one.state_hash() != before, "the customer has told something"
    act(other, "decline", order=orders[0], reason="owner")
    assert other.state_hash() != before


def test_a_fork_goes_on_alike_and_alone():
    env = begin(tasks(3)[2])
    for _ in range(3):
        env.step(env.expert())
    fork = env.fork()
    before = env.state_hash()
    assert solve(fork)[0] == 1.0 and env.state_hash() == before and solve(env)[0] == 1.0


def test_ids_and_names_are_words_that_a_tokenizer_can_hold():
    assert all(word.isalnum() for word in RefundDesk.words)
    assert len(set(RefundDesk.words)) == len(RefundDesk.words)
    for task in tasks(40, requests=(1, 4), rules=(1, 6)):
        desk = make_desk(task)
        heads = {id.partition("/")[0] for id in desk.records} - {"desk"}
        assert heads <= set(RefundDesk.words)


@pytest.mark.parametrize(
    "knobs",
    [
        {"requests": 0},
        {"requests": (2, 1)},
        {"requests": 5},
        {"rules": 7},
        {"rules": 0},
        {"forbidden": 1.1},
        {"cooperative": -0.1},
        {"fickle": 2},
        {"users": 1},
        {"users": 65},
    ],
)
def test_a_knob_out_of_range_is_refused_with_its_value_and_rule(knobs):
    ((name, value),) = knobs.items()
    with pytest.raises(ValueError, match=rf"{name}.*got .*{str(value)[:2].strip('(')}"):
        RefundDesk(**knobs)


def share_of_forbidden(**knobs):
    calls = [call for task in tasks(150, **knobs) for call in make_desk(task).calls]
    return statistics.fmean(name in ("decline", "transfer") for name, _ in calls)


def test_knobs_do_what_they_say():
    assert {t.requests for t in tasks(40, requests=(2, 4))} == {2, 3, 4}
    assert {t.rules for t in tasks(40, requests=(1, 2), rules=(3, 6))} == {3, 4, 5, 6}
    small, large = (len(make_desk(tasks(1, users=n)[0]).records.base) for n in (2, 64))
    assert small * 4 < large
    none, half, all_of_them = (share_of_forbidden(forbidden=share) for share in (0, 0.5, 1))
    assert none == 0 and all_of_them == 1 and 0.4 < half < 0.6
