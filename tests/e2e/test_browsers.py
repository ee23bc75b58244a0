"""What web pages may do to a running server: nothing, unless they were allowed by name. And a real browser as the judge."""

import contextlib
import http.client
import http.server
import json
import os
import shutil
import subprocess
import threading

import pytest
from conftest import Server

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
LESSON = json.dumps({"messages": TURNS, "steps": 1}).encode()
PAGE = "https://page.example"
POSTS = ["/v1/learn", "/v1/sync", "/v1/rollback", "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]
GETS = ["/v1/learn", "/v1/learn/learn-x", "/v1/versions", "/v1/chat/completions", "/v1/chat/completions/x", "/v1/models", "/healthz"]


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    with contextlib.closing(Server(shutil.copytree(tiny_model, tmp_path_factory.mktemp("pages") / "tiny"))) as running:
        yield running


def ask(server, method, path, body=None, **headers):
    """-> (status, headers, text), with exactly these headers beside Content-Length."""
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": address, **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read().decode()


def health(server):
    return json.loads(ask(server, "GET", "/healthz")[2])


@pytest.mark.parametrize("path", POSTS)
def test_what_a_page_may_post_without_asking_is_refused(server, path):
    before = health(server)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert ask(server, "POST", path, LESSON, Content_Type=kind)[0] == 415, kind
    assert ask(server, "POST", path)[0] == 415
    assert ask(server, "POST", path, b"")[0] == 415
    for foreign in ({"Origin": PAGE}, {"Origin": "null"}, {"Host": "evil.example"}, {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
                    {"Sec-Fetch-Site": "cross-site"}):
        status, headers, text = ask(server, "POST", path, LESSON, Content_Type="application/json", **foreign)
        assert status == 403 and "access-control-allow-origin" not in headers, (foreign, text)
    assert health(server)["version"] == before["version"] == 0
    assert json.loads(ask(server, "GET", "/v1/learn")[2])["data"] == []


@pytest.mark.parametrize("path", GETS)
def test_what_a_page_may_read_is_nothing(server, path):
    for foreign in ({"Origin": PAGE}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}):
        status, headers, text = ask(server, "GET", path, **foreign)
        assert status == 403 and "access-control-allow-origin" not in headers
        assert set(json.loads(text)) == {"error"}
    assert ask(server, "OPTIONS", path, Origin=PAGE, Access_Control_Request_Method="POST")[0] == 403


def test_attached_routes_are_guarded_too(hold, attach):
    attached = attach(hold(), "--proxy", "--tokens", "server", over_http=True)
    for path in POSTS:
        assert ask(attached, "POST", path, LESSON, Content_Type="text/plain")[0] == 415, path
        assert ask(attached, "POST", path, LESSON, Content_Type="application/json", Origin=PAGE)[0] == 403, path
        assert ask(attached, "POST", path, LESSON, Content_Type="application/json", Host="evil.example")[0] == 403, path
    assert health(attached)["version"] == 0


def test_a_page_that_is_allowed(tiny, serve):
    server = serve(tiny, "--api-key", "k", "--allow-origin", PAGE)
    status, headers, _ = ask(server, "OPTIONS", "/v1/learn", Origin=PAGE, Access_Control_Request_Method="POST",
                             Access_Control_Request_Headers="authorization,content-type")
    assert status == 204 and headers["access-control-allow-origin"] == PAGE
    status, headers, _ = ask(server, "POST", "/v1/learn", LESSON, Content_Type="application/json", Origin=PAGE, Authorization="Bearer k")
    assert status == 200 and headers["access-control-allow-origin"] == PAGE
    assert ask(server, "GET", "/v1/models", Origin=PAGE)[0] == 401


def test_further_names(tiny, serve):
    server = serve(tiny, "--allow-host", "lathe.example")
    assert ask(server, "GET", "/healthz", Host="lathe.example")[0] == 200
    assert ask(server, "GET", "/healthz", Host="other.example")[0] == 403


# ---- a real browser

ATTACK = """<!doctype html><pre id=seen>waiting</pre><img src="LATHE/v1/versions"><script>
const lesson = LESSON, seen = {};
const tries = {
  simple: () => fetch("LATHE/v1/learn", {method: "POST", mode: "no-cors", body: lesson}),
  bodyless: () => fetch("LATHE/v1/sync", {method: "POST", mode: "no-cors"}),
  json: () => fetch("LATHE/v1/learn", {method: "POST", headers: {"Content-Type": "application/json"}, body: lesson}),
  read: () => fetch("LATHE/v1/learn"),
  beacon: async () => navigator.sendBeacon("LATHE/v1/learn", lesson),
  smuggle: () => fetch("LATHE/v1/learn", {method: "POST", mode: "no-cors", body: SMUGGLED}),
};
(async () => {
  for (const [name, attempt] of Object.entries(tries)) {
    try {
      const reply = await attempt();
      seen[name] = reply.type ? `${reply.type} ${reply.status} ${(await reply.text()).slice(0, 40)}` : "sent";
    } catch (error) { seen[name] = "error"; }
  }
  document.getElementById("seen").textContent = JSON.stringify(seen);
})();
</script>"""


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no chromium here; apt-get install chromium")
    return found


class Pages:
    """A web server of a foreign site: another port is another origin."""

    def __init__(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(outer.page.encode())

            def log_message(self, *_):
                pass

        self.page = ""
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def visit(chromium, url, tmp_path, *options):
    """What the page wrote into its element `seen`."""
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=20000", "--dump-dom", *options, url]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)})
    assert run.returncode == 0, run.stderr[-2000:]
    text = run.stdout.split('id="seen">', 1)[1].split("</pre>", 1)[0]
    return json.loads(text.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def attack_page(lathe):
    host = lathe.removeprefix("http://")
    inner = f"POST /v1/learn HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(LESSON)}\r\n\r\n{LESSON.decode()}"
    # The server reads in pieces of a size that the page does not know: the inner request stands at every place where one may end.
    smuggled = json.dumps(inner + "\r\n" * 2) + ".repeat(400)"
    return ATTACK.replace("LATHE", lathe).replace("LESSON", json.dumps(LESSON.decode())).replace("SMUGGLED", smuggled)


def test_a_foreign_page_in_a_browser(chromium, server, tmp_path):
    with contextlib.closing(Pages()) as pages:
        pages.page = attack_page(server.url)
        seen = visit(chromium, pages.origin, tmp_path)
    assert seen["json"] == seen["read"] == "error", seen
    assert health(server)["version"] == 0
    assert json.loads(ask(server, "GET", "/v1/learn")[2])["data"] == []


def test_rebinding_in_a_browser(chromium, server, tmp_path):
    """A page of evil.example, whose name then means this machine: to the browser it is the server's own page."""
    port = server.url.rsplit(":", 1)[1]
    with contextlib.closing(Pages()) as pages:
        pages.page = attack_page(f"http://evil.example:{port}")
        other = pages.origin.rsplit(":", 1)[1]
        seen = visit(chromium, f"http://evil.example:{other}", tmp_path, "--host-resolver-rules=MAP evil.example 127.0.0.1")
    assert seen["json"] == seen["read"] == "error", seen
    assert health(server)["version"] == 0


def test_an_allowed_page_in_a_browser(chromium, serve, tiny, tmp_path):
    with contextlib.closing(Pages()) as pages:
        server = serve(tiny, "--allow-origin", pages.origin)
        pages.page = attack_page(server.url)
        seen = visit(chromium, pages.origin, tmp_path)
    assert seen["json"].startswith("cors 200"), seen
    assert seen["read"].startswith("cors 200"), seen
    assert health(server)["version"] == 1, "the one lesson that came as JSON"
