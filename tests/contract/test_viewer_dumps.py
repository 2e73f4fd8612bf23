"""The viewer over files that verl's own code wrote, by its trainer of today and by the one before."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fastapi")

from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from research_rl.web.viewer_cache import Cache
from research_rl.web.viewer_store import listed, state


@pytest.mark.parametrize("trainer", [PPOTrainer, RayPPOTrainer])
def test_what_verl_writes_of_its_rollouts_can_be_viewed(tmp_path, trainer):
    prompts = [f"system\nSearch.\nuser\n{question}\nassistant\n" for question in ("Who?", "Where?")]
    figures = {"em": [np.float32(1.0), None], "reward/rule/one_box": [1.0, 0.0], "uid": ["a_0_0", "b_0_0"]}
    answers = [["Bob"], {"target": ["Oslo"]}]
    trainer._write_generations(prompts, ["<a>Bob\u2028</a>", ""], answers, [1.0, -2], figures, str(tmp_path / "rollouts"), 7)
    found = Cache(tmp_path / "rollouts" / "7.jsonl", tmp_path / "cache")
    found.fill()
    rows = listed(found, {})["rows"]
    assert [(row["question"], row["golden_answers"], row["score"], row["step"]) for row in rows] == [
        ("Who?", "Bob", 1.0, 7), ("Where?", "Oslo", -2.0, 7)
    ]  # fmt: skip
    assert listed(found, {"rule": "one_box"})["total"] == 1
    assert state(found)["damaged"] == 0
