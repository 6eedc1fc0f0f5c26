#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Servidor TCP de eco, de chat e de HTTP, para muitos clientes ao mesmo tempo.

    ./servidor.py                em um terminal
    ./cliente.py                 em outro: cada linha digitada volta
    ./servidor.py --modo chat    uma sala; com --modo http, uma página para o navegador

        cliente                                servidor
                                               socket() bind() listen()
        socket() connect()  ----- SYN ----->
                            <-- SYN, ACK ---
                            ----- ACK ----->   accept(): um socket novo, só deste cliente
        send(b"oi\\n")       ---- dados ---->   recv() devolve b"oi\\n"
        recv()              <--- dados -----   send(b"oi\\n")
        shutdown(SHUT_WR)   ----- FIN ----->   recv() devolve b"": ele não enviará mais nada
        recv() devolve b""  <---- FIN ------   close()

O servidor ingênuo, que já atende:

    listener = socket.create_server(("127.0.0.1", 5050))
    while True:
        client, address = listener.accept()
        while data := client.recv(1024):
            client.sendall(data)
        client.close()

O que lhe falta, e quem o cura (o principal primeiro), na parte de mesmo número. No fim do arquivo,
sob o título "Em volta": a linha de comando, main(), e o que as partes já usam antes, como Failure
(um erro que se diz numa linha), reason() e escape().

     1  só sabe ecoar ................................ Echo, Service
     2  numa conversa, um recv() não é uma linha ..... LineBuffer, Telnet
     3  um cliente não fala com outro ................ Chat (envia), Room (quem ouve o quê)
     4  um navegador não o entende ................... Http (a página mostra o pedido dele)
     5  fecha, e um RST apaga o que acabou de dizer .. Client
     6  um espera o outro; na sala, quem não lê ...... ThreadEngine; Member, Postman (na sala)
     7  mil clientes custam mil threads .............. EpollEngine
     8  um cliente mudo guarda o lugar para sempre ... Deadlines (no eco, com --ocioso)
     9  sem descritores livres, morre no accept() .... Door (quem chega espera no kernel)
    10  um programa de IRC não entra na sala ......... Irc (outra língua da mesma sala)
    11  quem está no caminho lê tudo ................. TLSStream

