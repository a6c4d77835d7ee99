"""The tests/api of a Tempest plugin against a service with `[api] identity = "headers"`.

    tempest_api.py URL PACKAGE LIST

There is no Keystone. This script serves the part of its API that tempest uses, and is the proxy in front of the service
that validates tokens, as keystonemiddleware does. PACKAGE is that of the plugin. LIST names the tests that are expected
to fail, with the reasons, by plugin. All others must pass.
"""

import http.server
import importlib
import json
import os
import sys
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

ROLES = ["admin", "manager", "member", "reader", "service"]


class Keystone(http.server.BaseHTTPRequestHandler):
    service = ""

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def own(self):
        return f"http://{self.headers['host']}"

    def document(self, status, value, headers=()):
        self.answer(status, json.dumps(value).encode(), [("content-type", "application/json"), *headers])

    def token(self, asked):
        user, scope = asked["identity"]["password"]["user"]["name"], asked.get("scope", {})
        role = user.split("-")[0]
        domain = {"id": "default", "name": "Default"}
        token = {
            "methods": ["password"],
            "user": {"id": user, "name": user, "domain": domain},
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "roles": [{"id": role, "name": role}],
            "catalog": [{
                "id": kind, "type": kind, "name": kind,
                "endpoints": [{"id": kind, "interface": face, "region": "RegionOne", "region_id": "RegionOne",
                               "url": self.own() + path} for face in ("public", "internal", "admin")],
            } for kind, path in (("accelerator", "/accelerator/v2"), ("hotslot", ""), ("identity", "/v3"))],
        }
        if "system" in scope:
            token["system"] = {"all": True}
            name = f"{user}:system"
        else:
            token["project"] = {"id": "demo", "name": "demo", "domain": domain}
            name = f"{user}:demo"
        self.document(201, {"token": token}, [("x-subject-token", name)])

    def forward(self, body):
        headers = {name: self.headers[name] for name in
                   ("content-type", "idempotency-key", "if-match", "openstack-api-version") if self.headers[name]}
        user, _, scope = (self.headers["x-auth-token"] or "").partition(":")
        if user:
            headers |= {"x-identity-status": "Confirmed", "x-user-id": user, "x-roles": user.split("-")[0]}
            headers |= {"openstack-system-scope": "all"} if scope == "system" else {"x-project-id": scope}
        request = urllib.request.Request(self.service + self.path, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as answer:
                status, headers, body = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as answer:
            status, headers, body = answer.code, answer.headers, answer.read()
        kept = ("content-type", "etag", "location", "openstack-api-version")
        self.answer(status, body, [(name, headers[name]) for name in kept if headers[name]])

    def do(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0)) or None
        if not self.path.startswith("/v3"):
            self.forward(body)
        elif self.path == "/v3/auth/tokens" and self.command == "POST":
            self.token(json.loads(body)["auth"])
        else:
            link = {"rel": "self", "href": self.own() + "/v3/"}
            self.document(200, {"version": {"id": "v3.14", "status": "stable", "links": [link]}})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

    def log_message(self, *_):
        pass


def configure(directory, keystone):
    """Writes the configuration of tempest and the accounts that it may use."""
    accounts = []
    for role in ROLES:
        for number in range(3):
            accounts.append({"username": f"{role}-{number}", "password": "x", "project_name": "demo",
                             "roles": [role], "domain_name": "Default"})
    accounts.append({"username": "admin-system", "password": "x", "system": "all", "roles": ["admin"],
                     "user_domain_name": "Default"})
    with open(f"{directory}/accounts.yaml", "w", encoding="utf-8") as file:
        json.dump(accounts, file)
    with open(f"{directory}/tempest.conf", "w", encoding="utf-8") as file:
        file.write(f"""
[DEFAULT]
log_file = {directory}/tempest.log
[oslo_concurrency]
lock_path = {directory}
[auth]
use_dynamic_credentials = false
test_accounts_file = {directory}/accounts.yaml
default_credentials_domain_name = Default
tempest_roles = member
[identity]
auth_version = v3
uri_v3 = {keystone}/v3
region = RegionOne
[identity-feature-enabled]
api_v3 = true
[service_available]
cyborg = true
nova = false
glance = false
neutron = false
cinder = false
swift = false
[cyborg_policy]
enforce_new_defaults = true
[hotslot]
server_id = 20000000-0000-4000-8000-000000000001
alias = qat
device_type = FPGA
""")
    os.environ["TEMPEST_CONFIG_DIR"] = directory


class Outcome(unittest.TestResult):
    """The result of each test, by the last two parts of its name."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def note(self, test, word, words=""):
        self.of.setdefault(".".join(str(test.id()).split("[")[0].split(".")[-2:]), (word, words))

    def addSuccess(self, test, details=None):
        self.note(test, "ok")

    def addSkip(self, test, reason=None, details=None):
        self.note(test, "skip", str(reason or details))

    def addFailure(self, test, err=None, details=None):
        said = {key: value.as_text() for key, value in (details or {}).items()}
        self.note(test, "fail", f"{err and err[1]} {said}")

    addError = addFailure


def main(url, package, expected):
    Keystone.service = url
    keystone = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keystone)
    threading.Thread(target=keystone.serve_forever, daemon=True).start()
    with open(expected, encoding="utf-8") as file:
        expected = json.load(file)[package]
    with tempfile.TemporaryDirectory() as directory:
        configure(directory, f"http://127.0.0.1:{keystone.server_port}")
        # Imported only now, because the import reads the configuration.
        api = importlib.import_module(f"{package}.tests.api").__path__[0]
        top = os.path.dirname(importlib.import_module(package).__path__[0])
        outcome = Outcome()
        unittest.TestLoader().discover(api, top_level_dir=top).run(outcome)
    wrong = []
    for name, (word, words) in sorted(outcome.of.items()):
        print(f"{word:4} {name}")
        if word != ("fail" if name in expected else "ok"):
            wrong.append(f"{name}: {word}: {words}")
    wrong += [f"{name}: there is no such test" for name in expected if name not in outcome.of]
    print(f"{len(outcome.of)} tests")
    if wrong or not outcome.of:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
