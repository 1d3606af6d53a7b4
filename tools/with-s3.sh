#!/usr/bin/env bash
# Runs a command with a real S3 server beside it: Ceph's gateway over one monitor and one OSD.
#
#   tools/with-s3.sh cargo test --workspace
#
# The command sees LASTGOOD_TEST_S3_ENDPOINT, LASTGOOD_TEST_S3_BUCKET and the usual AWS variables. When
# LASTGOOD_TEST_S3_ENDPOINT is set already, that server is used. Everything is gone afterwards.
# Ceph, because its conditional put is enforced and atomic, which many small S3 servers only pretend.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 COMMAND..." >&2; exit 2; }
[ -z "${LASTGOOD_TEST_S3_ENDPOINT:-}" ] || exec "$@"

D=$(mktemp -d /tmp/lastgood-s3-XXXXXX)
export CEPH_CONF=$D/ceph.conf

clean() {
  # The gateway first, then the OSD, the monitor last: none waits in vain for another.
  for name in client.rgw.a osd.0 mon.a; do
    pid=$(cat "$D/run/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$D"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# And when this shell is killed in a way that it cannot catch.
(trap - EXIT; trap '' INT TERM HUP
 while kill -0 $$ 2>/dev/null && [ -d "$D" ]; do sleep 1; done; [ ! -d "$D" ] || clean) >/dev/null 2>&1 &

# Ports that are free now, outside the range of client ports.
port() {
  local p
  while p=$((10000 + (RANDOM * 32768 + RANDOM) % 22000)); (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; do :; done
  echo "$p"
}
MON=$(port) OSD=$(port) HTTP=$(port)
ACCESS=AKIATEST SECRET=$(head -c 18 /dev/urandom | base64 | tr '+/' 'ab')

start() {
  cd "$D"
  mkdir mon osd log run rgw
  local fsid; fsid=$(cat /proc/sys/kernel/random/uuid)
  cat >ceph.conf <<C
[global]
fsid = $fsid
mon initial members = a
mon host = v2:127.0.0.1:$MON
ms bind msgr1 = false
ms bind port min = $OSD
ms bind port max = $((OSD + 200))
auth allow insecure global id reclaim = false
keyring = $D/keyring
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail warn = 1
mon data avail crit = 0
mon max pg per osd = 1000
osd objectstore = bluestore
bluestore block size = 21474836480
osd memory target = 1073741824
mon data = $D/mon
osd data = $D/osd
log file = $D/log/\$name.log
run dir = $D/run
admin socket = $D/run/\$name.asok
pid file = $D/run/\$name.pid
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$HTTP
rgw data = $D/rgw
rgw crypt require ssl = false
C
  ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  ceph-authtool keyring --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow *'
  ceph-authtool keyring --gen-key -n client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx'
  monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$MON]" monmap
  ceph-mon --mkfs -i a --monmap monmap --keyring keyring
  ceph-mon -i a
  local osd; osd=$(cat /proc/sys/kernel/random/uuid)
  timeout 30 ceph osd new "$osd"
  ceph-osd -i 0 --mkfs --osd-uuid "$osd"
  timeout 30 ceph osd crush add osd.0 1 root=default host=h
  ceph-osd -i 0
  for _ in $(seq 60); do timeout 10 ceph osd stat | grep -q '1 up' && break; sleep .5; done
  radosgw -n client.rgw.a
  for _ in $(seq 300); do curl -s -o /dev/null "http://127.0.0.1:$HTTP/" && break; sleep .2; done
  radosgw-admin -n client.rgw.a user create --uid=test --display-name=test --access-key="$ACCESS" --secret-key="$SECRET"
  # The first put into a new cluster makes its pools and may take seconds; from here on it is quick.
  signed() { curl -sS --fail --aws-sigv4 aws:amz:us-east-1:s3 --user "$ACCESS:$SECRET" -H "x-amz-content-sha256: $(sha256sum "$1" | cut -c1-64)" -T "$1" "http://127.0.0.1:$HTTP/$2"; }
  : >empty
  echo warm >warm
  signed empty lastgood-test
  signed warm lastgood-test/warm
}
echo "with-s3: starting Ceph's gateway" >&2
set +e # set -e has no effect inside a list: the status is taken by itself
(set -ex; start) >"$D/start.log" 2>&1
status=$?
set -e
[ $status = 0 ] || { tail -30 "$D/start.log" >&2; echo "with-s3: the S3 server did not start" >&2; exit 1; }

export LASTGOOD_TEST_S3_ENDPOINT=http://127.0.0.1:$HTTP LASTGOOD_TEST_S3_BUCKET=lastgood-test
export AWS_ACCESS_KEY_ID=$ACCESS AWS_SECRET_ACCESS_KEY=$SECRET AWS_REGION=us-east-1
unset CEPH_CONF
"$@"
