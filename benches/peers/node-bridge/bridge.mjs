// The textbook bridge from WebSocket to MQTT: one MQTT client a connection, JSON frames in between. It is measured
// beside the gateway, on the same work; it checks nobody's rights and bounds no queue.

import { createServer } from "node:http";
import { parseArgs } from "node:util";
import mqtt from "mqtt";
import { WebSocketServer } from "ws";

const { values: options } = parseArgs({
  options: { host: { type: "string", default: "127.0.0.1" }, port: { type: "string" }, broker: { type: "string" } },
});

const server = createServer((_, response) => response.writeHead(404).end());
const sockets = new WebSocketServer({ server, path: "/ws", handleProtocols: () => "tidegate.v1.json" });
sockets.on("connection", serve);
server.listen(Number(options.port), options.host);

function serve(socket) {
  socket.on("error", () => socket.terminate());
  socket.once("message", (text) => {
    if (read(text)?.type === "auth") greet(socket);
    else socket.close(4401);
  });
}

function greet(socket) {
  const client = mqtt.connect(options.broker, { protocolVersion: 5, reconnectPeriod: 0 });
  const send = (frame) => socket.send(JSON.stringify(frame));
  client.once("connect", () => {
    send({ type: "auth_response", status: "success", timestamp: Date.now() });
    send({ type: "welcome", sessionId: client.options.clientId, clientId: client.options.clientId, protocol: 1 });
    socket.on("message", (text) => answer(read(text), client, send));
  });
  client.on("message", (topic, payload, { qos, retain }) =>
    send({ type: "mqtt", topic, payload: payload.toString(), qos, retain, timestamp: Date.now() }),
  );
  // A Unix socket whose queue is full turns clients away, where TCP has them wait.
  let isFull = false;
  client.on("error", ({ code }) => (isFull = code === "EAGAIN") || socket.close(4503));
  client.on("close", () => {
    if (!isFull) return socket.close(4503);
    isFull = false;
    setTimeout(() => socket.readyState === socket.OPEN && client.reconnect(), 10);
  });
  socket.on("close", () => client.end());
}

function answer(frame, client, send) {
  const refuse = (code) => send({ type: "error", code, msgid: frame?.msgid, message: "this bridge cannot do that" });
  switch (frame?.type) {
    case "subscribe":
      client.subscribe(frame.topic, { qos: frame.qos ?? 0 }, (error, granted) => {
        if (error) refuse("broker_rejected");
        else send({ type: "subscribed", msgid: frame.msgid, topics: granted.map(({ topic, qos }) => ({ topic, qos })) });
      });
      break;
    case "publish":
      client.publish(frame.topic, frame.payload, { qos: frame.qos ?? 0, retain: frame.retain ?? false }, (error) => {
        if (error) refuse("broker_rejected");
        else if (frame.msgid !== undefined) send({ type: "ack", msgid: frame.msgid });
      });
      break;
    case "ping":
      send({ type: "pong" });
      break;
    default:
      refuse("unknown_type");
  }
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
