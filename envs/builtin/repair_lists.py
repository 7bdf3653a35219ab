"""Templates of `Repair` about lists: intervals, windows, ranks, grids, graphs."""

from __future__ import annotations

import random

from turnwise.envs.builtin.repair_programs import Case, Program, fill, numbers, pick, template


@template
def intervals(rng: random.Random) -> Program:
    """Merge spans."""
    touch, rule = rng.choice([("<=", "touch or overlap"), ("<", "overlap by more than a point")])
    name = {"f": pick(rng, "merge join unite"), "g": pick(rng, "covered length total")}
    source = fill(
        '''
def $f(spans):
    """Join all [start, end] spans that $rule; return them in order."""
    joined = []
    for start, end in sorted(spans):
        if joined and start $touch joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return joined


def $g(spans):
    """Return how much of the line the spans cover."""
    size = 0
    for start, end in $f(spans):
        size += end - start
    return size
''',
        {**name, "touch": touch, "rule": rule},
    )

    def case(rng: random.Random) -> Case:
        starts = numbers(rng, 0, 12, 5, 1)
        return rng.choice(list(name.values())), [[[s, s + rng.randint(1, 4)] for s in starts]]

    return Program("spans", source, case)


@template
def windows(rng: random.Random) -> Program:
    """Sums over a window that moves."""
    step, name = rng.randint(1, 3), pick(rng, "sums window_sums moving")
    source = fill(
        '''
def $name(values, size):
    """Return the sum of each full window of `size` values, a new one every $step."""
    found = []
    for start in range(0, len(values) - size + 1, $step):
        total = 0
        for value in values[start:start + size]:
            total += value
        found.append(total)
    return found


def best(values, size):
    """Return the largest window sum, or 0 if there is no full window."""
    found = $name(values, size)
    return max(found) if found else 0
''',
        {"name": name, "step": step},
    )

    def case(rng: random.Random) -> Case:
        return rng.choice([name, "best"]), [numbers(rng, -4, 9, 8), rng.randint(1, 4)]

    return Program("windows", source, case)


@template
def matrix(rng: random.Random) -> Program:
    """Turn, multiply, trace."""
    turned = {
        "to the right": "rows[len(rows) - 1 - r][c] for r in range(len(rows))",
        "to the left": "rows[r][len(rows[0]) - 1 - c] for r in range(len(rows))",
    }
    way = rng.choice(list(turned))
    source = fill(
        '''
def turn(rows):
    """Return the matrix turned $way by a quarter."""
    return [[$inner] for c in range(len(rows[0]))]


def product(a, b):
    """Return the matrix product; a has as many columns as b has rows."""
    out = []
    for row in a:
        line = []
        for column in range(len(b[0])):
            line.append(sum(row[k] * b[k][column] for k in range(len(b))))
        out.append(line)
    return out


def trace(rows):
    """Return the sum of the main diagonal."""
    total = 0
    for i in range(min(len(rows), len(rows[0]))):
        total += rows[i][i]
    return total
''',
        {"way": way, "inner": turned[way]},
    )

    def grid(rng: random.Random, height: int, width: int) -> list[list[int]]:
        return [[rng.randint(-3, 9) for _ in range(width)] for _ in range(height)]

    def case(rng: random.Random) -> Case:
        h, w, n = (rng.randint(1, 3) for _ in range(3))
        if rng.random() < 0.4:
            return "product", [grid(rng, h, w), grid(rng, w, n)]
        return rng.choice(["turn", "trace"]), [grid(rng, h, w)]

    return Program("matrix", source, case)


