"""The bench of the HTTP server, with few answers, and what its fuzz would find."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

from click.testing import CliRunner

from bench.serve.fuzz import _request, fuzz
from bench.serve.server import Server
from cli.main import main


def test_all_parts_with_few_answers():
    counts = ["--turns", "2", "--tokens", "12", "--streams", "6", "--requests", "20"]
    done = CliRunner().invoke(main, ["bench", "serve", *counts, "--fuzz", "120", "--json"])
    assert done.exit_code == 0, done.output
    *shown, last = done.stdout.splitlines()
    figures = json.loads(last)
    assert any("the server adds" in line for line in shown)
    both = figures["beside"]
    assert both["client"]["first_token_ms"] > 0 < both["server"]["token_ms"]
    assert figures["together"]["identical"] and figures["together"]["streams"] == 6
    assert figures["memory"]["before_mb"] > 20
    bad = figures["fuzz"]
    assert sum(bad["statuses"].values()) == bad["requests"] == 120 and not bad["failures"]
    assert bad["statuses"]["400"] > 50


class _Faulty(BaseHTTPRequestHandler):
    """Answers everything with a traceback's status, or with no sentence."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status = 500 if self.path.endswith("responses") else 400
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def do_DELETE(self):
        self.do_POST()

    def log_message(self, *about):
        pass


def test_the_fuzz_finds_a_server_that_fails():
    faulty = ThreadingHTTPServer(("127.0.0.1", 0), _Faulty)
    threading.Thread(target=faulty.serve_forever, daemon=True).start()
    found = fuzz(Server(f"http://127.0.0.1:{faulty.server_port}", 0, ["Traceback (…)"]), 40, 1)
    faulty.shutdown()
    faulty.server_close()
    assert any("status 500" in failure for failure in found.failures)
    assert any("without a sentence" in failure for failure in found.failures)
    assert found.failures[-1] == "the server's log has a traceback"


def test_the_same_seed_draws_the_same_requests():
    drawn = [[_request(Random(f"{seed} {n}")) for n in range(50)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
