"""Every operation of the OpenAPI document, with what it allows and what it does not, against the running server."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import Served

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


def fuzz(served: Served, examples: int) -> int:
    described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [found.ok() for found in described.get_all_operations()]
    for operation in operations:

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def call(case: schemathesis.Case) -> None:
            # 503 is an answer of its own: while a test before this one restarted a part
            answer = case.call(headers={"Authorization": f"Bearer {served.token}"}, timeout=60)
            if answer.status_code != 503:
                case.validate_response(answer, checks=CHECKS)

        call()
    return len(operations)


def test_every_operation_answers_as_documented(served: Served) -> None:
    assert fuzz(served, examples=2) > 12


@pytest.mark.slow
def test_every_operation_answers_as_documented_a_hundred_times(served: Served) -> None:
    assert fuzz(served, examples=100) > 12
