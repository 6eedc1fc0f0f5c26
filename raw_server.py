#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Servidor de filmes sem IP, sem TCP e sem UDP: o nosso próprio protocolo, direto no quadro Ethernet.

    mkdir videos; mv filme.mp4 videos/
    sudo ./raw_server.py                          # em um terminal (interface lo; outra: ./raw_server.py eth0)
    sudo ./raw_client.py lo baixar filme.mp4      # em outro, ou em outra máquina do mesmo cabo ou switch

Um quadro (frame). O selo cobre do tipo ao fim dos dados; o que vier depois dele é enchimento:

     0        6        12     14   15   16    18       22       26         34           34+n
    +--------+--------+------+----+----+-----+--------+--------+----------+------------+----------+
    |destino |origem  |0x88B5|tipo|ver.|  n  | sessão | bloco  | relógio  | n bytes de | selo     |
    | 6      | 6      | 2    | 1  | 1  | 2   | 4      | 4      | 8, em µs | dados      | 4 ou 16  |
    +--------+--------+------+----+----+-----+--------+--------+----------+------------+----------+

O cliente diz OLÁ, ABRE um arquivo e CONFIRMA o que chega; o servidor responde EIS-ME, FICHA e DADOS. Cada CONFIRMA
ecoa o relógio do quadro mais novo que chegou: o que saiu claramente antes dele e não chegou, perdeu-se.

