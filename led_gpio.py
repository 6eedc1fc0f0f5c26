#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""LED e botão de um Raspberry Pi pela rede: um comando por TCP acende, um toque manda o comando.

    ./led_gpio.py               o LED: obedece a   echo LED ON | nc -w 1 127.0.0.1 5555
    ./led_gpio.py botao         o botão: cada toque inverte o LED
    ./led_gpio.py iniciar       os dois juntos; num PC, sem placa, simulados

          botao                        TCP, porta 5555                     servidor
    GPIO4 ---/ --- GND          --- LED STATUS ------------>     GPIO17 ---[330 ohms]---|>|--- GND
    (pull-up: solto 1,          <---------- OK LED OFF -----     (sysfs, ou /dev/gpiochipN,
     apertado 0)                --- LED ON ---------------->      ou uma lâmpada no terminal)
                                <---------- OK LED ON ------

O servidor ingênuo, que num Pi de 2015, depois de `echo 17 > export`, já acende:

    listener = socket.create_server(("127.0.0.1", 5555))
    while True:
        client, address = listener.accept()
        if client.recv(1024).strip() == b"LED ON":
            with open("/sys/class/gpio/gpio17/value", "w") as value:
                value.write("1")
        client.close()

O que lhe falta, e quem o cura (o principal primeiro), na parte de mesmo número. No fim do arquivo,
sob o título "Em volta": a linha de comando, main(), e o que as partes já usam antes, como Failure
(um erro que se diz numa linha), reason() e escape().

    1  um recv() não é uma ordem; nem todos falam linhas ... Order, split_lines, dialect
    2  a GPIO17 muda de número, de dono; o contato treme ... Pin, SysfsPin, ChardevPin, SimulatedPin
    3  outro mexe no pino, e ele nem nota nem conta ....... Led
    4  quem conecta e se cala faz todos esperar ........... Server, Client (uma thread cada)
    5  o toque que não acha o servidor se perde na hora ... Button, Conversation, Delivery
    6  qualquer um na rede manda no LED ................... Secret
    7  não abre num navegador, nem se defende de um site .. Page
    8  só obedece a quem sabe o seu endereço .............. Mqtt, Packets

O que ele não faz: mandar em mais de um LED, variar o brilho e, sem --certificado, cifrar.
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
    import glob
    import hashlib
    import hmac
    import html
    import http.client
    import io
    import ipaddress
    import json
    import queue
    import random
    import re
    import secrets
    import select
    import selectors
    import shlex
    import signal
    import socket
    import stat
    import struct
    import threading
    import time
    import urllib.parse
    from typing import NamedTuple, Optional
except ImportError as error:
    sys.exit(f"{os.path.basename(sys.argv[0])}: erro: este Python veio sem o módulo {error.name}. "
             "Instale-o inteiro: sudo apt install python3 (ou o de https://www.python.org)")

# Um Python compilado à mão sem o OpenSSL faz tudo, menos o TLS: tls_context() o diz.
try:
    import ssl
except ImportError:
    ssl = None

# No Windows só existem a simulação e os clientes.
if os.name == "posix":
    import fcntl
    import grp
    import syslog

# ---------------------------------------------------------------------------------------------
# 1. Order: o que se diz pela rede
#
# O TCP entrega bytes em ordem, e não mensagens: uma ordem chega em pedaços, ou três de uma vez.
# Uma linha acaba em NUL, LF, CRLF, no fim da conexão ou num breve silêncio. O NUL é do botão
# em C, do antepassado deste programa; o servidor dele é o led_process.
#
#     LED ON, LED OFF, LED TOGGLE, LED STATUS  ->  OK LED ON  ou  OK LED OFF; ou ERRO e por quê
#     LED WATCH                                ->  o mesmo e, a cada mudança, LED ON ou LED OFF
#
# E uma página da web, aberta em qualquer navegador desta máquina, também alcança esta porta: quem
# começa por uma linha de HTTP (RFC 9112) nunca chega às ordens, nem com o que vem depois dela. Nem
# quem começa por TLS: no seu primeiro registro um site põe bytes seus (a sessão a retomar).

COMMANDS = ("LED ON", "LED OFF", "LED TOGGLE", "LED STATUS", "LED WATCH")
# Bytes: o maior comando tem 10, e a prova da senha, 73.
LINE_LIMIT = 256
# Bytes que se jogam fora de uma linha que não acaba, antes de desligar quem a manda.
WASTE_LIMIT = 1 << 20

# O método é qualquer palavra (token, RFC 9110): o fetch() de uma página escolhe o seu.
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HTTP_REQUEST = re.compile(TOKEN + rb" +(/|https?://|\S+ +HTTP/)")
HTTP_START = re.compile(TOKEN + rb"( +(/\S*)?)?")
# O primeiro byte de um aperto de mão (RFC 8446, 5.1), que ninguém digita.
TLS_START = b"\x16"


class Order(NamedTuple):
    """Uma linha entendida: o comando, ou None; e se, com mais bytes, ela ainda viria a ser um."""

    command: Optional[str]
    may_grow: bool


def split_lines(data: bytes) -> tuple:
    """(linhas completas, resto), nenhum deles com mais de LINE_LIMIT + 1 bytes."""
    *lines, rest = data.replace(b"\0", b"\n").replace(b"\r", b"\n").split(b"\n")
    return [line[:LINE_LIMIT + 1] for line in lines if line.strip()], rest[:LINE_LIMIT + 1]


def understand(line: bytes) -> Order:
    """b"led  on" é LED ON; b"led  o" ainda não é nada, e pode vir a ser."""
    text = " ".join(line.decode("ascii", "replace").upper().split())
    if text in COMMANDS:
        # Nenhum comando é o começo de outro.
        return Order(text, False)
    return Order(None, any(command.startswith(text) for command in COMMANDS))


def dialect(start: bytes) -> str:
    """Quem começa a falar assim fala "http", "tls" ou "linhas"? "" se ainda não dá para saber."""
    if start.startswith(TLS_START):
        return "tls"
    line, end, _ = start.lstrip(b" \0\r\n").partition(b"\n")
    if not line:
        return ""
    if HTTP_REQUEST.match(line):
        return "http" if end or len(line) > LINE_LIMIT else ""
    if not end and len(line) <= LINE_LIMIT and HTTP_START.fullmatch(line):
        return ""
    return "linhas"


def opposite(reply: str) -> str:
    """O comando que inverte o LED que respondeu assim a LED STATUS."""
    return "LED OFF" if reply == "OK LED ON" else "LED ON"


# ---------------------------------------------------------------------------------------------
# 2. Pin: três caminhos até o mesmo pino
#
# O kernel numera as linhas de todos os chips: GPIO17 é 17, 529 ou 588, e pode nem haver arquivo
# para ela; o que não muda é o rótulo do chip. E outro programa pode ler, escrever ou largar o pino
# como entrada: cada escrita afirma o estado inteiro, e o estado se lê do pino, não da memória.
# (Documentation/admin-guide/gpio/sysfs.rst e include/uapi/linux/gpio.h, no kernel.)
# house, daqui em diante, é o processo (House, em Em volta): say() e note() falam, ending é o fim.

# Pi 5, Pi 4, Pi 0 a 3: o rótulo do chip do conector não muda; o número dele, sim.
CHIPS = ("pinctrl-rp1", "pinctrl-bcm2711", "pinctrl-bcm2835")
# GPIO0 a GPIO27: o conector de 40 pinos.
HEADER_LINES = 28
# Até a GPIO8 os pinos nascem com pull-up; da 9 em diante, com pull-down (BCM2835, tabela 6-31).
LAST_PULL_UP = 8
# Segundos de EACCES depois do export, até o udev dar os arquivos ao grupo gpio.
UDEV_S = 2
# Segundos entre duas leituras de um botão que não avisa bordas.
POLL_S = 0.005
# O maior sono de uma espera, em segundos.
WAKE_S = 0.5
# O passo de quem só espera o fim do programa, também em segundos.
STEP_S = 0.2
# A linha que se usava não está mais ali: unexport de outro programa, ou chip que saiu.
VANISHED = (errno.ENODEV, errno.ENOENT, errno.ENXIO)


class Chip(NamedTuple):
    """Um chip de GPIO visto por um dos caminhos. label: None se não nos deixam perguntar."""

    label: Optional[str]
    lines: int
    # A base da numeração no sysfs, ou o caminho em /dev.
    where: object
    # O dispositivo, em /sys/devices: o mesmo, qualquer que seja o caminho até ele.
    device: str


class Pin:
    """Uma linha de GPIO. O nível é lógico: True é LED aceso, ou botão apertado.

    Cada caminho diz como: chips() gera os que se veem por ele; open() toma a linha; put() escreve
    nela, e get() a lê. OSError é o pino que não obedeceu.
    """

    # Descritor do que se lê; None enquanto a linha não é nossa.
    fd = None
    chip = None

    def __init__(self, args, bcm, output, say):
        self.args = args
        self.bcm = bcm
        # Um LED? Senão, um botão.
        self.output = output
        # Chamada para mostrar uma linha na tela.
        self.say = say
        # O botão liga o pino ao GND: apertado é 0.
        self.active_low = not output or args.ativo_baixo

    def locate(self):
        """Acha o chip do conector, pelo rótulo.

        False: aqui não há. PermissionError: não nos deixam ver.
        """
        chips = list(self.chips())
        found = [chip for chip in chips if chip.label in CHIPS and chip.lines >= HEADER_LINES]
        hidden = [chip for chip in chips if chip.label is None]
        if found:
            # De dois iguais, o da própria placa, e não um de teste ou de expansão; e o mesmo pelos
            # dois caminhos.
            self.chip = min(found, key=precedence)
        elif hidden:
            first = min((chip.where for chip in hidden), key=natural)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), first)
        return bool(found)

    def reopen(self):
        """A linha sumiu: procura-a outra vez, que o chip pode ter voltado com outro número."""
        Pin.close(self)
        if not self.locate():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        self.open()

    def insist(self, action, *args):
        """Faz, e faz de novo com a linha reaberta se ela havia sumido."""
        if self.fd is not None:
            try:
                return action(*args)
            except OSError as error:
                if error.errno not in VANISHED:
                    raise
        self.reopen()
        return action(*args)

    def write(self, on):
        self.insist(self.put, on)

    def read(self):
        return self.insist(self.get)

    def wait_edge(self, seconds):
        """Espera uma borda; False se o tempo passou sem ela."""
        time.sleep(seconds)
        return False

    def presses(self, house):
        """Gera os toques. O contato treme (*bounce*): um nível só vale parado por --repique ms.

            solto     -----.  .-.  .-.                         .-.  .-------
            apertado       '--' '--' '-------------------------' '--'
                                     |<--- repique --->| um toque
        """
        level = settled = self.read()
        since = 0.0
        # Há chips que aceitam avisar bordas e nunca avisam: até uma chegar, relê.
        edges_work = False
        while not house.ending:
            patience = POLL_S
            if edges_work and level == settled:
                patience = WAKE_S
            edge = self.wait_edge(patience)
            seen = self.read()
            now = time.monotonic()
            # Borda sem mudança pode ser só o eco de armar a espera.
            edges_work = edges_work or edge and seen != level
            if edge or seen != level:
                level = seen
                since = now
            elif level != settled and now - since >= self.args.repique / 1000:
                settled = level
                if settled:
                    yield

    def close(self):
        if self.fd is not None:
            fd, self.fd = self.fd, None
            os.close(fd)


def natural(text):
    """Chave que põe gpiochip2 antes de gpiochip10."""
    return [part.zfill(20) for part in re.split(r"(\d+)", text)]


def precedence(chip):
    """Chave de ordem: antes, os chips que a descrição da placa (*device tree*) declara."""
    declared = os.path.exists(f"{chip.device}/of_node")
    return not declared, natural(chip.device)


class SysfsPin(Pin):
    """Um arquivo por atributo, em /sys/class/gpio/gpioN: antigo, e quase sempre lá.

        export      escrever N faz nascer a pasta gpioN; unexport a desfaz
        direction   "high" e "low": saída, já com o nível; "in": entrada
        value       o nível, 0 ou 1; numa entrada, escrever é EPERM

    Não sabe ligar o pull-up; e avisa bordas (edge), mas qualquer programa pode desligá-las: o botão
    aqui se relê, a cada POLL_S.
    """

    # A linha fomos nós que exportamos, e cabe a nós devolver?
    exported = False
    folder = None

    def chips(self):
        return sysfs_chips(self.args.sysfs)

    @staticmethod
    def file(path, text=None):
        """Lê um atributo, ou escreve nele."""
        if text is None:
            with open(path) as file:
                return file.read().strip()
        with open(path, "w") as file:
            file.write(text)

    def settle(self, name, text):
        """Escreve num atributo recém-exportado: o udev demora a dar os arquivos ao grupo gpio."""
        deadline = time.monotonic() + UDEV_S
        while True:
            try:
                return self.file(f"{self.folder}/{name}", text)
            except (PermissionError, FileNotFoundError):
                if not self.exported or time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_S)

    def open(self):
        """A linha que já estava exportada serve, mas não cabe a nós devolvê-la."""
        if not self.output and self.bcm > LAST_PULL_UP:
            raise Failure(f"a GPIO{self.bcm} nasce com pull-down, e o sysfs não sabe trocá-lo: o "
                          "botão ficaria mudo. Use --gpio chardev, ou um pino até "
                          f"{LAST_PULL_UP}: --botao 4")
        line = str(self.chip.where + self.bcm)
        self.folder = f"{self.args.sysfs}/gpio{line}"
        if not os.path.isdir(self.folder):
            # Sem zero à esquerda: seria lido em octal.
            self.file(f"{self.args.sysfs}/export", line)
            self.exported = True
        # `value` respeita active_low e `direction` não: a inversão se faz aqui.
        self.settle("active_low", "0")
        if self.output:
            self.settle("direction", self.level_now())
        else:
            self.settle("direction", "in")
        self.settle("value", None)
        self.fd = os.open(f"{self.folder}/value", os.O_RDONLY)

    def level_now(self):
        """ "high" ou "low": o LED como está, se já era saída de alguém; senão, apagado."""
        kept = not self.exported or self.args.ao_sair == "manter"
        if kept and self.settle("direction", None) == "out":
            high = self.settle("value", None) == "1"
        else:
            high = self.active_low
        return "high" if high else "low"

    def put(self, on):
        # "high" e "low" dão sentido e nível de uma vez; "out" apagaria por um instante o LED.
        self.file(f"{self.folder}/direction", "high" if on != self.active_low else "low")

    def get(self):
        return (os.pread(self.fd, 1, 0) == b"1") != self.active_low

    def close(self):
        super().close()
        if self.exported and os.path.isdir(self.folder):
            self.file(f"{self.args.sysfs}/unexport", os.path.basename(self.folder)[4:])

    def __str__(self):
        return f"sysfs, {self.chip.where + self.bcm}"


def sysfs_chips(root):
    """Os chips que o sysfs mostra, a qualquer usuário. Um que sai enquanto se olha não conta."""
    read = SysfsPin.file
    for path in glob.glob(f"{root}/gpiochip*"):
        with contextlib.suppress(FileNotFoundError):
            yield Chip(read(f"{path}/label"), int(read(f"{path}/ngpio")),
                       int(read(f"{path}/base")), os.path.realpath(f"{path}/device"))


class Layout:
    """Uma chamada de linux/gpio.h: o número dela, e a estrutura, campo por campo.

    O número (asm-generic/ioctl.h) traz, do bit mais alto ao mais baixo: 2 para ler, ou 3 para ler e
    escrever; os bytes da estrutura; 0xB4, que é o GPIO; e qual chamada. 0xC250B407: 3, 0x250, 7.
    """

    def __init__(self, number, *fields):
        self.number = number
        # O que não tem nome é enchimento, ou campos que não usamos: vale zero.
        self.names = [name for name, _ in fields if name]
        self.struct = struct.Struct("=" + "".join(kind for _, kind in fields))

    def pack(self, **values) -> bytes:
        blank = dict.fromkeys(self.names, 0)
        return self.struct.pack(*{**blank, **values}.values())

    def unpack(self, data: bytes) -> dict:
        return dict(zip(self.names, self.struct.unpack(data)))

    def call(self, file, **values) -> dict:
        return self.unpack(fcntl.ioctl(file, self.number, self.pack(**values)))


