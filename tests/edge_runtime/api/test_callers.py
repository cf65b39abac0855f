"""Whom the API serves: by key, host name and origin."""

import pytest
from starlette.datastructures import URL
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

from edge_runtime.api.app import Api, ApiSettings
from edge_runtime.api.connector import Connector
from edge_runtime.api.live import LiveSpans
from edgespec.errors import LinkError

KEY = "a-key-of-nine-words"


def no_cloud():
    raise LinkError("there is no cloud")


def requests(**settings):
    """A client of an API without a cloud."""
    api = Api(Connector(no_cloud), ApiSettings(model="toy", **settings), LiveSpans())
    return TestClient(api.application())


@pytest.mark.parametrize("host", ["x/?", "x/health?", "a/health#", "@/health?", "x\\health?"])
def test_a_host_name_cannot_take_the_place_of_the_path(host, monkeypatch):
    """Starlette 1.0 makes the URL of the header `Host`, and `x/?` then hides the path."""
    made = property(lambda self: URL(f"http://{self.headers['host']}{self.scope['path']}"))
    monkeypatch.setattr(HTTPConnection, "url", made)
    with requests(api_key=KEY) as client:
        assert client.get("/v1/models", headers={"Host": host}).status_code == 400
        assert client.get("/", headers={"Host": host}).status_code == 400
        assert client.get("/v1/models", headers={"Host": "robot.example"}).status_code == 401


def test_the_key_is_asked_for_by_the_path_of_the_request(monkeypatch):
    monkeypatch.setattr(HTTPConnection, "url", property(lambda self: URL("http://x/")))
    with requests(api_key=KEY) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/").status_code == 200
        good = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/v1/models", headers=good).status_code == 200


ASKED = b'{"prompt": [5], "max_tokens": 3}'
JSON = {"Content-Type": "application/json"}
EVIL = {"Origin": "http://evil.example"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        # 503: served, but there is no cloud
        ({}, 503),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 503),  # curl -d
        (EVIL | {"Content-Type": "text/plain", "Sec-Fetch-Site": "cross-site"}, 403),
        (EVIL | JSON, 403),
        ({"Sec-Fetch-Site": "cross-site"} | JSON, 403),
        ({"Origin": "null"} | JSON, 403),
        ({"Origin": "http://127.0.0.1:9000", "Sec-Fetch-Site": "same-site"} | JSON, 403),
        ({"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"} | JSON, 503),
        ({"Origin": "http://127.0.0.1:8080", "Content-Type": "text/plain"}, 415),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "text/x; application/json"}, 415),
        ({"Sec-Fetch-Site": "none", "Content-Type": "application/json; charset=utf-8"}, 503),
        ({"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"} | JSON, 503),
    ],
)
def test_pages_of_other_sites_write_no_answers(headers, status):
    with requests(cors=("https://a.example",)) as client:
        for path in ("/v1/completions", "/v1/responses"):
            body = ASKED if path == "/v1/completions" else b'{"input": "Hello"}'
            reply = client.post(path, content=body, headers={"Host": "127.0.0.1:8080"} | headers)
            assert reply.status_code == status, reply.text


def test_a_link_leads_to_the_page_and_to_nothing_else():
    link = {"Sec-Fetch-Site": "cross-site", "Host": "localhost"}
    with requests() as client:
        assert client.get("/", headers=link).status_code == 200
        assert client.get("/v1/models", headers=link).status_code == 403
        assert client.get("/v1/edgespec/live", headers=link).status_code == 403
        assert client.get("/v1/models", headers=link | EVIL).status_code == 403
