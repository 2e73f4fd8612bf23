"""Twenty broken set-ups, each told by name with its remedy; sound ones are left in peace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from research_rl import cli
from research_rl.training.recipe import stages_of
from research_rl.verl_plugin.doctor import machine, section, service, speed, tools
from research_rl.verl_plugin.doctor.command import diagnose, together
from research_rl.verl_plugin.doctor.compose import compositions, environment
from research_rl.verl_plugin.doctor.finding import Finding
from research_rl.verl_plugin.doctor.report import as_text
from research_rl.verl_plugin.doctor.setup import Setup
from tests.broken import ACTOR, BROKEN, QUICKSTART, ROLLOUT, ROOT, WEIGHTS, questions, service_app, whole_run
from tests.models import model_like
from tests.servers import app_in_thread, free_port

RECIPES = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if not path.stem.startswith("experiment"))
SUPERVISED = [path for path in RECIPES if path.stem.startswith("cold_start")]
TRAINERS = [path for path in RECIPES if path not in SUPERVISED]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url():
    with app_in_thread(service_app()) as found:
        yield found


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch, url):
    monkeypatch.chdir(ROOT)  # recipes name their prompts from here
    monkeypatch.setenv("RETRIEVAL_URL", url)
    monkeypatch.setenv("CONTROL_RETRIEVAL_URL", url)
    monkeypatch.setattr(service, "_MEASURED_S", 0.2)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return whole_run(tmp_path)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_set_up_is_told_with_its_remedy(broken, run_dir):
    breaks, level, name, told, remedy = BROKEN[broken]
    findings = [finding for finding in diagnose(QUICKSTART, run_dir, breaks(run_dir)) if finding.name == name]
    found = [finding for finding in findings if finding.level == level and told in str(finding)]
    assert found, findings
    assert remedy in str(found[0])


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> Path:
    """A small model with a chat template that knows tools, and a context for long responses."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(WEIGHTS, folder, dirs_exist_ok=True)
    model_like(folder, "qwen3")
    shutil.copy(ROOT / "research_rl" / "tools" / "chatml.jinja", folder / "chat_template.jinja")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2**15}))
    return folder