# A configuração de uma linha: flags, e um atributo (de até dez).
LINE_CONFIG = (
    ("flags", "Q"),
    ("num_attrs", "I"),
    ("", "20x"),
    ("attr_id", "I"),
    ("", "4x"),
    ("attr_value", "Q"),
    ("attr_lines", "Q"),
    ("", "216x"),
)
GET_CHIPINFO = Layout(0x8044B401, ("name", "32s"), ("label", "32s"), ("lines", "I"))
GET_LINEINFO = Layout(
    0xC100B405,
    ("name", "32s"),
    ("consumer", "32s"),
    ("offset", "I"),
    ("num_attrs", "I"),
    ("flags", "Q"),
    ("", "176x"),
)
GET_LINE = Layout(
    0xC250B407,
    # A linha que se pede, de até 64, e quem a pede.
    ("offset", "I"),
    ("", "252x"),
    ("consumer", "32s"),
    *LINE_CONFIG,
    ("num_lines", "I"),
    ("event_buffer_size", "I"),
    ("", "20x"),
    # É o kernel quem o preenche.
    ("fd", "i"),
)
SET_CONFIG = Layout(0xC110B40D, *LINE_CONFIG)
GET_VALUES = Layout(0xC010B40E, ("bits", "Q"), ("mask", "Q"))
# Flags, e o atributo que traz o nível de uma saída (GPIO_V2_LINE_...).
ACTIVE_LOW = 0x2
INPUT = 0x4
OUTPUT = 0x8
BOTH_EDGES = 0x10 | 0x20
PULL_UP = 0x100
OUTPUT_VALUES = 2
# Bytes de um aviso de borda: gpio_v2_line_event.
EVENT_BYTES = 48


class ChardevPin(Pin):
    """/dev/gpiochipN, ABI v2 (kernel 5.10 em diante): a linha é nossa enquanto o fd viver.

        chip = open("/dev/gpiochip0")
        ioctl(chip, GET_CHIPINFO)   o rótulo, e quantas linhas
        ioctl(chip, GET_LINE)       pede a linha; EBUSY se é de outro. Devolve um descritor só dela
        ioctl(fd, SET_CONFIG)       sentido e nível
        ioctl(fd, GET_VALUES)       o nível
        read(fd)                    espera uma borda
        close(fd)                   devolve a linha, que em muitos kernels vira entrada
    """

    def chips(self):
        for path in glob.glob("/dev/gpiochip*"):
            number = os.path.basename(path)
            device = os.path.dirname(os.path.realpath(f"/sys/bus/gpio/devices/{number}"))
            try:
                with open(path, "rb") as chip:
                    info = GET_CHIPINFO.call(chip, name=b"", label=b"")
                yield Chip(info["label"].rstrip(b"\0").decode(), info["lines"], path, device)
            except PermissionError:
                if not self.is_stranger(device):
                    yield Chip(None, 0, path, device)
            except OSError:
                # Pasta, arquivo comum, nó sem dispositivo: não é um chip.
                continue

    def is_stranger(self, device):
        """O sysfs mostra que este chip, que não nos deixam abrir, não é o do conector?"""
        return any(chip.device == device and chip.label not in CHIPS
                   for chip in sysfs_chips(self.args.sysfs))

    def open(self):
        config = self.config(False)
        with open(self.chip.where, "rb") as chip:
            if self.output and self.args.ao_sair == "manter":
                config = self.found(chip)
            self.fd = GET_LINE.call(chip, offset=self.bcm, consumer=b"led_gpio", num_lines=1,
                                    **config)["fd"]

    def found(self, chip):
        """O LED como o achamos, se a linha é uma saída: pedida sem sentido, ela não se mexe."""
        info = GET_LINEINFO.call(chip, name=b"", consumer=b"", offset=self.bcm)
        if not info["flags"] & OUTPUT:
            return self.config(False)
        fd = GET_LINE.call(chip, offset=self.bcm, consumer=b"led_gpio", num_lines=1,
                           flags=ACTIVE_LOW * self.active_low)["fd"]
        try:
            return self.config(bool(GET_VALUES.call(fd, mask=1)["bits"]))
        finally:
            os.close(fd)

    def config(self, on):
        """O estado inteiro da linha, para o pedido e para cada escrita."""
        flags = ACTIVE_LOW * self.active_low
        if not self.output:
            return {"flags": flags | INPUT | BOTH_EDGES | PULL_UP}
        return {"flags": flags | OUTPUT, "num_attrs": 1, "attr_id": OUTPUT_VALUES,
                "attr_value": int(on), "attr_lines": 1}

    def put(self, on):
        SET_CONFIG.call(self.fd, **self.config(on))

    def get(self):
        return bool(GET_VALUES.call(self.fd, mask=1)["bits"])

    def wait_edge(self, seconds):
        if not wait_ready([self.fd], timeout=seconds):
            return False
        os.read(self.fd, 16 * EVENT_BYTES)
        return True

    def __str__(self):
        return f"chardev, {self.chip.where} linha {self.bcm}"


class SimulatedPin(Pin):
    """Para um PC: o LED é uma lâmpada desenhada no terminal; o botão, uma FIFO e o Enter."""

    lit = False
    # A FIFO é só do botão; sem ela, o Enter ainda vale.
    fifo = None

    def locate(self):
        return True

    def open(self):
        """A FIFO é só do dono. O que houver no lugar só serve se for uma nossa, e sem leitor."""
        if self.output or not hasattr(os, "mkfifo"):
            return
        path = self.args.fifo
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        info = os.lstat(path)
        ours = stat.S_ISFIFO(info.st_mode) and info.st_uid == os.geteuid()
        if not ours or info.st_mode & 0o077:
            raise Failure(f"{path} já existe e não é uma FIFO só sua: ls -l {path}. "
                          "É de um echo? rm. Ou --fifo OUTRO")
        # ENXIO: ninguém a lê.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
            raise Failure(f"{path} já tem quem a leia, e cada toque iria a um dos dois. "
                          "Outro botão: --fifo OUTRO")
        # O_RDWR: sem fim de arquivo entre dois echo.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
        self.fifo = path

    def write(self, on):
        """Desenha a lâmpada; em cores só num terminal, e a quem não pediu NO_COLOR."""
        self.lit = on
        text, style = ("(*) LED aceso", "1;33") if on else ("( ) LED apagado", "2")
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            text = f"\033[{style}m{text}\033[0m"
        self.say(text)

    def read(self):
        return self.lit

    def presses(self, house):
        """Uma linha é um toque. Com input(), uma thread presa travaria o fim do Python."""
        sources = [0]
        if self.fd is not None:
            sources.append(self.fd)
        while sources and not house.ending:
            ready = sources
            if self.fd is not None:
                ready = wait_ready(sources, timeout=STEP_S)
            for fd in list(ready):
                data = os.read(fd, CHUNK)
                yield from range(data.count(b"\n"))
                if not data:
                    sources.remove(fd)
                    if os.isatty(fd):
                        house.note("fim da entrada (Ctrl+D): o Enter já não é um toque; "
                                   "para encerrar, Ctrl+C")

    def close(self):
        if self.fifo:
            os.unlink(self.fifo)
        super().close()

    def __str__(self):
        if self.output:
            place = f"em {LOG_PATH}" if self.args.fundo else "neste terminal"
            return f"simulado, {place}"
        touch = "Enter"
        if self.fifo and (self.args.fundo or not sys.stdin.isatty()):
            touch = f"echo 0 > {shlex.quote(self.fifo)}"
        return f"simulado; cada {touch} é um toque"


PINS = {"sysfs": SysfsPin, "chardev": ChardevPin, "simulado": SimulatedPin}
# A ordem em que `auto` procura: o sysfs se repete com echo; mas o botão quer o pull-up, que só o
# chardev sabe ligar.
LED_PATHS = ("sysfs", "chardev", "simulado")
BUTTON_PATHS = ("chardev", "sysfs", "simulado")


def explain_pin(error, bcm):
    """Por que a linha não é nossa, e o que digitar em seguida."""
    if error.errno == errno.EBUSY:
        return (f"a linha da GPIO{bcm} está em uso por outro programa ou driver. Quem: gpioinfo. "
                "Outra: --led N ou --botao N")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return f"a linha da GPIO{bcm} não é deste usuário: {explain_group(error.filename)}"
    if error.errno in VANISHED:
        return f"o chip da GPIO{bcm} não está mais aqui"
    return f"a linha da GPIO{bcm} não abriu: {reason(error)}"


def explain_group(path):
    """Como se chega a ter permissão: o grupo é o do próprio arquivo, que varia com o sistema."""
    group = group_of(path)
    if not group:
        return f"{path} é só do root. Com ele: sudo {typed()}"
    return (f"{path} é do grupo {group}. Entre nele: sudo usermod -aG {group} $USER, "
            "saia e entre de novo")


def group_of(path):
    """O grupo que usa o arquivo, pelo nome, ou pelo número se não tem um; "" se só o root o usa."""
    try:
        info = os.stat(path)
        if not info.st_gid or not info.st_mode & 0o060:
            return ""
        return grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        return str(info.st_gid)
    except OSError:
        return ""


def find_pin(args, bcm, output, house):
    """A linha, aberta pelo caminho de --gpio; em auto, pelo primeiro que a der.

    Simular é só para quem não tem placa: não poder olhar não é não haver.
    """
    paths = LED_PATHS if output else BUTTON_PATHS
    if args.gpio != "auto":
        paths = (args.gpio,)
    failures = {}
    for name in paths:
        if name == "simulado" and failures:
            break
        pin = PINS[name](args, bcm, output, house.say)
        try:
            if pin.locate():
                pin.open()
                return pin
        except (OSError, Failure) as error:
            pin.close()
            failures[name] = error
    if not failures:
        raise Failure(f"nenhum chip de Raspberry Pi ({', '.join(CHIPS)}) por {args.gpio}. "
                      "Sem placa: --gpio simulado")
    # O chardev é o caminho que não falta em kernel nenhum: vale o que ele disse. Sem ele há um só.
    error = failures.get("chardev", next(iter(failures.values())))
    if isinstance(error, OSError):
        error = Failure(explain_pin(error, bcm))
    raise error


@contextlib.contextmanager
def taken_pin(args, bcm, output, house):
    """Toma a linha, e no fim a devolve."""
    pin = find_pin(args, bcm, output, house)
    try:
        yield pin
    finally:
        try:
            pin.close()
        except OSError as error:
            house.note(f"a linha da GPIO{bcm} não foi devolvida: {reason(error)}")


# ---------------------------------------------------------------------------------------------
# 3. Led: o estado, que é do pino, e quem quer saber dele
#
# Quem manda no LED (um cliente TCP, o botão, quem mais vier) fala só com esta classe: dá uma ordem,
# ouve a resposta, e é avisado das mudanças, na mesma ordem para todos. Nenhum conhece os outros. O
# que se sabe do LED se relê do pino, porque outro programa também pode ter mexido nele.

# Quem mudou o LED, quando não foi ninguém por aqui.
OUTSIDER = "outro programa"


class Change(NamedTuple):
    """A última mudança: quem a fez, e quando (time.monotonic())."""

    who: str
    when: float


class Led:
    """O LED de um pino. Cada ordem é atendida inteira antes da seguinte.

        cliente TCP ---.                                     .---> quem pediu LED WATCH
        botão ---------+--- order() ---> trava ---> pino     |
        --ao-sair -----'                   |                 |
        outro programa --- look() ---------+--- mudou? ------+---> terminal e syslog
    """

    def __init__(self, pin):
        self.pin = pin
        # O último nível visto, ou escrito.
        self.lit = pin.read()
        self.changed = Change("", 0.0)
        # Reentrante: quem a segura põe a própria resposta antes do próximo aviso.
        self.lock = threading.RLock()
        # Chamadas a cada mudança, com (aceso, quem).
        self.watchers = []

    def watch(self, call):
        """call(on, who) depois de cada mudança, sob a trava: não pode esperar por nada."""
        with self.lock:
            if call not in self.watchers:
                self.watchers.append(call)

    def unwatch(self, call):
        with self.lock:
            if call in self.watchers:
                self.watchers.remove(call)

    def order(self, command, who) -> str:
        """Cumpre LED ON, OFF, TOGGLE ou STATUS (None: não se entendeu) e responde em uma linha."""
        try:
            with self.lock:
                if command in ("LED STATUS", "LED TOGGLE"):
                    self.look()
                if command == "LED TOGGLE":
                    self.turn(not self.lit, who)
                elif command in ("LED ON", "LED OFF"):
                    self.turn(command == "LED ON", who)
                elif command != "LED STATUS":
                    return "ERRO use LED ON, LED OFF, LED TOGGLE, LED STATUS ou LED WATCH"
                return "OK LED ON" if self.lit else "OK LED OFF"
        except OSError as error:
            return f"ERRO o pino não obedeceu: {explain_pin(error, self.pin.bcm)}"

    def press(self, who) -> tuple:
        """Um toque no botão deste mesmo processo: inverte o LED. Devolve (ordem, resposta)."""
        with self.lock:
            command = opposite(self.order("LED STATUS", who))
            return command, self.order(command, who)

    def look(self):
        """Relê o pino; OSError se ele não se deixa ler."""
        with self.lock:
            self.record(self.pin.read(), OUTSIDER)

    def turn(self, on, who):
        # Mesmo que já esteja assim: outro programa pode ter mexido.
        self.pin.write(on)
        self.record(on, who)

    def record(self, on, who):
        """Guarda o que se viu ou escreveu; se mudou, avisa, ainda sob a trava, quem assinou."""
        if on == self.lit:
            return
        self.lit = on
        self.changed = Change(who, time.monotonic())
        for call in list(self.watchers):
            call(on, who)


# ---------------------------------------------------------------------------------------------
# 4. Server: a porta, e uma thread para cada um que entra
#
# Uma thread espera por cada cliente, e nenhuma espera por outra: enviar nunca bloqueia, e quem não
# lê é desligado. Todo lugar, linha e espera tem um teto: um cliente mudo, lento ou falador custa o
# dele, e os outros nem notam.

# Lugares: os demais esperam na fila; e um endereço só não ocupa o de todos.
MAX_CLIENTS = 512
MAX_PER_SOURCE = 64
# Bytes por leitura: um registro TLS inteiro, para nada ficar no OpenSSL sem que a espera o veja.
CHUNK = 16384
# Um recv() sem nada a entregar: com TLS, é o fim de um registro que ainda não veio.
NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError) if ssl else (BlockingIOError,)
# Segundos de silêncio que encerram uma linha sem fim.
SILENCE_S = 0.2
# Segundos para o TLS e a senha: dá para fazer a conta à mão, com nc e openssl.
LOGIN_S = 30
# Segundos para as últimas palavras chegarem, e para as threads dos clientes acabarem.
ANSWER_S = 1.5
# Segundos entre duas olhadas no pino, para avisar do que outro programa fez.
LOOK_S = 0.5
# Segundos calado até a primeira pergunta do TCP ("ainda está aí?"), entre duas, e quantas.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
# Bytes da pilha de cada thread: com os 8 MiB de costume, 512 não caberiam num Pi de 32 bits.
STACK_BYTES = 256 * 1024
# O que falta ao sistema para mais um cliente, e um dia volta: o resto é o fim da porta.
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Quem desistiu na fila, ou a rede dele: accept(2) manda tratar como "tente outra vez".
FAILED_PEERS = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENETUNREACH,
                errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
                errno.EINTR, errno.ETIMEDOUT, errno.ECONNRESET)

# Ninguém é desligado sem uma palavra: desligar calado é o que faz o led_process em C depois de
# obedecer, e quem ouvisse silêncio nos tomaria por ele (Mute, parte 5).
NO_PLACE = "ERRO sem lugar para mais esta conexão"
NO_TLS = "ERRO aqui a conversa é sem TLS\n".encode()
NO_END = "ERRO linha sem fim\n".encode()


