#!/usr/bin/env python3
"""Atoll as a target of the peers' benchmark (stdlib only); see README.md beside this file.

    atoll.py platform   starts control, an edge, a gateway and a host, deploys the app, and stays until SIGTERM
    atoll.py wait       waits until that is done, or says why it is not
    atoll.py instance   what the host starts: the bench's app, made to listen at $PORT as well

The folder of the run (RUN) has everything: nodes' files, logs, and `edge.pid`, `gateway.pid`, `sidecar.pid`, by which the
harness charges each hop.
"""
import ctypes
import errno
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
NODES = ("control", "edge", "gateway", "host")
JOINS = NODES[1:]
APP = "bench"
DEPLOY_WAIT = 60
LIBC = ctypes.CDLL(None, use_errno=True)
# The same number on every architecture.
PIDFD_GETFD = 438


def main():
    what = sys.argv[1:]
    if what == ["platform"]:
        Platform().run()
    elif what == ["wait"]:
        wait_until_up(pathlib.Path.cwd())
    elif what == ["instance"]:
        instance(pathlib.Path(os.environ["APP_DIR"]), int(os.environ["PORT"]))
    else:
        sys.exit(__doc__)


def until(condition, what, within=20.0):
    """Asks again until it holds, and gives what it gave."""
    end = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise RuntimeError(f"after {within:.0f} s: {what}")
        time.sleep(0.03)


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


