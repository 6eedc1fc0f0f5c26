#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cliente de filmes sem IP: acha o servidor no cabo por difusão; lista, baixa, toca, conversa e mede.

    sudo ./raw_client.py                          # menu (interface lo; outra: ./raw_client.py eth0)
    sudo ./raw_client.py lo baixar filme.mp4      # ou um comando: listar, baixar, tocar, mensagem, medir

O caminho de um bloco até o disco (o quadro está desenhado em raw_server.py, e o protocolo inteiro no README):

    cabo --> fila do kernel --> Receiver: é o próximo? --sim--> destino: arquivo .parcial, cano ou memória
             (cheia, perde)       |                                |
                                  não: guarda                      lento? a janela encolhe
                                  |                                |
    cabo <-- CONFIRMA: "falta o bloco n; além dele já tenho estes; cabem mais tantos"

O .parcial só recebe o que está em ordem: o tamanho dele é o ponto de onde retomar, mesmo depois de um kill -9.

O que ele não faz: não esconde nada de quem escuta o cabo, e não espera para sempre: --espera segundos, e desiste.
"""
import argparse
import array
import collections
import contextlib
import errno
import hashlib
import hmac
import io
import os
import re
import select
import selectors
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib

QUEUE_BYTES = 16 << 20  # fila do kernel: 130 ms de 1 Gbit/s enquanto o disco respira
WINDOW_BYTES, WINDOW_BLOCKS = 16 << 20, 11_000  # guardados fora de ordem; o bitmap deles cabe num quadro de 1500 B
BATCH_BLOCKS, BATCH_BYTES, HASH_STEP = 64, 1 << 20, 1 << 16  # quadros lidos por escrita; bytes conferidos por folga
CATALOG_BYTES, MESSAGE_MAX = 8 << 20, 1 << 16  # um catálogo maior do que isto é mentira; bytes de uma mensagem
ACK_EVERY_US, ACK_AGAIN_US = 1000, 50_000  # uma confirmação por ms; sem novidade, repete a última: pode ter se perdido
ASK_US, ASK_MAX_US = 50_000, 400_000  # um pedido sem resposta se repete, cada vez com mais calma
SILENCE_US, EMPTY_MAX = 3_000_000, 5  # servidor calado: procura-o de novo, e retoma; vezes seguidas sem um byte a mais
GONE = "o servidor calou. Veja se ele está no ar, confira o cabo e repita o comando"
WRONG_MTU = "Veja (ip link) se o MTU é o mesmo nas duas máquinas e no que há entre elas"  # o pedido passa, o bloco não
LISTEN_US, FETCH_US = 300_000, 200_000  # `listar` espera por outros servidores; `mensagem`, entre buscas de resposta
PREFIX = struct.Struct("!BBHIIQ")  # o cabeçalho depois do EtherType
PLAYERS = ("mpv --force-window=immediate -", "ffplay -autoexit -loglevel error -i -", "vlc --play-and-exit -")


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


# --- bloco comum: protocolo ---
# O EtherType que o IEEE 802 reserva para experiências locais: não é de ninguém.
ETHERTYPE = 0x88B5
WIRE_VERSION = 1
BROADCAST = b"\xff" * 6

# Destino, origem, EtherType, tipo, versão, n, sessão, bloco, relógio; depois, dados e selo.
HEADER = struct.Struct("!6s6sHBBHIIQ")
KIND_AT = 14
SESSION_AT = 18
BLOCK_AT = 22

# O bit 7 do tipo diz o sentido: em lo cada lado também ouve o que ele mesmo disse. A resposta de
# um pedido tem o número dele, com esse bit.
FROM_SERVER = 0x80
HELLO = 0x01
OPEN = 0x02
ACK = 0x03
TEXT = 0x04
FETCH = 0x05
BYE = 0x06
WELCOME = 0x81
CARD = 0x82
DATA = 0x83
RECEIPT = 0x84
SPEECH = 0x85
ERROR = 0x86
KINDS = {
    HELLO: "OLÁ",
    OPEN: "ABRE",
    ACK: "CONFIRMA",
    TEXT: "TEXTO",
    FETCH: "ESCUTA",
    BYE: "FIM",
    WELCOME: "EIS-ME",
    CARD: "FICHA",
    DATA: "DADOS",
    RECEIPT: "RECIBO",
    SPEECH: "FALA",
    ERROR: "ERRO",
}

# Os campos fixos no começo dos dados; o que vem depois do ";" segue até o fim deles.
LAYOUT = {
    # Nonce do cliente, MTU dele.
    HELLO: struct.Struct("!16sI"),
    # Nonces do cliente e do servidor; nome da máquina.
    WELCOME: struct.Struct("!16s16s"),
    # Desde, tamanho e data do parcial, espaço livre, fila, janela, eco, espera; nome.
    OPEN: struct.Struct("!QQqQIIQI"),
    # Desde, tamanho, data, bytes por bloco, SHA-256, quadros enviados, repetidos, volta, a menor.
    CARD: struct.Struct("!QQqI32sQQII"),
    # Eco, espera, janela; bitmap do que veio além do que falta.
    ACK: struct.Struct("!QII"),
    # MORE, LAST ou NOTHING; texto em UTF-8.
    TEXT: struct.Struct("!B"),
    SPEECH: struct.Struct("!B"),
    # Um dos códigos de erro.
    ERROR: struct.Struct("!B"),
}

# Parte de uma mensagem: há mais; é a última; não há mensagem.
MORE = 0
LAST = 1
NOTHING = 2

# Códigos de ERRO.
GENERAL = 1
NOT_FOUND = 2
DENIED = 3
TOO_BIG = 4
CHANGED = 5
FULL = 6

# Nomes que não são de arquivo: o catálogo, e os zeros da medição.
CATALOG_NAME = b""
ZEROS_NAME = b"/"

# Número do bloco 0: assim toda cópia passa, logo no começo, pela volta de 2**32 - 1 a 0.
FIRST_NUMBER = 2**32 - 256

Frame = collections.namedtuple("Frame", "target source kind session block clock payload")


class ProtocolError(ValueError):
    """O quadro não segue a especificação: descarta-se, conta-se, e nada mais."""


def make_seal(key: bytes = b""):
    """Devolve (bytes do selo, função): CRC-32 acha o erro do fio; BLAKE2b, também quem forja."""
    if not key:
        return 4, lambda data: zlib.crc32(data).to_bytes(4, "big")
    return 16, lambda data: hashlib.blake2b(data, key=key, digest_size=16).digest()


def session_of(key: bytes, client_nonce: bytes, server_nonce: bytes) -> tuple:
    """(número, chave) de uma sessão: sem os dois nonces dela, um quadro de ontem não vale hoje."""
    nonces = client_nonce + server_nonce
    number = int.from_bytes(hashlib.blake2b(nonces, digest_size=4).digest(), "big")
    if not key:
        return number, b""
    return number, hashlib.blake2b(nonces, key=key, digest_size=32).digest()


def pack_frame(seal, target: bytes, source: bytes, kind: int, session: int, block: int,
               clock: int, payload=b"") -> bytes:
    """Monta um quadro inteiro, do destino ao selo."""
    head = HEADER.pack(target, source, ETHERTYPE, kind, WIRE_VERSION,
                       len(payload), session, block, clock)
    frame = head + payload
    return frame + seal(frame[KIND_AT:])


def unpack_frame(seal, data) -> Frame:
    """Confere e desmonta um quadro; o enchimento até 60 bytes não conta. Levanta ProtocolError."""
    if len(data) < HEADER.size:
        raise ProtocolError("curto")
    fields = HEADER.unpack_from(data)
    target, source, ethertype, kind, version, length, session, block, clock = fields
    end = HEADER.size + length
    mark = seal(data[KIND_AT:end])
    if (ethertype, version) != (ETHERTYPE, WIRE_VERSION) or kind not in KINDS:
        raise ProtocolError("tipo ou versão")
    if kind in LAYOUT and length < LAYOUT[kind].size:
        raise ProtocolError("dados curtos")
    # Se o quadro foi cortado, também não bate.
    if not hmac.compare_digest(mark, bytes(data[end:end + len(mark)])):
        raise ProtocolError("selo")
    payload = bytes(data[HEADER.size:end])
    return Frame(target, source, kind, session, block, clock, payload)


def unpack_body(kind: int, payload: bytes) -> tuple:
    """Os campos fixos do tipo e, por último, o resto: unpack_frame já garantiu que estão lá."""
    layout = LAYOUT[kind]
    return layout.unpack_from(payload) + (payload[layout.size:],)


def split_text(text: str, room: int) -> list:
    """As partes de uma mensagem, de até `room` bytes com o byte MORE ou LAST.

    A mensagem vazia também tem uma.
    """
    data = text.encode("utf-8", "replace")
    pieces = [data[at:at + room - 1] for at in range(0, len(data), room - 1)] or [b""]
    last = pieces.pop()
    return [bytes([MORE]) + piece for piece in pieces] + [bytes([LAST]) + last]


def to_wire(index: int) -> int:
    """Número com que viaja o bloco `index` (0, 1, 2...): tem 32 bits e dá a volta sem aviso."""
    return (FIRST_NUMBER + index) & 0xFFFFFFFF


def from_wire(number: int, near: int) -> int:
    """O índice de número `number` mais perto de `near` (RFC 1982); antes do começo, negativo."""
    ahead = (number - to_wire(near)) & 0xFFFFFFFF
    if ahead < 1 << 31:
        return near + ahead
    return near + ahead - (1 << 32)


def describe(arrow: str, frame: bytes) -> str:
    """Uma linha por quadro, para --verbose."""
    _, _, _, kind, _, length, session, block, _ = HEADER.unpack_from(frame)
    line = f"{arrow} {KINDS[kind]} sessão={session:08x} bloco={block} {length} B"
    if kind in (TEXT, SPEECH):
        # Depois do byte que diz se há mais, o texto.
        said = bytes(frame[HEADER.size + 1:HEADER.size + min(length, 60)])
        line += " " + said.decode("utf-8", "replace")
    return escape(line.rstrip())
# --- fim do bloco comum: protocolo ---


# --- bloco comum: enlace ---
# asm-generic/socket.h
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
# linux/sockios.h e net/if.h
SIOCGIFFLAGS = 0x8913
SIOCGIFMTU = 0x8921
SIOCGIFHWADDR = 0x8927
IFF_UP = 0x1
IFF_RUNNING = 0x40
# net/if_arp.h: os enlaces de quadro Ethernet.
ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772

# linux/filter.h e linux/bpf_common.h: lê uma palavra, ou um byte, do quadro; "e"; compara com uma
# constante; acaba, e o valor diz quantos bytes do quadro passam.
BPF_LOAD_WORD = 0x20
BPF_LOAD_BYTE = 0x30
BPF_AND = 0x54
BPF_EQUAL = 0x15
BPF_RETURN = 0x06
# Não é um byte do quadro: é a quem o kernel diz que ele se dirige (SKF_AD_OFF + SKF_AD_PKTTYPE).
BPF_PACKET_TYPE = 0xFFFFF000 + 4
# De outra máquina, ou com a etiqueta de uma VLAN que aqui não há (linux/if_packet.h).
PACKET_OTHERHOST = 3

# Uma FICHA, ou um pedido com um nome de arquivo comprido, não cabe em menos do que isto.
MTU_MIN = 256
# O que o kernel conta de cada interface.
NET_FOLDER = "/sys/class/net"

Interface = collections.namedtuple("Interface", "flags mac mtu hardware")


def clock() -> int:
    """Relógio monotônico, em µs: o dos quadros e o de todas as esperas."""
    return time.monotonic_ns() // 1000


def attach_filter(sock, side, session=None):
    """Filtro BPF: o kernel só copia para nós os quadros do sentido `side` (bit 7).

    Também ficam de fora os que não se dirigem a esta máquina e, se dita, os de outra sessão.
    """
    # (operação, valor, o que fazer se a comparação dá certo): o contrário acaba com o quadro.
    code = [
        (BPF_LOAD_BYTE, BPF_PACKET_TYPE, None),
        (BPF_EQUAL, PACKET_OTHERHOST, False),
        (BPF_LOAD_BYTE, KIND_AT, None),
        (BPF_AND, FROM_SERVER, None),
        (BPF_EQUAL, side, True),
    ]
    if session is not None:
        code.append((BPF_LOAD_WORD, SESSION_AT, None))
        code.append((BPF_EQUAL, session, True))
    code.append((BPF_RETURN, 0xFFFFFFFF, None))
    code.append((BPF_RETURN, 0, None))
    packed = bytearray()
    for at, (operation, value, goes_on) in enumerate(code):
        # Quantas instruções saltar se a comparação dá certo, e se não dá: até a última.
        jumps = {None: (0, 0), True: (0, len(code) - 2 - at), False: (len(code) - 2 - at, 0)}
        packed += struct.pack("=HBBI", operation, *jumps[goes_on], value)
    program = array.array("B", packed)
    pointer, _ = program.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(code), pointer))


def read_interface(sock) -> Interface:
    """Como está agora a interface do socket: o nome, o MAC e o MTU mudam com ela no ar.

    Levanta OSError (ENODEV) se ela se foi.
    """
    import fcntl
    name, _, _, hardware, _ = sock.getsockname()
    request = struct.pack("256s", name.encode())
    flags, = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
    mtu, = struct.unpack_from("i", fcntl.ioctl(sock, SIOCGIFMTU, request), 16)
    mac, = struct.unpack_from("6s", fcntl.ioctl(sock, SIOCGIFHWADDR, request), 18)
    return Interface(flags, mac, mtu, hardware)


def has_carrier(flags) -> bool:
    """Há fio, ou rede Wi-Fi, do outro lado? Ligada, a interface pode estar sem."""
    return bool(flags & IFF_RUNNING)


def explain_interface(name, interface) -> str:
    """Por que esta interface não serve; "" se serve."""
    if not interface.flags & IFF_UP:
        return f"a interface {name} está desligada. Ligue-a: sudo ip link set {name} up"
    if interface.hardware not in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
        return (f"{name} não leva quadros Ethernet (tipo {interface.hardware}). "
                "Veja as outras: ip -br link")
    if interface.mtu < MTU_MIN:
        return (f"em {name} só cabem {interface.mtu} bytes (MTU), e são precisos {MTU_MIN}: "
                f"sudo ip link set {name} mtu 1500")
    # Quem é porta de uma ponte entrega a ela tudo o que ouve.
    if os.path.exists(f"{NET_FOLDER}/{name}/brport"):
        bridge = os.path.basename(os.path.realpath(f"{NET_FOLDER}/{name}/master"))
        return f"{name} é uma porta da ponte {bridge}, e é ela quem ouve. Use {bridge}"
    return ""


def explain_name(name, error) -> str:
    """Por que não se acha a interface, e quais há."""
    known = ", ".join(known for _, known in socket.if_nameindex())
    why = error.args[-1]
    if getattr(error, "errno", None) == errno.ENODEV:
        why = "não existe"
    return f"a interface {escape(name)!r} não serve ({why}). As desta máquina: {known}"


def open_link(name, side, receive_bytes):
    """Socket AF_PACKET só do nosso EtherType, já com filtro: devolve (sock, MAC, MTU).

    Levanta Failure. Não olha se há fio: a interface pode ficar pronta daqui a pouco.
    """
    if not hasattr(socket, "AF_PACKET"):
        raise Failure("quadros crus (AF_PACKET) só existem no Linux: "
                      "use um computador ou Raspberry Pi com ele")
    try:
        # 0: nada entra antes do filtro.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        raise Failure("abrir quadros crus exige a permissão CAP_NET_RAW. "
                      f"Digite: sudo {typed()}") from None
    try:
        sock.setblocking(False)
        attach_filter(sock, side)
        sock.bind((name, ETHERTYPE))
        interface = read_interface(sock)
        problem = explain_interface(name, interface)
        # Até o limite do sistema; root passa dele.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
    except (OSError, UnicodeError) as error:
        problem = explain_name(name, error)
    if problem:
        sock.close()
        raise Failure(problem)
    return sock, interface.mac, interface.mtu


def is_own_namespace() -> bool:
    """Em `unshare -r` este root é só quem já éramos: não manda na máquina, e não há o que devolver.

    Ali o mapa de usuários tem um só. Um contêiner tem muitos, e o root dele pode o que não deve.
    """
    with open("/proc/self/uid_map") as uid_map:
        entries = uid_map.read().splitlines()
    return len(entries) == 1 and entries[0].split()[-1] == "1"


def drop_root():
    """Aberto o socket, root não serve para mais nada: volta a ser quem digitou sudo.

    Devolve o passwd dele, ou None.
    """
    uid = os.environ.get("SUDO_UID", "0")
    # Sem sudo (login de root, serviço), não há a quem voltar.
    if os.geteuid() != 0 or uid == "0" or is_own_namespace():
        return None
    import pwd
    try:
        user = pwd.getpwuid(int(uid))
    except (KeyError, ValueError):
        # Um chroot, ou um contêiner, com outro passwd.
        raise Failure(f"não há usuário {escape(uid)} (SUDO_UID), e como root não sigo. "
                      "Use env SUDO_UID=1000") from None
    # Carrega o codec já: de um Python dentro de /root, quem digitou sudo não o leria depois.
    escape("\x1b")
    # Os grupos primeiro: sem root não se mexe mais neles.
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    return user


def read_key(path):
    """Chave: o resumo do arquivo, byte por byte; sem arquivo, nenhuma."""
    if path is None:
        return b""
    recipe = f"head -c 32 /dev/urandom > {shlex.quote(path)}"
    try:
        with open(path, "rb") as file:
            secret = file.read(1 << 20)
    except FileNotFoundError:
        raise Failure(f"não há {path}. Crie a chave, e leve uma cópia à outra máquina: {recipe}")
    except OSError as error:
        raise Failure(f"não consigo ler {path}: {reason(error)}. Outra chave: --chave-arquivo")
    if len(secret) < 16:
        raise Failure(f"{path} tem {len(secret)} bytes, e uma chave pede 16 ou mais. "
                      f"Uma nova, no lugar dela: {recipe}")
    return hashlib.blake2b(secret, digest_size=32).digest()
# --- fim do bloco comum: enlace ---


REASONS = {
    GENERAL: "o servidor não conseguiu atender ao pedido", NOT_FOUND: "não existe no servidor: veja com listar",
    DENIED: "o servidor nega o acesso (só serve arquivos comuns abaixo da pasta dele)",
    TOO_BIG: "é maior do que o espaço livre deste disco",
    CHANGED: "o arquivo mudou no servidor durante a cópia: repita o comando",
    FULL: "o servidor está lotado: tente daqui a pouco, ou suba-o com --max-clientes maior"}


class Silence(Failure):
    """O servidor calou: caiu, ou o cabo caiu. Pode voltar."""


class Receiver:
    """Põe os blocos em ordem, com memória limitada. Sem socket, disco nem relógio."""

    def __init__(self, total, capacity):
        self.total, self.capacity = total, capacity
        self.next, self.limit = 0, min(capacity, total)  # o primeiro que falta; o primeiro que não prometemos guardar
        self.early = {}                                  # os que vieram antes da hora
        self.bits = self.origin = 0                      # os mesmos, num bitmap que começa no bloco `origin`

    def accept(self, index, payload, ready):
        """Um bloco: junta a `ready` o que ficou em ordem; guarda o que veio cedo; descarta o resto."""
        if index == self.next < self.limit:
            ready.append(payload)
            self.next += 1
            while self.next in self.early:
                ready.append(self.early.pop(self.next))
                self.next += 1
        elif self.next < index < self.limit and index not in self.early:
            self.early[index] = bytes(payload)
            self.bits |= 1 << (index - self.origin)

    def acknowledge(self, backlog):
        """(o que falta, janela, bitmap) para uma CONFIRMA; `backlog`: blocos que o destino ainda não engoliu."""
        self.bits, self.origin = self.bits >> (self.next - self.origin), self.next
        self.limit = min(max(self.limit, self.next + self.capacity - backlog), self.total)
        return self.next, self.limit - self.next, self.bits


class Sink:
    """Destino dos bytes em ordem. Este é o da medição: só os conta, por vigésimo do tempo."""
    fd, backlog = None, 0  # cano onde esperar por espaço; bytes que ainda não engoliu

    def __init__(self, span=1):
        self.hash, self.size, self.began, self.span = hashlib.sha256(), 0, clock(), span
        self.bars = collections.Counter()

    def write(self, pieces):
        self.bars[(clock() - self.began) * 20 // self.span] += sum(map(len, pieces))

    def idle(self):
        """Trabalho para as folgas; False se não há."""
        return False

    def ended(self):
        """Tudo entregue e conferido?"""
        return not self.backlog


class Memory(Sink):
    """Destino do catálogo."""
    data = b""

    def write(self, pieces):
        for piece in pieces:
            self.data += piece
            self.hash.update(piece)
        if len(self.data) > CATALOG_BYTES:
            raise Failure("o catálogo do servidor é grande demais")


class Pipe(Sink):
    """Um cano: quem o lê dita o passo. O que ainda não coube espera aqui, e a janela encolhe por isso."""

    def __init__(self, fd):
        super().__init__()
        self.fd, self.waiting = fd, collections.deque()  # um pedaço por lote; do primeiro, só o que falta
        os.set_blocking(fd, False)

    def write(self, pieces):
        data = memoryview(b"".join(pieces))
        self.hash.update(data)
        self.size, self.backlog = self.size + len(data), self.backlog + len(data)
        self.waiting.extend([data] if data else [])  # um servidor torto manda blocos sem bytes
        while self.idle():
            pass

    def idle(self):
        sent = 0
        with contextlib.suppress(BlockingIOError):
            sent = os.write(self.fd, self.waiting[0]) if self.waiting else 0
        if sent:
            self.backlog, self.waiting[0] = self.backlog - sent, self.waiting[0][sent:]  # outra fatia, e nenhuma cópia
            if not self.waiting[0]:
                self.waiting.popleft()
        return sent > 0


def open_own(path, flags):
    """Abre um arquivo nosso numa pasta que pode ser de muitos: nem por um link, nem à espera num FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


