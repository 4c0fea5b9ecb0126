// Tidegate's page: one session with the gateway, its subscriptions, what arrives, and a form to publish.

const MAX_MESSAGES = 500;
const MAX_CHARACTERS = 16 << 20;
const MAX_COLOURED = 20_000;
const MAX_DUMPED = 4096;
const DRAW_EVERY_MS = 150;
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 30_000;
const SETTLED_MS = 10_000;

const $ = (id) => document.getElementById(id);

/** What each close code means here, and whether coming back would help. Codes that are not listed are worth a retry. */
const CLOSES = {
  1001: { why: "The gateway is going away." },
  1002: { why: "The gateway saw a WebSocket protocol error.", stops: true },
  1003: { why: "The gateway got a binary frame where it expects text.", stops: true },
  1006: { why: "The gateway can't be reached." },
  1007: { why: "The gateway got text that is not UTF-8.", stops: true },
  1009: { why: "A frame was over the gateway's size limit.", stops: true },
  1011: { why: "The gateway had a fault." },
  1012: { why: "The gateway is restarting." },
  4001: { why: "The gateway heard nothing from this page for too long." },
  4008: { why: "This page read too slowly." },
  4009: { why: "The same client id connected elsewhere.", stops: true },
  4400: { why: "The gateway could not read this page's frames.", stops: true },
  4401: { why: "The token has ended, or there was none.", help: "Put a new token into its field and connect.", stops: true },
  4403: { why: "The gateway does not let this one in any more.", help: "Connect with another token.", stops: true },
  4429: { why: "The gateway has too many connections or requests." },
  4503: { why: "The gateway has no broker to work with." },
};

/** A request that was turned down, or that lost its connection before the answer came. */
class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/**
 * One session with the gateway. Once opened it comes back after every close that a retry can mend, until it is closed.
 * `phase` is one of idle, connecting, queued, open, waiting and stopped.
 */
class Session {
  phase = "idle";
  #listener;
  #address;
  #socket;
  #requests = new Map();
  #lastMsgid = 0;
  #failures = 0;
  #openedAt;
  #reconnectAfter;
  #refusedBecause;
  #heardSomething;
  #heartbeat;
  #retry;

  /** The listener has `changed()`, `opened()`, `delivered(frame)`, `ended(topics)`, `expiring()` and `refused(refusal)`. */
  constructor(listener) {
    this.#listener = listener;
  }

  /** Without a `token` or a `clientId`, the one is not shown and the other chosen by the gateway. */
  open(url, clientId, token) {
    this.#address = { url, clientId, token };
    this.#failures = 0;
    this.#connect();
  }

  close() {
    this.#leave("idle");
  }

