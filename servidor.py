#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Servidor TCP de eco, de chat e de HTTP: uma thread por cliente, ou uma thread para todos com epoll().

    ./servidor.py                em um terminal
    ./cliente.py                 em outro: cada linha digitada volta

        cliente                                servidor
                                               socket() bind() listen()
        socket() connect()  ----- SYN ----->
                            <-- SYN, ACK ---
                            ----- ACK ----->   accept(): um socket novo, só deste cliente
        send(b"oi\\n")       ---- dados ---->   recv() devolve b"oi\\n"
        recv()              <--- dados -----   send(b"oi\\n")
        shutdown(SHUT_WR)   ----- FIN ----->   recv() devolve b"": ele não enviará mais nada
        recv() devolve b""  <---- FIN ------   close()

Duas ideias, cada uma no seu lugar:

    um serviço diz o que fazer com os bytes       Echo, Chat, Http
    um motor diz como esperar por muita gente     ThreadEngine, EpollEngine

Qualquer serviço roda em qualquer motor, e um serviço novo são poucas linhas:

    class Upper(Service):
        def on_data(self, client, data):
            client.send(bytes(data).upper())

O que ele não faz: guardar algo em disco, limitar a velocidade de um cliente e, sem --certificado, cifrar a conversa.
"""
import _thread
import argparse
import contextlib
import errno
import functools
import html
import io
import ipaddress
import os
import re
import select
import selectors
import shlex
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
import typing
import unicodedata

CHUNK = 512 * 1024  # bytes por leitura: menos idas ao kernel num fluxo grande; quem manda pouco não paga por isso
FIRST_CHUNK = 256  # no motor de threads cada leitura aloca: sem malloc() até uns 470 bytes; dobra para quem a enche
SHARED_CHUNK = 4 * 1024  # numa sala, quem cola mil linhas fala aos poucos, e os outros também são ouvidos
EVENTS = 64  # avisos por epoll_wait(): com mil clientes ocupados, listas curtas não saem do cache (medido: 5 % a mais)
BACKLOG = 4096  # conexões prontas que esperam o accept(); o kernel corta no seu próprio limite (somaxconn)
STACK_SIZE = 256 * 1024  # bytes de pilha por thread: o padrão reserva 8 MiB, e o Python 3.14 guarda para si 32 KiB dela
SWITCH_S = 50e-6  # por thread: quem espera pelo GIL acorda a cada tanto; a cada 5 ms, 6 mil não fazem outra coisa
TICK_S = 1.0  # de quanto em quanto tempo os prazos são conferidos
STOP_GRACE_S = 1.5  # no fim, quanto se espera pelas threads dos clientes
FD_RESERVE = 16  # descritores que não são de clientes: terminal, escuta, epoll, certificados
HANDSHAKE_TIMEOUT_S = 5  # um cliente TLS mudo não pode guardar um lugar
LINGER_S = 5  # depois da despedida, quanto se espera o outro fechar; fechar antes dele perderia a despedida (RST)
OUTBOX_BYTES = CHUNK  # o que um cliente pode deixar de ler antes de ser desligado; ao menos uma leitura
CONSOLE_BYTES = 1 << 20  # texto à espera de um terminal parado (Ctrl+S); as linhas que passam disso se perdem
LINE_TIMEOUT_S = 30  # uma linha começada tem de acabar: um byte por segundo não guarda um lugar para sempre
HEADER_LIMIT = 16 * 1024  # bytes do cabeçalho HTTP, como nos servidores de verdade
HEADER_TIMEOUT_S = 10  # um navegador manda o cabeçalho de uma vez; o resto é alguém guardando um lugar


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


# Protocolos: bytes entram, bytes saem. Nenhum socket daqui até os serviços.

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


class ProtocolError(ValueError):
    """O outro lado não respeitou o protocolo; a mensagem é a que se envia a ele."""


class Event(typing.NamedTuple):
    """O que aconteceu na sala. Quem o conta a uma pessoa, na língua dela, é um dialeto.

    welcome  nick chegou, e é ele quem ouve     entered  nick chegou, e ouvem os outros
    named    nick é o seu novo apelido          renamed  nick mudou o apelido para text
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

    def enter(self, member, nick=None):
        """Chega um membro; sem apelido, é um visitante com número."""
        if nick is None:
            numbered = map("visitante{}".format, range(1, len(self.nicks) + 2))
            nick = next(name for name in numbered if name not in self.members)
        self.check(member, nick)
        others = list(self.nicks)
        self.nicks[member] = nick
        self.members[nick_key(nick)] = member
        return [([member], Event("welcome", nick)), (others, Event("entered", nick))]

    def leave(self, member):
        nick = self.nicks.pop(member)
        del self.members[nick_key(nick)]
        return [(list(self.nicks), Event("left", nick))]

    def rename(self, member, wanted):
        self.check(member, wanted)
        nick = self.nicks[member]
        del self.members[nick_key(nick)]
        self.members[nick_key(wanted)] = member
        self.nicks[member] = wanted
        told = [(self.hearers(member), Event("renamed", nick, wanted))]
        if not self.echo:
            told.insert(0, ([member], Event("named", wanted)))
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
    "named": "* agora você é {0.nick}",
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


