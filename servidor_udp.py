#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Servidor UDP de eco e de chat: cada datagrama é um cartão-postal, com remetente e sem garantia.

    ./servidor_udp.py                            em um terminal: eco em 127.0.0.1 porta 5050
    ./cliente_udp.py                             em outro: cada linha digitada volta

    ./servidor_udp.py --modo chat                uma sala, para cliente_udp.py e para nc -u
    ./servidor_udp.py --perda 20 --semente 7     uma rede ruim de propósito, sempre com o mesmo azar

        cliente                       servidor
                                      socket() bind()        não há listen() nem accept(): um socket só serve a
        socket()                                             todos, e cada datagrama traz o endereço de quem o mandou
        sendto(b"oi") ------?----->   recvfrom_into()
        recvfrom()    <-----?------   sendto(b"oi")          "?": aqui ele pode se perder, chegar duas vezes ou fora
                                                             de ordem, e ninguém é avisado

O remetente de um cartão-postal pode ser mentira. Por isso ninguém recebe daqui mais bytes nem mais datagramas do que
mandou, enquanto não prova que mora onde diz; e há um limite do que se aceita de cada um por segundo.

O que ele não faz: não cifra, não retransmite, não guarda nada. Escutando em 0.0.0.0 numa máquina de vários endereços, a
resposta sai pelo que a rota escolher, que pode não ser o que o cliente espera (escute num só, se isto incomodar).
"""
import argparse
import base64
import collections
import contextlib
import errno
import hashlib
import heapq
import hmac
import io
import math
import os
import queue
import random
import re
import secrets
import select
import selectors
import shlex
import signal
import socket
import struct
import sys
import threading
import time
import types

QUEUE_BYTES = 4 << 20  # bytes que se pedem para a fila do kernel: o que chega com ela cheia se perde sem aviso
WAKE_S = 1  # no Windows o Ctrl+C só é visto entre duas esperas; e de quanto em quanto a sala confere silêncios
BATCH = 256  # datagramas lidos por vez antes de conferir os prazos: uma inundação não para o relógio
FIRST_USER_PORT = 1024  # abaixo dela moram DNS, NTP, echo, chargen: ninguém digita de lá, e quem responde faz laço
MAX_SOURCES = 4096  # remetentes lembrados; o mais antigo dá lugar
QUOTA = 1000  # datagramas por cota: só de cota em cota um remetente é conferido, e o caminho quente fica curto
ECHO_RATE = 1000  # datagramas por segundo de um remetente: mais que um exercício precisa, menos que um ataque quer
LOOPBACK_RATE = 100000  # de 127.0.0.1 e ::1, que ninguém forja de fora: um programa ligeiro, nunca uma inundação
CHAT_RATE = 20  # na sala cada datagrama vai a todos; ninguém digita 20 linhas por segundo
LOOP_COPIES, SAMPLES = 5000, 64  # depois de tantos datagramas, rever uma das últimas amostras é sinal de laço
COOKIE_PERIOD_S = 60  # um código vale no seu minuto e no seguinte; o servidor não guarda nenhum
MAX_MEMBERS = 64  # quem manda um datagrama à sala faz sair um por membro
IDLE_S = 120  # sem conexão, só o silêncio diz que alguém se foi
CONSOLE_LINES, LAST_WORDS_S = 4096, 0.5  # o que espera por um terminal parado; quanto se espera por ele no fim
MAX_DELAYED, MAX_DELAYED_BYTES = 8192, 8 << 20  # datagramas e bytes que --atraso segura: o resto se perde


# --- bloco comum: casa ---
VERSION = "1.0"

# O que nunca se mostra como veio: caracteres de controle (ESC move o cursor, dá título à janela),
# fins de linha do Unicode, metades de par UTF-16 e os que invertem a direção do texto, com que
# "exe.mp4" se lê "4pm.exe".
UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
                     r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# O que o sistema diz em inglês e mais se lê; o que não está aqui segue como ele o diz.
TROUBLES = {
    errno.ENOENT: "não existe",
    errno.EACCES: "sem permissão",
    errno.EISDIR: "é uma pasta",
    errno.ENOTDIR: "não é uma pasta",
    errno.ENOSPC: "não há mais espaço no disco",
    errno.EFBIG: "passou do tamanho permitido",
    errno.EIO: "erro de leitura ou escrita",
    errno.EAGAIN: "não quer esperar, e nada há agora",
    errno.EBADF: "o descritor está fechado, ou não serve para isto",
    errno.EMFILE: "acabaram os descritores deste programa (ulimit -n)",
    errno.ECONNREFUSED: "conexão recusada",
    errno.ECONNRESET: "o outro lado caiu (RST)",
    errno.EPIPE: "o outro lado já fechou",
    errno.ETIMEDOUT: "o outro lado não responde",
    errno.EHOSTUNREACH: "não há caminho até lá",
    errno.ENETUNREACH: "não há rede até lá",
    errno.ENETDOWN: "a interface está desligada",
    errno.EAFNOSUPPORT: "esta máquina não fala essa família de endereços",
}

# O argparse só sabe inglês; as suas frases passam por gettext(), e é lá que se traduzem.
ARGPARSE_WORDS = {
    "usage: ": "uso: ",
    "positional arguments": "argumentos",
    "optional arguments": "opções",
    "options": "opções",
    "show this help message and exit": "mostra esta ajuda e sai",
    "show program's version number and exit": "mostra a versão e sai",
    "argument %(argument_name)s: %(message)s": "%(argument_name)s: %(message)s",
    "the following arguments are required: %s": "falta dizer: %s",
    "one of the arguments %s is required": "falta dizer uma destas: %s",
    "unrecognized arguments: %s": "não conheço %s",
    "not allowed with argument %s": "não combina com %s",
    "ignored explicit argument %r": "não leva valor, e veio %r",
    "expected one argument": "falta o valor",
    "expected at least one argument": "falta o valor",
    "ambiguous option: %(option)s could match %(matches)s": "%(option)s pode ser %(matches)s",
    "invalid choice: %(value)r (choose from %(choices)s)": "%(value)r não serve; há %(choices)s",
    "unknown parser %(parser_name)r (choices: %(choices)s)":
        "não conheço %(parser_name)r; há %(choices)s",
}
argparse._ = lambda text: ARGPARSE_WORDS.get(text, text)


class Failure(Exception):
    """Erro que o usuário pode resolver: vira uma linha em stderr e estado 1, nunca um traceback."""


class Parser(argparse.ArgumentParser):
    """O argparse, com o erro de uso em uma linha só (estado 2)."""

    # Opção -> pede um valor? De todos os parsers que já leram: typed() precisa saber.
    known = {}

    def parse_known_args(self, args=None, namespace=None):
        for action in self._actions:
            for flag in action.option_strings:
                self.known[flag] = action.nargs != 0
        return super().parse_known_args(args, namespace)

    def error(self, message):
        self.exit(2, f"{self.prog}: erro: {message} (ajuda: {self.prog} --help)\n")


def typed(*words, drop=()):
    """O comando digitado, para repetir: sem as palavras soltas de `drop`, com `words` no fim.

    Só palavras soltas se tiram: o valor de uma opção pode ser igual ao endereço ou à porta.
    """
    kept = [os.path.basename(sys.argv[0])]
    is_value = False
    for word in sys.argv[1:]:
        option, equals, _ = word.partition("=")
        # O argparse aceita uma opção abreviada; uma que não existe não se sugere a ninguém.
        flags = [flag for flag in Parser.known if len(option) > 2 and flag.startswith(option)]
        wanted = bool(flags) if option.startswith("--") else word not in drop
        if is_value or wanted:
            kept.append(word)
        is_value = not (is_value or equals) and any(Parser.known[flag] for flag in flags)
    return "./" + shlex.join([*kept, *map(str, words)])


def escape(text: str) -> str:
    r"""Mostra o que não se imprime (ESC vira \x1b): a rede não comanda o terminal de ninguém."""
    return UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def reason(error: OSError) -> str:
    """Por que não deu certo, como o sistema o diz; em português, se é dos casos de todo dia."""
    # Outros (ssl, socket.gaierror) usam os mesmos números para outras coisas: vale o que traz a
    # frase do sistema.
    if error.errno in TROUBLES and error.strerror == os.strerror(error.errno):
        return TROUBLES[error.errno]
    return error.strerror or str(error)


def number(kind, low, high, unit):
    """Cria o type= de uma opção: um número (int ou float) de low a high, ou uma linha de erro."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        # NaN também cai aqui: nenhuma comparação com ele é verdadeira.
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} não serve: use {unit} de {low} a {high}")
        return value
    return parse


