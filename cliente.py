#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cliente TCP: conversa num terminal, transporta bytes num cano e mede um servidor de eco.

    ./servidor.py                          em um terminal
    ./cliente.py                           em outro: digite; Ctrl+D termina
    ./cliente.py < filme.mp4 > copia.mp4   ida e volta, byte por byte
    ./cliente.py --mensagem "oi"           envia, espera a resposta inteira e sai
    ./cliente.py --medir                   quantas idas e voltas por segundo?

Enviar e receber são dois trabalhos ao mesmo tempo, e cada um tem a sua thread:

    teclado ou cano --> Sender: os.read(), sendall() ----> servidor
    tela ou cano    <-- thread principal: recv() <-------- servidor

O cliente ingênuo, que envia tudo e só depois lê, e que com um arquivo pequeno já serve:

    sock = socket.create_connection(("127.0.0.1", 5050))
    while data := os.read(0, 65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    while data := sock.recv(65536):
        os.write(1, data)

O que lhe falta, e quem o cura (o principal primeiro), na parte de mesmo número. No fim do arquivo,
sob o título "Em volta": a linha de comando, main(), e o que as partes já usam antes, como Failure
(um erro que se diz numa linha), reason() e escape().

    1  com 64 MiB trava: os dois enviam, ninguém lê ..... Sender, converse
    2  ninguém atende, e ele não insiste nem explica .... connect, explain_connect
    3  o que chega rasga a linha que se digita .......... Screen
    4  não sabe se o servidor é rápido .................. Meter, Histogram
    5  quem está no caminho lê tudo ..................... start_tls, TLSStream

O que ele não faz: reconectar no meio de uma conversa (o TCP não sabe o que o outro lado leu) e
entender o que passa: só conhece bytes e linhas.
"""
import os
import sys

# Um Python incompleto (o python3-minimal do Debian) diz o que lhe falta, em vez de um traceback.
try:
    import argparse
    import codecs
    import collections
    import contextlib
    import errno
    import io
    import itertools
    import re
    import selectors
    import shlex
    import shutil
    import signal
    import socket
    import threading
    import time
    import unicodedata
except ImportError as error:
    sys.exit(f"{os.path.basename(sys.argv[0])}: erro: este Python veio sem o módulo {error.name}. "
             "Instale-o inteiro: sudo apt install python3 (ou o de https://www.python.org)")

# Um Python compilado à mão sem o OpenSSL faz tudo, menos o TLS: tls_context() o diz.
try:
    import ssl
except ImportError:
    ssl = None
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
# 1. Sender: dois sentidos, duas threads
#
# Com uma thread só, que envia tudo e depois lê, um arquivo grande trava: o servidor devolve o que
# o cliente ainda não lê, os buffers dos dois lados enchem e ninguém mais anda (em lo, a
# interface com que a máquina fala consigo, com uns 8 MiB).
# Aqui uma thread envia e a outra recebe; no fim da entrada fecha-se só a ida (RFC 9293, 3.6), e as
# respostas que faltam ainda chegam.

# Bytes por leitura.
CHUNK = 64 * 1024
# Segundos: nenhuma espera passa disto sem acordar; no Windows, Ctrl+C não interrompe um recv().
WAKE_S = 1.0
# Segundos que se espera, depois que o servidor fecha, para saber se ficou algo por enviar.
LAST_WORDS_S = 1.0
# Como o TLS recusa o que não entende: um registro de alerta (RFC 8446, 5.1 e 6).
TLS_ALERT = re.compile(rb"\x15\x03.\0\x02..", re.DOTALL)


class Sender(threading.Thread):
    """A thread que lê a entrada e envia; no fim dela, fecha só a ida (meio-fechamento)."""

    def __init__(self, sock, chunks):
        # Presa num teclado mudo, não impede o programa de acabar.
        super().__init__(daemon=True)
        self.sock = sock
        # O que enviar, aos pedaços (bytes).
        self.chunks = chunks
        # O que impediu de enviar tudo: uma frase, ou None.
        self.lost = None
        # A thread principal avisa que o servidor fechou.
        self.server_left = False

    def read(self):
        """Uma entrada que não se deixa ler acaba ali: o que já seguiu ainda terá resposta."""
        try:
            yield from self.chunks
        except OSError as error:
            self.lost = f"não consigo ler a entrada: {reason(error)}"

    def run(self):
        try:
            for data in self.read():
                if self.server_left:
                    raise BrokenPipeError(errno.EPIPE, "a entrada ainda não tinha acabado")
                self.sock.sendall(data)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.lost = (f"o servidor fechou antes de receber tudo ({reason(error)}). "
                         "Ele atende esta máquina?")


def receive(sock):
    """Pedaços que chegam, até o servidor fechar."""
    # Um para a conversa toda: fazer um a cada pedaço custaria 5 % da vazão.
    with selectors.DefaultSelector() as selector:
        # Com TLS não se pergunta ao socket: o que falta mostrar pode já estar aqui, decifrado.
        # Simplificação: assim, no Windows, Ctrl+C espera pelo próximo byte.
        waits = not isinstance(sock, TLSStream)
        if waits:
            selector.register(sock, selectors.EVENT_READ)
        while True:
            while waits and not selector.select(WAKE_S):
                pass
            data = receive_piece(sock)
            if not data:
                return
            yield data


def receive_piece(sock):
    """O próximo pedaço; b"" no fim. Failure se a conversa foi cortada."""
    try:
        return sock.recv(CHUNK)
    except OSError as error:
        if ssl and isinstance(error, ssl.SSLError):
            raise Failure(explain_tls_end(error)) from None
        # Um RST, ou o kernel cansou de retransmitir para quem já não responde.
        raise Failure(f"o servidor caiu no meio da conversa ({reason(error)}). "
                      "Ele e a rede ainda estão de pé?") from None


def explain_tls_end(error):
    """Por que uma conversa por TLS acabou sem a despedida dele (close_notify)."""
    # Até o Python 3.9 o fim sem despedida não tem uma classe de erro própria.
    cut = isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"
    if cut:
        return ("a conversa foi cortada: o servidor desligou sem se despedir (close_notify), "
                "e pode faltar o fim do que ele dizia")
    # No TLS 1.3 a recusa de um certificado só chega depois do aperto de mão.
    return (f"o servidor desfez o TLS ({error.reason}). "
            "Ele exige um certificado? --certificado ARQUIVO")


def converse(sock, chunks, show):
    """Envia `chunks` por uma thread e mostra o que chega nesta.

    Devolve o primeiro pedaço que chegou: por ele, talk() sabe se o servidor só fala TLS.
    """
    sender = Sender(sock, chunks)
    sender.start()
    first = b""
    for data in receive(sock):
        first = first or data
        show(data)
    sender.server_left = True
    # Um teclado não acaba: mal se espera por ele (PAINT_S, parte 3). De um cano, pode faltar pouco.
    sender.join(PAINT_S if is_terminal(sys.stdin) else LAST_WORDS_S)
    if sender.lost:
        raise Failure(sender.lost)
    if sender.is_alive():
        # Ainda à espera do teclado, ou do cano; a linha do prompt fica para trás.
        print("\n" * is_terminal(sys.stderr) + "o servidor fechou a conexão", file=sys.stderr)
    return first


def read_pipe():
    """Pedaços da entrada, como vierem; do descritor, pois o buffer do Python esperaria enchê-lo."""
    fd = sys.stdin.fileno()
    while True:
        data = os.read(fd, CHUNK)
        if not data:
            return
        yield data


def talk(sock, args):
    """Escolhe entrada e saída: terminal, cano ou --mensagem."""
    with contextlib.ExitStack() as at_end:
        screen = None
        if args.mensagem is not None:
            line = args.mensagem + "\n"
            chunks = [line.encode("utf-8", "surrogateescape")]
        elif is_terminal(sys.stdin) and is_terminal(sys.stdout):
            screen = at_end.enter_context(Screen())
            chunks = (line + b"\n" for line in screen.lines())
        else:
            chunks = read_pipe()
        if args.apelido:
            chunks = itertools.chain([f"/nick {args.apelido}\n".encode()], chunks)
        first = converse(sock, chunks, shower(screen))
        if isinstance(sock, TLSStream):
            return
        if TLS_ALERT.fullmatch(first):
            raise Failure("o servidor só fala TLS: --tls --ca ARQUIVO")
        if args.mensagem and not first:
            print("o servidor não respondeu nada. Ele só fala TLS? Então: --tls --ca ARQUIVO",
                  file=sys.stderr)


def shower(screen):
    """A função que mostra o que chega: num cano, os bytes como vieram; num terminal, texto."""
    def to_pipe(data):
        write_all(sys.stdout.fileno(), data)

    def to_terminal(data):
        text = decoder.decode(data).replace("\r\n", "\n")
        # Esses dois dão forma ao texto; o resto do que comanda um terminal fica à vista.
        text = "".join(char if char in "\n\t" else escape(char) for char in text)
        if screen:
            screen.show(text)
        else:
            print(text, end="", flush=True)

    # Junta o \r de um pedaço ao \n do seguinte, e as metades de um caractere.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), False)
    return to_terminal if is_terminal(sys.stdout) else to_pipe


# ---------------------------------------------------------------------------------------------
# 2. connect: conectar, e por que não
#
# connect() falha de quatro modos, e cada um tem outra causa: ninguém escuta (RST, na hora), ninguém
# responde (o prazo), não há caminho (ICMP), o nome não existe (DNS). O número do erro não ajuda
# quem digita; a causa e o próximo comando, sim.

# Segundos entre as tentativas de --tentar.
RETRY_S = 0.25


def explain_connect(error, args, waited):
    """Por que não se conectou, e o que tentar: cada erro tem outra causa."""
    host = args.endereco
    port = args.porta
    fault = explain_host(error, host)
    if fault:
        return fault
    if isinstance(error, ConnectionRefusedError):
        return explain_refusal(args)
    if isinstance(error, socket.timeout):
        return (f"{host} porta {port} não respondeu em {waited:g} s: nem aceitou, nem recusou. "
                "Endereço errado, máquina desligada ou um firewall no caminho? "
                f"Veja se ela responde: ping {host}")
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"não há caminho até {host}: confira o endereço e a rede (ip route)"
    return f"não foi possível conectar a {host} porta {port}: {reason(error)}"


def explain_refusal(args):
    """Conexão recusada: a máquina está lá, e ninguém escuta nessa porta, nesse endereço."""
    host = args.endereco
    port = args.porta
    # Quem traz um apelido quer uma sala.
    mode = " --modo chat" * bool(args.apelido)
    refused = f"ninguém escuta em {host} porta {port} (conexão recusada)"
    if (host, port) == ("127.0.0.1", 5050):
        return f"{refused}. Suba o servidor antes: ./servidor.py{mode}"
    if is_here(host):
        return f"{refused}. Suba o servidor antes: ./servidor.py {host} {port}{mode}"
    return (f"{refused}. Lá o servidor está no ar? Então só escuta em 127.0.0.1; naquela máquina: "
            f"./servidor.py {everywhere(host)} {port}{mode}")


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


def connect(args):
    """Conecta, insistindo por --tentar segundos enquanto ninguém atende. Devolve o socket."""
    begin = time.monotonic()
    deadline = begin + (args.tentar or args.espera)
    cause = None
    told = False
    while True:
        try:
            left = max(deadline - time.monotonic(), RETRY_S)
            sock = dial(args.endereco, args.porta, min(args.espera, left))
            return refuse_oneself(sock)
        except (OSError, UnicodeError) as error:
            # A última tentativa, encurtada pelo prazo, diz menos do que a primeira.
            if cause is None or not isinstance(error, socket.timeout):
                cause = error
        spent = time.monotonic() - begin
        why = explain_connect(cause, args, round(spent, 1))
        if spent >= args.tentar or is_hopeless(cause):
            raise Failure(why)
        if not told:
            told = True
            print(f"insisto por {args.tentar:g} s: {why}", file=sys.stderr, flush=True)
        time.sleep(RETRY_S)


def is_hopeless(error):
    """Um nome que não existe não passa a existir; um DNS que não respondeu pode responder."""
    if isinstance(error, socket.gaierror):
        return error.errno != socket.EAI_AGAIN
    return isinstance(error, UnicodeError)


# --- bloco comum: ligação ---
def dial(host, port, patience):
    """socket.create_connection() com um prazo só para todos os endereços de um nome."""
    deadline = time.monotonic() + patience
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    untried = len(found)
    failure = None
    for family, _, _, _, address in found:
        # A cada um dos que faltam tentar, a sua parte: um endereço mudo não gasta tudo.
        share = (deadline - time.monotonic()) / untried
        untried -= 1
        sock = None
        try:
            sock = socket.socket(family)
            sock.settimeout(max(share, 0.001))
            sock.connect(address)
            sock.settimeout(patience)
            return sock
        except OSError as error:
            # Uma família que esta máquina não fala nada diz do servidor: vale o erro de outra.
            if failure is None or error.errno != errno.EAFNOSUPPORT:
                failure = error
            if sock:
                sock.close()
    raise failure
# --- fim do bloco comum: ligação ---


def refuse_oneself(sock):
    """Ninguém escutava, e o kernel sorteou para nós a porta dele? Falaríamos sozinhos.

    O SYN volta a quem o enviou, e vale por uma abertura simultânea (RFC 9293, 3.5).
    """
    # O prazo era só do connect().
    sock.settimeout(None)
    if itself(sock):
        sock.close()
        raise ConnectionRefusedError
    return sock


def itself(sock):
    try:
        return sock.getsockname() == sock.getpeername()
    except OSError:
        # O outro lado já fechou: era outro.
        return False


def describe(sock, stream):
    """--verbose: as duas pontas da conexão e, com TLS, a versão e a cifra combinadas."""
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    here, port = socket.getnameinfo(sock.getsockname(), numeric)
    there, far_port = socket.getnameinfo(sock.getpeername(), numeric)
    tls = ""
    if stream is not sock:
        tls = f", {stream.tls.version()}, {stream.tls.cipher()[0]}"
    return f"conectado a {there} porta {far_port}, de {here} porta {port}{tls}"


# ---------------------------------------------------------------------------------------------
# 3. Screen: o teclado e a tela, que são de dois ao mesmo tempo
#
# Num terminal, o que chega e o que se digita dividem a tela: sem cuidado, a resposta cai no meio da
# palavra. A linha em edição é apagada, o que chegou é mostrado, e ela é redesenhada como estava;
# para isso é preciso saber quantas linhas da tela ela ocupa (Unicode, UAX 11).

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


# ---------------------------------------------------------------------------------------------
# 4. Meter: quanto rende o servidor
#
# Uma conta de mensagens por segundo não diz o que um usuário espera: a média esconde o pior. Aqui
# cada mensagem é diferente, cada byte que volta é conferido, e toda latência é contada. Uma thread
# só cuida de todas as conexões: mil threads daqui atrapalhariam o servidor que se mede.

# Segundos entre duas vezes que a medição se mostra no terminal.
PROGRESS_S = 0.5
# Segundos que se espera, no fim, pelas respostas que faltam.
STALL_S = 5.0
# Bits que se guardam de uma latência: 32 faixas por potência de dois, com erro menor que 1/32.
HISTOGRAM_BITS = 6


class Histogram:
    """Histograma de latências: conta cada uma arredondada para baixo, só com os bits mais altos.

    Guardar cada medida encheria a memória; faixas de largura fixa seriam grossas para 20 µs ou
    demais para 2 s. Assim são 533 faixas de 20 µs a 2 s.
    """

    def __init__(self):
        # Menor latência da faixa (ns) -> quantas.
        self.counts = collections.defaultdict(int)

    @staticmethod
    def floor(ns: int) -> int:
        """A menor latência (ns) da faixa em que esta cai."""
        shift = max(ns.bit_length() - HISTOGRAM_BITS, 0)
        return ns >> shift << shift

    def add(self, ns: int):
        self.counts[self.floor(ns)] += 1

    def total(self) -> int:
        return sum(self.counts.values())

    def percentile(self, q: float) -> int:
        """Latência (ns) abaixo da qual ficou a fração q das medidas; 0 se não houve nenhuma."""
        left = q * self.total()
        for low, count in sorted(self.counts.items()):
            left -= count
            if left <= 0:
                return low
        return 0

    def draw(self, width: int) -> list:
        """Linhas de texto: uma barra por potência de dois, entre a menor e a maior latência."""
        octaves = collections.defaultdict(int)
        for low, count in self.counts.items():
            octaves[low.bit_length()] += count
        if not octaves:
            return []
        total = self.total()
        peak = max(octaves.values())
        lines = []
        for bits in range(min(octaves), max(octaves) + 1):
            count = octaves[bits]
            bar = "█" * round(count / peak * (width - 30))
            if count and not bar:
                bar = "▏"
            lines.append(f"{show_time(1 << bits >> 1):>9} {count / total:7.2%}  {bar}")
        return lines


def show_time(ns: float) -> str:
    """Duração com três algarismos e a unidade que couber: 850 ns, 12.3 µs, 4.56 ms, 1.20 s."""
    for unit, size in (("ns", 1), ("µs", 1e3), ("ms", 1e6)):
        if ns < 999.5 * size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


class Probe:
    """Uma conexão da medição: uma mensagem por vez, cada uma diferente da anterior."""

    def __init__(self, sock, number, size):
        # Cada mensagem parte na hora, sem esperar companhia (algoritmo de Nagle).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.sock = sock
        # Outro conteúdo em cada conexão: o eco que fosse à errada, ou torto, não conferiria.
        self.message = bytearray((number * 31 + i * 7) & 0xFF for i in range(size))
        # Bytes desta mensagem que já foram, e que já voltaram.
        self.out = 0
        self.back = 0
        # Número de ordem, que vai nos primeiros bytes; e quando partiu (ns).
        self.sequence = 0
        self.sent_at = 0
        # O kernel não aceitou a mensagem inteira: o resto vai quando ele disser que cabe.
        self.full = False


class Meter:
    """A medição: quem já respondeu recebe outra mensagem, até acabar o tempo."""

    def __init__(self, args):
        self.args = args
        self.size = args.tamanho
        self.histogram = Histogram()
        # Conexões que caíram.
        self.dropped = 0
        self.selector = selectors.DefaultSelector()
        self.probes = []

    def open(self):
        for number in range(self.args.conexoes):
            probe = Probe(connect(self.args), number, self.size)
            self.probes.append(probe)
            self.selector.register(probe.sock, selectors.EVENT_READ, probe)

    def close(self):
        self.selector.close()
        for probe in self.probes:
            probe.sock.close()
        with last_words():
            # Apaga a linha do progresso.
            print("\r\x1b[K" * is_terminal(sys.stderr), end="", file=sys.stderr, flush=True)

    def start(self, probe, now):
        """Envia a próxima mensagem."""
        probe.sequence += 1
        order = probe.sequence.to_bytes(8, "little")
        probe.message[:8] = order[:self.size]
        probe.out = 0
        probe.back = 0
        probe.sent_at = now
        self.push(probe)

    def push(self, probe):
        """Entrega ao kernel o que couber."""
        with contextlib.suppress(BlockingIOError):
            probe.out += probe.sock.send(memoryview(probe.message)[probe.out:])
        if probe.full != (probe.out < self.size):
            probe.full = not probe.full
            events = selectors.EVENT_READ | selectors.EVENT_WRITE * probe.full
            self.selector.modify(probe.sock, events, probe)

    def pull(self, probe):
        """Confere o que voltou; True quando a mensagem está completa."""
        data = probe.sock.recv(self.size - probe.back)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "o servidor fechou")
        wanted = probe.message[probe.back:probe.back + len(data)]
        if data != wanted:
            raise Failure(f"o eco voltou errado (mensagem {probe.sequence}, depois do byte "
                          f"{probe.back}): há um servidor de eco em {self.args.endereco} "
                          f"porta {self.args.porta}?")
        probe.back += len(data)
        return probe.back == self.size

    def turn(self, going):
        """Uma volta: atende a quem teve notícia; se a medição segue, quem respondeu ganha outra."""
        for key, events in self.selector.select(PROGRESS_S):
            try:
                self.attend(key.data, events, going)
            except BlockingIOError:
                # Alarme falso: o select() avisou, e já não havia nada.
                pass
            except OSError:
                self.dropped += 1
                self.selector.unregister(key.fileobj)
                # Desta já não se espera resposta.
                key.data.back = self.size

    def attend(self, probe, events, going):
        if events & selectors.EVENT_WRITE:
            self.push(probe)
        if events & selectors.EVENT_READ and self.pull(probe):
            now = time.perf_counter_ns()
            self.histogram.add(now - probe.sent_at)
            if going:
                self.start(probe, now)

    def run(self):
        """Mede durante --duracao segundos; devolve quantos foram, e quantas mensagens voltaram."""
        begin = time.perf_counter()
        end = begin + self.args.duracao
        next_report = begin + PROGRESS_S
        for probe in self.probes:
            self.start(probe, time.perf_counter_ns())
        while time.perf_counter() < end and self.dropped < len(self.probes):
            self.turn(going=True)
            if time.perf_counter() > next_report:
                next_report += PROGRESS_S
                self.show_progress(time.perf_counter() - begin)
        spent = time.perf_counter() - begin
        done = self.histogram.total()
        # As que ainda estão no caminho contam na latência, e não na taxa.
        last = time.monotonic() + STALL_S
        while self.unanswered() and time.monotonic() < last:
            self.turn(going=False)
        return spent, done

    def show_progress(self, spent):
        if is_terminal(sys.stderr):
            print(f"\r\x1b[K{spent:5.1f} s  {self.histogram.total() / spent:.0f} idas e voltas/s",
                  end="", file=sys.stderr, flush=True)

    def unanswered(self):
        return sum(probe.back < self.size for probe in self.probes)


def measure(args):
    """--medir: mostra taxa, vazão e latências; Failure se alguma resposta não veio."""
    raise_fd_limit()
    with contextlib.closing(Meter(args)) as meter:
        meter.open()
        spent, done = meter.run()
    if meter.histogram.counts:
        report(args, meter.histogram, spent, done)
    if meter.dropped or meter.unanswered():
        dropped = amount(meter.dropped, "conexão caiu", "conexões caíram")
        unanswered = amount(meter.unanswered(), "ficou", "ficaram")
        raise Failure(f"{dropped} e {unanswered} sem resposta")


def amount(count, one, many):
    """A quantidade, com a palavra no singular ou no plural."""
    return f"{count} {one if count == 1 else many}"


def report(args, histogram, spent, done):
    rate = done / spent
    megabytes = rate * args.tamanho / 1e6
    p50 = show_time(histogram.percentile(0.5))
    p99 = show_time(histogram.percentile(0.99))
    p999 = show_time(histogram.percentile(0.999))
    probes = amount(args.conexoes, "conexão", "conexões")
    print(f"{probes}, mensagens de {args.tamanho} B, {spent:.1f} s, cada byte conferido")
    print(f"  {rate:.0f} idas e voltas por segundo, {megabytes:.1f} MB/s por sentido")
    print(f"  latência: p50 {p50}, p99 {p99}, p99.9 {p999}")
    width = shutil.get_terminal_size().columns or 80
    print(*histogram.draw(min(width, 80)), sep="\n")


def raise_fd_limit():
    """Uma conexão é um descritor: sobe o limite deles até onde deixam."""
    # Sem resource (Windows), ou não deixam.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ---------------------------------------------------------------------------------------------
# 5. start_tls: quem está no caminho não lê nem muda
#
# Um byte que passa em claro pode ser lido, e trocado, por quem cuida de qualquer trecho do caminho.
# O TLS (RFC 8446) cifra e, antes, confere que do outro lado está quem se quis chamar: cifrar para
# um impostor não adianta. Por isso --sem-verificar avisa.

# Segundos: um servidor que não fala TLS pode ficar calado, à espera de um fim de linha que não vem.
HANDSHAKE_TIMEOUT_S = 10


def start_tls(sock, args):
    """Envolve o socket em TLS e confere quem está do outro lado, a menos que --sem-verificar."""
    if args.sem_verificar:
        print("aviso: --sem-verificar cifra, mas não sabe com quem: pode ser um impostor no meio",
              file=sys.stderr)
    context = tls_context(False, args.certificado, args.chave, args.ca,
                          verify=not args.sem_verificar)
    try:
        return TLSStream(sock, context, server_hostname=tls_name(args.endereco))
    except ssl.SSLCertVerificationError as error:
        raise Failure(explain_certificate(error, args)) from None
    except OSError as error:
        why = reason(error)
        if isinstance(error, ssl.SSLError):
            why = error.reason or why
        raise Failure(f"não houve acordo de TLS com {args.endereco} porta {args.porta} ({why}). "
                      "O servidor foi iniciado com --certificado?") from None


def explain_certificate(error, args):
    """Por que o certificado não convence. Os números são os do OpenSSL (X509_V_ERR_*)."""
    why = {
        10: "venceu",
        18: "é assinado por ele mesmo",
        19: "vem de uma autoridade em quem não se confia",
        20: "vem de uma autoridade que não se conhece",
        62: "é de outro nome",
        64: "é de outro endereço",
    }.get(error.verify_code, error.verify_message)
    if error.verify_code in (62, 64):
        return (f"o certificado de {args.endereco} não convence: {why}. "
                "Conecte pelo nome que está nele: openssl x509 -noout -ext subjectAltName")
    return (f"o certificado de {args.endereco} não convence: {why}. "
            "Se ele é seu, diga em quem confiar: --ca ARQUIVO")


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


def build_parser():
    parser = Parser(description="Cliente TCP: conversa, transporta e mede.",
                    epilog="Antes, em outro terminal: ./servidor.py")
    seconds = number(float, 0.1, 86400, "segundos")
    add = parser.add_argument
    add_server(add)
    add("--mensagem", metavar="TEXTO",
        help="envia esta linha, mostra a resposta inteira e sai")
    add("--apelido", type=nickname, metavar="NOME",
        help="entra no chat com este nome")
    add("--tentar", default=0, metavar="S",
        type=number(float, 0, 86400, "segundos"),
        help="se ninguém atende, insiste, por S segundos ao todo (padrão: 0)")
    add("--espera", default=10, metavar="S", type=seconds,
        help="quanto esperar pela conexão (padrão: %(default)s)")
    add("--verbose", action="store_true",
        help="mostra em stderr as duas pontas da conexão")
    add_tls(parser.add_argument_group("TLS"))
    add_meter(parser.add_argument_group("medição"), seconds)
    add("--version", action="version", version=f"%(prog)s {VERSION}",
        help="mostra a versão e sai")
    return parser


def add_tls(group):
    add = group.add_argument
    add("--tls", action="store_true",
        help="cifra a conversa e confere o certificado do servidor")
    trust = group.add_mutually_exclusive_group()
    trust.add_argument("--ca", metavar="ARQUIVO",
                       help="confia nesta autoridade, ou neste certificado")
    trust.add_argument("--sem-verificar", action="store_true",
                       help="cifra, mas não confere com quem fala")
    add("--certificado", metavar="ARQUIVO",
        help="o seu certificado, se o servidor o exige")
    add("--chave", metavar="ARQUIVO",
        help="a chave dele, se não está no mesmo arquivo")


def add_meter(group, seconds):
    add = group.add_argument
    add("--medir", action="store_true",
        help="mede um servidor de eco em vez de conversar")
    add("--conexoes", default=10, metavar="N",
        type=number(int, 1, 20000, "um número"),
        help="conexões ao mesmo tempo (padrão: %(default)s)")
    add("--tamanho", default=64, metavar="B",
        type=number(int, 1, 1 << 20, "bytes"),
        help="bytes de cada mensagem (padrão: %(default)s)")
    add("--duracao", default=5, metavar="S", type=seconds,
        help="quanto medir (padrão: %(default)s)")


def start(args):
    secure = args.tls or args.ca or args.sem_verificar or args.certificado
    if args.chave and not args.certificado:
        # Quem pensa em TLS não pode acabar falando em claro.
        build_parser().error("--chave só vale junto de --certificado")
    if args.medir and secure:
        build_parser().error("--medir mede o TCP, sem TLS")
    if args.medir and (args.apelido or args.mensagem is not None):
        build_parser().error("--medir não conversa: vai sem --mensagem e sem --apelido")
    if args.medir:
        return measure(args)
    with connect(args) as sock:
        stream = start_tls(sock, args) if secure else sock
        if args.verbose:
            # Se a conexão já caiu, quem ler dirá.
            with contextlib.suppress(OSError):
                print(describe(sock, stream), file=sys.stderr, flush=True)
        return talk(stream, args)


def main(argv=None):
    return run(build_parser, start, argv)


if __name__ == "__main__":
    end_process(main())
