"""Run under mpirun by test_plan.py: plan_program.py JOB.yaml FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hpclbfl.config.job import load_job
from hpclbfl.planner.command import run_plan
from hpclbfl.planner.study import Options
from tests.planner.conftest import in_process, with_peaks

options = Options(budget_s=0.5, max_step_s=0.2, repetitions=1)
run_plan(load_job(Path(sys.argv[1])), options, Path(sys.argv[2]), probe=with_peaks(in_process, 500e6, 1e6))