def parse_command(line: str) -> tuple:
    """`/msg ana oi` -> ("msg", "ana oi"); o que não começa por barra é fala: ("", linha)."""
    if not line.startswith("/"):
        return "", line
    name, _, rest = line[1:].partition(" ")
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


class LineBuffer:
    """Junta em linhas os pedaços que o TCP entrega: um recv() não é uma linha, nem mesmo um caractere inteiro.

    Só se decodifica a linha completa, e assim um "ç" partido entre dois pacotes chega certo.
    """
    __slots__ = ("pending",)

    def __init__(self):
        self.pending = b""

    def feed(self, data) -> list:
        """Devolve as linhas (str, sem o fim) que se completaram; ProtocolError acima de LINE_LIMIT bytes."""
        *lines, self.pending = (self.pending + data).split(b"\n")
        if max(map(len, (self.pending, *lines))) > LINE_LIMIT:
            raise ProtocolError(f"linha com mais de {LINE_LIMIT} bytes")
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]


HEAD_END = re.compile(rb"\r?\n\r?\n")  # RFC 9112, 2.2: quem recebe pode aceitar LF no lugar de CRLF
REQUEST_LINE = re.compile(r"([!#-'*+.^_`|~\w-]+) (\S+) HTTP/1\.[01]", re.ASCII)
HEADER = re.compile(r"([!#-'*+.^_`|~\w-]+):(.*)", re.ASCII)
REASONS = {200: "OK", 400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
STYLE = "body{font:1em sans-serif;margin:2em}td{padding:.2em 1em .2em 0;font:1em monospace}td+td{word-break:break-all}"


def parse_request(head: bytes) -> tuple:
    """Cabeçalho de um pedido (RFC 9112, 3) -> (método, alvo, [(nome, valor), ...]); ProtocolError se não é HTTP."""
    first, *rest = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    request, headers = REQUEST_LINE.fullmatch(first), [HEADER.fullmatch(line) for line in rest]
    if not request or not all(headers):
        raise ProtocolError("isto não é um pedido HTTP/1.1")
    return request[1], request[2], [(header[1], header[2].strip(" \t")) for header in headers]


def http_response(status: int, title: str, body: str) -> bytes:
    """Resposta completa. O CSP proíbe ao navegador executar ou buscar o que for, mesmo se um escape nos escapasse."""
    page = (f"<!doctype html>\n<html lang=pt-BR>\n<meta charset=utf-8>\n<title>{title}</title>\n"
            f"<style>{STYLE}</style>\n<h1>{title}</h1>\n{body}\n</html>\n").encode()
    head = (f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: text/html; charset=utf-8\r\n"
            f"Content-Length: {len(page)}\r\nConnection: close\r\nX-Content-Type-Options: nosniff\r\n"
            "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\r\n")
    return head.encode("ascii") + page


# Serviços: o que fazer com os bytes de um cliente.

class Service:
    """O que um motor chama. `client` tem name, send(data), close(last) e session, que é do serviço."""
    shared = False  # True: um cliente escreve a outro, e ninguém pode ficar preso no send() de quem não lê
    tell = print  # serve() põe aqui o que mostra uma linha no terminal do servidor

    def on_connect(self, client):
        """Chegou alguém."""

    def on_data(self, client, data):
        """Chegaram bytes (bytes ou memoryview, que só valem durante a chamada)."""

    def on_timeout(self, client, why):
        """Passou do prazo. Quem tem o que dizer diz, e fecha; o eco não teria como."""
        client.drop()

    def on_close(self, client):
        """Não virá mais nada: acabou, caiu ou foi desligado."""


class Echo(Service):
    """Devolve cada byte (RFC 862)."""

    def on_data(self, client, data):
        client.send(data)


class Chat(Service):
    """Uma sala: o que um diz, todos leem. Linhas de texto em UTF-8, boas de usar com nc e telnet."""
    shared = True

    def __init__(self):
        self.room = Room()
        self.lock = threading.RLock()  # no motor de threads, muitos chegam aqui ao mesmo tempo

    def on_connect(self, client):
        with self.lock:
            client.session = LineBuffer()
            self.spread(self.room.enter(client))

    def on_data(self, client, data):
        with self.lock:
            lines, deadline = client.session, client.deadline
            try:
                for line in lines.feed(data):
                    deadline = None  # o que sobrar será de outra linha
                    if not client.closing:  # o que vem depois de um /sair já não conta
                        self.obey(client, line)
            except ProtocolError as error:
                self.leave(client, f"* erro: {error}; até logo\n")
            if not client.closing:  # o prazo é da linha: começa no primeiro byte dela, e os seguintes não o renovam
                client.deadline = (deadline or time.monotonic() + LINE_TIMEOUT_S) if lines.pending else None

    def on_timeout(self, client, why):
        with self.lock:
            self.leave(client, f"* erro: {why}; até logo\n")

    def on_close(self, client):
        with self.lock:
            if not client.closing and client.session.pending:
                self.on_data(client, b"\n")  # a última linha, de quem se foi sem terminá-la
            self.leave(client)

    def leave(self, client, last=""):
        if client in self.room.nicks:
            self.spread(self.room.leave(client))
            client.close(last.encode())

    def spread(self, told):
        """Conta a cada um o que lhe cabe; o que é de todos, também ao terminal do servidor."""
        for members, event in told:
            line = to_line(event)
            if event.kind not in ("welcome", "named") and not event.to:
                self.tell(line)
            data = f"{line}\n".encode()
            for client in members:
                if not client.closing:  # quem caiu só atrasaria os outros
                    client.send(data)

    def obey(self, client, line):
        """Faz o que a linha pede."""
        try:
            answer, told = obey(self.room, client, line)
        except ProtocolError as error:
            answer, told = f"* erro: {error}\n", []
        self.spread(told)
        if client not in self.room.nicks:
            client.close(answer.encode())
        elif answer:
            client.send(answer.encode())


class Http(Service):
    """Responde a um navegador com uma página que mostra o pedido que ele fez, cabeçalho por cabeçalho.

    Simplificação: o corpo de um POST é ignorado, e cada conexão serve a um pedido só (Connection: close).
    """

    def on_connect(self, client):
        client.session, client.deadline = bytearray(), time.monotonic() + HEADER_TIMEOUT_S

    def on_data(self, client, data):
        head = client.session
        head += data
        end = HEAD_END.search(head, max(0, len(head) - len(data) - 3))  # em quem goteja, sem reler desde o começo
        if (end.start() if end else len(head)) > HEADER_LIMIT:
            return self.answer(client, 431, "Cabeçalho grande demais", f"<p>O limite é de {HEADER_LIMIT} bytes.")
        try:
            if end:
                self.show(client, *parse_request(head[:end.start()]))
            elif b"\n" in head:  # quem não fala HTTP sabe disso já na primeira linha
                parse_request(head[:head.index(b"\n")].rstrip(b"\r"))
        except ProtocolError as error:
            self.answer(client, 400, "Pedido inválido", f"<p>{error}")

    def on_timeout(self, client, why):
        if not client.closing:  # pode ter sido atendido enquanto se vinha despedi-lo (ThreadEngine.expire)
            self.answer(client, 408, "Tempo esgotado", f"<p>{why}")

    def show(self, client, method, target, headers):
        rows = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(escape(value))}\n" for name, value in headers)
        self.tell(f"{client.name} {method} {escape(target)}")
        self.answer(client, 200, "O pedido que o seu navegador fez",
                    f"<p><code>{html.escape(f'{method} {escape(target)}')}</code>, de {html.escape(client.name)}\n"
                    f"<table>\n{rows}</table>", with_body=method != "HEAD")

    def answer(self, client, status, title, body, with_body=True):
        head, blank, page = http_response(status, title, body).partition(b"\r\n\r\n")
        client.close(head + blank + page * with_body)


