#!/usr/bin/env bash
# Everything that is enforced. Run it before a commit: ./ci.sh, or one step: ./ci.sh fmt
set -euo pipefail
cd "$(dirname "$0")"

fmt() {
  cargo fmt --all --check
  rustfmt --edition 2024 --check fuzz/fuzz_targets/*.rs
}
clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }
doc() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked; }
# The README's test command. --locked: what was tested is what Cargo.lock says.
tests() { cargo test --workspace --locked; }
scripts() { shellcheck -x ci.sh .ci/run setup/*.sh setup/tests/*.sh; }
# What makes a machine a node. What a machine lacks for a check, the check says; with LINERATE_SETUP=required it fails.
setup() {
  setup/tests/tune-nic.sh
  setup/tests/bootstrap.sh
  setup/tests/unit.sh
  setup/tests/profile.sh
  setup/tests/ansible.sh
}
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
# What is unsafe, and what rests on it, interpreted: no access out of bounds, to what was freed, or to what is lent.
miri() {
  cargo +nightly miri test --locked -p linerate-dataplane --lib region
  cargo +nightly miri test --locked -p linerate-server --test store
}
# Streams of operations that nobody thought of, for LINERATE_FUZZ_SECONDS; what is new goes to target/, not to the kept ones.
fuzz() {
  mkdir -p target/fuzz-corpus
  cargo +nightly fuzz run --sanitizer none store target/fuzz-corpus fuzz/corpus/store -- -max_total_time="${LINERATE_FUZZ_SECONDS:-20}" -max_len=1024
}
# The README's first command, shortened, and built as above: it must run anywhere and end by itself.
demo() { cargo run --profile sim --locked --bin linerate-bench -- demo --duration 1 --records 50000; }
# What the README says of results is what they have.
readme() { cargo run --profile sim --locked --bin linerate-bench -- readme --check; }

if [ $# -eq 0 ]; then
  set -- fmt scripts clippy doc tests setup sim mutants hostile demo readme
  # Both need a nightly compiler, which building and testing do without.
  if cargo +nightly miri setup >/dev/null 2>&1; then set -- "$@" miri; else echo 'not run: miri (no nightly compiler with the components miri and rust-src is installed)'; fi
  if cargo +nightly fuzz --version >/dev/null 2>&1; then set -- "$@" fuzz; else echo 'not run: fuzz (no nightly compiler, or no cargo-fuzz, is installed)'; fi
  # cargo-deny is a program of its own; .ci/run installs it, a developer may do without.
  if cargo deny --version >/dev/null 2>&1; then set -- "$@" deny; else echo 'not run: deny (cargo-deny is not installed)'; fi
fi
for step in "$@"; do
  echo "== $step"
  "$step"
done
