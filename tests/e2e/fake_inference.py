"""The inference routes of fake_vllm.py: OpenAI's shapes, a canned answer, and whatever a member "fake" of the request asks for.

{"fake": {"status": 418, "body": "...", "headers": {...}}}    that answer
{"fake": {"wait": true}}                                      nothing, or nothing after the first event, until POST /fake/go
{"fake": {"cut": true}}                                       the connection ends in the middle of the body

GET /fake/requests tells what was asked and how many clients left while they were waited for; POST /fake/close closes the door.
"""

import json
import select
import socket
import threading

ANSWER = "The Muddy Ditch, \u00b5."
SPECIAL = {"<|im_start|>": 601, "<|im_end|>": 602}  # of tests/golden/text/own


def event(body):
    return b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"


def chunk(delta):
    return {"id": "chatcmpl-streamed", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}


def events():
    """A stream, cut where no character and no event ends."""
    data = b"".join([event(chunk({"role": "assistant", "content": ""})), *(event(chunk({"content": c})) for c in ANSWER), event(b"[DONE]")])
    first = data.index(b"\n\n") + 2
    return [data[:first], *(data[i : i + 33] for i in range(first, len(data), 33))]


def tokenized(messages):
    """A token per byte between special ones, in a template that is not the directory's."""
    tokens = []
    for message in messages:
        tokens += [SPECIAL["<|im_start|>"], *message["role"].encode(), *message["content"].encode(), SPECIAL["<|im_end|>"]]
    return tokens


class Inference:
    """What is asked of it and by whom; one for a server, used by all its handlers."""

    def __init__(self):
        self.requests, self.left, self.go = [], 0, threading.Event()

    def post(self, handler, body):
        """Answers a POST to anything but /fake."""
        self.requests.append({"path": handler.path, "headers": dict(handler.headers), "body": body.decode()})
        request = json.loads(body)
        wish = request.get("fake", {})
        if "status" in wish:
            handler.reply(wish["body"].encode(), wish["status"], wish.get("headers", {}))
        elif request.get("stream"):
            self.stream(handler, wish)
        elif handler.path == "/tokenize":
            handler.reply({"count": 0, "tokens": tokenized(request["messages"])})
        elif self.wanted(handler, wish):
            message = {"role": "assistant", "content": ANSWER}
            handler.reply({"id": "chatcmpl-whole", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}, 200,
                          {"X-Request-Id": "r1", "X-Lathe-Version": "stale"}, cut=bool(wish.get("cut")))

    def stream(self, handler, wish):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number, piece in enumerate(events()):
            if number == 1 and not self.wanted(handler, wish):
                return
            if number == 1 and wish.get("cut"):
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")

    def wanted(self, handler, wish):
        """Waits if it is asked to; false if the client has left meanwhile."""
        while wish.get("wait") and not self.go.wait(0.02):
            if select.select([handler.connection], [], [], 0)[0] and not handler.connection.recv(1, socket.MSG_PEEK):
                self.left += 1
                handler.close_connection = True
                return False
        return True