class Partial(Sink):
    """NOME.parcial. Ao lado, NOME.parcial.id diz de que arquivo ele é (tamanho e data): só esse se retoma."""

    def __init__(self, target):
        import fcntl
        super().__init__()
        self.target, self.path, self.note, self.hashed = target, target + ".parcial", target + ".parcial.id", 0
        try:
            self.fd = open_own(self.path, os.O_RDWR | os.O_CREAT)
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # some com o processo, até por kill -9
        except BlockingIOError:
            raise Failure(f"outro raw_client.py já está baixando {target}") from None
        except OSError as error:  # pasta que não existe, ou fechada para nós; um link; nome comprido demais
            raise Failure(f"não consigo gravar em {self.path}: {error.strerror}. Outro lugar: -o ARQUIVO") from None
        status = os.fstat(self.fd)
        mine = os.path.samestat(status, os.lstat(self.path))  # outro cliente pode tê-lo acabado entre o open e o flock
        owners = os.geteuid(), os.stat(os.path.dirname(self.path) or ".").st_uid  # em /tmp, outro o mudaria depois
        if not mine or not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid not in owners:
            raise Failure(f"{self.path} não é um arquivo comum nosso: apague-o, ou grave com outro nome (-o)")
        try:
            with open(self.note, encoding="utf-8", opener=open_own) as note:
                size, date = map(int, note.read(64).split())
            struct.pack("!Qq", size, date)
        except (OSError, ValueError, struct.error):  # sem o bilhete não se sabe de que arquivo é: do zero
            size = date = 0
        self.identity, self.size = (size, date), status.st_size if status.st_size <= size else 0

    def begin(self, offset, identity):
        """O servidor enviará desde `offset` um arquivo de tamanho e data `identity`."""
        if offset == 0 or (offset, identity) != (self.size, self.identity):
            os.ftruncate(self.fd, 0)  # antes do bilhete: um kill -9 aqui não deixa um par trocado
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.note)
            with open(self.note, "x", encoding="utf-8", opener=open_own) as note:
                note.write("%d %d\n" % identity)
            self.size, self.identity, self.hash, self.hashed = 0, identity, hashlib.sha256(), 0

    def write(self, pieces):
        data = memoryview(b"".join(pieces))
        while data:  # disco quase cheio: grava o que cabe, e a escrita seguinte diz ENOSPC
            done = os.pwrite(self.fd, data, self.size)
            self.size, data = self.size + done, data[done:]

    def idle(self):
        """Confere um passo, relido do disco: vale o que ficou gravado, e não o que passou pela memória."""
        piece = os.pread(self.fd, min(HASH_STEP, self.size - self.hashed), self.hashed)
        self.hash.update(piece)
        self.hashed += len(piece)
        return bool(piece)

    def ended(self):
        return self.hashed == self.size

    def close(self):
        """Um parcial sem um byte não serve a ninguém: some, com o bilhete dele."""
        for path in () if os.fstat(self.fd).st_size else (self.path, self.note):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        os.close(self.fd)

    def finish(self, overwrite):
        """Dá o nome final, que até aqui não existia."""
        if not overwrite and os.path.lexists(self.target):  # apareceu durante a cópia
            raise Failure(f"{self.target} já existe, e a cópia ficou em {self.path}. Para trocá-lo: --sobrescrever")
        os.replace(self.path, self.target)
        os.unlink(self.note)


