#!/bin/sh
# Um servidor sem operadores diz PREFIX= no 005, e o robô da biblioteca irc morre ao entrar no canal.
#
# O que se esperaria: a descrição do IRC de hoje (modern.ircdocs.horse, RPL_ISUPPORT): o valor de PREFIX
# é opcional, e sem ele não há marcas de operador (`@`) nem de voz (`+`) diante dos apelidos.
# O que se vê, irc 20.5.0 (PyPI), num SingleServerIRCBot que entra num canal sem operadores:
# - `PREFIX=`: o valor vazio vira True, e a lista de nomes (353) é um TypeError que sobe por
#   process_once(): o robô, que o servidor já pôs no canal, acaba ali, e o traceback não fala do 005.
# - `PREFIX`, sem o sinal de igual, e `PREFIX=()`: entra. Com o primeiro, fica com as marcas de sempre,
#   as que o servidor disse que não tem.
# Para um servidor sem operadores, `PREFIX=(ov)@+` e nenhum `@` é o que todos entendem.
#
# Precisa de: python3 com venv e pip. Tudo fica numa pasta temporária.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check irc==20.5.0 2> pip.log || { cat pip.log; exit 1; }
cat > join.py <<'PY'
import socket
import threading
import time

import irc.bot

PATIENCE_S = 10.0


def serve(listener, prefix):
    """Um servidor que registra quem chega, põe-no no canal com a ana, e diz quem está lá: ninguém é operador."""
    sock = listener.accept()[0]
    nick = "?"
    with sock, sock.makefile("r", newline="\r\n") as lines:
        for line in lines:
            command, _, rest = line.strip().partition(" ")
            if command == "NICK":
                nick = rest
            replies = {"USER": [f":srv 001 {nick} :oi",
                                f":srv 005 {nick} CHANTYPES=# {prefix} :are supported by this server",
                                f":srv 422 {nick} :sem MOTD"],
                       "JOIN": [f":{nick}!{nick}@srv JOIN {rest}",
                                f":srv 353 {nick} = {rest} :{nick} ana",
                                f":srv 366 {nick} {rest} :fim"]}
            for reply in replies.get(command, []):
                sock.sendall(reply.encode() + b"\r\n")


class Bot(irc.bot.SingleServerIRCBot):
    complete = False

    def on_welcome(self, connection, event):
        connection.join("#sala")

    def on_endofnames(self, connection, event):
        self.complete = True


def room(prefix):
    """(quem o robô diz que está na sala, as marcas que ele conhece), ou o erro que o acabou."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener, prefix), daemon=True).start()
        bot = Bot([("127.0.0.1", listener.getsockname()[1])], "robo", "robo")
        bot._connect()
        end = time.monotonic() + PATIENCE_S
        try:
            while not bot.complete and time.monotonic() < end:
                bot.reactor.process_once(0.1)
            answer = sorted(bot.channels["#sala"].users()), dict(bot.connection.features.prefix)
        except TypeError as exc:
            answer = f"TypeError: {exc}"
        bot.connection.close()
    print(f"  {prefix:14}", answer)
    return answer


USUAL = {"@": "o", "+": "v"}
assert room("PREFIX=(ov)@+") == (["ana", "robo"], USUAL)
assert room("PREFIX=").startswith("TypeError")
assert room("PREFIX") == (["ana", "robo"], USUAL)
assert room("PREFIX=()") == (["ana", "robo"], {})
PY
venv/bin/python join.py
echo "visto: PREFIX= acaba com o robô; PREFIX e PREFIX=(), não"
