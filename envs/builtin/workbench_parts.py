"""Parts that several errands of Workbench are made of, each with what makes it hard to mistake."""

from __future__ import annotations

from collections.abc import Callable

from turnwise.envs.builtin.workbench_maker import Maker, Person
from turnwise.envs.builtin.workbench_world import Call


def same_title(make: Maker, title: str, slot: str) -> str:
    """Add events of that title on other days, and return the day of `slot`."""
    day = slot.partition("-")[0]
    others = [other for other in make.days() if other != day]
    for other in make.rng.sample(others, min(make.distractors, len(others))):
        make.event(title, make.slot(other), people=[make.someone()])
    return day


def namesake(make: Maker) -> Person:
    """Return a new contact who shares a name with somebody of another team."""
    return make.person(make.someone().name)


def ask_to_move(make: Maker, title: str, slot: str = "") -> str:
    """Return the text of a mail that wants an event elsewhere; anywhere, where no slot is given."""
    return f"please move {title} to {slot or make.any_slot()}"


def give_number(make: Maker, title: str, number: str = "") -> str:
    """Return the text of a mail that gives a number; any, where none is given."""
    return f"the number for {title} is {number or make.number()}"


def the_mail(
    make: Maker,
    sender: Person,
    title: str,
    value: str,
    text: Callable[[Maker, str, str], str],
) -> tuple[Call, ...]:
    """Add the newest mail of `sender` about `title`, among others that are nearly it.

    Returns:
        The calls that find and read it.
    """
    near = [make.someone(sender) for _ in range(make.distractors)]
    late = make.rng.randrange(len(near) + 1)
    if make.distractors:
        make.mail(sender, title, text(make, title, ""))
    for person in near[late:]:
        make.mail(person, title, text(make, title, ""))
    mail = make.mail(sender, title, text(make, title, value))
    for person in near[:late]:
        make.mail(person, title, text(make, title, ""))
    return (
        ("find_contact", {"name": sender.name}),
        ("search_mail", {"word": title}),
        ("read_mail", {"mail": mail}),
    )


def addresses(people: list[Person]) -> str:
    """Return addresses as the tools take them."""
    return ",".join(sorted(person.address for person in people))
