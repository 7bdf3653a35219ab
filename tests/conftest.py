"""Which tests may meet the docker engine, and which may run side by side.

`make test` runs two workers. Tests of the engine, and those that look at what the whole machine
has mounted, stay in one of them; the others are dealt out file by file.
"""

import pytest

ENGINE = "engine"


def pytest_collection_modifyitems(items):
    """Mark what is about docker, and group the tests for `--dist loadgroup`."""
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        if any(value == "docker" for value in values if isinstance(value, str)):
            item.add_marker("docker")
        if not any(item.iter_markers("xdist_group")):
            group = ENGINE if item.get_closest_marker("docker") else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def no_engine_unless_asked_for(request, monkeypatch):
    """Have `auto` mean bubblewrap, which is several times faster, in all tests but docker's own."""
    if request.node.get_closest_marker("docker") is None:
        monkeypatch.delenv("DOCKER_HOST", raising=False)
