#!/bin/sh
# Outro se liga com o mesmo nome: se o mosquitto publica a vontade do desligado depende da sessão guardada.
#
# O que se esperaria: MQTT 3.1.1, 3.1.2.5: a vontade (will) se publica quando a conexão acaba sem
# DISCONNECT, e 3.1.4: quem se liga com um nome em uso desliga o outro. Logo, o desligado deixa a
# vontade, tenha a sessão que tiver.
# O que se vê, mosquitto 2.0.11 (Debian 12): com sessão limpa, `offline` sai, e antes do `online` do
# novo; com sessão guardada (clean session 0), não sai nada. Em MQTT 5, com atraso 0 da vontade, o mesmo.
# Se a conexão cai sem que outro tome o nome, a vontade sai nos dois casos. O aedes 1.2.0, em 3.1.1,
# publica-a sempre.
# Duas placas clonadas, com o mesmo nome: com sessão limpa o painel pisca; com sessão guardada uma derruba
# a outra, e nada do que o painel lê o conta.
#
# Precisa de: apt-get, dpkg, python3 com venv e pip, node e npm. Não instala nada no sistema.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
apt-get -qq -o APT::Sandbox::User=root download mosquitto=2.0.11-1.2+deb12u2 \
    libmosquitto1=2.0.11-1.2+deb12u2 libcjson1 libdlt2 libwrap0 libnsl2 libtirpc3
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check paho-mqtt==2.2.0 2> pip.log || { cat pip.log; exit 1; }
npm install --silent --no-audit --no-fund aedes@1.2.0 > npm.log 2>&1 || { cat npm.log; exit 1; }
cat > aedes.mjs <<'JS'
import { Aedes } from 'aedes'
import { createServer } from 'node:net'
const broker = await Aedes.createBroker()
createServer(broker.handle).listen(Number(process.argv[2]), '127.0.0.1')
JS
cat > takeover.py <<'PY'
import contextlib
import os
import socket
import subprocess
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE_S = 15.0
VERSIONS = {mqtt.MQTTv311: "3.1.1", mqtt.MQTTv5: "5"}
ENVIRONMENT = dict(os.environ, LD_LIBRARY_PATH="root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu")


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "o broker não respondeu"
        time.sleep(0.02)


@contextlib.contextmanager
def running(name):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with open("mosquitto.conf", "w") as config:
        config.write(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    command = {"mosquitto": ["root/usr/sbin/mosquitto", "-c", "mosquitto.conf"],
               "aedes": ["node", "aedes.mjs", str(port)]}[name]
    child = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        with socket.socket() as probe:
            wait_for(lambda: probe.connect_ex(("127.0.0.1", port)) == 0)
        yield port
    finally:
        child.terminate()
        child.wait()


class Client(mqtt.Client):
    def __init__(self, port, name, version, clean, topic=None):
        self.got, self.up, self.gone = [], False, False
        session = {} if version == mqtt.MQTTv5 else {"clean_session": clean}
        super().__init__(mqtt.CallbackAPIVersion.VERSION2, name, protocol=version,
                         reconnect_on_failure=False, **session)
        self.on_connect = lambda *_: setattr(self, "up", True)
        self.on_disconnect = lambda *_: setattr(self, "gone", True)
        self.on_message = lambda _, __, message: self.got.append(message.payload.decode())
        if topic:
            self.will_set(topic, "offline", 1, True)
        options = {}
        if version == mqtt.MQTTv5:
            options = {"clean_start": clean, "properties": Properties(PacketTypes.CONNECT)}
            options["properties"].SessionExpiryInterval = 0 if clean else 300
        self.connect("127.0.0.1", port, **options)
        self.loop_start()
        wait_for(lambda: self.up)


def seen(port, version, clean, takeover):
    """O que um terceiro lê no tópico: a primeira placa sai (tomada, ou queda), e a segunda diz online."""
    name = f"placa-{VERSIONS[version]}-{clean}-{takeover}"
    topic = f"casa/{name}"
    watcher = Client(port, f"olho-{name}", mqtt.MQTTv311, True)
    ready = []
    watcher.on_subscribe = lambda *_: ready.append(True)
    watcher.subscribe(topic, 1)
    wait_for(lambda: ready)
    first = Client(port, name, version, clean, topic)
    if not takeover:
        first.socket().shutdown(socket.SHUT_RDWR)
        wait_for(lambda: first.gone)
        wait_for(lambda: watcher.got)
    second = Client(port, name, version, clean, topic)
    wait_for(lambda: first.gone)
    second.publish(topic, "online", 1, True)
    wait_for(lambda: "online" in watcher.got)
    time.sleep(1.0)
    for client in (second, watcher):
        client.disconnect()
        client.loop_stop()
    first.loop_stop()
    print(f"  MQTT {VERSIONS[version]:5}, sessão {'limpa' if clean else 'guardada':8},",
          "outro toma o nome:" if takeover else "a conexão cai:    ", *watcher.got)
    return watcher.got


BOTH, ONLY = ["offline", "online"], ["online"]
with running("mosquitto") as port:
    print("mosquitto 2.0.11")
    for version in VERSIONS:
        assert seen(port, version, True, True) == BOTH
        assert seen(port, version, False, True) == ONLY
        assert seen(port, version, False, False) == BOTH
with running("aedes") as port:
    print("aedes 1.2.0")
    assert seen(port, mqtt.MQTTv311, True, True) == BOTH
    assert seen(port, mqtt.MQTTv311, False, True) == BOTH
PY
timeout 180 venv/bin/python takeover.py
echo "visto: com sessão guardada, quem é desligado por outro do mesmo nome não deixa a vontade"
