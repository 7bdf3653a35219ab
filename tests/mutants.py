"""Faults that the tests of teaching and of engines must find, each with one that does:

    python tests/mutants.py            every fault; ends with 1 if one survives
    python tests/mutants.py trust      those whose file or test holds a word
    python tests/mutants.py engines/  those of the engines

A fault is put into a copy of its folder, and `turnwise` is where the copy lies: the working tree is
never touched. tests/test_mutants.py holds that every fault still fits its file.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

import accelerate  # noqa: F401  (imported once for all)
import pytest
import transformers.models.qwen3.modeling_qwen3  # noqa: F401
from mutants_of_engines import ENGINES
from mutants_of_methods import METHODS
from mutants_of_ranks import RANKS

ROOT = Path(__file__).parents[1]
FOLDERS = ("sandboxes", "envs", "agents", "trainers", "cli")


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    file: str
    old: str
    new: str
    test: str
    """File and expression of the test that fails on it."""


def weight(old: str, new: str, test: str) -> Mutant:
    """Return a fault of trainers/weights.py."""
    return Mutant("trainers/weights.py", old, new, f"test_distillation_weights.py {test}")


MUTANTS = [
    # A missing score is not a zero.
    weight("here_M = table.scored_M\n", "here_M = table.scored_M | True\n", "as_if_it_were"),
    weight("_M[table.valid_M], table.step_M[table.valid_M]", "_M, table.step_M", "held_against"),
    weight("where(_scored_turn(table) & (", "where((", "held_against"),
    weight("[here_M].mean() if", ".mean() if", "as_if_it_were"),
    weight("np.quantile(entropy_M[here_M]", "np.quantile(entropy_M", "as_if_it_were"),
    Mutant("trainers/routes.py", "table.scored_M & ~table.success_M", "~table.success_M",
           "test_distillation_weights.py as_if_it_were"),
    Mutant("trainers/routes.py", "table.scored_M & table.success_M", "table.success_M",
           "test_distillation_weights.py as_if_it_were"),
    Mutant("trainers/routes.py", "    first_M &= table.scored_M\n", "",
           "test_distillation_weights.py as_if_it_were"),
    # The weights of SOD.
    weight("(np.median, table", "(np.max, table", "floor_is_a_share"),
    weight("np.full(table.traj_M.max(initial=-1) + 1, np.iinfo(np.int64).max)",
           "np.zeros(table.traj_M.max(initial=-1) + 1, np.int64)", "in_the_middle"),
    # Scores that do not fit.
    Mutant("trainers/teachers.py", "if len(scores_MV) != len(packed.target_M)",
           "if len(scores_MV) < len(packed.target_M)", "test_teachers.py refused_where"),
    Mutant("trainers/teachers.py", "[:, :vocabulary].log_softmax(-1)", "[:, :vocabulary]",
           "test_teachers.py cut_off"),
    Mutant("trainers/model_teacher.py",
           "max((len(row.hint) for row in packed.rows), default=0)", "0",
           "test_hints.py finds_room"),
    Mutant("trainers/model_teacher.py", "<= self._positions for", "<= 9 ** 9 for",
           "test_hints.py finds_room"),
    # An end of a turn that is none to the teacher.
    Mutant("trainers/model_teacher.py",
           "            return without(scores_mV, seen.target_M[part], self.unscored)\n",
           "            return scores_mV\n", "test_ends.py exactly_the_ends"),
    Mutant("trainers/engine_teacher.py",
           "return without(found_M, packed.target_M, self.unscored)", "return found_M",
           "test_ends.py exactly_the_ends"),
    Mutant("trainers/engine_teacher.py",
           "        chosen_M = without(chosen_M, packed.target_M, self.unscored)\n", "",
           "test_ends.py exactly_the_ends"),
    Mutant("trainers/tutor.py", "foreign(own, ends_in(engine.started_with))", "frozenset()",
           "test_ends.py a_server_leaves_out"),
    Mutant("trainers/tutor.py", "foreign(ends_of(tokenizer, learner.model), "
           "ends_of(theirs, model))",
           "frozenset()", "test_ends.py students_end"),
    Mutant("trainers/ends.py", "- teacher if teacher else", "- teacher if True else",
           "test_ends.py not_known"),
    Mutant("trainers/ends.py", '("generation_config", "config")', '("config",)',
           "test_ends.py an_end_counts"),
    Mutant("trainers/ends.py", "_listed(load_tokenizer(folder).eos_token_id, noted)",
           "_listed(noted)", "test_ends.py an_end_counts"),
    # What the teacher reads besides, and where.
    Mutant("trainers/contexts.py", "if row.prompt[at:] != behind:", "if False:",
           "test_hints.py inside_a_message"),
    Mutant("trainers/contexts.py", "    if not text.strip():", "    if False:",
           "test_hints.py inside_a_message"),
    Mutant("trainers/batch.py", "not 0 <= self.hint_at <= len(self.prompt)",
           "not self.hint_at <= len(self.prompt)", "test_hints.py has_its_place"),
    Mutant("trainers/batch.py", "not 0 <= self.hint_at <= len(self.prompt)",
           "not 0 <= self.hint_at", "test_hints.py has_its_place"),
    # No more of a large vocabulary at once than may be.
    Mutant("trainers/teachers.py", "rows_at_once(at_once, vocabulary)", "10**9",
           "test_vocabulary.py by_parts_and_no_more"),
    Mutant("trainers/teachers.py",
           "            return teacher.mixed_by_parts(packed, vocabulary)\n",
           "            return teacher.logprobs(packed)[:, :vocabulary].__getitem__\n",
           "test_vocabulary.py by_parts_and_no_more"),
    Mutant("trainers/model_teacher.py", "part.indices(len(there_M))[0]", "0",
           "test_vocabulary.py by_parts_and_no_more"),
    Mutant("trainers/teaching.py",
           "rows_at_once(learner.scorer.logits_at_once, learner.vocabulary)", "10**9",
           "test_vocabulary.py by_parts_and_no_more"),
    Mutant("trainers/scorer.py", "            with self._own_precision(device):\n",
           "            with self.precision(device):\n", "test_vocabulary.py not_rounded_to"),
    # Who follows whom, who is told what, and when.
    Mutant("trainers/objective.py", "trust * prox_M + (1 - trust) * teacher_M",
           "(1 - trust) * prox_M + trust * teacher_M", "test_objective.py by_its_share"),
    Mutant("trainers/teaching.py", "replace(row, hint=(), hint_at=0) for", "row for",
           "test_hints.py contrast_is_felt"),
    Mutant("trainers/tutor.py",
           "            rows = with_context(rows, episodes, self.how.context, self.renderer)\n",
           "            pass\n", "test_taught_runs.py listens"),
    Mutant("trainers/tutor.py", 'metrics.get("success", math.nan)', "0.0",
           "test_taught_runs.py no_group_is_kept"),
    Mutant("trainers/loop.py", "        tutor.note(metrics)\n", "        pass\n",
           "test_taught_runs.py no_group_is_kept"),
    Mutant("trainers/distillation.py", "self.direct is None and self.trust == 1.0 and", "",
           "test_teaching.py has_no_say"),
    Mutant("trainers/loop.py",
           "            teacher.after_update(trainee.learner.model, trainee.learner.updates)\n",
           "            pass\n", "test_taught_runs.py follows_it_through"),
    Mutant("trainers/loop.py", "        rows = trainee.learner.with_proximal(rows)\n",
           "        pass\n", "test_loop.py mismatch"),
    Mutant("trainers/attempts.py",
           "rounds = 1 if self.recipe.keep_group is every_group else ROUNDS", "rounds = 1",
           "test_loop.py plays_on"),
    # Rounds of imitation.
    Mutant("trainers/dagger_loop.py", "            totals=pool.denominators(some),\n", "",
           "test_dagger.py stands_for_those"),
    Mutant("trainers/dagger_loop.py",
           "                teacher.after_update(learner.model, learner.updates)\n",
           "                pass\n", "test_dagger.py follows_it_in"),
    Mutant("trainers/dagger_loop.py", "        if isinstance(self.teacher, LLMTeacher) and",
           "        if False and", "test_dagger.py follows_it_in"),
    Mutant("trainers/dagger_loop.py", "        _require_no_unused(config, recipe)\n", "",
           "test_dagger.py not_left_out"),
    Mutant("trainers/lesson_run.py",
           "    taught = taught or (method.imitation is not None and bool(lesson.teacher))\n", "",
           "test_lesson.py that_imitates"),
    *(Mutant(f"{file}.py", old, new, f"test_{test}") for file, old, new, test in ENGINES),
    *(Mutant(f"{file}.py", old, new, f"test_{test}") for file, old, new, test in METHODS),
    *(Mutant(f"{file}.py", old, new, f"test_{test}") for file, old, new, test in RANKS),
]  # fmt: skip


def is_found(mutant: Mutant, folder: Path) -> bool:
    """Return whether the test of a fault fails on it."""
    home, _, name = mutant.file.partition("/")
    for other in FOLDERS:
        place = folder / "turnwise" / other
        place.parent.mkdir(exist_ok=True)
        shutil.copytree(ROOT / home, place) if other == home else place.symlink_to(ROOT / other)
    path = folder / "turnwise" / home / name
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    file, words = mutant.test.split()
    argv = ["-qx", "-p", "no:cacheprovider", "-k", words, str(ROOT / "tests" / file)]
    child = multiprocessing.get_context("fork").Process(target=_try, args=(folder, argv))
    child.start()
    child.join()
    if child.exitcode not in (0, 1):
        said = (folder / "said").read_text()[-500:]
        raise RuntimeError(f"pytest ended with {child.exitcode}: {said}")
    return child.exitcode == 1


def _try(folder: Path, argv: list[str]) -> None:
    """Run pytest with the `turnwise` of a folder; only what `turnwise` needs is imported yet."""
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    home = types.ModuleType("turnwise")
    home.__path__ = [str(folder / "turnwise")]
    sys.modules["turnwise"] = home
    os.environ["PYTHONPATH"] = str(folder)  # of the processes that a test starts
    sys.exit(int(pytest.main(argv)))


def main(words: list[str]) -> int:
    """Try the faults that hold all words; return 1 if one survives."""
    alive = 0
    for mutant in MUTANTS:
        if all(word in f"{mutant.file} {mutant.test}" for word in words):
            with tempfile.TemporaryDirectory() as folder:
                found = is_found(mutant, Path(folder))
            alive += not found
            print("found   " if found else "SURVIVED", mutant.file, mutant.test, flush=True)
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
