"""What is measured, and on what work."""

import dataclasses
import resource


def raise_descriptors():
    """As many open files as a process may be allowed here, for this one and those that it starts; gives their number."""
    wanted, (_, hard) = 65_536, resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, wanted), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
        except (ValueError, PermissionError):
            continue
    return 0


# A session takes two descriptors of a gateway: 10,000, or as many as the limit lets live.
MANY = min(10_000, (raise_descriptors() - 200) // 2)


@dataclasses.dataclass(frozen=True)
class Server:
    title: str
    arguments: list


@dataclasses.dataclass(frozen=True)
class Work:
    title: str
    scenario: list
    messages: int
    servers: list
    size: int = 120
    # Those that are done too soon for the kernel's clock of 10 ms get so many times more messages.
    longer: dict = dataclasses.field(default_factory=dict)

    def arguments(self, server, shrink):
        messages = max(self.messages * self.longer.get(server, 1) // shrink, 1)
        return [*self.scenario, "--size", str(self.size), "--messages", str(messages)]


SERVERS = {
    "shared": Server("Tidegate, shared connections", ["--upstream", "shared"]),
    "per-session": Server("Tidegate, a connection a session", ["--upstream", "per-session"]),
    "per-session-unix": Server("Tidegate, by a Unix socket", ["--upstream", "per-session", "--unix"]),
    "embedded": Server("Tidegate with its own broker", ["--upstream", "per-session", "--broker", "embedded"]),
    "mosquitto-ws": Server("Mosquitto's WebSocket", ["--server", "mosquitto-ws"]),
    "node": Server("Node bridge", ["--server", "node"]),
    "node-unix": Server("Node bridge, by a Unix socket", ["--server", "node", "--unix"]),
    "nchan": Server("nginx with nchan", ["--server", "nchan"]),
    "bare": Server("bare writer", ["--server", "bare"]),
    "coalescing": Server("coalescing writer", ["--server", "coalescing"]),
}

GATEWAYS = ["shared", "per-session"]
BROKERED = [*GATEWAYS, "mosquitto-ws", "node"]
BROKERED_BY_UNIX_TOO = ["shared", "per-session", "per-session-unix", "mosquitto-ws", "node", "node-unix"]

WORKS = {
    "fan-out-paced": Work(
        "1 topic, 1,000 readers, 20 messages a second",
        ["fan-out", "--sessions", "1000", "--rate", "20"],
        200,
        list(SERVERS),
    ),
    "fan-out-saturated": Work(
        "1 topic, 1,000 readers, as fast as it goes",
        ["fan-out", "--sessions", "1000", "--rate", "0"],
        1000,
        list(SERVERS),
        longer={"shared": 4, "nchan": 2, "bare": 2, "coalescing": 8},
    ),
    "unicast-paced": Work(
        "1,000 topics with a reader each, 1,000 messages a second over all",
        ["unicast", "--sessions", "1000", "--rate", "1000"],
        10,
        BROKERED_BY_UNIX_TOO,
    ),
    "unicast-saturated": Work(
        "1,000 topics with a reader each, as fast as it goes",
        ["unicast", "--sessions", "1000", "--rate", "0"],
        30,
        BROKERED_BY_UNIX_TOO,
    ),
    "ingest-paced": Work(
        "100 sessions publish 1,000 messages a second, one more reads them at qos 1",
        ["ingest", "--sessions", "100", "--rate", "1000", "--qos", "1"],
        50,
        BROKERED,
    ),
    "large": Work(
        "16 KiB payloads, 200 a second, to 10 readers",
        ["fan-out", "--sessions", "10", "--rate", "200", "--grace", "5"],
        1000,
        BROKERED,
        size=16_384,
    ),
    "conflated": Work(
        "1 topic, 1,000 readers that ask for 2 a second of 1,000 a second",
        ["fan-out", "--sessions", "1000", "--rate", "1000", "--max-rate", "2"],
        10_000,
        GATEWAYS,
    ),
    "few-readers": Work(
        "1 topic, 100 readers, 200 messages a second",
        ["fan-out", "--sessions", "100", "--rate", "200"],
        2000,
        GATEWAYS,
    ),
    "many-readers": Work(
        f"1 topic, {MANY:,} readers, 2 messages a second",
        ["fan-out", "--sessions", str(MANY), "--rate", "2"],
        20,
        GATEWAYS,
    ),
    "idle": Work(f"{MANY:,} sessions that do nothing", ["idle", "--sessions", str(MANY)], 1, GATEWAYS),
    "storm": Work("2,000 sessions open, 64 at once", ["storm", "--sessions", "2000"], 1, BROKERED),
}
