"""The page at `/`: its files, and the headers that keep them to themselves. `test_browser.py` uses it."""

from __future__ import annotations

import re

import pytest

from gruve.gateway.page import ABCJS_STYLE, FILES


@pytest.mark.parametrize(("path", "kind"), [("/", "html"), ("/page.css", "css"), ("/notation.js", "javascript")])
def test_a_file_comes_with_its_type_and_a_strict_policy(gateway, path, kind):
    response = gateway.http.get(path)
    assert response.status_code == 200
    assert kind in response.headers["content-type"]
    policy = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("style-src") == f"'self' {ABCJS_STYLE}"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_host_and_no_file_that_there_is_not(gateway):
    for path in sorted(FILES.keys() - {"/abcjs-basic-min.js"}):  # a browser's test holds that abcjs loads nothing
        text = gateway.http.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|\bstyle=|\bon\w+=\"", text), path
    named = re.findall(r"(?:href|src)=\"([^\"]+)\"", gateway.http.get("/").text)
    assert len(named) == 3
    assert [name for name in named if gateway.http.get(f"/{name}").status_code != 200] == []