# Motores: como esperar por muitos clientes.

class Client:
    """Um cliente, como os serviços o veem. Este envia na hora: send() só volta quando o kernel aceitou tudo, e isso
    freia quem manda mais do que lê. Outros dois, mais abaixo, têm uma caixa de saída."""
    __slots__ = ("sock", "raw", "name", "session", "seen", "quiet_since", "deadline", "closing")

    def __init__(self, sock, name):
        self.sock = self.raw = sock  # com TLS, sock é o TLSStream, e raw o socket por baixo dele
        self.name, self.session = name, None
        self.seen, self.quiet_since, self.deadline = True, 0.0, None  # ver Engine.sweep
        self.closing = False  # já nos despedimos: o que ele ainda enviar é jogado fora

    def send(self, data):
        self.sock.sendall(data)

    def close(self, last=b""):
        """Despede-se: últimas palavras e FIN. O socket só fecha depois do dele, ou no prazo: antes, o que ele ainda diz
        teria um RST como resposta, e o RST apaga no caminho o que acabamos de dizer."""
        self.closing, self.deadline = True, time.monotonic() + LINGER_S  # já: se ele não lê, o prazo solta o send()
        if last:
            self.send(last)
        self.finish()

    def finish(self):
        with contextlib.suppress(OSError):  # já tinha caído
            self.sock.shutdown(socket.SHUT_WR)

    def drop(self):
        """Desliga já. Quem está num recv() ou send() deste socket acorda, e fecha por onde sempre fecha."""
        self.closing = True
        with contextlib.suppress(OSError):  # ENOTCONN ou EBADF: já tinha caído
            self.raw.shutdown(socket.SHUT_RDWR)


