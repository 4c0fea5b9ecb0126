"""The bars that the gateway is held against, and whether it keeps below them."""

import dataclasses
import statistics

from works import MANY


@dataclasses.dataclass(frozen=True)
class Bar:
    work: str
    figure: str
    bound: str
    verdict: str


def cost(line):
    """Processor seconds of all processes of the server, for a million deliveries."""
    return line["server_cpu_seconds_a_million"]


def own_cost(line):
    """Those of the process alone that speaks to the browsers."""
    return next(line["parts"][name]["cpu_seconds_a_million"] for name in ("gateway", "bridge") if name in line["parts"])


def cost_a_message(line):
    """Those of all processes, for a million messages published."""
    return line["server_cpu_seconds_a_million_published"]


def p99(line):
    """From send to receipt, both in the tool, in milliseconds."""
    return line["latency_us"]["p99"] / 1000


def delivery_p99(line):
    """From the broker's socket to the browser's, in milliseconds."""
    return line["delivery_ms"]["p99"]


def memory(line):
    """KiB of anonymous memory that a session adds."""
    return line["anonymous_bytes_a_session"] / 1024


def opening(line):
    """Milliseconds of processor that opening a session takes."""
    return line["opening"]["cpu_ms_a_session"]


def per_session(title, server, bridge):
    """What a client a session is held to, beside the bridge that reaches the broker the same way."""
    for kind in ("paced", "saturated"):
        fan_out, unicast = f"fan-out-{kind}", f"unicast-{kind}"
        if kind == "paced":
            work = f"{title}, fan-out 1→1,000, paced"
            yield work, cost, f"{fan_out} {server}", f"{fan_out} mosquitto-ws", 2.0
            yield work, cost, f"{fan_out} {server}", f"{fan_out} {bridge}", 0.45
        work = f"{title}, unicast 1,000, {kind}"
        yield f"{work}, own share", own_cost, f"{unicast} {server}", f"{unicast} {bridge}", 0.4
        yield work, cost, f"{unicast} {server}", f"{unicast} mosquitto-ws", 0.7


# What is held, of which server at which work, over which; at most so many times.
RATIOS = [
    ("shared, fan-out 1→1,000, paced", cost, "fan-out-paced shared", "fan-out-paced bare", 1.25),
    ("shared, fan-out 1→1,000, paced", cost, "fan-out-paced shared", "fan-out-paced mosquitto-ws", 0.8),
    ("shared, fan-out 1→1,000, saturated", cost, "fan-out-saturated shared", "fan-out-saturated coalescing", 3.0),
    ("shared, fan-out 1→1,000, saturated", cost, "fan-out-saturated shared", "fan-out-saturated mosquitto-ws", 0.25),
    *per_session("per session", "per-session", "node"),
    *per_session("per session by a Unix socket", "per-session-unix", "node-unix"),
    (
        "per session, embedded broker, fan-out 1→1,000, saturated",
        cost,
        "fan-out-saturated embedded",
        "fan-out-saturated mosquitto-ws",
        0.5,
    ),
    (
        "shared, 1,000 a second to 1,000 readers with maxRate 2, a published message",
        cost_a_message,
        "conflated shared",
        "fan-out-paced shared",
        0.03,
    ),
    ("shared, fan-out 1→1,000, paced, p99 end to end", p99, "fan-out-paced shared", "fan-out-paced bare", 1.3),
    (f"shared, a delivery at {MANY:,} readers and at 100", cost, "many-readers shared", "few-readers shared", 1.2),
    (
        f"per session, a delivery at {MANY:,} readers and at 100",
        cost,
        "many-readers per-session",
        "few-readers per-session",
        1.2,
    ),
]
# What is held, of which server at which work; at most how much.
FIGURES = [
    (f"per session, memory of an idle session at {MANY:,}", memory, "idle per-session", 12, "KiB"),
    (f"shared, memory of an idle session at {MANY:,}", memory, "idle shared", 6, "KiB"),
    ("per session, connect storm, processor time a session", opening, "storm per-session", 0.3, "ms"),
    ("shared, connect storm, processor time a session", opening, "storm shared", 0.15, "ms"),
    ("per session, unicast 1,000, paced, p99 from broker to socket", delivery_p99, "unicast-paced per-session", 2, "ms"),
    ("shared, unicast 1,000, paced, p99 from broker to socket", delivery_p99, "unicast-paced shared", 2, "ms"),
]
OTHERS = {
    "bare": "the bare writer",
    "coalescing": "the coalescing writer",
    "mosquitto-ws": "Mosquitto's WebSocket",
    "node": "the Node bridge",
    "node-unix": "the Node bridge by a Unix socket",
}
# Payloads of 16 KiB come in time if each comes within so many milliseconds.
IN_TIME = 1000


