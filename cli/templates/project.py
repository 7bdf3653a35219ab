"""The files around the environment's module, the same for every kind."""

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "my-env"
version = "0.1.0"
description = "An environment for turnwise"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["turnwise"]

[project.entry-points."turnwise.envs"]
my-env = "my_env"

[tool.setuptools]
py-modules = [MODULES]

[tool.pytest.ini_options]
pythonpath = ["."]

[tool.ruff]
line-length = 100
"""

README = """\
# my-env

One environment for turnwise, in `my_env.py`.

    turnwise check my_env:MyEnv    # is it sound? Run it after every change
    pip install -e .               # from now on it has an id
    turnwise eval my-env/MyEnv-v1 --policy expert --tasks 20

`python -m pytest` runs the check as a test. Raise the version in the id when scores stop being
comparable.
"""

TEST = '''\
"""The environment is sound: seeds, mistakes, the grader and all else that `check` looks at."""

from turnwise.envs import check_env

from my_env import MyEnv


def test_the_environment_is_sound():
    report = check_env(MyEnv, seeds=range(2), concurrency=2)
    assert report.ok, str(report)
'''