O que ele não faz: guardar algo em disco, limitar a velocidade de um cliente e, sem --certificado,
cifrar a conversa.
"""
import _thread
import os
import sys

# Um Python incompleto (o python3-minimal do Debian) diz o que lhe falta, em vez de um traceback.
try:
    import argparse
    import collections
    import contextlib
    import errno
    import functools
    import html
    import io
    import ipaddress
    import re
    import select
    import selectors
    import shlex
    import signal
    import socket
    import struct
    import threading
    import time
    import traceback
    import typing
    import unicodedata
except ImportError as error:
    sys.exit(f"{os.path.basename(sys.argv[0])}: erro: este Python veio sem o módulo {error.name}. "
             "Instale-o inteiro: sudo apt install python3 (ou o de https://www.python.org)")

# Um Python compilado à mão sem o OpenSSL faz tudo, menos o TLS: tls_context() o diz.
try:
    import ssl
except ImportError:
    ssl = None

# ---------------------------------------------------------------------------------------------
# 1. Echo: um serviço diz o que fazer com os bytes
#
# O servidor ingênuo mistura duas perguntas: o que responder, e como esperar por muita gente.
# Aqui a primeira tem uma classe, e a segunda (partes 6 e 7) não sabe nada dela: qualquer serviço
# roda em qualquer motor.


class Service:
    """O que um motor chama.

    Um cliente (parte 5) tem name, send(), hang_up() e cut(); session, que é do serviço; e deadline,
    a hora em que se chama on_timeout(), ou None.
    """

    # Um cliente escreve a outro? Então ninguém pode ficar preso no send() de quem não lê, e o
    # serviço o faz um de cada vez, sob uma trava sua.
    shared = False
    # Mostra uma linha no terminal do servidor; serve() põe aqui o que não espera por ninguém.
    say = print

    def on_connect(self, client):
        """Chegou alguém."""

    def on_data(self, client, data):
        """Chegaram bytes (bytes ou memoryview), que só valem durante a chamada."""

    def on_timeout(self, client, why):
        """Passou do prazo. Quem tem o que dizer diz, e se despede; o eco não teria como."""
        client.cut()

    def on_close(self, client):
        """Não virá mais nada: acabou, caiu ou foi desligado."""


class Echo(Service):
    """Devolve cada byte (RFC 862)."""

    def on_data(self, client, data):
        client.send(data)


# Exercício: um serviço novo são três linhas. Ponha-o aqui, e o seu nome em SERVICES, no fim.
#
#     class Upper(Service):
#         def on_data(self, client, data):
#             client.send(bytes(data).upper())


# ---------------------------------------------------------------------------------------------
# 2. LineBuffer: um recv() não é uma linha
#
# O TCP entrega bytes, e não mensagens: o que um lado enviou de uma vez chega em pedaços, e o que
# enviou em pedaços chega junto. Um "ç" são dois bytes, e pode chegar pela metade. Por isso as
# linhas se juntam antes, e só se decodifica a que está completa. Entre elas, um telnet manda
# comandos seus, que começam por IAC (RFC 854) e não são de ninguém da conversa.

# Uma linha acaba em LF; estes outros fins viram LF: CR LF e, de quem está num telnet, CR NUL ou só
# CR (RFC 1123, 3.3.1).
LINE_END = re.compile(rb"\r[\n\0]?")
# IAC é 0xFF: IAC IAC é um 0xFF de verdade; com WILL, WONT, DO ou DONT vem uma opção; de SB a
# IAC SE, a conversa sobre uma; os outros comandos são de um byte só (RFC 854 e 1184). No fim, o
# que ficou pela metade. O grupo que se repete só começa em 0xFF: cada volta dele guarda de onde
# tentar de novo, e uma por byte custaria 300 vezes o que chegou.
TELNET_COMMAND = re.compile(rb"""\xff(?:
    (?P<literal>\xff)
  | (?P<verb>[\xfb-\xfe]) (?P<option>.)
  | \xfa [^\xff]* (?:\xff[^\xf0] [^\xff]*)* \xff\xf0
  | [\xec-\xf9]
  | (?P<cut>[\xfb-\xfe]? | \xfa [^\xff]* (?:\xff[^\xf0] [^\xff]*)* \xff?) \Z
)""", re.S | re.X)
# A um DO se responde WONT, a um WILL, DONT: "não uso nenhuma" (RFC 1143). O WONT TIMING-MARK é o
# que um telnet espera, mudo, depois de Ctrl+C (RFC 860).
TELNET_REFUSALS = {b"\xfd": b"\xff\xfc", b"\xfb": b"\xff\xfe"}


class LineBuffer:
    """Junta em linhas os pedaços que o TCP entrega."""

    # Sem um dicionário por objeto: há um destes por cliente. O mesmo nas outras classes que o têm.
    __slots__ = ("pending", "after_cr")

    def __init__(self):
        # A linha que ainda não acabou.
        self.pending = b""
        # O último byte foi um CR? Então o LF ou NUL que vier a seguir é do mesmo fim de linha.
        self.after_cr = False

    def feed(self, data):
        """Gera as linhas (str, sem o fim) que se completaram.

        A que passa de LINE_LIMIT bytes é ProtocolError (os dois, na parte 3), depois de ouvidas as
        boas antes dela.
        """
        data = bytes(data)
        if self.after_cr and data[:1] in (b"\n", b"\0"):
            data = data[1:]
            self.after_cr = False
        if data:
            self.after_cr = data.endswith(b"\r")
        data = self.pending + data
        if b"\r" in data:
            data = LINE_END.sub(b"\n", data)
        *lines, self.pending = data.split(b"\n")
        for line in lines:
            yield self.decode(line)
        # Só pelo limite: a que ainda não acabou também pode tê-lo passado.
        self.decode(self.pending)

    def decode(self, line):
        if len(line) > LINE_LIMIT:
            raise ProtocolError(f"linha com mais de {LINE_LIMIT} bytes")
        return line.decode("utf-8", "replace")


class Telnet:
    """Tira do meio do texto os comandos TELNET, cortados onde for."""

    __slots__ = ("held",)

    def __init__(self):
        # Um comando que ainda não chegou inteiro.
        self.held = b""

    def feed(self, data) -> tuple:
        """Devolve (o texto, o que responder a quem mandou os comandos)."""
        data = self.held + data
        self.held = b""
        if b"\xff" not in data:
            return data, b""
        answers = []

        def replace(found):
            if found["literal"]:
                return b"\xff"
            if found["cut"] is not None:
                self.held = found[0]
            elif found["verb"] in TELNET_REFUSALS:
                answers.append(TELNET_REFUSALS[found["verb"]] + found["option"])
            return b""

        text = TELNET_COMMAND.sub(replace, data)
        if len(self.held) > LINE_LIMIT:
            raise ProtocolError(f"comando TELNET com mais de {LINE_LIMIT} bytes")
        return text, b"".join(answers)


# ---------------------------------------------------------------------------------------------
# 3. Chat: um cliente fala com os outros
#
# Três perguntas, cada uma no seu lugar: quem está na sala e quem ouve o quê (Room, que é pura e
# serve também a UDP); como se diz isso na língua de cada um (um dialeto: as linhas daqui, o IRC da
# parte 10); e quem fala com o socket (Chat). Ninguém escolhe o dialeto numa opção: a primeira linha
# de um programa de IRC o denuncia, e a de um navegador também.

# Um programa fala assim que conecta, e uma pessoa lê antes. Por isso a saudação espera este
# instante, em segundos, e só então quem chegou está na sala: de um navegador, ela nem sabe, e de um
# programa de IRC já sabe o nome.
GREETING_S = 0.25
# Uma linha começada tem de acabar, em segundos: um byte por segundo não guarda um lugar para
# sempre.
LINE_TIMEOUT_S = 30


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


# Uma página qualquer da web pode mandar o navegador de quem a vê falar com esta porta, e o que ele
# manda, depois de cabeçalhos que ninguém lê, seriam linhas. A primeira de todas o entrega.
HTTP_LINE = re.compile(r"\S+ .*HTTP/\d.*")
# E de uma página https: é o começo de um aperto de mão (RFC 8446, 5.1), e as linhas, ao acaso.
TLS_HELLO = b"\x16\x03"
# Um programa de IRC começa por pedir as capacidades do servidor, ou por dizer quem é (RFC 2812,
# 3.1). Quem digita num nc pode escrever NICK; USER com quatro palavras, em seguida, não.
IRC_HELLO = re.compile(r"CAP LS( .*)?")
IRC_WHO = re.compile(r"(NICK|PASS) \S+ *")
IRC_USER = re.compile(r"USER( +\S+){3} +\S.*")
NOT_A_SITE = ("<p>Esta porta é uma sala de conversa, e não um site: entre com ./cliente.py, nc, "
              "telnet ou um programa de IRC.")


def recognize(lines: list) -> str:
    """Quem fala assim: "http", "irc" ou "linhas"; "" se as primeiras linhas ainda não o dizem."""
    if HTTP_LINE.fullmatch(lines[0]):
        return "http"
    introduced = all(map(IRC_WHO.fullmatch, lines[:-1]))
    if IRC_HELLO.fullmatch(lines[-1]) and introduced:
        return "irc"
    if len(lines) > 1 and introduced and IRC_USER.fullmatch(lines[-1]):
        return "irc"
    # PASS e NICK: mais do que isso ninguém diz antes de USER.
    if len(lines) <= 2 and introduced and IRC_WHO.fullmatch(lines[-1]):
        return ""
    return "linhas"


class Seat:
    """O que a sala guarda de cada cliente."""

    __slots__ = ("telnet", "lines", "opening", "dialect", "irc", "listed")

    def __init__(self, dialect):
        self.telnet = Telnet()
        self.lines = LineBuffer()
        # As primeiras linhas, enquanto não dizem que dialeto ele fala; depois, None.
        self.opening = []
        self.dialect = dialect
        # De quem fala IRC: em que pé está a apresentação, e quantos nomes já se lhe listaram na
        # leitura em curso.
        self.irc = None
        self.listed = 0


class Lines:
    """O dialeto de nc, telnet e cliente.py: texto em UTF-8, uma linha por vez."""

    def __init__(self, chat):
        self.chat = chat

    def farewell(self, why):
        """As últimas palavras."""
        return f"* erro: {why}; até logo\n".encode()

    def hear(self, client, line):
        """Uma linha que ele enviou."""
        room = self.chat.room
        try:
            answer, told = obey(room, client, line)
        except ProtocolError as error:
            answer = f"* erro: {error}\n"
            told = []
        self.chat.spread(told)
        if client not in room.nicks:
            client.hang_up(answer.encode())
        elif answer:
            client.send(answer.encode())


class Chat(Service):
    """Uma sala: o que um diz, todos leem.

        bytes  -->  Telnet  -->  LineBuffer  -->  dialeto  -->  Room
                                                                  |
        bytes  <--  send() de cada membro  <--  dialeto  <--  eventos
    """

    shared = True

    def __init__(self):
        self.room = Room()
        self.plain = Lines(self)
        self.irc = Irc(self)
        # No motor de threads, muitos chegam aqui ao mesmo tempo.
        self.lock = threading.RLock()

    def on_connect(self, client):
        client.session = Seat(self.plain)
        # Passado este prazo, on_timeout() saúda quem não se deu a conhecer.
        client.deadline = time.monotonic() + GREETING_S

    def on_data(self, client, data):
        with self.lock:
            seat = client.session
            seat.listed = 0
            # O da linha começada, se ela não acabar nesta leitura.
            deadline = client.deadline
            try:
                data, answer = seat.telnet.feed(data)
                if answer:
                    client.send(answer)
                if data.startswith(TLS_HELLO) and self.is_waiting(client):
                    raise ProtocolError("esta sala não fala TLS")
                for line in seat.lines.feed(data):
                    # Acabou; o que sobrar será de outra, com outro prazo.
                    deadline = None
                    # O que vem depois de um /sair já não conta.
                    if not client.closing:
                        self.hear(client, line)
            except ProtocolError as error:
                self.leave(client, str(error))
            # Quem espera pela saudação ainda tem o prazo dela.
            if not client.closing and not self.is_waiting(client):
                self.time_line(client, deadline)

    def time_line(self, client, deadline=None):
        """O prazo é da linha: começa no primeiro byte dela, e os seguintes não o renovam."""
        client.deadline = None
        if client.session.lines.pending:
            client.deadline = deadline or time.monotonic() + LINE_TIMEOUT_S

    def on_timeout(self, client, why):
        with self.lock:
            if self.is_waiting(client):
                self.enter(client)
            # QUIET (parte 8): passou --ocioso segundos parado.
            elif why == QUIET or client.is_late(time.monotonic()):
                self.finish_speech(client)
                self.leave(client, why)
            # Se não, falou enquanto se vinha dizer-lhe que demorou.

    def on_close(self, client):
        with self.lock:
            self.finish_speech(client)
            self.leave(client)

    def is_waiting(self, client):
        """Ainda não se sabe quem é, nem se saudou?"""
        return client.session.opening is not None and client not in self.room.nicks

    def enter(self, client, nick=None):
        """Uma pessoa, ao que parece: está na sala, e a saudação lhe diz com que nome."""
        self.spread(self.room.enter(client, nick))
        self.time_line(client)

    def introduce(self, client, lines):
        """Entra; quem começa por um /nick já com ele. Devolve as linhas que falta ouvir."""
        command, nick = parse_command(lines[0])
        if command == "nick":
            # Um apelido que não serve, ou é de outro, se recusa a quem já está na sala.
            with contextlib.suppress(ProtocolError):
                self.enter(client, nick)
                return lines[1:]
        self.enter(client)
        return lines

    def finish_speech(self, client):
        """Diz a última linha, de quem se foi sem terminá-la, e a que se guardava para entender."""
        seat = client.session
        if seat.lines.pending and not client.closing:
            self.on_data(client, b"\n")
        if seat.opening and not client.closing:
            self.hear_opening(client, "linhas")

    def hear(self, client, line):
        """Uma linha: as primeiras esperam até que se saiba em que dialeto vêm."""
        seat = client.session
        if seat.opening is None:
            seat.dialect.hear(client, line)
            return
        seat.opening.append(line)
        tongue = recognize(seat.opening)
        if tongue:
            self.hear_opening(client, tongue)

    def hear_opening(self, client, tongue):
        """Já se sabe como ele fala: ouvem-se as primeiras linhas."""
        seat = client.session
        lines = seat.opening
        seat.opening = None
        if tongue == "linhas":
            if client not in self.room.nicks:
                lines = self.introduce(client, lines)
        elif client in self.room.nicks:
            # Demorou a dizer quem é, e parecia um visitante.
            self.spread(self.room.leave(client))
        if tongue == "http":
            client.hang_up(http_response(lines[0], 400, "Isto não é um site", NOT_A_SITE))
            return
        if tongue == "irc":
            self.irc.greet(client)
        for line in lines:
            if not client.closing:
                seat.dialect.hear(client, line)

    def leave(self, client, why=""):
        """Sai da sala, e se despede; why é o que se lhe diz, se há o que dizer."""
        if client in self.room.nicks:
            self.spread(self.room.leave(client))
        if not client.closing:
            last = b""
            if why:
                last = client.session.dialect.farewell(why)
            client.hang_up(last)

    def spread(self, told):
        """Conta a cada um o que lhe cabe; o que é de todos, também ao terminal do servidor."""
        for members, event in told:
            line = to_line(event)
            if event.kind not in ("welcome", "named") and not event.to:
                self.say(line)
            # Escreve-se uma vez em cada dialeto, e não uma por membro; nas linhas, já está escrito.
            written = {self.plain: f"{line}\n".encode()}
            dialect = None
            for client in members:
                # Quem caiu só atrasaria os outros.
                if client.closing:
                    continue
                if client.session.dialect is not dialect:
                    dialect = client.session.dialect
                    if dialect not in written:
                        written[dialect] = dialect.write(event)
                    data = written[dialect]
                client.send(data)


# ---------------------------------------------------------------------------------------------
# 4. Http: um navegador também é um cliente
#
# Um pedido HTTP/1.1 é um cabeçalho em linhas, uma linha vazia e, às vezes, um corpo (RFC 9112). A
# resposta mostra o pedido ao navegador que o fez. Quem manda pela metade, ou o que não é HTTP,
# também tem resposta: o código diz o que houve (RFC 9110, 15).
#
# Simplificação: o corpo de um pedido é ignorado, e cada conexão serve a um pedido só.

# Bytes de um cabeçalho, como nos servidores de verdade.
HEADER_LIMIT = 16 * 1024
# Um navegador manda o cabeçalho de uma vez; o resto é alguém guardando um lugar. Em segundos.
HEADER_TIMEOUT_S = 10
# Quem recebe pode aceitar LF no lugar de CRLF, e pula linhas vazias antes do pedido (RFC 9112,
# 2.2).
HEAD_END = re.compile(rb"\r?\n\r?\n")
EMPTY_LINES = re.compile(rb"(?:\r?\n)+")
REQUEST_LINE = re.compile(r"([!#-'*+.^_`|~\w-]+) ([^\s\0]+) HTTP/(1\.[01])", re.ASCII)
HEADER = re.compile(r"([!#-'*+.^_`|~\w-]+):([^\0\r]*)", re.ASCII)
REASONS = {
    200: "OK",
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
}
# O CSP proíbe ao navegador executar ou buscar o que for, mesmo se um escape nos escapasse.
RESPONSE = """\
HTTP/1.1 {status} {reason}\r
Content-Type: text/html; charset=utf-8\r
Content-Length: {length}\r
Connection: close\r
X-Content-Type-Options: nosniff\r
Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r
\r
"""
PAGE = """\
<!doctype html>
<html lang=pt-BR>
<meta charset=utf-8>
<title>{title}</title>
<style>body{{font:1em sans-serif;margin:2em}}td{{padding:.2em 1em .2em 0;font:1em monospace}}
td+td{{word-break:break-all}}</style>
<h1>{title}</h1>
{body}
</html>
"""


def parse_request(head: bytes) -> tuple:
    """Cabeçalho (RFC 9112, 3) -> (método, alvo, [(nome, valor), ...]); ProtocolError se não é."""
    first, *rest = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    request = REQUEST_LINE.fullmatch(first)
    found = [HEADER.fullmatch(line) for line in rest]
    if not request or not all(found):
        raise ProtocolError("isto não é um pedido HTTP/1.1")
    method, target, version = request.groups()
    headers = [(header[1], header[2].strip(" \t")) for header in found]
    hosts = [value for name, value in headers if name.lower() == "host"]
    # Sem ele, ou com dois, cada um no caminho poderia entender um destino (RFC 9112, 3.2).
    if len(hosts) > 1 or version == "1.1" and not hosts:
        raise ProtocolError("um pedido HTTP/1.1 leva um campo Host, e um só")
    # Iguais e repetidos valem por um; desiguais, ninguém sabe onde acaba o corpo (RFC 9112, 6.3).
    sizes = {value for name, value in headers if name.lower() == "content-length"}
    if len(sizes) > 1 or not all(re.fullmatch("[0-9]+", size) for size in sizes):
        raise ProtocolError("Content-Length é um número, e um só")
    return method, target, headers


def http_response(request: str, status: int, title: str, body: str) -> bytes:
    """Resposta completa a um pedido, de que basta o começo: a HEAD não se manda a página."""
    page = PAGE.format(title=title, body=body).encode()
    head = RESPONSE.format(status=status, reason=REASONS[status], length=len(page)).encode("ascii")
    if request.startswith("HEAD "):
        return head
    return head + page


class Http(Service):
    """Responde a um navegador com uma página que mostra o pedido que ele fez."""

    def on_connect(self, client):
        client.session = bytearray()
        client.deadline = time.monotonic() + HEADER_TIMEOUT_S

    def on_data(self, client, data):
        head = client.session
        head += data
        # Em quem goteja, sem reler desde o começo: volta-se o que possa já ter vindo de \r\n\r\n.
        fresh = max(0, len(head) - len(data) - 3)
        empty = EMPTY_LINES.match(head)
        if empty:
            del head[:empty.end()]
            fresh = 0
        end = HEAD_END.search(head, fresh)
        size = end.start() if end else len(head)
        if size > HEADER_LIMIT:
            limit = f"<p>O limite é de {HEADER_LIMIT} bytes."
            self.answer(client, 431, "Cabeçalho grande demais", limit)
            return
        try:
            if end:
                self.show(client, *parse_request(head[:size]))
            elif b"\n" in head:
                # Quem não fala HTTP sabe disso já na primeira linha.
                self.check_first_line(head[:head.index(b"\n")])
        except ProtocolError as error:
            self.answer(client, 400, "Pedido inválido", f"<p>{error}")

    def check_first_line(self, line):
        if not REQUEST_LINE.fullmatch(line.decode("latin-1").rstrip("\r")):
            raise ProtocolError("isto não é um pedido HTTP/1.1")

    def on_timeout(self, client, why):
        # Pode ter sido atendido enquanto se vinha despedi-lo (ThreadEngine.expire).
        if not client.closing:
            self.answer(client, 408, "Tempo esgotado", f"<p>{why}")

    def show(self, client, method, target, headers):
        """A página que mostra o pedido."""
        asked = f"{method} {escape(target)}"
        self.say(f"{client.name} {asked}")
        if method == "CONNECT":
            # 200 quereria dizer "o túnel está aberto" (RFC 9110, 9.3.6).
            self.answer(client, 501, "Isto não é um proxy", "<p>CONNECT é um pedido a um proxy.")
            return
        rows = []
        for name, value in headers:
            rows.append(f"<tr><td>{html.escape(name)}<td>{html.escape(escape(value))}\n")
        page = (f"<p><code>{html.escape(asked)}</code>, de {html.escape(client.name)}\n"
                f"<table>\n{''.join(rows)}</table>")
        self.answer(client, 200, "O pedido que o seu navegador fez", page)

    def answer(self, client, status, title, body):
        """Responde e se despede: Connection: close."""
        request = bytes(client.session[:8]).decode("latin-1")
        client.hang_up(http_response(request, status, title, body))


# ---------------------------------------------------------------------------------------------
# 5. Client: despedir-se sem cortar a despedida
#
# Fechar um socket que ainda recebe responde ao outro com um RST, e o RST apaga no caminho o que
# acabamos de dizer. Por isso quem se despede envia o FIN (shutdown) e só fecha depois do FIN do
# outro, ou no prazo: RFC 9112, 9.6, e RFC 1122, 4.2.2.13.

# Quanto se espera o outro fechar, depois da despedida, enquanto ele não move byte nenhum.
LINGER_S = 5
# E quanto se espera por quem os move: o corpo de um pedido que chega devagar, uma leitura lenta.
FAREWELL_S = 60


class Client:
    """Um cliente, como os serviços o veem. Três palavras para o fim, e só estas:

        hang_up(last)   diz as últimas palavras, envia o FIN, e espera o dele ou o prazo
        cut()           é já: o que faltava dizer se perde
        release()       é do motor: fecha o descritor (Engine.release)

    Este envia na hora: send() só volta quando o kernel aceitou tudo, e isso freia quem manda mais
    do que lê. Os de baixo (Member, EpollClient) têm uma caixa de saída.
    """

    __slots__ = ("sock", "raw", "name", "session", "closing", "seen", "taken", "quiet_since",
                 "deadline", "last_deadline")

    def __init__(self, sock, name):
        # Com TLS, sock é o TLSStream, e raw o socket por baixo dele.
        self.sock = sock
        self.raw = sock
        self.name = name
        # O que o serviço guarda dele.
        self.session = None
        # Já nos despedimos: o que ele ainda enviar é jogado fora.
        self.closing = False
        # Para Deadlines (parte 8): enviou algo desde a última varredura?
        self.seen = True
        # Quantos bytes nossos já confirmou.
        self.taken = 0
        # A última varredura em que se viu que moveu algum byte.
        self.quiet_since = 0.0
        # A hora em que o serviço é avisado (on_timeout) ou, na despedida, a em que se desliga.
        self.deadline = None
        # Na despedida, a hora além da qual aquela não se adia.
        self.last_deadline = 0.0

    def send(self, data):
        self.sock.sendall(data)

    def is_late(self, now):
        """Passou do prazo?"""
        # Lido uma vez só: outra thread pode mudá-lo.
        deadline = self.deadline
        return deadline is not None and now > deadline

    def hang_up(self, last=b""):
        # O prazo vem antes: se ele não lê, é o que solta o send().
        now = time.monotonic()
        self.closing = True
        self.deadline = now + LINGER_S
        self.last_deadline = now + FAREWELL_S
        if last:
            self.send(last)
        self.finish()

    def finish(self):
        """Envia o FIN: não diremos mais nada."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            # Já tinha caído.
            pass

    def wait_delivery(self):
        """Espera que o que se enviou saia daqui. send() já esperou."""

    def cut(self):
        """Desliga sem fechar o descritor: quem espera neste socket acorda, e o fecha (release)."""
        self.closing = True
        with contextlib.suppress(OSError):
            # ENOTCONN ou EBADF: já tinha caído.
            self.raw.shutdown(socket.SHUT_RDWR)


