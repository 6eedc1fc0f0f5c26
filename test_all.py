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
import contextlib
import difflib
import errno
import filecmp
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import random
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

try:
    import resource
except ImportError:  # Windows
    resource = None

HERE = pathlib.Path(__file__).resolve().parent
README = HERE / "README.md"
SCRIPTS = ("servidor.py", "cliente.py", "servidor_udp.py", "cliente_udp.py", "raw_server.py", "raw_client.py",
           "led_gpio.py")
WATCHDOG_S = 30  # generoso: só é alcançado por um programa travado, nunca por uma máquina lenta
READY = r"^escutando em (?P<host>\S+)(?: porta (?P<port>\d+))?"
BAD_STDERR = re.compile(r"Traceback|ResourceWarning|Exception ignored|Fatal Python|DeprecationWarning|BytesWarning")
signal.signal(signal.SIGINT, signal.default_int_handler)  # um `&` de shell o deixa ignorado, e os filhos herdariam isso
SEED = int(os.environ.get("SEMENTE", "20240917"))  # o acaso dos testes se repete; a falha mostra a semente


def load(name):
    """Importa um script como módulo, sem rodá-lo: os testes das partes puras chamam as funções direto."""
    spec = importlib.util.spec_from_file_location(name[:-3], str(HERE / name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def child_env(**extra):
    """Ambiente dos filhos: sem PYTHONUNBUFFERED, que esconderia a falta de um flush; UTF-8 seja qual for o terminal."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "LISTEN_FDS", "LISTEN_PID", "NO_COLOR")}
    env.update(PYTHONIOENCODING="utf-8", PYTHONDONTWRITEBYTECODE="1")
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
        self.stderr.seek(0)
        return self.stderr.read().decode("utf-8", "replace")

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
import importlib.util, json, sys
sys.argv = sys.argv[1:]
spec = importlib.util.spec_from_file_location("script", sys.argv[0])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
vars(script).update(json.loads(sys.argv.pop(1)))
sys.exit(script.main())
"""


class ScriptTestCase(unittest.TestCase):
    """O vocabulário: spawn, connect, run_script, stop. Tudo o que um teste abre é fechado e conferido no fim dele."""

    maxDiff = None

    def command(self, script, *args, prefix=(), constants=None):
        """A linha de comando que roda o script, com -X dev; constants troca constantes dele (prazos mais curtos)."""
        path = [str(HERE / script)]
        if constants:
            path = ["-c", LOADER, *path, json.dumps(constants)]
        return [*prefix, sys.executable, "-X", "dev", *path, *map(str, args)]

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

    def until(self, condition, what):
        """Relê um estado que não avisa quando muda (um número em /proc) até valer, sob o cão de guarda."""
        deadline = time.monotonic() + WATCHDOG_S
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"não aconteceu: {what}")
            time.sleep(0.01)

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


class TestServidorPuro(unittest.TestCase):
    """As partes puras de servidor.py: bytes entram, bytes saem."""

    @classmethod
    def setUpClass(cls):
        cls.servidor = load("servidor.py")

    def test_line_buffer(self):
        table = (("uma linha", [b"oi\n"], ["oi"]), ("CRLF", [b"oi\r\n"], ["oi"]), ("duas", [b"a\nb\n"], ["a", "b"]),
                 ("sem fim", [b"oi"], []), ("em pedaços", [b"o", b"i", b"\n"], ["oi"]), ("vazia", [b"\n"], [""]),
                 ("ç partido", [b"\xc3", b"\xa7\n"], ["ç"]), ("UTF-8 inválido", [b"a\xffb\n"], ["a\ufffdb"]),
                 ("no limite", [b"x" * 1024 + b"\n"], ["x" * 1024]))
        for name, chunks, lines in table:
            with self.subTest(name):
                buffer = self.servidor.LineBuffer()
                self.assertEqual([line for chunk in chunks for line in buffer.feed(chunk)], lines)
        for name, chunks in (("com fim", [b"x" * 1025 + b"\n"]), ("sem fim", [b"x" * 1025]),
                             ("depois de uma boa", [b"ok\n" + b"x" * 1025])):
            with self.subTest("longa demais, " + name), self.assertRaises(self.servidor.ProtocolError):
                buffer = self.servidor.LineBuffer()
                for chunk in chunks:
                    buffer.feed(chunk)

    def test_line_buffer_cut_anywhere(self):
        """Cortada em qualquer ponto, a conversa dá as mesmas linhas."""
        data = "olá, ç e 🙂\r\n\nfim\n".encode()
        for cut in range(len(data) + 1):
            buffer = self.servidor.LineBuffer()
            self.assertEqual(buffer.feed(data[:cut]) + buffer.feed(data[cut:]), ["olá, ç e 🙂", "", "fim"])

    def test_parse_command(self):
        for line, command in (("oi", ("", "oi")), ("/quem", ("quem", "")), ("/NICK ana", ("nick", "ana")),
                              ("/msg ana oi, tudo bem", ("msg", "ana oi, tudo bem")), ("/", ("", "")), ("", ("", ""))):
            with self.subTest(line):
                self.assertEqual(self.servidor.parse_command(line), command)

    def test_valid_nick(self):
        for nick in ("ana", "José", "x" * 20, "日本"):
            self.assertEqual(self.servidor.valid_nick(nick), nick)
        for nick in ("", "x" * 21, "a b", "a\x1b[31m", "a\tb", "a\u202eb", "/ana"):
            with self.subTest(nick), self.assertRaises(self.servidor.ProtocolError):
                self.servidor.valid_nick(nick)

    def test_parse_request(self):
        method, target, headers = self.servidor.parse_request(b"GET /a?b=1 HTTP/1.1\r\nHost: x\r\nA:  b c \r\nVazio:")
        self.assertEqual((method, target), ("GET", "/a?b=1"))
        self.assertEqual(headers, [("Host", "x"), ("A", "b c"), ("Vazio", "")])
        for bad in (b"", b"oi", b"GET /", b"GET / HTTP/2.0", b"GET  / HTTP/1.1", b"G\xc3\xa7T / HTTP/1.1",
                    b"GET / HTTP/1.1\r\nsem dois pontos", b"GET / HTTP/1.1\r\nEspaco : x",
                    b"GET / HTTP/1.1\r\n dobrado: x"):
            with self.subTest(bad), self.assertRaises(self.servidor.ProtocolError):
                self.servidor.parse_request(bad)

    def test_random_bytes(self):
        """Bytes ao acaso: ou um pedido, ou ProtocolError; ou linhas, ou ProtocolError. Nunca outra coisa."""
        rng = random.Random(SEED)
        for turn in range(2000):
            data = bytes(rng.choice(b"GET /\r\n HTP.1:ab\xff\x1b") for _ in range(rng.randrange(80)))
            with self.subTest(semente=SEED, volta=turn), contextlib.suppress(self.servidor.ProtocolError):
                self.servidor.parse_request(data)
                self.servidor.LineBuffer().feed(data)

    def test_http_response(self):
        head, _, body = self.servidor.http_response(200, "título", "<p>ç").partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertIn(b"Content-Length: %d" % len(body), head)
        for header in (b"Connection: close", b"Content-Security-Policy: default-src 'none'"):
            self.assertIn(header, head)

    def test_escape(self):
        for raw, shown in (("ok ç 🙂", "ok ç 🙂"), ("\x1b]0;x\x07", r"\x1b]0;x\x07"), ("a\nb", r"a\nb"),
                           ("\x9b", r"\x9b"), ("\u202e", r"\u202e"), ("\ud800", r"\ud800")):
            self.assertEqual(self.servidor.escape(raw), shown)

    def test_is_allowed(self):
        nets = [self.servidor.network("192.168.1.0/24"), self.servidor.network("fe80::/10")]
        for host, allowed in (("192.168.1.7", True), ("192.168.2.7", False), ("::ffff:192.168.1.7", True),
                              ("fe80::1%eth0", True), ("::1", False)):
            with self.subTest(host):
                self.assertEqual(self.servidor.is_allowed(host, nets), allowed)
        self.assertTrue(self.servidor.is_allowed("10.0.0.1", []))


class ServerTests:
    """O que vale nos dois motores. As subclasses dizem qual."""
    motor = None

    def serve(self, *args, host="127.0.0.1", **options):
        return self.spawn("servidor.py", host, 0, "--motor", self.motor, *args, **options)

    def join(self, server, nick=None, rcvbuf=None):
        """Entra no chat, com este apelido."""
        conn = self.connect(server, rcvbuf=rcvbuf)
        conn.expect("/ajuda mostra os comandos\n")
        if nick:
            conn.send(f"/nick {nick}\n")
            conn.expect(f"agora você é {nick}\n")
        return conn

    # eco

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

    def read_all(self, sock):
        chunks = []
        while True:
            chunk = sock.recv(1 << 20)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)

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
        self.assertLess(meter.rss() - before, 4 << 20)
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

    def test_ipv6_and_dual_stack(self):
        if not socket.has_ipv6 or not can(sys.executable, "-c", "import socket; socket.socket(10).bind(('::1', 0))"):
            self.skipTest("esta máquina não tem IPv6")
        server = self.serve(host="::")
        for host in ("::1", "127.0.0.1"):
            conn = self.connect(server, host)
            conn.send(host)
            conn.expect(host)

    def test_host_name(self):
        self.assertIn(self.serve(host="localhost").host, ("127.0.0.1", "::1"))

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

    def test_max_clients(self):
        """Além de --max-clientes se espera na fila, sem recusa; quem sai dá lugar."""
        server = self.serve("--max-clientes", 2)
        first, second, third = (self.connect(server) for _ in range(3))
        for conn in (first, second):
            conn.send(b"oi")
            conn.expect(b"oi")
        third.send("eu também")
        third.sock.setblocking(False)
        with self.assertRaises(BlockingIOError):
            third.sock.recv(1)
        third.sock.settimeout(WATCHDOG_S)
        first.close()
        third.expect("eu também")

    def test_idle_clients_are_closed(self):
        server = self.serve("--ocioso", 0.2, constants={"TICK_S": 0.05})
        self.assertEqual(self.connect(server).expect_eof(), b"")

    def test_active_clients_are_not_idle(self):
        """Com tráfego, o prazo de --ocioso não conta, por mais que a conversa dure."""
        conn = self.connect(self.serve("--ocioso", 0.4, constants={"TICK_S": 0.05}))
        deadline = time.monotonic() + 1.2
        while time.monotonic() < deadline:
            conn.send(b"x")
            conn.expect(b"x")

    def test_allowed_networks(self):
        server = self.serve("--permitir", "192.0.2.0/24", "--permitir", "::1/128", "--verbose")
        self.assertEqual(self.connect(server).expect_eof(), b"")
        server.expect_error("fora das redes de --permitir")
        conn = self.connect(self.serve("--permitir", "127.0.0.0/8"))
        conn.send(b"oi")
        conn.expect(b"oi")

    def test_verbose_escapes(self):
        server = self.serve("--verbose")
        conn = self.connect(server)
        conn.send(b"\x1b]0;x\x07\n")
        conn.expect(b"\n")
        line = server.expect_error(r"<- 127.0.0.1:\d+ .*")[0]
        self.assertIn(r"\x1b]0;x\x07", line)
        self.assertNotIn("\x1b", server.errors())

    # parar e recomeçar

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
        server = self.serve()
        conn = self.connect(server)
        conn.send(b"oi")
        conn.expect(b"oi")
        self.stop(server)
        again = self.spawn("servidor.py", "127.0.0.1", server.port, "--motor", self.motor)
        self.assertEqual(again.port, server.port)

    def test_systemd_socket_activation(self):
        """O systemd abre o socket e o entrega no descritor 3, com LISTEN_PID e LISTEN_FDS."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            server = self.activated(listener)
            self.assertEqual(server.port, port)
        conn = self.connect(server)
        conn.send(b"oi")
        conn.expect(b"oi")

    def activated(self, listener):
        """Sobe o servidor como o systemd faz: dup2 para o descritor 3, e exec no mesmo processo."""
        starter = (f"import os, sys; os.dup2({listener.fileno()}, 3); os.environ.update(LISTEN_FDS='1', "
                   "LISTEN_PID=str(os.getpid())); os.execv(sys.argv[1], sys.argv[1:])")
        return self.spawn("servidor.py", "--motor", self.motor, prefix=(sys.executable, "-c", starter),
                          pass_fds=(listener.fileno(),))

    def test_systemd_lies(self):
        starter = ("import os, sys; os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
                   "os.execv(sys.argv[1], sys.argv[1:])")
        result = self.run_script("servidor.py", "--motor", self.motor, prefix=(sys.executable, "-c", starter))
        self.assert_one_line_error(result, "LISTEN_FDS")

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

    # chat

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
        ana.expect("<bia em particular> segredo\n")
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

    def test_broken_service_ends_only_its_client(self):
        """Um erro de programação em qualquer chamada de um serviço aparece, e acaba só com aquele cliente."""
        source = (HERE / "servidor.py").read_text(encoding="utf-8")
        broken = """class Echo(Service):
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


