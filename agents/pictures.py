"""What a browser showed during episodes, for a report that holds it."""

from __future__ import annotations

import base64

from turnwise.agents.blobs import BlobFault, digests_of, picture_of
from turnwise.envs.types import Episode

JPEG = b"\xff\xd8\xff"
MAX_PICTURE_BYTES = 1 << 20
Place = int | str | None
"""Index of a picture; in words what is wrong with it; None where there is none."""


class Pictures:
    """Each distinct picture once, as base64; turns refer to it by index.

    Args:
        max_bytes: Of all pictures together; those that no longer fit are left out.
    """

    def __init__(self, max_bytes: int = 24 << 20) -> None:
        self.texts: list[str] = []
        self._left = max_bytes
        self._places: dict[str, Place] = {"": None}

    def of(self, episode: Episode) -> list[Place]:
        """Return where the pictures of an episode are: before each action, and at the end."""
        return [self._place(episode, digest) for digest in digests_of(episode)]

    def _place(self, episode: Episode, digest: str) -> Place:
        place = self._places.get(digest, "")
        if isinstance(place, str):  # not seen yet, or missing where it was last looked for
            place = self._places[digest] = self._added(episode, digest)
        return place

    def _added(self, episode: Episode, digest: str) -> Place:
        try:
            data = picture_of(episode, digest)
        except BlobFault as fault:
            return str(fault)
        if not data.startswith(JPEG) or len(data) > min(MAX_PICTURE_BYTES, self._left):
            return None
        self._left -= len(data)
        self.texts.append(base64.b64encode(data).decode())
        return len(self.texts) - 1
