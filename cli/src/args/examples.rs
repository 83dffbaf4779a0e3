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

pub(super) const CACHE: &str = "\
Examples:
  atoll cache purge --app shop --tag product-42
  atoll cache purge --app shop --url https://shop.example.com/p?x=1
  atoll cache purge --app shop --prefix /p/ --soft    validated before it is used again
  atoll cache purge --app shop --all
  atoll cache stats                                   hits and misses at each edge
  atoll cache explain https://shop.example.com/p      what each edge would do, and why";

pub(super) const CACHE_STATS: &str = "\
Examples:
  atoll cache stats
  atoll cache stats --app shop
  atoll cache stats -o json | jq .total.hit_ratio

Counted since each edge began. OTHER is what was neither a hit nor a miss: answers that are not stored, those that
were validated or shared with another request, requests past the cache; `-o json` has each by itself. The last column,
what the whole edge has stored, is for operators.";

pub(super) const CACHE_EXPLAIN: &str = "\
Examples:
  atoll cache explain https://shop.example.com/p?x=1
  atoll cache explain https://shop.example.com/ -H 'Accept-Language: de' -H 'Cache-Control: no-cache'
  atoll cache explain https://shop.localhost:8443/p   a port is in what edges store by: give it where clients do

Nothing is fetched or changed: each edge says what it would do with such a GET now.";

pub(super) const NODE: &str = "\
Examples:
  atoll node --config /etc/atoll/edge.toml
  atoll node --config /etc/atoll/edge.toml --check    only say whether the file is usable

The configuration's keys are in docs/operations.md. SIGTERM drains and stops the node, SIGHUP reads
the file again.";

pub(super) const DEPLOY: &str = "\
Examples:
  atoll deploy                  the app of ./atoll.toml; prints its URLs when every edge serves it
  atoll deploy -f shop/atoll.toml --no-wait
  atoll deploy --dry-run        what would change (the same as `atoll plan`)
  atoll deploy --revision 3 shop/web       revision 3 of one service again (`atoll revisions shop`)
  atoll deploy --revision previous shop    every service's revision before this one

What a service lists under `files` is uploaded first, as far as the platform has not got it. Ctrl-C
leaves the deploy to go on by itself. Exit codes: 2 the manifest is wrong, 3 it failed and what ran before
still runs, 4 it failed and what ran before does not run whole, 5 not done in time.";

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
Examples:
  atoll nodes
  atoll nodes remove ber1-host          asks first; drain it before, where it still works
  atoll nodes remove ber1-host --yes    for scripts

States: alive; drained (`atoll drain`); draining (it is being stopped, or has not heard of the drain yet);
stale (it does not apply what control said last); detached (gossip hears it, but it has no line to control);
gone (nobody hears it); removed.";

pub(super) const SITES: &str = "\
Examples:
  atoll sites
  atoll sites -o json | jq '.[] | select(.health != \"healthy\")'

Health: healthy; degraded (a node is not alive and well); drained; gone (no node is heard); empty.";

pub(super) const DRAIN: &str = "\
Examples:
  atoll drain ber1-host         its instances move to other hosts of the region; ends when it can be stopped
  atoll drain fra               every node of the region, those that join later included
  atoll drain fra --off         it serves again
  atoll drain                   what is drained, and how far that is

A drained gateway gets no requests from edges while another one serves, a drained edge is left out of DNS, a
drained host gets no instances. Where a region has no other host its instances stay. It holds over restarts of
the node and of control. Exit code 5: not in time; the drain goes on.";

pub(super) const HELD: &str = "\
Examples:
  atoll held                    what nodes still have and control's store has not
  atoll held confirm 34         remove it everywhere";

pub(super) const SCALE: &str = "\
Examples:
  atoll scale shop/web fra=3 was=1
  atoll scale shop/web fra=min  as many as the manifest says again
  atoll scale shop/web          what there is, and the bounds

The number holds over deploys as long as the manifest's min and max allow it. No instance is restarted. Exit
codes are those of `atoll deploy`: 3 where new instances fail, and the old number holds again.";

pub(super) const REVISIONS: &str = "\
Examples:
  atoll revisions shop
  atoll deploy --revision 3 shop/web    one of them again

States: running; previous (it can run again); failed. The newest ten of each service are kept, and those that
run. CHANGED: what differs from the revision before.";

pub(super) const DOMAINS: &str = "\
Examples:
  atoll domains
  atoll domains add www.example.com --app shop --cert fullchain.pem --key privkey.pem
  atoll domains add '*.example.com' --app shop --service web --cert chain.pem --key key.pem
  atoll domains remove www.example.com

Adding a domain again replaces its certificate; open connections stay. The certificate comes first in its file,
then its issuers'; RSA, ECDSA and Ed25519 keys without a passphrase are taken. Its owner renews it.";

pub(super) const ROUTES: &str = "\
Examples:
  atoll routes
  atoll routes list shop -o json";

pub(super) const CERTS: &str = "\
Examples:
  atoll certs
  atoll certs list shop
  atoll certs -o json | jq '.[] | select(.state != \"valid\")'";

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

pub(super) const TOP: &str = "\
Examples:
  atoll top                     all apps, anew each second, until q or Ctrl-C
  atoll top shop --instances
  atoll top --once -o json | jq '.services[] | {service, region, requests_per_s}'

In a pipe there is one table, or with `-o json` one object, for each interval. Requests are counted at the
gateways: calls from one sidecar straight to another are not among them. Errors are answers with a status
of 500 or above. P50 and P99 are times to the answer's head at the gateway, as exactly as steps of 19 %
allow. `-` is what was not measured. Nodes are shown to operators.";

pub(super) const COMPLETIONS: &str = "\
Examples:
  atoll completions bash > /etc/bash_completion.d/atoll
  atoll completions zsh > ~/.zfunc/_atoll
  atoll completions fish > ~/.config/fish/completions/atoll.fish";

pub(super) const TOKENS: &str = "\
Examples:
  atoll tokens create --role edge --site fra1 --ttl 1h > token
  atoll tokens create --role host,gateway --site ber2 --region fra --node ber2-a
  atoll tokens list
  atoll tokens revoke 9efca2818722743c
  atoll tokens api create ci --role deploy --ttl 90d";

pub(super) const API_TOKENS: &str = "\
Examples:
  atoll tokens api create ci --role deploy --ttl 90d > token
  atoll tokens api create alice@acme --role admin --org acme
  atoll tokens api list
  atoll tokens api revoke 5d41402abc4b2a76

Roles: read sees what the organization has; deploy also changes what runs; admin also makes and revokes
its tokens and reads its audit log; operator also runs the platform: nodes, certificates, organizations.";

pub(super) const ORGS: &str = "\
Examples:
  atoll orgs create acme
  atoll tokens api create alice --role admin --org acme
  atoll orgs list
  atoll orgs remove acme        once its apps are deleted";

pub(super) const AUDIT: &str = "\
Examples:
  atoll audit                   the newest 50 changes
  atoll audit --since 2h --app shop
  atoll audit --all -o json > audit.json";

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
