"""Who is answered: our own page with its token, reached by a name of ours."""

import asyncio
import http.client
from contextlib import closing
from typing import Any

import httpx
import pytest
from serve.site import EIFFEL, TOKEN, Site

from lensbridge.model import LensModel
from lensbridge.serve import make_app
from lensbridge.serve.guard import POLICY

QUESTION = {"prompt": EIFFEL}


def posted(site: Site, **headers: str | None) -> httpx.Response:
    """A question with other headers than the page's; None leaves one out."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {**site.headers(), **named}
    kept = {name: value for name, value in sent.items() if value is not None}
    return httpx.post(f"{site.url}/api/predictions", json=QUESTION, headers=kept)


def test_our_own_page_is_answered(site: Site) -> None:
    assert posted(site, Origin=site.url, Sec_Fetch_Site="same-origin").status_code == 200
    assert posted(site).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": None},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_others_are_not_answered(site: Site, headers: Any) -> None:
    response = posted(site, **headers)
    assert response.status_code == 403
    assert "rows" not in response.text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""]
)
@pytest.mark.parametrize("path", ["/", f"/?token={TOKEN}", "/api/model", "/static/main.js"])
def test_a_name_that_is_not_ours_is_refused(site: Site, host: str, path: str) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", site.port)) as connection:
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", host)
        connection.putheader("Authorization", f"Bearer {TOKEN}")
        connection.endheaders()
        assert connection.getresponse().status in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "192.168.1.5"])
def test_names_that_are_ours(site: Site, host: str) -> None:
    response = httpx.get(f"{site.url}/api/model", headers=site.headers(Host=f"{host}:9000"))
    assert response.status_code == 200


def test_the_page_needs_the_token_and_says_so(site: Site) -> None:
    assert httpx.get(site.url, params={"token": TOKEN}).status_code == 200
    for params in ({}, {"token": "wrong"}, {"token": TOKEN[:-1]}):
        response = httpx.get(site.url, params=params)
        assert response.status_code == 403
        assert "?token=" in response.text
        assert TOKEN not in response.text


def test_a_form_of_another_page_cannot_ask(site: Site) -> None:
    """A form sends these kinds of content without asking the server first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert posted(site, Content_Type=kind).status_code == 415


def test_no_other_page_may_read_answers(site: Site) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET"):
        response = httpx.request(method, f"{site.url}/api/model", headers=asked)
        assert response.status_code == 403
        assert not [name for name in response.headers if "access-control" in name]


@pytest.mark.parametrize("path", [f"/?token={TOKEN}", "/api/model", "/static/main.js", "/nothing"])
def test_every_response_has_the_policy(site: Site, path: str) -> None:
    headers = httpx.get(f"{site.url}{path}", headers=site.headers()).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


def test_files_outside_the_page_are_not_served(site: Site) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
        response = httpx.get(f"{site.url}{path}", headers=site.headers())
        assert "import" not in response.text


def test_there_is_no_description_of_the_interface(site: Site) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert httpx.get(f"{site.url}{path}", params={"token": TOKEN}).status_code == 404


def test_without_a_token_none_is_asked_for(model: LensModel) -> None:
    transport = httpx.ASGITransport(make_app(model))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/api/predictions", json=QUESTION)

    assert asyncio.run(ask()).status_code == 200
