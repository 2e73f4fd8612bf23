"""Which rollouts of a question are trained on, and with what advantages."""

from itertools import combinations
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.errors import ConfigError
from research_rl.training.settings import Settings

down_sampling = pytest.importorskip("research_rl.verl_plugin.down_sampling", reason="needs the extra train")
torch = pytest.importorskip("torch")
rows_of = down_sampling.max_variance_rows

scores = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), min_size=1, max_size=9)


def variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


@given(scores, st.integers(2, 5))
def test_no_other_choice_of_as_many_rollouts_differs_more(values, keep):
    kept = rows_of(values, ["q"] * len(values), keep)
    assert len(kept) == min(keep, len(values))
    best = max(variance(some) for some in combinations(values, len(kept)))
    assert variance([values[row] for row in kept]) == pytest.approx(best)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from("abc")), min_size=1, max_size=24), st.integers(2, 5)
)
def test_every_question_keeps_its_own_rollouts_in_the_order_of_the_batch(rows, keep):
    values, groups = zip(*rows, strict=True)
    kept = rows_of(values, groups, keep)
    assert kept == sorted(set(kept))
    for group in set(groups):
        assert sum(groups[row] == group for row in kept) == min(keep, groups.count(group))


def test_the_one_success_is_kept_with_failures_and_the_one_failure_with_successes():
    assert 5 in rows_of([0, 0, 0, 0, 0, 1, 0, 0], ["q"] * 8, 4)
    assert 2 in rows_of([1, 1, 0, 1, 1, 1, 1, 1], ["q"] * 8, 4)


def test_among_equals_the_first_are_not_preferred():
    first = sum(0 in rows_of([0.1] * 8, [f"question {number}"] * 8, 4) for number in range(200))
    assert 70 < first < 130
    assert rows_of([0.1] * 8, ["q"] * 8, 4) == rows_of([0.1] * 8, ["q"] * 8, 4)


class Batch:
    """What `advantages_of_some` uses of verl's DataProto."""

    def __init__(self, scores, groups):
        self.batch = {"token_level_scores": scores}
        self.non_tensor_batch = {"uid": SimpleNamespace(tolist=lambda: list(groups))}
        self.groups = groups

    def __len__(self):
        return len(self.groups)

    def select_idxs(self, rows):
        return Batch(self.batch["token_level_scores"][rows], [self.groups[row] for row in rows])


def centred(data, batch_keys):
    assert len(batch_keys) == len(data)
    total = data.batch["token_level_scores"]
    data.batch["advantages"] = data.batch["returns"] = total - total.mean()
    return data


def test_the_estimator_sees_the_kept_rollouts_only_and_the_others_have_no_advantage():
    values = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.1], [0.0, 0.1]])
    token = down_sampling._kept.set(2)
    try:
        done = down_sampling.advantages_of_some(centred, None, (Batch(values, ["q"] * 4),), {"batch_keys": list("abcd")})
    finally:
        down_sampling._kept.reset(token)
    assert done.batch["advantages"].tolist() == [[-0.25, -0.25], [-0.25, 0.75], [0.0, 0.0], [0.0, 0.0]]


def test_without_the_setting_everything_is_verls():
    values = torch.tensor([[1.0], [0.0]])
    done = down_sampling.advantages_of_some(centred, None, (Batch(values, ["q"] * 2),), {"batch_keys": list("ab")})
    assert done.batch["advantages"].tolist() == [[0.5], [-0.5]]


@pytest.mark.parametrize("wrong", [1, 0, -2, "4", 2.5])
def test_a_number_of_rollouts_that_cannot_be_compared_is_refused(wrong):
    with pytest.raises(ConfigError, match="trained_rollouts must be at least 2"):
        Settings.from_mapping({"method": "research", "retrieval": {"url": "http://127.0.0.1:1"}, "trained_rollouts": wrong})