def wait_ready(readers=(), writers=(), timeout=None):
    """Espera que algum destes se deixe ler, ou escrever, e devolve os que se deixam.

    timeout: em segundos; passado ele, devolve []. Com poll(), onde há: select() não aceita
    descritores de 1024 em diante.
    """
    with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ)
        for writer in writers:
            selector.register(writer, selectors.EVENT_WRITE)
        return [key.fileobj for key, _ in selector.select(timeout)]


def write_all(fd: int, data) -> None:
    """Escreve tudo: o write() do sistema pode aceitar só uma parte (disco cheio, cano cheio)."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view):]
        except BlockingIOError:
            wait_ready(writers=[fd])


def open_standard():
    """Deixa stdin, stdout e stderr prontos, seja como for que o processo nasceu."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        stream = getattr(sys, name)
        if stream is None:
            # Nasceu sem ele (`>&-`): /dev/null toma o lugar, ou o próximo socket o tomaria, e o
            # print iria à rede.
            stream = open(os.open(os.devnull, os.O_RDWR), mode, closefd=False)
        elif mode == "w" and isinstance(getattr(stream, "buffer", None), io.RawIOBase):
            # PYTHONUNBUFFERED: sem buffer, o print() não olha quanto foi escrito, e um disco cheio
            # cortaria em silêncio.
            stream = open(stream.fileno(), mode, encoding=stream.encoding, closefd=False)
        if mode == "w":
            # Saída cp1252 ou ascii: o acento se perde, o programa não.
            stream.reconfigure(errors="replace")
        setattr(sys, name, stream)
    # Até o Python 3.8, num arquivo, stderr guardaria as linhas para o fim.
    sys.stderr.reconfigure(line_buffering=True)


