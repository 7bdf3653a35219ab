"""Laws of Sql: the right query pays on both databases, no query does harm, no other one pays."""

import random
import re
import time

import pytest
from boxes import need_bubblewrap

from turnwise.envs.builtin.sql import Asked, Sql, same
from turnwise.envs.builtin.sql_box import KERNELS, Database, QueryFailed, Result
from turnwise.envs.builtin.sql_questions import DEPTHS, KINDS
from turnwise.envs.builtin.sql_tasks import make_world
from turnwise.envs.builtin.sql_weaker import weakened
from turnwise.envs.builtin.sql_world import SCHEMAS, answers
from turnwise.envs.names import UnknownName
from turnwise.envs.types import canonical_json
from turnwise.sandboxes.shared import shared_sandbox


@pytest.fixture
def sql():
    """Make environments that are closed at the end."""
    need_bubblewrap()
    made = []

    def make(**kwargs):
        made.append(Sql(**kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def begin(env, task):
    env.reset(seed=0, options={"task": task})
    return env


def submit(env, query):
    return env.step(env.call_text("submit", sql=query))


def literal(rows):
    """A query that holds the answer."""
    quoted = [[f"'{v}'" if isinstance(v, str) else repr(v) for v in row] for row in rows]
    return " union all ".join(f"select {', '.join(row)}" for row in quoted)


@pytest.mark.parametrize("split", Sql.splits)
def test_the_expert_answers_200_questions_of_each_split(sql, split):
    env, turns = sql(), 0
    for task in env.tasks(split)[:200]:
        begin(env, task)
        done, total = False, 0.0
        while not done:
            _, reward, terminated, truncated, info = env.step(env.expert())
            done, total, turns = terminated or truncated, total + reward, turns + 1
        assert info["success"] and total == 1.0
    assert turns <= 200 * 6


def worlds(**kwargs):
    env = Sql(**kwargs)
    for split in env.splits:
        for task in env.tasks(split)[:30]:
            yield make_world(canonical_json(task.to_json()))


def test_answers_differ_between_the_databases_and_are_not_empty():
    for world in worlds():
        assert world.expected[0] and world.expected[1]
        assert sorted(map(repr, world.expected[0])) != sorted(map(repr, world.expected[1]))


def test_every_question_of_every_depth_can_be_asked_about_some_schema():
    for asks in DEPTHS:
        for ask in asks:
            made = [ask(random.Random(1), schema) for schema in SCHEMAS.values()]
            assert sum(question is not None for question in made) >= 4, ask


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_that_is_named_is_the_only_one_asked_and_its_depth_must_be_asked_for(kind):
    depth = KINDS[kind]
    own = {ask.__name__: ask for ask in DEPTHS[depth - 1]}[kind]
    drawn = [own(random.Random(seed), s) for s in SCHEMAS.values() for seed in range(200)]
    asked = {question.text for question in drawn if question is not None}
    tasks = Sql(depth=depth, kinds=(kind,), schemas=tuple(SCHEMAS)).tasks("train")[:3]
    made = [make_world(canonical_json(task.to_json())).question for task in tasks]
    shapes = {re.sub(r"[\d-]+", "N", text) for text in asked}
    assert {re.sub(r"[\d-]+", "N", question.text) for question in made} <= shapes
    with pytest.raises(ValueError, match=f"depth {depth % 5 + 1} asks .*, none of kinds"):
        Sql(depth=depth % 5 + 1, kinds=(kind,))


def test_a_split_that_can_ask_none_of_the_kinds_is_refused_before_an_episode():
    with pytest.raises(RuntimeError, match=r"airline.*allow more schemas"):
        Sql(depth=1, kinds=("narrowed",)).tasks("test")
    with pytest.raises(ValueError, match="ask at depth 1 alone"):
        Sql(kinds=("filtered",))
    with pytest.raises(ValueError, match="depth 5 asks"):
        Asked(depth=5, kinds=("filtered",))


def test_default_tasks_are_those_of_before_there_were_kinds():
    task = Sql().tasks("test")[0]
    text = make_world(canonical_json(task.to_json())).question.text
    assert text == "How many flights are there with distance above 33?"


def test_a_query_that_holds_the_answer_is_wrong_on_the_other_database(sql):
    env = sql()
    for task in env.tasks("train")[:15]:
        begin(env, task)
        world = env.world
        _, reward, done, _, info = submit(env, literal(world.expected[0]))
        assert same(env._result, world.expected[0], ordered=world.question.ordered)
        assert done and reward == 0.0 and not info["success"]


def test_no_query_that_is_nearly_right_is_right_on_both_databases():
    tried = 0
    for world in worlds():
        question = world.question
        for query in weakened(question.sql):
            found = [
                answers(world.schema, rows, [query])[0] for rows in (world.visible, world.hidden)
            ]
            results = (Result((), tuple(rows), False) for rows in found)
            pairs = zip(results, world.expected, strict=True)
            assert not all(same(got, right, ordered=question.ordered) for got, right in pairs), (
                query
            )
            tried += 1
    assert tried > 100


WEAKER = {
    "select a from t where b = 'x and y' and c > 3": [
        "select a from t where c > 3",
        "select a from t where b = 'x and y'",
        "select a from t where b = 'x and y' and c >= 3",
    ],
    "select sum(a) from t where d between 'u' and 'v'": [
        "select sum ( a ) from t",
        "select sum ( a ) from t where d > 'u' and d <= 'v'",
        "select sum ( a ) from t where d >= 'u' and d < 'v'",
    ],
    "select a from t group by a having count(*) >= 2 order by a desc, b": [
        "select a from t group by a order by a desc , b",
        "select a from t group by a having count ( * ) >= 2",
        "select a from t group by a having count ( * ) >= 2 order by a desc",
        "select a from t group by a having count ( * ) >= 2 order by a , b",
        "select a from t group by a having count ( * ) > 2 order by a desc , b",
    ],
    "select a from t where id not in (select b from u where c < 4)": [
        "select a from t",
        "select a from t where id not in ( select b from u )",
        "select a from t where id not in ( select b from u where c <= 4 )",
    ],
}


@pytest.mark.parametrize("query", WEAKER)
def test_a_query_is_weakened_one_part_at_a_time(query):
    assert sorted(weakened(query)) == sorted(WEAKER[query])


def test_each_template_is_asked_at_its_depth():
    """Telling a question from weaker ones does not drive the harder ones out."""
    marks = {4: ("avg(", "between", "not in"), 5: ("rank()", "max(n)", "as n from")}
    for depth, words in marks.items():
        env = Sql(depth=depth)
        made = [make_world(canonical_json(t.to_json())) for t in env.tasks("train")[:40]]
        for word in words:
            assert sum(word in world.question.sql for world in made) >= 4, word


def test_lazy_queries_earn_nothing(sql):
    env = sql()
    for task in env.tasks("dev")[:10]:
        table = begin(env, task).world.schema.tables[0].name
        for query in (f"select * from {table}", "select 1", f"select * from {table} where 0"):
            assert submit(begin(env, task), query)[1] == 0.0


def test_order_matters_where_it_is_asked_for_and_nowhere_else(sql):
    for ordered in (True, False):
        env = sql(depth=(2, 5))
        for task in env.tasks("train")[:40]:
            question = begin(env, task).world.question
            if question.ordered == ordered and len(env.world.expected[0]) > 2:
                break
        text = f"select * from ({question.sql}) order by 1 {'desc' if not ordered else ''}, 2"
        text = text if len(env.world.expected[0][0]) > 1 else text.replace(", 2", "")
        assert submit(env, text)[1] == (0.0 if ordered else 1.0), text


def test_rows_that_occur_twice_matter():
    rows = ((1, "a"), (1, "a"), (2, None))
    assert same(Result(("x", "y"), rows[::-1], False), rows, ordered=False)
    assert not same(Result(("x", "y"), rows[1:], False), rows, ordered=False)
    assert not same(Result(("x", "y"), rows, True), rows, ordered=False)
    assert same(Result(("x",), ((2.0000000001,),), False), [(2,)], ordered=True)
    assert not same(Result(("x",), (("2",),), False), [(2,)], ordered=True)


# ---------------------------------------------------------------- queries that nobody should run

LONG = "'aaaaa'"
for _ in range(4):
    LONG = f"replace({LONG}, 'a', 'aaaaaaaaaa')"  # 50,000 letters

HOSTILE = {
    "two statements": "select 1; drop table loans",
    "write": "insert into members values (1, 'x', 'y')",
    "write by update": "update members set name = 'x'",
    "drop": "drop table members",
    "attach": "attach '/tmp/x' as y",
    "vacuum into": "vacuum into '/tmp/x'",
    "pragma": "pragma writable_schema = 1",
    "load": "select load_extension('/tmp/x')",
    "a file": "select writefile('/tmp/x', 'y')",
    "chance": "select random()",
    "the clock": "select date('now')",
    "the clock again": "select current_timestamp",
    "the clock without words": "select strftime('%s')",
    "the clock in bytes": "select strftime('%s', x'6e6f77')",
    "the clock in bytes, as a date": "select date(x'6e6f77')",
    "the clock by a modifier": "select julianday('subsec')",
    "the clock in two parts": "select date('n' || 'ow')",
    "the clock among blanks": "select date(' NOW ')",
    "a date of nothing": "select date()",
    "a julian day of nothing": "select julianday()",
    "seconds since 1970": "select unixepoch()",
    "the time": "select CURRENT_TIME",
    "the day": "select current_date",
    "the zone of the machine": "select date('2024-01-01', 'localtime')",
    "for ever": "with recursive a(x) as (select 1 union all select x + 1 from a) "
    "select max(x) from a",
    "for ever with rows": "with recursive a(x) as (select 1 union all select x + 1 from a) "
    "select * from a order by x desc",
    "memory": f"with recursive a(x, y) as (select 1, {LONG} union all "
    "select x + 1, y || '' from a) select count(*) from (select * from a order by y)",
    "a huge value": f"select replace({LONG}, 'a', 'aaaaaaaaaa')",
    "a huge width": "select printf('%.999999999c', 'a')",
    "a huge product": "select count(*) from loans a, loans b, loans c, loans d, loans e, loans f",
    "slow functions": f"select sum(length(replace({LONG}, 'a', x.start || x.id))) "
    "from loans x, loans b, loans c",
    "deep": "select " + "(" * 5000 + "1" + ")" * 5000,
    "nothing": "select",
    "not sql": "é 👋 \0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_query_that_harms_is_refused_in_time_and_the_database_is_as_it_was(sql, name):
    env = sql(schemas=("library",))
    begin(env, env.tasks("train")[0])
    count = env.query("select count(*) from members")
    began = time.monotonic()
    said = env.step(env.call_text("query", sql=HOSTILE[name].replace("\0", "\\0")))[0]
    assert said.startswith("ToolError"), said
    assert time.monotonic() - began < 9
    assert env.query("select count(*) from members") == count


def test_the_budget_of_steps_is_that_of_the_database_and_not_of_a_clock(sql):
    env = sql(schemas=("library",))
    begin(env, env.tasks("train")[0])
    said = {env.step(env.call_text("query", sql=HOSTILE["for ever"]))[0] for _ in range(3)}
    assert said == {"ToolError[timeout] the query took too many steps"}


def test_dates_can_be_reckoned_with(sql):
    env = sql()
    begin(env, env.tasks("train")[0])
    said = env.query("select date('2024-02-28', '+2 days'), strftime('%m', '2024-05-01')")
    assert said.splitlines()[1] == "2024-03-01 | 05"


def test_a_database_is_there_again_after_its_kernel_was_lost():
    need_bubblewrap()
    one = Database("create table a (x integer);", {"a": [(1,), (2,)]})
    assert one.query("select sum(x) from a").rows == ((3,),)
    shared_sandbox("sql").cell("import os; os._exit(1)", kernel=one.kernel)
    with pytest.raises(QueryFailed):
        Database("create table a (x integer);", {}).query("select nothing from a")
    assert one.query("select sum(x) from a").rows == ((3,),)
    one.close()


def test_databases_of_one_kernel_do_not_see_each_other():
    need_bubblewrap()
    made = [Database("create table a (x integer);", {"a": [(i,)]}) for i in range(2 * KERNELS)]
    assert [db.query("select x from a").rows for db in made] == [
        ((i,),) for i in range(2 * KERNELS)
    ]
    for db in made:
        db.close()


# ---------------------------------------------------------------- knobs and state


def test_a_failed_submission_can_be_mended(sql):
    env = begin(sql(), sql().tasks("train")[0])
    said, reward, done, _, _ = submit(env, "selec name")
    assert said.startswith("ToolError[tool_raised]") and not done and reward == 0.0
    assert submit(env, env.world.question.sql)[1] == 1.0


def test_with_the_schema_shown_the_expert_starts_with_the_query(sql):
    env = sql(schema_shown=True, schemas=("shop",), depth=1)
    opening, _ = env.reset(seed=1)
    assert "create table customers" in opening and "query" in env.expert()
    assert env.task.schemas == ("shop",)


def test_a_query_shows_so_many_rows(sql):
    env = begin(sql(max_rows=2), sql().tasks("train")[0])
    table = env.world.schema.tables[0].name
    assert env.query(f"select 7 from {table}") == "7\n7\n7\n[more rows]"
    assert env.query(f"select 7 from {table} where 0") == "7\n[no rows]"


def test_splits_ask_about_different_schemas_unless_they_are_named():
    used = {split: set(Sql().tasks(split)[0].schemas) for split in Sql.splits}
    assert not used["train"] & (used["dev"] | used["test"]) and not used["dev"] & used["test"]
    assert Sql(schemas=("shop",)).tasks("test")[0].schemas == ("shop",)


def test_queries_of_ours_run_on_what_the_box_holds(sql):
    env = begin(sql(), sql().tasks("test")[4])
    world = env.world
    (expected,) = answers(world.schema, world.visible, [world.question.sql])
    assert env._rows_of(world.question.sql).rows == tuple(expected)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"depth": 6}, "depth must lie in 1..5"),
        ({"depth": (3, 2)}, "least before most"),
        ({"size": 5}, "size must lie in 6..40"),
        ({"max_rows": 0}, "max_rows must lie in 1..100"),
        ({"schemas": ("shops",)}, "did you mean 'shop'"),
    ],
)
def test_a_knob_that_cannot_be_is_refused_at_once(kwargs, says):
    with pytest.raises((ValueError, UnknownName), match=says):
        Sql(**kwargs)
