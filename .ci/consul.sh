#!/usr/bin/env bash
# Takes the consul program out of its Debian package, into a folder; needs no root and leaves the system's own package
# lists as they are. Usage: .ci/consul.sh FOLDER
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt=(apt-get -qq -oAPT::Sandbox::User=root)
if ! "${apt[@]}" download consul; then
    # Debian has had no consul since bullseye, whose static binary runs on its successors too.
    . /etc/os-release
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v release="${VERSION_CODENAME:-}" '$2 == release { print $1; exit }')
    if [[ ${ID:-} != debian || -z $mirror ]]; then
        echo "this system has no package of consul" >&2
        exit 1
    fi
    mkdir -p lists/partial cache/archives/partial
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" >sources.list
    apt+=(-oDir::Etc::sourcelist="$work/sources.list" -oDir::Etc::sourceparts=/dev/null)
    apt+=(-oDir::State::Lists="$work/lists" -oDir::Cache="$work/cache" -oAcquire::Languages=none)
    "${apt[@]}" update
    "${apt[@]}" download consul
fi

dpkg -x consul_*.deb unpacked
# Moved into place whole: somebody may be about to start it.
cp unpacked/usr/bin/consul "$folder/consul.new"
mv "$folder/consul.new" "$folder/consul"
