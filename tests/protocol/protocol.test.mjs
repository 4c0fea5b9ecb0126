// The protocol as data: examples, schemas and description say the same.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { Parser } from "@asyncapi/parser";
import Ajv from "ajv";
import { parse as parseYaml } from "yaml";

const CLIENT = ["auth", "subscribe", "unsubscribe", "publish", "ack", "ping"];
const GATEWAY = [
  ...["welcome", "auth_response", "subscribed", "unsubscribed", "ack", "mqtt", "batch"],
  ...["error", "broker", "pong", "bye", "queued", "expiring"],
];
const FRAMES = [...CLIENT.map((type) => `client.${type}`), ...GATEWAY.map((type) => `gateway.${type}`)];

const read = (path) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
const files = new Map(
  readdirSync(new URL("../../protocol/v1", import.meta.url)).map((file) => [
    file.replace(/\.json$/, ""),
    JSON.parse(read(`protocol/v1/${file}`)),
  ]),
);
const yaml = read("protocol/asyncapi.yaml");
const { components, channels } = parseYaml(yaml);
const guide = read("docs/protocol.md");

const ajv = new Ajv({ strictRequired: false, strictTypes: false });
ajv.addVocabulary(["components"]);
ajv.addSchema({ $id: "asyncapi", components });
const schemas = new Map(
  Object.keys(components.messages).map((name) => [
    name,
    ajv.compile({ $ref: `asyncapi#/components/messages/${name}/payload` }),
  ]),
);

test("the AsyncAPI document is valid", async () => {
  const { document, diagnostics } = await new Parser().parse(yaml);
  const told = diagnostics.filter(({ code }) => code !== "asyncapi-latest-version");
  assert.deepEqual(told.map(({ code, path, message }) => `${code} at ${path.join(".")}: ${message}`), []);
  assert.ok(document);
});

test("every frame has a file, a schema and its place in the channel", () => {
  const sorted = (names) => [...names].sort();
  assert.deepEqual(sorted(files.keys()), sorted([...FRAMES, "client.any"]));
  assert.deepEqual(sorted(Object.keys(components.messages)), sorted(FRAMES));
  assert.deepEqual(sorted(Object.keys(channels.ws.messages)), sorted(FRAMES));
});

test("a file says what it is", () => {
  for (const [name, file] of files) {
    assert.equal(`${file.from}.${file.frame}`, name);
    assert.equal(file.since, "1.0", name);
    assert.match(file.summary, /\.$/, name);
    assert.equal("refused" in file, file.from === "client", name);
    for (const list of [file.examples, file.refused ?? []]) {
      assert.equal(new Set(list.map((entry) => entry.name)).size, list.length, `${name}: names are unique`);
    }
    if (name !== "client.any") {
      assert.ok(file.examples.length > 0, name);
      assert.equal(file.summary, components.messages[name].summary, name);
    }
  }
});

test("every example fits the schema of its frame", () => {
  for (const [name, { examples, frame: type }] of files) {
    for (const { name: example, frame } of examples) {
      assert.equal(frame.type, type, `${name}: ${example}`);
      const validate = schemas.get(name);
      assert.ok(validate(frame), `${name}: ${example}: ${ajv.errorsText(validate.errors)}`);
    }
  }
});

test("a refused text fits no schema, unless it is marked as beyond them", () => {
  for (const [name, { refused = [] }] of files) {
    for (const { name: entry, text, schema } of refused) {
      assert.equal(fitsItsSchema(text), schema === false, `${name}: ${entry}`);
    }
  }
});

test("a refused text has the code of the stage that refuses it", () => {
  const codes = ["invalid_json", "invalid_frame", "unknown_type", "invalid_topic", "invalid_payload"];
  for (const [name, { refused = [] }] of files) {
    for (const { name: entry, text, code, schema } of refused) {
      assert.ok(codes.includes(code), `${name}: ${entry}`);
      const value = parsed(text);
      const known = CLIENT.includes(value?.type);
      if (schema !== false) assert.equal(value === undefined, code === "invalid_json", `${name}: ${entry}`);
      if (typeof value?.type === "string") assert.equal(!known, code === "unknown_type", `${name}: ${entry}`);
    }
  }
});