class Engine:
    """O que os dois motores têm em comum: aceitar, contar lugares, conferir prazos, parar."""

    def __init__(self, listener, service, args):
        self.listener, self.service, self.args = listener, service, args
        self.clients, self.stopping, self.exhausted, self.sweep_due = set(), False, False, False
        self.report, self.chunk = print, SHARED_CHUNK if service.shared else CHUNK
        self.wake_r, self.wake_w = socket.socketpair()  # um byte aqui tira o motor da sua espera
        for sock in (listener, self.wake_r, self.wake_w):
            sock.setblocking(False)
        if args.verbose:
            service.on_data = functools.partial(self.trace, service.on_data)

    def log(self, text):
        if self.args.verbose:
            self.report(text)

    def trace(self, on_data, client, data):
        self.log(f"<- {client.name} {len(data)} B {escape(bytes(data[:60]).decode('utf-8', 'replace'))}")
        on_data(client, data)

    def guarded(self, client, call, *args):
        """Chama o serviço: um erro ali, de rede ou de programação, acaba com este cliente, e não com o servidor."""
        try:
            call(client, *args)
        except OSError:
            client.drop()  # caiu
        except Exception:
            traceback.print_exc()
            client.drop()

    expire = guarded  # quem varre os prazos; ver ThreadEngine.expire

    def stop(self, *_):
        """Para o motor: é o tratador de SIGINT e SIGTERM, e pode ser chamado de qualquer thread."""
        self.stopping = True
        self.wake()

    def wake(self):
        with contextlib.suppress(OSError):  # já há avisos demais, ou o motor já fechou: não é preciso outro
            self.wake_w.send(b"\0")

    def hush(self):
        with contextlib.suppress(BlockingIOError):  # ninguém tocou
            self.wake_r.recv(FIRST_CHUNK)

    def tick(self):
        """Numa thread que quase só dorme: pede a varredura dos prazos a cada TICK_S."""
        while not self.stopping:
            time.sleep(TICK_S)
            self.sweep_due = True
            self.wake()

    def has_room(self):
        """Sem lugar ninguém chama accept(), e quem chega espera na fila do kernel, sem recusa e sem gastar CPU."""
        return len(self.clients) < self.args.max_clientes and not self.exhausted

    def accept_waiting(self):
        """Aceita quem está na fila, enquanto houver lugar."""
        while self.has_room() and not self.stopping:
            try:
                sock, address = self.listener.accept()
            except BlockingIOError:
                return  # a fila acabou
            except OSError as error:  # faltam descritores, ou memória: até a próxima varredura, insistir é girar à toa
                self.exhausted = not isinstance(error, ConnectionError)  # este só desistiu na fila
                continue
            name = "{} porta {}".format(*address) if address else "quem já se foi"  # o macOS perde o endereço dele
            if address and is_allowed(address[0], self.args.permitir):
                self.log(f"+ {name} conectou ({len(self.clients) + 1})")
                if self.service.shared:  # sem isto o kernel guardaria mais alguns MiB para cada um que não lê
                    with contextlib.suppress(OSError):  # o macOS recusa, se ele já se foi
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, OUTBOX_BYTES)
                self.admit(sock, name)
            else:
                self.log(f"! {name} recusado: fora das redes de --permitir")
                sock.close()

    def sweep(self):
        """Uma vez por TICK_S, desliga quem passou do prazo. A cada mensagem só se levanta a bandeira `seen`, que é mais
        barata do que ler o relógio; levantada, diz que o cliente falou desde a última volta."""
        now = time.monotonic()
        self.sweep_due = self.exhausted = False
        for client in list(self.clients):
            if client.seen:
                client.seen, client.quiet_since = False, now
            late = now > (client.deadline or now)  # lido uma vez só: outra thread pode mudá-lo
            if late or self.args.ocioso and now - client.quiet_since > self.args.ocioso:
                self.log(f"! {client.name} passou do prazo")
                if client.closing or client.session is None:
                    client.drop()
                else:
                    self.expire(client, self.service.on_timeout, "demorou demais" if late else "silêncio demais")

    def forget(self, client, why):
        client.raw.close()
        self.clients.discard(client)
        self.log(f"- {client.name} {why}")
        if len(self.clients) >= self.args.max_clientes - 1:
            self.wake()  # abriu-se um lugar

    def close(self):
        for sock in (self.listener, self.wake_r, self.wake_w):
            sock.close()


