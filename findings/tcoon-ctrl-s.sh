#!/bin/sh
# tcflow(TCOON) não desfaz um Ctrl+S; TCOOFF e, logo atrás, TCOON desfazem.
#
# O que se esperaria: tcflow(3) e POSIX: TCOON recomeça a saída parada. Quem quer a última linha num
# terminal que alguém parou com Ctrl+S chamaria TCOON, ou jogaria fora o que espera com tcflush().
# O que se vê, Linux 6.1.176 (o mesmo no 6.18): são duas paradas, e cada uma tem a sua volta.
# - Ctrl+S: TCOON responde que deu certo e a saída continua parada; tcflush(TCOFLUSH), também.
#   Soltam-na Ctrl+Q, desligar IXON, e TCOOFF seguido de TCOON: o TCOON só olha para a parada
#   que um TCOOFF tenha feito, mas quando a desfaz solta tudo.
# - TCOOFF: nem Ctrl+Q, nem desligar IXON, nem IXANY e uma tecla. Só TCOON; a pessoa diante de um
#   terminal que um programa deixou assim não tem tecla que o solte.
#
# Precisa de: apt-get, dpkg, python3. O kernel é o User Mode Linux do Debian: um processo comum.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
version=6.1um4+b13
apt-get -qq -o APT::Sandbox::User=root download "user-mode-linux=$version"
dpkg -x user-mode-linux_*.deb root
mkdir out
cat > init <<SH2
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc none /proc
mount -t devtmpfs none /dev
mkdir /dev/pts
mount -t devpts none /dev/pts
mount -t hostfs -o "$here/out" none /mnt
{ python3 "$here/stop.py" && touch /mnt/good; } > /mnt/said 2>&1
echo o > /proc/sysrq-trigger
sleep 9
SH2
chmod +x init
cat > stop.py <<'PY'
import os
import select
import termios

CTRL_Q, CTRL_S = b"\x11", b"\x13"


def clear(slave, flag):
    attributes = termios.tcgetattr(slave)
    attributes[0] &= ~flag
    termios.tcsetattr(slave, termios.TCSANOW, attributes)


def any_key(keyboard, slave):
    attributes = termios.tcgetattr(slave)
    attributes[0] |= termios.IXANY
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    os.write(keyboard, b"a")


STOPS = {"Ctrl+S": lambda keyboard, slave: os.write(keyboard, CTRL_S),
         "TCOOFF": lambda keyboard, slave: termios.tcflow(slave, termios.TCOOFF)}
STARTS = {"TCOON": lambda keyboard, slave: termios.tcflow(slave, termios.TCOON),
          "Ctrl+Q": lambda keyboard, slave: os.write(keyboard, CTRL_Q),
          "tcflush(TCOFLUSH)": lambda keyboard, slave: termios.tcflush(slave, termios.TCOFLUSH),
          "sem IXON": lambda keyboard, slave: clear(slave, termios.IXON),
          "IXANY e uma tecla": any_key,
          "TCOOFF e TCOON": lambda keyboard, slave: (termios.tcflow(slave, termios.TCOOFF),
                                                     termios.tcflow(slave, termios.TCOON))}


def flows(keyboard, slave):
    """O que se escreve no terminal chega à tela?"""
    try:
        os.write(slave, b"oi\n")
    except BlockingIOError:
        return False
    while select.select([keyboard], [], [], 0.3)[0]:
        if b"oi" in os.read(keyboard, 1024):
            return True
    return False


def released(stop, start):
    keyboard, slave = os.openpty()
    os.set_blocking(slave, False)
    assert flows(keyboard, slave)
    STOPS[stop](keyboard, slave)
    assert not flows(keyboard, slave)
    STARTS[start](keyboard, slave)
    moves = flows(keyboard, slave)
    print(f"  parado por {stop}, depois {start:18}", "anda" if moves else "continua parado")
    return moves


print("Linux", os.uname().release)
assert [start for start in STARTS if released("Ctrl+S", start)] == [
    "Ctrl+Q", "sem IXON", "IXANY e uma tecla", "TCOOFF e TCOON"]
assert [start for start in STARTS if released("TCOOFF", start)] == ["TCOON", "TCOOFF e TCOON"]
PY
timeout 120 root/usr/bin/linux.uml mem=128M rootfstype=hostfs rootflags=/ ro init="$here/init" con=null \
    con0=null quiet umid=achado uml_dir="$here/" < /dev/null > kernel.log 2>&1 || true
cat out/said
test -e out/good
echo "visto: TCOON só desfaz o que TCOOFF fez"
