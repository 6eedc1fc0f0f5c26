#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Os testes da coleção: sobem os scripts de verdade e conversam com eles.

    python3 -m unittest test_all                    # todos
    python3 -m unittest test_all.TestServidor       # uma classe
    python3 -m unittest test_all -v -k chat         # os que têm "chat" no nome

O vocabulário está em ScriptTestCase, e um teste se lê como uma conversa:

    server = self.spawn("servidor.py", "127.0.0.1", "0")   # porta 0: uma livre, lida da primeira linha
    conn = self.connect(server)
    conn.send(b"oi\\n")
    conn.expect(b"oi\\n")

Ninguém dorme à espera de um estado: toda espera é por um acontecimento e tem um cão de guarda (WATCHDOG_S) que só
decide quando o programa travou. O que esta máquina não sabe fazer é pulado, com o motivo.
"""
import argparse
import ast
import base64
import collections
import contextlib
import difflib
import errno
import fcntl
import filecmp
import functools
import hashlib
import heapq
import importlib.util
import io
import itertools
import json
import math
import os
import pathlib
import pwd
import py_compile
import queue
import random
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tokenize
import tracemalloc
import types
import unittest
from unittest import mock

try:
    import resource
except ImportError:  # Windows
    resource = None
try:
    import ssl
except ImportError:  # um Python compilado sem o OpenSSL
    ssl = None
needs_ssl = unittest.skipUnless(ssl, "este Python não tem o módulo ssl")

HERE = pathlib.Path(__file__).resolve().parent
README = HERE / "README.md"
SCRIPTS = ("servidor.py", "cliente.py", "servidor_udp.py", "cliente_udp.py", "raw_server.py", "raw_client.py",
           "led_gpio.py")
PYTHON = (sys.executable, "-S")  # sem o módulo site: a biblioteca padrão basta, seja o que for que há instalado a mais
WATCHDOG_S = 30  # generoso: só é alcançado por um programa travado, nunca por uma máquina lenta
READY = r"^escutando em (?P<host>\S+)(?: porta (?P<port>\d+))?"
BAD_STDERR = re.compile(r"Traceback|imprevisto, um defeito|ResourceWarning|Exception ignored|Fatal Python|"
                        r"DeprecationWarning|BytesWarning")
signal.signal(signal.SIGINT, signal.default_int_handler)  # um `&` de shell o deixa ignorado, e os filhos herdariam isso
SEED = int(os.environ.get("SEMENTE", "20240917"))  # o acaso dos testes se repete; a falha mostra a semente


@functools.lru_cache(maxsize=None)
def compiled(name):
    return compile((HERE / name).read_bytes(), str(HERE / name), "exec")


@functools.lru_cache(maxsize=None)
def bytecode_folder():
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)  # há filhos que rodam como outro usuário
    unittest.addModuleCleanup(shutil.rmtree, folder)
    return folder


@functools.lru_cache(maxsize=None)
def bytecode(name):
    """O script já compilado, num arquivo com o nome dele: o Python o reconhece pelos primeiros bytes e o roda como ao
    outro. Compilar era um quarto da vida de um filho, e os testes têm uns mil."""
    folder = tempfile.mkdtemp(dir=bytecode_folder())  # o de um teste já tem a pasta dele, e fica lá o fonte
    os.chmod(folder, 0o755)
    return py_compile.compile(str(HERE / name), os.path.join(folder, os.path.basename(name)), doraise=True)


def load(name):
    """Importa um script como módulo, sem rodá-lo: os testes das partes puras chamam as funções direto."""
    module = types.ModuleType(name[:-3])
    exec(compiled(name), vars(module))
    return module


def child_env(**extra):
    """Ambiente dos filhos: sem PYTHONUNBUFFERED, que esconderia a falta de um flush; UTF-8, e um terminal que apaga,
    seja qual for o de quem testa."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "LISTEN_FDS", "LISTEN_PID", "NO_COLOR")}
    env.update(PYTHONIOENCODING="utf-8", PYTHONDONTWRITEBYTECODE="1", TERM="xterm")
    env.update(extra)
    return env


@functools.lru_cache(None)
def can(*command):
    """A máquina roda este comando? (Para pular um teste dizendo o que falta.)"""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, timeout=WATCHDOG_S).returncode == 0
    except OSError:
        return False


def new_certificate(folder, host):
    """(certificado, chave), em PEM: o teste é pulado se não há com que os criar, ou usar."""
    if not ssl:
        raise unittest.SkipTest("este Python não tem o módulo ssl")
    if not shutil.which("openssl"):
        raise unittest.SkipTest("falta o comando openssl, que cria o certificado do teste")
    cert, key = (os.path.join(folder, host + end) for end in (".pem", "-chave.pem"))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", key, "-out", cert, "-days", "30", "-subj", f"/CN={host}",
                    "-addext", f"subjectAltName=DNS:{host},IP:127.0.0.1"], check=True, stderr=subprocess.DEVNULL)
    return cert, key


def fill_pipe(fd):
    """Enche um cano: quem escrever nele espera."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x")
    os.set_blocking(fd, True)


def free_port(kind=socket.SOCK_STREAM):
    """Uma porta livre abaixo da faixa de onde o kernel sorteia (32768 em diante no Linux, 49152 na IANA): quem a larga
    e a toma de novo, ou conta com ela vazia, não a perde para uma conexão ou um servidor de outro programa."""
    while True:
        with socket.socket(socket.AF_INET, kind) as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", random.SystemRandom().randrange(10000, 32768)))
            return sock.getsockname()[1]


class Output:
    """O que chega de um descritor, acumulado por uma thread: espera-se por um trecho, nunca por um tempo."""

    def __init__(self, fd):
        self.data, self.closed = b"", False
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._pump, args=(fd,), daemon=True)
        self.thread.start()

    def _pump(self, fd):
        while True:
            try:
                chunk = os.read(fd, 65536)
            except OSError:  # um pty cujo outro lado fechou dá EIO: é o fim do arquivo dele
                chunk = b""
            with self.news:
                self.data += chunk
                self.closed = not chunk
                self.news.notify_all()
            if not chunk:
                return

    def expect(self, pattern, timeout=WATCHDOG_S):
        """Espera a expressão regular aparecer, consome até o fim dela e devolve o Match; None se acabou sem ela."""
        if isinstance(pattern, str):
            pattern = pattern.encode()
        deadline = time.monotonic() + timeout
        with self.news:
            while True:
                match = re.search(pattern, self.data, re.MULTILINE)
                if match:
                    self.data = self.data[match.end():]
                    return match
                left = deadline - time.monotonic()
                if self.closed or left <= 0:
                    return None
                self.news.wait(left)


class Child:
    """Um script em execução. `expect` lê a saída padrão; `errors` relê o que foi dito em stderr."""

    def __init__(self, case, command, status, env, tty, cwd, **popen):
        self.case, self.status, self.name, self.master = case, status, " ".join(command), None
        self.stderr = tempfile.TemporaryFile()
        if tty:
            self.master, slave = os.openpty()
            popen.update(stdin=slave, stdout=slave)
        popen.setdefault("stdin", subprocess.PIPE)
        popen.setdefault("stdout", subprocess.PIPE)
        self.popen = subprocess.Popen(command, stderr=slave if tty == "all" else self.stderr, env=env, cwd=cwd,
                                      bufsize=0, start_new_session=True, **popen)
        if tty:
            os.close(slave)
        self.stdin, self.pid, self.host, self.port = self.popen.stdin, self.popen.pid, None, None
        source = self.master if tty else self.popen.stdout.fileno() if self.popen.stdout else None
        self.output = Output(source) if source is not None else None

    def errors(self):
        """O que já disse em stderr. Com pread(): um seek() moveria também o lugar onde o script escreve."""
        fd = self.stderr.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")

    def expect(self, pattern, timeout=WATCHDOG_S):
        """Espera por uma expressão regular na saída padrão; falha mostrando o que veio no lugar."""
        match = self.output.expect(pattern, timeout)
        if match is None:
            self.case.fail(f"{self.name}\nnão disse {pattern!r}; disse {self.output.data[-2000:]!r}"
                           f"\nstderr: {self.errors()[-2000:]}")
        return match

    def expect_error(self, pattern, timeout=WATCHDOG_S):
        """Espera por uma expressão regular em stderr (um arquivo, relido até o cão de guarda latir)."""
        deadline = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.errors(), re.MULTILINE)
            if match:
                return match
            if self.popen.poll() is not None and not re.search(pattern, self.errors(), re.MULTILINE) \
                    or time.monotonic() > deadline:
                self.case.fail(f"{self.name}\nnão disse {pattern!r} em stderr: {self.errors()[-2000:]}")
            time.sleep(0.01)  # intervalo de releitura, não espera por um estado

    def type(self, text):
        """Digita no terminal (tty) ou escreve na entrada padrão do script."""
        data = text if isinstance(text, bytes) else text.encode()
        if self.master is None:
            self.stdin.write(data)
        else:
            os.write(self.master, data)

    def kill(self, number=signal.SIGKILL):
        os.killpg(self.pid, number) if number == signal.SIGKILL else self.popen.send_signal(number)

    def wait(self, timeout=WATCHDOG_S):
        """Espera o fim e devolve o estado de saída; mata (e falha) quem não acaba."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            self.popen.wait()
            self.case.fail(f"{self.name}\nnão terminou em {timeout} s; stderr: {self.errors()[-2000:]}")

    def stop(self, number=signal.SIGTERM):
        """Encerra (SIGTERM), confere o estado de saída e que stderr não tem nada de inesperado."""
        if self.popen.poll() is None:
            self.kill(number)
        status = self.wait()
        if self.output:
            self.output.thread.join(WATCHDOG_S)
        self.check(status)
        return status

    def check(self, status):
        errors = self.errors()
        if self.status is not None:
            self.case.assertEqual(status, self.status, f"{self.name}\nstderr: {errors[-2000:]}")
        self.case.assertIsNone(BAD_STDERR.search(errors), f"{self.name}\nstderr: {errors[-3000:]}")

    def cleanup(self):
        try:
            self.stop()
        finally:
            for stream in (self.popen.stdin, self.popen.stdout, self.stderr):
                if stream:
                    with contextlib.suppress(BrokenPipeError):  # o script já não lê: nada ficou por dizer
                        stream.close()
            if self.master is not None:
                os.close(self.master)


class Conn:
    """Um socket de teste com as palavras da conversa: send, expect, expect_eof."""

    def __init__(self, case, sock):
        self.case, self.sock, self.data = case, sock, b""
        sock.settimeout(WATCHDOG_S)

    def send(self, data):
        self.sock.sendall(data if isinstance(data, bytes) else data.encode())

    def recv(self):
        chunk = self.sock.recv(65536)
        self.data += chunk
        return chunk

    def expect(self, wanted):
        """Lê até `wanted` aparecer e devolve tudo o que veio até o fim dele."""
        wanted = wanted if isinstance(wanted, bytes) else wanted.encode()
        try:
            while wanted not in self.data:
                if not self.recv():
                    self.case.fail(f"conexão fechada à espera de {wanted!r}; veio {self.data[-2000:]!r}")
        except socket.timeout:
            self.case.fail(f"{wanted!r} não veio; veio {self.data[-2000:]!r}")
        seen, self.data = self.data.split(wanted, 1)
        return seen + wanted

    def expect_eof(self):
        """Lê até o fim (um RST também é um fim) e devolve o que ainda veio."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while self.recv():
                pass
        return self.data

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Termina por RST, como um cliente que caiu: SO_LINGER de zero segundos."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self):
        self.sock.close()


class Result:
    """O fim de um script que roda até acabar: status, out (bytes), text e err (str)."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err
        self.text = out.decode("utf-8", "replace")

    def __repr__(self):
        return f"estado {self.status}\nstdout: {self.text[-2000:]}\nstderr: {self.err[-2000:]}"


LOADER = """
import importlib.machinery, importlib.util, json, sys
sys.argv = sys.argv[1:]
loader = importlib.machinery.SourcelessFileLoader("script", sys.argv[0])
spec = importlib.util.spec_from_file_location("script", sys.argv[0], loader=loader)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
vars(script).update(json.loads(sys.argv.pop(1)))
script.end_process(script.main())
"""


class ScriptTestCase(unittest.TestCase):
    """O vocabulário: spawn, connect, run_script, stop. Tudo o que um teste abre é fechado e conferido no fim dele."""

    maxDiff = None

    def command(self, script, *args, prefix=(), constants=None):
        """A linha de comando que roda o script, com -X dev; constants troca constantes dele (prazos mais curtos)."""
        path = [bytecode(script)]
        if constants:
            path = ["-c", LOADER, *path, json.dumps(constants)]
        return [*prefix, *PYTHON, "-X", "dev", *path, *map(str, args)]

    def spawn(self, script, *args, ready=READY, status=0, env=None, prefix=(), tty=False, cwd=None, constants=None,
              **popen):
        """Sobe o script e espera a linha que diz que está pronto (ready=None: não espera nada).

        status: o estado de saída exigido no fim (None: qualquer um). prefix: comando que o embrulha (`unshare -rn`).
        tty: dá um terminal de verdade (pty) à entrada e à saída; "all" inclui stderr.
        """
        child = Child(self, self.command(script, *args, prefix=prefix, constants=constants), status,
                      child_env(**(env or {})), tty, cwd, **popen)
        self.addCleanup(child.cleanup)
        if ready:
            found = child.expect(ready).groupdict()
            child.host = (found.get("host") or b"").decode()
            child.port = int(found["port"]) if found.get("port") else None
        return child

    def stop(self, child, number=signal.SIGTERM):
        return child.stop(number)

    def run_script(self, script, *args, input=b"", env=None, prefix=(), timeout=WATCHDOG_S, cwd=None, status=None,
                   constants=None):
        """Roda o script até o fim e devolve um Result; stderr não pode ter traceback nem aviso."""
        done = subprocess.run(self.command(script, *args, prefix=prefix, constants=constants), input=input,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_env(**(env or {})),
                              timeout=timeout, cwd=cwd)
        result = Result(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))
        self.assertIsNone(BAD_STDERR.search(result.err), result)
        if status is not None:
            self.assertEqual(result.status, status, result)
        return result

    def connect(self, child, host=None, rcvbuf=None):
        """Conecta por TCP ao servidor `child`; rcvbuf limita o buffer de recepção antes de conectar."""
        host = host or child.host
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.addCleanup(sock.close)
        sock.settimeout(WATCHDOG_S)
        sock.connect((host, child.port))
        return Conn(self, sock)

    def stderr_nobody_reads(self, *prefix):
        """(opções de spawn(), função que enche o cano): o stderr do script é um cano que ninguém lê."""
        read, write = os.pipe()
        self.addCleanup(os.close, read)

        def fill():
            fill_pipe(write)
            os.close(write)

        return {"prefix": (*prefix, "sh", "-c", f'exec "$@" 2>/dev/fd/{write}', "sh"), "pass_fds": (write,)}, fill

    def stop_terminal(self, child):
        """Ctrl+S no terminal do script: nada mais se escreve nele."""
        terminal = os.open(f"/proc/{child.pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
        self.addCleanup(os.close, terminal)

        def stopped():
            # O readline pode ainda estar a pôr o terminal no modo dele: o Ctrl+S se repete até valer.
            child.type("\x13")
            return not select.select([], [terminal], [], 0)[1]
        self.until(stopped, "o terminal parou")

    def until(self, condition, what):
        """Relê um estado que não avisa quando muda (um número em /proc) até valer, sob o cão de guarda."""
        deadline = time.monotonic() + WATCHDOG_S
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"não aconteceu: {what}")
            time.sleep(0.01)

    def certificate(self, host="localhost"):
        """(certificado, chave) em PEM, novos, assinados por si mesmos, para este nome e para 127.0.0.1."""
        return new_certificate(self.folder(), host)

    def folder(self):
        """Uma pasta temporária, apagada no fim do teste."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return pathlib.Path(folder.name)

    def assert_one_line_error(self, result, *words, status=1):
        """O erro é uma linha só em stderr, com estas palavras, e o estado combinado."""
        self.assertEqual(result.status, status, result)
        self.assertEqual(result.err.count("\n"), 1, result)
        for word in words:
            self.assertIn(word, result.err, result)


class Meter:
    """O que o sistema diz de um processo (Linux: /proc). Números do kernel, não do relógio."""

    def __init__(self, child):
        self.proc = pathlib.Path(f"/proc/{child.pid}")

    def rss(self):
        return int(re.search(r"VmRSS:\s+(\d+)", (self.proc / "status").read_text())[1]) * 1024

    def fds(self):
        return len(list((self.proc / "fd").iterdir()))

    def threads(self):
        return len(list((self.proc / "task").iterdir()))

    def cpu(self):
        """Segundos de CPU gastos até agora."""
        fields = (self.proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------------------------------
# servidor.py
#
# Uma classe por parte do script, na ordem dele. O que vale nos dois motores está numa mistura (ChatTests),
# e roda em cada um: TestServidorChat, com threads, e TestServidorChatEpoll.

class ServerTestCase(ScriptTestCase):
    """servidor.py num motor, e as palavras de quem conversa com ele."""
    motor = "threads"

    @classmethod
    def setUpClass(cls):
        if cls.motor == "epoll" and not hasattr(select, "epoll"):
            raise unittest.SkipTest("epoll só existe no Linux")
        cls.servidor = load("servidor.py")

    def serve(self, *args, host="127.0.0.1", port=0, **options):
        return self.spawn("servidor.py", host, port, "--motor", self.motor, *args, **options)

    def naive(self, after_listen=""):
        """Roda o programa ingênuo da docstring numa porta livre: (a porta, o processo)."""
        port = free_port()
        first, rest = naive_program("servidor.py").replace("5050", str(port)).split("\n", 1)
        code = "\n".join(["import resource, socket", first, after_listen, "print(flush=True)", rest])
        process = subprocess.Popen([*PYTHON, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        process.stdout.readline()
        return types.SimpleNamespace(host="127.0.0.1", port=port), process

    def join(self, server, nick=None, rcvbuf=None):
        """Entra no chat, com este apelido. Uma linha vazia não diz nada, e já não se espera pela saudação."""
        conn = self.connect(server, rcvbuf=rcvbuf)
        conn.send("\n")
        conn.expect("/ajuda mostra os comandos\n")
        if nick:
            conn.send(f"/nick {nick}\n")
            conn.expect(f"agora você é {nick}\n")
        return conn

    def newcomer(self, chat):
        """Um cliente de mentira que acaba de chegar: o que ouve fica em `heard`."""
        client = mock.Mock(closing=False, heard=b"")
        client.is_late = functools.partial(self.servidor.Client.is_late, client)

        def send(data):
            client.heard += data

        def hang_up(last):
            client.heard += last
            client.closing = True

        client.send, client.hang_up = send, hang_up
        chat.on_connect(client)
        return client

    def serve_with(self, service, *args, **options):
        """Uma cópia do servidor em que o eco é este serviço (o código de uma classe Echo)."""
        source = (HERE / "servidor.py").read_text(encoding="utf-8")
        source, found = re.subn(r"class Echo\(Service\):.*?(?=# Exercício)",
                                lambda match: textwrap.dedent(service) + "\n\n", source, flags=re.S)
        self.assertEqual(found, 1)
        script = self.folder() / "servidor.py"
        script.write_text(source, encoding="utf-8")
        return self.spawn(script, "127.0.0.1", 0, "--motor", self.motor, *args, **options)

    def read_all(self, sock):
        chunks = []
        while True:
            chunk = sock.recv(1 << 20)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)

    def activated(self, listener):
        """Sobe o servidor como o systemd faz: dup2 para o descritor 3, e exec no mesmo processo."""
        starter = (f"import os, sys; os.dup2({listener.fileno()}, 3); os.environ.update(LISTEN_FDS='1', "
                   "LISTEN_PID=str(os.getpid())); os.execv(sys.argv[1], sys.argv[1:])")
        return self.spawn("servidor.py", "--motor", self.motor, prefix=(*PYTHON, "-c", starter),
                          pass_fds=(listener.fileno(),))

    def ask(self, server, request):
        conn = self.connect(server)
        conn.send(request)
        return conn.expect_eof()

    def engine(self, *args):
        """Um motor sem processo à volta, com o módulo de que ele veio; o socket que escuta é de mentira."""
        servidor = load("servidor.py")
        args = servidor.build_parser().parse_args(args)
        args.tls = None
        engine = servidor.ThreadEngine([mock.Mock()], servidor.Http(), args)
        self.addCleanup(engine.close)
        return servidor, engine


class EchoTests:
    """Um serviço diz o que fazer com os bytes."""

    def test_echo_and_half_close(self):
        server = self.serve()
        conn = self.connect(server)
        conn.send(b"oi\n")
        conn.expect(b"oi\n")
        conn.send(b"sem fim de linha")
        conn.half_close()
        self.assertEqual(conn.expect_eof(), b"sem fim de linha")

    def test_echo_of_all_bytes_both_ways_at_once(self):
        """16 MiB pelo eco, enviando e recebendo ao mesmo tempo: volta tudo, igual."""
        conn = self.connect(self.serve())
        data = random.Random(SEED).getrandbits(8 * (1 << 24)).to_bytes(1 << 24, "little")
        sender = threading.Thread(target=lambda: (conn.send(data), conn.half_close()))
        sender.start()
        back = self.read_all(conn.sock)
        sender.join()
        self.assertEqual(hashlib.sha256(back).digest(), hashlib.sha256(data).digest())

    def test_broken_service_ends_only_its_client(self):
        """Um erro de programação em qualquer chamada de um serviço aparece, e acaba só com aquele cliente."""
        server = self.serve_with("""
            class Echo(Service):
                def on_connect(self, client):
                    client.session, client.deadline = b"", time.monotonic() + 0.2
                def on_data(self, client, data):
                    client.session = bytes(data)
                    if client.session == b"dados":
                        raise KeyError("dados")
                    client.send(client.session)
                def on_timeout(self, client, why):
                    raise KeyError("prazo")
                def on_close(self, client):
                    if client.session == b"fim":
                        raise KeyError("fim")
            """, "--max-clientes", 1, constants={"TICK_S": 0.05})  # um lugar só: perdido, ninguém mais seria atendido
        self.connect(server).expect_eof()  # o prazo
        for word in ("dados", "fim", "bem"):
            conn = self.connect(server)
            conn.send(word)
            if word != "dados":
                conn.expect(word)
            conn.half_close()
            conn.expect_eof()
        server.kill(signal.SIGTERM)
        self.assertEqual(server.wait(), 0)
        self.assertEqual(set(re.findall(r"^KeyError: '(\w+)'", server.errors(), re.M)), {"dados", "fim", "prazo"})
        server.check = lambda status: None  # os tracebacks, aqui, são o que se esperava


class TestServidorEcho(EchoTests, ServerTestCase):
    """Um serviço diz o que fazer com os bytes. Com threads."""

    def test_naive_program(self):
        """O programa ingênuo da docstring roda, e devolve uma linha."""
        server, _ = self.naive()
        conn = self.connect(server)
        conn.send(b"oi\n")
        conn.expect(b"oi\n")

    def test_escape(self):
        for raw, shown in (("ok ç 🙂", "ok ç 🙂"), ("\x1b]0;x\x07", r"\x1b]0;x\x07"), ("a\nb", r"a\nb"),
                           ("\x9b", r"\x9b"), ("\u202e", r"\u202e"), ("\ud800", r"\ud800")):
            self.assertEqual(self.servidor.escape(raw), shown)



class TestServidorEchoEpoll(EchoTests, ServerTestCase):
    """Um serviço diz o que fazer com os bytes. Com epoll."""
    motor = "epoll"


class TestServidorLineBuffer(ServerTestCase):
    """Os pedaços do TCP viram linhas, e o TELNET fica de fora."""

    def lines(self, *chunks):
        buffer = self.servidor.LineBuffer()
        return [line for chunk in chunks for line in buffer.feed(chunk)]

    def test_line_buffer(self):
        table = (("uma linha", [b"oi\n"], ["oi"]), ("CRLF", [b"oi\r\n"], ["oi"]), ("duas", [b"a\nb\n"], ["a", "b"]),
                 ("sem fim", [b"oi"], []), ("em pedaços", [b"o", b"i", b"\n"], ["oi"]), ("vazia", [b"\n"], [""]),
                 ("ç partido", [b"\xc3", b"\xa7\n"], ["ç"]), ("UTF-8 inválido", [b"a\xffb\n"], ["a\ufffdb"]),
                 ("no limite", [b"x" * 1024 + b"\n"], ["x" * 1024]))
        for name, chunks, lines in table:
            with self.subTest(name):
                self.assertEqual(self.lines(*chunks), lines)
        for name, chunks in (("com fim", [b"x" * 1025 + b"\n"]), ("sem fim", [b"x" * 1025]),
                             ("depois de uma boa", [b"ok\n" + b"x" * 1025])):
            with self.subTest("longa demais, " + name), self.assertRaises(self.servidor.ProtocolError):
                self.lines(*chunks)

    def test_good_lines_before_a_bad_one(self):
        """L6: as linhas boas são ouvidas, e só depois vem o erro; o CR não conta no limite."""
        heard = []
        with self.assertRaises(self.servidor.ProtocolError):
            for line in self.servidor.LineBuffer().feed(b"a\r\nb\n" + b"x" * 1025 + b"\n"):
                heard.append(line)
        self.assertEqual(heard, ["a", "b"])
        self.assertEqual(self.lines(b"x" * 1024 + b"\r", b"\n"), ["x" * 1024])

    def test_line_ends_of_a_telnet(self):
        """S2: CR NUL, e CR sozinho, também acabam uma linha; CR LF partido em dois é um fim só."""
        for chunks, lines in (([b"a\r\0b\r\0"], ["a", "b"]), ([b"a\rb\n"], ["a", "b"]),
                              ([b"a\r", b"\nb\n"], ["a", "b"]),
                              ([b"a\r", b"\0b\n"], ["a", "b"]), ([b"a\r\n\nb\n"], ["a", "", "b"]),
                              ([b"a\r", b"\n", b"\n"], ["a", ""]), ([b"a\r", b"\r"], ["a", ""]), ([b"\0a\n"], ["\0a"])):
            with self.subTest(chunks):
                self.assertEqual(self.lines(*chunks), lines)

    def test_telnet_commands_are_not_text(self):
        """S2: comandos de 2 e 3 bytes e SB ... SE, cortados onde for, somem; opções são recusadas; IAC IAC é 0xFF."""
        putty = bytes.fromhex("fffb1f fffb20 fffb18 fffb27 fffd01 fffb03 fffd03")
        for data, text, answer in (
                (b"oi\xff\xf4\xff\xfd\x06!", b"oi!", b"\xff\xfc\x06"), (b"a\xff\xffb", b"a\xffb", b""),
                (putty + b"/nick ana\r\n", b"/nick ana\r\n",
                 bytes.fromhex("fffe1f fffe20 fffe18 fffe27 fffc01 fffe03 fffc03")),
                (b"\xff\xfa\x18\x00XTERM\xff\xff\xf0\xff\xf0a", b"a", b""), (b"\xff\xfc\x01\xff\xfe\x01a", b"a", b""),
                (b"a\xff b", b"a\xff b", b"")):
            for cut in range(len(data) + 1):
                with self.subTest(data, corte=cut):
                    telnet = self.servidor.Telnet()
                    (one, first), (other, second) = telnet.feed(data[:cut]), telnet.feed(data[cut:])
                    self.assertEqual((one + other, first + second), (text, answer))
        with self.assertRaises(self.servidor.ProtocolError):
            telnet.feed(b"\xff\xfa" + b"x" * 2000)

    def test_a_telnet_option_costs_what_it_measures(self):
        """Uma opção de 1 KB que não acaba não gasta 300 KB em pontos de volta da expressão regular."""
        telnet = self.servidor.Telnet()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        telnet.feed(b"\xff\xfa" + b"x" * 1000)
        self.assertLess(tracemalloc.get_traced_memory()[1], 32 * 1024)

    def test_line_buffer_cut_anywhere(self):
        """Cortada em qualquer ponto, a conversa dá as mesmas linhas."""
        data = "olá, ç e 🙂\r\n\nfim\n".encode()
        for cut in range(len(data) + 1):
            self.assertEqual(self.lines(data[:cut], data[cut:]), ["olá, ç e 🙂", "", "fim"])

    def test_random_bytes(self):
        """Bytes ao acaso: ou um pedido, ou ProtocolError; ou linhas, ou ProtocolError. Nunca outra coisa."""
        rng = random.Random(SEED)
        for turn in range(2000):
            data = bytes(rng.choice(b"GET /\r\n HTP.1:ab\xff\x1b") for _ in range(rng.randrange(80)))
            with self.subTest(semente=SEED, volta=turn), contextlib.suppress(self.servidor.ProtocolError):
                self.servidor.parse_request(data)
                self.lines(data)


class ChatTests:
    """A sala: quem ouve o quê, e como se diz."""

    def test_the_first_line_is_the_nickname(self):
        """Quem começa por /nick entra já com ele, e não como visitante; o que é de outro, ou não serve, é recusado."""
        server = self.serve("--modo", "chat", constants={"GREETING_S": 10**6})
        ear = self.join(server, "ouvinte")
        for start, answer, told in (("/nick ana\noi\n", "bem-vindo à sala, ana. /ajuda", "* ana entrou\n<ana> oi\n"),
                                    ("\x04 /NICK bia\n", "bem-vindo à sala, bia. /ajuda", "* bia entrou\n"),
                                    ("/nick ana\n", "bem-vindo à sala, visitante1.*\n* erro: ana já está",
                                     "* visitante1 entrou\n"),
                                    ("/nick\n", "bem-vindo à sala, visitante2.*\n* erro: ", "* visitante2 entrou\n")):
            conn = self.connect(server)
            conn.send(start)
            for part in answer.split(".*"):
                conn.expect(part)
            self.assertEqual(ear.expect(told.splitlines()[-1] + "\n").decode(), told)

    def test_chat_conversation(self):
        server = self.serve("--modo", "chat")
        ana, bia = self.join(server, "ana"), self.join(server)
        ana.expect("entrou\n")
        bia.send("/nick bia\n/quem\n")
        bia.expect("na sala: ana, bia\n")
        ana.expect("agora é bia\n")
        ana.send("olá, bia!\r\n")
        bia.expect("<ana> olá, bia!\n")
        server.expect("<ana> olá, bia!")
        bia.send("/msg ANA segredo\n/ajuda\n")
        ana.expect("<bia para ANA, em particular> segredo\n")
        bia.expect("/nick NOME")
        bia.send("/nada\n")
        bia.expect("não conheço /nada")
        bia.send("/sair\n")
        bia.expect("até logo\n")
        self.assertEqual(bia.expect_eof().count(b"\n"), 0)
        ana.expect("* bia saiu\n")

    def test_chat_nicknames(self):
        """Em uso: erro. Livre outra vez: aceito. Com espaço ou controle: recusado."""
        server = self.serve("--modo", "chat")
        ana, other = self.join(server, "Ana"), self.join(server)
        for bad in ("ana", "a b", "x" * 21, "a\x1b[31m", ""):
            other.send(f"/nick {bad}\n")
            other.expect("* erro:")
        ana.close()
        other.expect("* Ana saiu\n")
        other.send("/nick ana\n")
        other.expect("agora você é ana\n")

    def test_chat_escapes_control_characters(self):
        server = self.serve("--modo", "chat")
        ana, bia = self.join(server, "ana"), self.join(server, "bia")
        ana.send(b"\x1b]0;x\x07 \xff \xe2\x80\xae\n/msg bia \x1b[2J\n")
        self.assertIn(r"<ana> \x1b]0;x\x07 ".encode() + "\ufffd ".encode() + rb"\u202e", bia.expect(r"\u202e" + "\n"))
        bia.expect(rb"particular> \x1b[2J")
        server.expect(r"<ana> \\x1b\]0;x\\x07")

    def test_chat_visitors_never_collide(self):
        """Quem escolhe o nome que o próximo visitante teria continua dono dele."""
        server = self.serve("--modo", "chat")
        first = self.join(server, "visitante2")
        second, third = self.join(server), self.join(server)
        third.send("/quem\n")
        third.expect("na sala: visitante1, visitante2, visitante3\n")
        second.send("oi\n")
        first.expect("<visitante1> oi\n")

    def test_chat_after_goodbye(self):
        """O que vem depois de /sair, no mesmo pacote, já não conta; a sala segue."""
        server = self.serve("--modo", "chat")
        ana, bia = self.join(server, "ana"), self.join(server, "bia")
        ana.send("/sair\n/nick zeca\n/quem\nfantasma\n")
        bia.expect("* ana saiu\n")
        bia.send("/quem\n")
        self.assertNotIn("fantasma", bia.expect("na sala: bia\n").decode())

    def test_chat_pasted_lines_drop_nobody(self):
        """Quem cola mil linhas não derruba quem está lendo: a escritora manda de uma vez o que se juntou."""
        server = self.serve("--modo", "chat")
        ana, bia = self.join(server, "ana"), self.join(server, "bia")
        ana.send("".join(f"linha {n}\n" for n in range(2000)))
        bia.expect("<ana> linha 1999\n")

    def test_chat_last_line_without_newline(self):
        """printf 'oi' | nc -N: a linha sem fim de quem saiu também foi dita."""
        server = self.serve("--modo", "chat")
        ana, bia = self.join(server, "ana"), self.join(server, "bia")
        ana.send("tchau, ç")
        ana.half_close()
        bia.expect("<ana> tchau, ç\n")
        bia.expect("* ana saiu\n")

    def test_chat_character_split_between_packets(self):
        server = self.serve("--modo", "chat")
        ana, bia = self.join(server, "ana"), self.join(server, "bia")
        ana.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in "maçã\n".encode():
            ana.send(bytes([byte]))
        bia.expect("<ana> maçã\n")

    def test_chat_line_too_long(self):
        """10 MiB sem fim de linha: uma linha de erro, e só esse cliente se vai; a memória não cresce com ele."""
        server = self.serve("--modo", "chat")
        ana, meter = self.join(server, "ana"), Meter(server)
        before, bad = meter.rss(), self.join(server)
        bad.sock.settimeout(WATCHDOG_S)
        with contextlib.suppress(ConnectionError):
            for _ in range(160):
                bad.send(b"x" * 65536)
            bad.half_close()
        self.assertIn("linha com mais de 1024 bytes".encode(), bad.expect_eof())
        ana.expect("saiu\n")
        self.assertLess(meter.rss() - before, 4 << 20)

    def test_chat_unfinished_line(self):
        """Slowloris: um byte de vez em quando não renova o prazo da linha."""
        server = self.serve("--modo", "chat", constants={"LINE_TIMEOUT_S": 0.3, "ROOM_TICK_S": 0.05})
        conn = self.join(server)
        conn.sock.settimeout(0.05)
        seen = b""
        deadline = time.monotonic() + WATCHDOG_S
        while b"demorou demais" not in seen and time.monotonic() < deadline:
            with contextlib.suppress(socket.timeout):
                conn.send(b"x")
                seen += conn.sock.recv(4096)
        self.assertIn(b"demorou demais", seen)

    def test_chat_finished_lines_have_no_deadline(self):
        server = self.serve("--modo", "chat", constants={"LINE_TIMEOUT_S": 0.2, "ROOM_TICK_S": 0.05})
        conn = self.join(server, "ana")
        time.sleep(0.5)  # o intervalo é o que se testa: calada, mas sem linha começada
        conn.send("/quem\n")
        conn.expect("na sala: ana\n")

    def test_chat_talking_has_no_deadline(self):
        """O prazo é de cada linha: quem nunca para de falar, com uma sempre começada, não passa dele."""
        server = self.serve("--modo", "chat", constants={"LINE_TIMEOUT_S": 0.4, "ROOM_TICK_S": 0.05})
        conn, end = self.join(server), time.monotonic() + 0.8  # o intervalo é o que se testa
        conn.sock.settimeout(0.02)
        while time.monotonic() < end:
            conn.send(" fim desta\ne o começo de outra")
            with contextlib.suppress(socket.timeout):
                self.fail(conn.sock.recv(4096))

    def test_chat_in_a_poor_terminal(self):
        """Uma saída que não conhece o "ç" mostra "?", e a conversa segue."""
        server = self.serve("--modo", "chat", env={"PYTHONIOENCODING": "ascii"})
        ana, bia = self.join(server, "ana"), self.join(server, "bia")
        ana.send("maçã\n")
        bia.expect("<ana> maçã\n")
        server.expect(r"<ana> ma\?\?\n")

    def test_chat_secret_after_ctrl_c(self):
        """S2: depois de Ctrl+C ou Ctrl+D num telnet, ou da abertura do PuTTY, um comando ainda é um comando."""
        server = self.serve("--modo", "chat")
        ana, bia, caio = self.join(server, "ana"), self.join(server, "bia"), self.join(server, "caio")
        for start in (b"\xff\xf4\xff\xfd\x06", b"\x04", b"\xff\xfb\x1f\xff\xfd\x01", b"\xef\xbb\xbf"):
            ana.send(start + b"/msg bia segredo\r\0")
            bia.expect("<ana para bia, em particular> segredo\n")
        ana.send("fim\n")
        self.assertNotIn(b"segredo", caio.expect("<ana> fim\n"))
        ana.expect(b"\xff\xfc\x06")

    def test_chat_is_not_a_site(self):
        """S1: o que um navegador manda, seja qual for o método, tem um 400 limpo, em português; a sala nem o vê."""
        server = self.serve("--modo", "chat", constants={"GREETING_S": 10**6})
        ear = self.join(server, "ouvinte")
        for method in ("GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "X-QUALQUER"):
            with self.subTest(method):
                conn = self.connect(server)
                conn.send(f"{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n\ninvasor\n"
                          "/msg ouvinte invasor\n")
                with contextlib.suppress(ConnectionError):
                    conn.send("mais invasor\n")
                conn.half_close()
                answer = conn.expect_eof().decode()
                self.assertTrue(answer.startswith("HTTP/1.1 400 "), answer)
                self.assertEqual("sala de conversa" in answer, method != "HEAD")
        conn = self.connect(server)
        conn.send(b"\x16\x03\x01\x02\x00\x01\r\ninvasor\n")  # https
        self.assertEqual(conn.expect_eof().decode(), "* erro: esta sala não fala TLS; até logo\n")
        self.connect(server).close()  # nem quem só olhou se a porta está aberta
        self.join(server, "fim")
        self.assertEqual(ear.expect("fim\n").decode(), "* visitante1 entrou\n* visitante1 agora é fim\n")

    def test_chat_greets_who_only_listens(self):
        """Passado o instante em que um programa já teria falado, quem está calado é saudado, e a sala o vê."""
        server = self.serve("--modo", "chat", constants={"GREETING_S": 0, "ROOM_TICK_S": 0.02})
        ear = self.join(server, "ouvinte")
        conn = self.connect(server)
        conn.expect("* bem-vindo à sala, visitante1. /ajuda mostra os comandos\n")
        ear.expect("* visitante1 entrou\n")
        conn.send("GET / HTTP/1.1\r\n")  # um navegador que demorou
        self.assertTrue(conn.expect_eof().startswith(b"HTTP/1.1 400 "))
        self.assertEqual(ear.expect("\n").decode(), "* visitante1 saiu\n")

    def test_chat_good_lines_before_a_bad_one(self):
        """L6: nos dois motores, as duas boas são ouvidas, e a terceira é o erro."""
        server = self.serve("--modo", "chat")
        ana, bia = self.join(server, "ana"), self.join(server, "bia")
        ana.send("um\ndois\n" + "x" * 1025 + "\n")
        bia.expect("<ana> um\n<ana> dois\n* ana saiu\n")
        self.assertTrue(ana.expect_eof().endswith("* erro: linha com mais de 1024 bytes; até logo\n".encode()))

    def test_chat_looks_for_ghosts(self):
        """S6: quem some sem FIN é achado pelo keepalive, e o que lhe devemos não espera para sempre."""
        if not can("ss", "-V"):
            self.skipTest("falta o comando ss")
        server = self.serve("--modo", "chat")
        self.join(server, "ana")
        command = "ss", "-tnoH", f"sport = :{server.port}"

        def timer():
            shown = subprocess.run(command, stdout=subprocess.PIPE).stdout.decode()
            return re.search(r"timer:\(keepalive,([12]?\d|30)(\.\d+)?(sec|s|ms)", shown)
        self.until(timer, "o relógio do keepalive")  # antes dele há o da confirmação do que se enviou

    def test_chat_slow_reader_delays_nobody(self):
        """Quem não lê é desligado quando enche a sua fila; a sala nem percebe, e a memória é limitada."""
        server = self.serve("--modo", "chat")
        ana, bia, slow = self.join(server, "ana"), self.join(server, "bia"), self.join(server, "lenta", rcvbuf=4096)
        before, line, seen = Meter(server).rss(), "x" * 1000 + "\n", b""
        for turn in range(5000):
            ana.send(line)
            seen = bia.expect(line)  # cada mensagem chega antes de a seguinte partir: a sala anda
            if b"* lenta saiu\n" in seen + bia.data:
                break
        else:
            self.fail("quem não lê continua na sala")
        self.assertLess(turn * len(line), 3 << 19, "o kernel guardou demais (SO_SNDBUF)")
        self.assertLess(Meter(server).rss() - before, 8 << 20)
        slow.close()

    def test_chat_lines_never_interleave(self):
        server = self.serve("--modo", "chat")
        reader = self.join(server, "leitora")
        talkers = [self.join(server, f"t{n}") for n in range(4)]

        def talk(conn, letter):
            for _ in range(50):
                conn.send(letter * 500 + "\n")

        threads = [threading.Thread(target=talk, args=(conn, "abcd"[n])) for n, conn in enumerate(talkers)]
        for thread in threads:
            thread.start()
        lines = []
        while len(lines) < 200:
            line = reader.expect(b"\n")
            if line.startswith(b"<t"):
                lines.append(line)
        for thread in threads:
            thread.join()
        self.assertEqual(set(lines), {b"<t%d> %s\n" % (n, b"abcd"[n:n + 1] * 500) for n in range(4)})

    def test_chat_escapes_answers_too(self):
        """O que volta a quem digitou também é escapado: destino de /msg e comando desconhecido."""
        conn = self.join(self.serve("--modo", "chat"))
        conn.send(b"/msg \x1b[2J oi\n/x\x1b[2J\n")
        self.assertNotIn(b"\x1b", conn.expect("não conheço /x") + conn.expect("\n"))

    def test_chat_nickname_differs_only_in_case(self):
        server = self.serve("--modo", "chat")
        self.join(server, "ANA")
        other = self.join(server)
        other.send("/nick Ana\n")
        other.expect("* erro:")

    def test_chat_private_stays_private(self):
        """Terceiros não leem /msg, quem fala não ouve a si mesmo, e nada vale depois de /sair."""
        server = self.serve("--modo", "chat")
        ana, bia, caio = self.join(server, "ana"), self.join(server, "bia"), self.join(server, "caio")
        ana.send("/msg bia segredo\nem público\n/quem\n")
        bia.expect("<ana para bia, em particular> segredo\n")
        self.assertNotIn(b"segredo", caio.expect("<ana> em público\n"))
        seen = ana.expect("na sala:")
        self.assertNotIn("<ana>".encode(), seen)
        bia.send("/sair\ndepois de sair\n/nick fantasma\n")
        self.assertNotIn(b"depois", caio.expect("* bia saiu\n"))
        ana.send("fim\n")
        self.assertNotIn(b"depois", caio.expect("<ana> fim\n"))


class TestServidorChat(ChatTests, ServerTestCase):
    """A sala: quem ouve o quê, e como se diz. Com threads."""

    def test_parse_command(self):
        """S2: o que não se vê, ou um espaço, antes da barra não faz do comando uma fala."""
        hidden = ("\x03\x04", "\x9b\x7f", " ", "\ufeff", "\u200b\u2060", "\u00a0 \u202e")
        for line, command in (*((start + "/msg bia s", ("msg", "bia s")) for start in hidden),
                              *((start + "oi /quem", ("", start + "oi /quem")) for start in hidden),
                              ("oi", ("", "oi")), ("/quem", ("quem", "")), ("/NICK ana", ("nick", "ana")),
                              ("/msg ana oi, tudo bem", ("msg", "ana oi, tudo bem")), ("/", ("", "")), ("", ("", ""))):
            with self.subTest(line):
                self.assertEqual(self.servidor.parse_command(line), command)

    def test_valid_nick(self):
        """S3: o que não se vê, ou quer dizer outra coisa, não é apelido; o que se lê igual é um só."""
        room, enter = self.servidor.Room(), self.servidor.Room.enter
        for member, nick in enumerate(("ana", "José", "x" * 20, "日本")):
            enter(room, member, nick)
        for nick in ("", "x" * 21, "a b", "a\x1b[31m", "a\tb", "a\u202eb", "/ana", "\u3164", "\u2800", "\u115f",
                     "bi\u034fa", "ana!x", ":ana", "#sala", "ANA", "Jose\u0301", "ａｎａ"):
            with self.subTest(nick), self.assertRaises(self.servidor.ProtocolError):
                enter(room, 9, nick)
        self.assertEqual(room.who(), ["José", "ana", "x" * 20, "日本"])

    def test_room(self):
        """A sala, pura: cada pedido devolve quem ouve o quê, e na ordem."""
        Event, ProtocolError = self.servidor.Event, self.servidor.ProtocolError
        room = self.servidor.Room()
        self.assertEqual(room.enter(1), [([1], Event("welcome", "visitante1")), ([], Event("entered", "visitante1"))])
        self.assertEqual(room.enter(2, "bia")[1], ([1], Event("entered", "bia")))
        self.assertEqual(room.rename(1, "ana"), [([1], Event("named", "visitante1", "ana")),
                                                 ([2], Event("renamed", "visitante1", "ana"))])
        self.assertEqual(room.rename(1, "Ana")[1], ([2], Event("renamed", "ana", "Ana")))
        self.assertEqual(room.enter(3)[0], ([3], Event("welcome", "visitante1")))
        self.assertEqual(room.say(1, "oi"), [([2, 3], Event("said", "Ana", "oi"))])
        self.assertEqual(room.say(1, "acena", "acted"), [([2, 3], Event("acted", "Ana", "acena"))])
        self.assertEqual(room.say(1, ""), [])
        self.assertEqual(room.whisper(2, "ANA", "psiu"), [([1], Event("said", "bia", "psiu", "ANA"))])
        for refused in (lambda: room.whisper(2, "caio", "psiu"), lambda: room.whisper(2, "ana", ""),
                        lambda: room.rename(2, "ANA"), lambda: room.rename(2, "a b"), lambda: room.enter(4, "bia")):
            self.assertRaises(ProtocolError, refused)
        self.assertEqual(room.who(), ["Ana", "bia", "visitante1"])
        self.assertEqual(room.leave(2), [([1, 3], Event("left", "bia"))])
        room.enter(4, "bia")

    def test_room_numbers_of_visitors(self):
        """O menor número livre, e sem procurar outra vez por todos os que estão na sala."""
        looked = []

        class Members(dict):
            def __contains__(self, key):
                looked.append(key)
                return super().__contains__(key)

        room = self.servidor.Room()
        room.members = Members()
        for member in range(2000):
            self.assertEqual(room.enter(member)[0][1].nick, f"visitante{member + 1}")
        self.assertLess(len(looked), 3 * 2000)
        room.leave(1500)
        room.rename(700, "ana")
        room.enter("x", "visitante701")
        for member, nick in ((1500, "visitante1501"), (3000, "visitante2001")):
            self.assertEqual(room.enter(member)[0][1].nick, nick)
        room.rename("x", "visitante0")
        for nick in ("visitante701", "visitante2002"):
            self.assertEqual(room.enter(nick)[0][1].nick, nick)

    def test_room_with_echo(self):
        """Em UDP, quem fala também se ouve: só isto lhe mostra que a linha chegou. O membro é o endereço."""
        room, ana, bia = self.servidor.Room(echo=True), ("127.0.0.1", 1), ("127.0.0.1", 2)
        room.enter(ana, "ana")
        self.assertEqual(room.enter(bia, "bia")[1][0], [ana])
        self.assertEqual(room.say(("127.0.0.1", 1), "oi")[0][0], [ana, bia])
        self.assertEqual([members for members, _ in room.rename(ana, "eva")], [[ana, bia]])
        self.assertEqual(room.whisper(bia, "eva", "psiu")[0][0], [ana, bia])
        self.assertEqual(room.whisper(bia, "bia", "psiu")[0][0], [bia])

    def test_chat_deadlines_of_a_newcomer(self):
        """S1: bytes não adiam a saudação; a linha começada ganha o seu prazo; e quem falou a tempo não é expulso."""
        chat, late = self.servidor.Chat(), self.servidor.LATE
        chat.say = lambda text: None
        for data in (b"", b"o", b"NICK ana\n", b"NICK ana\nUSE", b"\xff\xfd\x06"):
            client = self.newcomer(chat)
            greeting = client.deadline
            chat.on_data(client, data)
            self.assertEqual((client.deadline, b"bem-vindo" in client.heard), (greeting, False), data)
            chat.on_timeout(client, late)
            self.assertIn(b"bem-vindo", client.heard)
            unfinished = data[-1:] in (b"o", b"E")
            self.assertEqual(client.deadline is not None and client.deadline > greeting, unfinished, data)
            chat.on_close(client)
        for data in (b"oi\n", b"oi\ncome", b"CAP LS\nNI"):
            client = self.newcomer(chat)
            chat.on_data(client, data)
            chat.on_timeout(client, late)  # a varredura o viu antes, e só agora a sala lhe dá a vez
            self.assertFalse(client.closing, data)
            chat.on_timeout(client, self.servidor.QUIET)
            self.assertTrue(client.closing, data)

    def test_chat_does_not_talk_to_the_gone(self):
        """Quem já foi desligado, e de quem o motor ainda não deu notícia, não custa um send() que falha por linha."""
        chat = self.servidor.Chat()
        chat.say = lambda text: None
        ana, bia, gone = (mock.Mock(closing=False, deadline=None) for _ in range(3))
        for client in (ana, bia, gone):
            chat.on_connect(client)
            chat.on_timeout(client, self.servidor.LATE)
        gone.closing = True
        gone.send.reset_mock()
        chat.on_data(ana, b"oi\n")
        bia.send.assert_called_with(b"<visitante1> oi\n")
        gone.send.assert_not_called()

    def test_chat_one_at_a_time(self):
        """Tudo o que a sala faz é sob a trava dela: outra thread, nesse instante, não a consegue."""
        chat, taken = load("servidor.py").Chat(), []

        def look(*_):
            other = threading.Thread(target=lambda: taken.append(not chat.lock.acquire(blocking=False)))
            other.start()
            other.join()

        chat.say = look
        clients = [mock.Mock(closing=False, deadline=None, send=look, hang_up=look) for _ in range(3)]
        for client in clients:
            chat.on_connect(client)
        for step in (*(functools.partial(chat.on_timeout, client, "") for client in clients),
                     functools.partial(chat.on_data, clients[0], b"/nick ana\noi\n/quem\n/msg ana oi\n/sair\n"),
                     functools.partial(chat.on_timeout, clients[1], "demorou"),
                     functools.partial(chat.on_close, clients[2])):
            taken.clear()
            step()
            self.assertEqual(set(taken), {True}, step)


class TestServidorChatEpoll(ChatTests, ServerTestCase):
    """A sala: quem ouve o quê, e como se diz. Com epoll."""
    motor = "epoll"


class HttpTests:
    """Um navegador também é um cliente."""

    def test_http_shows_the_request(self):
        server = self.serve("--modo", "http")
        answer = self.ask(server, b"GET /a<b> HTTP/1.1\r\nHost: x\r\nX-Mal: <script>\x1b\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertIn(b"Content-Length: %d\r\n" % len(body), head)
        self.assertIn(b"GET /a&lt;b&gt;", body)
        self.assertIn(rb"<td>X-Mal<td>&lt;script&gt;\x1b", body)
        server.expect(r"GET /a<b>")

    def test_http_line_feeds_and_head(self):
        server = self.serve("--modo", "http")
        self.assertIn(b"200 OK", self.ask(server, b"GET / HTTP/1.0\n\n"))
        self.assertTrue(self.ask(server, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"\r\n\r\n"))

    def test_http_refusals(self):
        server = self.serve("--modo", "http")
        self.assertIn(b"HTTP/1.1 400 ", self.ask(server, b"oi\n"))
        self.assertIn(b"HTTP/1.1 400 ", self.ask(server, b"\x16\x03\x01\x02\x00\n\n"))
        self.assertIn(b"HTTP/1.1 431 ", self.ask(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 20000))

    def test_http_answer_survives_unread_body(self):
        """Um corpo que ninguém leu não pode virar um RST que apaga a resposta no caminho."""
        answer = self.ask(self.serve("--modo", "http"), b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 300000)
        self.assertIn(b"200 OK", answer)
        self.assertIn(b"</html>", answer)

    def test_http_by_the_book(self):
        """P5: RFC 9112: linhas vazias antes do pedido, Host, CONNECT, HEAD sem página, NUL no alvo."""
        server = self.serve("--modo", "http")
        for request, status, page in (
                (b"\r\n\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, True), (b"GET / HTTP/1.1\r\n\r\n", 400, True),
                (b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400, True), (b"GET / HTTP/1.0\r\n\r\n", 200, True),
                (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501, True), (b"HEAD / HTTP/1.1\r\n\r\n", 400, False),
                (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 200, False), (b"HEAD oi\r\n", 400, False),
                (b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n", 400, True),
                (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\ncontent-length: 0\r\n\r\n", 200, True),
                (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400, True),
                (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, True),
                (b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400, True)):
            with self.subTest(request):
                head, _, body = self.ask(server, request).partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 %d " % status), head)
                self.assertEqual(bool(body), page)

    def test_http_slow_body(self):
        """P5: um corpo que chega devagar não corta a página: quem move bytes tem mais do que LINGER_S."""
        server = self.serve("--modo", "http", constants={"LINGER_S": 0.3, "TICK_S": 0.05})
        conn = self.connect(server)
        conn.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        end = time.monotonic() + 0.9  # o intervalo é o que se testa: três prazos
        while time.monotonic() < end:
            conn.send(b"x")
            time.sleep(0.02)
        conn.half_close()
        self.assertIn(b"</html>", conn.expect_eof())

    def test_http_slow_request(self):
        """O prazo é do cabeçalho inteiro: um byte de vez em quando não o renova."""
        conn = self.connect(self.serve("--modo", "http", constants={"HEADER_TIMEOUT_S": 0.3, "TICK_S": 0.05}))
        conn.sock.settimeout(0.05)
        conn.send(b"GET / HTTP/1.1\r\nX: ")
        answer, deadline = b"", time.monotonic() + WATCHDOG_S
        while not answer and time.monotonic() < deadline:
            conn.send(b"x")
            with contextlib.suppress(socket.timeout):
                answer = conn.sock.recv(4096)
        self.assertIn(b"HTTP/1.1 408 ", answer)

    def test_http_console_is_escaped(self):
        server = self.serve("--modo", "http")
        self.ask(server, b"GET /\x1b]0;x\x07 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.expect(r"GET /\\x1b\]0;x\\x07")

    def test_http_complete_header_over_the_limit(self):
        server = self.serve("--modo", "http")
        self.assertIn(b"HTTP/1.1 431 ", self.ask(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n"))


class TestServidorHttp(HttpTests, ServerTestCase):
    """Um navegador também é um cliente. Com threads."""

    def test_parse_request(self):
        method, target, headers = self.servidor.parse_request(b"GET /a?b=1 HTTP/1.1\r\nHost: x\r\nA:  b c \r\nVazio:")
        self.assertEqual((method, target), ("GET", "/a?b=1"))
        self.assertEqual(headers, [("Host", "x"), ("A", "b c"), ("Vazio", "")])
        for bad in (b"", b"oi", b"GET /", b"GET / HTTP/2.0", b"GET  / HTTP/1.1", b"G\xc3\xa7T / HTTP/1.1",
                    b"GET / HTTP/1.1\r\nsem dois pontos", b"GET / HTTP/1.1\r\nEspaco : x",
                    b"GET / HTTP/1.1\r\n dobrado: x"):
            with self.subTest(bad), self.assertRaises(self.servidor.ProtocolError):
                self.servidor.parse_request(bad)

    def test_parse_request_takes_linear_time(self):
        """Um cabeçalho cheio de espaços não prende o servidor: uma regex que volta atrás levaria minutos nele."""
        def expired(*_):
            raise AssertionError("ainda não leu o cabeçalho")
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, expired))
        self.addCleanup(signal.alarm, 0)
        signal.alarm(WATCHDOG_S)
        spaces = b" " * (1 << 18)
        _, _, headers = self.servidor.parse_request(b"GET / HTTP/1.0\r\nX: a" + spaces + b"b" + spaces)
        self.assertEqual(headers, [("X", f"a{spaces.decode()}b")])

    def test_request_cut_anywhere(self):
        """Cortado em qualquer ponto, o pedido tem uma resposta só, e só quando acabou."""
        for request in (b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", b"GET / HTTP/1.0\nA: b\n\n"):
            for cut in range(1, len(request)):
                http, client = self.servidor.Http(), mock.Mock()
                http.say = mock.Mock()
                http.on_connect(client)
                http.on_data(client, memoryview(request)[:cut])
                client.hang_up.assert_not_called()
                http.on_data(client, request[cut:])
                client.hang_up.assert_called_once()
                self.assertIn(b"200 OK", client.hang_up.call_args[0][0])
                client.closing = True
                http.on_timeout(client, "demorou demais")  # chegou tarde: já teve resposta
                client.hang_up.assert_called_once()

    def test_http_response(self):
        head, _, body = self.servidor.http_response("GET / ", 200, "título", "<p>ç").partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertIn(b"Content-Length: %d" % len(body), head)
        for header in (b"Connection: close", b"Content-Security-Policy: default-src 'none'"):
            self.assertIn(header, head)


class TestServidorHttpEpoll(HttpTests, ServerTestCase):
    """Um navegador também é um cliente. Com epoll."""
    motor = "epoll"


class ClientTests:
    """A despedida chega inteira, e tem prazo."""

    def test_last_words_larger_than_the_buffers(self):
        """A despedida que não cabe no kernel chega inteira, e depois dela o fim; também a quem já fechou a ida."""
        server = self.serve_with("""
            class Echo(Service):
                def on_connect(self, client):
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                def on_data(self, client, data):
                    client.hang_up(b"x" * 200000)
                def on_close(self, client):
                    if not client.closing:
                        client.send(b"y" * 200000)
            """, constants={"LINGER_S": 10**6})
        conn = self.connect(server, rcvbuf=4096)
        conn.send(b"adeus")
        self.assertEqual(conn.expect_eof(), b"x" * 200000)
        conn = self.connect(server, rcvbuf=4096)
        conn.half_close()
        self.assertEqual(conn.expect_eof(), b"y" * 200000)

    def test_goodbye_has_a_deadline(self):
        """Quem não fecha depois da despedida é desligado: o lugar dele não se perde."""
        server = self.serve("--modo", "chat", constants={"LINGER_S": 0.2, "ROOM_TICK_S": 0.05})
        meter, before = Meter(server), None
        conn = self.join(server)
        before = meter.fds()
        conn.send("/sair\n")
        conn.expect_eof()  # e não fecha o seu lado
        self.until(lambda: meter.fds() < before, "o servidor desligou quem não fechou")

    def test_goodbye_gives_time(self):
        """Antes do prazo da despedida ninguém é desligado: o que ele ainda envia faria um RST, que a apagaria."""
        server = self.serve("--modo", "chat", "--verbose", constants={"LINE_TIMEOUT_S": 0.1, "ROOM_TICK_S": 0.01})
        ana, bia = self.join(server), self.join(server)
        ana.send("/sair\n")
        ana.expect_eof()
        bia.send("linha sem fim")
        self.assertIn("demorou demais", bia.expect_eof().decode())  # houve varreduras desde a despedida de ana
        server.expect_error("acabou a espera por ele")
        self.assertEqual(server.errors().count("acabou a espera por ele"), 1)

    def test_goodbye_ends_the_stream(self):
        """Resposta e FIN: o cliente não espera o prazo da despedida para saber que acabou."""
        server = self.serve("--modo", "http", constants={"LINGER_S": 10**6})
        self.assertIn(b"200 OK", self.ask(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))

    def test_half_close_with_answer_pending(self):
        """Fecha a ida com a volta ainda entupida: o que se devia chega inteiro."""
        conn = self.connect(self.serve(), rcvbuf=4096)
        conn.sock.settimeout(0.3)
        sent = 0
        with self.assertRaises(socket.timeout):  # entope até o servidor deixar de ler
            while sent < 1 << 28:
                sent += conn.sock.send(b"x" * 65536)
        conn.sock.settimeout(WATCHDOG_S)
        conn.half_close()
        self.assertEqual(len(conn.expect_eof()), sent)


class TestServidorClient(ClientTests, ServerTestCase):
    """A despedida chega inteira, e tem prazo. Com threads."""


class TestServidorClientEpoll(ClientTests, ServerTestCase):
    """A despedida chega inteira, e tem prazo. Com epoll."""
    motor = "epoll"


class EngineTests:
    """O que se espera de um motor, seja qual for."""

    def test_client_that_does_not_read_costs_bounded_memory(self):
        """Quem só envia é freado pelo TCP; o servidor não guarda o que ele não lê, e atende os outros."""
        server = self.serve()
        meter, other = Meter(server), self.connect(server)
        other.send(b"antes")
        other.expect(b"antes")
        before = meter.rss()
        conn = self.connect(server, rcvbuf=4096)
        conn.sock.settimeout(0.3)
        sent = 0
        with self.assertRaises(socket.timeout):
            while sent < 1 << 28:
                sent += conn.sock.send(b"x" * 65536)
        self.assertLess(meter.rss() - before, 8 << 20)  # de 256 MiB; sem GIL, o Python devolve menos páginas: até 5
        other.send(b"e os outros?")
        other.expect(b"e os outros?")

    def test_reset_clients_leave_nothing_behind(self):
        """1.000 conexões terminadas por RST: os outros não notam; descritores e threads voltam ao que eram."""
        server = self.serve()
        meter, other = Meter(server), self.connect(server)
        other.send(b"oi")
        other.expect(b"oi")
        fds, threads = meter.fds(), meter.threads()
        for turn in range(1000):
            conn = self.connect(server)
            conn.send(b"x" * (turn % 3))
            conn.reset()
        self.until(lambda: (meter.fds(), meter.threads()) == (fds, threads), "descritores e threads de volta")
        other.send(b"ainda aqui")
        other.expect(b"ainda aqui")

    def test_stop_with_clients_in_every_state(self):
        """SIGTERM e Ctrl+C: estado 0, com 50 clientes ociosos, mudos, entupidos, meio fechados e caídos."""
        for number in (signal.SIGTERM, signal.SIGINT):
            for mode in ("eco", "chat", "http"):
                with self.subTest(sinal=number, modo=mode):
                    server = self.serve("--modo", mode)
                    conns = [self.connect(server, rcvbuf=4096) for _ in range(50)]
                    for index, conn in enumerate(conns):
                        conn.sock.setblocking(False)
                        with contextlib.suppress(BlockingIOError):
                            if index % 5 == 1:
                                conn.sock.send(b"meia linha")
                            elif index % 5 == 2:
                                while mode == "eco":
                                    conn.sock.send(b"x" * 65536)
                            elif index % 5 == 3:
                                conn.half_close()
                            elif index % 5 == 4:
                                conn.reset()
                    self.stop(server, number)

    def test_restart_at_once_on_the_same_port(self):
        """Parado com clientes conectados, sobe de novo na mesma porta, na hora (SO_REUSEADDR)."""
        port = free_port()
        for number in (signal.SIGTERM, signal.SIGINT):
            server = self.serve(port=port)
            self.assertEqual(server.port, port)
            conn = self.connect(server)
            conn.send(b"oi")
            conn.expect(b"oi")
            self.stop(server, number)

    def test_head_closes_the_pipe(self):
        """`./servidor.py --modo chat | head -1`: acaba quieto quando tem o que dizer e ninguém lê."""
        read, write = os.pipe()
        server = self.serve("--modo", "chat", status=1, ready=None, stdout=write)
        os.close(write)
        match = re.match(READY, os.read(read, 4096).decode())
        os.close(read)
        server.host, server.port = match["host"], int(match["port"])
        self.connect(server)
        self.assertEqual(server.wait(), 1)
        self.assertNotRegex(server.errors(), "erro:|rror")

    def test_verbose_escapes(self):
        server = self.serve("--verbose")
        conn = self.connect(server)
        conn.send(b"\x1b]0;x\x07\n")
        conn.expect(b"\n")
        line = server.expect_error(r"<- 127.0.0.1 porta \d+ \d+ B .*")[0]
        self.assertIn(r"\x1b]0;x\x07", line)
        self.assertNotIn("\x1b", server.errors())

    def test_verbose_that_nobody_reads(self):
        """stderr num cano cheio: nenhum cliente espera por ele, nem o fim; e duas threads não misturam linhas."""
        unread, fill = self.stderr_nobody_reads()
        server = self.serve("--verbose", **unread)
        conn = self.connect(server)
        conn.send(b"a")
        conn.expect(b"a")  # as linhas do começo já saíram
        fill()
        for _ in range(3):
            other = self.connect(server)
            other.send(b"b")
            other.expect(b"b")
        self.stop(server)

    def test_console_shows_every_line(self):
        """Quem guarda a conversa (`| tee conversa.log`) a tem inteira, mesmo que alguém cole vinte mil linhas."""
        server = self.serve("--modo", "chat", constants={"STOP_GRACE_S": WATCHDOG_S})
        ana = self.join(server, "ana")
        ana.send("".join(f"linha {n}\n" for n in range(20000)) + "/sair\n")
        ana.expect_eof()
        self.stop(server)
        self.assertEqual(server.output.data.count(b"<ana> linha "), 20000)

    def test_stopped_console(self):
        """Um terminal parado (Ctrl+S: o cano da saída cheio) não para a sala, nem o fim do servidor."""
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        server = self.serve("--modo", "chat", ready=None, stdout=write)
        os.close(write)
        match = re.match(READY, os.read(read, 4096).decode())
        server.host, server.port = match["host"], int(match["port"])
        ana, bia = self.join(server, "ana"), self.join(server, "bia")
        for turn in range(150):
            ana.send(f"{turn} " + "x" * 1000 + "\n")  # no cano cabem 64 KiB
            bia.expect(f"<ana> {turn} ")
        self.stop(server)

    def test_output_closed_from_birth(self):
        """`./servidor.py --modo chat >&-`: sem onde mostrar a conversa, a sala funciona."""
        starter = "import os, sys; os.close(1); os.execv(sys.argv[1], sys.argv[1:])"
        port = free_port()
        server = self.serve("--modo", "chat", port=port, ready=None, prefix=(*PYTHON, "-c", starter))
        server.expect_error("motor")
        server.host, server.port = "127.0.0.1", port
        self.join(server, "ana")
        self.stop(server)


class TestServidorThreadEngine(EngineTests, ServerTestCase):
    """Uma thread por cliente."""

    def test_naive_makes_the_others_wait(self):
        """O ingênuo só atende o segundo quando o primeiro se vai; o nosso atende os dois."""
        naive, _ = self.naive()
        for server, waits in ((naive, True), (self.serve(), False)):
            first, second = self.connect(server), self.connect(server)
            first.send(b"1")
            first.expect(b"1")
            second.send(b"2")
            if waits:
                first.send(b"3")  # uma ida e volta inteira, e o segundo ainda nada
                first.expect(b"3")
                self.assertEqual(select.select([second.sock], [], [], 0)[0], [])
                first.close()
            second.expect(b"2")

    def test_naive_falls_with_a_client(self):
        """Uma conexão que cai (RST) derruba o ingênuo; a nossa acaba sozinha."""
        naive, process = self.naive()
        for server in (naive, self.serve()):
            conn = self.connect(server)
            conn.send(b"1")
            conn.expect(b"1")
            conn.reset()
            if server is naive:
                self.assertIn(b"ConnectionResetError", process.communicate(timeout=WATCHDOG_S)[1])
                self.assertEqual(process.returncode, 1)
        other = self.connect(server)
        other.send(b"2")
        other.expect(b"2")

    def test_broken_outbox_keeps_nothing(self):
        """Quem não lê e cai não deixa 512 KiB na memória até que o Python resolva recolher o lixo."""
        for trouble in (BrokenPipeError, BlockingIOError):
            sock, postman = mock.Mock(), mock.Mock()
            member = self.servidor.Member(sock, "x", postman)
            sock.send.side_effect = trouble
            sock.sendall.side_effect = lambda data: member.box.append(b"x" * 1000) or self.fall()
            member.send(b"oi")
            postman.call.assert_called_once_with(member)
            member.deliver()
            self.assertTrue(member.delivered.wait(WATCHDOG_S))
            self.assertEqual(len(member.box), 0)

    def fall(self):
        raise BrokenPipeError

    def test_timeout_of_a_client_already_gone(self):
        """O prazo alcança um cliente cujo socket já fechou: só ele se perde."""
        servidor, engine = self.engine()
        sock, peer = socket.socketpair()
        sock.close()
        peer.close()
        client = servidor.Client(sock, "x")
        client.session = bytearray()
        engine.guarded(client, engine.service.on_timeout, "demorou demais")  # não levanta nada
        self.assertEqual(engine.faults, 0)

    def test_a_client_waits_whatever_it_inherits(self):
        """No macOS e no Windows o socket de accept() herda da escuta o não esperar; as threads esperam."""
        servidor, engine = self.engine()
        sock, peer = socket.socketpair()
        self.addCleanup(sock.close)
        self.addCleanup(peer.close)
        sock.setblocking(False)
        with mock.patch.object(servidor._thread, "start_new_thread"), \
                mock.patch.object(servidor.sys, "setswitchinterval"):
            engine.adopt(sock, "x")
        self.assertTrue(sock.getblocking())

    def test_full_disk_does_not_end_the_room(self):
        """L1: num disco cheio perde-se a linha, e é contada; não a sala. Um cano fechado é o fim."""
        for number, broken in ((errno.ENOSPC, False), (errno.EPIPE, True)):
            ended, written = mock.Mock(), []
            with mock.patch.object(self.servidor, "write_all") as write:
                write.side_effect = lambda fd, data: written.append(bytes(data)) or self.refuse(written, number)
                pen = self.servidor.Pen(mock.Mock(encoding="utf-8"), ended)
                pen.put("a")
                pen.start()
                self.until(lambda: written, "a primeira linha")
                pen.put("b")
                pen.end()
                pen.join(WATCHDOG_S)
            self.assertEqual((pen.broken, len(written)), (broken, 1 if broken else 2))
            self.assertEqual(ended.call_count, broken)

    def refuse(self, written, number):
        if len(written) == 1:
            raise OSError(number, "")

    def test_what_thousands_of_threads_need(self):
        """Pilha: o 3.14 guarda 32 KiB dela para si, e dos 64 que bastavam antes não sobra para TLS nem HTTP.
        Vez: com os 5 ms do padrão, 9 mil clientes de uma vez param o servidor (4 vezes em 5); com 450, nunca.
        SCHED_BATCH: sem ele, de mil clientes que não param de falar, às vezes dezenas esperam mais de um segundo."""
        servidor, engine = self.engine()
        engine.stopping, engine.clients = True, mock.MagicMock()
        with mock.patch.object(servidor.threading, "stack_size") as stack, \
                mock.patch.object(servidor.sys, "setswitchinterval") as switch, \
                mock.patch.object(servidor._thread, "start_new_thread"), \
                mock.patch.object(servidor.sys, "_is_gil_enabled", lambda: True, create=True), \
                mock.patch.object(servidor.os, "sched_setaffinity", create=True) as pin, \
                mock.patch.object(servidor.os, "sched_setscheduler", create=True) as schedule:
            for count in (1, 9000):
                engine.clients.__len__.return_value = count
                engine.adopt(mock.Mock(), "x")
            engine.clients = set()
            engine.run()
        for size in (stack.call_args[0][0], load("led_gpio.py").STACK_BYTES):
            self.assertGreaterEqual(size, (64 + 52) * 1024)  # 52 KiB: o 3.14 não aceita menos
        few, many = (call[0][0] for call in switch.call_args_list)
        self.assertEqual((few, many > 0.4), (0.005, True))
        self.assertEqual(len(pin.call_args[0][1]), 1)
        if hasattr(os, "SCHED_BATCH"):
            self.assertEqual(schedule.call_args[0][1], os.SCHED_BATCH)

    def test_pinning_is_only_for_speed(self):
        """Onde não deixam escolher a CPU (um sandbox), o servidor roda do mesmo jeito."""
        servidor, engine = self.engine()
        engine.stopping = True
        with mock.patch.object(servidor.os, "sched_setaffinity", side_effect=PermissionError, create=True) as pin, \
                mock.patch.object(servidor.sys, "_is_gil_enabled", lambda: True, create=True), \
                mock.patch.object(servidor.threading, "stack_size"):
            engine.run()
        pin.assert_called_once()

    def test_signal_on_the_way_into_the_wait(self):
        """Um sinal entre a última olhada do Python e o select() não dormiria com ele: o kernel mesmo acorda o motor."""
        servidor, woken = load("servidor.py"), []

        def run(engine):
            woken.append(signal.set_wakeup_fd(-1) == engine.wake_w.fileno())

        for number in (signal.SIGINT, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        with mock.patch.object(servidor.ThreadEngine, "run", run), mock.patch.object(servidor, "Voice"), \
                mock.patch.object(servidor, "raise_fd_limit", return_value=1), \
                contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            servidor.serve(servidor.build_parser().parse_args(["127.0.0.1", "0"]))
        self.assertEqual((woken, signal.set_wakeup_fd(-1)), ([True], -1))

    def test_farewell_that_waits_delays_nobody(self):
        """Quem passou do prazo e não lê pode prender a sua própria despedida; nunca a de todos, nem quem chega."""
        server = self.serve_with("""
            class Echo(Service):
                def on_connect(self, client):
                    client.session, client.deadline = "algo", time.monotonic()
                def on_data(self, client, data):
                    client.deadline = None
                    client.send(data)
                def on_timeout(self, client, why):
                    self.say("prazo")
                    threading.Event().wait()
            """, constants={"TICK_S": 0.05})
        self.connect(server)
        server.expect("prazo")
        other = self.connect(server)
        other.send("oi")
        other.expect("oi")
        self.stop(server)

    def test_stop_waits_for_the_services(self):
        """No fim todos são desligados, e cada serviço tem tempo de ouvir que o seu cliente se foi."""
        server = self.serve_with("""
            class Echo(Service):
                def on_data(self, client, data):
                    client.send(data)
                def on_close(self, client):
                    time.sleep(0.1)  # o bastante para que quem não esperasse já tivesse ido
                    self.say("até logo")
            """, constants={"STOP_GRACE_S": 2 * WATCHDOG_S})
        conns = [self.connect(server) for _ in range(3)]
        for conn in conns:
            conn.send(b"oi")
            conn.expect(b"oi")
        server.kill(signal.SIGTERM)
        server.expect(r"(até logo\n){3}")
        self.assertEqual(server.wait(), 0)

    def test_stop_waits_only_so_long(self):
        """Um serviço preso no seu trabalho não prende o fim do servidor."""
        server = self.serve_with("""
            class Echo(Service):
                def on_data(self, client, data):
                    client.send(data)
                    threading.Event().wait()
            """, constants={"STOP_GRACE_S": 0.1})
        conn = self.connect(server)
        conn.send(b"presa")
        conn.expect(b"presa")
        self.stop(server)

    def test_no_more_threads(self):
        """O sistema nega threads: quem não cabe se perde, e o servidor segue com os outros."""
        if os.geteuid() == 0 or resource is None:
            self.skipTest("para root, RLIMIT_NPROC não limita nada")
        running = len(list(pathlib.Path("/proc").glob("[0-9]*/task/*")))
        for mode in ("eco", "chat"):
            server = self.serve("--modo", mode, preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_NPROC, (running + 8, running + 8)))
            conns = [self.connect(server) for _ in range(40)]
            for conn in conns:
                with contextlib.suppress(OSError):
                    conn.send("oi\n")
            self.stop(server)


class TestServidorEpollEngine(EngineTests, ServerTestCase):
    """Uma thread para todos."""
    motor = "epoll"

    def test_answer_in_pieces(self):
        """Quem ainda não lê pode dever uma leitura inteira, respondida em duas partes; a seguinte já o desliga."""
        servidor, sock = load("servidor.py"), mock.Mock()
        sock.send.side_effect = BlockingIOError
        client = servidor.EpollClient(sock, "x", mock.Mock())
        client.send(bytes(servidor.CHUNK))
        client.send(b"!")
        self.assertEqual((len(client.outbox), client.closing), (servidor.CHUNK + 1, False))
        client.send(b"!")
        self.assertEqual((len(client.outbox), client.closing), (servidor.CHUNK + 1, True))

    def test_no_tls(self):
        result = self.run_script("servidor.py", "--motor", "epoll", "--certificado", "x.pem")
        self.assert_one_line_error(result, "--motor threads", status=2)


class DeadlinesTests:
    """Quem não se mexe não guarda o lugar."""

    def test_idle_clients_are_closed(self):
        server = self.serve("--ocioso", 0.2, constants={"TICK_S": 0.05})
        self.assertEqual(self.connect(server).expect_eof(), b"")

    def test_slow_readers_are_not_idle(self):
        """L2: quem só lê, devagar, não está parado; quem nem envia nem lê, está."""
        if sys.platform != "linux":
            self.skipTest("só o kernel do Linux diz o que o outro lado já confirmou")
        server = self.serve("--ocioso", 0.4, constants={"TICK_S": 0.05})
        conn, size = self.connect(server, rcvbuf=4096), 1 << 20
        sender = threading.Thread(target=conn.send, args=(b"x" * size,))
        sender.start()
        got, slow_until = 0, time.monotonic() + 1.2  # três vezes o prazo, e a leitura não acaba nele
        while got < size:
            data = conn.sock.recv(2048 if time.monotonic() < slow_until else 1 << 16)
            self.assertTrue(data, "desligado no meio da leitura")
            got += len(data)
            if time.monotonic() < slow_until:
                time.sleep(0.01)
        sender.join()
        self.assertEqual(conn.expect_eof(), b"")  # e agora, sim, parado

    def test_active_clients_are_not_idle(self):
        """Com tráfego, o prazo de --ocioso não conta, por mais que a conversa dure."""
        conn = self.connect(self.serve("--ocioso", 0.4, constants={"TICK_S": 0.05}))
        deadline = time.monotonic() + 0.9
        while time.monotonic() < deadline:
            conn.send(b"x")
            conn.expect(b"x")


class TestServidorDeadlines(DeadlinesTests, ServerTestCase):
    """Quem não se mexe não guarda o lugar. Com threads."""


class TestServidorDeadlinesEpoll(DeadlinesTests, ServerTestCase):
    """Quem não se mexe não guarda o lugar. Com epoll."""
    motor = "epoll"


class DoorTests:
    """Quem entra, por onde, e quem espera."""

    def test_ipv6_and_dual_stack(self):
        if not socket.has_ipv6 or not can(*PYTHON, "-c", "import socket; socket.socket(10).bind(('::1', 0))"):
            self.skipTest("esta máquina não tem IPv6")
        for everywhere in ("::", "0::0"):
            server = self.serve(host=everywhere)
            for host in ("::1", "127.0.0.1"):
                conn = self.connect(server, host)
                conn.send(host)
                conn.expect(host)

    def test_tells_how_to_reach_it(self):
        """A linha que se copia para o cliente: 0.0.0.0 não é um endereço a que se possa ir."""
        self.serve().expect_error(r"só esta máquina chega aqui.*\./servidor\.py --motor \w+ :: \d+$")
        self.serve("--modo", "chat").expect_error(r"\./servidor\.py .*--modo chat .*:: \d+$")
        server = self.serve(host="0.0.0.0")
        self.assertNotIn("0.0.0.0", server.expect_error("de outra máquina: .*")[0])
        self.assertNotIn("./cliente.py 0.0.0.0", server.errors())

    def test_host_name(self):
        """C13: localhost é o IPv4, mesmo com as duas linhas em /etc/hosts, como nos outros scripts."""
        self.assertEqual(self.serve(host="localhost").host, "127.0.0.1")

    def test_few_descriptors(self):
        """ulimit -n 64 e 200 clientes de uma vez: sem girar, sem cair, e todos são atendidos, em turnos."""
        server = self.serve(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
        conns = [self.connect(server) for _ in range(200)]
        for conn in conns:
            conn.send(b"oi")
        conns[0].expect(b"oi")
        meter = Meter(server)
        self.until(lambda: meter.fds() >= 48, "o servidor encheu")
        spent, begin = meter.cpu(), time.monotonic()
        conns[1].expect(b"oi")
        time.sleep(0.5)  # não se espera um estado: é o intervalo em que se mede a CPU
        self.assertLess(meter.cpu() - spent, (time.monotonic() - begin) / 2, "girando à toa")
        for conn in conns[2:]:  # cada um que sai dá lugar a outro
            conns[0].close()
            conn.expect(b"oi")
            conn.close()

    def test_allowed_networks(self):
        server = self.serve("--permitir", "192.0.2.0/24", "--permitir", "::1/128", "--verbose")
        self.assertEqual(self.connect(server).expect_eof(), b"")
        server.expect_error("fora das redes de --permitir")
        conn = self.connect(self.serve("--permitir", "127.0.0.0/8"))
        conn.send(b"oi")
        conn.expect(b"oi")

    def test_systemd_socket_activation(self):
        """O systemd abre o socket e o entrega no descritor 3, com LISTEN_PID e LISTEN_FDS."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            server = self.activated(listener)
            self.assertEqual(server.port, port)
        conn = self.connect(server)
        conn.send(b"oi")
        conn.expect(b"oi")

    def test_systemd_gives_two_sockets(self):
        """L15: os dois são atendidos, e as duas portas são ditas."""
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            starter = (f"import os, sys; os.dup2({one.fileno()}, 63); os.dup2({other.fileno()}, 64); os.dup2(63, 3); "
                       "os.dup2(64, 4); os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid())); "
                       "os.execv(sys.argv[1], sys.argv[1:])")
            server = self.spawn("servidor.py", "--motor", self.motor, prefix=(*PYTHON, "-c", starter),
                                pass_fds=(one.fileno(), other.fileno()))
            ports = [sock.getsockname()[1] for sock in (one, other)]
        server.expect(rf"escutando em 127\.0\.0\.1 porta {ports[1]}$")
        for port in ports:
            server.port = port
            conn = self.connect(server)
            conn.send(b"oi")
            conn.expect(b"oi")

    def test_listener_that_is_gone(self):
        """L16: o socket que escuta foi fechado por fora (`ss -K`): uma linha, e estado 1; nem surdo, nem girando."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = self.activated(listener)
            server.status = 1
            conn = self.connect(server)
            conn.send(b"oi")
            conn.expect(b"oi")
            listener.shutdown(socket.SHUT_RDWR)  # o mesmo socket, visto de fora: accept() dará EINVAL
        self.assertEqual(server.wait(), 1)
        self.assertRegex(server.errors(), r"servidor\.py: erro: o socket que escuta se foi \(.+\)\n\Z")

    def test_many_inherited_descriptors(self):
        """C12: com 1100 descritores herdados, os do servidor passam de 1023, e select() não os aceitaria."""
        if resource is None or resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1300:
            self.skipTest("aqui não cabem 1300 descritores")
        starter = ("import os, resource, sys; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
                   "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)); "
                   "[os.set_inheritable(os.dup(0), True) for _ in range(1100)]; os.execv(sys.argv[1], sys.argv[1:])")
        for mode in ("eco", "chat"):
            server = self.serve("--modo", mode, prefix=(*PYTHON, "-c", starter))
            conn = self.connect(server)
            conn.send(b"/quem\n")
            conn.expect("na sala" if mode == "chat" else "/quem\n")

    def test_suggestions_run(self):
        """N13 e C14: o comando sugerido, digitado como aparece, sobe; e leva o valor de uma opção igual à porta."""
        port = str(free_port())
        server = self.serve("--max-clientes", port, "--ocioso", 60, port=port)
        words = server.expect_error(r"para abrir à rede: \./servidor\.py (.+)$")[1].split()
        self.stop(server)
        self.assertEqual(words, ["--motor", self.motor, "--max-clientes", port, "--ocioso", "60", words[-2], port])
        self.assertIn(words[-2], ("::", "0.0.0.0"))
        again = self.spawn("servidor.py", *words)
        self.assertEqual(again.port, int(port))

    def test_allowed_networks_in_the_banner(self):
        """N6: não se anuncia um caminho que --permitir fecha; a receita do README deixa entrar os dois laços."""
        server = self.serve("--permitir", "127.0.0.0/8", "--permitir", "::1", host="0.0.0.0")
        server.expect_error(r"^só atende 127\.0\.0\.0/8, ::1/128$")
        server.expect_error("--permitir não deixa entrar outra$")
        self.assertNotIn("de outra máquina", server.errors())
        text = README.read_text(encoding="utf-8")
        recipe = re.search(r"\./servidor\.py :: 5050 ((?:--permitir \S+\s+(?:\\\n\s+)?)+)", text)[1]
        nets = [self.servidor.network(net) for net in re.findall(r"--permitir (\S+)", recipe)]
        self.assertEqual(len(nets), 3)
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            self.assertTrue(self.servidor.is_allowed(host, nets), host)

    def test_systemd_lies(self):
        starter = ("import os, sys; os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
                   "os.execv(sys.argv[1], sys.argv[1:])")
        result = self.run_script("servidor.py", "--motor", self.motor, prefix=(*PYTHON, "-c", starter))
        self.assert_one_line_error(result, "LISTEN_FDS")

    def test_foreign_listen_pid(self):
        """LISTEN_FDS herdado, mas para outro processo (LISTEN_PID): não é conosco."""
        server = self.serve(env={"LISTEN_FDS": "1", "LISTEN_PID": "1"})
        self.connect(server).close()

    def test_descriptor_3_is_not_a_listener(self):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))  # sem listen()
            starter = (f"import os, sys; os.dup2({sock.fileno()}, 3); os.environ.update(LISTEN_FDS='1', "
                       "LISTEN_PID=str(os.getpid())); os.execv(sys.argv[1], sys.argv[1:])")
            server = self.spawn("servidor.py", "--motor", self.motor, prefix=(*PYTHON, "-c", starter),
                                pass_fds=(sock.fileno(),), ready=None, status=None)
            self.assertEqual(server.wait(), 1)
            self.assertIn("LISTEN_FDS promete", server.errors())

    def test_full_server_waits(self):
        """Dois lugares, por --max-clientes ou porque só há descritores para dois (e FD_RESERVE, que não se gastam):
        quem espera na fila não custa descritor, e entra assim que um sai, sem esperar a varredura (TICK_S)."""
        few = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (18, 18))}
        for args, options in ((("--max-clientes", 2), {}), ((), few)):
            server = self.serve("--verbose", *args, constants={"TICK_S": 10**6}, **options)
            first, second, third = (self.connect(server) for _ in range(3))
            second.send(b"oi")
            second.expect(b"oi")
            third.send(b"eu")
            for _ in range(50):  # 50 idas e voltas: o motor deu muitas voltas, e não aceitou o terceiro
                first.send(b"x")
                first.expect(b"x")
            self.until(lambda: server.errors().count(" 1 B x") == 50, "o registro das 50 voltas")
            self.assertEqual(len(re.findall("conectou", server.errors())), 2)
            first.close()
            third.expect(b"eu")
            self.stop(server)

    def test_emfile(self):
        """Mesmo que a conta de descritores falhe (FD_RESERVE = 0), EMFILE não derruba e não gira."""
        server = self.serve(constants={"FD_RESERVE": 0, "TICK_S": 0.05},
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)))
        conns = [self.connect(server) for _ in range(60)]
        for conn in conns:
            conn.send(b"oi")
        conns[0].expect(b"oi")
        meter = Meter(server)
        self.until(lambda: meter.fds() >= 31, "o servidor encheu")
        spent, begin = meter.cpu(), time.monotonic()
        time.sleep(0.5)  # não se espera um estado: é o intervalo em que se mede a CPU
        self.assertLess(meter.cpu() - spent, (time.monotonic() - begin) / 2, "girando à toa")
        for conn in conns[1:]:
            conns[0].close()
            conn.expect(b"oi")
            conn.close()

    def test_raises_the_descriptor_limit(self):
        server = self.serve(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256)))
        conns = [self.connect(server) for _ in range(100)]
        for conn in conns:
            conn.send(b"oi")
        for conn in conns:  # todos ao mesmo tempo, sem que ninguém saia
            conn.expect(b"oi")


class TestServidorDoor(DoorTests, ServerTestCase):
    """Quem entra, por onde, e quem espera. Com threads."""

    def test_naive_dies_without_descriptors(self):
        """Sem descritores, o accept() acaba com o ingênuo; o nosso espera (test_emfile)."""
        if resource is None:
            self.skipTest("os limites de descritores são do Unix")
        server, process = self.naive("resource.setrlimit(resource.RLIMIT_NOFILE, (listener.fileno() + 1,) * 2)")
        with contextlib.suppress(ConnectionRefusedError):  # a conexão de um teste anterior já o acabou
            self.connect(server)
        self.assertIn(b"Too many open files", process.communicate(timeout=WATCHDOG_S)[1])

    def test_is_allowed(self):
        nets = [self.servidor.network("192.168.1.0/24"), self.servidor.network("fe80::/10")]
        for host, allowed in (("192.168.1.7", True), ("192.168.2.7", False), ("::ffff:192.168.1.7", True),
                              ("fe80::1%eth0", True), ("::1", False)):
            with self.subTest(host):
                self.assertEqual(self.servidor.is_allowed(host, nets), allowed)
        self.assertTrue(self.servidor.is_allowed("10.0.0.1", []))

    def test_errors_of_accept(self):
        """Quem desiste na fila não atrasa o próximo; um erro que fica não faz girar; o macOS não diz quem já se foi."""
        _, engine = self.engine("--permitir", "127.0.0.0/8")
        accept, gone = engine.door.listeners[0].accept, mock.Mock()
        accept.side_effect = (OSError(errno.ECONNABORTED, ""), OSError(errno.ECONNRESET, ""), (gone, None),
                              BlockingIOError())
        with mock.patch.object(engine, "trace") as trace:
            engine.door.accept()
        self.assertEqual(accept.call_count, 4)
        gone.close.assert_called_once_with()
        self.assertNotIn("--permitir", str(trace.call_args_list))
        for number in (errno.EMFILE, errno.ENOBUFS, errno.EPROTO):
            accept.reset_mock()
            accept.side_effect = OSError(number, "")
            engine.door.accept()
            self.assertEqual(accept.call_count, 1)
            engine.deadlines.sweep()  # e a varredura deixa tentar de novo


class TestServidorDoorEpoll(DoorTests, ServerTestCase):
    """Quem entra, por onde, e quem espera. Com epoll."""
    motor = "epoll"


class IrcTests:
    """A mesma sala, para quem usa um programa de IRC."""

    def enter(self, server, nick="ana", hello="NICK {0}\r\nUSER {0} 0 * :{0}\r\n"):
        """Entra como um programa de IRC, e lê até o fim da apresentação."""
        conn = self.connect(server)
        conn.send(hello.format(nick))
        conn.expect(f":sala 366 {nick} #sala ")
        conn.expect("\r\n")
        return conn

    def answer(self, conn, request):
        """O que o servidor responde a isto, até o PONG de uma pergunta que vai atrás."""
        conn.send(request.encode() + b"\r\nPING :fim\r\n")
        return conn.expect(":sala PONG sala :fim\r\n").decode()[:-len(":sala PONG sala :fim\r\n")]

    def test_readme_conversation(self):
        """A conversa do README, linha por linha: `>` é o que um lado envia, `<` o que recebe, byte por byte."""
        section = README.read_text(encoding="utf-8").split("\n### A sala em IRC, linha por linha\n")[1]
        script = re.search(r"^```text\n(.*?)^```", section, re.M | re.S)[1].replace("\n      ", " ")
        ends, steps = {"nc": "\n", "irc": "\r\n"}, 0
        server = self.serve("--modo", "chat", constants={"GREETING_S": 10**6})
        conns = {}
        for line in script.splitlines():
            who, way, text = re.fullmatch(r"(nc|irc) *([<>]) (.+)", line).groups()
            if who not in conns:
                conns[who] = self.connect(server)
            data = (text.replace("\\x01", "\x01") + ends["nc" if text.startswith("* ") else who]).encode()
            steps += 1
            if way == ">":
                conns[who].send(data)
            else:
                self.assertEqual(conns[who].expect("\n"), data)
        self.assertGreater(steps, 30)

    def test_hello_of_each_client(self):
        """Pitfalls 19, 20, 22 e 23: o que cada programa envia primeiro, inteiro ou cortado em qualquer byte."""
        server = self.serve("--modo", "chat")
        table = (("irssi", "CAP LS 302\r\nJOIN :\r\nCAP END\r\nNICK {0}\r\nUSER root root 127.0.0.1 :root\r\n"),
                 ("weechat", "CAP LS 302\r\nNICK {0}\r\nUSER {0} 0 * :root\r\nCAP END\r\n"),
                 ("ii", "NICK {0}\r\nUSER {0} localhost 127.0.0.1 :{0}\r\n"),
                 ("pydle", "CAP LS 302\r\nNICK {0}\r\nUSER {0} 0 * Joao\r\nCAP END\r\n"),
                 ("senha", "PASS x\r\nNICK {0}\r\nUSER {0} 0 * :{0}\r\n"))
        for name, hello in table:
            with self.subTest(name):
                conn = self.enter(server, name, hello)
                self.assertIn(f"311 {name} {name} {name} sala * :{name}", self.answer(conn, f"WHOIS {name}"))
                conn.close()
        hello = table[0][1].format("bia").encode()
        for cut in range(1, len(hello), 3):
            conn = self.connect(server)
            conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            conn.send(hello[:cut])
            conn.send(hello[cut:])
            conn.expect(":sala 451 ")
            conn.expect(":bia!bia@sala JOIN #sala\r\n")
            conn.send("QUIT\r\n")
            self.assertIn(b"ERROR :", conn.expect_eof())

    def test_the_room_sees_only_who_has_a_name(self):
        """Um programa de IRC fala primeiro: não há saudação antes, e os outros só o veem entrar com o seu apelido."""
        server = self.serve("--modo", "chat", constants={"GREETING_S": 10**6})
        ear = self.join(server, "ouvinte")
        ana = self.connect(server)
        ana.send("CAP LS 302\r\n")
        self.assertEqual(ana.expect("\n"), b":sala CAP * LS :\r\n")
        ana.send("JOIN :\r\nCAP END\r\nNICK ana\r\nUSER ana 0 * :ana\r\n")
        self.assertEqual(ear.expect("\n"), b"* ana entrou\n")

    def test_irc_after_the_greeting(self):
        """Quem demora a dizer que fala IRC já era um visitante: sai, e volta com o seu apelido."""
        server = self.serve("--modo", "chat", constants={"GREETING_S": 0, "ROOM_TICK_S": 0.02})
        ear, ana = self.join(server, "ouvinte"), self.connect(server)
        ana.expect("* bem-vindo à sala, visitante1.")
        ana.send("NICK ana\r\nUSER ana 0 * :ana\r\n")
        self.assertEqual(ear.expect("* ana entrou\n").decode(),
                         "* visitante1 entrou\n* visitante1 saiu\n* ana entrou\n")

    def test_who_is_not_irc(self):
        """Só a primeira linha, e em maiúsculas, faz um programa de IRC; o resto é fala, e nada se perde."""
        server = self.serve("--modo", "chat")
        ear = self.join(server, "ouvinte")
        for lines in (["nick ana"], ["USER a b c d"], ["JOIN #sala"], ["NICK ana", "oi"], ["PASS x", "oi"],
                      ["oi", "NICK ana", "USER a b c :d"], ["NICK ana", "USER a b"], ["NICK a", "NICK b", "NICK c"]):
            with self.subTest(lines):
                conn = self.join(server)
                conn.send("\n".join(lines) + "\n")
                for line in lines:
                    ear.expect(f"> {line}\n")
                conn.close()

    def test_held_line_is_said_at_the_end(self):
        """Pitfall 28: NICK ana, sozinha, é fala; com a entrada no fim, ou sem fim de linha."""
        server = self.serve("--modo", "chat")
        ear = self.join(server, "ouvinte")
        for text in ("NICK ana\n", "NICK ana", "NICK ana\nNICK bia"):
            conn = self.join(server)
            conn.send(text)
            conn.half_close()
            for line in text.splitlines():
                ear.expect(f"> {line}\n")
            ear.expect("saiu\n")

    def test_numerics(self):
        """O que não se pode, com o número certo; o que se repete vai escapado."""
        ana = self.enter(self.serve("--modo", "chat"))
        for request, answer in (
                ("XPTO \x1b[2J", ":sala 421 ana XPTO :"), ("PRIVMSG", ":sala 411 ana :"), ("PING", ":sala 409 ana :"),
                ("PRIVMSG #sala", ":sala 412 ana :"), ("PRIVMSG #sala :", ":sala 412 ana :"),
                ("JOIN", ":sala 461 ana JOIN :"), ("PRIVMSG zeca :oi", ":sala 401 ana zeca :"),
                ("PRIVMSG #outra :oi", ":sala 403 ana #outra :"), ("JOIN #outra", ":sala 403 ana #outra :"),
                ("JOIN \x1b[2J", r":sala 403 ana \x1b[2J :"), ("NICK", ":sala 431 ana :"),
                ("NICK a!b", ":sala 432 ana a!b :"), ("NICK :a b", ":sala 432 ana a_b :"),
                ("USER a b c d", ":sala 462 ana :"), ("MODE #sala", ":sala 324 ana #sala +n\r\n"),
                ("MODE #sala b", ":sala 368 ana #sala :"), ("MODE #sala +o ana", ":sala 482 ana #sala :"),
                ("MODE ana +i", ":sala 221 ana +\r\n"), ("MODE #x", ":sala 403 "),
                ("TOPIC #sala", ":sala 332 ana #sala :"), ("TOPIC #sala :x", ":sala 482 ana #sala :"),
                ("MOTD", ":sala 422 ana :"), ("WHOIS zeca", ":sala 401 ana zeca :"),
                ("CAP REQ :sasl", ":sala CAP ana NAK :sasl\r\n"), ("CAP X", ":sala 410 "),
                ("LIST", ":sala 321 ana Canal :gente\r\n:sala 322 ana #sala 1 :"),
                ("WHO #sala", ":sala 352 ana #sala ana sala sala ana H :0 ana\r\n"),
                ("NAMES #sala", ":sala 353 ana = #sala :ana\r\n"), ("PART #outra", ":sala 403 "),
                ("AWAY :x", ":sala 421 ana AWAY :"), ("PASS x", ""), ("PONG x", ""), ("JOIN #sala", ""),
                ("NOTICE zeca :oi", ""), (":x PRIVMSG #sala :oi", ""), ("", "")):
            with self.subTest(request):
                found = self.answer(ana, request)
                self.assertTrue(found.startswith(answer) if answer else not found, found)
                self.assertNotIn("\x1b", found)

    def test_ping_token_comes_back_equal(self):
        """Pitfalls 24 e 27: com espaços e dois-pontos, igual; um CR dentro faz duas linhas; e sempre cabe em 512."""
        ana = self.enter(self.serve("--modo", "chat"))
        self.assertEqual(self.answer(ana, "PING :a b :c  d"), ":sala PONG sala :a b :c  d\r\n")
        self.assertEqual(self.answer(ana, "PING a\rPING b"), ":sala PONG sala :a\r\n:sala PONG sala :b\r\n")
        self.assertEqual(len(self.answer(ana, "PING :" + "ç" * 500).encode()), 511)

    def test_nicknames_of_both_worlds(self):
        """Pitfalls 21 e 26: 433 a quem chega depois, e o nc não toma um apelido que o IRC leria de outro modo."""
        server = self.serve("--modo", "chat")
        ana, other, nc = self.enter(server), self.connect(server), self.join(server)
        other.send("NICK ANA\r\nUSER a 0 * :a\r\n")
        self.assertIn("escolha outro", other.expect(":sala 433 * ANA :").decode() + other.expect("\r\n").decode())
        other.send("NICK ana_\r\n")
        other.expect(":sala 001 ana_ :")
        ana.send("NICK ana_\r\n")
        ana.expect(":sala 433 ana ana_ :")
        for bad in ("ana!x", ":a", "#sala", "a@b", "a,b", "&x", "+x"):
            nc.send(f"/nick {bad}\n")
            nc.expect("* erro:")
        nc.send("/nick ana\n")
        nc.expect("* erro: ana já está na sala")
        ana.send("NICK eva\r\n")
        ana.expect(":ana!ana@sala NICK :eva\r\n")
        nc.expect("* ana agora é eva\n")
        other.expect(":ana!ana@sala NICK :eva\r\n")

    def test_both_ways(self):
        """Pitfall 28b: fala, ação, aviso e recado atravessam os dialetos, e ninguém ouve a si mesmo."""
        server = self.serve("--modo", "chat")
        ana, nc = self.enter(server), self.join(server, "bia")
        ana.expect("bia")
        ana.send("PRIVMSG #sala :oi\r\nPRIVMSG #sala :\x01ACTION acena\x01\r\nNOTICE #sala :aviso\r\n"
                 "PRIVMSG bia :psiu\r\nPRIVMSG bia :\x01VERSION\x01\r\n")
        nc.expect("<ana> oi\n* ana acena\n<ana> aviso\n<ana para bia, em particular> psiu\n"
                  "<ana para bia, em particular> \\x01VERSION\\x01\n")
        nc.send("olá \x1b[2J\n/me pula\n/msg ana segredo\n/nick eva\n/sair\n")
        ana.expect(":bia!bia@sala PRIVMSG #sala :olá \\x1b[2J\r\n:bia!bia@sala PRIVMSG #sala :\x01ACTION pula\x01\r\n"
                   ":bia!bia@sala PRIVMSG ana :segredo\r\n:bia!bia@sala NICK :eva\r\n:eva!eva@sala QUIT :saiu\r\n")
        self.assertEqual(self.answer(ana, "PING x"), ":sala PONG sala :x\r\n")

    def test_part_and_join(self):
        """Quem sai com PART não ouve mais nada, e volta com JOIN; nem fala, nem recebe recados."""
        server = self.serve("--modo", "chat")
        ana, nc = self.enter(server), self.join(server, "bia")
        ana.send("PART #sala :tchau\r\n")
        ana.expect(":ana!ana@sala PART #sala\r\n")
        nc.expect("* ana saiu\n")
        nc.send("não ouve\n/msg ana nem isto\n")
        nc.expect("* erro: ana não está na sala")
        found = self.answer(ana, "PRIVMSG #sala :fantasma")
        self.assertIn(":sala 404 ana #sala :", found)
        self.assertNotIn("PRIVMSG", found)
        self.assertIn(":sala 442 ana #sala :", self.answer(ana, "PART #sala"))
        ana.send("JOIN #outra,#sala\r\n")
        ana.expect(":sala 403 ana #outra :")
        ana.expect(":ana!ana@sala JOIN #sala\r\n")
        ana.expect(":sala 353 ana = #sala :ana bia\r\n")
        self.assertNotIn(b"fantasma", nc.expect("* ana entrou\n"))

    def test_lines_fit(self):
        """Pitfall 25: 1024 bytes de nc viram linhas de até 512, cortadas entre caracteres; e nada se perde."""
        server = self.serve("--modo", "chat")
        ana, nc = self.enter(server), self.join(server, "bia")
        ana.expect(" JOIN #sala\r\n")
        for text in ("ç" * 512, "\U0010ffff" * 256, "a" + "日" * 341, "/me " + "ç" * 500):
            nc.send(text + "\nfim\n")
            *lines, last = ana.expect(":fim\r\n").split(b"\r\n")[:-1]
            if b"NICK" in lines[0]:
                del lines[0]
            self.assertLessEqual(max(map(len, lines)), 510)
            pieces = [line.decode().split(" :", 1)[1].replace("\x01ACTION ", "").strip("\x01") for line in lines]
            self.assertEqual("".join(pieces), text.replace("/me ", ""))

    def test_names_of_a_full_room(self):
        """A lista de quem está se parte em linhas de até 512 bytes."""
        room = self.servidor.Chat().room
        for number in range(200):
            room.enter(number, f"pessoa-de-número-{number:03}")
        irc = self.servidor.Irc(mock.Mock(room=room))
        lines = irc.list_names("ana").split(b"\r\n")[:-1]
        self.assertLessEqual(max(map(len, lines)), 510)
        names = [name for line in lines[:-1] for name in line.decode().split(" :", 1)[1].split()]
        self.assertEqual(names, room.who())

    def test_pasted_lists(self):
        """Mil pedidos de lista numa leitura não param a sala: o limite é em nomes, e os que passam dele são 263."""
        chat = self.servidor.Chat()
        chat.say = lambda text: None
        for number in range(300):
            chat.room.enter(mock.Mock(closing=True), f"pessoa{number}")
        ana = self.newcomer(chat)
        chat.on_data(ana, b"NICK ana\r\nUSER a 0 * :a\r\n")
        limit = self.servidor.LISTED_NAMES
        for request, entry in (("WHO", rb":sala 352 "), ("NAMES", rb"pessoa\d")):
            ana.heard = b""
            chat.on_data(ana, f"{request}\r\n".encode() * 100)
            self.assertIn(f":sala 263 ana {request} :".encode(), ana.heard)
            self.assertIn(len(re.findall(entry, ana.heard)), range(limit - 300, limit + 302))
            ana.heard = b""
            chat.on_data(ana, f"{request}\r\nWHO pessoa7\r\n".encode())
            self.assertGreater(len(re.findall(entry, ana.heard)), 299)
            self.assertIn(b":sala 352 ana #sala pessoa7 sala sala pessoa7 H :0 pessoa7\r\n:sala 315 ", ana.heard)
            self.assertNotIn(b" 263 ", ana.heard)

    def test_line_too_long(self):
        ana = self.enter(self.serve("--modo", "chat"))
        ana.send("PRIVMSG #sala :" + "x" * 1024 + "\r\n")
        self.assertEqual(ana.expect_eof().decode().rpartition("\r\n")[0], "ERROR :linha com mais de 1024 bytes")

    def test_registration_that_never_ends(self):
        """Pitfall 30: CAP LS e mais nada espera como qualquer mudo, e não está na sala."""
        server = self.serve("--modo", "chat", "--ocioso", 0.3, constants={"ROOM_TICK_S": 0.05})
        conn = self.connect(server)
        conn.send("CAP LS\r\nNICK ana\r\nUSER a 0 * :a\r\n")
        self.assertIn(b"ERROR :sil", conn.expect_eof())
        self.assertNotIn(b" 001 ", conn.data)

    def test_broken_irc(self):
        """Comandos sem palavras, colados, cortados, com bytes de controle: só respostas, nunca um fim do servidor."""
        server = self.serve("--modo", "chat")
        rng = random.Random(SEED)
        words = ["CAP", "NICK", "USER", "PASS", "PING", "PONG", "JOIN", "PART", "PRIVMSG", "NOTICE", "NAMES", "WHO",
                 "WHOIS", "MODE", "TOPIC", "LIST", "MOTD", "#sala", ":", "LS", "END", "REQ", "ana", "0", "\x01ACTION",
                 "\x1b", ",", "+b", ":a b", "\x00", "é", "!", "*"]
        for turn in range(60):
            conn = self.connect(server)
            lines = [" ".join(rng.choices(words, k=rng.randrange(5))) for _ in range(40)]
            with contextlib.suppress(ConnectionError):
                conn.send(f"CAP LS\r\nNICK n{turn}\r\nUSER a 0 * :a\r\nCAP END\r\n")
                conn.send("\r\n".join(lines) + "\r\nQUIT\r\n")
                self.assertIn(b"ERROR :", conn.expect_eof(), f"semente {SEED}, volta {turn}")
            conn.close()
        self.enter(server)


class TestServidorIrc(IrcTests, ServerTestCase):
    """O dialeto de IRC. Com threads."""

    def test_parse_irc(self):
        for line, parsed in (("PRIVMSG #sala :oi, tudo bem", ("PRIVMSG", ["#sala", "oi, tudo bem"])),
                             (":eu PRIVMSG ana oi", ("PRIVMSG", ["ana", "oi"])), ("join #sala", ("JOIN", ["#sala"])),
                             ("USER a 0 * :", ("USER", ["a", "0", "*", ""])), ("", ("", [])), (":", ("", [])),
                             ("PING :a :b", ("PING", ["a :b"])), ("  ", ("", []))):
            with self.subTest(line):
                self.assertEqual(self.servidor.parse_irc(line), parsed)

    def test_recognize(self):
        for lines, tongue in ((["CAP LS"], "irc"), (["CAP LS 302"], "irc"), (["NICK x"], ""), (["PASS x"], ""),
                              (["PASS x", "NICK y"], ""), (["NICK x", "USER a b c d"], "irc"), (["oi"], "linhas"),
                              (["PASS x", "NICK y", "USER a 0 * :b"], "irc"), (["NICK x", "CAP LS 302"], "irc"),
                              (["NICK x", "oi"], "linhas"), (["nick x"], "linhas"), (["CAP"], "linhas"),
                              (["GET / HTTP/1.1"], "http"), (["POST /a b HTTP/2"], "http"), (["GET /"], "linhas"),
                              (["NICK x", "GET / HTTP/1.1"], "linhas")):
            with self.subTest(lines):
                self.assertEqual(self.servidor.recognize(lines), tongue)


class TestServidorIrcEpoll(IrcTests, ServerTestCase):
    """O dialeto de IRC. Com epoll."""
    motor = "epoll"


class TestServidorTLSStream(ScriptTestCase):
    """TLS nos dois lados: quem é quem, quem não é, e quem não diz nada."""

    @classmethod
    def setUpClass(cls):
        if not shutil.which("openssl"):
            raise unittest.SkipTest("falta o comando openssl, que cria o certificado do teste")
        cls.dir = tempfile.TemporaryDirectory()
        cls.cert, cls.key = cls.make("servidor", "localhost")
        cls.other_cert, cls.other_key = cls.make("outro", "outro")

    @classmethod
    def make(cls, name, host):
        folder = os.path.join(cls.dir.name, name)
        os.mkdir(folder)
        return new_certificate(folder, host)

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def serve(self, *args, **options):
        files = "--certificado", self.cert, "--chave", self.key
        return self.spawn("servidor.py", "127.0.0.1", 0, *files, *args, **options)

    def client(self, server, *args, **options):
        return self.run_script("cliente.py", "127.0.0.1", server.port, *args, **options)

    def test_echo(self):
        server = self.serve()
        result = self.client(server, "--tls", "--ca", self.cert, "--mensagem", "cifrado", status=0)
        self.assertEqual(result.out, b"cifrado\n")

    def test_both_ways_at_once(self):
        """4 MiB pelo eco: duas threads na mesma sessão TLS; no fim, o close_notify faz o meio-fechamento."""
        data = random.Random(SEED).getrandbits(8 << 22).to_bytes(1 << 22, "little")
        result = self.client(self.serve(), "--tls", "--ca", self.cert, input=data, status=0)
        self.assertEqual(hashlib.sha256(result.out).digest(), hashlib.sha256(data).digest())

    def test_verbose_tells_both_ends(self):
        server = self.serve()
        result = self.client(server, "--ca", self.cert, "--mensagem", "oi", "--verbose", status=0)
        self.assertRegex(result.err, rf"\Aconectado a 127\.0\.0\.1 porta {server.port}, de 127\.0\.0\.1 porta \d+, "
                                     r"TLSv1\.\d, \S+\n\Z")
        plain = self.spawn("servidor.py", "127.0.0.1", 0)
        result = self.client(plain, "--mensagem", "oi", "--verbose", status=0)
        self.assertRegex(result.err, rf"\Aconectado a 127\.0\.0\.1 porta {plain.port}, de 127\.0\.0\.1 porta \d+\n\Z")

    def test_chat_over_tls(self):
        """A sala fala enquanto o cliente está calado: quem espera num recv() do TLS não prende quem escreve."""
        server = self.serve("--modo", "chat")
        context = ssl.create_default_context(cafile=self.cert)
        conns = []
        for _ in range(2):
            sock = context.wrap_socket(self.connect(server).sock, server_hostname="localhost")
            self.addCleanup(sock.close)
            conns.append(Conn(self, sock))
            conns[-1].send("\n")
            conns[-1].expect("comandos\n")
        for turn in range(20):
            conns[turn % 2].send(f"volta {turn}\n")
            conns[1 - turn % 2].expect(f"volta {turn}\n")

    def test_irc_over_tls(self):
        """Um programa de IRC e um cliente.py, cifrados, na mesma sala: apresentação, conversa e despedida."""
        server = self.serve("--modo", "chat", constants={"GREETING_S": 10**6})
        context = ssl.create_default_context(cafile=self.cert)
        sock = context.wrap_socket(self.connect(server).sock, server_hostname="localhost")
        self.addCleanup(sock.close)
        ana = Conn(self, sock)
        ana.send("CAP LS 302\r\nNICK ana\r\nUSER ana 0 * :Ana\r\n")
        self.assertEqual(ana.expect("\n"), b":sala CAP * LS :\r\n")
        ana.send("CAP END\r\n")
        ana.expect(":sala 353 ana = #sala :ana\r\n")
        bia = self.spawn("cliente.py", "localhost", server.port, "--ca", self.cert, "--apelido", "bia",
                         ready="bem-vindo à sala, bia[.]", status=130)
        ana.expect(":bia!bia@sala JOIN #sala\r\n")
        ana.send("PRIVMSG #sala :oi\r\nPRIVMSG bia :\x01ACTION acena\x01\r\n")
        bia.expect("^<ana> oi$")
        bia.type("/msg ana " + "ç" * 400 + "\n")
        first, second = ana.expect("PRIVMSG ana :ç"), ana.expect("\r\n:bia!bia@sala PRIVMSG ana :")
        self.assertEqual((first + second + ana.expect("\r\n")).decode().count("ç"), 400)
        ana.send("QUIT\r\n")
        self.assertEqual(ana.expect_eof().decode(), "ERROR :até logo\r\n")
        bia.expect("^[*] ana saiu$")

    def test_certificate_not_trusted(self):
        server = self.serve()
        self.assert_one_line_error(self.client(server, "--tls", "--mensagem", "oi"), "não convence", "--ca")
        self.assert_one_line_error(self.client(server, "--ca", self.other_cert, "--mensagem", "oi"), "não convence")
        result = self.client(server, "--sem-verificar", "--mensagem", "oi", status=0)
        self.assertIn("impostor", result.err)

    def test_client_certificate(self):
        server = self.serve("--ca-clientes", self.other_cert)
        good = self.client(server, "--ca", self.cert, "--certificado", self.other_cert, "--chave", self.other_key,
                           "--mensagem", "oi", status=0)
        self.assertEqual(good.out, b"oi\n")
        bad = self.client(server, "--ca", self.cert, "--mensagem", "oi")
        self.assert_one_line_error(bad)
        self.assertRegex(bad.err, "desfez o TLS|caiu no meio")  # o RST pode chegar antes do alerta, e apagá-lo
        cliente = load("cliente.py")
        sock = mock.Mock(spec=cliente.TLSStream)
        sock.recv.side_effect = ssl.SSLError(1, "alert")
        sock.recv.side_effect.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        with self.assertRaisesRegex(cliente.Failure, "desfez o TLS.*Ele exige um certificado[?] --certificado ARQUIVO"):
            next(cliente.receive(sock))
        bad = self.client(server, "--ca", self.cert, "--certificado", self.cert, "--chave", self.key, "--mensagem", "a")
        self.assertEqual((bad.status, bad.out), (1, b""), bad)

    def test_alert_seen_by_the_thread_that_says_goodbye(self):
        """Um alerta que shutdown() encontra, numa thread, não se perde: é o que o recv() da outra diz."""
        for name in ("servidor.py", "cliente.py"):
            module = load(name)
            stream = module.TLSStream.__new__(module.TLSStream)
            stream.raw, stream.tls, stream.outgoing, stream.early = mock.Mock(), mock.Mock(), mock.Mock(pending=0), []
            stream.lock, stream.writing = threading.Lock(), threading.Lock()
            stream.outgoing.read.return_value = b""
            stream.tls.read.side_effect = [b"antes", ssl.SSLError(1, "alerta"), ssl.SSLZeroReturnError(6, "fim")]
            stream.shutdown(socket.SHUT_WR)
            self.assertEqual(stream.recv(100), b"antes")
            with self.assertRaisesRegex(ssl.SSLError, "alerta"):
                stream.recv(100)

    def test_silent_handshake(self):
        """Quem não completa o aperto de mão não atrasa os outros, e é desligado no prazo."""
        for timeout in (10**6, 0.1):
            server = self.serve(constants={"HANDSHAKE_TIMEOUT_S": timeout})
            silent, half = self.connect(server), self.connect(server)
            half.send(b"\x16\x03\x01")
            if timeout > 1:
                self.client(server, "--ca", self.cert, "--mensagem", "oi", status=0)
            else:
                self.assertEqual((silent.expect_eof(), half.expect_eof()), (b"", b""))

    def test_slow_handshake(self):
        """Slowloris: um byte de vez em quando não renova o prazo do aperto de mão."""
        conn = self.connect(self.serve(constants={"HANDSHAKE_TIMEOUT_S": 0.3}))
        conn.sock.settimeout(0.02)
        conn.send(b"\x16\x03\x01\x40\x00")  # promete 16 KiB
        ended, deadline = False, time.monotonic() + WATCHDOG_S
        while not ended and time.monotonic() < deadline:
            try:
                conn.send(b"\x01")
                ended = not conn.recv()
            except socket.timeout:
                pass
            except ConnectionError:
                ended = True
        self.assertTrue(ended, "o servidor ainda espera")

    def test_idle_during_handshake(self):
        """O prazo de --ocioso alcança quem ainda não entrou: não há a quem dizê-lo."""
        server = self.serve("--modo", "chat", "--ocioso", 0.1, constants={"ROOM_TICK_S": 0.02})
        self.assertEqual(self.connect(server).expect_eof(), b"")

    def test_minimum_version(self):
        """TLS 1.2 ou mais novo, seja qual for o padrão do Python e do OpenSSL desta máquina."""
        servidor, cliente = load("servidor.py"), load("cliente.py")
        args = servidor.build_parser().parse_args(["--certificado", self.cert, "--chave", self.key])
        self.assertEqual(servidor.load_tls(args).minimum_version, ssl.TLSVersion.TLSv1_2)
        with mock.patch.object(cliente, "TLSStream") as stream:
            cliente.start_tls(None, cliente.build_parser().parse_args(["--tls"]))
        self.assertEqual(stream.call_args[0][1].minimum_version, ssl.TLSVersion.TLSv1_2)

    @contextlib.contextmanager
    def streams(self, wrap=lambda sock: sock):
        """Os dois lados de uma conexão TLS já combinada, ligados por um socketpair: servidor e cliente."""
        accept = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        accept.load_cert_chain(self.cert, self.key)
        context, ends = ssl.create_default_context(cafile=self.cert), []
        one, other = socket.socketpair()
        with one, other:
            stream = load("servidor.py").TLSStream
            thread = threading.Thread(target=lambda: ends.append(stream(wrap(one), accept, server_side=True)))
            thread.start()
            client = stream(wrap(other), context, server_hostname="localhost")
            thread.join()
            for sock in (one, other):
                sock.settimeout(WATCHDOG_S)
            yield ends[0], client

    def test_shutdown_keeps_what_has_arrived(self):
        """O close_notify não joga fora o que já chegou e ninguém leu; e o que ainda vier também se lê."""
        with self.streams() as (server, client):
            server.sendall(b"antes ")
            client.feed()  # chegou à memória, mas ninguém o leu
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(server.recv(100), b"")
            server.sendall(b"depois")
            server.shutdown(socket.SHUT_WR)
            self.assertEqual(b"".join(iter(lambda: client.recv(100), b"")), b"antes depois")

    def test_shutdown_lets_nobody_in(self):
        """O que a outra thread traz da rede enquanto o close_notify se prepara também se lê."""
        with self.streams() as (server, client):
            server.sendall(b"no meio")
            arrived, lock = [client.raw.recv(1 << 16)], client.lock

            class Contended:
                """Mal a trava se solta, a outra thread entra e entrega o que chegou, como em feed()."""
                __enter__ = staticmethod(lock.acquire)

                def __exit__(self, *_):
                    while arrived:
                        client.incoming.write(arrived.pop())
                    lock.release()

            client.lock = Contended()
            client.shutdown(socket.SHUT_WR)
            server.shutdown(socket.SHUT_WR)
            self.assertEqual(b"".join(iter(lambda: client.recv(100), b"")), b"no meio")

    def test_one_thread_at_a_time_in_openssl(self):
        """O OpenSSL só é tocado com a trava; a rede, nunca com ela, e só um escreve nela de cada vez."""
        class Watched:
            """Passa adiante cada chamada, e anota as travas que valem durante ela."""
            def __init__(self, inner, stream=None):
                self.inner, self.stream, self.seen = inner, stream, set()
            def __getattr__(self, name):
                if self.stream:
                    self.seen.add((name, self.stream.lock.locked(), self.stream.writing.locked()))
                return getattr(self.inner, name)

        with self.streams(Watched) as ends:
            for end in ends:
                end.raw.stream = end
                end.tls, end.incoming, end.outgoing = (Watched(inner, end) for inner in (
                    end.tls, end.incoming, end.outgoing))
            for end, other in (ends, ends[::-1]):
                end.sendall(b"oi")
                self.assertEqual(other.recv(100), b"oi")
            for end in ends:
                end.shutdown(socket.SHUT_WR)
            for end in ends:
                self.assertEqual(end.recv(100), b"")
                calls = end.tls.seen | end.incoming.seen | end.outgoing.seen
                self.assertLessEqual({"read", "write", "unwrap", "pending"}, {name for name, *_ in calls})
                self.assertEqual([call for call in calls if not call[1]], [], "OpenSSL sem a trava")
                self.assertEqual(end.raw.seen, {("recv", False, False), ("sendall", False, True)})

    def test_not_tls(self):
        """Um lado fala TLS, o outro não: cada um diz o que houve, e o servidor segue."""
        server = self.serve()
        self.client(server, "--mensagem", "oi")
        self.client(server, "--ca", self.cert, "--mensagem", "oi", status=0)
        plain = self.spawn("servidor.py", "127.0.0.1", 0)
        self.assert_one_line_error(self.client(plain, "--tls", "--mensagem", "oi"), "TLS", "--certificado")

    def test_stop_during_handshake(self):
        server = self.serve()
        for _ in range(10):
            self.connect(server)
        self.stop(server)

    def test_bad_files(self):
        for args in (("--certificado", "/nao/existe.pem"), ("--certificado", self.key),
                     ("--certificado", self.cert, "--chave", self.other_key)):
            self.assert_one_line_error(self.run_script("servidor.py", "127.0.0.1", 0, *args))
        result = self.run_script("servidor.py", "127.0.0.1", 0, "--chave", self.key)
        self.assert_one_line_error(result, "--certificado", status=2)
        for option in (("--tls",), ("--ca", self.cert), ("--sem-verificar",), ("--certificado", self.cert)):
            self.assert_one_line_error(self.run_script("cliente.py", "--medir", *option), "sem TLS", status=2)

    def test_certificate_of_another_name(self):
        """Confiável, mas de outra máquina (127.0.0.1, e não 127.0.0.2): não convence."""
        server = self.spawn("servidor.py", "127.0.0.2", 0, "--certificado", self.cert, "--chave", self.key)
        result = self.run_script("cliente.py", "127.0.0.2", server.port, "--ca", self.cert, "--mensagem", "oi")
        self.assert_one_line_error(result, "não convence")


# ---------------------------------------------------------------------------------------------
# cliente.py

class ClienteTestCase(ScriptTestCase):
    """Um servidor de mentira, para o cliente de verdade."""

    def listener(self, backlog=5):
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.bind(("127.0.0.1", 0))
        if backlog is not None:
            listener.listen(backlog)
        listener.settimeout(WATCHDOG_S)
        return listener, listener.getsockname()[1]

    def accept(self, listener):
        conn = Conn(self, listener.accept()[0])
        self.addCleanup(conn.close)
        return conn


class TestClienteSender(ClienteTestCase):
    """Dois sentidos, duas threads: nada trava, e o que se perde é dito."""

    def test_pipe_is_exact(self):
        """64 MiB pelo eco, de um cano a outro: cópia idêntica. Um cliente que só envia trava antes de 8 MiB."""
        server = self.spawn("servidor.py", "127.0.0.1", 0)
        folder = self.folder()
        chunk = random.Random(SEED).getrandbits(8 << 20).to_bytes(1 << 20, "little")
        with open(folder / "filme", "wb") as film:
            for _ in range(64):
                film.write(chunk)
        with open(folder / "filme", "rb") as film, open(folder / "copia", "wb") as copy:
            client = self.spawn("cliente.py", "127.0.0.1", server.port, ready=None, stdin=film, stdout=copy)
            self.assertEqual(client.wait(), 0)
        self.assertTrue(filecmp.cmp(folder / "filme", folder / "copia", shallow=False))

    def test_empty_input(self):
        server = self.spawn("servidor.py", "127.0.0.1", 0)
        self.assertEqual(self.run_script("cliente.py", "127.0.0.1", server.port, status=0).out, b"")

    def test_input_that_cannot_be_read(self):
        """Aberta só para escrever (`0>/dev/null`): o cliente diz, e acaba, depois da resposta ao que já seguiu."""
        server = self.spawn("servidor.py", "127.0.0.1", 0, "--modo", "chat")
        with open(os.devnull, "wb") as unreadable:
            client = self.spawn("cliente.py", "127.0.0.1", server.port, "--apelido", "ana", ready=None, status=1,
                                stdin=unreadable)
            client.expect("(bem-vindo à sala, ana|agora você é ana)")
            self.assertEqual(client.wait(), 1)
        self.assertRegex(client.errors(), r"\Acliente\.py: erro: não consigo ler a entrada: .*\n\Z")

    def test_message_waits_for_the_whole_answer(self):
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--mensagem", "maçã", ready=None)
        conn = self.accept(listener)
        self.assertEqual(conn.expect_eof(), "maçã\n".encode())
        for part in ("um ", "dois ", "três"):
            conn.send(part)
        conn.close()
        client.expect("um dois três$")
        self.assertEqual(client.wait(), 0)

    def test_server_dies_in_the_middle(self):
        """Um RST no meio: estado 1 e uma frase; o que chegou antes já foi entregue."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, status=1)
        conn = self.accept(listener)
        client.type("oi\n")
        conn.expect("oi\n")
        conn.send("olá\n")
        client.expect("olá\n")
        conn.reset()
        self.assertEqual(client.wait(), 1)
        self.assertIn("cliente.py: erro: o servidor caiu no meio da conversa", client.errors())

    def test_error_at_the_prompt(self):
        """No terminal, a frase do erro começa numa linha sua, e não grudada ao que se digitava."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, status=1, tty="all", env={"TERM": "xterm"})
        conn = self.accept(listener)
        client.expect("> ")
        client.type("meia")
        client.expect("meia")
        conn.reset()
        client.expect(r"\A\r?\ncliente\.py: erro: o servidor caiu no meio da conversa")
        self.assertEqual(client.wait(), 1)

    def test_network_dies_in_the_middle(self):
        """Nem todo fim é um RST: o kernel que desiste de retransmitir tem a mesma frase."""
        cliente = load("cliente.py")
        for number in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ECONNRESET):
            sock = mock.Mock(**{"recv.side_effect": OSError(number, "motivo")})
            with self.assertRaisesRegex(cliente.Failure, r"caiu no meio da conversa \(motivo\)"):
                cliente.receive_piece(sock)

    def test_server_closes_before_all_is_sent(self):
        listener, port = self.listener()
        with open("/dev/zero", "rb") as endless:
            client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, status=1, stdin=endless)
        conn = self.accept(listener)
        conn.sock.recv(10)
        conn.close()
        self.assertEqual(client.wait(), 1)
        self.assertRegex(client.errors(), "antes de receber tudo|caiu no meio")

    def test_server_closes_first(self):
        """O servidor se despede sem RST e lê o que ainda vem: o cliente diz que a entrada não tinha acabado."""
        listener, port = self.listener()
        with open("/dev/zero", "rb") as endless:
            client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, status=1, stdin=endless,
                                constants={"LAST_WORDS_S": WATCHDOG_S})
        conn = self.accept(listener)
        conn.half_close()
        while conn.sock.recv(65536):
            pass
        self.assertEqual(client.wait(), 1)
        self.assertIn("antes de receber tudo", client.errors())

    def test_head_closes_the_pipe(self):
        listener, port = self.listener()
        read, write = os.pipe()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, status=1, stdout=write)
        os.close(write)
        os.close(read)
        self.accept(listener).send(b"x" * 100)
        self.assertEqual(client.wait(), 1)
        self.assertEqual(client.errors(), "")

    def test_output_closed(self):
        """L1: `./cliente.py >&-`: sem onde escrever, ainda envia; a resposta que se perde é dita, e o estado é 1."""
        starter = "import os, sys; os.close(1); os.execv(sys.argv[1], sys.argv[1:])"
        for answer, status in (("", 0), ("tchau\n", 1)):
            listener, port = self.listener()
            client = self.spawn("cliente.py", "127.0.0.1", port, "--mensagem", "oi", ready=None, status=status,
                                prefix=(*PYTHON, "-c", starter))
            conn = self.accept(listener)
            conn.expect("oi\n")
            conn.send(answer)
            conn.close()
            self.assertEqual(client.wait(), status)
            self.assertEqual("erro: o descritor está fechado" in client.errors(), bool(answer), client.errors())

    def test_the_answer_was_nothing(self):
        """--mensagem que não teve resposta o diz, e o que se pode tentar; o estado é 0: enviar, ela enviou."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--mensagem", "oi", ready=None)
        conn = self.accept(listener)
        conn.expect("oi\n")
        conn.close()
        self.assertEqual(client.wait(), 0)
        self.assertIn("não respondeu nada. Ele só fala TLS?", client.errors())


    def naive(self, data, timeout):
        """O programa ingênuo da docstring, contra um eco de verdade: (estado, o que voltou); None se travou."""
        server = self.spawn("servidor.py", "127.0.0.1", 0)
        code = "import os, socket\n" + naive_program("cliente.py").replace("5050", str(server.port))
        with tempfile.TemporaryFile() as source:
            source.write(data)
            source.seek(0)
            try:
                done = subprocess.run([*PYTHON, "-c", code], stdin=source, stdout=subprocess.PIPE,
                                      timeout=timeout)
            except subprocess.TimeoutExpired:
                return None
        return done.returncode, done.stdout

    def test_naive_program(self):
        """O ingênuo leva e traz um texto; com 64 MiB ele e o servidor se travam, e o nosso não."""
        self.assertEqual(self.naive(b"oi\n", WATCHDOG_S), (0, b"oi\n"))
        data = bytes(64 << 20)
        self.assertIsNone(self.naive(data, 2), "ninguém lê, e todos esperam")
        server = self.spawn("servidor.py", "127.0.0.1", 0)
        self.assertEqual(self.run_script("cliente.py", "127.0.0.1", server.port, input=data, status=0).out, data)

    def test_output_cut_short(self):
        """L1: uma cópia que não coube nunca acaba em 0: num arquivo limitado, num disco cheio, com e sem
        PYTHONUNBUFFERED; e um cano que não espera recebe tudo."""
        server = self.spawn("servidor.py", "127.0.0.1", 0)
        message = "x" * 3000
        for env in ({}, {"PYTHONUNBUFFERED": "1"}):
            path = self.folder() / "saida"
            limit = ("sh", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@" >' + str(path), "sh")
            say = functools.partial(self.run_script, "cliente.py", "127.0.0.1", server.port, "--mensagem", env=env)
            result = say(message, prefix=limit)
            self.assert_one_line_error(result, "passou do tamanho permitido")
            if os.path.exists("/dev/full"):
                full = ("sh", "-c", 'exec "$@" >/dev/full', "sh")
                self.assert_one_line_error(say("a", prefix=full), "espaço")
            read, write = os.pipe()
            os.set_blocking(write, False)
            child = self.spawn("cliente.py", "127.0.0.1", server.port, ready=None, stdout=write, env=env)
            os.close(write)
            sent = bytes(range(256)) * 4096
            feeder = threading.Thread(target=lambda: (child.stdin.write(sent), child.stdin.close()))
            feeder.start()
            with os.fdopen(read, "rb") as pipe:
                self.assertEqual(pipe.read(), sent)
            feeder.join()
            self.assertEqual(child.wait(), 0)


class TestClienteConnect(ClienteTestCase):
    """Conectar, e por que não."""

    def test_server_is_not_there(self):
        _, port = self.listener(backlog=None)  # a porta é nossa, e ninguém escuta nela
        result = self.run_script("cliente.py", "127.0.0.1", port)
        self.assert_one_line_error(result, "ninguém escuta", "conexão recusada", f"./servidor.py 127.0.0.1 {port}")

    def test_server_comes_later(self):
        listener, port = self.listener(backlog=None)
        client = self.spawn("cliente.py", "127.0.0.1", port, "--tentar", 30, "--mensagem", "cheguei", ready=None)
        client.expect_error("insisto por 30 s: ninguém escuta")
        listener.listen()
        conn = self.accept(listener)
        self.assertEqual(conn.expect_eof(), b"cheguei\n")
        conn.send(b"bem-vindo\n")
        conn.close()
        client.expect("bem-vindo\n")
        self.assertEqual(client.wait(), 0)

    def test_host_that_drops_packets(self):
        """Sem recusa e sem resposta: a fila cheia de uma escuta descarta o SYN, como um firewall faz."""
        listener, port = self.listener(backlog=0)
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            result = self.run_script("cliente.py", "127.0.0.1", port, "--espera", 0.5)
            self.assert_one_line_error(result, "não respondeu", "firewall", "ping 127.0.0.1")
            bounded = self.run_script("cliente.py", "127.0.0.1", port, "--espera", 3600, "--tentar", 0.3, status=1)
            self.assertIn("não respondeu", bounded.err)  # --espera é de cada tentativa; --tentar, de todas

    def test_insists_with_who_drops_packets(self):
        """Quem não responde a uma tentativa talvez responda à próxima; o motivo é o mesmo, no começo e no fim."""
        cliente, now = load("cliente.py"), [0]

        def dial(host, port, patience):
            now[0] += patience
            raise socket.timeout

        args = cliente.build_parser().parse_args(["127.0.0.1", "7", "--espera", "0.2", "--tentar", "0.3"])
        with mock.patch.object(cliente, "dial", dial), mock.patch.object(cliente, "time") as clock, \
                contextlib.redirect_stderr(io.StringIO()) as err:
            clock.monotonic, clock.sleep = (lambda: now[0]), (lambda seconds: now.__setitem__(0, now[0] + seconds))
            with self.assertRaisesRegex(cliente.Failure, "127.0.0.1 porta 7 não respondeu em 0.7 s"):
                cliente.connect(args)
        self.assertRegex(err.getvalue(), r"\Ainsisto por 0.3 s: 127.0.0.1 porta 7 não respondeu em 0.2 s[^\n]*\n\Z")

    def test_last_try_keeps_the_cause(self):
        """A última tentativa, encurtada pelo que resta de --tentar, não troca "ninguém escuta" por "não respondeu"."""
        cliente = load("cliente.py")
        args = cliente.build_parser().parse_args(["--tentar", "0.01"])
        errors = itertools.chain([ConnectionRefusedError()], itertools.repeat(socket.timeout()))
        with mock.patch.object(cliente, "dial", side_effect=errors) as dial, \
                mock.patch.object(cliente, "RETRY_S", 0.02), contextlib.redirect_stderr(io.StringIO()), \
                self.assertRaisesRegex(cliente.Failure, "ninguém escuta"):
            cliente.connect(args)
        self.assertGreater(dial.call_count, 1)

    def test_never_talks_to_itself(self):
        """Sem ninguém na porta, o kernel pode sortear justo ela para o cliente: isso é uma recusa, não um eco."""
        cliente, tries = load("cliente.py"), []

        class Alone(socket.socket):
            def connect(sock, address):
                tries.append(sock)
                sock.bind(address)
                super().connect(address)
        args = cliente.build_parser().parse_args(["127.0.0.1", str(free_port())])
        with mock.patch.object(cliente.socket, "socket", Alone), \
                self.assertRaisesRegex(cliente.Failure, "ninguém escuta"):
            cliente.connect(args)
        self.assertEqual(tries[0].fileno(), -1, "a porta não fica presa ao cliente")

    def test_port_in_the_place_of_the_address(self):
        self.assert_one_line_error(self.run_script("cliente.py", 8081), "./cliente.py 127.0.0.1 8081", status=2)

    def test_impossible_host_name(self):
        self.assert_one_line_error(self.run_script("cliente.py", "a..b"), "não encontro a máquina")

    def test_naive_says_a_number(self):
        """O ingênuo, sem servidor, mostra um traceback; o nosso, o que houve e o que digitar."""
        _, port = self.listener(backlog=None)
        code = "import os, socket\n" + naive_program("cliente.py").replace("5050", str(port))
        done = subprocess.run([*PYTHON, "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.assertIn(b"Traceback", done.stderr)
        self.assert_one_line_error(self.run_script("cliente.py", "127.0.0.1", port), "ninguém escuta", "./servidor.py")

    def test_one_deadline_for_all_the_addresses(self):
        """C15: três endereços mudos e --espera 2: um prazo só, repartido entre eles."""
        cliente, patience = load("cliente.py"), []

        class Mute:
            def settimeout(self, seconds):
                patience.append(seconds)

            def connect(self, address):
                raise socket.timeout()

            def close(self):
                pass
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.%d" % n, 1)) for n in (1, 2, 3)]
        with mock.patch.object(cliente.socket, "socket", lambda family: Mute()), \
                mock.patch.object(cliente.socket, "getaddrinfo", return_value=found), \
                self.assertRaises(socket.timeout):
            cliente.dial("nome", 1, 2)
        self.assertEqual(len(patience), 3)
        self.assertLessEqual(patience[0], 2 / 3)

    def test_a_family_that_is_not_spoken(self):
        """C14: sem IPv6 no kernel, o erro de um nome com os dois é o do IPv4; e o de ::1 diz por quê."""
        def silent(family):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            return mock.Mock(**{"connect.side_effect": ConnectionRefusedError(errno.ECONNREFUSED, "")})

        found = [(family, 1, 6, "", ("", 1)) for family in (socket.AF_INET6, socket.AF_INET)]
        for script in ("cliente.py", "led_gpio.py"):
            m = load(script)
            with mock.patch.object(m.socket, "socket", silent):
                for order in (found, found[::-1]):
                    with mock.patch.object(m.socket, "getaddrinfo", return_value=order), \
                            self.assertRaises(ConnectionRefusedError):
                        m.dial("nome", 1, 2)
                with self.assertRaises(OSError) as caught:
                    m.dial("::1", 1, 2)
            self.assertRegex(m.explain_host(caught.exception, "::1"), "sem IPv6.* ::1: use o endereço IPv4$")

    def test_a_resolver_that_is_not_there_yet(self):
        """C15: --tentar insiste com o DNS que ainda não responde; um nome que não existe é um erro na hora."""
        cliente = load("cliente.py")
        args = cliente.build_parser().parse_args(["nome", "5050", "--tentar", "30"])
        listener, port = self.listener()
        answers = [socket.gaierror(socket.EAI_AGAIN, "x"), [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]]
        with mock.patch.object(cliente.socket, "getaddrinfo", side_effect=answers), \
                mock.patch.object(cliente, "RETRY_S", 0), contextlib.redirect_stderr(io.StringIO()) as said:
            cliente.connect(args).close()
        self.assertIn("o DNS não respondeu", said.getvalue())
        with mock.patch.object(cliente.socket, "getaddrinfo", side_effect=socket.gaierror(socket.EAI_NONAME, "x")), \
                self.assertRaisesRegex(cliente.Failure, "confira o nome"):
            cliente.connect(args)

    def test_another_machine_that_only_listens_to_itself(self):
        """N7: recusado noutra máquina, o mais comum é um servidor em 127.0.0.1: a dica é o que digitar lá."""
        cliente = load("cliente.py")

        def hint(*words):
            return cliente.explain_refusal(cliente.build_parser().parse_args(words))

        self.assertIn("naquela máquina: ./servidor.py 0.0.0.0 7000", hint("192.0.2.1", "7000"))
        self.assertIn("naquela máquina: ./servidor.py :: 7000", hint("2001:db8::1", "7000"))
        self.assertIn("./servidor.py 127.0.0.1 7000", hint("127.0.0.1", "7000"))
        # Com um apelido, o eco de ./servidor.py não serviria.
        for words, server in (((), "./servidor.py"), (("127.0.0.1", "7000"), "./servidor.py 127.0.0.1 7000"),
                              (("192.0.2.1", "7000"), "./servidor.py 0.0.0.0 7000")):
            self.assertTrue(hint(*words, "--apelido", "ana").endswith(f"{server} --modo chat"), words)


class TestClienteScreen(ClienteTestCase):
    """O teclado e a tela, que são de dois ao mesmo tempo."""

    def edited(self, typed):
        """O que se redesenha do que foi digitado: sem o readline, quem o guarda é o terminal, e só o prompt volta."""
        return typed if importlib.util.find_spec("readline") else ""

    def test_prompt(self):
        """No terminal: o que chega aparece inteiro acima da linha que se digita, escapado, e ela continua lá."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=True, env={"TERM": "xterm"})
        conn = self.accept(listener)
        client.expect("> ")
        client.type("olá")
        client.expect("olá")
        conn.send("notícia \x1b]0;x\x07\n")
        client.expect(r"notícia \\x1b\]0;x\\x07\r?\n> ".encode() + self.edited("olá").encode())
        client.type(" mundo\n")
        conn.expect("olá mundo\n")
        client.expect("\n> ")  # um Ctrl+D digitado entre duas linhas, o terminal o come
        client.type("\x04")
        self.assertEqual(conn.expect_eof(), b"")
        conn.send("até logo\n")
        conn.close()
        client.expect("até logo")
        self.assertEqual(client.wait(), 0)

    def test_pieces_of_a_line_at_the_prompt(self):
        """Uma linha que chega aos pedaços se junta na tela, ainda que haja uma sendo digitada."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=True, status=130, env={"TERM": "xterm"})
        conn = self.accept(listener)
        client.expect("> ")
        client.type("oi")
        client.expect("oi")
        oi = self.edited("oi")
        conn.send("nome do us")
        client.expect(r"nome do us\r?\n> " + oi)
        conn.send("uário: ")
        client.expect("\x1b\\[A\x1b\\[Jnome do usuário: \r?\n> " + oi)  # sobe uma linha, apaga, e escreve inteira
        conn.send("x\ny\n")
        client.expect("\x1b\\[A\x1b\\[Jnome do usuário: x\r?\ny\r?\n> " + oi)
        conn.send("z\n")
        client.expect("\r\x1b\\[Jz\r?\n> " + oi)
        self.stop(client, signal.SIGINT)

    def test_stopped_and_back(self):
        """Ctrl+Z e fg: o shell deixa o terminal ao modo comum; o prompt volta, com a linha, e ela não sai em dobro."""
        import termios
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=True, status=130, env={"TERM": "xterm"})
        conn = self.accept(listener)
        client.expect("> ")
        client.type("olá")
        client.expect("olá")
        own = termios.tcgetattr(client.master)
        client.popen.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, client.pid, os.WSTOPPED | os.WNOWAIT)
        common = own[:3] + [own[3] | termios.ICANON | termios.ECHO] + own[4:]
        termios.tcsetattr(client.master, termios.TCSANOW, common)
        client.popen.send_signal(signal.SIGCONT)
        client.expect("> " + self.edited("olá"))
        self.assertEqual(termios.tcgetattr(client.master)[3], own[3])
        client.type(" mundo\n")
        conn.expect("olá mundo\n")
        self.stop(client, signal.SIGINT)

    def test_pieces_of_a_character(self):
        """Um `ç` partido entre dois envios, e um fim de linha também: no prompt se juntam; no cano, passam como vêm."""
        listener, port = self.listener()
        for tty in (True, False):
            client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=tty, status=130)
            conn = self.accept(listener)
            if tty:
                client.expect("> ")
            for piece, screen, pipe in ((b"ma\xc3", r"ma\r?\n> ", rb"ma\xc3"),
                                        (b"\xa7\xc3\xa3\r", r"maçã\r?\n> ", rb"\xa7\xc3\xa3\r"),
                                        (b"\nfim\rdela\r\n", r"maçã\r?\nfim\\rdela\r?\n> ", rb"\nfim\rdela\r\n")):
                conn.send(piece)
                client.expect(screen if tty else rb"\A%s\Z" % pipe)
            self.stop(client, signal.SIGINT)

    def test_prompt_is_painted_once(self):
        """O que chega com o prompt a meio caminho espera que ele se complete; e o adeus vem na linha seguinte."""
        for name in ("cliente.py", "cliente_udp.py"):
            module = load(name)
            screen = mock.Mock(typing=True, unfinished="", dumb=False, over=False, **{"edited.return_value": "> "})
            with mock.patch("builtins.print") as paint, \
                    mock.patch.object(module.os, "get_terminal_size", return_value=os.terminal_size((80, 24))):
                screen.painted.wait.side_effect = lambda limit: self.assertFalse(paint.called)
                module.Screen.show(screen, "oi\n")
            self.assertTrue(screen.painted.wait.called and paint.called)
            screen.painted.set.assert_called_once_with()  # sem readline ninguém o faria, e cada pedaço esperaria

    def repainted(self, module, typed, width, unfinished="", text="oi\n", dumb=False):
        """O que vai à tela quando chega `text`, com `typed` na linha em edição."""
        screen = mock.Mock(typing=True, unfinished=unfinished, dumb=dumb, over=False,
                           **{"edited.return_value": "> " + typed})
        with mock.patch.object(module.os, "get_terminal_size", return_value=os.terminal_size((width, 24))), \
                contextlib.redirect_stdout(io.StringIO()) as out:
            module.Screen.show(screen, text)
        return out.getvalue()

    def test_rows_of_the_line(self):
        """P2: quantas linhas da tela a que se digita ocupa: um ideograma vale duas colunas, e o que não cabe no fim da
        linha desce inteiro; um acento à parte, nenhuma; um TAB vai à próxima parada; um Ctrl+A se vê como ^A."""
        table = ((20, "x" * 17, 0, ""), (20, "x" * 18, 1, " \r"), (20, "x" * 40, 2, ""),
                 (20, "日" * 8, 0, ""), (20, "日" * 9, 1, " \r"), (20, "日本" * 10, 2, ""),
                 (20, "e\u0301" * 17, 0, ""), (20, "e\u0301" * 18, 1, " \r"),
                 (20, "か\u3099" * 8, 0, ""), (20, "👩\u200d💻" * 4, 0, ""),
                 (21, "日" * 10, 1, ""), (20, "\t\t", 0, ""), (16, "a\tb\tc", 1, ""), (20, "\x01" * 9, 1, " \r"))
        for name in ("cliente.py", "cliente_udp.py"):
            module = load(name)
            for width, typed, rows, end in table:
                painted = self.repainted(module, typed, width)
                self.assertEqual(painted, "\r" + "\x1b[A" * rows + "\x1b[Joi\n> " + typed + end, (width, typed))

    def test_dumb_terminal(self):
        """P2: um terminal que não apaga (TERM=dumb) não recebe códigos: a linha é repetida embaixo."""
        for name in ("cliente.py", "cliente_udp.py"):
            painted = self.repainted(load(name), "abc", 80, dumb=True)
            self.assertEqual(painted, "\noi\n> abc")

    def test_server_leaves_at_the_prompt(self):
        """O servidor fecha enquanto se pensa: o cliente diz, e termina sem esperar Enter."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=True)
        conn = self.accept(listener)
        client.expect("> ")
        conn.close()
        self.assertEqual(client.wait(), 0)
        self.assertIn("o servidor fechou a conexão", client.errors())

    def test_ctrl_c(self):
        """Ctrl+C e SIGTERM são um fim só: no terminal, no cano, à espera do servidor e no meio da medição."""
        for number in (signal.SIGINT, signal.SIGTERM):
            listener, port = self.listener()
            for tty in (False, True):
                client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=tty, status=130)
                self.accept(listener).send("pronto\n")
                client.expect("pronto")
                self.stop(client, number)
            client = self.spawn("cliente.py", "127.0.0.1", port, "--medir", "--conexoes", 1, ready=None, status=130)
            self.accept(listener).sock.recv(1)
            self.stop(client, number)
            _, port = self.listener(backlog=None)
            client = self.spawn("cliente.py", "127.0.0.1", port, "--tentar", 60, ready=None, status=130)
            client.expect_error("insisto por")
            self.stop(client, number)

    def test_terminal_is_given_back(self):
        """O readline desliga o eco enquanto se digita; seja qual for o fim, o terminal volta como estava."""
        if not importlib.util.find_spec("readline"):
            self.skipTest("este Python não tem readline")
        import termios
        listener, port = self.listener()
        for number in (None, signal.SIGINT, signal.SIGTERM):
            client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=True, status=130 if number else 0)
            conn = self.accept(listener)
            client.expect("> ")
            self.assertFalse(termios.tcgetattr(client.master)[3] & termios.ECHO, "o readline não estava no comando")
            client.kill(number) if number else conn.close()
            client.wait()
            for flag in (termios.ECHO, termios.ICANON):
                self.assertTrue(termios.tcgetattr(client.master)[3] & flag)

    def test_nickname(self):
        server = self.spawn("servidor.py", "127.0.0.1", 0, "--modo", "chat")
        client = self.spawn("cliente.py", "127.0.0.1", server.port, "--apelido", "ana", ready=None)
        client.expect("bem-vindo à sala, ana[.]")
        client.stdin.close()
        self.assertEqual(client.wait(), 0)
        server.expect("ana saiu")

    def test_terminal_in_pipe_out(self):
        """`./cliente.py | tee copia`: sem prompt no cano, e o fim é limpo."""
        listener, port = self.listener()
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, stdin=slave, status=130)
        os.close(slave)
        conn = self.accept(listener)
        os.write(master, b"oi\n")
        conn.expect("oi\n")
        conn.send("resposta\n")
        client.expect(r"\Aresposta\n")
        self.stop(client, signal.SIGINT)

    def test_typing_in_any_encoding(self):
        """O que se digita segue como veio, byte por byte, mesmo que o Python não saiba lê-lo."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=True, env={"PYTHONIOENCODING": "ascii"})
        conn = self.accept(listener)
        client.expect("> ")
        client.type("maçã\n")
        conn.expect("maçã\n")
        conn.close()
        client.wait()

    def test_ascii_output(self):
        listener, port = self.listener()
        for encoding in ("ascii", "cp1252"):
            client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=True,
                                env={"PYTHONIOENCODING": encoding})
            conn = self.accept(listener)
            conn.send("maçã 🙂\n")
            client.expect("ma.{1,4} ")
            conn.close()
            client.wait()


class TestClienteMeter(ClienteTestCase):
    """A medição."""

    def test_histogram(self):
        histogram = load("cliente.py").Histogram()
        rng = random.Random(SEED)
        values = sorted(int(rng.lognormvariate(11, 2)) + 1 for _ in range(5000))
        for value in values:
            low = histogram.floor(value)
            self.assertLessEqual(low, value)
            self.assertEqual(histogram.floor(low), low)
            self.assertLess(value - low, max(value / 32, 1))
            histogram.add(value)
        self.assertEqual(histogram.total(), 5000)
        self.assertLessEqual(len(histogram.counts), 32 * values[-1].bit_length())
        for q in (0.5, 0.99, 0.999):
            exact = values[int(q * len(values)) - 1]
            self.assertLessEqual(abs(histogram.percentile(q) - exact), exact / 16, f"semente {SEED}")
        self.assertLessEqual(max(map(len, histogram.draw(80))), 80)

    def test_show_time(self):
        show = load("cliente.py").show_time
        self.assertEqual([show(ns) for ns in (850, 12300, 4.56e6, 1.2e9)], ["850 ns", "12.3 µs", "4.56 ms", "1.2 s"])

    def test_measure(self):
        for size in (1, 64, 200000):
            server = self.spawn("servidor.py", "127.0.0.1", 0)
            result = self.run_script("cliente.py", "127.0.0.1", server.port, "--medir", "--conexoes", 3,
                                     "--duracao", 0.2, "--tamanho", size, status=0)
            self.assertRegex(result.text, r"idas e voltas por segundo")
            self.assertRegex(result.text, r"p50 .* p99 .* p99.9 ")
            self.assertIn("█", result.text)

    def test_measure_does_not_talk(self):
        for words in (("--mensagem", ""), ("--mensagem", "oi"), ("--apelido", "ana")):
            result = self.run_script("cliente.py", "--medir", *words)
            self.assert_one_line_error(result, "--medir não conversa", status=2)

    def test_measure_shows_its_progress(self):
        """No terminal a medição se mostra enquanto anda, sempre na mesma linha, e a apaga no fim."""
        server = self.spawn("servidor.py", "127.0.0.1", 0)
        client = self.spawn("cliente.py", "127.0.0.1", server.port, "--medir", "--duracao", 3600, ready=None, tty="all",
                            status=130, constants={"PROGRESS_S": 0.01})
        client.expect(r"\A\r\x1b\[K +\d+\.\d s  \d+ idas e voltas/s\r\x1b\[K +\d+\.\d s  \d+ idas e voltas/s")
        self.stop(client, signal.SIGINT)
        self.assertTrue(client.output.data.endswith(b"\r\x1b[K"), client.output.data[-200:])

    def test_measure_sends_the_rest(self):
        """A mensagem que não cabe no kernel de uma vez segue aos poucos, até o último byte."""
        cliente = load("cliente.py")
        listener, port = self.listener()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.connect(("127.0.0.1", port))
        conn = self.accept(listener)

        def echo():
            for data in iter(lambda: conn.sock.recv(65536), b""):
                conn.send(data)

        args = cliente.build_parser().parse_args(["--medir", "--conexoes", "1", "--tamanho", "300000",
                                                  "--duracao", "0.1"])
        meter = cliente.Meter(args)
        self.addCleanup(meter.close)
        with mock.patch.object(cliente, "connect", return_value=sock):
            meter.open()
        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        with mock.patch.object(cliente, "STALL_S", WATCHDOG_S):
            meter.run()
        self.assertEqual((meter.unanswered(), meter.dropped), (0, 0))
        sock.close()
        thread.join()

    def test_measure_notices_a_wrong_byte(self):
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--medir", "--conexoes", 1, ready=None, status=1)
        conn = self.accept(listener)
        message = bytearray(conn.sock.recv(64))
        message[40] ^= 1
        conn.send(bytes(message))
        self.assertEqual(client.wait(), 1)
        self.assertIn("o eco voltou errado", client.errors())

    def test_measure_notices_a_stale_answer(self):
        """A resposta certa da mensagem anterior é um erro: cada mensagem é diferente."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--medir", "--conexoes", 1, ready=None, status=1)
        conn = self.accept(listener)
        first = conn.sock.recv(64)
        conn.send(first)
        conn.sock.recv(64)
        conn.send(first)
        self.assertEqual(client.wait(), 1)
        self.assertIn("o eco voltou errado", client.errors())

    def test_measure_notices_a_dead_server(self):
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--medir", "--conexoes", 2, ready=None, status=1)
        for _ in range(2):
            self.accept(listener).close()
        self.assertEqual(client.wait(), 1)
        self.assertIn("2 conexões caíram e 0 ficaram sem resposta", client.errors())
        self.assertEqual(client.output.data, b"", "sem medida nenhuma, nenhum número")

    def test_measure_in_a_stopped_terminal(self):
        """P4: com o terminal parado (Ctrl+S), um SIGTERM acaba a medição: a linha do progresso já não se apaga."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--medir", "--conexoes", 1, tty="all", ready=None,
                            status=130)
        self.accept(listener).sock.recv(64)
        self.stop_terminal(client)
        client.kill(signal.SIGTERM)
        self.assertEqual(client.wait(), 130)

    def test_measure_of_late_answers(self):
        """Respostas que só chegam depois de --duracao não contam na taxa, mas o silêncio não as esconde."""
        cliente = load("cliente.py")
        meter = mock.Mock(histogram=cliente.Histogram(), dropped=0, **{"run.return_value": (0.1, 0),
                                                                      "unanswered.return_value": 0})
        meter.histogram.add(889 * 10**6)
        with mock.patch.object(cliente, "Meter", return_value=meter), mock.patch.object(cliente, "raise_fd_limit"), \
                contextlib.redirect_stdout(io.StringIO()) as out:
            cliente.measure(cliente.build_parser().parse_args(["--medir"]))
        self.assertRegex(out.getvalue(), r" 0 idas e voltas por segundo(?s:.*)p50 \d+ ms")

    def test_measure_counts_the_mute(self):
        """Uma conexão que caiu e uma que se calou são duas contas; nenhuma entra nas duas."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--medir", "--conexoes", 2, "--duracao", 0.2, ready=None,
                            status=1, constants={"STALL_S": 0.2, "PROGRESS_S": 0.05})
        mute = self.accept(listener)
        self.accept(listener).close()
        self.assertEqual(client.wait(), 1)
        self.assertIn("1 conexão caiu e 1 ficou sem resposta", client.errors())
        mute.close()


class TestClienteStartTls(ClienteTestCase):
    """O TLS do lado do cliente; a conversa cifrada inteira está em TestServidorTLSStream."""

    def test_key_without_a_certificate(self):
        """--chave sozinha é um erro de uso: quem pensa em TLS não pode acabar falando em claro."""
        _, port = self.listener(backlog=None)
        result = self.run_script("cliente.py", "127.0.0.1", port, "--chave", "/nao/existe", "--mensagem", "segredo")
        self.assert_one_line_error(result, "--chave só vale junto de --certificado", status=2)

    def test_name_as_it_is_typed(self):
        """P7: o ponto final do DNS e a interface (%eth0) não fazem parte do nome que está no certificado."""
        cert, key = self.certificate()
        server = self.spawn("servidor.py", "127.0.0.1", "0", "--certificado", cert, "--chave", key)
        cliente = load("cliente.py")
        for name in ("localhost.", "127.0.0.1%lo"):
            args = cliente.build_parser().parse_args([name, "--ca", cert])
            with socket.create_connection((server.host, server.port)) as sock:
                stream = cliente.start_tls(sock, args)
                stream.sendall(b"oi")
                self.assertEqual(stream.recv(10), b"oi")

    def test_plain_words_to_a_tls_server(self):
        """N16: o servidor só fala TLS, e recusa com um alerta: é isso que se diz, e o estado é 1."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--mensagem", "oi", ready=None, status=1)
        conn = self.accept(listener)
        conn.expect("oi\n")
        # Fatal (2), erro interno (80).
        conn.send(b"\x15\x03\x03\0\x02\x02\x50")
        conn.close()
        self.assertEqual(client.wait(), 1)
        self.assertRegex(client.errors(), r"\A.*só fala TLS: --tls --ca ARQUIVO\n\Z")

    def test_an_authority_that_would_not_be_asked(self):
        """--ca e --sem-verificar se contradizem: nenhuma das duas é esquecida em silêncio."""
        _, port = self.listener(backlog=None)
        result = self.run_script("cliente.py", "127.0.0.1", port, "--ca", "/nao/existe", "--sem-verificar")
        self.assert_one_line_error(result, "--ca", "--sem-verificar", status=2)

    @needs_ssl
    def test_cut_without_a_goodbye(self):
        """L3: um fim sem close_notify pode ter sido cortado: o que veio é mostrado, e o estado é 1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate())
        for goodbye, status in ((True, 0), (False, 1)):
            listener, port = self.listener()
            client = self.spawn("cliente.py", "127.0.0.1", port, "--sem-verificar", "--mensagem", "oi", ready=None,
                                status=status)
            raw = listener.accept()[0]
            self.addCleanup(raw.close)
            raw.settimeout(WATCHDOG_S)
            sock = context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=True)
            self.addCleanup(sock.close)
            # Até a despedida dele: fechar com algo por ler seria um RST.
            while sock.recv(100):
                pass
            sock.sendall(b"metade da resp")
            if goodbye:
                with contextlib.suppress(OSError):
                    sock.unwrap()
            sock.close()
            client.expect("metade da resp")
            self.assertEqual(client.wait(), status)
            self.assertEqual("cortada" in client.errors(), not goodbye)

    def test_why_a_certificate_does_not_convince(self):
        """N16: em português, e com o que fazer: outro nome não se resolve com --ca."""
        cliente = load("cliente.py")
        args = cliente.build_parser().parse_args(["127.0.0.1"])
        for code, words in ((18, "assinado por ele mesmo.*--ca"), (10, "venceu"),
                            (64, "outro endereço.*subjectAltName"),
                            (62, "outro nome.*subjectAltName"), (99, "motivo.*--ca")):
            error = types.SimpleNamespace(verify_code=code, verify_message="motivo")
            self.assertRegex(cliente.explain_certificate(error, args), words)


# ---------------------------------------------------------------------------------------------
# servidor_udp.py: um socket para todos, quem merece resposta, a prova de endereço, a sala, a rede ruim.

class UDPTestCase(ScriptTestCase):
    """Acrescenta ao vocabulário: peer(), um socket UDP conectado, e ask(), uma pergunta e a sua resposta."""

    def peer(self, to=None, host="127.0.0.1", port=0):
        """Um socket UDP em host:port, conectado a `to` (um Child ou um endereço) se for dado."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.settimeout(WATCHDOG_S)
        sock.bind((host, port))
        if to is not None:
            sock.connect(to if isinstance(to, tuple) else (to.host, to.port))
        return sock

    def ask(self, sock, data):
        sock.send(data)
        return sock.recv(65536)

    def client(self, server, *args, **options):
        """Roda o cliente até o fim contra `server`, que é um Child ou um socket do teste."""
        host, port = server.getsockname()[:2] if isinstance(server, socket.socket) else (server.host, server.port)
        return self.run_script("cliente_udp.py", host, port, *args, **options)

    def assert_usage_error(self, script, args, word):
        """A linha de comando não serve: estado 2, e uma linha que diz por quê."""
        parser, said = load(script).build_parser(), tempfile.TemporaryFile("w+")
        with said, contextlib.redirect_stderr(said):
            with self.assertRaises(SystemExit) as end:
                parser.parse_args(args)
            said.seek(0)
            text = said.read()
        self.assertEqual((end.exception.code, text.count("\n")), (2, 1), text)
        self.assertIn(word, text)

    def totals(self, server):
        """Encerra o servidor e devolve as contas dele: (datagramas, bytes, remetentes, {motivo: descartados})."""
        server.stop()
        text = server.output.data.decode()
        found = re.search(r"recebidos: (\d+) datagramas?, (\d+) bytes?, de (\d+) remetentes?", text)
        self.assertTrue(found, text + server.errors())
        dropped = {why: int(n) for why, n in re.findall(r"^  (.+): (\d+)$", text, re.MULTILINE)}
        return (*map(int, found.groups()), dropped)

    def vectors(self, kind):
        """Os vetores `kind campo=valor ... -> resultado` do README; o que segue recuado é do mesmo vetor."""
        text = README.read_text(encoding="utf-8")
        lines = re.findall(rf"^{kind} +([^>]*?)\s+-> +(.+(?:\n +.+)*)", text, re.MULTILINE)
        self.assertTrue(lines, f"nenhum vetor {kind} no README")
        return [(dict(field.split("=", 1) for field in fields.split()), result) for fields, result in lines]


class ServidorUdpTestCase(UDPTestCase):
    """As partes do servidor sem rede: `module` é o script, `said` o que ele disse a quem o opera."""

    def setUp(self):
        self.module = load("servidor_udp.py")
        self.said = []

    def guard(self, own=("127.0.0.1", 5050), rate=None):
        return self.module.Guard(own, rate, self.said.append)

    def server(self, sock, limit=65527, own=("127.0.0.1", 5050)):
        return self.module.Server(sock, self.guard(own), limit)

    def build(self, sock, *args):
        """(Server, Chat) como a linha de comando os monta."""
        voice = argparse.Namespace(say=self.said.append, note=self.said.append)
        return self.module.build_server(sock, self.module.build_parser().parse_args(args), voice)

    def chat(self, send=lambda data, source: None):
        return self.module.Chat(send, self.module.IDLE_S, self.said.append)

    def quiet_socket(self):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        return sock

    class FakeSocket:
        """Entrega o que está em `news` (um datagrama ou um erro) e se recusa a enviar."""

        news = ()

        def recvfrom_into(self, buffer):
            new = self.news.pop(0)
            if isinstance(new, Exception):
                raise new
            data, source = new
            buffer[:len(data)] = data
            return len(data), source

        def sendto(self, data, source):
            raise OSError(errno.EPERM, "firewall")

        def getsockname(self):
            return "127.0.0.1", 5050


class TestServidorUdpNaive(ServidorUdpTestCase):
    """O programa da docstring, que roda; e o que lhe falta, ao lado do nosso."""

    class Wire:
        """Um socket diante de outro eco: o que sai por ele volta, até a paciência do teste acabar."""

        def __init__(self, *flying, most=20000):
            self.flying = list(flying)
            self.left = most

        def __call__(self, *_):
            return self

        def bind(self, _address):
            pass

        def recvfrom(self, _size):
            if not self.flying or not self.left:
                raise InterruptedError("nada mais a ler")
            self.left -= 1
            return self.flying.pop(0)

        def recvfrom_into(self, buffer):
            try:
                data, source = self.recvfrom(len(buffer))
            except InterruptedError:
                raise BlockingIOError
            buffer[:len(data)] = data
            return len(data), source

        def sendto(self, data, source):
            self.flying.append((bytes(data), source))

    def run_naive(self, wire):
        """Roda o programa ingênuo sobre `wire` até ele cair; devolve o erro que o derrubou."""
        fake = argparse.Namespace(socket=wire, AF_INET=socket.AF_INET, SOCK_DGRAM=socket.SOCK_DGRAM)
        with self.assertRaises(OSError) as end:
            exec(naive_program("servidor_udp.py"), {"socket": fake})
        return end.exception

    def test_it_answers(self):
        port = free_port(socket.SOCK_DGRAM)
        code = naive_program("servidor_udp.py").replace("5050", str(port))
        code = code.replace("while True:", "print('escutando em 127.0.0.1', flush=True)\nwhile True:")
        child = Child(self, [*PYTHON, "-c", "import socket\n" + code], -signal.SIGTERM, child_env(), False, None)
        self.addCleanup(child.cleanup)
        child.expect(READY)
        self.assertEqual(self.ask(self.peer(("127.0.0.1", port)), b"oi"), b"oi")

    def test_an_answer_that_does_not_leave(self):
        """O ingênuo cai na primeira resposta que o kernel recusa; o nosso a conta e atende o seguinte."""
        wire = self.Wire((b"um", ("10.0.0.1", 4000)), (b"dois", ("10.0.0.2", 4000)))
        answered = []

        def sendto(data, source):
            if source[0] == "10.0.0.1":
                raise PermissionError(errno.EPERM, "firewall")
            answered.append(bytes(data))
        wire.sendto = sendto
        self.assertEqual((self.run_naive(wire).errno, answered), (errno.EPERM, []))
        wire.flying.insert(0, (b"um", ("10.0.0.1", 4000)))
        server = self.server(wire)
        server.drain()
        self.assertEqual((answered, dict(server.guard.dropped)), ([b"dois"], {"envio recusado (firewall)": 1}))

    def test_a_forged_datagram_between_two_echoes(self):
        """O ingênuo conversa com o outro eco enquanto o deixarem; o nosso tira do ar o que só se repete."""
        forged = (b"pingue-pongue", ("10.0.0.1", 4000))
        naive = self.Wire(forged)
        self.run_naive(naive)
        self.assertEqual((naive.left, naive.flying), (0, [forged]), "ainda circula")
        ours = self.Wire(forged)
        server = self.server(ours)
        server.guard.rate = math.inf
        for _ in range(100):
            server.drain()
        self.assertEqual(ours.flying, [])
        self.assertGreaterEqual(ours.left, 20000 - self.module.LOOP_COPIES - 2 * self.module.QUOTA)


class TestServidorUdpServer(ServidorUdpTestCase):
    """Um socket só para todos: o que dá errado com um datagrama é daquele datagrama."""

    def test_echo_of_every_size(self):
        for host in ("127.0.0.1", "::1"):
            with self.subTest(host):
                if host == "::1" and not self.has_ipv6():
                    self.skipTest("sem IPv6 nesta máquina")
                server = self.spawn("servidor_udp.py", host, "0")
                sock = self.peer(server, host)
                sizes = [0, 1, 64, 1473, 9000, 65507] + [65527] * (host == "::1")
                for size in sizes:
                    data = bytes(n % 251 for n in range(size))
                    self.assertEqual(self.ask(sock, data), data, f"{size} bytes")
                self.assertEqual(self.totals(server), (len(sizes), sum(sizes), 1, {}))

    def has_ipv6(self):
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.bind(("::1", 0))
            return True
        except OSError:
            return False

    def test_dual_stack(self):
        if not self.has_ipv6():
            self.skipTest("sem IPv6 nesta máquina")
        for everywhere in ("::", "0:0:0:0:0:0:0:0"):  # o mesmo endereço, escrito de outro jeito
            server = self.spawn("servidor_udp.py", everywhere, "0")
            server.expect_error(r"cliente_udp\.py ENDEREÇO-DESTA-MÁQUINA \d+$")
            for host in ("127.0.0.1", "::1"):
                self.assertEqual(self.ask(self.peer((host, server.port), host), b"oi"), b"oi", (everywhere, host))

    def test_same_number_as_tcp(self):
        """As portas de TCP e de UDP são gavetas diferentes: 5050 e 5050 não colidem."""
        with socket.create_server(("127.0.0.1", 0)) as tcp:
            server = self.spawn("servidor_udp.py", "127.0.0.1", tcp.getsockname()[1])
            self.assertEqual(self.ask(self.peer(server), b"oi"), b"oi")

    def test_truncation_is_reported(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--maximo", 100)
        sock = self.peer(server)
        sock.send(bytes(101))
        self.assertEqual(self.ask(sock, bytes(100)), bytes(100))
        sock.send(bytes(101))  # agora de um remetente que já tem fichas
        self.assertEqual(self.ask(sock, bytes(99)), bytes(99))
        server.expect_error("maior que 100 bytes: chegou cortado")
        self.assertEqual(self.totals(server)[3], {"maior que 100 bytes: chegou cortado": 2})

    def test_ten_thousand_random_datagrams(self):
        """N4: nenhum cliente desta máquina é ligeiro demais: dez mil, um atrás do outro, e nenhum descartado."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        sock, rng = self.peer(server), random.Random(SEED)
        for n in range(10000):
            data = rng.getrandbits(8 * 40).to_bytes(40, "big")[:rng.randrange(41)] + b"%d" % n  # repetir parece um laço
            sock.send(data)
            if sock.recv(65536) != data:
                self.fail(f"datagrama {n}, semente {SEED}")
        datagrams, _, _, dropped = self.totals(server)
        self.assertEqual((datagrams, dropped), (10000, {}))

    def test_errors_of_earlier_answers(self):
        """ECONNREFUSED de uma resposta anterior: com IP_RECVERR o Linux o mostra, como o Windows sempre (10054)."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            try:
                sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_RECVERR", 11), 1)
            except OSError as error:
                self.skipTest(f"sem IP_RECVERR: {error}")
            sock.setblocking(False)
            server = self.server(sock, own=sock.getsockname())
            for _ in range(3):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
                    gone.connect(sock.getsockname())
                    gone.send(b"adeus")
                server.drain()  # a resposta não acha ninguém, e o aviso volta
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alive:
                    alive.settimeout(WATCHDOG_S)
                    alive.connect(sock.getsockname())
                    alive.send(b"oi")
                    server.drain()
                    server.drain()
                    alive.send(b"oi de novo")
                    server.drain()
                    self.assertIn(alive.recv(99), (b"oi", b"oi de novo"))  # o primeiro pode cair com o aviso

    def test_receive_errors(self):
        sock = self.FakeSocket()
        server = self.server(sock)
        cut = OSError(0, "cortado")
        cut.winerror = 10040
        sock.news = [ConnectionResetError(10054, "reset"), OSError(errno.ENETRESET, "TTL"), cut, BlockingIOError()]
        server.drain()
        self.assertEqual(sock.news, [])
        self.assertEqual(server.guard.dropped, {"maior que 65527 bytes: chegou cortado": 1})
        sock.news = [OSError(errno.EBADF, "fechado")]
        self.assertRaises(OSError, server.drain)

    @unittest.skipUnless(os.name == "posix", "no Windows a espera é sempre no select()")
    def test_patient_read_wakes_by_itself(self):
        """O eco espera na própria leitura, e sem datagrama algum ela volta em WAKE_S; com prazos, não espera nela."""
        class Enough(Exception):
            pass

        def drain():
            began = time.monotonic()
            type(server).drain(server)
            raise Enough(time.monotonic() - began)

        def rescued(_data, _source):
            self.fail("a leitura só voltou porque chegou um datagrama")
        with self.quiet_socket() as sock, self.quiet_socket() as other:
            for ticks, low in (([], 0.9 * self.module.WAKE_S), ([lambda: 0], 0)):
                server = self.server(sock, own=sock.getsockname())
                server.drain, server.ticks, server.answer = drain, ticks, rescued
                rescue = threading.Timer(WATCHDOG_S, other.sendto, (b"acorde", sock.getsockname()))
                sock.setblocking(False)
                rescue.start()
                try:
                    with self.assertRaises(Enough) as enough:
                        server.run()
                finally:
                    rescue.cancel()
                    rescue.join()
                self.assertGreaterEqual(enough.exception.args[0], low, "a espera não foi na leitura")
                self.assertEqual(sock.getblocking(), not ticks)

    def test_a_flood_does_not_stop_the_clock(self):
        """Com a fila sempre cheia, a leitura para depois de BATCH, e os prazos da sala e do atraso se cumprem."""
        flood = iter([(2, ("10.0.0.1", 4000))] * 2 * self.module.BATCH)
        server = self.server(argparse.Namespace(recvfrom_into=lambda _: next(flood)))
        server.answer = lambda data, source: None
        server.drain()
        self.assertEqual(server.datagrams, self.module.BATCH)

    def test_send_errors_are_counted(self):
        server = self.server(self.FakeSocket())
        server.send(b"x", ("127.0.0.1", 4000))
        self.assertEqual(server.guard.dropped, {"envio recusado (firewall)": 1})

    def test_a_fault_of_ours_costs_one_answer(self):
        """L8: um erro imprevisto ao responder um datagrama é contado, dito uma vez por tipo, e o servidor segue."""
        sock, answered = self.FakeSocket(), []
        server = self.server(sock)

        def answer(data, source):
            if data == b"mal":
                raise KeyError(source[0])
            if data == b"pior":
                raise ValueError("veio da rede: \x1b]0;x\x07")
            answered.append(bytes(data))
        server.answer = answer
        source = ("10.0.0.1", 4000)
        sock.news = [(data, source) for data in (b"mal", b"oi", b"mal", b"pior", b"fim")] + [BlockingIOError()]
        server.drain()
        self.assertEqual(answered, [b"oi", b"fim"])
        line = answer.__code__.co_firstlineno
        self.assertEqual(server.guard.dropped, {f"defeito nosso (KeyError, linha {line + 2})": 2,
                                                f"defeito nosso (ValueError, linha {line + 4})": 1})
        self.assertEqual([said.partition(" (de ")[2] for said in self.said],
                         ["10.0.0.1 porta 4000); os próximos, só conto"] * 2)

    def test_a_fault_in_a_deadline(self):
        """L8: também um prazo que falha é contado, e os outros se cumprem."""
        server = self.server(self.FakeSocket())
        server.ticks = [lambda: 1 // 0, lambda: 0.25]
        self.assertEqual(server.next_deadline(), 0.25)
        self.assertEqual(sum(server.guard.dropped.values()), 1)

    def test_a_descriptor_beyond_1023(self):
        """C12: a sala espera com poll(): o descritor pode passar de 1023, onde o select() não vai."""
        if resource is None or resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1200:
            self.skipTest("o sistema não dá 1200 descritores")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 1200:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        try:
            server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat", pass_fds=kept)
        finally:
            for fd in kept:
                os.close(fd)
        self.assertEqual(self.ask(self.peer(server), b"oi"), b"?\n")

    def test_stop_and_start_again(self):
        """N18: Ctrl+C e SIGTERM são o mesmo fim, com as contas em bom português; a porta fica livre na hora."""
        port = free_port(socket.SOCK_DGRAM)
        for number in (signal.SIGINT, signal.SIGTERM):
            server = self.spawn("servidor_udp.py", "127.0.0.1", port)
            self.ask(self.peer(server), b"oi")
            start = time.monotonic()
            self.assertEqual(server.stop(number), 0)
            self.assertLess(time.monotonic() - start, 2)
            self.assertIn(b"recebidos: 1 datagrama, 2 bytes, de 1 remetente\n", server.output.data)

    def test_second_signal(self):
        """`timeout` manda dois SIGTERM, e há quem aperte Ctrl+C duas vezes: o segundo não corta as contas."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):  # chegam os dois de uma vez
            server.kill(number)
        server.expect("recebidos: 0 datagramas")
        self.assertEqual(server.wait(), 0)


class TestServidorUdpGuard(ServidorUdpTestCase):
    """Quem merece resposta: cada defesa, sem rede e com ela."""

    def count(self, guard, source, contents):
        """Quantos dos datagramas passam, pelo mesmo caminho que Server.drain toma."""
        passed = 0
        for data in contents:
            if guard.tokens.get(source):
                guard.tokens[source] -= 1
                passed += 1
            else:
                passed += guard.admit(source, data)
        return passed

    def test_low_ports_and_itself_get_nothing(self):
        guard = self.guard()
        for source in (("127.0.0.1", 53), ("10.0.0.1", 1023), ("127.0.0.1", 5050)):
            self.assertEqual(self.count(guard, source, [b"x", b"y"]), 0, source)
        for source in (("127.0.0.1", 1024), ("192.0.2.9", 5050)):
            self.assertEqual(self.count(guard, source, [b"x", b"y"]), 2, source)

    def test_itself_when_it_listens_everywhere(self):
        for own, mine, foreign in ((("0.0.0.0", 5050), ("127.0.0.1", 5050), ("192.0.2.9", 5050)),
                                   (("0.0.0.0", 5050), ("127.0.0.77", 5050), ("198.51.100.9", 5050))):
            guard = self.guard(own)
            self.assertFalse(guard.admit(mine, b"x"))
            self.assertTrue(guard.admit(foreign, b"x"))

    def test_rate_is_per_source(self):
        guard = self.guard(rate=100)
        passed = self.count(guard, ("10.0.0.1", 4000), (b"%d" % n for n in range(5000)))
        self.assertTrue(50 <= passed < 2000, passed)
        self.assertTrue(guard.admit(("10.0.0.2", 4000), b"x"))
        self.assertEqual(guard.dropped["acima da taxa"], 5000 - passed)

    def test_default_rate_trusts_loopback_more(self):
        """N5: desta máquina não há limite: o que um cliente ligeiro perde não é por conta do servidor."""
        for host, far in (("10.0.0.1", True), ("::ffff:10.0.0.1", True), ("127.0.0.1", False), ("::1", False)):
            guard = self.guard()
            self.assertTrue(guard.admit((host, 4000), b"x"))
            wait = guard.quotas[host, 4000].due - time.monotonic()
            self.assertEqual(wait > 0, far, (host, wait))
            passed = self.count(guard, (host, 4000), (b"%d" % n for n in range(5000)))
            self.assertEqual(passed == 5000, not far, (host, passed))

    def test_tables_are_bounded(self):
        guard = self.guard()
        for n in range(self.module.MAX_SOURCES * 2):
            self.assertTrue(guard.admit((f"10.0.{n >> 8}.{n & 255}", 4000), b"x"))
        self.assertEqual(len(guard.quotas), self.module.MAX_SOURCES)
        self.assertEqual(set(guard.tokens), set(guard.quotas))
        self.assertEqual(guard.sources, self.module.MAX_SOURCES * 2)

    def test_same_datagram_for_ever_is_a_loop(self):
        guard = self.guard(rate=float("inf"))
        self.assertEqual(self.count(guard, ("10.0.0.1", 4000), [b"eco"] * 4000), 4000)
        self.count(guard, ("10.0.0.1", 4000), [b"eco"] * 46000)
        self.assertIn(guard.dropped["laço com outro servidor de eco"], range(1, 11))  # quem só se repete perde pouco
        other = self.guard(rate=float("inf"))
        self.assertEqual(self.count(other, ("10.0.0.1", 4000), (b"%d" % n for n in range(20000))), 20000)

    def test_many_datagrams_in_one_loop_all_die(self):
        """Trinta datagramas forjados circulam entre dois ecos: cada laço visto tira um, até não haver nenhum."""
        guard, flying, rounds = self.guard(rate=float("inf")), [b"%d" % n for n in range(30)], 0
        with mock.patch.object(self.module.random, "randint", random.Random(SEED).randint):
            while flying and rounds < 100000:
                flying = [data for data in flying if self.count(guard, ("10.0.0.1", 4000), [data])]
                rounds += 1
        self.assertEqual(flying, [], f"ainda circulam (semente {SEED})")

    def test_each_defence_says_why(self):
        """Cada defesa é uma função que devolve o motivo, ou "": aqui, uma por uma."""
        guard = self.guard()
        good = ("10.0.0.1", 4000)
        for defence, bad, why in ((guard.service_port, ("10.0.0.1", 7), "porta de origem abaixo de 1024"),
                                  (guard.own_address, ("127.0.0.1", 5050), "origem é o próprio servidor")):
            self.assertEqual((defence(good), defence(bad)), ("", why))
        self.assertEqual(guard.above_rate(good), "")
        guard.admit(good, b"x")
        self.assertEqual(guard.above_rate(good), "acima da taxa")
        sample = hash(b"x")
        self.assertEqual(guard.loop(good, sample), "")
        guard.quotas[good] = guard.quotas[good]._replace(count=self.module.LOOP_COPIES)
        self.assertEqual(guard.loop(good, sample), "laço com outro servidor de eco")

    def test_flood_is_limited_and_others_are_served(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--taxa", 40)
        flood, other = self.peer(server), self.peer(server)
        for n in range(200):
            flood.send(b"inunda")
            if n % 20 == 0:
                self.assertEqual(self.ask(other, b"oi %d" % n), b"oi %d" % n)
        self.assertTrue(self.totals(server)[3]["acima da taxa"] >= 100)

    def test_low_source_port(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        try:
            low = self.peer(server, port=next(p for p in range(1023, 600, -1) if self.is_free(p)))
        except PermissionError:
            self.skipTest("só o administrador usa portas abaixo de 1024")
        low.send(b"eco?")
        self.assertEqual(self.ask(self.peer(server), b"oi"), b"oi")
        self.assertEqual(self.totals(server)[3], {"porta de origem abaixo de 1024": 1})

    def is_free(self, port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(("127.0.0.1", port))
                return True
            except PermissionError:
                raise
            except OSError:
                return False

    def test_forged_own_address(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        try:
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        except PermissionError:
            self.skipTest("forjar um endereço exige CAP_NET_RAW")
        with raw:
            udp = struct.pack("!4H", server.port, server.port, 8 + 5, 0) + b"boomp"
            home = socket.inet_aton("127.0.0.1")
            raw.sendto(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, home, home) + udp,
                       ("127.0.0.1", 0))
        server.expect_error("origem é o próprio servidor")
        self.assertEqual(self.totals(server)[0], 1)

    def test_loop_between_two_servers_dies(self):
        """Um datagrama forjado põe dois ecos a conversar: com o primeiro parado, seu remetente dá lugar ao segundo."""
        first = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        first.kill(signal.SIGSTOP)
        port = free_port(socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forged:
            forged.bind(("127.0.0.1", port))
            forged.sendto(b"pingue-pongue", (first.host, first.port))
        second = self.spawn("servidor_udp.py", "127.0.0.1", port)
        first.kill(signal.SIGCONT)
        deadline = time.monotonic() + 10 * WATCHDOG_S  # até sete mil voltas: com a máquina ocupada passaram de 30 s
        while not any("laço com outro servidor de eco" in server.errors() for server in (first, second)):
            self.assertLess(time.monotonic(), deadline, "o laço não morreu")
            time.sleep(0.01)  # intervalo de releitura
        limit = 5000 + 2 * 1000  # LOOP_COPIES e duas cotas: depois da primeira perda não circula mais nada
        for server in (first, second):
            self.assertLessEqual(self.totals(server)[0], limit)

    def test_zero_is_no_limit(self):
        with self.quiet_socket() as sock:
            server, chat = self.build(sock, "--modo", "chat", "--taxa", "0", "--ocioso", "0")
        self.assertEqual((server.guard.rate, chat.idle_s, chat.tick()), (math.inf, math.inf, self.module.WAKE_S))


class TestServidorUdpCookies(ServidorUdpTestCase):
    """Provar um endereço: o código, a quem ele serve e até quando."""

    def test_readme_cookie(self):
        for fields, code in self.vectors("código"):
            found = self.module.cookie(bytes.fromhex(fields["chave"]), fields["endereço"], int(fields["porta"]),
                                       int(fields["minuto"]))
            self.assertEqual(found, code)

    def test_cookie_depends_on_everything(self):
        base = (bytes(32), "127.0.0.1", 40000, 7)
        others = [(bytes(31) + b"\1", *base[1:]), (base[0], "127.0.0.2", *base[2:]), (*base[:2], 40001, 7),
                  (*base[:3], 8)]
        codes = {self.module.cookie(*args) for args in [base, *others]}
        self.assertEqual(len(codes), 5)
        self.assertTrue(all(re.fullmatch("[A-Z2-7]{7}", code) for code in codes), codes)

    def test_old_codes_expire(self):
        """Um código vale no seu minuto e no seguinte; o primeiro depois que a máquina liga não tem anterior."""
        module, source = self.module, ("127.0.0.1", 4000)
        cookies = module.Cookies()
        for born, now, valid in ((5, 5, True), (5, 119, True), (5, 120, False), (300, 419, True), (300, 420, False)):
            module.time = argparse.Namespace(monotonic=lambda: born)
            code = cookies.codes(source)[0]
            module.time = argparse.Namespace(monotonic=lambda: now)
            self.assertEqual(cookies.proves(code, source), valid, (born, now))

    def test_the_answer_fits_in_the_question(self):
        """A um desconhecido, de qualquer tamanho que ele mande, nunca mais bytes; e o código, se couber."""
        cookies, source = self.module.Cookies(), ("127.0.0.1", 4000)
        for size in range(80):
            for start in (b"/entrar", b"oi"):
                answer = cookies.challenge(start.ljust(size)[:size], source)
                self.assertLessEqual(len(answer), size)
                self.assertEqual(cookies.codes(source)[0].encode() in answer, start == b"/entrar" and size >= 7)

    def test_codes_are_not_guessed(self):
        """Dez mil palpites de um endereço não acertam o código dele, nem o de outro serve."""
        cookies, rng = self.module.Cookies(), random.Random(SEED)
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
        mine = ("127.0.0.1", 4000)
        self.assertTrue(cookies.proves(cookies.codes(mine)[0], mine))
        self.assertFalse(cookies.proves(cookies.codes(("127.0.0.1", 4001))[0], mine))
        self.assertFalse(any(cookies.proves("".join(rng.choices(letters, k=7)), mine) for _ in range(10000)), SEED)


class TestServidorUdpChat(ServidorUdpTestCase):
    """A sala: entra quem prova o endereço, sai quem se cala."""

    def room(self, *args):
        return self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat", *args)

    def say(self, sock, text, expected):
        """Manda uma linha e lê até um datagrama que tenha `expected`; devolve-o."""
        sock.send(text if isinstance(text, bytes) else text.encode())
        return self.hear(sock, expected)

    def hear(self, sock, expected):
        seen = []
        try:
            while not seen or expected not in seen[-1]:
                seen.append(sock.recv(65536).decode())
        except socket.timeout:
            self.fail(f"{expected!r} não veio; veio {seen}")
        return seen[-1]

    def enter(self, server, nick, host="127.0.0.1"):
        sock = self.peer(server, host)
        code = re.search("é ([A-Z2-7]{7}):", self.ask(sock, b"/entrar".ljust(64)).decode())[1]
        self.say(sock, f"{code} /nick {nick}", f"agora é {nick}")
        return sock

    def test_conversation(self):
        server = self.room("--taxa", 0)
        ana, bia = self.enter(server, "ana"), self.enter(server, "bia")
        self.hear(ana, "agora é bia")
        self.say(ana, "olá, ação", "<ana> olá, ação")  # a linha volta a quem a disse: chegou
        self.assertEqual(self.hear(bia, "olá"), "<ana> olá, ação\n")
        self.assertEqual(self.say(ana, "/quem", "na sala"), "* na sala: ana, bia\n")
        self.say(ana, "/msg bia segredo\x1b", "<ana para bia, em particular> segredo\\x1b\n")
        self.hear(bia, "segredo\\x1b\n")
        for wrong in ("/msg zé oi", "/msg bia", "/nick a b", "/nick BIA", "/nick", "x" * 1025):
            self.say(ana, wrong, "* erro")
        self.say(ana, "/xy\x1bz", "não conheço /xy\\x1bz\n")
        self.say(ana, "/ajuda", "/nick NOME")
        self.say(ana, b"\xff oi", "<ana> \ufffd oi")
        self.say(ana, "\x1b]0;x\x07", "<ana> \\x1b]0;x\\x07")
        ana.send(b"")  # continuo aqui: sem resposta
        self.say(bia, "/sair", "até logo")
        self.hear(ana, "* bia saiu")
        self.say(ana, "/nick Bia", "agora é Bia")  # o apelido ficou livre
        self.say(ana, "/nick BIA", "Bia agora é BIA")  # o próprio apelido, de outro jeito
        server.expect(r"<ana> \\x1b\]0;x\\x07")
        server.stop()
        self.hear(ana, "o servidor encerrou")

    def test_no_line_outgrows_a_frame(self):
        """Um byte de controle, ou inválido, volta maior do que veio: a linha se mede como ela volta."""
        server = self.room("--taxa", 0)
        ana = self.peer(server)
        code = re.search("é ([A-Z2-7]{7}):", self.ask(ana, b"/entrar".ljust(64)).decode())[1]
        self.say(ana, f"{code} " + "x" * 1024, f"<visitante1> {'x' * 1024}")  # o código não conta
        for sign, most in ((b"\x01", 256), (b"\xff", 341), ("\u202e".encode(), 170), (b"x", 1024)):
            for command in (b"", b"/", b"/msg visitante1 "):
                for count in (most - len(command), most, most + 1, 1024):
                    answer = self.ask(ana, command + sign * count)
                    self.assertLessEqual(len(answer), 1472, (sign, command, count))  # 1500 - 20 do IP - 8 do UDP
            self.assertIn(b"linha com mais de 1024 bytes", self.ask(ana, sign * (most + 1)))

    def test_a_forged_source_does_not_enter(self):
        """O código de um endereço não serve a outro, e quem não o recebeu não entra."""
        server = self.room("--taxa", 0)
        ana, eve = self.peer(server), self.peer(server)
        code = self.ask(ana, b"/entrar\n").decode().strip()
        self.assertRegex(code, "^[A-Z2-7]{7}$")
        for attempt in (f"{code} oi", "AAAAAAA oi", "/nick eve", "/quem"):
            self.assertIn(self.ask(eve, attempt.encode()), [b"?\n", b"digite /entrar\n"])
        self.assertEqual(self.ask(eve, b"a"), b"?")  # nem a um byte se responde com mais bytes, ou com silêncio
        self.say(ana, code.lower(), "bem-vindo")
        self.assertEqual(self.say(ana, "/quem", "na sala"), "* na sala: visitante1\n")

    def test_members_are_bounded(self):
        module, sent = self.module, []
        chat = self.chat(lambda data, source: sent.append((data, source)))
        for port in range(2000, 2000 + module.MAX_MEMBERS + 5):
            source = ("127.0.0.1", port)
            chat.receive(chat.cookies.codes(source)[0].encode(), source)
        self.assertEqual(len(chat.members), module.MAX_MEMBERS)
        self.assertEqual(len(set(chat.room.nicks.values())), module.MAX_MEMBERS)
        self.assertIn("a sala está cheia".encode(), sent[-1][0])

    def test_an_empty_datagram_breaks_the_silence(self):
        """Quem só escuta fica, se de vez em quando manda um datagrama vazio (o cliente manda, a cada 15 s)."""
        module, clock, source = self.module, [1000], ("127.0.0.1", 4000)
        module.time = argparse.Namespace(monotonic=lambda: clock[0])
        chat = self.chat()
        chat.receive(chat.cookies.codes(source)[0].encode(), source)
        for wait, data, stays in ((119, b"", True), (119, b"", True), (119, None, True), (2, None, False)):
            clock[0] += wait
            chat.tick()
            self.assertEqual(source in chat.members, stays)
            if data is not None:
                chat.receive(data, source)

    def test_silence_expires(self):
        server = self.room("--ocioso", 0.3)
        ana = self.enter(server, "ana")
        self.hear(ana, "de silêncio: você saiu")
        server.expect("^. ana saiu")
        self.assertEqual(self.ask(ana, b"/quem /quem /quem"), b"digite /entrar\n")

    def test_ten_thousand_random_datagrams_get_no_more_than_they_bring(self):
        server = self.room("--taxa", 0)
        sock, rng = self.peer(server), random.Random(SEED)
        starts = (b"", b"", b"/entrar ", b"/msg ", b"ABCDEFG ", b"\n", b"\x00")
        for n in range(10000):
            data = rng.choice(starts) + rng.getrandbits(8 * 60).to_bytes(60, "big")[:rng.randrange(61)] + b"%d" % n
            answer = self.ask(sock, data)
            self.assertLessEqual(len(answer), len(data), (n, SEED, data, answer))
        sock.send(b"/entrar".ljust(64))
        self.assertIn(b"/entrar" if not answer else "código".encode(), sock.recv(65536))
        sock.setblocking(False)
        self.assertRaises(BlockingIOError, sock.recv, 65536)  # nunca dois por um

    def test_flood_in_the_room(self):
        server = self.room()
        ana, bia = self.enter(server, "ana"), self.enter(server, "bia")
        for n in range(100):
            ana.send(b"spam %d" % n)
        self.say(bia, "oi", "<bia> oi")
        self.assertTrue(self.totals(server)[3]["acima da taxa"] >= 60)

    def test_lines(self):
        """S2: um controle antes da barra (Ctrl+C, telnet) não faz do comando uma fala; CR NUL também acaba a linha."""
        for data, line in ((b"oi", "oi"), (b"oi\n", "oi"), (b"oi\r\n", "oi"), (b"oi\r\0", "oi"), (b" oi \r\0\n", "oi"),
                           (b"\x03\x04/msg bia segredo\r\0", "/msg bia segredo"), (b"\0/quem", "/quem"),
                           (b"\x1b \xc2\x9b\x7f/quem", "/quem"), (b"\x03oi", "\x03oi"), (b"\x03 a/b", "\x03 a/b"),
                           (b"", ""), (b"\0", ""), (b"\r\0", ""), (b"/", "/")):
            self.assertEqual(self.module.read_line(data), line, data)

    def test_a_secret_stays_secret(self):
        """S2: Ctrl+C, e depois /msg: só o destinatário ouve."""
        server = self.room("--taxa", 0)
        ana, bia, eva = (self.enter(server, nick) for nick in ("ana", "bia", "eva"))
        self.hear(ana, "agora é eva")
        self.hear(bia, "agora é eva")
        ana.send(b"\x03\x04/msg bia segredo\r\0")
        self.assertEqual(self.hear(bia, "segredo"), "<ana para bia, em particular> segredo\n")
        self.say(ana, "às claras", "<ana> às claras")
        self.assertEqual(eva.recv(9999).decode(), "<ana> às claras\n")
        self.assertNotIn(b"segredo", server.output.data)

    def test_nicks_that_look_alike(self):
        """S3: a regra do apelido é a do bloco comum: invisíveis e duplos não entram."""
        server = self.room("--taxa", 0)
        ana, bia = self.enter(server, "jos\u00e9"), self.enter(server, "bia")
        self.hear(ana, "agora é bia")
        for wanted in ("jose\u0301", "JOS\u00c9", "\u3164", "\u2800", "a\u034fb", "a b", "/ana"):
            self.say(bia, f"/nick {wanted}", "* erro")
        self.say(bia, "/quem", "na sala: bia, jos\u00e9\n")

    def test_a_new_port_takes_the_nickname_back(self):
        """S6: o roteador mudou a porta de ana: com o código da porta antiga, ela retoma o apelido na hora."""
        server = self.room("--taxa", 0)
        old, bia = self.peer(server), self.enter(server, "bia")
        code = re.search("é ([A-Z2-7]{7}):", self.ask(old, b"/entrar".ljust(64)).decode())[1]
        self.say(old, f"{code} /nick ana", "agora é ana")
        new = self.peer(server)
        fresh = re.search("é ([A-Z2-7]{7}):", self.ask(new, b"/entrar".ljust(64)).decode())[1]
        self.say(new, f"{fresh} /nick ana", "ana já está na sala; escolha outro apelido, ou, se é você: /nick ana e o")
        for wrong in ("AAAAAAA", fresh, "", "ç", code + "A"):  # nem o próprio, nem um inventado
            self.say(new, f"/nick ana {wrong}", "* erro")
        self.say(new, f"/nick ana {code.lower()}", "agora é ana")
        self.hear(old, "esta saiu da sala")
        self.assertEqual(self.say(bia, "/quem", "na sala"), "* na sala: ana, bia\n")
        self.assertEqual(self.ask(old, b"oi"), b"?\n")
        self.say(bia, f"/nick ana {code}", "* erro")  # o antigo não vale mais: agora é o da porta nova
        last = self.peer(server)
        code = re.search("é ([A-Z2-7]{7}):", self.ask(last, b"/entrar".ljust(64)).decode())[1]
        self.say(last, f"{code} /nick ana {fresh}", "agora é ana")  # tudo num datagrama só
        self.hear(new, "esta saiu da sala")

    def test_an_old_code_is_never_spoken(self):
        """S6: quem digita de novo o seu código, ainda que vencido, não o conta à sala."""
        module, clock, source, sent = self.module, [1000], ("127.0.0.1", 4000), []
        module.time = argparse.Namespace(monotonic=lambda: clock[0])
        chat = self.chat(lambda data, source: sent.append(data))
        code = chat.cookies.codes(source)[0]
        chat.receive(code.encode(), source)
        clock[0] += 3 * module.COOKIE_PERIOD_S
        self.assertFalse(chat.cookies.proves(code, source))
        chat.receive(f"{code} oi".encode(), source)
        self.assertEqual(sent[-1], b"<visitante1> oi\n")
        self.assertNotIn(code, "".join(self.said))

    def test_the_same_members_in_both_tables(self):
        """Entradas, trocas, saídas e silêncios ao acaso: a Room e os endereços contam as mesmas pessoas."""
        module, clock, rng = self.module, [1000], random.Random(SEED)
        module.time = argparse.Namespace(monotonic=lambda: clock[0])
        chat = self.chat()
        lines = (b"", b"oi", b"/sair", b"/nick ana", b"/nick bia", b"/entrar eva", b"/entrar", b"/quem", b"/msg ana oi")
        for n in range(3000):
            source = ("127.0.0.1", rng.randrange(2000, 2100))
            clock[0] += rng.choice((0, 0, 1, 30))
            codes = [member.code.encode() for member in chat.members.values()] + [b"AAAAAAA"]
            line = rng.choice((*lines, b"/nick ana " + rng.choice(codes), b"/nick bia " + rng.choice(codes)))
            if rng.random() < 0.5:
                line = chat.cookies.codes(source)[0].encode() + b" " + line
            chat.receive(line, source)
            chat.tick()
            self.assertEqual(set(chat.members), set(chat.room.nicks), (n, SEED))
            self.assertTrue(all(member.code for member in chat.members.values()))

    def test_mutated_datagrams(self):
        """L8: cinco mil datagramas mutilados, de membros e de estranhos; nenhum acha defeito nosso."""
        sock, rng = self.FakeSocket(), random.Random(SEED)
        sock.sendto = lambda data, source: None
        server, chat = self.build(sock, "--modo", "chat", "--taxa", "0")
        sources = [("127.0.0.1", port) for port in range(2000, 2040)]
        starts = ("/nick ", "/msg ana ", "/entrar ", "/me ", "/", "oi ", "\x03/sair", "/quem", "")
        for n in range(5000):
            source = rng.choice(sources)
            data = bytearray((rng.choice(starts) + chr(rng.randrange(0xd800))).encode() * rng.randrange(1, 4))
            if rng.random() < 0.5:
                data[:0] = chat.cookies.codes(source)[0].encode() + b" "
            for _ in range(rng.randrange(4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            sock.news = [(bytes(data), source), BlockingIOError()]
            server.drain()
        self.assertEqual(server.guard.dropped, {}, SEED)

    def test_netcat(self):
        """A terceira pessoa: quem só tem nc digita o código que aparece."""
        if not shutil.which("nc"):
            self.skipTest("sem o comando nc")
        usage = subprocess.run(["nc", "-h"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if b"BusyBox" in usage.stdout and b"-u" not in usage.stdout:
            self.skipTest("o nc daqui é um do busybox, que não fala UDP")
        server = self.room()
        nc = subprocess.Popen(["nc", "-u", "127.0.0.1", str(server.port)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, bufsize=0)
        self.addCleanup(nc.wait)
        self.addCleanup(nc.kill)
        self.addCleanup(nc.stdout.close)
        self.addCleanup(nc.stdin.close)
        seen = Output(nc.stdout.fileno())
        nc.stdin.write(b"/entrar\n")
        code = seen.expect("[A-Z2-7]{7}")[0]
        nc.stdin.write(code + b"\n")
        self.assertTrue(seen.expect("bem-vindo à sala, visitante1"), seen.data)
        nc.stdin.write(b"oi\n")
        self.assertTrue(seen.expect("<visitante1> oi"), seen.data)


class TestServidorUdpBadNetwork(ServidorUdpTestCase):
    """A rede ruim de propósito: o mesmo azar, e os seus limites."""

    def test_delay_queue_is_bounded(self):
        args = self.module.build_parser().parse_args(["--atraso", "10000", "--semente", "1"])
        guard = self.guard()
        network = self.module.BadNetwork(lambda data, source: None, args, guard)
        for data in (bytes(60000), b""):
            for _ in range(10000):
                network.send(data, ("127.0.0.1", 4000))
        self.assertLessEqual(sum(len(item.data) for item in network.held), self.module.MAX_DELAYED_BYTES)
        self.assertLess(len(network.held), 10000)
        self.assertTrue(guard.dropped["fila do atraso cheia"])
        network.held = [item._replace(due=0) for item in sorted(network.held)]  # passou o prazo de todos
        network.tick()
        self.assertEqual((network.held, network.held_bytes), ([], 0))  # a fila vazia volta a ter lugar

    def test_only_this_machine_gets_doubles(self):
        """Em dobro para quem forjou o endereço de outro, --duplica multiplicaria um ataque."""
        sent = []
        args = self.module.build_parser().parse_args(["--duplica", "100"])
        network = self.module.BadNetwork(lambda data, source: sent.append(source[0]), args, self.guard())
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "192.0.2.9", "::ffff:192.0.2.9", "2001:db8::1"):
            network.send(b"oi", (host, 4000))
        self.assertEqual(sent, ["127.0.0.1"] * 2 + ["::1"] * 2 + ["::ffff:127.0.0.1"] * 2 +
                         ["192.0.2.9", "::ffff:192.0.2.9", "2001:db8::1"])

    def test_bad_network_is_repeatable(self):
        fates = []
        for _ in range(2):
            server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--perda", 30, "--duplica", 30, "--semente", 7,
                                "--verbose")
            sock, fate = self.peer(server), []
            for n in range(41):
                sock.send(b"%d" % n)
            server.expect_error("<- .* 2 B 40$")  # chegou o último: os outros 40 já foram respondidos, ou não serão
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    fate.append(int(sock.recv(99)))
            fate = [n for n in fate if n != 40]
            fates.append(fate)
            lost = 40 - len(set(fate))
            self.assertIn(self.totals(server)[3]["perdido de propósito"], (lost, lost + 1))
            self.assertTrue(2 < lost < 30 and len(fate) > len(set(fate)), fate)
        self.assertEqual(*fates)

    def test_delay_reorders_but_loses_nothing(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--atraso", 100, "--semente", 1)
        sock, start = self.peer(server), time.monotonic()
        for n in range(20):
            sock.send(b"%02d" % n)
        came = [sock.recv(99) for _ in range(20)]
        self.assertGreaterEqual(time.monotonic() - start, 0.05)
        self.assertNotEqual(came, sorted(came))
        self.assertEqual(sorted(came), [b"%02d" % n for n in range(20)])


class TestServidorUdpHouse(ServidorUdpTestCase):
    """Em volta: o que ele diz, a quem, e como acaba."""

    def test_usage_errors(self):
        table = ((("--perda", "101"), "porcentagem"), (("--taxa", "x"), "segundo"), (("--maximo", "0"), "bytes"))
        for args, word in table:
            self.assert_usage_error("servidor_udp.py", args, word)

    def test_poor_output(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--verbose", env={"PYTHONIOENCODING": "ascii"})
        self.assertEqual(self.ask(self.peer(server), "\x1b]0;ç\x07".encode()), "\x1b]0;ç\x07".encode())
        server.expect_error(r"7 B \\x1b\]0;\?\\x07")

    def piped(self, *args, **options):
        """O servidor com a saída num cano: (servidor, porta, as duas pontas do cano, que também são do teste)."""
        read, write = (os.fdopen(fd, mode, buffering=0) for fd, mode in zip(os.pipe(), ("rb", "wb")))
        self.addCleanup(read.close)
        self.addCleanup(write.close)
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", *args, ready=None, stdout=write, **options)
        return server, int(re.search(READY.encode(), read.readline())["port"]), read, write

    def enter_room(self, port):
        sock = self.peer(("127.0.0.1", port))
        code = re.search("é ([A-Z2-7]{7}):", self.ask(sock, b"/entrar".ljust(64)).decode())[1]
        self.assertIn("bem-vindo", self.ask(sock, code.encode()).decode())
        return sock

    def test_closed_pipe(self):
        """`| head -1`: quem lia foi embora; a sala se despede e acaba sem barulho na primeira linha que ninguém lê."""
        server, port, read, write = self.piped("--modo", "chat", status=1, constants={"WAKE_S": 0.05})
        read.close()
        write.close()
        sock = self.enter_room(port)
        self.assertIn("o servidor encerrou", sock.recv(999).decode())
        self.assertEqual(server.wait(), 1)

    def test_stop_with_a_closed_pipe(self):
        """`| head -1`, e depois Ctrl+C: acabar a pedido é o fim normal, ainda que ninguém leia as contas."""
        server, _, read, write = self.piped()
        read.close()
        write.close()
        self.assertEqual(server.stop(signal.SIGINT), 0)

    def test_nobody_reads_the_output(self):
        """Um cano cheio (ou um terminal com Ctrl+S): a sala conversa, e o primeiro SIGTERM a encerra em 2 s."""
        server, port, _, write = self.piped("--modo", "chat", "--taxa", 0)
        os.set_blocking(write.fileno(), False)
        while write.write(b"x"):  # None: encheu
            pass
        os.set_blocking(write.fileno(), True)
        sock = self.enter_room(port)
        for n in range(100):
            self.assertEqual(self.ask(sock, b"oi %d" % n), b"<visitante1> oi %d\n" % n)
        start = time.monotonic()
        self.assertEqual(server.stop(), 0)
        self.assertLess(time.monotonic() - start, 2)
        self.assertIn("o servidor encerrou", sock.recv(999).decode())

    def test_the_totals_find_a_full_queue(self):
        """Quem lê devagar perde linhas (um --verbose sob inundação), e nunca as contas do fim."""
        module, voices = self.module, []

        class Stuck(module.Voice):
            def close(self):
                voices.append(self)

        def flood(server):
            for _ in range(module.VOICE_BYTES // 10):
                server.guard.note("um datagrama")
            raise KeyboardInterrupt
        module.Pen.start = lambda pen: None
        module.Voice, module.Server.run, module.signal = Stuck, flood, mock.Mock()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere), \
                contextlib.redirect_stderr(nowhere):
            self.assertEqual(module.serve(module.build_parser().parse_args(["127.0.0.1", "0"])), 0)
        self.assertLessEqual(len(voices[0].notes.box), module.VOICE_BYTES)
        self.assertTrue(voices[0].notes.lost)
        self.assertIn(b"recebidos: 0 datagramas", bytes(voices[0].screen.box))

    def test_socket_turned_off_from_outside(self):
        """L16: quem tem o mesmo socket o desliga: uma linha, e o fim; nem um laço sem descanso, nem um traceback."""
        with self.quiet_socket() as sock:
            server, _ = self.build(sock, "127.0.0.1", "0")
            with contextlib.suppress(OSError):  # ENOTCONN, mas desligado está
                sock.shutdown(socket.SHUT_RDWR)
            with self.assertRaisesRegex(self.module.Failure, "desligado por fora"):
                server.run()

    def test_born_without_streams(self):
        """`>&-` e `2>&-`: o que iria à saída que falta se perde; o eco e o fim são os mesmos."""
        for closed in (">&-", "2>&-"):
            server = self.spawn("servidor_udp.py", "127.0.0.1", "0", ready=None if closed == ">&-" else READY,
                                prefix=("sh", "-c", f'exec "$@" {closed}', "sh"))
            port = server.port or int(server.expect_error(r"cliente_udp\.py 127\.0\.0\.1 (\d+)")[1])
            self.assertEqual(self.ask(self.peer(("127.0.0.1", port)), b"oi"), b"oi")
            self.assertEqual(server.stop(), 0)
            self.assertEqual(b"recebidos: 1 " in server.output.data, closed == "2>&-")
            self.assertEqual("elas se perdem: o descritor está fechado" in server.errors(), closed == ">&-")

    def test_full_disk(self):
        """A saída vai a um arquivo, e o disco enche: perdem-se as linhas, e a sala continua."""
        if not os.path.exists("/dev/full"):
            self.skipTest("sem /dev/full")
        with open("/dev/full", "wb") as full:
            server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat", ready=None, stdout=full)
        sock = self.enter_room(int(server.expect_error(r"cliente_udp\.py 127\.0\.0\.1 (\d+)")[1]))
        for _ in range(3):
            self.assertEqual(self.ask(sock, b"oi"), b"<visitante1> oi\n")
        self.assertEqual(server.stop(), 0)

    def test_a_pipe_that_does_not_wait(self):
        """L1: um cano O_NONBLOCK cheio não custa linhas: elas saem quando ele é lido."""
        server, port, read, write = self.piped("--modo", "chat", "--taxa", 0)
        os.set_blocking(write.fileno(), False)  # vale para a outra cópia do descritor: a do servidor
        sock = self.enter_room(port)
        for n in range(300):
            line = b"%d" % n + b"x" * 900
            self.assertEqual(self.ask(sock, line), b"<visitante1> " + line + b"\n")
        server.kill(signal.SIGTERM)
        write.close()
        text = b"".join(iter(lambda: read.read(65536), b""))
        self.assertEqual(len(re.findall(rb"<visitante1> \d+x{900}\n", text)), 300)
        self.assertIn(b"recebidos: 302 datagramas", text)

    def test_the_next_command(self):
        """Em stderr, o que digitar no outro terminal; na sala, com um apelido."""
        for args, end in (((), ""), (("--modo", "chat"), " --apelido NOME")):
            server = self.spawn("servidor_udp.py", "127.0.0.1", "0", *args)
            server.expect_error(rf"em outro terminal: \./cliente_udp\.py 127\.0\.0\.1 {server.port}{end}$")

    def test_the_way_to_the_network(self):
        """Onde só esta máquina chega, o comando que abre à rede, com as mesmas opções; e ele sobe assim."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", free_port(socket.SOCK_DGRAM), "--modo", "chat")
        said = server.expect_error(r"para abrir à rede: \./(servidor_udp\.py --modo chat (?:::|0\.0\.0\.0) \d+)$")
        words = said[1].split()
        self.stop(server)
        opened = self.spawn(*words)
        opened.expect_error("Ctrl\\+C mostra as contas")
        self.assertNotIn("só esta máquina", opened.errors())

    def test_no_question_to_the_kernel_once_a_signal_can_come(self):
        """O socket com que se pergunta pelo IPv6 abre e fecha antes: um Ctrl+C no meio o deixaria aberto."""
        module, calls, server = load("servidor_udp.py"), [], mock.Mock()
        server.run.side_effect = KeyboardInterrupt
        with mock.patch.object(module, "has_ipv6", side_effect=lambda: calls.append("IPv6") or False), \
                mock.patch.object(module.signal, "signal", side_effect=lambda *_: calls.append("sinal")), \
                mock.patch.multiple(module, Voice=mock.MagicMock(), totals=mock.Mock(),
                                    build_server=mock.Mock(return_value=(server, None))):
            module.serve(module.build_parser().parse_args(["127.0.0.1", "0"]))
        self.assertEqual(calls, ["IPv6", "sinal", "sinal"])

    def test_suggestions_keep_the_options(self):
        """O comando que um erro sugere é o que se digitou, só com o que estava errado trocado."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        for script, args, status, command in (
                ("servidor_udp.py", ("127.0.0.1", server.port, "--modo", "chat"), 1,
                 f"./servidor_udp.py --modo chat 127.0.0.1 {server.port % 65535 + 1}"),
                ("servidor_udp.py", ("192.0.2.1", "5050", "--taxa", "5"), 1, "./servidor_udp.py --taxa 5 0.0.0.0 5050"),
                ("servidor_udp.py", ("5050", "--modo", "chat"), 2, "./servidor_udp.py --modo chat 127.0.0.1 5050"),
                ("cliente_udp.py", ("5050", "--apelido", "ana"), 2, "./cliente_udp.py --apelido ana 127.0.0.1 5050"),
                ("cliente_udp.py", ("5050", "--mensagem", "oi, ana"), 2, "--mensagem 'oi, ana' 127.0.0.1 5050")):
            self.assert_one_line_error(self.run_script(script, *args), command, status=status)

    def test_suggestions_run(self):
        """N13, C13: o que a primeira linha e o primeiro erro mandam digitar funciona como está escrito."""
        server = self.spawn("servidor_udp.py", "localhost", free_port(socket.SOCK_DGRAM))
        self.assertEqual(server.host, "127.0.0.1", "localhost vale pelo IPv4, como no par TCP")
        hint = server.expect_error(r"em outro terminal: \./(cliente_udp\.py .+)$")[1].split()
        self.assertEqual(self.run_script(*hint, "--mensagem", "oi", status=0).out, b"oi\n")
        refused = self.run_script("servidor_udp.py", "127.0.0.1", server.port)
        self.assert_one_line_error(refused, "já está em uso")
        command = re.search(r"Outra porta: \./(.+)$", refused.err.strip())[1].split()
        self.spawn(*command)

    def test_no_ipv6(self):
        """C14: sem IPv6 no kernel, `::` é uma linha com o comando em IPv4."""
        def no_ipv6(family=socket.AF_INET, *args, **kwargs):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            return socket.socket(family, *args, **kwargs)
        fake = argparse.Namespace(**{**vars(socket), "socket": mock.MagicMock(side_effect=no_ipv6)})
        self.module.socket = fake
        with mock.patch.object(sys, "argv", ["servidor_udp.py", "--modo", "chat", "::", "5050"]):
            self.module.build_parser().parse_args(sys.argv[1:])
            with self.assertRaises(self.module.Failure) as refused:
                self.module.open_socket("::", 5050)
        self.assertIn("sem IPv6", str(refused.exception))
        self.assertIn("./servidor_udp.py --modo chat 0.0.0.0 5050", str(refused.exception))


# ---------------------------------------------------------------------------------------------
# cliente_udp.py

class Paper(io.StringIO):
    """Onde se lê o que foi mostrado: faz as vezes de um terminal, pois não tem descritor."""

    def isatty(self):
        return True


class ClienteUdpTestCase(UDPTestCase):
    """O cliente UDP, e quem lhe responde."""

    def serve(self, *script):
        """Um servidor de mentira: a cada datagrama chama a próxima função de `script` com (sock, dados, endereço)."""
        sock = self.peer()

        def run():
            with contextlib.suppress(OSError):
                for step in script:
                    step(sock, *sock.recvfrom(65536))
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return sock

    def nobody(self):
        """Um endereço em que ninguém escuta."""
        return "127.0.0.1", str(free_port(socket.SOCK_DGRAM))

    def resize(self, child, columns):
        import termios
        fcntl.ioctl(child.master, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def faulty(self, operation, errors, *options):
        """O cliente, cujo socket falha em `operation` com estes erros e depois se cura, e args para um eco."""
        module, errors = load("cliente_udp.py"), iter(errors)

        class Faulty(module.Wire):
            def __init__(self, args):
                super().__init__(args)
                real = getattr(self.sock, operation)

                def fail(argument):
                    for number in errors:
                        raise OSError(number, os.strerror(number))
                    return real(argument)
                self.sock = mock.Mock(wraps=self.sock, **{operation: fail})
        module.Wire = Faulty
        echo = self.serve(*[lambda sock, data, who: sock.sendto(data, who)] * 9)
        return module, module.build_parser().parse_args([*map(str, echo.getsockname()), *options])

    NETWORK_ERRORS = {errno.ENETUNREACH: "não há rede até lá", errno.EHOSTUNREACH: "não há caminho até lá",
                      errno.EMSGSIZE: "datagrama menor", errno.EPERM: "firewall", errno.ECONNREFUSED: "ninguém escuta"}


class TestClienteUdpWire(ClienteUdpTestCase):
    """Um fio que não avisa."""

    def test_client_first(self):
        """Sem servidor: o datagrama sai, volta um ICMP, e o cliente diz como o TCP difere."""
        for args in (("--mensagem", "oi"), ("--ping", "1", "--espera", "0.1"), ()):
            result = self.run_script("cliente_udp.py", *self.nobody(), *args, input=b"oi\n")
            self.assertEqual(result.status, 1, result)
            self.assertEqual(result.err.count("\n"), 1, result)
            for words in ("ninguém escuta", "saiu", "TCP", "./servidor_udp.py"):
                self.assertIn(words, result.err)

    def test_never_talks_to_itself(self):
        """Sem ninguém na porta, o kernel pode sortear justo ela para o cliente: o que ele mandasse voltaria a ele."""
        module, made = load("cliente_udp.py"), []

        class Alone(socket.socket):
            def connect(self, address):
                made.append(self)
                self.bind(address)
                super().connect(address)
        with mock.patch.object(module.socket, "socket", Alone), \
                self.assertRaisesRegex(module.Failure, "ninguém escuta"):
            module.Wire(module.build_parser().parse_args([*self.nobody()]))
        self.assertEqual([sock.fileno() for sock in made], [-1])

    def test_answers_from_others_are_ignored(self):
        intruder = self.peer()

        def step(sock, data, who):
            intruder.sendto(b"falsa", who)
            sock.sendto(b"verdadeira", who)
        self.assertEqual(self.client(self.serve(step), "--mensagem", "oi", status=0).text, "verdadeira\n")

    def test_too_big(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        big = b"x" * 65507
        self.assertEqual(self.client(server, input=big + b"\n", status=0).out, big + b"\n")
        self.assert_one_line_error(self.client(server, input=big + b"x"), "65507", "nada foi enviado")
        self.assert_one_line_error(self.client(server, input=b"x" * 300000), "o limite aqui é 65507")
        result = self.client(server, "--ping", "1", "--tamanho", "65508")
        self.assert_one_line_error(result, "65507")
        self.assertEqual(result.text, "")
        self.assertEqual(self.totals(server)[0], 1)

    def test_another_machine_that_only_listens_to_itself(self):
        """N7: recusado noutra máquina, o mais comum é um servidor em 127.0.0.1: a dica é o que digitar lá."""
        module = load("cliente_udp.py")
        for host, words in (("192.0.2.1", "naquela máquina: ./servidor_udp.py 0.0.0.0 7000 --modo chat"),
                            ("2001:db8::1", "naquela máquina: ./servidor_udp.py :: 7000 --modo chat"),
                            ("127.0.0.1", "suba o servidor: ./servidor_udp.py 127.0.0.1 7000 --modo chat")):
            args = module.build_parser().parse_args([host, "7000", "--apelido", "ana"])
            said = module.Wire.explain(argparse.Namespace(args=args, where=""), ConnectionRefusedError())
            self.assertIn(words, said)

    def test_a_resolver_that_is_not_there_yet(self):
        """C15: o DNS que ainda não responde não é um nome errado."""
        module = load("cliente_udp.py")
        args = module.build_parser().parse_args(["nome"])
        for number, words in ((socket.EAI_AGAIN, "o DNS não respondeu"), (socket.EAI_NONAME, "confira o nome")):
            with mock.patch.object(module.socket, "getaddrinfo", side_effect=socket.gaierror(number, "x")), \
                    self.assertRaisesRegex(module.Failure, words):
                module.Wire(args)

    def test_naive_program(self):
        """O ingênuo conversa com o eco; sem ninguém lá, o send() dá certo e o recv() mostra um traceback."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        code = "import socket, sys\n" + naive_program("cliente_udp.py")
        run = functools.partial(subprocess.run, input=b"oi\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                timeout=WATCHDOG_S)
        self.assertEqual(run([*PYTHON, "-c", code.replace("5050", str(server.port))]).stdout, b"oi\n")
        _, port = self.nobody()
        self.assertIn(b"Traceback", run([*PYTHON, "-c", code.replace("5050", str(port))]).stderr)
        result = self.run_script("cliente_udp.py", "127.0.0.1", port, "--mensagem", "oi")
        self.assert_one_line_error(result, "ninguém escuta")


class TestClienteUdpAsk(ClienteUdpTestCase):
    """Perguntar, e ter por onde desistir."""

    def test_questions(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        result = self.client(server, input="um\ndois\n\ntrês\nsem fim".encode(), status=0)
        self.assertEqual(result.text, "um\ndois\n\ntrês\nsem fim\n")
        self.assertEqual(self.client(server, "--mensagem", "", status=0).text, "\n")
        self.assertEqual(self.client(server, "--mensagem", "?\n", status=0).text, "?\n")  # um eco, não uma sala
        datagrams, octets, sources = self.totals(server)[:3]
        self.assertEqual((datagrams, octets), (7, 2 + 4 + 0 + 5 + 7 + 0 + 2))
        self.assertIn(sources, (5, 6, 7))  # uma porta nova por pergunta; o kernel pode repetir a de uma já fechada

    def test_retransmission(self):
        server = self.serve(lambda *_: None, lambda sock, data, who: sock.sendto(data, who))
        self.assertEqual(self.client(server, "--mensagem", "oi", "--espera", "0.2", "--tentativas", "5").text, "oi\n")

    def test_late_answer_is_not_taken_for_a_fresh_one(self):
        """A resposta da primeira pergunta chega durante a segunda, igual a esta: a porta é outra, ela não engana."""
        first = []

        def late(sock, data, who):
            sock.sendto(b"resposta velha", first[0])
            sock.sendto(b"resposta nova", who)
        server = self.serve(lambda sock, data, who: first.append(who), late)
        result = self.client(server, "--espera", "0.3", input=b"oi\noi\n")
        self.assertEqual((result.text, result.status), ("resposta nova\n", 1), result)

    def test_input_that_cannot_be_read(self):
        """Aberta só para escrever (`0>/dev/null`): uma linha diz, em vez de uma espera sem fim."""
        for args in ((), ("--apelido", "ana")):
            with open(os.devnull, "wb") as unreadable:
                child = self.spawn("cliente_udp.py", *self.nobody(), *args, ready=None, status=1, stdin=unreadable)
            self.assertEqual(child.wait(), 1)
            self.assertRegex(child.errors(), r"\Acliente_udp\.py: erro: não consigo ler a entrada: .*\n\Z")

    def test_terminal_says_which_answer_is_late(self):
        def two(sock, data, who):
            sock.sendto(b"um", who)
        server = self.serve(lambda *_: None, two)
        child = self.spawn("cliente_udp.py", "127.0.0.1", server.getsockname()[1], "--espera", "0.2", tty=True,
                           ready="> ")
        child.type("um\r")
        child.expect("sem resposta")
        child.type("dois\r")
        child.expect(r"um  \(atrasada: [\d.]+ s\)")
        # "dois" continuou à espera: a atrasada não valeu por ela. O prompt outra vez, e o Ctrl+D não se perde.
        child.expect("(?s)sem resposta.*> ")
        child.type("\x04")
        self.assertEqual(child.wait(), 0)

    def test_usage_errors(self):
        for args, word in ((("5050",), "127.0.0.1 5050"), (("127.0.0.1", "0"), "65535"), (("--ping", "0"), "100000"),
                           (("--tamanho", "11"), "bytes"), (("--ping", "1", "--mensagem", "x"), "mensagem"),
                           *(((f"--apelido={nick}",), "visíveis") for nick in ("", "a b", "a\x1b", "\u3164")),
                           (("--apelido=ana!x",), "não leva !")):
            self.assert_usage_error("cliente_udp.py", args, word)
        for host, words in (("a..b", "não encontro a máquina"), ("127.255.255.255", "não foi possível falar com")):
            self.assert_one_line_error(self.run_script("cliente_udp.py", host, "--mensagem", "x"), words)

    def test_poor_output_and_closed_pipe(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        result = self.client(server, "--mensagem", "ação", env={"PYTHONIOENCODING": "ascii"}, status=0)
        self.assertEqual(result.text, "a??o\n")
        read, write = os.pipe()
        os.close(read)
        child = self.spawn("cliente_udp.py", "127.0.0.1", server.port, "--mensagem", "oi", ready=None, status=1,
                           stdout=write)
        os.close(write)
        child.wait()

    def test_pipe_that_does_not_wait(self):
        """L1: um cano O_NONBLOCK e cheio recebe a resposta inteira, quando alguém o lê."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        read, write = os.pipe()
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x")
        child = self.spawn("cliente_udp.py", "127.0.0.1", server.port, "--mensagem", "oi", "--verbose", ready=None,
                           stdout=write)
        os.close(write)
        child.expect_error("<- .* oi")
        with os.fdopen(read, "rb") as pipe:
            self.assertEqual(pipe.read().lstrip(b"x"), b"oi\n")
        self.assertEqual(child.wait(), 0)

    def test_naive_waits_for_ever(self):
        """O ingênuo, se o que disse se perde, espera para sempre; o nosso conta, e acaba."""
        mute = self.peer()
        code = "import socket, sys\n" + naive_program("cliente_udp.py").replace("5050", str(mute.getsockname()[1]))
        with self.assertRaises(subprocess.TimeoutExpired):
            subprocess.run([*PYTHON, "-c", code], input=b"oi\n", stdout=subprocess.PIPE, timeout=1)
        result = self.run_script("cliente_udp.py", *mute.getsockname(), "--mensagem", "oi", "--espera", 0.1)
        self.assert_one_line_error(result, "sem resposta", "em 1 tentativa.", "--tentativas 5")

    def test_input_that_fails_in_the_middle(self):
        """L4: a entrada que falha depois de começada é dita em uma linha, e ninguém espera para sempre."""
        module = load("cliente_udp.py")
        with contextlib.closing(module.Keyboard(None)) as keyboard:
            def broken():
                yield b"oi"
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            with mock.patch.object(module, "piped_lines", broken):
                keyboard.read()
            self.assertEqual(keyboard.get(), b"oi")
            self.assertRaisesRegex(module.Failure, "não consigo ler a entrada: não quer esperar", keyboard.get)


class TestClienteUdpTally(ClienteUdpTestCase):
    """Quanto se perde, se dobra e se atrasa."""

    @classmethod
    def setUpClass(cls):
        cls.room, cls.module = load("servidor_udp.py"), load("cliente_udp.py")

    def test_readme_ping(self):
        for fields, octets in self.vectors("ping"):
            session, seq, size = int(fields["sorteio"], 16), int(fields["número"]), int(fields["tamanho"])
            self.assertEqual(self.module.encode_ping(session, seq, size), bytes.fromhex(octets))
            self.assertEqual(self.module.decode_ping(bytes.fromhex(octets), session, size), seq)

    def test_ping_round_trip(self):
        for size in (12, 13, 64, 268, 269, 65507):
            for seq in (0, 1, 2**32 - 1):
                self.assertEqual(self.module.decode_ping(self.module.encode_ping(7, seq, size), 7, size), seq)

    def test_ping_refuses_what_is_not_its_own(self):
        good, rng = self.module.encode_ping(7, 3, 64), random.Random(SEED)
        bad = [good[:n] for n in range(64)] + [good + b"\0", self.module.encode_ping(8, 3, 64), b"PONG" + good[4:],
                                               good[:-1] + b"\xff"] + [rng.randbytes(64) if hasattr(rng, "randbytes")
                                                                       else os.urandom(64) for _ in range(50)]
        for data in bad:
            self.assertEqual(self.module.decode_ping(data, 7, 64), -1, data)

    def test_tally(self):
        tally = self.module.Tally(patience_s=2)
        for n in range(6):
            tally.left_at.append(float(n))
        for seq, now in ((0, 0.5), (2, 2.5), (1, 2.6), (2, 2.7), (3, 9.0), (99, 9.1)):  # 4 e 5 nunca voltam
            tally.answered(seq, now)
        self.assertEqual((tally.duplicates, tally.reordered, tally.lost(), tally.strange), (1, 1, 2, 1))
        self.assertEqual(tally.marks(), "...axx")
        self.assertEqual(tally.on_time(), [0.5, 0.5, 2.6 - 1.0])  # a atrasada não entra na ida e volta
        self.assertIn("6 enviados: 3 respondidos, 1 atrasados, 2 perdidos (33.3%)", self.module.report(tally))

    def test_percentile(self):
        values = list(range(1, 101))
        self.assertEqual([self.module.percentile(values, p) for p in (0, 50, 99, 100)], [1, 50, 99, 100])
        self.assertEqual(self.module.percentile([5], 99), 5)

    def test_strip_chart_is_small_and_hides_no_loss(self):
        for count in (0, 1, 64, 65, 1024, 1025, 100000):
            marks = "." * count
            if count > 1:
                marks = marks[:count // 2] + "x" + marks[count // 2 + 1:]
            rows = self.module.strip_chart(marks)
            self.assertLessEqual(len(rows), self.module.STRIP_ROWS + 1)
            self.assertTrue(all(len(row) < 80 for row in rows), rows)
            self.assertEqual(sum(row.count("x") for row in rows[:-1]), count > 1)

    def test_ping(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        result = self.client(server, "--ping", "20", "--intervalo", "1", "--tamanho", "1000", status=0)
        self.assertIn("20 enviados: 20 respondidos, 0 atrasados, 0 perdidos (0.0%)", result.text)
        self.assertRegex(result.text, r"mínimo [\d.]+  mediana [\d.]+  p99 [\d.]+  máximo [\d.]+ ms")
        self.assertRegex(result.text, r"(?m)^ +1 \.{20}$")

    def test_pace_above_what_the_server_allows(self):
        """N5: o que se perde acima da taxa padrão do servidor pode ser o limite dele, e não a rede: é dito."""
        self.assertEqual(self.module.SERVER_RATE, self.room.ECHO_RATE)
        for step, lost, host, told in ((0.0001, 5, "192.0.2.1", True), (0.0001, 0, "192.0.2.1", False),
                                       (0.002, 5, "192.0.2.1", False), (0.0001, 5, "127.0.0.1", False),
                                       (0.0001, 5, "::1", False)):
            tally = self.module.Tally(2)
            tally.left_at.extend(n * step for n in range(50))
            for seq in range(50 - lost):
                tally.answered(seq, 1)
            said = self.module.explain_pace(tally, host)
            self.assertEqual("1000 por segundo" in said and "--intervalo 2" in said, told, (step, lost, host, said))
            self.assertEqual(bool(said), told)
        tally = self.module.Tally(2)
        tally.left_at.extend([0.0, 0.0])
        self.assertIn("limite dele", self.module.explain_pace(tally, "192.0.2.1"))
        tally.left_at.pop()
        self.assertEqual(self.module.explain_pace(tally, "192.0.2.1"), "")

    def test_ping_at_a_room(self):
        """Quem responde outra coisa responde: não é um silêncio, e a dica é outra."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat")
        result = self.client(server, "--ping", "2", "--intervalo", "1", "--espera", "0.2")
        self.assert_one_line_error(result, "não é o eco", "--ping")
        self.assertNotIn("sem resposta", result.err)

    def test_ping_counts_each_misfortune(self):
        """Perda, cópia, troca de ordem, atraso e o eco de outra execução: cada um na sua conta."""
        kept = []

        def keep(sock, data, who):
            kept.append(data)

        def swap(sock, data, who):
            for copy in (data, data, kept[0], data[:4] + b"\0\0\0\0" + data[8:]):  # 2, 2, 1, de outra execução
                sock.sendto(copy, who)

        def late(sock, data, who):
            with contextlib.suppress(socket.timeout):  # o quarto só é respondido depois da espera dele, junto do quinto
                fifth = sock.recvfrom(65536)[0]
                sock.sendto(data, who)
                sock.sendto(fifth, who)
        server = self.serve(keep, swap, keep, late)
        result = self.client(server, "--ping", "5", "--intervalo", "50", "--espera", "0.3", status=0)
        self.assertIn("5 enviados: 4 respondidos, 0 atrasados, 1 perdidos", result.text)
        self.assertIn("1 em dobro, 1 fora de ordem, 1 estranhos", result.text)
        self.assertRegex(result.text, r"(?m)^ +1 \.\.x\.\.$")

    def test_live_line_fits_the_terminal(self):
        server = self.peer()
        child = self.spawn("cliente_udp.py", *server.getsockname(), "--ping", 1000, tty="all", status=130,
                           ready=r"\r\x1b\[K\d+/1000 enviados, 0 respondidos  \r")  # 0 colunas: vale 80
        self.resize(child, 20)
        child.expect(r"\r\x1b\[K\d[^\r]{18}\r")
        child.kill(signal.SIGINT)
        self.assertEqual(child.wait(), 130)

    def test_ping_in_a_stopped_terminal(self):
        """P4: com o terminal parado (Ctrl+S), um SIGTERM acaba o --ping: as contas ficam por mostrar."""
        server = self.peer()
        child = self.spawn("cliente_udp.py", *server.getsockname(), "--ping", 1000, tty="all", status=130,
                           ready="0 respondidos")
        self.stop_terminal(child)
        child.kill(signal.SIGTERM)
        self.assertEqual(child.wait(), 130)

    def test_question_and_ping_outlive_the_network(self):
        """Numa pergunta o erro é o fim dela, ou conta como tentativa; um --ping segue até o fim da conta."""
        ping = "--ping", "3", "--intervalo", "1", "--espera"
        for number, words in self.NETWORK_ERRORS.items():
            module, args = self.faulty("send", [number] * 2)
            self.assertRaisesRegex(module.Failure, words, module.ask, args, b"oi")
            module, args = self.faulty("send", [number] * 99, *ping, "0.01")
            with contextlib.redirect_stdout(Paper()):
                self.assertRaisesRegex(module.Failure, words, module.ping, args)
        module, args = self.faulty("send", [errno.ENETUNREACH] * 2, "--tentativas", "1000", "--espera", "0.05")
        with contextlib.redirect_stdout(Paper()) as shown:
            self.assertEqual(module.ask(args, b"oi"), 0)
        self.assertEqual(shown.getvalue(), "oi\n")
        module, args = self.faulty("recv", [errno.ENETUNREACH], *ping, "30")
        with contextlib.redirect_stdout(Paper()) as shown:
            module.ping(args)
        self.assertIn("3 enviados: 3 respondidos", shown.getvalue())


class TestClienteUdpConversation(ClienteUdpTestCase):
    """O teclado e a rede ao mesmo tempo."""

    @classmethod
    def setUpClass(cls):
        cls.room, cls.module = load("servidor_udp.py"), load("cliente_udp.py")

    def test_readme_invite(self):
        for fields, octets in self.vectors("convite"):
            invite = bytes.fromhex(octets)
            self.assertEqual(self.room.INVITE.format(fields["código"]).encode(), invite)
            self.assertEqual(self.module.proof(invite, b"oi"), fields["código"].encode() + b" oi")

    def test_columns(self):
        """Quantas colunas do terminal a linha digitada ocupa: por elas, e não pelas letras, se sabe onde apagar."""
        for text, width, used in (("", 80, 0), ("ação", 80, 4), ("e\u0301", 80, 1), ("日本", 80, 4),
                                  ("❤\ufe0f", 80, 1), ("abc", 3, 3), ("ab日", 3, 5), ("a日b日", 3, 6), ("日日日", 3, 8)):
            self.assertEqual(self.module.columns(text, width), used, (text, width))

    def test_keepalive(self):
        """Um membro calado manda um datagrama vazio de tempos em tempos; quem não é membro, nunca."""
        args, sent = self.module.build_parser().parse_args(["--apelido", "ana"]), []
        talk = self.module.Conversation(argparse.Namespace(send=sent.append), None, args)
        talk.check_deadlines()
        self.assertEqual(sent, [])
        talk.state, talk.keepalive_at = self.module.MEMBER, time.monotonic()
        talk.check_deadlines()
        talk.check_deadlines()
        self.assertEqual(sent, [b""])

    def test_nicks(self):
        """S3: o que o cliente aceita como apelido é o que a sala aceita: a regra é um bloco comum."""
        for good in ("ana", "José", "x" * 20, "名前"):
            self.assertEqual(self.room.nick_fault(good), "")
        for bad in ("", "x" * 21, "a b", "a\x1b", "/ana", "a\nb", "\u202e"):
            self.assertNotEqual(self.room.nick_fault(bad), "", repr(bad))

    def test_silence(self):
        mute = self.peer()
        result = self.client(mute, "--mensagem", "oi", "--espera", "0.1", "--tentativas", "3")
        self.assert_one_line_error(result, "sem resposta", "0.1 s", "3 tentativa", "O datagrama saiu", "s 15")
        self.assertEqual([mute.recv(9) for _ in range(3)], [b"oi"] * 3)  # retransmitiu
        result = self.client(mute, "--ping", "2", "--intervalo", "1", "--espera", "0.1")
        self.assert_one_line_error(result, "sem resposta", "Tente: --espera 0.5")  # ao --ping, tentativas não servem
        self.assertIn("2 perdidos (100.0%)", result.text)

    def test_insists_until_the_server_is_up(self):
        host, port = self.nobody()
        child = self.spawn("cliente_udp.py", host, port, "--mensagem", "oi", "--tentativas", 100, "--espera", 0.1,
                           "--verbose", ready=None)
        child.expect_error(r"-> .* porta \d+ 2 B oi$")
        self.spawn("servidor_udp.py", host, port)
        child.expect("^oi$")
        self.assertEqual(child.wait(), 0)

    def test_escapes(self):
        server = self.serve(lambda sock, data, who: sock.sendto(b"\x1b]0;x\x07\xff\nfim\n", who))
        result = self.client(server, "--mensagem", "oi", "--verbose", status=0)
        self.assertEqual(result.text, "\\x1b]0;x\\x07\ufffd\nfim\n")
        self.assertIn("12 B \\x1b]0;x", result.err)

    def test_random_answers(self):
        """2 x 5000 datagramas ao acaso: o cliente não cai, não gira, e não responde a quem pede código sem parar."""
        rng, module, received = random.Random(SEED), load("cliente_udp.py"), []
        invite = module.INVITE.format("ABCDEFG").encode()
        bait = (invite, *module.HINTS, b"")

        def storm(sock, data, who):
            sock.setblocking(False)
            for n in range(5000):
                sock.sendto(rng.choice(bait) if n % 4 == 0 else rng.getrandbits(320).to_bytes(40, "big"), who)
                with contextlib.suppress(BlockingIOError):
                    received.append(sock.recv(65536))
        for args in (("--apelido", "ana"), ("--ping", "2", "--intervalo", "200")):
            del received[:]
            self.client(self.serve(storm), *args, "--espera", "0.5", input=b"")
            self.assertLessEqual(len(received), module.MAX_PROOFS + 3, received)

    def test_room(self):
        """O cliente responde ao código sozinho, com apelido ou sem."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat")
        ana = self.spawn("cliente_udp.py", "127.0.0.1", server.port, "--apelido", "ana", ready=r"agora é ana")
        result = self.client(server, "--mensagem", "oi", status=0)
        self.assertIn("bem-vindo à sala, visitante1", result.text)
        ana.expect("<visitante1> oi")
        self.assertIn("bem-vindo", self.client(server, "--mensagem", "a", status=0).text)  # um byte também é conversa
        ana.expect("<visitante1> a")
        ana.expect("visitante1 saiu")
        ana.type("tudo bem?\n")
        ana.expect("<ana> tudo bem")
        ana.stdin.close()
        ana.expect("até logo")
        self.assertEqual(ana.wait(), 0)
        server.expect("ana saiu")

    def test_piped_lines_wait_for_the_room(self):
        """L1: o que vem por um cano só segue depois de a sala aceitar: nenhuma linha se perde, e há um adeus."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat")
        bia = self.spawn("cliente_udp.py", "127.0.0.1", server.port, "--apelido", "bia", ready=r"agora é bia")
        result = self.client(server, "--apelido", "ana", input=b"um\ndois\ntr\xc3\xaas\n", status=0)
        # As suas também: a resposta à primeira não é a despedida.
        self.assertRegex(result.text, r"<ana> um\n<ana> dois\n<ana> três\n\* até logo\n\Z")
        bia.expect("(?s)<ana> um\n<ana> dois\n<ana> três\n.*ana saiu")
        bia.stdin.close()
        self.assertEqual(bia.wait(), 0)

    def test_piped_lines_at_the_pace_of_the_room(self):
        """L1: mais linhas do que a sala aceita de enxurrada: cada uma espera a sua vez, e nenhuma se perde."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat")
        lines = [b"linha %d\n" % number for number in range(25)]
        result = self.client(server, "--apelido", "ana", input=b"".join(lines), status=0)
        self.assertEqual([line for line in result.out.splitlines(True) if line.startswith(b"<ana> ")],
                         [b"<ana> " + line for line in lines])

    def test_pasted_lines_at_the_pace_of_the_room(self):
        """O mesmo, coladas de uma vez num terminal."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat")
        ana = self.spawn("cliente_udp.py", "127.0.0.1", server.port, "--apelido", "ana", tty=True, ready="agora é ana")
        ana.type("".join(f"linha {number}\n" for number in range(25)) + "/sair\n")
        said = server.expect("(?s)^.*ana saiu")[0]
        self.assertEqual(re.findall(rb"<ana> linha (\d+)", said), [b"%d" % number for number in range(25)])
        self.assertEqual(ana.wait(), 0)

    def test_nick_at_an_echo(self):
        """--apelido num servidor que não é uma sala: o eco do /entrar responde, e a conversa segue."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        result = self.client(server, "--apelido", "ana", input=b"um\ndois\n", status=0)
        self.assertIn("\num\ndois\n", result.text)

    def test_stopped_terminal(self):
        """P4: um terminal parado (Ctrl+S) não prende quem recebe um SIGTERM com algo por mostrar."""
        server = self.peer()
        child = self.spawn("cliente_udp.py", *server.getsockname(), "--verbose", tty=True, ready="> ", status=130)
        child.type("oi\r")
        who = server.recvfrom(99)[1]
        child.expect("> ")
        self.stop_terminal(child)
        # O eco de uma tecla prende a thread do readline; a resposta, a principal.
        child.type("x")
        server.sendto(b"resposta", who)
        child.expect_error("<- .* resposta")
        child.kill(signal.SIGTERM)
        self.assertEqual(child.wait(), 130)

    def test_interrupt_where_a_screen_cannot_be_waited_for(self):
        """No Windows só se espera por sockets: Ctrl+C numa conversa acaba como nos outros, e não num erro."""
        for name in ("cliente.py", "cliente_udp.py"):
            module, written = load(name), []
            screen = argparse.Namespace(mode=None)
            with mock.patch.object(module, "termios", None), \
                    mock.patch.object(module, "wait_ready", side_effect=OSError(10038, "not a socket")), \
                    mock.patch.object(module.os, "write", lambda *args: written.append(args)):
                module.Screen.__exit__(screen, KeyboardInterrupt)
            self.assertEqual(written, [(1, b"\n")])

    def test_terminal(self):
        """Digita-se, volta; o que chega não rasga a linha; /sair acaba, e o terminal volta a ter eco."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat")
        ana = self.spawn("cliente_udp.py", "127.0.0.1", server.port, "--apelido", "ana", tty=True,
                         ready="(?s)agora é ana.*> ")
        ana.type("meia linha")
        ana.expect("meia linha")
        self.client(server, "--mensagem", "oi")
        if importlib.util.find_spec("readline"):
            ana.expect("<visitante1> oi\r\n> meia linha")
        ana.type("\r")
        ana.expect("<ana> meia linha")
        ana.type("/sair\r")
        ana.expect("até logo")
        self.assertEqual(ana.wait(), 0)
        import termios
        self.assertTrue(termios.tcgetattr(ana.master)[3] & termios.ECHO)

    def test_long_line_is_not_torn(self):
        """A linha digitada ocupa várias do terminal: o que chega a apaga inteira, e a redesenha inteira."""
        if not importlib.util.find_spec("readline"):
            self.skipTest("sem o módulo readline")
        server = self.peer()
        child = self.spawn("cliente_udp.py", *server.getsockname(), "--espera", 3600, tty=True, ready="> ", status=130)
        child.type("a\r")
        who = server.recvfrom(99)[1]
        child.expect("> ")  # antes dele, quem ecoa é o terminal, e não há o que apagar
        typed = 0
        for columns, length, up, end in ((0, 10, 0, ""), (0, 100, 1, ""), (40, 110, 2, ""), (40, 118, 3, " \r"),
                                         (30, 118, 4, " \r")):
            self.resize(child, columns)
            child.type("x" * (length - typed))
            child.expect(r"(?:x[^x]*){%d}" % (length - typed) if length > typed else "")
            typed = length
            server.sendto(b"chegou", who)
            child.expect(r"\r" + r"\x1b\[A" * up + r"\x1b\[Jchegou\r\n> x{%d}%s" % (length, end))
        child.kill(signal.SIGINT)
        child.wait()

    def test_no_prompt_after_the_goodbye(self):
        """Depois do /sair não há mais o que digitar: a linha em edição não se redesenha."""
        module, out = load("cliente_udp.py"), Paper()
        screen = mock.Mock(typing=True, unfinished="", dumb=False, over=False,
                           **{"edited.return_value": "> " + "日" * 39})
        talk = module.Conversation(mock.Mock(limit=99), mock.Mock(screen=screen), module.build_parser().parse_args([]))
        screen.show = lambda text: module.Screen.show(screen, text)
        talk.state = module.MEMBER
        with mock.patch.object(module.os, "get_terminal_size", return_value=os.terminal_size((80, 24))), \
                contextlib.redirect_stdout(out):
            talk.show(["oi"])
            self.assertEqual(out.getvalue(), f"\r\x1b[A\x1b[Joi\n> {'日' * 39} \r")
            out.truncate(out.seek(0))
            talk.obey(b"/sair")
            talk.show(["até logo"])
        self.assertEqual(out.getvalue(), "\r\x1b[A\x1b[Jaté logo\n")

    def test_flood_does_not_hush_the_keyboard(self):
        """Um servidor que não para de falar: o que se digita sai, e o Ctrl+D acaba."""
        module, sent, flood = load("cliente_udp.py"), [], iter([b"bla"] * 100)
        wire = argparse.Namespace(receive=lambda *_: next(flood), send=sent.append, trouble="", limit=65507)
        with contextlib.closing(module.Keyboard(None)) as keyboard, contextlib.redirect_stdout(Paper()):
            for line in (b"oi", None):
                keyboard.lines.put(line)
                keyboard.wake_w.send(b"!")
            module.Conversation(wire, keyboard, module.build_parser().parse_args([])).run()
        self.assertEqual(sent, [b"oi"])

    def test_echo_of_what_a_room_says(self):
        """Digitou-se "?" e, antes do eco, outra linha: o "?" que volta é o eco, e não uma sala que pergunta quem é."""
        module, sent, shown = load("cliente_udp.py"), [], Paper()
        wire, keyboard = argparse.Namespace(send=sent.append, limit=65507), argparse.Namespace(screen=None)
        talk = module.Conversation(wire, keyboard, module.build_parser().parse_args([]))
        with contextlib.redirect_stdout(shown):
            for line in (b"?", b"oi"):
                talk.obey(line)
            for line in (b"?", b"oi"):
                talk.hear(line)
        self.assertEqual((sent, shown.getvalue()), ([b"?", b"oi"], "?\noi\n"))

    def test_interrupt_in_the_room(self):
        """Ctrl+C, SIGTERM e a janela fechada também se despedem: o apelido fica livre na hora."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat")
        self.addCleanup(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL))  # o nohup o ignora
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, -signal.SIGHUP)):
            ana = self.spawn("cliente_udp.py", server.host, server.port, "--apelido", "ana", ready="é ana",
                             status=status)
            ana.kill(number)
            server.expect("ana saiu")
            self.assertEqual(ana.wait(), status)

    def test_interrupt_after_the_network_is_gone(self):
        """Ctrl+C depois de o Wi-Fi cair: acaba com 130, sem um erro por não ter podido dizer adeus."""
        module, args = self.faulty("send", [errno.ENETUNREACH] * 2)
        with contextlib.closing(module.Wire(args)) as wire:
            talk = module.Conversation(wire, None, args)
            talk.state = module.MEMBER
            with self.assertRaises(KeyboardInterrupt), contextlib.closing(talk):
                raise KeyboardInterrupt
            self.assertIn("não há rede até lá", wire.trouble)

    def test_conversation_outlives_the_network(self):
        """O Wi-Fi cai no meio da conversa, e volta: uma linha conta, na hora, e a conversa segue."""
        for operation, times, came in (("send", 2, "dois\n"), ("recv", 1, "um\n")):
            for number, words in self.NETWORK_ERRORS.items():
                module, args = self.faulty(operation, [number] * times, "--espera", "30")
                warned, shown = [], Paper()
                with contextlib.closing(module.Keyboard(None)) as keyboard, contextlib.redirect_stdout(shown), \
                        contextlib.closing(module.Wire(args)) as wire:
                    def type_lines(*lines):
                        for line in lines:
                            keyboard.lines.put(line)
                            keyboard.wake_w.send(b"!")

                    def warn(text):
                        warned.append(text)
                        type_lines(b"dois", None)
                    talk = module.Conversation(wire, keyboard, args)
                    talk.warn = warn
                    type_lines(b"um")
                    talk.run()
                self.assertEqual(len(warned), 1, (operation, number, warned))
                self.assertIn(words, warned[0])
                self.assertTrue(shown.getvalue().startswith(came), shown.getvalue())

    def test_born_without_streams(self):
        """`<&-` e `2>&-`: o descritor que falta já é de um socket, e não se lê dele nem se escreve nele."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        for closed, args in (("<&-", ()), ("2>&-", ("--ping", "1"))):
            result = self.client(server, *args, prefix=("sh", "-c", f'exec "$@" {closed}', "sh"), status=0)
            self.assertEqual("1 respondidos" in result.text, bool(args), result)

    def test_terminal_before_the_server(self):
        host, port = self.nobody()
        child = self.spawn("cliente_udp.py", host, port, tty=True, ready="> ")
        child.type("oi\r")
        child.expect("(?s)ninguém escuta.*> ")
        self.spawn("servidor_udp.py", host, port)
        child.type("agora\r")
        child.expect("(?s)agora\r\n.*agora\r\n.*> ")  # um Ctrl+D digitado entre duas linhas, o terminal o come
        child.type("\x04")
        self.assertEqual(child.wait(), 0)

    def test_nick_before_the_server(self):
        """Sem terminal, o que não veio da rede não se mistura ao que veio: stderr, e estado 1."""
        host, port = self.nobody()
        result = self.run_script("cliente_udp.py", host, port, "--apelido", "ana", status=1)
        self.assertEqual(result.text, "")
        self.assert_one_line_error(result, "ninguém escuta", f"./servidor_udp.py {host} {port} --modo chat")

    def test_interrupt(self):
        """Ctrl+C e SIGTERM: estado 130, e o terminal como estava; o --ping mostra as contas até ali."""
        mute = self.peer()
        port = mute.getsockname()[1]
        child = self.spawn("cliente_udp.py", "127.0.0.1", port, "--ping", "1000", ready=None, status=130)
        mute.recv(99)
        child.kill(signal.SIGINT)
        child.expect(r"1000 enviados|[1-9]\d* enviados: 0 respondidos")
        self.assertEqual(child.wait(), 130)
        import termios
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        before = termios.tcgetattr(slave)
        seen = Output(os.dup(master))
        for number in (signal.SIGINT, signal.SIGTERM):
            child = self.spawn("cliente_udp.py", "127.0.0.1", port, ready=None, status=130, stdin=slave, stdout=slave)
            seen.expect("> ")
            child.kill(number)
            self.assertEqual(child.wait(), 130)
            self.assertEqual(termios.tcgetattr(slave), before)

    def test_the_port_changed_on_the_way(self):
        """S6: a sala não nos conhece mais (o roteador mudou a porta): o código da entrada devolve o apelido."""
        module, sent = load("cliente_udp.py"), []
        wire = argparse.Namespace(send=sent.append, limit=65507, trouble="")
        args = module.build_parser().parse_args(["--apelido", "ana"])
        talk = module.Conversation(wire, argparse.Namespace(screen=None), args)
        talk.say(module.ENTER)
        talk.hear(module.INVITE.format("AAAAAAA").encode())
        talk.obey(b"oi")
        talk.hear(module.HINTS[0])
        talk.hear(module.INVITE.format("BBBBBBB").encode())
        self.assertEqual(sent[1:], [b"AAAAAAA /nick ana", b"oi", b"/entrar".ljust(64),
                                    b"BBBBBBB /nick ana AAAAAAA", b"oi"])


class TestClienteUdpGuards(unittest.TestCase):
    """As guardas do cliente, sem rede, sem terminal e sem relógio."""

    def setUp(self):
        self.module, self.sent, self.screen, self.errors = load("cliente_udp.py"), [], Paper(), io.StringIO()
        self.wire = argparse.Namespace(send=self.sent.append, limit=65507, trouble="")
        for redirect in (contextlib.redirect_stdout(self.screen), contextlib.redirect_stderr(self.errors)):
            redirect.__enter__()
            self.addCleanup(redirect.__exit__, None, None, None)

    def parse(self, *args):
        return self.module.build_parser().parse_args(args)

    def talk(self, *args):
        return self.module.Conversation(self.wire, argparse.Namespace(screen=None), self.parse(*args))

    def test_a_crooked_server_does_not_make_us_spin(self):
        """A cada pergunta respondem-se só MAX_PROOFS pedidos de código, na conversa e no modo pergunta."""
        invite, most = self.module.INVITE.format("ABCDEFG").encode(), self.module.MAX_PROOFS
        talk = self.talk()
        talk.obey(b"oi")
        for _ in range(50):
            talk.hear(invite)
        self.assertEqual(self.sent, [b"oi"] + [b"ABCDEFG oi"] * most)
        del self.sent[:]
        news = iter([invite] * 50)
        self.wire.receive, self.wire.args = lambda _: next(news), self.parse()
        self.assertEqual(self.module.exchange(self.wire, b"oi", hurry=False), invite)
        self.assertEqual(self.sent, [b"oi"] + [b"ABCDEFG oi"] * most + [b"/sair"])

    def test_only_an_invite_is_an_invite(self):
        for code, answer in (("ABCDEFG", b"ABCDEFG oi"), ("ABCDEFGH", None), ("ABCDEF", None), ("", None)):
            self.assertEqual(self.module.proof(self.module.INVITE.format(code).encode(), b"oi"), answer)

    def test_the_room_forgot_us(self):
        """A sala caiu e voltou: entra-se outra vez, com o apelido, e a linha digitada não se perde."""
        talk = self.talk("--apelido", "ana")
        talk.obey(b"oi")
        talk.hear(self.module.HINTS[0])
        talk.hear(self.module.INVITE.format("ABCDEFG").encode())
        self.assertEqual(self.sent, [b"oi", b"/entrar".ljust(64), b"ABCDEFG /nick ana", b"oi"])

    def test_late_and_equal(self):
        """Duas perguntas iguais, a primeira atrasada: a resposta pode ser de qualquer uma, e vale pelas duas."""
        talk = self.talk()
        talk.obey(b"oi")
        talk.waiting[0].late = True
        talk.obey(b"oi")
        talk.hear(b"oi")
        self.assertEqual(len(talk.waiting), 0)
        self.assertRegex(self.screen.getvalue(), r"^oi  \(esta, ou a atrasada de [\d.]+ s: são iguais\)\n$")

    def test_echo_after_an_error(self):
        """Um erro da rede esvazia a espera: o eco de um "?" que ainda chega continua a ser um eco."""
        talk = self.talk()
        talk.obey(b"?")
        talk.waiting.clear()
        talk.hear(b"?")
        self.assertEqual((self.sent, self.screen.getvalue()), ([b"?"], "?\n"))

    def test_what_waits_is_bounded(self):
        talk, keyboard = self.talk(), self.module.Keyboard(None)
        for n in range(100):
            talk.obey(b"%d" % n)
        self.assertEqual(len(talk.waiting), self.module.REMEMBERED)
        talk.obey(bytes(65508))
        self.assertEqual((len(self.sent), talk.status), (100, 1))
        self.assertIn("65508 bytes não cabem num datagrama", self.errors.getvalue())
        self.assertEqual(keyboard.lines.maxsize, self.module.QUEUE_LINES)
        keyboard.close()
        self.module.piped_lines = lambda: [b"a linha que chega quando o programa acaba"]
        keyboard.read()  # o par já fechou, e ela não é um erro

    def test_endless_line(self):
        """Um cano que não tem fim de linha vem aos pedaços, e não cresce na memória."""
        size = self.module.ANSWER_SIZE
        chunks = iter([bytes(size - 1)] * 9 + [b""])
        self.module.os = argparse.Namespace(read=lambda *_: next(chunks))
        lines = list(self.module.piped_lines())
        self.assertEqual(sum(map(len, lines)), 9 * (size - 1))
        self.assertLess(max(map(len, lines)), 2 * size)

    def test_old_trouble_does_not_hush_a_new_try(self):
        self.wire.trouble, self.wire.args, self.wire.receive = "sem rota", self.parse(), lambda _: b"oi"
        self.assertEqual(self.module.exchange(self.wire, b"oi", hurry=True), b"oi")

    def ping(self, receive, *args):
        """Roda run_ping num relógio de mentira: receive(espera) devolve (datagrama, segundos que passaram)."""
        clock, sent_at = [0.0], []

        def listen(wait_s):
            data, spent = receive(max(0, wait_s))
            clock[0] += spent
            return data

        def send(data):
            self.sent.append(data)
            sent_at.append(clock[0])
        self.module.time = argparse.Namespace(monotonic=lambda: clock[0], perf_counter=lambda: clock[0])
        wire, args = argparse.Namespace(send=send, receive=listen, trouble="sem rota"), self.parse(*args)
        tally = self.module.Tally(args.espera)
        self.module.run_ping(wire, args, tally)
        return tally, sent_at, wire

    def test_ping_after_the_laptop_slept(self):
        """Uma hora de tampa fechada não vira uma rajada: recupera-se um segundo de envios, e não a hora."""
        naps = itertools.chain([3600], itertools.repeat(0.1))
        _, sent_at, _ = self.ping(lambda wait: (None, max(wait, next(naps)) if wait else 0), "--ping", "500")
        burst = collections.Counter(int(when) for when in sent_at).most_common(1)[0][1]
        self.assertLessEqual(burst, 22)

    def test_ping_waits_for_copies(self):
        """Voltou tudo: ainda se escuta um instante, que uma cópia pode vir atrás; e não a espera inteira."""
        news = itertools.chain([(0, 0.01), (0, 0.01)], itertools.repeat(None))

        def receive(wait):
            item = next(news)
            return (self.sent[item[0]], item[1]) if item else (None, wait)
        tally, _, wire = self.ping(receive, "--ping", "1", "--espera", "3600")
        self.assertEqual((tally.duplicates, wire.trouble), (1, ""))
        self.assertLess(self.module.time.monotonic(), 1)


# ---------------------------------------------------------------------------------------------
# raw_server.py (e o laboratório dos dois scripts crus)

RAW_LAB = r'''
import array, socket, subprocess, sys
control = socket.socket(fileno=int(sys.argv[1]))
for words in ("link set lo up", "link add a0 type veth peer name a1", "link add b0 type veth peer name b1",
              "link set a0 up", "link set a1 up", "link set b0 up", "link set b1 up"):
    subprocess.run(["ip", *words.split()], check=words == "link set lo up", stderr=subprocess.DEVNULL)
fds = []
for name in ("lo", "a1", "b1"):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.bind((name, 0x88B5))
        fds.append(sock.detach())
    except OSError:  # sem o módulo veth só há lo
        break
control.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
control.recv(1)
'''


class RawLab:
    """Uma rede só nossa, num `unshare -rn`: lo e dois pares veth, a0-a1 e b0-b1. Some com o processo que a segura.

    Os sockets crus são abertos lá dentro e nos chegam por SCM_RIGHTS: o teste fala naquela rede sem entrar nela.
    """

    def __init__(self):
        ours, theirs = socket.socketpair()
        with theirs:
            self.holder = subprocess.Popen(["unshare", "-rn", *PYTHON, "-c", RAW_LAB, str(theirs.fileno())],
                                           pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.control = ours
        ours.settimeout(WATCHDOG_S)
        _, found, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(12))
        fds = [fd for _, _, data in found for fd in struct.unpack(f"{len(data) // 4}i", data)]
        self.sockets = dict(zip(("lo", "a1", "b1"), (socket.socket(fileno=fd) for fd in fds)))
        self.prefix = ("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(self.holder.pid))

    def ip(self, *words):
        # O caminho inteiro: o nsenter do busybox, ao ouvir só "ip", usa o dele, que sabe menos.
        subprocess.run([*self.prefix, shutil.which("ip"), *words], check=True)

    def close(self):
        for sock in (*self.sockets.values(), self.control):
            sock.close()
        self.holder.wait(WATCHDOG_S)


class RawRelay(threading.Thread):
    """O fio ruim entre a1 e b1: perde, repete, troca a ordem e vira bits, sempre igual para a mesma semente."""

    def __init__(self, lab, seed, lose=0.0, double=0.0, swap=0.0, flip=0.0):
        super().__init__(daemon=True)
        self.random, self.rates, self.counts = random.Random(seed), (lose, double, swap, flip), collections.Counter()
        self.ends = lab.sockets["a1"], lab.sockets["b1"]
        self.stopped, self.held, self.cut = False, {}, False
        self.start()

    def run(self):
        while not self.stopped:
            for sock in select.select(self.ends, [], [], 0.02)[0]:
                frame = sock.recv(2048)
                self.pass_on(self.ends[1] if sock is self.ends[0] else self.ends[0], frame.ljust(60, b"\xa5"))
            for sock in list(self.held):  # nada veio atrás do que foi segurado: vai agora
                self.send(sock, self.held.pop(sock))

    def pass_on(self, out, frame):
        lose, double, swap, flip = (self.random.random() < rate for rate in self.rates)
        self.counts.update(lost=lose, doubled=double, swapped=swap, flipped=flip, seen=1)
        if lose or self.cut:
            return
        if flip:
            at = self.random.randrange(14, len(frame))
            frame = frame[:at] + bytes([frame[at] ^ 1 << self.random.randrange(8)]) + frame[at + 1:]
        if swap and out not in self.held:
            self.held[out] = frame
            return
        for _ in range(1 + double):
            self.send(out, frame)
        if out in self.held:
            self.send(out, self.held.pop(out))

    def send(self, sock, frame):
        with contextlib.suppress(OSError):  # fila cheia ou interface desligada: mais um quadro perdido
            sock.send(frame)

    def close(self):
        self.stopped = True
        self.join(WATCHDOG_S)


@unittest.skipUnless(sys.platform == "linux", "AF_PACKET só existe no Linux")
class RawTestCase(ScriptTestCase):
    """O que os testes de raw_* têm em comum: o laboratório, a pasta servida e um cliente feito à mão."""

    @classmethod
    def setUpClass(cls):
        if not shutil.which("nsenter") or not can("unshare", "-rn", "ip", "link", "set", "lo", "up"):
            raise unittest.SkipTest("`unshare -rn`, `nsenter` ou `ip` não funciona aqui: não há quadros crus")
        cls.server_module, cls.client_module = load("raw_server.py"), load("raw_client.py")
        cls.lab = RawLab()
        cls.addClassCleanup(cls.lab.close)

    def setUp(self):
        self.home = self.folder()
        self.videos = self.home / "videos"
        self.videos.mkdir()
        self.links = [sock.dup() for sock in self.lab.sockets.values()]
        for sock in self.links:
            self.addCleanup(sock.close)
            sock.setblocking(False)
            left = True
            while left:  # o que sobrou do teste anterior, até o aviso de que a interface caiu
                try:
                    sock.recv(1)
                except OSError as error:
                    left = error.errno != errno.EAGAIN
            sock.settimeout(WATCHDOG_S)

    def film(self, name="filme.bin", size=300_000, seed=SEED):
        data = random.Random(seed).getrandbits(8 * size).to_bytes(size, "little") if size else b""
        (self.videos / name).write_bytes(data)
        return data

    def serve(self, *args, interface="lo", **options):
        return self.spawn("raw_server.py", interface, "--pasta", self.videos, *args, prefix=self.lab.prefix, **options)

    def client(self, *args, status=0, **options):
        return self.run_script("raw_client.py", *args, prefix=self.lab.prefix, cwd=self.home, status=status, **options)

    def spawn_client(self, *args, **options):
        options.setdefault("status", None)
        return self.spawn("raw_client.py", *args, prefix=self.lab.prefix, cwd=self.home, ready=None, **options)

    def relay(self, **damage):
        if "b1" not in self.lab.sockets:
            self.skipTest("sem pares veth aqui")
        relay = RawRelay(self.lab, SEED, **damage)
        self.addCleanup(relay.close)
        return relay

    def make_bridge(self):
        """Uma ponte br7 e um par veth, x0 e x1, todos ligados e ainda soltos; somem no fim do teste."""
        try:
            self.lab.ip("link", "add", "br7", "type", "bridge")
            self.addCleanup(self.lab.ip, "link", "del", "br7")
            self.lab.ip("link", "add", "x0", "type", "veth", "peer", "name", "x1")
            self.addCleanup(self.lab.ip, "link", "del", "x0")
        except subprocess.CalledProcessError:
            self.skipTest("sem pontes, ou sem pares veth, neste kernel")
        for name in "br7", "x0", "x1":
            self.lab.ip("link", "set", name, "up")

    def hand_client(self, key=b"", open_name=None, **fields):
        return RawHand(self, key, open_name, **fields)


class RawHand:
    """Um cliente feito à mão em lo, que diz o que quiser: OLÁ já foi, a sessão está aberta."""

    def __init__(self, case, key=b"", open_name=None, **fields):
        self.m, self.case, self.key, self.session, self.clock = case.client_module, case, key, 0, 1
        self.sock = case.links[0].dup()
        case.addCleanup(self.sock.close)
        self.m.attach_filter(self.sock, self.m.FROM_SERVER)
        self.sock.settimeout(WATCHDOG_S)
        _, self.seal = self.m.make_seal(key)
        self.sent = []
        self.hello()
        if open_name is not None:
            self.open(open_name, **fields)

    def hello(self):
        self.nonce = os.urandom(16)
        self.send(self.m.HELLO, 0, self.m.LAYOUT[self.m.HELLO].pack(self.nonce, 65536), target=self.m.BROADCAST)
        mine = None
        while mine != self.nonce:
            frame = self.expect(self.m.WELCOME)
            mine, theirs, _ = self.m.unpack_body(self.m.WELCOME, frame.payload)
        self.session, key = self.m.session_of(self.key, mine, theirs)
        self.case.assertEqual(frame.session, self.session)
        _, self.seal = self.m.make_seal(key)

    def open(self, name, offset=0, size=0, date=0, free=2**64 - 1, queue=8, window=8):
        body = self.m.LAYOUT[self.m.OPEN].pack(offset, size, date, free, queue, window, 0, 0)
        self.send(self.m.OPEN, 0, body + name)

    def send(self, kind, block=0, payload=b"", target=bytes(6)):
        self.clock += 1
        frame = self.m.pack_frame(self.seal, target, bytes(6), kind, self.session, block, self.clock, payload)
        self.sent.append(frame)
        self.sock.send(frame)

    def expect(self, kind):
        """O próximo quadro deste tipo que seja da nossa sessão (ou de nenhuma, enquanto não há)."""
        while True:
            data = self.sock.recv(70_000)
            try:
                frame = self.m.unpack_frame(self.seal, data)
            except self.m.ProtocolError:  # resto de um teste anterior
                continue
            if frame.kind == kind and frame.session in (self.session, frame.session if not self.session else 0):
                return frame

    def error(self):
        return self.m.unpack_body(self.m.ERROR, self.expect(self.m.ERROR).payload)[0]


def raw_vectors():
    """Os vetores do README: (tipo, chave, sessão, bloco, relógio, dados, quadro)."""
    text = README.read_text(encoding="utf-8")
    table = re.search(r"```vetores-raw\n(.*?)```", text, re.DOTALL).group(1)
    for chunk in table.strip().split("\n\n"):
        fields = dict(line.split(None, 1) for line in chunk.replace("\n       ", "").splitlines())
        yield (fields["tipo"], fields["chave"].encode() if fields["chave"] != "-" else b"", int(fields["sessão"], 16),
               int(fields["bloco"], 16), int(fields["relógio"]),
               bytes.fromhex(fields.get("dados", "-").replace("-", "")),
               bytes.fromhex(fields["quadro"]))


class TestRawClientProtocolError(unittest.TestCase):
    """O codec, igual nos dois scripts: bytes entram, bytes saem."""

    @classmethod
    def setUpClass(cls):
        cls.modules = [load("raw_server.py"), load("raw_client.py")]
        cls.m = cls.modules[1]

    def test_readme_vectors(self):
        vectors = list(raw_vectors())
        self.assertGreaterEqual(len(vectors), 5)
        for name, key, session, block, clock, payload, frame in vectors:
            for m in self.modules:
                with self.subTest(name=name, script=m.__name__):
                    _, seal = m.make_seal(key)
                    kind = next(kind for kind, known in m.KINDS.items() if known == name)
                    packed = m.pack_frame(seal, frame[:6], frame[6:12], kind, session, block, clock, payload)
                    self.assertEqual(packed.hex(), frame.hex())
                    self.assertEqual(m.unpack_frame(seal, frame),
                                     m.Frame(frame[:6], frame[6:12], kind, session, block, clock, payload))

    def test_padding_truncation_and_every_flipped_bit(self):
        m = self.m
        for key in (b"", b"k" * 32):
            _, seal = m.make_seal(key)
            frame = m.pack_frame(seal, b"t" * 6, b"s" * 6, m.TEXT, 7, 9, 11, b"\2oi")
            whole = m.unpack_frame(seal, frame)
            self.assertEqual(m.unpack_frame(seal, frame.ljust(60, b"\x81")), whole)
            self.assertEqual(m.unpack_frame(seal, memoryview(frame + b"x" * 99)), whole)
            for cut in range(len(frame)):
                self.assertRaises(m.ProtocolError, m.unpack_frame, seal, frame[:cut])
            for bit in range(12 * 8, len(frame) * 8):
                bad = bytearray(frame)
                bad[bit // 8] ^= 1 << bit % 8
                self.assertRaises(m.ProtocolError, m.unpack_frame, seal, bad)

    def test_seals_do_not_mix(self):
        m = self.m
        seals = [m.make_seal(key)[1] for key in (b"", b"a" * 32, b"b" * 32)]
        for mine in seals:
            frame = m.pack_frame(mine, b"t" * 6, b"s" * 6, m.BYE, 1, 2, 3)
            for other in seals:
                if other is mine:
                    m.unpack_frame(other, frame)
                else:
                    self.assertRaises(m.ProtocolError, m.unpack_frame, other, frame)

    def test_random_bytes_never_crash(self):
        rng, m = random.Random(SEED), self.m
        _, seal = m.make_seal()
        for turn in range(3000):
            data = bytearray(rng.getrandbits(8) for _ in range(rng.randrange(80)))
            with contextlib.suppress(m.ProtocolError):
                m.unpack_frame(seal, data)
            body = bytes(data[:40])
            frame = m.pack_frame(seal, bytes(6), bytes(6), rng.choice([*m.KINDS, 0, 99]), 1, 2, 3, body)
            with contextlib.suppress(m.ProtocolError):
                frame = m.unpack_frame(seal, frame)
                if frame.kind in m.LAYOUT:
                    m.unpack_body(frame.kind, frame.payload)

    def test_numbers_go_around(self):
        m = self.m
        self.assertLess(m.to_wire(300), m.to_wire(0))  # a volta acontece logo no começo de toda cópia
        for near in (0, 1, 255, 256, 257, 2**31, 2**32 - 256, 2**32, 2**40 + 5):
            for ahead in (-5, -1, 0, 1, 300, 11000, 2**31 - 1):
                self.assertEqual(m.from_wire(m.to_wire(near + ahead), near), near + ahead)

    def test_session_depends_on_both_nonces_and_key(self):
        m, a, b = self.m, b"a" * 16, b"b" * 16
        known = {m.session_of(key, *nonces) for key in (b"k" * 32, b"j" * 32) for nonces in ((a, b), (b, a), (a, a))}
        self.assertEqual(len({key for _, key in known}), 6)
        self.assertEqual(m.session_of(b"", a, b), (m.session_of(b"k" * 32, a, b)[0], b""))

    def test_split_text(self):
        for size in (0, 1, 17, 18, 19, 5000):
            text = ("ç€" * size)[:size]
            parts = self.m.split_text(text, 16)
            self.assertTrue(all(len(part) <= 16 for part in parts))
            self.assertEqual(b"".join(part[1:] for part in parts).decode(), text)
            self.assertEqual([part[0] for part in parts], [self.m.MORE] * (len(parts) - 1) + [self.m.LAST])

    def test_escaped_trace(self):
        m = self.m
        frame = m.pack_frame(m.make_seal()[1], b"t" * 6, b"s" * 6, m.TEXT, 1, 2, 3, b"\1\x1b]0;x\x07")
        self.assertNotIn("\x1b", m.describe("->", frame))


class SimulatedPipe:
    """Um gargalo e a sua fila, que várias cópias dividem, num relógio que só anda quando nós queremos."""

    def __init__(self, mbit=100, delay=20_000, queue=256, lose=0.0, jitter=0, seed=SEED, swap=0.0):
        self.random, self.now, self.events, self.order = random.Random(seed), 0, [], 0
        self.wire, self.free, self.last = 1514 * 8 / mbit, 0.0, [0, 0]
        self.delay, self.queue, self.lose, self.jitter, self.swap = delay, queue, lose, jitter, swap
        # Entre estes dois instantes nada passa; quanto cada quadro esperou na fila, ao todo, e quantos entraram nela.
        self.blackout, self.waited, self.queued = (0, 0), 0.0, 0

    def later(self, when, action, *args):
        self.order += 1
        heapq.heappush(self.events, (when, self.order, action, args))

    def run(self, until, finished=lambda: False):
        """Roda até o instante `until` (µs), ou até `finished`."""
        while self.events and self.now < until and not finished():
            self.now, _, action, args = heapq.heappop(self.events)
            self.now = int(self.now)
            action(*args)

    def arrive(self, way, left):
        """A que horas chega o que acaba de sair às `left`."""
        when = left + self.delay + self.random.uniform(-self.jitter, self.jitter)
        if self.random.random() < self.swap:
            return when + 3000  # um atalho mais longo: os de trás passam na frente
        when = self.last[way] = max(when, self.last[way])
        return when

    def lost(self):
        return self.random.random() < self.lose or self.blackout[0] <= self.now < self.blackout[1]

    def carry(self, action, *args):
        """Um quadro pela fila e pelo gargalo; False se o fio o perde, ou se não cabe mais."""
        waiting = max(self.free - self.now, 0)
        if self.lost() or waiting / self.wire >= self.queue:
            return False
        self.waited += waiting
        self.queued += 1
        self.free = self.now + waiting + self.wire
        self.later(self.arrive(0, self.free), action, *args)
        return True


class SimulatedCopy:
    """Um Sender e um Receiver, ligados por um SimulatedPipe."""

    def __init__(self, pipe, server, client, total=10**9, window=11_000, turn=0, start=0):
        self.pipe, self.received = pipe, 0
        self.sender = server.Sender(total, window, window, start, 2 * pipe.delay, 0)
        self.receiver, self.ready, self.newest, self.newest_at, self.acked = client.Receiver(total, window), [], 0, 0, 0
        self.acking, self.alarm = False, 0
        # Quanto dura uma volta do laço do servidor, que até o fim dela não olha para nada.
        self.turn, self.looked = turn, -turn
        # Bloco -> quantas vezes ainda o perdemos; e quando partiu, a cada vez.
        self.victims, self.departures = {}, collections.defaultdict(list)
        pipe.later(start, self.pump)

    def delivered(self):
        return len(self.ready)

    def pump(self):
        now = self.looked = self.pipe.now
        while True:
            first, count = self.sender.take(now, 64) or (0, 0)
            if not count:
                break
            for block in range(first, first + count):
                self.departures[block].append(now)
                if self.victims.get(block, 0) < len(self.departures[block]):
                    self.pipe.carry(self.deliver, block, now)
        self.sleep(max(self.sender.next_time(now), now + 1))

    def sleep(self, until):
        self.alarm = until
        self.pipe.later(until, self.wake, until)

    def wake(self, alarm):
        if alarm != self.alarm:  # basta o último despertar
            return
        if self.pipe.now < self.looked + self.turn:
            self.sleep(self.looked + self.turn)
        else:
            self.pump()

    def deliver(self, block, sent):
        self.receiver.accept(block, b"", self.ready)
        if sent > self.newest:
            self.newest, self.newest_at = sent, self.pipe.now
        if not self.acking:
            self.acking = True
            self.pipe.later(max(self.pipe.now, self.acked + 1000), self.ack)

    def ack(self):
        now = self.acked = self.pipe.now
        self.acking = False
        following, window, bits = self.receiver.acknowledge(0)
        if not self.pipe.lost():
            hold = now - self.newest_at
            self.pipe.later(self.pipe.arrive(1, now), self.confirm, now, following, self.newest, hold, window, bits)

    def confirm(self, *ack):
        self.sender.on_ack(self.pipe.now, *ack)
        self.sleep(self.pipe.now)


class SimulatedCubic:
    """Quem divide o gargalo como o TCP: a partida do HyStart e a lei do CUBIC (RFC 9438), em poucas linhas."""

    def __init__(self, pipe, start=0):
        self.pipe, self.window, self.flying, self.ready = pipe, 10.0, 0, 0
        self.threshold, self.peak, self.friendly, self.since, self.cut = 10**9, 0.0, 0.0, 0, -1
        self.least, self.mark, self.trip = 10**9, 0, 2 * pipe.delay
        pipe.later(start, self.pump)

    def delivered(self):
        return self.ready

    def pump(self):
        while self.flying < int(self.window):
            self.flying += 1
            if not self.pipe.carry(self.deliver, self.pipe.now):
                self.pipe.later(self.pipe.now + self.trip, self.miss, self.pipe.now)

    def deliver(self, sent):
        self.pipe.later(self.pipe.arrive(1, self.pipe.now), self.confirm, sent)

    def confirm(self, sent):
        self.flying -= 1
        self.ready += 1
        self.trip = self.pipe.now - sent
        self.least = min(self.least, self.trip)
        if self.window < self.threshold:
            self.window += 1
            if sent >= self.mark:  # o primeiro de uma volta: o atraso já cresceu?
                self.mark = self.pipe.now
                if self.trip > self.least + min(max(self.least / 8, 4000), 16_000):
                    self.peak = self.threshold = self.window
                    self.since, self.friendly = self.pipe.now, self.window
        else:
            plateau = ((self.peak - self.threshold) / 0.4) ** (1 / 3)
            target = 0.4 * ((self.pipe.now - self.since) / 1e6 - plateau) ** 3 + self.peak
            self.friendly += 0.53 / self.window
            self.window += max((min(target, 1.5 * self.window) - self.window) / self.window, 0)
            self.window = max(self.window, self.friendly)
        self.pump()

    def miss(self, sent):
        self.flying -= 1
        if sent > self.cut:  # um corte por volta
            self.peak = self.window * (0.85 if self.window < self.peak else 1)
            self.window = self.threshold = self.friendly = max(0.7 * self.window, 2)
            self.peak = max(self.peak, self.window)
            self.since = self.cut = self.pipe.now
        self.pump()


class SimulatedLink(SimulatedPipe):
    """Uma cópia sozinha num gargalo."""

    def __init__(self, server, client, total=10**9, window=11_000, turn=0, **pipe):
        super().__init__(**pipe)
        self.copy = SimulatedCopy(self, server, client, total, window, turn)
        self.sender, self.ready, self.departures = self.copy.sender, self.copy.ready, self.copy.departures

    def run(self, until):
        """Roda até o instante `until` (µs) ou até o fim do arquivo; devolve a fração do gargalo bem usada."""
        super().run(until, self.finished)
        return len(self.ready) * self.wire / max(self.now, 1)

    def finished(self):
        return self.sender.finished()


class SimulatedSocket:
    """O socket do servidor ingênuo: do outro lado do fio, um cliente que confirma. recv() faz o relógio andar."""

    def __init__(self, server, delay=20_000, lose=(), flip=(), timeout=0.1):
        self.m, self.delay, self.lose, self.flip, self.patience = server, delay, lose, flip, int(timeout * 1e6)
        self.now, self.sent, self.answers, self.received = 0, [], [], []
        _, self.seal = server.make_seal()

    def send(self, frame):
        self.sent.append((self.now, len(self.received)))
        if len(self.sent) in self.lose:
            return
        frame = self.m.unpack_frame(self.seal, frame)
        if frame.block == len(self.received):
            self.received.append(frame.payload)
        body = bytes(self.m.LAYOUT[self.m.ACK].size)
        answer = self.m.pack_frame(self.seal, bytes(6), bytes(6), self.m.ACK, 7, len(self.received), 0, body)
        if len(self.sent) in self.flip:
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        self.answers.append((self.now + 2 * self.delay, answer))

    def recv(self, size):
        deadline = self.now + self.patience
        if not self.answers or self.answers[0][0] > deadline:
            self.now = deadline
            raise socket.timeout
        when, answer = self.answers.pop(0)
        self.now = max(self.now, when)
        return answer

    def run(self, pieces):
        """Roda o programa ingênuo da docstring; devolve quanto tempo (µs) ele levou."""
        words = self.m.__doc__.split("O servidor ingênuo")[1].split("\n\n")[1]
        names = dict(vars(self.m), sock=self, seal=self.seal, client=bytes(6), mine=bytes(6), session=7,
                     pieces=pieces, clock=lambda: self.now)
        exec(textwrap.dedent(words), names)
        return self.now


class RawLinkTestCase(unittest.TestCase):
    """Um gargalo simulado: o relógio é nosso, e a mesma semente dá sempre o mesmo número."""

    @classmethod
    def setUpClass(cls):
        cls.server, cls.client = load("raw_server.py"), load("raw_client.py")

    def use(self, seconds=1.5, **link):
        simulated = SimulatedLink(self.server, self.client, **link)
        return simulated.run(int(seconds * 1e6)), simulated


class TestRawServerNaive(RawLinkTestCase):
    """O programa da docstring, que roda; e as faltas dele, uma por uma, ao lado do nosso."""

    pieces = [bytes([at]) * 1476 for at in range(50)]

    def test_it_runs(self):
        sock = SimulatedSocket(self.server)
        sock.run(self.pieces)
        self.assertEqual((sock.received, len(sock.sent)), (self.pieces, 50))

    def test_bent_frame_is_the_end_of_it(self):
        self.assertRaises(self.server.ProtocolError, SimulatedSocket(self.server, flip=[3]).run, self.pieces)

    def test_a_lost_block_waits_for_the_deadline(self):
        """Perdido o bloco 20, o ingênuo espera o prazo inteiro; nós, uma volta e pouco."""
        sock = SimulatedSocket(self.server, lose=[21])
        sock.run(self.pieces)
        first, again = [when for when, block in sock.sent if block == 20]
        self.assertEqual(again - first, 100_000)
        link = SimulatedLink(self.server, self.client, total=2000)
        link.copy.victims = {20: 1}
        link.run(10_000_000)
        first, again = link.departures[20]
        self.assertLess(again - first, 50_000)

    def test_one_block_a_trip(self):
        """Numa volta de 40 ms, 50 blocos levam 2 s; nós enviamos 3000 nesse tempo."""
        self.assertEqual(SimulatedSocket(self.server).run(self.pieces), 50 * 40_000)
        _, link = self.use(seconds=2)
        self.assertGreater(len(link.ready), 3000)

    def test_longer_than_its_deadline(self):
        """Uma volta de 120 ms, com prazo de 100: cada bloco vai duas vezes; os nossos, uma."""
        sock = SimulatedSocket(self.server, delay=60_000)
        sock.run(self.pieces)
        self.assertGreaterEqual(len(sock.sent), 2 * len(self.pieces) - 1)
        link = SimulatedLink(self.server, self.client, delay=60_000, total=2000, queue=10**6)
        link.run(60_000_000)
        self.assertTrue(link.finished())
        self.assertEqual(link.sender.again, 0)


class TestRawServerFlights(RawLinkTestCase):
    """O que se perdeu, no gargalo simulado."""

    def test_reordering_costs_nothing(self):
        used, link = self.use(swap=0.02, queue=10**6)
        self.assertGreater(used, 0.78, SEED)
        self.assertLess(link.sender.again, 0.005 * link.sender.sent, SEED)

    def test_whole_file_and_its_last_blocks(self):
        for seed in range(SEED, SEED + 20):
            _, link = self.use(seconds=60, lose=0.3, total=300, delay=1000, seed=seed)
            self.assertTrue(link.finished(), seed)
            self.assertEqual(len(link.ready), 300, seed)


class TestRawServerSender(RawLinkTestCase):
    """Quando enviar, e o quê: um plano só."""

    def test_outage_sends_only_probes(self):
        simulated = SimulatedLink(self.server, self.client, total=4000)
        simulated.blackout = 300_000, 2_300_000
        simulated.run(500_000)
        before = simulated.sender.sent
        simulated.run(2_300_000)
        self.assertLess(simulated.sender.sent - before, 20)  # dobra a espera a cada sonda
        simulated.run(60_000_000)
        self.assertTrue(simulated.finished())
        sender = self.server.Sender(1000, 64, 64, 0, 100, 0)
        self.assertEqual([sender.take(now, 1) for now in (1000, 20_000, 25_000)], [(0, 1), (0, 1), None])

    def test_closed_window_and_queue_are_respected(self):
        sender = self.server.Sender(1000, 5, 8, 0, 100, 0)
        sent = [sender.take(now, 64) for now in range(0, 200_000, 1000)]
        self.assertEqual(sum(count for _, count in filter(None, sent[:5])), 5)  # a fila de chegada do cliente
        self.assertTrue(sender.on_ack(200_000, 1, 5, 0, 0, 0, 0))
        self.assertIsNone(sender.take(203_000, 64))                             # janela zero: nem um bloco novo
        self.assertTrue(sender.on_ack(204_000, 2, 5, 0, 0, 3, 0))
        self.assertEqual(sender.take(206_000, 64), (5, 3))

    def test_a_slow_loop_does_not_slow_the_rate(self):
        """Uma CPU que só olha de 5 em 5 ms não perde crédito; o soluço de uma vez não vira rajada."""
        used, _ = self.use(seconds=3, turn=5000, delay=1000)
        self.assertGreater(used, 0.7)
        sender = self.server.Sender(1000, 500, 500, 0, 10_000, 0)
        sender.take(0, 64)
        burst = sender.path.rate * self.server.BURST_US
        self.assertLessEqual(sender.take(19_000, 500)[1], burst)

    def test_impossible_acks_are_refused(self):
        sender = self.server.Sender(1000, 64, 64, 0, 100, 0)
        sender.take(0, 1)
        for ack in ((10, 1, 2, 0, 0, 9, 0), (10, 1, -1, 0, 0, 9, 0), (10, 0, 1, 0, 0, 9, 0), (10, 1, 1, 99, 0, 9, 0)):
            self.assertFalse(sender.on_ack(*ack))
        self.assertTrue(sender.on_ack(10, 1, 1, 5, 0, 2**32 - 1, 2**9000 - 1))  # bitmap do que nunca foi enviado
        self.assertFalse(sender.on_ack(11, 1, 1, 5, 0, 9, 0))                   # repetida
        self.assertLessEqual(sender.window, self.server.FLYING_MAX)
        self.assertEqual((sender.flights.base, sender.flights.delivered), (1, 1))
        for echo, hold in ((0, 0), (2**64 - 1, 0), (0, 2**32 - 1), (1, 2**32 - 1)):  # relógios de mentira
            self.assertTrue(1 <= self.server.trip_of(2**50, echo, hold) <= self.server.TRIP_MAX_US)

    def test_acks_without_news_do_not_postpone_the_probe(self):
        sender = self.server.Sender(1000, 4, 4, 0, 100, 0)
        self.assertEqual(sender.take(1000, 64)[0], 0)
        sender.take(3000, 64)
        sender.on_ack(4000, 1, 4, 3000, 0, 4, 0)
        last = sender.take(5000, 64)
        for now in range(6000, 60_000, 1000):  # o último lote se perdeu, e o cliente repete o que já disse
            sender.on_ack(now, now, 4, 3000, now - 4000, 4, 0)
            probe = sender.take(now, 64)
            if probe:
                break
        self.assertEqual((last[0], probe), (4, (4, 1)))
        sender = self.server.Sender(1000, 4, 4, 0, 100, 0)
        sender.take(1000, 1)
        for now in range(3000, 100_000, 5000):  # com novidades e sempre algo no ar, nenhuma sonda
            self.assertEqual((sender.take(now, 1), sender.again), ((sender.flights.base + 1, 1), 0))
            sender.on_ack(now + 100, now, sender.flights.base + 1, now - 5000, 4900, 4, 0)


class TestRawServerPath(RawLinkTestCase):
    """O ritmo, no gargalo simulado."""

    def test_clean_and_random_loss(self):
        for lose, least in ((0, 0.80), (0.01, 0.78), (0.05, 0.75), (0.2, 0.65)):
            used, link = self.use(lose=lose)
            self.assertGreater(used, least, (SEED, lose))

    def test_noise_is_compensated(self):
        """Passada a partida, 20 % de ruído custa envios, e não taxa: chegam blocos à taxa do gargalo."""
        _, link = self.use(seconds=1, lose=0.2)
        before = link.sender.flights.delivered
        link.run(2_000_000)
        self.assertGreater((link.sender.flights.delivered - before) * link.wire, 0.9e6, SEED)

    def test_jitter_is_not_a_queue(self):
        used, link = self.use(lose=0.01, jitter=5000)
        self.assertGreater(used, 0.75, SEED)
        before = len(link.ready)
        link.run(4_500_000)
        self.assertGreater((len(link.ready) - before) * link.wire, 0.94 * 3e6, SEED)

    def test_a_run_of_lost_acks_does_not_stop_the_copy(self):
        """De cada cem confirmações perdem-se vinte em seguida: o que cabe no ar segue, e a seguinte diz tudo."""
        link, acks = SimulatedLink(self.server, self.client), itertools.count()
        whole = link.copy.ack

        def ack():
            link.lose = next(acks) % 100 < 20
            whole()
            link.lose = 0
        link.copy.ack = ack
        link.run(1_000_000)
        before = len(link.ready)
        link.run(4_000_000)
        self.assertGreater((len(link.ready) - before) * link.wire, 0.9 * 3e6)

    def test_short_queue(self):
        self.assertGreater(self.use(queue=20)[0], 0.75, SEED)

    def divide(self, *others, seconds=8, since=1, **pipe):
        """Uma cópia, e a cada segundo mais um de `others`, no mesmo gargalo: o que cada um passou a entregar por ele
        desde o segundo `since`, como fração do que entregaram todos."""
        pipe = SimulatedPipe(**pipe)
        flows = [SimulatedCopy(pipe, self.server, self.client)]
        for at, kind in enumerate(others, 1):
            start = at * 1_000_000
            flows.append(SimulatedCubic(pipe, start) if kind == "cubic"
                         else SimulatedCopy(pipe, self.server, self.client, start=start))
        pipe.run(since * 1e6)
        before = [flow.delivered() for flow in flows]
        pipe.run(seconds * 1e6)
        carried = [flow.delivered() - count for flow, count in zip(flows, before)]
        self.assertGreater(sum(carried) * pipe.wire, 0.85e6 * (seconds - since))  # ceder não é largar o fio
        return [count / sum(carried) for count in carried]

    def test_shares_with_cubic(self):
        """Quem chega depois, e segue a lei do TCP, ganha logo uma parte: sem a lei, na fila curta, 7 %."""
        for queue in 100, 1000:
            _, cubic = self.divide("cubic", seconds=4, queue=queue)
            self.assertGreater(cubic, 0.13, (SEED, queue))

    def test_shares_with_another_copy(self):
        for queue in 100, 1000:
            _, second = self.divide("raw", seconds=4, since=2, queue=queue)
            self.assertTrue(0.2 < second < 0.8, (SEED, queue, second))

    def test_four_copies_share(self):
        """O índice de Jain (1: todas iguais; 1/4: uma leva tudo) das quatro, depois que a última chegou."""
        shares = self.divide("raw", "raw", "raw", seconds=6, since=5, mbit=40, queue=100)
        self.assertGreater(1 / (4 * sum(share * share for share in shares)), 0.8, (SEED, shares))

    def test_alone_it_keeps_a_short_queue(self):
        """Sozinha, a cópia enche o fio e não a fila: menos de 1 ms dela, em média, depois da partida."""
        for lose in 0, 0.05:
            pipe = SimulatedLink(self.server, self.client, queue=1000, lose=lose)
            pipe.run(1_000_000)
            before, waited, queued = len(pipe.ready), pipe.waited, pipe.queued
            pipe.run(3_000_000)
            self.assertGreater((len(pipe.ready) - before) * pipe.wire, 0.9 * 2e6, SEED)
            self.assertLess((pipe.waited - waited) / (pipe.queued - queued), 1000, (SEED, lose))

    def judged(self, path, *trips, blocks=150, lost=0):
        """Uma volta de `blocks` blocos, com estas idas e voltas; devolve a janela que fica."""
        for trip in trips:
            path.on_trip(trip)
        path.best, path.round.arrived, path.round.lost = 0.01, blocks - lost, lost
        path.end_round(False)
        path.plan()
        return path.window

    def cruising(self):
        """Um caminho de 10 ms já medido, que navega."""
        path = self.server.Path(10_000)
        for _ in range(12):
            self.judged(path, *[10_000] * 20)
        path.turn = 3
        return path

    def test_who_sees_the_queue_gives_way(self):
        """Uma volta em que nem a menor ida e volta foi a do caminho vazio custa um quarto; se é longa, mais."""
        before = self.cruising().window
        standing = self.judged(self.cruising(), *[13_000] * 20)
        long = self.judged(self.cruising(), *[16_000] * 20)
        self.assertLessEqual(standing, 0.76 * before)
        self.assertLess(long, standing)
        # Uma só que achou o caminho vazio, e não havia fila: era só atraso.
        self.assertGreater(self.judged(self.cruising(), 10_000, *[16_000] * 20), 0.9 * before)

    def test_loss_without_a_queue_cuts_nothing(self):
        """A mesma perda: com a fila vazia é do fio, e nada muda; com ela de pé é da fila, e cede-se outra vez."""
        path = self.cruising()
        before = path.window
        self.assertGreaterEqual(self.judged(path, *[10_000] * 20, lost=30), before)
        windows = []
        for lost in 0, 30:
            path = self.cruising()
            path.queue = self.server.STANDING
            windows.append(self.judged(path, *[13_000] * 20, lost=lost))
        self.assertLessEqual(windows[1], 0.95 * windows[0])

    def test_who_has_almost_nothing_keeps_its_quota(self):
        """Numa fila que outro enche não se sonda: quem partiu devagar tem a cota, e não a taxa que tinha."""
        for queue, least in ((self.server.STANDING, self.server.QUOTA_MIN), (self.server.EMPTY, 0)):
            path = self.cruising()
            path.rates.extend([1e-6] * self.server.RATES_KEPT)
            path.queue = queue
            path.plan()
            self.assertGreaterEqual(path.rate * path.smooth, least)
            self.assertEqual(path.rate * path.smooth < 1, queue == self.server.EMPTY)

    def test_busy_processor_is_not_a_slow_path(self):
        """A volta em que não se enviou o que se podia, porque faltou CPU, não faz ninguém ceder."""
        path = self.cruising()
        before = path.window
        self.assertEqual(self.judged(path, *[13_000] * 20, blocks=50), before)

    def test_late_loop_has_more_in_the_air(self):
        """Onde o laço atrasa de costume, cabe no ar o que chega enquanto ele não vem; um soluço só não conta."""
        window, late = self.cruising().window, self.server.LATE_MAX_US
        windows = []
        for delays in [late * 50] + [0] * 39, [late] * 40:
            path = self.cruising()
            for delay in delays:
                path.on_turn(delay)
            path.share = math.inf
            path.plan()
            windows.append(path.window)
        self.assertAlmostEqual(windows[0], window, delta=1)
        self.assertGreaterEqual(windows[1], window + 2 * path.bandwidth * late)

    def test_full_pipe_is_drained_at_once(self):
        """A terceira volta sem crescer já é a de devolver a fila: mais uma no ganho da partida a encheria."""
        path = self.server.Path(1000)
        for _ in range(4):
            self.assertEqual(path.gain, self.server.STARTUP_GAIN)
            path.best = 1.0
            path.end_round(False)
        self.assertEqual(path.gain, self.server.DRAIN_GAIN)


class RawServerTestCase(RawTestCase):
    """O servidor em lo, com o cliente de verdade e com quadros feitos à mão."""

    def key(self, name="chave", secret=b"segredo de teste 0123456789"):
        (self.home / name).write_bytes(secret)
        return ("--chave-arquivo", self.home / name), hashlib.blake2b(secret, digest_size=32).digest()

    def bare_server(self):
        """Um Server sem socket, para as contas que não dependem dele."""
        server = self.server_module.Server.__new__(self.server_module.Server)
        server.sessions, server.key, (_, server.seal) = {}, b"", self.server_module.make_seal()
        server.link = self.bare_link()
        return server

    def bare_link(self):
        link = self.server_module.Link.__new__(self.server_module.Link)
        link.name, link.mac, link.mtu, link.sock, link.verbose = "lo", bytes(6), 1500, mock.Mock(), None
        link.reread = mock.Mock()
        return link

    def open_files(self, server):
        """O que cada descritor do processo abre; um que se fecha durante a leitura já não conta."""
        for fd in os.listdir(f"/proc/{server.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                yield os.readlink(f"/proc/{server.pid}/fd/{fd}")


class TestRawServerProtocolError(RawServerTestCase):
    """Quadros tortos, velhos, forjados ou de outro: contam-se, e nada mais."""

    def test_random_and_mutated_frames(self):
        self.film()
        server, rng, m = self.serve(), random.Random(SEED), self.client_module
        hand = self.hand_client(open_name=b"filme.bin")
        hand.send(m.ACK, m.to_wire(0), m.LAYOUT[m.ACK].pack(0, 0, 8))
        hand.send(m.TEXT, 0, b"\0oi")
        hand.send(m.FETCH, 0)
        models, meter = list(hand.sent), Meter(server)
        before = meter.rss(), meter.fds()
        for turn in range(4000):
            frame = bytearray(rng.choice(models))
            for _ in range(rng.randrange(4)):
                frame[rng.randrange(len(frame))] = rng.getrandbits(8)
            if turn % 4 == 0:
                frame = frame[:14] + bytes(rng.getrandbits(8) for _ in range(rng.randrange(100)))
            elif turn % 4 == 1:  # bem selado, mas com dados e tipo quaisquer
                kind, size = rng.choice([*m.LAYOUT, 0, 0x40, 0xFF]), rng.randrange(60)
                frame = m.pack_frame(hand.seal, bytes(6), bytes(6), kind & 0x7F, rng.choice([hand.session, 0, 5]),
                                     rng.getrandbits(32), rng.getrandbits(63), os.urandom(size))
            with contextlib.suppress(BlockingIOError):
                hand.sock.send(frame)
        self.client("baixar", "filme.bin")
        after = meter.rss(), meter.fds()
        self.assertLess(after[0] - before[0], 16 << 20, SEED)
        self.assertLess(after[1] - before[1], 5, SEED)
        self.stop(server)
        self.assertRegex(server.errors(), r"quadros ignorados: .*\d \(selo errado\)")

    def test_session_of_another_address(self):
        """O número da sessão não basta: quem o diz é quem a abriu."""
        self.film()
        self.serve()
        hand, m = self.hand_client(), self.client_module
        hand.sock.send(m.pack_frame(hand.seal, bytes(6), b"\2" * 6, m.BYE, hand.session, 0, 9))
        hand.open(b"filme.bin")
        hand.expect(m.CARD)

    def test_replay_and_forgery_with_a_key(self):
        options, key = self.key()
        server = self.serve(*options)
        hand = self.hand_client(key)
        hand.send(self.client_module.TEXT, 0, b"\1uma vez")
        hand.expect(self.client_module.RECEIPT)
        hand.send(self.client_module.BYE)
        server.expect("diz: uma vez\n")
        for frame in hand.sent * 3:  # tudo de novo, byte por byte
            hand.sock.send(frame)
        m, (_, crc) = self.client_module, self.client_module.make_seal()
        hello = m.LAYOUT[m.HELLO].pack(bytes(16), 9000)
        hand.sock.send(m.pack_frame(crc, m.BROADCAST, bytes(6), m.HELLO, 0, 0, 1, hello))
        wrong, _ = self.key("outra", b"x" * 20)
        self.assert_one_line_error(self.client("listar", *wrong, "--espera", "0.3", status=1), "--chave-arquivo")
        self.client("mensagem", "fim", *options)
        self.assertNotIn(b"uma vez", server.expect("diz: fim\n").string.split(b"diz: fim")[0])
        self.stop(server)
        self.assertRegex(server.errors(), r"quadros ignorados: .*\d \(selo errado\)")

    def test_clean_conversation_ignores_nothing(self):
        """O cliente diz FIM duas vezes, e o segundo, de uma sessão que acabou, não é um quadro torto."""
        options, _ = self.key()
        server = self.serve(*options)
        self.client("mensagem", "oi", *options)
        self.stop(server)
        self.assertEqual(server.errors(), "")

    def test_answers_nobody_speaking_for_a_group(self):
        """Um OLÁ com origem de difusão faria o servidor mandar o filme a todas as máquinas do enlace."""
        m, server = self.server_module, self.bare_server()
        body = m.LAYOUT[m.HELLO].pack(bytes(16), 1500)
        for source, sessions in ((m.BROADCAST, 0), (b"\x01\0^\0\0\1", 0), (b"\x02\0\0\0\0\1", 1)):
            frame = memoryview(m.pack_frame(server.seal, m.BROADCAST, source, m.HELLO, 0, 0, 1, body))
            with contextlib.suppress(m.ProtocolError):
                server.dispatch(frame, 1)
            self.assertEqual(len(server.sessions), sessions, source)


class TestRawServerSource(RawServerTestCase):
    """O arquivo: o que se abre, o que se recusa e o catálogo."""

    def test_refusals(self):
        self.film()
        (self.videos / "dir").mkdir()
        (self.videos / "link").symlink_to("/etc/passwd")
        (self.videos / "dir" / "linkdir").symlink_to("/etc")
        os.mkfifo(self.videos / "fifo")
        (self.home / "segredo").write_text("fora da pasta")
        self.serve()
        denied, missing = self.client_module.DENIED, self.client_module.NOT_FOUND
        cases = {b"../segredo": denied, b"dir/../../segredo": denied, b"/etc/passwd": denied, b"./filme.bin": denied,
                 b"filme.bin\0": denied, b"link": denied, b"dir/linkdir/passwd": denied, b"fifo": denied,
                 b"dir": denied,
                 b"dir/": denied, b"//": denied, b"filme.bin/x": denied, b"nada": missing, b"x" * 300: missing,
                 b"\xff\xfe": missing}
        if os.geteuid() != 0:
            (self.videos / "fechado").write_text("x")
            (self.videos / "fechado").chmod(0)  # no laboratório somos root de mentira: só confere que não quebra
        for name, code in cases.items():
            self.assertEqual(self.hand_client(open_name=name).error(), code, name)
        self.assertEqual(self.hand_client(open_name=b"filme.bin", free=10).error(), self.client_module.TOO_BIG)
        for name, word in (("nada", "não existe no servidor"), ("link", "nega o acesso")):
            self.assert_one_line_error(self.client("baixar", name, status=1), word)
        with open(self.videos / "enorme", "wb") as huge:
            with contextlib.suppress(OSError):  # um sistema de arquivos sem arquivos esparsos desse tamanho
                os.truncate(huge.fileno(), 1 << 42)
                self.assert_one_line_error(self.client("baixar", "enorme", status=1), "maior do que o espaço livre")
        self.client("baixar", "filme.bin")

    def test_hidden_and_odd_names_in_the_catalog(self):
        (self.videos / "\x1b]0;x\x07\n.txt").write_text("oi")
        (self.videos / ".oculto").write_text("x")
        (self.videos / "link").symlink_to("/etc/passwd")
        (self.videos / os.fsdecode(b"\xff.txt")).write_text("x")
        self.serve()
        text = self.client("listar").text
        self.assertNotIn("\x1b", text)
        self.assertIn(r"\x1b]0;x\x07\n.txt", text)
        self.assertIn("2 arquivo(s)", text)

    def test_hidden_files_are_not_there(self):
        """C8: o que o catálogo não mostra também não se baixa. A pasta servida, ela sim, pode ser oculta."""
        self.videos = self.videos.rename(self.home / ".videos")
        (self.videos / "dir" / ".git").mkdir(parents=True)
        for name in ".oculto", "dir/.oculto", "dir/.git/config", "dir/visto":
            (self.videos / name).write_text("x")
        self.serve()
        for name in b".oculto", b"dir/.oculto", b"dir/.git/config":
            self.assertEqual(self.hand_client(open_name=name).error(), self.client_module.NOT_FOUND, name)
        self.assert_one_line_error(self.client("baixar", ".oculto", "-o", "q", status=1), "não existe no servidor")
        self.client("baixar", "dir/visto")

    def test_catalog_is_bounded(self):
        for number in range(5):
            (self.videos / str(number)).write_text("x")
        self.serve(constants={"CATALOG_MAX": 3})
        self.assertIn("3 arquivo(s)", self.client("listar").text)

    def test_catalog_is_not_read_again_at_once(self):
        """Ler a pasta para o laço: quem pede o catálogo sem parar só a relê depois de uma folga."""
        m, server, now = self.server_module, self.bare_server(), [1000]
        server.folder, server.listed_until = self.videos, 0

        def slow_list(folder, read=m.list_folder):
            now[0] += 50  # µs
            return read(folder)

        with mock.patch.object(m, "clock", lambda: now[0]), mock.patch.object(m, "list_folder", slow_list):
            for name, wait, seen in (("um", 0, 1), ("dois", 50 * m.CATALOG_REST - 1, 1), ("três", 1, 3)):
                self.film(name, 10)
                now[0] += wait
                self.assertEqual(server.catalog().count(b"\0"), seen, name)

    def test_folders_too_deep_are_left_out(self):
        m, deep = self.server_module, self.videos / "a" / "b" / "c" / "d"
        deep.mkdir(parents=True)
        for path in (deep, *itertools.islice(deep.parents, 3)):
            (path / "x").write_text("x")
        with mock.patch.object(m, "DEPTH_MAX", 2):
            self.assertEqual([line.split()[2] for line in m.list_folder(self.videos)], [b"a/x\0", b"a/b/x\0"])

    def test_partial_larger_than_the_file(self):
        """Mesmo tamanho e data, e um parcial que passa do fim: o cliente mente, e recomeça do zero."""
        size = len(self.film())
        self.serve()
        hand, m = self.hand_client(), self.client_module
        hand.open(b"filme.bin", size + 1, size, (self.videos / "filme.bin").stat().st_mtime_ns)
        self.assertEqual(m.unpack_body(m.CARD, hand.expect(m.CARD).payload)[0], 0)

    def test_refused_session_gives_the_file_back(self):
        self.film()
        server = self.serve()
        self.assertEqual(self.hand_client(open_name=b"filme.bin", free=10).error(), self.client_module.TOO_BIG)
        self.assertEqual([path for path in self.open_files(server) if path.endswith("filme.bin")], [])

    def test_file_changes_during_the_copy(self):
        self.film(size=5_000_000)
        self.serve()
        hand, m = self.hand_client(open_name=b"filme.bin", queue=4, window=4), self.client_module
        hand.expect(m.DATA)
        self.film(size=5_000_000, seed=1)
        hand.open(b"filme.bin", queue=4, window=4)
        self.assertEqual(hand.error(), m.CHANGED)

    def test_impossible_dates(self):
        """L7: datas antes de 1677 e depois de 2262 são servidas: as que não cabem, como as mais próximas."""
        module = self.server_module
        for ns in (-2**63 - 5, -2**63, 0, 2**63 - 1, 2**63 + 5, 10**20):
            status = types.SimpleNamespace(st_size=7, st_mtime_ns=ns)
            date = module.date_of(status)
            self.assertEqual(date, max(-2**63, min(ns, 2**63 - 1)))
            struct.pack("!q", date)
            self.assertEqual(module.catalog_entry(status, "a"), b"7 %d a\0" % date)


    def test_folder_replaced(self):
        """C8: a pasta trocada por outra depois de o servidor subir é a que se serve."""
        self.film("velho.bin", 1000)
        self.serve()
        self.assertIn("velho.bin", self.client("listar").text)
        self.videos.rename(self.home / "antes")
        self.videos.mkdir()
        self.film("novo.bin", 1000)
        self.until(lambda: "novo.bin" in self.client("listar").text, "o catálogo da pasta nova")
        self.client("baixar", "novo.bin")
        self.assertIn("não existe", self.client("baixar", "velho.bin", status=1).err)

    def test_disk_mounted_over_the_folder(self):
        """C8: um disco montado sobre a pasta, com o servidor no ar, é visto; e o que ele tapou, não."""
        self.film("velho.bin", 1000)
        holder = ("unshare", "-m", "sh", "-c", 'mount --make-rprivate /; exec "$@"', "sh")
        server = self.spawn("raw_server.py", "lo", "--pasta", self.videos, prefix=(*self.lab.prefix, *holder))
        inside = ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(server.pid))
        if not can(*inside, "mount", "-t", "tmpfs", "disco", str(self.videos)):
            self.skipTest("aqui não se monta um tmpfs")
        subprocess.run([*inside, "sh", "-c", 'echo oi > "$1"', "sh", self.videos / "novo.txt"], check=True)
        self.until(lambda: "novo.txt" in self.client("listar").text, "o catálogo do disco montado")
        self.client("baixar", "novo.txt")
        self.assertEqual((self.home / "novo.txt").read_text(), "oi\n")
        self.assertIn("não existe", self.client("baixar", "velho.bin", status=1).err)

    def test_folder_that_does_not_serve(self):
        """P6: a pasta que não se abre, e por quê: root de um `sudo su` fica com o uid de antes, e isso é dito."""
        m = self.server_module
        for code, words in ((errno.ENOENT, "não existe. Crie-a: mkdir 'meus filmes'$"),
                            (errno.ENOTDIR, "não é uma pasta"),
                            (errno.EACCES, f"sem permissão para o usuário {os.geteuid()}.*sudo.*--pasta PASTA$")):
            said = m.explain_folder("meus filmes", OSError(code, os.strerror(code)))
            self.assertRegex(said, "^a pasta 'meus filmes' não serve: " + words)


class TestRawServerSession(RawServerTestCase):
    """Um cliente: a cópia, a conversa e os prazos dele."""

    def test_everything_once_with_and_without_key(self):
        data = self.film(size=300_000)
        self.film("vazio.txt", 0)
        (self.videos / "sub").mkdir()
        (self.videos / "sub" / "ção.txt").write_bytes(b"\x81\x00\x88\xa8" * 50_000)  # o que o VLAN comeria
        options, _ = self.key()
        for extra in ((), options):
            server = self.serve(*extra)
            listing = self.client("listar", *extra).text
            self.assertRegex(listing, r"3 arquivo\(s\)\n.*filme\.bin\n.*vazio\.txt\n.*sub/ção\.txt\n")
            for name, wanted in (("vazio.txt", b""), ("sub/ção.txt", b"\x81\x00\x88\xa8" * 50_000))[not extra:]:
                self.client("lo", "baixar", name, *extra, "--sobrescrever")
                self.assertEqual((self.home / os.path.basename(name)).read_bytes(), wanted)
            self.assertEqual(self.client("baixar", "filme.bin", "-o", "-", *extra).out, data)
            for text in ("", "olá \x1b]0;x\x07", "x" * self.client_module.MESSAGE_MAX) if extra else ("a",):
                self.client("mensagem", *extra, "--", text)
                server.expect("diz: " + re.escape(self.client_module.escape(text)) + "$")
            self.assertRegex(self.client("medir", "0.2", *extra).text, r"útil: [\d.]+ Mbit/s")
            self.assertEqual(sorted(os.listdir(self.home)),
                             sorted({"videos", "filme.bin", "vazio.txt", "ção.txt", "chave"}
                                    & set(os.listdir(self.home))))
            self.stop(server)

    def test_message_without_end(self):
        """Além de MESSAGE_MAX, um erro: mostrar 1 MiB de caracteres de controle parava o laço por meio segundo."""
        self.serve()
        hand, m = self.hand_client(), self.client_module
        for block in range(2):
            hand.send(m.TEXT, block, bytes([m.MORE]) + b"\x1b" * 40_000)
        self.assertEqual(hand.error(), m.GENERAL)

    def test_operator_answers(self):
        server = self.serve(tty=True)
        client = self.spawn_client("mensagem", status=0)
        client.type("oi daqui\n")
        server.expect("diz: oi daqui")
        server.type("olá daí, ç\n\nfim\n")
        client.expect("diz: olá daí, ç\n.*diz: \n.*diz: fim\n")
        client.stdin.close()
        self.assertEqual(client.wait(), 0)
        server.type("alguém?\n")
        server.expect_error("ninguém na linha")

    def test_operator_in_excess(self):
        """Uma linha sem fim é cortada; e o que ninguém vem buscar tem um teto."""
        m, server = self.server_module, self.bare_server()
        session = m.Session(server, b"c" * 6, bytes(16), 1500, 0)
        server.sessions, server.speaker = {session.number: session}, session
        server.typed, server.voice = bytearray(m.MESSAGE_MAX), mock.Mock()
        with mock.patch("os.read", return_value=b"x"), mock.patch.object(m, "OUTBOX_MAX", 10):
            server.read_terminal()
            self.assertEqual(server.typed, b"")
            kept = len(session.outbox)
            self.assertGreater(kept, 10)
            server.typed += b"outra\n"
            server.read_terminal()
        self.assertEqual(len(session.outbox), kept)
        self.assertIn("ninguém na linha", server.voice.note.call_args[0][0])

    def test_two_clients_and_one_that_stalls(self):
        data = self.film(size=2_000_000)
        self.serve()
        stalled = self.hand_client(open_name=b"filme.bin", queue=1, window=1)
        stalled.expect(self.client_module.DATA)
        others = [self.spawn_client("baixar", "filme.bin", "-o", name, status=0) for name in ("um", "dois")]
        for child, name in zip(others, ("um", "dois")):
            child.wait()
            self.assertEqual((self.home / name).read_bytes(), data)

    def test_stalled_client_is_released(self):
        """Conversa, mas a cópia não anda: também tem um prazo."""
        self.film(size=3_000_000)
        server = self.serve(constants={"STALLED_US": 200_000, "SILENCE_US": 10**9})
        self.hand_client(open_name=b"filme.bin").expect(self.client_module.CARD)
        self.until(lambda: not any("filme.bin" in name for name in self.open_files(server)), "o arquivo se fechar")

    def test_vanished_client_is_released(self):
        self.film(size=3_000_000)
        server = self.serve("--max-clientes", "1", constants={"SILENCE_US": 300_000})
        hand = self.hand_client(open_name=b"filme.bin")
        hand.expect(self.client_module.DATA)
        self.until(lambda: not any(path.endswith("filme.bin") for path in self.open_files(server)),
                   "o servidor fecha o arquivo")
        self.client("baixar", "filme.bin")


class TestRawServerServer(RawServerTestCase):
    """O laço: muitos de uma vez, e nenhum que prenda os outros."""

    def test_sessions_are_bounded(self):
        self.film()
        server = self.serve("--max-clientes", "1")
        for _ in range(300):
            self.hand_client()
        self.client("listar")
        first = self.hand_client(open_name=b"filme.bin")
        first.expect(self.client_module.CARD)
        self.assertEqual(self.hand_client(open_name=b"filme.bin").error(), self.client_module.FULL)
        self.assert_one_line_error(self.client("baixar", "filme.bin", status=1), "lotado")
        first.send(self.client_module.BYE)
        self.client("baixar", "filme.bin")
        self.assertLess(Meter(server).fds(), 12)

    def test_half_open_sessions_give_way(self):
        m, server = self.server_module, self.bare_server()
        for turn in range(300):
            body = m.LAYOUT[m.HELLO].pack(turn.to_bytes(16, "big"), 1500)
            server.welcome(m.Frame(m.BROADCAST, b"c" * 6, m.HELLO, 0, 0, turn, body), 1000 + turn)
        self.assertEqual(len(server.sessions), m.HALF_OPEN_MAX)
        for session in list(server.sessions.values()):
            session.step(1300 + m.HALF_OPEN_US + 1)
        self.assertEqual(len(server.sessions), 0)
        low = m.Frame(m.BROADCAST, b"c" * 6, m.HELLO, 0, 0, 1, m.LAYOUT[m.HELLO].pack(bytes(16), 10))
        self.assertRaises(m.ProtocolError, server.welcome, low, 1)

    def test_input_that_cannot_be_read(self):
        """L4: uma entrada que cai (um socket), ou que não quer esperar: o servidor segue, e com o que vier depois."""
        self.film()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        with ours:
            server = self.serve(stdin=ours)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            self.client("baixar", "filme.bin")
            self.stop(server)
        read, write = os.pipe()
        os.set_blocking(read, False)
        server = self.serve(stdin=read)
        os.close(read)
        with open(write, "wb", buffering=0) as keyboard:
            keyboard.write(b"ola\n")
            server.expect_error("ninguém na linha")
            server_side = self.bare_server()
            server_side.typed = bytearray()
            with mock.patch("os.read", side_effect=BlockingIOError(errno.EAGAIN, "")):
                self.assertTrue(server_side.read_terminal())  # quem a leu antes foi outro

    def test_end_of_the_input_does_not_spin(self):
        """O fim da entrada (cano fechado) deixa de se vigiar: parado, o servidor não gasta CPU."""
        server = self.serve()
        server.stdin.close()
        self.client("listar")
        meter = Meter(server)
        before = meter.cpu()
        for _ in range(3):
            self.client("listar", "--servidor", "02:00:00:00:00:99", "--espera", "0.3", status=1)
        self.assertLess(meter.cpu() - before, 0.3)

    def test_background_terminal_is_the_end_of_the_input(self):
        server = self.bare_server()
        server.typed = bytearray()
        with mock.patch("os.read", side_effect=OSError(errno.EIO, "")):
            self.assertFalse(server.read_terminal())
        with open(f"/proc/{self.serve().pid}/status") as status:  # e SIGTTIN não o para: `./raw_server.py &`
            ignored = int(re.search(r"SigIgn:\t(\w+)", status.read())[1], 16)
        self.assertTrue(ignored >> (signal.SIGTTIN - 1) & 1)

    def test_output_that_nobody_reads(self):
        """Um cano cheio (ou um terminal parado por Ctrl+S) perde mensagens, e não para o servidor."""
        self.film()
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        server = self.spawn("raw_server.py", "lo", "--pasta", self.videos, prefix=self.lab.prefix, ready=None,
                            stdout=write, constants={"VOICE_BYTES": 70_000})
        os.close(write)
        with open(read, "rb", closefd=False) as output:
            self.assertRegex(output.readline().decode(), READY)
        for _ in range(4):
            self.client("mensagem", "x" * 60_000)
        self.assertIn("1 arquivo", self.client("listar").text)
        self.stop(server)
        self.assertRegex(server.errors(), "linhas que ninguém leu: 1\n")
        with open(read, "rb", closefd=False) as output:
            self.assertIn(b"diz: xxx", output.read())

    def test_stop_with_a_full_pipe_that_is_also_stderr(self):
        """`2>&1 | less`, e ninguém rola a tela: o primeiro SIGTERM acaba, mesmo com contas a mostrar."""
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        prefix = (*self.lab.prefix, "sh", "-c", 'exec "$@" 2>&1', "sh")
        server = self.spawn("raw_server.py", "lo", "--pasta", self.videos, prefix=prefix, ready=None, stdout=write,
                            constants={"VOICE_BYTES": 70_000})
        os.close(write)
        with open(read, "rb", closefd=False) as output:
            self.assertRegex(output.readline().decode(), READY)
        self.client("mensagem", input=4 * (b"x" * 60_000 + b"\n"))  # a quarta já não cabe: há o que contar no fim
        self.assertEqual(self.stop(server), 0)

    def test_verbose_that_nobody_reads(self):
        """Um stderr que ninguém lê perde linhas de --verbose; quem baixa não espera por ele, nem o fim."""
        data = self.film()
        unread, fill = self.stderr_nobody_reads(*self.lab.prefix)
        server = self.spawn("raw_server.py", "lo", "--pasta", self.videos, "--verbose",
                            constants={"VOICE_BYTES": 1000}, **unread)
        fill()
        self.client("baixar", "filme.bin", constants={"SILENCE_US": 1_000_000}, timeout=10)
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)
        self.assertEqual(self.stop(server), 0)

    def test_second_signal(self):
        """Há quem aperte Ctrl+C duas vezes: acabar a pedido continua a ser o fim normal."""
        server = self.serve()
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):  # chegam os dois de uma vez
            server.kill(number)
        self.assertEqual(server.wait(), 0)

    def test_message_that_cannot_be_written(self):
        """Disco cheio perde a mensagem; quem copia não perde nada. Um cano fechado é o fim."""
        data = self.film()
        with open("/dev/full", "wb") as full:
            server = self.spawn("raw_server.py", "lo", "--pasta", self.videos, prefix=self.lab.prefix, ready=None,
                                stdout=full)
        self.until(lambda: self.client("listar", "--espera", "1", status=None).status == 0, "o servidor atender")
        self.client("mensagem", "oi")
        self.client("baixar", "filme.bin")
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)
        self.assertEqual(self.stop(server), 0)
        read, write = os.pipe()
        server = self.spawn("raw_server.py", "lo", "--pasta", self.videos, prefix=self.lab.prefix, ready=None,
                            stdout=write, status=1)
        os.close(write)
        with open(read, "rb") as output:
            self.assertRegex(output.readline().decode(), READY)
        self.client("mensagem", "oi")
        self.assertEqual(server.wait(), 1)

    def test_born_without_standard_streams(self):
        """`>&-`: /dev/null no lugar deles, e nunca o socket cru, por onde um print iria à rede. L1: e o resultado que
        não tem aonde ir é estado 1."""
        data = self.film()
        server = self.spawn("raw_server.py", "lo", "--pasta", self.videos,
                            prefix=(*self.lab.prefix, "sh", "-c", 'exec "$@" <&- 2>&-', "sh"))
        for closed in ("<&-", ">&-", "<&- >&- 2>&-"):
            lost = ">&-" in closed.split()
            prefix = (*self.lab.prefix, "sh", "-c", f'exec "$@" {closed}', "sh")
            done = self.run_script("raw_client.py", "baixar", "filme.bin", "-o", "-", prefix=prefix, status=int(lost))
            self.assertEqual(done.out, b"" if lost else data, closed)
            for words in (("listar",), ("medir", "0.1")):
                done = self.run_script("raw_client.py", *words, prefix=prefix, status=int(lost))
            self.assertEqual("erro: o descritor está fechado" in done.err, closed == ">&-", done)
        self.run_script("raw_client.py", "mensagem", prefix=prefix, status=0)
        self.stop(server)

    def test_broken_disk_ends_one_session(self):
        server = self.bare_server()
        session = self.server_module.Session(server, b"c" * 6, bytes(16), 1500, 0)
        server.attempt(session, mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        self.assertEqual(session.refusal, self.server_module.GENERAL)

    def test_bad_key_files(self):
        for path, word in (("/nao/existe", "não consigo ler /nao/existe"), (self.key(secret=b"curta")[0][1], "16")):
            result = self.client("listar", "--chave-arquivo", path, status=1)
            self.assert_one_line_error(result, word, "head -c 32 /dev/urandom >")

    def test_command_line(self):
        result = self.run_script("raw_server.py", "lo", "--pasta", self.home / "nada", prefix=self.lab.prefix)
        self.assert_one_line_error(result, "mkdir")
        for name in "nada0", "nome-comprido-demais", "\udcff":  # o último, um byte que não é UTF-8
            result = self.run_script("raw_server.py", name, prefix=self.lab.prefix)
            self.assert_one_line_error(result, ascii(name)[1:-1], "lo")
        result = self.run_script("raw_server.py", "--max-clientes", "0")
        self.assert_one_line_error(result, "1 a 1000", status=2)
        if "b1" in self.lab.sockets:
            self.lab.ip("link", "add", "parada", "type", "veth", "peer", "name", "parada2")
            self.assert_one_line_error(self.client("parada", "listar", status=1), "sudo ip link set parada up")
        result = self.run_script("raw_server.py", "lo", "--pasta", "meus filmes", prefix=without_raw())
        self.assert_one_line_error(result, "CAP_NET_RAW", "sudo ./raw_server.py lo --pasta 'meus filmes'\n")

    def test_defect_in_one_client(self):
        """L8: um defeito nosso no quadro de um cliente, ou um nome de máquina que não é UTF-8, não para o servidor."""
        server = self.bare_server()
        server.ignored, server.voice = collections.Counter(), mock.Mock()
        session = mock.Mock(number=7)
        server.sessions = {7: session}
        server.attempt(session, mock.Mock(side_effect=ValueError("x")))
        self.assertEqual((server.sessions, session.close.called), ({}, True))
        self.assertIn("ValueError", server.voice.note.call_args[0][0])
        server.link.receive = mock.Mock(side_effect=[b"quadro", None])
        with mock.patch.object(server, "dispatch", side_effect=KeyError("y"), create=True):
            server.receive()
        self.assertEqual(sum(server.ignored.values()), 2)
        server.sessions, server.link.send = {}, mock.Mock()
        m = self.server_module
        body = m.LAYOUT[m.HELLO].pack(bytes(16), 1500)
        with mock.patch.object(m.socket, "gethostname", return_value="sal\udce3o"):
            server.welcome(m.Frame(m.BROADCAST, b"c" * 6, m.HELLO, 0, 0, 1, body), 1000)
        self.assertIn(b"sal\xe3o", server.link.send.call_args[0][0])


class TestRawServerLink(RawServerTestCase):
    """O enlace: a placa, o privilégio e o que ela recusa."""

    def test_card_refuses_for_a_moment(self):
        """ENOBUFS: espera e tenta de novo, um número limitado de vezes; interface desligada, também não derruba."""
        link = self.bare_link()
        for failures, calls in ((0, 1), (3, 4), (10**6, self.server_module.FULL_TRIES)):
            for code, pause in ((errno.ENOBUFS, 1), (errno.EAGAIN, 1), (errno.ENETDOWN, 0), (errno.EMSGSIZE, 0)):
                link.sock.send = mock.Mock(side_effect=[OSError(code, "")] * min(failures, 99) + [60])
                with mock.patch("time.sleep") as sleep:
                    link.send(b"quadro")
                self.assertEqual(link.sock.send.call_count, calls)
                for call in sleep.call_args_list:  # um cliente de MTU impossível não atrasa os outros
                    self.assertEqual(call[0][0], pause * self.server_module.FULL_S)
        link.sock.send = mock.Mock(side_effect=OSError(errno.ENXIO, "No such device"))
        self.assertRaisesRegex(self.server_module.Failure, "sumiu", link.send, b"quadro")

    def test_nothing_left_to_import_without_root(self):
        """Devolvido o privilégio, um Python dentro de /root já não se lê: o que faltava carregar derrubaria tudo."""
        code = """if True:
            import fcntl, importlib.util, io, os, sys
            spec = importlib.util.spec_from_file_location("script", sys.argv[1])
            m = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(m)
            real, os.geteuid, os.environ["SUDO_UID"] = os.geteuid, lambda: 0, sys.argv[3]
            m.open, os.initgroups, os.setgid = lambda path: io.StringIO("0 0 4294967295"), print, print
            os.setuid = lambda uid: (sys.path.clear(), sys.meta_path.clear())
            user, os.geteuid = m.drop_root(), real
            del m.open
            print(m.escape("\\x1b"), user.pw_uid)
            if hasattr(m, "Partial"):
                for turn in range(2):
                    partial = m.Partial(sys.argv[2])
                    partial.begin(0, (9, 9))
                    partial.write([b"x"])
                    partial.close()
            """
        for script in ("raw_server.py", "raw_client.py"):
            user = str(ordinary_user())
            done = subprocess.run([*PYTHON, "-c", code, str(HERE / script), str(self.home / "x"), user],
                                  env=child_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.assertIn(f"\\x1b {user}\n".encode(), done.stdout, done.stderr.decode())
            self.assertEqual(done.returncode, 0, done.stderr.decode())

    def test_nobody_to_give_root_back_to(self):
        """SUDO_UID de quem o passwd daqui não conhece (um chroot): um erro, e nem traceback nem root."""
        code = """if True:
            import importlib.util, io, os, sys
            spec = importlib.util.spec_from_file_location("script", sys.argv[1])
            m = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(m)
            os.geteuid, m.open = lambda: 0, lambda path: io.StringIO("0 0 4294967295")
            sys.exit(m.run(m.argparse.ArgumentParser, lambda args: m.drop_root(), []))
            """
        for script in ("raw_server.py", "raw_client.py"):
            for uid in ("4294967294", "abc"):
                done = subprocess.run([*PYTHON, "-c", code, str(HERE / script)], env=child_env(SUDO_UID=uid),
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                result = Result(done.returncode, done.stdout, done.stderr.decode())
                self.assert_one_line_error(result, f"não há usuário {uid}")

    def test_root_is_given_back(self):
        """Root de verdade, com SUDO_UID: o servidor fica com o uid de quem digitou sudo."""
        with open("/proc/self/uid_map") as uid_map:
            if os.geteuid() or uid_map.read().split()[2] != "4294967295" or not can("unshare", "-n", "true"):
                self.skipTest("só root de verdade tem um privilégio a devolver")
        self.home.chmod(0o755)
        (self.videos / "meu").write_text("x")
        (self.videos / "meu").chmod(0)
        prefix = ("unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
        uid = str(ordinary_user())
        server = self.spawn("raw_server.py", "lo", "--pasta", self.videos, prefix=prefix, env={"SUDO_UID": uid},
                            ready=f"uid {uid}")
        with open(f"/proc/{server.pid}/status") as status:
            self.assertRegex(status.read(), rf"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n[^Z]*CapEff:\t0+\n")

    def test_interface_removed(self):
        """L9: a interface que some de baixo de um servidor parado: uma linha que a nomeia, e o fim com 1, em 2 s."""
        self.assertLessEqual(self.server_module.CHECK_US + self.server_module.TIMEOUT_MAX_US, 2_000_000)
        self.lab.ip("link", "add", "x0", "type", "veth", "peer", "name", "x1")
        for name in "x0", "x1":
            self.lab.ip("link", "set", name, "up")
        server = self.serve(interface="x0", status=1, constants={"CHECK_US": 50_000, "TIMEOUT_MAX_US": 50_000})
        self.lab.ip("link", "del", "x0")
        self.assertEqual(server.wait(), 1)
        # Entre desligada e apagada há um instante, em que o servidor pode dizer que ela foi desligada.
        self.assertEqual(re.findall("^raw_server.py: .*", server.errors(), re.M),
                         ["raw_server.py: erro: a interface x0 sumiu. Veja as outras: ip -br link"])

    def test_interface_put_in_a_bridge(self):
        """C6: a interface que vira porta de uma ponte com o servidor no ar: ele acaba com 1, e diz o nome da ponte."""
        self.make_bridge()
        server = self.serve(interface="x0", status=1, constants={"CHECK_US": 50_000, "TIMEOUT_MAX_US": 50_000})
        self.lab.ip("link", "set", "x0", "master", "br7")
        self.assertEqual(server.wait(), 1)
        self.assertEqual(re.findall("^raw_server.py: .*", server.errors(), re.M),
                         ["raw_server.py: erro: x0 é uma porta da ponte br7, e é ela quem ouve. Use br7"])

    def test_folder_without_its_option(self):
        """N14: a pasta como segunda palavra: diz-se o comando com --pasta, e digitado ele serve."""
        for words, right in ((["lo", "meus filmes"], "lo --pasta 'meus filmes'"),
                             (["--max-clientes", "3", "lo", "videos"], "--max-clientes 3 lo --pasta videos")):
            result = self.run_script("raw_server.py", *words)
            self.assert_one_line_error(result, f"--pasta: sudo ./raw_server.py {right} (ajuda", status=2)
            self.server_module.build_parser().parse_args(shlex.split(right))
        result = self.run_script("raw_server.py", "lo", "a", "b")
        self.assert_one_line_error(result, "não conheço a b", status=2)

    def test_one_server_for_each_interface(self):
        """C7: o segundo servidor da mesma interface não sobe, e diz quem lá está; um que caiu não impede o seguinte."""
        self.film()
        first = self.serve(status=-signal.SIGKILL)
        second = self.spawn("raw_server.py", "lo", "--pasta", self.videos, prefix=self.lab.prefix, ready=None, status=1)
        self.assertEqual(second.wait(), 1)
        self.assertRegex(second.errors(), f"^raw_server.py: erro: outro raw_server.py já serve em lo "
                                          fr"\(processo {first.pid}\)[^\n]*sudo kill {first.pid}[^\n]*\n$")
        if "b1" in self.lab.sockets:  # noutra interface não há disputa
            self.serve(interface="a0")
        first.kill()
        first.wait()
        self.serve()
        self.client("baixar", "filme.bin")

    def test_who_is_there_and_cannot_be_seen(self):
        """C7: de outro contêiner, o processo não tem número aqui; quem já se foi, também não."""
        m = self.server_module
        self.assertNotIn("processo", m.explain_taken("lo", 0))
        self.assertEqual(m.owner_of("\0ninguem-escuta-aqui"), 0)

    def test_no_carrier(self):
        """N15, F3: sem fio do outro lado, uma linha em stderr e a espera; quando ele volta, outra, e atende-se."""
        if "b1" not in self.lab.sockets:
            self.skipTest("sem pares veth aqui")
        self.film()
        self.lab.ip("link", "set", "a1", "down")
        self.addCleanup(self.lab.ip, "link", "set", "a1", "up")
        server = self.serve(interface="a0", constants={"CHECK_US": 50_000, "TIMEOUT_MAX_US": 50_000})
        server.expect_error("^a0 está sem conexão: confira o cabo, ou a rede Wi-Fi. Espero...$")
        self.lab.ip("link", "set", "a1", "up")
        server.expect_error("^a0 tem conexão outra vez$")
        self.lab.ip("link", "set", "a0", "down")
        server.expect_error("^a0 foi desligada. Espero: sudo ip link set a0 up$")
        self.lab.ip("link", "set", "a0", "up")
        server.expect_error("(?s)outra vez.*outra vez")
        with contextlib.suppress(OSError):  # o aviso de que a1 caiu
            self.links[1].recv(1, socket.MSG_DONTWAIT)
        self.relay()
        self.client("b0", "baixar", "filme.bin")
        self.assertEqual(server.errors().count("\n"), 4)

    def test_too_small_for_a_frame(self):
        """P6: um MTU em que nada cabe: os dois lados o dizem em uma linha, e o que fazer."""
        self.addCleanup(self.lab.ip, "link", "set", "lo", "mtu", "65536")
        for mtu in "24", "128":
            self.lab.ip("link", "set", "lo", "mtu", mtu)
            result = self.run_script("raw_server.py", "lo", "--pasta", self.videos, prefix=self.lab.prefix)
            for result in result, self.client("listar", status=1):
                self.assert_one_line_error(result, f"só cabem {mtu} bytes", "sudo ip link set lo mtu 1500")

    def test_mac_and_mtu_are_read_again(self):
        """L10: o MAC e o MTU que mudam com o servidor no ar: a resposta ao OLÁ seguinte já é com os novos."""
        self.lab.ip("link", "add", "y0", "type", "veth", "peer", "name", "y1")
        self.addCleanup(self.lab.ip, "link", "del", "y0")
        for name in ("y0", "y1"):
            self.lab.ip("link", "set", name, "up")
        data = self.film()
        server = self.serve(interface="y0")
        self.client("y1", "baixar", "filme.bin", "-o", self.home / "antes")
        self.lab.ip("link", "set", "y0", "address", "02:00:00:00:77:01")
        self.lab.ip("link", "set", "y0", "mtu", "1400")
        result = self.client("y1", "listar")
        self.assertIn("02:00:00:00:77:01", result.text)
        self.client("y1", "baixar", "filme.bin", "-o", self.home / "depois")
        self.assertEqual((self.home / "depois").read_bytes(), data)
        server.stop()


def without_raw():
    """Prefixo que roda o comando sem CAP_NET_RAW."""
    if os.geteuid():
        return ()
    prefix = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    if not can(*prefix, "true"):
        raise unittest.SkipTest("sem o setpriv do util-linux, que tira de root o CAP_NET_RAW")
    return prefix


def size_limit(size):
    """Prefixo que roda o comando sem poder escrever um arquivo maior que isto."""
    if not can("prlimit", "true"):
        raise unittest.SkipTest("sem o prlimit do util-linux")
    return ("prlimit", f"--fsize={size}")


def ordinary_user():
    """O uid de um usuário desta máquina que não é root: nobody, se há."""
    users = {user.pw_uid for user in pwd.getpwall()} - {0}
    if not users:
        raise unittest.SkipTest("não há aqui outro usuário além de root")
    return 65534 if 65534 in users else min(users)


# ---------------------------------------------------------------------------------------------
# raw_client.py

class RawClientTestCase(RawTestCase):
    """O que os testes do cliente têm em comum."""

    def bare_client(self, **fields):
        """Um Client sem socket, para o que não depende dele."""
        client = self.client_module.Client.__new__(self.client_module.Client)
        vars(client).update({"server": bytes(6), "server_name": "\x1b", "verbose": False, "queue": 8, "capacity": 8,
                             "room": 1000, "seal_size": 4, "number": 1, "wanted": None, "target": None, "carrier": True,
                             "interface": "lo", "look": lambda: None, **fields})
        return client

    def bare_transfer(self, total=10, capacity=8, **fields):
        """Uma Transfer de `total` blocos de 100 bytes, sem servidor."""
        card = (0, 100 * total, 0, 100, bytes(32), 0, 0, 0, 0, b"")
        transfer = self.client_module.Transfer(self.bare_client(capacity=capacity), b"", card)
        vars(transfer).update({"acknowledge": mock.Mock(), "wait": mock.Mock(), **fields})
        return transfer


class TestRawClientNaive(unittest.TestCase):
    """O programa da docstring, que roda; e as faltas dele, ao lado do nosso."""

    client = load("raw_client.py")

    def run_naive(self, arrivals, total=5):
        """Roda-o contra estes blocos, na ordem dada; devolve o que escreveu e o que pediu."""
        m, (_, seal), file, asked = self.client, self.client.make_seal(), io.BytesIO(), []
        frames = [m.pack_frame(seal, b"c" * 6, b"s" * 6, m.DATA, 7, block, 0, b"%d" % block) for block in arrivals]
        sock = mock.Mock(recv=mock.Mock(side_effect=frames))
        sock.send = lambda frame: asked.append(m.unpack_frame(seal, frame))
        names = {**vars(m), "sock": sock, "file": file, "seal": seal, "server": b"s" * 6, "mine": b"c" * 6,
                 "session": 7, "total": total}
        with contextlib.suppress(StopIteration):  # acabou o que havia a chegar
            exec(compile(naive_program("raw_client.py"), "ingênuo", "exec"), names)
        return file.getvalue(), [frame.block for frame in asked]

    def test_it_runs(self):
        self.assertEqual(self.run_naive([0, 1, 1, 2, 3, 4]), (b"01234", [1, 2, 2, 3, 4, 5]))

    def test_early_blocks_are_thrown_away(self):
        """Perdido o bloco 1, o ingênuo joga fora os três que vieram depois dele; o nosso só espera por ele."""
        arrivals = [0, 2, 3, 4, 1]
        self.assertEqual(self.run_naive(arrivals)[0], b"01")
        receiver, ready = self.client.Receiver(5, 8), []
        for block in arrivals:
            receiver.accept(block, b"%d" % block, ready)
        self.assertEqual(b"".join(ready), b"01234")

    def test_bent_frame_is_the_end_of_it(self):
        """Um bit virado no fio acaba com o ingênuo; o nosso é como se o quadro não tivesse vindo."""
        m, (_, seal) = self.client, self.client.make_seal()
        bent = bytearray(m.pack_frame(seal, b"c" * 6, b"s" * 6, m.DATA, 7, 0, 0, b"0"))
        bent[-1] ^= 1
        with mock.patch.object(m, "pack_frame", return_value=bytes(bent)):
            self.assertRaises(m.ProtocolError, self.run_naive, [0])
        client = m.Client.__new__(m.Client)
        client.seal = seal
        self.assertIsNone(client.check(bent))


class TestRawClientReceiver(unittest.TestCase):
    """A ordem, com memória limitada."""

    m = load("raw_client.py")

    def test_receiver_any_order(self):
        rng = random.Random(SEED)
        receiver, got = self.m.Receiver(200, 64), []
        while receiver.next < 200:
            receiver.acknowledge(0)
            index = rng.randrange(max(receiver.next - 9, 0), receiver.next + 80)  # repetidos e além da janela também
            receiver.accept(index, b"%d" % index, got)
            self.assertLessEqual(len(receiver.early), 64)
            following, window, bits = receiver.acknowledge(0)
            self.assertEqual({following + at for at in range(90) if bits >> at & 1}, set(receiver.early))
        self.assertEqual(got, [b"%d" % index for index in range(200)])

    def test_receiver_closes_the_window(self):
        receiver, got = self.m.Receiver(100, 10), []
        for index in range(30):
            receiver.accept(index, b"x", got)
        self.assertEqual(len(got), 10)  # um servidor que ignora a janela fala sozinho
        self.assertEqual(receiver.acknowledge(backlog=10)[1], 0)
        self.assertEqual(receiver.acknowledge(backlog=4)[1], 6)


class TestRawClientPartial(RawClientTestCase):
    """Para onde vão os bytes: retoma, não atropela nada, e o cano dita o passo."""

    def partial_download(self, size=20_000_000):
        """Um cliente morto por kill -9 no meio de uma cópia; devolve o filme inteiro."""
        data = self.film(size=size)
        server = self.serve()
        client = self.spawn_client("baixar", "filme.bin")
        partial = self.home / "filme.bin.parcial"
        self.until(lambda: partial.exists() and partial.stat().st_size > 0, "o parcial cresce")
        client.kill()
        client.wait()
        self.assertFalse((self.home / "filme.bin").exists() and not partial.exists() and
                         (self.home / "filme.bin").read_bytes() != data)
        return server, data, partial

    def test_kill_and_resume(self):
        server, data, partial = self.partial_download()
        if not partial.exists():
            self.skipTest("a cópia acabou antes do kill")
        result = self.client("baixar", "filme.bin")
        self.assertIn("continuo de", result.err)
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)
        self.assertEqual(sorted(os.listdir(self.home)), ["filme.bin", "videos"])

    def test_file_changed_between_two_halves(self):
        server, data, partial = self.partial_download()
        fresh = self.film(size=20_000_000, seed=SEED + 1)
        os.utime(self.videos / "filme.bin", ns=(1, 1))
        result = self.client("baixar", "filme.bin")
        self.assertEqual((self.home / "filme.bin").read_bytes(), fresh)
        self.assertIn("mudou no servidor: do zero", result.err)

    def test_same_date_and_size_but_other_bytes(self):
        data = self.film(size=100_000)
        self.serve()
        status = (self.videos / "filme.bin").stat()
        (self.home / "filme.bin.parcial").write_bytes(b"x" * 50_000)
        (self.home / "filme.bin.parcial.id").write_text(f"{status.st_size} {status.st_mtime_ns}\n")
        result = self.client("baixar", "filme.bin", status=1)
        self.assertIn("não confere", result.err)
        self.assertFalse((self.home / "filme.bin").exists())
        self.client("baixar", "filme.bin")
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)

    def test_partial_of_nobody_and_bad_note(self):
        data = self.film(size=100_000)
        self.serve()
        for note in (None, b"-5 x\n", b"100000 1\n"):
            (self.home / "filme.bin.parcial").write_bytes(b"x" * 50_000)
            if note is not None:
                (self.home / "filme.bin.parcial.id").write_bytes(note)
            self.client("baixar", "filme.bin", "--sobrescrever")
            self.assertEqual((self.home / "filme.bin").read_bytes(), data, note)

    def test_never_overwrites(self):
        data = self.film()
        self.serve()
        (self.home / "filme.bin").write_text("meu")
        self.assert_one_line_error(self.client("baixar", "filme.bin", status=1), "--sobrescrever", "-o ARQUIVO")
        self.assertEqual((self.home / "filme.bin").read_text(), "meu")
        self.client("baixar", "filme.bin", "--sobrescrever")
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)
        (self.videos / ".x").write_text("oculto")
        self.assert_one_line_error(self.client("baixar", ".x", status=1), "-o ARQUIVO")

    def test_partial_that_is_a_link(self):
        self.film()
        self.serve()
        (self.home / "vitima").write_text("intocada")
        (self.home / "filme.bin.parcial").symlink_to("vitima")
        self.assertEqual(self.client("baixar", "filme.bin", status=1).err.count("\n"), 1)
        os.unlink(self.home / "filme.bin.parcial")
        (self.home / "filme.bin.parcial").symlink_to("criada")
        self.client("baixar", "filme.bin", status=1)
        self.assertFalse((self.home / "criada").exists())
        os.unlink(self.home / "filme.bin.parcial")
        os.link(self.home / "vitima", self.home / "filme.bin.parcial")
        self.assertIn("não é um arquivo comum", self.client("baixar", "filme.bin", status=1).err)
        os.unlink(self.home / "filme.bin.parcial")
        os.mkfifo(self.home / "filme.bin.parcial")
        self.assertIn("não é um arquivo comum", self.client("baixar", "filme.bin", status=1).err)
        self.assertEqual((self.home / "vitima").read_text(), "intocada")

    def test_never_replaces_what_is_not_a_file(self):
        """Antes de pedir um byte: --sobrescrever não troca uma pasta, um FIFO nem um /dev/null por um filme."""
        (self.home / "pasta").mkdir()
        os.mkfifo(self.home / "fifo")
        (self.home / "solto").symlink_to("nada")
        for target, word in (("pasta", "já existe"), ("fifo", "já existe"), ("solto", "já existe"),
                             ("nao/ha", "não consigo gravar em nao/ha.parcial"), ("x" * 250, "não consigo gravar")):
            result = self.client("baixar", "filme.bin", "-o", target, "--sobrescrever", "--espera", "0.1", status=1)
            self.assert_one_line_error(result, word, "-o ARQUIVO")
        self.assertEqual(sorted(os.listdir(self.home)), ["fifo", "pasta", "solto", "videos"])

    def test_note_that_is_a_fifo_or_missing(self):
        """Nada à espera num FIFO que outro pôs no lugar do bilhete; e um arquivo vazio de 1970 também o tem."""
        data = self.film()
        self.film("vazio", 0)
        os.utime(self.videos / "vazio", ns=(0, 0))
        self.serve()
        os.mkfifo(self.home / "filme.bin.parcial.id")
        for name, wanted in (("filme.bin", data), ("vazio", b"")):
            self.client("baixar", name)
            self.assertEqual((self.home / name).read_bytes(), wanted)
        self.assertEqual(sorted(os.listdir(self.home)), ["filme.bin", "vazio", "videos"])

    def test_partial_of_somebody_else(self):
        """Numa pasta de todos, o dono do parcial o mudaria depois de conferido."""
        m, partial = self.client_module, self.home / "x.parcial"
        partial.touch()
        with mock.patch("os.geteuid", return_value=partial.stat().st_uid + 1), \
                mock.patch("os.stat", return_value=mock.Mock(st_uid=partial.stat().st_uid + 2)), \
                self.assertRaisesRegex(m.Failure, "nosso"):
            m.Partial(str(self.home / "x"))

    def test_failure_leaves_nothing_behind(self):
        self.film()
        self.serve()
        self.client("baixar", "nada", status=1)
        self.client("baixar", "filme.bin", "--servidor", "02:00:00:00:00:01", "--espera", "0.1", status=1)
        self.assertEqual(os.listdir(self.home), ["videos"])

    def test_two_copies_of_the_same_name(self):
        self.film()
        self.serve()
        with open(self.home / "filme.bin.parcial", "wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            self.assert_one_line_error(self.client("baixar", "filme.bin", status=1), "outro raw_client.py")
        self.client("baixar", "filme.bin")

    def test_disk_full(self):
        data = self.film(size=2_000_000)
        self.serve()
        full = self.run_script("raw_client.py", "baixar", "filme.bin", cwd=self.home, status=1,
                               prefix=(*self.lab.prefix, *size_limit(1_000_000)))
        self.assert_one_line_error(full, "disco encheu")
        self.assertFalse((self.home / "filme.bin").exists())
        self.assertIn("continuo de", self.client("baixar", "filme.bin").err)
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)

    def test_pipe_keeps_what_does_not_fit_and_copies_it_once(self):
        m, data = self.client_module, random.Random(SEED).getrandbits(8 << 23).to_bytes(8 << 20, "big")
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        sink, seen = m.Pipe(write), bytearray()
        sink.write([b""])  # um bloco sem bytes, que só um servidor torto manda, não fica à frente dos outros
        self.assertFalse(sink.waiting)
        half = len(data) // 2
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for at in range(0, half, 1 << 18):
            sink.write([memoryview(data)[at:at + 1000], memoryview(data)[at + 1000:at + (1 << 18)]])
        self.assertGreater(sink.backlog, half - (1 << 20))
        for at in range(half, len(data), 1 << 18):
            sink.write([memoryview(data)[at:at + (1 << 18)]])
            seen += os.read(read, 1 << 16)
        _, peak = tracemalloc.get_traced_memory()
        self.assertLess(peak, 1.5 * len(data))
        while not sink.ended():
            sink.idle()
            seen += os.read(read, 1 << 16)
        self.assertEqual((seen == data, sink.size, sink.backlog), (True, len(data), 0))
        self.assertEqual(sink.hash.digest(), hashlib.sha256(data).digest())

    def test_server_that_says_too_much(self):
        """O catálogo tem um teto, e uma mensagem sem fim também."""
        m = self.client_module
        with mock.patch.object(m, "CATALOG_BYTES", 10), self.assertRaisesRegex(m.Failure, "grande demais"):
            m.Memory().write([b"x" * 11])
        parts = [bytes([m.MORE]) + b"x" * 60_000] * 3 + [bytes([m.NOTHING])]
        client = self.bare_client(heard=0, inbox=bytearray(), ask=mock.Mock(
            side_effect=[types.SimpleNamespace(payload=part) for part in parts]))
        client.listen()
        self.assertEqual(len(client.inbox), m.MESSAGE_MAX)

    def test_output_that_does_not_take_it_whole(self):
        """L1: `baixar -o -` num disco que enche, com e sem PYTHONUNBUFFERED: uma linha, e nunca o estado 0."""
        self.film(size=300_000)
        self.serve()
        for env in ({}, {"PYTHONUNBUFFERED": "1"}):
            with open(self.home / "saida", "wb") as out:
                done = subprocess.run([*self.lab.prefix, *size_limit(100_000), *PYTHON,
                                       str(HERE / "raw_client.py"), "baixar", "filme.bin", "-o", "-"],
                                      stdout=out, stderr=subprocess.PIPE, env=child_env(**env))
            self.assert_one_line_error(Result(done.returncode, b"", done.stderr.decode()), "tamanho permitido")

    def test_disk_that_does_not_know_its_size(self):
        """C9: um disco de 0 blocos (ramfs, FUSE) não sabe quanto cabe nele: isso não é 0."""
        data = self.film()
        self.serve()
        disk = self.home / "disco"
        disk.mkdir()
        inside = ("unshare", "-m", "sh", "-c", 'mount -t ramfs disco disco && cd disco && exec "$@"', "sh")
        there = ("sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(self.home))
        if not can(*self.lab.prefix, *there, *inside, "true"):
            self.skipTest("aqui não se monta um ramfs")
        script = f"{shlex.quote(sys.executable)} {HERE / 'raw_client.py'} baixar filme.bin && cat filme.bin"
        done = subprocess.run([*self.lab.prefix, *inside, "sh", "-c", script], cwd=self.home, env=child_env(),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WATCHDOG_S)
        self.assertEqual((done.returncode, done.stdout == data), (0, True), done.stderr.decode())
        m = self.client_module
        for blocks, free, wanted in ((0, 0, m.NO_LIMIT), (9, 0, 0), (9, 2, 8192), (9, 2**64 - 1, m.NO_LIMIT)):
            disk = types.SimpleNamespace(f_blocks=blocks, f_bavail=free, f_frsize=4096)
            with mock.patch("os.fstatvfs", return_value=disk):
                self.assertEqual(m.Partial.free(mock.Mock(fd=0)), wanted)

    def test_long_names(self):
        """P6: o bilhete do parcial é o nome mais comprido dos três; o que não cabe é dito antes de pedir um byte."""
        self.film("n" * 245)
        self.serve()
        result = self.client("baixar", "n" * 245, status=1)
        self.assert_one_line_error(result, "comprido demais", "-o ARQUIVO")
        self.client("baixar", "n" * 245, "-o", "n" * 244)
        self.assertEqual((self.home / ("n" * 244)).stat().st_size, 300_000)

    def test_interrupted_tells_where_the_copy_is(self):
        """N18: Ctrl+C em baixar diz que o parcial ficou, e que o mesmo comando continua dali."""
        self.film(size=200_000_000)
        self.serve()
        client = self.spawn_client("baixar", "filme.bin", status=130)
        partial = self.home / "filme.bin.parcial"
        self.until(lambda: partial.exists() and partial.stat().st_size > 0, "o parcial cresce")
        client.kill(signal.SIGINT)
        self.assertEqual(client.wait(), 130)
        self.assertIn("filme.bin.parcial: o mesmo comando continua dali", client.errors())

    def test_interrupted_between_the_write_and_the_count(self):
        """O Ctrl+C que chega logo depois do pwrite(), antes de o contarmos: o que está no disco é o que ficou."""
        module, said = self.client_module, io.StringIO()

        def interrupted(client, name, sink):
            os.pwrite(sink.fd, b"x" * 1500, 0)
            raise KeyboardInterrupt
        args = types.SimpleNamespace(word="filme.bin", saida=str(self.home / "copia"),
                                     sobrescrever=False, action=None)
        with mock.patch.object(module, "download_all", interrupted), contextlib.redirect_stderr(said), \
                self.assertRaises(KeyboardInterrupt):
            module.download(mock.Mock(), args)
        self.assertIn("copia.parcial: o mesmo comando continua dali", said.getvalue())


class TestRawClientTransfer(RawClientTestCase):
    """Receber até o fim, ou até o silêncio."""

    def test_server_killed_and_started_again(self):
        data = self.film(size=60_000_000)
        server = self.serve(status=None)
        client = self.spawn_client("baixar", "filme.bin", status=0, constants={"SILENCE_US": 300_000})
        partial = self.home / "filme.bin.parcial"
        self.until(lambda: partial.exists() and partial.stat().st_size > 0 or client.popen.poll() is not None,
                   "começou")
        server.kill()
        server.wait()
        self.serve()
        self.assertEqual(client.wait(), 0, client.errors())
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)

    def test_interface_down_and_up_twice(self):
        data = self.film(size=60_000_000)
        self.serve()
        client = self.spawn_client("baixar", "filme.bin", status=0)
        partial = self.home / "filme.bin.parcial"
        for _ in range(2):
            size = partial.stat().st_size if partial.exists() else 0
            self.until(lambda: client.popen.poll() is not None or partial.exists() and partial.stat().st_size > size,
                       "o parcial cresce")
            self.lab.ip("link", "set", "lo", "down")
            self.lab.ip("link", "set", "lo", "up")
        self.assertEqual(client.wait(), 0, client.errors())
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)

    def test_card_is_not_a_block(self):
        """FICHAS sem DADOS (o MTU deixa passar só as primeiras) não seguram quem espera blocos; em pausa, seguram."""
        m = self.client_module
        for room, end in ((8, m.Silence), (0, EOFError)):
            transfer = self.bare_transfer(capacity=room, drain=mock.Mock(side_effect=[(0, 1)] * 50 + [EOFError]))
            with mock.patch.object(m, "clock", itertools.count(0, 200_000).__next__), self.assertRaises(end):
                transfer.run(m.Memory())

    def test_answers_but_no_block_arrives(self):
        """MTU que não passa no meio do caminho: FICHA vem, DADOS não. Um erro, e não um laço."""
        m, args = self.client_module, mock.Mock(word="x", saida=str(self.home / "x"), sobrescrever=False)
        with mock.patch.object(m, "download_session", side_effect=[False] * m.EMPTY_MAX + [KeyboardInterrupt]), \
                contextlib.redirect_stderr(io.StringIO()), self.assertRaisesRegex(m.Failure, "MTU"):
            m.download(mock.Mock(), args)
        client = mock.MagicMock(asked=b"")
        client.ask.return_value.payload = bytes(m.LAYOUT[m.CARD].size)
        with self.assertRaisesRegex(m.Failure, "MTU"):
            m.measure(client, mock.Mock(word=0.1))

    def test_interrupted_gives_the_place_back(self):
        """Ctrl+C, ou SIGTERM, diz FIM: o lugar no servidor não espera 15 s por quem já se foi."""
        self.film()
        self.serve("--max-clientes", "1")
        for number, *words in (signal.SIGINT, "medir", "60"), (signal.SIGTERM, "mensagem"):
            client = self.spawn_client("--verbose", *words, status=130)
            client.expect_error("-> CONFIRMA|<- FALA")
            client.kill(number)
            self.assertEqual(client.wait(), 130)
        self.client("baixar", "filme.bin")


class TestRawClientClient(RawClientTestCase):
    """A quem pedir, e até quando."""

    def test_client_first(self):
        data = self.film()
        client = self.spawn_client("baixar", "filme.bin", "--espera", "30", status=0)
        client.expect_error("espero um servidor em lo")
        self.serve()
        self.assertEqual(client.wait(), 0)
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)

    def test_nobody_there(self):
        result = self.client("listar", "--espera", "0.2", status=1)
        self.assert_one_line_error(result, "nenhum servidor", "raw_server.py lo")

    def test_message_too_long(self):
        """Recusada antes do primeiro quadro: aqui nem socket há."""
        m = self.client_module
        with self.assertRaisesRegex(m.Failure, str(m.MESSAGE_MAX)):
            m.Client.say(None, "á" * (m.MESSAGE_MAX // 2 + 1))

    def test_deadline_holds_in_a_flood(self):
        """Passada a hora, nem mais um quadro: sob inundação sempre há outro, e --espera não acabaria."""
        full = open("/dev/zero", "rb")
        self.addCleanup(full.close)
        sock = mock.Mock(fileno=full.fileno, recv_into=mock.Mock(side_effect=AssertionError("leu mais um quadro")))
        client = self.bare_client(sock=sock, buffer=memoryview(bytearray(99)))
        self.assertEqual(list(client.frames(self.client_module.clock() - 1)), [])

    def test_stays_with_the_server_it_chose(self):
        """O catálogo veio de um servidor: o número do menu, e o resto de uma cópia, não são pedidos a outro."""
        m, other, chosen = self.client_module, b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
        for target, asked in ((None, [m.BROADCAST, chosen]), (other, [other, chosen])):
            sent = mock.Mock(send=mock.Mock(), fileno=lambda: 0)
            client = self.bare_client(sock=sent, number=0, target=target, wanted=target, search_s=0.0001,
                                      mac=bytes(6), mtu=1500, key=b"", frames=lambda until: ())
            # Um relógio que anda a cada olhada: com a máquina ocupada, o prazo de verdade acabava antes do OLÁ.
            ticking = mock.patch.object(m, "clock", itertools.count(step=40).__next__)
            with ticking, mock.patch.object(m, "attach_filter"), contextlib.redirect_stderr(io.StringIO()):
                self.assertRaises(m.Failure, client.find)
                client.enter(m.Offer(chosen, b"a" * 16, b"b" * 16, "vm", 1, 1))
                client.number = 0
                self.assertRaises(m.Failure, client.find)
            self.assertEqual(sorted({call[0][0][:6] for call in sent.send.call_args_list}), sorted(asked))

    def test_message_says_it_arrived(self):
        """B7: a quem está no terminal, `mensagem` diz que chegou; num cano, só o estado de saída."""
        self.serve()
        client = self.spawn_client("mensagem", "oi", tty="all", status=0)
        client.expect("entregue\r?\n")
        self.assertEqual(client.wait(), 0)
        done = self.client("mensagem", "oi")
        self.assertEqual((done.out, done.err), (b"", ""))

    def test_line_without_end_is_bounded(self):
        self.serve()
        client = self.spawn_client("mensagem", status=1)
        client.type(b"x" * (self.client_module.MESSAGE_MAX + 2))
        self.assertEqual(client.wait(), 1)
        self.assertIn("uma mensagem leva até", client.errors())

    def test_strange_server(self):
        """Lixo, quadros de outra sessão e fichas impossíveis não derrubam o cliente."""
        self.film()
        sock, rng, m = self.links[0], random.Random(SEED), self.client_module
        m.attach_filter(sock, 0)
        client = self.spawn_client("listar", "--espera", "30", status=0)
        hello = sock.recv(2048)
        _, seal = m.make_seal()
        nonce = m.unpack_frame(seal, hello).payload[:16]
        for _ in range(2000):
            kind = rng.choice([*m.KINDS, 0xFF]) | m.FROM_SERVER
            payload = rng.choice([nonce, b""]) + os.urandom(rng.randrange(80))
            frame = bytearray(m.pack_frame(seal, bytes(6), bytes(6), kind, rng.choice([0, 1]), 0, 0, payload))
            if rng.random() < 0.3:
                frame[rng.randrange(14, len(frame))] ^= 1 << rng.randrange(8)
            with contextlib.suppress(BlockingIOError):
                sock.send(frame)
        self.serve()
        client.expect("1 arquivo")
        self.assertEqual(client.wait(), 0)

    def test_lying_server_card(self):
        for card in ((0, 10**6, 0, 2**31), (5, 1, 0, 100)):
            status, err = self.lie(card)
            self.assertEqual(status, 1, err)
            self.assertIn("não segue o protocolo", err)

    def lie(self, card):
        """Um servidor feito à mão que responde ABRE com esta FICHA; devolve o fim do cliente."""
        sock, m = self.links[0], self.client_module
        m.attach_filter(sock, 0)
        sock.settimeout(WATCHDOG_S)
        client = self.spawn_client("baixar", "x", status=1)
        _, seal = m.make_seal()
        while client.popen.poll() is None:
            try:
                frame = m.unpack_frame(seal, sock.recv(2048))
            except socket.timeout:
                break
            if frame.kind == m.HELLO:
                nonces = frame.payload[:16], b"s" * 16
                number, _ = m.session_of(b"", *nonces)
                sock.send(m.pack_frame(seal, bytes(6), bytes(6), m.WELCOME, number, 0, 1, b"".join(nonces)))
            elif frame.kind == m.OPEN and frame.session == number:
                body = m.LAYOUT[m.CARD].pack(*card, bytes(32), 0, 0, 0, 0)
                sock.send(m.pack_frame(seal, bytes(6), bytes(6), m.CARD, number, 0, 2, body))
                break
        return client.wait(), client.errors()

    def test_interrupted_says_nothing_strange(self):
        client = self.spawn_client("listar", "--espera", "60", status=130)
        client.expect_error("espero um servidor")
        client.kill(signal.SIGINT)
        self.assertEqual(client.wait(), 130)

    def test_standard_input_that_cannot_be_read(self):
        """L4: uma entrada que não se deixa ler é um erro de uma linha, e não uma espera sem fim."""
        self.serve()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        with ours:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            done = subprocess.run([*self.lab.prefix, *PYTHON, str(HERE / "raw_client.py"), "mensagem"],
                                  stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_env(),
                                  timeout=WATCHDOG_S)
        self.assert_one_line_error(Result(done.returncode, done.stdout, done.stderr.decode()), "entrada padrão", "RST")

    def test_input_that_does_not_want_to_wait(self):
        """L4: um cano, ou um terminal, que outro programa deixou O_NONBLOCK: espera-se por ele como pelos outros."""
        self.film()
        server = self.serve()
        read, write = os.pipe()
        os.set_blocking(read, False)
        client = self.spawn_client("mensagem", status=0, stdin=read)
        os.close(read)
        with open(write, "wb", buffering=0) as keyboard:
            keyboard.write(b"oi\n")
            server.expect("diz: oi$")
        self.assertEqual(client.wait(), 0)
        master, terminal = os.openpty()
        self.addCleanup(os.close, master)
        os.set_blocking(terminal, False)
        client = self.spawn_client("menu", status=0, stdin=terminal)
        os.close(terminal)
        client.expect("sair > ")
        os.write(master, b"x\n")
        client.expect_error("não entendi")
        os.write(master, b"s\n")
        self.assertEqual(client.wait(), 0)

    def test_interface_is_read_again(self):
        """L10: outro MAC, ou outro MTU, no meio do caminho: o OLÁ seguinte já sai com ele."""
        m, sent = self.client_module, mock.Mock(fileno=lambda: 0)
        sent.getsockopt.return_value = 1 << 20
        client = self.bare_client(sock=sent, number=0, search_s=0.0001, key=b"", frames=lambda until: ())
        del client.look
        for mac, mtu in ((b"\2\0\0\0\0\1", 1500), (b"\2\0\0\0\0\2", 1400)):
            now = m.Interface(m.IFF_UP | m.IFF_RUNNING, mac, mtu, m.ARPHRD_ETHER)
            ticking = mock.patch.object(m, "clock", itertools.count(step=40).__next__)
            reading = mock.patch.object(m, "read_interface", return_value=now)
            with ticking, reading, mock.patch.object(m, "attach_filter"):
                self.assertRaises(m.Failure, client.find)
            frame = m.unpack_frame(m.make_seal()[1], sent.send.call_args[0][0])
            self.assertEqual((frame.source, m.unpack_body(m.HELLO, frame.payload)[1]), (mac, mtu))
            self.assertEqual((client.room, len(client.buffer)), (mtu - 24, mtu + 14))
        with mock.patch.object(m, "read_interface", return_value=now._replace(mtu=1300)):
            client.excuse(OSError(errno.EMSGSIZE, ""))
        self.assertEqual(client.mtu, 1300)

    def test_name_that_changes_between_two_looks(self):
        """L10: o kernel só responde pelo nome, e enquanto o troca nem pelo novo: a interface não sumiu."""
        names = []
        sock = mock.Mock(getsockname=lambda: (names.pop(0), 0, 0, 1, b""))

        def ioctl(sock, question, request):
            if not request.startswith(b"novo"):
                raise OSError(errno.ENODEV, "No such device")
            return b"resposta"

        for name in "raw_client.py", "raw_server.py":
            names[:] = ["velho", "velho", "velho", "novo", "velho", ""]
            with mock.patch("fcntl.ioctl", ioctl):
                self.assertEqual(load(name).ask_interface(sock, 1, 2), (1, [b"resposta"] * 2))
                self.assertRaises(OSError, load(name).ask_interface, sock, 1)
        client = self.bare_client(sock=sock)
        gone = mock.Mock(side_effect=OSError(errno.ENODEV, "No such device"))
        with mock.patch.object(self.client_module, "attach_filter", gone):
            self.assertRaisesRegex(self.client_module.Failure, "a interface lo sumiu", client.hear_only)

    def test_server_with_a_new_mac_is_found_again(self):
        """L10: o escolhido que volta com outro MAC é o que tem o mesmo nome; um estranho, e o --servidor, não mudam."""
        m, old, new = self.client_module, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
        nonce = b"n" * 16
        number, _ = m.session_of(b"", nonce, b"s" * 16)
        frames = [m.Frame(bytes(6), new, m.WELCOME, number, 0, 1, nonce + b"s" * 16 + name)
                  for name in (b"eu", b"outro")]
        client = self.bare_client(target=old, server_name="eu", frames=lambda until: iter(frames))
        self.assertEqual([offer[0::3][:2] for offer in client.offers(nonce, 0)], [(new, "eu")])
        self.assertEqual([client.callee(turn) for turn in range(3)], [old, m.BROADCAST, old])
        client.wanted = old
        self.assertEqual([client.callee(turn) for turn in range(3)], [old, old, old])

    def test_copy_survives_a_new_mac(self):
        """L10, F1: o MAC do cliente muda no meio da cópia, e ela continua sozinha."""
        data = self.film(size=3_000_000)
        self.relay(lose=0.02)
        self.serve(interface="a0", constants={"SILENCE_US": 500_000})
        client = self.spawn_client("b0", "baixar", "filme.bin", status=0, constants={"SILENCE_US": 300_000})
        partial = self.home / "filme.bin.parcial"
        self.until(lambda: partial.exists() and partial.stat().st_size > 0, "o parcial cresce")
        self.lab.ip("link", "set", "b0", "address", "02:00:00:00:0b:99")
        self.assertEqual(client.wait(), 0, client.errors())
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)

    def test_message_fits_both_sides(self):
        """L10: uma mensagem comprida se parte no que os dois lados levam num quadro."""
        self.relay()
        self.lab.ip("link", "set", "a0", "mtu", "600")
        self.addCleanup(self.lab.ip, "link", "set", "a0", "mtu", "1500")
        server = self.serve(interface="a0")
        text = "começo " + "x" * 3000 + " fim"
        self.client("b0", "mensagem", text)
        server.expect("diz: " + text)

    def test_only_what_is_for_this_machine(self):
        """S4: o filtro larga o quadro que o kernel marca como de outra máquina, ou de outra VLAN (PACKET_OTHERHOST),
        e o que ele deu à subinterface de uma VLAN: vem sem etiqueta, e a resposta iria sem ela."""
        m, frame = self.client_module, bytes([0] * 14 + [self.client_module.WELCOME] + [0] * 7)
        sock, index = mock.Mock(getsockname=lambda: ("eth0", 0, 0, 1, b"")), struct.pack("16xi236x", 7)
        with mock.patch("array.array", side_effect=lambda kind, data: mock.Mock(
                buffer_info=lambda: (0, 0), data=data)) as made, mock.patch("fcntl.ioctl", return_value=index):
            m.attach_filter(sock, m.FROM_SERVER)
        code = list(struct.iter_unpack("=HBBI", made.call_args[0][1]))
        for who, interface, passes in ((0, 7, True), (m.PACKET_OTHERHOST, 7, False), (0, 8, False), (1, 7, True)):
            kernel = {m.BPF_PACKET_TYPE: who, m.BPF_INTERFACE: interface}
            self.assertEqual(bool(self.run_filter(code, frame, kernel)), passes, (who, interface))

    def run_filter(self, code, frame, kernel):
        """Quantos bytes do quadro o programa deixa passar: as cinco instruções de BPF que usamos."""
        m, value, at = self.client_module, 0, 0
        while code[at][0] != m.BPF_RETURN:
            operation, equal, other, k = code[at]
            at += 1
            if operation in (m.BPF_LOAD_BYTE, m.BPF_LOAD_WORD):
                size = {m.BPF_LOAD_BYTE: 1, m.BPF_LOAD_WORD: 4}[operation]
                value = kernel[k] if k in kernel else int.from_bytes(frame[k:k + size], "big")
            elif operation == m.BPF_AND:
                value &= k
            else:
                at += equal if value == k else other
        return code[at][3]

    def test_whose_root_this_is(self):
        """S5: só o mapa de um usuário é `unshare -r`; P6: um mapa vazio não é nenhum."""
        m = self.client_module
        for text, own in (("0 1000 1\n", True), ("0 0 4294967295\n", False), ("0 100000 65536\n", False), ("", False),
                          ("0 1000 1\n1 100000 65536\n", False)):
            with mock.patch.object(m, "open", mock.mock_open(read_data=text), create=True):
                self.assertEqual(m.is_own_namespace(), own, text)

    def test_interface_that_cannot_do(self):
        """P6: um MTU em que nada cabe é dito antes do primeiro quadro."""
        m = self.client_module
        for mtu in (24, 128):
            now = m.Interface(m.IFF_UP, bytes(6), mtu, m.ARPHRD_ETHER)
            self.assertIn(f"só cabem {mtu} bytes", m.explain_interface("eth0", now))

    def test_port_of_a_bridge(self):
        """C6: a porta de uma ponte é dita antes do primeiro quadro; e /sys, que pode ser de outra rede, não conta."""
        self.make_bridge()
        self.lab.ip("link", "set", "x0", "master", "br7")
        result = self.run_script("raw_client.py", "x0", "listar", prefix=self.lab.prefix)
        self.assert_one_line_error(result, "x0 é uma porta da ponte br7")

    def test_what_netlink_says(self):
        """C6: da resposta do kernel, a ponte; de outro dono (bond), de nenhum, ou sem resposta, nenhuma."""
        def attribute(kind, value):
            return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

        m = self.client_module
        port, bond = (attribute(18, attribute(1, b"veth\0") + attribute(4, kind)) for kind in (b"bridge\0", b"bond\0"))
        name, master = attribute(3, b"x0\0"), attribute(10, struct.pack("i", 7))
        with mock.patch("socket.if_nametoindex", return_value=3), \
                mock.patch("socket.if_indextoname", side_effect={7: "br0"}.get), mock.patch("socket.socket") as kernel:
            receive = kernel.return_value.__enter__.return_value.recv
            for answer, bridge in ((name + master + port, "br0"), (port + master, "br0"), (name + master + bond, ""),
                                   (name, ""), (b"", ""), (b"\0\0\xff\xff" * 9, "")):
                receive.return_value = bytes(32) + answer
                self.assertEqual(m.bridge_of("x0"), bridge, answer)
            receive.side_effect = PermissionError(errno.EPERM, "netlink barrado")
            self.assertEqual(m.explain_bridge("x0"), "")

    def test_nobody_and_why(self):
        """N15, N21: sem conexão, no Wi-Fi e em lo, cada um com o seu próximo passo."""
        m, net = self.client_module, self.home / "net"
        (net / "wlan1" / "phy80211").mkdir(parents=True)
        client = self.bare_client(interface="wlan1", sock=None)
        driver = mock.patch.object(m, "driver_of", return_value="")
        driver.start()
        self.addCleanup(driver.stop)
        with mock.patch.object(m, "NET_FOLDER", str(net)):
            self.assertRegex(client.explain_nobody(),
                             "isolar os clientes.*--servidor MAC.*Suba um: sudo ./raw_server.py wlan1")
            client.wanted = bytes(6)
            self.assertRegex(client.explain_nobody(), "isolar os clientes: tente um cabo, ou o servidor do lado dele")
            client.carrier = False
            self.assertRegex(client.explain_nobody(), "wlan1, que está sem conexão: confira o cabo, ou a rede Wi-Fi$")
        client = self.bare_client(interface="lo", sock=None)
        with mock.patch("socket.if_nameindex", return_value=[(1, "lo"), (2, "eth0")]), \
                mock.patch.object(sys, "argv", ["raw_client.py", "listar", "--espera", "1"]):
            self.assertIn("sudo ./raw_client.py eth0 listar --espera 1", client.explain_nobody())

    def test_no_carrier_is_said_and_waited_for(self):
        """N21: interface ligada e sem fio: uma linha, e a espera continua, que o fio pode vir."""
        if "b1" not in self.lab.sockets:
            self.skipTest("sem pares veth aqui")
        self.film()
        self.lab.ip("link", "set", "b1", "down")
        client = self.spawn_client("b0", "listar", "--espera", "30", status=0)
        client.expect_error("b0 está sem conexão: confira o cabo, ou a rede Wi-Fi")
        self.lab.ip("link", "set", "b1", "up")
        with contextlib.suppress(OSError):  # o aviso de que b1 caiu
            self.links[2].recv(1, socket.MSG_DONTWAIT)
        self.relay()
        self.serve(interface="a0")
        self.assertEqual(client.wait(), 0, client.errors())


class TestRawClientProgress(RawClientTestCase):
    """Os comandos, e o que deles se vê."""

    def test_list_goes_on_without_the_silent_one(self):
        """`listar`: um servidor que calou, lotado ou torto não esconde os outros, mas conta no estado de saída."""
        m = self.client_module
        servers = [m.Offer(bytes([2, 0, 0, 0, 0, at]), b"", b"", "vm", 0, 0) for at in range(4)]
        client = mock.Mock(target=None)
        client.find = lambda everyone=False: servers if everyone else [(client.target, "outra oferta")]
        ends = [m.Silence(m.GONE), m.Failure(m.REASONS[m.FULL]), m.ProtocolError("x"), None]
        with mock.patch.object(m, "show_catalog", side_effect=ends) as shown, \
                self.assertRaisesRegex(m.Failure, "02:00:00:00:00:00: .*calou.*:01: .*lotado.*:02: x"):
            m.list_all(client, None)
        self.assertEqual(shown.mock_calls, [mock.call(client, servers[0])] + [  # a oferta de antes já não vale
            mock.call(client, (server.mac, "outra oferta")) for server in servers[1:]])

    def test_twisted_catalog(self):
        good = b"7 1700000000000000000 um nome\0" + b"0 -1 outro\0" + b"0 0 \x1b]0;x\x07\0"
        for bad in (b"lixo\0", b"1 x nome\0", b"9" * 400 + b" 1 n\0", b"\0\0", b"-5 1 n\0", b"1 1 \0", b"1 1 cortado"):
            client, said = self.bare_client(enter=mock.Mock()), io.StringIO()
            client.fetch = lambda name, sink: sink.write([memoryview(good + bad)])
            with contextlib.redirect_stdout(said):
                self.assertEqual(self.client_module.show_catalog(client, None)[:2], ["um nome", "outro"], bad)
            self.assertNotIn("\x1b", said.getvalue())

    def test_wrong_digest_in_a_pipe(self):
        """O que vai a um cano já foi; que pelo menos o estado de saída diga que chegou errado."""
        client = self.bare_client(open=mock.Mock(), close=mock.Mock())
        with self.assertRaisesRegex(self.client_module.Failure, "SHA-256 não confere"):
            client.fetch(b"x", self.client_module.Memory())

    def test_progress_fits_and_goes_away(self):
        """A barra cabe em qualquer terminal, e não fica nele depois de um erro."""
        m, screen = self.client_module, io.StringIO()
        screen.isatty = lambda: True
        transfer = self.bare_transfer(drain=mock.Mock(side_effect=[(8, 0), m.Silence]))
        with contextlib.redirect_stderr(screen), mock.patch.object(m, "clock", itertools.count(0, 200_000).__next__), \
                mock.patch("os.get_terminal_size", return_value=os.terminal_size((40, 24))), \
                self.assertRaises(m.Silence):
            transfer.run(m.Memory(), "um nome de filme bem comprido.mp4")
        _, shown, after = screen.getvalue().split("\r")
        self.assertRegex(shown, r"^um nome de filme bem com +0% \[")
        self.assertLess(len(shown[:-len("\x1b[K")]), 40)
        self.assertEqual(after, "\x1b[K")

    def test_human_sizes(self):
        for size, text in ((0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (512 << 10, "512.0 KiB"),
                           (1 << 20, "1.0 MiB"), (5 << 40, "5120.0 GiB")):
            self.assertEqual(self.client_module.human(size), text)

    def test_menu(self):
        data = self.film()
        server = self.serve()
        client = self.spawn_client(tty=True, status=0)
        client.expect("filme.bin")
        client.type("b 1\n")
        client.expect("s: sair > ")
        client.expect("s: sair > ")
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)
        client.type("m olá do menu\n")  # o stderr não é um terminal: nada de "entregue"
        server.expect("diz: olá do menu")
        client.expect("s: sair > ")
        client.type("t 9\nb ²\nb 1\n1\n")
        client.expect_error("não entendi(.|\n)*não entendi(.|\n)*já existe. Outro lugar se dá com b N ARQUIVO\n"
                            "(.|\n)*digite b 1 [(]baixar")
        client.type("b 1 outra cópia.bin\n")
        client.expect_error("outra cópia.bin: .*confere")
        self.assertEqual((self.home / "outra cópia.bin").read_bytes(), data)
        client.type("s\n")
        self.assertEqual(client.wait(), 0)
        client = self.spawn_client(tty=True, status=0)
        client.expect("s: sair > ")
        client.type(b"\4")
        client.expect("\r\n")
        self.assertEqual(client.wait(), 0)

    def test_command_line(self):
        for words, said in ((("lo", "voar"), "voar"), (("baixar",), "baixar pede"), (("listar", "x"), "não leva"),
                            (("medir", "muito"), "segundos"), (("--servidor", "xx", "listar"), "MAC"),
                            (("--espera", "nan", "listar"), "segundos"),
                            (("tocar", "x", "--player", "cat 'x"), "--player"),
                            (("tocar", "x", "-o", "y"), "só valem com baixar"),
                            (("medir", "--sobrescrever"), "só valem com baixar"),
                            (("baixar", "x", "--player", "mpv"), "só valem com baixar")):
            said_by_parser = io.StringIO()
            with contextlib.redirect_stderr(said_by_parser), self.assertRaises(SystemExit) as end:
                self.client_module.build_parser().parse_args(list(words))
            self.assertEqual((end.exception.code, said_by_parser.getvalue().count("\n")), (2, 1))
            self.assertIn(said, said_by_parser.getvalue())
        for word, whom in (("listar", "todos"), ("baixar", "o que responder antes")):
            self.assertIn(f"só este (padrão: {whom})", self.client_module.build_parser().commands[word].format_help())
        self.assert_one_line_error(self.client(status=1), "sem terminal")
        self.assert_one_line_error(self.run_script("raw_client.py", "lista"), "'lista' não é um comando", "--help")
        result = self.run_script("raw_client.py", "mensagem", "oi, sala", prefix=without_raw())
        self.assert_one_line_error(result, "CAP_NET_RAW", "sudo ./raw_client.py mensagem 'oi, sala'\n")

    def test_dates_of_no_calendar(self):
        """L7: uma data de 20 algarismos, de antes de 1677 ou de depois de 2262 não esconde a linha nem as outras."""
        listing = b"".join(b"7 %s n%d\0" % (date, at) for at, date in enumerate(
            [b"-99999999999999999999", b"99999999999999999999", b"-9223372036854775808", b"0"]))
        client, said = self.bare_client(enter=mock.Mock()), io.StringIO()
        client.fetch = lambda name, sink: sink.write([memoryview(listing)])
        with contextlib.redirect_stdout(said):
            self.assertEqual(self.client_module.show_catalog(client, None), ["n0", "n1", "n2", "n3"])
        self.assertEqual(said.getvalue().count("1969-12-31") + said.getvalue().count("1970-01-01"), 3)

    def test_numbers_only_where_they_serve(self):
        """N11: `listar` não numera, que `baixar 3` não é o terceiro; o menu numera."""
        m, listing = self.client_module, b"7 0 um\0"
        client = self.bare_client(enter=mock.Mock(), fetch=lambda name, sink: sink.write([memoryview(listing)]))
        for numbered, line in ((False, "^       7 B"), (True, "^   1        7 B")):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                m.show_catalog(client, None, numbered)
            self.assertRegex(said.getvalue().splitlines()[1], line)

    def test_words_in_the_wrong_place(self):
        """N14: o comando antes da interface, uma palavra a mais: dito, com a ordem certa pronta para digitar."""
        m = self.client_module
        for words, right in ((["listar", "eth0"], "./raw_client.py eth0 listar"),
                             (["baixar", "um filme", "eth0"], "./raw_client.py eth0 baixar 'um filme'"),
                             (["medir", "3", "eth0", "--verbose"], "./raw_client.py eth0 medir 3")):
            said = io.StringIO()
            with contextlib.redirect_stderr(said), self.assertRaises(SystemExit):
                m.build_parser().parse_args(words)
            self.assertIn(right, said.getvalue())
            m.build_parser().parse_args(shlex.split(right[len("./raw_client.py"):]))  # e digitado, serve

    def test_name_of_no_file(self):
        """N14: baixar "" gravaria o catálogo como um filme, e baixar / são os zeros da medição: nem um nem outro."""
        for command, name in itertools.product(("baixar", "tocar"), ("", "/")):
            result = self.client(command, name, status=2)
            self.assert_one_line_error(result, f"{name!r} não é o nome de um arquivo", status=2)
        self.client("baixar", "", "-o", "q", status=2)
        self.assertEqual(sorted(os.listdir(self.home)), ["videos"])

    def test_options_anywhere(self):
        """Cada comando é um parser, e cada linha de antes ainda vale: opções antes, depois e no meio."""
        m = self.client_module
        for words in (["lo", "baixar", "x", "-o", "y", "--espera", "3"],
                      ["-o", "y", "--espera", "3", "lo", "baixar", "x"],
                      ["lo", "-o", "y", "baixar", "--espera=3", "x"], ["--espera", "3", "baixar", "x", "-oy"],
                      ["--espe", "3", "baixar", "-o", "y", "--", "x"]):
            args = m.build_parser().parse_args(words)
            self.assertEqual((args.interface, args.action, args.word, args.saida, args.espera),
                             ("lo", m.download, "x", "y", 3.0), words)
        args = m.build_parser().parse_args(["--verbose", "eth1"])
        self.assertEqual((args.interface, args.action, args.verbose, args.word), ("eth1", m.menu, True, None))
        self.assertEqual(m.build_parser().parse_args(["medir"]).word, 3.0)
        self.assertEqual(m.build_parser().parse_args(["baixar", "--", "-x"]).word, "-x")
        for name, own in (("baixar", "--sobrescrever"), ("tocar", "--player")):
            for command in m.build_parser().commands.values():
                self.assertEqual(own in command.format_help(), command.prog.endswith(name))


    def stop_screen(self, child):
        """Ctrl+S no terminal do filho, até o kernel dizer que ele não aceita mais nada."""
        terminal = os.open(f"/proc/{child.pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
        self.addCleanup(os.close, terminal)
        deadline = time.monotonic() + WATCHDOG_S
        while select.select([], [terminal], [], 0)[1]:
            self.assertLess(time.monotonic(), deadline, "o terminal não parou")
            child.type("\x13")
            time.sleep(0.01)

    def test_stopped_terminal(self):
        """P4: um terminal parado (Ctrl+S) não prende quem recebe um SIGTERM, em nenhum comando."""
        # Grande, para não acabar antes do SIGTERM; mas o servidor recusa o que não cabe no disco do cliente.
        with open(self.videos / "filme.bin", "wb") as film:
            film.truncate(min(4 << 30, shutil.disk_usage(self.home).free // 2))
        for words, tty, last in ((["listar"], True, "-> FIM"), (["menu"], True, "-> FIM"),
                                 (["medir", "0.1"], True, "(?s)-> ABRE.*-> ABRE"), (["mensagem"], True, "<- FALA"),
                                 (["baixar", "filme.bin", "-o", "x"], "all", None)):
            with self.subTest(words):
                # Antes do servidor: o terminal para antes da primeira linha.
                client = self.spawn_client("--espera", "30", *["--verbose"][:tty is True], *words, tty=tty, status=130)
                if tty == "all":
                    client.expect("espero um servidor")
                else:
                    client.expect_error("espero um servidor")
                self.stop_screen(client)
                server = self.serve(tty=True)
                if last:
                    client.expect_error(last)
                else:
                    partial = self.home / "x.parcial"
                    self.until(lambda: partial.exists() and partial.stat().st_size > 0, "o parcial cresce")
                if words == ["mensagem"]:
                    client.type("oi\n")
                    server.expect("diz: oi")
                    server.type("resposta\n")
                    client.expect_error("<- FALA.*resposta")
                self.until(lambda: self.asleep(client), "a escrita que não acaba")
                client.kill(signal.SIGTERM)
                self.assertEqual(client.wait(), 130)
                self.stop(server)

    @staticmethod
    def asleep(child):
        """O filho dorme, e não num poll()? (Onde o kernel não diz em quê, basta que durma.)"""
        proc = pathlib.Path(f"/proc/{child.pid}")
        return (proc / "stat").read_text().rpartition(")")[2].split()[0] == "S" \
            and "poll" not in (proc / "wchan").read_text()


class TestRawClientIndexFirst(RawClientTestCase):
    """Tocar enquanto chega."""

    def test_player_slow_then_done(self):
        """Um tocador em pausa: a janela fecha, a memória não cresce, e a sessão não morre de silêncio."""
        with open(self.videos / "filme.bin", "wb") as film:
            film.truncate(150 << 20)
        os.mkfifo(self.home / "fifo")
        (self.home / "player.py").write_text(
            "import sys\nfirst = sys.stdin.buffer.read(10)\nopen('fifo').read()\nsize = 10\n"
            "for piece in iter(lambda: sys.stdin.buffer.read(1 << 20), b''):\n    size += len(piece)\nprint(size)\n")
        self.serve(constants={"SILENCE_US": 1_000_000})
        client = self.spawn_client("tocar", "filme.bin", "--player", f"{sys.executable} player.py", status=0,
                                   constants={"SILENCE_US": 1_000_000})
        with open(self.home / "fifo", "w"):  # só abre quando o tocador já parou de ler
            meter, paused = Meter(client), time.monotonic()
            self.until(lambda: meter.rss() > 16 << 20 and time.monotonic() > paused + 2, "a janela enche, e se espera")
            self.assertLess(meter.rss(), 64 << 20)
        client.expect(f"^{150 << 20}$")
        self.assertEqual(client.wait(), 0)

    def test_player_that_closes_or_does_not_exist(self):
        self.film(size=3_000_000)
        self.serve()
        result = self.client("tocar", "filme.bin", "--player", "head -c 5", constants={"PLAYED_S": 0})
        self.assertIn("fechou antes do fim", result.err)
        result = self.client("tocar", "filme.bin", "--player", "sh -c 'cat >&2; exit 3'", status=1)
        self.assertIn("o tocador sh acabou com o estado 3", result.err)
        result = self.client("tocar", "filme.bin", "--player", "nao-existe -", status=1)
        self.assert_one_line_error(result, "apt install")

    def test_player_that_played_nothing(self):
        """N3: estado 0 em instantes, sem ter lido tudo, ou de um tocador conhecido: não se dá por tocado."""
        self.film(size=3_000_000)
        self.serve()
        vlc = self.home / "vlc"
        vlc.write_text("#!/bin/sh\nexec cat > /dev/null\n")
        vlc.chmod(0o755)
        for player in "true", "head -c 5", "./vlc":
            words = "tocar", "filme.bin", "--player", player
            result = self.client(*words, status=1, constants={"PLAYED_S": 1000})
            self.assert_one_line_error(result, player.split()[0], "não deve ter tocado nada")
            self.client(*words, constants={"PLAYED_S": 0})
        # O que não é um tocador, e leu tudo, fez o seu trabalho.
        self.client("tocar", "filme.bin", "--player", "sh -c 'cat >/dev/null'", constants={"PLAYED_S": 1000})

    @staticmethod
    def box(kind, *bodies, wide=False):
        """Uma caixa: tamanho, tipo, corpo; wide: com o tamanho em 64 bits."""
        body = b"".join(bodies)
        if wide:
            return struct.pack("!I4sQ", 1, kind, len(body) + 16) + body
        return struct.pack("!I4s", len(body) + 8, kind) + body

    def movie(self, offsets, kind=b"stco", image=b"imagem", wide=False):
        """Um MP4 de mentira, com o índice no fim: (começo, mdat, moov)."""
        letter = {b"stco": "I", b"co64": "Q"}[kind]
        table = struct.pack(f"!II{len(offsets)}{letter}", 0, len(offsets), *offsets)
        box = self.box
        moov = box(b"moov", box(b"mvhd", bytes(100)), box(b"trak", box(b"mdia", box(b"minf", box(b"stbl",
                   box(b"stts", bytes(8)), box(kind, table))))))
        return box(b"ftyp", b"isom") + box(b"free"), box(b"mdat", image, wide=wide), moov

    def test_where_the_index_is(self):
        """P1: pelas caixas do começo se sabe se o filme toca de um cano (ISO/IEC 14496-12)."""
        m, box = self.client_module, self.box
        head, mdat, moov = self.movie([20])
        _, wide, _ = self.movie([20], wide=True)
        for name, film, wanted in (
                ("índice no fim", head + mdat + moov, len(head + mdat)),
                ("tamanho de 64 bits", head + wide + moov, len(head + wide)),
                ("QuickTime antigo", box(b"wide") + mdat + moov, len(box(b"wide") + mdat)),
                ("faststart", head + moov + mdat, 0), ("em fragmentos", head + moov + box(b"moof") + mdat, 0),
                ("sem índice", head + mdat, 0), ("até o fim do arquivo", head + b"\0\0\0\0mdat" + bytes(99), 0),
                ("matroska", b"\x1aE\xdf\xa3" + bytes(60), 0), ("avi", b"RIFF\0\1\2\3AVI LIST" + bytes(60), 0),
                ("ts", b"G@\0\x10" * 40, 0), ("mp3", b"ID3\4\0\0\0\0\0\0" * 9, 0), ("ogg", b"OggS\0\2" + bytes(60), 0),
                ("vazio", b"", 0), ("caixa impossível", b"\0\0\0\4ftyp" + bytes(99), 0)):
            self.assertEqual(m.find_tail(film, len(film)), wanted, name)
        self.assertEqual(m.find_tail((head + mdat + moov)[:len(head) + 8], 10**6), len(head + mdat))

    def test_moved_index(self):
        """P1: cada endereço anda o tamanho do índice; o que não se pode mover é dito."""
        m = self.client_module
        for kind, letter in ((b"stco", "I"), (b"co64", "Q")):
            head, mdat, moov = self.movie([20, 22, 24], kind)
            tail = self.box(b"free", b"x") + moov
            start, end = m.find_index(tail)
            moved = m.move_index(tail[start:end], len(head + mdat))
            self.assertEqual(moved[:-len(moov) + 8] + moved[8:], moov[:8] + moved[8:])
            self.assertEqual(struct.unpack(f"!3{letter}", moved[-3 * struct.calcsize(letter):]),
                             tuple(at + len(moov) for at in (20, 22, 24)))
            self.assertEqual(len(moved), len(moov))
            for cut in range(9, len(moov)):
                with contextlib.suppress(ValueError):
                    m.move_index(moov[:cut], 10**6)
        for moov, limit in ((self.movie([20])[2], 20), (self.movie([2**32 - 10])[2], 2**40), (self.box(b"moov"), 9)):
            self.assertRaises(ValueError, m.move_index, moov, limit)
        rng = random.Random(SEED)
        for _ in range(2000):
            bent = bytearray(self.movie([20])[2])
            bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
            with contextlib.suppress(ValueError):
                m.move_index(bytes(bent), 10**6)

    def test_index_at_the_end_plays(self):
        """P1: o tocador recebe o índice primeiro, e cada endereço aponta para o byte que apontava."""
        image = random.Random(SEED).getrandbits(8 * 300_000).to_bytes(300_000, "little")
        head, mdat, moov = self.movie([32, 5000, 200_000], image=image)
        film = head + mdat + moov
        (self.videos / "celular.mp4").write_bytes(film)
        self.serve()
        self.client("tocar", "celular.mp4", "--player", "sh -c 'cat > recebido'")
        got = (self.home / "recebido").read_bytes()
        self.assertEqual(len(got), len(film))
        self.assertEqual(got, head + got[len(head):len(head + moov)] + mdat)
        for at, moved in zip((32, 5000, 200_000), struct.unpack("!3I", got[len(head + moov) - 12:len(head + moov)])):
            self.assertEqual(got[moved:moved + 50], film[at:at + 50])

    def test_index_that_cannot_be_moved(self):
        """P1, N3: o que não tocaria é dito antes, com o que fazer; e o estado não é 0."""
        head, mdat, moov = self.movie([10**6])
        (self.videos / "longe.mp4").write_bytes(head + mdat + moov)
        self.serve()
        result = self.client("tocar", "longe.mp4", "--player", "sh -c 'cat >/dev/null'", status=1)
        self.assert_one_line_error(result, "índice no fim", "./raw_client.py lo baixar longe.mp4")

    def test_any_cut_of_the_stream(self):
        """Os lotes cortam o filme onde querem: o que sai do cano é sempre o mesmo."""
        m, film = self.client_module, bytes(range(100))
        for step in (1, 3, 7, 50, 100):
            sink, got = m.IndexFirst.__new__(m.IndexFirst), bytearray()
            vars(sink).update(at=10, index=b"INDICE", end=90, size=0, hash=hashlib.sha256(), push=got.extend)
            for at in range(0, 100, step):
                sink.write([film[at:at + step]])
            self.assertEqual(got, film[:10] + b"INDICE" + film[10:90], step)
            self.assertEqual((sink.size, sink.hash.digest()), (100, hashlib.sha256(film).digest()))

    def test_player_words(self):
        """N1, N2, N12: o "-" é nosso, o mpv não abre janela à força, e o filme nunca chega ao console do VLC. N3: nem
        atrás de outro programa; de um sh -c, em que não se põe nada, é recusado."""
        m = self.client_module
        with mock.patch("shutil.which", return_value="/usr/bin/x"):
            for words, wanted in ((None, "mpv -"), ("mpv", "mpv -"), ("mpv --mute", "mpv --mute -"),
                                  ("vlc", "vlc --intf=dummy --play-and-exit -"),
                                  ("vlc -I rc -", "vlc -I rc --intf=dummy -"),
                                  ("/usr/bin/cvlc -f", "/usr/bin/cvlc -f --intf=dummy -"),
                                  ("ffplay", "ffplay -autoexit -loglevel error -i -"), ("head -c 5", "head -c 5"),
                                  ("env cvlc -", "env cvlc --intf=dummy -"), ("rvlc -", "rvlc --intf=dummy -"),
                                  ("nice -n 5 mpv", "nice -n 5 mpv -"),
                                  ("flatpak run org.videolan.VLC",
                                   "flatpak run org.videolan.VLC --intf=dummy --play-and-exit -"),
                                  ("sh -c 'mpv -'", "sh -c mpv -"),
                                  ("sh -c 'vlc --intf=dummy -'", "sh -c vlc --intf=dummy -")):
                self.assertEqual(" ".join(m.player_command(words and shlex.split(words))), wanted)
            for line in ("cvlc -", "cat | /usr/bin/vlc -"):
                with self.assertRaisesRegex(m.Failure, "console.*--player 'vlc -'"):
                    m.player_command(["sh", "-c", line])

    def test_no_player_is_left_behind(self):
        """N2: depois de Ctrl+C, nem um tocador que não quer acabar fica."""
        self.film()
        self.serve()
        (self.home / "surdo.py").write_text(
            "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "sys.stdin.buffer.read()\nprint('pid', os.getpid(), flush=True)\ntime.sleep(600)\n")
        client = self.spawn_client("tocar", "filme.bin", "--player", f"{sys.executable} surdo.py", status=130,
                                   constants={"PLAYER_S": 0.1})
        pid = int(client.expect(r"pid (\d+)\n")[1])
        client.kill(signal.SIGINT)
        self.assertEqual(client.wait(), 130)
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)


class TestRawServerEnlaceRuim(RawTestCase):
    """Dois pares veth e, entre eles, um fio que perde, repete, troca a ordem, vira bits e enche até 60 bytes."""

    def copy(self, size, key=(), **damage):
        data, relay = self.film(size=size), self.relay(**damage)
        server = self.serve(*key, interface="a0")
        self.client("b0", "baixar", "filme.bin", "--sobrescrever", *key)
        self.assertEqual((self.home / "filme.bin").read_bytes(), data, SEED)
        return server, relay

    def test_damaged_wire(self):
        _, relay = self.copy(600_000, lose=0.3, double=0.05, swap=0.05, flip=0.05)
        for what in ("lost", "doubled", "swapped", "flipped"):
            self.assertGreater(relay.counts[what], 0, relay.counts)

    def test_damaged_wire_with_a_key(self):
        (self.home / "chave").write_bytes(b"k" * 32)
        self.copy(300_000, ("--chave-arquivo", self.home / "chave"), lose=0.1, double=0.1, swap=0.1, flip=0.1)

    def test_clean_wire_talks_little(self):
        _, relay = self.copy(1_000_000)
        self.assertLess(relay.counts["seen"], 4 * 1_000_000 // 1476)

    def test_messages_over_a_damaged_wire(self):
        self.relay(lose=0.2, double=0.2, swap=0.1, flip=0.1)
        server = self.serve(interface="a0", tty=True)
        client = self.spawn_client("b0", "mensagem", status=0)
        lines = [f"linha {at} " + "ç" * 300 * at for at in range(4)]
        client.type("".join(line + "\n" for line in lines))
        for line in lines:
            server.expect("diz: " + line + "\r?\n")  # cada uma, uma vez, na ordem
        server.type("e eu respondo\n")
        client.expect("diz: e eu respondo\n")
        client.stdin.close()
        self.assertEqual(client.wait(), 0)

    def test_cut_cable_ends_with_a_clear_error(self):
        self.film(size=5_000_000)
        relay = self.relay()
        self.serve(interface="a0", constants={"SILENCE_US": 500_000})
        client = self.spawn_client("b0", "baixar", "filme.bin", "--espera", "0.5", status=1,
                                   constants={"SILENCE_US": 300_000})
        partial = self.home / "filme.bin.parcial"
        self.until(lambda: partial.exists() and partial.stat().st_size > 0, "o parcial cresce")
        relay.cut = True
        self.assertEqual(client.wait(), 1)
        self.assertRegex(client.errors(), "parcial: o mesmo comando continua dali\n.*nenhum servidor respondeu")
        self.assertGreater(partial.stat().st_size, 0)

    def test_two_servers(self):
        """Um em cada ponta do fio: `listar` mostra os dois que ouve, e --servidor escolhe."""
        self.film("daqui.txt", 10)
        self.relay()
        self.serve(interface="a0")
        listing = self.client("b0", "listar").text
        mac = listing.split()[0]
        self.assertIn("daqui.txt", self.client("--servidor", mac, "b0", "listar").text)
        self.assert_one_line_error(self.client("--servidor", "02:00:00:00:00:99", "b0", "listar", "--espera", "0.3",
                                               status=1), "nenhum servidor")


class TestRawServerRedes(RawTestCase):
    """As redes que se encontram, e a interface que muda com a cópia no meio: uma rede nova para cada teste."""

    def setUp(self):
        self.lab = RawLab()
        self.addCleanup(self.lab.close)
        super().setUp()
        if "b1" not in self.lab.sockets:
            self.skipTest("sem pares veth aqui")

    def net(self, *lines):
        """Faz a rede, uma linha de ip(8) de cada vez; o que este kernel não sabe fazer pula o teste."""
        for line in lines:
            done = subprocess.run([*self.lab.prefix, "ip", *line.split()], stderr=subprocess.PIPE)
            if done.returncode:
                self.skipTest(f"ip {line}: {done.stderr.decode().strip()}")

    def copy(self, here, there, size=3_000_000):
        """Um servidor em `here`, e uma cópia inteira por `there`."""
        data = self.film(size=size)
        server = self.serve(interface=here)
        self.client(there, "baixar", "filme.bin", "--sobrescrever")
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)
        return server

    @contextlib.contextmanager
    def copying(self, here, there, status=0):
        """Uma cópia a caminho, para o que acontece no meio dela: (servidor, espera por mais bytes). Acaba inteira."""
        data, partial = self.film(size=40_000_000), self.home / "filme.bin.parcial"
        server = self.serve(interface=here, constants={"CHECK_US": 50_000, "TIMEOUT_MAX_US": 50_000}, status=status)
        client = self.spawn_client(there, "baixar", "filme.bin", status=status, constants={"SILENCE_US": 300_000})

        def more():
            size = partial.stat().st_size if partial.exists() else 0
            self.until(lambda: client.popen.poll() is not None or partial.exists() and partial.stat().st_size > size,
                       "o parcial cresce")
        more()
        self.assertIsNone(client.popen.poll(), "acabou antes do que se quer ver")
        yield server, more
        self.assertEqual(client.wait(10 * WATCHDOG_S), status, client.errors())  # o cabo emulado pode ser lento
        if not status:
            self.assertEqual((self.home / "filme.bin").read_bytes(), data)

    def test_bridge(self):
        """C6: o servidor na ponte, e atrás dela; numa porta dela, que nada ouve, ele não sobe e diz o nome da ponte."""
        self.net("link add br0 type bridge", "link set a1 master br0", "link set b1 master br0", "link set br0 up")
        self.copy("br0", "a0")
        self.copy("b0", "a0")
        self.assertEqual(self.client("a0", "listar").text.count("1 arquivo(s)"), 2)
        result = self.run_script("raw_server.py", "a1", "--pasta", self.videos, prefix=self.lab.prefix)
        self.assert_one_line_error(result, "a1 é uma porta da ponte br0", "Use br0")

    def test_vlan(self):
        """S4: a subinterface de uma VLAN serve à VLAN, e a mais ninguém: sem etiqueta, ou noutra, não há servidor."""
        self.net("link add link a0 name a0.5 type vlan id 5", "link add link a1 name a1.5 type vlan id 5",
                 "link add link a1 name a1.6 type vlan id 6",
                 "link set a0.5 up", "link set a1.5 up", "link set a1.6 up")
        self.copy("a0.5", "a1.5")
        for outside in "a1", "a1.6":
            self.assertIn("nenhum servidor", self.client(outside, "listar", "--espera", "0.5", status=1).err)
        self.copy("a0", "a1")

    def test_qinq(self):
        """Uma VLAN dentro de outra (802.1ad): a etiqueta de dentro também é do kernel."""
        for end in "a0", "a1":
            self.net(f"link add link {end} name {end}.7 type vlan proto 802.1ad id 7", f"link set {end}.7 up",
                     f"link add link {end}.7 name {end}.7.5 type vlan id 5", f"link set {end}.7.5 up")
        self.copy("a0.7.5", "a1.7.5")

    def test_macvlan(self):
        """N15: duas macvlan se ouvem, e ouvem o fio; a interface de que nasceram, nunca: o cliente diz por quê."""
        for name in "m0", "m1":
            self.net(f"link add link a0 name {name} type macvlan mode bridge", f"link set {name} up")
        self.copy("m0", "a1")
        self.copy("a0", "a1")
        self.assertEqual(self.client("a1", "listar").text.count("1 arquivo(s)"), 2)
        self.assertEqual(self.client("m1", "listar").text.count("1 arquivo(s)"), 1)
        mac = next(line.split()[0] for line in self.client("a1", "listar").text.splitlines()
                   if "1 arquivo(s)" in line and line.split()[0] not in self.client("m1", "listar").text)
        result = self.client("m1", "--servidor", mac, "listar", "--espera", "0.2", status=1)
        self.assert_one_line_error(result, "m1 é uma macvlan, que nunca ouve a interface de que nasceu")

    def test_bond_fails_over(self):
        """Um bond troca de cabo no meio da cópia, duas vezes, e ela segue."""
        self.net("link add bond0 type bond mode active-backup miimon 20", "link set a0 down", "link set b0 down",
                 "link set a0 master bond0", "link set b0 master bond0", "link set bond0 up",
                 "link add br0 type bridge", "link set a1 master br0", "link set b1 master br0", "link set br0 up")
        with self.copying("bond0", "br0") as (_, more):
            for down, up in ("a1", None), ("b1", "a1"):
                if up:
                    self.lab.ip("link", "set", up, "up")
                self.lab.ip("link", "set", down, "down")
                more()

    def test_interface_renamed(self):
        """O nome da interface muda, dos dois lados, no meio da cópia: ela é a mesma."""
        with self.copying("a0", "a1") as (_, more):
            for name in "a0", "a1":
                for words in (name, "down"), (name, "name", f"{name}novo"), (f"{name}novo", "up"):
                    self.lab.ip("link", "set", *words)
                more()
        self.assertIn("1 arquivo", self.client("a1novo", "listar").text)

    def test_interface_moved_to_another_namespace(self):
        """Entre duas redes (namespaces) copia-se; a interface levada de baixo do servidor é o fim dele, dito."""
        holder = subprocess.Popen([*self.lab.prefix, "unshare", "-n", "sh", "-c", "echo; exec cat"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(holder.wait, WATCHDOG_S)
        self.addCleanup(holder.stdout.close)
        self.addCleanup(holder.stdin.close)
        holder.stdout.readline()
        self.lab.ip("link", "set", "a1", "netns", str(holder.pid))
        there = ("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(holder.pid))
        subprocess.run([*there, "ip", "link", "set", "a1", "up"], check=True)
        data = self.film(size=3_000_000)
        server = self.serve(interface="a0", status=1, constants={"CHECK_US": 50_000, "TIMEOUT_MAX_US": 50_000})
        self.run_script("raw_client.py", "a1", "baixar", "filme.bin", prefix=there, cwd=self.home, status=0)
        self.assertEqual((self.home / "filme.bin").read_bytes(), data)
        self.lab.ip("link", "set", "a0", "netns", str(holder.pid))
        self.assertEqual(server.wait(), 1)
        self.assertRegex(server.errors(), "(?m)^raw_server.py: erro: a interface a0 sumiu.*$")

    def test_mtu_shrinks_during_the_copy(self):
        """L10: o MTU encolhe no meio da cópia, de um lado e depois do outro: procura-se o servidor, e continua-se."""
        with self.copying("a0", "a1") as (_, more):
            for name, mtu in ("a0", "1400"), ("a1", "1300"):
                self.lab.ip("link", "set", name, "mtu", mtu)
                more()

    def test_mtu_shrinks_between_messages(self):
        """L10: a mensagem seguinte já se parte no que agora cabe; se quem encolheu foi o servidor, é um erro dito."""
        server = self.serve(interface="a0")
        client = self.spawn_client("a1", "mensagem", status=1, constants={"SILENCE_US": 2_000_000})
        text = "x" * 3000
        for mtu, said in (None, text + "1"), ("600", text + "2"):
            if mtu:
                self.lab.ip("link", "set", "a1", "mtu", mtu)
            client.type(said + "\n")
            server.expect(f"diz: {said}$")
        self.lab.ip("link", "set", "a0", "mtu", "300")
        client.type(text + "\n")
        self.assertEqual(client.wait(), 1)
        self.assertRegex(client.errors(), "^raw_client.py: erro: [^\\n]*repita o comando\\n$")

    def test_mac_changes_during_the_copy(self):
        """L10: o servidor muda de MAC no meio da cópia, e depois o cliente: procuram-se, e ela continua."""
        with self.copying("a0", "a1") as (_, more):
            for name, mac in ("a0", "02:00:00:00:0a:01"), ("a1", "02:00:00:00:0a:02"):
                self.lab.ip("link", "set", name, "address", mac)
                more()

    def test_cable_pulled(self):
        """N15: o cabo sai e volta no meio da cópia: o servidor diz as duas coisas, e ela continua de onde estava."""
        self.net("link add br0 type bridge", "link set a1 master br0", "link set b1 master br0", "link set br0 up")
        with self.copying("a0", "b0") as (server, more):
            self.lab.ip("link", "set", "a1", "down")
            server.expect_error("^a0 está sem conexão")
            self.lab.ip("link", "set", "a1", "up")
            server.expect_error("^a0 tem conexão outra vez")
            more()


# ---------------------------------------------------------------------------------------------
# led_gpio.py

# Roda led_gpio.py sobre a árvore de FakeSysfs com a parte do kernel que uma pasta não tem: escrever "high" ou "low"
# em `direction` põe o nível em `value`, e escrever em `value` de uma entrada é EPERM.
LED_LOADER = LOADER.replace("script.end_process(", """
import errno, os

def with_kernel(real):
    def file(path, text=None):
        folder, name = os.path.split(path)
        if name == "value" and text is not None and real(folder + "/direction") == "in":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        result = real(path, text)
        if text is not None and os.path.exists(folder + "/value"):
            with open(folder + "/writes", "a") as writes:
                writes.write(name + "=" + text + "\\n")
        if name == "direction" and text in ("high", "low"):
            real(folder + "/value", "1" if text == "high" else "0")
            real(path, "out")
        return result
    return file
script.SysfsPin.file = staticmethod(with_kernel(script.SysfsPin.file))
script.end_process(""")


class FakePin:
    """Um pino que só lembra o que lhe escreveram."""

    bcm = 17

    def __init__(self, lit=False):
        self.lit, self.writes = lit, []

    def read(self):
        return self.lit

    def write(self, on):
        self.lit = on
        self.writes.append(on)


class FakeHouse:
    """O processo de mentira: guarda o que lhe dizem."""

    def __init__(self):
        self.ending, self.said, self.failure = False, [], None
        self.say = self.note = self.said.append

    def fail(self, error):
        self.failure, self.ending = error, True


class LedTestCase(ScriptTestCase):
    """O LED simulado, e as palavras da sua conversa."""

    led = load("led_gpio.py")

    def server(self, pin=None, house=None, secret=None, ocioso=60):
        """Um Server sobre um pino de mentira, neste processo."""
        args = types.SimpleNamespace(ocioso=ocioso, porta=5555)
        return self.led.Server(self.led.Led(pin or FakePin()), None, secret, args, house or FakeHouse())

    def parse(self, *words):
        return self.led.build_parser().parse_args(list(map(str, words)))

    def spawn(self, script, *args, constants=None, **options):
        """Com sonos mais curtos, o teste espera menos."""
        short = {"SILENCE_S": 0.05, "STEP_S": 0.05, "WAKE_S": 0.1, "RETRY_S": 0.05, "COURIER_S": 0.1}
        constants = {**short, **(constants or {})}
        return super().spawn(script, *args, constants=constants, **options)

    def command(self, script, *args, prefix=(), constants=None):
        with mock.patch.dict(globals(), LOADER=LED_LOADER):
            return super().command(script, *args, prefix=prefix, constants=constants)

    def serve(self, *args, port=0, **options):
        return self.spawn("led_gpio.py", "127.0.0.1", port, "--gpio", "simulado", *args, **options)

    def ask(self, server, command):
        """Um cliente novo, um comando, a resposta."""
        conn = self.connect(server)
        conn.send(command + b"\n")
        reply = conn.expect(b"\n")
        conn.close()
        return reply[:-1]

    def watch(self, server):
        """Um cliente que assina, e já leu o estado inicial."""
        conn = self.connect(server)
        conn.send(b"LED WATCH\n")
        conn.expect(b"OK LED OFF\n")
        return conn

    def spawn_on(self, tree, *args, **options):
        return self.spawn("led_gpio.py", "127.0.0.1", 0, "--sysfs", tree.root, *args, **options)

    def secret(self, text="uma senha de teste"):
        path = self.folder() / "senha"
        path.write_text(text + "\n")
        path.chmod(0o600)
        return path

    def button(self, port, *args, **options):
        child = self.spawn("led_gpio.py", "botao", "127.0.0.1", port, "--gpio", "simulado",
                           "--fifo", self.folder() / "fifo", *args, ready=None, **options)
        child.expect_error("à espera de toques")
        return child

    def dripping(self, head=b""):
        """Um servidor que diz head e depois um byte de cada vez, sem nunca acabar uma linha: (porta, Event do fim)."""
        done, listener = threading.Event(), socket.create_server(("127.0.0.1", 0))

        def drip():
            with contextlib.suppress(OSError), listener, listener.accept()[0] as conn:
                conn.sendall(head)
                while not done.wait(0.02):
                    conn.send(b"O")
        thread = threading.Thread(target=drip)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(done.set)
        return listener.getsockname()[1]


class FakeSysfs:
    """Uma árvore como /sys/class/gpio: `export` e `unexport` são FIFOs, e uma thread faz o papel do kernel."""

    FILES = {"direction": "in\n", "value": "1\n", "active_low": "0\n", "edge": "none\n"}

    def __init__(self, case, chips=(("gpiochip512", "pinctrl-bcm2835", 512, 54),), **lines):
        self.root, self.unexported, self.fresh = case.folder(), [], {}
        for chip in chips:
            self.chip(*chip)
        self.fds = {}
        for name in ("export", "unexport"):
            os.mkfifo(self.root / name)
            self.fds[os.open(self.root / name, os.O_RDWR)] = name
        self.wake, self.awake = os.pipe()
        self.thread = threading.Thread(target=self.kernel)
        self.thread.start()
        case.addCleanup(self.close)

    def chip(self, name, label, base, lines_count):
        (self.root / "new").mkdir()
        for file, value in (("label", label), ("base", base), ("ngpio", lines_count)):
            (self.root / "new" / file).write_text(f"{value}\n")
        (self.root / "new").rename(self.root / name)

    def kernel(self):
        while True:
            ready = select.select([*self.fds, self.wake], [], [])[0]
            if self.wake in ready:
                return
            for fd in ready:
                line = int(os.read(fd, 100))
                if self.fds[fd] == "export":
                    self.add(line, **self.fresh)
                else:
                    self.unexported.append((line, self.get(line, "value"), self.get(line, "direction")))
                    shutil.rmtree(self.root / f"gpio{line}")

    def add(self, line, **files):
        folder = self.root / "new"
        folder.mkdir()
        for name, value in {**self.FILES, **files}.items():
            (folder / name).write_text(value)
        folder.rename(self.root / f"gpio{line}")  # de uma vez, como o kernel

    def get(self, line, name):
        return (self.root / f"gpio{line}" / name).read_text().strip()

    def put(self, line, name, value):
        (self.root / f"gpio{line}" / name).write_text(value)

    def close(self):
        os.write(self.awake, b"x")
        self.thread.join()
        for fd in (*self.fds, self.wake, self.awake):
            os.close(fd)


class TestLedGpioNaive(LedTestCase):
    """O programa da docstring, que roda; e o que lhe falta, ao lado do nosso."""

    def naive(self):
        """(porta, arquivo `value`): o programa ingênuo no ar, sobre um arquivo que faz de pino."""
        value, port = self.folder() / "value", free_port()
        value.write_text("0")
        code = naive_program("led_gpio.py").replace("/sys/class/gpio/gpio17/value", str(value))
        code = code.replace("5555", str(port))
        code = code.replace("while True:", "print('escutando em 127.0.0.1', flush=True)\nwhile True:")
        child = Child(self, [*PYTHON, "-c", "import socket\n" + code], None, child_env(), False, None)
        self.addCleanup(child.cleanup)
        child.expect(READY)
        child.host, child.port = "127.0.0.1", port
        return child, value

    def test_it_lights(self):
        """Com o que manda o botão em C, e com o `echo LED ON | nc` que a docstring mostra."""
        child, value = self.naive()
        for order in (b"LED ON", b"LED ON\n"):
            value.write_text("0")
            conn = self.connect(child)
            conn.send(order)
            conn.expect_eof()
            self.assertEqual(value.read_text(), "1", order)

    def test_an_order_in_two_pieces(self):
        """O ingênuo toma um recv() por uma ordem, e perde a que chega em dois."""
        child, value = self.naive()
        for server, lit in ((child, False), (self.serve(), True)):
            conn = self.connect(server)
            conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            conn.send(b"LED")
            if not lit:
                conn.expect_eof()
                self.assertEqual(value.read_text(), "0")
            else:
                conn.send(b" ON\n")
                conn.expect(b"OK LED ON\n")

    def test_somebody_says_nothing(self):
        """Diante de um mudo, o ingênuo não atende mais ninguém."""
        child, value = self.naive()
        for server, answers in ((child, False), (self.serve(), True)):
            mute, other = self.connect(server), self.connect(server)
            other.send(b"LED ON")
            if answers:
                other.expect(b"OK LED ON\n")
            else:
                mute.close()  # só quando o mudo se vai é que o outro é ouvido
                other.expect_eof()
                self.assertEqual(value.read_text(), "1")

    def test_another_kernel(self):
        """Onde a GPIO17 é 529, o arquivo do ingênuo não existe, e a primeira ordem o derruba."""
        child, value = self.naive()
        value.unlink()
        value.parent.rmdir()
        conn = self.connect(child)
        conn.send(b"LED ON")
        conn.expect_eof()
        self.assertEqual(child.wait(), 1)
        self.assertIn("FileNotFoundError", child.errors())
        child.stderr.truncate(0)
        value.parent.mkdir()


class TestLedGpioOrder(LedTestCase):
    """As linhas e os comandos, em bytes."""

    def test_lines_whatever_the_end_and_the_packets(self):
        """Cada fim de linha, com os bytes cortados em qualquer ponto, dá as mesmas linhas."""
        data = b"LED ON\0LED OFF\nLED ON\r\n\n\0 \r\nLED TOGGLE\r"
        wanted = [b"LED ON", b"LED OFF", b"LED ON", b"LED TOGGLE"]
        for cut in range(len(data) + 1):
            first, rest = self.led.split_lines(data[:cut])
            second, rest = self.led.split_lines(rest + data[cut:])
            self.assertEqual((first + second, rest), (wanted, b""), cut)

    def test_lines_are_bounded(self):
        limit = self.led.LINE_LIMIT + 1
        lines, rest = self.led.split_lines(b"x" * 5000)
        self.assertEqual((lines, len(rest)), ([], limit))
        lines = self.led.split_lines(rest + b"\n" + b"y" * 9999 + b"\n")[0]
        self.assertEqual([len(line) for line in lines], [limit] * 2)
        self.assertEqual(self.led.understand(b"LED ON" + b" " * 5000)[0], "LED ON")

    def test_commands(self):
        table = [(b"LED ON", "LED ON", False), (b" led\t off ", "LED OFF", False), (b"LED O", None, True),
                 (b"", None, True), (b"LED ONX", None, False), (b"LED", None, True), (b"\xff\xfe", None, False),
                 (b"LED\xc2\xa0ON", None, False), (b"LED WATCH", "LED WATCH", False), (b"ON", None, False)]
        for line, command, may_grow in table:
            self.assertEqual(self.led.understand(line), (command, may_grow), line)

    def test_100000_random_and_mutated_lines(self):
        """Nada derruba as partes puras, e só os cinco comandos são comandos."""
        dice, rest, count = random.Random(SEED), b"", 0
        for _ in range(100000):
            line = bytearray(dice.choice(self.led.COMMANDS).encode()) if dice.random() < 0.7 else \
                bytearray(dice.getrandbits(8) for _ in range(dice.randrange(12)))
            for _ in range(dice.randrange(3)):
                line.insert(dice.randrange(len(line) + 1), dice.getrandbits(8))
            lines, rest = self.led.split_lines(rest + line + dice.choice((b"\n", b"\0", b"\r\n", b"")))
            for found in lines:
                command = self.led.understand(found)[0]
                self.assertIn(command, (None, *self.led.COMMANDS))
                count += command is not None
            self.assertLessEqual(len(rest), self.led.LINE_LIMIT + 1)
        self.assertGreater(count, 1000)

    def test_dialect(self):
        """S1: todo método, do começo ao primeiro fim de linha; e o que ainda pode vir a ser HTTP espera."""
        table = {
            "": (b"", b"\r\n", b"G", b"GET", b"GET ", b"GET /", b"POST /a HTTP/1.1\r"),
            "http": (b"GET / HTTP/1.1\r\n", b"GET /\n", b"\r\nPOST / HTTP/1.1\r\n\r\nLED ON\n",
                     b"OPTIONS * HTTP/1.1\r\n", b"CONNECT a:80 HTTP/1.1\r\n", b"LED /ON HTTP/1.1\n",
                     b"x-y!z http://a/ HTTP/1.0\n", b"POST /" + b"x" * 999),
            "linhas": (b"LED ON", b"LED ON\0", b"RESPOSTA abc", b"LED\n", b"x" * 999,
                       b"led  off", b"/ \n"),
            "tls": (b"\x16", b"\x16\x03\x01\nLED ON\n"),
        }
        for wanted, starts in table.items():
            for start in starts:
                self.assertEqual(self.led.dialect(start), wanted, start)



class TestLedGpioPin(LedTestCase):
    """Os três caminhos até o pino: números, sysfs (uma árvore falsa), dispositivo de caracteres, simulação."""

    def test_number_by_label_and_base(self):
        """GPIO17 é 17, 529, 588: pelo rótulo e pela base, com linhas bastantes; nunca pelo número do chip."""
        soc = [("gpiochip512", "gpio-brcmstb@107d508500", 512, 32), ("gpiochip544", "gpio-brcmstb@107d517c00", 544, 17)]
        for chips, line in (([("gpiochip0", "pinctrl-bcm2835", 0, 54)], 17),
                            ([("gpiochip512", "pinctrl-bcm2711", 512, 58)], 529),
                            (soc + [("gpiochip571", "pinctrl-rp1", 571, 54)], 588),
                            ([("gpiochip100", "pinctrl-rp1", 100, 4), ("gpiochip399", "pinctrl-rp1", 399, 54)], 416),
                            (soc, None)):
            tree = FakeSysfs(self, chips)
            args = self.parse("servidor", "--sysfs", tree.root, "--gpio", "sysfs")
            if line is None:
                with self.assertRaisesRegex(self.led.Failure, "pinctrl-rp1"), \
                        self.led.taken_pin(args, 17, True, FakeHouse()):
                    pass
            else:
                with self.led.taken_pin(args, 17, True, FakeHouse()) as pin:
                    self.assertEqual((str(pin), tree.get(line, "direction")), (f"sysfs, {line}", "low"))

    def test_led_on_a_new_kernel(self):
        """auto acha o sysfs, exporta 529, obedece, apaga e devolve a linha no fim."""
        tree = FakeSysfs(self)
        server = self.spawn_on(tree)
        server.expect_error("GPIO17: sysfs, 529")
        self.assertEqual((tree.get(529, "direction"), tree.get(529, "value")), ("out", "0"))
        for command, value in ((b"LED ON", "1"), (b"LED OFF", "0"), (b"LED TOGGLE", "1")):
            self.ask(server, command)
            self.assertEqual(tree.get(529, "value"), value)
        server.stop()
        self.assertEqual(tree.unexported, [(529, "0", "out")])

    def test_end_by_any_signal(self):
        """--ao-sair vale para qualquer sinal que encerre; --ativo-baixo inverte."""
        hangup = signal.SIGALRM if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else signal.SIGHUP  # sob nohup
        table = ((signal.SIGINT, "apagar", "0"), (hangup, "acender", "1"), (signal.SIGQUIT, "manter", "1"),
                 (signal.SIGUSR1, "apagar", "0"))
        for number, choice, value in table:
            with self.subTest(number=number):
                tree = FakeSysfs(self)
                server = self.spawn_on(tree, "--ao-sair", choice)
                self.ask(server, b"LED ON")
                server.stop(number)
                self.until(lambda: tree.unexported, "a linha ser devolvida")
                self.assertEqual(tree.unexported, [(529, value, "out")])

    def test_active_low(self):
        tree = FakeSysfs(self)
        tree.add(529, direction="out\n", value="0\n", active_low="1\n")
        server = self.spawn_on(tree, "--ativo-baixo")
        self.assertEqual((tree.get(529, "active_low"), tree.get(529, "value")), ("0", "0"))
        self.assertEqual(tree.get(529, "writes").split(), ["active_low=0", "direction=low"])
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED ON")  # estava aceso (nível 0), e aceso ficou
        self.ask(server, b"LED OFF")
        self.assertEqual(tree.get(529, "value"), "1")

    def test_line_exported_before(self):
        """A linha que já existia serve, o LED aceso não pisca (`high`, nunca `out`), e não é devolvida por nós."""
        tree = FakeSysfs(self)
        tree.add(529, direction="out\n", value="1\n")
        server = self.spawn_on(tree, "--ao-sair", "manter")
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED ON")
        self.assertEqual(tree.get(529, "writes").split(), ["active_low=0", "direction=high"])
        server.stop()
        self.assertEqual((tree.unexported, tree.get(529, "value")), ([], "1"))

    def test_fresh_line_starts_off(self):
        """Recém-exportada, a linha pode dizer `out` com um nível que ninguém pediu: o LED começa apagado."""
        tree = FakeSysfs(self)
        tree.fresh = {"direction": "out\n", "value": "0\n"}
        self.spawn_on(tree, "--ativo-baixo")
        self.assertEqual(tree.get(529, "value"), "1")

    def test_somebody_unexports_it(self):
        tree = FakeSysfs(self)
        server = self.spawn_on(tree)
        shutil.rmtree(tree.root / "gpio529")
        self.assertEqual(self.ask(server, b"LED ON"), b"OK LED ON")
        self.assertEqual(tree.get(529, "value"), "1")

    def open_with(self, failures, patience=WATCHDOG_S):
        """Abre GPIO17 numa árvore falsa em que escrever em `direction` ou `export` falha como em `failures`.

        Pela linha que se pediu espera-se o que for preciso; pela permissão nela, `patience`.
        """
        tree = FakeSysfs(self)
        def fake(path, mode="r"):
            name = os.path.basename(path)
            if mode == "w" and failures.get(name):
                code = failures[name].pop(0)
                raise OSError(code, os.strerror(code), path)
            file = open(path, mode)
            if name == "active_low":
                self.led.UDEV_S = patience
            return file
        args = self.parse("servidor", "--sysfs", tree.root, "--gpio", "sysfs")
        with mock.patch.object(self.led, "open", fake, create=True), \
                mock.patch.object(self.led, "UDEV_S", WATCHDOG_S), \
                self.led.taken_pin(args, 17, True, FakeHouse()) as pin:
            pin.write(True)
            self.assertEqual(tree.get(529, "direction"), "high")
        return tree

    def test_permission_comes_a_moment_later(self):
        """EACCES logo após o export: insiste por um tempo limitado; se não muda, diz como entrar no grupo."""
        self.open_with({"direction": [errno.EACCES] * 3})
        with self.assertRaisesRegex(self.led.Failure, "GPIO17.*usermod -aG gpio"), \
                mock.patch.object(self.led, "group_of", lambda path: "gpio"):
            self.open_with({"direction": [errno.EACCES] * 10**6}, patience=0.1)

    def test_busy(self):
        with self.assertRaisesRegex(self.led.Failure, "GPIO17.*em uso.*gpioinfo"):
            self.open_with({"export": [errno.EBUSY]})

    def test_line_is_given_back_when_opening_fails(self):
        with self.assertRaises(self.led.Failure):
            tree = FakeSysfs(self)
            args = self.parse("servidor", "--sysfs", tree.root, "--gpio", "sysfs")
            with mock.patch.object(self.led.SysfsPin, "level_now", side_effect=OSError(errno.EIO, "x")):
                with self.led.taken_pin(args, 17, True, FakeHouse()):
                    pass
        self.until(lambda: tree.unexported, "a linha ser devolvida")

    def test_chardev(self):
        """Sem sysfs, o dispositivo de caracteres com o rótulo certo, seja qual for o número; pedido de 592 bytes."""
        led, folder = self.led, self.folder()
        sizes = {led.GET_CHIPINFO: 68, led.GET_LINEINFO: 256, led.GET_LINE: 592, led.SET_CONFIG: 272,
                 led.GET_VALUES: 16}
        for layout, size in sizes.items():
            self.assertEqual((layout.struct.size, layout.number >> 16 & 0x3fff), (size, size))
        labels = {"gpiochip0": (b"gpio-brcmstb@107d508500", 32), "gpiochip4": (b"pinctrl-rp1", 54)}
        for name in labels:
            (folder / name).write_text("")
        calls, values = [], []

        def ioctl(file, operation, data):
            calls.append(operation)
            if operation == led.GET_CHIPINFO.number:
                return struct.pack("=32s32sI", b"", *labels[os.path.basename(file.name)])
            if operation == led.GET_LINE.number:
                line = led.GET_LINE.unpack(data)
                self.assertEqual((line["offset"], line["consumer"].rstrip(b"\0"), line["num_lines"], line["flags"]),
                                 (17, b"led_gpio", 1, 0x8 | 0x2))
                self.assertEqual((line["attr_id"], line["attr_value"]), (2, 0), "começa apagado")
                return data[:-4] + struct.pack("=i", os.open(os.devnull, os.O_RDWR))
            if operation == led.SET_CONFIG.number:
                config = led.SET_CONFIG.unpack(data)
                values.append((config["flags"], config["attr_value"], config["attr_lines"]))
            return data
        args, house = self.parse("servidor", "--sysfs", "/nao/existe", "--ativo-baixo"), FakeHouse()
        with mock.patch.object(led.fcntl, "ioctl", ioctl), \
                mock.patch.object(led.glob, "glob", lambda path: sorted(map(str, folder.glob(path[5:])))
                                  if path.startswith("/dev/") else []):
            with led.taken_pin(args, 17, True, house) as line:
                line.write(True)
                fd, shown = line.fd, str(line)
        self.assertRaises(OSError, os.fstat, fd)  # fechar devolve a linha
        self.assertEqual(values, [(0x8 | 0x2, 1, 1)])
        self.assertRegex(shown, "chardev.*gpiochip4")

    def test_no_chip(self):
        for kind in ("sysfs", "chardev"):
            chips = self.led.ChardevPin(self.parse("servidor"), 17, True, None).chips() if kind == "chardev" else ()
            if any(chip.label in self.led.CHIPS for chip in chips):
                self.skipTest("esta máquina é um Raspberry Pi")
            result = self.run_script("led_gpio.py", "127.0.0.1", 0, "--gpio", kind, "--sysfs", self.folder())
            self.assert_one_line_error(result, "pinctrl-rp1", "--gpio simulado")

    def test_lamp(self):
        """Cor só num terminal e sem NO_COLOR; num cano, texto limpo. O registro diz o que o programa em C dizia."""
        for tty, env, wanted in ((True, {}, "\x1b\\[1;33m\\(\\*\\) LED aceso"),
                                 (True, {"NO_COLOR": "1"}, r"^\(\*\) LED aceso\r?$"),
                                 (False, {}, r"^\(\*\) LED aceso$")):
            with self.subTest(tty=tty, env=env):
                server = self.serve(tty=tty, env=env)
                self.ask(server, b"LED ON")
                server.expect(wanted)
                server.expect_error("^LED Status: On$")
                server.stop()  # apagado no fim, e isto também se registra
                server.expect_error("^LED Status: Off$")

    def test_fifo(self):
        """Criada só para o dono, `echo 0` é um toque, some no fim; o que não for uma FIFO nossa é recusado."""
        fifo, server = self.folder() / "fifo", self.serve()
        args = ("botao", "127.0.0.1", server.port, "--gpio", "simulado", "--fifo", fifo)
        button = self.spawn("led_gpio.py", *args, ready=None, stdin=subprocess.DEVNULL)
        button.expect_error("à espera")
        self.assertEqual(stat.S_IMODE(fifo.stat().st_mode), 0o600)
        for wanted in ("ON", "OFF"):
            fifo.write_text("0\n")
            button.expect(f"^toque: LED {wanted} -> OK LED {wanted}$")
        button.stop()
        self.assertFalse(fifo.exists())

    def test_fifo_of_another_button(self):
        """A FIFO de um botão que roda não serve a outro, nem some quando o outro desiste; a de um que morreu serve."""
        fifo, server = self.folder() / "fifo", self.serve()
        args = ("botao", "127.0.0.1", server.port, "--gpio", "simulado", "--fifo", fifo)
        button = self.spawn("led_gpio.py", *args, ready=None, stdin=subprocess.DEVNULL, status=None)
        button.expect_error("à espera")
        second = self.run_script("led_gpio.py", *args)
        self.assertRegex(second.err, "erro: .*já tem quem a leia.*--fifo OUTRO\n\\Z")
        fifo.write_text("0\n")
        button.expect("^toque: LED ON -> OK LED ON$")
        button.kill()
        button.wait()
        heir = self.spawn("led_gpio.py", *args, ready=None, stdin=subprocess.DEVNULL)
        heir.expect_error("à espera")

    def test_fifo_refused(self):
        pin = self.led.SimulatedPin
        for kind in ("file", "link", "open to others", "device", "folder", "not ours"):
            with self.subTest(kind):
                path = self.folder() / "x"
                if kind == "file":
                    path.write_text("meu")
                    path.chmod(0o600)
                elif kind == "link":
                    os.mkfifo(path.with_name("y"), 0o600)
                    path.symlink_to("y")
                elif kind == "open to others":
                    os.mkfifo(path)
                    path.chmod(0o666)
                elif kind == "device":
                    path = pathlib.Path("/dev/null")
                elif kind == "folder":
                    path.mkdir(0o700)
                else:
                    if os.geteuid():
                        self.skipTest("só root cria um arquivo de outro dono")
                    os.mkfifo(path, 0o600)
                    os.chown(path, 65534, 65534)
                before = os.lstat(path)
                with self.assertRaisesRegex(self.led.Failure, f"ls -l {path}.*echo.*rm.*--fifo"):
                    pin(types.SimpleNamespace(fifo=str(path)), 4, False, None).open()
                after = os.lstat(path)
                self.assertEqual((before.st_ino, before.st_size, before.st_mode),
                                 (after.st_ino, after.st_size, after.st_mode))

    def test_another_program_leaves_it_as_an_input(self):
        """L12: cada ordem afirma sentido e nível, e o LED obedece na hora."""
        tree = FakeSysfs(self)
        server = self.spawn_on(tree)
        for command, level in ((b"LED ON", "high"), (b"LED ON", "high"), (b"LED OFF", "low")):
            tree.put(529, "direction", "in\n")
            self.assertEqual(self.ask(server, command), b"OK " + command)
            self.assertEqual((tree.get(529, "direction"), tree.get(529, "writes").split()[-1]),
                             ("out", f"direction={level}"))

    def test_no_retry_after_the_beginning(self):
        """L12: EACCES só se espera logo depois do nosso export; numa ordem, a resposta é na hora."""
        tree = FakeSysfs(self)
        args = self.parse("servidor", "--sysfs", tree.root, "--gpio", "sysfs")
        with self.led.taken_pin(args, 17, True, FakeHouse()) as pin:
            led = self.led.Led(pin)
            denied = PermissionError(errno.EACCES, "x", f"{tree.root}/gpio529/direction")
            with mock.patch.object(self.led, "open", side_effect=denied, create=True) as opened, \
                    mock.patch.object(self.led.time, "sleep") as sleep:
                self.assertRegex(led.order("LED ON", ""), "^ERRO o pino não obedeceu: .*não é deste usuário")
            self.assertEqual((opened.call_count, sleep.call_count), (1, 0))

    def test_chip_removed_and_back(self):
        """C10, P9: um chip que sai é dito em uma linha; de volta com outro número, é achado pelo rótulo."""
        tree = FakeSysfs(self)
        server = self.spawn_on(tree)
        for path in ("gpio529", "gpiochip512"):
            shutil.rmtree(tree.root / path)
        self.assertEqual(self.ask(server, b"LED ON").decode(),
                         "ERRO o pino não obedeceu: o chip da GPIO17 não está mais aqui")
        tree.chip("gpiochip600", "pinctrl-bcm2835", 600, 54)
        self.assertEqual(self.ask(server, b"LED ON"), b"OK LED ON")
        self.assertEqual(tree.get(617, "value"), "1")
        shutil.rmtree(tree.root / "gpio617")
        shutil.rmtree(tree.root / "gpiochip600")
        server.stop()
        self.assertRegex(server.errors(), "ERRO o pino não obedeceu: o chip da GPIO17 não está mais aqui\n\\Z")

    def device(self, tree, name, path, declared=False):
        """O dispositivo de um chip, em /sys/devices; declarado pela placa, tem of_node."""
        device = tree.root / "devices" / path
        device.mkdir(parents=True)
        if declared:
            (device / "of_node").mkdir()
        (tree.root / name / "device").symlink_to(device)

    def test_two_chips_with_the_same_label(self):
        """C10: o da placa vence o de teste; entre iguais, o primeiro em /sys/devices: o número não conta."""
        for first, second, declared, line in (("platform/a.2", "platform/a.10", (), 1017),
                                              ("platform/b", "platform/a", (), 17),
                                              ("platform/b", "platform/a", ("platform/b",), 1017),
                                              ("platform/b", "platform/a", ("platform/a", "platform/b"), 17)):
            tree = FakeSysfs(self, [("gpiochip1000", "pinctrl-rp1", 1000, 54), ("gpiochip0", "pinctrl-rp1", 0, 54)])
            self.device(tree, "gpiochip1000", first, first in declared)
            self.device(tree, "gpiochip0", second, second in declared)
            args = self.parse("servidor", "--sysfs", tree.root, "--gpio", "sysfs")
            with self.led.taken_pin(args, 17, True, FakeHouse()) as pin:
                self.assertEqual(str(pin), f"sysfs, {line}", (first, second, declared))

    def test_left_as_it_was_is_found_as_it_was(self):
        """C11: com --ao-sair manter, a linha que o kernel deixou acesa continua acesa, sem piscar."""
        tree = FakeSysfs(self)
        tree.fresh = {"direction": "out\n", "value": "1\n"}
        server = self.spawn_on(tree, "--ao-sair", "manter")
        self.assertEqual(tree.get(529, "writes").split(), ["active_low=0", "direction=high"])
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED ON")

    def chardev(self, *words, output=True, refused=(), files=("gpiochip0",), flags=0, level=0):
        """Toma a linha por um /dev de mentira; devolve (pin, o que o kernel ouviu), já fechado."""
        led, folder, heard = self.led, self.folder(), []
        for name in files:
            (folder / name).write_text("")

        def ioctl(file, operation, data):
            if operation == led.GET_CHIPINFO.number:
                return struct.pack("=32s32sI", b"", b"pinctrl-rp1", 54)
            if operation == led.GET_LINEINFO.number:
                return led.GET_LINEINFO.pack(name=b"", consumer=b"", flags=flags)
            if operation == led.GET_VALUES.number:
                return led.GET_VALUES.pack(bits=level)
            if operation == led.GET_LINE.number:
                heard.append(led.GET_LINE.unpack(data))
                return data[:-4] + struct.pack("=i", os.open(os.devnull, os.O_RDWR))
            heard.append(led.SET_CONFIG.unpack(data))
            return data

        def fake_open(path, mode="r"):
            if os.path.basename(path) in refused or os.path.basename(path) in ("export", "gpiochip9"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return open(path, mode)

        def fake_glob(path):
            return sorted(map(str, folder.glob(path[5:]))) if path.startswith("/dev/") else real(path)
        real = led.glob.glob
        with mock.patch.object(led.fcntl, "ioctl", ioctl), mock.patch.object(led.glob, "glob", fake_glob), \
                mock.patch.object(led, "open", fake_open, create=True):
            args = self.parse(*words)
            with led.taken_pin(args, 17 if output else args.botao, output, FakeHouse()) as pin:
                if output:
                    led.Led(pin).order("LED ON", "")
                return pin, heard

    def test_chardev_as_found(self):
        """C11 pelo chardev: a saída que já estava em 1 é pedida sem sentido, lida, e pedida em 1."""
        for flags, level, wanted in ((0x8, 1, 1), (0x8, 0, 0), (0x4, 1, 0)):
            pin, heard = self.chardev("servidor", "--sysfs", "/nao/existe", "--ao-sair", "manter",
                                      flags=flags, level=level)
            asked = [(line["flags"], line["attr_value"]) for line in heard]
            self.assertEqual(asked, [(0, 0)] * (flags == 0x8) + [(0x8, wanted), (0x8, 1)])

    def test_could_not_look_is_not_nothing_there(self):
        """L14: sem sysfs e fora do grupo, nada se simula; o grupo é o do arquivo."""
        for gpio in ("auto", "chardev"):
            with self.assertRaisesRegex(self.led.Failure, "gpiochip0 é do grupo dialout.*usermod -aG dialout"), \
                    mock.patch.object(self.led, "group_of", lambda path: "dialout"):
                self.chardev("servidor", "--sysfs", "/nao/existe", "--gpio", gpio, refused=("gpiochip0",))
        with self.assertRaisesRegex(self.led.Failure, "gpiochip0 é só do root. Com ele: sudo "), \
                mock.patch.object(self.led, "group_of", lambda path: ""):
            self.chardev("servidor", "--sysfs", "/nao/existe", refused=("gpiochip0",))

    def test_group_of(self):
        path = self.folder() / "x"
        path.write_text("")
        path.chmod(0o660)
        group = os.stat(path).st_gid
        gpio = types.SimpleNamespace(gr_name="gpio")
        with mock.patch.object(self.led.os, "stat", lambda path: types.SimpleNamespace(st_gid=1, st_mode=0o660)), \
                mock.patch.object(self.led.grp, "getgrgid", return_value=gpio):
            self.assertEqual(self.led.group_of("x"), "gpio")
        with mock.patch.object(self.led.os, "stat", lambda path: types.SimpleNamespace(st_gid=1, st_mode=0o600)):
            self.assertEqual(self.led.group_of("x"), "", "nem o grupo pode")
        if group == 0:
            self.assertEqual(self.led.group_of(str(path)), "")
        with mock.patch.object(self.led.os, "stat", lambda path: types.SimpleNamespace(st_gid=987654, st_mode=0o660)):
            self.assertEqual(self.led.group_of("x"), "987654")
        self.assertEqual(self.led.group_of("/nao/existe"), "")

    def test_a_chip_of_somebody_else_may_be_refused(self):
        """L14: o chip que não nos deixam abrir, mas que o sysfs mostra não ser o do conector, não é o que falta."""
        tree = FakeSysfs(self, [("gpiochip0", "INT34C5:00", 0, 54)])
        self.device(tree, "gpiochip0", "platform/intel")
        with mock.patch.object(self.led.os.path, "realpath", lambda path: str(tree.root / "devices/platform/intel") +
                               "/gpiochip0" * path.startswith("/sys/bus")):
            pin, heard = self.chardev("servidor", "--sysfs", tree.root, refused=("gpiochip0",))
        self.assertIsInstance(pin, self.led.SimulatedPin)

    def test_goes_on_to_the_next_path(self):
        """C2: um export que é só do root não impede de usar /dev/gpiochip0."""
        tree = FakeSysfs(self)
        pin, heard = self.chardev("servidor", "--sysfs", tree.root)
        self.assertIsInstance(pin, self.led.ChardevPin)
        self.assertEqual([line["attr_value"] for line in heard], [0, 1])
        with self.assertRaisesRegex(self.led.Failure, "export.*GPIO17|GPIO17.*export"):
            self.chardev("servidor", "--sysfs", tree.root, "--gpio", "sysfs")

    def test_what_is_not_a_chip_is_skipped(self):
        """C3: pasta, arquivo comum e nó sem dispositivo com nome de chip não impedem nada, nem num PC."""
        folder = self.folder()
        (folder / "gpiochip0").mkdir()
        (folder / "gpiochip1").write_text("")
        (folder / "gpiochip2").symlink_to("nada")
        pin = self.led.ChardevPin(self.parse("servidor", "--sysfs", "/nao/existe"), 17, True, None)
        with mock.patch.object(self.led.glob, "glob", lambda path: sorted(map(str, folder.glob("gpiochip*")))
                               if path.startswith("/dev/") else []):
            self.assertEqual(list(pin.chips()), [])

    def test_button_prefers_the_pull_up(self):
        """C1: o botão procura antes o chardev; no sysfs, um pino com pull-down é recusado, com o motivo."""
        tree = FakeSysfs(self)
        pin, heard = self.chardev("botao", "--sysfs", tree.root, "--botao", "22", output=False)
        self.assertIsInstance(pin, self.led.ChardevPin)
        self.assertEqual((heard[0]["flags"], heard[0]["offset"]), (0x2 | 0x4 | 0x30 | 0x100, 22))
        for gpio in ("auto", "sysfs"):
            with self.assertRaisesRegex(self.led.Failure, "GPIO22 nasce com pull-down.*--gpio chardev.*--botao 4"):
                self.chardev("botao", "--sysfs", tree.root, "--botao", "22", "--gpio", gpio, output=False, files=())
        self.assertEqual(list(tree.root.glob("gpio534")), [])


class TestLedGpioLed(LedTestCase):
    """O estado, e quem o quer saber."""

    def test_many_clients_one_order(self):
        """60 clientes, 20 comandos cada: nenhum se perde, e todos os que assinam veem a mesma ordem."""
        server = self.serve()
        watchers = [self.watch(server) for _ in range(3)]
        conns = [self.connect(server) for _ in range(60)]
        for i, conn in enumerate(conns):
            conn.send(b"LED TOGGLE\n" * 20)
        for conn in conns:
            for _ in range(20):
                self.assertEqual(conn.expect(b"\n")[:6], b"OK LED")
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")
        for watcher in watchers:
            for _ in range(600):
                self.assertEqual(watcher.expect(b"\n") + watcher.expect(b"\n"), b"LED ON\nLED OFF\n")

    def test_watcher_that_does_not_read_is_dropped(self):
        """Ninguém espera por quem assina e não lê: quando o buffer do kernel enche, ele é desligado, e só ele."""
        server = self.server()
        pairs = [socket.socketpair() for _ in range(2)]
        for pair in pairs:
            for sock in pair:
                self.addCleanup(sock.close)
                sock.setblocking(False)
        slow, live = (self.led.Client(server, sock, "192.0.2.7") for sock, _ in pairs)
        for client in (slow, live):
            client.obey("LED WATCH")
        pairs[1][1].recv(100)
        while not slow.lost:
            server.led.order("LED TOGGLE", "alguém")
            self.assertEqual(pairs[1][1].recv(100), b"LED ON\n" if server.led.lit else b"LED OFF\n")
        self.assertFalse(live.lost)

    def test_syslog(self):
        """A mesma marca e o mesmo texto do programa em C."""
        fake, led = mock.Mock(), self.led.Led(FakePin())
        with mock.patch.object(self.led, "syslog", fake):
            led.watch(self.led.tell_console(FakeHouse()))
            led.order("LED ON", "alguém")
            led.order("LED ON", "alguém")
            self.led.leave(led, self.parse("servidor"), FakeHouse())  # o do fim também
        self.assertEqual(fake.syslog.mock_calls, [mock.call("LED Status: On"), mock.call("LED Status: Off")])
        self.assertEqual(fake.openlog.mock_calls[0][1][0], "LED TCP")

    def test_the_pin_is_asked(self):
        """L13: outro programa mexeu no pino; STATUS, TOGGLE e quem assina sabem."""
        tree = FakeSysfs(self)
        server = self.spawn_on(tree)
        watcher = self.watch(server)
        tree.put(529, "value", "1\n")
        watcher.expect(b"LED ON\n")  # sem ninguém perguntar
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED ON")
        self.assertEqual(self.ask(server, b"LED TOGGLE"), b"OK LED OFF")
        watcher.expect(b"LED OFF\n")
        tree.put(529, "value", "1\n")
        self.assertEqual(self.ask(server, b"LED TOGGLE"), b"OK LED OFF")
        self.assertEqual(tree.get(529, "value"), "0")

    def test_who_changed_it(self):
        pin = FakePin()
        led, seen = self.led.Led(pin), []
        self.assertEqual(led.changed.who, "")
        led.watch(seen_one := lambda on, who: seen.append((on, who)))
        led.watch(seen_one)
        led.order("LED ON", "ana")
        led.order("LED ON", "bia")
        pin.lit = False
        self.assertEqual(led.order("LED STATUS", "bia"), "OK LED OFF")
        self.assertEqual(led.press("botão"), ("LED ON", "OK LED ON"))
        self.assertEqual(led.changed.who, "botão")
        led.unwatch(seen_one)
        led.order("LED OFF", "ana")
        self.assertEqual(seen, [(True, "ana"), (False, self.led.OUTSIDER), (True, "botão")])
        self.assertRegex(led.order(None, "ana"), "^ERRO use LED ON")


class TestLedGpioServer(LedTestCase):
    """A porta, e quem entra por ela."""

    def test_one_action_whatever_the_end(self):
        """NUL (o botão em C), LF, CRLF, fim da conexão, silêncio, em um pacote ou vários: uma ação cada."""
        server = self.serve()
        watcher = self.watch(server)
        for i, (packets, end) in enumerate((
                ([b"LED TOGGLE\0"], "close"), ([b"LED TOGGLE\n"], "close"), ([b"LED TOGGLE\r\n"], "wait"),
                ([b"LED TOGGLE"], "half"), ([b"LED TOGGLE"], "close"), ([b"LED TOGGLE"], "wait"),
                ([b"LED T", b"OGGLE", b"\0"], "wait"), ([b"LED TOGGLE", b"\r", b"\n"], "wait"),
                ([b"led  toggle \n\n\0"], "wait"), ([b"LED TOGGLE\0"], "reset"))):
            with self.subTest(packets=packets, end=end):
                conn = self.connect(server)
                conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for packet in packets:
                    conn.send(packet)
                wanted = b"LED OFF" if i % 2 else b"LED ON"
                if end == "half":
                    conn.half_close()
                if end in ("half", "wait"):
                    self.assertEqual(conn.expect(b"\n"), b"OK " + wanted + b"\n")
                elif end == "close":
                    conn.close()
                self.assertEqual(watcher.expect(b"\n"), wanted + b"\n")
                if end == "reset":
                    conn.reset()
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")
        self.assertEqual(watcher.data, b"")
        watcher.send(b"LED ON\n")  # quem assina também manda
        self.assertEqual(sorted([watcher.expect(b"\n"), watcher.expect(b"\n")]), [b"LED ON\n", b"OK LED ON\n"])

    def test_a_word_cut_by_silence_is_not_an_error(self):
        """`LED O` e, depois de um silêncio maior que o que encerra linhas, `FF`: um comando."""
        server = self.serve()
        conn, other = self.connect(server), self.connect(server)
        conn.send(b"LED O")
        for _ in range(2):  # duas linhas encerradas só pelo silêncio: passou mais tempo que ele
            other.send(b"LED ON")
            other.expect(b"OK LED ON\n")
        conn.send(b"FF\n")
        conn.expect(b"OK LED OFF\n")
        self.assertEqual(conn.data, b"")

    def test_rubbish(self):
        """Comando desconhecido, 1 MiB sem fim de linha, bytes ao acaso: um ERRO por linha, memória limitada."""
        server = self.serve()
        self.assertEqual(self.ask(server, b"LED PISCA")[:5], b"ERRO ")
        meter = Meter(server)
        before = meter.rss()
        conn = self.connect(server)
        conn.send(b"x" * (1 << 20) + b"\nLED ON\n")
        self.assertRegex(conn.expect(b"OK LED ON\n"), rb"\AERRO [^\n]*\nOK LED ON\n\Z")
        dice = random.Random(SEED)
        noise = bytes(dice.getrandbits(8) for _ in range(100000))
        count = sum(1 for line in re.split(rb"[\0\r\n]", noise) if line.strip())
        conn.send(noise + b"\n")
        for _ in range(count):
            self.assertTrue(conn.expect(b"\n").startswith(b"ERRO "))
        conn.send(b"LED STATUS\n")
        conn.expect(b"OK LED ON\n")
        self.assertLess(meter.rss() - before, 4 << 20)

    def test_line_that_never_ends(self):
        """L8: passado 1 MiB sem um fim de linha, um ERRO e o fim; muitas linhas compridas são só linhas."""
        server = self.serve(constants={"SILENCE_S": WATCHDOG_S})  # numa pausa, a linha acabaria
        conn = self.connect(server)
        for _ in range(3):
            conn.send(b"x" * (1 << 19) + b"\n")
            self.assertTrue(conn.expect(b"\n").startswith(b"ERRO "))
        conn.send(b"LED ON\n" + b"x" * ((1 << 20) + (1 << 16)))
        self.assertEqual(conn.expect(b"sem fim\n"), "OK LED ON\nERRO linha sem fim\n".encode())
        conn.expect_eof()
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED ON")

    def test_no_order_after_the_end(self):
        """Pedido o fim, das ordens que vieram juntas a seguinte já não vale: o LED apagado ao sair não acende."""
        house = FakeHouse()

        class Ending(FakePin):
            def write(pin, on):
                super().write(on)
                house.ending = True
        server = self.server(Ending(), house)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"LED ON\nLED OFF\nLED ON\n")
            self.led.Client(server, ours, "192.0.2.7").run()
        self.assertEqual(server.led.pin.writes, [True])

    def test_slowloris(self):
        """Um byte de cada vez, nunca uma linha: o prazo encerra; quem só assina fica."""
        server = self.serve("--ocioso", 0.5)
        watcher, slow = self.watch(server), self.connect(server)
        with contextlib.suppress(ConnectionError):
            for _ in range(20 * WATCHDOG_S):
                slow.send(b" ")
                if select.select([slow.sock], [], [], 0.02)[0]:
                    break
            else:
                self.fail("ninguém encerrou quem goteja")
        self.assertEqual(slow.expect_eof(), b"")
        self.assertEqual(self.ask(server, b"LED ON"), b"OK LED ON")
        watcher.expect(b"LED ON\n")

    def test_fifty_clients_in_any_state_and_a_restart(self):
        """SIGTERM com 50 clientes em vários estados: acaba com 0; e a mesma porta abre de novo em seguida."""
        port = free_port()
        server = self.serve("--ocioso", 60, port=port)
        conns = [self.watch(server)] + [self.connect(server) for _ in range(49)]
        for conn, data in zip(conns[1:], itertools.cycle((b"", b"LED O", b"LED STATUS\n", b"x" * 9999))):
            conn.send(data)
        conns[3].expect(b"OK LED OFF\n")
        begin = time.monotonic()
        server.stop()
        self.assertLess(time.monotonic() - begin, 10)  # promete 2 s; a folga é para uma máquina lenta
        again = self.serve(port=port)
        self.assertEqual(self.ask(again, b"LED STATUS"), b"OK LED OFF")

    def test_more_clients_than_places(self):
        """Os que não cabem esperam na fila, sem erro, e entram quando alguém sai."""
        server = self.serve(constants={"MAX_CLIENTS": 2})
        conns = [self.connect(server) for _ in range(4)]
        for conn in conns:
            conn.send(b"LED STATUS\n")
        for conn in conns[:2]:
            conn.expect(b"OK LED OFF\n")
        self.assertEqual(select.select([conn.sock for conn in conns[2:]], [], [], 0.2)[0], [], "só há dois lugares")
        for conn in conns:
            if conn not in conns[:2]:
                conn.expect(b"OK LED OFF\n")
            conn.close()

    def test_share_of_places(self):
        """Um endereço só tem a sua parte dos lugares: com ela cheia de mudos, os outros ainda entram."""
        server = self.serve(constants={"MAX_PER_SOURCE": 2})
        mute = [self.connect(server) for _ in range(3)]
        mute[2].expect_eof()
        result = self.run_script("led_gpio.py", "enviar", "ON", "127.0.0.1", server.port)
        self.assert_one_line_error(result, "sem lugar para mais esta conexão")
        with socket.create_connection((server.host, server.port), WATCHDOG_S, ("127.0.0.2", 0)) as sock:
            other = Conn(self, sock)
            other.send(b"LED ON\n")
            other.expect(b"OK LED ON\n")
        mute.pop(0).close()
        self.until(lambda: self.run_script("led_gpio.py", "enviar", "ON", "127.0.0.1", server.port).status == 0,
                   "o lugar de quem saiu ser dado a outro")

    def test_accept_without_address(self):
        """No macOS, quem desistiu antes do accept() vem sem endereço; e um accept() que só falha não gira em falso."""
        house, ours = FakeHouse(), socket.socketpair()
        for sock in ours:
            self.addCleanup(sock.close)
        ours[0].shutdown(socket.SHUT_RDWR)
        events = [(ours[1], None), OSError(errno.EMFILE, "Too many open files")]

        def accept():
            if len(events) == 1:
                house.ending = True
            if isinstance(events[0], OSError):
                raise events.pop(0)
            return events.pop(0)
        server = self.server(house=house)
        old = threading.stack_size()
        self.addCleanup(threading.stack_size, old)
        with mock.patch.object(self.led.time, "sleep") as sleep:
            server.run(types.SimpleNamespace(accept=accept, settimeout=mock.Mock()))
        sleep.assert_called_with(self.led.STEP_S)
        self.assertEqual((events, server.clients, ours[1].fileno()), ([], set(), -1))

    def test_listener_that_is_gone(self):
        """L16: um accept() que falha por outra coisa que não uma falta é o fim da porta, dito em uma linha."""
        for code in (errno.EBADF, errno.EINVAL):
            server = self.server()
            listener = types.SimpleNamespace(settimeout=mock.Mock(), accept=mock.Mock(side_effect=OSError(code, "x")))
            old = threading.stack_size()
            self.addCleanup(threading.stack_size, old)
            with self.assertRaisesRegex(self.led.Failure, "porta 5555 deixou de atender"):
                server.run(listener)

    def test_no_more_threads(self):
        """O sistema não dá mais threads: esse cliente fica de fora, e só ele."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        house = FakeHouse()
        server = self.server(house=house)
        starts, real = [], threading.Thread.start

        def start(thread):
            starts.append(thread)
            if len(starts) == 1:
                raise RuntimeError("can't start new thread")
            real(thread)
        child = types.SimpleNamespace(host="127.0.0.1", port=listener.getsockname()[1])
        old = threading.stack_size()
        self.addCleanup(threading.stack_size, old)
        with mock.patch.object(self.led, "STEP_S", 0.05), mock.patch.object(self.led, "WAKE_S", 0.05):
            accepting = threading.Thread(target=server.run, args=(listener,))
            accepting.start()
            try:
                with mock.patch.object(self.led.Client, "start", start):
                    self.assertRegex(self.connect(child).expect_eof(), b"\\A(ERRO sem lugar [^\\n]*\\n)?\\Z")
                    self.assertEqual(self.ask(child, b"LED STATUS"), b"OK LED OFF")
            finally:
                house.ending = True
                accepting.join()
        self.assertEqual(server.clients, set())

    def test_source_of(self):
        for host, wanted in (("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"),
                             ("2001:db8:1:2:3::4", "2001:0db8:0001:0002::/64"), ("::1", "0000:0000:0000:0000::/64"),
                             ("fe80::1%eth0", "fe80:0000:0000:0000::/64"),
                             ("fe80::1%eth0.10", "fe80:0000:0000:0000::/64")):  # o nome da interface de uma VLAN
            self.assertEqual(self.led.source_of(host), wanted)

    def test_http_never_reaches_the_lines(self):
        """S1: a página de outro site faz fetch() em no-cors, com ordens no corpo: o LED não se mexe."""
        server = self.serve()
        watcher = self.watch(server)
        for head in (b"POST / HTTP/1.1\r\nHost: 127.0.0.1:5555\r\nOrigin: http://mau.example\r\n\r\n",
                     b"GET / HTTP/1.1\r\n\r\n", b"PUT /x HTTP/1.1\n\n", b"OPTIONS * HTTP/1.1\r\n\r\n",
                     b"QUALQUER /" + b"x" * 9999 + b" HTTP/1.1\r\n\r\n"):
            conn = self.connect(server)
            conn.send(head + b"\nLED ON\n\0LED TOGGLE\0")
            conn.half_close()
            reply = conn.expect_eof()
            self.assertRegex(reply, rb"\AHTTP/1.1 40[03] (?s:.*)Content-Length: (?s:.*)LED")
            self.assertNotIn(b"OK LED", reply)
        split = self.connect(server)
        split.send(b"POST")
        split.send(b" / HTTP/1.1\r\n")
        split.send(b"\r\nLED ON\n")
        self.assertNotIn(b"OK LED", split.expect_eof())
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")
        self.assertEqual(watcher.data, b"")

    def test_http_with_a_password(self):
        """S1: a quem fala HTTP não se manda o desafio, e a quem nada diz ele vai depois de um silêncio."""
        server = self.serve("--senha-arquivo", self.secret())
        conn = self.connect(server)
        conn.send(b"GET / HTTP/1.1\r\n\r\n")
        self.assertRegex(conn.expect_eof(), rb"\AHTTP/1.1 40[03] ")
        self.connect(server).expect(b"DESAFIO ")

    def test_defect_in_one_client(self):
        """Uma exceção imprevista no trabalho de um cliente acaba com ele, é dita, e os outros seguem."""
        server, pair = self.server(), socket.socketpair()
        with pair[0], pair[1], mock.patch.object(self.led, "understand", side_effect=ZeroDivisionError("oi")):
            pair[1].sendall(b"LED ON\n")
            self.led.Client(server, pair[0], "192.0.2.7").run()
        self.assertRegex(server.house.said[0], "192.0.2.7, que foi desligado: ZeroDivisionError")
        self.assertEqual((server.clients, server.led.watchers, pair[0].fileno()), (set(), [], -1))

    def test_many_descriptors(self):
        """C12: descritores acima de 1023, que o select() não aceita."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if resource else 0
        if hard < 1300:
            self.skipTest("o limite de descritores daqui não chega a 1300")
        old = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, old)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(1300, old[0]), hard))
        with open(os.devnull) as null:
            extra = [os.dup(null.fileno()) for _ in range(1100)]
        for fd in extra:
            self.addCleanup(os.close, fd)
        fifo = self.folder() / "fifo"
        server = self.serve(pass_fds=extra)
        self.assertEqual(self.ask(server, b"LED ON"), b"OK LED ON")
        button = self.spawn("led_gpio.py", "botao", "127.0.0.1", server.port, "--gpio", "simulado", "--fifo", fifo,
                            ready=None, pass_fds=extra)
        button.type("\n")
        button.expect("^toque: LED OFF -> OK LED OFF$")

    def test_localhost(self):
        """C13: localhost é 127.0.0.1, como nos outros servidores."""
        server = self.spawn("led_gpio.py", "localhost", 0, "--gpio", "simulado")
        self.assertEqual(server.host, "127.0.0.1")
        self.assertEqual(self.ask(server, b"LED ON"), b"OK LED ON")

    def test_gone_without_goodbye(self):
        """S6: quem some sem FIN é perguntado pelo TCP em minutos, e não em horas."""
        with socket.create_server(("127.0.0.1", 0)) as listener, \
                socket.create_connection(listener.getsockname()) as sock:
            self.led.keep_alive(sock)
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
            for name, seconds in self.led.KEEPALIVE.items():
                if hasattr(socket, name):
                    self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)), seconds)


class TestLedGpioButton(LedTestCase):
    """O botão: toques contados uma vez, e entregues mesmo que o servidor demore."""

    def presses(self, script, quiet_ms=50, edges=True):
        """Quantos toques há em [(ms, nível)...]; sem edges, o chip nunca avisa. O relógio é de mentira."""
        now, house = [0.0], FakeHouse()

        class Contact(self.led.Pin):
            def read(pin):
                return next(level for at, level in reversed([(0, False)] + script) if at / 1000 <= now[0] + 1e-9)

            def wait_edge(pin, seconds):
                house.ending = now[0] > 3
                change = min((at / 1000 for at, _ in script if at / 1000 > now[0] + 1e-9), default=float("inf"))
                warned = edges and change <= now[0] + seconds
                now[0] = change if warned else now[0] + seconds
                return warned
        with mock.patch.object(self.led.time, "monotonic", lambda: now[0]):
            args = types.SimpleNamespace(repique=quiet_ms)
            return len(list(Contact(args, 4, False, None).presses(house)))

    def test_bouncing_contact(self):
        """O contato que treme conta um toque; dois toques limpos contam dois; um estalo não conta."""
        bounce = [(100 + i, i % 2 == 0) for i in range(11)]
        release = [(400 + i, i % 2 == 1) for i in range(11)]
        again = [(800 + i, i % 2 == 0) for i in range(5)]
        for edges in (True, False):
            self.assertEqual(self.presses(bounce, edges=edges), 1)
            self.assertEqual(self.presses(bounce + release + again, edges=edges), 2)
            self.assertEqual(self.presses([(100, True), (110, False), (500, True), (700, False)], edges=edges), 1)
        self.assertEqual(self.presses([(100, True), (110, False)], quiet_ms=0), 1)

    def test_hardware_button(self):
        """GPIO4 no sysfs, sem bordas (a árvore falsa não avisa): solto é 1, apertado é 0, um toque inverte o LED."""
        tree, server = FakeSysfs(self), self.serve()
        button = self.spawn("led_gpio.py", "botao", "127.0.0.1", server.port, "--gpio", "sysfs", "--sysfs", tree.root,
                            "--repique", 5, ready=None)
        button.expect_error("à espera")
        tree.put(516, "value", "0")
        button.expect("^toque: LED ON -> OK LED ON$")
        button.stop(signal.SIGINT)
        self.until(lambda: tree.unexported, "a linha ser devolvida")
        self.assertEqual(tree.unexported[0][::2], (516, "in"))

    def test_press_toggles_what_the_led_is(self):
        """O LED aceso por outro: o primeiro toque apaga. E dois Enter num pacote são dois toques."""
        server = self.serve()
        button = self.button(server.port)
        self.ask(server, b"LED ON")
        button.type("\n")
        button.expect("^toque: LED OFF -> OK LED OFF$")
        button.type("\n\n")
        button.expect("^toque: LED ON -> OK LED ON\ntoque: LED OFF -> OK LED OFF$")

    def test_nobody_reads_the_presses(self):
        """`botao | head -1`: sem quem leia os toques, acaba com estado 1; o que foi entregue não se diz perdido."""
        server = self.serve()
        read, write = os.pipe()
        button = self.button(server.port, stdout=write, status=1)
        os.close(write)
        os.close(read)
        button.type("\n")
        self.assertEqual(button.wait(), 1)
        self.assertNotIn("perdido", button.errors())
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED ON")

    def test_server_away_and_back(self):
        """Sem servidor: diz, insiste, e entrega quando ele volta."""
        port = free_port()
        server = self.serve(port=port)
        button = self.button(port)
        server.stop()
        button.type("\n")
        button.expect_error("o toque espera, por até 30 s: ninguém escuta")
        back = self.serve(port=port)
        button.expect("^toque: LED ON -> OK LED ON$")
        self.assertEqual(self.ask(back, b"LED STATUS"), b"OK LED ON")

    def test_press_lost_is_told(self):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            button = self.button(closed.getsockname()[1], "--validade", 0.1)
            button.type("\n")
            button.expect_error(r"toque perdido, \d")
            stubborn = self.button(closed.getsockname()[1], "--validade", 0.3, constants={"RETRY_S": 0.01})
            stubborn.type("\n")
            stubborn.expect_error(r"toque perdido, \d")
            self.assertEqual(stubborn.errors().count("o toque espera"), 1, "a mesma queixa, uma vez")
            slow = self.button(closed.getsockname()[1])
            slow.type("\n\n\n")
            slow.expect_error("o toque espera")
            self.assertEqual(slow.stop(), 0)
            self.assertRegex(slow.errors(), "toques perdidos, por entregar na hora de parar: 3")

    def test_end_with_a_mute_server(self):
        """O fim não espera por um servidor que se cala (nem por um DNS parado), e diz que toques se perderam."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(WATCHDOG_S)
            button = self.button(listener.getsockname()[1], constants={"ANSWER_S": 2 * WATCHDOG_S, "MAX_PRESSES": 2})
            button.type("\n")
            with listener.accept()[0] as mute:
                mute.settimeout(WATCHDOG_S)
                self.assertEqual(mute.recv(100), b"LED STATUS\n")
                button.type("\n\n\n")
                button.expect_error("toque perdido: 2 já esperam entrega")
                self.assertEqual(button.stop(), 0)
        self.assertRegex(button.errors(), "por entregar na hora de parar: 3$")

    @needs_ssl
    def test_bad_tls_is_told_before_the_first_press(self):
        result = self.run_script("led_gpio.py", "botao", "127.0.0.1", 1, "--gpio", "simulado", "--fifo",
                                 self.folder() / "fifo", "--chave", "x.pem")
        self.assertRegex(result.err, "--certificado")
        self.assertEqual(result.status, 2)
        folder = self.folder()
        result = self.run_script("led_gpio.py", "botao", "127.0.0.1", 1, "--gpio", "simulado", "--fifo", folder / "f",
                                 "--fundo", "--ca", folder / "nada.pem", env={"HOME": str(folder)})
        self.assertIn("nada.pem", result.err)  # dito neste terminal, e não no registro
        self.assertEqual((result.status, result.text), (1, ""))

    def test_lost_reply_is_not_a_second_press(self):
        """A resposta a LED ON se perdeu: na nova conversa o botão repete LED ON, não pergunta nem inverte de novo."""
        heard = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(WATCHDOG_S)

            def flaky():
                with contextlib.suppress(OSError):
                    for reply in (b"OK LED OFF\n", b"OK LED ON\n"):
                        sock, _ = listener.accept()
                        with sock:
                            sock.settimeout(WATCHDOG_S)
                            heard.append(sock.recv(100))
                            sock.sendall(reply)
                            if len(heard) == 1:
                                heard.append(sock.recv(100))  # LED ON: ouvido, e a conversa acaba sem resposta
            thread = threading.Thread(target=flaky)
            thread.start()
            self.addCleanup(thread.join)
            button = self.button(listener.getsockname()[1])
            button.type("\n")
            button.expect("^toque: LED ON -> OK LED ON$")
        self.assertEqual(heard, [b"LED STATUS\n", b"LED ON\n", b"LED ON\n"])

    def test_output_on_a_full_disk(self):
        """L11: com a saída num disco cheio, perde-se a linha, e não o toque, nem o botão."""
        server = self.serve()
        for env in ({}, {"PYTHONUNBUFFERED": "1"}):
            with open("/dev/full", "wb") as full:
                button = self.button(server.port, stdout=full, env=env)
            watcher = self.connect(server)
            watcher.send(b"LED WATCH\n")
            watcher.expect(b"\n")
            for _ in range(2):
                button.type("\n")
                watcher.expect(b"\n")
            self.assertEqual(button.stop(), 0)

    def test_output_on_a_closed_terminal(self):
        """L11: o terminal onde ele falava se fechou: o toque chega."""
        server = self.serve()
        watcher = self.watch(server)
        master, slave = os.openpty()
        read, write = os.pipe()
        button = self.spawn("led_gpio.py", "botao", "127.0.0.1", server.port, "--gpio", "simulado", "--fifo",
                            self.folder() / "fifo", ready=None, stdin=read, stdout=slave)
        button.expect_error("à espera")
        for fd in (slave, master, read):
            os.close(fd)
        for wanted in (b"LED ON\n", b"LED OFF\n"):
            os.write(write, b"\n")
            watcher.expect(wanted)
        self.assertEqual(button.stop(), 0)
        os.close(write)

    def test_edges_turned_off_by_another(self):
        """C5: `echo none > edge` por outro programa não tira toque nenhum: 10 de 10."""
        tree, house, now = FakeSysfs(self), FakeHouse(), [0.0]
        args = self.parse("botao", "--sysfs", tree.root, "--gpio", "sysfs", "--repique", 5)

        def sleep(seconds):
            """O relógio é de mentira: um toque de 30 ms a cada 100."""
            now[0] += seconds
            tree.put(516, "value", "0" if now[0] * 1000 % 100 < 30 else "1")
            house.ending = now[0] > 0.999
        with self.led.taken_pin(args, 4, False, FakeHouse()) as pin:
            tree.put(516, "edge", "none\n")
            with mock.patch.object(self.led.time, "sleep", sleep), \
                    mock.patch.object(self.led.time, "monotonic", lambda: now[0]):
                self.assertEqual(len(list(pin.presses(house))), 10)

    def ancestor(self, orders):
        """O led_process em C: um recv(), nenhuma resposta, shutdown() e close(). Devolve a porta; ouve em orders."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(WATCHDOG_S)

        def obey():
            with contextlib.suppress(OSError), listener:
                while True:
                    with listener.accept()[0] as sock:
                        order = sock.recv(256)
                        if not order.startswith(b"\x16"):  # a pergunta de quem o vê calado: TLS?
                            orders.put(order)
                        sock.shutdown(socket.SHUT_RDWR)
        thread = threading.Thread(target=obey)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        return listener.getsockname()[1]

    def test_the_ancestor_obeys(self):
        """C16: quem fecha sem dizer nada é o led_process em C: dito uma vez, recebe LED ON e LED OFF alternados."""
        orders = queue.Queue()
        button = self.button(self.ancestor(orders))
        for _ in range(3):
            button.type("\n")
        for wanted in (b"LED STATUS\n", b"LED ON\n", b"LED OFF\n", b"LED ON\n"):
            self.assertEqual(orders.get(timeout=WATCHDOG_S), wanted)
        button.expect(r"^toque: LED ON -> \(sem resposta\)\ntoque: LED OFF -> .*\ntoque: LED ON -> ")
        button.stop()
        self.assertEqual(button.errors().count("led_process em C"), 1)

    def test_password_is_read_at_the_start(self):
        """N10: o arquivo da senha que falta se diz já, e não ao primeiro toque."""
        result = self.run_script("led_gpio.py", "botao", "127.0.0.1", 1, "--gpio", "simulado", "--fifo",
                                 self.folder() / "fifo", "--senha-arquivo", "/nao/existe", status=1)
        self.assertRegex(result.err, r"erro: /nao/existe não existe\. Uma senha nova: .*\n\Z")


class TestLedGpioConversation(LedTestCase):
    """enviar, e o que a rede lhe faz."""

    def test_send_errors(self):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            result = self.run_script("led_gpio.py", "enviar", "LED ON", "127.0.0.1", closed.getsockname()[1])
            port = closed.getsockname()[1]
        self.assert_one_line_error(result, f"escuta em 127.0.0.1 porta {port}", f"./led_gpio.py 127.0.0.1 {port}")
        result = self.run_script("led_gpio.py", "enviar", "LED ON", "a..b")
        self.assert_one_line_error(result, "não encontro a máquina 'a..b'")

    def test_send_escapes_what_the_server_says(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            def evil():
                for text in (b"OK \x1b]0;x\x07\n", b"OK " + b"x" * 999):
                    with listener.accept()[0] as sock:
                        sock.recv(100)
                        sock.sendall(text)
                        with contextlib.suppress(ConnectionError):
                            sock.recv(1)  # ele desliga sem esperar pelo fim da linha
            thread = threading.Thread(target=evil)
            thread.start()
            wanted = "OK \\x1b]0;x\\x07\n", "OK ".ljust(self.led.LINE_LIMIT, "x") + "\n"
            for text in wanted:
                result = self.run_script("led_gpio.py", "enviar", "on", "127.0.0.1", listener.getsockname()[1])
                self.assertEqual(result.text, text)
            thread.join()
        typed = self.parse("enviar", "on\nLED OFF").comando
        self.assertNotIn("\n", typed, "um comando é uma linha só")

    def test_server_that_drips(self):
        """Há um prazo para a conversa inteira: quem responde um byte de cada vez não segura `enviar` nem o botão."""
        quick = {"ANSWER_S": 0.2, "LINE_LIMIT": 10**6}
        for head in (b"", b"OK LED OFF\n"):
            port = self.dripping(head)
            result = self.run_script("led_gpio.py", "enviar", "WATCH", "127.0.0.1", port, constants=quick)
            self.assertEqual((result.status, result.text), (1, head.decode()))
            self.assertRegex(result.err, "não respondeu")
        button = self.spawn("led_gpio.py", "botao", "127.0.0.1", self.dripping(), "--gpio", "simulado", "--fifo",
                            self.folder() / "fifo", ready=None, constants=quick)
        button.type("\n")
        button.expect_error("o toque espera.*não respondeu")

    def test_simulated_button_says_how_it_is_pressed(self):
        """Num terminal, o Enter, até um Ctrl+D; sem ele, a FIFO."""
        server = self.serve()
        fifo = self.folder() / "o botão"
        for tty, touch in ((True, "Enter"), (False, f"echo 0 > '{fifo}'")):
            button = self.spawn("led_gpio.py", "botao", "127.0.0.1", server.port, "--gpio", "simulado", "--fifo", fifo,
                                ready=None, tty=tty)
            button.expect_error(f"^GPIO4: simulado; cada {re.escape(touch)} é um toque$")
            button.expect_error("à espera de toques")
            if tty:
                button.type("\n")
                button.expect("toque: LED ON")
                button.type(b"\4")
                button.expect_error("^fim da entrada .*Ctrl.C$")
            self.stop(button)

    def test_server_that_hangs_up(self):
        """EPIPE e RST são a rede, e se explicam; só o EPIPE da nossa saída é o terminal que se foi."""
        args = self.parse("botao")
        with mock.patch.object(self.led, "dial") as connect:
            sock = connect.return_value
            sock.sendall.side_effect = BrokenPipeError
            for end in (ConnectionResetError, lambda size: b""):
                sock.recv.side_effect = end
                with self.assertRaisesRegex((self.led.Failure, self.led.Mute), "desligou"), \
                        self.led.Conversation(args) as conversation:
                    conversation.ask("LED STATUS")
            with self.assertRaises(BrokenPipeError), self.led.Conversation(args):
                raise BrokenPipeError

    def test_stopped_terminal(self):
        """P4: num terminal parado (Ctrl+S) o LED obedece e o botão conta; e um SIGTERM é o fim dos três."""
        server = self.serve(tty="all")
        watcher = self.spawn("led_gpio.py", "enviar", "WATCH", "127.0.0.1", server.port, ready="^OK LED OFF\r?$",
                             status=130, tty="all")
        fifo = self.folder() / "fifo"
        button = self.spawn("led_gpio.py", "botao", "127.0.0.1", server.port, "--gpio", "simulado", "--fifo", fifo,
                            ready="à espera de toques", tty="all")
        for child in (server, watcher, button):
            self.stop_terminal(child)
        fifo.write_text("0\n")
        self.until(lambda: self.ask(server, b"LED STATUS") == b"OK LED ON", "o toque chega")
        for child, status in ((watcher, 130), (button, 0), (server, 0)):
            child.kill(signal.SIGTERM)
            self.assertEqual(child.wait(), status)

    def test_watch_from_the_shell(self):
        server = self.serve()
        for number in (signal.SIGINT, signal.SIGTERM):
            self.ask(server, b"LED OFF")
            watcher = self.spawn("led_gpio.py", "enviar", "LED", "WATCH", "127.0.0.1", server.port,
                                 ready="^OK LED OFF$", status=130)
            self.ask(server, b"LED ON")
            watcher.expect("^LED ON$")
            watcher.stop(number)
        last = self.spawn("led_gpio.py", "enviar", "LED", "WATCH", "127.0.0.1", server.port, ready="^OK LED ON$",
                          status=1)
        server.stop()
        self.assertEqual(last.wait(), 1)
        self.assertRegex(last.errors(), "porta [0-9]+ desligou$")  # sem conselhos: o servidor acabou, e é tudo
        server = self.serve()
        result = self.run_script("led_gpio.py", "enviar", "LED PISCA", "127.0.0.1", server.port, status=1)
        self.assertRegex(result.text, "^ERRO ")

    def test_the_ancestor_obeys_enviar(self):
        """C16: ON e OFF foram cumpridos, e é 0; o que ele não conhece não foi, e é 1."""
        orders = queue.Queue()
        port = TestLedGpioButton.ancestor(self, orders)
        for command, status in (("ON", 0), ("OFF", 0), ("STATUS", 1), ("WATCH", 1)):
            result = self.run_script("led_gpio.py", "enviar", command, "127.0.0.1", port, status=status)
            self.assertEqual((result.text, result.err.count("\n")), ("", 1))
            self.assertRegex(result.err, "desligou sem responder: deve ser o led_process em C")
            self.assertEqual(orders.get(timeout=WATCHDOG_S), f"LED {command}\n".encode())

    @needs_ssl
    def test_why_not(self):
        """N16, C14: cada falha de rede tem o seu motivo, em português, e só a de TLS fala de TLS."""
        explain = self.led.Conversation(self.parse("botao", "192.0.2.9")).explain
        for code, words in ((errno.EHOSTUNREACH, "não há caminho até lá"), (errno.ENETUNREACH, "não há rede até lá"),
                            (errno.EAFNOSUPPORT, "está sem IPv6")):
            text = explain(OSError(code, os.strerror(code)))
            self.assertIn(words, text)
            self.assertNotIn("TLS", text)
        bad = ssl.SSLCertVerificationError("x")
        for code, words in ((62, "é de outro nome: use"), (64, "é de outro endereço: use"), (10, "venceu. .* date"),
                            (9, "ainda não vale. .* date"), (18, "é assinado por ele mesmo, .* em --ca$"),
                            (20, "vem de uma autoridade .* em --ca$"), (99, r"não serve \(strange thing\). .*--ca$")):
            bad.verify_code, bad.verify_message = code, "strange thing"
            self.assertRegex(explain(bad), f"^o certificado de 192.0.2.9 porta 5555 {words}")

    def test_tls_there_and_not_here(self):
        """N16: o servidor só fala TLS, e recusa com um alerta: é isso que se diz, e não bytes estranhos."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            def alert():
                with listener.accept()[0] as sock:
                    sock.recv(100)
                    sock.sendall(b"\x15\x03\x01\x00\x02\x02\x46")
            thread = threading.Thread(target=alert)
            thread.start()
            result = self.run_script("led_gpio.py", "enviar", "ON", "127.0.0.1", listener.getsockname()[1])
            thread.join()
        self.assert_one_line_error(result, "só conversa por TLS: acrescente --tls")

    @unittest.skipUnless(ssl, "este Python não tem o módulo ssl")
    def test_tls_that_hangs_up_without_a_word(self):
        """N16: o servidor TLS que desliga calado não é o led_process em C, e nenhuma ordem se dá por cumprida."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate())
        listener = socket.create_server(("127.0.0.1", 0))

        def answer():
            with contextlib.suppress(OSError), listener:
                while True:
                    with listener.accept()[0] as sock, contextlib.suppress(OSError):
                        sock.settimeout(WATCHDOG_S)
                        if sock.recv(1, socket.MSG_PEEK) == b"\x16":  # com o resto, um OpenSSL manda alerta, outro não
                            context.wrap_socket(sock, server_side=True).close()
                        else:
                            sock.recv(100)
        thread = threading.Thread(target=answer)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        port = listener.getsockname()[1]
        for command in ("ON", "STATUS"):
            result = self.run_script("led_gpio.py", "enviar", command, "127.0.0.1", port)
            self.assert_one_line_error(result, "só conversa por TLS: acrescente --tls")
        button = self.button(port, "--validade", 0)
        button.type("\n")
        button.expect_error("toque perdido.* só conversa por TLS: acrescente --tls")


class TestLedGpioSecret(LedTestCase):
    """A senha, e o TLS."""

    def test_proof(self):
        """RFC 4231, caso 2; e o mesmo que o openssl do README calcula."""
        self.assertEqual(self.led.proof(b"Jefe", "what do ya want for nothing?"),
                         "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")

    def test_beyond_loopback_wants_a_secret(self):
        addresses = ["0.0.0.0", "0x0", *["::", "::0"] * socket.has_dualstack_ipv6()]
        for address in addresses:  # escrito como for
            with self.assertRaisesRegex(self.led.Failure, "--senha-arquivo.*--sem-senha"), \
                    self.led.ready_led(self.parse("servidor", address, "0"), FakeHouse()):
                pass
        result = self.run_script("led_gpio.py", "0.0.0.0", 0, "--gpio", "simulado")
        self.assert_one_line_error(result, "--senha-arquivo", "--sem-senha", "openssl rand")
        server = self.spawn("led_gpio.py", "0.0.0.0", 0, "--gpio", "simulado", "--sem-senha")
        server.expect_error("aviso: --sem-senha")
        self.assertEqual(self.ask(server, b"LED ON"), b"OK LED ON")

    def test_everywhere_is_both_families(self):
        """`::`, escrito como for, atende IPv4 também."""
        if not socket.has_dualstack_ipv6():
            self.skipTest("sem IPv6 de pilha dupla aqui")
        server = self.spawn("led_gpio.py", "0::0", 0, "--gpio", "simulado", "--sem-senha")
        for server.host in ("127.0.0.1", "::1"):
            self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")

    def test_secret(self):
        """Sem a senha nada muda; com ela, botão e enviar entram sozinhos; errar custa cada vez mais espera."""
        secret, wrong = self.secret(), self.secret("outra senha qualquer")
        server = self.serve("--senha-arquivo", secret)
        conn = self.connect(server)
        challenge = conn.expect(b"\n").decode().split()
        self.assertEqual((challenge[0], len(challenge[1])), ("DESAFIO", 64))
        other = self.connect(server).expect(b"\n").decode().split()
        self.assertNotEqual(challenge[1], other[1], "cada conversa tem o seu desafio")
        conn.send(b"LED ON\0")  # o botão em C, sem senha
        self.assertRegex(conn.expect(b"\n"), b"ERRO falta a senha")
        conn.expect_eof()
        result = self.run_script("led_gpio.py", "enviar", "led", "OFF", "127.0.0.1", server.port)
        self.assert_one_line_error(result, "--senha-arquivo")
        waits, conn = [], self.connect(server)
        conn.expect(b"\n")  # quem só não sabia da senha não fez ninguém esperar
        self.assertEqual(self.run_script("led_gpio.py", "enviar", "on", "127.0.0.1", server.port, "--senha-arquivo",
                                         secret).text, "OK LED ON\n")
        conn.send("RESPOSTA errada\n")
        self.assertRegex(conn.expect(b"\n"), b"ERRO senha recusada")
        for _ in range(2):  # dentro da espera nem a resposta certa vale
            conn = self.connect(server)
            text = conn.expect(b"\n").decode().split()[1]
            conn.send("RESPOSTA " + self.led.proof(b"uma senha de teste", text) + "\n")
            waits.append(float(conn.expect(b"\n").split()[-2]))
        self.assertLessEqual(max(waits), 1)
        self.until(lambda: self.run_script("led_gpio.py", "enviar", "on", "127.0.0.1", server.port, "--senha-arquivo",
                                           secret).text == "OK LED ON\n", "a espera passar e a senha certa entrar")
        result = self.run_script("led_gpio.py", "enviar", "off", "127.0.0.1", server.port, "--senha-arquivo", wrong)
        self.assert_one_line_error(result, "senha recusada", "espere")
        server.expect_error("senha errada de 127.0.0.1")

    def test_mute_at_the_door(self):
        """Quem não responde ao desafio tem um prazo."""
        server = self.serve("--senha-arquivo", self.secret(), constants={"LOGIN_S": 0.2})
        conn = self.connect(server)
        conn.expect(b"DESAFIO ")
        self.assertNotIn(b"OK", conn.expect_eof())

    def test_penalty_grows_and_the_table_is_bounded(self):
        secret = self.led.Secret(b"segredo!", lambda text: None)
        now, waits = 100.0, []

        def judge(host, line=b""):
            line = line or b"RESPOSTA " + self.led.proof(b"segredo!", "desafio").encode()
            return secret.judge(line, "desafio", self.led.source_of(host))[1]
        with mock.patch.object(self.led.time, "monotonic", lambda: now):
            for _ in range(9):
                waits.append(float(judge("2001:db8::7", b"RESPOSTA errada").split()[-2]))
                self.assertRegex(judge("2001:db8::8"), "^ERRO", "a /64 é uma: na espera nem a resposta certa vale")
                for other in ("2001:db8:0:1::7", "192.0.2.7"):
                    self.assertEqual(judge(other), "OK senha aceita")
                now += waits[-1]
            self.assertEqual(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60])
            self.assertEqual(judge("2001:db8::7"), "OK senha aceita")
            self.assertEqual(secret.offenders, {})
            for i in range(self.led.MAX_OFFENDERS + 50):
                judge(f"10.0.{i // 256}.{i % 256}", b"RESPOSTA errada")
        self.assertEqual(len(secret.offenders), self.led.MAX_OFFENDERS)

    def test_bad_secret_files(self):
        for path, words in ((self.secret("curta"), ("8 bytes", "openssl")), ("/nao/existe", ("openssl",))):
            self.assert_one_line_error(self.run_script("led_gpio.py", "--senha-arquivo", path), *words)
        shared = self.secret()
        shared.chmod(0o644)
        self.assert_one_line_error(self.run_script("led_gpio.py", "--senha-arquivo", shared), "chmod 600")

    def test_tls(self):
        """Cifrado dos dois lados, com certificado de cliente; quem não fala TLS não atrapalha."""
        cert, key = self.certificate()
        server = self.serve("--certificado", cert, "--chave", key, "--ca-clientes", cert,
                            constants={"ANSWER_S": 0.2, "LOGIN_S": 2 * WATCHDOG_S})
        mute, plain = self.connect(server), self.connect(server)  # mudo até o fim: o servidor não espera por ele
        plain.send(b"LED ON\n")
        ours = ("--certificado", cert, "--chave", key)
        run = functools.partial(self.run_script, "led_gpio.py", "enviar", "LED", "ON", "127.0.0.1", server.port)
        self.assertEqual(run("--tls", "--ca", cert, *ours, status=0).text, "OK LED ON\n")
        self.assert_one_line_error(run("--tls", *ours), "é assinado por ele mesmo, e não está em --ca")
        self.assertEqual(run("--tls", "--sem-verificar", *ours, status=0).text, "OK LED ON\n")
        self.assertEqual(run("--tls", "--ca", cert).status, 1, "sem certificado de cliente")
        plain.expect_eof()
        context = ssl.create_default_context(cafile=str(cert))
        context.load_cert_chain(str(cert), str(key))
        conn = self.connect(server)
        conn.sock = context.wrap_socket(conn.sock, server_hostname="localhost")
        self.addCleanup(conn.sock.close)
        conn.send(b"LED WATCH\n")
        conn.expect(b"OK LED ON\n")
        conn.send(b"LED OFF")
        conn.expect(b"OK LED OFF\n")
        server.stop()
        mute.expect_eof()
        result = self.run_script("led_gpio.py", "--certificado", key)
        self.assert_one_line_error(result, f"{key}: não são um certificado e a chave dele")

    def test_tls_options_never_end_in_plain_text(self):
        """Quem pede uma parte do TLS pede o TLS: nenhuma destas opções é esquecida em silêncio."""
        for options in (("--chave", "x.pem"), ("--ca-clientes", "x.pem"), ("--ca", "x.pem"), ("--tls",)):
            result = self.run_script("led_gpio.py", "127.0.0.1", 0, "--gpio", "simulado", *options)
            self.assert_one_line_error(result, "--certificado", status=2)
        server = self.serve()
        for options in (("--ca", "/nao/existe"), ("--sem-verificar",), ("--certificado", "/nao/existe")):
            result = self.run_script("led_gpio.py", "enviar", "ON", "127.0.0.1", server.port, *options)
            self.assert_one_line_error(result, "")

    def test_three_faults_three_sentences(self):
        """N9: não existe, é curta, é de todos: três frases; nenhuma manda apagar uma senha que serve."""
        short, shared, folder = self.secret("curta"), self.secret(), self.folder()
        shared.chmod(0o644)
        for path, words, never in ((folder / "x", "não existe", "chmod"), (short, "menos de 8 bytes", f"> {short}"),
                                   (shared, "chmod 600", "rand"), (folder, "é uma pasta", "rand")):
            with self.assertRaisesRegex(self.led.Failure, words) as caught:
                self.led.read_secret(str(path))
            self.assertNotIn(never, str(caught.exception))


class TestLedGpioHouse(LedTestCase):
    """O processo: o que diz, como começa, como acaba; iniciar, --fundo e parar; a linha de comando."""

    def test_output_that_nobody_reads(self):
        """Canos cheios em stdout e stderr: o LED obedece assim mesmo, e o fim não espera por eles."""
        pipes = [os.pipe() for _ in range(2)]
        for pipe in pipes:
            for fd in pipe:
                self.addCleanup(os.close, fd)
            os.set_blocking(pipe[1], False)
            with contextlib.suppress(BlockingIOError):
                while os.write(pipe[1], b"x" * 4096):
                    pass
            os.set_blocking(pipe[1], True)
        os.read(pipes[0][0], 4096)  # lugar para a primeira linha, e para pouco mais
        command = self.command("led_gpio.py", "127.0.0.1", 0, "--gpio", "simulado")
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipes[0][1], stderr=pipes[1][1],
                                 env=child_env())
        try:
            text = b""
            while not re.search(rb"porta \d+\n", text):
                self.assertTrue(select.select([pipes[0][0]], [], [], WATCHDOG_S)[0], "o servidor não subiu")
                text = text[-100:] + os.read(pipes[0][0], 4096)
            with contextlib.suppress(BlockingIOError):  # cheio de novo
                os.set_blocking(pipes[0][1], False)
                while os.write(pipes[0][1], b"x"):
                    pass
            os.set_blocking(pipes[0][1], True)
            server = types.SimpleNamespace(host="127.0.0.1", port=int(re.search(rb"porta (\d+)\n", text).group(1)))
            for wanted in (b"OK LED ON", b"OK LED OFF") * 3:
                self.assertEqual(self.ask(server, b"LED TOGGLE"), wanted)
            child.terminate()
            self.assertEqual(child.wait(WATCHDOG_S), 0)
        finally:
            child.kill()
            child.wait()

    def test_terminal_that_nobody_reads(self):
        """Uma janela congelada: o terminal enche, e quem fala não espera por ele."""
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        with open(slave, "w") as out, mock.patch.object(self.led.sys, "stdout", out), \
                mock.patch.object(self.led.signal, "signal"):
            house = self.led.House()
            thread = threading.Thread(target=lambda: [house.say("x" * (i % 70)) for i in range(5000)])
            thread.start()
            thread.join(WATCHDOG_S)
            stuck = thread.is_alive()
            screen = house.voice.screen
            drain = threading.Thread(target=lambda: [os.read(master, 4096) for _ in iter(screen.is_alive, False)])
            drain.start()
            house.close()
            screen.join(WATCHDOG_S)
            os.write(slave, b"fim")
            drain.join(WATCHDOG_S)
        self.assertFalse(stuck, "a voz espera por quem não lê")

    def test_log_is_bounded(self):
        """O arquivo de --fundo recomeça ao passar do teto; o que o usuário redireciona é dele, e só cresce."""
        for ours, low, high in ((True, 100, 1100), (False, 5000, 5000)):
            with open(self.folder() / "log", "a") as out, mock.patch.object(self.led, "LOG_LIMIT", 1000), \
                    mock.patch.object(self.led.signal, "signal"):
                house = self.led.House()
                house.voice.close()
                house.voice = types.SimpleNamespace(note=lambda text: os.write(out.fileno(), text.encode() + b"\n"))
                house.log = out.fileno() if ours else None
                for _ in range(50):
                    house.note("x" * 99)
                size = os.fstat(out.fileno()).st_size
            self.assertTrue(low <= size <= high, size)

    def test_pipe_closed(self):
        """`| head -1`: a lâmpada não tem mais onde ser desenhada, e o servidor acaba quieto."""
        read, write = os.pipe()
        server = self.spawn("led_gpio.py", "127.0.0.1", 0, "--gpio", "simulado", status=1, stdout=write, ready=None)
        os.close(write)
        with open(read) as head:
            server.host, server.port = "127.0.0.1", int(head.readline().split()[-1])
        with contextlib.suppress(ConnectionError):
            self.ask(server, b"LED ON")
        self.assertEqual(server.wait(), 1)
        self.assertNotRegex(server.errors(), "rror|Errno")

    def start(self, *args):
        """(ambiente, FIFO, argumentos) de um `iniciar` que não mexe na casa de ninguém."""
        fifo = self.folder() / "fifo"
        args = ("iniciar", "127.0.0.1", free_port(), "--gpio", "simulado", "--fifo", fifo, *args)
        return {"HOME": str(self.folder())}, fifo, args

    def test_start_both(self):
        """iniciar: o toque acende o LED, a rede o apaga, um Ctrl+C acaba com os dois."""
        env, fifo, args = self.start()
        both = self.spawn("led_gpio.py", *args, env=env)
        both.expect_error("só esta máquina")
        both.expect_error("à espera")
        fifo.write_text("0\n")
        both.expect("toque: LED ON -> OK LED ON")
        self.assertEqual(self.ask(both, b"LED TOGGLE"), b"OK LED OFF")
        both.stop(signal.SIGINT)
        self.assertFalse(fifo.exists())
        self.assertRaises(ConnectionRefusedError, self.connect, both)

    def test_start_fails(self):
        """Nenhuma metade fica sem a outra; o que falta sai em stderr, e no estado de saída, com ou sem --fundo."""
        env, fifo, args = self.start()
        with socket.create_server(("127.0.0.1", 0)) as busy:
            result = self.run_script("led_gpio.py", *args[:2], busy.getsockname()[1], *args[3:], env=env)
        self.assert_one_line_error(result, "em uso")
        fifo.write_text("")
        for options in ((), ("--fundo",)):
            result = self.run_script("led_gpio.py", *args, *options, env=env, status=1)
            self.assertRegex(result.err, "erro: .*não é uma FIFO só sua.*\n\\Z")
        result = self.run_script("led_gpio.py", *args, "--chave", "x.pem", env=env)
        self.assert_one_line_error(result, "--certificado", status=2)

    def test_start_ends_both(self):
        """Se o botão deixa de responder, o LED acaba com ele, e o estado de saída conta."""
        env, fifo, args = self.start()
        with open(os.devnull, "w") as unreadable:
            both = self.spawn("led_gpio.py", *args, env=env, stdin=unreadable, status=1)
            self.assertEqual(both.wait(), 1)
        both.expect_error("erro: o botão deixou de responder")
        self.assertFalse(fifo.exists())
        self.assertRaises(ConnectionRefusedError, self.connect, both)

    def test_born_without_standard_streams(self):
        """`<&-`: /dev/null no lugar da entrada, e nunca a porta, de onde o botão leria."""
        server = self.spawn("led_gpio.py", "127.0.0.1", 0, "--gpio", "simulado",
                            prefix=("sh", "-c", 'exec "$@" <&- 2>&-', "sh"))
        self.assertEqual([os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in (0, 2)], [os.devnull] * 2)
        self.assertEqual(self.ask(server, b"LED ON"), b"OK LED ON")

    def test_stop_does_not_wait_for_ever(self):
        """Quem não obedece ao SIGTERM: `parar` desiste num prazo, e diz o que resta."""
        led = load("led_gpio.py")
        fake = types.SimpleNamespace(pid=4321, take=lambda: False)
        with mock.patch.object(led, "Background", lambda: fake), mock.patch.object(led, "STEP_S", 0.001), \
                mock.patch.object(led.os, "kill") as kill:
            with self.assertRaisesRegex(led.Failure, "não acabou.*kill -9 4321"):
                led.stop_background(None)
        kill.assert_called_once_with(4321, signal.SIGTERM)

    def test_background(self):
        """iniciar --fundo, outra vez (recusado), parar, outra vez (nada); ninguém mais é tocado."""
        env, fifo, args = self.start("--fundo")
        run, home = functools.partial(self.run_script, "led_gpio.py", env=env), pathlib.Path(env["HOME"])
        (home / ".led_gpio.log").write_bytes(b"x" * (self.led.LOG_LIMIT + 1))
        began = run(*args, status=0)
        pid = int((home / ".led_gpio.pid").read_text())
        try:
            server = types.SimpleNamespace(host="127.0.0.1", port=int(re.search("porta ([0-9]+)", began.text).group(1)))
            self.assertIn(f"tail -f {home}/.led_gpio.log\n", began.text)
            self.assertEqual(os.getsid(pid), pid, "numa sessão sua: o Ctrl+C e o fim deste terminal não o alcançam")
            fifo.write_text("0\n")
            self.until(lambda: self.ask(server, b"LED STATUS") == b"OK LED ON", "o toque acender o LED")
            self.assert_one_line_error(run(*args[:2], server.port, *args[3:]), "já está rodando", "parar")
            self.assertEqual(stat.S_IMODE((home / ".led_gpio.pid").stat().st_mode), 0o600)
            self.assertEqual(run("parar", status=0).text, f"parado: pid {pid}\n")
            pid = None
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
        self.assertRaises(ConnectionRefusedError, self.connect, server)
        text = (home / ".led_gpio.log").read_text()
        self.assertRegex(text, "à espera(?s:.*)LED Status: On\n(?s:.*)LED Status: Off\n")
        self.assertNotIn("xxxx", text, "passou do teto, e recomeçou")
        self.assertIsNone(BAD_STDERR.search(text))
        self.assertFalse(fifo.exists())
        innocent = subprocess.Popen(["sleep", "60"])
        try:
            (home / ".led_gpio.pid").write_text(str(innocent.pid))  # um pid velho, que hoje é de outro processo
            self.assert_one_line_error(run("parar"), "nada em segundo plano", "iniciar --fundo")
            self.assertIsNone(innocent.poll())
        finally:
            innocent.kill()
            innocent.wait()

    def test_log_on_a_full_disk(self):
        """L11: em segundo plano, com o registro num disco cheio, o LED obedece."""
        env, fifo, args = self.start("--fundo")
        run = functools.partial(self.run_script, "led_gpio.py", env=env)
        log = pathlib.Path(env["HOME"], ".led_gpio.log")
        log.write_bytes(b"x" * 1024)
        began = run(*args, status=0, prefix=("sh", "-c", 'ulimit -f 2; exec "$@"', "sh"))  # em blocos de 512 bytes
        server = types.SimpleNamespace(host="127.0.0.1", port=int(re.search("porta ([0-9]+)", began.text)[1]))
        try:
            for wanted in (b"OK LED ON", b"OK LED OFF") * 3:
                self.assertEqual(self.ask(server, b"LED TOGGLE"), wanted)
        finally:
            self.assertRegex(run("parar", status=0).text, "^parado: pid")
        self.assertEqual(log.read_bytes(), b"x" * 1024)

    def test_the_lamp_is_where_the_banner_says(self):
        """N8: em segundo plano a lâmpada está no registro, e é isso que se diz."""
        pin = self.led.SimulatedPin(self.parse("iniciar", "--fundo"), 17, True, None)
        self.assertRegex(str(pin), r"^simulado, em ~/\.led_gpio\.log$")
        self.assertEqual(str(self.led.SimulatedPin(self.parse("iniciar"), 17, True, None)), "simulado, neste terminal")

    def test_no_ipv6(self):
        """C14: `::1` onde não há IPv6: o comando sugerido é o de 127.0.0.1, que não pede senha."""
        for code, family in ((errno.EAFNOSUPPORT, False), (errno.EADDRNOTAVAIL, True)):
            with mock.patch.object(self.led, "has_ipv6", lambda: family), \
                    mock.patch.object(sys, "argv", ["led_gpio.py", "::1", "--gpio", "simulado"]):
                self.parse(*["servidor", *sys.argv[1:]])
                text = self.led.explain_bind(OSError(code, os.strerror(code)), "::1", 5555)
            self.assertRegex(text, r"sem IPv6\..*: \./led_gpio\.py --gpio simulado 127\.0\.0\.1 5555$")

    def test_socket_of_systemd(self):
        """L15: a porta que o systemd traz não seria atendida: uma linha, e nada se abre; a de outro pid não conta."""
        prefix = ("sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "sh")
        for action in ("servidor", "iniciar"):
            result = self.run_script("led_gpio.py", action, "127.0.0.1", 0, "--gpio", "simulado", prefix=prefix)
            self.assert_one_line_error(result, "tire o .socket")
        self.serve(env={"LISTEN_FDS": "1", "LISTEN_PID": "1"})

    def test_file_that_would_never_open(self):
        """N9: uma FIFO no lugar de um arquivo: uma linha, e não uma espera que nenhum sinal encerra."""
        fifo = self.folder() / "fs"
        os.mkfifo(fifo, 0o600)
        broker = ("--mqtt", "127.0.0.1", "--mqtt-usuario", "ana")
        for options in (("--senha-arquivo",), (*broker, "--mqtt-senha-arquivo"), (*broker, "--mqtt-ca"),
                        ("--certificado",), ("--certificado", __file__, "--chave"), ("--ca-clientes",)):
            result = self.run_script("led_gpio.py", "127.0.0.1", 0, "--gpio", "simulado", *options, fifo)
            self.assert_one_line_error(result, f"{options[-1]}: {fifo} não é um arquivo comum", status=2)
        for option in ("--senha-arquivo", "--ca", "--certificado"):
            result = self.run_script("led_gpio.py", "enviar", "ON", option, fifo)
            self.assert_one_line_error(result, f"{option}: {fifo} não é um arquivo comum", status=2)

    def test_one_pin_for_two(self):
        """C4: o LED e o botão na mesma linha: estado 2, por qualquer caminho."""
        for gpio in ("auto", "sysfs", "chardev", "simulado"):
            result = self.run_script("led_gpio.py", "iniciar", "--led", 4, "--gpio", gpio)
            self.assert_one_line_error(result, "GPIO4", "--botao", status=2)

    def test_words_out_of_place(self):
        """N14: uma ação depois de uma opção, ou um verbo que não há: diz-se o comando certo."""
        for words, right in ((("--led", "4", "iniciar"), "./led_gpio.py iniciar --led 4"),
                             (("--gpio", "simulado", "botao", "::1"), "./led_gpio.py botao --gpio simulado ::1"),
                             (("servidor", "iniciar"), "./led_gpio.py iniciar"),
                             (("ligar",), "./led_gpio.py enviar ON"), (("status",), "./led_gpio.py enviar STATUS"),
                             (("LED", "ON"), "./led_gpio.py enviar ON"), (("start",), "./led_gpio.py iniciar")):
            result = self.run_script("led_gpio.py", *words)
            self.assert_one_line_error(result, right + " ", status=2)

    def test_each_action_shows_its_own_options(self):
        """Uma opção que só outra ação usa não aparece na ajuda; aceita-se, e diz-se que nada muda."""
        helps = {action: self.run_script("led_gpio.py", action, "--help", status=0).text for action in self.led.ACTIONS}
        for option, owners in (("--led N", {"servidor", "iniciar"}), ("--repique", {"botao", "iniciar"}),
                               ("--validade", {"botao"}), ("--tls", {"botao", "enviar"}),
                               ("--fundo", {"servidor", "botao", "iniciar"}),
                               ("--senha-arquivo", {"servidor", "botao", "enviar", "iniciar"})):
            self.assertEqual({action for action, text in helps.items() if option in text}, owners, option)
        for place, owners in (("onde escutar", {"servidor", "iniciar"}), ("do LED (padrão", {"botao", "enviar"})):
            self.assertEqual({action for action, text in helps.items() if place in text}, owners, place)
        server = self.serve("--repique", 80)
        server.expect_error("^aviso: --repique não muda nada em servidor$")


class TestLedGpioPage(LedTestCase):
    """A página: quem a vê, quem manda por ela, e quem não entra."""

    def request(self, server, method, path, *headers, body=b"", host="127.0.0.1", wrap=None):
        """(estado, cabeçalhos em minúsculas, corpo) da resposta a um pedido."""
        sock = self.connect(server).sock
        if wrap:
            sock = wrap(sock)
            self.addCleanup(sock.close)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, f"Content-Length: {len(body)}"]
        sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        # Quem demora a pedir (um teste sem CPU) ouve antes o desafio da senha, que é para quem se cala.
        data = re.sub(rb"\ADESAFIO \w+\n", b"", Conn(self, sock).expect_eof())
        sock.close()
        head, _, content = data.partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        found = dict(field.split(": ", 1) for field in fields)
        return int(status.split()[1]), {name.lower(): value for name, value in found.items()}, content.decode()

    def token(self, server, *headers, **options):
        """A ficha, que só quem lê a página tem."""
        return re.search("name=ficha value=(\\S+?)>", self.request(server, "GET", "/", *headers, **options)[2])[1]

    def live(self, server, *headers):
        """Uma página aberta em /eventos, com o primeiro evento por ler."""
        conn = self.connect(server)
        conn.send("\r\n".join(["GET /eventos HTTP/1.1", "Host: localhost", *headers, "", ""]))
        conn.expect(b"\r\n\r\n")
        return conn

    def test_the_page(self):
        """Um arquivo só, que nada busca fora: o CSP só deixa rodar o script e o estilo que estão nele."""
        server = self.serve()
        status, headers, page = self.request(server, "GET", "/")
        self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
        policy = headers["content-security-policy"]
        self.assertTrue(policy.startswith("default-src 'none'; "))
        for tag in ("style", "script"):
            code = re.search(f"<{tag}>(.*?)</{tag}>", page, re.S)[1]
            digest = hashlib.sha256(code.encode()).digest()
            self.assertIn(f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'", policy)
        self.assertNotRegex(page, "src=|href=|https?:")
        self.assertIn("role=status>apagado<", page)
        self.ask(server, b"LED ON")
        page = self.request(server, "GET", "/")[2]
        self.assertRegex(page, "role=status>aceso<(?s:.*)Por 127.0.0.1<")

    def test_the_button(self):
        """Com JavaScript, as linhas do protocolo; sem ele, um formulário que volta à página."""
        server = self.serve()
        token = self.token(server)
        own = f"X-Ficha: {token}", f"Origin: http://127.0.0.1:{server.port}", "Sec-Fetch-Site: same-origin"
        for body, reply in ((b"LED ON\n", "OK LED ON\n"), (b"led  toggle", "OK LED OFF\n"),
                            (b"LED ON\nLED STATUS\n", "OK LED ON\nOK LED ON\n")):
            status, _, text = self.request(server, "POST", "/comando", *own, body=body, host=f"127.0.0.1:{server.port}")
            self.assertEqual((status, text), (200, reply))
        text = self.request(server, "POST", "/comando", f"X-Ficha: {token}", body=b"LED DANCE")[2]
        self.assertTrue(text.startswith("ERRO use LED ON"))
        form = f"comando=LED+TOGGLE&ficha={token}".encode()
        status, headers, _ = self.request(server, "POST", "/comando", body=form)
        self.assertEqual((status, headers["location"]), (303, "/"))
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")

    def test_live(self):
        """O que o nc muda, a página vê na hora, com quem foi."""
        server = self.serve()
        page = self.live(server)
        page.expect(b"data: LED OFF\ndata: Ningu")
        self.ask(server, b"LED ON")
        page.expect(b"data: LED ON\ndata: Por 127.0.0.1\ndata: 0\n\n")

    def test_another_site_moves_nothing(self):
        """S1: nenhum método de outra página, nem o que vem depois do pedido, chega ao LED; nem lê a ficha."""
        server = self.serve()
        own = f"X-Ficha: {self.token(server)}"
        cases = (("nome de fora", "exemplo.com", ()),
                 ("nome de fora, e um IP", "exemplo.com@127.0.0.1", ()),
                 ("um IP, e mais", "127.0.0.1/exemplo.com", ()),
                 ("rebinding", "exemplo.com:5555", ("Origin: http://exemplo.com:5555",)),
                 ("outro site", "127.0.0.1", ("Origin: http://exemplo.com",)),
                 ("sem origem", "127.0.0.1", ("Origin: null",)),
                 ("outro endereço", "127.0.0.1", ("Origin: http://127.0.0.1:9",)),
                 ("Fetch", "127.0.0.1", ("Sec-Fetch-Site: cross-site",)),
                 ("mesmo site, outra porta", "127.0.0.1", ("Sec-Fetch-Site: same-site",)))
        for name, host, headers in cases:
            for method, path in (("GET", "/"), ("GET", "/eventos"), ("POST", "/comando"), ("POST", "/"), ("PUT", "/"),
                                 ("OPTIONS", "/comando"), ("DELETE", "/x")):
                status, _, text = self.request(server, method, path, own, *headers, body=b"\nLED ON\n", host=host)
                self.assertEqual((status, "ficha value" in text), (403, False), (name, method, path))
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")

    def test_who_types_the_address_enters(self):
        """IP, localhost e o nome da máquina, com porta ou sem: são o que um DNS de fora não responde."""
        server = self.serve()
        name = socket.gethostname()
        for host in ("127.0.0.1", "localhost", f"localhost:{server.port}", "[::1]:5555", "192.168.1.7", name,
                     f"{name}.local"):
            self.assertEqual(self.request(server, "GET", "/", "Sec-Fetch-Site: none", host=host)[0], 200, host)

    def test_a_post_without_the_token(self):
        server = self.serve()
        for headers, body in (((), b"LED ON\n"), (("X-Ficha: x",), b"LED ON\n"), ((), b"comando=LED+ON&ficha="),
                              (("X-Ficha: \u00e7",), b"LED ON\n")):
            self.assertEqual(self.request(server, "POST", "/comando", *headers, body=body)[0], 403, body)
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")

    def test_bad_requests(self):
        """Pedidos tortos têm resposta, e nada do que trazem chega às ordens."""
        server = self.serve(constants={"REQUEST_S": 0.3})
        cases = ((b"GET / HTTP/1.1\r\n\r\nLED ON\n", 400), (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
                 (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\nLED ON\n", 400),
                 (b"POST /comando HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400),
                 (b"POST /comando HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n", 413),
                 (b"POST /comando HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
                 (b"POST /comando HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nLED", 400),
                 (b"GET / HTTP/1.1\r\nHost: localhost\r\n", 400),
                 (b"GET /" + b"a" * 20000, 400), (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20000, 400),
                 (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 7\r\n\r\nLED ON\n", 400),
                 (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: http://a\r\n\r\n", 400),
                 (b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\nLED ON\n", 404),
                 (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\nLED ON\n", 405))
        for request, status in cases:
            conn = self.connect(server)
            conn.send(request)
            self.assertRegex(conn.expect_eof(), b"^HTTP/1.1 %d " % status, request[:80])
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")

    def test_typed_by_hand(self):
        """Quem digita o pedido num nc manda só o LF, e às vezes um Enter antes; a resposta é a mesma, e já."""
        server = self.serve()
        for request in (b"GET / HTTP/1.1\nHost: localhost\n\n", b"\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            conn = self.connect(server)
            conn.send(request)
            conn.expect(b"HTTP/1.1 200 ")

    def test_tls_where_there_is_none(self):
        """S1: num aperto de mão, a sessão a retomar são bytes que um site escolhe; nem eles chegam às ordens."""
        server = self.serve()
        for hello in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\nLED ON\n", b"\x16", b"\x16\nLED ON\n"):
            conn = self.connect(server)
            conn.send(hello)
            self.assertEqual(conn.expect_eof(), "ERRO aqui a conversa é sem TLS\n".encode())
        self.assertEqual(self.ask(server, b"LED STATUS"), b"OK LED OFF")

    def test_spare_connection_with_a_secret(self):
        """A conexão que o navegador abre de reserva, calada, não ouve o desafio antes da resposta ao seu pedido."""
        server = self.serve("--senha-arquivo", self.secret())
        self.request(server, "GET", "/")
        spare = self.connect(server)
        # Depois dela, de outro endereço, e sem página: este ouve o desafio no silêncio, e o silêncio dela foi maior.
        person = socket.create_connection(("127.0.0.1", server.port), WATCHDOG_S, ("127.0.0.2", 0))
        self.addCleanup(person.close)
        Conn(self, person).expect(b"DESAFIO ")
        spare.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertRegex(spare.expect_eof(), rb"\AHTTP/1\.1 200 OK\r\n")
        # Com a página aberta, um nc que aperta Enter ainda ouve o desafio.
        typed = self.connect(server)
        typed.send(b"\n")
        typed.expect(b"DESAFIO ")

    def test_visits_are_bounded(self):
        page = self.led.Page(mock.Mock())
        now = 100.0
        with mock.patch.object(self.led.time, "monotonic", lambda: now):
            for host in range(self.led.MAX_VISITORS + 1):
                page.note_visit(host)
            self.assertEqual(len(page.visits), self.led.MAX_VISITORS)
            self.assertEqual((page.may_come(0), page.may_come(1)), (False, True))
            now += self.led.SPARE_S
            self.assertFalse(page.may_come(1))

    def test_many_pages(self):
        """As páginas abertas têm a sua parte dos lugares; a que não cabe sabe disso, e o botão responde a todas."""
        server = self.serve(constants={"MAX_VIEWERS_PER_SOURCE": 2})
        first, _second = self.live(server), self.live(server)
        self.assertEqual(self.request(server, "GET", "/eventos")[0], 503)
        own = f"X-Ficha: {self.token(server)}"
        self.assertEqual(self.request(server, "POST", "/comando", own, body=b"LED ON")[0], 200)
        first.expect(b"data: LED ON\n")
        first.close()
        self.until(lambda: self.reopens(server), "o lugar da página fechada se abre")

    def reopens(self, server):
        conn = self.connect(server)
        conn.send(b"GET /eventos HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return conn.recv().startswith(b"HTTP/1.1 200")

    def test_secret(self):
        """Com senha, a página a pede; quem erra espera, como nas linhas; quem acerta leva um cookie que não se lê."""
        server = self.serve("--senha-arquivo", self.secret())
        token = self.token(server)
        page = self.request(server, "GET", "/")[2]
        self.assertIn("type=password", page)
        self.assertEqual(self.request(server, "GET", "/eventos")[0], 403)
        self.assertEqual(self.request(server, "POST", "/comando", f"X-Ficha: {token}", body=b"LED ON")[0], 403)
        form = f"ficha={token}&senha=".encode()
        status, headers, text = self.request(server, "POST", "/entrar", body=form + b"errada")
        self.assertEqual((status, "set-cookie" in headers), (403, False))
        self.assertRegex(text, "role=alert>ERRO senha recusada; espere(?s:.*)type=password")
        form += b"uma senha de teste"
        self.assertEqual(self.request(server, "POST", "/entrar", body=form)[0], 403, "na espera")

    def test_session(self):
        server = self.serve("--senha-arquivo", self.secret())
        token = self.token(server)
        form = f"ficha={token}&senha=uma+senha+de+teste".encode()
        status, headers, _ = self.request(server, "POST", "/entrar", body=form)
        cookie, *rest = headers["set-cookie"].split("; ")
        self.assertEqual((status, {"HttpOnly", "SameSite=Strict", "Path=/"} - set(rest)), (303, set()))
        for others in ("a=b", 'a={"b": "c, d"}', "é=@[ ]", "="):
            # Cookies são da máquina toda: os de outro programa, noutra porta, vêm junto.
            self.assertIn("role=status", self.request(server, "GET", "/", f"Cookie: {others}; {cookie}")[2], others)
        own = f"Cookie: {cookie}", f"X-Ficha: {token}"
        self.assertEqual(self.request(server, "POST", "/comando", *own, body=b"LED ON")[2], "OK LED ON\n")
        name = cookie.partition("=")[0]
        for other in (f"{name}=x", f"{name}=", "=;;=", f"outro={cookie}"):
            self.assertEqual(self.request(server, "GET", "/eventos", f"Cookie: {other}")[0], 403, other)

    def test_secret_only_where_nobody_listens(self):
        """Sem TLS, a senha só se digita na própria máquina: pela rede, o cookie seria de quem a escuta."""
        server = self.server(secret=self.led.Secret(b"uma senha", print))
        request = self.led.parse_head(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n")
        client = mock.Mock()
        for host, asked in (("192.0.2.7", False), ("fe80::1%eth0", False), ("127.0.0.1", True),
                            ("::ffff:127.0.0.1", True)):
            client.sock.getpeername.return_value = host, 1
            if asked:
                self.assertIn(b"type=password", server.page.answer(client, request))
            else:
                with self.assertRaisesRegex(self.led.Refusal, "--certificado"):
                    server.page.answer(client, request)

    def test_sessions_are_bounded(self):
        server = self.server(secret=self.led.Secret(b"uma senha", print))
        client = mock.Mock(challenge="texto", source="127.0.0.1")
        for _ in range(self.led.MAX_SESSIONS + 5):
            body = f"ficha={server.page.token}&senha=uma+senha".encode()
            request = self.led.parse_head(b"POST /entrar HTTP/1.1\r\nHost: a\r\n")._replace(body=body)
            self.assertIn(b"303 See Other", server.page.answer(client, request))
        self.assertEqual(len(server.page.sessions), self.led.MAX_SESSIONS)

    def test_page_over_tls(self):
        cert, key = self.certificate()
        server = self.serve("--certificado", cert, "--chave", key, "--senha-arquivo", self.secret())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        token = self.token(server, wrap=context.wrap_socket)
        form = f"ficha={token}&senha=uma+senha+de+teste".encode()
        status, headers, _ = self.request(server, "POST", "/entrar", body=form, wrap=context.wrap_socket)
        self.assertEqual(status, 303)
        self.assertIn("; Secure", headers["set-cookie"])


class FakeBroker:
    """Um broker de mentira: o teste aceita cada ligação, lê os pacotes e responde o que quiser."""

    def __init__(self, case, tls=None):
        self.case, self.tls, self.listener = case, tls, socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(WATCHDOG_S)
        case.addCleanup(self.listener.close)
        self.port = self.listener.getsockname()[1]

    def accept(self):
        """Uma ligação, ainda sem uma palavra nossa; connect guarda o corpo do CONNECT."""
        sock = self.listener.accept()[0]
        sock.settimeout(WATCHDOG_S)
        if self.tls:
            sock = self.tls.wrap_socket(sock, server_side=True)
        self.case.addCleanup(sock.close)
        link = BrokerLink(self.case, sock)
        first, link.hello = link.packet()
        self.case.assertEqual(first, 0x10, "CONNECT")
        return link

    def welcome(self, suback=b"\0\0\0"):
        """Aceita; lê o anúncio, até o SUBSCRIBE, e concede o pedido. link.announced: as mensagens dele."""
        link = self.accept()
        link.send(b"\x20\x02\0\0")
        link.announced = []
        first, body = link.packet()
        while first >> 4 == 3:
            link.announced.append(link.understand(first, body))
            first, body = link.packet()
        self.case.assertEqual(first, 0x82, "SUBSCRIBE")
        link.wanted = body[2:]
        link.send(bytes([0x90, 2 + len(suback)]) + body[:2] + suback)
        return link


class BrokerLink(Conn):
    """Uma ligação do broker de mentira, com um leitor de pacotes que não é o do script."""

    def take(self, size):
        while len(self.data) < size:
            if not self.recv():
                self.case.fail(f"desligou com {self.data!r}")
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def packet(self):
        """(primeiro byte, corpo) do próximo pacote."""
        first, size, shift = self.take(1)[0], 0, 0
        while True:
            byte = self.take(1)[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return first, self.take(size)

    def understand(self, first, body):
        """(tópico sem led_gpio/sala/, mensagem, retida?); e o PUBACK de quem o espera."""
        size = int.from_bytes(body[:2], "big")
        topic, rest = body[2:2 + size].decode(), body[2 + size:]
        if first & 6:
            self.send(b"\x40\x02" + rest[:2])
            rest = rest[2:]
        return topic.replace("led_gpio/sala/", ""), rest.decode(), first & 1

    def message(self):
        """O próximo PUBLISH, que tem de ser o próximo pacote."""
        first, body = self.packet()
        self.case.assertEqual(first >> 4, 3, (first, body))
        return self.understand(first, body)

    def publish(self, topic, payload, flags=0, number=b"", base="led_gpio/sala/"):
        topic = (base + topic).encode()
        body = struct.pack("!H", len(topic)) + topic + number + payload.encode()
        size = bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 127 | 128, len(body) >> 7])
        self.send(bytes([0x30 | flags]) + size + body)


class TestLedGpioPackets(LedTestCase):
    """MQTT 3.1.1 em bytes."""

    def packets(self, data, *cuts):
        """Os pacotes de data, entregue cortado nestes lugares."""
        packets, found = self.led.Packets(), []
        for first, last in zip((0, *cuts), (*cuts, len(data))):
            found += packets.feed(data[first:last])
        return found

    def test_known_bytes(self):
        """Os do README: os mesmos que saem de paho-mqtt e de mosquitto_pub, menos o keepalive."""
        led = self.led
        section = README.read_text(encoding="utf-8").split("\n### Uma casa cheia de Pis: MQTT\n")[1]
        found = dict(re.findall(r"^(CONNECT|PUBLISH|SUBSCRIBE) +((?:[0-9a-f ]|\n +)+)$", section, re.M))
        vectors = {name: bytes.fromhex("".join(text.split())) for name, text in found.items()}
        made = led.mqtt_connect("pi-sala", "led_gpio/pi-sala/online", "pi", b"senha")
        self.assertEqual(made, vectors["CONNECT"])
        topic = "led_gpio/pi-sala/led"
        self.assertEqual(led.mqtt_publish(topic, "ON", led.RETAIN), vectors["PUBLISH"])
        self.assertEqual(led.mqtt_subscribe(3, topic + "/set"), vectors["SUBSCRIBE"])
        self.assertEqual(led.mqtt_publish(topic, "OFF", 3, 1).hex(), "331b0014" + topic.encode().hex() + "00014f4646")
        self.assertEqual((led.mqtt_packet(12), led.mqtt_packet(14)), (b"\xc0\0", b"\xe0\0"))

    def test_lengths(self):
        for size, head in ((0, "00"), (127, "7f"), (128, "8001"), (16383, "ff7f"), (16384, "808001"),
                           (2097152, "80808001")):
            with self.subTest(size):
                data = b"\x20\0" + self.led.mqtt_packet(3, bytes(size))
                self.assertEqual(data[3:3 + len(head) // 2].hex(), head)
                packet = self.packets(data)[1]
                self.assertEqual(len(packet.body), min(size, self.led.MQTT_PACKET_LIMIT))
                self.assertEqual(packet.whole, size <= self.led.MQTT_PACKET_LIMIT)

    def test_split_anywhere_and_together(self):
        data = b"\x20\2\0\0" + self.led.mqtt_publish("a", "x" * 200, 2, 7) + self.led.mqtt_packet(13) * 2
        wanted = self.packets(data)
        self.assertEqual([packet.kind for packet in wanted], [2, 3, 13, 13])
        for cut in range(1, len(data)):
            self.assertEqual(self.packets(data, cut), wanted, cut)
        self.assertEqual(self.packets(data, *range(1, len(data))), wanted)

    def test_a_giant_takes_no_memory(self):
        packets = self.led.Packets()
        list(packets.feed(b"\x20\2\0\0\x32\xff\xff\x7f\0\1a\0\7"))
        for _ in range(63):
            self.assertEqual(len(list(packets.feed(bytes(32768)))), 0)
            self.assertLessEqual(len(packets.data) + len(packets.body), self.led.MQTT_PACKET_LIMIT)
        last = list(packets.feed(bytes(2097151 - 63 * 32768 - 5) + b"\xd0\0"))
        self.assertEqual([(packet.kind, packet.whole) for packet in last], [(3, False), (13, True)])
        self.assertEqual(self.led.read_publish(last[0]).number, b"\0\7")

    def test_what_is_not_mqtt(self):
        for data in (b"HTTP/1.1 400", b"SSH-2.0", b"\x15\3\3\0\2", b"\x30\0", b"\x20\xff\xff\xff\xff\1"):
            with self.subTest(data), self.assertRaises(self.led.ProtocolError):
                self.packets(data)
        for flags, body in ((0, b""), (0, b"\0"), (0, b"\0\5abc"), (2, b"\0\1a"), (2, b"\0\1a\0")):
            with self.subTest(body), self.assertRaises(self.led.ProtocolError):
                self.led.read_publish(self.led.Packet(3, flags, body, True))

    def test_random_bytes(self):
        chance = random.Random(SEED)
        for round_number in range(2000):
            packets = self.led.Packets()
            data = b"\x20\0" + bytes(chance.randrange(256) for _ in range(chance.randrange(40)))
            try:
                for packet in packets.feed(data):
                    if packet.kind == 3:
                        self.led.read_publish(packet)
            except self.led.ProtocolError:
                pass
            except Exception as error:
                self.fail(f"SEMENTE={SEED}, rodada {round_number}: {data!r}: {error!r}")


class TestLedGpioMqtt(LedTestCase):
    """O LED e um broker de mentira, que faz o que cada broker de verdade faz."""

    def setUp(self):
        self.broker = FakeBroker(self)

    def start(self, *args, action="servidor", port=None, **constants):
        """O script ligado ao broker: pausas de um instante, e nada mais curto que não se peça."""
        args = ["--gpio", "simulado", "--mqtt", f"127.0.0.1:{port or self.broker.port}", "--nome", "sala", *args]
        if action != "servidor":
            self.fifo = self.folder() / "fifo"
            args += ["--fifo", self.fifo]
        constants = {"MQTT_RETRY_S": 0.01, **constants}
        return self.spawn("led_gpio.py", action, "127.0.0.1", 0 if action != "botao" else 1, *args,
                          ready=None if action == "botao" else READY, constants=constants)

    def pem(self):
        """Certificado e chave num arquivo só."""
        pem = self.folder() / "pem"
        pem.write_bytes(b"".join(pathlib.Path(path).read_bytes() for path in self.certificate()))
        return pem

    def press(self):
        with open(self.fifo, "w") as fifo:
            fifo.write("\n")

    def mqtt(self, *words, **house):
        args = self.parse("servidor", "--mqtt", "127.0.0.1:1", *words)
        link = self.led.Mqtt(args, FakeHouse())
        self.addCleanup(link.close)
        return link

    def test_command_state_and_button(self):
        child = self.start(action="iniciar")
        link = self.broker.welcome()
        child.expect(rf"^mqtt: ligado a 127.0.0.1 porta {self.broker.port}\n"
                     rf"mande: mosquitto_pub -p {self.broker.port} -t led_gpio/sala/led/set -m ON$")
        for word, state in (("ON", "ON"), (" on\n", "ON"), ("Toggle", "OFF"), ("OFF", "OFF")):
            link.publish("led/set", word)
            self.assertEqual(link.message(), ("led", state, 1), "a resposta é o estado, mude ele ou não")
        self.assertEqual(self.ask(child, b"LED ON"), b"OK LED ON")
        self.assertEqual(link.message(), ("led", "ON", 1))
        link.publish("led/set", "42\x1b[2J")
        child.expect_error(r"mqtt: 42\\x1b\[2J não é ON, OFF nem TOGGLE")
        self.press()
        said = sorted([link.message(), link.message()])
        self.assertEqual(said, [("botao", '{"event_type": "press"}', 0), ("led", "OFF", 1)])

    def test_nothing_before_the_connack(self):
        """Armadilhas 2 e 8: um broker pode publicar o testamento antigo depois de um online apressado; e uma ordem
        guardada de ontem não acende nada hoje."""
        self.start()
        link = self.broker.accept()
        self.assertEqual(link.hello[:8], b"\0\4MQTT\4\x2e", "3.1.1, sessão limpa, testamento retido com QoS 1")
        link.send(b"\x20\2\0\5")
        self.assertEqual(link.expect_eof(), b"")
        link = self.broker.welcome()
        topics = [topic for topic, _, _ in link.announced]
        self.assertEqual(topics, ["homeassistant/device/sala/config", "led", "online"])
        self.assertEqual(link.announced[1:], [("led", "OFF", 1), ("online", "online", 1)])

    def test_what_it_listens_to(self):
        """Armadilha 10: pedidos que se cruzam trazem duas cópias de uma ordem, e dois TOGGLE se anulam."""
        self.start()
        wanted, topics = self.broker.welcome().wanted, []
        while wanted:
            size = int.from_bytes(wanted[:2], "big")
            topics.append((wanted[2:2 + size].decode(), wanted[2 + size]))
            wanted = wanted[3 + size:]
        self.assertEqual(sorted(topics), [("homeassistant/status", 0), ("led_gpio/sala/led/set", 0),
                                          ("led_gpio/sala/online", 0)])

    def test_wrong_password(self):
        """Armadilha 1: o que num broker é 4, noutro é 5; e a queixa repetida não se repete."""
        child = self.start("--mqtt-usuario", "pi", "--mqtt-senha-arquivo", self.secret("abc"))
        for code in (4, 5, 4):
            link = self.broker.accept()
            self.assertTrue(link.hello.endswith(b"\0\2pi\0\3abc"), link.hello)
            link.send(bytes([0x20, 2, 0, code]))
            link.expect_eof()
        self.broker.accept()
        self.assertEqual(child.errors().count("recusou o usuário ou a senha"), 1, child.errors())

    def test_each_refusal_has_its_sentence(self):
        child = self.start()
        for code, words in ((1, "não fala MQTT 3.1.1"), (2, "--nome OUTRO"), (3, "indisponível"),
                            (99, "recusou a ligação")):
            self.broker.accept().send(bytes([0x20, 2, 0, code]))
            child.expect_error(words)

    def test_offline_of_another(self):
        """Armadilha 3: o testamento de uma ligação antiga chega atrasado (amqtt); o desmentido tem teto."""
        self.start()
        link = self.broker.welcome()
        for _ in range(self.led.MQTT_HEALS):
            link.publish("online", "offline")
            self.assertEqual(link.message(), ("online", "online", 1))
        link.publish("online", "offline")
        link.publish("led/set", "ON")
        self.assertEqual(link.message(), ("led", "ON", 1), "nem um desmentido a mais")

    def test_offline_is_denied_later(self):
        """O desmentido acima do teto só se adia."""
        self.start(MQTT_HEALS=1, MQTT_HEALS_S=0.3)
        link = self.broker.welcome()
        for _ in range(2):
            link.publish("online", "offline")
            self.assertEqual(link.message(), ("online", "online", 1))

    def test_two_with_the_same_name(self):
        """Armadilha 4: um derruba o outro, e cada um volta: no máximo sete vezes em um minuto."""
        link, pauses = self.mqtt(), []

        def rest(seconds):
            pauses.append(seconds)
            link.ending = len(pauses) == 10
        with mock.patch.multiple(link, rest=rest, converse=mock.Mock(side_effect=ConnectionResetError)):
            link.run()
        at, times = 0, 0
        for pause in pauses:
            times += at < 60
            at += pause
        self.assertLessEqual(times, 7, pauses)
        self.assertLessEqual(max(pauses), 1.25 * self.led.MQTT_RETRY_MAX_S)

    def test_the_pause_starts_again_after_a_long_session(self):
        link, pauses, now = self.mqtt(), [], [0]

        def converse():
            now[0] += 61 if len(pauses) == 3 else 1
            raise ConnectionResetError

        def rest(seconds):
            pauses.append(seconds)
            link.ending = len(pauses) == 4
        with mock.patch.multiple(link, rest=rest, converse=converse), \
                mock.patch.object(self.led.time, "monotonic", lambda: now[0]), \
                mock.patch.object(self.led.random, "uniform", lambda *_: 1):
            link.run()
        self.assertEqual(pauses, [1, 2, 4, 1])

    def test_defect_of_ours(self):
        """L8: um erro que ninguém previu acaba com a ligação, e é dito; a seguinte é outra."""
        link, calls = self.mqtt(), []

        def converse():
            calls.append(len(calls))
            link.ending = len(calls) == 3
            raise KeyError("imprevisto")
        with mock.patch.multiple(link, rest=lambda _: None, converse=converse):
            link.run()
        self.assertEqual(len(calls), 3)
        self.assertEqual(len(link.house.said), 1, link.house.said)
        self.assertIn("um defeito de led_gpio.py cortou a ligação", link.house.said[0])

    def test_own_name(self):
        """Armadilhas 5 e 15: o mesmo depois de um reinício, outro em cada placa, e próprio para um tópico."""
        folder = self.folder()
        (folder / "serial").write_bytes(b"100000003d1d1c36\0")
        (folder / "eth0").mkdir()
        (folder / "eth0" / "device").mkdir()
        (folder / "eth0" / "address").write_text("dc:a6:32:01:02:03\n")
        led = load("led_gpio.py")
        led.CARDS = str(folder / "*" / "device")

        def name(host, serial="serial", action="servidor"):
            led.SERIAL_PATH = str(folder / serial)
            with mock.patch.object(led.socket, "gethostname", lambda: host):
                return led.own_name(action)
        self.assertEqual(name("raspberrypi"), "raspberrypi-3d1d1c36")
        self.assertEqual(name("raspberrypi", "nada"), "raspberrypi-32010203")
        self.assertEqual(name("pi.casa.lan"), "pi-3d1d1c36")
        self.assertEqual(name("ç ã"), "led-3d1d1c36")
        self.assertEqual(name("pi", action="botao"), "pi-3d1d1c36-botao")
        for host in ("p" * 80, "pi do fundo", "açaí-do-pará", ""):
            self.assertRegex(name(host), r"\A[A-Za-z0-9_-]{1,23}\Z")
        shutil.rmtree(folder / "eth0")
        self.assertEqual(name("pi", "nada"), "pi")

    def test_home_assistant_is_born(self):
        """Armadilha 6: há broker que não repete o que ficou retido; quem nasce ouve tudo outra vez."""
        self.start()
        link = self.broker.welcome()
        link.publish("homeassistant/status", "online", flags=1, base="")
        link.publish("homeassistant/status", "offline", base="")
        link.publish("led/set", "ON")
        self.assertEqual(link.message(), ("led", "ON", 1), "o retido é de antes de nós")
        link.publish("homeassistant/status", "online", base="")
        self.assertEqual([link.message()[0] for _ in range(3)], ["homeassistant/device/sala/config", "led", "online"])

    def test_retained_order(self):
        """Armadilha 7: a ordem retida é de ontem; a resposta diz como apagá-la."""
        child = self.start()
        link = self.broker.welcome()
        link.publish("led/set", "ON", flags=1)
        link.publish("led/set", "", flags=1)
        link.publish("led/set", "OFF")
        self.assertEqual(link.message(), ("led", "OFF", 1))
        child.expect_error("ordem retida em led_gpio/sala/led/set, ignorada. Para apagá-la: mosquitto_pub .* -r -n")

    def test_every_message_is_acknowledged(self):
        """Armadilhas 9 e 16: sem um PUBACK, há broker que se cala; também o das que não se leem."""
        self.start()
        link = self.broker.welcome()
        ignored = (("nunca/pedido", "x"), ("led/set", "x" * 9000), ("online", "x" * 3000))
        for number, (topic, payload) in enumerate(ignored, 1):
            link.publish(topic, payload, 2, struct.pack("!H", number))
            self.assertEqual(link.packet(), (0x40, struct.pack("!H", number)))
        link.publish("led/set", "ON", 2, b"\0\7")
        self.assertEqual(link.packet(), (0x40, b"\0\7"))
        self.assertEqual(link.message(), ("led", "ON", 1))

    def test_the_keepalive_counts_what_is_sent(self):
        """Armadilha 11: ouvir não conta; o broker desliga quem não fala, por mais que lhe fale."""
        self.start(MQTT_KEEPALIVE_S=1)
        link = self.broker.welcome()
        self.assertEqual(link.hello[8:10], b"\0\1")
        link.sock.settimeout(0.05)
        while not link.data:
            link.publish("nunca/pedido", "x")
            with contextlib.suppress(socket.timeout):
                link.recv()
        self.assertEqual(link.data, b"\xc0\0")

    def test_frozen_broker(self):
        """Armadilha 12: quem não responde ao PINGREQ, ou ao CONNECT, é deixado; e o LED por TCP nem nota."""
        child = self.start(MQTT_KEEPALIVE_S=1, MQTT_ANSWER_S=0.2)
        link = self.broker.welcome()
        self.assertEqual(self.ask(child, b"LED ON"), b"OK LED ON")
        self.assertEqual(link.message(), ("led", "ON", 1))
        while link.packet() != (0xC0, b""):
            pass
        second = self.broker.accept()
        child.expect_error("o broker em 127.0.0.1 porta .* não responde; nova tentativa")
        self.assertEqual(self.ask(child, b"LED OFF"), b"OK LED OFF")
        second.expect_eof()
        self.broker.accept()
        self.stop(child)

    def test_tls(self):
        """Armadilha 13: três pacotes num só registro TLS não ficam dentro do OpenSSL; e quem não se prova não serve."""
        pem = self.pem()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self.broker.tls = context
        child = self.start("--mqtt-ca", pem)
        link = self.broker.accept()
        order = b"\x30\x19\0\x15led_gpio/sala/led/setON"
        link.send(b"\x20\2\0\0" + order + order)
        self.assertEqual([link.message()[:2] for _ in range(3)][1:], [("led", "OFF"), ("online", "online")])
        self.assertEqual(link.packet()[0], 0x82)
        self.assertEqual(link.message(), ("led", "ON", 1))
        self.stop(child)
        self.assertNotIn("em claro", child.errors())

    @needs_ssl
    def test_tls_of_a_stranger(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem())
        child = self.start("--mqtt-ca", self.pem())
        sock = self.broker.listener.accept()[0]
        with contextlib.suppress(OSError):
            context.wrap_socket(sock, server_side=True).close()
        sock.close()
        child.expect_error("mqtt: o certificado de 127.0.0.1 porta .*, e não está em --mqtt-ca; nova tentativa")

    def test_tls_on_one_side_only(self):
        """Quem não fala TLS desliga sem uma palavra, e quem fala também: cada lado ouve o que tentar."""
        for options, words in (((), "Lá é TLS[?] --mqtt-ca ARQUIVO"),
                               (("--mqtt-ca", self.pem()), "Lá não é TLS[?] Sem --mqtt-ca")):
            self.broker = FakeBroker(self)
            child = self.start(*options)
            sock = self.broker.listener.accept()[0]
            sock.recv(1)  # antes disso, o RST acharia o Python a meio de fazer o socket de TLS, que ele não fecha
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            child.expect_error(f"mqtt: 127.0.0.1 porta .* desligou sem responder: .*[.] {words}; nova tentativa")
            self.stop(child)

    def test_no_way_to_the_broker(self):
        """N16: sem caminho até o broker, ele não desligou, e o TLS não tem nada com isso."""
        said = self.mqtt().explain(OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)))
        self.assertEqual(said, "não foi possível falar com 127.0.0.1 porta 1: não há caminho até lá")

    @needs_ssl
    def test_broker_that_wants_our_certificate(self):
        """Armadilha 13: no TLS 1.3 o aperto de mão dá certo, e só a primeira leitura diz que não nos querem."""
        error = ssl.SSLError(1, "x")
        error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        link = self.mqtt()
        self.assertIn("pede um certificado nosso, e só sabemos usuário e senha", link.explain(error))
        self.assertRegex(link.explain(ssl.SSLEOFError(8, "EOF occurred")), "cortou o TLS sem uma palavra[.] Pede")
        error.reason = None
        self.assertRegex(link.explain(error), "^sem TLS com 127.0.0.1 porta 1: .* Lá é a porta do TLS[?]$")

    def test_the_command_shown_reaches_this_broker(self):
        """N13: o que se mostra para digitar traz a máquina, a porta, a autoridade e o usuário; a senha, não."""
        self.assertEqual(self.mqtt().shell("mosquitto_sub"), "mosquitto_sub -p 1")
        secret = self.secret("abc")
        link = self.mqtt("--mqtt-ca", self.pem(), "--mqtt-usuario", "zé; ls", "--mqtt-senha-arquivo", secret)
        self.assertEqual(link.shell("mosquitto_sub"), f"mosquitto_sub -h 127.0.0.1 -p 1 --cafile {link.args.mqtt_ca} "
                         f"-u 'zé; ls' -P \"$(cat {secret})\"")

    def test_silent_permissions(self):
        """Armadilha 14: o mosquitto confirma o que a ACL dele joga fora; só o que não volta o denuncia."""
        child = self.start(MQTT_ANSWER_S=0.1)
        self.broker.welcome()
        child.expect_error(r"mqtt: o broker não deixa publicar ou assinar em led_gpio/sala/#")

    def test_echo_means_permission(self):
        child = self.start(MQTT_ANSWER_S=0.2)
        link = self.broker.welcome()
        link.publish("online", "online", flags=1)
        link.publish("led/set", "ON")
        self.assertEqual(link.message(), ("led", "ON", 1))
        self.stop(child)
        self.assertNotIn("não deixa", child.errors())

    def test_refused_subscription(self):
        child = self.start()
        self.broker.welcome(suback=b"\0\0\x80")
        child.expect_error("o broker não deixa assinar")

    def test_discovery(self):
        """Armadilha 15: o Home Assistant recusa o documento por uma chave a mais, e só o registro dele o diz."""
        for components in (["led"], ["botao"], ["led", "botao"]):
            document = json.loads(self.led.discovery("sala", components))
            self.assertEqual(set(document), {"device", "origin", "availability_topic", "components"})
            self.assertLessEqual(set(document["device"]), {"identifiers", "name", "model"})
            self.assertEqual(set(document["origin"]), {"name", "sw_version"})
            for name, platform in (("led", "light"), ("botao", "event")):
                part = document["components"][name]
                self.assertEqual(part["platform"], platform)
                self.assertEqual("unique_id" in part, name in components)
        self.assertLess(len(json.dumps(document)), 1024)

    def test_not_a_broker(self):
        """Armadilha 16: uma porta de HTTP se denuncia no primeiro byte, e é dita."""
        child = self.start()
        self.broker.accept().send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        child.expect_error("porta .* não é um broker MQTT 3.1.1")
        self.broker.accept().send(b"\x20\x03\0\0\0")
        self.broker.welcome()

    def test_in_pieces(self):
        """Armadilha 16: um byte de cada vez, e a ordem antes do SUBACK (aedes)."""
        self.start()
        link = self.broker.accept()
        for byte in b"\x20\2\0\0\x30\x19\0\x15led_gpio/sala/led/setON\x90\5\0\1\0\0\0":
            link.send(bytes([byte]))
        first, body = link.packet()
        while (first >> 4, body[-2:]) != (3, b"ON"):
            first, body = link.packet()

    def test_broker_restarts(self):
        """Armadilha 17: o que o broker guardou pode ser de antes; a cada ligação, tudo outra vez."""
        child = self.start()
        self.broker.welcome().close()
        self.assertEqual(self.ask(child, b"LED ON"), b"OK LED ON")
        link = self.broker.welcome()
        self.assertEqual(link.announced[1:], [("led", "ON", 1), ("online", "online", 1)])
        child.expect_error("desligou. Outro com o nome sala. --nome OUTRO; nova tentativa")

    def test_goodbye(self):
        """Armadilha 18: o estado em que --ao-sair deixa o LED, offline, DISCONNECT: e o testamento não vale mais."""
        child = self.start()
        link = self.broker.welcome()
        link.publish("led/set", "ON")
        self.assertEqual(link.message(), ("led", "ON", 1))
        child.kill(signal.SIGTERM)
        self.assertEqual([link.message(), link.message()], [("led", "OFF", 1), ("online", "offline", 1)])
        self.assertEqual(link.packet(), (0xE0, b""))
        self.assertEqual(link.expect_eof(), b"")
        link.close()
        self.assertEqual(child.wait(), 0)

    def test_no_broker(self):
        """O LED por TCP nunca espera pelo broker; a falta dele é uma linha só; e um toque sem ele se diz."""
        child = self.start(action="iniciar", port=free_port())
        child.expect_error("mqtt: nenhum broker em 127.0.0.1 porta .* mosquitto start .*; nova tentativa em 0.01 s")
        self.assertEqual(self.ask(child, b"LED ON"), b"OK LED ON")
        child.expect_error("à espera de toques")
        self.press()
        child.expect_error("mqtt: o toque não foi publicado: sem broker")
        self.assertEqual(child.errors().count("nenhum broker"), 1)

    def test_button_alone(self):
        """`botao` não tem LED que obedeça: publica toques, e não ouve ordens."""
        child = self.start(action="botao")
        link = self.broker.welcome(suback=b"\0\0")
        self.assertEqual([topic for topic, _, _ in link.announced], ["homeassistant/device/sala/config", "online"])
        self.assertNotIn(b"set", link.wanted)
        child.expect_error("à espera de toques")
        self.press()
        self.assertEqual(link.message(), ("botao", '{"event_type": "press"}', 0))

    def test_bad_usage(self):
        for words, said in ((("--nome", "sala"), "só valem junto de --mqtt"),
                            (("--mqtt", "h", "--nome", "sala de estar"), "como sala-de-estar"),
                            (("--mqtt", "h:99999"), "uma porta de 0 a 65535"),
                            (("--mqtt", "h", "--mqtt-senha-arquivo", "x"), "junto de --mqtt-usuario")):
            with self.subTest(words):
                result = self.run_script("led_gpio.py", "--gpio", "simulado", *words)
                self.assert_one_line_error(result, said, status=2)
        result = self.run_script("led_gpio.py", "--gpio", "simulado", "--mqtt", "h", "--mqtt-usuario", "a",
                                 "--mqtt-senha-arquivo", "/nao/existe")
        self.assert_one_line_error(result, "escreva nele a senha que o broker espera")

    def test_broker_address(self):
        for text, wanted in (("h", ("h", None)), ("h:1", ("h", 1)), ("[::1]:2", ("::1", 2)), ("[::1]", ("::1", None)),
                             ("::1", ("::1", None)), ("fe80::1%eth0", ("fe80::1%eth0", None))):
            self.assertEqual(self.led.broker_address(text), wanted)

    @unittest.skipUnless(shutil.which("mosquitto", path="/usr/sbin:" + os.environ.get("PATH", "")), "sem mosquitto")
    def test_mosquitto(self):
        """Um broker de verdade, e um processo morto sem se despedir: o broker o diz offline."""
        port = free_port()
        program = shutil.which("mosquitto", path="/usr/sbin:" + os.environ["PATH"])
        mosquitto = subprocess.Popen([program, "-p", str(port)], stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL)
        self.addCleanup(mosquitto.wait)
        self.addCleanup(mosquitto.kill)
        child = self.start(port=port)
        child.status = None
        child.expect("mqtt: ligado")
        link = BrokerLink(self, socket.create_connection(("127.0.0.1", port)))
        self.addCleanup(link.close)
        link.send(b"\x10\x0d\0\4MQTT\4\2\0\0\0\1t")
        link.expect(b"\x20\2\0\0")
        link.send(b"\x82\x14\0\1\0\x0fled_gpio/sala/+\0")
        link.expect(b"\x90\3\0\1\0")
        # Assinado a tempo de ver a publicação, ou depois dela: o estado é o mesmo.
        first = sorted([link.message()[:2], link.message()[:2]])
        self.assertEqual(first, [("led", "OFF"), ("online", "online")])
        link.send(b"\x82\x14\0\2\0\x0fled_gpio/sala/+\0")
        link.expect(b"\x90\3\0\2\0")
        self.assertEqual(sorted([link.message(), link.message()]), [("led", "OFF", 1), ("online", "online", 1)])
        link.publish("led/set", "TOGGLE")
        self.assertEqual(link.message(), ("led", "ON", 0))
        child.kill()
        self.assertEqual(link.message(), ("online", "offline", 0))


def each(*names):
    """Decora um teste para rodar uma vez por script."""
    def decorate(test):
        @functools.wraps(test)
        def run_each(self):
            for name in filter(lambda name: (HERE / name).exists(), names):
                with self.subTest(name):
                    test(self, name)
        return run_each
    return decorate


def naive_program(name):
    """O programa ingênuo da docstring de um script: o bloco recuado depois da linha que diz "ingênuo"."""
    opening = ast.get_docstring(ast.parse((HERE / name).read_text(encoding="utf-8")), clean=False)
    block = re.search(r"^.*ing[êe]nu.*\n\n((?:(?: {4}.*)?\n)+)", opening, re.M)[1]
    return textwrap.dedent(block).strip("\n") + "\n"


def lacks(name):
    """O que lhe falta, pela docstring do script: [(número, [o que cura, ...]), ...]."""
    opening = ast.get_docstring(ast.parse((HERE / name).read_text(encoding="utf-8")), clean=False)
    found = re.findall(r"^ +(\d+)  .+? \.{2,} (.+)$", opening.partition("O que lhe falta")[2], re.M)
    return [(int(number), re.findall(r"[A-Za-z_][\w.]*", re.sub(r"\(.*", "", names))) for number, names in found]


def camel(name):
    """servidor_udp.py -> ServidorUdp, o nome do script nas classes de teste."""
    return "".join(word.capitalize() for word in name[:-3].split("_"))


def capitals(cure):
    """LineBuffer, Client.hang_up, start_tls -> LineBuffer, ClientHangUp, StartTls."""
    return "".join(word[:1].upper() + word[1:] for word in re.split("[._]", cure))


def definitions(tree):
    """Nome (Classe, função ou Classe.método) -> as linhas onde se define."""
    where = collections.defaultdict(list)
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            where[node.name].append(node.lineno)
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef):
                    where[f"{node.name}.{inner.name}"].append(inner.lineno)
    return where


def promise_table(name):
    """A primeira coluna da tabela de promessas de um script no README."""
    table = README.read_text(encoding="utf-8").split(f"\n**{name}**\n\n")[1].split("\n\n")[0]
    return {row.split("|")[1].strip().strip("`") for row in table.splitlines()[2:]}


def docstring_lines(tree):
    """As linhas que as docstrings ocupam."""
    covered = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            covered.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return covered


def count_tokens(source, documented):
    """(linha -> itens léxicos de código, linhas com comentário); docstrings e fins de linha não contam."""
    silent = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    # Do Python 3.12 em diante (PEP 701) uma f-string vem aos pedaços; aqui ela é um item só, como antes.
    start, end = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)
    tokens, comments, inside = collections.Counter(), set(), 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            comments.add(line)
        elif token.type not in silent and line not in documented and not inside:
            tokens[line] += 1
        inside += (token.type == start) - (token.type == end)
    return tokens, comments


def births(tree):
    """Quantos atributos nascem, em média, por linha de __init__ que cria algum."""
    born = collections.Counter()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            for statement in ast.walk(function):
                if isinstance(statement, ast.Assign):
                    born[statement.lineno] += sum(
                        isinstance(part, ast.Attribute) and getattr(part.value, "id", "") == "self"
                        for target in statement.targets for part in ast.walk(target))
    made = [count for count in born.values() if count]
    return sum(made) / max(len(made), 1)


each_script = each(*SCRIPTS)
# Os que já se contam do programa ingênuo ao que aguenta (quem termina o seu, põe-no aqui).
RETOLD = SCRIPTS
each_retold = each(*RETOLD)
each_server = each("servidor.py", "servidor_udp.py", "led_gpio.py")
each_source = each(*SCRIPTS, "test_all.py")


class TestTodos(ScriptTestCase):
    """O que todo script faz igual: uso errado, erros de endereço, cano fechado, saída sem acentos."""

    @each_script
    def test_help_and_version(self, script):
        """--help e --version, em qualquer codificação: os acentos se perdem, nada quebra."""
        for encoding in ("utf-8", "ascii", "cp1252"):
            text = self.run_script(script, "--help", env={"PYTHONIOENCODING": encoding, "COLUMNS": "80"}, status=0).text
            self.assertIn("uso: ", text)
            self.assertLessEqual(max(map(len, text.splitlines())), 80)
        version = self.run_script(script, "--version", status=0).text
        self.assertEqual(version, f"{script} {load(script).VERSION}\n")

    @each_script
    def test_python_with_modules_missing(self, script):
        """Um Python compilado à mão, sem OpenSSL, readline nem zlib: só o TLS falta, e o erro diz o que instalar."""
        env = {"PYTHONPATH": self.folder()}
        for module in ("ssl", "readline", "zlib"):
            (env["PYTHONPATH"] / f"{module}.py").write_text(f"raise ImportError('No module named {module}')")
        self.run_script(script, "--version", env=env, status=0)
        words = {"servidor.py": ("--certificado", "eu.pem"), "cliente.py": ("--tls", "127.0.0.1"),
                 "led_gpio.py": ("enviar", "ON", "--tls")}
        if script in words:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = (listener.getsockname()[1],) * (script == "cliente.py")
                result = self.run_script(script, *words[script], *port, env=env)
            self.assert_one_line_error(result, "não tem o módulo ssl", "sudo apt install python3")
        if script == "cliente.py":
            server = self.spawn("servidor.py", "127.0.0.1", "0", env=env)
            client = self.run_script(script, server.host, server.port, "--mensagem", "olá", env=env, status=0)
            self.assertEqual(client.text, "olá\n")
        elif script == "led_gpio.py":
            server = self.spawn(script, "127.0.0.1", "0", "--gpio", "simulado", env=env)
            result = self.run_script(script, "enviar", "ON", server.host, server.port, env=env, status=0)
            self.assertEqual(result.text, "OK LED ON\n")

    @each_script
    def test_python_without_its_library(self, script):
        """O python3-minimal do Debian vem sem shlex, hmac, html...: uma linha com o que falta e o que se instala."""
        env = {"PYTHONPATH": self.folder()}
        text = "raise ModuleNotFoundError(\"No module named 'shlex'\", name='shlex')"
        (env["PYTHONPATH"] / "shlex.py").write_text(text)
        result = self.run_script(script, "--version", env=env)
        self.assert_one_line_error(result, "este Python veio sem o módulo shlex", "sudo apt install python3")

    @each_server
    def test_port_in_the_place_of_the_address(self, script):
        result = self.run_script(script, 8081)
        self.assert_one_line_error(result, f"./{script} 127.0.0.1 8081", status=2)

    @each_server
    def test_bad_numbers(self, script):
        for port in ("70000", "-1", "abc", "1.5"):
            result = self.run_script(script, "127.0.0.1", "--", port)
            self.assertEqual(result.status, 2, result)
            self.assertEqual(result.err.count("\n"), 1, result)

    @each_server
    def test_port_busy(self, script):
        kind = socket.SOCK_DGRAM if "udp" in script else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as busy:
            busy.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                busy.listen()
            port = busy.getsockname()[1]
            self.assert_one_line_error(self.run_script(script, "127.0.0.1", port), "em uso", f"./{script} 127.0.0.1")

    @each_server
    def test_port_privileged(self, script):
        start = pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        if os.geteuid() == 0 or not start.exists() or int(start.read_text()) < 2:
            self.skipTest("aqui qualquer porta pode ser aberta por quem roda os testes (root, ou sysctl)")
        result = self.run_script(script, "127.0.0.1", 1)
        self.assert_one_line_error(result, "administrador", f"./{script} 127.0.0.1 5001")

    @each_server
    def test_address_of_another_machine(self, script):
        self.assert_one_line_error(self.run_script(script, "192.0.2.1", 0), "não é um endereço desta máquina")

    # Um endereço de enlace no laço de uma rede só nossa.
    LINK_LOCAL = ("unshare", "-rn", "sh", "-c",
                  'ip link set lo up && ip addr add fe80::1/64 dev lo nodad && exec "$@"', "sh")

    @each_server
    def test_link_local_address(self, script):
        """P7: o endereço de enlace se mostra com a interface, e a dica se digita como está; sem ela, diz-se."""
        if not (shutil.which("nsenter") and can(*self.LINK_LOCAL, "true")):
            self.skipTest("sem unshare -rn, nsenter, ip ou IPv6")
        open_to_all = ["--sem-senha"] if script == "led_gpio.py" else []
        server = self.spawn(script, *open_to_all, "fe80::1%lo", 0, prefix=self.LINK_LOCAL)
        self.assertEqual(server.host, "fe80::1%lo")
        inside = ("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(server.pid))
        if script == "led_gpio.py":
            result = self.run_script(script, "enviar", "LED ON", server.host, server.port, prefix=inside, status=0)
            self.assertEqual(result.text, "OK LED ON\n")
        else:
            client, *words = server.expect_error(r"\./(cliente\w*\.py) (fe80::1%lo) (\d+)").groups()
            result = self.run_script(client, *words, "--mensagem", "oi", prefix=inside, status=0)
            self.assertEqual(result.text, "oi\n")
            for host, why in (("fe80::1", "fe80::1%eth0"), ("fe80::1%nada", "interface 'nada'")):
                result = self.run_script(client, host, server.port, "--mensagem", "oi", prefix=inside)
                self.assert_one_line_error(result, why, "ip -br link")
        self.assert_one_line_error(self.run_script(script, *open_to_all, "fe80::1", 0, prefix=inside), "fe80::1%eth0")
        server.stop()

    @each_server
    def test_unknown_host(self, script):
        if not can("unshare", "-rn", "true"):
            self.skipTest("sem unshare -rn, a pergunta ao DNS sairia desta máquina")
        for host in ("nao-existe.invalid", "a..b"):
            result = self.run_script(script, host, 0, prefix=("unshare", "-rn"))
            self.assert_one_line_error(result, "não encontro a máquina")
        result = self.run_script("cliente.py", "nao-existe.invalid", prefix=("unshare", "-rn"))
        self.assert_one_line_error(result, "não encontro a máquina")

    @each_server
    def test_pipe_closed_before_the_first_line(self, script):
        """A saída já fechada na primeira linha: termina quieto."""
        read, write = os.pipe()
        os.close(read)
        server = self.spawn(script, "127.0.0.1", 0, ready=None, stdout=write, status=1)
        os.close(write)
        self.assertEqual(server.wait(), 1)
        self.assertNotRegex(server.errors(), "rror|Errno")

    @each_server
    def test_start_where_nobody_reads(self, script):
        """P4: com a saída cheia e parada já na primeira linha, o servidor atende, e um SIGTERM é o fim."""
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        fill_pipe(write)
        server = self.spawn(script, "127.0.0.1", 0, ready=None, stdout=write)
        os.close(write)
        server.expect_error("(?i)esta máquina|em outro terminal")
        server.kill(signal.SIGTERM)
        self.assertEqual(server.wait(), 0)

    @each_server
    def test_output_on_a_full_disk(self, script):
        """L1: a saída que um disco cheio recusa é dita em stderr, uma vez; o servidor segue, e acaba a pedido."""
        if not os.path.exists("/dev/full"):
            self.skipTest("aqui não há /dev/full")
        with open("/dev/full", "wb") as full:
            server = self.spawn(script, "127.0.0.1", 0, ready=None, stdout=full)
        server.expect_error("^a saída não aceita mais linhas, e elas se perdem: não há mais espaço no disco$")
        self.stop(server)

    def test_the_first_line_is_where_it_listens(self):
        """stdout e stderr num terminal só: o que stderr tem a dizer espera pela primeira linha de stdout."""
        m, written = load("servidor_udp.py"), []
        m.VOICE_PARTING_S = WATCHDOG_S
        m.write_all = lambda fd, data: written.append(bytes(data))
        screen = m.Pen(mock.Mock(encoding="utf-8"), None)
        notes = m.Pen(mock.Mock(encoding="utf-8"), None, after=screen)
        notes.put("modo eco")
        notes.start()
        screen.put("escutando")
        screen.start()
        self.until(lambda: len(written) == 2, "as duas linhas")
        for pen in (screen, notes):
            pen.end()
            pen.join(WATCHDOG_S)
        self.assertEqual(written, [b"escutando\n", b"modo eco\n"])

    def test_one_terminal_keeps_the_order(self):
        """stdout e stderr no mesmo terminal: as linhas saem na ordem em que foram ditas; separados, cada um no seu."""
        m, home, said = load("servidor_udp.py"), self.folder(), [f"linha {number}" for number in range(200)]
        m.VOICE_PARTING_S = WATCHDOG_S
        for names in (("um", "um"), ("dois", "três")):
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context(open(home / name, "a", encoding="utf-8")) for name in names]
                with mock.patch.object(m.sys, "stdout", files[0]), mock.patch.object(m.sys, "stderr", files[1]):
                    voice = m.Voice(None)
                    for number, line in enumerate(said):
                        (voice.note if number % 2 else voice.say)(line)
                    voice.close()
        lines = {name: (home / name).read_text(encoding="utf-8").splitlines() for name in ("um", "dois", "três")}
        self.assertEqual(lines, {"um": said, "dois": said[::2], "três": said[1::2]})

    def test_the_last_lines_do_not_wait_for_the_pause(self):
        """A pausa entre duas idas à saída junta linhas; no fim, o que falta sai já, e inteiro."""
        m, written = load("servidor_udp.py"), []
        m.PEN_PAUSE_S = 10 * WATCHDOG_S
        m.write_all = lambda fd, data: written.append(bytes(data))
        pen = m.Pen(mock.Mock(encoding="utf-8"), None)
        pen.put("a")
        pen.start()
        self.until(lambda: written, "a primeira linha")
        pen.put("b")
        pen.put("c")
        pen.end()
        pen.join(WATCHDOG_S)
        self.assertEqual((written, pen.is_alive()), ([b"a\n", b"b\nc\n"], False))

    @each_script
    def test_output_that_is_not_taken(self, script):
        """L5: `--help | true` acaba quieto, e `--version > /dev/full` numa linha: nunca 0, nunca o inglês do
        interpretador na saída; com e sem PYTHONUNBUFFERED."""
        for env in ({}, {"PYTHONUNBUFFERED": "1"}):
            read, write = os.pipe()
            os.close(read)
            child = self.spawn(script, "--help", ready=None, stdout=write, env=env, status=1)
            os.close(write)
            child.wait()
            self.assertEqual(child.errors(), "")
            if os.path.exists("/dev/full"):
                with open("/dev/full", "wb") as full:
                    child = self.spawn(script, "--version", ready=None, stdout=full, env=env, status=1)
                    child.wait()
                self.assertEqual(child.errors(), f"{script}: erro: não há mais espaço no disco\n")
            # Nenhuma (`>&-`).
            none = ("sh", "-c", 'exec "$@" >&-', "sh")
            child = self.spawn(script, "--help", ready=None, env=env, status=1, prefix=none)
            child.wait()
            self.assertRegex(child.errors(), rf"\A{script}: erro: o descritor está fechado.*\n\Z")
            # Um cano que não espera (O_NONBLOCK), e cheio.
            read, write = os.pipe()
            self.addCleanup(os.close, read)
            fill_pipe(write)
            os.set_blocking(write, False)
            child = self.spawn(script, "--help", ready=None, stdout=write, env=env, status=1)
            child.wait()
            os.close(write)
            self.assertRegex(child.errors(), rf"\A{script}: erro: não quer esperar.*\n\Z")

    # Roda o script com outra ação: deixa algo por escrever na saída, e acaba como o argumento manda.
    UNREAD = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
def action(args):
    sys.stdout.write("por escrever")
    print("pronto", file=sys.stderr)
    if sys.argv[2] == "interrompido":
        os.kill(os.getpid(), signal.SIGTERM)
sys.exit(script.run(script.Parser, action, []))
"""

    @each_script
    def test_the_end_where_nobody_reads(self, script):
        """P4: com a saída cheia e parada, um SIGTERM é o fim, venha antes ou durante as últimas palavras."""
        for how in ("interrompido", "feito"):
            read, write = os.pipe()
            self.addCleanup(os.close, read)
            fill_pipe(write)
            with tempfile.TemporaryFile() as errors:
                child = subprocess.Popen([*PYTHON, "-X", "dev", "-c", self.UNREAD, str(HERE / script), how],
                                         stdin=subprocess.DEVNULL, stdout=write, stderr=errors, env=child_env())
                os.close(write)
                self.addCleanup(child.wait)
                self.addCleanup(child.kill)
                self.until(lambda: os.pread(errors.fileno(), 99, 0), "o script começou")
                deadline = time.monotonic() + WATCHDOG_S
                while child.poll() is None and time.monotonic() < deadline:
                    child.send_signal(signal.SIGTERM)
                    time.sleep(0.002)
                self.assertEqual((child.poll(), os.pread(errors.fileno(), 999, 0)), (130, b"pronto\n"), how)

    def test_escape(self):
        """P3: o que comanda um terminal, ou lhe inverte o texto, é mostrado; o que só se escreve, passa."""
        escape = load("cliente.py").escape
        for text in ("olá", "日本", "\u200d", "a\u00a0b", "so\u00adft", "\U0001fae8", "\U000e0fff"):
            self.assertEqual(escape(text), text)
        for text, shown in (("\x1b[2J", r"\x1b[2J"), ("\n", r"\n"), ("\x9b", r"\x9b"), ("\u2028", r"\u2028"),
                            ("\u202e", r"\u202e"), ("\u2066", r"\u2066"), ("\ud800", r"\ud800")):
            self.assertEqual(escape(text), shown)

    @each_script
    def test_the_command_suggested_is_the_one_typed(self, script):
        """N13: numa sugestão, o valor de uma opção fica, mesmo igual à porta; uma opção que não existe não vai."""
        module = load(script)
        parser = module.Parser()
        for option in ("--max", "--modo", "--nome"):
            parser.add_argument(option)
        parser.add_argument("--verbose", action="store_true")
        parser.parse_args([])
        for words, again in ((["--max", "5050", "127.0.0.1", "5050"], "--max 5050 :: 1"),
                             (["127.0.0.1", "--max=5050", "5050", "--verbose"], "--max=5050 --verbose :: 1"),
                             (["--mod", "5050", "5050"], "--mod 5050 :: 1"),
                             (["--verbose", "5050"], "--verbose :: 1"),
                             (["--porta", "5050"], ":: 1"),
                             (["--nome", "a b", "--", "127.0.0.1", "5050"], "--nome 'a b' :: 1")):
            with mock.patch.object(sys, "argv", [script, *words]):
                self.assertEqual(module.typed("::", 1, drop=("127.0.0.1", "5050")), f"./{script} {again}")

    @each("servidor.py", "cliente.py", "servidor_udp.py", "cliente_udp.py", "led_gpio.py")
    def test_address_and_port_in_one_word(self, script):
        """N14: `127.0.0.1:5050` não é um nome de máquina, e o comando certo é dito."""
        result = self.run_script(script, "127.0.0.1:5051")
        self.assert_one_line_error(result, f"./{script} 127.0.0.1 5051", status=2)

    @each("servidor.py", "cliente.py", "servidor_udp.py", "cliente_udp.py", "led_gpio.py")
    def test_number_that_is_no_port(self, script):
        """Um número só, no lugar do endereço, é a porta de quem esqueceu o endereço; 99999 não é porta nenhuma."""
        for number in ("99999", "9" * 5000):
            self.assert_one_line_error(self.run_script(script, number), "não é um endereço nem uma porta", status=2)

    @each("servidor.py", "cliente.py", "servidor_udp.py", "cliente_udp.py", "led_gpio.py")
    def test_port_without_an_address(self, script):
        """B11: a quem digita `--porta 5051`, que não há, diz-se onde a porta vai."""
        for words in (["5051"], ["--porta", "5051"]):
            result = self.run_script(script, *words)
            self.assert_one_line_error(result, f"depois do endereço, sem opção: ./{script} 127.0.0.1 5051", status=2)

    @each_script
    def test_usage_errors_are_in_portuguese(self, script):
        """N17: o argparse fala inglês; a casa traduz as frases dele."""
        result = self.run_script(script, "--nao-existe", "1", "2", "3", "4")
        self.assert_one_line_error(result, status=2)
        self.assertNotRegex(result.err, "unrecognized|argument|usage|invalid|expected|choose")
        help_text = self.run_script(script, "--help", status=0).text
        self.assertNotRegex(help_text, "usage|options:|positional|show this|show program")

    @each_script
    def test_the_reason_is_in_portuguese(self, script):
        """L16: o porquê que o sistema dá em inglês tem a sua frase; o que não tem, ou é de outro, segue como veio."""
        reason = load(script).reason
        for name in ("EINVAL", "ENODEV", "EBUSY", "EROFS", "EMSGSIZE", "ENOBUFS", "ELOOP", "EEXIST"):
            code = getattr(errno, name)
            self.assertNotEqual(reason(OSError(code, os.strerror(code))), os.strerror(code))
        self.assertEqual(reason(OSError(errno.EINVAL, "de outro")), "de outro")
        self.assertEqual(reason(OSError(errno.EXDEV, os.strerror(errno.EXDEV))), os.strerror(errno.EXDEV))

    @each_script
    def test_an_empty_value_is_not_an_absent_one(self, script):
        """Um `--ca "$CA"` sem CA não fala em claro, nem um `--senha-arquivo ""` dispensa a senha: o vazio é recusado.
        Só um texto pode ser vazio."""
        words = {"servidor.py": ("", "--certificado ", "--ca-clientes "), "servidor_udp.py": ("",),
                 "cliente.py": ("", "--ca ", "--certificado ", "--chave "), "cliente_udp.py": ("",),
                 "raw_server.py": ("", "--chave-arquivo ", "--pasta "),
                 "raw_client.py": ("listar --chave-arquivo ", "baixar filme -o "),
                 "led_gpio.py": ("", "--senha-arquivo ", "--certificado ", "--sysfs ", "botao --mqtt ", "botao --fifo ",
                                 "enviar ", "iniciar --mqtt-ca ")}
        for line in words[script]:
            result = self.run_script(script, *line.split(" "))
            self.assert_one_line_error(result, "veio vazio", status=2)
        if script in ("cliente.py", "cliente_udp.py"):
            server = self.spawn(script.replace("cliente", "servidor"), "127.0.0.1", 0)
            self.run_script(script, server.host, server.port, "--mensagem", "", status=0)

    @each("led_gpio.py", "raw_client.py")
    def test_the_help_suggested_is_the_one_of_the_action(self, script):
        """O que uma ação não conhece, a ajuda dela diz o que seria."""
        lines = {"led_gpio.py": ("botao --xyz", "enviar ON --xyz", "botao --mqtt-usuario ana"),
                 "raw_client.py": ("baixar filme --xyz", "baixar", "listar lo tudo")}
        for line in lines[script]:
            result = self.run_script(script, *line.split())
            self.assert_one_line_error(result, f"ajuda: ./{script} {line.split()[0]} --help", status=2)

    @each_script
    def test_many_descriptors_inherited(self, script):
        """C12: esperar por um descritor acima de 1023, que o select() não aceita."""
        module = load(script)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if resource else 0
        if hard < 1200:
            self.skipTest("o limite de descritores daqui não chega a 1200")
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(1200, resource.getrlimit(resource.RLIMIT_NOFILE)[0]), hard))
        read, write = os.pipe()
        high = fcntl.fcntl(read, fcntl.F_DUPFD, 1100)
        for fd in (read, write, high):
            self.addCleanup(os.close, fd)
        self.assertEqual(module.wait_ready([high], timeout=0), [])
        os.write(write, b"x")
        self.assertEqual(module.wait_ready([high], [write]), [high, write])

    TWO_SIGNALS = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
def action(args):
    both = signal.SIGINT, signal.SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    for number in both:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
status = script.run(script.Parser, action, [])
assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
sys.exit(status)
"""

    @each_script
    def test_two_signals_at_once(self, script):
        """Um Ctrl+C e um SIGTERM que chegam juntos são um fim só: o Python, ao achar o segundo já recebido e o seu
        tratador trocado por SIG_IGN, diria um traceback ("ignored due to race condition")."""
        if not hasattr(signal, "pthread_sigmask"):
            self.skipTest("sem pthread_sigmask (Windows)")
        done = subprocess.run([*PYTHON, "-X", "dev", "-c", self.TWO_SIGNALS, str(HERE / script)],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_env())
        self.assertEqual((done.returncode, done.stderr), (130, b""))

    @each_server
    def test_what_follows_ctrl_c_is_on_another_line(self, script):
        """B12: o terminal mostra ^C, e o que se diz depois, ou o prompt do shell, não fica grudado a ele; um SIGTERM
        nada mostra, e não desce linha."""
        last = {"servidor.py": "abrir à rede.*\n", "servidor_udp.py": "mostra as contas\r\n",
                "led_gpio.py": "abrir à rede.*\n"}[script]
        for number in signal.SIGINT, signal.SIGTERM:
            server = self.spawn(script, "127.0.0.1", 0, tty="all", ready="(?s)escutando.*" + last)
            self.assertEqual(server.stop(number), 0)
            self.assertEqual(server.output.data.startswith(b"\r\n"), number == signal.SIGINT, server.output.data)

    @each_script
    def test_ctrl_c_where_there_is_no_terminal(self, script):
        """B12: num cano, e num terminal parado (Ctrl+S), o Ctrl+C não escreve nem espera."""
        m, told = load(script), []
        answer = m.after_echo(lambda *details: told.append(details))
        with mock.patch.object(m.os, "write") as write:
            for terminals, ready, wrote in (((), [], 0), ((2,), [], 0), ((2,), [2], 1), ((1,), [1], 1)):
                write.reset_mock()
                with mock.patch.object(m.os, "isatty", terminals.__contains__), \
                        mock.patch.object(m, "wait_ready", return_value=ready):
                    answer(signal.SIGINT, None)
                self.assertEqual(write.call_count, wrote)
        self.assertEqual(told, [(signal.SIGINT, None)] * 4)

    LATE_SIGNAL = """
import atexit, importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGINT, signal.SIGTERM)])
sys.exit(script.run(script.Parser, lambda args: int(sys.argv[2]), []))
"""

    @each_script
    def test_a_signal_after_the_end(self, script):
        """O que acabou, acabou: um Ctrl+C ou um SIGTERM que chega com o Python se desmontando não muda o estado, nem
        vira um "Exception ignored"."""
        for status in (0, 1):
            done = subprocess.run([*PYTHON, "-X", "dev", "-c", self.LATE_SIGNAL, str(HERE / script), str(status)],
                                  stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=child_env())
            self.assertEqual((done.returncode, done.stderr), (status, b""))

    # Um defeito, na thread principal e noutra.
    DEFECT = """
import importlib.util, sys, threading
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
def action(args):
    thread = threading.Thread(target=script.number(None, 0, 1, ""), args=("a",))
    thread.start()
    thread.join()
    script.escape(None)
sys.argv = ["script.py", "um dois"]
sys.exit(script.run(script.Parser, action, []))
"""

    @each_script
    def test_a_defect_is_one_line(self, script):
        """L8: o erro que ninguém previu é uma linha, com o nome, o caminho até ele e como ver o traceback: -X dev."""
        for options, traces in (((), 0), (("-X", "dev"), 2)):
            done = subprocess.run([*PYTHON, *options, "-c", self.DEFECT, str(HERE / script)], env=child_env(),
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            said = done.stderr.decode()
            self.assertEqual((done.returncode, said.count("Traceback")), (1, traces), said)
            self.assertRegex(said, BAD_STDERR)
            self.assertEqual(said.count("\n") == 2, not traces)
            line = r"(?m)^script.py: erro: .*: TypeError \(.*\), nas linhas [\d, ]+\. .*-X dev ./script.py 'um dois'$"
            self.assertEqual(len(re.findall(line, said)), 2 - traces, said)

    @each_script
    def test_wall_clock_is_not_used_for_waiting(self, script):
        """O relógio de parede pode saltar um dia: os prazos usam time.monotonic()."""
        source = (HERE / script).read_text(encoding="utf-8")
        calls = [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)
                 and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in (("time", "time"),
                                                                                         ("time", "time_ns"))]
        self.assertEqual(calls, [], f"{script}: time.time() nestas linhas")
        self.assertNotRegex(source, r"(?m)^\s*(from (time|datetime) import|import .*\bdatetime\b)")


class TestREADME(ScriptTestCase):
    """O que o README manda digitar existe: os scripts, as opções, o exemplo de serviço."""

    def setUp(self):
        self.text = README.read_text(encoding="utf-8")

    ACTIONS = {"led_gpio.py": {"servidor", "botao", "enviar", "iniciar", "parar"},
               "raw_client.py": {"listar", "baixar", "tocar", "mensagem", "medir"}}

    def test_commands_exist(self):
        """Cada `./script.py ... --opção` do README: o script existe, e ele ou a sua ação aceita a opção."""
        commands = re.findall(r"(\w+\.py)((?:\\\n|[^`\n|;$])*)", self.text)
        helps = {}
        for script, rest in commands:
            with self.subTest(script + rest):
                self.assertIn(script, (*SCRIPTS, "test_all.py", "script.py"))
                options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"""(["']).*?\1""", "", rest))
                if script in SCRIPTS and options:
                    actions = [word for word in rest.split() if word in self.ACTIONS.get(script, ())]
                    known = ""
                    for call in {(script,), (script, *actions[:1])}:
                        if call not in helps:
                            helps[call] = subprocess.run([*PYTHON, str(HERE / script), *call[1:], "--help"],
                                                         stdout=subprocess.PIPE, env=child_env()).stdout.decode()
                        known += helps[call]
                    for option in options:
                        self.assertRegex(known, re.escape(option) + r"\b")
        self.assertGreater(len(commands), 20)

    def test_the_example_service(self):
        servidor = load("servidor.py")
        exercise = re.sub(r"(?m)^# ", "", (HERE / "servidor.py").read_text(encoding="utf-8"))
        for source in (self.text, exercise):
            code = re.search(r"^ *class Upper\(Service\):\n(?: .*\n)+", source, re.M)[0]
            names = {"Service": servidor.Service}
            exec(textwrap.dedent(code), names)
            sent = []
            client = type("Fake", (), {"send": sent.append})
            names["Upper"]().on_data(client, memoryview(b"oi"))
            self.assertEqual(sent, [b"OI"])

    def test_promises(self):
        """A tabela de promessas: cada linha tem um nome, o teste dela existe, e o número é o da constante do script."""
        section = self.text.split("\n### O que cada um promete\n")[1].split("\n## ")[0]
        tables = re.findall(r"^\*\*(\w+\.py)\*\*\n\n((?:\|.*\n)+)", section, re.M)
        self.assertEqual([script for script, _ in tables], list(SCRIPTS))
        for script, table in tables:
            module, (head, _, *rows) = load(script), table.splitlines()
            self.assertEqual(head, "| Nome | promessa | teste |")
            for row in rows:
                with self.subTest(row):
                    promise, test = re.fullmatch(r"\| [\w.]+ \| (.+) \| `(\w+\.test_\w+)` \|", row).groups()
                    class_name, method = test.split(".")
                    self.assertTrue(callable(getattr(globals()[class_name], method)))
                    for size, unit, name in re.findall(r"([\d,]+)(?: ([^\W\d]+))?[^()\d|]*\(`(\w+)`\)", promise):
                        factor = {"KiB": 1024, "MiB": 1 << 20}.get(unit, 10**6 if name.endswith("_US") else 1)
                        self.assertEqual(float(size.replace(",", ".")) * factor, getattr(module, name))
            self.assertGreater(len(rows), 3)

    def test_classic_questions(self):
        """Cada pergunta clássica tem o comando que a responde; e os erros mostrados são os que os scripts dizem."""
        section = self.text.split("\n### As perguntas clássicas\n")[1].split("\n### ")[0]
        for number, question in enumerate(section.split("\n**")[1:], 1):
            with self.subTest(question.splitlines()[0]):
                self.assertRegex(question, rf"^{number}\. ")
                self.assertRegex(question, r"\n```console\n\$ .+\n([^$\n].*\n)+")
        shown = " ".join(section.split())
        refused, cliente = ConnectionRefusedError(), load("cliente.py")

        def client(error, *words):
            return cliente.explain_connect(error, cliente.build_parser().parse_args(words), 3)

        with mock.patch.object(sys, "argv", ["servidor.py"]):
            busy = load("servidor.py").explain_bind(OSError(errno.EADDRINUSE, ""), "127.0.0.1", 5050)
        for answer in (f"$ ./cliente.py cliente.py: erro: {client(refused)}",
                       f"$ ./cliente.py 127.0.0.1 5051 cliente.py: erro: {client(refused, '127.0.0.1', '5051')}",
                       f" --espera 3 cliente.py: erro: {client(socket.timeout(), '192.0.2.1')}",
                       f"$ ./servidor.py servidor.py: erro: {busy}"):
            self.assertIn(answer + " ```", shown)

    def test_the_order(self):
        """Uma porta para quatro leitores, cada um com cinco caminhos; e a referência, por último, antes da licença."""
        parts = re.findall(r"^## (.+)$", self.text, re.M)
        wanted = ["Como obter", "Em dois terminais", "Quatro portas", "Os scripts", "TCP", "UDP", "Raspberry Pi",
                  "Ethernet", "Como ler o código", "Lado a lado", "Testar", "Referência", "Licença"]
        self.assertEqual([part.split(":")[0] for part in parts], wanted)
        doors = re.split(r"^\*\*.+\*\*$", self.text.split("\n## Quatro portas\n")[1].split("\n## ")[0], flags=re.M)[1:]
        self.assertEqual([len(re.findall(r"^\d\. ", door, re.M)) for door in doors], [5, 5, 5, 5])

    def test_links(self):
        """Cada link para dentro da página acha o título: minúsculas, hífens no lugar dos espaços, sem pontuação."""
        titles = re.findall(r"^##+ (.+)$", re.sub(r"(?ms)^```.*?^```$", "", self.text), re.M)
        anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        self.assertEqual(len(anchors), len(set(anchors)), "dois títulos iguais")
        links = re.findall(r"\]\(#([^)]+)\)", self.text)
        self.assertEqual(set(links) - set(anchors), set())
        self.assertGreater(len(links), 20)

    def test_recipes_are_shell(self):
        """N19: o que se manda digitar é o que o shell entende, como está; numa tabela, um | sairia com uma barra."""
        if not shutil.which("sh"):
            self.skipTest("sem sh")
        recipes = 0
        for block in re.findall(r"(?ms)^```console\n(.*?)^```", self.text):
            # Uma linha que começa por $ segue enquanto lhe falte uma aspa, um "done", a linha depois da barra.
            for command in re.findall(r"(?m)^\$ ((?:.*\n)(?:(?!\$ |#|\n).*\n)*)", block):
                lines = command.splitlines()
                checked = [subprocess.run(["sh", "-n", "-c", "\n".join(lines[:count])], stderr=subprocess.PIPE)
                           for count in range(1, len(lines) + 1)]
                self.assertIn(0, [done.returncode for done in checked], f"{command}{checked[0].stderr.decode()}")
                recipes += 1
        self.assertGreater(recipes, 50)
        self.assertNotRegex(self.text, r"(?m)^\|.*`[^`]*\\\|[^`]*`")

    # Como se chama cada netcat e cada telnet, quando há vários na mesma máquina.
    NETCATS = "nc", "nc.openbsd", "nc.traditional", "ncat", "busybox nc"
    UDP_NETCATS = "nc.openbsd", "nc.traditional"
    TELNETS = "telnet", "inetutils-telnet", "telnet-ssl", "busybox telnet"

    def has(self, name):
        if name.startswith("busybox "):
            return can("sh", "-c", f"busybox --list | grep -qx {name.split()[1]}")
        return bool(shutil.which(name))

    def answer(self, recipe, port):
        """O que mostra, e por si acaba, uma receita de `echo oi | ...` rodada nesta porta."""
        done = subprocess.run(["sh", "-c", recipe.replace("5050", str(port))], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=WATCHDOG_S)
        return done.stdout

    def test_netcats(self):
        """P8: a receita de `nc` do README responde e volta, com cada netcat que aqui houver."""
        found = list(filter(self.has, self.NETCATS))
        if not found:
            self.skipTest("sem nenhum netcat")
        recipe = re.search(r"(?m)^\$ (echo oi \| nc -w 1 127\.0\.0\.1 5050)$", self.text)[1]
        servers = {script: self.spawn(script, "127.0.0.1", 0) for script in ("servidor.py", "servidor_udp.py")}
        for name in found:
            for script, option in (("servidor.py", ""), ("servidor_udp.py", " -u")):
                if option and name not in self.UDP_NETCATS:
                    continue
                command = recipe.replace("nc", name + option)
                # Numa máquina lenta, o segundo de -w pode acabar antes da resposta: então se repete.
                with self.subTest(command):
                    self.until(lambda: b"oi" in self.answer(command, servers[script].port), "a resposta")

    def test_telnets(self):
        """P8: de um cano, o `telnet` só mostra a resposta se a entrada não acabou: é o que faz o `sleep` da receita."""
        found = list(filter(self.has, self.TELNETS))
        if not found:
            self.skipTest("sem nenhum telnet")
        self.assertIn("\n$ (echo oi; sleep 1) | telnet 127.0.0.1 5050\n", self.text)
        server = self.spawn("servidor.py", "127.0.0.1", 0)
        for name in found:
            with self.subTest(name), subprocess.Popen([*name.split(), "127.0.0.1", str(server.port)],
                                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                      stderr=subprocess.STDOUT, bufsize=0) as child:
                self.addCleanup(child.kill)
                output = Output(child.stdout.fileno())
                child.stdin.write(b"oi\n")
                self.assertTrue(output.expect(r"(?m)^oi\r?$"), output.data)
                child.stdin.close()
                child.wait(WATCHDOG_S)
                output.thread.join(WATCHDOG_S)

    def test_license(self):
        """N19: a licença inteira, no fim."""
        self.assertRegex(self.text, r"(?s)\n## Licença\n\nMIT.*\nPermission is hereby granted.*\nSOFTWARE\.\n```\n\Z")

    def test_the_player_that_works_as_root(self):
        """N20: dentro de unshare -rn o VLC se recusa: o README diz que tocador serve ali, e como o VLC serve."""
        lab = self.text.split("\n### Sem sudo, e sem segunda máquina\n")[1].split("\n### ")[0]
        self.assertIn("`mpv` e `ffplay` não se importam; o VLC se\nrecusa", lab)
        self.assertIn('--player "unshare -U cvlc', lab)

    def test_fits_80_columns(self):
        """N19: lê-se num terminal, com less: tudo cabe em 80 colunas, menos as tabelas, que não se dobram à mão."""
        for line in self.text.splitlines():
            if not line.startswith("| "):
                self.assertLessEqual(len(line.expandtabs()), 80, line)

    def test_systemd_units(self):
        """As unidades do servidor TCP têm o nome do que rodam, andam aos pares, e o systemd as entende."""
        units = dict(re.findall(r"^```ini\n# /etc/systemd/system/([\w.]+)\n(.*?)^```", self.text, re.M | re.S))
        mode = re.search(r"^ExecStart=.*servidor\.py --modo (\w+)", "".join(units.values()), re.M)[1]
        self.assertEqual(set(units), {f"{mode}.socket", f"{mode}.service"})
        self.assertIn(f"systemctl enable --now {mode}.socket\n", self.text)
        for unit in units.values():
            self.assertRegex(unit, r"\A\[Unit\]\nDescription=.+\n")
        if not shutil.which("systemd-analyze") or not os.path.exists("/usr/bin/python3"):
            self.skipTest("sem systemd-analyze, ou sem /usr/bin/python3")
        with tempfile.TemporaryDirectory() as folder:
            for name, unit in units.items():
                pathlib.Path(folder, name).write_text(unit, encoding="utf-8")
            done = subprocess.run(["systemd-analyze", "verify", *(os.path.join(folder, name) for name in units)],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertNotIn(folder.encode(), done.stdout, "o systemd reclama de uma linha")

    def test_files_are_known(self):
        self.assertNotRegex(self.text, r"/root/|/work/")


class TestCasa(unittest.TestCase):
    """A própria casa: que arquivos há, de que dependem, o que repetem, quanto medem."""

    # Itens léxicos por linha de código, em média: acima disto, uma linha diz coisas demais.
    DENSITY = {"servidor.py": 7.5, "cliente.py": 7.5, "servidor_udp.py": 8, "cliente_udp.py": 8,
               "raw_server.py": 8.5, "raw_client.py": 8.5, "led_gpio.py": 8}
    # Onde começa a ideia de cada um.
    IDEA = {"servidor.py": r"\.accept\(", "cliente.py": r"threading\.Thread|Thread\)",
            "servidor_udp.py": r"recv(from|msg)(_into)?\b", "cliente_udp.py": r"\.send\(",
            "raw_server.py": r"^class Sender|^class Flight|^def find_lost", "raw_client.py": r"^class Receiver",
            "led_gpio.py": r"^def (split_lines|understand)|^class Led\b"}
    BANNER = re.compile(r"^# -{93}\n# (\d+)\. ([\w.]+): (.+)\n#\n((?:# .+\n)+)", re.M)
    FENCE = re.compile(r"^# --- bloco comum: (.+?) ---$(.*?)^# --- fim do bloco comum: \1 ---$", re.M | re.S)

    def test_the_files(self):
        """Os arquivos são só estes, fora o que deixam aqui o Python e os exemplos do README."""
        leftovers = {"__pycache__", "findings", "certificado.pem", "chave.pem", "certificado-led.pem", "chave-led.pem",
                     "senha.txt", "chave", "videos", "filme.mp4", "leia-me.txt"}
        names = {path.name for path in HERE.iterdir() if not path.name.startswith(".")} - leftovers
        self.assertEqual(names, {*SCRIPTS, "test_all.py", "README.md"})

    @each_source
    def test_shebang_license_and_run_bit(self, name):
        source = (HERE / name).read_text(encoding="utf-8")
        self.assertTrue(source.startswith("#!/usr/bin/env python3\n# SPDX-License-Identifier: MIT\n"))
        self.assertTrue(os.access(HERE / name, os.X_OK))
        self.assertNotIn("\t", source)

    @each_source
    def test_no_name_is_defined_twice(self, name):
        """A segunda constante, função ou classe de mesmo nome tomaria em silêncio o lugar da primeira."""
        tree = ast.parse((HERE / name).read_text(encoding="utf-8"))
        for place in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
            names = [node.name for node in place.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                     and not node.decorator_list]
            names += [target.id for node in place.body if isinstance(node, ast.Assign) for target in node.targets
                      if isinstance(target, ast.Name)]
            self.assertEqual([name for name, count in collections.Counter(names).items() if count > 1], [])

    @each_source
    def test_only_the_standard_library_of_python_3_8(self, name):
        for node in ast.walk(ast.parse((HERE / name).read_text(encoding="utf-8"), feature_version=(3, 8))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                self.assertNotIn(module.split(".")[0] + ".py", SCRIPTS, "um script não importa outro")
                spec = importlib.util.find_spec(module)
                self.assertNotIn("-packages", str(spec and spec.origin), module)

    @each_script
    def test_alone_in_an_empty_folder(self, name):
        """Copiado sozinho para outra máquina, o script roda."""
        with tempfile.TemporaryDirectory() as folder:
            path = shutil.copy(HERE / name, folder)
            done = subprocess.run([*PYTHON, "-I", "-X", "dev", path, "--help"], cwd=folder, env=child_env(),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=WATCHDOG_S)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_common_blocks_are_identical(self):
        """O que dois arquivos repetem está entre cercas, e é igual, byte por byte."""
        seen = {}
        for name in filter(lambda name: (HERE / name).exists(), SCRIPTS):
            source = (HERE / name).read_text(encoding="utf-8")
            blocks = self.FENCE.findall(source)
            self.assertEqual(len(blocks), source.count("# --- bloco comum: "), f"{name}: cerca sem fim")
            for title, block in blocks:
                first, other = seen.setdefault(title, (name, block))
                drift = difflib.unified_diff(other.splitlines(), block.splitlines(), first, name, lineterm="", n=0)
                self.assertEqual(list(drift), [], f"o bloco {title!r} derivou")
        self.assertIn("casa", seen)

    @each_source
    def test_shape_of_the_code(self, name):
        """Um script se lê inteiro: colunas e tamanho das funções têm teto; nenhum except sem tipo."""
        source = (HERE / name).read_text(encoding="utf-8")
        self.assertLessEqual(max(map(len, source.splitlines())), 120)
        if name == "test_all.py":
            return
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                self.assertLessEqual(node.end_lineno - node.lineno + 1, 45, node.name)
            if isinstance(node, ast.ExceptHandler):
                self.assertIsNotNone(node.type, f"linha {node.lineno}: except sem tipo")

    @each_retold
    def test_density(self, name):
        """Uma linha diz uma coisa só: as medidas, por tokenize e ast."""
        source = (HERE / name).read_text(encoding="utf-8")
        tree, lines = ast.parse(source), source.splitlines()
        documented = docstring_lines(tree)
        tokens, comments = count_tokens(source, documented)
        mean = sum(tokens.values()) / len(tokens)
        self.assertLessEqual(mean, self.DENSITY[name], "itens por linha de código")
        self.assertEqual([line for line, count in tokens.items() if count >= 30], [], "linhas com 30 itens ou mais")
        self.assertEqual([line for line in lines if len(line) > 100], [], "linhas com mais de 100 colunas")
        self.assertLessEqual(births(tree), 1.15, "atributos por linha que os cria")
        told = (len(comments) + len(documented)) / len(tokens)
        self.assertTrue(.3 <= told <= .6, f"comentários e docstrings: {told:.2f} do código")
        lengths = sorted(node.end_lineno - node.lineno + 1 for node in ast.walk(tree)
                         if isinstance(node, ast.FunctionDef))
        self.assertLessEqual(lengths[len(lengths) // 2], 10, "mediana das linhas por função")
        idea = next(line for line in sorted(tokens) if re.search(self.IDEA[name], lines[line - 1]))
        self.assertLessEqual(idea / len(lines), .4, "onde começa a ideia do arquivo")

    @each_retold
    def test_opening(self, name):
        """A primeira tela: a frase, os comandos, o programa ingênuo e o que lhe falta, numerado de 1 em diante."""
        opening = (HERE / name).read_text(encoding="utf-8").split('"""')[1]
        self.assertLessEqual(opening.count("\n") + 1, 48)
        self.assertLessEqual(max(map(len, opening.splitlines())), 100)
        self.assertIn(f"./{name}", opening)
        compile(naive_program(name), name, "exec")
        self.assertLessEqual(len(naive_program(name).splitlines()), 10)
        self.assertEqual([number for number, _ in lacks(name)], list(range(1, len(lacks(name)) + 1)))
        self.assertGreater(len(lacks(name)), 3)

    @each_retold
    def test_four_witnesses(self, name):
        """O que falta ao programa ingênuo, as partes do arquivo, as classes de teste e as promessas do README têm os
        mesmos nomes, na mesma ordem; e o que cura cada falta está definido na sua parte."""
        source = (HERE / name).read_text(encoding="utf-8")
        banners = list(self.BANNER.finditer(source))
        cures = [(number, names[0]) for number, names in lacks(name)]
        others = dict(lacks(name))
        self.assertEqual([(int(banner[1]), banner[2]) for banner in banners], cures)
        ends = [banner.start() for banner in banners[1:]] + [source.index("\n# Em volta", banners[-1].end())]
        where = definitions(ast.parse(source))
        promises = promise_table(name)
        for banner, end in zip(banners, ends):
            cure = banner[2]
            with self.subTest(cure):
                self.assertIn(banner[4].count("\n"), range(2, 6), "linhas de prosa sob o título")
                first, last = (source.count("\n", 0, at) + 1 for at in (banner.start(), end))
                for part in others[int(banner[1])]:
                    self.assertTrue(any(first < line < last for line in where.get(part, ())),
                                    f"{part} não está na sua parte")
                self.assertIn("Test" + camel(name) + capitals(cure), globals(), "não há classe de teste")
                self.assertIn(cure, promises, "não há promessa no README")


# ---------------------------------------------------------------------------------------------
# Ao mesmo tempo
#
# Quase todo teste espera por um processo. As classes se repartem por alguns processos, cada um pede a próxima quando
# acaba a sua, e o que houve chega a quem chamou como se tivesse sido ali: -v, -k, -f e o resumo são os de sempre.

def processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


class Elsewhere(AssertionError):
    """O que um teste levantou em outro processo: o traceback, já em texto."""


class Told:
    """Um teste de outro processo, como o unittest o mostra: o nome e a primeira linha da docstring."""

    def __init__(self, test):
        self.name, self.about, self.known_as = str(test), test.shortDescription(), test.id()

    failureException = AssertionError

    def __str__(self):
        return self.name

    def shortDescription(self):
        return self.about

    def id(self):
        return self.known_as


class Telling(unittest.TestResult):
    """Conta cada acontecimento a quem criou este processo: (método de TestResult, argumentos), um teste por vez."""

    def __init__(self, tell, like):
        super().__init__()
        self.tell, self.failfast, self.tb_locals = tell, like.failfast, like.tb_locals
        self.events, self.test = [], None

    def event(self, method, test, *rest):
        getattr(super(), method)(test, *rest)
        told = [Elsewhere(self._exc_info_to_string(item, self.test or test)) if isinstance(item, tuple)
                else Told(item) if isinstance(item, unittest.TestCase) else item for item in rest]
        self.events.append((method, Told(test), *told))
        if self.test is None or method == "stopTest":
            self.tell(self.events)
            self.events = []

    def startTest(self, test):
        self.test = test
        self.event("startTest", test)

    def stopTest(self, test):
        self.event("stopTest", test)
        self.test = None


for method in ("addSuccess", "addError", "addFailure", "addSkip", "addSubTest", "addExpectedFailure",
               "addUnexpectedSuccess", "addDuration"):
    if hasattr(unittest.TestResult, method):
        setattr(Telling, method, functools.partialmethod(Telling.event, method))


class SideBySide(unittest.TestSuite):
    """As classes de teste, em alguns processos (Linux e outros Unix, com dois processadores ou mais)."""

    def run(self, result, debug=False):
        try:
            import multiprocessing.connection
            workers = min(processors() + 1, 5, self.countTestCases())
            context = multiprocessing.get_context("fork")
        except (ImportError, ValueError):
            workers = 1
        if workers < 3:  # um processador só, ou um teste só
            return super().run(result, debug)
        self.waiting = list(range(len(self._tests)))
        running = {}
        for _ in range(workers):
            ours, theirs = context.Pipe()
            running[ours] = context.Process(target=self.work, args=(theirs, result), daemon=True)
            running[ours].start()
            theirs.close()
        while running:
            for conn in multiprocessing.connection.wait(running):
                try:
                    self.hear(conn, result)
                except (EOFError, ConnectionResetError):
                    process = running.pop(conn)
                    process.join()
                    if process.exitcode:
                        self.tell_error(result, f"um dos processos acabou no meio dos testes: {process.exitcode}")
        if self.waiting and not result.shouldStop:
            self.tell_error(result, f"{len(self.waiting)} classes ficaram por testar")
        return result

    def hear(self, conn, result):
        """O que um processo conta; ou, se pede (None), a próxima classe para ele."""
        events = conn.recv()
        if events is None:
            # As do fim do arquivo vão primeiro: rodam os sete scripts, e são as mais longas.
            conn.send(self.waiting.pop() if self.waiting and not result.shouldStop else None)
            return
        for method, *args in events:
            getattr(result, method)(*((Elsewhere, item, None) if isinstance(item, Elsewhere) else item
                                      for item in args))

    def tell_error(self, result, what):
        result.addError(Told(unittest.FunctionTestCase(self.run, description=what)), (Elsewhere, Elsewhere(what), None))

    def work(self, conn, like):
        """Roda as classes que o outro lado manda, até ele não mandar mais."""
        suite = unittest.TestSuite()
        suite._tests = self.asked(conn)
        with contextlib.suppress(KeyboardInterrupt):
            suite.run(Telling(conn.send, like))

    def asked(self, conn):
        conn.send(None)
        for index in iter(conn.recv, None):
            yield self._tests[index]
            conn.send(None)


class TestSideBySide(unittest.TestCase):
    """O que os outros processos contam é o que houve: nem um teste a mais, nem um a menos, nem um calado."""

    MODULE = """
        import os, unittest
        from test_all import load_tests

        class TestOne(unittest.TestCase):
            def test_error(self):
                raise OSError("disco")
            def test_fails(self):
                self.assertEqual(1, 2)
            def test_part(self):
                for number in range(3):
                    with self.subTest(number=number):
                        self.assertNotEqual(number, 1)
            @unittest.skip("falta a placa")
            def test_skipped(self):
                pass

        class TestTwo(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                raise ValueError("classe")
            def test_never(self):
                pass

        class TestThree(unittest.TestCase):
            def test_ends_the_process(self):
                if "ACABA" in os.environ:
                    os._exit(3)
    """

    def run_module(self, *options, **env):
        if processors() < 2:
            self.skipTest("com um só processador, os testes rodam num processo só")
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "test_these.py").write_text(textwrap.dedent(self.MODULE))
            return subprocess.run([*PYTHON, "-m", "unittest", *options, "test_these"], cwd=folder, text=True,
                                  stderr=subprocess.PIPE, env=child_env(PYTHONPATH=str(HERE), **env)).stderr

    def test_all_is_told(self):
        told = self.run_module("-v")
        for line in ("test_error .* ERROR", "test_fails .* FAIL", r"FAIL: test_part .*\(number=1\)", "OSError: disco",
                     "test_skipped .* skipped 'falta a placa'", "ERROR: setUpClass .*TestTwo", "AssertionError: 1 != 2",
                     "test_ends_the_process .* ok", r"FAILED \(failures=2, errors=2, skipped=1\)"):
            self.assertRegex(told, line)

    def test_process_that_ends_is_an_error(self):
        told = self.run_module(ACABA="1")
        self.assertIn("um dos processos acabou no meio dos testes: 3", told)
        self.assertIn("FAILED (failures=2, errors=3, skipped=1)", told)


def load_tests(loader, tests, pattern):
    """O unittest pergunta a este arquivo que testes tem (o protocolo load_tests)."""
    return SideBySide(tests)


if __name__ == "__main__":
    unittest.main()