def complain(error) -> int:
    """Uma linha em stderr sobre o erro; devolve o estado de saída."""
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename}: {reason(error)}" if error.filename else reason(error)
    with contextlib.suppress(OSError):
        print(f"{os.path.basename(sys.argv[0])}: erro: {text}", file=sys.stderr, flush=True)
    return 1


def run(build_parser, action, argv=None):
    """Lê a linha de comando, roda action(args) e devolve o estado de saída.

    0: feito; 1: não deu certo; 2: uso errado; 130: Ctrl+C.
    """
    # SIGTERM e Ctrl+C: um só caminho de saída.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    open_standard()
    try:
        status = action(build_parser().parse_args(argv)) or 0
    except SystemExit as end:
        # O argparse, depois de --help, --version ou um erro de uso.
        status = end.code
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # `| head -1` já foi embora: nada mais a escrever.
        status = 1
    except (Failure, OSError) as error:
        status = complain(error)
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except OSError as error:
            if not status:
                status = 1 if isinstance(error, BrokenPipeError) else complain(error)
            # O que ficou no buffer não tem para onde ir: nem na saída do interpretador, que o
            # diria em inglês.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status
# --- fim do bloco comum: casa ---


# --- bloco comum: endereço ---
def host_name(text):
    """type= de um endereço IPv4 ou IPv6, ou de um nome; a quem errou, diz como se escreve."""
    if text.isdigit():
        again = typed("127.0.0.1", text, drop=(text, "127.0.0.1"))
        raise argparse.ArgumentTypeError(f"{text} parece uma porta, e aqui vai o endereço: {again}")
    glued = re.fullmatch(r"\[(.+)\]:(\d+)|([^:]+):(\d+)", text)
    if glued:
        again = typed(*filter(None, glued.groups()), drop=(text,))
        raise argparse.ArgumentTypeError(f"{text}: endereço e porta são duas palavras: {again}")
    return text


port_number = number(int, 0, 65535, "uma porta")
# --- fim do bloco comum: endereço ---