@template
def ranking(rng: random.Random) -> Program:
    """Places with ties."""
    dense = rng.random() < 0.5
    rule = "the next place follows at once" if dense else "as many places are then left out"
    counted = "sorted(set(scores), reverse=True)" if dense else "sorted(scores, reverse=True)"
    first = pick(rng, "places ranks standing")
    source = fill(
        '''
def $first(scores):
    """Return each score's place, 1 for the highest.

    Equal scores share a place, and $rule.
    """
    order = $counted
    return [order.index(score) + 1 for score in scores]


def podium(names, scores, last):
    """Return the names whose place is at most `last`, by place and then by name."""
    placed = sorted(zip($first(scores), names))
    chosen = []
    for place, name in placed:
        if place <= last:
            chosen.append(name)
    return chosen
''',
        {"first": first, "rule": rule, "counted": counted},
    )

    def case(rng: random.Random) -> Case:
        scores = numbers(rng, 1, 6, 6, 1)
        if rng.random() < 0.5:
            return first, [scores]
        names = rng.sample(["ada", "bo", "cy", "dee", "eli", "flo"], len(scores))
        return "podium", [names, scores, rng.randint(1, 4)]

    return Program("ranking", source, case)


@template
def bisection(rng: random.Random) -> Program:
    """Search in a sorted list."""
    side, sign = rng.choice([("first", "<"), ("last", "<=")])
    rule = "that is not below" if side == "first" else "that is above"
    name = pick(rng, "place search locate")
    source = fill(
        '''
def $name(values, wanted):
    """Return the first index of the sorted values $rule `wanted`."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] $sign wanted:
            low = middle + 1
        else:
            high = middle
    return low


def between(values, least, most):
    """Return how many places lie between those of two values; 0 if they are reversed."""
    return max(0, $name(values, most) - $name(values, least))
''',
        {"name": name, "sign": sign, "rule": rule},
    )

    def case(rng: random.Random) -> Case:
        values = sorted(numbers(rng, 0, 9, 8))
        if rng.random() < 0.6:
            return name, [values, rng.randint(-1, 10)]
        return "between", [values, rng.randint(0, 9), rng.randint(0, 9)]

    return Program("bisection", source, case)


@template
def grouping(rng: random.Random) -> Program:
    """Totals by key."""
    name, least = pick(rng, "totals sums tally"), rng.randint(2, 4)
    source = fill(
        '''
def $name(pairs):
    """Return the sum of the amounts of each key."""
    found = {}
    for key, amount in pairs:
        found[key] = found.get(key, 0) + amount
    return found


def top(pairs, count):
    """Return the `count` keys with the largest sums, the largest first, then by key.

    A key whose sum is below $least is left out.
    """
    found = $name(pairs)
    order = sorted(found, key=lambda key: (-found[key], key))
    return [key for key in order if found[key] >= $least][:count]
''',
        {"name": name, "least": least},
    )

    def case(rng: random.Random) -> Case:
        pairs = [[pick(rng, "tea oil rye fig"), n] for n in numbers(rng, 0, 4, 7, 1)]
        return (name, [pairs]) if rng.random() < 0.3 else ("top", [pairs, rng.randint(1, 3)])

    return Program("grouping", source, case)


@template
def ordering(rng: random.Random) -> Program:
    """Topological order."""
    least = rng.random() < 0.5
    source = fill(
        '''
def order(needs):
    """Return the tasks so that each comes after all that it needs; [] if they form a circle.

    Of those that are free, the one that comes $which by name is taken.
    """
    left = {task: set(before) for task, before in needs.items()}
    done = []
    while left:
        free = [task for task in left if not left[task]]
        if not free:
            return []
        chosen = $pick(free)
        done.append(chosen)
        del left[chosen]
        for before in left.values():
            before.discard(chosen)
    return done


def depth(needs, task):
    """Return how many tasks the longest chain below `task` holds; there is no circle."""
    longest = 0
    for before in needs[task]:
        longest = max(longest, depth(needs, before) + 1)
    return longest
''',
        {"which": "first" if least else "last", "pick": "min" if least else "max"},
    )

    def case(rng: random.Random) -> Case:
        tasks = list("abcde")[: rng.randint(2, 5)]
        rng.shuffle(tasks)
        needs = {t: rng.sample(tasks[:i], rng.randint(0, min(2, i))) for i, t in enumerate(tasks)}
        if rng.random() < 0.4:
            return "depth", [needs, rng.choice(tasks)]
        if rng.random() < 0.2:
            needs[tasks[0]] = [tasks[-1]]
        return "order", [needs]

    return Program("ordering", source, case)


