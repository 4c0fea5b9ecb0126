// The page in a real Chromium, with mosquitto_pub and mosquitto_sub on the broker's side.
//
//   TIDEGATE_URL  the gateway's main listener        (http://127.0.0.1:8080)
//   MQTT_PORT     the broker behind it, on loopback  (1883)
//   BROKER        "mosquitto" adds what only Mosquitto does
//   CHROMIUM      the browser's path                 (/usr/bin/chromium)
//   SCREENSHOT    where to save a picture of the page; not taken without it

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { eventually, launch, scene } from "./support.mjs";

const gateway = process.env.TIDEGATE_URL ?? "http://127.0.0.1:8080";
const mqttPort = process.env.MQTT_PORT ?? "1883";
const isMosquitto = process.env.BROKER === "mosquitto";

let browser;
let page;
let complaints;

before(async () => {
  browser = await launch();
}, scene);

beforeEach(async () => {
  page = await newPage();
  await page.goto(gateway);
  await isConnected();
}, scene);

afterEach(async () => {
  await page?.context().close();
  assert.deepEqual(complaints, [], "the browser complained, of a script or of a broken content security policy");
}, scene);

after(() => browser?.close(), scene);

test("the page connects by itself and says who it is", scene, async () => {
  assert.equal(await page.getByTestId("broker").textContent(), "up");
  assert.notEqual(await page.getByTestId("client").textContent(), "");
  assert.notEqual(await page.getByTestId("session").textContent(), "");
});

test("a client id of one's own is used", scene, async () => {
  await page.locator("#disconnect").click();
  await page.locator("#client-id").fill("attic-window");
  await page.locator("#connect").click();
  await isConnected();
  assert.equal(await page.getByTestId("client").textContent(), "attic-window");
});

test("a retained message and a live one are shown with topic, payload, qos and retain", scene, async () => {
  await publish("attic/window", "closed", "-r");
  try {
    await subscribe("attic/#", 1);
    assert.deepEqual(await shown("attic/window"), { payload: "closed", badges: ["retained", "QoS 1"] });

    const before = Date.now();
    await publish("attic/temp", "21.5");
    assert.deepEqual(await shown("attic/temp"), { payload: "21.5", badges: ["QoS 1"] });
    assert.match(await row("attic/temp").getByTestId("time").textContent(), /^\d\d:\d\d:\d\d\.\d{3}$/);
    assert.ok(Date.now() - before < 5_000, "a live message takes less than five seconds");
  } finally {
    await publish("attic/window", "", "-r");
  }
});

test("a JSON payload keeps its numbers as they were written, and opens into lines", scene, async () => {
  await subscribe("attic/#", 1);
  await publish("attic/climate", '{"celsius":21.50,"id":12345678901234567890}');
  assert.equal((await shown("attic/climate")).payload, '{"celsius": 21.50, "id": 12345678901234567890}');
  await row("attic/climate").locator("summary").press("Enter");
  const whole = await row("attic/climate").getByTestId("whole-payload").textContent();
  assert.equal(whole, '{\n  "celsius": 21.50,\n  "id": 12345678901234567890\n}');
});

test("emoji arrive as text, and bytes that are no text as base64", scene, async () => {
  await subscribe("attic/#", 1);
  await publish("attic/note", "Grüße 🍋 水");
  await publish("attic/camera", Buffer.from([0xff, 0xd8, 0xff, 0x00, 0x10]));
  assert.deepEqual(await shown("attic/note"), { payload: "Grüße 🍋 水", badges: ["QoS 1"] });
  assert.deepEqual(await shown("attic/camera"), { payload: "/9j/ABA=", badges: ["base64", "QoS 1"] });
  await row("attic/camera").locator("summary").click();
  assert.match(await row("attic/camera").getByTestId("whole-payload").textContent(), /^0000 {2}ff d8 ff 00 10 /);
});

test("what the page publishes reaches a plain MQTT client, byte for byte", scene, async () => {
  const reader = await Reader.on("attic/#");
  try {
    const payload = '{"on": true,\n "note": "Grüße 🍋"}';
    for (const qos of [0, 1, 2]) {
      await fillPublish({ topic: `attic/light/${qos}`, payload, qos });
      assert.match(await published(), /^Published in \d+ ms$/);
      assert.deepEqual(await reader.next(), { topic: `attic/light/${qos}`, payload });
    }
  } finally {
    await reader.stop();
  }
});

