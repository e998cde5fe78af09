# What the checks of setup/ share. To be sourced by a script that runs at the repository's root.
# shellcheck shell=bash

# Ends the check: there is something that it needs and this machine lacks. Fails where nothing may be left out.
skip() {
  if [ "${LINERATE_SETUP:-}" = required ]; then
    echo "$0: cannot be left out here, but $1" >&2
    exit 1
  fi
  echo "not run: $0 ($1)"
  exit 0
}

# Ends the check because something is wrong.
wrong() {
  echo "$0: $1" >&2
  exit 1
}

# Sets `venv` to a Python environment with what setup/tests/requirements.txt pins; made once, then kept under target/.
python_environment() {
  local wanted=setup/tests/requirements.txt stamp log
  command -v python3 >/dev/null || skip 'python3 is not installed'
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || skip "$(python3 --version) is older than 3.11"
  venv=${CARGO_TARGET_DIR:-$PWD/target}/setup-venv
  log=$venv.log
  stamp=$(python3 --version; cat "$wanted" setup/tests/lib.sh)
  if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ]; then
    return
  fi
  rm -rf "$venv"
  mkdir -p "$(dirname "$venv")"
  python3 -m venv "$venv" >"$log" 2>&1 || skip "python3 makes no environment, see $log: is python3-venv installed?"
  # geni-lib's own list of requirements lacks six and has much that profiles do without.
  "$venv/bin/pip" install --quiet --no-deps --requirement "$wanted" >>"$log" 2>&1 ||
    skip "what $wanted names cannot be fetched, see $log"
  python3_geni_lib >>"$log" 2>&1 || wrong "geni-lib is not what it was, see $log"
  echo "$stamp" >"$venv/stamp"
}

# The release of geni-lib prints as Python 2 does, in five lines; CloudLab runs a later one that nobody can fetch by pip.
python3_geni_lib() {
  local geni
  geni=$(echo "$venv"/lib/python3*/site-packages/geni)
  sed -E -i 's/^( *)print ([^(].*)$/\1print(\2)/' "$geni/portal.py"
  sed -E -i 's/^( *buf = self\.toXMLString\(True)\)$/\1, ucode = True)/' "$geni/rspec/pg.py"
  grep -q 'buf = self.toXMLString(True, ucode = True)' "$geni/rspec/pg.py"
  "$venv/bin/python" -c 'import geni.portal, geni.rspec.pg, geni.rspec.emulab'
}
