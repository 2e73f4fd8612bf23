"""Natural Questions (Kwiatkowski et al., 2019): NQ-open, the full annotations (simplified or not), and DPR's table of questions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from research_rl.questions import Dropped, Question

MOST_TOKENS = 5  # of a short answer in the open setting (Lee et al., 2019)


def question(row: dict[str, Any]) -> Question:
    """Read one row of any of the three forms."""
    if "annotations" in row:
        answers = tuple(dict.fromkeys(_short_answers(row)))
        if not answers:
            raise Dropped(f"no short answer of at most {MOST_TOKENS} tokens")
        title = (row.get("document_title") or "",)
        return Question(str(row["example_id"]), row["question_text"], answers, hops=1, supporting_titles=title)
    answer = row["answer"]
    if isinstance(answer, str) and answer.startswith("["):
        answer = ast.literal_eval(answer)  # DPR writes the list as Python does
    answers = (answer,) if isinstance(answer, str) else tuple(answer)
    return Question(str(row.get("id", "")), row["question"], answers, hops=1)


def _short_answers(row: dict[str, Any]) -> Iterator[str]:
    if "document_tokens" in row:
        tokens = [("" if token["html_token"] else token["token"]) for token in row["document_tokens"]]
    else:
        tokens = ["" if token.startswith("<") else token for token in row["document_text"].split(" ")]
    for annotation in row["annotations"]:
        if (said := annotation.get("yes_no_answer", "NONE")) in ("YES", "NO"):
            yield said.lower()
        for span in annotation["short_answers"]:
            words = [token for token in tokens[span["start_token"] : span["end_token"]] if token]
            if len(words) <= MOST_TOKENS:
                yield " ".join(words)
