"""The rules and the dashboard of deploy/ agree with the metrics that a server has."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import urllib.request

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from certificates import Authority
from deployment import DEPLOY, GRUVE, ROOT, ended, running
from gruve.client import Client, Tls
from requiring import need_program

RULES = yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())["groups"][0]["rules"]


def expressions() -> dict[str, str]:
    """Every expression of the rules and of the dashboard, by its place."""
    dashboard = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in RULES}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*").replace("$job", ".*")
            found[f"{panel['title']} {target['refId']}"] = expr
    return found


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> dict[str, set[str]]:
    """The metric names of a server with a store and TLS, and the labels of each."""
    folder = tmp_path_factory.mktemp("store")
    authority = Authority(folder)
    cert, key = authority.issue("server")
    command = [GRUVE, "serve", "--port", "0", "--metrics-port", "0", "--models", str(ROOT / "models")]
    command += ["--store", f"sqlite:{folder}/sessions.db", "--tls-cert", str(cert), "--tls-key", str(key)]
    with running(command) as server:
        serving = json.loads(server.stdout.readline())
        with Client(f"127.0.0.1:{serving['port']}", credentials=Tls(authority.ca)) as client:
            list(client.generate("O", model="tiny", new_session=True, max_tokens=70))
        context = ssl.create_default_context(cafile=authority.ca)
        url = f"https://127.0.0.1:{serving['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            text = answer.read().decode()
        ended(server, 30)
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        labels = {label for sample in family.samples for label in sample.labels}
        for ending in endings.get(family.type, ("",)):
            found[family.name + ending] = labels
    return found


@pytest.mark.parametrize("where", expressions())
def test_every_series_that_is_watched_is_one_that_the_server_has(where, scraped):
    known = scraped | {rule["record"]: {"model"} for rule in RULES if "record" in rule}
    expr = expressions()[where]
    named = re.findall(r"\b((?:gruve|grpc_server|process)[\w:]+)(?:\{([^}]*)\})?", expr)
    assert named
    for name, selected in named:
        assert name in known
        # A metric without series has no labels to compare.
        if known[name]:
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selected)) <= known[name] | {"job", "instance"}
    grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", expr) for label in by.split(",")}
    labels = set().union(*(known[name] for name, _ in named))
    assert not labels or grouped <= labels | {"le", "instance"}


def test_promtool_finds_nothing_to_say_and_every_alert_rings_when_it_should(tmp_path):
    promtool = need_program("promtool", "apt-get install prometheus")
    rules = [{"record": f"test:{i}", "expr": expr} for i, expr in enumerate(expressions().values())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    folder = DEPLOY / "prometheus"
    for command in (
        ["check", "rules", "rules.yaml", str(tmp_path / "panels.yaml")],
        ["test", "rules", "rules_test.yaml"],
    ):
        done = subprocess.run([promtool, *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_proved_and_documented():
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    tests = yaml.safe_load((DEPLOY / "prometheus/rules_test.yaml").read_text())["tests"]
    rung = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case.get("exp_alerts")}
    assert rung == alerts
    assert set(re.findall(r"^\| (Gruve\w+) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)) == alerts