@template
def paths(rng: random.Random) -> Program:
    """Ways through a grid with walls."""
    wall = pick(rng, "# x o")
    source = fill(
        '''
def ways(grid):
    """Count the ways from the upper left to the lower right corner, right and down only.

    A cell that holds '$wall' is a wall.
    """
    counts = [[0] * len(row) for row in grid]
    for r, row in enumerate(grid):
        for c, cell in enumerate(row):
            if cell == "$wall":
                continue
            if r == 0 and c == 0:
                counts[r][c] = 1
            if r > 0:
                counts[r][c] += counts[r - 1][c]
            if c > 0:
                counts[r][c] += counts[r][c - 1]
    return counts[-1][-1]


def walls(grid):
    """Return the longest run of walls in a row."""
    longest = 0
    for row in grid:
        run = 0
        for cell in row:
            run = run + 1 if cell == "$wall" else 0
            longest = max(longest, run)
    return longest
''',
        {"wall": wall},
    )

    def case(rng: random.Random) -> Case:
        width = rng.randint(2, 4)
        lines = ["".join(rng.choice([".", ".", ".", wall]) for _ in range(width)) for _ in range(3)]
        return rng.choice(["ways", "ways", "walls"]), [lines]

    return Program("paths", source, case)


@template
def bins(rng: random.Random) -> Program:
    """A histogram with clipped ends."""
    name = pick(rng, "histogram counts bins")
    source = fill(
        '''
def $name(values, low, width, count):
    """Count the values in `count` bins of `width` from `low` on.

    A value below the first bin counts in the first, one above the last in the last.
    """
    found = [0] * count
    for value in values:
        index = (value - low) // width
        found[max(0, min(index, count - 1))] += 1
    return found


def fullest(values, low, width, count):
    """Return where the fullest bin starts; the first of several."""
    found = $name(values, low, width, count)
    return low + found.index(max(found)) * width
''',
        {"name": name},
    )

    def case(rng: random.Random) -> Case:
        args = [numbers(rng, 0, 20, 8, 2), rng.randint(0, 5), rng.randint(1, 4), rng.randint(2, 4)]
        return rng.choice([name, "fullest"]), args

    return Program("bins", source, case)


@template
def life(rng: random.Random) -> Program:
    """One step of a cellular automaton."""
    born, stay = rng.randint(2, 3), sorted(rng.sample([1, 2, 3, 4], 2))
    source = fill(
        '''
def neighbours(cells, r, c):
    """Count the live cells around a cell; nothing lives outside."""
    found = 0
    for row in range(max(0, r - 1), min(len(cells), r + 2)):
        for column in range(max(0, c - 1), min(len(cells[0]), c + 2)):
            if (row, column) != (r, c):
                found += cells[row][column]
    return found


def step(cells):
    """Return the next cells: one is born with $born around it, and stays with $one or $two."""
    after = []
    for r, row in enumerate(cells):
        line = []
        for c, cell in enumerate(row):
            count = neighbours(cells, r, c)
            alive = count in ($one, $two) if cell else count == $born
            line.append(1 if alive else 0)
        after.append(line)
    return after
''',
        {"born": born, "one": stay[0], "two": stay[1]},
    )

    def case(rng: random.Random) -> Case:
        height, width = rng.randint(2, 4), rng.randint(2, 4)
        cells = [[rng.randint(0, 1) for _ in range(width)] for _ in range(height)]
        if rng.random() < 0.3:
            return "neighbours", [cells, rng.randrange(height), rng.randrange(width)]
        return "step", [cells]

    return Program("life", source, case)
