#!/bin/sh
# Um cliente MQTT congela com a conexão aberta: quando o broker publica a vontade dele? No amqtt, nunca.
#
# O que se esperaria: MQTT 3.1.1, 3.1.2.10: calado por uma vez e meia o keepalive, o broker é obrigado a
# desligá-lo como se a rede tivesse caído, e a vontade (will) sai. Com keepalive 2, em 3 s.
# O que se vê, com keepalive 2 e um cliente que nada mais manda:
# - aedes 1.2.0 (npm): 3,0 s;
# - mosquitto 2.0.11 (Debian 12): de 5,2 a 5,7 s nas vezes em que se mediu;
# - amqtt 0.12.1 (PyPI): 20 s depois a conexão segue aberta e ninguém soube de nada. A vontade estava
#   guardada: sai na hora em que a conexão, afinal, se fecha.
# Uma placa travada, ou sem rede, está no ar para sempre.
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
venv/bin/pip -q install --disable-pip-version-check amqtt==0.12.1 2> pip.log || { cat pip.log; exit 1; }
npm install --silent --no-audit --no-fund aedes@1.2.0 > npm.log 2>&1 || { cat npm.log; exit 1; }
cat > aedes.mjs <<'JS'
import { Aedes } from 'aedes'
import { createServer } from 'node:net'
const broker = await Aedes.createBroker()
createServer(broker.handle).listen(Number(process.argv[2]), '127.0.0.1')
JS
cat > mute.py <<'PY'
import contextlib
import os
import socket
import struct
import subprocess
import time

PATIENCE_S, KEEPALIVE_S, WATCH_S = 30.0, 2, 20.0
CLEAN, WILL = 2, 4
CONFIGS = {"mosquitto": "listener {port} 127.0.0.1\nallow_anonymous true\n",
           "amqtt": "listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n"
                    "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n",
           "aedes": ""}
ENVIRONMENT = dict(os.environ, LD_LIBRARY_PATH="root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu")


@contextlib.contextmanager
def running(name):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with open(name + ".conf", "w") as config:
        config.write(CONFIGS[name].format(port=port))
    command = {"mosquitto": ["root/usr/sbin/mosquitto", "-c", "mosquitto.conf"],
               "amqtt": ["venv/bin/amqtt", "-c", "amqtt.conf"],
               "aedes": ["node", "aedes.mjs", str(port)]}[name]
    child = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + PATIENCE_S
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < end, name
                time.sleep(0.1)
        yield port
    finally:
        child.terminate()
        child.wait()


def text(value):
    return struct.pack("!H", len(value)) + value


def packet(kind, body):
    return bytes([kind, len(body)]) + body


def connect(port, name, keepalive, flags=CLEAN, will=b""):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.settimeout(PATIENCE_S)
    head = text(b"MQTT") + bytes([4, flags]) + struct.pack("!H", keepalive) + text(name)
    sock.sendall(packet(0x10, head + will))
    assert sock.recv(4) == bytes.fromhex("20020000")
    return sock


def will_after(name):
    """Segundos até a vontade de quem se cala (None: não veio em WATCH_S), e se ela vem ao fechar a conexão."""
    with running(name) as port, connect(port, b"olho", 0) as watcher:
        watcher.sendall(packet(0x82, b"\0\1" + text(b"casa/online") + b"\0"))
        assert watcher.recv(5) == bytes.fromhex("9003000100")
        start = time.monotonic()
        mute = connect(port, b"placa", KEEPALIVE_S, CLEAN | WILL, text(b"casa/online") + text(b"offline"))
        watcher.settimeout(WATCH_S)
        try:
            assert watcher.recv(64).endswith(b"offline")
            took = time.monotonic() - start
        except socket.timeout:
            took = None
            watcher.settimeout(PATIENCE_S)
        mute.close()
        late = took is None and watcher.recv(64).endswith(b"offline")
    print(f"  {name:10}", f"{took:.1f} s" if took else f"nada em {WATCH_S:.0f} s; fechada a conexão, veio: {late}")
    return took, late


for broker in ("aedes", "mosquitto"):
    took, _ = will_after(broker)
    assert took and 1.4 * KEEPALIVE_S < took < WATCH_S, took
assert will_after("amqtt") == (None, True)
PY
timeout 180 venv/bin/python mute.py
echo "visto: o amqtt não desliga quem se cala, e a vontade dele não sai"
