#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cliente UDP: uma linha, um datagrama. Conversa, pergunta e mede o que se perde no caminho.

    ./servidor_udp.py                  em um terminal
    ./cliente_udp.py                   em outro: cada linha digitada volta

    ./cliente_udp.py --ping 50         50 datagramas numerados: tempos, perdas, cópias, ordem
    ./cliente_udp.py --apelido ana     entra na sala de: ./servidor_udp.py --modo chat

O datagrama de --ping, que qualquer servidor de eco devolve (números com o byte maior primeiro):

     0       4         8        12              --tamanho, ao todo
    +--------+---------+--------+------------------------+
    | "PING" | sorteio | número | 00 01 02 ... FF 00 ... |   o sorteio é desta execução
    +--------+---------+--------+------------------------+

O cliente ingênuo, que já conversa com o eco:

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", 5050))
    for line in sys.stdin:
        sock.send(line.encode())
        print(sock.recv(65535).decode(), end="")

O que lhe falta, e quem o cura (o principal primeiro), na parte de mesmo número. No fim do arquivo,
sob o título "Em volta": a linha de comando, main(), e o que as partes já usam antes, como Failure
(um erro que se diz numa linha), reason() e escape().

    1  sem ninguém lá, o send() dá certo e o recv() falha ... Wire
    2  espera sem fim o perdido, e crê no atrasado .......... ask (de outra porta), exchange
    3  não sabe quanto se perde, se dobra ou se atrasa ...... Tally
    4  numa sala, só ouve quando fala ....................... Conversation, Screen

O que ele não faz: não cifra, não parte em pedaços o que não cabe num datagrama, e não sabe se o
que se perdeu foi a pergunta ou a resposta (nenhum programa sabe).
"""
import os
import sys

# Um Python incompleto (o python3-minimal do Debian) diz o que lhe falta, em vez de um traceback.
try:
    import argparse
    import collections
    import contextlib
    import errno
    import io
    import math
    import queue
    import re
    import secrets
    import selectors
    import shlex
    import signal
    import socket
    import struct
    import threading
    import time
    import types
    import unicodedata
except ImportError as error:
    sys.exit(f"{os.path.basename(sys.argv[0])}: erro: este Python veio sem o módulo {error.name}. "
             "Instale-o inteiro: sudo apt install python3 (ou o de https://www.python.org)")

# Sem o módulo readline (Windows, um Python mínimo), o terminal edita a linha como sabe.
try:
    import readline
except ImportError:
    readline = None
# O readline põe o terminal em outro modo, e só isto o devolve se o programa acaba no meio da linha.
try:
    import termios
except ImportError:
    termios = None

# ---------------------------------------------------------------------------------------------
# 1. Wire: um fio que não avisa
#
# Em UDP, enviar dá certo mesmo sem ninguém do outro lado. Um socket conectado (connect() não manda
# nada: só anota o destino, e filtra o que vem de outros) ao menos recebe o aviso ICMP "porta sem
# dono" (RFC 1122, 4.1.3.3), no próximo send() ou recv(); sem ele, resta esperar e desistir.

# Segundos: no Windows, o Ctrl+C só é visto entre duas esperas.
WAKE_S = 1.0
# Bytes de um datagrama: 65535 menos os 8 do UDP (e, em IPv4, os 20 do IP): RFC 768 e 791.
MAX_PAYLOAD = {
    socket.AF_INET: 65507,
    socket.AF_INET6: 65527,
}
# Maior que qualquer datagrama: nada chega cortado, e uma linha que passe disto será recusada.
ANSWER_SIZE = 65536
# Bytes pedidos para as filas do kernel: no padrão do macOS (9216) nem cabe um datagrama grande.
QUEUE_BYTES = 1 << 20


def socket_address(host, port):
    """(família, endereço); um nome que tem IPv4 e IPv6 vale pelo IPv4, como no servidor."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, _, _, _, address = min(found, key=lambda item: item[0] != socket.AF_INET)
    return family, address


