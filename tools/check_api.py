"""Sends the service what its OpenAPI description allows and forbids, and checks the answers.

    pip install 'vqvae2_fast[serve]' schemathesis
    python tools/check_api.py --examples 2000 --seed 3

schemathesis makes requests for each operation from /openapi.json, right and wrong ones. No answer
may be a failure of the server; status, type and form have to be described; wrong requests have to
be refused; and an error has to name the field, what was expected and the remedy. The service is one
of small random models, on loopback.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.models import tiny_pipeline  # noqa: E402
from helpers.server import served  # noqa: E402

CHECKS = (
    not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100, help="of each operation and mode")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    with served(tiny_pipeline()) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for result in schema.get_all_operations():
            operation = result.ok()
            for mode in schemathesis.GenerationMode:
                failed += not check(operation, mode, options.examples, options.seed)
    print(f"{failed} operations failed")
    return 1 if failed else 0


def check(operation: object, mode: object, examples: int, seed: int) -> bool:
    statuses: Counter[int] = Counter()

    @hypothesis_seed(seed)
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def every(case: object) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400 and case.path.startswith("/v1"):
            error = response.json()["error"]
            assert error["expected"] and error["remedy"], response.text

    begun = time.monotonic()
    try:
        every()
    except Unsatisfiable:  # nothing is wrong for an operation without parameters
        return True
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a group of schemathesis's failures is no Exception
        print(f"{operation.label}, {mode.value}: {error}")
        return False
    finally:
        told = ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items()))
        print(f"{operation.label}, {mode.value}: {told}, {time.monotonic() - begun:.0f} s")
    return True


if __name__ == "__main__":
    sys.exit(main())
