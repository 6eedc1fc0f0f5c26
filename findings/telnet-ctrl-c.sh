#!/bin/sh
# Um Ctrl+C no telnet, contra um servidor que só fala texto: daí em diante ele não mostra mais nada.
#
# O que se esperaria: numa porta que não é a 23 o telnet não negocia, e serve de nc: é o que ele faz até a
# primeira tecla especial. Ctrl+C acabaria com ele, ou mandaria um byte 3.
# O que se vê, inetutils 2.4 e telnet-ssl 0.17.41 (Debian 12), em linha, sem negociação nenhuma:
# - Ctrl+C manda 5 bytes ao servidor, IAC IP IAC DO TIMING-MARK (ff f4 ff fd 06), sem fim de linha: um
#   servidor de linhas os põe no começo da linha seguinte, e um `/comando` já não começa por barra;
# - o que o servidor diz até responder ao TIMING-MARK é jogado fora, não guardado. Quem não sabe telnet
#   não responde nunca: as teclas vão, a tela fica muda, e nada diz por quê;
# - bastam três bytes do servidor, IAC WONT TIMING-MARK (ff fc 06), para ela voltar.
# O do busybox 1.35 não manda nada: abre um menu no terminal.
#
# Precisa de: apt-get, dpkg, python3. Não instala nada no sistema.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
apt-get -qq -o APT::Sandbox::User=root download inetutils-telnet=2:2.4-2+deb12u3 \
    telnet-ssl=0.17.41+really0.17-3 busybox=1:1.35.0-4+deb12u1+b1 \
    libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1
for package in *.deb; do dpkg -x "$package" root; done
cat > press.py <<'PY'
import os
import pty
import select
import signal
import socket
import time

PATIENCE_S, SILENCE_S = 15.0, 2.0
CTRL_C = b"\x03"
IAC_IP_DO_TM, IAC_WONT_TM = b"\xff\xf4\xff\xfd\x06", b"\xff\xfc\x06"
LIBRARIES = "root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu"


class Session:
    """Um telnet num terminal, ligado a um servidor que só fala texto."""

    def __init__(self, *command):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.pid, self.terminal = pty.fork()
            if self.pid == 0:
                os.environ.update(TERM="xterm", HOME="/nonexistent", LD_LIBRARY_PATH=LIBRARIES)
                os.execv(command[0], [*command, "127.0.0.1", str(listener.getsockname()[1])])
            listener.settimeout(PATIENCE_S)
            self.sock = listener.accept()[0]
        self.sent = self.shown = b""
        self.wait(lambda: b"Connected" in self.shown)

    def wait(self, condition, patience=PATIENCE_S):
        end = time.monotonic() + patience
        while not condition() and time.monotonic() < end:
            for ready in select.select([self.sock, self.terminal], [], [], 0.1)[0]:
                if ready is self.sock:
                    self.sent += self.sock.recv(4096)
                else:
                    self.shown += os.read(self.terminal, 4096)
        return condition()

    def key(self, text):
        os.write(self.terminal, text)

    def shows(self, line, patience=PATIENCE_S):
        self.sock.sendall(line + b"\r\n")
        return self.wait(lambda: line in self.shown, patience)

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.sock.close()
        os.close(self.terminal)


for program in (["root/usr/bin/inetutils-telnet"], ["root/usr/bin/telnet-ssl"]):
    session = Session(*program)
    assert session.shows(b"antes") and session.sent == b"", session.sent
    session.key(CTRL_C)
    assert session.wait(lambda: session.sent == IAC_IP_DO_TM), session.sent
    assert not session.shows(b"depois", SILENCE_S)
    session.key(b"/ajuda\r")
    assert session.wait(lambda: session.sent.endswith(b"\n"))
    line = session.sent
    session.sock.sendall(IAC_WONT_TM)
    assert session.shows(b"enfim") and b"depois" not in session.shown, session.shown
    print(f"  {program[0].split('/')[-1]}: mandou {line}; a tela mostrou",
          [word for word in ("antes", "depois", "enfim") if word.encode() in session.shown])
    assert line == IAC_IP_DO_TM + b"/ajuda\r\n", line
    session.close()
session = Session("root/bin/busybox", "telnet")
session.key(CTRL_C)
assert session.wait(lambda: b"Console escape" in session.shown) and session.sent == b"", session.sent
print("  busybox telnet: mandou", session.sent, "e abriu um menu")
session.close()
PY
timeout 120 python3 press.py
echo "visto: depois de um Ctrl+C, o telnet joga fora o que o servidor diz até ele responder ao TIMING-MARK"
