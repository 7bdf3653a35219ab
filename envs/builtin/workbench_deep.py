"""The longer errands of Workbench."""

from __future__ import annotations

from turnwise.envs.builtin.workbench_maker import Errand, Maker, Person
from turnwise.envs.builtin.workbench_parts import (
    addresses,
    ask_to_move,
    give_number,
    namesake,
    the_mail,
)
from turnwise.envs.builtin.workbench_world import Call


def move_and_tell(make: Maker) -> Errand:
    """Move an event to where a mail wants it, and tell its people."""
    sender, title, goal = namesake(make), make.title(), make.slot()
    people = [sender, make.someone(sender)]
    event = make.event(title, make.slot(), people=people)
    reads = the_mail(make, sender, title, goal, ask_to_move)
    reads += (("search_events", {"word": title}), ("read_event", {"event": event}))
    writes: tuple[Call, ...] = (
        ("move_event", {"event": event, "slot": goal}),
        ("send_mail", {"to": addresses(people), "text": goal}),
    )
    text = (
        f"move the {title} event to the slot that {sender} asks for in the newest mail about it, "
        "and send all its people the new slot"
    )
    return Errand(text, reads, writes, kinds=("slots",))


def _numbers_by_mail(make: Maker, title: str) -> tuple[tuple[Call, ...], int]:
    """Add mails that give numbers and one that gives none; return how to read them, and the sum."""
    numbers = [make.number() for _ in range(make.rng.randrange(2, 5))]
    texts = [give_number(make, title, str(number)) for number in numbers]
    texts += ["the number comes later"] if make.distractors else []
    make.rng.shuffle(texts)
    ids = []
    for text in texts:
        ids.append(make.mail(make.someone(), title, text))
        make.chatter(make.rng.randrange(2))
    reads: tuple[Call, ...] = (("search_mail", {"word": title}),)
    return reads + tuple(("read_mail", {"mail": id}) for id in ids), sum(numbers)


def add_mails(make: Maker) -> Errand:
    """Add the numbers of several mails into a file."""
    title, path = make.title(), make.path()
    reads, total = _numbers_by_mail(make, title)
    text = f"write the sum of the numbers in all mails about {title} to {path}"
    return Errand(text, reads, (("write_file", {"path": path, "text": str(total)}),))


def add_and_tell(make: Maker) -> Errand:
    """Add the numbers of several mails into a file, and tell somebody."""
    person, title, path = namesake(make), make.title(), make.path()
    reads, total = _numbers_by_mail(make, title)
    reads += (("find_contact", {"name": person.name}),)
    writes: tuple[Call, ...] = (
        ("write_file", {"path": path, "text": str(total)}),
        ("send_mail", {"to": person.address, "text": str(total)}),
    )
    text = (
        f"write the sum of the numbers in all mails about {title} to {path} "
        f"and send {person} the sum"
    )
    return Errand(text, reads, writes, kinds=("numbers",))


def _free_time(people: list[Person], day: str) -> tuple[Call, ...]:
    """Return the calls that tell when people have time."""
    found: list[Call] = [("find_contact", {"name": person.name}) for person in people]
    found += [("list_busy", {"address": person.address, "day": day}) for person in people]
    return (*found, ("list_events", {"day": day}))


def _invite(make: Maker, title: str, people: list[Person], day: str) -> tuple[str, Call]:
    """Return the first slot that suits all, and the call that takes it."""
    slot = make.common_slot(day, people)
    return slot, ("create_event", {"slot": slot, "title": title, "people": addresses(people)})


def meet(make: Maker) -> Errand:
    """Find a slot for several people, and make an event of it."""
    one, other, title, day = namesake(make), namesake(make), make.title(), make.later_day()
    _, write = _invite(make, title, [one, other], day)
    text = (
        f"create a {title} event with {one} and {other} in the first slot {make.on(day)} "
        "in which they and you are free"
    )
    return Errand(text, _free_time([one, other], day), (write,))


def meet_by_mail(make: Maker) -> Errand:
    """Do the same for somebody who asks by mail, and tell the people."""
    sender, one, other = namesake(make), namesake(make), namesake(make)
    title, day, people = make.title(), make.later_day(), [one, other]
    slot, write = _invite(make, title, people, day)

    def wish(make: Maker, title: str, who: str) -> str:
        stray = f"{make.someone()} and {make.someone()} on {make.any_slot().partition('-')[0]}"
        return f"please set up {title} with {who or stray}"

    reads = the_mail(make, sender, title, f"{one} and {other} on {day}", wish)
    writes: tuple[Call, ...] = (write, ("send_mail", {"to": addresses(people), "text": slot}))
    text = (
        f"create the event that {sender} asks for in the newest mail about {title}, in the first "
        "slot of that day in which its people and you are free, and send its people the slot"
    )
    return Errand(text, reads + _free_time(people, day), writes, kinds=("slots",))


def somebody_left(make: Maker) -> Errand:
    """Delete the events of somebody who left, and tell somebody which."""
    gone, boss = namesake(make), namesake(make)
    titles = [make.title() for _ in range(make.rng.randrange(2, 4))]
    events = [make.event(t, make.slot(), host=gone, people=[make.someone(gone)]) for t in titles]
    for _ in range(make.distractors):  # guests of the events of others stay
        make.event(make.title(), make.slot(), host=make.someone(gone), people=[gone])
    reads: tuple[Call, ...] = (
        ("find_contact", {"name": gone.name}),
        ("search_events", {"word": gone.address}),
        ("find_contact", {"name": boss.name}),
    )
    writes: list[Call] = [("delete_event", {"event": event}) for event in events]
    writes.append(("send_mail", {"to": boss.address, "text": " ".join(titles)}))
    text = f"{gone} has left: delete the events that {gone} hosts and send {boss} their titles"
    return Errand(text, reads, tuple(writes), kinds=("titles",))


def forward_file(make: Maker) -> Errand:
    """Send the file of an event to its people, with what is in it added up."""
    numbers = [make.number() for _ in range(3)]
    path, title = make.file(" ".join(map(str, numbers))), make.title()
    people = [namesake(make), make.someone()]
    people = people if people[0] != people[1] else [people[0], make.person()]
    event = make.event(title, make.slot(), people=people, file=path)
    reads: tuple[Call, ...] = (
        ("search_events", {"word": title}),
        ("read_event", {"event": event}),
        ("read_file", {"path": path}),
    )
    mail = {"to": addresses(people), "text": str(sum(numbers)), "file": path}
    text = f"send the file of the {title} event to its people with the sum of its numbers"
    return Errand(text, reads, (("send_mail", mail),), kinds=("numbers",))
