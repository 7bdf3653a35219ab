"""The pages of the shop: runs in the sandbox, beside `shop_site.py`."""

from __future__ import annotations

from urllib.parse import urlencode

from turnwise.envs.web.kit import Answer, Request, escape, page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

SORTS = ("featured", "cheapest", "best rated")


def home(request: Request) -> Answer:
    """The front page."""
    links = "".join(
        f'<li><a class="tile" href="/search?category={name}">'
        f'<span class="art {name}" aria-hidden="true"></span>{name}</a></li>'
        for name in request.data["categories"]
    )
    shown = request.data["products"][: request.data["featured"]]
    hero = '<section class="hero"><h1>Good things for home</h1><p>Made to last.</p></section>'
    featured = f"<h2>Featured</h2>{_cards(shown)}" if shown else ""
    body = f'{hero}<h2>Categories</h2><ul class="tiles">{links}</ul>{featured}'
    return _page(request, "Home", body)


def results(
    request: Request, shown: Sequence[dict[str, Any]], found: int, number: int, last: int
) -> Answer:
    """A page of results."""
    query = request.query.get("q", "").strip()
    category = request.query.get("category", "any")
    what = category if category in request.data["categories"] else "all products"
    what = f'Results for "{query}"' if query else what
    count = f"{found} product{'' if found == 1 else 's'}"
    count += f", page {number} of {last}" if last > 1 else ""
    filters = _filters(request) if request.data["filters"] else ""
    listed = _cards(shown) if shown else _onward("Nothing found.", "/search", "See all products")
    turning = _turning(request, number, last)
    body = (
        f'<div class="bar"><h1 class="say">{escape(what)}</h1><p class="count">{count}</p></div>'
        f'{filters}{listed}<nav class="pages">{turning}</nav>'
    )
    return _page(request, "Search", body, query)


def _filters(request: Request) -> str:
    chosen, data = request.query, request.data
    fields = [
        _select("Category", "category", ["any", *data["categories"]], chosen.get("category")),
        _select("Brand", "brand", ["any", *data["brands"]], chosen.get("brand")),
        _select("Style", "style", ["any", *data["styles"]], chosen.get("style")),
        f'<label>Max price <input name="max" inputmode="numeric" size="5" '
        f'value="{escape(chosen.get("max", ""))}"></label>',
        _select("Sort", "sort", SORTS, chosen.get("sort")),
    ]
    kept = f'<input type="hidden" name="q" value="{escape(chosen.get("q", ""))}">'
    return (
        f'<form class="filters" action="/search">{kept}{" ".join(fields)} '
        '<button class="quiet">Apply</button></form>'
    )


def _turning(request: Request, number: int, last: int) -> str:
    links = []
    for name, to in (("Previous page", number - 1), ("Next page", number + 1)):
        if 1 <= to <= last:
            query = urlencode({**request.query, "page": str(to)})
            links.append(f'<a href="/search?{escape(query)}">{name}</a>')
    return " ".join(links)


def product(request: Request, item: dict[str, Any], problems: Iterable[str] = ()) -> Answer:
    """One product, with its options."""
    rows = "".join(
        f"<div><dt>{name}</dt> <dd>{escape(item[name])}</dd></div>"
        for name in ("brand", "style", "material")
    )
    chosen = request.form
    fields = [_select("Colour", "colour", ["choose", *item["colours"]], chosen.get("colour"))]
    if item["sizes"]:
        fields.append(_select("Size", "size", ["choose", *item["sizes"]], chosen.get("size")))
    fields.append(_select("Quantity", "quantity", list("12345"), chosen.get("quantity")))
    body = (
        f'{_trail(item)}<div class="product"><div class="art {item["category"]} '
        f'{item["colours"][0]}" aria-hidden="true"></div><div><h1>{escape(item["name"])}</h1>'
        f'<p class="facts">{_facts(item)}</p><p>{_described(item)}</p><dl>{rows}</dl>'
        f'{_alerts(problems)}<form class="buy" method="post" action="/product/{item["id"]}">'
        f"{' '.join(fields)} <button>Add to cart</button></form></div></div>"
    )
    answer = _page(request, item["name"], body)
    return Answer(answer.body, 422) if problems else answer


def _trail(item: dict[str, Any]) -> str:
    """Where the product stands in the shop."""
    category = item["category"]
    up = f'<a href="/">Home</a> / <a class="say" href="/search?category={category}">{category}</a>'
    return f'<nav class="trail">{up}</nav>'


