# shellcheck shell=bash
# Debian packages, for the scripts that source this file; they define say().

# How a script uses apt-get: no questions, no recommendations, and patience with another one that is at work.
readonly apt_get=(env DEBIAN_FRONTEND=noninteractive apt-get --quiet --assume-yes -o DPkg::Lock::Timeout=300
  -o Acquire::Retries=3 --no-install-recommends)

missing_packages() {
  local package
  for package in "$@"; do
    # A package that another one provides, as of another architecture, is not looked for: these names are Debian's own.
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true) == installed ]] ||
      printf '%s\n' "$package"
  done
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif [[ -t 0 ]]; then
    sudo "$@"
  else
    sudo --non-interactive "$@"
  fi
}

# Installs what is missing of the packages named. 1, with the reason said, when something still is.
install_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say "this is no Debian: it needs what Debian calls $*"
    return 1
  fi
  local missing
  mapfile -t missing < <(missing_packages "$@")
  if ((${#missing[@]} == 0)); then
    say 'Debian packages: all there'
    return 0
  fi
  if ((EUID != 0)) && ! command -v sudo >/dev/null; then
    say "cannot install without root or sudo; as root: apt-get install ${missing[*]}"
    return 1
  fi
  say "installing Debian packages: ${missing[*]}"
  as_root "${apt_get[@]}" install "${missing[@]}" >&2 && return 0
  # A bare machine has no package lists, and an old one has lists of versions that are gone.
  if as_root "${apt_get[@]}" update >&2 && as_root "${apt_get[@]}" install "${missing[@]}" >&2; then return 0; fi
  say "could not install: ${missing[*]}"
  return 1
}