class Wire:
    """Um socket UDP conectado ao servidor, e o último erro da rede."""

    def __init__(self, args):
        self.args = args
        self.where = f"{args.endereco} porta {args.porta}"
        # O que a rede disse de errado, como frase; "" se nada.
        self.trouble = ""
        try:
            family, address = socket_address(args.endereco, args.porta)
        except (OSError, UnicodeError) as error:
            raise Failure(explain_host(error, args.endereco)) from None
        try:
            self.sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            raise Failure(self.explain(error)) from None
        self.close = self.sock.close
        try:
            self.open(address)
        except OSError as error:
            self.close()
            raise Failure(self.explain(error)) from None
        queue_bytes = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        # Bytes do maior datagrama que sai daqui.
        self.limit = min(MAX_PAYLOAD[family], queue_bytes)

    def open(self, address):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            # ENOBUFS onde o sistema recusa em vez de dar o que pode.
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, option, QUEUE_BYTES)
        self.sock.connect(address)
        if self.sock.getsockname() == self.sock.getpeername():
            # O kernel sorteou para nós a porta vazia do destino: falaríamos sozinhos.
            raise ConnectionRefusedError
        self.sock.setblocking(False)

    def send(self, data):
        """Manda um datagrama; Failure se não cabe em um."""
        if len(data) > self.limit:
            raise Failure(f"{len(data)} bytes não cabem num datagrama: o limite aqui é "
                          f"{self.limit}, e nada foi enviado. Para mais que isso, use TCP: "
                          "./cliente.py")
        if self.attempt("->", self.sock.send, data) is None:
            # Pode ser só o aviso do datagrama anterior: nada saiu.
            self.attempt("->", self.sock.send, data)

    def receive(self, wait_s, *others):
        """O próximo datagrama; None se passou wait_s (ou WAKE_S), ou há o que ler em `others`."""
        patience = max(0, min(wait_s, WAKE_S))
        if self.sock in wait_ready([self.sock, *others], timeout=patience):
            return self.attempt("<-", self.sock.recv, ANSWER_SIZE)
        return None

    def attempt(self, arrow, operation, argument):
        """Chama send ou recv. Um erro da rede fica em trouble: pode passar, e quem chama decide."""
        result = None
        try:
            result = operation(argument)
        except BlockingIOError:
            # Fila de saída cheia, ou chegou com a soma de verificação errada: mais um perdido.
            pass
        except OSError as error:
            self.trouble = self.explain(error)
        if self.args.verbose and result is not None:
            self.trace(arrow, argument if arrow == "->" else result)
        return result

    def trace(self, arrow, data):
        text = escape(bytes(data[:60]).decode("utf-8", "replace"))
        print(f"{arrow} {self.where} {len(data)} B {text}", file=sys.stderr, flush=True)

    def explain(self, error):
        """O que dizer de um erro da rede (ConnectionError é o aviso ICMP de porta sem dono)."""
        if isinstance(error, ConnectionError):
            return (f"ninguém escuta em {self.where}: o datagrama saiu mesmo assim, e o que voltou "
                    "foi o aviso ICMP de porta sem dono. Em TCP o connect() já teria sido "
                    f"recusado, antes de qualquer dado. {explain_refusal(self.args)}")
        fault = explain_host(error, self.args.endereco)
        if fault:
            return fault
        hint = {
            errno.EMSGSIZE: "Tente um datagrama menor",
            errno.EACCES: "É um endereço de difusão?",
            errno.EPERM: "Um firewall não deixa?",
        }.get(error.errno, "Confira o endereço e a rede: ip route")
        return f"não foi possível falar com {self.where}: {reason(error)}. {hint}"

    def silence(self):
        """O que dizer quando nada voltou: em UDP, a causa ninguém conta."""
        hint = f"--tentativas {5 * self.args.tentativas}"
        if self.args.ping:
            hint = f"--espera {5 * self.args.espera:g}"
        tries = "1 tentativa"
        if self.args.tentativas > 1:
            tries = f"{self.args.tentativas} tentativas"
        return (f"sem resposta de {self.where} em {self.args.espera:g} s, em {tries}. "
                "O datagrama saiu, mas em UDP ninguém avisa o que se perde: a pergunta, a "
                "resposta, ou um firewall no caminho; o TCP teria retransmitido sozinho. "
                f"Tente: {hint}")


def explain_refusal(args):
    """A máquina está lá, e ninguém escuta nessa porta, nesse endereço: o que digitar."""
    mode = " --modo chat" * bool(args.apelido)
    host = args.endereco
    if is_here(host):
        return f"Confira a porta, ou suba o servidor: ./servidor_udp.py {host} {args.porta}{mode}"
    return ("Lá o servidor está no ar? Então só escuta em 127.0.0.1; naquela máquina: "
            f"./servidor_udp.py {everywhere(host)} {args.porta}{mode}")