# ---------------------------------------------------------------------------------------------
# 6. ThreadEngine: uma thread por cliente
#
# No servidor ingênuo o segundo cliente só é atendido quando o primeiro vai embora. Com uma thread
# para cada um, cada uma espera no seu recv(), e a conversa se lê de cima para baixo. Numa sala, em
# que um escreve a outro, ninguém espera no send() de quem não lê: um carteiro leva tudo.

# Bytes por leitura: menos idas ao kernel num fluxo grande; quem manda pouco não paga por isso.
CHUNK = 512 * 1024
# Os da primeira leitura: cada uma cria um objeto, e até uns 470 bytes ele não custa um malloc().
# Dobra a cada vez que se enche.
FIRST_CHUNK = 256
# Numa sala, quem cola mil linhas fala aos poucos, e os outros também são ouvidos: é o que cada um
# pode dizer por vez.
SHARED_CHUNK = 1024
# O que um cliente pode deixar de ler antes de ser desligado, em bytes: ao menos uma leitura.
OUTBOX_BYTES = CHUNK
# Numa sala, o que se junta para um membro antes de enviar sem esperar pelos outros, em bytes.
GATHER_BYTES = 64 * 1024
# Numa sala, a partir de quantos ouvintes vale a pena esperar que falem os que já têm o que dizer.
CROWD = 32
# Bytes de pilha por thread: o padrão reserva 8 MiB, e o Python 3.14 guarda para si 32 KiB dela.
STACK_SIZE = 256 * 1024
# Segundos, por thread, entre as vezes em que acorda quem espera pelo GIL, a trava com que só uma
# thread de Python anda por vez: acordando a cada 5 ms, 6 mil não fazem outra coisa.
SWITCH_S = 50e-6
# No fim, quantos segundos se espera pelas threads dos clientes.
STOP_GRACE_S = 1.5
# send() sem esperar. Onde não existe (Windows), quem espera é a thread do próprio membro.
DONT_WAIT = getattr(socket, "MSG_DONTWAIT", None)


class Engine:
    """O que os dois motores têm em comum. Quem entra é com a porta; quem demora, com os prazos."""

    def __init__(self, listeners, service, args):
        self.service = service
        self.args = args
        self.clients = set()
        self.door = Door(self, listeners)
        self.deadlines = Deadlines(self)
        self.stopping = False
        # Erros de programação vistos até agora; cada um acabou com um cliente.
        self.faults = 0
        # Diz uma linha em stderr; serve() põe aqui o que não espera por ninguém.
        self.note = functools.partial(print, file=sys.stderr)
        self.chunk = SHARED_CHUNK if service.shared else CHUNK
        # Um byte escrito em wake_w tira o motor da sua espera.
        self.wake_r, self.wake_w = socket.socketpair()
        self.wake_r.setblocking(False)
        self.wake_w.setblocking(False)
        if args.verbose:
            # Toda leitura passa antes por trace_data().
            service.on_data = functools.partial(self.trace_data, service.on_data)

    def trace(self, text):
        if self.args.verbose:
            self.note(text)

    def trace_data(self, on_data, client, data):
        text = escape(bytes(data[:60]).decode("utf-8", "replace"))
        self.trace(f"<- {client.name} {len(data)} B {text}")
        on_data(client, data)

    def guarded(self, client, call, *args):
        """Chama o serviço: um erro ali acaba com este cliente, e não com o servidor."""
        try:
            call(client, *args)
        except OSError:
            # Caiu.
            client.cut()
        except Exception:
            self.confess(client)

    # Avisa o serviço de que um cliente passou do prazo. Onde o aviso pode ter de esperar por ele, é
    # outra thread quem o dá: ThreadEngine.expire.
    expire = guarded

    def confess(self, client):
        """Um erro de programação: diz qual, e desliga o cliente em cujo trabalho apareceu."""
        self.faults += 1
        for line in traceback.format_exc().splitlines():
            self.note(escape(line))
        self.note(f"erro nosso (o {self.faults}º) ao atender {client.name}: só ele foi desligado")
        client.cut()

    def stop(self, *_):
        """Para o motor: é o tratador de SIGINT e SIGTERM, e se chama de qualquer thread."""
        self.stopping = True
        self.wake()

    def wake(self):
        """Tira o motor da sua espera, de qualquer thread; ele então chama on_wake()."""
        with contextlib.suppress(OSError):
            # Já há avisos demais, ou o motor já fechou: não é preciso outro.
            self.wake_w.send(b"\0")

    def on_wake(self):
        """Alguém bateu à porta, ou o relógio, ou um sinal."""
        try:
            self.wake_r.recv(FIRST_CHUNK)
        except BlockingIOError:
            # Sem aviso nenhum por ler, foi a porta.
            pass
        self.door.accept()
        self.deadlines.sweep_if_due()

    def release(self, client, why):
        """Fecha o descritor: abre-se um lugar. Se estava cheio, a porta volta a ser vigiada."""
        client.raw.close()
        self.clients.discard(client)
        self.trace(f"- {client.name} {why}")
        if len(self.clients) >= self.door.places - 1:
            self.wake()

    def close(self):
        self.door.close()
        self.wake_r.close()
        self.wake_w.close()