def _described(item: dict[str, Any]) -> str:
    *others, last = item["colours"]
    colours = f"{', '.join(others)} or {last}" if others else last
    return escape(f"In {item['style']} style, made of {item['material']}, in {colours}.")


def cart(request: Request) -> Answer:
    """The cart."""
    lines = request.db["cart"]
    if not lines:
        empty = _onward("Your cart is empty.", "/", "Continue shopping")
        return _page(request, "Cart", f"<h1>Cart</h1>{empty}")
    rows = "".join(_line(request, i, line) for i, line in enumerate(lines, 1))
    total = f'<p class="total">Total ${_sum(request, lines)}</p>'
    go = '<p class="total"><a class="button" href="/checkout">Checkout</a></p>'
    return _page(request, "Cart", f'<h1>Cart</h1><ul class="lines">{rows}</ul>{total}{go}')


def _line(request: Request, number: int, line: list[Any]) -> str:
    item = request.data["products"][line[0] - 1]
    name = escape(item["name"])
    return (
        f'<li><span class="art {item["category"]} {line[1]}" aria-hidden="true"></span>'
        f'<span class="what"><a href="/product/{item["id"]}">{name}</a> '
        f"<span>{_options(line)}</span></span> "
        f'<span class="price">${item["price"] * line[3]}</span>'
        f'<form method="post" action="/cart"><input type="hidden" name="line" value="{number}">'
        f"{_select('Quantity', 'quantity', list('12345'), str(line[3]))} "
        '<button class="quiet" name="do" value="update">Update</button> '
        '<button class="quiet" name="do" value="remove">Remove</button></form></li>'
    )


def checkout(request: Request, problems: Iterable[str] = ()) -> Answer:
    """Where to, how, and what else."""
    filled, data = request.db.get("checkout", {}), request.data
    to = "".join(
        _radio("address", name, f"{name}: {_address(address)}", filled.get("address"))
        for name, address in data["addresses"].items()
    )
    fields = " ".join(_field(name, filled.get(name, "")) for name in ("name", "street"))
    fields += " " + " ".join(_field(name, filled.get(name, "")) for name in ("city", "zip"))
    to += _radio("address", "new", "new address", filled.get("address"))
    how = "".join(
        _radio("shipping", name, f"{name} ${price}", filled.get("shipping"))
        for name, price in data["shipping"].items()
    )
    more = (
        f'<p><label>Coupon <input name="coupon" value="{escape(filled.get("coupon", ""))}">'
        f"</label></p>{_checkbox('gift', 'Gift wrap', filled)}"
        f"{_checkbox('newsletter', 'Newsletter', filled)}"
    )
    body = (
        f'<h1>Checkout</h1>{_alerts(problems)}<div class="desk">'
        '<form class="sheet" method="post" action="/checkout">'
        f"<fieldset><legend>Address</legend>{to}<p class='new'>{fields}</p></fieldset>"
        f"<fieldset><legend>Shipping</legend>{how}</fieldset>"
        f"<fieldset><legend>Extras</legend>{more}</fieldset>"
        f'<p class="total"><button>Review order</button></p></form>{_basket(request)}</div>'
    )
    answer = _page(request, "Checkout", body)
    return Answer(answer.body, 422) if problems else answer


def _basket(request: Request) -> str:
    """What is to be paid for, beside the checkout."""
    lines, total = request.db["cart"], _sum(request, request.db["cart"])
    return (
        '<aside class="sheet basket"><h2>Your order</h2>'
        f'<ul class="plain">{_ordered(request, lines)}</ul>'
        f'<p class="sum">Subtotal <span class="price">${total}</span></p></aside>'
    )


def _ordered(request: Request, lines: Iterable[list[Any]]) -> str:
    return "".join(
        f"<li>{escape(request.data['products'][line[0] - 1]['name'])} <span>{_options(line)}</span>"
        f" <span>quantity {line[3]}</span></li>"
        for line in lines
    )


def review(request: Request, order: dict[str, Any]) -> Answer:
    """The order as it would be placed."""
    buttons = (
        '<form method="post" action="/review"><p class="total">'
        '<a class="button quiet" href="/checkout">Change</a> '
        "<button>Place order</button></p></form>"
    )
    return _page(request, "Review", f"<h1>Review</h1>{_summary(request, order)}{buttons}")