def judge(runs):
    """All bars, of all turns that were made."""
    ratios = [ratio(runs, *bar) for bar in RATIOS]
    figures = [figure(runs, *bar) for bar in FIGURES]
    return [*ratios, *(in_time(runs, server) for server in ("per-session", "shared")), *figures]


def ratio(runs, work, of, one, other, bound):
    """The median of what one has over the other, turn by turn."""
    ours, theirs = turns(runs, one), turns(runs, other)
    name = other.split()[1]
    against = OTHERS.get(name, "what it is at 100 readers" if "few-readers" in other else "what it is without maxRate")
    pairs = [(of(mine), of(their)) for mine, their in zip(ours, theirs) if measured(mine) and measured(their)]
    # Of a few turns that happened to come to an end there is no median.
    is_known = 2 * len(pairs) > max(len(ours), len(theirs)) and all(their for _, their in pairs)
    value = statistics.median(mine / their for mine, their in pairs) if is_known else None
    known = None if value is None else f"{short(value)} ×"
    return Bar(work, told(known), f"{bound:g} × {against}", verdict(value, bound, ours))


def figure(runs, work, of, one, bound, unit):
    """The median of a figure."""
    ours = turns(runs, one)
    values = [of(line) for line in ours if measured(line) and of(line) is not None]
    value = statistics.median(values) if values else None
    known = None if value is None else f"{short(value)} {unit}"
    return Bar(work, told(known), f"{bound:g} {unit}", verdict(value, bound, ours))


def in_time(runs, server):
    """Whether every large payload came, and soon enough, in every turn."""
    ours, theirs = (turns(runs, f"large {name}") for name in (server, "mosquitto-ws"))
    own = "per session" if server == "per-session" else server
    title = f"{own}, 16 KiB payloads, 200 a second to 10 readers"
    if not any(map(measured, ours)):
        return Bar(title, told(None), "1 s, none lost", "not known")
    bound = f"1 s, none lost; Mosquitto's WebSocket: {lateness(theirs)}" if any(map(measured, theirs)) else "1 s, none lost"
    worst = max((line["latency_us"]["max"] / 1000 for line in ours if measured(line)), default=None)
    return Bar(title, lateness(ours), bound, verdict(worst, IN_TIME, ours))


def lateness(lines):
    lines = [line for line in lines if measured(line)]
    worst = max(line["latency_us"]["max"] / 1000 for line in lines)
    lost = statistics.median(100 * line["lost"] / line["expected"] for line in lines)
    return f"{short(worst)} ms at worst, " + (f"{lost:.0f} % too late" if lost else "none lost")


def turns(runs, one):
    work, server = one.split()
    return runs.get(work, {}).get(server, [])


def measured(line):
    return "parts" in line


def verdict(value, bound, lines):
    """A gateway that lost, repeated or reordered something holds no bar, whatever it cost."""
    if value is None:
        return "not known"
    return "held" if value <= bound and not any(line["failures"] for line in lines) else "missed"


def told(known):
    return known or "not known"


def short(value):
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