class ThreadEngine(Engine):
    """Uma thread por cliente, e esta, que abre a porta e confere os prazos."""

    def run(self):
        threading.stack_size(STACK_SIZE)
        self.share_one_cpu()
        if self.service.shared:
            self.postman = Postman(self)
            self.postman.start()
        self.deadlines.start()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self.wake_r, selectors.EVENT_READ)
                self.loop(selector)
        finally:
            self.part_with_all()

    def loop(self, selector):
        """Vigia a porta, enquanto há lugar, e os avisos de wake()."""
        watched = []
        while not self.stopping:
            listeners = self.door.open_listeners()
            if listeners != watched:
                # Encheu, ou abriu-se um lugar.
                for listener in watched:
                    selector.unregister(listener)
                for listener in listeners:
                    selector.register(listener, selectors.EVENT_READ)
                watched = listeners
            selector.select()
            self.on_wake()

    def share_one_cpu(self):
        """O GIL só deixa andar uma thread de Python por vez.

        Espalhadas por várias CPUs, passar a vez de uma a outra custa mais do que o trabalho
        (medido: 0,35 de um servidor em C; assim, 0,8 a 1). O TLS cifra sem o GIL.
        """
        has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        if self.args.tls or not has_gil or not hasattr(os, "sched_setaffinity"):
            return
        cpus = sorted(os.sched_getaffinity(0))
        with contextlib.suppress(OSError, AttributeError):
            # Um sandbox pode não deixar. SCHED_BATCH, do Linux: nem quem acorda toma a CPU de quem
            # tem o GIL.
            os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def part_with_all(self):
        """No fim, todos são desligados, e cada serviço tem tempo de ouvir que o seu se foi."""
        for client in list(self.clients):
            client.cut()
        deadline = time.monotonic() + STOP_GRACE_S
        while self.clients and time.monotonic() < deadline:
            time.sleep(STOP_GRACE_S / 100)

    def adopt(self, sock, name):
        """Um cliente novo: ganha a sua thread."""
        # No macOS e no Windows ele herda, de quem escuta, o não esperar.
        sock.setblocking(True)
        if self.service.shared:
            client = Member(sock, name, self.postman)
        else:
            client = Client(sock, name)
        self.clients.add(client)
        sys.setswitchinterval(max(0.005, SWITCH_S * len(self.clients)))
        try:
            # Thread.start() a esperaria nascer, e a fila não anda.
            _thread.start_new_thread(self.converse, (client,))
        except RuntimeError:
            # O sistema não dá mais threads: este se perde, e os próximos esperam na fila.
            self.door.places = max(1, len(self.clients) - 1)
            why = f"desligado: não há threads para mais de {self.door.places} clientes"
            self.release(client, why)

    def expire(self, *args):
        """A despedida de quem passou do prazo pode esperar por ele; a varredura, não."""
        if self.service.shared:
            # Ninguém espera num send(): é já, e não uma thread para cada um que chega calado.
            self.guarded(*args)
            return
        with contextlib.suppress(RuntimeError):
            # Não há threads agora: fica para a próxima varredura.
            threading.Thread(target=self.guarded, args=args, daemon=True).start()

    def converse(self, client):
        """A vida de um cliente, na sua thread."""
        why = "saiu"
        try:
            if self.args.tls:
                client.sock = TLSStream(client.raw, self.args.tls, server_side=True)
            self.service.on_connect(client)
            try:
                self.read_all(client, client.sock.recv, self.service.on_data)
            finally:
                self.service.on_close(client)
        except OSError as error:
            why = f"caiu: {reason(error)}"
        except Exception:
            why = "desligado: erro nosso"
            self.confess(client)
        # O que ainda lhe devemos segue, e só então o socket fecha.
        client.hang_up()
        client.wait_delivery()
        self.release(client, why)

    def read_all(self, client, recv, on_data):
        """Entrega ao serviço tudo o que ele enviar, até o FIN."""
        size = FIRST_CHUNK
        while True:
            data = recv(size)
            if not data:
                return
            if len(data) == size < self.chunk:
                size *= 2
            client.seen = True
            if not client.closing:
                on_data(client, data)


class Member(Client):
    """Numa sala: send() só põe na caixa, e o carteiro leva. Quem não lê enche a caixa, e é cortado.

    Quem põe o faz sob a trava do serviço; quem leva, sob a do membro. Cada conta tem um dono só.
    """

    __slots__ = ("postman", "box", "put", "sent", "called", "ended", "delivered", "lock",
                 "carrier", "bell")

    def __init__(self, sock, name, postman):
        super().__init__(sock, name)
        self.postman = postman
        # O que falta levar; e a conta dos bytes postos e dos levados.
        self.box = collections.deque()
        self.put = 0
        self.sent = 0
        # O carteiro já foi chamado, e ainda não veio?
        self.called = False
        # Não virá mais nada; e o FIN já foi, ou não há mais a quem enviá-lo.
        self.ended = False
        self.delivered = threading.Event()
        self.lock = threading.Lock()
        # A thread de quem não toma na hora, e o que a acorda.
        self.carrier = None
        self.bell = None

    def send(self, data):
        if self.put - self.sent > GATHER_BYTES:
            self.deliver()
            if self.put - self.sent > OUTBOX_BYTES:
                self.cut()
                return
        self.put += len(data)
        self.box.append(data)
        self.postman.call(self)

    def finish(self):
        self.ended = True
        self.postman.call(self)

    def wait_delivery(self):
        """Acaba sempre: quando a caixa esvazia, ou no prazo da despedida."""
        self.delivered.wait()

    def deliver(self):
        """Leva o que houver, sem esperar; quem não toma na hora ganha uma thread só dele."""
        with self.lock:
            if self.carrier:
                self.bell.set()
                return
            data = self.empty_box()
            try:
                if data:
                    data = data[self.send_now(data):]
                if not data and self.ended and not self.box:
                    super().finish()
                    self.delivered.set()
                elif data:
                    self.start_carrier(data)
            except OSError:
                self.abandon()

    def empty_box(self):
        pieces = []
        while self.box:
            pieces.append(self.box.popleft())
        return b"".join(pieces)

    def send_now(self, data):
        """Quantos bytes o kernel aceitou na hora. O TLS não sabe enviar sem esperar."""
        if DONT_WAIT is None or self.sock is not self.raw:
            return 0
        try:
            sent = self.raw.send(data, DONT_WAIT)
        except BlockingIOError:
            return 0
        self.sent += sent
        return sent

    def start_carrier(self, data):
        self.sent += len(data)
        self.bell = threading.Event()
        self.bell.set()
        self.carrier = threading.Thread(target=self.carry, args=(data,), daemon=True)
        try:
            self.carrier.start()
        except RuntimeError:
            # Não há mais threads.
            self.cut()
            self.abandon()

    def carry(self, data):
        """A thread de quem não toma na hora: ela espera, e ninguém mais."""
        try:
            while True:
                self.bell.wait()
                self.bell.clear()
                ended = self.ended
                fresh = self.empty_box()
                self.sent += len(fresh)
                data += fresh
                if data:
                    self.sock.sendall(data)
                    data = b""
                if ended and not self.box:
                    super().finish()
                    break
        except OSError:
            self.abandon()
        self.delivered.set()

    def abandon(self):
        """O que sobrou não espera na memória por quem se foi."""
        self.box.clear()
        self.delivered.set()


class Postman(threading.Thread):
    """Leva o que se disse numa sala: junta o que muitos disseram, e o entrega num send() só.

    Enquanto ele anda, os outros falam: quanto mais gente fala, mais linhas leva de cada vez.

        recv() de ana  --+                              +--> send() a ana
        recv() de bia  --+-->  caixas  -->  carteiro  --+--> send() a bia
        recv() de caio --+                              +--> caio não lê: uma thread o espera
    """

    def __init__(self, engine):
        super().__init__(daemon=True)
        self.engine = engine
        # Os membros que têm o que receber, por ordem de chamada.
        self.calls = collections.deque()
        self.bell = threading.Event()

    def call(self, member):
        if not member.called:
            member.called = True
            self.calls.append(member)
            if not self.bell.is_set():
                self.bell.set()

    def let_others_speak(self):
        """Quem já tem o que dizer diz antes, e vai tudo junto: 9 vezes mais linhas por segundo.

        A CPU é uma só (share_one_cpu): quem a cede volta depois de todos os que esperavam por ela;
        o sleep(0) solta o GIL, que eles também esperam.
        """
        if len(self.calls) >= CROWD and hasattr(os, "sched_yield"):
            os.sched_yield()
            time.sleep(0)

    def run(self):
        while True:
            self.bell.wait()
            self.let_others_speak()
            self.bell.clear()
            while self.calls:
                member = self.calls.popleft()
                # Antes de esvaziar a caixa: o que entrar nela de agora em diante o chama de novo.
                member.called = False
                try:
                    member.deliver()
                except Exception:
                    self.engine.confess(member)
                    member.abandon()


# ---------------------------------------------------------------------------------------------
# 7. EpollEngine: uma thread para todos
#
# Mil threads que esperam custam memória, e o GIL as faz passar a vez uma a uma. O epoll(7) espera
# por todos de uma vez: o kernel diz quem tem o que ler, ou onde escrever, e o resto nunca espera.
# Quem pensasse aqui faria todos esperarem: por isso um serviço só responde, e o TLS fica com as
# threads.

# Avisos por epoll_wait(): com mil clientes ocupados, listas curtas não saem do cache (medido: 5 %).
EVENTS = 64
# Numa sala, em quantas dessas listas se junta o que dizer a cada um, e quantas linhas, no máximo.
GATHER_ROUNDS = 4
GATHER_LINES = 64


class EpollClient(Client):
    """Nunca espera: o que não coube no kernel fica em `outbox` até o epoll dizer que cabe."""

    __slots__ = ("poller", "outbox", "eof")

    def __init__(self, sock, name, poller):
        super().__init__(sock, name)
        self.poller = poller
        # bytes enquanto vazia: quase nunca é preciso outra coisa.
        self.outbox = b""
        # Ele não enviará mais nada.
        self.eof = False

    def send(self, data):
        if not self.outbox:
            try:
                # Quase sempre cabe inteiro: não é preciso perguntar antes.
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                # Caiu; o epoll nos dirá.
                self.cut()
                return
            if sent == len(data):
                return
            self.outbox = bytearray()
            data = data[sent:]
            # Enquanto não aceitar o que pediu, não se lê mais dele.
            self.poller.modify(self.sock, select.EPOLLOUT)
        if len(self.outbox) > OUTBOX_BYTES:
            self.cut()
        else:
            self.outbox += data

    def post(self):
        """Envia o que se juntou na volta: aqui, nada se junta."""

    def finish(self):
        # Com algo na caixa, o FIN espera: ver EpollEngine.flush.
        if not self.outbox:
            super().finish()


class EpollMember(EpollClient):
    """Numa sala: o que uma volta do epoll tem a dizer a um membro vai num send() só."""

    __slots__ = ("gathered", "waiting")

    def __init__(self, sock, name, poller, waiting):
        super().__init__(sock, name, poller)
        self.gathered = []
        # Os membros que têm o que receber no fim da volta.
        self.waiting = waiting

    def send(self, data):
        gathered = self.gathered
        if not gathered:
            self.waiting.append(self)
        gathered.append(data)
        if len(gathered) == GATHER_LINES:
            self.post()

    def post(self):
        if self.gathered:
            data = b"".join(self.gathered)
            self.gathered.clear()
            EpollClient.send(self, data)

    def finish(self):
        self.post()
        super().finish()


