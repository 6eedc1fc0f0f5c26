#!/bin/sh
# A fila da interface transborda: sendto() por UDP não diz nada, a não ser a quem pediu IP_RECVERR.
#
# O que se esperaria: send(2): ENOBUFS não acontece no Linux, que joga fora calado quando a fila da
# interface transborda. Ou o contrário: sendto() que não falhou saiu da máquina.
# O que se vê, Linux 6.1.176 (o mesmo no 6.18), 50 datagramas numa fila (tbf) em que cabem 4:
# - UDP: sendto() aceita os 50, e a fila jogou fora 46 ou mais;
# - UDP com IP_RECVERR, que ip(7) apresenta como uma fila de erros a ler depois (MSG_ERRQUEUE): o mesmo
#   sendto() falha na hora, com ENOBUFS, em cada um que a fila jogou fora; a conta fecha com a dela;
# - AF_PACKET: ENOBUFS sem que se peça nada; com PACKET_QDISC_BYPASS os 50 passam ao lado da fila, e do
#   limite de taxa com ela;
# - perda sorteada (netem loss 100 %): os três acham que saiu. ENOBUFS fala da fila, e não da perda.
#
# Precisa de: apt-get, dpkg, modprobe, ip e tc (iproute2), python3. O kernel é o User Mode Linux do
# Debian: um processo comum, com a rede só dele.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
version=6.1um4+b13
apt-get -qq -o APT::Sandbox::User=root download "user-mode-linux=$version"
dpkg -x user-mode-linux_*.deb root
mkdir root/lib out
ln -s ../usr/lib/uml/modules root/lib/modules
cat > init <<SH2
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc none /proc
mount -t hostfs -o "$here/out" none /mnt
cd "$here"
{ modprobe -d root -a veth sch_tbf sch_netem && python3 overflow.py && touch /mnt/good; } > /mnt/said 2>&1
echo o > /proc/sysrq-trigger
sleep 9
SH2
chmod +x init
cat > overflow.py <<'PY'
import errno
import json
import os
import socket
import subprocess

COUNT = 50
PAYLOAD = bytes(1000)
PEER = ("192.0.2.2", 9)
FRAME = bytes.fromhex("02000000000b02000000000a88b5") + PAYLOAD
IP_RECVERR = 11
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20


def run(command):
    return subprocess.run(command.split(), check=True, stdout=subprocess.PIPE).stdout


def dropped():
    return json.loads(run("tc -s -j qdisc show dev va"))[0]["drops"]


def udp(*option):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if option:
        sock.setsockopt(*option)
    return lambda: sock.sendto(PAYLOAD, PEER)


def packet(*option):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind(("va", 0))
    if option:
        sock.setsockopt(*option)
    return lambda: sock.send(FRAME)


SENDERS = {"UDP": udp(), "UDP com IP_RECVERR": udp(socket.IPPROTO_IP, IP_RECVERR, 1)}


def send_all(queue):
    """{quem manda: (quantos send() falharam com ENOBUFS, quantos a fila jogou fora)}"""
    told = {}
    for name, send in SENDERS.items():
        run(f"tc qdisc replace dev va root {queue}")
        before, refused = dropped(), 0
        for _ in range(COUNT):
            try:
                send()
            except OSError as exc:
                assert exc.errno == errno.ENOBUFS, exc
                refused += 1
        told[name] = refused, dropped() - before
        run("tc qdisc del dev va root")
        print(f"  {name:28} {COUNT} mandados, {refused:2} ENOBUFS, {told[name][1]:2} jogados fora pela fila")
    return told


print("Linux", os.uname().release)
run("ip link add va type veth peer name vb")
run("ip addr add 192.0.2.1/24 dev va")
run("ip link set va up")
run("ip link set vb up")
run("ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:0b dev va")
SENDERS["AF_PACKET"] = packet()
SENDERS["AF_PACKET, QDISC_BYPASS"] = packet(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
print("fila curta (tbf de 8 kbit/s):")
short = send_all("tbf rate 8kbit burst 2k limit 4k")
refused, lost = short["UDP"]
assert refused == 0 and lost > COUNT // 2, short
for name in ("UDP com IP_RECVERR", "AF_PACKET"):
    assert short[name][0] == short[name][1] > COUNT // 2, short
assert short["AF_PACKET, QDISC_BYPASS"] == (0, 0), short
print("perda sorteada (netem loss 100 %):")
unlucky = send_all("netem loss 100%")
for name in ("UDP", "UDP com IP_RECVERR", "AF_PACKET"):
    assert unlucky[name] == (0, COUNT), unlucky
PY
timeout 120 root/usr/bin/linux.uml mem=128M rootfstype=hostfs rootflags=/ ro init="$here/init" con=null \
    con0=null quiet umid=achado uml_dir="$here/" < /dev/null > kernel.log 2>&1 || true
cat out/said
test -e out/good
echo "visto: só quem pede IP_RECVERR, ou fala por AF_PACKET, sabe que a fila transbordou"
