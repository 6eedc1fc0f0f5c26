#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cliente UDP: uma linha, um datagrama. Conversa, pergunta e mede o que se perde pelo caminho.

    ./servidor_udp.py                  em um terminal
    ./cliente_udp.py                   em outro: cada linha digitada volta

    ./cliente_udp.py --ping 50         50 datagramas numerados: tempos, perdas, cópias, trocas de ordem
    ./cliente_udp.py --apelido ana     entra na sala de: ./servidor_udp.py --modo chat

O datagrama de --ping, que qualquer servidor de eco devolve (números com o byte maior primeiro):

     0       4         8        12                      --tamanho
    +--------+---------+--------+------------------------+
    | "PING" | sorteio | número | 00 01 02 ... FF 00 ... |   o sorteio é desta execução: um eco de outra não engana
    +--------+---------+--------+------------------------+

Enviar dá certo mesmo sem ninguém do outro lado. Um socket UDP conectado (connect() não manda nada: só anota o destino)
ao menos recebe o aviso ICMP "porta sem dono" que a outra máquina devolve; sem ele, resta esperar um tanto e desistir.

O que ele não faz: não cifra, não parte em pedaços o que não cabe num datagrama, e não sabe se o que se perdeu foi a
pergunta ou a resposta (nenhum programa sabe).
"""
import argparse
import collections
import contextlib
import errno
import io
import itertools
import math
import os
import queue
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
import unicodedata

try:
    import readline  # edição e histórico da linha digitada; sem ele (Windows), o terminal faz o que sabe
    import termios  # o readline põe o terminal em outro modo; só isto o devolve se o programa acaba no meio da linha
except ImportError:
    readline = termios = None

WAKE_S = 1.0  # no Windows o Ctrl+C só é visto entre duas esperas
ANSWER_SIZE = 65536  # maior que qualquer datagrama: nada chega cortado, e linha que passe dele será recusada
QUEUE_BYTES = 1 << 20  # o que se pede para as filas do kernel; o padrão do macOS (9216) nem cabe um datagrama grande
QUEUE_LINES = 64  # linhas lidas antes da hora de enviar
REMEMBERED = 32  # perguntas que ainda podem receber resposta, em dia ou atrasada
HELLO_SIZE = 64  # bytes do /entrar: a sala não devolve mais do que recebe, e assim a frase inteira cabe
MAX_PROOFS = 3  # vezes que se responde a pedidos de código por pergunta: um servidor torto não nos faz girar
KEEPALIVE_S = 15  # um datagrama vazio diz à sala que ainda estamos; os roteadores esquecem um UDP calado em uns 30 s
LIVE_S, LAST_COPIES_S = 0.1, 0.1  # --ping: intervalo da linha viva; o que se espera por cópias depois da última
PAINT_S = 0.2  # quanto se espera que o prompt acabe de ser pintado, para não escrever por cima dele
STRIP_WIDTH, STRIP_ROWS = 64, 16  # marcas por linha do gráfico, e linhas; além disso cada marca vale por vários


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

MAX_PAYLOAD = {socket.AF_INET: 65507, socket.AF_INET6: 65527}  # 65535 - 8 do UDP (e - 20 do IPv4): RFC 768 e 791


def socket_address(host, port):
    """(família, endereço) de host e porta; um nome que tem IPv4 e IPv6 vale pelo IPv4, e os dois lados combinam."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    return min(((family, address) for family, *_, address in found), key=lambda item: item[0] != socket.AF_INET)


# Protocolo: bytes entram, bytes saem.

PING, PING_FILL = struct.Struct("!4sII"), bytes(range(256))