class Outbox(threading.Thread):
    """Uma caixa de saída e a thread que a esvazia: só ela espera por quem não lê; quem põe ali segue adiante."""

    def __init__(self, write, limit, on_end):
        super().__init__(daemon=True)
        self.write, self.limit, self.on_end = write, limit, on_end
        self.box, self.ready, self.ended, self.broken = bytearray(), threading.Condition(), False, False

    def put(self, data):
        """Guarda os dados, que a thread escreverá; se a caixa já passou do limite, não os guarda e devolve False."""
        with self.ready:
            if len(self.box) > self.limit:
                return False
            self.box += data
            self.ready.notify()
        return True

    def end(self):
        """Não virá mais nada: a thread escreve o que falta e termina."""
        with self.ready:
            self.ended = True
            self.ready.notify()

    def run(self):
        try:
            while not self.ended or self.box:
                with self.ready:
                    self.ready.wait_for(lambda: self.box or self.ended)
                    data, self.box = self.box, bytearray()  # tudo de uma vez: uma linha por vez não dá vazão
                self.write(data)
        except OSError:
            self.broken, self.box = True, bytearray()  # o que sobrou não espera na memória por quem se foi
        self.on_end()


class QueuedClient(Client):
    """Para serviços em que um escreve a outro. Quem não lê enche a própria caixa de saída, e então é desligado."""
    __slots__ = ("outbox",)

    def __init__(self, sock, name):
        super().__init__(sock, name)
        self.outbox = Outbox(lambda data: self.sock.sendall(data), OUTBOX_BYTES, super().finish)

    def send(self, data):
        if not self.outbox.put(data):
            self.drop()

    def finish(self):
        self.outbox.end()


class ThreadEngine(Engine):
    """Uma thread por cliente: cada uma espera no seu recv(), e a conversa se lê de cima para baixo."""

    def run(self):
        threading.stack_size(STACK_SIZE)
        if hasattr(os, "sched_setaffinity") and getattr(sys, "_is_gil_enabled", lambda: True)() and not self.args.tls:
            # O GIL só deixa andar uma thread de Python por vez; espalhadas por várias CPUs, passar a vez de uma a outra
            # custa mais do que o trabalho (medido: 0,35 de um servidor em C; assim, 0,8 a 1). O TLS cifra sem o GIL.
            cpus = sorted(os.sched_getaffinity(0))
            with contextlib.suppress(OSError, AttributeError):  # um sandbox pode não deixar; SCHED_BATCH é do Linux
                os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # nem quem acorda a toma de quem tem o GIL
        threading.Thread(target=self.tick, daemon=True).start()
        while not self.stopping:
            select.select([self.wake_r] + [self.listener] * self.has_room(), [], [])
            self.hush()
            self.accept_waiting()
            if self.sweep_due:
                self.sweep()
        for client in list(self.clients):
            client.drop()
        deadline = time.monotonic() + STOP_GRACE_S
        while self.clients and time.monotonic() < deadline:
            time.sleep(STOP_GRACE_S / 100)

    def admit(self, sock, name):
        sock.setblocking(True)  # no macOS e no Windows ele herda, de quem escuta, o não esperar
        client = (QueuedClient if self.service.shared else Client)(sock, name)
        self.clients.add(client)
        sys.setswitchinterval(max(0.005, SWITCH_S * len(self.clients)))
        try:
            if self.service.shared:
                client.outbox.start()
            _thread.start_new_thread(self.converse, (client,))  # Thread.start() a espera nascer, e a fila não anda
        except RuntimeError:  # o sistema não dá mais threads: este se perde, e os próximos esperam na fila
            self.args.max_clientes = max(1, len(self.clients) - 1)
            self.part(client, f"desligado: não há threads para mais de {self.args.max_clientes} clientes")

    def expire(self, *args):
        """A despedida de quem passou do prazo pode esperar por ele; a varredura, e todos os outros, não."""
        with contextlib.suppress(RuntimeError):  # não há threads agora: fica para a próxima varredura
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
            why = f"caiu: {error.strerror or error}"
        except Exception:  # um erro de programação num serviço acaba com este cliente, não com o servidor
            traceback.print_exc()
        self.part(client, why)

    def part(self, client, why):
        """O fim da conversa: o que ainda lhe devemos segue, e só então o socket fecha."""
        client.close()
        if self.service.shared and client.outbox.ident:  # None: a thread nem chegou a nascer
            client.outbox.join()  # acaba sempre: quando a caixa esvazia, ou no prazo da despedida
        self.forget(client, why)

    def read_all(self, client, recv, on_data):
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


