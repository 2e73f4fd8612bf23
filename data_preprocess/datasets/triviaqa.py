"""TriviaQA (Joshi et al., 2017): ``{"Data": [...]}`` with capitalised names; on the hub the same names in small letters."""

from __future__ import annotations

from typing import Any

from research_rl.questions import Dropped, Question


def question(row: dict[str, Any]) -> Question:
    """Read one row; the aliases are the data set's own, the normalised ones left out (the metric normalises)."""
    if "Question" not in row:  # the hub's form
        answer, pages = row.get("answer") or {}, (row.get("entity_pages") or {}).get("title", ())
        if not answer.get("value"):
            raise Dropped("no answer")
        golden = (answer["value"], *answer.get("aliases", ()))
        return Question(str(row["question_id"]), row["question"], golden, hops=1, supporting_titles=tuple(pages))
    answer = row.get("Answer")
    if answer is None:
        raise Dropped("no answer")  # the test set
    return Question(
        str(row["QuestionId"]),
        row["Question"],
        (answer["Value"], *answer.get("Aliases", ()), *answer.get("HumanAnswers", ())),
        type=answer.get("Type") or "",
        hops=1,
        supporting_titles=tuple(page["Title"] for page in row.get("EntityPages") or ()),
    )
