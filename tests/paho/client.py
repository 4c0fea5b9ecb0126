"""One Paho MQTT 5 client, driven by JSON lines on standard input.

    {"do": "connect", "port": 1883, "clientId": "anna"}    answered by {"done": "connect"}
    {"do": "subscribe", "filter": "a/#", "qos": 1}          {"done": "subscribe", "qos": 1}
    {"do": "unsubscribe", "filter": "a/#"}                  {"done": "unsubscribe"}
    {"do": "publish", "topic": "a", "payload": "1", "qos": 2, "retain": false}
    {"do": "flush"}                                         {"done": "flush"}: all that was published is acknowledged

What arrives is told as {"topic", "payload", "qos", "retain", "dup"}. A link that is lost is restored, and the session with it.
"""

import json
import queue
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE = 20

lock = threading.Lock()
connected = queue.Queue()
answers = queue.Queue()
acknowledged = queue.Queue()


def tell(**fields):
    with lock:
        print(json.dumps(fields), flush=True)


def on_connect(client, userdata, flags, reason, properties):
    if reason.is_failure:
        sys.exit(f"the broker refused the connection: {reason}")
    connected.put(flags.session_present)


def on_answer(client, userdata, mid, reasons, properties):
    answers.put(reasons[0])


def on_publish(client, userdata, mid, reason, properties):
    acknowledged.put(mid)


def on_message(client, userdata, message):
    tell(
        topic=message.topic,
        payload=message.payload.decode(),
        qos=message.qos,
        retain=bool(message.retain),
        dup=message.dup,
    )


def start(port, client_id):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5)
    client.on_connect = on_connect
    client.on_subscribe = on_answer
    client.on_unsubscribe = on_answer
    client.on_publish = on_publish
    client.on_message = on_message
    client.reconnect_delay_set(0.05, 0.2)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 60
    client.connect("127.0.0.1", port, clean_start=mqtt.MQTT_CLEAN_START_FIRST_ONLY, properties=properties)
    client.loop_start()
    connected.get(timeout=PATIENCE)
    return client


def serve(lines):
    client = None
    subscriptions = 0
    unacknowledged = set()
    for line in lines:
        order = json.loads(line)
        do = order["do"]
        if do == "connect":
            client = start(order["port"], order["clientId"])
            tell(done=do)
        elif do == "subscribe":
            subscriptions += 1
            properties = Properties(PacketTypes.SUBSCRIBE)
            properties.SubscriptionIdentifier = subscriptions
            client.subscribe(order["filter"], order["qos"], properties=properties)
            tell(done=do, qos=answers.get(timeout=PATIENCE).value)
        elif do == "unsubscribe":
            client.unsubscribe(order["filter"])
            answers.get(timeout=PATIENCE)
            tell(done=do)
        elif do == "publish":
            message = client.publish(order["topic"], order["payload"], order["qos"], order["retain"])
            if order["qos"] > 0:
                unacknowledged.add(message.mid)
        elif do == "flush":
            while unacknowledged:
                unacknowledged.discard(acknowledged.get(timeout=PATIENCE))
            tell(done=do)


serve(sys.stdin)
