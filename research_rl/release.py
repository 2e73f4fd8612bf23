"""``research-rl export CHECKPOINT --out DIR``: export a trained model as a folder to share, with its protocol and a model card.

CHECKPOINT is the directory of a run, a checkpoint of it (`checkpoints/global_step_N`), or a model's own directory. verl's
shards are merged, and so is a LoRA adapter.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research_rl.command_line import Parser
from research_rl.errors import ConfigError, DataError, MissingExtraError
from research_rl.files import write_text
from research_rl.inference.protocol import MANIFEST, read_protocol
from research_rl.model_card import card
from research_rl.training.export import WEIGHTS, export


def find_model(checkpoint: Path) -> Path:
    """Return the directory of a checkpoint's model; its shards are merged if that has not been done.

    Raises:
        ConfigError: there is no such directory, or no model in it; or the merger failed.
    """
    if not checkpoint.is_dir():
        raise ConfigError(f"no directory {checkpoint}; expected a run, a checkpoint (global_step_N) or a model's directory")
    if any((checkpoint / name).is_file() for name in WEIGHTS):
        return checkpoint.resolve()
    for run in (checkpoint / "train", checkpoint):  # an experiment's training; a finished run
        if (run / "model").is_dir():
            return (run / "model").resolve()
    steps = sorted(checkpoint.glob("checkpoints/global_step_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    for directory in [checkpoint, *reversed(steps)]:
        for actor in (directory / "actor", directory):
            if (actor / "huggingface").is_dir():
                return export(actor)
    inside = ", ".join(sorted(path.name for path in checkpoint.iterdir())[:12]) or "nothing"
    raise ConfigError(
        f"{checkpoint} holds no model: expected model/ (of a finished run), checkpoints/global_step_N, actor/huggingface, or one of "
        f"{', '.join(WEIGHTS)}; got {inside}"
    )


def release(
    checkpoint: Path, out: Path, measured: Sequence[Path] = (), data: Sequence[Path] = (), name: str | None = None
) -> Path:
    """Write the folder and return it: weights, tokenizer, generation config, manifest, README.md. It is written whole or not at all.

    `measured`: summaries of `research-rl evaluate run`; `data`: cards of `research-rl data` (SPLIT.card.json).

    Raises:
        ConfigError: see `find_model`; the folder exists, or the model has no manifest.
        DataError: a summary or a card cannot be read, or is something else.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: choose another --out, or remove it")
    figures, cards = [_json(path, "em") for path in measured], [_json(path, "questions") for path in data]
    model = find_model(checkpoint)
    beside = next((path for path in (model / MANIFEST, model.parent.parent / MANIFEST) if path.is_file()), None)
    if beside is None:
        raise ConfigError(
            f"{model} has no {MANIFEST}, so nothing says how the model must be asked. If it was trained with research-rl, the training "
            "was killed before it wrote the file: run the same training command again, which writes it"
        )
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for file in model.iterdir():
            if file.is_file():
                shutil.copyfile(file, part / file.name)
        shutil.copyfile(beside, part / MANIFEST)
        read_protocol(part, trusted=True)  # a manifest that cannot be read back is not released
        manifest = json.loads((part / MANIFEST).read_text(encoding="utf-8"))
        write_text(part / "README.md", card(name or out.name, manifest, part, figures, cards))
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _json(path: Path, key: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "file": path.name, key: found[key]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} cannot be used: expected a JSON object with {key!r} ({error!r})") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        out = release(options.checkpoint, options.out, options.measured, options.data, options.name)
    except (ConfigError, DataError, MissingExtraError) as error:
        print(f"research-rl export: {error}", file=sys.stderr)
        return 1
    print(f"research-rl export: {out} ({sum(file.stat().st_size for file in out.iterdir()) / 2**20:,.0f} MiB)")
    return 0


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        prog="research-rl export",
        description=__doc__,
        example="research-rl export runs/quickstart --out exported --measured rollouts.summary.json",
    )
    parser.add_argument("checkpoint", type=Path, help="for example runs/wikipedia/train, or …/checkpoints/global_step_30")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--measured", type=Path, nargs="*", default=[], help="FILE.summary.json of `research-rl evaluate run`")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="SPLIT.card.json of `research-rl data`")
    parser.add_argument("--name", default=None, help="the model's name in its card (default: the folder's name)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
