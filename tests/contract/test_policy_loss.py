"""LLDS against a slow reading of its definition, its gradient, and how verl finds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.verl_plugin.policy_loss import actions_of, kept_logprob_change, llds_penalty

ROOT = Path(__file__).parents[2]
SEARCHPATH = "hydra.searchpath=[pkg://research_rl.config,pkg://verl.trainer.config]"
KEY = "actor_rollout_ref.actor.policy_loss"
pytestmark = pytest.mark.slow


def runs(mask: list[int]) -> list[list[int]]:
    """Return the positions of each contiguous run of 1, in order."""
    found: list[list[int]] = []
    for position, value in enumerate(mask):
        if value and (position == 0 or not mask[position - 1]):
            found.append([])
        if value:
            found[-1].append(position)
    return found


def slow_penalty(old, new, advantages, mask, gate) -> list[list[float]]:
    """LLDS's term, token by token."""
    out = [[0.0] * len(row) for row in mask]
    for row, positions in enumerate(mask):
        actions = runs(positions)
        if sum(advantages[row][token] for action in actions for token in action) < 0:
            continue
        whole = [token for action in actions for token in action]
        for action in actions:
            judged = action if gate == "action" else whole
            if sum(old[row][token] - new[row][token] for token in judged) > 0:
                for token in action:
                    out[row][token] = max(0.0, old[row][token] - new[row][token])
    return out


EIGHTHS = st.integers(-40, 0).map(lambda number: number / 8)  # exact in float32, so that sums are the same in any order


@st.composite
def batches(draw):
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))

    def table(element):
        return draw(st.lists(st.lists(element, min_size=length, max_size=length), min_size=rows, max_size=rows))

    advantage = [[value] * length for value in draw(st.lists(st.sampled_from([-1.5, 0.0, 2.0]), min_size=rows, max_size=rows))]
    return table(EIGHTHS), table(EIGHTHS), advantage, table(st.integers(0, 1))


def tensors(old, new, advantages, mask):
    return torch.tensor(old), torch.tensor(new, requires_grad=True), torch.tensor(advantages), torch.tensor(mask).bool()


@given(batches())
def test_actions_are_contiguous_runs_of_the_mask(batch):
    mask = batch[3]
    for row, numbers in zip(mask, actions_of(torch.tensor(mask)).tolist(), strict=True):
        expected = [0] * len(row)
        for number, action in enumerate(runs(row), 1):
            for token in action:
                expected[token] = number
        assert numbers == expected


@settings(max_examples=200)
@given(batches(), st.sampled_from(["action", "response"]))
def test_the_penalty_is_that_of_a_slow_reading(batch, gate):
    assert llds_penalty(*tensors(*batch), gate).tolist() == slow_penalty(*batch, gate)


@given(batches(), st.sampled_from(["action", "response"]))
def test_the_gradient_is_minus_one_where_a_token_is_penalised_and_zero_elsewhere(batch, gate):
    old, new, advantages, mask = tensors(*batch)
    penalty = llds_penalty(old, new, advantages, mask, gate)
    penalty.sum().backward()
    assert new.grad is not None
    assert torch.equal(new.grad, -(penalty > 0).float())


@given(batches())
def test_the_logged_change_is_the_mean_over_the_actions_that_are_to_be_kept(batch):
    old, new, advantages, mask = batch
    changes = [
        sum(new[row][token] - old[row][token] for token in action)
        for row in range(len(mask))
        if sum(advantages[row][token] for action in runs(mask[row]) for token in action) >= 0
        for action in runs(mask[row])
    ]
    expected = sum(changes) / len(changes) if changes else 0.0
    assert kept_logprob_change(*tensors(*batch)) == pytest.approx(expected)


def test_an_action_that_rose_is_left_alone_although_another_of_its_rollout_fell():
    old, mask, advantages = torch.zeros(1, 5), torch.tensor([[1, 1, 0, 1, 1]]), torch.ones(1, 5)
    new = torch.tensor([[0.5, -0.25, -9.0, -0.5, 0.25]])
    assert llds_penalty(old, new, advantages, mask, "action").tolist() == [[0, 0, 0, 0.5, 0]]
    assert llds_penalty(old, new, advantages, mask, "response").tolist() == [[0, 0, 0, 0, 0]]
    fallen = new - torch.tensor([[0.0, 0, 0, 0.25, 0]])
    assert llds_penalty(old, fallen, advantages, mask, "response").tolist() == [[0, 0.25, 0, 0.75, 0]]


