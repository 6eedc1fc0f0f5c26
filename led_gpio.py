#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""LED e botão de um Raspberry Pi pela rede: um comando por TCP acende a GPIO17, um toque na GPIO4 manda o comando.

    ./led_gpio.py                 o LED: escuta em 127.0.0.1 porta 5555 (e obedece a: echo LED ON | nc 127.0.0.1 5555)
    ./led_gpio.py botao           o botão: cada toque inverte o LED; para um comando só: ./led_gpio.py enviar LED ON
    ./led_gpio.py iniciar         LED e botão juntos; num PC, sem placa, tudo simulado

          botao                        TCP, porta 5555                     servidor
    GPIO4 ---/ --- GND          --- LED STATUS ------------>     GPIO17 ---[330 ohms]---|>|--- GND
    (pull-up: solto 1,          <---------- OK LED OFF -----     (sysfs, ou /dev/gpiochipN,
     apertado 0)                --- LED ON ---------------->      ou uma lâmpada no terminal)
                                <---------- OK LED ON ------

Uma linha por comando; acaba em NUL, LF, CRLF, no fim da conexão ou num breve silêncio. O que não se entende: ERRO.
    LED ON, LED OFF, LED TOGGLE, LED STATUS  ->  OK LED ON  ou  OK LED OFF
    LED WATCH                                ->  o mesmo e, a cada mudança, LED ON  ou  LED OFF
    com senha, antes de tudo: DESAFIO texto  <-  RESPOSTA hmac_sha256(senha, texto)  ->  OK  ou  ERRO

