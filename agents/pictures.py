"""What a browser showed during recorded episodes, for a report that holds it.

An environment that was made with `pictures=FOLDER` wrote them there; their names follow from the
record (`turnwise.envs.web.pictures`). What is not there is not shown.
"""

from __future__ import annotations

import base64
from pathlib import Path

from turnwise.envs.types import Episode
from turnwise.envs.web.pictures import picture_names

JPEG = b"\xff\xd8\xff"
MAX_PICTURE_BYTES = 1 << 20


class Pictures:
    """Each distinct picture once, as base64; turns refer to it by index.

    Args:
        max_bytes: Of all pictures together; those that no longer fit are left out.
    """

    def __init__(self, max_bytes: int = 24 << 20) -> None:
        self.texts: list[str] = []
        self._left = max_bytes
        self._places: dict[Path, int | None] = {}

    def of(self, episode: Episode) -> list[int | None]:
        """Return where the pictures of an episode are: before each action, and at the end."""
        folder = episode.env_kwargs.get("pictures")
        actions = [turn.action for turn in episode.turns]
        if not isinstance(folder, str) or not folder:
            return [None] * (len(actions) + 1)
        names = picture_names(episode.task.key, episode.env_seed, actions)
        return [self._place(Path(folder) / name) for name in names]

    def _place(self, path: Path) -> int | None:
        if path not in self._places:
            self._places[path] = self._read(path)
        return self._places[path]

    def _read(self, path: Path) -> int | None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_PICTURE_BYTES + 1)
        except OSError:
            return None
        if not data.startswith(JPEG) or len(data) > min(MAX_PICTURE_BYTES, self._left):
            return None
        self._left -= len(data)
        self.texts.append(base64.b64encode(data).decode())
        return len(self.texts) - 1
