#!/usr/bin/env python3
"""Runs the public suite of HTTP cache tests at a platform of one region. See README.md."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MANIFEST = """manifest = 1
app = "suite"
[regions]
fra = {{ min = 1 }}
[service.web]
run = ["sh", "-c", "cd {checkout} && exec env npm_config_protocol=http npm_config_port=$PORT npm_config_pidfile={folder}/suite.pid node test-engine/server/server.mjs"]
public = true
"""
# Says of each test what kind it is, and whether it passed.
JUDGE = """
import tests from '%(checkout)s/tests/index.mjs'
import fs from 'fs'
const results = JSON.parse(fs.readFileSync('%(results)s'))
for (const suite of tests) for (const test of suite.tests) if (!test.browser_only)
  console.log(JSON.stringify([test.id, test.kind || 'required', results[test.id] === true]))
"""


def main():
    checkout = pathlib.Path(sys.argv[1]).resolve()
    atoll = str(pathlib.Path(os.environ.get("ATOLL_BIN", ROOT / "target/release/atoll")).resolve())
    with tempfile.TemporaryDirectory(prefix="atoll-suite-", dir="/tmp") as folder:
        folder = pathlib.Path(folder)
        environment = {**os.environ, "HOME": str(folder)}
        dev = subprocess.Popen(
            [atoll, "dev", "--regions", "fra", "--https-port", "0", "--http-port", "0", "--no-context",
             "--data", str(folder / "data")],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            rows = run(atoll, checkout, folder, environment)
        finally:
            dev.send_signal(signal.SIGTERM)
            dev.wait(60)
    judge(rows)


def run(atoll, checkout, folder, environment):
    known = folder / "data/dev.json"
    until("the platform is ready", lambda: known.exists() and json.loads(known.read_text()).get("edges"))
    told = json.loads(known.read_text())
    app = folder / "app"
    app.mkdir()
    (app / "atoll.toml").write_text(MANIFEST.format(checkout=checkout, folder=folder))
    environment = {**environment, "ATOLL_API": told["api"], "ATOLL_TOKEN": told["token"]}
    if "api_ca" in told:
        environment["ATOLL_CA"] = told["api_ca"]
    until("the suite's server is deployed",
          lambda: subprocess.run([atoll, "deploy"], cwd=app, env=environment, capture_output=True).returncode == 0)
    address, port = told["edges"][0]["https"].rsplit(":", 1)
    base = f"https://suite.localhost:{port}"
    # Not every system knows names below `localhost`.
    names = folder / "names.cjs"
    names.write_text(f"""const dns = require('dns')
const lookup = dns.lookup
dns.lookup = (name, ...rest) => lookup(name === 'suite.localhost' ? '{address}' : name, ...rest)
""")
    client = {**environment, "npm_config_base": base, "NODE_OPTIONS": f"--require={names}", "npm_package_config_id": "", "NODE_TLS_REJECT_UNAUTHORIZED": "0"}
    done = subprocess.run(["node", "--no-warnings", "test-engine/cli.mjs"], cwd=checkout, env=client,
                          stdout=subprocess.PIPE, timeout=1800, check=True)
    results = folder / "results.json"
    results.write_bytes(done.stdout[done.stdout.index(b"{"):])
    script = folder / "judge.mjs"
    script.write_text(JUDGE % {"checkout": checkout, "results": results})
    lines = subprocess.run(["node", str(script)], stdout=subprocess.PIPE, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def judge(rows):
    expected = {line.split()[0] for line in (HERE / "expected.txt").read_text().splitlines() if line.strip()}
    failed = {}
    for kind in ["required", "optimal"]:
        of_kind = [row for row in rows if row[1] == kind]
        failed[kind] = {row[0] for row in of_kind if not row[2]}
        print(f"{kind}: {len(of_kind) - len(failed[kind])} of {len(of_kind)}")
    for test in sorted(failed["required"] | failed["optimal"]):
        print(f"  {'' if test in expected else 'NEW '}{test}")
    sys.exit(bool(failed["required"] | failed["optimal"] - expected))


def until(what, holds):
    end = time.monotonic() + 120
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"not within two minutes: {what}")
        time.sleep(0.5)


main()
