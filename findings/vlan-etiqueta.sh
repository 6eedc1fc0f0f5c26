#!/bin/sh
# Um socket AF_PACKET de um EtherType só ouve os quadros de todas as VLANs, e não sabe de qual vieram.
#
# O que se esperaria: packet(7): com PACKET_AUXDATA, cada quadro traz a etiqueta de VLAN que o kernel
# lhe tirou (TP_STATUS_VLAN_VALID, tp_vlan_tci). Isso vale para quem pede ETH_P_ALL.
# O que se vê, Linux 6.1.176 (o mesmo no 6.18), num socket preso a uma interface e a 0x88B5:
# - VLAN 5 sem subinterface: o quadro chega, sem etiqueta nem aviso dela: TP_STATUS_VLAN_VALID já é 0.
#   Só o tipo o denuncia: é PACKET_OTHERHOST, embora o MAC de destino seja o nosso (para ETH_P_ALL, o
#   mesmo quadro é PACKET_HOST). Prioridade (VLAN 0) não se distingue de um quadro sem etiqueta.
# - VLAN 5 com a subinterface no ar: o quadro chega a ela e, outra vez, ao socket preso à interface
#   mãe, agora como PACKET_HOST. O que o denuncia passou a ser o endereço: a interface que recvfrom()
#   diz é a subinterface, e não aquela a que o socket foi preso.
# Quem responde pelo socket da mãe responde sem etiqueta: noutra VLAN.
#
# Precisa de: apt-get, dpkg, modprobe, ip, python3. O kernel é o User Mode Linux do Debian: um processo
# comum, com a rede só dele.
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
{ modprobe -d root -a veth 8021q && python3 look.py && touch /mnt/good; } > /mnt/said 2>&1
echo o > /proc/sysrq-trigger
sleep 9
SH2
chmod +x init
cat > look.py <<'PY'
import os
import select
import socket
import struct
import subprocess

ETHERTYPE = 0x88B5
ETH_P_ALL = 3
SOL_PACKET, PACKET_AUXDATA = 263, 8
VLAN_VALID = 0x10
KINDS = {0: "HOST", 3: "OTHERHOST"}
SOURCE, TARGET = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")


def ip(command):
    subprocess.run(["ip", *command.split()], check=True)


def listen(interface, protocol):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    sock.bind((interface, protocol))
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    return sock


def heard(sock):
    """(interface que o endereço diz, tipo, VLAN que o PACKET_AUXDATA diz) de cada quadro 0x88B5."""
    frames = []
    while select.select([sock], [], [], 0.3)[0]:
        _, extra, _, address = sock.recvmsg(2048, 256)
        status, _, _, _, _, tag, _ = struct.unpack("=IIIHHHH", extra[0][2])
        if address[1] == ETHERTYPE and address[2] in KINDS:
            frames.append((address[0], KINDS[address[2]], tag if status & VLAN_VALID else None))
    return frames


def see(vlan, interface, protocol):
    """O que um socket ouve de um quadro da VLAN (None: sem etiqueta) que o outro lado manda."""
    with listen(interface, protocol) as sock, listen("va", 0) as wire:
        tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
        wire.send(TARGET + SOURCE + tag + struct.pack("!H", ETHERTYPE) + b"oi".ljust(46))
        frames = heard(sock)
    kind = "todos " if protocol == ETH_P_ALL else "0x88B5"
    print(f"  VLAN {vlan!s:4}  socket {kind} em {interface:5}", *frames)
    return frames


print("Linux", os.uname().release)
ip("link add va address 02:00:00:00:00:0a type veth peer name vb address 02:00:00:00:00:0b")
ip("link set va up")
ip("link set vb up")
print("sem subinterface:")
assert see(None, "vb", ETHERTYPE) == [("vb", "HOST", None)]
assert see(0, "vb", ETHERTYPE) == [("vb", "HOST", None)]
assert see(5, "vb", ETHERTYPE) == [("vb", "OTHERHOST", None)]
assert see(5, "vb", ETH_P_ALL) == [("vb", "HOST", 5)]
ip("link add link vb name vb.5 type vlan id 5")
ip("link set vb.5 up")
print("com a subinterface vb.5 no ar:")
assert see(5, "vb.5", ETHERTYPE) == [("vb.5", "HOST", None)]
assert see(5, "vb", ETHERTYPE) == [("vb.5", "HOST", None)]
assert see(7, "vb", ETHERTYPE) == [("vb", "OTHERHOST", None)]
PY
timeout 120 root/usr/bin/linux.uml mem=128M rootfstype=hostfs rootflags=/ ro init="$here/init" con=null \
    con0=null quiet umid=achado uml_dir="$here/" < /dev/null > kernel.log 2>&1 || true
cat out/said
test -e out/good
echo "visto: a etiqueta some, e um quadro de outra VLAN passa por um dos nossos"
