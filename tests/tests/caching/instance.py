"""Answers each request with how often its path was asked for; the query, or a field X-Want of the same form, says how.

cc, cdn, ours: Cache-Control, CDN-Cache-Control, Atoll-CDN-Cache-Control; tag, key, xtags: Cache-Tag, Surrogate-Key, X-Tags; vary, etag, expires, date,
age, location, cloc, type: that field; status: another one than 200; wait: seconds; echo: the request's line and fields in the body; same: a body
without the count; hints: 103 before it; size: so many bytes of text; cookie: sets one; lm: Last-Modified; fail: 503 from the second time on; drip: so many
lines, one each 0.2 s; close: no length, the connection's end is the body's; chunks: no length, in chunks; breaks: half of what was promised, then the
connection ends; die: the same, and the whole process with it. GET /counts gives all counts as JSON, GET /forget forgets them.
"""
import collections
import http.server
import json
import os
import sys
import threading
import time
import urllib.parse

seen = collections.Counter()
lock = threading.Lock()
CHANGED = "Sun, 06 Nov 1994 08:49:37 GMT"
FIELDS = {
    "cc": "Cache-Control", "cdn": "CDN-Cache-Control", "ours": "Atoll-CDN-Cache-Control", "tag": "Cache-Tag",
    "key": "Surrogate-Key", "vary": "Vary", "etag": "ETag", "expires": "Expires", "date": "Date", "age": "Age",
    "location": "Location", "cloc": "Content-Location", "xtags": "X-Tags",
}


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


class Instance(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: the second is not to wait until the first is acknowledged.
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        want = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        want.update(urllib.parse.parse_qsl(self.headers.get("x-want", "")))
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if url.path == "/counts":
            return self.answer(200, json.dumps(seen).encode(), {"type": "application/json", "cc": "no-store"})
        if url.path == "/forget":
            with lock:
                seen.clear()
            return self.answer(200, b"", {"cc": "no-store"})
        with lock:
            seen[url.path] += 1
            count = seen[url.path]
        time.sleep(float(want.get("wait", 0)))
        if "fail" in want and count > 1:
            return self.answer(503, b"failing\n", {})
        if "etag" in want and self.headers.get("if-none-match") == want["etag"]:
            return self.answer(304, None, want)
        if "lm" in want and self.headers.get("if-modified-since") == CHANGED:
            return self.answer(304, None, want)
        body = "" if "same" in want else f"{count}\n"
        if "echo" in want:
            body += f"{self.requestline}\n"
            body += "".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items())
        if "size" in want:
            line = f"line of {url.path}, which is repeated and so can be compressed\n"
            body = (body + line * (int(want["size"]) // len(line) + 1))[: int(want["size"])]
        self.answer(int(want.get("status", 200)), body.encode(), want)

    def answer(self, status, body, want):
        if "hints" in want:
            self.send_response_only(103)
            self.send_header("Link", "</style.css>; rel=preload")
            self.end_headers()
            time.sleep(float(want["hints"]))
        self.send_response_only(status)
        if "date" not in want:
            self.send_header("Date", self.date_time_string())
        for name in FIELDS:
            if name in want:
                self.send_header(FIELDS[name], want[name])
        if "cookie" in want:
            self.send_header("Set-Cookie", "a=b")
        if "lm" in want:
            self.send_header("Last-Modified", CHANGED)
        breaks = "breaks" in want or "die" in want
        if body is not None:
            self.send_header("Content-Type", want.get("type", "text/plain"))
            if "chunks" in want:
                self.send_header("Transfer-Encoding", "chunked")
                body = f"{len(body):x}\r\n".encode() + body + b"\r\n" + (b"" if breaks else b"0\r\n\r\n")
            elif "close" in want:
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                lines = int(want.get("drip", 0))
                self.send_header("Content-Length", str(len(body) * (2 if breaks else 1) + lines * len("line\n")))
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(body)
            for _ in range(int(want.get("drip", 0))):
                time.sleep(0.2)
                self.wfile.write(b"line\n")
        if breaks:
            self.wfile.flush()
            self.close_connection = True
        if "die" in want:
            os._exit(1)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_GET

    def log_message(self, *_):
        pass


Server(("127.0.0.1", int(sys.argv[1])), Instance).serve_forever()