# --- bloco comum: daqui ---
def is_here(host):
    """O endereço é desta máquina? Só num endereço seu o kernel deixa fazer bind()."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as sock:
            sock.bind(address)
        return True
    except OSError:
        return False


def everywhere(host):
    """O endereço que atende por todas as interfaces, na família de `host`."""
    return "::" if ":" in host else "0.0.0.0"
# --- fim do bloco comum: daqui ---


# ---------------------------------------------------------------------------------------------
# 2. ask: perguntar, e ter por onde desistir
#
# Quem só espera fica para sempre com o que se perdeu. Cada pergunta tem um prazo e um número de
# tentativas, e sai de um socket novo, de outra porta: a resposta atrasada da anterior não acha dono
# (como no DNS, RFC 5452). Uma sala pede antes uma prova de endereço: responde-se sozinho a ela.

# Vezes que se responde a pedidos de código por pergunta: um servidor torto não nos faz girar.
MAX_PROOFS = 3
# Bytes do /entrar: a sala não devolve mais do que recebe, e assim a frase inteira cabe.
HELLO_SIZE = 64
# O que se diz ao ir embora, e o que a sala responde.
LEAVE = b"/sair"
GOODBYE = "* até logo\n".encode()

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


def proof(answer: bytes, line: bytes):
    """O que responder a uma sala que pede prova de endereço, para então dizer `line`.

    None se ela não pede nada.
    """
    if answer in HINTS:
        return ENTER.ljust(HELLO_SIZE)
    head, tail = INVITE.encode().split(b"{}")
    code = answer[len(head):][:CODE_SIZE]
    if answer == head + code + tail and len(code) == CODE_SIZE:
        return code + b" " + line
    return None


def ask(args, question):
    """Manda a pergunta e mostra a resposta; devolve 0, ou 1 se ela não veio.

    Failure a um erro da rede.
    """
    with contextlib.closing(Wire(args)) as wire:
        for left in reversed(range(args.tentativas)):
            answer = exchange(wire, question, hurry=left == 0)
            if answer is not None:
                say("\n".join(readable(answer)))
                return 0
        if wire.trouble:
            raise Failure(wire.trouble)
        return complain(wire.silence())


def exchange(wire, question, hurry):
    """Uma tentativa: a resposta, ou None. Se é uma sala, entra, pergunta e sai.

    hurry: a um erro da rede desiste na hora; senão, gasta a espera toda: o Wi-Fi pode voltar.
    """
    deadline = time.monotonic() + wire.args.espera
    proofs = 0
    wire.trouble = ""
    wire.send(question)
    while time.monotonic() < deadline and not (hurry and wire.trouble):
        answer = wire.receive(deadline - time.monotonic())
        if answer is None:
            continue
        reply = None
        if answer != question and proofs < MAX_PROOFS:
            reply = proof(answer, question)
        if reply is None:
            if proofs:
                wire.send(LEAVE)
            return answer
        proofs += 1
        wire.send(reply)
    return None


def say(text):
    """Mostra uma linha; num cano, até o fim dela, ainda que ele não queira esperar (O_NONBLOCK)."""
    if is_terminal(sys.stdout):
        print(text, flush=True)
    else:
        line = text + "\n"
        write_all(sys.stdout.fileno(), line.encode(sys.stdout.encoding, "replace"))


def readable(data: bytes) -> list:
    """As linhas de um datagrama, prontas para o terminal."""
    text = data.decode("utf-8", "replace")
    if text.endswith("\n"):
        text = text[:-1]
    return [escape(line) for line in text.split("\n")]


# ---------------------------------------------------------------------------------------------
# 3. Tally: quanto se perde, se dobra, se atrasa
#
# Um datagrama pode não chegar, chegar duas vezes, ou depois do seguinte, e quem só conta respostas
# não vê a diferença. Cada um leva um número e um sorteio desta execução: um eco atrasado não passa
# por fresco, e um eco de outra execução não passa por nosso.

# Segundos entre duas atualizações da linha viva; e o que se espera por cópias depois da última.
LIVE_S = 0.1
LAST_COPIES_S = 0.1
# Datagramas por segundo que servidor_udp.py atende, se não lhe dizem outra coisa, a quem não é da
# máquina dele.
SERVER_RATE = 1000
# Marcas por linha do gráfico, e linhas dele; além disso, cada marca vale por vários.
STRIP_WIDTH = 64
STRIP_ROWS = 16

# "PING", sorteio, número.
PING = struct.Struct("!4sII")
PING_FILL = bytes(range(256))


def encode_ping(session: int, seq: int, size: int) -> bytes:
    """O datagrama número `seq` (32 bits) da execução `session`, com `size` bytes (12 ou mais)."""
    fill = PING_FILL * (size // 256 + 1)
    return PING.pack(b"PING", session, seq) + fill[:size - PING.size]


def decode_ping(data: bytes, session: int, size: int) -> int:
    """O número de um eco, ou -1 se ele não é exatamente um dos datagramas desta execução."""
    seq = PING.unpack_from(data.ljust(PING.size))[2]
    if data == encode_ping(session, seq, size):
        return seq
    return -1


class Tally:
    """As contas de um --ping: recebe números e instantes, não conhece sockets nem relógios."""

    def __init__(self, patience_s):
        # Segundos depois dos quais uma resposta é atrasada.
        self.patience_s = patience_s
        # Quando saiu cada datagrama, na ordem dos números.
        self.left_at = []
        # Número -> segundos de ida e volta.
        self.trips = {}
        self.duplicates = 0
        self.reordered = 0
        # Nem são desta execução, ou nem saíram ainda.
        self.strange = 0
        # O maior número que já voltou.
        self.newest = 0

    def answered(self, seq, now):
        if not 0 <= seq < len(self.left_at):
            self.strange += 1
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
        return "".join(map(self.mark, range(len(self.left_at))))

    def mark(self, seq):
        if seq not in self.trips:
            return "x"
        if self.trips[seq] > self.patience_s:
            return "a"
        return "."


def percentile(ordered: list, percent: float) -> float:
    """O menor valor da lista em ordem que não é menor que `percent` por cento dela."""
    place = math.ceil(len(ordered) * percent / 100)
    return ordered[max(0, place - 1)]


def strip_chart(marks: str) -> list:
    """As linhas do gráfico, com o número do primeiro datagrama de cada.

    Se as marcas não cabem, cada uma vale pela pior de um grupo.
    """
    group = math.ceil(len(marks) / (STRIP_WIDTH * STRIP_ROWS)) or 1
    groups = [marks[i:i + group] for i in range(0, len(marks), group)]
    worst = "".join(max(group, key=".ax".index) for group in groups)
    rows = []
    for start in range(0, len(worst), STRIP_WIDTH):
        rows.append(f"{start * group + 1:>7} {worst[start:start + STRIP_WIDTH]}")
    key = " " * 8 + ". respondido   a atrasado   x perdido"
    if group > 1:
        key += f"   (o pior de cada {group})"
    return [*rows, key]


def report(tally: Tally) -> list:
    """O resumo de um --ping, linha por linha."""
    count = len(tally.left_at)
    trips = tally.on_time()
    lost = tally.lost()
    percent = 100 * lost / max(1, count)
    lines = [
        f"{count} enviados: {len(trips)} respondidos, {count - lost - len(trips)} atrasados, "
        f"{lost} perdidos ({percent:.1f}%)",
        f"{tally.duplicates} em dobro, {tally.reordered} fora de ordem, {tally.strange} estranhos",
    ]
    if trips:
        low, middle, p99, high = [
            1000 * percentile(trips, at) for at in (0, 50, 99, 100)
        ]
        lines.append(f"ida e volta: mínimo {low:.3f}  mediana {middle:.3f}  p99 {p99:.3f}  "
                     f"máximo {high:.3f} ms")
    return lines + strip_chart(tally.marks())


def ping(args):
    """Manda --ping datagramas numerados e conta o que volta; Failure se nada voltou."""
    tally = Tally(args.espera)
    with contextlib.closing(Wire(args)) as wire:
        if args.tamanho > wire.limit:
            raise Failure(f"{args.tamanho} bytes não cabem num datagrama: "
                          f"o limite aqui é {wire.limit}")
        try:
            run_ping(wire, args, tally)
        except KeyboardInterrupt:
            # Interrompido, também há o que contar.
            with last_words():
                show_tally(wire, tally)
            raise
        show_tally(wire, tally)
        if not tally.trips:
            raise Failure(wire.trouble or explain_no_echo(wire, tally))
        pace = explain_pace(tally, wire.sock.getpeername()[0])
        if pace:
            print(pace, file=sys.stderr, flush=True)


def show_tally(wire, tally):
    show_live("")
    say("\n".join([f"{wire.where}, {wire.args.tamanho} bytes", *report(tally)]))


def explain_no_echo(wire, tally):
    """Nenhum eco: ou não veio nada, ou quem está lá não é um servidor de eco."""
    if tally.strange:
        return (f"{wire.where} responde, mas não é o eco: o --ping quer de volta o que mandou. "
                "É uma sala? Um eco se sobe com: ./servidor_udp.py")
    return wire.silence()


def explain_pace(tally, host):
    """O que dizer de perdas que podem ser do limite do servidor, e não da rede; "" se não podem."""
    here = host == "::1" or host.startswith("127.")
    if here or not tally.lost() or len(tally.left_at) < 2:
        return ""
    spent = tally.left_at[-1] - tally.left_at[0]
    if len(tally.left_at) <= SERVER_RATE * spent:
        return ""
    return (f"aviso: num ritmo acima de {SERVER_RATE} por segundo, o servidor_udp.py descarta, se "
            "não for desta máquina: a perda pode ser o limite dele, e não a rede. "
            "Tente: --intervalo 2")


def run_ping(wire, args, tally):
    """A cada intervalo sai um, e entre um e outro se escuta; no fim, até voltarem, ou o prazo."""
    session = secrets.randbits(32)
    next_at = time.monotonic()
    next_live = 0.0
    finish = math.inf
    while time.monotonic() < finish:
        now = time.monotonic()
        if len(tally.left_at) < args.ping and now >= next_at:
            # O relógio mais fino; só para medir.
            tally.left_at.append(time.perf_counter())
            wire.send(encode_ping(session, len(tally.left_at) - 1, args.tamanho))
            # Se a máquina dormiu (a tampa de um notebook), recupera-se um segundo de envios, e não
            # a hora toda.
            next_at = max(next_at, now - WAKE_S) + args.intervalo / 1000
            if len(tally.left_at) == args.ping:
                finish = now + args.espera
        wake_at = next_at
        if finish < math.inf:
            wake_at = finish
        data = wire.receive(wake_at - now)
        if data is not None:
            # Se havia um erro, era passageiro.
            wire.trouble = ""
            seq = decode_ping(data, session, args.tamanho)
            tally.answered(seq, time.perf_counter())
            if not tally.lost() and finish < math.inf:
                finish = min(finish, time.monotonic() + LAST_COPIES_S)
        if now >= next_live:
            next_live = now + LIVE_S
            show_live(f"{len(tally.left_at)}/{args.ping} enviados, "
                      f"{len(tally.trips)} respondidos  {wire.trouble}")


def show_live(text):
    """A linha viva do --ping: só num terminal, e de uma linha dele não passa."""
    if is_terminal(sys.stderr):
        width = os.get_terminal_size(2).columns or 80
        print(f"\r\x1b[K{text[:width - 1]}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------
# 4. Conversation: o teclado e a rede ao mesmo tempo
#
# Numa sala o que chega não é resposta a nada: quem só ouve depois de falar perde a conversa. Um
# select() espera pelos dois, o teclado lido por uma thread. Sem conexão, a sala esquece quem se
# cala, e o roteador do caminho também (uns 30 s, RFC 4787, 4.3): um datagrama vazio os lembra.

# Linhas lidas antes da hora de enviar.
QUEUE_LINES = 64
# Perguntas que ainda podem receber resposta, em dia ou atrasada.
REMEMBERED = 32
# Segundos entre dois datagramas vazios, de quem está numa sala calado.
KEEPALIVE_S = 15
# Segundos entre duas linhas numa sala, que só aceita 20 por segundo de cada um.
ROOM_PACE_S = 0.1

# Onde a conversa está: fora de qualquer sala (ou num eco), à porta de uma, dentro, ou de saída.
OUTSIDE = "fora"
ENTERING = "à porta"
MEMBER = "dentro"
LEAVING = "de saída"

# --- bloco comum: tela ---
PROMPT = "> "
# Segundos que se espera o prompt acabar de ser pintado, para não escrever por cima dele.
PAINT_S = 0.2
# Colunas entre duas paradas de tabulação.
TAB = 8
# O que não ocupa lugar: acentos que se combinam com a letra, e formatação.
WIDTHLESS = ("Mn", "Me", "Cf")


def is_terminal(stream):
    return stream.isatty()


def columns(text: str, width: int) -> int:
    """Colunas que `text` ocupa num terminal de `width`, a partir do começo de uma linha dele."""
    used = 0
    for char in text:
        size = 1
        if char == "\t":
            size = TAB - used % width % TAB
        elif unicodedata.category(char) in WIDTHLESS:
            size = 0
        elif unicodedata.category(char) == "Cc":
            # O readline mostra um Ctrl+A como ^A.
            size = 2
        elif unicodedata.east_asian_width(char) in "FW":
            size = 2
            # O que não cabe no fim da linha desce inteiro, e deixa lá uma coluna vazia.
            used += used % width == width - 1
        used += size
    return used


class Screen:
    """Teclado e tela: uma linha sendo digitada, e o que chega aparece acima dela sem rasgá-la."""

    def __init__(self):
        # O que se digita segue como veio, seja qual for a codificação.
        sys.stdin.reconfigure(errors="surrogateescape")
        # Está-se no meio de uma linha?
        self.typing = False
        # O prompt já está inteiro na tela?
        self.painted = threading.Event()
        # O começo de uma linha que ainda está chegando, já mostrado.
        self.unfinished = ""
        # Um terminal que não apaga (TERM=dumb, o de um editor): só se acrescenta a ele.
        self.dumb = os.environ.get("TERM", "dumb") == "dumb" and os.name == "posix"
        # A conversa acabou, se quem a conduz o diz: a linha em edição já não se redesenha.
        self.over = False
        # Como o terminal estava, para o devolver assim.
        self.mode = None
        # Como o readline o põe, para editar uma linha.
        self.editing = None
        if termios:
            self.mode = termios.tcgetattr(0)
        # Nem toda libedit tem este aviso: sem ele, espera-se um pouco, uma vez por linha.
        if hasattr(readline, "set_pre_input_hook"):
            readline.set_pre_input_hook(self.ready)

    def __enter__(self):
        if callable(signal.getsignal(signal.SIGINT)):
            # Da linha em edição, quem desce é __exit__.
            signal.signal(signal.SIGINT, interrupt)
            if termios:
                signal.signal(signal.SIGCONT, self.resume)
        return self

    def __exit__(self, kind, *_):
        """Sair com a outra thread dentro do readline deixaria o terminal sem eco."""
        if self.mode:
            signal.signal(signal.SIGCONT, signal.SIG_DFL)
            # Sem esperar que se leia o que já foi escrito: pode estar parado (Ctrl+S).
            termios.tcsetattr(0, termios.TCSANOW, self.mode)
        if kind is not KeyboardInterrupt:
            glued = kind and self.typing
            if glued and (termios is None or wait_ready(writers=[1], timeout=PAINT_S)):
                # O erro que se dirá não fica grudado ao que se digitava.
                os.write(1, b"\n")
            return
        if self.mode:
            # Parada por Ctrl+S, a thread do readline guardaria a trava do stdout de C, e o processo
            # não sairia. A um Ctrl+C, o kernel a solta sozinho; a um SIGTERM, não. No Linux, TCOON
            # só desfaz o TCOOFF: por isso os dois.
            termios.tcflow(0, termios.TCOOFF)
            termios.tcflow(0, termios.TCOON)
        # No Windows só se espera por sockets: supõe-se que a tela aceita.
        if termios is None or wait_ready(writers=[1], timeout=PAINT_S):
            # O prompt do shell não fica grudado ao ^C.
            os.write(1, b"\n")
        else:
            # Ninguém a lê: o que está nos buffers não tem para onde ir.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def ready(self):
        """O readline pintou o prompt, com o terminal já ao modo dele."""
        if termios:
            self.editing = termios.tcgetattr(0)
        self.painted.set()

    def resume(self, *_):
        """De volta de um Ctrl+Z: o shell devolveu o terminal ao modo comum, e escreveu nele.

        Sem print(), que este sinal pode ter cortado no meio.
        """
        if self.typing:
            with contextlib.suppress(OSError, termios.error):
                if self.editing:
                    termios.tcsetattr(0, termios.TCSANOW, self.editing)
                os.write(1, self.edited().encode(sys.stdout.encoding, "backslashreplace"))
            self.unfinished = ""

    def lines(self):
        """Linhas digitadas, em bytes, sem o fim delas; Ctrl+D termina."""
        while True:
            self.painted.clear()
            self.unfinished = ""
            self.typing = True
            try:
                line = self.read_line()
            except EOFError:
                print(flush=True)
                return
            finally:
                self.typing = False
            yield line.encode("utf-8", "surrogateescape")

    def read_line(self):
        """input(), que sem o readline poria o prompt em stderr."""
        if readline:
            return input(PROMPT)
        print(PROMPT, end="", flush=True)
        self.painted.set()
        return input()

    def edited(self):
        """A linha em edição, com o prompt."""
        if readline:
            return PROMPT + readline.get_line_buffer()
        return PROMPT

    def show(self, text):
        """Apaga a linha em edição, mostra o que chegou e redesenha a linha como estava.

        Simplificação: o cursor volta ao fim dela, ainda que estivesse no meio.
        """
        if not self.typing:
            print(text, end="", flush=True)
            return
        self.painted.wait(PAINT_S)
        self.painted.set()
        # Perguntado ao terminal: a variável COLUMNS pode ser de outra janela. Há os que dizem 0.
        width = os.get_terminal_size(1).columns or 80
        line = self.edited()
        rows = columns(line, width) // width + bool(self.unfinished)
        # Uma linha que chega aos pedaços se junta de novo.
        text = self.unfinished + text
        last = text[text.rfind("\n") + 1:]
        self.unfinished = ""
        if columns(last, width) < width:
            self.unfinished = last
        if columns(line, width) % width == 0:
            # Na última coluna o cursor não desce sozinho.
            line += " \r"
        if self.over:
            line = ""
        # Ao começo da linha, tantas para cima, e apaga dali ao fim da tela (ECMA-48).
        erase = "\r" + "\x1b[A" * rows + "\x1b[J"
        if self.dumb:
            erase = "\n"
            self.unfinished = ""
        if last:
            text += "\n"
        print(erase + text + line, end="", flush=True)
# --- fim do bloco comum: tela ---

class Keyboard:
    """Lê a entrada numa thread: o select() do Windows só aceita sockets. Avisa por um par."""

    def __init__(self, screen):
        # A entrada pode ter sido aberta só para escrever (0>/dev/null): ler nada dela já o mostra.
        try:
            if not is_terminal(sys.stdin):
                os.read(sys.stdin.fileno(), 0)
        except OSError as error:
            raise Failure(f"não consigo ler a entrada: {reason(error)}") from None
        # Screen, se se digita num terminal; ou None.
        self.screen = screen
        self.lines = queue.Queue(QUEUE_LINES)
        self.wake_r, self.wake_w = socket.socketpair()
        # É o que o select() pergunta.
        self.fileno = self.wake_r.fileno

    def start(self):
        """Só dentro do with: um Ctrl+C antes da hora acha o close()."""
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        source = self.screen.lines() if self.screen else piped_lines()
        try:
            for line in source:
                self.put(line)
            self.put(None)
        except OSError as error:
            self.put(Failure(f"não consigo ler a entrada: {reason(error)}"))

    def put(self, item):
        self.lines.put(item)
        # O programa pode estar acabando, e já ter fechado o par.
        with contextlib.suppress(OSError):
            self.wake_w.send(b"!")

    def get(self):
        """Espera e devolve a próxima linha (bytes), ou None no fim; Failure se não se deixa ler."""
        while not wait_ready([self], timeout=WAKE_S):
            pass
        self.wake_r.recv(1)
        item = self.lines.get()
        if isinstance(item, Failure):
            raise item
        return item

    def close(self):
        self.wake_r.close()
        self.wake_w.close()


def piped_lines():
    """As linhas da entrada, sem o fim delas; uma sem fim vem aos pedaços, e não cresce."""
    fd = sys.stdin.fileno()
    pending = b""
    while True:
        # os.read(): uma thread parada no buffer do Python atrapalharia a saída.
        chunk = os.read(fd, ANSWER_SIZE)
        *lines, pending = (pending + chunk).split(b"\n")
        yield from lines
        if pending and (not chunk or len(pending) >= ANSWER_SIZE):
            yield pending
            pending = b""
        if not chunk:
            return


class Conversation:
    """As perguntas à espera de resposta, e em que pé está a conversa."""

    def __init__(self, wire, keyboard, args):
        self.wire = wire
        self.keyboard = keyboard
        self.args = args
        # Estado de saída: 1, se num cano faltou uma resposta.
        self.status = 0
        self.state = OUTSIDE
        # Perguntas: data, sent_at, deadline, tries e late (o prazo de todas as tentativas passou).
        self.waiting = collections.deque(maxlen=REMEMBERED)
        # A última linha dita, e quantos pedidos de código ela já custou.
        self.last = b""
        self.proofs = 0
        # O código com que se entrou: se o roteador nos muda a porta, é ele que devolve o apelido.
        self.code = b""
        self.keepalive_at = math.inf
        # Antes disto, nenhuma linha tem vez.
        self.next_line_at = 0.0

    def run(self):
        if self.args.apelido:
            self.state = ENTERING
            self.say(ENTER.ljust(HELLO_SIZE))
        while self.state != LEAVING or self.in_time():
            deadlines = [self.keepalive_at, *(question.deadline for question in self.in_time())]
            if time.monotonic() < self.next_line_at:
                deadlines.append(self.next_line_at)
            others = [self.keyboard] if self.is_listening() else []
            data = self.wire.receive(min(deadlines) - time.monotonic(), *others)
            if data is not None:
                self.hear(data)
            if self.state == ENTERING and not self.in_time():
                # Não é uma sala, ou não respondeu: conversa-se assim mesmo.
                self.state = OUTSIDE
            # Mesmo que a rede não pare de falar, o teclado é ouvido.
            if self.is_listening() and wait_ready([self.keyboard], timeout=0):
                self.obey(self.keyboard.get())
            self.check_deadlines()
            if self.wire.trouble:
                self.waiting.clear()
                self.warn(self.wire.trouble)
                self.wire.trouble = ""
        return self.status

    def is_listening(self):
        """O teclado tem vez? À porta, o que se dissesse se perderia: a sala só ouve quem entrou.

        Numa sala, as linhas de um cano, ou coladas num terminal, vão no ritmo dela: as que viessem
        de enxurrada, ela descartaria. De um cano, cada uma espera também a resposta à anterior.
        """
        if self.state == MEMBER:
            answered = self.keyboard.screen or not self.in_time()
            return answered and time.monotonic() >= self.next_line_at
        return self.state not in (ENTERING, LEAVING)

    def in_time(self):
        """As perguntas que ainda podem ter resposta em dia."""
        return [question for question in self.waiting if not question.late]

    def close(self):
        # Ctrl+C: sem um adeus, a sala só nos esqueceria dali a dois minutos.
        if self.state == MEMBER:
            self.wire.send(LEAVE)

    def hang_up(self, number, _):
        """Fecharam a janela do terminal: um adeus, e o fim que o sistema dá a todos."""
        self.close()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def obey(self, line):
        """Uma linha do teclado; None é o Ctrl+D, que numa sala quer dizer /sair."""
        if line is None and self.state == MEMBER:
            line = LEAVE
        if line is None:
            self.leave()
            return
        if self.state == MEMBER and line.strip() == LEAVE:
            self.leave()
        if len(line) > self.wire.limit:
            self.warn(f"{len(line)} bytes não cabem num datagrama: "
                      f"o limite aqui é {self.wire.limit}")
        else:
            self.say(line)

    def leave(self):
        self.state = LEAVING
        if self.keyboard.screen:
            self.keyboard.screen.over = True

    def say(self, line):
        now = time.monotonic()
        self.last = line
        self.proofs = 0
        self.next_line_at = now + ROOM_PACE_S
        self.waiting.append(types.SimpleNamespace(
            data=line,
            sent_at=now,
            deadline=now + self.args.espera,
            tries=self.args.tentativas,
            late=False,
        ))
        self.send(line)

    def send(self, data):
        self.wire.send(data)
        if self.state == MEMBER:
            self.keepalive_at = time.monotonic() + KEEPALIVE_S

    def hear(self, data):
        """Mostra o que chegou e desconta a pergunta a que responde.

        A um pedido de código, responde sem mostrar nada.
        """
        echo, note = self.settle(data)
        answer = None
        # Se é um pedido de código: o que se diz ao entrar é o apelido; sem ele, a linha, outra vez.
        if not echo and data != self.last and self.last.strip() != LEAVE:
            answer = proof(data, self.greeting() or self.last)
        if answer is None or self.proofs >= MAX_PROOFS:
            self.show(readable(data), note)
            return
        self.proofs += 1
        # Ou se pede o código (ENTER), ou já se devolve um, e isso é entrar.
        entering = not answer.startswith(ENTER)
        if entering and self.state != LEAVING:
            self.state = MEMBER
        self.send(answer)
        if not entering or not self.args.apelido:
            return
        self.code = answer[:CODE_SIZE]
        if not self.last.startswith(ENTER):
            # A sala nos tinha esquecido: entrou outra vez, e agora diz o que ia dizer.
            self.send(self.last)

    def greeting(self):
        """O que se diz ao entrar com --apelido; o código da vez anterior prova que ele é nosso."""
        if not self.args.apelido:
            return b""
        words = [b"/nick", self.args.apelido.encode("utf-8", "replace"), self.code]
        return b" ".join(word for word in words if word)

    def settle(self, data):
        """Tira da espera o que `data` responde; devolve se é um eco, e uma nota se pode ser velho.

        Um eco é igual à pergunta, e só a ela responde. Outra coisa qualquer (a sala, uma pessoa com
        nc) não diz a que responde, mas mostra que há alguém lá.
        """
        same = [question for question in self.waiting if question.data == data]
        late = [question for question in same if question.late]
        settled = same[:1]
        if late:
            # Não se sabe de qual das iguais é: saem todas, e a nota o diz.
            settled = same
        elif not same:
            # Ao /sair responde a despedida, ou quem já não nos conhece; e não as falas que vinham.
            is_farewell = data == GOODBYE or proof(data, LEAVE)
            settled = [question for question in self.in_time()
                       if is_farewell or question.data.strip() != LEAVE]
        for question in settled:
            self.waiting.remove(question)
        if not late:
            return same, ""
        age = f"{time.monotonic() - late[0].sent_at:.1f} s"
        if late == same:
            return same, f"  (atrasada: {age})"
        return same, f"  (esta, ou a atrasada de {age}: são iguais)"

    def check_deadlines(self):
        now = time.monotonic()
        if now >= self.keepalive_at:
            self.send(b"")
        for question in self.in_time():
            if question.deadline > now:
                continue
            question.tries -= 1
            question.late = question.tries == 0
            question.deadline = now + self.args.espera
            if question.late:
                self.warn(self.wire.silence())
            else:
                self.send(question.data)

    def warn(self, text):
        """O que não veio da rede: num terminal, acima da linha digitada; senão, um erro."""
        if self.keyboard.screen:
            self.show([f"({text})"])
        else:
            self.status = complain(text)

    def show(self, lines, note=""):
        text = "\n".join(lines) + note
        if self.keyboard.screen:
            self.keyboard.screen.show(text + "\n")
        else:
            say(text)


# ---------------------------------------------------------------------------------------------
# Em volta: a casa e a linha de comando

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


# --- bloco comum: cliente ---
def nickname(text):
    """type= de um apelido: o que a sala recusaria já se recusa aqui."""
    fault = nick_fault(text)
    if fault:
        raise argparse.ArgumentTypeError(f"{text!r} não serve: {fault}")
    return text


def add_server(add):
    """As opções ENDEREÇO e PORTA; add: o add_argument de um parser."""
    add("endereco", nargs="?", default="127.0.0.1", type=host_name, metavar="ENDEREÇO",
        help="do servidor: IPv4, IPv6 ou nome (padrão: %(default)s)")
    add("porta", nargs="?", default=5050, metavar="PORTA",
        type=number(int, 1, 65535, "uma porta"),
        help="do servidor (padrão: %(default)s)")
# --- fim do bloco comum: cliente ---


def start(args):
    if args.ping:
        return ping(args)
    if args.mensagem is not None:
        return ask(args, args.mensagem.encode("utf-8", "surrogateescape"))
    if not args.apelido and not is_terminal(sys.stdin):
        return ask_all(args)
    with contextlib.ExitStack() as at_end:
        wire = at_end.enter_context(contextlib.closing(Wire(args)))
        screen = None
        if is_terminal(sys.stdin) and is_terminal(sys.stdout):
            screen = at_end.enter_context(Screen())
        keyboard = at_end.enter_context(contextlib.closing(Keyboard(screen)))
        conversation = Conversation(wire, keyboard, args)
        at_end.enter_context(contextlib.closing(conversation))
        # Quem rodou com nohup o tem ignorado; no Windows, não há.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, conversation.hang_up)
        keyboard.start()
        return conversation.run()


def ask_all(args):
    """Cada linha do cano é uma pergunta; estado 1, se faltou uma resposta."""
    with contextlib.closing(Keyboard(None)) as keyboard:
        keyboard.start()
        return max((ask(args, line) for line in iter(keyboard.get, None)), default=0)


def build_parser():
    parser = Parser(description="Cliente UDP: conversa, pergunta e mede.",
                    epilog="Antes, em outro terminal: ./servidor_udp.py")
    add = parser.add_argument
    add_server(add)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--mensagem", metavar="TEXTO",
                      help="envia esta linha, mostra a resposta e sai")
    what.add_argument("--ping", metavar="N",
                      type=number(int, 1, 100000, "um número"),
                      help="envia N datagramas numerados e conta o que volta")
    what.add_argument("--apelido", type=nickname, metavar="NOME",
                      help="entra no chat com este nome")
    add("--espera", default=2, metavar="S",
        type=number(float, 0.01, 3600, "segundos"),
        help="quanto esperar por uma resposta (padrão: %(default)s)")
    add("--tentativas", default=1, metavar="N",
        type=number(int, 1, 1000, "um número"),
        help="envios de cada pergunta até desistir (padrão: %(default)s, sem retransmitir)")
    add("--intervalo", default=100, metavar="MS",
        type=number(float, 0, 60000, "milissegundos"),
        help="milissegundos entre um --ping e o próximo (padrão: %(default)s)")
    add("--tamanho", default=64, metavar="B",
        type=number(int, PING.size, 65527, "bytes"),
        help="bytes de cada --ping (padrão: %(default)s)")
    add("--verbose", action="store_true", help="mostra em stderr cada datagrama")
    add("--version", action="version", version=f"%(prog)s {VERSION}",
        help="mostra a versão e sai")
    return parser


def main(argv=None):
    return run(build_parser, start, argv)


if __name__ == "__main__":
    end_process(main())
