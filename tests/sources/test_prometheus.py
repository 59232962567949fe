"""A metrics endpoint: the text format, counters, resets, SGLang's ranks, hostile servers."""

import base64
import http.server
import math
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from microscope_tui.sources import (
    Keys,
    PrometheusReader,
    Rows,
    Types,
    Unreadable,
    exposition,
    http_poll,
    is_address,
    rules_of,
    samples,
    shown,
)
from tests.sources.tables import COUNTS, run_of, values

OWN = (r"tokens_per_expert=moe_tokens_total/layer=(?P<layer>\d+)/expert=(?P<expert>\d+)",)


class Server(http.server.ThreadingHTTPServer):
    """Answers each request with the next of ``answers``, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[str] = []
        self.status = 200
        self.headers: list[tuple[str, str]] = []
        self.seen: list[tuple[str, str | None]] = []
        self.slowly = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/metrics"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, self.headers.get("Authorization")))
        body = (server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]).encode()
        self.send_response(server.status)
        for name, value in server.headers:
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            if server.slowly:
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def polled(reader: PrometheusReader, times: int) -> list[Rows]:
    """The results of so many polls."""
    found: list[Rows] = []
    end = time.monotonic() + 10
    while len(found) < times and time.monotonic() < end:
        before = reader.offset
        rows = reader.read()
        if reader.offset != before:
            found.append(rows)
        time.sleep(min(0.005, reader.wait_s()))
    assert len(found) == times
    return found


def counters(total: list[list[int]]) -> str:
    lines = [
        f'moe_tokens_total{{expert="{expert}",layer="{layer}"}} {count}'
        for layer, row in enumerate(total)
        for expert, count in enumerate(row)
    ]
    return "# TYPE moe_tokens_total counter\n" + "\n".join(lines) + "\n"


def summed(*steps: list[list[int]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*steps, strict=True)]


def ranks(layer: int, *counts: int) -> str:
    """A histogram of SGLang: the buckets are GPU ranks, each with all ranks up to it."""
    name = "sglang:eplb_gpu_physical_count"
    lines = [f"# TYPE {name} histogram"]
    for rank in range(len(counts)):
        lines.append(f'{name}_bucket{{layer="{layer}",le="{rank}.0"}} {sum(counts[: rank + 1])}')
    lines.append(f'{name}_bucket{{layer="{layer}",le="+Inf"}} {sum(counts)}')
    lines.append(f'{name}_sum{{layer="{layer}"}} 0')
    return "\n".join(lines) + "\n"


def test_increments_of_counters_are_the_counts_of_a_step(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [
        counters(summed(COUNTS[0], *COUNTS[: step + 1])) for step in range(-1, len(COUNTS))
    ]
    found = polled(PrometheusReader(server.address, Keys(rules_of(OWN)), every=0.01), 4)
    assert not found[0].rows  # what was counted before belongs to no step
    for step, counts in enumerate(COUNTS):
        (row,) = found[step + 1].rows
        assert row.step == step + 2
        assert [value for _, value in row.values] == [n for r in counts for n in r]


def test_it_becomes_a_run_after_two_polls(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [counters(COUNTS[0]), counters(summed(COUNTS[0], COUNTS[1]))]
    reader = PrometheusReader(server.address, Keys(rules_of(OWN)), every=0.05)
    assert not reader.read().rows
    assert not reader.exhausted
    run, steps = run_of(reader, monkeypatch, top_k=2)
    assert run.run == server.address
    assert [steps[0].counts(layer) for layer in (0, 1)] == COUNTS[1]


def test_a_counter_that_went_down_restarts_the_run(server: Server) -> None:
    server.answers = [
        counters([[5, 5]]),
        counters([[7, 6]]),
        counters([[1, 2]]),
        counters([[2, 4]]),
    ]
    found = polled(PrometheusReader(server.address, Keys(rules_of(OWN)), every=0.01), 4)
    assert [rows.restarted for rows in found] == [False, False, True, False]
    assert [[(row.step, [v for _, v in row.values]) for row in rows.rows] for rows in found] == [
        [],
        [(2, [2.0, 1.0])],
        [],
        [(2, [1.0, 2.0])],
    ]


def test_gauges_are_taken_as_they_are_and_engines_are_added(server: Server) -> None:
    server.answers = [
        'load{layer="1"} 1.5\nt{layer="1",expert="0",engine="a"} 2\n'
        't{layer="1",expert="0",engine="b"} 3\n'
    ]
    own = rules_of(
        [
            r"max_load=load/layer=(?P<layer>\d+)",
            r"tokens_per_expert=t/layer=(?P<layer>\d+)/expert=(?P<expert>\d+)/engine=.",
        ]
    )
    (rows,) = polled(PrometheusReader(server.address, Keys(own), every=0.01), 1)
    assert values(list(rows.rows)) == [
        (1, "max_load", 1, None, 1.5),
        (1, "tokens_per_expert", 1, 0, 5.0),
    ]


def test_loads_of_ranks_in_sglang_are_not_shown_as_experts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [
        ranks(3, 10, 10, 10, 10) + ranks(12, 1, 1, 1, 1),
        ranks(3, 40, 20, 20, 10) + ranks(12, 2, 2, 2, 2),
    ]
    reader = PrometheusReader(server.address, Keys(), every=0.05)
    run, steps = run_of(reader, monkeypatch)
    assert [router.name for router in run.routers] == ["L3 ranks", "L12 ranks"]
    assert run.counts == "none"
    assert not steps[0].has_counts
    assert steps[0].record.router.max_load == [30 / 12.5, 1.0]  # (30, 10, 10, 0) and (1, 1, 1, 1)


def test_with_a_mapping_only_the_mapping_counts(server: Server) -> None:
    server.answers = [
        ranks(3, 1, 1) + 'mine{layer="3"} 2\n',
        ranks(3, 9, 1) + 'mine{layer="3"} 2\n',
    ]
    own = rules_of([r"max_load=mine/layer=(?P<layer>\d+)"])
    found = polled(PrometheusReader(server.address, Keys(own), every=0.01), 2)
    assert values(list(found[1].rows)) == [(2, "max_load", 3, None, 2.0)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_refused(server: Server, status: int) -> None:
    server.answers, server.status = ["x 1\n"], status
    server.headers = [("Location", server.address + "/elsewhere")]
    with pytest.raises(Unreadable, match="redirects to another address, which is refused"):
        polled(PrometheusReader(server.address, Keys()), 1)
    assert [path for path, _ in server.seen] == ["/metrics"]


def test_a_server_error_can_be_tried_again(server: Server) -> None:
    server.answers, server.status = ['load{layer="1"} 1\n'], 503
    reader = PrometheusReader(server.address, Keys(rules_of(["max_load=load.*"])), every=0.05)
    with pytest.raises(OSError, match="HTTP status 503") as caught:
        polled(reader, 1)
    assert not isinstance(caught.value, Unreadable)
    server.status = 200
    assert polled(reader, 1)[0].rows


def test_an_answer_without_end_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_poll, "MOST_S", 0.3)
    server.answers, server.slowly = ["x 1\n"], True
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"no whole answer within 0.3 s"):
        polled(PrometheusReader(server.address, Keys()), 1)
    assert time.monotonic() - begin < 2.0


def test_a_read_never_waits_for_the_server(server: Server) -> None:
    server.answers, server.slowly = ["x 1\n"], True
    reader = PrometheusReader(server.address, Keys())
    begin = time.monotonic()
    for _ in range(20):
        assert not reader.read().rows
    assert time.monotonic() - begin < 0.5
    assert not reader.exhausted


def test_an_answer_of_too_many_bytes_or_numbers_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = ["x 1\n" * 100]
    monkeypatch.setattr(exposition, "MOST_SAMPLES", 50)
    with pytest.raises(Unreadable, match=r"/metrics: more than 50 numbers"):
        polled(PrometheusReader(server.address, Keys()), 1)
    monkeypatch.setattr(http_poll, "MOST_BYTES", 100)
    with pytest.raises(Unreadable, match="longer than 100 bytes"):
        polled(PrometheusReader(server.address, Keys()), 1)


def test_something_else_than_metrics_is_refused(server: Server) -> None:
    server.answers = ["<html>hello</html>"]
    with pytest.raises(Unreadable, match="no numbers in the text format of Prometheus"):
        polled(PrometheusReader(server.address, Keys()), 1)


def test_credentials_are_sent_and_never_shown(server: Server) -> None:
    server.answers = ["<html>"]
    address = server.address.replace("http://", "http://me:s3cr%40t@") + "?token=hidden"
    reader = PrometheusReader(address, Keys(), every=0.01)
    with pytest.raises(Unreadable) as caught:
        polled(reader, 1)
    path, sent = server.seen[0]
    assert path == "/metrics?token=hidden"
    assert sent == "Basic " + base64.b64encode(b"me:s3cr@t").decode()
    server.status = 500
    with pytest.raises(OSError, match="500") as failed:
        polled(reader, 1)
    for text in (reader.name, str(caught.value), str(failed.value)):
        assert "***@127.0.0.1" in text
        assert not [secret for secret in ("me:", "s3cr", "hidden", "token") if secret in text]


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("https://u:p@h:1/metrics?a=b", "https://***@h:1/metrics?***"),
        ("http://host/metrics", "http://host/metrics"),
        ("http://[bad", "***"),
        ("http://a@b@host/x", "http://***@host/x"),
    ],
)
def test_an_address_is_shown_without_credentials(address: str, text: str) -> None:
    assert is_address(address)
    assert shown(address) == text


@pytest.mark.parametrize(
    "address", ["http://u:p@host:port/", "http:///metrics", "http://h/a\tb c?p"]
)
def test_an_impossible_address_is_one_error_without_its_credentials(address: str) -> None:
    with pytest.raises(OSError, match=r"^[^\n]+$") as caught:
        polled(PrometheusReader(address, Keys()), 1)
    assert "u:p" not in str(caught.value)
    assert "c?p" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("a 1", "a", 1.0),
        ("a:b{} 2.5e3 1395066363000", "a:b", 2500.0),
        ('a{expert="5",z="1",layer="3"} 1', "a/layer=3/expert=5/z=1", 1.0),
        ('a{ b = "x\\"y\\\\z" , c="}" , } 3', 'a/b=x"y\\z/c=}', 3.0),
        ('a_bucket{le="1.0"} 17 # {trace_id="x}"} 0.67', "a_bucket/le=1.0", 17.0),
        ("a +Inf", "a", math.inf),
    ],
)
def test_lines_of_the_format_are_read(line: str, key: str, value: float) -> None:
    (sample,) = samples(line, Types())
    assert (sample.key, sample.value) == (key, value)


@pytest.mark.parametrize(
    "line", ["{} 1", "a", "a{b} 1", 'a{b="c" 1', 'a{b="c', "a x", "1a 2", 'a{b="c"}']
)
def test_lines_of_another_form_are_skipped(line: str) -> None:
    assert [sample.name for sample in samples(f"{line}\nlast 1", Types())] == ["last"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='a{}="\\,\n#1 .e', max_size=200))
@example('a{b="' + "\\" * 10_000)
@example("a{" + 'b="c",' * 2000)
def test_no_text_takes_long_or_crashes(text: str) -> None:
    begin = time.monotonic()
    with suppress(Unreadable):
        list(samples(text, Types()))
    assert time.monotonic() - begin < 1.0