# --- bloco comum: escuta ---
def has_ipv6():
    """O kernel fala IPv6? Num Pi com ipv6.disable=1, nem o socket nasce."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM):
        return True
    return False


def explain_bind(error, host, port):
    """Por que não dá para escutar em host:port, e o mesmo comando, noutro lugar, para digitar."""
    def again(new_host, new_port):
        return typed(new_host, new_port, drop=(host, str(port)))

    if isinstance(error, UnicodeError) or getattr(error, "errno", None) == socket.EAI_NONAME:
        return f"não encontro a máquina {host!r}: confira o nome, ou use um endereço como 127.0.0.1"
    if isinstance(error, socket.gaierror) and (has_ipv6() or ":" not in host):
        return f"não encontro a máquina {host!r} ({error.strerror}): confira o nome e a rede"
    if error.errno == errno.EADDRINUSE:
        return (f"a porta {port} já está em uso em {host}. "
                f"Quem a usa: ss -lntup 'sport = :{port}'. "
                f"Outra porta: {again(host, port % 65535 + 1)}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return (f"a porta {port} é do administrador (abaixo de 1024). "
                f"Tente outra: {again(host, port + 5000)}")
    if ":" in host and not has_ipv6():
        return f"esta máquina está sem IPv6. Em IPv4, todo lugar: {again('0.0.0.0', port)}"
    if error.errno == errno.EADDRNOTAVAIL:
        return (f"{host} não é um endereço desta máquina. Os dela: ip addr. "
                f"Todos de uma vez: {again('0.0.0.0', port)}")
    return f"não foi possível escutar em {host} porta {port}: {reason(error)}"


def bound_socket(host, port, kind):
    """socket() e bind() em host:port, ou Failure. Com `::` atende IPv6 e IPv4.

    kind: SOCK_STREAM ou SOCK_DGRAM.
    """
    sock = None
    try:
        found = socket.getaddrinfo(host, port, type=kind)
        # Um nome com os dois, como localhost, vale pelo IPv4: os servidores da coleção combinam.
        family, _, proto, _, address = min(found, key=lambda item: item[0] != socket.AF_INET)
        sock = socket.socket(family, kind, proto)
        if kind == socket.SOCK_STREAM and os.name == "posix":
            # Reabrir logo, apesar do TIME_WAIT; no Windows, esta opção deixaria roubar a porta.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        return sock
    except (OSError, UnicodeError) as error:
        if sock:
            sock.close()
        raise Failure(explain_bind(error, host, port))
# --- fim do bloco comum: escuta ---


# --- bloco comum: udp ---
MAX_PAYLOAD = {socket.AF_INET: 65507, socket.AF_INET6: 65527}  # 65535 - 8 do UDP (e - 20 do IPv4): RFC 768 e 791
ENTER = b"/entrar"  # o que manda à sala quem ainda não entrou nela
CODE_SIZE = 7  # letras: com o fim de linha, o código cabe na resposta a "/entrar" com o seu
INVITE = "* seu código é {}: mande-o de volta para entrar na sala\n"
HINTS = tuple(text.encode() for text in ("* quem é você? digite /entrar\n", "digite /entrar\n", "?\n", "?"))


def socket_address(host, port):
    """(família, endereço) de host e porta; um nome que tem IPv4 e IPv6 vale pelo IPv4, e os dois lados combinam."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    return min(((family, address) for family, *_, address in found), key=lambda item: item[0] != socket.AF_INET)
# --- fim do bloco comum: udp ---


# Protocolo: bytes entram, bytes saem.

def cookie(key: bytes, host: str, port: int, period: int) -> str:
    """O código de um endereço num minuto: só o dono do endereço o recebe, só quem tem a chave o calcula.
    BLAKE2s com chave (RFC 7693) sobre o minuto (8 bytes, o maior primeiro), a porta (2) e o texto do endereço; dos 40
    bits do resumo, os 35 primeiros, 5 por letra (base32, RFC 4648). Nada se guarda: confere-se calculando de novo."""
    message = period.to_bytes(8, "big") + port.to_bytes(2, "big") + host.encode()
    return base64.b32encode(hashlib.blake2s(message, key=key, digest_size=5).digest()).decode()[:CODE_SIZE]


# --- bloco comum: sala ---
LINE_LIMIT, NICK_LIMIT = 1024, 20  # bytes de uma linha (em UDP, cabe num quadro Ethernet); caracteres de um apelido
ROOM_HELP = ("* /nick NOME        muda o seu apelido\n* /quem             mostra quem está na sala\n"
             "* /msg NOME texto   fala só com um\n* /sair             vai embora\n* /ajuda            mostra isto\n")


class ProtocolError(ValueError):
    """O outro lado não respeitou o protocolo; a mensagem é a que se envia a ele."""


def parse_command(line: str) -> tuple:
    """`/msg ana oi` -> ("msg", "ana oi"); o que não começa por barra é fala: ("", linha)."""
    if not line.startswith("/"):
        return "", line
    name, _, rest = line[1:].partition(" ")
    return name.lower(), rest.strip()


def valid_nick(nick: str) -> str:
    """Devolve o apelido, se serve; ProtocolError se não."""
    if not 1 <= len(nick) <= NICK_LIMIT or not nick.isprintable() or " " in nick or nick.startswith("/"):
        raise ProtocolError(f"um apelido tem de 1 a {NICK_LIMIT} caracteres visíveis, sem espaços")
    return nick
# --- fim do bloco comum: sala ---


def is_loopback(host: str) -> bool:
    """127.0.0.0/8 (também como o IPv6 o escreve) ou ::1: o kernel não aceita estas origens vindas de um cabo."""
    return host == "::1" or host.startswith(("127.", "::ffff:127."))