def confirmation(request: Request, order: dict[str, Any], number: int) -> Answer:
    """What was ordered."""
    title = f"Order {number} placed"
    thanks = f'<div class="thanks"><h1>{title}</h1><p>Thank you.</p></div>'
    onward = '<p class="total"><a class="button quiet" href="/">Continue shopping</a></p>'
    return _page(request, title, f"{thanks}{_summary(request, order)}{onward}")


def missing(request: Request) -> Answer:
    """The page for a path that is not there."""
    way = _onward("There is no such page in this shop.", "/", "Go to the front page")
    return Answer(_page(request, "Not found", f"<h1>Page not found</h1>{way}").body, 404)


def _onward(why: str, to: str, name: str) -> str:
    """What stands where there is nothing to show, and where to go from there."""
    link = f'<p><a class="button" href="{to}">{name}</a></p>'
    return f'<div class="onward"><p>{why}</p>{link}</div>'


def _summary(request: Request, order: dict[str, Any]) -> str:
    lines = _ordered(request, order["lines"])
    price = _sum(request, order["lines"])
    off = price * request.data["coupons"].get(order["coupon"], 0) / 100
    shipping = request.data["shipping"][order["shipping"]]
    rows = [
        ("Address", _address(order["address"])),
        ("Shipping", f"{order['shipping']} ${shipping}"),
        ("Coupon", order["coupon"] or "none"),
        ("Gift wrap", "yes" if order["gift"] else "no"),
        ("Newsletter", "yes" if order["newsletter"] else "no"),
        ("Total", f"${price - off + shipping:.2f}"),
    ]
    facts = "".join(f"<div><dt>{k}</dt> <dd>{escape(v)}</dd></div>" for k, v in rows)
    return f'<section class="sheet"><ul class="plain">{lines}</ul><dl>{facts}</dl></section>'


def _page(request: Request, title: str, body: str, query: str = "") -> Answer:
    count = sum(line[3] for line in request.db["cart"])
    header = (
        f'<a class="logo" href="/">{escape(request.data["name"])}</a> '
        '<form class="search" action="/search" role="search">'
        f'<input name="q" aria-label="Search" placeholder="Search" value="{escape(query)}"> '
        f'<button>Search</button></form> <a class="cart" href="/cart">Cart ({count})</a>'
    )
    return page(title, body, header=header, style="/shop.css")


def _cards(items: Iterable[dict[str, Any]]) -> str:
    cards = "".join(
        f'<li><span class="art {item["category"]} {item["colours"][0]}" aria-hidden="true"></span>'
        f'<a href="/product/{item["id"]}">{escape(item["name"])}</a> {_facts(item)}</li>'
        for item in items
    )
    return f'<ul class="cards">{cards}</ul>'


def _facts(item: dict[str, Any]) -> str:
    rating = f"{item['rating'] // 10}.{item['rating'] % 10}"
    colours = ", ".join(item["colours"])
    return (
        f'<span class="price">${item["price"]}</span> <span class="stars">{rating} stars</span> '
        f'<span class="colours">{colours}</span>'
    )


def _options(line: list[Any]) -> str:
    return f"{line[1]}, size {line[2]}" if line[2] else line[1]


def _sum(request: Request, lines: Iterable[list[Any]]) -> int:
    return sum(request.data["products"][line[0] - 1]["price"] * line[3] for line in lines)


def _address(address: dict[str, str]) -> str:
    return ", ".join(address[name] for name in ("name", "street", "city", "zip"))


def _alerts(problems: Iterable[str]) -> str:
    return "".join(f'<p role="alert">{escape(problem)}</p>' for problem in problems)


def _select(label: str, name: str, options: Iterable[str], chosen: str | None) -> str:
    listed = "".join(
        f'<option class="{escape(option)}"{" selected" if option == chosen else ""}>'
        f"{escape(option)}</option>"
        for option in options
    )
    return f'<label>{label} <select name="{name}">{listed}</select></label>'


def _radio(name: str, value: str, label: str, chosen: str | None) -> str:
    on = " checked" if value == chosen else ""
    return (
        f'<p><label><input type="radio" name="{name}" value="{value}"{on}> '
        f'<span class="say">{escape(label)}</span></label></p>'
    )


def _checkbox(name: str, label: str, filled: dict[str, Any]) -> str:
    on = " checked" if filled.get(name) else ""
    return f'<p><label><input type="checkbox" name="{name}"{on}> {label}</label></p>'


def _field(name: str, value: str) -> str:
    return f'<label>{name} <input name="{name}" value="{escape(value)}"></label>'
