#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Servidor UDP de eco e de chat: cada datagrama é um cartão-postal, com remetente e sem garantia.

    ./servidor_udp.py                em um terminal: eco em 127.0.0.1 porta 5050
    ./cliente_udp.py                 em outro: cada linha digitada volta
    ./servidor_udp.py --modo chat    uma sala, no lugar do eco

        cliente                       servidor
                                      socket() bind()    não há listen() nem accept(): um socket só
        socket()                                         serve a todos, e cada datagrama traz o
        sendto(b"oi") ------?----->   recvfrom()         endereço de quem o mandou
        recvfrom()    <-----?------   sendto(b"oi")      "?": aqui ele pode se perder, chegar duas
                                                         vezes ou fora de ordem, sem aviso

O servidor ingênuo, que já atende a todos: recvfrom() dá (dados, remetente), o que sendto() quer:

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 5050))
    while True:
        sock.sendto(*sock.recvfrom(65535))

O que lhe falta, e quem o cura (o principal primeiro), na parte de mesmo número. No fim do arquivo,
sob o título "Em volta": a linha de comando, main(), e o que as partes já usam antes, como Failure
(um erro que se diz numa linha), reason() e escape().

    1  uma resposta que o kernel recusa o derruba ......... Server
    2  um falso remetente o faz girar, ou inundar alguém .. Guard
    3  na sala, um falso remetente inscreve outro ......... Cookies, cookie
    4  um cliente não fala com outro ...................... Chat, Room
    5  nesta máquina nada se perde: só de propósito ....... BadNetwork (--perda, --atraso)

