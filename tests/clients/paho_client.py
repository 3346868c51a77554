"""paho-mqtt against the gateway: both versions, QoS 0 to 2 both ways.

    paho_client.py HOST PORT
"""

import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.properties import Properties
from paho.mqtt.packettypes import PacketTypes

HOST, PORT = sys.argv[1], int(sys.argv[2])
BOUND = 20


class Subscriber:
    """A connection that collects what it is sent."""

    def __init__(self, protocol, name, topic, qos):
        self.got, self.arrived, self.ready = [], threading.Semaphore(0), threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=protocol)
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos)
        self.client.on_subscribe = self.on_subscribe
        self.client.on_message = self.on_message
        self.client.connect(HOST, PORT)
        self.client.loop_start()
        assert self.ready.wait(BOUND), f"{name}: no SUBACK"

    def on_subscribe(self, _client, _data, _id, reasons, _properties):
        assert all(not reason.is_failure for reason in reasons), reasons
        self.ready.set()

    def on_message(self, _client, _data, message):
        self.got.append((message.topic, message.payload, message.qos))
        self.arrived.release()

    def wait_for(self, count):
        for _ in range(count):
            assert self.arrived.acquire(timeout=BOUND), f"only {len(self.got)} of {count} messages came: {self.got}"
        self.client.disconnect()
        self.client.loop_stop()
        return self.got


def round_trip(protocol, version, qos):
    topic = f"paho/{version}/{qos}"
    subscriber = Subscriber(protocol, f"paho-sub-{version}-{qos}", f"paho/{version}/+", qos)
    publisher = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, client_id=f"paho-pub-{version}-{qos}", protocol=protocol
    )
    publisher.connect(HOST, PORT)
    publisher.loop_start()
    properties = None
    if protocol == mqtt.MQTTv5:
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = ("unit", "°C")
        properties.ContentType = "text/plain"
    for n in range(50):
        info = publisher.publish(topic, f"message {n}".encode(), qos=qos, properties=properties)
        if qos > 0:
            info.wait_for_publish(BOUND)
            assert info.is_published(), f"QoS {qos} message {n} was not acknowledged"
    got = subscriber.wait_for(50)
    assert got == [(topic, f"message {n}".encode(), qos) for n in range(50)], got
    publisher.disconnect()
    publisher.loop_stop()


for protocol, version in ((mqtt.MQTTv311, "v311"), (mqtt.MQTTv5, "v5")):
    for qos in (0, 1, 2):
        round_trip(protocol, version, qos)
        print(f"paho {version} QoS {qos}: 50 messages there and back")
