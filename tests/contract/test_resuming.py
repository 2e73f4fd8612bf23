"""A validation before training belongs to the start of a run, not to each of its restarts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

ROOT = Path(__file__).parents[2]
RECIPES = ["quickstart/train.yaml", "search_r1/gpu.yaml", "research/gpu.yaml", "r1_searcher/gpu.yaml"]
SEARCHPATH = "hydra.searchpath=[pkg://research_rl.config,pkg://verl.trainer.config]"
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def hydra_as_before():
    yield
    HydraConfig.instance().cfg = None


def measures_first(recipe: str, checkpoints: Path, *overrides: str, questions: int | None = 19_938) -> bool:
    from research_rl.verl_plugin.resuming import measure_once

    path = ROOT / "recipes" / recipe
    given = [f"trainer.default_local_dir={checkpoints}", *overrides]
    with initialize_config_dir(str(path.parent), version_base=None):
        config = compose(path.stem, overrides=[SEARCHPATH, *given], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    measure_once(config, questions)
    return config.trainer.val_before_train


def saved(checkpoints: Path, step: int) -> Path:
    (checkpoints / f"global_step_{step}").mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))
    return checkpoints


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_is_measured_before_it_starts_but_not_again_when_it_goes_on(recipe, tmp_path, capsys):
    assert measures_first(recipe, tmp_path / "new")
    assert not measures_first(recipe, saved(tmp_path / "old", 20))
    assert "going on from step 20" in capsys.readouterr().out


def test_who_asks_for_it_by_hand_gets_it(tmp_path):
    assert measures_first("search_r1/gpu.yaml", saved(tmp_path, 20), "trainer.val_before_train=true")


def test_a_run_at_its_last_step_is_measured_since_nothing_else_is_left_to_do(tmp_path):
    assert measures_first("quickstart/train.yaml", saved(tmp_path / "steps", 40))
    epochs = 19_938 // 256 * 2
    assert measures_first("research/gpu.yaml", saved(tmp_path / "epochs", epochs))
    assert not measures_first("research/gpu.yaml", saved(tmp_path / "before", epochs - 1))
    assert not measures_first("research/gpu.yaml", tmp_path / "epochs", questions=None)


def test_a_checkpoint_that_verl_will_not_take_up_is_none(tmp_path):
    assert measures_first("search_r1/gpu.yaml", saved(tmp_path / "off", 20), "trainer.resume_mode=disable")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "latest_checkpointed_iteration.txt").write_text("20")
    assert measures_first("search_r1/gpu.yaml", tmp_path / "gone")
    path = f"trainer.resume_from_path={tmp_path}/global_step_7"
    assert not measures_first("search_r1/gpu.yaml", tmp_path / "new", "trainer.resume_mode=resume_path", path)


def test_search_r1_validates_on_the_same_sample_at_every_start():
    path = ROOT / "recipes" / "search_r1"
    with initialize_config_dir(str(path), version_base=None):
        data = compose("gpu", overrides=[SEARCHPATH]).data
    assert (data.val_max_samples, data.seed, data.shuffle) == (500, 42, True)  # verl samples by the seed where it shuffles


@pytest.mark.parametrize(
    ("before", "now", "named", "expected"),
    [
        (None, "a", None, "a"), ("a", "a", None, "a"), (None, None, None, None), ("a", None, None, None), ("a", "b", "b", "b"),
        ("a", "b", None, "goes on from a checkpoint that was trained over the index a"), (None, "b", "a", "index_id=a, but the service"),
    ],
)  # fmt: skip
def test_a_run_goes_on_over_the_index_that_it_began_with(tmp_path, monkeypatch, before, now, named, expected):
    from research_rl.errors import ConfigError
    from research_rl.verl_plugin import same_index
    from research_rl.verl_plugin.config import settings_of

    if before:
        manifest = saved(tmp_path, 20) / "global_step_20" / "research_rl.json"
        manifest.write_text(json.dumps({"indexes": {"http://earlier:8000": before}}))
    monkeypatch.setattr(same_index, "indexes", lambda settings: dict.fromkeys(settings.retrieval_urls(), now))
    path = ROOT / "recipes" / "search_r1"
    given = [f"trainer.default_local_dir={tmp_path}", *([f"research_rl.retrieval.index_id={named}"] if named else [])]
    with initialize_config_dir(str(path), version_base=None):
        config = compose("gpu", overrides=[SEARCHPATH, *given])
    if expected and len(expected) > 1:
        with pytest.raises(ConfigError, match=expected):
            same_index.fix_index(config, settings_of(config))
    else:
        same_index.fix_index(config, settings_of(config))
        assert config.research_rl.retrieval.index_id == expected
