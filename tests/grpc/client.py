"""Makes calls of all four kinds at the address that the variable named first holds."""
import os
import queue
import sys
from urllib.parse import urlparse

import grpc

channel = grpc.insecure_channel(urlparse(os.environ[sys.argv[1]]).netloc)
grpc.channel_ready_future(channel).result(timeout=20)


def name(method):
    return "/test.v1.Kinds/" + method


unary = channel.unary_unary(name("Unary"))
answer, call = unary.with_call(b"hello", metadata=(("x-said", "seven"),), timeout=20)
assert answer == b"hello!", answer
assert dict(call.trailing_metadata())["x-heard"] == "seven", call.trailing_metadata()
try:
    unary(b"fail", timeout=20)
    raise SystemExit("it did not fail")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "as you asked", error
assert [int(n) for n in channel.unary_stream(name("Down"))(b"500", timeout=20)] == list(range(500))
pieces = [b"x" * 100_000] * 50
assert channel.stream_unary(name("Up"))(iter(pieces), timeout=20) == b"5000000"
# Each answer before the next question: nothing is held back on the way.
questions = queue.Queue()
answers = channel.stream_stream(name("Both"))(iter(questions.get, None), timeout=20)
for word in (b"one", b"two", b"three"):
    questions.put(word)
    assert next(answers) == word[::-1]
questions.put(None)
assert list(answers) == []
try:
    channel.unary_unary("/test.v1.Kinds/Secret")(b"", timeout=20)
    raise SystemExit("it did not fail")
except grpc.RpcError as error:
    print("all four; else:", error.code().name)