  /** Whether it came with a token, which can be renewed. */
  get hasToken() {
    return Boolean(this.#address?.token);
  }

  /** Shows another token of the same user, now and whenever it connects again. Rejects with a Refusal, and stays as it was. */
  async renew(token) {
    const { expiresIn } = await this.request({ type: "auth", token });
    this.#address.token = token;
    this.#enter(this.phase, { expiresAt: inSeconds(expiresIn) });
  }

  /** Resolves with the answer to `frame`, or rejects with a Refusal. */
  request(frame) {
    if (this.phase !== "open") return Promise.reject(new Refusal("not_connected", "Not connected."));
    const msgid = ++this.#lastMsgid;
    this.#send({ ...frame, msgid });
    return new Promise((resolve, reject) => this.#requests.set(msgid, { resolve, reject }));
  }

  #connect() {
    this.#leave("connecting");
    const { url, clientId, token } = this.#address;
    const auth = { type: "auth", clientId: clientId || undefined, token: token || undefined };
    try {
      const socket = new WebSocket(url, "tidegate.v1.json");
      const whileCurrent = (act) => (event) => socket === this.#socket && act(event);
      socket.onopen = whileCurrent(() => this.#send(auth));
      socket.onmessage = whileCurrent(({ data }) => this.#onFrame(JSON.parse(data)));
      socket.onclose = whileCurrent(({ code, reason }) => this.#onClose(code, reason));
      this.#socket = socket;
    } catch (error) {
      this.#leave("stopped", { why: error.message });
    }
  }

  #onFrame(frame) {
    this.#heardSomething = true;
    switch (frame.type) {
      case "mqtt":
        return this.#listener.delivered(frame);
      case "batch":
        return frame.data.forEach((delivery) => this.#listener.delivered(delivery));
      case "expiring":
        this.#enter(this.phase, { expiresAt: inSeconds(frame.in) });
        return this.#listener.expiring();
      case "welcome":
        return this.#onWelcome(frame);
      case "queued":
        return this.#enter("queued", { position: frame.position });
      case "broker":
        return this.#enter(this.phase, { broker: frame.status });
      case "bye":
        this.#reconnectAfter = frame.reconnectAfter;
        return;
      case "error":
        return this.#onError(frame);
      case "unsubscribed":
        if (frame.msgid === undefined) return this.#listener.ended(frame.topics);
        return this.#take(frame.msgid)?.resolve(frame);
      case "auth_response":
      case "subscribed":
      case "ack":
        return this.#take(frame.msgid)?.resolve(frame);
    }
  }

  #onWelcome({ clientId, sessionId, heartbeat, expiresIn }) {
    this.#openedAt = performance.now();
    if (heartbeat > 0) this.#heartbeat = setInterval(() => this.#beat(), heartbeat * 1000);
    this.#enter("open", { clientId, sessionId, broker: "up", expiresAt: inSeconds(expiresIn) });
    this.#listener.opened();
  }

  #onError({ code, message, msgid }) {
    const refusal = new Refusal(code, message);
    const request = this.#take(msgid);
    if (request) return request.reject(refusal);
    if (this.phase === "open") return this.#listener.refused(refusal);
    if (code.startsWith("invalid_")) return this.#leave("stopped", { why: message });
    this.#refusedBecause = message;
  }

  #onClose(code, reason) {
    const { why = reason || "The connection ended.", help = "", stops = false } = CLOSES[code] ?? {};
    const told = { why: `${this.#refusedBecause ?? why} ${help && `${help} `}(${code})` };
    if (stops) return this.#leave("stopped", told);

    if (performance.now() - this.#openedAt > SETTLED_MS) this.#failures = 0;
    const longest = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#failures++);
    const delay = this.#reconnectAfter ?? Math.random() * longest;
    this.#leave("waiting", { ...told, retryAt: Date.now() + delay });
    this.#retry = setTimeout(() => this.#connect(), delay);
  }

  /** A gateway that answers nothing for a whole heartbeat is gone, though the socket may not know it yet. */
  #beat() {
    if (!this.#heardSomething) return this.#onClose(1006);
    this.#heardSomething = false;
    this.#send({ type: "ping" });
  }

  /** Lets go of the socket and of everything that belonged to it. */
  #leave(phase, told) {
    clearInterval(this.#heartbeat);
    clearTimeout(this.#retry);
    const socket = this.#socket;
    this.#socket = undefined;
    socket?.close();
    for (const { reject } of this.#requests.values()) {
      reject(new Refusal("closed", "The connection ended before the answer: the outcome is unknown."));
    }
    this.#requests.clear();
    this.#openedAt = this.#reconnectAfter = this.#refusedBecause = undefined;
    this.#enter(phase, { why: undefined, expiresAt: undefined, ...told });
  }

  #enter(phase, told) {
    this.phase = phase;
    Object.assign(this, told);
    this.#listener.changed();
  }

  #take(msgid) {
    const request = this.#requests.get(msgid);
    this.#requests.delete(msgid);
    return request;
  }

  #send(frame) {
    this.#socket.send(JSON.stringify(frame));
  }
}

function inSeconds(seconds) {
  return seconds === undefined ? undefined : Date.now() + seconds * 1000;
}

/** The filters that the user asked for. They outlive a connection and are asked for again on the next. */
class Subscriptions {
  #list = new Map();

  get size() {
    return this.#list.size;
  }

  /** The contract is what a `subscribe` says beside the topic and its qos. */
  add(filter, qos, contract = {}) {
    const row = this.#list.get(filter)?.row ?? this.#newRow(filter);
    row.querySelector(".contract").textContent = contractText(contract);
    this.#list.set(filter, { topic: filter, qos, contract, row });
    return this.#ask([filter]);
  }

  /** Asks for all of them on a new connection, but for those that can never be granted. */
  askAgain() {
    this.#askWhere(({ code }) => code !== "invalid_topic");
  }

  /** Asks for those that were not allowed: the rights may be others now. */
  askForDenied() {
    this.#askWhere(({ code }) => code === "not_authorized");
  }

