"""Score somebody else's outputs: answer metrics with intervals, and the rewards that a method's trainer would have given.

    python examples/score_outputs.py

From a file, without Python: `python -m evaluation score FILE --pred-field pred --gold-field gold`, and `rescore` for rewards.
"""

import json
import tempfile
from pathlib import Path

from evaluation.rescore import rescore_file
from evaluation.score import score_file, table
from research_rl.methods import load_method

OUTPUTS = [  # as somebody recorded them: prediction, whole response, accepted answers
    {
        "pred": "The Eiffel Tower",
        "text": "<think>t</think><search> tallest in Paris </search><information>Eiffel Tower\nIt is 330 m tall.</information>"
        "<think>t</think><answer> The Eiffel Tower </answer>",
        "gold": ["Eiffel Tower"],
    },
    {"pred": "1920", "text": "<think>t</think><answer> 1920 </answer>", "gold": ["1919"]},
]

with tempfile.TemporaryDirectory() as folder:
    source, rewards = Path(folder) / "outputs.jsonl", Path(folder) / "rewards.jsonl"
    source.write_text("\n".join(map(json.dumps, OUTPUTS)) + "\n", encoding="utf-8")

    print(table(score_file(source, "pred", "gold", ["em", "f1", "cover_em_tokens"], normalizer="squad")))

    print(rescore_file(source, rewards, load_method("search_r1"), response_field="text", gold_field="gold"))
    for line in rewards.read_text(encoding="utf-8").splitlines():
        print(json.loads(line)["score"], json.loads(line)["components"])
