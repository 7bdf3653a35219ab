"""Templates of `Repair` about text: coding, parsing, wrapping, comparing."""

from __future__ import annotations

import random

from turnwise.envs.builtin.repair_programs import Case, Program, fill, numbers, pick, template, word


@template
def runs(rng: random.Random) -> Program:
    """Run-length coding."""
    least = rng.randint(1, 3)
    one, other = pick(rng, "encode pack shrink"), pick(rng, "decode unpack grow")
    source = fill(
        '''
def $one(text):
    """Write each run of a letter as its length and the letter.

    A run of up to $least is written as it is.
    """
    out, start = "", 0
    for end in range(1, len(text) + 1):
        if end == len(text) or text[end] != text[start]:
            size = end - start
            out += text[start] * size if size <= $least else str(size) + text[start]
            start = end
    return out


def $other(text):
    """Undo `$one`."""
    out, count = "", ""
    for letter in text:
        if letter.isdigit():
            count += letter
        else:
            out += letter * int(count or 1)
            count = ""
    return out
''',
        {"one": one, "other": other, "least": least},
    )

    def case(rng: random.Random) -> Case:
        text = "".join(rng.choice("abc") * rng.randint(1, 12) for _ in range(rng.randint(0, 4)))
        if rng.random() < 0.6:
            return one, [text]
        return other, ["".join(f"{n or ''}{rng.choice('xyz')}" for n in numbers(rng, 0, 12, 4))]

    return Program("runs", source, case)


@template
def fields(rng: random.Random) -> Program:
    """One line of delimited values, with quotes."""
    mark = rng.choice([",", ";", "|"])
    name = pick(rng, "split fields parse")
    source = fill(
        '''
def $name(line):
    """Split a line at each '$mark' outside of double quotes; "" inside of them is one quote."""
    found, field, quoted, i = [], "", False, 0
    while i < len(line):
        letter = line[i]
        if quoted and line[i:i + 2] == '""':
            field += '"'
            i += 1
        elif letter == '"':
            quoted = not quoted
        elif letter == "$mark" and not quoted:
            found.append(field)
            field = ""
        else:
            field += letter
        i += 1
    found.append(field)
    return found


def widest(lines):
    """Return the largest number of fields of a line; 0 for no lines."""
    return max([len($name(line)) for line in lines], default=0)
''',
        {"name": name, "mark": mark},
    )

    def line(rng: random.Random) -> str:
        parts = [word(rng, "ab ", 3) for _ in range(rng.randint(1, 4))]
        parts = [f'"{p}{mark}""{p}"' if rng.random() < 0.4 else p for p in parts]
        return mark.join(parts)

    def case(rng: random.Random) -> Case:
        if rng.random() < 0.7:
            return name, [line(rng)]
        return "widest", [[line(rng) for _ in range(rng.randint(0, 3))]]

    return Program("fields", source, case)


@template
def wrapping(rng: random.Random) -> Program:
    """Fill lines with words."""
    name, hung = pick(rng, "wrap fold flow"), rng.randint(1, 3)
    source = fill(
        '''
def $name(text, width):
    """Return the words in lines of at most `width` letters; every later line starts with $hung "-".

    A word that is too long for a line has one of its own.
    """
    lines, line = [], ""
    for item in text.split():
        if line and len(line) + 1 + len(item) > width:
            lines.append(line)
            line = "-" * $hung + item
        elif line:
            line += " " + item
        else:
            line = item
    if line:
        lines.append(line)
    return lines


def height(text, width):
    """Return how many lines the text takes."""
    return len($name(text, width))
''',
        {"name": name, "hung": hung},
    )

    def case(rng: random.Random) -> Case:
        text = " ".join(word(rng, "abc", 5, 1) for _ in range(rng.randint(0, 8)))
        return rng.choice([name, name, "height"]), [text, rng.randint(4, 12)]

    return Program("wrapping", source, case)


@template
def cipher(rng: random.Random) -> Program:
    """Shift letters round the alphabet."""
    shift, one, other = rng.randint(2, 11), *rng.choice([("seal", "unseal"), ("hide", "show")])
    source = fill(
        '''
def moved(letter, by):
    """Return the letter `by` places on in its alphabet, round and round; others stay."""
    if "a" <= letter <= "z":
        return chr((ord(letter) - 97 + by) % 26 + 97)
    if "A" <= letter <= "Z":
        return chr((ord(letter) - 65 + by) % 26 + 65)
    return letter


def $one(text):
    """Move the letter at index i by $shift + i places."""
    return "".join(moved(letter, $shift + i) for i, letter in enumerate(text))


def $other(text):
    """Undo `$one`."""
    return "".join(moved(letter, -$shift - i) for i, letter in enumerate(text))
''',
        {"shift": shift, "one": one, "other": other},
    )

    def case(rng: random.Random) -> Case:
        text = word(rng, "azkmAZ !9", 8, 1)
        if rng.random() < 0.2:
            return "moved", [rng.choice("azAZq."), rng.randint(-30, 30)]
        return rng.choice([one, other]), [text]

    return Program("cipher", source, case)