class EpollEngine(Engine):
    """Um laço: o kernel diz de quem se pode ler, e onde se pode escrever.

    Sensível ao nível (level-triggered): o aviso se repete enquanto houver o que ler, ou lugar.
    """

    def run(self):
        self.poller = select.epoll()
        self.by_fd = {}
        # Os que o fim da volta ainda tem de atender: ver EpollMember.
        self.waiting = []
        # Quantas listas de avisos já se juntaram.
        self.rounds = 0
        self.listening = False
        # Este, e os que escutam, não são clientes.
        self.by_fd[self.wake_r.fileno()] = None
        self.poller.register(self.wake_r, select.EPOLLIN)
        self.mind_the_door()
        self.deadlines.start()
        try:
            self.loop()
        finally:
            for client in self.clients:
                client.sock.close()
            self.poller.close()

    def loop(self):
        """O caminho quente: cada evento de cada cliente passa aqui, e assim os nomes são locais."""
        poll = self.poller.poll
        by_fd = self.by_fd
        on_data = self.service.on_data
        writable = select.EPOLLOUT
        # Um só para todos: o que se lê é entregue antes da leitura seguinte.
        buffer = bytearray(self.chunk)
        data = view = memoryview(buffer)
        # Sem prazo, que custa 0,2 µs por volta: quem acorda o laço é Deadlines.tick().
        patience = None
        while not self.stopping:
            others = False
            events = poll(patience, EVENTS)
            for fd, event in events:
                client = by_fd[fd]
                if client is None:
                    others = True
                    continue
                try:
                    if event & writable:
                        self.flush(client)
                        continue
                    size = client.sock.recv_into(buffer)
                    if not size:
                        self.see_off(client, "saiu")
                        continue
                    # Mensagens do mesmo tamanho em seguida usam a mesma fatia.
                    if size != len(data):
                        data = view[:size]
                    client.seen = True
                    if not client.closing:
                        on_data(client, data)
                except BlockingIOError:
                    # Alarme falso.
                    pass
                except OSError as error:
                    self.lose(client, error)
                except Exception:
                    self.confess(client)
            if others:
                # No fim da volta: um descritor fechado nela não pode já ser de outro.
                self.on_wake()
            if self.waiting:
                patience = self.post(events)

    def post(self, events):
        """Entrega o que se juntou, ou junta mais, se há quem fale. Devolve o prazo do poll()."""
        self.rounds += 1
        if events and self.rounds < GATHER_ROUNDS and len(self.waiting) >= CROWD:
            # Zero: sem esperar por quem não falou.
            return 0
        for member in self.waiting:
            member.post()
        self.waiting.clear()
        self.rounds = 0
        return None

    def on_wake(self):
        super().on_wake()
        self.mind_the_door()

    def mind_the_door(self):
        """Sem lugar, nem se olha quem bate; e, dos que escutam, o epoll só fala se os conhece."""
        if self.listening == self.door.has_room():
            return
        self.listening = not self.listening
        for listener in self.door.listeners:
            if self.listening:
                self.by_fd[listener.fileno()] = None
                self.poller.register(listener, select.EPOLLIN)
            else:
                self.poller.unregister(listener)

    def adopt(self, sock, name):
        """Um cliente novo: o epoll passa a vigiá-lo."""
        sock.setblocking(False)
        if self.service.shared:
            client = EpollMember(sock, name, self.poller, self.waiting)
        else:
            client = EpollClient(sock, name, self.poller)
        self.clients.add(client)
        self.by_fd[sock.fileno()] = client
        self.poller.register(sock, select.EPOLLIN)
        self.guarded(client, self.service.on_connect)

    def flush(self, client):
        """Cabe mais: envia o que estava guardado e, quando acabar, volta a ler."""
        del client.outbox[:client.sock.send(client.outbox)]
        client.seen = True
        if client.outbox:
            return
        client.outbox = b""
        self.poller.modify(client.sock, select.EPOLLIN)
        if client.closing:
            client.finish()

    def lose(self, client, error):
        """Caiu: o que lhe devíamos já não chega."""
        client.outbox = b""
        self.see_off(client, f"caiu: {reason(error)}")

    def see_off(self, client, why):
        """Ele não enviará mais nada. O que lhe devemos ainda segue, e então se fecha."""
        if not client.eof:
            client.eof = True
            self.guarded(client, self.service.on_close)
        client.post()
        if not client.outbox:
            self.poller.unregister(client.sock)
            del self.by_fd[client.sock.fileno()]
            self.release(client, why)


# ---------------------------------------------------------------------------------------------
# 8. Deadlines: quem não se mexe não guarda o lugar
#
# No servidor ingênuo um cliente mudo ocupa para sempre quem o espera. Aqui cada espera tem prazo (a
# de quem só se cala, o de --ocioso). Vive quem move bytes, num sentido ou no outro: quem só lê,
# devagar, não está parado. E, numa sala, quem caiu sem se despedir (Wi-Fi que sumiu, cabo fora) é
# procurado pelo kernel: keepalive (RFC 9293, 3.8.4).

# De quanto em quanto tempo os prazos são conferidos, em segundos; e numa sala, onde o de quem
# chega é curto (GREETING_S).
TICK_S = 1.0
ROOM_TICK_S = 0.2
# Por que se expira: passou do prazo do que começou, ou do de --ocioso.
LATE = "demorou demais"
QUIET = "silêncio demais"
# Numa sala: segundos de silêncio até o kernel perguntar "está aí?", entre perguntas, e quantas.
KEEPALIVE_S = 30
KEEPALIVE_PAUSE_S = 10
KEEPALIVE_PROBES = 3
# E quantos segundos o que dissemos espera por uma confirmação.
UNCONFIRMED_S = 120
# Onde está tcpi_bytes_acked em struct tcp_info (linux/tcp.h): são 8 bytes, do 120 em diante.
TCP_INFO_SIZE = 128
BYTES_ACKED = struct.Struct("120xQ")


def bytes_taken(sock) -> int:
    """Quantos bytes o outro lado já confirmou, pelo kernel do Linux; nos outros, 0."""
    if sys.platform != "linux":
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    except OSError:
        # Outra thread acaba de fechá-lo.
        return 0
    if len(info) < TCP_INFO_SIZE:
        return 0
    return BYTES_ACKED.unpack(info)[0]


def look_for_ghosts(sock):
    """Liga o keepalive: quem some sem FIN deixa a sala, e o apelido, em um ou dois minutos."""
    options = {
        "TCP_KEEPIDLE": KEEPALIVE_S,
        "TCP_KEEPINTVL": KEEPALIVE_PAUSE_S,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": UNCONFIRMED_S * 1000,
    }
    with contextlib.suppress(OSError):
        # O macOS recusa, se ele já se foi.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Deadlines:
    """Confere os prazos dos clientes de um motor, de tempos em tempos."""

    def __init__(self, engine):
        self.engine = engine
        # Segundos que alguém pode passar parado; 0: para sempre.
        self.idle_s = engine.args.ocioso
        self.tick_s = ROOM_TICK_S if engine.service.shared else TICK_S
        self.due = False

    def start(self):
        threading.Thread(target=self.tick, daemon=True).start()

    def tick(self):
        """Numa thread que quase só dorme: pede a varredura."""
        while not self.engine.stopping:
            time.sleep(self.tick_s)
            self.due = True
            self.engine.wake()

    def sweep_if_due(self):
        if self.due:
            self.due = False
            self.sweep()

    def sweep(self):
        """A cada mensagem só se levanta a bandeira `seen`: ler o relógio custa mais."""
        now = time.monotonic()
        # A porta (parte 9) volta a tentar, se lhe tinham faltado descritores.
        self.engine.door.exhausted = False
        for client in list(self.engine.clients):
            if self.has_moved(client):
                client.quiet_since = now
                if client.closing and client.deadline:
                    client.deadline = min(now + LINGER_S, client.last_deadline)
            if client.is_late(now):
                self.expire(client, LATE)
            elif self.idle_s and now - client.quiet_since > self.idle_s:
                self.expire(client, QUIET)

    def has_moved(self, client):
        """Enviou, ou tomou, algum byte desde a última varredura?"""
        moved = client.seen
        client.seen = False
        if self.idle_s or client.closing:
            taken = bytes_taken(client.raw)
            if taken != client.taken:
                client.taken = taken
                moved = True
        return moved

    def expire(self, client, why):
        self.engine.trace(f"! {client.name}: acabou a espera por ele")
        if client.closing or client.session is None:
            client.cut()
        else:
            self.engine.expire(client, self.engine.service.on_timeout, why)


# ---------------------------------------------------------------------------------------------
# 9. Door: quem não cabe espera na fila
#
# Cada cliente custa um descritor, e eles acabam (ulimit -n): o servidor ingênuo morre num EMFILE.
# Aqui, sem lugar, ninguém chama accept(): quem chega espera na fila do kernel, sem recusa e sem
# gastar CPU, e entra quando um sai. accept(2) diz que erros passam e quais ficam.

# Conexões prontas que esperam o accept(); o kernel corta no seu próprio limite (somaxconn).
BACKLOG = 4096
# Descritores que não são de clientes: terminal, escuta, epoll, certificados.
FD_RESERVE = 16
# Clientes que cabem onde não há a quem perguntar quantos descritores se podem abrir (Windows).
PLACES_UNASKED = 4096
# O socket que escuta já não escuta (`ss -K`, por exemplo): não há mais a quem atender.
DEAF = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)


class Door:
    """Aceita quem bate, enquanto houver lugar."""

    def __init__(self, engine, listeners):
        self.engine = engine
        self.listeners = listeners
        for listener in listeners:
            listener.setblocking(False)
        # Clientes que cabem ao mesmo tempo.
        self.places = engine.args.max_clientes
        # Faltaram descritores, ou memória: até a próxima varredura, insistir é girar à toa.
        self.exhausted = False

    def has_room(self):
        return len(self.engine.clients) < self.places and not self.exhausted

    def open_listeners(self):
        """Os que vale a pena vigiar agora."""
        if self.has_room():
            return self.listeners
        return []

    def accept(self):
        """Aceita quem está na fila."""
        for listener in self.listeners:
            while self.has_room() and not self.engine.stopping:
                try:
                    sock, address = listener.accept()
                except BlockingIOError:
                    # A fila acabou.
                    break
                except ConnectionError:
                    # Este desistiu na fila: vem o próximo.
                    continue
                except OSError as error:
                    if error.errno in DEAF:
                        raise Failure(f"o socket que escuta se foi ({reason(error)})")
                    self.exhausted = True
                    continue
                self.let_in(sock, address)

    def let_in(self, sock, address):
        """Quem --permitir deixa vira cliente do motor; os outros são fechados, sem uma palavra."""
        engine = self.engine
        if not address:
            # O macOS perde o endereço de quem já se foi.
            engine.trace("! quem batia já se foi, e não se sabe quem era")
            sock.close()
            return
        name = "{} porta {}".format(*address)
        if not is_allowed(address[0], engine.args.permitir):
            engine.trace(f"! {name} recusado: fora das redes de --permitir")
            sock.close()
            return
        engine.trace(f"+ {name} conectou ({len(engine.clients) + 1})")
        if engine.service.shared:
            look_for_ghosts(sock)
            with contextlib.suppress(OSError):
                # Sem isto o kernel guardaria mais alguns MiB para cada um que não lê.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, OUTBOX_BYTES)
        engine.adopt(sock, name)

    def close(self):
        for listener in self.listeners:
            listener.close()


