#!/usr/bin/env bash
# Everything that is enforced. Run it before a commit: ./ci.sh, or one step: ./ci.sh fmt
set -euo pipefail
cd "$(dirname "$0")"

fmt() { cargo fmt --all --check; }
clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }
doc() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked; }
# The README's test command. --locked: what was tested is what Cargo.lock says.
tests() { cargo test --workspace --locked; }
scripts() { shellcheck ci.sh .ci/run; }
# Licences, sources and duplicate versions. Advisories need a database from outside and are left to the reader.
deny() { cargo deny --locked check bans licenses sources; }
# The whole system on a simulated network that does its worst: every answer judged, everything must come to its end.
sim() { cargo run --profile sim --locked -p linerate-sim -- --seeds 0..2000; }
# And the proof that simulator and live check can say no: each deliberate fault must be found.
mutants() {
  cargo run --profile sim --locked -p linerate-sim --features mutants -- --mutants
  cargo test --profile sim --locked -p linerate-bench --features mutants --test mutants
}
# Ten million hostile datagrams at a live server, in seconds instead of the minutes of a debug build.
hostile() {
  LINERATE_HOSTILE_DATAGRAMS=10_000_000 cargo test --profile sim --locked -p linerate-bench --test hostile_load -- --nocapture
}
# The README's first command, shortened: it must run anywhere and end by itself.
demo() { cargo run --release --locked --bin linerate-bench -- demo --duration 1 --records 50000; }

if [ $# -eq 0 ]; then
  set -- fmt scripts clippy doc tests sim mutants hostile demo
  # cargo-deny is a program of its own; .ci/run installs it, a developer may do without.
  if cargo deny --version >/dev/null 2>&1; then set -- "$@" deny; else echo 'not run: deny (cargo-deny is not installed)'; fi
fi
for step in "$@"; do
  echo "== $step"
  "$step"
done
