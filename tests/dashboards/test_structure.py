"""The dashboards and provisioning files are ones that Grafana can load and a person can read."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))
PLUGIN = "grafana-clickhouse-datasource"


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return content


def test_there_are_two() -> None:
    assert [path.stem for path in FILES] == ["agents", "traces"]


def test_identity(dashboard: dict[str, Any]) -> None:
    assert dashboard["uid"].startswith("spanloop-")
    assert dashboard["id"] is None, "an id belongs to one Grafana; an import must get its own"
    assert dashboard["schemaVersion"] >= 39  # Grafana 11; newer ones migrate it on load
    assert dashboard["description"]


def test_panel_ids_are_unique(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_do_not_overlap_and_fit_the_grid(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] >= 0
        assert grid["w"] > 0
        assert grid["h"] > 0
        assert grid["x"] + grid["w"] <= 24, panel["title"]
    for one, other in itertools.combinations(dashboard["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


def test_every_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["targets"], panel["title"]
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_everything_reads_the_chosen_data_source(dashboard: dict[str, Any]) -> None:
    variables = dashboard["templating"]["list"]
    assert variables[0]["type"] == "datasource"
    assert variables[0]["query"] == PLUGIN
    wanted = {"type": PLUGIN, "uid": "${" + variables[0]["name"] + "}"}
    for panel in dashboard["panels"]:
        assert panel["datasource"] == wanted, panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == wanted, panel["title"]
            assert target["editorType"] == "sql"
    for variable in variables:
        if variable["type"] == "query":
            assert variable["datasource"] == wanted, variable["name"]


def test_variables_are_used_and_explained(dashboard: dict[str, Any]) -> None:
    variables = dashboard["templating"]["list"]
    names = [variable["name"] for variable in variables]
    assert len(names) == len(set(names))
    panels = json.dumps([panel["targets"] for panel in dashboard["panels"]])
    for variable in variables:
        assert variable["label"]
        assert variable["description"]
        assert re.search(rf"\$\{{?{variable['name']}\b", panels), variable["name"]


def test_links_lead_to_dashboards_and_variables_that_exist() -> None:
    loaded = {d["uid"]: d for d in (json.loads(path.read_text(encoding="utf-8")) for path in FILES)}
    found = 0
    for dashboard in loaded.values():
        for url in re.findall(r'"url": "(/d/[^"]+)"', json.dumps(dashboard)):
            found += 1
            uid = re.match(r"/d/([\w-]+)", url)
            assert uid is not None
            target = loaded[uid[1]]
            theirs = {variable["name"] for variable in target["templating"]["list"]}
            assert set(re.findall(r"var-(\w+)=", url)) <= theirs, url
            ours = {variable["name"] for variable in dashboard["templating"]["list"]}
            assert set(re.findall(r"\$\{(\w+):queryparam\}", url)) <= ours & theirs, url
    assert found >= 4


def test_provisioning_names_the_endpoint_and_holds_no_secret() -> None:
    folder = FOLDER / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "spanloop.yaml").read_text(encoding="utf-8"))
    (source,) = sources["datasources"]
    assert source["type"] == PLUGIN
    assert source["jsonData"]["protocol"] == "http"
    assert (source["jsonData"]["host"], source["jsonData"]["port"]) == ("127.0.0.1", 8123)
    assert source["jsonData"]["defaultDatabase"]
    assert re.fullmatch(r"\$\{?SPANLOOP_\w+\}?", source["secureJsonData"]["password"])
    provider = yaml.safe_load((folder / "dashboards" / "spanloop.yaml").read_text(encoding="utf-8"))
    (entry,) = provider["providers"]
    assert entry["type"] == "file"
    assert entry["options"]["path"]