class Chat(Service):"""
        echo = r"class Echo\(Service\):.*?class Chat\(Service\):"
        source, found = re.subn(echo, lambda match: broken, source, flags=re.S)
        self.assertEqual(found, 1)
        script = self.folder() / "servidor.py"
        script.write_text(source.replace("TICK_S = 1.0", "TICK_S = 0.05"), encoding="utf-8")
        server = self.spawn(script, "127.0.0.1", 0, "--motor", self.motor)
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
        server = self.serve("--modo", "chat", constants={"LINE_TIMEOUT_S": 0.3, "TICK_S": 0.05})
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
        server = self.serve("--modo", "chat", constants={"LINE_TIMEOUT_S": 0.2, "TICK_S": 0.05})
        conn = self.join(server, "ana")
        time.sleep(0.5)  # o intervalo é o que se testa: calada, mas sem linha começada
        conn.send("/quem\n")
        conn.expect("na sala: ana\n")

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

    # HTTP

    def ask(self, server, request):
        conn = self.connect(server)
        conn.send(request)
        return conn.expect_eof()

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
        self.assertTrue(self.ask(server, b"HEAD / HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n"))

    def test_http_refusals(self):
        server = self.serve("--modo", "http")
        self.assertIn(b"HTTP/1.1 400 ", self.ask(server, b"oi\n"))
        self.assertIn(b"HTTP/1.1 400 ", self.ask(server, b"\x16\x03\x01\x02\x00\n\n"))
        self.assertIn(b"HTTP/1.1 431 ", self.ask(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 20000))

    def test_http_answer_survives_unread_body(self):
        """Um corpo que ninguém leu não pode virar um RST que apaga a resposta no caminho."""
        answer = self.ask(self.serve("--modo", "http"), b"POST / HTTP/1.1\r\n\r\n" + b"x" * 300000)
        self.assertIn(b"200 OK", answer)
        self.assertIn(b"</html>", answer)

    def test_http_slow_request(self):
        server = self.serve("--modo", "http", constants={"HEADER_TIMEOUT_S": 0.2, "TICK_S": 0.05})
        self.assertIn(b"HTTP/1.1 408 ", self.ask(server, b"GET / HT"))


class TestServidorThreads(ServerTests, ScriptTestCase):
    motor = "threads"


class TestServidorEpoll(ServerTests, ScriptTestCase):
    motor = "epoll"

    def setUp(self):
        if not hasattr(select, "epoll"):
            self.skipTest("epoll só existe no Linux")

    def test_no_tls(self):
        result = self.run_script("servidor.py", "--motor", "epoll", "--certificado", "x.pem")
        self.assert_one_line_error(result, "--motor threads")


class TestTLS(ScriptTestCase):
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
        cert, key = (os.path.join(cls.dir.name, name + end) for end in (".pem", "-chave.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={host}",
                        "-addext", f"subjectAltName=DNS:{host},IP:127.0.0.1"], check=True, stderr=subprocess.DEVNULL)
        return cert, key

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

    def test_chat_over_tls(self):
        """A sala fala enquanto o cliente está calado: quem espera num recv() do TLS não prende quem escreve."""
        server = self.serve("--modo", "chat")
        context = ssl.create_default_context(cafile=self.cert)
        conns = []
        for _ in range(2):
            sock = context.wrap_socket(self.connect(server).sock, server_hostname="localhost")
            self.addCleanup(sock.close)
            conns.append(Conn(self, sock))
            conns[-1].expect("comandos\n")
        for turn in range(20):
            conns[turn % 2].send(f"volta {turn}\n")
            conns[1 - turn % 2].expect(f"volta {turn}\n")

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
        self.assertEqual((bad.status, bad.out), (1, b""), bad)
        bad = self.client(server, "--ca", self.cert, "--certificado", self.cert, "--chave", self.key, "--mensagem", "a")
        self.assertEqual((bad.status, bad.out), (1, b""), bad)

    def test_silent_handshake(self):
        """Quem não completa o aperto de mão não atrasa os outros, e é desligado no prazo."""
        server = self.serve(constants={"HANDSHAKE_TIMEOUT_S": 0.5, "TICK_S": 0.05})
        silent = self.connect(server)
        half = self.connect(server)
        half.send(b"\x16\x03\x01")
        self.client(server, "--ca", self.cert, "--mensagem", "oi", status=0)
        self.assertEqual((silent.expect_eof(), half.expect_eof()), (b"", b""))

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
        for args in (("--certificado", "/nao/existe.pem"), ("--certificado", self.key), ("--chave", self.key),
                     ("--certificado", self.cert, "--chave", self.other_key)):
            result = self.run_script("servidor.py", "127.0.0.1", 0, *args)
            self.assert_one_line_error(result)


class TestCliente(ScriptTestCase):
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

    def test_server_is_not_there(self):
        _, port = self.listener(backlog=None)  # a porta é nossa, e ninguém escuta nela
        result = self.run_script("cliente.py", "127.0.0.1", port)
        self.assert_one_line_error(result, "ninguém escuta", "conexão recusada", f"./servidor.py 127.0.0.1 {port}")

    def test_server_comes_later(self):
        listener, port = self.listener(backlog=None)
        client = self.spawn("cliente.py", "127.0.0.1", port, "--tentar", 30, "--mensagem", "cheguei", ready=None)
        client.expect_error("ainda ninguém escuta")
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

    def test_server_closes_before_all_is_sent(self):
        listener, port = self.listener()
        with open("/dev/zero", "rb") as endless:
            client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, status=1, stdin=endless)
        conn = self.accept(listener)
        conn.sock.recv(10)
        conn.close()
        self.assertEqual(client.wait(), 1)
        self.assertRegex(client.errors(), "antes de receber tudo|caiu no meio")

    def test_prompt(self):
        """No terminal: o que chega aparece inteiro acima da linha que se digita, escapado, e ela continua lá."""
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=True, env={"TERM": "xterm"})
        conn = self.accept(listener)
        client.expect("> ")
        client.type("olá")
        client.expect("olá")
        conn.send("notícia \x1b]0;x\x07\n")
        client.expect(r"notícia \\x1b\]0;x\\x07\r?\n> olá".encode())
        client.type(" mundo\n")
        conn.expect("olá mundo\n")
        client.expect("\n> ")  # um Ctrl+D digitado entre duas linhas, o terminal o come
        client.type("\x04")
        self.assertEqual(conn.expect_eof(), b"")
        conn.send("até logo\n")
        conn.close()
        client.expect("até logo")
        self.assertEqual(client.wait(), 0)

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
        listener, port = self.listener()
        for tty in (False, True):
            client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, tty=tty, status=130)
            self.accept(listener).send("pronto\n")
            client.expect("pronto")
            self.stop(client, signal.SIGINT)

    def test_head_closes_the_pipe(self):
        listener, port = self.listener()
        read, write = os.pipe()
        client = self.spawn("cliente.py", "127.0.0.1", port, ready=None, status=1, stdout=write)
        os.close(write)
        os.close(read)
        self.accept(listener).send(b"x" * 100)
        self.assertEqual(client.wait(), 1)
        self.assertEqual(client.errors(), "")

    def test_nickname(self):
        server = self.spawn("servidor.py", "127.0.0.1", 0, "--modo", "chat")
        client = self.spawn("cliente.py", "127.0.0.1", server.port, "--apelido", "ana", ready=None)
        client.expect("agora você é ana\n")
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

    def test_output_closed(self):
        """`./cliente.py >&-`: sem onde escrever, ainda transporta."""
        listener, port = self.listener()
        starter = "import os, sys; os.close(1); os.execv(sys.argv[1], sys.argv[1:])"
        client = self.spawn("cliente.py", "127.0.0.1", port, "--mensagem", "oi", ready=None,
                            prefix=(sys.executable, "-c", starter))
        conn = self.accept(listener)
        conn.expect("oi\n")
        conn.send("tchau\n")
        conn.close()
        self.assertEqual(client.wait(), 0)

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

    def test_histogram(self):
        histogram = load("cliente.py").Histogram()
        rng = random.Random(SEED)
        values = sorted(int(rng.lognormvariate(11, 2)) + 1 for _ in range(5000))
        for value in values:
            bucket = histogram.bucket(value)
            self.assertLessEqual(histogram.floor(bucket), value)
            self.assertLess(value, histogram.floor(bucket + 1))
            self.assertLess(value - histogram.floor(bucket), max(value / 32, 1))
            histogram.add(value)
        for q in (0.5, 0.99, 0.999):
            exact = values[int(q * len(values)) - 1] / 1000
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

    def test_measure_notices_a_wrong_byte(self):
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--medir", "--conexoes", 1, ready=None, status=1)
        conn = self.accept(listener)
        message = bytearray(conn.sock.recv(64))
        message[40] ^= 1
        conn.send(bytes(message))
        self.assertEqual(client.wait(), 1)
        self.assertIn("o eco voltou errado", client.errors())

    def test_measure_notices_a_dead_server(self):
        listener, port = self.listener()
        client = self.spawn("cliente.py", "127.0.0.1", port, "--medir", "--conexoes", 2, ready=None, status=1)
        for _ in range(2):
            self.accept(listener).close()
        self.assertEqual(client.wait(), 1)
        self.assertIn("2 conexões caíram", client.errors())


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
        found = re.search(r"recebidos: (\d+) datagramas, (\d+) bytes, de (\d+) remetentes", text)
        self.assertTrue(found, text + server.errors())
        dropped = {why: int(n) for n, why in re.findall(r"^  (\d+) (.+)$", text, re.MULTILINE)}
        return (*map(int, found.groups()), dropped)


class TestFormatosUDP(unittest.TestCase):
    """O que não precisa de socket: códigos, formatos, contas."""

    @classmethod
    def setUpClass(cls):
        cls.server, cls.client = load("servidor_udp.py"), load("cliente_udp.py")

    def vectors(self, kind):
        """As linhas `kind campo=valor ... -> resultado` dos vetores do README."""
        lines = re.findall(rf"^{kind} +(.*?) +-> +(.+)$", README.read_text(encoding="utf-8"), re.MULTILINE)
        self.assertTrue(lines, f"nenhum vetor {kind} no README")
        return [(dict(field.split("=", 1) for field in fields.split()), result) for fields, result in lines]

    def test_readme_cookie(self):
        for fields, code in self.vectors("código"):
            found = self.server.cookie(bytes.fromhex(fields["chave"]), fields["endereço"], int(fields["porta"]),
                                       int(fields["minuto"]))
            self.assertEqual(found, code)

    def test_readme_invite(self):
        for fields, octets in self.vectors("convite"):
            invite = bytes.fromhex(octets)
            self.assertEqual(self.server.INVITE.format(fields["código"]).encode(), invite)
            self.assertEqual(self.client.proof(invite, b"oi"), fields["código"].encode() + b" oi")

    def test_readme_ping(self):
        for fields, octets in self.vectors("ping"):
            session, seq, size = int(fields["sorteio"], 16), int(fields["número"]), int(fields["tamanho"])
            self.assertEqual(self.client.encode_ping(session, seq, size), bytes.fromhex(octets))
            self.assertEqual(self.client.decode_ping(bytes.fromhex(octets), session, size), seq)

    def test_ping_round_trip(self):
        for size in (12, 13, 64, 268, 269, 65507):
            for seq in (0, 1, 2**32 - 1):
                self.assertEqual(self.client.decode_ping(self.client.encode_ping(7, seq, size), 7, size), seq)

    def test_ping_refuses_what_is_not_its_own(self):
        good, rng = self.client.encode_ping(7, 3, 64), random.Random(SEED)
        bad = [good[:n] for n in range(64)] + [good + b"\0", self.client.encode_ping(8, 3, 64), b"PONG" + good[4:],
                                               good[:-1] + b"\xff"] + [rng.randbytes(64) if hasattr(rng, "randbytes")
                                                                       else os.urandom(64) for _ in range(50)]
        for data in bad:
            self.assertEqual(self.client.decode_ping(data, 7, 64), -1, data)

    def test_cookie_depends_on_everything(self):
        base = (bytes(32), "127.0.0.1", 40000, 7)
        others = [(bytes(31) + b"\1", *base[1:]), (base[0], "127.0.0.2", *base[2:]), (*base[:2], 40001, 7),
                  (*base[:3], 8)]
        codes = {self.server.cookie(*args) for args in [base, *others]}
        self.assertEqual(len(codes), 5)
        self.assertTrue(all(re.fullmatch("[A-Z2-7]{7}", code) for code in codes), codes)

    def test_fitting_never_exceeds_the_question(self):
        for room in range(100):
            self.assertLessEqual(len(self.server.fitting(self.server.HINTS, room)), room)

    def test_tally(self):
        tally = self.client.Tally(patience_s=2)
        for n in range(6):
            tally.left_at.append(float(n))
        for seq, now in ((0, 0.5), (2, 2.5), (1, 2.6), (2, 2.7), (3, 9.0), (99, 9.1)):  # 4 e 5 nunca voltam
            tally.answered(seq, now)
        self.assertEqual((tally.duplicates, tally.reordered, tally.lost(), tally.strange), (1, 1, 2, 1))
        self.assertEqual(tally.marks(), "...axx")
        self.assertEqual(tally.on_time(), [0.5, 0.5, 2.6 - 1.0])  # a atrasada não entra na ida e volta
        self.assertIn("6 enviados: 3 respondidos, 1 atrasados, 2 perdidos (33.3%)", self.client.report(tally))

    def test_percentile(self):
        values = list(range(1, 101))
        self.assertEqual([self.client.percentile(values, p) for p in (0, 50, 99, 100)], [1, 50, 99, 100])
        self.assertEqual(self.client.percentile([5], 99), 5)

    def test_strip_chart_is_small_and_hides_no_loss(self):
        for count in (0, 1, 64, 65, 1024, 1025, 100000):
            marks = "." * count
            if count > 1:
                marks = marks[:count // 2] + "x" + marks[count // 2 + 1:]
            rows = self.client.strip_chart(marks)
            self.assertLessEqual(len(rows), self.client.STRIP_ROWS + 1)
            self.assertTrue(all(len(row) < 80 for row in rows), rows)
            self.assertEqual(sum(row.count("x") for row in rows[:-1]), count > 1)

    def test_keepalive(self):
        """Um membro calado manda um datagrama vazio de tempos em tempos; quem não é membro, nunca."""
        args, sent = self.client.build_parser().parse_args(["--apelido", "ana"]), []
        talk = self.client.Conversation(argparse.Namespace(send=sent.append), None, args)
        talk.check_deadlines()
        self.assertEqual(sent, [])
        talk.member, talk.keepalive_at = True, time.monotonic()
        talk.check_deadlines()
        talk.check_deadlines()
        self.assertEqual(sent, [b""])

    def test_nicks(self):
        for good in ("ana", "José", "x" * 20, "名前"):
            self.assertEqual(self.server.valid_nick(good), good)
        for bad in ("", "x" * 21, "a b", "a\x1b", "/ana", "a\nb", "\u202e"):
            with self.assertRaises(self.server.ProtocolError, msg=repr(bad)):
                self.server.valid_nick(bad)


class TestGuardaUDP(unittest.TestCase):
    """Quem merece resposta: a guarda do servidor, sem rede."""

    def setUp(self):
        self.module = load("servidor_udp.py")
        self.quiet = tempfile.TemporaryFile("w+")
        self.addCleanup(self.quiet.close)
        redirect = contextlib.redirect_stderr(self.quiet)
        redirect.__enter__()
        self.addCleanup(redirect.__exit__, None, None, None)

    def guard(self, own=("127.0.0.1", 5050), rate=None):
        return self.module.Guard(own, rate)

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
        for source in (("127.0.0.1", 1024), ("10.0.0.1", 5050)):
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
        for host, low, high in (("10.0.0.1", 500, 1000), ("::ffff:10.0.0.1", 500, 1000), ("127.0.0.1", 500, 10**6)):
            guard = self.guard()
            self.assertTrue(guard.admit((host, 4000), b"x"))
            wait = guard.quotas[host, 4000][0] - time.monotonic()
            self.assertEqual(wait > 0.1, high == 1000, (host, wait))  # 500 fichas: 0,5 s ou 5 ms

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
        self.count(guard, ("10.0.0.1", 4000), [b"eco"] * 5000)
        self.assertIn("laço com outro servidor de eco", guard.dropped)
        other = self.guard(rate=float("inf"))
        self.assertEqual(self.count(other, ("10.0.0.1", 4000), (b"%d" % n for n in range(20000))), 20000)

    def test_delay_queue_is_bounded(self):
        args = self.module.build_parser().parse_args(["--atraso", "10000", "--semente", "1"])
        guard = self.guard()
        network = self.module.BadNetwork(lambda data, source: None, args, guard)
        for data in (bytes(60000), b""):
            for _ in range(10000):
                network.send(data, ("127.0.0.1", 4000))
        self.assertLessEqual(sum(len(item[2]) for item in network.held), self.module.MAX_DELAYED_BYTES)
        self.assertLess(len(network.held), 10000)
        self.assertTrue(guard.dropped["fila do atraso cheia"])

    def test_errors_of_earlier_answers(self):
        """ECONNREFUSED de uma resposta anterior: com IP_RECVERR o Linux o mostra, como o Windows sempre (10054)."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            try:
                sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_RECVERR", 11), 1)
            except OSError as error:
                self.skipTest(f"sem IP_RECVERR: {error}")
            sock.setblocking(False)
            server = self.module.Server(sock, self.guard(sock.getsockname()), 65527)
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
        server = self.module.Server(sock, self.guard(), 65527)
        cut = OSError(0, "cortado")
        cut.winerror = 10040
        sock.news = [ConnectionResetError(10054, "reset"), cut, BlockingIOError()]
        server.drain()
        self.assertEqual(sock.news, [])
        self.assertEqual(server.guard.dropped, {"maior que 65527 bytes: chegou cortado": 1})
        sock.news = [OSError(errno.EBADF, "fechado")]
        self.assertRaises(OSError, server.drain)

    class FakeSocket:
        news = ()

        def recvfrom_into(self, buffer):
            raise self.news.pop(0)

        def sendto(self, data, source):
            raise OSError(errno.EPERM, "firewall")

    def test_send_errors_are_counted(self):
        server = self.module.Server(self.FakeSocket(), self.guard(), 65527)
        server.send(b"x", ("127.0.0.1", 4000))
        self.assertEqual(server.guard.dropped, {"envio recusado (firewall)": 1})


