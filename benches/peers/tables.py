"""What is written of the figures: tables in Markdown, and a plot."""

import html
import statistics

from bars import cost, cost_a_message, memory, opening, p99, short
from works import SERVERS, WORKS

BEGIN, END = "<!-- figures: benches/peers/run writes what follows -->", "<!-- end of figures -->"
PLOTTED = ["fan-out-paced", "fan-out-saturated", "unicast-paced", "unicast-saturated"]


def write(docs, results, judged):
    page = docs / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + "\n\n" + "\n".join(text(results, judged)) + "\n" + END + after)
    (docs / "performance.svg").write_text(plot(results["runs"]))


def text(results, judged):
    machine = results["machine"]
    known = ", ".join(f"{name} {version}" for name, version in machine.items() if name not in ("processors", "kernel"))
    yield f"Measured on {results['date']} on {machine['processors']}, Linux {machine['kernel']}: {known}."
    yield ""
    yield "![CPU seconds for a million deliveries, by server](performance.svg)"
    yield ""
    yield "### The bars"
    yield ""
    yield "| work | figure | at most | |"
    yield "| --- | --- | --- | --- |"
    for bar in judged:
        yield f"| {bar.work} | {bar.figure} | {bar.bound} | {bar.verdict} |"
    for work, plan in WORKS.items():
        yield ""
        yield f"### {plan.title}"
        yield ""
        yield "`" + " ".join(plan.arguments("", 1)) + "`"
        yield ""
        runs = results["runs"].get(work, {})
        yield from table(work, runs)
        yield from circumstances(runs, machine["tidegate"])
    yield ""


def table(work, runs):
    columns = {"storm": STORM, "idle": IDLE, "conflated": CONFLATED}.get(work, DELIVERIES)
    yield "| server | " + " | ".join(columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for server in WORKS[work].servers:
        lines = runs.get(server, [])
        good = [line for line in lines if "parts" in line]
        if good:
            cells = [cell(good) for cell in columns.values()]
        else:
            why = lines[0]["failures"][0].split("\n")[0] if lines else "not measured"
            cells = [f"({why})"] + [""] * (len(columns) - 1)
        yield f"| {SERVERS[server].title} | " + " | ".join(cells) + " |"


def circumstances(runs, version):
    """How often it was measured, and which Tidegate was, where that is another than the page says."""
    turns = sorted({len(lines) for lines in runs.values()})
    others = sorted({f"{line['of']['tidegate']} on {line['of']['date']}" for lines in runs.values() for line in lines
                     if line["of"]["tidegate"] != version})
    if turns:
        yield ""
        yield f"Medians of {' or '.join(map(str, turns))} turns." + (f" Measured with {', '.join(others)}." if others else "")
    for server, lines in runs.items():
        failed = [line["failures"][0] for line in lines if "parts" not in line]
        if 0 < len(failed) < len(lines):
            yield f"{SERVERS[server].title}: of the others, as {len(failed)} came to nothing ({failed[0].strip()})."


def median(of):
    def cell(lines):
        values = [value for value in map(of, lines) if value is not None]
        return short(statistics.median(values)) if values else "–"

    return cell


def part(*names):
    """The processor seconds of one process of the server."""
    def of(line):
        found = [line["parts"][name] for name in names if line["parts"].get(name)]
        return found[0]["cpu_seconds_a_million"] if found else None

    return median(of)


def faults(lines):
    names = {"lost": "lost", "duplicated": "doubled", "reordered": "out of order", "stray": "misdirected"}
    if any(line["options"]["max_rate"] for line in lines):
        names = {"unfinished": "last values missing"} | {name: names[name] for name in list(names)[1:]}
    counts = {word: sum(line[name] for line in lines) for name, word in names.items()}
    return ", ".join(f"{count:,} {word}" for word, count in counts.items() if count) or "none"


def rate(line):
    return line["received"] / line["seconds"] if line["seconds"] else None


def whole(of):
    return lambda lines: f"{statistics.median(map(of, lines)):,.0f}"


DELIVERIES = {
    "CPU s a million deliveries": median(cost),
    "of the server": part("gateway", "bridge", "nginx", "bare"),
    "of the broker": part("broker"),
    "deliveries a second": whole(rate),
    "p99, ms": median(p99),
    "lost, doubled, out of order": faults,
}
CONFLATED = {
    "CPU s a million published": median(cost_a_message),
    "CPU s a million deliveries": median(cost),
    "deliveries a second": whole(rate),
    "out of order, doubled, last values missing": faults,
}
STORM = {
    "CPU ms a session": median(opening),
    "sessions a second": whole(lambda line: line["opening"]["sessions_a_second"]),
    "lost, doubled, out of order": faults,
}
IDLE = {
    "anonymous memory a session, KiB": median(memory),
    "resident memory a session, KiB": median(lambda line: line["bytes_a_session"] / 1024),
    "lost, doubled, out of order": faults,
}


def glance(line):
    """A run in a few words."""
    if "parts" not in line:
        return line["failures"][0]
    words = [f"{line['server_cpu_seconds_a_million']} CPU s a million, p99 {p99(line):.1f} ms", *line["failures"]]
    return "; ".join(words)


WIDTH, LABELS, BAR, GAP = 860, 230, 18, 7
COLOURS = {"server": "#2b6cb0", "broker": "#a0aec0", "yardstick": "#718096"}


def plot(runs):
    """Bars of processor seconds a million deliveries: one panel a work, one bar a server, its broker apart."""
    body, top = [], 34
    for work in PLOTTED:
        rows = list(bars_of(work, runs.get(work, {})))
        body.append(label(8, top, WORKS[work].title, weight="bold"))
        top += 12
        longest = max((server + broker for _, server, broker, _ in rows), default=0) or 1
        for title, server, broker, colour in rows:
            scale = (WIDTH - LABELS - 80) / longest
            body.append(label(LABELS - 8, top + 14, title, anchor="end"))
            body.append(box(LABELS, top, server * scale, colour))
            body.append(box(LABELS + server * scale, top, broker * scale, COLOURS["broker"]))
            body.append(label(LABELS + (server + broker) * scale + 6, top + 14, f"{short(server + broker)}"))
            top += BAR + GAP
        top += 30
    title = label(8, 16, "CPU seconds for a million deliveries: Tidegate blue, others dark grey, the Mosquitto behind them light grey")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{top}" fill="white"/>\n' + "\n".join([title, *body]) + "\n</svg>\n"
    )


def bars_of(work, runs):
    for server in WORKS[work].servers:
        lines = [line for line in runs.get(server, []) if "parts" in line]
        if not lines:
            continue
        share = lambda line: (line["parts"].get("broker") or {}).get("cpu_seconds_a_million", 0)
        # Of Mosquitto's own WebSocket the broker is the server.
        broker = 0 if server == "mosquitto-ws" else statistics.median(map(share, lines))
        colour = COLOURS["server" if SERVERS[server].title.startswith("Tidegate") else "yardstick"]
        yield SERVERS[server].title, max(statistics.median(map(cost, lines)) - broker, 0), broker, colour


def label(x, y, text, anchor="start", weight="normal"):
    return f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{html.escape(text)}</text>'


def box(x, y, width, colour):
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>'
