#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Servidor de filmes sem IP, sem TCP e sem UDP: o nosso protocolo, direto no quadro Ethernet.

    mkdir videos; mv filme.mp4 videos/
    sudo ./raw_server.py                        em um terminal (em lo; ou ./raw_server.py eth0)
    sudo ./raw_client.py lo baixar filme.mp4    em outro, ou em outra máquina do mesmo switch

Um quadro (frame). O selo cobre do tipo ao fim dos dados; o que vier depois dele é enchimento:

     0        6        12     14   15   16   18       22       26         34           34+n
    +--------+--------+------+----+----+----+--------+--------+----------+------------+---------+
    |destino |origem  |0x88B5|tipo|ver.| n  | sessão | bloco  | relógio  | n bytes de | selo    |
    | 6      | 6      | 2    | 1  | 1  | 2  | 4      | 4      | 8, em µs | dados      | 4 ou 16 |
    +--------+--------+------+----+----+----+--------+--------+----------+------------+---------+

O cliente diz OLÁ, ABRE um arquivo e CONFIRMA o que chega: o servidor diz EIS-ME, FICHA e DADOS.
Nas linhas abaixo, seal faz o selo, client e mine são os dois MACs, e session, o número da conversa.
O servidor ingênuo repete cada bloco, a cada prazo do socket, até a confirmação (stop and wait):

    for block, piece in enumerate(pieces):
        confirmed = False
        while not confirmed:
            sock.send(pack_frame(seal, client, mine, DATA, session, block, clock(), piece))
            with contextlib.suppress(socket.timeout):
                confirmed = unpack_frame(seal, sock.recv(2048)).block > block

O que lhe falta, e quem o cura (o principal primeiro), na parte de mesmo número. No fim do arquivo,
sob o título "Em volta": a linha de comando, main(), e o que as partes já usam antes, como Failure
(um erro que se diz numa linha), reason() e escape().

    1  um bit virado o derruba: é um erro, e a 7 o conta ... ProtocolError, unpack_frame
    2  o que se perde só se nota quando o prazo acaba ...... Flights
    3  um bloco por ida e volta: em 40 ms, 0,3 Mbit/s ...... Sender, Plan
    4  não sabe a que ritmo, nem quanto esperar ............ Path
    5  o filme inteiro na memória, e um só ................. Source, Listing
    6  o segundo cliente espera o fim do primeiro .......... Session
    7  um cliente que se cala o prende para sempre ......... Server
    8  em lo, ouve a si mesmo: um filtro no kernel o cala .. Link, open_link

