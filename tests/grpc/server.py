"""Calls of all four kinds, over bytes as they come: no code is generated."""
import os
import threading
from concurrent import futures

import grpc


def unary(request, context):
    said = dict(context.invocation_metadata())
    context.set_trailing_metadata((("x-heard", said.get("x-said", "")),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you asked")
    return request + b"!"


def down(request, context):
    for n in range(int(request)):
        yield b"%d" % n


def up(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def both(requests, context):
    for request in requests:
        yield request[::-1]


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Down": grpc.unary_stream_rpc_method_handler(down),
    "Up": grpc.stream_unary_rpc_method_handler(up),
    "Both": grpc.stream_stream_rpc_method_handler(both),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.Kinds", handlers),))
server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
server.start()
threading.Event().wait()