O que ele não faz: não cifra (com --chave-arquivo todo quadro é autenticado, mas quem escuta o cabo lê tudo) e não
atravessa roteador, que só encaminha IP: as duas pontas ficam no mesmo enlace.
"""
import argparse
import array
import collections
import contextlib
import errno
import hashlib
import hmac
import itertools
import os
import select
import shlex
import signal
import socket
import stat
import struct
import sys
import time
import zlib

# Tudo o que a rede pode fazer crescer tem um teto.
BATCH_BLOCKS, BATCH_BYTES = 64, 1 << 20  # quadros montados lado a lado: um preadv lê todos; em lo, 15 de 64 KiB
FLYING_MAX = 16384  # blocos no ar por sessão, diga o cliente o que disser
HALF_OPEN_MAX, HALF_OPEN_US = 64, 5_000_000  # sessões que só disseram OLÁ, e por quanto tempo
SILENCE_US, STALLED_US = 15_000_000, 600_000_000  # o cliente caiu; ou conversa, mas a cópia não anda (em pausa)
CATALOG_MAX, DEPTH_MAX, CATALOG_REST = 4096, 32, 20  # arquivos; pastas dentro de pastas; folga entre duas leituras
MESSAGE_MAX, OUTBOX_MAX, UNSAID_MAX = 1 << 16, 4096, 1 << 20  # bytes de uma mensagem; partes a buscar; bytes a dizer
HASH_STEP, QUEUE_BYTES = 1 << 16, 1 << 20  # bytes de hash por folga do laço (dezenas de µs); só recebe quadros pequenos
MTU_MIN, ZEROS_SIZE = 256, 1 << 44  # menos não leva um pedido com nome; "tamanho" da medição: ninguém o baixa todo
# O ritmo (ver Path).
START_BLOCKS = 64  # a primeira volta: 96 KB, seis vezes o que o TCP arrisca, mas espalhados por ela
STARTUP_GAIN, DRAIN_GAIN = 2.89, 0.35  # 2/ln 2 é o menor ganho que dobra a taxa a cada volta; e o inverso dele
CYCLE = (1.25, 0.75, 1, 1, 1, 1, 1, 1)  # uma volta sonda por mais banda, outra devolve a fila, seis navegam
WINDOW_GAIN = 2  # dados no ar: uma volta viajando e outra esperando confirmações atrasadas
ACK_EVERY_US, BURST_US = 1000, 2000  # por quanto o cliente junta confirmações; crédito de quem é acordado tarde
NOISE_MAX, NOISE_BLOCKS = 0.5, 20  # perda que aceitamos chamar de ruído; volta com menos blocos não mede perda
TIMEOUT_MIN_US, TIMEOUT_MAX_US = 10_000, 1_000_000  # silêncio até sondar: mais que o soluço de um sistema ocupado
FULL_S, FULL_TRIES, TRIP_MAX_US = 0.0005, 20, 10_000_000  # fila da placa cheia; volta mais longa do que isto é mentira
BLOCK_AND_CLOCK = struct.Struct("!IQ")  # o que muda no cabeçalho de um DADOS para o seguinte


# --- bloco comum: casa ---
VERSION = "1.0"


class Failure(Exception):
    """Erro que o usuário pode resolver: vira uma linha em stderr e estado 1, nunca um traceback."""


class Parser(argparse.ArgumentParser):
    """O argparse, com o erro de uso em uma linha só (estado 2)."""

    def error(self, message):
        self.exit(2, f"{self.prog}: erro: {message} (ajuda: {self.prog} --help)\n")


def escape(text: str) -> str:
    r"""Mostra o que não se imprime (ESC vira \x1b): a rede não comanda o terminal de ninguém."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(kind, low, high, unit):
    """Cria o type= de uma opção: um número (kind = int ou float) de low a high, ou uma linha de erro."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:  # NaN também cai aqui
            raise argparse.ArgumentTypeError(f"{text!r} não serve: use {unit} de {low} a {high}")
        return value
    return parse


def run(build_parser, action, argv=None):
    """Lê a linha de comando, roda action(args) e devolve o estado de saída: 0, 1 ou 130 (o argparse sai com 2)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM e Ctrl+C: um só caminho de saída
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # saída cp1252 ou ascii: o acento se perde, o programa não
    try:
        status = action(build_parser().parse_args(argv))
        print(end="", flush=True)  # um cano fechado aparece aqui, e não na saída do interpretador
        return status or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head -1` já foi embora: nada mais a escrever, nem na hora de sair
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Failure, OSError) as error:
        print(f"{os.path.basename(sys.argv[0])}: erro: {error}", file=sys.stderr)
        return 1
# --- fim do bloco comum: casa ---


# --- bloco comum: protocolo ---
ETHERTYPE, WIRE_VERSION, BROADCAST = 0x88B5, 1, b"\xff" * 6  # IEEE 802 "local experimental 1": não é de ninguém
HEADER = struct.Struct("!6s6sHBBHIIQ")  # destino, origem, EtherType, tipo, versão, n, sessão, bloco, relógio
KIND_AT, SESSION_AT, BLOCK_AT = 14, 18, 22
FROM_SERVER = 0x80  # bit 7 do tipo: o sentido. Em lo cada lado também ouve o que ele mesmo disse
HELLO, OPEN, ACK, TEXT, FETCH, BYE = range(0x01, 0x07)
WELCOME, CARD, DATA, RECEIPT, SPEECH, ERROR = range(0x81, 0x87)
KINDS = dict(zip((HELLO, OPEN, ACK, TEXT, FETCH, BYE, WELCOME, CARD, DATA, RECEIPT, SPEECH, ERROR),
                 "OLÁ ABRE CONFIRMA TEXTO ESCUTA FIM EIS-ME FICHA DADOS RECIBO FALA ERRO".split()))
LAYOUT = {  # os campos fixos no começo dos dados; depois do ";", o que vem em seguida
    HELLO: struct.Struct("!16sI"),      # nonce do cliente, MTU dele
    WELCOME: struct.Struct("!16s16s"),  # nonces do cliente e do servidor; nome da máquina
    OPEN: struct.Struct("!QQqQIIQI"),   # desde, tamanho e data do parcial, livre, fila, janela, eco, espera; nome
    CARD: struct.Struct("!QQqI32sQQII"),  # desde, tamanho, data, bytes por bloco, SHA-256, enviados, repetidos, voltas
    ACK: struct.Struct("!QII"),         # eco, espera, janela; bitmap do que veio além do que falta
    TEXT: struct.Struct("!B"), SPEECH: struct.Struct("!B"),  # MORE, LAST ou NOTHING; texto em UTF-8
    ERROR: struct.Struct("!B"),         # um dos códigos
}
MORE, LAST, NOTHING = range(3)          # parte de uma mensagem: há mais, é a última, não há mensagem
GENERAL, NOT_FOUND, DENIED, TOO_BIG, CHANGED, FULL = range(1, 7)  # códigos de ERRO
CATALOG_NAME, ZEROS_NAME = b"", b"/"    # nomes que não são de arquivo: o catálogo, e os zeros da medição
FIRST_NUMBER = 2**32 - 256              # número do bloco 0: assim toda cópia passa pela volta de 2**32 - 1 a 0
Frame = collections.namedtuple("Frame", "target source kind session block clock payload")


class ProtocolError(ValueError):
    """O quadro não segue a especificação: descarta-se, conta-se, e nada mais."""


def make_seal(key: bytes = b""):
    """Devolve (bytes do selo, função): CRC-32 acha o erro do fio; BLAKE2b com chave acha também quem forja."""
    if key:
        return 16, lambda data: hashlib.blake2b(data, key=key, digest_size=16).digest()
    return 4, lambda data: zlib.crc32(data).to_bytes(4, "big")


def session_of(key: bytes, client_nonce: bytes, server_nonce: bytes) -> tuple:
    """(número, chave) de uma sessão: sem os dois nonces dela, um quadro de ontem não vale hoje."""
    nonces = client_nonce + server_nonce
    number = int.from_bytes(hashlib.blake2b(nonces, digest_size=4).digest(), "big")
    return number, hashlib.blake2b(nonces, key=key, digest_size=32).digest() if key else b""


def pack_frame(seal, target: bytes, source: bytes, kind: int, session: int, block: int, clock: int, payload=b""):
    """Monta um quadro inteiro (bytes), do destino ao selo."""
    frame = HEADER.pack(target, source, ETHERTYPE, kind, WIRE_VERSION, len(payload), session, block, clock) + payload
    return frame + seal(frame[KIND_AT:])


def unpack_frame(seal, data) -> Frame:
    """Confere e desmonta um quadro; o enchimento até 60 bytes não conta. Levanta ProtocolError."""
    if len(data) < HEADER.size:
        raise ProtocolError("curto")
    target, source, ethertype, kind, version, length, session, block, clock = HEADER.unpack_from(data)
    end = HEADER.size + length
    mark = seal(data[KIND_AT:end])
    if (ethertype, version) != (ETHERTYPE, WIRE_VERSION) or kind not in KINDS:
        raise ProtocolError("tipo ou versão")
    if kind in LAYOUT and length < LAYOUT[kind].size:
        raise ProtocolError("dados curtos")
    if not hmac.compare_digest(mark, bytes(data[end:end + len(mark)])):  # se foi cortado, também não bate
        raise ProtocolError("selo")
    return Frame(target, source, kind, session, block, clock, bytes(data[HEADER.size:end]))


def unpack_body(kind: int, payload: bytes) -> tuple:
    """Os campos fixos do tipo e, por último, o resto (unpack_frame já garantiu que estão lá)."""
    return LAYOUT[kind].unpack_from(payload) + (payload[LAYOUT[kind].size:],)


def split_text(text: str, room: int) -> list:
    """As partes de uma mensagem, de até `room` bytes com o byte MORE ou LAST; a vazia também tem uma."""
    data = text.encode("utf-8", "replace")
    pieces = [data[at:at + room - 1] for at in range(0, len(data), room - 1)] or [b""]
    return [bytes([MORE]) + piece for piece in pieces[:-1]] + [bytes([LAST]) + pieces[-1]]


def to_wire(index: int) -> int:
    """Número com que viaja o bloco `index` (0, 1, 2...): tem 32 bits e dá a volta sem aviso."""
    return (FIRST_NUMBER + index) & 0xFFFFFFFF


def from_wire(number: int, near: int) -> int:
    """O índice de número `number` mais perto de `near` (RFC 1982); antes do começo, negativo."""
    ahead = (number - to_wire(near)) & 0xFFFFFFFF
    return near + (ahead if ahead < 1 << 31 else ahead - (1 << 32))


def describe(arrow: str, frame: bytes) -> str:
    """Uma linha por quadro, para --verbose."""
    _, _, _, kind, _, length, session, block, _ = HEADER.unpack_from(frame)
    said = str(frame[HEADER.size:][1:min(length, 60)], "utf-8", "replace") if kind in (TEXT, SPEECH) else ""
    return escape(f"{arrow} {KINDS[kind]} sessão={session:08x} bloco={block} {length} B {said}".rstrip())
# --- fim do bloco comum: protocolo ---


# --- bloco comum: enlace ---
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33             # asm-generic/socket.h
SIOCGIFFLAGS, SIOCGIFMTU, IFF_UP = 0x8913, 0x8921, 1  # linux/sockios.h e net/if.h
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772                # net/if_arp.h: os enlaces de quadro Ethernet


def clock() -> int:
    """Relógio monotônico, em µs: o dos quadros e o de todas as esperas."""
    return time.monotonic_ns() // 1000


def attach_filter(sock, side, session=None):
    """Filtro BPF: o kernel só copia para nós os quadros do sentido `side` (bit 7) e, se dita, de uma sessão."""
    code = [(0x30, 0, KIND_AT), (0x54, 0, FROM_SERVER), (0x15, 1, side)]                   # ldb; and; jeq
    code += [] if session is None else [(0x20, 0, SESSION_AT), (0x15, 1, session)]         # ld; jeq
    code += [(0x06, 0, 0xFFFFFFFF), (0x06, 0, 0)]                                          # ret tudo; ret nada
    program = array.array("B", b"".join(struct.pack("=HBBI", op, 0, test and len(code) - 2 - at, value)
                                        for at, (op, test, value) in enumerate(code)))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(code), program.buffer_info()[0]))


def open_link(name, side, receive_bytes):
    """Socket AF_PACKET só do nosso EtherType, já com filtro: devolve (sock, MAC, MTU). Levanta Failure."""
    command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    if not hasattr(socket, "AF_PACKET"):
        raise Failure("quadros crus (AF_PACKET) só existem no Linux: use um computador ou Raspberry Pi com ele")
    import fcntl  # só existe no Unix: fora dele, o arquivo ainda se importa e responde a --help
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: nada entra antes do filtro
    except PermissionError:
        raise Failure(f"abrir quadros crus exige a permissão CAP_NET_RAW. Digite: sudo ./{command}") from None
    try:
        sock.setblocking(False)
        attach_filter(sock, side)
        sock.bind((name, ETHERTYPE))
        request = struct.pack("256s", name.encode())
        flags, = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
        mtu, = struct.unpack_from("i", fcntl.ioctl(sock, SIOCGIFMTU, request), 16)
        _, _, _, hardware, mac = sock.getsockname()
        problem = f"{name} não leva quadros Ethernet (tipo {hardware}). Veja as outras: ip -br link"
        if not flags & IFF_UP:
            problem = f"a interface {name} está desligada. Ligue-a: sudo ip link set {name} up"
        elif hardware in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
            with contextlib.suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)    # até o limite do sistema
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)      # root passa do limite
            return sock, mac, mtu
    except (OSError, UnicodeError) as error:
        known = ", ".join(known for _, known in socket.if_nameindex())
        problem = f"a interface {escape(name)!r} não serve ({error.args[-1]}). As desta máquina: {known}"
    sock.close()
    raise Failure(problem)


def open_standard():
    """Nasceu sem stdin, stdout ou stderr (`>&-`): /dev/null, ou o socket cru toma o lugar, e o print iria à rede."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        setattr(sys, name, getattr(sys, name) or open(os.open(os.devnull, os.O_RDWR), mode, closefd=False))
    sys.stderr.reconfigure(line_buffering=True)  # até o Python 3.8, num arquivo ele guardaria as linhas para o fim


def drop_root():
    """Aberto o socket, root não serve para mais nada: volta a ser quem digitou sudo. Devolve o passwd dele ou None."""
    with open("/proc/self/uid_map") as uid_map:
        nested = uid_map.read().split()[2] != "4294967295"  # em `unshare -r` este root já não manda na máquina
    uid = os.environ.get("SUDO_UID", "0")
    if os.geteuid() != 0 or nested or uid == "0":  # sem sudo (login de root, serviço), não há a quem voltar
        return None
    import pwd  # também
    try:
        user = pwd.getpwuid(int(uid))
    except (KeyError, ValueError):  # um chroot, ou um contêiner, com outro passwd
        raise Failure(f"não há usuário {escape(uid)} (SUDO_UID), e como root não sigo. Use env SUDO_UID=1000") from None
    escape("\x1b")  # carrega o codec já: de um Python dentro de /root, quem digitou sudo não o leria depois
    os.initgroups(user.pw_name, user.pw_gid)  # os grupos primeiro: sem root não se mexe mais neles
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    return user


def read_key(path):
    """Chave: o resumo do arquivo, byte por byte; sem arquivo, nenhuma."""
    if path is None:
        return b""
    try:
        with open(path, "rb") as file:
            secret = file.read(1 << 20)
    except OSError as error:
        raise Failure(f"não consigo ler {path}: {error.strerror}. Para criá-lo: head -c 32 /dev/urandom > {path}")
    if len(secret) < 16:
        raise Failure(f"{path} tem {len(secret)} bytes, e uma chave pede 16 ou mais: head -c 32 /dev/urandom > {path}")
    return hashlib.blake2b(secret, digest_size=32).digest()
# --- fim do bloco comum: enlace ---


Flight = collections.namedtuple("Flight", "sent delivered peer_clock anchor limited")  # o que se sabia ao enviar


def trip_of(now, echo, hold):
    """Ida e volta de um quadro: o eco do nosso relógio, menos o que o cliente diz que o segurou (e pode mentir)."""
    return min(max(now - echo - hold, 1), TRIP_MAX_US)


class Path:
    """O que se sabe do caminho, à moda do BBR: a volta, a maior taxa de entrega e o ruído; daí saem ritmo e janela.
    Perda não é sinal de fila: a que resta até na volta em que devolvemos a fila é ruído do fio, e compensa-se
    enviando a mais. Sem socket nem relógio: tempos em µs, taxas em blocos por µs."""

    def __init__(self, trip):
        self.smooth, self.var, self.trips = trip, trip / 2, collections.deque([trip], maxlen=64)
        self.rates = collections.deque([START_BLOCKS / STARTUP_GAIN / max(trip, ACK_EVERY_US)], maxlen=10)
        self.losses = collections.deque([0], maxlen=len(CYCLE))
        self.gain, self.gains, self.full, self.strikes = STARTUP_GAIN, None, 0, 0
        self.best = self.arrived = self.lost = self.mark = 0
        self.plan()

    def plan(self):
        """Ritmo de envio e blocos no ar, do que se mediu nas últimas voltas."""
        self.least, self.bandwidth = max(min(self.trips), 1), max(self.best, *self.rates)
        capacity = self.bandwidth / (1 - min(NOISE_MAX, *self.losses))
        self.rate = self.gain * capacity
        self.window = max(self.gain, WINDOW_GAIN) * capacity * (self.least + ACK_EVERY_US) + START_BLOCKS / 4

    def on_trip(self, sample):
        """Uma ida e volta: média e variação (RFC 6298), e a menor das últimas 64 voltas."""
        self.var += (abs(sample - self.smooth) - self.var) / 4
        self.smooth += (sample - self.smooth) / 8
        self.trips[-1] = min(self.trips[-1], sample)

    def timeout(self, doublings):
        return min(max(self.smooth + 4 * self.var + ACK_EVERY_US, TIMEOUT_MIN_US) * 2 ** doublings, TIMEOUT_MAX_US)

    def on_ack(self, flight, rate, delivered, arrived, lost):
        """Chegou o envio `flight`, e desde ele entregou-se a `rate`; os outros contam blocos: ao todo, e agora."""
        self.arrived, self.lost = self.arrived + arrived, self.lost + lost
        if not flight.limited or rate > self.bandwidth:  # com a janela do cliente fechada, a taxa é a dele
            self.best = max(self.best, rate)
        if flight.delivered >= self.mark:  # foi enviado depois da última volta: acabou mais uma
            self.mark = delivered
            self.end_round(flight.limited)
        self.plan()

    def end_round(self, limited):
        if self.arrived + self.lost >= NOISE_BLOCKS:
            self.losses.append(self.lost / (self.arrived + self.lost))
            self.arrived = self.lost = 0
        if self.best:
            self.rates.append(self.best)
            self.best = 0
        self.trips.append(self.smooth)
        if not self.gains and not limited:
            self.strikes = 0 if self.rates[-1] > 1.25 * self.full else self.strikes + 1
            self.full = max(self.full, self.rates[-1])
            if self.strikes == 3:  # três voltas sem crescer um quarto: o cano está cheio
                self.gains = itertools.chain([DRAIN_GAIN], itertools.cycle(CYCLE))
        if self.gains:
            self.gain = next(self.gains)


class Sender:
    """Um arquivo a caminho: o que voa, o que chegou, o que se perdeu, quando enviar mais. Sem socket nem relógio.
    A perda se acha pelo tempo, como no RACK (RFC 8985): perdeu-se o bloco que saiu claramente antes de outro que já
    chegou. Troca de ordem não engana, e um buraco é achado em uma volta. No silêncio, só uma sonda fala."""

    def __init__(self, total, queue, window, now, trip, peer_clock):
        self.total, self.queue = total, max(1, min(queue, FLYING_MAX))  # quadros que cabem na fila do cliente
        self.window = min(window, FLYING_MAX)        # blocos que ele aceita além do que lhe falta
        self.base = self.fresh = self.beyond = 0     # o que lhe falta; o nunca enviado; bit i: base + i chegou
        self.flying, self.lost = {}, collections.deque()  # bloco -> Flight, na ordem do envio; perdidos
        self.delivered = self.sent = self.again = 0
        self.echo, self.anchor, self.peer_clock = 0, now, peer_clock  # envio mais novo que chegou; relógio do cliente
        self.path, self.credit, self.paced = Path(trip), 1.0, now  # blocos que o ritmo permite, contados até `paced`
        self.heard, self.doublings, self.limited = now, 0, False  # última novidade; sondas sem resposta

    def on_ack(self, now, peer_clock, following, echo, hold, window, bits):
        """Aplica uma confirmação; False (e nada muda) se ela é velha, repetida ou impossível."""
        if peer_clock <= self.peer_clock or not self.base <= following <= self.fresh or echo > now:
            return False
        self.doublings, self.window = 0, min(window, FLYING_MAX)
        if echo:
            self.path.on_trip(trip_of(now, echo, hold))
            self.echo = max(self.echo, echo)
        before, flight = self.delivered, self.settle(following, bits & ((1 << (self.fresh - following)) - 1))
        lost = self.find_lost()
        if flight:  # a entrega durou o que diz o relógio do cliente, e nunca menos do que o envio
            self.heard = now
            span = max(peer_clock - flight.peer_clock, flight.sent - flight.anchor, 1)
            self.path.on_ack(flight, (self.delivered - flight.delivered) / span, self.delivered,
                             self.delivered - before, lost)
            self.anchor = max(self.anchor, flight.sent)
        self.peer_clock = peer_clock
        return True

    def settle(self, following, bits):
        """Dá por entregue o que chegou; devolve o Flight do mais novo entre eles, ou None."""
        advance, arrived = following - self.base, list(range(self.base, following))
        self.delivered += advance - bin(self.beyond & ((1 << advance) - 1)).count("1")
        self.base, self.beyond = following, self.beyond >> advance
        fresh = [following + at for at, bit in enumerate(bin(bits & ~self.beyond)[:1:-1]) if bit == "1"]
        self.delivered += len(fresh)
        self.beyond |= bits
        landed = filter(None, (self.flying.pop(block, None) for block in arrived + fresh))
        return max(landed, default=None)  # um Flight começa por `sent`: o maior é o mais novo

    def find_lost(self):
        """Passa a `lost` o que saiu claramente antes do envio mais novo que chegou; devolve quantos."""
        limit = self.echo - self.path.least // 8 - 100
        found = [block for block, _ in itertools.takewhile(lambda item: item[1].sent < limit, self.flying.items())]
        for block in found:
            del self.flying[block]
        self.lost.extend(found)
        return len(found)

    def take(self, now, most):
        """O que enviar agora, (primeiro bloco, quantos), já dado por enviado; None se não é hora."""
        rate, self.limited = self.path.rate, False
        self.credit, self.paced = min(self.credit + rate * (now - self.paced), max(rate * BURST_US, 2)), now
        quota = min(int(self.credit), int(min(self.path.window, self.queue)) - len(self.flying), most)
        if self.base < self.fresh and now >= self.heard + self.path.timeout(self.doublings):
            self.heard, self.doublings = now, min(self.doublings + 1, 10)
            return self.fly(self.base, 1, now, True)  # a sonda: a resposta a ela mostra tudo o que se perdeu
        if quota <= 0 or self.doublings:
            return None
        while self.lost:
            block = self.lost.popleft()
            if block >= self.base and not self.beyond >> (block - self.base) & 1:
                return self.fly(block, 1, now, True)
        count = min(quota, self.base + self.window - self.fresh, self.total - self.fresh)
        self.limited = count < quota
        self.fresh += max(count, 0)
        return self.fly(self.fresh - count, count, now, False) if count > 0 else None

    def fly(self, first, count, now, again):
        self.heard = self.heard if self.flying else now
        if again:
            self.flying.pop(first, None)  # volta ao fim do dicionário, que guarda a ordem do envio
        flight = Flight(now, self.delivered, self.peer_clock, self.anchor, self.limited)
        self.flying.update(dict.fromkeys(range(first, first + count), flight))
        self.credit, self.sent, self.again = self.credit - count, self.sent + count, self.again + count * again
        return first, count

    def next_time(self, now):
        """Quando chamar take() de novo, se nada chegar antes."""
        silence = self.heard + self.path.timeout(self.doublings) if self.base < self.fresh else now + TIMEOUT_MAX_US
        room = min(self.path.window, self.queue) - len(self.flying)
        if self.doublings or room < 1 or not (self.lost or self.fresh < min(self.total, self.base + self.window)):
            return silence
        quantum = min(max(self.path.rate * BURST_US / 4, 1), room)  # acordar a cada bloco custaria mais do que ele
        return min(silence, now + int(max(quantum - self.credit, 0) / self.path.rate) + 1)


class Refusal(Exception):
    """Um pedido que não se atende: vira um quadro ERRO com este código."""


class Source:
    """Um arquivo aberto para servir. O hash dele se calcula nas folgas do laço."""

    def __init__(self, fd, size=None):
        status = os.fstat(fd)
        self.fd, self.stamp = fd, (status.st_size, status.st_mtime_ns)
        self.size, self.date = size or status.st_size, status.st_mtime_ns
        self.hash, self.hashed, self.digest = hashlib.sha256(), 0, bytes(32)  # zeros: ainda não se sabe

    def hash_step(self):
        """Um passo do hash; False se não há mais o que fazer."""
        if any(self.digest) or self.size == ZEROS_SIZE:
            return False
        piece = os.pread(self.fd, HASH_STEP, self.hashed)
        self.hash.update(piece)
        self.hashed += len(piece)
        if not piece or self.hashed >= self.size:
            self.digest = self.hash.digest()
        return True


def open_source(server, name):
    """Abre `name` abaixo da pasta: sem '..', sem link simbólico no caminho, e só arquivo comum. Levanta Refusal."""
    if name == ZEROS_NAME:
        return Source(os.open("/dev/zero", os.O_RDONLY), ZEROS_SIZE)
    if name == CATALOG_NAME:
        fd = os.memfd_create("catalogo")
        os.write(fd, server.catalog())
        return Source(fd)
    parts = name.split(b"/")
    if b"\0" in name or any(part in (b"", b".", b"..") for part in parts):
        raise Refusal(DENIED)
    fd, code = os.dup(server.folder), DENIED
    try:
        for part in parts:  # O_NONBLOCK: abrir um FIFO não espera ninguém
            parent, fd = fd, os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
            os.close(parent)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return Source(fd)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            code = NOT_FOUND if error.errno in (errno.ENOENT, errno.ENAMETOOLONG) else GENERAL
    os.close(fd)
    raise Refusal(code)


def list_folder(folder):
    """Gera o catálogo, "tamanho data nome": o que open_source aceitaria, menos os ocultos."""
    for path, folders, names, fd in os.fwalk(".", dir_fd=folder):
        folders[:] = sorted(name for name in folders if name[0] != "." and path.count("/") < DEPTH_MAX)
        for name in sorted(name for name in names if name[0] != "."):
            with contextlib.suppress(OSError):  # apagado enquanto listávamos, ou fechado para nós
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield b"%d %d %s\0" % (status.st_size, status.st_mtime_ns, os.fsencode(f"{path}/{name}"[2:]))


class Session:
    """Um cliente: uma cópia, ou uma conversa."""

    def __init__(self, server, mac, client_nonce, mtu, now):
        self.server, self.mac, self.number = server, mac, 0
        while self.number == 0 or self.number in server.sessions:
            self.nonce = os.urandom(16)
            self.number, key = session_of(server.key, client_nonce, self.nonce)
        self.seal_size, self.seal = make_seal(key)
        self.room = min(min(mtu, server.mtu) - (HEADER.size - 14) - self.seal_size, 0xFFFF)
        self.confirmed, self.heard, self.advanced = False, now, now
        self.source = self.sender = self.asked = self.refusal = None
        self.expected, self.inbox = 0, bytearray()          # texto que chega: o número da próxima parte
        self.spoken, self.outbox = 0, collections.deque()   # texto que vai: o número da primeira parte na fila

    def reply(self, kind, block=0, payload=b""):
        self.server.send(pack_frame(self.seal, self.mac, self.server.mac, kind, self.number, block, clock(), payload))

    def handle(self, frame, now):
        """Um quadro autêntico deste cliente."""
        self.heard = now
        if frame.kind == BYE:
            self.server.drop(self)
        elif self.refusal:
            self.refuse(self.refusal)
        elif frame.kind in self.HANDLERS:
            self.confirmed = True
            self.HANDLERS[frame.kind](self, frame, now)

    def refuse(self, code):
        """Recusada, a sessão só espera o FIM, e volta a contar como uma que só disse OLÁ."""
        self.refusal, self.confirmed = code, False
        self.close()
        self.reply(ERROR, 0, LAYOUT[ERROR].pack(code))

    def close(self):
        if self.source:
            os.close(self.source.fd)
        self.source = self.sender = None  # senão o hash dele continuaria a atrasar os outros

    def on_open(self, frame, now):
        if self.asked is None:
            offset, size, date, free, queue, window, echo, hold, name = unpack_body(OPEN, frame.payload)
            self.asked, self.source = frame.payload, open_source(self.server, name)
            same = (size, date) == (self.source.size, self.source.date) and offset <= size
            self.offset = offset if same else 0  # senão o parcial dele é de outro arquivo, ou de outra versão deste
            rest = self.source.size - self.offset
            if rest > free:
                raise Refusal(TOO_BIG)
            self.sender = Sender(-(-rest // self.room), queue, window, now, trip_of(now, echo, hold), frame.clock)
            self.make_batch()
        if self.asked == frame.payload:
            self.send_card()

    def send_card(self):
        """FICHA: o descritor do arquivo, e as contas da cópia."""
        source, sender, path, status = self.source, self.sender, self.sender.path, os.fstat(self.source.fd)
        if (status.st_size, status.st_mtime_ns) != source.stamp:  # mudou desde que foi aberto
            raise Refusal(CHANGED)
        self.reply(CARD, 0, LAYOUT[CARD].pack(self.offset, source.size, source.date, self.room, source.digest,
                                              sender.sent, sender.again, int(path.smooth), int(path.least)))

    def on_ack(self, frame, now):
        echo, hold, window, bits = unpack_body(ACK, frame.payload)
        sender, base = self.sender, self.sender and self.sender.base
        if not sender or not sender.on_ack(now, frame.clock, from_wire(frame.block, base), echo, hold, window,
                                           int.from_bytes(bits, "little")):
            raise ProtocolError("confirmação velha")
        self.advanced = now if sender.base > base else self.advanced
        if sender.base == sender.total or not sender.window:  # acabou; ou o destino parou, e quer saber se vivemos
            self.send_card()

    def on_text(self, frame, now):
        more, piece = unpack_body(TEXT, frame.payload)
        if frame.block == self.expected:
            self.expected, self.advanced = self.expected + 1, now
            self.inbox += piece
            if len(self.inbox) > MESSAGE_MAX:
                raise Refusal(GENERAL)
            if more == LAST:
                self.server.speaker = self
                self.server.say(f"{self.mac.hex(':')} diz: {escape(self.inbox.decode('utf-8', 'replace'))}")
                self.inbox.clear()
        if frame.block < self.expected:  # a repetida ganha outro recibo, e mais nada
            self.reply(RECEIPT, frame.block)

    def on_fetch(self, frame, now):
        while self.outbox and self.spoken < frame.block:
            self.outbox.popleft()
            self.spoken += 1
        self.advanced = now
        ready = self.outbox and self.spoken == frame.block
        self.reply(SPEECH, frame.block, self.outbox[0] if ready else bytes([NOTHING]))

    HANDLERS = {OPEN: on_open, ACK: on_ack, TEXT: on_text, FETCH: on_fetch}

    def make_batch(self):
        """Quadros lado a lado num bytearray só, com o cabeçalho já escrito e as fatias já cortadas."""
        size = HEADER.size + self.room + self.seal_size
        head = HEADER.pack(self.mac, self.server.mac, ETHERTYPE, DATA, WIRE_VERSION, self.room, self.number, 0, 0)
        view = memoryview(bytearray(head.ljust(size, b"\0") * max(1, min(BATCH_BLOCKS, BATCH_BYTES // size))))
        frames = [view[at:at + size] for at in range(0, len(view), size)]
        self.payloads = [frame[HEADER.size:-self.seal_size] for frame in frames]
        self.parts = [(frame, frame[KIND_AT:-self.seal_size], frame[-self.seal_size:]) for frame in frames]

    def step(self, now):
        """Envia o que for hora de enviar; devolve quando chamar de novo."""
        deadline = min(self.heard + (SILENCE_US if self.confirmed else HALF_OPEN_US), self.advanced + STALLED_US)
        if now > deadline:
            self.server.drop(self)
        elif self.sender and self.sender.base < self.sender.total:
            return min(deadline, self.pump(now))
        return deadline

    def pump(self, now):
        budget, sender = len(self.parts), self.sender
        while budget > 0:
            first, count = sender.take(now, budget) or (0, 0)
            if not count:
                return sender.next_time(now)
            self.send_blocks(first, count, now)
            if first + count == sender.total and any(self.source.digest):
                self.send_card()  # o hash vai logo atrás do último bloco: uma volta a menos no fim
            budget -= count
        return now

    def send_blocks(self, first, count, now):
        """Lê e envia blocos seguidos."""
        offset, number, send, seal = self.offset + first * self.room, to_wire(first), self.server.send, self.seal
        size = min(count * self.room, self.source.size - offset)
        if os.preadv(self.source.fd, self.payloads[:count], offset) != size:
            raise Refusal(CHANGED)  # encolheu enquanto era lido
        for frame, sealed, mark in self.parts[:size // self.room]:
            BLOCK_AND_CLOCK.pack_into(frame, BLOCK_AT, number, now)
            mark[:] = seal(sealed)
            send(frame)
            number = (number + 1) & 0xFFFFFFFF
        if size % self.room:  # o último bloco do arquivo é mais curto
            rest = bytes(self.payloads[count - 1][:size % self.room])
            send(pack_frame(seal, self.mac, self.server.mac, DATA, self.number, number, now, rest))


class Server:
    """O laço: um socket, as sessões, e o terminal de quem opera o servidor."""

    def __init__(self, args, sock, mac, mtu):
        drop_root()  # antes de abrir o que for do usuário
        self.interface, self.verbose, self.most = args.interface, args.verbose, args.max_clientes
        self.sock, self.mac, self.mtu = sock, mac, mtu
        self.key = read_key(args.chave_arquivo)
        _, self.seal = make_seal(self.key)
        try:
            self.folder = os.open(args.pasta, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise Failure(f"a pasta {args.pasta!r} não serve ({error.strerror}). Crie-a: mkdir {args.pasta}") from None
        self.sessions, self.ignored, self.listed_until = {}, collections.Counter(), 0
        self.buffer, self.speaker = memoryview(bytearray(self.mtu + 14)), None
        self.typed, self.unsaid = bytearray(), {1: bytearray(), 2: bytearray()}  # o que stdout e stderr não aceitaram

    def send(self, frame):
        """Envia um quadro. Fila da placa cheia: espera um pouco, poucas vezes; depois, é como se o fio o perdesse."""
        if self.verbose:
            self.say(describe("->", frame), 2)
        for _ in range(FULL_TRIES):
            try:
                return self.sock.send(frame)
            except OSError as error:
                self.excuse(error)
                time.sleep(FULL_S if error.errno in (errno.EAGAIN, errno.ENOBUFS) else 0)  # só a fila se esvazia

    def excuse(self, error):
        """Fila vazia ou cheia, interface desligada, MTU encolhido: passam. O resto é o fim."""
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.EMSGSIZE):
            raise Failure(f"a interface {self.interface} sumiu ({error.strerror}). Veja as outras: ip -br link")

    def receive(self):
        """Atende o que já chegou, um lote no máximo: os envios não param."""
        for _ in range(BATCH_BLOCKS):
            try:
                data = self.buffer[:self.sock.recv_into(self.buffer)]
            except OSError as error:  # não há mais, ou a interface caiu (o kernel avisa uma vez só)
                return self.excuse(error)
            try:
                self.dispatch(data, clock())
            except ProtocolError as error:
                self.ignored[str(error)] += 1

    def dispatch(self, data, now):
        session = self.sessions.get(int.from_bytes(data[SESSION_AT:SESSION_AT + 4], "big"))
        if session is None and data[KIND_AT:KIND_AT + 1] == bytes([BYE]):  # o segundo FIM de quem já se foi
            return
        frame = unpack_frame(session.seal if session else self.seal, data)
        if self.verbose:
            self.say(describe("<-", data), 2)
        if frame.kind & FROM_SERVER or frame.target not in (self.mac, BROADCAST) or frame.source[0] & 1:  # grupo
            raise ProtocolError("não é para mim")
        if frame.kind == HELLO and frame.session == 0:
            return self.welcome(frame, now)
        if session is None or frame.source != session.mac:
            raise ProtocolError("sessão desconhecida")
        if not session.confirmed and sum(other.confirmed for other in self.sessions.values()) >= self.most:
            session.refusal = session.refusal or FULL
        self.attempt(session, session.handle, frame, now)

    def attempt(self, session, action, *args):
        """O que falha num cliente acaba só com ele."""
        try:
            return action(*args)
        except (Refusal, OSError) as error:  # OSError: disco com defeito, descritores demais
            session.refuse(error.args[0] if isinstance(error, Refusal) else GENERAL)

    def welcome(self, frame, now):
        """OLÁ: uma sessão nova, que só custa um lugar entre as que esperam."""
        nonce, mtu, _ = unpack_body(HELLO, frame.payload)
        if mtu < MTU_MIN:
            raise ProtocolError("MTU impossível")
        waiting = [session for session in self.sessions.values() if not session.confirmed]
        for oldest in waiting[:1 - HALF_OPEN_MAX]:
            self.drop(oldest)
        session = Session(self, frame.source, nonce, mtu, now)
        self.sessions[session.number] = session
        body = LAYOUT[WELCOME].pack(nonce, session.nonce) + socket.gethostname().encode()[:64]
        self.send(pack_frame(self.seal, frame.source, self.mac, WELCOME, session.number, 0, clock(), body))

    def catalog(self):
        """O catálogo. Lê-lo para o laço: só se relê depois de CATALOG_REST vezes o que a última leitura durou."""
        now = clock()
        if now >= self.listed_until:
            self.listing = b"".join(itertools.islice(list_folder(self.folder), CATALOG_MAX))
            self.listed_until = clock() + CATALOG_REST * (clock() - now)
        return self.listing

    def drop(self, session):
        if self.sessions.pop(session.number, None):
            session.close()

    def read_terminal(self):
        """O que o operador digita responde a quem falou por último; False no fim da entrada."""
        try:
            piece = os.read(0, 1 << 16)
        except OSError:  # EIO: em segundo plano o terminal não é nosso (e serve() ignora o SIGTTIN, que nos pararia)
            piece = b""
        self.typed += piece
        while b"\n" in self.typed or self.typed and not piece or len(self.typed) > MESSAGE_MAX:
            line, _, self.typed = self.typed.partition(b"\n")
            session = self.speaker
            if session is None or session.number not in self.sessions or len(session.outbox) > OUTBOX_MAX:
                self.say("ninguém na linha: a resposta vai a quem mandou a última mensagem", 2)
            else:
                session.outbox.extend(split_text(line.decode("utf-8", "replace"), session.room))
        return bool(piece)

    def say(self, text, fd=1):
        """Diz ao operador, sem esperar: um cano que ninguém lê, ou um terminal parado (Ctrl+S), não para o laço."""
        if len(self.unsaid[fd]) < UNSAID_MAX:
            self.unsaid[fd] += f"{text}\n".encode(sys.stdout.encoding, "replace")
        else:
            self.ignored["mensagem que ninguém leu"] += 1

    def flush(self, fd):
        """Escreve o que a saída aceitar já. Sem bloqueio só por um instante: o terminal é também de outros."""
        os.set_blocking(fd, False)
        try:
            del self.unsaid[fd][:os.write(fd, self.unsaid[fd])]
        except OSError as error:
            if error.errno == errno.EPIPE:  # `| head -1` já leu o que queria: é o fim
                raise
            if error.errno != errno.EAGAIN:  # cheia, espera-se; disco cheio, terminal que se foi: perde-se a mensagem
                self.unsaid[fd].clear()
        finally:
            os.set_blocking(fd, True)

    def serve(self):
        listen = [self.sock, 0]
        while True:
            self.receive()
            now = clock()
            sessions = list(self.sessions.values())
            wake = min((self.attempt(s, s.step, now) or now for s in sessions), default=now + TIMEOUT_MAX_US)
            busy = wake <= now or any([self.attempt(s, s.source.hash_step) for s in sessions if s.source])
            waiting = [fd for fd, text in self.unsaid.items() if text]
            ready, room, _ = select.select(listen, waiting, [], 0 if busy else (wake - now) / 1e6)
            for fd in room:
                self.flush(fd)
            if 0 in ready and not self.read_terminal():
                listen.remove(0)

    def close(self):
        for number in (signal.SIGINT, signal.SIGTERM):  # o segundo Ctrl+C não corta as contas do primeiro
            signal.signal(number, signal.SIG_IGN)
        for session in list(self.sessions.values()):
            self.drop(session)
        os.close(self.folder)
        if self.ignored:
            self.say("quadros ignorados: " + ", ".join(f"{why} {n}" for why, n in self.ignored.items()), 2)
        for fd in 2, 1:  # as contas primeiro: a 1 pode já não ter quem a leia (EPIPE)
            self.flush(fd)


def serve(args):
    open_standard()
    sock, mac, mtu = open_link(args.interface, 0, QUEUE_BYTES)
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # ver read_terminal
    with sock, contextlib.suppress(KeyboardInterrupt), contextlib.closing(Server(args, sock, mac, mtu)) as server:
        print(f"escutando em {args.interface} ({mac.hex(':')}, MTU {mtu}, uid {os.geteuid()})", flush=True)
        server.serve()


def build_parser():
    parser = Parser(description="Servidor de filmes sem IP: uma pasta, direto em quadros Ethernet (0x88B5).",
                    epilog="Precisa de sudo, ou CAP_NET_RAW. Em outro terminal: sudo ./raw_client.py")
    parser.add_argument("interface", nargs="?", default="lo", metavar="INTERFACE", help="por onde servir (padrão: lo)")
    parser.add_argument("--pasta", default="videos", metavar="PASTA", help="o que servir (padrão: videos)")
    parser.add_argument("--chave-arquivo", metavar="ARQUIVO", help="só atende quem tem o mesmo arquivo de chave")
    parser.add_argument("--max-clientes", type=number(int, 1, 1000, "um número"), default=16, metavar="N",
                        help="os que passam disso são recusados (padrão: 16)")
    parser.add_argument("--verbose", action="store_true", help="mostra em stderr cada quadro")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def main(argv=None):
    return run(build_parser, serve, argv)


if __name__ == "__main__":
    sys.exit(main())
