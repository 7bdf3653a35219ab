"""Templates of `Repair` about numbers: numerals, dates, money, statistics."""

from __future__ import annotations

import random

from turnwise.envs.builtin.repair_programs import Case, Program, fill, numbers, pick, template, word


@template
def roman(rng: random.Random) -> Program:
    """Roman numerals."""
    short = rng.random() < 0.5
    pairs = [("M", 1000), ("CM", 900), ("D", 500), ("CD", 400), ("C", 100), ("XC", 90), ("L", 50)]
    pairs += [("XL", 40), ("X", 10), ("IX", 9), ("V", 5), ("IV", 4), ("I", 1)]
    kept = [pair for pair in pairs if short or len(pair[0]) == 1]
    one, other = pick(rng, "to_roman write numeral"), pick(rng, "from_roman read number")
    table = "".join(f'    ("{sign}", {value}),\n' for sign, value in kept)
    source = fill(
        '''
SIGNS = [
$table]


def $one(value):
    """Write a number with these signs, the largest first."""
    out = ""
    for sign, size in SIGNS:
        while value >= size:
            out += sign
            value -= size
    return out


def $other(text):
    """Read what `$one` writes."""
    total, at = 0, 0
    for sign, size in SIGNS:
        while text[at:at + len(sign)] == sign:
            total += size
            at += len(sign)
    return total
''',
        {"table": table, "one": one, "other": other},
    )

    def case(rng: random.Random) -> Case:
        value = rng.randint(1, 1999)
        if rng.random() < 0.5:
            return one, [value]
        text = ""
        for sign, size in kept:
            text, value = text + sign * (value // size), value % size
        return other, [text]

    return Program("roman", source, case)


@template
def calendar(rng: random.Random) -> Program:
    """Day numbers and leap years."""
    first = rng.choice([1, 0])
    source = fill(
        '''
LENGTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]


def leap(year):
    """Return whether the year has a 29th of February."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def length(year, month):
    """Return how many days the month has."""
    return LENGTHS[month - 1] + (1 if month == 2 and leap(year) else 0)


def number(year, month, day):
    """Return the day's number in its year; the first of January is $first."""
    return sum(length(year, m) for m in range(1, month)) + day - 1 + $first


def later(year, month, day, days):
    """Return [year, month, day] that many days later."""
    day += days
    while day > length(year, month):
        day -= length(year, month)
        month += 1
        if month > 12:
            year, month = year + 1, 1
    return [year, month, day]
''',
        {"first": first},
    )

    def case(rng: random.Random) -> Case:
        year, month = rng.choice([1900, 2000, 2023, 2024]), rng.randint(1, 12)
        kind = rng.randrange(4)
        if kind < 2:
            return ("leap", [year]) if kind else ("length", [year, rng.choice([2, month])])
        day = rng.choice([1, 28, rng.randint(1, 28)])
        if kind == 2:
            return "number", [year, month, day]
        return "later", [year, month, day, rng.choice([0, 1, 3, 30, 400])]

    return Program("dates", source, case)


@template
def digits(rng: random.Random) -> Program:
    """Numbers in another base."""
    base = rng.choice([2, 3, 5, 7, 12, 16])
    alphabet, one, other = "0123456789abcdef", pick(rng, "write show"), pick(rng, "read value")
    source = fill(
        '''
DIGITS = "$alphabet"


def $one(number):
    """Write a number in base $base; a minus sign stands before one below zero."""
    if number < 0:
        return "-" + $one(-number)
    if number < $base:
        return DIGITS[number]
    return $one(number // $base) + DIGITS[number % $base]


def $other(text):
    """Undo `$one`."""
    sign, total = 1, 0
    if text.startswith("-"):
        sign, text = -1, text[1:]
    for letter in text:
        total = total * $base + DIGITS.index(letter)
    return sign * total
''',
        {"alphabet": alphabet[:base], "base": base, "one": one, "other": other},
    )

    def case(rng: random.Random) -> Case:
        if rng.random() < 0.5:
            return one, [rng.choice([0, base, rng.randint(-200, 200)])]
        return other, [rng.choice(["", "-"]) + word(rng, alphabet[:base], 4, 1)]

    return Program("digits", source, case)


@template
def fractions(rng: random.Random) -> Program:
    """Sums of fractions in lowest terms."""
    verb, sign = rng.choice([("sum", "+"), ("difference", "-")])
    name = pick(rng, "combine reckon joined")
    source = fill(
        '''
def divisor(a, b):
    """Return the greatest common divisor."""
    while b:
        a, b = b, a % b
    return abs(a)


def reduced(top, bottom):
    """Return [top, bottom] in lowest terms; the bottom is above zero."""
    if bottom < 0:
        top, bottom = -top, -bottom
    common = divisor(top, bottom)
    return [top // common, bottom // common]


def $name(a, b):
    """Return the $verb of two fractions [top, bottom] in lowest terms."""
    return reduced(a[0] * b[1] $sign b[0] * a[1], a[1] * b[1])
''',
        {"name": name, "verb": verb, "sign": sign},
    )

    def case(rng: random.Random) -> Case:
        a, b = ([rng.randint(-6, 9), rng.choice([-3, 1, 2, 4, 6, 9])] for _ in range(2))
        return (name, [a, b]) if rng.random() < 0.5 else ("reduced", [a[0] * 2, a[1] * 2])

    return Program("ratio", source, case)


@template
def factors(rng: random.Random) -> Program:
    """Primes and factors."""
    name = pick(rng, "factors split_up parts")
    source = fill(
        '''
def $name(number):
    """Return the prime factors, the smallest first, each as often as it divides."""
    found, candidate = [], 2
    while candidate * candidate <= number:
        while number % candidate == 0:
            found.append(candidate)
            number //= candidate
        candidate += 1
    if number > 1:
        found.append(number)
    return found


def primes(limit):
    """Return the primes up to and including `limit`."""
    marked = [True] * (limit + 1)
    found = []
    for number in range(2, limit + 1):
        if marked[number]:
            found.append(number)
            for multiple in range(number * number, limit + 1, number):
                marked[multiple] = False
    return found
''',
        {"name": name},
    )

    def case(rng: random.Random) -> Case:
        number = rng.choice([1, 2, 9, 25, 49, 97, 121, rng.randint(2, 400)])
        return (name, [number]) if rng.random() < 0.6 else ("primes", [rng.randint(2, 60)])

    return Program("factors", source, case)


@template
def taxes(rng: random.Random) -> Program:
    """Amounts that are charged in brackets."""
    steps = sorted(rng.sample(range(10, 100, 10), 2))
    rates = sorted(rng.sample(range(5, 50, 5), 3))
    name = pick(rng, "tax fee charge")
    source = fill(
        '''
STEPS = [0, $one, $two]
RATES = [$r, $s, $t]


def $name(amount):
    """Charge, of each part of the amount above a step, the step's rate in hundredths."""
    total = 0
    for i, step in enumerate(STEPS):
        if amount <= step:
            break
        end = STEPS[i + 1] if i + 1 < len(STEPS) else amount
        total += (min(amount, end) - step) * RATES[i]
    return total


def kept(amounts):
    """Return what is left of all amounts together, in hundredths."""
    return sum(amount * 100 - $name(amount) for amount in amounts)
''',
        {"name": name, "one": steps[0], "two": steps[1]} | dict(zip("rst", rates, strict=True)),
    )

    def case(rng: random.Random) -> Case:
        if rng.random() < 0.7:
            return name, [rng.choice([*steps, rng.randint(0, 130)])]
        return "kept", [numbers(rng, 0, 120, 4)]

    return Program("taxes", source, case)


@template
def coins(rng: random.Random) -> Program:
    """The fewest coins for an amount."""
    values = [1, *sorted(rng.sample([3, 4, 5, 7, 9, 10], 2))] if rng.random() < 0.5 else [3, 5, 8]
    name = pick(rng, "fewest least_coins change")
    source = fill(
        '''
COINS = $values


def $name(amount):
    """Return the least number of coins that make the amount; -1 if none do."""
    best = [0] + [-1] * amount
    for size in range(1, amount + 1):
        for coin in COINS:
            if coin <= size and best[size - coin] >= 0:
                count = best[size - coin] + 1
                if best[size] < 0 or count < best[size]:
                    best[size] = count
    return best[amount]


def payable(amounts):
    """Return the amounts that coins can make."""
    return [amount for amount in amounts if $name(amount) >= 0]
''',
        {"name": name, "values": values},
    )

    def case(rng: random.Random) -> Case:
        if rng.random() < 0.7:
            return name, [rng.randint(0, 30)]
        return "payable", [numbers(rng, 0, 12, 6)]

    return Program("coins", source, case)


@template
def statistics_(rng: random.Random) -> Program:
    """Median, mode, spread."""
    side, index = rng.choice([("lower", "(len(order) - 1) // 2"), ("upper", "len(order) // 2")])
    middle = pick(rng, "median middle centre")
    source = fill(
        '''
def $middle(values):
    """Return the middle value; the $side one of two."""
    order = sorted(values)
    return order[$index]


def mode(values):
    """Return the value that occurs most often; the smallest of several."""
    best, most = None, 0
    for value in sorted(set(values)):
        if values.count(value) > most:
            best, most = value, values.count(value)
    return best


def outliers(values, far):
    """Return the values that are more than `far` away from the middle one."""
    core = $middle(values)
    return [value for value in values if abs(value - core) > far]
''',
        {"middle": middle, "side": side, "index": index},
    )

    def case(rng: random.Random) -> Case:
        values = numbers(rng, 0, 9, 7, 1)
        if rng.random() < 0.4:
            return "outliers", [values, rng.randint(1, 4)]
        return rng.choice([middle, "mode"]), [values]

    return Program("stats", source, case)
