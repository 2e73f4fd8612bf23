"""Make the quickstart's starting model from a seed: ``python -m quickstart.start_model.make --out DIR``.

Supervised training: first on drills (copying words, and facts out of passages), then on imperfect demonstrations with real BM25 results,
and some more drills.
Every epoch has a new fictional world, so that only the skill can be learnt, not the facts. The quickstart's own world is never used.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from data_preprocess.world import SPLITS, World
from data_preprocess.world.names import all_words
from quickstart.start_model.demonstrations import PROFILES, Segment, copy_drill, demonstrate, reading_drill
from quickstart.start_model.dialects import DIALECTS, Dialect
from quickstart.start_model.tokenizer import EOS, build_tokenizer
from rag_serving.indexing import build_index
from rag_serving.retrievers import load_index
from research_rl.cpu import fast_dtype
from research_rl.methods.base import Method
from research_rl.types import Passage

TOP_K = 3
FIRST_WORLD = 1_000_000  # seed of the first world; recipes use small seeds, so that no world is used twice
Row = tuple[list[int], list[int]]  # token ids, and 1 where the token is a target


class Lessons:
    """Makes training rows from an endless series of worlds, each with its drills and demonstrations."""

    def __init__(self, seed: int, methods: Sequence[str] = ("research",), profile: str = "mixed") -> None:
        self._seed, self._profile = seed, profile
        self._dialects = [DIALECTS[name] for name in methods]
        tags = [tag for dialect in self._dialects for tag in dialect.method.tags]
        self.tokenizer = build_tokenizer(self._all_texts(), tags)

    def _all_texts(self) -> Iterator[str]:
        yield from all_words()
        world = World(FIRST_WORLD)
        yield from (passage["contents"] for passage in world.passages())
        for dialect in self._dialects:
            yield f"{dialect.method.prompt('$question')}{dialect.method.prefill}\n"
            if len(self._dialects) > 1:
                yield dialect.method.render([[Passage("", "A\nB")] * TOP_K])
        yield " I know it. They are the same different. Find The founder author birthplace profession river goods of is yes no"
        yield from (question.question for split in SPLITS for question in world.questions(split, 40))

    def world_rows(self, epoch: int, copies: int, drills: int, demonstrations: int) -> list[Row]:
        """Return the rows of one world, in random order."""
        rng = random.Random(f"{self._seed}/{epoch}")
        world = World(FIRST_WORLD + 1_000 * self._seed + epoch)
        entities = {entity.id: entity for split in SPLITS for entity in world.entities[split]}
        contents = {passage["id"]: passage["contents"] for passage in world.passages()}
        words = all_words()
        samples: list[list[Segment]] = [copy_drill(words, rng) for _ in range(copies)]
        for _ in range(drills):
            chosen = rng.sample(sorted(entities), TOP_K)
            samples.append(
                reading_drill(
                    [(contents[i], [(entities[i].name, r, v) for r, v in entities[i].facts.items()]) for i in chosen],
                    self._one(rng),
                    rng,
                )
            )
        if demonstrations:
            samples += self._demonstrations(world, demonstrations, rng)
        rows = [self._encode(sample) for sample in samples]
        rng.shuffle(rows)
        return rows

    def _demonstrations(self, world: World, count: int, rng: random.Random) -> list[list[Segment]]:
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder, "corpus.jsonl")
            corpus.write_text("".join(json.dumps(passage) + "\n" for passage in world.passages()), encoding="utf-8")
            build_index(corpus, Path(folder, "index"))
            retriever = load_index(Path(folder, "index"))

            samples = []
            for question in world.questions("train", count):
                dialect = self._one(rng)
                method = dialect.method

                def retrieve(queries: Sequence[str], method: Method = method) -> list[str]:
                    found = retriever.search(queries, TOP_K)
                    return [method.render([[Passage(hit.id, hit.contents) for hit in hits]]) for hits in found]

                segments = demonstrate(question, dialect, retrieve, rng, self._profile)
                prompt = f"{method.prompt(question.question)}{method.prefill}"
                samples.append([(prompt, False), *segments, (EOS, True)])
            return samples

    def _one(self, rng: random.Random) -> Dialect:
        return rng.choice(self._dialects) if len(self._dialects) > 1 else self._dialects[0]

    def _encode(self, segments: list[Segment]) -> Row:
        ids: list[int] = []
        targets: list[int] = []
        for text, learn in segments:
            new = self.tokenizer.encode(text, add_special_tokens=False)
            ids += new
            targets += [int(learn)] * len(new)
        return ids, targets


def new_model(tokenizer: Any, seed: int, width: int = 192, layers: int = 4) -> Qwen2ForCausalLM:
    """Return an untrained Qwen2 of about 2.3 M parameters.

    Its vocabulary is exactly the tokenizer's: verl masks the engine's logits of further ids, so that engine and trainer would disagree.
    """
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip  # many arguments
    return Qwen2ForCausalLM(config)


def batches(rows: list[Row], tokens: int, rng: random.Random) -> list[list[Row]]:
    """Group rows of similar length into batches of at most `tokens` padded tokens."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    groups: list[list[Row]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > tokens:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    return groups


