"""The tools of Workbench, app by app: calendar, mail, files, contacts."""

from __future__ import annotations

from typing import Any, Literal

from turnwise.envs.builtin import workbench_world as world
from turnwise.envs.builtin.state_diff import Records
from turnwise.envs.tool_env import ToolEnv
from turnwise.envs.tools import ToolFailed, tool


def key_of(name: str, args: dict[str, Any]) -> str:
    """Return one text for a call, whatever the order of its arguments."""
    return " ".join([name, *(args[parameter] for parameter in sorted(args))])


class BenchTools(ToolEnv):
    """A desk with its tools; what is to be done there, and what it pays, says `Workbench`."""

    db: Records
    """The desk as it is now."""
    wanted: set[str]
    """What the errand needs looked up, as `key_of`."""
    seen: set[str]
    """What of that was looked up."""

    def _see(self, tool: str, /, **args: str) -> None:
        """Note a look-up, if the errand needs it."""
        key = key_of(tool, args)
        if key in self.wanted:
            self.seen.add(key)

    @tool
    def list_events(self, day: Literal["mon", "tue", "wed", "thu", "fri"]) -> str:
        """List the events of a day with slot, title and host.

        Args:
            day: The day.
        """
        self._see("list_events", day=day)
        events = world.all_of(self.db, "e")
        return self._events([id for id in events if events[id]["slot"].startswith(day)])

    @tool
    def search_events(self, word: str) -> str:
        """List the events of a title, or of an address as host or among the people.

        Args:
            word: The title or address.
        """
        word = word.strip().lower()
        self._see("search_events", word=word)
        events = world.all_of(self.db, "e")
        named = [id for id, e in events.items() if word in (e["title"], e["host"], *e["people"])]
        return self._events(named)

    def _events(self, ids: list[str]) -> str:
        ids = sorted(ids, key=lambda id: world.slot_order(self.db[id]["slot"]))
        shown = [(id, self.db[id]) for id in ids]
        return (
            "\n".join(f"{i} {e['slot']} {e['title']} host {e['host']}" for i, e in shown) or "none"
        )

    @tool
    def read_event(self, event: str) -> str:
        """Show an event with its people and its file.

        Args:
            event: The event id.
        """
        found = world.find(self.db, event, "e")
        self._see("read_event", event=event)
        return world.event_text(event, found)

    @tool
    def create_event(self, slot: str, title: str, people: str) -> str:
        """Create an event and get its id.

        Args:
            slot: As `tue-9`.
            title: The title.
            people: Addresses, with commas between; yours need not be among them.
        """
        return world.create_event(self.db, slot, title, people)

    @tool
    def move_event(self, event: str, slot: str) -> str:
        """Move an event.

        Args:
            event: The event id.
            slot: As `tue-9`.
        """
        return world.move_event(self.db, event, slot)

    @tool
    def delete_event(self, event: str) -> str:
        """Delete an event.

        Args:
            event: The event id.
        """
        return world.delete_event(self.db, event)

    @tool
    def search_mail(self, word: str) -> str:
        """List the mails of a title or a sender, the newest last.

        Args:
            word: The title or the sender's address.
        """
        word = word.strip().lower()
        self._see("search_mail", word=word)
        mails = world.all_of(self.db, "m").items()
        found = [(id, mail) for id, mail in mails if word in (mail["title"], mail["sender"])]
        return "\n".join(f"{id} {m['sender']} {m['title']}" for id, m in found) or "none"

    @tool
    def read_mail(self, mail: str) -> str:
        """Show a mail.

        Args:
            mail: The mail id.
        """
        found = world.find(self.db, mail, "m")
        self._see("read_mail", mail=mail)
        return f"from {found['sender']} about {found['title']}\n{found['text']}"

    @tool
    def send_mail(self, to: str, text: str, file: str = "") -> str:
        """Send a mail.

        Args:
            to: Addresses, with commas between.
            text: What it says.
            file: The path of a file that goes with it.
        """
        return world.send_mail(self.db, to, text, file)

    @tool
    def list_files(self, folder: Literal["plans", "notes", "reports"]) -> str:
        """List the files of a folder.

        Args:
            folder: The folder.
        """
        return "\n".join(sorted(id for id in self.db if id.startswith(f"/{folder}/"))) or "none"

    @tool
    def read_file(self, path: str) -> str:
        """Show a file.

        Args:
            path: As `/plans/moss`.
        """
        path = world.checked_path(path)
        if path not in self.db:
            raise ToolFailed(f"no file {path}")
        self._see("read_file", path=path)
        return str(self.db[path]["text"])

    @tool
    def write_file(self, path: str, text: str) -> str:
        """Write a file, over what was there.

        Args:
            path: As `/plans/moss`.
            text: The whole text.
        """
        return world.write_file(self.db, path, text)

    @tool
    def find_contact(self, name: str) -> str:
        """List the contacts of a name with team and address.

        Args:
            name: The first name.
        """
        name = name.strip().lower()
        self._see("find_contact", name=name)
        people = [c for c in world.all_of(self.db, "c").values() if c["name"] == name]
        return "\n".join(f"{c['name']} {c['team']} {c['address']}" for c in people) or "none"

    @tool
    def list_busy(self, address: str, day: Literal["mon", "tue", "wed", "thu", "fri"]) -> str:
        """List the slots of a day in which somebody has no time.

        Args:
            address: The address; for your own time see list_events.
            day: The day.
        """
        address = address.strip().lower()
        people = {c["address"]: c for c in world.all_of(self.db, "c").values()}
        if address not in people:
            raise ToolFailed(f"no address {address[:32]}")
        self._see("list_busy", address=address, day=day)
        busy = [slot for slot in people[address]["busy"] if slot.startswith(day)]
        return " ".join(busy) or "none"

    @tool(final=True)
    def done(self) -> str:
        """Say that all is done."""
        return "bye"
