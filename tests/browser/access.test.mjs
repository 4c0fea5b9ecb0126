// Who may come in, in a real Chromium: tokens in the page, cookies, and pages of other origins that try to use them.
//
//   TIDEGATE_PROGRAM  the gateway's program, which each scene starts with a configuration of its own; all are skipped without it
//   CHROMIUM          the browser's path  (/usr/bin/chromium)

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash, createHmac } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { eventually, launch, launchProfile, scene } from "./support.mjs";

const program = process.env.TIDEGATE_PROGRAM;
const SECRET = "a secret of at least thirty-two bytes";
const COOKIE_TOKEN = "the-token-in-the-cookie";
const ROLES = `
[roles.operator]
grants = [{ allow = ["subscribe", "publish"], topics = ["attic/#"] }]
[roles.viewer]
grants = [{ allow = ["subscribe"], topics = ["attic/temp"] }]
`;

describe("access", { skip: !program && "TIDEGATE_PROGRAM names no program" }, () => {
  let browser;
  let page;
  let complaints;
  let gateway;

  before(async () => {
    browser = await launch();
  }, scene);

  beforeEach(async () => {
    watch(await (await browser.newContext()).newPage());
  }, scene);

  afterEach(async () => {
    await page?.context().close();
    await gateway?.stop();
    gateway = undefined;
    assert.deepEqual(complaints, [], "the browser complained");
  }, scene);

  after(() => browser?.close(), scene);

  describe("with tokens in the page", () => {
    beforeEach(async () => {
      gateway = await Gateway.start(`
        [auth]
        anonymous = false
        [auth.jwt]
        algorithms = ["HS256"]
        secret = "${SECRET}"
        leeway = 0
        ${ROLES}`);
      await page.goto(gateway.url);
    }, scene);

    test("a page without a token is told what to do, and keeps the one that it gets to itself", scene, async () => {
      await stopped(/^\S.* Put a new token into its field and connect\. \(4401\)$/);
      await show(token("olga", "operator"));
      await open();
      assert.match(await page.getByTestId("expires").textContent(), /^ends in (59|60) min$/);
      const kept = await page.evaluate(() => [location.href, document.cookie, localStorage.length, sessionStorage.length]);
      assert.deepEqual(kept, [gateway.url, "", 0, 0]);
      await page.reload();
      await stopped(/\(4401\)$/);
      assert.equal(await page.locator("#token").inputValue(), "");
    });

    test("a token that is not good is told, and another one may be tried", scene, async () => {
      await show("no-token-of-anybody");
      await stopped(/Connect with another token\. \(4403\)$/);
      await show(token("olga", "operator"));
      await open();
    });

    test("what is not allowed says why, and the session goes on", scene, async () => {
      await show(token("vera", "viewer"));
      await open();
      await subscribe("attic/#");
      assert.match(await errorOf("attic/#"), /^You may not subscribe to attic\/#: /);
      await page.locator("#topic").fill("attic/temp");
      await page.locator("#payload").press("Control+Enter");
      await page.locator('#published[data-result="error"]').waitFor();
      assert.match(await page.getByTestId("published").textContent(), /^You may not publish to attic\/temp: /);
      await open();
    });

    test("a token that is about to end is renewed in the open session, and what it allows holds at once", scene, async () => {
      await show(token("olga", "operator", 30));
      await open();
      const session = await page.getByTestId("session").textContent();
      await eventually(async () => assert.match(await notice(), /token is about to end/));
      assert.match(await page.getByTestId("expires").textContent(), /^ends in \d\d s$/);
      await subscribe("attic/#");
      await granted("attic/#");

      await show(token("vera", "operator"));
      await eventually(async () => assert.match(await notice(), /another user/));
      await granted("attic/#");

      await show(token("olga", "viewer"));
      assert.match(await errorOf("attic/#"), /not allowed any more/);
      assert.match(await page.getByTestId("expires").textContent(), /^ends in (59|60) min$/);
      assert.equal(await page.locator("#notice").isHidden(), true);

      await show(token("olga", "operator"));
      await granted("attic/#");
      assert.equal(await page.getByTestId("session").textContent(), session);
    });

    test("a session whose token has ended says so, and comes back with a new one", scene, async () => {
      await show(token("olga", "operator", 2));
      await stopped(/^\S.* Put a new token into its field and connect\. \(4401\)$/);
      await show(token("olga", "operator"));
      await open();
    });

    async function show(token) {
      await page.locator("#token").fill(token);
      await page.locator("#token").press("Enter");
    }
  });

  describe("with a cookie", () => {
    let elsewhere;
    let listed;
    let profile;

    beforeEach(async () => {
      [elsewhere, listed] = [await Site.start(), await Site.start()];
      await page.context().close();
      profile = await mkdtemp(join(tmpdir(), "tidegate-profile-"));
      watch(await (await launchProfile(profile)).newPage());
    }, scene);

    afterEach(async () => {
      await page.context().close();
      await rm(profile, { recursive: true, force: true });
      await elsewhere.stop();
      await listed.stop();
    }, scene);

    const cookie = () => `
        [auth]
        anonymous = false
        cookie = "sid"
        [auth.tokens.olga]
        hash = "sha256:${createHash("sha256").update(COOKIE_TOKEN).digest("hex")}"
        roles = ["operator"]
        ${ROLES}`;

    /** The victim has been at the gateway's site. A cookie has no port, and so goes to every one of the host. */
    async function logIn() {
      const { hostname } = new URL(gateway.url);
      const of = { domain: hostname, path: "/", value: COOKIE_TOKEN, httpOnly: true };
      await page.context().addCookies([{ ...of, name: "sid", sameSite: "None", secure: true }]);
    }

    test("the gateway's own page comes in by the cookie, and pages of other origins come in as nobody", scene, async () => {
      gateway = await Gateway.start(cookie());
      await logIn();
      await page.goto(gateway.url);
      await open();
      for (const origin of elsewhere.origins) {
        await page.goto(origin);
        const { code, heard } = await attack();
        assert.equal(code, 4401, origin);
        assert.deepEqual(heard.map(({ type, code }) => [type, code]), [["error", "not_authenticated"]], origin);
        assert.equal((await attack({ type: "auth", token: COOKIE_TOKEN })).heard[0].type, "auth_response", "a token is for any page");
      }
      assert.ok(!gateway.log.includes(COOKIE_TOKEN));
    });

    test("pages of listed origins come in by the cookie, and those of others find the door shut", scene, async () => {
      const list = JSON.stringify(listed.origins);
      gateway = await Gateway.start(`[http]\nallowed_origins = ${list}\n${cookie()}`);
      await logIn();
      for (const origin of listed.origins) {
        await page.goto(origin);
        // So the browser shows the cookie, whichever page asks.
        assert.deepEqual((await attack()).heard.map(({ type }) => type), ["welcome", "subscribed"], origin);
      }
      for (const origin of elsewhere.origins) {
        await page.goto(origin);
        for (const frame of [undefined, { type: "auth", token: COOKIE_TOKEN }]) {
          assert.deepEqual(await attack(frame), { code: 1006, heard: [] }, origin);
        }
      }
      assert.equal(complaints.length, 4);
      for (const complaint of complaints.splice(0)) assert.match(complaint, /Unexpected response code: 403/);
    });

    test("a frame without an origin comes in as nobody", scene, async () => {
      gateway = await Gateway.start(cookie());
      await logIn();
      await page.goto(elsewhere.origins[0]);
      const sandbox = await framed({ sandbox: "allow-scripts", srcdoc: "<p>Nobody's" });
      assert.equal(await sandbox.evaluate(() => window.origin), "null");
      const { code, heard } = await attack(undefined, sandbox);
      assert.equal(code, 4401);
      assert.deepEqual(heard.map(({ type, code }) => [type, code]), [["error", "not_authenticated"]]);
    });

    test("pages of other origins can neither frame the gateway's page nor read it", scene, async () => {
      gateway = await Gateway.start(cookie());
      await logIn();
      for (const origin of elsewhere.origins) {
        await page.goto(origin);
        const reads = (mode) => page.evaluate(([url, mode]) => fetch(url, { mode }).then(() => true, () => false), [gateway.url, mode]);
        assert.deepEqual([await reads("cors"), await reads("no-cors")], [false, false], origin);
        const frame = await framed({ src: gateway.url });
        assert.equal(await frame.locator("#status").count(), 0, origin);
      }
      for (const complaint of complaints.splice(0)) assert.match(complaint, /CORS|Cross-Origin|NotSameOrigin|ERR_FAILED|frame/i);
    });

    /** A frame in the page that is shown, once it is loaded. */
    async function framed(attributes) {
      await page.evaluate((attributes) => {
        const frame = Object.assign(document.createElement("iframe"), attributes);
        document.body.append(frame);
        return new Promise((resolve) => (frame.onload = resolve));
      }, attributes);
      return page.mainFrame().childFrames().at(-1);
    }

    /** Opens a WebSocket from the page that is shown, or its frame, and gives back what it heard until it was closed, or let in and answered. */
    function attack(frame = { type: "subscribe", topic: "attic/#" }, from = page) {
      return from.evaluate(
        ([url, frame]) =>
          new Promise((resolve) => {
            const heard = [];
            const socket = new WebSocket(url);
            socket.onopen = () => socket.send(JSON.stringify(frame));
            socket.onmessage = ({ data }) => {
              heard.push(JSON.parse(data));
              if (heard.length === 2) resolve({ heard });
            };
            socket.onclose = ({ code }) => resolve({ code, heard });
          }),
        [gateway.socket, frame],
      );
    }
  });

  test("a token in a URL is in no Referer, in no log and in no metric", scene, async () => {
    const site = await Site.start();
    try {
      gateway = await Gateway.start(`
        [log]
        level = "debug"
        [auth]
        anonymous = false
        query_token = true
        [auth.jwt]
        algorithms = ["HS256"]
        secret = "${SECRET}"
        ${ROLES}`);
      const secret = token("olga", "operator");
      const ownRequests = [];
      page.on("request", (request) => request.url() !== gateway.url && ownRequests.push(request.headers().referer));
      await page.goto(`${gateway.url}?token=${secret}`);
      await page.locator("#url").fill(`${gateway.socket}?token=${secret}`);
      await page.locator("#connect").click();
      await open();
      await page.evaluate((url) => {
        const link = Object.assign(document.createElement("a"), { href: url, textContent: "away" });
        document.body.append(link);
        link.click();
      }, site.origins[0]);
      await page.waitForURL(`${site.origins[0]}/`);
      assert.ok(ownRequests.length > 0 && site.referers.length === 1);
      assert.deepEqual([...ownRequests, ...site.referers].filter(Boolean), []);
      const metrics = await (await fetch(gateway.metrics)).text();
      const [, , signature] = secret.split(".");
      assert.match(gateway.log, /session opened/);
      assert.ok(!gateway.log.includes(signature) && !metrics.includes(signature));
    } finally {
      await page.context().close(); // it may still fetch an icon of the site
      await site.stop();
    }
  });

  // The page's side.

  function watch(opened) {
    page = opened;
    page.setDefaultTimeout(10_000);
    complaints = [];
    page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(String(error)));
  }

  async function open() {
    await page.locator('#status[data-phase="open"]').waitFor();
  }

  async function stopped(why) {
    await page.locator('#status[data-phase="stopped"]').waitFor();
    await eventually(async () => assert.match(await notice(), why));
  }

  function notice() {
    return page.getByTestId("notice").textContent();
  }

  async function subscribe(filter) {
    await page.locator("#filter").fill(filter);
    await page.locator("#filter").press("Enter");
  }

  async function granted(filter) {
    await subscription(filter, "granted").waitFor();
  }

  async function errorOf(filter) {
    await subscription(filter, "failed").waitFor();
    return subscription(filter, "failed").getByTestId("subscription-error").textContent();
  }

  function subscription(filter, state) {
    return page.locator(`[data-testid="subscription"][data-filter="${filter}"][data-state="${state}"]`);
  }
});