test("examples in the AsyncAPI document are those of the files", () => {
  for (const [name, { examples }] of Object.entries(components.messages)) {
    assert.ok(examples.length > 0, name);
    for (const { name: example, payload } of examples) assert.deepEqual(payload, exampleOf(name, example));
  }
});

test("examples in the description are those of the files, one for each frame at least", () => {
  const marked = [...guide.matchAll(/<!-- v1\/(\S+)\.json: (.+) -->\n```json\n([^]*?)\n```/g)];
  assert.equal(marked.length, guide.match(/^```json$/gm).length, "every JSON block is marked");
  for (const [, name, example, block] of marked) assert.deepEqual(JSON.parse(block), exampleOf(name, example));
  assert.deepEqual(new Set(marked.map(([, name]) => name)), new Set(FRAMES));
});

test("field tables in the description have the fields of the schemas", () => {
  for (const name of FRAMES) {
    const section = sectionOf(name);
    const schema = components.messages[name].payload;
    for (const [, , inner, rows] of section.matchAll(/^\| (field|in `(\w+)`) \|.*\n\|[ -|]+\n((?:\|.*\n)+)/gm)) {
      const expected = fieldsOf(inner ? fieldsOf(schema).get(inner) : schema);
      expected.delete("type");
      const fields = [...rows.matchAll(/^\| `(\w+)`/gm)].map(([, field]) => field);
      assert.deepEqual(fields.sort(), [...expected.keys()].sort(), `${name} ${inner ?? ""}`);
    }
    assert.match(section, /^\| field \|/m, name);
  }
});

test("the description's table of errors has every code", () => {
  const table = guide.split("\n## Errors\n")[1].split("\n## ")[0];
  const codes = [...table.matchAll(/^\| `(\w+)` \|/gm)].map(([, code]) => code);
  assert.deepEqual(codes, components.schemas.ErrorCode.enum);
});

test("links inside the description lead somewhere", () => {
  const anchors = [...guide.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading.toLowerCase().replace(/[^\w -]/g, "").replaceAll(" ", "-"),
  );
  for (const [, anchor] of guide.matchAll(/\]\(#([^)]+)\)/g)) assert.ok(anchors.includes(anchor), `#${anchor}`);
});

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function fitsItsSchema(text) {
  const frame = parsed(text);
  const validate = schemas.get(`client.${frame?.type}`);
  return typeof frame?.type === "string" && validate !== undefined && validate(frame);
}

function exampleOf(name, example) {
  const found = files.get(name).examples.find((entry) => entry.name === example);
  assert.ok(found, `${name} has an example "${example}"`);
  return found.frame;
}

// The part of the description under the heading of one frame; `ack` is there for each side.
function sectionOf(name) {
  const [side, type] = name.split(".");
  const chapter = guide.split(side === "client" ? "\n### What a client sends\n" : "\n### What the gateway sends\n")[1];
  const [, section] = chapter.split(/\n#{2,3} /)[0].split(`\n#### ${type}\n`);
  assert.ok(section, `${name} has a section`);
  return section.split("\n#### ")[0];
}

// Name and schema of each field an object may have, those that `false` forbids left out.
function fieldsOf(schema) {
  if (schema.$ref) return fieldsOf(schema.$ref.split("/").slice(1).reduce((at, key) => at[key], { components }));
  const fields = new Map(Object.entries(schema.properties ?? {}).filter(([, field]) => field !== false));
  const parts = [...(schema.allOf ?? []), ...(schema.oneOf ?? []), ...(schema.items ? [schema.items] : [])];
  for (const part of parts) for (const [name, field] of fieldsOf(part)) fields.set(name, field);
  return fields;
}
