"""Faults of several processes and of Ray: (file, what is there, what is there instead, test)."""

from __future__ import annotations

RANK, REPLICATED, SHARDED = (f"trainers/{name}" for name in ("ranks", "replicated", "sharded"))
ROLLOUTS, ATTEMPTS = (f"trainers/ray_{name}" for name in ("rollouts", "attempts"))

TOLD = "ranks.py told_to_the_others"
THREE = "ranks.py three_processes"

RANKS = [
    # How they fail and end.
    (RANK, "except BaseException as raised:  # also", "except Exception as raised:  # also", TOLD),
    (RANK, "        if isinstance(error, Exception):\n", "        if True:\n", TOLD),
    ("cli/launch", "    if left is not None:", "    if False:", TOLD),
    ("cli/launch", " and started[rank].returncode), None)", "), None)",
     "ranks.py missed_one_that_was_done"),
    ("cli/launch", "if len(signals) > 1:", "if False:", "ranks.py second_signal"),
    ("cli/train", "    except SystemExit as asked:", "    except ZeroDivisionError as asked:",
     TOLD),
    ("cli/rank", "    leave(main())\n", "    sys.exit(main())\n", "ranks.py in_peace"),
    # Shares and their sums.
    (RANK, "mine = set(names[rank() :: count()])", "mine = set(names)", THREE),
    (RANK, "mine = set(names[rank() :: count()])", "mine = set(names[rank() :: 2])", THREE),
    (REPLICATED, "    dist.all_reduce(flat)\n", "    pass\n", THREE),
    (REPLICATED, "op=dist.ReduceOp.MAX", "op=dist.ReduceOp.MIN", THREE),
    (SHARDED, "set_gradient_divide_factor(1.0)",
     "set_gradient_divide_factor(float(ranks.count()))", THREE),
    (SHARDED, "                whole.copy_(part.full_tensor())\n",
     "                part.full_tensor()\n", THREE),
    # Batches in flight.
    *(("trainers/pacing", "except (EngineError, ServerUnfit, ranks.RankFailed)",
       f"except ({left}, ranks.RankFailed)", "pacing_hangs.py nobody_can_play")
      for left in ("EngineError", "ServerUnfit")),
    ("trainers/attempts", "        self.settings, self.fast = other.settings, other.fast\n",
     "        self.settings, self.fast, self.policy = other.settings, other.fast, other.policy\n",
     "pacing_hangs.py does_not_hold"),
    # Workers of Ray.
    (ATTEMPTS, "base_of(self.trainee.learner) if self.rollouts is None else super().replica()",
     "super().replica()", "ray.py keeps_no_weights"),
    (ATTEMPTS, "            self.sampler.publish(version)\n            return\n",
     "            return\n", "ray.py keeps_no_weights"),
    (ROLLOUTS, "        if episodes[0].group in self.left:\n", "        if episodes:\n",
     "ray.py taken_once"),
    (ROLLOUTS, "            if share and self.lost[self.todo[0][0]]:\n", "            if False:\n",
     "ray.py played_alone"),
    (ROLLOUTS, "            if self.lost[name]:\n                break\n", "",
     "ray.py played_alone"),
    (ROLLOUTS, "            if self.lost[name] < TRIES:\n",
     "            if self.lost[name] <= TRIES:\n", "ray.py given_up"),
]  # fmt: skip