O que ele não faz: não cifra, não retransmite, não guarda nada. Escutando em 0.0.0.0 numa máquina de
vários endereços, a resposta sai pelo que a rota escolher, que pode não ser o que o cliente espera
(escute num só, se isto incomodar).
"""
import os
import sys

# Um Python incompleto (o python3-minimal do Debian) diz o que lhe falta, em vez de um traceback.
try:
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
    import random
    import re
    import secrets
    import selectors
    import shlex
    import signal
    import socket
    import struct
    import threading
    import time
    import typing
    import unicodedata
except ImportError as error:
    sys.exit(f"{os.path.basename(sys.argv[0])}: erro: este Python veio sem o módulo {error.name}. "
             "Instale-o inteiro: sudo apt install python3 (ou o de https://www.python.org)")

# ---------------------------------------------------------------------------------------------
# 1. Server: um socket só para todos
#
# O ingênuo acaba na primeira resposta que o kernel recusa (sem rota, firewall, porta de origem 0),
# e um datagrama maior que o buffer chega cortado, sem aviso. Aqui o que dá errado com um datagrama
# é daquele datagrama: conta-se, diz-se uma vez de cada tipo, e o laço segue. Quem responde é uma
# função, answer(dados, remetente): o eco é o próprio envio (RFC 862), e a sala, a parte 4.

# Bytes que se pedem para a fila do kernel: o que chega com ela cheia se perde sem aviso.
QUEUE_BYTES = 4 << 20
# Segundos entre uma conferida e outra: dos silêncios da sala e, no Windows, do Ctrl+C.
WAKE_S = 1
# Datagramas lidos por vez antes de conferir os prazos: uma inundação não para o relógio.
BATCH = 256


class Server:
    """Espera, lê tudo o que houver na fila, espera de novo."""

    def __init__(self, sock, guard, limit):
        self.sock = sock
        self.guard = guard
        # Bytes do maior datagrama que se aceita.
        self.limit = limit
        # Um byte a mais: se ele for ocupado, chegou mais do que cabia.
        self.buffer = bytearray(limit + 1)
        # As contas do fim.
        self.datagrams = 0
        self.octets = 0
        self.stopping = False
        # Quem responde; e quem tem prazos: funções que devolvem os segundos até o próximo.
        self.answer = self.send
        self.ticks = []

    def run(self):
        # O eco puro espera na própria leitura, que o kernel acorda a cada WAKE_S: com um cliente
        # só, perguntar antes de cada leitura o deixaria um décimo mais lento (medido).
        patient_reads = os.name == "posix" and not self.ticks
        if patient_reads:
            self.sock.setblocking(True)
            # struct timeval: segundos e microssegundos, cada um de 8 bytes.
            timeval = struct.pack("qq", WAKE_S, 0)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self.sock.setsockopt(socket.SOL_SOCKET, option, timeval)
        # Só stop() tira o laço daqui.
        while True:
            if not patient_reads:
                wait_ready([self.sock], timeout=self.next_deadline())
            self.drain()

    def next_deadline(self):
        """Cumpre os prazos vencidos; devolve quantos segundos faltam para o próximo."""
        waits = [WAKE_S]
        for tick in self.ticks:
            try:
                waits.append(tick())
            except Exception as error:
                self.survive(error, ("?", 0))
        return max(0, min(waits))

    def drain(self):
        """Lê até a fila esvaziar (ou BATCH): havendo o que ler, cada leitura volta na hora."""
        receive = self.sock.recvfrom_into
        answer = self.answer
        admit = self.guard.admit
        tokens = self.guard.tokens
        limit = self.limit
        buffer = self.buffer
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
            # Datagramas seguidos costumam ter o mesmo tamanho: um recorte serve a todos.
            if size != len(data):
                data = view[:size]
            if size > limit:
                self.guard.drop(f"maior que {limit} bytes: chegou cortado", source)
                continue
            # Quem tem fichas gasta uma; quem não tem passa pelas defesas (parte 2).
            left = tokens.get(source)
            if left:
                tokens[source] = left - 1
            elif not admit(source, data):
                continue
            try:
                answer(data, source)
            except Exception as error:
                self.survive(error, source)

    def send(self, data, source):
        try:
            self.sock.sendto(data, source)
        except OSError as error:
            # Sem rota, firewall, o ICMP de outra resposta: problema deste destino só.
            self.guard.drop(f"envio recusado ({reason(error)})", source)

    def excuse_receive(self, error):
        """Erros de recepção que não são desta recepção; os outros sobem."""
        if getattr(error, "winerror", None) == 10040:
            # WSAEMSGSIZE: é assim que o Windows avisa o datagrama cortado.
            self.guard.drop(f"maior que {self.limit} bytes: chegou cortado", ("?", 0))
        # De uma resposta anterior são só estes dois: não achou ninguém (10054 no Windows), ou o TTL
        # dela acabou no caminho (10052).
        elif not isinstance(error, ConnectionError) and error.errno != errno.ENETRESET:
            raise error

    def survive(self, error, source):
        """Um defeito nosso, que um datagrama achou: custa a resposta dele, e não o servidor."""
        last = error.__traceback__
        while last.tb_next:
            last = last.tb_next
        # O tipo e a linha, e não a mensagem: ela pode trazer o que veio da rede, e não acabaria.
        self.guard.drop(f"defeito nosso ({type(error).__name__}, linha {last.tb_lineno})", source)

    def stop(self, *_):
        """Ctrl+C e SIGTERM são um fim só, e o segundo não corta as contas do primeiro."""
        if not self.stopping:
            self.stopping = True
            raise KeyboardInterrupt


# Exercício: um serviço novo são duas linhas, e a sua vez de responder, uma em build_server().
#
#     def upper(data, source):
#         server.send(bytes(data).upper(), source)


# ---------------------------------------------------------------------------------------------
# 2. Guard: quem merece resposta
#
# Quem responde a qualquer um serve para atacar outro: um datagrama que diz vir de um eco, e os dois
# conversam para sempre (CERT CA-1996-01); mil que dizem vir de alguém, e esse alguém é inundado.
# Cada defesa é uma função que devolve o motivo da recusa, ou "". Só de cota em cota um remetente
# passa por elas; entre uma e outra gasta fichas (token bucket), e o caminho quente fica curto.

# Abaixo dela moram DNS, NTP, echo, chargen: ninguém digita de lá, e quem responde faz laço.
FIRST_USER_PORT = 1024
# Remetentes lembrados; o mais antigo dá lugar.
MAX_SOURCES = 4096
# Datagramas por cota.
QUOTA = 1000
# Datagramas por segundo de um remetente: mais que um exercício precisa, menos que um ataque quer.
# Desta máquina não há limite: 127.0.0.1 e ::1 ninguém forja de fora, e um cliente ligeiro não perde
# nada por nossa causa.
ECHO_RATE = 1000
# Na sala cada datagrama vai a todos; ninguém digita 20 linhas por segundo.
CHAT_RATE = 20
# Depois de tantos datagramas, rever uma das últimas amostras é sinal de laço.
LOOP_COPIES = 5000
SAMPLES = 64


class Quota(typing.NamedTuple):
    """O que se lembra de um remetente, de cota em cota."""

    # Quando pode ter outra, em time.monotonic().
    due: float = 0.0
    # Resumos do primeiro datagrama de cada uma das últimas cotas.
    samples: tuple = ()
    # Datagramas que já teve, desde o último laço.
    count: int = 0


def is_loopback(host: str) -> bool:
    """127.0.0.0/8 (também como o IPv6 o escreve) ou ::1: não chegam por um cabo (RFC 1122)."""
    return host == "::1" or host.startswith(("127.", "::ffff:127."))


class Guard:
    """As defesas, e as fichas de cada remetente: uma por datagrama, QUOTA por vez."""

    def __init__(self, own, rate, note):
        # O nosso (endereço, porta).
        self.own = own
        # Datagramas por segundo; None é o padrão, que depende de onde vêm.
        self.rate = rate
        # Diz uma linha a quem opera o servidor.
        self.note = note
        # Remetente -> fichas que restam; quem não tem passa por admit().
        self.tokens = {}
        # Remetente -> Quota, na ordem da última.
        self.quotas = {}
        # Remetentes que já apareceram, ainda que esquecidos.
        self.sources = 0
        # Motivo -> datagramas sem resposta.
        self.dropped = collections.Counter()

    def admit(self, source, data):
        """Dá a quem está sem fichas uma cota nova (e gasta a primeira), ou descarta o datagrama."""
        if source is None:
            # Um datagrama de ninguém: é assim que se lê de um socket desligado (shutdown).
            raise Failure("o socket foi desligado por fora, e nada mais chegaria a ele")
        for defence in (self.above_rate, self.service_port, self.own_address):
            why = defence(source)
            if why:
                return self.drop(why, source)
        sample = hash(bytes(data))
        why = self.loop(source, sample)
        self.grant(source, sample, looping=bool(why))
        if why:
            return self.drop(why, source)
        return True

    def above_rate(self, source):
        if time.monotonic() < self.quotas.get(source, Quota()).due:
            return "acima da taxa"
        return ""

    def service_port(self, source):
        if source[1] < FIRST_USER_PORT:
            return f"porta de origem abaixo de {FIRST_USER_PORT}"
        return ""

    def own_address(self, source):
        """Diz vir desta porta, desta máquina? Responder seria falar sozinho."""
        if source[1] != self.own[1]:
            return ""
        family = socket.AF_INET
        if ":" in source[0]:
            family = socket.AF_INET6
        # Da máquina é o endereço que o bind() aceita.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((source[0], 0, *source[2:]))
            return "origem é o próprio servidor"
        return ""

    def loop(self, source, sample):
        """Cada perda tira um datagrama do laço; um cliente que se repete perde um em cinco mil."""
        quota = self.quotas.get(source, Quota())
        if sample in quota.samples and quota.count >= LOOP_COPIES:
            return "laço com outro servidor de eco"
        return ""

    def grant(self, source, sample, looping):
        old = self.quotas.pop(source, None)
        if old is None:
            old = Quota()
            self.sources += 1
            if len(self.quotas) >= MAX_SOURCES:
                oldest = next(iter(self.quotas))
                del self.quotas[oldest]
                del self.tokens[oldest]
        rate = self.rate_of(source)
        most = int(min(QUOTA, rate))
        # Sorteada: um laço de vários datagramas não acerta o passo dela.
        size = random.randint((most + 1) // 2, most)
        count = size
        if not looping:
            count += old.count
        samples = (*old.samples, sample)[-SAMPLES:]
        self.quotas[source] = Quota(time.monotonic() + size / rate, samples, count)
        self.tokens[source] = size - 1

    def rate_of(self, source):
        if self.rate:
            return self.rate
        if is_loopback(source[0]):
            return math.inf
        return ECHO_RATE

    def drop(self, why, source):
        """Conta o descarte e, no primeiro de cada motivo, diz qual; devolve False."""
        self.dropped[why] += 1
        if self.dropped[why] == 1:
            where = f"{source[0]} porta {source[1]}"
            self.note(f"descartado: {why} (de {where}); os próximos, só conto")
        return False


# ---------------------------------------------------------------------------------------------
# 3. Cookies: provar um endereço
#
# Sem prova, qualquer um inscreveria na sala a máquina de outro, que receberia tudo sem ter pedido.
# O código vai ao endereço que o datagrama diz: só quem mora lá pode mandá-lo de volta. O servidor
# não guarda nenhum, e por isso mil pedidos forjados não lhe custam memória (como os SYN cookies do
# TCP, RFC 4987, 3.6); e a quem não se provou nunca vão mais bytes nem datagramas do que ele mandou.

# Segundos: um código vale no seu minuto e no seguinte.
COOKIE_PERIOD_S = 60

# --- bloco comum: udp ---
# O que manda à sala quem ainda não entrou nela.
ENTER = b"/entrar"
# Letras: com o fim de linha, o código cabe na resposta a "/entrar" com o seu.
CODE_SIZE = 7
INVITE = "* seu código é {}: mande-o de volta para entrar na sala\n"
HINTS = [text.encode() for text in (
    "* quem é você? digite /entrar\n",
    "digite /entrar\n",
    "?\n",
    "?",
)]
# --- fim do bloco comum: udp ---


def cookie(key: bytes, host: str, port: int, period: int) -> str:
    """O código de um endereço num minuto: só o dono dele o recebe, só quem tem a chave o calcula.

    BLAKE2s com chave (RFC 7693) sobre o minuto (8 bytes, o maior primeiro), a porta (2) e o texto
    do endereço; dos 40 bits do resumo, os 35 primeiros, 5 por letra (base32, RFC 4648).
    """
    message = period.to_bytes(8, "big") + port.to_bytes(2, "big") + host.encode()
    digest = hashlib.blake2s(message, key=key, digest_size=5).digest()
    return base64.b32encode(digest).decode()[:CODE_SIZE]


def same(one: str, other: str) -> bool:
    """Iguais? Sem contar, pelo tempo que demora, até que letra (timing attack)."""
    return hmac.compare_digest(one.encode(), other.encode())


class Cookies:
    """Os códigos desta execução; nenhum se guarda: confere-se calculando de novo."""

    def __init__(self):
        self.key = secrets.token_bytes(32)

    def codes(self, source):
        """O deste minuto e o do anterior, que quem digita devagar ainda traz na mão."""
        period = int(time.monotonic() // COOKIE_PERIOD_S)
        host, port = source[:2]
        return [cookie(self.key, host, port, p) for p in (period, period - 1) if p >= 0]

    def proves(self, code, source):
        return any(same(code, valid) for valid in self.codes(source))

    def challenge(self, data, source):
        """A resposta a um desconhecido: o código, se o pediu. A um datagrama vazio, nada."""
        answers = HINTS
        if data.startswith(ENTER):
            code = self.codes(source)[0]
            answers = [text.format(code).encode() for text in (INVITE, "{}\n", "{}")]
        # A maior que não passa do que ele mandou.
        return next((text for text in answers if len(text) <= len(data)), b"")


# ---------------------------------------------------------------------------------------------
# 4. Chat: uma sala sem conexões
#
# O eco só conhece quem acaba de falar. Membro aqui é o endereço que se provou (parte 3), até se
# calar por um tempo: sem FIN, só o silêncio diz que alguém se foi. Quem ouve o quê é da Room (mais
# abaixo), que não sabe de socket; a linha volta também a quem a disse, o único sinal de que chegou.
# A quem um roteador mudou a porta, o código com que entrou devolve o apelido: /nick NOME CÓDIGO.

# Quem manda um datagrama à sala faz sair um por membro.
MAX_MEMBERS = 64
# Segundos de silêncio que a sala aceita.
IDLE_S = 120


def read_line(data: bytes) -> str:
    r"""A linha de um datagrama, sem o fim (\n, \r\n, \r\0) nem o que esconderia uma barra."""
    return reveal(data.decode("utf-8", "replace").rstrip("\r\n\0").strip())


class Member:
    """O que a sala sabe de um endereço, além do apelido."""

    def __init__(self, code):
        # O código com que ele entrou: só ele o recebeu, e com ele retoma o apelido.
        self.code = code
        # Quando falou por último, em time.monotonic().
        self.seen = 0.0


class Chat:
    """A sala por UDP: um datagrama é uma linha; vazio, quer dizer "continuo aqui"."""

    def __init__(self, send, idle_s, say):
        self.send = send
        self.idle_s = idle_s
        # Diz uma linha a quem opera o servidor.
        self.say = say
        self.cookies = Cookies()
        self.room = Room(echo=True)
        # Endereço -> Member: os mesmos da Room.
        self.members = {}

    def receive(self, data, source):
        data = bytes(data)
        code, line = self.split_code(read_line(data), source)
        if source not in self.members:
            if not code:
                return self.challenge(data, source)
            if not self.welcome(source, code):
                return None
        self.members[source].seen = time.monotonic()
        # Mede-se escapada, como seguirá: \x01 são quatro bytes.
        if len(escape(line[:LINE_LIMIT + 1]).encode()) > LINE_LIMIT:
            return self.tell(source, f"* erro: linha com mais de {LINE_LIMIT} bytes")
        return self.hear(source, line)

    def split_code(self, line, source):
        """(código, resto) de uma linha que começa por um código deste endereço, ou ("", linha)."""
        word, _, rest = line.partition(" ")
        code = word.upper()
        if len(code) != CODE_SIZE:
            return "", line
        # O seu, ainda que vencido, nunca é fala: quem o ouvisse tomaria o apelido.
        member = self.members.get(source)
        if self.cookies.proves(code, source) or (member and same(code, member.code)):
            return code, rest.strip()
        return "", line

    def challenge(self, data, source):
        answer = self.cookies.challenge(data, source)
        if answer:
            self.send(answer, source)

    def welcome(self, source, code):
        if len(self.members) >= MAX_MEMBERS:
            self.tell(source, f"* erro: a sala está cheia ({MAX_MEMBERS}); tente mais tarde")
            return False
        self.members[source] = Member(code)
        self.spread(self.room.enter(source))
        return True

    def hear(self, source, line):
        """Uma linha de quem já entrou; obey() é da sala, e não sabe de códigos."""
        command, text = parse_command(line)
        if command == "entrar":
            # De quem já entrou: é o apelido que quer, se diz algum.
            if not text:
                return None
            command = "nick"
            line = f"/nick {text}"
        nick, _, code = text.partition(" ")
        if command == "nick" and code and self.reclaim(source, nick, code):
            line = f"/nick {nick}"
        try:
            reply, told = obey(self.room, source, line)
        except ProtocolError as error:
            hint = ""
            if command == "nick" and nick_key(nick) in self.room.members:
                hint = f", ou, se é você: /nick {nick} e o código com que entrou"
            return self.tell(source, f"* erro: {error}{hint}")
        if source not in self.room.nicks:
            del self.members[source]
        if reply:
            self.send(reply.encode(), source)
        return self.spread(told)

    def reclaim(self, source, nick, code):
        """O dono do apelido, que mudou de porta, o retoma: o membro antigo sai. Devolve se saiu."""
        ghost = self.room.members.get(nick_key(nick))
        if ghost in (None, source):
            return False
        if not same(code.strip().upper(), self.members[ghost].code):
            return False
        self.leave(ghost, "* o seu código voltou por outra porta: esta saiu da sala")
        return True

    def leave(self, source, last_words):
        del self.members[source]
        self.tell(source, last_words)
        self.spread(self.room.leave(source))

    def tell(self, source, text):
        self.send((text + "\n").encode(), source)

    def spread(self, told):
        """Conta os eventos da sala: aos membros e, o que não é só de um, a quem a opera."""
        for hearers, event in told:
            text = to_line(event)
            if event.kind != "welcome" and not event.to:
                self.say(text)
            for source in hearers:
                self.tell(source, text)

    def close(self):
        for source in self.members:
            self.tell(source, "* o servidor encerrou; até logo")

    def tick(self):
        """Despede quem está calado há muito tempo; devolve os segundos até a próxima vez."""
        now = time.monotonic()
        quiet = [s for s, member in self.members.items() if now - member.seen > self.idle_s]
        words = f"* {self.idle_s:g} s de silêncio: você saiu da sala; para voltar, /entrar"
        for source in quiet:
            self.leave(source, words)
        return min(WAKE_S, self.idle_s)


# --- bloco comum: sala ---
# Bytes de uma linha, sem o fim. Em UDP, a frase que a repete cabe num quadro Ethernet.
LINE_LIMIT = 1024
ROOM_HELP = """\
* /nick NOME        muda o seu apelido
* /quem             mostra quem está na sala
* /msg NOME texto   fala só com um
* /me texto         conta o que você faz
* /sair             vai embora
* /ajuda            mostra isto
"""


# O nome de quem ainda não escolheu um.
VISITOR = re.compile("visitante([1-9][0-9]*)")


class ProtocolError(ValueError):
    """O outro lado não respeitou o protocolo; a mensagem é a que se envia a ele."""


class Event(typing.NamedTuple):
    """O que aconteceu na sala. Quem o conta a uma pessoa, na língua dela, é um dialeto.

    welcome  nick chegou, e é ele quem ouve     entered  nick chegou, e ouvem os outros
    named    nick é agora text, e ouve só ele   renamed  o mesmo, e ouvem os outros
    said     nick disse text                    left     nick foi embora
    acted    nick faz text (/me)                noticed  nick avisa text: robôs não respondem

    Com `to`, o que se disse foi só a ele.
    """

    kind: str
    nick: str
    text: str = ""
    to: str = ""


class Room:
    """Quem está na sala, e quem ouve o quê. Pura: sem bytes, trava, socket, relógio nem terminal.

    Um membro é qualquer chave de dicionário: um cliente, um endereço. Cada método devolve o que há
    para contar, na ordem: uma lista de pares (membros, evento). O que não pode é ProtocolError.
    """

    def __init__(self, echo=False):
        # Quem fala também se ouve? Sem conexão (UDP), só isto lhe mostra que a linha chegou.
        self.echo = echo
        # Membro -> apelido.
        self.nicks = {}
        # O que se compara de um apelido (nick_key) -> membro.
        self.members = {}
        # Abaixo deste, todos os números de visitante estão em uso: procurar sempre desde o 1, com
        # nove mil na sala, levaria milissegundos.
        self.first_free = 1

    def enter(self, member, nick=None):
        """Chega um membro; sem apelido, é um visitante com número."""
        if nick is None:
            while f"visitante{self.first_free}" in self.members:
                self.first_free += 1
            nick = f"visitante{self.first_free}"
        self.check(member, nick)
        others = list(self.nicks)
        self.nicks[member] = nick
        self.members[nick_key(nick)] = member
        return [([member], Event("welcome", nick)), (others, Event("entered", nick))]

    def leave(self, member):
        nick = self.nicks.pop(member)
        self.free(nick)
        return [(list(self.nicks), Event("left", nick))]

    def rename(self, member, wanted):
        self.check(member, wanted)
        nick = self.nicks[member]
        self.free(nick)
        self.members[nick_key(wanted)] = member
        self.nicks[member] = wanted
        told = [(self.hearers(member), Event("renamed", nick, wanted))]
        if not self.echo:
            told.insert(0, ([member], Event("named", nick, wanted)))
        return told

    def say(self, member, text, kind="said"):
        """Fala a todos. kind: "said", "acted" ou "noticed". Uma linha vazia não diz nada."""
        if not text:
            return []
        return [(self.hearers(member), Event(kind, self.nicks[member], text))]

    def whisper(self, member, to, text, kind="said"):
        """Fala só com quem tem o apelido `to`."""
        target = self.members.get(nick_key(to))
        if target is None or not text:
            raise ProtocolError(f"{escape(to) or 'quem?'} não está na sala, ou falta o texto")
        hearers = [target]
        if self.echo and target != member:
            hearers.append(member)
        return [(hearers, Event(kind, self.nicks[member], text, to))]

    def who(self):
        """Os apelidos, em ordem."""
        return sorted(self.nicks.values())

    def check(self, member, nick):
        """ProtocolError, se `nick` não serve ou já é de outro."""
        fault = nick_fault(nick)
        if fault:
            raise ProtocolError(fault)
        if self.members.get(nick_key(nick), member) != member:
            raise ProtocolError(f"{nick} já está na sala; escolha outro apelido")

    def free(self, nick):
        """O apelido já é de quem o quiser."""
        key = nick_key(nick)
        del self.members[key]
        visitor = VISITOR.fullmatch(key)
        if visitor:
            self.first_free = min(self.first_free, int(visitor[1]))

    def hearers(self, member):
        members = list(self.nicks)
        if not self.echo:
            members.remove(member)
        return members


# O dialeto de quem usa nc e telnet: um evento é uma linha, e uma barra começa um comando. O que
# veio da rede só segue viagem escapado: ninguém comanda o terminal de ninguém.
SPOKEN = {
    "welcome": "* bem-vindo à sala, {0.nick}. /ajuda mostra os comandos",
    "entered": "* {0.nick} entrou",
    "left": "* {0.nick} saiu",
    "named": "* agora você é {0.text}",
    "renamed": "* {0.nick} agora é {0.text}",
    "said": "<{0.nick}> {1}",
    "noticed": "<{0.nick}> {1}",
    "acted": "* {0.nick} {1}",
}
SPOKEN_APART = "<{0.nick} para {0.to}, em particular> {1}"


def to_line(event: Event) -> str:
    """Event("said", "ana", "oi") -> "<ana> oi", sem o fim de linha."""
    form = SPOKEN_APART if event.to else SPOKEN[event.kind]
    return form.format(event, escape(event.text))


def reveal(line: str) -> str:
    """A linha sem o que se esconde antes da barra, se ela começa por uma; se não, como veio.

    Um espaço, um Ctrl+D no telnet, a marca de UTF-8 do Windows, um espaço de largura zero: o
    segredo que vem depois da barra não pode virar fala.
    """
    bare = line
    while bare[:1] == " " or not bare[:1].isprintable():
        bare = bare[1:]
    if bare.startswith("/"):
        return bare
    return line


def parse_command(line: str) -> tuple:
    """`/msg ana oi` -> ("msg", "ana oi"); o que não começa por barra é fala: ("", linha)."""
    command = reveal(line)
    if not command.startswith("/"):
        return "", line
    name, _, rest = command[1:].partition(" ")
    return name.lower(), rest.strip()


def obey(room: Room, member, line: str) -> tuple:
    """Faz o que a linha pede: (o que responder a quem a disse, o que a sala conta)."""
    command, text = parse_command(line)
    if not command:
        return "", room.say(member, text)
    if command == "nick":
        return "", room.rename(member, text)
    if command == "msg":
        to, _, words = text.partition(" ")
        return "", room.whisper(member, to, words.strip())
    if command == "me":
        return "", room.say(member, text, "acted")
    if command == "quem":
        return f"* na sala: {', '.join(room.who())}\n", []
    if command == "sair":
        return "* até logo\n", room.leave(member)
    if command == "ajuda":
        return ROOM_HELP, []
    return f"* não conheço /{escape(command)}\n{ROOM_HELP}", []
# --- fim do bloco comum: sala ---


# --- bloco comum: apelido ---
# Caracteres de um apelido.
NICK_LIMIT = 20
# Ocupam lugar e não se veem, ou nem lugar ocupam: braile vazio, preenchimentos do hangul, seletores
# de variação.
INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164"
                       "\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# Querem dizer outra coisa numa linha de IRC (RFC 2812, 2.3.1), ou na da sala: canal, destino...
RESERVED = re.compile(r"[!@:,*?#&+~%$<>]|^/")


def nick_key(nick: str) -> str:
    """O que se compara: "Ana", "ana" e "ａｎａ" são um só, com o acento composto ou não (NFKC)."""
    folded = unicodedata.normalize("NFKC", nick).casefold()
    return unicodedata.normalize("NFKC", folded)


def nick_fault(nick: str) -> str:
    """Por que não serve de apelido; "" se serve."""
    shown = unicodedata.normalize("NFKC", nick)
    if not (nick and len(nick) <= NICK_LIMIT and len(shown) <= NICK_LIMIT) or " " in nick + shown:
        return f"um apelido tem de 1 a {NICK_LIMIT} caracteres visíveis, sem espaços"
    hidden = INVISIBLE.search(nick) or not (nick + shown).isprintable()
    if hidden or unicodedata.category(nick[0]).startswith("M"):
        return "um apelido só tem caracteres visíveis"
    if RESERVED.search(shown):
        return "um apelido não leva ! @ : , * ? # & + ~ % $ < > nem começa por /"
    return ""
# --- fim do bloco comum: apelido ---


# ---------------------------------------------------------------------------------------------
# 5. BadNetwork: uma rede ruim de propósito
#
# Dentro de uma máquina nada se perde nem troca de ordem, e o programa que só rodou nela falha na
# primeira rede sem fio. Esta fica entre o servidor e o socket e estraga o que sai: perde, duplica,
# atrasa. Com --semente, sempre com o mesmo azar: a falha que se viu uma vez se vê de novo.

# O que --atraso segura, em datagramas e em bytes: o resto se perde.
MAX_DELAYED = 8192
MAX_DELAYED_BYTES = 8 << 20


class Held(typing.NamedTuple):
    """Um datagrama à espera de sair."""

    # Em time.monotonic(); no mesmo instante, na ordem em que vieram.
    due: float
    order: int
    data: bytes
    source: tuple


class BadNetwork:
    """Um send() que nem sempre envia, nem na hora, nem uma vez só."""

    def __init__(self, send, args, guard):
        self.real_send = send
        self.guard = guard
        # De 0 a 1.
        self.loss = args.perda / 100
        self.twice = args.duplica / 100
        self.delay_s = args.atraso / 1000
        self.random = random.Random(args.semente)
        # Um heap de Held: o primeiro é o próximo a sair.
        self.held = []
        self.held_bytes = 0
        self.order = 0

    def send(self, data, source):
        # Os dois sorteios se fazem sempre: o azar de um não muda o dos seguintes.
        lost = self.random.random() < self.loss
        again = self.random.random() < self.twice
        if lost:
            self.guard.drop("perdido de propósito", source)
            return
        self.pass_on(data, source)
        # Em dobro só nesta máquina: pela rede, dois por um serviria para multiplicar um ataque.
        if again and is_loopback(source[0]):
            self.pass_on(data, source)

    def pass_on(self, data, source):
        if self.delay_s:
            self.hold(data, source)
        else:
            self.real_send(data, source)

    def hold(self, data, source):
        """Guarda de meio a um e meio atraso: variando, os datagramas também trocam de ordem."""
        due = time.monotonic() + self.delay_s * self.random.uniform(0.5, 1.5)
        full = len(self.held) == MAX_DELAYED
        if full or self.held_bytes + len(data) > MAX_DELAYED_BYTES:
            self.guard.drop("fila do atraso cheia", source)
            return
        self.order += 1
        self.held_bytes += len(data)
        heapq.heappush(self.held, Held(due, self.order, bytes(data), source))

    def tick(self):
        """Manda o que já esperou bastante; devolve os segundos até o próximo."""
        while self.held:
            wait = self.held[0].due - time.monotonic()
            if wait > 0:
                return wait
            ready = heapq.heappop(self.held)
            self.held_bytes -= len(ready.data)
            self.real_send(ready.data, ready.source)
        return WAKE_S


# ---------------------------------------------------------------------------------------------
# Em volta: a voz, a escuta, a casa e a linha de comando
#
# O que não é UDP. Entre cercas está o que outros scripts da coleção têm igual, byte por byte.

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

    # Sem o protocolo, ou só sem os endereços dele (disable_ipv6).
    if host == "::1" and (error.errno == errno.EADDRNOTAVAIL or not has_ipv6()):
        return f"esta máquina está sem IPv6. Em IPv4, só ela: {again('127.0.0.1', port)}"
    if ":" in host and not has_ipv6():
        return f"esta máquina está sem IPv6. Em IPv4, todo lugar: {again('0.0.0.0', port)}"
    fault = explain_host(error, host)
    if fault:
        return fault
    if error.errno == errno.EADDRINUSE:
        return (f"a porta {port} já está em uso em {host}. "
                f"Quem a usa: ss -lntup 'sport = :{port}'. "
                f"Outra porta: {again(host, port % 65535 + 1)}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return (f"a porta {port} é do administrador (abaixo de 1024). "
                f"Tente outra: {again(host, port + 5000)}")
    if error.errno == errno.EADDRNOTAVAIL:
        everywhere = "::" if ":" in host else "0.0.0.0"
        return (f"{host} não é um endereço desta máquina. Os dela: ip addr. "
                f"Todos de uma vez: {again(everywhere, port)}")
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


def bound_address(sock):
    """(endereço, porta) do socket, como se digitam: o de enlace, com a interface (fe80::1%eth0)."""
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    host, port = socket.getnameinfo(sock.getsockname(), numeric)
    return host, int(port)
# --- fim do bloco comum: escuta ---


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


# --- bloco comum: endereço ---
def host_name(text):
    """type= de um endereço IPv4 ou IPv6, ou de um nome; a quem errou, diz como se escreve."""
    if text.isdecimal() and (len(text) > 5 or int(text) > 65535):
        raise argparse.ArgumentTypeError(f"{text} não é um endereço nem uma porta (0 a 65535)")
    if text.isdecimal():
        again = typed("127.0.0.1", text, drop=(text, "127.0.0.1"))
        raise argparse.ArgumentTypeError(f"{text} parece uma porta, que vem "
                                         f"depois do endereço, sem opção: {again}")
    glued = re.fullmatch(r"\[(.+)\]:(\d+)|([^:]+):(\d+)", text)
    if glued:
        again = typed(*filter(None, glued.groups()), drop=(text,))
        raise argparse.ArgumentTypeError(f"{text}: endereço e porta são duas palavras: {again}")
    return text


port_number = number(int, 0, 65535, "uma porta")
# Um endereço de enlace sem a interface: cada uma tem uma rede fe80::/10 (RFC 4291, 2.5.6).
LINK_LOCAL = re.compile("(?i)fe[89ab].:[^%]*")


def explain_host(error, host):
    """O que há de errado com o endereço que se digitou; "" se o erro é de outra coisa."""
    code = getattr(error, "errno", None)
    address, _, zone = host.partition("%")
    if code == errno.EINVAL and LINK_LOCAL.fullmatch(host):
        return f"{host} só vale com a interface de saída: {host}%eth0 (as daqui: ip -br link)"
    if code == errno.EAFNOSUPPORT:
        return f"esta máquina está sem IPv6, e é nele que está {host}: use o endereço IPv4"
    if not isinstance(error, (socket.gaierror, UnicodeError)):
        return ""
    if ":" in address and zone:
        return f"não há aqui a interface {zone!r}, de {host}. As que há: ip -br link"
    if code == socket.EAI_AGAIN:
        return (f"não encontro a máquina {host!r}: o DNS não respondeu. "
                "A rede já está de pé? (ip addr)")
    return f"não encontro a máquina {host!r}: confira o nome, ou use um endereço como 127.0.0.1"
# --- fim do bloco comum: endereço ---


def open_socket(host, port):
    """socket() e bind(): não há listen(), porque não há conexões."""
    sock = bound_socket(host, port, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        # ENOBUFS onde o sistema recusa em vez de dar o que pode: fica o que havia.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, QUEUE_BYTES)
    sock.setblocking(False)
    return sock


def traced(arrow, function, note):
    """A mesma função, que antes mostra em stderr o que passa por ela (--verbose)."""
    def call(data, source):
        text = escape(bytes(data[:60]).decode("utf-8", "replace"))
        note(f"{arrow} {source[0]} porta {source[1]} {len(data)} B {text}")
        function(data, source)
    return call


def chosen_rate(args):
    """Datagramas por segundo de cada remetente; None: o padrão do eco."""
    if args.taxa == 0:
        return math.inf
    if args.taxa is None and args.modo == "chat":
        return CHAT_RATE
    return args.taxa


def build_server(sock, args, voice):
    """Encaixa as peças: socket <- rede ruim <- serviço. Devolve (Server, Chat ou None)."""
    guard = Guard(sock.getsockname()[:2], chosen_rate(args), voice.note)
    server = Server(sock, guard, args.maximo)
    send = server.send
    if args.verbose:
        send = traced("->", send, voice.note)
    if args.perda or args.duplica or args.atraso:
        network = BadNetwork(send, args, guard)
        send = network.send
        server.ticks.append(network.tick)
    server.answer = send
    chat = None
    if args.modo == "chat":
        chat = Chat(send, args.ocioso or math.inf, voice.say)
        server.ticks.append(chat.tick)
        server.answer = chat.receive
    if args.verbose:
        server.answer = traced("<-", server.answer, voice.note)
    return server, chat


def plural(count, word):
    """1 byte, 2 bytes."""
    if count == 1:
        return f"1 {word}"
    return f"{count} {word}s"


def totals(datagrams, octets, guard):
    """As contas do fim: o que chegou, e o que não teve resposta e por quê."""
    came = f"{plural(datagrams, 'datagrama')}, {plural(octets, 'byte')}"
    lines = [f"recebidos: {came}, de {plural(guard.sources, 'remetente')}",
             f"descartados: {sum(guard.dropped.values())}"]
    for why, count in sorted(guard.dropped.items()):
        lines.append(f"  {why}: {count}")
    return "\n".join(lines)


def explain_way(host, port, args):
    """O que digitar no outro terminal, e como abrir à rede."""
    if host in ("0.0.0.0", "::"):
        host = "ENDEREÇO-DESTA-MÁQUINA"
    hint = f"./cliente_udp.py {host} {port}"
    if args.modo == "chat":
        hint += " --apelido NOME"
    lines = [f"modo {args.modo}; em outro terminal: {hint}"]
    if is_loopback(host):
        everywhere = "::" if has_ipv6() else "0.0.0.0"
        again = typed(everywhere, port, drop=(args.endereco, str(args.porta)))
        lines.append(f"só esta máquina chega aqui; para abrir à rede: {again}")
    return "\n".join([*lines, "Ctrl+C mostra as contas"])


def serve(args):
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(open_socket(args.endereco, args.porta))
        # Sem quem leia a saída (`| head -1`), acaba pelo mesmo caminho do Ctrl+C.
        voice = Voice(lambda: signal.raise_signal(signal.SIGTERM))
        stack.callback(voice.close)
        server, chat = build_server(sock, args, voice)
        # Antes de haver quem receba o sinal, que deixaria aberto o socket de has_ipv6().
        host, port = bound_address(sock)
        way = explain_way(host, port, args)
        try:
            signal.signal(signal.SIGTERM, server.stop)
            signal.signal(signal.SIGINT, after_echo(server.stop))
            voice.say(f"escutando em {host} porta {port}")
            voice.note(way)
            server.run()
        except KeyboardInterrupt:
            # Antes das últimas palavras: acabar a pedido não é erro, nem que ninguém as leia.
            broken = voice.broken
            if chat:
                chat.close()
                voice.say("* o servidor encerrou; até logo")
            voice.say(totals(server.datagrams, server.octets, server.guard))
            return int(broken)


def build_parser():
    parser = Parser(description="Servidor UDP: eco ou sala de chat.",
                    epilog="Em outro terminal: ./cliente_udp.py")
    add = parser.add_argument
    add("endereco", nargs="?", default="127.0.0.1", type=host_name, metavar="ENDEREÇO",
        help="onde escutar: IPv4, IPv6 ou nome; :: é todo lugar (padrão: %(default)s)")
    add("porta", nargs="?", default=5050, type=port_number, metavar="PORTA",
        help="0 pede uma livre ao sistema (padrão: %(default)s)")
    add("--modo", choices=("eco", "chat"), default="eco", help="o serviço (padrão: eco)")
    add("--taxa", type=number(int, 0, 10**6, "datagramas por segundo"), metavar="N",
        help="datagramas por segundo que se aceitam de cada remetente; 0: sem limite (padrão: "
             f"{ECHO_RATE}, e sem limite desta máquina; {CHAT_RATE} no chat)")
    add("--maximo", type=number(int, 1, 65527, "bytes"), default=65527, metavar="B",
        help="recusa datagramas maiores que B bytes (padrão: %(default)s, todos)")
    add("--ocioso", type=number(float, 0, 10**6, "segundos"), default=IDLE_S, metavar="S",
        help="no chat, desliga quem passa S segundos calado; 0: nunca (padrão: %(default)s)")
    percent = number(float, 0, 100, "uma porcentagem")
    add("--perda", type=percent, default=0, metavar="P", help="perde P%% das respostas")
    add("--duplica", type=percent, default=0, metavar="P",
        help="dobra P%% delas (só a esta máquina)")
    add("--atraso", type=number(float, 0, 10000, "milissegundos"), default=0, metavar="MS",
        help="segura cada resposta MS milissegundos, metade a mais ou a menos")
    add("--semente", type=number(int, 0, 2**32, "um número"), metavar="N",
        help="repete o mesmo azar")
    add("--verbose", action="store_true", help="mostra em stderr cada datagrama")
    add("--version", action="version", version=f"%(prog)s {VERSION}",
        help="mostra a versão e sai")
    return parser


def main(argv=None):
    return run(build_parser, serve, argv)


if __name__ == "__main__":
    end_process(main())
