"""What tests/tests/api_contract.rs tells schemathesis beside the API's own description.

Generated names meet nothing that is there, so every second call of an operation is turned into one that does:
the names and bodies are in the file that ATOLL_KNOWN names. What was answered is counted into ATOLL_SEEN: by
operation, and then by status.
"""

import atexit
import collections
import itertools
import json
import os

import schemathesis

with open(os.environ["ATOLL_KNOWN"], encoding="utf-8") as file:
    KNOWN = json.load(file)

# It learns names from what it is answered; what it must not meet by them is what others need.
ALWAYS = {"DELETE /v1/apps/{app}", "DELETE /v1/nodes/{name}"}
CALLS = collections.defaultdict(itertools.count)
SEEN = collections.defaultdict(collections.Counter)


def good(case, turn):
    """Path parameters, query and body of a call that makes sense; the turn-th of its operation."""
    known = KNOWN.get(case.operation.label)
    if known is None:
        return
    # Several: one after the other, as an object can be removed once.
    known = known[turn % len(known)]
    case.path_parameters = known.get("path", {})
    case.query = known.get("query", {})
    if "json" in known:
        case.body, case.media_type = known["json"], "application/json"
    if "bytes" in known:
        case.body, case.media_type = known["bytes"].encode(), "application/octet-stream"


@schemathesis.hook
def before_call(context, case, kwargs):
    turn = next(CALLS[case.operation.label])
    if turn % 2 == 0 or case.operation.label in ALWAYS:
        good(case, turn // 2)
    # A stream of what is to come has no end, and costs its timeout: once is enough.
    if case.query and "follow" in case.query:
        case.query["follow"] = "false"
    if case.operation.label == "GET /v1/top" and turn > 0:
        case.query = {**(case.query or {}), "app": "nothing-has-it"}


@schemathesis.hook
def after_call(context, case, response):
    SEEN[case.operation.label][response.status_code] += 1


@schemathesis.deserializer("application/x-ndjson")
def json_lines(context, response):
    """Each line is one object; the description is of one."""
    lines = [json.loads(line) for line in response.content.splitlines()]
    return lines[0] if lines else {"seq": 0, "at_ms": 0, "org": "", "by": "", "token": "", "by_org": "", "role": "",
                                   "method": "", "path": "", "object": "", "status": 0, "request_id": "", "detail": ""}


@atexit.register
def write():
    with open(os.environ["ATOLL_SEEN"], "w", encoding="utf-8") as file:
        json.dump({label: dict(statuses) for label, statuses in SEEN.items()}, file)