def encode_ping(session: int, seq: int, size: int) -> bytes:
    """O datagrama número `seq` (32 bits) da execução `session`, com `size` bytes (12 ou mais)."""
    return PING.pack(b"PING", session, seq) + (PING_FILL * (size // 256 + 1))[:size - PING.size]


def decode_ping(data: bytes, session: int, size: int) -> int:
    """O número de um eco, ou -1 se ele não é exatamente um dos datagramas desta execução."""
    seq = PING.unpack_from(data.ljust(PING.size))[2]
    return seq if data == encode_ping(session, seq, size) else -1


def proof(answer: bytes, line: bytes):
    """O que responder a uma sala que pede prova de endereço, para então dizer `line`; None se ela não pede nada."""
    head, tail = INVITE.encode().split(b"{}")
    if answer in HINTS:
        return ENTER.ljust(HELLO_SIZE)
    if answer.startswith(head) and answer.endswith(tail) and len(answer) == len(head) + CODE_SIZE + len(tail):
        return answer[len(head):][:CODE_SIZE] + b" " + line
    return None


class Tally:
    """As contas de um --ping: recebe números e instantes, não conhece sockets nem relógios."""

    def __init__(self, patience_s):
        self.patience_s, self.left_at, self.trips = patience_s, [], {}  # trips: número -> segundos de ida e volta
        self.duplicates = self.reordered = self.strange = self.newest = 0

    def answered(self, seq, now):
        if not 0 <= seq < len(self.left_at):
            self.strange += 1  # nem é desta execução, ou nem saiu ainda
        elif seq in self.trips:
            self.duplicates += 1
        else:
            self.trips[seq] = now - self.left_at[seq]
            self.reordered += seq < self.newest
            self.newest = max(seq, self.newest)

    def on_time(self):
        return sorted(trip for trip in self.trips.values() if trip <= self.patience_s)

    def lost(self):
        return len(self.left_at) - len(self.trips)

    def marks(self) -> str:
        """Uma letra por datagrama enviado: . respondido, a atrasado, x perdido."""
        trips = [self.trips.get(seq, math.inf) for seq in range(len(self.left_at))]
        return "".join("x" if trip == math.inf else "a" if trip > self.patience_s else "." for trip in trips)


def percentile(ordered: list, percent: float) -> float:
    """O menor valor da lista em ordem que não é menor que `percent` por cento dela (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def strip_chart(marks: str) -> list:
    """As linhas do gráfico, com o número do primeiro datagrama de cada; se não cabem, vale o pior de cada grupo."""
    group = math.ceil(len(marks) / (STRIP_WIDTH * STRIP_ROWS)) or 1
    worst = "".join(max(marks[i:i + group], key=".ax".index) for i in range(0, len(marks), group))
    rows = [f"{i * group + 1:>7} {worst[i:i + STRIP_WIDTH]}" for i in range(0, len(worst), STRIP_WIDTH)]
    return [*rows, " " * 8 + ". respondido   a atrasado   x perdido" + f"   (o pior de cada {group})" * (group > 1)]


def report(tally: Tally) -> list:
    """O resumo de um --ping, linha por linha."""
    count, trips, lost = len(tally.left_at), tally.on_time(), tally.lost()
    lines = [f"{count} enviados: {len(trips)} respondidos, {count - lost - len(trips)} atrasados, {lost} perdidos "
             f"({100 * lost / max(1, count):.1f}%)",
             f"{tally.duplicates} em dobro, {tally.reordered} fora de ordem, {tally.strange} estranhos"]
    if trips:
        low, middle, p99, high = (1000 * percentile(trips, percent) for percent in (0, 50, 99, 100))
        lines.append(f"ida e volta: mínimo {low:.3f}  mediana {middle:.3f}  p99 {p99:.3f}  máximo {high:.3f} ms")
    return lines + strip_chart(tally.marks())


class Wire:
    """Um socket UDP conectado: connect() não manda nada, só fixa o destino e filtra o que vem de outros."""

    def __init__(self, args):
        self.args, self.where, self.trouble = args, f"{args.endereco} porta {args.porta}", ""  # o último erro da rede
        try:
            family, address = socket_address(args.endereco, args.porta)
        except (OSError, UnicodeError):
            raise Failure(f"não encontro a máquina {args.endereco!r}: confira o nome, ou use um endereço: 127.0.0.1")
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                with contextlib.suppress(OSError):  # ENOBUFS onde o sistema recusa em vez de dar o que pode
                    self.sock.setsockopt(socket.SOL_SOCKET, option, QUEUE_BYTES)
            self.sock.connect(address)
            if self.sock.getsockname() == self.sock.getpeername():
                raise ConnectionRefusedError  # o kernel sorteou para nós a porta vazia do destino: falaríamos sozinhos
            self.sock.setblocking(False)
            self.limit = min(MAX_PAYLOAD[family], self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
        except OSError as error:
            self.sock.close()
            raise Failure(self.explain(error))
        self.close = self.sock.close

    def send(self, data):
        """Manda um datagrama; Failure se não cabe em um."""
        if len(data) > self.limit:
            raise Failure(f"{len(data)} bytes não cabem num datagrama: o limite aqui é {self.limit}, e nada foi "
                          "enviado. Para mais que isso, use TCP: ./cliente.py")
        if self.attempt("->", self.sock.send, data) is None:  # pode ser só o aviso do datagrama anterior: nada saiu
            self.attempt("->", self.sock.send, data)

    def receive(self, wait_s, *others):
        """O próximo datagrama, ou None: passou wait_s ou WAKE_S, houve um erro da rede, ou há o que ler em `others`."""
        ready = select.select([self.sock, *others], [], [], max(0, min(wait_s, WAKE_S)))[0]
        return self.attempt("<-", self.sock.recv, ANSWER_SIZE) if self.sock in ready else None

    def attempt(self, arrow, operation, argument):
        """Chama send ou recv. Um erro da rede pode passar (o Wi-Fi volta): fica em trouble, e quem chama decide."""
        result = None
        try:
            result = operation(argument)
        except BlockingIOError:
            pass  # fila de saída cheia, ou um datagrama que chegou com a soma de verificação errada: mais um perdido
        except OSError as error:
            self.trouble = self.explain(error)
        if self.args.verbose and result is not None:
            data = argument if arrow == "->" else result
            text = escape(bytes(data[:60]).decode("utf-8", "replace"))
            print(f"{arrow} {self.where} {len(data)} B {text}", file=sys.stderr, flush=True)
        return result

    def explain(self, error):
        """O que dizer de um erro da rede (ConnectionError é o aviso ICMP de porta sem dono)."""
        if isinstance(error, ConnectionError):
            mode = " --modo chat" if self.args.apelido else ""
            return (f"ninguém escuta em {self.where}: o datagrama saiu mesmo assim, e o que voltou foi o aviso ICMP de "
                    "porta sem dono. Em TCP o connect() já teria sido recusado, antes de qualquer dado. Confira a "
                    f"porta, ou suba o servidor: ./servidor_udp.py {self.args.endereco} {self.args.porta}{mode}")
        hint = {errno.EMSGSIZE: "tente um datagrama menor", errno.EACCES: "é um endereço de difusão?",
                errno.EPERM: "um firewall não deixa?"}.get(error.errno, "confira o endereço e a rede: ip route")
        return f"não foi possível falar com {self.where} ({error.strerror or error}): {hint}"

    def silence(self):
        hint = f"--espera {5 * self.args.espera:g}" if self.args.ping else f"--tentativas {5 * self.args.tentativas}"
        return (f"sem resposta de {self.where} em {self.args.espera:g} s, em {self.args.tentativas} tentativa(s). O "
                "datagrama saiu, mas em UDP ninguém avisa o que se perde: a pergunta, a resposta, ou um firewall no "
                f"caminho; o TCP teria retransmitido sozinho. Tente: {hint}")


# Modo pergunta: --mensagem, ou uma linha da entrada por vez.

def ask(args, question):
    """Manda a pergunta e mostra a resposta; devolve 0, ou 1 se ela não veio. Failure a um erro da rede.
    Cada pergunta sai de um socket novo, de outra porta: a resposta atrasada da anterior não acha dono. (Como o DNS.)"""
    with contextlib.closing(Wire(args)) as wire:
        for left in reversed(range(args.tentativas)):
            answer = exchange(wire, question, hurry=left == 0)
            if answer is not None:
                print("\n".join(readable(answer)), flush=True)
                return 0
        if wire.trouble:
            raise Failure(wire.trouble)
        print(f"{os.path.basename(sys.argv[0])}: erro: {wire.silence()}", file=sys.stderr, flush=True)
    return 1


def exchange(wire, question, hurry):
    """Uma tentativa: a resposta, ou None. Se é uma sala, entra, pergunta e sai.
    hurry: a um erro da rede desiste na hora; senão, gasta a espera toda: o servidor, ou o Wi-Fi, pode voltar."""
    deadline, proofs, wire.trouble = time.monotonic() + wire.args.espera, 0, ""
    wire.send(question)
    while time.monotonic() < deadline and not (hurry and wire.trouble):
        answer = wire.receive(deadline - time.monotonic())
        reply = proof(answer, question) if answer not in (None, question) and proofs < MAX_PROOFS else None
        if reply is not None:
            proofs += 1
            wire.send(reply)
        elif answer is not None:
            if proofs:
                wire.send(b"/sair")
            return answer
    return None


def readable(data: bytes) -> list:
    """As linhas de um datagrama, prontas para o terminal."""
    text = data.decode("utf-8", "replace")
    return [escape(line) for line in (text[:-1] if text.endswith("\n") else text).split("\n")]


# Modo conversa: um socket só, e o teclado e a rede ao mesmo tempo.

def columns(text: str, width: int) -> int:
    """Quantas colunas `text` ocupa num terminal de largura `width`, do começo de uma linha dele."""
    used = 0
    for c in text:  # 日 ocupa duas, e um acento que se junta à letra, nenhuma
        size = 0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        used += size + (used % width + size > width)  # o que não cabe no fim da linha desce inteiro
    return used


class Keyboard:
    """Lê a entrada padrão numa thread (o select() do Windows só aceita sockets) e avisa por um par de sockets."""

    def __init__(self, prompt):
        try:  # a entrada pode ter sido aberta só para escrever (0>/dev/null): ler nada dela já o mostra
            if sys.stdin and not os.isatty(0):
                os.read(0, 0)
        except OSError as error:
            raise Failure(f"não consigo ler a entrada: {error.strerror}")
        self.prompt, self.lines, self.painted = prompt, queue.Queue(QUEUE_LINES), threading.Event()
        self.wake_r, self.wake_w = socket.socketpair()
        self.fileno = self.wake_r.fileno  # é o que o select() pergunta
        self.saved = termios.tcgetattr(0) if termios and os.isatty(0) else None
        self.start = threading.Thread(target=self.read, daemon=True).start  # só dentro do with: o Ctrl+C acha o close()

    def read(self):
        for line in itertools.chain(self.typed_lines() if os.isatty(0) else piped_lines(), [None]):
            self.lines.put(line)
            with contextlib.suppress(OSError):  # o programa está acabando e já fechou o par
                self.wake_w.send(b"!")

    def typed_lines(self):
        sys.stdin.reconfigure(errors="replace")
        if hasattr(readline, "set_pre_input_hook"):  # nem toda libedit tem
            readline.set_pre_input_hook(self.painted.set)
        with contextlib.suppress(EOFError):  # Ctrl+D
            while True:
                line = input(self.prompt)
                self.painted.clear()  # até que o próximo prompt esteja inteiro na tela
                yield line.encode("utf-8", "replace")

    def get(self):
        """Espera e devolve a próxima linha (bytes), ou None no fim."""
        while not select.select([self], [], [], WAKE_S)[0]:
            pass
        self.wake_r.recv(1)
        return self.lines.get()

    def close(self):
        if self.saved:
            termios.tcsetattr(0, termios.TCSADRAIN, self.saved)
        print("\n" * bool(self.prompt), end="", flush=True)
        self.wake_r.close()
        self.wake_w.close()


def piped_lines():
    """As linhas da entrada, sem o fim delas; com os.read(), porque uma thread parada nele não atrapalha a saída."""
    pending, chunk = b"", b"?"
    while chunk:
        chunk = os.read(0, ANSWER_SIZE) if sys.stdin else b""  # None: nasceu sem entrada, e 0 é outra coisa
        *lines, pending = (pending + chunk).split(b"\n")
        yield from lines
        if pending and (not chunk or len(pending) >= ANSWER_SIZE):
            yield pending
            pending = b""


class Conversation:
    """As perguntas à espera (waiting) guardam data, sent_at, deadline, tries e late: o prazo de todas já passou."""

    def __init__(self, wire, keyboard, args):
        self.wire, self.keyboard, self.args, self.status = wire, keyboard, args, 0
        self.waiting = collections.deque(maxlen=REMEMBERED)
        self.nick = b"/nick " + args.apelido.encode("utf-8", "replace") if args.apelido else None
        self.last, self.proofs, self.member, self.leaving, self.keepalive_at = b"", 0, False, False, math.inf

    def run(self):
        if self.nick:
            self.say(ENTER.ljust(HELLO_SIZE))
        while not self.leaving or any(not question.late for question in self.waiting):
            deadlines = [self.keepalive_at, *(question.deadline for question in self.waiting if not question.late)]
            data = self.wire.receive(min(deadlines) - time.monotonic(), *([] if self.leaving else [self.keyboard]))
            if data is not None:
                self.hear(data)
            if not self.leaving and select.select([self.keyboard], [], [], 0)[0]:  # mesmo que a rede não pare
                self.obey(self.keyboard.get())
            self.check_deadlines()
            if self.wire.trouble:
                self.waiting.clear()
                self.warn(self.wire.trouble)
                self.wire.trouble = ""
        return self.status

    def close(self):
        if self.member and not self.leaving:  # Ctrl+C: sem um adeus, a sala só nos esqueceria dali a dois minutos
            self.wire.send(b"/sair")

    def obey(self, line):
        """Uma linha do teclado; None é o Ctrl+D, que numa sala quer dizer /sair."""
        line = b"/sair" if line is None and self.member else line
        self.leaving = line is None or self.member and line.strip() == b"/sair"
        if line is not None and len(line) > self.wire.limit:
            self.warn(f"{len(line)} bytes não cabem num datagrama: o limite aqui é {self.wire.limit}")
        elif line is not None:
            self.say(line)

    def say(self, line):
        self.last, self.proofs, now = line, 0, time.monotonic()
        self.waiting.append(types.SimpleNamespace(data=line, sent_at=now, deadline=now + self.args.espera,
                                                  tries=self.args.tentativas, late=False))
        self.send(line)

    def send(self, data):
        self.wire.send(data)
        if self.member:
            self.keepalive_at = time.monotonic() + KEEPALIVE_S

    def hear(self, data):
        """Mostra o que chegou, e desconta a pergunta a que responde; a um pedido de código, responde sozinho."""
        echo, note = self.settle(data)
        answer = None if echo or data == self.last else proof(data, self.nick or self.last)
        if answer is None or self.proofs >= MAX_PROOFS:
            return self.show(readable(data), note)
        self.proofs += 1
        self.member = self.member or not answer.startswith(ENTER)
        self.send(answer)
        if self.nick and not answer.startswith(ENTER) and not self.last.startswith(ENTER):
            self.send(self.last)  # a sala nos tinha esquecido: entrou outra vez, e agora diz o que ia dizer

    def settle(self, data):
        """Tira da espera o que `data` responde; devolve se é um eco, e uma nota se pode responder a pergunta velha.
        Um eco é igual à pergunta, e só a ela responde. Outra coisa qualquer (a sala, uma pessoa com nc) não diz a que
        responde, mas mostra que há alguém lá."""
        same = [question for question in self.waiting if question.data == data]
        late = [question for question in same if question.late]
        settled = late and same or same[:1] or [question for question in self.waiting if not question.late]
        for question in settled:
            self.waiting.remove(question)
        if not late:
            return same, ""
        age = f"{time.monotonic() - late[0].sent_at:.1f} s"
        return same, f"  (atrasada: {age})" if late == same else f"  (esta, ou a atrasada de {age}: são iguais)"

    def check_deadlines(self):
        now = time.monotonic()
        if now >= self.keepalive_at:
            self.send(b"")
        for question in [question for question in self.waiting if not question.late and question.deadline <= now]:
            question.tries -= 1
            question.late = question.tries == 0
            question.deadline = now + self.args.espera
            if question.late:
                self.warn(self.wire.silence())
            else:
                self.send(question.data)

    def warn(self, text):
        """O que não veio da rede: num terminal, acima da linha digitada; senão em stderr, e o estado de saída é 1."""
        if self.keyboard.prompt:
            return self.show([f"({text})"])
        self.status = 1
        return print(f"{os.path.basename(sys.argv[0])}: erro: {text}", file=sys.stderr, flush=True)

    def show(self, lines, note=""):
        """Escreve acima da linha que está sendo digitada, e a redesenha. Simplificação: com o cursor no fim dela."""
        text = "\n".join(lines) + note
        if not self.keyboard.prompt:
            return print(text, flush=True)
        if hasattr(readline, "set_pre_input_hook"):  # senão ninguém avisa que ele está pronto
            self.keyboard.painted.wait(PAINT_S)
        line = self.keyboard.prompt + (readline.get_line_buffer() if readline else "")
        width = os.get_terminal_size(1).columns or 80  # há terminais que se dizem com 0 colunas
        rows, rest = divmod(columns(line, width), width)  # a linha digitada pode ocupar várias do terminal
        line += " \r" * (rest == 0)  # na última coluna o cursor não desce sozinho
        return print("\r" + "\x1b[A" * rows + f"\x1b[J{text}\n" + line * (not self.leaving), end="", flush=True)


# Modo medida: --ping.

def ping(args):
    """Manda --ping datagramas numerados e conta o que volta; Failure se nada voltou."""
    tally = Tally(args.espera)
    with contextlib.closing(Wire(args)) as wire:
        if args.tamanho > wire.limit:
            raise Failure(f"{args.tamanho} bytes não cabem num datagrama: o limite aqui é {wire.limit}")
        try:
            run_ping(wire, args, tally)
        finally:  # com Ctrl+C também há o que contar
            live()
            print(f"{wire.where}, {args.tamanho} bytes", *report(tally), sep="\n", flush=True)
        if not tally.trips:
            raise Failure(wire.trouble or wire.silence())


def run_ping(wire, args, tally):
    """O laço: a cada intervalo sai um, e entre um e outro se escuta; no fim, até voltarem todos ou acabar a espera."""
    session, next_at, next_live, finish = secrets.randbits(32), time.monotonic(), 0.0, math.inf
    while time.monotonic() < finish:
        now = time.monotonic()
        if len(tally.left_at) < args.ping and now >= next_at:
            tally.left_at.append(time.perf_counter())  # o relógio mais fino; só para medir
            wire.send(encode_ping(session, len(tally.left_at) - 1, args.tamanho))
            next_at = max(next_at, now - WAKE_S) + args.intervalo / 1000
            finish = math.inf if len(tally.left_at) < args.ping else now + args.espera
        data = wire.receive((next_at if finish == math.inf else finish) - now)
        if data is not None:
            wire.trouble = ""  # era passageiro
            tally.answered(decode_ping(data, session, args.tamanho), time.perf_counter())
            if not tally.lost() and finish < math.inf:
                finish = min(finish, time.monotonic() + LAST_COPIES_S)
        if now >= next_live:
            next_live = now + LIVE_S
            live(f"{len(tally.left_at)}/{args.ping} enviados, {len(tally.trips)} respondidos  {wire.trouble}")


def live(text=""):
    """A linha viva do --ping: só num terminal, e de uma linha dele não passa."""
    if sys.stderr and sys.stderr.isatty():
        print(f"\r\x1b[K{text[:(os.get_terminal_size(2).columns or 80) - 1]}", end="", file=sys.stderr, flush=True)


def start(args):
    if args.ping:
        return ping(args)
    if args.mensagem is not None:
        return ask(args, args.mensagem.encode("utf-8", "replace"))
    if not args.apelido and not os.isatty(0):
        with contextlib.closing(Keyboard("")) as keyboard:
            keyboard.start()
            return max((ask(args, line) for line in iter(keyboard.get, None)), default=0)  # 1, se faltou uma resposta
    prompt = "> " if os.isatty(0) and os.isatty(1) else ""
    with contextlib.closing(Wire(args)) as wire, contextlib.closing(Keyboard(prompt)) as keyboard, \
            contextlib.closing(Conversation(wire, keyboard, args)) as conversation:
        keyboard.start()
        return conversation.run()


def nickname(text):
    if not text or " " in text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} não serve: use um apelido sem espaços")
    return text


def build_parser():
    parser = Parser(description="Cliente UDP: conversa, pergunta e mede.",
                    epilog="Antes, em outro terminal: ./servidor_udp.py")
    parser.add_argument("endereco", nargs="?", default="127.0.0.1", type=host_name, metavar="ENDEREÇO",
                        help="do servidor: IPv4, IPv6 ou nome (padrão: %(default)s)")
    parser.add_argument("porta", nargs="?", default=5050, type=number(int, 1, 65535, "uma porta"), metavar="PORTA",
                        help="do servidor (padrão: %(default)s)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--mensagem", metavar="TEXTO", help="envia esta linha, mostra a resposta e sai")
    what.add_argument("--ping", type=number(int, 1, 100000, "um número"), metavar="N",
                      help="envia N datagramas numerados e conta o que volta")
    what.add_argument("--apelido", type=nickname, metavar="NOME", help="entra no chat com este nome")
    parser.add_argument("--espera", type=number(float, 0.01, 3600, "segundos"), default=2, metavar="S",
                        help="quanto esperar por uma resposta (padrão: %(default)s)")
    parser.add_argument("--tentativas", type=number(int, 1, 1000, "um número"), default=1, metavar="N",
                        help="envios de cada pergunta até desistir (padrão: %(default)s, sem retransmitir)")
    parser.add_argument("--intervalo", type=number(float, 0, 60000, "milissegundos"), default=100, metavar="MS",
                        help="milissegundos entre um --ping e o próximo (padrão: %(default)s)")
    parser.add_argument("--tamanho", type=number(int, PING.size, 65527, "bytes"), default=64, metavar="B",
                        help="bytes de cada --ping (padrão: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="mostra em stderr cada datagrama")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}", help="mostra a versão e sai")
    return parser


def main(argv=None):
    return run(build_parser, start, argv)


if __name__ == "__main__":
    sys.exit(main())
