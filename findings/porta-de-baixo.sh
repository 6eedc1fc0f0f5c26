#!/bin/sh
# Um socket AF_PACKET preso à interface de baixo (porta de bridge, mãe de macvlan, escravo de bond) não
# ouve o mesmo que o tcpdump ali: ora não ouve nada, ora ouve o que não é dele.
#
# O que se esperaria: packet(7): bind() a uma interface e a um EtherType recebe os quadros desse tipo que
# chegam por ela: o mesmo que o tcpdump (ETH_P_ALL) mostra, filtrado.
# O que se vê, Linux 6.1.176, com um socket de 0x88B5 na interface de baixo:
# - porta de uma bridge: surdo até ao quadro para o MAC da própria porta. Quem ouve é o socket da bridge,
#   e só o que é para ela, para a porta ou para todos. O tcpdump na porta vê todos.
# - mãe de uma macvlan: ouve também o que é para o MAC da filha, como PACKET_HOST; o tcpdump o mostra como
#   PACKET_OTHERHOST. Só a interface do endereço (a filha) o denuncia.
# - escravo de reserva de um bond (active-backup): ouve o que o bond joga fora. Quem escuta num escravo
#   acha que está no ar por um cabo que o bond não usa; nele, o do ativo chega com o nome do bond.
# Escutar na de cima (bridge, macvlan, bond) é o que funciona nos três.
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
mount -t sysfs none /sys
mount -t hostfs -o "$here/out" none /mnt
cd "$here"
{ modprobe -d root -a veth bridge macvlan bonding && python3 stack.py && touch /mnt/good; } > /mnt/said 2>&1
echo o > /proc/sysrq-trigger
sleep 9
SH2
chmod +x init
cat > stack.py <<'PY'
import os
import select
import socket
import subprocess
import time

ETHERTYPE, ETH_P_ALL = 0x88B5, 3
PATIENCE_S = 20.0
KINDS = {0: "HOST", 1: "BROADCAST", 3: "OTHERHOST"}
WIRE, LOWER, UPPER = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c"
STRANGER, ALL = "02:00:00:00:00:0d", "ff:ff:ff:ff:ff:ff"


def ip(*commands):
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


def raw(address):
    return bytes.fromhex(address.replace(":", ""))


def listen(interface, protocol):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    sock.bind((interface, protocol))
    return sock


def heard(sock):
    frames = []
    while select.select([sock], [], [], 0.3)[0]:
        data, address = sock.recvfrom(2048)
        if data[12:14] == ETHERTYPE.to_bytes(2, "big"):
            frames.append((address[0], KINDS[address[2]]))
    return frames


def see(upper, target):
    """(socket de 0x88B5 embaixo, tcpdump embaixo, socket de 0x88B5 em cima), de um quadro para target."""
    socks = listen("low", ETHERTYPE), listen("low", ETH_P_ALL), listen(upper, ETHERTYPE)
    with listen("wire", 0) as wire:
        wire.send(raw(target) + raw(WIRE) + ETHERTYPE.to_bytes(2, "big") + b"oi".ljust(46))
    result = tuple(heard(sock) for sock in socks)
    for sock in socks:
        sock.close()
    print(f"  para {target}: 0x88B5 em low {result[0]}, tcpdump em low {result[1]}, 0x88B5 em {upper} {result[2]}")
    return result


def fresh():
    subprocess.run("ip link del wire".split(), stderr=subprocess.DEVNULL)
    ip(f"link add wire address {WIRE} type veth peer name low address {LOWER}", "link set wire up")


def wait_for(path, text):
    end = time.monotonic() + PATIENCE_S
    while True:
        with open(path) as state:
            if state.read().strip() == text:
                return
        assert time.monotonic() < end, path
        time.sleep(0.1)


print("Linux", os.uname().release)
print("low é porta da bridge br0:")
fresh()
ip(f"link add br0 address {UPPER} type bridge", "link set low master br0", "link set low up", "link set br0 up")
wait_for("/sys/class/net/low/brport/state", "3")
assert see("br0", LOWER) == ([], [("low", "HOST")], [("br0", "HOST")])
assert see("br0", UPPER) == ([], [("low", "OTHERHOST")], [("br0", "HOST")])
assert see("br0", ALL) == ([], [("low", "BROADCAST")], [("br0", "BROADCAST")])
assert see("br0", STRANGER) == ([], [("low", "OTHERHOST")], [])
ip("link del br0")
print("low é a mãe da macvlan mac0:")
fresh()
ip("link set low up", f"link add link low name mac0 address {UPPER} type macvlan mode bridge", "link set mac0 up")
assert see("mac0", LOWER) == ([("low", "HOST")], [("low", "HOST")], [])
assert see("mac0", UPPER) == ([("mac0", "HOST")], [("low", "OTHERHOST")], [("mac0", "HOST")])
print("low é escravo de bond0 (active-backup), o ativo e depois o de reserva:")
fresh()
ip("link add wire2 type veth peer name low2", "link set wire2 up",
   "link add bond0 type bond mode active-backup miimon 100", "link set low master bond0",
   "link set low2 master bond0", f"link set bond0 address {LOWER}", "link set bond0 up")
ip("link set bond0 type bond active_slave low")
wait_for("/sys/class/net/bond0/bonding/active_slave", "low")
assert see("bond0", LOWER) == ([("bond0", "HOST")], [("low", "HOST")], [("bond0", "HOST")])
ip("link set bond0 type bond active_slave low2")
wait_for("/sys/class/net/bond0/bonding/active_slave", "low2")
assert see("bond0", LOWER) == ([("low", "HOST")], [("low", "HOST")], [])
PY
timeout 120 root/usr/bin/linux.uml mem=128M rootfstype=hostfs rootflags=/ ro init="$here/init" con=null \
    con0=null quiet umid=achado uml_dir="$here/" < /dev/null > kernel.log 2>&1 || true
cat out/said
test -e out/good
echo "visto: na interface de baixo, um socket de um EtherType não ouve o que o tcpdump mostra"
