"""The cold start: what is kept of sampled rollouts, what is a target, and that verl's SFT trainer takes it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_preprocess.cold_start import outcome, select
from research_rl.codec import HFCodec, load_codec
from research_rl.errors import DataError, GenerationError
from research_rl.inference.sampling import ACCEPT, read_log, same_sampling, sample
from research_rl.methods.r1_searcher_pp import R1SearcherPP
from research_rl.rollout import Generation
from research_rl.types import Budget, Passage
from tests.models import model_like

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights_all_methods"
PROMPT = ROOT / "recipes" / "r1_searcher_pp" / "prompt_cpu.txt"
METHOD = R1SearcherPP(template="base", prompt_file=str(PROMPT))
QUESTIONS = [{"id": str(number), "question": f"Where is {number}?", "golden_answers": ["Oslo"]} for number in range(4)]
SEARCH, TELL = " Find it.<external> it</external>", " It is there.\\boxed{ Oslo}"
SAID = {  # what the model says at each of its turns, by question
    "0": [SEARCH, TELL],
    "1": [" I know it.\\boxed{ Bergen}"],
    "2": ["<internal>" + TELL],
    "3": [" I do not know."],
}


@pytest.fixture(scope="module")
def codec():
    return HFCodec(AutoTokenizer.from_pretrained(WEIGHTS))


async def find(queries, top_k):
    return [[Passage("1", "It\nIt lies in Oslo.")] for _ in queries]


def policy(codec, failing: set[str] = frozenset()):
    async def generate(ids, most, stop):
        text = codec.decode(ids)
        number = text.split("Where is ")[1][0]
        if number in failing:
            await asyncio.sleep(0.05)
            raise GenerationError("the server is gone")
        said = SAID[number][text.count("</document>")]
        return Generation([*codec.encode(said), *([] if said.endswith("</external>") else [min(codec.eos_ids)])])

    return generate


def run(codec, log, failing=frozenset()):
    def kept(trajectory, row):
        return outcome(METHOD, trajectory, row["golden_answers"], ACCEPT["em"])

    arguments = (METHOD, codec, QUESTIONS, 2, Budget(300, searches=3, top_k=1), policy(codec, failing), find)
    asyncio.run(sample(*arguments, log, kept))


def test_the_right_and_well_formed_are_kept_and_the_rest_is_counted_by_reason(codec, tmp_path):
    run(codec, tmp_path / "samples.jsonl")
    card = select(METHOD, tmp_path / "samples.jsonl", QUESTIONS, tmp_path, per_question=1, rows=None, seed=1)
    assert card["rollouts"] == {"accepted": 2, "malformed": 2, "no answer": 2, "wrong": 2}
    assert card["rows"] == 1
    assert (tmp_path / "train.parquet").is_file()


def test_after_an_interruption_only_what_is_left_is_asked(codec, tmp_path):
    log = tmp_path / "samples.jsonl"
    with pytest.raises(ExceptionGroup):
        run(codec, log, failing={"2"})
    before = log.read_text()
    assert "2" not in read_log(log)
    with log.open("a") as file:
        file.write('{"id": "3", "n')  # killed while it wrote
    run(codec, log)
    assert log.read_text().startswith(before)
    assert {name: sorted(outcomes) for name, outcomes in read_log(log).items()} == {str(n): [1, 2] for n in range(4)}
    assert log.read_text().count("\n") == 8  # none twice


def test_a_passage_may_hold_any_line_break(codec, tmp_path, monkeypatch):
    monkeypatch.setitem(SAID, "0", [SEARCH, TELL.replace("there", "there\u2028\u0085\u2029")])
    run(codec, tmp_path / "samples.jsonl")
    assert len(read_log(tmp_path / "samples.jsonl")) == 4


def test_one_by_one_a_question_is_done_at_its_first_right_rollout(codec, tmp_path):
    log = tmp_path / "samples.jsonl"

    def right(trajectory, row):
        return {"right": METHOD.answer(trajectory) == "Oslo"}

    for _ in range(2):  # run again, nothing is asked
        arguments = (METHOD, codec, QUESTIONS, 3, Budget(300, searches=3, top_k=1), policy(codec), find)
        asyncio.run(sample(*arguments, log, right, enough=lambda found: found["right"]))
        assert {name: sorted(outcomes) for name, outcomes in read_log(log).items()} == {
            "0": [1], "1": [1, 2, 3], "2": [1], "3": [1, 2, 3],
        }  # fmt: skip


def test_a_line_that_is_no_outcome_is_told(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"id": "1", "n": 1}\n[]\n')
    with pytest.raises(DataError, match=r"log.jsonl, line 2"):
        read_log(tmp_path / "log.jsonl")


def test_samples_made_with_other_options_are_not_mixed(tmp_path):
    same_sampling(tmp_path / "sampling.json", {"model": "a", "samples": "8"})
    same_sampling(tmp_path / "sampling.json", {"model": "a", "samples": "8"})
    with pytest.raises(DataError, match="samples was 8, now 4"):
        same_sampling(tmp_path / "sampling.json", {"model": "a", "samples": "4"})
    # an option of a later version: not given, it changes nothing
    same_sampling(tmp_path / "sampling.json", {"model": "a", "samples": "8", "max_searches": "None"})
    with pytest.raises(DataError, match="max_searches was None, now 2"):
        same_sampling(tmp_path / "sampling.json", {"model": "a", "samples": "8", "max_searches": "2"})


def test_nothing_accepted_is_an_error_that_says_why(codec, tmp_path):
    with pytest.raises(DataError, match="no rollout was accepted of 0"):
        select(METHOD, tmp_path / "none.jsonl", QUESTIONS, tmp_path, 1, None, 1)


@pytest.mark.slow
def test_targets_are_what_the_policy_wrote_and_the_end(codec, tmp_path):
    from research_rl.verl_plugin.sft_dataset import TrajectoryDataset

    run(codec, tmp_path / "samples.jsonl")
    select(METHOD, tmp_path / "samples.jsonl", QUESTIONS, tmp_path, 1, None, 1)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    row = TrajectoryDataset([str(tmp_path / "train.parquet")], tokenizer, {"max_length": 300})[0]
    targets = [token for token, learn in zip(row["input_ids"].tolist(), row["loss_mask"].tolist(), strict=True) if learn]
    assert codec.decode(targets) == SEARCH + TELL + tokenizer.eos_token
    assert codec.decode(row["input_ids"].tolist()).startswith("Question: Where is 0?\nRecall or look up:")
    assert "It lies in Oslo." in codec.decode(row["input_ids"].tolist())
    with pytest.raises(DataError, match="max_length is 9"):
        TrajectoryDataset(str(tmp_path / "train.parquet"), tokenizer, {"max_length": 9})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "end"), [(METHOD, "<|endoftext|>"), (R1SearcherPP(template="sys"), "<|im_end|>")], ids=["plain text", "messages"]
)
def test_a_row_has_the_tokens_of_the_rollout_that_it_was_sampled_from(codec, tmp_path, method, end):
    from research_rl.verl_plugin.sft_dataset import TrajectoryDataset

    run(codec, tmp_path / "samples.jsonl")
    select(method, tmp_path / "samples.jsonl", QUESTIONS[:1], tmp_path, 1, None, 1)
    model = model_like(tmp_path / "model", "qwen3", begins=True)
    kwargs = {"enable_thinking": False}
    data = {"bos": True, "apply_chat_template_kwargs": kwargs}
    row = TrajectoryDataset([str(tmp_path / "train.parquet")], AutoTokenizer.from_pretrained(model), data)[0][
        "input_ids"
    ].tolist()
    rollouts = load_codec(model, bos=True, chat_template_kwargs=kwargs)
    prompt = rollouts.encode_prompt(method.prompt(QUESTIONS[0]["question"]), method.prefill)
    assert row[: len(prompt)] == prompt
    assert rollouts.decode(row[-1:]) == end


SINGLE = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
RECIPES = {
    "recipes/r1_searcher_pp/cold_start.yaml": (  # for GPUs: what sft_on_cpu sets
        *("trainer.device=cpu", "trainer.n_gpus_per_node=1", "trainer.logger=[console]", "data.num_workers=0"),
        *("model.use_remove_padding=false", "model.enable_gradient_checkpointing=false", "engine.use_torch_compile=false"),
        *("+model.override_config={attn_implementation:sdpa}", "engine.dtype=float32", f"+engine.mixed_precision={SINGLE}"),
    ),
    "recipes/wikipedia/cold_start_cpu.yaml": (),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the CPU platform is for Linux")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_supervised_recipe_trains_goes_on_and_leaves_a_model_that_loads(codec, tmp_path, recipe):
    run(codec, tmp_path / "samples.jsonl")
    select(METHOD, tmp_path / "samples.jsonl", QUESTIONS, tmp_path, per_question=2, rows=None, seed=1)
    out = tmp_path / "run"
    environment = {
        **os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "MODEL": str(WEIGHTS), "TORCHDYNAMO_DISABLE": "1",
    }  # fmt: skip

    def train(epochs: int) -> str:
        command = [
            *(sys.executable, "-m", "research_rl.train", recipe, "--run-dir", str(out), "--accept-changes", *RECIPES[recipe]),
            *(f"data.train_files=[{tmp_path}/train.parquet]", "data.train_batch_size=2", "data.max_length=300"),
            *(f"trainer.total_epochs={epochs}", "trainer.save_freq=1", "optim.lr=0.001", "optim.lr_scheduler_type=constant"),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    said = train(1) + train(2)
    losses = [float(part.split("train/loss:")[1].split()[0]) for part in said.splitlines() if "train/loss:" in part]
    assert len(losses) == 2  # the second run did not begin again
    assert losses[1] < losses[0]
    assert "done already" in train(2)
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert model.dtype is torch.bfloat16
    assert (out / "model").resolve().parent.name == "global_step_2"
    assert load_codec(out / "model").eos_ids == codec.eos_ids
