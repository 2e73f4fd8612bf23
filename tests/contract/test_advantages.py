"""R1-Searcher's advantages against their definition, and against verl's estimators: where they are equal and where not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research_rl.verl_plugin.advantages import NAME, reinforce_group_baseline
from tests import forked

pytestmark = pytest.mark.slow


def make(seed: int, questions: int = 3, n: int = 4, length: int = 7, kl: float = 0.0):
    """Return token-level rewards, scores, mask and groups; the last sampled token of a row carries its score."""
    random = torch.Generator().manual_seed(seed)
    mask = (torch.rand((questions * n, length), generator=random) > 0.3).long()
    mask[:, 0] = 1
    scores = torch.zeros(mask.shape)
    for row in range(len(mask)):
        last = int(mask[row].nonzero()[-1])
        mask[row, last + 1 :] = 0
        scores[row, last] = torch.randn(1, generator=random)
    rewards = scores - kl * torch.rand(mask.shape, generator=random) * mask
    return rewards, scores, mask, [row // n for row in range(len(mask))]


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1]))
def test_it_is_the_definition_token_by_token(seed, kl):
    rewards, scores, mask, groups = make(seed, kl=kl)
    returns = torch.zeros(mask.shape)
    for row in range(len(mask)):
        group = [other for other in range(len(mask)) if groups[other] == groups[row]]
        baseline = sum(scores[other].sum().item() for other in group) / len(group)
        for t in range(mask.shape[1]):
            if mask[row, t]:
                returns[row, t] = sum(rewards[row, u].item() for u in range(t, mask.shape[1])) - baseline
    sampled = [returns[i, t].item() for i in range(len(mask)) for t in range(mask.shape[1]) if mask[i, t]]
    mean = sum(sampled) / len(sampled)
    variance = sum((value - mean) ** 2 for value in sampled) / len(sampled)
    expected = (returns - mean) / max(variance, 1e-8) ** 0.5 * mask
    advantages, got = reinforce_group_baseline(rewards, scores, mask, groups)
    torch.testing.assert_close(got, returns, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(advantages, expected, atol=1e-4, rtol=1e-3)


def verls(name, rewards, mask, groups):
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    config = SimpleNamespace(gamma=1.0)
    return get_adv_estimator_fn(name)(token_level_rewards=rewards.clone(), response_mask=mask, index=groups, config=config)[0]


def bessel(mask) -> float:
    """verl divides the variance by N − 1, R1-Searcher by N."""
    count = int(mask.sum())
    return (count / (count - 1)) ** 0.5


def equal(one, other) -> bool:
    return torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def test_without_kl_it_is_verls_baseline_variant_up_to_bessels_correction():
    rewards, scores, mask, groups = make(1)
    ours, _ = reinforce_group_baseline(rewards, scores, mask, groups)
    assert equal(ours, bessel(mask) * verls("reinforce_plus_plus_baseline", rewards, mask, groups))


def test_with_kl_it_is_not_since_verls_variant_spreads_the_kl_over_all_tokens_and_into_the_baseline():
    rewards, scores, mask, groups = make(1, kl=0.5)
    ours, _ = reinforce_group_baseline(rewards, scores, mask, groups)
    assert not equal(ours, bessel(mask) * verls("reinforce_plus_plus_baseline", rewards, mask, groups))


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_if_all_questions_have_one_mean_score_it_is_verls_reinforce_plus_plus(kl):
    rewards, scores, mask, groups = make(2, kl=kl)
    total = scores.sum(-1)
    for group in set(groups):  # shift every score to the group's mean 0.7
        rows = [row for row, other in enumerate(groups) if other == group]
        for row in rows:
            last = int(mask[row].nonzero()[-1])
            shift = 0.7 - total[rows].mean()
            scores[row, last] += shift
            rewards[row, last] += shift
    ours, _ = reinforce_group_baseline(rewards, scores, mask, groups)
    assert equal(ours, bessel(mask) * verls("reinforce_plus_plus", rewards, mask, groups))


def test_if_their_means_differ_it_is_not():
    rewards, scores, mask, groups = make(3)
    ours, _ = reinforce_group_baseline(rewards, scores, mask, groups)
    assert not equal(ours, bessel(mask) * verls("reinforce_plus_plus", rewards, mask, groups))


def test_a_score_that_stands_on_an_observation_counts_and_is_lost_in_verls_reinforce_plus_plus():
    mask, groups = torch.tensor([[1, 1, 0], [1, 1, 0]]), [0, 0]  # both were cut in an observation
    scores = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    ours, _ = reinforce_group_baseline(scores, scores, mask, groups)
    assert (ours[0, :2] > 0).all()
    assert (ours[1, :2] < 0).all()
    assert (verls("reinforce_plus_plus", scores, mask, groups) == 0).all()


def test_verls_trainer_knows_the_name_and_computes_ours(tmp_path):
    code = f"""
import verl, torch, numpy as np
from verl import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from research_rl.verl_plugin.advantages import reinforce_group_baseline
mask = torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]])
scores = torch.tensor([[0., 0, 1], [0, 0, 0], [0, 2, 0], [1, 0, 0]])
rewards = scores - 0.1 * mask
tensors = {{"response_mask": mask, "token_level_scores": scores, "token_level_rewards": rewards}}
data = DataProto.from_dict(tensors, {{"uid": np.array(["a", "a", "b", "b"], dtype=object)}})
keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
done = compute_advantage_for_multi_trajectories(data, keys, adv_estimator={NAME!r})
assert torch.equal(done.batch["advantages"], reinforce_group_baseline(rewards, scores, mask, list("aabb"))[0])
assert done.batch["advantages"].abs().sum() > 0
grpo = compute_advantage_for_multi_trajectories(data, keys, adv_estimator="grpo", config={{}})
assert not torch.equal(grpo.batch["advantages"], reinforce_group_baseline(rewards, scores, mask, list("aabb"))[0])
"""
    done = forked.run("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_verls_trainer_gives_rollouts_that_are_not_trained_on_no_advantage():
    code = """
import verl, torch, numpy as np
from verl import DataProto
from verl.trainer.ppo.v1 import trainer_base
from research_rl.verl_plugin import down_sampling
mask = torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]])
scores = torch.zeros(6, 3)
for row, (at, score) in enumerate([(2, 0.0), (2, 1.0), (1, 0.4), (0, 0.6), (2, 0.1), (2, 0.1)]):
    scores[row, at] = score
tensors = {"response_mask": mask, "token_level_scores": scores, "token_level_rewards": scores.clone()}
data = DataProto.from_dict(tensors, {"uid": np.array(["a", "a", "a", "a", "b", "b"], dtype=object)})
keys = ["a_0_0", "a_1_0", "a_2_0", "a_3_0", "b_0_0", "b_1_0"]
down_sampling._kept.set(2)
done = trainer_base.compute_advantage_for_multi_trajectories(data, batch_keys=keys, adv_estimator="grpo", config={})
signs = done.batch["advantages"].sign().tolist()
assert signs == [[-1, 0, -1], [1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], signs
assert hasattr(trainer_base.PPOTrainer._compute_advantage, "__wrapped__")
"""
    done = forked.run("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
