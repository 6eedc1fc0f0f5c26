#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cliente TCP: conversa num terminal, transporta bytes num cano, e mede a velocidade de um servidor de eco.

    ./servidor.py                          em um terminal
    ./cliente.py                           em outro: digite; Ctrl+D termina
    ./cliente.py < filme.mp4 > copia.mp4   ida e volta, byte por byte
    ./cliente.py --mensagem "oi"           envia, espera a resposta inteira e sai
    ./cliente.py --medir                   quantas idas e voltas por segundo?

Enviar e receber são dois trabalhos ao mesmo tempo, e cada um tem a sua thread:

    teclado ou cano --> Sender: os.read(), sendall() ----> servidor
    tela ou cano    <-- thread principal: recv() <-------- servidor

Com uma thread só, que envia tudo e só depois lê, um arquivo grande trava: o servidor devolve o que o cliente ainda não
lê, os buffers dos dois lados enchem, e ninguém mais anda.

Ele não reconecta no meio de uma conversa (o TCP não sabe o que o outro lado leu), e só conhece bytes e linhas.
"""
import argparse
import codecs
import collections
import contextlib
import errno
import io
import itertools
import os
import re
import select
import selectors
import shlex
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
import unicodedata

CHUNK = 64 * 1024  # bytes por leitura
WAKE_S = 1.0  # uma espera nunca passa disto sem acordar: no Windows, Ctrl+C não interrompe um recv()
RETRY_S = 0.25  # intervalo entre as tentativas de --tentar
HANDSHAKE_TIMEOUT_S = 10  # um servidor que não fala TLS pode ficar calado, à espera de um fim de linha que não virá
LAST_WORDS_S = 1.0  # depois que o servidor fecha, quanto se espera para saber se ficou algo por enviar
PAINT_S = 0.2  # quanto se espera que o prompt acabe de ser pintado, para não escrever por cima dele
PROGRESS_S = 0.5  # de quanto em quanto tempo a medição se mostra no terminal
STALL_S = 5.0  # fim da medição: quanto se espera pelas respostas que faltam
PROMPT = "> "


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


class Histogram:
    """Histograma de latências: conta cada uma arredondada para baixo, só com os seus 6 bits mais altos.

    Guardar cada medida encheria a memória; faixas de largura fixa seriam grossas para 20 µs ou demais para 2 s. Com 6
    bits são 32 faixas por potência de dois (de 20 µs a 2 s, 533), e o erro é menor que 1/32 (3 %).
    """

    def __init__(self):
        self.counts = collections.defaultdict(int)  # menor latência da faixa (ns) -> quantas

    @staticmethod
    def floor(ns: int) -> int:
        """A menor latência (ns) da faixa em que esta cai."""
        shift = max(ns.bit_length() - 6, 0)
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
        """Linhas de texto: uma barra por potência de dois, entre a menor e a maior latência vistas."""
        octaves = collections.defaultdict(int)
        for low, count in self.counts.items():
            octaves[low.bit_length()] += count
        lines, total, peak = [], self.total(), max(octaves.values(), default=0)
        for bits in range(min(octaves, default=0), max(octaves, default=-1) + 1):
            count = octaves[bits]
            bar = "█" * round(count / peak * (width - 30)) or ("▏" if count else "")
            lines.append(f"{show_time(1 << bits >> 1):>9} {count / total:7.2%}  {bar}")
        return lines


def show_time(ns: float) -> str:
    """Duração com três algarismos e a unidade que couber: 850 ns, 12.3 µs, 4.56 ms, 1.20 s."""
    for unit, size in (("ns", 1), ("µs", 1e3), ("ms", 1e6)):
        if ns < 999.5 * size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def columns(text: str) -> int:
    """Colunas que o texto ocupa na tela: `日` ocupa duas; um acento que se combina com a letra, nenhuma."""
    return sum((unicodedata.category(c) not in ("Mn", "Me", "Cf")) * (1 + (unicodedata.east_asian_width(c) in "FW"))
               for c in text)


# Conectar.

def explain_connect(error, host, port, waited):
    """Por que não se conectou, e o que tentar: cada erro tem outra causa."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"não encontro a máquina {host!r}: confira o nome, ou use um endereço como 127.0.0.1"
    if isinstance(error, ConnectionRefusedError):
        where = "" if (host, port) == ("127.0.0.1", 5050) else f" {host} {port}"
        return f"ninguém escuta em {host} porta {port} (conexão recusada). Suba o servidor antes: ./servidor.py{where}"
    if isinstance(error, socket.timeout):
        return (f"{host} porta {port} não respondeu em {waited:g} s: nem aceitou, nem recusou. Endereço errado, "
                f"máquina desligada ou um firewall no caminho? Veja se ela responde: ping {host}")
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"não há caminho até {host}: confira o endereço e a rede (ip route)"
    return f"não foi possível conectar a {host} porta {port}: {error.strerror or error}"