@pytest.mark.parametrize("recipe", TRAINERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_recipe_of_the_repository_has_no_error(recipe, tmp_path, monkeypatch, chat_model):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    given = [] if "world" in recipe.read_text() else [f"actor_rollout_ref.model.path={chat_model}"]
    if recipe.parent.name == "tool_calls" or "method: tool_calls" in recipe.read_text():
        given += [
            "data.max_prompt_length=2048",
            f"{ACTOR}.ppo_max_token_len_per_gpu=16384",
        ]  # this tokenizer cuts the tools' schemas into many tokens
    with environment(recipe, tmp_path):
        data = [config.data for _, config in compositions(recipe, tmp_path, given)]
    for file in {file for stage in data for file in (*stage.train_files, *stage.val_files)}:
        questions(Path(file), 64, question="Who?")
    given += ["trainer.total_training_steps=1"] if not stages_of(recipe, [])[0] else []  # of 64 questions
    findings = diagnose(recipe, tmp_path, [*given, "data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=64"])
    assert not [finding for finding in findings if finding.level == "error" or "failed itself" in finding.what]


@pytest.mark.parametrize("recipe", SUPERVISED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_supervised_recipe_is_looked_at_with_its_rows(recipe, tmp_path, monkeypatch, chat_model):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MODEL", str(chat_model))
    row = {"prompt": json.dumps("Who? "), "prefill": "", "segments": [{"text": "Orla.", "learn": True}]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    given = [f"data.train_files=[{tmp_path}/rows.parquet]", f"model.path={chat_model}"]
    findings = diagnose(recipe, tmp_path, given)
    assert not [finding for finding in findings if finding.level == "error" or "failed itself" in finding.what]
    timed = next(finding for finding in findings if finding.name == "speed")
    assert timed.level == "ok"
    assert ("at least" in timed.what and "trainer.total_epochs=1" in timed.what) == recipe.stem.endswith("cpu")
    found = [finding for finding in diagnose(recipe, tmp_path, [*given, "data.max_length=2"]) if finding.name == "data"]
    assert [finding.level for finding in found] == ["error"]


def test_several_errors_are_told_at_once_and_the_exit_code_is_1(run_dir, capsys):
    code = cli.main(
        ["doctor", "--recipe", str(QUICKSTART), "--run-dir", str(run_dir), "--json", f"{ROLLOUT}.n=1", "+research_rl.x=1"]
    )
    told = json.loads(capsys.readouterr().out)
    assert code == 1
    assert {"section", "estimator"} <= {each["name"] for each in told["findings"] if each["level"] == "error"}
    assert set(told["findings"][0]) == {"level", "name", "what", "got", "do"}
    assert told["seconds"] > 0


def test_a_sound_set_up_ends_with_0_and_has_a_line_for_each_check(run_dir, capsys):
    assert cli.main(["doctor", "--recipe", str(QUICKSTART), "--run-dir", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "ok      batches: " in out
    assert "\x1b[" not in out
    assert "0 errors" in out
    assert "not measured" not in out
    assert "failed itself" not in out


def test_overrides_without_a_recipe_are_a_mistake_of_usage():
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "a=1"])
    assert ended.value.code == 2


def test_a_recipe_that_is_not_there_is_told():
    (finding,) = diagnose(ROOT / "recipes" / "nothing.yaml")
    assert (finding.level, finding.name) == ("error", "recipe")
    assert "recipes/quickstart/train.yaml" in str(finding)


def test_checkpoints_that_the_disk_cannot_hold_are_an_error_and_those_that_are_there_count(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    (found,) = machine.room_for(tmp_path / "checkpoints", free * 0.6, 1, "max_actor_ckpt_to_keep")
    assert found.level == "error"
    assert "--run-dir" in found.do
    (found,) = machine.room_for(tmp_path / "checkpoints", free * 0.1, 1, "max_actor_ckpt_to_keep")
    assert found.level == "ok"


def test_the_estimate_of_a_known_run_is_what_was_measured():
    from transformers import AutoConfig

    from research_rl.verl_plugin.doctor.size import GIB, checkpoint, training

    text = AutoConfig.for_model("llama", vocab_size=49152, hidden_size=576, num_hidden_layers=30)
    assert checkpoint(134_515_008, ["model", "optimizer", "extra", "hf_model"]) / 1e9 == pytest.approx(2.15, rel=0.02)
    update = sum(part.size for part in training(134_515_008, text, 2048, 1, checkpointed=False)) / GIB + 1.5
    assert update == pytest.approx(8, rel=0.15)


def test_too_few_gpus_are_told_from_what_nvidia_smi_says(run_dir, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: [80 * 2.0**30] * 4)
    monkeypatch.setenv("DATA_DIR", str(run_dir / "data"))
    recipe = ROOT / "recipes" / "search_r1" / "gpu.yaml"
    found = diagnose(recipe, run_dir, [f"actor_rollout_ref.model.path={WEIGHTS}"])
    assert "4 by nvidia-smi" in [finding.got for finding in found if finding.level == "error" and finding.name == "memory"]


def test_the_engines_own_gpus_are_counted(run_dir, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: [80 * 2.0**30] * 8)
    monkeypatch.setenv("DATA_DIR", str(run_dir / "data"))
    recipe = ROOT / "recipes" / "search_r1" / "gpu.yaml"
    overrides = [f"actor_rollout_ref.model.path={WEIGHTS}", "+algorithm_option=[separate_async]"]
    found = diagnose(recipe, run_dir, overrides)
    (missing,) = [finding for finding in found if finding.level == "error" and finding.name == "memory"]
    assert missing.what == "trainer.n_gpus_per_node + actor_rollout_ref.rollout.n_gpus_per_node=16 GPUs are needed"
    assert any("on 16 GPUs" in finding.what for finding in found if finding.name == "speed")


def test_findings_of_all_stages_are_told_once_and_those_of_one_under_its_name():
    every, one = Finding("error", "data", "missing"), Finding("warning", "tags", "torn")
    assert together({"a": [every, one], "b": [every]}) == [every, Finding("warning", "tags (stage a)", "torn")]


def test_text_has_three_lines_for_a_finding_and_colour_only_if_asked_for():
    finding = Finding("error", "batches", "a must be b", "c", "Set a=b")
    assert as_text([finding], 1.0).splitlines()[:4] == [
        "error   batches",
        "  what  a must be b",
        "  got   c",
        "  do    Set a=b",
    ]
    assert as_text([finding], 1.0, colour=True).startswith("\x1b[31merror")


def test_memory_that_is_not_there_is_a_warning_on_a_cpu(run_dir, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"total": 24 * 2**30, "available": 2**30}))
    found = [finding for finding in diagnose(QUICKSTART, run_dir) if finding.name == "memory"]
    assert [finding.level for finding in found] == ["warning"]


def test_the_time_of_a_step_is_estimated_from_the_speed_of_this_processor(run_dir, monkeypatch):
    monkeypatch.setattr(speed, "measured_flops", lambda dtype: 1e9 if dtype == "float32" else 0.0)
    [finding] = [finding for finding in diagnose(QUICKSTART, run_dir) if finding.name == "speed"]
    # 2 of sampling, 2 of π_old and 6 of the update, per parameter and token; 16 x 8 rollouts of half of 464 tokens
    flops = 10 * 128 * 232 * speed.step_of(Setup(next(iter(compositions(QUICKSTART, run_dir, [])))[1])).parameters
    assert finding.level == "ok"
    assert f"about {flops / 1e12:.1f} TFLOP a step (128 rollouts of 232 tokens" in finding.what
    assert f"at least {flops / 0.9e9 / 60:.0f} min a step" in finding.what
    assert "on 1 GFLOP/s in float32 here, of which 90 % is used" in finding.what


@pytest.mark.parametrize(("fast", "level"), [("float32", "warning"), ("bfloat16", "ok")])
def test_a_type_in_which_this_processor_is_slow_is_a_warning(fast, level, run_dir, monkeypatch):
    monkeypatch.setattr(speed, "fast_dtype", lambda: fast)
    found = diagnose(QUICKSTART, run_dir, [f"{ROLLOUT}.dtype=bfloat16"])
    assert next(finding.level for finding in found if finding.name == "speed") == level
    assert any(f"{ROLLOUT}.dtype=bfloat16" in finding.got for finding in found) == (level == "warning")


@pytest.mark.parametrize(
    ("given", "warned"),
    [((), True), ((f"{ACTOR}.ppo_mini_batch_size=8",), False), (("algorithm.rollout_correction.bypass_mode=true",), False)],
)
def test_a_loss_that_has_no_effect_with_one_update_per_batch_is_a_warning(given, warned, run_dir):
    found = diagnose(QUICKSTART, run_dir, [f"{ACTOR}.policy_loss.loss_mode=llds", *given])
    [finding] = [finding for finding in found if finding.name == "policy loss"]
    assert (finding.level, "llds has no effect" in finding.what) == (("warning", True) if warned else ("ok", False))


def test_matrix_products_are_measured_in_the_type_that_is_asked_for():
    assert speed.measured_flops("float32") > 1e8
    assert speed.measured_flops("auto") > 1e8


def test_an_mcp_server_is_asked_and_its_tools_are_listed(url):
    pytest.importorskip("mcp")
    from tests.unit.test_tool_mcp import mcp_app

    def found(check, address):
        options = {"mcp": {"url": f"{address}/mcp", "tools": ["add", "divide"]}}
        chosen = {"method": "tool_calls", "retrieval": {"url": url}, "method_options": options}
        return list(check.findings(Setup(OmegaConf.create({"research_rl": chosen}))))

    with app_in_thread(mcp_app()) as address:
        [finding] = found(tools.mcp_server, address)
    assert (finding.level, finding.name) == ("ok", "MCP server")
    assert f"{address}/mcp answers, and its tools are add, divide" in finding.what
    [finding] = found(section.section, f"http://127.0.0.1:{free_port()}")
    assert finding.level == "error"
    assert "does not list its tools" in finding.what


def test_a_service_that_is_not_there_is_waited_for_by_no_further_check(run_dir):
    nowhere = f"http://127.0.0.1:{free_port()}"
    found = diagnose(QUICKSTART, run_dir, [f"research_rl.retrieval.url={nowhere}"])
    assert f"train.parquet: not measured: no service at {nowhere}" in [str(one) for one in found if one.name == "coverage"]


def test_a_hub_that_does_not_answer_is_asked_once_and_the_model_looked_for_on_this_machine(run_dir, monkeypatch):
    from huggingface_hub import constants

    asked = []

    def nobody(url, **options):
        asked.append((url, options))
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr(httpx, "head", nobody)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    found = diagnose(QUICKSTART, run_dir, ["actor_rollout_ref.model.path=nobody/no-such-model"])
    assert time.monotonic() - started < 30  # and not minutes
    assert asked == [(constants.ENDPOINT, {"timeout": 2.0})]
    (missing, _) = [finding for finding in found if finding.name == "model files"]
    assert missing.level == "warning"
    assert "no configuration at nobody/no-such-model here" in missing.what


def test_a_recipe_is_diagnosed_without_importing_verl_which_takes_seconds(run_dir):
    code = (
        "import sys; from pathlib import Path; from research_rl.verl_plugin.doctor.command import diagnose\n"
        f"found = diagnose(Path({str(QUICKSTART)!r}), Path({str(run_dir)!r}))\n"
        "print([str(one) for one in found if one.level == 'error'], sorted({'verl', 'tensordict'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines()[-1:] == ["[] []"], done.stderr
