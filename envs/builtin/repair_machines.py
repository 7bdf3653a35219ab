"""Templates of `Repair` about things with a state: accounts, caches, queues, games."""

from __future__ import annotations

import random
from typing import Any

from turnwise.envs.builtin.repair_programs import Case, Program, fill, numbers, pick, template


@template
def ledger(rng: random.Random) -> Program:
    """Bank accounts."""
    floor, fee = rng.choice([0, 10, 20]), rng.randint(1, 3)
    source = fill(
        '''
class Ledger:
    """Accounts by name; none may fall below -$floor."""

    def __init__(self):
        self.balances = {}
        self.refused = 0

    def deposit(self, name, amount):
        """Put an amount into an account, which is opened if need be."""
        self.balances[name] = self.balances.get(name, 0) + amount

    def withdraw(self, name, amount):
        """Take an amount and a fee of $fee; refuse it if the balance would fall too low."""
        left = self.balances.get(name, 0) - amount - $fee
        if left < -$floor:
            self.refused += 1
            return False
        self.balances[name] = left
        return True

    def transfer(self, giver, taker, amount):
        """Move an amount from one account to another; the giver pays the fee."""
        if self.withdraw(giver, amount):
            self.deposit(taker, amount)


def play(steps):
    """Run [method, arguments...] steps; return the balances and how many were refused."""
    ledger = Ledger()
    for method, *arguments in steps:
        getattr(ledger, method)(*arguments)
    return [ledger.balances, ledger.refused]
''',
        {"floor": floor, "fee": fee},
    )

    def step(rng: random.Random) -> list[Any]:
        name, amount = pick(rng, "ann ben"), rng.choice([floor, rng.randint(1, 20)])
        if rng.random() < 0.4:
            return ["deposit", name, amount]
        if rng.random() < 0.5:
            return ["withdraw", name, amount]
        return ["transfer", name, "ann" if name == "ben" else "ben", amount]

    def case(rng: random.Random) -> Case:
        steps = [["deposit", "ann", rng.randint(5, 20)]]
        return "play", [steps + [step(rng) for _ in range(rng.randint(1, 6))]]

    return Program("ledger", source, case)


@template
def cache(rng: random.Random) -> Program:
    """A cache that forgets."""
    renew = rng.random() < 0.6
    rule = "used" if renew else "stored"
    again = "        self.order.remove(key)\n        self.order.append(key)\n" if renew else ""
    source = fill(
        '''
class Cache:
    """Keeps so many values, and forgets what was $rule longest ago."""

    def __init__(self, size):
        self.size = size
        self.values = {}
        self.order = []

    def get(self, key):
        """Return the value of a key; None if it is not there."""
        if key not in self.values:
            return None
${again}        return self.values[key]

    def put(self, key, value):
        """Store a value; one that was there under this key is replaced."""
        if key in self.values:
            self.order.remove(key)
        elif len(self.order) >= self.size:
            oldest = self.order.pop(0)
            del self.values[oldest]
        self.values[key] = value
        self.order.append(key)


def play(size, steps):
    """Run [key] and [key, value] steps, gets and puts; return what the gets gave, then the keys."""
    cache, found = Cache(size), []
    for step in steps:
        if len(step) == 2:
            cache.put(step[0], step[1])
        else:
            found.append(cache.get(step[0]))
    return [found, cache.order]
''',
        {"rule": rule, "again": again},
    )

    def case(rng: random.Random) -> Case:
        steps: list[list[Any]] = [[pick(rng, "a b c d"), n] for n in numbers(rng, 0, 9, 8, 3)]
        steps = [step if rng.random() < 0.6 else step[:1] for step in steps]
        return "play", [rng.randint(1, 3), steps]

    return Program("cache", source, case)


@template
def queueing(rng: random.Random) -> Program:
    """People who wait at a counter."""
    patience = rng.randint(3, 6)
    name = pick(rng, "served simulate leave_times")
    source = fill(
        '''
def $name(arrivals, needs):
    """Return when each person is done at the one counter, in the order of arrival.

    Whoever would wait for longer than $patience leaves at once, and gets None.
    """
    free, done = 0, []
    for arrival, need in zip(arrivals, needs):
        start = max(free, arrival)
        if start - arrival > $patience:
            done.append(None)
            continue
        free = start + need
        done.append(free)
    return done


def waited(arrivals, needs):
    """Return how long those who were served waited, all together."""
    total = 0
    for arrival, need, end in zip(arrivals, needs, $name(arrivals, needs)):
        if end is not None:
            total += end - need - arrival
    return total
''',
        {"name": name, "patience": patience},
    )

    def case(rng: random.Random) -> Case:
        arrivals = sorted(numbers(rng, 0, 9, 6, 1))
        needs = [rng.randint(1, 6) for _ in arrivals]
        return rng.choice([name, "waited"]), [arrivals, needs]

    return Program("queueing", source, case)


@template
def vending(rng: random.Random) -> Program:
    """A machine that sells."""
    price, coins = rng.randint(3, 7), sorted(rng.sample([1, 2, 5, 10], 3))
    source = fill(
        '''
PRICE = $price
COINS = $coins


def play(stock, events):
    """Return [sold, money kept, money given back] after the events.

    A number is a coin; one that is not in COINS falls through. "buy" sells one piece if there is
    stock and money for it. "back" returns the money that was put in, and so does the end.
    """
    sold, credit, kept, back = 0, 0, 0, 0
    for event in events:
        if event == "buy":
            if sold < stock and credit >= PRICE:
                sold += 1
                credit -= PRICE
                kept += PRICE
        elif event == "back":
            back += credit
            credit = 0
        elif event in COINS:
            credit += event
        else:
            back += event
    return [sold, kept, back + credit]
''',
        {"price": price, "coins": coins},
    )

    def case(rng: random.Random) -> Case:
        events: list[Any] = [rng.choice([1, 2, 5, 10, "buy", "buy"]) for _ in range(7)]
        if rng.random() < 0.4:
            events[rng.randrange(7)] = "back"
        return "play", [rng.randint(0, 3), events]

    return Program("vending", source, case)


