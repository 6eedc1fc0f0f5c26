#!/bin/sh
# MQTT 5: o broker recusa uma publicação QoS 2 com 0x87, e o paho-mqtt diz ao programa que deu certo.
#
# O que se esperaria: MQTT 5 acabou com a ACL muda do 3.1.1: o PUBACK e o PUBREC trazem o motivo, e o
# paho-mqtt o entrega a on_publish (reason_code). Um PUBREC de 0x80 para cima encerra a conversa: a
# norma (4.3.3) não deixa mandar o PUBREL.
# O que se vê, paho-mqtt 2.2.0 com mosquitto 2.0.11 (Debian 12) e uma ACL que nega o tópico, em MQTT 5:
# - QoS 1: on_publish ouve "Not authorized". QoS 2: o broker manda PUBREC 0x87, o paho não lê o motivo,
#   manda PUBREL, o broker responde PUBCOMP, e on_publish ouve "Success". QoS 0: "Success", como sempre.
# - is_published() é True nos três, e o mosquitto_pub, que avisa da recusa, sai com 0 assim mesmo.
# - assinar o que a ACL não deixa ler é concedido no 3.1.1 e no 5: "Granted QoS 1", e não chega nada.
# Num programa que pediu a entrega mais segura, a recusa é a que menos aparece.
#
# Precisa de: apt-get, dpkg, python3 com venv e pip. Não instala nada no sistema.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
version=2.0.11-1.2+deb12u2
apt-get -qq -o APT::Sandbox::User=root download "mosquitto=$version" "mosquitto-clients=$version" \
    "libmosquitto1=$version" libcjson1 libdlt2 libwrap0 libnsl2 libtirpc3
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check paho-mqtt==2.2.0 2> pip.log || { cat pip.log; exit 1; }
cat > refused.py <<'PY'
import getpass
import os
import socket
import subprocess
import threading
import time

import paho.mqtt.client as mqtt

PATIENCE_S = 10.0
CLOSED = "fechado/led"
ENVIRONMENT = dict(os.environ, LD_LIBRARY_PATH="root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu")


def start_broker():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with open("acl", "w") as acl:
        acl.write("topic readwrite aberto/#\n")
    with open("mosquitto.conf", "w") as config:
        config.write(f"user {getpass.getuser()}\nlistener {port} 127.0.0.1\nallow_anonymous true\nacl_file acl\n")
    with open("broker.log", "w") as log:
        broker = subprocess.Popen(["root/usr/sbin/mosquitto", "-v", "-c", "mosquitto.conf"],
                                  env=ENVIRONMENT, stderr=log)
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return broker, port
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.1)


class Client(mqtt.Client):
    """Guarda o que o paho conta: a resposta a cada mid, o que mandou, e o que a assinatura ouviu."""

    def __init__(self, protocol, port):
        super().__init__(mqtt.CallbackAPIVersion.VERSION2, protocol=protocol)
        self.told, self.trace, self.got, self.connected = {}, [], [], threading.Event()
        self.on_connect = lambda *_: self.connected.set()
        self.on_publish = lambda _, __, mid, reason, ___: self.told.update({mid: str(reason)})
        self.on_subscribe = lambda _, __, mid, reasons, ___: self.told.update({mid: str(reasons[0])})
        self.on_message = lambda _, __, message: self.got.append(message.topic)
        self.on_log = lambda _, __, ___, line: self.trace.append(line.split(" (")[0])
        self.connect("127.0.0.1", port)
        self.loop_start()
        assert self.connected.wait(PATIENCE_S)

    def answer(self, mid):
        end = time.monotonic() + PATIENCE_S
        while mid not in self.told:
            assert time.monotonic() < end, self.trace
            time.sleep(0.05)
        return self.told[mid]


def refusals(protocol, port):
    """O que on_publish e on_subscribe ouvem, para QoS 0, 1, 2 e para assinar, num tópico que a ACL nega."""
    client = Client(protocol, port)
    heard = []
    for qos in (0, 1, 2):
        sent = client.publish(CLOSED, "ON", qos)
        heard.append(client.answer(sent.mid))
        assert sent.is_published()
    heard.append(client.answer(client.subscribe("#", 1)[1]))
    heard.append(client.answer(client.subscribe(CLOSED, 1)[1]))
    client.answer(client.publish("aberto/led", "ON", 1).mid)
    end = time.monotonic() + PATIENCE_S
    while client.got != ["aberto/led"] and time.monotonic() < end:
        time.sleep(0.05)
    assert client.got == ["aberto/led"], client.got
    client.disconnect()
    client.loop_stop()
    after = client.trace[client.trace.index("Received PUBREC") + 1]
    print(f"  MQTT {'3.1.1' if protocol == mqtt.MQTTv311 else '5':5} QoS 0, 1, 2: {', '.join(heard[:3])};"
          f" assinar: {', '.join(heard[3:])}; depois do PUBREC: {after}")
    return heard, after


def command_line(*options):
    done = subprocess.run(["root/usr/bin/mosquitto_pub", "-p", str(port), "-t", CLOSED, "-m", "ON", *options],
                          env=ENVIRONMENT, stderr=subprocess.PIPE, timeout=PATIENCE_S)
    print("  mosquitto_pub", *options, "-> estado", done.returncode, done.stderr.decode().strip())
    return done.returncode, b"Not authorized" in done.stderr


broker, port = start_broker()
try:
    granted = ["Granted QoS 1"] * 2
    assert refusals(mqtt.MQTTv311, port) == (["Success"] * 3 + granted, "Sending PUBREL")
    assert refusals(mqtt.MQTTv5, port) == (["Success", "Not authorized", "Success"] + granted, "Sending PUBREL")
    assert command_line("-V", "5", "-q", "1") == (0, True)
    assert command_line("-V", "5", "-q", "2") == (0, True)
    assert command_line("-V", "311", "-q", "1") == (0, False)
finally:
    broker.terminate()
    broker.wait()
with open("broker.log") as log:
    pubrecs = [line.split(" to ")[-1].split(" ")[-1].strip(")\n") for line in log if "Sending PUBREC" in line]
print("  os PUBREC que o broker mandou:", *pubrecs)
assert "rc135" in pubrecs, pubrecs
PY
timeout 120 venv/bin/python refused.py
echo "visto: em QoS 2 o motivo da recusa chega, e o programa não o ouve"
