"""Runs the commands of a list with the stock clients, and checks their output against the list.

    commands.py URL LIST     with the service at the URL, without authentication
    commands.py LIST         with the clouds of the file that OS_CLIENT_CONFIG_FILE names

A step of the list:
    openstack   a command line of python-openstackclient
    cyborg      a command line of python-cyborgclient, which is called directly: both clients have `accelerator`, and
                openstack runs its own
    fails       the command must fail, with this text in its output
    shows       keys and values that the output must have; for a list, in one row
    rows        the number of rows of the list
    save        names for values of the output, for use as {name} in later steps; with `of`, of the row with these values
    until       the command is repeated until its output has these keys and values
"""

import contextlib
import http.server
import io
import json
import multiprocessing
import os
import shlex
import sys
import threading
import time
import types

import openstack
from cliff import columns
from importlib import metadata
from openstackclient import shell


class Keystone(http.server.BaseHTTPRequestHandler):
    """Serves the version document of Keystone v3, which `openstack server list` reads; it sends no other request."""

    def do_GET(self):
        link = {"rel": "self", "href": f"http://{self.headers['host']}/v3"}
        body = json.dumps({"version": {"id": "v3.14", "status": "stable", "links": [link]}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def of_openstack(line):
    """Returns the output of a command, as JSON where it shows something."""
    # Runs in a process of its own, because the client keeps its connections from one command to the next.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        code, out, err = pool.apply(in_shell, (line,))
    if code:
        raise RuntimeError(f"exit code {code}: {err}{out}")
    return json.loads(out) if out.strip().startswith(("[", "{")) else None


def in_shell(line):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = shell.main(shlex.split(line))
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def plain(value):
    return value.machine_readable() if isinstance(value, columns.FormattableColumn) else value


def of_cyborg(line):
    """Returns the output of a command of python-cyborgclient."""
    words = shlex.split(line)
    points = {point.name: point for point in metadata.entry_points(group="openstack.accelerator.v2")
              if point.dist.name == "python-cyborgclient"}
    for count in range(len(words), 0, -1):
        point = points.get("_".join(words[:count]))
        if point:
            break
    else:
        raise AssertionError(f"python-cyborgclient knows no command {line}")
    app = types.SimpleNamespace(client_manager=types.SimpleNamespace(accelerator=connection().accelerator))
    command = point.load()(app, None)
    args = command.get_parser(point.name).parse_args(words[count:])
    with contextlib.redirect_stdout(io.StringIO()):
        shown = command.take_action(args)
    if shown is None:
        return None
    names, values = shown
    if type(command).__name__.startswith("List"):
        return [dict(zip(names, map(plain, row))) for row in values]
    return dict(zip(names, map(plain, values)))


def connection():
    return openstack.connect(auth_type="none", endpoint=os.environ["OS_ENDPOINT"],
                             accelerator_endpoint_override=os.environ["OS_ACCELERATOR_ENDPOINT_OVERRIDE"])


def has(shown, wanted):
    """Whether the output has the wanted keys and values; for a list, whether one of its rows has them."""
    if isinstance(wanted, dict):
        if isinstance(shown, list):
            return any(has(row, wanted) for row in shown)
        return isinstance(shown, dict) and all(has(shown.get(key), value) for key, value in wanted.items())
    return shown == wanted


def filled(value, saved):
    if isinstance(value, str):
        for name, text in saved.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, dict):
        return {key: filled(inner, saved) for key, inner in value.items()}
    return value


def one(step, saved):
    """Runs a step, and returns the deviations from it."""
    run, line = (of_openstack, step["openstack"]) if "openstack" in step else (of_cyborg, step["cyborg"])
    try:
        shown = run(filled(line, saved))
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        return None if "fails" in step and step["fails"] in said else said
    if "fails" in step:
        return f"it did not fail, and shows {shown}"
    if "shows" in step and not has(shown, filled(step["shows"], saved)):
        return f"it shows {json.dumps(shown)}"
    if "rows" in step and (not isinstance(shown, list) or len(shown) != step["rows"]):
        return f"it lists {json.dumps(shown)}"
    row = shown
    if "of" in step:
        row = next(row for row in shown if has(row, step["of"]))
    saved.update({name: str(row[key]) for name, key in step.get("save", {}).items()})
    return None


def without_authentication(url):
    keystone = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keystone)
    threading.Thread(target=keystone.serve_forever, daemon=True).start()
    os.environ.update(
        OS_AUTH_TYPE="none",
        OS_ENDPOINT=f"{url}/v2.1",
        OS_IDENTITY_ENDPOINT_OVERRIDE=f"http://127.0.0.1:{keystone.server_port}/v3",
        OS_ACCELERATOR_ENDPOINT_OVERRIDE=f"{url}/accelerator/v2",
        OS_HOTSLOT_ENDPOINT_OVERRIDE=url,
        NO_PROXY="127.0.0.1",
    )


def main(steps):
    saved = {}
    with open(steps, encoding="utf-8") as file:
        steps = json.load(file)
    for number, step in enumerate(steps, 1):
        wrong = one(step, saved)
        patience = time.monotonic() + 20
        while wrong and step.get("until") and time.monotonic() < patience:
            time.sleep(0.1)
            wrong = one(step, saved)
        if wrong:
            sys.exit(f"step {number}, {json.dumps(step)}:\n{wrong}")
        print(f"ok {number}: {step.get('openstack') or step.get('cyborg')}", flush=True)


if __name__ == "__main__":
    *service, steps = sys.argv[1:]
    for url in service:
        without_authentication(url)
    main(steps)
