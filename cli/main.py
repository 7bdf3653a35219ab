"""`turnwise`: one command, one verb per task. A verb's module is imported when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

VERBS = {
    "list": "which environments there are",
    "info": "one environment: arguments, tools, splits, an example",
    "init": "start an environment of your own: a package that is sound as it stands",
    "check": "is an environment sound? Run the laws on it",
    "train": "train a model with reinforcement learning",
    "eval": "measure a policy, with an interval and with floors",
    "replay": "play recorded episodes again and compare",
    "view": "turn recorded episodes into one HTML page",
    "recipes": "which training methods there are, and what each does",
    "serve-policy": "start a vLLM server that training can sample from",
    "sandbox": "boxes: list them, clean up, probe, try one, serve them",
    "doctor": "what this machine has, and how to get what it lacks",
}
HELP = """usage: turnwise <verb> [options]      turnwise <verb> --help

{verbs}

every verb takes --json (for programs) and --debug (show tracebacks)

exit codes: 0 ok · 1 usage · 2 a check or floor failed · 3 a replay diverged · 4 infrastructure

examples:
  turnwise list
  turnwise info turnwise/FileHunt-v1
  turnwise eval turnwise/FileHunt-v1 --policy expert --tasks 20"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; errors become one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = [argument for argument in arguments if argument != "--debug"]
    if not named or named[0] in ("-h", "--help", "help", "--version"):
        return _about(named)
    verb = named[0]
    if verb not in VERBS:
        return _unknown(verb)
    arguments.remove(verb)
    return answered(f"turnwise {verb}", arguments, lambda rest: _run(verb, rest))


def answered(name: str, arguments: Sequence[str], work: Callable[[list[str]], int]) -> int:
    """Return the exit code of a command; its errors become one line on stderr.

    Args:
        name: of the command, which begins the line.
        arguments: of the command; `--debug` among them, or TURNWISE_DEBUG, shows tracebacks.
        work: takes the other arguments and returns the exit code.
    """
    rest, debug = list(arguments), bool(os.environ.get("TURNWISE_DEBUG"))
    if "--debug" in rest:
        debug = True
        rest.remove("--debug")
    if debug:
        from turnwise.cli.failures import logged

        with logged():
            return _here(work, rest)
    return _guarded(name, lambda: _here(work, rest))


def _here(work: Callable[[list[str]], int], rest: list[str]) -> int:
    """Work where `module:Class` may be of a file that lies here."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return work(rest)


def _about(arguments: Sequence[str]) -> int:
    if "--version" in arguments:
        from importlib.metadata import version

        print(version("turnwise"))
        return 0
    width = max(map(len, VERBS))
    print(HELP.format(verbs="\n".join(f"  {name:{width}}  {what}" for name, what in VERBS.items())))
    return 0 if arguments else 1


def _unknown(verb: str) -> int:
    from turnwise.envs.names import hint

    print(f"turnwise: no verb {verb!r}; {hint(verb, VERBS)}", file=sys.stderr)
    return 1


def _run(verb: str, arguments: Sequence[str]) -> int:
    from turnwise.cli.options import parse

    module = import_module(f"turnwise.cli.{verb.replace('-', '_')}")
    return module.run(parse(module.Options, verb, arguments))


def _guarded(name: str, work: Callable[[], int]) -> int:
    try:
        return work()
    except SystemExit as exit:  # after --help
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has seen enough, as in `turnwise list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from turnwise.cli.failures import describe

        code, line = describe(error)
        print(f"{name}: {line}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
