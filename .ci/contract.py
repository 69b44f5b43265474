"""The contract of the REST service: what schemathesis checks beside its own checks.

    SCHEMATHESIS_HOOKS=contract schemathesis run http://127.0.0.1:PORT/openapi.json

Server errors are told apart: 501 says that the cluster lacks something, 502 and 504 that it failed or was too
slow, and each of them comes as problem+json with a code; 500 and 503 are ours and are failures.
"""

import schemathesis


@schemathesis.check
def every_refusal_is_a_problem(ctx, response, case):
    status = response.status_code
    if status < 400:
        return None
    assert status not in (500, 503), f"{status} {response.text}"
    kind = response.headers.get("content-type", [""])
    kind = kind[0] if isinstance(kind, list) else kind
    if status == 405:
        return None
    assert kind.startswith("application/problem+json"), f"{status} comes as {kind!r}"
    problem = response.json()
    for part in ("type", "code", "title", "status", "detail", "remedy"):
        assert problem.get(part), f"{part} is missing in {problem}"
    assert problem["status"] == status, problem
    return None