O que ele não faz: não cifra (com --chave-arquivo todo quadro é autenticado, mas quem escuta o cabo
lê tudo) e não atravessa roteador, que só encaminha IP: as duas pontas ficam no mesmo enlace.
"""
import os
import sys

# Um Python incompleto (o python3-minimal do Debian) diz o que lhe falta, em vez de um traceback.
try:
    import argparse
    import array
    import binascii
    import collections
    import contextlib
    import errno
    import hashlib
    import hmac
    import io
    import itertools
    import math
    import re
    import select
    import selectors
    import shlex
    import signal
    import socket
    import stat
    import struct
    import threading
    import time
    import typing
except ImportError as error:
    sys.exit(f"{os.path.basename(sys.argv[0])}: erro: este Python veio sem o módulo {error.name}. "
             "Instale-o inteiro: sudo apt install python3 (ou o de https://www.python.org)")

# ---------------------------------------------------------------------------------------------
# 1. ProtocolError: o quadro
#
# O fio não promete nada: enche até 60 bytes o que é curto, vira bits, e o quadro de ontem ainda
# pode estar numa fila. Por isso cada um diz o seu tamanho, leva um selo (CRC-32 ou, com chave,
# BLAKE2b, RFC 7693) e o número da sessão. O que não confere levanta ProtocolError: o laço
# (parte 7) o conta, e segue. Este bloco é igual no cliente: os dois falam, os dois conferem.

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
#
#     nonce    um número sorteado, que serve uma vez só
#     eco      o relógio do quadro mais novo que veio do outro lado, devolvido a ele
#     espera   por quanto tempo (µs) se ficou com ele antes de o devolver
#     volta    a ida e volta de um quadro (µs): agora, menos o eco, menos a espera
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
        return 4, lambda data: binascii.crc32(data).to_bytes(4, "big")
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
        raise ProtocolError("selo errado")
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
    step = room - 1
    starts = range(0, max(len(data), 1), step)
    *first, last = [data[at:at + step] for at in starts]
    return [bytes([MORE]) + piece for piece in first] + [bytes([LAST]) + last]


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


# ---------------------------------------------------------------------------------------------
# 2. Flights: o que se perdeu
#
# Esperar o prazo por cada bloco perdido é ficar parado. Há notícia antes: cada CONFIRMA ecoa o
# relógio do quadro mais novo que chegou, e o que saiu claramente antes dele e não chegou,
# perdeu-se. É a perda achada pelo tempo, como no RACK (RFC 8985): troca de ordem não engana,
# e um buraco é achado em uma volta, quantos quadros venham depois dele.

# Blocos no ar por sessão, diga o cliente o que disser.
FLYING_MAX = 16384
# "Claramente antes": um oitavo da menor volta, e mais isto (µs).
REORDER_US = 100


class Flight(typing.NamedTuple):
    """O que se sabia quando um bloco partiu; comparam-se por `sent`, que vem primeiro."""
    # Quando partiu (µs).
    sent: int
    # Quantos blocos já tinham chegado até então, e o relógio do cliente na última confirmação.
    delivered: int
    peer_clock: int
    # Quando tinha partido o mais novo dos que já tinham chegado.
    anchor: int
    # Faltava o que enviar: o que se medir com ele não diz o que o caminho aguenta.
    limited: bool


class Flights:
    """Os blocos de um arquivo: os que chegaram, os que voam, os que se perderam."""

    def __init__(self):
        # O primeiro que falta ao cliente; e, no bit i, se o bloco base + i já chegou.
        self.base = 0
        self.beyond = 0
        # Bloco -> Flight, na ordem do envio: o primeiro é o que saiu há mais tempo.
        self.flying = {}
        # Os que se perderam e esperam a vez de ir de novo.
        self.lost = collections.deque()
        # Quantos já chegaram.
        self.delivered = 0

    def launch(self, first, count, flight):
        """Partem `count` blocos; o repetido vai para o fim da fila, que guarda a ordem do envio."""
        self.flying.pop(first, None)
        self.flying.update(dict.fromkeys(range(first, first + count), flight))

    def land(self, following, bits):
        """Chegou tudo antes de `following` e, além dele, o que diz o bitmap.

        Devolve o Flight mais novo entre os que pousaram agora, ou None.
        """
        arrived = list(range(self.base, following))
        # Destes, os que um bitmap já tinha dito, e já se contaram.
        already = self.beyond & ((1 << len(arrived)) - 1)
        self.delivered += len(arrived) - bin(already).count("1")
        self.base = following
        self.beyond >>= len(arrived)
        # bin() de trás para a frente: o caractere i é o bit i.
        news = bin(bits & ~self.beyond)[:1:-1]
        scattered = [following + at for at, bit in enumerate(news) if bit == "1"]
        self.delivered += len(scattered)
        self.beyond |= bits
        landed = [self.flying.pop(block, None) for block in arrived + scattered]
        return max(filter(None, landed), default=None)

    def find_lost(self, limit):
        """O que saiu antes de `limit` e ainda voa, perdeu-se. Devolve quantos."""
        found = []
        for block, flight in self.flying.items():
            if flight.sent >= limit:
                break
            found.append(block)
        for block in found:
            del self.flying[block]
        self.lost.extend(found)
        return len(found)

    def has(self, block):
        """Este bloco já chegou?"""
        return block < self.base or bool(self.beyond >> (block - self.base) & 1)

    def first_lost(self):
        """O perdido a enviar de novo, ou None; o que só se atrasou já não falta."""
        while self.lost and self.has(self.lost[0]):
            self.lost.popleft()
        if self.lost:
            return self.lost[0]
        return None


# ---------------------------------------------------------------------------------------------
# 3. Sender: quando enviar, e o quê
#
# Um bloco por volta deixa o fio vazio: com 20 ms de ida e 20 de volta, cabem nele 330 quadros.
# Aqui muitos voam de uma vez, espalhados no tempo. Uma conta só, plan(), diz o que se pode
# enviar agora e quando perguntar de novo: take() a cumpre, next_time() só a lê.

# Crédito de quem é acordado tarde: quanto o envio pode recuperar de uma vez (µs).
BURST_US = 2000
# Acordar a cada bloco custaria mais do que ele: dorme-se até haver crédito para isto (µs).
QUANTUM_US = BURST_US / 4
# Quantas vezes a espera pela resposta a uma sonda dobra.
DOUBLINGS_MAX = 10
# O que fazer agora.
IDLE, PROBE, REPEAT, FRESH = range(4)


class Plan(typing.NamedTuple):
    """O que enviar agora (um dos quatro acima), quantos blocos, e quando planejar de novo."""
    what: int
    count: int
    when: int


class Sender:
    """Um arquivo a caminho. Sem socket nem relógio: quem chama diz que horas são (µs)."""

    def __init__(self, total, queue, window, now, trip, peer_clock):
        self.total = total
        # Quadros que cabem na fila de chegada do cliente.
        self.queue = max(1, min(queue, FLYING_MAX))
        # Blocos que ele aceita além do que lhe falta.
        self.window = min(window, FLYING_MAX)
        # O primeiro bloco nunca enviado.
        self.fresh = 0
        self.flights = Flights()
        self.path = Path(trip)
        # Quando saiu o mais novo que chegou: pelo eco, e pelo bitmap.
        self.echo = 0
        self.anchor = now
        # O relógio do cliente, na última confirmação.
        self.peer_clock = peer_clock
        # Blocos que o ritmo já permite, contados até `paced`.
        self.credit = 1.0
        self.paced = now
        # Quando o último plano queria ser refeito.
        self.due = now
        # A última novidade, e quantas sondas partiram desde então.
        self.heard = now
        self.doublings = 0
        # Quadros enviados ao todo, e os repetidos.
        self.sent = 0
        self.again = 0

    def finished(self):
        return self.flights.base == self.total

    def plan(self, now):
        """O que se pode enviar agora, e quando olhar de novo se nada chegar antes."""
        flights = self.flights
        deadline = now + TIMEOUT_MAX_US
        if flights.base < self.fresh:
            deadline = self.heard + self.path.timeout(self.doublings)
            if now >= deadline:
                return Plan(PROBE, 1, now)
        room = int(min(self.path.window, self.queue)) - len(flights.flying)
        fresh = min(flights.base + self.window, self.total) - self.fresh
        lost = flights.first_lost()
        # No silêncio só as sondas falam: o caminho pode ter acabado.
        if self.doublings or room < 1 or (lost is None and fresh < 1):
            return Plan(IDLE, 0, deadline)
        credit = self.earned(now)
        if credit < 1:
            quantum = min(max(self.path.rate * QUANTUM_US, 1), room)
            due = now + int((quantum - credit) / self.path.rate) + 1
            return Plan(IDLE, 0, min(deadline, due))
        if lost is not None:
            return Plan(REPEAT, 1, now)
        return Plan(FRESH, min(int(credit), room), now)

    def earned(self, now):
        """O crédito em `now`: o ritmo vezes o tempo, sem passar do que um atraso pode juntar."""
        credit = self.credit + self.path.rate * (now - self.paced)
        return min(credit, max(self.path.rate * (BURST_US + self.path.slack()), 2))

    def next_time(self, now):
        """Quando chamar take() de novo, se nada chegar antes."""
        return self.plan(now).when

    def take(self, now, most):
        """Cumpre o plano, com no máximo `most` blocos: (primeiro, quantos), ou None."""
        plan = self.plan(now)
        self.credit = self.earned(now)
        # Outro take() na mesma volta do laço não é outra.
        if now > self.paced:
            self.path.on_turn(max(now - self.due, 0))
        self.paced = now
        self.due = plan.when
        if plan.what == IDLE:
            return None
        if plan.what == PROBE:
            # A resposta à sonda mostra de uma vez tudo o que se perdeu.
            self.heard = now
            self.doublings = min(self.doublings + 1, DOUBLINGS_MAX)
            return self.launch(self.flights.base, 1, now, again=True)
        if plan.what == REPEAT:
            return self.launch(self.flights.lost.popleft(), 1, now, again=True)
        quota = min(plan.count, most)
        count = min(quota, self.flights.base + self.window - self.fresh, self.total - self.fresh)
        first = self.fresh
        self.fresh += count
        return self.launch(first, count, now, again=False, limited=count < quota)

    def launch(self, first, count, now, again, limited=False):
        """Dá estes blocos por enviados."""
        if not self.flights.flying:
            self.heard = now
        delivered = self.flights.delivered
        flight = Flight(now, delivered, self.peer_clock, self.anchor, limited)
        self.flights.launch(first, count, flight)
        self.credit -= count
        self.sent += count
        if again:
            self.again += count
        return first, count

    def on_ack(self, now, peer_clock, following, echo, hold, window, bits):
        """Aplica uma confirmação; False (e nada muda) se ela é velha, repetida ou impossível."""
        flights = self.flights
        if peer_clock <= self.peer_clock or echo > now:
            return False
        if not flights.base <= following <= self.fresh:
            return False
        self.doublings = 0
        self.window = min(window, FLYING_MAX)
        if echo:
            self.path.on_trip(trip_of(now, echo, hold))
            self.echo = max(self.echo, echo)
        before = flights.delivered
        sent_only = (1 << (self.fresh - following)) - 1
        flight = flights.land(following, bits & sent_only)
        lost = flights.find_lost(self.echo - self.path.least // 8 - REORDER_US)
        if flight:
            self.heard = now
            # A entrega durou o que diz o relógio do cliente, e nunca menos do que o envio.
            span = max(peer_clock - flight.peer_clock, flight.sent - flight.anchor, 1)
            rate = (flights.delivered - flight.delivered) / span
            self.path.on_ack(flight, rate, flights.delivered, flights.delivered - before, lost)
            self.anchor = max(self.anchor, flight.sent)
        self.peer_clock = peer_clock
        return True


# ---------------------------------------------------------------------------------------------
# 4. Path: o ritmo
#
# Quem não mede o caminho escolhe mal: devagar, sobra fio; depressa, enche a fila de todos; e um
# prazo mais curto do que a volta repete o que já chegou. O ritmo se mede à moda do BBR (Cardwell e
# outros, "BBR: Congestion-Based Congestion Control", 2016); a parte de cada um, pela fila, como no
# TCP Vegas (Brakmo e Peterson, 1995), mas quem a vê cede de uma vez; o prazo é o da RFC 6298.

# A primeira volta: 96 KB, seis vezes o que o TCP arrisca, mas espalhados por ela.
START_BLOCKS = 64
# 2/ln 2 é o menor ganho que dobra a taxa a cada volta; e o inverso dele devolve a fila.
STARTUP_GAIN = 2.89
DRAIN_GAIN = 0.35
# Voltas sem crescer um quarto até se dar o cano por cheio.
STRIKES = 3
# De dez em dez voltas, uma sonda por mais banda, a seguinte devolve a fila, e as outras navegam.
CYCLE = 10
# Navega-se logo abaixo da maior taxa medida, que erra um pouco para cima: a fila que isso fizesse
# não se esvaziaria nunca.
CRUISE_GAIN = 0.99
# A sonda: quanto além da taxa, no mínimo e no máximo; enquanto a taxa cresce, dobra.
PROBE_MIN = 0.06
PROBE_MAX = 0.25
# Dados no ar: uma volta viajando e outra esperando confirmações atrasadas.
WINDOW_GAIN = 2
# Por quanto o cliente junta confirmações (µs).
ACK_EVERY_US = 1000
# O atraso de costume do laço, que se conta até isto. Onde a CPU é o limite, toda volta dele atrasa:
# sem crédito e sem janela para ela, o lote encolheria, e lote menor é mais CPU por bloco, em
# catraca. O atraso de uma vez só é um soluço, e quase não conta.
LATE_MAX_US = 20_000
# Perda que aceitamos chamar de ruído, e por quantas voltas se lembra a de cada uma.
NOISE_MAX = 0.5
LOSSES_KEPT = 8
# Com menos blocos, ou idas e voltas, não se julga uma volta: junta-se à seguinte.
JUDGED_BLOCKS = 20
JUDGED_TRIPS = 16
# A fila, numa volta: não há; está de pé; é longa.
EMPTY, STANDING, LONG = range(3)
# A volta vazia: a média de que só um oitavo das outras é mais curto.
BASE_PART = 8
# De pé: até a menor ida e volta passa da vazia por isto (µs), 1/32 dela e a variação de costume.
MARGIN_US = 1500
# A cada degrau de fila, o que fica no ar de quem a acaba de ver.
YIELD = 0.75
# Nossos blocos na fila de que há outros: no mínimo, e quantos mais a cada volta de fila longa.
QUOTA_MIN = 16
QUOTA_STEP = 0.5
# Silêncio até sondar: mais que o soluço de um sistema ocupado.
TIMEOUT_MIN_US = 10_000
TIMEOUT_MAX_US = 1_000_000
# Volta mais longa do que isto é mentira.
TRIP_MAX_US = 10_000_000
# Por quantas voltas se lembra a menor delas, e a maior taxa.
TRIPS_KEPT = 64
RATES_KEPT = 12
# A nossa parte se mede pela taxa destas.
RATES_RECENT = 3


def trip_of(now, echo, hold):
    """Ida e volta de um quadro: o eco do nosso relógio, menos o que o cliente diz que o segurou.

    Ele pode mentir: o resultado fica entre 1 µs e TRIP_MAX_US.
    """
    return min(max(now - echo - hold, 1), TRIP_MAX_US)


class Round:
    """O que se mediu numa volta: do envio de um bloco à confirmação do que partiu depois dele."""

    def __init__(self):
        # Idas e voltas: quantas, a soma e a menor.
        self.count = 0
        self.total = 0
        self.least = TRIP_MAX_US
        # Blocos que chegaram, e os que se perderam.
        self.arrived = 0
        self.lost = 0

    def add(self, trip):
        self.count += 1
        self.total += trip
        self.least = min(self.least, trip)

    def mean(self):
        return self.total / self.count

    def blocks(self):
        return self.arrived + self.lost

    def is_enough(self):
        return self.blocks() >= JUDGED_BLOCKS and self.count >= JUDGED_TRIPS

    def lost_more_than(self, usual):
        """Perdeu-se mais do que o acaso explica, se a fração de costume é `usual`?"""
        expected = usual * self.blocks()
        return self.lost > expected + 2 * math.sqrt(expected) + 2


class Path:
    """O que se sabe do caminho (a volta, a taxa, o ruído, a fila), e a lei do ritmo.

    1. Sozinho, envia-se à maior taxa de entrega medida; uma volta em dez sonda por mais.
    2. A fila está de pé quando, numa volta inteira, nem a menor ida e volta foi a de um caminho
       vazio: alguém mais a enche, e a sonda, que só faz fila por um instante, espera.
    3. Quem a vê de pé cede um quarto do que tem no ar (de longa, quase metade); e, enquanto ela
       dura, só tem no ar o que viaja, taxa x volta vazia, e uma cota de blocos na fila.
    4. Contra quem nunca cede (um TCP numa fila funda), a cota cresce devagar, como a janela dele.
    5. Fila vazia: cresce-se 1, 2, 4... blocos por volta. Quem tem menos cresce o mesmo, e cede
       menos, do que quem tem mais: é assim que duas cópias acabam iguais.
    6. Perda com a fila vazia é do fio, e compensa-se enviando a mais; a que passa do costume com
       a fila de pé é dela, e cede-se outra vez.

    Sem socket nem relógio: tempos em µs, taxas em blocos por µs.
    """

    def __init__(self, trip):
        # Média e variação da ida e volta, e a menor de cada uma das últimas voltas.
        self.smooth = trip
        self.var = trip / 2
        self.trips = collections.deque([trip], maxlen=TRIPS_KEPT)
        # A ida e volta média de cada uma: a do caminho vazio é das menores. A menor de todas não
        # serve, que um atraso que varia a faz bem mais curta do que o costume.
        self.means = collections.deque([trip], maxlen=TRIPS_KEPT)
        # Quanto depois da hora o laço costuma chegar.
        self.late = 0
        # A maior taxa de entrega de cada uma das últimas voltas, e a desta.
        first = START_BLOCKS / STARTUP_GAIN / max(trip, ACK_EVERY_US)
        self.rates = collections.deque([first], maxlen=RATES_KEPT)
        self.best = 0
        # A perda das últimas voltas, e as contas desta.
        self.losses = collections.deque([0], maxlen=LOSSES_KEPT)
        self.round = Round()
        # A nossa parte: quantos blocos no ar; quantos na fila; por quanto cresce na próxima volta.
        self.share = math.inf
        self.quota = QUOTA_MIN
        self.step = QUOTA_MIN
        # A fila, na última volta que se julgou.
        self.queue = EMPTY
        # Esta volta acaba quando chegar o que saiu com tantos blocos entregues.
        self.mark = 0
        # O ganho desta volta, e que volta do ciclo ela é: na partida, None.
        self.gain = STARTUP_GAIN
        self.turn = None
        self.full = 0
        self.strikes = 0
        # O que a sonda tem além da taxa, e a taxa que se conhecia antes dela.
        self.extra = PROBE_MIN
        self.before = math.inf
        self.plan()

    def plan(self):
        """Ritmo de envio e blocos no ar, do que se mediu nas últimas voltas."""
        self.least = max(min(self.trips), 1)
        self.bandwidth = max(self.best, *self.rates)
        self.noise = min(NOISE_MAX, *self.losses)
        capacity = self.bandwidth / (1 - self.noise)
        self.rate = self.gain * capacity
        if self.queue != EMPTY:
            # Não se sonda numa fila alheia: quem partiu devagar ficaria preso à taxa que tinha.
            self.rate = max(self.rate, self.quota / self.smooth)
        span = self.least + ACK_EVERY_US + self.slack()
        self.most = max(self.gain, WINDOW_GAIN) * capacity * span + START_BLOCKS / 4
        self.window = min(self.most, self.share)

    def on_turn(self, late):
        """Uma volta do laço, `late` depois da hora que ele marcou."""
        self.late += (min(late, LATE_MAX_US) - self.late) / 8

    def slack(self):
        """O que um laço atrasado precisa a mais: o dobro do que costuma atrasar."""
        return 2 * self.late

    def on_trip(self, sample):
        """Uma ida e volta: média e variação (RFC 6298), e a menor desta volta."""
        self.var += (abs(sample - self.smooth) - self.var) / 4
        self.smooth += (sample - self.smooth) / 8
        self.trips[-1] = min(self.trips[-1], sample)
        self.round.add(sample)

    def timeout(self, doublings):
        """O silêncio que pede uma sonda; dobra a cada uma sem resposta."""
        patience = max(self.smooth + 4 * self.var + ACK_EVERY_US, TIMEOUT_MIN_US)
        return min(patience * 2 ** doublings, TIMEOUT_MAX_US)

    def on_ack(self, flight, rate, delivered, arrived, lost):
        """Chegou o envio `flight`, e desde ele entregou-se a `rate`.

        Os outros contam blocos: os entregues ao todo, os que chegaram e os que se perderam agora.
        """
        self.round.arrived += arrived
        self.round.lost += lost
        # Com a janela do cliente fechada, a taxa é a dele, e não a do caminho.
        if not flight.limited or rate > self.bandwidth:
            self.best = max(self.best, rate)
        # Foi enviado depois da última volta: acabou mais uma.
        if flight.delivered >= self.mark:
            self.mark = delivered
            self.end_round(flight.limited)
        self.plan()

    def end_round(self, limited):
        """Guarda o que esta volta mediu, julga a fila e escolhe o ganho da seguinte."""
        if self.best:
            self.rates.append(self.best)
            self.best = 0
        self.trips.append(self.smooth)
        queue = EMPTY
        if self.round.is_enough():
            queue = self.judge(self.round)
            self.losses.append(self.round.lost / self.round.blocks())
            self.round = Round()
        if self.turn is not None:
            self.gain = self.next_gain(queue)
        elif not limited:
            self.look_for_the_top(queue)

    def look_for_the_top(self, queue):
        """Na partida: três voltas sem crescer um quarto, ou uma de fila longa: o cano encheu."""
        self.strikes += 1
        if self.rates[-1] > 1.25 * self.full:
            self.strikes = 0
        self.full = max(self.full, self.rates[-1])
        if self.strikes == STRIKES or (self.strikes and queue == LONG):
            self.gain = DRAIN_GAIN
            self.turn = 1

    def next_gain(self, queue):
        """O ganho da próxima volta. Com a fila de pé não se sonda: navega-se."""
        if self.turn < 2 or queue == EMPTY:
            self.turn = (self.turn + 1) % CYCLE
        if self.turn == 2:
            grew = self.rates[-1] > (1 + self.extra / 2) * self.before
            if grew and queue == EMPTY:
                self.extra *= 2
                self.turn = 0
            else:
                # De uma cota, ao menos: quem tem pouco cresce tanto quanto quem tem muito.
                self.extra = max(PROBE_MIN, self.quota / (self.bandwidth * self.least))
            self.extra = min(self.extra, PROBE_MAX)
        if self.turn == 0:
            self.before = self.bandwidth
            return 1 + self.extra
        if self.turn == 1:
            return 1 - self.extra
        # Quem acaba de ceder é contido pela janela: o ritmo deixa crescer quem tem pouco.
        if self.step < QUOTA_MIN:
            return 1 + self.extra - PROBE_MIN
        return CRUISE_GAIN

    def judge(self, seen):
        """A fila na volta `seen`; passada a partida, a nossa parte cresce ou cede com ela."""
        base = sorted(self.means)[len(self.means) // BASE_PART]
        margin = MARGIN_US + base / 32 + self.var
        self.means.append(seen.mean())
        queue = EMPTY
        if seen.least > base + 2 * margin:
            queue = LONG
        elif seen.least > base + margin:
            queue = STANDING
        if self.turn is None:
            return queue
        # A volta em que não se enviou o que se podia (faltou CPU, ou disco) não diz o que ceder.
        whole = seen.blocks() >= 0.9 * min(self.window, self.rate * seen.mean())
        if queue == EMPTY:
            self.grow()
        elif self.turn > 1 and whole:
            self.give_way(seen, base, queue)
        if queue != EMPTY:
            self.yield_to_loss(seen)
        self.queue = queue
        return queue

    def grow(self):
        """Sem fila: a nossa parte cresce, até ao que o caminho leva."""
        self.share = min(self.share + self.step, self.most)
        self.step = min(2 * self.step, max(QUOTA_MIN, self.share / 16))
        self.quota = max(self.quota * YIELD, QUOTA_MIN)

    def give_way(self, seen, base, queue):
        """Com fila: o que viaja, e a nossa cota dela; quem a acaba de ver cede mais."""
        if queue == LONG:
            self.quota += QUOTA_STEP
        else:
            self.quota = max(self.quota * YIELD, QUOTA_MIN)
        fair = self.recent_rate() * (base + seen.mean() - seen.least) + self.quota
        # Só na fila longa a cota cresce, e a nossa parte com ela.
        if queue == LONG or fair < self.share:
            self.share = fair
        if self.queue == EMPTY:
            self.share = min(self.share, YIELD ** queue * self.flew(seen))

    def yield_to_loss(self, seen):
        """Com fila, a perda fora do costume é dela: três quartos do que cabia nesta volta."""
        self.step = 1
        usual = sorted(self.losses)[len(self.losses) * 3 // 4]
        if seen.lost_more_than(usual):
            self.share = min(self.share, YIELD * self.flew(seen))
            self.quota = max(self.quota * YIELD, QUOTA_MIN)

    def flew(self, seen):
        """Os blocos no ar naquela volta."""
        return self.recent_rate() * seen.mean()

    def recent_rate(self):
        return max(list(self.rates)[-RATES_RECENT:]) / (1 - self.noise)


# ---------------------------------------------------------------------------------------------
# 5. Source: o arquivo
#
# Nenhum filme inteiro na memória: cada lote é lido do disco direto para dentro dos quadros, e o
# hash se calcula nas folgas do laço. E nem todo nome serve: abre-se pasta por pasta, sem "..",
# sem link simbólico (O_NOFOLLOW) e sem esperar por um FIFO (O_NONBLOCK): openat(2), open(2).

# A última data que cabe em 64 bits com sinal, em ns: 11 de abril de 2262.
DATE_MAX = 2**63 - 1
# Bytes de hash por folga do laço: dezenas de µs.
HASH_STEP = 1 << 16
# "Tamanho" da medição: ninguém baixa tudo.
ZEROS_SIZE = 1 << 44
# O hash que ainda não se sabe.
NO_DIGEST = bytes(32)
# Arquivos no catálogo, e pastas dentro de pastas.
CATALOG_MAX = 4096
DEPTH_MAX = 32


class Refusal(Exception):
    """Um pedido que não se atende: vira um quadro ERRO com este código."""


# O erro do sistema, e o código que o cliente ouve; os outros são GENERAL.
REASONS = {
    errno.ENOENT: NOT_FOUND,
    errno.ENAMETOOLONG: NOT_FOUND,
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.ELOOP: DENIED,
    errno.ENOTDIR: DENIED,
    errno.ENXIO: DENIED,
}


class Source:
    """Um arquivo aberto para servir."""

    def __init__(self, fd, size=None):
        status = os.fstat(fd)
        self.fd = fd
        self.stamp = self.stamp_of(status)
        self.size = size or status.st_size
        self.date = date_of(status)
        self.hash = hashlib.sha256()
        self.hashed = 0
        self.digest = NO_DIGEST

    @staticmethod
    def stamp_of(status):
        return status.st_size, status.st_mtime_ns

    def changed(self):
        """Mudou desde que foi aberto?"""
        return self.stamp_of(os.fstat(self.fd)) != self.stamp

    def read_into(self, views, offset):
        """Enche as fatias a partir do byte `offset`; devolve quantos bytes leu."""
        return os.preadv(self.fd, views, offset)

    def hash_step(self):
        """Um passo do hash; False se não há mais o que fazer."""
        if self.digest != NO_DIGEST or self.size == ZEROS_SIZE:
            return False
        piece = os.pread(self.fd, HASH_STEP, self.hashed)
        self.hash.update(piece)
        self.hashed += len(piece)
        if not piece or self.hashed >= self.size:
            self.digest = self.hash.digest()
        return True

    def close(self):
        os.close(self.fd)


class Listing:
    """O catálogo, que se serve como um arquivo; mas está na memória."""

    def __init__(self, data):
        self.data = data
        self.size = len(data)
        self.date = 0
        self.digest = hashlib.sha256(data).digest()

    def changed(self):
        return False

    def read_into(self, views, offset):
        start = offset
        for view in views:
            piece = self.data[offset:offset + len(view)]
            view[:len(piece)] = piece
            offset += len(piece)
        return offset - start

    def hash_step(self):
        return False

    def close(self):
        """Nada a fechar."""


def open_below(folder, parts):
    """Abre o caminho `parts` abaixo da pasta, um nome de cada vez. Levanta OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts:
        parent = fd
        try:
            fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        finally:
            os.close(parent)
    return fd


