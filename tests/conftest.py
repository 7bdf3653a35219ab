"""Which tests may meet the docker engine, and which may run side by side.

`make test` runs two workers. Tests of the engine, and those that look at what the whole machine
has mounted, stay in one of them; the others are dealt out file by file.
"""

import os

import pytest

ENGINE = "engine"
HOST = os.environ.get("DOCKER_HOST")


def pytest_collection_modifyitems(items):
    """Mark what is about docker, and group the tests for `--dist loadgroup`."""
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        if any(value == "docker" for value in values if isinstance(value, str)):
            item.add_marker("docker")
        if not any(item.iter_markers("xdist_group")):
            group = ENGINE if item.get_closest_marker("docker") else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Have `auto` mean bubblewrap, which is several times faster, in all tests but docker's own.

    A hook comes before all fixtures, those of a module too.
    """
    if item.get_closest_marker("docker") is None:
        os.environ.pop("DOCKER_HOST", None)
    elif HOST is not None:
        os.environ["DOCKER_HOST"] = HOST