def is_allowed(host, networks):
    """O endereço pertence a uma das redes (nenhuma: todas)?"""
    if not networks:
        return True
    ip = ipaddress.ip_address(host.partition("%")[0])
    # Um IPv4 chega a um socket IPv6 como ::ffff:1.2.3.4.
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in network for network in networks)


def raise_fd_limit():
    """Sobe o limite de descritores até onde deixam, e devolve quantos clientes cabem nele."""
    try:
        # Só no Unix.
        import resource
    except ImportError:
        return PLACES_UNASKED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        # O macOS anuncia um limite que não deixa pedir.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(1, soft - FD_RESERVE)


# ---------------------------------------------------------------------------------------------
# 10. Irc: outro dialeto da mesma sala
#
# Um programa de IRC (irssi, WeeChat, um robô) quer números no lugar de frases, e só aparece na tela
# de alguém depois de apresentado: NICK, USER e, se pediu as capacidades (CAP LS), CAP END. A sala é
# a mesma: aqui os eventos viram linhas da RFC 2812, e as linhas, pedidos à sala. Há um canal só,
# e nele se entra sem pedir.

# Uma linha de IRC, com CR LF, tem no máximo tantos bytes (RFC 2812, 2.3).
IRC_LINE = 512
CHANNEL = "#sala"
TOPIC = "a mesma sala de nc, telnet e ./cliente.py; quem está nela: /names"
# Os limites, como os diz a resposta 005 (RPL_ISUPPORT, que a RFC não tem). PREFIX não é verdade,
# pois ninguém tem @ nem +; mas vazio derruba robôs feitos com a biblioteca irc, do Python.
IRC_LIMITS = (f"CHANTYPES=# CHANLIMIT=#:1 CHANNELLEN={len(CHANNEL)} PREFIX=(ov)@+ "
              f"NICKLEN={NICK_LIMIT} CASEMAPPING=ascii MAXTARGETS=1 NETWORK=sala")
# Nomes que se listam, numa leitura, a quem pede; aos pedidos colados que passam disso responde-se
# 263: mil WHO, numa sala de mil, fariam todos esperar 5 s.
LISTED_NAMES = 1000
# O que se pode pedir antes de se apresentar; o resto é 451.
BEFORE_ENTERING = ("CAP", "NICK", "USER", "PASS", "PING", "PONG", "QUIT")
# Quantas palavras pede cada comando; menos do que isso é 461.
IRC_WORDS = {
    "USER": 4,
    "JOIN": 1,
    "PART": 1,
    "MODE": 1,
    "WHOIS": 1,
    "TOPIC": 1,
}
IRC_VERBS = {
    "said": "PRIVMSG",
    "acted": "PRIVMSG",
    "noticed": "NOTICE",
}
# As respostas numeradas (RFC 2812, 5): o número é para o programa, a frase para quem o usa.
IRC_REPLIES = {
    1: "esta é a sala, e o seu programa a mostra como um canal",
    2: "quem a serve é servidor.py",
    3: "ela não guarda o que se diz",
    263: "espere um pouco, e peça outra vez",
    315: "é o fim da lista",
    318: "é só o que se sabe",
    321: "gente",
    323: "é só este",
    332: TOPIC,
    366: "é o fim da lista",
    368: "ninguém está banido",
    401: "não está na sala",
    403: f"aqui só há {CHANNEL}",
    404: f"você saiu da sala; para voltar, JOIN {CHANNEL}",
    409: "falta o que devolver",
    410: "não conheço este CAP",
    411: "falta dizer a quem",
    412: "falta o texto",
    421: "não conheço este comando",
    422: "não há mensagem do dia",
    431: "falta o apelido",
    442: "você não está nele",
    451: "apresente-se antes: NICK e USER",
    461: "faltam palavras",
    462: "você já se apresentou",
    482: "aqui não há operadores",
    502: "os modos de cada um são dele",
}


def parse_irc(line: str) -> tuple:
    """`PRIVMSG #sala :oi, tudo bem` -> ("PRIVMSG", ["#sala", "oi, tudo bem"]) (RFC 2812, 2.3.1)."""
    if line.startswith(":"):
        # Quem fala é quem está do outro lado, diga o que disser.
        line = line.partition(" ")[2]
    head, colon, last = line.partition(" :")
    command, *params = head.split() or [""]
    if colon:
        params.append(last)
    return command.upper(), params


