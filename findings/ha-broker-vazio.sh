#!/bin/sh
# O broker reinicia e esquece tudo, o aparelho não volta: o Home Assistant diz que ele está ligado e no ar.
#
# O que se esperaria: um aparelho com tópico de disponibilidade (avty_t) só está disponível enquanto o
# broker diz `online`. O Home Assistant, ao religar, assina tudo outra vez; se não vem nada retido, não
# sabe, e mostra `unavailable`, como mostra a quem acaba de ligá-lo.
# O que se vê, Home Assistant 2025.4.4 com mosquitto 2.0.11 sem persistência (o padrão dele): cai o broker,
# a lâmpada fica `unavailable`; volta o broker, vazio, sem aparelho nenhum, e ela volta a `on`, com o
# estado e a disponibilidade de antes da queda; assim está 15 s depois. A vontade (will) não vem de ninguém:
# quem a tinha era o broker que caiu. O mesmo Home Assistant, reiniciado com esse broker vazio, mostra
# `unavailable`.
#
# Precisa de: apt-get, dpkg, 1 GB livre em /tmp, e um Python 3.13 com venv e pip ($PYTHON313, ou python3.13
# no PATH). Baixa o Home Assistant inteiro, e constrói alguns pacotes dele: minutos. Nada se instala no sistema.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
apt-get -qq -o APT::Sandbox::User=root download mosquitto=2.0.11-1.2+deb12u2 \
    libmosquitto1=2.0.11-1.2+deb12u2 libcjson1 libdlt2 libwrap0 libnsl2 libtirpc3
for package in *.deb; do dpkg -x "$package" root; done
"${PYTHON313:-python3.13}" -m venv venv
venv/bin/pip -q install --disable-pip-version-check uv==0.9.5 2> pip.log || { cat pip.log; exit 1; }
timeout 1200 venv/bin/uv -q pip install --python venv/bin/python --cache-dir cache \
    homeassistant==2025.4.4 paho-mqtt==2.1.0
cat > home.py <<'PY'
import asyncio
import json
import logging
import os
import pathlib
import socket
import subprocess

from homeassistant import bootstrap, config_entries, core, loader
from homeassistant.setup import async_setup_component
from paho.mqtt import publish

PATIENCE_S, QUIET_S = 60.0, 15.0
LAMP = "light.placa_led"
DEVICE = {"dev": {"ids": ["placa"], "name": "Placa"}, "o": {"name": "prova"}, "avty_t": "casa/online",
          "cmps": {"led": {"p": "light", "uniq_id": "placa_led", "name": "LED",
                           "cmd_t": "casa/set", "stat_t": "casa/led"}}}
RETAINED = [("homeassistant/device/placa/config", json.dumps(DEVICE)), ("casa/online", "online"), ("casa/led", "ON")]
ENVIRONMENT = dict(os.environ, LD_LIBRARY_PATH="root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu")
logging.disable(logging.CRITICAL)
with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    PORT = sock.getsockname()[1]


async def start_broker():
    pathlib.Path("mosquitto.conf").write_text(f"listener {PORT} 127.0.0.1\nallow_anonymous true\n")
    broker = subprocess.Popen(["root/usr/sbin/mosquitto", "-c", "mosquitto.conf"],
                              env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", PORT)):
            await asyncio.sleep(0.1)
    return broker


def configure(folder):
    """A pasta de um Home Assistant com uma integração só: mqtt, neste broker."""
    storage = pathlib.Path(folder) / ".storage"
    storage.mkdir(parents=True)
    (storage.parent / "configuration.yaml").touch()
    when = "2025-04-01T00:00:00+00:00"
    entry = {"created_at": when, "modified_at": when, "entry_id": "a", "version": 1, "minor_version": 2,
             "domain": "mqtt", "title": "mqtt", "data": {"broker": "127.0.0.1", "port": PORT},
             "options": {"discovery": True}, "pref_disable_new_entities": False, "pref_disable_polling": False,
             "source": "user", "unique_id": None, "disabled_by": None, "discovery_keys": {}, "subentries": []}
    (storage / "core.config_entries").write_text(json.dumps(
        {"version": 1, "minor_version": 5, "key": "core.config_entries", "data": {"entries": [entry]}}))


async def start_home(folder):
    hass = core.HomeAssistant(os.path.abspath(folder))
    hass.config.skip_pip = True
    loader.async_setup(hass)
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    await bootstrap.async_load_base_functionality(hass)
    hass.config.components.update(("http", "file_upload"))     # sem página: só o que o mqtt usa
    assert await async_setup_component(hass, "mqtt", {})
    await hass.async_start()
    return hass


async def becomes(hass, wanted):
    for _ in range(int(PATIENCE_S / 0.2)):
        state = hass.states.get(LAMP)
        if state and state.state == wanted:
            return True
        await asyncio.sleep(0.2)
    return False


async def main():
    broker = await start_broker()
    for topic, payload in RETAINED:
        publish.single(topic, payload, 1, True, "127.0.0.1", PORT)
    configure("casa")
    hass = await start_home("casa")
    assert await becomes(hass, "on")
    print("  o aparelho anunciou:        ", hass.states.get(LAMP).state)
    broker.terminate()
    broker.wait()
    assert await becomes(hass, "unavailable")
    print("  o broker caiu:              ", hass.states.get(LAMP).state)
    broker = await start_broker()
    assert await becomes(hass, "on")
    await asyncio.sleep(QUIET_S)
    print(f"  voltou vazio, {QUIET_S:.0f} s depois: ", hass.states.get(LAMP).state)
    assert hass.states.get(LAMP).state == "on"
    await hass.async_stop()
    hass = await start_home("casa")
    await asyncio.sleep(QUIET_S)
    print("  Home Assistant reiniciado:  ", hass.states.get(LAMP).state)
    assert hass.states.get(LAMP).state == "unavailable"
    await hass.async_stop()
    broker.terminate()
    broker.wait()


asyncio.run(main())
PY
timeout 400 venv/bin/python home.py
echo "visto: depois de um broker que esqueceu tudo, o Home Assistant acredita no que lembrava"
