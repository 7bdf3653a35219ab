"""The shop itself: runs in the sandbox. Its pages are in `shop_pages.py`."""

from __future__ import annotations

from turnwise.envs.builtin import shop_pages as pages
from turnwise.envs.web.kit import Answer, Request, redirect

MAX_QUANTITY = 5
NEW = ("name", "street", "city", "zip")


def respond(request: Request) -> Answer:
    """Answer one request."""
    request.db.setdefault("cart", [])
    request.db.setdefault("orders", [])
    top, _, rest = request.path.strip("/").partition("/")
    routes = {
        ("GET", ""): home,
        ("GET", "search"): search,
        ("GET", "product"): product,
        ("POST", "product"): add,
        ("GET", "cart"): cart,
        ("POST", "cart"): change,
        ("GET", "checkout"): checkout,
        ("POST", "checkout"): check,
        ("GET", "review"): review,
        ("POST", "review"): place,
        ("GET", "order"): order,
    }
    route = routes.get((request.method, top))
    return pages.missing(request) if route is None else route(request, rest)


def home(request: Request, rest: str) -> Answer:
    """The front page: categories and what is featured."""
    return pages.home(request)


def search(request: Request, rest: str) -> Answer:
    """A page of results."""
    found = matching(request)
    pages_there = max(-(-len(found) // request.data["per_page"]), 1)
    number = min(max(_whole(request.query.get("page", "1")), 1), pages_there)
    first = (number - 1) * request.data["per_page"]
    shown = found[first : first + request.data["per_page"]]
    return pages.results(request, shown, len(found), number, pages_there)


def matching(request: Request) -> list[dict]:  # type: ignore[type-arg]
    """The products that fit query and filters, sorted."""
    words = request.query.get("q", "").lower().split()
    wanted = {
        name: value
        for name in ("category", "brand", "style")
        if (value := request.query.get(name, "any")) not in ("any", "")
    }
    most = _whole(request.query.get("max", ""))
    found = [
        item
        for item in request.data["products"]
        if all(word in item["name"].lower().split() for word in map(_singular, words))
        and all(item[name] == value for name, value in wanted.items())
        and (not most or item["price"] <= most)
    ]
    key = {"cheapest": lambda p: p["price"], "best rated": lambda p: -p["rating"]}
    sort = key.get(request.query.get("sort", ""))
    return sorted(found, key=sort) if sort else found


def product(request: Request, rest: str) -> Answer:
    """One product, with its options."""
    item = _item(request, rest)
    return pages.missing(request) if item is None else pages.product(request, item)


def add(request: Request, rest: str) -> Answer:
    """Put a product into the cart."""
    item = _item(request, rest)
    if item is None:
        return pages.missing(request)
    colour, size = request.form.get("colour", ""), request.form.get("size", "")
    quantity = _whole(request.form.get("quantity", "1"))
    problems = [] if colour in item["colours"] else ["Choose a colour."]
    problems += [] if size in (item["sizes"] or [""]) else ["Choose a size."]
    if problems or not 1 <= quantity <= MAX_QUANTITY:
        return pages.product(request, item, problems)
    for line in request.db["cart"]:
        if line[:3] == [item["id"], colour, size]:
            line[3] = min(line[3] + quantity, MAX_QUANTITY)
            return redirect("/cart")
    request.db["cart"].append([item["id"], colour, size, quantity])
    return redirect("/cart")


def cart(request: Request, rest: str) -> Answer:
    """The cart."""
    return pages.cart(request)


def change(request: Request, rest: str) -> Answer:
    """Change the quantity of a line, or remove it."""
    number, lines = _whole(request.form.get("line", "0")), request.db["cart"]
    if not 1 <= number <= len(lines):
        return redirect("/cart")
    if request.form.get("do") == "remove":
        del lines[number - 1]
    elif 1 <= (quantity := _whole(request.form.get("quantity", "0"))) <= MAX_QUANTITY:
        lines[number - 1][3] = quantity
    return redirect("/cart")


def checkout(request: Request, rest: str) -> Answer:
    """Where to, how, and what else."""
    return pages.checkout(request) if request.db["cart"] else redirect("/cart")


def check(request: Request, rest: str) -> Answer:
    """Keep what was filled in, or say what is wrong."""
    form = request.form
    request.db["checkout"] = {
        "address": form.get("address", ""),
        "shipping": form.get("shipping", ""),
        "coupon": form.get("coupon", "").strip(),
        "gift": "gift" in form,
        "newsletter": "newsletter" in form,
        **{name: form.get(name, "").strip() for name in NEW},
    }
    problems = problems_of(request)
    return pages.checkout(request, problems) if problems else redirect("/review")


def problems_of(request: Request) -> list[str]:
    """What is wrong with the checkout as it is filled in."""
    filled, data = request.db.get("checkout", {}), request.data
    problems = []
    if filled.get("address") == "new":
        problems += [f"Enter the {name}." for name in NEW if not filled[name]]
        if filled["zip"] and not (filled["zip"].isdigit() and len(filled["zip"]) == 5):
            problems.append("A zip has five digits.")
    elif filled.get("address") not in data["addresses"]:
        problems.append("Choose an address.")
    if filled.get("shipping") not in data["shipping"]:
        problems.append("Choose how to ship.")
    if filled.get("coupon") and filled["coupon"] not in data["coupons"]:
        problems.append("There is no such coupon.")
    return problems


def review(request: Request, rest: str) -> Answer:
    """The order as it would be placed."""
    if not request.db["cart"] or problems_of(request):
        return redirect("/checkout")
    return pages.review(request, order_of(request))


def order_of(request: Request) -> dict:  # type: ignore[type-arg]
    """The order that the cart and the checkout make."""
    filled = request.db["checkout"]
    typed = {name: filled[name] for name in NEW}
    return {
        "lines": sorted(request.db["cart"]),
        "address": request.data["addresses"].get(filled["address"], typed),
        **{name: filled[name] for name in ("shipping", "coupon", "gift", "newsletter")},
    }


def place(request: Request, rest: str) -> Answer:
    """Place the order; the cart is empty afterwards."""
    if not request.db["cart"] or problems_of(request):
        return redirect("/checkout")
    request.db["orders"].append(order_of(request))
    request.db["cart"] = []
    request.db.pop("checkout")
    return redirect(f"/order/{len(request.db['orders'])}")


def order(request: Request, rest: str) -> Answer:
    """The confirmation of an order."""
    number = _whole(rest)
    if not 1 <= number <= len(request.db["orders"]):
        return pages.missing(request)
    return pages.confirmation(request, request.db["orders"][number - 1], number)


def _item(request: Request, rest: str) -> dict | None:  # type: ignore[type-arg]
    products = request.data["products"]
    number = _whole(rest)
    return products[number - 1] if 1 <= number <= len(products) else None


def _whole(text: str) -> int:
    """The number that `text` is, or 0."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
