"""The texts of the nodes' agents become one page under our own names. (With Ray: tests/live/test_prometheus.py.)"""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from services.adapters.ray_recorder import select_streamchat

ONE_NODE = """\
# HELP ray_node_mem_used Memory
# TYPE ray_node_mem_used gauge
ray_node_mem_used{NodeAddress="10.0.0.1"} 5.0
# HELP ray_streamchat_requests_total Questions
# TYPE ray_streamchat_requests_total counter
ray_streamchat_requests_total{replica="a"} 3.0
# HELP ray_streamchat_step_seconds One step
# TYPE ray_streamchat_step_seconds histogram
ray_streamchat_step_seconds_bucket{le="0.1",replica="a"} 2.0
ray_streamchat_step_seconds_bucket{le="+Inf",replica="a"} 3.0
ray_streamchat_step_seconds_count{replica="a"} 3.0
ray_streamchat_step_seconds_sum{replica="a"} 0.3
# HELP ray_streamchat_dialogs_running Dialogs
# TYPE ray_streamchat_dialogs_running gauge
ray_streamchat_dialogs_running{camera="a {strange} ray_streamchat_ one",replica="a"} 1.0
"""


def test_nodes_become_one_page() -> None:
    page = select_streamchat([ONE_NODE, ONE_NODE.replace('replica="a"', 'replica="b"')])
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert set(families) == {"streamchat_requests", "streamchat_step_seconds", "streamchat_dialogs_running"}
    assert [family.type for family in families.values()] == ["counter", "histogram", "gauge"]
    assert sum(sample.value for sample in families["streamchat_requests"].samples) == 6
    assert len(families["streamchat_step_seconds"].samples) == 8
    labels = [sample.labels for sample in families["streamchat_dialogs_running"].samples]
    assert [each["replica"] for each in labels] == ["a", "b"]
    assert labels[0]["camera"] == "a {strange} ray_streamchat_ one"
    assert page.count("# TYPE streamchat_requests_total") == 1


def test_nothing_is_nothing() -> None:
    assert select_streamchat([]) == ""
