#!/usr/bin/env bash
# image.sh OUT.tar: builds the image localhost/meshnet:VERSION without Docker, as an archive for `ctr -n k8s.io images import OUT.tar`.
# The same sources, compiler and plugins give the same bytes. Wants cargo; installs what else it needs from Debian, saying what.
#   MESHNET_BIN_DIR=DIR      takes meshd, meshctl and mesh-cni from there instead of building them (for this machine's architecture)
#   MESHNET_PLUGINS_DIR=DIR  takes loopback, portmap and bandwidth from there instead of building them
#   CARGO_TARGET_DIR         as everywhere; target/image unless said
# In it: /usr/bin/{meshd,meshctl,mesh-cni}, static, so that mesh-cni runs on any host; /opt/cni/bin/{loopback,portmap,bandwidth} of the reference plugins.
# arm64 is added where Rust's target aarch64-unknown-linux-gnu and aarch64-linux-gnu-gcc are installed.
set -euo pipefail
[ $# = 1 ] && [ "${1:0:1}" != - ] || { echo "usage: image.sh OUT.tar" >&2; exit 2; }
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
say() { echo "image: $*"; }
. deploy/debian.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# build TRIPLE: the three programs, static, without the paths of this machine in them.
build() {
  local triple=$1 linker=CARGO_TARGET_${1//-/_}_LINKER home=${CARGO_HOME:-$HOME/.cargo}
  local flags="-C target-feature=+crt-static --remap-path-prefix=$PWD=/meshnet --remap-path-prefix=$home=/cargo"
  [ "$triple" = "$(rustc -vV | sed -n 's/^host: //p')" ] || export "${linker^^}=${triple/-unknown/}-gcc"
  CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/image} RUSTFLAGS=$flags CFLAGS="${CFLAGS:-} -ffile-prefix-map=$home=/cargo" \
    CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols \
    cargo build --release --locked --target "$triple" --bin meshd --bin meshctl --bin mesh-cni
}

# plugins ARCH DIR: loopback, portmap and bandwidth of the reference plugins, built static of Debian's source package by Debian's Go. (Debian's own
# binaries want glibc 2.34, and a configuration that names a plugin which does not run stops every pod of the node.) Kept beside what cargo keeps.
plugins() {
  local arch=$1 into=$2 from=${MESHNET_PLUGINS_DIR:-} kept name
  kept=$target/plugins
  if [ -z "$from" ]; then
    from=$kept/$arch
    if [ ! -d "$from" ]; then
      install_missing golang-go golang-github-containernetworking-plugins-dev golang-github-mattn-go-shellwords-dev dpkg-dev
      if [ ! -d "$kept/source" ]; then
        debian_source "$(mkdir -p "$kept" && realpath "$kept")/apt" "deb-src debian $(. /etc/os-release && echo "$VERSION_CODENAME")" \
          containernetworking-plugins "$(realpath "$kept")/source"
      fi
      mkdir -p "$from.partial" "$kept/go/src/github.com/containernetworking"
      ln -sfn "$(realpath "$kept/source")" "$kept/go/src/github.com/containernetworking/plugins"
      for name in main/loopback meta/portmap meta/bandwidth; do
        GOARCH=$arch GOPATH=$(realpath "$kept/go"):/usr/share/gocode GO111MODULE=off CGO_ENABLED=0 \
          go build -trimpath -buildvcs=false -ldflags "-s -w -buildid=" -o "$from.partial/${name#*/}" "github.com/containernetworking/plugins/plugins/$name"
      done
      mv "$from.partial" "$from"
    fi
    install -Dm644 "$kept/source/LICENSE" "$into/usr/share/doc/containernetworking-plugins/copyright"
  fi
  install -d "$into/opt/cni/bin"
  for name in loopback portmap bandwidth; do install -m755 "$from/$name" "$into/opt/cni/bin/$name"; done
}

# root ARCH BIN_DIR: the image's root folder.
root() {
  local arch=$1 bin=$2 into=$work/root-$1 name
  install -d "$into"/{etc,proc,run/meshnet,sys,usr/bin,var/lib/meshnet,dev}
  install -dm1777 "$into/tmp"
  for name in meshd meshctl mesh-cni; do
    install -m755 "$bin/$name" "$into/usr/bin/$name"
    if objdump -p "$bin/$name" 2>/dev/null | grep -q NEEDED; then
      echo "image: $bin/$name is not static: it would not run in this image, nor mesh-cni on hosts with another C library" >&2
      return 1
    fi
  done
  echo 'hosts: files dns' >"$into/etc/nsswitch.conf" # what a static program can do by itself
  echo 'root:x:0:0:root:/:/usr/bin/meshctl' >"$into/etc/passwd"
  echo 'root:x:0:' >"$into/etc/group"
  install -Dm644 LICENSE "$into/usr/share/doc/meshnet/copyright"
  chmod 644 "$into"/etc/*
  plugins "$arch" "$into"
}

umask 022
install_missing gcc binutils python3-minimal
case $(uname -m) in
x86_64) native=amd64 triple=x86_64-unknown-linux-gnu ;;
aarch64) native=arm64 triple=aarch64-unknown-linux-gnu ;;
*) echo "image: only amd64 and arm64 are known, not $(uname -m)" >&2; exit 1 ;;
esac
target=${CARGO_TARGET_DIR:-target/image}
[ -n "${MESHNET_BIN_DIR:-}" ] || build "$triple"
root "$native" "${MESHNET_BIN_DIR:-$target/$triple/release}"
roots=("$native=$work/root-$native")
if [ "$native" = amd64 ] && [ -z "${MESHNET_BIN_DIR:-}" ]; then
  other=aarch64-unknown-linux-gnu
  if [ -d "$(rustc --print sysroot)/lib/rustlib/$other/lib" ] && command -v aarch64-linux-gnu-gcc >/dev/null; then
    build "$other"
    root arm64 "$target/$other/release"
    roots+=("arm64=$work/root-arm64")
  else
    say "without arm64: it takes \`rustup target add $other\` and Debian's gcc-aarch64-linux-gnu"
  fi
fi
deploy/oci.py "$out" "localhost/meshnet:$version" "${roots[@]}" --entrypoint /usr/bin/meshd \
  --label org.opencontainers.image.title=meshnet --label "org.opencontainers.image.version=$version" --label org.opencontainers.image.licenses=Apache-2.0
sha256sum "$out"
