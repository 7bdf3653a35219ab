"""Shop: one order is right, everything else earns nothing, and both modes are the same shop."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import closing

import pytest
from boxes import need_bubblewrap
from browsers import need_browser, play_both, wandering
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.builtin.shop import PER_PAGE, Errand, Shop, site_data, task_world
from turnwise.envs.builtin.shop_goods import SHIPPING
from turnwise.envs.builtin.shop_world import ASKED, World, make_world
from turnwise.envs.web.chromium import close_idle

IRREVERSIBLE = ("Place order",)


@pytest.fixture(scope="module", autouse=True)
def _a_box():
    need_bubblewrap()
    yield
    close_idle()


@pytest.fixture
def shop():
    """Make a `Shop` that is closed afterwards."""
    made = []

    def make(**options):
        made.append(Shop(actions="command", **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


def begin(env, index=0, split="test"):
    env.reset(seed=index, options={"task": env.tasks(split)[index]})
    return env


def finish(env):
    """Follow the expert to the end; return what the last step gave."""
    while True:
        step = env.step(env.expert())
        if step[2] or step[3]:
            return step


def follow(env, until):
    """Follow the expert until it would take an action of which `until(element or text)` holds."""
    while True:
        action = env.expert()
        words = action.split()
        at = env.page.elements[int(words[1]) - 1].name if len(words) > 1 else words[0]
        if until == at:
            return env
        env.step(action)


def press(env, role, name):
    return env.step(env.click_on(env.page.find(role, name)))


# ---------------------------------------------------------------- the expert


@pytest.mark.parametrize("split", Shop.splits)
def test_the_expert_succeeds_on_two_hundred_errands_of_each_split(shop, split):
    env = shop()
    for index in range(200):
        step = finish(begin(env, index, split))
        assert (step[1], step[4]["success"]) == (1.0, True), (index, env.episode.actions)
        assert env.turn <= env.max_turns - env.slack


@pytest.mark.parametrize(
    "options",
    [
        {"products": 8, "constraints": 1, "items": 1, "distractors": 0, "depth": 0},
        {
            "products": 200,
            "constraints": 5,
            "items": 4,
            "distractors": 8,
            "depth": 3,
            "per_page": 4,
        },
        {"typed_address": True, "filters": False, "extras": False, "view_lines": 12, "slack": 60},
        {"products": 480, "items": 2, "depth": 3, "per_page": 24},
    ],
)
def test_the_expert_succeeds_whatever_the_knobs(shop, options):
    env = shop(**options)
    for index in range(8):
        assert finish(begin(env, index))[1] == 1.0, (index, env.episode.actions)


@pytest.mark.parametrize("options", [{}, {"typed_address": True, "view_lines": 8, "items": 2}])
def test_the_expert_finds_back_from_wherever_one_has_wandered(shop, options):
    env = shop(slack=150, **options)
    for index in range(12):
        begin(env, index, "dev")
        rng = random.Random(index)
        for _ in range(40):
            strayed = wandering(env, rng, IRREVERSIBLE)
            action = env.expert() if rng.random() < 0.5 else strayed
            words = action.split()
            name = env.page.elements[int(words[1]) - 1].name if words[0] == "click" else words[0]
            if name not in (*IRREVERSIBLE, "done"):
                env.step(action)
        assert finish(env)[1] == 1.0, env.episode.actions


def test_the_expert_sets_a_wrong_cart_right(shop):
    env = shop(items=1, slack=60)
    for index in range(6):
        follow(begin(env, index), "Add to cart")
        wrong = env.world.goals[0].quantity % 5 + 1
        env.step(env.select_in(env.page.find("combobox", "Quantity"), str(wrong)))
        press(env, "button", "Add to cart")
        others = [p for p in env.world.products if p != env.world.goals[0].product]
        env._act(env._open_tab.visit(f"/product/{others[index].id}"))
        for name in ("Colour", "Size"):
            if (field := env.page.find("combobox", name)) is not None:
                env.step(env.select_in(field, field.options[1]))
        press(env, "button", "Add to cart")
        assert len(env.db["cart"]) == 2
        assert finish(env)[1] == 1.0, env.episode.actions


def test_the_expert_changes_a_checkout_that_was_filled_in_wrongly(shop):
    env = follow(begin(shop(slack=60), 0), "Review order")
    press(env, "checkbox", "Newsletter")
    press(env, "button", "Review order")
    assert env.page.title == "Review" and env.expert() == env.click_on(
        env.page.find("link", "Change")
    )
    assert finish(env)[1] == 1.0


def test_the_expert_writes_the_other_format_too():
    with closing(Shop()) as env:
        assert finish(begin(env, 3))[1] == 1.0


# ---------------------------------------------------------------- what is paid


def test_a_second_order_spoils_the_first(shop):
    env = follow(begin(shop(slack=60), 1), "done")
    env.world = task_world(env.task)
    wanted = env.db["orders"]
    press(env, "link", "Hearth")
    env.step(env.click_on(next(e for e in env.page.elements if "/product/" in e.href)))
    _order_what_is_shown(env)
    assert len(env.db["orders"]) == 2 and env.db["orders"][:1] == wanted
    assert env.step("done")[1] == 0.0


def _order_what_is_shown(env):
    for name in ("Colour", "Size"):
        if (field := env.page.find("combobox", name)) is not None:
            env.step(env.select_in(field, field.options[1]))
    press(env, "button", "Add to cart")
    press(env, "link", "Checkout")
    for radio in [e for e in env.page.elements if e.role == "radio"]:
        if radio.name.startswith(("home", "pickup")):
            env.step(env.click_on(radio))
    press(env, "button", "Review order")
    press(env, "button", "Place order")


def test_something_more_in_the_cart_spoils_the_order(shop):
    env = shop(items=1, slack=60)
    follow(begin(env, 2), "Review order")
    env._act(env._open_tab.visit("/product/1"))
    other = env.world.goals[0].product.id == 1
    env._act(env._open_tab.visit("/product/2" if other else "/product/1"))
    _order_what_is_shown(env)
    assert len(env.db["orders"][0]["lines"]) == 2
    assert env.step("done")[1] == 0.0


@pytest.mark.parametrize("spoil", ["Newsletter", "Gift wrap", "shipping", "address", "Coupon"])
def test_one_wrong_answer_at_the_checkout_spoils_the_order(shop, spoil):
    env = follow(begin(shop(slack=60), 4), "Review order")
    if spoil in ("shipping", "address"):
        radios = [e for e in env.page.elements if e.node.attrs.get("name") == spoil]
        env.step(env.click_on(next(e for e in radios if not e.checked and "new" not in e.name)))
    elif spoil == "Coupon":
        field = env.page.find("textbox", spoil)
        env.step(env.type_into(field, "HELLO5" if field.value != "HELLO5" else ""))
    else:
        press(env, "checkbox", spoil)
    press(env, "button", "Review order")
    press(env, "button", "Place order")
    assert env.db["orders"] and env.step("done")[1] == 0.0


@pytest.mark.parametrize("spoil", ["Colour", "Quantity"])
def test_a_wrong_option_spoils_the_order(shop, spoil):
    env = shop(items=1, slack=60)
    follow(begin(env, 5), "Add to cart")
    field = env.page.find("combobox", spoil)
    other = next(o for o in field.options if o not in (field.value, "choose"))
    env.step(env.select_in(field, other))
    _order_what_is_shown_after(env)
    assert env.step("done")[1] == 0.0


def _order_what_is_shown_after(env):
    press(env, "button", "Add to cart")
    press(env, "link", "Checkout")
    world = env.world
    for radio in [e for e in env.page.elements if e.role == "radio"]:
        if radio.node.attrs["value"] in (world.address, world.shipping):
            env.step(env.click_on(radio))
    if world.coupon:
        env.step(env.type_into(env.page.find("textbox", "Coupon"), world.coupon))
    if world.gift:
        press(env, "checkbox", "Gift wrap")
    press(env, "button", "Review order")
    press(env, "button", "Place order")
    assert len(env.db["orders"]) == 1


def test_a_product_that_misses_the_wish_in_one_point_spoils_the_order(shop):
    env = shop(items=1, distractors=6, slack=60)
    begin(env, 6)
    goal = env.world.goals[0]
    near = next(
        p
        for p in env.world.products
        if p.category == goal.product.category and p != goal.product and goal.colour in p.colours
    )
    env._act(env._open_tab.visit(f"/product/{near.id}"))
    for name, value in (("Colour", goal.colour), ("Quantity", str(goal.quantity))):
        env.step(env.select_in(env.page.find("combobox", name), value))
    if goal.size:
        env.step(env.select_in(env.page.find("combobox", "Size"), goal.size))
    _order_what_is_shown_after(env)
    assert env.step("done")[1] == 0.0


def test_ordering_nothing_or_stopping_before_the_order_pays_nothing(shop):
    assert begin(shop(), 0).step("done")[1] == 0.0
    assert follow(begin(shop(), 0), "Place order").step("done")[1] == 0.0


# ---------------------------------------------------------------- the shop


def test_the_checkout_says_what_is_missing_and_keeps_what_was_filled_in(shop):
    env = follow(begin(shop(slack=60), 0), "Review order")
    radios = [e for e in env.page.elements if e.role == "radio"]
    env.step(env.click_on(next(e for e in radios if e.name == "new address")))
    env.step(env.type_into(env.page.find("textbox", "zip"), "12"))
    env.step(env.type_into(env.page.find("textbox", "Coupon"), "FREE"))
    shown = press(env, "button", "Review order")[0]
    for why in ("Enter the name.", "Enter the street.", "A zip has five digits.", "no such coupon"):
        assert f"{why}" in shown
    assert env.page.find("textbox", "zip").value == "12"
    assert env.page.find("radio", "new address").checked


def test_a_product_without_a_colour_is_not_put_into_the_cart(shop):
    env = shop(items=1)
    begin(env, 0)
    env._act(env._open_tab.visit("/product/1"))
    shown = press(env, "button", "Add to cart")[0]
    assert "! Choose a colour." in shown and env.db["cart"] == []


def test_filters_and_sorting_do_what_they_say(shop):
    env = shop(products=200, per_page=24, slack=60)
    begin(env, 0)
    env._act(
        env._open_tab.visit("/search?q=&category=lamp&brand=any&style=any&max=40&sort=cheapest")
    )
    shown = [int(e.href.rpartition("/")[2]) for e in env.page.elements if "/product/" in e.href]
    there = [p for p in env.world.products if p.category == "lamp" and p.price <= 40]
    assert shown == [p.id for p in sorted(there, key=lambda p: p.price)][:24]


def shown_at(env, path):
    env._act(env._open_tab.visit(path))
    return env._view()


def test_there_is_a_way_on_from_every_page(shop):
    env = begin(shop(), 0)
    for path in ("/nowhere", "/product/9999", "/order/9", "/cart", "/search?q=zzzz"):
        text = shown_at(env, path)
        main = [e for e in env.page.elements if e.line > env.page.find("link", "Cart (0)").line]
        onward = [e for e in main if e.role == "link"]
        assert env.page.find("textbox", "Search") is not None and onward, text
        shown_at(env, onward[-1].href)
        assert any("/product/" in e.href for e in env.page.elements), path


def test_results_are_headed_by_what_was_asked_for(shop):
    env = begin(shop(), 0)
    assert '# Results for "zz <b>"' in shown_at(env, "/search?q=zz+%3Cb%3E")
    assert "# lamp" in shown_at(env, "/search?q=&category=lamp")
    assert "# all products" in shown_at(env, "/search?category=%3Cb%3E")


def test_a_product_tells_where_it_belongs_and_keeps_what_was_chosen(shop):
    env = begin(shop(), 0)
    shown_at(env, "/product/1")
    item = env.world.products[0]
    assert env.page.find("link", item.category).href == f"/search?category={item.category}"
    assert env.page.says(f"made of {item.material}")
    env.step(env.select_in(env.page.find("combobox", "Quantity"), "3"))
    press(env, "button", "Add to cart")
    assert env.page.find("combobox", "Quantity").value == "3"


def test_the_checkout_shows_what_is_to_be_paid_for(shop):
    env = follow(begin(shop(), 0), "Review order")
    cart, products = env.db["cart"], env.world.products
    for id, *_, quantity in cart:
        assert env.page.says(products[id - 1].name) and env.page.says(f"quantity {quantity}")
    total = sum(products[id - 1].price * quantity for id, *_, quantity in cart)
    assert env.page.says(f"Subtotal ${total}")


@pytest.mark.parametrize("odd", ["%00", "%ff", "x" * 3000, "..%2f..", "%3Cscript%3E", "a+b%20c"])
def test_an_odd_query_is_answered(shop, odd):
    env = begin(shop(), 0)
    for path in (
        f"/search?q={odd}",
        f"/product/{odd}",
        f"/{odd}",
        "/order/9",
        "/search?page=99999999",
    ):
        env._act(env._open_tab.visit(path))
        assert env.page.lines[0].startswith("page: ")
    assert finish(env)[1] == 1.0


def test_what_the_shop_is_told_says_nothing_of_what_is_to_be_bought():
    for index in range(30):
        task = Shop(extras=False).tasks("dev")[index]
        world = task_world(task)
        told = site_data(world, task, True)
        other = World(world.products, (), world.addresses, "work", SHIPPING[0], "", False)
        assert json.dumps(told) == json.dumps(site_data(other, task, True))


# ---------------------------------------------------------------- worlds


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    constraints=st.integers(1, 5),
    items=st.integers(1, 4),
    distractors=st.integers(0, 8),
    depth=st.integers(0, 3),
    per_page=st.integers(2, 24),
    extra=st.integers(0, 60),
)
def test_exactly_one_product_fits_each_wish_and_is_listed_where_it_should_be(
    seed, constraints, items, distractors, depth, per_page, extra
):
    least = items * max((depth + 1) * per_page, distractors + 1)
    world = make_world(
        random.Random(seed),
        products=max(8, least) + extra,
        constraints=constraints,
        items=items,
        distractors=distractors,
        depth=depth,
        per_page=per_page,
        extras=True,
        typed_address=False,
    )
    assert len(world.products) == max(8, least) + extra
    assert [p.id for p in world.products] == list(range(1, len(world.products) + 1))
    assert len({p.name for p in world.products}) == len(world.products)
    for goal in world.goals:
        assert len(goal.asked) == constraints and set(goal.asked) <= set(ASKED)
        assert [p for p in world.products if goal.fits(p)] == [goal.product]
        listed = [p for p in world.products if p.category == goal.product.category]
        assert listed.index(goal.product) // per_page == depth


def test_distractors_miss_the_wish_in_one_point():
    env = Shop(items=1, distractors=6, constraints=3)
    near = Counter()
    for index in range(50):
        world = task_world(env.tasks("dev")[index])
        goal = world.goals[0]
        for product in world.products:
            if product.category == goal.product.category and product != goal.product:
                near[_missed(goal, product)] += 1
    assert near[0] == 0 and near[1] >= 50 * 5


def _missed(goal, product):
    """How many of the things that `goal` asks `product` lacks."""
    alone = [
        type(goal)(goal.product, {k: v}, product.colours[0], "", 1) for k, v in goal.asked.items()
    ]
    return sum(not one.fits(product) for one in alone) + (goal.colour not in product.colours)


def test_the_errand_follows_from_the_task_alone():
    task = Shop().tasks("train")[12345]
    assert task_world(task) == task_world(Errand(**task.to_json()))
    assert task_world(task) != task_world(Shop().tasks("train")[12346])


@pytest.mark.parametrize("rest", [["?"] * 3, ["scroll up"] * 50])
def test_an_order_pays_only_once_the_agent_is_done(rest, shop):
    env = begin(shop())
    while not env.db.get("orders"):
        env.step(env.expert())
    saved = env.fork()
    steps = (env.step(action) for action in rest)
    _, reward, terminated, truncated, info = next(s for s in steps if s[2] or s[3])
    assert truncated and not terminated
    assert reward == 0.0 and not info["success"]
    assert saved.step("done")[1] == 1.0
    saved.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"products": 7}, "products must lie in 8..480, got 7"),
        ({"products": 16, "items": 2, "depth": 1}, "products must be at least 32"),
        ({"constraints": 0}, "constraints must lie in 1..5, got 0"),
        ({"items": (2, 1)}, "items must lie in 1..4, least before most"),
        ({"depth": 4}, "depth must lie in 0..3"),
        ({"per_page": 1}, "per_page must lie in 2..24, got 1"),
        ({"distractors": 9}, "distractors must lie in 0..8, got 9"),
    ],
)
def test_a_knob_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Shop(**options)


def test_items_and_depths_take_turns():
    tasks = Shop(items=(1, 2), depth=(0, 1)).tasks("train")[:8]
    assert {(t.items, t.depth) for t in tasks} == {(1, 0), (2, 0), (1, 1), (2, 1)}
    assert tasks[0].per_page == PER_PAGE


# ---------------------------------------------------------------- the browser


def test_errands_read_the_same_in_both_modes():
    need_browser()
    seen = set()
    text, browser = (closing(Shop(actions="command", mode=mode)) for mode in ("text", "browser"))
    with text as text, browser as browser:
        for seed in range(2):
            seen.update(play_both(text, browser, seed, lambda env: env.expert()))
            assert browser.db["orders"] == [browser.world.order()]
        rng = random.Random(0)
        play_both(text, browser, 7, lambda env: wandering(env, rng))
    assert {"Home", "Search", "Cart", "Checkout", "Review", "Order 1 placed"} <= seen