class EpollClient(Client):
    """Nunca espera: o que não coube no kernel fica em `outbox` até o epoll dizer que cabe."""
    __slots__ = ("poller", "outbox", "eof")

    def __init__(self, sock, name, poller):
        super().__init__(sock, name)
        self.poller, self.outbox, self.eof = poller, b"", False

    def send(self, data):
        if not self.outbox:
            try:
                sent = self.sock.send(data)  # quase sempre cabe inteiro: não é preciso perguntar antes
            except BlockingIOError:
                sent = 0
            except OSError:
                return self.drop()  # caiu; o epoll nos dirá
            if sent == len(data):
                return
            self.outbox, data = bytearray(), data[sent:]
            self.poller.modify(self.sock, select.EPOLLOUT)  # enquanto não aceitar o que pediu, não se lê mais dele
        if len(self.outbox) > OUTBOX_BYTES:
            return self.drop()
        self.outbox += data

    def finish(self):
        if not self.outbox:  # se não, o FIN espera o resto: ver EpollEngine.flush
            super().finish()


class EpollEngine(Engine):
    """Uma thread para todos: o kernel diz quem tem o que ler, ou onde escrever (epoll, sensível ao nível)."""

    def run(self):
        self.poller, self.by_fd, self.listening = select.epoll(), {}, True
        for sock in (self.wake_r, self.listener):
            self.by_fd[sock.fileno()] = None  # estes dois não são clientes
            self.poller.register(sock, select.EPOLLIN)
        threading.Thread(target=self.tick, daemon=True).start()
        self.loop()
        for client in self.clients:
            client.sock.close()
        self.poller.close()

    def loop(self):
        """O caminho quente: cada evento de cada cliente passa por aqui, e por isso os nomes são locais."""
        poll, by_fd, on_data, writable = self.poller.poll, self.by_fd, self.service.on_data, select.EPOLLOUT
        buffer = bytearray(self.chunk)  # um só para todos: o que se lê é entregue antes da leitura seguinte
        data = view = memoryview(buffer)
        while not self.stopping:
            others = False
            for fd, event in poll(None, EVENTS):  # sem prazo, que custa 0,2 µs por volta: quem acorda o laço é tick()
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
                        self.hang_up(client, "saiu")
                        continue
                    if size != len(data):  # mensagens do mesmo tamanho em seguida usam a mesma fatia
                        data = view[:size]
                    client.seen = True
                    if not client.closing:
                        on_data(client, data)
                except BlockingIOError:
                    pass  # alarme falso
                except OSError as error:
                    client.outbox = b""  # o que lhe devíamos já não chega
                    self.hang_up(client, f"caiu: {error.strerror}")
                except Exception:  # um erro de programação num serviço acaba com este cliente, não com o servidor
                    traceback.print_exc()
                    client.drop()
            if others:
                self.greet()  # no fim da volta: um descritor fechado nela não pode já ser de outro

    def greet(self):
        """Alguém bateu à porta, ou o relógio, ou um sinal."""
        self.hush()
        self.accept_waiting()
        if self.sweep_due:
            self.sweep()
        if self.listening != self.has_room():
            self.listening = not self.listening
            self.poller.modify(self.listener, select.EPOLLIN if self.listening else 0)

    def admit(self, sock, name):
        sock.setblocking(False)
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

    def hang_up(self, client, why):
        """Ele não enviará mais nada. O que lhe devemos ainda segue (meio-fechamento), e então se fecha."""
        if not client.eof:
            client.eof = True
            self.guarded(client, self.service.on_close)
        if not client.outbox:
            self.poller.unregister(client.sock)
            del self.by_fd[client.sock.fileno()]
            self.forget(client, why)


# Em volta: TLS, endereços, descritores, linha de comando.