class Client:
    """O socket, e a sessão do momento."""

    def __init__(self, args, sock, mac, mtu):
        self.interface, self.verbose, self.wait, self.target = args.interface, args.verbose, args.espera, args.servidor
        self.sock, self.mac, self.mtu, self.user = sock, mac, mtu, drop_root()
        self.key = read_key(args.chave_arquivo)
        self.seal_size, self.seal = make_seal(self.key)
        self.room = min(self.mtu - (HEADER.size - 14) - self.seal_size, 0xFFFF)
        self.queue = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // (2 * self.mtu + 1024)
        self.capacity = min(WINDOW_BLOCKS, WINDOW_BYTES // self.room, (self.room - LAYOUT[ACK].size) * 8)
        self.buffer, self.server, self.number = memoryview(bytearray(self.mtu + 14)), None, 0

    def send(self, kind, block=0, payload=b""):
        frame = pack_frame(self.seal, self.server, self.mac, kind, self.number, block, clock(), payload)
        if self.verbose:
            print(describe("->", frame), file=sys.stderr)
        try:
            self.sock.send(frame)
        except OSError as error:
            self.excuse(error)

    def excuse(self, error):
        """Fila vazia ou cheia, interface desligada: passam (None), e o pedido se repete. O resto é o fim."""
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.EMSGSIZE):
            raise Failure(f"a interface {self.interface} sumiu ({error.strerror}). Veja as outras: ip -br link")

    def check(self, data):
        """O quadro conferido, ou None se não é para nós. Levanta Failure se é um ERRO."""
        try:
            frame = unpack_frame(self.seal, data)
        except ProtocolError:
            return None
        if frame.target != self.mac or self.number and (frame.session, frame.source) != (self.number, self.server):
            return None
        if self.verbose:
            print(describe("<-", data), file=sys.stderr)
        if frame.kind == ERROR and self.number:
            raise Failure(REASONS.get(frame.payload[0], "o servidor respondeu com um erro desconhecido"))
        return frame

    def frames(self, until):
        """Gera os quadros bons que chegarem até o instante `until`."""
        while clock() < until and select.select([self.sock], [], [], max(until - clock(), 0) / 1e6)[0]:
            try:
                frame = self.check(self.buffer[:self.sock.recv_into(self.buffer)])
            except OSError as error:
                frame = self.excuse(error)
            if frame:
                yield frame

    def ask(self, kind, block=0, payload=b""):
        """Repete um pedido até a resposta dele (mesmo tipo, com o bit 7). Levanta Silence se ela não vem."""
        until, patience = clock() + SILENCE_US, ASK_US
        while clock() < until:
            self.send(kind, block, payload)
            for frame in self.frames(clock() + patience):
                if (frame.kind, frame.block) == (kind | FROM_SERVER, block):
                    return frame
            patience = min(patience * 2, ASK_MAX_US)
        raise Silence(GONE)

    def find(self, everyone=False):
        """Diz OLÁ até responderem: [(MAC, dois nonces, nome, relógio dele, e o nosso)]. Levanta Failure."""
        self.close()
        self.server, self.seal = self.target or BROADCAST, make_seal(self.key)[1]
        attach_filter(self.sock, FROM_SERVER)
        nonce, found, turn, until = os.urandom(16), {}, 0, clock() + int(self.wait * 1e6)
        while clock() < until and (everyone or not found):
            if turn == 3 and not found:
                print(f"espero um servidor em {self.interface} por até {self.wait:g} s...", file=sys.stderr)
            self.send(HELLO, 0, LAYOUT[HELLO].pack(nonce, self.mtu))
            for frame in self.frames(min(clock() + min(ASK_US << turn, ASK_MAX_US), until)):
                mine, theirs, name = unpack_body(WELCOME, frame.payload) if frame.kind == WELCOME else (0, 0, 0)
                if mine == nonce and frame.session == session_of(b"", mine, theirs)[0]:
                    found[frame.source] = frame.source, mine, theirs, os.fsdecode(name[:64]), frame.clock, clock()
                    if not everyone:
                        break
            until, turn = min(until, clock() + LISTEN_US) if found else until, turn + 1
        if found:
            return sorted(found.values())
        raise Failure(f"nenhum servidor respondeu em {self.interface}. Suba um: sudo ./raw_server.py {self.interface} "
                      "(se ele usa --chave-arquivo, aqui vai a mesma chave)")

    def enter(self, server):
        """Passa à sessão que `server` (um dos de find) ofereceu."""
        self.server, mine, theirs, self.server_name, self.echo, self.echoed = server
        self.target = self.server  # daqui em diante, só ele: noutro, o mesmo nome pode ser outro filme
        self.number, key = session_of(self.key, mine, theirs)
        self.said, self.heard, self.inbox = 0, 0, bytearray()  # partes de texto que foram, que vieram, e a mensagem
        _, self.seal = make_seal(key)
        attach_filter(self.sock, FROM_SERVER, self.number)

    def close(self):
        """Sai da sessão, se há uma. O FIM não tem resposta: vão dois, e se os dois se perdem ela acaba por silêncio."""
        for _ in range(2 if self.number else 0):
            self.send(BYE)
        self.number = 0

    def open(self, name, offset=0, identity=(0, 0), free=2**64 - 1):
        """ABRE um arquivo e se prepara para recebê-lo. Devolve (desde, tamanho, data)."""
        self.asked = LAYOUT[OPEN].pack(offset, *identity, free, self.queue, self.capacity, self.echo,
                                       clock() - self.echoed) + name
        if len(self.asked) > self.room:
            raise Failure(f"o nome não cabe num quadro de {self.mtu} bytes")
        offset, self.size, date, self.block, *_ = unpack_body(CARD, self.ask(OPEN, 0, self.asked).payload)
        if not 0 < self.block <= self.room or offset > self.size:
            raise ProtocolError("ficha impossível")
        self.receiver = Receiver(-(-(self.size - offset) // self.block), self.capacity)
        self.digest, self.newest, self.newest_at = bytes(32), 0, clock()
        full = HEADER.size + self.block + self.seal_size
        view = memoryview(bytearray(full * max(1, min(BATCH_BLOCKS, BATCH_BYTES // full))))
        frames = [view[at:at + full] for at in range(0, len(view), full)]
        self.slots = [(frame, frame[KIND_AT:-self.seal_size], frame[-self.seal_size:],
                       frame[HEADER.size:-self.seal_size]) for frame in frames]
        return offset, self.size, date

    def drain(self, sink):
        """Lê até um lote da fila e entrega o que ficou em ordem; devolve quantos blocos e quantas fichas vieram."""
        ready, blocks, cards, wanted = [], 0, 0, (DATA, WIRE_VERSION, self.block, self.number)
        for slot, sealed, mark, payload in self.slots:
            try:
                size = self.sock.recv_into(slot)
            except OSError as error:
                self.excuse(error)
                break
            *prefix, block, sent = PREFIX.unpack_from(slot, KIND_AT)
            if tuple(prefix) != wanted or size != len(slot) or self.seal(sealed) != mark:  # o caminho menos comum
                frame = self.check(slot[:size])
                if frame and frame.kind == CARD:
                    self.digest, cards = unpack_body(CARD, frame.payload)[4], cards + 1
                if frame is None or frame.kind != DATA:
                    continue
                block, payload, sent = frame.block, frame.payload, frame.clock
            blocks += 1
            if sent > self.newest:
                self.newest, self.newest_at = sent, clock()
            self.receiver.accept(from_wire(block, self.receiver.next), payload, ready)
        if ready:
            sink.write(ready)
        return blocks, cards

    def acknowledge(self, backlog, now):
        following, window, bits = self.receiver.acknowledge(backlog)
        self.send(ACK, to_wire(following), LAYOUT[ACK].pack(self.newest, min(now - self.newest_at, 2**32 - 1), window)
                  + bits.to_bytes((bits.bit_length() + 7) // 8, "little"))

    def transfer(self, sink, name="", until=None):
        """Recebe até o fim, conferido (ou até o instante `until`). Levanta Silence se o servidor cala."""
        receiver, pending, acked, heard = self.receiver, 1, 0, clock()
        quarter = max(1, min(self.queue, self.capacity) // 4)
        with contextlib.closing(Progress(name, sink, self.size)) as bar:  # um erro, ou Ctrl+C, também a apaga
            while until is None or clock() < until:
                (blocks, cards), now = self.drain(sink), clock()
                if blocks or cards and receiver.next == receiver.limit:  # à espera de blocos, só eles são sinal de vida
                    heard, pending = now, pending + blocks
                elif now - heard > SILENCE_US:
                    raise Silence(GONE)
                if receiver.next == receiver.total and sink.ended() and any(self.digest):
                    break
                backlog = -(-sink.backlog // self.block)  # em blocos, para cima
                reopened = receiver.next + receiver.capacity - backlog >= receiver.limit + quarter
                fresh = pending or reopened and receiver.limit < receiver.total
                due = acked + (ACK_EVERY_US if fresh else ACK_AGAIN_US)
                if now >= due or pending >= quarter:
                    self.acknowledge(backlog, now)
                    pending, acked = 0, now
                    bar.show(now)
                elif not blocks and not sink.idle():
                    select.select([self.sock], [sink.fd] if sink.backlog else [], [], (due - now) / 1e6)

    def fetch(self, name, sink):
        """Um arquivo inteiro, desde o começo, para um destino que não se retoma."""
        self.open(name)
        self.transfer(sink, os.fsdecode(name))
        self.close()
        if self.digest != sink.hash.digest():
            raise Failure("o SHA-256 não confere com o do servidor: o que chegou está errado. Repita o comando")

    def catalog(self, server):
        """Mostra o catálogo de um servidor, e devolve os nomes."""
        self.enter(server)
        sink = Memory()
        self.fetch(CATALOG_NAME, sink)
        entries = re.findall(rb"(\d{1,19}) (-?\d{1,19}) ([^\0]+)\0", sink.data)  # o que não tem esta forma não é linha
        print(f"{self.server.hex(':')} {escape(self.server_name)}: {len(entries)} arquivo(s)")
        for at, (size, date, name) in enumerate(entries, 1):
            day = time.strftime("%Y-%m-%d", time.localtime(min(max(int(date) // 10**9, 0), 2**32)))
            print(f"{at:4} {human(int(size)):>10}  {day}  {escape(os.fsdecode(name))}")
        return [os.fsdecode(name) for _, _, name in entries]

    def say(self, text):
        """Envia uma mensagem, parte por parte: cada uma é um pedido, e o recibo é a resposta."""
        if len(text.encode("utf-8", "replace")) > MESSAGE_MAX:
            raise Failure(f"uma mensagem leva até {MESSAGE_MAX} bytes; para mais do que isso há o baixar")
        for part in split_text(text, self.room):
            self.ask(TEXT, self.said, part)
            self.said += 1

    def listen(self):
        """Busca o que o servidor tem a dizer, e mostra cada mensagem completa."""
        more = MORE
        while more != NOTHING:
            more, piece = unpack_body(SPEECH, self.ask(FETCH, self.heard).payload)
            self.heard += more != NOTHING
            self.inbox = (self.inbox + piece)[:MESSAGE_MAX]
            if more == LAST:
                print(f"{self.server.hex(':')} diz: {escape(self.inbox.decode('utf-8', 'replace'))}", flush=True)
                self.inbox = bytearray()


class Progress:
    """Barra, taxa e tempo que falta, em stderr; calada se ele não é um terminal."""

    def __init__(self, name, sink, size):
        self.name, self.sink, self.size, self.first, self.began = escape(name), sink, size, sink.size, clock()
        self.shown = self.began if name and sys.stderr.isatty() else None

    def show(self, now):
        if self.shown is None or now - self.shown < 100_000:
            return
        self.shown, done = now, self.sink.size
        rate, share = (done - self.first) / (now - self.began), done / max(self.size, 1)  # bytes por µs: MB/s
        left = f"faltam {(self.size - done) / rate / 1e6:.0f} s" if rate else ""
        line = f"{self.name[:24]} {share:4.0%} [{'#' * int(24 * share):.<24}] {rate:.1f} MB/s {left}"
        print("\r" + line[:(os.get_terminal_size(2).columns or 80) - 1], end="\x1b[K", file=sys.stderr, flush=True)

    def close(self):
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def human(size):
    """Tamanho legível: 1.5 GiB."""
    power = min((max(size, 1).bit_length() - 1) // 10, 3)
    return f"{size} B" if power == 0 else f"{size / 1024 ** power:.1f} {' KMG'[power]}iB"


def list_all(client, args):
    problems = []
    for server in client.find(everyone=True):
        client.target = server[0]
        try:  # os 3 s gastos com quem calou não deixam valer a oferta dos outros: pede-se outra
            client.catalog(client.find()[0] if problems else server)
        except (Failure, ProtocolError) as error:  # o que um não diz, os outros ainda podem dizer
            problems.append(f"{server[0].hex(':')}: {error}")
    if problems:
        raise Failure("; ".join(problems))


def download(client, args):
    if args.saida == "-":
        return download_to_pipe(client, args)
    target = args.saida or escape(os.path.basename(args.word))  # o fim do nome: não sobe de pasta
    if not args.saida and target[:1] in ("", "."):
        raise Failure(f"de {escape(args.word)!r} não sai um bom nome de arquivo. Escolha um: -o ARQUIVO")
    if os.path.lexists(target) and not (args.sobrescrever and os.path.isfile(target)):  # nunca /dev/null, nem uma pasta
        raise Failure(f"{target} já existe. Um arquivo se troca com --sobrescrever; outro lugar se dá com -o ARQUIVO")
    with contextlib.closing(Partial(target)) as sink:
        reached, tries = 0, 0
        while not attempt(client, args.word, sink):
            reached, tries = sink.size, tries + 1 if sink.size == reached else 0
            if tries == EMPTY_MAX:
                raise Failure(f"o servidor responde, mas nenhum bloco chega. {WRONG_MTU}")
            print("o servidor calou: procuro por ele para continuar", file=sys.stderr)
        if client.digest != sink.hash.digest():
            os.ftruncate(sink.fd, 0)  # vazio, o close() o apaga
            raise Failure("o SHA-256 não confere com o do servidor, e apaguei a cópia. Repita o comando")
        sink.finish(args.sobrescrever)
    print(f"{target}: {human(sink.size)}, SHA-256 confere", file=sys.stderr)


def attempt(client, name, sink):
    """Uma sessão de cópia, desde onde o parcial está; False se o servidor calou no meio."""
    client.enter(client.find()[0])
    before, free = sink.size, shutil.disk_usage(os.path.dirname(sink.target) or ".").free
    try:
        offset, *identity = client.open(os.fsencode(name), sink.size, sink.identity, free)
        sink.begin(offset, tuple(identity))
        if before:
            print(f"continuo de {human(offset)}" if offset else "o arquivo mudou no servidor: do zero", file=sys.stderr)
        client.transfer(sink, name)
        return True
    except Silence:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Failure(f"o disco encheu. Libere espaço e repita o comando: {sink.path} continua dali") from None


def download_to_pipe(client, args):
    if os.isatty(1):
        raise Failure("um filme no terminal só faz barulho: mande-o a um programa (| mpv -) ou a um arquivo")
    client.enter(client.find()[0])
    blocking = os.get_blocking(1)
    try:
        client.fetch(os.fsencode(args.word), Pipe(1))
    finally:
        os.set_blocking(1, blocking)  # o cano pode ser de outros também


def play(client, args):
    choices = [args.player] if args.player else [choice.split() for choice in PLAYERS]
    command = next((words for words in choices if shutil.which(words[0])), None)
    if command is None:
        raise Failure(f"não achei tocador ({', '.join(words[0] for words in choices)}). Instale: sudo apt install mpv")
    env = dict(os.environ)
    if client.user:  # quem toca é quem digitou sudo: com as preferências e o som dele
        env.update(HOME=client.user.pw_dir, XDG_RUNTIME_DIR=f"/run/user/{client.user.pw_uid}")
    client.enter(client.find()[0])
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=env) as player:
        try:
            client.fetch(os.fsencode(args.word), Pipe(player.stdin.fileno()))
        except BrokenPipeError:
            print("o tocador fechou antes do fim", file=sys.stderr)
        except BaseException:
            player.terminate()
            raise
    if player.returncode:
        raise Failure(f"o tocador {command[0]} acabou com o estado {player.returncode}: não tocou, ou não até o fim")


def measure(client, args):
    span = int(args.word * 1e6)
    client.enter(client.find()[0])
    client.open(ZEROS_NAME)
    sink = Sink(span)
    client.transfer(sink, until=sink.began + span)
    *_, sent, again, trip, least, _ = unpack_body(CARD, client.ask(OPEN, 0, client.asked).payload)
    if not sink.bars:
        raise Failure(f"em {args.word:g} s não chegou bloco nenhum. {WRONG_MTU}")
    for at in range(20):
        bar = "#" * round(40 * sink.bars[at] / max(sink.bars.values()))
        print(f"{(at + 1) * args.word / 20:6.2f} s {bar:40} {sink.bars[at] * 160 / span:8.1f} Mbit/s")
    useful = client.receiver.next * client.block / span
    print(f"útil: {useful * 8:.1f} Mbit/s ({useful:.1f} MB/s), em blocos de {client.block} B\n"
          f"volta: {trip / 1000:.2f} ms (a menor, {least / 1000:.2f}); quadros: {sent}, repetidos: {again} "
          f"({again / max(sent, 1):.2%})")


def message(client, args):
    """Conversa: envia o que se escreve e mostra o que o operador do servidor responde, até o fim da entrada."""
    client.enter(client.find()[0])
    typed, reading = bytearray(), args.word is None
    if not reading:
        client.say(args.word)
    elif sys.stdin.isatty():
        print("escreva e tecle Enter; Ctrl+D termina", file=sys.stderr)
    while reading:
        if select.select([0], [], [], FETCH_US / 1e6)[0]:
            piece = os.read(0, 1 << 16)
            reading, typed = bool(piece), typed + piece
            while b"\n" in typed or typed and not reading or len(typed) > MESSAGE_MAX:
                line, _, typed = typed.partition(b"\n")
                client.say(line.decode("utf-8", "replace"))
        client.listen()


def menu(client, args):
    """O catálogo numerado, e uma letra para cada coisa."""
    if not sys.stdin.isatty():
        raise Failure("sem terminal não há menu. Diga um comando: listar, baixar, tocar, mensagem ou medir")
    while True:
        names = client.catalog(client.find()[0])
        try:
            print("b N: baixar   t N: tocar   m: mensagem   s: sair > ", end="", flush=True)
            letter, _, rest = input().strip().partition(" ")
            if letter == "s":
                return
            if letter == "m":
                args.word = rest or None
                message(client, args)
            elif letter in ("b", "t") and rest.isdecimal() and 0 < int(rest) <= len(names):
                args.word = names[int(rest) - 1]
                (download if letter == "b" else play)(client, args)
            elif letter:
                print("não entendi: é b ou t com um número da lista, m ou s", file=sys.stderr)
        except EOFError:
            return print()  # Ctrl+D deixou o terminal no meio da linha
        except Failure as failure:
            print(f"erro: {failure}", file=sys.stderr)


def start(args):
    sock, mac, mtu = open_link(args.interface, FROM_SERVER, QUEUE_BYTES)
    with sock, contextlib.closing(Client(args, sock, mac, mtu)) as client:
        try:
            return args.action(client, args)
        except ProtocolError as error:
            raise Failure(f"o servidor não segue o protocolo ({error})") from None


def mac_address(text):
    if not re.fullmatch("([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} não é um MAC: são seis pares, como 02:00:00:00:00:01")
    return bytes.fromhex(text.replace(":", ""))


COMMANDS = {  # nome: (função, tipo do argumento ou None, valor se ele falta, ou ... se é obrigatório)
    "listar": (list_all, None, None), "baixar": (download, str, ...), "tocar": (play, str, ...),
    "mensagem": (message, str, None), "medir": (measure, number(float, 0.1, 3600, "segundos"), 3.0)}


def read_words(parser, args):
    """Dá sentido às palavras soltas, [INTERFACE] [COMANDO [ARGUMENTO]], com as opções onde estiverem."""
    args.interface = args.words.pop(0) if args.words and args.words[0] not in COMMANDS else "lo"
    name, *rest = args.words or [None]
    if name not in (None, *COMMANDS):
        parser.error(f"não conheço o comando {name!r}: use {', '.join(COMMANDS)}")
    args.action, kind, args.word = COMMANDS.get(name, (menu, None, None))
    if len(rest) > (kind is not None) or not rest and args.word is ...:
        parser.error(f"{name} {'pede um' if kind else 'não leva'} argumento")
    if name and (name != "baixar" and (args.saida or args.sobrescrever) or name != "tocar" and args.player):
        parser.error("-o e --sobrescrever só valem com baixar, e --player, com tocar")
    try:
        args.word = kind(rest[0]) if rest else args.word
    except argparse.ArgumentTypeError as error:
        parser.error(error)
    return args


def build_parser():
    parser = Parser(formatter_class=argparse.RawDescriptionHelpFormatter,
                    usage="%(prog)s [OPÇÕES] [INTERFACE] [COMANDO]",
                    description="Cliente de filmes sem IP: lista, baixa, toca, conversa e mede.",
                    epilog="""INTERFACE: lo, se não se diz outra. COMANDO (sem nenhum, o menu):
  listar             o catálogo de cada servidor que responde
  baixar NOME        baixa um arquivo, ou continua de onde parou
  tocar NOME         toca enquanto chega
  mensagem [TEXTO]   conversa com o servidor; sem TEXTO, uma mensagem por linha
  medir [SEGUNDOS]   mede o enlace (padrão: 3 s)

Precisa de sudo, ou CAP_NET_RAW. Antes, em outro terminal: sudo ./raw_server.py""")
    add = parser.add_argument
    add("words", nargs="*", help=argparse.SUPPRESS)
    add("--servidor", type=mac_address, metavar="MAC", help="só este (padrão: o que responder antes)")
    add("--espera", type=number(float, 0.1, 86400, "segundos"), default=10.0, metavar="S",
        help="quanto esperar por um servidor (padrão: 10)")
    add("--chave-arquivo", metavar="ARQUIVO", help="o mesmo arquivo de chave do servidor")
    add("-o", dest="saida", metavar="ARQUIVO", help="baixar: onde gravar (- é a saída padrão)")
    add("--sobrescrever", action="store_true", help="baixar: troca o arquivo que já existe")
    add("--player", type=shlex.split, metavar="CMD", help="tocar: o que lê da entrada padrão (mpv, ffplay, vlc)")
    add("--verbose", action="store_true", help="mostra cada quadro em stderr")
    add("--version", action="version", version=f"%(prog)s {VERSION}", help="mostra a versão e sai")
    parser.parse_args = lambda argv=None: read_words(parser, parser.parse_intermixed_args(argv))
    return parser


def main(argv=None):
    return run(build_parser, start, argv)


if __name__ == "__main__":
    sys.exit(main())