def connect(args):
    """Conecta, insistindo por --tentar segundos enquanto ninguém atende. Devolve o socket, ou Failure."""
    begin, cause = time.monotonic(), None
    for attempt in itertools.count():
        left = begin + (args.tentar or args.espera) - time.monotonic()
        try:
            sock = socket.create_connection((args.endereco, args.porta), min(args.espera, max(left, RETRY_S)))
            if sock.getsockname()[1] == args.porta and sock.getsockname() == sock.getpeername():
                sock.close()  # ninguém escutava, e o kernel sorteou para nós a porta dele: falaríamos sozinhos
                raise ConnectionRefusedError
            sock.settimeout(None)
            return sock
        except (OSError, UnicodeError) as error:
            spent = time.monotonic() - begin
            cause = cause if attempt and isinstance(error, socket.timeout) else error  # a última, encurtada, diz menos
            why = explain_connect(cause, args.endereco, args.porta, round(spent, 1))
            if spent >= args.tentar or isinstance(error, (socket.gaierror, UnicodeError)):
                raise Failure(why)
            if attempt == 0:
                print(f"insisto por {args.tentar:g} s: {why}", file=sys.stderr, flush=True)
        time.sleep(RETRY_S)


def start_tls(sock, args):
    """Envolve o socket em TLS e confere quem está do outro lado, a menos que --sem-verificar."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if args.sem_verificar:
        print("aviso: --sem-verificar cifra, mas não sabe com quem: pode ser um impostor no meio", file=sys.stderr)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        if args.ca:
            context.load_verify_locations(args.ca)
        if args.certificado:
            context.load_cert_chain(args.certificado, args.chave)
    except OSError as error:
        files = ", ".join(filter(None, (args.ca, args.certificado, args.chave)))
        raise Failure(f"não consigo usar {files}: {error.strerror or error}. O README mostra como criá-los")
    try:
        return TLSStream(sock, context, server_hostname=args.endereco)
    except ssl.SSLCertVerificationError as error:
        raise Failure(f"o certificado de {args.endereco} não convence ({error.verify_message}). "
                      "Se ele é seu, diga em quem confiar: --ca ARQUIVO")
    except OSError as error:
        raise Failure(f"não houve acordo de TLS com {args.endereco} porta {args.porta} ({error.strerror or error}). "
                      "O servidor foi iniciado com --certificado?")


def describe(sock, stream):
    """--verbose: as duas pontas da conexão e, com TLS, a versão e a cifra que os dois lados combinaram."""
    (here, port), (there, far_port) = sock.getsockname()[:2], sock.getpeername()[:2]
    tls = f", {stream.tls.version()}, {stream.tls.cipher()[0]}" if stream is not sock else ""
    return f"conectado a {there} porta {far_port}, de {here} porta {port}{tls}"


# Conversar.

class Sender(threading.Thread):
    """A thread que lê a entrada e envia; no fim dela, fecha só a ida (meio-fechamento), e as respostas ainda chegam."""

    def __init__(self, sock, chunks):
        super().__init__(daemon=True)  # presa num teclado mudo, não impede o programa de acabar
        self.sock, self.chunks, self.lost = sock, chunks, None  # lost: o que impediu de enviar tudo
        self.server_left = False  # a thread principal avisa que o servidor fechou

    def read(self):
        """Uma entrada que não se deixa ler acaba ali, como se fosse o fim dela: o que já seguiu ainda terá resposta."""
        try:
            yield from self.chunks
        except OSError as error:
            self.lost = f"não consigo ler a entrada: {error.strerror}"

    def run(self):
        try:
            for data in self.read():
                if self.server_left:
                    raise BrokenPipeError(errno.EPIPE, "a entrada ainda não tinha acabado")
                self.sock.sendall(data)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.lost = f"o servidor fechou antes de receber tudo ({error.strerror}). Ele atende esta máquina?"


def read_pipe(fd=0):
    """Pedaços da entrada padrão, como vierem; direto do descritor, pois o buffer do Python esperaria enchê-lo."""
    if sys.stdin is not None:  # None: o processo nasceu sem entrada (`<&-`)
        yield from iter(lambda: os.read(fd, CHUNK), b"")


def write_pipe(data):
    if sys.stdout is not None:  # None: nasceu sem saída (`>&-`)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def is_terminal(stream):
    return stream is not None and stream.isatty()


class Terminal:
    """Teclado e tela: uma linha sendo digitada, e o que chega aparece acima dela sem rasgá-la."""

    def __init__(self):
        self.typing, self.unfinished, self.readline, self.painted = False, "", None, threading.Event()
        sys.stdin.reconfigure(errors="surrogateescape")  # o que se digita segue como veio, seja qual for a codificação
        with contextlib.suppress(ImportError, AttributeError):  # sem readline (Windows) o console já edita linhas
            import readline
            import termios
            self.readline, self.termios, self.mode = readline, termios, termios.tcgetattr(0)
            readline.set_pre_input_hook(self.painted.set)  # nem toda libedit tem: por isso a última

    def read_lines(self):
        """Linhas digitadas, em bytes; Ctrl+D termina."""
        while True:
            self.painted.clear()
            self.typing, self.unfinished = True, ""
            try:
                line = input(PROMPT)
            except EOFError:
                print(flush=True)
                return
            finally:
                self.typing = False
            yield (line + "\n").encode("utf-8", "surrogateescape")

    def show(self, text):
        """Apaga a linha em edição, mostra o que chegou e redesenha a linha como estava."""
        if not self.typing:
            return print(text, end="", flush=True)
        self.painted.wait(PAINT_S)  # o prompt pode estar a meio caminho da tela
        self.painted.set()  # sem readline ninguém avisa: espera-se uma vez por linha, e não a cada pedaço
        line = PROMPT + (self.readline.get_line_buffer() if self.readline else "")
        width = shutil.get_terminal_size().columns or 80  # há terminais que se dizem com 0 colunas
        rows = columns(line) // width + bool(self.unfinished)
        text = self.unfinished + text  # uma linha que chega aos pedaços se junta de novo
        last = text[text.rfind("\n") + 1:]
        self.unfinished = last if columns(last) < width else ""
        # Simplificação: o cursor volta ao fim da linha, ainda que estivesse no meio dela.
        line += " \r" * (columns(line) % width == 0)  # na última coluna o cursor não desce sozinho
        print("\r" + "\x1b[A" * rows + "\x1b[J" + text + "\n" * bool(last) + line, end="", flush=True)

    def restore(self):
        """Devolve o terminal como estava: sair com a outra thread dentro do readline o deixaria sem eco."""
        if self.readline:
            self.termios.tcsetattr(0, self.termios.TCSADRAIN, self.mode)


def receive(sock):
    """Pedaços que chegam, até o servidor fechar."""
    while True:
        if not isinstance(sock, TLSStream):  # Simplificação: com TLS, no Windows, Ctrl+C espera pelo próximo byte
            while not select.select([sock], [], [], WAKE_S)[0]:
                pass
        try:
            data = sock.recv(CHUNK)
        except ssl.SSLError as error:  # no TLS 1.3 a recusa de um certificado só chega depois do aperto de mão
            raise Failure(f"o servidor desfez o TLS ({error.reason}). Ele exige um certificado? --certificado ARQUIVO")
        except OSError as error:  # um RST, ou o kernel cansou de retransmitir para quem já não responde
            raise Failure(f"o servidor caiu no meio da conversa ({error.strerror}). Ele e a rede ainda estão de pé?")
        if not data:
            return
        yield data


def converse(sock, chunks, show):
    """Envia `chunks` por uma thread e mostra o que chega nesta. Devolve se chegou alguma coisa."""
    sender, answered = Sender(sock, chunks), False
    sender.start()
    for data in receive(sock):
        answered = True
        show(data)
    sender.server_left = True
    sender.join(PAINT_S if is_terminal(sys.stdin) else LAST_WORDS_S)
    if sender.lost:
        raise Failure(sender.lost)
    if sender.is_alive():  # ainda à espera do teclado, ou do cano
        print("\n" * is_terminal(sys.stderr) + "o servidor fechou a conexão", file=sys.stderr)
    return answered


def talk(sock, args):
    """Escolhe entrada e saída: terminal, cano ou --mensagem."""
    first = [f"/nick {args.apelido}\n".encode()] if args.apelido else []
    terminal = Terminal() if args.mensagem is None and is_terminal(sys.stdin) and is_terminal(sys.stdout) else None
    chunks = terminal.read_lines() if terminal else read_pipe()
    if args.mensagem is not None:
        chunks = [(args.mensagem + "\n").encode("utf-8", "surrogateescape")]
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), False)  # junta o \r ao \n

    def show(data):
        if not is_terminal(sys.stdout):
            return write_pipe(data)  # um cano recebe os bytes como vieram
        text = decoder.decode(data).replace("\r\n", "\n")
        text = "".join(c if c in "\n\t" else escape(c) for c in text)  # esses dois dão forma; o resto, à vista
        terminal.show(text) if terminal else print(text, end="", flush=True)

    try:
        answered = converse(sock, itertools.chain(first, chunks), show)
        if args.mensagem and not answered and not isinstance(sock, TLSStream):
            print("o servidor não respondeu nada. Ele só fala TLS? Então: --tls --ca ARQUIVO", file=sys.stderr)
    finally:
        if terminal:
            terminal.restore()


# Medir.

class Probe:
    """Uma conexão da medição: uma mensagem por vez, cada uma diferente, e cada byte que volta é conferido."""

    def __init__(self, sock, number, size):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # cada mensagem parte na hora, sem esperar companhia
        sock.setblocking(False)
        self.sock, self.send, self.recv = sock, sock.send, sock.recv
        self.message = bytearray((number * 31 + i * 7) & 0xFF for i in range(size))
        self.out = self.back = self.sequence = self.sent_at = 0  # out, back: bytes que já foram, e que já voltaram
        self.full = False  # o kernel não aceitou a mensagem inteira: o resto vai quando ele disser que cabe


class Meter:
    """A medição: todas as conexões numa thread só, pois mil threads daqui atrapalhariam o servidor que se mede."""

    def __init__(self, args):
        self.args, self.size, self.histogram, self.dropped = args, args.tamanho, Histogram(), 0
        self.selector, self.probes = selectors.DefaultSelector(), []

    def open(self):
        for number in range(self.args.conexoes):
            probe = Probe(connect(self.args), number, self.size)
            self.probes.append(probe)
            self.selector.register(probe.sock, selectors.EVENT_READ, probe)

    def close(self):
        self.selector.close()
        for probe in self.probes:
            probe.sock.close()
        print("\r\x1b[K" * is_terminal(sys.stderr), end="", file=sys.stderr, flush=True)  # apaga a linha do progresso

    def start(self, probe, now):
        """Envia a próxima mensagem: o número de ordem nos primeiros bytes a distingue da anterior."""
        probe.sequence += 1
        probe.message[:8] = probe.sequence.to_bytes(8, "little")[:self.size]
        probe.out = probe.back = 0
        probe.sent_at = now
        self.push(probe)

    def push(self, probe):
        """Entrega ao kernel o que couber."""
        with contextlib.suppress(BlockingIOError):
            probe.out += probe.send(memoryview(probe.message)[probe.out:])
        if probe.full != (probe.out < self.size):
            probe.full = not probe.full
            self.selector.modify(probe.sock, selectors.EVENT_READ | selectors.EVENT_WRITE * probe.full, probe)

    def pull(self, probe):
        """Confere o que voltou; True quando a mensagem está completa."""
        data = probe.recv(self.size - probe.back)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "o servidor fechou")
        if data != probe.message[probe.back:probe.back + len(data)]:
            raise Failure(f"o eco voltou errado (mensagem {probe.sequence}, depois do byte {probe.back}): "
                          f"há um servidor de eco em {self.args.endereco} porta {self.args.porta}?")
        probe.back += len(data)
        return probe.back == self.size

    def turn(self, going):
        """Uma volta: atende a quem teve notícia e, se a medição segue (going), manda outra a quem respondeu tudo."""
        for key, events in self.selector.select(PROGRESS_S):
            probe = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    self.push(probe)
                if events & selectors.EVENT_READ and self.pull(probe):
                    now = time.perf_counter_ns()
                    self.histogram.add(now - probe.sent_at)
                    if going:
                        self.start(probe, now)
            except BlockingIOError:
                pass
            except OSError:
                self.dropped += 1
                self.selector.unregister(probe.sock)
                probe.back = self.size  # desta já não se espera resposta

    def run(self):
        """Mede durante --duracao segundos; devolve quantos foram, e quantas idas e voltas couberam neles."""
        begin = time.perf_counter()
        end, next_report = begin + self.args.duracao, begin + PROGRESS_S
        for probe in self.probes:
            self.start(probe, time.perf_counter_ns())
        while time.perf_counter() < end and self.dropped < len(self.probes):
            self.turn(going=True)
            if is_terminal(sys.stderr) and time.perf_counter() > next_report:
                next_report += PROGRESS_S
                spent = time.perf_counter() - begin
                print(f"\r\x1b[K{spent:5.1f} s  {self.histogram.total() / spent:.0f} idas e voltas/s", end="",
                      file=sys.stderr, flush=True)
        spent, done = time.perf_counter() - begin, self.histogram.total()
        last = time.monotonic() + STALL_S  # as que ainda estão no caminho: contam na latência, não na taxa
        while self.unanswered() and time.monotonic() < last:
            self.turn(going=False)
        return spent, done

    def unanswered(self):
        return sum(probe.back < self.size for probe in self.probes)


def measure(args):
    """--medir: mostra taxa, vazão, latências e o histograma delas; estado 1 se alguma resposta não veio."""
    raise_fd_limit()
    with contextlib.closing(Meter(args)) as meter:
        meter.open()
        spent, done = meter.run()
    if meter.histogram.counts:
        report(args, meter.histogram, spent, done)
    if meter.dropped or meter.unanswered():
        raise Failure(f"{meter.dropped} conexões caíram e {meter.unanswered()} ficaram sem resposta")


def report(args, histogram, spent, done):
    p50, p99, p999 = (show_time(histogram.percentile(q)) for q in (0.5, 0.99, 0.999))
    print(f"{args.conexoes} conexões, mensagens de {args.tamanho} B, {spent:.1f} s, cada byte conferido")
    print(f"  {done / spent:.0f} idas e voltas por segundo, {done * args.tamanho / spent / 1e6:.1f} MB/s por sentido")
    print(f"  latência: p50 {p50}, p99 {p99}, p99.9 {p999}")
    print(*histogram.draw(min(shutil.get_terminal_size().columns or 80, 80)), sep="\n")


def raise_fd_limit():
    """Uma conexão é um descritor: sobe o limite deles até onde deixam."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # sem resource (Windows), ou não deixam
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Linha de comando.

