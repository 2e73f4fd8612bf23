"""schemathesis on the OpenAPI document: whatever is sent to a real server is answered as documented, and never with a 500."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from rag_serving.retrievers import DummyRetriever
from tests.servers import app_over, in_thread
from tests.unit.test_lookup import PASSAGES, write

RETRIEVER = DummyRetriever([("1", "Rome\nRome is in Italy."), ("2", "Paris\n\x00 € 😀")])
schema = schemathesis.openapi.from_dict(app_over(RETRIEVER).openapi())


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    corpus = write(tmp_path_factory.mktemp("corpus"), PASSAGES)
    with in_thread(RETRIEVER, corpus=corpus, max_body_bytes=100_000) as address:
        yield address


@schema.parametrize()
@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_whatever_is_sent_is_answered_as_documented(case, url):
    response = case.call(base_url=url)
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    case.validate_response(response, checks=checks)
