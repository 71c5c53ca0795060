# Reading Debian's archive beside what the machine has set up; read by `.`, not run.

# install_missing PACKAGE...: says what it installs. Needs root only when something is missing.
install_missing() {
  local need=() package
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || need+=("$package")
  done
  [ ${#need[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || { echo "missing packages: ${need[*]}; as root: apt-get install ${need[*]}" >&2; return 1; }
  echo "installing packages: ${need[*]}"
  apt-get update -q >/dev/null
  # No service is started: containerd and etcd are among the packages of tests, and must not run on the machine itself.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${need[@]}" >/dev/null
}

# other_archive DIR "TYPE ARCHIVE SUITE"...: fills the array APT with options that make apt read these instead of the machine's own lists; all it keeps is in DIR.
other_archive() {
  local dir=$1 line mirror
  shift
  mirror=$(sed -n 's/^URIs: *//p; s/^deb  *\(\[[^]]*\]  *\)\?\(http[^ ]*\).*/\2/p' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1 || true)
  mirror=${mirror%/}
  mirror=${mirror%/*}
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
  for line; do
    set -- $line
    echo "$1 [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org}/$2 $3 main"
  done >"$dir/sources.list"
  APT=(-q -o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root)
  apt-get "${APT[@]}" update >"$dir/log" 2>&1 || { tail "$dir/log" >&2; return 1; }
}

# debian_source DIR "TYPE ARCHIVE SUITE" PACKAGE[=VERSION] INTO: downloads a source package and unpacks it to the new folder INTO.
debian_source() {
  local dir=$1 line=$2 package=$3 into=$4
  mkdir -p "$dir/source"
  if ! ls "$dir/source/"*.dsc >/dev/null 2>&1; then
    other_archive "$dir" "$line" ${line:+"${line/debian /debian-security }-security"}
    (cd "$dir/source" && apt-get "${APT[@]}" source --download-only "$package" >"$dir/log" 2>&1) || { tail "$dir/log" >&2; return 1; }
  fi
  (cd "$dir/source" && dpkg-source --no-check -x ./*.dsc "$into" >/dev/null)
}
