#!/bin/sh
# nc -u -v (só conte mais) manda cinco datagramas "X" antes do que se digita.
#
# O que se esperaria: nc(1) do netcat-openbsd: -v deixa a saída mais falante, e -z procura quem escuta
# sem mandar dado algum. Contar mais não muda o que vai pela rede.
# O que se vê, netcat-openbsd 1.219-1 (Debian 12): por UDP, -v manda "X" cinco vezes, um datagrama cada,
# por três segundos, e só então a linha que já estava digitada; com -z, manda-os também, e -z sozinho
# não manda nada. Sem -v, ou por TCP, vai só a linha. O netcat-traditional 1.10-47 e o ncat 7.93, com as
# mesmas opções, mandam só a linha.
#
# Precisa de: apt-get, dpkg, python3. Não instala nada no sistema.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
apt-get -qq -o APT::Sandbox::User=root download netcat-openbsd=1.219-1 netcat-traditional=1.10-47 \
    ncat=7.93+dfsg1-1 libbsd0 libmd0 liblua5.3-0 liblinear4 libblas3 libpcap0.8 libdbus-1-3
for package in *.deb; do dpkg -x "$package" root; done
cat > listen.py <<'PY'
import os
import socket
import subprocess
import time

SILENCE_S = 6.0
LINE = b"oi\n"
os.environ["LD_LIBRARY_PATH"] = "root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu"


def heard(program, options, kind=socket.SOCK_DGRAM):
    """O que chega de `program options 127.0.0.1 PORTA`, com LINE na entrada: [datagramas], até o silêncio."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        command = [program, *options, "127.0.0.1", str(sock.getsockname()[1])]
        typed, keyboard = os.pipe()
        os.write(keyboard, LINE)
        child = subprocess.Popen(command, stdin=typed, stderr=subprocess.DEVNULL)
        sock.settimeout(SILENCE_S)
        reader = sock.accept()[0] if kind == socket.SOCK_STREAM else sock
        reader.settimeout(SILENCE_S)
        pieces, start = [], time.monotonic()
        while pieces[-1:] not in ([LINE], [b""]):
            try:
                pieces.append(reader.recv(2048))
            except socket.timeout:
                break
        took = time.monotonic() - start
        child.kill()
        child.wait()
        os.close(typed)
        os.close(keyboard)
    print(f"  {program.split('/')[-1]:15}", f"{' '.join(options):8}", *pieces, f"({took:.1f} s)")
    return pieces


OPENBSD, TRADITIONAL, NCAT = "root/bin/nc.openbsd", "root/bin/nc.traditional", "root/usr/bin/ncat"
assert heard(OPENBSD, ["-u"]) == [LINE]
assert heard(OPENBSD, ["-u", "-v"]) == [b"X"] * 5 + [LINE]
assert heard(OPENBSD, ["-u", "-z"]) == []
assert heard(OPENBSD, ["-u", "-z", "-v"]) == [b"X"] * 5
assert heard(OPENBSD, ["-v"], socket.SOCK_STREAM) == [LINE]
assert heard(TRADITIONAL, ["-u", "-v"]) == [LINE]
assert heard(NCAT, ["-u", "-v"]) == [LINE]
PY
python3 listen.py
echo "visto: contar mais muda o que vai pela rede"
