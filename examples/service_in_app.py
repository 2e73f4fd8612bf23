"""The retrieval service inside an app of one's own: it is a FastAPI application, and can be mounted in another one.

    python examples/service_in_app.py

indexes three passages and listens on http://127.0.0.1:8000: the app's own /ask?question=…, and under /retrieval the whole
service (page, wire formats, /readyz). Needs the extra `serve`.
"""

import json
import tempfile
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from rag_serving.app import create_app
from rag_serving.indexing import build_index
from rag_serving.settings import Settings

PASSAGES = ["Grom Company\nIt was founded by Kisk Roarn.", "Kisk Roarn\nHe was born in Novoslo.", "Novoslo\nA town by the sea."]

directory = tempfile.TemporaryDirectory()  # removed when the program ends
folder = Path(directory.name)
rows = [json.dumps({"id": str(number), "contents": text}) for number, text in enumerate(PASSAGES)]
(folder / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
build_index(folder / "corpus.jsonl", folder / "index")

service = create_app(Settings(index=folder / "index"))
app = FastAPI(lifespan=lambda _: service.router.lifespan_context(service))  # loads the index, and ends the service
app.mount("/retrieval", service)


@app.get("/ask")
async def ask(question: str) -> list[str]:
    """Return the titles of the best passages, asked of the mounted service without a socket."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://service") as client:
        found = await client.post("/search", json={"query": question, "top_n": 2})
    return [document["contents"].partition("\n")[0] for document in found.raise_for_status().json()]


if __name__ == "__main__":
    uvicorn.run(app, port=8000)
