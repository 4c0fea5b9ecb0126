"""The bars say what was planted: `python3 -m unittest discover -s benches/peers -p '*_test.py'`."""

import unittest

import bars
import tables
from works import SERVERS, WORKS


def line(cost, failures=(), lost=0, worst=10_000, part="gateway"):
    return {
        "parts": {part: {"cpu_seconds_a_million": cost}, "broker": {"cpu_seconds_a_million": 1.0}},
        "server_cpu_seconds_a_million": cost + 1.0,
        "server_cpu_seconds_a_million_published": 1000 * cost,
        "latency_us": {"p99": 5000, "max": worst},
        "delivery_ms": {"p50": 0.1, "p99": 0.4},
        "anonymous_bytes_a_session": 5120,
        "bytes_a_session": 6144,
        "opening": {"cpu_ms_a_session": 0.1, "sessions_a_second": 5000.0},
        "options": {"max_rate": None},
        "expected": 1000,
        "received": 1000 - lost,
        "seconds": 2.0,
        "failures": list(failures),
        **{"lost": lost, "duplicated": 0, "reordered": 0, "stray": 0, "unfinished": 0},
        "of": {"tidegate": "abc", "date": "2026-01-01"},
    }


def verdicts(runs, work):
    return [bar.verdict for bar in bars.judge(runs) if bar.work == work]


class Bars(unittest.TestCase):
    WORK = "shared, fan-out 1→1,000, paced"

    def test_a_ratio_is_taken_turn_by_turn(self):
        runs = {"fan-out-paced": {"shared": [line(9), line(19), line(99)], "bare": [line(9), line(19), line(9)]}}
        self.assertEqual([bar.figure for bar in bars.judge(runs) if bar.work == self.WORK][0], "1 ×")
        self.assertEqual(verdicts(runs, self.WORK), ["held", "not known"])

    def test_a_cost_over_the_bound_misses_the_bar(self):
        runs = {"fan-out-paced": {"shared": [line(13)], "bare": [line(9)], "mosquitto-ws": [line(19)]}}
        self.assertEqual(verdicts(runs, self.WORK), ["missed", "held"])

    def test_a_gateway_that_lost_something_holds_no_bar(self):
        runs = {"fan-out-paced": {"shared": [line(1, ["1 lost"], lost=1)], "bare": [line(9)]}}
        self.assertEqual(verdicts(runs, self.WORK), ["missed", "not known"])

    def test_a_run_that_was_not_made_is_not_known(self):
        runs = {"fan-out-paced": {"shared": [{"failures": ["it does not start"]}], "bare": [line(9)]}}
        self.assertEqual(verdicts(runs, self.WORK), ["not known", "not known"])

    def test_a_minority_of_turns_makes_no_ratio(self):
        failed = {"failures": ["it does not start"]}
        for others, verdict in [([line(9), failed], "not known"), ([line(9), line(9), failed], "held")]:
            runs = {"fan-out-paced": {"shared": [line(1)] * len(others), "bare": others}}
            self.assertEqual(verdicts(runs, self.WORK), [verdict, "not known"])

    def test_large_payloads_are_in_time_if_the_latest_of_all_turns_is(self):
        work = "shared, 16 KiB payloads, 200 a second to 10 readers"
        for ours, verdict in [
            ([line(1), line(1, worst=999_000)], "held"),
            ([line(1), line(1, worst=1_001_000)], "missed"),
            ([line(1), line(1, ["5 lost"], lost=5)], "missed"),
        ]:
            self.assertEqual(verdicts({"large": {"shared": ours}}, work), [verdict])

    def test_every_bar_names_works_and_servers_that_are_measured(self):
        named = [name for bar in bars.RATIOS for name in bar[2:4]] + [bar[2] for bar in bars.FIGURES]
        for work, server in map(str.split, named):
            self.assertIn(server, WORKS[work].servers)


class Tables(unittest.TestCase):
    RESULTS = {"date": "2026-01-02", "machine": {"processors": "1 × x", "kernel": "6", "tidegate": "def"}}

    def test_every_server_of_every_work_has_its_row(self):
        runs = {work: {server: [line(1)] for server in plan.servers} for work, plan in WORKS.items()}
        page = "\n".join(tables.text(self.RESULTS | {"runs": runs}, bars.judge(runs)))
        for plan in WORKS.values():
            self.assertIn(plan.title, page)
        self.assertEqual(page.count("| bare writer |"), 2)
        self.assertIn("Measured with abc on 2026-01-01.", page)

    def test_what_was_not_measured_says_so(self):
        page = "\n".join(tables.text(self.RESULTS | {"runs": {}}, bars.judge({})))
        self.assertIn("| Node bridge | (not measured) |", page)

    def test_a_plot_has_a_bar_for_each_server_that_was_measured(self):
        runs = {"fan-out-paced": {server: [line(2)] for server in SERVERS}}
        self.assertEqual(tables.plot(runs).count('text-anchor="end"'), len(SERVERS))


if __name__ == "__main__":
    unittest.main()
