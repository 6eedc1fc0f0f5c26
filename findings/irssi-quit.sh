#!/bin/sh
# O /quit do irssi joga fora as linhas que a tela já mostra como ditas.
#
# O que se esperaria: o que aparece como dito por mim, o servidor recebeu; e o /quit vai depois do
# que se disse, como num telnet.
# O que se vê, irssi 1.4.3 (Debian 12): contra inundação, ele guarda os comandos e manda cinco de
# uma vez (cmds_max_at_once), e depois um a cada 2,5 s (cmd_queue_speed diz 2,2). A tela não espera:
# mostra cada linha na hora. O QUIT fura a fila, e o que estava nela se perde, sem uma palavra. Os
# da entrada na sala também contam: quem acaba de entrar já gastou parte dos cinco.
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
import os, pty, re, select, signal, socket, time

LINES = 12
ANSWERS = {
    "CAP": ":srv CAP * LS :",
    "JOIN :": ":srv 451 * :You have not registered",
    "USER": ":srv 001 ana :oi\r\n:srv 376 ana :fim",
    "JOIN #": ":ana!ana@local JOIN #sala\r\n:srv 353 ana = #sala :ana\r\n:srv 366 ana #sala :fim",
    "MODE #": ":srv 324 ana #sala +\r\n:srv 329 ana #sala 1",
    "WHO": ":srv 315 ana #sala :fim",
    "PING": ":srv PONG srv :srv",
}
listener = socket.create_server(("127.0.0.1", 0))
pid, terminal = pty.fork()
if pid == 0:
    os.environ.update(TERM="xterm", LD_LIBRARY_PATH="root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu")
    os.execv("root/usr/bin/irssi", ["irssi", "--home=home", "-c", "127.0.0.1",
                                     "-p", str(listener.getsockname()[1]), "-n", "ana"])
listener.settimeout(20)
sock = None
shown = b""
heard = []
rest = b""


def turn(until):
    """Atende os dois lados até `until()` ou 40 s."""
    global sock, shown, rest
    end = time.monotonic() + 40
    while not until():
        assert time.monotonic() < end, (heard, shown[-500:])
        for ready in select.select([terminal, sock or listener], [], [], 0.1)[0]:
            if ready == terminal:
                shown += os.read(terminal, 65536)
            elif ready is listener:
                sock = listener.accept()[0]
            else:
                data = sock.recv(4096)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    line = line.decode().strip()
                    heard.append((time.monotonic(), line))
                    for start, reply in ANSWERS.items():
                        if line.startswith(start):
                            sock.sendall(reply.encode() + b"\r\n")
                if not data:
                    heard.append((time.monotonic(), "FIM"))


def said():
    return [(at, line) for at, line in heard if line.startswith("PRIVMSG #sala")]


turn(lambda: any(line.startswith("USER") for _, line in heard))
os.write(terminal, b"/join #sala\r")
turn(lambda: any(line.startswith("WHO") for _, line in heard))
# Os comandos da entrada também gastam a conta: esperar devolve os cinco.
calm = time.monotonic() + 20
turn(lambda: time.monotonic() > calm)
start = time.monotonic()
for number in range(LINES):
    # Uma de cada vez: coladas, ele perguntaria antes.
    line = b"linha-%02d" % number
    os.write(terminal, line + b"\r")
    # Sem as cores: como linha dita, e não só na de digitar.
    turn(lambda: b"ana> " + line in re.sub(rb"\x1b(\[[0-9;?]*[A-Za-z]|\(B)", b"", shown))
seen = time.monotonic() - start
turn(lambda: len(said()) >= 6)
times = [at - start for at, _ in said()]
os.write(terminal, b"/quit\r")
turn(lambda: any(line.startswith(("QUIT", "FIM")) for _, line in heard))
arrived = len(said())
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print("na tela, as %d linhas em %.1f s" % (LINES, seen))
print("no servidor, em s:", *("%.1f" % at for at in times))
print("depois do /quit, chegaram ao todo %d; a última linha: %s" % (arrived, heard[-1][1]))
assert seen < 1.5, seen
assert times[4] < 1.5 < times[5], times
assert arrived < LINES, arrived
PY
LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu root/usr/bin/irssi --version
python3 talk.py
echo "visto: o /quit do irssi perde o que a tela já mostrou"
