"""Answers each GET with how often its path was asked for; the query says how.

cc: Cache-Control; tag: Cache-Tag; wait: seconds; echo: the request's fields in the body; cookie: sets one; lm: Last-Modified;
breaks: half of what was promised.
"""
import collections
import http.server
import sys
import threading
import time
import urllib.parse

seen = collections.Counter()
lock = threading.Lock()


class Instance(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.rfile.read(int(self.headers.get("content-length", 0)))
        with lock:
            seen[url.path] += 1
            body = f"{seen[url.path]}\n"
        time.sleep(float(query.get("wait", 0)))
        if "echo" in query:
            body += "".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items())
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body) * (2 if "breaks" in query else 1)))
        if "cc" in query:
            self.send_header("Cache-Control", query["cc"])
        if "tag" in query:
            self.send_header("Cache-Tag", query["tag"])
        if "cookie" in query:
            self.send_header("Set-Cookie", "a=b")
        if "lm" in query:
            self.send_header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
        self.end_headers()
        self.wfile.write(body.encode())
        if "breaks" in query:
            self.wfile.flush()
            self.close_connection = True

    do_POST = do_GET

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Instance).serve_forever()
