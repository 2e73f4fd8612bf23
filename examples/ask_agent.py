"""Ask a trained model, and watch it search.

    python examples/ask_agent.py "Who founded Grom Company?"

asks two servers. After `make quickstart` they are started so, each in a terminal of its own:

    rag-serving serve --index runs/quickstart/index --port 8000
    vllm serve runs/quickstart/model --port 9000

How the model is asked stands in the manifest beside it; for somebody else's model name the method: `--method search_r1`.
"""

import argparse
import asyncio

from research_rl import SearchAgent
from research_rl.inference.agent import Event


def show(event: Event) -> None:
    """Print what happens as it happens: the model's text piece by piece, then what the search found."""
    if event.kind == "text":
        print(event.text, end="", flush=True)
    for number, passage in enumerate(event.passages, 1):
        print(f"\n    {number}. {passage.contents}", end="")


async def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a trained model, and watch it search.")
    parser.add_argument("question")
    parser.add_argument("--model-url", default="http://127.0.0.1:9000/v1")
    parser.add_argument("--retrieval-url", default="http://127.0.0.1:8000")
    parser.add_argument("--method")
    options = parser.parse_args()

    agent = SearchAgent(options.model_url, options.retrieval_url, method=options.method, top_k=3)
    answered = await agent.aanswer(options.question, show)  # agent.answer(question) where no event loop runs
    print(f"\n\n{len(answered.searches)} searches: {'; '.join(answered.searches)}")
    print(f"answer: {answered.answer}")


if __name__ == "__main__":
    asyncio.run(main())
