"""Write a world as files: corpora and questions, in FlashRAG's and in verl's formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_preprocess.world import documents
from data_preprocess.world.world import SPLITS, Split, World, WorldQuestion
from research_rl.files import write_jsonl, write_text
from research_rl.questions import Question, to_flashrag, write_verl_parquet

DATA_SOURCE, CONTROL_SOURCE = "world", "world_control"


def _row(asked: WorldQuestion) -> dict[str, Any]:
    question = Question(asked.id, asked.question, asked.golden_answers, type=asked.type, supporting_ids=asked.supporting)
    return to_flashrag(question)


def write_world(out: Path, seed: int, scale: float, counts: dict[Split, int], in_documents: bool = False) -> dict[str, Any]:
    """Write one world into `out` and return its card. `in_documents`: see `documents`.

    Besides corpus and questions this writes the *control*: the test questions again (data source `world_control`) and a corpus
    from which every passage that proves one of them is removed. Whoever still answers them does not owe it to search.
    """
    world = World(seed, scale)
    asked = {split: world.questions(split, counts[split]) for split in SPLITS}
    questions = {split: [_row(question) for question in asked[split]] for split in SPLITS}
    if in_documents:
        numbered = documents.numbered(world)
        for split in SPLITS:
            for question, row in zip(asked[split], questions[split], strict=True):
                row["metadata"] |= documents.evidence(numbered, question)
    passages = list(documents.passages(world) if in_documents else world.passages())
    evidence = {passage for question in questions["test"] for passage in question["metadata"]["supporting_ids"]}
    card: dict[str, Any] = {"seed": seed, "scale": scale, "questions": counts}
    card["passages"] = write_jsonl(out / "corpus.jsonl", passages)
    card["passages_without_evidence"] = write_jsonl(
        out / "corpus_without_evidence.jsonl", (p for p in passages if p["id"] not in evidence)
    )
    for split in SPLITS:
        write_jsonl(out / f"{split}.jsonl", questions[split])
        write_verl_parquet(out / f"{split}.parquet", questions[split], DATA_SOURCE, split)
    write_verl_parquet(out / "control.parquet", questions["test"], CONTROL_SOURCE, "control")
    write_text(out / "card.json", json.dumps(card, indent=2))
    return card
