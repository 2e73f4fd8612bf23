"""What a run says of its retrieval before it starts: asked of real services, and never the reason for its end."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rag_serving.indexing import build_index
from research_rl.errors import ConfigError
from research_rl.questions import write_verl_parquet
from research_rl.training.settings import Settings
from research_rl.verl_plugin.doctor.coverage import coverage, sample
from research_rl.verl_plugin.doctor.setup import Setup
from tests.servers import free_port, serving

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
TOWNS = {f"Person{n}": f"Town{n}" for n in range(40)}


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """Two services: one whose corpus says where everybody was born, and one that names the towns of five in forty."""
    folder = tmp_path_factory.mktemp("coverage")
    with ExitStack() as stack:
        found = []
        for name, told in (("all", 40), ("few", 5)):
            rows = [{"id": str(n), "contents": f"{who}\n{who} was born in {town if n < told else 'a town'}."}
                    for n, (who, town) in enumerate(TOWNS.items())]  # fmt: skip
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            build_index(folder / f"{name}.jsonl", folder / name)
            found.append(stack.enter_context(serving("--index", str(folder / name)))[0])
        yield SimpleNamespace(all=found[0], few=found[1])


def questions(path: Path, source: str = "towns", yes_no: int = 0) -> str:
    rows = [
        {"id": n, "question": f"Where was {who} born?", "golden_answers": [town]} for n, (who, town) in enumerate(TOWNS.items())
    ]
    rows += [{"id": n, "question": "Is it so?", "golden_answers": ["Yes", "no"]} for n in range(yes_no)]
    write_verl_parquet(path, rows, source, path.stem)
    return str(path)


def told(train: list[str], val: str, url: str, **section) -> list[str]:
    """Return what the check of the coverage finds, each with its level."""
    retrieval = {"url": url, "deadline_s": 2.0, "url_by_data_source": section.pop("services", {})}
    sections = {
        "research_rl": {"method": "research", "retrieval": retrieval, "top_k": 3, **section},
        "data": {"train_files": train, "val_files": val},
    }
    return [f"{finding.level} {finding}" for finding in coverage.findings(Setup(OmegaConf.create(sections)))]


def test_each_file_is_asked_where_its_data_source_is_searched_and_a_low_share_is_warned_of(urls, tmp_path):
    train, few = questions(tmp_path / "train.parquet", yes_no=9), questions(tmp_path / "few.parquet", "few")
    lines = told([train], few, urls.all, services={"few": urls.few})
    assert lines[0] == (
        "ok a golden answer is among the top 3 passages for 40 of 40 sampled questions of train.parquet (bare question)"
    )
    assert "for 5 of 40 sampled questions of few.parquet (bare question). LESS THAN 20%" in lines[1]
    assert lines[1].startswith("warning ")
    assert len(lines) == 2


def test_a_file_of_several_data_sources_asks_each_service_its_own_questions(urls, tmp_path):
    rows = [{"id": n, "question": f"Where was {who} born?", "golden_answers": [town],
             "metadata": {"data_source": "few" if n % 2 else "towns"}} for n, (who, town) in enumerate(TOWNS.items())]  # fmt: skip
    write_verl_parquet(tmp_path / "mix.parquet", rows, "towns", "train")
    (line,) = told([str(tmp_path / "mix.parquet")], "hdfs://elsewhere", urls.all, services={"few": urls.few})
    assert "for 22 of 40 sampled questions of mix.parquet" in line  # 20 of the one, and rows 1 and 3 of the other


def test_the_sample_is_the_same_at_every_start_and_nothing_is_asked_if_it_is_0(urls, tmp_path):
    file = questions(tmp_path / "train.parquet", yes_no=9)
    first = sample(file, 10)
    assert first == sample(file, 10)
    assert len({question for _, question, _ in first}) == 10
    assert not any(golden == ["Yes", "no"] for _, _, golden in sample(file, 1_000))
    assert told([file], file, urls.all, coverage_sample=0) == ["ok not measured (research_rl.coverage_sample=0)"]
    assert "for 10 of 10 sampled questions" in told([file], file, urls.all, coverage_sample=10)[0]
    with pytest.raises(ConfigError, match="coverage_sample must be 0"):
        Settings.from_mapping({"method": "research", "retrieval": {"url": urls.all}, "coverage_sample": -1})


def test_a_service_that_fails_is_told_and_the_other_files_are_asked(urls, tmp_path):
    file, few = questions(tmp_path / "train.parquet"), questions(tmp_path / "few.parquet", "few")
    lines = told([file, "nowhere.parquet", few], few, urls.all, services={"few": f"http://127.0.0.1:{free_port()}"})
    assert "for 40 of 40" in lines[0]
    assert lines[1].startswith("warning few.parquet: not measured: RetrievalError: the retrieval service at")
    assert len(lines) == 3  # a missing file is told by the check of the data


def test_questions_of_yes_and_no_alone_are_told(urls, tmp_path):
    write_verl_parquet(tmp_path / "y.parquet", [{"id": 1, "question": "So?", "golden_answers": ["no"]}], "towns", "train")
    (line,) = told([str(tmp_path / "y.parquet")], "s3://elsewhere", urls.all)
    assert line.endswith("every question of y.parquet is answered by yes or no: nothing to look for")


def test_a_run_tells_it_when_its_configuration_is_checked(urls, tmp_path, capsys, monkeypatch):
    from research_rl.verl_plugin.checks import check_config

    monkeypatch.chdir(ROOT)
    file = questions(tmp_path / "train.parquet")
    with initialize_config_dir(str(ROOT / "recipes" / "quickstart"), version_base=None):
        config = compose(
            "train",
            overrides=[
                "hydra.searchpath=[pkg://research_rl.config,pkg://verl.trainer.config]", f"data.train_files=[{file}]",
                f"data.val_files=[{file}]", f"run_dir={tmp_path}", f"research_rl.retrieval.url={urls.all}",
                f"research_rl.retrieval.url_by_data_source.world_control={urls.few}",
            ],
        )  # fmt: skip
    check_config(config)
    lines = [line for line in capsys.readouterr().out.splitlines() if "coverage: " in line]
    assert len(lines) == 2
    assert all("the top 3 passages for 40 of 40 sampled questions of train.parquet" in line for line in lines)