@template
def stock(rng: random.Random) -> Program:
    """Lots of goods, the oldest sold first."""
    last = rng.random() < 0.5
    order, which = ("-1", "newest") if last else ("0", "oldest")
    source = fill(
        '''
def sell(lots, amount):
    """Take an amount from [count, price] lots, the $which first; return [cost, lots left].

    If there is not enough, nothing is taken and the cost is -1.
    """
    if amount > sum(count for count, price in lots):
        return [-1, lots]
    left, cost = [list(lot) for lot in lots], 0
    while amount > 0:
        count, price = left[$at]
        taken = min(count, amount)
        cost += taken * price
        amount -= taken
        left[$at][0] -= taken
        if left[$at][0] == 0:
            left.pop($at)
    return [cost, left]


def worth(lots):
    """Return what all lots cost."""
    return sum(count * price for count, price in lots)
''',
        {"which": which, "at": order},
    )

    def case(rng: random.Random) -> Case:
        lots = [[rng.randint(1, 5), rng.randint(1, 9)] for _ in range(rng.randint(1, 4))]
        total = sum(count for count, _ in lots)
        if rng.random() < 0.15:
            return "worth", [lots]
        return "sell", [lots, rng.choice([total, total + 1, rng.randint(0, total)])]

    return Program("stock", source, case)


@template
def bowling(rng: random.Random) -> Program:
    """A score with a bonus."""
    pins, rounds = rng.choice([5, 10]), rng.randint(3, 5)
    source = fill(
        '''
def score(rolls):
    """Return the score of $rounds rounds, each of up to two rolls at $pins pins.

    All pins at once: the round counts $pins and the next two rolls. All pins by the second roll:
    $pins and the next roll. Otherwise the pins that fell.
    """
    total, at = 0, 0
    for turn in range($rounds):
        if rolls[at] == $pins:
            total += $pins + rolls[at + 1] + rolls[at + 2]
            at += 1
        elif rolls[at] + rolls[at + 1] == $pins:
            total += $pins + rolls[at + 2]
            at += 2
        else:
            total += rolls[at] + rolls[at + 1]
            at += 2
    return total
''',
        {"pins": pins, "rounds": rounds},
    )

    def case(rng: random.Random) -> Case:
        rolls: list[int] = []
        for _ in range(rounds):
            first = rng.choice([pins, rng.randint(0, pins), 0])
            rolls += [first] if first == pins else [first, rng.choice([pins - first, 0])]
        return "score", [rolls + [rng.randint(0, pins) for _ in range(2)]]

    return Program("bowling", source, case)


@template
def winner(rng: random.Random) -> Program:
    """Who has so many in a row."""
    size = rng.randint(2, 3)
    source = fill(
        '''
def won(board, player):
    """Return whether a player has $size in a row: across, down or along a diagonal."""
    for r in range(len(board)):
        for c in range(len(board[0])):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if run(board, player, r, c, down, right) >= $size:
                    return True
    return False


def run(board, player, r, c, down, right):
    """Count the player's marks from a cell on in one direction."""
    count = 0
    while 0 <= r < len(board) and 0 <= c < len(board[0]) and board[r][c] == player:
        count += 1
        r += down
        c += right
    return count


def full(board):
    """Return whether no cell is free."""
    return all("." not in row for row in board)
''',
        {"size": size},
    )

    def case(rng: random.Random) -> Case:
        board = ["".join(rng.choice("xo.") for _ in range(3)) for _ in range(3)]
        if rng.random() < 0.2:
            return "full", [[row.replace(".", "x") for row in board[:2]] + board[2:]]
        return "won", [board, rng.choice("xo")]

    return Program("winner", source, case)


@template
def robot(rng: random.Random) -> Program:
    """A robot that walks."""
    left, right = rng.choice([("L", "R"), ("<", ">")])
    size = rng.randint(3, 5)
    source = fill(
        '''
MOVES = [(0, 1), (1, 0), (0, -1), (-1, 0)]


def walk(steps):
    """Return [x, y] after the steps, from [0, 0] and facing up.

    $left and $right turn by a quarter, a digit walks so far. Nothing leads out of 0..$size.
    """
    x, y, facing = 0, 0, 0
    for step in steps:
        if step == "$left":
            facing = (facing - 1) % 4
        elif step == "$right":
            facing = (facing + 1) % 4
        else:
            dx, dy = MOVES[facing]
            x = max(0, min($size, x + dx * int(step)))
            y = max(0, min($size, y + dy * int(step)))
    return [x, y]


def corners(steps):
    """Return whether the robot ends in a corner."""
    x, y = walk(steps)
    return x in (0, $size) and y in (0, $size)
''',
        {"left": left, "right": right, "size": size},
    )

    def case(rng: random.Random) -> Case:
        steps = "".join(rng.choice([left, right, right, "1", "2", "3"]) for _ in range(7))
        return rng.choice(["walk", "walk", "corners"]), [steps]

    return Program("robot", source, case)
