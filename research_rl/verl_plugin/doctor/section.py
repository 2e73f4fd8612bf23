"""The `research_rl:` section: its keys, method and rewards, and whether samples are the policy's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from research_rl.errors import ConfigError, nearest
from research_rl.scoring import trajectory_metrics
from research_rl.training.settings import Settings, check_sampling
from research_rl.training.stages import Until
from research_rl.verl_plugin.doctor.finding import Finding, check, error, of_mistake, warning
from research_rl.verl_plugin.doctor.setup import Setup


@check("section", "research_rl: keys, numbers and URLs are valid, and the method and its prompts are there")
def section(setup: Setup) -> Iterator[Finding]:
    """Check keys and values: report every unknown key, and the first thing that `Settings` refuses."""
    if setup.config.get("stages") and not setup.section.get("stage"):
        yield error("this recipe has stages: run it by `python -m research_rl.train RECIPE.yaml`")
    known = Settings.key_names()
    for key in sorted(set(setup.section) - set(known)):
        yield error(f"research_rl: unknown keys [{key!r}]", "", nearest(key, known))
    try:
        Settings.from_mapping({key: value for key, value in setup.section.items() if key in known})
    except ConfigError as mistake:
        yield of_mistake(mistake)


@check("sampling", "rollouts are samples of the policy itself")
def sampling(setup: Setup) -> Iterator[Finding]:
    """Refuse to train on samples of another distribution than the policy's."""
    rollout = setup.config.actor_rollout_ref.rollout
    try:
        check_sampling(rollout.temperature, rollout.top_p, rollout.top_k)
    except ConfigError as mistake:
        yield error(str(mistake), "", "Set them so; only validation (rollout.val_kwargs) may sample otherwise")
    # rollouts are sampled with 1.0 whatever this says (generation.sampling_of), so that setting it is a mistake
    if (penalty := rollout.get("repetition_penalty", 1.0)) != 1.0:
        what = "actor_rollout_ref.rollout.repetition_penalty must be 1.0: with another, samples are not the policy's own"
        yield error(what, penalty, "Leave it out")


@check("end of stage", "the stage ends after its steps, or at a metric that is recorded", "settings")
def until(setup: Setup) -> Iterator[Finding]:
    """Check that the metric which ends a stage is recorded and can be read."""
    settings = setup.settings
    assert settings is not None
    metric = Until.from_mapping(settings.until or {}).metric
    if not metric:
        return
    names = sorted(trajectory_metrics(settings.load(), settings.load().read(""), [""]))
    if metric not in names:
        yield error(f"research_rl.until.metric={metric!r} is unknown; valid: {', '.join(names)}", "", nearest(metric, names))
    what = f"research_rl.until.metric={metric} is read from trajectories"
    if not settings.trajectory_dir:
        yield error(f"{what}: set research_rl.trajectory_dir")
    if not settings.trajectory_share:
        yield error(f"{what}: research_rl.trajectory_share must be more than 0")


@check("reward", "the method's own reward scores")
def reward(setup: Setup) -> Iterator[Finding]:
    """Check that the recipe names no reward function of verl: the method's reward is used."""
    named = setup.config.reward.custom_reward_function
    if not named.path:
        return
    path = Path(named.path)
    if "://" not in str(named.path) and not path.is_file():
        yield error(
            "reward.custom_reward_function.path must name a file",
            f"{path}, looked for in {path.absolute().parent}",
            "Leave it out: the reward is the method's (research_rl.method)",
        )
    else:
        yield warning(
            "a reward function of verl's is never called: the method scores its trajectories itself",
            str(named.path),
            "Write a method with another `reward` (CONTRIBUTING.md)",
        )
