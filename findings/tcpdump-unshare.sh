#!/bin/sh
# O tcpdump do Debian não abre dentro de `unshare -rn`; nem com -Z root.
#
# O que se esperaria: quem é root numa rede só sua (`unshare -rn`) e abre ali sockets crus, como o
# ping e o nosso par, também vê os quadros com o tcpdump; e -Z root, que é "não troque de usuário",
# resolve a queixa de que ele não pode trocar.
# O que se vê, tcpdump 4.99.3-1 (Debian 12), util-linux 2.38.1: sendo root ele larga os privilégios,
# e ali o kernel nega setgroups() e o outro uid: acaba com estado 1. Com -Z root ele ainda chama
# initgroups(), e acaba do mesmo jeito. Com `unshare -cn --keep-caps` o usuário continua o mesmo, só
# com as capacidades da rede nova: como não é root, o tcpdump não larga nada, e vê os quadros.
#
# Precisa de: apt-get, dpkg, unshare, setpriv, ip e ping; e de poder criar namespaces de usuário. Não
# instala nada no sistema. Rodado por root, os comandos são os de um usuário comum (uid 65534).
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
version=4.99.3-1
apt-get -qq -o APT::Sandbox::User=root download "tcpdump=$version" libpcap0.8 libdbus-1-3
for package in *.deb; do dpkg -x "$package" root; done
chmod -R a+rX "$here"
export LD_LIBRARY_PATH="$here/root/usr/lib/x86_64-linux-gnu:$here/root/lib/x86_64-linux-gnu"
common=
[ "$(id -u)" != 0 ] || common="setpriv --reuid 65534 --regid 65534 --clear-groups"

# look OPÇÕES-DO-UNSHARE OPÇÕES-DO-TCPDUMP: o estado do tcpdump, e o que ele disse
look() {
    status=0
    $common unshare $1 sh -c "
        ip link set lo up
        (while sleep 0.2; do ping -c 1 127.0.0.1; done) >/dev/null 2>&1 &
        timeout 10 $here/root/usr/bin/tcpdump -n -i lo -c 1 $2 icmp
        status=\$?; kill \$!; exit \$status" >said 2>&1 || status=$?
    printf '%-28s %-8s estado %s: ' "unshare $1" "$2" "$status"
    grep -E "Couldn't|ICMP" said
}

look -rn ""
[ "$status" = 1 ]
grep -q "Couldn't .*'tcpdump'" said
look -rn "-Z root"
[ "$status" = 1 ]
grep -q "Couldn't change to 'root' uid=0 gid=0: Operation not permitted" said
look "-cn --keep-caps" ""
[ "$status" = 0 ]
grep -q "ICMP echo request" said
echo "visto: o tcpdump só abre ali com unshare -cn --keep-caps"