class TestServidorUDP(UDPTestCase):
    """O servidor de eco, de verdade."""

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
        server = self.spawn("servidor_udp.py", "::", "0")
        for host in ("127.0.0.1", "::1"):
            self.assertEqual(self.ask(self.peer((host, server.port), host), b"oi"), b"oi", host)

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
        server.expect_error("maior que 100 bytes: chegou cortado")
        self.assertEqual(self.totals(server)[3], {"maior que 100 bytes: chegou cortado": 1})

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
        with self.peer(first) as forged:
            port = forged.getsockname()[1]
            forged.send(b"pingue-pongue")
        second = self.spawn("servidor_udp.py", "127.0.0.1", port)
        first.kill(signal.SIGCONT)
        deadline = time.monotonic() + WATCHDOG_S
        while not any("laço com outro servidor de eco" in server.errors() for server in (first, second)):
            self.assertLess(time.monotonic(), deadline, "o laço não morreu")
            time.sleep(0.01)  # intervalo de releitura
        limit = 5000 + 2 * 1000  # LOOP_COPIES e duas cotas: depois da primeira perda não circula mais nada
        for server in (first, second):
            self.assertLessEqual(self.totals(server)[0], limit)

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

    def test_ten_thousand_random_datagrams(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        sock, rng = self.peer(server), random.Random(SEED)
        for n in range(10000):
            data = rng.getrandbits(8 * 40).to_bytes(40, "big")[:rng.randrange(41)]
            sock.send(data)
            if sock.recv(65536) != data:
                self.fail(f"datagrama {n}, semente {SEED}")
        self.assertEqual(self.totals(server)[0], 10000)

    def test_stop_and_start_again(self):
        """Ctrl+C e SIGTERM são o mesmo fim; a porta fica livre na hora."""
        port = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            server = self.spawn("servidor_udp.py", "127.0.0.1", port)
            port = server.port
            self.ask(self.peer(server), b"oi")
            start = time.monotonic()
            self.assertEqual(server.stop(number), 0)
            self.assertLess(time.monotonic() - start, 2)
            self.assertIn(b"recebidos: 1 datagramas, 2 bytes, de 1 remetentes", server.output.data)

    def test_usage_errors(self):
        table = ((("--perda", "101"), "porcentagem"), (("--taxa", "x"), "segundo"), (("--maximo", "0"), "bytes"))
        for args, word in table:
            self.assert_usage_error("servidor_udp.py", args, word)

    def test_poor_output(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--verbose", env={"PYTHONIOENCODING": "ascii"})
        self.assertEqual(self.ask(self.peer(server), "\x1b]0;ç\x07".encode()), "\x1b]0;ç\x07".encode())
        server.expect_error(r"7 B \\x1b\]0;\?\\x07")

    def test_closed_pipe(self):
        """`| head -1`: quem lia foi embora; a sala acaba sem barulho na primeira linha que não tem a quem mostrar."""
        read, write = os.pipe()
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat", status=1, ready=None, stdout=write)
        os.close(write)
        with open(read, "rb") as head:
            port = int(re.search(READY.encode(), head.readline())["port"])
        sock = self.peer(("127.0.0.1", port))
        code = re.search("é ([A-Z2-7]{7}):", self.ask(sock, b"/entrar".ljust(64)).decode())[1]
        sock.send(code.encode())
        self.assertEqual(server.wait(), 1)


class TestSalaUDP(UDPTestCase):
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
        self.say(ana, "/msg bia segredo", "<ana para bia, em particular> segredo")
        self.hear(bia, "segredo")
        for wrong in ("/msg zé oi", "/msg bia", "/nick a b", "/nick BIA", "/nick", "x" * 1025):
            self.say(ana, wrong, "* erro")
        self.say(ana, "/xyz \x1b", "não conheço /xyz")
        self.say(ana, "/ajuda", "/nick NOME")
        self.say(ana, b"\xff oi", "<ana> \ufffd oi")
        self.say(ana, "\x1b]0;x\x07", "<ana> \\x1b]0;x\\x07")
        ana.send(b"")  # continuo aqui: sem resposta
        self.say(bia, "/sair", "até logo")
        self.hear(ana, "* bia saiu")
        self.say(ana, "/nick Bia", "agora é Bia")  # o apelido ficou livre
        server.expect(r"<ana> \\x1b\]0;x\\x07")
        server.stop()
        self.hear(ana, "o servidor encerrou")

    def test_a_forged_source_does_not_enter(self):
        """O código de um endereço não serve a outro, e quem não o recebeu não entra."""
        server = self.room("--taxa", 0)
        ana, eve = self.peer(server), self.peer(server)
        code = self.ask(ana, b"/entrar\n").decode().strip()
        self.assertRegex(code, "^[A-Z2-7]{7}$")
        for attempt in (f"{code} oi", "AAAAAAA oi", "/nick eve", "/quem"):
            self.assertIn(self.ask(eve, attempt.encode()), [b"?\n", b"digite /entrar\n"])
        self.say(ana, code.lower(), "bem-vindo")
        self.assertEqual(self.say(ana, "/quem", "na sala"), "* na sala: visitante1\n")

    def test_old_codes_expire(self):
        module = load("servidor_udp.py")
        room = module.Room(lambda data, source: None, 120)
        source = ("127.0.0.1", 4000)
        for age, valid in ((0, True), (1, True), (2, False)):
            period = int(time.monotonic() // module.COOKIE_PERIOD_S) - age
            if period >= 0:
                self.assertEqual(room.proves(module.cookie(room.key, *source, period), source), valid, age)

    def test_members_are_bounded(self):
        module, sent = load("servidor_udp.py"), []
        room = module.Room(lambda data, source: sent.append((data, source)), 120)
        with contextlib.redirect_stdout(tempfile.TemporaryFile("w+")) as quiet, quiet:
            for port in range(2000, 2000 + module.MAX_MEMBERS + 5):
                room.receive(room.codes(("127.0.0.1", port))[0].encode(), ("127.0.0.1", port))
        self.assertEqual(len(room.members), module.MAX_MEMBERS)
        self.assertEqual(len({member.nick for member in room.members.values()}), module.MAX_MEMBERS)
        self.assertIn("a sala está cheia".encode(), sent[-1][0])

    def test_silence_expires(self):
        server = self.room("--silencio", 0.3)
        ana = self.enter(server, "ana")
        self.hear(ana, "de silêncio: você saiu")
        server.expect("^. ana saiu")
        self.assertEqual(self.ask(ana, b"/quem /quem /quem"), b"digite /entrar\n")

    def test_ten_thousand_random_datagrams_get_no_more_than_they_bring(self):
        server = self.room("--taxa", 0)
        sock, rng = self.peer(server), random.Random(SEED)
        starts = (b"", b"", b"/entrar ", b"/msg ", b"ABCDEFG ", b"\n", b"\x00")
        for n in range(10000):
            data = rng.choice(starts) + rng.getrandbits(8 * 60).to_bytes(60, "big")[:rng.randrange(61)]
            data = data or b"/"
            sock.send(data)
            if len(data) > 1:  # a um byte não há o que responder: "?\n" já seria mais
                answer = sock.recv(65536)
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

    def test_netcat(self):
        """A terceira pessoa: quem só tem nc digita o código que aparece."""
        if not shutil.which("nc"):
            self.skipTest("sem o comando nc")
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


class TestClienteUDP(UDPTestCase):
    """O cliente, contra o servidor de verdade e contra servidores de mentira do próprio teste."""

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
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            return "127.0.0.1", str(sock.getsockname()[1])

    def test_questions(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        result = self.client(server, input="um\ndois\n\ntrês\nsem fim".encode(), status=0)
        self.assertEqual(result.text, "um\ndois\n\ntrês\nsem fim\n")
        self.assertEqual(self.client(server, "--mensagem", "", status=0).text, "\n")
        self.assertEqual(self.client(server, "--mensagem", "?\n", status=0).text, "?\n")  # um eco, não uma sala
        self.assertEqual(self.totals(server)[:3], (7, 2 + 4 + 0 + 5 + 7 + 0 + 2, 7))

    def test_client_first(self):
        """Sem servidor: o datagrama sai, volta um ICMP, e o cliente diz como o TCP difere."""
        for args in (("--mensagem", "oi"), ("--ping", "1", "--espera", "0.1"), ()):
            result = self.run_script("cliente_udp.py", *self.nobody(), *args, input=b"oi\n")
            self.assertEqual(result.status, 1, result)
            self.assertEqual(result.err.count("\n"), 1, result)
            for words in ("ninguém escuta", "saiu", "TCP", "./servidor_udp.py"):
                self.assertIn(words, result.err)

    def test_silence(self):
        mute = self.peer()
        result = self.client(mute, "--mensagem", "oi", "--espera", "0.1", "--tentativas", "3")
        self.assert_one_line_error(result, "sem resposta", "0.1 s", "3 tentativa", "O datagrama saiu")
        self.assertEqual([mute.recv(9) for _ in range(3)], [b"oi"] * 3)  # retransmitiu
        result = self.client(mute, "--ping", "2", "--intervalo", "1", "--espera", "0.1")
        self.assertEqual(result.status, 1)
        self.assertIn("2 perdidos (100.0%)", result.text)

    def test_retransmission(self):
        server = self.serve(lambda *_: None, lambda sock, data, who: sock.sendto(data, who))
        self.assertEqual(self.client(server, "--mensagem", "oi", "--espera", "0.2", "--tentativas", "5").text, "oi\n")

    def test_insists_until_the_server_is_up(self):
        host, port = self.nobody()
        child = self.spawn("cliente_udp.py", host, port, "--mensagem", "oi", "--tentativas", 100, "--espera", 0.1,
                           "--verbose", ready=None)
        child.expect_error("-> 2 B oi")
        self.spawn("servidor_udp.py", host, port)
        child.expect("^oi$")
        self.assertEqual(child.wait(), 0)

    def test_late_answer_is_not_taken_for_a_fresh_one(self):
        """A resposta da primeira pergunta chega durante a segunda, igual a esta: a porta é outra, ela não engana."""
        first = []

        def late(sock, data, who):
            sock.sendto(b"resposta velha", first[0])
            sock.sendto(b"resposta nova", who)
        server = self.serve(lambda sock, data, who: first.append(who), late)
        result = self.client(server, "--espera", "0.3", input=b"oi\noi\n")
        self.assertEqual((result.text, result.status), ("resposta nova\n", 1), result)

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
        self.assert_one_line_error(self.client(server, "--ping", "1", "--tamanho", "65508"), "65507")
        self.assertEqual(self.totals(server)[0], 1)

    def test_escapes(self):
        server = self.serve(lambda sock, data, who: sock.sendto(b"\x1b]0;x\x07\xff\nfim\n", who))
        self.assertEqual(self.client(server, "--mensagem", "oi", status=0).text, "\\x1b]0;x\\x07\ufffd\nfim\n")

    def test_ping(self):
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0")
        result = self.client(server, "--ping", "20", "--intervalo", "1", "--tamanho", "1000", status=0)
        self.assertIn("20 enviados: 20 respondidos, 0 atrasados, 0 perdidos (0.0%)", result.text)
        self.assertRegex(result.text, r"mínimo [\d.]+  mediana [\d.]+  p99 [\d.]+  máximo [\d.]+ ms")
        self.assertRegex(result.text, r"(?m)^ +1 \.{20}$")

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
        ana.expect("visitante1 saiu")
        ana.type("tudo bem?\n")
        ana.expect("<ana> tudo bem")
        ana.stdin.close()
        ana.expect("até logo")
        self.assertEqual(ana.wait(), 0)
        server.expect("ana saiu")

    def test_terminal(self):
        """Digita-se, volta; o que chega não rasga a linha; Ctrl+D acaba, e o terminal fica como estava."""
        server = self.spawn("servidor_udp.py", "127.0.0.1", "0", "--modo", "chat")
        ana = self.spawn("cliente_udp.py", "127.0.0.1", server.port, "--apelido", "ana", tty=True, ready=r"agora é ana")
        ana.type("meia linha")
        ana.expect("meia linha")
        self.client(server, "--mensagem", "oi")
        if importlib.util.find_spec("readline"):
            ana.expect("<visitante1> oi\r\n> meia linha")
        ana.type("\r")
        ana.expect("<ana> meia linha")
        ana.type("\x04")
        self.assertEqual(ana.wait(), 0)

    def test_terminal_before_the_server(self):
        host, port = self.nobody()
        child = self.spawn("cliente_udp.py", host, port, tty=True, ready="> ")
        child.type("oi\r")
        child.expect("ninguém escuta")
        self.spawn("servidor_udp.py", host, port)
        child.type("agora\r")
        child.expect("(?s)agora\r\n.*agora\r\n")
        child.type("\x04")
        self.assertEqual(child.wait(), 0)

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
        child.expect("sem resposta")  # "dois" continuou à espera: a atrasada não valeu por ela
        child.type("\x04")
        self.assertEqual(child.wait(), 0)

    def test_interrupt(self):
        """Ctrl+C: estado 130, e o terminal como estava; o --ping mostra as contas até ali."""
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
        child = self.spawn("cliente_udp.py", "127.0.0.1", port, ready=None, status=130, stdin=slave, stdout=slave)
        seen = Output(os.dup(master))
        seen.expect("> ")
        child.kill(signal.SIGINT)
        self.assertEqual(child.wait(), 130)
        self.assertEqual(termios.tcgetattr(slave), before)

    def test_usage_errors(self):
        for args, word in ((("5050",), "127.0.0.1 5050"), (("127.0.0.1", "0"), "65535"), (("--ping", "0"), "100000"),
                           (("--tamanho", "11"), "bytes"), (("--ping", "1", "--mensagem", "x"), "mensagem")):
            self.assert_usage_error("cliente_udp.py", args, word)
        result = self.run_script("cliente_udp.py", "a..b", "--mensagem", "x")
        self.assert_one_line_error(result, "não encontro a máquina")

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


each_script = each(*SCRIPTS)
each_server = each("servidor.py", "servidor_udp.py", "led_gpio.py")
each_source = each(*SCRIPTS, "test_all.py")


class TestTodos(ScriptTestCase):
    """O que todo script faz igual: uso errado, erros de endereço, cano fechado, saída sem acentos."""

    @each_script
    def test_help_and_version(self, script):
        """--help e --version, em qualquer codificação: os acentos se perdem, nada quebra."""
        for encoding in ("utf-8", "ascii", "cp1252"):
            text = self.run_script(script, "--help", env={"PYTHONIOENCODING": encoding, "COLUMNS": "80"}, status=0).text
            self.assertIn("usage", text)
            self.assertLessEqual(max(map(len, text.splitlines())), 80)
        version = self.run_script(script, "--version", status=0).text
        self.assertEqual(version, f"{script} {load(script).VERSION}\n")

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

    @each_script
    def test_wall_clock_is_not_used_for_waiting(self, script):
        """O relógio de parede pode saltar um dia: os prazos usam time.monotonic()."""
        tree = ast.parse((HERE / script).read_text(encoding="utf-8"))
        calls = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "time"
                 and isinstance(node.value, ast.Name) and node.value.id == "time"]
        self.assertEqual(calls, [], f"{script}: time.time() nestas linhas")


class TestREADME(unittest.TestCase):
    """O que o README manda digitar existe: os scripts, as opções, o exemplo de serviço."""

    def setUp(self):
        self.text = README.read_text(encoding="utf-8")

    def test_commands_exist(self):
        """Cada `./script.py ... --opção` do README: o script existe e aceita a opção."""
        commands = re.findall(r"(\w+\.py)((?:[^`\n|;$]|\\\n)*)", self.text)
        helps = {}
        for script, rest in commands:
            with self.subTest(script + rest):
                self.assertIn(script, (*SCRIPTS, "test_all.py", "script.py"))
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
                    if script in SCRIPTS:
                        if script not in helps:
                            helps[script] = subprocess.run([sys.executable, str(HERE / script), "--help"],
                                                           stdout=subprocess.PIPE, env=child_env()).stdout.decode()
                        self.assertRegex(helps[script], re.escape(option) + r"\b")
        self.assertGreater(len(commands), 20)

    def test_the_example_service(self):
        servidor = load("servidor.py")
        for source in (self.text, servidor.__doc__):
            code = re.search(r"^ *class Upper\(Service\):\n(?: .*\n)+", source, re.M)[0]
            names = {"Service": servidor.Service}
            exec(textwrap.dedent(code), names)
            sent = []
            client = type("Fake", (), {"send": sent.append})
            names["Upper"]().on_data(client, memoryview(b"oi"))
            self.assertEqual(sent, [b"OI"])

    def test_files_are_known(self):
        self.assertNotRegex(self.text, r"/home/|/root/|/work/")


class TestCasa(unittest.TestCase):
    """A própria casa: que arquivos há, de que dependem, o que repetem, quanto medem."""

    # O teto é de 600 linhas; os scripts que são um protocolo inteiro têm mais, e servidor.py, que são três serviços,
    # dois motores e TLS, mais ainda: cortá-lo em dois custaria poder copiar um arquivo só.
    LIMITS = {"servidor.py": 1000, "cliente.py": 650, "raw_server.py": 700, "raw_client.py": 700, "led_gpio.py": 700}
    FENCE = re.compile(r"^# --- bloco comum: (.+?) ---$(.*?)^# --- fim do bloco comum: \1 ---$", re.M | re.S)

    def test_the_files(self):
        names = {path.name for path in HERE.iterdir() if not path.name.startswith(".")} - {"__pycache__"}
        self.assertLessEqual(names, {*SCRIPTS, "test_all.py", "README.md"})

    @each_source
    def test_shebang_license_and_run_bit(self, name):
        source = (HERE / name).read_text(encoding="utf-8")
        self.assertTrue(source.startswith("#!/usr/bin/env python3\n# SPDX-License-Identifier: MIT\n"))
        self.assertTrue(os.access(HERE / name, os.X_OK))
        self.assertNotIn("\t", source)

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
            done = subprocess.run([sys.executable, "-I", "-X", "dev", path, "--help"], cwd=folder, env=child_env(),
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
    def test_size(self, name):
        """Um script se lê inteiro: linhas, colunas e tamanho das funções têm teto."""
        source = (HERE / name).read_text(encoding="utf-8")
        self.assertLessEqual(max(map(len, source.splitlines())), 120)
        if name == "test_all.py":
            return
        self.assertLessEqual(source.count("\n"), self.LIMITS.get(name, 600))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                self.assertLessEqual(node.end_lineno - node.lineno + 1, 40, node.name)
            if isinstance(node, ast.ExceptHandler):
                self.assertIsNotNone(node.type, f"linha {node.lineno}: except sem tipo")


if __name__ == "__main__":
    unittest.main()
