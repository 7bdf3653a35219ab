"""The default pipeline: demonstrations -> SFT -> teacher RL -> bridge -> OPD -> student RL.

    python scripts/train_pipeline.py --out runs/pipeline
    python scripts/train_pipeline.py --env turnwise/Sokoban-v1 --out runs/sokoban
    python scripts/train_pipeline.py --student MODEL --teacher LARGER_MODEL --out runs/mine
    python scripts/train_pipeline.py --skip-opd --out runs/bridged

The student leaves its teacher when success and reward on dev tasks no longer rise, or fall; it then
goes back to its best weights, so that a teacher that does harm costs time and nothing else. Each
stage's model is in a folder of its own and is evaluated on dev and test tasks. Without `--student`
and `--teacher` both are made; nothing is downloaded. The same command again goes on where it was
stopped.

Under teachers that know the failures the middle stage, OPD, costs a little: the bridge, then
student RL, ends .03 to .08 above the whole (docs/results.md, "Pipeline"). `--skip-opd` leaves it
out.
"""

from turnwise.cli.script import run_script
from turnwise.trainers.asked import asked
from turnwise.trainers.schooling import Schooling, run_schooling

PIPELINE = Schooling()

if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: run_schooling(asked(PIPELINE, read))))
