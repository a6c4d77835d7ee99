"""Runs a Keystone for the tests, on SQLite in a temporary directory, and prints the URL of its v3 API.

It runs until its standard input is closed, which also happens when the test is killed. It reads commands from its
standard input and prints `ok` after each:
    freeze, thaw        pause the server without breaking connections, and continue it
    stop, start         kill the server, and start it again at the same port
    rekey               start it again with other keys, so that no token from before is valid
    lifetime SECONDS    start it again so that tokens which it issues from now on are valid for so long
For `validations` it prints how many tokens it was asked to validate.

The administrator is `admin` with the password `admin-secret` in the project `admin` of the domain `Default`.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

CONFIG = """
[DEFAULT]
log_file = {dir}/keystone.log
[database]
connection = sqlite:///{dir}/keystone.db?timeout=60
sqlite_synchronous = false
[token]
expiration = {lifetime}
# The tests look at what Keystone says at once.
cache_on_issue = false
caching = false
[cache]
enabled = false
[identity]
password_hash_rounds = 4
[fernet_tokens]
key_repository = {dir}/fernet
[fernet_receipts]
key_repository = {dir}/fernet
[credential]
key_repository = {dir}/fernet
"""


def serve(port):
    """Serves the WSGI application of Keystone in this process."""

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        request_queue_size = 128

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_):
            if self.command == "GET" and self.path.startswith("/v3/auth/tokens"):
                with open(os.environ["KEYSTONE_VALIDATIONS"], "a") as file:
                    file.write(".")

    from keystone.wsgi.api import application

    # SQLite refuses a transaction that began to read before another one wrote ("database is locked").
    turn = threading.Lock()

    def one_at_a_time(environ, start_response):
        with turn:
            return list(application(environ, start_response))

    make_server("127.0.0.1", port, one_at_a_time, Server, Quiet).serve_forever()


class Keystone:
    def __init__(self, folder):
        self.folder = folder
        self.env = {**os.environ, "OS_KEYSTONE_CONFIG_FILES": f"{folder}/keystone.conf"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v3"
        self.server = None
        self.validations = Path(folder, "validations")
        self.validations.touch()
        self.configure(3600)
        self.manage("db_sync")
        self.make_keys()
        self.manage("bootstrap", "--bootstrap-password", "admin-secret", "--bootstrap-region-id", "RegionOne",
                    "--bootstrap-public-url", self.url)

    def configure(self, lifetime):
        Path(self.folder, "keystone.conf").write_text(CONFIG.format(dir=self.folder, lifetime=lifetime))

    def manage(self, *command):
        program = [Path(sys.executable).parent / "keystone-manage", "--config-file", f"{self.folder}/keystone.conf"]
        done = subprocess.run([*program, *command], env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"keystone: keystone-manage {command[0]}: {done.stdout}{done.stderr}")

    def make_keys(self):
        from cryptography.fernet import Fernet

        folder = Path(self.folder, "fernet")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        for name in "01":
            Path(folder, name).write_bytes(Fernet.generate_key())

    def start(self):
        # Keystone reads the arguments of its process, so the port is in the environment.
        env = {**self.env, "KEYSTONE_PORT": str(self.port), "KEYSTONE_VALIDATIONS": str(self.validations),
               "PYTHONWARNINGS": "ignore"}
        self.server = subprocess.Popen([sys.executable, __file__], env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        end = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", "/v3")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            if self.server.poll() is not None or time.monotonic() > end:
                sys.exit("keystone: the server does not start")
            time.sleep(0.05)

    def stop(self):
        self.server.kill()
        self.server.wait()

    def command(self, word, *rest):
        if word == "freeze":
            self.server.send_signal(signal.SIGSTOP)
        elif word == "thaw":
            self.server.send_signal(signal.SIGCONT)
        elif word == "stop":
            self.stop()
        elif word == "start":
            self.start()
        elif word == "rekey":
            self.stop()
            self.make_keys()
            self.start()
        elif word == "lifetime":
            self.stop()
            self.configure(*rest)
            self.start()
        elif word == "validations":
            # The server counts a request after it has responded.
            time.sleep(0.2)
            return self.validations.stat().st_size
        else:
            sys.exit(f"keystone: unknown command {word}")
        return "ok"


def main():
    with tempfile.TemporaryDirectory(prefix="hotslot-keystone.") as folder:
        keystone = Keystone(folder)
        keystone.start()
        try:
            print(keystone.url, flush=True)
            for line in sys.stdin:
                print(keystone.command(*line.split()), flush=True)
        finally:
            keystone.command("thaw")
            keystone.stop()


if __name__ == "__main__":
    if "KEYSTONE_PORT" in os.environ:
        serve(int(os.environ["KEYSTONE_PORT"]))
    else:
        main()
