"""Making the image of docker boxes: what `turnwise sandbox image build` calls."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def build_image(
    tag: str | None = None,
    *,
    dockerfile: Path | None = None,
    image: str | None = None,
    packages: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> str:
    """Make or fetch an image in this machine's docker engine and return its name.

    Args:
        tag: its name; by default that of the base image, or of `dockerfile`'s folder.
        dockerfile: build this one, which needs a registry for what it starts from.
        image: fetch this one from its registry.
        packages: Debian packages besides those of the base image; needs no registry.

    Raises:
        ValueError: more than one of the three is given.
        NoSafeSandbox, StartFailed: no engine answers, or a step failed.
    """
    from turnwise.sandboxes import docker_image
    from turnwise.sandboxes.docker_engine import connect

    if sum(map(bool, (dockerfile, image, packages))) > 1:
        raise ValueError("give one of dockerfile, image and packages; the rest has no meaning then")
    engine = connect()
    if image:
        docker_image.pull(engine, image, say)
        return image
    if dockerfile:
        tag = tag or _name_of(dockerfile)
        docker_image.build_dockerfile(engine, dockerfile, tag, say)
        return tag
    tag = tag or docker_image.BASE_IMAGE
    docker_image.build_base(engine, tag, [*docker_image.PACKAGES, *packages], say)
    return tag


def _name_of(dockerfile: Path) -> str:
    """A name that docker takes, from the folder of `dockerfile`."""
    folder = dockerfile.resolve() if dockerfile.is_dir() else dockerfile.resolve().parent
    return f"turnwise/{re.sub('[^a-z0-9]+', '-', folder.name.lower()).strip('-') or 'image'}"


if __name__ == "__main__":
    build_image(say=lambda line: print(line, file=sys.stderr))