def open_source(folder, name):
    """Abre `name` abaixo da pasta, se for um arquivo comum. Levanta Refusal."""
    parts = name.split(b"/")
    if b"\0" in name or any(part in (b"", b".", b"..") for part in parts):
        raise Refusal(DENIED)
    # O que o catálogo não mostra não existe.
    if any(part.startswith(b".") for part in parts):
        raise Refusal(NOT_FOUND)
    try:
        fd = open_below(folder, parts)
    except OSError as error:
        raise Refusal(REASONS.get(error.errno, GENERAL)) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refusal(DENIED)
    return Source(fd)


def explain_folder(folder, error) -> str:
    """Por que a pasta não serve, e o que fazer."""
    text = f"a pasta {folder!r} não serve: {reason(error)}"
    if error.errno == errno.ENOENT:
        return f"{text}. Crie-a: mkdir {shlex.quote(folder)}"
    if error.errno == errno.EACCES:
        # Também num shell de `sudo su`, que guarda o SUDO_UID.
        text += f" para o usuário {os.geteuid()}, com que fiquei (o de quem digitou sudo)"
    return f"{text}. Outra: --pasta PASTA"


def list_folder(folder):
    """Gera o catálogo, "tamanho data nome": o que open_source aceitaria, sem os ocultos."""
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path, folders, names, fd in os.fwalk(".", dir_fd=top):
            folders[:] = sorted(visible(folders))
            if path.count("/") >= DEPTH_MAX:
                folders.clear()
            for name in sorted(visible(names)):
                # Apagado enquanto listávamos, ou fechado para nós: não entra.
                with contextlib.suppress(OSError):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield catalog_entry(status, f"{path}/{name}"[2:])
    finally:
        os.close(top)


