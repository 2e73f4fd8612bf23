"""The data sets by name. A data set is a function from one row of its original format to a `Question`; add one by a file and a line here.

The function raises `Dropped` for a row that is sound but unusable, and lets KeyError, TypeError and ValueError escape for a malformed one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_preprocess.datasets import (
    bamboogle,
    flashrag,
    hotpotqa,
    musique,
    nq,
    popqa,
    r1_searcher,
    strategyqa,
    triviaqa,
    two_wiki,
)
from data_preprocess.datasets.paragraphs import Paragraph
from research_rl.questions import Question


@dataclass(frozen=True)
class Dataset:
    """How a data set is read. `columns`: names for a CSV or TSV file without a header."""

    read: Callable[[dict[str, Any]], Question]
    files: str  # what its files are called
    hub: str = ""
    columns: tuple[str, ...] = ()
    paragraphs: Callable[[dict[str, Any]], list[Paragraph]] | None = None  # reads the paragraphs that a row carries


DATASETS = {
    "hotpotqa": Dataset(
        hotpotqa.question,
        "hotpot_train_v1.1.json, hotpot_dev_distractor_v1.json, hotpot_dev_fullwiki_v1.json",
        "hotpotqa/hotpot_qa",
        paragraphs=hotpotqa.paragraphs,
    ),
    "2wikimultihopqa": Dataset(
        two_wiki.question, "train.json, dev.json; aliases: id_aliases.json", paragraphs=hotpotqa.paragraphs
    ),
    "musique": Dataset(
        musique.question,
        "musique_ans_v1.0_{train,dev}.jsonl, musique_full_v1.0_{train,dev}.jsonl",
        paragraphs=musique.paragraphs,
    ),
    "bamboogle": Dataset(bamboogle.question, "the CSV of the authors' table (125 questions)"),
    "strategyqa": Dataset(strategyqa.question, "strategyqa_train.json"),
    "nq": Dataset(
        nq.question,
        "NQ-open.{train,dev}.jsonl, v1.0-simplified_simplified-nq-train.jsonl.gz, DPR's nq-{train,test}.qa.csv",
        "google-research-datasets/nq_open",
        columns=("question", "answer"),
    ),
    "triviaqa": Dataset(
        triviaqa.question, "unfiltered-web-{train,dev}.json, wikipedia-{train,dev}.json", "mandarjoshi/trivia_qa"
    ),
    "popqa": Dataset(popqa.question, "test.tsv", "akariasai/PopQA"),
    "flashrag": Dataset(flashrag.question, "anything with id, question and golden_answers", "RUC-NLPIR/FlashRAG_datasets"),
    "r1_searcher": Dataset(r1_searcher.question, "R1-Searcher's stage_1.jsonl and stage_2.jsonl"),
}