test("a retained message that the page publishes is there for whoever comes later", scene, async () => {
  try {
    await fillPublish({ topic: "attic/lamp", payload: "on", qos: 1, retain: true });
    assert.match(await published(), /^Published/);
    await subscribe("attic/lamp", 1);
    assert.deepEqual(await shown("attic/lamp"), { payload: "on", badges: ["retained", "QoS 1"] });
  } finally {
    await publish("attic/lamp", "", "-r");
  }
});

test("a publish that is refused says why", scene, async () => {
  await fillPublish({ topic: "attic/#", payload: "on", qos: 1 });
  const told = await published();
  assert.match(told, /\w+ \w+/, "a sentence");
  assert.doesNotMatch(told, /^Published/);
  assert.equal(await page.getByTestId("published").getAttribute("data-result"), "error");
  await isConnected();
});

test("an invalid filter says what is wrong with it, and the others go on", scene, async () => {
  await subscribe("attic/#", 1);
  await askFor("attic/#/window", 0);
  await subscription("attic/#/window", "failed").waitFor();
  assert.match(await subscription("attic/#/window", "failed").getByTestId("subscription-error").textContent(), /\w+ \w+/);

  await publish("attic/temp", "21.5");
  assert.equal((await shown("attic/temp")).payload, "21.5");
  await subscription("attic/#/window", "failed").getByTestId("unsubscribe").click();
  await subscription("attic/#/window", "failed").waitFor({ state: "detached" });
});

test("a subscription is asked for with its options, and what they do is shown", scene, async () => {
  await page.locator("#contract summary").press("Enter");
  await page.locator("#format").selectOption("json");
  await page.locator("#priority").selectOption("low");
  await page.locator("#max-rate").fill("2");
  await page.locator("#batch-messages").fill("10");
  await page.locator("#batch-delay").fill("5");
  await page.locator("#delta").check();
  await subscribe("attic/#", 1);
  const contract = await subscription("attic/#", "granted").getByTestId("contract").textContent();
  assert.equal(contract, "json · low priority · at most 2/s · batches of 10 within 5 ms · changes only");

  await publish("attic/climate", '{"celsius":21,"note":"the window is closed"}');
  assert.deepEqual(await shown("attic/climate"), {
    payload: '{"celsius": 21, "note": "the window is closed"}',
    badges: ["QoS 1"],
  });
  await publish("attic/climate", '{"celsius":22,"note":"the window is closed"}');
  await publish("attic/climate", '{"celsius":23,"note":"the window is closed"}');
  await eventually(async () => assert.equal((await shown("attic/climate")).payload, '{"celsius": 23}'));
  assert.ok((await shown("attic/climate")).badges.includes("patch"));

  await publish("attic/note", '"on"');
  assert.equal((await shown("attic/note")).payload, '"on"');
});

test("after unsubscribing nothing more is shown", scene, async () => {
  await subscribe("attic/#", 1);
  await subscribe("cellar/#", 1);
  await subscription("attic/#", "granted").getByTestId("unsubscribe").click();
  await subscription("attic/#", "granted").waitFor({ state: "detached" });
  await publish("attic/temp", "21.5");
  await publish("cellar/temp", "12.0");
  assert.equal((await shown("cellar/temp")).payload, "12.0");
  assert.equal(await row("attic/temp").count(), 0);
});

test("a paused list stands still and catches up", scene, async () => {
  await subscribe("attic/#", 1);
  await page.locator("#pause").click();
  await publish("attic/temp", "21.5");
  await eventually(async () => assert.equal(await page.getByTestId("count").textContent(), "1"));
  assert.equal(await row("attic/temp").count(), 0);
  await page.locator("#pause").click();
  assert.equal((await shown("attic/temp")).payload, "21.5");
});

test("the search box leaves what holds its text", scene, async () => {
  await subscribe("attic/#", 1);
  await publish("attic/temp", "21.5");
  await publish("attic/window", "closed");
  await shown("attic/window");
  await page.locator("#search").fill("TEMP");
  await row("attic/window").waitFor({ state: "detached" });
  assert.equal(await row("attic/temp").count(), 1);
  await page.locator("#search").fill("");
  await row("attic/window").waitFor();
});