  #askWhere(isWanted) {
    const filters = [...this.#list.values()].filter(isWanted).map(({ topic }) => topic);
    if (filters.length > 0) this.#ask(filters);
  }

  /** The connection is gone: nothing is granted until it is back. */
  suspend() {
    for (const { topic, code } of this.#list.values()) {
      if (!code) this.#show(topic, { state: "waiting" });
    }
  }

  ended(topics) {
    for (const { topic, error, message } of topics) {
      if (error) this.#show(topic, { state: "failed", code: error, message: message ?? `The gateway ended it: ${error}.` });
      else this.#drop(topic);
    }
  }

  async #ask(filters) {
    for (const filter of filters) this.#show(filter, { state: "waiting" });
    try {
      const topics = filters.map((filter) => {
        const { qos, contract } = this.#list.get(filter);
        return { ...contract, topic: filter, qos };
      });
      const answer = await session.request({ type: "subscribe", topics });
      answer.topics.forEach(({ qos, error, message }, index) => {
        const state = error ? "failed" : "granted";
        this.#show(filters[index], { state, granted: qos, code: error, message });
      });
    } catch ({ code, message }) {
      if (code === "not_connected" || code === "closed") return;
      for (const filter of filters) this.#show(filter, { state: "failed", code, message });
    }
  }

  async #remove(filter) {
    try {
      if (session.phase === "open" && !this.#list.get(filter).code) {
        await session.request({ type: "unsubscribe", topic: filter });
      }
      this.#drop(filter);
    } catch ({ message }) {
      this.#show(filter, { message });
    }
  }

  #drop(filter) {
    this.#list.get(filter)?.row.remove();
    this.#list.delete(filter);
    showEmptyState();
  }

  #newRow(filter) {
    const row = stamp("subscription-row");
    row.dataset.filter = filter;
    row.querySelector(".name").textContent = filter;
    const button = row.querySelector("button");
    button.ariaLabel = button.title = `Unsubscribe from ${filter}`;
    button.onclick = () => this.#remove(filter);
    $("subscriptions").prepend(row);
    return row;
  }

  #show(filter, told) {
    const subscription = this.#list.get(filter);
    if (!subscription) return;
    Object.assign(subscription, { code: undefined, message: "" }, told);
    const { row, state, qos, granted, message } = subscription;
    row.dataset.state = state;
    row.querySelector(".badge").textContent = { waiting: "waiting", granted: qosText(granted, qos), failed: "" }[state];
    row.querySelector(".badge").dataset.qos = state === "granted" ? granted : "";
    row.querySelector(".error").textContent = message;
    showEmptyState();
  }
}

/** The newest messages, bounded in count and in characters. */
class Recent {
  messages = [];
  #characters = 0;

  /** Gives back what had to go to make room. */
  add(message) {
    this.messages.push(message);
    this.#characters += message.text.length;
    const gone = [];
    while (this.messages.length > MAX_MESSAGES || (this.#characters > MAX_CHARACTERS && this.messages.length > 1)) {
      const oldest = this.messages.shift();
      this.#characters -= oldest.text.length;
      gone.push(oldest);
    }
    return gone;
  }

  takeAll() {
    const all = this.messages;
    this.messages = [];
    this.#characters = 0;
    return all;
  }
}

/**
 * What arrived, newest on top. A delivery only lands in a list: the page is touched in one go, in an animation frame, a few
 * times a second at most, so most rows of a flood are never laid out. While paused, or hidden, the newest wait.
 */
class Log {
  received = 0;
  #waiting = new Recent();
  #kept = new Recent();
  #wanted = "";
  #paused = false;
  #drawing = false;
  #drawnAt = 0;
  #messageOf = new WeakMap();

  deliver(frame) {
    this.received += 1;
    const said = frame.patch ?? frame.payload;
    const text = typeof said === "string" && frame.encoding !== "json" ? said : JSON.stringify(said);
    this.#waiting.add({ ...frame, text });
    this.#drawSoon();
  }

  pause(paused) {
    this.#paused = paused;
    this.#drawSoon();
  }

