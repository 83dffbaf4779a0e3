//! What `--help` shows at its end: examples that work as they stand.

pub(super) const ALL: &str = "\
To begin:
  atoll dev --demo       the platform on this machine, with an example app
  atoll deploy           the app of ./atoll.toml
  atoll help COMMAND     more about a command
  atoll help CODE        more about a reason code, such as no-instance

Exit codes: 0 done, 1 failed, 2 wrong usage or manifest, 3 deploy failed and rolled back,
4 deploy failed and not rolled back, 5 not done in time, 6 control unreachable,
7 not authorized, 130 interrupted.";

pub(super) const DEV: &str = "\
Examples:
  atoll dev --demo                            with the example app; Ctrl-C stops everything
  atoll dev --wan                             see requests go to the nearest region
  atoll dev --data /tmp/a --regions fra \\
    --https-port 0 --http-port 0 --no-context a second one, beside the first

When everything works it prints `ready` on stdout and writes DIR/dev.json (addresses, pids, token).";

pub(super) const NODE: &str = "\
The configuration's keys are in docs/operations.md. SIGTERM drains and stops the node, SIGHUP reads
the file again.";

pub(super) const DEPLOY: &str = "\
Examples:
  atoll deploy                  the app of ./atoll.toml; prints its URLs when every edge serves it
  atoll deploy -f shop/atoll.toml --no-wait
  atoll deploy --dry-run        what would change (the same as `atoll plan`)

Ctrl-C leaves the deploy to go on by itself. Exit codes: 2 the manifest is wrong, 3 it failed and what
ran before still runs, 4 it failed and what ran before does not run whole, 5 not done in time.";

pub(super) const DELETE: &str = "\
Example:
  atoll delete shop             drains and stops its instances, and frees its names";

pub(super) const PLAN: &str = "\
Examples:
  atoll plan
  atoll plan --exit-code -o json > plan.json   for scripts: exit code 10 where there are changes";

pub(super) const STATUS: &str = "\
Examples:
  atoll status                  the app of ./atoll.toml; without that file, all apps
  atoll status shop
  atoll status shop -o json";

pub(super) const INSTANCES: &str = "\
Examples:
  atoll instances shop
  atoll instances -o json       pids, ports and sidecars too";

pub(super) const NODES: &str = "\
States: alive; draining (it is being stopped); stale (it does not apply what control said last);
detached (gossip hears it, but it has no line to control); gone (nobody hears it); removed.";

pub(super) const LOGS: &str = "\
Examples:
  atoll logs shop               the last lines of every instance of the app, in the order of their times
  atoll logs shop/web -f        what one service writes, as it comes, over deploys too
  atoll logs shop/web --region fra -n 20
  atoll logs shop --since 10m --grep timeout
  atoll logs i-01m7y7j0mm2tdrnx316rs7e5bw
  atoll logs shop -f -o json | jq -r .line

With `-o json` each line is one JSON object. Times are those at which the host saw the line: up to 250 ms or a
256th of its age late. Ctrl-C ends with exit code 130, a closed pipe with 0; where some instances could not
be read, the exit code is 1.";

pub(super) const TOKENS: &str = "\
Examples:
  atoll tokens create --role edge --site fra1 --ttl 1h > token
  atoll tokens create --role host,gateway --site ber2 --region fra --node ber2-a
  atoll tokens list
  atoll tokens revoke 9efca2818722743c";

pub(super) const CONTEXT: &str = "\
Examples:
  atoll context list
  atoll context add prod --api https://control.example:7400 --ca root.pem --token-file token
  atoll context use prod
  atoll --context dev status    for one command only";

pub(super) const HELP: &str = "\
Examples:
  atoll help deploy
  atoll help no-instance        what this code of a `Proxy-Status` means, and what to do
  atoll help codes              all codes";