test("a page whose gateway restarts comes back with its subscriptions", scene, async () => {
  const gate = await reopenThroughGate();
  await subscribe("attic/#", 1);
  gate.cut(1012);
  await eventually(() => assert.equal(gate.connections, 2));
  await isConnected();
  await subscription("attic/#", "granted").waitFor();
  await publish("attic/temp", "21.5");
  assert.equal((await shown("attic/temp")).payload, "21.5");
});

test("a page whose client id is taken over stops, and says so", scene, async () => {
  const gate = await reopenThroughGate();
  gate.cut(4009);
  await page.locator('#status[data-phase="stopped"]').waitFor();
  assert.match(await page.getByTestId("notice").textContent(), /client id/);
  await sleep(1_000);
  assert.equal(gate.connections, 1);
});

test("the broker's own tree is shown", { ...scene, skip: !isMosquitto && "only Mosquitto has one" }, async () => {
  await subscribe("$SYS/#", 0);
  assert.match((await shown("$SYS/broker/version")).payload, /^mosquitto version/);
  await eventually(async () => assert.ok((await page.getByTestId("message").count()) > 20));
});

test("the textbook client works as it is: no subprotocol, no msgid", scene, async () => {
  await page.evaluate((url) => {
    window.heard = [];
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send(JSON.stringify({ type: "subscribe", topic: "attic/#" }));
    socket.onmessage = ({ data }) => window.heard.push(JSON.parse(data));
  }, `${gateway.replace(/^http/, "ws").replace(/\/$/, "")}/ws`);
  const heard = (type) =>
    eventually(async () => {
      const frame = (await page.evaluate(() => window.heard)).find((frame) => frame.type === type);
      assert.ok(frame, `a frame of type ${type}`);
      return frame;
    });

  const { topics } = await heard("subscribed");
  assert.deepEqual(topics, [{ topic: "attic/#", qos: 0 }]);
  await publish("attic/temp", "21.5");
  const { topic, payload, retain, timestamp } = await heard("mqtt");
  assert.deepEqual({ topic, payload, retain }, { topic: "attic/temp", payload: "21.5", retain: false });
  assert.ok(Math.abs(Date.now() - timestamp) < 10_000, "the timestamp is the time of receipt");
});

test("a picture for the README", { ...scene, skip: !process.env.SCREENSHOT && "SCREENSHOT names no file" }, async () => {
  const retained = { "home/hall/light": '{"on":true,"brightness":180}', "plant/press/3/mode": "automatic" };
  const live = [
    ["home/attic/temperature", "21.5", 0],
    ["plant/line/2/counter", "184302", 1],
    ["home/kitchen/note", "Basil needs water 🌿", 1],
    ["plant/boiler/pressure", '{"bar":4.21,"limit":6.0,"ok":true}', 2],
    ["home/hall/motion", "true", 0],
    ["plant/camera/thumbnail", Buffer.from([0xff, 0xd8, 0xff, 0xe0, 0x00, 0x10, 0x4a, 0x46, 0x49, 0x46, 0x00, 0x01]), 1],
    ["plant/press/3/state", '{"running":true,"strokes":184302,"fault":null}', 1],
    ["home/attic/temperature", "21.6", 0],
    ["plant/boiler/pressure", '{"bar":4.24,"limit":6.0,"ok":true}', 2],
  ];
  await page.setViewportSize({ width: 1280, height: 760 });
  try {
    for (const [topic, payload] of Object.entries(retained)) await publish(topic, payload, "-r");
    await subscribe("home/#", 1);
    await subscribe("plant/+/#", 2);
    for (const topic of Object.keys(retained)) await shown(topic);
    for (const [topic, payload, qos] of live) {
      await publish(topic, payload, "-q", String(qos));
      await sleep(330);
    }
    await fillPublish({ topic: "home/hall/light", payload: '{"on": false}', qos: 1 });
    await published();
    await eventually(async () => assert.equal(await page.getByTestId("message").count(), live.length + 3));
    await row("plant/press/3/state").locator("summary").click();
    await page.locator("h1").hover();
    await sleep(1_000);
    await page.screenshot({ path: process.env.SCREENSHOT });
  } finally {
    for (const topic of Object.keys(retained)) await publish(topic, "", "-r");
  }
});

