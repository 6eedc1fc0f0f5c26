#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cliente de filmes sem IP: acha o servidor no cabo; lista, baixa, toca, conversa e mede.

    sudo ./raw_server.py                         em um terminal
    sudo ./raw_client.py lo baixar filme.mp4     em outro; sem comando, um menu

O caminho de um bloco até o disco (o quadro está desenhado em raw_server.py):

    cabo --> fila do kernel --> Receiver: é o próximo? --sim--> destino: .parcial, cano, memória
             (cheia, perde)       |                                |
                                  não: guarda                      lento? a janela encolhe
                                  |                                |
    cabo <-- CONFIRMA: "falta o bloco n; além dele já tenho estes; cabem mais tantos"

Nas linhas abaixo, seal faz o selo, server e mine são os dois MACs, e session, o número da conversa.
O cliente ingênuo escreve o bloco, se é o próximo, e pede o que falta, um por vez (a janela é 1):

    expected = 0
    window = LAYOUT[ACK].pack(0, 0, 1)
    while expected < total:
        frame = unpack_frame(seal, sock.recv(2048))
        if frame.block == expected:
            file.write(frame.payload)
            expected += 1
        sock.send(pack_frame(seal, server, mine, ACK, session, expected, clock(), window))

O que lhe falta, e quem o cura (o principal primeiro), na parte de mesmo número. No fim do arquivo,
sob o título "Em volta": a linha de comando, main(), e o que as partes já usam antes, como Failure
(um erro que se diz numa linha), reason() e escape().

    1  o bloco que se adianta vai fora, e viaja de novo .... Receiver
    2  cortado, recomeça do zero; e só grava em arquivo .... Partial, Memory, Pipe
    3  um servidor que se cala o prende para sempre ........ Transfer
    4  não sabe a quem pedir ............................... Client
    5  não diz o que há, quanto falta, se veio; nem mede ... Progress, download, list_all, menu
    6  um filme com o índice no fim não toca ............... IndexFirst, find_tail, play
    7  um bit virado o derruba: é um erro, e a 4 o apanha .. ProtocolError, unpack_frame

O que ele não faz: não esconde nada de quem escuta o cabo, não atravessa roteador, e não espera para
sempre: procura por --espera segundos, e desiste.
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
    import re
    import select
    import selectors
    import shlex
    import shutil
    import signal
    import socket
    import stat
    import struct
    import subprocess
    import threading
    import time
except ImportError as error:
    sys.exit(f"{os.path.basename(sys.argv[0])}: erro: este Python veio sem o módulo {error.name}. "
             "Instale-o inteiro: sudo apt install python3 (ou o de https://www.python.org)")

# ---------------------------------------------------------------------------------------------
# 1. Receiver: a ordem
#
# Um bloco perdido faz todos os que vêm atrás chegarem cedo. Jogá-los fora é pedir que viajem de
# novo; guardá-los sem limite é deixar que a rede encha a memória. Guarda-se até uma janela, e a
# CONFIRMA diz, num bitmap, o que já está aqui (como o SACK do TCP, RFC 2018).

# Bytes, e blocos, guardados fora de ordem; o bitmap deles cabe num quadro de 1500 bytes.
WINDOW_BYTES = 16 << 20
WINDOW_BLOCKS = 11_000


class Receiver:
    """Põe os blocos em ordem, com memória limitada. Sem socket, disco nem relógio."""

    def __init__(self, total, capacity):
        self.total = total
        self.capacity = capacity
        # O primeiro que falta.
        self.next = 0
        # O primeiro que não prometemos guardar.
        self.limit = min(capacity, total)
        # Os que vieram antes da hora.
        self.early = {}
        # Os mesmos, num bitmap que começa no bloco `origin`.
        self.bits = 0
        self.origin = 0

    def accept(self, index, payload, ready):
        """Um bloco: junta a `ready` o que ficou em ordem; guarda o que veio cedo."""
        if index == self.next < self.limit:
            ready.append(payload)
            self.next += 1
            while self.next in self.early:
                ready.append(self.early.pop(self.next))
                self.next += 1
        elif self.next < index < self.limit and index not in self.early:
            self.early[index] = bytes(payload)
            self.bits |= 1 << (index - self.origin)

    def acknowledge(self, backlog):
        """(o que falta, janela, bitmap) para uma CONFIRMA.

        backlog: blocos que o destino ainda não engoliu, e que a janela já não oferece.
        """
        self.bits >>= self.next - self.origin
        self.origin = self.next
        offered = self.next + self.capacity - backlog
        self.limit = min(max(self.limit, offered), self.total)
        return self.next, self.limit - self.next, self.bits


# ---------------------------------------------------------------------------------------------
# 2. Partial: para onde vão os bytes
#
# NOME.parcial só recebe o que está em ordem: o tamanho dele é o ponto de onde retomar, mesmo
# depois de um kill -9. Ao lado, NOME.parcial.id diz de que arquivo ele é. O nome final só nasce
# quando o SHA-256 confere. Um cano não se retoma: quem o lê dita o passo, e a janela encolhe.

# Um catálogo maior do que isto é mentira (bytes).
CATALOG_BYTES = 8 << 20
# Bytes do arquivo relidos e conferidos em cada folga.
HASH_STEP = 1 << 16
# Bytes de um nome de arquivo no Linux, e o que juntamos ao nome do que chega.
NAME_MAX = 255
PARTIAL_END = ".parcial"
NOTE_END = ".parcial.id"
# O espaço livre, num ABRE, de quem não sabe ou não se importa: cabe qualquer tamanho.
NO_LIMIT = 2**64 - 1
# Sem espaço no disco, na quota de quem grava, ou no tamanho que se permite a um arquivo.
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
# As barras de uma medição: cada uma conta um vigésimo do tempo dela.
BARS = 20


class Sink:
    """Destino dos bytes em ordem. Este é o da medição: só os conta, por barra."""

    # Onde esperar por espaço (só se há backlog), e os bytes que ele ainda não engoliu.
    fd = None
    backlog = 0
    # Já tem o que queria, antes do fim do arquivo?
    enough = False

    def __init__(self, span=1):
        self.hash = hashlib.sha256()
        # Bytes entregues.
        self.size = 0
        self.began = clock()
        # Quanto dura a medição, em µs, e os bytes de cada barra.
        self.span = span
        self.bars = collections.Counter()

    def write(self, pieces):
        bar = (clock() - self.began) * BARS // self.span
        self.bars[bar] += sum(map(len, pieces))

    def idle(self):
        """Trabalho para as folgas; False se não há."""
        return False

    def ended(self):
        """Tudo entregue e conferido?"""
        return not self.backlog


class Memory(Sink):
    """Destino do que é pequeno: o catálogo, e as pontas de um filme (parte 6)."""

    def __init__(self, wanted=None):
        super().__init__()
        self.data = bytearray()
        # Com tantos bytes, já basta; None quer tudo.
        self.wanted = wanted

    def write(self, pieces):
        for piece in pieces:
            self.data += piece
            self.hash.update(piece)
        if self.wanted is not None:
            self.enough = len(self.data) >= self.wanted
        elif len(self.data) > CATALOG_BYTES:
            raise Failure("o catálogo do servidor é grande demais")


class Pipe(Sink):
    """Um cano: o que ainda não coube espera aqui, e a janela encolhe por isso."""

    def __init__(self, fd):
        super().__init__()
        self.fd = fd
        # Um pedaço por lote; do primeiro, só o que falta.
        self.waiting = collections.deque()
        os.set_blocking(fd, False)

    def write(self, pieces):
        """Entrega um lote, em ordem."""
        data = memoryview(b"".join(pieces))
        self.hash.update(data)
        self.size += len(data)
        self.push(data)

    def push(self, data):
        """Põe na fila, e escreve dela o que couber."""
        # Um servidor torto manda blocos sem bytes.
        if data:
            self.backlog += len(data)
            self.waiting.append(data)
        while self.idle():
            pass

    def idle(self):
        """Escreve um pedaço, se o cano o aceita."""
        if not self.waiting:
            return False
        try:
            sent = os.write(self.fd, self.waiting[0])
        except BlockingIOError:
            return False
        self.backlog -= sent
        # Outra fatia do mesmo pedaço, e nenhuma cópia.
        self.waiting[0] = self.waiting[0][sent:]
        if not self.waiting[0]:
            self.waiting.popleft()
        return sent > 0