class Guard:
    """Quem merece resposta: o balde de fichas (token bucket) de cada remetente, uma por datagrama, QUOTA por vez.
    O caminho quente só desconta `tokens`; quem não tem ficha passa por admit(), que decide se merece uma cota nova.
    Assim as conferências caras custam um milésimo por datagrama, e quem não merece nunca tem ficha."""

    def __init__(self, own, rate, say=print):
        self.own, self.rate, self.say = own, rate, say
        self.tokens = {}  # remetente -> fichas que restam
        self.quotas = {}  # remetente -> (quando pode ter outra cota, últimas amostras, datagramas desde o laço)
        self.sources, self.dropped = 0, collections.Counter()

    def admit(self, source, data):
        """Dá a `source`, que está sem fichas, uma cota nova (e gasta a primeira), ou descarta o datagrama."""
        now = time.monotonic()
        due, samples, count = self.quotas.get(source, (0.0, (), 0))
        if now < due:
            return self.drop("acima da taxa", source)
        if source[1] < FIRST_USER_PORT:
            return self.drop("porta de origem abaixo de 1024", source)
        if self.is_own(source):
            return self.drop("origem é o próprio servidor", source)
        sample = hash(bytes(data))
        looping = sample in samples and count >= LOOP_COPIES
        self.grant(source, now, (*samples, sample)[-SAMPLES:], 0 if looping else count)
        if looping:  # cada perda tira um datagrama do laço; um cliente que se repete perde um em cinco mil
            return self.drop("laço com outro servidor de eco", source)
        return True

    def grant(self, source, now, samples, count):
        rate = self.rate or (LOOPBACK_RATE if is_loopback(source[0]) else ECHO_RATE)
        most = int(min(QUOTA, rate))
        quota = random.randint((most + 1) // 2, most)  # sorteada: um laço de vários datagramas não acerta o passo dela
        if self.quotas.pop(source, None) is None:
            self.sources += 1
            if len(self.quotas) >= MAX_SOURCES:
                oldest = next(iter(self.quotas))
                del self.quotas[oldest], self.tokens[oldest]
        self.quotas[source] = now + quota / rate, samples, count + quota
        self.tokens[source] = quota - 1

    def is_own(self, source):
        """Diz vir desta porta, desta máquina (bind() só aceita o que é dela)? Responder seria falar sozinho."""
        if source[1] != self.own[1]:
            return False
        try:
            with socket.socket(socket.AF_INET6 if ":" in source[0] else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((source[0], 0, *source[2:]))
            return True
        except OSError:
            return False

    def drop(self, why, source):
        """Conta o descarte e, na primeira vez de cada motivo, conta por que; devolve False."""
        self.dropped[why] += 1
        if self.dropped[why] == 1:
            self.say(f"descartado: {why} (de {source[0]} porta {source[1]}); os próximos, só conto", file=sys.stderr)
        return False


class BadNetwork:
    """Fica entre o servidor e o socket e estraga o que sai: perde, duplica, atrasa. A mesma semente, o mesmo azar."""

    def __init__(self, send, args, guard):
        self.real_send, self.guard = send, guard
        self.loss, self.twice, self.delay_s = args.perda / 100, args.duplica / 100, args.atraso / 1000
        self.random = random.Random(args.semente)
        self.held, self.held_bytes, self.order = [], 0, 0  # heap de (quando sai, ordem, dados, destino)

    def send(self, data, source):
        lost, again = self.random.random() < self.loss, self.random.random() < self.twice
        if lost:
            self.guard.drop("perdido de propósito", source)
        # Em dobro só nesta máquina: pela rede, dois por um serviria para multiplicar um ataque.
        for _ in range(0 if lost else 2 if again and is_loopback(source[0]) else 1):
            (self.hold if self.delay_s else self.real_send)(data, source)

    def hold(self, data, source):
        """Guarda entre metade e uma vez e meia do atraso: variando, os datagramas também trocam de ordem."""
        due = time.monotonic() + self.delay_s * self.random.uniform(0.5, 1.5)
        if self.held_bytes + len(data) > MAX_DELAYED_BYTES or len(self.held) == MAX_DELAYED:
            return self.guard.drop("fila do atraso cheia", source)
        self.order += 1
        self.held_bytes += len(data)
        return heapq.heappush(self.held, (due, self.order, bytes(data), source))

    def tick(self):
        """Manda o que já esperou bastante; devolve os segundos até o próximo."""
        while self.held and self.held[0][0] <= time.monotonic():
            _, _, data, source = heapq.heappop(self.held)
            self.held_bytes -= len(data)
            self.real_send(data, source)
        return self.held[0][0] - time.monotonic() if self.held else WAKE_S


class Room:
    """Uma sala sem conexões: membro é o endereço que provou receber o que se manda a ele, até se calar por um tempo.
    A linha volta também a quem a disse: sem conexão, só isto lhe mostra que ela chegou."""

    def __init__(self, send, idle_s, say=print):
        self.send, self.idle_s, self.say, self.key = send, idle_s, say, secrets.token_bytes(32)
        self.members = {}  # endereço -> nick (apelido) e seen (quando falou por último)

    def receive(self, data, source):
        """Um datagrama é uma linha; vazio, quer dizer "continuo aqui"."""
        text = bytes(data).decode("utf-8", "replace").strip()
        first, _, rest = text.partition(" ")
        proved = len(first) == CODE_SIZE and self.proves(first.upper(), source)
        if source not in self.members and not (self.welcome(source) if proved else self.challenge(bytes(data), source)):
            return None
        self.members[source].seen = time.monotonic()
        line = rest.strip() if proved else text
        if len(escape(line[:LINE_LIMIT + 1]).encode()) > LINE_LIMIT:  # escapada, como seguirá: \x01 são quatro bytes
            return self.tell(source, f"* erro: linha com mais de {LINE_LIMIT} bytes")
        return self.obey(source, *parse_command(line))

    def codes(self, source):
        """Os códigos que valem agora: o deste minuto e o do anterior, que quem digita devagar ainda traz na mão."""
        period = int(time.monotonic() // COOKIE_PERIOD_S)
        return [cookie(self.key, source[0], source[1], p) for p in (period, period - 1) if p >= 0]

    def proves(self, code, source):
        return any(hmac.compare_digest(code.encode(), valid.encode()) for valid in self.codes(source))

    def challenge(self, data, source):
        """A resposta a um desconhecido: o código, se o pediu; nunca mais bytes do que ele mandou (a um vazio, nada)."""
        invites = [text.format(self.codes(source)[0]).encode() for text in (INVITE, "{}\n", "{}")]
        answers = invites if data.startswith(ENTER) else HINTS
        answer = next((text for text in answers if len(text) <= len(data)), b"")
        if answer:
            self.send(answer, source)

    def welcome(self, source):
        if len(self.members) >= MAX_MEMBERS:
            return self.tell(source, f"* erro: a sala está cheia ({MAX_MEMBERS}); tente mais tarde")
        nick = next(name for name in map("visitante{}".format, range(1, MAX_MEMBERS + 1)) if not self.find(name))
        self.announce(f"* {nick} entrou")
        self.members[source] = types.SimpleNamespace(nick=nick, seen=time.monotonic())
        self.tell(source, f"* bem-vindo à sala, {nick}. /ajuda mostra os comandos")
        return True

    def leave(self, source, last_words):
        member = self.members.pop(source)
        self.tell(source, last_words)
        self.announce(f"* {member.nick} saiu")

    def tell(self, source, text):
        self.send((text + "\n").encode(), source)

    def announce(self, text):
        self.say(text)
        for source in self.members:
            self.tell(source, text)

    def obey(self, source, command, text):
        """Faz o que a linha manda; o que veio da rede só segue viagem escapado."""
        nick = self.members[source].nick
        if not command and text:
            self.announce(f"<{nick}> {escape(text)}")
        elif command == "nick" or command == "entrar" and text:
            self.rename(source, text)
        elif command == "quem":
            self.tell(source, f"* na sala: {', '.join(sorted(m.nick for m in self.members.values()))}")
        elif command == "msg":
            self.whisper(source, *escape(text).partition(" ")[::2])
        elif command == "sair":
            self.leave(source, "* até logo")
        elif command and command != "entrar":
            known = "" if command == "ajuda" else f"* não conheço /{escape(command)}\n"
            self.send((known + ROOM_HELP).encode(), source)

    def find(self, nick):
        """O endereço de quem tem o apelido (sem distinguir maiúsculas), ou None."""
        return next((s for s, m in self.members.items() if m.nick.casefold() == nick.casefold()), None)

    def rename(self, source, wanted):
        try:
            if self.find(valid_nick(wanted)) not in (None, source):
                raise ProtocolError(f"{wanted} já está na sala; escolha outro apelido")
        except ProtocolError as error:
            return self.tell(source, f"* erro: {error}")
        old, self.members[source].nick = self.members[source].nick, wanted
        return self.announce(f"* {old} agora é {wanted}")

    def whisper(self, source, to, text):
        target = self.find(to)
        if target is None or not text:
            return self.tell(source, f"* erro: {to or 'quem?'} não está na sala, ou falta o texto")
        for address in {source, target}:
            self.tell(address, f"<{self.members[source].nick} para {to}, em particular> {text}")

    def tick(self):
        """Despede quem está calado há muito tempo; devolve os segundos até a próxima conferência."""
        for source in [s for s, m in self.members.items() if time.monotonic() - m.seen > self.idle_s]:
            self.leave(source, f"* {self.idle_s:g} s de silêncio: você saiu da sala; para voltar, /entrar")
        return min(WAKE_S, self.idle_s)


# O servidor.

class Console(threading.Thread):
    """Escreve o que o servidor diz: um terminal parado (Ctrl+S), ou um cano que ninguém lê, só a ela faz esperar."""

    def __init__(self):
        super().__init__(daemon=True)
        self.lines, self.broken = queue.SimpleQueue(), False
        self.start()

    def say(self, text, file=sys.stdout, most=CONSOLE_LINES):
        """Um print() que não espera; com a fila cheia não há ninguém lendo, e a mensagem se perde."""
        if file and self.lines.qsize() < most:  # None: o processo nasceu sem ela (`>&-`)
            self.lines.put((file, text + "\n"))

    def run(self):
        for stream, text in iter(self.lines.get, None):
            try:  # sem o buffer: parada nele, prenderia o fim do programa
                getattr(stream.buffer, "raw", stream.buffer).write(text.encode(stream.encoding, "replace"))
            except OSError as error:  # disco cheio, terminal que se foi: perde-se a linha, e não a sala
                if error.errno in (errno.EPIPE, errno.EINVAL):  # `| head -1` já leu o que queria (no Windows, EINVAL)
                    self.broken = True
                    return signal.raise_signal(signal.SIGTERM)  # acaba pelo mesmo caminho do Ctrl+C

    def close(self):
        self.lines.put(None)
        self.join(LAST_WORDS_S)


class Server:
    """Espera, lê tudo o que houver na fila, espera de novo. `answer(dados, remetente)` é o serviço."""

    def __init__(self, sock, guard, limit):
        self.sock, self.guard, self.limit = sock, guard, limit
        self.buffer = bytearray(limit + 1)  # um a mais: se ele for ocupado, chegou mais do que cabia
        self.datagrams, self.octets, self.stopping = 0, 0, False
        self.answer, self.ticks = self.send, []  # quem responde (o eco é só isto), e quem tem prazos a cumprir

    def send(self, data, source):
        try:
            self.sock.sendto(data, source)
        except OSError as error:  # sem rota, firewall, o ICMP de outra resposta: problema deste destino só
            self.guard.drop(f"envio recusado ({error.strerror})", source)

    def stop(self, *_):
        """Ctrl+C e SIGTERM são um fim só, e o segundo não corta as contas do primeiro."""
        if not self.stopping:
            self.stopping = True
            raise KeyboardInterrupt

    def run(self):
        """O eco puro espera na própria leitura, que o kernel acorda a cada WAKE_S: com um cliente só, um select() por
        leitura o deixaria um décimo mais lento (medido). Com prazos a cumprir (sala, atraso), espera no select()."""
        patient_reads = os.name == "posix" and not self.ticks
        if patient_reads:
            self.sock.setblocking(True)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("qq", WAKE_S, 0))  # struct timeval
        while True:
            if not patient_reads:
                select.select([self.sock], [], [], max(0, min([WAKE_S, *(tick() for tick in self.ticks)])))
            self.drain()

    def drain(self):
        """Lê até a fila esvaziar (ou BATCH): enquanto há o que ler, cada leitura volta na hora."""
        receive, answer, admit = self.sock.recvfrom_into, self.answer, self.guard.admit
        buffer, tokens, limit = self.buffer, self.guard.tokens, self.limit
        data = view = memoryview(buffer)
        for _ in range(BATCH):
            try:
                size, source = receive(buffer)
            except BlockingIOError:
                return
            except OSError as error:
                self.excuse_receive(error)
                continue
            self.datagrams += 1
            self.octets += size
            if size != len(data):  # datagramas seguidos costumam ter o mesmo tamanho: um recorte serve a todos
                data = view[:size]
            left = tokens.get(source)
            if left and size <= limit:
                tokens[source] = left - 1
                answer(data, source)
            elif size > limit:
                self.guard.drop(f"maior que {limit} bytes: chegou cortado", source)
            elif admit(source, data):
                answer(data, source)

    def excuse_receive(self, error):
        """Erros de recepção que não são desta recepção; os outros sobem."""
        if getattr(error, "winerror", None) == 10040:  # WSAEMSGSIZE: o Windows avisa assim o datagrama cortado
            self.guard.drop(f"maior que {self.limit} bytes: chegou cortado", ("?", 0))
        elif not isinstance(error, ConnectionError) and error.errno != errno.ENETRESET:
            raise error  # os dois são de uma resposta anterior: não achou ninguém (10054), ou o TTL dela acabou (10052)


def open_socket(host, port):
    """socket() e bind(): não há listen(), porque não há conexões. Com `::` atende IPv6 e IPv4."""
    sock = None
    try:
        family, address = socket_address(host, port)
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):  # ENOBUFS onde o sistema recusa em vez de dar o que pode
                sock.setsockopt(socket.SOL_SOCKET, option, QUEUE_BYTES)
        sock.bind(address)
        sock.setblocking(False)
        return sock
    except (OSError, UnicodeError) as error:
        if sock:
            sock.close()
        raise Failure(explain_bind(error, host, port))


def traced(arrow, function, say):
    """A mesma função, que antes mostra em stderr o que passa por ela (--verbose)."""
    def call(data, source):
        text = escape(bytes(data[:60]).decode("utf-8", "replace"))
        say(f"{arrow} {source[0]} porta {source[1]} {len(data)} B {text}", file=sys.stderr)
        function(data, source)
    return call


def build_server(sock, args, say):
    """Encaixa as peças: socket <- rede ruim (se pedida) <- serviço."""
    rate = math.inf if args.taxa == 0 else args.taxa or (CHAT_RATE if args.modo == "chat" else None)
    server = Server(sock, Guard(sock.getsockname()[:2], rate, say), args.maximo)
    send = traced("->", server.send, say) if args.verbose else server.send
    if args.perda or args.duplica or args.atraso:
        network = BadNetwork(send, args, server.guard)
        send = network.send
        server.ticks.append(network.tick)
    room = Room(send, args.ocioso or math.inf, say) if args.modo == "chat" else None
    if room:
        server.ticks.append(room.tick)
    answer = room.receive if room else send
    server.answer = traced("<-", answer, say) if args.verbose else answer
    return server, room


def totals(datagrams, octets, guard):
    """As contas do fim: o que chegou, e o que não teve resposta e por quê."""
    return "\n".join([f"recebidos: {datagrams} datagramas, {octets} bytes, de {guard.sources} remetentes",
                      f"descartados: {sum(guard.dropped.values())}",
                      *(f"  {count} {why}" for why, count in sorted(guard.dropped.items()))])


def serve(args):
    with open_socket(args.endereco, args.porta) as sock, contextlib.closing(Console()) as console:
        server, room = build_server(sock, args, console.say)
        host, port = sock.getsockname()[:2]
        try:
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, server.stop)
            console.say(f"escutando em {host} porta {port}")
            reach = "ENDEREÇO-DESTA-MÁQUINA" if host in ("0.0.0.0", "::") else host
            hint = f"./cliente_udp.py {reach} {port}" + " --apelido NOME" * bool(room)
            console.say(f"modo {args.modo}; em outro terminal: {hint}\nCtrl+C mostra as contas", file=sys.stderr)
            server.run()
        except KeyboardInterrupt:
            broken = console.broken  # antes das últimas palavras: acabar a pedido não é erro, nem que ninguém as leia
            if room:
                room.announce("* o servidor encerrou; até logo")
            console.say(totals(server.datagrams, server.octets, server.guard), most=math.inf)
            return int(broken)


