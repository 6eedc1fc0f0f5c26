#!/bin/sh
# pydle só conta ao bot que ele entrou num canal (on_join) depois que o servidor responde a um WHOIS.
#
# O que se esperaria: RFC 2812, 3.2.1: o servidor confirma a entrada repetindo `:nick JOIN #canal` a
# quem entrou; quem recebe essa linha está no canal.
# O que se vê, pydle 1.2.0: a linha JOIN faz o pydle perguntar `WHOIS nick`, e on_join espera pela
# resposta. Um servidor que ignora WHOIS (ou responde 421) tem um bot que está no canal e não sabe.
# 318 (fim do WHOIS) basta.
#
# Precisa de: python3 com venv e pip. Tudo fica numa pasta temporária.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check pydle==1.2.0
cat > talk.py <<'PY'
import asyncio
import logging

import pydle

WAIT_S = 4.0
logging.disable(logging.CRITICAL)


async def joins(whois):
    """Os canais que o bot soube ter, com um servidor que responde assim a WHOIS; e o que ele mandou."""
    said = []

    async def serve(reader, writer):
        nick = "?"
        while line := (await reader.readline()).decode().strip():
            command, _, rest = line.partition(" ")
            said.append(command)
            if command == "NICK":
                nick = rest
            replies = {"USER": [f":srv 001 {nick} :oi", f":srv 422 {nick} :sem MOTD"],
                       "JOIN": [f":{nick}!{nick}@srv JOIN {rest}"],
                       "WHOIS": [reply.format(nick=nick, who=rest) for reply in whois]}
            for reply in replies.get(command, []):
                writer.write(reply.encode() + b"\r\n")

    seen = []

    class Bot(pydle.Client):
        async def on_connect(self):
            await super().on_connect()
            await self.join("#sala")

        async def on_join(self, channel, user):
            await super().on_join(channel, user)
            seen.append((channel, user))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    bot = Bot("robo", realname="robo")
    task = asyncio.ensure_future(bot.connect("127.0.0.1", server.sockets[0].getsockname()[1]))
    await asyncio.sleep(WAIT_S)
    task.cancel()
    server.close()
    return seen, said


mute, said = asyncio.run(joins([]))
unknown, _ = asyncio.run(joins([":srv 421 {nick} WHOIS :Unknown command"]))
ended, _ = asyncio.run(joins([":srv 318 {nick} {who} :fim"]))
print("o bot mandou:             ", *said)
print("WHOIS sem resposta:       ", mute)
print("421 ao WHOIS:             ", unknown)
print("318 ao WHOIS:             ", ended)
assert "JOIN" in said and "WHOIS" in said, said
assert mute == [], mute
assert unknown == [], unknown
assert ended == [("#sala", "robo")], ended
PY
venv/bin/python talk.py
echo "visto: on_join espera pela resposta a um WHOIS"
