"""The time of Cyborg's API for a page of 1,000 devices and for one device, without HTTP.

    python3 -m venv /tmp/cyborg && /tmp/cyborg/bin/pip install openstack-cyborg==17.0.0
    /tmp/cyborg/bin/python tests/peers/cyborg_api.py

The application is called in the same process, with a SQLite database and without Keystone, so these are lower bounds.
"""

import io
import statistics
import tempfile
import time
import uuid

from cyborg import objects
from cyborg.api import app
from cyborg.common import rpc
from cyborg.db.sqlalchemy import api as db
from cyborg.db.sqlalchemy import models
from oslo_config import cfg

DEVICES = 1000
ROUNDS = 30

folder = tempfile.mkdtemp()


def get(application, path):
    """Calls the application, and returns the size of its answer in bytes and its time in milliseconds."""
    answer = {}
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_X_ROLES": "admin",
        "HTTP_X_USER_ID": "u",
        "HTTP_X_PROJECT_ID": "p",
        "HTTP_ACCEPT": "application/json",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    start = time.perf_counter()
    body = b"".join(application(environ, lambda status, headers, error=None: answer.update(status=status)))
    took = (time.perf_counter() - start) * 1e3
    assert answer["status"].startswith("200"), (answer, body[:300])
    return len(body), took


def report(what, application, path):
    """Calls the application some times, and prints the median and the 99th percentile."""
    sizes, times = zip(*(get(application, path) for _ in range(ROUNDS)), strict=True)
    times = sorted(times)
    print(
        f"{what:24} p50 {statistics.median(times):8.2f} ms   p99 {times[int((ROUNDS - 1) * 0.99)]:8.2f} ms"
        f"   ({sizes[0]} bytes)"
    )


with open(f"{folder}/cyborg.conf", "w") as file:
    file.write("[DEFAULT]\ntransport_url = fake:/\n")
cfg.CONF(["--config-file", f"{folder}/cyborg.conf"], project="cyborg")
cfg.CONF.set_override("connection", f"sqlite:///{folder}/cyborg.db", "database")
objects.register_all()
rpc.init(cfg.CONF)
engine = db.main_context_manager.writer.get_engine()
models.Base.metadata.create_all(engine)
names = [str(uuid.uuid4()) for _ in range(DEVICES)]
with engine.begin() as connection:
    rows = [{"uuid": name, "type": "GPU", "vendor": "10de", "model": "m", "hostname": "node1"} for name in names]
    connection.execute(models.Device.__table__.insert(), rows)
application = app.setup_app()
report(f"a page of {DEVICES} devices", application, "/v2/devices")
report("one device", application, f"/v2/devices/{names[500]}")