def visible(names):
    return [name for name in names if not name.startswith(".")]


def catalog_entry(status, name):
    return b"%d %d %s\0" % (status.st_size, date_of(status), os.fsencode(name))


def date_of(status) -> int:
    """A data em ns; a que não cabe em 64 bits (antes de 1677, depois de 2262) é a mais próxima."""
    return max(-DATE_MAX - 1, min(status.st_mtime_ns, DATE_MAX))


# ---------------------------------------------------------------------------------------------
# 6. Session: um cliente
#
# Atender um de cada vez faz o segundo esperar o filme do primeiro. Cada cliente tem aqui o seu
# estado, nenhum tem uma thread: o laço dá um passo de cada um. O número da sessão sai dos
# nonces dos dois lados: o quadro de uma cópia de ontem, ou repetido por um bisbilhoteiro, não é
# de ninguém. O que um cliente pode fazer crescer tem um teto.

# Quadros montados lado a lado, um preadv lê todos; em lo, 15 quadros de 64 KiB.
BATCH_BLOCKS = 64
BATCH_BYTES = 1 << 20
# Por quanto se espera quem só disse OLÁ.
HALF_OPEN_US = 5_000_000
# Sem uma palavra, o cliente caiu.
SILENCE_US = 15_000_000
# Ou conversa, mas a cópia não anda (em pausa).
STALLED_US = 600_000_000
# Bytes de uma mensagem que chega; partes de uma resposta que ninguém vem buscar.
MESSAGE_MAX = 1 << 16
OUTBOX_MAX = 4096
# O que muda no cabeçalho de um DADOS para o seguinte.
BLOCK_AND_CLOCK = struct.Struct("!IQ")
# Em que pé está uma sessão: só disse OLÁ; é atendida; foi recusada, e só espera o FIM.
GREETED, SERVED, REFUSED = range(3)


