"""What verl's trainer finds in its TransferQueue: the state of each question, and its rollouts.

A question's key is its uid, that of a rollout `{uid}_{session}_0`. The trainer waits for the state, and then reads all of the rollouts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from research_rl.errors import GenerationError, missing_extra

try:
    import torch
    import transfer_queue as tq
    from tensordict import NonTensorData, TensorDict
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error


def rows_of(batch: TensorDict) -> list[dict[str, Any]]:
    """Return the dataset rows of a batch."""
    return [{key: _at(value, number) for key, value in batch.items()} for number in range(len(batch))]


def _at(value: Any, number: int) -> Any:
    if isinstance(value, NonTensorData):  # the same for all rows
        return value.data
    found = value[number]
    return found.data if isinstance(found, NonTensorData) else found


def partition(validate: bool) -> str:
    """Return the part of the queue for training or for validation."""
    return "val" if validate else "train"


async def tell(uid: str, status: str, validate: bool) -> None:
    """Set the state of a question: running, finished or failure."""
    await tq.async_kv_put(key=uid, partition_id=partition(validate), tag={"status": status})


async def put_group(row: Mapping[str, Any], outputs: Sequence[Any], validate: bool, processor: Any = None) -> None:
    """Put all rollouts of a question (verl's AgentLoopOutput, with rewards), in the order of their sessions, at once.

    Raises:
        GenerationError: the engine gave log-probabilities for some of them only.
    """
    keys = [f"{row['uid']}_{session}_0" for session in range(len(outputs))]
    entries = [_fields(output, {**row, "session_id": session}, processor) for session, output in enumerate(outputs)]
    if len({frozenset(fields) for fields in entries}) > 1:  # verl would take the fields of the first one for all
        names = sorted(set().union(*entries) - set.intersection(*map(set, entries)))
        raise GenerationError(f"some rollouts of a question have no {', '.join(names)}, others do")
    try:
        await tq.async_kv_batch_put(
            keys=keys,
            fields=list_of_dict_to_tensordict(entries),
            tags=[_tag(fields) for fields in entries],
            partition_id=partition(validate),
        )
    except BaseException:
        with contextlib.suppress(Exception):  # the keys may be known already, without their rollouts
            await tq.async_kv_clear(keys=keys, partition_id=partition(validate))
        raise


def _fields(output: Any, row: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    fields = {**output.as_dict(), **row}
    fields.pop("multi_modal_data", None)
    ids = torch.cat([fields["prompts"], fields["responses"]])
    positions = torch.arange(len(ids))
    if hasattr(processor, "get_rope_index"):  # a model that also sees: text has the same position in all four dimensions
        positions = positions.expand(4, -1).contiguous()
    return {
        **fields,
        "loss_mask": fields["response_mask"],
        "input_ids": ids,
        "position_ids": positions,
        "multi_modal_inputs": {},
    }


def _tag(fields: Mapping[str, Any]) -> dict[str, Any]:
    prompt, response, extra = len(fields["prompts"]), len(fields["responses"]), fields["extra_fields"]
    return {
        "status": "success",
        "prompt_len": prompt,
        "response_len": response,
        "seq_len": prompt + response,
        "global_steps": fields["global_steps"],
        # of the weights that it was begun and ended with: verl drops those that are too old
        "min_global_steps": extra.get("min_global_steps"),
        "max_global_steps": extra.get("max_global_steps"),
    }
