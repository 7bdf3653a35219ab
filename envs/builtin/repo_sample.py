"""A small package with tests, for `RepoRepair` where no folder is given."""

from __future__ import annotations

FILES: dict[str, str] = {
    "README.md": "# basket\n\nPrices, rebates and receipts of a small shop.\n",
    "basket/__init__.py": '''"""Prices, rebates and receipts of a small shop."""

from basket.cart import Cart
from basket.money import parse, show

__all__ = ["Cart", "parse", "show"]
''',
    "basket/money.py": '''"""Amounts of money as whole cents."""


def parse(text):
    """Return the cents of an amount such as "12.50" or "-3"."""
    sign = -1 if text.startswith("-") else 1
    whole, _, part = text.lstrip("-").partition(".")
    if len(part) > 2 or not whole.isdigit():
        raise ValueError(f"not an amount: {text!r}")
    return sign * (int(whole) * 100 + int(part.ljust(2, "0")))


def show(cents):
    """Return an amount as text: 1250 as "12.50"."""
    sign = "-" if cents < 0 else ""
    return f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02}"


def split(cents, people):
    """Share an amount; the first ones pay the cents that are left over."""
    share, left = divmod(cents, people)
    return [share + 1 if i < left else share for i in range(people)]
''',
    "basket/rebate.py": '''"""Rebates on a line of a receipt."""


def percent(cents, rate):
    """Return what a rebate of so many percent takes off, rounded half up."""
    return (cents * rate + 50) // 100


def bulk(count, price, every):
    """Return what is saved if each `every`-th piece is free."""
    if every < 2:
        return 0
    return count // every * price


def best(count, price, offers):
    """Return the largest saving of [kind, value] offers; 0 without any."""
    most = 0
    for kind, value in offers:
        if kind == "percent":
            saved = percent(count * price, value)
        elif kind == "bulk":
            saved = bulk(count, price, value)
        else:
            raise ValueError(f"no offer {kind!r}")
        most = max(most, saved)
    return most
''',
    "basket/cart.py": '''"""What somebody wants to buy."""

from basket.money import show
from basket.rebate import best


class Cart:
    """Counts of things, with their prices and offers."""

    def __init__(self, prices, offers=None):
        self.prices = prices
        self.offers = offers or {}
        self.counts = {}

    def add(self, name, count=1):
        """Put things in; a negative count takes some out."""
        if name not in self.prices:
            raise KeyError(name)
        left = self.counts.get(name, 0) + count
        if left > 0:
            self.counts[name] = left
        else:
            self.counts.pop(name, None)

    def saved(self, name):
        """Return what the offers take off one thing's price."""
        return best(self.counts[name], self.prices[name], self.offers.get(name, []))

    def total(self):
        """Return what all costs, rebates taken off."""
        cents = 0
        for name, count in self.counts.items():
            cents += count * self.prices[name] - self.saved(name)
        return cents

    def receipt(self):
        """Return a line for each thing, and one for the total."""
        lines = []
        for name in sorted(self.counts):
            count = self.counts[name]
            lines.append(f"{count} {name} {show(count * self.prices[name])}")
            if self.saved(name) > 0:
                lines.append(f"  saved {show(self.saved(name))}")
        lines.append(f"total {show(self.total())}")
        return lines
''',
    "basket/stock.py": '''"""What is on the shelves."""


def reserve(stock, counts):
    """Return [what is missing, what is left] after taking the counts from the stock."""
    missing, left = {}, dict(stock)
    for name, count in counts.items():
        have = left.get(name, 0)
        if have < count:
            missing[name] = count - have
        left[name] = max(0, have - count)
    return [missing, left]


def to_order(stock, least, most):
    """Return how many to order of each thing that has fallen below `least`, to have `most`."""
    return {name: most - have for name, have in sorted(stock.items()) if have < least}
''',
    "tests/__init__.py": "",
    "tests/test_money.py": """import unittest

from basket.money import parse, show, split


class MoneyTest(unittest.TestCase):
    def test_parse_whole(self):
        self.assertEqual(parse("12"), 1200)

    def test_parse_cents(self):
        self.assertEqual(parse("12.50"), 1250)
        self.assertEqual(parse("0.05"), 5)

    def test_parse_short_cents(self):
        self.assertEqual(parse("3.5"), 350)

    def test_parse_negative(self):
        self.assertEqual(parse("-3.20"), -320)

    def test_parse_refuses(self):
        for text in ("", "a", "1.234"):
            with self.subTest(text=text), self.assertRaises(ValueError):
                parse(text)

    def test_show(self):
        self.assertEqual(show(1250), "12.50")
        self.assertEqual(show(5), "0.05")

    def test_show_negative(self):
        self.assertEqual(show(-320), "-3.20")

    def test_show_nothing(self):
        self.assertEqual(show(0), "0.00")

    def test_split_evenly(self):
        self.assertEqual(split(900, 3), [300, 300, 300])

    def test_split_with_rest(self):
        self.assertEqual(split(1000, 3), [334, 333, 333])
        self.assertEqual(split(5, 4), [2, 1, 1, 1])
""",
    "tests/test_rebate.py": """import unittest

from basket.rebate import best, bulk, percent


class RebateTest(unittest.TestCase):
    def test_percent(self):
        self.assertEqual(percent(1000, 10), 100)

    def test_percent_rounds_half_up(self):
        self.assertEqual(percent(50, 1), 1)
        self.assertEqual(percent(49, 1), 0)

    def test_bulk(self):
        self.assertEqual(bulk(7, 100, 3), 200)
        self.assertEqual(bulk(4, 100, 2), 200)

    def test_bulk_of_one_saves_nothing(self):
        self.assertEqual(bulk(5, 100, 1), 0)

    def test_bulk_too_few(self):
        self.assertEqual(bulk(2, 100, 3), 0)

    def test_best_takes_the_largest(self):
        self.assertEqual(best(6, 100, [["percent", 10], ["bulk", 3]]), 200)
        self.assertEqual(best(6, 100, [["bulk", 3], ["percent", 50]]), 300)

    def test_best_of_nothing(self):
        self.assertEqual(best(6, 100, []), 0)

    def test_best_refuses(self):
        with self.assertRaises(ValueError):
            best(1, 1, [["gift", 1]])
""",
    "tests/test_cart.py": """import unittest

from basket.cart import Cart

PRICES = {"tea": 300, "jam": 250}


class CartTest(unittest.TestCase):
    def setUp(self):
        self.cart = Cart(PRICES, {"tea": [["bulk", 3]]})

    def test_add(self):
        self.cart.add("tea", 2)
        self.cart.add("tea")
        self.assertEqual(self.cart.counts, {"tea": 3})

    def test_take_out(self):
        self.cart.add("jam", 2)
        self.cart.add("jam", -2)
        self.assertEqual(self.cart.counts, {})

    def test_take_some_out(self):
        self.cart.add("jam", 3)
        self.cart.add("jam", -2)
        self.assertEqual(self.cart.counts, {"jam": 1})

    def test_unknown(self):
        with self.assertRaises(KeyError):
            self.cart.add("car")

    def test_saved(self):
        self.cart.add("tea", 7)
        self.assertEqual(self.cart.saved("tea"), 600)

    def test_total(self):
        self.cart.add("tea", 4)
        self.cart.add("jam", 2)
        self.assertEqual(self.cart.total(), 1400)

    def test_total_of_nothing(self):
        self.assertEqual(self.cart.total(), 0)

    def test_receipt(self):
        self.cart.add("tea", 3)
        self.cart.add("jam")
        lines = ["1 jam 2.50", "3 tea 9.00", "  saved 3.00", "total 8.50"]
        self.assertEqual(self.cart.receipt(), lines)

    def test_receipt_without_rebate(self):
        self.cart.add("jam", 2)
        self.assertEqual(self.cart.receipt(), ["2 jam 5.00", "total 5.00"])
""",
    "tests/test_stock.py": """import unittest

from basket.stock import reserve, to_order


class StockTest(unittest.TestCase):
    def test_reserve(self):
        self.assertEqual(reserve({"tea": 5}, {"tea": 2}), [{}, {"tea": 3}])

    def test_reserve_all(self):
        self.assertEqual(reserve({"tea": 2}, {"tea": 2}), [{}, {"tea": 0}])

    def test_reserve_too_much(self):
        self.assertEqual(reserve({"tea": 1}, {"tea": 4}), [{"tea": 3}, {"tea": 0}])

    def test_reserve_unknown(self):
        self.assertEqual(reserve({}, {"jam": 1}), [{"jam": 1}, {"jam": 0}])

    def test_to_order(self):
        self.assertEqual(to_order({"tea": 1, "jam": 9}, 3, 10), {"tea": 9})

    def test_to_order_at_the_bound(self):
        self.assertEqual(to_order({"tea": 3, "jam": 2}, 3, 5), {"jam": 3})
""",
}
"""Path -> text."""