class Batch:
    """Quadros lado a lado num bytearray só, com o cabeçalho já escrito e as fatias já cortadas."""

    def __init__(self, head, room, seal_size):
        size = len(head) + room + seal_size
        self.length = max(1, min(BATCH_BLOCKS, BATCH_BYTES // size))
        view = memoryview(bytearray(head.ljust(size, b"\0") * self.length))
        # As fatias de dados, onde o disco escreve; e, de cada quadro: ele, o que se sela, o selo.
        self.payloads = []
        self.parts = []
        for at in range(0, len(view), size):
            frame = view[at:at + size]
            end = size - seal_size
            self.payloads.append(frame[len(head):end])
            self.parts.append((frame, frame[KIND_AT:end], frame[end:]))


class Session:
    """Um cliente: uma cópia, ou uma conversa."""

    def __init__(self, server, mac, client_nonce, mtu, now):
        self.server = server
        self.mac = mac
        self.number = 0
        # 0 é de quem ainda não tem sessão.
        while self.number == 0 or self.number in server.sessions:
            self.nonce = os.urandom(16)
            self.number, key = session_of(server.key, client_nonce, self.nonce)
        self.seal_size, self.seal = make_seal(key)
        # Bytes de dados num quadro: o que os dois MTUs deixam.
        overhead = HEADER.size - KIND_AT + self.seal_size
        self.room = min(min(mtu, server.link.mtu) - overhead, 0xFFFF)
        self.state = GREETED
        self.refusal = None
        # Quando se ouviu dele, e quando a cópia ou a conversa andou.
        self.heard = now
        self.advanced = now
        # A cópia: o pedido que a abriu, o arquivo, desde que byte, o que voa e os quadros dele.
        self.asked = None
        self.source = None
        self.offset = 0
        self.sender = None
        self.batch = None
        # Texto que chega: o número da próxima parte, e as que já vieram.
        self.expected = 0
        self.inbox = bytearray()
        # Texto que vai: o número da primeira parte na fila, e a fila.
        self.spoken = 0
        self.outbox = collections.deque()

    def pack(self, kind, block=0, payload=b"", at=None):
        """Um quadro para este cliente, com a hora dele."""
        if at is None:
            at = clock()
        source = self.server.link.mac
        return pack_frame(self.seal, self.mac, source, kind, self.number, block, at, payload)

    def reply(self, kind, block=0, payload=b""):
        self.server.link.send(self.pack(kind, block, payload))

    def handle(self, frame, now):
        """Um quadro autêntico deste cliente."""
        self.heard = now
        if frame.kind == BYE:
            self.server.drop(self)
        elif self.state == REFUSED:
            self.refuse(self.refusal)
        elif frame.kind in self.HANDLERS:
            self.state = SERVED
            self.HANDLERS[frame.kind](self, frame, now)

    def refuse(self, code):
        """Recusada, a sessão só espera o FIM, pelo prazo de uma que só disse OLÁ."""
        self.state = REFUSED
        self.refusal = code
        self.close()
        self.reply(ERROR, 0, LAYOUT[ERROR].pack(code))

    def close(self):
        """Larga o arquivo; senão o hash dele continuaria a atrasar os outros."""
        if self.source:
            self.source.close()
        self.source = None
        self.sender = None
        self.batch = None

    # A cópia.

    def on_open(self, frame, now):
        """ABRE: o pedido repetido ganha outra FICHA; um segundo pedido, nada."""
        if self.asked is None:
            self.begin(frame, now)
        if self.asked == frame.payload:
            self.send_card()

    def begin(self, frame, now):
        """Abre o arquivo e prepara os quadros. Levanta Refusal."""
        fields = unpack_body(OPEN, frame.payload)
        offset, size, date, free, queue, window, echo, hold, name = fields
        self.asked = frame.payload
        self.source = self.server.open_source(name)
        # Outro tamanho ou outra data: o parcial dele é de outro arquivo, ou de outra versão.
        if (size, date) == (self.source.size, self.source.date) and offset <= size:
            self.offset = offset
        rest = self.source.size - self.offset
        if rest > free:
            raise Refusal(TOO_BIG)
        # Divisão para cima: o último bloco pode não vir cheio.
        blocks = -(-rest // self.room)
        trip = trip_of(now, echo, hold)
        self.sender = Sender(blocks, queue, window, now, trip, frame.clock)
        head = HEADER.pack(self.mac, self.server.link.mac, ETHERTYPE, DATA, WIRE_VERSION,
                           self.room, self.number, 0, 0)
        self.batch = Batch(head, self.room, self.seal_size)

    def send_card(self):
        """FICHA: o descritor do arquivo, e as contas da cópia."""
        source = self.source
        sender = self.sender
        if source.changed():
            raise Refusal(CHANGED)
        card = LAYOUT[CARD].pack(self.offset, source.size, source.date, self.room, source.digest,
                                 sender.sent, sender.again,
                                 int(sender.path.smooth), int(sender.path.least))
        self.reply(CARD, 0, card)

    def on_ack(self, frame, now):
        """CONFIRMA: o que chegou, o que falta, e quanto o cliente ainda aceita."""
        sender = self.sender
        if sender is None:
            raise ProtocolError("confirmação velha")
        echo, hold, window, bits = unpack_body(ACK, frame.payload)
        base = sender.flights.base
        following = from_wire(frame.block, base)
        bitmap = int.from_bytes(bits, "little")
        if not sender.on_ack(now, frame.clock, following, echo, hold, window, bitmap):
            raise ProtocolError("confirmação velha")
        if sender.flights.base > base:
            self.advanced = now
        # Acabou; ou o destino parou, e quer saber se vivemos.
        if sender.finished() or sender.window == 0:
            self.send_card()

    def step(self, now):
        """Envia o que for hora de enviar; devolve quando chamar de novo."""
        patience = HALF_OPEN_US
        if self.state == SERVED:
            patience = SILENCE_US
        deadline = min(self.heard + patience, self.advanced + STALLED_US)
        if now > deadline:
            self.server.drop(self)
        elif self.sender and not self.sender.finished():
            return min(deadline, self.pump(now))
        return deadline

    def pump(self, now):
        """Envia um lote, no máximo: os outros clientes também esperam."""
        sender = self.sender
        budget = self.batch.length
        while budget > 0:
            taken = sender.take(now, budget)
            if taken is None:
                return sender.due
            first, count = taken
            self.send_blocks(first, count, now)
            # O hash vai logo atrás do último bloco: uma volta a menos no fim.
            if first + count == sender.total and self.source.digest != NO_DIGEST:
                self.send_card()
            budget -= count
        return now

    def send_blocks(self, first, count, now):
        """Lê e envia blocos seguidos."""
        offset = self.offset + first * self.room
        size = min(count * self.room, self.source.size - offset)
        if self.source.read_into(self.batch.payloads[:count], offset) != size:
            # Encolheu enquanto era lido.
            raise Refusal(CHANGED)
        number = to_wire(first)
        # Buscados uma vez, e não por quadro: são dezenas de milhares por segundo.
        seal = self.seal
        send = self.server.link.send
        pack_into = BLOCK_AND_CLOCK.pack_into
        whole, rest = divmod(size, self.room)
        for frame, sealed, mark in self.batch.parts[:whole]:
            pack_into(frame, BLOCK_AT, number, now)
            mark[:] = seal(sealed)
            send(frame)
            number = (number + 1) & 0xFFFFFFFF
        # O último bloco do arquivo é mais curto.
        if rest:
            last = bytes(self.batch.payloads[whole][:rest])
            send(self.pack(DATA, number, last, now))

    # A conversa.

    def on_text(self, frame, now):
        """TEXTO: uma parte de mensagem; a repetida ganha outro recibo, e mais nada."""
        if frame.block == self.expected:
            self.expected += 1
            self.advanced = now
            self.hear(*unpack_body(TEXT, frame.payload))
        if frame.block < self.expected:
            self.reply(RECEIPT, frame.block)

    def hear(self, more, piece):
        self.inbox += piece
        if len(self.inbox) > MESSAGE_MAX:
            raise Refusal(GENERAL)
        if more == LAST:
            text = self.inbox.decode("utf-8", "replace")
            self.inbox.clear()
            self.server.speaker = self
            self.server.voice.say(f"{self.mac.hex(':')} diz: {escape(text)}")

    def on_fetch(self, frame, now):
        """ESCUTA: o cliente quer a parte `block` do que temos a lhe dizer."""
        self.advanced = now
        # Pedir uma parte é confirmar as de antes.
        while self.outbox and self.spoken < frame.block:
            self.outbox.popleft()
            self.spoken += 1
        piece = bytes([NOTHING])
        if self.outbox and self.spoken == frame.block:
            piece = self.outbox[0]
        self.reply(SPEECH, frame.block, piece)

    HANDLERS = {OPEN: on_open, ACK: on_ack, TEXT: on_text, FETCH: on_fetch}


# ---------------------------------------------------------------------------------------------
# 7. Server: o laço
#
# O ingênuo espera um recv(): quem se cala o prende. Aqui nada espera por ninguém: o laço recebe o
# que houver, dá um passo de cada sessão e só dorme (poll(2)) até a próxima hora marcada. O que
# falha num cliente acaba com a sessão dele, e com mais nada.

# Sessões que só disseram OLÁ: as mais velhas dão lugar.
HALF_OPEN_MAX = 64
# O catálogo só se lê de novo depois de tantas vezes o que a última leitura durou.
CATALOG_REST = 20


class Server:
    """As sessões, e o terminal de quem opera o servidor."""

    def __init__(self, args, link):
        self.link = link
        self.folder = args.pasta
        self.most = args.max_clientes
        self.key = read_key(args.chave_arquivo)
        _, self.seal = make_seal(self.key)
        self.check_folder()
        # Número -> Session.
        self.sessions = {}
        # Motivo -> quantos quadros.
        self.ignored = collections.Counter()
        # O catálogo, e até quando ele vale.
        self.listing = b""
        self.listed_until = 0
        # A quem vai o que o operador digita, e o que ele já digitou da linha.
        self.speaker = None
        self.typed = bytearray()
        # Quem fala ao operador sem esperar por ele; se ninguém mais lê (`| head -1`), é o fim.
        self.voice = Voice(self.end)
        self.ending = False

    def check_folder(self):
        try:
            os.close(os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            raise Failure(explain_folder(self.folder, error)) from None

    def end(self):
        """Acaba na próxima volta do laço: em um segundo, no máximo."""
        self.ending = True

    def serve(self):
        # Feito uma vez: montar outro a cada volta custaria mais do que ela.
        poller = select.poll()
        poller.register(self.link.sock, select.POLLIN)
        poller.register(0, select.POLLIN)
        while not self.ending:
            self.receive()
            self.link.check()
            ready = dict(poller.poll(self.step() * 1000))
            # Também com erro, ou fechado: quem o diz é o read().
            if 0 in ready and not self.read_terminal():
                poller.unregister(0)

    def receive(self):
        """Atende o que já chegou, um lote no máximo: os envios não param."""
        for _ in range(BATCH_BLOCKS):
            data = self.link.receive()
            if data is None:
                return
            try:
                self.dispatch(data, clock())
            except ProtocolError as error:
                self.ignored[str(error)] += 1
            except (Failure, OSError):
                # A interface, ou a saída: isto é do servidor, e não de um cliente.
                raise
            except Exception as error:
                self.blame(error)

    def blame(self, error):
        """Um defeito nosso no quadro de um cliente: conta-se e diz-se; os outros seguem."""
        self.ignored["defeito nosso, que convém relatar"] += 1
        self.voice.note(f"defeito ao atender um cliente, que foi desligado: {error!r}")

    def step(self):
        """Um passo de cada sessão; devolve por quantos segundos se pode dormir."""
        now = clock()
        wake = now + TIMEOUT_MAX_US
        sessions = list(self.sessions.values())
        for session in sessions:
            # Um passo que falhou não marca hora: olha-se de novo já.
            wake = min(wake, self.attempt(session, session.step, now) or now)
        if wake <= now:
            return 0
        # Há folga: um passo de cada hash por calcular.
        hashing = [self.attempt(session, session.source.hash_step)
                   for session in sessions if session.source]
        if any(hashing):
            return 0
        return (wake - now) / 1e6

    def dispatch(self, data, now):
        """Um quadro que chegou, para a sessão dele. Levanta ProtocolError."""
        number = int.from_bytes(data[SESSION_AT:SESSION_AT + 4], "big")
        session = self.sessions.get(number)
        seal = self.seal
        if session:
            seal = session.seal
        # O segundo FIM de quem já se foi não é um quadro torto.
        elif data[KIND_AT:KIND_AT + 1] == bytes([BYE]):
            return
        frame = unpack_frame(seal, data)
        self.link.trace("<-", data)
        if frame.kind & FROM_SERVER or frame.target not in (self.link.mac, BROADCAST):
            raise ProtocolError("não é para mim")
        # Quem fala em nome de um grupo faria a resposta ir a todos.
        if frame.source[0] & 1:
            raise ProtocolError("não é para mim")
        if frame.kind == HELLO and frame.session == 0:
            self.welcome(frame, now)
            return
        if session is None or frame.source != session.mac:
            raise ProtocolError("sessão desconhecida")
        # Fica marcada como recusada; quem o diz ao cliente é handle().
        if session.state == GREETED and self.crowded():
            session.state = REFUSED
            session.refusal = FULL
        self.attempt(session, session.handle, frame, now)

    def crowded(self):
        served = [session for session in self.sessions.values() if session.state == SERVED]
        return len(served) >= self.most

    def attempt(self, session, action, *args):
        """O que falha num cliente acaba só com ele."""
        try:
            return action(*args)
        except Refusal as refusal:
            session.refuse(refusal.args[0])
        except OSError:
            # Disco com defeito, descritores demais.
            session.refuse(GENERAL)
        except (Failure, ProtocolError):
            raise
        except Exception as error:
            self.blame(error)
            self.drop(session)

    def welcome(self, frame, now):
        """OLÁ: uma sessão nova, que só custa um lugar entre as que esperam."""
        nonce, mtu, _ = unpack_body(HELLO, frame.payload)
        if mtu < MTU_MIN:
            raise ProtocolError("MTU impossível")
        waiting = [session for session in self.sessions.values() if session.state != SERVED]
        excess = len(waiting) - HALF_OPEN_MAX + 1
        for oldest in waiting[:max(excess, 0)]:
            self.drop(oldest)
        self.link.reread()
        session = Session(self, frame.source, nonce, mtu, now)
        self.sessions[session.number] = session
        # Um nome de máquina pode não ser UTF-8.
        name = os.fsencode(socket.gethostname())[:64]
        body = LAYOUT[WELCOME].pack(nonce, session.nonce) + name
        self.link.send(pack_frame(self.seal, frame.source, self.link.mac, WELCOME,
                                  session.number, 0, clock(), body))

    def drop(self, session):
        if self.sessions.pop(session.number, None):
            session.close()

    def open_source(self, name):
        """O que o cliente pediu: um arquivo, o catálogo, ou os zeros da medição."""
        if name == ZEROS_NAME:
            return Source(os.open("/dev/zero", os.O_RDONLY), ZEROS_SIZE)
        if name == CATALOG_NAME:
            return Listing(self.catalog())
        return open_source(self.folder, name)

    def catalog(self):
        """O catálogo. Lê-lo para o laço: só se relê depois de CATALOG_REST vezes o que durou."""
        now = clock()
        if now >= self.listed_until:
            self.listing = b"".join(itertools.islice(list_folder(self.folder), CATALOG_MAX))
            self.listed_until = clock() + CATALOG_REST * (clock() - now)
        return self.listing

    def read_terminal(self):
        """O que o operador digita responde a quem falou por último; False no fim da entrada."""
        try:
            piece = os.read(0, 1 << 16)
        except BlockingIOError:
            # Um cano O_NONBLOCK que outro leu antes.
            return True
        except OSError:
            # EIO: em segundo plano o terminal não é nosso (e serve() ignora o SIGTTIN). ECONNRESET:
            # era um socket, e caiu. Segue-se sem o operador.
            piece = b""
        self.typed += piece
        while b"\n" in self.typed or len(self.typed) > MESSAGE_MAX:
            self.answer()
        # A última linha pode não ter fim.
        if self.typed and not piece:
            self.answer()
        return bool(piece)

    def answer(self):
        line, _, self.typed = self.typed.partition(b"\n")
        session = self.speaker
        gone = session is None or session.number not in self.sessions
        if gone or len(session.outbox) > OUTBOX_MAX:
            self.voice.note("ninguém na linha: a resposta vai a quem mandou a última mensagem")
            return
        session.outbox.extend(split_text(line.decode("utf-8", "replace"), session.room))

    def close(self):
        # O segundo Ctrl+C não corta as contas do primeiro.
        answer_signals(let_pass)
        for session in list(self.sessions.values()):
            self.drop(session)
        if self.ignored:
            counts = ", ".join(f"{count} ({why})" for why, count in self.ignored.items())
            self.voice.note(f"quadros ignorados: {counts}")
        if self.voice.screen.lost:
            self.voice.note(f"linhas que ninguém leu: {self.voice.screen.lost}")
        self.voice.close()


# ---------------------------------------------------------------------------------------------
# 8. Link: o enlace
#
# Um socket AF_PACKET (packet(7)) entrega quadros inteiros, com o cabeçalho. Em lo ele ouve também
# o que ele mesmo disse: um filtro no kernel (bpf(4)) só deixa passar o outro sentido. Abrir um
# exige CAP_NET_RAW; uma vez aberto, root não serve para mais nada, e é devolvido.

# Aqui só chegam quadros pequenos.
QUEUE_BYTES = 1 << 20
# Fila da placa cheia: espera-se tanto (s), tantas vezes; depois, é como se o fio o perdesse.
FULL_S = 0.0005
FULL_TRIES = 20
# De quanto em quanto tempo (µs) se relê a interface.
CHECK_US = 1_000_000


class Link:
    """O socket cru, aberto numa interface."""

    def __init__(self, name):
        self.name = name
        self.sock, self.mac, self.mtu = open_link(name, 0, QUEUE_BYTES)
        try:
            # Enquanto este socket existir, a interface é deste servidor.
            self.place = take_place(self.sock)
        except (Failure, OSError):
            self.sock.close()
            raise
        # Por onde se pergunta pela ponte: um só, e um Ctrl+C não acha outro a meio de abrir.
        self.kernel = None
        with contextlib.suppress(OSError):
            self.kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
        # O MTU não conta o cabeçalho Ethernet, que vai até o tipo.
        self.buffer = memoryview(bytearray(self.mtu + KIND_AT))
        self.checked = clock()
        # Quem mostra cada quadro (--verbose), ou None.
        self.verbose = None
        # Quem diz ao operador o que houve com a interface; e se havia fio da última vez.
        self.note = None
        self.carrier = True

    def check(self):
        """Uma vez por segundo, relê a interface: parado, ninguém nos diria que ela mudou."""
        if clock() - self.checked >= CHECK_US:
            self.reread()

    def reread(self):
        """O MAC e o MTU mudam com ela no ar (Wi-Fi, macvlan).

        Levanta Failure se já não existe, ou se a puseram numa ponte: nada mais se ouviria aqui.
        """
        self.checked = clock()
        try:
            now = read_interface(self.sock)
        except OSError:
            raise Failure(f"a interface {self.name} sumiu. Veja as outras: ip -br link") from None
        # O nome de agora: também ele muda com ela no ar.
        problem = explain_bridge(self.sock.getsockname()[0], self.kernel)
        if problem:
            raise Failure(problem)
        if now.mtu > self.mtu:
            self.buffer = memoryview(bytearray(now.mtu + KIND_AT))
        self.mac = now.mac
        self.mtu = now.mtu
        self.say_carrier(now.flags)

    def say_carrier(self, flags):
        """Diz, uma vez, que falta o fio, ou a rede Wi-Fi, e que voltou: o servidor espera."""
        before = self.carrier
        self.carrier = has_carrier(flags)
        if self.carrier == before or self.note is None:
            return
        if self.carrier:
            self.note(f"{self.name} tem conexão outra vez")
        elif flags & IFF_UP:
            self.note(f"{self.name} está sem conexão: confira o cabo, ou a rede Wi-Fi. Espero...")
        else:
            self.note(f"{self.name} foi desligada. Espero: sudo ip link set {self.name} up")

    def trace(self, arrow, frame):
        if self.verbose:
            self.verbose(describe(arrow, frame))

    def send(self, frame):
        """Envia um quadro, ou desiste dele sem ruído: o fio também perde."""
        if self.verbose:
            self.trace("->", frame)
        try:
            self.sock.send(frame)
        except OSError as error:
            self.insist(frame, error)

    def insist(self, frame, error):
        """O quadro que não saiu, outra vez, um número limitado de vezes."""
        for _ in range(FULL_TRIES - 1):
            self.excuse(error)
            # Só a fila se esvazia: o resto não muda enquanto se espera.
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                time.sleep(FULL_S)
            try:
                self.sock.send(frame)
                return
            except OSError as again:
                error = again

    def receive(self):
        """O próximo quadro, numa fatia que só vale até o seguinte; ou None."""
        try:
            return self.buffer[:self.sock.recv_into(self.buffer)]
        except OSError as error:
            # Não há mais; ou a interface caiu, e o kernel avisa uma vez só.
            self.excuse(error)
            return None

    def excuse(self, error):
        """Fila vazia ou cheia, interface desligada, MTU encolhido: passam. O resto é o fim."""
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.EMSGSIZE):
            raise Failure(f"a interface {self.name} sumiu ({reason(error)}). "
                          "Veja as outras: ip -br link")

    def close(self):
        if self.kernel:
            self.kernel.close()
        self.place.close()
        self.sock.close()


def take_place(sock):
    """Guarda a interface: dois servidores teriam um MAC só, e o cliente ouviria ora um, ora outro.

    É um socket Unix de nome abstrato (unix(7)): vale nesta rede (network namespace) e some com o
    processo, até por kill -9. Levanta Failure se outro já a guarda.
    Simplificação: qualquer programa daqui pode tomar o nome antes; a frase diz que processo foi.
    """
    name, *_ = sock.getsockname()
    # O número da interface não muda quando lhe mudam o nome.
    address = f"\0raw_server.py/{socket.if_nametoindex(name)}"
    place = socket.socket(socket.AF_UNIX)
    try:
        place.bind(address)
        place.listen()
    except OSError as error:
        place.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise Failure(explain_taken(name, owner_of(address))) from None
    return place


def owner_of(address):
    """O processo que escuta neste socket Unix (SO_PEERCRED); 0 se não se vê daqui."""
    with socket.socket(socket.AF_UNIX) as asker, contextlib.suppress(OSError):
        asker.setblocking(False)
        asker.connect(address)
        pid, _, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid
    return 0


def explain_taken(name, pid):
    """Quem já serve nesta interface, e o que fazer."""
    text = f"outro raw_server.py já serve em {name}"
    if not pid:
        return f"{text}, talvez de outro contêiner. Pare-o antes, ou use outra interface"
    return f"{text} (processo {pid}). Pare-o antes (sudo kill {pid}), ou use outra interface"


# --- bloco comum: enlace ---
# asm-generic/socket.h
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
# linux/sockios.h e net/if.h
SIOCGIFFLAGS = 0x8913
SIOCGIFINDEX = 0x8933
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
# Não são bytes do quadro: é a quem o kernel diz que ele se dirige, e a que interface ele o deu, por
# número (SKF_AD_OFF + SKF_AD_PKTTYPE, + SKF_AD_IFINDEX).
BPF_PACKET_TYPE = 0xFFFFF000 + 4
BPF_INTERFACE = 0xFFFFF000 + 8
# De outra máquina, ou com a etiqueta de uma VLAN que aqui não há (linux/if_packet.h).
PACKET_OTHERHOST = 3

# Uma FICHA, ou um pedido com um nome de arquivo comprido, não cabe em menos do que isto.
MTU_MIN = 256
# Quanto se espera, no máximo, por uma interface que está trocando de nome (µs).
RENAMING_US = 500_000

# linux/rtnetlink.h e linux/if_link.h: perguntar de uma interface, e o que interessa da resposta.
RTM_GETLINK = 18
NLM_F_REQUEST = 1
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_INFO_SLAVE_KIND = 4
# struct nlmsghdr e struct ifinfomsg; depois delas vêm os atributos.
LINK_QUESTION = struct.Struct("=IHHII BxHiII")

Interface = collections.namedtuple("Interface", "flags mac mtu hardware")


def clock() -> int:
    """Relógio monotônico, em µs: o dos quadros e o de todas as esperas."""
    return time.monotonic_ns() // 1000


def ask_interface(sock, *questions) -> tuple:
    """(tipo, respostas) do kernel, por ioctl(2), sobre a interface do socket.

    Ele só responde pelo nome, e enquanto o troca, por milissegundos, ninguém a acha nem pelo novo:
    aí se pergunta de novo. Levanta OSError (ENODEV) se ela se foi, e já não tem nome.
    """
    import fcntl
    until = clock() + RENAMING_US
    while True:
        name, _, _, hardware, _ = sock.getsockname()
        request = struct.pack("256s", name.encode())
        try:
            return hardware, [fcntl.ioctl(sock, question, request) for question in questions]
        except OSError:
            if not name or clock() > until:
                raise
            time.sleep(1e-3)


def attach_filter(sock, side, session=None):
    """Filtro BPF: o kernel só copia para nós os quadros do sentido `side` (bit 7).

    Também ficam de fora os que não se dirigem a esta máquina, os que o kernel deu a uma interface
    feita sobre esta (de uma VLAN, um macvlan: a resposta daqui não acharia quem perguntou) e, se
    dita, os de outra sessão. Levanta OSError (ENODEV) se a interface se foi.
    """
    _, (answer,) = ask_interface(sock, SIOCGIFINDEX)
    # struct ifreq (netdevice(7)): 16 bytes do nome, e a resposta.
    index, = struct.unpack_from("i", answer, 16)
    # (operação, valor, o que há de ser a comparação para o quadro seguir).
    code = [
        (BPF_LOAD_BYTE, BPF_PACKET_TYPE, None),
        (BPF_EQUAL, PACKET_OTHERHOST, False),
        (BPF_LOAD_WORD, BPF_INTERFACE, None),
        (BPF_EQUAL, index, True),
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
        to_the_end = len(code) - 2 - at
        jumps = {None: (0, 0), True: (0, to_the_end), False: (to_the_end, 0)}
        packed += struct.pack("=HBBI", operation, *jumps[goes_on], value)
    program = array.array("B", packed)
    pointer, _ = program.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(code), pointer))


def read_interface(sock) -> Interface:
    """Como está agora a interface do socket: o nome, o MAC e o MTU mudam com ela no ar.

    Levanta OSError (ENODEV) se ela se foi.
    """
    hardware, answers = ask_interface(sock, SIOCGIFFLAGS, SIOCGIFMTU, SIOCGIFHWADDR)
    flags, = struct.unpack_from("H", answers[0], 16)
    mtu, = struct.unpack_from("i", answers[1], 16)
    # Aqui a resposta é um sockaddr: 2 bytes de família antes do endereço.
    mac, = struct.unpack_from("6s", answers[2], 18)
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
    return explain_bridge(name)


def explain_bridge(name, kernel=None) -> str:
    """A porta de uma ponte entrega a ela tudo o que ouve, e não serve; "" se não é uma."""
    bridge = ""
    # Um contêiner pode não deixar perguntar; e, trocando de nome, ela não se acha: não se sabe.
    with contextlib.suppress(OSError):
        bridge = bridge_of(name, kernel)
    if not bridge:
        return ""
    return f"{name} é uma porta da ponte {bridge}, e é ela quem ouve. Use {bridge}"


def bridge_of(name, kernel=None) -> str:
    """O nome da ponte de que esta interface é uma porta, ou "". Levanta OSError.

    Pergunta-se ao kernel, por netlink (rtnetlink(7)): /sys mostra a rede de quem o montou, e num
    `unshare -n` é outra. Sem um socket de quem já perguntou, abre-se um para esta vez.
    """
    if kernel is None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as kernel:
            return bridge_of(name, kernel)
    index = socket.if_nametoindex(name)
    question = LINK_QUESTION.pack(LINK_QUESTION.size, RTM_GETLINK, NLM_F_REQUEST, 0, 0,
                                  socket.AF_UNSPEC, 0, index, 0, 0)
    kernel.send(question)
    answer = kernel.recv(0xFFFF)
    link = attributes(answer[LINK_QUESTION.size:])
    info = attributes(link.get(IFLA_LINKINFO, b""))
    if info.get(IFLA_INFO_SLAVE_KIND) != b"bridge\0":
        return ""
    master, = struct.unpack("i", link[IFLA_MASTER])
    return socket.if_indextoname(master)


def attributes(data: bytes) -> dict:
    """Tipo -> valor, dos atributos do netlink: cada um com o seu tamanho, de 4 em 4 bytes."""
    found = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("HH", data)
        found[kind] = data[4:size]
        data = data[max(size + 3 & ~3, 4):]
    return found


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
        # Primeiro só a interface, de que o filtro precisa; depois, já com ele, os quadros.
        sock.bind((name, 0))
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
        raise Failure(f"não consigo ler {path}: não existe. Para criá-lo: {recipe}") from None
    except OSError as error:
        raise Failure(f"não consigo ler {path}: {reason(error)}. "
                      "Outra chave: --chave-arquivo") from None
    if len(secret) < 16:
        raise Failure(f"{path} tem {len(secret)} bytes, e uma chave pede 16 ou mais. "
                      f"Uma nova, no lugar dela: {recipe}")
    return hashlib.blake2b(secret, digest_size=32).digest()
# --- fim do bloco comum: enlace ---


# ---------------------------------------------------------------------------------------------
# Em volta: a voz, a casa e a linha de comando

# --- bloco comum: voz ---
# Texto à espera de um terminal parado (Ctrl+S), em bytes; as linhas que passam disso se perdem, mas
# são contadas.
VOICE_BYTES = 1 << 20
# Segundos que o fim do programa espera pelas últimas linhas, se ninguém as lê; e stderr, pela
# primeira de stdout.
VOICE_PARTING_S = 0.25
# Segundos entre duas idas à saída: uma rajada de linhas sai de uma vez. Acordar a thread a cada
# linha custaria mais do que escrevê-la, e cada vez que ela acorda disputa o GIL com quem atende.
PEN_PAUSE_S = 0.05


class Pen(threading.Thread):
    """Escreve numa saída: só esta thread espera por quem não lê; quem põe a linha na fila segue."""

    def __init__(self, stream, on_end, after=None):
        super().__init__(daemon=True)
        self.stream = stream
        # A caneta que fala primeiro, se houver; e se esta já falou.
        self.after = after
        self.spoke = threading.Event()
        # Chamada quando não há mais quem leia (`| head -1`).
        self.on_end = on_end
        # A caneta que conta o que houve com esta, se as saídas são duas e ela ainda não contou.
        self.other = None
        self.ready = threading.Condition()
        self.box = bytearray()
        # Linhas que não couberam, ou que um disco cheio recusou.
        self.lost = 0
        # Hora de acabar: a pausa também o escuta.
        self.ended = threading.Event()
        self.broken = False

    def put(self, text, share=1):
        """Põe na fila uma linha, se ela cabe na parte da fila (de 0 a 1) que lhe toca."""
        data = (text + "\n").encode(self.stream.encoding, "replace")
        with self.ready:
            if len(self.box) + len(data) > VOICE_BYTES * share:
                self.lost += 1
                return
            self.box += data
            self.ready.notify()

    def end(self):
        with self.ready:
            self.ended.set()
            self.ready.notify()
        self.spoke.set()

    def run(self):
        while True:
            with self.ready:
                self.ready.wait_for(lambda: self.box or self.ended.is_set())
                data, self.box = self.box, bytearray()
                if self.lost and not self.broken:
                    data += b"(linhas perdidas, sem quem as lesse: %d)\n" % self.lost
                    self.lost = 0
            if not data:
                return
            if self.after:
                self.after.spoke.wait(VOICE_PARTING_S)
                self.after = None
            self.write(data)
            self.spoke.set()
            self.ended.wait(PEN_PAUSE_S)

    def write(self, data):
        try:
            if not self.broken:
                # Direto no descritor: parada no buffer do print(), esta thread prenderia o fim do
                # programa.
                write_all(self.stream.fileno(), data)
        except OSError as error:
            self.lost += data.count(b"\n")
            # Disco cheio, terminal que se foi: perdem-se as linhas, e não o servidor. Só um cano
            # fechado é o fim dele (no Windows, EINVAL).
            if error.errno in (errno.EPIPE, errno.EINVAL):
                self.broken = True
                self.on_end()
            elif self.other:
                self.other.put(f"a saída não aceita mais linhas, e elas se perdem: {reason(error)}")
                self.other = None


class Voice:
    """O que um servidor diz a quem o opera, sem esperar: say() em stdout, note() em stderr.

    As duas no mesmo terminal têm uma caneta só, e as linhas saem na ordem em que foram ditas. Se
    não, a primeira é a de stdout, "escutando em ...": a de stderr espera que ela tenha saído.
    """

    def __init__(self, on_end):
        self.screen = Pen(sys.stdout, on_end)
        self.notes = self.screen
        # Numa fila só, um --verbose sob inundação não toma o lugar do que se tem a dizer.
        self.share = 0.5
        self.screen.start()
        if not os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno()):
            self.notes = Pen(sys.stderr, lambda: None, after=self.screen)
            self.share = 1
            self.screen.other = self.notes
            self.notes.start()
        self.say = self.screen.put

    def note(self, text):
        self.notes.put(text, self.share)

    @property
    def broken(self):
        """Ninguém mais lê a saída?"""
        return self.screen.broken

    def close(self):
        """As últimas linhas, se alguém as lê."""
        for pen in (self.screen, self.notes):
            pen.end()
            pen.join(VOICE_PARTING_S)
# --- fim do bloco comum: voz ---


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
    errno.EPERM: "o sistema não deixa",
    errno.EISDIR: "é uma pasta",
    errno.ENOTDIR: "não é uma pasta",
    errno.ENOSPC: "não há mais espaço no disco",
    errno.EFBIG: "passou do tamanho permitido",
    errno.EIO: "erro de leitura ou escrita",
    errno.EROFS: "é de um disco que só se lê",
    errno.EEXIST: "já existe",
    errno.ENAMETOOLONG: "o nome é comprido demais",
    errno.ELOOP: "é um link que dá voltas",
    errno.EBUSY: "está ocupado por outro",
    errno.ENODEV: "não há mais esse dispositivo",
    errno.ENXIO: "não há mais esse dispositivo",
    errno.EINVAL: "o sistema não aceita este pedido (argumento inválido)",
    errno.ENOMEM: "falta memória",
    errno.ENOBUFS: "falta memória na rede",
    errno.EMSGSIZE: "é grande demais para a rede",
    errno.ENOTCONN: "já não há conexão",
    errno.EAGAIN: "não quer esperar, e nada há agora",
    errno.EBADF: "o descritor está fechado, ou não serve para isto",
    errno.EMFILE: "acabaram os descritores deste programa (ulimit -n)",
    errno.EADDRINUSE: "já está em uso",
    errno.EADDRNOTAVAIL: "aqui não há endereço, ou porta livre, de onde sair",
    errno.ECONNREFUSED: "conexão recusada",
    errno.ECONNRESET: "o outro lado caiu (RST)",
    errno.EPIPE: "o outro lado já fechou",
    errno.ETIMEDOUT: "o outro lado não responde",
    errno.EHOSTUNREACH: "não há caminho até lá",
    errno.ENETUNREACH: "não há rede até lá",
    errno.ENETDOWN: "a interface está desligada",
    errno.EAFNOSUPPORT: "esta máquina não fala essa família de endereços",
}