O que ele não faz: não esconde a conversa sem --certificado, não manda em mais de um LED, não fala MQTT.
"""
import argparse
import contextlib
import errno
import glob
import hmac
import io
import os
import queue
import re
import select
import selectors
import shlex
import signal
import socket
import ssl
import stat
import struct
import sys
import threading
import time

if os.name == "posix":  # no Windows só existem a simulação e os clientes
    import fcntl
    import syslog
    syslog.openlog("LED TCP", syslog.LOG_PID)  # a marca dos programas em C: tail -f /var/log/syslog | grep LED

COMMANDS = ("LED ON", "LED OFF", "LED TOGGLE", "LED STATUS", "LED WATCH")
CHIPS = ("pinctrl-rp1", "pinctrl-bcm2711", "pinctrl-bcm2835")  # Pi 5, Pi 4, Pi 0 a 3: o rótulo não muda, o número sim
HEADER_LINES = 28  # GPIO0 a GPIO27, o conector de 40 pinos
LINE_LIMIT, LOG_LIMIT = 256, 1 << 20  # bytes; o maior comando tem 10, e a prova, 73; ~/.led_gpio.log recomeça
CHUNK = 16384  # bytes: um registro TLS inteiro, para nada ficar no OpenSSL sem que select() o veja
SILENCE_S, STOP_TRIES = 0.2, 50  # encerra uma linha sem fim, e é o passo de quem espera o fim; os passos de `parar`
LOGIN_S = 30  # prazo do TLS e da senha: dá para fazer a conta à mão, com nc e openssl
MAX_CLIENTS, MAX_PER_SOURCE = 512, 64  # os demais esperam na fila; e um endereço só não ocupa o lugar de todos
PENALTY_MAX_S, MAX_OFFENDERS = 60, 1024  # espera máxima de quem erra a senha; endereços lembrados (o mais antigo sai)
UDEV_S, POLL_S, WAKE_S = 2, 0.005, 0.5  # EACCES após o export; releitura do botão sem bordas; maior sono de uma espera
ANSWER_S = 1.5  # para conectar, e para a conversa inteira; e, no fim, para as threads dos clientes acabarem
MAX_PRESSES, RETRY_S, PARTING_S = 64, 1, 1  # toques à espera; pausa entre tentativas; o que o fim espera por uma
LOGGING = argparse.Namespace(lock=threading.Lock(), limit=float("inf"))  # uma linha por vez; teto do arquivo, se nosso


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


# Protocolo: bytes entram, bytes saem.

def split_lines(data: bytes) -> tuple:
    """(linhas completas, resto): o TCP entrega bytes em ordem, não mensagens. Nada passa de LINE_LIMIT + 1 bytes."""
    *lines, rest = data.replace(b"\0", b"\n").replace(b"\r", b"\n").split(b"\n")
    return [line[:LINE_LIMIT + 1] for line in lines if line.strip()], rest[:LINE_LIMIT + 1]


def understand(line: bytes) -> tuple:
    """(comando ou None, se com mais bytes a linha ainda viria a ser um): b"led  o" dá (None, True)."""
    text = " ".join(line.decode("ascii", "replace").upper().split())
    return text if text in COMMANDS else None, any(c.startswith(text) and c != text for c in COMMANDS)


def proof(secret: bytes, challenge: str) -> str:
    """HMAC-SHA-256 (RFC 2104) do desafio, em hexadecimal: prova que se sabe a senha sem a dizer."""
    return hmac.new(secret, challenge.encode(), "sha256").hexdigest()


def source_of(host: str) -> str:
    """De quem é o endereço: em IPv6, a rede /64, que cada casa recebe inteira. O IPv4 chega a :: como ::ffff:1.2.3.4"""
    if "." in host.partition("%")[0]:  # fe80::1%eth0.10 não é IPv4
        return host.rpartition(":")[2]
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8].hex(":", 2) + "::/64"


def log(text, stream=None):
    """Um print() que não espera: o que não cabe num terminal parado (Ctrl+S), ou num cano que ninguém lê, se perde."""
    out = stream or sys.stderr
    if not out or os.name != "posix":  # None: nasceu sem ele (`2>&-`)
        return out and print(text, file=out, flush=True)
    with LOGGING.lock:  # ou um devolveria a espera à saída no meio da escrita do outro
        try:
            os.set_blocking(out.fileno(), False)  # só por um instante: o terminal é também de outros
            if os.fstat(out.fileno()).st_size > LOGGING.limit:
                os.ftruncate(out.fileno(), 0)
            os.write(out.fileno(), f"{text}\n".encode(out.encoding, "replace"))
        except OSError as error:  # cheia; ou ninguém mais lê, e sem a lâmpada (`| head -1`) é o fim
            if stream and not isinstance(error, BlockingIOError):
                os.kill(os.getpid(), signal.SIGTERM)
                raise
        finally:
            os.set_blocking(out.fileno(), True)


# Os pinos: três vias até o mesmo LED e o mesmo botão.

class Pin:
    """Uma linha de GPIO, pelas três vias abaixo. O nível é lógico: True é LED aceso, ou botão apertado."""
    fd = lit = None

    def __init__(self, args, where, output, active_low):
        self.args, self.where, self.output, self.active_low = args, where, output, active_low

    def wait(self, seconds):
        """Espera uma borda; False se o tempo passou sem ela."""
        poller = select.poll()
        poller.register(self.fd, self.events)
        return bool(poller.poll(seconds * 1000)) and (os.read(self.fd, 768) or True)  # esvazia a fila do chardev

    def presses(self, stop):
        """Gera os toques. O contato treme (*bounce*): um nível só vale depois de ficar --repique ms parado."""
        level = settled = self.lit
        since, edges_work = 0.0, False  # há chips que aceitam avisar bordas e nunca avisam: até uma chegar, relê
        while not stop.asked:
            edge = self.wait(WAKE_S if edges_work and level == settled else POLL_S)
            seen, now = self.read(), time.monotonic()
            edges_work = edges_work or edge and seen != level  # borda sem mudança pode ser só o eco de armar o poll
            if edge or seen != level:
                level, since = seen, now
            elif level != settled and now - since >= self.args.repique / 1000:
                settled = level
                if settled:
                    yield

    def close(self):
        if self.fd is not None:
            self.fd = os.close(self.fd)  # None


class SysfsPin(Pin):
    """Um arquivo por atributo em /sys/class/gpio/gpioN: antigo, desaconselhado e presente em quase todo Pi."""
    exported, events = False, getattr(select, "POLLPRI", 0)  # POLLERR vem sempre

    @classmethod
    def chips(cls, args, bcm):
        """Base do chip + BCM: a GPIO17 é a linha 17, 529 ou 588, conforme o kernel e o modelo."""
        for chip in sorted(glob.glob(f"{args.sysfs}/gpiochip*")):
            yield cls.file(f"{chip}/label"), int(cls.file(f"{chip}/ngpio")), int(cls.file(f"{chip}/base")) + bcm

    @staticmethod
    def file(path, text=None):
        """Lê um atributo, ou escreve nele; insiste um pouco, que o udev demora a dar os arquivos ao grupo gpio."""
        deadline = time.monotonic() + UDEV_S
        while True:
            try:
                with open(path, "r" if text is None else "w") as file:
                    return file.read().strip() if text is None else file.write(text)
            except (PermissionError, FileNotFoundError):
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_S)

    def open(self):
        """A linha que já estava exportada serve, mas não cabe a nós devolvê-la."""
        self.folder = f"{self.args.sysfs}/gpio{self.where}"
        direction, value = f"{self.folder}/direction", f"{self.folder}/value"
        if not os.path.isdir(self.folder):
            self.file(f"{self.args.sysfs}/export", str(self.where))  # sem zero à esquerda: seria lido em octal
            self.exported = True
        self.file(f"{self.folder}/active_low", "0")  # `value` o respeita e `direction` não: a inversão se faz aqui
        if self.output:  # "high" e "low" dão sentido e nível de uma vez; "out" apagaria por um instante um LED aceso
            keep = not self.exported and self.file(direction) == "out"
            level = self.file(value) == "1" if keep else self.active_low
            self.file(direction, "high" if level else "low")
        else:
            self.file(direction, "in")
            with contextlib.suppress(OSError):  # chip que não avisa bordas: presses() relê
                self.file(f"{self.folder}/edge", "both")
        self.file(value)
        self.fd = os.open(value, os.O_RDONLY)
        return self.read()

    def write(self, on):
        if not os.path.isdir(self.folder):  # alguém fez unexport: a linha ainda é nossa
            Pin.close(self)
            self.open()
        self.file(f"{self.folder}/value", "1" if on != self.active_low else "0")

    def read(self):
        return (os.pread(self.fd, 1, 0) == b"1") != self.active_low

    def close(self):
        super().close()
        if self.exported and os.path.isdir(self.folder):
            self.file(f"{self.args.sysfs}/unexport", str(self.where))


class ChardevPin(Pin):
    """/dev/gpiochipN, ABI v2 (linux/gpio.h, kernel 5.10+): a linha é nossa enquanto o descritor estiver aberto."""
    GET_CHIPINFO, GET_LINE, GET_VALUES, SET_VALUES = 0x8044B401, 0xC250B407, 0xC010B40E, 0xC010B40F
    REQUEST = struct.Struct("=I252x32sQI20x240xII20xi")  # linha, quem pede, flags, atributos, linhas, fila, descritor
    ACTIVE_LOW, OUTPUT, INPUT = 0x2, 0x8, 0x4 | 0x30 | 0x100  # a entrada, com as duas bordas e pull-up
    events = getattr(select, "POLLIN", 0)

    @classmethod
    def chips(cls, _args, bcm):
        """O dispositivo e a linha: o conector do Pi 5 já foi gpiochip4 e gpiochip0."""
        for path in sorted(glob.glob("/dev/gpiochip*")):
            with contextlib.suppress(PermissionError), open(path, "rb") as chip:  # este pode não ser o do conector
                _, label, lines = struct.unpack("=32s32sI", fcntl.ioctl(chip, cls.GET_CHIPINFO, bytes(68)))
                yield label.rstrip(b"\0").decode(), lines, (path, bcm)

    def open(self):
        flags = self.ACTIVE_LOW * self.active_low | (self.OUTPUT if self.output else self.INPUT)
        with open(self.where[0], "rb") as chip:  # sem atributos: a saída começa apagada
            request = self.REQUEST.pack(self.where[1], b"led_gpio", flags, 0, 1, 0, 0)
            self.fd = self.REQUEST.unpack(fcntl.ioctl(chip, self.GET_LINE, request))[-1]
        return self.read()

    def write(self, on):
        fcntl.ioctl(self.fd, self.SET_VALUES, struct.pack("=QQ", on, 1))

    def read(self):
        return bool(struct.unpack("=QQ", fcntl.ioctl(self.fd, self.GET_VALUES, struct.pack("=QQ", 0, 1)))[0])


class SimulatedPin(Pin):
    """Para um PC: o LED é uma lâmpada desenhada no terminal; o botão, a FIFO (echo 0 > /tmp/tcp_file) e o Enter."""
    chips = staticmethod(lambda _args, _bcm: [(CHIPS[0], HEADER_LINES, "neste terminal")])

    def open(self):
        """A FIFO é só do dono. O que já houver no lugar só serve se for uma FIFO nossa e fechada aos outros."""
        if self.output or not hasattr(os, "mkfifo"):
            return False
        path = self.args.fifo
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        info = os.lstat(path)
        if not stat.S_ISFIFO(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
            raise Failure(f"{path} já existe e não é uma FIFO só sua: ls -l {path}. É de um echo? rm. Ou --fifo OUTRO")
        with contextlib.suppress(OSError):  # ENXIO: ninguém a lê
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
            raise Failure(f"{path} já tem quem a leia, e cada toque iria a um dos dois. Outro botão: --fifo OUTRO")
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)  # O_RDWR: sem fim de arquivo entre dois echo

    def write(self, on):
        text, style = ("(*) LED aceso", "1;33") if on else ("( ) LED apagado", "2")
        if sys.stdout and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            text = f"\033[{style}m{text}\033[0m"
        log(text, sys.stdout)

    def presses(self, stop):
        """Uma linha é um toque. os.read, e não input(): uma thread presa no buffer de stdin trava a saída do Python."""
        sources = [0] if self.fd is None else [0, self.fd]
        while sources and not stop.asked:
            for fd in sources if self.fd is None else select.select(sources, [], [], SILENCE_S)[0]:
                data = os.read(fd, CHUNK)
                yield from range(data.count(b"\n"))
                if not data:
                    sources.remove(fd)

    def close(self):
        if self.fd is not None:
            os.unlink(self.args.fifo)
        super().close()


PINS = {"sysfs": SysfsPin, "chardev": ChardevPin, "simulado": SimulatedPin}  # a ordem em que `auto` procura
PIN_ERRORS = {errno.EBUSY: "está em uso por outro programa ou driver. Quem: gpioinfo. Outra: --led N ou --botao N",
              errno.EACCES: "não é deste usuário. Entre no grupo: sudo usermod -aG gpio $USER, saia e entre de novo"}


@contextlib.contextmanager
def taken_pin(args, bcm, output, active_low):
    """Acha a linha pelo modo de --gpio (em auto, o primeiro que esta máquina tiver), toma-a, e no fim a devolve."""
    found = ((kind, where) for kind in PINS if args.gpio in (kind, "auto")
             for label, lines, where in PINS[kind].chips(args, bcm) if label in CHIPS and lines >= HEADER_LINES)
    kind, where = next(found, (None, None))
    if not kind:
        raise Failure(f"nenhum chip de Raspberry Pi ({', '.join(CHIPS)}) por {args.gpio}. Sem placa: --gpio simulado")
    log(f"GPIO{bcm}: {kind}, {where}")
    with contextlib.closing(PINS[kind](args, where, output, active_low)) as pin:
        try:
            pin.lit = pin.open()
        except OSError as error:
            raise Failure(f"a linha da GPIO{bcm} {PIN_ERRORS.get(error.errno, f'não abriu: {error.strerror}')}")
        yield pin


# O servidor.

class Client(threading.Thread):
    """Uma thread por cliente. Ela lê; escrever, outra também pode (LED WATCH), e o OpenSSL exige uma de cada vez."""

    def __init__(self, server, sock, host):
        super().__init__(daemon=True)
        self.server, self.sock, self.source, self.lock = server, sock, source_of(host), threading.Lock()
        self.trusted, self.challenge, self.watching, self.lost = not server.secret, os.urandom(32).hex(), False, False

    def run(self):
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # quem assina e some acaba descoberto
            self.sock.settimeout(LOGIN_S)
            if self.server.tls:
                self.sock = self.server.tls.wrap_socket(self.sock, server_side=True)
            self.sock.setblocking(False)
            if not self.trusted:
                self.send(f"DESAFIO {self.challenge}")
            for line in self.lines():
                with self.server.lock:  # põe comandos e avisos numa ordem só, a mesma para todos
                    self.send(self.server.obey(understand(line)[0], self) if self.trusted else self.judge(line))
                if not self.trusted or self.server.stop.asked:  # a ordem seguinte já não vale
                    break
        except OSError:  # RST, TLS malfeito: acaba este cliente, e só ele
            pass
        finally:
            self.server.clients.discard(self)
            self.sock.close()

    def lines(self):
        """Gera as linhas que chegam. Acaba no fim da conexão ou do prazo, que só uma linha inteira renova."""
        rest, data, alive, patience = b"", None, time.monotonic(), LOGIN_S
        while data != b"" and time.monotonic() - alive < patience and not (self.server.stop.asked or self.lost):
            data = None
            can_write = select.select([], [self.sock], [], WAKE_S)[1]  # quem não lê as respostas não dá mais ordens
            if can_write and select.select([self.sock], [], [], SILENCE_S if rest else WAKE_S)[0]:
                with self.lock, contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                    data = self.sock.recv(CHUNK)
            ended = data == b"" or data is None and self.trusted and not understand(rest)[1]
            lines, rest = split_lines(rest + (b"\n" if ended else data or b""))
            for line in lines:
                alive = time.monotonic()
                yield line
            patience = (not self.watching and self.server.args.ocioso or float("inf")) if self.trusted else LOGIN_S

    def send(self, text):
        """Nunca espera: a fila de cada cliente é o buffer do kernel, e quem não lê e o deixa encher é desligado."""
        data = text.encode() + b"\n"
        with self.lock:
            try:
                self.lost = self.lost or self.sock.send(data) < len(data)
            except OSError:  # cheio; ou foi-se sem ler a resposta, como o botão em C
                self.lost = True

    def judge(self, line):
        """Confere a prova da senha. Errar custa 1, 2, 4... s de espera, e nela nem a resposta certa vale."""
        if not line.startswith(b"RESPOSTA"):  # quem não sabe que há senha não tentou adivinhá-la
            return "ERRO falta a senha: RESPOSTA e o HMAC-SHA-256 do desafio"
        offenders, now = self.server.offenders, time.monotonic()
        failures, free_at = offenders.pop(self.source, (0, now))
        if now >= free_at:
            wanted = f"RESPOSTA {proof(self.server.secret, self.challenge)}".encode()
            self.trusted = hmac.compare_digest(line.strip(), wanted)  # o mesmo tempo, por mais que se acerte
            if self.trusted:
                return "OK senha aceita"
            failures, free_at = failures + 1, now + min(2 ** failures, PENALTY_MAX_S)
            log(f"senha errada de {self.source}")
        offenders[self.source] = failures, free_at
        if len(offenders) > MAX_OFFENDERS:
            del offenders[next(iter(offenders))]
        return f"ERRO senha recusada; espere {free_at - now:.1f} s"


class Server:  # o LED, e quem quer saber dele
    def __init__(self, pin, tls, secret, args, stop):
        self.pin, self.tls, self.secret, self.args, self.stop = pin, tls, secret, args, stop
        self.lit, self.clients, self.offenders, self.lock = pin.lit, set(), {}, threading.Lock()

    def obey(self, command, client):
        if command is None:
            return "ERRO use LED ON, LED OFF, LED TOGGLE, LED STATUS ou LED WATCH"
        client.watching = client.watching or command == "LED WATCH"
        try:
            if command not in ("LED STATUS", "LED WATCH"):
                self.turn(command == "LED ON" or command == "LED TOGGLE" and not self.lit)
        except OSError as error:
            return f"ERRO o pino não obedeceu: {error.strerror}"
        return "OK LED ON" if self.lit else "OK LED OFF"

    def turn(self, on):
        self.pin.write(on)  # mesmo que já esteja assim: no sysfs, outro programa pode ter mexido
        if on != self.lit:
            self.lit = on
            log(f"LED Status: {'On' if on else 'Off'}")
            if os.name == "posix":
                syslog.syslog(f"LED Status: {'On' if on else 'Off'}")
            for watcher in [other for other in list(self.clients) if other.watching]:
                watcher.send("LED ON" if on else "LED OFF")

    def run(self, listener):
        """Aceita clientes até a hora de parar; depois espera que as threads deles acabem."""
        threading.stack_size(256 * 1024)  # bytes: com os 8 MiB de costume, 512 pilhas não caberiam num Pi de 32 bits
        listener.settimeout(SILENCE_S)
        while not self.stop.asked:
            try:
                if len(self.clients) >= MAX_CLIENTS:
                    raise BlockingIOError
                sock, address = listener.accept()
            except OSError as error:  # ninguém; ou lotado, ou sem descritores: sem a pausa, giraria em falso
                time.sleep(0 if isinstance(error, socket.timeout) else SILENCE_S)
                continue
            client = Client(self, sock, address[0] if address else "::")  # macOS: quem já se foi não o tem
            self.clients.add(client)
            try:
                if sum(other.source == client.source for other in list(self.clients)) > MAX_PER_SOURCE:
                    raise RuntimeError("esse endereço já tem a sua parte dos lugares")
                client.start()
            except RuntimeError:  # ou o sistema não dá mais threads: é este cliente que fica de fora, e só ele
                self.clients.discard(client)
                sock.close()
        deadline = time.monotonic() + ANSWER_S
        for client in list(self.clients):
            client.join(max(0, deadline - time.monotonic()))


def stop_on_signals():
    """Todo sinal que encerra vira um pedido, lido por quem está em condições de parar: ninguém para no meio."""
    stop = argparse.Namespace(asked=False)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM"):  # no Windows, só dois
        if hasattr(signal, name) and (name != "SIGHUP" or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN):  # nohup
            signal.signal(getattr(signal, name), lambda *_: setattr(stop, "asked", True))
    return stop


def tls_context(args, server):
    """Contexto TLS 1.2 ou mais novo, ou None. Quem pede uma parte dele, seja qual for, nunca acaba falando em claro."""
    if not any((args.certificado, args.chave, args.ca_clientes, args.tls, args.ca, args.sem_verificar)):
        return None
    if not args.certificado and (server or args.chave or args.ca_clientes):
        build_parser().error("--chave, --ca-clientes e qualquer TLS no servidor só valem junto de --certificado")
    purpose, authority = (ssl.Purpose.CLIENT_AUTH, args.ca_clientes) if server else (ssl.Purpose.SERVER_AUTH, args.ca)
    try:
        context = ssl.create_default_context(purpose, cafile=authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if args.certificado:
            context.load_cert_chain(args.certificado, args.chave)
        context.check_hostname = not server and bool(authority or not args.sem_verificar)
        context.verify_mode = ssl.CERT_REQUIRED if authority or context.check_hostname else ssl.CERT_NONE
        return context
    except OSError as error:
        files = ", ".join(filter(None, (authority, args.certificado, args.chave)))
        raise Failure(f"não consigo usar {files}: {error.strerror or error}. O README mostra como criá-los")


def read_secret(path):
    """A senha compartilhada: o texto do arquivo, sem espaços nem fins de linha nas pontas."""
    secret, mode = b"", 0
    with contextlib.suppress(OSError), open(path, "rb") as file:
        secret, mode = file.read(CHUNK).strip(), os.fstat(file.fileno()).st_mode
    if len(secret) < 8 or os.name == "posix" and mode & 0o077:
        raise Failure(f"{path}: falta uma senha (8 bytes, só sua): openssl rand -hex 32 > {path}; chmod 600 {path}")
    return secret


@contextlib.contextmanager
def ready_led(args, stop):
    """Toma a porta e o pino, e entrega a função que atende. No sysfs, que não tem dono, a porta é a única trava."""
    secret, tls = args.senha_arquivo and read_secret(args.senha_arquivo), tls_context(args, server=True)
    try:
        family, _, _, _, address = socket.getaddrinfo(args.endereco, args.porta, type=socket.SOCK_STREAM)[0]
        sock = socket.create_server(address, family=family, backlog=MAX_CLIENTS, dualstack_ipv6=address[0] == "::")
    except (OSError, UnicodeError) as error:
        raise Failure(explain_bind(error, args.endereco, args.porta))
    with sock as listener:
        host, args.porta = listener.getsockname()[:2]
        private = host.startswith("127.") or host == "::1"
        if not (private or secret or args.sem_senha):
            raise Failure(f"em {host} qualquer um na rede mandaria no LED. Crie uma senha: (umask 077; openssl rand "
                          "-hex 32 > senha.txt); e use --senha-arquivo senha.txt. Ou aceite o risco: --sem-senha")
        with taken_pin(args, args.led, True, args.ativo_baixo) as pin, contextlib.ExitStack() as at_exit:
            server = Server(pin, tls, secret, args, stop)
            if args.ao_sair != "manter":
                at_exit.callback(server.turn, args.ao_sair == "acender")
            print(f"escutando em {host} porta {args.porta}", flush=True)
            log("só esta máquina chega aqui; para abrir à rede, o mesmo comando com 0.0.0.0 e --senha-arquivo senha.txt"
                if private else f"{'quem sabe a senha' if secret else 'aviso: --sem-senha: qualquer um'} manda no LED")
            yield lambda: server.run(listener)


# Os clientes: enviar e botao.

@contextlib.contextmanager
def conversation(args):
    """Conecta, prova a senha se for o caso, e entrega ask(linha) -> resposta. Toda falha de rede vira Failure."""
    secret, where = args.senha_arquivo and read_secret(args.senha_arquivo), f"{args.endereco} porta {args.porta}"
    tls = tls_context(args, server=False)
    gone = f"{where} desligou: sem lugar para mais esta conexão, ou lá a conversa é por TLS (--tls)"

    def ask(line="", forever=False):
        nonlocal gone
        with contextlib.suppress(BrokenPipeError):  # ele desligou: é o que a leitura dirá
            sock.sendall(line.encode() + b"\n")  # uma linha vazia não é nada: só se espera
        while forever and not select.select([sock], [], [], 1)[0]:
            pass  # acorda a cada segundo: é quando o Windows vê um Ctrl+C
        reply, end = b"", time.monotonic() + ANSWER_S if forever else deadline
        while not reply.endswith(b"\n") and len(reply) < LINE_LIMIT:
            sock.settimeout(max(0.001, end - time.monotonic()))  # um prazo para todas: o servidor pode gotejar
            reply += sock.recv(1) or b"\n"  # de um em um: o que vem depois da linha é de outra resposta
        reply = escape(reply.decode("utf-8", "replace").rstrip("\r\n"))
        if not reply or reply.startswith("DESAFIO") and not secret:
            raise Failure(f"{where} pede senha: use o --senha-arquivo de lá" if reply else gone)
        gone = f"{where} desligou"  # quem já respondeu tinha lugar para nós, e fala a mesma língua
        return reply

    try:
        with socket.create_connection((args.endereco, args.porta), ANSWER_S) as sock, \
                tls.wrap_socket(sock, server_hostname=args.endereco) if tls else sock as sock:
            deadline = time.monotonic() + ANSWER_S
            reply = ask(f"RESPOSTA {proof(secret, ask().replace('DESAFIO ', ''))}") if secret else "OK"
            if not reply.startswith("OK"):
                raise Failure(f"{where}: {reply}")
            yield ask
    except (socket.gaierror, UnicodeError):
        raise Failure(f"não encontro a máquina {args.endereco!r}: confira o nome, ou use um endereço como 127.0.0.1")
    except BrokenPipeError:  # o terminal de quem chamou; o da rede, ask() o lê como um fim
        raise
    except OSError as error:
        why = {ConnectionRefusedError: f"ninguém escuta em {where} (conexão recusada). Suba o LED antes: "
                                       f"./led_gpio.py {args.endereco} {args.porta}",
               ConnectionResetError: gone,
               socket.timeout: f"{where} não respondeu: endereço errado, firewall, ou --tls ou senha de um lado só?"}
        raise Failure(why.get(type(error), f"não foi possível falar com {where}: {error}. É TLS? Confira --ca"))


def send_command(args):
    """A resposta em stdout; depois de LED WATCH, uma linha por mudança até Ctrl+C."""
    with conversation(args) as ask:
        reply = ask(args.comando)
        print(reply, flush=True)
        while reply.startswith("OK") and understand(args.comando.encode())[0] == "LED WATCH":
            print(ask(forever=True), flush=True)
    return 0 if reply.startswith("OK") else 1


def deliver(args, born):
    """Entrega um toque, insistindo até que ele envelheça. Pergunta o estado e manda o contrário: repetir "LED ON", se a
    resposta se perder, não faz mal; repetir TOGGLE faria. (Simplificação: dois botões no mesmo instante contam um.)"""
    wanted = None
    while True:
        try:
            with conversation(args) as ask:
                wanted = wanted or ("LED OFF" if ask("LED STATUS") == "OK LED ON" else "LED ON")
                return log(f"toque: {wanted} -> {ask(wanted)}", sys.stdout)
        except Failure as error:
            if time.monotonic() - born >= args.validade:
                return log(f"toque perdido, {time.monotonic() - born:.1f} s depois de dado: {error}")
            log(f"{error}; o toque espera, nova tentativa em {RETRY_S} s")
            time.sleep(RETRY_S)


def deliver_all(args, pin, stop):
    """Uma thread conta os toques, outra os entrega, e esta só espera o fim: nem servidor mudo nem DNS o atrasam."""
    presses, failures = queue.Queue(), queue.Queue()

    def count():
        try:
            for _ in pin.presses(stop):
                full = presses.qsize() >= MAX_PRESSES
                log(f"toque perdido: {MAX_PRESSES} já esperam entrega") if full else presses.put(time.monotonic())
        except OSError as error:
            failures.put(Failure(f"o botão deixou de responder: {error.strerror}"))

    def hand_over():
        while not stop.asked:
            press = presses.get()
            try:
                deliver(args, press)
            except OSError as error:  # ninguém mais nos lê (`| head -1`)
                return failures.put(error)
            finally:
                presses.task_done()

    counter, courier = (threading.Thread(target=target, daemon=True) for target in (count, hand_over))
    counter.start()
    courier.start()
    log(f"à espera de toques; cada um inverte o LED em {args.endereco} porta {args.porta}")
    while not stop.asked and failures.empty():
        time.sleep(SILENCE_S)
    courier.join(PARTING_S if presses.unfinished_tasks else 0)  # sem toques, ela dorme à espera de um
    if presses.unfinished_tasks:
        log(f"toques perdidos, por entregar na hora de parar: {presses.unfinished_tasks}")
    counter.join(PARTING_S)
    if not failures.empty():
        raise failures.get()


def work(args):
    """O LED, o botão, ou (iniciar) os dois: cada um na sua thread, conversam por TCP como se fossem duas máquinas."""
    while os.open(os.devnull, os.O_RDWR) <= 2:  # nasceu sem stdin, stdout ou stderr (`>&-`): nada nosso os ocupe
        pass
    stop, (path, lock, pid) = stop_on_signals(), background() if args.fundo else (None, None, None)
    if pid is not None:
        raise Failure("já está rodando. Para parar: ./led_gpio.py parar")
    with contextlib.ExitStack() as stack:
        answer = stack.enter_context(ready_led(args, stop)) if args.acao != "botao" else None
        pin = stack.enter_context(taken_pin(args, args.botao, False, True)) if args.acao != "servidor" else None
        if pin:
            tls_context(args, server=False)  # o que falta ao TLS se diz já, e não ao primeiro toque
        if args.fundo:  # só agora, com tudo tomado: o que deu errado até aqui se viu neste terminal
            print(f"em segundo plano; o que diz: tail -f {path}.log", flush=True)
            if child := os.fork():
                os.pwrite(lock, b"%d" % child, 0)
                os._exit(0)  # sem desfazer nada: a porta, os pinos e a trava agora são do filho
            os.setsid()  # noutra sessão: nem o Ctrl+C nem o fim deste terminal o alcançam
            with open(os.devnull) as null, open(f"{path}.log", "a") as out:
                for stream, fd in (null, 0), (out, 1), (out, 2):
                    os.dup2(stream.fileno(), fd)
            LOGGING.limit = LOG_LIMIT
        if not pin:
            return answer()
        if answer:
            thread = threading.Thread(target=answer)
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, stop, "asked", True)  # ao desfazer, a ordem se inverte: isto vem antes
        deliver_all(args, pin, stop)


def background():
    """(caminho, trava, pid ou None), em casa: /tmp é de todos, e a pasta do XDG some no logout. A trava dura até a
    morte de quem roda: sem ela, o número anotado já pode ser de outro processo."""
    if os.name != "posix":
        raise Failure("segundo plano só em Unix. Aqui: ./led_gpio.py iniciar, num terminal à parte")
    path = os.path.expanduser("~/.led_gpio")
    lock = os.open(f"{path}.pid", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return path, lock, int(os.read(lock, 20) or 0)
    os.ftruncate(lock, 0)
    return path, lock, None


def stop_background(_args):
    """Encerra o que ficou em segundo plano, pelo pid anotado e conferido."""
    _, lock, pid = background()
    if not pid:
        raise Failure("nada em segundo plano. Para começar: ./led_gpio.py iniciar --fundo")
    os.kill(pid, signal.SIGTERM)
    for _ in range(STOP_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a trava se solta quando ele acaba
            return print(f"parado: pid {pid}")
        time.sleep(SILENCE_S)
    raise Failure(f"o pid {pid} recebeu o SIGTERM e não acabou em {STOP_TRIES * SILENCE_S:g} s. À força: kill -9 {pid}")


ACTIONS = {"servidor": work, "botao": work, "iniciar": work, "enviar": send_command, "parar": stop_background}


def build_parser(action="servidor"):
    file, bcm = {"metavar": "ARQUIVO"}, {"type": number(int, 0, HEADER_LINES - 1, "um número BCM"), "metavar": "N"}
    seconds, millis = {"type": number(float, 0, 10**6, "segundos"), "metavar": "S"}, number(float, 0, 1000, "ms")
    parser = Parser(usage="%(prog)s [AÇÃO] [ENDEREÇO [PORTA]] [OPÇÕES]", epilog="Depois: ./led_gpio.py enviar LED ON",
                    description="AÇÃO: servidor (padrão: o LED), botao, enviar COMANDO, iniciar (os dois) ou parar.")
    parser.set_defaults(acao=action)
    add = parser.add_argument
    if action == "enviar":
        add("comando", metavar="COMANDO", type=lambda text: escape("LED " * (text[:3].upper() != "LED") + text))
    add("endereco", nargs="?", default="127.0.0.1", type=host_name, metavar="ENDEREÇO", help="do LED, ou 127.0.0.1")
    add("porta", nargs="?", default=5555, type=port_number, metavar="PORTA", help="do LED (padrão: %(default)s)")
    add("--gpio", choices=("auto", *PINS), default="auto", help="como falar com os pinos (padrão: auto, o que houver)")
    add("--led", default=17, **bcm, help="pino do LED, em número BCM (padrão: 17)")
    add("--botao", default=4, **bcm, help="pino do botão, que o liga ao GND (padrão: 4)")
    add("--ativo-baixo", action="store_true", help="o LED acende com o pino em 0")
    add("--ao-sair", choices=("manter", "apagar", "acender"), default="apagar", help="o LED no fim (padrão: apagar)")
    add("--repique", default=50, metavar="MS", type=millis, help="o botão só vale parado há MS ms (padrão: 50)")
    add("--validade", default=30, **seconds, help="quanto insistir na entrega de um toque (padrão: 30)")
    add("--ocioso", default=300, **seconds, help="desliga quem passa S segundos calado; 0: nunca (padrão: 300)")
    add("--senha-arquivo", **file, help="a senha que o cliente prova saber, a mesma dos dois lados")
    add("--sem-senha", action="store_true", help="aceita ordens de qualquer um na rede")
    add("--certificado", **file, help="certificado deste lado (PEM); no servidor, liga o TLS")
    add("--chave", **file, help="a chave dele, se não está no mesmo arquivo")
    add("--ca-clientes", **file, help="servidor: exige dos clientes um certificado desta autoridade")
    add("--tls", action="store_true", help="cliente: cifra a conversa e confere o certificado do servidor")
    add("--ca", **file, help="cliente: confia nesta autoridade, ou neste certificado")
    add("--sem-verificar", action="store_true", help="cliente: cifra, mas não confere com quem fala")
    add("--fifo", default="/tmp/tcp_file", **file, help="o botão simulado (padrão: %(default)s)")
    add("--fundo", action="store_true", help="em segundo plano, até ./led_gpio.py parar")
    add("--sysfs", default="/sys/class/gpio", metavar="RAIZ", help="outra árvore, para testes (padrão: %(default)s)")
    add("--version", action="version", version=f"%(prog)s {VERSION}", help="mostra a versão e sai")
    return parser


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    action = argv.pop(0) if argv and argv[0] in ACTIONS else "servidor"
    if action == "enviar" and argv[:1] == ["LED"]:  # sem aspas também vale: enviar LED ON
        argv[:2] = [" ".join(argv[:2])]
    return run(lambda: build_parser(action), ACTIONS[action], argv)


if __name__ == "__main__":
    sys.exit(main())