/** A JSON Web Token of HS256, for an hour or for so many seconds. */
function token(user, role, seconds = 3600) {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const claims = { sub: user, roles: [role], exp: Math.floor(Date.now() / 1000) + seconds };
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
}

/** The program with a configuration of the scene's own, before the embedded broker. */
class Gateway {
  log = "";
  #child;
  #folder;

  static async start(configuration) {
    const gateway = new Gateway();
    gateway.#folder = await mkdtemp(join(tmpdir(), "tidegate-"));
    const file = join(gateway.#folder, "tidegate.toml");
    await writeFile(file, configuration);
    const free = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--broker", "embedded"];
    gateway.#child = spawn(program, ["--config", file, ...free], { env: {}, stdio: ["ignore", "pipe", "pipe"] });
    gateway.#child.stderr.on("data", (text) => (gateway.log += text));
    for await (const line of createInterface({ input: gateway.#child.stdout })) {
      const [name, ...rest] = line.trim().split(/\s+/);
      if (name === "console") gateway.url = rest.at(-1);
      if (name === "metrics") gateway.metrics = rest.at(-1);
      if (gateway.url && gateway.metrics) break;
    }
    assert.ok(gateway.metrics, `the gateway starts: ${gateway.log}`);
    gateway.socket = `${gateway.url.replace(/^http/, "ws")}ws`;
    await eventually(async () => assert.equal((await fetch(`${gateway.url}readyz`)).status, 200));
    return gateway;
  }

  async stop() {
    const ended = new Promise((resolve) => this.#child.once("close", resolve));
    if (this.#child.exitCode === null) {
      this.#child.kill("SIGKILL");
      await ended;
    }
    await rm(this.#folder, { recursive: true });
  }
}

/** Somebody else's server, at an address of two names: one of the gateway's site, where only the port is another, and one of none. */
class Site {
  referers = [];
  #server;

  static async start() {
    const site = new Site();
    site.#server = createServer((request, response) => {
      if (request.url === "/") site.referers.push(request.headers.referer);
      response.setHeader("content-type", request.url === "/" ? "text/html" : "image/svg+xml");
      response.end(request.url === "/" ? "<!doctype html><title>Elsewhere</title>" : "<svg xmlns='http://www.w3.org/2000/svg'/>");
    });
    await new Promise((resolve) => site.#server.listen(0, "127.0.0.1", resolve));
    const { port } = site.#server.address();
    site.origins = [`http://127.0.0.1:${port}`, `http://localhost:${port}`];
    return site;
  }

  async stop() {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