def open_own(path, flags):
    """Abre um arquivo nosso numa pasta de muitos: nem por um link, nem à espera num FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def read_note(path):
    """(tamanho, data) que o bilhete diz; sem ele não se sabe de que arquivo é o parcial: (0, 0)."""
    try:
        with open(path, encoding="utf-8", opener=open_own) as note:
            size, date = map(int, note.read(64).split())
        struct.pack("!Qq", size, date)
    except (OSError, ValueError, struct.error):
        return 0, 0
    return size, date


class Partial(Sink):
    """NOME.parcial, e o bilhete que diz de que arquivo ele é: só esse se retoma."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.path = target + PARTIAL_END
        self.note = target + NOTE_END
        self.fd = self.lock()
        status = os.fstat(self.fd)
        self.check_owner(status)
        self.identity = read_note(self.note)
        # Quantos bytes do arquivo já foram conferidos.
        self.hashed = 0
        # Maior do que o bilhete diz, o parcial não é desse arquivo: vale zero, e recomeça.
        if status.st_size <= self.identity[0]:
            self.size = status.st_size

    def lock(self):
        """Abre o parcial só para nós: a tranca some com o processo, até por kill -9."""
        import fcntl
        refused = f"não consigo gravar em {self.path}"
        if len(os.fsencode(os.path.basename(self.note))) > NAME_MAX:
            raise Failure(f"{refused}: o nome é comprido demais. Um mais curto: -o ARQUIVO")
        try:
            fd = open_own(self.path, os.O_RDWR | os.O_CREAT)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"outro raw_client.py já está baixando {self.target}") from None
        except PermissionError:
            raise Failure(f"{refused}: sem permissão para {who_am_i()}. "
                          "Outro lugar: -o ARQUIVO") from None
        except OSError as error:
            raise Failure(f"{refused}: {reason(error)}. Outro lugar: -o ARQUIVO") from None
        return fd

    def check_owner(self, status):
        """Só um arquivo comum, nosso ou do dono da pasta: em /tmp, outro o mudaria depois."""
        # Outro cliente pode tê-lo acabado entre o open e o flock.
        mine = os.path.samestat(status, os.lstat(self.path))
        plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        owners = os.geteuid(), os.stat(os.path.dirname(self.path) or ".").st_uid
        if not mine or not plain or status.st_uid not in owners:
            raise Failure(f"{self.path} não é um arquivo comum nosso: "
                          "apague-o, ou grave com outro nome (-o)")

    def begin(self, offset, identity):
        """O servidor enviará desde `offset` um arquivo de tamanho e data `identity`."""
        if offset and (offset, identity) == (self.size, self.identity):
            return
        # Antes do bilhete: um kill -9 aqui não deixa um par trocado.
        os.ftruncate(self.fd, 0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.note)
        with open(self.note, "x", encoding="utf-8", opener=open_own) as note:
            note.write("%d %d\n" % identity)
        self.size = 0
        self.identity = identity
        self.hash = hashlib.sha256()
        self.hashed = 0

    def write(self, pieces):
        """Grava no fim: o tamanho do arquivo é sempre o ponto de onde retomar."""
        data = memoryview(b"".join(pieces))
        # Disco quase cheio: grava o que cabe, e a escrita seguinte diz ENOSPC.
        while data:
            done = os.pwrite(self.fd, data, self.size)
            self.size += done
            data = data[done:]

    def idle(self):
        """Confere um passo, relido do disco: vale o que ficou gravado, não o que passou aqui."""
        step = min(HASH_STEP, self.size - self.hashed)
        piece = os.pread(self.fd, step, self.hashed)
        self.hash.update(piece)
        self.hashed += len(piece)
        return bool(piece)

    def ended(self):
        """Relido e conferido até o último byte gravado?"""
        return self.hashed == self.size

    def free(self):
        """Bytes que ainda cabem no disco; sem limite, se ele não o sabe dizer."""
        disk = os.fstatvfs(self.fd)
        # FUSE, ramfs: 0 blocos ao todo é "não sei", e não "não cabe".
        if not disk.f_blocks:
            return NO_LIMIT
        return min(disk.f_bavail * disk.f_frsize, NO_LIMIT)

    def close(self):
        """Um parcial sem um byte não serve a ninguém: some, com o bilhete dele."""
        if not os.fstat(self.fd).st_size:
            for path in self.path, self.note:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        os.close(self.fd)

    def discard(self):
        """Vazio, o close() o apaga."""
        os.ftruncate(self.fd, 0)

    def finish(self, overwrite):
        """Dá o nome final, que até aqui não existia."""
        # Apareceu durante a cópia?
        if not overwrite and os.path.lexists(self.target):
            raise Failure(f"{self.target} já existe, e a cópia ficou em {self.path}. "
                          "Para trocá-lo: --sobrescrever")
        os.replace(self.path, self.target)
        os.unlink(self.note)


def who_am_i():
    """Quem grava. Com sudo é quem o digitou, que pode não ter licença na pasta em que root está."""
    import pwd
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"o usuário {os.geteuid()}"


# ---------------------------------------------------------------------------------------------
# 3. Transfer: receber até o fim
#
# recv() espera para sempre por quem se foi. Aqui o silêncio tem prazo, seja do servidor, do cabo ou
# de um endereço que mudou, e acaba em Silence (no fim do arquivo: é uma Failure). Uma CONFIRMA por
# milésimo de segundo (ou por quarto da janela) mantém o servidor em dia; sem novidade, repete-se a
# última, que pode ter se perdido.

# Servidor calado por tanto (µs): procura-se de novo por ele, e a cópia continua.
SILENCE_US = 3_000_000
GONE = "o servidor calou. Veja se ele está no ar, confira o cabo e repita o comando"
# Uma confirmação por ms; sem novidade, a última outra vez (µs).
ACK_EVERY_US = 1000
ACK_AGAIN_US = 50_000
# Quadros lidos por escrita, e o teto deles em bytes.
BATCH_BLOCKS = 64
BATCH_BYTES = 1 << 20
# O HEADER da parte 7, do tipo em diante, lido às pressas: tipo, versão, n e sessão são iguais em
# todos os blocos de uma cópia, e se comparam de uma vez, como 8 bytes; depois, bloco e relógio.
SAME = struct.Struct("!BBHI")
PREFIX = struct.Struct("!8sIQ")