# Segundos que as últimas palavras esperam por quem não as lê: um terminal parado (Ctrl+S), um cano
# cheio. O fim inteiro leva menos de dois.
UNREAD_S = 0.5

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
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            # Aqui, e não em parse_args(): quem sabe o que falta é o parser da ação, e a ajuda é a
            # dela.
            self.refuse(unknown)
        for action in self._actions:
            # Um "$CA" que o shell não conhece chega vazio, e não é o mesmo que não pedir TLS.
            if getattr(found, action.dest, None) == "" and action.metavar != "TEXTO":
                self.error(f"{[*action.option_strings, action.metavar][0]}: o valor veio vazio")
        return found, unknown

    def refuse(self, unknown):
        self.error(argparse._("unrecognized arguments: %s") % " ".join(unknown))

    def error(self, message):
        # Até o Python 3.8 esta palavra não passa por gettext().
        message = re.sub("^argument ", "", message)
        self.exit(2, f"{self.prog}: erro: {message} (ajuda: ./{self.prog} --help)\n")


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
    # frase do sistema. De um cano que não espera, o print() diz a sua.
    own_words = isinstance(error, BlockingIOError)
    if error.errno in TROUBLES and (own_words or error.strerror == os.strerror(error.errno)):
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
            # print iria à rede. A saída, só para ler: escrever nela é um erro que se vê (EBADF), e
            # não um resultado que some com estado 0. De stderr, não há a quem o dizer.
            access = os.O_RDONLY if name == "stdout" else os.O_RDWR
            stream = open(os.open(os.devnull, access), mode, closefd=False)
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