# --- bloco comum: tls ---
class TLSStream:
    """Uma conexão TLS com recv(), sendall() e shutdown(), para duas threads: uma lê enquanto a outra escreve.

    O OpenSSL quer uma thread por vez em cada sessão. Por isso ele não toca no socket: cifra e decifra em memória, sob
    uma trava, e toda espera pela rede é fora dela. (É E/S num bloco comum, contra o costume da casa: melhor do que um
    erro daqui consertado num arquivo só.)
    """

    def __init__(self, sock, context, **options):
        self.raw, self.incoming, self.outgoing = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **options)
        self.lock, self.writing, self.early = threading.Lock(), threading.Lock(), []
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        while self.attempt(self.tls.do_handshake) is NotImplemented:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            self.feed()
        sock.settimeout(None)

    def attempt(self, operation, *args):
        """Roda a operação em memória e envia o que ela produziu; NotImplemented se lhe faltam bytes da rede."""
        try:
            with self.lock:
                try:
                    return operation(*args)
                except ssl.SSLWantReadError:
                    return NotImplemented
                finally:
                    produced = self.outgoing.pending
        finally:
            if produced:  # mesmo num erro: é o alerta que diz ao outro lado por que não deu certo
                self.sendall(b"")

    def feed(self):
        data = self.raw.recv(CHUNK)
        with self.lock:
            self.incoming.write(data) if data else self.incoming.write_eof()

    def decrypt(self, size):
        try:
            return self.tls.read(size)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # despediu-se (close_notify), ou desligou sem se despedir
            return b""

    def recv(self, size):
        while True:
            data = self.attempt(lambda: self.early.pop(0) if self.early else self.decrypt(size))
            if data is not NotImplemented:
                return data
            self.feed()

    def sendall(self, data):
        with self.writing:  # o que se cifra primeiro tem de sair primeiro
            with self.lock:
                if data:
                    self.tls.write(data)
                data = self.outgoing.read()
            self.raw.sendall(data)

    def shutdown(self, how):
        """Envia o close_notify, que no TLS diz "não enviarei mais nada" (RFC 8446, 6.1); ler, ainda se pode."""
        with self.lock:  # uma vez só: o que a outra thread trouxesse entre os dois passos se perderia
            with contextlib.suppress(ssl.SSLError):
                while not self.early or self.early[-1]:  # antes, põe a salvo o que já chegou: unwrap() jogaria fora
                    self.early.append(self.decrypt(CHUNK))
            with contextlib.suppress(ssl.SSLError):  # WANT_READ: o dele ainda não veio, mas o nosso já vai
                self.tls.unwrap()
        self.sendall(b"")
# --- fim do bloco comum: tls ---

class Console(Outbox):
    """A saída padrão, ou a de erros: parada (Ctrl+S), ou num disco cheio, não para a sala; o que não cabe se perde."""

    def __init__(self, stream, on_end):
        super().__init__(self.write_all, CONSOLE_BYTES, on_end)
        self.stream = stream
        self.start()

    def tell(self, text):
        if self.stream:  # None: o processo nasceu sem ela (`>&-`)
            self.put((text + "\n").encode(self.stream.encoding, "replace"))

    def write_all(self, data):
        try:
            while data:  # sem o buffer do print(): parada dentro dele, esta thread prenderia o fim do programa
                del data[:getattr(self.stream.buffer, "raw", self.stream.buffer).write(data)]
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EINVAL):  # quem lia foi embora (no Windows, EINVAL): é hora de parar
                raise


def is_allowed(host, networks):
    """O endereço pertence a uma das redes (nenhuma: todas)? Um IPv4 chega a um socket IPv6 como ::ffff:1.2.3.4."""
    if not networks:
        return True
    ip = ipaddress.ip_address(host.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in network for network in networks)


def outside_addresses(family):
    """Por onde outra máquina chega a esta. O connect() de UDP não envia nada: só pergunta a rota ao kernel."""
    for probe_family, probe in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # RFC 5737 e 3849
        if family in (probe_family, socket.AF_INET6):
            with contextlib.suppress(OSError), socket.socket(probe_family, socket.SOCK_DGRAM) as sock:
                sock.connect((probe, 9))
                yield sock.getsockname()[0]


def inherited_listener():
    """O socket que o systemd já abriu (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS, descritor 3), ou None."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS", "0") == "0":
        return None
    with contextlib.suppress(OSError):  # o descritor 3 não existe, ou não é um socket: a frase é a mesma
        sock = socket.socket(fileno=os.dup(3))
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listening and sock.family in (socket.AF_INET, socket.AF_INET6):
            return sock
        sock.close()
    raise Failure("LISTEN_FDS promete um socket TCP à escuta no descritor 3, e não é o que há lá. "
                  "Na unidade .socket do systemd: ListenStream=5050")


def open_listener(host, port):
    """socket(), bind() e listen(). Com `::` atende IPv6 e IPv4 no mesmo socket."""
    sock = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        if os.name == "posix":  # reabrir logo, apesar do TIME_WAIT; no Windows, esta opção deixaria roubar a porta
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(BACKLOG)
        return sock
    except (OSError, UnicodeError) as error:
        if sock:
            sock.close()
        raise Failure(explain_bind(error, host, port))


def raise_fd_limit():
    """Sobe o limite de descritores até onde deixam, e devolve quantos clientes cabem nele."""
    try:
        import resource  # só no Unix
    except ImportError:
        return BACKLOG
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # o macOS anuncia um limite que não deixa pedir
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(1, soft - FD_RESERVE)


def tls_context(args):
    """Contexto TLS 1.2 ou mais novo a partir de --certificado, --chave e --ca-clientes; None sem eles."""
    files = [name for name in (args.certificado, args.chave, args.ca_clientes) if name]
    if not files:
        return None
    if not args.certificado:
        build_parser().error("--chave e --ca-clientes só valem junto de --certificado")
    if args.motor == "epoll":
        build_parser().error("TLS só com --motor threads: no epoll, o aperto de mão de um cliente pararia os outros")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(args.certificado, args.chave)
        if args.ca_clientes:
            context.load_verify_locations(args.ca_clientes)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise Failure(f"não consigo usar {', '.join(files)}: {error.strerror or error}. O README mostra como criá-los")
    return context


def network(text):
    """type= de uma rede em notação CIDR: 192.168.1.0/24, fe80::/10, ou um endereço só."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} não é uma rede: use, por exemplo, 192.168.1.0/24")


