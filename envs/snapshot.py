"""Snapshots: an episode in progress as bytes, to go on from there in this or another environment.

    saved = env.snapshot()
    env.restore(saved)        # back to that turn
    other = env.fork()        # an environment of its own in the same state

Two ways. `pickled` saves every attribute of the environment: quick, and right for whatever lives in
this process. `ByReplay` saves the seed and the actions and plays them again: for state that lives
elsewhere, such as a box.

Bytes are unpickled, which can run code: restore only what you or somebody you trust has saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from turnwise.envs.sealing import WrongSnapshot, dump, opened, sealed

if TYPE_CHECKING:
    from turnwise.envs.env import Env
    from turnwise.envs.tool_env import ToolEnv

__all__ = ["ByReplay", "Pickled", "RestoreDiverged", "Unsavable", "WrongSnapshot"]
MADE = frozenset(
    {
        *("_made_with", "_tape", "env_id", "env_kwargs", "format", "spec"),
        *("observation_space", "action_space"),
    }
)
"""What the constructor and `make` give to every environment of equal arguments."""


class Unsavable(TypeError):
    """The environment cannot be saved; the message names the attribute and the way out."""


class RestoreDiverged(RuntimeError):
    """Played again, the saved actions were answered otherwise; the message names the turn."""


def pickled(env: Env) -> bytes:
    """Return every attribute of `env` as bytes, but for those that `unsaved` names.

    Raises:
        Unsavable: one of them cannot be pickled.
    """
    left_out = _left_out(env)
    state = {name: value for name, value in vars(env).items() if name not in left_out}
    try:
        return sealed(env, state)
    except Exception as error:
        raise _unsavable(env, state, error) from error


def unpickle(env: Env, saved: bytes) -> None:
    """Give `env` the attributes that `pickled` saved; what it lacked then, it lacks again.

    Raises:
        WrongSnapshot: the bytes are not of an environment like this one. Nothing is changed.
    """
    state = opened(env, saved)
    left_out = _left_out(env)
    for name in [name for name in vars(env) if name not in left_out and name not in state]:
        delattr(env, name)
    vars(env).update(state)


def again(env: Env) -> Any:
    """Return a new environment of the same class and arguments, not yet reset."""
    args, kwargs = env._made_with
    fresh = type(env)(*args, **kwargs)
    fresh.env_id, fresh.env_kwargs = env.env_id, env.env_kwargs
    return fresh


class Pickled:
    """The part of `TextEnv` that saves and restores."""

    unsaved: ClassVar[tuple[str, ...]] = ()
    """Attributes that a snapshot leaves out, besides those that base classes name: a box, a
    cache, a connection. `restored` makes them again."""

    def snapshot(self: Any) -> bytes:
        """Return this episode as bytes, for `restore` of this or an equal environment.

        Raises:
            Unsavable: an attribute cannot be pickled; the message names it and the way out.
        """
        return pickled(self)

    def restore(self: Any, saved: bytes) -> None:
        """Go back to where `snapshot` was taken.

        The bytes are unpickled, which can run code: restore only bytes that you trust.

        Raises:
            WrongSnapshot: they are of another id, class, arguments or version, or damaged.
        """
        unpickle(self, saved)
        self.restored()

    def restored(self) -> None:
        """Make what `unsaved` names again; called at the end of `restore`."""

    def fork(self: Any) -> Any:
        """Return a new environment in the same state, which shares nothing with this one.

        The caller closes it.

        Raises:
            Unsavable: this environment offers no snapshots.
        """
        if self.snapshot is None:
            raise Unsavable(f"{type(self).__name__} offers no snapshots, so it cannot be forked")
        fresh = again(self)
        try:
            fresh.restore(self.snapshot())
        except BaseException:
            fresh.close()
            raise
        return fresh


class ByReplay:
    """Mix it in before `ToolEnv`: a snapshot is the seed and the actions, which are played again.

    It takes as long as those turns did, and is right where the environment is deterministic;
    `restore` compares every answer with the one of then. Clocks and other sources that are read
    through `taped` give what they gave.
    """

    def snapshot(self: Any) -> bytes:
        """Return how this episode was played.

        Raises:
            Unsavable: there is no episode yet, or its task cannot be pickled.
        """
        env: ToolEnv = self
        if "episode" not in vars(env):
            raise Unsavable(f"{type(env).__name__} has no episode to save; call reset() first")
        view = env.episode
        state = {"seed": env.np_random_seed, "task": env.task, "reads": env.reads()}
        state |= {"actions": view.actions, "answers": view.observations, "hash": env.state_hash()}
        try:
            return sealed(env, state)
        except Exception as error:
            raise _unsavable(env, state, error) from error

    def restore(self: Any, saved: bytes) -> None:
        """Play the saved episode again up to where it was; restore trusted bytes only.

        Raises:
            WrongSnapshot: the bytes are not of an environment like this one.
            RestoreDiverged: it was answered otherwise.
            SandboxError: the machine failed.
        """
        env: ToolEnv = self
        state = opened(env, saved)
        env.feed(state["reads"].get(0, ()))
        env.reset(seed=state["seed"], options={"task": state["task"]})
        for turn, action in enumerate(state["actions"]):
            env.feed(state["reads"].get(turn + 1, ()))
            env.step(action)
            if (now := env.episode.observations[-1]) != (then := state["answers"][turn]):
                raise RestoreDiverged(
                    f"turn {turn} was answered {then[:60]!r} and is now answered {now[:60]!r}: "
                    "a tool depends on more than the task, the seed and the actions; read time "
                    "and network through self.clock and self.taped"
                )
        if env.state_hash() != state["hash"]:
            raise RestoreDiverged("every answer is the same, and state_hash() is not")


def _left_out(env: Env) -> set[str]:
    named: set[str] = set(MADE)
    for cls in type(env).__mro__:
        names: str | Iterable[str] = vars(cls).get("unsaved", ())
        if isinstance(names, str):
            raise TypeError(f"{cls.__name__}.unsaved is a tuple of names; write ({names!r},)")
        named.update(names)
    return named


def _unsavable(env: Env, state: dict[str, Any], error: Exception) -> Unsavable:
    """Name the first attribute that cannot be pickled by itself."""
    for name, value in state.items():
        try:
            dump(env, {name: value})
        except Exception as why:
            return Unsavable(
                f"{type(env).__name__}.{name} cannot be saved: {why}. Name it in the class "
                f"attribute `unsaved` and make it again in `restored`, or write "
                "`snapshot = restore = None` to offer no snapshots"
            )
    return Unsavable(f"{type(env).__name__} cannot be saved: {error}")