@contextlib.contextmanager
def last_words():
    """O que se escreve no fim, se alguém o lê: passados UNREAD_S segundos, fica por dizer.

    Só na thread principal, que é quem recebe os sinais.
    """
    def late(*_):
        raise TimeoutError(errno.ETIMEDOUT, "ninguém lê a saída")

    # No Windows não há este despertador, nem quem pare um terminal e mande um SIGTERM.
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    with contextlib.suppress(TimeoutError):
        signal.setitimer(signal.ITIMER_REAL, UNREAD_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def flush(stream, status):
    """Escreve o que ainda está no buffer; devolve o estado de saída, que um disco cheio muda."""
    try:
        stream.flush()
    except OSError as error:
        if not status:
            status = 1 if isinstance(error, BrokenPipeError) else complain(error)
        # O que ficou no buffer não tem para onde ir: nem na saída do interpretador, que o diria em
        # inglês.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def perform(build_parser, action, argv):
    """Lê a linha de comando, roda action(args) e devolve o estado de saída."""
    try:
        return action(build_parser().parse_args(argv)) or 0
    except SystemExit as end:
        # O argparse, depois de --help, --version ou um erro de uso.
        return end.code
    except BrokenPipeError:
        # `| head -1` já foi embora: nada mais a escrever.
        return 1
    except (Failure, OSError) as error:
        return complain(error)
    except Exception as error:
        # Um defeito: quem o conserta pede o traceback, e quem só usa não o leria.
        if sys.flags.dev_mode:
            raise
        return complain(explain_defect(error))


def explain_defect(error) -> str:
    """O que se diz de um erro que ninguém previu: qual, por que linhas veio, e como ver o resto."""
    lines = []
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == explain_defect.__code__.co_filename:
            lines.append(str(trace.tb_lineno))
        trace = trace.tb_next
    return (f"imprevisto, um defeito do programa: {type(error).__name__} ({escape(str(error))}), "
            f"nas linhas {', '.join(lines)}. O traceback: python3 -X dev {escape(typed())}")


def interrupt(*_):
    """Ctrl+C e SIGTERM: um só caminho de saída, uma vez só; o segundo não corta o fim no meio."""
    hush()
    raise KeyboardInterrupt


def hush():
    """Daqui até o fim, nenhum sinal o corta no meio."""
    # Barrados no kernel: o Python, ao se desmontar, os devolve ao padrão do sistema, que mata.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    answer_signals(let_pass)


def after_echo(handler):
    """O tratador de um Ctrl+C: o terminal mostrou ^C, e o que se diz depois dele, ou o prompt do
    shell, começa noutra linha.
    """
    def handle(*details):
        terminal = next(filter(os.isatty, (2, 1)), None)
        # Parado (Ctrl+S), não se espera por ele; no Windows, quem desce é o console.
        if terminal and os.name == "posix" and wait_ready(writers=[terminal], timeout=0):
            os.write(terminal, b"\n")
        handler(*details)
    return handle


def let_pass(*_):
    """Nada: com SIG_IGN, um sinal que já tivesse chegado seria dito num traceback."""


def answer_signals(handler):
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, handler)