def actor(**changed):
    """The actor's settings as verl makes them out of a recipe."""
    from verl.utils.config import omega_conf_to_dataclass

    with initialize_config_dir(str(ROOT / "recipes" / "quickstart"), version_base=None):
        given = [f"{KEY}.{name}={value}" for name, value in changed.items()]
        config = compose("train", overrides=[SEARCHPATH, *given])
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def loss(settings, batch):
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    old, new, advantages, mask = tensors(*batch)
    settings.global_batch_info.update(dp_size=1, batch_num_tokens=int(mask.sum()) or 1, global_batch_size=len(mask))
    value, metrics = get_policy_loss_fn(settings.policy_loss.loss_mode)(
        old_log_prob=old, log_prob=new, advantages=advantages, response_mask=mask, loss_agg_mode="token-mean", config=settings,
    )  # fmt: skip
    value.backward()
    return value, new.grad, metrics


BATCH = (
    [[-1.0, -0.5, -2.0, -1.0], [-0.5, -0.5, -0.5, -0.5], [-1.0, -1.0, -1.0, -1.0]],
    [[-1.5, -0.5, -2.0, -0.5], [-0.75, -0.25, -1.0, -0.5], [-2.0, -2.0, -2.0, -2.0]],
    [[1.0] * 4, [0.0] * 4, [-1.0] * 4],
    [[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]],
)


def test_verl_finds_it_by_its_name_and_adds_lambda_times_the_mean_of_the_penalty():
    vanilla, _, plain = loss(actor(), BATCH)
    for gate in ("action", "response"):
        value, _, metrics = loss(actor(loss_mode="llds", llds_lambda=0.25, llds_gate=gate), BATCH)
        mean = sum(map(sum, slow_penalty(*BATCH, gate))) / 10
        assert mean > 0
        assert (value - vanilla).item() == pytest.approx(0.25 * mean)
        assert metrics.pop("actor/llds") == pytest.approx(mean)
        assert metrics == plain


def test_with_lambda_zero_loss_and_gradient_are_vanillas_bit_for_bit():
    (value, gradient, _), (expected, its, _) = loss(actor(loss_mode="llds", llds_lambda=0), BATCH), loss(actor(), BATCH)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, its)


def test_micro_batches_make_the_gradient_of_the_whole():
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    chosen = actor(loss_mode="llds", llds_lambda=1.0)
    _, whole, _ = loss(chosen, BATCH)
    parts = []
    for row in range(3):
        old, new, advantages, mask = tensors(*([table[row]] for table in BATCH))
        part, _ = get_policy_loss_fn("llds")(
            old_log_prob=old, log_prob=new, advantages=advantages, response_mask=mask, loss_agg_mode="token-mean", config=chosen
        )
        part.backward()
        parts.append(new.grad)
    torch.testing.assert_close(torch.cat(parts), whole)


def test_every_loss_of_verls_actor_logs_what_happens_to_the_likelihood_of_what_is_kept():
    from verl.workers.utils import losses

    for name in ("vanilla", "llds"):
        settings = actor(loss_mode=name)
        settings.global_batch_info.update(dp_size=1, batch_num_tokens=10, global_batch_size=3)
        old, new, advantages, mask = tensors(*BATCH)
        _, metrics = losses.get_policy_loss_fn(name)(
            old_log_prob=old, log_prob=new, advantages=advantages, response_mask=mask, loss_agg_mode="token-mean", config=settings,
        )  # fmt: skip
        assert metrics["actor/kept_logprob_change"] == pytest.approx((-0.5 + 0.5 - 0.25 - 0.5) / 4)
        assert "actor/ppo_kl" in metrics


def test_rows_without_an_advantage_are_kept_in_a_cpus_update_with_llds_alone():
    from functools import partial

    from verl.workers.utils.losses import ppo_loss

    from research_rl.verl_plugin.cpu_engine import zero_advantage_is_zero_gradient

    assert zero_advantage_is_zero_gradient(partial(ppo_loss, config=actor()))
    assert not zero_advantage_is_zero_gradient(partial(ppo_loss, config=actor(loss_mode="llds")))


@pytest.mark.parametrize(("section", "told"), [
    ({"loss_mode": "lld"}, r"loss_mode='lld' is unknown; valid: .*llds.*vanilla"),
    ({"llds_lambda": -1}, r"llds_lambda must be a number, 0 or more, got -1"),
    ({"llds_gate": "token"}, r"llds_gate='token' is unknown; valid: action, response"),
])  # fmt: skip
def test_wrong_settings_are_told_before_anything_starts(section, told):
    from research_rl.errors import ConfigError
    from research_rl.verl_plugin.doctor.training import check_policy_loss

    check_policy_loss({"loss_mode": "llds"})
    with pytest.raises(ConfigError, match=told):
        check_policy_loss(section)