def cut_text(text: str, size: int) -> list:
    """Pedaços de até `size` bytes em UTF-8, sem partir um caractere."""
    pieces = []
    data = text.encode()
    while len(data) > size:
        end = size
        # 10xxxxxx é o meio de um caractere (RFC 3629, 3).
        while data[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(data[:end])
        data = data[end:]
    return [*pieces, data]


def irc_line(text: str) -> bytes:
    """Uma linha, cortada no limite."""
    return cut_text(text, IRC_LINE - 2)[0] + b"\r\n"


def irc_speech(prefix: str, text: str, suffix: str = "") -> bytes:
    """Uma fala em quantas linhas for preciso."""
    limit = IRC_LINE - 2 - len((prefix + suffix).encode())
    lines = []
    for piece in cut_text(text, limit):
        lines.append(prefix.encode() + piece + suffix.encode() + b"\r\n")
    return b"".join(lines)


class Introduction:
    """Em que pé está a apresentação de um programa de IRC."""

    __slots__ = ("nick", "user", "negotiating", "done")

    def __init__(self):
        self.nick = ""
        self.user = ""
        # Pediu as capacidades, e ainda não disse CAP END.
        self.negotiating = False
        self.done = False


class Irc:
    """O dialeto de quem usa um programa de IRC (RFC 2812). A apresentação, com o irssi:

        CAP LS 302           ---->
                             <----  :sala CAP * LS :              não temos nenhuma
        CAP END              ---->
        NICK ana             ---->
        USER ana 0 * :Ana    ---->
                             <----  :sala 001 ana :...            e 002 a 005, e 422
                             <----  :ana!ana@sala JOIN #sala      entrou, sem pedir
                             <----  :sala 353 ana = #sala :...    quem está; 366 é o fim
        PRIVMSG #sala :oi    ---->                                no nc: <ana> oi

    Cada do_COMANDO recebe o cliente e as palavras que vieram depois do comando.
    """

    def __init__(self, chat):
        self.chat = chat
        self.room = chat.room

    # Eventos viram linhas.

    def write(self, event):
        """O evento em bytes, os mesmos para todos os que falam IRC."""
        nick = event.nick
        source = f":{nick}!{nick}@sala"
        if event.kind == "welcome":
            return irc_line(f"{source} JOIN {CHANNEL}") + self.describe_channel(nick)
        if event.kind == "entered":
            return irc_line(f"{source} JOIN {CHANNEL}")
        if event.kind == "left":
            return irc_line(f"{source} QUIT :saiu")
        if event.kind in ("named", "renamed"):
            return irc_line(f"{source} NICK :{event.text}")
        prefix = f"{source} {IRC_VERBS[event.kind]} {event.to or CHANNEL} :"
        if event.kind == "acted":
            return irc_speech(f"{prefix}\x01ACTION ", escape(event.text), "\x01")
        return irc_speech(prefix, escape(event.text))

    def farewell(self, why):
        """As últimas palavras: ERROR, e quem ouve fecha (RFC 2812, 3.7.4)."""
        return irc_line(f"ERROR :{why}")

    def describe_channel(self, nick):
        """O que se vê ao entrar: o assunto, e quem já está."""
        return irc_line(f":sala 332 {nick} {CHANNEL} :{TOPIC}") + self.list_names(nick)

    def list_names(self, nick):
        """353, em quantas linhas couber, e 366."""
        prefix = f":sala 353 {nick} = {CHANNEL} :"
        limit = IRC_LINE - 2 - len(prefix.encode())
        rows = [[]]
        size = 0
        for name in self.room.who():
            width = len(name.encode()) + 1
            if size + width > limit:
                rows.append([])
                size = 0
            size += width
            rows[-1].append(name)
        lines = [irc_line(prefix + " ".join(row)) for row in rows]
        lines.append(irc_line(f":sala 366 {nick} {CHANNEL} :{IRC_REPLIES[366]}"))
        return b"".join(lines)

    # Linhas viram pedidos.

    def greet(self, client):
        """Percebeu-se que ele fala IRC: só entra na sala depois de apresentado."""
        client.session.dialect = self
        client.session.irc = Introduction()

    def nick_of(self, client):
        """Como chamá-lo numa resposta: quem ainda não tem nome é "*"."""
        return self.room.nicks.get(client) or client.session.irc.nick or "*"

    def tell(self, client, number, text):
        """Uma resposta só a ele."""
        client.send(irc_line(f":sala {number} {self.nick_of(client)} {text}"))

    def reply(self, client, number, *words, text=None):
        """Uma resposta numerada; o que se repete do pedido vai escapado.

        text: a frase, quando não é a de sempre.
        """
        repeated = ""
        for word in words:
            # Um espaço no meio dela faria duas.
            repeated += escape(word.replace(" ", "_") or "*") + " "
        if text is None:
            text = IRC_REPLIES[number]
        self.tell(client, f"{number:03}", f"{repeated}:{text}")

    def hear(self, client, line):
        """Uma linha que ele enviou: acha o do_COMANDO, ou diz por que não."""
        command, params = parse_irc(line)
        if not command:
            return
        handler = getattr(self, f"do_{command.lower()}", None)
        if not client.session.irc.done and command not in BEFORE_ENTERING:
            self.reply(client, 451)
        elif handler is None:
            self.reply(client, 421, command)
        elif len(params) < IRC_WORDS.get(command, 0):
            self.reply(client, 461, command)
        else:
            handler(client, params)

    def do_cap(self, client, params):
        """As capacidades do IRCv3: a sala não tem nenhuma, e o diz, ou o irssi espera sem fim."""
        state = client.session.irc
        verb = "".join(params[:1]).upper()
        if verb in ("LS", "REQ"):
            # Negociando, 001 espera o CAP END.
            state.negotiating = True
        if verb in ("LS", "LIST"):
            self.tell(client, "CAP", f"{verb} :")
        elif verb == "REQ":
            refused = escape(" ".join(params[1:]))
            self.tell(client, "CAP", f"NAK :{refused}")
        elif verb == "END":
            state.negotiating = False
            self.introduce(client)
        else:
            self.reply(client, 410, verb)

    def do_nick(self, client, params):
        """Escolhe o apelido, antes de entrar ou depois."""
        state = client.session.irc
        wanted = "".join(params[:1])
        fault = nick_fault(wanted)
        if not wanted:
            self.reply(client, 431)
        elif fault:
            self.reply(client, 432, wanted, text=fault)
        elif client in self.room.nicks:
            self.take_nick(client, wanted, self.room.rename)
            state.nick = self.room.nicks[client]
        elif self.take_nick(client, wanted, self.room.check):
            if state.done:
                client.send(irc_line(f":{state.nick}!{state.nick}@sala NICK :{wanted}"))
            state.nick = wanted
            self.introduce(client)

    def take_nick(self, client, wanted, request):
        """Pede o apelido à sala: 433 se é de outro. Deu certo?"""
        try:
            self.chat.spread(request(client, wanted) or [])
        except ProtocolError as error:
            self.reply(client, 433, wanted, text=str(error))
            return False
        return True

    def do_user(self, client, params):
        """A outra metade da apresentação; o nome de verdade não interessa à sala."""
        state = client.session.irc
        if state.done:
            self.reply(client, 462)
            return
        state.user = params[0]
        self.introduce(client)

    def do_pass(self, client, params):
        """A sala não tem senha: qualquer uma serve."""

    def introduce(self, client):
        """Apresentado, entra na sala; se lhe tomaram o apelido nesse meio-tempo, que diga outro."""
        state = client.session.irc
        if state.done or state.negotiating or not state.nick or not state.user:
            return
        try:
            told = self.room.enter(client, state.nick)
        except ProtocolError as error:
            self.reply(client, 433, state.nick, text=str(error))
            state.nick = ""
            return
        state.done = True
        for number in (1, 2, 3):
            self.reply(client, number)
        self.tell(client, "004", f"sala servidor.py-{VERSION} o n")
        self.tell(client, "005", f"{IRC_LIMITS} :são os limites daqui")
        self.reply(client, 422)
        self.chat.spread(told)

    def do_motd(self, client, params):
        """Sem ela o pydle não se dá por apresentado: responde-se que não há."""
        self.reply(client, 422)

    def do_ping(self, client, params):
        """O programa pergunta se ainda estamos aqui: devolve-se o que veio, igual."""
        if params:
            client.send(irc_line(f":sala PONG sala :{escape(params[-1])}"))
        else:
            self.reply(client, 409)

    def do_pong(self, client, params):
        """A sala não pergunta nada: quem caiu, o kernel descobre (parte 8)."""

    def is_channel(self, client, name):
        """É o nosso canal? 403 se não."""
        if name.lower() == CHANNEL:
            return True
        self.reply(client, 403, name)
        return False

    def do_join(self, client, params):
        """Quem já está não precisa de resposta; quem saiu com PART volta."""
        if params[0] == "0":
            self.do_part(client, [CHANNEL])
            return
        for name in params[0].split(","):
            if self.is_channel(client, name) and client not in self.room.nicks:
                self.take_nick(client, client.session.irc.nick, self.room.enter)

    def do_part(self, client, params):
        """Sai da sala, mas não do servidor: não ouve mais nada até um JOIN."""
        for name in params[0].split(","):
            if not self.is_channel(client, name):
                continue
            nick = self.nick_of(client)
            if client not in self.room.nicks:
                self.reply(client, 442, CHANNEL)
                continue
            self.chat.spread(self.room.leave(client))
            client.send(irc_line(f":{nick}!{nick}@sala PART {CHANNEL}"))

    def do_privmsg(self, client, params):
        self.speak(client, params, "said", self.reply)

    def do_notice(self, client, params):
        # A um aviso não se responde, nem com um erro: dois robôs não parariam (RFC 2812, 3.3.2).
        self.speak(client, params, "noticed", lambda *_: None)

    def speak(self, client, params, kind, refuse):
        """Fala a todos ou a um só; /me chega como uma fala entre dois \\x01 (CTCP ACTION)."""
        to = "".join(params[:1])
        text = "".join(params[1:2])
        if kind == "said" and text.startswith("\x01ACTION "):
            kind = "acted"
            text = text[len("\x01ACTION "):].rstrip("\x01")
        if not to:
            refuse(client, 411)
        elif not text:
            refuse(client, 412)
        elif client not in self.room.nicks:
            refuse(client, 404, to)
        elif to.lower() == CHANNEL:
            self.chat.spread(self.room.say(client, text, kind))
        elif nick_key(to) in self.room.members:
            self.chat.spread(self.room.whisper(client, to, text, kind))
        elif to.startswith("#"):
            refuse(client, 403, to)
        else:
            refuse(client, 401, to)

    def may_list(self, client, command):
        """Cabe nesta leitura mais uma lista de quem está? 263 se não."""
        seat = client.session
        if seat.listed >= LISTED_NAMES:
            self.reply(client, 263, command)
            return False
        seat.listed += len(self.room.nicks)
        return True

    def do_names(self, client, params):
        nick = self.nick_of(client)
        if params and params[0].lower() != CHANNEL:
            self.reply(client, 366, params[0])
        elif self.may_list(client, "NAMES"):
            client.send(self.list_names(nick))

    def do_who(self, client, params):
        """Quem está, um por linha; ou um só."""
        mask = "".join(params[:1]) or CHANNEL
        found = []
        if mask.lower() in (CHANNEL, "*"):
            if not self.may_list(client, "WHO"):
                return
            found = self.room.who()
        elif nick_key(mask) in self.room.members:
            found = [self.room.nicks[self.room.members[nick_key(mask)]]]
        asker = self.nick_of(client)
        lines = []
        for name in found:
            shown = f"{CHANNEL} {name} sala sala {name} H :0 {name}"
            lines.append(irc_line(f":sala 352 {asker} {shown}"))
        if lines:
            client.send(b"".join(lines))
        self.reply(client, 315, mask)

    def do_whois(self, client, params):
        """Tudo o que a sala sabe de alguém, que é pouco. 318 vem sempre: o pydle espera por ele."""
        wanted = params[-1]
        member = self.room.members.get(nick_key(wanted))
        if member is None:
            self.reply(client, 401, wanted)
        else:
            name = self.room.nicks[member]
            self.tell(client, "311", f"{name} {name} sala * :{name}")
            self.tell(client, "319", f"{name} :{CHANNEL}")
            self.tell(client, "312", f"{name} sala :servidor.py")
        self.reply(client, 318, wanted)

    def do_mode(self, client, params):
        """Os modos do canal, ou os de quem pergunta: ninguém os muda."""
        target = params[0]
        changes = "".join(params[1:2]).lstrip("+-")
        if nick_key(target) == nick_key(self.nick_of(client)):
            self.tell(client, "221", "+")
        elif nick_key(target) in self.room.members:
            self.reply(client, 502)
        elif not self.is_channel(client, target):
            return
        elif not changes:
            self.tell(client, "324", f"{CHANNEL} +n")
        elif changes == "b":
            self.reply(client, 368, CHANNEL)
        else:
            self.reply(client, 482, CHANNEL)

    def do_topic(self, client, params):
        """O assunto do canal, que é sempre o mesmo."""
        if not self.is_channel(client, params[0]):
            return
        if len(params) > 1:
            self.reply(client, 482, CHANNEL)
        else:
            self.reply(client, 332, CHANNEL)

    def do_list(self, client, params):
        """Os canais do servidor."""
        self.reply(client, 321, "Canal")
        self.tell(client, "322", f"{CHANNEL} {len(self.room.nicks)} :{TOPIC}")
        self.reply(client, 323)

    def do_quit(self, client, params):
        """Despede-se na hora: o irssi esperaria o prazo dele."""
        self.chat.leave(client, "até logo")


# ---------------------------------------------------------------------------------------------
# 11. TLSStream: quem está no caminho não lê nem muda
#
# Sem cifra, cada máquina do caminho lê tudo e pode responder no lugar do servidor. Com
# --certificado, cada cliente confere com quem fala, e os bytes seguem cifrados (TLS, RFC 8446).

# Segundos para o aperto de mão: um cliente TLS mudo não pode guardar um lugar.
HANDSHAKE_TIMEOUT_S = 5


# --- bloco comum: tls ---
# O que attempt() devolve se a operação só acaba com bytes que ainda estão na rede.
NEEDS_BYTES = object()


class TLSStream:
    """Uma conexão TLS com recv(), sendall() e shutdown(), para duas threads: uma lê, outra escreve.

    O OpenSSL quer uma thread por vez em cada sessão. Por isso ele não toca no socket: cifra e
    decifra em memória, sob uma trava, e toda espera pela rede é fora dela.
    """

    def __init__(self, sock, context, **options):
        self.raw = sock
        # O que veio da rede, e o que vai para ela.
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **options)
        # Uma thread por vez na sessão; e, para enviar, uma por vez do cifrar ao send().
        self.lock = threading.Lock()
        self.writing = threading.Lock()
        # Decifrado antes da hora por shutdown(), à espera de um recv(); no fim, talvez um erro.
        self.early = []
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        while self.attempt(self.tls.do_handshake) is NEEDS_BYTES:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            self.feed()
        sock.settimeout(None)

    def attempt(self, operation, *args):
        """Roda a operação em memória e envia o que ela produziu; NEEDS_BYTES se falta o que ler."""
        try:
            with self.lock:
                try:
                    return operation(*args)
                except ssl.SSLWantReadError:
                    return NEEDS_BYTES
                finally:
                    produced = self.outgoing.pending
        finally:
            # Mesmo num erro: é o alerta que diz ao outro lado por que não deu certo. b"": nada a
            # cifrar, só a enviar.
            if produced:
                self.sendall(b"")

    def feed(self):
        data = self.raw.recv(CHUNK)
        with self.lock:
            if data:
                self.incoming.write(data)
            else:
                self.incoming.write_eof()

    def decrypt(self, size):
        try:
            return self.tls.read(size)
        except ssl.SSLZeroReturnError:
            # Despediu-se (close_notify). Um fim sem despedida é SSLEOFError: pode ter sido cortado.
            return b""

    def next_piece(self, size):
        if not self.early:
            return self.decrypt(size)
        piece = self.early.pop(0)
        if isinstance(piece, ssl.SSLError):
            raise piece
        return piece

    def recv(self, size):
        """Como socket.recv(): b"" é o fim; SSLEOFError, um fim sem close_notify (RFC 8446, 6.1)."""
        while True:
            data = self.attempt(self.next_piece, size)
            if data is not NEEDS_BYTES:
                return data
            self.feed()

    def sendall(self, data):
        # O que se cifra primeiro tem de sair primeiro.
        with self.writing:
            with self.lock:
                if data:
                    self.tls.write(data)
                data = self.outgoing.read()
            self.raw.sendall(data)

    def shutdown(self, how):
        """Envia o close_notify, que no TLS diz "não enviarei mais nada"; ler, ainda se pode."""
        # Sob uma trava só: o que a outra thread trouxesse entre os dois passos se perderia.
        with self.lock:
            try:
                # Antes, põe a salvo o que já chegou: unwrap() jogaria fora.
                while not self.early or self.early[-1]:
                    self.early.append(self.decrypt(CHUNK))
            except ssl.SSLWantReadError:
                # Não chegou mais nada.
                pass
            except ssl.SSLError as error:
                # Um alerta dele (falta um certificado): interessa a quem lê.
                self.early.append(error)
            with contextlib.suppress(ssl.SSLError):
                # WANT_READ: o dele ainda não veio, mas o nosso já vai.
                self.tls.unwrap()
        self.sendall(b"")
# --- fim do bloco comum: tls ---