def run(build_parser, action, argv=None):
    """Roda perform() e acaba o programa com um estado só, seja como for que ele acabe.

    0: feito; 1: não deu certo; 2: uso errado; 130: Ctrl+C.
    """
    signal.signal(signal.SIGTERM, interrupt)
    # Atrás de um `&`, o shell o deixa ignorado, e assim fica.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, after_echo(interrupt))
    open_standard()
    if not sys.flags.dev_mode:
        # O erro que acaba com uma thread tem a mesma linha.
        threading.excepthook = lambda thread: complain(explain_defect(thread.exc_value))
    try:
        status = perform(build_parser, action, argv)
        for stream in sys.stdout, sys.stderr:
            status = flush(stream, status)
        hush()
    except KeyboardInterrupt:
        status = 130
        for stream in sys.stdout, sys.stderr:
            with last_words():
                flush(stream, status)
    # Nada mais há por receber; as outras threads não barram sinais.
    answer_signals(signal.SIG_IGN)
    return status


def end_process(status):
    """Acaba o processo.

    Se uma thread ficou (presa numa saída que ninguém lê), sem desmontar o Python: ela poderia
    acordar no meio disso, e derrubá-lo com um SIGSEGV (visto no 3.11).
    """
    if threading.active_count() > 1:
        os._exit(status)
    sys.exit(status)
# --- fim do bloco comum: casa ---


def serve(args):
    with contextlib.closing(Link(args.interface)) as link:
        # Antes de abrir o que for do usuário.
        drop_root()
        # Em segundo plano, ler o terminal não nos para: ver read_terminal.
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        server = Server(args, link)
        if args.verbose:
            link.verbose = server.voice.note
        link.note = server.voice.note
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(server):
            server.voice.say(f"escutando em {link.name} ({link.mac.hex(':')}, MTU {link.mtu}, "
                             f"uid {os.geteuid()})")
            link.reread()
            server.serve()
    if server.voice.broken:
        return 1
    return 0


class CommandLine(Parser):
    """O parser que sabe o que é uma palavra a mais: a pasta, que se diz com uma opção."""

    def refuse(self, unknown):
        if len(unknown) == 1 and not unknown[0].startswith("-"):
            right = typed("--pasta", unknown[0], drop=unknown)
            self.error(f"não conheço {unknown[0]!r}. A pasta se diz com --pasta: sudo {right}")
        super().refuse(unknown)


def build_parser():
    parser = CommandLine(
        description="Servidor de filmes sem IP: uma pasta, direto em quadros Ethernet (0x88B5).",
        epilog="Precisa de sudo, ou CAP_NET_RAW. Em outro terminal: sudo ./raw_client.py")
    parser.add_argument("interface", nargs="?", default="lo", metavar="INTERFACE",
                        help="por onde servir (padrão: lo)")
    parser.add_argument("--pasta", default="videos", metavar="PASTA",
                        help="o que servir (padrão: videos)")
    parser.add_argument("--chave-arquivo", metavar="ARQUIVO",
                        help="só atende quem tem o mesmo arquivo de chave")
    parser.add_argument("--max-clientes", type=number(int, 1, 1000, "um número"), default=16,
                        metavar="N", help="os que passam disso são recusados (padrão: 16)")
    parser.add_argument("--verbose", action="store_true", help="mostra em stderr cada quadro")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}",
                        help="mostra a versão e sai")
    return parser


def main(argv=None):
    return run(build_parser, serve, argv)


if __name__ == "__main__":
    end_process(main())