class Client(threading.Thread):
    """Uma thread por cliente. Ela lê; escrever, outra também pode (LED WATCH).

    Acaba de três modos: hang_up() se despede e espera que o outro lado desligue; cut() é já;
    release(), só a thread dele chama, e devolve o que ele ocupava.
    """

    def __init__(self, server, sock, host):
        super().__init__(daemon=True)
        self.server = server
        self.led = server.led
        self.sock = sock
        # De quem é o endereço: conta os lugares e as senhas erradas.
        self.source = source_of(host)
        # O OpenSSL exige uma operação por vez em cada conexão.
        self.lock = threading.Lock()
        # Já provou que sabe a senha, ou ela não é precisa.
        self.trusted = not server.secret
        # O texto que nunca se repete, e de que ele manda o HMAC (parte 6).
        self.challenge = os.urandom(32).hex()
        # Já se sabe que fala linhas, e não HTTP.
        self.lines_spoken = False
        # O desafio já lhe foi dito, ou não é preciso.
        self.challenged = self.trusted
        # Pediu LED WATCH: ouve, e não precisa falar.
        self.watching = False
        # Não dá mais para enviar a ele.
        self.lost = False

    def run(self):
        """A vida de um cliente: TLS, conversa, fim. Nada do que lhe aconteça sai daqui."""
        try:
            keep_alive(self.sock)
            self.sock.settimeout(LOGIN_S)
            if self.server.tls:
                self.sock = self.server.tls.wrap_socket(self.sock, server_side=True)
            self.sock.setblocking(False)
            self.can_read = waiter(self.sock, "POLLIN")
            self.can_write = waiter(self.sock, "POLLOUT")
            self.converse()
        except OSError:
            # RST, TLS malfeito: acaba este cliente, e só ele.
            pass
        except Exception as error:
            # Um defeito nosso também: acaba este cliente, e fica dito.
            self.server.house.note(f"erro com {self.source}, que foi desligado: {error!r}")
        finally:
            self.release()

    def converse(self):
        """Uma linha, uma resposta. Quem não provou a senha tem uma chance só por conexão."""
        for line in self.lines():
            if self.trusted:
                self.obey(understand(line).command)
            else:
                self.log_in(line)
            # A ordem seguinte já não vale.
            if not self.trusted or self.server.house.ending:
                break

    def obey(self, command):
        """Cumpre um comando; LED WATCH é um LED STATUS que não acaba."""
        # A resposta sai antes de qualquer aviso do que vier depois dela.
        with self.led.lock:
            if command == "LED WATCH":
                self.watching = True
                command = "LED STATUS"
                self.send(self.led.order(command, self.source))
                self.led.watch(self.notify)
            else:
                self.send(self.led.order(command, self.source))

    def notify(self, on, _who):
        self.send("LED ON" if on else "LED OFF")

    def log_in(self, line):
        self.trusted, reply = self.server.secret.judge(line, self.challenge, self.source)
        self.send(reply)

    def lines(self):
        """Gera as linhas que chegam, até o fim da conexão, ou do prazo, que só elas renovam."""
        rest = b""
        data = None
        # Bytes jogados fora de uma linha que não acaba; e quando se ouviu a última.
        waste = 0
        alive = time.monotonic()
        while data != b"" and not self.expired(alive):
            data = self.receive(SILENCE_S if rest or not self.challenged else WAKE_S)
            rest += data or b""
            if not self.lines_spoken and self.serves_stranger(rest):
                return
            # Sem fim de linha, o da conexão serve; ou um breve silêncio.
            if data == b"" or (data is None and self.complete(rest)):
                rest += b"\n"
            lines, rest = split_lines(rest)
            for line in lines:
                alive = time.monotonic()
                yield line
            # O resto cortado cresce: é a mesma linha, e o que veio agora foi jogado fora.
            waste = 0 if lines or len(rest) <= LINE_LIMIT else waste + len(data or b"")
            if waste > WASTE_LIMIT:
                return self.hang_up(NO_END)

    def serves_stranger(self, start):
        """Atende, até o fim, quem começou por HTTP ou TLS; False se fala linhas, ou não se sabe."""
        spoken = dialect(start)
        if spoken == "http":
            self.server.page.serve(self, start)
        elif spoken == "tls":
            self.hang_up(NO_TLS)
        elif spoken or start and not start.strip():
            self.challenge_once()
        elif not start and not self.server.page.may_come(self.source):
            # Calado: só uma pessoa num nc espera pela nossa vez; os programas falam antes.
            self.challenge_once()
        self.lines_spoken = spoken == "linhas"
        return spoken in ("http", "tls")

    def expired(self, alive):
        """Passou o prazo dele, ou o nosso?"""
        if self.lost or self.server.house.ending:
            return True
        patience = LOGIN_S
        if self.trusted:
            patience = self.server.args.ocioso or float("inf")
            if self.watching:
                return False
        return time.monotonic() - alive >= patience

    def receive(self, seconds):
        """Bytes, b"" no fim da conexão, ou None se nada veio no prazo."""
        # Quem não lê as respostas não dá mais ordens.
        if not self.can_write(WAKE_S) or not self.can_read(seconds):
            return None
        try:
            with self.lock:
                return self.sock.recv(CHUNK)
        except NOTHING_YET:
            return None

    def complete(self, rest):
        """O silêncio encerra a linha? Não a de quem ainda soletra um comando, ou um pedido HTTP."""
        return self.trusted and self.lines_spoken and not understand(rest).may_grow

    def challenge_once(self):
        """O desafio espera que se saiba quem fala: a um navegador ele não diria nada."""
        if not self.challenged:
            self.challenged = True
            self.send(f"DESAFIO {self.challenge}")

    def send(self, text):
        self.write(text.encode() + b"\n")

    def write(self, data):
        """Nunca espera: a fila de cada um é o buffer do kernel, e quem o enche é desligado."""
        with self.lock:
            if self.lost:
                return
            try:
                if self.sock.send(data) < len(data):
                    self.cut()
            except OSError:
                # Cheio; ou foi-se sem ler a resposta, como o botão em C.
                self.cut()

    def hang_up(self, last=b""):
        """Diz o que falta, manda o FIN e joga fora o que vier até o dele.

        Um close() seco, com bytes por ler, viraria um RST, que apaga o que ele ainda não leu.
        """
        self.write(last)
        deadline = time.monotonic() + ANSWER_S
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            while not self.lost and time.monotonic() < deadline:
                if self.can_read(STEP_S) and not self.sock.recv(CHUNK):
                    break

    def cut(self):
        """É o fim, já: nada mais se envia, e a thread dele acaba no próximo passo."""
        self.lost = True

    def release(self):
        """Devolve o lugar, o socket e o pedido de avisos."""
        self.led.unwatch(self.notify)
        self.server.clients.discard(self)
        self.sock.close()


