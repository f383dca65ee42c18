#!/usr/bin/env bash
# Gets the servers that the tests run against, and the clock that they are shown; without a name, all of them. What is
# there already is left alone. Usage: .ci/servers.sh [redis] [etcd] [rabbitmq] [consul] [valkey] [faketime]
set -euo pipefail
cd "$(dirname "$0")/.."
servers=$PWD/.servers
PATH=$PATH:/usr/sbin:/usr/lib/rabbitmq/bin:$servers/bin

program() {
    case $1 in
        redis | rabbitmq | valkey) echo "$1-server" ;;
        etcd | consul | faketime) echo "$1" ;;
        *) echo "no server is known by the name '$1'; known are redis, etcd, rabbitmq, consul, valkey, faketime" >&2; return 1 ;;
    esac
}

missing=()
for name in "${@:-redis etcd rabbitmq consul valkey faketime}"; do
    for server in $name; do
        server=${server%%+*} # redis+scan is Redis
        wanted=$(program "$server")
        command -v "$wanted" >/dev/null || missing+=("$server")
    done
done
((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}. Put their programs on PATH and run this again; with Homebrew:" >&2
    for server in "${missing[@]}"; do
        [[ $server == consul ]] && server=hashicorp/tap/consul
        [[ $server == faketime ]] && server=libfaketime
        echo "    brew install $server" >&2
    done
    exit 1
fi

mkdir -p "$servers"
log=$servers/apt.log
: >"$log"

quietly() { "$@" >>"$log" 2>&1; }

install_packages() {
    # RUNLEVEL=1: nothing is to be started here, the tests start their own. Where a service starts all the same, or fails
    # to, it does not matter, as long as the program is there; so that is what is checked in the end.
    local as_root=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1)
    if [[ $(id -u) != 0 ]]; then
        if ! sudo -n true 2>/dev/null; then
            echo "missing: $*. Please run: sudo apt-get install $*" >&2
            return 1
        fi
        as_root=(sudo -n "${as_root[@]}")
    fi
    local install=("${as_root[@]}" apt-get -qq -y --no-install-recommends -oDPkg::Lock::Timeout=120 install "$@")
    quietly "${install[@]}" || { quietly "${as_root[@]}" apt-get -qq update && quietly "${install[@]}"; } || true
}

packages=()
for server in "${missing[@]}"; do
    case $server in
        consul | valkey) ;;
        faketime) packages+=(faketime) ;;
        *) packages+=("$server-server") ;;
    esac
done
echo "getting ${missing[*]} ..."
((${#packages[@]} == 0)) || install_packages "${packages[@]}"
[[ " ${missing[*]} " != *" consul "* ]] || quietly .ci/consul.sh "$servers/bin" || true
[[ " ${missing[*]} " != *" valkey "* ]] || quietly .ci/valkey.sh "$servers/bin" || true

hash -r
for server in "${missing[@]}"; do
    if ! command -v "$(program "$server")" >/dev/null; then
        echo "could not get $server. The last lines of $log:" >&2
        tail -n 15 "$log" >&2
        echo "Any $(program "$server") on PATH will do." >&2
        exit 1
    fi
done