// The page's side.

async function newPage() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  const page = await context.newPage();
  page.setDefaultTimeout(10_000);
  complaints = [];
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  return page;
}

async function isConnected() {
  await page.locator('#status[data-phase="open"]').waitFor();
  assert.equal(await page.getByTestId("status").textContent(), "Connected");
}

async function askFor(filter, qos) {
  await page.locator("#filter").fill(filter);
  await page.locator("#filter-qos").selectOption(String(qos));
  await page.locator("#filter").press("Enter");
}

async function subscribe(filter, qos) {
  await askFor(filter, qos);
  await subscription(filter, "granted").waitFor();
}

function subscription(filter, state) {
  return page.locator(`[data-testid="subscription"][data-filter="${filter}"][data-state="${state}"]`);
}

/** The newest message of that topic. */
function row(topic) {
  return page.getByTestId("message").filter({ has: page.getByTestId("topic").getByText(topic, { exact: true }) }).first();
}

async function shown(topic) {
  await row(topic).waitFor();
  return {
    payload: await row(topic).getByTestId("payload").textContent(),
    badges: await row(topic).locator(".badge").allTextContents(),
  };
}

async function fillPublish({ topic, payload, qos, retain = false }) {
  await page.locator("#topic").fill(topic);
  await page.locator("#payload").fill(payload);
  await page.locator("#publish-qos").selectOption(String(qos));
  await page.locator("#retain").setChecked(retain);
  await page.locator("#payload").press("Control+Enter");
}

async function published() {
  await page.locator("#published:is([data-result='ok'], [data-result='error'])").waitFor();
  return page.getByTestId("published").textContent();
}

/** Loads the page anew with a gate between it and the gateway, which can end the connection with any close code. */
async function reopenThroughGate() {
  const gate = { connections: 0, cut: undefined };
  await page.routeWebSocket(/\/ws$/, (socket) => {
    socket.connectToServer();
    gate.connections += 1;
    gate.cut = (code) => socket.close({ code });
  });
  await page.reload();
  await isConnected();
  return gate;
}

// The broker's side.

/** Publishes at qos 1 unless the options say otherwise; an empty payload with `-r` takes a retained message back. */
async function publish(topic, payload, ...options) {
  const args = ["-h", "127.0.0.1", "-p", mqttPort, "-q", "1", "-t", topic, ...options];
  const client = spawn("mosquitto_pub", [...args, payload.length === 0 ? "-n" : "-s"], { stdio: ["pipe", "ignore", "pipe"] });
  client.stdin.on("error", () => {}); // A client that died says why by itself.
  client.stdin.end(payload);
  let complaint = "";
  client.stderr.on("data", (text) => (complaint += text));
  const code = await ended(client);
  assert.equal(code, 0, `mosquitto_pub to ${topic}: ${complaint}`);
}

/** A mosquitto_sub that is known to listen. */
class Reader {
  #client;
  #probe;
  #messages = [];

  static async on(filter) {
    const reader = new Reader(filter);
    await eventually(async () => {
      await publish(reader.#probe, "?");
      await sleep(50);
      assert.ok(reader.#messages.length > 0, `mosquitto_sub hears ${filter}`);
    });
    return reader;
  }

  constructor(filter) {
    this.#probe = filter.replace("#", "probe");
    const args = ["-h", "127.0.0.1", "-p", mqttPort, "-q", "2", "-W", "25", "-t", filter, "-F", "%t %x"];
    this.#client = spawn("mosquitto_sub", args, { stdio: ["ignore", "pipe", "inherit"] });
    createInterface({ input: this.#client.stdout }).on("line", (line) => {
      const [topic, hex] = line.split(" ");
      this.#messages.push({ topic, payload: Buffer.from(hex, "hex").toString() });
    });
  }

  async next() {
    return eventually(() => {
      this.#messages = this.#messages.filter(({ topic }) => topic !== this.#probe);
      assert.ok(this.#messages.length > 0, "mosquitto_sub printed a message");
      return this.#messages.shift();
    });
  }

  async stop() {
    this.#client.kill();
    await ended(this.#client);
  }
}

function ended(client) {
  if (client.exitCode !== null || client.signalCode !== null) return client.exitCode;
  return new Promise((resolve, reject) => client.on("close", resolve).on("error", reject));
}