def loss_of(model: Qwen2ForCausalLM, rows: list[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cross-entropy of the target tokens, and the share of them whose arg max is right."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    targets = torch.tensor([mask + [0] * (width - len(mask)) for _, mask in rows])[:, 1:].bool()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_dtype() == "bfloat16"):
        # no attention mask is needed: causal attention does not see padding on the right
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[targets])
    labels = ids[:, 1:][targets]
    return cross_entropy(logits.float(), labels), (logits.argmax(-1) == labels).float().mean()


def train(
    out: Path,
    seed: int,
    drill_epochs: int,
    demo_epochs: int,
    learning_rate: float,
    batch_tokens: int,
    width: int,
    layers: int,
    methods: str,
    habits: str = "mixed",
    init: Path | None = None,
) -> None:
    """Train and save model and tokenizer in `out`, with a record of how they were made (`made.json`)."""
    arguments = {
        "seed": seed, "drill_epochs": drill_epochs, "demo_epochs": demo_epochs, "learning_rate": learning_rate,
        "batch_tokens": batch_tokens, "width": width, "layers": layers, "methods": methods,
        **({"habits": habits, "init": init.name} if init else {}),
    }  # fmt: skip  # many arguments
    lessons = Lessons(seed, methods.split(","), habits)
    model = new_model(lessons.tokenizer, seed, width, layers)
    if init:
        lessons.tokenizer = AutoTokenizer.from_pretrained(init)
        model = Qwen2ForCausalLM.from_pretrained(init, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    epochs, rng, started, seen = drill_epochs + demo_epochs, random.Random(seed), time.time(), 0
    progress = tqdm(range(epochs), desc="worlds", unit="world", disable=None)
    pad: Any = lessons.tokenizer.pad_token_id
    log = []
    for epoch in progress:
        demos = epoch >= drill_epochs
        rows = lessons.world_rows(
            epoch, copies=0 if demos else 1_500, drills=400 if demos else 1_200, demonstrations=1_600 if demos else 0
        )
        groups, losses, hits = batches(rows, batch_tokens, rng), [], []
        for number, group in enumerate(groups):
            done = (epoch + number / len(groups)) / epochs
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, done * 50 + 0.02, 1.02 - done)
            loss, accuracy = loss_of(model, group, pad)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            hits.append(accuracy.item())
            seen += sum(len(ids) for ids, _ in group)
        record = {
            "epoch": epoch,
            "loss": sum(losses) / len(losses),
            "accuracy": sum(hits) / len(hits),
            "tokens": seen,
            "seconds": round(time.time() - started, 1),
        }
        log.append(record)
        tqdm.write(json.dumps(record))
        sys.stdout.flush()
        if epoch % 5 == 4 or epoch == epochs - 1:
            save(out, model, lessons.tokenizer, log, arguments)


def save(out: Path, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, log: list, arguments: dict) -> None:
    """Write model, tokenizer and record."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {
        "command": "python -m quickstart.start_model.make "
        + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in arguments.items()),
        "parameters": model.num_parameters(),
        "torch": torch.__version__,
        "log": log,
    }
    (out / "made.json").write_text(json.dumps(record, indent=1))


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--drill-epochs", type=int, default=4)
    parser.add_argument("--demo-epochs", type=int, default=36)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-tokens", type=int, default=1_536)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--methods", default="research", help=f"comma-separated, of: {', '.join(DIALECTS)}")
    parser.add_argument("--habits", default="mixed", choices=sorted(PROFILES), help="habits shown in the demonstrations")
    parser.add_argument("--init", type=Path, default=None, help="a model to continue from, with its tokenizer")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    train(**vars(options))


if __name__ == "__main__":
    main()
