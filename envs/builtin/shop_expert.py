"""What to do next in Shop, from any page and with anything already done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnwise.envs.builtin.shop_world import Goal, World
from turnwise.envs.web.env import WebEnv
from turnwise.envs.web.page import Element


def next_action(env: WebEnv, world: World) -> str:
    """Return the right action: set the cart right, fill in the checkout, order, say so."""
    db = env.db
    if db.get("orders"):
        return env.call_text("done")
    cart = db.get("cart", [])
    wanted = [goal.line for goal in world.goals]
    for number, line in enumerate(cart):
        if line[:3] not in [w[:3] for w in wanted]:
            return _on_cart(env, number, "")
        if line not in wanted:
            quantity = next(w[3] for w in wanted if w[:3] == line[:3])
            return _on_cart(env, number, str(quantity))
    for goal in world.goals:
        if goal.line not in cart:
            return _put_into_cart(env, goal)
    return _order(env, world)


def _on_cart(env: WebEnv, number: int, quantity: str) -> str:
    """Change the quantity of a line of the cart; an empty one removes it."""
    page = env.page
    if page.url != "/cart":
        return env.click_on(_cart_link(env))
    if not quantity:
        return env.click_on(_nth(env, "button", "Remove", number))
    field = _nth(env, "combobox", "Quantity", number)
    if field.value != quantity:
        return env.select_in(field, quantity)
    return env.click_on(_nth(env, "button", "Update", number))


def _put_into_cart(env: WebEnv, goal: Goal) -> str:
    product = goal.product
    if env.page.url == f"/product/{product.id}":
        return _choose_options(env, goal)
    for element in env.page.elements:
        if element.href == f"/product/{product.id}" and env.page.title in ("Search", "Home"):
            return env.click_on(element)
    return _find(env, goal)


def _choose_options(env: WebEnv, goal: Goal) -> str:
    wanted = {"Colour": goal.colour, "Size": goal.size, "Quantity": str(goal.quantity)}
    for name, value in wanted.items():
        field = env.page.find("combobox", name)
        if field is not None and field.value != value:
            return env.select_in(field, value)
    return env.click_on(_there(env, "button", "Add to cart"))


def _find(env: WebEnv, goal: Goal) -> str:
    """Search for the category, and turn the pages of what is found."""
    category = goal.product.category
    search = _there(env, "textbox", "Search")
    if env.page.url.partition("&page=")[0] == f"/search?q={category}":
        later = env.page.find("link", "Next page")
        if later is not None and not _is_past(env, goal):
            return env.click_on(later)
        if (earlier := env.page.find("link", "Previous page")) is not None:
            return env.click_on(earlier)
    if search.value != category:
        return env.type_into(search, category)
    return env.click_on(_there(env, "button", "Search"))


def _is_past(env: WebEnv, goal: Goal) -> bool:
    """Whether the results shown are listed after the product."""
    shown = [e.href for e in env.page.elements if e.href.startswith("/product/")]
    return bool(shown) and int(shown[0].rpartition("/")[2]) > goal.product.id


def _order(env: WebEnv, world: World) -> str:
    title = env.page.title
    if title == "Review":
        if _is_filled_in(env.db["checkout"], world):
            return env.click_on(_there(env, "button", "Place order"))
        return env.click_on(_there(env, "link", "Change"))
    if title == "Checkout":
        return _fill_in(env, world)
    if title == "Cart":
        return env.click_on(_there(env, "link", "Checkout"))
    return env.click_on(_cart_link(env))


def _fill_in(env: WebEnv, world: World) -> str:
    """Set the first field of the checkout that is not right, or go on."""
    for element in env.page.elements:
        if element.role == "radio":
            name = element.node.attrs.get("name")
            value = {"address": world.address, "shipping": world.shipping}[name or ""]
            if element.node.attrs.get("value") == value and not element.checked:
                return env.click_on(element)
        elif element.role == "checkbox":
            if element.checked != (world.gift and element.name == "Gift wrap"):
                return env.click_on(element)
        elif element.role == "textbox" and element.name != "Search":
            value = _text_for(element, world)
            if element.value != value:
                return env.type_into(element, value)
    return env.click_on(_there(env, "button", "Review order"))


def _is_filled_in(filled: Mapping[str, Any], world: World) -> bool:
    new = world.addresses["new"] if world.address == "new" else {}
    wanted = {name: getattr(world, name) for name in ("address", "shipping", "coupon", "gift")}
    wanted |= {"newsletter": False, **new}
    return all(filled[name] == value for name, value in wanted.items())


def _text_for(element: Element, world: World) -> str:
    if element.name == "Coupon":
        return world.coupon
    new = world.addresses["new"] if world.address == "new" else {}
    return new.get(element.name, element.value)


def _cart_link(env: WebEnv) -> Element:
    return next(e for e in env.page.elements if e.href == "/cart")


def _nth(env: WebEnv, role: str, name: str, number: int) -> Element:
    return [e for e in env.page.elements if (e.role, e.name) == (role, name)][number]


def _there(env: WebEnv, role: str, name: str) -> Element:
    found = env.page.find(role, name)
    assert found is not None, f"the shop's page {env.page.title!r} has no {role} {name!r}"
    return found