def build_parser():
    parser = Parser(description="Servidor UDP: eco ou sala de chat.", epilog="Em outro terminal: ./cliente_udp.py")
    percent = number(float, 0, 100, "uma porcentagem")
    parser.add_argument("endereco", nargs="?", default="127.0.0.1", type=host_name, metavar="ENDEREÇO",
                        help="onde escutar: IPv4, IPv6 ou nome; :: é todo lugar (padrão: %(default)s)")
    parser.add_argument("porta", nargs="?", default=5050, type=port_number, metavar="PORTA",
                        help="0 pede uma livre ao sistema (padrão: %(default)s)")
    parser.add_argument("--modo", choices=("eco", "chat"), default="eco", help="o serviço (padrão: eco)")
    parser.add_argument("--taxa", type=number(int, 0, 10**6, "datagramas por segundo"), metavar="N",
                        help=f"datagramas por segundo que se aceitam de cada remetente; 0: sem limite "
                             f"(padrão: {ECHO_RATE}, ou {LOOPBACK_RATE} desta máquina; {CHAT_RATE} no chat)")
    parser.add_argument("--maximo", type=number(int, 1, 65527, "bytes"), default=65527, metavar="B",
                        help="recusa datagramas maiores que B bytes (padrão: %(default)s, todos)")
    parser.add_argument("--ocioso", type=number(float, 0, 10**6, "segundos"), default=IDLE_S, metavar="S",
                        help="no chat, desliga quem passa S segundos calado; 0: nunca (padrão: %(default)s)")
    parser.add_argument("--perda", type=percent, default=0, metavar="P", help="perde P%% das respostas")
    parser.add_argument("--duplica", type=percent, default=0, metavar="P", help="dobra P%% delas (só a esta máquina)")
    parser.add_argument("--atraso", type=number(float, 0, 10000, "milissegundos"), default=0, metavar="MS",
                        help="segura cada resposta MS milissegundos, metade a mais ou a menos")
    parser.add_argument("--semente", type=number(int, 0, 2**32, "um número"), metavar="N", help="repete o mesmo azar")
    parser.add_argument("--verbose", action="store_true", help="mostra em stderr cada datagrama")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}", help="mostra a versão e sai")
    return parser


def main(argv=None):
    return run(build_parser, serve, argv)


if __name__ == "__main__":
    sys.exit(main())
