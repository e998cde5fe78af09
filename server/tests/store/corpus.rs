//! Streams that fuzzing has kept, or that once found something: followed again on every compiler.

use std::{fs, path::Path};

use crate::model::{Run, Settings};

/// Goal: what fuzzing has learnt is checked wherever the tests run. Method: every stream of the fuzz target's corpus, as the
/// target follows it.
#[test]
fn corpus_is_followed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/store");
    let mut paths: Vec<_> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut operation_count = 0;
    for path in &paths {
        println!("{}", path.display());
        let stream = fs::read(path).unwrap();
        let mut stream = &stream[..];
        let mut run = Run::new(Settings::read(&mut stream));
        run.follow(&mut stream);
        run.check_all();
        operation_count += run.operation_count();
    }
    assert!(
        paths.len() >= 16 && operation_count > 1_000,
        "{} streams, {operation_count} operations",
        paths.len()
    );
}
