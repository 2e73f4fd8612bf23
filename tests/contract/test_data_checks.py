"""All questions are read before anything starts: what cannot be trained on is told by file and row, or dropped."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from research_rl.codec import HFCodec
from research_rl.errors import ConfigError, DataError
from research_rl.methods import load_method
from research_rl.questions import write_verl_parquet
from research_rl.training.settings import Settings
from tests import forked
from tests.servers import app_in_thread

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "start_model" / "weights_all_methods"
SEARCHPATH = "hydra.searchpath=[pkg://research_rl.config,pkg://verl.trainer.config]"
LONG = "Who painted the ceiling of the chapel in the town where the founder of the guild was born? " * 9
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # the recipe names its prompt from here


def write(path: Path, questions: list[str]) -> str:
    rows = [{"id": number, "question": question, "golden_answers": ["a"]} for number, question in enumerate(questions)]
    write_verl_parquet(path, rows, "world", path.stem)
    return str(path)


def _nothing(body: dict) -> list:
    return [[[] for _ in body["query"]] for _ in range(2)]


def finds_nothing() -> FastAPI:
    """A service whose corpus holds nothing."""
    app = FastAPI()
    app.get("/health")(lambda: {"status": "healthy"})
    app.post("/batch_search")(_nothing)
    return app


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """40 questions to train on, of which rows 3 and 20 are too long, and five to validate on."""
    train = [LONG if row in (3, 20) else f"Who is number {row}?" for row in range(40)]
    return {"train": write(tmp_path / "train.parquet", train), "val": write(tmp_path / "val.parquet", ["Who?"] * 5)}


def composed(files: dict[str, str], *overrides: str):
    recipe = ROOT / "recipes" / "quickstart"
    data = [f"data.train_files=[{files['train']}]", f"data.val_files=[{files['val']}]"]
    with initialize_config_dir(str(recipe), version_base=None):
        return compose("train", overrides=[SEARCHPATH, *data, *overrides])


def check(config) -> int | None:
    from research_rl.verl_plugin.doctor import data, tokenizer
    from research_rl.verl_plugin.doctor.examine import examine, refuse
    from research_rl.verl_plugin.doctor.setup import Setup

    setup = Setup(config)
    findings = examine(setup, [tokenizer.model_files, data.data])
    refuse(findings)
    print("\n".join(str(finding) for finding in findings if finding.level == "warning"))
    return setup.measured["questions"]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("research", {}), ("research", {"template": "sys"}), ("r1_searcher", {}), ("r1_searcher", {"template": "sys"}),
        ("r1_searcher_pp", {}), ("search_r1", {"template": "chat"}), ("search_o1", {}),
    ],
)  # fmt: skip
def test_the_lengths_are_those_of_the_prompts_that_rollouts_start_from(tokenizer, method, options, monkeypatch):
    from research_rl.verl_plugin import rows

    if not tokenizer.chat_template:
        template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
        monkeypatch.setattr(tokenizer, "chat_template", template)
    monkeypatch.setattr(rows, "_AT_ONCE", 2)
    made, codec = load_method(method, **options), HFCodec(tokenizer)
    questions = ["Who?", LONG, "Where was Orla Venn born?", "¿Quién?"]
    expected = [len(codec.encode_prompt(made.prompt(question), made.prefill)) for question in questions]
    assert rows.overlong(questions, made, codec, 0) == dict(enumerate(expected))


def test_prompts_that_are_too_long_are_told_by_file_and_row_before_anything_starts(files):
    with pytest.raises(
        DataError, match=r"train\.parquet: 2 of 40 prompts are longer than data\.max_prompt_length=64: row 3 \("
    ) as told:
        check(composed(files))
    assert "row 20 (" in str(told.value)
    assert "research_rl.overlong_prompts=drop" in str(told.value)


def test_dropped_prompts_are_counted_and_the_rest_is_what_trains(files, capsys):
    config = composed(files, "research_rl.overlong_prompts=drop")
    assert check(config) == 38
    assert "2 of 40 prompts are longer" in capsys.readouterr().out


def test_rows_of_another_form_are_told_by_file_and_row(files, tmp_path):
    rows = [{"question": f"{n}?", "reward_model": {"ground_truth": {"numbers": [n], "target": 1}}} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet, row 0: reward_model\.ground_truth must be"):
        check(composed({**files, "val": str(tmp_path / "other.parquet")}))
    with pytest.raises(DataError, match=r"no questions at nowhere\.parquet"):
        check(composed({**files, "train": "nowhere.parquet"}))


@pytest.mark.parametrize(
    ("overrides", "there"),
    [(["data.train_batch_size=64"], 38), (["data.train_max_samples=10"], 10), (["data.train_batch_size=39"], 38)],
)
def test_fewer_questions_than_a_batch_are_told_before_any_model_is_loaded(files, overrides, there):
    with pytest.raises(ConfigError, match=f"more than the {there} questions"):
        check(composed(files, "research_rl.overlong_prompts=drop", *overrides))


def test_a_tokenizer_that_is_not_here_is_told_in_one_line_and_rows_are_still_read(files, capsys):
    assert check(composed(files, "actor_rollout_ref.model.path=/nowhere/model")) == 40
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "tokenizer" in line]
    assert "no tokenizer at /nowhere/model here" in line


def dataset(config, tokenizer, samples=-1):
    from verl.trainer.ppo.utils import create_rl_dataset

    return create_rl_dataset(config.data.train_files, config.data, tokenizer, None, max_samples=samples)


def test_verls_data_set_leaves_out_the_same_questions(files, tokenizer):
    made = dataset(composed(files, "research_rl.overlong_prompts=drop"), tokenizer)
    assert [row["extra_info"]["id"] for row in made] == [str(row) for row in range(40) if row not in (3, 20)]
    with pytest.raises(DataError, match="2 prompts are longer"):
        dataset(composed(files), tokenizer)


def test_a_sample_is_taken_after_the_long_ones_are_left_out_and_is_the_same_at_every_start(files, tokenizer):
    config = composed(files, "research_rl.overlong_prompts=drop", "data.seed=7")
    samples = [[row["index"] for row in dataset(config, tokenizer, 38)] for _ in range(2)]
    assert samples[0] == samples[1]
    assert sorted(samples[0]) == [row for row in range(40) if row not in (3, 20)]
    first = composed(files, "research_rl.overlong_prompts=drop", "data.shuffle=false")
    assert [row["index"] for row in dataset(first, tokenizer, 5)] == [0, 1, 2, 4, 5]


def test_twenty_thousand_questions_take_seconds(tmp_path, files):
    files["train"] = write(tmp_path / "many.parquet", [f"Who is number {row}?" for row in range(20_000)])
    started = time.perf_counter()
    assert check(composed(files)) == 20_000
    assert time.perf_counter() - started < 20


def test_an_unknown_choice_is_told():
    section = {"method": "research", "retrieval": {"url": "http://x"}, "overlong_prompts": "filter"}
    with pytest.raises(ConfigError, match="valid: error, drop"):
        Settings.from_mapping(section)


def test_verls_own_command_ends_with_the_error_before_it_starts_ray(files):
    with app_in_thread(finds_nothing()) as url:
        done = forked.verl(
            "--config-dir", "recipes/quickstart", "--config-name", "train", f"data.train_files=[{files['train']}]",
            f"data.val_files=[{files['val']}]", VERL_PLATFORM="cpu", RETRIEVAL_URL=url, CONTROL_RETRIEVAL_URL=url,
        )  # fmt: skip
    assert done.returncode != 0
    assert "DataError" in done.stderr
    assert "train.parquet: 2 of 40 prompts are longer" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Started a local Ray instance" not in done.stderr


def test_a_sound_recipe_passes_every_check_and_what_is_left_open_is_set(files):
    from research_rl.verl_plugin.checks import check_config, settings_of

    with app_in_thread(finds_nothing()) as url:
        services = [f"research_rl.retrieval.url={url}", f"research_rl.retrieval.url_by_data_source.world_control={url}"]
        config = composed(files, "research_rl.overlong_prompts=drop", "actor_rollout_ref.rollout.max_model_len=null", *services)
        check_config(config)
    assert config.research_rl.attempt > 0
    assert config.actor_rollout_ref.rollout.max_model_len == 464
    assert settings_of(config.data).overlong_prompts == "drop"  # the data set, which sees `data` alone, has the section


def test_search_r1s_rows_pass_through_verls_data_set_and_queue_format(tmp_path, files, tokenizer):
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.rl_dataset import collate_fn

    from research_rl.questions import question_of

    instruction = "Answer the given question. Question: {}\n"
    rows = [
        {
            "id": f"train_{n}", "question": f"who is {n}?", "golden_answers": ["a"] * (n + 1), "data_source": "nq",
            "prompt": [{"role": "user", "content": instruction.format(n)}], "ability": "fact-reasoning",
            "reward_model": {"style": "rule", "ground_truth": {"target": ["a"] * (n + 1)}}, "extra_info": {"split": "train", "index": n},
        }
        for n in range(3)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "nq.parquet")
    config = composed({**files, "train": str(tmp_path / "nq.parquet")}, "data.train_batch_size=3")
    assert check(composed({"train": str(tmp_path / "nq.parquet"), "val": files["val"]}, "data.train_batch_size=3")) == 3
    batch = tu.concat_tensordict(
        [tu.get_tensordict(collate_fn([row])) for row in dataset(config, tokenizer)]
    )  # as verl's trainer does
    for n in range(3):
        row = {key: batch[n][key] for key in ("question", "extra_info", "reward_model")}
        row = {key: getattr(value, "data", value) for key, value in row.items()}
        assert question_of(row) == (f"who is {n}?", ["a"] * (n + 1))


def test_a_prompt_file_named_from_where_the_run_starts_reaches_a_worker_that_runs_elsewhere(files, tmp_path, monkeypatch):
    from omegaconf import OmegaConf

    from research_rl.verl_plugin.checks import check_config

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "p.txt").write_text("Costs $$5. ${question}: $question\n")
    (tmp_path / "here" / "j.txt").write_text("${question}, $golden_answers, $prediction\n")
    with app_in_thread(finds_nothing()) as url:
        urls = [f"research_rl.retrieval.url={url}", f"research_rl.retrieval.url_by_data_source.world_control={url}"]
        rest = ["research_rl.method_options.prompt_file=p.txt", f"run_dir={tmp_path}", "research_rl.overlong_prompts=drop"]
        rest.append("research_rl.judge.prompt_file=j.txt")
        configuration = composed(files, *urls, *rest, f"actor_rollout_ref.model.path={WEIGHTS}")
        monkeypatch.chdir(tmp_path / "here")
        check_config(configuration)
    OmegaConf.resolve(configuration)  # as verl does once more in its own worker
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(configuration))
    code = (
        "import pickle; from research_rl.verl_plugin.config import settings_of; "
        "config = pickle.load(open('config.pickle', 'rb')); "
        "print([settings_of(section).load().prompt('Who?') for section in (config, config.data)]); "
        "from research_rl.judge import JudgeSettings; "
        "print(JudgeSettings.from_mapping(settings_of(config).judge).template().template)"
    )
    done = forked.run("-c", code, cwd=tmp_path)
    told = f"{['Costs $5. Who?: Who?'] * 2}\n${{question}}, $golden_answers, $prediction\n"
    assert done.stdout == told, done.stderr[-2000:]


def test_more_steps_than_the_epochs_have_are_told(files):
    overrides = ["research_rl.overlong_prompts=drop", "trainer.total_epochs=10"]
    check(composed(files, *overrides, "trainer.total_training_steps=20"))
    with pytest.raises(
        ConfigError, match=r"38 questions in batches of 16 make 20 steps in trainer\.total_epochs=10\. Raise total_epochs"
    ):
        check(composed(files, *overrides, "trainer.total_training_steps=21"))