def keep_alive(sock):
    """Quem assina e some sem se despedir acaba descoberto, em uns dois minutos."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in KEEPALIVE.items():
        # Cada sistema tem os seus; um socket que não é TCP, nenhum.
        if hasattr(socket, name) and sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def waiter(sock, event):
    """Função que espera, tantos segundos, que este socket se deixe ler ("POLLIN"), ou escrever."""
    if not hasattr(select, "poll"):
        reading = event == "POLLIN"
        return lambda seconds: wait_ready([sock] * reading, [sock] * (not reading), seconds)
    # O mesmo poll() de wait_ready, armado uma vez só: aqui passa cada comando.
    poller = select.poll()
    poller.register(sock, getattr(select, event))
    return lambda seconds: poller.poll(seconds * 1000)


def source_of(host: str) -> str:
    """De quem é o endereço: em IPv6, a rede /64, que cada casa recebe inteira."""
    # fe80::1%eth0.10 não é IPv4; ::ffff:1.2.3.4 é.
    address = host.partition("%")[0]
    if "." in address:
        return address.rpartition(":")[2]
    return socket.inet_pton(socket.AF_INET6, address)[:8].hex(":", 2) + "::/64"


class Server:
    """A porta: dá um lugar, e uma thread, a cada um que entra."""

    def __init__(self, led, tls, secret, args, house):
        self.led = led
        # Contexto TLS, e Secret; ou None.
        self.tls = tls
        self.secret = secret
        self.args = args
        self.house = house
        self.clients = set()
        self.page = Page(self)

    def run(self, listener):
        """Aceita até a hora de parar; depois espera que as threads dos clientes acabem."""
        threading.stack_size(STACK_BYTES)
        listener.settimeout(STEP_S)
        looked = time.monotonic()
        while not self.house.ending:
            self.accept(listener)
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                # Se não se deixa ler, quem der a próxima ordem saberá.
                with contextlib.suppress(OSError):
                    self.led.look()
        deadline = time.monotonic() + ANSWER_S
        for client in list(self.clients):
            client.join(max(0, deadline - time.monotonic()))

    def accept(self, listener):
        """Um cliente, se há lugar; senão ele espera na fila do kernel, sem erro."""
        if len(self.clients) >= MAX_CLIENTS:
            time.sleep(STEP_S)
            return
        try:
            sock, address = listener.accept()
        except socket.timeout:
            return
        except OSError as error:
            if error.errno not in (*SHORTAGES, *FAILED_PEERS):
                raise Failure(f"a porta {self.args.porta} deixou de atender: {reason(error)}")
            # Sem a pausa, giraria em falso.
            time.sleep(STEP_S)
            return
        # macOS: quem já se foi não tem endereço.
        self.admit(Client(self, sock, address[0] if address else "::"))

    def admit(self, client):
        """Dá um lugar, e uma thread, se o endereço dele ainda tem parte nos lugares."""
        self.clients.add(client)
        same = sum(other.source == client.source for other in list(self.clients))
        if same > MAX_PER_SOURCE:
            self.turn_away(client)
            return
        try:
            client.start()
        except RuntimeError:
            # O sistema não dá mais threads: é este cliente que fica de fora, e só ele.
            self.turn_away(client)

    def turn_away(self, client):
        """Não há lugar para ele, e ele ouve por quê; por TLS, que nem começou, não ouviria."""
        if not self.tls:
            client.send(NO_PLACE)
        client.release()


# ---------------------------------------------------------------------------------------------
# 5. Button: o toque, e a conversa que o leva ao LED
#
# O contato de um botão treme ao fechar (parte 2: Pin.presses). Cada toque contado espera na fila
# até ser entregue, ou até envelhecer: uma thread conta, outra entrega, e nem um servidor mudo nem
# um DNS parado fazem perder o toque seguinte. O que se perde é dito.

# Toques à espera de entrega.
MAX_PRESSES = 64
# Segundos: pausa entre duas tentativas; o que o fim do programa espera por uma entrega em curso.
RETRY_S = 1
COURIER_S = 1
# O que se diz de um servidor mudo: é o antepassado deste.
ANCESTOR = "deve ser o led_process em C, que cumpre LED ON e LED OFF, e nunca responde"
# Começo do registro com que o TLS recusa o que não entende: alerta, versão 3.x (RFC 8446, 5.1).
TLS_ALERT = b"\x15\x03"
# Com que um servidor TLS responde a um aperto de mão: um alerta, ou outro aperto de mão.
TLS_ANSWERS = (TLS_ALERT[:1], TLS_START)


class Button:
    """Conta os toques de um pino e os entrega, um a um, a deliver(quando)."""

    def __init__(self, pin, deliver, house):
        self.pin = pin
        self.deliver = deliver
        self.house = house
        # Chamadas a cada toque contado: call().
        self.watchers = []
        # O instante de cada toque por entregar.
        self.waiting = queue.Queue()
        self.counter = threading.Thread(target=self.count, daemon=True)
        self.courier = threading.Thread(target=self.hand_over, daemon=True)

    def watch(self, call):
        """call() a cada toque, na thread que os conta: não pode esperar por nada."""
        self.watchers.append(call)

    def start(self):
        self.counter.start()
        self.courier.start()

    def count(self):
        """Thread: do pino à fila."""
        try:
            for _ in self.pin.presses(self.house):
                self.press()
        except OSError as error:
            self.house.fail(Failure(f"o botão deixou de responder: {reason(error)}"))

    def press(self):
        """Um toque: quem assina sabe já; o LED, na vez dele."""
        for call in self.watchers:
            call()
        if self.waiting.qsize() >= MAX_PRESSES:
            self.house.note(f"toque perdido: {MAX_PRESSES} já esperam entrega")
        else:
            self.waiting.put(time.monotonic())

    def hand_over(self):
        """Thread: da fila ao LED, um toque de cada vez, na ordem em que foram dados."""
        while not self.house.ending:
            born = self.waiting.get()
            self.deliver(born)
            self.waiting.task_done()

    def join(self):
        """Espera a entrega em curso, não muito, e diz os toques que se perdem."""
        # Sem toques, o entregador dorme à espera de um.
        if self.waiting.unfinished_tasks:
            self.courier.join(COURIER_S)
        if self.waiting.unfinished_tasks:
            self.house.note("toques perdidos, por entregar na hora de parar: "
                            f"{self.waiting.unfinished_tasks}")
        self.counter.join(COURIER_S)


class Mute(Exception):
    """O servidor desligou sem uma palavra depois do comando: o led_process em C, que cumpre e cala.

    Não é uma Failure: quem mandou o comando sabe o que isso quer dizer.
    """


class Conversation:
    """Uma conversa com o servidor: conecta, prova a senha, pergunta. Toda falha vira Failure.

        with Conversation(args) as conversation:
            conversation.ask("LED STATUS")       "OK LED OFF"
            conversation.ask("LED ON")           "OK LED ON"

    A conversa inteira tem um prazo, ANSWER_S: um servidor que responde um byte de cada vez não
    segura ninguém.
    """

    def __init__(self, args, mute=False):
        self.args = args
        # Já se sabe que ele desliga calado, e que não é por falar TLS.
        self.mute = mute
        self.where = f"{args.endereco} porta {args.porta}"
        self.key = args.senha_arquivo and read_secret(args.senha_arquivo)
        self.tls = client_context(args)
        self.sock = None
        # Quando a conversa inteira deve ter acabado.
        self.deadline = None
        # O servidor já disse algo: tem lugar para nós, e fala a mesma língua.
        self.answered = False

    def __enter__(self):
        try:
            self.connect()
            if self.key:
                self.log_in()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.sock:
            self.sock.close()

    def connect(self):
        try:
            self.sock = dial(self.args.endereco, self.args.porta, ANSWER_S)
            if self.tls:
                self.sock = self.tls.wrap_socket(self.sock,
                                                 server_hostname=tls_name(self.args.endereco))
        except (OSError, UnicodeError) as error:
            raise Failure(self.explain(error)) from None
        self.deadline = time.monotonic() + ANSWER_S

    def log_in(self):
        challenge = self.ask().replace("DESAFIO ", "")
        reply = self.ask(f"RESPOSTA {proof(self.key, challenge)}")
        if not reply.startswith("OK"):
            raise Failure(f"{self.where}: {reply}")

    def ask(self, line=""):
        """Manda uma linha e devolve a resposta. Uma linha vazia não é nada: só se espera."""
        try:
            # Ele desligou? É o que a leitura dirá.
            with contextlib.suppress(BrokenPipeError):
                self.sock.sendall(line.encode() + b"\n")
            reply = self.read_line(self.deadline)
        except OSError as error:
            raise Failure(self.explain(error)) from None
        return self.accept(reply)

    def listen(self):
        """O próximo aviso de LED WATCH, demore quanto demorar."""
        try:
            # Acorda a cada segundo: é quando o Windows vê um Ctrl+C.
            while not wait_ready([self.sock], timeout=1):
                pass
            reply = self.read_line(time.monotonic() + ANSWER_S)
        except OSError as error:
            raise Failure(self.explain(error)) from None
        return self.accept(reply)

    def read_line(self, deadline):
        """Uma linha, com o seu fim; o fim da conexão também encerra uma."""
        reply = b""
        while not reply.endswith(b"\n") and len(reply) < LINE_LIMIT:
            # Um prazo para todas: o servidor pode gotejar.
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            # De um em um: o que vem depois da linha é de outra resposta.
            reply += self.sock.recv(1) or b"\n"
        return reply

    def accept(self, reply):
        """A resposta, própria para mostrar; ou por que não houve uma."""
        text = escape(reply.decode("utf-8", "replace").rstrip("\r\n"))
        silent = not text and not (self.answered or self.tls or self.key)
        if reply.startswith(TLS_ALERT) or silent and self.speaks_tls():
            raise Failure(f"{self.where} só conversa por TLS: acrescente --tls")
        if silent:
            raise Mute(f"{self.where} desligou sem responder")
        if not text or text == NO_PLACE:
            raise Failure(self.explain_end())
        if text.startswith("DESAFIO") and not self.key:
            raise Failure(f"{self.where} pede senha: use o --senha-arquivo de lá")
        self.answered = True
        return text

    def speaks_tls(self):
        """Quem desligou calado fala TLS? Nem todos mandam um alerta: pergunta-se.

        É outra conexão, com o começo de um aperto de mão; o led_process em C o joga fora.
        """
        if self.mute or ssl is None:
            return False
        hello = ssl.MemoryBIO()
        shake = tls_context(False, verify=False).wrap_bio(ssl.MemoryBIO(), hello).do_handshake
        with contextlib.suppress(ssl.SSLWantReadError):
            shake()
        host, port = self.args.endereco, self.args.porta
        with contextlib.suppress(OSError), dial(host, port, ANSWER_S) as probe:
            probe.sendall(hello.read())
            return probe.recv(1) in TLS_ANSWERS
        return False

    def explain_end(self):
        if self.answered:
            return f"{self.where} desligou"
        return (f"{self.where} desligou: acabou, está sem lugar para mais esta conexão, "
                "ou lá a conversa é por TLS (--tls)")

    def explain(self, error):
        """O que houve com a rede, e o que digitar em seguida."""
        fault = explain_host(error, self.args.endereco)
        if fault:
            return fault
        if isinstance(error, ConnectionRefusedError):
            return (f"ninguém escuta em {self.where} (conexão recusada). Suba o LED antes: "
                    f"./led_gpio.py {self.args.endereco} {self.args.porta}")
        if isinstance(error, ConnectionResetError):
            return self.explain_end()
        if isinstance(error, socket.timeout):
            return (f"{self.where} não respondeu: endereço errado, firewall, "
                    "ou --tls ou senha de um lado só?")
        if ssl and isinstance(error, ssl.SSLCertVerificationError):
            return explain_certificate(error, self.where, "--ca")
        if ssl and isinstance(error, ssl.SSLError):
            return (f"não foi possível falar com {self.where}: {error.reason or error}. "
                    "Lá também é TLS? E pede certificado (--certificado)?")
        return f"não foi possível falar com {self.where}: {reason(error)}"


def send_command(args):
    """A resposta em stdout; depois de LED WATCH, uma linha por mudança até Ctrl+C."""
    command = understand(args.comando.encode()).command
    try:
        with Conversation(args) as conversation:
            reply = conversation.ask(args.comando)
            print(reply, flush=True)
            if not reply.startswith("OK"):
                return 1
            while command == "LED WATCH":
                print(conversation.listen(), flush=True)
    except Mute as silence:
        if command not in ("LED ON", "LED OFF"):
            raise Failure(f"{silence}: {ANCESTOR}") from None
        print(f"{silence}: {ANCESTOR}", file=sys.stderr)
    return 0


class Delivery:
    """Leva os toques ao servidor do LED, insistindo com cada um até que ele envelheça.

    Pergunta o estado e manda o contrário: repetir LED ON, se a resposta se perder, não faz mal;
    repetir LED TOGGLE faria. Simplificação: dois botões no mesmo instante contam um.
    """

    def __init__(self, args, house):
        self.args = args
        self.house = house
        # O que mandar no próximo toque a quem não responde: o estado, só nós o sabemos.
        self.turn = None
        # A última queixa: a mesma, a cada segundo, encheria a tela.
        self.trouble = ""

    def deliver(self, born):
        """Leva um toque, dado no instante born, até que o servidor o cumpra ou ele envelheça."""
        # Escolhido uma vez: a segunda tentativa repete a ordem, e não pergunta de novo.
        wanted = None
        while True:
            try:
                wanted = wanted or self.turn
                with Conversation(self.args, mute=bool(self.turn)) as conversation:
                    wanted = wanted or opposite(conversation.ask("LED STATUS"))
                    self.report(wanted, conversation.ask(wanted))
                    self.turn = None
                    self.trouble = ""
                    return
            except Mute as silence:
                # Que ele cumpre e cala, já se sabia: o LED ficou como se mandou.
                if self.turn:
                    self.report(wanted, "(sem resposta)")
                    self.turn = opposite(f"OK {wanted}")
                    return
                # Calou-se ao LED STATUS: não o sabe responder. Manda-se LED ON, e alterna-se.
                if wanted is None:
                    self.house.note(f"{silence}: {ANCESTOR}")
                    self.turn = "LED ON"
                elif self.give_up(born, silence):
                    return
            except Failure as error:
                if self.give_up(born, error):
                    return

    def report(self, command, reply):
        self.house.say(f"toque: {command} -> {reply}")

    def give_up(self, born, error):
        """O toque envelheceu? Se não, espera um pouco, e tenta-se de novo."""
        age = time.monotonic() - born
        if age >= self.args.validade:
            self.house.note(f"toque perdido, {age:.1f} s depois de dado: {error}")
            self.trouble = ""
            return True
        if str(error) != self.trouble:
            self.trouble = str(error)
            self.house.note(f"o toque espera, por até {self.args.validade:g} s: {error}")
        time.sleep(RETRY_S)
        return False


# ---------------------------------------------------------------------------------------------
# 6. Secret: só quem sabe a senha manda
#
# A senha nunca passa pela rede: o servidor manda um texto que não se repete, e o cliente devolve o
# HMAC-SHA-256 dele (RFC 2104), que só quem a sabe calcula. Errar custa espera, e cada vez mais.
#
#     DESAFIO texto  <-  RESPOSTA hmac_sha256(senha, texto)  ->  OK  ou  ERRO

# Espera máxima de quem erra a senha, em segundos; e quantos endereços se lembram.
PENALTY_MAX_S = 60
MAX_OFFENDERS = 1024
# Bytes da menor senha.
SECRET_MIN = 8


class Secret:
    """A senha do servidor, e quem anda errando a prova dela."""

    def __init__(self, key, note):
        self.key = key
        self.note = note
        self.lock = threading.Lock()
        # Endereço -> (erros, quando acaba a espera), do mais antigo ao mais novo.
        self.offenders = {}

    def judge(self, line, challenge, source):
        """(provou?, resposta). Durante a espera nem a resposta certa vale."""
        if not line.startswith(b"RESPOSTA"):
            # Quem não sabe que há senha não tentou adivinhá-la.
            return False, "ERRO falta a senha: RESPOSTA e o HMAC-SHA-256 do desafio"
        with self.lock:
            now = time.monotonic()
            failures, free_at = self.offenders.pop(source, (0, now))
            if now >= free_at:
                wanted = f"RESPOSTA {proof(self.key, challenge)}".encode()
                # O mesmo tempo, por mais que se acerte.
                if hmac.compare_digest(line.strip(), wanted):
                    return True, "OK senha aceita"
                free_at = now + min(2 ** failures, PENALTY_MAX_S)
                failures += 1
                self.note(f"senha errada de {source}")
            self.offenders[source] = failures, free_at
            if len(self.offenders) > MAX_OFFENDERS:
                del self.offenders[next(iter(self.offenders))]
        return False, f"ERRO senha recusada; espere {free_at - now:.1f} s"


def proof(secret: bytes, challenge: str) -> str:
    """HMAC-SHA-256 do desafio, em hexadecimal: prova que se sabe a senha sem a dizer."""
    return hmac.new(secret, challenge.encode(), "sha256").hexdigest()


def read_secret(path, least=SECRET_MIN):
    """A senha compartilhada: o texto do arquivo, sem espaços nem fins de linha nas pontas."""
    again = shlex.quote(path)
    try:
        with open(path, "rb") as file:
            secret = file.read(CHUNK).strip()
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        raise Failure(f"{path} não existe. Uma senha nova: "
                      f"(umask 077; openssl rand -hex 32 > {again})") from None
    except OSError as error:
        raise Failure(f"não consigo ler a senha de {path}: {reason(error)}") from None
    if len(secret) < least:
        raise Failure(f"{path}: a senha tem menos de {least} bytes. "
                      "Noutro arquivo: (umask 077; openssl rand -hex 32 > senha-nova.txt)")
    if os.name == "posix" and mode & 0o077:
        raise Failure(f"{path}: outros usuários podem ler a senha. Só você: chmod 600 {again}")
    return secret


# ---------------------------------------------------------------------------------------------
# 7. Page: um navegador também é alguém
#
# Um navegador fala HTTP (RFC 9112) com qualquer porta, a mando de qualquer site que se visite: sem
# cuidado, uma página de fora acenderia este LED. Aqui quem abre http://ENDEREÇO:5555/ vê a lâmpada
# e a liga; o que vem de outro site (Host, Origin, Sec-Fetch-Site: RFC 6454, Fetch) é recusado, e um
# POST só vale com a ficha que está dentro da página, e que só ela pode ler: sem ela, o outro site o
# mandaria pelo navegador de alguém daqui (CSRF).

# Bytes do cabeçalho de um pedido (o de um navegador tem uns 600) e do corpo dele.
HEAD_LIMIT = 16 * 1024
BODY_LIMIT = 4 * 1024
# Páginas que veem o LED ao vivo ao mesmo tempo, em tudo e de um endereço só: cada uma ocupa um
# lugar. Um navegador abre até seis conexões a um endereço, e o botão precisa de uma; as páginas que
# ficam de fora perguntam de 3 em 3 segundos.
MAX_VIEWERS = 16
MAX_VIEWERS_PER_SOURCE = 4
# Segundos que um pedido tem para chegar inteiro.
REQUEST_S = 5
# Segundos entre dois comentários em /eventos: quem se foi sem avisar é notado.
HEARTBEAT_S = 15
# Segundos que dura a sessão de quem deu a senha; e quantas se guardam.
SESSION_S = 12 * 3600
MAX_SESSIONS = 64
# Segundos em que se espera outro pedido de um endereço que fez um: os navegadores abrem conexões de
# reserva, caladas, e a que ouvisse o desafio da senha leria nele a resposta ao pedido seguinte. E
# quantos endereços se lembram.
SPARE_S = 60
MAX_VISITORS = 1024

# O nome do cookie da sessão; a porta o separa do de outro LED na mesma máquina.
COOKIE = "sessao{port}"
# A linha vazia que acaba o cabeçalho; quem o digita num nc manda só o LF (RFC 9112, 2.2).
HEAD_END = re.compile(rb"\r?\n\r?\n")
# Máquina (em IPv6, entre colchetes) e porta, e mais nada.
HOST = re.compile(r"(?:\[([^]@/]+)\]|([^]\[@/:\s]+))(?::\d*)?")
# O que decide quem entra, e onde o pedido acaba: cada um, uma vez só.
DECISIVE = ("host", "origin", "sec-fetch-site", "content-length", "x-ficha")
REQUEST_LINE = re.compile(r"([A-Z]+) (\S+) HTTP/1\.[01]", re.ASCII)
REASONS = {
    200: "OK",
    303: "See Other",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    503: "Service Unavailable",
}

# A página inteira está aqui, em três textos: o estilo, o script e o corpo. Nada se busca fora: num
# Pi sem internet ela é a mesma. O estado vai escrito em palavras, além da cor, e um leitor de tela
# o anuncia (role=status); as cores são as do sistema, claras ou escuras.
STYLE = """
:root { color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }
body { max-width: 34rem; margin: 0 auto; padding: 1rem; text-align: center }
.lampada { width: 8rem; height: 8rem; margin: 1rem auto; border: .3rem solid; border-radius: 50% }
[data-led=ON] .lampada { background: #fd3; box-shadow: 0 0 3rem #fd3 }
#estado { font-size: 1.4rem; font-weight: bold; margin: 0 }
button, input { font: inherit; padding: .6rem 2rem; max-width: 100%; box-sizing: border-box }
pre { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; min-height: 6em;
      padding: .5rem; border: 1px solid }
h2 { font-size: 1.1rem; margin-top: 2rem }
"""

# Sem este script a página ainda mostra o estado e o botão funciona; com ele, a lâmpada é ao vivo, e
# as linhas que vão e vêm aparecem. Todo texto que chega entra por textContent: nunca é HTML.
SCRIPT = """
const form = document.forms[0], lines = document.getElementById('linhas')
const state = document.getElementById('estado'), who = document.getElementById('quem')
let last = '', since = 0
function log(arrow, text) {
  lines.textContent = (arrow + ' ' + text + '\\n' + lines.textContent).slice(0, 2000)
}
function show(reply) {
  const found = reply.match(/LED (ON|OFF)$/)
  if (!found) return
  document.body.dataset.led = found[1]
  state.textContent = found[1] == 'ON' ? 'aceso' : 'apagado'
}
function age() {
  if (last) who.textContent = last + ', há ' + Math.round((Date.now() - since) / 1000) + ' s'
}
async function ask(line) {
  log('->', line)
  try {
    const headers = {'X-Ficha': form.ficha.value}
    const answer = await fetch('/comando', {method: 'POST', headers, body: line})
    const reply = (await answer.text()).trim()
    log('<-', reply)
    show(reply)
  } catch {
    log('<-', '(sem resposta)')
    state.textContent = 'sem notícias do LED'
  }
}
// Uma aba escondida larga o seu lugar: um navegador só abre seis conexões a cada endereço.
let source, timer
function listen() {
  clearTimeout(timer)
  if (source) source.close()
  if (document.hidden) return
  source = new EventSource('/eventos')
  source.onmessage = event => {
    const [line, by, seconds] = event.data.split('\\n')
    log('<-', line)
    show(line)
    last = seconds ? by : ''
    since = Date.now() - seconds * 1000
    age()
  }
  source.onerror = () => {
    source.close()
    ask('LED STATUS')
    timer = setTimeout(listen, 3000)
  }
}
form.onsubmit = event => {
  event.preventDefault()
  ask('LED TOGGLE')
}
document.onvisibilitychange = listen
setInterval(age, 1000)
listen()
"""

LAMP = """<div class=lampada aria-hidden=true></div>
<p id=estado role=status>{state}</p>
<p id=quem>{who}</p>
<form method=post action=/comando><input type=hidden name=ficha value={token}>
<button name=comando value="LED TOGGLE">Acender ou apagar</button></form>
<noscript><p>Sem JavaScript, recarregue a página para ver o LED de novo.</p></noscript>
<h2>O que acabou de passar pela rede</h2>
<pre id=linhas></pre>
<p>São as mesmas linhas de <code>echo LED TOGGLE | nc -w 1 {host} {port}</code></p>
<script>{script}</script>"""

LOGIN = """<p>Este LED pede a senha: o texto do arquivo de --senha-arquivo.</p>
<form method=post action=/entrar><input type=hidden name=ficha value={token}>
<p><label>Senha <input type=password name=senha autocomplete=current-password autofocus></label></p>
<button>Entrar</button></form>"""

WRONG = "<p role=alert>{reply}.</p>\n"


def hashed(text):
    """A fonte de um CSP que deixa passar só este texto (CSP 3, 6.7.3): nada que se injete roda."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


# O que o navegador pode fazer por esta página (CSP 3): rodar o script e o estilo acima, falar com
# esta mesma porta, e mais nada. Mesmo se algo nos escapasse, de fora nada roda, nem se carrega; e
# nenhum outro site a mostra dentro de si, para que cliquem no botão sem saber (clickjacking).
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {hashed(STYLE)}; script-src {hashed(SCRIPT)}; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")


class Refusal(Exception):
    """Um pedido que não se atende: o estado HTTP, e a frase que se mostra a quem pediu.

    A frase diz o que fazer: quem a lê é uma pessoa, num navegador que outro site pode ter mandado.
    """

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Request(NamedTuple):
    """Um pedido HTTP inteiro."""

    method: str
    path: str
    headers: http.client.HTTPMessage
    body: bytes

    def field(self, name):
        """Um campo de formulário; "" se não veio."""
        # application/x-www-form-urlencoded, o que um <form> manda.
        form = urllib.parse.parse_qs(self.body.decode("utf-8", "replace"))
        return form.get(name, [""])[0]


def parse_head(head: bytes) -> Request:
    """Cabeçalho (RFC 9112, 3 e 5) -> pedido, ainda sem corpo; Refusal se não se entende."""
    line, _, rest = head.lstrip(b"\r\n").partition(b"\n")
    found = REQUEST_LINE.fullmatch(line.decode("latin-1").strip())
    if not found:
        raise Refusal(400, "Isto não é um pedido HTTP/1.1.")
    try:
        headers = http.client.parse_headers(io.BytesIO(rest + b"\r\n"))
    except http.client.HTTPException:
        raise Refusal(400, "O cabeçalho deste pedido não se entende.") from None
    # Dois Host seriam duas respostas à pergunta "de quem é esta página?" (RFC 9112, 3.2), e o mesmo
    # vale para o que mais decide. Um corpo aos pedaços (chunked) não se entende aqui: nenhum
    # navegador o manda a um formulário, e adivinhar onde um pedido acaba é dar a outro o que vem
    # depois.
    twice = any(len(headers.get_all(name, [])) > 1 for name in DECISIVE)
    if twice or "host" not in headers or "transfer-encoding" in headers:
        raise Refusal(400, "O cabeçalho deste pedido não se entende.")
    return Request(found[1], found[2].partition("?")[0], headers, b"")


def body_size(headers) -> int:
    """Bytes do corpo; Refusal se o número não serve."""
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal(400, "O Content-Length deste pedido não é um número.")
    if int(text) > BODY_LIMIT:
        raise Refusal(413, f"O corpo de um pedido aqui tem até {BODY_LIMIT} bytes.")
    return int(text)


def foreign(headers) -> str:
    """Por que o pedido não vem de uma página deste LED; "" se vem dela, ou de quem digitou."""
    host = headers["host"].strip()
    found = HOST.fullmatch(host)
    if not (found and is_own_name((found[1] or found[2]).lower())):
        # DNS rebinding: um site de fora aponta o próprio nome para cá, e o navegador nos toma por
        # ele.
        return f"{host} não é o nome desta máquina: abra a página pelo endereço IP dela"
    if headers.get("origin", f"http://{host}") not in (f"http://{host}", f"https://{host}"):
        return "este pedido vem de outro site"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "este pedido vem de outro site"
    return ""


def is_own_name(name) -> bool:
    """Um endereço IP, localhost ou o nome desta máquina: nada que um DNS de fora responda."""
    # O ponto final é o do DNS; o .local, o do mDNS (RFC 6762), que só a rede de casa responde.
    own = socket.gethostname().lower()
    name = name.rstrip(".")
    if name in ("localhost", own, f"{own}.local"):
        return True
    try:
        return bool(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        return False


def http_response(status, content, kind="text/html", extra=()) -> bytes:
    """Uma resposta inteira, e a última da conexão.

    Com Referrer-Policy: no-referrer, o navegador mandaria `Origin: null` até no nosso formulário.
    """
    body = content.encode()
    lines = [
        f"HTTP/1.1 {status} {REASONS[status]}",
        f"Content-Type: {kind}; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "Cache-Control: no-store",
        "Referrer-Policy: same-origin",
        "X-Content-Type-Options: nosniff",
        f"Content-Security-Policy: {CONTENT_SECURITY_POLICY}",
        *extra,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def html_page(body, led="") -> str:
    """A página inteira: nada dela se busca em outro lugar."""
    return (f"<!doctype html>\n<html lang=pt-BR>\n<meta charset=utf-8>\n"
            f"<meta name=viewport content='width=device-width'>\n<title>LED</title>\n"
            f"<style>{STYLE}</style>\n<body data-led='{led}'>\n<h1>LED</h1>\n{body}\n</html>\n")


class Page:
    """O que os navegadores veem do LED, e quem deles entra."""

    def __init__(self, server):
        self.server = server
        self.led = server.led
        # Vai dentro da página, e volta em cada POST: outro site pode mandar um, mas não a lê.
        self.token = secrets.token_urlsafe(16)
        # Sessão de quem deu a senha -> quando ela acaba (time.monotonic()).
        self.sessions = {}
        # Endereço -> páginas dele abertas em /eventos.
        self.viewers = collections.Counter()
        # Endereço -> quando fez um bom pedido (time.monotonic()), do mais antigo ao mais novo.
        self.visits = {}
        self.lock = threading.Lock()

    def serve(self, client, start):
        """Atende um pedido e encerra; /eventos dura enquanto a página estiver aberta.

        start: o que o navegador já disse, do começo.
        """
        try:
            request = self.read(client, start)
            why = foreign(request.headers)
            if why:
                raise Refusal(403, f"Recusado: {why}.")
            self.note_visit(client.source)
            client.hang_up(self.answer(client, request))
        except Refusal as refusal:
            text = f"{refusal}\nQuem não é navegador manda aqui linhas como LED ON.\n"
            client.hang_up(http_response(refusal.status, text, "text/plain"))

    def note_visit(self, source):
        with self.lock:
            self.visits.pop(source, None)
            self.visits[source] = time.monotonic()
            if len(self.visits) > MAX_VISITORS:
                del self.visits[next(iter(self.visits))]

    def may_come(self, source):
        """Quem está calado neste endereço pode ser a conexão de reserva de um navegador?"""
        with self.lock:
            when = self.visits.get(source)
        return when is not None and time.monotonic() - when < SPARE_S

    def read(self, client, start):
        """O pedido inteiro, no prazo; Refusal se é grande, torto ou não acaba."""
        deadline = time.monotonic() + REQUEST_S
        # O prazo é do pedido inteiro: um byte por segundo não o renova.
        head, body = self.gather(client, start.lstrip(b"\r\n"), deadline)
        request = parse_head(head)
        size = body_size(request.headers)
        while len(body) < size:
            body += self.more(client, deadline)
        return request._replace(body=body[:size])

    def gather(self, client, data, deadline):
        """(cabeçalho, o que veio depois dele): o que vier a mais é do corpo."""
        end = HEAD_END.search(data)
        while not end:
            if len(data) > HEAD_LIMIT:
                raise Refusal(400, f"O cabeçalho de um pedido aqui tem até {HEAD_LIMIT} bytes.")
            data += self.more(client, deadline)
            end = HEAD_END.search(data)
        return data[:end.end()], data[end.end():]

    def more(self, client, deadline):
        """Mais bytes do pedido, ou b"" se ainda não vieram.

        Refusal no fim do prazo, ou da conexão: um pedido pela metade não se atende.
        """
        left = deadline - time.monotonic()
        data = client.receive(max(0, min(left, WAKE_S)))
        if data == b"" or left <= 0 or client.lost:
            raise Refusal(400, "O pedido não chegou inteiro.")
        return data or b""

    def answer(self, client, request):
        """A resposta, em bytes; Refusal a quem não pode.

        A de /eventos já foi enviada quando a página se fecha: é b"".
        """
        # Tudo o que há nesta porta, em HTTP.
        routes = {
            ("GET", "/"): self.show,
            ("GET", "/eventos"): self.follow,
            ("POST", "/comando"): self.command,
            ("POST", "/entrar"): self.log_in,
        }
        route = routes.get((request.method, request.path))
        if not route:
            if any(path == request.path for _, path in routes):
                raise Refusal(405, "Este caminho não aceita este método.")
            raise Refusal(404, "Aqui só há a página do LED, em /.")
        if request.method == "POST":
            self.check_token(request)
        # Quem ainda não deu a senha só pode fazer uma coisa: dá-la.
        if route == self.log_in:
            return self.log_in(client, request)
        if self.server.secret and not self.knows(request):
            return self.ask_secret(client, request)
        return route(client, request)

    def check_token(self, request):
        """Um POST traz a ficha num cabeçalho (o script) ou num campo (o formulário)."""
        token = request.headers.get("x-ficha") or request.field("ficha")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise Refusal(403, "Recusado: falta a ficha que está na página; recarregue-a.")

    def show(self, client, _request):
        """A página, já com o estado de agora: é tudo o que vê quem não tem JavaScript."""
        host, port = client.sock.getsockname()[:2]
        body = LAMP.format(
            state="aceso" if self.led.lit else "apagado",
            who=html.escape(self.last_change()[0]),
            token=self.token,
            script=SCRIPT,
            host=host,
            port=port,
        )
        return http_response(200, html_page(body, "ON" if self.led.lit else "OFF"))

    def last_change(self):
        """(quem mexeu por último, há quantos segundos)."""
        who, when = self.led.changed
        if not who:
            return "Ninguém mexeu desde que este servidor subiu", ""
        return f"Por {who}", int(time.monotonic() - when)

    def command(self, client, request):
        """As mesmas linhas do protocolo; as respostas, uma por linha."""
        # O formulário, de quem não tem JavaScript, espera uma página de volta.
        scripted = "x-ficha" in request.headers
        text = request.body if scripted else request.field("comando").encode()
        replies = [self.led.order(understand(line).command, f"{client.source}, pela página")
                   for line in split_lines(text + b"\n")[0]]
        if scripted:
            return http_response(200, "\n".join(replies) + "\n", "text/plain")
        return http_response(303, "", extra=["Location: /"])

    def follow(self, client, _request):
        """Server-sent events (HTML, 9.2): o estado de agora, e cada mudança."""
        self.take_seat(client.source)

        def tell(_on, _who):
            client.write(self.event())

        try:
            client.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                         b"Cache-Control: no-store\r\nConnection: close\r\n\r\n")
            # Sob a trava, nenhuma mudança escapa entre o estado de agora e os avisos.
            with self.led.lock:
                tell(None, None)
                self.led.watch(tell)
            self.wait_until_gone(client)
        finally:
            self.led.unwatch(tell)
            with self.lock:
                # A subtração tira da conta quem chega a zero: ela não cresce sem fim.
                self.viewers -= collections.Counter([client.source])
        return b""

    def take_seat(self, source):
        """Um lugar em /eventos; Refusal se não há, e a página passa a perguntar."""
        with self.lock:
            mine = self.viewers[source]
            if mine >= MAX_VIEWERS_PER_SOURCE or sum(self.viewers.values()) >= MAX_VIEWERS:
                raise Refusal(503, "Já há páginas demais abertas.")
            self.viewers[source] = mine + 1

    def event(self):
        """O estado, quem o mudou e há quantos segundos: três linhas de um evento só."""
        who, seconds = self.last_change()
        state = "LED ON" if self.led.lit else "LED OFF"
        return f"data: {state}\ndata: {who}\ndata: {seconds}\n\n".encode()

    def wait_until_gone(self, client):
        """Até a página fechar: dela nada mais se espera; o comentário mostra se ainda há alguém."""
        beat = time.monotonic()
        while not (client.lost or self.server.house.ending):
            if client.receive(WAKE_S) == b"":
                return
            if time.monotonic() - beat >= HEARTBEAT_S:
                beat = time.monotonic()
                client.write(b":\n\n")

    # A senha, e a sessão de quem a deu.

    def knows(self, request):
        """Este navegador já deu a senha?

        Os cookies de outros programas desta máquina vêm junto, e de qualquer feitio.
        """
        for cookie in request.headers.get("cookie", "").split(";"):
            name, _, session = cookie.strip().partition("=")
            if name == self.cookie_name():
                with self.lock:
                    return self.sessions.get(session, 0) > time.monotonic()
        return False

    def cookie_name(self):
        """Cookies são da máquina, e não da porta: dois LEDs num Pi não trocam as sessões."""
        return COOKIE.format(port=self.server.args.porta)

    def ask_secret(self, client, request):
        """Em vez da página, o pedido da senha: só por um fio que ninguém escuta."""
        if not (self.server.tls or is_loopback(client.sock.getpeername()[0])):
            raise Refusal(403, "Com senha, esta página só abre cifrada: suba o LED com "
                               "--certificado, e abra https://. O nc e o botão seguem como antes.")
        if (request.method, request.path) != ("GET", "/"):
            raise Refusal(403, "Recusado: falta a senha; recarregue a página.")
        return http_response(200, html_page(self.ask_again()))

    def ask_again(self):
        return LOGIN.format(token=self.token)

    def log_in(self, client, request):
        """Quem erra espera como no protocolo de linhas: a conta dos erros é a mesma."""
        if not self.server.secret:
            raise Refusal(404, "Este LED não pede senha.")
        secret = request.field("senha").strip().encode()
        line = f"RESPOSTA {proof(secret, client.challenge)}".encode()
        proved, reply = self.server.secret.judge(line, client.challenge, client.source)
        if not proved:
            return http_response(403, html_page(WRONG.format(reply=reply) + self.ask_again()))
        # Só o número vai ao navegador: a senha não fica em lugar nenhum.
        session = secrets.token_urlsafe(32)
        with self.lock:
            self.sessions[session] = time.monotonic() + SESSION_S
            if len(self.sessions) > MAX_SESSIONS:
                del self.sessions[next(iter(self.sessions))]
        cookie = (f"{self.cookie_name()}={session}; Path=/; Max-Age={SESSION_S}; "
                  "HttpOnly; SameSite=Strict")
        if self.server.tls:
            cookie += "; Secure"
        return http_response(303, "", extra=["Location: /", f"Set-Cookie: {cookie}"])


def is_loopback(host) -> bool:
    """127.0.0.0/8 (também como o IPv6 o escreve) ou ::1."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


# ---------------------------------------------------------------------------------------------
# 8. Mqtt: muitos Pis, e um broker que já existe
#
# Quem quer mandar em dez LEDs precisaria saber dez endereços, e cada LED, abrir uma porta. Com MQTT
# 3.1.1 (OASIS, 2014) é o LED quem liga para um broker, e os dois lados só sabem nomes: o broker
# guarda o último estado de cada um, e diz quem sumiu. O LED por TCP nunca espera por ele.
#
#     led_gpio/NOME/online    online ou offline; o broker diz offline por quem some (will)
#     led_gpio/NOME/led       ON ou OFF, e o broker o repete a quem chega (retain)
#     led_gpio/NOME/led/set   quem manda: ON, OFF ou TOGGLE
#     led_gpio/NOME/botao     {"event_type": "press"} a cada toque
#     homeassistant/device/NOME/config    o que o Home Assistant precisa para mostrar os dois

MQTT_PORT = 1883
MQTT_TLS_PORT = 8883
# Segundos de silêncio que prometemos não passar. Na metade deles vai um PINGREQ, e o broker que não
# responde na outra metade se foi.
MQTT_KEEPALIVE_S = 30
# Segundos para conectar, para o CONNACK e para o nosso próprio `online` voltar.
MQTT_ANSWER_S = 5
# Segundos entre tentativas: 1, 2, 4... até MAX; e de 1 outra vez só depois de uma ligação que durou
# STEADY. Dois com o mesmo nome derrubam um ao outro: assim, poucas vezes por minuto.
MQTT_RETRY_S = 1
MQTT_RETRY_MAX_S = 60
MQTT_STEADY_S = 60
# Bytes que se guardam de um pacote: o resto passa sem ocupar memória.
MQTT_PACKET_LIMIT = 4096
# Vezes, e em quantos segundos, que se desmente um offline que não é nosso.
MQTT_HEALS = 5
MQTT_HEALS_S = 60
# Segundos que a despedida espera pelo broker; e o fim do programa, o dobro disso por ela.
MQTT_PARTING_S = 0.25
# Bytes de um nome que todo broker aceita (MQTT-3.1.3-5), e do sufixo que a placa lhe dá.
MQTT_NAME_LIMIT = 23
MQTT_SUFFIX = 8
# Onde o kernel diz o número de série do Pi, e as placas de rede: as pontes e os túneis, que mudam
# de endereço quando querem, não têm `device`.
SERIAL_PATH = "/proc/device-tree/serial-number"
CARDS = "/sys/class/net/*/device"

# Os pacotes (MQTT 3.1.1, 2.2.1): os quatro bits altos do primeiro byte. Só estes: nem QoS 2, nem
# deixar de assinar, fazem falta a um LED.
CONNECT = 1
CONNACK = 2
PUBLISH = 3
PUBACK = 4
SUBSCRIBE = 8
SUBACK = 9
PINGREQ = 12
DISCONNECT = 14
# QoS 0: vai uma vez, e pode perder-se; QoS 1: um PUBACK o confirma, e pode vir em dobro.
# Bits baixos do PUBLISH; e os do CONNECT: sessão limpa, e um testamento retido, com QoS 1.
RETAIN = 0x01
QOS_1 = 0x02
CLEAN_AND_WILL = 0x02 | 0x04 | 0x08 | 0x20
WITH_USER = 0x80
WITH_PASSWORD = 0x40
# Por que um broker não nos quer (CONNACK). A senha errada é 4 num broker, e 5 noutro.
REFUSALS = {
    1: "não fala MQTT 3.1.1",
    2: "não aceita este nome: --nome OUTRO",
    3: "está indisponível",
    4: "recusou o usuário ou a senha: --mqtt-usuario e --mqtt-senha-arquivo",
    5: "recusou o usuário ou a senha: --mqtt-usuario e --mqtt-senha-arquivo",
}


class ProtocolError(ValueError):
    """Não é MQTT 3.1.1, ou é de quem não nos quer."""


class Packet(NamedTuple):
    """Um pacote. whole: os bytes couberam em MQTT_PACKET_LIMIT? Senão, body é só o começo."""

    kind: int
    flags: int
    body: bytes
    whole: bool


class Message(NamedTuple):
    """Um PUBLISH entendido. number: o que o PUBACK repete, ou b"" se é de QoS 0."""

    topic: str
    payload: bytes
    retained: bool
    number: bytes


def mqtt_packet(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """O tipo, o tamanho (de 1 a 4 bytes, 7 bits em cada, o menor primeiro) e o corpo.

        31 18   00 14 "led_gpio/pi-sala/led"   "ON"
        |  |    |                              o que sobra é a mensagem
        |  |    o tópico, com o seu tamanho
        |  24 bytes: um byte basta até 127; 128 é 80 01
        PUBLISH, e retido
    """
    size = len(body)
    head = bytearray([kind << 4 | flags])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + body


def mqtt_field(data) -> bytes:
    """Um texto, ou bytes, com o seu tamanho antes, em dois bytes."""
    if isinstance(data, str):
        data = data.encode()
    return struct.pack("!H", len(data)) + data


def mqtt_connect(name: str, will: str, user=None, password=None) -> bytes:
    """Quem somos, e o testamento: `offline` no tópico will, se a ligação cair.

    Sessão limpa: uma ordem que ficasse à nossa espera no broker acenderia amanhã o LED.
    """
    flags = CLEAN_AND_WILL
    fields = [name, will, "offline"]
    if user is not None:
        flags |= WITH_USER
        fields.append(user)
    if password is not None:
        flags |= WITH_PASSWORD
        fields.append(password)
    head = mqtt_field("MQTT") + struct.pack("!BBH", 4, flags, MQTT_KEEPALIVE_S)
    return mqtt_packet(CONNECT, head + b"".join(map(mqtt_field, fields)))


def mqtt_publish(topic: str, payload: str, flags: int = 0, number: int = 0) -> bytes:
    """flags: RETAIN, QOS_1 ou os dois; só com QOS_1 há número."""
    body = mqtt_field(topic)
    if flags & QOS_1:
        body += struct.pack("!H", number)
    return mqtt_packet(PUBLISH, body + payload.encode(), flags)


def mqtt_subscribe(number: int, *topics) -> bytes:
    """Pede tópicos com QoS 0: para um nível basta, e nada fica à espera do nosso PUBACK."""
    body = struct.pack("!H", number)
    for topic in topics:
        body += mqtt_field(topic) + b"\0"
    return mqtt_packet(SUBSCRIBE, body, 2)


def read_publish(packet: Packet) -> Message:
    """O que há num PUBLISH, ou ProtocolError."""
    size = int.from_bytes(packet.body[:2], "big")
    topic = packet.body[2:2 + size]
    rest = packet.body[2 + size:]
    number = b""
    if packet.flags & QOS_1:
        number, rest = rest[:2], rest[2:]
    if len(packet.body) < 2 + size or packet.flags & QOS_1 and len(number) < 2:
        raise ProtocolError("um PUBLISH menor do que diz")
    return Message(topic.decode("utf-8", "replace"), rest, bool(packet.flags & RETAIN), number)


class Packets:
    """Bytes entram como o TCP os traz; saem pacotes inteiros. De um gigante guarda só o começo."""

    def __init__(self):
        # O que ainda não se leu.
        self.data = bytearray()
        # O primeiro byte do pacote que chega: o tipo e as flags dele.
        self.first = None
        # O que se guarda do corpo.
        self.body = bytearray()
        # Quantos bytes tem o corpo; e quantos lhe faltam, ou None entre dois pacotes.
        self.size = 0
        self.left = None

    def feed(self, data: bytes):
        """Gera os pacotes que se completaram; ProtocolError se isto não é MQTT."""
        self.data += data
        while self.data:
            if self.left is None and not self.open():
                return
            part = self.data[:self.left]
            del self.data[:self.left]
            self.left -= len(part)
            self.body += part[:MQTT_PACKET_LIMIT - len(self.body)]
            if self.left:
                return
            self.left = None
            whole = len(self.body) == self.size
            yield Packet(self.first >> 4, self.first & 0x0F, bytes(self.body), whole)

    def open(self):
        """Lê o cabeçalho; False se ainda não chegou inteiro."""
        # Quem fala HTTP, SSH ou TLS se denuncia no primeiro byte.
        if self.first is None and self.data[0] != CONNACK << 4:
            raise ProtocolError("não é um broker MQTT 3.1.1; ou lá é TLS: --mqtt-ca ARQUIVO")
        size = 0
        for place, byte in enumerate(self.data[1:5]):
            size |= (byte & 0x7F) << 7 * place
            if byte <= 0x7F:
                self.first = self.data[0]
                self.size = size
                self.left = size
                self.body = bytearray()
                del self.data[:2 + place]
                return True
        if len(self.data) >= 5:
            raise ProtocolError("não é um broker MQTT 3.1.1: um tamanho com mais de 4 bytes")
        return False


def own_name(action) -> str:
    """O nome de quem não deu --nome: o da máquina, e algo que só esta placa tem.

    Toda placa nova se chama raspberrypi, e o cartão copiado leva o nome junto; o número da placa,
    não. E tem de ser o mesmo depois de um reinício: o broker reconhece por ele quem volta.
    """
    host = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0])
    name = host[:MQTT_NAME_LIMIT - MQTT_SUFFIX - 1].strip("-") or "led"
    board = board_number()
    if board:
        name += "-" + board
    # Os dois processos podem rodar na mesma placa, e cada um é alguém.
    if action == "botao":
        name += "-botao"
    return name


def board_number() -> str:
    """O fim do número de série do Pi; senão, o de uma placa de rede; "" se não há."""
    for path in (SERIAL_PATH, *sorted(map(address_of, glob.glob(CARDS)))):
        with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
            number = re.sub(r"[^0-9a-fA-F]", "", file.read())
            if number.strip("0"):
                return number[-MQTT_SUFFIX:].lower()
    return ""


def address_of(card):
    """O arquivo com o endereço da placa de rede cuja pasta `device` é esta."""
    return f"{os.path.dirname(card)}/address"


def discovery(name, components) -> str:
    """O que o Home Assistant lê para mostrar o LED e o botão, sem uma linha de YAML.

    Ele recusa o documento inteiro por uma chave desconhecida na raiz, em device ou em origin; e
    guarda para sempre uma parte que só se deixou de citar: com `platform` e mais nada, ela sai.
    """
    base = f"led_gpio/{name}"
    parts = {
        "led": {
            "platform": "light",
            "unique_id": f"{name}_led",
            "name": "LED",
            "state_topic": f"{base}/led",
            "command_topic": f"{base}/led/set",
        },
        "botao": {
            "platform": "event",
            "unique_id": f"{name}_botao",
            "name": "Botão",
            "device_class": "button",
            "state_topic": f"{base}/botao",
            "event_types": ["press"],
        },
    }
    for part in parts:
        if part not in components:
            parts[part] = {"platform": parts[part]["platform"]}
    return json.dumps({
        "device": {"identifiers": [f"led_gpio_{name}"], "name": name, "model": "led_gpio.py"},
        "origin": {"name": "led_gpio.py", "sw_version": VERSION},
        "availability_topic": f"{base}/online",
        "components": parts,
    })


class Mqtt:
    """A ligação com o broker, numa thread só dela: cai, insiste, e o LED não nota.

        led_gpio.py                          broker
            ------- CONNECT, testamento ------->
            <------------- CONNACK -------------     só agora: antes, o testamento da ligação
            ------- config, led, online ------->     anterior poderia passar à frente
            ------------ SUBSCRIBE ------------>
            <------- led/set: TOGGLE -----------     uma ordem; a resposta é o novo estado
            ------------- led: ON ------------->

    O estado é um nível, não uma fila: publica-se sempre o último, e tudo outra vez a cada ligação.
    """

    def __init__(self, args, house):
        self.args = args
        self.house = house
        self.host, port = args.mqtt
        self.port = port or MQTT_PORT
        self.tls = None
        if args.mqtt_ca:
            self.port = port or MQTT_TLS_PORT
            self.tls = tls_context(False, ca=args.mqtt_ca)
        self.password = None
        if args.mqtt_senha_arquivo:
            self.password = broker_password(args.mqtt_senha_arquivo)
        # O broker, nas nossas frases; e o nome com que ele nos conhece.
        self.where = f"{self.host} porta {self.port}"
        self.name = args.nome or own_name(args.acao)
        # O LED desta placa; None em `botao`.
        self.led = None
        # As partes que esta placa tem: "led", "botao".
        self.components = []
        # A campainha da thread, e a corda dela: quem a quer acordada puxa a corda.
        self.bell, self.bell_rope = socket.socketpair()
        self.bell.setblocking(False)
        self.bell_rope.setblocking(False)
        self.ending = False
        # Daemon: presa num DNS parado, não segura o fim do programa.
        self.thread = threading.Thread(target=self.run, daemon=True)
        # A última queixa: só uma nova se diz.
        self.trouble = ""
        # Os instantes em que se desmentiu um offline.
        self.heals = collections.deque(maxlen=MQTT_HEALS)
        # Toques por publicar.
        self.presses = collections.deque(maxlen=MAX_PRESSES)
        # O número do último PUBLISH com QoS 1.
        self.number = 0
        self.forget()

    def forget(self):
        """Nada do que se soube na ligação anterior vale na próxima."""
        self.sock = None
        self.packets = Packets()
        # O broker nos aceitou?
        self.welcome = False
        # O estado que o broker conhece, ou None.
        self.shown = None
        # Quando falamos pela última vez, e quando o ouvimos.
        self.sent_at = time.monotonic()
        self.heard_at = self.sent_at
        # Até quando esperar pelo CONNACK, ou pela resposta a um PINGREQ.
        self.answer_by = self.sent_at + MQTT_ANSWER_S
        # Quando estranhar que o nosso próprio online não volte.
        self.echo_by = float("inf")
        # Quando desmentir um offline.
        self.heal_at = float("inf")

    def start(self, led, button):
        """Põe a thread a trabalhar, e assina o que o LED e o botão tenham a dizer."""
        if led:
            self.led = led
            self.components.append("led")
            led.watch(self.on_change)
        if button:
            self.components.append("botao")
            button.watch(self.on_press)
        if self.args.mqtt_usuario and not self.tls and not self.is_near():
            self.house.note("aviso: sem --mqtt-ca, o usuário e a senha vão em claro até o broker")
        self.thread.start()

    def is_near(self):
        """O broker está nesta máquina? Então a senha não passa por fio nenhum."""
        return self.host == "localhost" or self.host.startswith("127.") or self.host == "::1"

    def close(self):
        """O fim: o que ainda não se publicou, offline e DISCONNECT, se o broker os quiser."""
        self.ending = True
        self.ring()
        if self.thread.is_alive():
            self.thread.join(2 * MQTT_PARTING_S)
        if not self.thread.is_alive():
            self.bell.close()
            self.bell_rope.close()

    def ring(self):
        """Acorda a thread, de qualquer outra, sem esperar."""
        with contextlib.suppress(OSError):
            # Cheia, já vai acordar; fechada, já acabou.
            self.bell_rope.send(b"x")

    def on_change(self, _on, _who):
        """O LED mudou, seja por quem for: o nível se lê dele na hora de publicar."""
        self.ring()

    def on_press(self):
        """Um toque é um acontecimento: sem broker, perde-se, que publicá-lo depois seria mentir."""
        if self.welcome:
            self.presses.append(time.monotonic())
            self.ring()
        else:
            self.house.note("mqtt: o toque não foi publicado: sem broker")

    def run(self):
        """Liga, e liga de novo, até o fim do programa."""
        pause = MQTT_RETRY_S
        while not self.ending:
            born = time.monotonic()
            try:
                self.converse()
            except Exception as error:
                # Um defeito nosso também: acaba esta ligação, e fica dito; a próxima pode servir.
                if self.ending:
                    return
                if time.monotonic() - born >= MQTT_STEADY_S:
                    pause = MQTT_RETRY_S
                self.complain(self.explain(error), f"; nova tentativa em {pause} s")
                self.welcome = False
            # Sem o acaso, a casa inteira ligaria no mesmo instante depois de uma queda de luz.
            self.rest(pause * random.uniform(0.75, 1.25))
            pause = min(2 * pause, MQTT_RETRY_MAX_S)

    def rest(self, seconds):
        """A pausa entre duas ligações, que o fim do programa encurta."""
        deadline = time.monotonic() + seconds
        while not self.ending and time.monotonic() < deadline:
            self.doze([self.bell], deadline)

    def doze(self, readers, deadline):
        """Espera por bytes, pela campainha ou pelo prazo. Devolve o que se deixa ler."""
        ready = wait_ready(readers, timeout=max(0, deadline - time.monotonic()))
        if self.bell in ready:
            self.bell.recv(CHUNK)
        return ready

    def complain(self, text, advice=""):
        """Diz o que há de errado; de novo, só quando mudar: um dia sem broker é uma linha."""
        if text != self.trouble:
            self.trouble = text
            self.house.note(f"mqtt: {text}{advice}")

    def explain(self, error):
        """O que houve, e o que digitar em seguida."""
        if isinstance(error, ProtocolError):
            return f"{self.where} {error}"
        if not isinstance(error, (OSError, UnicodeError)):
            return f"um defeito de led_gpio.py cortou a ligação com {self.where}: {error!r}"
        fault = explain_host(error, self.host)
        if fault:
            return fault
        if isinstance(error, ConnectionRefusedError):
            return (f"nenhum broker em {self.where} (conexão recusada). "
                    "Na máquina dele: sudo service mosquitto start (ou /usr/sbin/mosquitto -v)")
        if isinstance(error, socket.timeout):
            return f"o broker em {self.where} não responde"
        if ssl and isinstance(error, ssl.SSLCertVerificationError):
            return explain_certificate(error, self.where, "--mqtt-ca")
        if self.welcome:
            return f"o broker em {self.where} desligou. Outro com o nome {self.name}? --nome OUTRO"
        if ssl and isinstance(error, ssl.SSLError):
            return self.explain_tls(error)
        if not isinstance(error, ConnectionError):
            return f"não foi possível falar com {self.where}: {reason(error)}"
        advice = "Lá não é TLS? Sem --mqtt-ca" if self.tls else "Lá é TLS? --mqtt-ca ARQUIVO"
        return f"{self.where} desligou sem responder: {reason(error)}. {advice}"

    def explain_tls(self, error):
        """O TLS não se acertou. No 1.3, o certificado que nos falta só se nota na leitura."""
        if isinstance(error, ssl.SSLEOFError):
            return f"{self.where} cortou o TLS sem uma palavra. Pede um certificado nosso, talvez"
        if "CERTIFICATE_REQUIRED" in (error.reason or ""):
            return f"{self.where} pede um certificado nosso, e só sabemos usuário e senha"
        return f"sem TLS com {self.where}: {error.reason or error}. Lá é a porta do TLS?"

    def converse(self):
        """Uma ligação, do começo ao fim; só volta sem erro no fim do programa."""
        self.forget()
        with self.connect() as self.sock:
            self.send(mqtt_connect(self.name, self.topic("online"), self.args.mqtt_usuario,
                                   self.password))
            while not self.ending:
                self.step()
            if self.welcome:
                self.say_goodbye()

    def connect(self):
        """Um socket ligado ao broker, com prazo em cada operação; e com TLS, se o pediram."""
        sock = dial(self.host, self.port, MQTT_ANSWER_S)
        # Um estado logo atrás do outro não espera pelo ACK do primeiro (Nagle).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            sock = self.tls.wrap_socket(sock, server_hostname=tls_name(self.host))
        self.answer_by = time.monotonic() + MQTT_ANSWER_S
        return sock

    def topic(self, name):
        """Um dos nossos tópicos: o nome é o endereço que os outros conhecem."""
        return f"led_gpio/{self.name}/{name}"

    def shell(self, program):
        """O começo do comando que fala com este mesmo broker, próprio para digitar."""
        words = [program]
        # Por TLS, o nome tem de ser o do certificado.
        if self.tls or self.host not in ("localhost", "127.0.0.1"):
            words += ["-h", self.host]
        if self.port != MQTT_PORT:
            words += ["-p", str(self.port)]
        if self.tls:
            words += ["--cafile", self.args.mqtt_ca]
        if self.args.mqtt_usuario:
            words += ["-u", self.args.mqtt_usuario]
        command = shlex.join(words)
        if self.password:
            # Lida do arquivo: numa linha que se mostra, não vai senha nenhuma.
            command += f' -P "$(cat {shlex.quote(self.args.mqtt_senha_arquivo)})"'
        return command

    def send(self, data):
        """Tudo, ou socket.timeout: quem não lê não prende esta thread."""
        self.sock.sendall(data)
        self.sent_at = time.monotonic()

    def publish(self, topic, payload):
        """Um estado: fica no broker, e QoS 1 para que ele não o possa largar."""
        self.number = self.number % 0xFFFF + 1
        self.send(mqtt_publish(topic, payload, RETAIN | QOS_1, self.number))

    def step(self):
        """Espera o que vier primeiro, e faz o que houver a fazer."""
        ping_at = min(self.sent_at, self.heard_at) + MQTT_KEEPALIVE_S / 2
        if self.answer_by < float("inf"):
            # Já se espera por algo dele.
            ping_at = float("inf")
        times = (ping_at, self.answer_by, self.echo_by, self.heal_at)
        if self.sock in self.doze([self.sock, self.bell], min(times)):
            self.receive()
        now = time.monotonic()
        if now >= self.answer_by:
            raise socket.timeout
        if now >= ping_at:
            self.send(mqtt_packet(PINGREQ))
            self.answer_by = now + MQTT_KEEPALIVE_S / 2
        # A ACL (quem pode publicar, e onde) não se anuncia: só se nota pelo que não volta.
        if now >= self.echo_by:
            self.echo_by = float("inf")
            self.complain("o broker não deixa publicar ou assinar em "
                          f"{self.topic('#')}: confira as permissões (ACL) dele")
        if now >= self.heal_at:
            self.heal_at = float("inf")
            self.heals.append(now)
            self.publish(self.topic("online"), "online")
        if self.welcome:
            self.publish_news()

    def receive(self):
        """O que chegou: pacotes, em qualquer pedaço. Um registro TLS inteiro cabe em CHUNK."""
        if hasattr(socket, "TCP_QUICKACK"):
            # Com o ACK adiado (40 ms), o broker que usa o Nagle seguraria a ordem que vem depois
            # do PUBACK. O kernel esquece isto a cada passo.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            data = self.sock.recv(CHUNK)
        except NOTHING_YET:
            return
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self.heard_at = time.monotonic()
        if self.welcome:
            # Seja o que for: está vivo.
            self.answer_by = float("inf")
        for packet in self.packets.feed(data):
            self.take(packet)

    def take(self, packet):
        """Um pacote. Os que faltam aqui (PUBACK, PINGRESP) só dizem que ele está vivo."""
        if packet.kind == CONNACK and not self.welcome:
            self.enter(packet)
        elif packet.kind == PUBLISH:
            self.hear(packet)
        elif packet.kind == SUBACK and 0x80 in packet.body[2:]:
            self.complain(f"o broker não deixa assinar {self.topic('#')}")

    def enter(self, packet):
        """O broker respondeu: aceitou-nos, ou diz por que não."""
        if len(packet.body) != 2:
            raise ProtocolError("não é um broker MQTT 3.1.1")
        code = packet.body[1]
        if code:
            raise ProtocolError(REFUSALS.get(code, f"recusou a ligação ({code})"))
        self.welcome = True
        self.answer_by = float("inf")
        self.trouble = ""
        self.house.say(f"mqtt: ligado a {self.where}")
        if self.led:
            self.house.say(f"mande: {self.shell('mosquitto_pub')} -t {self.topic('led/set')} -m ON")
        else:
            self.house.say(f"ouça: {self.shell('mosquitto_sub')} -t {self.topic('botao')}")
        self.presses.clear()
        self.announce()
        wanted = [self.topic("online"), "homeassistant/status"]
        if self.led:
            wanted.append(self.topic("led/set"))
        self.send(mqtt_subscribe(1, *wanted))
        # Alguns brokers fingem aceitar o que a ACL proíbe: o que não volta, não foi.
        self.echo_by = time.monotonic() + MQTT_ANSWER_S

    def announce(self):
        """Tudo o que somos; online por último, quando o resto já é verdade."""
        self.publish(f"homeassistant/device/{self.name}/config",
                     discovery(self.name, self.components))
        self.shown = None
        self.publish_news()
        self.publish(self.topic("online"), "online")

    def publish_news(self):
        """O estado, se não é o que o broker conhece; e os toques.

        Um toque vai com QoS 0: repetido, o que ele dispara em casa se faria duas vezes.
        """
        if self.led and self.led.lit != self.shown:
            self.shown = self.led.lit
            self.publish(self.topic("led"), "ON" if self.shown else "OFF")
        while self.presses:
            self.presses.popleft()
            self.send(mqtt_publish(self.topic("botao"), json.dumps({"event_type": "press"})))

    def hear(self, packet):
        """Uma mensagem. Todas têm o seu PUBACK, até as que não se leem.

        Há broker que, por um só que falte, nunca mais diz nada (amqtt 0.12, ejabberd 23).
        """
        message = read_publish(packet)
        if message.number:
            self.send(mqtt_packet(PUBACK, message.number))
        if not packet.whole:
            return
        if message.topic == self.topic("led/set"):
            self.obey(message)
        elif message.topic == self.topic("online"):
            self.check_own(message.payload)
        elif message.topic == "homeassistant/status" and message.payload == b"online":
            # Ele acaba de nascer, e há broker que não lhe repete o que ficou retido.
            if not message.retained:
                self.announce()

    def obey(self, message):
        """Uma ordem. A que ficou retida é de ontem, e não acende nada hoje."""
        word = message.payload.decode("utf-8", "replace").strip().upper()
        if message.retained and word:
            self.house.note(f"mqtt: ordem retida em {message.topic}, ignorada. Para apagá-la: "
                            f"{self.shell('mosquitto_pub')} -t {message.topic} -r -n")
        elif word in ("ON", "OFF", "TOGGLE"):
            reply = self.led.order(f"LED {word}", "mqtt")
            if reply.startswith("ERRO"):
                self.house.note(f"mqtt: {reply}")
            # A resposta é o estado, mesmo que nada tenha mudado, ou que o pino não tenha obedecido.
            self.shown = None
        elif word:
            self.house.note(f"mqtt: {escape(word[:LINE_LIMIT])} não é ON, OFF nem TOGGLE")

    def check_own(self, payload):
        """O que dizem de nós. Um offline é de uma ligação anterior, ou de um impostor."""
        if payload == b"online":
            self.echo_by = float("inf")
        elif payload == b"offline":
            self.heal_at = time.monotonic()
            if len(self.heals) == MQTT_HEALS:
                self.heal_at = max(self.heal_at, self.heals[0] + MQTT_HEALS_S)

    def say_goodbye(self):
        """Quem se despede não deixa testamento: o offline é dito antes."""
        self.publish_news()
        self.publish(self.topic("online"), "offline")
        self.send(mqtt_packet(DISCONNECT))
        self.sock.settimeout(MQTT_PARTING_S)
        self.sock.shutdown(socket.SHUT_WR)
        while self.sock.recv(CHUNK):
            # Os últimos PUBACK, até ele desligar: um close() com eles por ler viraria um RST.
            pass


def broker_password(path):
    """A senha que o broker dá aos seus usuários: nem sempre comprida como a nossa."""
    if not os.path.exists(path):
        raise Failure(f"{path} não existe: escreva nele a senha que o broker espera de nós")
    return read_secret(path, 1)


# ---------------------------------------------------------------------------------------------
# Em volta: o processo
#
# O que diz a quem o opera, e quando deve acabar. Todo sinal que encerra vira um pedido, lido por
# quem está em condições de parar: ninguém para no meio de uma escrita, e o LED acaba como --ao-sair
# diz.

# Além do Ctrl+C; no Windows há só o primeiro.
END_SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM")
# Bytes do registro de --fundo, que recomeça ao passar disso; e onde ele fica: /tmp é de todos, e a
# pasta do XDG some no logout.
LOG_LIMIT = 1 << 20
LOG_PATH = "~/.led_gpio.log"
LOCK_PATH = "~/.led_gpio.pid"
# Passos de STEP_S que `parar` espera.
STOP_TRIES = 50


class House:
    """Este processo: a voz, e o fim."""

    def __init__(self):
        self.ending = False
        # O erro que o encerrou.
        self.failure = None
        # Descritor do registro, se é dele que a voz cuida.
        self.log = None
        self.voice = Voice(self.end)
        for name in END_SIGNALS:
            self.end_on(name, lambda *_: self.end())
        self.end_on("SIGINT", after_echo(lambda *_: self.end()))

    def end_on(self, name, handler):
        """O sinal, se este sistema o tem, vira um pedido de fim."""
        # SIGHUP ignorado é de quem rodou com nohup.
        known = hasattr(signal, name)
        if known and (name != "SIGHUP" or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN):
            signal.signal(getattr(signal, name), handler)

    def end(self):
        self.ending = True

    def fail(self, error):
        self.failure = self.failure or error
        self.end()

    def say(self, text):
        self.trim()
        self.voice.say(text)

    def note(self, text):
        self.trim()
        self.voice.note(text)

    def trim(self):
        """O registro de --fundo recomeça; o que o usuário redireciona é dele, e só cresce."""
        if self.log is not None and os.fstat(self.log).st_size > LOG_LIMIT:
            os.ftruncate(self.log, 0)

    def move_to(self, log):
        """Daqui em diante, a voz fala no registro; o que já disse acaba onde estava."""
        self.voice.close()
        with open(os.devnull) as null:
            os.dup2(null.fileno(), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        self.log = log
        self.voice = Voice(self.end)

    def run_in_thread(self, action, *args):
        """Roda numa thread; o erro que a encerrar encerra o processo."""
        def work():
            try:
                action(*args)
            except (Failure, OSError) as error:
                self.fail(error)
        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def close(self):
        self.voice.close()


def tell_console(house):
    """Quem assina as mudanças para as dizer no terminal e no syslog, com a marca de sempre."""
    def tell(on, _who):
        text = "LED Status: On" if on else "LED Status: Off"
        house.note(text)
        if os.name == "posix":
            syslog.syslog(text)
    if os.name == "posix":
        # tail -f /var/log/syslog | grep LED
        syslog.openlog("LED TCP", syslog.LOG_PID)
    return tell


class Background:
    """O processo em segundo plano: um por usuário. A trava dura até a morte de quem roda.

    Sem ela, o número anotado já poderia ser de outro processo.
    """

    def __init__(self):
        if os.name != "posix":
            raise Failure("segundo plano só em Unix. "
                          "Aqui: ./led_gpio.py iniciar, num terminal à parte")
        self.path = os.path.expanduser(LOCK_PATH)
        self.lock = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        # O pid de quem já roda, ou None; e então a trava é nossa.
        self.pid = None
        if not self.take():
            self.pid = int(os.read(self.lock, 20) or 0)

    def take(self):
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    def launch(self, work):
        """Um filho faz tudo, e este espera que ele esteja pronto: o que der errado se vê aqui.

            este       fork() ---- read() --------------------> exit(0), ou o estado do filho
                            \\                         ^
            o filho          porta, pinos, "escutando" '- detach(): noutra sessão, fala no registro
        """
        if self.pid is not None:
            raise Failure("já está rodando. Para parar: ./led_gpio.py parar")
        os.ftruncate(self.lock, 0)
        ready, done = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ready)
            return work(lambda house: self.detach(house, done))
        os.close(done)
        try:
            with open(ready, "rb") as news:
                if news.read(1):
                    return 0
            _, status = os.waitpid(child, 0)
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)
            raise
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1

    def detach(self, house, done):
        """Tudo tomado: noutra sessão, nem o Ctrl+C nem o fim deste terminal o alcançam."""
        path = os.path.expanduser(LOG_PATH)
        house.say(f"em segundo plano; o que diz: tail -f {path}")
        os.pwrite(self.lock, b"%d" % os.getpid(), 0)
        os.setsid()
        house.move_to(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        os.write(done, b"x")
        os.close(done)


def stop_background(_args):
    """Encerra o que ficou em segundo plano, pelo pid anotado e conferido."""
    background = Background()
    if not background.pid:
        raise Failure("nada em segundo plano. Para começar: ./led_gpio.py iniciar --fundo")
    os.kill(background.pid, signal.SIGTERM)
    for _ in range(STOP_TRIES):
        # A trava se solta quando ele acaba.
        if background.take():
            print(f"parado: pid {background.pid}")
            return
        time.sleep(STEP_S)
    raise Failure(f"o pid {background.pid} recebeu o SIGTERM e não acabou em "
                  f"{STOP_TRIES * STEP_S:g} s. À força: kill -9 {background.pid}")


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


# ---------------------------------------------------------------------------------------------
# Em volta: TLS e escuta
#
# Em quem se confia, por que não, e em que endereço se atende. Entre cercas está o que outros
# scripts da coleção têm igual, byte por byte.

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


def server_context(args):
    """O contexto TLS do servidor, ou None."""
    if not args.certificado:
        return None
    return tls_context(True, args.certificado, args.chave, args.ca_clientes)


def client_context(args):
    """O contexto TLS de quem conecta, ou None. Quem pede parte dele não acaba em claro."""
    if not (args.tls or args.ca or args.sem_verificar or args.certificado):
        return None
    return tls_context(False, args.certificado, args.chave, args.ca, not args.sem_verificar)


# Por que um certificado não serve (certificate verify failed), e o que fazer, pelos números do
# OpenSSL (X509_V_ERR_...). {ca} é a opção que diz em quem se confia.
BAD_CERTIFICATES = {
    9: "ainda não vale. Confira o relógio desta máquina: date",
    10: "venceu. Lá é preciso um novo; ou confira o relógio desta máquina: date",
    18: "é assinado por ele mesmo, e não está em {ca}",
    19: "vem de uma autoridade que não está em {ca}",
    20: "vem de uma autoridade que não está em {ca}",
    62: "é de outro nome: use um dos que ele traz",
    64: "é de outro endereço: use um dos que ele traz, ou um nome",
}


def explain_certificate(error, where, option):
    """Por que não se confia em quem está em where; option: a de dizer em quem confiar."""
    unknown = f"não serve ({error.verify_message}). Confira o endereço e {{ca}}"
    why = BAD_CERTIFICATES.get(error.verify_code, unknown)
    return f"o certificado de {where} {why.replace('{ca}', option)}"


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


@contextlib.contextmanager
def opened_door(args):
    """Toma a porta. No sysfs, que não tem dono, ela é a única trava entre dois destes."""
    with bound_socket(args.endereco, args.porta, socket.SOCK_STREAM) as listener:
        listener.listen(MAX_CLIENTS)
        host, args.porta = bound_address(listener)
        private = is_loopback(host)
        if not (private or args.senha_arquivo or args.sem_senha):
            raise Failure(f"em {host} qualquer um na rede mandaria no LED. Crie uma senha: "
                          "(umask 077; openssl rand -hex 32 > senha.txt); e use --senha-arquivo "
                          "senha.txt. Ou aceite o risco: --sem-senha")
        yield listener, host, explain_access(args, private)


def explain_access(args, private):
    """Quem chega ao LED, e como abri-lo à rede."""
    if private:
        return ("só esta máquina chega aqui; para abrir à rede, o mesmo comando com 0.0.0.0 e "
                "--senha-arquivo senha.txt")
    if args.senha_arquivo:
        return "quem sabe a senha manda no LED"
    return "aviso: --sem-senha: qualquer um manda no LED"


# ---------------------------------------------------------------------------------------------
# Em volta: as ações e a linha de comando
#
# Cada ação toma o que lhe cabe (porta, pinos, broker) e o devolve na ordem inversa, acabe como
# acabar. Cada uma tem o seu parser, e a ajuda dela só mostra as suas opções.

@contextlib.contextmanager
def ready_led(args, house):
    """Toma a porta e o pino, e entrega (Led, função que atende)."""
    secret = None
    if args.senha_arquivo:
        secret = Secret(read_secret(args.senha_arquivo), house.note)
    tls = server_context(args)
    with opened_door(args) as (listener, host, access):
        with taken_pin(args, args.led, True, house) as pin:
            led = Led(pin)
            led.watch(tell_console(house))
            house.say(f"escutando em {host} porta {args.porta}")
            house.note(f"GPIO{args.led}: {pin}")
            house.note(access)
            server = Server(led, tls, secret, args, house)
            try:
                yield led, lambda: server.run(listener)
            finally:
                leave(led, args, house)


def leave(led, args, house):
    """O LED como --ao-sair diz."""
    if args.ao_sair == "manter":
        return
    reply = led.order("LED ON" if args.ao_sair == "acender" else "LED OFF", "--ao-sair")
    if reply.startswith("ERRO"):
        house.note(reply)


def serve(args, ready=lambda house: None):
    """As ações servidor, botao e iniciar: o LED, o botão, ou os dois no mesmo processo.

    ready: chamada quando porta e pinos estão tomados, e nada mais pode faltar.
    """
    house = House()
    try:
        with contextlib.ExitStack() as stack:
            operate(args, house, ready, stack)
    finally:
        house.close()
    if house.failure:
        raise house.failure
    # `| head -1`: ninguém mais vê a lâmpada nem os toques.
    return 1 if house.voice.broken else 0


def operate(args, house, ready, stack):
    """Toma tudo, põe as partes a trabalhar e espera o fim; `stack` desfaz, na ordem inversa."""
    answer = None
    button = None
    led = None
    mqtt = None
    if args.mqtt:
        # O último a se desfazer: o broker vê o LED como --ao-sair o deixa.
        mqtt = Mqtt(args, house)
        stack.callback(mqtt.close)
    if args.acao != "botao":
        led, answer = stack.enter_context(ready_led(args, house))
    if args.acao != "servidor":
        button = ready_button(args, house, led, stack)
    ready(house)
    if mqtt:
        mqtt.start(led, button)
    if answer:
        stack.callback(house.run_in_thread(answer).join)
    # Ao desfazer, a ordem se inverte: isto vem antes.
    stack.callback(house.end)
    if button:
        button.start()
        stack.callback(button.join)
        house.note(explain_button(args))
    while not house.ending:
        time.sleep(STEP_S)


def ready_button(args, house, led, stack):
    """O botão com o seu pino tomado, e quem lhe leva os toques até o LED; led: None se é remoto."""
    pin = stack.enter_context(taken_pin(args, args.botao, False, house))
    house.note(f"GPIO{args.botao}: {pin}")
    delivery = Delivery(args, house)
    if led:
        return Button(pin, lambda _born: delivery.report(*led.press("botão")), house)
    # A senha e o TLS: o que lhes falta se diz já, e não ao primeiro toque.
    Conversation(args)
    return Button(pin, delivery.deliver, house)


def explain_button(args):
    if args.acao == "iniciar":
        return "à espera de toques; cada um inverte o LED"
    return f"à espera de toques; cada um inverte o LED em {args.endereco} porta {args.porta}"


def work(args):
    """As ações que duram, neste terminal ou em segundo plano (--fundo)."""
    if args.fundo:
        return Background().launch(lambda ready: serve(args, ready))
    return serve(args)


ACTIONS = {
    "servidor": work,
    "botao": work,
    "iniciar": work,
    "enviar": send_command,
    "parar": stop_background,
}
ABOUT = {
    "servidor": "O LED: atende por TCP e obedece. É o que roda sem AÇÃO.",
    "botao": "O botão: cada toque inverte o LED de ENDEREÇO.",
    "iniciar": "O LED e o botão, neste mesmo processo.",
    "enviar": "Manda um COMANDO ao LED, e mostra a resposta.",
    "parar": "Encerra o que ficou em segundo plano.",
}
# O que se digita no lugar de uma ação, e o que se queria.
MISTAKEN = {
    "ligar": "enviar ON",
    "acender": "enviar ON",
    "on": "enviar ON",
    "desligar": "enviar OFF",
    "apagar": "enviar OFF",
    "off": "enviar OFF",
    "inverter": "enviar TOGGLE",
    "toggle": "enviar TOGGLE",
    "status": "enviar STATUS",
    "estado": "enviar STATUS",
    "watch": "enviar WATCH",
    "led": "enviar ON",
    "botão": "botao",
    "button": "botao",
    "server": "servidor",
    "start": "iniciar",
    "stop": "parar",
}

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


def led_host(text):
    """type= do endereço; uma palavra fora do lugar é explicada, e não procurada no DNS."""
    word = text.lower()
    if word in ACTIONS:
        raise argparse.ArgumentTypeError(f"a ação vem primeiro: {action_first(word, text)}")
    if word in MISTAKEN:
        wanted = f"./led_gpio.py {MISTAKEN[word]}"
        raise argparse.ArgumentTypeError(f"{text} não é um endereço. Seria: {wanted}")
    return host_name(text)


def action_first(action, word):
    """O mesmo comando, com a ação na frente."""
    prog, *rest = shlex.split(typed(drop=(word, "servidor")))
    return shlex.join([prog, action, *rest])


# Quem usa cada opção.
LED = {"servidor", "iniciar"}
BUTTON = {"botao", "iniciar"}
CLIENT = {"botao", "enviar"}


def add_options(parser, action):
    """As opções; as de outras ações são aceitas e não aparecem. Devolve estas: nome -> padrão."""
    strangers = {}

    def option(actions, name, text, **settings):
        if action not in actions:
            text = argparse.SUPPRESS
        added = parser.add_argument(name, help=text, **settings)
        if action not in actions:
            strangers[name] = added.default

    add_pin_options(option)
    add_network_options(option)
    add_broker_options(option)
    option(LED | BUTTON, "--fundo", "em segundo plano, até ./led_gpio.py parar",
           action="store_true")
    return strangers


def add_pin_options(option):
    bcm = {"type": number(int, 0, HEADER_LINES - 1, "um número BCM"), "metavar": "N"}
    millis = {"type": number(float, 0, 1000, "ms"), "metavar": "MS"}
    option(LED | BUTTON, "--gpio", "como falar com os pinos (padrão: auto, o que houver)",
           choices=("auto", *PINS), default="auto")
    option(LED, "--led", "pino do LED, em número BCM (padrão: 17)", default=17, **bcm)
    option(BUTTON, "--botao", "pino do botão, que o liga ao GND (padrão: 4)", default=4, **bcm)
    option(LED, "--ativo-baixo", "o LED acende com o pino em 0", action="store_true")
    option(LED, "--ao-sair", "o LED no fim (padrão: apagar)",
           choices=("manter", "apagar", "acender"), default="apagar")
    option(BUTTON, "--repique", "o botão só vale parado há MS ms (padrão: 50)",
           default=50, **millis)
    option(BUTTON, "--fifo", "o botão simulado (padrão: %(default)s)", default="/tmp/tcp_file",
           metavar="ARQUIVO")
    option(LED | BUTTON, "--sysfs", "outra árvore, para testes (padrão: %(default)s)",
           default="/sys/class/gpio", metavar="RAIZ")


def file_name(text):
    """type= de um arquivo que se lê: abrir uma FIFO pararia aqui até alguém escrever nela."""
    # A pasta tem a sua frase.
    opens = os.path.isfile(text) or os.path.isdir(text)
    if os.path.exists(text) and not opens:
        again = f"(umask 077; cat {shlex.quote(text)} > copia.txt)"
        raise argparse.ArgumentTypeError(f"{text} não é um arquivo comum. Copie-o antes: {again}")
    return text


# O que é comum às opções que levam um arquivo.
FILE = {"type": file_name, "metavar": "ARQUIVO"}


def add_network_options(option):
    flag = {"action": "store_true"}
    seconds = {"type": number(float, 0, 10**6, "segundos"), "metavar": "S"}
    option({"botao"}, "--validade", "quanto insistir na entrega de um toque (padrão: 30)",
           default=30, **seconds)
    option(LED, "--ocioso", "desliga quem passa S segundos calado; 0: nunca (padrão: 300)",
           default=300, **seconds)
    option(LED | CLIENT, "--senha-arquivo", **FILE,
           text="a senha que o cliente prova saber, a mesma dos dois lados")
    option(LED, "--sem-senha", "aceita ordens de qualquer um na rede", **flag)
    option(LED | CLIENT, "--certificado", "o deste lado (PEM); no servidor, liga o TLS", **FILE)
    option(LED | CLIENT, "--chave", "a chave dele, se não está no mesmo arquivo", **FILE)
    option(LED, "--ca-clientes", "exige dos clientes um certificado desta autoridade", **FILE)
    option(CLIENT, "--tls", "cifra a conversa e confere o certificado do servidor", **flag)
    option(CLIENT, "--ca", "confia nesta autoridade, ou neste certificado", **FILE)
    option(CLIENT, "--sem-verificar", "cifra, mas não confere com quem fala", **flag)


def add_broker_options(option):
    option(LED | BUTTON, "--mqtt", "liga também para este broker MQTT (porta padrão: 1883)",
           type=broker_address, metavar="ENDEREÇO[:PORTA]")
    option(LED | BUTTON, "--mqtt-usuario", "o nosso usuário no broker", metavar="USUÁRIO")
    option(LED | BUTTON, "--mqtt-senha-arquivo", "a senha deste usuário", **FILE)
    option(LED | BUTTON, "--mqtt-ca", **FILE,
           text="liga por TLS (porta padrão: 8883), e confia nesta autoridade")
    option(LED | BUTTON, "--nome", "como o broker nos conhece (padrão: o da máquina e o da placa)",
           type=device_name, metavar="NOME")


def broker_address(text):
    """type= de --mqtt: (máquina, porta ou None)."""
    if re.fullmatch(":[0-9]*|", text):
        raise argparse.ArgumentTypeError(f"{text!r}: o endereço do broker veio vazio")
    glued = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:]+)(?::(\d+))?", text)
    if glued:
        host = glued[1] or glued[3]
        port = glued[2] or glued[4]
        return host, port and port_number(port)
    # Um IPv6 sem colchetes não tem porta.
    return text, None


def device_name(text):
    """type= de --nome: o que cabe num tópico, e o Home Assistant aceita."""
    fit = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:MQTT_NAME_LIMIT] or "sala"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} não serve: só letras sem acento, algarismos, "
                                         f"_ e -, como {fit}")
    return text


def add_action(actions, action):
    epilog = None
    if action == "servidor":
        epilog = ("Outras ações: botao, iniciar, enviar e parar; cada uma tem a sua ajuda, "
                  "como em ./led_gpio.py botao --help")
    parser = actions.add_parser(action, description=ABOUT[action], epilog=epilog)
    parser.set_defaults(acao=action, parser=parser)
    add = parser.add_argument
    if action == "enviar":
        add("comando", metavar="COMANDO", type=led_command,
            help="ON, OFF, TOGGLE, STATUS ou WATCH, que mostra cada mudança até um Ctrl+C")
    if action != "parar":
        place = "do LED"
        port = "do LED"
        if action in LED:
            place = "onde escutar: IPv4, IPv6 ou nome; 0.0.0.0 é todo lugar"
            port = "0 pede uma livre ao sistema"
        add("endereco", nargs="?", default="127.0.0.1", type=led_host, metavar="ENDEREÇO",
            help=f"{place} (padrão: %(default)s)")
        add("porta", nargs="?", default=5555, type=port_number, metavar="PORTA",
            help=f"{port} (padrão: %(default)s)")
    parser.set_defaults(strangers=add_options(parser, action))
    version = f"{os.path.basename(sys.argv[0])} {VERSION}"
    add("--version", action="version", version=version, help="mostra a versão e sai")


def led_command(text):
    """type= do comando de enviar: uma linha só, e sem o "LED " também vale."""
    if text and text[:3].upper() != "LED":
        text = "LED " + text
    return escape(text)


def build_parser():
    """Uma ação, um parser: cada uma mostra só as suas opções."""
    parser = Parser(description=ABOUT["servidor"])
    actions = parser.add_subparsers(metavar="AÇÃO")
    for action in ACTIONS:
        add_action(actions, action)
    return parser


def check(args):
    """O que não combina, dito antes de tomar qualquer coisa."""
    error = args.parser.error
    if args.acao in LED and os.environ.get("LISTEN_PID") == str(os.getpid()):
        # sd_listen_fds(3): quem conectasse à porta dele esperaria para sempre.
        raise Failure("o systemd traz uma porta já aberta, e este programa abre a sua: "
                      "tire o .socket, e fique só com o .service")
    if args.acao == "iniciar" and args.led == args.botao:
        error(f"o LED e o botão não cabem os dois na GPIO{args.led}: --led N e --botao M, de pinos "
              "diferentes")
    broker = (args.mqtt_usuario, args.mqtt_senha_arquivo, args.mqtt_ca, args.nome)
    if not args.mqtt and any(broker):
        error("--nome e --mqtt-... só valem junto de --mqtt ENDEREÇO")
    if args.mqtt_senha_arquivo and not args.mqtt_usuario:
        error("--mqtt-senha-arquivo só vale junto de --mqtt-usuario")
    if args.certificado:
        return
    parts = (args.chave, args.ca_clientes, args.tls, args.ca, args.sem_verificar)
    if args.acao in LED and any(parts):
        error("--chave, --ca-clientes e qualquer TLS no servidor só valem junto de --certificado")
    if args.chave:
        error("--chave só vale junto de --certificado")


def warn_about(args):
    """Uma opção que só outra ação usa é aceita, e não em silêncio."""
    for flag, default in args.strangers.items():
        if getattr(args, flag.strip("-").replace("-", "_")) != default:
            print(f"aviso: {flag} não muda nada em {args.acao}", file=sys.stderr)


def act(args):
    check(args)
    warn_about(args)
    return ACTIONS[args.acao](args)


def main(argv=None):
    """Sem ação, é o servidor: ./led_gpio.py 0.0.0.0 5555"""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in ACTIONS:
        argv.insert(0, "servidor")
    # Sem aspas também vale: enviar LED ON
    if " ".join(argv[:2]).lower() == "enviar led":
        argv[1:3] = [" ".join(argv[1:3])]
    born = os.getpid()
    status = run(build_parser, act, argv)
    if os.getpid() != born:
        # O filho de --fundo já disse tudo; desmontar o interpretador é de quem o criou (no Python
        # 3.8, o filho que tenta pode morrer disso).
        os._exit(status)
    return status


if __name__ == "__main__":
    end_process(main())