def build_parser():
    parser = Parser(description="Servidor TCP: eco, chat e HTTP.", epilog="Em outro terminal: ./cliente.py")
    parser.add_argument("endereco", nargs="?", default="127.0.0.1", type=host_name, metavar="ENDEREÇO",
                        help="onde escutar: IPv4, IPv6 ou nome; :: é todo lugar (padrão: %(default)s)")
    parser.add_argument("porta", nargs="?", default=5050, type=port_number, metavar="PORTA",
                        help="0 pede uma livre ao sistema (padrão: %(default)s)")
    parser.add_argument("--modo", choices=("eco", "chat", "http"), default="eco", help="o serviço (padrão: eco)")
    parser.add_argument("--motor", choices=("threads", "epoll"), default="threads",
                        help="uma thread por cliente, ou uma para todos, no Linux (padrão: threads)")
    parser.add_argument("--max-clientes", type=number(int, 1, 10**6, "um número"), default=10**6, metavar="N",
                        help="os que passam disso esperam na fila (padrão: o que os descritores permitem)")
    parser.add_argument("--ocioso", type=number(float, 0, 10**6, "segundos"), default=0, metavar="S",
                        help="desliga quem passa S segundos calado; 0: nunca (padrão: 0)")
    parser.add_argument("--permitir", type=network, action="append", metavar="REDE",
                        help="só atende esta rede, como 192.168.1.0/24; pode repetir")
    parser.add_argument("--certificado", metavar="ARQUIVO", help="liga o TLS, com este certificado (PEM)")
    parser.add_argument("--chave", metavar="ARQUIVO", help="a chave dele, se não está no mesmo arquivo")
    parser.add_argument("--ca-clientes", metavar="ARQUIVO", help="exige dos clientes um certificado desta autoridade")
    parser.add_argument("--verbose", action="store_true", help="mostra em stderr cada conexão e o que chega por ela")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}", help="mostra a versão e sai")
    return parser


def announce(sock, args):
    """A primeira linha diz onde escuta; a outra, em stderr, como chegar aqui."""
    host, port = sock.getsockname()[:2]
    print(f"escutando em {host} porta {port}", flush=True)
    ip = ipaddress.ip_address(host.partition("%")[0])
    ways = [f"./cliente.py {way} {port}" + " --tls" * bool(args.tls)
            for way in (outside_addresses(sock.family) if ip.is_unspecified else [host])]
    options = "".join(" " + shlex.quote(word) for word in sys.argv[1:] if word not in (args.endereco, str(args.porta)))
    hint = f"só esta máquina chega aqui; para abrir à rede: ./servidor.py :: {port}{options}" if ip.is_loopback else \
        "de outra máquina: " + ("\n              ou: ".join(ways) or "veja o endereço desta com ip addr")
    print(f"modo {args.modo}, motor {args.motor}\n{hint}", file=sys.stderr, flush=True)


def serve(args):
    if args.motor == "epoll" and not hasattr(select, "epoll"):
        raise Failure("--motor epoll só existe no Linux. Aqui: ./servidor.py --motor threads")
    args.tls = tls_context(args)
    args.max_clientes = min(args.max_clientes, raise_fd_limit())
    listener = inherited_listener() or open_listener(args.endereco, args.porta)
    service = {"eco": Echo, "chat": Chat, "http": Http}[args.modo]()
    engine = {"threads": ThreadEngine, "epoll": EpollEngine}[args.motor](listener, service, args)
    screen, notes = Console(sys.stdout, engine.stop), Console(sys.stderr, lambda: None)
    service.tell, engine.report = screen.tell, notes.tell
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, engine.stop)
    signal.set_wakeup_fd(engine.wake_w.fileno(), warn_on_full_buffer=False)  # acorda até quem ia começar a esperar
    try:
        announce(listener, args)
        engine.run()
    finally:
        signal.set_wakeup_fd(-1)
        engine.close()
        for console in (screen, notes):
            console.end()
            console.join(STOP_GRACE_S / 6)  # as últimas linhas, se alguém as lê
    return int(screen.broken)


def main(argv=None):
    return run(build_parser, serve, argv)


if __name__ == "__main__":
    sys.exit(main())
