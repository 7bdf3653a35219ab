"""The tools of RefundDesk: to look things up, to decide, and to talk to the customer."""

from __future__ import annotations

from typing import Literal

from turnwise.envs.builtin import refund_desk_world as world
from turnwise.envs.builtin.refund_desk_expert import Notes
from turnwise.envs.builtin.refund_desk_tasks import Desk
from turnwise.envs.builtin.refund_desk_user import Customer
from turnwise.envs.builtin.state_diff import Records
from turnwise.envs.tool_env import ToolEnv
from turnwise.envs.tools import ToolFailed, tool

MAX_MESSAGE = 2000
"""Characters of a message that the customer reads."""


class DeskTools(ToolEnv):
    """A desk with its tools; who is served there, and what it pays, says `RefundDesk`."""

    desk: Desk
    db: Records
    """The shop's records as they are now."""
    customer: Customer
    notes: Notes

    @tool
    def say(self, text: str) -> str:
        """Say something to the customer and hear the answer.

        Args:
            text: The message. Asks for the name, the zip, a confirmation or what else there is, or
                answers a question.
        """
        if len(text) > MAX_MESSAGE:
            raise ToolFailed(f"at most {MAX_MESSAGE} characters, got {len(text)}")
        world.tell(self.db, text, self.customer.said())
        return f"customer: {self.customer.answer(text)}"

    @tool
    def find_user(self, name: str, zip: str) -> str:
        """Verify the customer and get the user id.

        Args:
            name: As the customer says.
            zip: As the customer says.
        """
        for user in self.db:
            record = self.db[user]
            if record.get("name") == name.lower() and record.get("zip") == zip.lower():
                self.db.put("desk", verified=user)
                return f"{user} {record['tier']} {' '.join(record['payments'])}"
        raise ToolFailed(f"no user {name[:24]} with zip {zip[:24]}")

    @tool
    def list_orders(self, user: str) -> str:
        """List the orders of a user.

        Args:
            user: The user id.
        """
        world.find(self.db, user, "user")
        orders = [id for id in self.db if self.db[id].get("user") == user]
        self.notes.listed |= user == self.desk.user
        return "\n".join(f"{id} {self.db[id]['status']}" for id in orders) or "none"

    @tool
    def get_order(self, order: str) -> str:
        """Show an order: whose it is, its status, its payment and its items.

        Args:
            order: The order id.
        """
        found = world.find(self.db, order, "order")
        self.notes.opened |= {order}
        return world.order_text(self.db, order, found)

    @tool
    def get_product(self, type: str) -> str:
        """List the products of a type with price in cents and stock.

        Args:
            type: As `mug`.
        """
        kind = type.lower()
        listed = [id for id in self.db if self.db[id].get("type") == kind]
        if not listed:
            raise ToolFailed(f"no product of type {type[:24]}")
        self.notes.browsed |= {kind}
        return "\n".join(world.product_text(self.db, id) for id in listed)

    @tool
    def refund_item(self, order: str, item: str, payment: str, cents: int) -> str:
        """Refund an item.

        Args:
            order: The order id.
            item: The item id.
            payment: Where to: one of the payments of the order's user.
            cents: How much.
        """
        return world.refund_item(self.db, order, item, payment, cents)

    @tool
    def cancel_order(self, order: str) -> str:
        """Cancel an order; what was paid goes back.

        Args:
            order: The order id.
        """
        return world.cancel_order(self.db, order)

    @tool
    def exchange_item(self, order: str, item: str, product: str) -> str:
        """Exchange an item for a product.

        Args:
            order: The order id.
            item: The item id.
            product: The id of the new product.
        """
        return world.exchange_item(self.db, order, item, product)

    @tool
    def update_address(self, order: str, address: str) -> str:
        """Change where an order is sent.

        Args:
            order: The order id.
            address: As the customer says.
        """
        return world.update_address(self.db, order, address)

    @tool
    def decline(
        self,
        order: str,
        reason: Literal["owner", "status", "window", "payment", "type", "stock"],
    ) -> str:
        """Decline what the customer asks about an order.

        Args:
            order: The order id.
            reason: The first rule that it breaks.
        """
        return world.decline(self.db, order, reason)

    @tool
    def transfer(self, order: str, reason: Literal["damaged", "amount"]) -> str:
        """Transfer what the customer asks about an order to a human.

        Args:
            order: The order id.
            reason: The rule that asks for it.
        """
        return world.transfer(self.db, order, reason)

    @tool(final=True)
    def done(self) -> str:
        """End the conversation; for when the customer wants nothing else."""
        return "bye"
