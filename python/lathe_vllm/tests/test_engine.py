"""vLLM's development routes, as a session outside vLLM uses them."""

import asyncio
import http.server
import json
import threading

import pytest
from lathe_vllm.engine import InProcess, OverHttp


@pytest.fixture
def server():
    """A server that answers what `replies` say, and its log of what was asked."""
    asked, replies = [], {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.path, json.loads(body) if body else None))
            status, reply = replies.get(self.path, (200, {}))
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}", asked, replies
    listening.shutdown()


def test_an_update_over_http(server):
    url, asked, replies = server
    replies["/collective_rpc"] = (200, {"results": [True]})
    engine = OverHttp(url)

    async def update():
        await engine.pause()
        await engine.tag("7")
        await engine.resume()

    asyncio.run(update())
    assert asked == [
        ("/pause?mode=keep&clear_cache=true", None),
        ("/collective_rpc", {"method": "lathe_fence", "args": []}),
        ("/update_weight_version", {"new_version": "7"}),
        ("/reset_prefix_cache?reset_running_requests=true", None),
        ("/resume", None),
    ]


def test_a_cache_that_was_not_reset_is_an_error(server):
    url, asked, replies = server
    replies["/reset_prefix_cache?reset_running_requests=true"] = (200, {"success": False})
    with pytest.raises(RuntimeError, match="prefix cache"):
        asyncio.run(OverHttp(url).resume())
    assert "/resume" not in [path for path, _ in asked]


def test_a_server_without_the_routes_is_named(server):
    url, _, replies = server
    replies["/collective_rpc"] = (404, {"detail": "Not Found"})
    with pytest.raises(RuntimeError, match="VLLM_SERVER_DEV_MODE=1"):
        asyncio.run(OverHttp(url).call("lathe_manifest"))


def test_a_version_without_tags_is_no_error(server):
    url, _, replies = server
    replies["/update_weight_version"] = (404, {})
    asyncio.run(OverHttp(url).tag("1"))


def test_in_process_keeps_requests_and_clears_caches():
    asked = []

    class Client:
        async def pause_generation(self, **options):
            asked.append(options)

        async def resume_generation(self):
            asked.append("resume")

        async def collective_rpc(self, method, args):
            asked.append((method, args))
            return [True]

    async def update():
        engine = InProcess(Client())
        await engine.pause()
        await engine.tag("1")  # this client keeps none
        await engine.resume()

    asyncio.run(update())
    assert asked == [{"mode": "keep", "clear_cache": True}, ("lathe_fence", ()), "resume"]
