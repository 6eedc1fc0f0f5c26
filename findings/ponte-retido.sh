#!/bin/sh
# A ponte do mosquitto traz o valor retido uma vez; as mudanças chegam, mas o retido deste lado fica velho.
#
# O que se esperaria: mosquitto.conf(5): `topic casa/# in 1` traz os tópicos do outro broker; o que lá é
# retido, quem assina depois lê aqui também.
# O que se vê, mosquitto 2.0.11 (Debian 12) ligado por uma ponte a outro broker: ao conectar, o retido
# vem e fica retido aqui. Muda lá (ANTES, DEPOIS, os dois retidos): quem já assinava aqui lê DEPOIS, e
# quem assina agora lê ANTES, que é o que fica até a ponte reconectar. É a norma: a um assinante comum
# uma mensagem ao vivo vai sem a marca de retida, e a ponte é um assinante comum. Entre dois mosquittos
# isso não se vê, porque a ponte se apresenta com um nível que só eles entendem (0x84, try_private) e
# recebe a marca. O amqtt 0.12.1 recusa esse nível: a ponte volta como cliente comum, sem um aviso, e o
# retido envelhece. Com bridge_protocol_version mqttv50 (retain as published), se o outro o fala, não.
#
# Precisa de: apt-get, dpkg, python3 com venv e pip. Não instala nada no sistema.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
apt-get -qq -o APT::Sandbox::User=root download mosquitto=2.0.11-1.2+deb12u2 libmosquitto1=2.0.11-1.2+deb12u2 \
    libcjson1 libdlt2 libwrap0 libnsl2 libtirpc3
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check amqtt==0.12.1 paho-mqtt==2.2.0 \
    2> pip.log || { cat pip.log; exit 1; }
cat > bridge.py <<'PY'
import contextlib
import logging
import os
import socket
import subprocess
import time

import paho.mqtt.client as mqtt
import paho.mqtt.publish as publish

PATIENCE_S = 30.0
TOPIC = "casa/led"
logging.disable(logging.CRITICAL)
MOSQUITTO = "root/usr/sbin/mosquitto"
ENVIRONMENT = dict(os.environ, LD_LIBRARY_PATH="root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def running(command, port):
    with open("broker.log", "ab") as log:
        child = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end, command
                time.sleep(0.1)
        yield
    finally:
        child.terminate()
        child.wait()


def mosquitto(port, *bridge):
    name = f"mosquitto-{port}.conf"
    with open(name, "w") as config:
        print(f"listener {port} 127.0.0.1", "allow_anonymous true", *bridge, sep="\n", file=config)
    return [MOSQUITTO, "-c", name]


def amqtt(port):
    with open("amqtt.yml", "w") as config:
        config.write("listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:%d\n"
                     "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n"
                     "    allow_anonymous: true\n" % port)
    return ["venv/bin/amqtt", "-c", "amqtt.yml"]


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@contextlib.contextmanager
def subscriber(port):
    """A lista, que cresce, de (conteúdo, retida?) que um assinante novo recebe."""
    got = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda client, *_: client.subscribe(TOPIC, 1)
    client.on_message = lambda client, _, message: got.append((message.payload.decode(), message.retain))
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        yield got
    finally:
        client.disconnect()
        client.loop_stop()


def retained(port):
    with subscriber(port) as got:
        time.sleep(1.5)
        return [payload for payload, kept in got if kept]


def change_through(title, far, *options):
    """(o que quem já assinava lê, o retido lá, o retido aqui) depois que o outro broker muda de valor."""
    far_port, near_port = free_port(), free_port()
    bridge = ["connection ponte", f"address 127.0.0.1:{far_port}", "topic casa/# in 1", "notifications false",
              "restart_timeout 1", *options]
    with contextlib.ExitStack() as brokers:
        brokers.enter_context(running(far(far_port), far_port))
        publish.single(TOPIC, "ANTES", 1, True, "127.0.0.1", far_port)
        brokers.enter_context(running(mosquitto(near_port, *bridge), near_port))
        assert wait_for(lambda: retained(near_port) == ["ANTES"]), open("broker.log").read()
        with subscriber(near_port) as alive:
            assert wait_for(lambda: ("ANTES", True) in alive)
            publish.single(TOPIC, "DEPOIS", 1, True, "127.0.0.1", far_port)
            assert wait_for(lambda: ("DEPOIS", False) in alive)
        result = alive[-1][0], retained(far_port)[-1], retained(near_port)[-1]
    print(f"  {title:30} ao vivo {result[0]}, retido lá {result[1]}, retido aqui {result[2]}")
    return result


assert change_through("mosquitto", mosquitto) == ("DEPOIS", "DEPOIS", "DEPOIS")
assert change_through("mosquitto, try_private false", mosquitto, "try_private false") == ("DEPOIS", "DEPOIS", "ANTES")
assert change_through("amqtt", amqtt) == ("DEPOIS", "DEPOIS", "ANTES")
assert change_through("mosquitto, mqttv50", mosquitto, "bridge_protocol_version mqttv50") == ("DEPOIS",) * 3
PY
timeout 300 venv/bin/python bridge.py
echo "visto: depois da ponte, o valor retido é o de quando ela conectou"