# ---------------------------------------------------------------------------------------------
# Em volta: a voz do servidor, os arquivos do TLS, a escuta, a casa
#
# O que não é deste servidor só. Entre cercas está o que outros scripts da coleção têm igual, byte
# por byte.

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


# --- bloco comum: contexto ---
# SSL_OP_IGNORE_UNEXPECTED_EOF, que o Python 3.8 e o 3.9 ligam com o OpenSSL 3: um fim sem
# close_notify passaria por despedida.
IGNORE_UNEXPECTED_EOF = 0x80


def tls_context(server, certificate=None, key=None, ca=None, verify=True):
    """Contexto de TLS 1.2 ou mais novo, ou Failure. server: é o de quem atende?

    ca: arquivo de em quem se confia. Num servidor, exige dos clientes um certificado; num cliente,
    vale no lugar das autoridades do sistema. verify=False: cifra, mas não confere com quem fala.
    """
    def no_prompt():
        raise Failure(f"a chave de {key or certificate} tem senha. Uma cópia sem ela: "
                      f"openssl pkey -in {shlex.quote(key or certificate)} -out chave-aberta.pem")

    if ssl is None:
        raise Failure("este Python não tem o módulo ssl, e sem ele não há TLS. O do sistema tem: "
                      "sudo apt install python3 (e quem compila um: libssl-dev)")
    for path in filter(None, (certificate, key, ca)):
        with open(path, "rb"):
            # Só para que o erro diga qual dos arquivos não se deixa ler.
            pass
    try:
        purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
        context = ssl.create_default_context(purpose, cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options &= ~IGNORE_UNEXPECTED_EOF
        if certificate:
            context.load_cert_chain(certificate, key, no_prompt)
    except ssl.SSLError as error:
        raise Failure(explain_pem(error, certificate, key, ca)) from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif server and ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def explain_pem(error, certificate, key, ca):
    """O que há de errado com os arquivos, que o OpenSSL diz em código."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"a chave de {key or certificate} não é a do certificado {certificate}"
    if certificate and not key and b"PRIVATE KEY" not in open_bytes(certificate):
        return f"{certificate} não traz a chave privada: diga onde ela está, com --chave ARQUIVO"
    files = ", ".join(filter(None, (ca, certificate, key)))
    return f"{files}: não são um certificado e a chave dele, em PEM. O README mostra como criá-los"


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def tls_name(host):
    """O nome que se confere no certificado: sem a interface (%eth0), sem o ponto final do DNS."""
    return host.partition("%")[0].rstrip(".")
# --- fim do bloco comum: contexto ---


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


# ---------------------------------------------------------------------------------------------
# Em volta: a linha de comando
#
# As opções, o que elas recusam, e o contexto TLS que pedem.

# O que se escolhe em --modo e em --motor.
SERVICES = {"eco": Echo, "chat": Chat, "http": Http}
ENGINES = {"threads": ThreadEngine, "epoll": EpollEngine}


def network(text):
    """type= de uma rede em notação CIDR: 192.168.1.0/24, fe80::/10, ou um endereço só."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        example = "use, por exemplo, 192.168.1.0/24"
        raise argparse.ArgumentTypeError(f"{text!r} não é uma rede: {example}")


def build_parser():
    parser = Parser(description="Servidor TCP: eco, chat e HTTP.",
                    epilog="Em outro terminal: ./cliente.py")
    add = parser.add_argument
    add(
        "endereco",
        nargs="?",
        default="127.0.0.1",
        type=host_name,
        metavar="ENDEREÇO",
        help="onde escutar: IPv4, IPv6 ou nome; :: é todo lugar (padrão: %(default)s)",
    )
    add(
        "porta",
        nargs="?",
        default=5050,
        type=port_number,
        metavar="PORTA",
        help="0 pede uma livre ao sistema (padrão: %(default)s)",
    )
    add_service_options(add)
    add_limits(add)
    add_tls_options(add)
    add(
        "--verbose",
        action="store_true",
        help="mostra em stderr cada conexão e o que chega por ela",
    )
    add(
        "--version",
        action="version",
        version=f"%(prog)s {VERSION}",
        help="mostra a versão e sai",
    )
    return parser


def add_service_options(add):
    """O que o servidor faz, e como."""
    add(
        "--modo",
        choices=tuple(SERVICES),
        default="eco",
        help="o serviço: eco, sala de chat (nc, cliente.py e IRC) ou HTTP (padrão: eco)",
    )
    add(
        "--motor",
        choices=tuple(ENGINES),
        default="threads",
        help="uma thread por cliente, ou uma para todos, no Linux (padrão: threads)",
    )


def add_limits(add):
    """Quem entra, quantos, e por quanto tempo."""
    add(
        "--max-clientes",
        type=number(int, 1, 10**6, "um número"),
        default=10**6,
        metavar="N",
        help="os que passam disso esperam na fila (padrão: o que os descritores permitem)",
    )
    add(
        "--ocioso",
        type=number(float, 0, 10**6, "segundos"),
        default=0,
        metavar="S",
        help="desliga quem passa S segundos sem enviar nem ler; 0: nunca (padrão: 0)",
    )
    add(
        "--permitir",
        type=network,
        action="append",
        metavar="REDE",
        help="só atende esta rede, como 192.168.1.0/24; pode repetir",
    )


def add_tls_options(add):
    """Com quem se fala, e que ninguém mais ouça."""
    add(
        "--certificado",
        metavar="ARQUIVO",
        help="liga o TLS, com este certificado (PEM)",
    )
    add(
        "--chave",
        metavar="ARQUIVO",
        help="a chave dele, se não está no mesmo arquivo",
    )
    add(
        "--ca-clientes",
        metavar="ARQUIVO",
        help="exige dos clientes um certificado desta autoridade",
    )


def load_tls(args):
    """O contexto TLS que as opções pedem; None sem elas."""
    if not (args.certificado or args.chave or args.ca_clientes):
        return None
    if not args.certificado:
        build_parser().error("--chave e --ca-clientes só valem junto de --certificado")
    if args.motor == "epoll":
        build_parser().error("TLS só com --motor threads: no epoll, o aperto de mão de um cliente "
                             "pararia os outros")
    return tls_context(True, args.certificado, args.chave, args.ca_clientes)


# ---------------------------------------------------------------------------------------------
# Em volta: abrir a porta, dizer como se chega a ela, e atender
#
# O socket que escuta é nosso, ou do systemd. A primeira linha em stdout diz onde; as outras, o que
# digitar na outra máquina: é o que falta a quem subiu o servidor e não sabe o endereço dele.

def outside_addresses(family):
    """Por onde outra máquina chega a esta. O connect() de UDP não envia nada: pergunta a rota."""
    # Endereços reservados para exemplos (RFC 5737 e 3849).
    probes = (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")
    for probe_family, probe in probes:
        if family not in (probe_family, socket.AF_INET6):
            continue
        with contextlib.suppress(OSError), socket.socket(probe_family, socket.SOCK_DGRAM) as sock:
            sock.connect((probe, 9))
            yield sock.getsockname()[0]


def inherited_listeners():
    """Os sockets que o systemd já abriu, do descritor 3 em diante (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "0")
    listeners = []
    for fd in range(3, 3 + int(count if count.isdigit() else 1)):
        listener = None
        with contextlib.suppress(OSError):
            # O descritor não existe, ou não é um socket: a frase é a mesma.
            listener = socket.socket(fileno=os.dup(fd))
            listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listening and listener.family in (socket.AF_INET, socket.AF_INET6):
                listeners.append(listener)
                continue
        for sock in filter(None, [listener, *listeners]):
            sock.close()
        raise Failure(f"LISTEN_FDS promete um socket TCP à escuta no descritor {fd}, e não é o que "
                      "há lá. Na unidade .socket do systemd: ListenStream=5050")
    return listeners


def open_listener(host, port):
    """socket(), bind() e listen()."""
    listener = bound_socket(host, port, socket.SOCK_STREAM)
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        # Entre o bind() e o listen(), outro programa tomou a porta.
        listener.close()
        raise Failure(explain_bind(error, host, port))
    return listener


def explain_way(listener, args):
    """Como chegar aqui: de outra máquina, se dá; se não, como abrir à rede."""
    host, port = bound_address(listener)
    ip = ipaddress.ip_address(host.partition("%")[0])
    if ip.is_loopback:
        everywhere = "::" if has_ipv6() else "0.0.0.0"
        again = typed(everywhere, port, drop=(args.endereco, str(args.porta)))
        return f"só esta máquina chega aqui; para abrir à rede: {again}"
    if args.permitir and all(net.is_loopback for net in args.permitir):
        return "só esta máquina chega aqui: --permitir não deixa entrar outra"
    addresses = [host]
    if ip.is_unspecified:
        addresses = [address for address in outside_addresses(listener.family)
                     if is_reachable(address, args.permitir)]
    if not addresses:
        return "de outra máquina: veja o endereço desta com ip addr"
    options = " --tls" if args.tls else ""
    ways = [f"./cliente.py {address} {port}{options}" for address in addresses]
    if "%" in host:
        ways[0] += " (depois do %, a interface de lá)"
    return "de outra máquina: " + "\n              ou: ".join(ways)


def is_reachable(address, networks):
    """Alguma das redes que podem entrar fala a família deste endereço, de fora desta máquina?"""
    version = ipaddress.ip_address(address.partition("%")[0]).version
    others = [net for net in networks or () if not net.is_loopback]
    return not networks or any(net.version == version for net in others)


def announce(listeners, args, voice):
    """A primeira linha diz onde escuta; as outras, em stderr, como chegar aqui."""
    for listener in listeners:
        host, port = bound_address(listener)
        voice.say(f"escutando em {host} porta {port}")
    voice.note(f"modo {args.modo}, motor {args.motor}")
    if args.permitir:
        voice.note(f"só atende {', '.join(map(str, args.permitir))}")
    for listener in listeners:
        voice.note(explain_way(listener, args))


def serve(args):
    """Junta as peças: quem escuta, o serviço, o motor e a voz; e atende até SIGTERM ou Ctrl+C."""
    if args.motor == "epoll" and not hasattr(select, "epoll"):
        raise Failure("--motor epoll só existe no Linux. Aqui: ./servidor.py --motor threads")
    args.tls = load_tls(args)
    args.max_clientes = min(args.max_clientes, raise_fd_limit())
    listeners = inherited_listeners() or [open_listener(args.endereco, args.porta)]
    service = SERVICES[args.modo]()
    engine = ENGINES[args.motor](listeners, service, args)
    voice = Voice(engine.stop)
    service.say = voice.say
    engine.note = voice.note
    signal.signal(signal.SIGTERM, engine.stop)
    signal.signal(signal.SIGINT, after_echo(engine.stop))
    # Acorda até quem ia começar a esperar.
    signal.set_wakeup_fd(engine.wake_w.fileno(), warn_on_full_buffer=False)
    try:
        announce(listeners, args, voice)
        engine.run()
    finally:
        signal.set_wakeup_fd(-1)
        engine.close()
        voice.close()
    return int(voice.broken)


def main(argv=None):
    return run(build_parser, serve, argv)


if __name__ == "__main__":
    end_process(main())