  /** From now on, only what holds `text` is kept and shown; what was kept before comes back when the text is gone. */
  search(text) {
    this.#wanted = text.toLowerCase();
    for (const { row } of this.#kept.messages) row?.remove();
    this.#prepend(this.#kept.messages.filter((message) => this.#isWanted(message)));
  }

  clear() {
    this.received = 0;
    this.#waiting.takeAll();
    this.#kept.takeAll();
    $("messages").replaceChildren();
    showCounts();
    showEmptyState();
  }

  /** Lays a row's whole message beneath it when it is first opened. */
  unfold(details) {
    const message = this.#messageOf.get(details.parentElement);
    if (details.open && details.childElementCount === 1) details.append(wholeMessage(message));
  }

  #drawSoon() {
    if (this.#drawing || this.#paused) return;
    this.#drawing = true;
    const draw = () => {
      this.#drawing = false;
      if (!this.#paused) this.#draw();
    };
    const delay = this.#drawnAt + DRAW_EVERY_MS - performance.now();
    setTimeout(() => requestAnimationFrame(draw), Math.max(0, delay));
  }

  #draw() {
    this.#drawnAt = performance.now();
    const arrived = this.#waiting.takeAll().filter((message) => this.#isWanted(message));
    for (const message of arrived) {
      for (const { row } of this.#kept.add(message)) row?.remove();
    }
    this.#prepend(arrived);
    showCounts();
  }

  #prepend(messages) {
    const rows = messages.map((message) => (message.row ??= this.#newRow(message)));
    $("messages").prepend(...rows.reverse());
    showEmptyState();
  }

  #isWanted({ topic, text }) {
    const holds = (part) => part.toLowerCase().includes(this.#wanted);
    return this.#wanted === "" || holds(topic) || holds(text);
  }

  #newRow(message) {
    const row = stamp("message-row");
    this.#messageOf.set(row, message);
    const [time, topic, line, badges] = row.querySelector("summary").children;
    const [encoding, skipped, retain, qos] = badges.children;
    time.textContent = timeOfDay(message.timestamp);
    topic.textContent = topic.title = message.topic;
    line.append(oneLine(message));
    qos.textContent = qosText(message.qos);
    qos.dataset.qos = message.qos;
    if (message.encoding === "base64") encoding.textContent = "base64";
    else if (message.patch) encoding.textContent = "patch";
    else encoding.remove();
    if (message.skipped) skipped.textContent = `+${message.skipped}`;
    else skipped.remove();
    skipped.title = "So many older messages of this topic were left out";
    if (!message.retain) retain.remove();
    return row;
  }
}

// What a message looks like.

function oneLine({ text, encoding }) {
  const start = text.slice(0, 300);
  const isJson = encoding !== "base64" && start.length === text.length && /^\s*[[{]/.test(text) && isValidJson(text);
  return isJson ? colouredJson(text, false) : start;
}

function wholeMessage(message) {
  const { topic, text, encoding, timestamp, properties, dup, patch, skipped } = message;
  const bytes = encoding === "base64" ? Uint8Array.from(atob(text), (c) => c.charCodeAt(0)) : new TextEncoder().encode(text);
  const received = new Date(timestamp).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
  const facts = [received, `${bytes.length} bytes`];
  if (patch) facts.push("what has changed");
  if (skipped) facts.push(`${skipped} older ones left out`);
  if (dup) facts.push("delivered before");
  for (const [name, value] of Object.entries(properties ?? {})) facts.push(`${name} ${JSON.stringify(value)}`);

  const whole = element("div", "whole-message");
  whole.append(element("p", "topic mono", topic), element("p", "", facts.join(" · ")));
  const payload = element("pre", "mono");
  payload.dataset.testid = "whole-payload";
  if (encoding === "base64") payload.append(hexDump(bytes));
  else payload.append(isValidJson(text) && text.length <= MAX_COLOURED ? colouredJson(text, true) : text);
  whole.append(payload);
  return whole;
}

function isValidJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

const JSON_TOKENS = /"(?:\\.|[^"\\])*"|-?\d[\d.eE+-]*|true|false|null|[{}[\],:]/g;

/** Valid JSON, laid out anew from its own tokens, so that numbers stay as they were written. */
function colouredJson(text, isIndented) {
  const whole = document.createDocumentFragment();
  const tokens = text.match(JSON_TOKENS);
  let depth = 0;
  const newLine = () => (isIndented ? `\n${"  ".repeat(depth)}` : "");
  tokens.forEach((token, index) => {
    const next = tokens[index + 1];
    if (token === "{" || token === "[") {
      const isEmpty = next === "}" || next === "]";
      depth += 1;
      whole.append(token, isEmpty ? "" : newLine());
    } else if (token === "}" || token === "]") {
      depth -= 1;
      const wasEmpty = tokens[index - 1] === "{" || tokens[index - 1] === "[";
      whole.append(wasEmpty ? "" : newLine(), token);
    } else if (token === ",") {
      whole.append(token, newLine() || " ");
    } else if (token === ":") {
      whole.append(": ");
    } else {
      const kind = token[0] !== '"' ? (/[-\d]/.test(token[0]) ? "number" : "word") : next === ":" ? "name" : "string";
      whole.append(element("span", `json-${kind}`, token));
    }
  });
  return whole;
}

function hexDump(bytes) {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, MAX_DUMPED); at += 16) {
    const row = Array.from(bytes.subarray(at, at + 16));
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const letters = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${hex.padEnd(47)}  ${letters}`);
  }
  if (bytes.length > MAX_DUMPED) lines.push(`… and ${bytes.length - MAX_DUMPED} bytes more`);
  return lines.join("\n");
}

function timeOfDay(timestamp) {
  const at = new Date(timestamp);
  const two = (number) => String(number).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${String(at.getMilliseconds()).padStart(3, "0")}`;
}

function qosText(qos, asked = qos) {
  return qos === asked ? `QoS ${qos}` : `QoS ${qos} of ${asked}`;
}

/** What a subscription asks for, in the order of the form; what is usual is not said. */
function contractText({ format, priority, maxRate, batch, delta }) {
  const said = [
    format,
    priority && `${priority} priority`,
    maxRate && `at most ${maxRate}/s`,
    batch && `batches of ${batch.maxMessages} within ${batch.maxDelay} ms`,
    delta && "changes only",
  ];
  return said.filter(Boolean).join(" · ");
}

function timeLeft(until) {
  const seconds = Math.max(0, Math.ceil((until - Date.now()) / 1000));
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}

function element(name, className, text = "") {
  return Object.assign(document.createElement(name), { className, textContent: text });
}

function stamp(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

// The page tells how the session is.

const session = new Session({
  changed: () => {
    if (session.phase !== "open") subscriptions.suspend();
    showSession();
    showEmptyState();
  },
  opened: () => subscriptions.askAgain(),
  delivered: (frame) => log.deliver(frame),
  ended: (topics) => subscriptions.ended(topics),
  expiring: () => showNotice("The token is about to end. Put a new one into its field and renew it, or the session ends with it."),
  refused: ({ message }) => showNotice(message),
});
const subscriptions = new Subscriptions();
const log = new Log();

function showSession() {
  const { phase } = session;
  const isLive = phase === "connecting" || phase === "queued" || phase === "open";
  $("status").dataset.phase = $("connection").dataset.phase = phase;
  showStatus();
  $("facts").hidden = phase !== "open";
  $("broker").textContent = $("broker").dataset.status = session.broker ?? "";
  $("client").textContent = $("client").title = session.clientId ?? "";
  $("session").textContent = $("session").title = session.sessionId ?? "";
  const isRenewable = phase === "open" && session.hasToken;
  $("connect").hidden = isLive && !isRenewable;
  $("connect").textContent = isRenewable ? "Renew" : phase === "waiting" ? "Connect now" : "Connect";
  $("disconnect").hidden = phase === "idle" || phase === "stopped";
  $("disconnect").textContent = phase === "waiting" ? "Stop" : "Disconnect";
  for (const input of [$("url"), $("client-id")]) {
    input.disabled = isLive;
    input.parentElement.hidden = phase === "open";
  }
  $("token").disabled = isLive && !isRenewable;
  $("token").parentElement.hidden = phase === "open" && !isRenewable;
  showNotice(phase === "waiting" || phase === "stopped" ? session.why : "");
}

function showStatus() {
  const seconds = Math.max(0, Math.ceil((session.retryAt - Date.now()) / 1000));
  const text = {
    idle: "Disconnected",
    connecting: "Connecting…",
    queued: `Waiting for a place: ${session.position}`,
    open: "Connected",
    waiting: seconds > 0 ? `Reconnecting in ${seconds} s` : "Reconnecting…",
    stopped: "Stopped",
  }[session.phase];
  if ($("status").textContent !== text) $("status").textContent = text;
  showExpiry();
}

function showExpiry() {
  const { expiresAt } = session;
  $("expiry").hidden = expiresAt === undefined;
  if (expiresAt === undefined) return;
  $("expires").textContent = `ends in ${timeLeft(expiresAt)}`;
  $("expires").dataset.state = expiresAt - Date.now() <= 60_000 ? "ending" : "good";
}

function showNotice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function showCounts() {
  $("count").textContent = log.received.toLocaleString();
}

function showEmptyState() {
  const isEmpty = $("messages").childElementCount === 0;
  $("empty").hidden = !isEmpty;
  if (!isEmpty) return;
  const isSearching = $("search").value !== "" && log.received > 0;
  $("empty-text").textContent = isSearching
    ? "None of the messages here hold that text."
    : session.phase !== "open"
      ? "Nothing yet: messages appear here once the page is connected."
      : subscriptions.size === 0
        ? "Nothing yet."
        : "Nothing yet: messages appear here as they arrive.";
  $("suggestions").hidden = isSearching || session.phase !== "open" || subscriptions.size > 0;
}

const rates = new Array(60).fill(0);
let counted = { received: 0, at: performance.now() };

function everySecond() {
  showStatus();
  showCounts();
  const now = { received: log.received, at: performance.now() };
  const rate = (now.received - counted.received) / ((now.at - counted.at) / 1000);
  counted = now;
  rates.shift();
  rates.push(Math.max(0, Math.round(rate)));
  $("rate").textContent = rates.at(-1).toLocaleString();
  const top = Math.max(1, ...rates);
  const points = rates.map((rate, x) => `${x},${(15 - (rate / top) * 14).toFixed(1)}`);
  $("trend").firstElementChild.setAttribute("points", points.join(" "));
}

// The page does what the user asks.

function connect() {
  session.open($("url").value, $("client-id").value.trim(), $("token").value.trim());
}

async function renew() {
  try {
    await session.renew($("token").value.trim());
    showNotice("");
    subscriptions.askForDenied();
  } catch ({ code, message }) {
    if (code !== "closed") showNotice(message);
  }
}

/** The contract that the form asks for: only what is not as usual. */
function wantedContract() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const unless = (usual, value) => (value === usual ? undefined : value);
  const maxMessages = number("batch-messages");
  return {
    format: unless("text", $("format").value),
    priority: unless("normal", $("priority").value),
    maxRate: number("max-rate"),
    batch: maxMessages && { maxMessages, maxDelay: number("batch-delay") ?? 100 },
    delta: unless(false, $("delta").checked),
  };
}

function onSubmit(form, act) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

onSubmit("connection", () => (session.phase === "open" ? renew() : connect()));
$("disconnect").onclick = () => session.close();
window.addEventListener("online", () => session.phase === "waiting" && connect());

onSubmit("subscribe", () => {
  subscriptions.add($("filter").value, Number($("filter-qos").value), wantedContract());
  $("filter").select();
});
// What is wrong in there is told only where it can be seen.
$("contract").addEventListener("invalid", () => ($("contract").open = true), { capture: true });
$("suggestions").onclick = ({ target }) => {
  if (target.dataset.filter) subscriptions.add(target.dataset.filter, 0);
};

onSubmit("publish", async () => {
  const started = performance.now();
  const message = {
    topic: $("topic").value,
    payload: $("payload").value,
    qos: Number($("publish-qos").value),
    retain: $("retain").checked,
  };
  const tell = (result, text) => {
    $("published").dataset.result = result;
    $("published").textContent = text;
  };
  tell("", "Publishing…");
  try {
    await session.request({ type: "publish", ...message });
    tell("ok", `Published in ${Math.ceil(performance.now() - started)} ms`);
  } catch (refusal) {
    tell("error", refusal.message);
  }
});
$("payload").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("publish").requestSubmit();
};

$("search").oninput = () => log.search($("search").value);
$("pause").onclick = () => {
  const paused = $("pause").classList.toggle("active");
  $("pause").textContent = paused ? "Resume" : "Pause";
  log.pause(paused);
};
$("clear").onclick = () => log.clear();
$("messages").addEventListener("toggle", ({ target }) => log.unfold(target), { capture: true });

const address = new URL("ws", location);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
$("url").value = address;
setInterval(everySecond, 1000);
connect();