class Transfer:
    """Um arquivo que chega, da FICHA ao último byte entregue e conferido."""

    def __init__(self, client, request, card):
        self.client = client
        # O ABRE que o pediu: repetido, traz as contas do servidor.
        self.request = request
        self.offset, self.size, self.date, self.block, *_ = card
        if not 0 < self.block <= client.room or self.offset > self.size:
            raise ProtocolError("ficha impossível")
        # Divisão para cima: o último bloco pode não vir cheio.
        blocks = -(-(self.size - self.offset) // self.block)
        self.receiver = Receiver(blocks, client.capacity)
        # O SHA-256 que o servidor calcula enquanto envia; zeros até que o saiba.
        self.digest = bytes(32)
        # O relógio mais novo que veio do servidor, e quando veio.
        self.newest = 0
        self.newest_at = clock()
        self.slots = self.make_slots()
        self.poll = select.poll()

    def make_slots(self):
        """Lugar para um lote de quadros, lado a lado, e as fatias de cada um, feitas uma vez."""
        tail = -self.client.seal_size
        full = HEADER.size + self.block - tail
        batch = max(1, min(BATCH_BLOCKS, BATCH_BYTES // full))
        view = memoryview(bytearray(full * batch))
        slots = []
        for at in range(0, len(view), full):
            frame = view[at:at + full]
            sealed = frame[KIND_AT:tail]
            payload = frame[HEADER.size:tail]
            slots.append((frame, sealed, frame[tail:], payload))
        return slots

    def drain(self, sink):
        """Lê até um lote da fila e entrega o que ficou em ordem.

        Devolve quantos blocos e quantas fichas vieram.
        """
        client = self.client
        receiver = self.receiver
        # Buscados uma vez por lote, e não por quadro: são dezenas de milhares por segundo.
        receive = client.sock.recv_into
        unpack = PREFIX.unpack_from
        seal = client.seal
        wanted = SAME.pack(DATA, WIRE_VERSION, self.block, client.number)
        ready = []
        blocks = 0
        cards = 0
        for slot, sealed, mark, payload in self.slots:
            try:
                size = receive(slot)
            except OSError as error:
                client.excuse(error)
                break
            same, block, sent = unpack(slot, KIND_AT)
            if same != wanted or size != len(slot) or seal(sealed) != mark:
                # O caminho menos comum: outro tipo, o último bloco, ou um quadro torto.
                frame = client.check(slot[:size])
                if frame and frame.kind == CARD:
                    self.digest = unpack_body(CARD, frame.payload)[4]
                    cards += 1
                if frame is None or frame.kind != DATA:
                    continue
                block, payload, sent = frame.block, frame.payload, frame.clock
            blocks += 1
            if sent > self.newest:
                self.newest = sent
                self.newest_at = clock()
            receiver.accept(from_wire(block, receiver.next), payload, ready)
        if ready:
            sink.write(ready)
        return blocks, cards

    def acknowledge(self, backlog, now):
        """CONFIRMA: o que falta, o que já veio além disso, e quanto ainda cabe."""
        following, window, bits = self.receiver.acknowledge(backlog)
        held = min(now - self.newest_at, 2**32 - 1)
        body = LAYOUT[ACK].pack(self.newest, held, window)
        bitmap = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        self.client.send(ACK, to_wire(following), body + bitmap)

    def run(self, sink, title="", until=None, check=True):
        """Recebe até o fim, conferido, ou até o instante `until`, ou até o destino se fartar.

        check: espera também pelo SHA-256 do servidor. Levanta Silence se ele cala.
        """
        # Um erro, ou Ctrl+C, também apaga a barra.
        with contextlib.closing(Progress(title, sink, self.size)) as bar:
            self.receive(sink, bar, until, check)

    def receive(self, sink, bar, until, check):
        """O laço: ler, entregar, confirmar; nas folgas, conferir; e dormir se não há mais nada."""
        receiver = self.receiver
        quarter = max(1, min(self.client.queue, self.client.capacity) // 4)
        # Blocos por confirmar, e quando se confirmou.
        pending = 1
        acked = 0
        heard = clock()
        while (until is None or clock() < until) and not sink.enough:
            blocks, cards = self.drain(sink)
            now = clock()
            # Só blocos são sinal de vida; se nenhum se espera (janela fechada, fim), uma FICHA.
            if blocks or cards and receiver.next == receiver.limit:
                heard = now
                pending += blocks
            elif now - heard > SILENCE_US:
                raise Silence(GONE)
            if self.complete(sink, check):
                break
            # Em blocos, para cima.
            backlog = -(-sink.backlog // self.block)
            due = acked + self.patience(pending, backlog, quarter)
            if now >= due or pending >= quarter:
                self.acknowledge(backlog, now)
                pending = 0
                acked = now
                bar.show(now)
            elif not blocks and not sink.idle():
                self.wait(sink, due - now)

    def complete(self, sink, check):
        """Veio tudo, foi tudo entregue, e já se sabe o SHA-256 que devia ter?"""
        if self.receiver.next < self.receiver.total or not sink.ended():
            return False
        return any(self.digest) or not check

    def patience(self, pending, backlog, quarter):
        """Por quantos µs ainda se cala a CONFIRMA seguinte."""
        receiver = self.receiver
        offered = receiver.next + receiver.capacity - backlog
        # O destino lento engoliu um quarto da janela: o servidor precisa saber que há lugar.
        reopened = offered >= receiver.limit + quarter and receiver.limit < receiver.total
        if pending or reopened:
            return ACK_EVERY_US
        return ACK_AGAIN_US

    def wait(self, sink, span):
        """Dorme até vir um quadro, ou o cano lento voltar a aceitar, por até `span` µs."""
        self.poll.register(self.client.sock, select.POLLIN)
        if sink.backlog:
            self.poll.register(sink.fd, select.POLLOUT)
        self.poll.poll(span / 1000)
        if sink.backlog:
            self.poll.unregister(sink.fd)


# ---------------------------------------------------------------------------------------------
# 4. Client: a quem pedir
#
# O cabo não tem catálogo de máquinas. Diz-se OLÁ a todos (difusão), e quem serve responde EIS-ME,
# com um nonce de cada lado: deles sai o número da sessão, e um quadro de ontem não vale hoje. Todo
# pedido se repete até a resposta, cada vez com mais calma. O MAC e o MTU mudam com a interface no
# ar (Wi-Fi com MAC sorteado): leem-se de novo a cada procura.

# Fila do kernel: 130 ms de 1 Gbit/s enquanto o disco respira (bytes).
QUEUE_BYTES = 16 << 20
# Um pedido sem resposta se repete de tanto em tanto (µs).
ASK_US = 50_000
ASK_MAX_US = 400_000
# Depois do primeiro EIS-ME, `listar` ainda espera pelos outros (µs).
LISTEN_US = 300_000
# Bytes de uma mensagem, e quantos vão sem perguntar ao servidor o que ele aceita num quadro.
MESSAGE_MAX = 1 << 16
SHORT_TEXT = 128
# Bytes do nome de uma máquina no EIS-ME.
HOST_NAME_MAX = 64
# O tamanho e a data, num ABRE, de quem ainda não tem nada do arquivo.
NO_FILE = (0, 0)

# linux/sockios.h e linux/ethtool.h: o que move uma interface.
SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO = 3
# Onde o kernel diz que uma interface é de Wi-Fi.
NET_FOLDER = "/sys/class/net"

# O que um servidor oferece: o MAC dele, os dois nonces, o nome da máquina, o relógio dele no
# EIS-ME, e o nosso quando ele chegou.
Offer = collections.namedtuple("Offer", "mac client_nonce server_nonce name echo echoed")


def driver_of(sock, name) -> str:
    """O que move a interface, como o diz `ethtool -i`; "" se ela não diz."""
    import fcntl
    # struct ethtool_drvinfo: o pedido, e nele mesmo a resposta, que começa pelo nome.
    answer = array.array("B", struct.pack("I192x", ETHTOOL_GDRVINFO))
    pointer, _ = answer.buffer_info()
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", os.fsencode(name), pointer))
    return bytes(answer[4:36]).partition(b"\0")[0].decode("ascii", "replace")


class Client:
    """O socket, e a sessão do momento."""

    def __init__(self, args, sock):
        self.interface = args.interface
        self.verbose = args.verbose
        # Quanto procurar por um servidor, em segundos.
        self.search_s = args.espera
        self.sock = sock
        # Quem digitou sudo, ou None.
        self.user = drop_root()
        self.key = read_key(args.chave_arquivo)
        self.seal_size, self.seal = make_seal(self.key)
        # O MAC que --servidor diz: só ele serve. O de quem se escolheu pode mudar.
        self.wanted = args.servidor
        self.target = args.servidor
        # Com quem se fala, e o nome da máquina dele.
        self.server = None
        self.server_name = ""
        # O número da sessão; 0 é nenhuma.
        self.number = 0
        self.look()

    def look(self):
        """Lê de novo a interface, e o que cabe num quadro dela. Levanta Failure se sumiu."""
        try:
            interface = read_interface(self.sock)
        except OSError as error:
            raise self.lost(error) from None
        if interface.mtu < MTU_MIN:
            raise Failure(explain_interface(self.interface, interface))
        self.carrier = has_carrier(interface.flags)
        self.mac = interface.mac
        self.mtu = interface.mtu
        # Bytes de dados num quadro: o MTU não conta o que vem antes do tipo.
        self.room = min(self.mtu - (HEADER.size - KIND_AT) - self.seal_size, 0xFFFF)
        # Quadros na fila: o kernel cobra de cada um mais do que os bytes dele.
        space = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.queue = space // (2 * self.mtu + 1024)
        # Blocos que se guardam fora de ordem; o bitmap deles vai numa CONFIRMA só.
        bitmap = (self.room - LAYOUT[ACK].size) * 8
        self.capacity = min(WINDOW_BLOCKS, WINDOW_BYTES // self.room, bitmap)
        self.buffer = memoryview(bytearray(self.mtu + KIND_AT))

    def hear_only(self, session=None):
        """Só o que vem de um servidor e, se dita, nesta sessão. Failure se a interface sumiu."""
        try:
            attach_filter(self.sock, FROM_SERVER, session)
        except OSError as error:
            raise self.lost(error) from None

    def lost(self, error):
        """A Failure de quem ficou sem interface."""
        return Failure(f"a interface {self.interface} sumiu ({reason(error)}). "
                       "Veja as outras: ip -br link")

    # Um quadro.

    def send(self, kind, block=0, payload=b""):
        """Envia um quadro desta sessão; se ele não sai, é como se o fio o perdesse."""
        frame = pack_frame(self.seal, self.server, self.mac, kind,
                           self.number, block, clock(), payload)
        if self.verbose:
            print(describe("->", frame), file=sys.stderr)
        try:
            self.sock.send(frame)
        except OSError as error:
            self.excuse(error)

    def excuse(self, error):
        """Fila vazia ou cheia, interface desligada: passam, e o pedido se repete.

        MTU encolhido: lê-se de novo. O resto é o fim.
        """
        if error.errno == errno.EMSGSIZE:
            self.look()
        elif error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN):
            raise self.lost(error)

    def check(self, data):
        """O quadro conferido, ou None se não é para nós. Levanta Failure se é um ERRO."""
        try:
            frame = unpack_frame(self.seal, data)
        except ProtocolError:
            return None
        if frame.target != self.mac:
            return None
        if self.number and (frame.session, frame.source) != (self.number, self.server):
            return None
        if self.verbose:
            print(describe("<-", data), file=sys.stderr)
        if frame.kind == ERROR and self.number:
            unknown = "o servidor respondeu com um erro desconhecido"
            raise Failure(REASONS.get(frame.payload[0], unknown))
        return frame

    def frames(self, until):
        """Gera os quadros bons que chegarem até o instante `until`."""
        while clock() < until:
            left = max(until - clock(), 0) / 1e6
            if not wait_ready([self.sock], timeout=left):
                return
            try:
                size = self.sock.recv_into(self.buffer)
            except OSError as error:
                self.excuse(error)
                continue
            frame = self.check(self.buffer[:size])
            if frame:
                yield frame

    def ask(self, kind, block=0, payload=b""):
        """Repete um pedido até a resposta dele. Levanta Silence se ela não vem."""
        until = clock() + SILENCE_US
        patience = ASK_US
        while clock() < until:
            self.send(kind, block, payload)
            if len(payload) > self.room:
                raise Failure(f"o MTU de {self.interface} encolheu: repita o comando")
            for frame in self.frames(clock() + patience):
                if (frame.kind, frame.block) == (kind | FROM_SERVER, block):
                    return frame
            patience = min(patience * 2, ASK_MAX_US)
        raise Silence(GONE)

    # Achar um servidor.

    def find(self, everyone=False):
        """Diz OLÁ até responderem, e devolve as ofertas. Levanta Failure se ninguém responde."""
        self.close()
        _, self.seal = make_seal(self.key)
        self.hear_only()
        nonce = os.urandom(16)
        found = {}
        turn = 0
        until = clock() + int(self.search_s * 1e6)
        while clock() < until and (everyone or not found):
            self.look()
            self.say_waiting(turn, found)
            self.server = self.callee(turn)
            self.send(HELLO, 0, LAYOUT[HELLO].pack(nonce, self.mtu))
            pause = min(ASK_US << turn, ASK_MAX_US)
            for offer in self.offers(nonce, min(clock() + pause, until)):
                found[offer.mac] = offer
                if not everyone:
                    break
            if found:
                until = min(until, clock() + LISTEN_US)
            turn += 1
        if not found:
            raise Failure(self.explain_nobody())
        return sorted(found.values())

    def callee(self, turn):
        """A quem dizer OLÁ.

        Quem se escolheu pode ter mudado de MAC: uma vez sim, outra não, diz-se a todos.
        """
        if self.target is None or self.wanted is None and turn % 2:
            return BROADCAST
        return self.target

    def offers(self, nonce, until):
        """Os EIS-ME que respondem a este OLÁ: com outro MAC, só o que tem o nome do escolhido."""
        for frame in self.frames(until):
            if frame.kind != WELCOME:
                continue
            mine, theirs, name = unpack_body(WELCOME, frame.payload)
            if mine != nonce or frame.session != session_of(b"", mine, theirs)[0]:
                continue
            host = os.fsdecode(name[:HOST_NAME_MAX])
            if self.target in (None, frame.source) or host == self.server_name:
                yield Offer(frame.source, mine, theirs, host, frame.clock, clock())

    def say_waiting(self, turn, found):
        """Diz o que se espera: logo, se falta o fio; daqui a pouco, se falta quem responda."""
        if turn == 0 and not self.carrier:
            print(f"{self.interface} está sem conexão: confira o cabo, ou a rede Wi-Fi. Espero...",
                  file=sys.stderr)
        elif turn == 3 and not found:
            print(f"espero um servidor em {self.interface} por até {self.search_s:g} s...",
                  file=sys.stderr)

    def explain_nobody(self):
        """Por que ninguém respondeu, do mais provável, e o que fazer."""
        name = self.interface
        text = f"nenhum servidor respondeu em {name}"
        if not self.carrier:
            return f"{text}, que está sem conexão: confira o cabo, ou a rede Wi-Fi"
        if driver_of(self.sock, name) == "macvlan":
            text += (f". {name} é uma macvlan, que nunca ouve a interface de que nasceu: o "
                     "servidor tem de estar noutra macvlan dela, ou noutra máquina")
        if os.path.exists(f"{NET_FOLDER}/{name}/phy80211"):
            held = " ou reter as difusões: tente --servidor MAC,"
            # Com --servidor não é a difusão que falta.
            if self.wanted:
                held = ": tente"
            text += (f". Se há um no ar, o ponto de acesso pode isolar os clientes{held} um cabo, "
                     "ou o servidor do lado dele")
        text += (f". Suba um: sudo ./raw_server.py {name} "
                 "(se ele usa --chave-arquivo, aqui vai a mesma chave)")
        others = [other for _, other in socket.if_nameindex() if other != "lo"]
        if name == "lo" and others:
            words = [word for word in sys.argv[1:] if word != "lo"]
            right = shlex.join([others[0], *words])
            text += f". Em outra máquina? Por {others[0]}: sudo ./raw_client.py {right}"
        return text

    # A sessão.

    def enter(self, offer):
        """Passa à sessão que um servidor ofereceu."""
        self.server = offer.mac
        self.server_name = offer.name
        # O relógio dele no EIS-ME, e o nosso quando ele chegou: o ABRE os devolve (eco, espera).
        self.echo = offer.echo
        self.echoed = offer.echoed
        # Daqui em diante, só ele: noutro, o mesmo nome pode ser outro filme.
        self.target = self.server
        self.number, key = session_of(self.key, offer.client_nonce, offer.server_nonce)
        # Partes de texto que foram, que vieram, e a mensagem que vem vindo.
        self.said = 0
        self.heard = 0
        self.inbox = bytearray()
        # Bytes de texto que os dois lados levam num quadro; None: ainda não se perguntou.
        self.carried = None
        _, self.seal = make_seal(key)
        self.hear_only(self.number)

    def close(self):
        """Sai da sessão, se há uma.

        O FIM não tem resposta: vão dois, e se os dois se perdem ela acaba por silêncio.
        """
        if self.number:
            self.send(BYE)
            self.send(BYE)
        self.number = 0

    def open(self, name, offset=0, identity=NO_FILE, free=NO_LIMIT, window=None):
        """ABRE um arquivo, desde `offset` se ele ainda é o mesmo; devolve a Transfer dele.

        identity: (tamanho, data) do que já se tem; free: bytes que cabem no disco; window: blocos
        que se aceitam.
        """
        if window is None:
            window = self.capacity
        held = clock() - self.echoed
        request = LAYOUT[OPEN].pack(offset, *identity, free, self.queue, window, self.echo, held)
        request += name
        if len(request) > self.room:
            raise Failure(f"o nome não cabe num quadro de {self.mtu} bytes")
        card = self.ask(OPEN, 0, request).payload
        return Transfer(self, request, unpack_body(CARD, card))

    def fetch(self, name, sink, title=""):
        """Um arquivo inteiro, desde o começo, para um destino que não se retoma."""
        transfer = self.open(name)
        transfer.run(sink, title)
        self.close()
        if transfer.digest != sink.hash.digest():
            raise Failure("o SHA-256 não confere com o do servidor: o que chegou está errado. "
                          "Repita o comando")

    # Conversar.

    def say(self, text):
        """Envia uma mensagem, parte por parte: cada uma é um pedido, e o recibo é a resposta."""
        size = len(text.encode("utf-8", "replace"))
        if size > MESSAGE_MAX:
            raise Failure(f"uma mensagem leva até {MESSAGE_MAX} bytes; "
                          "para mais do que isso há o baixar")
        # O MTU pode ter mudado desde a mensagem anterior.
        self.look()
        for part in split_text(text, self.text_room(size)):
            self.ask(TEXT, self.said, part)
            self.said += 1

    def text_room(self, size):
        """Quantos bytes de texto os dois lados levam num quadro.

        O MTU do servidor está na FICHA: pergunta-se com um arquivo de que não se aceita bloco.
        """
        if size < SHORT_TEXT:
            return self.room
        if self.carried is None:
            self.carried = self.open(ZEROS_NAME, window=0).block
        return min(self.room, self.carried)

    def listen(self):
        """Busca o que o servidor tem a dizer, e mostra cada mensagem completa."""
        more = MORE
        while more != NOTHING:
            more, piece = unpack_body(SPEECH, self.ask(FETCH, self.heard).payload)
            if more != NOTHING:
                self.heard += 1
            self.inbox = (self.inbox + piece)[:MESSAGE_MAX]
            if more == LAST:
                said = escape(self.inbox.decode("utf-8", "replace"))
                print(f"{self.server.hex(':')} diz: {said}", flush=True)
                self.inbox = bytearray()


# ---------------------------------------------------------------------------------------------
# 5. Progress: os comandos
#
# Cada comando é uma função do cliente e do que se digitou: mostra o catálogo, baixa, conversa ou
# mede. O que se baixa só ganha o nome final se o SHA-256 confere; um servidor que se cala no meio é
# procurado outra vez, e a cópia continua de onde está.

# Sessões seguidas sem um byte a mais, e `baixar` desiste.
EMPTY_MAX = 5
WRONG_MTU = "Veja (ip link) se o MTU é o mesmo nas duas máquinas e no que há entre elas"
# `mensagem` busca o que o servidor diz de tanto em tanto (µs).
FETCH_US = 200_000
# A barra se redesenha de tanto em tanto (µs).
BAR_US = 100_000
# O maior segundo que se mostra como data; além dele strftime não vai em todo sistema.
DATE_MAX_S = 2**32
# tamanho, data em nanossegundos (um servidor pode dizer 20 algarismos), nome.
ENTRY = re.compile(rb"(\d{1,20}) (-?\d{1,20}) ([^\0]+)\0")


class Progress:
    """Barra, taxa e tempo que falta, em stderr; calada se ele não é um terminal."""

    def __init__(self, title, sink, size):
        self.title = escape(title)
        self.sink = sink
        self.size = size
        # De onde se retomou.
        self.first = sink.size
        self.began = clock()
        # Quando se mostrou, ou None se não se mostra.
        self.shown = None
        if title and sys.stderr.isatty():
            self.shown = self.began

    def show(self, now):
        """Redesenha a barra, se já é hora, na largura que o terminal tem agora."""
        if self.shown is None or now - self.shown < BAR_US:
            return
        self.shown = now
        done = self.sink.size
        # Bytes por µs: MB/s.
        rate = (done - self.first) / (now - self.began)
        share = done / max(self.size, 1)
        left = ""
        if rate:
            left = f"faltam {(self.size - done) / rate / 1e6:.0f} s"
        bar = "#" * int(24 * share)
        line = f"{self.title[:24]} {share:4.0%} [{bar:.<24}] {rate:.1f} MB/s {left}"
        width = os.get_terminal_size(2).columns or 80
        print("\r" + line[:width - 1], end="\x1b[K", file=sys.stderr, flush=True)

    def close(self):
        """Apaga a barra: a linha é de quem vier depois."""
        if self.shown:
            # Num terminal parado (Ctrl+S), ela fica lá: o fim do programa não espera por ele.
            with last_words():
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def human(size):
    """Tamanho legível: 1.5 GiB."""
    power = min((max(size, 1).bit_length() - 1) // 10, 3)
    if power == 0:
        return f"{size} B"
    return f"{size / 1024 ** power:.1f} {' KMG'[power]}iB"


def show_catalog(client, offer, numbered=False):
    """Mostra o catálogo de um servidor, e devolve os nomes; numerado, para se escolher no menu."""
    client.enter(offer)
    sink = Memory()
    client.fetch(CATALOG_NAME, sink)
    # O que não tem a forma de uma linha do catálogo não é linha.
    entries = ENTRY.findall(sink.data)
    print(f"{client.server.hex(':')} {escape(client.server_name)}: {len(entries)} arquivo(s)")
    names = []
    for size, date, name in entries:
        names.append(os.fsdecode(name))
        seconds = min(max(int(date) // 10**9, 0), DATE_MAX_S)
        day = time.strftime("%Y-%m-%d", time.localtime(seconds))
        at = ""
        if numbered:
            at = f"{len(names):4} "
        print(f"{at}{human(int(size)):>10}  {day}  {escape(names[-1])}")
    return names


def list_all(client, args):
    """listar: o catálogo de cada servidor que responde. O que um não diz não esconde os outros."""
    problems = []
    for offer in client.find(everyone=True):
        client.target = offer.mac
        try:
            # O tempo gasto com quem calou não deixa valer a oferta dos outros: pede-se outra.
            if problems:
                offer = client.find()[0]
            show_catalog(client, offer)
        except (Failure, ProtocolError) as error:
            problems.append(f"{client.target.hex(':')}: {error}")
    if problems:
        raise Failure("; ".join(problems))


def local_name(args):
    """Onde gravar: -o, ou o fim do nome pedido, que não sobe de pasta. Levanta Failure."""
    target = args.saida or escape(os.path.basename(args.word))
    other, swap = "-o ARQUIVO", " Um arquivo se troca com --sobrescrever."
    # No menu não há onde digitar uma opção.
    if args.action is menu:
        other, swap = "b N ARQUIVO", ""
    if not args.saida and target[:1] in ("", "."):
        raise Failure(f"de {escape(args.word)!r} não sai um bom nome de arquivo. "
                      f"Escolha um: {other}")
    # Nunca um filme no lugar de /dev/null, nem de uma pasta.
    replaceable = args.sobrescrever and os.path.isfile(target)
    if os.path.lexists(target) and not replaceable:
        raise Failure(f"{target} já existe.{swap} Outro lugar se dá com {other}")
    return target


def download(client, args):
    """baixar: até o fim, ou até onde der; o que já veio espera pelo mesmo comando."""
    if args.saida == "-":
        download_to_pipe(client, args)
        return
    target = local_name(args)
    with contextlib.closing(Partial(target)) as sink:
        try:
            digest = download_all(client, args.word, sink)
        except KeyboardInterrupt:
            # Do arquivo: entre o pwrite() e a nossa conta dele também cabe um Ctrl+C.
            say_kept(sink.path, os.fstat(sink.fd).st_size)
            raise
        if digest != sink.hash.digest():
            sink.discard()
            raise Failure("o SHA-256 não confere com o do servidor, e apaguei a cópia. "
                          "Repita o comando")
        sink.finish(args.sobrescrever)
    print(f"{target}: {human(sink.size)}, SHA-256 confere", file=sys.stderr)


def say_kept(path, size):
    """O que já veio não se perdeu: diz onde está, e como continuar."""
    if size:
        with last_words():
            print(f"{human(size)} em {path}: o mesmo comando continua dali", file=sys.stderr)


def download_all(client, name, sink):
    """Tantas sessões quantas forem precisas; devolve o SHA-256 que o servidor diz."""
    reached = 0
    tries = 0
    while True:
        digest = download_session(client, name, sink)
        if digest:
            return digest
        tries += 1
        if sink.size != reached:
            tries = 0
        reached = sink.size
        if tries == EMPTY_MAX:
            raise Failure(f"o servidor responde, mas nenhum bloco chega. {WRONG_MTU}")
        print("o servidor calou: procuro por ele para continuar", file=sys.stderr)


def download_session(client, name, sink):
    """Uma sessão de cópia, desde onde o parcial está: o SHA-256, ou None se o servidor calou."""
    try:
        client.enter(client.find()[0])
    except Failure:
        say_kept(sink.path, sink.size)
        raise
    before = sink.size
    try:
        transfer = client.open(os.fsencode(name), sink.size, sink.identity, sink.free())
        sink.begin(transfer.offset, (transfer.size, transfer.date))
        if transfer.offset:
            print(f"continuo de {human(transfer.offset)}", file=sys.stderr)
        elif before:
            print("o arquivo mudou no servidor: do zero", file=sys.stderr)
        transfer.run(sink, name)
        return transfer.digest
    except Silence:
        return None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise Failure("o disco encheu. Libere espaço e repita o comando: "
                      f"{sink.path} continua dali") from None


def download_to_pipe(client, args):
    """baixar -o -: o filme vai à saída padrão, e de lá a outro programa."""
    if os.isatty(1):
        raise Failure("um filme no terminal só faz barulho: mande-o a um programa (| mpv -) "
                      "ou a um arquivo")
    client.enter(client.find()[0])
    blocking = os.get_blocking(1)
    try:
        client.fetch(os.fsencode(args.word), Pipe(1), args.word)
    finally:
        # O cano pode ser de outros também.
        os.set_blocking(1, blocking)


def measure(client, args):
    """medir: zeros, por alguns segundos, e as contas dos dois lados."""
    span = int(args.word * 1e6)
    client.enter(client.find()[0])
    transfer = client.open(ZEROS_NAME)
    sink = Sink(span)
    transfer.run(sink, until=sink.began + span)
    card = client.ask(OPEN, 0, transfer.request).payload
    *_, sent, again, trip, least, _ = unpack_body(CARD, card)
    if not sink.bars:
        raise Failure(f"em {args.word:g} s não chegou bloco nenhum. {WRONG_MTU}")
    for at in range(BARS):
        bar = "#" * round(40 * sink.bars[at] / max(sink.bars.values()))
        # Bits por µs: Mbit/s.
        rate = sink.bars[at] * 8 / (span / BARS)
        print(f"{(at + 1) * args.word / BARS:6.2f} s {bar:40} {rate:8.1f} Mbit/s")
    useful = transfer.receiver.next * transfer.block / span
    print(f"útil: {useful * 8:.1f} Mbit/s ({useful:.1f} MB/s), em blocos de {transfer.block} B")
    print(f"volta: {trip / 1000:.2f} ms (a menor, {least / 1000:.2f}); "
          f"quadros: {sent}, repetidos: {again} ({again / max(sent, 1):.2%})")


def message(client, args):
    """mensagem: envia o que se escreve e mostra o que o operador do servidor responde."""
    client.enter(client.find()[0])
    if args.word is not None:
        client.say(args.word)
        # Num cano, ou num script, basta o estado de saída.
        if sys.stderr.isatty():
            print("entregue", file=sys.stderr)
        return
    if sys.stdin.isatty():
        print("escreva e tecle Enter; Ctrl+D termina", file=sys.stderr)
    typed_bytes = bytearray()
    reading = True
    while reading:
        piece = None
        if wait_ready([0], timeout=FETCH_US / 1e6):
            piece = read_input()
        if piece is not None:
            reading = bool(piece)
            typed_bytes += piece
        say_lines(client, typed_bytes, at_end=not reading)
        client.listen()


def read_input():
    """O que veio pela entrada padrão: b"" no fim dela, None se ainda não há nada.

    Levanta Failure se ela não se deixa ler.
    """
    try:
        return os.read(0, 1 << 16)
    except BlockingIOError:
        # Um terminal, ou um cano, que outro programa deixou O_NONBLOCK.
        return None
    except OSError as error:
        raise Failure(f"não consigo ler a entrada padrão: {reason(error)}") from None


def read_line():
    """Uma linha do terminal, sem o fim dela; None no fim da entrada."""
    piece = None
    while piece is None:
        wait_ready([0])
        piece = read_input()
    if not piece:
        return None
    return piece.decode("utf-8", "replace").strip()


def say_lines(client, typed_bytes, at_end):
    """Envia, e tira de `typed_bytes`, cada linha inteira; no fim, também a que não acabou."""
    # A que não acaba, e já passa do limite, também vai: é say() quem a recusa.
    least = 0 if at_end else MESSAGE_MAX
    while b"\n" in typed_bytes or len(typed_bytes) > least:
        line, _, rest = typed_bytes.partition(b"\n")
        typed_bytes[:] = rest
        client.say(line.decode("utf-8", "replace"))


def menu(client, args):
    """menu: o catálogo numerado, e uma letra para cada coisa."""
    if not sys.stdin.isatty():
        raise Failure("sem terminal não há menu. "
                      "Diga um comando: listar, baixar, tocar, mensagem ou medir")
    trouble = ""
    while True:
        names = show_catalog(client, client.find()[0], numbered=True)
        # O erro por último: um catálogo comprido o empurraria para fora da tela.
        if trouble:
            print(trouble, file=sys.stderr)
        print("b N: baixar   t N: tocar   m: mensagem   s: sair > ", end="", flush=True)
        line = read_line()
        if line is None:
            # Ctrl+D deixou o terminal no meio da linha.
            print()
        if line in (None, "s"):
            return
        trouble = obey(client, args, names, line)


def is_listed(number, names):
    return number.isdecimal() and 0 < int(number) <= len(names)


def obey(client, args, names, line):
    """Uma linha do menu; devolve o que dizer se não deu certo."""
    letter, _, rest = line.partition(" ")
    number, _, other = rest.strip().partition(" ")
    actions = {"b": download, "t": play}
    try:
        if letter == "m":
            args.word = rest or None
            message(client, args)
        elif letter in actions and is_listed(number, names):
            args.word = names[int(number) - 1]
            args.saida = other.strip() or None
            actions[letter](client, args)
        elif is_listed(letter, names):
            return f"para esse, digite b {letter} (baixar) ou t {letter} (tocar)"
        elif letter:
            return "não entendi: é b ou t com um número da lista, m ou s"
    except Failure as failure:
        return f"erro: {failure}"
    return ""


# ---------------------------------------------------------------------------------------------
# 6. IndexFirst: tocar enquanto chega
#
# Um tocador lê de um cano, do começo ao fim. Um MP4 é uma fila de caixas (tamanho, tipo, corpo), e
# celulares e o ffmpeg gravam a do índice (moov) depois da imagem (mdat): do cano ele só sairia no
# fim. O servidor dá qualquer ponto do arquivo: busca-se o fim primeiro, e põe-se o índice na
# frente, com os endereços empurrados (ISO/IEC 14496-12: moov, stco e co64), como faria no servidor
# ffmpeg -movflags +faststart.

# Bytes do começo que bastam para ver onde fica a imagem; e o maior índice que se guarda.
HEAD_BYTES = 4096
INDEX_MAX = 64 << 20
# As caixas que podem vir antes da imagem; as que têm outras dentro; as que têm endereços.
BEFORE_MDAT = (b"ftyp", b"free", b"skip", b"wide", b"uuid", b"pdin")
HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
OFFSETS = {b"stco": ("I", 4), b"co64": ("Q", 8)}

# Como cada tocador lê da entrada padrão. Sem janela, o VLC leria dela os comandos do seu console,
# e o filme seria um: --intf=dummy não deixa. O mpv não abre janela à força: sem placa de vídeo ele
# não tocaria nem o som.
PLAYERS = {
    "mpv": ["-"],
    "ffplay": ["-autoexit", "-loglevel", "error", "-i", "-"],
    "vlc": ["--intf=dummy", "--play-and-exit", "-"],
    "cvlc": ["--intf=dummy", "--play-and-exit", "-"],
}
# Os nomes do VLC: cada interface dele tem o seu, e o Flatpak, outro.
VLC = re.compile(r"([cnqrs]|org\.videolan\.)?vlc", re.IGNORECASE)
# Quanto um tocador tem para acabar depois que lhe pedem (s).
PLAYER_S = 2
# Antes disto (s) não se viu filme nenhum: do que não entendem, o VLC e o ffplay saem com estado 0.
PLAYED_S = 3


def walk_boxes(data: bytes, at: int, end: int):
    """Gera (tipo, começo, corpo, fim) de cada caixa de `at` a `end`, com o corpo todo aqui ou não.

    Levanta ValueError se os bytes não são caixas.
    """
    while at + 8 <= end:
        size, kind = struct.unpack_from("!I4s", data, at)
        body = at + 8
        # 1: o tamanho tem 64 bits e vem em seguida; 0: vai até o fim do arquivo.
        if size == 1 and at + 16 <= len(data):
            size, = struct.unpack_from("!Q", data, at + 8)
            body = at + 16
        elif size == 0:
            size = end - at
        if size < body - at:
            raise ValueError("caixa impossível")
        yield kind, at, body, at + size
        at += size


def find_tail(head: bytes, size: int) -> int:
    """Onde acaba a imagem de um MP4 que não traz antes dela o índice; 0 se toca como está.

    head: o começo do arquivo; size: o tamanho dele inteiro.
    """
    with contextlib.suppress(ValueError):
        for kind, at, body, end in walk_boxes(head, 0, len(head)):
            if kind == b"mdat" and end < size:
                return end
            if kind not in BEFORE_MDAT:
                break
    return 0


def find_image(head: bytes) -> int:
    """Onde começa a caixa mdat, que find_tail() já viu."""
    return next(at for kind, at, _, _ in walk_boxes(head, 0, len(head)) if kind == b"mdat")


def find_index(tail: bytes) -> tuple:
    """(começo, fim) da caixa moov no fim de um arquivo. Levanta ValueError se não está lá."""
    for kind, at, _, end in walk_boxes(tail, 0, len(tail)):
        if kind == b"moov" and end <= len(tail):
            return at, end
    raise ValueError("não há índice (moov)")


def move_index(index: bytes, limit: int) -> bytes:
    """O índice, para quem o lê antes da imagem: cada endereço anda o tamanho dele.

    limit: o fim da imagem; um endereço além dele não é de uma imagem que se entregue.
    Levanta ValueError se não se pode.
    """
    moved = bytearray(index)
    todo = [(0, len(index))]
    found = 0
    while todo:
        for kind, _, body, end in walk_boxes(index, *todo.pop()):
            if end > len(index):
                raise ValueError("índice cortado")
            if kind in HOLDERS:
                todo.append((body, end))
            elif kind in OFFSETS:
                move_offsets(moved, kind, body, end, limit)
                found += 1
    if not found:
        raise ValueError("índice sem endereços")
    return bytes(moved)


def move_offsets(index, kind, body, end, limit):
    """Soma o tamanho do índice a cada endereço de uma caixa stco ou co64, no lugar."""
    letter, width = OFFSETS[kind]
    # Versão e opções (4 bytes), quantos são (4), e eles.
    if body + 8 > end:
        raise ValueError("índice cortado")
    count, = struct.unpack_from("!I", index, body + 4)
    if body + 8 + count * width > end:
        raise ValueError("índice cortado")
    table = struct.Struct(f"!{count}{letter}")
    offsets = table.unpack_from(index, body + 8)
    if max(offsets, default=0) >= limit:
        raise ValueError("imagem em mais de um lugar")
    shifted = [offset + len(index) for offset in offsets]
    if max(shifted, default=0) >= 1 << 8 * width:
        raise ValueError("o arquivo não cabe em endereços de 32 bits")
    table.pack_into(index, body + 8, *shifted)


class IndexFirst(Pipe):
    """Um cano que põe o índice antes da imagem: entram os bytes do arquivo, na ordem dele."""

    def __init__(self, fd, at, index, end):
        super().__init__(fd)
        # Onde, no arquivo, entra o índice; o índice; e o fim da imagem, onde o resto já não serve.
        self.at = at
        self.index = index
        self.end = end

    def write(self, pieces):
        """Confere o arquivo como ele é, e entrega-o na ordem que serve ao tocador."""
        data = memoryview(b"".join(pieces))
        self.hash.update(data)
        for part in self.arrange(self.size, data):
            self.push(part)
        self.size += len(data)

    def arrange(self, start, data):
        """O que o tocador recebe pelos bytes que no arquivo começam em `start`."""
        before = max(self.at - start, 0)
        useful = max(self.end - start, 0)
        parts = [data[:min(before, useful)]]
        if start <= self.at < start + len(data):
            parts.append(memoryview(self.index))
        parts.append(data[before:useful])
        return parts


def read_part(client, name, wanted=None, offset=0, identity=NO_FILE):
    """Um pedaço de um arquivo do servidor: (a Transfer, os bytes).

    wanted: quantos bytes, desde `offset`; None: até o fim. Levanta Failure se o arquivo mudou.
    """
    client.enter(client.find()[0])
    transfer = client.open(name, offset, identity)
    sink = Memory(wanted)
    if transfer.offset != offset:
        raise Failure(REASONS[CHANGED])
    transfer.run(sink, check=False)
    client.close()
    return transfer, bytes(sink.data)


def choose_pipe(client, name, fd):
    """O cano que convém a este filme. Levanta Failure se nenhum o faria tocar."""
    whole, head = read_part(client, name, HEAD_BYTES)
    end = find_tail(head, whole.size)
    if not end:
        return Pipe(fd)
    try:
        if whole.size - end > INDEX_MAX:
            raise ValueError("o resto é grande demais")
        identity = whole.size, whole.date
        _, tail = read_part(client, name, whole.size - end, end, identity)
        start, stop = find_index(tail)
        index = move_index(tail[start:stop], end)
    except ValueError as error:
        shown = escape(os.fsdecode(name))
        raise Failure(f"{shown} tem o índice no fim, e não sei pô-lo na frente ({error}). Baixe, e "
                      f"toque a cópia: ./raw_client.py {client.interface} baixar "
                      f"{shlex.quote(shown)}") from None
    return IndexFirst(fd, find_image(head), index, end)


def player_command(words):
    """O comando do tocador: o que se pediu, ou o primeiro que há. Levanta Failure."""
    choices = [words] if words else [[name] for name in PLAYERS]
    command = next((choice for choice in choices if shutil.which(choice[0])), None)
    if command is None:
        tried = ", ".join(choice[0] for choice in choices)
        raise Failure(f"não achei tocador ({tried}). Instale: sudo apt install mpv")
    # O conhecido pode vir depois de um env, um nice, um xvfb-run: as opções são as que o seguem.
    at = next((at for at, word in enumerate(command) if usual_options(word)), None)
    if at is None:
        refuse_script(command)
        return command
    known = usual_options(command[at])
    options = command[at + 1:]
    if not options:
        return command + known
    if options[-1] != "-":
        # Sem o "-", um tocador conhecido não lê do cano.
        options.append("-")
    if known[:1] == ["--intf=dummy"]:
        # A última vale: nem um --intf de antes entrega o filme ao console.
        options.insert(len(options) - 1, known[0])
    return command[:at + 1] + options


def usual_options(word):
    """As opções com que este tocador lê do cano; nenhuma, se não é um dos conhecidos."""
    name = os.path.basename(word)
    if VLC.fullmatch(name):
        name = "vlc"
    return PLAYERS.get(name, [])


def refuse_script(command):
    """Num `sh -c 'vlc -'` não há onde pôr o --intf=dummy: que o ponha quem escreveu. Failure."""
    for line in command[1:]:
        names = any(VLC.fullmatch(os.path.basename(word)) for word in line.split())
        if names and "dummy" not in line:
            raise Failure(f"o VLC leria o filme como comandos do seu console. Em vez de {line!r}, "
                          "sem o sh -c: --player 'vlc -'; ou com --intf=dummy nele")


@contextlib.contextmanager
def running(command, user):
    """Um tocador que lê do cano; no fim, seja qual for, não sobra nenhum."""
    env = dict(os.environ)
    # Quem toca é quem digitou sudo: com as preferências e o som dele.
    if user:
        env.update(HOME=user.pw_dir, XDG_RUNTIME_DIR=f"/run/user/{user.pw_uid}")
    player = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, env=env)
    try:
        yield player
        player.stdin.close()
        player.wait()
    finally:
        player.stdin.close()
        if player.poll() is None:
            player.terminate()
            try:
                player.wait(PLAYER_S)
            except subprocess.TimeoutExpired:
                player.kill()
                player.wait()


def play(client, args):
    """tocar: o filme vai ao tocador enquanto chega. Sem barra: o terminal é dele."""
    command = player_command(args.player)
    name = os.fsencode(args.word)
    closed = False
    with running(command, client.user) as player:
        sink = choose_pipe(client, name, player.stdin.fileno())
        client.enter(client.find()[0])
        began = clock()
        try:
            client.fetch(name, sink)
        except BrokenPipeError:
            closed = True
    lasted = (clock() - began) / 1e6
    if player.returncode:
        raise Failure(f"o tocador {command[0]} acabou com o estado {player.returncode}: "
                      "não tocou, ou não até o fim")
    known = any(map(usual_options, command))
    if lasted < PLAYED_S and (closed or known):
        raise Failure(f"o tocador {command[0]} acabou em {lasted:.1f} s, com estado 0: não deve "
                      "ter tocado nada. O arquivo é mesmo um filme?")
    if closed:
        print("o tocador fechou antes do fim", file=sys.stderr)


# ---------------------------------------------------------------------------------------------
# 7. ProtocolError: o quadro
#
# O fio enche até 60 bytes o que é curto, e vira bits. Por isso cada quadro diz o seu tamanho, leva
# um selo (CRC-32 ou, com chave, BLAKE2b, RFC 7693) e o número da sessão. O que não confere levanta
# ProtocolError, e quem recebe segue como se ele não tivesse vindo. Este bloco é igual no servidor.

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

# O que dizer de cada código de ERRO.
REASONS = {
    GENERAL: "o servidor não conseguiu atender ao pedido",
    NOT_FOUND: "não existe no servidor: veja com listar",
    DENIED: "o servidor nega o acesso (só serve arquivos comuns abaixo da pasta dele)",
    TOO_BIG: "é maior do que o espaço livre deste disco",
    CHANGED: "o arquivo mudou no servidor durante a cópia: repita o comando",
    FULL: "o servidor está lotado: tente daqui a pouco, ou suba-o com --max-clientes maior",
}


# ---------------------------------------------------------------------------------------------
# Em volta: o enlace
#
# O socket AF_PACKET (packet(7)) só existe para root, e root só serve para abri-lo. Em lo cada um
# ouve também o que ele mesmo disse: o filtro não deixa.

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
# Em volta: a casa
#
# O que todos os scripts desta coleção têm igual: o erro de uma linha, o fim, a linha de comando.

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


class Silence(Failure):
    """O servidor calou: caiu, ou o cabo caiu. Pode voltar."""


# ---------------------------------------------------------------------------------------------
# Em volta: a linha de comando
#
# [INTERFACE] [COMANDO [ARGUMENTO]], com as opções onde estiverem. Cada comando é um parser, e a
# ajuda dele só mostra as opções dele.

def loose_words(argv, flags):
    """Os índices das palavras que não são opção nem valor de opção.

    flags: opção -> pede valor?
    """
    loose = []
    is_value = False
    for at, word in enumerate(argv):
        if word == "--" and not is_value:
            return loose + list(range(at + 1, len(argv)))
        if is_value:
            is_value = False
        elif word == "-" or not word.startswith("-"):
            loose.append(at)
        elif "=" not in word:
            is_value = any(flags[flag] for flag in match_flags(word, flags))
    return loose


def put_together(loose, options):
    """A linha como o argparse a lê em qualquer versão: as palavras soltas antes, se ele deixa."""
    if any(word.startswith("-") and word != "-" for word in loose):
        return [*options, "--", *loose]
    return [*loose, *options]


def match_flags(word, flags):
    """As opções que uma palavra pode ser: o argparse aceita uma longa abreviada."""
    option = word.partition("=")[0]
    if option.startswith("--"):
        return [flag for flag in flags if flag.startswith(option)]
    return [flag for flag in flags if flag == option]


class CommandLine(Parser):
    """O parser de fora: acha a interface e o comando, e passa o resto ao parser do comando."""

    def flags(self):
        """Opção -> pede valor?, de todos os comandos."""
        known = {}
        for parser in (self, *self.commands.values()):
            for action in parser._actions:
                known.update(dict.fromkeys(action.option_strings, action.nargs != 0))
        return known

    def parse_args(self, argv=None, namespace=None):
        """Tira a interface e o comando de onde estão; o resto é do parser do comando."""
        words = list(sys.argv[1:])
        if argv is not None:
            words = list(argv)
        loose = loose_words(words, self.flags())
        said = [words[at] for at in loose]
        options = [word for at, word in enumerate(words) if at not in loose and word != "--"]
        interface = "lo"
        told = bool(said) and said[0] not in self.commands
        if told:
            interface = said.pop(0)
        if not said:
            # Sem comando: a ajuda de todos, ou o menu.
            if {"-h", "--help", "--version"} & set(options):
                super().parse_args(options)
            said = ["menu"]
        name, *rest = said
        if name not in self.commands:
            self.error(f"não conheço o comando {name!r}: use {', '.join(self.commands)}")
        parser = self.commands[name]
        self.check_options(parser, options)
        if not {"-h", "--help"} & set(options):
            self.check_words(parser, name, rest, told)
        args = parser.parse_args(put_together(rest, options))
        args.interface = interface
        return args

    def check_words(self, parser, name, rest, told):
        """Palavras a menos, ou a mais: talvez a interface, que vem antes do comando."""
        if parser.takes == "um" and not rest:
            parser.error(f"{name} pede um argumento: sudo ./raw_client.py {name} NOME")
        limit = int(parser.takes != "nenhum")
        if len(rest) <= limit:
            return
        problem = f"{name} não leva {rest[limit]!r}"
        if limit:
            problem = f"{name} leva um argumento só, e veio também {rest[limit]!r}"
        if not told:
            right = shlex.join([rest[-1], name, *rest[:limit]])
            problem += f". Uma interface vem antes do comando: sudo ./raw_client.py {right}"
        parser.error(problem)

    def check_options(self, parser, options):
        """As opções de um comando só valem com ele."""
        here = {flag for action in parser._actions for flag in action.option_strings}
        for word in options:
            found = set(match_flags(word, self.flags()))
            if word.startswith("-") and found and not here & found:
                self.error("-o e --sobrescrever só valem com baixar, e --player, com tocar")


def mac_address(text):
    """type= de --servidor: os seis bytes de um MAC."""
    if not re.fullmatch("([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} não é um MAC: são seis pares, como 02:00:00:00:00:01")
    return bytes.fromhex(text.replace(":", ""))


def film_name(text):
    """type= de NOME: o de um arquivo. O vazio e o "/" não são: pedem o catálogo, e os zeros."""
    if os.fsencode(text) in (CATALOG_NAME, ZEROS_NAME):
        raise argparse.ArgumentTypeError(f"{text!r} não é o nome de um arquivo: veja-os com listar")
    return text


def player_words(text):
    """type= de --player: as palavras do comando; erro se não há, ou se uma aspa não fecha."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words:
        raise argparse.ArgumentTypeError(f"{text!r} não é um comando: --player 'mpv --mute -'")
    return words


def add_common(parser, name):
    """As opções que valem com todos os comandos."""
    add = parser.add_argument
    whom = "todos" if name == "listar" else "o que responder antes"
    add("--servidor", type=mac_address, metavar="MAC", help=f"só este (padrão: {whom})")
    add("--espera", type=number(float, 0.1, 86400, "segundos"), default=10.0, metavar="S",
        help="quanto esperar por um servidor (padrão: 10)")
    add("--chave-arquivo", metavar="ARQUIVO", help="o mesmo arquivo de chave do servidor")
    add("--verbose", action="store_true", help="mostra cada quadro em stderr")


def add_command(parser, places, name, action, takes, text, usage=""):
    """Um comando: o parser dele, com o argumento que leva ("nenhum", "talvez" ou "um")."""
    command = places.add_parser(name, prog=f"{parser.prog} {name}", help=text,
                                description=text[0].upper() + text[1:] + ".")
    command.usage = f"{parser.prog} [INTERFACE] {name} {usage}".rstrip() + " [OPÇÕES]"
    command.takes = takes
    command.set_defaults(action=action, word=None, saida=None, sobrescrever=False, player=None)
    add_common(command, name)
    parser.commands[name] = command
    return command


def build_parser():
    """O parser de fora, e o de cada comando em parser.commands."""
    parser = CommandLine(
        usage="%(prog)s [INTERFACE] [COMANDO [ARGUMENTO]] [OPÇÕES]",
        description="Cliente de filmes sem IP: lista, baixa, toca, conversa e mede.",
        epilog="INTERFACE: lo, se não se diz outra. Sem COMANDO, o menu. As opções de cada um: "
               "./%(prog)s baixar --help. Precisa de sudo, ou CAP_NET_RAW. "
               "Antes, em outro terminal: sudo ./raw_server.py")
    parser.commands = {}
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}",
                        help="mostra a versão e sai")
    places = parser.add_subparsers(title="comandos", metavar="COMANDO", parser_class=Parser)

    def add(*words):
        return add_command(parser, places, *words)

    add("menu", menu, "nenhum", "o catálogo numerado, e uma letra para cada coisa")
    add("listar", list_all, "nenhum", "o catálogo de cada servidor que responde")
    command = add("baixar", download, "um", "baixa um arquivo, ou continua de onde parou", "NOME")
    command.add_argument("word", type=film_name, metavar="NOME",
                         help="como listar o mostra")
    command.add_argument("-o", dest="saida", metavar="ARQUIVO",
                         help="onde gravar (- é a saída padrão)")
    command.add_argument("--sobrescrever", action="store_true",
                         help="troca o arquivo que já existe")
    command = add("tocar", play, "um", "toca enquanto chega", "NOME")
    command.add_argument("word", type=film_name, metavar="NOME",
                         help="como listar o mostra")
    command.add_argument("--player", type=player_words, metavar="CMD",
                         help="o que lê da entrada padrão (mpv, ffplay, vlc)")
    command = add("mensagem", message, "talvez",
                  "conversa com o servidor; sem TEXTO, uma mensagem por linha", "[TEXTO]")
    command.add_argument("word", metavar="TEXTO", nargs="?", help="uma mensagem só")
    command = add("medir", measure, "talvez", "mede o enlace", "[SEGUNDOS]")
    command.add_argument("word", metavar="SEGUNDOS", nargs="?", default=3.0,
                         type=number(float, 0.1, 3600, "segundos"), help="quanto (padrão: 3)")
    return parser


def start(args):
    """Abre o socket enquanto ainda é root, e cumpre o comando como quem digitou sudo."""
    known = [name for _, name in socket.if_nameindex()]
    if args.action == menu and args.interface not in known:
        raise Failure(f"{escape(args.interface)!r} não é um comando (quais há: ./raw_client.py "
                      f"--help), nem uma interface desta máquina (há {', '.join(known)})")
    sock, _, _ = open_link(args.interface, FROM_SERVER, QUEUE_BYTES)
    with sock, contextlib.closing(Client(args, sock)) as client:
        try:
            return args.action(client, args)
        except ProtocolError as error:
            raise Failure(f"o servidor não segue o protocolo ({error})") from None


def main(argv=None):
    return run(build_parser, start, argv)


if __name__ == "__main__":
    end_process(main())