@template
def brackets(rng: random.Random) -> Program:
    """Matching brackets."""
    pairs = rng.sample(["()", "[]", "{}", "<>"], 3)
    opening, closing = "".join(p[0] for p in pairs), "".join(p[1] for p in pairs)
    source = fill(
        '''
OPENING, CLOSING = "$opening", "$closing"


def fault(text):
    """Return the index of the first bracket that fits nothing; -1 if all brackets match.

    For brackets that stay open it is the length of the text.
    """
    stack = []
    for i, letter in enumerate(text):
        if letter in OPENING:
            stack.append(OPENING.index(letter))
        elif letter in CLOSING:
            if not stack or stack.pop() != CLOSING.index(letter):
                return i
    return len(text) if stack else -1


def deepest(text):
    """Return how deep the brackets are nested."""
    depth, most = 0, 0
    for letter in text:
        if letter in OPENING:
            depth += 1
            most = max(most, depth)
        elif letter in CLOSING:
            depth -= 1
    return most
''',
        {"opening": opening, "closing": closing},
    )

    def nest(rng: random.Random, depth: int) -> str:
        if depth == 0:
            return rng.choice(["", "x"])
        pair = rng.choice(pairs)
        return pair[0] + nest(rng, depth - 1) + pair[1] + nest(rng, rng.randint(0, depth - 1))

    def case(rng: random.Random) -> Case:
        text = list(nest(rng, rng.randint(0, 3)))
        if text and rng.random() < 0.5:
            text[rng.randrange(len(text))] = rng.choice(opening + closing + "y")
        return rng.choice(["fault", "fault", "deepest"]), ["".join(text)]

    return Program("brackets", source, case)


@template
def formula(rng: random.Random) -> Program:
    """A calculator that knows which operator binds stronger."""
    strong, rule = rng.choice([("*", "left * right"), ("%", "left % right if right else 0")])
    source = fill(
        '''
def tokens(text):
    """Split a formula into numbers and the signs + - $strong."""
    found = []
    for letter in text:
        if letter.isdigit() and found and isinstance(found[-1], int):
            found[-1] = found[-1] * 10 + int(letter)
        elif letter.isdigit():
            found.append(int(letter))
        elif letter in "+-$strong":
            found.append(letter)
    return found


def strong(left, right):
    """Return what `$strong` makes of two numbers; 0 for anything modulo 0."""
    return $rule


def value(text):
    """Return the value; $strong binds stronger than + and -, and all go from left to right."""
    items = tokens(text)
    terms, i = [items[0]], 1
    while i < len(items):
        sign, number = items[i], items[i + 1]
        if sign == "$strong":
            terms[-1] = strong(terms[-1], number)
        elif sign == "-":
            terms.append(-number)
        else:
            terms.append(number)
        i += 2
    return sum(terms)
''',
        {"strong": strong, "rule": rule},
    )

    def case(rng: random.Random) -> Case:
        text = str(rng.randint(0, 30))
        for _ in range(rng.randint(0, 4)):
            text += f"{rng.choice(['', ' '])}{rng.choice('+-' + strong * 2)} {rng.randint(0, 30)}"
        return ("tokens", [text]) if rng.random() < 0.2 else ("value", [text])

    return Program("formula", source, case)


@template
def filling(rng: random.Random) -> Program:
    """Put values into a text."""
    left, right = rng.choice([("<", ">"), ("[", "]"), ("(", ")")])
    source = fill(
        '''
def filled(text, values):
    """Replace every ${left}name$right by its value; a name without a value stays as it is."""
    out, at = "", 0
    while at < len(text):
        end = text.find("$right", at)
        if text[at] == "$left" and end > at:
            name = text[at + 1:end]
            out += str(values.get(name, text[at:end + 1]))
            at = end + 1
        else:
            out += text[at]
            at += 1
    return out


def missing(text, values):
    """Return the names without a value, in order, each once."""
    found = []
    for part in text.split("$left")[1:]:
        name, mark, rest = part.partition("$right")
        if mark and name not in values and name not in found:
            found.append(name)
    return found
''',
        {"left": left, "right": right},
    )

    def case(rng: random.Random) -> Case:
        texts = [
            f"{left}{pick(rng, 'a b city')}{right}",
            word(rng, "hi ", 4),
            rng.choice([left, "!"]),
        ]
        text = "".join(rng.choices(texts, [4, 3, 1], k=rng.randint(1, 6)))
        values = {name: rng.randint(1, 99) for name in rng.sample(["a", "b", "city"], 2)}
        return rng.choice(["filled", "missing"]), [text, values]

    return Program("filling", source, case)


@template
def distance(rng: random.Random) -> Program:
    """How far two words are apart."""
    cost = rng.randint(1, 2)
    name = pick(rng, "distance edits apart")
    source = fill(
        '''
def $name(one, other):
    """Return the least cost of turning one word into the other.

    To insert or remove a letter costs 1, to replace one costs $cost.
    """
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row = row, [i]
        for j, b in enumerate(other, 1):
            change = above[j - 1] + (0 if a == b else $cost)
            row.append(min(change, above[j] + 1, row[j - 1] + 1))
    return row[-1]


def nearest(wanted, words):
    """Return the word with the least cost; the first of several."""
    best = words[0]
    for candidate in words[1:]:
        if $name(wanted, candidate) < $name(wanted, best):
            best = candidate
    return best
''',
        {"name": name, "cost": cost},
    )

    def case(rng: random.Random) -> Case:
        words = [word(rng, "abc", 5, 1) for _ in range(4)]
        return (name, words[:2]) if rng.random() < 0.7 else ("nearest", [words[0], words[1:]])

    return Program("distance", source, case)