def nickname(text):
    if not text or " " in text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} não serve: use um apelido sem espaços")
    return text


def build_parser():
    parser = Parser(description="Cliente TCP: conversa, transporta e mede.",
                    epilog="Antes, em outro terminal: ./servidor.py")
    seconds = {"type": number(float, 0.1, 86400, "segundos"), "metavar": "S"}
    parser.add_argument("endereco", nargs="?", default="127.0.0.1", type=host_name, metavar="ENDEREÇO",
                        help="do servidor: IPv4, IPv6 ou nome (padrão: %(default)s)")
    parser.add_argument("porta", nargs="?", default=5050, type=number(int, 1, 65535, "uma porta"), metavar="PORTA",
                        help="do servidor (padrão: %(default)s)")
    parser.add_argument("--mensagem", metavar="TEXTO", help="envia esta linha, mostra a resposta inteira e sai")
    parser.add_argument("--apelido", type=nickname, metavar="NOME", help="entra no chat com este nome")
    parser.add_argument("--tentar", type=number(float, 0, 86400, "segundos"), default=0, metavar="S",
                        help="se ninguém atende, insiste, por S segundos ao todo (padrão: 0)")
    parser.add_argument("--espera", **seconds, default=10, help="quanto esperar pela conexão (padrão: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="mostra em stderr as duas pontas da conexão")
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls", action="store_true", help="cifra a conversa e confere o certificado do servidor")
    trust = tls.add_mutually_exclusive_group()
    trust.add_argument("--ca", metavar="ARQUIVO", help="confia nesta autoridade, ou neste certificado")
    trust.add_argument("--sem-verificar", action="store_true", help="cifra, mas não confere com quem fala")
    tls.add_argument("--certificado", metavar="ARQUIVO", help="o seu certificado, se o servidor o exige")
    tls.add_argument("--chave", metavar="ARQUIVO", help="a chave dele, se não está no mesmo arquivo")
    meter = parser.add_argument_group("medição")
    meter.add_argument("--medir", action="store_true", help="mede um servidor de eco em vez de conversar")
    meter.add_argument("--conexoes", type=number(int, 1, 20000, "um número"), default=10, metavar="N",
                       help="conexões ao mesmo tempo (padrão: %(default)s)")
    meter.add_argument("--tamanho", type=number(int, 1, 1 << 20, "bytes"), default=64, metavar="B",
                       help="bytes de cada mensagem (padrão: %(default)s)")
    meter.add_argument("--duracao", **seconds, default=5, help="quanto medir (padrão: %(default)s)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}", help="mostra a versão e sai")
    return parser


def start(args):
    secure = args.tls or args.ca or args.sem_verificar or args.certificado
    if args.chave and not args.certificado:  # quem pensa em TLS não pode acabar falando em claro
        build_parser().error("--chave só vale junto de --certificado")
    if args.medir:
        if secure:
            build_parser().error("--medir mede o TCP, sem TLS")
        return measure(args)
    with connect(args) as sock:
        stream = start_tls(sock, args) if secure else sock
        if args.verbose:
            with contextlib.suppress(OSError):  # já caiu: quem ler dirá
                print(describe(sock, stream), file=sys.stderr, flush=True)
        return talk(stream, args)


def main(argv=None):
    return run(build_parser, start, argv)


if __name__ == "__main__":
    sys.exit(main())