# ------------------------------------------------------------------ the platform
class Platform:
    """What is in the environment comes from target.json."""

    def __init__(self):
        env = os.environ
        self.run_dir, self.certs = pathlib.Path(env["RUN"]), env["CERTS"]
        program = pathlib.Path(env["ATOLL"])
        # The harness gives a path below the folder it was started in, which we are not in.
        self.program = str(program if program.is_absolute() else HERE.parent.parent / program)
        self.ports = {name: int(env[name]) for name in ("EDGE", "GW", "API", "PLANE", "SEED")}
        self.threads = int(env["THREADS"])
        self.app_dir = self.run_dir.parent / "upstream"
        self.nodes = {}
        self.seen = set()

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        try:
            self.bring_up()
            self.note("up", "")
            while all(node.poll() is None for node in self.nodes.values()):
                time.sleep(0.2)
            ended = [name for name, node in self.nodes.items() if node.poll() is not None]
            raise RuntimeError(f"ended by themselves: {', '.join(ended)}")
        except Exception as error:
            self.note("failed", f"{error}\n")
            raise
        finally:
            self.stop()

    def bring_up(self):
        for folder in ("conf", "tokens", "cli"):
            (self.run_dir / folder).mkdir(mode=0o700)
        self.start("control")
        token = self.run_dir / "control" / "admin-token"
        until(token.exists, "control has made no API token")
        until(lambda: listens(self.ports["API"]), "control does not serve its API")
        self.cli_env = {
            **os.environ,
            "XDG_CONFIG_HOME": str(self.run_dir / "cli"),
            "ATOLL_API": f"http://127.0.0.1:{self.ports['API']}",
            "ATOLL_TOKEN": token.read_text().strip(),
        }
        for name in JOINS:
            self.write_token(name)
            self.start(name)
        self.deploy()
        (self.run_dir / "edge.pid").write_text(str(self.nodes["edge"].pid))
        (self.run_dir / "gateway.pid").write_text(str(self.nodes["gateway"].pid))
        (self.run_dir / "sidecar.pid").write_text(str(self.sidecar()))

    def write_token(self, name):
        made = self.atoll("tokens", "create", "--role", name, "--site", "fra1", "--region", "fra", "--node", f"fra1-{name}", "--ttl", "10m")
        token = re.search(r"atl1\.\S+", made)
        if not token:
            raise RuntimeError(f"no token for {name}: {made}")
        path = self.run_dir / "tokens" / name
        path.write_text(token.group(0))
        path.chmod(0o600)

    def start(self, name):
        known = {"RUN": self.run_dir, "NAME": name, "THREADS": self.threads, **self.ports}
        text = "".join((HERE / file).read_text() for file in ("node.toml", f"{name}.toml"))
        if name in JOINS:
            text += (HERE / "join.toml").read_text()
        conf = self.run_dir / "conf" / f"{name}.toml"
        conf.write_text(re.sub(r"@([A-Z]+)@", lambda found: str(known[found.group(1)]), text))
        with open(self.run_dir / f"{name}-node.log", "ab") as log:
            command = [self.program, "node", "--config", str(conf)]
            self.nodes[name] = subprocess.Popen(command, cwd=self.run_dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def deploy(self):
        """The edge has the harness's certificate: what clients verify is the same for all targets."""
        folder = self.run_dir / "app"
        folder.mkdir()
        known = {"PYTHON": sys.executable, "SCRIPT": HERE / "atoll.py", "APPDIR": self.app_dir}
        manifest = (HERE / "app.toml").read_text()
        (folder / "atoll.toml").write_text(re.sub(r"@([A-Z]+)@", lambda found: str(known[found.group(1)]), manifest))
        until(self.all_attached, "not every node has joined", 60)
        self.atoll("deploy", "-f", str(folder / "atoll.toml"))
        self.atoll("domains", "add", "app.example.test", "--app", APP, "--cert", f"{self.certs}/server.pem", "--key", f"{self.certs}/server.key")

    def all_attached(self):
        listed = self.atoll("nodes")
        return all(f"fra1-{name}" in listed for name in JOINS)

    def sidecar(self):
        found = [pid for pid in tree(self.nodes["host"].pid) if "sidecar" in command_line(pid)[1:2]]
        if len(found) != 1:
            raise RuntimeError(f"sidecars found: {found}")
        return found[0]

    def atoll(self, *command):
        done = subprocess.run([self.program, *command], env=self.cli_env, cwd=self.run_dir, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEPLOY_WAIT)
        if done.returncode:
            raise RuntimeError(f"atoll {command[0]}: {done.stdout.strip()}")
        return done.stdout

    def note(self, name, text):
        part = self.run_dir / f"{name}.part"
        part.write_text(text)
        part.rename(self.run_dir / name)

    def stop(self):
        """Ends what was started, within the harness's three seconds; sidecars and instances have process groups of their own."""
        started = {pid for node in self.nodes.values() for pid in tree(node.pid)}
        for node in self.nodes.values():
            node.terminate()
        end = time.monotonic() + 2
        while time.monotonic() < end and any(node.poll() is None for node in self.nodes.values()):
            time.sleep(0.02)
        for pid in started:
            if str(self.run_dir) in " ".join(command_line(pid)) or os.fspath(HERE) in " ".join(command_line(pid)):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass


def tree(pid):
    """A process and all below it."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                todo += [int(child) for child in task.read_text().split()]
            except OSError:
                pass
    return found


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def wait_until_up(run_dir):
    failed = run_dir / "failed"
    until(lambda: (run_dir / "up").exists() or failed.exists(), "the platform is not up", 55)
    if failed.exists():
        sys.exit(failed.read_text())


# ------------------------------------------------------------------ the instance
def instance(app_dir, port):
    """The bench counts what reaches its own nginx, so that one is the instance: it gets one more address.

    The host takes a port for the instance's only while a process of the instance has the listening socket. So we take
    a copy of it, and never accept.
    """
    conf, line = app_dir / "nginx.conf", f" listen 127.0.0.1:{port} backlog=4096;"
    nginx = int((app_dir / "pid").read_text())

    def change(edit):
        conf.write_text(edit(conf.read_text()))
        os.kill(nginx, signal.SIGHUP)

    def end(*_):
        change(lambda text: text.replace(line, ""))
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    # The first server is the app, the second one its counters.
    change(lambda text: text.replace("backlog=4096;", "backlog=4096;" + line, 1))
    _kept = until(lambda: listener_of(nginx, port), f"nginx does not listen on {port}")
    while True:
        signal.pause()


def listener_of(pid, port):
    """A copy of the socket with which a process listens on a port of loopback."""
    process = os.pidfd_open(pid)
    try:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            copy = LIBC.syscall(PIDFD_GETFD, process, int(entry), 0)
            if copy < 0:
                if ctypes.get_errno() == errno.EPERM:
                    raise PermissionError("taking a copy of nginx's socket needs the right to trace it: run as root")
                continue
            try:
                found = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
                continue
            if found.family == socket.AF_INET and found.getsockname() == ("127.0.0.1", port):
                return found
            found.close()
    finally:
        os.close(process)
    return None


if __name__ == "__main__":
    main()
