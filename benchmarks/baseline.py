"""What ReSearch's server does, written for the comparison: FastAPI, one blocking search per request in an `async def`.

python baseline.py INDEX RETRIEVER PORT
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from rag_serving.retrievers import load_index


class Query(BaseModel):
    """As ReSearch's."""

    query: str
    top_n: int = 10
    return_score: bool = False


class Document(BaseModel):
    """As ReSearch's."""

    id: str
    contents: str


app = FastAPI()
engine = load_index(sys.argv[1], retriever=sys.argv[2], verify="never")
engine.warm_up()


@app.get("/health")
async def health() -> dict:
    """Answer once the index is loaded."""
    return {"status": "healthy"}


@app.post("/search", response_model=list[Document])
async def search(body: Query):
    """Block the event loop, on purpose."""
    return [Document(id=hit.id, contents=hit.contents) for hit in engine.search([body.query], body.top_n)[0]]


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[3]), log_level="warning", access_log=False)
