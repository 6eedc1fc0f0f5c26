#!/bin/sh
# irssi não diz o próprio apelido a um servidor que ignora, ou recusa com 421, o CAP que ele manda.
#
# O que se esperaria: RFC 2812, 4.1: o cliente manda NICK e USER ao conectar, e o servidor que não
# conhece um comando responde 421 (ou nada). CAP veio depois, como extensão que se pode ignorar.
# O que se vê, irssi 1.4.3 (Debian 12): a primeira escrita é `CAP LS 302` e `JOIN :`, e mais nada
# até vir resposta. Silêncio: nada. 421 para CAP e 461 para JOIN: nada. 451 ao `JOIN :`: aí sim
# seguem NICK e USER. Quem escreve um servidor sem CAP precisa do 451.
#
# Precisa de: apt-get, dpkg, python3. Não instala nada no sistema.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
version=1.4.3-2
apt-get -qq -o APT::Sandbox::User=root download "irssi=$version" libotr5 libutf8proc2 libperl5.36
for package in *.deb; do dpkg -x "$package" root; done
mkdir home
cat > talk.py <<'PY'
import os, pty, re, select, signal, socket, sys, time

WAIT_S = 4.0


def first_words(answers):
    """O que o irssi escreve a um servidor que responde assim a cada comando, em WAIT_S segundos."""
    listener = socket.create_server(("127.0.0.1", 0))
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", LD_LIBRARY_PATH="root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu")
        os.execv("root/usr/bin/irssi", ["irssi", "--home=home", "-c", "127.0.0.1",
                                         "-p", str(listener.getsockname()[1]), "-n", "ana"])
    listener.settimeout(20)
    sock = None
    said = b""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        waiting = [terminal, sock or listener]
        for ready in select.select(waiting, [], [], 0.2)[0]:
            if ready == terminal:
                os.read(terminal, 65536)
            elif ready is listener:
                sock = listener.accept()[0]
                end = time.monotonic() + WAIT_S
            else:
                data = sock.recv(4096)
                said += data
                for line in data.decode().splitlines():
                    reply = answers.get(line.split(" ")[0])
                    if reply:
                        sock.sendall(reply.encode() + b"\r\n")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return [line.split(" ")[0] for line in said.decode().splitlines()]


silence = first_words({})
classic = first_words({"CAP": ":srv 421 * CAP :Unknown command",
                       "JOIN": ":srv 461 * JOIN :Not enough parameters"})
registered = first_words({"JOIN": ":srv 451 * :You have not registered"})
print("silêncio:            ", *silence)
print("421 ao CAP, 461:     ", *classic)
print("451 ao JOIN:         ", *registered)
assert silence == ["CAP", "JOIN"], silence
assert "NICK" not in classic, classic
assert "NICK" in registered and "USER" in registered, registered
PY
LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu root/usr/bin/irssi --version
python3 talk.py
echo "visto: o irssi só se apresenta depois de uma resposta que ele entende"
